"""A student that is heads alone, on the stored features of a network that is not trained: the parts that it is made of.

Knows no Ray.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from raykd.algo.dho import StudentNet, head_of
from raykd.algo.frozen import Frozen
from raykd.config import OPEN_CLIP
from raykd.errors import UserError
from raykd.images.transforms import ClipPreprocess
from raykd.models.preprocess import ABOUT, Preprocess, read_preprocess
from raykd.models.saved import WEIGHTS
from raykd.models.student import (
    Student,
    initial_backbone,
    network_of,
    normalised,
    preprocess_of,
    seen_by,
    set_image_size,
    weights_of,
)
from raykd.models.teacher import MODEL_WEIGHTS
from raykd.models.threads import limited_threads
from raykd.models.tower import VISUAL, fetched_tower, tower_interpolation
from raykd.store.place import Place

if TYPE_CHECKING:
    from raykd.config import StudentConfig


def new_frozen_student(
    config: StudentConfig, classes: Sequence[str], seed: int, network: Place, features_ND: np.ndarray
) -> Student:
    """A frozen student before its training: random heads, for features, which it is centred on.

    Args:
        config, classes, seed: As of :func:`new_student`.
        network: Folder of the network that the features are of (:func:`save_network`).
        features_ND: float [N, D], to train on.
    """
    about = (network / ABOUT).read_json()
    model = frozen_heads(config, len(classes), seed, features_ND, about["frozen"]["unit"])
    return Student(model, about["backbone"], list(classes), read_preprocess(network), frozen=about["frozen"])


def frozen_heads(
    config: StudentConfig, num_classes: int, seed: int, features_ND: np.ndarray, unit: bool = False
) -> StudentNet:
    """Random heads for features, which they are centred on; without all that a student needs to take images.

    Args:
        config, seed, features_ND: As of :func:`new_frozen_student`.
        num_classes: C.
        unit: Whether the network that stands under them gives features of length 1.
    """
    torch.manual_seed(seed)
    backbone = Frozen(features_ND.shape[1], config.hidden, unit=unit)
    backbone.centre(features_ND)
    return StudentNet(backbone, backbone.width, num_classes, config.heads)


def save_network(config: StudentConfig, folder: Place) -> None:
    """Write the network under a frozen student into a folder, with how it takes images: a ``student.json``.

    Raises:
        UserError: The weights cannot be had, or do not fit.
    """
    assert config.network is not None
    module = initial_backbone(config.network, config.pretrained)
    image_size, interpolation = seen_by(config, None)
    set_image_size(module, image_size)
    preprocess = preprocess_of(module, image_size, interpolation)
    about = {"backbone": config.network, "frozen": {"unit": False}, "preprocess": asdict(preprocess)}
    (folder / WEIGHTS).write_bytes(weights_of(module))
    (folder / ABOUT).write_json(about)


def save_teachers_network(teacher: Place, name: str, folder: Place) -> None:
    """The same of a fetched teacher: its image tower.

    Args:
        teacher: Its folder, in open_clip's layout.
        name: As the config has it.
        folder: To write into.

    Raises:
        UserError: Its images are no squares.
    """
    tower = fetched_tower(teacher)
    cfg = tower["preprocess_cfg"]
    height, width = ClipPreprocess(cfg).size
    if height != width:
        raise UserError(
            f"student.features: teacher: its images are {height} x {width} pixels, and students see squares; give a "
            "timm model name"
        )
    is_middle = (cfg.get("resize_mode") or "shortest") == "shortest"
    preprocess = Preprocess(
        height, tuple(cfg["mean"]), tuple(cfg["std"]), tower_interpolation(tower), None if is_middle else cfg
    )
    state = safetensors.torch.load((teacher / MODEL_WEIGHTS).read_bytes())
    own = {name: value for name, value in state.items() if name.startswith(VISUAL)}
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(own))
    about = {"backbone": OPEN_CLIP + name, "frozen": {"unit": True, "tower": tower}, "preprocess": asdict(preprocess)}
    (folder / ABOUT).write_json(about)


def unfrozen(student: Student) -> Student:
    """The same student with ordinary heads on the network's own features: the centring is in their weights.

    Others stay as they are: those with a hidden layer, or on features of length 1, are no linear heads on a network.
    """
    backbone = student.model.backbone
    if not isinstance(backbone, Frozen) or backbone.network is None or backbone.hidden is not None or backbone.unit:
        return student
    model = copy.deepcopy(student.model)
    model.backbone = copy.deepcopy(backbone.network)
    with torch.no_grad():
        for column in student.columns:
            head = model.get_submodule(head_of(column))
            assert isinstance(head, nn.Linear)
            head.weight.div_(backbone.deviation)
            head.bias.sub_(head.weight @ backbone.mean_D)
    return replace(student, model=model, frozen=None)


class FrozenNetwork:
    """One copy of the network under a frozen student, to encode pixels.

    Args:
        folder: As :func:`save_network` leaves it.
        device: cpu or cuda.
        num_threads: Of one forward pass on the CPU.
    """

    def __init__(self, folder: Place, device: str, num_threads: int) -> None:
        self.preprocess, self.device, self.num_threads = read_preprocess(folder), device, num_threads
        about = (folder / ABOUT).read_json()
        self.unit = about["frozen"]["unit"]
        module, _ = network_of(about, self.preprocess)
        module.load_state_dict(safetensors.torch.load((folder / WEIGHTS).read_bytes()))
        self.module = module.eval().to(device)

    @torch.inference_mode()
    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Of uint8 [n, H, W, 3], float16 [n, D].

        Raises:
            UserError: One is beyond half precision, or not finite.
        """
        with limited_threads(self.num_threads):
            images = normalised(torch.from_numpy(np.array(pixels)).to(self.device), self.preprocess)
            features_ND = self.module(images).float()
            if self.unit:
                features_ND = F.normalize(features_ND, dim=-1)
        found: np.ndarray = features_ND.half().cpu().numpy()
        if not np.isfinite(found).all():
            largest = float(features_ND.abs().max())
            raise UserError(
                f"student.features: the network's features reach {largest:g}, and they are stored in half precision, "
                "up to 65504: take another one"
            )
        return found
