"""How long a campaign will take, from a probe of some of its images, before it begins."""

from __future__ import annotations

import os
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.prompts import ClassTexts
from raykd.config import Config
from raykd.errors import UserError
from raykd.models.training_plan import steps_of
from raykd.planning import Counts, StagePlan, plan_error, plan_table, stage_plans, write_plan
from raykd.stages.campaign import Campaign
from raykd.stages.pool import classes_now, drawn_rows
from raykd.stages.probe import PROBED, Probe, probe
from raykd.stages.progress import Progress
from raykd.stages.session import Session
from raykd.stages.weights import fetch_teacher, fetched_as, names_of_teacher
from raykd.store.outputs import count_done
from raykd.store.place import Place

WORKER_S = 300.0  # that an autoscaler has to bring a machine to probe on


def plan_campaign(config: Config) -> str:
    """The plan as a table, written into the campaign's folder (``planning.PLAN_FILE``); of one that has rounds done,
    how far off its plan was.

    Raises:
        UserError: The pool or the weights cannot be had, or no worker comes to probe on.
    """
    place = Place.of(config.storage_path)
    if count_done(place) and (lines := plan_error(place)):
        return "\n".join(["the plan, and what the rounds took that are done:", *lines])
    with Session(config.local_cpus) as session, scratch_of(place, session.is_local) as scratch:
        campaign = Campaign(config=config, place=scratch, progress=Progress("none"), session=session)
        rows, found = drawn_rows(campaign)
        classes, _ = classes_now(config, found)
        measured = probed(campaign, place, rows, len(classes))
        counts = counts_of(campaign, rows, classes)
    plans = stage_plans(config, measured, counts)
    assumed = assumptions(config, measured, counts)
    about = {"made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "probe": measured, "assumed": assumed}
    write_plan(place, plans, about)
    return "\n".join(["", plan_table(plans), "", *probe_in_words(measured, plans), *(f"- {line}" for line in assumed)])


@contextmanager
def scratch_of(place: Place, is_local: bool) -> Iterator[Place]:
    """A folder that is gone afterwards, where whoever probes reads the weights."""
    if is_local:
        with tempfile.TemporaryDirectory(prefix="raykd-plan-") as folder:
            yield Place(folder)
        return
    scratch = place / f".plan-{uuid.uuid4().hex[:8]}"
    scratch.fs.create_dir(scratch.path, recursive=True)
    try:
        yield scratch
    finally:
        with suppress(OSError):
            scratch.fs.delete_dir(scratch.path)


def probed(campaign: Campaign, place: Place, rows: pa.Table, num_classes: int) -> Probe:
    """The probe, in this process, or on a worker that has what the stages ask for."""
    config = campaign.config
    pool = rows.filter(pc.equal(rows["split"], "pool"))
    order = np.random.default_rng(0).permutation(pool.num_rows)[:PROBED]
    some = pool.take(np.sort(order)).select(["sample_id", "uri", "split"])
    if not some.num_rows:
        raise UserError("the pool has no image to probe")
    teacher = None
    if config.teacher.rule != "table":
        real = Campaign(config=config, place=place, progress=campaign.progress, session=campaign.session)
        before = fetched_as(real, "teacher_model", names_of_teacher(config.teacher))
        teacher = (before or fetch_teacher(campaign, config.teacher)).place
    if campaign.session.is_local:
        return probe(some, config, teacher, num_classes)
    import ray

    campaign.session.ensure()
    asked: dict[str, Any] = {
        "num_cpus": max(config.teacher.num_cpus, config.student.num_cpus),
        "num_gpus": max(config.teacher.num_gpus, config.student.num_gpus),
    }
    call = ray.remote(**asked, max_retries=0)(probe).remote(some, config, teacher, num_classes)
    try:
        found: Probe = ray.get(call, timeout=WORKER_S)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(call, force=True)
        what = ", ".join(f"{name}={value:g}" for name, value in asked.items())
        raise UserError(f"no worker with {what} has probed within {WORKER_S:.0f} s; is there such a node?") from None
    return found


def counts_of(campaign: Campaign, rows: pa.Table, classes: dict[str, ClassTexts]) -> Counts:
    config, session = campaign.config, campaign.session
    num_pool = pc.sum(pc.equal(rows["split"], "pool")).as_py()
    budget = config.selection.budget or len(classes)
    first = len(classes) * config.labels.shots if config.labels.start == "one_per_class" else budget
    steps = tuple(
        steps_of(config.student, min(num_pool, first + number * budget), num_pool, (config.seed, number))
        for number in range(config.rounds)
    )
    readers = os.cpu_count() or 1
    if not session.is_local:
        import ray

        readers = max(1, int(ray.cluster_resources().get("CPU", 1)))
    return Counts(rows.num_rows, num_pool, len(classes), readers, steps, session.is_local)


def probe_in_words(measured: Probe, plans: list[StagePlan]) -> list[str]:
    def pace(seconds: float) -> str:
        return f"{1 / seconds:,.0f}/s" if seconds else "none"

    return [
        f"probed on {measured['images']} images of {measured['read_bytes'] / 1024:,.0f} KiB: read and cropped "
        f"{pace(measured['read_s'])} a process, teacher {pace(measured['teacher_s'])}, student "
        f"{pace(measured['student_s'])}, a training step {1000 * measured['step_s']:,.0f} ms"
    ]


def assumptions(config: Config, measured: Probe, counts: Counts) -> list[str]:
    """What is not measured."""
    lines = [
        f"{counts.images:,} images, {counts.classes} classes, {sum(counts.steps):,} training steps; the first labels "
        f"are {'as many as start asks for' if config.labels.start == 'one_per_class' else 'a budget'}",
        "select: a pass over all rows a pick, as k-center makes it; other strategies take less or more",
        "starts of stages are a guess; people's time, mix, evaluate and report are not counted",
    ]
    if config.student.is_frozen:
        lines.append(f"a step of heads alone takes {1000 * measured['step_s']:.0f} ms; predict reads no image")
    elif not measured["student_s"]:
        lines.append("an open_clip student is not probed: its training and predictions are not in the plan")
    if not counts.is_local:
        lines.append(f"{counts.readers} CPUs read, as many as there are now")
    return lines
