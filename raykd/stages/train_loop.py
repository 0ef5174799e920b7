"""What each worker of a training does: its share of every batch, the DHO loss, checkpoints."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import torch
from ray.train import Checkpoint
from ray.train.torch import get_device, prepare_model
from torch import nn

from raykd.algo import dho
from raykd.algo.batches import BatchPlan, learning_rate, num_steps
from raykd.algo.keyed import generator
from raykd.config import Student as StudentConfig
from raykd.errors import UserError
from raykd.images.reading import ImageReader, decode
from raykd.models.student import Student, load_weights, make_backbone, preprocess_of, set_image_size
from raykd.stages.progress import Ticker
from raykd.store.place import Place
from raykd.store.tables import matrix, positions

STATE = "training.pt"
UNUSABLE = ("cannot_label", "none_of_the_classes")  # such images are no use to the KD head either


@dataclass
class Job:
    """What a worker needs to train.

    Args:
        rows: Readable pool images: sample_id, uri.
        labels: The ledger's answers up to this round (tables.LABELS).
        teacher: Folder of the teacher's table.
        start: Pretrained backbone weights; None for random ones.
        key: (seed, round), of every draw.
    """

    rows: pa.Table
    labels: pa.Table
    teacher: Place
    start: Place | None
    classes: list[str]
    config: StudentConfig
    key: tuple[int, int]

    def __post_init__(self) -> None:
        known = self.labels.filter(pc.is_in(self.labels["sample_id"], value_set=self.rows["sample_id"]))
        self.given = known.filter(pc.equal(known["outcome"], "label")).sort_by("sample_id")
        kept_out = known.filter(pc.is_in(known["outcome"], value_set=pa.array([*UNUSABLE, "label"])))
        free = pc.invert(pc.is_in(self.rows["sample_id"], value_set=kept_out["sample_id"]))
        self.unlabeled = self.rows.filter(free).sort_by("sample_id")["sample_id"]
        if not len(self.unlabeled):  # everything is labeled: distil on that (DHO Alg. 1 draws from the union)
            self.unlabeled = self.given["sample_id"]
        if not self.num_labeled:
            raise UserError("no image has a label yet, so there is nothing to train the CE head on; label some first")

    @property
    def num_labeled(self) -> int:
        return self.given.num_rows

    def plan(self) -> BatchPlan:
        config = self.config
        return BatchPlan(self.num_labeled, len(self.unlabeled), config.batch_labeled, config.batch_unlabeled, self.key)

    def steps(self) -> int:
        return num_steps(self.plan(), self.config.steps, self.config.passes_labeled, self.config.passes_unlabeled)

    def student(self) -> Student:
        """A fresh student: the pretrained or random backbone, and random heads."""
        torch.manual_seed(int(generator(*self.key, "init").integers(2**63)))
        backbone, width = make_backbone(self.config.backbone)
        if self.start:
            load_weights(backbone, self.start.uri)
        set_image_size(backbone, self.config.image_size)
        preprocess = preprocess_of(backbone, self.config.image_size, self.config.interpolation)
        return Student(dho.DualHead(backbone, width, len(self.classes)), self.config.backbone, self.classes, preprocess)

    def targets(self) -> tuple[np.ndarray, np.ndarray]:
        """Teacher logits float32 [L, C] and [U, C], by sample_id."""
        table = self.teacher.read_table(["sample_id", "logits", "error"])
        table = table.filter(pc.is_null(table["error"]))
        logits = matrix(table["logits"], "teacher logits")
        if logits.shape[1] != len(self.classes):
            raise UserError(
                f"{self.teacher}: a teacher table of {logits.shape[1]} classes; expected {len(self.classes)}"
            )
        ids = table["sample_id"]
        labeled, unlabeled = (
            positions(each, ids, "the teacher table") for each in (self.given["sample_id"], self.unlabeled)
        )
        return logits[labeled], logits[unlabeled]


def seed_draws(seed: int, device: torch.device | None = None) -> None:
    """Seed torch's draws on the CPU, and on ``device``.

    Not ``torch.manual_seed``: for every kind of accelerator that is not in use it formats and keeps a stack trace, so
    it is slower than cropping a small image, and its memory is never given back.
    """
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seed)


class TrainingImages(torch.utils.data.Dataset):
    """Augmented pixels uint8 [H, W, 3] of an image, by its place in the list and the seed of its crop."""

    def __init__(self, ids: list[str], uris: list[str], transform: Any) -> None:
        self.ids, self.uris, self.transform, self.reader = ids, uris, transform, ImageReader()

    def __getitem__(self, item: tuple[int, int]) -> torch.Tensor:
        place, seed = item
        seed_draws(seed)
        try:
            return torch.from_numpy(np.array(self.transform(decode(self.reader.read(self.uris[place])))))
        except OSError as error:
            raise UserError(f"image {self.ids[place]!r} was readable and is no more: {error}") from error


class Distiller(nn.Module):
    """Student and loss in one module, so that DDP sees one forward pass a step.

    Args:
        model: The dual-head student.
    """

    def __init__(self, model: dho.DualHead, config: StudentConfig) -> None:
        super().__init__()
        self.model, self.config = model, config

    def forward(
        self, images: torch.Tensor, labels_L: torch.Tensor, teacher_LC: torch.Tensor, teacher_UC: torch.Tensor
    ) -> torch.Tensor:
        """The DHO loss of a batch whose first L images are the labeled ones."""
        num = len(labels_L)
        if self.config.forward == "stacked":
            out = self.model(images)
            labeled, unlabeled = (
                dho.Outputs(*(part[where] for part in out)) for where in (slice(num), slice(num, None))
            )
        else:
            labeled, unlabeled = self.model(images[:num]), self.model(images[num:])
        return dho.dho_loss(
            labeled,
            labels_L,
            teacher_LC,
            unlabeled,
            teacher_UC,
            self.config.loss_ce_weight,
            self.config.distill_temperature,
        )


def run(job: Job, ticker: Ticker) -> None:
    """One worker's share of a training, from the last checkpoint if there is one."""
    config, context = job.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(max(1, int(config.num_cpus)))
    torch.backends.cudnn.deterministic = True
    where = get_device()

    student, plan, steps = job.student(), job.plan(), job.steps()
    teacher_LC, teacher_UC = (torch.from_numpy(part) for part in job.targets())
    labels_L = torch.from_numpy(job.given["label"].to_numpy().astype(np.int64))
    distiller = prepare_model(Distiller(student.model, config))
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate(step, steps, config.warmup, config.schedule)
    )
    first = 0
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            state = torch.load(os.path.join(folder, STATE), map_location=where, weights_only=True)
        student.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scheduler.load_state_dict(state["scheduler"])
        first = state["step"]
        if rank == 0:
            ticker.add(first)

    def shares(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """This worker's part of the step's batch: labeled and unlabeled places, and a crop seed for each."""
        seeds_l, seeds_u = np.split(plan.augmentation_seeds(step), [config.batch_labeled])
        parts = (plan.labeled(step), plan.unlabeled(step), seeds_l, seeds_u)
        mine_l, mine_u, seeds_l, seeds_u = (part[rank::world] for part in parts)
        return mine_l, mine_u, np.concatenate([seeds_l, seeds_u])

    def batches() -> Any:
        for step in range(first, steps):
            mine_l, mine_u, seeds = shares(step)
            yield list(zip([*mine_l.tolist(), *(mine_u + job.num_labeled).tolist()], seeds.tolist(), strict=True))

    ids = pa.chunked_array([*job.given["sample_id"].chunks, *job.unlabeled.chunks])
    uris = job.rows["uri"].take(positions(ids, job.rows["sample_id"], "the manifest"))
    images = TrainingImages(
        ids.to_pylist(), uris.to_pylist(), student.preprocess.augmented(config.crop_area, config.flip)
    )
    start_method = "spawn" if "://" in images.uris[0] else "fork"  # object store clients do not survive a fork
    loader = torch.utils.data.DataLoader(
        images,
        batch_sampler=batches(),
        num_workers=config.loader_processes,
        multiprocessing_context=start_method if config.loader_processes else None,
        pin_memory=where.type == "cuda",
    )
    every = max(1, -(-steps // config.checkpoints))
    distiller.train()
    losses = []
    for step, pixels in enumerate(loader, start=first):
        mine_l, mine_u, _ = shares(step)
        seed_draws(int(generator(*job.key, "dropout", step, rank).integers(2**63)), where)
        loss = distiller(
            student.preprocess.normalise(pixels.to(where, non_blocking=True)),
            labels_L[mine_l].to(where),
            teacher_LC[mine_l].to(where),
            teacher_UC[mine_u].to(where),
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.detach())
        if rank == 0:
            ticker.add(1)
        if (step + 1) % every == 0 or step + 1 == steps:
            total = torch.stack(losses).mean()
            if world > 1:  # each worker has seen its own share of every batch
                torch.distributed.all_reduce(total)
            mean, losses = float(total) / world, []
            if not np.isfinite(mean):
                raise UserError(f"the training loss is {mean} at step {step + 1}; lower student.learning_rate")
            save(student, optimizer, scheduler, step + 1, mean, rank)


def save(student: Student, optimizer: Any, scheduler: Any, step: int, loss: float, rank: int) -> None:
    """Report a checkpoint that holds the student as it is deployed and the state to go on from."""
    metrics = {"step": step, "loss": loss}
    if rank != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        student.save(folder)
        state = {
            "model": student.model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "step": step,
        }
        torch.save(state, os.path.join(folder, STATE))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(folder))
