"""The benchmark of selection: runs, and what it compares agrees."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_tiny_case_runs_and_finds_the_plain_algorithms_picks(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    import bench_selection

    monkeypatch.setattr("sys.argv", ["bench_selection.py", "tiny"])
    bench_selection.main()
    results = json.loads(capsys.readouterr().out.splitlines()[-1])["results"]
    assert [found["method"] for found in results] == ["plain", "raykd, 2 shards"] * 2
    for plain, raykd in zip(results[::2], results[1::2], strict=True):
        assert plain["case"].endswith(f"B {plain['same_picks']}")
        assert plain["radius"] == raykd["radius"]
