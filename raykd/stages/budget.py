"""How many labels the rounds to come will ask for, and whether there are as many images."""

from __future__ import annotations

import pyarrow.compute as pc

from raykd.errors import UserError
from raykd.stages.campaign import Campaign
from raykd.store.outputs import Pool


def budget_of(campaign: Campaign, pool: Pool) -> int:
    """Picks a round."""
    return campaign.config.selection.budget or len(pool.classes)


def check_budgets(campaign: Campaign, pool: Pool, num_images: int) -> None:
    """Whether the pool has as many images as the rounds to come will ask for: before people label.

    Args:
        num_images: Of the pool, as far as is known: listed, or readable.

    Raises:
        UserError: It has not; says how many rounds or labels would do.
    """
    config, budget = campaign.config, budget_of(campaign, pool)
    first = campaign.num_done
    num_rounds = sum(number > 0 or config.labels.start == "none" for number in range(first, config.rounds))
    start = num_drawn(campaign, pool) if config.labels.start == "one_per_class" and not first else 0
    before = campaign.labels_before
    left = num_images - (before.num_answered if before else 0)
    if num_rounds * budget + start > left:
        enough = max(0, left - start) // max(1, num_rounds)
        lower = f"selection.budget (to {enough} or less) or rounds" if enough else "rounds"
        raise UserError(
            f"rounds {first} to {config.rounds - 1} with a budget of {budget} ask for {num_rounds * budget + start} "
            f"labels, and the pool has {left} images that can be read and have none; lower {lower}"
        )


def num_drawn(campaign: Campaign, pool: Pool) -> int:
    """Labels that ``start: one_per_class`` draws."""
    counts = pc.value_counts(pool.split("pool")["label"]).to_pylist()
    return sum(min(campaign.config.labels.shots, each["counts"]) for each in counts if each["values"] in pool.classes)
