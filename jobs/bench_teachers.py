"""How good each teacher rule is, by labels; what it does for a student; what a refit costs; which labels it doubts.

    python jobs/bench_teachers.py [rules] [students] [scale] [slips] [--data FOLDER] [--seeds 8] [--rules gda ...]
    python jobs/bench_teachers.py tables --data FOLDER --out TABLES

rules: accuracy, log-loss and calibration on test images against labels a class, balanced and as PCoreSet picks them (in
the zero-shot probabilities, after one label of each class), on stored features: the demo's digits with its CLIP and
real prompts (also with ten views of each labeled image); and, with --data, Tiny-ImageNet's validation images in a
supervised MobileNetV2's eyes, where the "text" of a class is the mean of ten held-out images of it, moved off the
images by a constant and blurred by noise, as texts are.

students: the demo's campaign on digits, six rounds, one arm for each rule, the same seeds: the student's accuracy.

scale: 1.28 million features of 512 numbers, 1,000 classes, 8,000 labels: a refit and a rescoring, read from and written
to disk by parts as a campaign does. --rows for fewer.

slips: the sets of rules, a part of the labels changed to another class at random: which are suspected, and how they are
ranked; by margin and by confident learning's line, too.

tables: Tiny-ImageNet's features, as rules has them, in a folder of tables that jobs/simulate.py takes (``tables:``).

Means over seeds with 95 % intervals (t). A table each, then one JSON line.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHOTS = (1, 2, 4, 8, 16)
STAT_A = "+stat_a"
RULES = ("zero_shot", "gda", "proker", "tip", "tip_f", "clap", "auto", "zero_shot+stat_a", "gda+stat_a")
STUDENT_RULES = ("zero_shot", "gda", "proker", "auto")
ROUNDS = 6
T975 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}  # Student's, by seeds


def interval(values: Sequence[float]) -> float:
    """Half of the 95 % interval of a mean."""
    count = len(values)
    return T975.get(count, 2.0) * float(np.std(values, ddof=1)) / count**0.5 if count > 1 else float("nan")


# ---------------------------------------------------------------- stored features


@dataclass(frozen=True)
class Data:
    """Features and labels of images to label and to test on, and what the teacher says of the classes."""

    name: str
    pool_ND: np.ndarray
    labels_N: np.ndarray
    test_ND: np.ndarray
    test_labels_N: np.ndarray
    texts: Any
    views_NVD: np.ndarray | None = None


def digits(folder: Path, views: int = 0) -> Data:
    """The demo's pool in its teacher's eyes."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from raykd.presets import load_preset
    from raykd.stages.campaign import open_campaign
    from raykd.stages.encode import encode
    from raykd.stages.few_shot import texts_of
    from raykd.stages.pool import list_pool
    from raykd.stages.teacher import teach
    from raykd.stages.views import encode_views
    from raykd.store.outputs import rows_of
    from raykd.store.stage_folder import read_done

    config = load_preset("demo", [f"storage_path={folder}/digits", "progress=none"])
    with open_campaign(config) as campaign:
        pool = list_pool(campaign)
        encoded = encode(campaign, pool)
        teacher = teach(campaign, pool, encoded)
        assert teacher.texts is not None
        found: list[Any] = []
        for split in ("pool", "test"):
            rows, labels_N = pool.with_labels(pool.split(split), pool.classes)
            found += [rows_of(encoded.parts, rows["sample_id"], ("features",))["features"].astype(np.float32), labels_N]
        views_NVD = None
        if views:
            model = read_done(encoded.folder)
            assert model is not None
            rows = pool.split("pool")
            seen = encode_views(
                campaign, [rows], model, config.teacher, views=views, area=config.student.crop_area,
                flip=config.student.flip, seed=0, at=campaign.place / "views", shared=False, decode="exact",
                max_bad_share=1.0,
            )  # fmt: skip
            views_NVD = seen.features(rows["sample_id"].take(pc.sort_indices(rows["sample_id"]))).astype(np.float32)
            assert isinstance(rows, pa.Table)
    return Data("digits" + (f", {views} views" if views else ""), *found, texts_of(teacher.texts), views_NVD)  # type: ignore[call-arg]


def tiny_imagenet(folder: Path, seed: int = 0, held_out: int = 10, noise: float = 0.5, gap: float = 1.0) -> Data:
    """Tiny-ImageNet's 200 classes x 50 validation images: 10 a class make its text, 10 test, 30 are the pool."""
    from raykd.algo.calibration import honest_weights
    from raykd.algo.few_shot.support import Texts

    stored = np.load(folder / "tiny_imagenet_val_mobilenetv2.npz")
    x, y = unit(stored["features"].astype(np.float64)), stored["labels"].astype(np.int64)
    rng, num_classes = np.random.default_rng(seed), int(y.max()) + 1
    to_images, to_texts = unit(rng.normal(size=(2, x.shape[1])))
    role = np.zeros(len(x), int)
    for c in range(num_classes):
        order = rng.permutation(np.flatnonzero(y == c))
        role[order[held_out : held_out + 10]], role[order[held_out + 10 :]] = 1, 2
    means = unit(np.stack([x[(role == 0) & (y == c)].mean(axis=0) for c in range(num_classes)]))
    blur = noise * rng.normal(size=means.shape) / x.shape[1] ** 0.5
    directions, images = unit(means + blur + gap * to_texts), unit(x + gap * to_images)
    mine = role == 0
    # a scale as training would have found it: the likeliest on the images that made the texts
    cosines = images[mine] @ directions.T
    scale = 20 * honest_weights([20 * cosines], y[mine], np.ones(int(mine.sum())))[0]
    texts = Texts(directions, scale)
    return Data("Tiny-ImageNet", images[role == 2], y[role == 2], images[role == 1], y[role == 1], texts)


def unit(rows: np.ndarray) -> np.ndarray:
    found: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def balanced(data: Data, shots: int, seed: int) -> np.ndarray:
    """So many labels of each class, drawn; those of fewer shots are among them."""
    rng = np.random.default_rng(seed)
    classes = range(len(data.texts.directions_CD))
    return np.concatenate([rng.permutation(np.flatnonzero(data.labels_N == c))[:shots] for c in classes])


def as_pcoreset(data: Data, shots: int, seed: int) -> np.ndarray:
    """One label of each class, drawn; then farthest-first picks in the zero-shot probabilities."""
    from raykd.algo.few_shot.honest import text_scorer
    from raykd.algo.heads import probabilities
    from raykd.algo.selection.reference import running_minimum

    start = balanced(data, 1, seed)
    rest = np.setdiff1d(np.arange(len(data.labels_N)), start)
    probs_NC = probabilities({"logits": text_scorer(data.texts).logits(data.pool_ND)})
    budget = min(len(rest), (shots - 1) * len(data.texts.directions_CD))
    picks = running_minimum([f"{row:09d}" for row in rest], probs_NC[rest], probs_NC[start], budget)
    return np.concatenate([start, np.array([int(name) for name, _ in picks], np.int64)])


def write_tables(data: Data, out: Path, val_shots: int = 2) -> None:
    """The images as a simulation takes them; of each class so many of the pool, drawn, are for validation instead."""
    import pyarrow as pa

    from raykd.algo.few_shot.honest import text_scorer
    from raykd.store.place import Place
    from raykd.store.tables import vectors

    place, scorer, num_classes = Place.of(out), text_scorer(data.texts), len(data.texts.directions_CD)
    for_val = balanced(data, val_shots, 0)
    for_pool = np.setdiff1d(np.arange(len(data.labels_N)), for_val)
    classes = [f"class {number:03d}" for number in range(num_classes)]
    for split, features_ND, labels_N in (
        ("pool", data.pool_ND[for_pool], data.labels_N[for_pool]),
        ("val", data.pool_ND[for_val], data.labels_N[for_val]),
        ("test", data.test_ND, data.test_labels_N),
    ):
        stored_ND = features_ND.astype(np.float16)
        columns = {
            "sample_id": [f"{split}/{row:05d}" for row in range(len(labels_N))],
            "label": [classes[label] for label in labels_N],
            "features": vectors(stored_ND),
            "logits": vectors(scorer.logits(stored_ND)),
        }
        (place / f"{split}.parquet").write_table(pa.table(columns))
        print(f"{place / split}.parquet: {len(labels_N):,} images")
    (place / "classes.json").write_json(classes)
    np.savez(out / "texts.npz", directions_CD=data.texts.directions_CD, scale=data.texts.scale)


# ---------------------------------------------------------------- rules


def one_fit(data: Data, rows: np.ndarray, rule: str) -> dict[str, float]:
    """Of a rule on some labels, on test."""
    from raykd.algo.calibration import log_losses
    from raykd.algo.few_shot.rules import fit_rule
    from raykd.algo.few_shot.stat_a import ITERATIONS, pool_moments, start, update
    from raykd.algo.few_shot.support import Support
    from raykd.algo.heads import softmax
    from raykd.algo.metrics import calibration_error

    views_NVD = None if data.views_NVD is None else data.views_NVD[rows]
    support = Support(data.pool_ND[rows], data.labels_N[rows], data.texts, views_NVD)
    started = time.perf_counter()
    fitted = fit_rule(rule.removesuffix(STAT_A), support)
    scorer = fitted.scorer
    if rule.endswith(STAT_A):
        state = start(scorer, data.texts.directions_CD, support)
        unlabeled_ND = np.delete(data.pool_ND, rows, axis=0)
        for _ in range(ITERATIONS):
            state = update(state, pool_moments(unlabeled_ND, state.scorer))
        scorer = state.scorer
    seconds = time.perf_counter() - started
    logits_NC = scorer.logits(data.test_ND).astype(np.float64)
    probs_NC, untempered_NC = softmax(logits_NC), softmax(logits_NC * fitted.chosen["temperature"])
    return {
        "accuracy": float(np.mean(logits_NC.argmax(axis=1) == data.test_labels_N)),
        "log_loss": float(log_losses(logits_NC, data.test_labels_N).mean()),
        "ece": calibration_error(probs_NC, data.test_labels_N),
        "ece_untempered": calibration_error(untempered_NC, data.test_labels_N),
        "seconds": seconds,
    }


def compare_rules(data: Data, rules: Sequence[str], seeds: int) -> dict[str, Any]:
    """Every rule on labels that are balanced, and as they are picked."""
    found: dict[str, Any] = {}
    for how, draw in (("balanced", balanced), ("pcoreset", as_pcoreset)):
        print(f"\n{data.name}, {how}: accuracy on {len(data.test_labels_N):,} test images, % (log-loss; ECE)\n")
        print("| labels a class | " + " | ".join(rules) + " |\n|---" * 1 + "|---" * len(rules) + "|")
        for shots in SHOTS:
            labels = [draw(data, shots, seed) for seed in range(seeds)]
            cells = []
            for rule in rules:
                runs = [one_fit(data, rows, rule) for rows in labels]
                values = {name: [run[name] for run in runs] for name in runs[0]}
                found[f"{how} {shots} {rule}"] = {name: float(np.mean(of)) for name, of in values.items()}
                accuracy, loss, ece = (float(np.mean(values[name])) for name in ("accuracy", "log_loss", "ece"))
                cells.append(f"{100 * accuracy:.1f} ± {100 * interval(values['accuracy']):.1f} ({loss:.2f}; {ece:.3f})")
            print(f"| {shots} | " + " | ".join(cells) + " |", flush=True)
    return found


# ---------------------------------------------------------------- students


def compare_students(folder: Path, rules: Sequence[str], seeds: int) -> dict[str, Any]:
    """The demo's campaign under each rule: accuracy of student and teacher by round."""
    from active_round import run  # beside this file

    from raykd.presets import load_preset

    found: dict[str, Any] = {}
    rows: dict[str, list[list[Any]]] = {rule: [] for rule in rules}
    for seed in range(seeds):
        for rule in rules:
            overrides = [f"storage_path={folder}/{rule}_{seed}", f"seed={seed}", f"rounds={ROUNDS}", "progress=none"]
            overrides += [f"teacher.rule={rule}", f"cache_path={folder}/cache", "selection.budget=10"]
            with redirect_stdout(io.StringIO()):
                rows[rule].append(list(run(load_preset("demo", overrides))))
    print("\nStudents on the digits, PCoreSet, 400 test images: accuracy, % (their teachers')\n")
    print("| labels | " + " | ".join(rules) + " |\n|---" + "|---" * len(rules) + "|")
    for number in range(ROUNDS):
        cells = []
        for rule in rules:
            figures = [campaign[number] for campaign in rows[rule]]
            student, teacher = ([r["accuracy"][who] for r in figures] for who in ("mixture", "teacher"))
            found[f"{figures[0]['num_labeled']} {rule}"] = {"student": student, "teacher": teacher}
            mean = f"{100 * np.mean(student):.1f} ± {100 * interval(student):.1f}"
            cells.append(f"{mean} ({100 * np.mean(teacher):.1f})")
        print(f"| {figures[0]['num_labeled']} | " + " | ".join(cells) + " |")
    print("\nGain of the student over the zero-shot teacher's, same seeds, points\n")
    print("| labels | " + " | ".join(rules[1:]) + " |\n|---" + "|---" * (len(rules) - 1) + "|")
    for number in range(ROUNDS):
        cells = []
        for rule in rules[1:]:
            pairs = zip(rows[rule], rows[rules[0]], strict=True)
            gains = [a[number]["accuracy"]["mixture"] - b[number]["accuracy"]["mixture"] for a, b in pairs]
            cells.append(f"{100 * np.mean(gains):+.1f} ± {100 * interval(gains):.1f}")
        print(f"| {rows[rules[0]][0][number]['num_labeled']} | " + " | ".join(cells) + " |")
    return found


# ---------------------------------------------------------------- slips


def one_search(data: Data, rows: np.ndarray, share: float, seed: int) -> dict[str, float]:
    """What is found of a share of wrong labels."""
    from raykd.algo.few_shot.support import Support
    from raykd.algo.label_errors import slips_among

    rng, labels_N, num_classes = np.random.default_rng(seed), data.labels_N[rows].copy(), len(data.texts.directions_CD)
    wrong_N = np.zeros(len(rows), bool)
    wrong_N[rng.choice(len(rows), round(share * len(rows)), replace=False)] = True
    labels_N[wrong_N] = (labels_N[wrong_N] + rng.integers(1, num_classes, int(wrong_N.sum()))) % num_classes
    started = time.perf_counter()
    slips = slips_among(Support(data.pool_ND[rows], labels_N, data.texts))
    seconds = time.perf_counter() - started
    counts_C = np.maximum(np.bincount(labels_N, minlength=num_classes), 1)
    usual_C = np.bincount(labels_N, slips.given_N, num_classes) / counts_C
    above_NC = np.where((slips.probs_NC >= usual_C) & (usual_C > 0), slips.probs_NC, 0.0)
    theirs_N = (above_NC.max(axis=1) > 0) & (above_NC.argmax(axis=1) != labels_N)
    found = {
        "wrong": wrong_N.sum(),
        "suspected": slips.suspects_N.sum(),
        "found": (slips.suspects_N & wrong_N).sum(),
        "by_chance": slips.by_chance,
        "share": slips.share,
        "confident_learning": theirs_N.sum(),
        "seconds": seconds,
    }
    for name, order_N in (("", slips.order_N), ("margin_", np.argsort(slips.margins_N, kind="stable"))):
        hits_N = wrong_N[order_N]
        found[f"{name}at_k"] = hits_N[: wrong_N.sum()].mean() if share else np.nan
        found[f"{name}average"] = (hits_N.cumsum() / np.arange(1, len(rows) + 1))[hits_N].mean() if share else np.nan
    return {name: float(value) for name, value in found.items()}


def search_slips(data: Data, seeds: int) -> dict[str, Any]:
    """Wrong labels among some hundreds, drawn or as they are picked."""
    found: dict[str, Any] = {}
    print(f"\n{data.name}: of labels that were changed at random; means\n")
    print("| labels | wrong | suspected | wrong ones among them | right ones (said by chance) | precision at k "
          "| average precision (by margin) | confident learning suspects |\n" + "|---" * 8 + "|")  # fmt: skip
    num_classes = len(data.texts.directions_CD)
    for shots in (2,) if num_classes > 100 else (20, 50):
        for how, draw in (("balanced", balanced), ("pcoreset", as_pcoreset)):
            rows = [draw(data, shots, seed) for seed in range(seeds)]
            for share in (0.0, 0.05, 0.1):
                runs = [one_search(data, rows[seed], share, seed) for seed in range(seeds)]
                mean = {name: float(np.mean([run[name] for run in runs])) for name in runs[0]}
                found[f"{how} {shots} {share}"] = mean
                right = mean["suspected"] - mean["found"]
                print(f"| {len(rows[0])}, {how} | {mean['wrong']:.0f} | {mean['suspected']:.1f} | {mean['found']:.1f} "
                      f"| {right:.1f} ({mean['by_chance']:.1f}) | {mean['at_k']:.2f} | {mean['average']:.2f} "
                      f"({mean['margin_average']:.2f}) | {mean['confident_learning']:.0f} |", flush=True)  # fmt: skip
    return found


# ---------------------------------------------------------------- scale

WIDTH, CLASSES, LABELS, PART = 512, 1000, 8000, 16_384


def write_pool(folder: Path, rows: int) -> Iterator[tuple[Any, np.ndarray]]:
    """Parts of features as encode leaves them, and the labels of their rows."""
    import pyarrow as pa

    from raykd.store.place import Place
    from raykd.store.stage_folder import Done
    from raykd.store.tables import ENCODED, checked, vectors

    rng = np.random.default_rng(0)
    texts, gap = (unit(rng.normal(size=(count, WIDTH)).astype(np.float32)) for count in (CLASSES, 1))
    buffer: dict[str, np.ndarray] = {"classes": texts, "lengths": np.ones(CLASSES, np.float32), "neutral": gap[0]}
    (folder / "texts").mkdir()
    for name, array in buffer.items():
        np.save(folder / "texts" / f"{name}.npy", array)
    for start in range(0, rows, PART):
        labels = rng.integers(0, CLASSES, min(PART, rows - start))
        noise = rng.normal(size=(len(labels), WIDTH)).astype(np.float32) * 0.13
        features = unit(texts[labels] + 1.2 * gap + noise).astype(np.float16)
        ids = [f"{start + i:09d}" for i in range(len(labels))]
        table = pa.table({"sample_id": ids, "error": pa.nulls(len(ids), pa.string()), "features": vectors(features)})
        place = Place.of(folder / f"part_{start:09d}")
        (place / "block.parquet").write_table(checked(table, ENCODED))
        yield Done(place, str(start), {"rows": len(ids)}, {}, {}), labels


def measure_scale(folder: Path, rules: Sequence[str], rows: int) -> dict[str, Any]:
    """A refit and a rescoring, as ``stages/teacher.py`` does them on one machine."""
    import pyarrow as pa

    from raykd.config import TeacherConfig
    from raykd.models.threads import num_cores
    from raykd.stages.few_shot import LabeledFeatures, fit_labels, write_refitted, write_scorer
    from raykd.store.outputs import rows_of
    from raykd.store.place import Place
    from raykd.store.stage_folder import Done

    parts, labels = zip(*write_pool(folder, rows), strict=True)
    labels_N = np.concatenate(labels)
    texts = Done(Place.of(folder / "texts"), "texts", {"scale": 100.0, "bias": 0.0, "close": []}, {}, {})
    picked = np.sort(np.random.default_rng(1).choice(rows, min(LABELS, rows), replace=False))
    others = pa.table({"sample_id": pa.array([], pa.string()), "split": pa.array([], pa.string())})
    ids = pa.chunked_array([[f"{row:09d}" for row in picked]])
    found: dict[str, Any] = {}
    print(f"\n{rows:,} x {WIDTH} features, {CLASSES:,} classes, {LABELS:,} labels, {num_cores()} cores\n")
    print("| rule | pick out | fit | score and write | in all | peak memory |\n|---|---|---|---|---|---|")
    for rule in rules:
        times = [time.perf_counter()]
        features = rows_of(parts, ids, ("features",))["features"]
        times.append(time.perf_counter())
        config = TeacherConfig(model="ViT-B-32", rule=rule)
        fitted = fit_labels(config, texts, LabeledFeatures(ids, labels_N[picked], features, None), num_cores())
        fit = Done(Place.of(folder / f"fit_{rule}"), rule, {}, {}, {})
        write_scorer(fit.place, fitted.scorer)
        times.append(time.perf_counter())
        for number, part in enumerate(parts):
            write_refitted(part.place, Place.of(folder / f"out_{rule}_{number}"), fit, texts, num_cores(), others)
        times.append(time.perf_counter())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        spent = [*np.diff(times), times[-1] - times[0]]
        found[rule] = {
            "pick_s": spent[0],
            "fit_s": spent[1],
            "score_s": spent[2],
            "total_s": spent[3],
            "peak_gib": peak,
        }
        print(f"| {rule} | " + " | ".join(f"{each:.1f} s" for each in spent) + f" | {peak:.1f} GiB |", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    themes = ["rules", "students", "scale", "slips", "tables"]
    parser.add_argument("themes", nargs="*", metavar=" ".join(themes), default=themes[:-1])
    parser.add_argument("--data", type=Path, help="folder with tiny_imagenet_val_mobilenetv2.npz")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--rules", nargs="+", help="only these")
    parser.add_argument("--rows", type=int, default=1_280_000, help="of scale")
    parser.add_argument("--out", type=Path, help="of tables: the folder to write")
    given = parser.parse_args()
    if "tables" in given.themes:
        if not given.data or not given.out:
            parser.error("tables needs --data FOLDER and --out FOLDER")
        write_tables(tiny_imagenet(given.data), given.out)
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raykd-bench-") as name:
        folder = Path(name)
        if "rules" in given.themes:
            sets = [digits(folder)] + ([tiny_imagenet(given.data)] if given.data else [])
            for data in sets:
                results[data.name] = compare_rules(data, given.rules or RULES, given.seeds)
            seen = digits(folder, views=10)
            results[seen.name] = compare_rules(seen, ("gda", "tip_f", "clap"), given.seeds)
        if "slips" in given.themes:
            for data in [digits(folder / "slips"), *([tiny_imagenet(given.data)] if given.data else [])]:
                results[f"slips, {data.name}"] = search_slips(data, given.seeds)
        if "students" in given.themes:
            results["students"] = compare_students(folder, given.rules or STUDENT_RULES, given.seeds)
        if "scale" in given.themes:
            results["scale"] = measure_scale(folder, given.rules or ("gda", "proker", "tip", "auto"), given.rows)
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
