"""Trials of a sweep, on Ray Tune: a training each, on one round's labels of a campaign, judged on what may choose.

The campaign is only looked at. A trial is a round of a campaign of its own in the sweep's folder, so it trains as a
round does, in its process or on Ray Train's workers; settings that no training looks at (``mixture.*``) share one.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray import tune

from raykd.algo.heads import probabilities
from raykd.algo.metrics import accuracy, calibration_error, log_loss
from raykd.algo.mixture_search import imported_optuna
from raykd.config import Config
from raykd.errors import UserError
from raykd.labels.ledger import current_labels
from raykd.models.mixing import mixture_by
from raykd.stages.advice import to_choose_by
from raykd.stages.audit import may_choose
from raykd.stages.campaign import Campaign
from raykd.stages.encode import encode
from raykd.stages.mix import FEWEST_AUDITED
from raykd.stages.pool import classes_now, listed_parts
from raykd.stages.predict import predict
from raykd.stages.progress import Progress
from raykd.stages.resources import Bundles, with_patience
from raykd.stages.scratch import folders_of
from raykd.stages.session import Session
from raykd.stages.teacher import refit, teach
from raykd.stages.train import train
from raykd.store.outputs import CLASSES_FILE, Encoded, Labels, Pool, Teacher, read_labels, round_place
from raykd.store.place import Place
from raykd.store.stage_folder import fingerprint, read_done
from raykd.sweeps import SMALLER_IS_BETTER, Needs, Range, Sweep, config_of, point_name


@dataclass(frozen=True)
class Prepared:
    """What all trials share.

    Args:
        config: The campaign's, its encoded images to be found by others.
        number: The round whose labels are learned from.
        encoded: The teacher's features.
        teacher: Its opinion, before it has learned from labels.
        labels: Of the round.
        which: What they are judged on: validation or audited.
        num_judged: Images of it.
    """

    config: Config
    number: int
    pool: Pool
    encoded: Encoded
    teacher: Teacher
    labels: Labels
    which: str
    num_judged: int
    judged_ids: pa.ChunkedArray


def prepare(campaign: Campaign, number: int | None) -> Prepared:
    """What trials need of a campaign that has settled a round's labels.

    Raises:
        UserError: It has not, or there is nothing that may choose: neither validation labels nor enough audited images.
    """
    parts = listed_parts(campaign)
    number = campaign.num_done - 1 if number is None else number
    labels = read_labels(campaign.round_place(number)) if parts and number >= 0 else None
    if labels is None:
        raise UserError(
            f"{campaign.place} has no labels of round {max(number, 0)}; expected a round with all its labels: "
            f"{campaign.num_done} rounds are done"
        )
    classes, renamed = classes_now(campaign.config, (parts[0].place / CLASSES_FILE).read_json()["found"])
    pool = Pool(tuple(parts), tuple(classes), renamed, {name: texts for name, texts in classes.items() if texts})
    current_labels(campaign.ledger(renamed), pool.classes)  # or refuse
    encoded = encode(campaign, pool)
    ids, which = judges(campaign, pool, encoded, labels)
    cache = campaign.config.cache_path or campaign.place.uri
    config = Config.model_validate(campaign.config.model_dump(mode="json") | {"cache_path": cache})
    return Prepared(config, number, pool, encoded, teach(campaign, pool, encoded), labels, which, len(ids), ids)


def judges(campaign: Campaign, pool: Pool, encoded: Encoded, labels: Labels) -> tuple[pa.ChunkedArray, str]:
    """The images whose labels may choose, and what they are called. Raises UserError: there are too few."""
    val, _ = pool.with_labels(encoded.readable(pool.split("val")), pool.classes)
    if val.num_rows:
        return val["sample_id"], "validation"
    audited = labels.audited.drop_null()["sample_id"]
    audited = audited.filter(pa.array(may_choose(campaign, audited)))
    if len(audited) < FEWEST_AUDITED:
        raise UserError(
            f"there is nothing to judge by: no validation labels, and {len(audited)} audited images that may choose "
            f"({FEWEST_AUDITED} are needed). Give the campaign a val or val_share, or labels.audit_share; test images "
            "are not for choosing"
        )
    return audited, "audited"


# ---------------------------------------------------------------- one trial


def run_point(prepared: Prepared, sweep: Sweep, out: Place, point: Mapping[str, Any], repeat: int) -> dict[str, Any]:
    """Train, predict what judges, and judge: a figure, and whether each image is right.

    Cost: a training, unless another point has done the very same.
    """
    started = time.perf_counter()
    config = config_of(prepared.config, point)
    config = config.model_copy(update={"seed": config.seed + repeat, "progress": "none"})
    place = training_place(out, prepared, config, point)
    quiet = Progress("none", io.StringIO())
    with Session(config.local_cpus, config.stall_s, quiet) as session:
        campaign = Campaign(config=config, place=place, progress=quiet, session=session)
        pool, encoded, number = prepared.pool, prepared.encoded, prepared.number
        first = prepared.teacher
        if any(key.startswith("teacher.templates") for key in point):
            first = teach(campaign, pool, encoded)
        teacher = refit(campaign, number, pool, encoded, first, prepared.labels)
        trained = train(campaign, number, pool, encoded, teacher, prepared.labels)
        some = pool if config.student.is_frozen else pool.only(prepared.judged_ids)
        predictions = predict(campaign, number, some, encoded, trained)
        (_, logits, labels_N), _ = to_choose_by(campaign, pool, prepared.labels, predictions)
    fixed = bool({"mixture.ce_weight", "mixture.temperature"} & point.keys())
    mixture = mixture_by(config.mixture, logits, labels_N, config.seed, number, fixed=fixed)
    probs_NC = probabilities(logits, mixture)
    figures = {
        "accuracy": accuracy(probs_NC, labels_N),
        "log_loss": log_loss(probs_NC, labels_N),
        "calibration": calibration_error(probs_NC, labels_N),
    }
    return {
        **figures,
        "ce_weight": mixture.ce_weight,
        "temperature": mixture.temperature,
        "right": (probs_NC.argmax(axis=1) == labels_N).tolist(),
        "losses": (-np.log(np.maximum(probs_NC[np.arange(len(labels_N)), labels_N], 1e-30))).tolist(),
        "seconds": time.perf_counter() - started,
    }


def training_key(config: Config) -> str:
    """Names a training: points that agree in it share one."""
    about = config.model_dump(mode="json", include={"student", "teacher", "seed"})
    return fingerprint(about)


def training_place(out: Place, prepared: Prepared, config: Config, point: Mapping[str, Any]) -> Place:
    """Where a point's training lies: one that is complete, if there is any like it, else the point's own.

    Two points beside each other that begin the very same do it twice, and not into one folder.
    """
    key, place = training_key(config), out / "trained"
    names = [name for name in folders_of(place) if name.startswith(key)]
    complete = (name for name in names if read_done(round_place(place / name, prepared.number) / "train"))
    return place / next(complete, f"{key}-{point_name(point)}")


def result_file(out: Place, point: Mapping[str, Any]) -> Place:
    return out / "trials" / f"{point_name(point)}.json"


def trial(settings: dict[str, Any], prepared: Prepared, sweep: Sweep, out: Place, repeats_told: bool) -> None:
    """What Tune calls: a point, with each of its repeats. Its file says of how many, and whether they are all."""
    point = settings.get("point", settings)  # of a grid; of Optuna
    found: list[dict[str, Any]] = []
    for repeat in range(sweep.repeats):
        found.append(run_point(prepared, sweep, out, point, repeat))
        so_far, ended = float(np.mean([each[sweep.objective] for each in found])), repeat + 1 == sweep.repeats
        row = {"point": point, "objective": so_far, "ended": ended, "repeats": found}
        result_file(out, point).write_json(row)
        if repeats_told or ended:
            tune.report({"objective": so_far})


# ---------------------------------------------------------------- all of them


def run_trials(campaign: Campaign, prepared: Prepared, sweep: Sweep, out: Place, asha: bool) -> None:
    """Run the points that are missing, as many side by side as the cluster has room for.

    Raises:
        UserError: Not one fits, or a trial is refused.
    """
    import ray

    campaign.session.ensure()
    here = campaign.session.is_local and prepared.config.student.fits_one_process
    needs = Needs(prepared.config, here)
    have = ray.cluster_resources()
    at_once = needs.at_once(have.get("CPU", 0.0), have.get("GPU", 0.0))
    resources = {"cpu": needs.own_cpus} | ({"gpu": needs.gpus} if here and needs.gpus else {})
    asked = Bundles(1, resources["cpu"], resources.get("gpu", 0))
    arguments = {"prepared": prepared, "sweep": sweep, "out": out, "repeats_told": asha}
    trainable = tune.with_resources(tune.with_parameters(trial, **arguments), resources)
    mode = "min" if sweep.objective in SMALLER_IS_BETTER else "max"
    options: dict[str, Any] = {"metric": "objective", "mode": mode}
    options |= {"max_concurrent_trials": at_once, "reuse_actors": True}  # a process a trial takes its seconds to import
    halve = sweep.repeats if asha and sweep.repeats > 1 else None
    there = {point_name(row["point"]) for row in read_trials(out)}
    points = [point for point in sweep.points() if point_name(point) not in there]
    if points:
        campaign.say("sweep", f"{len(points)} points, {at_once} at a time ({needs.cpus:g} CPUs each: {needs.words})")
        for wave in waves(prepared.config, points):
            fit(campaign, asked, trainable, {"point": tune.grid_search(wave)}, options, out, halve)
    if sweep.sampler == "optuna" and (left := sweep.trials + 1 - len(read_trials(out))) > 0:
        campaign.say("sweep", f"{left} points by Optuna, {at_once} at a time")
        more = {"search_alg": study(sweep, out, mode), "num_samples": left}
        fit(campaign, asked, trainable, None, options | more, out, halve)


def waves(config: Config, points: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """A point of each training first, then those that find theirs done."""
    firsts = {training_key(config_of(config, point)): point for point in reversed(points)}
    later = [point for point in points if point not in firsts.values()]
    return [wave for wave in ([point for point in points if point in firsts.values()], later) if wave]


def fit(
    campaign: Campaign, asked: Bundles, trainable: Any, space: dict[str, Any] | None, options: dict[str, Any],
    out: Place, halve: int | None,
) -> None:  # fmt: skip
    """All of these trials; where repeats are halved (ASHA), so many at most.

    Raises:
        UserError: One is refused, or there is no room for any (``asked``).
    """
    scratch = out / "ray_tune"
    if halve:
        options = options | {
            "scheduler": tune.schedulers.ASHAScheduler(max_t=halve, grace_period=1, reduction_factor=2)
        }
    tuner = tune.Tuner(
        trainable,
        param_space=space,
        tune_config=tune.TuneConfig(**options),
        run_config=tune.RunConfig(
            name=f"sweep-{time.time_ns()}",
            storage_path=scratch.path,
            storage_filesystem=None if scratch.is_local else scratch.fs,
            verbose=0,
        ),
    )
    results = with_patience(tuner.fit, "sweep", asked, campaign.config.stall_s, None, partial(campaign.say, "sweep"))
    scratch.fs.delete_dir(scratch.path)
    if results.errors:
        error = results.errors[0]
        cause = getattr(error, "cause", None) or getattr(error, "__cause__", None)
        raise cause if isinstance(cause, UserError) else error
    for row in all_rows(out):
        if not row["ended"]:  # ASHA has
            result_file(out, row["point"]).write_json(row | {"ended": True})


def study(sweep: Sweep, out: Place, mode: str) -> Any:
    """Optuna's search through Tune, told of the points that are done."""
    optuna = imported_optuna()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    from ray.tune.search.optuna import OptunaSearch

    rows = [row for row in read_trials(out) if row["point"].keys() == sweep.space.keys()]
    told: dict[str, Any] = {"points_to_evaluate": [row["point"] for row in rows]} if rows else {}
    told |= {"evaluated_rewards": [row["objective"] for row in rows]} if rows else {}
    space = {name: distribution(optuna, values) for name, values in sweep.space.items()}
    return OptunaSearch(space=space, metric="objective", mode=mode, seed=sweep.seed + len(rows), **told)


def distribution(optuna: Any, values: Any) -> Any:
    """One of the values, or a number of the range, in Optuna's words."""
    kinds = optuna.distributions
    if not isinstance(values, Range):
        return kinds.CategoricalDistribution(list(values))
    if values.kind == "int":
        return kinds.IntDistribution(int(values.low), int(values.high))
    return kinds.FloatDistribution(values.low, values.high, log=values.kind == "loguniform")


def read_trials(out: Place) -> list[dict[str, Any]]:
    """The points that are done, by name; of a job that was killed some are begun, and not among them."""
    return [row for row in all_rows(out) if row["ended"]]


def all_rows(out: Place) -> list[dict[str, Any]]:
    names = sorted(info.base_name for info in (out / "trials").files() if info.base_name.endswith(".json"))
    return [(out / "trials" / name).read_json() for name in names]
