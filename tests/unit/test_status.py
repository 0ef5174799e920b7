"""``status.json`` and ``jobs/status.py``: every state has its words and its code, and asking is quick."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fakes import object_store

from raykd.errors import UserError, WaitingForLabels
from raykd.stages.campaign import Campaign, open_campaign
from raykd.store import status
from raykd.store.lock import LEASE, LOCK, WATCH_S, is_held, only_job
from raykd.store.place import Place
from raykd.store.stage_folder import StageFolder
from raykd.store.status import read_status, standing

ROOT = Path(__file__).parents[2]


@pytest.fixture
def opened(settings, monkeypatch):
    """Opens a campaign whose first checks pass; what its file said is in ``written``."""
    from raykd.config import load
    from raykd.stages import checks

    monkeypatch.setattr(checks, "check_everything_cheap", lambda campaign: None)
    return lambda: open_campaign(load(settings))


def said(campaign_or_settings) -> dict:
    place = campaign_or_settings["storage_path"]
    return json.loads((Path(place) / status.STATUS_FILE).read_text())


def ask(*arguments: str) -> tuple[int, str, str]:
    """``jobs/status.py`` in a process of its own."""
    command = [sys.executable, str(ROOT / "jobs" / "status.py"), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


# ---------------------------------------------------------------- what is written, and when


def test_it_says_what_a_job_is_at_work_on_as_each_stage_begins_and_ends(opened, settings):
    with opened() as campaign:
        assert (said(settings)["state"], said(settings)["stage"]) == ("running", None)
        with campaign.folder("select", 0, version=1).writing():
            found = said(settings)
            assert (found["state"], found["stage"]) == ("running", "round 0 select")
            assert (found["round"], found["rounds"], found["rounds_done"]) == (0, 2, 0)
            assert (found["pid"], found["figures"], found["waiting_for"]) == (os.getpid(), None, None)
        assert said(settings)["stage"] == "round 0 select"  # the last that began
        with campaign.folder("evaluate", 0, version=1).writing() as out:
            (out.place / "metrics.json").write_json({"round": 0, "accuracy": None, "num_labeled": 7})
        assert (said(settings)["rounds_done"], said(settings)["round"]) == (1, 1)
    found = said(settings)
    assert (found["state"], found["round"], found["stage"]) == ("finished", None, None)


def test_on_an_object_store_it_is_written_once_a_stage(opened, settings, monkeypatch, bucket):
    with opened() as campaign:
        campaign.status = status.StatusFile(bucket)
        campaign.place = bucket
        campaign.still_ours = lambda: None
        written = []
        monkeypatch.setattr(campaign.status, "write", lambda **values: written.append(values["stage"]))
        for part in ("a", "b"):
            with campaign.folder("encode", version=1, at=bucket / part).writing():
                campaign.status.values["stage"] = written[-1]
        assert written == ["encode"]
        monkeypatch.undo()
        campaign.status = None


def test_figures_are_those_of_the_last_round_that_is_done(opened, settings):
    with opened() as campaign:
        for number, accuracy in enumerate([None, {"mixture": 0.75}]):
            with campaign.folder("evaluate", number, version=1).writing() as out:
                (out.place / "metrics.json").write_json({"round": number, "accuracy": accuracy, "num_labeled": 7})
            figures = said(settings)["figures"]
            assert {name: value for name, value in figures.items() if value is not None} == {
                "round": number,
                "labels": 7,
                "words": [],
                **({"accuracy": 0.75} if accuracy else {}),
            }
            assert said(settings)["round"] == said(settings)["rounds_done"] == number + 1


@pytest.mark.parametrize(
    ("error", "state", "message"),
    [
        (WaitingForLabels("fill it in", {"count": 3}), "waiting", None),
        (UserError("the disk is gone; put it back"), "failed", "the disk is gone; put it back"),
        (ZeroDivisionError("by 0"), "failed", "a mistake of raykd's own, whose traceback the job printed: Zero"),
        (KeyboardInterrupt(), "stopped", None),
    ],
)
def test_it_says_how_a_job_ended_and_the_next_one_forgets_that(opened, settings, error, state, message):
    with pytest.raises(type(error)), opened() as campaign, campaign.folder("encode", version=1).writing():
        raise error
    found = said(settings)
    assert found["state"] == state
    assert (found["message"] or "").startswith(message or "")
    assert (found["message"] is None) == (message is None)
    assert found["stage"] == (None if state == "waiting" else "encode")
    if state == "waiting":
        assert found["waiting_for"] == {"what": "labels", "count": 3, "words": "fill it in"}
    with opened():
        assert [said(settings)[name] for name in ("state", "message", "waiting_for")] == ["running", None, None]


def test_a_job_that_lost_its_folder_writes_nothing_more_there(opened, settings):
    with pytest.raises(UserError, match="another job took over"), opened() as campaign:  # noqa: PT012
        (campaign.place / LOCK).write_json({"token": "theirs"})
        before = said(settings)
        campaign.folder("select", 0, version=1).begin()
    assert said(settings) == before


def test_what_is_no_campaigns_stage_tells_nobody(tmp_path):
    with StageFolder(Place.of(tmp_path / "x"), "x", 1).writing():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# ---------------------------------------------------------------- what is told


def put(folder: Path, **values) -> Place:
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"message": None, "round": 1, "rounds": 3, "rounds_done": 1, "stage": None, "waiting_for": None,
             "figures": None, "time": "2026-01-02T03:04:05Z", "host": "node-7", "pid": 4711}  # fmt: skip
    (folder / status.STATUS_FILE).write_text(json.dumps(plain | values))
    return Place.of(folder)


@pytest.mark.parametrize(
    ("values", "code", "lines"),
    [
        ({"state": "finished", "round": None, "rounds_done": 3}, 0, ["finished, rounds: 3"]),
        (
            {"state": "waiting", "waiting_for": {"what": "labels", "count": 7, "words": "fill in tasks.csv"}},
            3,
            ["waiting for 7 labels (round 1; 1 of 3 are done)", "fill in tasks.csv"],
        ),
        ({"state": "stopped"}, 5, ["stopped (round 1; 1 of 3 are done); run the same command again to go on"]),
        ({"state": "failed", "message": "the disk is full"}, 5, ["failed (round 1", "the disk is full"]),
        (
            {"state": "running", "stage": "round 1 train"},
            5,
            ["running, but its job is gone (round 1 train; 1 of 3 are done): it was killed; run the same command"],
        ),
        (
            {"state": "stopped", "figures": {"round": 0, "accuracy": 0.912, "labels": 50}},
            5,
            ["last figures: 91.2% of test with 50 labels (round 0)", "as of 2026-01-02T03:04:05Z"],
        ),
        (
            {"state": "stopped", "figures": {"round": 0, "accuracy": None, "labels": 50}},
            5,
            ["nothing to measure on, with 50"],
        ),
    ],
)
def test_every_state_has_its_words_and_its_code(values, code, lines, tmp_path):
    place = put(tmp_path / "run", **values)
    found, words = standing(place, read_status(place))
    assert found == code
    assert words[0].startswith(f"{place}: ")
    for line in lines:
        assert line in "\n".join(words)


def test_a_job_that_is_there_is_running(tmp_path):
    place = put(tmp_path / "run", state="running", stage="encode")
    with only_job(place):
        assert standing(place, read_status(place)) == (
            4,
            [f"{place}: running (encode; 1 of 3 are done), pid 4711 on host node-7", "as of 2026-01-02T03:04:05Z"],
        )
    assert standing(place, read_status(place))[0] == 5


def test_where_no_campaign_has_been_is_no_error_and_what_is_none_is(tmp_path):
    for empty in (tmp_path / "nowhere", tmp_path):
        assert standing(Place.of(empty), read_status(Place.of(empty))) == (6, [f"{empty}: no campaign yet"])
    (tmp_path / "thesis.tex").touch()
    for other in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(UserError, match="holds no campaign; give a campaign's storage_path"):
            read_status(Place.of(other))
    (tmp_path / "campaign.json").write_text("{}")
    with pytest.raises(UserError, match=r"no status\.json yet: run its job once more"):
        read_status(Place.of(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"), [("", "is empty"), ("{", "is not JSON"), ("[]", "damaged"), ("{}", "damaged")]
)
def test_a_damaged_file_is_told(content, words, tmp_path):
    (tmp_path / status.STATUS_FILE).write_text(content)
    with pytest.raises(UserError, match=words):
        read_status(Place.of(tmp_path))


@pytest.mark.slow
def test_the_job_tells_people_or_scripts_by_folder_or_config(tmp_path):
    place = put(tmp_path / "runs" / "x", state="finished", round=None, rounds_done=3)
    config = {"storage_path": "runs/x", "pool": {"path": "p", "format": "images"}, "teacher": {"model": "hf-hub:a/b"},
              "student": {"backbone": "resnet18", "steps": 1}}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    told = f"{place}: finished, rounds: 3\nas of 2026-01-02T03:04:05Z\n"
    assert ask(str(place)) == ask(str(tmp_path / "c.yaml")) == (0, told, "")
    code, out, _ = ask(str(place), "--json")
    assert (code, json.loads(out)) == (0, json.loads((tmp_path / "runs" / "x" / "status.json").read_text()))
    assert ask(str(tmp_path))[0] == ask(str(tmp_path / "c.yml"))[0] == 2
    assert ask(str(tmp_path / "y"))[:2] == (6, f"{tmp_path}/y: no campaign yet\n")
    assert ask(str(tmp_path / "y"), "--json")[:2] == (6, "null\n")


def test_help_has_every_code():
    code, out, _ = ask("--help")
    assert code == 0
    for number in {0, 2, *status.CODES.values(), status.NEVER}:
        assert f"\n    {number}  " in out


# ---------------------------------------------------------------- whether a job is there


def test_a_look_at_a_lock_changes_nothing_and_keeps_nobody_out(tmp_path):
    place = Place.of(tmp_path / "run")
    assert not is_held(place)
    assert not (tmp_path / "run").exists()
    with only_job(place) as still_ours:
        assert is_held(place)
        still_ours()
    (tmp_path / "run" / LOCK).write_text("{}")  # of a job that was killed
    assert not is_held(place)
    with only_job(place):
        pass


def test_a_lease_counts_as_long_as_it_is_renewed(monkeypatch, tmp_path):
    store = object_store(monkeypatch, "s3://bucket", files=tmp_path)
    assert not is_held(store)
    (store / LEASE).write_json({"token": "theirs"})
    assert is_held(store)
    past = (tmp_path / "bucket" / LEASE).stat().st_mtime - WATCH_S - 60
    os.utime(tmp_path / "bucket" / LEASE, (past, past))
    assert not is_held(store)


def test_a_campaign_that_nobody_opened_writes_no_status(settings):
    from fakes import new_campaign

    campaign = new_campaign(settings)
    assert isinstance(campaign, Campaign)
    campaign.write_status("running")
    assert not (Path(settings["storage_path"]) / status.STATUS_FILE).exists()
