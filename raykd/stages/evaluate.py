"""The round's figures: how good the student is, what the labels cover, where the time went."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as pads

from raykd.algo import metrics
from raykd.algo.heads import mixture, softmax
from raykd.stages.campaign import Campaign, Round
from raykd.stages.label import read_labels
from raykd.stages.mix import split_predictions, with_labels
from raykd.stages.pool import read_classes
from raykd.stages.select import covering_radius
from raykd.store.stage_folder import Stage
from raykd.store.tables import matrix

TIMED = ("select", "label", "train", "predict", "tune")  # in the order of Round


def measure(campaign: Campaign, round: int, pool: Stage, teacher: Stage, done: Round) -> Stage:
    """``metrics.json`` of the round, and its line in the campaign's ``metrics.jsonl``."""
    stage = campaign.stage(
        "evaluate", {"tune": done.student.fingerprint, "labels": done.labels.facts["content"]}, round
    )
    if not stage.is_done():
        started = time.perf_counter()
        with stage.writing() as out:
            values = figures(campaign, round, pool, teacher, done)
            values["seconds"]["evaluate"] = time.perf_counter() - started
            (out.place / "metrics.json").write_json(values)
    write_lines(campaign)  # again after a kill between the stage and its line
    return stage


def figures(campaign: Campaign, round: int, pool: Stage, teacher: Stage, done: Round) -> dict[str, Any]:
    """All figures of one round (README.md lists them)."""
    labels, classes = read_labels(done.labels), read_classes(pool)
    given = labels.filter(pc.equal(labels["outcome"], "label"))
    ce_weight, temperature = done.student.facts["ce_weight"], done.student.facts["temperature"]
    ce_logits_NC, kd_logits_NC, labels_N = split_predictions(pool, done.predictions, "test")
    values: dict[str, Any] = {
        "round": round,
        "num_labeled": given.num_rows,
        "num_unlabeled": pool.facts["pool"] - given.num_rows,
        "num_test": len(labels_N),
        "outcomes": done.labels.facts["outcomes"],
        "labels_C": np.bincount(given["label"].to_numpy(), minlength=len(classes)).tolist(),
        "coverage_radius": covering_radius(campaign, done),
        "mixture": {key: done.student.facts[key] for key in ("ce_weight", "temperature", "reason")},
        "loss": done.trained.facts["loss"],
        "seconds": dict(zip(TIMED, (stage.facts["seconds"] for stage in done), strict=True)),
        "accuracy": None,
        "macro_accuracy": None,
        "ece": None,
        "recall_C": None,
    }
    if len(labels_N):
        mixed_NC = mixture(ce_logits_NC, kd_logits_NC, ce_weight, temperature)
        values["accuracy"] = {
            "mixture": metrics.accuracy(mixed_NC, labels_N),
            "ce_head": metrics.accuracy(ce_logits_NC, labels_N),
            "kd_head": metrics.accuracy(kd_logits_NC, labels_N),
            "teacher": teacher_figures(pool, teacher)["accuracy"],
        }
        values |= scores(mixed_NC, labels_N)
    return values


def scores(probs_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, Any]:
    recall_C = metrics.recall(probs_NC, labels_N)
    return {
        "macro_accuracy": metrics.macro_accuracy(probs_NC, labels_N),
        "ece": metrics.calibration_error(probs_NC, labels_N),
        "recall_C": [None if np.isnan(value) else float(value) for value in recall_C],
    }


def teacher_figures(pool: Stage, teacher: Stage) -> dict[str, Any]:
    """Accuracy, macro accuracy, calibration error and recall of the zero-shot teacher on the test split."""
    table = (
        (teacher.place / "data")
        .parquet()
        .to_table(
            columns=["sample_id", "logits"], filter=(pads.field("split") == "test") & pads.field("error").is_null()
        )
    )
    table, labels_N = with_labels(pool, table)
    if not len(labels_N):
        return {"accuracy": None, "macro_accuracy": None, "ece": None, "recall_C": None}
    probs_NC = softmax(matrix(table["logits"]))
    return {"accuracy": metrics.accuracy(probs_NC, labels_N), **scores(probs_NC, labels_N)}


def read_figures(campaign: Campaign) -> list[dict[str, Any]]:
    """The figures of every round that has been evaluated, in order."""
    places = (campaign.round_place(round) / "evaluate" / "metrics.json" for round in campaign.rounds)
    return [place.read_json() for place in places if place.exists()]


def write_lines(campaign: Campaign) -> None:
    """Bring metrics.jsonl up to date with the rounds that are evaluated."""
    place = campaign.place / "metrics.jsonl"
    text = "".join(json.dumps(values) + "\n" for values in read_figures(campaign)).encode()
    if not place.exists() or place.read_bytes() != text:
        place.write_bytes(text)
