"""The teacher: any open_clip model, as weights and a config in a folder, fetched once.

open_clip and torch take seconds to import, so they are imported where they are used.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow.fs as pafs

from raykd.config import ModelConfig
from raykd.errors import UserError, did_you_mean
from raykd.images.decoding import instead
from raykd.models.threads import limited_threads
from raykd.store.place import Place

MODEL_CONFIG, MODEL_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
WEIGHTS_NAMES = (  # that open_clip looks for in a folder; of several it takes the first
    MODEL_WEIGHTS, "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin", "open_clip_pytorch_model.pth",
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip
MODEL_FILES = (".json", ".safetensors", ".bin", ".pth", ".pt", ".txt", ".model")  # of a local folder: what may be read


def check_teacher(config: ModelConfig) -> None:
    """Whether open_clip knows what the config names, and every file is there; nothing is fetched.

    Raises:
        UserError: An unknown name (with the nearest), a missing file, weights that do not belong to the model.
    """
    import open_clip

    called = config.called
    if config.model_config_file:
        field = called["model_config_file"]
        if not os.path.isfile(config.model_config_file):
            raise UserError(f"{field}: no file {config.model_config_file!r}")
        check_model_config(config.model_config_file, field, ("embed_dim", "vision_cfg", "text_cfg"))
        open_clip.add_model_config(config.model_config_file)
    schema, name = open_clip.factory.parse_model_name(config.open_clip_name)
    if schema == "local-dir":
        check_folder(config, name)
    elif schema is None:
        check_name(name, called["model"])
        tags = open_clip.list_pretrained_tags_by_model(name)
        field = called["pretrained"]
        if not config.pretrained:
            raise UserError(f"{field}: {name} needs weights: a checkpoint file or one of {', '.join(tags)}")
        if config.pretrained not in tags and not os.path.isfile(config.pretrained):
            raise UserError(f"{field}: {config.pretrained!r} is no file and none of {name}'s tags: {', '.join(tags)}")
        if config.pretrained not in tags:
            check_checkpoint(config.pretrained, field)
        tag = open_clip.get_pretrained_cfg(name, config.pretrained)
        if tag.get("quick_gelu", False) and not (open_clip.get_model_config(name) or {}).get("quick_gelu", False):
            raise UserError(
                f"{called['model']}: the weights {config.pretrained!r} were trained with QuickGELU, which {name} has "
                f"not; use {name}-quickgelu"
            )


def check_name(name: str, field: str = "teacher.model") -> None:
    """Raises UserError with the nearest name when open_clip has no model ``name``; names the field."""
    import open_clip

    if name not in open_clip.list_models():
        raise UserError(f"unknown {field} {name!r}; {did_you_mean(name, open_clip.list_models())}")


def check_folder(config: ModelConfig, folder: str) -> None:
    """Whether a local folder holds a model: its config, and whole weights under a name that open_clip looks for."""
    field = config.called["model"]
    where = f"{field}: the folder {folder!r}"
    if not os.path.isdir(folder):
        relative = "" if os.path.isabs(folder) else f" (looked for in {os.getcwd()}, where this job runs)"
        raise UserError(f"{where} is not there{relative}; give one that every node sees")
    if not os.path.isfile(os.path.join(folder, MODEL_CONFIG)):
        raise UserError(f"{where} has no {MODEL_CONFIG}; it holds {_listed(folder)}")
    check_model_config(os.path.join(folder, MODEL_CONFIG), field, ("model_cfg",))
    paths = [os.path.join(folder, name) for name in WEIGHTS_NAMES]
    weights = next(filter(os.path.isfile, paths), None)
    if weights is None:
        raise UserError(
            f"{where} has no weights; expected one of {', '.join(WEIGHTS_NAMES)}, it holds {_listed(folder)}"
        )
    check_checkpoint(weights, field)
    for path in own_files(config):
        if path not in paths and "pointer" in (what := instead(_start(path)) or ""):
            raise UserError(f"{field}: {path}: {what}")


def check_model_config(path: str, field: str, keys: Sequence[str]) -> None:
    """Whether a JSON file holds what open_clip takes from it. Raises UserError that names the file."""
    with open(path, "rb") as stream:
        data = stream.read()
    try:
        found = json.loads(data)
    except ValueError as error:
        what = instead(data[:1024])
        raise UserError(f"{field}: {path} is not JSON: {what if what and what != 'it is text' else error}") from error
    if not isinstance(found, dict) or (missing := [key for key in keys if key not in found]):
        lacking = ", ".join(keys if not isinstance(found, dict) else missing)
        raise UserError(f"{field}: {path} lacks {lacking}; expected a model's config as open_clip writes it")


def check_checkpoint(path: str, field: str) -> None:
    """Whether a file of weights is whole, as far as its beginning, its end and its size tell; reads no weights.

    Raises:
        UserError: It is empty, cut off, or something else, such as a Git LFS pointer.
    """
    start = _start(path)
    if path.endswith(".safetensors"):
        what = _wrong_in_safetensors(path, start)
    elif start.startswith(b"PK"):  # as torch.save writes it
        what = None if zipfile.is_zipfile(path) else "it is cut off"
    else:
        what = instead(start)
    if what:
        raise UserError(f"{field}: {path} holds no weights that can be read: {what}; fetch it again")


def _wrong_in_safetensors(path: str, start: bytes) -> str | None:
    """Its header, JSON behind 8 bytes of its length, says how long it is."""
    size, header_end = os.path.getsize(path), 8 + int.from_bytes(start[:8], "little")
    if start[8:9] != b"{":
        return instead(start) or "it does not begin as safetensors does"
    if size < header_end:
        return "it is cut off"
    with open(path, "rb") as stream:
        header = stream.read(header_end)[8:]
    try:
        ends = [about["data_offsets"][1] for name, about in json.loads(header).items() if name != "__metadata__"]
    except (ValueError, KeyError, TypeError):
        return "its header is damaged"
    whole = header_end + max(ends, default=0)
    return f"it is cut off: {size:,} of {whole:,} bytes" if size < whole else None


def _start(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(1024)


def _listed(folder: str, limit: int = 8) -> str:
    names = sorted(os.listdir(folder))
    return (", ".join(names[:limit]) + (", ..." if len(names) > limit else "")) or "nothing"


def tokenizer_of(model: str, field: str = "teacher.model") -> Any:
    """open_clip's tokenizer of a model; ``field`` is what messages call it.

    Raises:
        UserError: It needs transformers (SigLIP, Hugging Face text towers), which is not installed, or cannot be had;
            or this process knows no such model, of which open_clip would silently take CLIP's own tokenizer.
    """
    import open_clip

    if open_clip.factory.parse_model_name(model)[0] is None:
        check_name(model, field)
    try:
        return open_clip.get_tokenizer(model)
    except ImportError as error:
        raise UserError(f"{field}: the tokenizer of {model!r} needs {error.name}: pip install raykd[hf]") from error
    except (OSError, ValueError) as error:
        what = field.partition(".")[0]
        raise UserError(f"{field}: cannot load {what} {model!r}, its tokenizer: {error}") from error


def own_files(config: ModelConfig) -> list[str]:
    """The user's own files that the model comes from: checkpoint, model config, those of a local folder."""
    schema, _, folder = config.open_clip_name.partition("local-dir:")
    found = [path for path in (config.pretrained, config.model_config_file) if path and os.path.isfile(path)]
    if not schema and os.path.isdir(folder):
        found += [entry.path for entry in os.scandir(folder) if entry.is_file() and entry.name.endswith(MODEL_FILES)]
    return sorted(found)


def fetch_weights(config: ModelConfig, folder: Place) -> int:
    """Write a model's weights and ``open_clip_config.json`` into a folder, by open_clip's ordinary path.

    ``custom_text``, ``multimodal_cfg`` and the like are kept, so the folder loads as the same class.

    Returns:
        The number of parameters.

    Raises:
        UserError: The weights cannot be had, do not fit, or are no teacher's.
    """
    field = config.called["model"]
    tokenizer = tokenizer_of(config.open_clip_name, field)  # what it lacks is said before any weights are fetched
    model = pretrained_model(config)
    check_towers(model, tokenizer([""]), field)
    return write_model(config, model, folder, model.state_dict())


def pretrained_model(config: ModelConfig) -> Any:
    """open_clip's model with its weights, on the CPU. Raises UserError when they cannot be had, or do not fit."""
    import open_clip

    try:
        return open_clip.create_model(
            config.open_clip_name,
            config.pretrained,
            require_pretrained=True,
            force_preprocess_cfg=published_preprocess(config),
        ).eval()
    except Exception as error:
        bias = isinstance(error, AttributeError) and "'ndim'" in str(error)  # as open_clip fails on a bias it has not
        hint = '. The weights have a logit_bias: put "init_logit_bias": -10 into the model\'s config' if bias else ""
        what = config.called["model"].partition(".")[0]
        raise UserError(
            f"cannot load {what} {config.model!r} with pretrained {config.pretrained!r}: {error}{hint}"
        ) from error


def write_model(config: ModelConfig, model: Any, folder: Place, state: Mapping[str, Any]) -> int:
    """Write what is needed of a model in open_clip's own layout: these tensors, and its config; how many numbers."""
    import open_clip
    import safetensors.torch

    state = {name: value.contiguous().clone() for name, value in state.items()}
    (folder / MODEL_WEIGHTS).write_bytes(safetensors.torch.save(state))
    about = {
        "model_cfg": open_clip.get_model_config(config.open_clip_name),
        "preprocess_cfg": dict(model.visual.preprocess_cfg),
    }
    (folder / MODEL_CONFIG).write_json(about)
    return int(sum(value.numel() for value in state.values()))


def published_preprocess(config: ModelConfig) -> dict[str, Any] | None:
    """How images are prepared for a checkpoint file of a model whose published weights all agree on it, else None.

    open_clip knows mean, deviation and resizing by the tag; of a file it would take OpenAI CLIP's, wrong for SigLIP.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(config.open_clip_name)
    if not config.pretrained or config.pretrained in tags:
        return None
    keys = ("mean", "std", "interpolation", "resize_mode")
    known = [open_clip.get_pretrained_cfg(config.open_clip_name, tag) for tag in tags]
    found = [{key: about[key] for key in keys if key in about} for about in known]
    return found[0] if found and all(one == found[0] for one in found) else None


def check_towers(model: Any, tokens_PL: Any, field: str = "teacher.model") -> None:
    """Whether a model can score classes: an image and a text become vectors of one width, and cosines have a scale.

    Cost: a forward pass of one black image and of the texts.

    Args:
        model: open_clip's, on the CPU.
        tokens_PL: int64 [P, L], texts by its own tokenizer.
        field: What messages call it.

    Raises:
        UserError: It lacks a tower or a scale, or its towers or its tokenizer do not belong together.
    """
    import torch

    if getattr(model, "logit_scale", None) is None or model.logit_scale.numel() != 1:
        raise UserError(f"{field}: {type(model).__name__} has no single logit_scale, so cosines are no logits")
    check_vocabulary(model, tokens_PL, field)
    size = model.visual.preprocess_cfg["size"]
    image_1CHW = torch.zeros(1, 3, *((size, size) if isinstance(size, int) else size))
    widths = {}
    for kind, given in {"image": image_1CHW, "text": tokens_PL}.items():
        try:
            with torch.inference_mode():
                found = getattr(model, f"encode_{kind}")(given)
            if found.ndim != 2:
                raise ValueError(f"it is of shape {list(found.shape)}")
        except Exception as error:
            raise UserError(
                f"{field}: {type(model).__name__} makes no embedding, one vector, of each {kind}: {error}. "
                f"Look at {kind.replace('image', 'vision')}_cfg (pool_type, output_tokens, ...) of its config, or take "
                "another model"
            ) from error
        widths[kind] = found.shape[1]
    if len(set(widths.values())) > 1:
        raise UserError(
            f"{field}: its image vectors are {widths['image']} wide and its text vectors {widths['text']}; cosines "
            "need the same of both: look at embed_dim and the projections of its config"
        )


def check_vocabulary(model: Any, tokens_PL: Any, field: str = "teacher.model") -> None:
    """Whether the text tower knows all tokens. Raises UserError; open_clip would fail in the middle of it."""
    # CoCa has it in its text tower alone; 0 is Hugging Face's "not known"
    vocabulary = getattr(model, "vocab_size", None) or getattr(getattr(model, "text", None), "vocab_size", None)
    if vocabulary and int(tokens_PL.max()) >= vocabulary:
        raise UserError(
            f"{field}: its tokenizer gives tokens up to {int(tokens_PL.max())}, its text tower knows "
            f"{vocabulary}: they do not belong together. Name the right one as hf_tokenizer_name under text_cfg "
            f"in {MODEL_CONFIG}, or take the model's own folder"
        )


def read_clip_preprocess(folder: Place) -> dict[str, Any]:
    """open_clip's ``preprocess_cfg`` of a fetched model; imports no torch."""
    preprocess: dict[str, Any] = (folder / MODEL_CONFIG).read_json()["preprocess_cfg"]
    return preprocess


@contextmanager
def local_copy(place: Place) -> Iterator[str]:
    """A folder as a local path, copied aside when it is not local."""
    if place.is_local:
        yield place.path
        return
    with tempfile.TemporaryDirectory(prefix="raykd-") as folder:
        pafs.copy_files(place.path, folder, source_filesystem=place.fs, destination_filesystem=pafs.LocalFileSystem())
        yield folder


def load_model(place: Place, precision: str, device: str) -> Any:
    """The fetched model, ready to encode."""
    import open_clip

    with local_copy(place) as folder:
        model = open_clip.create_model(
            f"local-dir:{folder}", precision=precision, device=device, require_pretrained=True
        )
    for module in model.modules():  # CoCa's; open_clip 3.3 leaves its query in float32, and then cannot use it
        if isinstance(module, open_clip.transformer.AttentionalPooler):
            module.query.data = module.query.data.to(module.attn.out_proj.weight.dtype)
    return model.eval()


class ImageTower:
    """One copy of the image tower, to encode pixels.

    Args:
        folder: The fetched model.
        precision: fp32, fp16 or bf16.
        device: cpu or cuda.
        num_threads: Of one forward pass on the CPU.
    """

    def __init__(self, folder: Place, precision: str, device: str, num_threads: int) -> None:
        import open_clip
        import torch

        self.torch, self.device, self.num_threads = torch, device, num_threads
        self.model = load_model(folder, precision, device)
        self.dtype = open_clip.get_input_dtype(precision) or torch.float32
        preprocess = self.model.visual.preprocess_cfg
        self.mean, self.std = (
            255 * torch.tensor(preprocess[key], device=device).view(3, 1, 1) for key in ("mean", "std")
        )

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """Of uint8 [n, H, W, 3], float16 [n, D], of length 1 before they are rounded."""
        torch = self.torch
        with limited_threads(self.num_threads), torch.inference_mode():
            images = torch.from_numpy(pixels.copy()).to(self.device).permute(0, 3, 1, 2).float()
            images = images.sub_(self.mean).div_(self.std)
            features_ND = self.model.encode_image(images.to(self.dtype), normalize=True).float()
        found: np.ndarray = features_ND.cpu().numpy().astype(np.float16)
        return found


def tokens_of(model: str, texts: Sequence[Sequence[str]], field: str = "teacher.model") -> Any:
    """int64 [P, L], the prompts class by class as the model's tokenizer cuts them.

    Where the config was checked: no other process knows a ``model_config_file`` by its name.
    """
    return tokenizer_of(model, field)([text for own in texts for text in own])


class TextEmbeddings(NamedTuple):
    """What a model says of the classes.

    Args:
        classes_CD: float32 [C, D], rows of length 1.
        lengths_C: float32 [C], the mean length of the prompts' embeddings, before they were brought to 1.
        scale, bias: The model's own; 0: it has no bias.
    """

    classes_CD: np.ndarray
    lengths_C: np.ndarray
    scale: float
    bias: float


def encode_texts(
    folder: Place, tokens_PL: Any, num_prompts_C: Sequence[int], device: str, batch_size: int = 256
) -> TextEmbeddings:
    """Class embeddings from the prompts of each class.

    Args:
        folder: The fetched model.
        tokens_PL: int64 [P, L], from :func:`tokens_of`.
        num_prompts_C: How many of them each class has.
        device: cpu or cuda.
        batch_size: Texts in one forward pass.

    Raises:
        UserError: The tokenizer does not belong to the text tower.
    """
    import torch

    from raykd.algo.zeroshot import class_embeddings

    clip = load_model(folder, "fp32", device)
    check_vocabulary(clip, tokens_PL)
    with torch.inference_mode():
        features_PD = text_features(clip, tokens_PL, device, batch_size)
        classes_CD = class_embeddings(features_PD, num_prompts_C).cpu().numpy()
        of_classes = features_PD.norm(dim=1).split(list(num_prompts_C))
        lengths_C = torch.stack([lengths_T.mean() for lengths_T in of_classes]).cpu().numpy()
    # scalars, or of shape [1] where the model's config says nonscalar_logit_scale
    scale = clip.logit_scale.detach().exp().item()
    bias = getattr(clip, "logit_bias", None)
    return TextEmbeddings(classes_CD, lengths_C, scale, 0.0 if bias is None else bias.detach().item())


def text_features(model: Any, tokens_PL: Any, device: str, batch_size: int) -> Any:
    """float32 [P, D] on the device: the embeddings of texts, as they are, of any length."""
    import torch

    batches = (batch.to(device) for batch in tokens_PL.split(batch_size))
    return torch.cat([model.encode_text(batch, normalize=False).float() for batch in batches])  # CoCa's default is True
