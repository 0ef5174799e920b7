"""The teacher's pass: features and zero-shot logits of every image, once per campaign."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.fs as pafs
import ray

from raykd.algo.prompts import prompts, templates
from raykd.config import Teacher
from raykd.errors import UserError
from raykd.images.reading import UNREACHABLE
from raykd.stages.campaign import Campaign, sha256_of
from raykd.stages.map_images import FILLER, Fetch, stream
from raykd.stages.pool import read_classes, read_manifest
from raykd.stages.progress import Ticker
from raykd.store.place import Place
from raykd.store.stage_folder import Stage
from raykd.store.tables import SPLITS, vectors

MODEL_CONFIG, MODEL_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
MODEL_FILES = (".json", ".safetensors", ".bin", ".pth")  # of a local folder: what open_clip reads


def score(campaign: Campaign, pool: Stage) -> Stage:
    """The teacher table: ``data/`` (features, logits) and ``quarantine.parquet`` (images that cannot be read).

    Images that are not there, or not for us to read, may be mended and scored in the next attempt, so when they are
    more than ``max_bad_share`` of a split there is no table yet. Broken ones stay broken: the table is kept.

    Raises:
        ValueError: More than ``max_bad_share`` of the images cannot be read; says which, or where the list is.
        StorageError: The network, the credentials or a disk fail.
    """
    config, classes = campaign.config.teacher, read_classes(pool)
    chosen = templates(config.templates)
    model = fetch_model(campaign)
    stage = campaign.stage(
        "teacher",
        {
            "model": model.fingerprint,
            "templates": chosen,
            "classes": classes,
            "precision": config.precision,
            "manifest": pool.facts["content"],
        },
    )
    if not stage.is_done():
        rows = read_manifest(pool)
        with stage.writing() as out, campaign.progress.stage("teacher", rows.num_rows, "images") as ticker:
            text = embed_classes(config, model.place, prompts(classes, chosen), len(classes))
            check_classes(classes, text)
            fetch = Fetch(*pixel_transform(model.place))
            arguments = {"model": model.place, "classes_CD": text, "precision": config.precision,
                         "device": device(config.num_gpus), "ticker": ticker}  # fmt: skip
            stream(rows, fetch, Replica, arguments, out.place / "data", batch_size=config.batch_size,
                   replicas=config.replicas, num_cpus=config.num_cpus, num_gpus=config.num_gpus)  # fmt: skip
            bad = quarantine(out.place / "data", rows)
            away = bad.filter(pc.starts_with(bad["reason"], UNREACHABLE))
            check_splits("teacher", rows, away["sample_id"], campaign.config.max_bad_share)
            (out.place / "quarantine.parquet").write_table(bad)
            out.facts |= {"rows": rows.num_rows, "unreadable": bad.num_rows}
    check_share(campaign, stage)
    return stage


def device(num_gpus: float) -> str:
    return "cuda" if num_gpus else "cpu"


class Replica:
    """One copy of the image tower, in an actor.

    Args:
        model: Folder of the fetched model.
        classes_CD: float32 [C, D], class embeddings of length 1.
    """

    def __init__(self, model: Place, classes_CD: np.ndarray, precision: str, device: str, ticker: Ticker) -> None:
        import torch
        from torchvision.transforms import Normalize

        self.torch, self.device, self.precision, self.ticker = torch, device, precision, ticker
        self.model, preprocess = load_model(model, precision, device)
        self.normalise = Normalize(preprocess["mean"], preprocess["std"])
        self.classes_CD = torch.from_numpy(classes_CD).to(device)
        self.scale, self.bias = scale_and_bias(self.model)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        import open_clip

        from raykd.algo.zeroshot import zero_shot_logits

        with self.torch.inference_mode():
            pixels = self.torch.from_numpy(batch["pixels"].copy()).to(self.device).permute(0, 3, 1, 2).float() / 255
            images = self.normalise(pixels).to(open_clip.get_input_dtype(self.precision) or self.torch.float32)
            features_ND = self.model.encode_image(images, normalize=True).float()
            logits_NC = zero_shot_logits(features_ND, self.classes_CD, self.scale, self.bias)
        bad_N = batch["error"] != ""
        real_N = batch["error"] != FILLER
        self.ticker.add(real_N.sum())
        return pa.table(
            {
                "sample_id": pa.array(batch["sample_id"], pa.string()),
                "split": pa.array(batch["split"], pa.string()),
                "error": pa.array(batch["error"], pa.string(), mask=~bad_N),
                "features": vectors(features_ND.cpu().numpy().astype(np.float16), bad_N),
                "logits": vectors(logits_NC.cpu().numpy(), bad_N),
            }
        ).filter(pa.array(real_N))


# ---------------------------------------------------------------- the model


def check_teacher(config: Teacher) -> None:
    """Whether open_clip knows what the config names; nothing is fetched. Raises ValueError with the nearest names."""
    import open_clip

    if config.model_config_file:
        if not os.path.isfile(config.model_config_file):
            raise UserError(f"teacher.model_config_file: no file {config.model_config_file!r}")
        open_clip.add_model_config(config.model_config_file)
    schema, name = open_clip.factory.parse_model_name(config.open_clip_name)
    if schema == "local-dir":
        if not os.path.isfile(os.path.join(name, MODEL_CONFIG)):
            raise UserError(f"teacher.model: no {MODEL_CONFIG} in the folder {name!r}")
        return
    if schema is None:
        if name not in open_clip.list_models():
            near = difflib.get_close_matches(name, open_clip.list_models(), n=5)
            raise UserError(f"unknown teacher.model {name!r}; open_clip has {', '.join(near) or 'nothing like it'}")
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not config.pretrained:
            raise UserError(f"teacher.pretrained: {name} needs weights: a checkpoint file or one of {', '.join(tags)}")
        if config.pretrained not in tags and not os.path.isfile(config.pretrained):
            raise UserError(
                f"teacher.pretrained: {config.pretrained!r} is no file and none of {name}'s tags: {', '.join(tags)}"
            )
        tag = open_clip.get_pretrained_cfg(name, config.pretrained)
        if tag.get("quick_gelu", False) and not (open_clip.get_model_config(name) or {}).get("quick_gelu", False):
            raise UserError(
                f"teacher.model: the weights {config.pretrained!r} were trained with QuickGELU, which {name} has not; "
                f"use {name}-quickgelu"
            )


def tokenizer_of(model: str) -> Any:
    """open_clip's tokenizer of a model.

    Raises:
        ValueError: It needs transformers (SigLIP, Hugging Face text towers), which is not installed, or cannot be had.
    """
    import open_clip

    try:
        return open_clip.get_tokenizer(model)
    except ImportError as error:
        raise UserError(
            f"teacher.model: the tokenizer of {model!r} needs {error.name}: pip install raykd[hf]"
        ) from error
    except OSError as error:
        raise UserError(f"teacher.model: cannot get the tokenizer of {model!r}: {error}") from error


def fetch_model(campaign: Campaign) -> Stage:
    """The teacher's weights and config in the campaign's folder, so that no replica downloads anything."""
    config = campaign.config.teacher
    inputs: dict[str, Any] = {
        "model": config.model,
        "pretrained": config.pretrained,
        "files": {os.path.basename(path): sha256_of(path) for path in own_files(config)},
    }
    stage = campaign.stage("teacher_model", inputs)
    if not stage.is_done():
        with stage.writing() as out:
            tokenizer_of(config.open_clip_name)  # what it lacks is said before any weights are fetched
            state, about = resolve(config)
            import safetensors.torch

            (out.place / MODEL_WEIGHTS).write_bytes(safetensors.torch.save(state))
            (out.place / MODEL_CONFIG).write_json(about)
            out.facts["parameters"] = int(sum(value.numel() for value in state.values()))
        campaign.say("teacher model", f"{config.model}, {stage.facts['parameters'] / 1e6:,.1f} M parameters")
    return stage


def own_files(config: Teacher) -> list[str]:
    """The user's own files that the model comes from: checkpoint, model config, those of a local folder."""
    schema, _, folder = config.open_clip_name.partition("local-dir:")
    found = [path for path in (config.pretrained, config.model_config_file) if path and os.path.isfile(path)]
    if not schema and folder:
        found += [entry.path for entry in os.scandir(folder) if entry.is_file() and entry.name.endswith(MODEL_FILES)]
    return sorted(found)


def resolve(config: Teacher) -> tuple[dict[str, Any], dict[str, Any]]:
    """A model by open_clip's ordinary path, as its weights and an ``open_clip_config.json``.

    Raises:
        ValueError: The weights cannot be had, or do not fit.
    """
    import open_clip

    try:
        model = open_clip.create_model(config.open_clip_name, pretrained=config.pretrained, require_pretrained=True)
    except Exception as error:
        raise UserError(
            f"cannot load teacher {config.model!r} with pretrained {config.pretrained!r}: {error}"
        ) from error
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    about = {
        "model_cfg": open_clip.get_model_config(config.open_clip_name),
        "preprocess_cfg": dict(model.visual.preprocess_cfg),
    }
    return state, about


@contextmanager
def local_copy(place: Place) -> Iterator[str]:
    """A folder as a local path, copied aside when it is not local."""
    if place.is_local:
        yield place.path
        return
    with tempfile.TemporaryDirectory(prefix="raykd-") as folder:
        pafs.copy_files(place.path, folder, source_filesystem=place.fs, destination_filesystem=pafs.LocalFileSystem())
        yield folder


def load_model(place: Place, precision: str, device: str) -> tuple[Any, dict[str, Any]]:
    """The fetched model, ready to encode, and its preprocessing."""
    import open_clip

    with local_copy(place) as folder:
        model = open_clip.create_model(f"local-dir:{folder}", precision=precision, device=device)
    return model.eval(), model.visual.preprocess_cfg


def scale_and_bias(model: Any) -> tuple[float, float]:
    bias = getattr(model, "logit_bias", None)
    return float(model.logit_scale.exp()), 0.0 if bias is None else float(bias)


def pixel_transform(place: Place) -> tuple[Any, tuple[int, int]]:
    """open_clip's own preprocessing up to the RGB pixels (its last two steps are done in the actor), and their size."""
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    config = PreprocessCfg(**(place / MODEL_CONFIG).read_json()["preprocess_cfg"])
    size = (config.size, config.size) if isinstance(config.size, int) else tuple(config.size)
    return Compose(image_transform_v2(config, is_train=False).transforms[:-2]), size


def check_classes(classes: list[str], classes_CD: np.ndarray) -> None:
    """Refuse a teacher that cannot tell two classes apart, by ValueError: it would always score them alike."""
    cosines_CC = np.triu(classes_CD.astype(np.float64) @ classes_CD.T, 1)
    first, second = np.unravel_index(int(cosines_CC.argmax()), cosines_CC.shape)
    if cosines_CC[first, second] > 1 - 1e-6:
        raise UserError(
            f"classes {classes[first]!r} and {classes[second]!r} are the same text to the teacher: its tokenizer does "
            "not know what differs, or cuts it off. Give them other names in the class list, or another teacher"
        )


def embed_classes(config: Teacher, place: Place, texts: list[str], num_classes: int) -> np.ndarray:
    """Class embeddings, float32 [C, D]: tokens made here, encoded on a GPU when the teacher has one."""
    tokens = tokenizer_of(config.open_clip_name)(texts).numpy()
    if not config.num_gpus:
        return encode_texts(place, tokens, num_classes, "cpu")
    encode = ray.remote(encode_texts).options(num_cpus=config.num_cpus, num_gpus=config.num_gpus)
    return ray.get(encode.remote(place, tokens, num_classes, "cuda"))


def encode_texts(
    place: Place, tokens_PL: np.ndarray, num_classes: int, device: str, batch_size: int = 256
) -> np.ndarray:
    import torch

    from raykd.algo.zeroshot import class_embeddings

    model, _ = load_model(place, "fp32", device)
    with torch.inference_mode():
        batches = torch.from_numpy(tokens_PL).split(batch_size)
        features_PD = torch.cat([model.encode_text(batch.to(device)).float() for batch in batches])
        return class_embeddings(features_PD, num_classes).cpu().numpy()


# ---------------------------------------------------------------- images that cannot be read


def quarantine(data: Place, rows: pa.Table) -> pa.Table:
    """The rows of the teacher table without vectors, with uri and reason."""
    bad = data.parquet().to_table(columns=["sample_id", "error"], filter=pads.field("error").is_valid())
    uris = pc.take(rows["uri"], pc.index_in(bad["sample_id"], value_set=rows["sample_id"]))
    table = pa.table({"sample_id": bad["sample_id"], "uri": uris, "reason": bad["error"]})
    return table.sort_by("sample_id")


def read_quarantine(teacher: Stage) -> pa.Table:
    return (teacher.place / "quarantine.parquet").read_table()


def check_splits(stage: str, rows: pa.Table, away: pa.ChunkedArray, max_bad_share: float) -> None:
    """Whether enough of each split is there, to be asked before a stage is complete.

    Args:
        stage: Its name, for the reader.
        rows: The manifest rows that it was to read.
        away: Ids of those that it could not.

    Raises:
        ValueError: Too much of a split is away; names the split and one image.
    """
    missing = rows.filter(pc.is_in(rows["sample_id"], value_set=away))
    for split in SPLITS:
        bad, count = (int(pc.sum(pc.equal(table["split"], split)).as_py() or 0) for table in (missing, rows))
        if bad > max_bad_share * count:
            first = missing.filter(pc.equal(missing["split"], split)).sort_by("sample_id").slice(0, 1).to_pylist()[0]
            raise UserError(
                f"{stage}: {bad} of {count} {split} images cannot be read now, more than max_bad_share="
                f"{max_bad_share:g}; first {first['sample_id']!r}, expected at {first['uri']!r}. Nothing of this stage "
                "is kept: put them back, let this user read them, and run again; or raise max_bad_share"
            )


def check_share(campaign: Campaign, teacher: Stage) -> None:
    bad, rows = teacher.facts["unreadable"], teacher.facts["rows"]
    if not bad:
        return
    where = teacher.place / "quarantine.parquet"
    first = read_quarantine(teacher).slice(0, 1).to_pylist()[0]
    if bad > campaign.config.max_bad_share * rows:
        raise UserError(
            f"{bad} of {rows} images cannot be read, more than max_bad_share={campaign.config.max_bad_share:g}; first "
            f"{first['sample_id']!r}: {first['reason']}. All are listed in {where}. Mend them and start a new "
            "storage_path, or raise max_bad_share"
        )
    campaign.say("teacher", f"{bad} of {rows} images cannot be read and are left out; listed in {where}")


def readable(rows: pa.Table, teacher: Stage) -> pa.Table:
    """Manifest rows without the quarantined ones."""
    return rows.filter(pc.invert(pc.is_in(rows["sample_id"], value_set=read_quarantine(teacher)["sample_id"])))
