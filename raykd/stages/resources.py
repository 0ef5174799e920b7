"""Whether what the stages ask Ray for is there."""

from __future__ import annotations

import math
from collections.abc import Callable

from raykd.config import Config, least
from raykd.errors import UserError
from raykd.stages.session import Session
from raykd.stages.work import Work


def check_resources(config: Config, session: Session, say: Callable[[str, str], None]) -> None:
    """Whether each stage fits: what does not would wait for ever, and without a word.

    On a Ray of this machine that is an error, told without starting it where no GPU is asked for. A cluster may grow,
    so there it is a line, by ``say``.

    Raises:
        UserError: A stage asks for more than a Ray of this machine has, or no Ray can be had (:meth:`Session.check`).
    """
    teacher, student, selection = config.teacher, config.student, config.selection
    asked = {  # (actors, CPUs and GPUs of each, CPUs beside them: Ray Data's own tasks want one)
        "teacher": (least(teacher.replicas), teacher.num_cpus, teacher.num_gpus, 1),
        "train": (least(student.num_workers), student.num_cpus, student.num_gpus, 0),
        "predict": (least(student.predict_replicas), student.num_cpus, student.num_gpus, 1),
        "selection": (selection.shards, selection.num_cpus, selection.num_gpus, 0),
    }
    if teacher.rule == "table":
        del asked["teacher"]
    if student.is_frozen and student.network is None:  # a task a part, of heads alone
        asked["predict"] = (1, student.num_cpus, 0, 0)
    if not session.is_up:
        session.check()
    if session.is_local and not session.is_up and not any(gpus for _, _, gpus, _ in asked.values()):
        nodes = [{"CPU": float(session.num_cpus)}]
    else:
        import ray

        session.ensure()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have_cpus, have_gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    if not session.is_local:
        wanting = [
            f"{stage} asks for {count} x ({cpus:g} CPUs, {gpus:g} GPUs)"
            for stage, (count, cpus, gpus, beside) in asked.items()
            if room(nodes, cpus, gpus) < count or have_cpus < count * cpus + beside
        ]
        if wanting:
            say(
                "cluster",
                f"has {have_cpus:g} CPUs and {have_gpus:g} GPUs now, too few: {', '.join(wanting)}; they wait until "
                "nodes join (an autoscaler may bring them), or ask for less",
            )
        return
    for stage, (count, cpus, gpus, beside) in asked.items():
        if count * gpus > have_gpus:
            raise UserError(f"{stage} asks for {count * gpus:g} GPUs, this machine has {have_gpus:g}; set its num_gpus")
        if count * cpus + beside > have_cpus:
            raise UserError(
                f"{stage} asks for {count * cpus + beside:g} CPUs, the local Ray has {have_cpus:g}; raise local_cpus "
                "(logical CPUs, may exceed the cores) or lower its num_cpus, replicas, workers or shards"
            )


def check_memory(work: Work, stage: str, asked_bytes: int) -> None:
    """Whether some node has the memory that one process of a stage declares: else it would wait for ever.

    On a Ray of this machine that is an error, by UserError; a cluster may grow, so there it is a line. Ray must be up.
    """
    import ray

    most = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    if most >= asked_bytes:
        return
    words = (
        f"{stage} asks for {asked_bytes / 2**30:.1f} GiB for a process, and no node has more than {most / 2**30:.1f}"
    )
    if work.session.is_local:
        raise UserError(f"{words}: end other programs, or take a smaller batch size or model")
    work.say("cluster", f"{words}; it waits until such a node joins")


def room(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many actors that each ask for so much fit on the nodes: one has all it asks for on one node."""
    total = 0
    for node in nodes:
        parts = [node.get(kind, 0.0) / ask for kind, ask in (("CPU", cpus), ("GPU", gpus)) if ask]
        total += math.floor(min(parts) + 1e-6)  # Ray counts in ten-thousandths
    return total
