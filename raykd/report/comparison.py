"""Simulated arms against each other, as a page shows it: what the seeds show, and what they cannot show.

From ``results.parquet`` (tables.RESULTS) and ``arms.json`` of one or several results folders to ``comparison.html``,
``comparison.md`` and ``comparison.png``. Every word of better and worse is that of ``algo/comparison.py``.

An arm's *strategy* is its ``selection.strategy``; its *family* all else that it sets. Within a family strategies are
held against ``random``; arms that differ in one field alone say what that field does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from raykd.algo.comparison import Bands, Verdict, aubc, bands, joint_sign_flips, verdict
from raykd.algo.rankings import Ranks, defeats, mean_ranks, penalty_matrix
from raykd.algo.statistics import student_t
from raykd.errors import UserError
from raykd.store.place import Place
from raykd.store.tables import RESULTS

STRATEGY, BASE = "selection.strategy", "random"
GREEDY = "greedy_oracle."  # what the settings of an upper bound begin with
UNDECIDED: Verdict = "too few seeds to tell"


@dataclass(frozen=True, eq=False)
class Curves:
    """An arm on one set: what was measured, seed by seed.

    Args:
        name: Of the arm.
        settings: What it sets, dotted fields.
        labels_R: Labels of each round.
        accuracies: By seed, float64 [R].
        teacher: Accuracy of the teacher in the last round, mean over seeds.
        seconds: Of a round, mean.
    """

    name: str
    settings: Mapping[str, Any]
    labels_R: np.ndarray
    accuracies: Mapping[int, np.ndarray]
    teacher: float
    seconds: float

    @property
    def strategy(self) -> str:
        return str(self.settings.get(STRATEGY, ""))

    @property
    def family(self) -> tuple[tuple[str, str], ...]:
        """All that it sets but the strategy, as it can be compared; an upper bound's is that of the arms it bounds."""
        own = (each for each in self.settings.items() if each[0] != STRATEGY and not each[0].startswith(GREEDY))
        return tuple(sorted((key, str(value)) for key, value in own))

    @property
    def is_bound(self) -> bool:
        """Whether it knows what no strategy can."""
        return any(key.startswith(GREEDY) for key in self.settings)

    @cached_property
    def curves_SR(self) -> np.ndarray:
        return np.stack([self.accuracies[seed] for seed in sorted(self.accuracies)])

    @cached_property
    def areas(self) -> dict[int, float]:
        """The AUBC of each seed; empty of a single round."""
        if len(self.labels_R) < 2:
            return {}
        return {seed: float(aubc(self.labels_R, curve)) for seed, curve in self.accuracies.items()}

    @property
    def area(self) -> float:
        return float(np.mean(list(self.areas.values()))) if self.areas else float(self.curves_SR.mean())

    @cached_property
    def bands(self) -> Bands:
        return bands(self.curves_SR, self.name)


class Difference(NamedTuple):
    """Of AUBC between two arms, over the seeds of both, on the rounds of both."""

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

    def base_of(self, arm: Curves) -> Curves | None:
        """What an arm is held against: random with all else alike; None: it is that, or there is none."""
        found = next((each for each in self.families.get(arm.family, ()) if each.strategy == BASE), None)
        return None if found is arm else found

    @cached_property
    def against_base(self) -> dict[str, Difference]:
        """Each strategy against random, by arm; p-values of a family together."""
        found: dict[str, Difference] = {}
        for arms in self.families.values():
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
        half = student_t(count - 1) * of_S.std(ddof=1) / count**0.5 if count > 1 else np.nan
        said = verdict(of_S, p_value) if count else UNDECIDED
        mean = float(of_S.mean()) if count else np.nan
        found.append(Difference(ours.name, theirs.name, mean, float(half), p_value, count, said))
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
    """Of AUBC by seed, on the numbers of labels that both were measured at; of a single round its accuracy."""
    seeds = sorted(ours.accuracies.keys() & theirs.accuracies.keys())
    common, at_ours, at_theirs = np.intersect1d(ours.labels_R, theirs.labels_R, return_indices=True)
    if not len(common):
        return {}
    both = [(ours.accuracies[seed][at_ours], theirs.accuracies[seed][at_theirs]) for seed in seeds]
    differences = np.array([a - b for a, b in both]).reshape(len(seeds), len(common))
    areas_S = aubc(common, differences) if len(common) > 1 else differences[:, 0]
    return dict(zip(seeds, areas_S.tolist(), strict=True))


# ---------------------------------------------------------------- reading


def read_comparison(folders: Sequence[Place]) -> list[Compared]:
    """The sets of one or several results folders, in their order.

    Raises:
        UserError: A folder has no results, a table of other columns, or an arm that is another one elsewhere.
    """
    found: list[Compared] = []
    settings: dict[str, Any] = {}
    for folder in folders:
        rows, arms = read_folder(folder)
        for name, values in arms.items():
            if settings.setdefault(name, values) != values:
                raise UserError(
                    f"arm {name!r} is {values} in {folder} and {settings[name]} in another folder; compare them apart"
                )
        for set_name in rows["set"].unique().to_pylist():
            if any(each.name == set_name for each in found):
                raise UserError(f"set {set_name!r} is in {folder} and in another folder; compare them apart")
            found.append(compared_set(set_name, rows.filter(pc.equal(rows["set"], set_name)), arms))
    return found


def read_folder(folder: Place) -> tuple[Any, dict[str, Any]]:
    """tables.RESULTS and what each arm sets. Raises UserError."""
    table, arms = folder / "results.parquet", folder / "arms.json"
    if not table.exists() or not arms.exists():
        raise UserError(f"{folder} has no results.parquet and arms.json; give the results_path of jobs/simulate.py")
    rows = table.read_table()
    if rows.column_names != RESULTS.names:
        raise UserError(f"{table} has the columns {rows.column_names}; expected {RESULTS.names}: simulate anew")
    if not rows.num_rows:
        raise UserError(f"{table} has no row yet: run jobs/simulate.py until a cell is done")
    return rows, arms.read_json()


def compared_set(name: str, rows: Any, arms: Mapping[str, Any]) -> Compared:
    """One set's rows as curves; an arm's rounds are those that all of its seeds have."""
    seeds = set(rows["seed"].to_pylist())
    curves, missing = [], []
    for arm in rows["arm"].unique().to_pylist():
        mine = rows.filter(pc.equal(rows["arm"], arm)).sort_by([("seed", "ascending"), ("round", "ascending")])
        by_seed: dict[int, dict[int, float]] = {}
        for seed, labels, accuracy in zip(
            *(mine[each].to_pylist() for each in ("seed", "labels", "accuracy")), strict=True
        ):
            by_seed.setdefault(seed, {})[labels] = accuracy
        common = sorted(set.intersection(*(set(each) for each in by_seed.values())))
        if not common:
            raise UserError(f"arm {arm!r} of set {name!r} has no number of labels that all its seeds were measured at")
        last = mine.filter(pc.equal(mine["round"], pc.max(mine["round"])))
        curves.append(
            Curves(
                arm, arms.get(arm, {}), np.array(common),
                {seed: np.array([each[labels] for labels in common]) for seed, each in by_seed.items()},
                float(np.mean(last["teacher"].to_numpy())), float(np.mean(mine["seconds"].to_numpy())),
            )
        )  # fmt: skip
        if lacking := sorted(seeds - by_seed.keys()):
            missing.append(f"{arm} (seeds {', '.join(map(str, lacking))})")
    return Compared(name, tuple(curves), tuple(missing))


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


@dataclass(frozen=True)
class Ranking:
    """Arms over data sets."""

    names: list[str]
    ranks: Ranks
    sets: list[str] = field(default_factory=list)


def ranking(sets: Sequence[Compared]) -> Ranking | None:
    """Of the arms that all sets have; None of fewer than three sets or two arms."""
    names = [arm.name for arm in sets[0].strategies]
    for each in sets[1:]:
        there = {arm.name for arm in each.strategies}
        names = [name for name in names if name in there]
    if len(sets) < 3 or len(names) < 2:
        return None
    by_name = [{arm.name: arm.area for arm in each.strategies} for each in sets]
    scores_DA = np.array([[areas[name] for name in names] for areas in by_name])
    return Ranking(names, mean_ranks(scores_DA, "comparison"), [each.name for each in sets])
