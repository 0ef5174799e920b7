"""What a cluster's watchers see: images, seconds and rounds, by stage and round."""

import os
import re
import socket
import subprocess
import sys
from collections import Counter

import pytest

from raykd.stages import counters, progress, work
from raykd.stages.progress import Progress
from raykd.stages.session import Session
from raykd.stages.work import Work
from raykd.store.place import Place

COUNT_AND_LOOK = """
import sys, time, urllib.request
import raykd.stages, ray
from raykd.stages.counters import IMAGES, ROUNDS, SECONDS, count

count(IMAGES, "encode", 1000)  # no Ray is up: nothing is counted, and none is started
assert not ray.is_initialized()
port = int(sys.argv[1])
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         _metrics_export_port=port, object_store_memory=100 * 2**20)
for images in (30, 12):
    count(IMAGES, "round 2 predict", images)
count(SECONDS, "encode", 1.5)
count(ROUNDS, "round 0 evaluate", 1)
text, end = "", time.monotonic() + 120
while "raykd_rounds" not in text and time.monotonic() < end:
    time.sleep(0.5)
    try:
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    except OSError:
        pass
print(text)
ray.shutdown()
"""


def test_rays_own_endpoint_has_the_counters_with_stage_and_round():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    switches = {"RAY_enable_metrics_collection": "1", "RAY_enable_open_telemetry": "1"}
    env = {**os.environ, **switches, "RAY_metrics_report_interval_ms": "500"}
    env["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", COUNT_AND_LOOK, str(port)], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for name, tags, value in re.findall(r"^ray_(raykd_\w+)\{(.*)\} (\S+)$", done.stdout, re.MULTILINE):
        tag = dict(re.findall(r'(\w+)="([^"]*)"', tags))
        found[name, tag["stage"], tag["round"]] = float(value)
    assert found == {
        (counters.IMAGES, "predict", "2"): 42,
        (counters.SECONDS, "encode", ""): 1.5,
        (counters.ROUNDS, "evaluate", "0"): 1,
    }


@pytest.fixture
def counted(monkeypatch) -> Counter:
    """What is counted from here on, by metric and name."""
    counted: Counter = Counter()

    def count(metric, name, amount):
        if amount > 0:
            counted[metric, name] += amount

    for module in (progress, work):
        monkeypatch.setattr(module, "count", count)
    return counted


@pytest.mark.parametrize("mode", ["none", "lines"])
def test_a_stage_of_images_counts_each_once_however_it_is_shown(mode, counted, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)  # the watch counts on the way
    with open(os.devnull, "w") as nowhere:
        shown = Progress(mode, nowhere)
        with shown.stage("round 1 predict", 30, "images", here=True) as ticker:
            for _ in range(3):
                ticker.add(10)
                ticker_wait()
        with shown.stage("round 1 train", 7, "steps", here=True) as ticker:
            ticker.add(7)
    assert counted == {(counters.IMAGES, "round 1 predict"): 30}


def ticker_wait() -> None:
    """Give the watch a moment; whether it takes it changes nothing."""
    import time

    time.sleep(0.03)


def test_a_stage_that_breaks_off_counts_no_more_than_it_has_done(counted):
    shown = Progress("none")
    with pytest.raises(ValueError, match="broken"), shown.stage("encode", 30, "images", here=True):
        raise ValueError("broken")
    assert not counted


def test_the_making_of_stages_is_timed_parts_together_and_evaluated_rounds_are_counted(counted, monkeypatch, tmp_path):
    now = [100.0]
    monkeypatch.setattr(work.time, "perf_counter", lambda: now[0])
    step = Work(place=Place(str(tmp_path)), progress=Progress("none"), session=Session())
    for at, name in (
        (0, "encode"), (1, "encode"), (5, None), (7, None),  # two parts, side by side
        (20, "round 0 train"), (30, None),
        (50, "round 0 evaluate"), (52, None),
        (60, "round 1 train"),  # and it is killed
    ):  # fmt: skip
        now[0] = 100.0 + at
        step.note_stage(name)
    assert counted == {
        (counters.SECONDS, "encode"): 7,
        (counters.SECONDS, "round 0 train"): 10,
        (counters.SECONDS, "round 0 evaluate"): 2,
        (counters.ROUNDS, "round 0 evaluate"): 1,
    }


def test_folders_of_stages_are_what_is_noted(counted, tmp_path):
    step = Work(place=Place(str(tmp_path)), progress=Progress("none"), session=Session())
    with step.stage_folder(step.place / "a", "round 3 evaluate", version=1, made_from={}).writing():
        pass
    assert counted[counters.ROUNDS, "round 3 evaluate"] == 1
    assert counted[counters.SECONDS, "round 3 evaluate"] > 0
