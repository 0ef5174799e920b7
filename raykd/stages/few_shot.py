"""What labels make of a teacher: a rule fitted to the stored features of labeled images, and applied to those of all.

No image is read but, where views are asked for, the labeled ones. Two passes over the features: one picks out those of
the labeled images, one scores all; StatA goes over those of the pool ten times more.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.metrics import confusion
from raykd.config import TeacherConfig
from raykd.errors import UserError
from raykd.models.threads import limited_threads
from raykd.stages.resources import Bundles, answered_by_tasks
from raykd.stages.work import Work
from raykd.stages.zero_shot import each_part, read_texts, splits_of, stored_features, threads_of
from raykd.store.outputs import LOGITS_FILE, Encoded, Labels, Pool, Teacher, rows_of
from raykd.store.place import Place
from raykd.store.stage_folder import Done
from raykd.store.tables import GROUP_ROWS, REFITTED, checked, vectors

if TYPE_CHECKING:
    from raykd.algo.few_shot.honest import Fitted
    from raykd.algo.few_shot.scorer import Scorer
    from raykd.algo.few_shot.stat_a import PoolMoments
    from raykd.algo.few_shot.support import Support, Texts
    from raykd.algo.label_errors import Slips

VERSION = 1
CONFUSIONS = 5  # that are told
SMALL = 10**5  # labels times classes, up to which threads wait for each other, on a busy machine for seconds
SCORER_FILE = "scorer.npz"
TOLD = ("rule", "num_labels", "chosen", "before", "untempered", "after", "confusions", "passes")  # of a fit's facts
ARRAYS = ("weights", "bias", "keys", "values")  # of a scorer's file
Result = TypeVar("Result")


@dataclass(frozen=True)
class LabeledFeatures:
    """Labeled images as the teacher sees them, by ``sample_id``.

    Args:
        ids: Of the images.
        labels_N: int64 [N], class indices.
        features_ND: float16 [N, D].
        views_NVD: float16 [N, V, D], NaN where an image's views cannot be had; None: no views are asked for.
    """

    ids: pa.ChunkedArray
    labels_N: np.ndarray
    features_ND: np.ndarray
    views_NVD: np.ndarray | None

    def __post_init__(self) -> None:
        lengths_N = np.linalg.norm(self.features_ND.astype(np.float32), axis=1)
        if (odd := np.flatnonzero(~(lengths_N > 0))).size:
            raise UserError(
                f"the teacher's features of {self.ids[odd[0]].as_py()!r} have length {lengths_N[odd[0]]:g}, so it sees "
                f"nothing in it ({len(odd):,} labeled images in all): answer it with cannot_label, or take "
                "teacher.rule: zero_shot"
            )


def clean_features(
    pool: Pool, encoded: Encoded, classes: Sequence[str], labels: Labels
) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
    """The labeled images of the pool that can be read: ids, class indices int64 [n], features float16 [n, D]."""
    ids, labels_N = labels.given(classes, pool.renamed)
    here = pc.is_in(ids, value_set=encoded.readable(pool.split("pool"))["sample_id"])
    ids = ids.filter(here)
    return ids, labels_N[here.to_numpy()], rows_of(encoded.parts, ids, ("features",))["features"]


def fit_labels(config: TeacherConfig, texts: Done, labeled: LabeledFeatures, num_threads: int) -> Fitted:
    """The rule of a config, fitted. Cost: seconds; see the rules in ``algo/few_shot``."""
    from raykd.algo.few_shot.rules import fit_rule
    from raykd.algo.few_shot.trained import CLAP_SETTINGS

    with limited_threads(num_threads):
        return fit_rule(config.rule, support_of(texts, labeled), CLAP_SETTINGS[config.clap])


def judge_labels(texts: Done, labeled: LabeledFeatures, num_threads: int) -> Slips:
    """Which of the labels may be slips. Cost: seconds; see ``algo/label_errors.py``."""
    from raykd.algo.label_errors import slips_among

    support = support_of(texts, labeled)
    is_small = len(support.labels_N) * support.num_classes <= SMALL
    with limited_threads(1 if is_small else num_threads):
        return slips_among(support)


def texts_of(texts: Done) -> Texts:
    from raykd.algo.few_shot.support import Texts

    classes_CD, lengths_C, _ = read_texts(texts)
    return Texts(classes_CD, texts.facts["scale"], lengths_C)


def support_of(texts: Done, labeled: LabeledFeatures) -> Support:
    from raykd.algo.few_shot.support import Support

    views_NVD = labeled.views_NVD
    if views_NVD is not None:  # an image without views is its own
        missing_N = ~np.isfinite(views_NVD).all(axis=(1, 2))
        views_NVD = np.where(missing_N[:, None, None], labeled.features_ND[:, None], views_NVD)
    return Support(labeled.features_ND, labeled.labels_N, texts_of(texts), views_NVD)


def refined_by_pool(
    work: Work, num_cpus: float, features: Sequence[Place], unlabeled: pa.Array, texts: Done, labeled: LabeledFeatures,
    scorer: Scorer,
) -> tuple[Scorer, int]:  # fmt: skip
    """StatA: a teacher whose classes the features of the unlabeled pool have moved; and its passes over these.

    Args:
        features: tables.ENCODED, by parts.
        unlabeled: Ids of the pool's images that have no label.
        scorer: The teacher to begin with.
    """
    from raykd.algo.few_shot.stat_a import ITERATIONS, start, update

    state = start(scorer, texts_of(texts).directions_CD, support_of(texts, labeled))
    for _ in range(ITERATIONS):
        calls = [(part, state.scorer, threads_of(work, num_cpus)) for part in features]
        state = update(state, reduce(add, each_part(work, num_cpus, moments_of_part, calls, unlabeled)))
    return state.scorer, ITERATIONS


def moments_of_part(features: Place, scorer: Scorer, num_threads: int, unlabeled: pa.Array) -> PoolMoments:
    from raykd.algo.few_shot.stat_a import pool_moments

    table, stored_ND = stored_features(features)
    mine_N = pc.is_in(table["sample_id"], value_set=unlabeled).to_numpy()
    with limited_threads(num_threads):
        return pool_moments(stored_ND[mine_N], scorer)


def confusions(labels_N: np.ndarray, choices_N: np.ndarray, classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """The most frequent mistakes: label, likeliest class, how often."""
    found = confusion(choices_N, labels_N)
    wrong = found[found[:, 0] != found[:, 1]]
    most = wrong[np.argsort(-wrong[:, 2], kind="stable")][:CONFUSIONS]
    return [(classes[label], classes[choice], count) for label, choice, count in most.tolist()]


def write_scorer(place: Place, scorer: Scorer) -> None:
    buffer = io.BytesIO()
    arrays = (scorer.weights_CD, scorer.bias_C, scorer.keys_MD, scorer.values_MC)
    named = {name: array.astype(np.float32) for name, array in zip(ARRAYS, arrays, strict=True)}
    np.savez(buffer, beta=scorer.beta, **named)  # type: ignore[arg-type]
    (place / SCORER_FILE).write_bytes(buffer.getvalue())


def read_scorer(place: Place) -> Scorer:
    from raykd.algo.few_shot.scorer import Scorer

    with np.load(io.BytesIO((place / SCORER_FILE).read_bytes())) as arrays:
        weights_CD, bias_C, keys_MD, values_MC = (arrays[name] for name in ARRAYS)
        return Scorer(weights_CD, bias_C, keys_MD, values_MC, float(arrays["beta"]))


def scorer_of(teacher: Teacher) -> Scorer:
    """A teacher as a scorer of features; a bias that all classes share is left out, as no softmax sees it."""
    from raykd.algo.few_shot.honest import text_scorer

    assert teacher.texts is not None
    return text_scorer(texts_of(teacher.texts)) if teacher.fitted is None else read_scorer(teacher.fitted.place)


def write_refitted(
    features: Place, out: Place, fit: Done, texts: Done, num_threads: int, others: pa.Table
) -> dict[str, Any]:
    """One part: tables.ENCODED in, tables.REFITTED out; what has changed in its pool images, for the facts."""
    from raykd.algo.few_shot.honest import text_scorer
    from raykd.algo.zeroshot import rounded

    table, stored_ND = stored_features(features)
    with limited_threads(max(1, num_threads)):
        logits_NC = read_scorer(fit.place).logits(stored_ND)
        before_NC = text_scorer(texts_of(texts)).logits(stored_ND)
    bad_N = table["error"].is_valid().to_numpy()
    split = splits_of(table["sample_id"], others)
    columns = {"sample_id": table["sample_id"], "split": split, "error": table["error"]}
    columns["logits"] = vectors(rounded(logits_NC), bad_N)
    (out / LOGITS_FILE).write_table(checked(pa.table(columns), REFITTED), row_group_rows=GROUP_ROWS)
    mine_N = pc.equal(split, "pool").to_numpy() & ~bad_N
    now_N, before_N = (logits[mine_N].argmax(axis=1) for logits in (logits_NC, before_NC))
    return {
        "first_choices_C": np.bincount(now_N, minlength=logits_NC.shape[1]).tolist(),
        "changed": int((now_N != before_N).sum()),
    }


def on_a_node(work: Work, num_cpus: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments, num_threads)``: here with all cores, or on a cluster as a task."""
    if work.session.is_local:
        return function(*arguments, threads_of(work, num_cpus))
    import ray

    work.session.ensure()
    call = ray.remote(num_cpus=num_cpus)(function).remote(*arguments, threads_of(work, num_cpus))
    (found,) = answered_by_tasks(work, [call], Bundles(1, num_cpus))
    return found
