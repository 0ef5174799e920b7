"""One validated configuration for a campaign: YAML in, dotted overrides on the command line, presets in code.

``python -m raykd.config`` prints every field with its default and meaning. A field marked *free* may change between
runs of one campaign (resources, how progress is shown, how many rounds); any other change is refused, by name.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict

from raykd.algo.selection.near_duplicates import Cap
from raykd.algo.selection.strategies import STRATEGIES, known_strategy
from raykd.errors import UserError

FREE: JsonDict = {"free": True}
Share = Annotated[float, Field(ge=0, le=1)]
Area = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _rising(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    if pair[0] > pair[1]:
        raise UserError("expected [smaller, larger]")
    return pair


def _part_or_whole(number: float) -> float:
    if number > 1 and number != int(number):
        raise UserError("Ray gives out a part of one GPU or whole ones; expected at most 1, or a whole number")
    return number


Gpus = Annotated[float, Field(ge=0), AfterValidator(_part_or_whole)]
Replicas = Count | Annotated[tuple[Count, Count], AfterValidator(_rising)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_min_length=1)

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's ``yes``, ``on`` and ``true`` would count as 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (annotation, *get_args(annotation)):
            raise UserError("true and false (yes, no, on, off) have no meaning here")
        return value


class Source(Section):
    """Where images lie."""

    path: str = Field(description="Folder, Parquet file or folder of them; local, s3:// or gs://")
    format: Literal["images", "class_folders", "parquet", "coop_split"] = Field(
        description="images: a folder, any depth, no labels; class_folders: one folder a class; parquet: encoded bytes "
        "or URIs; coop_split: images under path, split by a CoOp-style JSON (split_file)"
    )
    id_column: str = Field("sample_id", description="parquet: the user's own id, string, all different")
    image_column: str | None = Field("image", description="parquet: encoded image bytes; null when uri_column is used")
    uri_column: str | None = Field(None, description="parquet: path or URI of each image, instead of image_column")
    label_column: str | None = Field(None, description="parquet: the label (see label_values); null: no labels")
    split_column: str | None = Field(None, description="parquet: pool (or train), val, test; null: all pool")
    split_file: str | None = Field(None, description="coop_split: the JSON with lists train, val, test")
    label_values: list[str] | Literal["sorted"] | None = Field(
        None,
        description="The labels as they stand in the data, in the order of classes; 'sorted': the data's own values, "
        "sorted; null: they are the class names",
    )
    limit: Count | None = Field(None, description="Use a random subset of this many pool images; null: all")

    @model_validator(mode="after")
    def _fits_format(self) -> Source:
        if self.format == "parquet" and (self.image_column is None) == (self.uri_column is None):
            raise UserError("format parquet needs exactly one of image_column and uri_column (set the other to null)")
        if (self.format == "coop_split") != (self.split_file is not None):
            raise UserError("split_file is for format coop_split, which needs it")
        for name in ("id_column", "image_column", "uri_column", "label_column", "split_column"):
            if self.format != "parquet" and getattr(self, name) != type(self).model_fields[name].default:
                raise UserError(f"{name} is for format parquet; format {self.format} would not look at it")
        return self


class Teacher(Section):
    """The vision-language model that scores every image once."""

    model: str = Field(
        description="open_clip name (ViT-B-32), local-dir:<folder> or hf-hub:<org/repo>; {raykd} is raykd's own folder"
    )
    pretrained: str | None = Field(None, description="open_clip tag (openai, ...) or a local checkpoint file")
    model_config_file: str | None = Field(None, description="An open_clip model config (JSON) that defines `model`")
    templates: str | list[str] = Field(
        "simple", description="Name of a template set (raykd/algo/prompts.py) or templates with {} for the class"
    )
    batch_size: Count = Field(64, description="Images in one forward pass")
    precision: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="Number format of the image tower")
    replicas: Replicas = Field(1, description="Actors: a number, or [min, max]", json_schema_extra=FREE)
    num_cpus: float = Field(1, gt=0, description="CPUs of each replica", json_schema_extra=FREE)
    num_gpus: Gpus = Field(0, description="GPUs of each replica, a part of one allowed", json_schema_extra=FREE)

    @model_validator(mode="after")
    def _weights_come_from_one_place(self) -> Teacher:
        if self.pretrained and self.model.startswith(("local-dir:", "hf-hub:")):
            raise UserError(f"model {self.model!r} brings its own weights; pretrained would not be used, leave it out")
        return self

    @property
    def open_clip_name(self) -> str:
        """``model`` as open_clip takes it; raykd's folder differs from job to job, a campaign's config does not."""
        return self.model.replace("{raykd}", str(Path(__file__).parent))


class Student(Section):
    """The compact dual-head model and its training (DHO)."""

    backbone: str = Field(description="timm model name")
    pretrained: bool | str = Field(True, description="true: timm's weights; a path: that file; false: random weights")
    image_size: Count = Field(224, description="Side of the square the student sees, pixels")
    batch_labeled: Count = Field(64, description="Labeled images a step, all workers together")
    batch_unlabeled: Count = Field(64, description="Unlabeled images a step, all workers together")
    steps: Count | None = Field(None, description="Training steps; or give one of the next two")
    passes_labeled: Count | None = Field(None, description="Steps = this x ceil(labels / batch_labeled)")
    passes_unlabeled: Count | None = Field(None, description="Steps = this x floor(unlabeled / batch_unlabeled)")
    forward: Literal["separate", "stacked"] = Field(
        "separate", description="Labeled and unlabeled images in two forward passes (two BatchNorm statistics) or one"
    )
    loss_ce_weight: Share = Field(0.5, description="w: weight of cross-entropy against distillation (lambda in DHO)")
    distill_temperature: float = Field(2.0, gt=0, description="T: softens teacher and student in the KD loss")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, peak")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW")
    warmup: Share = Field(0.1, description="Share of the steps with a rising learning rate")
    schedule: Literal["linear", "cosine", "constant"] = Field("linear", description="After the warm-up, down to 0")
    crop_area: Annotated[tuple[Area, Area], AfterValidator(_rising)] = Field(
        (0.5, 1.0), description="Area of the random training crop, share of image"
    )
    flip: bool = Field(True, description="Random horizontal flips")
    interpolation: Literal["bilinear", "bicubic"] = Field("bilinear", description="Of all resizing")
    predict_batch_size: Count = Field(256, description="Images in one forward pass when predicting")
    checkpoints: Count = Field(4, description="Checkpoints during a training (a killed one goes on from the last)")
    num_workers: Count = Field(1, description="Ray Train workers; BatchNorm sees each one's share, so it is not free")
    loader_processes: int = Field(0, ge=0, description="DataLoader processes per worker", json_schema_extra=FREE)
    predict_replicas: Replicas = Field(1, description="Actors of the predict stage", json_schema_extra=FREE)
    num_cpus: float = Field(1, gt=0, description="CPUs of each worker and each predict replica", json_schema_extra=FREE)
    num_gpus: Gpus = Field(0, description="GPUs of each worker and each predict replica", json_schema_extra=FREE)
    max_failures: int = Field(3, ge=-1, description="Restarts of a training; -1: no limit", json_schema_extra=FREE)

    @model_validator(mode="after")
    def _one_length(self) -> Student:
        given = [k for k in ("steps", "passes_labeled", "passes_unlabeled") if getattr(self, k) is not None]
        if len(given) != 1:
            raise UserError(f"give exactly one of steps, passes_labeled, passes_unlabeled; given: {given or 'none'}")
        for name in ("batch_labeled", "batch_unlabeled"):
            if getattr(self, name) % self.num_workers:
                raise UserError(f"{name}={getattr(self, name)} does not divide over num_workers={self.num_workers}")
        return self


class Mixture(Section):
    """How the two heads are mixed at inference."""

    ce_weight: Share = Field(0.5, description="Share of the CE head (alpha in DHO, 1 - alpha in PCoreSet)")
    temperature: float = Field(1.0, gt=0, description="Divides the KD logits (beta in both papers)")
    search: bool = Field(True, description="Search both each round on the validation split, when there is one")


class Selection(Section):
    """What to label next."""

    strategy: str = Field("pcoreset", description=f"One of: {', '.join(sorted(STRATEGIES))}; or an installed plug-in")
    budget: Count | None = Field(None, description="Picks a round; null: as many as there are classes")
    mixture: Literal["round"] | tuple[Share, Annotated[float, Field(gt=0)]] = Field(
        "round", description="Probabilities to select in: the round's own mixture, or fixed [ce_weight, temperature]"
    )
    max_duplicates: Count | None = Field(None, description="Picks that may be near-duplicates of each other; null: any")
    duplicate_cosine: float | None = Field(
        None, gt=0, le=1, description="Near-duplicates: from this cosine of the vectors on; null: equal vectors"
    )
    duplicate_column: Literal["features", "probs"] = Field("features", description="The vectors that are compared")
    precision: Literal["fp32", "fp16"] = Field("fp32", description="fp16: vectors rounded, in half the memory")
    shards: Count = Field(2, description="Ray actors that hold the pool's vectors", json_schema_extra=FREE)
    memory_gib: float | None = Field(
        None, gt=0, description="GiB of vectors from which on a shard maps them from a file", json_schema_extra=FREE
    )
    num_cpus: float = Field(0.5, gt=0, description="CPUs of each shard", json_schema_extra=FREE)
    num_gpus: Gpus = Field(0, description="GPUs of each shard, a part of one allowed", json_schema_extra=FREE)

    @field_validator("strategy")
    @classmethod
    def _known(cls, name: str) -> str:
        known_strategy(name)
        return name

    @model_validator(mode="after")
    def _cosine_has_a_limit(self) -> Selection:
        if self.duplicate_cosine is not None and self.max_duplicates is None:
            raise UserError("duplicate_cosine says which picks are near-duplicates; give max_duplicates, their limit")
        return self

    @property
    def cap(self) -> Cap | None:
        """``max_duplicates`` and what belongs to it, as selection takes it."""
        if self.max_duplicates is None:
            return None
        return Cap(limit=self.max_duplicates, cosine=self.duplicate_cosine, column=self.duplicate_column)


class Labels(Section):
    """Where labels come from."""

    oracle: Literal["simulated", "people"] = Field(
        "people", description="simulated: the manifest's labels; people: files in the answers folder"
    )
    start: Literal["one_per_class", "given", "none"] = Field(
        "none", description="First labels: one of each class (simulated only), those in `given`, or none (cold start)"
    )
    given: str | None = Field(None, description="start: given: CSV, JSONL or Parquet with sample_id and label")
    answers: str | None = Field(
        None, description="Folder of people's label files; null: answers/ in storage_path", json_schema_extra=FREE
    )
    min_answered: Share = Field(
        1.0, description="Share of a round's picks to be answered first", json_schema_extra=FREE
    )

    @model_validator(mode="after")
    def _start_is_possible(self) -> Labels:
        if self.start == "one_per_class" and self.oracle != "simulated":
            raise UserError("start: one_per_class needs oracle: simulated; with people, use start: none or given")
        if (self.start == "given") != (self.given is not None):
            raise UserError("labels.given is the file for start: given, which needs it")
        return self


class Config(Section):
    """A whole campaign."""

    storage_path: str = Field(
        description="The campaign's folder: local, shared disk, s3:// or gs://", json_schema_extra=FREE
    )
    seed: int = Field(0, ge=0, description="Of every random draw")
    rounds: Count = Field(5, description="Trainings; a label round before each", json_schema_extra=FREE)
    classes: list[str] | str | None = Field(
        None, description="Class names, a text file with one a line, or null: the names of the class folders"
    )
    pool: Source
    test: Source | None = Field(None, description="Labeled images to measure on, when not split off the pool")
    val: Source | None = Field(None, description="Labeled images to tune on, when not split off the pool")
    test_share: Share = Field(0.0, description="Share of a labeled pool set aside as test")
    val_share: Share = Field(0.0, description="Share of a labeled pool set aside as val")
    max_bad_share: Share = Field(0.05, description="Unreadable images the campaign bears", json_schema_extra=FREE)
    teacher: Teacher
    student: Student
    mixture: Mixture = Mixture()
    selection: Selection = Selection()
    labels: Labels = Labels()
    local_cpus: Count | None = Field(
        None,
        description="Logical CPUs of a Ray that raykd starts itself; null: cores, at least 4",
        json_schema_extra=FREE,
    )
    stall_s: float = Field(
        1800, gt=0, description="Stop when a Ray Data stage does nothing for so long", json_schema_extra=FREE
    )
    progress: Literal["auto", "bar", "lines", "none"] = Field(
        "auto", description="auto: bar on a terminal", json_schema_extra=FREE
    )

    @model_validator(mode="after")
    def _sets_are_given_once(self) -> Config:
        for name in ("test", "val"):
            if getattr(self, name) is not None and getattr(self, f"{name}_share"):
                raise UserError(f"give {name} or {name}_share, not both")
        if self.test_share + self.val_share >= 1:
            raise UserError(
                f"test_share + val_share = {self.test_share + self.val_share}; nothing is left to pick from"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """The fields that may not change during a campaign: all but the free ones."""
        return _identity(self)


def _identity(section: BaseModel) -> dict[str, Any]:
    kept = {}
    for name, spec in type(section).model_fields.items():
        extra = spec.json_schema_extra
        if isinstance(extra, dict) and extra.get("free"):
            continue
        value = getattr(section, name)
        kept[name] = _identity(value) if isinstance(value, BaseModel) else section.model_dump(mode="json")[name]
    return kept


# ---------------------------------------------------------------- YAML and the command line


def load(values: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A checked config from plain values and ``key.sub=value`` overrides (values are read as YAML).

    Raises:
        ValueError: One line for each thing that is wrong; an unknown key with the nearest known one.
    """
    for override in overrides:
        key, mark, text = override.partition("=")
        if not mark:
            raise UserError(f"--set {override!r}: expected key.sub=value, such as selection.budget=100")
        target = values
        *parents, last = key.split(".")
        for parent in parents:
            if not isinstance(target.get(parent), dict):
                target[parent] = {}
            target = target[parent]
        try:
            target[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--set {override!r}: the value is not YAML: {' '.join(str(error).split())}") from None
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(problem) for problem in error.errors())) from None


def load_file(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """A checked config from a YAML file.

    Raises:
        ValueError: The file is missing, not YAML, not a mapping, or anything in it is wrong.
    """
    try:
        values = yaml.safe_load(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"no config file {os.fspath(path)!r}; give a YAML file or --preset NAME") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read config file {os.fspath(path)!r}: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{os.fspath(path)} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{os.fspath(path)} holds {type(values).__name__}; expected keys and values")
    return load(values, overrides)


def load_preset(name: str, overrides: Sequence[str] = ()) -> Config:
    """A checked config from one of :data:`PRESETS`."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
    return load(PRESETS[name](), overrides)


NO_KEY = re.compile(r"str|bool|.*[\[-].*")  # how pydantic names the options of a union: tuple[...], constrained-int


def _explain(problem: Any) -> str:
    path = [str(part) for part in problem["loc"] if not NO_KEY.fullmatch(str(part))]
    where = ".".join(path) or "config"
    if problem["type"] != "extra_forbidden":
        message = problem["msg"].removeprefix("Value error, ")
        given = problem["input"]
        shown = "" if problem["type"] == "missing" or isinstance(given, (dict, BaseModel)) else f" (given: {given!r})"
        return f"{where}: {message}{shown}"
    known = fields_at(path[:-1])
    near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
    return f"{where}: unknown key; {hint}"


def fields_at(path: Sequence[str]) -> list[str]:
    """The names of the fields in the section at a path of keys."""
    model: Any = Config
    for part in path:
        model = section_of(model.model_fields[part].annotation)
    return list(model.model_fields)


def from_command_line(arguments: Sequence[str] | None = None) -> Config:
    """``CONFIG.yaml`` or ``--preset NAME``, then any number of ``--set key.sub=value ...``."""
    parser = argparse.ArgumentParser(description="Run an active-learning campaign, or go on with one.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the campaign's configuration")
    what.add_argument("--preset", choices=sorted(PRESETS), help="a configuration that comes with raykd")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key.sub=value",
        help="overrides; python -m raykd.config lists all",
    )
    given = parser.parse_args(arguments)
    if not given.preset:
        return load_file(given.config, given.set)
    config = load_preset(given.preset, given.set)
    if given.preset == "demo" and config.pool.path == demo()["pool"]["path"]:  # any other file is the user's own
        from raykd.demo import digits

        digits.write_pool(config.pool.path)
    return config


# ---------------------------------------------------------------- presets


def demo() -> dict[str, Any]:
    """Handwritten digits and a small teacher, both shipped: ``python jobs/active_round.py --preset demo``.

    1,247 images to pick from, 400 to test on, 150 to tune on; the teacher has only ever seen drawn glyphs. Three
    rounds, 10 + 20 + 20 labels, in about 2 minutes on 2 quiet cores; README.md shows the table it ends with.
    """
    from raykd.demo import digits

    cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
    return {
        "storage_path": "runs/demo",
        "rounds": 3,
        "classes": list(digits.CLASSES),
        "pool": {
            "path": str(cache / "raykd" / "digits.parquet"),
            "format": "parquet",
            "label_column": "label",
            "split_column": "split",
        },
        "teacher": {"model": "local-dir:{raykd}/demo/teacher", "templates": list(digits.TEMPLATES), "batch_size": 128},
        "student": {
            "backbone": "test_resnet",
            "pretrained": False,
            "image_size": 32,
            "steps": 100,
            "learning_rate": 2e-3,
            "batch_labeled": 32,
            "crop_area": [0.7, 1.0],
            "flip": False,
            "interpolation": "bicubic",
            "checkpoints": 1,
            "loader_processes": 1,
        },
        "selection": {"strategy": "pcoreset", "budget": 20, "shards": 2},
        "labels": {"oracle": "simulated", "start": "one_per_class"},
    }


def caltech101() -> dict[str, Any]:
    """ActiveKD on Caltech101 as the paper's code runs it: ResNet-18, CLIP RN50, 16 trainings, 100 to 1,600 labels.

    ``python jobs/active_round.py --preset caltech101 --set pool.path=DIR pool.split_file=DIR/split_zhou_Caltech101.json
    classes=CLASSES.txt``. One 8 GB GPU. Not run here (no data, no GPU): 44,000 training steps of 64 + 64 images.

    Departures from the reference: the teacher sees one clean view of each image, computed once, not every augmented
    one, and in fp32 (theirs fp16); labeled draws are uniform (theirs weigh the first samples more, by padding); the
    start set is drawn by key; ties go to the smaller id.
    """
    return {
        "storage_path": "runs/caltech101",
        "rounds": 16,
        "pool": {
            "path": "caltech-101/101_ObjectCategories",
            "format": "coop_split",
            "split_file": "split_zhou_Caltech101.json",
        },
        "teacher": {"model": "RN50-quickgelu", "pretrained": "openai", "templates": "caltech101", "num_gpus": 1},
        "student": {
            "backbone": "resnet18.tv_in1k",
            "passes_labeled": 200,
            "num_gpus": 1,
            "num_cpus": 4,
            "loader_processes": 4,
        },
        "mixture": {"search": False},
        "selection": {"strategy": "pcoreset"},
        "labels": {"oracle": "simulated", "start": "one_per_class"},
    }


def imagenet() -> dict[str, Any]:
    """ActiveKD on ImageNet as the paper's code runs it: DINO ResNet-50, CLIP RN50, 8 trainings, 1,000 to 8,000 labels.

    ``python jobs/active_round.py --preset imagenet --set pool.path=DIR/train test.path=DIR/val
    student.pretrained=dino_resnet50_pretrain.pth``. Four GPUs. Not run here (no data, no GPU): 8 trainings of 20
    passes over 100,000 images; the paper's authors took about 8 h for one over all of ImageNet on four RTX 4090.

    Departures from the reference: one clean teacher view, computed once; the pool is scored on clean crops; every
    round trains 20 passes (theirs silently 50 in the last); the start's 1,000 labels are among the 100,000; labeled
    draws are uniform (theirs take the labeled images in turn); the teacher is fp32 (theirs fp16).
    """
    from open_clip import IMAGENET_CLASSNAMES

    folders: dict[str, Any] = {"format": "class_folders", "label_values": "sorted"}
    return {
        "storage_path": "runs/imagenet",
        "rounds": 8,
        "classes": list(IMAGENET_CLASSNAMES),
        "pool": {"path": "imagenet/train", "limit": 100_000, **folders},
        "test": {"path": "imagenet/val", **folders},
        "teacher": {
            "model": "RN50-quickgelu",
            "pretrained": "openai",
            "templates": "imagenet_7",
            "num_gpus": 1,
            "replicas": 4,
        },
        "student": {
            "backbone": "resnet50",
            "pretrained": "dino_resnet50_pretrain.pth",
            "batch_labeled": 256,
            "batch_unlabeled": 256,
            "passes_unlabeled": 20,
            "forward": "stacked",
            "warmup": 0.0,
            "schedule": "cosine",
            "interpolation": "bicubic",
            "num_workers": 4,
            "predict_replicas": 4,
            "num_gpus": 1,
            "num_cpus": 8,
            "loader_processes": 8,
        },
        "mixture": {"ce_weight": 0.4, "temperature": 0.5, "search": False},
        "selection": {"strategy": "pcoreset", "budget": 1000, "mixture": [0.5, 1.0], "shards": 8},
        "labels": {"oracle": "simulated", "start": "one_per_class"},
    }


PRESETS: dict[str, Callable[[], dict[str, Any]]] = {"demo": demo, "caltech101": caltech101, "imagenet": imagenet}


# ---------------------------------------------------------------- every field, for people


def describe(section: type[Section] = Config, prefix: str = "") -> Iterator[str]:
    """One line a field: dotted name, default, whether it is free, meaning."""
    for name, spec in section.model_fields.items():
        inner = section_of(spec.annotation)
        if inner and spec.default is None:  # test and val
            yield f"\n{prefix}{name}  [null]\n    {spec.description}; fields as in pool"
        elif inner:
            yield f"\n{prefix}{name}:  {(inner.__doc__ or '').splitlines()[0]}"
            yield from describe(inner, f"{prefix}{name}.")
        else:
            free = isinstance(spec.json_schema_extra, dict) and spec.json_schema_extra.get("free")
            default = "required" if spec.is_required() else yaml.safe_dump(spec.default, default_flow_style=True)
            first = default.split("\n")[0]  # safe_dump ends a plain value with "..."
            yield f"{prefix}{name}  [{first}{', free' if free else ''}]\n    {spec.description}"


def section_of(annotation: Any) -> type[Section] | None:
    options = getattr(annotation, "__args__", (annotation,))
    return next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)


if __name__ == "__main__":
    print("\n".join(describe()))
