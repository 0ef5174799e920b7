"""Images through a model on Ray Data: manifest rows in, one Parquet row an image out.

The same rows always share a batch, whatever Ray does first and however many replicas there are: a network's last bits
depend on the shape of a batch and the place in it, and picks can hang on a last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext

from raykd.images import ImageReader, load_many
from raykd.storage import Place

FILLER = "filler"  # the error of rows that only make the last batch as large as the others


class Fetch:
    """Reads and decodes images in Ray Data tasks; a bad one becomes a black square and a reason.

    Args:
        transform: From an RGB image to one of ``size``.
        size: Height and width of the result, pixels.
    """

    def __init__(self, transform: Callable[[Image.Image], Image.Image], size: tuple[int, int]) -> None:
        self.transform, self.size = transform, size

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        uris = [uri for uri in batch["uri"].tolist() if uri is not None]
        loaded = load_many(ImageReader(), uris)
        count = len(batch["uri"])
        pixels = np.zeros((count, *self.size, 3), np.uint8)
        errors = np.full(count, FILLER, dtype=object)
        for i, image in enumerate(loaded):
            errors[i] = image if isinstance(image, str) else ""
            if not isinstance(image, str):
                pixels[i] = np.asarray(self.transform(image))
        return {"sample_id": batch["sample_id"], "split": batch["split"], "error": errors, "pixels": pixels}


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

    Args:
        rows: Manifest rows (sample_id, uri, split), in any order.
        model: Class of the actors; called with a batch of :class:`Fetch`'s columns, returns a ``pa.Table`` without
            the rows whose error is FILLER.
        model_arguments: Its constructor's keyword arguments.
        replicas: Number of actors, or the least and the most.
    """
    low, high = (replicas, replicas) if isinstance(replicas, int) else replicas
    table = rows.select(["sample_id", "uri", "split"]).sort_by("sample_id")
    missing = math.ceil(table.num_rows / batch_size) * batch_size - table.num_rows
    filler = pa.table([pa.nulls(missing, pa.string())] * 3, schema=table.schema)
    table = pa.concat_tables([table, filler]).combine_chunks()
    blocks = [table.slice(start, batch_size) for start in range(0, table.num_rows, batch_size)]
    context = DataContext.get_current()
    batch_bytes = 3 * batch_size * math.prod(fetch.size)  # a block that Ray splits would not stay one batch
    context.target_max_block_size = max(context.target_max_block_size or 0, 2 * batch_bytes)
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
