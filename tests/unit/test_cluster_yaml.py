"""cluster.yaml: Ray's own schema check, and what that check does not see. Starts no Ray and no machine."""

import copy
import re
from pathlib import Path

import pytest
import ray
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.util import prepare_config, validate_config

tomllib = pytest.importorskip("tomllib")  # Python 3.11

ROOT = Path(__file__).parents[2]
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


@pytest.fixture(scope="module")
def text():
    return (ROOT / "cluster.yaml").read_text("utf-8")


@pytest.fixture
def cluster(text):
    return yaml.safe_load(text)


def check(cluster):
    """Ray's check, then what it lets pass; returns the config that Ray would use."""
    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    for name, kind in prepared["available_node_types"].items():
        assert kind["min_workers"] <= kind["max_workers"] <= prepared["max_workers"], name
        assert "InstanceType" in kind["node_config"], name
        assert set(kind["node_config"]) <= EC2_KEYS, name
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


def test_rays_version_is_the_same_everywhere(text, cluster):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pinned,) = (
        re.fullmatch(r"ray\[.*\]==(.+)", line)[1]
        for line in project["optional-dependencies"]["campaign"]
        if line.startswith("ray[")
    )
    assert ray.__version__ == pinned
    assert f"ray=={pinned}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert cluster["docker"]["image"] == f"rayproject/ray:{pinned}-py311-gpu"
    assert (
        set(re.findall(r"rayproject/ray:([\d.]+)", text))
        == set(re.findall(r"ray\[default\]==([\d.]+)", text))
        == {pinned}
    )


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


def test_setup_installs_the_dependencies_that_are_mounted_and_not_raykd_itself(cluster):
    lines = "\n".join(cluster["setup_commands"])
    for path in cluster["file_mounts"]:
        assert path in lines or path == "~/.ray/auth_token"
    assert "--requirement /home/ray/raykd/pyproject.toml --extra campaign" in lines
    assert "--editable" not in lines
    assert not any(Path(path).suffix == ".py" for path in cluster["file_mounts"])
