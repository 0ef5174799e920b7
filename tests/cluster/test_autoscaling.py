"""From a head without CPUs, by Ray's own autoscaler, to as many nodes as the stages ask for, and down again."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nodes as several
import pytest
from faults import OVERRIDES, stage_of
from nodes import PORT, Nodes, command_line, until

from raykd.store.place import Place

HEAD_ID = "f" * 51 + "00000"
HEAD = "ray.head.default"  # as the stand-in for a cloud calls it
IDLE_MINUTES = 0.15
WORKERS = {"cpu": {"resources": {"CPU": 4, "memory": 4 * 2**30}, "node_config": {}, "min_workers": 0, "max_workers": 2}}
NOTHING = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
NOTHING += (
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
)


def autoscaling(address: str) -> dict:
    """What `ray up` would hand to the head: nodes are raylets of the same machine."""
    return {
        "cluster_name": "several",
        "max_workers": 2,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 10,
        "provider": {
            "type": "external",
            "module": "tests.cluster.stand_in_cloud.StandInCloud",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
            "gcs_address": address,
        },
        "head_node_type": HEAD,
        "available_node_types": {HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}, **WORKERS},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in NOTHING},
    }


@pytest.fixture
def from_zero() -> Iterator[Nodes]:
    if why := several.missing():
        pytest.skip(why)
    with (
        tempfile.TemporaryDirectory(prefix="ra", dir="/tmp", ignore_cleanup_errors=True) as path,
        several.nodes_of(Path(path), 1) as nodes,
    ):
        config = Path(path) / "autoscaling.json"
        config.write_text(json.dumps(autoscaling(f"{nodes.address(0)}:{PORT}")))
        nodes.environment |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        }
        nodes.head(f"--autoscaling-config={config}")
        yield nodes


def raylets(nodes: Nodes) -> int:
    return sum("/raylet/raylet" in command_line(pid).split(" ")[0] for pid in nodes.pids(0))


def nodes_of_stages(nodes: Nodes, place: Path, *more: str) -> tuple[dict[str, int], str]:
    """Run a campaign; how many raylets there were at most in each of its stages, and what it said."""
    command = [sys.executable, "jobs/active_round.py", "--preset", "demo", "--set", *OVERRIDES, f"storage_path={place}"]
    log = nodes.folder / f"log{time.monotonic_ns()}"
    job = nodes.popen(0, [*command, *more], log, RAY_ADDRESS=nodes.ray_address)
    seen: dict[str, int] = {}

    def look() -> bool:
        if stage := stage_of(Place.of(place)):
            seen[stage] = max(seen.get(stage, 0), raylets(nodes))
        return job.poll() is not None

    until(look, 300, "the campaign's end")
    assert job.returncode == 0, log.read_text()
    return seen, log.read_text()


@pytest.mark.nightly
@pytest.mark.timeout(500)
def test_every_stage_brings_nodes_from_zero_and_they_go_when_it_is_over(from_zero):
    nodes, place = from_zero, from_zero.folder / "run"
    assert raylets(nodes) == 1
    seen, said = nodes_of_stages(nodes, place)
    assert "too few" in said  # once, at the start: an autoscaler may bring nodes
    for stage in ("encode", "round 0 train", "round 0 predict"):
        assert seen.get(stage, 0) > 1, seen
    until(lambda: raylets(nodes) == 1, 90, "back to the head alone")
    seen, _ = nodes_of_stages(nodes, place, "rounds=2")  # begins with a selection
    assert seen.get("round 1 select", 0) > 1, seen
    until(lambda: raylets(nodes) == 1, 90, "back to the head alone once more")


@pytest.mark.nightly
@pytest.mark.timeout(120)
def test_the_doctor_finds_a_type_that_holds_no_replica_and_one_that_does(from_zero):
    """Before any machine is there."""
    place = from_zero.folder / "asked"
    command = [sys.executable, "jobs/doctor.py", "--preset", "demo", "--set", f"storage_path={place}"]
    too_small = "teacher asks for 8 CPUs, 1.0 GiB for one process, the biggest, type cpu, has 4 CPUs"
    enough = "teacher asks for 2 x (3 CPUs, 1.0 GiB), 0 find room now; nothing, if the autoscaler brings the others"
    for cpus, code, told in ((8, 2, too_small), (3, 0, enough)):
        log = from_zero.folder / f"doctor{cpus}"
        asked = [*command, "teacher.replicas=2", f"teacher.num_cpus={cpus}"]
        job = from_zero.popen(0, asked, log, RAY_ADDRESS=from_zero.ray_address)
        assert job.wait(60) == code, log.read_text()
        assert told in log.read_text()
    assert raylets(from_zero) == 1
