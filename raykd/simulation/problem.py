"""What all cells of a simulation share: the images in numbers, and what the teacher says of them before any label.

It is written once, as tables (tables.PROBLEM), and read by whoever runs cells. N images of all splits, D feature width,
C classes.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.few_shot.support import Texts
from raykd.algo.keyed import hash_ids, uniform
from raykd.algo.zeroshot import rounded
from raykd.config import Config
from raykd.errors import UserError, did_you_mean
from raykd.simulation.definition import SetConfig
from raykd.store.outputs import CLASSES_FILE, Encoded, Pool, Teacher
from raykd.store.place import Place
from raykd.store.stage_folder import Done, fingerprint
from raykd.store.tables import (
    ENCODED,
    GROUP_ROWS,
    PROBLEM,
    SPLITS,
    checked,
    first_duplicates,
    matrix,
    vectors,
)

TEXTS_FILE = "texts.npz"
TEACHERS = "teacher_{:03d}.parquet"  # tables.ENCODED of a part, where the student's features are others
PART = "part_{:03d}.parquet"


@dataclass(frozen=True)
class Problem:
    """The images of a simulation.

    Args:
        ids: Strings [N], object array; part by part, by id in each, as a campaign keeps them.
        splits_N: int64 [N], index into tables.SPLITS.
        labels_N: int64 [N], class indices.
        features_ND: float16, what a frozen student is given.
        logits_NC: float32, the teacher's, before any label.
        parts: Which rows are scored together, so that the bits are those of a campaign.
        classes: C names.
        texts: What a few-shot teacher begins with; None: it can learn nothing.
        teacher_features_ND: float16, the teacher's, where they are others than the student's.
    """

    ids: np.ndarray
    splits_N: np.ndarray
    labels_N: np.ndarray
    features_ND: np.ndarray
    logits_NC: np.ndarray
    parts: tuple[slice, ...]
    classes: tuple[str, ...]
    texts: Texts | None = None
    teacher_features_ND: np.ndarray | None = None

    @property
    def seen_by_teacher_ND(self) -> np.ndarray:
        return self.features_ND if self.teacher_features_ND is None else self.teacher_features_ND

    @cached_property
    def pool(self) -> np.ndarray:
        """Rows of the pool, by id, int64."""
        return self.rows_of_split("pool")

    @cached_property
    def test(self) -> np.ndarray:
        """Rows of the test split, by id, int64."""
        return self.rows_of_split("test")

    @cached_property
    def val(self) -> np.ndarray:
        """Rows of the validation split, by id, int64; none where there is no such split."""
        return self.rows_of_split("val")

    def rows_of_split(self, name: str) -> np.ndarray:
        rows = np.flatnonzero(self.splits_N == SPLITS.index(name))
        return rows[np.argsort(self.ids[rows], kind="stable")]

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return dict(zip(self.ids[self.pool], self.pool.tolist(), strict=True))

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """The rows of images of the pool, in this order, int64."""
        return np.array([self._row_of[name] for name in ids], np.int64)

    @cached_property
    def rounded_NC(self) -> np.ndarray:
        """The teacher's logits as a student learns from them, float16; the same for all arms without a refit."""
        return rounded(self.logits_NC)

    def only(self, kept_N: np.ndarray) -> Problem:
        """Without the other rows, bool [N]."""
        bounds = np.concatenate([[0], np.cumsum(kept_N)])
        parts = tuple(slice(int(bounds[part.start]), int(bounds[part.stop])) for part in self.parts)
        arrays: dict[str, Any] = {
            name: None if (array := getattr(self, name)) is None else array[kept_N]
            for name in ("ids", "splits_N", "labels_N", "features_ND", "logits_NC", "teacher_features_ND")
        }
        return replace(self, parts=tuple(part for part in parts if part.stop > part.start), **arrays)


# ---------------------------------------------------------------- variants of the pool


def variant(problem: Problem, config: SetConfig, seed: int) -> Problem:
    """The problem with some of its pool images; val and test stay whole.

    Args:
        problem: With the whole pool.
        config: Which images.
        seed: Of the draws: a simulation's ``split_seed``, the same for all arms and repetitions.

    Raises:
        UserError: A missing class is none, or all are.
    """
    for name in config.missing:
        if name not in problem.classes:
            raise UserError(f"missing: {name!r} is no class; {did_you_mean(name, problem.classes)}")
    if config.long_tailed is None and not config.missing:
        return problem
    numbers = [problem.classes.index(name) for name in config.missing]
    kept_N = ~np.isin(problem.labels_N, numbers)
    if config.long_tailed is not None:
        counts_C = np.bincount(problem.labels_N[problem.pool], minlength=len(problem.classes))
        wanted_C = tailed_counts(counts_C, config.long_tailed)
        draws_N = uniform(hash_ids(problem.ids), seed, "long tail")
        for number, wanted in enumerate(wanted_C):
            mine = problem.pool[problem.labels_N[problem.pool] == number]
            kept_N[mine[np.argsort(draws_N[mine], kind="stable")][wanted:]] = False
    kept_N |= problem.splits_N != SPLITS.index("pool")
    found = problem.only(kept_N)
    if not len(found.pool):
        raise UserError("missing: no image is left in the pool; leave a class in")
    return found


def tailed_counts(counts_C: np.ndarray, ratio: float) -> np.ndarray:
    """How many images of each class a long tail leaves, int64 [C]: geometrically fewer from the first to the last.

    As many as there can be: ``most * ratio ** (-c / (C - 1))``, rounded, at least 1, where ``most`` is the largest
    number for which no class with images is asked for more than it has.

    Example:
        >>> tailed_counts(np.array([100, 100, 100]), 4).tolist()
        [100, 50, 25]
    """
    shares_C = float(ratio) ** (-np.arange(len(counts_C)) / max(1, len(counts_C) - 1))
    some = counts_C > 0
    most = (counts_C[some] / shares_C[some]).min()
    return np.where(some, np.maximum(1, np.round(most * shares_C + 1e-9)), 0).astype(np.int64)


# ---------------------------------------------------------------- as tables


def problem_key(config: Config) -> str:
    """Names all of a campaign's config that its problem hangs on: images, splits, features, the teacher's opinion."""
    fixed = {name: value for name, value in config.fixed().items() if name != "seed"}
    student = config.student
    network = None
    if student.is_frozen and student.network is not None:
        network = [student.network, student.pretrained, student.image_size, student.interpolation]
    table = config.teacher.table
    return fingerprint([fixed, config.part("encode"), config.part("teacher"), network, table])


def write_problem(
    place: Place, tables: Sequence[pa.Table], classes: Sequence[str], texts: Texts | None,
    teacher_tables: Sequence[pa.Table] = (),
) -> None:  # fmt: skip
    """Write a problem into a folder.

    Args:
        place: The folder.
        tables: tables.PROBLEM, by part.
        classes: C names.
        texts: What a few-shot teacher begins with.
        teacher_tables: tables.ENCODED of the same rows, where the teacher's features are others.
    """
    for number, table in enumerate(tables):
        (place / PART.format(number)).write_table(checked(table, PROBLEM), row_group_rows=GROUP_ROWS)
    for number, table in enumerate(teacher_tables):
        (place / TEACHERS.format(number)).write_table(checked(table, ENCODED), row_group_rows=GROUP_ROWS)
    (place / CLASSES_FILE).write_json(list(classes))
    if texts is not None:
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {"directions_CD": texts.directions_CD, "scale": texts.scale}
        if texts.lengths_C is not None:
            arrays["lengths_C"] = texts.lengths_C
        np.savez(buffer, **arrays)
        (place / TEXTS_FILE).write_bytes(buffer.getvalue())


def read_problem(place: Place) -> Problem:
    """What :func:`write_problem` has written."""
    tables = list(_numbered(place, PART))
    teachers = [matrix(table["features"], "features") for table in _numbered(place, TEACHERS)]
    ends = np.cumsum([0, *(table.num_rows for table in tables)]).tolist()
    whole = pa.concat_tables(tables)
    classes = (place / CLASSES_FILE).read_json()
    return Problem(
        ids=np.array(whole["sample_id"].to_pylist(), object),
        splits_N=pc.index_in(whole["split"], value_set=pa.array(SPLITS)).to_numpy().astype(np.int64),
        labels_N=pc.index_in(whole["label"], value_set=pa.array(classes, pa.string())).to_numpy().astype(np.int64),
        features_ND=np.array(matrix(whole["features"], "features")),  # a copy: torch takes nothing that is read-only
        logits_NC=np.array(matrix(whole["logits"], "logits")),
        parts=tuple(slice(first, end) for first, end in pairwise(ends)),
        classes=tuple(classes),
        texts=read_texts_file(place / TEXTS_FILE),
        teacher_features_ND=np.concatenate(teachers) if teachers else None,
    )


def _numbered(place: Place, name: str) -> Iterable[pa.Table]:
    number = 0
    while (file := place / name.format(number)).exists():
        yield file.read_table()
        number += 1


def read_texts_file(file: Place) -> Texts | None:
    """The class texts of a folder of tables; None: there are none. Raises UserError where they are no such file."""
    if not file.exists():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes())) as arrays:
            lengths_C = arrays.get("lengths_C")
            return Texts(arrays["directions_CD"], float(arrays["scale"]), lengths_C)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{file}: {error}; expected a NumPy .npz with directions_CD [C, D] and scale") from None


# ---------------------------------------------------------------- where it comes from


def problem_tables(pool: Pool, encoded: Encoded, teacher: Teacher) -> tuple[list[pa.Table], list[pa.Table]]:
    """What a campaign's first stages leave, as tables.PROBLEM by part; and the teacher's features, if they are others.

    Images that cannot be read, and those without a label, are left out.
    """
    shared = encoded.for_student is None or encoded.for_student.parts == encoded.parts
    of_student = encoded.parts if encoded.for_student is None else encoded.for_student.parts
    tables, teachers = [], []
    for number, opinion in enumerate(teacher.parts):
        said = by_id(opinion, ["sample_id", "split", "error", "logits"])
        seen = by_id(of_student[number], ["sample_id", "error", "features"])
        assert said["sample_id"].equals(seen["sample_id"]), "parts of other images"
        labels = pool.labels_of(said["sample_id"])
        good = pc.and_(pc.and_(pc.is_null(said["error"]), pc.is_null(seen["error"])), pc.is_valid(labels))
        columns = [said["sample_id"], said["split"], labels, seen["features"], said["logits"]]
        tables.append(pa.table([column.filter(good) for column in columns], names=PROBLEM.names))
        if not shared:
            teachers.append(by_id(encoded.parts[number], ENCODED.names).filter(good))
    return tables, teachers


def by_id(part: Done, columns: Sequence[str]) -> pa.Table:
    return part.place.parquet().to_table(columns=list(columns)).sort_by("sample_id")


def given_tables(place: Place) -> tuple[pa.Table, list[str], Texts | None]:
    """A problem from tables of anybody's features: tables.PROBLEM, class names, texts.

    Raises:
        UserError: A file or column is missing, or widths, labels or ids do not fit; says which.
    """
    if not (place / CLASSES_FILE).exists():
        raise UserError(f"tables: no {CLASSES_FILE} in {place}; expected a JSON list of the class names")
    classes = (place / CLASSES_FILE).read_json()
    if not isinstance(classes, list) or len(set(map(str, classes))) < len(classes) or len(classes) < 2:
        raise UserError(f"{place / CLASSES_FILE} is no list of two or more different names")
    classes, tables = list(map(str, classes)), []
    for split in SPLITS:
        file = place / f"{split}.parquet"
        if file.exists():
            tables.append(given_split(file, split, classes))
        elif split != "val":
            raise UserError(f"tables: no {file.name} in {place}; expected sample_id, label, features and logits in it")
    widths = {table["features"].type.list_size for table in tables}
    if len(widths) > 1:
        raise UserError(f"tables: features of widths {sorted(widths)} in {place}; expected one width in all files")
    whole = pa.concat_tables(tables)
    if repeated := first_duplicates(whole["sample_id"]):
        raise UserError(f"tables: {repeated[0]!r} is there more than once in {place}; expected an id for each image")
    texts = read_texts_file(place / TEXTS_FILE)
    if texts is not None and texts.directions_CD.shape != (len(classes), min(widths)):
        raise UserError(
            f"{place / TEXTS_FILE}: directions_CD is of shape {texts.directions_CD.shape}; expected "
            f"({len(classes)}, {min(widths)}): a row a class, as wide as the features"
        )
    return whole.sort_by("sample_id"), classes, texts


def given_split(file: Place, split: str, classes: Sequence[str]) -> pa.Table:
    """tables.PROBLEM of one of the given files. Raises UserError where it does not fit."""
    table = file.read_table()
    for name in ("sample_id", "label", "features", "logits"):
        if name not in table.column_names:
            raise UserError(f"{file} has no column {name!r}; it has: {', '.join(table.column_names)}")
    labels = pc.cast(table["label"], pa.string())
    known = pc.is_in(labels, value_set=pa.array(classes, pa.string()))
    if not table.num_rows or not pc.all(known).as_py():
        odd = labels.filter(pc.invert(known))
        what = f"label {odd[0].as_py()!r}, which is none of {len(classes)} classes" if len(odd) else "no rows"
        raise UserError(f"{file} has {what}; expected labeled images")
    columns = {"sample_id": pc.cast(table["sample_id"], pa.string()), "split": pa.array([split] * table.num_rows)}
    columns["label"] = labels
    for name, kind in (("features", np.float16), ("logits", np.float32)):
        rows = matrix(table[name], f"{file} {name}").astype(kind)
        if not np.isfinite(rows).all():
            first = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
            raise UserError(f"{file}: the {name} of {columns['sample_id'][first].as_py()!r} are not finite numbers")
        columns[name] = vectors(rows)
    if (width := columns["logits"].type.list_size) != len(classes):
        raise UserError(f"{file} has logits of {width} classes; classes.json has {len(classes)}")
    return pa.table(columns).select(PROBLEM.names)
