"""A fresh student a round, on Ray Train: labels for one head, the teacher's table for the other."""

from __future__ import annotations

import os
from typing import Any

import pyarrow.compute as pc
import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from raykd.stages.campaign import Campaign, sha256_of
from raykd.stages.label import read_labels
from raykd.stages.pool import read_classes, read_manifest
from raykd.stages.teacher import readable
from raykd.store.place import Place
from raykd.store.stage_folder import Stage


def fit(campaign: Campaign, round: int, pool: Stage, teacher: Stage, labels: Stage) -> Stage:
    """The trained student of one round: ``model.safetensors`` and ``student.json``.

    A training that was killed goes on from its last checkpoint, with the batches it would have seen.

    Raises:
        ValueError: No image has a label yet, the loss is not finite, or an image can no longer be read.
    """
    identity = campaign.config.identity()
    stage = campaign.stage(
        "train",
        {"labels": labels.facts["content"], "teacher": teacher.fingerprint, "student": identity["student"],
         "seed": identity["seed"], "round": round},
        round,
    )  # fmt: skip
    scratch = campaign.place / "ray_train"
    name = f"round-{round:03d}-{stage.fingerprint}"  # the same one lets Ray Train go on from its last checkpoint
    if not stage.is_done():
        train(campaign, round, pool, teacher, labels, stage, scratch, name)
    if (scratch / name).exists():
        scratch.fs.delete_dir((scratch / name).path)
    return stage


def train(
    campaign: Campaign,
    round: int,
    pool: Stage,
    teacher: Stage,
    labels: Stage,
    stage: Stage,
    scratch: Place,
    name: str,
) -> None:
    from ray.train.torch import TorchTrainer

    from raykd.models.student import ABOUT, WEIGHTS
    from raykd.stages.train_loop import Job

    start = fetch_backbone(campaign)
    rows = readable(read_manifest(pool), teacher)
    rows = rows.filter(pc.equal(rows["split"], "pool")).select(["sample_id", "uri"])
    config = campaign.config.student
    job = Job(
        rows=rows,
        labels=read_labels(labels),
        teacher=teacher.place / "data",
        start=start,
        classes=read_classes(pool),
        config=config,
        key=(campaign.config.seed, round),
    )
    steps = job.steps()
    with stage.writing() as out, campaign.progress.stage(f"round {round} train", steps, "steps") as ticker:
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={"job": ray.put(job), "ticker": ticker},
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=config.num_gpus > 0,
                resources_per_worker={"CPU": config.num_cpus} | ({"GPU": config.num_gpus} if config.num_gpus else {}),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=scratch.path,
                storage_filesystem=None if scratch.is_local else scratch.fs,
                failure_config=FailureConfig(max_failures=config.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            ),
        )
        try:
            result = trainer.fit()
        except ray.train.WorkerGroupError as error:  # what a user can mend is raised as what it was in the worker
            for failure in error.worker_failures.values():
                if isinstance(cause := getattr(failure, "_base_exc", failure), ValueError):
                    raise cause from error
            raise
        assert result.checkpoint is not None
        assert result.metrics is not None
        with result.checkpoint.as_directory() as folder:
            for file in (WEIGHTS, ABOUT):
                with open(os.path.join(folder, file), "rb") as stream:
                    (out.place / file).write_bytes(stream.read())
        out.facts |= {"steps": steps, "loss": result.metrics["loss"], "num_labeled": job.num_labeled}


def fetch_backbone(campaign: Campaign) -> Place | None:
    """The pretrained backbone in the campaign's folder, fetched once by the driver; None for random weights."""
    config = campaign.config.student
    if config.pretrained is False:
        return None
    inputs: dict[str, Any] = {"backbone": config.backbone, "pretrained": config.pretrained}
    if isinstance(config.pretrained, str):
        inputs["file"] = sha256_of(config.pretrained)
    stage = campaign.stage("student_model", inputs)
    if not stage.is_done():
        import safetensors.torch

        from raykd.models.student import WEIGHTS, initial_backbone

        with stage.writing() as out:
            state = initial_backbone(config.backbone, config.pretrained).state_dict()
            (out.place / WEIGHTS).write_bytes(safetensors.torch.save({k: v.contiguous() for k, v in state.items()}))
    return stage.place / "model.safetensors"


def train_loop(arguments: dict[str, Any]) -> None:
    """What Ray Train calls in each worker; its controller imports this module, so torch stays out of it."""
    from raykd.stages.train_loop import run

    run(ray.get(arguments["job"]), arguments["ticker"])
