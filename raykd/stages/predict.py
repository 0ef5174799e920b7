"""The student over every image, clean crop: its logits and features, by parts."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from raykd.config import StudentConfig
from raykd.images.pixel_batches import Fetch, PixelBatch
from raykd.models.preprocess import read_preprocess
from raykd.stages.campaign import Campaign
from raykd.stages.map_images import Model, check_splits, find_parts, make_parts, model_memory
from raykd.store.outputs import Encoded, Pool, Predictions, Trained
from raykd.store.place import Place
from raykd.store.tables import predicted, vectors

VERSION = 1


def predict(campaign: Campaign, number: int, pool: Pool, encoded: Encoded, trained: Trained) -> Predictions:
    """What a round's student says of pool, val and test images.

    As in the teacher's table, an image that cannot be read (any more) has a reason in ``error`` and NaN for vectors.
    Images that have come into the pool since are parts that are still to be made, whenever that is.

    Raises:
        UserError: More than ``max_bad_share`` of a split, readable when the teacher saw it, cannot be read any more.
        StorageError: The network, the credentials or a disk fail.
    """
    config = campaign.config.student
    rows = encoded.readable(pool.manifest)
    parts = find_parts(
        campaign, map(encoded.readable, pool.listed), at=campaign.round_place(number) / "predict",
        name=f"round {number} predict", version=VERSION,
        settings={"batch_size": config.predict_batch_size, "decode": campaign.config.decode},
        made_from={"student": trained.fingerprint},
    )  # fmt: skip
    if number + 1 < campaign.num_done:  # nobody picks from this round any more
        parts = [part for part in parts if part.done]
    preprocess = read_preprocess(trained.place)

    model = Model(
        Predictor, {"student": trained.place, "config": config}, predicted(trained.columns), config.predict_replicas,
        config.num_cpus, config.num_gpus, memory_bytes=model_memory(trained.place),
    )  # fmt: skip

    def check(bad: pa.Table) -> None:
        check_splits(f"round {number} predict", rows, bad, campaign.config.max_bad_share)
        if bad.num_rows:
            campaign.say(
                f"round {number} predict", f"{bad.num_rows} images can no longer be read and are left out of this round"
            )

    size = (preprocess.image_size, preprocess.image_size)
    exact = campaign.config.decode == "exact"
    fetch = Fetch(preprocess.clean(exact), size, config.predict_batch_size, exact)
    done = make_parts(campaign, f"round {number} predict", parts, fetch, model, check)
    return Predictions(tuple(done), trained.columns, tuple(trained.classes), trained.fingerprint)


class Predictor:
    """The student over batches of images."""

    def __init__(self, student: Place, config: StudentConfig) -> None:
        from raykd.models.student import Student

        self.student = Student.load(student, "cuda" if config.num_gpus else "cpu")
        self.num_threads = max(1, int(config.num_cpus))

    def __call__(self, batch: PixelBatch) -> pa.Table:
        count, bad_N = len(batch), batch.bad_N
        features_ND, logits = self.student.outputs(batch.pixels, self.num_threads)
        columns = {
            "sample_id": batch.sample_ids,
            "split": batch.splits,
            "error": batch.errors,
            "features": vectors(features_ND[:count].astype(np.float16), bad_N),
        }
        return pa.table(columns | {name: vectors(logits_NC[:count], bad_N) for name, logits_NC in logits.items()})
