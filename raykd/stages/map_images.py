"""Images through a model on Ray Data: manifest rows in, one Parquet row an image out.

The same rows always share a batch, whatever Ray does first and however many replicas there are: a network's last bits
depend on the shape of a batch and the place in it, and picks can hang on a last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext

from raykd.errors import StorageError, UserError
from raykd.images.reading import ImageReader, load_many
from raykd.store.place import Place

BLOCK_ROWS = 1024  # of a task at most: enough to read a row group of Parquet once
BLOCKS_A_REPLICA = 8  # at least, when there are as many batches: so that all replicas end together
FILLER = "filler"  # the error of rows that only make the last batch as large as the others


READER = ImageReader()  # of this process: what it has read of a Parquet file serves the next batch too


class Fetch:
    """Reads images in Ray Data tasks, down to ``size``; a bad one becomes a black square and a reason.

    Args:
        transform: From an RGB image to one of ``size``.
        size: Height and width of the result, pixels.
    """

    def __init__(self, transform: Callable[[Image.Image], Image.Image], size: tuple[int, int]) -> None:
        self.transform, self.size = transform, size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        uris = [uri for uri in batch["uri"].tolist() if uri is not None]
        loaded = load_many(READER, uris, lambda image: np.asarray(self.transform(image)))
        count = len(batch["uri"])
        pixels = np.zeros((count, *self.size, 3), np.uint8)
        errors = np.full(count, FILLER, dtype=object)
        for i, image in enumerate(loaded):
            errors[i] = image if isinstance(image, str) else ""
            if not isinstance(image, str):
                pixels[i] = image
        return {"sample_id": batch["sample_id"], "split": batch["split"], "error": errors, "pixels": pixels}


@contextmanager
def workers_words() -> Iterator[None]:
    """Raise a worker's :class:`StorageError` in its own words, without the traceback and advice that Ray adds.

    Any other error of a worker is our mistake, so it must not look like one that a user can mend.
    """
    try:
        yield
    except ray.exceptions.RayTaskError as error:
        if isinstance(error, StorageError):
            raise StorageError(str(error.cause).partition("\n")[0]) from error
        raise RuntimeError(str(error)) from error


@workers_words()
def stream(
    rows: pa.Table,
    fetch: Fetch,
    model: type,
    model_arguments: dict[str, Any],
    out: Place,
    *,
    batch_size: int,
    replicas: int | tuple[int, int],
    num_cpus: float,
    num_gpus: float,
) -> None:
    """Run every row through an actor pool of ``model`` and write what it returns as Parquet under ``out``.

    What is written then has each ``sample_id`` of ``rows`` once, and no other: that is read back and checked.

    Args:
        rows: Manifest rows (sample_id, uri, split), in any order.
        model: Class of the actors; called with a batch of :class:`Fetch`'s columns, returns a ``pa.Table`` of the same
            rows, those that cannot be read too, but without those whose error is FILLER.
        model_arguments: Its constructor's keyword arguments.
        replicas: Number of actors, or the least and the most.

    Raises:
        ValueError: A row was lost, written more than once, or is none of those given.
        StorageError: Images cannot be read because of the network, the credentials or a disk.
    """
    low, high = (replicas, replicas) if isinstance(replicas, int) else replicas
    keys = ("split", "uri", "sample_id")  # as they are stored; a split's rows lie together; an image may be there twice
    order = [(key, "ascending") for key in keys]
    table = rows.select(["sample_id", "uri", "split"]).sort_by(order)
    missing = math.ceil(table.num_rows / batch_size) * batch_size - table.num_rows
    filler = pa.table([pa.nulls(missing, pa.string())] * 3, schema=table.schema)
    table = pa.concat_tables([table, filler]).combine_chunks()
    batches = min(table.num_rows // (BLOCKS_A_REPLICA * high * batch_size), BLOCK_ROWS // batch_size)
    block_rows = batch_size * max(1, batches)
    blocks = [table.slice(start, block_rows) for start in range(0, table.num_rows, block_rows)]
    context = DataContext.get_current()
    context.raise_original_map_exception = True  # or a StorageError arrives as its traceback's text
    block_bytes = 3 * block_rows * math.prod(fetch.size)  # Ray must not split a block, or batches would mix
    context.target_max_block_size = max(context.target_max_block_size or 0, 2 * block_bytes)
    (
        ray.data.from_arrow(blocks)
        .map_batches(fetch, batch_size=None)
        .map_batches(
            model,
            fn_constructor_kwargs=model_arguments,
            batch_size=batch_size,
            num_cpus=num_cpus,
            num_gpus=num_gpus or None,
            compute=ActorPoolStrategy(min_size=low, max_size=high),
        )
        .write_parquet(out.path, filesystem=out.fs)
    )
    check_ids(rows["sample_id"], out.read_table(["sample_id"])["sample_id"])


def check_ids(given: pa.ChunkedArray, written: pa.ChunkedArray) -> None:
    """Whether what was written has each of the given ids once. Raises ValueError with the first that it has not."""
    counts = pc.value_counts(written)
    for problem, ids in (
        ("were not written", given.filter(pc.invert(pc.is_in(given, value_set=written)))),
        ("were written more than once", counts.field("values").filter(pc.greater(counts.field("counts"), 1))),
        ("were written, but never asked for", written.filter(pc.invert(pc.is_in(written, value_set=given)))),
    ):
        if len(ids):
            raise UserError(
                f"{len(ids):,} of {len(given):,} images {problem}, first {sorted(ids.to_pylist(), key=str)[0]!r}; "
                "nothing of this stage is kept: run the same command again"
            )
