"""Which images a student has wrong, and which of the labels it was given may be wrong: tables beside the figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from raykd.algo.heads import probabilities
from raykd.algo.metrics import confusion
from raykd.stages.campaign import Campaign
from raykd.stages.few_shot import LabeledFeatures, clean_features, judge_labels, on_a_node
from raykd.stages.pictures import SHOWN_WRONG, thumbnails, top_guesses
from raykd.store.outputs import Encoded, LabelDoubts, Labeled, Pool, Round, Teacher
from raykd.store.tables import CONFUSION, DOUBTFUL, MISTAKES, checked

LONG = 10**6  # labels times classes, from which on it is said before what takes so long


# ---------------------------------------------------------------- of the test images


def confusion_table(probs_NC: np.ndarray, labels_N: np.ndarray, classes: Sequence[str]) -> pa.Table:
    """tables.CONFUSION."""
    label, choice, count = confusion(probs_NC.argmax(axis=1), labels_N).T
    names = pa.array(classes, pa.string())
    return checked(pa.table([names.take(label), names.take(choice), count], names=CONFUSION.names), CONFUSION)


def mistakes_table(pool: Pool, teacher: Teacher, done: Round, test: Labeled, probs_NC: np.ndarray) -> pa.Table:
    """tables.MISTAKES: what the student has wrong, those first that it is sure of; of equals the smaller id.

    Args:
        probs_NC: Of the test images, as they are deployed.
    """
    ids, _, labels_N = test
    choices_N, classes = probs_NC.argmax(axis=1), pa.array(done.trained.classes, pa.string())
    wrong = np.flatnonzero(choices_N != labels_N)
    confidence_N = probs_NC.max(axis=1)[wrong]
    order = np.lexsort((ids.take(wrong).to_numpy(), -confidence_N))
    wrong, confidence_N = wrong[order], confidence_N[order]
    ids = ids.take(wrong)
    columns = {
        "sample_id": ids,
        "uri": pool.uris(ids),
        "label": classes.take(labels_N[wrong]),
        "prediction": classes.take(choices_N[wrong]),
        "confidence": confidence_N.astype(np.float32),
        "teacher": top_guesses(teacher.probabilities(ids), teacher.classes),
        "student": top_guesses(probs_NC[wrong], done.trained.classes),
        "thumbnail": first_thumbnails(pool, ids, SHOWN_WRONG),
    }
    return checked(pa.table(columns), MISTAKES)


def first_thumbnails(pool: Pool, ids: pa.ChunkedArray, count: int) -> pa.Array:
    """Of the first images; null for the others."""
    some = thumbnails(pool.uris(ids.slice(0, count)))
    return pa.concat_arrays([some, pa.nulls(len(ids) - len(some), some.type)])


# ---------------------------------------------------------------- of the training labels


class Doubts(NamedTuple):
    """tables.DOUBTFUL, and how many labels it is about."""

    table: pa.Table
    figures: LabelDoubts | None


def doubtful_labels(campaign: Campaign, pool: Pool, encoded: Encoded, teacher: Teacher, done: Round) -> Doubts:
    """Which labels of a round may be slips, by the teacher's features: no image is read but those that are shown.

    A table in the teacher's place has no features, and the student's have been learned from the very labels, so then
    nothing is said.
    """
    if teacher.texts is None:
        return Doubts(DOUBTFUL.empty_table(), None)
    ids, labels_N, features_ND = clean_features(pool, encoded, teacher.classes, done.labels)
    seen_N = np.linalg.norm(features_ND.astype(np.float32), axis=1) > 0  # where the teacher sees nothing it is no judge
    labeled = LabeledFeatures(ids.filter(pa.array(seen_N)), labels_N[seen_N], features_ND[seen_N], None)
    if not len(labeled.labels_N) or len(teacher.classes) < 2:
        return Doubts(DOUBTFUL.empty_table(), {"num_labels": 0, "num_suspects": 0, "by_chance": 0.0, "share": 0.0})
    if (count := len(labeled.labels_N)) * len(teacher.classes) > LONG:
        campaign.say(f"round {done.number} evaluate", f"looks for slips among {count:,} labels")
    slips = on_a_node(campaign, campaign.config.teacher.num_cpus, judge_labels, teacher.texts, labeled)
    rows = slips.order_N[slips.margins_N[slips.order_N] < 0]
    ids, classes = labeled.ids.take(rows), pa.array(teacher.classes, pa.string())
    students_NC = probabilities(done.predictions.logits(ids), done.deployed.mixture)
    num_suspects = int(slips.suspects_N.sum())
    columns = {
        "sample_id": ids,
        "uri": pool.uris(ids),
        "given": classes.take(labeled.labels_N[rows]),
        "suggested": classes.take(slips.suggested_N[rows]),
        "slip": slips.slip_N[rows],
        "margin": slips.margins_N[rows],
        "teacher": top_guesses(slips.probs_NC[rows], teacher.classes),
        "student": top_guesses(students_NC, done.predictions.classes),
        "thumbnail": first_thumbnails(pool, ids, min(num_suspects, SHOWN_WRONG)),
    }
    figures: LabelDoubts = {
        "num_labels": count,
        "num_suspects": num_suspects,
        "by_chance": slips.by_chance,
        "share": slips.share,
    }
    return Doubts(checked(pa.table(columns), DOUBTFUL), figures)
