"""The benchmark of selection: runs, and what it compares agrees."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tiny_case_runs_and_finds_the_plain_algorithms_picks():
    command = [sys.executable, str(ROOT / "jobs" / "bench_selection.py"), "tiny"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    results = json.loads(ended.stdout.splitlines()[-1])["results"]
    assert [found["method"] for found in results] == ["plain", "raykd, 2 shards"] * 2
    for plain, raykd in zip(results[::2], results[1::2], strict=True):
        assert plain["case"].endswith(f"B {plain['same_picks']}")
        assert plain["radius"] == raykd["radius"]
