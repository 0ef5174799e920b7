"""cluster.yaml and jobs/deploy: Ray's own schema check, what no schema sees, and that all recipes agree.

Starts no Ray and no machine.
"""

import copy
import re
import subprocess
from pathlib import Path

import pytest
import ray
import yaml
from jsonschema import ValidationError, validate
from ray.autoscaler._private.util import prepare_config, validate_config

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "jobs/deploy"
RECIPES = [ROOT / "cluster.yaml", *sorted(path for path in DEPLOY.iterdir() if path.suffix != ".md")]
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
DEFAULTS = Path(ray.__file__).parent / "autoscaler/aws/defaults.yaml"
EC2_KEYS = {"InstanceType", "InstanceMarketOptions", "BlockDeviceMappings", "IamInstanceProfile", "ImageId"}
SPOT_SETTINGS = {
    "RAY_health_check_initial_delay_ms",
    "RAY_health_check_period_ms",
    "RAY_health_check_timeout_ms",
    "RAY_health_check_failure_threshold",
    "RAY_grpc_client_keepalive_time_ms",
    "RAY_grpc_client_keepalive_timeout_ms",
}


@pytest.fixture
def cluster():
    return yaml.safe_load((ROOT / "cluster.yaml").read_text("utf-8"))


@pytest.fixture
def job():
    return yaml.safe_load((DEPLOY / "kuberay.yaml").read_text("utf-8"))


@pytest.fixture
def anyscale():
    return yaml.safe_load((DEPLOY / "anyscale.yaml").read_text("utf-8"))


def containerfile():
    return (DEPLOY / "Containerfile").read_text("utf-8")


def pods(job):
    """Pod specs of the head and of every worker group."""
    spec = job["spec"]["rayClusterSpec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def check(cluster):
    """Ray's check, then what it lets pass; returns the config that Ray would use."""
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    for name, kind in prepared["available_node_types"].items():
        assert kind["min_workers"] <= kind["max_workers"] <= prepared["max_workers"], name
        assert "InstanceType" in kind["node_config"], name
        assert set(kind["node_config"]) <= EC2_KEYS, name
        assert kind["node_config"].get("ImageId", "").startswith("ami-"), f"{name}: Ray's own image has an old driver"
        assert kind["node_config"].get("IamInstanceProfile"), f"{name} could not use S3"
    missing = yaml.safe_load(DEFAULTS.read_text()).keys() - cluster.keys()
    assert not missing, f"{sorted(missing)} would come from Ray's provider defaults"
    for line in prepared["head_start_ray_commands"]:
        assert "--dashboard-host=0.0.0.0" not in line
    for local in cluster["file_mounts"].values():
        assert local.startswith("~") or (ROOT / local).is_file(), f"no {local} to mount"
    return prepared


def environment(cluster):
    options = [option.split() for option in cluster["docker"]["run_options"]]
    return dict(option[1].split("=", 1) for option in options if option[0] == "-e")


def test_cluster_yaml_passes_rays_schema_and_states_every_key(cluster):
    prepared = check(cluster)
    for key, value in cluster.items():
        if key != "available_node_types" and not key.endswith("_commands"):
            assert prepared[key] == value, f"Ray changed {key}"
    for key in ("setup_commands", "initialization_commands", "head_start_ray_commands", "worker_start_ray_commands"):
        assert prepared[key] == cluster[key]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("max_wokers", 3, "'max_wokers' was unexpected"),
        ("head_node_type", "haed", "head_node_type"),
        ("provider.type", "amazon", "amazon"),
        ("docker.image", None, "Must provide a container & image name"),
        ("available_node_types.gpu_spot.idle_timeout", 3, "'idle_timeout' was unexpected"),
        ("available_node_types.gpu_spot.resources.CPU", 1.5, "1.5 is not of type 'integer'"),
        ("available_node_types.gpu_spot.min_workers", 9, "min_workers"),
        ("available_node_types.gpu_spot.min_workers", 7, "gpu_spot"),
        ("available_node_types.cpu.node_config.InstanceTyp", "c6i.large", "cpu"),
        ("available_node_types.gpu_spot.node_config.ImageId", "DELETE", "gpu_spot: Ray's own image has an old driver"),
        ("available_node_types.cpu.node_config.IamInstanceProfile", "DELETE", "cpu could not use S3"),
        ("head_start_ray_commands", ["ray start --head --dashboard-host=0.0.0.0"], "dashboard-host=0.0.0.0"),
        ("setup_commands", "DELETE", "'setup_commands'.* would come from Ray's provider defaults"),
        ("head_setup_commands", "DELETE", "'head_setup_commands'.* would come from Ray's provider defaults"),
        ("file_mounts.x", "nowhere.toml", "no nowhere.toml to mount"),
    ],
)
def test_the_check_sees_mistakes(cluster, path, value, message):
    *parents, last = path.split(".")
    target = cluster
    for parent in parents:
        target = target[parent]
    target[last] = value
    if value == "DELETE":
        del target[last]
    with pytest.raises((ValidationError, ValueError, AssertionError, NotImplementedError), match=message):
        check(cluster)


def test_ray_and_python_are_the_same_in_every_recipe(cluster, job, anyscale):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pinned,) = (
        re.fullmatch(r"ray\[.*\]==(.+)", line)[1]
        for line in project["optional-dependencies"]["campaign"]
        if line.startswith("ray[")
    )
    assert ray.__version__ == pinned
    assert f"ray=={pinned}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert cluster["docker"]["image"] == f"rayproject/ray:{pinned}-py311-gpu"
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == anyscale["ray_version"] == pinned
    for path in RECIPES:
        text = path.read_text("utf-8")
        images = re.findall(r"(?:rayproject/ray|YOUR-REGISTRY/raykd):(\S+)", text)
        assert {re.sub("-[cg]pu$", "", tag) for tag in images} <= {f"{pinned}-py311"}, path.name
        assert set(re.findall(r"ray(?:\[\w+\])?==([\d.]+)", text)) <= {pinned}, path.name
        assert set(re.findall(r"Python (3\.\d+)", text)) <= {"3.11"}, path.name
    assert f"ARG BASE=rayproject/ray:{pinned}-py311-gpu\nFROM ${{BASE}}\n" in containerfile()
    assert f"ray.__version__ == '{pinned}'" in containerfile()


def test_the_head_does_no_work_and_is_no_spot_machine(cluster):
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]


def test_gpu_workers_are_spot_and_all_workers_go_when_idle(cluster):
    workers = {
        name: kind for name, kind in cluster["available_node_types"].items() if name != cluster["head_node_type"]
    }
    gpus = [kind for kind in workers.values() if kind["resources"].get("GPU")]
    assert gpus
    assert all(kind["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for kind in gpus)
    for kind in workers.values():
        assert kind["min_workers"] == 0
        assert 0 < kind["idle_timeout_s"] <= 600
    assert cluster["idle_timeout_minutes"] <= 10
    assert cluster["provider"]["cache_stopped_nodes"] is False


def test_a_gpu_worker_has_cpus_left_beside_a_worker_of_every_preset(cluster):
    from raykd.presets import PRESETS, load_preset

    largest = max(
        kind["resources"]["CPU"] for kind in cluster["available_node_types"].values() if "GPU" in kind["resources"]
    )
    for name in PRESETS:
        assert load_preset(name).student.num_cpus < largest


def test_all_processes_use_the_token(cluster):
    assert environment(cluster)["RAY_AUTH_MODE"] == "token"
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


def test_lost_spot_machines_are_noticed_in_seconds_by_settings_that_this_ray_has(cluster):
    given = environment(cluster)
    settings = {name: int(value) for name, value in given.items() if name in SPOT_SETTINGS}
    assert settings.keys() == SPOT_SETTINGS
    library = (Path(ray.__file__).parent / "_raylet.so").read_bytes()
    for name in settings:
        assert name.encode() in library, f"this Ray has no {name}"
    check_ms = settings["RAY_health_check_period_ms"] + settings["RAY_health_check_timeout_ms"]
    assert 10_000 <= check_ms * settings["RAY_health_check_failure_threshold"] <= 30_000
    keepalive_ms = settings["RAY_grpc_client_keepalive_time_ms"] + settings["RAY_grpc_client_keepalive_timeout_ms"]
    assert 10_000 <= keepalive_ms <= 30_000


def variables(cluster, job):
    """Settings for lost nodes, of each recipe that sets them."""
    assigned = r"\b(RAY_(?:health_check|grpc_client)\w+)=(\d+)"
    found = {path.name: dict(re.findall(assigned, path.read_text())) for path in RECIPES if path.suffix != ".yaml"}
    found["cluster.yaml"] = {name: value for name, value in environment(cluster).items() if name in SPOT_SETTINGS}
    for number, pod in enumerate(pods(job)):
        found[f"kuberay.yaml {number}"] = {entry["name"]: entry["value"] for entry in pod["containers"][0]["env"]}
    return {name: settings for name, settings in found.items() if name != "aws_setup.sh"}


def test_lost_nodes_are_noticed_alike_by_every_recipe_and_the_page_says_how(cluster, job):
    found = variables(cluster, job)
    assert len(found) == 5
    for name, settings in found.items():
        assert settings == found["cluster.yaml"], name
        assert settings.keys() == SPOT_SETTINGS, name
    rows = dict(re.findall(r"^\| `(RAY_\w+)` \| (\d+) \|", (DEPLOY / "README.md").read_text(), re.MULTILINE))
    assert rows == found["cluster.yaml"]


def test_every_recipe_but_the_guarded_one_uses_the_token(cluster, job):
    assert environment(cluster)["RAY_AUTH_MODE"] == "token"
    assert job["spec"]["rayClusterSpec"]["authOptions"]["mode"] == "token"
    lines = (DEPLOY / "own_machines.sh").read_text().splitlines()
    assert lines.index("export RAY_AUTH_MODE=token") < next(
        n for n, line in enumerate(lines) if "exec ray start" in line
    )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_no_recipe_opens_the_dashboard_or_holds_a_secret(path):
    text = path.read_text("utf-8")
    assert "0.0.0.0" not in text
    for line in text.splitlines():
        if "ray start --head" in line or "--dashboard-host" in line:
            assert "--dashboard-host=127.0.0.1" in line, line
    assert not re.search(r"AKIA[0-9A-Z]{16}|[0-9a-f]{32,}|\b\d{12}\b", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_that_stops_at_the_first_error_and_say_their_usage(path):
    assert subprocess.run(["bash", "-n", path], capture_output=True, text=True).stderr == ""
    assert "\nset -euo pipefail\n" in path.read_text()
    usage = subprocess.run(["bash", path], capture_output=True, text=True)
    assert (usage.returncode, usage.stdout) == (2, "")
    assert f"bash jobs/deploy/{path.name}" in usage.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["head", "10.0.0.1"], "no token in"),
        (["worker", "10.0.0.1", "10.0.0.2:6379"], "no token in"),
        (["head", "0.0.0.0"], "THIS-IP"),
        (["worker", "10.0.0.1"], "HEAD-IP:6379"),
        (["hed", "10.0.0.1"], "HEAD-IP:6379"),
    ],
    ids=str,
)
def test_own_machines_start_nothing_without_a_token_or_with_a_mistake(given, message, started):
    run, home, log = started
    if "no token" not in message:
        (home / ".ray").mkdir()
        (home / ".ray/auth_token").write_text("secret")
    done = run(given)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert not log.exists()


@pytest.fixture
def started(tmp_path):
    """own_machines.sh with a ``ray`` that writes down how it was called."""
    log = tmp_path / "log"
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin/ray"
    fake.write_text(f'#!/bin/bash\n{{ echo "$@"; env; }} > {log}\n')
    fake.chmod(0o755)

    def run(given):
        environ = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:/usr/sbin:/usr/bin:/bin"}
        return subprocess.run(
            ["bash", DEPLOY / "own_machines.sh", *given], env=environ, capture_output=True, text=True, timeout=60
        )

    return run, tmp_path, log


def test_own_machines_start_ray_at_the_given_address_with_token_and_settings(started):
    run, home, log = started
    (home / ".ray").mkdir()
    token = home / ".ray/auth_token"
    token.write_text("secret")
    assert run(["head", "127.0.0.1", "--num-cpus", "0"]).returncode == 0
    called, *environ = log.read_text().splitlines()
    assert called == (
        "start --head --block --node-ip-address=127.0.0.1 --port=6379 --dashboard-host=127.0.0.1 --num-cpus 0"
    )
    assert "RAY_AUTH_MODE=token" in environ
    assert {line.split("=")[0] for line in environ} >= SPOT_SETTINGS
    assert token.stat().st_mode & 0o777 == 0o600
    assert run(["worker", "127.0.0.1", "10.0.0.2:6379"]).returncode == 0
    called, *environ = log.read_text().splitlines()
    assert called == "start --block --address=10.0.0.2:6379 --node-ip-address=127.0.0.1"
    assert "RAY_AUTH_MODE=token" in environ


def test_profiles_of_the_cluster_are_those_that_the_script_makes(cluster):
    script = (DEPLOY / "aws_setup.sh").read_text()
    kinds = cluster["available_node_types"].items()
    profiles = {name: kind["node_config"]["IamInstanceProfile"] for name, kind in kinds}
    assert profiles.pop(cluster["head_node_type"]) == {"Name": "raykd-head"}
    assert all(profile == {"Name": "raykd-worker"} for profile in profiles.values())
    assert "for name in raykd-worker raykd-head; do" in script
    assert re.search(r'--role-name raykd-head .*"iam:PassRole", "Resource": "\'"\$worker"', script, re.DOTALL)


def test_the_image_is_to_be_set_and_the_script_says_how(cluster):
    images = {kind["node_config"]["ImageId"] for kind in cluster["available_node_types"].values()}
    assert images == {
        "ami-SET-ME"
    }  # no valid id: AWS refuses it at once, where Ray's own default starts and then fails
    assert "sed -i 's/ami-SET-ME/$image/' cluster.yaml" in (DEPLOY / "aws_setup.sh").read_text()
    assert "driver 580 or newer" in (DEPLOY / "aws_setup.sh").read_text()
    region = cluster["provider"]["region"]
    assert f"AWS_REGION:-{region}" in (DEPLOY / "aws_setup.sh").read_text()
    assert all(zone.startswith(region) for zone in cluster["provider"]["availability_zone"].split(","))


def test_a_gpu_worker_without_nvidias_runtime_does_not_start_as_one_without_gpu(cluster):
    for kind in cluster["available_node_types"].values():
        options = kind.get("docker", {}).get("worker_run_options", [])
        assert ("--gpus all" in options) == ("GPU" in kind["resources"])


# Of KubeRay's RayJobSpec, RayClusterSpec, AutoscalerOptions, HeadGroupSpec and WorkerGroupSpec what this recipe uses
POSITIVE = {"type": "integer", "minimum": 1}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
GROUP = {"template": {"type": "object"}, "rayStartParams": STRINGS}


def keys(required=(), **properties):
    return {"type": "object", "properties": properties, "additionalProperties": False, "required": list(required)}


RAY_JOB = keys(
    ("submissionMode", "entrypoint", "rayClusterSpec"),
    submissionMode={
        "enum": ["SidecarMode"]
    },  # with which the operator refuses submitterPodTemplate and submitterConfig
    backoffLimit=POSITIVE,
    shutdownAfterJobFinishes={"const": True},  # else ttlSecondsAfterFinished is refused
    ttlSecondsAfterFinished=POSITIVE,
    entrypoint={"type": "string"},
    runtimeEnvYAML={"type": "string"},
    rayClusterSpec=keys(
        ("headGroupSpec", "authOptions"),
        rayVersion={"type": "string"},
        authOptions=keys(("mode",), mode={"enum": ["token"]}, secretName={"type": "string"}),
        enableInTreeAutoscaling={"const": True},
        autoscalerOptions=keys((), version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=POSITIVE),
        headGroupSpec=keys(GROUP, **GROUP),
        workerGroupSpecs={
            "type": "array",
            "minItems": 1,
            "items": keys(
                ("groupName", "minReplicas", "maxReplicas", *GROUP),
                groupName={"type": "string"},
                replicas={"const": 0},
                minReplicas={"const": 0},
                maxReplicas=POSITIVE,
                **GROUP,
            ),
        },
    ),
)


def test_the_ray_job_has_only_keys_that_kuberay_knows(job):
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    validate(job["spec"], RAY_JOB)
    with pytest.raises(ValidationError, match="'backofLimit' was unexpected"):
        validate({**job["spec"], "backofLimit": 1}, RAY_JOB)


def test_pods_end_with_their_cluster_and_have_s3_shared_memory_and_a_gpu(job):
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for number, pod in enumerate(pods(job)):
        (container,) = pod["containers"]
        assert pod["restartPolicy"] == "Never"  # SidecarMode and autoscaler v2 want it
        assert pod["serviceAccountName"] == "raykd"
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (number > 0)
        (mount,) = container["volumeMounts"]
        (volume,) = pod["volumes"]
        assert mount == {"name": volume["name"], "mountPath": "/dev/shm"}
        memory = container["resources"]["limits"]["memory"].removesuffix("Gi")
        assert volume["emptyDir"]["medium"] == "Memory"
        assert int(volume["emptyDir"]["sizeLimit"].removesuffix("Gi")) * 3 >= 0.8 * int(memory)  # Ray's store: 30 %
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["working_dir"].endswith("/raykd.zip")


def test_anyscale_workers_come_and_go_and_gpus_are_spot(anyscale):
    compute = anyscale["compute_config"]
    assert compute["head_node"]["resources"] == {"CPU": 0}
    assert all(group["min_nodes"] == 0 for group in compute["worker_nodes"])
    assert {group["name"]: group["market_type"] for group in compute["worker_nodes"]}["gpu"] == "SPOT"
    assert anyscale["max_retries"] > 0


def test_every_recipe_begins_with_the_demo_and_has_what_it_needs(cluster, job, anyscale):
    first = "python jobs/active_round.py --preset demo --set storage_path=s3://YOUR-BUCKET/demo"
    assert job["spec"]["entrypoint"] == anyscale["entrypoint"] == first
    for path in (ROOT / "cluster.yaml", DEPLOY / "README.md"):
        assert first in path.read_text()
    for line in ("\n".join(cluster["setup_commands"]), containerfile()):
        assert "--extra campaign --extra demo" in line


def test_the_image_is_no_roots_and_pins_all_but_boto3():
    lines = [line for line in containerfile().splitlines() if not line.startswith("#")]
    assert [line for line in lines if line.startswith("USER")] == ["USER ray"]
    assert lines.index("USER ray") < next(number for number, line in enumerate(lines) if line.startswith("RUN"))
    assert "--constraint constraints.txt" in containerfile()
    assert "--compile-bytecode" in containerfile()
    copied = next(line for line in lines if line.startswith("COPY")).split()
    assert all((ROOT / name).is_file() for name in copied[2:-1])


def test_the_page_names_every_recipe_and_only_those():
    table = re.findall(r"^\| \[?`([\w.]+)`", (DEPLOY / "README.md").read_text(), re.MULTILINE)
    rows = [name for name in table if not name.startswith("RAY_")]
    assert sorted(rows) == sorted(path.name for path in RECIPES)


def test_setup_installs_the_dependencies_that_are_mounted_and_not_raykd_itself(cluster):
    lines = "\n".join(cluster["setup_commands"])
    for path in cluster["file_mounts"]:
        assert path in lines or path == "~/.ray/auth_token"
    assert "--requirement /home/ray/raykd/pyproject.toml --extra campaign --extra demo" in lines
    assert "--editable" not in lines
    assert not any(Path(path).suffix == ".py" for path in cluster["file_mounts"])
