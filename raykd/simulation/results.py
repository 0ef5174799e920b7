"""What a simulation leaves: a file a cell, and all of them as one table.

::

    <results_path>/
      simulation.json          the definition that all of it belongs to, compared at the next start
      arms.json                of each arm what differs from the campaign
      problem/<key>/           images, features and the teacher's opinion, as tables
      cells/<set>/<arm>/seed_000.parquet      tables.RESULTS, a row a round; whole or absent
      campaigns/<set>/<arm>/seed_000/         whole campaigns, of students that are no heads on stored features
      results.parquet results.csv             all rows; views, written anew
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

import raykd
from raykd.algo.comparison import aubc
from raykd.errors import UserError
from raykd.simulation.definition import Simulation, slug
from raykd.store.place import Place
from raykd.store.stage_folder import differences
from raykd.store.tables import RESULTS, checked

VERSION = 1  # of what the cells' rows say under the same definition
SIMULATION_FILE, ARMS_FILE, RESULTS_FILE, CSV_FILE = "simulation.json", "arms.json", "results.parquet", "results.csv"


def cell_place(results: Place, set_name: str, arm: str, seed: int) -> Place:
    """The file of a cell's rows."""
    return results / "cells" / slug(set_name) / slug(arm) / f"seed_{seed:03d}.parquet"


def result_rows(set_name: str, arm: str, seed: int, rows: Sequence[Mapping[str, float]]) -> pa.Table:
    """tables.RESULTS of one cell, from its rounds' figures."""
    same = {"set": set_name, "arm": arm, "seed": seed}
    return checked(pa.Table.from_pylist([{**row, **same} for row in rows], RESULTS), RESULTS)


def all_results(results: Place, simulation: Simulation) -> pa.Table:
    """tables.RESULTS of all cells that are there, by set, arm, seed and round in the order of the definition."""
    files = [
        cell_place(results, set_name, arm, seed)
        for set_name in simulation.sets
        for arm in simulation.arms
        for seed in simulation.seeds()
    ]
    return pa.concat_tables([RESULTS.empty_table(), *(file.read_table() for file in files if file.exists())])


def write_results(results: Place, table: pa.Table) -> None:
    """The rows of all cells, as Parquet and as CSV."""
    (results / RESULTS_FILE).write_table(checked(table, RESULTS))
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table, sink)
    (results / CSV_FILE).write_bytes(sink.getvalue().to_pybytes())


# ---------------------------------------------------------------- the definition that they belong to


def check_same_simulation(results: Place, simulation: Simulation) -> None:
    """Whether a folder is new, or holds results of this very simulation; arms and seeds may have become more.

    Raises:
        UserError: It holds another one, or something else; says what differs.
    """
    file = results / SIMULATION_FILE
    if not file.exists():
        if results.is_local and any(Path(results.path).glob("[!.]*")):
            raise UserError(f"results_path {results} is not empty and holds no simulation; give a new folder")
        return
    said = file.read_json()
    try:
        version, before = said["version"], said["simulation"]
        now = copy.deepcopy(simulation.identity())
        now["arms"] = {name: now["arms"][name] for name in before["arms"] if name in now["arms"]}
        now["seeds"] = before["seeds"] if now["seeds"] > before["seeds"] else now["seeds"]
    except (KeyError, TypeError):
        raise UserError(f"{file} is damaged, or not of this raykd: give a new results_path") from None
    if changed := differences({"version": version, **before}, {"version": VERSION, **now}):
        raise UserError(
            f"{results} holds results of another simulation: {'; '.join(changed)}. Arms and seeds may be added; for "
            "all else give another results_path"
        )


def note_simulation(results: Place, simulation: Simulation) -> None:
    """Note the definition, and what each arm is."""
    about: dict[str, Any] = {"version": VERSION, "raykd": raykd.__version__, "simulation": simulation.identity()}
    for name, value in ((SIMULATION_FILE, about), (ARMS_FILE, {n: a.overrides for n, a in simulation.arms.items()})):
        if not (results / name).exists() or (results / name).read_json() != value:
            (results / name).write_json(value)


# ---------------------------------------------------------------- a table for people


def results_in_words(table: pa.Table, simulation: Simulation) -> str:
    """Of each arm the mean over seeds of the last round's accuracy, and of the area under its curve (AUBC)."""
    lines = [
        f"{'set':<16} {'arm':<32} {'seeds':>5} {'labels':>7} {'accuracy':>9} {'AUBC':>7} {'teacher':>8} {'a round':>8}"
    ]
    for set_name in simulation.sets:
        for arm in simulation.arms:
            mine = table.filter(pc.and_(pc.equal(table["set"], set_name), pc.equal(table["arm"], arm)))
            if not mine.num_rows:
                continue
            seeds = mine["seed"].unique().to_pylist()
            curves = [mine.filter(pc.equal(mine["seed"], seed)).sort_by("round") for seed in seeds]
            last = [curve.slice(curve.num_rows - 1) for curve in curves]
            accuracy, teacher = (
                float(np.mean([each[name][0].as_py() for each in last])) for name in ("accuracy", "teacher")
            )
            lines.append(
                f"{set_name:<16.16} {arm:<32.32} {len(seeds):>5} {last[0]['labels'][0].as_py():>7} {accuracy:>9.1%} "
                f"{mean_area(curves):>7} {teacher:>8.1%} {np.mean(mine['seconds'].to_numpy()):>6.2f} s"
            )
    return "\n".join(lines)


def mean_area(curves: Sequence[pa.Table]) -> str:
    """The mean AUBC of some curves, in words; a dash of a single round."""
    if min(curve.num_rows for curve in curves) < 2:
        return "-"
    areas = [float(aubc(curve["labels"].to_numpy(), curve["accuracy"].to_numpy())) for curve in curves]
    return f"{np.mean(areas):.1%}"
