"""What a sweep is: fields of a campaign's config, the values to try, and the points that come of them. Knows no Ray.

A point is a dictionary of dotted fields and values. The empty one is the campaign as it is, and always among those that
are tried: what is best is held against it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from raykd.algo.keyed import generator
from raykd.algo.mixture_search import Objective
from raykd.config import Config, fields_at, least, load, read_yaml
from raykd.errors import UserError, did_you_mean
from raykd.store.place import Place
from raykd.store.stage_folder import differences, fingerprint

Sampler = Literal["grid", "random", "optuna"]
SECTIONS = ("student", "mixture", "teacher")
FIXED_FIELDS = ("student.features", "teacher.model", "teacher.pretrained", "teacher.table", "mixture.search")
SWEEP_FILE = "sweep.json"
SMALLER_IS_BETTER = ("log_loss", "calibration")  # of the objectives
RANGE = re.compile(r"(uniform|loguniform|int):([^,]+),([^,]+)")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included: even, or even in their logarithm, or whole."""

    kind: str
    low: float
    high: float

    def at(self, share: float) -> float | int:
        """The number at a share of the way, 0 to 1."""
        if self.kind == "int":
            return min(int(self.high), int(self.low) + math.floor(share * (self.high - self.low + 1)))
        if self.kind == "loguniform":
            return float(self.low * (self.high / self.low) ** share)
        return float(self.low + (self.high - self.low) * share)


Values = tuple[Any, ...] | Range


@dataclass(frozen=True)
class Sweep:
    """What is tried.

    Args:
        space: By dotted field, its values or its range.
        sampler: grid: all combinations of values; random: draws; optuna: draws that learn from each other.
        trials: How many points besides the campaign itself; of a grid all.
        repeats: Trainings of each point, with other draws; the mean counts.
        objective: What is best.
        seed: Of the draws.
    """

    space: Mapping[str, Values]
    sampler: Sampler
    trials: int
    repeats: int = 1
    objective: str = "accuracy"
    seed: int = 0

    def points(self) -> list[dict[str, Any]]:
        """All that is known before the first trial, the campaign itself first; of optuna that alone."""
        if self.sampler == "optuna":
            return [{}]
        if self.sampler == "grid":
            values = [of for of in self.space.values() if not isinstance(of, Range)]
            return [{}, *(dict(zip(self.space, each, strict=True)) for each in itertools.product(*values))]
        draws = generator(self.seed, "sweep").random((self.trials, len(self.space)))
        return [{}, *(dict(zip(self.space, map(drawn, self.space.values(), row), strict=True)) for row in draws)]

    def identity(self) -> dict[str, Any]:
        """All that its results hang on but how many trials there are, as plain data."""
        space = {name: list(of) if isinstance(of, tuple) else vars(of) for name, of in self.space.items()}
        return {"space": space, "sampler": self.sampler, "repeats": self.repeats, "objective": self.objective}


def drawn(values: Values, share: float) -> Any:
    """One of some values, or a number of a range, by a draw from 0 to 1."""
    return values.at(share) if isinstance(values, Range) else values[min(int(share * len(values)), len(values) - 1)]


def point_name(point: Mapping[str, Any]) -> str:
    """Names a point, whatever the order of its fields."""
    return fingerprint(sorted((key, repr(value)) for key, value in point.items()))


def read_space(texts: Sequence[str]) -> dict[str, Values]:
    """``student.steps=100,200`` or ``student.learning_rate=loguniform:1e-4,1e-2`` each.

    Raises:
        UserError: One that is neither, a field that is unknown, or that no single round can judge.
    """
    space: dict[str, Values] = {}
    for text in texts:
        key, mark, values = text.partition("=")
        if not mark or not values:
            raise UserError(f"--search {text!r}: expected field=value,value,... or field=loguniform:low,high")
        check_field(key)
        space[key] = read_values(text, values)
    if not space:
        raise UserError("give --search field=values, once or more: what is to be tried")
    return space


def check_field(key: str) -> None:
    """Whether a round's labels can judge it. Raises UserError."""
    section, _, name = key.partition(".")
    if section in ("selection", "labels"):
        raise UserError(
            f"--search {key}: it decides which labels come next, which the labels of one round cannot judge; "
            "jobs/simulate.py compares strategies"
        )
    if section not in SECTIONS or not name:
        raise UserError(f"--search {key}: expected a field of {', '.join(SECTIONS)}; {did_you_mean(section, SECTIONS)}")
    if name not in (known := fields_at([section], Config)):
        raise UserError(f"--search {key}: unknown field; {did_you_mean(name, known)}")
    if key in FIXED_FIELDS:
        raise UserError(f"--search {key}: all points of a sweep share it; sweep twice to compare")


def read_values(text: str, values: str) -> Values:
    if found := RANGE.fullmatch(values):
        kind = found[1]
        try:
            low, high = (float(each) for each in found.groups()[1:])
        except ValueError:
            low = high = math.nan
        if not low < high or (kind == "int" and not low == int(low) < int(high) == high):
            raise UserError(f"--search {text!r}: expected {kind}:smaller,larger")
        if kind == "loguniform" and low <= 0:
            raise UserError(f"--search {text!r}: a loguniform range begins above 0")
        return Range(kind, low, high)
    if "loguniform" in values or "uniform" in values:
        raise UserError(f"--search {text!r}: expected uniform:low,high, loguniform:low,high or int:low,high")
    found_values = read_yaml(f"[{values}]", f"--search {text!r}")
    return tuple(found_values)


def check_sweep(sweep: Sweep) -> None:
    """Whether sampler and space fit each other. Raises UserError."""
    if sweep.sampler not in get_args(Sampler):
        raise UserError(f"unknown sampler {sweep.sampler!r}; {did_you_mean(sweep.sampler, get_args(Sampler))}")
    ranges = [name for name, values in sweep.space.items() if isinstance(values, Range)]
    if sweep.sampler == "grid" and ranges:
        raise UserError(f"{ranges[0]} is a range, and a grid needs values; give values, or --sampler random or optuna")
    if sweep.objective not in get_args(Objective):
        known = get_args(Objective)
        raise UserError(f"--objective {sweep.objective!r}: unknown; {did_you_mean(sweep.objective, known)}")
    if sweep.trials < 1 or sweep.repeats < 1:
        raise UserError(f"--trials {sweep.trials} --repeats {sweep.repeats}; expected 1 or more of each")


def check_same_sweep(out: Place, identity: Mapping[str, Any]) -> None:
    """Note what is swept, or see that it is the same as was noted: only trials may become more.

    Raises:
        UserError: The folder holds another sweep, or something else.
    """
    file = out / SWEEP_FILE
    if not file.exists():
        if any(not info.base_name.startswith(".") for info in out.files()):
            raise UserError(f"{out} is not empty and holds no sweep; give a new folder as --out")
        file.write_json(dict(identity))
        return
    if changed := differences(file.read_json(), json.loads(json.dumps(dict(identity)))):
        raise UserError(f"{out} holds another sweep: {'; '.join(changed)}; give another folder as --out")


def corners(sweep: Sweep) -> list[dict[str, Any]]:
    """Points that show whether a config takes every value and both ends of every range."""
    ends = {name: (of.at(0.0), of.at(1.0)) if isinstance(of, Range) else of for name, of in sweep.space.items()}
    most = max(map(len, ends.values()))
    return [{name: values[min(i, len(values) - 1)] for name, values in ends.items()} for i in range(most)]


def config_of(base: Config, point: Mapping[str, Any]) -> Config:
    """The campaign's config with a point's values. Raises UserError where it refuses one."""
    values = base.model_dump(mode="json")
    for key, value in point.items():
        section, _, name = key.partition(".")
        values[section][name] = value
    given_lengths = [key for key in point if key in LENGTHS]
    for key in LENGTHS if given_lengths else ():
        if key not in given_lengths:
            values["student"][key.partition(".")[2]] = None
    try:
        found = load(values)
    except UserError as error:
        raise UserError(f"{point}: {error}") from None
    if (found.student.is_frozen, found.student.network) != (base.student.is_frozen, base.student.network) and (
        found.student.is_frozen or base.student.is_frozen
    ):
        raise UserError(f"{point}: a frozen student and others are prepared apart; sweep twice to compare")
    return found


LENGTHS = ("student.steps", "student.passes_labeled", "student.passes_unlabeled")  # of which a config has one


class Needs:
    """What one trial asks of a cluster.

    Args:
        config: Of a trial.
        here: Whether it trains in its own process.
    """

    def __init__(self, config: Config, here: bool) -> None:
        student = config.student
        workers, replicas = least(student.num_workers), least(student.predict_replicas)
        self.own_cpus = student.num_cpus if here else 0.01
        beside = 0.0 if student.is_frozen else 1.0  # Ray Data reads images for the model
        if here:
            self.beside, self.gpus = beside, student.num_gpus
            self.words = f"{student.num_cpus:g} to train" + (f" + {beside:g} to read images" if beside else "")
            return
        train, predict = workers * student.num_cpus, replicas * student.num_cpus + beside
        self.beside, self.gpus = max(train, predict), max(workers, replicas) * student.num_gpus
        self.words = f"the larger of {workers} x {student.num_cpus:g} to train and {predict:g} to predict"

    @property
    def cpus(self) -> float:
        return self.own_cpus + self.beside

    def at_once(self, have_cpus: float, have_gpus: float) -> int:
        """How many trials fit beside each other.

        Raises:
            UserError: Not even one: it would wait for ever.
        """
        count = math.floor(have_cpus / self.cpus + 1e-6)
        if self.gpus:
            count = min(count, math.floor(have_gpus / self.gpus + 1e-6))
        if count < 1:
            raise UserError(
                f"a trial asks for {self.cpus:g} CPUs ({self.words}) and {self.gpus:g} GPUs, and the cluster has "
                f"{have_cpus:g} and {have_gpus:g}: not one fits. Lower student.num_cpus, num_workers or "
                "predict_replicas, raise local_cpus, or take a larger cluster"
            )
        return count
