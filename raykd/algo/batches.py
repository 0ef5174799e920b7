"""Which images make up which training batch: a function of seed, round and step alone.

Nothing is carried from step to step, so a training that resumes at step s sees what it would have seen, and W workers
together see what one would have seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from raykd.algo.keyed import generator


@dataclass
class BatchPlan:
    """Labeled draws with replacement, unlabeled ones in shuffled passes (PAPERS.md 1.3).

    The reference pads the labeled list from its front, so that early samples weigh more; here all weigh the same.

    Args:
        num_labeled: L > 0, labeled images.
        num_unlabeled: U > 0, unlabeled images.
        batch_labeled: Labeled images a step.
        batch_unlabeled: Unlabeled images a step.
        key: What makes this training's draws its own: (seed, round).
    """

    num_labeled: int
    num_unlabeled: int
    batch_labeled: int
    batch_unlabeled: int
    key: tuple[int, ...]
    _pass: tuple[int, np.ndarray] = field(default=(-1, np.empty(0, np.int64)), repr=False)

    def labeled(self, step: int) -> np.ndarray:
        """Indices into the labeled images, int64 [batch_labeled]."""
        return generator(*self.key, "labeled", step).integers(self.num_labeled, size=self.batch_labeled)

    def unlabeled(self, step: int) -> np.ndarray:
        """Indices into the unlabeled images, int64 [batch_unlabeled]; each once a pass."""
        place, end = step * self.batch_unlabeled, (step + 1) * self.batch_unlabeled
        parts = []
        while place < end:
            number, first = divmod(place, self.num_unlabeled)
            parts.append(self._order(number)[first : first + end - place])
            place += len(parts[-1])
        return np.concatenate(parts)

    def augmentation_seeds(self, step: int) -> np.ndarray:
        """A seed for the random crop of each image of the batch, int64 [batch_labeled + batch_unlabeled]."""
        size = self.batch_labeled + self.batch_unlabeled
        return generator(*self.key, "augmentation", step).integers(2**63, size=size)

    def _order(self, number: int) -> np.ndarray:
        if self._pass[0] != number:
            self._pass = number, generator(*self.key, "pass", number).permutation(self.num_unlabeled)
        return self._pass[1]


def num_steps(plan: BatchPlan, steps: int | None, passes_labeled: int | None, passes_unlabeled: int | None) -> int:
    """How long to train; exactly one of the three is given.

    ``passes_labeled`` counts as the papers do: that many times ceil(L / batch_labeled), 200 in the ten small data
    sets; ``passes_unlabeled`` passes over the unlabeled images, 20 on ImageNet.
    """
    if steps is not None:
        return steps
    if passes_labeled is not None:
        return passes_labeled * math.ceil(plan.num_labeled / plan.batch_labeled)
    assert passes_unlabeled is not None
    return passes_unlabeled * max(1, plan.num_unlabeled // plan.batch_unlabeled)


Schedule = Literal["linear", "cosine", "constant", "semi_supervised"]
LEAST = 0.01  # the factor that a semi-supervised warm-up begins at


def learning_rate(step: int, steps: int, rising: int, schedule: Schedule) -> float:
    """The learning rate's factor at a step, 0 to 1: a linear rise from 0 over so many steps, then down to 0.

    ``semi_supervised`` is what DHO's code does on 1 % and 10 % of ImageNet (PAPERS.md 1.4): a linear rise from 0.01,
    *multiplied with* a cosine that begins at step 0 and is 0 after ``steps - rising`` steps, so that the rate rises
    once more over the last ``rising`` of them.

    Args:
        step: Which, 0 or more.
        steps: Of the training.
        rising: Steps of warm-up, less than ``steps`` where it is semi-supervised.
        schedule: After it, or beside it.
    """
    if schedule == "semi_supervised":
        warm = LEAST + (1 - LEAST) * min(step, rising) / rising if rising else 1.0
        return warm * 0.5 * (1 + math.cos(math.pi * step / (steps - rising)))
    if step < rising:
        return step / rising
    done = (step - rising) / max(1, steps - rising)
    return {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[schedule]
