"""What two heads are worth: DHO against the single head and both ends, its gradients, its calibration.

    python jobs/bench_students.py [heads] [conflict] [views] [--data FOLDER] [--seeds 8]
                                 [--kinds ce+kd dho]

heads: ``ce``, ``kd``, ``ce+kd`` and ``dho`` at 1, 2, 4, 8 and 16 labels a class, drawn, from the same labels and draws:
on the digits (images, the demo's student and its training: 100 steps of 32 + 64, 2e-3) with the demo's zero-shot CLIP
as the teacher; and, with --data, on Tiny-ImageNet in a real MobileNetV2's frozen features (the teacher as in
bench_teachers.py; the papers' 200 * ceil(L / 64) steps of 64 + 64, 1e-3, but 2,000 at most). Two forward passes, AdamW.
Accuracy on test images, no number chosen on them: dho's mixture is the fixed (0.5, 1.0), or searched as raykd does it
(and DHO's code: PAPERS.md 1.5) on validation images, 150 of the digits and two a class of Tiny-ImageNet. --kinds for
fewer than all four.

conflict: the cosine of the two signals' gradients on the backbone's parameters, at every tenth step of the same
trainings on the digits, of one head that learns from both (ce+kd) and of two (dho). --plot FILE draws it; the table has
the second half of the trainings.

views: one round of the demo, 4 labels a class, where the teacher has seen one clean view of each image (cached), so
many stored crops, or sees each crop that is trained on (online): accuracy, calibration, and what it costs.

Means over seeds with 95 % intervals (t), exact sign-flip tests over seeds. A table each, then one JSON line.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from bench_teachers import SHOTS, balanced, interval, tiny_imagenet  # beside this file
from bench_teachers import digits as digits_features

HEADS = ("ce", "kd", "ce+kd", "dho")
AGAINST = ("ce+kd", "ce", "kd")  # what dho is held against
SEARCHED = "dho, searched"
VALIDATION = 2  # images a class of Tiny-ImageNet
MOST_STEPS = 2000  # on features
LOOK_EVERY = 10  # steps
CONFLICT_SHOTS = (1, 4, 16)
CONFLICT = {"ce+kd": "one head (ce+kd)", "dho": "two heads (dho)"}  # kinds of heads, and what they are called
VIEWS, VIEWS_SHOTS = ("cached", "8", "online"), 4
DEMO = {"steps": 100, "batch_labeled": 32, "batch_unlabeled": 64, "learning_rate": 2e-3}


@dataclass(frozen=True)
class Problem:
    """What is trained on, and measured on.

    Args:
        name: Of the data.
        labels_N: int [N], of the pool.
        teacher_NC: float [N, C], logits of the pool.
        val_labels_V: int [V], of images that are in no training.
        test_labels_M: int [M].
        test_teacher_MC: float [M, C].
        new_model: A student before its training, by the kind of heads.
        data: Rows of the pool, to train on.
        say: What a student says of the validation and of the test images, float [V, C] and [M, C] by column.
        settings: Of a training on so many labels, but for its key.
        texts: The classes' texts.
    """

    name: str
    labels_N: np.ndarray
    teacher_NC: np.ndarray
    val_labels_V: np.ndarray
    test_labels_M: np.ndarray
    test_teacher_MC: np.ndarray
    new_model: Callable[[str], Any]
    data: Callable[[np.ndarray], Any]
    say: Callable[[Any], list[dict[str, np.ndarray]]]
    settings: Callable[[int], dict[str, Any]]
    texts: Any


def digits(folder: Path) -> Problem:
    """The demo's images, student and zero-shot teacher."""
    import pyarrow as pa

    from raykd.algo.few_shot.honest import text_scorer
    from raykd.images.reading import load_many
    from raykd.images.stored import ImageReader
    from raykd.models.student import Student, new_student
    from raykd.models.training_data import TrainingImages
    from raykd.presets import load_preset
    from raykd.stages.campaign import open_campaign
    from raykd.stages.pool import list_pool

    folder = folder / str(os.getpid())  # of this process alone
    seen = digits_features(folder)
    config = load_preset("demo", [f"storage_path={folder}/digits", "progress=none"])
    with open_campaign(config) as campaign:
        pool = list_pool(campaign)
    (rows, _), (val, val_labels_V), (test, _) = (
        pool.with_labels(pool.split(split), pool.classes) for split in ("pool", "val", "test")
    )
    scorer = text_scorer(seen.texts)

    def student(heads: str, seed: int = 0) -> Student:
        return new_student(config.student.model_copy(update={"heads": heads}), pool.classes, seed)

    preprocess = student("dho").preprocess
    pixels = [
        np.stack([np.asarray(image) for image in load_many(ImageReader(), of["uri"].to_pylist(), preprocess.clean())])
        for of in (val, test)
    ]

    def data(order: np.ndarray) -> Any:
        mine = rows.take(pa.array(order))
        ids, uris = (pa.chunked_array([mine[name].combine_chunks()]) for name in ("sample_id", "uri"))
        return TrainingImages(ids, uris, preprocess, config.student.crop_area, config.student.flip)

    def say(model: Any) -> list[dict[str, np.ndarray]]:
        student = Student(model.eval(), config.student.backbone, list(pool.classes), preprocess)
        return [student.outputs(of)[1] for of in pixels]

    return Problem(
        "digits", seen.labels_N, scorer.logits(seen.pool_ND), val_labels_V, seen.test_labels_N,
        scorer.logits(seen.test_ND), lambda heads: student(heads).model, data, say, lambda _: DEMO, seen.texts,
    )  # fmt: skip


def tiny(folder: Path) -> Problem:
    """Tiny-ImageNet in a real network's frozen features."""
    import torch
    from torch import nn

    from raykd.algo.dho import StudentNet
    from raykd.algo.few_shot.honest import text_scorer
    from raykd.models.training_data import TrainingFeatures

    seen = tiny_imagenet(folder)
    scorer = text_scorer(seen.texts)
    mean, spread = seen.pool_ND.mean(axis=0), float(seen.pool_ND.std())  # one number: directions keep their sizes
    first_N = balanced(seen, VALIDATION, 0)
    others_N = np.setdiff1d(np.arange(len(seen.labels_N)), first_N)
    features = [(of - mean) / spread for of in (seen.pool_ND[others_N], seen.pool_ND[first_N], seen.test_ND)]
    pool_ND, labels_N = features[0], seen.labels_N[others_N]

    def model(heads: str) -> StudentNet:
        torch.manual_seed(0)
        return StudentNet(nn.Identity(), pool_ND.shape[1], len(seen.texts.directions_CD), heads)

    def say(net: StudentNet) -> list[dict[str, np.ndarray]]:
        with torch.inference_mode():
            found = [net.eval()(torch.from_numpy(of.astype(np.float32))).logits for of in features[1:]]
        return [{name: values.numpy() for name, values in logits.items()} for logits in found]

    return Problem(
        "Tiny-ImageNet", labels_N, scorer.logits(seen.pool_ND[others_N]), seen.labels_N[first_N], seen.test_labels_N,
        scorer.logits(seen.test_ND), model, lambda order: TrainingFeatures(pool_ND[order]), say,
        lambda labels: {"steps": min(MOST_STEPS, 200 * math.ceil(labels / 64))}, seen.texts,
    )  # fmt: skip


# ---------------------------------------------------------------- one training

PROBLEM: dict[str, Problem] = {}  # of this process: made once


def problem_of(kind: str, folder: str) -> Problem:
    if kind not in PROBLEM:
        PROBLEM[kind] = digits(Path(folder)) if kind == "digits" else tiny(Path(folder))
    return PROBLEM[kind]


def train(
    problem: Problem, heads: str, rows: np.ndarray, seed: int, report: Any = None, model: Any = None
) -> Any:  # fmt: skip
    """A student trained on these labels, and the rest of the pool without them."""
    import torch

    from raykd.models.training import Targets, TrainingSettings, reproducible, train_student

    rest = np.setdiff1d(np.arange(len(problem.labels_N)), rows)
    order = np.concatenate([rows, rest])
    settings = TrainingSettings(key=(seed, 0), checkpoints=1, **problem.settings(len(rows)))
    targets = Targets(problem.labels_N[rows], problem.teacher_NC[order].astype(np.float16))
    model = model or problem.new_model(heads)
    with reproducible(1, torch.device("cpu")):
        train_student(model, problem.data(order), targets, settings, report or (lambda *_: None))
    return model


def one_cell(kind: str, folder: str, heads: str, shots: int, seed: int) -> dict[str, float]:
    """Accuracy of one training; of dho, of each head, too."""
    from raykd.algo import metrics
    from raykd.algo.heads import probabilities

    problem = problem_of(kind, folder)
    model = train(problem, heads, balanced(problem, shots, seed), seed)  # type: ignore[arg-type]
    (val, logits), labels_M = problem.say(model), problem.test_labels_M
    found = {heads: metrics.accuracy(probabilities(logits), labels_M)}
    if len(logits) > 1:
        chosen = searched(val, problem.val_labels_V)
        found[SEARCHED] = metrics.accuracy(probabilities(logits, chosen), labels_M)
        found |= {f"dho: {name.split('_')[0]} head": metrics.accuracy(of, labels_M) for name, of in logits.items()}
        found["ce_weight"] = chosen.ce_weight
    return found


def searched(logits: dict[str, np.ndarray], labels_V: np.ndarray) -> Any:
    """The mixture as raykd's mix stage chooses it."""
    from raykd.algo.heads import Mixture
    from raykd.algo.mixture_search import better_mixture, grid, hits

    points_G2 = grid(Mixture())
    correct_G = hits(logits, labels_V, points_G2).sum(axis=1)
    return better_mixture(logits, labels_V, Mixture(), points_G2, correct_G)[0]


@contextmanager
def workers(count: int) -> Iterator[ProcessPoolExecutor]:
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        yield pool


# ---------------------------------------------------------------- heads


def compare_heads(kind: str, folder: Path, seeds: int, processes: int, kinds: Sequence[str]) -> dict[str, Any]:
    """Every kind of heads on the same labels: a table of accuracies, and one of what dho gains."""
    problem = problem_of(kind, str(folder))
    teacher = float(np.mean(problem.test_teacher_MC.argmax(axis=1) == problem.test_labels_M))
    cells = [(heads, shots, seed) for shots in SHOTS for seed in range(seeds) for heads in kinds]
    with workers(processes) as pool:
        futures = [pool.submit(one_cell, kind, str(folder), *cell) for cell in cells]
        outcomes = [future.result() for future in futures]
    found: dict[str, dict[str, list[float]]] = {str(shots): {} for shots in SHOTS}
    for (_, shots, _), outcome in zip(cells, outcomes, strict=True):
        for name, value in outcome.items():
            found[str(shots)].setdefault(name, []).append(value)
    names = [*kinds, SEARCHED, "dho: ce head", "dho: kd head"]
    num_val, num_test = len(problem.val_labels_V), len(problem.test_labels_M)
    print(f"\n{problem.name}: accuracy on {num_test:,} test images, %; the teacher {teacher:.1%}\n")
    print_table(
        ["labels a class", *names, "mean ce_weight"],
        ([n, *(share(of[name]) for name in names), f"{np.mean(of['ce_weight']):.2f}"] for n, of in found.items()),
    )
    pairs = [(ours, name) for ours in ("dho", SEARCHED) for name in AGAINST if name in kinds]
    print(f"\n{problem.name}: gains, points, same labels and seeds (p by sign flips); {num_val:,} validation images\n")
    print_table(
        ["labels a class", *(f"{ours} over {other}" for ours, other in pairs)],
        ([n, *(gain(of[ours], of[other]) for ours, other in pairs)] for n, of in found.items()),
    )
    return {"teacher": teacher, **found}


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print("| " + " | ".join(headings) + " |\n" + "|---" * len(headings) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def share(values: Sequence[float]) -> str:
    """A mean over seeds and its interval, in per cent."""
    return f"{100 * np.mean(values):.1f} ± {100 * interval(values):.1f}"


def gain(ours: Sequence[float], theirs: Sequence[float], scale: float = 100) -> str:
    """The mean difference over seeds, of shares in points, its interval, and how easily chance makes it."""
    from raykd.algo.statistics import sign_flip

    differences = scale * (np.array(ours) - np.array(theirs))
    mean, half = differences.mean(), interval(differences.tolist())
    decimals = 1 if scale > 1 else 3
    return f"{mean:+.{decimals}f} ± {half:.{decimals}f} (p {sign_flip(differences):.3f})"


# ---------------------------------------------------------------- conflict


def one_conflict(folder: str, heads: str, shots: int, seed: int) -> list[tuple[int, float]]:
    """(step, cosine of the gradients of cross-entropy and of distillation on the backbone) along a training."""
    import torch

    from raykd.algo.batches import BatchPlan
    from raykd.algo.dho import Learner
    from raykd.models.training_data import AskedBatch

    problem = problem_of("digits", folder)
    rows = balanced(problem, shots, seed)  # type: ignore[arg-type]
    rest = np.setdiff1d(np.arange(len(problem.labels_N)), rows)
    order = np.concatenate([rows, rest])
    data, model = problem.data(order), problem.new_model(heads)
    plan = BatchPlan(len(rows), len(rest), 64, 64, (seed, 1))
    found: list[tuple[int, float]] = []

    def look(step: int, *_: Any) -> None:
        if step % LOOK_EVERY:
            return
        labeled, unlabeled = plan.labeled(step), plan.unlabeled(step) + len(rows)
        places = np.concatenate([labeled, unlabeled])
        images = data.batch(AskedBatch(places, plan.augmentation_seeds(step), len(labeled))).items
        batch = data.to_input(images)
        learner = Learner(copy.deepcopy(model).train(), False, 0.5, 2.0)
        teacher = torch.from_numpy(problem.teacher_NC[order].astype(np.float32))
        loss = learner(batch, torch.from_numpy(problem.labels_N[order][labeled]), teacher[labeled], teacher[unlabeled])
        parameters = [value for value in learner.model.backbone.parameters() if value.requires_grad]
        signals = [
            torch.cat([each.ravel() for each in torch.autograd.grad(part, parameters, retain_graph=True)])
            for part in (loss.ce, loss.kl_labeled + loss.kl_unlabeled)
        ]
        found.append((step, float(torch.nn.functional.cosine_similarity(signals[0], signals[1], dim=0))))

    train(problem, heads, rows, seed, look, model)
    return found


def compare_conflict(folder: Path, seeds: int, processes: int, plot: Path | None) -> dict[str, Any]:
    """Cosines by kind of heads: their mean along the training, by labels a class."""
    found: dict[str, list[list[tuple[int, float]]]] = {}
    cells = [(heads, shots, seed) for shots in CONFLICT_SHOTS for seed in range(seeds) for heads in CONFLICT]
    with workers(processes) as pool:
        futures = [pool.submit(one_conflict, str(folder), *cell) for cell in cells]
        for (heads, shots, _), future in zip(cells, futures, strict=True):
            found.setdefault(f"{shots} {heads}", []).append(future.result())
    print("\ndigits: cosine of the gradients of the two signals on the backbone, second half of a training\n")
    rows = []
    for shots in CONFLICT_SHOTS:
        one, two = (late(cosines_of(found[f"{shots} {heads}"])) for heads in CONFLICT)
        means = [of.mean(axis=1).tolist() for of in (one, two)]
        values = [f"{np.mean(of):+.3f} ± {interval(of):.3f}" for of in means]
        against = [f"{(of < 0).mean():.0%}" for of in (one, two)]
        rows.append([str(shots), *values, gain(means[1], means[0], 1), *against])
    headings = ["labels a class", *CONFLICT.values(), "two over one", "below 0: one head", "two"]
    print_table(headings, rows)
    if plot:
        draw_conflict(found, plot)
    return {name: cosines_of(runs).round(4).tolist() for name, runs in found.items()}


def cosines_of(runs: list[list[tuple[int, float]]]) -> np.ndarray:
    """Along each training, float [seeds, looks]."""
    return np.array([[cosine for _, cosine in run] for run in runs])


def late(cosines: np.ndarray) -> np.ndarray:
    """Their second half."""
    return cosines[:, cosines.shape[1] // 2 :]


def draw_conflict(found: dict[str, list[list[tuple[int, float]]]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        1, len(CONFLICT_SHOTS), figsize=(2.6 * len(CONFLICT_SHOTS), 2.8), sharey=True, layout="constrained"
    )
    for axis, shots in zip(axes, CONFLICT_SHOTS, strict=True):
        for (heads, label), color in zip(CONFLICT.items(), ("#b5532a", "#2a6fb5"), strict=True):
            runs = found[f"{shots} {heads}"]
            steps, values = [step for step, _ in runs[0]], cosines_of(runs)
            mean, half = values.mean(axis=0), np.array([interval(of) for of in values.T.tolist()])
            axis.plot(steps, mean, color=color, label=label, linewidth=1.4)
            axis.fill_between(steps, mean - half, mean + half, color=color, alpha=0.2, linewidth=0)
        axis.axhline(0, color="#888", linewidth=0.8)
        axis.set_title(f"{shots} label{'s' if shots > 1 else ''} a class", fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("cosine of the two gradients", fontsize=8)
    axes[-1].legend(fontsize=7, frameon=False)
    figure.savefig(file, dpi=130)


# ---------------------------------------------------------------- views


def compare_views(folder: Path, seeds: int) -> dict[str, Any]:
    """A training of the demo's student by what its teacher looks at."""
    from active_round import run  # beside this file

    from raykd.presets import load_preset

    rows: dict[str, list[Any]] = {views: [] for views in VIEWS}
    seconds: dict[str, list[float]] = {views: [] for views in VIEWS}
    for seed in range(-1, seeds):  # the first warms up: imports and Ray
        for views in VIEWS:
            overrides = [f"storage_path={folder}/{views}_{seed}", f"seed={max(seed, 0)}", "progress=none", "rounds=1"]
            overrides += [f"student.teacher_views={views}", f"labels.shots={VIEWS_SHOTS}", "mixture.search=false"]
            overrides += [f"cache_path={folder}/cache_{views}{'_warm' if seed < 0 else ''}"]
            started = time.perf_counter()
            with redirect_stdout(io.StringIO()):
                (figures,) = run(load_preset("demo", overrides))
            if seed >= 0:
                rows[views].append(figures)
                seconds[views].append(time.perf_counter() - started)
    accuracy, ece, training = (
        {views: [read(figures) for figures in rows[views]] for views in VIEWS}
        for read in (
            lambda figures: figures["accuracy"]["mixture"],
            lambda figures: figures["ece_uncalibrated"],
            lambda figures: figures["seconds"]["train"],
        )
    )
    print(f"\ndigits: what the teacher looks at, {VIEWS_SHOTS} labels a class\n")
    print_table(
        ["teacher_views", "accuracy on 400 test images, %", "over cached, points", "uncalibrated error, %",
         "training, s", "whole campaign, first, s", "others, s"],
        (
            [
                views, share(accuracy[views]),
                "" if views == VIEWS[0] else gain(accuracy[views], accuracy[VIEWS[0]]),
                share(ece[views]), f"{np.mean(training[views]):.1f}", f"{seconds[views][0]:.1f}",
                f"{np.mean(seconds[views][1:]):.1f}",
            ]
            for views in VIEWS
        ),
    )  # fmt: skip
    return {"accuracy": accuracy, "ece": ece, "training": training, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="*", metavar="heads conflict views", default=["heads", "conflict", "views"])
    parser.add_argument("--data", type=Path, help="folder with tiny_imagenet_val_mobilenetv2.npz")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=HEADS, default=HEADS)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--plot", type=Path, help="PNG file of the conflict")
    given = parser.parse_args()
    if "dho" not in given.kinds:
        parser.error(f"--kinds {' '.join(given.kinds)}: dho is what the others are held against; name it, too")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raykd-bench-") as folder:
        if "heads" in given.themes:
            for kind, where in [("digits", Path(folder))] + ([("tiny", given.data)] if given.data else []):
                results[kind] = compare_heads(kind, where, given.seeds, given.processes, given.kinds)
        if "conflict" in given.themes:
            results["conflict"] = compare_conflict(Path(folder), given.seeds, given.processes, given.plot)
        if "views" in given.themes:
            results["views"] = compare_views(Path(folder), given.seeds)
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
