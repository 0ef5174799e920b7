"""Cells of a simulation, side by side: long-lived actors, one a CPU, each with the problem in its memory.

Cells of one seed go to one actor, which keeps that seed's first rounds; an actor that has nothing left takes cells from
another's seed, and goes through their first round once more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from raykd.config import Config
from raykd.errors import UserError
from raykd.models.threads import num_cores
from raykd.simulation.definition import Simulation
from raykd.simulation.results import check_same_simulation, note_simulation
from raykd.simulation.runner import Cell, CellRunner
from raykd.stages.progress import Progress
from raykd.stages.resources import Bundles, Patience
from raykd.stages.session import Session
from raykd.stages.work import Work
from raykd.store.lock import only_job
from raykd.store.place import Place

RETRIES = 3  # of a cell whose actor dies


@contextmanager
def open_simulation(simulation: Simulation) -> Iterator[Work]:
    """Hold the folder of the results, and note what they are of.

    Raises:
        UserError: Another job is at work there, or the folder holds results of another simulation.
    """
    config, place = simulation.base, Place.of(simulation.config.results_path)
    check_same_simulation(place, simulation)
    progress = Progress(config.progress)
    with Session(config.local_cpus, config.stall_s, progress) as session, only_job(place) as still_ours:
        note_simulation(place, simulation)
        yield Work(place=place, progress=progress, session=session, still_ours=still_ours)


def run_side_by_side(work: Work, cells: Sequence[Cell]) -> None:
    """Run all of these cells; each leaves its file, whole or not at all.

    Raises:
        UserError: What a cell refuses; names it. Those that are done are kept.
    """
    if not cells:
        return
    import ray

    from raykd.stages.shard_actors import actors_words

    work.session.ensure()
    num_cpus = num_cores() if work.session.is_local else int(ray.cluster_resources().get("CPU", 1))
    actor_class: Any = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=RETRIES, scheduling_strategy="SPREAD")(
        CellRunner
    )
    actors = [actor_class.remote() for _ in range(max(1, min(num_cpus, len(cells))))]
    next_cell, running = handing_out(cells), dict[Any, int]()
    patience = Patience(Bundles(1, 1), work.session.stall_s, partial(work.say, "cells"))

    def hand_to(number: int) -> None:
        if (cell := next_cell(number)) is not None:
            running[actors[number].run.remote(cell)] = number

    try:
        with work.progress.stage("cells", len(cells), "cells", here=True) as ticker:
            for number in range(len(actors)):
                hand_to(number)
            while running:
                while not (ready := ray.wait(list(running), timeout=patience.look_s)[0]):
                    patience.look(f"{len(running)} cells", False)
                number = running.pop(ready[0])
                with actors_words(UserError):
                    ray.get(ready[0])
                ticker.add(1)
                work.still_ours()
                hand_to(number)
    finally:
        for actor in actors:
            ray.kill(actor)


def handing_out(cells: Sequence[Cell]) -> Callable[[int], Cell | None]:
    """Which cell an actor takes next, asked by its number: of the seed that it is at, then of one that nobody is at.

    When there is none left, of the seed with most cells left; None when all are given out.
    """
    left: dict[Any, list[Cell]] = defaultdict(list)
    for cell in cells:
        left[cell.shares].append(cell)
    at: dict[int, Any] = {}

    def next_cell(number: int) -> Cell | None:
        if not left.get(at.get(number)):
            free = [seed for seed in left if seed not in at.values()]
            if not left:
                return None
            at[number] = free[0] if free else max(left, key=lambda seed: len(left[seed]))
        seed = at[number]
        cell = left[seed].pop(0)
        if not left[seed]:
            del left[seed]
        return cell

    return next_cell


def as_campaign(config: Config, place: Place, cache: Place) -> Config:
    """A campaign's config at another place, with its encoded images where others find them."""
    changed = {"storage_path": place.uri, "cache_path": config.cache_path or cache.uri}
    return Config.model_validate(config.model_dump(mode="json") | changed)
