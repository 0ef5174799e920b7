"""Whether what the stages ask Ray for is there."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

from raykd.config import Config
from raykd.demands import demands_of, how_many
from raykd.errors import AGAIN, UserError
from raykd.stages.all_nodes import alive_nodes, ask_all
from raykd.stages.session import Session
from raykd.stages.work import Work
from raykd.store.place import Place

Result = TypeVar("Result")
SEEN_S = 20.0  # that a node has to start a worker and look
WORD_EVERY_S = 30.0  # while something is waited for


class Bundles(NamedTuple):
    """What a stage asks Ray for: so many actors, and the CPUs and GPUs of each; CPUs beside them for tasks."""

    actors: int
    cpus: float
    gpus: float = 0
    beside: float = 0

    def __str__(self) -> str:
        return f"{self.actors} x ({self.cpus:g} CPUs, {self.gpus:g} GPUs)"


def lack(asked: Bundles, nodes: list[dict[str, float]]) -> str | None:
    """Why this can't all run on nodes with these resources, in words; None when it can."""
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    fits = room(nodes, asked.cpus, asked.gpus)
    if fits >= asked.actors and cpus >= asked.actors * asked.cpus + asked.beside:
        return None
    beside = f" and {asked.beside:g} CPUs for tasks" if asked.beside else ""
    return f"it asks for {asked}{beside}, and the nodes have room for {fits} ({cpus:g} CPUs, {gpus:g} GPUs)"


def nodes_now() -> list[dict[str, float]]:
    """What each living node has, used or not. Ray must be up."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def shortage(asked: Bundles) -> str | None:
    """:func:`lack` on the nodes that are there now. Ray must be up."""
    return lack(asked, nodes_now())


def in_the_way(asked: Bundles) -> str:
    """What may keep Ray from what it has room for, in words. Ray must be up."""
    import ray

    total, free = (each().get("CPU", 0.0) for each in (ray.cluster_resources, ray.available_resources))
    if free < asked.cpus:
        return f"{free:g} of {total:g} CPUs are free: it is at work, or others hold them (ray status says which)"
    return "still at work"


class Patience:
    """Words for a wait on calls of Ray, and its end where nothing comes.

    Args:
        asked: What the calls ask Ray for.
        stall_s: So long there may be no room for that.
        say: Shows a line.
        who: Waits, for the reader.
        how: What else to ask less of, for the reader.
        each_is_short: No call takes so long by itself; then that is an end as well.
    """

    def __init__(
        self, asked: Bundles, stall_s: float, say: Callable[[str], None], *, who: str = "the job", how: str = "",
        each_is_short: bool = False,
    ) -> None:  # fmt: skip
        self.asked, self.stall_s, self.say = asked, stall_s, say
        self.who, self.how, self.each_is_short = who, how, each_is_short
        self.look_s = min(WORD_EVERY_S, stall_s)  # between two looks
        self.began = self.came = self.had_room = time.monotonic()

    def look(self, waited: str, came: bool) -> None:
        """Say what is waited for, such as "3 of 8 shards", and whether one of them has come since the last look.

        Raises:
            UserError: There was no room, or nothing came, for ``stall_s``.
        """
        now, why = time.monotonic(), shortage(self.asked)
        self.came = now if came else self.came
        self.had_room = self.had_room if why else now
        words = f"{waited} for {now - self.began:.0f} s"
        if now - (self.came if self.each_is_short else max(self.came, self.had_room)) >= self.stall_s:
            raise given_up(f"{self.who} waited for {words}", why or in_the_way(self.asked), self.how)
        self.say(f"waits for {words}: {why or in_the_way(self.asked)}")

    def answers(self, calls: list[Any], what: str) -> list[Any]:
        """What calls of Ray return, in their order; ``what`` they are is for the reader, such as "shards"."""
        import ray

        waiting = calls
        while waiting:
            left = ray.wait(waiting, num_returns=len(waiting), timeout=self.look_s)[1]
            if left:
                self.look(f"{len(left)} of {len(calls)} {what}", len(left) < len(waiting))
            waiting = left
        return ray.get(calls)


def answered_by_tasks(work: Work, calls: list[Any], asked: Bundles, *, each_is_short: bool = False) -> list[Any]:
    """What a step's tasks return that each ask for so much, in their order."""
    patience = Patience(asked, work.session.stall_s, partial(work.say, "cluster"), each_is_short=each_is_short)
    return patience.answers(calls, "tasks")


def given_up(waited: str, why: str, how: str = "") -> UserError:
    """The end of a wait that led nowhere: what was waited for, why it did not come, and what to do."""
    return UserError(
        f"{waited}: {why}. Ask for less{how}, or see to it that nodes join, and {AGAIN}: what is complete is kept; "
        "stall_s sets how long is waited"
    )


def with_patience(
    call: Callable[[], Result], stage: str, asked: Bundles, stall_s: float, done: Callable[[], int] | None,
    say: Callable[[str], None],
) -> Result:  # fmt: skip
    """What ``call`` returns; its end is not waited for when nothing goes on, and each wait is told why.

    It runs in a thread of its own, which ends with the Ray that it waits for.

    Args:
        stage: Its name, for the reader.
        asked: What it asks Ray for.
        stall_s: After so long without anything done it is given up.
        done: How much is done, such as steps; None: nobody counts, and only without room for it it is given up.
        say: Shows a line.

    Raises:
        UserError: Nothing was done for ``stall_s``; says what was missing.
        Exception: What ``call`` raises.
    """
    ended, found = threading.Event(), list[Any]()

    def run() -> None:
        try:
            found.append((call(), None))
        except BaseException as error:
            found.append((None, error))
        ended.set()

    threading.Thread(target=run, daemon=True, name=f"raykd {stage}").start()
    last, since, told = done() if done else 0, time.monotonic(), time.monotonic()
    while not ended.wait(min(1.0, stall_s)):
        now, count = time.monotonic(), done() if done else 0
        if count != last:
            last, since = count, now
        if done and now - since < min(stall_s, WORD_EVERY_S):
            continue  # Ray's head need not be asked
        if not (lacks := shortage(asked)) and done is None:
            since = now
        if now - since >= stall_s:
            why = lacks or f"the nodes have room for it, and {in_the_way(asked)}, or Ray or a machine hangs"
            raise given_up(f"{stage}: nothing was done for {stall_s:g} s", why)
        if now - max(since, told) >= WORD_EVERY_S and (lacks or not count):
            told = now
            say(f"waits for {now - since:.0f} s: {lacks or in_the_way(asked)}; gives up after {stall_s:g} s")
    value, error = found[0]
    if error is not None:
        raise error
    return value


def check_resources(config: Config, session: Session, say: Callable[[str, str], None]) -> None:
    """Whether each stage fits: what does not would wait for ever, and without a word.

    On a Ray of this machine that is an error, told without starting it where no GPU is asked for. A cluster may grow,
    so there it is a line, by ``say``.

    Raises:
        UserError: A stage asks for more than a Ray of this machine has, or no Ray can be had (:meth:`Session.check`).
    """
    asked = {
        each.stage: Bundles(each.count, each.each["CPU"], each.each["GPU"], each.beside)
        for each in demands_of(config, {})
    }
    if not session.is_up:
        session.check()
    if session.is_local and not session.is_up and not any(gpus for _, _, gpus, _ in asked.values()):
        nodes = [{"CPU": float(session.num_cpus)}]
    else:
        session.ensure()
        nodes = nodes_now()
    have_cpus, have_gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    if not session.is_local:
        if wanting := [f"{stage} asks for {ask}" for stage, ask in asked.items() if lack(ask, nodes)]:
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
    most = max((node.get("memory", 0.0) for node in nodes_now()), default=0.0)
    if most >= asked_bytes:
        return
    words = (
        f"{stage} asks for {asked_bytes / 2**30:.1f} GiB for a process, and no node has more than {most / 2**30:.1f}"
    )
    if work.session.is_local:
        raise UserError(f"{words}: end other programs, or take a smaller batch size or model")
    work.say("cluster", f"{words}; it waits until such a node joins")


def check_seen(work: Work, paths: dict[str, Place]) -> None:
    """Whether every node of a cluster sees these folders and files; told before anything is read. Costs 2 s there.

    What lies on an object store is the doctor's to look at.

    Args:
        paths: By the field that names them.

    Raises:
        UserError: Some do not; names the field, the path and the nodes.
    """
    local = {field: place.path for field, place in paths.items() if place.is_local}
    if work.session.is_local or not local:
        return
    work.session.ensure()
    answers = ask_all(alive_nodes(), unseen, lambda _: (local,), SEEN_S)
    for field, path in local.items():
        if blind := [name for name, answer in answers.items() if field in (answer.value or ())]:
            raise UserError(
                f"{field}: {path} is on this machine, and {', '.join(sorted(blind))} of the cluster cannot see it; "
                "give a folder that all nodes mount, or s3://..., gs://..."
            )


def unseen(paths: dict[str, str]) -> list[str]:
    """Which are not on the machine that is asked."""
    return [field for field, path in paths.items() if not os.path.exists(path)]


def cpus_that_fit(nodes: list[dict[str, float]], actors: int, gpus: float) -> float:
    """The most CPUs, 1 at most, that so many actors can each have on these nodes; 1 where nothing fits."""
    sizes = {node.get("CPU", 0.0) for node in nodes}
    shares = {min(1.0, math.floor(1000 * size / k) / 1000) for size in sizes for k in range(1, actors + 1)} - {0.0}
    return next((share for share in sorted(shares, reverse=True) if room(nodes, share, gpus) >= actors), 1.0)


def room(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many actors that each ask for so much fit on the nodes: one has all it asks for on one node."""
    return int(sum(how_many(node, {"CPU": cpus, "GPU": gpus}) for node in nodes))
