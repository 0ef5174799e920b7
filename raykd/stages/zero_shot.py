"""What a teacher says of stored features, part by part: class embeddings from prompts, logits from cosines.

Logits are always computed from the features as they are stored, so that a second computation gives the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.class_list import NEUTRAL, close_pairs, first_choices, neutral_margins
from raykd.algo.prompts import ClassTexts, prompts
from raykd.config import ModelConfig
from raykd.errors import UserError
from raykd.models.teacher import encode_texts, tokens_of
from raykd.models.threads import limited_threads, num_cores
from raykd.stages.resources import Bundles, answered_by_tasks
from raykd.stages.work import Work
from raykd.store.outputs import ClassCheck
from raykd.store.place import Place
from raykd.store.stage_folder import Done
from raykd.store.tables import ENCODED, matrix

VERSION = 3
EXAMPLES = 5  # images that look like none of the classes
CLASSES_FILE, NEUTRAL_FILE, LENGTHS_FILE = "classes.npy", "neutral.npy", "lengths.npy"


def rule_of(
    model: str, classes: Sequence[str], texts: Mapping[str, ClassTexts], templates: Sequence[str]
) -> dict[str, Any]:
    """All that decides an opinion, as plain data: the teacher's weights, the classes and what it is asked of them."""
    rule: dict[str, Any] = {"model": model, "classes": list(classes), "templates": list(templates)}
    if texts:
        rule["texts"] = {name: texts[name].plain() for name in classes if name in texts}
    return rule


def embed_classes(
    work: Work, config: ModelConfig, rule: dict[str, Any], own: Mapping[str, ClassTexts], place: Place, model: Place
) -> Done:
    """Class embeddings and the neutral one in files (:func:`read_texts`); the model's scale and bias in the facts.

    Raises:
        UserError: The teacher cannot tell two classes apart, or its tokenizer does not belong to it.
    """
    folder = work.stage_folder(place, "teacher", version=VERSION, made_from=rule)
    if done := folder.done():
        return done
    with folder.writing() as out:
        texts = prompts([*rule["classes"], NEUTRAL], rule["templates"], own)
        arguments = (model, tokens_of(config.open_clip_name, texts), list(map(len, texts)))
        if work.session.is_local or not config.num_gpus:
            found = encode_texts(*arguments, "cpu")
        else:
            import ray

            work.session.ensure()
            encode = ray.remote(num_cpus=config.num_cpus, num_gpus=config.num_gpus)(encode_texts)
            asked = Bundles(1, config.num_cpus, config.num_gpus)
            (found,) = answered_by_tasks(work, [encode.remote(*arguments, "cuda")], asked)
        classes_CD, neutral_D = found.classes_CD[:-1], found.classes_CD[-1]
        check_classes(rule["classes"], classes_CD)
        arrays = {CLASSES_FILE: classes_CD, NEUTRAL_FILE: neutral_D, LENGTHS_FILE: found.lengths_C[:-1]}
        for file, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            (out.place / file).write_bytes(buffer.getvalue())
        names = rule["classes"]
        close = [(names[i], names[j], share) for i, j, share in close_pairs(classes_CD, neutral_D)]
        out.facts |= {"scale": found.scale, "bias": found.bias, "close": close}
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


class Opinion(NamedTuple):
    """Of the images of a part, by ``sample_id``."""

    ids: pa.ChunkedArray
    errors: pa.ChunkedArray
    features_ND: np.ndarray  # float16, as stored; NaN where an image cannot be read
    logits_NC: np.ndarray  # float32
    neutral_N: np.ndarray  # logits of the neutral text

    @property
    def bad_N(self) -> np.ndarray:
        """Which cannot be read, bool [n]."""
        bad: np.ndarray = self.errors.is_valid().to_numpy()
        return bad

    def doubts(self, mine_N: np.ndarray) -> dict[str, Any]:
        """What some of its images say of the class list, for :func:`class_check`."""
        margins_N = neutral_margins(self.logits_NC[mine_N], self.neutral_N[mine_N])
        like_none_N = np.flatnonzero(margins_N > 0)
        worst = like_none_N[np.argsort(-margins_N[like_none_N], kind="stable")[:EXAMPLES]]
        found = self.ids.filter(pa.array(mine_N)).take(worst).to_pylist()
        return {
            "first_choices_C": first_choices(self.logits_NC[mine_N]).tolist(),
            "num_like_none": len(like_none_N),
            "examples": [(float(margins_N[n]), sample_id) for n, sample_id in zip(worst, found, strict=True)],
        }


def read_texts(texts: Done) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class embeddings float32 [C, D], of length 1; their lengths before that [C]; and the neutral one [D]."""
    files = (io.BytesIO((texts.place / file).read_bytes()) for file in (CLASSES_FILE, LENGTHS_FILE, NEUTRAL_FILE))
    classes_CD, lengths_C, neutral_D = map(np.load, files)
    return classes_CD, lengths_C, neutral_D


def stored_features(features: Place) -> tuple[pa.Table, np.ndarray]:
    """One part of the features (tables.ENCODED), by ``sample_id``, and them as they are stored, float16 [n, D]."""
    table = features.read_table(ENCODED.names).sort_by("sample_id")
    return table, matrix(table["features"], "features")


def opinion_of(features: Place, texts: Done, num_threads: int) -> Opinion:
    """The logits of one part of the features. Cost: n x D x C products."""
    import torch

    from raykd.algo.zeroshot import zero_shot_logits

    classes_CD, _, neutral_D = read_texts(texts)
    scale, bias = texts.facts["scale"], texts.facts["bias"]
    table, stored_ND = stored_features(features)
    features_ND = torch.from_numpy(stored_ND.astype(np.float32))
    with limited_threads(max(1, num_threads)), torch.inference_mode():
        logits_NC = zero_shot_logits(features_ND, torch.from_numpy(classes_CD), scale, bias).numpy()
        neutral_N = zero_shot_logits(features_ND, torch.from_numpy(neutral_D[None]), scale, bias).numpy()[:, 0]
    return Opinion(table["sample_id"], table["error"], stored_ND, logits_NC, neutral_N)


def splits_of(ids: pa.ChunkedArray, others: pa.Table) -> pa.ChunkedArray:
    """The split of images, given the ids and splits of those that are not of the pool."""
    return pc.fill_null(pc.take(others["split"], pc.index_in(ids, value_set=others["sample_id"])), "pool")


def threads_of(work: Work, num_cpus: float) -> int:
    """Of a computation over one part: all cores in this process, its own CPUs in a task of a cluster."""
    return num_cores() if work.session.is_local else max(1, int(num_cpus))


def each_part(
    work: Work, num_cpus: float, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], shared: Any
) -> list[Any]:
    """``function(*call, shared)`` of each: here, or on a cluster by a task each."""
    calls = list(calls)
    if work.session.is_local or len(calls) == 1:
        return [function(*call, shared) for call in calls]
    import ray

    work.session.ensure()
    remote, kept = ray.remote(num_cpus=num_cpus)(function), ray.put(shared)
    waiting = [remote.remote(*call, kept) for call in calls]
    return answered_by_tasks(work, waiting, Bundles(1, num_cpus), each_is_short=True)


def class_check(
    classes: Sequence[str], close: Sequence[tuple[str, str, float]], parts: Sequence[Mapping[str, Any]]
) -> ClassCheck:
    """What is wrong with a class list, from pairs with nearly equal prompts and the doubts of each part."""
    seen_C = np.sum([part["first_choices_C"] for part in parts], axis=0)
    examples = sorted((-margin, sample_id) for part in parts for margin, sample_id in part["examples"])
    return {
        "num_images": int(seen_C.sum()),
        "never": [name for name, count in zip(classes, seen_C, strict=True) if not count],
        "close": [(first, second, share) for first, second, share in close],
        "num_like_none": sum(part["num_like_none"] for part in parts),
        "examples": [sample_id for _, sample_id in examples[:EXAMPLES]],
    }
