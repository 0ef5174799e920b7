"""What is written of the images that a student has wrong, and of the labels that may be, is what the stages left."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
from fakes import new_campaign
from PIL import Image

from raykd.algo.few_shot.support import Support, Texts
from raykd.algo.heads import Mixture, probabilities, softmax
from raykd.algo.label_errors import slips_among
from raykd.store.outputs import Deployed, Encoded, Labels, Pool, Predictions, Round, Teacher, Trained
from raykd.store.place import Place
from raykd.store.stage_folder import Done
from raykd.store.tables import LABELS, MANIFEST, vectors

NAMES = ("ash", "beech", "cedar", "douglas fir")
NUM, NUM_TEST, WIDTH = 160, 60, 12
WRONG = [f"p{n:03d}" for n in range(9)]  # labels that people got wrong
MIXTURE = Mixture(0.4, 1.5, 0.6)


class Left(NamedTuple):
    """What the stages of a round left."""

    campaign: Any
    pool: Pool
    encoded: Encoded
    teacher: Teacher
    done: Round
    truths: dict[str, str]
    features: dict[str, np.ndarray]
    texts: Texts


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def left(settings, tmp_path) -> Left:
    rng = np.random.default_rng(0)
    place = Place.of(tmp_path / "left")
    Path(tmp_path / "red.png").parent.mkdir(exist_ok=True)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "red.png")
    texts_CD = unit(rng.normal(size=(4, WIDTH)))
    ids = np.array([f"p{n:03d}" for n in range(NUM)] + [f"test/{n:02d}" for n in range(NUM_TEST)])
    truth_N = np.arange(len(ids)) % 4
    spread_N1 = rng.uniform(0.1, 1.2, (len(ids), 1))
    features_ND = unit(texts_CD[truth_N] + spread_N1 * rng.normal(size=(len(ids), WIDTH)) / WIDTH**0.5)
    features_ND = features_ND.astype(np.float16)
    order = rng.permutation(len(ids))  # no table is in the order of another
    manifest = {
        "sample_id": ids, "uri": [f"{tmp_path}/{'gone' if n % 5 == 4 else 'red'}.png" for n in range(len(ids))],
        "size_bytes": np.zeros(len(ids), int), "mtime_ns": np.zeros(len(ids), int),
        "label": [NAMES[c] if "test" in name else None for name, c in zip(ids, truth_N, strict=True)],
        "split": ["test" if "test" in name else "pool" for name in ids],
    }  # fmt: skip
    (place / "pool" / "manifest.parquet").write_table(pa.table(manifest, schema=MANIFEST).take(order))
    errors = pa.array([None] * len(ids), pa.string())
    encoded = pa.table({"sample_id": ids, "error": errors, "features": vectors(features_ND)})
    (place / "encode" / "block.parquet").write_table(encoded)
    for name, array in {"classes": texts_CD, "lengths": np.ones(4), "neutral": texts_CD[0]}.items():
        file = tmp_path / f"{name}.npy"
        np.save(file, array.astype(np.float32))
        (place / "texts" / file.name).write_bytes(file.read_bytes())
    logits_NC = (30 * features_ND.astype(np.float32) @ texts_CD.T).astype(np.float32)
    logits_NC[-2] = np.nan  # a table in the teacher's place may lack a test image
    opinion = {"sample_id": ids, "split": manifest["split"], "error": errors, "logits": vectors(logits_NC)}
    (place / "teacher" / "block.parquet").write_table(pa.table(opinion))
    guesses = {"sample_id": ids, "split": manifest["split"], "error": errors}
    columns = ("ce_logits", "kd_logits")
    guesses |= {name: vectors((3 * rng.normal(size=(len(ids), 4))).astype(np.float32)) for name in columns}
    (place / "predict" / "block.parquet").write_table(pa.table(guesses).take(order[::-1]))
    given = {name: NAMES[(c + (name in WRONG)) % 4] for name, c in zip(ids[:NUM], truth_N, strict=False)}
    rows = [{"sample_id": name, "label": label, "outcome": "label", "role": "train"} for name, label in given.items()]
    rows[NUM - 1] |= {"label": None, "outcome": "unsure"}
    rows[NUM - 2] |= {"role": "audit"}
    (place / "label" / "labels.parquet").write_table(pa.Table.from_pylist(rows, LABELS))

    texts = Done(place / "texts", "texts", {"scale": 30.0})
    check = {"num_images": NUM, "never": [], "close": [], "num_like_none": 0, "examples": []}
    parts = {name: (Done(place / name, name, {"unreadable": 0}),) for name in ("pool", "encode", "teacher", "predict")}
    mixture = {"ce_weight": MIXTURE.ce_weight, "temperature": MIXTURE.temperature, "calibration": MIXTURE.calibration}
    done = Round(
        3, None, Labels(Done(place / "label", "label")), Trained(Done(place / "train", "train", {"classes": NAMES})),
        Predictions(parts["predict"], columns, NAMES, "train"), Deployed(Done(place / "student", "student", mixture)),
    )  # fmt: skip
    teacher = Teacher(parts["teacher"], "teacher", NAMES, {}, check, texts)
    truths = dict(zip(ids.tolist(), [NAMES[c] for c in truth_N], strict=True))
    features = dict(zip(ids.tolist(), features_ND, strict=True))
    campaign = new_campaign(settings)
    pool, seen = Pool(parts["pool"], NAMES), Encoded(parts["encode"], "model", place)
    return Left(campaign, pool, seen, teacher, done, truths, features, Texts(texts_CD.astype(np.float32), 30.0))


def students_rows(left: Left) -> dict[str, np.ndarray]:
    """What the student says of each image, by a plain loop."""
    rows = left.done.predictions.parts[0].place.read_table().to_pylist()
    columns = ("ce_logits", "kd_logits")
    return {row["sample_id"]: probabilities({c: np.array([row[c]]) for c in columns}, MIXTURE)[0] for row in rows}


def test_confusion_and_mistakes_are_those_of_a_plain_loop(left):
    from raykd.stages.mistakes import confusion_table, mistakes_table
    from raykd.stages.pictures import SHOWN_WRONG

    said = students_rows(left)
    test = left.done.predictions.split("test", left.pool)
    probs_NC = probabilities(test.logits, MIXTURE)
    counts: dict[tuple[str, str], int] = {}
    wrong = []
    for name, truth in left.truths.items():
        if "test" in name:
            guess = NAMES[said[name].argmax()]
            counts[truth, guess] = counts.get((truth, guess), 0) + 1
            wrong += [(-said[name].max(), name)] if guess != truth else []
    table = confusion_table(probs_NC, test.labels_N, NAMES)
    assert {(row["label"], row["prediction"]): row["count"] for row in table.to_pylist()} == counts
    rows = mistakes_table(left.pool, left.teacher, left.done, test, probs_NC).to_pylist()
    assert [row["sample_id"] for row in rows] == [name for _, name in sorted(wrong)]
    assert len(rows) > SHOWN_WRONG
    uris = dict(zip(*(left.pool.manifest[name].to_pylist() for name in ("sample_id", "uri")), strict=True))
    for n, row in enumerate(rows):
        name = row["sample_id"]
        assert (row["label"], row["prediction"]) == (left.truths[name], NAMES[said[name].argmax()])
        assert row["confidence"] == pytest.approx(said[name].max())
        assert row["student"][0] == {"label": row["prediction"], "p": row["confidence"]}
        assert len(row["student"]) == 3
        assert row["uri"] == uris[name]
        assert (row["thumbnail"] is not None) == (n < SHOWN_WRONG and "red" in row["uri"])
        if name == f"test/{NUM_TEST - 2:02d}":
            assert row["teacher"] is None  # it has no opinion of it
        else:
            zero_shot = softmax(30 * left.features[name].astype(float)[None] @ left.texts.directions_CD.T)[0]
            assert row["teacher"][0]["label"] == NAMES[zero_shot.argmax()]
    assert f"test/{NUM_TEST - 2:02d}" in [row["sample_id"] for row in rows]
    assert sum(row["thumbnail"] is not None for row in rows) in range(6, SHOWN_WRONG + 1)


def test_without_mistakes_or_test_images_the_tables_are_empty(left):
    from raykd.stages.mistakes import confusion_table, mistakes_table

    test = left.done.predictions.split("test", left.pool)
    right_NC = np.eye(4, dtype=np.float32)[test.labels_N]
    assert mistakes_table(left.pool, left.teacher, left.done, test, right_NC).num_rows == 0
    assert confusion_table(right_NC, test.labels_N, NAMES)["count"].to_pylist() == [NUM_TEST // 4] * 4
    none = left.done.predictions.split("val", left.pool)
    no_probs = probabilities(none.logits, MIXTURE) if none.logits["ce_logits"].size else np.empty((0, 4), np.float32)
    assert confusion_table(no_probs, none.labels_N, NAMES).num_rows == 0
    assert mistakes_table(left.pool, left.teacher, left.done, none, no_probs).num_rows == 0


def test_wrong_labels_are_found_by_a_teacher_that_has_not_seen_them(left):
    from raykd.stages.mistakes import doubtful_labels

    doubts = doubtful_labels(left.campaign, left.pool, left.encoded, left.teacher, left.done)
    names = [f"p{n:03d}" for n in range(NUM - 2)]  # neither what is unsure nor the audit label
    given = {name: NAMES[(NAMES.index(left.truths[name]) + (name in WRONG)) % 4] for name in names}
    labels_N = np.array([NAMES.index(given[name]) for name in names])
    slips = slips_among(Support(np.stack([left.features[name] for name in names]), labels_N, left.texts))
    suspects = {names[n] for n in np.flatnonzero(slips.suspects_N)}
    assert len(suspects & set(WRONG)) >= 6  # and so that there is something to show
    assert len(suspects - set(WRONG)) <= 2
    assert doubts.figures == {
        "num_labels": NUM - 2, "num_suspects": len(suspects), "by_chance": pytest.approx(slips.by_chance),
        "share": pytest.approx(slips.share),
    }  # fmt: skip
    rows, said = doubts.table.to_pylist(), students_rows(left)
    assert {row["sample_id"] for row in rows if row["slip"] > 0.5} == suspects
    expected = [names[n] for n in slips.order_N if slips.margins_N[n] < 0]
    assert [row["sample_id"] for row in rows] == expected
    assert len(rows) > len(suspects)  # hard images too, further down
    for n, row in enumerate(rows):
        at = names.index(row["sample_id"])
        assert row["given"] == given[row["sample_id"]]
        assert row["suggested"] == row["teacher"][0]["label"] == NAMES[slips.probs_NC[at].argmax()]
        assert row["margin"] == pytest.approx(slips.margins_N[at])
        assert row["slip"] == pytest.approx(slips.slip_N[at])
        assert row["student"][0]["label"] == NAMES[said[row["sample_id"]].argmax()]
        assert (row["thumbnail"] is not None) == (n < len(suspects) and "red" in row["uri"])
    hits = [row for row in rows if row["sample_id"] in suspects & set(WRONG)]
    assert np.mean([row["suggested"] == left.truths[row["sample_id"]] for row in hits]) > 0.7


def test_right_labels_raise_no_doubt(left):
    from dataclasses import replace

    from raykd.stages.mistakes import doubtful_labels

    table = left.done.labels.table
    right = pa.array([left.truths[name] for name in table["sample_id"].to_pylist()])
    place = left.done.labels.place / "right"
    (place / "labels.parquet").write_table(table.set_column(table.schema.get_field_index("label"), "label", right))
    done = replace(left.done, labels=Labels(Done(place, "right")))
    doubts = doubtful_labels(left.campaign, left.pool, left.encoded, left.teacher, done)
    assert doubts.figures["num_suspects"] == 0
    assert doubts.table["thumbnail"].null_count == doubts.table.num_rows


def test_nothing_is_said_where_there_is_nothing_to_go_by(left):
    """A table in the teacher's place; no label; images that the teacher sees nothing in."""
    from dataclasses import replace

    from raykd.stages.mistakes import doubtful_labels

    table = replace(left.teacher, texts=None)
    doubts = doubtful_labels(left.campaign, left.pool, left.encoded, table, left.done)
    assert (doubts.figures, doubts.table.num_rows) == (None, 0)
    place = left.done.labels.place / "none"
    (place / "labels.parquet").write_table(LABELS.empty_table())
    done = replace(left.done, labels=Labels(Done(place, "none")))
    doubts = doubtful_labels(left.campaign, left.pool, left.encoded, left.teacher, done)
    assert (doubts.figures["num_labels"], doubts.table.num_rows) == (0, 0)
    encoded = left.encoded.parts[0].place.read_table()
    features_ND = np.stack(encoded["features"].to_pylist()).astype(np.float16)
    features_ND[:5] = 0
    at = encoded.schema.get_field_index("features")
    place = left.encoded.parts[0].place / "blind"
    (place / "block.parquet").write_table(encoded.set_column(at, "features", vectors(features_ND)))
    blind = replace(left.encoded, parts=(replace(left.encoded.parts[0], place=place),))
    doubts = doubtful_labels(left.campaign, left.pool, blind, left.teacher, left.done)
    assert doubts.figures["num_labels"] == NUM - 7
    assert not {"p000", "p001"} & set(doubts.table["sample_id"].to_pylist())
