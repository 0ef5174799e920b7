"""What each stage leaves, and how it is read: a small frozen class for each, which the next stages take.

The only room that knows file names and facts of more than one stage. It reads; no mathematics, no Ray. Facts are read
once, with the marker, and tables that many look at are read once, too.

::

    Pool         pool/part_000, ...            every image there is
    Encoded      encode/<fingerprint>, ...     the teacher's features of them, and which cannot be read; if the student
                                               is frozen, what it sees in them (StudentFeatures), too
    Views        views/<fingerprint>, ...      the teacher's features of labeled images, in augmented views
    Teacher      teacher/<fingerprint>/...     the teacher's opinion: logits from features
                 round_000/teacher/...         the same, when it has learned from the labels so far
    Picks        round_000/select              what to label
    Labels       round_000/label               what a round trains on
    Trained      round_000/train               the student's weights; of a frozen one its heads
    Predictions  round_000/predict/...         what the student says of every image
    Deployed     round_000/student             the student to deploy: weights and mixture
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from raykd.algo.audit import Audited
from raykd.algo.forecast import Forecast, PointPrice
from raykd.algo.heads import Mixture, probabilities
from raykd.algo.keyed import hash_ids
from raykd.algo.metrics import HeldOut, Scores
from raykd.algo.prompts import ClassTexts
from raykd.algo.statistics import Change
from raykd.store.place import Place
from raykd.store.stage_folder import Done, fingerprint, read_done
from raykd.store.tables import (
    CARDS,
    CONFUSION,
    DOUBTFUL,
    MANIFEST,
    MEASURED,
    MISTAKES,
    QUARANTINE,
    ROLES,
    RUN_ROWS,
    SPLITS,
    matrix,
    positions,
)

MANIFEST_FILE, CLASSES_FILE = "manifest.parquet", "classes.json"
QUARANTINE_FILE, BROKEN_FILE = "quarantine.parquet", "quarantine.json"  # of a campaign; of a part
PICKS_FILE, CARDS_FILE, LABELS_FILE = "picks.parquet", "cards.parquet", "labels.parquet"
LOGITS_FILE = "logits.parquet"  # of a part of a teacher's opinion
METRICS_FILE, STEPS_FILE = "metrics.json", "steps.jsonl"
MEASURED_FILE = "measured.parquet"
CONFUSION_FILE, MISTAKES_FILE, DOUBTFUL_FILE = "confusion.parquet", "mistakes.parquet", "doubtful_labels.parquet"


# ---------------------------------------------------------------- of the whole campaign


@dataclass(frozen=True)
class Pool:
    """Every image of the campaign, once: what was listed at the start, and what has come since.

    Args:
        parts: What was listed, in the order listed; tables.MANIFEST each.
        classes: Class names, in the order of their indices.
        renamed: What older labels mean now: old class name to a name in ``classes``.
        texts: What the teacher is asked of the classes for which it is not just their name.
    """

    parts: tuple[Done, ...]
    classes: tuple[str, ...]
    renamed: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, ClassTexts] = field(default_factory=dict)

    @cached_property
    def listed(self) -> list[pa.Table]:
        """tables.MANIFEST of each part, with the labels as they were then."""
        return [(part.place / MANIFEST_FILE).read_table().combine_chunks() for part in self.parts]

    @cached_property
    def manifest(self) -> pa.Table:
        """tables.MANIFEST; labels are today's class names. Of a single part no copy."""
        return with_renamed(pa.concat_tables(self.listed).combine_chunks(), self.renamed)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Images of each split."""
        return {split: sum(part.facts[split] for part in self.parts) for split in SPLITS}

    @property
    def content(self) -> str:
        """Names what the manifest says."""
        return fingerprint([part.facts["content"] for part in self.parts])

    @property
    def seconds(self) -> float:
        return sum(part.facts["seconds"] for part in self.parts)

    def split(self, name: str) -> pa.Table:
        return self.manifest.filter(pc.equal(self.manifest["split"], name))

    def ids_to_label(self) -> tuple[pa.ChunkedArray, dict[str, str]]:
        """The ids that may be labeled, and the others with their split."""
        others = self.manifest.filter(pc.not_equal(self.manifest["split"], "pool"))
        splits = dict(zip(others["sample_id"].to_pylist(), others["split"].to_pylist(), strict=True))
        return self.split("pool")["sample_id"], splits

    def only(self, ids: pa.ChunkedArray) -> Pool:
        """The same pool as if these images were all that there are."""
        found = replace(self)
        listed = [table.filter(pc.is_in(table["sample_id"], value_set=ids)) for table in self.listed]
        found.__dict__["listed"] = [table for table in listed if table.num_rows]
        return found

    def uris(self, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        return pc.take(self.manifest["uri"], positions(ids, self.manifest["sample_id"], "the manifest"))

    def labels_of(self, ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """The manifest's class names; null where it has none."""
        return pc.take(self.manifest["label"], positions(ids, self.manifest["sample_id"], "the manifest"))

    def with_labels(self, table: pa.Table, classes: Sequence[str]) -> tuple[pa.Table, np.ndarray]:
        """The rows that the manifest has a label for among these classes, by sample_id, and the class indices [n]."""
        table = table.sort_by("sample_id")
        indices = pc.index_in(
            self.labels_of(table["sample_id"]), value_set=pa.array(classes, pa.string()), skip_nulls=True
        )
        kept = pc.is_valid(indices)
        return table.filter(kept), indices.filter(kept).to_numpy().astype(np.int64)


def manifest_content(table: pa.Table, batch_rows: int = RUN_ROWS) -> str:
    """Names what tables.MANIFEST says, in any row order. Some rows at a time: their texts are longer than the table."""
    xor, total = 0, 0
    for batch in table.select(["sample_id", "uri", "label", "split"]).to_batches(max_chunksize=batch_rows):
        texts = [column.fill_null("") for column in batch.columns]
        rows = hash_ids(pc.binary_join_element_wise(*texts, "\n").to_pylist())
        xor ^= int(np.bitwise_xor.reduce(rows))
        total = (total + int(rows.sum(dtype=np.uint64))) % 2**64
    return fingerprint([table.num_rows, xor, total])


def renamed_labels(labels: pa.ChunkedArray, renamed: Mapping[str, str]) -> pa.ChunkedArray:
    """Class names as they are called now."""
    if not renamed:
        return labels
    old, new = pa.array(list(renamed), pa.string()), pa.array(list(renamed.values()), pa.string())
    return pc.coalesce(pc.take(new, pc.index_in(labels, value_set=old)), labels)


def with_renamed(rows: pa.Table, renamed: Mapping[str, str]) -> pa.Table:
    """Manifest rows, with class names as they are called now."""
    return rows.set_column(MANIFEST.get_field_index("label"), "label", renamed_labels(rows["label"], renamed))


@dataclass(frozen=True)
class InParts:
    """A table in parts, each a complete folder."""

    parts: tuple[Done, ...]

    @property
    def uris(self) -> tuple[str, ...]:
        return tuple(part.place.uri for part in self.parts)

    @property
    def seconds(self) -> float:
        """What it took to make them."""
        return sum(part.facts["seconds"] for part in self.parts)


@dataclass(frozen=True)
class FromImages(InParts):
    """A table in parts that was made by reading images, together each of them once."""

    @property
    def rows(self) -> int:
        return sum(part.facts["rows"] for part in self.parts)

    @cached_property
    def quarantine(self) -> pa.Table:
        """The images that cannot be read, with uri and reason: tables.QUARANTINE, by sample_id."""
        lists = [(part.place / BROKEN_FILE).read_json() for part in self.parts if part.facts["unreadable"]]
        rows = [row for rows in lists for row in rows]
        return pa.Table.from_pylist(rows, QUARANTINE).sort_by("sample_id")

    @property
    def changes(self) -> dict[str, int]:
        """What was done to images on their way (``raykd.images.decoding.CHANGES``), and to how many."""
        total: Counter[str] = Counter()
        for part in self.parts:
            total.update(part.facts["changes"])
        return dict(total.most_common())

    def readable(self, rows: pa.Table) -> pa.Table:
        """Manifest rows without those that cannot be read."""
        return rows.filter(pc.invert(pc.is_in(rows["sample_id"], value_set=self.quarantine["sample_id"])))


@dataclass(frozen=True)
class StudentFeatures(FromImages):
    """What a frozen student is given instead of images, by parts: tables.ENCODED.

    Args:
        parts: Complete folders, together every row of the manifest once; the teacher's own, where it shares these.
        network: That they are of.
        decode: How images were read for it, ``reduced`` or ``exact``.
    """

    network: Done
    decode: str

    @property
    def key(self) -> dict[str, str]:
        """Names whose features they are, within a campaign."""
        return {"network": self.network.place.name, "decode": self.decode}


@dataclass(frozen=True)
class Encoded(FromImages):
    """The teacher's features of every image, by parts: tables.ENCODED.

    Args:
        parts: Complete folders, together every row of the manifest once.
        model: Names the teacher's weights.
        folder: The fetched model.
        for_student: What a frozen student is given instead of images; None: it is not frozen.
    """

    model: str
    folder: Place
    for_student: StudentFeatures | None = None

    @cached_property
    def quarantine(self) -> pa.Table:
        """The images that cannot be read; those of which a frozen student has no features are among them."""
        bad = super().quarantine
        if self.for_student is None:
            return bad
        others = self.for_student.quarantine
        more = others.filter(pc.invert(pc.is_in(others["sample_id"], value_set=bad["sample_id"])))
        return pa.concat_tables([bad, more]).sort_by("sample_id")


@dataclass(frozen=True)
class Views(InParts):
    """The teacher's features of labeled images in augmented views, by parts: tables.VIEWS.

    Args:
        parts: Complete folders, together every labeled image once.
        num_views: k, of each image.
    """

    num_views: int

    def features(self, ids: pa.ChunkedArray) -> np.ndarray:
        """float16 [n, k, D], in the order of ``ids``; NaN where the image could not be read. One pass over the parts.

        Raises:
            UserError: An image has no views; names the first three.
        """
        features: np.ndarray = rows_of(self.parts, ids, ("features",))["features"]
        return features.reshape(len(ids), self.num_views, -1)


class ClassCheck(TypedDict):
    """What the teacher's opinion of the pool says against the class list (``algo/class_list.py``)."""

    num_images: int  # of the pool, that can be read
    never: list[str]  # classes that are the likeliest of none of them
    close: list[tuple[str, str, float]]  # pairs whose prompts nearly coincide, and their share of the usual distance
    num_like_none: int  # images that look like none of the classes
    examples: list[str]  # the ids of a few, the plainest first


class TeacherFit(TypedDict):
    """What a round's labels made of the teacher."""

    rule: str  # of ``auto`` the one that was taken
    num_labels: int
    chosen: dict[str, float]  # temperature, strength, and the rule's own numbers
    before: HeldOut | None  # on the labels, each by a teacher that has not seen it: by texts alone,
    untempered: HeldOut | None  # with what is learned but temperature 1,
    after: HeldOut | None  # and as it is; None: one label of each class says nothing of that
    confusions: list[tuple[str, str, int]]  # label, likeliest class and how often, on the labels; the most frequent
    passes: int  # over the features of the whole pool
    changed: float | None  # share of the pool whose likeliest class is another one than by texts alone
    change: Change | None  # in accuracy on test since texts alone


@dataclass(frozen=True)
class Teacher(InParts):
    """The teacher's opinion of every image, by parts: tables.TEACHER, or REFITTED when it has learned from labels.

    Args:
        parts: Complete folders, one for each of the features.
        fingerprint: Names model, prompts and rule.
        classes: In the order of the logits.
        scores: How good it is on the labeled test images (``algo.metrics.Scores``).
        check: What it says against the class list.
        texts: The embedded classes; None: the opinion is from elsewhere.
        fit: What labels made of it; None: it has not learned from any.
        fitted: Where that is, as a scorer of features.
    """

    fingerprint: str
    classes: tuple[str, ...]
    scores: Scores
    check: ClassCheck
    texts: Done | None = None
    fit: TeacherFit | None = None
    fitted: Done | None = None

    def probabilities(self, ids: pa.ChunkedArray) -> np.ndarray:
        """float32 [n, C], in the order of ``ids``."""
        return probabilities(rows_of(self.parts, ids, ("logits",)))


# ---------------------------------------------------------------- of a round


@dataclass(frozen=True)
class InFolder:
    """What a stage left in one folder."""

    done: Done

    @property
    def place(self) -> Place:
        return self.done.place

    @property
    def fingerprint(self) -> str:
        return self.done.fingerprint


@dataclass(frozen=True)
class Picks(InFolder):
    """What to label, in that order: tables.ASKED."""

    @cached_property
    def table(self) -> pa.Table:
        table = (self.place / PICKS_FILE).read_table()
        if "role" not in table.column_names:  # of an older campaign, where all were to train on
            table = table.append_column("probability", pa.nulls(table.num_rows, pa.float64()))
            table = table.append_column("role", pa.array([ROLES[0]] * table.num_rows, pa.string()))
        return table

    @property
    def ids(self) -> pa.ChunkedArray:
        return self.table["sample_id"]


@dataclass(frozen=True)
class Labels(InFolder):
    """The answers that there are in a round: tables.LABELS, by sample_id."""

    @cached_property
    def table(self) -> pa.Table:
        table = (self.place / LABELS_FILE).read_table()
        if "role" not in table.column_names:  # of an older campaign, where all were to train on
            table = table.append_column("role", pa.array([ROLES[0]] * table.num_rows, pa.string()))
        return table

    @property
    def content(self) -> str:
        """Names what the table says."""
        content: str = self.done.facts["content"]
        return content

    @property
    def outcomes(self) -> dict[str, int]:
        """This round's answers, by outcome."""
        outcomes: dict[str, int] = self.done.facts["outcomes"]
        return outcomes

    @property
    def num_answered(self) -> int:
        """Images that have an answer by then."""
        number: int = self.done.facts["num_answered"]
        return number

    @property
    def labeled_ids(self) -> pa.ChunkedArray:
        """Of the images that have a label to learn from, whatever class that is."""
        return self._to_learn_from["sample_id"]

    @property
    def _to_learn_from(self) -> pa.Table:
        is_label, to_train = pc.equal(self.table["outcome"], "label"), pc.equal(self.table["role"], ROLES[0])
        return self.table.filter(pc.and_(is_label, to_train))

    def given(self, classes: Sequence[str], renamed: Mapping[str, str]) -> tuple[pa.ChunkedArray, np.ndarray]:
        """Ids and class indices [n] of images with a label to learn from, among these classes; by sample_id."""
        table = self._to_learn_from
        names = renamed_labels(table["label"], renamed)
        indices = pc.index_in(names, value_set=pa.array(classes, pa.string()))
        kept = pc.is_valid(indices)
        return table["sample_id"].filter(kept), indices.filter(kept).to_numpy().astype(np.int64)

    @property
    def audited(self) -> pa.Table:
        """The answers that measure: tables.LABELS."""
        return self.table.filter(pc.equal(self.table["role"], ROLES[1]))

    def without_class(self) -> pa.Table:
        """The rows that people looked at and gave no class: sample_id, outcome."""
        return self.table.filter(pc.not_equal(self.table["outcome"], "label")).select(["sample_id", "outcome"])


@dataclass(frozen=True)
class Trained(InFolder):
    """The student after its training: weights, ``student.json``, ``steps.jsonl``."""

    @property
    def classes(self) -> list[str]:
        """In the order of its logits."""
        classes: list[str] = self.done.facts["classes"]
        return classes

    @property
    def columns(self) -> tuple[str, ...]:
        """The logits that it writes (``algo.heads.HEADS``)."""
        return tuple(self.done.facts["columns"])

    @property
    def loss(self) -> float:
        loss: float = self.done.facts["loss"]
        return loss

    @property
    def data_wait_share(self) -> float:
        """Share of the training's time that it waited for images, 0 to 1."""
        share: float = self.done.facts.get("data_wait_share", 0.0)  # nothing is known of older rounds
        return share

    @property
    def features(self) -> dict[str, str] | None:
        """Of a frozen student the key of what it was trained on (:class:`StudentFeatures`); None: it sees images."""
        features: dict[str, str] | None = self.done.facts.get("features")
        return features


@dataclass(frozen=True)
class Predictions(InParts):
    """What a student says of every image, by parts: ``tables.predicted(columns)``.

    Args:
        parts: Complete folders, one for each of the features.
        columns: Of logits.
        classes: In the order of the logits.
        student: Names the student.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    student: str

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """Of the images that could be read."""
        return read_parts(self.parts, ["sample_id"], pads.field("error").is_null())["sample_id"]

    def logits(self, ids: pa.ChunkedArray) -> dict[str, np.ndarray]:
        """Each column's logits [n, C], in the order of ``ids``."""
        return rows_of(self.parts, ids, self.columns)

    def split(self, name: str, pool: Pool) -> Labeled:
        """What is said of the readable, labeled images of a split."""
        return labeled_split(self.parts, name, pool, self.columns, self.classes)


@dataclass(frozen=True)
class Deployed(InFolder):
    """The student to deploy: weights, classes, preprocessing and mixture; ``Student.load`` reads the folder."""

    @property
    def mixture(self) -> Mixture:
        facts = self.done.facts  # older campaigns knew no calibration
        return Mixture(facts["ce_weight"], facts["temperature"], facts.get("calibration", 1.0))

    @property
    def num_validation(self) -> int:
        """Validation images whose labels chose it, or its calibration; 0 where others did."""
        number: int = self.done.facts["num_validation"]
        return number

    @property
    def by_audit(self) -> bool:
        """Whether audited images chose it, or its calibration: those that may (:func:`raykd.algo.audit.chooses`)."""
        by_audit: bool = self.done.facts.get("by_audit", False)
        return by_audit

    @property
    def reason(self) -> str:
        """Why this mixture."""
        reason: str = self.done.facts["reason"]
        return reason

    @property
    def calibrated(self) -> str:
        """By what, or why not."""
        calibrated: str = self.done.facts.get("calibrated", "none: made by an older raykd")
        return calibrated


@dataclass(frozen=True)
class Round:
    """A round that is trained: what it is measured by, and what the next one picks from."""

    number: int
    picks: Picks
    labels: Labels
    trained: Trained
    predictions: Predictions
    deployed: Deployed

    @property
    def seconds(self) -> dict[str, float]:
        return {
            "select": self.picks.done.facts["seconds"],
            "label": self.labels.done.facts["seconds"],
            "train": self.trained.done.facts["seconds"],
            "predict": self.predictions.seconds,
            "mix": self.deployed.done.facts["seconds"],
        }


# ---------------------------------------------------------------- tables in parts


def read_parts(parts: Iterable[Done], columns: list[str], where: pads.Expression | None = None) -> pa.Table:
    """Columns of the rows of all parts for which ``where`` holds."""
    return pa.concat_tables(part.place.parquet().to_table(columns=columns, filter=where) for part in parts)


def rows_of(parts: Iterable[Done], ids: pa.ChunkedArray, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Vector columns of some rows, [n, width] each, in the order of ``ids``; one pass.

    Raises:
        UserError: Some are not there.
    """
    wanted = pads.field("sample_id").isin(ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids)
    table = read_parts(parts, ["sample_id", *columns], wanted)
    table = table.take(positions(ids, table["sample_id"], "the table"))
    return {column: matrix(table[column], column) for column in columns}


def readable_of(split: str) -> pads.Expression:
    """For :func:`read_parts`: the rows of a split whose images could be read."""
    return (pads.field("split") == split) & pads.field("error").is_null()


class Labeled(NamedTuple):
    """Images that have a label: ids, in order; each column's logits [n, C]; and class indices int64 [n]."""

    ids: pa.ChunkedArray
    logits: dict[str, np.ndarray]
    labels_N: np.ndarray


def labeled_split(
    parts: Iterable[Done], name: str, pool: Pool, columns: Sequence[str], classes: Sequence[str]
) -> Labeled:
    """What parts say of the readable, labeled images of a split."""
    table, labels_N = pool.with_labels(read_parts(parts, ["sample_id", *columns], readable_of(name)), classes)
    return Labeled(table["sample_id"], {column: matrix(table[column], column) for column in columns}, labels_N)


class LabelDoubts(TypedDict):
    """Which training labels look like slips (``algo/label_errors.py``)."""

    num_labels: int  # that were judged, each by a teacher that has not seen it
    num_suspects: int  # slips rather than not
    by_chance: float  # so many would look like it if all labels were right
    share: float  # of the labels that are slips, as far as can be told


class AuditFigures(Audited):
    """How good a student is on its pool, by the audited images that measure it (``algo/audit.py``)."""

    num_aside: int  # images set aside, of those that measure
    num_unanswered: int  # that were asked for, and have no answer yet
    num_without_class: int  # of which people said that they can give none
    num_choosing: int  # that chose the mixture, and so do not measure it


class PriceFigures(PointPrice):
    """What labels cost, in whatever they are paid in."""

    spent: float  # on all so far


class RoundFigures(TypedDict):
    """What is measured of a round: ``metrics.json``, and a line of ``metrics.jsonl``."""

    round: int
    num_labeled: int  # after this round's labels
    labels_spent: dict[str, int]  # by what they are for: training, audit, validation (where it chose the mixture)
    num_unlabeled: int
    num_test: int
    outcomes: dict[str, int]  # label, unsure, cannot_label, none_of_the_classes: this round's answers
    classes: list[str]  # in the order of every ``_C``
    labels_C: list[int]  # all labels so far
    coverage_radius: float | None
    mixture: dict[str, Any]  # ce_weight, temperature, calibration; reason (of the first two), calibrated (of the third)
    loss: float
    seconds: dict[str, float]  # by stage
    teacher: Scores
    teacher_fit: TeacherFit | None  # None: it has not learned from labels
    teacher_never: list[str]  # classes that are its likeliest for none of the pool's images
    measured_on: str | None  # test, or audit: what the figures from here to recall_C are of; None: of nothing
    num_measured: int  # images
    accuracy: dict[str, float | None] | None  # mixture, ce_head, kd_head, teacher; None: nothing to measure on
    interval: tuple[float, float] | None  # 95 %, of the mixture's accuracy
    change: Change | None  # of it since the round before, on the images of both; None: there are none, or no round
    at_least: float | None  # the accuracy is at least this, at all rounds at once with 95 % confidence
    forecast: Forecast | None  # of the next round
    price: PriceFigures | None  # None: no price is given
    audit: AuditFigures | None  # also where accuracy is of test images
    macro_accuracy: float | None
    ece: float | None  # of the probabilities as they are deployed,
    ece_uncalibrated: float | None  # and as the mixture has them
    log_loss: float | None  # the same
    log_loss_uncalibrated: float | None
    recall_C: list[float | None] | None  # None in it: no image of that class
    label_doubts: LabelDoubts | None  # None: the teacher is a table from elsewhere, which has not seen the images


def round_place(place: Place, number: int) -> Place:
    """Folder of a campaign's round."""
    return place / f"round_{number:03d}"


def count_done(place: Place, number: int = 0) -> int:
    """How many rounds of a campaign are evaluated, of which so many are known to be."""
    while read_done(round_place(place, number) / "evaluate"):
        number += 1
    return number


def read_metrics(place: Place) -> RoundFigures | None:
    """The figures of a round's folder; None when it is not evaluated yet."""
    file = place / "evaluate" / METRICS_FILE
    metrics: RoundFigures | None = file.read_json() if file.exists() else None
    return metrics


def read_steps(place: Place) -> list[dict[str, Any]]:
    """The lines of ``steps.jsonl`` of a round's folder; empty when it is not trained yet."""
    file = place / "train" / STEPS_FILE
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def read_labels(place: Place) -> Labels | None:
    """The labels of a round's folder; None when they are not settled yet."""
    done = read_done(place / "label")
    return Labels(done) if done else None


def read_picks(place: Place) -> Picks | None:
    """The picks of a round's folder; None when it has not picked yet."""
    done = read_done(place / "select")
    return Picks(done) if done else None


def read_cards(place: Place) -> pa.Table:
    """tables.CARDS of a round's folder; empty when it has not picked yet."""
    return _read_or_empty(place / "ask" / CARDS_FILE, CARDS)


def read_measured(place: Place) -> pa.Table:
    """tables.MEASURED of a round's folder; empty as :func:`read_confusion` is."""
    return _read_or_empty(place / "evaluate" / MEASURED_FILE, MEASURED)


def read_confusion(place: Place) -> pa.Table:
    """tables.CONFUSION of a round's folder; empty when it is not evaluated, or was by an older raykd."""
    return _read_or_empty(place / "evaluate" / CONFUSION_FILE, CONFUSION)


def read_mistakes(place: Place) -> pa.Table:
    """tables.MISTAKES of a round's folder; empty as :func:`read_confusion` is."""
    return _read_or_empty(place / "evaluate" / MISTAKES_FILE, MISTAKES)


def read_doubtful(place: Place) -> pa.Table:
    """tables.DOUBTFUL of a round's folder; empty as :func:`read_confusion` is."""
    return _read_or_empty(place / "evaluate" / DOUBTFUL_FILE, DOUBTFUL)


def _read_or_empty(file: Place, schema: pa.Schema) -> pa.Table:
    return file.read_table() if file.exists() else schema.empty_table()
