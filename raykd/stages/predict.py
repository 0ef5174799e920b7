"""The student over every image, clean crop: both heads' logits and the features."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.models.student import Student
from raykd.stages.campaign import Campaign
from raykd.stages.map_images import FILLER, Fetch, stream
from raykd.stages.pool import read_manifest
from raykd.stages.progress import Ticker
from raykd.stages.teacher import check_splits, device, readable
from raykd.store.place import Place
from raykd.store.stage_folder import Stage
from raykd.store.tables import vectors


def score(campaign: Campaign, round: int, pool: Stage, teacher: Stage, trained: Stage) -> Stage:
    """The predictions of one round: ``data/`` with ce_logits, kd_logits and features of pool, val and test images.

    As in the teacher's table, an image that cannot be read (any more) has a reason in ``error`` and NaN for vectors.

    Raises:
        ValueError: More than ``max_bad_share`` of a split, readable when the teacher saw it, cannot be read any more.
        StorageError: The network, the credentials or a disk fail.
    """
    config = campaign.config.student
    stage = campaign.stage("predict", {"train": trained.fingerprint}, round)
    if stage.is_done():
        return stage
    rows = readable(read_manifest(pool), teacher)
    with stage.writing() as out, campaign.progress.stage(f"round {round} predict", rows.num_rows, "images") as ticker:
        preprocess = Student.load(trained.place).preprocess
        fetch = Fetch(preprocess.clean(), (preprocess.image_size, preprocess.image_size))
        arguments = {"student": trained.place, "device": device(config.num_gpus), "ticker": ticker}
        stream(rows, fetch, Replica, arguments, out.place / "data", batch_size=config.predict_batch_size,
               replicas=config.predict_replicas, num_cpus=config.num_cpus, num_gpus=config.num_gpus)  # fmt: skip
        table = (out.place / "data").read_table(["sample_id", "error"])
        gone = table.filter(pc.is_valid(table["error"]))["sample_id"]
        check_splits(f"round {round} predict", rows, gone, campaign.config.max_bad_share)
        out.facts |= {"rows": rows.num_rows - len(gone), "gone": len(gone)}
    if lost := stage.facts["gone"]:
        campaign.say(f"round {round} predict", f"{lost} images can no longer be read and are left out of this round")
    return stage


class Replica:
    """One copy of the student, in an actor."""

    def __init__(self, student: Place, device: str, ticker: Ticker) -> None:
        self.student, self.device, self.ticker = Student.load(student, device), device, ticker

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        import torch

        bad_N = batch["error"] != ""
        real_N = batch["error"] != FILLER
        with torch.inference_mode():
            pixels = torch.from_numpy(batch["pixels"].copy()).to(self.device)
            out = self.student.model(self.student.preprocess.normalise(pixels))
        self.ticker.add(real_N.sum())
        return pa.table(
            {
                "sample_id": pa.array(batch["sample_id"], pa.string()),
                "split": pa.array(batch["split"], pa.string()),
                "error": pa.array(batch["error"], pa.string(), mask=~bad_N),
                "ce_logits": vectors(out.ce_logits_NC.float().cpu().numpy(), bad_N),
                "kd_logits": vectors(out.kd_logits_NC.float().cpu().numpy(), bad_N),
                "features": vectors(out.features_ND.cpu().numpy().astype(np.float16), bad_N),
            }
        ).filter(pa.array(real_N))
