"""A sweep on a finished campaign: trainings of its own, judged on what may choose, gone on with after a kill."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from fakes import Killed

from raykd.config import load_file


@pytest.fixture(scope="module")
def sweep_job(ray_cluster):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "jobs"))
        import sweep
    return sweep.main


@pytest.fixture
def frozen(settings, run_job):
    student = {"backbone": "frozen", "steps": 20, "batch_labeled": 4, "batch_unlabeled": 8, "learning_rate": 0.01}
    settings = settings | {"student": student, "rounds": 1}
    ended = run_job(settings)
    assert ended.code == 0, ended.err
    return settings


def files_of(folder):
    return {file.relative_to(folder): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_killed_and_run_again_it_runs_what_is_missing_and_leaves_the_campaign_alone(
    frozen, sweep_job, tmp_path, monkeypatch
):
    from raykd.stages import sweep

    run, out = tmp_path / "run", tmp_path / "sweep"
    before = {name: time for name, time in files_of(run).items() if name.name != ".lock"}
    arguments = [str(run), "--search", "student.steps=10,20", "mixture.temperature=1,4", "--sampler", "grid",
                 "--out", str(out)]  # fmt: skip
    real = sweep.fit

    def killed(*given):
        real(*given)
        if len(files := sorted((out / "trials").iterdir())) == 5:
            for file in files[1:]:
                file.unlink()
            raise Killed

    monkeypatch.setattr(sweep, "fit", killed)
    with pytest.raises(Killed):
        sweep_job(arguments)
    (kept,) = (out / "trials").iterdir()
    written = kept.stat().st_mtime_ns
    trained = files_of(out / "trained")
    monkeypatch.setattr(sweep, "fit", real)
    rows = sweep_job(arguments)
    assert len(rows) == 5
    assert kept.stat().st_mtime_ns == written
    assert files_of(out / "trained") == trained  # mixtures share a training, and none is done again
    assert len(list((out / "trained").iterdir())) == 2  # of 10 and of 20 steps, which is the campaign as it is
    after = {name: time for name, time in files_of(run).items() if name.name != ".lock"}
    assert after == before
    best = rows[0]["point"]
    found = load_file(out / "best.yaml")
    assert best.get("student.steps", 20) == found.student.steps
    assert (out / "parallel.png").exists() or "matplotlib" not in sys.modules
    base = next(row for row in rows if not row["point"])
    of_round = json.loads((run / "round_000" / "student" / "_DONE.json").read_text())["facts"]
    assert (base["repeats"][0]["ce_weight"], base["repeats"][0]["temperature"]) == (
        of_round["ce_weight"], of_round["temperature"],
    )  # fmt: skip
    again = (run / "round_000" / "train" / "model.safetensors").read_bytes()
    assert again in [file.read_bytes() for file in (out / "trained").rglob("train/model.safetensors")]


def test_nothing_is_judged_on_test_or_on_what_is_learned_from(frozen, sweep_job, tmp_path):
    from raykd.store.outputs import Pool
    from raykd.store.place import Place
    from raykd.store.stage_folder import read_done

    run, out = tmp_path / "run", tmp_path / "sweep"
    rows = sweep_job([str(run), "--search", "student.steps=5", "--sampler", "grid", "--out", str(out)])
    pool = Pool((read_done(Place.of(run / "pool" / "part_000")),), ("blue", "green", "red"))
    assert all(len(row["repeats"][0]["right"]) == pool.counts["val"] == 10 for row in rows)


def test_without_labels_that_may_choose_it_is_refused(settings, run_job, sweep_job, tmp_path, capsys):
    student = {"backbone": "frozen", "steps": 5}
    assert run_job(settings | {"student": student, "rounds": 1, "val_share": 0}).code == 0
    with pytest.raises(SystemExit):
        sweep_job([str(tmp_path / "run"), "--search", "student.steps=5,6", "--sampler", "grid"])
    assert "there is nothing to judge by: no validation labels, and 0 audited images" in capsys.readouterr().err


@pytest.mark.slow
def test_an_image_student_predicts_what_judges_it_alone(settings, run_job, sweep_job, tmp_path):
    assert run_job(settings | {"rounds": 1}).code == 0
    out = tmp_path / "sweep"
    rows = sweep_job([str(tmp_path / "run"), "--search", "student.learning_rate=1e-4", "--sampler", "grid",
                      "--out", str(out)])  # fmt: skip
    assert len(rows) == 2
    parts = [
        json.loads(file.read_text())["facts"]["rows"] for file in out.glob("trained/*/round_000/predict/*/_DONE.json")
    ]
    assert parts == [10, 10]
    base = next(row for row in rows if not row["point"])
    facts = json.loads((tmp_path / "run" / "round_000" / "student" / "_DONE.json").read_text())["facts"]
    assert base["repeats"][0]["ce_weight"] == facts["ce_weight"]
    shutil.rmtree(out)


def test_what_is_no_campaign_is_refused(sweep_job, tmp_path, capsys):
    with pytest.raises(SystemExit):
        sweep_job([str(tmp_path / "none"), "--search", "student.steps=5,6"])
    assert "holds no campaign" in capsys.readouterr().err
