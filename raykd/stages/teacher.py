"""The teacher's opinion of every image: logits from the stored features, in seconds, without a look at any image.

The rule today is zero-shot: the cosine of an image's features and of each class's prompts. New templates, other texts
of a class, a new, renamed or merged class make a new opinion beside the older ones, for the rounds to come. Logits are
always computed from the features as they are stored, so that a second computation gives the same.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from raykd.algo.class_list import NEUTRAL, close_pairs, first_choices, neutral_margins
from raykd.algo.heads import probabilities
from raykd.algo.metrics import Scores, scores
from raykd.algo.prompts import ClassTexts, prompts, templates
from raykd.errors import UserError
from raykd.models.teacher import encode_texts
from raykd.models.threads import limited_threads
from raykd.report.words import class_doubts
from raykd.stages.campaign import Campaign
from raykd.store.outputs import ClassCheck, Encoded, Pool, Teacher, labeled_split
from raykd.store.place import Place
from raykd.store.stage_folder import Done, StageFolder
from raykd.store.tables import ENCODED, TEACHER, checked, matrix, positions, vectors

VERSION = 2
READ_ROWS = 8192  # of a row group
EXAMPLES = 5  # images that look like none of the classes
CLASSES_FILE, NEUTRAL_FILE, LOGITS_FILE = "classes.npy", "neutral.npy", "logits.parquet"


def teach(campaign: Campaign, pool: Pool, encoded: Encoded) -> Teacher:
    """The teacher's logits of every image, and what they say against the class list, as long as nobody has labeled.

    Cost: N x D x C products; on a cluster a task a part.

    Raises:
        UserError: The teacher cannot tell two classes apart, or its tokenizer does not belong to it.
    """
    classes = list(pool.classes)
    rule: dict[str, Any] = {
        "model": encoded.model,
        "classes": classes,
        "templates": templates(campaign.config.teacher.templates),
    }
    if pool.texts:
        rule["texts"] = {name: pool.texts[name].plain() for name in classes if name in pool.texts}
    name = campaign.folder("teacher", version=VERSION, made_from=rule).fingerprint
    place = campaign.place / "teacher" / name
    texts = embed_classes(campaign, rule, pool.texts, place / "classes", encoded.folder)
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
    if work := {number: folder for number, folder in enumerate(folders) if number not in done}:
        features = [encoded.parts[number].place for number in work]
        made = write_parts(campaign, list(zip(work.values(), features, strict=True)), texts, pool.manifest)
        done |= dict(zip(work, made, strict=True))
    parts = tuple(done[number] for number in range(len(folders)))
    check = class_check(classes, texts, parts)
    if work:
        for line in class_doubts(check):
            campaign.say("teacher", line)
    return Teacher(parts, name, tuple(classes), measured(campaign, place / "scores", parts, name, pool), check)


def class_check(classes: list[str], texts: Done, parts: tuple[Done, ...]) -> ClassCheck:
    """What is wrong with a class list, from what was counted in each part."""
    seen_C = np.sum([part.facts["first_choices_C"] for part in parts], axis=0)
    examples = sorted((-margin, sample_id) for part in parts for margin, sample_id in part.facts["examples"])
    return {
        "num_images": int(seen_C.sum()),
        "never": [name for name, count in zip(classes, seen_C, strict=True) if not count],
        "close": [(first, second, share) for first, second, share in texts.facts["close"]],
        "num_like_none": sum(part.facts["num_like_none"] for part in parts),
        "examples": [sample_id for _, sample_id in examples[:EXAMPLES]],
    }


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


def embed_classes(
    campaign: Campaign, rule: dict[str, Any], own: Mapping[str, ClassTexts], place: Place, model: Place
) -> Done:
    """Class embeddings float32 [C, D] and the neutral one [D] in files; the model's scale and bias in the facts."""
    config = campaign.config.teacher
    folder = campaign.folder("teacher", version=VERSION, made_from=rule, at=place)
    if done := folder.done():
        return done
    with folder.writing() as out:
        texts = prompts([*rule["classes"], NEUTRAL], rule["templates"], own)
        arguments = (model, config.open_clip_name, texts)
        if campaign.session.is_local or not config.num_gpus:
            texts_TD, scale, bias = encode_texts(*arguments, "cpu")
        else:
            campaign.session.ensure()
            encode = ray.remote(num_cpus=config.num_cpus, num_gpus=config.num_gpus)(encode_texts)
            texts_TD, scale, bias = ray.get(encode.remote(*arguments, "cuda"))
        classes_CD, neutral_D = texts_TD[:-1], texts_TD[-1]
        check_classes(rule["classes"], classes_CD)
        for file, array in ((CLASSES_FILE, classes_CD), (NEUTRAL_FILE, neutral_D)):
            buffer = io.BytesIO()
            np.save(buffer, array)
            (out.place / file).write_bytes(buffer.getvalue())
        names = rule["classes"]
        close = [(names[i], names[j], share) for i, j, share in close_pairs(classes_CD, neutral_D)]
        out.facts |= {"scale": scale, "bias": bias, "close": close}
    return out.complete


def check_classes(classes: list[str], classes_CD: np.ndarray) -> None:
    """Refuse a teacher that cannot tell two classes apart, by UserError: it would always score them alike."""
    cosines_CC = np.triu(classes_CD.astype(np.float64) @ classes_CD.T, 1)
    first, second = np.unravel_index(int(cosines_CC.argmax()), cosines_CC.shape)
    if cosines_CC[first, second] > 1 - 1e-6:
        raise UserError(
            f"classes {classes[first]!r} and {classes[second]!r} are the same text to the teacher: its tokenizer does "
            "not know what differs, or cuts it off. Give them other texts (classes: {name: [text, ...]}) or names "
            "(labels.renamed): no image need be read again for that; or take another teacher"
        )


def write_parts(
    campaign: Campaign, work: list[tuple[StageFolder, Place]], texts: Done, manifest: pa.Table
) -> list[Done]:
    """The opinion of each part of the features: here, or on a cluster by a task a part."""
    here = campaign.session.is_local or len(work) == 1
    num_cpus = campaign.config.teacher.num_cpus
    splits: Any = manifest.select(["sample_id", "split"])
    write: Any = write_logits
    if not here:
        campaign.session.ensure()
        splits = ray.put(splits)
        write = ray.remote(num_cpus=num_cpus)(write_logits).remote
    with ExitStack() as stack:
        outs = [(features, stack.enter_context(folder.writing())) for folder, features in work]
        calls: Any = [
            write(features, out.place, splits, texts.place, texts.facts["scale"], texts.facts["bias"], int(num_cpus))
            for features, out in outs
        ]
        for (_, out), facts in zip(outs, calls if here else ray.get(calls), strict=True):
            out.facts |= facts
    return [out.complete for _, out in outs]


def write_logits(
    features: Place, out: Place, splits: pa.Table, texts: Place, scale: float, bias: float, num_threads: int
) -> dict[str, Any]:
    """One part: tables.ENCODED in, tables.TEACHER out; what its pool images say of the class list, for the facts."""
    import torch

    from raykd.algo.zeroshot import zero_shot_logits

    classes_CD, neutral_D = (np.load(io.BytesIO((texts / file).read_bytes())) for file in (CLASSES_FILE, NEUTRAL_FILE))
    table = features.read_table(ENCODED.names).sort_by("sample_id")
    ids = table["sample_id"]
    stored_ND = matrix(table["features"], "features")
    features_ND = torch.from_numpy(stored_ND.astype(np.float32))
    with limited_threads(max(1, num_threads)), torch.inference_mode():
        logits_NC = zero_shot_logits(features_ND, torch.from_numpy(classes_CD), scale, bias).numpy()
        neutral_N = zero_shot_logits(features_ND, torch.from_numpy(neutral_D[None]), scale, bias).numpy()[:, 0]
    split = pc.take(splits["split"], positions(ids, splits["sample_id"], "the manifest"))
    bad_N = table["error"].is_valid().to_numpy()
    columns = {"sample_id": ids, "split": split, "error": table["error"], "features": vectors(stored_ND, bad_N)}
    rows = pa.table(columns | {"logits": vectors(logits_NC, bad_N)})
    (out / LOGITS_FILE).write_table(checked(rows, TEACHER), row_group_rows=READ_ROWS)
    mine_N = pc.equal(split, "pool").to_numpy() & ~bad_N
    margins_N = neutral_margins(logits_NC[mine_N], neutral_N[mine_N])
    like_none_N = np.flatnonzero(margins_N > 0)
    worst = like_none_N[np.argsort(-margins_N[like_none_N], kind="stable")[:EXAMPLES]]
    found = ids.filter(pa.array(mine_N)).take(worst).to_pylist()
    return {
        "first_choices_C": first_choices(logits_NC[mine_N]).tolist(),
        "num_like_none": len(like_none_N),
        "examples": [(float(margins_N[n]), sample_id) for n, sample_id in zip(worst, found, strict=True)],
    }
