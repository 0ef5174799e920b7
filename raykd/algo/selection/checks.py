"""What is refused before any work: impossible budgets, vectors that cannot be used, ids that occur twice.

N pool rows, L labeled rows, B budget.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from raykd.algo import keyed
from raykd.algo.errors import UserError
from raykd.algo.selection.rows import MOST_LENGTH, SUM_TOLERANCE, Inspection, Rows, inspect_rows
from raykd.algo.selection.shard import Shard, Shards


def check_budget(budget: int, num_rows: int) -> None:
    """Refuse a budget below 1 or above the number of rows there are to pick from, by UserError."""
    if budget < 1:
        raise UserError(f"budget is {budget}; expected at least 1")
    if budget > num_rows:
        raise UserError(f"budget {budget} is larger than the pool: there are {num_rows} rows to pick from")


def check_rows(
    strategy: str,
    shards: Shards,
    labeled: Rows,
    budget: int,
    needs: tuple[str, ...],
    of_pool: tuple[str, ...] = (),
    needs_labels: bool = False,
) -> int:
    """Refuse what cannot be picked from, before any work. Cost: a pass over the vectors.

    Args:
        strategy: Its name, for the messages.
        shards: The pool.
        labeled: The labeled rows.
        budget: B.
        needs: Vectors that pool rows and labeled rows must have.
        of_pool: Vectors that pool rows must have besides.
        needs_labels: Whether labeled rows must have labels.

    Returns:
        N.

    Raises:
        UserError: A budget that is impossible; vectors or labels that are missing, not finite, not probabilities, or of
            different widths; ids that occur twice, or both here and there.
    """
    all_needs = tuple(dict.fromkeys([*needs, *of_pool]))
    pool = [report for report in shards.map(Shard.inspect, all_needs) if report.num_rows]
    num_rows = sum(report.num_rows for report in pool)
    check_budget(budget, num_rows)
    given, _ = inspect_rows(labeled, needs, keyed.hash_ids(labeled.ids))
    reports = {"the pool": pool, "the labeled rows": [given] if len(labeled) else []}
    for name in all_needs:
        for where, found in reports.items():
            if any(name not in report.widths for report in found) and (name in needs or where == "the pool"):
                raise UserError(f"strategy {strategy!r} needs {name}; there are no {name} in {where}")
    for where, found in reports.items():
        _refuse_bad(where, found)
    for name in needs:
        widths = {where: sorted({report.widths[name] for report in found}) for where, found in reports.items()}
        if len(set().union(*widths.values())) > 1:
            shown = "; ".join(f"{where}: {', '.join(map(str, sizes))}" for where, sizes in widths.items() if sizes)
            raise UserError(f"{name} differ in length ({shown}); expected one length for all rows")
    _refuse_shared_ids(shards, pool, labeled, given)
    if needs_labels and len(labeled):
        check_labels(labeled, pool[0].widths.get("probs"))
    return num_rows


def check_labels(labeled: Rows, num_classes: int | None) -> None:
    """Refuse labels that are missing or no class index below ``num_classes`` (None: any), by UserError."""
    if labeled.labels is None:
        raise UserError("the labeled rows have no labels; expected a class index for each")
    labels_L = np.asarray(labeled.labels)
    num_classes = np.iinfo(np.int64).max if num_classes is None else num_classes
    if (wrong := np.flatnonzero((labels_L < 0) | (labels_L >= num_classes))).size:
        first = ", ".join(f"{labeled.ids[row]!r} has {labels_L[row]}" for row in wrong[:3])
        raise UserError(
            f"{wrong.size} labels are out of range, first: {first}; expected class indices 0 to {num_classes - 1}"
        )


def _refuse_bad(where: str, reports: list[Inspection]) -> None:
    if num_bad := sum(report.num_bad for report in reports):
        first = "; ".join(sorted(entry for report in reports for entry in report.first_bad)[:3])
        has_probs = any("probs" in report.widths for report in reports)
        probs = f"; probs also not negative and summing to 1 within {SUM_TOLERANCE}" if has_probs else ""
        raise UserError(
            f"{num_bad} vectors in {where} cannot be used, first: {first}. Expected finite numbers, no longer than "
            f"{MOST_LENGTH:.0g}{probs}"
        )


def _refuse_shared_ids(shards: Shards, pool: list[Inspection], labeled: Rows, given: Inspection) -> None:
    """Ids are compared by their hashes; the few that are equal are then asked for by name."""
    hashes_N = np.sort(np.concatenate([report.hashes_N for report in pool]), kind="stable")  # merges what is sorted
    twice = hashes_N[1:][hashes_N[1:] == hashes_N[:-1]]
    at_L = np.minimum(np.searchsorted(hashes_N, given.hashes_N), len(hashes_N) - 1)
    suspects = np.concatenate([twice, given.hashes_N[hashes_N[at_L] == given.hashes_N]])
    found = shards.map(Shard.ids_of_hashes, suspects) if len(suspects) else []
    here = Counter(name for ids in found for name in ids)
    there = Counter(labeled.ids.tolist())
    for ids, problem in (
        ([name for name in here if here[name] > 1], "occur more than once in the pool"),
        ([name for name in there if there[name] > 1], "occur more than once among the labeled rows"),
        ([name for name in here if name in there], "are both in the pool and among the labeled rows"),
    ):
        if ids:
            first = ", ".join(map(repr, sorted(ids)[:3]))
            raise UserError(f"{len(ids)} ids {problem}, first: {first}; expected every id once")
