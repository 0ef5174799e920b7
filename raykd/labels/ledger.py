"""Every answer that people and oracles ever gave: an append-only ledger, and what its labels mean today.

An *answer* is a row of :data:`raykd.store.tables.LEDGER`. Its outcome is ``label`` (with a class) or, without one,
``unsure``, ``cannot_label`` or ``none_of_the_classes``. Two rows with the same sample_id, annotator, outcome, label
and time are one answer, whatever file and round they came in, so anything may be imported any number of times.

The current answer of a sample is the one that was appended last, whoever gave it; ``time`` is free text (ISO 8601 is
best) and decides nothing, it only tells answers apart. So A, then B, then A again is, without a time, a repeat of the
first A: B stays, and the import says so. To go back to A, give its row a ``time`` that the first A did not have.

A label stays on disk as it was given, under the name that its class had then. A ledger that is told what old names
mean now (``renamed``) reads all of them as today's: a file that is imported again after a class was renamed is known.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from raykd.errors import UserError, did_you_mean
from raykd.store.outputs import renamed_labels
from raykd.store.place import Place
from raykd.store.stage_folder import fingerprint
from raykd.store.tables import LABELS, LEDGER, ROLES

OUTCOMES = ("label", "unsure", "cannot_label", "none_of_the_classes")
TAKEN_FILE = "taken.json"
KEY = ("sample_id", "annotator", "outcome", "label", "time")
_FILE = re.compile(r"(\d{6,})-[0-9a-f]{16}\.parquet")


class Appended(NamedTuple):
    """What :meth:`Ledger.append` did: rows that were new, rows already known, and what was asked for in vain."""

    new: int
    known: int
    superseded: tuple[str, ...]  # a sentence for each repeat of an answer that another has replaced since


class Asked(NamedTuple):
    """How far people are with what they were asked for."""

    asked: int
    answered: int
    needed: int  # answers that a round goes on with
    named: bool  # some answer that is learned from, to whatever image, names a class

    @property
    def enough(self) -> int:
        """So many more would do; 0: none need be answered."""
        return max(0, self.needed - self.answered)

    @property
    def waits(self) -> bool:
        """Whether a round cannot go on: with no class named there is nothing to train on."""
        return bool(self.enough) or not self.named


def count_answers(ids: pa.ChunkedArray, current: pa.Table, min_answered: float) -> Asked:
    """How many of the images have an answer (``current``: sample_id, outcome, role), and how many must.

    Args:
        min_answered: Share that a round goes on with, 0 to 1.
    """
    answered = int(pc.sum(pc.is_in(ids, value_set=current["sample_id"])).as_py() or 0)
    to_learn_from = pc.and_(pc.equal(current["outcome"], "label"), pc.equal(current["role"], ROLES[0]))
    named = bool(pc.any(to_learn_from).as_py())
    return Asked(len(ids), answered, math.ceil(min_answered * len(ids)), named)


@dataclass(frozen=True)
class Ledger:
    """Every answer ever given, in a folder of immutable Parquet files; nothing is ever rewritten or deleted.

    One file an import, whole or absent, named ``{sequence:06d}-{hash of its rows}.parquet``. Two imports of the same
    rows at the same moment write the same file, or rows that :meth:`read` drops as repeats. Files with any other name
    (what a killed writer left, a sync tool's copies) are not read.

    Args:
        place: The folder; made by the first append.
        renamed: What old class names mean now, in any number of steps (:func:`resolve_renamed`).
        asked: What a campaign has asked for, tables.ASKED: an answer to one of these images has its role and
            probability, whatever file it comes in; None: answers have what they say.

    Example:
        >>> ledger = Ledger(Place.of("runs/demo") / "ledger")                    # doctest: +SKIP
        >>> ledger.append(pa.Table.from_pylist([...], schema=LEDGER)).new        # doctest: +SKIP
    """

    place: Place
    renamed: Mapping[str, str] = field(default_factory=dict)
    asked: pa.Table | None = None

    def _files(self) -> list[tuple[int, str]]:
        """Sequence and path of each file, in the order appended."""
        infos = ((_FILE.fullmatch(info.base_name), info.path) for info in self.place.files())
        return sorted((int(match[1]), path) for match, path in infos if match)

    def read(self) -> pa.Table:
        """All answers, schema LEDGER, in the order appended; each once, where it came first. Labels by today's names.

        Raises:
            UserError: ``renamed`` leads in a circle.
        """
        if not (files := self._files()):
            return LEDGER.empty_table()
        paths = [path for _, path in files]
        table = pads.dataset(paths, filesystem=self.place.fs, format="parquet", schema=LEDGER).to_table()
        table = self._named(table)
        role = pc.fill_null(table["role"], ROLES[0])  # answers of older campaigns have none
        table = table.set_column(LEDGER.get_field_index("role"), LEDGER.field("role"), role)
        return table.take(np.sort(_firsts(_codes(table, KEY))))

    def current(self) -> pa.Table:
        """The answer appended last of each sample, schema LEDGER, sorted by sample_id."""
        table = self.read()
        samples = _codes(table, ["sample_id"])
        return table.take(len(samples) - 1 - _firsts(samples[::-1])).sort_by("sample_id")

    @property
    def taken(self) -> list[str]:
        """Where labels from elsewhere lay that are here, in the order taken."""
        file = self.place / TAKEN_FILE
        taken: list[str] = file.read_json() if file.exists() else []
        return taken

    def note_taken(self, where: str) -> None:
        """Note that all labels that lay there are here."""
        if where not in (taken := self.taken):
            (self.place / TAKEN_FILE).write_json([*taken, where])

    def _named(self, table: pa.Table) -> pa.Table:
        """The same rows, their labels by today's names."""
        labels = renamed_labels(table["label"], resolve_renamed(self.renamed))
        return table.set_column(LEDGER.get_field_index("label"), "label", labels)

    def append(self, rows: pa.Table) -> Appended:
        """Add the answers that are not there yet, all or none of them; costs one read of the ledger.

        Args:
            rows: The columns of LEDGER, others are ignored; empty text counts as null. Their order is kept. ``role``
                and ``probability`` may be missing; a role that is null or missing is ``train``.

        Returns:
            How many were new and known. A known one is reported in ``superseded`` when it has no time, the sample's
            current answer is another one, and that one is not among ``rows`` too.

        Raises:
            UserError: A row without sample_id, of unknown outcome or role, with a class where none belongs or without
                one, or drawn with a probability that is not above 0 and at most 1.
        """
        rows = self._named(_checked(rows if self.asked is None else as_asked(rows, self.asked)))
        before = self.read()
        both, start = pa.concat_tables([before, rows]), len(before)
        keys, samples, answers = (_codes(both, names) for names in (KEY, ["sample_id"], ["outcome", "label"]))
        first = _firsts(keys)
        kept = np.sort(first)
        new = both.take(kept[kept >= start])
        if len(new):
            sequence = max((number for number, _ in self._files()), default=0) + 1
            (self.place / f"{sequence:06d}-{fingerprint(new.to_pydict())}.parquet").write_table(new)

        latest = np.zeros(len(both), np.int64)  # by sample code: the position of its current answer
        np.maximum.at(latest, samples[kept], kept)
        known = start + np.flatnonzero(first[keys[start:]] < start)
        now = latest[samples[known]]
        timeless = both["time"].is_null().to_numpy()[known]
        stale = timeless & (answers[known] != answers[now]) & ~np.isin(keys[now], keys[start:])
        old_rows, now_rows = both.take(known[stale]).to_pylist(), both.take(now[stale]).to_pylist()
        superseded = tuple(map(_superseded, old_rows, now_rows))
        return Appended(len(new), len(rows) - len(new), superseded)


def as_asked(rows: pa.Table, asked: pa.Table) -> pa.Table:
    """Answers with the role and the probability with which their images were asked for (tables.ASKED), if they were.

    The role of all others is ``train``: what was not drawn measures nothing, whatever it was elsewhere.
    """
    places = pc.index_in(rows["sample_id"], value_set=asked["sample_id"])
    role = pc.fill_null(pc.take(asked["role"], places), ROLES[0])
    probability = pc.take(asked["probability"], places)
    kept = [name for name in rows.column_names if name not in ("role", "probability")]
    return rows.select(kept).append_column("role", role).append_column("probability", probability)


def _codes(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """int [n]: rows that agree in these columns have the same number, 0 to one less than there are of them."""
    codes = np.zeros(len(table), np.int64)
    for name in names:
        column = table[name].combine_chunks().dictionary_encode(null_encoding="encode")
        joint = codes * len(column.dictionary) + column.indices.to_numpy(zero_copy_only=False)
        codes = np.unique(joint, return_inverse=True)[1]
    return codes


def _firsts(codes: np.ndarray) -> np.ndarray:
    """The first position of each code, by code."""
    return np.unique(codes, return_index=True)[1]


def _checked(rows: pa.Table) -> pa.Table:
    for name in ("role", "probability"):
        if name not in rows.column_names:
            rows = rows.append_column(name, pa.nulls(len(rows), LEDGER.field(name).type))
    rows = rows.select(LEDGER.names).cast(LEDGER)
    for index, column in enumerate(LEDGER):
        if column.type == pa.string():
            missing = pa.scalar(ROLES[0] if column.name == "role" else None, pa.string())
            empty = pc.equal(pc.fill_null(rows[column.name], ""), "")
            rows = rows.set_column(index, column, pc.if_else(empty, missing, rows[column.name]))
    known = pc.is_in(rows["outcome"], value_set=pa.array(OUTCOMES))
    fits = pc.equal(pc.equal(rows["outcome"], "label"), pc.is_valid(rows["label"]))
    drawn = pc.and_(pc.greater(rows["probability"], 0), pc.less_equal(rows["probability"], 1))
    good = pc.is_valid(rows["sample_id"])
    for also in (known, pc.fill_null(fits, False), pc.is_in(rows["role"], value_set=pa.array(ROLES))):
        good = pc.and_(good, also)
    good = pc.and_(good, pc.fill_null(drawn, True))
    if len(bad := rows.filter(pc.invert(good))):
        raise UserError(
            f"{len(bad)} of {len(rows)} answers are not valid, first: {bad.slice(0, 1).to_pylist()[0]}; expected a "
            f"sample_id, an outcome ({', '.join(OUTCOMES)}), a label with the outcome 'label' only, a role "
            f"({', '.join(ROLES)}) and, of an image that was drawn at random, a probability above 0 and at most 1"
        )
    return rows


def _superseded(old: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    who = f"{old['annotator']} says" if old["annotator"] else "an answer says"
    by = f" ({now['annotator']})" if now["annotator"] else ""
    said, current = (repr(row["label"]) if row["outcome"] == "label" else row["outcome"] for row in (old, now))
    return f"{old['sample_id']}: {who} {said} again, but the current answer is {current}{by}; give a time to go back"


# ---------------------------------------------------------------- what its labels mean today


def resolve_renamed(renamed: Mapping[str, str]) -> dict[str, str]:
    """What each old name is called in the end: where a became b and b became c, both are c.

    Raises:
        UserError: Names lead back to themselves.

    Example:
        >>> resolve_renamed({"puppy": "dog", "whelp": "puppy"})
        {'puppy': 'dog', 'whelp': 'dog'}
    """
    ends = {}
    for old in renamed:
        path = [old]
        while path[-1] in renamed:
            path.append(renamed[path[-1]])
            if path[-1] in path[:-1]:
                raise UserError(
                    f"labels.renamed leads in a circle: {' -> '.join(map(repr, path))}; expected old names on the left "
                    "and, in the end, a class of today on the right"
                )
        ends[old] = path[-1]
    return ends


def current_labels(ledger: Ledger, classes: Sequence[str]) -> pa.Table:
    """The current answer of each sample, all labels among today's classes: tables.LABELS, by sample_id.

    Raises:
        UserError: A label is neither a class nor renamed to one; says which, how many, and what to write.
    """
    table = ledger.current().select(LABELS.names).cast(LABELS)
    strange = pc.and_(pc.is_valid(table["label"]), pc.invert(pc.is_in(table["label"], value_set=pa.array(classes))))
    if len(names := table["label"].filter(strange)):
        counts = [(one["values"], one["counts"]) for one in pc.value_counts(names).to_pylist()]
        counted = ", ".join(f"{name!r} ({count} {'label' if count == 1 else 'labels'})" for name, count in counts[:5])
        more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
        name = counts[0][0]
        raise UserError(
            f"{ledger.place} has labels that are no class: {counted}{more}; say what they are called now "
            f"(labels.renamed: {{{name}: ...}}), or put them back among the classes; {did_you_mean(name, classes)}"
        )
    return table
