"""The round's picks: the campaign's side of selection (``selection.py`` has the sharded machinery)."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from raykd.algo.keyed import hash_ids, uniform
from raykd.algo.selection.kcenter import Picked, coverage_radius
from raykd.algo.selection.strategies import needed
from raykd.algo.selection.strategies import pick as pick_from
from raykd.errors import UserError
from raykd.stages.campaign import Campaign, Round
from raykd.stages.pick_tables import picks_table
from raykd.stages.pool import read_classes, read_manifest
from raykd.stages.shard_actors import RayShards, open_shards
from raykd.stages.shard_rows import PoolSource
from raykd.stages.teacher import readable
from raykd.store.stage_folder import Stage, fingerprint
from raykd.store.tables import PICKS


def pick(campaign: Campaign, round: int, pool: Stage, teacher: Stage, before: Round | None) -> Stage:
    """What to label in a round: ``picks.parquet``.

    Round 0 has no student: it starts with one image of each class (drawn), with given labels (no picks), or cold, in
    the teacher's probabilities. Every other round looks through the eyes of the student before it.
    """
    config, seed = campaign.config, campaign.config.seed
    inputs = {"seed": seed, "round": round, "selection": config.identity()["selection"], "start": config.labels.start}
    if before is None:
        inputs["teacher"] = teacher.fingerprint
    else:
        inputs["predict"] = before.predictions.fingerprint
        inputs["labels"] = before.labels.facts["content"]
        inputs["mixture"] = acquisition_mixture(campaign, before)
    stage = campaign.stage("select", inputs, round)
    if stage.is_done():
        return stage
    with stage.writing() as out:
        if before is None and config.labels.start == "one_per_class":
            table = one_per_class(campaign, pool, teacher)
        elif before is None and config.labels.start == "given":
            table = PICKS.empty_table()
        else:
            picks = by_strategy(campaign, round, pool, teacher, before)
            table = picks_table(picks)
            out.facts |= {"rounds": picks.rounds, "refreshed": picks.refreshed}
        (out.place / "picks.parquet").write_table(table)
        out.facts |= {"picks": table.num_rows, "content": fingerprint(table["sample_id"].to_pylist())}
    named = config.selection.strategy if before or config.labels.start == "none" else f"start: {config.labels.start}"
    campaign.say(f"round {round} select", f"{table.num_rows} picks ({named}) in {stage.facts['seconds']:.1f} s")
    return stage


def read_picks(picks: Stage) -> pa.Table:
    return (picks.place / "picks.parquet").read_table()


def acquisition_mixture(campaign: Campaign, done: Round) -> list[float]:
    """ce_weight and temperature of the probabilities to select in."""
    fixed = campaign.config.selection.mixture
    return [done.student.facts[k] for k in ("ce_weight", "temperature")] if fixed == "round" else list(fixed)


def by_strategy(campaign: Campaign, round: int, pool: Stage, teacher: Stage, before: Round | None) -> Picked:
    """Picks of the configured strategy, in the student's space, or in the teacher's when there is no student yet."""
    config = campaign.config.selection
    budget = config.budget or len(read_classes(pool))
    needs = needed(config.strategy, config.cap)
    if before is None:
        source = PoolSource(uris=((teacher.place / "data").uri,), needs=needs, probs_from=("logits",))
        labels: dict[str, int] = {}
    else:
        source, labels = student_space(campaign, before, needs, acquisition_mixture(campaign, before))
    with pool_shards(campaign, source) as shards:
        labeled = shards.labeled(labels)
        return pick_from(config.strategy, shards, labeled, budget, campaign.config.seed, round, config.cap)


def pool_shards(campaign: Campaign, source: PoolSource) -> AbstractContextManager[RayShards]:
    """The configured shards of a pool."""
    config = campaign.config.selection
    source = replace(source, precision=config.precision, memory_gib=config.memory_gib)
    return open_shards(source, config.shards, config.num_cpus, config.num_gpus)


def student_space(
    campaign: Campaign, done: Round, needs: tuple[str, ...], mixture: list[float]
) -> tuple[PoolSource, dict[str, int]]:
    """A round's predictions as a pool to pick from, and the class index of each labeled row in it."""
    answers = (done.labels.place / "labels.parquet").read_table()
    data = done.predictions.place / "data"
    here = data.parquet().to_table(columns=["sample_id"], filter=pads.field("error").is_null())
    # an image that can no longer be read is no center
    answers = answers.filter(pc.is_in(answers["sample_id"], value_set=here["sample_id"]))
    is_label = pc.equal(answers["outcome"], "label")
    given = answers.filter(is_label)
    labels = dict(zip(given["sample_id"].to_pylist(), given["label"].to_pylist(), strict=True))
    ce_weight, temperature = mixture
    source = PoolSource(
        uris=(data.uri,),
        needs=needs,
        probs_from=("ce_logits", "kd_logits"),
        ce_weight=ce_weight,
        temperature=temperature,
        labeled=tuple(labels),
        excluded=tuple(answers.filter(pc.invert(is_label))["sample_id"].to_pylist()),
    )
    return source, labels


def covering_radius(campaign: Campaign, done: Round) -> float:
    """How far the farthest unlabeled image is from its nearest labeled one, in the student's probabilities.

    0 to sqrt(2); 0 when everything is labeled.
    """
    mixture = [done.student.facts["ce_weight"], done.student.facts["temperature"]]
    source, labels = student_space(campaign, done, ("probs",), mixture)
    with pool_shards(campaign, source) as shards:
        radius = coverage_radius(shards, shards.labeled(labels))
    return 0.0 if np.isnan(radius) else radius


def one_per_class(campaign: Campaign, pool: Stage, teacher: Stage) -> pa.Table:
    """One image of each class, drawn by seed: the papers' start, which only a simulated oracle can give."""
    rows = readable(read_manifest(pool), teacher)
    rows = rows.filter(pc.equal(rows["split"], "pool"))
    draws_N = uniform(hash_ids(rows["sample_id"].to_pylist()), campaign.config.seed, "start")
    order = rows.take(np.argsort(draws_N, kind="stable")).select(["sample_id", "label"]).to_pylist()
    first = {row["label"]: row["sample_id"] for row in reversed(order)}
    classes = read_classes(pool)
    if missing := [name for name in classes if name not in first]:
        raise UserError(f"labels.start: one_per_class, but no image of {missing[0]!r} can be read")
    ids = [first[name] for name in classes]
    return pa.table({"sample_id": ids, "rank": range(len(ids)), "distance": [float("nan")] * len(ids)}, schema=PICKS)
