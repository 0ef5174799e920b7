"""Which curves of simulated arms are drawn together, and which have a name and a color: for page and plot alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from raykd.report.comparison import BASE, Compared, Curves
from raykd.report.comparison_words import family_words
from raykd.report.words import known

NAMED = 4  # curves of a panel that have a name, beside what they are held against; others are gray


@dataclass(frozen=True, eq=False)
class Panel:
    """Curves that are drawn together, none of them an upper bound.

    Args:
        title: What they have in common.
        arms: At least one.
        bounds: Their upper bounds.
        base: What the others are held against, if it is among them.
        is_family: Whether they differ in their strategy alone, which is then what each is called.
    """

    title: str
    arms: Sequence[Curves]
    bounds: Sequence[Curves]
    base: Curves | None
    is_family: bool

    def label(self, arm: Curves) -> str:
        if arm.is_bound:
            return "bound"
        return arm.strategy or arm.name if self.is_family else arm.name

    @cached_property
    def best(self) -> Curves:
        return max(self.arms, key=lambda arm: arm.area)

    @cached_property
    def edges(self) -> tuple[float, float]:
        """The lowest and the highest value of a curve."""
        values = np.concatenate([arm.curves_SR.mean(axis=0) for arm in (*self.arms, *self.bounds)])
        return float(values.min()), float(values.max())

    @cached_property
    def teacher(self) -> list[tuple[float, float]]:
        """Labels and accuracy of the teacher, the mean over the arms with the rounds of the best; may be empty."""
        alike = [arm.teacher_R for arm in self.arms if np.array_equal(arm.labels_R, self.best.labels_R)]
        mean_R = np.mean(alike, axis=0)
        return [(x, y) for x, y in zip(self.best.labels_R.tolist(), mean_R.tolist(), strict=True) if known(y)]

    @property
    def teacher_is_near(self) -> bool:
        """Whether its line would leave room enough for the curves: at least half of the height."""
        (low, high), values = self.edges, [y for _, y in self.teacher]
        return bool(values) and max(high, *values) - min(low, *values) <= 2 * max(high - low, 0.01)


def panels_of(found: Compared) -> list[Panel]:
    """A panel for each family, or one for all arms where each family has only one."""
    bounds = [arm for arm in found.arms if arm.is_bound]
    first = found.strategies[0]
    if found.is_apart:
        against = next((arm for arm in found.strategies if arm.strategy == BASE), first)
        return [Panel(family_words(found.strategies), found.strategies, bounds, against, False)]
    panels = []
    for family, arms in found.families.items():
        base_strategy = BASE if found.has_random else first.strategy
        base = next((arm for arm in arms if arm.strategy == base_strategy), None)
        panels.append(Panel(family_words(arms), arms, [each for each in bounds if each.family == family], base, True))
    return panels


class Named(NamedTuple):
    """How a curve is drawn."""

    arm: Curves
    rank: int | None  # of its color; None: it is what others are held against


def named_labels(panels: Sequence[Panel]) -> list[str]:
    """What has a name and a color, the same in all panels: what is ahead of its panel's mean area the most, on average.

    What they are held against has its own.
    """
    ahead: dict[str, list[float]] = {}
    for panel in panels:
        middle = float(np.mean([arm.area for arm in panel.arms]))
        for arm in panel.arms:
            if arm is not panel.base:
                ahead.setdefault(panel.label(arm), []).append(arm.area - middle)
    return sorted(ahead, key=lambda label: -float(np.mean(ahead[label])))[:NAMED]


def named_arms(panel: Panel, labels: Sequence[str]) -> list[Named]:
    """The arms of a panel that have a name, the best last, so that it is drawn above the others."""
    found = [] if panel.base is None else [Named(panel.base, None)]
    others = [arm for arm in panel.arms if arm is not panel.base]
    found += [Named(arm, labels.index(label)) for arm in others if (label := panel.label(arm)) in labels]
    return sorted(found, key=lambda each: each.arm.area)
