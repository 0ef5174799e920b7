"""The round's figures: how good the student is and where it is wrong, what the labels cover, where the time went."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo import metrics
from raykd.algo.heads import probabilities
from raykd.algo.selection.kcenter import coverage_radius
from raykd.algo.statistics import Change, is_noise, paired_change, wilson
from raykd.report.words import (
    before_calibration,
    fit_of,
    gained,
    has_learned,
    interval,
    labels_spent,
    percent,
    plain,
    points,
    slips,
    taught_by,
)
from raykd.stages.campaign import Campaign
from raykd.stages.mistakes import confusion_table, doubtful_labels, mistakes_table
from raykd.stages.probability_space import open_space
from raykd.store.outputs import (
    CONFUSION_FILE,
    DOUBTFUL_FILE,
    METRICS_FILE,
    MISTAKES_FILE,
    Encoded,
    LabelDoubts,
    Labeled,
    Pool,
    Round,
    RoundFigures,
    Teacher,
    read_parts,
    readable_of,
    renamed_labels,
)
from raykd.store.tables import matrix

VERSION = 1
FAR_BEHIND = 0.15  # of accuracy, between two heads
HEADS = {"ce_head": "ce_logits", "kd_head": "kd_logits"}  # as the figures call them


def measure(
    campaign: Campaign, pool: Pool, encoded: Encoded, teacher: Teacher, done: Round, before: Round | None
) -> None:
    """``metrics.json`` of the round, and its line in the campaign's ``metrics.jsonl``.

    Beside it which test images are wrong, and which training labels may be: ``confusion.parquet``,
    ``mistakes.parquet``, ``doubtful_labels.parquet`` (``stages/mistakes.py``).

    Args:
        before: The round before it, of which it says what has changed since.
    """
    made_from = {"student": done.trained.fingerprint, "labels": done.labels.content}
    folder = campaign.folder("evaluate", done.number, version=VERSION, made_from=made_from)
    if folder.done() is None:
        started = time.perf_counter()
        with folder.writing() as out:
            doubts = doubtful_labels(campaign, pool, encoded, teacher, done)
            test = done.predictions.split("test", pool)
            probs_NC = probabilities(test.logits, done.deployed.mixture)
            (out.place / CONFUSION_FILE).write_table(confusion_table(probs_NC, test.labels_N, done.trained.classes))
            (out.place / MISTAKES_FILE).write_table(mistakes_table(pool, teacher, done, test, probs_NC))
            (out.place / DOUBTFUL_FILE).write_table(doubts.table)
            values = figures(campaign, pool, teacher, done, before, test, doubts.figures)
            values["seconds"]["evaluate"] = time.perf_counter() - started
            (out.place / METRICS_FILE).write_json(values)
        campaign.say(folder.name, in_words(values))
    write_lines(campaign)  # again after a kill between the stage and its line


def figures(
    campaign: Campaign, pool: Pool, teacher: Teacher, done: Round, before: Round | None, test: Labeled,
    doubts: LabelDoubts | None,
) -> RoundFigures:  # fmt: skip
    """All figures of one round."""
    logits, labels_N = test.logits, test.labels_N
    classes = done.trained.classes
    _, indices = done.labels.given(classes, pool.renamed)
    mixture = done.deployed.mixture
    probs_NC, plain_NC = (probabilities(logits, each) for each in (mixture, mixture.uncalibrated))
    scores = metrics.scores(probs_NC, labels_N)
    accuracy, sure, loss, plain_loss, plain_ece = None, None, None, None, None
    if scores["accuracy"] is not None:
        loss, plain_loss = (metrics.log_loss(each, labels_N) for each in (probs_NC, plain_NC))
        plain_ece = metrics.calibration_error(plain_NC, labels_N)
        heads = {name: metrics.accuracy(logits[column], labels_N) for name, column in HEADS.items() if column in logits}
        accuracy = {
            "mixture": scores["accuracy"],
            **dict.fromkeys(HEADS, None),
            **heads,
            "teacher": teacher.scores["accuracy"],
        }
        sure = wilson(scores["accuracy"], len(labels_N))
    return {
        "round": done.number,
        "num_labeled": len(indices),
        "labels_spent": {"training": len(indices), "validation": done.deployed.num_validation},
        "num_unlabeled": pool.counts["pool"] - len(indices),
        "num_test": len(labels_N),
        "outcomes": done.labels.outcomes,
        "classes": classes,
        "labels_C": np.bincount(indices, minlength=len(classes)).tolist(),
        "coverage_radius": covering_radius(campaign, pool, teacher, done),
        "mixture": asdict(mixture) | {"reason": done.deployed.reason, "calibrated": done.deployed.calibrated},
        "loss": done.trained.loss,
        "seconds": done.seconds,
        "teacher": teacher.scores,
        "teacher_fit": teacher.fit,
        "teacher_never": teacher.check["never"],
        "accuracy": accuracy,
        "interval": sure,
        "change": None if before is None else change_since(before, done, pool),
        "macro_accuracy": scores["macro_accuracy"],
        "ece": scores["ece"],
        "ece_uncalibrated": plain_ece,
        "log_loss": loss,
        "log_loss_uncalibrated": plain_loss,
        "label_doubts": doubts,
        "recall_C": scores["recall_C"],
    }


def change_since(before: Round, now: Round, pool: Pool) -> Change | None:
    """What a round gained over the one before it, on the test images that both say something of; None of none."""
    (ids_before, right_before_N), (ids_now, right_now_N) = (right_on_test(r, pool) for r in (before, now))
    _, where_before, where_now = np.intersect1d(ids_before, ids_now, assume_unique=True, return_indices=True)
    return paired_change(right_before_N[where_before], right_now_N[where_now]) if len(where_now) else None


def right_on_test(done: Round, pool: Pool) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the test images of a round's classes, and which of them it has right, bool [n].

    By names, as they are today: the index of a class may have changed since, and two may have become one.
    """
    found = done.predictions
    table = read_parts(found.parts, ["sample_id", *found.columns], readable_of("test"))
    classes = renamed_labels(pa.chunked_array([found.classes]), pool.renamed)
    labels = pool.labels_of(table["sample_id"])
    probs_NC = probabilities({column: matrix(table[column], column) for column in found.columns}, done.deployed.mixture)
    right = pc.equal(pc.take(classes, pa.array(probs_NC.argmax(axis=1))), labels)
    kept = pc.is_in(labels, value_set=classes)
    ids = table["sample_id"].filter(kept)
    return ids.to_numpy(), right.filter(kept).to_numpy().astype(bool)


def covering_radius(campaign: Campaign, pool: Pool, teacher: Teacher, done: Round) -> float:
    """How far the farthest unlabeled image is from its nearest labeled one, in the probabilities that are picked in.

    0 to sqrt(2); 0 when everything is labeled. The first distance of the next PCoreSet selection.
    """
    space = open_space(campaign, pool, teacher, done)
    radius = coverage_radius(space.shards, space.labeled)
    return 0.0 if math.isnan(radius) else radius


def in_words(values: RoundFigures) -> str:
    """The line that a round ends with: how good it is, what has changed, what it has cost.

    It says when a head is far behind the other, as the mixture hides that.
    """
    cost, radius = labels_spent(values), f"coverage radius {values['coverage_radius']:.3f}"
    doubted = slips(values.get("label_doubts"))
    if (accuracy := values["accuracy"]) is None:
        return plain(f"{cost}, {radius}; no test images to measure on" + (f"; {doubted}" if doubted else ""))
    names = {"ce_head": "CE head", "kd_head": "KD head", "teacher": "teacher"}
    parts = [f"{said} {accuracy[name]:.1%}" for name, said in names.items() if accuracy[name] is not None]
    fit = fit_of(values)
    if fit and fit["change"] and has_learned(fit) and accuracy["teacher"] is not None:
        parts[-1] += f" ({points(fit['change']['gain'])} by {taught_by(fit)})"
    text = f"{accuracy['mixture']:.1%} of {values['num_test']:,} test images (95% interval {interval(values)})"
    if change := values.get("change"):
        text += f", {gained(change)} points since round {values['round'] - 1}"
        text += ", within noise" if is_noise(change) else ""
    text += f"; {cost}; {', '.join(parts)}; calibration error {percent(values['ece'])}"
    text += f" ({mended})" if (mended := before_calibration(values)) else ""
    text += f"; {radius}"
    ce, kd = accuracy["ce_head"], accuracy["kd_head"]
    if ce is not None and kd is not None and abs(ce - kd) > FAR_BEHIND:
        behind = "CE head: few or lopsided labels" if ce < kd else "KD head: is the teacher any good here?"
        text += f"; far behind is the {behind}"
    return plain(text + (f"; {doubted}" if doubted else ""))


def write_lines(campaign: Campaign) -> None:
    """Bring metrics.jsonl, and the trackers, up to date with the rounds that are evaluated."""
    place, figures = campaign.place / "metrics.jsonl", campaign.figures()
    text = "".join(json.dumps(values) + "\n" for values in figures).encode()
    if not place.exists() or place.read_bytes() != text:
        place.write_bytes(text)
    if campaign.tracking is not None:
        campaign.tracking.update(figures)
