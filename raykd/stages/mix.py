"""The round's mixture of the two heads and its calibration, both by the validation split; and the student to deploy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from ray import tune

from raykd.algo.heads import Mixture, probabilities
from raykd.algo.metrics import log_loss
from raykd.algo.mixture_search import better_mixture, grid, hits
from raykd.models.saved import WEIGHTS, deploy
from raykd.report.words import TO, counted, plain
from raykd.stages.campaign import Campaign
from raykd.stages.weights import network_named
from raykd.store.outputs import Deployed, Pool, Predictions, Trained

VERSION = 1
MAX_TRIALS = 16
WORK_A_TRIAL = 5e9  # grid points x images x classes: a few seconds of one core


def mix(campaign: Campaign, number: int, pool: Pool, trained: Trained, predictions: Predictions) -> Deployed:
    """The student as it is deployed: its weights and the mixture (``Student.load`` reads the folder).

    Searched on the validation split: never on test, never on what the student was trained on. Without one, the
    configured mixture stays. The same labels then say how sure it should be (``Mixture.calibration``), for those who
    read its probabilities; what is picked next, and coverage, do not look at that.
    """
    config = campaign.config.mixture
    default = Mixture(config.ce_weight, config.temperature)
    folder = campaign.folder(
        "student",
        number,
        version=VERSION,
        made_from={"student": trained.fingerprint},
        settings=campaign.config.part("mix"),
    )
    if done := campaign.done(folder, number):
        return Deployed(done)
    with folder.writing() as out:
        _, logits, labels_N = predictions.split("val", pool)
        chosen, num_validation = default, 0
        if len(predictions.columns) < 2:
            reason = "one head: nothing to mix"
        elif config.search and len(labels_N):
            num_validation = len(labels_N)
            chosen, reason = search(campaign, number, logits, labels_N, default)
        else:
            why = "mixture.search is off" if len(labels_N) else "there is no validation split to search on"
            reason = f"fixed: {why}"
        if config.calibrate and len(labels_N):
            num_validation = len(labels_N)
            chosen, calibrated = calibration(logits, labels_N, chosen)
        else:
            calibrated = "none: " + (
                "mixture.calibrate is off" if len(labels_N) else "there is no validation split to calibrate by"
            )
        network = trained.features and network_named(campaign, trained.features["network"]).place / WEIGHTS
        deploy(trained.place, out.place, chosen, network or None)
        out.facts |= asdict(chosen)
        out.facts |= {"reason": reason, "calibrated": calibrated, "num_validation": num_validation}
    deployed = Deployed(out.complete)
    mixture = deployed.mixture
    campaign.say(
        f"round {number} mix",
        f"ce_weight {mixture.ce_weight:g}, temperature {mixture.temperature:g} ({deployed.reason}); "
        + plain(f"calibration temperature {mixture.calibration:.3g} ({deployed.calibrated})"),
    )
    return deployed


def calibration(logits: Mapping[str, np.ndarray], labels_N: np.ndarray, mixture: Mixture) -> tuple[Mixture, str]:
    """The mixture with its calibration temperature, and what that has changed on the labels that it is fitted to."""
    from raykd.algo.calibration import fit_calibration  # torch, which a driver on a cluster has not needed so far

    found = replace(mixture, calibration=fit_calibration(logits, mixture, labels_N))
    before, after = (log_loss(probabilities(logits, each), labels_N) for each in (mixture, found))
    return found, f"on {counted(len(labels_N), 'validation label')}: log-loss {before:.3f} {TO} {after:.3f}"


class Block(tune.Trainable):
    """One trial: many points of the grid at once, on logits that all trials share."""

    def setup(self, config: dict[str, int], logits: Any = None, points_G2: Any = None) -> None:
        self.logits, self.points_G2 = logits, points_G2  # Tune hands over what with_parameters was given
        self.reset_config(config)

    def reset_config(self, config: dict[str, int]) -> bool:
        self.block = np.array_split(self.points_G2, config["blocks"])[config["block"]]
        return True

    def step(self) -> dict[str, Any]:
        logits, labels_N = self.logits
        correct = hits(logits, labels_N, self.block).sum(axis=1)
        return {"correct": correct.tolist(), "best": int(correct.max()), "done": True}

    def save_checkpoint(self, folder: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


def search(
    campaign: Campaign,
    number: int,
    logits: Mapping[str, np.ndarray],
    labels_N: np.ndarray,
    default: Mixture,
) -> tuple[Mixture, str]:
    """The most accurate point of the papers' grid, if it beats the default by a standard error; and the reason."""
    points_G2 = grid(default)
    size = next(iter(logits.values())).size
    blocks = int(np.clip(len(points_G2) * size / WORK_A_TRIAL, 1, MAX_TRIALS))
    campaign.session.ensure()
    scratch = campaign.place / "ray_tune"
    name = f"round-{number:03d}-{time.time_ns()}"
    results = tune.Tuner(
        tune.with_parameters(Block, logits=(logits, labels_N), points_G2=points_G2),
        param_space={"block": tune.grid_search(list(range(blocks))), "blocks": blocks},
        tune_config=tune.TuneConfig(metric="best", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch.path,
            storage_filesystem=None if scratch.is_local else scratch.fs,
            verbose=0,
        ),
    ).fit()
    if results.errors:
        raise results.errors[0]
    correct: dict[int, list[int]] = {}
    for i in range(blocks):
        found = results[i]
        assert found.config is not None
        assert found.metrics is not None
        correct[found.config["block"]] = found.metrics["correct"]
    scratch.fs.delete_dir((scratch / name).path)
    correct_G = np.concatenate([correct[block] for block in range(blocks)])
    chosen, real, gain = better_mixture(logits, labels_N, default, points_G2, correct_G)
    searched = f"searched {len(points_G2)} mixtures on {len(labels_N)} validation images"
    if real:
        return chosen, f"{searched}: {gain} over the default"
    return chosen, f"{searched}: the best gains {gain}, within one standard error, so the default stays"
