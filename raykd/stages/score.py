"""Any pool through any teacher, without a campaign: a table of features and probabilities.

Features are kept by parts in a cache, so a run that was killed goes on, and other classes or prompts read no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.prompts import ClassTexts, templates
from raykd.config import ModelConfig, Source
from raykd.errors import StorageError, UserError
from raykd.images.class_lists import class_list
from raykd.images.sources import Listing, check_ids_differ, check_label_names, list_source
from raykd.models.teacher import check_teacher
from raykd.report.words import class_doubts
from raykd.stages.weights import fetch_teacher, fetched_as
from raykd.stages.work import Work
from raykd.store.outputs import QUARANTINE_FILE, manifest_content
from raykd.store.place import Place
from raykd.store.stage_folder import Done, fingerprint, read_done
from raykd.store.tables import SCORES, checked, positions, vectors

VERSION = 1
READ_ROWS = 8192  # of a row group


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """What to score by what.

    Args:
        source: The images.
        classes: As a config's ``classes``: names, with texts or without, or a file; None: those of the source.
        teacher: The model, how it is asked and how it runs.
        decode: ``reduced`` or ``exact``.
        out: The folder of the table, complete or absent; never overwritten.
    """

    source: Source
    classes: Any
    teacher: ModelConfig
    decode: str
    out: Place


def score_pool(work: Work, request: ScoreRequest) -> Done:
    """The table (tables.SCORES), a file a part; images that cannot be read are listed in the cache.

    Cost: one pass over the images, once; N x D x C products. A finished table is only looked at.

    Args:
        work: Its place is the cache.
        request: What is asked for.

    Raises:
        UserError: There are no images, no classes or no such model; ``out`` holds another table; no image can be read.
        StorageError: The network, the credentials or a disk fail.
    """
    listing, classes = listed_pool(work, request)
    rows, config = listing.rows, request.teacher
    begun_from = {"rows": manifest_content(rows), "decode": request.decode, "asked": what_is_asked(request, classes)}
    folder = work.stage_folder(request.out, "scores", version=VERSION, made_from=begun_from)
    if there := read_done(request.out):
        if other := folder.inputs_changed(there):
            fields = dict.fromkeys(line.partition(":")[0].removeprefix("asked.") for line in other)
            what = ", ".join("images" if name == "rows" else name for name in fields)
            raise UserError(f"{request.out} holds another table: of other {what}; give another --out")
        return there
    if request.out.files(recursive=True):
        raise UserError(f"--out: {request.out} holds files that are no table of this job; give a new folder")
    if fetched_as(work, config) is None:  # then nothing is encoded yet either
        work.session.begin()  # beside the imports
    check_teacher(config)
    model = fetch_teacher(work, config)

    from raykd.stages.image_features import encode_images
    from raykd.stages.zero_shot import class_check, each_part, embed_classes, rule_of

    own = {name: texts for name, texts in classes.items() if texts}
    rule = rule_of(model.place.name, list(classes), own, templates(config.templates))
    texts = embed_classes(work, config, rule, own, work.place / "classes" / fingerprint(rule), model.place)
    encoded = encode_images(
        work, [rows], model, config, at=work.place / "encode", shared=True, decode=request.decode, max_bad_share=1.0,
        quarantine=work.place / QUARANTINE_FILE,
    )  # fmt: skip
    if encoded.rows == encoded.quarantine.num_rows:
        first = encoded.quarantine["reason"][0].as_py()
        raise UserError(
            f"none of {encoded.rows:,} images can be read, the first one as {first}; all are listed in "
            f"{work.place / QUARANTINE_FILE}"
        )
    with folder.writing() as out:
        calls = [
            (part.place, out.place / f"part_{number:05d}.parquet", texts, list(classes), int(config.num_cpus))
            for number, part in enumerate(encoded.parts)
        ]
        found = each_part(work, config.num_cpus, write_scores, calls, rows.select(["sample_id", "uri", "label"]))
        out.facts |= {
            "rows": sum(part["rows"] for part in found),
            "unreadable": encoded.quarantine.num_rows,
            "labeled": sum(part["labeled"] for part in found),
            "right": sum(part["right"] for part in found),
            "classes": list(classes),
            "model": config.open_clip_name,
        }
    for line in class_doubts(class_check(list(classes), texts.facts["close"], found)):
        work.say("classes", line)
    return out.complete


def check_folder_to_write(option: str, place: Place) -> None:
    """Whether a folder is there or can be made. Raises UserError that names the option."""
    if place.exists() and not place.is_dir():
        raise UserError(f"{option}: {place} is a file; give a folder")
    try:
        place.check_writable()
    except StorageError as error:
        raise UserError(f"{option}: {error}") from error


def listed_pool(work: Work, request: ScoreRequest) -> tuple[Listing, dict[str, ClassTexts]]:
    """The images and the classes. Raises UserError: there are none, ids repeat, a label is no class."""
    given = None if request.classes is None else class_list(request.classes, None)
    names = None if given is None else list(given)
    listing = list_source(request.source, "pool", names, work.say, work.place / "tars")
    check_ids_differ(listing.rows)
    classes = class_list(None, listing.found_classes) if given is None else given
    check_label_names(listing.rows, classes)
    work.say("pool", f"{listing.rows.num_rows:,} images; {len(classes)} classes")
    return listing, classes


def what_is_asked(request: ScoreRequest, classes: dict[str, ClassTexts]) -> dict[str, Any]:
    """What the table depends on besides the images, as plain data."""
    config = request.teacher
    asked: dict[str, Any] = {name: getattr(config, name) for name in ("model", "pretrained", "precision")}
    asked["classes"] = [[name, own.plain() if own else None] for name, own in classes.items()]
    return {**asked, "templates": templates(config.templates)}


def write_scores(
    features: Place, file: Place, texts: Done, classes: list[str], num_threads: int, rows: pa.Table
) -> dict[str, Any]:
    """One part: tables.ENCODED in, tables.SCORES out; counts, and doubts about the class list."""
    from raykd.algo.heads import probabilities
    from raykd.stages.zero_shot import opinion_of

    found = opinion_of(features, texts, num_threads)
    good_N = ~found.bad_N
    ids = found.ids.filter(pa.array(good_N))
    probs_NC = probabilities({"logits": found.logits_NC[good_N]})
    mine = rows.take(positions(ids, rows["sample_id"], "the listing"))
    columns = {name: mine[name] for name in ("sample_id", "uri", "label")}
    columns |= {"features": vectors(found.features_ND[good_N]), "probs": vectors(probs_NC.astype(np.float32))}
    file.write_table(checked(pa.table(columns), SCORES), row_group_rows=READ_ROWS)
    labels = pc.index_in(mine["label"], value_set=pa.array(classes, pa.string()), skip_nulls=True)
    labels_N = pc.fill_null(labels, -1).to_numpy()
    right = int((probs_NC.argmax(axis=1) == labels_N).sum()) if len(labels_N) else 0
    return {"rows": len(ids), "labeled": int((labels_N >= 0).sum()), "right": right, **found.doubts(good_N)}
