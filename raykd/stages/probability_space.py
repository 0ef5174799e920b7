"""The space that a campaign picks in and measures its coverage in: the pool as the last student sees it, sharded.

A pool is read into shards once a round: ``evaluate`` measures on the shards, and ``select`` of the next round goes on
with the very same. Images that are set aside to be audited are no part of it: neither picked nor to be covered.
"""

from __future__ import annotations

import pyarrow.compute as pc

from raykd.algo.heads import Mixture
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.strategies import needed, needs_labels
from raykd.stages.audit import aside_now
from raykd.stages.campaign import Campaign
from raykd.stages.shard_actors import RayShards, open_shards
from raykd.stages.shard_rows import PoolSource
from raykd.store.outputs import Pool, Round, Teacher


class OpenSpace:
    """The pool's shards, and the rows that are labeled.

    Args:
        shards: Told of nothing yet.
        labeled: With vectors, and class indices where the strategy looks at them.
    """

    def __init__(self, source: PoolSource, shards: RayShards, labeled: Rows) -> None:
        self.source, self.shards, self.labeled = source, shards, labeled


def open_space(campaign: Campaign, pool: Pool, teacher: Teacher, before: Round | None) -> OpenSpace:
    """The space as it is after a round, or the teacher's before the first one; open until :func:`close_space`.

    Called again for the same rows it gives the same shards, so they are read once.

    Raises:
        UserError: A table is unreadable, or too few CPUs for the shards.
    """
    source, labels = teacher_space(campaign, teacher) if before is None else student_space(campaign, pool, before)
    kept = campaign.space
    if kept is not None and kept.source == source:
        return kept
    close_space(campaign)
    config = campaign.config.selection
    campaign.session.ensure()
    asked = (config.shards, config.num_cpus, config.num_gpus, campaign.config.stall_s)
    shards = campaign.open_shards.enter_context(open_shards(source, *asked))
    campaign.space = OpenSpace(source, shards, shards.labeled(labels))
    return campaign.space


def close_space(campaign: Campaign) -> None:
    """End the shards, if there are any: what they hold is not needed any more, and others need the machine."""
    campaign.space = None
    campaign.open_shards.close()


def acquisition_mixture(campaign: Campaign, before: Round) -> Mixture:
    """The mixture of the probabilities to select in, and to measure coverage in: as the papers have it, not calibrated.

    A calibration stretches the simplex, each round in another way, so picks and radii would hang on it.
    """
    fixed = campaign.config.selection.mixture
    return before.deployed.mixture.uncalibrated if fixed == "round" else Mixture(*fixed)


def student_space(campaign: Campaign, pool: Pool, before: Round) -> tuple[PoolSource, dict[str, int] | None]:
    """A round's predictions as a pool to pick from; the labeled rows in it with their classes, where these matter."""
    predictions, labels, config = before.predictions, before.labels, campaign.config.selection
    ids, indices = labels.given(predictions.classes, pool.renamed)
    given = labels.labeled_ids
    if not needs_labels(config.strategy, config.balance):
        ids, classes = given, None  # also those of a class that this student does not know yet: they are centers
    else:
        classes = dict(zip(ids.to_pylist(), indices.tolist(), strict=True))
    here = pc.is_in(ids, value_set=predictions.ids)  # an image that can no longer be read is no center
    labeled = ids.filter(here).to_pylist()
    unknown = given.filter(pc.invert(pc.is_in(given, value_set=ids)))  # labeled, but no class of this student's
    out = [labels.without_class()["sample_id"], unknown, labels.audited["sample_id"]]  # also audited by another seed
    excluded = [name for ids in out for name in ids.to_pylist()]
    mixture = acquisition_mixture(campaign, before)
    source = PoolSource(
        uris=predictions.uris,
        needs=all_needs(campaign),
        probs_from=predictions.columns,
        mixture=mixture,
        labeled=tuple(labeled),
        excluded=tuple(excluded),
        aside=aside_now(campaign),
        precision=config.precision,
        memory_gib=config.memory_gib,
    )
    return source, None if classes is None else {name: classes[name] for name in labeled}


def teacher_space(campaign: Campaign, teacher: Teacher) -> tuple[PoolSource, dict[str, int]]:
    """The teacher's probabilities as a pool to pick from, when there is no student yet; nothing in it is labeled."""
    config = campaign.config.selection
    source = PoolSource(
        uris=teacher.uris,
        needs=needed(config.strategy, config.cap, config.options, config.balance),
        probs_from=("logits",),
        aside=aside_now(campaign),
        precision=config.precision,
        memory_gib=config.memory_gib,
    )
    return source, {}


def all_needs(campaign: Campaign) -> tuple[str, ...]:
    """The vectors that the strategy looks at, and the probabilities that coverage is measured in."""
    config = campaign.config.selection
    return tuple(dict.fromkeys(["probs", *needed(config.strategy, config.cap, config.options, config.balance)]))
