"""Who answers in a simulation: right, wrong, not at all, or as real people did; and what that costs.

Every answer is drawn by seed and sample_id, so the same image gets the same one in every arm and every round.
N images, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.keyed import hash_ids, uniform
from raykd.errors import UserError, did_you_mean
from raykd.simulation.definition import OracleConfig
from raykd.simulation.problem import Problem
from raykd.store.place import Place
from raykd.store.tables import matrix, positions

UNSURE = -1  # an answer that names no class; the image stays in the pool for the teacher's head, and is not asked again
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Oracle:
    """The answers to all images, were they asked.

    Args:
        answers_N: int64 [N], class indices, or :data:`UNSURE`.
        prices_N: float64 [N].
    """

    answers_N: np.ndarray
    prices_N: np.ndarray


def answers_by_rate(labels_N: np.ndarray, num_classes: int, rate: float, hashes_N: np.ndarray, seed: int) -> np.ndarray:
    """The labels, a share of them replaced by another class, each equally often.

    Args:
        labels_N: int64 [N].
        num_classes: C, at least 2 where ``rate`` is not 0.
        rate: 0 to 1.
        hashes_N: Of the ids (:func:`raykd.algo.keyed.hash_ids`).
    """
    wrong_N = uniform(hashes_N, seed, "oracle", "wrong") < rate
    away_N = 1 + np.floor(uniform(hashes_N, seed, "oracle", "other") * (num_classes - 1)).astype(np.int64)
    return np.where(wrong_N, (labels_N + away_N) % num_classes, labels_N)


def answers_by_distribution(probs_NC: np.ndarray, hashes_N: np.ndarray, seed: int) -> np.ndarray:
    """One class an image, drawn from its own distribution: of a confusion matrix's row, or of what people answered.

    Args:
        probs_NC: float [N, C], rows sum to 1 or nearly so.
    """
    ends_NC = np.cumsum(probs_NC, axis=1, dtype=np.float64)
    draws_N1 = uniform(hashes_N, seed, "oracle", "answer")[:, None] * ends_NC[:, -1:]
    found: np.ndarray = (ends_NC <= draws_N1).sum(axis=1).astype(np.int64)
    return found


def answers_with_doubts(labels_N: np.ndarray, rate: float, hashes_N: np.ndarray, seed: int) -> np.ndarray:
    """The labels, a share of them :data:`UNSURE`."""
    return np.where(uniform(hashes_N, seed, "oracle", "unsure") < rate, UNSURE, labels_N)


def prices_of(
    labels_N: np.ndarray, classes: Sequence[str], price: float, price_per_class: Mapping[str, float]
) -> np.ndarray:
    """What an answer to each image costs, by the class that it is really of, float64 [N].

    Raises:
        UserError: A price of what is no class.
    """
    if unknown := next((name for name in price_per_class if name not in classes), None):
        raise UserError(f"oracle.price_per_class: {unknown!r} is no class; {did_you_mean(unknown, classes)}")
    prices_C = np.array([price_per_class.get(name, price) for name in classes], np.float64)
    found: np.ndarray = prices_C[labels_N]
    return found


# ---------------------------------------------------------------- from a definition


@dataclass(frozen=True)
class Answering:
    """How a simulation's oracle answers, its files read; for any seed.

    Args:
        config: What is asked for.
        probs_PC: float [P, C], of the oracles that draw from a distribution of each pool image; None: it needs none.
    """

    config: OracleConfig
    probs_PC: np.ndarray | None = None

    def oracle(self, problem: Problem, seed: int) -> Oracle:
        """The answers under a seed, to all rows of the problem; those to val and test images mean nothing.

        Cost: a hash a pool image.
        """
        config, pool = self.config, problem.pool
        labels_P, hashes_P = problem.labels_N[pool], hash_ids(problem.ids[pool])
        if self.probs_PC is not None:
            answers_P = answers_by_distribution(self.probs_PC, hashes_P, seed)
        elif config.kind == "noisy":
            answers_P = answers_by_rate(labels_P, len(problem.classes), config.rate or 0.0, hashes_P, seed)
        elif config.kind == "abstaining":
            answers_P = answers_with_doubts(labels_P, config.rate or 0.0, hashes_P, seed)
        else:
            answers_P = labels_P
        answers_N = np.full(len(problem.ids), UNSURE)
        answers_N[pool] = answers_P
        return Oracle(answers_N, prices_of(problem.labels_N, problem.classes, config.price, config.price_per_class))


def answering(config: OracleConfig, problem: Problem) -> Answering:
    """An oracle, its files read and checked against the images.

    Raises:
        UserError: A matrix or a table does not fit; says where.
    """
    pool, classes = problem.pool, problem.classes
    prices_of(problem.labels_N[:0], classes, config.price, config.price_per_class)
    if config.confusion is not None:
        return Answering(config, read_confusion_rates(config.confusion, len(classes))[problem.labels_N[pool]])
    if config.human_probs is not None:
        return Answering(config, read_human_probs(config, problem.ids[pool], len(classes)))
    if config.kind == "noisy" and config.rate and len(classes) < 2:
        raise UserError("oracle: noisy, but there is one class alone, and no other to be taken for it")
    return Answering(config)


def read_confusion_rates(given: list[list[float]] | str, num_classes: int) -> np.ndarray:
    """How often each class is answered as each, float64 [C, C]. Raises UserError where it is no such matrix."""
    what = "oracle.confusion"
    if isinstance(given, str):
        what, place = f"oracle.confusion {given}", Place.of(given)
        if not place.exists():
            raise UserError(f"{what}: no such file; give a CSV file of {num_classes} rows of {num_classes} numbers")
        lines = place.read_bytes().decode("utf-8-sig", "replace").splitlines()
        try:
            given = [[float(cell) for cell in line.split(",")] for line in lines if line.strip()]
        except ValueError as error:
            raise UserError(f"{what}: {error}; expected numbers with commas between, and no line of names") from None
    lengths = {len(row) for row in given}
    if len(given) != num_classes or lengths != {num_classes}:
        raise UserError(
            f"{what} has {len(given)} rows of {', '.join(map(str, sorted(lengths)))} numbers; expected {num_classes} "
            f"of {num_classes}, in the order of the classes"
        )
    rates_CC = np.array(given, np.float64)
    check_distributions(rates_CC, [f"row {number}" for number in range(num_classes)], what)
    return rates_CC


def read_human_probs(config: OracleConfig, ids: np.ndarray, num_classes: int) -> np.ndarray:
    """What people answered to each image, float64 [N, C]. Raises UserError where the table does not fit."""
    assert config.human_probs is not None
    what, place = f"oracle.human_probs {config.human_probs}", Place.of(config.human_probs)
    if not place.exists():
        raise UserError(f"{what}: no such table; give a Parquet file or a folder of them")
    dataset, columns = place.parquet(), (config.id_column, config.probs_column)
    for field, name in zip(("id_column", "probs_column"), columns, strict=True):
        if name not in dataset.schema.names:
            raise UserError(
                f"{what} has no column {name!r} (oracle.{field}); {did_you_mean(name, dataset.schema.names)}"
            )
    table = dataset.to_table(columns=list(columns))
    rows_N = positions(pa.array(list(ids), pa.string()), pc.cast(table[columns[0]], pa.string()), what)
    probs_NC = matrix(table[columns[1]], config.probs_column)[rows_N].astype(np.float64)
    if probs_NC.shape[1] != num_classes:
        raise UserError(f"{what} has vectors of {probs_NC.shape[1]} numbers, and there are {num_classes} classes")
    check_distributions(probs_NC, ids, what)
    return probs_NC


def check_distributions(probs_NC: np.ndarray, names: Sequence[str] | np.ndarray, what: str) -> None:
    """Whether each row is a distribution. Raises UserError that names the first that is none."""
    good_N = (probs_NC >= 0).all(axis=1) & (np.abs(probs_NC.sum(axis=1) - 1) <= SUM_TOLERANCE)
    if not good_N.all():
        first = int(np.flatnonzero(~good_N)[0])
        raise UserError(
            f"{what}: {names[first]} is no distribution: the least number is {probs_NC[first].min():g}, the sum "
            f"{probs_NC[first].sum():.6g}; expected numbers of 0 or more that sum to 1"
        )
