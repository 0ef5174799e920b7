"""What jobs on any pool share, without a campaign: a table in a folder, made by parts that lie in a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raykd.config import Source
from raykd.errors import StorageError, UserError
from raykd.images.sources import Listing, check_ids_differ, list_source
from raykd.pool_options import PoolOptions
from raykd.stages.progress import Progress
from raykd.stages.session import Session
from raykd.stages.work import Work
from raykd.stages.zero_shot import each_part
from raykd.store.lock import only_job
from raykd.store.outputs import QUARANTINE_FILE, FromImages
from raykd.store.place import Place
from raykd.store.stage_folder import Done, StageFolder, Writing, read_done
from raykd.store.tables import GROUP_ROWS, checked, positions

NAMED = ["sample_id", "uri", "label"]  # how a table begins


@dataclass(frozen=True, kw_only=True)
class PoolRequest:
    """Which images, and where the table goes.

    Args:
        source: The images.
        decode: ``reduced`` or ``exact``.
        out: The folder of the table, complete or absent; never overwritten.
    """

    source: Source
    decode: str
    out: Place


@contextmanager
def pool_job(options: PoolOptions, classes: Sequence[str] | None) -> Iterator[tuple[Work, dict[str, Any]]]:
    """What a job works in while the block runs: a cache that is its alone, with a Ray when one is needed.

    Args:
        options: Of the command.
        classes: The names, where they are known.

    Yields:
        That, and the fields of :class:`PoolRequest`.

    Raises:
        UserError: There is nothing to read, or nothing can be written; another job is at work in the cache.
    """
    out, cache = options.places
    for option, place in (("--out", out), ("--cache", cache)):
        check_folder_to_write(option, place)
    progress = Progress()
    request = {"source": options.source(classes, progress.say), "decode": options.decode, "out": out}
    with Session(options.local_cpus, options.stall_s, progress) as session, only_job(cache) as still_ours:
        yield Work(place=cache, progress=progress, session=session, still_ours=still_ours), request


def check_folder_to_write(option: str, place: Place) -> None:
    """Whether a folder is there or can be made. Raises UserError that names the option."""
    if place.exists() and not place.is_dir():
        raise UserError(f"{option}: {place} is a file; give a folder")
    try:
        place.check_writable()
    except StorageError as error:
        raise UserError(f"{option}: {error}") from error


def listed_pool(work: Work, source: Source, classes: list[str] | None) -> Listing:
    """The images. Raises UserError: there are none, or ids repeat."""
    listing = list_source(source, "pool", classes, work.say, work.place / "tars")
    check_ids_differ(listing.rows)
    return listing


def finished_table(folder: StageFolder) -> Done | None:
    """The table, when it is there.

    Raises:
        UserError: The folder holds another one, or something else.
    """
    out = folder.place
    if there := read_done(out):
        if other := folder.inputs_changed(there):
            fields = dict.fromkeys(line.partition(":")[0].removeprefix("asked.") for line in other)
            what = ", ".join("images" if name == "rows" else name for name in fields)
            raise UserError(f"{out} holds another table: of other {what}; give another --out")
        return there
    if out.files(recursive=True):
        raise UserError(f"--out: {out} holds files that are no table of this job; give a new folder")
    return None


def write_parts(
    work: Work, out: Writing, made: FromImages, rows: pa.Table, num_cpus: float, write: Callable[..., dict[str, Any]],
    *arguments: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """The table, a file a part: what ``write(part, file, *arguments, rows)`` gives of each, summed up in the facts.

    Args:
        out: The table's folder.
        made: The parts.
        rows: tables.MANIFEST.
        num_cpus: Of a task, on a cluster.
        write: Ends with :func:`write_part`.

    Raises:
        UserError: Not one of the images can be read.
    """
    if made.rows == made.quarantine.num_rows:
        first, where = made.quarantine["reason"][0].as_py(), work.place / QUARANTINE_FILE
        raise UserError(
            f"none of {made.rows:,} images can be read, the first one as {first}; all are listed in {where}"
        )
    calls = [
        (part.place, out.place / f"part_{number:05d}.parquet", *arguments) for number, part in enumerate(made.parts)
    ]
    written = each_part(work, num_cpus, write, calls, rows.select(NAMED))
    out.facts |= {name: sum(part[name] for part in written) for name in ("rows", "labeled", "right")}
    out.facts["unreadable"] = made.quarantine.num_rows
    return written


def write_table_part(
    file: Place, rows: pa.Table, ids: pa.ChunkedArray, columns: dict[str, Any], likeliest: pa.Array,
    classes: Sequence[str], schema: pa.Schema,
) -> dict[str, int]:  # fmt: skip
    """A file of a table, with uri and label of its images; how many there are, have a label, and are right.

    Args:
        file: To write.
        rows: tables.MANIFEST.
        ids: Of the images.
        columns: What is known of them, in the same order.
        likeliest: Their likeliest classes, by name.
        classes: What counts as a label.
        schema: Of the table.
    """
    mine = rows.take(positions(ids, rows["sample_id"], "the listing"))
    named = {name: mine[name] for name in NAMED}
    file.write_table(checked(pa.table(named | columns), schema), row_group_rows=GROUP_ROWS)
    right = pc.fill_null(pc.equal(mine["label"], likeliest), False)
    labeled = pc.is_in(mine["label"], value_set=pa.array(classes, pa.string()), skip_nulls=True)
    return {"rows": len(ids), "labeled": pc.sum(labeled).as_py() or 0, "right": pc.sum(right).as_py() or 0}


def tell(work: Work, done: Done, seconds: float) -> None:
    """What a job ends with."""
    facts = done.facts
    print(f"{facts['rows']:,} images, {len(facts['classes'])} classes, {seconds:.1f} s; {done.place}")
    if facts["labeled"]:
        print(f"right on {facts['right'] / facts['labeled']:.1%} of the {facts['labeled']:,} that have a label")
    if facts["unreadable"]:
        print(f"{facts['unreadable']:,} images could not be read: {work.place / QUARANTINE_FILE}")
