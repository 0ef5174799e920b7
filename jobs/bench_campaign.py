"""Where a small campaign's time goes: the demo, stage by stage, work against everything else.

    python jobs/bench_campaign.py [--against CHECKOUT] [--repeats 3]

*Work* is what a plain loop in one process takes for the same arithmetic, measured here, after its imports: reading,
cropping and encoding every image, predicting; and the training's steps, by their own record. What a stage takes beyond
that is process start, imports, and the bookkeeping of Ray and of files. ``--against``: the same demo by another
checkout of raykd, in turns with this one. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
ROUND_STAGES = ("select", "label", "train", "predict", "mix", "evaluate")
FIXED = ("train", "predict", "mix", "evaluate")  # whose cost beyond work is a round's fixed cost
BATCH = 32 + 64  # images of a step in the demo
OLD_NAMES = {"tune": "mix"}


def campaign_seconds(checkout: Path) -> dict[str, float]:
    """One demo campaign in processes of its own: seconds of each stage, rounds added up, and of the whole."""
    with tempfile.TemporaryDirectory(prefix="raykd-bench-") as folder:
        command = [sys.executable, "jobs/active_round.py", "--preset", "demo", "--set", f"storage_path={folder}/run"]
        started = time.perf_counter()
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
        seconds = {"whole": time.perf_counter() - started}
        run = Path(folder) / "run"
        for file in sorted(run.glob("round_*/evaluate/metrics.json")):
            for name, value in json.loads(file.read_text())["seconds"].items():
                name = OLD_NAMES.get(name, name)
                seconds[name] = seconds.get(name, 0.0) + value
        for file in run.glob("round_*/train/steps.jsonl"):
            seconds["train work"] = seconds.get("train work", 0.0) + steps_seconds(file)
        for name in ("pool", "encode", "teacher"):
            markers = (run / name).rglob("_DONE.json")
            seconds[name] = sum(json.loads(marker.read_text())["facts"]["seconds"] for marker in markers)
        return seconds


def steps_seconds(file: Path) -> float:
    """What the steps of a training took, by its own record."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    before, seconds = 0, 0.0
    for line in lines:
        seconds += (line["step"] - before) * BATCH / line["images_per_s"]
        before = line["step"]
    return seconds


def work_seconds() -> dict[str, float]:
    """The same arithmetic in a plain loop of one process, whose libraries are there: seconds, for all three rounds."""
    import numpy as np

    from raykd.demo import digits
    from raykd.images.reading import load_many
    from raykd.images.sources import list_source
    from raykd.images.stored import ImageReader
    from raykd.images.transforms import ClipPreprocess
    from raykd.models.student import new_student
    from raykd.models.teacher import ImageTower, fetch_weights, read_clip_preprocess
    from raykd.presets import load_preset
    from raykd.store.place import Place

    config = load_preset("demo")
    with tempfile.TemporaryDirectory(prefix="raykd-bench-") as folder:
        place = Place.of(folder)
        rows = list_source(digits.materialise(config.pool), "pool", list(digits.CLASSES), lambda *_: None).rows
        fetch_weights(config.teacher, place / "teacher")
        tower = ImageTower(place / "teacher", config.teacher.precision, "cpu", 1)
        preprocess = ClipPreprocess(read_clip_preprocess(place / "teacher"))
        student = new_student(config.student, list(digits.CLASSES), seed=0)
        reader, uris = ImageReader(), rows["uri"].to_pylist()

        def batches(transform: Any, size: int) -> Any:
            for start in range(0, len(uris), size):
                yield np.stack(list(load_many(reader, uris[start : start + size], lambda i: np.asarray(transform(i)))))

        seconds = {}
        started = time.perf_counter()
        for pixels in batches(preprocess, config.teacher.batch_size):
            tower.features(pixels)
        seconds["encode"] = time.perf_counter() - started
        started = time.perf_counter()
        clean = student.preprocess.clean()
        for pixels in batches(clean, config.student.predict_batch_size):
            student.outputs(pixels, 1)
        seconds["predict"] = config.rounds * (time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout of raykd, with the same environment")
    parser.add_argument("--repeats", type=int, default=3, help="campaigns of each (default: 3)")
    given = parser.parse_args()
    checkouts = {"this": ROOT} | ({"other": given.against.resolve()} if given.against else {})
    found: dict[str, list[dict[str, float]]] = {name: [] for name in checkouts}
    for _ in range(given.repeats):
        for name, checkout in checkouts.items():  # in turns: the machine's mood is everybody's
            found[name].append(campaign_seconds(checkout))
    work = work_seconds() | {"train": median(run["train work"] for run in found["this"])}
    middle = {
        name: {stage: median(run.get(stage, 0.0) for run in runs) for stage in runs[0]} for name, runs in found.items()
    }
    stages = ["pool", "encode", "teacher", *ROUND_STAGES, "whole"]
    print(f"{'stage':<10}{'work':>8}" + "".join(f"{name:>10}" for name in checkouts))
    for stage in stages:
        cells = "".join(f"{middle[name].get(stage, 0.0):>10.1f}" for name in checkouts)
        print(f"{stage:<10}{work.get(stage, float('nan')):>8.1f}{cells}")
    rounds = 3
    fixed = {
        name: sum(middle[name].get(stage, 0.0) - work.get(stage, 0.0) for stage in FIXED) / rounds for name in checkouts
    }
    print("a round's fixed cost (train, predict, mix, evaluate beyond their work): " + ", ".join(
        f"{name} {seconds:.1f} s" for name, seconds in fixed.items()))  # fmt: skip
    print(json.dumps({"seconds": middle, "work": work, "fixed_cost_of_a_round": fixed, "runs": found}))


if __name__ == "__main__":
    main()
