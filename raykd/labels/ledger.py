"""Every answer that people and oracles ever gave: an append-only ledger, and what its labels mean today.

An *answer* is a row of :data:`raykd.store.tables.LEDGER`. Its outcome is ``label`` (with a class) or, without one,
``unsure``, ``cannot_label`` or ``none_of_the_classes``. Two rows with the same sample_id, annotator, outcome, label
and time are one answer, whatever file and round they came in, so anything may be imported any number of times.

The current answer of a sample is the one that was appended last, whoever gave it; ``time`` is free text (ISO 8601 is
best) and decides nothing, it only tells answers apart. So A, then B, then A again is, without a time, a repeat of the
first A: B stays, and the import says so. To go back to A, give its row a ``time`` that the first A did not have.

A label stays as it was given, under the name that its class had then: so a file that is imported again after a class
was renamed is still known. Whoever reads the ledger says what old names mean now (``renamed``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from raykd.errors import UserError
from raykd.store.place import Place
from raykd.store.stage_folder import fingerprint
from raykd.store.tables import LEDGER

OUTCOMES = ("label", "unsure", "cannot_label", "none_of_the_classes")
KEY = ("sample_id", "annotator", "outcome", "label", "time")
_FILE = re.compile(r"(\d{6,})-[0-9a-f]{16}\.parquet")


class Appended(NamedTuple):
    """What :meth:`Ledger.append` did: rows that were new, rows already known, and what was asked for in vain."""

    new: int
    known: int
    superseded: tuple[str, ...]  # a sentence for each repeat of an answer that another has replaced since


@dataclass(frozen=True)
class Ledger:
    """Every answer ever given, in a folder of immutable Parquet files; nothing is ever rewritten or deleted.

    One file an import, whole or absent, named ``{sequence:06d}-{hash of its rows}.parquet``. Two imports of the same
    rows at the same moment write the same file, or rows that :meth:`read` drops as repeats. Files with any other name
    (what a killed writer left, a sync tool's copies) are not read.

    Args:
        place: The folder; made by the first append.

    Example:
        >>> ledger = Ledger(Place.of("runs/demo") / "ledger")                    # doctest: +SKIP
        >>> ledger.append(pa.Table.from_pylist([...], schema=LEDGER)).new        # doctest: +SKIP
    """

    place: Place

    def _files(self) -> list[tuple[int, str]]:
        """Sequence and path of each file, in the order appended."""
        infos = ((_FILE.fullmatch(info.base_name), info.path) for info in self.place.files())
        return sorted((int(match[1]), path) for match, path in infos if match)

    def read(self) -> pa.Table:
        """All answers, schema LEDGER, in the order appended; each once, where it came first."""
        if not (files := self._files()):
            return LEDGER.empty_table()
        paths = [path for _, path in files]
        table = pads.dataset(paths, filesystem=self.place.fs, format="parquet", schema=LEDGER).to_table()
        return table.take(np.sort(_firsts(_codes(table, KEY))))

    def current(self) -> pa.Table:
        """The answer appended last of each sample, schema LEDGER, sorted by sample_id."""
        table = self.read()
        samples = _codes(table, ["sample_id"])
        return table.take(len(samples) - 1 - _firsts(samples[::-1])).sort_by("sample_id")

    def append(self, rows: pa.Table) -> Appended:
        """Add the answers that are not there yet, all or none of them; costs one read of the ledger.

        Args:
            rows: The columns of LEDGER, others are ignored; empty text counts as null. Their order is kept.

        Returns:
            How many were new and known. A known one is reported in ``superseded`` when it has no time, the sample's
            current answer is another one, and that one is not among ``rows`` too.

        Raises:
            ValueError: A row without sample_id, of unknown outcome, or with a class where none belongs or without one.
        """
        rows = _checked(rows)
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
    rows = rows.select(LEDGER.names).cast(LEDGER)
    for index, name in enumerate(LEDGER.names):
        if name != "round":
            filled = pc.if_else(pc.equal(rows[name], ""), pa.scalar(None, pa.string()), rows[name])
            rows = rows.set_column(index, LEDGER.field(name), filled)
    known = pc.is_in(rows["outcome"], value_set=pa.array(OUTCOMES))
    fits = pc.equal(pc.equal(rows["outcome"], "label"), pc.is_valid(rows["label"]))
    good = pc.and_(pc.is_valid(rows["sample_id"]), pc.and_(known, pc.fill_null(fits, False)))
    if len(bad := rows.filter(pc.invert(good))):
        raise UserError(
            f"{len(bad)} of {len(rows)} answers are not valid, first: {bad.slice(0, 1).to_pylist()[0]}; expected a "
            f"sample_id, an outcome ({', '.join(OUTCOMES)}), and a label with the outcome 'label' only"
        )
    return rows


def _superseded(old: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    who = f"{old['annotator']} says" if old["annotator"] else "an answer says"
    by = f" ({now['annotator']})" if now["annotator"] else ""
    said, current = (repr(row["label"]) if row["outcome"] == "label" else row["outcome"] for row in (old, now))
    return f"{old['sample_id']}: {who} {said} again, but the current answer is {current}{by}; give a time to go back"
