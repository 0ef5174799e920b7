"""What can be simulated on a problem, told before any training."""

from __future__ import annotations

import math

import numpy as np

from raykd.config import Config
from raykd.errors import UserError
from raykd.simulation.problem import Problem


def check_cell(problem: Problem, config: Config, num_rounds: int) -> None:
    """Whether an arm can be run on this problem: before any training.

    Raises:
        UserError: It needs what is not there, or more images than there are; says what would do.
    """
    teacher, labels, pool_labels = config.teacher, config.labels, problem.labels_N[problem.pool]
    if teacher.views:
        raise UserError("teacher.views needs images, and here are features alone; leave it out")
    if teacher.learns and problem.texts is None:
        raise UserError(
            f"teacher.rule: {teacher.rule} learns from class texts, and there are none (texts.npz); give them, or "
            "take zero_shot"
        )
    if labels.start == "given":
        raise UserError("labels.start: given is of one set of labels, not of each seed; give one_per_class or none")
    if not len(problem.test):
        raise UserError("there are no test images to measure on; give test_share or test")
    budget, num_start, picking = config.selection.budget or len(problem.classes), 0, num_rounds
    if labels.start == "one_per_class":
        counts_C = np.bincount(pool_labels, minlength=len(problem.classes))
        some = counts_C[counts_C > 0]
        if (least := int(some.min())) < labels.shots:
            name = problem.classes[int(np.flatnonzero(counts_C == least)[0])]
            raise UserError(
                f"labels.shots: {labels.shots} of each class, and the pool has {least} of {name!r}; lower it to {least}"
            )
        num_start, picking = labels.shots * len(some), num_rounds - 1
    if (asked := num_start + picking * budget) > len(problem.pool):
        enough = (len(problem.pool) - num_start) // max(1, picking)
        raise UserError(
            f"{num_rounds} rounds with a budget of {budget} ask for {asked} labels, and the pool has "
            f"{len(problem.pool)} images; lower selection.budget"
            + (f" (to {enough})" if enough > 0 else "")
            + " or rounds"
        )


def check_seeds(problem: Problem, config: Config, num_seeds: int) -> None:
    """Whether the start can be drawn in as many ways as there are seeds. Raises UserError when it cannot."""
    if config.labels.start != "one_per_class":
        return
    counts = np.bincount(problem.labels_N[problem.pool]).tolist()
    ways = math.prod(math.comb(count, min(count, config.labels.shots)) for count in counts if count)
    if ways < num_seeds:
        raise UserError(
            f"seeds: {num_seeds}, and {config.labels.shots} of each class can be drawn in {ways} ways, so seeds would "
            f"be the same experiment again; give {ways} or fewer, or a larger pool"
        )
