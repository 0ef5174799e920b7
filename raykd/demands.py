"""What the stages of a config ask a cluster for, and whether that can be had: plain functions, no Ray."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from raykd.config import Config, least
from raykd.diagnosis import UPLOAD_BYTES, Finding, fail, gib, ok, warn

Resources = Mapping[str, float]  # as Ray names them: CPU, GPU, memory (bytes)


@dataclass(frozen=True)
class Demand:
    """What a stage asks for.

    Args:
        stage: teacher, train, predict or selection.
        count: Actors or workers, at least.
        each: Of one: CPU, GPU and memory; memory is what is known of it before weights are fetched.
        beside: CPUs that Ray Data's own tasks want.
    """

    stage: str
    count: int
    each: Resources
    beside: float = 0.0

    def __str__(self) -> str:
        return needs(self.each)


@dataclass(frozen=True)
class NodeType:
    """A kind of machine that the autoscaler may bring: its name, what one has, and how many there may be."""

    name: str
    resources: Resources
    most: int


def needs(resources: Resources) -> str:
    """``2 CPUs, 1 GPUs, 3.0 GiB``."""
    words = [f"{resources.get('CPU', 0):g} CPUs"]
    words += [f"{resources['GPU']:g} GPUs"] if resources.get("GPU") else []
    words += [gib(resources["memory"])] if resources.get("memory") else []
    return ", ".join(words)


def demands_of(config: Config, memory: Mapping[str, int]) -> list[Demand]:
    """Of every stage, as ``stages/resources.py`` counts them.

    Args:
        memory: Bytes that one process of a stage declares, as far as is known.
    """
    teacher, student, selection = config.teacher, config.student, config.selection
    asked = {
        "teacher": (least(teacher.replicas), teacher.num_cpus, teacher.num_gpus, 1),
        "train": (least(student.num_workers), student.num_cpus, student.num_gpus, 0),
        "predict": (least(student.predict_replicas), student.num_cpus, student.num_gpus, 1),
        "selection": (selection.shards, selection.num_cpus, selection.num_gpus, 0),
    }
    if teacher.rule == "table":
        del asked["teacher"]
    if student.is_frozen and student.network is None:  # a task a part, of heads alone
        asked["predict"] = (1, student.num_cpus, 0, 0)
    return [
        Demand(stage, count, {"CPU": cpus, "GPU": gpus, "memory": memory.get(stage, 0)}, beside)
        for stage, (count, cpus, gpus, beside) in asked.items()
    ]


def stages_with_gpus(config: Config) -> list[str]:
    return [each.stage for each in demands_of(config, {}) if each.each["GPU"]]


def how_many(has: Resources, each: Resources) -> float:
    """How many processes fit on a machine; a kind of memory that is not told of it is no limit."""
    parts = [
        has.get(kind, 0.0) / ask for kind, ask in each.items() if ask and not (kind == "memory" and kind not in has)
    ]
    return math.floor(min(parts) + 1e-6) if parts else math.inf  # Ray counts in ten-thousandths


def judge_demands(
    demands: Sequence[Demand], nodes: Mapping[str, Resources], types: Sequence[NodeType] | None, is_local: bool
) -> list[Finding]:
    """Whether each stage finds room: what does not waits for ever, and without a word.

    Args:
        nodes: What the machines that are there have in all, by name.
        types: What an autoscaler may bring; None: none is known of.
        is_local: A Ray of this machine alone.
    """
    findings = [judge_demand(each, nodes, types, is_local) for each in demands]
    if bad := [each for each in findings if each.state != "ok"]:
        return bad
    grow = f", of up to {sum(each.most for each in types)} more by an autoscaler" if types else ""
    if types is None and not is_local:
        grow = "; which node types an autoscaler may bring cannot be read here"
    said = "; ".join(f"{each.stage} {each.count} x ({each})" for each in demands)
    return [ok("bundles", f"{said}: fit on {len(nodes)} nodes{grow}")]


def judge_demand(
    demand: Demand, nodes: Mapping[str, Resources], types: Sequence[NodeType] | None, is_local: bool
) -> Finding:
    """One stage's."""
    here = sum(how_many(has, demand.each) for has in nodes.values())
    more = sum(each.most * how_many(each.resources, demand.each) for each in types or () if each.most)
    cpus = sum(has.get("CPU", 0.0) for has in nodes.values())
    cpus += sum(each.most * each.resources.get("CPU", 0.0) for each in types or ())
    lower = f"lower {demand.stage}'s num_cpus, num_gpus or batch size"
    if not here and not more:
        machines = {**nodes, **{f"type {each.name}": each.resources for each in types or ()}}
        kind = next((kind for kind in ("GPU", "memory", "CPU") if not fits(machines, demand.each, kind)), "CPU")
        name, most = max(machines.items(), key=lambda item: item[1].get(kind, 0.0), default=("none", {}))
        what = f"{demand.stage} asks for {demand} for one process, the biggest, {name}, has {needs(most)}"
        return fail("bundles", what, f"add machines that hold it, or {lower}")
    asked_cpus = demand.count * demand.each["CPU"] + demand.beside
    if here + more < demand.count or cpus < asked_cpus:
        what = f"{demand.stage} asks for {demand.count} x ({demand}), and {here + more:g} find room"
        if here + more >= demand.count:
            what = f"{demand.stage} asks for {asked_cpus:g} CPUs with those that read, and there are {cpus:g}"
        todo = f"raise local_cpus, or {lower}" if is_local else f"add nodes, or ask for fewer, or {lower}"
        return fail("bundles", what, todo)
    if here < demand.count:
        what = f"{demand.stage} asks for {demand.count} x ({demand}), {here:g} find room now"
        return warn("bundles", what, "nothing, if the autoscaler brings the others")
    return ok("bundles", f"{demand.stage} {demand.count} x ({demand})")


def fits(machines: Mapping[str, Resources], each: Resources, kind: str) -> bool:
    """Whether some machine has enough of one kind."""
    return any(how_many(has, {kind: each.get(kind, 0.0)}) >= 1 for has in machines.values())


# ---------------------------------------------------------------- what is sent, and who may send


def judge_package(folder: str, sizes: Mapping[str, int], is_local: bool) -> Finding:
    """Whether a job's working dir may be sent.

    Args:
        folder: Which.
        sizes: Bytes of each file that would be packed, by its path.
    """
    total = sum(sizes.values()) + 250 * len(sizes)  # of a zip's own
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    named = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in largest)
    what = f"--working-dir {folder} is {total / 2**20:,.1f} MiB of {len(sizes):,} files, largest: {named}"
    if total > UPLOAD_BYTES:
        what += f"; Ray takes {UPLOAD_BYTES / 2**20:.0f}"
        return (warn if is_local else fail)("working dir", what, "name what is not code in .rayignore")
    return ok("working dir", what)


def judge_token(is_local: bool, mode: str | None, token: bool) -> Finding:
    """Whether others can run code on the cluster.

    Args:
        mode: RAY_AUTH_MODE.
        token: Whether there is one.
    """
    if is_local:
        return ok("token", "the Ray of this machine has one of its own")
    if mode == "token" and token:
        return ok("token", "RAY_AUTH_MODE=token")
    what = f"RAY_AUTH_MODE={mode or 'unset'}: whoever reaches a port of the cluster runs code as you"
    todo = "ray get-auth-token --generate, copy ~/.ray/auth_token to all nodes, RAY_AUTH_MODE=token there and here"
    if mode == "token":
        return fail("token", "RAY_AUTH_MODE=token, and there is none", "copy the cluster's to ~/.ray/auth_token")
    return warn("token", what, todo)
