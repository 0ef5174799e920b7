"""The round's mixture of the two heads and its calibration, by labels of no training; and the student to deploy."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from ray import tune

from raykd.algo.heads import Mixture, probabilities
from raykd.algo.metrics import log_loss
from raykd.algo.mixture_search import TRIALS, better_mixture, point_scores, points_to_try, studied_points
from raykd.models.saved import WEIGHTS, deploy
from raykd.report.words import TO, counted, plain
from raykd.stages.advice import to_choose_by
from raykd.stages.campaign import Campaign
from raykd.stages.resources import Bundles, with_patience
from raykd.stages.scratch import clear_scratch, of_round
from raykd.stages.weights import network_named
from raykd.store.outputs import Deployed, Labels, Pool, Predictions, Trained

VERSION = 1
MAX_TRIALS = 16
WORK_A_TRIAL = 5e9  # points x images x classes: a few seconds of one core
MAX_LOSSES = 10  # of a trial, with the machine it was on
FEWEST_AUDITED = 50  # images that choose, where there is no validation split: the others measure


def mix(
    campaign: Campaign, number: int, pool: Pool, labels: Labels, trained: Trained, predictions: Predictions
) -> Deployed:
    """The student as it is deployed: its weights and the mixture (``Student.load`` reads the folder).

    Searched on the validation split, or without one on half of the audited images (the others measure); never on test,
    never on what the student was trained on. Without either the configured mixture stays. The same labels then say how
    sure it should be (``Mixture.calibration``), for those who read its probabilities; what is picked next, and
    coverage, do not look at that.
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
        (_, logits, labels_N), which = to_choose_by(campaign, pool, labels, predictions)
        none = "there is no validation split"
        if which == "audited" and len(labels_N) < FEWEST_AUDITED:
            none += f" and {len(labels_N)} of {FEWEST_AUDITED} audited images" if len(labels_N) else ""
            labels_N = labels_N[:0]
        chosen, used = default, False
        if len(predictions.columns) < 2:
            reason = "one head: nothing to mix"
        elif config.search and len(labels_N):
            used = True
            chosen, reason = search(campaign, number, logits, labels_N, which)
        else:
            reason = f"fixed: {'mixture.search is off' if len(labels_N) else f'{none} to search on'}"
        if config.calibrate and len(labels_N):
            used = True
            chosen, calibrated = calibration(logits, labels_N, chosen, which)
        else:
            calibrated = f"none: {'mixture.calibrate is off' if len(labels_N) else f'{none} to calibrate by'}"
        network = trained.features and network_named(campaign, trained.features["network"]).place / WEIGHTS
        deploy(trained.place, out.place, chosen, network or None)
        out.facts |= asdict(chosen)
        out.facts |= {"reason": reason, "calibrated": calibrated, "by_audit": used and which == "audited"}
        out.facts["num_validation"] = len(labels_N) if used and which == "validation" else 0
    deployed = Deployed(out.complete)
    mixture = deployed.mixture
    campaign.say(
        f"round {number} mix",
        f"ce_weight {mixture.ce_weight:g}, temperature {mixture.temperature:g} ({deployed.reason}); "
        + plain(f"calibration temperature {mixture.calibration:.3g} ({deployed.calibrated})"),
    )
    return deployed


def calibration(
    logits: Mapping[str, np.ndarray], labels_N: np.ndarray, mixture: Mixture, which: str
) -> tuple[Mixture, str]:
    """The mixture with its calibration temperature, and what that has changed on the labels that it is fitted to."""
    from raykd.algo.calibration import fit_calibration  # torch, which a driver on a cluster has not needed so far

    found = replace(mixture, calibration=fit_calibration(logits, mixture, labels_N))
    before, after = (log_loss(probabilities(logits, each), labels_N) for each in (mixture, found))
    return found, f"on {counted(len(labels_N), f'{which} label')}: log-loss {before:.3f} {TO} {after:.3f}"


# ---------------------------------------------------------------- the search, on Ray Tune


class Block(tune.Trainable):
    """One trial: many points at once, on logits that all trials share; or all of a study, whose points come in turn."""

    def setup(self, config: dict[str, int], **shared: Any) -> None:
        self.shared = shared  # Tune hands over what with_parameters was given
        self.reset_config(config)

    def reset_config(self, config: dict[str, int]) -> bool:
        self.config = config
        return True

    def step(self) -> dict[str, Any]:
        logits, labels_N, objective = self.shared["logits"], self.shared["labels_N"], self.shared["objective"]
        if (points_G2 := self.shared["points_G2"]) is None:
            points_G2, scores_G = studied_points(logits, labels_N, objective, *self.shared["study"])
        else:
            points_G2 = np.array_split(points_G2, self.config["blocks"])[self.config["block"]]
            scores_G = point_scores(logits, labels_N, points_G2, objective)
        return {"points": points_G2.tolist(), "scores": scores_G.tolist(), "best": float(scores_G.max()), "done": True}

    def save_checkpoint(self, folder: str) -> None:
        return None

    def load_checkpoint(self, checkpoint: Any) -> None:
        return None


def search(
    campaign: Campaign, number: int, logits: Mapping[str, np.ndarray], labels_N: np.ndarray, which: str
) -> tuple[Mixture, str]:
    """The best of the mixtures that are tried, if it beats the default by a standard error; and the reason."""
    config = campaign.config.mixture
    default = Mixture(config.ce_weight, config.temperature)
    key = (campaign.config.seed, number)
    trials = config.trials or TRIALS
    points_G2 = points_to_try(str(config.search), default, config.points, trials, *key)
    size = next(iter(logits.values())).size
    blocks = 1 if points_G2 is None else int(np.clip(len(points_G2) * size / WORK_A_TRIAL, 1, MAX_TRIALS))
    shared = {
        "logits": dict(logits),
        "labels_N": labels_N,
        "objective": config.objective,
        "points_G2": points_G2,
        "study": (default, trials, *key),
    }
    points_G2, scores_G = scored_on_ray(campaign, number, shared, blocks)
    chosen, real, gain = better_mixture(logits, labels_N, default, points_G2, scores_G, config.objective)
    what = {"accuracy": "", "log_loss": " for log-loss", "calibration": " for calibration error"}[config.objective]
    searched = f"searched {len(points_G2)} mixtures{what} on {len(labels_N)} {which} images"
    if real:
        return chosen, f"{searched}: {gain} over the default"
    return chosen, f"{searched}: the best gains {gain}, within one standard error, so the default stays"


def scored_on_ray(
    campaign: Campaign, number: int, shared: dict[str, Any], blocks: int
) -> tuple[np.ndarray, np.ndarray]:
    """The points and how good each is, float64 [G, 2] and [G], by trials of Ray Tune."""
    campaign.session.ensure()
    scratch = campaign.place / "ray_tune"
    name = f"{of_round(number)}{time.time_ns()}"
    tuner = tune.Tuner(
        tune.with_parameters(Block, **shared),
        param_space={"block": tune.grid_search(list(range(blocks))), "blocks": blocks},
        tune_config=tune.TuneConfig(metric="best", mode="max", reuse_actors=True),
        run_config=tune.RunConfig(
            name=name,
            storage_path=scratch.path,
            storage_filesystem=None if scratch.is_local else scratch.fs,
            failure_config=tune.FailureConfig(max_failures=MAX_LOSSES),
            verbose=0,
        ),
    )
    stage = f"round {number} mix"
    say = partial(campaign.say, stage)
    results = with_patience(tuner.fit, stage, Bundles(1, 1), campaign.config.stall_s, None, say)
    if results.errors:
        raise results.errors[0]
    found: dict[int, dict[str, Any]] = {}
    for i in range(blocks):
        trial = results[i]
        assert trial.config is not None
        assert trial.metrics is not None
        found[trial.config["block"]] = trial.metrics
    clear_scratch(scratch, number)
    return tuple(np.concatenate([found[block][key] for block in range(blocks)]) for key in ("points", "scores"))  # type: ignore[return-value]
