"""Simulations that come with raykd: ``python jobs/simulate.py --preset NAME``, any field changed by ``--set``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raykd.errors import UserError, did_you_mean
from raykd.presets import demo
from raykd.simulation.definition import Simulation, load_simulation


def digits() -> dict[str, Any]:
    """The demo's digits, heads on the teacher's features: four arms, 8 seeds, and the upper bound.

    ``python jobs/simulate.py --preset digits``

    Hardware: any; no download. Cost: some 400 trainings of 300 steps, two thirds of them the upper bound's, a second of
    one core each; 17 minutes on 2 cores with a load of 8 to 15 (not measured on quiet ones). Score with 50 labels, mean
    of the seeds: random 92.2, PCoreSet 94.8, BADGE 94.3, PCoreSet with GDA 95.4, upper bound 95.9 %.
    """
    campaign = demo()
    del campaign["storage_path"]
    campaign["student"] = {"backbone": "frozen", "steps": 300, "learning_rate": 0.01, "batch_labeled": 32}
    campaign |= {"rounds": 5, "selection": {"strategy": "random", "budget": 10}}
    return {
        "results_path": "runs/simulated_digits",
        "campaign": campaign,
        "arms": {
            "random": {},
            "PCoreSet": {"selection.strategy": "pcoreset"},
            "BADGE": {"selection.strategy": "badge"},
            "PCoreSet, GDA": {"selection.strategy": "pcoreset", "teacher.rule": "gda"},
        },
        "seeds": 8,
        "greedy_oracle": {"candidates": 8, "arm": "random"},
    }


SIMULATIONS: dict[str, Callable[[], dict[str, Any]]] = {each.__name__: each for each in (digits,)}


def load_example(name: str, overrides: Sequence[str] = ()) -> Simulation:
    """A checked simulation from one of :data:`SIMULATIONS`.

    Raises:
        UserError: There is none of that name, or the overrides make a wrong one of it.
    """
    if name not in SIMULATIONS:
        raise UserError(f"unknown preset {name!r}; {did_you_mean(name, SIMULATIONS)}")
    return load_simulation(SIMULATIONS[name](), overrides)
