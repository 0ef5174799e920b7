"""Small simulations, as their tests look at them: made-up features that can be told apart, and the digits' own."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raykd.presets import demo
from raykd.simulation.definition import OracleConfig
from raykd.simulation.oracles import Oracle, answering
from raykd.simulation.problem import Problem, given_tables, read_problem, write_problem
from raykd.store.place import Place
from raykd.store.tables import vectors

CLASSES = ["ant", "bee", "cat"]
STUDENT = {"backbone": "frozen", "steps": 12, "learning_rate": 0.01, "batch_labeled": 8, "batch_unlabeled": 16}


def write_small(folder: Path, per_class: int = 20, classes: list[str] = CLASSES, seed: int = 0) -> Place:
    """A folder of tables: Gaussians of 6 numbers around a mean a class, and a teacher that is often right."""
    rng, place = np.random.default_rng(seed), Place.of(folder)
    means_CD = rng.normal(size=(len(classes), 6)) + 0.5
    directions_CD = means_CD / np.linalg.norm(means_CD, axis=1, keepdims=True)
    for split, count in (("pool", per_class), ("val", 5), ("test", 10)):
        labels_N = np.repeat(np.arange(len(classes)), count)
        features_ND = means_CD[labels_N] + 0.6 * rng.normal(size=(len(labels_N), 6))
        features_ND /= np.linalg.norm(features_ND, axis=1, keepdims=True)
        columns = {
            "sample_id": [f"{split}-{number:03d}" for number in rng.permutation(len(labels_N))],
            "label": [classes[number] for number in labels_N],
            "features": vectors(features_ND.astype(np.float16)),
            "logits": vectors((5 * features_ND @ directions_CD.T).astype(np.float32)),
        }
        (place / f"{split}.parquet").write_table(pa.table(columns))
    (place / "classes.json").write_json(classes)
    np.savez(folder / "texts.npz", directions_CD=directions_CD, scale=5.0)
    return place


def small_values(tables: Path, results: Path, **changes: Any) -> dict[str, Any]:
    """The values of a simulation on :func:`write_small`'s tables: two arms, two seeds, three rounds."""
    campaign = {
        "rounds": 3,
        "student": STUDENT,
        "selection": {"strategy": "random", "budget": 4},
        "labels": {"start": "one_per_class"},
        "progress": "none",
    }
    values = {
        "results_path": str(results),
        "campaign": campaign,
        "tables": str(tables),
        "arms": {"random": {}, "PCoreSet": {"selection.strategy": "pcoreset"}},
        "seeds": 2,
    }
    return values | changes


def frozen_digits(storage: Path, cache: Path, **changes: Any) -> dict[str, Any]:
    """The demo's campaign with a frozen student that trains for an instant."""
    values = demo()
    values |= {"storage_path": str(storage), "cache_path": str(cache), "progress": "none", "rounds": 2}
    values["student"] = {"backbone": "frozen", "steps": 30, "learning_rate": 0.01, "batch_labeled": 16}
    return values | changes


def perfect(problem: Problem, seed: int = 0) -> Oracle:
    return oracle_of(problem, OracleConfig(), seed)


def oracle_of(problem: Problem, config: OracleConfig, seed: int = 0) -> Oracle:
    return answering(config, problem).oracle(problem, seed)


def small_problem(tables: Path | str) -> Problem:
    """The problem of :func:`write_small`'s tables."""
    table, classes, texts = given_tables(Place.of(tables))
    with tempfile.TemporaryDirectory() as folder:
        write_problem(Place.of(folder), [table], classes, texts)
        return read_problem(Place.of(folder))
