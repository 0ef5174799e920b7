"""The student as a thing to train, save and deploy: a backbone under one or two heads, with its preprocessing.

The backbone is timm's, or the image tower of an open_clip model (``tower.py``). A saved student is a folder:
``model.safetensors`` and ``student.json`` (backbone, kind of heads, classes, preprocessing, mixture). Knows no Ray.

    >>> student = Student.load("runs/demo/round_002/student")       # doctest: +SKIP
    >>> student.predict(["cat.jpg"])                                # doctest: +SKIP
    array([[0.91, 0.09]], dtype=float32)
"""

from __future__ import annotations

import argparse
import io
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import timm
import timm.data
import torch
from torch import nn

from raykd.algo.dho import Learner, Outputs, StudentNet
from raykd.algo.frozen import Frozen
from raykd.algo.heads import HEADS, Mixture, probabilities
from raykd.errors import UserError, did_you_mean, one_line
from raykd.models.classifier import Classifier
from raykd.models.preprocess import ABOUT, Preprocess, read_preprocess
from raykd.models.saved import NETWORK, WEIGHTS
from raykd.models.teacher import check_checkpoint
from raykd.models.threads import limited_threads
from raykd.models.tower import (
    Tower,
    check_tower,
    fetched_tower,
    load_tower_weights,
    named_tower,
    tower_interpolation,
    tower_size,
)
from raykd.store.place import Place

if TYPE_CHECKING:
    from raykd.config import StudentConfig

# What training scripts put beside the tensors. None of these does anything when it is made, so loading stays safe.
NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
HARMLESS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__ if name != "ObjectDType"),
    np.dtype,
    (NUMPY_SCALAR, "numpy.core.multiarray.scalar"),  # as numpy 1 called it
    (NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    pathlib.PurePosixPath,
    pathlib.PosixPath,
]
STATES = ("state_dict_ema", "model_ema", "state_dict", "model")  # which weights of a checkpoint, as timm prefers them
IN_NETWORK = "backbone.network."  # what the names of its tensors begin with, in a frozen student
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


@dataclass
class Student(Classifier):
    """A model with all that is needed to use it.

    Args:
        model: The network. Of a frozen student its backbone is :class:`raykd.algo.frozen.Frozen`.
        backbone: Its name, as the config has it; of a frozen student that of the network under it.
        classes: Names, in the order of the logits.
        preprocess: What images go through first.
        mixture: Of two heads, for inference.
        frozen: Of a frozen student, what is known of the network under it besides: ``unit``, whether its features are
            of length 1, and, of an image tower, ``tower``, what it is built from.
    """

    model: StudentNet
    backbone: str
    classes: list[str]
    preprocess: Preprocess
    mixture: Mixture = field(default_factory=Mixture)
    frozen: Mapping[str, Any] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The logits that it writes."""
        return HEADS[self.model.heads]

    def save(self, folder: str | os.PathLike[str] | Place) -> None:
        """Write ``model.safetensors`` and ``student.json``; of a frozen one, its :data:`NETWORK` if it has it."""
        place = Place.of(folder)
        place.fs.create_dir(place.path, recursive=True)
        backbone, state = self.model.backbone, self.model.state_dict()
        if isinstance(backbone, Frozen) and backbone.network is not None:
            (place / NETWORK).write_bytes(weights_of(backbone.network))
            state = {name: value for name, value in state.items() if not name.startswith(IN_NETWORK)}
        (place / WEIGHTS).write_bytes(packed_weights(state))
        (place / ABOUT).write_json(self.about())

    def about(self) -> dict[str, Any]:
        own: dict[str, Any] = {}
        if isinstance(self.model.backbone, Tower):
            own = {"tower": self.model.backbone.about, "language_aware": self.model.language_aware}
        if self.frozen is not None:
            own = {"frozen": dict(self.frozen)}
        return {
            "backbone": self.backbone,
            **own,
            "heads": self.model.heads,
            "classes": self.classes,
            "preprocess": asdict(self.preprocess),
            "mixture": asdict(self.mixture),
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | Place, device: str = "cpu") -> Student:
        """Read a saved student, ready to predict.

        A frozen one without its :data:`NETWORK`, as a training leaves it, takes features (:meth:`outputs_of_features`).

        Args:
            folder: ``RUN/round_002/student``, or the round's.
            device: Torch's name.

        Raises:
            UserError: There is no student.
        """
        place = Place.of(folder)
        if not (place / ABOUT).exists():
            from raykd.models.opened import find_model

            found = find_model(place)
            if found.is_export:
                raise UserError(f"{place} is an export: raykd.models.opened.open_model opens it")
            place = found.place
        about, preprocess = (place / ABOUT).read_json(), read_preprocess(place)
        heads = "dho" if about["heads"] == "dual" else about["heads"]  # as they were called once
        state = safetensors.torch.load((place / WEIGHTS).read_bytes())
        if (place / NETWORK).exists():
            network = safetensors.torch.load((place / NETWORK).read_bytes())
            state |= {IN_NETWORK + name: value for name, value in network.items()}
        backbone, width = backbone_of(about, state, preprocess)
        model = StudentNet(backbone, width, len(about["classes"]), heads, about.get("language_aware", False))
        model.load_state_dict(state)
        model = model.eval().to(device)
        mixture = Mixture(**about["mixture"])
        return cls(model, about["backbone"], about["classes"], preprocess, mixture, about.get("frozen"))

    @torch.inference_mode()
    def outputs(self, pixels: np.ndarray, num_threads: int | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """What the heads say of images that are cropped already.

        Args:
            pixels: uint8 [n, H, W, 3], 0 to 255.
            num_threads: Of torch; None: as it is.

        Returns:
            Features float32 [n, D], and float32 [n, C] of each column of logits.
        """
        if isinstance(self.model.backbone, Frozen) and self.model.backbone.network is None:
            raise UserError(
                f"this student is heads alone, without the network under them ({NETWORK}): load the round's student/ "
                "folder, not train/"
            )
        with limited_threads(num_threads):
            given = normalised(torch.from_numpy(np.array(pixels)).to(self._device), self.preprocess)
            return as_numpy(self.model(given))

    @torch.inference_mode()
    def outputs_of_features(
        self, features_ND: np.ndarray, num_threads: int | None = None
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """As :meth:`outputs`, of a frozen student without its network, for stored features float [n, D]."""
        with limited_threads(num_threads):
            return as_numpy(self.model(torch.from_numpy(features_ND.astype(np.float32)).to(self._device)))

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Class probabilities of images that are cropped already, float32 [n, C]: with two heads, their mixture."""
        return self.with_features(pixels)[1]

    def with_features(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 [n, D] and class probabilities float32 [n, C] of images that are cropped already."""
        features_ND, logits = self.outputs(pixels)
        return features_ND, probabilities(logits, self.mixture)


def normalised(pixels: torch.Tensor, preprocess: Preprocess) -> torch.Tensor:
    """uint8 [n, H, W, 3], 0 to 255, to float32 [n, 3, H, W] with the backbone's mean and deviation."""
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) * 255 for v in (preprocess.mean, preprocess.std))
    return pixels.permute(0, 3, 1, 2).float().sub_(mean).div_(std)


def as_numpy(out: Outputs) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Features and each column of logits, float32."""
    logits = {column: value.float().cpu().numpy() for column, value in out.logits.items()}
    return out.features_ND.float().cpu().numpy(), logits


def weights_of(module: nn.Module) -> bytes:
    """A module's state as safetensors. Tensors that share memory (tied layers) are written one by one."""
    return packed_weights(module.state_dict())


def packed_weights(state: Mapping[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save({name: value.contiguous().clone() for name, value in state.items()})


# ---------------------------------------------------------------- backbones


def make_backbone(name: str, pretrained: bool = False, tower: Mapping[str, Any] | None = None) -> tuple[nn.Module, int]:
    """A model that returns pooled features [N, D], and D.

    Args:
        name: timm's.
        pretrained: Whether with timm's weights, else with random ones.
        tower: Of open_clip's image towers: what it is built from; timm is not looked at.

    Raises:
        UserError: timm has no such model; names the nearest.
    """
    if tower is not None:
        own = Tower(tower)
        return own, own.width
    check_backbone(name)
    module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    width: Any = getattr(module, "head_hidden_size", module.num_features)  # after the pooling, where some widen
    return module, width


def backbone_of(about: dict[str, Any], state: dict[str, torch.Tensor], preprocess: Preprocess) -> tuple[nn.Module, int]:
    """What is under a saved student's heads, to be filled with ``state``, and its width."""
    frozen = about.get("frozen")
    if frozen is None:
        return network_of(about, preprocess)
    network = network_of(about, preprocess)[0] if any(name.startswith(IN_NETWORK) for name in state) else None
    hidden = state.get("backbone.hidden.bias")
    backbone = Frozen(len(state["backbone.mean_D"]), None if hidden is None else len(hidden), network, frozen["unit"])
    return backbone, backbone.width


def network_of(about: dict[str, Any], preprocess: Preprocess) -> tuple[nn.Module, int]:
    """The network that a ``student.json`` names, for images of its size, with random weights; and its width."""
    module, width = make_backbone(about["backbone"], tower=about.get("frozen", about).get("tower"))
    set_image_size(module, preprocess.image_size)
    return module, width


def set_image_size(backbone: nn.Module, image_size: int) -> None:
    """Make a backbone with position embeddings (ViT, Swin) take images of another size; others take any."""
    resize: Any = getattr(backbone, "set_input_size", None)
    if resize:
        resize(image_size)


def check_backbone(name: str, field: str = "backbone") -> None:
    """Raises UserError with the nearest name when timm has no model ``name``; ``field`` of ``student`` gave it."""
    tagged = "." in name
    if not (timm.models.is_model_pretrained(name) if tagged else timm.is_model(name)):
        known = timm.list_models(pretrained=tagged)
        raise UserError(f"student.{field}: timm has no model {name!r}; {did_you_mean(name, known)}")


def preprocess_of(backbone: nn.Module, image_size: int, interpolation: str) -> Preprocess:
    """The preprocessing that fits a backbone: the mean and deviation that it was trained with.

    What open_clip says of an image tower's resizing besides (SigLIP's squashes what is no square) is not followed: a
    student's images are cropped, as DHO's code has it.
    """
    if isinstance(backbone, Tower):
        config = backbone.about["preprocess_cfg"]
    else:
        config = timm.data.resolve_model_data_config(backbone)
    return Preprocess(image_size, tuple(config["mean"]), tuple(config["std"]), interpolation)


# ---------------------------------------------------------------- weights to start from


def new_student(
    config: StudentConfig,
    classes: Sequence[str],
    seed: int,
    start: Place | None = None,
    texts_CD: np.ndarray | None = None,
) -> Student:
    """A student before its training: the backbone with pretrained or random weights, and random heads.

    Args:
        config: What to build.
        classes: In the order of the logits.
        seed: Of torch, which is left seeded.
        start: Folder of the fetched backbone; None for a timm backbone with random weights.
        texts_CD: float32 [C, D], what language-aware heads begin as.
    """
    torch.manual_seed(seed)
    tower = fetched_tower(start) if config.tower and start else None
    backbone, width = make_backbone(config.backbone, tower=tower)
    if isinstance(backbone, Tower) and start and config.pretrained is not False:
        load_tower_weights(backbone, start)
    elif start and not tower:
        load_weights(backbone, (start / WEIGHTS).uri)
    image_size, interpolation = seen_by(config, tower)
    set_image_size(backbone, image_size)
    model = StudentNet(backbone, width, len(classes), config.heads, config.language_aware)
    if config.language_aware:
        assert texts_CD is not None
        model.begin_as_texts(torch.from_numpy(texts_CD))
    return Student(model, config.backbone, list(classes), preprocess_of(backbone, image_size, interpolation))


def seen_by(config: StudentConfig, tower: Mapping[str, Any] | None) -> tuple[int, str]:
    """The size of the images that a student sees, and how they are resized: as configured, else as its tower has it."""
    if tower is None:
        assert config.image_size
        assert config.interpolation
        return config.image_size, config.interpolation
    return config.image_size or tower_size(tower), config.interpolation or tower_interpolation(tower)


def initial_backbone(name: str, pretrained: bool | str) -> nn.Module:
    """The backbone before any training: timm's weights, those of a file, or random ones (by torch's seed).

    Raises:
        UserError: The weights cannot be had, or do not fit the backbone.
    """
    if pretrained is True:
        try:
            return make_backbone(name, pretrained=True)[0]
        except Exception as error:
            raise UserError(
                f"student.pretrained: cannot get timm's weights for {name!r}: {one_line(error)}; give a checkpoint "
                "file, or false for random weights"
            ) from error
    module = make_backbone(name)[0]
    if pretrained:
        load_weights(module, str(pretrained))
    return module


def load_weights(module: nn.Module, path: str) -> None:
    """Load a checkpoint file (safetensors or torch, weights only) into a backbone; its classifier is left out.

    Of a training script's checkpoint the averaged weights (EMA) are taken when it has them, as timm does.

    Raises:
        UserError: No such file, not a checkpoint, or not of this backbone.
    """
    place = Place.of(path)
    if not place.exists():
        raise UserError(f"student.pretrained: no file {path!r}; give a checkpoint, true (timm's weights) or false")
    state = read_state(place, path)
    own = module.state_dict()
    missing = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if missing:
        raise UserError(
            f"student.pretrained: {path!r} does not fit the backbone: {len(missing)} of {len(own)} tensors are missing "
            f"or of another shape, first {missing[0]!r}"
        )
    module.load_state_dict({name: state[name] for name in own})


def read_state(place: Place, path: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by name, without what tools put before the names. Runs no code of the file's."""
    data = place.read_bytes()
    try:
        if place.name.endswith(".safetensors"):
            state: Any = safetensors.torch.load(data)
        else:
            with torch.serialization.safe_globals(HARMLESS):
                state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own
        reason = one_line(error)
        if "Unsupported global" in str(error):
            reason = "it holds Python objects beside its tensors; save its state_dict() alone"
        raise UserError(f"student.pretrained: {path!r} is not a checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise UserError(f"student.pretrained: {path!r} holds a {type(state).__name__}; expected tensors by name")
    state = next((state[key] for key in STATES if isinstance(state.get(key), dict)), state)
    for prefix in PREFIXES:
        state = {str(name).removeprefix(prefix): value for name, value in state.items()}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


# ---------------------------------------------------------------- tried in the first seconds


def check_weights(config: StudentConfig, fetched: bool = False) -> None:
    """Whether ``pretrained`` can be had, as far as that can be told without a download.

    Args:
        config: Of the student.
        fetched: Whether an open_clip model is in the campaign's folder already.

    Raises:
        UserError: timm or open_clip has no weights of this name, or the file is missing, no checkpoint, or of another
            backbone.
    """
    if config.network is None:
        return
    if config.tower:
        check_tower(config, fetched)
        return
    check_backbone(config.network, _field_of(config))
    if config.pretrained is True and not timm.models.is_model_pretrained(config.network):
        raise UserError(
            f"student.pretrained: timm has no weights for {config.network!r}; give a checkpoint file"
            + ("" if config.is_frozen else ", or false for random weights")
        )
    if isinstance(config.pretrained, str):
        if os.path.isfile(config.pretrained):
            check_checkpoint(config.pretrained, "student.pretrained")
        initial_backbone(config.network, config.pretrained)


def _field_of(config: StudentConfig) -> str:
    """Which field of ``student`` names the network."""
    return "features" if config.is_frozen else "backbone"


def try_student(config: StudentConfig, num_classes: int = 2, start: Place | None = None) -> None:
    """Train the configured student for one step on blank images and save it, in memory: what fails fails here.

    With random weights and two images (or as few as a worker's share is). Takes a second for small models. Of a frozen
    student only the network under it is tried, on one image: what is behind it always trains.

    Args:
        config: Of the student.
        num_classes: C.
        start: Folder of the fetched backbone, when it is fetched.

    Raises:
        UserError: The backbone does not take images of this size, cannot be trained on so few, or cannot be saved;
            names the field, and what would do.
    """
    name, field = config.network, _field_of(config)
    if name is None:
        return
    tower: Mapping[str, Any] | None = None
    if config.tower:
        tower = fetched_tower(start) if start else named_tower(config.tower)
        own = tower_size(tower)
    else:
        check_backbone(name, field)
        own = own_size(name)
    image_size, _ = seen_by(config, tower)
    with torch.random.fork_rng(devices=[]):
        try:
            _try_at(config, num_classes, image_size, tower)
        except Exception as error:
            if "Expected more than 1 value per channel" in str(error):
                raise UserError(_too_few(config, image_size)) from error
            reason = one_line(error)
            if (size := own) != image_size:
                try:
                    _try_at(config, num_classes, size, tower)
                except Exception as again:
                    reason = one_line(again)
                else:
                    raise UserError(
                        f"student.image_size: {name} does not take images of {image_size} pixels "
                        f"({reason}); it takes {size}: set student.image_size to {size}, or choose another "
                        f"student.{field}"
                    ) from error
            raise UserError(
                f"student.{field}: {name} cannot be {'used' if config.is_frozen else 'trained'} here: {reason}; choose "
                "another model"
            ) from error


def own_size(name: str) -> int:
    """The side of the images that a timm model was made for."""
    cfg = timm.get_pretrained_cfg(name)
    return int(cfg.input_size[-1]) if cfg else 224


def _try_at(config: StudentConfig, num_classes: int, image_size: int, tower: Mapping[str, Any] | None) -> None:
    assert config.network is not None
    module, width = make_backbone(config.network, tower=tower)
    set_image_size(module, image_size)
    if config.is_frozen:
        with torch.no_grad():
            module.eval()(torch.zeros(1, 3, image_size, image_size))
        return
    model = StudentNet(module, width, num_classes, config.heads, config.language_aware).train()
    learner = Learner(model, config.forward == "stacked", config.loss_ce_weight, config.distill_temperature)
    num_l, num_u = _least_shares(config)
    images, teacher = torch.zeros(num_l + num_u, 3, image_size, image_size), torch.zeros(num_l + num_u, num_classes)
    learner(images, torch.zeros(num_l, dtype=torch.int64), teacher[:num_l], teacher[num_l:]).total.backward()
    model.load_state_dict(safetensors.torch.load(weights_of(model)))


def _least_shares(config: StudentConfig) -> tuple[int, int]:
    """As few labeled and other images, two at most, as are normalised together in a pass of some worker."""
    parts = config.accumulate * (1 if config.sync_batchnorm else config.most_workers)
    labeled, unlabeled = config.batch_labeled, config.batch_unlabeled
    if config.heads == "ce":
        return min(2, labeled // parts), 0
    if config.forward == "stacked":
        return 1, min(1, (labeled + unlabeled) // parts - 1)
    return max(1, min(2, labeled // parts)), max(1, min(2, unlabeled // parts))


def _too_few(config: StudentConfig, image_size: int) -> str:
    parts = config.most_workers * config.accumulate
    shares = zip(("batch_labeled", "batch_unlabeled"), _least_shares(config), strict=True)
    together = config.forward == "stacked" and config.heads != "ce"
    fields = " and ".join(f"student.{name}={getattr(config, name)}" for name, share in shares if share < 2 or together)
    in_parts = f" in {config.accumulate} parts" if config.accumulate > 1 else ""
    synced = "" if config.most_workers == 1 or config.sync_batchnorm else ", or student.sync_batchnorm: true"
    return (
        f"{fields} over num_workers={config.most_workers}{in_parts} gives a worker one image, and {config.backbone} "
        f"normalises over a batch: at {image_size} pixels it cannot over one image. Give at least {2 * parts}{synced}"
    )
