"""The student over every image, clean crop: its logits and features, by parts. A frozen one over stored features."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.config import StudentConfig
from raykd.images.pixel_batches import Fetch, PixelBatch
from raykd.models.preprocess import read_preprocess
from raykd.stages.campaign import Campaign
from raykd.stages.map_images import Model, check_splits, find_parts, make_parts, model_memory, num_missing
from raykd.stages.progress import Ticker
from raykd.stages.student_features import features_of
from raykd.stages.zero_shot import each_part, splits_of, stored_features, threads_of
from raykd.store.outputs import Encoded, Pool, Predictions, Trained
from raykd.store.place import Place
from raykd.store.tables import GROUP_ROWS, checked, predicted, vectors

VERSION = 1
BLOCK_FILE = "block_heads.parquet"


def predict(campaign: Campaign, number: int, pool: Pool, encoded: Encoded, trained: Trained) -> Predictions:
    """What a round's student says of pool, val and test images.

    As in the teacher's table, an image that cannot be read (any more) has a reason in ``error`` and NaN for vectors.
    Images that have come into the pool since are parts that are still to be made, whenever that is.

    Raises:
        UserError: More than ``max_bad_share`` of a split, readable when the teacher saw it, cannot be read any more.
        StorageError: The network, the credentials or a disk fail.
    """
    if trained.features is not None:
        return predict_by_heads(campaign, number, pool, encoded, trained)
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


# ---------------------------------------------------------------- of a frozen student


def predict_by_heads(campaign: Campaign, number: int, pool: Pool, encoded: Encoded, trained: Trained) -> Predictions:
    """What a frozen student says of stored features; no image is read. On a cluster a task a part.

    ``features`` of the table are what its heads are given: the centred ones, or the hidden layer's output.
    """
    name, num_cpus, here = f"round {number} predict", campaign.config.student.num_cpus, campaign.session.is_local
    parts = find_parts(
        campaign, pool.listed, at=campaign.round_place(number) / "predict", name=name, version=VERSION, settings={},
        made_from={"student": trained.fingerprint},
    )  # fmt: skip
    done = [part.done for part in parts]
    if number + 1 >= campaign.num_done and (missing := [n for n, found in enumerate(done) if found is None]):
        features = features_of(campaign, encoded, trained, parts)
        others = pool.manifest.filter(pc.not_equal(pool.manifest["split"], "pool")).select(["sample_id", "split"])
        if not here:
            campaign.session.ensure()
        with campaign.progress.stage(name, num_missing(parts), "images", here=here) as ticker, ExitStack() as stack:
            outs = [stack.enter_context(parts[n].folder.writing()) for n in missing]
            calls = [
                (features[n].place, out.place, trained.place, threads_of(campaign, num_cpus), ticker)
                for n, out in zip(missing, outs, strict=True)
            ]
            for out, facts in zip(outs, each_part(campaign, num_cpus, write_predictions, calls, others), strict=True):
                out.facts |= facts
        for n, out in zip(missing, outs, strict=True):
            done[n] = out.complete
    return Predictions(tuple(filter(None, done)), trained.columns, tuple(trained.classes), trained.fingerprint)


def write_predictions(
    features: Place, out: Place, student: Place, num_threads: int, ticker: Ticker, others: pa.Table
) -> dict[str, Any]:
    """One part: tables.ENCODED in, ``tables.predicted(columns)`` out."""
    from raykd.models.student import Student

    started = time.perf_counter()
    heads = Student.load(student)
    table, stored_ND = stored_features(features)
    bad_N = table["error"].is_valid().to_numpy()
    features_ND, logits = heads.outputs_of_features(stored_ND, num_threads)
    columns = {
        "sample_id": table["sample_id"],
        "split": splits_of(table["sample_id"], others),
        "error": table["error"],
        "features": vectors(features_ND.astype(np.float16), bad_N),
    }
    columns |= {name: vectors(logits_NC, bad_N) for name, logits_NC in logits.items()}
    (out / BLOCK_FILE).write_table(checked(pa.table(columns), predicted(heads.columns)), row_group_rows=GROUP_ROWS)
    ticker.add(table.num_rows)
    seconds = round(time.perf_counter() - started, 3)
    return {"rows": table.num_rows, "unreadable": int(bad_N.sum()), "seconds": seconds}
