"""Simulations that come with raykd: ``python jobs/simulate.py --preset NAME``, any field changed by ``--set``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from raykd.presets import demo, values_of
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


STRATEGIES = (
    *("random", "entropy", "margin", "class_balanced", "badge", "falcun", "spread"),
    *("coreset", "pcoreset", "uherding", "probcover", "typiclust"),
)  # all but farthest, which is pcoreset here


def frozen_digits(**changes: Any) -> dict[str, Any]:
    """The demo's digits with heads on the teacher's features: 10 rounds of a label a class."""
    campaign = demo()
    del campaign["storage_path"]
    campaign["student"] = {"backbone": "frozen", "steps": 200, "learning_rate": 0.01, "batch_labeled": 32}
    return campaign | {"rounds": 10, "selection": {"budget": 10}, **changes}


def referee_arms(strategies: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each strategy without distillation, with it, and with a teacher that learns; two of them with a single head."""
    arms: dict[str, dict[str, Any]] = {}
    for strategy in strategies:
        picks = {"selection.strategy": strategy}
        arms[f"{strategy}, ce"] = picks | {"student.heads": "ce"}
        arms[strategy] = picks | {"student.heads": "dho"}
        arms[f"{strategy}, gda"] = picks | {"student.heads": "dho", "teacher.rule": "gda"}
    for strategy in ("random", "pcoreset"):
        arms[f"{strategy}, one head"] = {"selection.strategy": strategy, "student.heads": "ce+kd"}
    return arms


def distilled_or_not(strategies: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Each strategy without distillation and with it."""
    return {
        name: arm for name, arm in referee_arms(strategies).items() if arm["student.heads"] != "ce+kd" and len(arm) == 2
    }


def digits_all() -> dict[str, Any]:
    """The papers' claims on the digits: every strategy, without and with distillation, with a teacher that learns.

    ``python jobs/simulate.py --preset digits_all``
    """
    return {
        "results_path": "runs/simulated/digits",
        "campaign": frozen_digits(),
        "sets": {"digits": {}},
        "arms": referee_arms(STRATEGIES),
        "seeds": 8,
        "greedy_oracle": {"candidates": 4, "arm": "random"},
    }


def digits_shifted() -> dict[str, Any]:
    """A few strategies where the pool is long-tailed (10 to 1), or lacks a class that test asks for; a cold start.

    ``python jobs/simulate.py --preset digits_shifted``
    """
    return {
        "results_path": "runs/simulated/digits_shifted",
        "campaign": frozen_digits(labels={"oracle": "simulated", "start": "none"}),
        "sets": {"digits, long tail": {"long_tailed": 10}, "digits, one class missing": {"missing": ["nine"]}},
        "arms": distilled_or_not(("random", "badge", "pcoreset")),
        "seeds": 8,
    }


def digits_cold() -> dict[str, Any]:
    """Digits, nothing labeled at the start: the first picks are made in the teacher's eyes.

    ``python jobs/simulate.py --preset digits_cold``
    """
    strategies = ("random", "margin", "badge", "coreset", "pcoreset", "uherding", "probcover", "typiclust")
    return {
        "results_path": "runs/simulated/digits_cold",
        "campaign": frozen_digits(labels={"oracle": "simulated", "start": "none"}),
        "sets": {"digits, cold start": {}},
        "arms": {name: {"selection.strategy": name, "student.heads": "dho"} for name in strategies},
        "seeds": 8,
    }


def frozen_tiny(**changes: Any) -> dict[str, Any]:
    """Tiny-ImageNet's 200 classes in a MobileNetV2's features: 5 rounds of a label a class."""
    return {
        "rounds": 5,
        "student": {"backbone": "frozen", "steps": 300, "learning_rate": 0.003},
        "selection": {"budget": 200},
        "labels": {"oracle": "simulated", "start": "one_per_class"},
        **changes,
    }


def tiny_imagenet() -> dict[str, Any]:
    """The papers' claims on Tiny-ImageNet's features, the teacher a network's class means, blurred (bench_teachers.py).

    ``python jobs/bench_teachers.py tables --data FOLDER --out runs/tiny_imagenet``, then
    ``python jobs/simulate.py --preset tiny_imagenet``
    """
    return {
        "results_path": "runs/simulated/tiny_imagenet",
        "tables": "runs/tiny_imagenet",
        "campaign": frozen_tiny(),
        "sets": {"Tiny-ImageNet": {}},
        "arms": referee_arms(("random", "margin", "badge", "coreset", "pcoreset", "uherding")),
        "seeds": 8,
    }


def tiny_imagenet_shifted() -> dict[str, Any]:
    """Long-tailed (10 to 1), or with a class missing from the pool; a cold start.

    ``python jobs/simulate.py --preset tiny_imagenet_shifted``
    """
    return {
        "results_path": "runs/simulated/tiny_imagenet_shifted",
        "tables": "runs/tiny_imagenet",
        "campaign": frozen_tiny(labels={"oracle": "simulated", "start": "none"}),
        "sets": {
            "Tiny-ImageNet, long tail": {"long_tailed": 10},
            "Tiny-ImageNet, one class missing": {"missing": ["class 100"]},
        },
        "arms": distilled_or_not(("random", "pcoreset")),
        "seeds": 8,
    }


SIMULATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    each.__name__: each
    for each in (digits, digits_all, digits_shifted, digits_cold, tiny_imagenet, tiny_imagenet_shifted)
}


def load_example(name: str, overrides: Sequence[str] = ()) -> Simulation:
    """A checked simulation from one of :data:`SIMULATIONS`.

    Raises:
        UserError: There is none of that name, or the overrides make a wrong one of it.
    """
    return load_simulation(values_of(name, SIMULATIONS), overrides)
