"""A round's training, in this process or shared by Ray Train's workers: the same function, and the same bits for one.

Either way it goes on from its last checkpoint when it was killed.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from raykd.algo.dho import TEACHER_COLUMNS
from raykd.algo.heads import HEADS
from raykd.config import StudentConfig
from raykd.errors import StorageError, UserError
from raykd.models.frozen import new_frozen_student
from raykd.models.student import Student, new_student
from raykd.models.teacher_views import OnlineTeacher, StoredViews
from raykd.models.training import (
    StepLine,
    Targets,
    TrainingSettings,
    Worker,
    map_features,
    map_teacher,
    reproducible,
    train_student,
)
from raykd.models.training_data import TrainingData, TrainingFeatures, TrainingImages
from raykd.models.training_plan import seed_of_weights, settings_of, steps_of
from raykd.stages.progress import Ticker
from raykd.store.outputs import STEPS_FILE
from raykd.store.place import Place

STATE_FILE = "training.pt"


@dataclass(frozen=True)
class Job:
    """What a worker needs to train. Travels to it.

    Args:
        ids: Of the images, strings: first those with a label, then the others; all different.
        uris: Of the same images; None: the student is frozen.
        labels_L: int64 [L], class indices of the first L.
        teacher: Folders of the teacher's tables.
        start: Folder of the fetched backbone, or of the network under a frozen student; None for a timm one with random
            weights.
        texts_CD: float32 [C, D], what language-aware heads begin as.
        classes: In the order of the teacher's logits.
        config: How.
        key: (seed, round), of every draw.
        views: What the teacher says of augmented images; None: it is asked of the clean ones alone.
        features: Folders of what a frozen student is given instead of images; None: it is not frozen.
    """

    ids: pa.ChunkedArray
    uris: pa.ChunkedArray | None
    labels_L: np.ndarray
    teacher: tuple[str, ...]
    start: Place | None
    classes: tuple[str, ...]
    config: StudentConfig
    exact: bool
    key: tuple[int, int]
    views: StoredViews | OnlineTeacher | None = None
    texts_CD: np.ndarray | None = None
    features: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not len(self.labels_L):
            raise UserError("no image has a label yet, so there is nothing to train the CE head on; label some first")

    @property
    def num_steps(self) -> int:
        return steps_of(self.config, len(self.labels_L), len(self.ids), self.key)

    @property
    def settings(self) -> TrainingSettings:
        return settings_of(self.config, self.num_steps, self.key)

    def student(self, features_ND: np.ndarray | None = None) -> Student:
        """A fresh student, drawn by the key; a frozen one for these features. Seeds torch."""
        seed = seed_of_weights(self.key)
        if features_ND is None:
            return new_student(self.config, self.classes, seed, self.start, self.texts_CD)
        assert self.start is not None
        return new_frozen_student(self.config, self.classes, seed, self.start, features_ND)

    def data(self, student: Student, features_ND: np.ndarray | None = None) -> TrainingData:
        """What it is trained on: images, or these features."""
        if features_ND is not None:
            return TrainingFeatures(features_ND)
        assert self.uris is not None
        config, views = self.config, self.views
        return TrainingImages(
            self.ids, self.uris, student.preprocess, config.crop_area, config.flip, self.exact,
            cache_gib=config.cache_gib, teacher_size=None if views is None else views.size,
            crops_NK5=views.crops(self.ids) if isinstance(views, StoredViews) else None,
        )  # fmt: skip

    @contextmanager
    def frozen(self, worker: Worker, local_rank: int = 0, node: str = "") -> Iterator[np.ndarray | None]:
        """The features that a frozen student is trained on, mapped as :meth:`targets` are; None: it is not frozen."""
        if self.features is None:
            yield None
            return
        write = partial(map_features, self.features, self.ids)
        with mapped(write, (len(self.ids), -1), worker, local_rank, node) as features_ND:
            yield features_ND

    @contextmanager
    def targets(self, worker: Worker, local_rank: int = 0, node: str = "") -> Iterator[Targets]:
        """Labels and the teacher's logits, these in one mapped file for all workers of a machine.

        Args:
            worker: Who asks; all workers must.
            local_rank: Which worker of its machine; the first one writes.
            node: Names the machine.
        """
        if not any(column in TEACHER_COLUMNS for column in HEADS[self.config.heads]):
            yield Targets(self.labels_L, np.empty((0, 0), np.float16))
            return
        if isinstance(self.views, OnlineTeacher):
            online = self.views.load(worker.device.type, max(1, int(self.config.num_cpus)))
            yield Targets(self.labels_L, np.empty((0, 0), np.float16), online)
            return
        num_views = (self.views.count,) if isinstance(self.views, StoredViews) else ()
        shape = (len(self.ids), *num_views, len(self.classes))
        with mapped(self._map_teacher, shape, worker, local_rank, node) as teacher_NC:
            yield Targets(self.labels_L, teacher_NC)

    def _map_teacher(self, file: Any) -> np.memmap:
        """The teacher's logits, [N, C], or [N, K, C] of stored views, in a mapped file."""
        if isinstance(self.views, StoredViews):
            return self.views.logits(self.ids, len(self.classes), file)
        return map_teacher(self.teacher, self.ids, len(self.classes), file)


@contextmanager
def mapped(
    write: Callable[[Any], np.memmap], shape: tuple[int, ...], worker: Worker, local_rank: int, node: str
) -> Iterator[np.ndarray]:
    """Numbers float16 in one mapped file for all workers of a machine; ``write`` fills the file.

    The file has no name any more when they train, so it is gone with them, however that ends.

    Args:
        write: Called with the file, on one worker of each machine.
        shape: Of what it gives; -1 for one number that only it knows.
        worker, local_rank, node: See :meth:`Job.targets`.

    Raises:
        UserError: What ``write`` raises, on all workers.
    """
    if worker.world == 1:
        with tempfile.TemporaryFile() as file:
            yield write(file)
        return
    path, failed = None, None
    try:
        if local_rank == 0:
            handle, path = tempfile.mkstemp(prefix="raykd-mapped-")
            os.close(handle)
            write(path).flush()
    except UserError as error:
        failed = error
    try:
        worker.agree(failed)
        found: list[Any] = [None] * worker.world
        torch.distributed.all_gather_object(found, (node, path))
        mine = next(written for where, written in found if where == node and written)
        rows = np.memmap(mine, np.float16, "r").reshape(shape)
        torch.distributed.barrier()
    finally:
        if path:
            os.unlink(path)
    yield rows


def step_lines(lines: Sequence[StepLine]) -> bytes:
    """The content of ``steps.jsonl``."""
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def packed(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def unpacked(data: bytes, device: torch.device) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
    return state


def ticking(ticker: Ticker) -> Callable[[int], None]:
    """What to tell of the step that is reached, so that the ticker counts steps."""
    before = 0

    def reached(step: int) -> None:
        nonlocal before
        ticker.add(step - before)
        before = step

    return reached


# ---------------------------------------------------------------- in this process


def train_here(job: Job, scratch: Place, out: Place, ticker: Ticker) -> list[StepLine]:
    """Train without any other process, and save the student.

    The checkpoint is one file, written over by the next one; on a disk and on an object store alike it is whole, or
    still the one before.

    Args:
        job: What.
        scratch: Folder for checkpoints, of this very training.
        out: Folder for the student and ``steps.jsonl``.
        ticker: Counts steps.

    Returns:
        Every line, those before a kill included.

    Raises:
        UserError: See :func:`raykd.models.training.train_student`.
    """
    worker = Worker(device=torch.device("cuda" if job.config.num_gpus else "cpu"))
    checkpoint = scratch / STATE_FILE
    reached = ticking(ticker)

    def report(step: int, metrics: StepLine, state: Callable[[], dict[str, Any]] | None) -> None:
        reached(step)
        if state is not None:
            checkpoint.write_bytes(packed(state()))

    with reproducible(max(1, int(job.config.num_cpus)), worker.device):
        resume = unpacked(checkpoint.read_bytes(), worker.device) if checkpoint.exists() else None
        if resume is not None:
            reached(resume["step"])
        with job.frozen(worker) as features_ND, job.targets(worker) as targets:
            student = job.student(features_ND)
            data = job.data(student, features_ND)
            lines = train_student(student.model, data, targets, job.settings, report, resume=resume, worker=worker)
        student.save(out)
    (out / STEPS_FILE).write_bytes(step_lines(lines))
    return lines


# ---------------------------------------------------------------- on Ray Train


def train_in_worker(job: Job, ticker: Ticker) -> UserError | None:
    """One worker's share of a training on Ray Train, from the last checkpoint if there is one.

    The last checkpoint holds the student as it is deployed and ``steps.jsonl``, too.

    Returns:
        What a user can mend, the same on all workers: raised, it would be tried again, as a worker that is lost is.
    """
    try:
        with reproducible(max(1, int(job.config.num_cpus)), torch.device("cpu")):
            _train_in_worker(job, ticker)
    except StorageError:
        raise  # another attempt may well find it in order
    except UserError as error:
        return error
    return None


def _train_in_worker(job: Job, ticker: Ticker) -> None:
    import ray
    import ray.train
    from ray.train import Checkpoint
    from ray.train.torch import get_device, prepare_model

    context = ray.train.get_context()
    worker = Worker(context.get_world_rank(), context.get_world_size(), get_device(), prepare_model, leaving_nodes)
    reached = ticking(ticker if worker.rank == 0 else Ticker(None))
    resume, settings = None, job.settings
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            resume = unpacked((Place(folder) / STATE_FILE).read_bytes(), worker.device)
        reached(resume["step"])

    def report(step: int, metrics: StepLine, state: Callable[[], dict[str, Any]] | None) -> None:
        reached(step)
        if state is None:
            return
        if worker.rank:
            ray.train.report(dict(metrics))
            return
        with tempfile.TemporaryDirectory() as folder:
            now = state()
            (Place(folder) / STATE_FILE).write_bytes(packed(now))
            if step == settings.steps:
                student.save(folder)
                (Place(folder) / STEPS_FILE).write_bytes(step_lines(now["lines"]))
            ray.train.report(dict(metrics), checkpoint=Checkpoint.from_directory(folder))

    node = ray.get_runtime_context().get_node_id()
    here = (worker, rank_on(node, worker), node)
    with job.frozen(*here) as features_ND, job.targets(*here) as targets:
        student = job.student(features_ND)
        data = job.data(student, features_ND)
        train_student(student.model, data, targets, settings, report, resume=resume, worker=worker)


def rank_on(node: str, worker: Worker) -> int:
    """How many workers with a lower rank are on the same node. Ray counts by address, which two nodes may share."""
    nodes = [node] * worker.world
    if worker.world > 1:
        torch.distributed.all_gather_object(nodes, node)
    return nodes[: worker.rank].count(node)


def leaving_nodes() -> list[str]:
    """The nodes of these workers that were told to go (spot machines); Ray asks all workers, so all must ask."""
    import ray.train

    info = ray.train.get_preemption_info()
    return [] if info is None else info.preempted_node_ids
