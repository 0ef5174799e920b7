"""Images through a model on Ray Data, by parts: fixed runs of manifest rows, each complete or absent.

A kill costs the parts in flight, and rows that are added later are parts of their own. The same rows always share a
batch, whatever Ray does first and however many replicas there are: a network's last bits depend on the shape of a batch
and the place in it, and picks can hang on a last bit.

Ray Data's tasks read and crop; the model runs in an actor pool, or, on a Ray of this machine with one replica, in this
process, which has its libraries already.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from raykd.config import least
from raykd.errors import StorageError, UserError, for_the_reader
from raykd.images.decoding import CHANGES, UNREACHABLE
from raykd.images.pixel_batches import PIXEL_BATCHES, URI_BATCHES, Fetch, FetchViews, batches_of
from raykd.models.saved import MODEL_BYTES
from raykd.models.threads import num_cores
from raykd.stages.progress import Ticker
from raykd.stages.resources import Bundles, check_memory, given_up, shortage
from raykd.stages.work import Work
from raykd.store.outputs import BROKEN_FILE, FromImages
from raykd.store.place import Place
from raykd.store.stage_folder import Done, StageFolder, Writing, fingerprint
from raykd.store.tables import QUARANTINE, checked, too_much_of_a_split

PART_ROWS = 16_384  # of a part at most: what a kill may cost
BLOCK_ROWS = 1024  # of a reading task at most: enough to read a row group of Parquet once
BLOCKS_A_REPLICA = 32  # at least, when there are as many batches: so that all readers and replicas end together
FLOW_BYTES = 8 * 2**20  # of pixels that go from one process to another at a time: little, as the first is waited for
WRITTEN_ROWS = 4096  # of a file, about
WRITE_BYTES = 512 * 2**20  # of a process that writes
SHOWN_REASONS = 4  # why images cannot be read
RECEIPT = pa.schema([("part", pa.int64()), ("rows", pa.int64()), ("changes", PIXEL_BATCHES.field("changes").type)])
ROWS = ("sample_id", "uri", "split")
STAMPS = ("size_bytes", "mtime_ns")


@dataclass(frozen=True)
class Model:
    """How to make the model, and what it runs on.

    Args:
        kind: Class; called with a :class:`PixelBatch`, its objects return a table of its rows, those that cannot be
            read too.
        arguments: Its constructor's keyword arguments.
        schema: Of the table.
        replicas: Number of actors, or the least and the most.
        num_cpus, num_gpus: Of each.
        memory_bytes: Of each, about.
    """

    kind: type
    arguments: dict[str, Any]
    schema: pa.Schema
    replicas: int | tuple[int, int]
    num_cpus: float
    num_gpus: float
    memory_bytes: int

    def lacks(self) -> str | None:
        """Why there is no room for it now; None where there is. Ray must be up."""
        return shortage(Bundles(least(self.replicas), self.num_cpus, self.num_gpus, beside=1))


def model_memory(place: Place) -> int:
    """What a process needs that loads the weights in a folder, about."""
    return MODEL_BYTES + 2 * sum(info.size for info in place.files())


# ---------------------------------------------------------------- parts


def cut(rows: pa.Table) -> Iterator[pa.Table]:
    """Fixed runs of manifest rows: by uri, as they are stored, so that what is read together lies together."""
    rows = rows.select([*ROWS, *STAMPS]).sort_by([("uri", "ascending"), ("sample_id", "ascending")]).combine_chunks()
    for start in range(0, rows.num_rows, PART_ROWS):
        yield rows.slice(start, PART_ROWS)


class Part(NamedTuple):
    """A run of rows, its folder, and what that holds when it is complete."""

    folder: StageFolder
    rows: pa.Table
    done: Done | None


def find_parts(
    work: Work, tables: Iterable[pa.Table], *, at: Place, name: str, version: int, made_from: dict[str, Any],
    settings: dict[str, Any], shared: bool = False,
) -> list[Part]:  # fmt: skip
    """A part for each run of the tables' rows, named by what it is made from: so what is there already is found.

    Args:
        work: What it is part of.
        tables: tables.MANIFEST.
        at: Where the parts lie.
        name: What messages call them.
        settings: What has so small a part in it that a part made with others is as good, such as the batch size.
    """
    parts = []
    for run in (run for table in tables for run in cut(table)):
        inputs = {**made_from, "rows": names_of(run)}
        folder = work.stage_folder(at, name, version=version, made_from=inputs, settings=settings, shared=shared).under(
            at
        )
        parts.append(Part(folder, run, folder.done()))
    return parts


def names_of(rows: pa.Table) -> str:
    """Names a run of rows, in order: ids, uris, and what is known of the files. About 10 ms for 16,384 rows.

    So other images under the same names are not taken for those that were read before.
    """
    stamps = [rows[name].fill_null(-1).to_numpy().tobytes().hex() for name in STAMPS]
    texts = [pa.ListArray.from_arrays([0, rows.num_rows], rows[name].combine_chunks()) for name in ("sample_id", "uri")]
    return fingerprint([rows.num_rows, *stamps, *(pc.binary_join(text, "\n")[0].as_py() for text in texts)])


def num_missing(parts: Sequence[Part]) -> int:
    """Rows of the parts that are still to be made."""
    return sum(part.rows.num_rows for part in parts if part.done is None)


def make_parts(
    work: Work,
    name: str,
    parts: Sequence[Part],
    fetch: Fetch | FetchViews,
    model: Model,
    check: Callable[[pa.Table], None],
) -> list[Done]:
    """:func:`map_parts` as a step of this name, shown as it goes; Ray is started only when something is missing.

    Raises:
        UserError: No node has the memory that a process declares; or as :func:`map_parts` says.
    """
    here = work.session.is_local and model.replicas == 1
    if missing := num_missing(parts):
        work.session.ensure()
        check_memory(work, name, max(fetch.memory_bytes, 0 if here else model.memory_bytes))
    with work.progress.stage(name, missing, "images", here=here, lacks=model.lacks) as ticker:
        return map_parts(parts, fetch, model, ticker, here=here, check=check)


def map_parts(
    parts: Sequence[Part],
    fetch: Fetch | FetchViews,
    model: Model,
    ticker: Ticker,
    *,
    here: bool,
    check: Callable[[pa.Table], None],
) -> list[Done]:
    """The parts, complete; those that are not yet are made, whatever number of them was made before.

    A part's folder holds ``block_*.parquet`` (the model's schema) with each row once, which is checked, and, when some
    cannot be read, ``quarantine.json``. A part with images that are out of reach is only complete when ``check``
    bears what is missing in all: they may be back at the next attempt. Broken ones stay broken.

    Args:
        parts: As :func:`find_parts` gives them.
        fetch: Reads them.
        model: What they go through.
        ticker: Told of rows done.
        here: Run the model in this process instead of actors; then there is one.
        check: Given the quarantined rows of this call, raises when they are too many.

    Raises:
        UserError: A row was lost, written more than once, or is none of those given; or what ``check`` raises.
        StorageError: Images cannot be read because of the network, the credentials or a disk.
    """
    done = [part.done for part in parts]
    missing = [number for number, found in enumerate(done) if found is None]
    if not missing:
        return [found for found in done if found]
    writings: dict[int, Writing] = {}
    left: Counter[int] = Counter({number: parts[number].rows.num_rows for number in missing})
    bad: list[pa.Table] = []
    held: dict[int, Writing] = {}
    try:
        for number in missing:
            writings[number] = parts[number].folder.begin()
        places = {number: out.place for number, out in writings.items()}
        runs = {number: parts[number].rows for number in missing}
        changes: dict[int, Counter[str]] = {number: Counter() for number in missing}
        for number, count, changed in run(runs, places, fetch, model, ticker, here):
            left[number] -= count
            changes[number].update(changed)
            if left[number] > 0:
                continue
            out, rows = writings.pop(number), parts[number].rows
            held[number] = out
            table = out.place.read_table(["sample_id", "error"])
            check_ids(rows["sample_id"], table["sample_id"])
            broken = quarantined(table, rows)
            out.facts |= {"rows": rows.num_rows, "unreadable": broken.num_rows, "changes": dict(changes[number])}
            if broken.num_rows:
                (out.place / BROKEN_FILE).write_json(broken.to_pylist())
                bad.append(broken)
            if not pc.any(pc.starts_with(broken["reason"], UNREACHABLE)).as_py():
                done[number] = out.commit()
                del held[number]
        if writings:
            number = min(writings)
            raise UserError(
                f"{parts[number].folder.name}: {left[number]:,} images of it were not written; nothing of it is kept: "
                "run the same command again"
            )
        check(pa.concat_tables([QUARANTINE.empty_table(), *bad]))
        for number in list(held):
            done[number] = held[number].commit()
            del held[number]
    finally:
        for out in [*writings.values(), *held.values()]:
            out.abandon()
    return [found for found in done if found]


def quarantined(table: pa.Table, rows: pa.Table) -> pa.Table:
    bad = table.filter(pc.is_valid(table["error"]))
    uris = pc.take(rows["uri"], pc.index_in(bad["sample_id"], value_set=rows["sample_id"]))
    return pa.table([bad["sample_id"], uris, bad["error"]], schema=QUARANTINE).sort_by("sample_id")


def check_ids(given: pa.ChunkedArray, written: pa.ChunkedArray) -> None:
    """Whether what was written has each of the given ids once. Raises UserError with the first that it has not."""
    counts = pc.value_counts(written)
    for problem, ids in (
        ("were not written", given.filter(pc.invert(pc.is_in(given, value_set=written)))),
        ("were written more than once", counts.field("values").filter(pc.greater(counts.field("counts"), 1))),
        ("were written, but never asked for", written.filter(pc.invert(pc.is_in(written, value_set=given)))),
    ):
        if len(ids):
            raise UserError(
                f"{len(ids):,} of {len(given):,} images {problem}, first {sorted(ids.to_pylist(), key=str)[0]!r}; "
                "nothing of this part is kept: run the same command again"
            )


def check_splits(stage: str, rows: pa.Table, bad: pa.Table, max_bad_share: float) -> None:
    """Whether enough of each split is within reach, to be asked before parts are complete.

    Args:
        stage: Its name, for the reader.
        rows: The manifest rows that it was to read.
        bad: tables.QUARANTINE of those that it could not; broken ones do not count, they stay so.

    Raises:
        UserError: Too much of a split is away; names the split and one image.
    """
    away = bad.filter(pc.starts_with(bad["reason"], UNREACHABLE))
    missing = rows.filter(pc.is_in(rows["sample_id"], value_set=away["sample_id"]))
    if found := too_much_of_a_split(missing, rows, max_bad_share):
        split, gone, count = found
        first = missing.filter(pc.equal(missing["split"], split)).sort_by("sample_id").slice(0, 1).to_pylist()[0]
        raise UserError(
            f"{stage}: {gone} of {count} {split} images cannot be read now, more than max_bad_share="
            f"{max_bad_share:g}; first {first['sample_id']!r}, expected at {first['uri']!r}. The parts that they "
            "are in are not kept: put them back, let this user read them, and run again; or raise max_bad_share"
        )


def check_share(work: Work, name: str, made: FromImages, max_bad_share: float, where: Place) -> None:
    """Say what cannot be read, and list it in a file. Raises UserError when it is too much."""
    bad = made.quarantine
    if not bad.num_rows:
        return
    if not (where.exists() and where.read_table().equals(bad)):  # a colleague may only look
        where.write_table(bad)
    first = bad.slice(0, 1).to_pylist()[0]
    if bad.num_rows > max_bad_share * made.rows:
        raise UserError(
            f"{bad.num_rows} of {made.rows} images cannot be read, more than max_bad_share="
            f"{max_bad_share:g}; first {first['sample_id']!r}: {first['reason']}. All are listed in "
            f"{where}. Raise max_bad_share to go on without them, or mend them and begin in a new folder"
        )
    reasons = sorted(Counter(bad["reason"].to_pylist()).items(), key=lambda pair: (-pair[1], pair[0]))
    said = [f"{count:,} {reason}" for reason, count in reasons[:SHOWN_REASONS]]
    said += [f"{len(reasons) - SHOWN_REASONS} more reasons"] if len(reasons) > SHOWN_REASONS else []
    counted = f"{bad.num_rows:,} of {made.rows:,} images cannot be read and are left out"
    work.say(name, f"{counted}, listed in {where}: {'; '.join(said)}")


def say_changes(work: Work, name: str, made: FromImages) -> None:
    """Say what was done to images on their way."""
    if changes := made.changes:
        work.say(name, "; ".join(f"{count:,} images {CHANGES[kind]}" for kind, count in changes.items()))


# ---------------------------------------------------------------- the pipeline


class Receipt(NamedTuple):
    """That rows of a part were written, and what was done to images among them."""

    part: int
    rows: int
    changes: dict[str, int]


def run(
    runs: dict[int, pa.Table],
    places: dict[int, Place],
    fetch: Fetch | FetchViews,
    model: Model,
    ticker: Ticker,
    here: bool,
) -> Iterator[Receipt]:
    """Write the runs' rows to their places as they come."""
    low, high = (model.replicas, model.replicas) if isinstance(model.replicas, int) else model.replicas
    blocks = even_blocks(runs, fetch.batch_size, high)
    write = WriteBlock(places, model.schema)
    with data_context(), workers_words(model.lacks):
        fetched = ray.data.from_blocks(blocks).map_batches(  # from_arrow would start a task for each
            fetch,
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            memory=fetch.memory_bytes,
            # cores, not logical CPUs; one more, as a task that ends leaves a gap
            compute=TaskPoolStrategy(min(len(blocks), num_cores() + 1) if here else None),
        )
        if here:
            yield from run_here(fetched, fetch, model, write, ticker)
            return
        receipts = fetched.map_batches(
            Counted,
            fn_constructor_kwargs={"model": model, "size": fetch.size, "ticker": ticker},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=model.num_cpus,
            num_gpus=model.num_gpus or None,
            memory=model.memory_bytes,
            compute=ActorPoolStrategy(min_size=low, max_size=high),
        ).map_batches(write, batch_size=None, batch_format="pyarrow", num_cpus=0.1, memory=WRITE_BYTES)
        for row in receipts.iter_rows():
            yield Receipt(row["part"], row["rows"], dict(row["changes"]))


def run_here(
    fetched: Dataset, fetch: Fetch | FetchViews, model: Model, write: WriteBlock, ticker: Ticker
) -> Iterator[Receipt]:
    """The model in this process: batches of one part are written together."""
    blocks = iter(fetched.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1))
    with ThreadPoolExecutor(1) as reading:
        first = reading.submit(next, blocks, None)  # while the model is loaded
        replica = Counted(model, fetch.size, ticker)
        block = first.result()
    waiting: list[pa.Table] = []
    while block is not None:
        for table in replica.tables(block):
            if waiting and (waiting[0]["part"][0] != table["part"][0] or sum(map(len, waiting)) >= WRITTEN_ROWS):
                yield from receipts_of(write(pa.concat_tables(waiting)))
                waiting = []
            waiting.append(table)
        block = next(blocks, None)
    if waiting:
        yield from receipts_of(write(pa.concat_tables(waiting)))


def receipts_of(table: pa.Table) -> Iterator[Receipt]:
    for row in table.to_pylist():
        yield Receipt(row["part"], row["rows"], dict(row["changes"]))


def even_blocks(runs: dict[int, pa.Table], batch_size: int, most_replicas: int) -> list[pa.Table]:
    """URI_BATCHES, none with rows of two runs: so a row's batch is a matter of its run alone.

    There are enough blocks for all replicas to end at about the same time.
    """
    total = sum(math.ceil(rows.num_rows / batch_size) for rows in runs.values())
    batches = max(1, min(total // (BLOCKS_A_REPLICA * most_replicas), BLOCK_ROWS // batch_size))
    blocks = []
    for number, rows in runs.items():
        starts = [*range(0, rows.num_rows, batch_size), rows.num_rows]
        lists = [pa.ListArray.from_arrays(starts, rows[name].combine_chunks()) for name in ROWS]
        parts = pa.array(np.full(len(starts) - 1, number, np.int64))
        whole = pa.table([parts, *lists], schema=URI_BATCHES)
        blocks += [whole.slice(start, batches) for start in range(0, whole.num_rows, batches)]
    return blocks


class Counted:
    """The model of an actor or of this process: its table, with the number of the part and what was done to images."""

    def __init__(self, model: Model, size: tuple[int, int], ticker: Ticker) -> None:
        self.replica, self.size, self.ticker = model.kind(**model.arguments), size, ticker

    def __call__(self, block: pa.Table) -> pa.Table:
        return pa.concat_tables(self.tables(block))

    def tables(self, block: pa.Table) -> Iterator[pa.Table]:
        """A table of each batch of the block."""
        for batch in batches_of(block, self.size):
            table = self.replica(batch)
            self.ticker.add(len(batch))
            changes = [list(batch.changes.items()), *[[]] * (len(batch) - 1)]  # of the batch, at its first row
            table = table.append_column("part", pa.array(np.full(len(batch), batch.part, np.int64)))
            yield table.append_column("changes", pa.array(changes, RECEIPT.field("changes").type))


@dataclass(frozen=True)
class WriteBlock:
    """Writes a block of one part beside its others; the same rows again give the same file."""

    places: dict[int, Place]
    schema: pa.Schema

    def __call__(self, block: pa.Table) -> pa.Table:
        receipts = []
        for number in block["part"].unique().to_pylist():
            rows = block.filter(pc.equal(block["part"], number))
            changes: Counter[str] = Counter()
            for some in rows["changes"].to_pylist():
                changes.update(dict(some))
            rows = rows.drop_columns(["part", "changes"])
            name = f"block_{fingerprint(rows['sample_id'].to_pylist())}.parquet"
            (self.places[number] / name).write_table(checked(rows, self.schema))
            receipts.append({"part": number, "rows": rows.num_rows, "changes": list(changes.items())})
        return pa.Table.from_pylist(receipts, RECEIPT)


@contextmanager
def data_context() -> Iterator[None]:
    """Ray Data as this pipeline needs it: pixels flow in small blocks; errors come as they are."""
    context = DataContext.get_current()
    before = context.raise_original_map_exception, context.target_max_block_size
    context.raise_original_map_exception = True  # or a StorageError arrives as its traceback's text
    context.target_max_block_size = FLOW_BYTES
    try:
        yield
    finally:
        context.raise_original_map_exception, context.target_max_block_size = before


@contextmanager
def workers_words(lacks: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Raise what a user can mend of a worker's errors in its own words, without the traceback that Ray adds.

    Any other error of a worker is our mistake, so it must not look like one that a user can mend.

    Args:
        lacks: Says what was missing when nothing was done for too long.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if (words := for_the_reader(error)) is not None:
            raise StorageError(words.partition("\n")[0]) from error
        raise RuntimeError(str(error)) from error
    except ExecutionTimeoutError as error:
        why = lacks() or "the nodes have room for it, so a machine, the storage or Ray hangs"
        seconds = DataContext.get_current().execution_no_progress_timeout_s
        raise given_up(f"no image came for {seconds:g} s", why) from error
