"""Any pool through any teacher, without a campaign: a table of features and probabilities.

Features are kept by parts in a cache, so a run that was killed goes on, and other classes or prompts read no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raykd.algo.prompts import ClassTexts, templates
from raykd.config import ModelConfig
from raykd.images.class_lists import class_list
from raykd.images.sources import Listing, check_label_names
from raykd.models.teacher import check_teacher
from raykd.report.words import class_doubts
from raykd.stages.pool_table import PoolRequest, finished_table, listed_pool, write_parts, write_table_part
from raykd.stages.weights import fetch_teacher, fetched_as, names_of_teacher
from raykd.stages.work import Work
from raykd.store.outputs import QUARANTINE_FILE, manifest_content
from raykd.store.place import Place
from raykd.store.stage_folder import Done, fingerprint
from raykd.store.tables import SCORES, vectors

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ScoreRequest(PoolRequest):
    """What to score by what.

    Args:
        classes: As a config's ``classes``: names, with texts or without, or a file; None: those of the source.
        teacher: The model, how it is asked and how it runs.
    """

    classes: Any
    teacher: ModelConfig


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
    listing, classes = listed_to_score(work, request)
    rows, config = listing.rows, request.teacher
    begun_from = {"rows": manifest_content(rows), "decode": request.decode, "asked": what_is_asked(request, classes)}
    folder = work.stage_folder(request.out, "scores", version=VERSION, made_from=begun_from)
    if there := finished_table(folder):
        return there
    if fetched_as(work, "teacher_model", names_of_teacher(config)) is None:  # then nothing is encoded yet either
        work.session.begin()  # beside the imports
    check_teacher(config)
    model = fetch_teacher(work, config)

    from raykd.stages.image_features import encode_images
    from raykd.stages.zero_shot import class_check, embed_classes, rule_of

    own = {name: texts for name, texts in classes.items() if texts}
    rule = rule_of(model.place.name, list(classes), own, templates(config.templates))
    texts = embed_classes(work, config, rule, own, work.place / "classes" / fingerprint(rule), model.place)
    encoded = encode_images(
        work, [rows], model, config, at=work.place / "encode", shared=True, decode=request.decode, max_bad_share=1.0,
        quarantine=work.place / QUARANTINE_FILE,
    )  # fmt: skip
    with folder.writing() as out:
        out.facts |= {"classes": list(classes), "model": config.open_clip_name}
        arguments = (texts, list(classes), int(config.num_cpus))
        found = write_parts(work, out, encoded, rows, config.num_cpus, write_scores, *arguments)
    for line in class_doubts(class_check(list(classes), texts.facts["close"], found)):
        work.say("classes", line)
    return out.complete


def listed_to_score(work: Work, request: ScoreRequest) -> tuple[Listing, dict[str, ClassTexts]]:
    """The images and the classes. Raises UserError: there are none, ids repeat, a label is no class."""
    given = None if request.classes is None else class_list(request.classes, None)
    listing = listed_pool(work, request.source, None if given is None else list(given))
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
    columns = {"features": vectors(found.features_ND[good_N]), "probs": vectors(probs_NC.astype(np.float32))}
    likeliest = pa.array(classes, pa.string()).take(pa.array(probs_NC.argmax(axis=1)))
    return write_table_part(file, rows, ids, columns, likeliest, classes, SCORES) | found.doubts(good_N)
