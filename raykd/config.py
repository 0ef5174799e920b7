"""One validated configuration for a campaign: YAML in, dotted overrides on top.

``python -m raykd.config`` prints every field with its default, its meaning and until when it may change: a field is
free until a stage that depends on it is complete. Resources, and how progress is shown, are free at any time; what
decides which images there are is fixed once the pool is listed.

Relative paths in a file begin at its folder (``raykd/paths.py``); a field whose text is one is marked ``IsPath``.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.config import JsonDict
from pydantic.fields import FieldInfo

from raykd.algo.prompts import classes_of
from raykd.errors import UserError, did_you_mean
from raykd.paths import IsPath

if TYPE_CHECKING:
    from raykd.algo.selection.near_duplicates import Cap

# raykd's own, here again: the module that has them takes half a second to import, and a mistake should be told before
STRATEGY_NAMES = (
    *("badge", "class_balanced", "coreset", "entropy", "falcun", "farthest", "margin", "pcoreset", "probcover"),
    *("random", "spread", "typiclust", "uherding"),
)
STRATEGY_OPTIONS = {  # which strategies look at an option
    "gamma": ("falcun",),
    "score": ("spread",),
    "apart": ("spread",),
    "column": ("probcover", "spread", "typiclust", "uherding"),
    "delta": ("probcover",),
    "kernel_width": ("uherding",),
    "candidates": ("probcover", "uherding"),
}

TRACKERS = ("tensorboard", "mlflow", "wandb")
FROZEN, TEACHER = "frozen", "teacher"  # student.backbone of heads alone; student.features of the teacher's own

COMPLETE = {  # what is complete when a stage is
    "pool": "the pool is listed",
    "encode": "the images are encoded",
    "teacher": "a round's teacher is complete",
    "select": "a round's picks are complete",
    "label": "a round's labels are complete",
    "refit": "a round's teacher has learned from its labels",
    "train": "a round's training is complete",
    "predict": "a round's predictions are complete",
    "mix": "a round's mixture is complete",
}


def until(*stages: str, fixed: bool = False) -> JsonDict:
    """What depends on a field: these stages, in the order they run. ``fixed``: the same value in all rounds."""
    return {"stages": list(stages), "fixed": fixed}


FREE: JsonDict = until()
FIXED: JsonDict = until("pool", fixed=True)
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


def _known_strategy(name: str) -> str:
    known = {*STRATEGY_NAMES, *(point.name for point in entry_points(group="raykd.strategies"))}
    if name not in known:
        raise UserError(f"unknown strategy {name!r}; {did_you_mean(name, known)}")
    return name


def _known_trackers(given: str | list[str]) -> str | list[str]:
    for word in [given] if isinstance(given, str) else given:
        if word not in (known := ("none", *TRACKERS)):
            raise UserError(f"unknown tracker {word!r}; {did_you_mean(word, known)}")
    return given


def _number_as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _once_called_dual(heads: Any) -> Any:
    return "dho" if heads == "dual" else heads


def _once_only_grid(search: Any) -> Any:
    return "grid" if search is True else search


def _known_classes(given: Any) -> Any:
    if not isinstance(given, str):
        classes_of(given)
    return given


StrategyName = Annotated[str, AfterValidator(_known_strategy)]
Gpus = Annotated[float, Field(ge=0), AfterValidator(_part_or_whole)]
Replicas = Count | Annotated[tuple[Count, Count], AfterValidator(_rising)]
Format = Literal["images", "class_folders", "parquet", "webdataset", "list", "coop_split"]


def least(replicas: int | tuple[int, int]) -> int:
    """Of :data:`Replicas`."""
    return replicas if isinstance(replicas, int) else replicas[0]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_min_length=1)
    depends: ClassVar[JsonDict] = FIXED  # what depends on a field of the section that does not say it itself

    @field_validator("*", mode="before")
    @classmethod
    def _yes_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML's ``yes``, ``on`` and ``true`` would count as 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        values = value if isinstance(value, list) else [value]
        if bool not in (annotation, *get_args(annotation)) and any(isinstance(each, bool) for each in values):
            raise UserError("true and false (yes, no, on, off) have no meaning here; a name like that needs quotes")
        return value


AnySection = TypeVar("AnySection", bound=Section)

LOOKED_AT = {  # by each format that looks at columns
    "parquet": ("id_column", "image_column", "uri_column", "label_column", "split_column"),
    "list": ("id_column", "uri_column", "label_column", "split_column"),
    "webdataset": ("id_column", "image_column", "label_column"),
}


class Source(Section):
    """Where images lie."""

    path: Annotated[str, IsPath()] = Field(
        description="Folder, Parquet file, tar or list; local, s3:// or gs://. webdataset: also {000000..000099} in it"
    )
    format: Format = Field(
        description="images: a folder, any depth, no labels; class_folders: one folder a class; parquet: encoded bytes "
        "or URIs; webdataset: tars of images; list: a CSV, TSV or JSONL file of paths or URIs; coop_split: images "
        "under path, split by a CoOp-style JSON (split_file)"
    )
    id_column: str | None = Field(
        None,
        description="parquet: the user's own id, all different (left out: sample_id; null: the uri as it stands there, "
        "or else file and row); list: the same (null: the path as it stands there); webdataset: a key of the .json "
        "members (null: tar and key)",
    )
    image_column: str | None = Field(
        None,
        description="parquet: encoded image bytes (left out: image, unless uri_column is given); webdataset: which "
        "member is the image, such as left.jpg, where a key has several",
    )
    uri_column: str | None = Field(
        None,
        description="parquet: path or URI of each image, instead of image_column; list: the same (null: uri, path, "
        "file_name, ... whichever is there)",
    )
    label_column: str | None = Field(
        None,
        description="parquet, list: the label (see label_values), null: no labels; webdataset: a key of the .json "
        "members, null: the .cls members, where there are any",
    )
    split_column: str | None = Field(None, description="parquet, list: pool (or train), val, test; null: all pool")
    split_file: Annotated[str | None, IsPath()] = Field(
        None, description="coop_split: the JSON with lists train, val, test"
    )
    label_values: list[Annotated[str, BeforeValidator(_number_as_text)]] | Literal["sorted", "index"] | None = Field(
        None,
        description="The labels as they stand in the data, in the order of classes; 'sorted': the data's own values, "
        "sorted; 'index': numbers from 0 on; null: they are the class names",
    )
    limit: Count | None = Field(None, description="Use a random subset of this many pool images; null: all")

    @model_validator(mode="before")
    @classmethod
    def _usual_columns(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("format") == "parquet":
            image = {} if values.get("uri_column") else {"image_column": "image"}
            return {"id_column": "sample_id", **image, **values}
        return values

    @model_validator(mode="after")
    def _fits_format(self) -> Source:
        if self.format == "parquet" and (self.image_column is None) == (self.uri_column is None):
            raise UserError("format parquet needs exactly one of image_column and uri_column (set the other to null)")
        if (self.format == "coop_split") != (self.split_file is not None):
            raise UserError("split_file is for format coop_split, which needs it")
        for name in LOOKED_AT["parquet"]:
            if getattr(self, name) is not None and name not in LOOKED_AT.get(self.format, ()):
                formats = " and ".join(known for known, names in LOOKED_AT.items() if name in names)
                raise UserError(f"{name} is for format {formats}; format {self.format} would not look at it")
        if isinstance(self.label_values, list) and len(set(self.label_values)) < len(self.label_values):
            repeated = next(value for value in self.label_values if self.label_values.count(value) > 1)
            raise UserError(f"label_values has {repeated!r} more than once; expected one value for each class")
        return self


class ModelConfig(Section):
    """A vision-language model: which one, what it is asked, how it runs."""

    depends: ClassVar[JsonDict] = until("encode")
    called: ClassVar[Mapping[str, str]] = {  # in messages
        name: f"teacher.{name}" for name in ("model", "pretrained", "model_config_file")
    }

    model: Annotated[str | None, IsPath(after="local-dir:")] = Field(
        None,
        description="open_clip name (ViT-B-32), local-dir:<folder> or hf-hub:<org/repo>; {raykd} is raykd's own folder",
    )
    pretrained: Annotated[str | None, IsPath(or_name=True)] = Field(
        None, description="open_clip tag (openai, ...) or a local checkpoint file"
    )
    model_config_file: Annotated[str | None, IsPath()] = Field(
        None,
        description="An open_clip model config (JSON) that defines `model`; images are prepared as OpenAI's CLIP takes "
        "them (a model that wants another mean, std or resizing: local-dir, with a preprocess_cfg)",
    )
    templates: str | list[str] = Field(
        "simple",
        description="Name of a template set (raykd/algo/prompts.py) or templates with {} for the class",
        json_schema_extra=until("teacher"),
    )
    batch_size: Count = Field(64, description="Images in one forward pass")
    precision: Literal["fp32", "fp16", "bf16"] = Field("fp32", description="Number format of the image tower")
    replicas: Replicas = Field(1, description="Actors: a number, or [min, max]", json_schema_extra=FREE)
    num_cpus: float = Field(1, gt=0, description="CPUs of each replica", json_schema_extra=FREE)
    num_gpus: Gpus = Field(0, description="GPUs of each replica, a part of one allowed", json_schema_extra=FREE)

    @model_validator(mode="after")
    def _weights_come_from_one_place(self) -> ModelConfig:
        if self.pretrained and self.model and self.model.startswith(("local-dir:", "hf-hub:")):
            raise UserError(f"model {self.model!r} brings its own weights; pretrained would not be used, leave it out")
        return self

    @property
    def open_clip_name(self) -> str:
        """``model`` as open_clip takes it; raykd's folder differs from job to job, a campaign's config does not.

        Raises:
            UserError: There is none.
        """
        if self.model is None:
            raise UserError("model is missing; expected an open_clip name (ViT-B-32), local-dir:... or hf-hub:...")
        return self.model.replace("{raykd}", str(Path(__file__).parent))


class TowerConfig(ModelConfig):
    """A vision-language model whose image tower is the student's backbone."""

    called: ClassVar[Mapping[str, str]] = {"model": "student.backbone", "pretrained": "student.pretrained"}


class TeacherConfig(ModelConfig):
    """The vision-language model that sees every image once, and what it makes of its features and of labels."""

    rule: Literal["zero_shot", "gda", "proker", "tip", "tip_f", "clap", "auto", "table"] = Field(
        "zero_shot",
        description="zero_shot: texts alone; gda, proker, tip, tip_f, clap: learn from all labels so far, each round; "
        "auto: zero-shot until the labels speak for gda or proker; table: an opinion from elsewhere, no model",
        json_schema_extra=until("refit"),
    )
    table: Annotated[str | None, IsPath()] = Field(
        None,
        description="rule: table: Parquet, or a folder of it, with sample_id and probs or logits (in the order of the "
        "classes), or a column a class",
    )
    views: int = Field(
        0,
        ge=0,
        description="Random crops (student.crop_area, student.flip) of each labeled image that gda, tip_f and clap "
        "learn from; 0: the image as it is; GDA's own figures are of 10",
        json_schema_extra=until("refit"),
    )
    stat_a: bool = Field(
        False,
        description="Let the features of the whole pool move the classes, anchored to the texts (StatA)",
        json_schema_extra=until("refit"),
    )
    clap: Literal["published", "activekd"] = Field(
        "published",
        description="rule: clap: trained as its authors do, or as ActiveKD's code does",
        json_schema_extra=until("refit"),
    )

    @property
    def learns(self) -> bool:
        """Whether a round's labels, or its pool, change the opinion."""
        return self.rule not in ("zero_shot", "table") or self.stat_a

    @model_validator(mode="after")
    def _rule_has_what_it_needs(self) -> TeacherConfig:
        if self.rule != "table":
            if self.table:
                raise UserError(f"table is for rule: table, rule: {self.rule} would not look at it; change one of them")
            assert self.open_clip_name
            return self
        if not self.table:
            raise UserError("rule: table needs table, a Parquet file with sample_id and probs or logits")
        for name in ("stat_a", "views"):
            if getattr(self, name):
                raise UserError(f"{name} needs the teacher's features of images, which rule: table has not")
        return self


OPEN_CLIP = "open_clip:"  # what the names of such backbones begin with
USUAL_PREPROCESS = {"image_size": 224, "interpolation": "bilinear"}  # of timm backbones


class StudentConfig(Section):
    """The compact model and its training (DHO)."""

    depends: ClassVar[JsonDict] = until("train")

    backbone: Annotated[str, IsPath(after="open_clip:local-dir:")] = Field(
        description="timm model name; or the image tower of an open_clip model: open_clip:ViT-B-16, "
        "open_clip:local-dir:<folder>, open_clip:hf-hub:<org/repo>; or frozen: heads alone, on stored features"
    )
    features: str = Field(
        TEACHER,
        description="backbone: frozen: whose features: teacher, or a timm model name (of image_size, with the weights "
        "of pretrained)",
    )
    hidden: Count | None = Field(
        None, description="backbone: frozen: width of a hidden layer (GELU) under the heads; null: linear heads"
    )
    pretrained: Annotated[bool | str, IsPath(or_name=True)] = Field(
        True,
        description="true: timm's weights, or those of the folder or repo; an open_clip tag (openai, ...); a path: "
        "that file; false: random weights",
    )
    language_aware: bool = Field(
        False,
        description="open_clip: both heads begin as the class texts of the student's own text tower (teacher.templates)"
        ", and the KD head is a cosine (DHO 2.3)",
    )
    heads: Annotated[Literal["dho", "ce", "kd", "ce+kd"], BeforeValidator(_once_called_dual)] = Field(
        "dho",
        description="dho: one head learns from labels, one from the teacher; baselines with one head: ce (labels: no "
        "distillation), kd (teacher), ce+kd (both)",
    )
    image_size: Count | None = Field(
        None, description="Side of the square the student sees, pixels; null: 224, or what open_clip's model has"
    )
    batch_labeled: Count = Field(64, description="Labeled images a step, all workers together")
    batch_unlabeled: Count = Field(64, description="Unlabeled images a step, all workers together")
    steps: Count | None = Field(None, description="Training steps; or give one of the next two")
    passes_labeled: Count | None = Field(None, description="Steps = this x ceil(labels / batch_labeled)")
    passes_unlabeled: Count | None = Field(None, description="Steps = this x floor(unlabeled / batch_unlabeled)")
    forward: Literal["separate", "stacked"] = Field(
        "separate", description="Labeled and unlabeled images in two forward passes (two BatchNorm statistics) or one"
    )
    teacher_views: Literal["cached", "online"] | Count = Field(
        "cached",
        description="What the teacher looked at, of an image that is trained on. cached: one clean view of it, encoded "
        "once; a number: so many random crops of it, encoded once, and the student trains on just those; online: the "
        "very crop that the student trains on, at every step, as the papers' code does",
    )
    loss_ce_weight: Share = Field(0.5, description="w: weight of cross-entropy against distillation (lambda in DHO)")
    distill_temperature: float = Field(2.0, gt=0, description="T: softens teacher and student in the KD loss")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, peak")
    weight_decay: float = Field(1e-2, ge=0, description="AdamW")
    warmup: Share | None = Field(0.1, description="Share of the steps with a rising learning rate; or give the next")
    warmup_steps: int | None = Field(None, ge=0, description="Steps with a rising learning rate, instead of a share")
    schedule: Literal["linear", "cosine", "constant", "semi_supervised"] = Field(
        "linear",
        description="After the warm-up, down to 0; semi_supervised: DHO's with few labels of many images, a rise from "
        "0.01 times a cosine from the first step on, which rises again at the end",
    )
    crop_area: Annotated[tuple[Area, Area], AfterValidator(_rising)] = Field(
        (0.5, 1.0), description="Area of the random training crop, share of image"
    )
    flip: bool = Field(True, description="Random horizontal flips")
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="Of all resizing; null: bilinear, or what open_clip's model has"
    )
    predict_batch_size: Count = Field(
        256, description="Images in one forward pass when predicting", json_schema_extra=until("predict")
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="fp32, or mixed by autocast; fp16 needs GPUs"
    )
    channels_last: bool = Field(False, description="Weights in the memory format that GPUs convolve fastest in")
    compile: bool = Field(False, description="torch.compile: minutes at the start, faster steps on GPUs")
    accumulate: Count = Field(
        1, description="Parts in which a worker takes its share of a step, for less memory; BatchNorm sees a part"
    )
    checkpoints: Count = Field(4, description="Checkpoints during a training (a killed one goes on from the last)")
    checkpoint_s: float | None = Field(
        60, gt=0, description="And one when the last is so many seconds ago; null: none", json_schema_extra=FREE
    )
    num_workers: Replicas = Field(
        1,
        description="Ray Train workers: a number, or [min, max]: as many of them as the cluster has room for; batches "
        "are the same for any number",
    )
    sync_batchnorm: bool = Field(
        False, description="BatchNorm sees the whole batch; else the share of each worker, as in the papers' code"
    )
    loader_processes: int = Field(
        0, ge=0, description="Processes per worker that make batches; 0: a thread of its own", json_schema_extra=FREE
    )
    cache_gib: float = Field(
        2.0, ge=0, description="GiB of decoded images that each worker keeps", json_schema_extra=FREE
    )
    predict_replicas: Replicas = Field(1, description="Actors of the predict stage", json_schema_extra=FREE)
    num_cpus: float = Field(1, gt=0, description="CPUs of each worker and each predict replica", json_schema_extra=FREE)
    num_gpus: Gpus = Field(0, description="GPUs of each worker and each predict replica", json_schema_extra=FREE)
    max_failures: int = Field(
        3,
        ge=-1,
        description="Times that workers or nodes may be lost without a checkpoint in between; -1: no limit",
        json_schema_extra=FREE,
    )

    @model_validator(mode="before")
    @classmethod
    def _usual_preprocess(cls, values: Any) -> Any:
        if not isinstance(values, dict) or str(values.get("backbone")).startswith(OPEN_CLIP):
            return values
        return values | {name: usual for name, usual in USUAL_PREPROCESS.items() if values.get(name) is None}

    @model_validator(mode="before")
    @classmethod
    def _one_warmup(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("warmup_steps") is None:
            return values
        if values.get("warmup") is not None:
            raise UserError(
                f"give warmup (a share of the steps) or warmup_steps, not both; given: {values['warmup']} and "
                f"{values['warmup_steps']} (set the other to null)"
            )
        return values | {"warmup": None}

    @model_validator(mode="after")
    def _tower_has_what_it_needs(self) -> StudentConfig:
        name = self.backbone.removeprefix(OPEN_CLIP)
        if name == self.backbone:
            if self.language_aware:
                raise UserError(
                    "language_aware is for the image tower of an open_clip model (backbone: open_clip:ViT-B-16), whose "
                    f"text tower makes the heads; {name} has none"
                )
            return self
        if not name.removeprefix("local-dir:").removeprefix("hf-hub:"):
            raise UserError(f"backbone {self.backbone!r} names no model; expected one, such as open_clip:ViT-B-16")
        if isinstance(self.pretrained, str) and name.startswith(("local-dir:", "hf-hub:")):
            raise UserError(
                f"backbone {self.backbone!r} brings its own weights; pretrained {self.pretrained!r} would not be used: "
                "leave it out, or set it to false for random weights"
            )
        if self.language_aware and self.pretrained is False:
            raise UserError(
                "language_aware needs a text tower that has learned something; pretrained: false gives a random one"
            )
        return self

    @property
    def tower(self) -> TowerConfig | None:
        """The open_clip model whose image tower is the backbone; None of a timm backbone."""
        if not self.backbone.startswith(OPEN_CLIP):
            return None
        pretrained = self.pretrained if isinstance(self.pretrained, str) else None
        return TowerConfig(model=self.backbone.removeprefix(OPEN_CLIP), pretrained=pretrained)

    @model_validator(mode="after")
    def _one_length(self) -> StudentConfig:
        given = [k for k in ("steps", "passes_labeled", "passes_unlabeled") if getattr(self, k) is not None]
        if len(given) != 1:
            raise UserError(f"give exactly one of steps, passes_labeled, passes_unlabeled; given: {given or 'none'}")
        if self.steps and self.warmup_steps and self.warmup_steps >= self.steps:
            raise UserError(f"warmup_steps={self.warmup_steps} of steps={self.steps}; expected fewer")
        if self.heads == "ce" and self.teacher_views != "cached":
            raise UserError("heads: ce looks at no teacher, so teacher_views has no meaning; leave it out")
        parts = self.most_workers * self.accumulate
        batches = [self.batch_labeled] if self.heads == "ce" else [self.batch_labeled, self.batch_unlabeled]
        if sum(batches) < parts:
            raise UserError(
                f"{sum(batches)} images a step are too few for {self.most_workers} workers (num_workers) that take "
                f"them in {self.accumulate} parts (accumulate): each needs one at least, so give {parts} or more"
            )
        if self.sync_batchnorm and self.forward == "separate" and min(batches) < parts:
            raise UserError(
                f"sync_batchnorm waits for labeled and unlabeled images of each of {self.most_workers} workers "
                f"(num_workers) in {self.accumulate} parts (accumulate), and a batch has {min(batches)}; give {parts} "
                "or more, or forward: stacked"
            )
        if self.precision == "fp16" and not self.num_gpus:
            raise UserError("precision: fp16 needs GPUs (num_gpus); on CPUs take bf16 or fp32")
        return self

    @property
    def most_workers(self) -> int:
        return self.num_workers if isinstance(self.num_workers, int) else self.num_workers[1]

    @property
    def fits_one_process(self) -> bool:
        """Whether one process can train it: then it need not be a worker of Ray's, on one machine."""
        return self.most_workers == 1 or (least(self.num_workers) == 1 and not self.num_gpus)

    @model_validator(mode="after")
    def _frozen_has_what_it_needs(self) -> StudentConfig:
        if not self.is_frozen:
            for name, unasked in (("features", TEACHER), ("hidden", None)):
                if getattr(self, name) != unasked:
                    raise UserError(f"{name} is for backbone: {FROZEN}; backbone: {self.backbone} would not look at it")
        elif self.teacher_views != "cached":
            raise UserError(
                f"teacher_views: {self.teacher_views} are of augmented images, and backbone: {FROZEN} learns from one "
                "clean crop of each; leave it out"
            )
        elif self.features != TEACHER and self.pretrained is False:
            raise UserError(
                f"features: {self.features} are what a trained network sees; pretrained: false has none: give true "
                "(timm's weights) or a checkpoint file"
            )
        return self

    @property
    def is_frozen(self) -> bool:
        """Whether it is heads alone."""
        return self.backbone == FROZEN

    @property
    def network(self) -> str | None:
        """What sees images, by name; None: the teacher does, for a frozen student."""
        if not self.is_frozen:
            return self.backbone
        return None if self.features == TEACHER else self.features


class MixtureConfig(Section):
    """How the two heads are mixed at inference, and how sure the student then is."""

    depends: ClassVar[JsonDict] = until("mix")

    ce_weight: Share = Field(0.5, description="Share of the CE head (alpha in DHO, 1 - alpha in PCoreSet)")
    temperature: float = Field(1.0, gt=0, description="Divides the KD logits (beta in both papers)")
    search: Annotated[bool | Literal["grid", "random", "optuna"], BeforeValidator(_once_only_grid)] = Field(
        "grid",
        description="Search both each round, on the validation split or else on half of the audited images, where "
        "50 of these may choose: grid: the papers', or `points`; random: `trials` draws; optuna: `trials` that learn "
        "from each other; false: never",
    )
    objective: Literal["accuracy", "log_loss", "calibration"] = Field(
        "accuracy", description="What a mixture is chosen for; another than the default must win by a standard error"
    )
    points: list[tuple[Share, Annotated[float, Field(gt=0)]]] | None = Field(
        None,
        min_length=1,
        description="search: grid: pairs [ce_weight, temperature] to try; null: the papers' 147",
    )
    trials: Count | None = Field(None, description="search: random, optuna: mixtures to try; null: 100")
    calibrate: bool = Field(
        True, description="Fit the probabilities' temperature on the same images, where there are any"
    )

    @model_validator(mode="after")
    def _search_looks_at_it(self) -> MixtureConfig:
        for name, kinds in (("points", ("grid",)), ("trials", ("random", "optuna"))):
            if getattr(self, name) is not None and self.search not in kinds:
                how = "false" if self.search is False else self.search
                raise UserError(
                    f"{name} is for search: {' or '.join(kinds)}, search: {how} would not look at it; change one of "
                    "them"
                )
        return self


class StrategySection(Section):
    """A strategy, and what one may ask of it; null: its own default."""

    strategy: StrategyName = Field(
        "pcoreset", description=f"One of: {', '.join(STRATEGY_NAMES)}; or an installed plug-in"
    )
    balance: bool = Field(
        False,
        description="Serve the predicted class with the fewest labels first; not with class_balanced",
    )
    score: Literal["entropy", "margin", "random"] | None = Field(
        None, description="spread: which rows go first; null: margin"
    )
    apart: float | None = Field(
        None, ge=0, le=2, description="spread: the least distance of picks from each other and from labeled rows; "
        "null: 0.2, which over features is a cosine of 0.98",
    )  # fmt: skip
    column: Literal["features", "probs"] | None = Field(
        None,
        description="probcover, spread, typiclust, uherding: where distances are measured; null: features, of length 1",
    )
    delta: float | None = Field(
        None, gt=0, le=2, description="probcover: radius of a ball; null: 95 % of them are of one predicted class"
    )
    kernel_width: float | None = Field(
        None,
        gt=0,
        le=2,
        description="uherding: width of the kernel; null: smallest distance between labeled rows, or 1",
    )
    candidates: Count | None = Field(
        None, description="probcover, uherding: rows that may be picked; null: 4096, or four times the budget"
    )
    gamma: float | None = Field(
        None, ge=0, le=100, description="falcun: how sharply draws prefer uncertain and distant rows; null: 10"
    )

    @model_validator(mode="after")
    def _options_are_looked_at(self) -> StrategySection:
        for name in self.options:
            if self.strategy not in STRATEGY_OPTIONS[name]:
                raise UserError(
                    f"strategy {self.strategy!r} does not look at {name}; leave it out, or choose "
                    f"{' or '.join(STRATEGY_OPTIONS[name])}"
                )
        if self.balance and self.strategy == "class_balanced":
            raise UserError("strategy 'class_balanced' is balanced by itself; leave balance out")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """The strategy's options that are given, as selection takes them."""
        return {name: value for name in STRATEGY_OPTIONS if (value := getattr(self, name)) is not None}


class SelectionConfig(StrategySection):
    """What to label next."""

    depends: ClassVar[JsonDict] = until("select")

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

    @model_validator(mode="after")
    def _cosine_has_a_limit(self) -> SelectionConfig:
        if self.duplicate_cosine is not None and self.max_duplicates is None:
            raise UserError("duplicate_cosine says which picks are near-duplicates; give max_duplicates, their limit")
        return self

    @property
    def cap(self) -> Cap | None:
        """``max_duplicates`` and what belongs to it, as selection takes it."""
        from raykd.algo.selection.near_duplicates import Cap

        if self.max_duplicates is None:
            return None
        return Cap(limit=self.max_duplicates, cosine=self.duplicate_cosine, column=self.duplicate_column)


class StoreConfig(Section):
    """How all that lies on an object store is opened: pool, cache and campaign alike, by every process."""

    depends: ClassVar[JsonDict] = FREE

    endpoint: str | None = Field(
        None, description="S3: host:port or URL of a compatible store; null: Amazon's, or AWS_ENDPOINT_URL"
    )
    region: str | None = Field(None, description="S3: the buckets' region; null: AWS_REGION, else asked of S3")
    anonymous: bool = Field(False, description="No credentials, as public buckets want it")
    profile: str | None = Field(
        None, description="S3: a profile of the AWS files, which must then be on every node; null: AWS_PROFILE, ..."
    )
    checksums: bool = Field(
        True, description="S3: false for older compatible stores, which answer 411 or 501 to the checksums of a write"
    )


class LabelsConfig(Section):
    """Where labels come from."""

    depends: ClassVar[JsonDict] = until("label")

    oracle: Literal["simulated", "people"] = Field(
        "people", description="simulated: the manifest's labels; people: files in the answers folder"
    )
    start: Literal["one_per_class", "given", "none"] = Field(
        "none",
        description="First labels: one (or `shots`) of each class (simulated only), those in `given`, or none (cold "
        "start)",
        json_schema_extra=until("select"),
    )
    shots: Count = Field(
        1,
        description="start: one_per_class: images of each class; all of a class that has fewer",
        json_schema_extra=until("select"),
    )
    given: Annotated[str | None, IsPath()] = Field(
        None,
        description="start: given: a CSV, JSONL or Parquet file with sample_id and label; or the folder of another "
        "campaign, or of its ledger, whose labels are carried over; taken by the open round, once",
        json_schema_extra=until("select"),
    )
    renamed: dict[str, str] = Field(
        {}, description="Old class names and what they are called now; two that are called the same become one"
    )
    answers: Annotated[str | None, IsPath(lasting=True)] = Field(
        None, description="Folder of people's label files; null: answers/ in storage_path", json_schema_extra=FREE
    )
    min_answered: Share = Field(
        1.0, description="Share of a round's picks to be answered first", json_schema_extra=FREE
    )
    audit_share: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None,
        description="Share of each round's budget whose labels measure the student and train none: images drawn at "
        "random; null: 0.2 without labeled test images, else 0",
        json_schema_extra=until("select"),
    )
    audit_aside: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Share of the pool that they are drawn from, which no strategy is offered, set aside with the "
        "first of them; null: 0.05, up to 10,000 images, or more where the rounds would not have enough",
        json_schema_extra=until("select"),
    )
    price: float | None = Field(
        None, gt=0, description="Of one answer, in any currency: what a point of accuracy costs", json_schema_extra=FREE
    )

    @model_validator(mode="after")
    def _start_is_possible(self) -> LabelsConfig:
        if self.start == "one_per_class" and self.oracle != "simulated":
            raise UserError("start: one_per_class needs oracle: simulated; with people, use start: none or given")
        if self.shots > 1 and self.start != "one_per_class":
            raise UserError(f"shots is for start: one_per_class, start: {self.start} would not look at it")
        if (self.start == "given") != (self.given is not None):
            raise UserError("labels.given is the file or folder for start: given, which needs it")
        return self


Classes = Annotated[Annotated[list[Any] | dict[Any, Any] | str, AfterValidator(_known_classes)] | None, IsPath()]


class Config(Section):
    """A whole campaign."""

    storage_path: Annotated[str, IsPath(lasting=True, holds="campaign.json")] = Field(
        description="The campaign's folder: local, shared disk, s3:// or gs://", json_schema_extra=FREE
    )
    cache_path: Annotated[str | None, IsPath(lasting=True, holds="encode")] = Field(
        None,
        description="Folder where campaigns on one pool find each other's encoded images; null: inside storage_path",
        json_schema_extra=FREE,
    )
    seed: int = Field(
        0,
        ge=0,
        description="Of an experiment's repetition: picks, training",
        json_schema_extra=until("select", "train", fixed=True),
    )
    split_seed: int = Field(0, ge=0, description="Of the draws of test_share, val_share and limit")
    rounds: Count = Field(5, description="Trainings; a label round before each", json_schema_extra=FREE)
    goal: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description="Accuracy that is enough: report and log say when it is reached, and how sure that is",
        json_schema_extra=FREE,
    )
    classes: Classes = Field(
        None,
        description="Class names; or names and the texts that the teacher is asked instead ({cat: [tabby, tomcat], "
        "dog: []}, {cat: {texts: [...], descriptions: [whole prompts]}}); or a .txt, .json, .yaml, .csv or .tsv file "
        "of either; or null: the names of the class folders, or the labels",
        json_schema_extra=until("teacher"),
    )
    pool: Source
    test: Source | None = Field(None, description="Labeled images to measure on, when not split off the pool")
    val: Source | None = Field(None, description="Labeled images to tune on, when not split off the pool")
    test_share: Share = Field(0.0, description="Share of a labeled pool set aside as test")
    val_share: Share = Field(0.0, description="Share of a labeled pool set aside as val")
    decode: Literal["reduced", "exact"] = Field(
        "reduced",
        description="reduced: what will be shrunk is first brought to a half, a quarter or an eighth of its size, "
        "JPEGs while they are decoded, several times as fast; exact: never",
        json_schema_extra=until("encode", "train", "predict"),
    )
    max_bad_share: Share = Field(0.05, description="Unreadable images the campaign bears", json_schema_extra=FREE)
    teacher: TeacherConfig
    student: StudentConfig
    mixture: MixtureConfig = MixtureConfig()
    selection: SelectionConfig = SelectionConfig()
    labels: LabelsConfig = LabelsConfig()
    store: StoreConfig = StoreConfig()
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
    tracking: Annotated[str | list[str], AfterValidator(_known_trackers)] = Field(
        "none",
        description="Where each round's figures go besides metrics.jsonl: none, tensorboard, mlflow, wandb, or a list",
        json_schema_extra=FREE,
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

    @model_validator(mode="after")
    def _views_have_a_model(self) -> Config:
        if self.teacher.rule == "table" and self.student.teacher_views != "cached":
            raise UserError(
                f"student.teacher_views: {self.student.teacher_views} needs a model that looks at images, which "
                "teacher.rule: table has not; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _there_are_features(self) -> Config:
        if self.student.is_frozen and self.student.network is None and self.teacher.rule == "table":
            raise UserError(
                "student.features: teacher, and teacher.rule: table has no features, as no model looks at the images: "
                "give student.features a timm model name"
            )
        return self

    @model_validator(mode="after")
    def _renamed_are_not_classes(self) -> Config:
        if self.classes is not None and not isinstance(self.classes, str):
            check_renamed(self.labels.renamed, list(classes_of(self.classes)))
        return self

    @property
    def sources(self) -> dict[str, Source]:
        """Where images come from: the pool, then test and val where they have a source of their own."""
        named = {"pool": self.pool, "test": self.test, "val": self.val}
        return {name: source for name, source in named.items() if source is not None}

    @property
    def trackers(self) -> list[str]:
        """The words of ``tracking``, each once."""
        words = [self.tracking] if isinstance(self.tracking, str) else self.tracking
        return [word for word in dict.fromkeys(words) if word != "none"]

    def part(self, stage: str) -> dict[str, Any]:
        """The values that a stage depends on, as plain data; sections as they stand, without their other fields."""
        assert stage in COMPLETE, stage
        return _chosen(self, lambda depends: stage in depends["stages"])

    def fixed(self) -> dict[str, Any]:
        """The values that are the same in all rounds of a campaign: which images there are, and the seed."""
        return _chosen(self, lambda depends: depends["fixed"])

    def identity(self) -> dict[str, Any]:
        """The values of all fields but the free ones."""
        return _chosen(self, lambda depends: bool(depends["stages"]))


def _chosen(section: Section, wanted: Callable[[Any], bool]) -> dict[str, Any]:
    """The fields of a section, and of those below it, of which that is true what depends on them."""
    values, chosen = section.model_dump(mode="json"), {}
    for name, spec in type(section).model_fields.items():
        inner = getattr(section, name)
        if isinstance(inner, Section) and not isinstance(inner, Source):  # a source changes as a whole
            if below := _chosen(inner, wanted):
                chosen[name] = below
        elif wanted(depends_on(type(section), spec)):
            chosen[name] = values[name]
    return chosen


def flat_values(section: Section) -> dict[str, Any]:
    """Every field by its dotted name, as plain data; sections are gone into, other mappings are values."""
    values, found = section.model_dump(mode="json"), dict[str, Any]()
    for name, value in values.items():
        inner = getattr(section, name)
        below = flat_values(inner) if isinstance(inner, Section) else {"": value}
        found |= {f"{name}.{key}" if key else name: each for key, each in below.items()}
    return found


def depends_on(section: type[Section], spec: FieldInfo) -> JsonDict:
    """What depends on a field: ``stages`` in the order they run, and whether it is ``fixed``."""
    extra = spec.json_schema_extra
    return extra if isinstance(extra, dict) else section.depends


def check_renamed(renamed: Mapping[str, str], classes: Sequence[str]) -> None:
    """Whether ``labels.renamed`` leads from names that are no longer classes to such that are.

    Raises:
        UserError: It does not; names the entry.
    """
    for old, new in renamed.items():
        if old in classes:
            raise UserError(f"labels.renamed: {old!r} is still among the classes; leave it out there, or here")
        if new not in classes:
            raise UserError(f"labels.renamed: {old!r} is now {new!r}, no class; {did_you_mean(new, classes)}")


# ---------------------------------------------------------------- YAML and overrides

ODD_NUMBER = re.compile(r"[-+]?(0[0-7_]+$|[\d_]+:)")


class _PlainYaml(yaml.SafeLoader):
    """YAML, but what would be lost or changed without a word is an error: a key twice, ``010`` (8), ``1:30`` (90)."""

    def construct_scalar(self, node: Any) -> Any:
        if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and ODD_NUMBER.match(node.value):
            raise UserError(
                f"{node.value} in line {node.start_mark.line + 1} is another number to YAML (octal, or in sixties); "
                "write it without the zero in front or the colon, or in quotes where text is meant"
            )
        return super().construct_scalar(node)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if first := lines.get((key.tag, key.value)):
                    raise UserError(f"{key.value!r} stands there twice, in lines {first} and {line}; give it once")
                lines[key.tag, key.value] = line
        return node


def read_yaml(text: str, name: str) -> Any:
    """What a YAML text holds.

    Args:
        text: The YAML.
        name: What it is called in errors.

    Raises:
        UserError: It is not YAML, or a mapping has a key twice; with the line.
    """
    try:
        return yaml.load(text, _PlainYaml)  # a SafeLoader
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2026-13-40
        raise UserError(f"{name} is not YAML{_what_is_wrong(error)}") from None


def _what_is_wrong(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return f": {' '.join(str(error).split())}"
    if r"'\t'" in problem:
        problem = "a tab; YAML is indented with spaces"
    context = getattr(error, "context", None)
    return f", line {mark.line + 1}, column {mark.column + 1}: {problem}" + (f" ({context})" if context else "")


def load(values: Mapping[str, Any], overrides: Sequence[str] = (), folder: str = "") -> Config:
    """A checked config from plain values and ``key.sub=value`` overrides (values are read as YAML).

    Args:
        values: As a YAML file has them.
        overrides: Of single fields; relative paths in them begin at the current folder.
        folder: Where relative paths in the values begin; empty: at the current folder, too.

    Returns:
        The config; all local paths in it are absolute.

    Raises:
        UserError: One line for each thing that is wrong; an unknown key with the nearest known one.
    """
    given = copy.deepcopy(dict(values))
    changed = [put(given, override) for override in overrides]

    def place(mark: IsPath, text: str, field: str) -> str:
        by_hand = any(f"{field}.".startswith(f"{key}.") for key in changed)
        return mark.checked(text, field, "" if by_hand else folder)

    return checked_section(Config, with_paths(given, place))


def checked_section(section: type[AnySection], values: Mapping[str, Any]) -> AnySection:
    """A section of a config from plain values.

    Raises:
        UserError: One line for each thing that is wrong.
    """
    try:
        return section.model_validate(values)
    except ValidationError as error:
        raise UserError("\n".join(_explain(problem, section) for problem in error.errors())) from None


def put(given: dict[str, Any], override: str, root: type[Section] | None = None) -> str:
    """Put ``key.sub=value`` into nested values of a section (None: a :class:`Config`); the key.

    Raises:
        UserError: It is none, or is below a field that has none of its own.
    """
    key, mark, text = override.partition("=")
    *parents, last = key.split(".")
    if not mark or not all([*parents, last]):
        raise UserError(f"--set {override!r}: expected key.sub=value, such as selection.budget=100")
    target: dict[str, Any] = given
    section: type[Section] | None = root or Config
    for number, parent in enumerate(parents):
        if section is not None and (spec := section.model_fields.get(parent)):
            section = section_of(spec.annotation)
            if section is None and "dict[" not in str(spec.annotation):
                where = ".".join(parents[: number + 1])
                raise UserError(f"--set {override!r}: {where} has no fields of its own; give --set {where}=...")
        if not isinstance(target.get(parent), dict):
            target[parent] = {}
        target = target[parent]
    target[last] = read_yaml(text, f"--set {override!r}: the value")
    return key


def with_paths(
    values: Any, place: Callable[[IsPath, str, str], str], section: type[Section] = Config, prefix: str = ""
) -> Any:
    """Plain values of a section, each path in them (:class:`IsPath`) replaced by what it is placed at."""
    if not isinstance(values, Mapping):
        return values
    found = dict(values)
    for name, spec in section.model_fields.items():
        value, field, inner = found.get(name), prefix + name, section_of(spec.annotation)
        if inner and value is not None:
            found[name] = with_paths(value, place, inner, f"{field}.")
        for mark in spec.metadata:
            if isinstance(mark, IsPath) and isinstance(value, str):
                found[name] = place(mark, value, field)
    return found


def at_current_folder(values: Any) -> Any:
    """The plain values of a campaign's history, from when relative paths in it began at the current folder."""
    return with_paths(values, lambda mark, text, field: mark.absolute(text, field, ""))


def load_file(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """A checked config from a YAML file; relative paths in it begin at its folder.

    Raises:
        UserError: The file is missing, not YAML, not a mapping, or anything in it is wrong.
    """
    values, folder = read_config_file(path)
    return load(values, overrides, folder)


def read_config_file(path: str | os.PathLike[str]) -> tuple[dict[str, Any], str]:
    """The values of a YAML file, and its folder, where relative paths in it begin.

    Raises:
        UserError: The file is missing, not YAML, or not a mapping.
    """
    name = os.path.expanduser(os.fspath(path))
    try:
        text = Path(name).read_text("utf-8")
    except FileNotFoundError:
        raise UserError(f"no config file {name!r}; give a YAML file or --preset NAME") from None
    except IsADirectoryError:
        raise UserError(f"{name!r} is a folder; give the YAML file of a config") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        byte = error.object[error.start]
        raise UserError(f"{name} is not UTF-8, line {line} (byte {byte:#04x}); save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read config file {name!r}: {error}; expected a YAML file in UTF-8") from None
    values = read_yaml(text, name)
    if not isinstance(values, dict):
        what = "is empty" if values is None else f"holds no keys, but a {type(values).__name__}"
        raise UserError(f"{name} {what}; expected keys and values, such as storage_path: runs/birds")
    return values, os.path.dirname(os.path.abspath(name))


NO_KEY = re.compile(r"str|bool|.*[\[-].*")  # how pydantic names the options of a union: tuple[...], constrained-int


def _explain(problem: Any, root: type[Section]) -> str:
    path = [str(part) for part in problem["loc"] if not NO_KEY.fullmatch(str(part))]
    where, kind, given = ".".join(path) or "config", problem["type"], problem["input"]
    if kind == "extra_forbidden":
        return f"{where}: unknown key; {did_you_mean(path[-1], fields_at(path[:-1], root))}"
    if kind == "model_type":
        section = fields_at(path, root)
        return f"{where}: expected keys and values, such as {', '.join(section[:2])} (given: {given!r})"
    if kind == "invalid_key":
        above = ".".join(path[:-1]) or "config"
        return f"{above}: the key {given!r} is no text to YAML; put it into quotes, if it is one of this section's"
    message = problem["msg"].removeprefix("Value error, ")
    shown = "" if kind == "missing" or isinstance(given, (dict, BaseModel)) else f" (given: {given!r:.200})"
    quotes = "; put it into quotes" if kind == "string_type" and isinstance(given, (int, float, date)) else ""
    return f"{where}: {message}{shown}{quotes}"


def fields_at(path: Sequence[str], root: type[Section]) -> list[str]:
    """The names of the fields in the section at a path of keys; keys of a mapping of sections are passed over."""
    model: Any = root
    for part in path:
        if part in model.model_fields:
            model = section_of(model.model_fields[part].annotation)
    return list(model.model_fields)


# ---------------------------------------------------------------- every field, for people


def describe(
    section: type[Section] = Config, prefix: str = "", when: Callable[[type[Section], FieldInfo], str] | None = None
) -> Iterator[str]:
    """Two lines a field: dotted name, default and until when it may change (``when`` says it); meaning."""
    when = when or until_when
    for name, spec in section.model_fields.items():
        inner = section_of(spec.annotation)
        if inner and spec.default is None:  # test and val
            more = "; fields as in pool" if inner is Source else ""
            yield f"\n{prefix}{name}  [null]  {when(section, spec)}\n    {spec.description}{more}"
            if inner is not Source:
                yield from describe(inner, f"{prefix}{name}.", when)
        elif inner:
            yield f"\n{prefix}{name}:  {(inner.__doc__ or '').splitlines()[0]}"
            yield from describe(inner, f"{prefix}{name}.", when)
        else:
            default = "required" if spec.is_required() else yaml.safe_dump(spec.default, default_flow_style=True)
            first = default.split("\n")[0]  # safe_dump ends a plain value with "..."
            yield f"{prefix}{name}  [{first}]  {when(section, spec)}\n    {spec.description}"


def until_when(section: type[Section], spec: FieldInfo) -> str:
    """In words, until when a field may have another value."""
    depends: Any = depends_on(section, spec)
    if depends["fixed"]:
        return f"fixed once {COMPLETE['pool']}"
    return f"free until {COMPLETE[depends['stages'][0]]}" if depends["stages"] else "free"


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a field holds, or a mapping of such by name; None: it holds none."""
    options = getattr(annotation, "__args__", (annotation,))
    return next((option for option in options if isinstance(option, type) and issubclass(option, Section)), None)


if __name__ == "__main__":
    print("\n".join(describe()))
