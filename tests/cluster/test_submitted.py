"""What the README tells people to run first on a cluster, as submitted jobs: the doctor, then the demo."""

from __future__ import annotations

import sys

import pytest
from nodes import JOBS_PORT, REPOSITORY, Nodes

from raykd.planning import PLAN_FILE
from raykd.stages.probe import PROBED
from raykd.store.place import Place

pytestmark = [pytest.mark.timeout(500), pytest.mark.nightly]


def submit(nodes: Nodes, *command: str) -> str:
    """What a job says that must succeed; raykd travels in its working folder."""
    address = f"http://127.0.0.1:{JOBS_PORT}"
    ray = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", address]
    return nodes.run(0, [*ray, "--working-dir", str(REPOSITORY), "--", sys.executable, *command], 400)


def test_the_demo_runs_on_a_cluster_with_its_pool_in_the_storage_path(three_nodes, folder):
    place = folder / "submitted"
    overrides = ["rounds=1", "student.steps=10", f"storage_path={place}", "progress=lines"]
    said = submit(three_nodes, "jobs/active_round.py", "--preset", "demo", "--set", *overrides)
    assert "1,247 pool, 150 val, 400 test" in said
    assert "report: " in said
    assert (place / "demo" / "digits.parquet").exists()
    assert (Place.of(place) / "round_000" / "evaluate" / "metrics.json").read_json()["num_test"] == 400


def test_the_doctor_finds_nothing_to_mend_there_and_says_how_long_it_will_take(three_nodes, folder):
    place = folder / "examined"
    said = submit(three_nodes, "jobs/doctor.py", "--preset", "demo", "--plan", "--set", f"storage_path={place}")
    assert "ready: " in said
    assert "3 answered" in said
    assert f"probed on {PROBED} images" in said
    assert [each.name for each in place.iterdir()] == [PLAN_FILE]


def test_a_pool_that_only_the_driver_sees_is_told_before_anything_is_read(three_nodes, folder):
    """A node's own ~/.cache is no shared folder."""
    from raykd.demo.digits import pool_bytes

    (three_nodes.folder / "cache0" / "mine.parquet").write_bytes(pool_bytes())
    log = folder / "unseen.log"
    command = [sys.executable, "jobs/active_round.py", "--preset", "demo", "--set"]
    command += ["pool.path=~/.cache/mine.parquet", f"storage_path={folder / 'unseen'}"]
    job = three_nodes.popen(0, command, log, RAY_ADDRESS=three_nodes.ray_address)
    assert job.wait(120) == 2
    said = log.read_text()
    assert "error: pool.path: " in said
    assert "of the cluster cannot see it" in said
    assert "Traceback" not in said


def test_a_storage_that_only_the_head_sees_is_told_too(three_nodes, folder):
    log = folder / "unseen-storage.log"
    command = [sys.executable, "jobs/active_round.py", "--preset", "demo", "--set", "storage_path=~/.cache/run"]
    job = three_nodes.popen(0, command, log, RAY_ADDRESS=three_nodes.ray_address)
    assert job.wait(120) == 2
    assert "error: storage_path: " in log.read_text()
