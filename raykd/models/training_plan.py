"""From a student's config to the settings of one training: the same for a campaign, a simulation and a test."""

from __future__ import annotations

from raykd.algo.batches import BatchPlan, num_steps
from raykd.algo.keyed import generator
from raykd.config import StudentConfig
from raykd.models.training import TrainingSettings


def steps_of(config: StudentConfig, num_labeled: int, num_images: int, key: tuple[int, int]) -> int:
    """How many steps a training takes, on so many labeled ones of so many images."""
    num_unlabeled = num_images - num_labeled or num_labeled
    plan = BatchPlan(num_labeled, num_unlabeled, config.batch_labeled, config.batch_unlabeled, key)
    return num_steps(plan, config.steps, config.passes_labeled, config.passes_unlabeled)


def settings_of(config: StudentConfig, steps: int, key: tuple[int, int]) -> TrainingSettings:
    """All settings of a training of so many steps; ``key`` is (seed, round), of every draw."""
    return TrainingSettings(
        steps=steps,
        key=key,
        batch_labeled=config.batch_labeled,
        batch_unlabeled=config.batch_unlabeled,
        forward="stacked" if config.is_frozen else config.forward,  # what is behind features sees them one by one
        loss_ce_weight=config.loss_ce_weight,
        distill_temperature=config.distill_temperature,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        checkpoints=config.checkpoints,
        checkpoint_s=config.checkpoint_s,
        accumulate=config.accumulate,
        precision=config.precision,
        channels_last=config.channels_last,
        compile=config.compile,
        sync_batchnorm=config.sync_batchnorm,
        loader_processes=config.loader_processes,
    )


def seed_of_weights(key: tuple[int, int]) -> int:
    """What torch is seeded with before a training's weights are drawn."""
    return int(generator(*key, "init").integers(2**63))
