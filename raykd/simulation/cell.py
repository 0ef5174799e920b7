"""A cell of a simulation: one arm with one seed, round by round, on arrays; a frozen student's whole campaign.

The same functions in the same order as a campaign's stages call them, so the picks are the same, and the figures: to
the last bit, if all images can be read, as far as a matrix product's bits do not hang on the number of threads.

N images of all splits, P pool images, C classes, D feature width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from raykd.algo import metrics
from raykd.algo.dho import TEACHER_COLUMNS, StudentNet
from raykd.algo.few_shot.rules import fit_rule
from raykd.algo.few_shot.scorer import Scorer
from raykd.algo.few_shot.stat_a import ITERATIONS, pool_moments, start, update
from raykd.algo.few_shot.support import Support
from raykd.algo.few_shot.trained import CLAP_SETTINGS
from raykd.algo.heads import HEADS, Mixture, probabilities
from raykd.algo.keyed import hash_ids
from raykd.algo.selection.kcenter import coverage_radius
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards
from raykd.algo.selection.start import some_of_each_class
from raykd.algo.selection.strategies import needed, pick
from raykd.algo.zeroshot import rounded
from raykd.config import Config
from raykd.errors import UserError
from raykd.models.frozen import frozen_heads
from raykd.models.mixing import mixture_by
from raykd.models.student import as_numpy
from raykd.models.threads import limited_threads
from raykd.models.training import Targets, reproducible, train_student
from raykd.models.training_data import TrainingFeatures
from raykd.models.training_plan import seed_of_weights, settings_of, steps_of
from raykd.simulation.oracles import UNSURE, Oracle
from raykd.simulation.problem import Problem

CE, KD = "ce_logits", "kd_logits"


@dataclass(frozen=True)
class Answered:
    """All answers so far.

    Args:
        rows: int64 [K], of the problem, in the order they were asked for.
        answers: int64 [K], class indices or :data:`raykd.simulation.oracles.UNSURE`.
    """

    rows: np.ndarray
    answers: np.ndarray

    @property
    def named(self) -> np.ndarray:
        """Which of them name a class, bool [K]."""
        found: np.ndarray = self.answers != UNSURE
        return found

    def labeled(self, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        """Rows that have a label, by id, and the labels; int64 [L] both."""
        rows, labels = self.rows[self.named], self.answers[self.named]
        order = np.argsort(problem.ids[rows], kind="stable")
        return rows[order], labels[order]

    def and_then(self, rows: np.ndarray, oracle: Oracle) -> Answered:
        """With the answers to more of them."""
        return Answered(np.concatenate([self.rows, rows]), np.concatenate([self.answers, oracle.answers_N[rows]]))


NOBODY_ASKED = Answered(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True)
class After:
    """What a round leaves to the next one.

    Args:
        answered: All answers so far.
        logits: float32 [N, C] of each of the student's heads.
        features_ND: float16, what its heads were given.
        mixture: As it is deployed.
        space: The pool as the next round picks in it, and the labeled rows.
        row: The figures, by the names of tables.RESULTS.
    """

    answered: Answered
    logits: Mapping[str, np.ndarray]
    features_ND: np.ndarray
    mixture: Mixture
    space: tuple[LocalShards, Rows]
    row: dict[str, float]


def run_cell(
    problem: Problem, config: Config, oracle: Oracle, num_rounds: int, first: After | None = None,
    told: Callable[[After], None] = lambda _: None,
) -> list[After]:  # fmt: skip
    """All rounds of an arm with one seed.

    Args:
        problem: The images.
        config: Of the campaign; its seed is the cell's.
        oracle: The answers to the problem's rows.
        num_rounds: How many.
        first: What the first round left, where another arm has been through the very same.
        told: Called with each round that is new.

    Raises:
        UserError: The pool is used up, nobody has named a class, a strategy refuses.

    Cost: a training a round.
    """
    rounds = [] if first is None else [first]
    while len(rounds) < num_rounds:
        before, number = rounds[-1] if rounds else None, len(rounds)
        rows = picked_rows(problem, config, number, before)
        rounds.append(run_round(problem, config, oracle, number, rows, before))
        told(rounds[-1])
    return rounds


def run_round(
    problem: Problem, config: Config, oracle: Oracle, number: int, rows: np.ndarray, before: After | None
) -> After:
    """One round: what becomes of these rows' answers. ``rows``: int64 [B], of the problem."""
    started = time.perf_counter()
    answered = (before.answered if before else NOBODY_ASKED).and_then(rows, oracle)
    labeled, labels_L = answered.labeled(problem)
    if not len(labeled):
        raise UserError("no answer names a class yet, so there is nothing to train on; give a larger start or budget")
    logits_NC, rounded_NC = teacher_opinion(problem, config, answered)
    model = trained_heads(problem, config, number, labeled, labels_L, rounded_NC)
    features_ND, logits = predicted_by(problem, model)
    mixture = chosen_mixture(problem, config, number, logits)
    after = After(answered, logits, features_ND, mixture, (LocalShards([]), Rows.none()), {})
    after = replace(after, space=student_rows(problem, config, after))
    row = figures_of(problem, config, after, logits_NC) | {
        "round": number,
        "labels": len(answered.rows),
        "spent": float(oracle.prices_N[answered.rows].sum()),
        "seconds": time.perf_counter() - started,
    }
    return replace(after, row=row)


# ---------------------------------------------------------------- what to ask


def picked_rows(problem: Problem, config: Config, number: int, before: After | None) -> np.ndarray:
    """The round's picks in their order, rows of the problem, int64 [B]."""
    selection, labels = config.selection, config.labels
    if before is None and labels.start == "one_per_class":
        pool = problem.pool
        chosen = some_of_each_class(
            hash_ids(problem.ids[pool]), problem.labels_N[pool], len(problem.classes), labels.shots, config.seed
        )
        return pool[chosen]
    shards, labeled = teacher_rows(problem, config) if before is None else before.space
    left = sum(map(len, shards.shards))
    if not left:
        raise UserError("every image of the pool is labeled or left out: lower rounds, or take a larger pool")
    budget = min(selection.budget or len(problem.classes), left)
    picked = pick(
        selection.strategy, shards, labeled, budget, config.seed, number, selection.cap, selection.options,
        selection.balance,
    )  # fmt: skip
    return problem.rows_of(picked.ids)


def teacher_rows(problem: Problem, config: Config) -> tuple[LocalShards, Rows]:
    """The pool in the teacher's eyes, nothing in it labeled: what a cold start picks in."""
    pool = problem.pool
    probs_PC = probabilities({"logits": problem.logits_NC[pool]})
    return LocalShards.split(rows_of_pool(config, problem.ids[pool], probs_PC, problem.seen_by_teacher_ND[pool]), 1), (
        Rows.none()
    )


def student_rows(problem: Problem, config: Config, after: After) -> tuple[LocalShards, Rows]:
    """The pool in a student's eyes: what has no answer, and what is labeled, by id."""
    fixed = config.selection.mixture
    mixture = after.mixture.uncalibrated if fixed == "round" else Mixture(*fixed)
    labeled, labels_L = after.answered.labeled(problem)
    free = problem.pool[~np.isin(problem.pool, after.answered.rows)]
    found = []
    for rows in (free, labeled):
        probs_NC = probabilities({name: each[rows] for name, each in after.logits.items()}, mixture)
        found.append(rows_of_pool(config, problem.ids[rows], probs_NC, after.features_ND[rows]))
    return LocalShards.split(found[0], 1), replace(found[1], labels=labels_L)


def rows_of_pool(config: Config, ids: np.ndarray, probs_NC: np.ndarray, features_ND: np.ndarray) -> Rows:
    selection = config.selection
    needs = needed(selection.strategy, selection.cap, selection.options, selection.balance)
    if selection.precision == "fp16":
        probs_NC = probs_NC.astype(np.float16)
    return Rows(ids, probs_NC, features_ND, vectors=probs_NC if "vectors" in needs else None)


# ---------------------------------------------------------------- the teacher


def teacher_opinion(problem: Problem, config: Config, answered: Answered) -> tuple[np.ndarray, np.ndarray]:
    """The teacher's logits of every image after these answers: as they are stored, and as students learn from them."""
    if not config.teacher.learns:
        return problem.logits_NC, problem.rounded_NC
    scorer = fitted_teacher(problem, config, answered)
    with limited_threads(num_threads(config)):
        logits_NC = np.concatenate([scorer.logits(problem.seen_by_teacher_ND[part]) for part in problem.parts])
    rounded_NC = rounded(logits_NC)
    return rounded_NC, rounded_NC


def fitted_teacher(problem: Problem, config: Config, answered: Answered) -> Scorer:
    """What the labels, and if asked for the pool, make of the teacher."""
    assert problem.texts is not None
    teacher, features_ND = config.teacher, problem.seen_by_teacher_ND
    labeled, labels_L = answered.labeled(problem)
    support = Support(features_ND[labeled], labels_L, problem.texts)
    with limited_threads(num_threads(config)):
        scorer = fit_rule(teacher.rule, support, CLAP_SETTINGS[teacher.clap]).scorer
        if not teacher.stat_a:
            return scorer
        is_free_N = np.zeros(len(problem.ids), bool)
        is_free_N[problem.pool] = True
        is_free_N[labeled] = False
        state = start(scorer, problem.texts.directions_CD, support)
        for _ in range(ITERATIONS):
            some = (pool_moments(features_ND[part][is_free_N[part]], state.scorer) for part in problem.parts)
            total = next(some)
            for more in some:
                total = total + more
            state = update(state, total)
    return state.scorer


# ---------------------------------------------------------------- the student


def num_threads(config: Config) -> int:
    return max(1, int(config.student.num_cpus))


def trained_heads(
    problem: Problem, config: Config, number: int, labeled: np.ndarray, labels_L: np.ndarray, rounded_NC: np.ndarray
) -> StudentNet:
    """Fresh heads, trained on the labeled rows and the rest of the pool."""
    student, key = config.student, (config.seed, number)
    order = np.concatenate([labeled, problem.pool[~np.isin(problem.pool, labeled)]])
    features_ND = problem.features_ND[order]
    needs_teacher = any(column in TEACHER_COLUMNS for column in HEADS[student.heads])
    targets = Targets(labels_L, rounded_NC[order] if needs_teacher else np.empty((0, 0), np.float16))
    settings = settings_of(student, steps_of(student, len(labeled), len(order), key), key)
    with reproducible(num_threads(config), torch.device("cpu")):
        model = frozen_heads(student, len(problem.classes), seed_of_weights(key), features_ND)
        train_student(model, TrainingFeatures(features_ND), targets, settings, lambda *_: None)
    return model.eval()


@torch.inference_mode()
def predicted_by(problem: Problem, model: StudentNet) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """What heads say of every image: features float16 [N, W] that they were given, and each one's logits [N, C]."""
    features, logits = [], []
    with limited_threads(1):
        for part in problem.parts:
            seen_ND, said = as_numpy(model(torch.from_numpy(problem.features_ND[part].astype(np.float32))))
            features.append(seen_ND.astype(np.float16))
            logits.append(said)
    return np.concatenate(features), {name: np.concatenate([each[name] for each in logits]) for name in logits[0]}


def chosen_mixture(problem: Problem, config: Config, number: int, logits: Mapping[str, np.ndarray]) -> Mixture:
    """The mixture and its calibration by the validation split, where there is one."""
    how, labels_V = config.mixture, problem.labels_N[problem.val]
    if not len(labels_V):
        return Mixture(how.ce_weight, how.temperature)
    of_val = {name: each[problem.val] for name, each in logits.items()}
    with limited_threads(1):
        return mixture_by(how, of_val, labels_V, config.seed, number)


# ---------------------------------------------------------------- how good it is


def figures_of(problem: Problem, config: Config, after: After, teacher_logits_NC: np.ndarray) -> dict[str, float]:
    """The round's figures on test, by the names of tables.RESULTS."""
    labels_M = problem.labels_N[problem.test]
    of_test = {name: each[problem.test] for name, each in after.logits.items()}
    probs_MC = probabilities(of_test, after.mixture)
    radius = coverage_radius(*after.space)
    two = len(of_test) > 1
    return {
        "accuracy": metrics.accuracy(probs_MC, labels_M),
        "ce_head": metrics.accuracy(of_test[CE], labels_M) if CE in of_test else math.nan,
        "kd_head": metrics.accuracy(of_test[KD], labels_M) if KD in of_test else math.nan,
        "teacher": metrics.accuracy(probabilities({"logits": teacher_logits_NC[problem.test]}), labels_M),
        "macro_accuracy": metrics.macro_accuracy(probs_MC, labels_M),
        "log_loss": metrics.log_loss(probs_MC, labels_M),
        "ece": metrics.calibration_error(probs_MC, labels_M),
        "ce_weight": after.mixture.ce_weight if two else math.nan,
        "temperature": after.mixture.temperature if two else math.nan,
        "coverage_radius": 0.0 if math.isnan(radius) else radius,
    }


def first_round_key(config: Config) -> Any:
    """What the first round of a cell hangs on: arms that agree in it go through the same one."""
    plain = config.model_dump(mode="json")
    for name in ("storage_path", "cache_path", "rounds", "local_cpus", "stall_s", "progress"):
        del plain[name]
    if config.labels.start == "one_per_class":
        seen = ("mixture", "precision")  # what coverage is measured in
        plain["selection"] = {name: plain["selection"][name] for name in seen}
        plain["selection"]["vectors"] = "vectors" in needed(config.selection.strategy)
    return plain
