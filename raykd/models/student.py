"""The student as a thing to train, save and deploy: a timm backbone under two heads, with its preprocessing.

A saved student is a folder: ``model.safetensors`` and ``student.json`` (backbone, classes, preprocessing, mixture).
Knows no Ray.

    >>> student = Student.load("runs/demo/round_003/tune")          # doctest: +SKIP
    >>> student.predict([PIL.Image.open("cat.jpg")])                # doctest: +SKIP
    array([[0.91, 0.09]], dtype=float32)
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import safetensors.torch
import timm
import timm.data
import torch
from PIL import Image
from torch import nn
from torchvision import transforms as T

from raykd.algo.dho import DualHead
from raykd.algo.heads import Mixture, probabilities
from raykd.errors import UserError
from raykd.images.reading import upright
from raykd.store.place import Place

WEIGHTS, ABOUT = "model.safetensors", "student.json"


@dataclass(frozen=True)
class Preprocess:
    """From an RGB image to the square that the student sees."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    @property
    def _mode(self) -> T.InterpolationMode:
        return T.InterpolationMode(self.interpolation)

    def clean(self) -> Callable[[Image.Image], Image.Image]:
        """Short side to ``image_size``, centre crop: for predicting (papers.md 1.4)."""
        return T.Compose([T.Resize(self.image_size, self._mode), T.CenterCrop(self.image_size)])

    def augmented(self, crop_area: tuple[float, float], flip: bool) -> Callable[[Image.Image], Image.Image]:
        """Random resized crop and flip, drawn from torch's global generator: for training."""
        crop = T.RandomResizedCrop(self.image_size, scale=crop_area, interpolation=self._mode)
        return T.Compose([crop, T.RandomHorizontalFlip()]) if flip else crop

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [n, H, W, 3], 0 to 255, to float32 [n, 3, H, W] with the backbone's mean and deviation."""
        mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) * 255 for v in (self.mean, self.std))
        return (pixels.permute(0, 3, 1, 2).float() - mean) / std


@dataclass
class Student:
    """A dual-head model with all that is needed to use it.

    Args:
        model: The network.
        backbone: timm name.
        classes: Names, in the order of the logits.
        preprocess: What images go through first.
        mixture: Of the heads, for inference.
    """

    model: DualHead
    backbone: str
    classes: list[str]
    preprocess: Preprocess
    mixture: Mixture = field(default_factory=Mixture)

    def save(self, folder: str | os.PathLike[str] | Place) -> None:
        """Write ``model.safetensors`` and ``student.json``."""
        place = Place.of(folder)
        place.fs.create_dir(place.path, recursive=True)
        state = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        (place / WEIGHTS).write_bytes(safetensors.torch.save(state))
        (place / ABOUT).write_json(self.about())

    def about(self) -> dict[str, Any]:
        return {
            "backbone": self.backbone,
            "classes": self.classes,
            "preprocess": asdict(self.preprocess),
            "mixture": asdict(self.mixture),
        }

    @classmethod
    def load(cls, folder: str | os.PathLike[str] | Place, device: str = "cpu") -> Student:
        """Read a saved student, ready to predict."""
        place = Place.of(folder)
        about = (place / ABOUT).read_json()
        model = DualHead(*make_backbone(about["backbone"]), len(about["classes"]))
        set_image_size(model.backbone, about["preprocess"]["image_size"])
        model.load_state_dict(safetensors.torch.load((place / WEIGHTS).read_bytes()))
        saved = about["preprocess"]
        preprocess = Preprocess(saved["image_size"], tuple(saved["mean"]), tuple(saved["std"]), saved["interpolation"])
        return cls(
            model.eval().to(device), about["backbone"], about["classes"], preprocess, Mixture(**about["mixture"])
        )

    @torch.inference_mode()
    def predict(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Class probabilities of PIL images (turned upright), float32 [n, C]: the mixture of the two heads."""
        device = next(self.model.parameters()).device
        clean = self.preprocess.clean()
        pixels = torch.stack([torch.from_numpy(np.array(clean(upright(image).convert("RGB")))) for image in images])
        out = self.model(self.preprocess.normalise(pixels.to(device)))
        logits = {"ce_logits": out.ce_logits_NC.cpu().numpy(), "kd_logits": out.kd_logits_NC.cpu().numpy()}
        return probabilities(logits, self.mixture)


def make_backbone(name: str, pretrained: bool = False) -> tuple[nn.Module, int]:
    """A timm model that returns pooled features [N, D], and D.

    Raises:
        ValueError: timm has no such model; names the nearest.
    """
    check_backbone(name)
    module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    width: Any = getattr(module, "head_hidden_size", module.num_features)  # after the pooling, where some widen
    return module, width


def set_image_size(backbone: nn.Module, image_size: int) -> None:
    """Make a backbone with position embeddings (ViT, Swin) take images of another size; others take any."""
    resize: Any = getattr(backbone, "set_input_size", None)
    if resize:
        resize(image_size)


def check_backbone(name: str) -> None:
    """Raises ValueError with the nearest names when timm has no model ``name``."""
    tagged = "." in name
    if not (timm.models.is_model_pretrained(name) if tagged else timm.is_model(name)):
        import difflib

        near = difflib.get_close_matches(name, timm.list_models(pretrained=tagged), n=5)
        raise UserError(f"unknown student.backbone {name!r}; timm has {', '.join(near) or 'nothing like it'}")


def initial_backbone(name: str, pretrained: bool | str) -> nn.Module:
    """The backbone before any training: timm's weights, those of a file, or random ones (by torch's seed).

    Raises:
        ValueError: The weights cannot be had, or do not fit the backbone.
    """
    if pretrained is True:
        try:
            return make_backbone(name, pretrained=True)[0]
        except Exception as error:
            raise UserError(
                f"cannot get timm's weights for {name!r}: {error}; set student.pretrained to a checkpoint file or false"
            ) from error
    module = make_backbone(name)[0]
    if pretrained:
        load_weights(module, str(pretrained))
    return module


def load_weights(module: nn.Module, path: str) -> None:
    """Load a checkpoint file (safetensors or torch, weights only) into a backbone; its classifier is left out."""
    place = Place.of(path)
    if not place.exists():
        raise UserError(f"student.pretrained: no file {path!r}; give a checkpoint, true (timm's weights) or false")
    data = place.read_bytes()
    try:
        if place.name.endswith(".safetensors"):
            state: Any = safetensors.torch.load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise UserError(f"student.pretrained: {path!r} is not a checkpoint: {reason}") from error
    if not isinstance(state, dict):
        raise UserError(f"student.pretrained: {path!r} holds a {type(state).__name__}; expected tensors by name")
    for key in ("state_dict", "model"):
        state = state.get(key, state)
    state = {name.removeprefix("module."): value for name, value in state.items()}
    own = module.state_dict()
    missing = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if missing:
        raise UserError(
            f"student.pretrained: {path!r} does not fit the backbone: {len(missing)} of {len(own)} tensors are missing "
            f"or of another shape, first {missing[0]!r}"
        )
    module.load_state_dict({name: state[name] for name in own})


def preprocess_of(backbone: nn.Module, image_size: int, interpolation: str) -> Preprocess:
    """The preprocessing that fits a backbone: timm's mean and deviation for it."""
    data = timm.data.resolve_model_data_config(backbone)
    return Preprocess(image_size, tuple(data["mean"]), tuple(data["std"]), interpolation)
