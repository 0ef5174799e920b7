"""The results folders of simulations as sets of curves; what is wrong with them is said.

A folder holds ``results.parquet`` (tables.RESULTS) and ``arms.json`` (by arm, the dotted fields that it sets). What an
arm leaves as it is in the campaign is read from ``simulation.json``, where that is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.errors import UserError
from raykd.report.comparison import UNSET, Compared, Curves, is_bound
from raykd.store.place import Place
from raykd.store.stage_folder import flatten
from raykd.store.tables import RESULTS


class ResultsFolder(NamedTuple):
    """What a simulation has left."""

    place: Place
    rows: pa.Table  # tables.RESULTS
    arms: Mapping[str, Mapping[str, Any]]  # by arm, what it sets
    campaign: Mapping[str, Any]  # by dotted field, what all arms begin with; empty where nobody says
    made_by: str | None  # the version of raykd


def read_comparison(folders: Sequence[Place]) -> list[Compared]:
    """The sets of one or several results folders, in their order.

    Raises:
        UserError: A folder has no results, a table of other columns, or an arm that is another one elsewhere; arms of
            a set have no number of labels in common.
    """
    read = [read_folder(folder) for folder in folders]
    fields = dict.fromkeys(key for each in read for arm in each.arms.values() for key in arm if not is_bound(arm))
    found: list[Compared] = []
    settings: dict[str, Any] = {}
    for folder in read:
        same = {key: folder.campaign[key] for key in fields if key in folder.campaign}
        arms = {name: same | dict(values) for name, values in folder.arms.items()}
        for name, values in arms.items():
            before = values if is_bound(values) else settings.setdefault(name, values)
            if differ := [key for key in fields if before.get(key, UNSET) != values.get(key, UNSET)]:
                raise UserError(
                    f"arm {name!r} has {differ[0]} {values.get(differ[0], UNSET)} in {folder.place} and "
                    f"{before.get(differ[0], UNSET)} in another folder; compare them apart"
                )
        for set_name in folder.rows["set"].unique().to_pylist():
            if any(each.name == set_name for each in found):
                raise UserError(f"set {set_name!r} is in {folder.place} and in another folder; compare them apart")
            rows = folder.rows.filter(pc.equal(folder.rows["set"], set_name))
            found.append(compared_set(set_name, rows, arms, folder.made_by))
    return found


def read_folder(place: Place) -> ResultsFolder:
    """What lies in a results folder, checked. Raises UserError."""
    table, arms_file, definition = place / "results.parquet", place / "arms.json", place / "simulation.json"
    if not table.exists() or not arms_file.exists():
        raise UserError(f"{place} has no results.parquet and arms.json; give the results_path of jobs/simulate.py")
    try:
        rows = table.read_table()
        if rows.column_names != RESULTS.names:
            raise UserError(f"{table} has the columns {rows.column_names}; expected {RESULTS.names}: simulate anew")
        rows = rows.cast(RESULTS)
    except pa.ArrowInvalid as error:
        raise UserError(
            f"{table} is no table of results ({error}); run jobs/simulate.py again, it is made anew"
        ) from error
    if not rows.num_rows:
        raise UserError(f"{table} has no row yet: run jobs/simulate.py until a cell is done")
    if unmeasured := int(pc.sum(pc.invert(pc.is_finite(pc.fill_null(rows["accuracy"], np.nan)))).as_py()):
        raise UserError(f"{table} has {unmeasured} rows without an accuracy; arms are compared by it, on test images")
    arms = arms_file.read_json()
    if not isinstance(arms, dict) or not all(isinstance(values, dict) for values in arms.values()):
        raise UserError(
            f"{arms_file} holds no mapping of arms; expected {{arm: {{field: value}}}}, as simulate.py has it"
        )
    if unknown := set(rows["arm"].to_pylist()) - arms.keys():
        raise UserError(
            f"{arms_file} says nothing of arm {min(unknown)!r}, which has results; run jobs/simulate.py again"
        )
    said = definition.read_json() if definition.exists() else {}
    campaign = flatten(said.get("simulation", {}).get("campaign", {}))
    return ResultsFolder(place, rows, arms, campaign, said.get("raykd"))


def compared_set(
    name: str, rows: pa.Table, arms: Mapping[str, Mapping[str, Any]], made_by: str | None = None
) -> Compared:
    """One set's rows as curves; an arm's rounds are those that all of its seeds have."""
    seeds = sorted(set(rows["seed"].to_pylist()))
    measured = {arm: arm_rounds(name, arm, rows.filter(pc.equal(rows["arm"], arm))) for arm in arms}
    there = {arm: each for arm, each in measured.items() if each is not None}
    strategies = [arm for arm in there if not is_bound(arms[arm])] or list(there)
    latest = max(strategies, key=lambda arm: there[arm].labels_R[0])
    shortest = min(strategies, key=lambda arm: there[arm].labels_R[-1])
    span = float(there[latest].labels_R[0]), float(there[shortest].labels_R[-1])
    if span[0] > span[1]:
        raise UserError(
            f"set {name!r}: arm {latest!r} begins at {span[0]:,.0f} labels, and {shortest!r} ends at "
            f"{span[1]:,.0f}; areas are compared over labels that all arms have: compare them apart"
        )
    curves = [Curves(arm, arms[arm], *each, span) for arm, each in there.items()]
    missing = [
        f"{arm} (seeds {', '.join(map(str, lacking))})" if arm in there else f"{arm} (all seeds)"
        for arm in arms
        if (lacking := [seed for seed in seeds if arm not in there or seed not in there[arm].accuracies])
    ]
    return Compared(name, tuple(curves), tuple(missing), made_by)


class ArmRounds(NamedTuple):
    """The fields of Curves that are measured."""

    labels_R: np.ndarray
    accuracies: dict[int, np.ndarray]
    teacher_R: np.ndarray
    seconds: float


def arm_rounds(set_name: str, arm: str, rows: pa.Table) -> ArmRounds | None:
    """An arm's rounds; None where no seed is done."""
    by_seed: dict[int, dict[int, tuple[float, float]]] = {}
    columns = (rows[each].to_pylist() for each in ("seed", "labels", "accuracy", "teacher"))
    for seed, labels, accuracy, teacher in zip(*columns, strict=True):
        by_seed.setdefault(seed, {})[labels] = accuracy, np.nan if teacher is None else teacher
    if not by_seed:
        return None
    common = sorted(set.intersection(*map(set, by_seed.values())))
    if not common:
        raise UserError(f"arm {arm!r} of set {set_name!r} has no number of labels that all its seeds were measured at")
    pairs = {seed: np.array([of[labels] for labels in common]) for seed, of in by_seed.items()}
    teachers_SR = np.stack([of[:, 1] for of in pairs.values()])
    seconds = float(np.mean(rows["seconds"].to_numpy()))
    return ArmRounds(
        np.array(common), {seed: of[:, 0] for seed, of in pairs.items()}, teachers_SR.mean(axis=0), seconds
    )
