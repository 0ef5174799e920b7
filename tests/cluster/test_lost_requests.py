"""Requests that are lost, whose answers are lost, or that run twice: Ray's own injection, the same picks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nodes import REPOSITORY

LOST = {
    "CoreWorkerService.grpc_client.PushTask": {
        "num_failures": 200,  # of a process; each costs about a second
        "req_failure_prob": 2,
        "resp_failure_prob": 2,
        "in_flight_failure_prob": 2,
    }
}
ENVIRONMENT = {
    "RAY_testing_rpc_failure": json.dumps(LOST),
    "RAY_BACKEND_LOG_LEVEL": "info",  # which says what was injected
    "RAY_AUTH_MODE": "disabled",
    "PYTHONPATH": str(REPOSITORY),
}
INJECTED = "Inject RPC "  # in the logs of Ray's processes, once each

pytestmark = [pytest.mark.timeout(900), pytest.mark.nightly]


def run(command: list[str], tmp_path: Path, lossy: bool) -> tuple[str, int]:
    """What a script says, and how many requests were lost in it."""
    temporary = Path(f"/tmp/rl{os.getpid()}{int(lossy)}")
    temporary.mkdir(exist_ok=True)
    environment = {**os.environ, **ENVIRONMENT, "RAY_TMPDIR": str(temporary)}
    if not lossy:
        del environment["RAY_testing_rpc_failure"]
    try:
        done = subprocess.run(
            [sys.executable, *command], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=560
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        logs = temporary.rglob("*.log")
        lost = sum(path.read_text(errors="replace").count(INJECTED) for path in logs if path.is_file())
        print(f"{lost} requests lost, unanswered or repeated")
        return done.stdout, lost
    finally:
        subprocess.run(["rm", "-rf", str(temporary)], check=False)


def test_every_strategy_picks_the_same_on_1_4_and_8_shards_when_requests_are_lost_or_run_twice(tmp_path):
    script = str(Path(__file__).with_name("picks_when_requests_are_lost.py"))
    said, lost = run([script, str(tmp_path), "1", "4", "8"], tmp_path, lossy=True)
    calm, none = run([script, str(tmp_path), "1"], tmp_path, lossy=False)
    assert none == 0
    if lost == 0:
        pytest.skip("this Ray has no RAY_testing_rpc_failure, or another spelling of it")
    found, expected = (json.loads(text.rpartition("PICKS ")[2]) for text in (said, calm))
    for strategy, picks in found.items():
        for number in ("1", "4", "8"):
            assert picks[number] == expected[strategy]["1"], (strategy, number)


def test_a_campaign_picks_and_learns_the_same_when_requests_are_lost_or_run_twice(tmp_path):
    from campaigns import labels_of, picks_of

    for name in ("calm", "lossy"):
        command = ["jobs/active_round.py", "--preset", "demo", "--set", f"storage_path={tmp_path / name}"]
        command += [
            "rounds=2",
            "student.steps=20",
            "teacher.replicas=2",
            "student.predict_replicas=2",
            "progress=lines",
        ]
        _, lost = run(command, tmp_path, lossy=name == "lossy")
    if lost == 0:
        pytest.skip("this Ray has no RAY_testing_rpc_failure, or another spelling of it")
    for number in range(2):
        calm, lossy = ((tmp_path / name / f"round_{number:03d}") for name in ("calm", "lossy"))
        assert picks_of(tmp_path / "lossy", number) == picks_of(tmp_path / "calm", number)
        assert labels_of(tmp_path / "lossy", number) == labels_of(tmp_path / "calm", number)
        weights = [(place / "student" / "model.safetensors").read_bytes() for place in (calm, lossy)]
        assert weights[0] == weights[1]
