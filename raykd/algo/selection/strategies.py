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
falcun         probs                      draws by uncertainty and L1 distance over probabilities
spread         probs, column              by a score, each at least so far from labeled rows and other picks
probcover      probs, column              whose ball holds most rows that no other ball covers
typiclust      column                     the most typical of each cluster, where few are labeled
uherding       probs, column              who covers most of the uncertain rows that are not covered well
============== ========================== ==========================================================================

"column": features, or probs where that option says so. ``balance`` is on top of any strategy (``balance.py``).

Other packages' strategies join by the entry point group ``raykd.strategies``: a :class:`Strategy`, or a class with the
same attributes. What they ask of the shards is sharded for free.

N pool rows, L labeled rows, C classes, D feature width, B budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from raykd.algo.errors import UserError, did_you_mean
from raykd.algo.selection import scores
from raykd.algo.selection.answers import Key, class_counts, lowest, vectors_by_ids, without_distances
from raykd.algo.selection.balance import balanced, class_balanced
from raykd.algo.selection.checks import check_rows
from raykd.algo.selection.cover import probcover, uherding
from raykd.algo.selection.distances import Euclidean, Gradients, Space
from raykd.algo.selection.falcun import falcun
from raykd.algo.selection.kcenter import Picked, farthest_first, sample_by_distance
from raykd.algo.selection.near_duplicates import Cap, capped
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import Score, Shard, Shards
from raykd.algo.selection.spread import spread_out
from raykd.algo.selection.typiclust import typiclust


@dataclass(frozen=True)
class Strategy:
    """A way to pick.

    Args:
        pick: From shards, labeled rows, budget and (seed, round number) to picks, and from options by their names; what
            it is given has been checked, but for the options' values.
        needs: The vectors it reads, of pool rows and labeled rows: "probs", "features", "vectors".
        needs_labels: Whether it reads the labels of labeled rows.
        options: What one may ask of it besides; with "column" among them, it reads that column instead of "features".
    """

    pick: Callable[..., Picked]
    needs: tuple[str, ...] = ()
    needs_labels: bool = False
    options: tuple[str, ...] = ()


def pick(
    strategy: str,
    shards: Shards,
    labeled: Rows | None,
    budget: int,
    seed: int,
    round_number: int = 0,
    cap: Cap | None = None,
    options: Mapping[str, Any] | None = None,
    balance: bool = False,
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
        options: Of that strategy, such as ``{"gamma": 5}``; those that are left out have the defaults of its function.
        balance: Serve the class with the fewest labels first, see :func:`raykd.algo.selection.balance.balanced`.

    Returns:
        Ids in pick order. ``distances`` are NaN for all but pcoreset, farthest, coreset, badge and spread, and where
        ``balance`` is on. ``draw_probabilities`` are those of random and falcun, NaN for all others and where ``cap``
        or ``balance`` decide too.

    Raises:
        UserError: Unknown strategy; an option that it does not look at, or a value that it has no use for; budget below
            1 or above N; vectors or labels that are missing, not finite, not probabilities or of different widths; ids
            that occur twice, or both here and there; too few rows that are not near-duplicates; a strategy of another
            package that picks other than it should.

    Example:
        >>> from raykd.algo.selection.shard import LocalShards
        >>> pool = Rows(["a", "b", "c"], probs=[[1, 0], [0, 1], [0.5, 0.5]])
        >>> pick("pcoreset", LocalShards.split(pool, 2), Rows(["z"], probs=[[0.9, 0.1]]), 2, seed=0).ids
        ['b', 'c']
    """
    chosen, options = known_strategy(strategy), dict(options or {})
    check_options(strategy, options, balance)
    labeled = Rows.none() if labeled is None else labeled
    needs, of_pool = _needs(chosen, options), needed(strategy, cap, options, balance)
    num_rows = check_rows(strategy, shards, labeled, budget, needs, of_pool, needs_labels(strategy, balance))

    def by_strategy(shards: Shards, budget: int) -> Picked:
        picked = chosen.pick(shards, labeled, budget, (seed, round_number), **options)
        if not len(picked.ids) == len(set(picked.ids)) == len(picked.distances) == budget:
            raise UserError(
                f"strategy {strategy!r} picked {len(picked.ids)} ids, {len(set(picked.ids))} different, with "
                f"{len(picked.distances)} distances; expected {budget} of each"
            )
        return picked

    def choose(shards: Shards, budget: int) -> Picked:
        return balanced(by_strategy, shards, labeled, budget) if balance else by_strategy(shards, budget)

    picked = choose(shards, budget) if cap is None else capped(choose, shards, budget, num_rows, cap)
    if cap is not None or picked.draw_probabilities is None:
        return picked._replace(draw_probabilities=np.full(budget, np.nan))
    return picked


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


def check_options(strategy: str, options: Mapping[str, Any], balance: bool = False) -> None:
    """Refuse options that the strategy does not look at, by UserError; their values are its own to check."""
    looked_at = _options(known_strategy(strategy))
    for name in options:
        if name not in looked_at:
            others = [other for other, each in STRATEGIES.items() if name in each.options]
            raise UserError(
                f"strategy {strategy!r} does not look at {name}; leave it out"
                + (f", or choose {' or '.join(others)}" if others else "")
            )
    if balance and strategy == "class_balanced":
        raise UserError("balance has no use with strategy 'class_balanced', which is balanced by itself; leave one out")


def needed(
    strategy: str, cap: Cap | None = None, options: Mapping[str, Any] | None = None, balance: bool = False
) -> tuple[str, ...]:
    """The vectors that pool rows must have: "probs", "features", "vectors"."""
    more = (*([] if cap is None else [cap.column]), *(["probs"] if balance else []))
    return tuple(dict.fromkeys([*_needs(known_strategy(strategy), options or {}), *more]))


def needs_labels(strategy: str, balance: bool = False) -> bool:
    """Whether labeled rows must have labels."""
    return balance or known_strategy(strategy).needs_labels


def _needs(strategy: Strategy, options: Mapping[str, Any]) -> tuple[str, ...]:
    """The vectors that pool rows and labeled rows must have, with those options."""
    column = options.get("column", "features") if "column" in _options(strategy) else "features"
    if column not in ("features", "probs"):
        raise UserError(f"column is {column!r}; expected 'features' or 'probs'")
    return tuple(dict.fromkeys(column if need == "features" else need for need in strategy.needs))


def _options(strategy: Strategy) -> tuple[str, ...]:
    return tuple(getattr(strategy, "options", ()))  # another package's may have been made before there were any


# ---------------------------------------------------------------- strategies


def random(shards: Shards, labeled: Rows, budget: int, key: Key) -> Picked:
    """Every row equally likely, by a keyed draw: with probability 1 / the number of rows left."""
    num_left_B = sum(shards.map(Shard.num_included)) - np.arange(budget)
    return without_distances(lowest(shards, scores.keyed_draw, budget, *key, "random"), 1 / num_left_B)


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
    only when nothing else is left, the smaller draw first. The draws' probabilities are not worked out: their
    denominator is the sum of all rows' distances, of which the engine looks at few.
    """
    first = lowest(shards, scores.keyed_draw, 1, *key, "badge")
    space = Gradients(len(class_counts(shards)))
    rest = sample_by_distance(shards, space, vectors_by_ids(shards, space, first), budget - 1, first, *key, "badge")
    return _prepended(first, rest)


STRATEGIES: dict[str, Strategy] = {
    "badge": Strategy(badge, needs=("probs", "features")),
    "class_balanced": Strategy(class_balanced, needs=("probs",), needs_labels=True),
    "coreset": Strategy(coreset, needs=("features",)),
    "entropy": Strategy(entropy, needs=("probs",)),
    "falcun": Strategy(falcun, needs=("probs",), options=("gamma",)),
    "farthest": Strategy(farthest, needs=("vectors",)),
    "margin": Strategy(margin, needs=("probs",)),
    "pcoreset": Strategy(pcoreset, needs=("probs",)),
    "probcover": Strategy(probcover, needs=("probs", "features"), options=("delta", "candidates", "column")),
    "random": Strategy(random),
    "spread": Strategy(spread_out, needs=("probs", "features"), options=("score", "apart", "column")),
    "typiclust": Strategy(typiclust, needs=("features",), options=("column",)),
    "uherding": Strategy(uherding, needs=("probs", "features"), options=("kernel_width", "candidates", "column")),
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
    return _prepended(first, farthest_first(shards, space, vectors_by_ids(shards, space, first), budget - 1, first))


def _prepended(first: list[str], rest: Picked) -> Picked:
    """Picks that follow a first one, which had no center to be far from."""
    return rest._replace(ids=first + rest.ids, distances=np.concatenate([[np.nan], rest.distances]))
