"""The teacher's opinion of every image: logits from the stored features, in seconds, without a look at any image.

The rule today is zero-shot: the cosine of an image's features and of each class's prompts. New templates, other texts
of a class, a new, renamed or merged class make a new opinion beside the older ones, for the rounds to come.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.heads import probabilities
from raykd.algo.metrics import Scores, scores
from raykd.algo.prompts import templates
from raykd.report.words import class_doubts
from raykd.stages.campaign import Campaign
from raykd.stages.zero_shot import VERSION, class_check, each_part, embed_classes, opinion_of, rule_of
from raykd.store.outputs import Encoded, Pool, Teacher, labeled_split
from raykd.store.place import Place
from raykd.store.stage_folder import Done, StageFolder
from raykd.store.tables import TEACHER, checked, positions, vectors

READ_ROWS = 8192  # of a row group
LOGITS_FILE = "logits.parquet"


def teach(campaign: Campaign, pool: Pool, encoded: Encoded) -> Teacher:
    """The teacher's logits of every image, and what they say against the class list, as long as nobody has labeled.

    Cost: N x D x C products; on a cluster a task a part.

    Raises:
        UserError: The teacher cannot tell two classes apart, or its tokenizer does not belong to it.
    """
    config = campaign.config.teacher
    rule = rule_of(encoded.model, pool.classes, pool.texts, templates(config.templates))
    name = campaign.folder("teacher", version=VERSION, made_from=rule).fingerprint
    place = campaign.place / "teacher" / name
    texts = embed_classes(campaign, config, rule, pool.texts, place / "classes", encoded.folder)
    folders = [
        campaign.folder(
            "teacher",
            version=VERSION,
            made_from={"rule": name, "encode": part.fingerprint},
            at=place / part.fingerprint,
        )
        for part in encoded.parts
    ]
    done = {number: found for number, folder in enumerate(folders) if (found := folder.done())}
    if missing := {number: folder for number, folder in enumerate(folders) if number not in done}:
        features = [encoded.parts[number].place for number in missing]
        made = write_parts(campaign, list(zip(missing.values(), features, strict=True)), texts, pool.manifest)
        done |= dict(zip(missing, made, strict=True))
    parts = tuple(done[number] for number in range(len(folders)))
    check = class_check(pool.classes, texts, [part.facts for part in parts])
    if missing:
        for line in class_doubts(check):
            campaign.say("teacher", line)
    return Teacher(parts, name, pool.classes, measured(campaign, place / "scores", parts, name, pool), check)


def measured(campaign: Campaign, place: Place, parts: tuple[Done, ...], name: str, pool: Pool) -> Scores:
    """How good an opinion is on test; measured once."""
    made_from = {"rule": name, "renamed": dict(pool.renamed)}
    folder = campaign.folder("teacher", version=VERSION, made_from=made_from).under(place)
    if (done := folder.done()) is None:
        with folder.writing() as out:
            logits, labels_N = labeled_split(parts, "test", pool, ("logits",), pool.classes)
            out.facts["scores"] = scores(probabilities(logits), labels_N)
        done = out.complete
    found: Scores = done.facts["scores"]
    return found


def write_parts(
    campaign: Campaign, work: list[tuple[StageFolder, Place]], texts: Done, manifest: pa.Table
) -> list[Done]:
    """The opinion of each part of the features."""
    num_cpus = campaign.config.teacher.num_cpus
    with ExitStack() as stack:
        outs = [stack.enter_context(folder.writing()) for folder, _ in work]
        calls = [(features, out.place, texts, int(num_cpus)) for (_, features), out in zip(work, outs, strict=True)]
        splits = manifest.select(["sample_id", "split"])
        for out, facts in zip(outs, each_part(campaign, num_cpus, write_logits, calls, splits), strict=True):
            out.facts |= facts
    return [out.complete for out in outs]


def write_logits(features: Place, out: Place, texts: Done, num_threads: int, splits: pa.Table) -> dict[str, Any]:
    """One part: tables.ENCODED in, tables.TEACHER out; what its pool images say of the class list, for the facts."""
    found = opinion_of(features, texts, num_threads)
    split = pc.take(splits["split"], positions(found.ids, splits["sample_id"], "the manifest"))
    columns = {"sample_id": found.ids, "split": split, "error": found.errors}
    columns |= {"features": vectors(found.features_ND, found.bad_N), "logits": vectors(found.logits_NC, found.bad_N)}
    (out / LOGITS_FILE).write_table(checked(pa.table(columns), TEACHER), row_group_rows=READ_ROWS)
    return found.doubts(pc.equal(split, "pool").to_numpy() & ~found.bad_N)
