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
farthest       vectors                    farthest-first over vectors of any kind
coreset        features                   farthest-first over features of length 1
badge          probs, features            k-means++ draws over gradient embeddings
============== ========================== ==========================================================================

Other packages' strategies join by the entry point group ``raykd.strategies``: a :class:`Strategy`, or a class with the
same attributes. What they ask of the shards is sharded for free.

N pool rows, L labeled rows, C classes, D feature width, B budget.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import entry_points

import numpy as np

from raykd.algo.errors import UserError, did_you_mean
from raykd.algo.selection import scores
from raykd.algo.selection.checks import check_rows
from raykd.algo.selection.distances import Euclidean, Gradients, Space
from raykd.algo.selection.kcenter import Picked, farthest_first, sample_by_distance
from raykd.algo.selection.near_duplicates import Cap, capped
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import Score, Shard, Shards

Key = tuple[int, int]  # seed, round


@dataclass(frozen=True)
class Strategy:
    """A way to pick.

    Args:
        pick: From shards, labeled rows, budget and (seed, round number) to picks; what it is given has been checked.
        needs: The vectors it reads, of pool rows and labeled rows: "probs", "features", "vectors".
        needs_labels: Whether it reads the labels of labeled rows.
    """

    pick: Callable[[Shards, Rows, int, Key], Picked]
    needs: tuple[str, ...] = ()
    needs_labels: bool = False


def pick(
    strategy: str,
    shards: Shards,
    labeled: Rows | None,
    budget: int,
    seed: int,
    round_number: int = 0,
    cap: Cap | None = None,
) -> Picked:
    """Choose ``budget`` pool rows to label, by the strategy of that name.

    Args:
        strategy: A name among :func:`names`.
        shards: The pool's unlabeled rows, with the vectors that the strategy (and ``cap``) needs.
        labeled: L labeled rows with the same vectors (and ``labels``, if needed), in any order; None: none yet.
        budget: B, 1 to N.
        seed: Of the campaign. Together with the number of the round it keys every draw.
        round_number: Counts from 0.
        cap: How many near-duplicates of each other may be picked; None: any number.

    Returns:
        Ids in pick order; ``distances`` are NaN for all but pcoreset, farthest, coreset and badge.

    Raises:
        UserError: Unknown strategy; budget below 1 or above N; vectors or labels that are missing, not finite, not
            probabilities or of different widths; ids that occur twice, or both here and there; too few rows that are
            not near-duplicates; a strategy of another package that picks other than it should.

    Example:
        >>> from raykd.algo.selection.shard import LocalShards
        >>> pool = Rows(["a", "b", "c"], probs=[[1, 0], [0, 1], [0.5, 0.5]])
        >>> pick("pcoreset", LocalShards.split(pool, 2), Rows(["z"], probs=[[0.9, 0.1]]), 2, seed=0).ids
        ['b', 'c']
    """
    chosen = known_strategy(strategy)
    labeled = Rows.none() if labeled is None else labeled
    compared = () if cap is None else (cap.column,)
    num_rows = check_rows(strategy, shards, labeled, budget, tuple(chosen.needs), compared, chosen.needs_labels)

    def choose(shards: Shards, budget: int) -> Picked:
        picked = chosen.pick(shards, labeled, budget, (seed, round_number))
        if not len(picked.ids) == len(set(picked.ids)) == len(picked.distances) == budget:
            raise UserError(
                f"strategy {strategy!r} picked {len(picked.ids)} ids, {len(set(picked.ids))} different, with "
                f"{len(picked.distances)} distances; expected {budget} of each"
            )
        return picked

    return choose(shards, budget) if cap is None else capped(choose, shards, budget, num_rows, cap)


# ---------------------------------------------------------------- by name


def names() -> list[str]:
    """The strategies there are: raykd's own, and those of installed packages."""
    return sorted({*STRATEGIES, *(point.name for point in entry_points(group=PLUG_INS))})


def known_strategy(name: str) -> Strategy:
    """The strategy of that name.

    Raises:
        UserError: There is none (lists those there are), several packages have one, or it cannot be loaded.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    found = list(entry_points(group=PLUG_INS, name=name))
    if not found:
        raise UserError(f"unknown strategy {name!r}; {did_you_mean(name, names())}")
    if len(found) > 1:
        raise UserError(f"strategy {name!r} is in several packages: {', '.join(point.value for point in found)}")
    try:
        loaded = found[0].load()
        return loaded() if isinstance(loaded, type) else loaded
    except Exception as error:
        raise UserError(f"strategy {name!r} ({found[0].value}) cannot be loaded: {error!r}") from error


def needed(strategy: str, cap: Cap | None = None) -> tuple[str, ...]:
    """The vectors that pool rows must have: "probs", "features", "vectors"."""
    needs = tuple(known_strategy(strategy).needs)
    return needs if cap is None or cap.column in needs else (*needs, cap.column)


# ---------------------------------------------------------------- strategies


def random(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """Every row equally likely, by a keyed draw."""
    return without_distances(lowest(shards, scores.keyed_draw, budget, *key, "random"))


def entropy(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """The rows whose probabilities have the highest entropy, 0 ln 0 = 0 (in PCoreSet's code: uncertainty)."""
    return without_distances(lowest(shards, scores.negative_entropy, budget))


def margin(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """The rows whose most probable class leads the second by least."""
    return without_distances(lowest(shards, scores.lead_of_first_class, budget))


def pcoreset(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """PCoreSet (arXiv 2506.00910): farthest-first over probabilities, starting from those of the labeled rows.

    With nothing labeled the first pick is the row farthest from the uniform distribution (the most confident one);
    its distance is NaN, as there is no center to measure from. The uniform distribution does not stay a center.
    """
    return _farthest_first(shards, Euclidean("probs", peaked=True), labeled, budget, scores.negative_peakedness)


def farthest(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """Farthest-first over vectors of any kind. With nothing labeled the first pick is a keyed random row."""
    return _farthest_first(shards, Euclidean("vectors"), labeled, budget, scores.keyed_draw, *key, "raw")


def coreset(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """Greedy k-center over features (Sener and Savarese 2018), each divided by its length.

    On unit vectors the Euclidean distance, sqrt(2 - 2 cos), orders pairs as 1 - cos does, which the paper's code uses.
    With nothing labeled the first pick is a keyed random row, its distance NaN: all unit vectors are equally long.
    """
    unit_features = Euclidean("features", unit_length=True)
    return _farthest_first(shards, unit_features, labeled, budget, scores.keyed_draw, *key, "coreset")


def badge(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """BADGE (Ash et al. 2020): k-means++ draws over the gradient embeddings of the last layer.

    The embedding is (onehot(argmax p) - p) ⊗ z, kept as its two factors. The first row is drawn uniformly, as the
    paper's k-means++ does (its authors' code takes the longest embedding instead); each next one with probability
    proportional to the squared distance to the nearest pick. Labeled rows take no part. Rows at distance 0 are taken
    only when nothing else is left, the smaller draw first.
    """
    first = lowest(shards, scores.keyed_draw, 1, *key, "badge")
    space = Gradients(len(_sum(shards.map(Shard.predicted))))
    rest = sample_by_distance(shards, space, _vectors(shards, space, first), budget - 1, first, *key, "badge")
    return _prepended(first, rest)


def class_balanced(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """More picks in predicted classes with few labels, as PCoreSet's code has it (PAPERS.md 4).

    Every class that is predicted for some pool row weighs total / (labels + 1), normalised; it gets floor(B * weight)
    picks, leftovers go one each to the heaviest classes (ties: smaller class). Inside a class picks are random, by
    keyed draws; what classes with too few rows leave open is filled by random rows. In the order heaviest class first,
    fillers last. Weights are exact fractions, so quotas do not hang on rounding.
    """
    available_C = _sum(shards.map(Shard.predicted))
    labels = np.zeros(0, np.int64) if labeled.labels is None else np.asarray(labeled.labels, np.int64)
    labels_C = np.bincount(labels, minlength=len(available_C))
    quotas = class_quotas(np.flatnonzero(available_C).tolist(), labels_C.tolist(), budget)
    answers = shards.map(Shard.lowest_in_classes, quotas, scores.keyed_draw, *key, "class_balanced")
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
    "farthest": Strategy(farthest, needs=("vectors",)),
    "margin": Strategy(margin, needs=("probs",)),
    "pcoreset": Strategy(pcoreset, needs=("probs",)),
    "random": Strategy(random),
}
PLUG_INS = "raykd.strategies"  # entry point group


# ---------------------------------------------------------------- parts of strategies


def _farthest_first(
    shards: Shards, space: Space, labeled: Rows, budget: int, first_by: Score, *key: int | str
) -> Picked:
    """Farthest-first from the labeled rows; with none, from the row with the lowest score of that name and key."""
    if len(labeled):
        return farthest_first(shards, space, space.vectors(labeled, slice(None)), budget)
    first = lowest(shards, first_by, 1, *key)
    return _prepended(first, farthest_first(shards, space, _vectors(shards, space, first), budget - 1, first))


def _prepended(first: list[str], rest: Picked) -> Picked:
    """Picks that follow a first one, which had no center to be far from."""
    return rest._replace(ids=first + rest.ids, distances=np.concatenate([[np.nan], rest.distances]))


def _vectors(shards: Shards, space: Space, ids: list[str]) -> np.ndarray:
    found = {name: vector_W for some in shards.map(Shard.vectors_by_id, space, ids) for name, vector_W in some.items()}
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
    return _merge(shards.map(Shard.lowest, score, count, *key), count)


def _merge(answers: list[tuple[np.ndarray, np.ndarray]], count: int) -> list[str]:
    """The ids of the ``count`` lowest scores of all shards' (scores, ids), rising, ties by id."""
    scores, ids = (np.concatenate(parts) for parts in zip(*answers, strict=True))
    by_id = np.argsort(ids, kind="stable")
    return ids[by_id[np.argsort(scores[by_id], kind="stable")]][:count].tolist()


def without_distances(ids: list[str]) -> Picked:
    """Picks in that order, with NaN distances."""
    return Picked(ids, np.full(len(ids), np.nan))
