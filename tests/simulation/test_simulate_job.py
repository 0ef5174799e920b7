"""Whole simulations: killed and run again, grown, mistaken; and arms that are campaigns."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml
from campaigns import lines_of
from fakes import ended
from small import small_values, write_small

from raykd.store.tables import RESULTS

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def simulate(tmp_path):
    """Runs the job in this process, on the session's Ray: values and overrides in, exit code and words out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        import simulate

    def run(values: dict, *overrides: str) -> tuple[int, str]:
        (tmp_path / "simulation.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        return ended(simulate.main, [tmp_path / "simulation.yaml", *(["--set", *overrides] if overrides else [])])

    return run


@pytest.fixture
def values(tmp_path):
    (tmp_path / "tables").mkdir()
    write_small(tmp_path / "tables")
    return small_values(tmp_path / "tables", tmp_path / "results", seeds=3)


def results_of(folder: Path) -> list[dict]:
    table = pq.read_table(folder / "results.parquet")
    assert table.schema == RESULTS
    by_csv = pyarrow.csv.read_csv(folder / "results.csv").select(table.column_names)
    assert by_csv["accuracy"].to_pylist() == table["accuracy"].to_pylist()
    return table.drop_columns("seconds").to_pylist()


def test_a_simulation_that_is_killed_goes_on_to_what_one_gives_that_is_not(values, simulate, tmp_path):
    longer = values | {"campaign": values["campaign"] | {"student": values["campaign"]["student"] | {"steps": 120}}}
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(longer))
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "jobs" / "simulate.py"), str(file)], start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    cells = tmp_path / "results" / "cells"
    try:
        while not list(cells.rglob("seed_*.parquet")):
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    time.sleep(2)  # Ray's processes end with their driver, a moment later
    there = {path: path.stat().st_mtime_ns for path in cells.rglob("seed_*.parquet")}
    assert 0 < len(there) < 6
    assert not (tmp_path / "results" / "results.parquet").exists()
    code, words = simulate(longer, "campaign.progress=lines")
    assert code == 0, words
    assert all(path.stat().st_mtime_ns == before for path, before in there.items())
    code, words = simulate(longer | {"results_path": str(tmp_path / "alone")})
    assert code == 0, words
    assert results_of(tmp_path / "results") == results_of(tmp_path / "alone")


def test_a_simulation_grows_by_arms_and_seeds_and_says_what_came_of_it(values, simulate, tmp_path):
    code, words = simulate(values)
    assert code == 0, words
    before = results_of(tmp_path / "results")
    assert [(row["arm"], row["seed"], row["round"]) for row in before] == [
        (arm, seed, number) for arm in ("random", "PCoreSet") for seed in range(3) for number in range(3)
    ]
    assert all(row["set"] == "tables" and row["labels"] == row["spent"] == 3 + 4 * row["round"] for row in before)
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "results" / "cells").rglob("*.parquet")}
    more = values | {"arms": values["arms"] | {"CE alone": {"student.heads": "ce"}}, "greedy_oracle": {"candidates": 2}}
    code, words = simulate(more, "seeds=4")
    assert code == 0, words
    for arm in ("random", "PCoreSet", "CE alone", "greedy oracle"):
        assert arm in words
    assert all(file.stat().st_mtime_ns == then for file, then in files.items())
    grown = results_of(tmp_path / "results")
    assert [row for row in grown if row in before] == before
    assert len(grown) == 4 * 4 * 3
    arms = yaml.safe_load((tmp_path / "results" / "arms.json").read_text())
    assert arms["CE alone"] == {"student.heads": "ce"}
    assert arms["greedy oracle"]["greedy_oracle.candidates"] == 2
    one = {row["seed"]: row for row in grown if row["arm"] == "random" and row["round"] == 0}
    other = {row["seed"]: row for row in grown if row["arm"] == "PCoreSet" and row["round"] == 0}
    assert {seed: row | {"arm": "PCoreSet"} for seed, row in one.items()} == other


def test_sets_and_a_noisy_oracle_are_in_the_rows(values, simulate, tmp_path):
    given = values | {
        "sets": {"whole": {}, "long tail": {"long_tailed": 4}},
        "oracle": {"kind": "abstaining", "rate": 0.3, "price": 0.5},
        "seeds": 1,
    }
    code, words = simulate(given)
    assert code == 0, words
    rows = results_of(tmp_path / "results")
    assert {row["set"] for row in rows} == {"whole", "long tail"}
    assert all(row["spent"] == row["labels"] / 2 for row in rows)


def test_mistakes_are_told_before_anything_is_trained(values, simulate, tmp_path):
    code, words = simulate(values, "campaign.rounds=30")
    assert code == 2
    assert "set 'tables', arm 'random': 30 rounds with a budget of 4 ask for 119 labels, and the pool has 60" in words
    assert not (tmp_path / "results" / "cells").exists()
    code, words = simulate(values | {"sets": {"a": {"missing": ["dog"]}}, "results_path": str(tmp_path / "other")})
    assert (code, "set 'a': missing: 'dog' is no class" in words) == (2, True)
    images = {"student": {"backbone": "test_resnet", "pretrained": False, "steps": 3}}
    code, words = simulate(values | {"campaign": values["campaign"] | images, "results_path": str(tmp_path / "third")})
    assert (code, "its student is trained on images, and tables have none" in words) == (2, True)


def test_an_arm_whose_student_sees_images_is_a_campaign_of_its_own(settings, simulate, tmp_path):
    del settings["storage_path"]
    values = {
        "results_path": str(tmp_path / "results"),
        "campaign": settings | {"local_cpus": 4},
        "arms": {
            "images": {},
            "frozen": {"student.backbone": "frozen", "student.image_size": None, "student.interpolation": None},
        },
        "seeds": 1,
    }
    code, words = simulate(values)
    assert code == 0, words
    rows = results_of(tmp_path / "results")
    assert [(row["arm"], row["round"], row["labels"]) for row in rows] == [
        *[("images", number, 3 + 3 * number) for number in range(2)],
        *[("frozen", number, 3 + 3 * number) for number in range(2)],
    ]
    (storage,) = (tmp_path / "results" / "campaigns").glob("*/images/seed_000")
    lines = lines_of(storage)
    assert [row["accuracy"] for row in rows[:2]] == [line["accuracy"]["mixture"] for line in lines]
    assert [row["ece"] for row in rows[:2]] == [line["ece"] for line in lines]
