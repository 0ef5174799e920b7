"""The image tower of an open_clip model as a student's backbone; and the class texts that its heads may begin as.

A student holds the tower alone, and what it is built from is in ``student.json``: whoever loads one needs open_clip,
but no network, no tokenizer, and not the folder that it came from. open_clip takes seconds to import, so it is imported
where it is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from raykd.errors import UserError, one_line
from raykd.models.teacher import (
    MODEL_CONFIG,
    MODEL_WEIGHTS,
    check_name,
    check_teacher,
    check_vocabulary,
    fetch_weights,
    load_model,
    own_files,
    pretrained_model,
    text_features,
    tokenizer_of,
    tokens_of,
    write_model,
)
from raykd.store.place import Place

if TYPE_CHECKING:
    from raykd.config import StudentConfig, TowerConfig

FIELD = "student.backbone"
ARCHITECTURE = ("embed_dim", "vision_cfg", "quick_gelu")  # what of a model's config is its image tower's
VISUAL = "visual."  # what the names of its tensors begin with


class Tower(nn.Module):
    """Images float [N, 3, H, W] to embeddings float [N, D], of any length: ``encode_image`` without the other tower.

    Args:
        about: What it is built from, as :func:`about_tower` gives it. The weights are random ones.
    """

    def __init__(self, about: Mapping[str, Any]) -> None:
        super().__init__()
        self.about, self.image_size = about, tower_size(about)
        self.visual = self._built(about["model_cfg"])

    @staticmethod
    def _built(model_cfg: Mapping[str, Any]) -> Any:
        from open_clip.model import _build_vision_tower  # the towers' one builder: whole models need a tokenizer's code

        vision_cfg = {**model_cfg["vision_cfg"], "timm_model_pretrained": False}
        return _build_vision_tower(model_cfg["embed_dim"], vision_cfg, model_cfg.get("quick_gelu", False))

    @property
    def width(self) -> int:
        """D."""
        width: int = self.about["model_cfg"]["embed_dim"]
        return width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found = self.visual(images)
        embeddings_ND: torch.Tensor = found[0] if isinstance(found, tuple) else found  # CoCa's tower gives tokens, too
        return embeddings_ND

    def set_input_size(self, image_size: int) -> None:
        """Take square images of another size: position embeddings are resized as open_clip does it.

        Raises:
            UserError: This tower's cannot be (those of CLIP's ResNets).
        """
        if image_size == self.image_size:
            return
        self.image_size = image_size
        if hasattr(self.visual, "set_input_size"):  # timm's
            self.visual.set_input_size(image_size)
            return
        from open_clip.model import resize_pos_embed

        model_cfg = self.about["model_cfg"]
        other = self._built({**model_cfg, "vision_cfg": {**model_cfg["vision_cfg"], "image_size": image_size}})
        state = self.state_dict()
        self.visual = other
        resize_pos_embed(state, self)
        try:
            self.load_state_dict(state)
        except RuntimeError as error:
            raise UserError("its position embeddings are of that size alone") from error


# ---------------------------------------------------------------- what a tower is built from


def about_tower(model_cfg: Mapping[str, Any], preprocess_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's config, in open_clip's words, what its image tower needs; ``student.json`` holds it."""
    own = {name: model_cfg[name] for name in ARCHITECTURE if name in model_cfg}
    size = preprocess_cfg.get("size") or model_cfg["vision_cfg"].get("image_size", 224)
    return {"model_cfg": own, "preprocess_cfg": {**preprocess_cfg, "size": size}}


def fetched_tower(folder: Place) -> dict[str, Any]:
    """What the tower in a fetched model's folder is built from."""
    found = (folder / MODEL_CONFIG).read_json()
    return about_tower(found["model_cfg"], found["preprocess_cfg"])


def named_tower(config: TowerConfig) -> dict[str, Any]:
    """What the tower of a model is built from, by its name alone; of a hub's repo its config is fetched.

    Raises:
        UserError: That cannot be had.
    """
    import open_clip
    from open_clip.pretrained import download_pretrained_from_hf
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    schema, name = open_clip.factory.parse_model_name(config.open_clip_name)
    try:
        if schema is None:
            check_name(name, FIELD)
            found: dict[str, Any] = {"model_cfg": open_clip.get_model_config(name)}
        else:
            path = os.path.join(name, MODEL_CONFIG)
            if schema == "hf-hub":
                path = download_pretrained_from_hf(name, filename=MODEL_CONFIG)
            with open(path, encoding="utf-8") as stream:
                found = json.load(stream)
        preprocess_cfg = merge_preprocess_dict(asdict(PreprocessCfg()), found.get("preprocess_cfg", {}))
        size = found["model_cfg"]["vision_cfg"].get("image_size")
        return about_tower(found["model_cfg"], preprocess_cfg | ({"size": size} if size else {}))
    except UserError:
        raise
    except Exception as error:  # the hub has its own
        raise UserError(f"{FIELD}: cannot read the config of {config.open_clip_name!r}: {one_line(error)}") from error


def tower_size(about: Mapping[str, Any]) -> int:
    """The side of the images that a tower is made for.

    Raises:
        UserError: They are no squares.
    """
    size = about["preprocess_cfg"]["size"]
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UserError(
            f"{FIELD}: its images are {height} x {width} pixels, and students see squares; choose another model"
        )
    return int(height)


def tower_interpolation(about: Mapping[str, Any]) -> str:
    """How a tower's images are resized: ``bilinear`` or ``bicubic``."""
    return "bilinear" if about["preprocess_cfg"].get("interpolation") == "bilinear" else "bicubic"


# ---------------------------------------------------------------- its weights


def check_tower(config: StudentConfig, fetched: bool = False) -> None:
    """Whether a tower can be had, and the tokenizer of its texts if they are needed, without a download of weights.

    Args:
        config: Of a student with such a backbone.
        fetched: Whether the campaign has the model already: then it is not loaded once more.

    Raises:
        UserError: An unknown name (with the nearest) or tag, a missing file, one that is no checkpoint or of another
            model, no tokenizer.
    """
    model = config.tower
    assert model is not None
    if config.pretrained is False:
        named_tower(model)
        return
    check_teacher(model)
    if config.language_aware:
        try:
            tokenizer_of(model.open_clip_name, FIELD)
        except UserError as error:
            raise UserError(f"{error}. Or set student.language_aware to false, which needs no texts") from error
    if own_files(model) and not fetched:
        pretrained_model(model)


def fetch_tower(config: StudentConfig, folder: Place) -> int:
    """Write the tower of a student's backbone into a folder, in open_clip's layout; with language-aware heads, all of
    the model. Of a tower with random weights there is its config alone.

    Returns:
        The number of parameters.

    Raises:
        UserError: The weights cannot be had, or do not fit.
    """
    model = config.tower
    assert model is not None
    if config.pretrained is False:
        (folder / MODEL_CONFIG).write_json(named_tower(model))
        return 0
    if config.language_aware:
        return fetch_weights(model, folder)
    clip = pretrained_model(model)
    return write_model(model, clip, folder, {k: v for k, v in clip.state_dict().items() if k.startswith(VISUAL)})


def load_tower_weights(tower: Tower, folder: Place) -> None:
    """The weights of a fetched model."""
    state = safetensors.torch.load((folder / MODEL_WEIGHTS).read_bytes())
    tower.load_state_dict({name: value for name, value in state.items() if name.startswith(VISUAL)})


# ---------------------------------------------------------------- what its text tower says of the classes


def text_tokens(config: TowerConfig, texts: Sequence[Sequence[str]]) -> Any:
    """int64 [P, L], the prompts class by class as the tower's own tokenizer cuts them."""
    return tokens_of(config.open_clip_name, texts, FIELD)


def text_rows(
    folder: Place, tokens_PL: Any, num_prompts_C: Sequence[int], device: str, batch_size: int = 256
) -> np.ndarray:
    """The mean embedding of each class's prompts, as they are: not brought to length 1, as DHO's code has it.

    Args:
        folder: The fetched model, with both towers.
        tokens_PL: int64 [P, L], from :func:`text_tokens`.
        num_prompts_C: How many of them each class has.
        device: cpu or cuda.
        batch_size: Texts in one forward pass.

    Returns:
        float32 [C, D].

    Raises:
        UserError: The tokenizer does not belong to the text tower.
    """
    clip = load_model(folder, "fp32", device)
    check_vocabulary(clip, tokens_PL, FIELD)
    with torch.inference_mode():
        of_classes = text_features(clip, tokens_PL, device, batch_size).split(list(num_prompts_C))
        rows_CD: np.ndarray = torch.stack([texts_TD.mean(dim=0) for texts_TD in of_classes]).cpu().numpy()
    return rows_CD
