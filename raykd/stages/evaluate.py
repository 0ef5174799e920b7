"""The round's figures: how good the student is and where it is wrong, what the labels cover, where the time went."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from typing import Any

import numpy as np

from raykd.algo import metrics
from raykd.algo.heads import probabilities
from raykd.algo.selection.kcenter import coverage_radius
from raykd.algo.statistics import is_noise, wilson
from raykd.report.outlook import bound_in_words, words_of
from raykd.report.words import (
    before_calibration,
    fit_of,
    gained,
    has_learned,
    images_measured,
    interval,
    labels_spent,
    percent,
    plain,
    points,
    slips,
    taught_by,
)
from raykd.stages.advice import (
    Measured,
    audit_figures,
    audited_images,
    change_since,
    labeled,
    labels_by_use,
    measured_images,
    next_round,
    price_of,
    said_by,
    sure_of,
    what_it_says,
)
from raykd.stages.audit import aside_now
from raykd.stages.campaign import Campaign
from raykd.stages.mistakes import confusion_table, doubtful_labels, mistakes_table
from raykd.stages.probability_space import open_space
from raykd.store.outputs import (
    CONFUSION_FILE,
    DOUBTFUL_FILE,
    MEASURED_FILE,
    METRICS_FILE,
    MISTAKES_FILE,
    Encoded,
    LabelDoubts,
    Labeled,
    Pool,
    Round,
    RoundFigures,
    Teacher,
)
from raykd.store.tables import NO_IDS

VERSION = 1
FAR_BEHIND = 0.15  # of accuracy, between two heads
HEADS = {"ce_head": "ce_logits", "kd_head": "kd_logits"}  # as the figures call them


def measure(
    campaign: Campaign, pool: Pool, encoded: Encoded, teacher: Teacher, done: Round, before: Round | None
) -> None:
    """``metrics.json`` of the round, and its line in the campaign's ``metrics.jsonl``.

    Beside it what the student says of the images that measure it, ``measured.parquet`` (``stages/advice.py``); which of
    these are wrong, and which training labels may be: ``confusion.parquet``, ``mistakes.parquet``,
    ``doubtful_labels.parquet`` (``stages/mistakes.py``).

    Args:
        before: The round before it, of which it says what has changed since.
    """
    made_from = {"student": done.trained.fingerprint, "labels": done.labels.content}
    folder = campaign.folder("evaluate", done.number, version=VERSION, made_from=made_from)
    if folder.done() is None:
        started = time.perf_counter()
        with folder.writing() as out:
            doubts = doubtful_labels(campaign, pool, encoded, teacher, done)
            say = what_it_says(done, aside_now(campaign))
            found = measured_images(campaign, pool, done, say)
            ids, names = (found.ids, found.labels) if found else (NO_IDS, NO_IDS)
            test = labeled(ids, names, done.predictions, pool)
            probs_NC = probabilities(test.logits, done.deployed.mixture)
            (out.place / MEASURED_FILE).write_table(say)
            (out.place / CONFUSION_FILE).write_table(confusion_table(probs_NC, test.labels_N, done.trained.classes))
            (out.place / MISTAKES_FILE).write_table(mistakes_table(pool, teacher, done, test, probs_NC))
            (out.place / DOUBTFUL_FILE).write_table(doubts.table)
            values = figures(campaign, pool, teacher, done, test, doubts.figures)
            if found:
                values |= how_good(campaign, pool, teacher, done, before, found, test)
            values["seconds"]["evaluate"] = time.perf_counter() - started
            (out.place / METRICS_FILE).write_json(values)
        campaign.say(folder.name, in_words(values))
        if line := words_of(values, campaign.config.goal):
            campaign.say(folder.name, plain(line))
    write_lines(campaign)  # again after a kill between the stage and its line


def figures(
    campaign: Campaign, pool: Pool, teacher: Teacher, done: Round, test: Labeled, doubts: LabelDoubts | None
) -> RoundFigures:
    """All figures of one round, but for how good the student is (:func:`how_good`).

    Args:
        test: What it is measured on.
    """
    logits, labels_N = test.logits, test.labels_N
    classes = done.trained.classes
    _, indices = done.labels.given(classes, pool.renamed)
    mixture = done.deployed.mixture
    probs_NC, plain_NC = (probabilities(logits, each) for each in (mixture, mixture.uncalibrated))
    scores = metrics.scores(probs_NC, labels_N)
    loss, plain_loss, plain_ece = None, None, None
    if len(labels_N):
        loss, plain_loss = (metrics.log_loss(each, labels_N) for each in (probs_NC, plain_NC))
        plain_ece = metrics.calibration_error(plain_NC, labels_N)
    return {
        "round": done.number,
        "num_labeled": len(indices),
        "labels_spent": labels_by_use(done, len(indices)),
        "num_unlabeled": pool.counts["pool"] - len(indices),
        "num_test": 0,
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
        "measured_on": None,
        "num_measured": 0,
        "accuracy": None,
        "interval": None,
        "change": None,
        "at_least": None,
        "forecast": None,
        "price": None,
        "audit": None,
        "macro_accuracy": scores["macro_accuracy"],
        "ece": scores["ece"],
        "ece_uncalibrated": plain_ece,
        "log_loss": loss,
        "log_loss_uncalibrated": plain_loss,
        "label_doubts": doubts,
        "recall_C": scores["recall_C"],
    }


def how_good(
    campaign: Campaign, pool: Pool, teacher: Teacher, done: Round, before: Round | None, found: Measured, test: Labeled
) -> Any:
    """How good the student is, how sure that is, and what to expect of the next labels: the rest of RoundFigures."""
    audit = audited_images(campaign, pool, done, found.say)
    audited = audit_figures(campaign, pool, done, audit) if audit else None
    right_N = found.right(found.say, pool)
    accuracy, sure = float(right_N[found.known_N].mean()), None
    if found.on == "audit" and audited:
        accuracy, sure = audited["accuracy"], (audited["low"], audited["high"])
    heads = {name: metrics.accuracy(test.logits[of], test.labels_N) for name, of in HEADS.items() if of in test.logits}
    ids, _ = done.labels.given(done.trained.classes, pool.renamed)
    ahead = next_round(campaign, pool, done, found, len(ids))
    spent = sum(labels_by_use(done, len(ids)).values())
    num_measured = int(found.known_N.sum())
    return {
        "measured_on": found.on,
        "num_measured": num_measured,
        "num_test": num_measured if found.on == "test" else 0,
        "accuracy": {
            "mixture": accuracy,
            **dict.fromkeys(HEADS, None),
            **heads,
            "teacher": teacher.scores["accuracy"] if found.on == "test" else teacher_on(teacher, test),
        },
        "interval": sure or wilson(accuracy, num_measured),
        "change": None if before is None else change_since(pool, before, said_by(campaign, before), found),
        "at_least": sure_of(campaign, done, found, right_N),
        "forecast": ahead,
        "price": price_of(campaign, pool, ahead, spent),
        "audit": audited,
    }


def teacher_on(teacher: Teacher, test: Labeled) -> float | None:
    """Its accuracy on those of the images that it has an opinion of; None where it has none of any."""
    probs_NC = teacher.probabilities(test.ids)
    seen_N = np.isfinite(probs_NC).all(axis=1)
    return metrics.accuracy(probs_NC[seen_N], test.labels_N[seen_N]) if seen_N.any() else None


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
        return plain(f"{cost}, {radius}; nothing to measure on" + (f"; {doubted}" if doubted else ""))
    names = {"ce_head": "CE head", "kd_head": "KD head", "teacher": "teacher"}
    parts = [f"{said} {accuracy[name]:.1%}" for name, said in names.items() if accuracy[name] is not None]
    fit = fit_of(values)
    if fit and fit["change"] and has_learned(fit) and accuracy["teacher"] is not None:
        parts[-1] += f" ({points(fit['change']['gain'])} by {taught_by(fit)})"
    text = f"{accuracy['mixture']:.1%} of {images_measured(values)} (95% interval {interval(values)})"
    text += f", {least}" if (least := bound_in_words(values)) else ""
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
