"""A campaign under way: its config, its folder, and where each stage of it lies."""

from __future__ import annotations

import hashlib
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

import raykd
from raykd.algo.prompts import templates
from raykd.config import Config
from raykd.errors import UserError
from raykd.stages.progress import Progress
from raykd.stages.resources import check_resources
from raykd.stages.session import Session
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
        progress = Progress(config.progress)
        with Session(config.local_cpus, config.stall_s, progress) as session:
            campaign = Campaign(config, place, progress, still_ours)
            check_resources(config, session, campaign.say)
            session.ensure()
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
