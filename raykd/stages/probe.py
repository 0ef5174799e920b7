"""A few images through reading, teacher and student, timed: what a plan is made of. Nothing is kept.

Runs in the driver, or on a worker that has what the stages ask for.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import torch

from raykd.algo.heads import HEADS
from raykd.config import Config, StudentConfig, least
from raykd.images.pixel_batches import Fetch, PixelBatch, batches_of
from raykd.images.stored import ImageReader
from raykd.images.transforms import ClipPreprocess
from raykd.models.student import Student, new_student
from raykd.models.teacher import read_clip_preprocess
from raykd.models.training import StepLine, Targets, Worker, reproducible, train_student
from raykd.models.training_data import TrainingImages
from raykd.models.training_plan import settings_of
from raykd.stages.image_features import image_tower
from raykd.stages.map_images import even_blocks
from raykd.store.place import Place

PROBED = 200  # images
MOST_S = 20.0  # of one model
STEPS = 12  # of a training, of which the median is taken: the first ones read and warm up
FROZEN_STEP_S = 0.003  # heads alone, on stored features
WEIGHED = 32  # images whose bytes are counted
ROWS = 20_000  # that one pick of a selection is timed on


class EnoughSteps(Exception):
    """Ends a training whose steps take long."""


class Probe(TypedDict):
    """Seconds and bytes of one image, unless it says otherwise; 0: there is nothing of it."""

    images: int  # that were read
    read_s: float  # to read and crop, by one process
    read_bytes: float
    teacher_s: float  # by one replica
    teacher_width: int  # D
    student_read_s: float  # to read and crop for the student
    student_s: float  # by one replica
    student_width: int
    step_s: float  # of a training step, loading included, by one of the workers
    pick_row_s: float  # of one row, for one pick, by one shard
    cores: int  # of the machine


def probe(rows: pa.Table, config: Config, teacher: Place | None, num_classes: int) -> Probe:
    """Read some images, and send them through the teacher and a student that is drawn at random.

    Args:
        rows: Of the manifest: sample_id, uri, split.
        teacher: The fetched model; None: a table is brought.

    Cost: at most about :data:`MOST_S` a model, after its loading.
    """
    exact, uris = config.decode == "exact", rows["uri"].to_pylist()
    found: Probe = {
        "images": len(uris), "read_s": 0.0, "read_bytes": mean_bytes(uris[:WEIGHED]), "teacher_s": 0.0,
        "teacher_width": 0, "student_read_s": 0.0, "student_s": 0.0, "student_width": 0, "step_s": FROZEN_STEP_S,
        "pick_row_s": 0.0, "cores": os.cpu_count() or 1,
    }  # fmt: skip
    if teacher is not None:
        preprocess = ClipPreprocess(read_clip_preprocess(teacher), exact)
        fetch = Fetch(preprocess, preprocess.size, config.teacher.batch_size, exact)
        found["read_s"], batches = read_all(fetch, rows)
        tower = image_tower(teacher, config.teacher)
        found["teacher_s"], features_ND = timed(lambda batch: tower.features(batch.pixels), batches)
        found["teacher_width"] = features_ND.shape[1]
    student = config.student
    if not student.is_frozen and not student.tower:
        model = new_student(student.model_copy(update={"pretrained": False}), list(map(str, range(num_classes))), 0)
        size = (model.preprocess.image_size, model.preprocess.image_size)
        fetch = Fetch(model.preprocess.clean(exact), size, student.predict_batch_size, exact)
        found["student_read_s"], batches = read_all(fetch, rows)
        found["step_s"] = step_seconds(model, student, rows, num_classes, exact)
        model.model.to("cuda" if student.num_gpus else "cpu").eval()
        threads = max(1, int(student.num_cpus))
        found["student_s"], features_ND = timed(lambda batch: model.outputs(batch.pixels, threads)[0], batches)
        found["student_width"] = features_ND.shape[1]
    found["pick_row_s"] = pick_seconds(max(found["teacher_width"], num_classes))
    return found


def mean_bytes(uris: list[str]) -> float:
    reader = ImageReader()
    return float(np.mean([len(reader.read(uri)) for uri in uris])) if uris else 0.0


def read_all(fetch: Fetch, rows: pa.Table) -> tuple[float, list[PixelBatch]]:
    """Seconds an image, and the batches."""
    started = time.perf_counter()
    batches = list(all_batches(fetch, rows))
    return (time.perf_counter() - started) / max(1, rows.num_rows), batches


def all_batches(fetch: Fetch, rows: pa.Table) -> Iterator[PixelBatch]:
    for block in even_blocks({0: rows.combine_chunks()}, fetch.batch_size, 1):
        for table in fetch(block):
            yield from batches_of(table, fetch.size)


def timed(forward: Callable[[PixelBatch], np.ndarray], batches: list[PixelBatch]) -> tuple[float, np.ndarray]:
    """Seconds an image of a full batch, as others are padded, and what comes of one; after a first one to warm up."""
    out_ND = forward(batches[0])
    started, done = time.perf_counter(), 0
    for batch in batches[1:] or batches:
        forward(batch)
        done += len(batch.pixels)
        if time.perf_counter() - started > MOST_S:
            break
    return (time.perf_counter() - started) / done, out_ND


def step_seconds(student: Student, config: StudentConfig, rows: pa.Table, num_classes: int, exact: bool) -> float:
    """Of one step of a worker's share, as ``train_student`` makes it, on these images and made-up targets."""
    workers = least(config.num_workers)
    share: dict[str, Any] = {
        name: math.ceil(getattr(config, name) / workers) for name in ("batch_labeled", "batch_unlabeled")
    }
    config = config.model_copy(
        update=share | {"warmup": 0.1, "warmup_steps": None, "compile": False, "checkpoints": 1, "checkpoint_s": None}
    )
    count = rows.num_rows
    rng, ids = np.random.default_rng(0), rows["sample_id"]
    labels_L = rng.integers(0, num_classes, max(1, count // 4))
    learns_of_teacher = any(column.startswith("kd") for column in HEADS[config.heads]) or config.heads == "ce+kd"
    logits_NC = rng.normal(size=(count, num_classes) if learns_of_teacher else (0, 0)).astype(np.float16)
    device = torch.device("cuda" if config.num_gpus else "cpu")
    data = TrainingImages(
        ids, rows["uri"], student.preprocess, config.crop_area, config.flip, exact, cache_gib=config.cache_gib
    )
    times: list[float] = []

    def report(step: int, metrics: StepLine, state: Any) -> None:
        times.append(time.perf_counter())
        if len(times) > 2 and times[-1] - times[0] > MOST_S:
            raise EnoughSteps

    with reproducible(max(1, int(config.num_cpus)), device), suppress(EnoughSteps):
        train_student(
            student.model, data, Targets(labels_L, logits_NC), settings_of(config, STEPS, (0, 0)), report,
            worker=Worker(device=device),
        )  # fmt: skip
    return float(np.median(np.diff(times)))


def pick_seconds(width: int) -> float:
    """Of one row for one pick: its distance to that pick, and the smaller of two."""
    rows_ND = np.random.default_rng(0).normal(size=(ROWS, width)).astype(np.float32)
    nearest_N = np.full(ROWS, np.inf, np.float32)
    started = time.perf_counter()
    for pick in range(3):
        np.minimum(nearest_N, 1 - rows_ND @ rows_ND[pick], out=nearest_N)
    return (time.perf_counter() - started) / (3 * ROWS)
