"""A campaign with trackers: one that comes late has all rounds, one that fails costs a line."""

import copy
import shutil

import pytest

from raykd.trackers import MLflow


def test_a_finished_campaign_gives_all_rounds_to_trackers_and_one_that_fails_stops_nothing(
    finished, run_job, tmp_path, monkeypatch
):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    asked = []

    def away(self, rounds, run):
        asked.append((len(rounds), run.name, run.config["selection.budget"]))
        raise ConnectionError("nobody there")

    monkeypatch.setattr("raykd.tracking.find_spec", lambda module: True)
    monkeypatch.setattr(MLflow, "bring", away)
    place = tmp_path / "run"
    shutil.copytree(finished.place, place)
    lines = (place / "metrics.jsonl").read_bytes()
    settings = copy.deepcopy(finished.settings) | {"storage_path": str(place), "progress": "lines"}
    for _ in range(2):
        ended = run_job(settings, "tracking=[tensorboard, mlflow]")
        assert ended.code == 0, ended.err
        assert ended.err.count("did not take the rounds (ConnectionError: nobody there)") == 1
    assert asked == [(2, "run", 3)] * 2
    assert (place / "metrics.jsonl").read_bytes() == lines
    events = accumulator.EventAccumulator(str(place / "tracking" / "tensorboard" / "rounds"))
    events.Reload()
    assert [event.step for event in events.Scalars("accuracy/mixture")] == [0, 1]


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(settings, run_job, tmp_path, monkeypatch):
    monkeypatch.setattr("raykd.tracking.find_spec", lambda module: None)
    ended = run_job(settings, "tracking=wandb")
    assert ended.code != 0
    assert "pip install 'raykd[wandb]'" in ended.err
    assert not (tmp_path / "run").exists()
