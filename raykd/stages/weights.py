"""The teacher's and the student's weights, fetched once into the campaign's folder: no worker downloads anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyarrow.fs as pafs

from raykd.config import ModelConfig
from raykd.models.saved import WEIGHTS
from raykd.models.teacher import fetch_weights, own_files
from raykd.stages.campaign import Campaign
from raykd.stages.work import Work
from raykd.store.place import Place
from raykd.store.stage_folder import Done, StageFolder, read_done

VERSION = 1


def weights_folder(work: Work, name: str, folder: str, made_from: dict[str, Any]) -> StageFolder:
    """By what they are: other weights lie beside the older ones."""
    at = work.place / folder
    return work.stage_folder(at, name, version=VERSION, made_from=made_from).under(at)


def fetched_as(work: Work, config: ModelConfig) -> Done | None:
    """The teacher that was fetched under these names, if there is one."""
    asked = names_of_teacher(config)
    place = work.place / "teacher_model"
    folders = place.fs.get_file_info(pafs.FileSelector(place.path, allow_not_found=True))
    found = (read_done(place / info.base_name) for info in folders if not info.base_name.startswith("."))
    return next((done for done in found if done and done.settings == asked), None)


def names_of_teacher(config: ModelConfig) -> dict[str, Any]:
    return {"model": config.model, "pretrained": config.pretrained}


def fetch_teacher(work: Work, config: ModelConfig) -> Done:
    """The teacher's weights and config. Raises UserError when they cannot be had."""
    asked = names_of_teacher(config)
    files = own_files(config)
    if not files and (before := fetched_as(work, config)):
        return before  # the folder that it came from is gone, and not needed any more
    own = {os.path.basename(path): Place.of(path).sha256() for path in files}
    # by its content where the files are the user's own, so that they may be moved
    named = {} if config.open_clip_name.startswith("local-dir:") else {"model": config.model}
    inputs: dict[str, Any] = {"files": own, **(named if own else asked)}
    folder = replace(weights_folder(work, "teacher model", "teacher_model", inputs), settings=asked)
    if done := folder.done():
        return done
    with folder.writing() as out:
        out.facts["parameters"] = fetch_weights(config, out.place)
    done = out.complete
    work.say("teacher model", f"{config.model}, {done.facts['parameters'] / 1e6:,.1f} M parameters")
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


def fetch_backbone(campaign: Campaign) -> Done | None:
    """The pretrained backbone in the campaign's folder, fetched once by the driver; None for random weights.

    Raises:
        UserError: The weights cannot be had, or do not fit the backbone.
    """
    config = campaign.config.student
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
