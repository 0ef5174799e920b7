"""The round's mixture of the two heads, searched by Ray Tune on the validation split; and the student to deploy."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from ray import tune

from raykd.algo.heads import grid, hits, is_real_gain
from raykd.stages.campaign import Campaign
from raykd.stages.pool import read_classes, read_manifest
from raykd.store.stage_folder import Stage
from raykd.store.tables import matrix, positions

MAX_TRIALS = 16
WORK_A_TRIAL = 5e9  # grid points x images x classes: a few seconds of one core


def mix(campaign: Campaign, round: int, pool: Stage, trained: Stage, predictions: Stage) -> Stage:
    """The student as it is deployed: its weights and the mixture (``Student.load`` reads the folder).

    Searched on the validation split: never on test, never on what the student was trained on. Without one, the
    configured mixture stays.
    """
    config = campaign.config.mixture
    default = (config.ce_weight, config.temperature)
    stage = campaign.stage(
        "tune", {"predict": predictions.fingerprint, "mixture": config.model_dump(mode="json")}, round
    )
    if stage.is_done():
        return stage
    from raykd.models.student import Student  # here, as it loads torch, which the trials do not need

    with stage.writing() as out:
        ce_logits_NC, kd_logits_NC, labels_N = split_predictions(pool, predictions, "val")
        if config.search and len(labels_N):
            (ce_weight, temperature), reason = search(campaign, round, ce_logits_NC, kd_logits_NC, labels_N, default)
        else:
            why = "mixture.search is off" if len(labels_N) else "there is no validation split to search on"
            (ce_weight, temperature), reason = default, f"fixed: {why}"
        student = Student.load(trained.place)
        student.ce_weight, student.temperature = ce_weight, temperature
        student.save(out.place)
        out.facts |= {"ce_weight": ce_weight, "temperature": temperature, "reason": reason}
    campaign.say(f"round {round} tune", f"ce_weight {ce_weight:g}, temperature {temperature:g} ({reason})")
    return stage


def split_predictions(pool: Stage, predictions: Stage, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both heads' logits float [N, C] and labels int [N] of the labeled images of a split, by sample_id."""
    table = (
        (predictions.place / "data")
        .parquet()
        .to_table(
            columns=["sample_id", "ce_logits", "kd_logits"],
            filter=(pads.field("split") == split) & pads.field("error").is_null(),
        )
    )
    table, labels_N = with_labels(pool, table)
    return matrix(table["ce_logits"]), matrix(table["kd_logits"]), labels_N


def with_labels(pool: Stage, table: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """The rows that the manifest has a label for, sorted by sample_id, and the class indices."""
    rows = read_manifest(pool)
    table = table.sort_by("sample_id")
    names = rows["label"].take(positions(table["sample_id"], rows["sample_id"], "the manifest"))
    labels = pc.index_in(names, value_set=pa.array(read_classes(pool)), skip_nulls=True)
    kept = pc.is_valid(labels)
    return table.filter(kept), labels.filter(kept).to_numpy().astype(np.int64)


class Block(tune.Trainable):
    """One trial: many points of the grid at once, on logits that all trials share."""

    def setup(self, config: dict[str, int], logits: Any = None, points_G2: Any = None) -> None:
        self.logits, self.points_G2 = logits, points_G2  # Tune hands over what with_parameters was given
        self.reset_config(config)

    def reset_config(self, config: dict[str, int]) -> bool:
        self.block = np.array_split(self.points_G2, config["blocks"])[config["block"]]
        return True

    def step(self) -> dict[str, Any]:
        ce_logits_NC, kd_logits_NC, labels_N = self.logits
        correct = hits(ce_logits_NC, kd_logits_NC, labels_N, self.block).sum(axis=1)
        return {"correct": correct.tolist(), "best": int(correct.max()), "done": True}

    def save_checkpoint(self, folder: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


def search(
    campaign: Campaign,
    round: int,
    ce_logits_NC: np.ndarray,
    kd_logits_NC: np.ndarray,
    labels_N: np.ndarray,
    default: tuple[float, float],
) -> tuple[tuple[float, float], str]:
    """The most accurate point of the papers' grid, if it beats the default by a standard error; and the reason."""
    points_G2 = grid(default)
    blocks = int(np.clip(len(points_G2) * ce_logits_NC.size / WORK_A_TRIAL, 1, MAX_TRIALS))
    scratch = campaign.place / "ray_tune"
    name = f"round-{round:03d}-{time.time_ns()}"
    results = tune.Tuner(
        tune.with_parameters(Block, logits=(ce_logits_NC, kd_logits_NC, labels_N), points_G2=points_G2),
        param_space={"block": tune.grid_search(list(range(blocks))), "blocks": blocks},
        tune_config=tune.TuneConfig(metric="best", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch.path,
            storage_filesystem=None if scratch.is_local else scratch.fs,
            verbose=0,
        ),
    ).fit()
    if results.errors:
        raise results.errors[0]
    correct: dict[int, list[int]] = {}
    for i in range(blocks):
        found = results[i]
        assert found.config is not None
        assert found.metrics is not None
        correct[found.config["block"]] = found.metrics["correct"]
    scratch.fs.delete_dir((scratch / name).path)
    correct_G = np.concatenate([correct[block] for block in range(blocks)])
    best = points_G2[int(correct_G.argmax())]
    right_best_N, right_default_N = hits(ce_logits_NC, kd_logits_NC, labels_N, np.array([best, default]))
    real, gain = is_real_gain(right_best_N, right_default_N)
    searched = f"searched {len(points_G2)} mixtures on {len(labels_N)} validation images"
    if real:
        return (float(best[0]), float(best[1])), f"{searched}: {gain} over the default"
    return default, f"{searched}: the best gains {gain}, within one standard error, so the default stays"
