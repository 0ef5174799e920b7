"""Counters for those who watch a cluster (``ray.util.metrics``): images, seconds and rounds done, by stage and round.

The driver counts, and only where it has a Ray anyway. Ray adds ``ray_`` to the names at its metrics endpoints, and
sends what was counted every ten seconds: what a job counts in its last seconds may not arrive. A Ray that raykd starts
itself collects none, unless ``RAY_enable_metrics_collection=1`` and ``RAY_enable_open_telemetry=1`` are set.
"""

from __future__ import annotations

import re
import sys
from functools import cache
from typing import Any

IMAGES, SECONDS, ROUNDS = "raykd_images_total", "raykd_stage_seconds_total", "raykd_rounds_total"
MEANING = {
    IMAGES: "Images that a stage has seen",
    SECONDS: "Seconds that the making of a stage took",
    ROUNDS: "Rounds that are measured",
}


def ray_is_up() -> bool:
    """Whether a Ray is up in this process; imports none."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def count(metric: str, name: str, amount: float) -> None:
    """Count so much of a metric (:data:`MEANING`); nothing without a Ray, or of nothing.

    Args:
        metric: Which.
        name: Of the stage, as it is said: ``encode``, ``round 2 train``.
        amount: Images, seconds or rounds, since the last count.
    """
    if amount > 0 and ray_is_up():
        counter(metric).inc(amount, tags_of(name))


def tags_of(name: str) -> dict[str, str]:
    """The tags of a stage; the round is empty for one of the whole campaign.

    Example:
        >>> tags_of("round 2 train"), tags_of("encode")
        ({'stage': 'train', 'round': '2'}, {'stage': 'encode', 'round': ''})
    """
    of_round = re.fullmatch(r"round (\d+) (.+)", name)
    number, stage = of_round.groups() if of_round else ("", name)
    return {"stage": stage, "round": number}


@cache
def counter(metric: str) -> Any:
    """Ray's counter of a metric, made once in a process."""
    from ray.util.metrics import Counter

    return Counter(metric, MEANING[metric], tag_keys=("stage", "round"))
