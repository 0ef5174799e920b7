"""How fast a training's steps are: against a bare loop, and against a step that runs the teacher on every image.

    python jobs/bench_train.py [first] [bare] [reference] [--repeats 3] [--threads 1]
                              [--processes 1]

first: seconds until the first step is done, of the first (imports included) and of the second round of one process.

bare: steps a second once warm, against plain PyTorch with the same network, AdamW and loss on one batch that lies in
memory, ready: no image is read, cropped or normalised. small: the demo's student (test_resnet, 32 pixels, 32 + 64
images); photos: resnet18 at 96 pixels, 32 + 32 crops of 1,000 JPEGs of 500 x 375. And the share of time that raykd's
training waits for images.

reference: the papers' step, which encodes every image of it by CLIP's RN50 (random weights) in two calls, against
raykd's, which looks up what the teacher said: two of their students, 224 pixels, 8 + 8 crops.

Both in one process, in turns, --repeats times both ways round. What is compared are single steps, once warm: their
median, and the fastest tenth, as other users of a machine make steps slower and never faster. raykd's batches are made
by a thread (--processes 0), or by a process beside the model, as the demo has it. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from bench_encode import noise  # beside this file

PHOTOS = (375, 500)  # as ImageNet's are
CASES: dict[str, dict[str, Any]] = {
    "small": {"backbone": "test_resnet", "size": 32, "batches": (32, 64), "images": (1200, (40, 40)), "steps": 30},
    "photos": {"backbone": "resnet18", "size": 96, "batches": (32, 32), "images": (1000, PHOTOS), "steps": 6},
    "resnet18": {"backbone": "resnet18", "size": 224, "batches": (8, 8), "images": (200, PHOTOS), "steps": 3},
    "mobilenetv2": {"backbone": "mobilenetv2_100", "size": 224, "batches": (8, 8), "images": (200, PHOTOS), "steps": 3},
}
NUM_CLASSES, LABELED = 10, 40


def make_job(case: str, folder: Path, processes: int) -> Any:
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
        loader_processes=processes,
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


def measure_first(folder: Path, processes: int) -> dict[str, dict[str, float]]:
    """Seconds to the end of the first step, of two rounds of each case; and what a step takes once warm."""
    before = time.perf_counter()
    from raykd.stages.train_loop import train_here
    from raykd.store.place import Place

    imports = time.perf_counter() - before
    print("| case | first round | second round | of which one step, warm |\n|---|---|---|---|")
    found: dict[str, dict[str, float]] = {}
    for case in ("small", "photos"):
        job = make_job(case, folder, processes)
        seconds = {}
        for number in range(2):
            ticker: Any = FirstStep()
            place = Place.of(folder / f"{case}_{number}")
            started = time.perf_counter()
            train_here(replace(job, key=(0, number)), place / "scratch", place / "out", ticker)
            seconds["first round" if number == 0 else "second round"] = ticker.at - started + imports
            imports = 0.0  # of the first round of the process alone
        seconds["step"] = float(np.median(raykd_steps(job, 1, 2).seconds))
        found[case] = seconds
        print("| " + " | ".join([case, *(f"{value:.2f} s" for value in seconds.values())]) + " |", flush=True)
    return found


# ---------------------------------------------------------------- steps


class Steps(NamedTuple):
    """Seconds of single steps, once warm: those after the first fifth. And the share of the time of waiting."""

    seconds: np.ndarray
    waited: float = 0.0


def warm(ends: Sequence[float]) -> np.ndarray:
    """Seconds between ends of steps."""
    return np.diff(ends[len(ends) // 5 :])


def bare_loop(job: Any, threads: int, teacher: Callable[[Any], Any] | None = None) -> Steps:
    """Plain PyTorch on one batch in memory; with a teacher, it looks at every image of each step."""
    import torch
    import torch.nn.functional as F

    from raykd.models.threads import limited_threads
    from raykd.models.training_data import AskedBatch

    student, config = job.student(), job.config
    num_l, num_u = config.batch_labeled, config.batch_unlabeled
    data = job.data(student)
    pixels = data.batch(AskedBatch(np.arange(num_l + num_u), np.arange(num_l + num_u), num_l)).items
    images, model = data.to_input(pixels), student.model.train()
    labels = torch.from_numpy(job.labels_L[np.arange(num_l) % LABELED].astype(np.int64))
    logits = torch.randn(num_l + num_u, NUM_CLASSES)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)

    def kl(target: Any, given: Any) -> Any:
        soft = F.log_softmax(given / 2, -1), F.log_softmax(target / 2, -1)
        return F.kl_div(*soft, reduction="batchmean", log_target=True)

    ends = []
    with limited_threads(threads):
        for _ in range(config.steps):
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
            ends.append(time.perf_counter())
    return Steps(warm(ends))


def raykd_steps(job: Any, threads: int, seed: int) -> Steps:
    """raykd's, each with a line, as a training of a hundred steps has it."""
    import torch

    from raykd.models.training import Worker, reproducible, train_student

    ends = []
    with reproducible(threads, torch.device("cpu")):
        student = job.student()
        with job.targets(Worker()) as targets:
            settings = replace(job.settings, key=(0, seed))
            note = lambda *_: ends.append(time.perf_counter())  # noqa: E731
            lines = train_student(student.model, job.data(student), targets, settings, note)
    return Steps(warm(ends), float(np.mean([line["data_wait_share"] for line in lines[len(lines) // 5 :]])))


def compare(job: Any, case: str, repeats: int, threads: int, teacher: Any = None) -> dict[str, float]:
    """Both in turns; raykd's first training, which decodes, does not count."""
    raykd_steps(job, threads, 0)
    ours, theirs = [], []
    for number in range(repeats):
        theirs.append(bare_loop(job, threads, teacher))
        ours += [raykd_steps(job, threads, 2 * number + i) for i in (1, 2)]
        theirs.append(bare_loop(job, threads, teacher))
    seconds, other = (np.concatenate([one.seconds for one in of]) for of in (ours, theirs))
    found: dict[str, Any] = {}
    for name, quantile in (("median", 0.5), ("fastest tenth", 0.1)):
        a, b = np.quantile(seconds, quantile), np.quantile(other, quantile)
        found |= {f"raykd, {name}": 1 / a, f"other, {name}": 1 / b, f"ratio, {name}": b / a}
    found["waited"] = median(one.waited for one in ours)
    shown = [case, "the reference's step" if teacher else "a bare loop", *(f"{value:.3g}" for value in found.values())]
    print("| " + " | ".join([*shown[:-1], f"{found['waited']:.1%}"]) + " |", flush=True)
    return {name: float(value) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="*", metavar="first bare reference", default=["first", "bare", "reference"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of the model")
    parser.add_argument("--processes", type=int, default=1, help="that make batches; 0: a thread")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="raykd-bench-") as name:
        folder = Path(name)
        if "first" in given.themes:
            results["first"] = measure_first(folder / "first", given.processes)
        print(f"\nsteps a second, {given.threads} thread(s) for the model\n")
        print("| case | against | raykd, median | other | ratio | raykd, fastest tenth | other | ratio "
              "| waits for images |\n" + "|---" * 9 + "|")  # fmt: skip
        if "bare" in given.themes:
            for case in ("small", "photos"):
                job = make_job(case, folder / "bare", given.processes)
                results[case] = compare(job, case, given.repeats, given.threads)
        if "reference" in given.themes:
            import open_clip

            tower = open_clip.create_model("RN50", pretrained=None).visual.eval()
            for case in ("resnet18", "mobilenetv2"):
                job = make_job(case, folder / "reference", given.processes)
                results[case] = compare(job, case, given.repeats, given.threads, tower)
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    main()
