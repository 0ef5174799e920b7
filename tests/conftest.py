"""One small local Ray for the whole session, and a tiny pool and teacher made on the spot."""

import os

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="120",
    OMP_NUM_THREADS="1",
)
os.environ.pop("RAY_ADDRESS", None)  # or a test joins somebody's cluster
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of Ray's processes compiles its imports again

import copy
import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image

ROOT = Path(__file__).parents[1]
CLASSES = ["red", "green", "blue"]


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray with 4 logical CPUs; the environment above is in force in its processes."""
    import ray

    import raykd.stages  # noqa: F401  (sets what Ray reads when it is imported)

    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=200 * 2**20, namespace="tests",
    )  # fmt: skip
    ray.data.DataContext.get_current().execution_no_progress_timeout_s = 120
    yield
    ray.shutdown()


def write_images(folder: Path, per_class: int, seed: int = 0, size: int = 24) -> Path:
    """A folder per class of noisy one-colour PNGs: easy to tell apart, all different."""
    rng = np.random.default_rng(seed)
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
            pixels[..., c] += rng.integers(60, 130, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """48 images in 3 class folders."""
    return write_images(tmp_path_factory.mktemp("pool"), 16)


def write_teacher(folder: Path) -> Path:
    """An open_clip model with random weights, in open_clip's own layout (``local-dir:``)."""
    import open_clip
    import safetensors.torch
    import torch

    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    state = open_clip.CLIP(**model).state_dict()
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    return folder


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


def tiny_campaign(storage: Path, pool: Path, teacher: Path) -> dict:
    """3 classes, 2 rounds, everything that takes time as small as it goes."""
    return {
        "storage_path": str(storage),
        "rounds": 2,
        "pool": {"path": str(pool), "format": "class_folders"},
        "test_share": 0.2,
        "val_share": 0.2,
        "teacher": {"model": f"local-dir:{teacher}", "batch_size": 16},
        "student": {
            "backbone": "test_vit", "pretrained": False, "image_size": 32, "steps": 6, "batch_labeled": 4,
            "batch_unlabeled": 8, "flip": False, "checkpoints": 3, "predict_batch_size": 32,
        },
        "selection": {"strategy": "pcoreset", "budget": 3, "shards": 2, "num_cpus": 0.1},
        "labels": {"oracle": "simulated", "start": "one_per_class"},
        "progress": "none",
    }  # fmt: skip


@pytest.fixture
def settings(tmp_path, image_folder, teacher_folder) -> dict:
    return tiny_campaign(tmp_path / "run", image_folder, teacher_folder)


# ---------------------------------------------------------------- campaigns


class Ended(NamedTuple):
    """How a job ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def run_job(ray_cluster, tmp_path_factory):
    """Runs the main job in this process, on the session's Ray: settings and overrides in, how it ended out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        import active_round
    file = tmp_path_factory.mktemp("config") / "campaign.yaml"

    def run(settings: dict, *overrides: str) -> Ended:
        file.write_text(yaml.safe_dump(settings))
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                active_round.main([str(file), *(["--set", *overrides] if overrides else [])])
            except SystemExit as stop:
                code = stop.code
        return Ended(code, out.getvalue(), err.getvalue())

    return run


class Finished(NamedTuple):
    """A campaign of two rounds that nobody disturbed; only for looking at."""

    settings: dict
    place: Path
    ended: Ended
    pool: Any  # of raykd.store.outputs, as the others
    encoded: Any
    teacher: Any
    rounds: list


@pytest.fixture(scope="session")
def finished(run_job, tmp_path_factory, image_folder, teacher_folder) -> Finished:
    """Its pool holds a truncated image, ``red/broken.png``, and a file that is none."""
    from raykd.stages import evaluate, select

    folder = tmp_path_factory.mktemp("finished")
    pool = Path(shutil.copytree(image_folder, folder / "pool"))
    (pool / "red" / "broken.png").write_bytes((pool / "red" / "000.png").read_bytes()[:600])
    (pool / "red" / "notes.txt").write_text("no image")
    settings = tiny_campaign(folder / "run", pool, teacher_folder)
    given, done, picked, measure = [], [], select.select, evaluate.measure

    def watched_select(campaign, number, pool, encoded, teacher, before):
        given.append((pool, encoded, teacher))
        return picked(campaign, number, pool, encoded, teacher, before)

    def watched_measure(campaign, pool, teacher, round_done):
        done.append(round_done)
        return measure(campaign, pool, teacher, round_done)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "select", watched_select)
        patch.setattr(evaluate, "measure", watched_measure)
        ended = run_job(settings, "progress=lines")
    assert ended.code == 0, ended.err
    return Finished(settings, folder / "run", ended, *given[0], done)


def new_campaign(settings: dict, *overrides: str):
    """A campaign in this process, on the session's Ray; what it says is in ``campaign.progress.stream``."""
    from raykd.config import load
    from raykd.stages.campaign import Campaign, note_config
    from raykd.stages.progress import Progress
    from raykd.stages.session import Session
    from raykd.store.place import Place

    config = load(settings, overrides)
    campaign = Campaign(config, Place.of(config.storage_path), Progress("lines", io.StringIO()), Session())
    note_config(campaign, [])
    return campaign


@pytest.fixture
def seeded(finished, tmp_path):
    """Campaigns in a new folder that has the finished one's pool, features and teacher already.

    Called with overrides, it gives settings and campaign.
    """

    def make(*overrides: str, name: str = "run") -> tuple[dict, Any]:
        settings = copy.deepcopy(finished.settings) | {"storage_path": str(tmp_path / name)}
        campaign = new_campaign(settings, *overrides)
        for stage in ("pool", "teacher_model", "encode", "teacher"):
            shutil.copytree(finished.place / stage, tmp_path / name / stage)
        return settings, campaign

    return make
