"""The teacher's features of every image, once: the only stage that shows it images.

It has no opinion: no class and no prompt goes in, so whatever changes about those, nothing is read again. By parts: a
part's name is the fingerprint of what it holds, so a grown pool adds parts, and a second campaign on the same pool
finds them (``cache_path``).
"""

from __future__ import annotations

import pyarrow as pa

from raykd.config import TeacherConfig
from raykd.errors import UserError
from raykd.images.decoding import CHANGES
from raykd.images.pixel_batches import Fetch, PixelBatch
from raykd.images.transforms import ClipPreprocess
from raykd.models.teacher import ImageTower, read_clip_preprocess
from raykd.stages.budget import check_budgets
from raykd.stages.campaign import Campaign
from raykd.stages.map_images import Model, check_splits, find_parts, map_parts, model_memory, num_missing
from raykd.stages.weights import fetch_backbone, fetch_teacher
from raykd.store.outputs import QUARANTINE_FILE, Encoded, Pool
from raykd.store.place import Place
from raykd.store.tables import ENCODED, vectors

VERSION = 1


def encode(campaign: Campaign, pool: Pool) -> Encoded:
    """Features of every image, and which cannot be read.

    Raises:
        UserError: More than ``max_bad_share`` of the images cannot be read; says which, or where the list is.
        StorageError: The network, the credentials or a disk fail.
    """
    config = campaign.config.teacher
    model = fetch_teacher(campaign)
    fetch_backbone(campaign)  # what cannot be had is told now, and not when people have labeled
    decode = campaign.config.decode
    parts = find_parts(
        campaign, campaign.cache / "encode", "encode", version=VERSION, settings={"batch_size": config.batch_size},
        tables=pool.listed, shared=bool(campaign.config.cache_path),
        made_from={"model": model.place.name, "precision": config.precision, "decode": decode},
    )  # fmt: skip

    encoder = Model(
        Encoder, {"folder": model.place, "config": config}, ENCODED, config.replicas, config.num_cpus, config.num_gpus,
        memory_bytes=model_memory(model.place),
    )  # fmt: skip

    def check(bad: pa.Table) -> None:
        check_splits("encode", pool.manifest, bad, campaign.config.max_bad_share)

    preprocess = ClipPreprocess(read_clip_preprocess(model.place))
    fetch = Fetch(preprocess, preprocess.size, config.batch_size, exact=decode == "exact")
    here = campaign.session.is_local and config.replicas == 1
    if missing := num_missing(parts):
        campaign.session.ensure()
    with campaign.progress.stage("encode", missing, "images", here=here) as ticker:
        done = map_parts(parts, fetch, encoder, ticker, here=here, check=check)
    encoded = Encoded(tuple(done), model.place.name, model.place)
    check_share(campaign, encoded)
    if missing and (changes := encoded.changes):
        campaign.say("encode", "; ".join(f"{count:,} images {CHANGES[kind]}" for kind, count in changes.items()))
    if campaign.num_done < campaign.config.rounds:
        check_budgets(campaign, pool, encoded.readable(pool.split("pool")).num_rows)
    return encoded


def check_share(campaign: Campaign, encoded: Encoded) -> None:
    """Say what cannot be read, in ``quarantine.parquet`` too. Raises UserError when it is too much."""
    bad = encoded.quarantine
    if not bad.num_rows:
        return
    where = campaign.place / QUARANTINE_FILE
    where.write_table(bad)
    first = bad.slice(0, 1).to_pylist()[0]
    if bad.num_rows > campaign.config.max_bad_share * encoded.rows:
        raise UserError(
            f"{bad.num_rows} of {encoded.rows} images cannot be read, more than max_bad_share="
            f"{campaign.config.max_bad_share:g}; first {first['sample_id']!r}: {first['reason']}. All are listed in "
            f"{where}. Raise max_bad_share to go on without them, or mend them and start a new storage_path"
        )
    campaign.say(
        "encode", f"{bad.num_rows} of {encoded.rows} images cannot be read and are left out; listed in {where}"
    )


class Encoder:
    """The image tower over batches of images."""

    def __init__(self, folder: Place, config: TeacherConfig) -> None:
        device = "cuda" if config.num_gpus else "cpu"
        self.tower = ImageTower(folder, config.precision, device, max(1, int(config.num_cpus)))

    def __call__(self, batch: PixelBatch) -> pa.Table:
        features = vectors(self.tower.features(batch.pixels)[: len(batch)], batch.bad_N)
        return pa.table({"sample_id": batch.sample_ids, "error": batch.errors, "features": features})
