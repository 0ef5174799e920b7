"""An opinion that people bring: a table of anybody's probabilities or logits in the teacher's place.

No model is fetched and no image is read for it. Images of the pool that have no row in it are left out of the campaign;
test and val images need none, the teacher is then measured on those that have one.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.class_list import first_choices
from raykd.errors import UserError
from raykd.models.teacher_table import TeacherTable, missing_ids
from raykd.stages.campaign import Campaign
from raykd.store.outputs import BROKEN_FILE, QUARANTINE_FILE, Encoded, Pool, manifest_content
from raykd.store.place import Place
from raykd.store.stage_folder import Done, fingerprint
from raykd.store.tables import OPINION, QUARANTINE, checked, count_splits, vectors

VERSION = 1
TABLE_FILE = "table.json"  # beside the parts of the look-up: the identity of the last table that was looked at
NO_ROW = "has no row in the teacher's table"
FILE_ROWS = 65_536


def open_brought(campaign: Campaign, pool: Pool) -> TeacherTable:
    """The table of ``teacher.table``. Raises UserError as :meth:`TeacherTable.open` says."""
    table = campaign.config.teacher.table
    assert table is not None
    return TeacherTable.open(table, pool.classes, pool.renamed, campaign.say)


def look_up(campaign: Campaign, pool: Pool) -> Encoded:
    """Which images have a row, by parts, in the place of features, which there are none of.

    A finished campaign is only looked at: its table may be another by now, or gone.

    Raises:
        UserError: More than ``max_bad_share`` of the pool have none; or as :class:`TeacherTable` says.
    """
    at = campaign.place / "encode"
    note, finished = at / TABLE_FILE, campaign.num_done >= campaign.config.rounds
    table = None if finished and note.exists() else open_brought(campaign, pool)
    name = fingerprint(table.identity if table else note.read_json())
    parts: list[Done] = []
    missing: pa.ChunkedArray | None = None
    for rows in pool.listed:
        made_from = {"table": name, "rows": manifest_content(rows)}
        folder = campaign.folder("encode", version=VERSION, made_from=made_from, at=at).under(at)
        if (done := folder.done()) is None:
            assert table is not None, folder
            if missing is None:
                missing = missing_ids(table.ids(), pool.manifest["sample_id"], table.place)
                check_missing(campaign, pool, table.place, missing)
            with folder.writing() as out:
                lost = rows.filter(pc.is_in(rows["sample_id"], value_set=missing))
                lost = lost.filter(pc.equal(lost["split"], "pool"))
                reasons = pa.array([NO_ROW] * lost.num_rows, pa.string())
                if lost.num_rows:
                    broken = pa.table([lost["sample_id"], lost["uri"], reasons], schema=QUARANTINE)
                    (out.place / BROKEN_FILE).write_json(broken.to_pylist())
                out.facts |= {"rows": rows.num_rows, "unreadable": lost.num_rows, "changes": {}}
            done = out.complete
        parts.append(done)
    if table:
        note.write_json(table.identity)
    encoded = Encoded(tuple(parts), name, at)
    if encoded.quarantine.num_rows:
        (campaign.place / QUARANTINE_FILE).write_table(encoded.quarantine)
    return encoded


def check_missing(campaign: Campaign, pool: Pool, table: Place, missing: pa.ChunkedArray) -> None:
    """Say which images have no row. Raises UserError when they are too much of the pool."""
    rows = pool.manifest.filter(pc.is_in(pool.manifest["sample_id"], value_set=missing))
    lacking = {split: count for split, count in count_splits(rows).items() if count}
    if count := lacking.pop("pool", 0):
        first = rows.filter(pc.equal(rows["split"], "pool"))["sample_id"][0].as_py()
        words = f"{count:,} of {pool.counts['pool']:,} pool images have no row in {table}, such as {first!r}"
        most = campaign.config.max_bad_share
        if count > most * pool.counts["pool"]:
            raise UserError(
                f"teacher.table: {words}, more than max_bad_share={most:g}: add their rows, or raise max_bad_share: "
                "then those images are left out"
            )
        campaign.say("encode", f"{words}: left out, listed in {campaign.place / QUARANTINE_FILE}")
    for split, count in lacking.items():
        words = f"{count:,} of {pool.counts[split]:,} {split} images have no row in {table}"
        campaign.say("encode", f"{words}: the teacher is not measured on them")


def write_brought(
    campaign: Campaign, pool: Pool, encoded: Encoded, place: Place, name: str
) -> tuple[tuple[Done, ...], bool]:
    """tables.OPINION of each part, and whether any had still to be made. Cost: one pass over the table a part."""
    parts, made = [], False
    for rows, part in zip(pool.listed, encoded.parts, strict=True):
        made_from = {"rule": name, "encode": part.fingerprint}
        folder = campaign.folder("teacher", version=VERSION, made_from=made_from, at=place / part.fingerprint)
        if (done := folder.done()) is None:
            made = True
            with folder.writing() as out:
                out.facts |= write_rows(open_brought(campaign, pool), rows, len(pool.classes), out.place)
            done = out.complete
        parts.append(done)
    return tuple(parts), made


def write_rows(table: TeacherTable, rows: pa.Table, num_classes: int, out: Place) -> dict[str, Any]:
    """What a table says of some images, written in runs of :data:`FILE_ROWS`; what it says of the class list."""
    ids, splits = (rows[name].combine_chunks() for name in ("sample_id", "split"))
    choices_C, seen_N = np.zeros(num_classes, np.int64), np.zeros(len(ids), bool)
    blocks = itertools.count()
    waiting: list[pa.Table] = []

    def write(least: int) -> None:
        if sum(map(len, waiting)) >= least:
            file = out / f"block_{next(blocks):05d}.parquet"
            file.write_table(checked(pa.concat_tables(waiting), OPINION))
            waiting.clear()

    for found, logits_NC in table.logits():
        at = pc.index_in(found, value_set=ids)
        logits_NC, at_N = logits_NC[at.is_valid().to_numpy(zero_copy_only=False)], at.drop_null().to_numpy()
        seen_N[at_N] = True
        waiting.append(opinion_rows(ids.take(at_N), splits.take(at_N), None, logits_NC))
        choices_C += first_choices(logits_NC[pc.equal(splits.take(at_N), "pool").to_numpy(zero_copy_only=False)])
        write(FILE_ROWS)
    lacking = np.flatnonzero(~seen_N)
    nothing_NC = np.full((len(lacking), num_classes), np.nan, np.float32)
    waiting.append(opinion_rows(ids.take(lacking), splits.take(lacking), NO_ROW, nothing_NC))
    write(0)
    return {"first_choices_C": choices_C.tolist(), "num_like_none": 0, "examples": []}


def opinion_rows(ids: pa.Array, splits: pa.Array, error: str | None, logits_NC: np.ndarray) -> pa.Table:
    errors = pa.array([error] * len(ids), pa.string())
    return pa.table([ids, splits, errors, vectors(logits_NC)], names=OPINION.names)
