"""Trainings whose nodes go while they train: fewer workers go on, and a node that is announced to go is no failure."""

from __future__ import annotations

import sys
import time

import pytest
from faults import GOES_ON_S, PROCESSES, VICTIM, Job, World, outcome
from nodes import until

pytestmark = [pytest.mark.timeout(600), pytest.mark.nightly]

STEPS = 300
NOTICE_S = 15
WORKER = PROCESSES["train worker"][0]
NODE_ID = """
import sys, ray
ray.init(log_to_driver=False, logging_level="ERROR")
print("ID", *[node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == sys.argv[1]])
"""


def training(world: World, name: str, *more: str, **environment: str) -> Job:
    """A campaign whose training has two workers at work, one of them on the node that is to go."""
    world.victim = VICTIM
    world.begin("disk", name, "train")
    few = (f"student.steps={STEPS}", "student.checkpoints=20", "student.num_cpus=2")  # one fits a node
    job = world.start("disk", name, "disk", *few, *more, **environment)
    steps = world.folder / "disk" / name / "ray_train"
    until(lambda: job.ended or any(steps.rglob("checkpoint_2*")), GOES_ON_S, f"{name}: it trains")
    assert not job.ended, job.said[-1500:]
    assert all(world.nodes.find(WORKER, [node]) for node in (1, VICTIM))
    return job


def has_ended_well(world: World, job: Job, name: str) -> None:
    job.ends_well(GOES_ON_S)
    print(job.said)
    place = world.place("disk", name)
    assert (place / "round_000" / "train" / "_DONE.json").read_json()["facts"]["steps"] == STEPS
    found = outcome(place)
    assert {key: found[key] for key in ("picks", "labels")} == {
        key: world.undisturbed[key] for key in ("picks", "labels")
    }


def test_a_training_goes_on_with_the_workers_that_are_left(world):
    job = training(world, "elastic", "student.num_workers=[1,2]")
    world.nodes.kill(VICTIM)
    try:
        has_ended_well(world, job, "elastic")
    finally:
        world.heal()


def test_a_node_that_is_announced_to_go_is_no_failure(world):
    """As on spot machines: Ray is told, the training writes a checkpoint, and another node takes its place."""
    nodes = world.nodes
    job = training(world, "spot", "student.max_failures=0", RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="1")
    said = nodes.run(0, [sys.executable, "-c", NODE_ID, nodes.address(VICTIM)], RAY_ADDRESS=nodes.ray_address)
    drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.ray_address]
    drain += ["--node-id", said.split("ID ")[1].strip(), "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
    nodes.run(0, [*drain, "--reason-message", "spot", "--deadline-remaining-seconds", str(NOTICE_S)])
    try:
        time.sleep(NOTICE_S)  # it is taken away then, whatever goes on there
        nodes.kill(VICTIM)
        nodes.join(VICTIM)
        has_ended_well(world, job, "spot")
    finally:
        world.heal()
