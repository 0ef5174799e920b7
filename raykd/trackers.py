"""Trackers that take the rounds of a campaign: TensorBoard, MLflow, Weights & Biases. ``tracking.py`` says what for.

Each logs a round once, whenever it is killed, and imports its package when it has something to log.
"""

from __future__ import annotations

import io
import logging
import math
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from raykd.store.outputs import RoundFigures, read_steps, round_place
from raykd.store.place import Place
from raykd.store.stage_folder import fingerprint, flatten

PATIENCE_S = 120.0  # for a tracker to take what it is given; MLflow needs some seconds to make a database
BY_LABELS = ("accuracy/", "coverage_radius")  # what is drawn against labels, too
REPEATED = ("round", "num_labeled")  # the step; labels


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker says of a campaign.

    Args:
        name: For people.
        config: Dotted field to value.
        tags: Version and commit of raykd.
    """

    name: str
    config: Mapping[str, Any]
    tags: Mapping[str, str]


@dataclass(frozen=True)
class TrackedRound:
    """What a tracker is given of a round.

    Args:
        place: Of the campaign.
        values: As ``metrics.jsonl`` has them.
    """

    place: Place
    values: RoundFigures

    @property
    def number(self) -> int:
        return self.values["round"]

    @property
    def name(self) -> str:
        return f"round_{self.number:03d}"

    @cached_property
    def figures(self) -> dict[str, float]:
        """``labels``, ``accuracy/mixture``, ``seconds/train``, ...: all that is a finite number, and the interval."""
        named: dict[str, Any] = {"labels": self.values["num_labeled"], **self.values}
        if interval := named.pop("interval", None):
            named["interval"] = dict(zip(("low", "high"), interval, strict=True))
        found = {key.replace(".", "/"): value for key, value in flatten(named).items()}
        return {key: float(value) for key, value in found.items() if can_be_drawn(value) and key not in REPEATED}

    @cached_property
    def curves(self) -> dict[int, dict[str, float]]:
        """By training step what ``steps.jsonl`` has: ``loss``, ``learning_rate``, ...; about 100 steps."""
        return {
            line["step"]: {key: float(value) for key, value in line.items() if key != "step" and can_be_drawn(value)}
            for line in read_steps(round_place(self.place, self.number))
        }


def can_be_drawn(value: Any) -> bool:
    """Whether a tracker can draw it."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


class Tracker(Protocol):
    """Takes the rounds of one campaign."""

    def bring(self, rounds: Sequence[TrackedRound], run: TrackedRun) -> None:
        """Log those of the rounds (0, 1, ... in order) that it does not have yet. Raises anything."""


@dataclass(frozen=True)
class TensorBoard:
    """Files of events for TensorBoard, one or two a round, each written whole: what is there is logged.

    They go through :class:`Place`, which torch's own writer cannot, so that they may lie on an object store, too.

    Args:
        place: Folder for them.
    """

    place: Place

    def bring(self, rounds: Sequence[TrackedRound], run: TrackedRun) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.text.summary_v2 import text_pb

        def scalars(values: Mapping[str, float]) -> Any:
            return Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])

        about = self.place / "rounds" / "events.out.tfevents.config"  # before all rounds in the order of names
        if not about.exists():
            lines = "\n".join(f"| {key} | `{value}` |" for key, value in {**run.tags, **run.config}.items())
            about.write_bytes(event_file([(0, text_pb("config", f"| field | value |\n|---|---|\n{lines}"))]))
        for each in rounds:
            file = self.place / "rounds" / f"events.out.tfevents.{each.name}"
            if file.exists():
                continue
            if each.curves:
                steps = [
                    (step, scalars({f"train/{k}": v for k, v in line.items()})) for step, line in each.curves.items()
                ]
                (self.place / each.name / "events.out.tfevents.train").write_bytes(event_file(steps))
            drawn = {f"by_labels/{key}": value for key, value in each.figures.items() if key.startswith(BY_LABELS)}
            labels = each.values["num_labeled"]
            file.write_bytes(event_file([(each.number, scalars(each.figures)), (labels, scalars(drawn))]))


def event_file(events: Sequence[tuple[int, Any]]) -> bytes:
    """What TensorBoard reads: pairs of a step and a summary (``summary_pb2.Summary``), in order."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    now, buffer = time.time(), io.BytesIO()
    writer = RecordWriter(buffer)
    for event in (
        Event(wall_time=now, file_version="brain.Event:2"),
        *(Event(wall_time=now, step=step, summary=summary) for step, summary in events),
    ):
        writer.write(event.SerializeToString())
    return buffer.getvalue()


@dataclass(frozen=True)
class MLflow:
    """A run of MLflow, in the experiment of ``MLFLOW_EXPERIMENT_NAME``, else ``raykd``.

    A round is one request, which the server takes as a whole or not at all, and the server is asked which it has. So
    none is there twice, whenever the job is killed. The run is found by its tag ``raykd_campaign``.

    Args:
        note: File that says which run it is.
        uri: Of the server; None: a database beside the note, which is then a local file.
    """

    note: Place
    uri: str | None

    def bring(self, rounds: Sequence[TrackedRound], run: TrackedRun) -> None:
        note = read_note(self.note, self.uri)
        if note["rounds"] >= len(rounds):
            return
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # of 7, which last for minutes
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        client = MlflowClient(self.uri or f"sqlite:///{os.path.dirname(self.note.path)}/mlflow.db")
        experiment = experiment_of(client, os.environ.get("MLFLOW_EXPERIMENT_NAME", "raykd"))
        found = client.search_runs([experiment], f"tags.raykd_campaign = '{note['id']}'")
        made = (
            found[0]
            if found
            else client.create_run(experiment, tags={**run.tags, "raykd_campaign": note["id"]}, run_name=run.name)
        )
        run_id = made.info.run_id
        if not made.data.params:  # they cannot be changed later
            client.log_batch(run_id, params=[Param(key, str(value)) for key, value in run.config.items()])
        has = {metric.step for metric in client.get_metric_history(run_id, "round")}
        for each in rounds:
            if each.number not in has:
                now = int(1000 * time.time())
                steps = {step: {f"{each.name}/{k}": v for k, v in line.items()} for step, line in each.curves.items()}
                points = [*steps.items(), (each.number, {**each.figures, "round": float(each.number)})]
                metrics = [Metric(key, value, now, step) for step, line in points for key, value in line.items()]
                client.log_batch(run_id, metrics)
        client.set_terminated(run_id)  # a job may end any time; a later round is taken all the same
        self.note.write_json(note | {"rounds": len(rounds)})


def experiment_of(client: Any, name: str) -> str:
    """The id of an experiment of MLflow, which is made when there is none."""
    found = client.get_experiment_by_name(name)
    experiment: str = found.experiment_id if found else client.create_experiment(name)
    return experiment


@dataclass(frozen=True)
class WandB:
    """A run of Weights & Biases, of the project ``WANDB_PROJECT``, else ``raykd``; ``WANDB_MODE=offline`` is heeded.

    It is opened for each round anew, under an id that stays; a server is asked which round it had last. Offline nobody
    can be asked: a kill in the moment between a round and the note of it has it there twice. Each job leaves a folder,
    for ``wandb sync --append``.

    Args:
        note: File that says which run it is.
        folder: For what W&B keeps on this machine; None: where ``WANDB_DIR`` says.
    """

    note: Place
    folder: str | None

    def bring(self, rounds: Sequence[TrackedRound], run: TrackedRun) -> None:
        note = read_note(self.note)
        if note["rounds"] >= len(rounds):
            return
        import wandb

        if self.folder:
            os.makedirs(self.folder, exist_ok=True)  # or W&B takes one for temporary files
        opened = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "raykd"),
            id=note["id"],
            name=run.name,
            resume="allow",
            reinit="create_new",  # another run of this process is none of ours
            config={**run.config, **run.tags},
            allow_val_change=True,
            dir=self.folder,
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, x_disable_stats=True,
                init_timeout=PATIENCE_S / 3, finish_timeout=PATIENCE_S / 3, finish_timeout_raises=True,
            ),
        )  # fmt: skip
        last = max(note["rounds"] - 1, int(opened.summary.get("round", -1)))
        for each in rounds:
            if each.number > last:
                for key in each.figures:
                    opened.define_metric(key, step_metric="round")
                opened.define_metric(f"{each.name}/*", step_metric=f"{each.name}/step")
                for step, line in each.curves.items():
                    opened.log({f"{each.name}/{key}": value for key, value in {"step": step, **line}.items()})
                opened.log({**each.figures, "round": each.number})
        opened.finish()
        self.note.write_json(note | {"rounds": len(rounds)})


def read_note(file: Place, server: str | None = None) -> dict[str, Any]:
    """Which run a campaign is, and how many rounds that has; written when there is none, or of another server."""
    at = fingerprint(server)  # a URI may have a password in it
    note: dict[str, Any] = file.read_json() if file.exists() else {}
    if note.get("server") != at:
        note = {"server": at, "id": uuid.uuid4().hex[:12], "rounds": 0}
        file.write_json(note)  # before the run is made: whatever happens then, it is found again
    return note
