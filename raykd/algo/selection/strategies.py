"""What to label next: every strategy under one contract.

:func:`pick` returns exactly ``budget`` different ids, all from the pool, in pick order: the same for any order of the
rows, any number of shards and a repeated (seed, round). Ties go to the smaller id; ids are compared as strings, by code
point ("10" comes before "9"). Nothing given is written to.

============== ========================== ==========================================================================
strategy       needs                      picks
============== ========================== ==========================================================================
random         nothing                    by a keyed draw
entropy        probs                      the highest entropy (natural logarithm, 0 ln 0 = 0)
margin         probs                      the smallest lead of the first class over the second
class_balanced probs, labels              random in each predicted class, more where labels are few
pcoreset       probs                      farthest-first over probabilities
coreset        features                   farthest-first over features of length 1
badge          probs, features            k-means++ draws over gradient embeddings
============== ========================== ==========================================================================

Other packages' strategies join by the entry point group ``raykd.strategies``: a :class:`Strategy`, or a class with the
same attributes. What they ask of the shards is sharded for free.

N pool rows, L labeled rows, C classes, D feature width, B budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import entry_points
from typing import Literal

import numpy as np

from raykd.algo import keyed
from raykd.algo.errors import UserError
from raykd.algo.selection import scores
from raykd.algo.selection.distances import Euclidean, Gradients, Space
from raykd.algo.selection.kcenter import Picks, farthest_first, sample_by_distance
from raykd.algo.selection.near_duplicates import Cap, capped
from raykd.algo.selection.rows import MOST_LENGTH, SUM_TOLERANCE, Report, Rows
from raykd.algo.selection.shard import Score, Shards, inspect

Key = tuple[int, int]  # seed, round


@dataclass(frozen=True)
class Strategy:
    """A way to pick.

    Args:
        pick: From shards, labeled rows, budget and (seed, round) to picks; what it is given has been checked.
        needs: The vectors it reads, of pool rows and labeled rows: "probs", "features".
        needs_labels: Whether it reads the labels of labeled rows.
    """

    pick: Callable[[Shards, Rows, int, Key], Picks]
    needs: tuple[str, ...] = ()
    needs_labels: bool = False


def pick(
    strategy: str,
    shards: Shards,
    labeled: Rows | None,
    budget: int,
    seed: int,
    round: int = 0,
    cap: Cap | None = None,
    space: Literal["probs", "raw"] = "probs",
) -> Picks:
    """Choose ``budget`` pool rows to label, by the strategy of that name.

    Args:
        strategy: A name among :func:`names`.
        shards: The pool's unlabeled rows, with the vectors that the strategy (and ``cap``) needs.
        labeled: L labeled rows with the same vectors (and ``labels``, if needed), in any order; None: none yet.
        budget: B, 1 to N.
        seed: Of the campaign. Together with the round it keys every draw.
        round: Counts from 0.
        cap: How many near-duplicates of each other may be picked; None: any number.
        space: "raw": ``probs`` may be any finite vectors; for pcoreset, which then is farthest-first over those.

    Returns:
        Ids in pick order; ``distances`` are NaN for all but pcoreset, coreset and badge.

    Raises:
        ValueError: Unknown strategy; budget below 1 or above N; vectors or labels that are missing, not finite, not
            probabilities or of different widths; ids that occur twice, or both here and there; too few rows that are
            not near-duplicates; a strategy of another package that picks other than it should.

    Example:
        >>> from raykd.algo.selection.shard import LocalShards
        >>> pool = Rows(["a", "b", "c"], probs=[[1, 0], [0, 1], [0.5, 0.5]])
        >>> pick("pcoreset", LocalShards.split(pool, 2), Rows(["z"], probs=[[0.9, 0.1]]), 2, seed=0).ids
        ['b', 'c']
    """
    chosen = known_strategy(strategy, space)
    labeled = Rows.none() if labeled is None else labeled
    num_rows = check(strategy, shards, labeled, budget, cap, space)

    def choose(shards: Shards, budget: int) -> Picks:
        picks = chosen.pick(shards, labeled, budget, (seed, round))
        if not len(picks.ids) == len(set(picks.ids)) == len(picks.distances) == budget:
            raise UserError(
                f"strategy {strategy!r} picked {len(picks.ids)} ids, {len(set(picks.ids))} different, with "
                f"{len(picks.distances)} distances; expected {budget} of each"
            )
        return picks

    return choose(shards, budget) if cap is None else capped(choose, shards, budget, num_rows, cap)


# ---------------------------------------------------------------- checks


def names() -> list[str]:
    """The strategies there are: raykd's own, and those of installed packages."""
    return sorted({*STRATEGIES, *(point.name for point in entry_points(group=PLUG_INS))})


def known_strategy(name: str, space: Literal["probs", "raw"] = "probs") -> Strategy:
    """The strategy of that name.

    Raises:
        ValueError: There is none (lists those there are), several packages have one, it cannot be loaded, or it has no
            use for raw vectors.
    """
    if space == "raw":
        if name != "pcoreset":
            raise UserError(f"strategy {name!r} with space 'raw'; expected pcoreset, as others need probabilities")
        return RAW
    if name in STRATEGIES:
        return STRATEGIES[name]
    found = list(entry_points(group=PLUG_INS, name=name))
    if not found:
        raise UserError(f"unknown strategy {name!r}; known: {', '.join(names())}")
    if len(found) > 1:
        raise UserError(f"strategy {name!r} is in several packages: {', '.join(point.value for point in found)}")
    try:
        loaded = found[0].load()
        return loaded() if isinstance(loaded, type) else loaded
    except Exception as error:
        raise UserError(f"strategy {name!r} ({found[0].value}) cannot be loaded: {error!r}") from error


def needed(strategy: str, cap: Cap | None = None, space: Literal["probs", "raw"] = "probs") -> tuple[str, ...]:
    """The vectors that must be there: "probs", "features"."""
    needs = tuple(known_strategy(strategy, space).needs)
    return needs if cap is None or cap.column in needs else (*needs, cap.column)


def check_budget(budget: int, num_rows: int) -> None:
    """Refuse a budget below 1 or above the number of rows there are to pick from, by ValueError."""
    if budget < 1:
        raise UserError(f"budget is {budget}; expected at least 1")
    if budget > num_rows:
        raise UserError(f"budget {budget} is larger than the pool: there are {num_rows} rows to pick from")


def check(
    strategy: str,
    shards: Shards,
    labeled: Rows,
    budget: int,
    cap: Cap | None = None,
    space: Literal["probs", "raw"] = "probs",
) -> int:
    """All of :func:`pick`'s errors, before any work; the number of rows. Cost: a pass over the vectors."""
    chosen = known_strategy(strategy, space)
    any_numbers = space == "raw"
    pool: list[Report] = shards.map("inspect", needed(strategy, cap, space), any_numbers)
    pool = [report for report in pool if report.num_rows]
    num_rows = sum(report.num_rows for report in pool)
    check_budget(budget, num_rows)
    given = inspect(labeled, chosen.needs, keyed.hash_ids(labeled.ids), any_numbers)
    reports = {"the pool": pool, "the labeled rows": [given] if len(labeled) else []}
    for name in needed(strategy, cap, space):
        for where, found in reports.items():
            if any(name not in report.widths for report in found) and (name in chosen.needs or where == "the pool"):
                raise UserError(f"strategy {strategy!r} needs {name}; there are no {name} in {where}")
    for where, found in reports.items():
        _refuse_bad(where, found, any_numbers)
    for name in chosen.needs:
        widths = {where: sorted({report.widths[name] for report in found}) for where, found in reports.items()}
        if len(set().union(*widths.values())) > 1:
            shown = "; ".join(f"{where}: {', '.join(map(str, sizes))}" for where, sizes in widths.items() if sizes)
            raise UserError(f"{name} differ in length ({shown}); expected one length for all rows")
    _refuse_shared_ids(shards, pool, labeled, given)
    if chosen.needs_labels and len(labeled):
        check_labels(labeled, pool[0].widths.get("probs"))
    return num_rows


def check_labels(labeled: Rows, num_classes: int | None) -> None:
    """Refuse labels that are missing or no class index below ``num_classes`` (None: any), by ValueError."""
    if labeled.labels is None:
        raise UserError("the labeled rows have no labels; expected a class index for each")
    labels_L = np.asarray(labeled.labels)
    num_classes = np.iinfo(np.int64).max if num_classes is None else num_classes
    if (wrong := np.flatnonzero((labels_L < 0) | (labels_L >= num_classes))).size:
        first = ", ".join(f"{labeled.ids[row]!r} has {labels_L[row]}" for row in wrong[:3])
        raise UserError(
            f"{wrong.size} labels are out of range, first: {first}; expected class indices 0 to {num_classes - 1}"
        )


def _refuse_bad(where: str, reports: list[Report], any_numbers: bool) -> None:
    if num_bad := sum(report.num_bad for report in reports):
        first = "; ".join(sorted(entry for report in reports for entry in report.first_bad)[:3])
        probs = "" if any_numbers else f"; probs also not negative and summing to 1 within {SUM_TOLERANCE}"
        raise UserError(
            f"{num_bad} vectors in {where} cannot be used, first: {first}. Expected finite numbers, no longer than "
            f"{MOST_LENGTH:.0g}{probs}"
        )


def _refuse_shared_ids(shards: Shards, pool: list[Report], labeled: Rows, given: Report) -> None:
    """Ids are compared by their hashes; the few that are equal are then asked for by name."""
    hashes_N = np.sort(np.concatenate([report.hashes_N for report in pool]))
    twice = hashes_N[1:][hashes_N[1:] == hashes_N[:-1]]
    at_L = np.minimum(np.searchsorted(hashes_N, given.hashes_N), len(hashes_N) - 1)
    suspects = np.concatenate([twice, given.hashes_N[hashes_N[at_L] == given.hashes_N]])
    here = Counter(name for names in shards.map("named", suspects) for name in names) if len(suspects) else Counter()
    there = Counter(labeled.ids.tolist())
    for ids, problem in (
        ([name for name in here if here[name] > 1], "occur more than once in the pool"),
        ([name for name in there if there[name] > 1], "occur more than once among the labeled rows"),
        ([name for name in here if name in there], "are both in the pool and among the labeled rows"),
    ):
        if ids:
            first = ", ".join(map(repr, sorted(ids)[:3]))
            raise UserError(f"{len(ids)} ids {problem}, first: {first}; expected every id once")


# ---------------------------------------------------------------- strategies


def random(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picks:
    """Every row equally likely, by a keyed draw."""
    return without_distances(lowest(shards, scores.keyed_draw, budget, *key, "random"))


def entropy(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picks:
    """The rows whose probabilities have the highest entropy, 0 ln 0 = 0 (in PCoreSet's code: uncertainty)."""
    return without_distances(lowest(shards, scores.negative_entropy, budget))


def margin(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picks:
    """The rows whose most probable class leads the second by least."""
    return without_distances(lowest(shards, scores.margin, budget))


def pcoreset(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picks:
    """PCoreSet (arXiv 2506.00910): farthest-first over probabilities, starting from those of the labeled rows.

    With nothing labeled the first pick is the row farthest from the uniform distribution (the most confident one);
    its distance is NaN, as there is no center to measure from. The uniform distribution does not stay a center.
    """
    return _farthest_first(shards, Euclidean("probs", peaked=True), labeled, budget, scores.negative_peakedness)


def _raw(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picks:
    """Farthest-first over vectors of any kind. With nothing labeled the first pick is a keyed random row."""
    return _farthest_first(shards, Euclidean("probs"), labeled, budget, scores.keyed_draw, *key, "raw")


def coreset(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picks:
    """Greedy k-center over features (Sener and Savarese 2018), each divided by its length.

    On unit vectors the Euclidean distance, sqrt(2 - 2 cos), orders pairs as 1 - cos does, which the paper's code uses.
    With nothing labeled the first pick is a keyed random row, its distance NaN: all unit vectors are equally long.
    """
    unit_features = Euclidean("features", unit_length=True)
    return _farthest_first(shards, unit_features, labeled, budget, scores.keyed_draw, *key, "coreset")


def badge(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picks:
    """BADGE (Ash et al. 2020): k-means++ draws over the gradient embeddings of the last layer.

    The embedding is (onehot(argmax p) - p) ⊗ z, kept as its two factors. The first row is drawn uniformly, as the
    paper's k-means++ does (its authors' code takes the longest embedding instead); each next one with probability
    proportional to the squared distance to the nearest pick. Labeled rows take no part. Rows at distance 0 are taken
    only when nothing else is left, the smaller draw first.
    """
    first = lowest(shards, scores.keyed_draw, 1, *key, "badge")
    space = Gradients(len(_sum(shards.map("predicted"))))
    rest = sample_by_distance(shards, space, _vectors(shards, space, first), budget - 1, first, *key, "badge")
    return _after(first, rest)


def class_balanced(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picks:
    """More picks in predicted classes with few labels, as PCoreSet's code has it (papers.md section 4).

    Every class that is predicted for some pool row weighs total / (labels + 1), normalised; it gets floor(B * weight)
    picks, leftovers go one each to the heaviest classes (ties: smaller class). Inside a class picks are random, by
    keyed draws; what classes with too few rows leave open is filled by random rows. In the order heaviest class first,
    fillers last. Weights are exact fractions, so quotas do not hang on rounding.
    """
    available_C = _sum(shards.map("predicted"))
    labels = np.zeros(0, np.int64) if labeled.labels is None else np.asarray(labeled.labels, np.int64)
    labels_C = np.bincount(labels, minlength=len(available_C))
    quotas = class_quotas(np.flatnonzero(available_C).tolist(), labels_C.tolist(), budget)
    answers = shards.map("lowest_in_classes", quotas, scores.keyed_draw, *key, "class_balanced")
    ids: list[str] = []
    for number, quota in quotas.items():
        ids += _merge([answer[number] for answer in answers if number in answer], quota)
    if len(ids) < budget:
        taken = set(ids)
        others = lowest(shards, scores.keyed_draw, budget, *key, "class_balanced", "filler")
        ids += [name for name in others if name not in taken][: budget - len(ids)]
    return without_distances(ids)


def class_quotas(predicted: list[int], labels_C: list[int], budget: int) -> dict[int, int]:
    """How many picks each predicted class gets, heaviest class first; sums to ``budget``.

    Example:
        >>> class_quotas([0, 1, 3], [3, 0, 0, 1], budget=10)
        {1: 6, 3: 3, 0: 1}
    """
    weights = {number: Fraction(1, labels_C[number] + 1) for number in predicted}
    heaviest_first = sorted(predicted, key=lambda number: (-weights[number], number))
    whole = sum(weights.values())
    quotas = {number: int(budget * weights[number] / whole) for number in heaviest_first}
    for number in heaviest_first[: budget - sum(quotas.values())]:
        quotas[number] += 1
    return {number: quota for number, quota in quotas.items() if quota}


STRATEGIES: dict[str, Strategy] = {
    "badge": Strategy(badge, needs=("probs", "features")),
    "class_balanced": Strategy(class_balanced, needs=("probs",), needs_labels=True),
    "coreset": Strategy(coreset, needs=("features",)),
    "entropy": Strategy(entropy, needs=("probs",)),
    "margin": Strategy(margin, needs=("probs",)),
    "pcoreset": Strategy(pcoreset, needs=("probs",)),
    "random": Strategy(random),
}
PLUG_INS = "raykd.strategies"  # entry point group
RAW = Strategy(_raw, needs=("probs",))


# ---------------------------------------------------------------- parts of strategies


def _farthest_first(
    shards: Shards, space: Space, labeled: Rows, budget: int, first_by: Score, *key: int | str
) -> Picks:
    """Farthest-first from the labeled rows; with none, from the row with the lowest score of that name and key."""
    if len(labeled):
        return farthest_first(shards, space, space.vectors(labeled, slice(None)), budget)
    first = lowest(shards, first_by, 1, *key)
    return _after(first, farthest_first(shards, space, _vectors(shards, space, first), budget - 1, first))


def _after(first: list[str], rest: Picks) -> Picks:
    """Picks that follow a first one, which had no center to be far from."""
    return rest._replace(ids=first + rest.ids, distances=np.concatenate([[np.nan], rest.distances]))


def _vectors(shards: Shards, space: Space, ids: list[str]) -> np.ndarray:
    found = {name: vector_W for some in shards.map("vectors", space, ids) for name, vector_W in some.items()}
    return np.array([found[name] for name in ids])


def _sum(counts: list[np.ndarray]) -> np.ndarray:
    """Of the shards' counts by class; empty shards have none."""
    return np.sum([counts_C for counts_C in counts if len(counts_C)], axis=0)


def lowest(shards: Shards, score: Score, count: int, *key: int | str) -> list[str]:
    """The ids of the pool's rows with the lowest score, rising, ties by id.

    Args:
        shards: The pool.
        score: From a shard and the key to numbers [N] (see ``scores``); computed where the rows are.
        count: How many rows.
        key: Handed to ``score``.
    """
    return _merge(shards.map("lowest", score, count, *key), count)


def _merge(answers: list[tuple[np.ndarray, np.ndarray]], count: int) -> list[str]:
    """The ids of the ``count`` lowest scores of all shards' (scores, ids), rising, ties by id."""
    scores, ids = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    by_id = np.argsort(ids, kind="stable")
    return ids[by_id[np.argsort(scores[by_id], kind="stable")]][:count].tolist()


def without_distances(ids: list[str]) -> Picks:
    """Picks in that order, with NaN distances."""
    return Picks(ids, np.full(len(ids), np.nan))
