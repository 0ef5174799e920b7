"""A table in the teacher's place: its probabilities are the opinion, whatever its form; no model, no image."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import new_campaign

from raykd.algo.heads import softmax
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards
from raykd.algo.selection.strategies import pick
from raykd.config import load
from raykd.errors import UserError

CLASSES = ["blue", "green", "red"]  # as the pool's folders are


class Brought:
    """A campaign whose teacher is a table."""

    def __init__(self, campaign: Any, pool: Any, encoded: Any, teacher: Any) -> None:
        self.campaign, self.pool, self.encoded, self.teacher = campaign, pool, encoded, teacher

    @property
    def rows(self) -> dict[str, dict]:
        return {row["sample_id"]: row for part in self.teacher.parts for row in part.place.read_table().to_pylist()}

    @property
    def said(self) -> str:
        return self.campaign.progress.stream.getvalue()

    def probs(self, ids: list[str]) -> np.ndarray:
        return softmax(np.array([self.rows[name]["logits"] for name in ids]))


@pytest.fixture
def ids(finished) -> list[str]:
    """Of every image, the truncated one too."""
    return sorted(finished.pool.manifest["sample_id"].to_pylist())


@pytest.fixture
def probs(ids) -> np.ndarray:
    """Probabilities of all images, float64 [49, 3], a few of them 0."""
    found = np.random.default_rng(3).dirichlet([0.3] * 3, size=len(ids))
    found[5] = [0, 0.25, 0.75]
    return found


@pytest.fixture
def bring(finished, tmp_path, ray_cluster):
    """A campaign on the finished one's pool, without a model; called with overrides, comes to its opinion."""
    from raykd.stages.encode import encode
    from raykd.stages.pool import list_pool
    from raykd.stages.teacher import teach

    def bring(*overrides: str, name: str = "run") -> Brought:
        settings = finished.settings | {"storage_path": str(tmp_path / name)}
        settings |= {"teacher": {"rule": "table", "table": str(tmp_path / "opinion.parquet")}}
        campaign = new_campaign(settings, *overrides)
        pool = list_pool(campaign)
        encoded = encode(campaign, pool)
        return Brought(campaign, pool, encoded, teach(campaign, pool, encoded))

    return bring


def write(path: Path, ids: list[str], probs: np.ndarray, metadata=None, column: str = "probs") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"sample_id": ids, column: pa.array([list(row) for row in probs])})
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def write_form(form: str, place: Path, ids: list[str], probs: np.ndarray) -> Path:
    """The same opinion as people may bring it."""
    order = [2, 0, 1]
    if form == "vectors":
        return write(place / "opinion.parquet", ids, probs)
    if form == "logits":
        return write(place / "opinion.parquet", ids, np.log(np.maximum(probs, 1e-30)) + 7, column="logits")
    if form == "metadata":
        names = {"classes": json.dumps([CLASSES[c] for c in order])}
        return write(place / "opinion.parquet", ids, probs[:, order], names)
    if form == "columns":
        columns = {CLASSES[c]: probs[:, c] for c in order}
        place.mkdir(exist_ok=True)
        pq.write_table(pa.table({"sample_id": ids, **columns, "notes": ["mine"] * len(ids)}), place / "opinion.parquet")
        return place / "opinion.parquet"
    assert form == "folder"
    for n, some in enumerate((slice(30, None), slice(None, 30))):
        write(place / "table" / f"{n}.parquet", ids[some], probs[some])
    return place / "table"


# ---------------------------------------------------------------- what it says


@pytest.mark.parametrize("form", ["vectors", "logits", "metadata", "columns", "folder"])
def test_a_softmax_gives_the_tables_probabilities_back_whatever_its_form(bring, tmp_path, ids, probs, form):
    table = write_form(form, tmp_path / "theirs", ids[::-1], probs[::-1])
    brought = bring(f"teacher.table={table}")
    assert list(brought.teacher.classes) == CLASSES
    np.testing.assert_allclose(brought.probs(ids), probs, atol=1e-6)
    np.testing.assert_allclose(brought.teacher.probabilities(pa.chunked_array([ids[3:7]])), probs[3:7], atol=1e-6)
    assert [row["error"] for row in brought.rows.values()] == [None] * 49


def test_what_jobs_score_has_written_is_taken_with_its_own_order_of_classes(bring, tmp_path, finished):
    from raykd.config import ModelConfig, Source
    from raykd.stages.progress import Progress
    from raykd.stages.score import ScoreRequest, score_pool
    from raykd.stages.session import Session
    from raykd.stages.work import Work
    from raykd.store.place import Place

    request = ScoreRequest(
        source=Source(**finished.settings["pool"]), classes=["red", "blue", "green"], decode="reduced",
        teacher=ModelConfig(**finished.settings["teacher"]), out=Place.of(tmp_path / "scores"),
    )  # fmt: skip
    score_pool(Work(place=Place.of(tmp_path / "cache"), progress=Progress("none"), session=Session()), request)
    brought = bring(f"teacher.table={tmp_path / 'scores'}")
    readable = sorted(finished.encoded.readable(finished.pool.manifest)["sample_id"].to_pylist())
    expected = finished.teacher.probabilities(pa.chunked_array([readable]))
    np.testing.assert_allclose(brought.probs(readable), expected, atol=1e-5)
    assert brought.encoded.quarantine["sample_id"].to_pylist() == ["red/broken.png"]  # that could not be scored
    assert "1 of 29 pool images have no row in" in brought.said


def test_no_model_is_fetched_and_no_image_is_read(bring, tmp_path, ids, probs, no_image_is_read, monkeypatch):
    from raykd.stages import pool

    monkeypatch.setattr(pool, "check_readable", lambda *_: None)  # the look at a few when the pool is listed
    write(tmp_path / "opinion.parquet", ids, probs)
    brought = bring()
    folder = Path(brought.campaign.place.path)
    assert not list(folder.rglob("teacher_model"))
    assert "features" not in brought.teacher.parts[0].place.read_table().schema.names
    assert not [file for file in folder.glob("encode/*/*") if file.suffix == ".parquet"]


def test_it_is_measured_and_checked_as_any_teacher_is(bring, tmp_path, ids, probs, finished):
    probs[:, 1] = 0
    probs /= probs.sum(axis=1, keepdims=True)
    write(tmp_path / "opinion.parquet", ids, probs)
    brought = bring()
    splits = dict(zip(*(finished.pool.manifest[name].to_pylist() for name in ("sample_id", "split")), strict=True))
    test = [n for n, name in enumerate(ids) if splits[name] == "test"]
    right = [CLASSES[probs[n].argmax()] == ids[n].split("/")[0] for n in test]
    assert brought.teacher.scores["accuracy"] == pytest.approx(np.mean(right))
    assert brought.teacher.check["never"] == ["green"]
    assert brought.teacher.check["num_images"] == 29
    assert "'green'" in brought.said


def test_many_rows_go_through_files_of_a_few(bring, tmp_path, ids, probs, monkeypatch):
    from raykd.models import teacher_table
    from raykd.stages import brought_opinion

    monkeypatch.setattr(teacher_table, "READ_ROWS", 4)
    monkeypatch.setattr(brought_opinion, "FILE_ROWS", 10)
    shuffled = np.random.default_rng(0).permutation(len(ids))
    write(tmp_path / "opinion.parquet", [ids[n] for n in shuffled], probs[shuffled])
    brought = bring()
    np.testing.assert_allclose(brought.probs(ids), probs, atol=1e-6)
    assert len(brought.rows) == 49
    assert len(list(Path(brought.teacher.parts[0].place.path).glob("block_*"))) == 5


def test_rows_of_images_that_are_not_in_the_pool_are_passed_over(bring, tmp_path, ids, probs):
    more = ["another/one.png", *ids]
    write(tmp_path / "opinion.parquet", more, np.concatenate([[[0.2, 0.3, 0.5]], probs]))
    brought = bring()
    assert sorted(brought.rows) == ids
    np.testing.assert_allclose(brought.probs(ids), probs, atol=1e-6)


def test_renamed_and_merged_classes_are_the_tables_too(bring, tmp_path, ids, probs):
    names = {"classes": json.dumps(CLASSES)}
    write(tmp_path / "opinion.parquet", ids, probs, names)
    brought = bring("labels.renamed={red: warm, green: warm}", "labels.start=none")
    assert brought.teacher.classes == ("blue", "warm")
    np.testing.assert_allclose(brought.probs(ids), np.stack([probs[:, 0], probs[:, 1:].sum(axis=1)], 1), atol=1e-6)


# ---------------------------------------------------------------- what it lacks


def test_a_table_of_the_pool_alone_does_and_its_teacher_is_not_measured(bring, tmp_path, ids, probs, finished):
    pool = set(finished.pool.split("pool")["sample_id"].to_pylist())
    some = [n for n, name in enumerate(ids) if name in pool]
    write(tmp_path / "opinion.parquet", [ids[n] for n in some], probs[some])
    brought = bring()
    assert brought.encoded.quarantine.num_rows == 0
    assert brought.teacher.scores["accuracy"] is None
    for split in ("val", "test"):
        assert f"10 of 10 {split} images have no row in" in brought.said
    assert brought.said.count("the teacher is not measured on them") == 2
    assert {name for name, row in brought.rows.items() if row["error"]} == set(ids) - pool
    assert bring().teacher.scores == brought.teacher.scores  # and is found again


def test_too_many_missing_rows_are_refused_with_one_named_and_a_few_are_left_out(bring, tmp_path, ids, probs, finished):
    pool = sorted(finished.pool.split("pool")["sample_id"].to_pylist())
    missing = pool[:3]
    kept = [n for n, name in enumerate(ids) if name not in missing]
    write(tmp_path / "opinion.parquet", [ids[n] for n in kept], probs[kept])
    with pytest.raises(UserError, match=r"3 of 29 pool images have no row .* more than max_bad_share=0\.05") as caught:
        bring()
    assert any(repr(name) in str(caught.value) for name in missing)
    assert not list((tmp_path / "run").glob("encode/*"))
    brought = bring("max_bad_share=0.2")
    assert brought.encoded.quarantine["sample_id"].to_pylist() == missing
    assert set(brought.encoded.quarantine["reason"].to_pylist()) == {"has no row in the teacher's table"}
    assert pq.read_table(tmp_path / "run" / "quarantine.parquet")["sample_id"].to_pylist() == missing
    assert all(np.isnan(brought.rows[name]["logits"]).all() and brought.rows[name]["error"] for name in missing)
    assert brought.encoded.readable(brought.pool.split("pool")).num_rows == 26


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda ids, probs: ([f"{n:05d}" for n in range(len(ids))], probs), "none of 49 images has a row"),
        (lambda ids, probs: (ids, probs * 2), "probabilities that sum to 2"),
        (lambda ids, probs: (ids, np.where(probs == probs[40], np.nan, probs)), "NaN"),
        (lambda ids, probs: (ids, np.concatenate([probs, probs], 1) / 2), "has 6 numbers; expected 3"),
        (lambda ids, probs: ([*ids[:-1], ids[0]], probs), "is in 2 rows"),
    ],
)
def test_what_is_no_opinion_of_this_pool_is_refused(bring, tmp_path, ids, probs, change, words):
    write(tmp_path / "opinion.parquet", *change(ids, probs))
    with pytest.raises(UserError, match=words):
        bring()
    assert not [f for f in (tmp_path / "run").glob("teacher/*/*") if not f.name.startswith(".")]


def test_another_scheme_of_ids_is_shown_beside_the_pools(bring, tmp_path, ids, probs):
    write(tmp_path / "opinion.parquet", [f"img_{n}" for n in range(len(ids))], probs)
    with pytest.raises(UserError, match=r"its ids are such as 'img_0', 'img_1', those of the pool '(blue|green|red)/"):
        bring()


def test_other_classes_are_refused_by_name(bring, tmp_path, ids, probs):
    write(tmp_path / "opinion.parquet", ids, probs, {"classes": json.dumps(["blue", "green", "crimson"])})
    with pytest.raises(UserError, match=r"it lacks 'red'; 'crimson' is none here"):
        bring()
    two = {"sample_id": ids, "blue": probs[:, 0], "green": probs[:, 1]}
    pq.write_table(pa.table(two), tmp_path / "opinion.parquet")
    with pytest.raises(UserError, match=r"none for 'red'"):
        bring()


@pytest.mark.parametrize("given", ["stat_a=true", "views=2"])
def test_what_needs_features_is_refused_by_the_config(finished, given):
    name = given.partition("=")[0]
    with pytest.raises(UserError, match=rf"{name} needs the teacher's features of images, which rule: table has not"):
        load(finished.settings, ["teacher.rule=table", "teacher.table=x.parquet", f"teacher.{given}"])


def test_a_table_that_is_not_named_and_a_model_that_is_missing_are_told(finished):
    with pytest.raises(UserError, match=r"teacher: rule: table needs table"):
        load(finished.settings, ["teacher.rule=table"])
    for rule in ("zero_shot", "gda"):
        with pytest.raises(UserError, match=r"teacher: model is missing; expected an open_clip name"):
            load(finished.settings | {"teacher": {"rule": rule}})
    load(finished.settings | {"teacher": {"rule": "table", "table": "x.parquet"}})
    with pytest.raises(UserError, match=r"teacher: table is for rule: table, rule: zero_shot would not look at it"):
        load(finished.settings, ["teacher.table=x.parquet"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selection.strategy=coreset", r"strategy: coreset looks .* or pcoreset"),
        ("selection.strategy=badge", r"strategy: badge looks .* or pcoreset"),
        ("selection.max_duplicates=1", r"duplicate_column: features looks .* or probs"),
    ],
)
def test_a_cold_start_by_features_is_refused_in_the_first_seconds(finished, tmp_path, ids, probs, override, words):
    from raykd.stages.checks import check_everything_cheap

    write(tmp_path / "opinion.parquet", ids, probs)
    settings = finished.settings | {"storage_path": str(tmp_path / "run")}
    settings |= {"teacher": {"rule": "table", "table": str(tmp_path / "opinion.parquet")}}
    with pytest.raises(UserError, match=rf"selection\.{words}"):
        check_everything_cheap(new_campaign(settings, override, "labels.start=none"))
    check_everything_cheap(new_campaign(settings, override))  # one_per_class: then there is a student
    check_everything_cheap(new_campaign(settings, "labels.start=none"))  # pcoreset


def test_a_table_that_is_not_there_is_told_in_the_first_seconds(finished, tmp_path):
    from raykd.stages.checks import check_everything_cheap

    settings = finished.settings | {"storage_path": str(tmp_path / "run")}
    settings |= {"teacher": {"rule": "table", "table": str(tmp_path / "nowhere.parquet")}}
    with pytest.raises(UserError, match=r"teacher\.table: nothing at .*nowhere\.parquet"):
        check_everything_cheap(new_campaign(settings))


# ---------------------------------------------------------------- picks, and a table that changes


def test_a_cold_start_picks_in_the_tables_probabilities(bring, tmp_path, ids, probs, finished):
    from raykd.stages.select import select

    write(tmp_path / "opinion.parquet", ids, probs)
    brought = bring("labels.start=none")
    picks = select(brought.campaign, 0, brought.pool, brought.encoded, brought.teacher, None)
    pool = sorted(finished.pool.split("pool")["sample_id"].to_pylist())
    theirs = brought.teacher.probabilities(pa.chunked_array([pool]))
    np.testing.assert_allclose(theirs, probs[[ids.index(name) for name in pool]], atol=1e-6)
    rows = Rows(pool, theirs, None, np.full(len(pool), -1))
    expected = pick("pcoreset", LocalShards.split(rows, 1), rows.take(np.arange(0)), 3, 0, 0)
    assert picks.ids.to_pylist() == list(expected.ids)


def test_the_same_table_is_found_again_and_a_changed_one_is_another_opinion(bring, tmp_path, ids, probs, monkeypatch):
    from raykd.stages import brought_opinion

    file = write(tmp_path / "opinion.parquet", ids, probs)
    first = bring()
    with monkeypatch.context() as patch:
        patch.setattr(brought_opinion, "write_rows", None)
        patch.setattr(brought_opinion, "missing_ids", None)
        assert bring().teacher == first.teacher
    write(file, ids, probs[::-1])
    os.utime(file, ns=(1, 10**18))
    second = bring()
    assert second.teacher.fingerprint != first.teacher.fingerprint
    np.testing.assert_allclose(second.probs(ids), probs[::-1], atol=1e-6)
    np.testing.assert_allclose(first.probs(ids), probs, atol=1e-6)  # and lies where it lay


def test_a_grown_pool_takes_the_new_images_out_of_a_grown_table(bring, tmp_path, ids, probs, finished):
    from PIL import Image

    write(tmp_path / "opinion.parquet", ids, probs)
    bring()
    new = Path(finished.settings["pool"]["path"]) / "green" / "zz_new.png"
    Image.new("RGB", (24, 24), (40, 200, 10)).save(new)
    try:
        old = bring()  # the table has no row of it yet: one of thirty
        assert old.encoded.quarantine["sample_id"].to_pylist() == ["green/zz_new.png"]
        write(tmp_path / "opinion.parquet", [*ids, "green/zz_new.png"], np.concatenate([probs, [[0.1, 0.8, 0.1]]]))
        brought = bring()
    finally:
        new.unlink()
    assert len(brought.teacher.parts) == 2
    assert brought.encoded.quarantine.num_rows == 0
    np.testing.assert_allclose(brought.probs(["green/zz_new.png", ids[0]]), [[0.1, 0.8, 0.1], probs[0]], atol=1e-6)


def test_labels_make_nothing_of_a_table(bring, tmp_path, ids, probs):
    from raykd.stages.teacher import refit

    write(tmp_path / "opinion.parquet", ids, probs)
    brought = bring()
    arguments = (brought.campaign, 0, brought.pool, brought.encoded, brought.teacher)
    assert refit(*arguments, SimpleNamespace(content="any")) is brought.teacher
