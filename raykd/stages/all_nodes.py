"""A question to every node of a cluster at once, whatever else runs there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from raykd.errors import one_line


@dataclass(frozen=True)
class Answer:
    """Of a node: its value, or why there is none; and when, by the driver's clock, it was asked and answered."""

    value: Any = None
    error: str | None = None
    sent: float = 0.0
    received: float = 0.0


@dataclass
class Node:
    """A node that is alive: its name, id and resources, and what it has said so far."""

    name: str
    id: str
    resources: Mapping[str, float]
    said: dict[str, Any] = field(default_factory=dict)


def alive_nodes() -> list[Node]:
    import ray

    return [
        Node(f"{each['NodeManagerAddress']} ({each['NodeID'][:6]})", each["NodeID"], each["Resources"])
        for each in ray.nodes()
        if each["Alive"]
    ]


def ask_all(nodes: list[Node], function: Callable[..., Any], arguments: Callable[[Node], tuple[Any, ...]],
            timeout_s: float) -> dict[str, Answer]:  # fmt: skip
    """Call a function on every node at once, whatever else runs there; a node that does not answer is left out.

    Returns:
        By name.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task, sent = ray.remote(num_cpus=0, max_retries=0)(function), time.time()
    calls = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            *arguments(node)
        ): node
        for node in nodes
    }
    answers: dict[str, Answer] = {}
    until = time.monotonic() + timeout_s
    while len(answers) < len(calls) and (left := until - time.monotonic()) > 0:
        ready, _ = ray.wait([call for call, node in calls.items() if node.name not in answers], timeout=left)
        for call in ready:
            received, name = time.time(), calls[call].name
            try:
                answers[name] = Answer(ray.get(call), None, sent, received)
            except Exception as error:  # nearly anything: the node died, the worker did
                answers[name] = Answer(None, one_line(error), sent, received)
    for call, node in calls.items():
        if node.name not in answers:
            with suppress(Exception):
                ray.cancel(call, force=True)
    return answers
