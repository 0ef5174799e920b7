"""Training a student: a function of data, targets, settings, and of what is to be done with what comes of it.

Knows no Ray, no campaign and no config: a worker of Ray Train calls it, a trial of Ray Tune can, a simulation, a test.
N images, the first L of them labeled and the other U not (when all are labeled: U = L, the same ones), C classes, D
feature width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import nn

from raykd.algo.batches import BatchPlan, Schedule, learning_rate
from raykd.algo.dho import Learner, Loss, StudentNet
from raykd.algo.keyed import generator
from raykd.algo.zeroshot import rounded
from raykd.errors import UserError
from raykd.models.sync_batchnorm import synchronise
from raykd.models.teacher_views import LoadedTeacher
from raykd.models.threads import limited_threads
from raykd.models.training_data import AskedBatch, Batch, TrainingData, TrainingFeatures
from raykd.store.place import Place
from raykd.store.tables import matrix

LINES = 100  # about as many lines does a training write
WARNINGS_S = 10.0  # between two looks at whether a machine is about to go away
READ_ROWS = 8192  # of the teacher's table, at a time


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How to train. ``config.StudentConfig`` says what each means, in the same words.

    Args:
        key: What makes this training's draws its own: (seed, round).
        batch_labeled, batch_unlabeled: Images a step, of all workers together.
    """

    steps: int
    key: tuple[int, ...]
    batch_labeled: int = 64
    batch_unlabeled: int = 64
    forward: Literal["separate", "stacked"] = "separate"
    loss_ce_weight: float = 0.5
    distill_temperature: float = 2.0
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup: float | None = 0.1
    warmup_steps: int | None = None
    schedule: Schedule = "linear"
    checkpoints: int = 4
    checkpoint_s: float | None = None
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    sync_batchnorm: bool = False
    loader_processes: int = 0

    def __post_init__(self) -> None:
        if self.rising >= self.steps and (self.warmup_steps or self.schedule == "semi_supervised"):
            raise UserError(
                f"{self.rising} steps of warm-up, and the training has {self.steps} in all; lower student.warmup_steps "
                "(or warmup), or train for longer"
            )

    @property
    def rising(self) -> int:
        """Steps of warm-up."""
        return int((self.warmup or 0) * self.steps) if self.warmup_steps is None else self.warmup_steps


class StepLine(TypedDict):
    """What is noted of the steps since the line before; means over them, and over all workers."""

    step: int  # how many are done
    loss: float
    ce: float | None  # None: no head learns from it
    kl_labeled: float | None  # at the distillation temperature, without its square
    kl_unlabeled: float | None
    learning_rate: float  # of the last of them
    images_per_s: float
    data_wait_share: float  # share of the time that went by until the images were there, 0 to 1


class Report(Protocol):
    """What a training calls at each line, on every worker.

    ``state`` is given where a checkpoint is due: it makes all that is needed to go on from here, as plain tensors and
    numbers (``torch.save`` writes it, ``torch.load(weights_only=True)`` reads it).
    """

    def __call__(self, step: int, metrics: StepLine, state: Callable[[], dict[str, Any]] | None) -> None: ...


# ---------------------------------------------------------------- targets


@dataclass(frozen=True)
class Targets:
    """What is to be learned.

    Args:
        labels_L: int64 [L], class indices of the first L images.
        teacher_NC: float [N, C], the teacher's logits of all images, as :func:`map_teacher` gives them; or [N, K, C],
            of K views of each, of which a seed chooses one.
        online: Says more of each crop as it comes, and ``teacher_NC`` is not looked at.
    """

    labels_L: np.ndarray
    teacher_NC: np.ndarray
    online: LoadedTeacher | None = None

    def labels(self, asked: AskedBatch) -> torch.Tensor:
        """int64 [l], of the labeled images of a batch."""
        return torch.from_numpy(self.labels_L[asked.places[: asked.num_labeled]].astype(np.int64))

    def teacher(self, asked: AskedBatch, batch: Batch) -> torch.Tensor:
        """float32 [n, C]"""
        if self.online is not None:
            assert batch.for_teacher is not None
            return self.online.logits(batch.for_teacher.numpy())
        found = self.teacher_NC[asked.places]
        if found.ndim == 3:
            found = found[np.arange(len(found)), asked.seeds % found.shape[1]]
        return torch.from_numpy(np.asarray(found, np.float32))


def map_teacher(uris: Sequence[str], ids: pa.ChunkedArray, num_classes: int, file: Any) -> np.memmap:
    """The teacher's logits of some images in a mapped file, which all workers of a machine share.

    In half precision (:func:`raykd.algo.zeroshot.rounded`): 1.28 M images of 1,000 classes are 2.6 GB.

    Args:
        uris: Folders of Parquet files with sample_id and logits (and ``error``: rows that have one are left out).
        ids: Of the images, all different.
        num_classes: C.
        file: Path, or open file, to write into; TMPDIR is the place for it.

    Returns:
        float16 [N, C], mapped, in the order of ``ids``. Memory: the ids, and one batch of rows.

    Raises:
        UserError: An image has no logits, or not of C finite numbers.
    """

    def halves(logits: np.ndarray) -> np.ndarray:
        if logits.shape[1] != num_classes:
            raise UserError(f"a teacher table of {logits.shape[1]} classes; expected {num_classes}")
        return rounded(logits)

    return _mapped(uris, ids, "logits", "logits in the teacher table", halves, file)


def map_features(uris: Sequence[str], ids: pa.ChunkedArray, file: Any) -> np.memmap:
    """Stored features of some images, as :func:`map_teacher` maps logits: float16 [N, D], as they are stored.

    Raises:
        UserError: An image has no features.
    """
    return _mapped(uris, ids, "features", "stored features", lambda features: features, file)


def _mapped(
    uris: Sequence[str],
    ids: pa.ChunkedArray,
    column: str,
    what: str,
    halves: Callable[[np.ndarray], np.ndarray],
    file: Any,
) -> np.memmap:
    """A column of vectors of some images in a mapped file; ``halves`` makes float16 of some rows of it."""
    files = [
        pq.ParquetFile(path, filesystem=Place.of(uri).fs, pre_buffer=not Place.of(uri).is_local)
        for uri in uris
        for path in Place.of(uri).parquet().files
    ]
    rows = pc.index_in(pa.chunked_array([_names(file) for file in files], pa.string()), value_set=ids)
    if missing := len(ids) - len(pc.unique(rows.drop_null())):
        first = next(i for i in range(len(ids)) if not pc.any(pc.equal(rows, i)).as_py())
        raise UserError(f"{missing} images have no {what}, first {ids[first].as_py()!r}")
    rows_M = pc.fill_null(rows, -1).to_numpy()
    mapped_ND: np.memmap | None = None
    start = 0
    for each in files:
        for batch in each.iter_batches(READ_ROWS, columns=[column]):
            vectors = matrix(batch[column], column)
            mine = rows_M[start : start + len(vectors)]
            vectors, mine = vectors[mine >= 0], mine[mine >= 0]
            if not np.isfinite(vectors).all():
                odd = mine[~np.isfinite(vectors).all(axis=1)][0]
                raise UserError(f"the {column} of {ids[odd].as_py()!r} are not finite")
            vectors = halves(vectors)
            if mapped_ND is None:
                mapped_ND = np.memmap(file, np.float16, "w+", shape=(len(ids), vectors.shape[1]))
            mapped_ND[mine] = vectors
            start += len(batch)
    assert mapped_ND is not None
    return mapped_ND


def _names(file: pq.ParquetFile) -> pa.Array:
    """The ids of a table's rows; null for rows with an error."""
    has_errors = "error" in file.schema_arrow.names
    table = file.read(columns=["sample_id", "error"] if has_errors else ["sample_id"])
    names = table["sample_id"].combine_chunks()
    if has_errors:
        names = pc.if_else(pc.is_null(table["error"].combine_chunks()), names, pa.scalar(None, names.type))
    return names


# ---------------------------------------------------------------- workers


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


@dataclass(frozen=True)
class Worker:
    """One of the workers that share a training; by default the only one.

    Args:
        rank, world: Which one, of how many. Several talk through ``torch.distributed``, which is set up by then.
        device: Where it computes.
        wrap: Makes the gradients of all workers the same, their mean (DistributedDataParallel); moves to ``device``,
            too.
        warned: Names the machines of all workers that are about to go away; asked by all workers at once, every
            :data:`WARNINGS_S` seconds.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (it is a value)
    wrap: Callable[[nn.Module], nn.Module] = _as_it_is
    warned: Callable[[], Sequence[str]] | None = None

    def mean(self, values: torch.Tensor) -> list[float]:
        """The mean over all workers of some numbers."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return (values / self.world).tolist()

    def agree(self, error: UserError | None) -> None:
        """Raise the error of any worker on all of them: one that went away alone would leave the others waiting."""
        if self.world == 1:
            if error is not None:
                raise error
            return
        if not any(self.mean(torch.tensor([float(error is not None)], device=self.device))):
            return
        found: list[UserError | None] = [None] * self.world
        torch.distributed.all_gather_object(found, error)
        raise next(each for each in found if each is not None)


@contextmanager
def reproducible(num_threads: int, device: torch.device) -> Iterator[None]:
    """Torch as a training needs it to give the same bits each time; as it was, afterwards, its random state too.

    Args:
        num_threads: Bits may hang on it.
        device: Where the training computes.
    """
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    devices = [torch.cuda.current_device()] if device.type == "cuda" else []
    try:
        with limited_threads(num_threads), torch.random.fork_rng(devices):
            yield
    finally:
        torch.backends.cudnn.deterministic = before


def seed_draws(seed: int, device: torch.device | None = None) -> None:
    """Seed torch's draws on the CPU, and on ``device``.

    Not ``torch.manual_seed``: for every kind of accelerator that is not in use it formats and keeps a stack trace, so
    it is slower than cropping a small image, and its memory is never given back.
    """
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type == "cuda":
        torch.cuda.manual_seed(seed)


# ---------------------------------------------------------------- the training


def train_student(
    model: StudentNet,
    data: TrainingData,
    targets: Targets,
    settings: TrainingSettings,
    report: Report,
    *,
    resume: Mapping[str, Any] | None = None,
    worker: Worker = Worker(),
) -> list[StepLine]:
    """Train a student, from the beginning or from the state of a checkpoint; the model is changed in place.

    With one worker and one number of threads the bits are the same each time, however often it was stopped on the way.
    Every worker calls it with the same arguments but ``worker``. Any number of them see the same images at each step
    and follow the same gradient, but for rounding, what dropout draws, and BatchNorm's statistics, which are those of
    each worker's part (``sync_batchnorm``: of the whole batch). So others may go on from a checkpoint, more or fewer.

    Args:
        model: With the backbone's weights to start from. For :class:`TrainingFeatures` its backbone takes features.
        data: N items; a kind of heads that looks at no teacher asks for the labeled ones alone.
        targets: Of the same images.
        settings: How.
        report: Told of every line, and handed the state at checkpoints.
        resume: A state that was handed over; trained on from there.
        worker: Which share of each batch is this one's.

    Returns:
        Every line since the beginning, those before ``resume`` included.

    Raises:
        UserError: The loss is not finite (before the step that it would have spoiled), or an image can no longer be
            read, or the storage fails (StorageError); on all workers alike.
    """
    steps, device = settings.steps, worker.device
    learner = Learner(model, settings.forward == "stacked", settings.loss_ce_weight, settings.distill_temperature)
    learner.to(device)
    if settings.channels_last:
        learner.to(memory_format=torch.channels_last)
    if settings.sync_batchnorm and worker.world > 1:
        synchronise(learner)
    needs_teacher, wrapped = learner.needs_teacher, worker.wrap(learner)
    run = torch.compile(wrapped) if settings.compile else wrapped
    optimizer = torch.optim.AdamW(wrapped.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    first, lines = 0, list[StepLine]()
    if resume is not None:
        model.load_state_dict(resume["model"])
        optimizer.load_state_dict(resume["optimizer"])
        scaler.load_state_dict(resume.get("scaler", {}))
        first, lines = resume["step"], list(resume["lines"])

    def state() -> dict[str, Any]:
        parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict()}
        return {**parts, "step": step + 1, "lines": lines}

    shares = _Shares(settings, len(targets.labels_L), len(data), needs_teacher, worker)
    asked_for = shares.asked(range(first, steps), augmented=not isinstance(data, TrainingFeatures))
    loaded = data.batches(asked_for, settings.loader_processes, on_gpu=device.type == "cuda")
    line_every, checkpoint_every = (max(1, math.ceil(steps / parts)) for parts in (LINES, settings.checkpoints))
    record = _Record(settings.batch_labeled + (settings.batch_unlabeled if needs_teacher else 0))
    clock = _Clock(settings.checkpoint_s, worker)
    learner.train()
    for step in range(first, steps):
        with record.waiting():
            asked, batch = next(loaded)
        worker.agree(batch if isinstance(batch, UserError) else None)
        assert isinstance(batch, Batch)
        seed_draws(int(generator(*settings.key, "dropout", step, worker.rank).integers(2**63)), device)
        rate = settings.learning_rate * learning_rate(step, steps, settings.rising, settings.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        labels, teacher = targets.labels(asked).to(device), None
        if needs_teacher:
            teacher = targets.teacher(asked, batch).to(device)
        images = data.to_input(batch.items.to(device, non_blocking=True))
        for number in range(settings.accumulate):
            some = shares.micro_batch(asked, number)
            last = number == settings.accumulate - 1
            with _no_sync(wrapped, last), _autocast(settings.precision, device):
                loss = run(*some.of(images, labels, teacher), some.weights)
            record.add(loss)
            scaler.scale(loss.total).backward()
        total, told = record.agree(worker, clock.asks())
        if not math.isfinite(total):
            raise UserError(
                f"the training loss is {total} at step {step + 1} of {steps}, where the learning rate is {rate:g}; "
                f"lower student.learning_rate ({settings.learning_rate:g}) and run again: a training that is not "
                "complete begins anew with other settings"
            )
        scaler.step(optimizer)
        scaler.update()
        due = clock.is_due(told) or (step + 1) % checkpoint_every == 0 or step + 1 == steps
        if due or (step + 1) % line_every == 0:
            lines.append(record.line(step + 1, rate))
            report(step + 1, lines[-1], state if due else None)
            if due:
                clock.checkpointed()
    return lines


def _no_sync(wrapped: nn.Module, last: bool) -> Any:
    """Gradients of several micro-batches are made the same on all workers once, with the last."""
    return nullcontext() if last or not hasattr(wrapped, "no_sync") else wrapped.no_sync()  # type: ignore[operator]


def _autocast(precision: str, device: torch.device) -> Any:
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


@dataclass(frozen=True)
class _MicroBatch:
    """Rows of a batch that go through the model together.

    Args:
        labeled, unlabeled: Where they are.
        weights: How much the mean over its labeled, and over its other images counts, so that the sum of all
            micro-batches, in the mean over all workers, is the mean over the whole batch.
    """

    labeled: slice
    unlabeled: slice
    weights: tuple[float, float]

    def of(self, images: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None) -> tuple[Any, ...]:
        """Images, labels, and the teacher's logits of the labeled and the others."""
        whole = self.labeled.step == 1 and self.labeled.start == 0
        mine = images if whole else torch.cat([images[self.labeled], images[self.unlabeled]])
        if teacher is None:
            return mine, labels[self.labeled], None, None
        return mine, labels[self.labeled], teacher[self.labeled], teacher[self.unlabeled]


class _Shares:
    """A worker's share of every batch: every so many-th image of it, as many as there are workers.

    It is counted through labeled and other images, so no share has two images more than another; and so are the parts
    of a share that ``accumulate`` asks for.
    """

    def __init__(
        self, settings: TrainingSettings, num_labeled: int, num_images: int, needs_teacher: bool, worker: Worker
    ) -> None:
        self.settings, self.needs_teacher, self.worker = settings, needs_teacher, worker
        self.first_unlabeled = num_labeled if num_images > num_labeled else 0
        num_unlabeled = num_images - self.first_unlabeled
        self.plan = BatchPlan(
            num_labeled, num_unlabeled, settings.batch_labeled, settings.batch_unlabeled, settings.key
        )

    def asked(self, steps: range, augmented: bool = True) -> Iterator[AskedBatch]:
        """What to ask for, step by step; where nothing is augmented all seeds are 0, as their draw costs a tenth."""
        rank, world = self.worker.rank, self.worker.world
        none = np.zeros(self.settings.batch_labeled + self.settings.batch_unlabeled, np.int64)
        for step in steps:
            seeds = self.plan.augmentation_seeds(step) if augmented else none
            seeds_l, seeds_u = np.split(seeds, [self.settings.batch_labeled])
            whole = [self.plan.labeled(step), self.plan.unlabeled(step) + self.first_unlabeled, seeds_l, seeds_u]
            firsts = 2 * [rank, (rank - self.settings.batch_labeled) % world]
            labeled, unlabeled, seeds_l, seeds_u = (part[at::world] for part, at in zip(whole, firsts, strict=True))
            if not self.needs_teacher:
                unlabeled, seeds_u = unlabeled[:0], seeds_u[:0]
            yield AskedBatch(np.concatenate([labeled, unlabeled]), np.concatenate([seeds_l, seeds_u]), len(labeled))

    def micro_batch(self, asked: AskedBatch, number: int) -> _MicroBatch:
        """The number-th of ``accumulate`` parts of a share, every so many-th image of it."""
        settings, world, every = self.settings, self.worker.world, self.settings.accumulate
        first, size = asked.num_labeled, len(asked.places)
        labeled = slice(number, first, every)
        unlabeled = slice(first + (number - first) % every, None, every)
        num_l, num_u = (len(range(*rows.indices(size))) for rows in (labeled, unlabeled))
        weights = world * num_l / settings.batch_labeled, world * num_u / settings.batch_unlabeled
        return _MicroBatch(labeled, unlabeled, weights)


class _Clock:
    """When a checkpoint is due that is not due by its step. The first worker's says so, and all hear it at once.

    Args:
        checkpoint_s: At most so many seconds between two; None: it does not matter.
    """

    def __init__(self, checkpoint_s: float | None, worker: Worker) -> None:
        self.checkpoint_s, self.worker = checkpoint_s, worker
        self.last = self.looked = time.monotonic()
        self.leaving: set[str] = set()

    def asks(self) -> list[float]:
        """What this worker says: whether it is time for a checkpoint, and to look for warnings."""
        now, first = time.monotonic(), self.worker.rank == 0
        late = first and self.checkpoint_s is not None and now - self.last >= self.checkpoint_s
        look = first and self.worker.warned is not None and now - self.looked >= WARNINGS_S
        return [float(late), float(look)]

    def is_due(self, told: list[float]) -> bool:
        """Whether a checkpoint is due, by what all have heard."""
        late, look = told
        if look:
            self.looked = time.monotonic()
            assert self.worker.warned is not None
            new = set(self.worker.warned()) - self.leaving
            self.leaving |= new
            return bool(late or new)
        return bool(late)

    def checkpointed(self) -> None:
        self.last = time.monotonic()


class _Record:
    """What is noted of the steps since the last line.

    Args:
        num_images: Of a step, all workers together.
    """

    def __init__(self, num_images: int) -> None:
        self.num_images, self.started, self.waited_s = num_images, time.perf_counter(), 0.0
        self.seen: list[list[float]] = []
        self.names: list[str] = []
        self.sum: torch.Tensor | None = None  # of the micro-batches of this step

    @contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.perf_counter()
        yield
        self.waited_s += time.perf_counter() - asked

    def add(self, loss: Loss) -> None:
        """Note the loss of a micro-batch."""
        parts = {name: part.detach().float() for name, part in loss._asdict().items() if part is not None}
        self.names, values = list(parts), torch.stack(list(parts.values()))
        self.sum = values if self.sum is None else self.sum + values

    def agree(self, worker: Worker, said: list[float]) -> tuple[float, list[float]]:
        """Of the step: its total loss over all workers; and what any of them has said, numbers that are 0 or 1."""
        assert self.sum is not None
        values = worker.mean(torch.cat([self.sum, torch.tensor(said, device=self.sum.device)]))
        self.sum = None
        self.seen.append(values[: len(self.names)])
        return values[0], values[len(self.names) :]

    def line(self, step: int, rate: float) -> StepLine:
        """The line, and a new beginning."""
        means: dict[str, float] = dict(zip(self.names, np.mean(self.seen, axis=0).tolist(), strict=True))
        now = time.perf_counter()
        seconds = max(now - self.started, 1e-9)
        line: StepLine = {
            "step": step,
            "loss": means["total"],
            "ce": means.get("ce"),
            "kl_labeled": means.get("kl_labeled"),
            "kl_unlabeled": means.get("kl_unlabeled"),
            "learning_rate": rate,
            "images_per_s": float(f"{len(self.seen) * self.num_images / seconds:.4g}"),
            "data_wait_share": round(self.waited_s / seconds, 3),
        }
        self.seen, self.started, self.waited_s = [], now, 0.0
        return line
