"""The teacher's features of images, by parts: what is encoded once is found again by what it was made from.

Neither a class nor a prompt goes in, so whatever changes about those, no image is read again.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from raykd.config import ModelConfig
from raykd.images.pixel_batches import Fetch, PixelBatch
from raykd.images.transforms import ClipPreprocess
from raykd.models.teacher import ImageTower, read_clip_preprocess
from raykd.stages.map_images import (
    Model,
    check_share,
    check_splits,
    find_parts,
    make_parts,
    model_memory,
    num_missing,
    say_changes,
)
from raykd.stages.work import Work
from raykd.store.outputs import Encoded
from raykd.store.place import Place
from raykd.store.stage_folder import Done
from raykd.store.tables import ENCODED, vectors

VERSION = 1


def encode_images(
    work: Work, tables: Sequence[pa.Table], model: Done, config: ModelConfig, *, at: Place, shared: bool, decode: str,
    max_bad_share: float, quarantine: Place,
) -> Encoded:  # fmt: skip
    """The features of every image, and which cannot be read.

    Args:
        work: Where, and on which Ray.
        tables: tables.MANIFEST; each is cut into parts of its own.
        model: The fetched teacher.
        config: How it runs.
        at: Where the parts lie, each named by what it was made from.
        shared: Other jobs may make the same parts at the same time.
        decode: ``reduced`` or ``exact``.
        max_bad_share: How many may be unreadable.
        quarantine: The file to list those in.

    Raises:
        UserError: More of the images cannot be read; says which, or where the list is.
        StorageError: The network, the credentials or a disk fail.
    """
    parts = find_parts(
        work, tables, at=at, name="encode", version=VERSION, settings={"batch_size": config.batch_size}, shared=shared,
        made_from={"model": model.place.name, "precision": config.precision, "decode": decode},
    )  # fmt: skip
    encoder = Model(
        Encoder, {"folder": model.place, "config": config}, ENCODED, config.replicas, config.num_cpus, config.num_gpus,
        memory_bytes=model_memory(model.place),
    )  # fmt: skip

    def check(bad: pa.Table) -> None:
        check_splits("encode", pa.concat_tables(tables), bad, max_bad_share)

    exact = decode == "exact"
    preprocess = ClipPreprocess(read_clip_preprocess(model.place), exact)
    fetch = Fetch(preprocess, preprocess.size, config.batch_size, exact)
    done = make_parts(work, "encode", parts, fetch, encoder, check)
    encoded = Encoded(tuple(done), model.place.name, model.place)
    check_share(work, "encode", encoded, max_bad_share, quarantine)
    if num_missing(parts):
        say_changes(work, "encode", encoded)
    return encoded


def image_tower(folder: Place, config: ModelConfig) -> ImageTower:
    """The teacher's image tower, as it is to run here."""
    device = "cuda" if config.num_gpus else "cpu"
    return ImageTower(folder, config.precision, device, max(1, int(config.num_cpus)))


class Encoder:
    """The image tower over batches of images."""

    def __init__(self, folder: Place, config: ModelConfig) -> None:
        self.tower = image_tower(folder, config)

    def __call__(self, batch: PixelBatch) -> pa.Table:
        features = vectors(self.tower.features(batch.pixels)[: len(batch)], batch.bad_N)
        return pa.table({"sample_id": batch.sample_ids, "error": batch.errors, "features": features})
