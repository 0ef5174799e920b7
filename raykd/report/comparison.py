"""Simulated arms against each other, as a page shows it: what the seeds show, and what they cannot show.

``comparison_files.py`` reads the sets of results folders. Every word of better and worse is that of
``algo/comparison.py``.

An arm's *strategy* is its ``selection.strategy``; its *family* all else in which arms differ. Within a family
strategies are held against ``random``; where no arm is random, all are held against the first one. Arms that differ in
one field alone say what that field does. Areas are over the numbers of labels that all arms of a set have in common
(its *span*), straight between rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from raykd.algo.comparison import Bands, Verdict, aubc, bands, joint_sign_flips, verdict
from raykd.algo.rankings import Ranks, defeats, mean_ranks, penalty_matrix
from raykd.algo.statistics import half_interval

STRATEGY, BASE = "selection.strategy", "random"
GREEDY = "greedy_oracle."  # what the settings of an upper bound begin with
UNDECIDED: Verdict = "too few seeds to tell"


def is_bound(settings: Mapping[str, Any]) -> bool:
    """Whether an arm is an upper bound, which knows what no strategy can."""
    return any(key.startswith(GREEDY) for key in settings)


@dataclass(frozen=True, eq=False)
class Curves:
    """An arm on one set: what was measured, seed by seed.

    Args:
        name: Of the arm.
        settings: By dotted field, its value of all in which arms differ, as far as it is known.
        labels_R: Labels of each round.
        accuracies: By seed, float64 [R].
        teacher_R: Accuracy of the teacher, mean over seeds, float64 [R].
        seconds: Of a round, mean.
        span: First and last number of labels that its area is taken between; the same number: of one round.
    """

    name: str
    settings: Mapping[str, Any]
    labels_R: np.ndarray
    accuracies: Mapping[int, np.ndarray]
    teacher_R: np.ndarray
    seconds: float
    span: tuple[float, float]

    @property
    def strategy(self) -> str:
        return str(self.settings.get(STRATEGY, ""))

    @property
    def family(self) -> tuple[tuple[str, str], ...]:
        """Its settings but the strategy, as they can be compared; an upper bound's is that of the arms it bounds."""
        own = (each for each in self.settings.items() if each[0] != STRATEGY and not each[0].startswith(GREEDY))
        return tuple(sorted((key, str(value)) for key, value in own))

    @property
    def is_bound(self) -> bool:
        return is_bound(self.settings)

    @cached_property
    def curves_SR(self) -> np.ndarray:
        return np.stack([self.accuracies[seed] for seed in sorted(self.accuracies)])

    @cached_property
    def areas(self) -> dict[int, float]:
        """The AUBC of each seed over the span, of one round its accuracy; empty of an upper bound that is shorter."""
        low, high = self.span
        if self.labels_R[0] > low or self.labels_R[-1] < high:
            return {}
        inside = self.labels_R[(self.labels_R > low) & (self.labels_R < high)]
        labels = np.unique([low, *inside, high])
        cut = {seed: np.interp(labels, self.labels_R, curve) for seed, curve in self.accuracies.items()}
        return {seed: float(aubc(labels, curve) if low < high else curve[0]) for seed, curve in cut.items()}

    @property
    def area(self) -> float:
        """Mean over seeds; NaN where there is none."""
        return float(np.mean(list(self.areas.values()))) if self.areas else np.nan

    @cached_property
    def bands(self) -> Bands:
        return bands(self.curves_SR, self.name)


class Difference(NamedTuple):
    """Of AUBC between two arms, over the seeds of both."""

    ours: str
    theirs: str
    mean: float
    half: float  # of its 95 % interval (t); NaN of one seed
    p_value: float  # sign flips, of all that are compared together
    num_seeds: int
    said: Verdict


@dataclass(frozen=True)
class Compared:
    """All arms on one set."""

    name: str
    arms: tuple[Curves, ...]
    missing: tuple[str, ...] = ()  # arms, with the seeds that they lack
    made_by: str | None = None  # the version of raykd that simulated; None: nobody says

    @property
    def span(self) -> tuple[float, float]:
        return self.arms[0].span

    @property
    def is_curve(self) -> bool:
        """Whether there is an area: of a single round, there are accuracies."""
        return self.span[0] < self.span[1]

    @property
    def is_cut(self) -> bool:
        """Whether a strategy has labels outside the span."""
        return any((arm.labels_R[0], arm.labels_R[-1]) != self.span for arm in self.strategies)

    @cached_property
    def strategies(self) -> list[Curves]:
        """Without upper bounds."""
        return [arm for arm in self.arms if not arm.is_bound]

    @cached_property
    def families(self) -> dict[tuple[tuple[str, str], ...], list[Curves]]:
        found: dict[tuple[tuple[str, str], ...], list[Curves]] = {}
        for arm in self.strategies:
            found.setdefault(arm.family, []).append(arm)
        return found

    @property
    def is_apart(self) -> bool:
        """Whether every arm is a family of its own; then all are shown together."""
        return all(len(arms) == 1 for arms in self.families.values())

    @cached_property
    def has_random(self) -> bool:
        return any(arm.strategy == BASE for arm in self.strategies)

    def base_of(self, arm: Curves) -> Curves | None:
        """What an arm is held against: random with all else alike, or the first arm where no arm is random.

        None: it is that itself, or there is none with all else alike.
        """
        if not self.has_random:
            return None if arm.is_bound or arm is self.strategies[0] else self.strategies[0]
        found = next((each for each in self.families.get(arm.family, ()) if each.strategy == BASE), None)
        return None if found is arm else found

    @cached_property
    def against_base(self) -> dict[str, Difference]:
        """Each strategy against what it is held against, by arm; p-values of those with the same one together."""
        found: dict[str, Difference] = {}
        for arms in self.families.values() if self.has_random else [self.strategies]:
            pairs = [(arm, base) for arm in arms if (base := self.base_of(arm))]
            found |= {each.ours: each for each in compared(pairs)}
        return found

    @cached_property
    def by_setting(self) -> dict[str, list[Difference]]:
        """What one field does, but for strategies: all pairs of arms that differ in it alone, by "field: from, to"."""
        found: dict[str, list[tuple[Curves, Curves]]] = {}
        for theirs in self.strategies:
            for ours in self.strategies:
                if (change := one_change(theirs, ours)) and change[0] != STRATEGY:
                    key, before, after = change
                    if (before, after) in ordered_pairs(self.values_of(key)):
                        found.setdefault(f"{key}: {after} against {before}", []).append((ours, theirs))
        return {name: compared(pairs) for name, pairs in found.items()}

    def values_of(self, key: str) -> list[str]:
        """In the order in which arms first have them."""
        return list(dict.fromkeys(str(arm.settings.get(key, UNSET)) for arm in self.strategies))


UNSET = "as in the campaign"


def ordered_pairs(values: Sequence[str]) -> set[tuple[str, str]]:
    return {(before, after) for i, before in enumerate(values) for after in values[i + 1 :]}


def one_change(theirs: Curves, ours: Curves) -> tuple[str, str, str] | None:
    """The one field in which two arms differ, and both values; None where it is not just one."""
    keys = [
        key
        for key in dict.fromkeys([*theirs.settings, *ours.settings])
        if str(theirs.settings.get(key, UNSET)) != str(ours.settings.get(key, UNSET))
    ]
    if len(keys) != 1:
        return None
    return keys[0], str(theirs.settings.get(keys[0], UNSET)), str(ours.settings.get(keys[0], UNSET))


def compared(pairs: Sequence[tuple[Curves, Curves]]) -> list[Difference]:
    """Ours against theirs, of several pairs at once: 5 % is the chance of any false word among them."""
    rows = [(ours, theirs, area_differences(ours, theirs)) for ours, theirs in pairs]
    told = jointly([by_seed for _, _, by_seed in rows])
    found = []
    for (ours, theirs, by_seed), p_value in zip(rows, told, strict=True):
        of_S = np.array(list(by_seed.values()))
        count = len(of_S)
        said = verdict(of_S, p_value) if count else UNDECIDED
        mean = float(of_S.mean()) if count else np.nan
        found.append(Difference(ours.name, theirs.name, mean, half_interval(of_S), p_value, count, said))
    return found


def jointly(differences: Sequence[Mapping[int, float]]) -> list[float]:
    """The p-value of each comparison, by seed, among all of them (:func:`raykd.algo.comparison.joint_sign_flips`)."""
    seeds = sorted(set().union(*differences)) if differences else []
    if not seeds:
        return [1.0] * len(differences)
    p_values: list[float] = joint_sign_flips(
        np.array([[each.get(seed, np.nan) for seed in seeds] for each in differences])
    ).tolist()
    return p_values


def area_differences(ours: Curves, theirs: Curves) -> dict[int, float]:
    """Of AUBC, by seed that both have."""
    return {seed: ours.areas[seed] - theirs.areas[seed] for seed in sorted(ours.areas.keys() & theirs.areas.keys())}


# ---------------------------------------------------------------- rankings


class Penalties(NamedTuple):
    """Who beats whom in a family, and how often each is beaten."""

    names: list[str]
    matrix_AA: np.ndarray
    defeats_A: np.ndarray


def penalties(arms: Sequence[Curves]) -> Penalties | None:
    """Of arms with the same seeds and rounds; None of fewer than two."""
    if len(arms) < 2:
        return None
    seeds = sorted(set.intersection(*(set(arm.accuracies) for arm in arms)))
    labels = sorted(set.intersection(*(set(arm.labels_R.tolist()) for arm in arms)))
    if not seeds or not labels:
        return None
    columns = [np.flatnonzero(np.isin(arm.labels_R, labels)) for arm in arms]
    accuracies_ASR = np.stack(
        [np.stack([arm.accuracies[seed][at] for seed in seeds]) for arm, at in zip(arms, columns, strict=True)]
    )
    matrix_AA = penalty_matrix(accuracies_ASR)
    return Penalties([arm.name for arm in arms], matrix_AA, defeats(matrix_AA))


class Ranking(NamedTuple):
    """Arms over data sets."""

    arms: list[Curves]  # of the first set
    ranks: Ranks


def rankings(sets: Sequence[Compared]) -> list[Ranking]:
    """Of each family the arms that all sets have; nothing of fewer than three sets, or two such arms."""
    if len(sets) < 3:
        return []
    areas = [{arm.name: arm.area for arm in each.strategies} for each in sets]
    families = [sets[0].strategies] if sets[0].is_apart else list(sets[0].families.values())
    found = []
    for family in families:
        arms = [arm for arm in family if all(arm.name in of for of in areas)]
        if len(arms) > 1:
            scores_DA = np.array([[of[arm.name] for arm in arms] for of in areas])
            found.append(Ranking(arms, mean_ranks(scores_DA, "comparison")))
    return found
