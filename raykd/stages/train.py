"""A fresh student a round: labels for one head, the teacher's opinion for the other."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.heads import HEADS
from raykd.config import least
from raykd.errors import AGAIN, UserError, for_the_reader, one_line
from raykd.models.preprocess import ABOUT
from raykd.models.saved import WEIGHTS
from raykd.stages.campaign import Campaign
from raykd.stages.progress import Ticker
from raykd.stages.resources import Bundles, with_patience
from raykd.stages.scratch import clear_scratch, folders_of, of_round
from raykd.stages.views import encode_views
from raykd.stages.weights import fetch_backbone, fetch_texts, read_student_texts
from raykd.store.outputs import STEPS_FILE, Encoded, Labels, Pool, Teacher, Trained
from raykd.store.place import Place
from raykd.store.stage_folder import Done, read_done
from raykd.store.tables import ROLES

if TYPE_CHECKING:
    from raykd.models.teacher_views import OnlineTeacher, StoredViews
    from raykd.stages.train_loop import Job

VERSION = 1
RESIZE_S = 60.0  # between two looks at whether an elastic training can have more workers
PREEMPTION_GRACE_S = 60.0  # that those who stay may go on, to write down where they are, when a machine is taken away
LONG_WAIT, LONG_WAIT_S = 0.05, 10.0  # share of a training's time, and seconds, from which on it is said
MORE_IMAGES = "student.loader_processes makes more batches at a time, student.cache_gib keeps more decoded images"
UNUSABLE = ("cannot_label", "none_of_the_classes")  # such images are no use to the KD head either


def train(campaign: Campaign, number: int, pool: Pool, encoded: Encoded, teacher: Teacher, labels: Labels) -> Trained:
    """The student of one round, from what is labeled by then.

    A training that was killed goes on from its last checkpoint, with the batches it would have seen: in this process
    when the Ray is one of this machine and one worker trains, else on Ray Train. [1, max] workers are one there, unless
    they have GPUs: they would share its cores, and no node can join.

    Raises:
        UserError: No image has a label yet, the loss is not finite, or an image can no longer be read.
    """
    config = campaign.config.student
    made_from = {"labels": labels.content, "round": number}
    start = fetch_backbone(campaign) if encoded.for_student is None else encoded.for_student.network
    settings = {"teacher": teacher.fingerprint, "start": start and start.fingerprint, **campaign.config.part("train")}
    texts = fetch_texts(campaign, teacher.classes, pool.texts, start) if start and config.language_aware else None
    if texts:
        settings["texts"] = texts.fingerprint
    folder = campaign.folder("train", number, version=VERSION, made_from=made_from, settings=settings)
    scratch = campaign.place / "ray_train"
    if done := campaign.done(folder, number):
        clear_scratch(scratch, number)
        return Trained(done)
    job = make_job(campaign, number, pool, encoded, teacher, labels, start, texts)
    if missing := without_labels(job.labels_L, job.classes, config.heads):
        campaign.say(folder.name, missing)
    name = of_round(number) + folder.fingerprint  # says all that a training depends on, so it goes on from its own
    here = campaign.session.is_local and config.fits_one_process
    with (
        folder.writing() as out,
        campaign.progress.stage(folder.name, job.num_steps, "steps", here=here, counted_anyhow=not here) as ticker,
    ):
        if here:
            from raykd.stages.train_loop import train_here

            train_here(job, scratch / name, out.place, ticker)
        else:
            campaign.session.ensure()
            make_trainer = partial(trainer_of, job, scratch, name, ticker)
            fit = partial(
                fitted_on_ray, make_trainer, partial(folders_of, scratch / name), config.max_failures, out.place
            )
            say = partial(campaign.say, folder.name)
            asked = Bundles(least(config.num_workers), config.num_cpus, config.num_gpus)
            with_patience(fit, folder.name, asked, campaign.config.stall_s, ticker.done, say)
        out.facts |= {
            "steps": job.num_steps,
            **told_of(out.place),
            "num_labeled": len(job.labels_L),
            "classes": list(job.classes),
            "columns": list(HEADS[config.heads]),
            "features": None if encoded.for_student is None else encoded.for_student.key,
        }
    clear_scratch(scratch, number)
    trained = Trained(out.complete)
    if (share := trained.data_wait_share) >= LONG_WAIT and share * trained.done.facts["seconds"] >= LONG_WAIT_S:
        campaign.say(folder.name, f"{share:.0%} of the time went by waiting for images; {MORE_IMAGES}")
    return trained


def make_job(
    campaign: Campaign,
    number: int,
    pool: Pool,
    encoded: Encoded,
    teacher: Teacher,
    labels: Labels,
    start: Done | None,
    texts: Done | None = None,
) -> Job:
    """All that a round's training needs to know."""
    from raykd.stages.train_loop import Job

    readable = encoded.readable(pool.split("pool"))["sample_id"]
    ids, labels_L = samples(readable, labels, teacher.classes, pool.renamed)
    features = encoded.for_student
    return Job(
        ids=ids,
        uris=pool.uris(ids) if features is None else None,
        labels_L=labels_L,
        teacher=teacher.uris,
        start=start.place if start else None,
        texts_CD=None if texts is None else read_student_texts(texts),
        classes=teacher.classes,
        config=campaign.config.student,
        exact=campaign.config.decode == "exact",
        key=(campaign.config.seed, number),
        views=views_for(campaign, pool, encoded, teacher),
        features=None if features is None else features.uris,
    )


def views_for(campaign: Campaign, pool: Pool, encoded: Encoded, teacher: Teacher) -> StoredViews | OnlineTeacher | None:
    """What the teacher says of augmented images, where it is to see them; None: of each clean image, as it has.

    Stored views are those of all the pool's images that can be read: encoded once, for all rounds and campaigns that
    crop alike. Cost: so many forward passes of the teacher an image.
    """
    from raykd.images.transforms import ClipPreprocess
    from raykd.models.teacher import read_clip_preprocess
    from raykd.models.teacher_views import OnlineTeacher, StoredViews
    from raykd.stages.few_shot import scorer_of

    config = campaign.config
    how = config.student.teacher_views
    if how == "cached":
        return None
    size = ClipPreprocess(read_clip_preprocess(encoded.folder)).size
    if how == "online":
        return OnlineTeacher(encoded.folder, size, config.teacher.precision, scorer_of(teacher))
    tables = [encoded.readable(part.filter(pc.equal(part["split"], "pool"))) for part in pool.listed]
    model = read_done(encoded.folder)
    assert model is not None
    views = encode_views(
        campaign, tables, model, config.teacher, views=how, area=config.student.crop_area, flip=config.student.flip,
        seed=config.seed, at=campaign.cache / "views", shared=bool(config.cache_path), decode=config.decode,
        max_bad_share=config.max_bad_share,
    )  # fmt: skip
    return StoredViews(views.uris, how, size, scorer_of(teacher))


def samples(
    readable: pa.ChunkedArray, labels: Labels, classes: Sequence[str], renamed: Mapping[str, str]
) -> tuple[pa.ChunkedArray, np.ndarray]:
    """What is trained on: the images that have a label, then those that may still get one, each by sample_id.

    Args:
        readable: Ids of the pool's images that can be read.
        labels: All answers so far.
        classes: In the order of the indices.
        renamed: What older labels mean now.

    Returns:
        The ids, and int64 [L]: the class indices of the first L.
    """
    given, labels_L = labels.given(classes, renamed)
    here = pc.is_in(given, value_set=readable)
    given, labels_L = given.filter(here), labels_L[here.to_numpy()]
    answers = labels.table.filter(pc.equal(labels.table["role"], ROLES[0]))  # what is audited stays as the others are
    kept_out = answers["sample_id"].filter(
        pc.is_in(answers["outcome"], value_set=pa.array([*UNUSABLE, "label"], pa.string()))
    )
    free = readable.filter(pc.invert(pc.is_in(readable, value_set=kept_out)))
    free = free.take(pc.array_sort_indices(free))
    return pa.chunked_array([*given.chunks, *free.chunks], pa.string()), labels_L


def without_labels(labels_L: np.ndarray, classes: Sequence[str], heads: str) -> str | None:
    """Which classes nobody has labeled an image of, in words; None when there is no such class."""
    (numbers,) = np.nonzero(np.bincount(labels_L, minlength=len(classes)) == 0)
    if not numbers.size or heads == "kd":  # which looks at no label
        return None
    known = "the student cannot learn them" if heads == "ce" else "only the teacher speaks for them"
    return f"{numbers.size} of {len(classes)} classes have no label yet, such as {classes[numbers[0]]!r}: {known}"


def told_of(trained: Place) -> dict[str, float]:
    """What a training's ``steps.jsonl`` says of it, for the facts.

    The loss is the mean of the last quarter of its steps, as one step's is mostly luck.
    """
    lines = [json.loads(line) for line in (trained / STEPS_FILE).read_bytes().splitlines()]
    ends = np.array([0, *(line["step"] for line in lines)])
    steps = np.diff(ends)
    late = steps * (ends[1:] > 0.75 * ends[-1])
    seconds = steps / np.maximum([line["images_per_s"] for line in lines], 1e-9)  # all but a factor
    return {
        "loss": float(np.average([line["loss"] for line in lines], weights=late)),
        "images_per_s": float(steps.sum() / seconds.sum()),
        "data_wait_share": float(np.average([line["data_wait_share"] for line in lines], weights=seconds)),
    }


# ---------------------------------------------------------------- on Ray Train


def trainer_of(job: Job, scratch: Place, name: str, ticker: Ticker) -> Any:
    """Ray Train's trainer, which goes on from the last checkpoint of this name."""
    import ray
    import ray.train
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from raykd.stages.process_group import OverRaysInterface

    config = job.config
    loop: Any = in_worker  # Ray's types know of no return value
    scaling: dict[str, Any] = {
        "num_workers": config.num_workers,
        "use_gpu": config.num_gpus > 0,
        "resources_per_worker": {"CPU": config.num_cpus} | ({"GPU": config.num_gpus} if config.num_gpus else {}),
    }
    if isinstance(config.num_workers, tuple):
        scaling["elastic_resize_monitor_interval_s"] = RESIZE_S
    failures: dict[str, Any] = {
        "max_failures": config.max_failures,
        "max_preemption_failures": -1,  # spot machines that are taken away are nobody's mistake
        "preemption_grace_s": PREEMPTION_GRACE_S,
    }
    return TorchTrainer(
        loop,
        train_loop_config={"job": ray.put(job), "ticker": ticker},
        torch_config=OverRaysInterface(),
        scaling_config=ScalingConfig(**scaling),
        run_config=RunConfig(
            name=name,
            storage_path=scratch.path,
            storage_filesystem=None if scratch.is_local else scratch.fs,
            failure_config=FailureConfig(**failures),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
        ),
    )


def fitted_on_ray(
    make_trainer: Callable[[], Any], checkpoints: Callable[[], list[str]], max_failures: int, out: Place
) -> None:
    """Train on Ray Train's workers, and copy the student and ``steps.jsonl`` out of the last checkpoint.

    Workers and nodes that are lost count (``max_failures``) only until the next checkpoint: on spot machines a long
    training loses more of them than a broken one.

    Raises:
        UserError: What a user can mend, after one attempt; or workers were lost too often without a step forward.
    """
    import ray.exceptions
    import ray.train

    lost_controllers = 0
    while True:
        before = checkpoints()
        try:
            result: Any = make_trainer().fit()
            break
        except ray.exceptions.RayError:  # what controls the workers was lost itself
            lost_controllers = 1 + (lost_controllers if checkpoints() == before else 0)
            if -1 < max_failures < lost_controllers:
                raise
        except ray.train.ControllerError as error:  # it writes to the storage, too
            if words := for_the_reader(error.controller_failure):
                raise UserError(words) from error
            raise
        except ray.train.WorkerGroupError as error:
            causes = [getattr(failure, "_base_exc", failure) for failure in error.worker_failures.values()]
            lost = [cause for cause in causes if type(cause).__module__.startswith("ray.") or of_a_lost_peer(cause)]
            raised = [cause for cause in causes if cause not in lost]
            for cause in raised:  # all attempts failed: the storage, a disk
                if words := for_the_reader(cause):
                    raise UserError(words) from error
            if raised:
                raise
            if checkpoints() == before:
                raise UserError(
                    f"workers of the training were lost again and again without a step forward: {one_line(lost[0])}. "
                    f"Its last checkpoint is kept: {AGAIN}"
                ) from error
    if isinstance(result.return_value, UserError):
        raise result.return_value
    with result.checkpoint.as_directory() as folder:
        for file in (WEIGHTS, ABOUT, STEPS_FILE):
            with open(os.path.join(folder, file), "rb") as stream:
                (out / file).write_bytes(stream.read())


def of_a_lost_peer(cause: BaseException) -> bool:
    """Whether a worker failed because another one was gone: what it was to exchange gradients with."""
    return isinstance(cause, RuntimeError) and bool(re.search(r"\bgloo\b|\bnccl", str(cause), re.IGNORECASE))


def in_worker(arguments: dict[str, Any]) -> UserError | None:
    """What Ray Train calls in each worker; its controller imports this module, so torch stays out of it."""
    import ray

    from raykd.stages.train_loop import train_in_worker

    return train_in_worker(ray.get(arguments["job"]), arguments["ticker"])
