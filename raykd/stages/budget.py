"""How many labels the rounds to come will ask for, and whether there are as many images."""

from __future__ import annotations

import math
from typing import NamedTuple

import pyarrow.compute as pc

from raykd.errors import UserError
from raykd.stages.campaign import Campaign
from raykd.store.outputs import Pool

AUDIT_SHARE = 0.2  # of a budget, where there are no test images
ASIDE_SHARE, MOST_ASIDE = 0.05, 10_000  # of a pool; images, which are plenty
SPARE_ASIDE = 1.5  # times the audits that are planned: rounds are added


def budget_of(campaign: Campaign, pool: Pool) -> int:
    """Labels a round."""
    return campaign.config.selection.budget or len(pool.classes)


def audits_of(campaign: Campaign, pool: Pool) -> int:
    """How many of them measure; at least one, where any are to and the budget is not a single label.

    Raises:
        UserError: None would be left to learn from.
    """
    share, budget = campaign.config.labels.audit_share, budget_of(campaign, pool)
    if share is None:
        share = 0.0 if pool.counts["test"] else AUDIT_SHARE
    count = max(round(share * budget), int(share > 0 and budget > 1))
    if count >= budget:
        raise UserError(
            f"labels.audit_share: {share:g} of a budget of {budget} is {count}, and nothing is left to learn from: "
            "lower it, or raise selection.budget"
        )
    return count


class ToCome(NamedTuple):
    """Labels that the rounds to come ask for."""

    rounds: int  # that pick by the strategy
    learned: int  # from: the strategy's picks, and what a start draws
    audits: int


def to_come(campaign: Campaign, pool: Pool) -> ToCome:
    config, budget, audits = campaign.config, budget_of(campaign, pool), audits_of(campaign, pool)
    first, start = campaign.num_done, config.labels.start
    rounds = sum(number > 0 or start == "none" for number in range(first, config.rounds))
    drawn = num_drawn(campaign, pool) if start == "one_per_class" and not first else 0
    auditing = rounds + (start == "one_per_class" and not first)
    return ToCome(rounds, rounds * (budget - audits) + drawn, auditing * audits)


def check_budgets(campaign: Campaign, pool: Pool, num_images: int) -> None:
    """Whether the pool has as many images as the rounds to come will ask for: before people label.

    Args:
        num_images: Of the pool, as far as is known: listed, or readable.

    Raises:
        UserError: It has not; says how many rounds or labels would do.
    """
    config, budget, asked = campaign.config, budget_of(campaign, pool), to_come(campaign, pool)
    before = campaign.labels_before
    left = num_images - (before.num_answered if before else 0)
    if (total := asked.learned + asked.audits) > left:
        enough = max(0, left - (total - asked.rounds * budget)) // max(1, asked.rounds)
        lower = f"selection.budget (to {enough} or less) or rounds" if enough else "rounds"
        raise UserError(
            f"rounds {campaign.num_done} to {config.rounds - 1} with a budget of {budget} ask for {total} labels, and "
            f"the pool has {left} images that can be read and have none; lower {lower}"
        )
    if asked.audits:
        num_to_set_aside(campaign, pool, left)


def check_choosable(campaign: Campaign, pool: Pool) -> None:
    """Whether there is anything to choose a mixture by, where the config says how. Raises UserError."""
    how = campaign.config.mixture
    asked = {
        "objective": how.objective != "accuracy",
        "search": how.search in ("random", "optuna"),
        "points": how.points is not None,
    }
    names = [name for name, is_asked in asked.items() if is_asked and how.search]
    if names and not pool.counts["val"] and not audits_of(campaign, pool):
        raise UserError(
            f"mixture.{names[0]} says how to choose a mixture, and there are no labels to choose by: give val or "
            "val_share, or labels.audit_share (test images are not for choosing); or leave it out"
        )


def num_to_set_aside(campaign: Campaign, pool: Pool, num_images: int) -> int:
    """How many images audits are drawn from.

    Args:
        num_images: That can be read and have no answer.

    Raises:
        UserError: ``labels.audit_aside`` is too little for the audits to come, or leaves too few for the strategy.
    """
    share, asked = campaign.config.labels.audit_aside, to_come(campaign, pool)
    most = num_images - asked.learned
    if share is None:
        count = min(math.ceil(ASIDE_SHARE * num_images), MOST_ASIDE)
        count = max(count, math.ceil(SPARE_ASIDE * asked.audits))
        return min(max(count, asked.audits), most)
    count = math.ceil(share * num_images)
    if not asked.audits <= count <= most:
        raise UserError(
            f"labels.audit_aside: {share:g} sets {count} of {num_images} images aside, and the rounds to come ask for "
            f"{asked.audits} labels of these and {asked.learned} of others: expected {asked.audits / num_images:.2g} "
            f"to {most / num_images:.2g}"
        )
    return count


def num_drawn(campaign: Campaign, pool: Pool) -> int:
    """Labels that ``start: one_per_class`` draws."""
    counts = pc.value_counts(pool.split("pool")["label"]).to_pylist()
    return sum(min(campaign.config.labels.shots, each["counts"]) for each in counts if each["values"] in pool.classes)
