"""The round's figures: how good the student is, what the labels cover, where the time went."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import numpy as np

from raykd.algo import metrics
from raykd.algo.heads import probabilities
from raykd.algo.selection.kcenter import coverage_radius
from raykd.stages.campaign import Campaign
from raykd.stages.probability_space import open_space
from raykd.store.outputs import METRICS_FILE, Pool, Round, Teacher

VERSION = 1
FAR_BEHIND = 0.15  # of accuracy, between two heads
HEADS = {"ce_head": "ce_logits", "kd_head": "kd_logits"}  # as the figures call them


def measure(campaign: Campaign, pool: Pool, teacher: Teacher, done: Round) -> None:
    """``metrics.json`` of the round, and its line in the campaign's ``metrics.jsonl``."""
    made_from = {"student": done.trained.fingerprint, "labels": done.labels.content}
    folder = campaign.folder("evaluate", done.number, version=VERSION, made_from=made_from)
    if folder.done() is None:
        started = time.perf_counter()
        with folder.writing() as out:
            values = figures(campaign, pool, teacher, done)
            values["seconds"]["evaluate"] = time.perf_counter() - started
            (out.place / METRICS_FILE).write_json(values)
        campaign.say(folder.name, in_words(values))
    write_lines(campaign)  # again after a kill between the stage and its line


def figures(campaign: Campaign, pool: Pool, teacher: Teacher, done: Round) -> dict[str, Any]:
    """All figures of one round (README.md lists them)."""
    classes = done.trained.classes
    _, indices = done.labels.given(classes, pool.renamed)
    mixture = done.deployed.mixture
    logits, labels_N = done.predictions.split("test", pool)
    values: dict[str, Any] = {
        "round": done.number,
        "num_labeled": len(indices),
        "num_unlabeled": pool.counts["pool"] - len(indices),
        "num_test": len(labels_N),
        "outcomes": done.labels.outcomes,
        "labels_C": np.bincount(indices, minlength=len(classes)).tolist(),
        "coverage_radius": covering_radius(campaign, pool, teacher, done),
        "mixture": {"ce_weight": mixture.ce_weight, "temperature": mixture.temperature, "reason": done.deployed.reason},
        "loss": done.trained.loss,
        "seconds": done.seconds,
        "classes": classes,
        "teacher": teacher.scores,
        **metrics.scores(probabilities(logits, mixture), labels_N),
    }
    if len(labels_N):
        heads = {name: metrics.accuracy(logits[column], labels_N) for name, column in HEADS.items() if column in logits}
        values["accuracy"] = {
            "mixture": values["accuracy"],
            **dict.fromkeys(HEADS, None),
            **heads,
            "teacher": teacher.scores["accuracy"],
        }
    return values


def covering_radius(campaign: Campaign, pool: Pool, teacher: Teacher, done: Round) -> float:
    """How far the farthest unlabeled image is from its nearest labeled one, in the probabilities that are picked in.

    0 to sqrt(2); 0 when everything is labeled. The first distance of the next PCoreSet selection.
    """
    space = open_space(campaign, pool, teacher, done)
    radius = coverage_radius(space.shards, space.labeled)
    return 0.0 if math.isnan(radius) else radius


def in_words(values: dict[str, Any]) -> str:
    """The line that a round ends with; says it when a head is far behind the other, as the mixture hides that."""
    radius = f"coverage radius {values['coverage_radius']:.3f}"
    if (accuracy := values["accuracy"]) is None:
        return f"{values['num_labeled']} labels, {radius}; no test images to measure on"
    names = {"ce_head": "CE head", "kd_head": "KD head", "teacher": "teacher"}
    parts = [f"{said} {accuracy[name]:.1%}" for name, said in names.items() if accuracy[name] is not None]
    text = f"{accuracy['mixture']:.1%} with {values['num_labeled']} labels ({', '.join(parts)}), {radius}"
    ce, kd = accuracy["ce_head"], accuracy["kd_head"]
    if ce is not None and kd is not None and abs(ce - kd) > FAR_BEHIND:
        behind = "CE head: few or lopsided labels" if ce < kd else "KD head: is the teacher any good here?"
        text += f"; far behind is the {behind}"
    return text


def write_lines(campaign: Campaign) -> None:
    """Bring metrics.jsonl up to date with the rounds that are evaluated."""
    place = campaign.place / "metrics.jsonl"
    text = "".join(json.dumps(values) + "\n" for values in campaign.figures()).encode()
    if not place.exists() or place.read_bytes() != text:
        place.write_bytes(text)
