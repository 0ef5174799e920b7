"""A campaign under way: its config, its folder, and where each stage of it lies."""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import ray

import raykd
from raykd.algo.prompts import templates
from raykd.config import Config
from raykd.errors import UserError
from raykd.stages.progress import Progress
from raykd.stages.session import ray_session
from raykd.store.lock import only_job
from raykd.store.place import Place
from raykd.store.stage_folder import MARKER, Stage, differences

PACKAGES = ("ray", "torch", "open_clip_torch", "timm", "numpy", "pyarrow", "faiss-gpu", "faiss-cpu")
PIECE_BYTES = 2**24


@dataclass(frozen=True)
class Campaign:
    """What every stage is given.

    Args:
        config: The resolved configuration.
        place: ``config.storage_path``.
        progress: Shows the stages as they run.
        still_ours: Raises when another job took over the folder; every stage asks it.
    """

    config: Config
    place: Place
    progress: Progress
    still_ours: Callable[[], None] = lambda: None

    @property
    def rounds(self) -> range:
        return range(self.config.rounds)

    def stage(self, name: str, inputs: dict[str, Any], round: int | None = None) -> Stage:
        """The folder of a stage, of the whole campaign or of one round."""
        place = self.round_place(round) / name if round is not None else self.place / name
        return Stage(place, inputs, self.still_ours)

    def round_place(self, round: int) -> Place:
        return self.place / f"round_{round:03d}"

    def say(self, name: str, text: str) -> None:
        self.progress.say(name, text)


class Round(NamedTuple):
    """The stages of a finished round: what it is measured by, and what the next one picks from."""

    picks: Stage
    labels: Stage
    trained: Stage
    predictions: Stage
    student: Stage


@contextmanager
def open_campaign(config: Config) -> Iterator[Campaign]:
    """Check what can be checked, hold the folder, write ``campaign.json``, and start or join a Ray.

    Raises:
        ValueError: The storage path would be lost, another job is at work in the folder, it holds a campaign with
            another config, or something the config names does not exist.
    """
    in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if in_job and "://" not in config.storage_path and not os.path.isabs(config.storage_path):
        raise UserError(
            f"storage_path {config.storage_path!r} is relative, and a submitted job runs in a temporary copy of its "
            "working dir: give an absolute path that all nodes share, or s3://..., by --set storage_path=..."
        )
    check_names(config)
    place = Place.of(config.storage_path)
    with only_job(place) as still_ours:
        begin(place, config)
        with ray_session(config.local_cpus, config.stall_s):
            campaign = Campaign(config, place, Progress(config.progress), still_ours)
            check_resources(config, campaign.progress)
            if (place / "pool" / MARKER).exists():
                done = sum((campaign.round_place(round) / "evaluate" / MARKER).exists() for round in campaign.rounds)
                campaign.say("campaign", f"goes on in {place}: {done} of {config.rounds} rounds are done")
            yield campaign


def begin(place: Place, config: Config) -> None:
    """Write the resolved config, versions and commit, or check that they are of this campaign.

    Raises:
        ValueError: The folder's campaign was started with another config; names the fields.
    """
    values = config.model_dump(mode="json")
    record: dict[str, Any] = {
        "identity": config.identity(),
        "config": values,
        "raykd": raykd.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    first = place / "campaign.json"
    if not first.exists() and place.is_local and any(Path(place.path).glob("[!.]*")):  # hidden: .lock, leftovers
        raise UserError(f"storage_path {place} is not empty and holds no campaign; give a new folder")
    if not (place / "pool" / MARKER).exists():  # nothing is done yet, so a config with a mistake may be mended
        first.write_json(record)
        return
    if changed := differences(first.read_json()["identity"], record["identity"]):
        raise UserError(
            f"{place} holds a campaign with another config: "
            + "; ".join(changed)
            + ". Put these back, or give another storage_path"
        )
    (place / "starts" / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json").write_json(record)


def versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def sha256_of(file: str | os.PathLike[str]) -> str:
    """Names a file's content, local or remote; read in pieces. Weights of the same shape have the same size."""
    place, digest = Place.of(file), hashlib.sha256()
    with place.fs.open_input_stream(place.path) as stream:
        while piece := stream.read(PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def commit() -> str | None:
    """The git commit of raykd's own checkout, with ``+`` when it has uncommitted changes; None elsewhere."""
    root = Path(raykd.__file__).parents[1]
    if not (root / "pyproject.toml").exists():
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout else "") if head.returncode == 0 else None


def check_names(config: Config) -> None:
    """Everything the config names that can be looked up without work. Raises ValueError."""
    from raykd.models.student import check_backbone
    from raykd.stages.teacher import check_teacher

    check_backbone(config.student.backbone)
    templates(config.teacher.templates)
    check_teacher(config.teacher)
    if isinstance(config.student.pretrained, str) and not Place.of(config.student.pretrained).exists():
        raise UserError(f"student.pretrained: no file {config.student.pretrained!r}")
    if config.labels.given and not Place.of(config.labels.given).exists():
        raise UserError(f"labels.given: no file {config.labels.given!r}")


def check_resources(config: Config, progress: Progress) -> None:
    """Whether each stage fits: what does not would wait for ever, and without a word.

    On a Ray of this machine that is an error. A cluster may grow, so there it is a line.

    Raises:
        ValueError: A stage asks for more than a Ray of this machine has.
    """
    teacher, student, selection = config.teacher, config.student, config.selection
    asked = {  # (actors, CPUs and GPUs of each, CPUs beside them: Ray Data's own tasks want one)
        "teacher": (least(teacher.replicas), teacher.num_cpus, teacher.num_gpus, 1),
        "train": (student.num_workers, student.num_cpus, student.num_gpus, 0),
        "predict": (least(student.predict_replicas), student.num_cpus, student.num_gpus, 1),
        "selection": (selection.shards, selection.num_cpus, selection.num_gpus, 0),
    }
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    have_cpus, have_gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    if os.environ.get("RAY_ADDRESS"):
        wanting = [
            f"{stage} asks for {count} x ({cpus:g} CPUs, {gpus:g} GPUs)"
            for stage, (count, cpus, gpus, beside) in asked.items()
            if room(nodes, cpus, gpus) < count or have_cpus < count * cpus + beside
        ]
        if wanting:
            progress.say(
                "cluster",
                f"has {have_cpus:g} CPUs and {have_gpus:g} GPUs now, too few: {', '.join(wanting)}; they wait until "
                "nodes join (an autoscaler may bring them), or ask for less",
            )
        return
    for stage, (count, cpus, gpus, beside) in asked.items():
        if count * gpus > have_gpus:
            raise UserError(f"{stage} asks for {count * gpus:g} GPUs, this machine has {have_gpus:g}; set its num_gpus")
        if count * cpus + beside > have_cpus:
            raise UserError(
                f"{stage} asks for {count * cpus + beside:g} CPUs, the local Ray has {have_cpus:g}; raise local_cpus "
                "(logical CPUs, may exceed the cores) or lower its num_cpus, replicas, workers or shards"
            )


def least(replicas: int | tuple[int, int]) -> int:
    return replicas if isinstance(replicas, int) else replicas[0]


def room(nodes: list[dict[str, float]], cpus: float, gpus: float) -> int:
    """How many actors that each ask for so much fit on the nodes: one has all it asks for on one node."""
    total = 0
    for node in nodes:
        parts = [node.get(kind, 0.0) / ask for kind, ask in (("CPU", cpus), ("GPU", gpus)) if ask]
        total += math.floor(min(parts) + 1e-6)  # Ray counts in ten-thousandths
    return total
