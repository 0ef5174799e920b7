"""How good the student is on what it has not learned from, how sure that is, and what the next labels may bring.

Measured on the labeled test images, or, where there are none, on the audited images of the pool (``stages/audit.py``).
What each round's student says of these is kept (tables.MEASURED), so that students of different rounds are compared on
the same images, whenever their labels came.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.audit import at_least, audited_accuracy
from raykd.algo.forecast import Forecast, forecast, price_per_point, sampling_noise
from raykd.algo.heads import probabilities
from raykd.algo.statistics import Change, paired_change
from raykd.stages.audit import Aside, aside_now, asked_so_far, may_choose, since_round
from raykd.stages.budget import audits_of, budget_of
from raykd.stages.campaign import Campaign
from raykd.store.outputs import (
    AuditFigures,
    Labeled,
    Labels,
    Pool,
    Predictions,
    PriceFigures,
    Round,
    read_measured,
    read_parts,
    readable_of,
    renamed_labels,
)
from raykd.store.tables import MEASURED, checked

ENOUGH_IN_COMMON = 0.5  # of today's images, that an earlier round must have said something of to be compared


class Measured(NamedTuple):
    """The images that a round is measured on: those that have a label, or of which people said that they have none."""

    on: str  # test, audit
    ids: pa.ChunkedArray
    labels: pa.ChunkedArray  # today's class names; null: people could not give one
    say: pa.Table  # tables.MEASURED of all images that are kept

    @property
    def known_N(self) -> np.ndarray:
        """bool [N]."""
        known: np.ndarray = self.labels.is_valid().to_numpy()
        return known

    def right(self, said: pa.Table, pool: Pool) -> np.ndarray:
        """bool [N]: whether what ``said`` (tables.MEASURED) has of the images is right; False where it has nothing."""
        choices = renamed_labels(said["prediction"], pool.renamed)
        found = pc.take(choices, pc.index_in(self.ids, value_set=said["sample_id"]))
        right: np.ndarray = pc.fill_null(pc.equal(found, self.labels), False).to_numpy()
        return right


def what_it_says(done: Round, aside: Aside | None) -> pa.Table:
    """tables.MEASURED: of the test images, and of those that are set aside, by sample_id in each."""
    predictions, tables = done.predictions, []
    for split in ("test", "pool") if aside else ("test",):
        ids = read_parts(predictions.parts, ["sample_id"], readable_of(split))["sample_id"]
        if split == "pool" and aside:
            ids = ids.filter(pa.array(aside.among(ids)))
        ids = ids.take(pc.array_sort_indices(ids))
        probs_NC = probabilities(predictions.logits(ids), done.deployed.mixture)
        names = pa.array(predictions.classes, pa.string()).take(pa.array(probs_NC.argmax(axis=1)))
        confidence = probs_NC.max(axis=1, initial=0.0).astype(np.float32)
        tables.append(pa.table([ids, pa.repeat(split, len(ids)), names, confidence], names=MEASURED.names))
    return checked(pa.concat_tables(tables), MEASURED)


def measured_images(campaign: Campaign, pool: Pool, done: Round, say: pa.Table) -> Measured | None:
    """What a round is measured on: test, else audit; None where there is neither.

    Where audited images chose the student's mixture, the others measure it.
    """
    tested = say.filter(pc.equal(say["split"], "test"))["sample_id"]
    labels = pool.labels_of(tested)
    known = pc.is_in(labels, value_set=names_now(done.predictions.classes, pool))
    if pc.any(known).as_py():
        return Measured("test", tested.filter(known), labels.filter(known), say)
    return audited_images(campaign, pool, done, say)


def names_now(classes: Sequence[str], pool: Pool) -> pa.Array:
    """A student's classes as they are called today."""
    names = renamed_labels(pa.chunked_array([pa.array(classes, pa.string())]), pool.renamed)
    return names.combine_chunks()


def audited_images(campaign: Campaign, pool: Pool, done: Round, say: pa.Table) -> Measured | None:
    """The audited images that measure; None where there are none with a class."""
    answers = done.labels.audited
    answers = answers.filter(pc.is_in(answers["sample_id"], value_set=say["sample_id"]))
    if done.deployed.by_audit:
        answers = answers.filter(pa.array(~may_choose(campaign, answers["sample_id"])))
    labels = renamed_labels(answers["label"], pool.renamed)
    return Measured("audit", answers["sample_id"], labels, say) if labels.null_count < len(labels) else None


def audit_figures(campaign: Campaign, pool: Pool, done: Round, found: Measured) -> AuditFigures:
    """How good the student is on the pool, by its audited images; and how many there are of what kind."""
    aside = found.say.filter(pc.equal(found.say["split"], "pool"))
    learned = pc.is_in(aside["sample_id"], value_set=done.labels.labeled_ids)  # labeled without being asked for
    aside = aside.filter(pc.invert(learned))
    num_choosing = 0
    if done.deployed.by_audit:  # the others are like the ones that measure
        aside = aside.filter(pa.array(~may_choose(campaign, aside["sample_id"])))
        num_choosing = int(may_choose(campaign, done.labels.audited["sample_id"]).sum())
    sure_A = pc.take(aside["confidence"], pc.index_in(found.ids, value_set=aside["sample_id"])).to_numpy()
    asked = asked_so_far(campaign, done.number)
    num_asked = int(pc.sum(pc.equal(asked["role"], "audit")).as_py() or 0)
    num_answered = done.labels.audited.num_rows
    values: Any = audited_accuracy(
        found.right(found.say, pool), sure_A, aside["confidence"].to_numpy(), known_A=found.known_N
    )
    figures: AuditFigures = values | {
        "num_aside": aside.num_rows,
        "num_unanswered": num_asked - num_answered,
        "num_without_class": int((~found.known_N).sum()),
        "num_choosing": num_choosing,
    }
    return figures


def sure_of(campaign: Campaign, done: Round, found: Measured, right_N: np.ndarray) -> float:
    """At least this accuracy, at every look of the campaign at once with 95 % confidence."""
    known_N = found.known_N
    look = done.number - (since_round(campaign) if found.on == "audit" else 0)
    return at_least(int(right_N[known_N].sum()), int(known_N.sum()), look)


def change_since(pool: Pool, before: Round, said: pa.Table, found: Measured) -> Change | None:
    """What a round gained over the one before it, on the images of this one that both say something of; None of none.

    By names, as they are today: the index of a class may have changed since, and two may have become one.

    Args:
        said: tables.MEASURED of the one before.
    """
    knew = pc.is_in(found.labels, value_set=names_now(before.predictions.classes, pool))
    both_N = pc.is_in(found.ids, value_set=said["sample_id"]).to_numpy() & knew.to_numpy()
    if not both_N.any():
        return None
    return paired_change(found.right(said, pool)[both_N], found.right(found.say, pool)[both_N])


def said_by(campaign: Campaign, before: Round) -> pa.Table:
    """tables.MEASURED of a round; worked out again where an older raykd has not kept it."""
    said = read_measured(campaign.round_place(before.number))
    return said if said.num_rows else what_it_says(before, aside_now(campaign))


# ---------------------------------------------------------------- what the next labels are likely to bring


def next_round(campaign: Campaign, pool: Pool, done: Round, found: Measured, num_labeled: int) -> Forecast:
    """What the next round is likely to be measured as, by all students so far on the images that measure today."""
    rounds = [(figures["num_labeled"], campaign.round_place(figures["round"])) for figures in campaign.figures()]
    tables = [(count, said) for count, place in rounds if has_most(said := read_measured(place), found)]
    tables.append((num_labeled, found.say))
    common_N = found.known_N
    for _, said in tables:
        common_N = common_N & pc.is_in(found.ids, value_set=said["sample_id"]).to_numpy()
    right_RN = np.stack([found.right(said, pool)[common_N] for _, said in tables])
    labels_R = np.array([count for count, _ in tables])
    ahead = num_labeled + budget_of(campaign, pool) - audits_of(campaign, pool)
    if (why := no_curve(labels_R, right_RN)) is not None:
        none: Forecast = NO_FORECAST | {"labels": ahead, "reason": why}
        return none
    latest_R = np.append(labels_R[1:] > labels_R[:-1], True)  # of rounds with as many labels the last
    right_RN = right_RN[latest_R]
    key = (campaign.config.seed, done.number)
    return forecast(labels_R[latest_R], right_RN.mean(axis=1), sampling_noise(right_RN), ahead, *key)


NO_FORECAST: Any = dict.fromkeys(("accuracy", "low", "high", "gain", "gain_low", "gain_high"))


def no_curve(labels_R: Sequence[int] | np.ndarray, right_RN: np.ndarray) -> str | None:
    """Why there is no curve to go on with; None where there is one."""
    if right_RN.shape[1] < 2:
        return "fewer than two images measure all rounds"
    if (np.diff(labels_R) < 0).any():
        return "there are fewer labels than in a round before: answers were withdrawn"
    return None


def has_most(said: pa.Table, found: Measured) -> bool:
    shared = pc.sum(pc.is_in(found.ids, value_set=said["sample_id"])).as_py() or 0
    return bool(shared >= ENOUGH_IN_COMMON * len(found.ids))


def price_of(campaign: Campaign, pool: Pool, ahead: Forecast, spent: int) -> PriceFigures | None:
    """What labels have cost, and what a point costs in the next round; None where no price is given."""
    price = campaign.config.labels.price
    if price is None:
        return None
    return {"spent": spent * price, **price_per_point(ahead, budget_of(campaign, pool), price)}


def labels_by_use(done: Round, num_labeled: int) -> dict[str, int]:
    """How many labels there are, by what they are for."""
    audited = pc.sum(pc.equal(done.labels.audited["outcome"], "label")).as_py() or 0
    return {"training": num_labeled, "audit": audited, "validation": done.deployed.num_validation}


def labeled(ids: pa.ChunkedArray, labels: pa.ChunkedArray, predictions: Predictions, pool: Pool) -> Labeled:
    """The images whose label (today's name or null) is a class of the student's, in order, with its logits."""
    indices = pc.index_in(labels, value_set=names_now(predictions.classes, pool), skip_nulls=True)
    kept = pc.is_valid(indices)
    ids = ids.filter(kept)
    return Labeled(ids, predictions.logits(ids), indices.filter(kept).to_numpy().astype(np.int64))


def to_choose_by(campaign: Campaign, pool: Pool, labels: Labels, predictions: Predictions) -> tuple[Labeled, str]:
    """What a mixture is chosen by, and what that is called: the validation split, else the audited images that may.

    Never test images, never any that the student was trained on.
    """
    found = predictions.split("val", pool)
    if len(found.labels_N) or pool.counts["val"]:
        return found, "validation"
    answers = labels.audited.filter(pc.equal(labels.audited["outcome"], "label"))
    answers = answers.filter(pc.is_in(answers["sample_id"], value_set=predictions.ids))
    answers = answers.filter(pa.array(may_choose(campaign, answers["sample_id"])))
    names = renamed_labels(answers["label"], pool.renamed)
    return labeled(answers["sample_id"], names, predictions, pool), "audited"
