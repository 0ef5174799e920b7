"""The teacher's and the student's weights, fetched once into the campaign's folder: no worker downloads anything."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from raykd.algo.prompts import ClassTexts, prompts, templates
from raykd.config import ModelConfig, StudentConfig
from raykd.models.saved import WEIGHTS
from raykd.models.teacher import fetch_weights, own_files
from raykd.stages.campaign import Campaign
from raykd.stages.resources import Bundles, answered_by_tasks
from raykd.stages.scratch import folders_of
from raykd.stages.work import Work
from raykd.store.place import Place
from raykd.store.stage_folder import Done, StageFolder, read_done

VERSION = 1
TEXTS_FILE = "texts.npy"


def weights_folder(work: Work, name: str, folder: str, made_from: dict[str, Any]) -> StageFolder:
    """By what they are: other weights lie beside the older ones."""
    at = work.place / folder
    return work.stage_folder(at, name, version=VERSION, made_from=made_from).under(at)


def fetched_as(work: Work, folder: str, asked: dict[str, Any]) -> Done | None:
    """The model that was fetched under these names, if there is one."""
    place = work.place / folder
    found = (read_done(place / name) for name in folders_of(place) if not name.startswith("."))
    return next((done for done in found if done and done.settings == asked), None)


def names_of_teacher(config: ModelConfig) -> dict[str, Any]:
    return {"model": config.model, "pretrained": config.pretrained}


def fetch_teacher(work: Work, config: ModelConfig) -> Done:
    """The teacher's weights and config. Raises UserError when they cannot be had."""
    return fetch_model(work, "teacher", config, names_of_teacher(config), {}, lambda out: fetch_weights(config, out))


def fetch_model(
    work: Work, name: str, config: ModelConfig, asked: dict[str, Any], part: dict[str, Any], write: Callable[..., int]
) -> Done:
    """A model of open_clip's in the folder that is called by ``name``.

    Args:
        work: In whose place.
        name: teacher or student.
        config: Which model.
        asked: By what names.
        part: What decides which part of the model is written.
        write: Writes it into a place, and gives the number of its parameters.
    """
    said, at = f"{name} model", f"{name}_model"
    files = own_files(config)
    if not files and (before := fetched_as(work, at, asked)):
        return before  # the folder that it came from is gone, and not needed any more
    own = {os.path.basename(path): Place.of(path).sha256() for path in files}
    # by its content where the files are the user's own, so that they may be moved
    named = {} if config.open_clip_name.startswith("local-dir:") else {"model": config.model}
    inputs: dict[str, Any] = {"files": own, **part, **(named if own else asked)}
    folder = replace(weights_folder(work, said, at, inputs), settings=asked)
    if done := folder.done():
        return done
    with folder.writing() as out:
        out.facts["parameters"] = write(out.place)
    done = out.complete
    if number := done.facts["parameters"]:
        work.say(said, f"{config.model}, {number / 1e6:,.1f} M parameters")
    return done


def fetch_files(work: Work, name: str, folder: str, place: Place, files: Mapping[str, str]) -> Done:
    """Files of a place, copied once to where every worker reads; by name and SHA-256."""
    copied = weights_folder(work, name, folder, {"files": dict(files)})
    if done := copied.done():
        return done
    with copied.writing() as out:
        for file in files:
            (out.place / file).write_bytes((place / file).read_bytes())
    return out.complete


def names_of_student(config: StudentConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("backbone", "pretrained", "language_aware")}


def fetched_backbone(campaign: Campaign) -> Done | None:
    """The open_clip model that was fetched for the student as it is configured now, if it was."""
    config = campaign.config.student
    return fetched_as(campaign, "student_model", names_of_student(config)) if config.tower else None


def fetch_backbone(campaign: Campaign) -> Done | None:
    """The backbone in the campaign's folder, fetched once by the driver; None for a timm one with random weights.

    Of an open_clip model it is the image tower; the text tower, too, where the heads begin as texts.

    That of a frozen student is the network under it (:func:`fetch_network`).

    Raises:
        UserError: The weights cannot be had, or do not fit the backbone.
    """
    config = campaign.config.student
    if config.tower:
        from raykd.models.tower import fetch_tower

        part = {"whole": config.language_aware, "random": config.pretrained is False}
        asked = names_of_student(config)
        return fetch_model(campaign, "student", config.tower, asked, part, lambda out: fetch_tower(config, out))
    if config.is_frozen:
        return fetch_network(campaign)
    if config.pretrained is False:
        return None
    made_from: dict[str, Any] = {"backbone": config.backbone, "pretrained": config.pretrained}
    if isinstance(config.pretrained, str):
        made_from["file"] = Place.of(config.pretrained).sha256()
    folder = weights_folder(campaign, "student model", "student_model", made_from)
    if done := folder.done():
        return done
    from raykd.models.student import initial_backbone, weights_of

    with folder.writing() as out:
        (out.place / WEIGHTS).write_bytes(weights_of(initial_backbone(config.backbone, config.pretrained)))
    return out.complete


def fetch_texts(campaign: Campaign, classes: Sequence[str], own: Mapping[str, ClassTexts], start: Done) -> Done:
    """What the student's own text tower says of the classes, asked as the teacher is; :func:`read_texts` reads it.

    Raises:
        UserError: Its tokenizer cannot be had, or does not belong to it.
    """
    from raykd.models.tower import text_rows, text_tokens

    config, chosen = campaign.config.student, templates(campaign.config.teacher.templates)
    texts = prompts(classes, chosen, own)
    folder = weights_folder(campaign, "student texts", "student_texts", {"model": start.fingerprint, "texts": texts})
    if done := folder.done():
        return done
    assert config.tower is not None
    with folder.writing() as out:
        arguments = (start.place, text_tokens(config.tower, texts), list(map(len, texts)))
        if campaign.session.is_local or not config.num_gpus:
            texts_CD = text_rows(*arguments, "cuda" if config.num_gpus else "cpu")
        else:
            import ray

            campaign.session.ensure()
            encode = ray.remote(num_cpus=config.num_cpus, num_gpus=config.num_gpus)(text_rows)
            asked = Bundles(1, config.num_cpus, config.num_gpus)
            (texts_CD,) = answered_by_tasks(campaign, [encode.remote(*arguments, "cuda")], asked)
        buffer = io.BytesIO()
        np.save(buffer, texts_CD)
        (out.place / TEXTS_FILE).write_bytes(buffer.getvalue())
    return out.complete


def read_student_texts(texts: Done) -> np.ndarray:
    """float32 [C, D]."""
    texts_CD: np.ndarray = np.load(io.BytesIO((texts.place / TEXTS_FILE).read_bytes()))
    return texts_CD


def fetch_network(campaign: Campaign) -> Done:
    """The network under a frozen student, in the campaign's folder, fetched once by the driver.

    Its name is that of its weights and of how it takes images: so another campaign's is the same.

    Raises:
        UserError: The weights cannot be had, or do not fit.
    """
    config, teacher = campaign.config.student, campaign.config.teacher
    if config.network is None:
        model = fetch_teacher(campaign, teacher)
        made_from: dict[str, Any] = {"teacher": model.place.name, "precision": teacher.precision}
    else:
        weights = Place.of(config.pretrained).sha256() if isinstance(config.pretrained, str) else "timm"
        made_from = {"network": config.network, "weights": weights}
        made_from |= {"image_size": config.image_size, "interpolation": config.interpolation}
    folder = weights_folder(campaign, "student model", "student_model", made_from)
    if done := folder.done():
        return done
    from raykd.models.frozen import save_network, save_teachers_network

    with folder.writing() as out:
        if config.network is None:
            assert teacher.model is not None
            save_teachers_network(model.place, teacher.model, out.place)
        else:
            save_network(config, out.place)
    return out.complete


def network_named(campaign: Campaign, name: str) -> Done:
    """The network under an earlier student, by the name of its folder."""
    found = read_done(campaign.place / "student_model" / name)
    assert found is not None, name
    return found
