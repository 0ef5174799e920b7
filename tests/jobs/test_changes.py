"""What a lead changes in the middle of a campaign: what counts from when, what is refused; no label is lost."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from campaigns import Reached, fill, labels_of, lines_of, manifest_of, picks_of
from PIL import Image

from raykd.labels.ledger import Ledger
from raykd.store.place import Place


@pytest.fixture
def second_round(finished, run_job, tmp_path):
    """A copy of the finished campaign, of which only the first round is done; gives its settings and folder."""
    place = Path(shutil.copytree(finished.place, tmp_path / "run"))
    shutil.rmtree(place / "round_001")
    ledger = sorted((place / "ledger").iterdir())
    for file in ledger[1:]:
        file.unlink()
    pool = Path(shutil.copytree(finished.settings["pool"]["path"], tmp_path / "pool"))
    assert pool.exists()
    return finished.settings | {"storage_path": str(place)}, place


def history_of(place: Path) -> list[dict]:
    return json.loads((place / "campaign.json").read_text())["history"]


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("selection.budget=5", "selection.budget: was 3, now 5"),
        ("selection.strategy=random", "selection.strategy: was 'pcoreset', now 'random'"),
        ("student.backbone=test_resnet", "student.backbone: was 'test_vit', now 'test_resnet'"),
        ("student.learning_rate=0.002", "student.learning_rate: was 0.001, now 0.002"),
        ("student.image_size=48", "student.image_size: was 32, now 48"),
        ("student.heads=ce+kd", "student.heads: was 'dho', now 'ce+kd'"),
        ("teacher.templates=['all {}']", "teacher.templates: was 'simple', now ['all {}']"),
        ("mixture.search=false", "mixture.search: was 'grid', now False"),
        ("rounds=3", "rounds: was 2, now 3"),
    ],
)
def test_a_change_between_rounds_counts_for_the_next_one_and_is_in_the_history(
    second_round, run_job, up_to_training, override, changed
):
    settings, place = second_round
    before = {file: file.read_bytes() for file in (place / "round_000").rglob("*") if file.is_file()}
    with pytest.raises(Reached) as reached:
        run_job(settings, override)
    assert reached.value.args == (1,)
    last = history_of(place)[-1]
    assert last["before_round"] == 1
    assert changed in last["changed"]
    assert {file: file.read_bytes() for file in before} == before
    expected = 5 if "budget" in override else 3
    assert len(picks_of(place, 1)) == expected


def test_a_change_of_what_is_complete_in_the_open_round_is_said_and_waits_for_the_next(
    second_round, run_job, up_to_training
):
    settings, place = second_round
    with pytest.raises(Reached):
        run_job(settings)
    picks = picks_of(place, 1)
    with pytest.raises(Reached):
        run_job(settings, "selection.budget=7", "progress=lines")
    assert picks_of(place, 1) == picks
    assert [entry["before_round"] for entry in history_of(place)] == [0, 1]


def test_a_lower_learning_rate_is_taken_after_a_training_that_went_wrong(second_round, run_job):
    settings, place = second_round
    ended = run_job(settings, "student.learning_rate=1e30")
    assert ended.code == 2
    assert "student.learning_rate" in ended.err
    assert "Traceback" not in ended.err
    ended = run_job(settings, "student.learning_rate=1e-3", "rounds=2")
    assert ended.code == 0, ended.err
    assert not list((place / "ray_train").iterdir())


def test_images_added_to_the_pool_are_picked_from_in_the_next_round(finished, run_job, tmp_path, up_to_training):
    place = Path(shutil.copytree(finished.place, tmp_path / "run"))
    shutil.rmtree(place / "round_001")
    folder = Path(finished.settings["pool"]["path"]) / "green"
    new = folder / "zz_new.png"
    Image.new("RGB", (24, 24), (255, 255, 255)).save(new)  # far from all others
    try:
        with pytest.raises(Reached):
            run_job(finished.settings | {"storage_path": str(place)}, "selection.budget=20")
    finally:
        new.unlink()
    assert "green/zz_new.png" in picks_of(place, 1)
    assert pq.read_table(place / "pool" / "part_001" / "manifest.parquet")["sample_id"].to_pylist() == [
        "green/zz_new.png"
    ]


def test_a_renamed_and_a_merged_class_keep_every_label(second_round, run_job, up_to_training):
    settings, place = second_round
    with pytest.raises(Reached):
        run_job(settings, "labels.renamed={red: warm, blue: warm}")
    names = {label for _, label in labels_of(place, 1).values()}
    assert names == {"warm", "green"}
    assert len(labels_of(place, 1)) == 6
    said = {row["label"] for row in Ledger(Place.of(place) / "ledger").read().to_pylist() if row["round"] == 0}
    assert said == {"red", "green", "blue"}  # what people said stays as they said it


def test_a_class_taken_away_is_refused_with_what_to_write(second_round, run_job):
    settings, _ = second_round
    ended = run_job(settings, "classes=[green, blue]")
    assert ended.code == 2
    assert "'red'" in ended.err
    assert "labels.renamed" in ended.err


def test_a_class_can_be_added(second_round, run_job, up_to_training):
    settings, place = second_round
    with pytest.raises(Reached):
        run_job(settings, "classes=[blue, green, red, purple]")
    assert history_of(place)[-1]["changed"]


def test_labels_are_carried_over_from_another_campaign_or_its_ledger(finished, run_job, tmp_path, up_to_training):
    for number, given in enumerate((finished.place, finished.place / "ledger")):
        place = tmp_path / f"new_{number}"
        settings = finished.settings | {"storage_path": str(place), "seed": 9}
        with pytest.raises(Reached):
            run_job(settings, "labels.start=given", f"labels.given={given}")
        expected = labels_of(finished.place, 1)
        assert labels_of(place, 0) == expected
        assert picks_of(place, 0) == []


def test_labels_given_in_the_middle_are_taken_by_the_open_round(second_round, run_job, tmp_path, up_to_training):
    settings, place = second_round
    in_pool = manifest_of(place).filter(pc.field("split") == "pool")["sample_id"].to_pylist()
    known = [name for name in in_pool if name.startswith(("red/00", "blue/00")) and "broken" not in name]
    assert len(known) > 4
    file = tmp_path / "given.csv"
    file.write_text("sample_id,label\n" + "".join(f"{name},{name.split('/')[0]}\n" for name in known))
    with pytest.raises(Reached):
        run_job(settings, "labels.start=given", f"labels.given={file}")
    assert set(labels_of(place, 1)) == {*known, *labels_of(place, 0), *picks_of(place, 1)}
    assert Ledger(Place.of(place) / "ledger").taken == [str(file)]


def test_given_labels_are_taken_once_also_while_people_are_waited_for_and_may_replace_answers(
    finished, run_job, tmp_path, up_to_training
):
    place, file = tmp_path / "run", tmp_path / "given.csv"
    people = {"oracle": "people", "start": "none"}
    settings = finished.settings | {"storage_path": str(place), "labels": people, "progress": "lines"}
    run_job(settings)
    picks = picks_of(place, 0)
    fill(place / "round_000" / "tasks.csv", {picks[0]: "red"})
    run_job(settings)
    file.write_text(f"sample_id,label\n{picks[0]},green\n{picks[1]},green\n")
    given = ("labels.start=given", f"labels.given={file}")
    ended = run_job(settings, *given)
    assert f"2 labels from {file}; 1 of them replace other answers" in ended.err
    file.unlink()
    assert run_job(settings, *given).code == 0  # still waits
    fill(place / "round_000" / "tasks.csv", {picks[2]: "blue"})
    with pytest.raises(Reached):
        run_job(settings, *given)
    assert labels_of(place, 0)[picks[1]] == ("label", "green")
    other = tmp_path / "other.csv"
    other.write_text(f"sample_id,label\n{picks[0]},blue\n")
    with pytest.raises(Reached):
        run_job(settings, "labels.start=given", f"labels.given={other}")
    assert labels_of(place, 0)[picks[0]] != ("label", "blue")  # the round is settled: it is for the next one
    assert Ledger(Place.of(place) / "ledger").taken == [str(file)]


def test_people_can_go_on_with_a_new_budget_in_the_middle(finished, run_job, tmp_path, up_to_training):
    place = tmp_path / "run"
    settings = finished.settings | {"storage_path": str(place), "labels": {"oracle": "people", "start": "none"}}
    assert run_job(settings).code == 0
    assert json.loads((place / "status.json").read_text())["state"] == "waiting"
    picks = picks_of(place, 0)
    fill(place / "round_000" / "tasks.csv", dict(zip(picks, ["red", "green", "blue"], strict=True)))
    with pytest.raises(Reached):
        run_job(settings, "selection.budget=9", "student.backbone=test_resnet")
    assert picks_of(place, 0) == picks
    assert len(labels_of(place, 0)) == 3


# ---------------------------------------------------------------- what the teacher learns, and is


@pytest.fixture
def no_teacher_sees_an_image(monkeypatch):
    from raykd.stages import image_features

    monkeypatch.setattr(image_features, "Encoder", lambda **_: pytest.fail("the teacher was shown an image"))


def marker_of(place: Path, pattern: str) -> dict:
    (file,) = place.glob(f"{pattern}/_DONE.json")
    return json.loads(file.read_text())


def tree_of(place: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_rules_that_change_from_round_to_round_read_no_image_and_each_round_keeps_its_own(
    second_round, run_job, no_teacher_sees_an_image
):
    """Zero-shot, GDA, ProKeR, CLAP; each student is trained on the teacher of its own round's labels."""
    settings, place = second_round
    kept: dict[Path, bytes] = {}
    for number, rule in enumerate(("gda", "proker", "clap"), 1):
        ended = run_job(settings, f"teacher.rule={rule}", f"rounds={number + 1}")
        assert ended.code == 0, ended.err
        now = tree_of(place / f"round_{number - 1:03d}")
        assert kept.items() <= now.items()
        kept = tree_of(place / f"round_{number:03d}")
        fit, trained, labels = (
            marker_of(place / f"round_{number:03d}", name) for name in ("teacher/*/fit", "train", "label")
        )
        assert fit["facts"]["rule"] == rule
        assert fit["facts"]["num_labels"] == 3 * (number + 1)
        assert fit["made_from"]["labels"] == trained["made_from"]["labels"] == labels["facts"]["content"]
        assert trained["settings"]["teacher"] == fit["fingerprint"]
    assert not (place / "round_000" / "teacher").exists()
    lines = lines_of(place)
    assert [line["teacher_fit"] and line["teacher_fit"]["rule"] for line in lines] == [None, "gda", "proker", "clap"]
    assert [entry["before_round"] for entry in history_of(place)] == [0, 1, 2, 3]
    assert [[line for line in entry["changed"] if "rule" in line] for entry in history_of(place)[1:]] == [
        ["teacher.rule: was 'zero_shot', now 'gda'"],
        ["teacher.rule: was 'gda', now 'proker'"],
        ["teacher.rule: was 'proker', now 'clap'"],
    ]
    before = tree_of(place / "round_003")
    again = run_job(settings, "teacher.rule=tip", "rounds=4", "progress=lines")
    assert (again.code, again.out) == (0, ended.out)
    assert "is done, and keeps" not in again.err  # there is no round to come
    assert tree_of(place / "round_003") == before
    assert "clap" in (place / "report.html").read_text("utf-8")


def test_a_rule_that_changes_after_the_fit_of_the_open_round_is_said_to_count_from_the_next_one_on(
    second_round, run_job, up_to_training, monkeypatch
):
    from raykd.stages.progress import Progress

    settings, place = second_round
    with pytest.raises(Reached):
        run_job(settings, "teacher.rule=gda")
    fit = marker_of(place / "round_001", "teacher/*/fit")
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda _, name, text: said.append(f"{name}: {text}"))
    with pytest.raises(Reached):
        run_job(settings, "teacher.rule=proker")
    assert marker_of(place / "round_001", "teacher/*/fit") == fit
    assert [line for line in said if "keeps" in line] == [
        "round 1 teacher: is done, and keeps what was set then; from the next round on: teacher.rule: was 'gda', now "
        "'proker'"
    ]


def write_table(file: Path, ids: list[str], seed: int) -> str:
    probs = np.random.default_rng(seed).dirichlet([0.5] * 3, size=len(ids))
    pq.write_table(pa.table({"sample_id": ids, "probs": list(probs)}), file)
    return f"teacher.table={file}"


def test_a_table_takes_the_teachers_place_changes_and_goes_away_and_the_rounds_before_keep_theirs(
    second_round, run_job, tmp_path, no_teacher_sees_an_image
):
    settings, place = second_round
    manifest = manifest_of(place)
    ids = [name for name in manifest["sample_id"].to_pylist() if name != "red/broken.png"]
    first = tree_of(place / "round_000")
    table = write_table(tmp_path / "mine.parquet", ids, 1)
    assert run_job(settings, "teacher.rule=table", table).code == 0
    second = tree_of(place / "round_001")
    splits = dict(zip(*(manifest[name].to_pylist() for name in ("sample_id", "split")), strict=True))
    in_pool = [name for name in ids if splits[name] == "pool"]
    write_table(tmp_path / "mine.parquet", in_pool, 2)
    ended = run_job(settings, "teacher.rule=table", table, "rounds=3")
    assert ended.code == 0, ended.err
    assert first.items() <= tree_of(place / "round_000").items()
    assert second.items() <= tree_of(place / "round_001").items()
    teachers = [marker_of(place / f"round_{number:03d}", "train")["settings"]["teacher"] for number in range(3)]
    assert len(set(teachers)) == 3
    accuracies = [line["accuracy"]["teacher"] for line in lines_of(place)]
    assert accuracies[1] is not None
    assert accuracies[2] is None  # the second table has no row of a test image
    assert "table mine.parquet" in (place / "report.html").read_text("utf-8")
    (tmp_path / "mine.parquet").unlink()
    again = run_job(settings, "teacher.rule=table", table, "rounds=3")
    assert (again.code, again.out) == (0, ended.out), again.err


def test_a_finished_campaign_is_only_looked_at_whatever_is_asked_for(finished, run_job, tmp_path, monkeypatch):
    from raykd.stages import map_images

    monkeypatch.setattr(map_images, "run", lambda *_: pytest.fail("an image was read"))
    place = Path(shutil.copytree(finished.place, tmp_path / "run"))
    settings, before = finished.settings | {"storage_path": str(place)}, history_of(place)
    for override in (
        "teacher.precision=bf16",
        "teacher.templates=['the {}']",
        "student.backbone=test_resnet",
        "rounds=1",
    ):
        ended = run_job(settings, override)
        assert ended.code == 0, ended.err
        assert ended.out == finished.ended.out.replace(str(finished.place), str(place))
    assert history_of(place) == before


def test_given_labels_that_do_not_fit_are_refused_before_any_image_is_encoded(finished, run_job, tmp_path, monkeypatch):

    from raykd.stages import map_images

    monkeypatch.setattr(map_images, "map_parts", lambda *_, **__: pytest.fail("images were encoded"))
    (tmp_path / "given.csv").write_text(f"sample_id,label\n{picks_of(finished.place, 1)[0]},purple\n")
    settings = finished.settings | {"storage_path": str(tmp_path / "run")}
    ended = run_job(settings, "labels.start=given", f"labels.given={tmp_path / 'given.csv'}")
    assert ended.code == 2
    assert "unknown label 'purple'" in ended.err
