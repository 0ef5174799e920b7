"""What simulated arms say of the papers' claims: each one measured, with its interval, and whether it holds.

A claim compares two settings with all else alike, on every set: the mean over all such pairs of the difference in AUBC,
seed by seed, so that its interval and its test are over seeds. It *holds* where the sign-flip test shows it at 5 % (for
all claims together), is *refuted* where the test shows the contrary, else it is *not shown*. What is claimed of every
strategy holds where it is shown of each, and is refuted where the contrary is shown of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from raykd.algo.comparison import FEWEST, verdict
from raykd.algo.statistics import half_interval
from raykd.report.comparison import (
    STRATEGY,
    UNDECIDED,
    UNSET,
    Compared,
    Curves,
    area_differences,
    compared,
    jointly,
    one_change,
)
from raykd.report.comparison_words import markdown_table, p_words, points_of

HOLDS = {"better": "holds", "worse": "refuted"}
HEADINGS = ("Claim", "Measured: points of AUBC", "p", "Settings: better, worse, not shown", "Holds?")


@dataclass(frozen=True)
class Claim:
    """That one value of a field is better than others, with all else alike.

    Args:
        words: As the papers say it.
        key: The field.
        ours: The values that are claimed to be better, each of them.
        theirs: Than these; None: than every other one.
        of_every: Whether it is claimed of each pair, not of their mean.
        where: Which arms count.
    """

    words: str
    key: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...] | None
    of_every: bool = False
    where: Callable[[Curves], bool] = lambda _: True


def _distilled(arm: Curves) -> bool:
    return str(arm.settings.get("student.heads", "dho")) == "dho"


LEARNING = ("gda", "proker", "tip", "tip_f", "clap", "auto")  # rules of teachers that learn from labels

CLAIMS = (
    Claim("Distillation helps every strategy (dho against ce)", "student.heads", ("dho",), ("ce",), True),
    Claim("PCoreSet is ahead of every other strategy", STRATEGY, ("pcoreset",), None, True, _distilled),
    Claim("PCoreSet is ahead of random", STRATEGY, ("pcoreset",), ("random",), where=_distilled),
    Claim(
        "A few-shot teacher makes better students than a zero-shot one",
        "teacher.rule", LEARNING, (UNSET, "zero_shot"),
    ),
    Claim("Two heads are better than one (dho against ce+kd)", "student.heads", ("dho",), ("ce+kd",)),
    Claim(
        "Coverage in probability space is better than in feature space (pcoreset against coreset)",
        STRATEGY, ("pcoreset",), ("coreset",), where=_distilled,
    ),
)  # fmt: skip


def pairs_of(claim: Claim, found: Compared) -> list[tuple[Curves, Curves]]:
    """All pairs of arms that differ in the claim's field alone, and have its values."""
    pairs = []
    for ours in filter(claim.where, found.strategies):
        for theirs in filter(claim.where, found.strategies):
            change = one_change(theirs, ours)
            if change is None or change[0] != claim.key or change[2] not in claim.ours:
                continue
            if claim.theirs is None or change[1] in claim.theirs:
                pairs.append((ours, theirs))
    return pairs


def mean_by_seed(pairs: Sequence[tuple[Curves, Curves]]) -> dict[int, float]:
    """The mean over pairs of their differences, by seed: of the seeds that all pairs have."""
    rows = [area_differences(*pair) for pair in pairs]
    seeds = sorted(set.intersection(*map(set, rows))) if rows else []
    return {seed: float(np.mean([of[seed] for of in rows])) for seed in seeds}


def rounds_first(claim: Claim, found: Sequence[Compared]) -> str:
    """In how many of the rounds, of all sets and families, the claimed strategy has the highest mean."""
    first = total = 0
    for each in found:
        for arms in each.families.values():
            arms = [arm for arm in arms if claim.where(arm)]
            mine = next((arm for arm in arms if arm.strategy in claim.ours), None)
            if mine is None or len(arms) < 2:
                continue
            means = {
                arm.name: dict(zip(arm.labels_R.tolist(), arm.curves_SR.mean(axis=0), strict=True)) for arm in arms
            }
            for labels, accuracy in means[mine.name].items():
                others = [of[labels] for name, of in means.items() if name != mine.name and labels in of]
                if others:
                    total += 1
                    first += accuracy >= max(others)
    return f"highest mean in {first} of {total} rounds"


def claim_table(sets: Sequence[Compared]) -> str:
    """Markdown: a row a claim that the arms say something of."""
    rows = []
    asked = [(claim, [pair for found in sets for pair in pairs_of(claim, found)]) for claim in CLAIMS]
    asked = [(claim, pairs) for claim, pairs in asked if pairs]
    means = [mean_by_seed(pairs) for _, pairs in asked]
    for (claim, _), by_seed, p_value in zip(asked, means, jointly(means), strict=True):
        of_S = np.array(list(by_seed.values()))
        count = len(of_S)
        said = verdict(of_S, p_value) if count else UNDECIDED
        one_by_one = [each.said for found in sets for each in compared(pairs_of(claim, found))]
        shown = [one_by_one.count(word) for word in ("better", "worse")]
        settings = f"{shown[0]}, {shown[1]}, {len(one_by_one) - sum(shown)}"
        if claim.key == STRATEGY and claim.theirs is None:
            settings += f"; {rounds_first(claim, sets)}"
        if claim.of_every and count >= FEWEST:
            said = "worse" if shown[1] else "better" if shown[0] == len(one_by_one) else "no difference shown"
        word = HOLDS.get(said, f"not shown: {FEWEST} seeds are needed" if count < FEWEST else "not shown")
        rows.append(
            [
                claim.words,
                points_of(float(of_S.mean()) if count else np.nan, half_interval(of_S)),
                p_words(p_value),
                settings,
                word,
            ]
        )
    return "\n".join(markdown_table(HEADINGS, rows))
