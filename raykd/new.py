"""A config for one's own images, with values that suit them and this machine; ``jobs/new.py`` writes it.

Starts quickly: neither torch nor Ray is imported, so what the machine has is read from the system.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import yaml

from raykd.config import load, read_yaml
from raykd.errors import UserError
from raykd.images.class_lists import class_list
from raykd.images.manifest import few
from raykd.images.survey import Survey, survey
from raykd.models.teacher import check_folder
from raykd.models.threads import num_cores
from raykd.store.place import Place

ROUNDS = 3
TEACHER = {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}
BACKBONE = "mobilenetv3_small_100.lamb_in1k"
HUB = "https://huggingface.co"  # unless HF_ENDPOINT says otherwise
HUB_S = 3.0
TEST_SHARE, VAL_SHARE = 0.2, 0.1


@dataclass(frozen=True)
class Machine:
    """What there is to work with."""

    cores: int
    memory_gib: float
    gpus: int
    hub: bool  # whether models can be downloaded

    def __str__(self) -> str:
        hub = "a model hub in reach" if self.hub else "no model hub in reach"
        return f"{self.cores} cores, {self.memory_gib:.0f} GiB of memory, {self.gpus or 'no'} GPU, {hub}"


def this_machine() -> Machine:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    gpus = len(list(Path("/proc/driver/nvidia/gpus").glob("*")))
    return Machine(num_cores(), memory, gpus, hub_in_reach())


def hub_in_reach() -> bool:
    """Whether something answers where models are downloaded from, or a proxy is there to ask."""
    if any(os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON") for name in ("HF_HUB_OFFLINE",)):
        return False
    if os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or HUB)
    try:
        socket.create_connection((hub.hostname, hub.port or 443), timeout=HUB_S).close()
    except OSError:
        return False
    return True


# ---------------------------------------------------------------- from images to a file


def write_config(
    images: str,
    out: Path | None,
    classes_file: str | None,
    teacher: str | None,
    machine: Machine,
    ask: Callable[[str], str] | None,
    say: Callable[[str], None],
) -> Path:
    """Look at images, and write a config for them.

    Args:
        images: Folder or file, as a command line has it.
        out: The config; None: the folder's name, here. Never overwritten.
        classes_file: A file of class names, or None.
        teacher: ``local-dir:FOLDER``, ``hf-hub:ORG/REPO`` or an open_clip name; None: one that is downloaded.
        machine: What there is to work with.
        ask: Puts a question to a person; None where nobody is.
        say: Told what was found.

    Raises:
        UserError: The file is there; nothing of the images can be read; the classes are not known and nobody can be
            asked.
    """
    place = Place.of(images)
    name = place.name.partition(".")[0] or "images"
    out = Path(out or f"{name}.yaml").absolute()
    if os.path.lexists(out):
        raise UserError(f"{out} exists; give another --out, nothing is overwritten")
    given: Any = os.path.abspath(classes_file) if classes_file else None
    names = list(class_list(given, None)) if given else None
    found = survey(place.uri, names)
    if found.classes is None:
        given = asked_for(place, ask)
        found = survey(place.uri, list(class_list(given, None)))
    found.classes = list(class_list(found.classes, None))
    for line in found.lines:
        say(line)
    say(f"{len(found.classes)} classes: {few(found.classes)}")
    say(f"this machine: {machine}")
    folder = str(out.parent)
    text = config_text(name, found, given, teacher, machine, folder)
    config = load(read_yaml(text, str(out)), folder=folder)  # what is written can be read
    model = config.teacher.open_clip_name
    if model.startswith("local-dir:"):
        check_folder(config.teacher, model.removeprefix("local-dir:"))
    if teacher is None and not machine.hub:
        say("the teacher must come from elsewhere, as no model hub is in reach: give --teacher, or see the config")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}; give another --out") from error
    return out


def asked_for(place: Place, ask: Callable[[str], str] | None) -> list[str] | str:
    """Class names from a person: a list, or the path of a file of them."""
    if ask is None:
        raise UserError(
            f"the classes of {place} are not known: give --classes FILE, a text file with one class name a line"
        )
    try:
        answer = ask("Class names, with commas between them, or a file with one a line: ").strip()
    except EOFError:
        answer = ""
    if "," not in answer:
        return os.path.abspath(os.path.expanduser(answer)) if answer else []
    return [name.strip() for name in answer.split(",") if name.strip()]


def config_text(
    name: str, found: Survey, classes: list[str] | str | None, teacher: str | None, machine: Machine, folder: str
) -> str:
    """The config, with comments. Relative paths where what they lead to lies below the config's folder."""
    simulated = found.labeled
    budget = budget_for(found, simulated)
    sources = {"pool": found.pool, **found.others}
    has_test, has_val = (split in found.others or split in found.splits for split in ("test", "val"))
    student = student_for(found, machine)
    lines = [
        f"# Of {found.pool['path']}:",
        *(f"#   {line}" for line in found.lines),
        f"# For {machine}.",
        "# Relative paths begin at this file's folder. python -m raykd.config lists every field and its meaning.",
        "",
        yaml_line("storage_path", f"runs/{name}", "all that the campaign makes; another folder begins anew"),
        yaml_line("rounds", ROUNDS, "trainings; labels are asked for before each"),
        "# goal: 0.9  # accuracy that is enough: the report says when it is reached for sure",
    ]
    if isinstance(classes, str):
        lines += [yaml_line("classes", relative(classes, folder), "one a line; what the teacher looks for")]
    elif classes or found.pool["format"] != "class_folders":
        lines += [yaml_line("classes", list(found.classes or []), "what the teacher looks for")]
    else:
        lines += ["# classes: the names of the class folders"]
    for part, source in sources.items():
        lines.append(yaml_line(part, {**source, "path": relative(source["path"], folder)}))
    if simulated:
        lines += [] if has_test else [yaml_line("test_share", TEST_SHARE, "of the images, set aside to measure on")]
        lines += [] if has_val else [yaml_line("val_share", VAL_SHARE, "set aside to tune on")]
    elif not has_test:
        lines += [
            "# Without labeled test images a fifth of each round's labels measures the student (labels.audit_share).",
            "# With them, a folder a class would do, all labels are learned from:",
            f"# test: {{path: {name}-test, format: class_folders}}",
        ]
    lines += ["", "teacher:  # sees every image once", *teacher_lines(teacher, machine, folder)]
    lines += ["", "student:  # the small model", *student]
    lines += [
        "",
        "selection:",
        yaml_line("  strategy", "pcoreset"),
        yaml_line("  budget", budget, f"picks a round, of {found.num_images:,} images"),
        "",
        "labels:",
    ]
    if simulated:
        lines += [
            yaml_line(
                "  oracle", "simulated", "the data's own labels answer; with people: oracle: people, start: none"
            ),
            yaml_line("  start", "one_per_class"),
        ]
    else:
        lines += [
            yaml_line("  oracle", "people", "they fill in tasks.csv"),
            yaml_line("  start", "none", "the teacher's picks"),
            "  # price: 0.05  # of one label: what a point of accuracy costs",
        ]
    return "\n".join(lines) + "\n"


def yaml_line(key: str, value: Any, meaning: str = "") -> str:
    """A line of YAML."""
    shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9)
    shown = shown.removesuffix("\n").removesuffix("\n...")
    return f"{key}: {shown}" + (f"  # {meaning}" if meaning else "")


def relative(path: str, folder: str) -> str:
    """A path as the config has it: relative when it is below its folder."""
    if "://" in path or not Path(path).is_relative_to(folder):
        return path
    return os.path.relpath(path, folder)


# ---------------------------------------------------------------- sensible values


def budget_for(found: Survey, simulated: bool) -> int:
    """Some of each class, an hour's work for one person, and not more than half of the pool in all rounds."""
    num_classes, num_images = len(found.classes or []), found.num_images
    if simulated:
        num_images = int(num_images * (1 - TEST_SHARE - VAL_SHARE)) - num_classes
    return max(1, min(max(20, 2 * num_classes), num_images // (2 * ROUNDS)))


def teacher_lines(teacher: str | None, machine: Machine, folder: str) -> list[str]:
    lines, templates = [], "simple"
    if teacher is None:
        templates = "imagenet_80"
        if not machine.hub:
            lines += [
                "  # No model hub is in reach, so this one cannot be downloaded now. Give a checkpoint file as",
                "  # pretrained, or local-dir:FOLDER as model: a folder with open_clip_config.json and the weights.",
            ]
        lines += [yaml_line(f"  {key}", value) for key, value in TEACHER.items()]
    elif teacher.startswith("local-dir:"):
        path = os.path.abspath(os.path.expanduser(teacher.removeprefix("local-dir:")))
        lines += [yaml_line("  model", f"local-dir:{relative(path, folder)}")]
    else:
        model, _, pretrained = teacher.partition("/") if not teacher.startswith("hf-hub:") else (teacher, "", "")
        lines += [yaml_line("  model", model), *([yaml_line("  pretrained", pretrained)] if pretrained else [])]
    lines.append(yaml_line("  templates", templates, "the sentences that a class name is put into"))
    if machine.memory_gib < 8:
        lines.append(yaml_line("  batch_size", 16, "little memory"))
    if machine.gpus:
        lines += [yaml_line("  num_gpus", 1), yaml_line("  replicas", machine.gpus), yaml_line("  precision", "fp16")]
    else:
        lines.append(yaml_line("  num_cpus", threads(machine), "threads; the other cores decode images"))
    return lines


def student_for(found: Survey, machine: Machine) -> list[str]:
    """The size by that of the images; smaller where no GPU is."""
    side = median(min(size) for size in found.sizes)
    largest = 224 if machine.gpus else 128
    image_size = next(size for size in (64, 96, 128, 160, 224) if size >= min(side, largest))
    if machine.hub:
        pretrained = yaml_line("  pretrained", True, "timm's weights, downloaded once")
    else:
        pretrained = yaml_line(
            "  pretrained", False, "no model hub is in reach; timm's weights from a file would do better"
        )
    lines = [
        yaml_line("  backbone", BACKBONE, "any timm model"),
        pretrained,
        yaml_line("  image_size", image_size, f"the images' short side is {side:g} pixels, half of them more"),
        yaml_line("  passes_labeled", 200, "through the labeled images"),
    ]
    if machine.gpus:
        return [*lines, yaml_line("  num_gpus", 1), yaml_line("  loader_processes", min(8, max(1, machine.cores - 1)))]
    return [*lines, yaml_line("  num_cpus", min(8, max(threads(machine), machine.cores - 1)), "threads")]


def threads(machine: Machine) -> int:
    return max(min(2, machine.cores), machine.cores // 2)


def python() -> str:
    """How this Python is called in this shell."""
    if (found := shutil.which("python")) and os.path.samefile(os.path.dirname(found), os.path.dirname(sys.executable)):
        return "python"
    path = os.path.relpath(sys.executable)
    return sys.executable if path.startswith("..") else path


def next_steps(out: Path, argv0: Sequence[str]) -> list[str]:
    """The commands to run next, as they can be pasted."""
    jobs, config = Path(os.path.relpath(argv0[0])).parent, os.path.relpath(out)
    return [shlex.join([python(), str(jobs / job), config]) for job in ("active_round.py", "status.py")]
