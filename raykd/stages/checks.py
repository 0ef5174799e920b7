"""Everything that can be tried in the first seconds, before people label and machines are paid for."""

from __future__ import annotations

from raykd.algo.mixture_search import imported_optuna
from raykd.algo.prompts import templates
from raykd.algo.selection.strategies import needed
from raykd.errors import UserError
from raykd.labels.files import check_given
from raykd.models.student import check_weights, try_student
from raykd.models.teacher import check_teacher, own_files
from raykd.models.teacher_table import list_table
from raykd.stages.campaign import Campaign
from raykd.stages.resources import check_resources
from raykd.stages.weights import fetched_backbone
from raykd.store.place import Place
from raykd.store.stage_folder import read_done


def check_everything_cheap(campaign: Campaign) -> None:
    """Names are looked up, named files opened, a student built, trained for a step and saved, machines counted.

    Raises:
        UserError: Something the config names does not exist, or cannot work.
    """
    config = campaign.config
    campaign.session.check()
    if config.cache_path:
        (campaign.cache / "encode").check_writable()
    check_the_teacher(campaign)
    if config.mixture.search == "optuna":
        imported_optuna()
    if given := campaign.new_given:
        check_given(Place.of(given))
    if config.labels.answers:
        check_answers(config.labels.answers)
    if read_done(campaign.round_place(campaign.num_done) / "train") is None:
        check_the_student(campaign)
    check_resources(config, campaign.session, campaign.say)


def check_the_teacher(campaign: Campaign) -> str:
    """Names and files, or the table that is brought; what it is. Raises UserError."""
    config = campaign.config.teacher
    templates(config.templates)
    if config.rule == "table":
        check_brought(campaign)
        return f"{config.table}, brought"
    check_teacher(config)
    for path in own_files(config):
        check_opens("teacher", path)
    return f"{config.model} {config.pretrained or ''}".rstrip()


def check_the_student(campaign: Campaign) -> str:
    """Built, trained for a step and saved; what it is. Raises UserError."""
    config, start = campaign.config.student, fetched_backbone(campaign)
    check_weights(config, fetched=start is not None)
    try_student(config, num_classes=2, start=start.place if start else None)
    return f"{config.backbone} builds, trains a step and can be saved"


def check_brought(campaign: Campaign) -> None:
    """Whether there is a table, and nothing needs features of it. Raises UserError."""
    config = campaign.config
    assert config.teacher.table is not None
    list_table(Place.of(config.teacher.table), campaign.say)
    selection = config.selection
    cold = config.labels.start == "none" and read_done(campaign.round_place(0) / "select") is None
    if cold and "features" in needed(selection.strategy, selection.cap, selection.options):
        what, instead = f"strategy: {selection.strategy}", "pcoreset"
        if "features" not in needed(selection.strategy, None, selection.options):
            what, instead = "duplicate_column: features", "probs"
        raise UserError(
            f"selection.{what} looks at the teacher's features in round 0, when there is no student yet, and "
            f"teacher.rule: table has none: begin with labels.start: given, or {instead}"
        )


def check_answers(path: str) -> None:
    """Whether there is a folder, or can be. Raises UserError."""
    place = Place.of(path)
    if place.exists() and not place.is_dir():
        raise UserError(f"labels.answers: {path!r} is a file; give a folder, into which label files are put")


def check_opens(field: str, path: str) -> None:
    """Whether a file can be read. Raises UserError that names the field."""
    place = Place.of(path)
    try:
        with place.fs.open_input_stream(place.path) as stream:
            stream.read(1)
    except OSError as error:
        raise UserError(f"{field}: {path!r} cannot be read: {error}") from error
