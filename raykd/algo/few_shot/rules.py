"""All rules of a few-shot teacher, by name, and ``auto``, which takes the one that the labels speak for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from raykd.algo.few_shot.gda import gda
from raykd.algo.few_shot.honest import Fitted, Learned, Rule, evidence_of, fitted, text_only
from raykd.algo.few_shot.kernels import proker, tip
from raykd.algo.few_shot.support import Support
from raykd.algo.few_shot.trained import PUBLISHED_CLAP, ClapSettings, clap, tip_f

ENOUGH = 8  # labels that say something, from which on ``auto`` listens to them


def texts_alone(support: Support) -> Iterator[Learned]:
    """The texts alone: ``scale * cosine``."""
    yield text_only(support)


RULES: dict[str, Rule] = {
    "zero_shot": texts_alone,
    "gda": gda,
    "proker": proker,
    "tip": tip,
    "clap": clap,
    "tip_f": tip_f,
}
AUTO = ("gda", "proker")


def say_enough(support: Support) -> bool:
    """Whether :data:`ENOUGH` labels say something of how good a teacher is (:attr:`Support.shares_C`)."""
    return len(support.labels_N) > 1 and bool(evidence_of(support).says_M.sum() >= ENOUGH)


def fit_rule(rule: str, support: Support, clap_settings: ClapSettings = PUBLISHED_CLAP) -> Fitted:
    """The teacher of a rule, refitted.

    Args:
        rule: One of :data:`RULES`, or ``auto``: zero-shot, unless the labels say by more than a standard error that one
            of :data:`AUTO` is likelier; with fewer than :data:`ENOUGH` that say anything, zero-shot as it is.
        support: The labels.
        clap_settings: How CLAP is trained; no other rule looks at them.

    Returns:
        With one label in all, which leaves nothing to learn from when it is left out: zero-shot as it is.
    """
    if len(support.labels_N) < 2 or (rule == "auto" and not say_enough(support)):
        return fitted("zero_shot", support, texts_alone, tempered=False)
    if rule != "auto":
        rules = RULES | {"clap": partial(clap, settings=clap_settings)}
        return fitted(rule, support, rules[rule])
    texts, *others = (fitted(name, support, RULES[name]) for name in ("zero_shot", *AUTO))
    other = min(others, key=lambda each: float(each.says_M @ each.losses_M))
    gains_M, says_M = texts.losses_M - other.losses_M, texts.says_M
    gain = float(says_M @ gains_M) / says_M.sum()
    error = float(np.sqrt((says_M**2) @ (gains_M - gain) ** 2)) / says_M.sum()
    return other if gain > error else texts
