"""How long a campaign takes and what it moves, from a probe and counts: arithmetic alone; and how far off it was."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raykd.algo.heads import HEADS
from raykd.config import Config, least
from raykd.diagnosis import gib
from raykd.store.outputs import count_done, round_place
from raykd.store.place import Place
from raykd.store.stage_folder import read_done

PLAN_FILE = ".plan.json"  # hidden: a folder that holds nothing else is still a new one
STARTS_S = {"encode": 5.0, "teacher": 1.0, "select": 0.1, "train": 1.0, "predict": 1.0}  # what each takes of no images
FAR_S = {"encode": 10.0, "train": 15.0, "predict": 10.0}  # and more on a cluster: actors import torch, load weights
MULTIPLY_S = 2e-10  # of a product and sum, by one core
FEATURE_BYTES, LOGIT_BYTES = 2, 4  # float16, float32
FAR_BYTES_S = 2e8  # of tables, read from storage


@dataclass(frozen=True)
class StagePlan:
    """A stage, over all rounds.

    Args:
        name: encode, teacher, select, train or predict.
        seconds: Of each time that it runs: once, or a round each.
        gpu_hours: Of all GPUs it holds, in all.
        read_bytes, written_bytes: In all.
    """

    name: str
    seconds: tuple[float, ...]
    gpu_hours: float = 0.0
    read_bytes: float = 0.0
    written_bytes: float = 0.0


@dataclass(frozen=True)
class Counts:
    """What there is: images in all and in the pool, classes, CPUs that may read at a time, and steps of each round."""

    images: int
    pool: int
    classes: int
    readers: int
    steps: tuple[int, ...]
    is_local: bool


def stage_plans(config: Config, probe: Mapping[str, Any], counts: Counts) -> list[StagePlan]:
    """What each stage will take.

    Args:
        probe: ``stages/probe.py``'s.
    """
    plans = [] if config.teacher.rule == "table" else [encode_plan(config, probe, counts)]
    width = probe["teacher_width"] or counts.classes
    seconds = starting("teacher", counts) + counts.images * counts.classes * width * MULTIPLY_S
    teacher = StagePlan("teacher", (seconds,), 0, counts.images * width * 2, counts.images * counts.classes * 4)
    others = (select_plan, train_plan, predict_plan)
    return [*plans, teacher, *(make(config, probe, counts) for make in others)]


def starting(stage: str, counts: Counts) -> float:
    """Seconds that a stage takes of no images."""
    return STARTS_S[stage] + (0.0 if counts.is_local else FAR_S.get(stage, 0.0))


def encode_plan(config: Config, probe: Mapping[str, Any], counts: Counts) -> StagePlan:
    teacher, views = config.teacher, config.student.teacher_views
    looks = counts.images * (1 + (views if isinstance(views, int) else 0))
    replicas, threads = least(teacher.replicas), 0 if teacher.num_gpus else teacher.num_cpus
    each = piped(probe["read_s"], probe["teacher_s"], counts, probe["cores"], replicas, threads)
    seconds = starting("encode", counts) + looks * each
    gpu_hours = seconds / 3600 * replicas * teacher.num_gpus
    return StagePlan(
        "encode", (seconds,), gpu_hours, looks * probe["read_bytes"], looks * probe["teacher_width"] * FEATURE_BYTES
    )


def select_plan(config: Config, probe: Mapping[str, Any], counts: Counts) -> StagePlan:
    """A pass over the pool a pick."""
    selection, rounds = config.selection, config.rounds
    budget = selection.budget or counts.classes
    at_once = min(selection.shards, probe["cores"]) if counts.is_local else selection.shards
    row_bytes = (probe["teacher_width"] or counts.classes) * FEATURE_BYTES + counts.classes * LOGIT_BYTES
    seconds = starting("select", counts)
    seconds += counts.pool * (budget * probe["pick_row_s"] / at_once + row_bytes / FAR_BYTES_S)
    gpu_hours = rounds * seconds / 3600 * selection.shards * selection.num_gpus
    return StagePlan("select", (seconds,) * rounds, gpu_hours, rounds * counts.pool * row_bytes)


def train_plan(config: Config, probe: Mapping[str, Any], counts: Counts) -> StagePlan:
    """Steps times a step; with ``teacher_views: online`` the teacher sees each of its images, too."""
    student, workers = config.student, least(config.student.num_workers)
    batch = student.batch_labeled + student.batch_unlabeled
    step_s = probe["step_s"] + (batch / workers * probe["teacher_s"] if student.teacher_views == "online" else 0.0)
    seconds = tuple(starting("train", counts) + steps * step_s for steps in counts.steps)
    looked_at = sum(min(steps * batch, counts.images) for steps in counts.steps)  # what is decoded is kept
    read = 0.0 if student.is_frozen else looked_at * probe["read_bytes"]
    return StagePlan("train", seconds, sum(seconds) / 3600 * workers * student.num_gpus, read)


def predict_plan(config: Config, probe: Mapping[str, Any], counts: Counts) -> StagePlan:
    student, rounds = config.student, config.rounds
    replicas, threads = least(student.predict_replicas), 0 if student.num_gpus else student.num_cpus
    each = piped(probe["student_read_s"], probe["student_s"], counts, probe["cores"], replicas, threads)
    seconds = starting("predict", counts) + counts.images * each
    read = 0.0 if student.is_frozen else rounds * counts.images * probe["read_bytes"]
    row_bytes = probe["student_width"] * FEATURE_BYTES + len(HEADS[student.heads]) * counts.classes * LOGIT_BYTES
    gpu_hours = rounds * seconds / 3600 * replicas * student.num_gpus
    return StagePlan("predict", (seconds,) * rounds, gpu_hours, read, rounds * counts.images * row_bytes)


def piped(read_s: float, model_s: float, counts: Counts, cores: int, replicas: int, model_cpus: float) -> float:
    """Seconds an image of reading and a model side by side; on one machine both share its cores.

    Args:
        read_s: By one process.
        model_s: By one replica.
        replicas: Of the model.
        model_cpus: Threads of each; 0: it has a GPU.
    """
    slowest = max(read_s / max(1, counts.readers), model_s / replicas)
    if not counts.is_local:
        return slowest
    return max(slowest, (read_s + model_s * max(1.0, model_cpus) * (model_cpus > 0)) / cores)


# ---------------------------------------------------------------- in words, on storage


def clock_words(seconds: float) -> str:
    """``52 s``, ``3.1 min``, ``2.4 h``."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:,.1f} h"


def plan_table(plans: Sequence[StagePlan]) -> str:
    """A line a stage, and one of all."""
    rows = [("stage", "times", "each", "in all", "GPU hours", "read", "written")]
    for plan in plans:
        each = f"{clock_words(min(plan.seconds))} to {clock_words(max(plan.seconds))}"
        if clock_words(min(plan.seconds)) == clock_words(max(plan.seconds)):
            each = clock_words(plan.seconds[0])
        rows.append((plan.name, str(len(plan.seconds)), each, clock_words(sum(plan.seconds)), *amounts([plan])))
    rows.append(("all", "", "", clock_words(sum(sum(plan.seconds) for plan in plans)), *amounts(plans)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(f"{row[0]:<{widths[0]}}  " + "  ".join(map(str.rjust, row[1:], widths[1:])) for row in rows)


def amounts(plans: Sequence[StagePlan]) -> tuple[str, str, str]:
    hours = sum(plan.gpu_hours for plan in plans)
    moved = (sum(plan.read_bytes for plan in plans), sum(plan.written_bytes for plan in plans))
    return (f"{hours:,.2f}" if hours else "0", *(gib(math.ceil(count)) for count in moved))  # type: ignore[return-value]


def write_plan(place: Place, plans: Sequence[StagePlan], about: Mapping[str, Any]) -> None:
    (place / PLAN_FILE).write_json({**about, "stages": [asdict(plan) for plan in plans]})


def plan_error(place: Place) -> list[str]:
    """How far off the plan in a campaign's folder was, a line a stage that is done; empty without plan or rounds.

    Of a stage in parts the longest is counted, as they begin together. What a killed job had done is in no marker.
    """
    rounds = count_done(place)
    if not rounds or not (place / PLAN_FILE).exists():
        return []
    lines, planned_s, took_s = [], 0.0, 0.0
    for stage in (place / PLAN_FILE).read_json()["stages"]:
        name, seconds = stage["name"], stage["seconds"]
        places = [round_place(place, number) / name for number in range(min(rounds, len(seconds)))]
        took = [seconds_of(each) for each in ([place / name] if name in ("encode", "teacher") else places)]
        known = [(planned, real) for planned, real in zip(seconds, took, strict=False) if real is not None]
        if known:
            planned, real = sum(each for each, _ in known), sum(each for _, each in known)
            lines.append(told_off(name, planned, real))
            planned_s, took_s = planned_s + planned, took_s + real
    return [*lines, told_off("all", planned_s, took_s)] if lines else []


def told_off(name: str, planned: float, real: float) -> str:
    return f"{name}: planned {clock_words(planned)}, took {clock_words(real)} ({real / max(planned, 1e-9) - 1:+.0%})"


def seconds_of(place: Place) -> float | None:
    """What the making of a stage's folder took; of one in parts the longest of them. None: nothing is there."""
    if done := read_done(place):
        return float(done.facts["seconds"])
    folders = {info.path.rpartition("/")[0] for info in place.files(recursive=True) if info.base_name == "_DONE.json"}
    parts = [done for folder in folders if (done := read_done(place.sibling(folder)))]
    return max((float(part.facts.get("seconds", 0.0)) for part in parts), default=None)
