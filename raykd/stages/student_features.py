"""What a frozen student is given in the place of images: a network's features of each, stored once, by parts.

They are found by what they were made from, as the teacher's are: neither a class, nor a label, nor a teacher goes in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from raykd.config import StudentConfig
from raykd.images.pixel_batches import Fetch, PixelBatch
from raykd.models.preprocess import read_preprocess
from raykd.stages.campaign import Campaign
from raykd.stages.map_images import Model, Part, check_share, check_splits, find_parts, make_parts, model_memory
from raykd.stages.weights import fetch_network, network_named
from raykd.store.outputs import QUARANTINE_FILE, Encoded, Pool, StudentFeatures, Trained
from raykd.store.place import Place
from raykd.store.stage_folder import Done
from raykd.store.tables import ENCODED, vectors

VERSION = 1
NAME = "student features"


def with_student_features(campaign: Campaign, pool: Pool, encoded: Encoded) -> Encoded:
    """The same, with the features that a frozen student is given; images that have none cannot be read.

    Raises:
        UserError: More than ``max_bad_share`` of the images cannot be read; or the weights cannot be had.
        StorageError: The network, the credentials or a disk fail.
    """
    config = campaign.config
    network = fetch_network(campaign)
    if config.student.network is None:
        return replace(encoded, for_student=StudentFeatures(encoded.parts, network, config.decode))
    found = replace(encoded, for_student=encode_for_student(campaign, pool.listed, network, config.decode))
    if found.quarantine.num_rows > encoded.quarantine.num_rows:
        check_share(campaign, NAME, found, config.max_bad_share, campaign.place / QUARANTINE_FILE)
    return found


def features_of(campaign: Campaign, encoded: Encoded, trained: Trained, parts: Sequence[Part]) -> dict[int, Done]:
    """The features that a student was trained on, of the rows of each of these parts that is still to be made.

    They are there already, but for images that have come since the config names others.

    Args:
        parts: Of every image.
    """
    key, now = trained.features, encoded.for_student
    assert key is not None
    missing = {number: part.rows for number, part in enumerate(parts) if part.done is None}
    if now is not None and now.key == key:
        assert len(now.parts) == len(parts)
        return {number: now.parts[number] for number in missing}
    found = encode_for_student(campaign, list(missing.values()), network_named(campaign, key["network"]), key["decode"])
    return dict(zip(missing, found.parts, strict=True))


def encode_for_student(campaign: Campaign, tables: Sequence[pa.Table], network: Done, decode: str) -> StudentFeatures:
    """A network's features of the images of tables.MANIFEST: clean crop, no augmentation."""
    config, student = campaign.config, campaign.config.student
    parts = find_parts(
        campaign, tables, at=campaign.cache / "encode", name=NAME, version=VERSION,
        settings={"batch_size": student.predict_batch_size}, shared=bool(config.cache_path),
        made_from={"network": network.place.name, "decode": decode},
    )  # fmt: skip
    encoder = Model(
        NetworkEncoder, {"network": network.place, "config": student}, ENCODED, student.predict_replicas,
        student.num_cpus, student.num_gpus, memory_bytes=model_memory(network.place),
    )  # fmt: skip

    def check(bad: pa.Table) -> None:
        check_splits(NAME, pa.concat_tables(tables), bad, config.max_bad_share)

    preprocess, exact = read_preprocess(network.place), decode == "exact"
    size = (preprocess.image_size, preprocess.image_size)
    fetch = Fetch(preprocess.clean(exact), size, student.predict_batch_size, exact)
    return StudentFeatures(tuple(make_parts(campaign, NAME, parts, fetch, encoder, check)), network, decode)


class NetworkEncoder:
    """The network over batches of images."""

    def __init__(self, network: Place, config: StudentConfig) -> None:
        from raykd.models.frozen import FrozenNetwork

        self.network = FrozenNetwork(network, "cuda" if config.num_gpus else "cpu", max(1, int(config.num_cpus)))

    def __call__(self, batch: PixelBatch) -> pa.Table:
        features = vectors(self.network.features(batch.pixels)[: len(batch)], batch.bad_N)
        return pa.table({"sample_id": batch.sample_ids, "error": batch.errors, "features": features})
