"""How fast a training's steps are: against a bare loop, and against a step that runs the teacher on every image.

    python jobs/bench_train.py [first] [bare] [reference] [--repeats 5] [--threads 1]

first: seconds until the first step is done, of the first and of the second round of one process, imports included.

bare: steps a second once warm, against plain PyTorch with the same network, AdamW and loss on one batch that lies in
memory, ready: no image is read, cropped or normalised. small: the demo's student (test_resnet, 32 pixels, 32 + 64
images); photos: resnet18 at 96 pixels, 32 + 32 crops of 1,000 JPEGs of 500 x 375. And the share of time that raykd's
training waits for images.

reference: the papers' step, which encodes every image of it by CLIP's RN50 (random weights) in two calls, against
raykd's, which looks up what the teacher said: resnet18, 224 pixels, 8 + 8 crops.

Both in one process, in turns, medians of the repeats. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_encode import noise  # beside this file

CASES: dict[str, dict[str, Any]] = {
    "small": {"backbone": "test_resnet", "size": 32, "batches": (32, 64), "images": (1200, (40, 40)), "steps": 60},
    "photos": {"backbone": "resnet18", "size": 96, "batches": (32, 32), "images": (1000, (375, 500)), "steps": 12},
    "reference": {"backbone": "resnet18", "size": 224, "batches": (8, 8), "images": (200, (375, 500)), "steps": 4},
}
NUM_CLASSES, LABELED = 10, 40


def make_job(case: str, folder: Path) -> Any:
    """A round's training on JPEGs, and what a teacher has said of them."""
    import pyarrow as pa
    from PIL import Image

    from raykd.config import StudentConfig
    from raykd.stages.train_loop import Job
    from raykd.store.place import Place
    from raykd.store.tables import vectors

    about = CASES[case]
    count, (height, width) = about["images"]
    folder = folder / case
    (folder / "images").mkdir(parents=True)
    different = [noise(height, width, seed) for seed in range(40)]
    paths = [folder / "images" / f"{number:05d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        Image.fromarray(np.roll(different[number % 40], number // 40, axis=1)).save(path, quality=90)
    ids = [path.stem for path in paths]
    logits = np.random.default_rng(0).normal(size=(count, NUM_CLASSES)).astype(np.float32)
    table = {"sample_id": ids, "error": pa.nulls(count, pa.string()), "logits": vectors(logits)}
    (Place.of(folder / "teacher") / "part.parquet").write_table(pa.table(table))
    config = StudentConfig(
        backbone=about["backbone"], pretrained=False, image_size=about["size"], steps=about["steps"],
        batch_labeled=about["batches"][0], batch_unlabeled=about["batches"][1], checkpoints=1, checkpoint_s=None,
    )  # fmt: skip
    return Job(
        ids=pa.chunked_array([ids]), uris=pa.chunked_array([[str(path) for path in paths]]),
        labels_L=np.arange(LABELED) % NUM_CLASSES, teacher=(str(folder / "teacher"),), start=None,
        classes=tuple(f"class {number}" for number in range(NUM_CLASSES)), config=config, exact=False, key=(0, 0),
    )  # fmt: skip


class FirstStep:
    """A ticker that notes when the first step was done."""

    def __init__(self) -> None:
        self.at: float | None = None

    def add(self, count: int) -> None:
        self.at = self.at or time.perf_counter()


def measure_first(folder: Path) -> dict[str, float]:
    """Seconds to the first step of two rounds."""
    job: Any = None
    found: dict[str, float] = {}
    for number, name in enumerate(("first round", "second round")):
        started = time.perf_counter()
        from raykd.stages.train_loop import train_here
        from raykd.store.place import Place

        if job is None:
            before = time.perf_counter()
            job = make_job("photos", folder)
            started += time.perf_counter() - before
        ticker: Any = FirstStep()
        place = Place.of(folder / f"round_{number}")
        short = replace(job, config=job.config.model_copy(update={"steps": 3}), key=(0, number))
        train_here(short, place / "scratch", place / "out", ticker)
        found[name] = ticker.at - started
        print(f"{name}: {found[name]:.1f} s to the first step")
    return found


# ---------------------------------------------------------------- steps


def steps_per_s(lines: list[Any], batch: int) -> float:
    """Once warm: of the lines after the first fifth."""
    steps = np.diff([0, *(line["step"] for line in lines)])
    kept = range(len(lines) // 5, len(lines))
    return float(sum(steps[i] for i in kept) / sum(steps[i] * batch / lines[i]["images_per_s"] for i in kept))


def bare_loop(job: Any, threads: int, teacher: Callable[[Any], Any] | None = None) -> float:
    """Steps a second of plain PyTorch on one batch in memory; with a teacher, it looks at every image of each step."""
    import torch
    import torch.nn.functional as F

    from raykd.models.threads import limited_threads
    from raykd.models.training_data import AskedBatch

    student, config = job.student(), job.config
    num_l, num_u = config.batch_labeled, config.batch_unlabeled
    data = job.images(student)
    pixels = data.batch(AskedBatch(np.arange(num_l + num_u), np.arange(num_l + num_u), num_l)).items
    images, model = data.to_input(pixels), student.model.train()
    labels = torch.from_numpy(job.labels_L[np.arange(num_l) % LABELED].astype(np.int64))
    logits = torch.randn(num_l + num_u, NUM_CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)

    def kl(target: Any, given: Any) -> Any:
        soft = F.log_softmax(given / 2, -1), F.log_softmax(target / 2, -1)
        return F.kl_div(*soft, reduction="batchmean", log_target=True)

    taken = []
    with limited_threads(threads):
        for _ in range(config.steps):
            started = time.perf_counter()
            if teacher is not None:
                with torch.no_grad():
                    teacher(images[:num_l])
                    teacher(images[num_l:])
            labeled, unlabeled = model(images[:num_l]), model(images[num_l:])
            loss = 0.5 * F.cross_entropy(labeled.logits["ce_logits"], labels)
            loss = loss + 2 * kl(logits[:num_l], labeled.logits["kd_logits"])
            loss = loss + 2 * kl(logits[num_l:], unlabeled.logits["kd_logits"])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            taken.append(time.perf_counter() - started)
    return 1 / float(np.mean(taken[len(taken) // 5 :]))


def raykd_steps(job: Any, threads: int, seed: int) -> tuple[float, float]:
    """Steps a second, and the share of the time that it waits for images."""
    import torch

    from raykd.models.training import Worker, reproducible, train_student

    with reproducible(threads, torch.device("cpu")):
        student = job.student()
        with job.targets(Worker()) as targets:
            settings = replace(job.settings, key=(0, seed))
            lines = train_student(student.model, job.images(student), targets, settings, lambda *_: None)
    batch = job.config.batch_labeled + job.config.batch_unlabeled
    waited = float(np.mean([line["data_wait_share"] for line in lines[len(lines) // 5 :]]))
    return steps_per_s(lines, batch), waited


def compare(case: str, folder: Path, repeats: int, threads: int, teacher: Any = None) -> dict[str, float]:
    """Both in turns; raykd's first training, which decodes, does not count."""
    job = make_job(case, folder)
    raykd_steps(job, threads, 0)
    ours, waited, theirs = [], [], []
    for number in range(repeats):
        theirs.append(bare_loop(job, threads, teacher))
        steps, share = raykd_steps(job, threads, number + 1)
        ours.append(steps)
        waited.append(share)
    found = {"raykd": median(ours), "other": median(theirs), "waited": median(waited)}
    found["ratio"] = median(a / b for a, b in zip(ours, theirs, strict=True))
    words = "the reference's step" if teacher else "a bare loop"
    print(
        f"| {case} | {found['raykd']:.2f} | {found['other']:.2f} ({words}) | {found['ratio']:.3f} "
        f"({min(a / b for a, b in zip(ours, theirs, strict=True)):.3f} to "
        f"{max(a / b for a, b in zip(ours, theirs, strict=True)):.3f}) | {found['waited']:.1%} |",
        flush=True,
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="*", metavar="first bare reference", default=["first", "bare", "reference"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raykd-bench-") as name:
        folder = Path(name)
        if "first" in given.themes:
            results["first"] = measure_first(folder / "first")
        print(f"\nsteps a second, {given.threads} thread(s) for the model\n")
        print("| case | raykd | against | ratio (least to most) | waits for images |\n|---|---|---|---|---|")
        if "bare" in given.themes:
            for case in ("small", "photos"):
                results[case] = compare(case, folder / "bare", given.repeats, given.threads)
        if "reference" in given.themes:
            import open_clip

            tower = open_clip.create_model("RN50", pretrained=None).visual.eval()
            results["reference"] = compare("reference", folder, given.repeats, given.threads, tower)
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
