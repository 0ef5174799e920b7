"""A student in forms that need no raykd, each held against the student before it is kept.

``timm``: a folder that ``timm.create_model("local-dir:FOLDER", pretrained=True)`` loads, and a mixture of three lines.
``onnx`` and ``torch``: one file (ONNX, ``torch.export``) from uint8 pixels to class probabilities, batches of any size.

No exporter is trusted: torch's newer one for ONNX has written wrong models of ResNets without an error
(pytorch/pytorch issues 168224 and 169178). So what was written is opened as users open it, and asked
(:func:`check_same`).
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import timm
import torch
from torch import nn

from raykd.algo.dho import head_of
from raykd.algo.frozen import Frozen
from raykd.algo.heads import HEADS, Mixture
from raykd.errors import UserError, one_line
from raykd.models.frozen import unfrozen
from raykd.models.opened import TIMM_CONFIG
from raykd.models.saved import WEIGHTS
from raykd.models.student import Student, check_backbone, set_image_size, weights_of

Format = Literal["timm", "onnx", "torch"]
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime")}  # the extra ``export``
ONNX_FILE, TORCH_FILE = "model.onnx", "model.pt2"
ONNX_NAMES = ("pixels", "probabilities")
EXPORTERS = {True: "torch.onnx.export(dynamo=True)", False: "torch.onnx.export(dynamo=False)"}
BATCH = torch.export.Dim("batch")
BATCHES = (1, 2, 7)  # of the gate: one, what exporters see, and an odd number
NEAR = 1e-4  # how far probabilities may be from the student's; and how near two classes are a tie


class Deployable(nn.Module):
    """A student from uint8 pixels to class probabilities, in one network: normalisation, heads, mixture, calibration.

    It is :func:`raykd.algo.heads.probabilities` in torch and float32. All is added in logarithms, so that a calibration
    finds something to divide where a probability rounds to 0.

    Args:
        student: Its network is copied, to the CPU.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.model = copy.deepcopy(student.model).cpu().float().eval()
        self.columns, self.mixture = student.columns, student.mixture
        self.register_buffer("mean", torch.tensor(student.preprocess.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(student.preprocess.std).view(1, 3, 1, 1) * 255)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, H, W, 3], cropped already, to float32 [n, C], rows of sum 1."""
        images = (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits = self.model(images).logits
        return mixed_in_torch([logits[column] for column in self.columns], self.mixture)


def mixed_in_torch(logits: list[torch.Tensor], mixture: Mixture) -> torch.Tensor:
    """Class probabilities of one head, or of two in the order of ``HEADS["dho"]``, float32 [n, C]."""
    log_probs_NC = torch.log_softmax(logits[0].float(), dim=1)
    if len(logits) == len(HEADS["dho"]):
        kd_NC = torch.log_softmax(logits[1].float() / mixture.temperature, dim=1)
        if mixture.ce_weight == 0:
            log_probs_NC = kd_NC
        elif mixture.ce_weight < 1:
            ce_share, kd_share = math.log(mixture.ce_weight), math.log1p(-mixture.ce_weight)
            log_probs_NC = torch.logsumexp(torch.stack([log_probs_NC + ce_share, kd_NC + kd_share]), dim=0)
    if mixture.calibration != 1.0:
        log_probs_NC = log_probs_NC / mixture.calibration
    return torch.softmax(log_probs_NC, dim=1)


# ---------------------------------------------------------------- formats: how each is written


def write_timm(student: Student, folder: Path) -> dict[str, Any]:
    """``model.safetensors`` and ``config.json``, for ``timm.create_model("local-dir:FOLDER", pretrained=True)``.

    One linear classifier holds both heads: the CE head's C rows, then the KD head's, divided by the mixture's
    temperature. What is left of the mixture is in ``config.json``, under ``raykd``; timm keeps what it does not know.

    Raises:
        UserError: The student is no timm model with a linear classifier.
    """
    model, architecture = plain_timm(student), student.backbone.partition(".")[0]
    preprocess, num_classes = student.preprocess, len(student.classes)
    one_head = len(student.columns) == 1
    size, own = preprocess.image_size, model.pretrained_cfg
    rows = num_classes * len(student.columns)
    config = {
        "architecture": architecture,
        "num_classes": rows,
        "num_features": model.num_features,
        **({"label_names": student.classes} if one_head else {}),
        **({"model_args": {"img_size": size}} if takes_one_size(model) else {}),
        "pretrained_cfg": {
            "num_classes": rows,
            "input_size": [3, size, size],
            "fixed_input_size": takes_one_size(model),
            "interpolation": preprocess.interpolation,
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "custom_load": False,
            "first_conv": own.get("first_conv"),
            "classifier": own.get("classifier"),
        },
        "raykd": {
            "classes": student.classes,
            "head_weights": [1.0] if one_head else [student.mixture.ce_weight, 1 - student.mixture.ce_weight],
            "calibration": student.mixture.calibration,
        },
    }
    (folder / WEIGHTS).write_bytes(weights_of(model))
    (folder / TIMM_CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
    return {"weights": WEIGHTS}


def plain_timm(student: Student) -> Any:
    """The student as timm's own model, with a linear classifier of a row for each class of each head.

    Raises:
        UserError: It is none; says why, and what works.
    """
    student = unfrozen(student)
    if isinstance(student.model.backbone, Frozen):
        raise no_timm("its heads are on a frozen network's features, through a hidden layer or at length 1")
    try:
        check_backbone(student.backbone)
        heads = [student.model.get_submodule(head_of(column)) for column in student.columns]
    except (UserError, AttributeError) as error:
        raise no_timm(f"its backbone is {student.backbone!r}, which timm cannot make") from error
    for head in heads:
        if type(head) is not nn.Linear:  # a subclass may compute something else
            raise no_timm(f"its head is a {type(head).__name__}, not a linear layer")
    rows = sum(head.out_features for head in heads if isinstance(head, nn.Linear))
    model: Any = timm.create_model(student.backbone, num_classes=rows)
    set_image_size(model, student.preprocess.image_size)
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    width = heads[0].in_features
    if not isinstance(classifier, nn.Linear) or classifier.bias is None or classifier.in_features != width:
        raise no_timm(f"the classifier that timm gives {student.backbone} is no linear layer on its {width} features")
    own = {
        name
        for name, value in model.state_dict(keep_vars=True).items()
        if any(value is p for p in classifier.parameters())
    }
    try:
        missing, unexpected = model.load_state_dict(student.model.backbone.state_dict(), strict=False)
    except RuntimeError as error:
        raise no_timm(f"timm's {student.backbone} has other tensors: {one_line(error)}") from error
    if set(missing) != own or unexpected:
        odd = sorted({*(set(missing) ^ own), *unexpected})
        raise no_timm(f"timm's {student.backbone} with a classifier has other tensors, first {odd[0]!r}")
    scales = [1.0, student.mixture.temperature]  # the KD head is the second
    with torch.no_grad():
        for name in ("weight", "bias"):
            stacked = [getattr(head, name).float() / scale for head, scale in zip(heads, scales, strict=False)]
            getattr(classifier, name).copy_(torch.cat(stacked))
    return model.eval()


def no_timm(reason: str) -> UserError:
    return UserError(f"--format timm: this student cannot be a plain timm model: {reason}; take --format onnx or torch")


def takes_one_size(model: Any) -> bool:
    """Whether a timm model is built for a size (position embeddings, windows)."""
    return hasattr(model, "set_input_size")


def write_torch(student: Student, folder: Path) -> dict[str, Any]:
    """``model.pt2``, for ``torch.export.load``."""
    with quiet(), torch.no_grad():
        program = torch.export.export(Deployable(student), (example(student),), dynamic_shapes=({0: BATCH},))
        torch.export.save(program, folder / TORCH_FILE)
    return {"weights": TORCH_FILE}


def write_onnx(student: Student, folder: Path, dynamo: bool) -> dict[str, Any]:
    """``model.onnx``, by torch's new exporter or by the one before it."""
    how: dict[str, Any]
    if dynamo:
        how = {"dynamo": True, "dynamic_shapes": ({0: BATCH},), "external_data": False, "verbose": False}
    else:
        how = {"dynamo": False, "dynamic_axes": {name: {0: "batch"} for name in ONNX_NAMES}}
    file = str(folder / ONNX_FILE)
    with quiet(), torch.no_grad():
        torch.onnx.export(
            Deployable(student),
            (example(student),),
            file,
            input_names=[ONNX_NAMES[0]],
            output_names=[ONNX_NAMES[1]],
            **how,
        )
    import onnx

    opset = {entry.domain: entry.version for entry in onnx.load(file).opset_import}[""]
    return {"weights": ONNX_FILE, "exporter": EXPORTERS[dynamo], "opset": opset}


def example(student: Student) -> torch.Tensor:
    """Two blank images: of one alone, exporters take the 1 for a constant."""
    size = student.preprocess.image_size
    return torch.zeros(2, size, size, 3, dtype=torch.uint8)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters speak of their own insides."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------- formats: how each is opened again, by what users have

Ask = Callable[[np.ndarray], np.ndarray]
"""From uint8 [n, H, W, 3] to class probabilities float32 [n, C]."""


def open_written(kind: Format, folder: Path) -> Ask:
    """An exported model as people open it who have no raykd: the code of the card."""
    return {"timm": ask_timm, "onnx": ask_onnx, "torch": ask_torch}[kind](folder)


def ask_timm(folder: Path) -> Ask:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = json.loads((folder / TIMM_CONFIG).read_text("utf-8"))
    mixture, cfg = config["raykd"], config["pretrained_cfg"]
    log_weights_H1 = torch.tensor(mixture["head_weights"]).log()[:, None]
    mean, std = (torch.tensor(cfg[name]).view(3, 1, 1) for name in ("mean", "std"))

    @torch.inference_mode()
    def ask(pixels: np.ndarray) -> np.ndarray:
        images = (torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2) / 255 - mean) / std
        heads_NHC = model(images).unflatten(1, (len(log_weights_H1), -1)).log_softmax(2)
        log_probs_NC = (heads_NHC + log_weights_H1).logsumexp(1) / mixture["calibration"]
        return log_probs_NC.softmax(1).numpy()

    return ask


def ask_onnx(folder: Path) -> Ask:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # of an actor as many as it asked for
    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {ONNX_NAMES[0]: np.ascontiguousarray(pixels)})[0]


def ask_torch(folder: Path) -> Ask:
    model = torch.export.load(folder / TORCH_FILE).module()

    @torch.inference_mode()
    def ask(pixels: np.ndarray) -> np.ndarray:
        probs_NC: torch.Tensor = model(torch.from_numpy(np.array(pixels)))
        return probs_NC.numpy()

    return ask


# ---------------------------------------------------------------- the gate


@dataclass(frozen=True)
class Gate:
    """How near an exported model comes to its student.

    Args:
        num_images: Real images that both were asked about, at each batch size.
        batches: The batch sizes.
        max_difference: The largest, of any class probability.
        num_ties: Images whose two likeliest classes are within :data:`NEAR`: which of them wins is not looked at.
    """

    num_images: int
    batches: tuple[int, ...]
    max_difference: float
    num_ties: int


def check_same(student: Student, ask: Ask, pixels: np.ndarray) -> Gate:
    """Whether an exported model says what the student says.

    Args:
        student: Ours.
        ask: The exported model, written and opened again.
        pixels: uint8 [n, H, W, 3], real images: on noise all models agree.

    Raises:
        UserError: A probability is off by more than :data:`NEAR`, or another class wins; says by how much.
    """
    probs_NC = in_batches(student.probabilities, pixels, 32)
    second_N, first_N = np.sort(np.pad(probs_NC, ((0, 0), (1, 0))), axis=1)[:, -2:].T
    tie_N = first_N - second_N <= NEAR
    worst = 0.0
    for size in BATCHES:
        theirs_NC = in_batches(ask, pixels, size)
        if theirs_NC.shape != probs_NC.shape:
            raise UserError(f"at batch {size} it gives {list(theirs_NC.shape)}; expected {list(probs_NC.shape)}")
        off = float(np.abs(theirs_NC - probs_NC).max())
        num_other = int(((theirs_NC.argmax(axis=1) != probs_NC.argmax(axis=1)) & ~tie_N).sum())
        if not off <= NEAR or num_other:  # so that NaN fails
            raise UserError(
                f"at batch {size}, on {len(pixels)} images, a probability differs by {off:.2g} from the student's "
                f"(allowed: {NEAR:g}), and {num_other} images get another class"
            )
        worst = max(worst, off)
    return Gate(len(pixels), BATCHES, worst, int(tie_N.sum()))


def in_batches(ask: Ask, pixels: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([ask(pixels[start : start + size]) for start in range(0, len(pixels), size)])


# ---------------------------------------------------------------- all of it


def check_installed(kind: Format) -> None:
    """Raises UserError when a format needs packages that are not there; names the command that brings them."""
    missing = [name for name in NEEDED.get(kind, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"--format {kind} needs {', '.join(missing)}: pip install 'raykd[export]'")


def write_checked(student: Student, kind: Format, folder: Path, pixels: np.ndarray) -> dict[str, Any]:
    """Write a student in a format, open it as users do, and hold it against the student.

    Args:
        student: What to export, on the CPU.
        kind: The format.
        folder: There already, and empty.
        pixels: uint8 [n, H, W, 3], of real images.

    Returns:
        Facts: ``weights`` (the file's name), ``gate``, and of ONNX ``exporter``, ``opset`` and, when that is not the
        newer exporter, ``why``.

    Raises:
        UserError: It cannot be written, or is not the student.
    """
    if kind != "onnx":
        write = write_timm if kind == "timm" else write_torch
        return _attempt(kind, partial(write, student, folder), student, folder, pixels)
    try:
        return _attempt(kind, partial(write_onnx, student, folder, True), student, folder, pixels)
    except UserError as error:
        first = str(error)
    try:
        facts = _attempt(kind, partial(write_onnx, student, folder, False), student, folder, pixels)
    except UserError as error:
        raise UserError(f"{EXPORTERS[True]}: {first}\n{EXPORTERS[False]}: {error}") from error
    return facts | {"why": first}


def _attempt(
    kind: Format, write: Callable[[], dict[str, Any]], student: Student, folder: Path, pixels: np.ndarray
) -> dict[str, Any]:
    try:
        facts = write()
        ask = open_written(kind, folder)
        gate = check_same(student, ask, pixels)
    except UserError as error:
        if str(error).startswith("--format"):
            raise
        raise UserError(f"--format {kind}: what was written is not the student: {error}. Nothing is kept") from error
    except Exception as error:  # each exporter has its own
        raise UserError(
            f"--format {kind}: this student ({student.backbone}) cannot be written: {one_line(error)}; "
            f"try another format ({', '.join(get_args(Format))})"
        ) from error
    return facts | {"gate": asdict(gate)}
