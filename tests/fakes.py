"""What tests put in place of the world: an object store, a tiny pool, a tiny teacher. The one module of fakes.

Nothing heavy is imported before it is used, so that what tests plain Python stays quick.
"""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pyarrow.fs as pafs
import pytest
from PIL import Image

from raykd.store.place import Place

CLASSES = ["red", "green", "blue"]


class Killed(BaseException):
    """Stands for kill -9: nothing that follows in raykd runs."""


@contextmanager
def killed_after(complete: int, stage: str) -> Iterator[None]:
    """Kills what runs in the block when so many folders of a stage are complete, and the next one all but is."""
    from raykd.store.stage_folder import Writing

    commit, left = Writing.commit, [complete]

    def deadly(out):
        if out.folder.name == stage:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        return commit(out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writing, "commit", deadly)
        with pytest.raises(Killed):
            yield


def ended(main: Callable, arguments: list) -> tuple[int, str]:
    """How a job's ``main`` ends: the exit code, and what it printed."""
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            return stop.code, printed.getvalue()
    return 0, printed.getvalue()


def images_read(patch: pytest.MonkeyPatch, called: Callable[[str], str] = str) -> list[str]:
    """The images that Ray Data is given to read, as they come: their uris, or what ``called`` makes of them."""
    from raykd.stages import map_images

    seen, blocks = [], map_images.even_blocks

    def watched(runs, *arguments):
        seen.extend(called(uri) for rows in runs.values() for uri in rows["uri"].to_pylist())
        return blocks(runs, *arguments)

    patch.setattr(map_images, "even_blocks", watched)
    return seen


def object_store(patch: pytest.MonkeyPatch, bucket: str = "mock://bucket", files: Path | None = None) -> Place:
    """A bucket that is not local: nothing in it can be renamed, and no place with its scheme leaves this process.

    Unlike a real one it wants folders to be made (``fs.create_dir``) before files are put into them.

    Args:
        patch: Undoes it.
        bucket: ``scheme://name``; every place with this scheme is on the same store. Options such as ``?region=`` are
            passed over.
        files: A folder that holds the objects as files; None: they are in memory.
    """
    scheme, name = bucket.split("://")
    store = pafs._MockFileSystem() if files is None else pafs.SubTreeFileSystem(str(files), pafs.LocalFileSystem())
    resolved = Place._resolved.func  # the one place that knows how a place finds its filesystem

    def resolve(place: Place) -> tuple[pafs.FileSystem, str]:
        if place.uri.startswith(f"{scheme}://"):
            return store, place.uri.removeprefix(f"{scheme}://").partition("?")[0]
        return resolved(place)

    patch.setattr(Place, "_resolved", property(resolve))
    store.create_dir(name, recursive=True)
    return Place(bucket)


def write_images(folder: Path, per_class: int, seed: int = 0, size: int = 24) -> Path:
    """A folder per class of noisy one-colour PNGs: easy to tell apart, all different."""
    rng = np.random.default_rng(seed)
    for c, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(per_class):
            pixels = rng.integers(0, 120, (size, size, 3), dtype=np.uint8)
            pixels[..., c] += rng.integers(60, 130, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:03d}.png")
    return folder


def write_teacher(folder: Path, image_size: int | tuple[int, int] = 24) -> Path:
    """An open_clip model with random weights, in open_clip's own layout (``local-dir:``); sides are multiples of 8."""
    import open_clip
    import safetensors.torch
    import torch

    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": image_size, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    state = open_clip.CLIP(**model).state_dict()
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    preprocess = {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": preprocess}))
    return folder


def tiny_campaign(storage: Path, pool: Path, teacher: Path) -> dict:
    """The settings of a campaign: 3 classes, 2 rounds, everything that takes time as small as it goes."""
    return {
        "storage_path": str(storage),
        "rounds": 2,
        "pool": {"path": str(pool), "format": "class_folders"},
        "test_share": 0.2,
        "val_share": 0.2,
        "teacher": {"model": f"local-dir:{teacher}", "batch_size": 16},
        "student": {
            "backbone": "test_vit", "pretrained": False, "image_size": 32, "steps": 6, "batch_labeled": 4,
            "batch_unlabeled": 8, "flip": False, "checkpoints": 3, "predict_batch_size": 32,
        },
        "selection": {"strategy": "pcoreset", "budget": 3, "shards": 1, "num_cpus": 0.1},
        "labels": {"oracle": "simulated", "start": "one_per_class"},
        "progress": "none",
    }  # fmt: skip


def new_campaign(settings: dict, *overrides: str):
    """A campaign in this process, on the session's Ray; what it says is in ``campaign.progress.stream``."""
    from raykd.config import load
    from raykd.stages.campaign import Campaign, note_config
    from raykd.stages.progress import Progress
    from raykd.stages.session import Session
    from raykd.store.place import Place

    config = load(settings, overrides)
    place, progress = Place.of(config.storage_path), Progress("lines", io.StringIO())
    campaign = Campaign(config=config, place=place, progress=progress, session=Session())
    note_config(campaign, [])
    return campaign


def tiny_student(classes: list[str]):
    """A student with random weights, of 32-pixel images."""
    import torch

    from raykd.algo.dho import StudentNet
    from raykd.models.preprocess import Preprocess
    from raykd.models.student import Student, make_backbone

    torch.manual_seed(0)
    net = StudentNet(*make_backbone("test_resnet"), len(classes))
    return Student(net, "test_resnet", classes, Preprocess(32, (0.5,) * 3, (0.5,) * 3))


def write_siglip(folder: Path) -> tuple[Path, Path]:
    """A model config file and a checkpoint file of a SigLIP-like model: separate text tower, sigmoid bias."""
    import open_clip
    import safetensors.torch
    import torch

    model = {
        "embed_dim": 16,
        "init_logit_bias": -10,
        "vision_cfg": {"image_size": 24, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(1)
    state = open_clip.model.CustomTextCLIP(**model).state_dict()
    state["logit_bias"] -= 2.5
    safetensors.torch.save_file(state, folder / "weights.safetensors")
    (folder / "tiny-sigmoid.json").write_text(json.dumps(model | {"custom_text": True}))
    return folder / "tiny-sigmoid.json", folder / "weights.safetensors"


_VISION = {"image_size": 24, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
_TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
_SIGLIP_TEXT = _TEXT | {
    "tokenizer_kwargs": {"clean": "canonicalize"}, "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip
_SIGLIP = {"embed_dim": 96, "init_logit_bias": -10, "custom_text": True, "text_cfg": _SIGLIP_TEXT, "vision_cfg": {
    "image_size": 160, "timm_model_name": "test_vit3", "timm_model_pretrained": False, "timm_pool": "map",
    "timm_proj": "none",
}}  # fmt: skip
_COCA_TEXT = _TEXT | {"context_length": 11}  # one less than it has places: the last is the CLS token's
FAMILIES = {  # open_clip's own configs made tiny: ViT-B-32, ViT-B-16-SigLIP, coca_ViT-B-32
    "clip": {"embed_dim": 16, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "custom_text": {"embed_dim": 16, "custom_text": True, "vision_cfg": _VISION, "text_cfg": _TEXT},
    "siglip": _SIGLIP,
    "siglip_of_shape_1": _SIGLIP | {"nonscalar_logit_scale": True},
    "coca": {
        "embed_dim": 16, "custom_text": True,
        "vision_cfg": _VISION | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": _COCA_TEXT | {"embed_cls": True, "output_tokens": True},
        "multimodal_cfg": _COCA_TEXT | {"attn_pooler_heads": 2},
    },
}  # fmt: skip
_OPENAI = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711],
           "interpolation": "bicubic", "resize_mode": "shortest"}  # fmt: skip
SIGLIP_PREPROCESS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


def write_family(folder: Path, family: str) -> Path:
    """A model of a family (:data:`FAMILIES`) in open_clip's own layout, every one of its numbers random."""
    import open_clip
    import safetensors.torch
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    preprocess = SIGLIP_PREPROCESS if "siglip" in family else _OPENAI
    about = {"model_cfg": FAMILIES[family], "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}")
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.startswith("text_decoder."):
                values.zero_()  # open_clip leaves some of CoCa's uninitialised
            values += 0.1 * torch.randn_like(values)  # biases begin as 0 and could be lost unseen
    state = {name: value.contiguous() for name, value in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    return folder


def png(seed: int = 0) -> bytes:
    """A small picture of noise."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def write_pngs(folder: Path, *names: str) -> Path:
    """Pictures, all different, under these names."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    return folder


def listed(path, classes=None, split="pool", kept=None, **fields):
    """A source's listing, and the lines that were said."""
    from raykd.config import Source
    from raykd.images.sources import list_source
    from raykd.store.tables import MANIFEST

    said: list[str] = []
    source = Source(path=str(path), **fields)
    listing = list_source(source, split, classes, lambda _, line: said.append(line), kept)
    assert listing.rows.schema == MANIFEST
    return listing, "\n".join(said)


def ids(listing) -> list[str]:
    return listing.rows["sample_id"].to_pylist()


def pictures(listing) -> list:
    """The pixels of a listing's images, or in words why there are none."""
    from raykd.images.reading import load_many
    from raykd.images.stored import ImageReader

    return list(load_many(ImageReader(), listing.rows["uri"].to_pylist(), np.asarray))


def load_all(reader, uris: list[str], transform) -> list:
    """What each uri gives, as a list."""
    from raykd.images.reading import load_many

    return list(load_many(reader, uris, transform))


def encode(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def picture(seed=0, height=20, width=30):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def same(image):
    return image
