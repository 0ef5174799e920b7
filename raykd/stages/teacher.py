"""The teacher's opinion of every image: logits from the stored features, in seconds, without a look at any image.

Before a label is bought it is zero-shot: the cosine of an image's features and of each class's prompts. New templates,
other texts of a class, a new, renamed or merged class make a new opinion beside the older ones, for the rounds to come.
From then on a rule may learn from all labels so far, each round, before its student trains.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.heads import probabilities
from raykd.algo.metrics import Scores, scores
from raykd.algo.prompts import templates
from raykd.algo.statistics import Change, paired_change
from raykd.report.words import class_doubts, refit_in_words
from raykd.stages import few_shot
from raykd.stages.brought_opinion import write_brought
from raykd.stages.campaign import Campaign
from raykd.stages.few_shot import (
    LabeledFeatures,
    clean_features,
    confusions,
    fit_labels,
    on_a_node,
    refined_by_pool,
    write_refitted,
    write_scorer,
)
from raykd.stages.views import encode_views
from raykd.stages.zero_shot import (
    VERSION,
    class_check,
    each_part,
    embed_classes,
    opinion_of,
    rule_of,
    splits_of,
    threads_of,
)
from raykd.store.outputs import (
    LOGITS_FILE,
    ClassCheck,
    Encoded,
    Labels,
    Pool,
    Teacher,
    TeacherFit,
    Views,
    labeled_split,
    read_labels,
)
from raykd.store.place import Place
from raykd.store.stage_folder import Done, fingerprint, read_done
from raykd.store.tables import GROUP_ROWS, TEACHER, checked, vectors

LONG, LONG_FIT = 10**7, 10**5  # logits, and labels times classes, from which on it is said before what takes so long
SEES_VIEWS = ("gda", "tip_f", "clap", "auto")


def teach(campaign: Campaign, pool: Pool, encoded: Encoded) -> Teacher:
    """The teacher's logits of every image, and what they say against the class list, as long as nobody has labeled.

    Cost: N x D x C products; on a cluster a task a part.

    Raises:
        UserError: The teacher cannot tell two classes apart, or its tokenizer does not belong to it.
    """
    config = campaign.config.teacher
    if config.rule == "table":
        return brought(campaign, pool, encoded)
    rule = rule_of(encoded.model, pool.classes, pool.texts, templates(config.templates))
    name = campaign.folder("teacher", version=VERSION, made_from=rule).fingerprint
    place = campaign.place / "teacher" / name
    texts = embed_classes(campaign, config, rule, pool.texts, place / "classes", encoded.folder)
    parts = opinions(campaign, pool, encoded, place, name, write_logits, (texts,))
    check = class_check(pool.classes, texts.facts["close"], [part.facts for part in parts.complete])
    if parts.made:
        for line in class_doubts(check):
            campaign.say("teacher", line)
    found = measured(campaign, place / "scores", parts.complete, name, pool)
    return Teacher(parts.complete, name, pool.classes, found, check, texts)


def brought(campaign: Campaign, pool: Pool, encoded: Encoded) -> Teacher:
    """The opinion of a table from elsewhere. Raises UserError where a row is no probabilities, or no logits."""
    rule = {"table": encoded.model, "classes": list(pool.classes), "renamed": dict(pool.renamed)}
    name = campaign.folder("teacher", version=VERSION, made_from=rule).fingerprint
    place = campaign.place / "teacher" / name
    parts, made = write_brought(campaign, pool, encoded, place, name)
    check = class_check(pool.classes, [], [part.facts for part in parts])
    if made:
        for line in class_doubts(check):
            campaign.say("teacher", line)
    return Teacher(parts, name, pool.classes, measured(campaign, place / "scores", parts, name, pool), check)


def refit(campaign: Campaign, number: int, pool: Pool, encoded: Encoded, teacher: Teacher, labels: Labels) -> Teacher:
    """What a round's teacher has learned from all labels so far; the teacher itself when its rule learns nothing.

    The labels of test and audit images are not among them. Cost: two passes over the features.

    Raises:
        UserError: The teacher sees nothing in a labeled image.
        StorageError: The network, the credentials or a disk fail.
    """
    config = campaign.config
    if number + 1 < campaign.num_done or teacher.texts is None:  # nobody looks at an earlier round's opinion any more
        return teacher
    made_from = {"round": number, "labels": labels.content, "texts": teacher.texts.fingerprint}
    place = campaign.round_place(number) / "teacher" / fingerprint(made_from)  # other classes: beside it
    settings = config.part("refit")
    if config.teacher.views:
        settings |= {"crop_area": list(config.student.crop_area), "flip": config.student.flip}
    folder = campaign.folder(
        "teacher", number, version=few_shot.VERSION, made_from=made_from, settings=settings, at=place / "fit"
    )
    fit = campaign.done(folder, number)
    if fit is None:
        if not config.teacher.learns or read_done(campaign.round_place(number) / "train"):
            return teacher
        labeled = labeled_features(campaign, number, pool, encoded, teacher, labels)
        if len(labeled.labels_N) * len(teacher.classes) > LONG_FIT:
            words = f"learns from {len(labeled.labels_N):,} labels of {len(teacher.classes):,} classes"
            campaign.say(folder.name, f"{words} by {config.teacher.rule}")
        with folder.writing() as out:
            out.facts |= write_fit(campaign, pool, encoded, teacher, labels, labeled, out.place)
        fit = out.complete
    parts = opinions(campaign, pool, encoded, place, fit.fingerprint, write_refitted, (fit, teacher.texts))
    scores = measured(campaign, place / "scores", parts.complete, fit.fingerprint, pool)
    return learned(campaign, number, pool, teacher, fit, parts, scores)


def write_fit(
    campaign: Campaign, pool: Pool, encoded: Encoded, teacher: Teacher, labels: Labels, labeled: LabeledFeatures,
    out: Place,
) -> dict[str, Any]:  # fmt: skip
    """What the labels, and if asked for the pool, make of the teacher, in a file; and about it, for the facts."""
    config, texts = campaign.config.teacher, teacher.texts
    assert texts is not None
    fitted = on_a_node(campaign, config.num_cpus, fit_labels, config, texts, labeled)
    scorer, more_passes = fitted.scorer, 0
    if config.stat_a:
        rows = encoded.readable(pool.split("pool"))["sample_id"]
        free = rows.filter(pc.invert(pc.is_in(rows, value_set=labels.labeled_ids))).combine_chunks()
        features = [part.place for part in encoded.parts]
        scorer, more_passes = refined_by_pool(campaign, config.num_cpus, features, free, texts, labeled, scorer)
    write_scorer(out, scorer)
    return {
        "rule": fitted.rule,
        "num_labels": len(labeled.labels_N),
        "chosen": dict(fitted.chosen),
        "before": fitted.before,
        "untempered": fitted.untempered,
        "after": fitted.after,
        "confusions": confusions(labeled.labels_N, fitted.choices_N, teacher.classes),
        "passes": 2 + more_passes,
    }


class Opinions(NamedTuple):
    """The parts of an opinion, and whether any had still to be made."""

    complete: tuple[Done, ...]
    made: bool


def opinions(
    campaign: Campaign, pool: Pool, encoded: Encoded, place: Place, name: str, write: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> Opinions:  # fmt: skip
    """The opinion of each part of the features: ``write(features, out, *arguments, num_threads, others)`` gives facts.

    Args:
        place: Where the parts lie.
        name: Names the rule that they are of.
    """
    folders = [
        campaign.folder("teacher", version=VERSION, made_from={"rule": name, "encode": part.fingerprint},
                        at=place / part.fingerprint)
        for part in encoded.parts
    ]  # fmt: skip
    done = [folder.done() for folder in folders]
    missing = [n for n, found in enumerate(done) if found is None]
    if missing:
        num_cpus = campaign.config.teacher.num_cpus
        if (rows := sum(encoded.parts[n].facts["rows"] for n in missing)) * len(pool.classes) > LONG:
            campaign.say("teacher", f"scores {rows:,} images")
        others = pool.manifest.filter(pc.not_equal(pool.manifest["split"], "pool")).select(["sample_id", "split"])
        with ExitStack() as stack:
            outs = [stack.enter_context(folders[n].writing()) for n in missing]
            calls = [
                (encoded.parts[n].place, out.place, *arguments, threads_of(campaign, num_cpus))
                for n, out in zip(missing, outs, strict=True)
            ]
            for out, facts in zip(outs, each_part(campaign, num_cpus, write, calls, others), strict=True):
                out.facts |= facts
        for n, out in zip(missing, outs, strict=True):
            done[n] = out.complete
    return Opinions(tuple(part for part in done if part), bool(missing))


def measured(campaign: Campaign, place: Place, parts: tuple[Done, ...], name: str, pool: Pool) -> Scores:
    """How good an opinion is on test; measured once."""
    made_from = {"rule": name, "renamed": dict(pool.renamed)}
    folder = campaign.folder("teacher", version=VERSION, made_from=made_from).under(place)
    if (done := folder.done()) is None:
        with folder.writing() as out:
            _, logits, labels_N = labeled_split(parts, "test", pool, ("logits",), pool.classes)
            out.facts["scores"] = scores(probabilities(logits), labels_N)
        done = out.complete
    found: Scores = done.facts["scores"]
    return found


def write_logits(features: Place, out: Place, texts: Done, num_threads: int, others: pa.Table) -> dict[str, Any]:
    """One part: tables.ENCODED in, tables.TEACHER out; what its pool images say of the class list, for the facts."""
    found = opinion_of(features, texts, num_threads)
    split = splits_of(found.ids, others)
    columns = {"sample_id": found.ids, "split": split, "error": found.errors}
    columns |= {"features": vectors(found.features_ND, found.bad_N), "logits": vectors(found.logits_NC, found.bad_N)}
    (out / LOGITS_FILE).write_table(checked(pa.table(columns), TEACHER), row_group_rows=GROUP_ROWS)
    return found.doubts(pc.equal(split, "pool").to_numpy() & ~found.bad_N)


# ---------------------------------------------------------------- what labels make of it


def labeled_features(
    campaign: Campaign, number: int, pool: Pool, encoded: Encoded, teacher: Teacher, labels: Labels
) -> LabeledFeatures:
    """The labeled images of the pool that can be read, in the teacher's eyes."""
    ids, labels_N, features_ND = clean_features(pool, encoded, teacher.classes, labels)
    config = campaign.config.teacher
    if not config.views or config.rule not in SEES_VIEWS or not len(ids):
        return LabeledFeatures(ids, labels_N, features_ND, None)
    return LabeledFeatures(ids, labels_N, features_ND, views_of(campaign, number, pool, encoded).features(ids))


def views_of(campaign: Campaign, number: int, pool: Pool, encoded: Encoded) -> Views:
    """Augmented views of every labeled image, encoded in the round that it was labeled in."""
    config, seen = campaign.config, pa.array([], pa.string())
    rows, tables = encoded.readable(pool.split("pool")), []
    for earlier in range(number + 1):
        labels = read_labels(campaign.round_place(earlier))
        assert labels is not None, earlier
        given = labels.labeled_ids
        new = pc.and_(
            pc.is_in(rows["sample_id"], value_set=given), pc.invert(pc.is_in(rows["sample_id"], value_set=seen))
        )
        if pc.any(new).as_py():
            tables.append(rows.filter(new))
        seen = pa.concat_arrays([seen, *given.chunks])
    model = read_done(encoded.folder)
    assert model is not None
    return encode_views(
        campaign, tables, model, config.teacher, views=config.teacher.views, area=config.student.crop_area,
        flip=config.student.flip, seed=config.seed, at=campaign.cache / "views", shared=bool(config.cache_path),
        decode=config.decode, max_bad_share=config.max_bad_share,
    )  # fmt: skip


def learned(
    campaign: Campaign, number: int, pool: Pool, teacher: Teacher, fit: Done, opinion: Opinions, found: Scores
) -> Teacher:
    """The refitted teacher; and a line that says what labels have made of it."""
    parts = opinion.complete
    seen_C = np.sum([part.facts["first_choices_C"] for part in parts], axis=0)
    num_images = int(seen_C.sum())
    facts: dict[str, Any] = {key: fit.facts[key] for key in few_shot.TOLD}
    about: TeacherFit = {
        **facts,  # type: ignore[typeddict-item]
        "changed": sum(part.facts["changed"] for part in parts) / num_images if num_images else None,
        "change": change_since_texts(pool, teacher, parts),
    }
    check: ClassCheck = {
        "num_images": num_images,
        "never": [label for label, count in zip(teacher.classes, seen_C, strict=True) if not count],
        "close": teacher.check["close"],
        "num_like_none": 0,  # no prompt speaks for none of the classes here
        "examples": [],
    }
    if opinion.made:
        campaign.say(f"round {number} teacher", refit_in_words(about, found["accuracy"]))
    return Teacher(parts, fit.fingerprint, teacher.classes, found, check, teacher.texts, about, fit)


def change_since_texts(pool: Pool, teacher: Teacher, parts: tuple[Done, ...]) -> Change | None:
    """What labels have changed in accuracy on test; None without labeled test images."""
    rights = []
    for some in (teacher.parts, parts):
        _, logits, labels_N = labeled_split(some, "test", pool, ("logits",), teacher.classes)
        rights.append(logits["logits"].argmax(axis=1) == labels_N)
    return paired_change(*rights) if len(rights[0]) else None
