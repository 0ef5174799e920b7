"""How fast images are scored, against a bare loop: a torch DataLoader, open_clip's own transform and the model.

    python jobs/bench_encode.py [small] [photos] [memory] [--repeats 3] [--images FOLDER]

Both in processes of their own, in turns, on the same images, with the same model and one thread for it; the loop has
two loading processes, raykd's readers are Ray Data's tasks. Rates are once warm: of the images after the first tenth.

small: 40,000 JPEGs of 64 x 64. photos: 1,200 JPEGs of 4.3 megapixels, seen at 224; also with ``decode: exact``.
``--images``: those of a folder instead. memory: 10,000 and 100,000 small ones: what a process and the object store hold
at most. The images are made by a seeded generator, with a spectrum like that of photos. A table, then one JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

PROCESS_STARTED = time.perf_counter()
ROOT = Path(__file__).parents[1]
PROCESSES = 2  # that load images for the bare loop
COLD = 0.1  # share of the images that no rate counts
SIZES = {"small": (64, 64), "photos": (1792, 2400)}  # height, width
COUNTS = {"small": 40_000, "photos": 1_200}
FILES = {"small": 4_000, "photos": 120}  # different ones; then they come again under other names
BATCH = {"small": 128, "photos": 32}
TOWERS: dict[str, Any] = {  # of random weights: only their cost matters
    "small": {"image_size": 48, "layers": [1, 1, 1, 1], "width": 12, "head_width": 24},
    "photos": {"image_size": 224, "patch_size": 32, "width": 128, "layers": 2, "head_width": 32},
}


# ---------------------------------------------------------------- images and models


def noise(height: int, width: int, seed: int) -> Any:
    """uint8 [height, width, 3] with the falling spectrum of a photo, and about its bits a pixel as a JPEG."""
    import numpy as np

    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    falling = np.maximum(frequency, 1 / max(height, width)) ** -1.35
    planes = []
    for _ in range(3):
        wave = np.fft.irfft2(falling * np.exp(2j * np.pi * rng.random(falling.shape)), s=(height, width))
        planes.append(wave / wave.std())
    gray, *tints = planes
    return np.clip(np.stack([gray, *(0.85 * gray + 0.15 * tint for tint in tints)], -1) * 48 + 128, 0, 255).astype("u1")


def make_images(theme: str, folder: Path) -> None:
    import numpy as np
    from PIL import Image

    height, width = SIZES[theme]
    folder.mkdir()
    large = [noise(2048, 2048, seed) if theme == "small" else noise(height, width, seed) for seed in range(3)]
    rng = np.random.default_rng(0)
    for i in range(FILES[theme]):
        rolled = np.roll(large[i % 3], tuple(rng.integers(0, 2048, 2)), (0, 1))
        Image.fromarray(rolled[:height, :width]).save(folder / f"{i:05d}.jpg", quality=90)


def make_model(theme: str, folder: Path) -> None:
    """An open_clip model as raykd keeps a fetched teacher."""
    import open_clip
    import safetensors.torch
    import torch

    from raykd.config import ModelConfig
    from raykd.models.teacher import fetch_weights
    from raykd.store.place import Place

    text = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    model = {"embed_dim": 64, "vision_cfg": TOWERS[theme], "text_cfg": text}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as aside:
        safetensors.torch.save_file(open_clip.CLIP(**model).state_dict(), Path(aside) / "open_clip_model.safetensors")
        preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
        (Path(aside) / "open_clip_config.json").write_text(
            json.dumps({"model_cfg": model, "preprocess_cfg": preprocess})
        )
        fetch_weights(ModelConfig(model=f"local-dir:{aside}"), Place.of(folder))


def files_of(images: Path, count: int) -> list[str]:
    files = sorted(str(file) for file in images.iterdir())
    return [files[i % len(files)] for i in range(count)]


def warm_rate(seen: list[tuple[float, int]]) -> float:
    """Images a second, from (time, images done) of each batch."""
    total = seen[-1][1]
    begin, before = next((at, done) for at, done in seen if done >= COLD * total)
    return (total - before) / (seen[-1][0] - begin)


# ---------------------------------------------------------------- what runs in a process of its own


def bare(theme: str, folder: Path, images: Path, count: int) -> dict[str, float]:
    """The loop that raykd is held against."""
    import open_clip
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder / 'model'}")
    files = files_of(images, count)

    class Images(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return count

        def __getitem__(self, i: int) -> Any:
            return transform(Image.open(files[i]))

    loader = torch.utils.data.DataLoader(Images(), BATCH[theme], num_workers=PROCESSES)
    seen, done = [], 0
    with torch.inference_mode():
        for batch in loader:
            model.eval().encode_image(batch, normalize=True)
            done += len(batch)
            seen.append((time.perf_counter(), done))
    return {"rate": warm_rate(seen)}


def ours(
    theme: str, folder: Path, images: Path, count: int, decode: str = "reduced", model: bool = True
) -> dict[str, float]:
    """The same by raykd; ``model=False``: all but the model."""
    import numpy as np
    import pyarrow as pa

    from raykd.config import ModelConfig
    from raykd.models.teacher import check_teacher
    from raykd.stages import image_features
    from raykd.stages.image_features import encode_images
    from raykd.stages.progress import LocalTicker, Progress
    from raykd.stages.session import Session
    from raykd.stages.work import Work
    from raykd.store.place import Place
    from raykd.store.stage_folder import Done
    from raykd.store.tables import MANIFEST

    seen: list[tuple[float, int]] = []

    class Noting(LocalTicker):
        def add(self, rows: int) -> None:
            super().add(rows)
            seen.append((time.perf_counter(), self.so_far))

    class Watched(Progress):
        @contextmanager
        def stage(self, name: str, total: int, unit: str = "rows", **_: Any) -> Iterator[LocalTicker]:
            yield Noting()

    class NoModel:
        def features(self, pixels: Any) -> Any:
            return np.zeros((len(pixels), 64), np.float16)

    rows = pa.table(
        {
            "sample_id": [f"{i:07d}" for i in range(count)],
            "uri": files_of(images, count),
            "size_bytes": pa.nulls(count, pa.int64()),
            "mtime_ns": pa.nulls(count, pa.int64()),
            "label": pa.nulls(count, pa.string()),
            "split": ["pool"] * count,
        },
        MANIFEST,
    )
    if not model:
        image_features.ImageTower = lambda *_: NoModel()  # type: ignore[assignment, misc]
    progress = Watched("none")
    with tempfile.TemporaryDirectory(dir=folder) as place, Session(progress=progress) as session:
        session.begin()
        check_teacher(ModelConfig(model=f"local-dir:{folder / 'model'}"))  # imports open_clip while Ray starts
        started = time.perf_counter()
        work = Work(place=Place.of(place), progress=progress, session=session)
        config = ModelConfig(model="local-dir:", batch_size=BATCH[theme])
        with watched_memory() as memory:
            encode_images(
                work, [rows], Done(Place.of(folder / "model"), "model"), config, at=work.place / "encode", shared=False,
                decode=decode, max_bad_share=0, quarantine=work.place / "quarantine.parquet",
            )  # fmt: skip
    first = seen[0][0]
    return {"rate": warm_rate(seen), "start": first - started, "process": first - PROCESS_STARTED, **memory}


def model_alone(theme: str, folder: Path) -> dict[str, float]:
    import numpy as np

    from raykd.models.teacher import ImageTower
    from raykd.store.place import Place

    tower = ImageTower(Place.of(folder / "model"), "fp32", "cpu", 1)
    side = TOWERS[theme]["image_size"]
    pixels = np.zeros((BATCH[theme], side, side, 3), np.uint8)
    tower.features(pixels)
    started, batches = time.perf_counter(), 0
    while time.perf_counter() - started < 5:
        tower.features(pixels)
        batches += 1
    return {"rate": batches * BATCH[theme] / (time.perf_counter() - started)}


@contextmanager
def watched_memory() -> Iterator[dict[str, float]]:
    """Peaks while the block runs: MiB of the largest reading process, of this one, of the object store; spilled."""
    import threading

    import psutil
    import ray
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    peaks = {"reader_mib": 0.0, "driver_mib": 0.0, "store_mib": 0.0, "spilled_mib": 0.0}
    over = threading.Event()

    def own_mib(process: psutil.Process) -> float:
        info = process.memory_info()
        return (info.rss - info.shared) / 2**20

    def watch() -> None:
        me = psutil.Process()
        while not over.wait(0.5):
            found = {"driver_mib": own_mib(me)}
            for process in me.children(recursive=True):
                try:
                    if "ray::" in process.name() or any("ray::" in word for word in process.cmdline()[:1]):
                        found["reader_mib"] = max(found.get("reader_mib", 0.0), own_mib(process))
                except psutil.Error:
                    continue
            if ray.is_initialized():
                store = get_memory_info_reply(get_state_from_address(ray.get_runtime_context().gcs_address)).store_stats
                found["store_mib"] = store.object_store_bytes_used / 2**20
                found["spilled_mib"] = store.spilled_bytes_total / 2**20
            for name, value in found.items():
                peaks[name] = max(peaks[name], value)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peaks
    finally:
        over.set()
        thread.join()


# ---------------------------------------------------------------- the comparison


def in_process(what: str, theme: str, folder: Path, images: Path, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", what, theme, str(folder), str(images), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} {theme}: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def child(what: str, theme: str, folder: str, images: str, count: str) -> None:
    place, where, number = Path(folder), Path(images), int(count)
    if what == "bare":
        found = bare(theme, place, where, number)
    elif what == "model":
        found = model_alone(theme, place)
    else:
        found = ours(theme, place, where, number, "exact" if what == "exact" else "reduced", model=what != "decode")
    print(json.dumps(found))


def compare(theme: str, folder: Path, images: Path | None, repeats: int) -> dict[str, Any]:
    from raykd.models.threads import num_cores

    where = images or folder / "images"
    if images is None:
        make_images(theme, where)
    make_model(theme, folder / "model")
    count = COUNTS[theme] if images is None else max(COUNTS["photos"], len(list(where.iterdir())))
    kinds = ["bare", "ours", *(["exact"] if theme == "photos" else []), "decode", "model"]
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(repeats):
        for kind in kinds:
            runs[kind].append(in_process(kind, theme, folder, where, count))
    rates = {kind: median(run["rate"] for run in found) for kind, found in runs.items()}
    print(f"\n{theme}: {count:,} images, medians of {repeats}\n\n| | images/s | against the bare loop |\n|---|---|---|")
    names = {
        "bare": f"bare loop, {PROCESSES} loading processes",
        "ours": "raykd",
        "exact": "raykd, decode: exact",
        "decode": "raykd without the model",
        "model": "the model alone, one thread",
    }
    for kind in kinds:
        print(f"| {names[kind]} | {rates[kind]:,.0f} | {rates[kind] / rates['bare']:.2f} |")
    start, process = (median(run[name] for run in runs["ours"]) for name in ("start", "process"))
    slower, cores = min(rates["decode"], rates["model"]), num_cores()
    shared = min(slower, cores / (cores / rates["decode"] + 1 / rates["model"]))
    found = {
        "ratio": rates["ours"] / rates["bare"],
        "of_slower": rates["ours"] / slower,
        "of_both_on_these_cores": rates["ours"] / shared,
        "start_s": start,
        "process_s": process,
    }
    print(
        f"\n{found['of_slower']:.2f} of the slower of decoding and model alone, {found['of_both_on_these_cores']:.2f} "
        f"of what both together can do on {cores} cores. First batch {start:.1f} s after the stage begins, "
        f"{process:.1f} s after the process, imports included"
    )
    return {"rates": rates, **found}


def memory(folder: Path) -> dict[str, Any]:
    make_images("small", folder / "images")
    make_model("small", folder / "model")
    found: dict[str, Any] = {}
    print(
        "\n| images | reading process | this process | object store | spilled | images/s |\n|---|---|---|---|---|---|"
    )
    for count in (10_000, 100_000):
        run = found[str(count)] = in_process("ours", "small", folder, folder / "images", count)
        sizes = " | ".join(f"{run[name]:,.0f} MiB" for name in ("reader_mib", "driver_mib", "store_mib", "spilled_mib"))
        print(f"| {count:,} | {sizes} | {run['rate']:,.0f} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("themes", nargs="*", metavar="small photos memory", default=["small", "photos", "memory"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=Path, help="a folder of JPEGs to take instead, for photos")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for theme in given.themes:
        with tempfile.TemporaryDirectory(prefix="raykd-bench-") as folder:
            if theme == "memory":
                results[theme] = memory(Path(folder))
            else:
                results[theme] = compare(
                    theme, Path(folder), given.images if theme == "photos" else None, given.repeats
                )
    print("\n" + json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
