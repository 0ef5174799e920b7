"""From a campaign's folder, or a student's, to a folder that leaves the house: what jobs/export.py does."""

from __future__ import annotations

import math
import os
import platform
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from PIL.Image import Image

import raykd
from raykd.algo.keyed import hash_ids, uniform
from raykd.errors import UserError
from raykd.images.decoding import SUFFIXES
from raykd.images.reading import load_many
from raykd.images.stored import ImageReader
from raykd.models.opened import find_model
from raykd.models.preprocess import Preprocess
from raykd.store.outputs import MANIFEST_FILE, count_done, read_metrics, round_place
from raykd.store.place import Place
from raykd.store.stage_folder import read_done
from raykd.store.status import CAMPAIGN_FILE

if TYPE_CHECKING:
    from raykd.models.export import Format
    from raykd.models.student import Student

NUM_IMAGES = 256  # that an export is held against
FEWEST_IMAGES = 16  # where there are no more,
CROPS = (0.3, 1.0)  # and shares of them that are cropped to make up for it
CACHE_BYTES = 256 * 2**20  # of row groups of Parquet


@dataclass(frozen=True)
class Run:
    """What to export.

    Args:
        student: Its folder.
        campaign: The campaign's folder; None: the student came alone.
        number: Of the round.
    """

    student: Place
    campaign: Place | None
    number: int | None


def check_absent(folder: str) -> Path:
    """The folder to write. Raises UserError: it exists, is not local, or cannot be written."""
    place = Place.of(folder)
    if "://" in folder:
        raise UserError(f"--to {folder}: expected a local folder, as timm reads no other; copy it there afterwards")
    if place.exists():
        raise UserError(f"--to {folder} exists, and nothing is overwritten; give a new name, or move it away")
    place.check_writable()
    return Path(place.path)


def find_run(path: str, number: int | None, images: str | None) -> Run:
    """The student of a campaign's round, by default the last that is finished; or of a folder.

    Raises:
        UserError: There is none; the folder is a student's and no images are named.
    """
    place = Place.of(path)
    if (place / CAMPAIGN_FILE).exists():
        done = count_done(place)
        if not done:
            raise UserError(f"no round of the campaign in {place} is finished yet")
        number = done - 1 if number is None else number
        if not 0 <= number < done:
            raise UserError(f"--round {number}: rounds 0 to {done - 1} of the campaign in {place} are finished")
        return Run(find_model(round_place(place, number)).place, place, number)
    found = find_model(place)
    if found.is_export:
        raise UserError(f"{place} is an export already; give the student it came from, such as RUN/round_002/student")
    if number is not None:
        raise UserError(f"--round {number}: {place} is a student's folder, not a campaign's; leave --round away")
    if images is None:
        raise UserError(
            f"{place} is a student's folder: give --images FOLDER with at least {NUM_IMAGES} images of the kind it is "
            "for, as what is exported is held against the student on real images"
        )
    return Run(found.place, None, None)


def real_images(run: Run, preprocess: Preprocess, images: str | None) -> tuple[np.ndarray, str]:
    """Images to hold an export against, cropped, uint8 [n, H, W, 3], and where they are from.

    A draw that is keyed by name: the same images every time. :data:`NUM_IMAGES` of those that can be read; when there
    are fewer, all, and random crops of them.

    Raises:
        UserError: Fewer than :data:`FEWEST_IMAGES` can be read.
    """
    if images is not None:
        place = Place.of(images)
        if not place.is_dir():
            raise UserError(f"--images {images}: there is no such folder")
        paths = [info.path for info in place.files(recursive=True) if info.path.lower().endswith(SUFFIXES)]
        names, uris, words = paths, [place.sibling(path).uri for path in paths], f"of {images}"
    else:
        assert run.campaign is not None
        rows = manifest_of(run.campaign)
        names, uris = rows["sample_id"].to_pylist(), rows["uri"].to_pylist()
        words = f"of {run.campaign}"
    order = np.argsort(uniform(hash_ids(names), "export"), kind="stable")
    drawn = [uris[n] for n in order]
    read = list(islice(pixels_of(drawn, preprocess.clean()), NUM_IMAGES))
    if len(read) < FEWEST_IMAGES:
        raise UserError(
            f"{len(read)} of {len(uris)} images {words} can be read; an export is held against the student on "
            f"{NUM_IMAGES}, crops of the same ones among them where there are fewer, of {FEWEST_IMAGES} at least: give "
            "--images FOLDER"
        )
    if (whole := len(read)) < NUM_IMAGES:
        crop = preprocess.augmented(CROPS, flip=True)
        times = math.ceil(NUM_IMAGES / whole) - 1
        for crops in pixels_of(drawn, lambda image: np.stack([np.asarray(crop(image, seed)) for seed in range(times)])):
            read += [*crops]
        words += f" ({whole} whole, the others crops of these)"
    return np.stack(read[:NUM_IMAGES]), words


def pixels_of(uris: list[str], transform: Callable[[Image], Any]) -> Iterator[np.ndarray]:
    """What a transform makes of each image that can be read, uint8 [..., H, W, 3]."""
    loaded = load_many(ImageReader(CACHE_BYTES), uris, transform)
    return (np.asarray(image) for image in loaded if not isinstance(image, str))


def manifest_of(campaign: Place) -> pa.Table:
    """All parts of a campaign's pool: sample_id and uri."""
    parts: list[pa.Table] = []
    while done := read_done(campaign / "pool" / f"part_{len(parts):03d}"):
        parts.append((done.place / MANIFEST_FILE).read_table(["sample_id", "uri"]))
    return pa.concat_tables(parts)


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """A folder to write in; it gets its name when the block ends without an error, and else is gone."""
    place = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.aside"
    place.mkdir(parents=True)
    try:
        yield place
        if folder.exists():
            raise UserError(f"--to {folder} came into being meanwhile; give another name")
        os.rename(place, folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def export(run: Run, kind: Format, folder: Path, images: str | None) -> dict[str, Any]:
    """Write the folder: complete or absent.

    Returns:
        The card.

    Raises:
        UserError: The format does not fit the student, or what was written is not the student.
    """
    from raykd.models.export import write_checked
    from raykd.models.export_card import write_card
    from raykd.models.student import Student

    student = Student.load(run.student)
    if student.preprocess.clip is not None and student.preprocess.clip["resize_mode"] == "longest":
        raise UserError(
            "the teacher's image tower under this frozen student pads its images, which no export does: predict by "
            "raykd itself (jobs/predict.py)"
        )
    pixels, words = real_images(run, student.preprocess, images)
    with aside(folder) as place:
        facts = write_checked(student, kind, place, pixels)
        facts["gate"]["images"] = words
        card = card_of(run, student, kind, facts, Place.of(place / facts["weights"]))
        write_card(place, card)
    return card


def card_of(run: Run, student: Student, kind: Format, facts: dict[str, Any], weights: Place) -> dict[str, Any]:
    """All that is known of an exported model, plain data."""
    campaign = campaign_facts(run)
    return {
        "format": kind,
        "classes": student.classes,
        "backbone": student.backbone,
        "heads": student.model.heads,
        "preprocess": asdict(student.preprocess),
        "mixture": asdict(student.mixture),
        "parameters": sum(each.numel() for each in student.model.parameters()),
        "bytes": os.path.getsize(weights.path),
        "sha256": weights.sha256(),
        **facts,
        "campaign": campaign,
        "started_from": started_from(student, campaign),
        "exported_with": {
            "raykd": raykd.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in PACKAGES[kind]},
        },
    }


PACKAGES = {"timm": ("torch", "timm"), "torch": ("torch", "timm"), "onnx": ("torch", "timm", "onnx", "onnxruntime")}


def campaign_facts(run: Run) -> dict[str, Any] | None:
    """What the campaign knows of the student; None without one."""
    if run.campaign is None or run.number is None:
        return None
    metrics = read_metrics(round_place(run.campaign, run.number))
    assert metrics is not None
    history = (run.campaign / CAMPAIGN_FILE).read_json()["history"]
    entry = [each for each in history if each["before_round"] <= run.number][-1]
    config = entry["config"]
    teacher = config["teacher"]
    return {
        "round": run.number,
        "num_labeled": metrics["num_labeled"],
        "labels_spent": metrics.get("labels_spent") or {"training": metrics["num_labeled"]},
        "accuracy": metrics["accuracy"] and metrics["accuracy"]["mixture"],
        "interval": metrics["interval"],
        "measured_on": metrics.get("measured_on", "test"),
        "num_measured": metrics.get("num_measured", metrics["num_test"]),
        "ece": metrics["ece"],
        "teacher": " ".join(str(teacher[key]) for key in ("table", "model", "pretrained") if teacher.get(key)),
        "prompts": None if teacher.get("table") else teacher.get("templates"),
        "data": config["pool"]["path"],
        "strategy": config["selection"]["strategy"],
        "seed": config["seed"],
        "pretrained": config["student"].get("pretrained"),
        "trained_with": {"raykd": entry["raykd"], "commit": entry["commit"], **entry["versions"]},
    }


def started_from(student: Student, campaign: dict[str, Any] | None) -> dict[str, str | None] | None:
    """The weights that the backbone had before its training, and their licence; None: random, or not known."""
    import timm

    backbone = student.backbone
    if campaign and student.frozen and "tower" in student.frozen:
        return {"weights": f"the teacher's image tower, {campaign['teacher']}", "license": None}
    if campaign is None or not campaign["pretrained"]:
        return None
    if campaign["pretrained"] is not True:
        return {"weights": str(campaign["pretrained"]), "license": None}
    cfg = timm.get_pretrained_cfg(backbone)
    return {"weights": f"timm's {backbone}", "license": getattr(cfg, "license", None)}
