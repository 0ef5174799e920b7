"""How fast selection is, against what one would write otherwise: a table, and one JSON line last.

    python jobs/bench_selection.py                            # the sizes of the README, about five minutes
    python jobs/bench_selection.py hard real                  # some of the cases
    python jobs/bench_selection.py scaling --plot scaling.png
    python jobs/bench_selection.py imagenet --baseline

Cases: ``tiny`` (a second: is all of this still right?), ``small`` (200,000 x 100), ``large`` (500,000 x 1,000),
``imagenet`` (1,281,167 x 1,000, eight Ray actors against eight shards in process), ``real`` (a matrix of your own:
--matrix FILE.npz with ``probs``), ``hard`` (data without structure), ``badge``, ``strategies`` (all of them, 50,000 x
100), ``memory`` (a pool several times the memory that is allowed), ``scaling``.

Everything is measured in one run, on the same data and threads: *pass* is the time to read the matrix once (``sum``),
the running minimum is FAISS for the labeled rows and a BLAS product a pick, in float32; *reference* is the algorithm of
the paper's code, all distances for every pick. Selection includes the checks of its input. OMP_NUM_THREADS sets the
threads of all of them.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from raykd.algo.selection.distances import residuals
from raykd.algo.selection.kcenter import Picked
from raykd.algo.selection.reference import running_minimum
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards, Shard
from raykd.algo.selection.strategies import STRATEGIES, pick

BLOCK_ROWS = 4096
Method = Callable[[np.ndarray, np.ndarray, int], tuple[np.ndarray, np.ndarray]]  # rows, labeled, budget -> picks, radii
RESULTS: list[dict[str, Any]] = []


# ---------------------------------------------------------------- data


def peaked_mixture(num_rows: int, num_classes: int, seed: int, out: np.ndarray | None = None) -> np.ndarray:
    """Probabilities as a student's: float32 [N, C], the same rows for a seed whatever N is.

    Logits are normal noise, plus about 10 (deviation 3) on a class, plus about 4 (deviation 2) on the five classes that
    this one is confused with; classes are as frequent as 1 / sqrt(rank). Half of the rows are surer than 0.9, a tenth
    less than 0.3 (at 1,000 classes).
    """
    world = np.random.default_rng(num_classes)
    confused_with = world.integers(0, num_classes, (num_classes, 5))
    frequencies = 1 / np.sqrt(np.arange(1, num_classes + 1))
    out = np.empty((num_rows, num_classes), np.float32) if out is None else out

    def fill(start: int) -> None:
        rng = np.random.default_rng([seed, start])
        rows = np.arange(min(BLOCK_ROWS, num_rows - start))
        kinds = rng.choice(num_classes, BLOCK_ROWS, p=frequencies / frequencies.sum())[: len(rows)]
        sure, unsure = rng.normal(10, 3, BLOCK_ROWS), rng.normal(4, 2, (BLOCK_ROWS, 5))
        logits = rng.standard_normal((len(rows), num_classes), np.float32)
        logits[rows[:, None], confused_with[kinds]] += unsure[: len(rows)].astype(np.float32)
        logits[rows, kinds] += sure[: len(rows)].astype(np.float32)
        np.exp(logits - logits.max(axis=1, keepdims=True), out=logits)
        out[start : start + len(rows)] = logits / logits.sum(axis=1, keepdims=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, num_rows, BLOCK_ROWS)))
    return out


def numbered(num_rows: int, prefix: str = "") -> np.ndarray:
    return np.array([f"{prefix}{number:08d}" for number in range(num_rows)], object)


def hard_cases(num_rows: int, num_classes: int) -> Iterator[tuple[str, np.ndarray]]:
    """Data that gives bounds little to hold on to."""
    rng = np.random.default_rng(0)

    def normed(rows: np.ndarray) -> np.ndarray:
        return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)

    shape = (num_rows, num_classes)
    yield "uniform on the simplex", normed(rng.standard_exponential(shape))
    yield "nearly uniform rows", normed(1 + 0.1 * rng.random(shape))
    one_class = normed(rng.standard_exponential(shape)) / 2
    one_class[:, 0] += 0.5
    yield "all of one class", one_class
    yield "few values in a row", normed(rng.random(shape) * (rng.random(shape) < 5 / num_classes) + 1e-9)
    corners = np.full(shape, 1e-4) * rng.random(shape)
    corners[np.arange(num_rows), rng.integers(0, num_classes, num_rows)] = 1
    yield "corners, all far apart", normed(corners)
    share = rng.random((num_rows, 1))
    ends = np.zeros((2, num_classes))
    ends[0, 0] = ends[1, 1] = 1
    yield "on a line", normed(share * ends[0] + (1 - share) * ends[1])
    yield "100 different rows", normed(rng.standard_exponential((100, num_classes)))[rng.integers(0, 100, num_rows)]


# ---------------------------------------------------------------- what it is measured against


def float32_running_minimum(x_NC: np.ndarray, base_LC: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """What a good engineer would write: the labeled rows by FAISS, then one product and one minimum a pick."""
    import faiss

    x_sq_N = np.empty(len(x_NC), np.float32)
    for start in range(0, len(x_NC), 2**14):
        block = x_NC[start : start + 2**14]
        x_sq_N[start : start + 2**14] = np.einsum("nc,nc->n", block, block)
    sq_N = np.concatenate(
        [faiss.knn(x_NC[start : start + 2**14], base_LC, 1)[0][:, 0] for start in range(0, len(x_NC), 2**14)]
    )
    rows, distances = np.empty(budget, np.int64), np.empty(budget)
    for number in range(budget):
        row = int(sq_N.argmax())
        rows[number], distances[number] = row, np.sqrt(max(sq_N[row], 0))
        to_pick_N = x_NC @ x_NC[row]
        to_pick_N *= -2
        to_pick_N += x_sq_N
        to_pick_N += x_sq_N[row]
        np.minimum(sq_N, to_pick_N, out=sq_N)
        sq_N[row] = -1
    return rows, distances


def paper_code(x_NC: np.ndarray, base_LC: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """As the paper's code does it: for every pick, the distances of all that are left to all centers."""
    import torch

    x, centers = torch.from_numpy(x_NC), torch.from_numpy(base_LC)
    left = list(range(len(x)))
    rows, distances = np.empty(budget, np.int64), np.empty(budget)
    for number in range(budget):
        nearest = [torch.cdist(x[left[start : start + 1000]], centers).min(1)[0] for start in range(0, len(left), 1000)]
        sq = torch.cat(nearest).numpy()
        rows[number], distances[number] = left[int(sq.argmax())], sq.max()
        centers = torch.cat([centers, x[rows[number]][None]])
        left.remove(int(rows[number]))
    return rows, distances


def plain_running_minimum(x_NC: np.ndarray, base_LC: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """The reference that the engine is held to."""
    ids, distances = zip(*running_minimum(numbered(len(x_NC)).tolist(), x_NC, base_LC, budget), strict=True)
    return np.array(ids).astype(np.int64), np.array(distances)


def activeml(x_NC: np.ndarray, base_LC: np.ndarray, budget: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-activeml's CoreSet."""
    from skactiveml.pool import CoreSet

    labels = np.concatenate([np.zeros(len(base_LC)), np.full(len(x_NC), np.nan)])
    found = CoreSet(random_state=0).query(np.concatenate([base_LC, x_NC]), labels, batch_size=budget)
    return np.asarray(found) - len(base_LC), np.full(budget, np.nan)


def peers() -> dict[str, Method]:
    """What can be run at small sizes only."""
    found: dict[str, Method] = {"running minimum": float32_running_minimum, "reference": paper_code}
    if importlib.util.find_spec("skactiveml"):
        return found | {"scikit-activeml": activeml}
    print("scikit-activeml is not installed, so not compared (pip install scikit-activeml)")
    return found


# ---------------------------------------------------------------- measuring


def memory_used() -> int:
    """Bytes of this process and all that it started; pages that they share are counted once (PSS)."""
    parents = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    ours, found = {os.getpid()}, 0
    while len(ours) > found:
        found = len(ours)
        ours |= {child for child, parent in parents.items() if parent in ours}
    total = 0
    for process in ours:
        with suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


@contextmanager
def peak_memory(patience: float = 0) -> Iterator[list[int]]:
    """Bytes used at most, less those before.

    A look at gigabytes takes long and stops who uses them; ``patience`` is how many times as long the next one waits.
    """
    before, done, peak = memory_used(), threading.Event(), [0]

    def watch() -> None:
        pause = 0.02
        while not done.wait(pause):
            start = time.perf_counter()
            peak[0] = max(peak[0], memory_used() - before)
            pause = max(0.02, patience * (time.perf_counter() - start))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()


def timed(work: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
    """Seconds of the quickest of some repeats, as others disturb only the slower ones; and the last answer.

    No more repeats once a minute is spent; no garbage collection, as with timeit.
    """
    seconds: list[float] = []
    answer = None
    gc.collect()
    gc.disable()
    while len(seconds) < repeats and sum(seconds) < 60:
        start = time.perf_counter()
        answer = work()
        seconds.append(time.perf_counter() - start)
    gc.enable()
    return min(seconds), answer


def report(case: str, method: str, **found: Any) -> None:
    found = {name: value for name, value in found.items() if value is not None}
    RESULTS.append({"case": case, "method": method, **found})
    shown = "  ".join(
        f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value:,}" for name, value in found.items()
    )
    print(f"{case:32}  {method:24}  {shown}", flush=True)


def compare(
    case: str,
    x_NC: np.ndarray,
    base_LC: np.ndarray,
    budget: int,
    num_shards: int = 1,
    others: Mapping[str, Method] | None = None,
    repeats: int = 5,
) -> dict[str, float]:
    """The engine and others on the same data; seconds by method."""
    others = {"running minimum": float32_running_minimum} if others is None else others
    one_pass, _ = timed(lambda: float(x_NC.sum()), 5)
    bounds = np.linspace(0, len(x_NC), num_shards + 1).astype(int)
    ids = numbered(len(x_NC))
    parts = [slice(first, last) for first, last in itertools.pairwise(bounds)]
    shards = LocalShards([Shard(Rows(ids[part], x_NC[part])) for part in parts])
    labeled = Rows(numbered(len(base_LC), "labeled-"), base_LC)

    def engine() -> Picked:
        return pick("pcoreset", shards, labeled, budget, seed=0)

    engine()  # warm-up
    seconds, picks = timed(engine, repeats)
    with peak_memory() as peak:
        engine()
    times = {"raykd": seconds}
    mine = np.array(picks.ids).astype(np.int64)
    for name, method in others.items():
        times[name], (rows, distances) = timed(partial(method, x_NC, base_LC, budget), repeats)
        report(
            case,
            name,
            seconds=times[name],
            passes=times[name] / one_pass,
            same_picks=len(set(rows.tolist()) & set(mine.tolist())),
            radius=None if np.isnan(distances[-1]) else float(distances[-1]),
        )
    report(
        case,
        f"raykd, {num_shards} shard{'s'[: num_shards > 1]}",
        seconds=seconds,
        passes=seconds / one_pass,
        **{f"times_faster_than_{name.replace(' ', '_')}": times[name] / seconds for name in others},
        rounds=picks.rounds,
        refreshed=picks.refreshed,
        radius=float(picks.distances[-1]),
        extra_MiB=peak[0] / 2**20,
    )
    return times


# ---------------------------------------------------------------- cases


def bench_tiny(args: argparse.Namespace) -> None:
    """Both ways to pick, and the plain algorithm in float64, whose picks and radius they must have to the last bit."""
    for num_rows, budget in ((2_000, 40), (5_000, 200)):
        data = peaked_mixture(num_rows, 20, 0), peaked_mixture(50, 20, 1)
        compare(f"{num_rows:,} x 20, L 50, B {budget}", *data, budget, 2, {"plain": plain_running_minimum}, repeats=1)


def bench_small(args: argparse.Namespace) -> None:
    compare("200,000 x 100, L 1,000, B 1,000", peaked_mixture(200_000, 100, 0), peaked_mixture(1_000, 100, 1), 1_000)
    few = peaked_mixture(5_000, 100, 0), peaked_mixture(100, 100, 1)
    compare("5,000 x 100, L 100, B 50", *few, 50, others=peers(), repeats=100)


def bench_large(args: argparse.Namespace) -> None:
    x, base = peaked_mixture(500_000, 1_000, 0), peaked_mixture(8_000, 1_000, 1)
    compare("500,000 x 1,000, L 8,000, B 1,000", x, base, 1_000, repeats=3)


def bench_real(args: argparse.Namespace) -> None:
    if args.matrix is None:
        print("real: give --matrix FILE.npz (with `probs`, float [N, C])")
        return
    probs = np.load(args.matrix)["probs"].astype(np.float32)
    probs /= probs.sum(axis=1, keepdims=True)
    name = f"{len(probs) - 200:,} x {probs.shape[1]:,}, L 200, B 200, real"
    compare(name, probs[200:].copy(), probs[:200].copy(), 200, others=peers())


def bench_hard(args: argparse.Namespace) -> None:
    for num_rows, num_classes, num_labeled, budget in ((100_000, 100, 1_000, 1_000), (50_000, 1_000, 2_000, 300)):
        for name, x in hard_cases(num_rows + num_labeled, num_classes):
            case = f"{name}, C {num_classes:,}"
            compare(case, x[num_labeled:].copy(), x[:num_labeled].copy(), budget, repeats=2)


def bench_imagenet(args: argparse.Namespace) -> None:
    """Eight Ray actors against eight shards in this process, and the running minimum if there is time for it."""
    from raykd.stages.session import ray_session
    from raykd.stages.shard_actors import open_shards
    from raykd.stages.shard_rows import PoolSource

    num_rows, num_classes, num_shards = 1_281_167, 1_000, 8
    case = f"{num_rows:,} x {num_classes:,}, L 8,000, B 1,000"
    base = peaked_mixture(8_000, num_classes, 1)
    labeled = Rows(numbered(len(base), "labeled-"), base)
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "pool.parquet"
        x = peaked_mixture(num_rows, num_classes, 0)
        others: dict[str, Method] = {"running minimum": float32_running_minimum} if args.baseline else {}
        times = compare(case, x, base, 1_000, num_shards, others, repeats=3)
        write_parquet(table, x)
        del x
        gc.collect()
        with ray_session(), ExitStack() as stack:
            with peak_memory(patience=10) as peak:
                start = time.perf_counter()
                shards = stack.enter_context(open_shards(PoolSource(uris=(str(table),)), num_shards))
                started = time.perf_counter() - start
                pick("pcoreset", shards, labeled, 1_000, seed=0)  # warm-up
            seconds, picks = timed(lambda: pick("pcoreset", shards, labeled, 1_000, seed=0), 3)
        report(
            case,
            f"raykd, {num_shards} Ray actors",
            seconds=seconds,
            seconds_of_local_shards=seconds / times["raykd"],
            seconds_to_read=started,
            rounds=picks.rounds,
            refreshed=picks.refreshed,
            radius=float(picks.distances[-1]),
            peak_GiB=peak[0] / 2**30,
        )


def write_parquet(path: Path, x_NC: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from raykd.store.tables import vectors

    ids = numbered(len(x_NC))
    writer = None
    for start in range(0, len(x_NC), 2**14):
        part = slice(start, start + 2**14)
        table = pa.table({"sample_id": pa.array(ids[part], pa.string()), "probs": vectors(x_NC[part])})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def bench_badge(args: argparse.Namespace) -> None:
    """D² sampling over gradient embeddings: against one product a draw, and at a size where that takes too long."""
    badge_at(100_000, 100, 128, 1_000, np.float32)
    badge_at(1_281_167, 1_000, 512, 1_000, np.float16)


def badge_at(num_rows: int, num_classes: int, width: int, budget: int, kind: type) -> None:
    rng, probs = np.random.default_rng(0), peaked_mixture(num_rows, num_classes, 0)
    features = rng.standard_normal((num_rows, width), np.float32)
    features += 2 * rng.standard_normal((num_classes, width), np.float32)[probs.argmax(axis=1)]
    probs, features = probs.astype(kind), features.astype(kind)
    pool = Rows(numbered(num_rows), probs, features)
    one_pass, _ = timed(lambda: (probs.sum(dtype=np.float32), features.sum(dtype=np.float32)), 3)
    found = (
        {"seconds_of_one_product_a_draw": timed(lambda: product_a_draw(probs, features, budget))[0]}
        if kind is np.float32
        else {}
    )
    shards = LocalShards([Shard(pool)])
    seconds, picks = timed(lambda: pick("badge", shards, None, budget, seed=0))
    report(
        f"badge, {num_rows:,} x ({num_classes:,} + {width}), B {budget:,}",
        f"raykd, {kind.__name__}",
        seconds=seconds,
        passes=seconds / one_pass,
        rounds=picks.rounds,
        refreshed=picks.refreshed,
        **found,
    )


def product_a_draw(probs_NC: np.ndarray, z: np.ndarray, budget: int) -> None:
    """k-means++ as one would write it: after every draw all D² by factored float32 products."""
    rng, a = np.random.default_rng(0), residuals(probs_NC, np.float32)
    lengths = np.einsum("nc,nc->n", a, a) * np.einsum("nd,nd->n", z, z)
    sq, row = np.full(len(z), np.inf), int(rng.integers(len(z)))
    for _ in range(budget - 1):
        sq = np.minimum(sq, np.maximum(lengths + lengths[row] - 2 * (a @ a[row]) * (z @ z[row]), 0))
        row = int(rng.choice(len(z), p=sq / sq.sum()))


def bench_strategies(args: argparse.Namespace) -> None:
    """What every strategy takes, side by side."""
    strategies_at(50_000, 100, 128, 500, 200)


def strategies_at(num_rows: int, num_classes: int, width: int, num_labeled: int, budget: int) -> None:
    rng, probs = np.random.default_rng(0), peaked_mixture(num_labeled + num_rows, num_classes, 0)
    features = rng.standard_normal((len(probs), width), np.float32)
    features += 2 * rng.standard_normal((num_classes, width), np.float32)[probs.argmax(axis=1)]
    rows = Rows(numbered(len(probs)), probs, features, rng.integers(0, num_classes, len(probs)), features)
    labeled, pool = rows.take(np.arange(num_labeled)), rows.take(np.arange(num_labeled, len(probs)))
    one_pass, _ = timed(lambda: (probs.sum(dtype=np.float32), features.sum(dtype=np.float32)), 3)
    shards = LocalShards.split(pool, 4)
    for name in sorted(STRATEGIES):
        seconds, picks = timed(partial(pick, name, shards, labeled, budget, seed=0))
        report(
            f"{num_rows:,} x ({num_classes:,} + {width}), L {num_labeled:,}, B {budget:,}",
            name,
            seconds=seconds,
            passes=seconds / one_pass,
            rounds=picks.rounds,
            refreshed=picks.refreshed,
        )


def bench_memory(args: argparse.Namespace) -> None:
    """A shard with four times the vectors that it may have in memory; the limit is the kernel's (RLIMIT_DATA)."""
    num_rows, num_classes, budget = 1_000_000, 1_000, 500
    with tempfile.TemporaryDirectory() as folder:
        write_parquet(Path(folder) / "pool.parquet", peaked_mixture(num_rows, num_classes, 0))
        gc.collect()
        script = f"""
import resource, time
limit = 3 * 2**29
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
from jobs.bench_selection import numbered, peaked_mixture
from raykd.algo.selection.rows import Rows
from raykd.algo.selection.shard import LocalShards, Shard
from raykd.algo.selection.distances import residuals
from raykd.algo.selection.strategies import pick
from raykd.stages.shard_rows import PoolSource, open_pool, plan, read_slices
source = PoolSource(uris=({folder + "/pool.parquet"!r},), memory_gib=0.25)
start = time.perf_counter()
pool, _ = read_slices(source, plan(open_pool(source), 1)[0])
read_s = time.perf_counter() - start
shards = LocalShards([Shard(pool)])
labeled = Rows(numbered(4_000, "labeled-"), peaked_mixture(4_000, {num_classes}, 1))
start = time.perf_counter()
picks = pick("pcoreset", shards, labeled, {budget}, seed=0)
seconds = time.perf_counter() - start
used = {{line.split(":")[0]: int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("Rss")}}
data = [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")][0]
print(seconds, read_s, used["RssAnon"] / 2**20, data / 2**20, picks.rounds, picks.refreshed)
"""
        command = [sys.executable, "-c", script]
        # what is only reserved counts too, so let allocators reserve little
        frugal = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "2"}
        done = subprocess.run(
            command, cwd=Path(__file__).parent.parent, env=frugal, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(done.stderr)
        seconds, read_s, anonymous, data, rounds, refreshed = map(float, done.stdout.split())
    report(
        f"{num_rows:,} x {num_classes:,} in 1.5 GiB, B {budget}",
        "raykd, mapped",
        seconds=seconds,
        seconds_to_read=read_s,
        matrix_GiB=num_rows * num_classes * 4 / 2**30,
        in_memory_GiB=anonymous,
        allocated_GiB=data,
        rounds=int(rounds),
        refreshed=int(refreshed),
    )


def bench_scaling(args: argparse.Namespace) -> None:
    """Seconds against N, C, B and K, the others at 100,000 x 100, L 1,000, B 1,000, one shard; and a picture of it."""
    standard = {"N": 100_000, "C": 100, "B": 1_000, "K": 1}
    axes = {
        "N": [10_000, 30_000, 100_000, 300_000, 1_000_000],
        "C": [10, 30, 100, 300, 1_000],
        "B": [30, 100, 300, 1_000, 3_000],
        "K": [1, 2, 4, 8, 16],
    }
    curves: dict[str, list[tuple[int, dict[str, float]]]] = {}
    for axis, values in axes.items():
        curves[axis] = []
        for value in values:
            size = standard | {axis: value}
            x, base = peaked_mixture(size["N"], size["C"], 0), peaked_mixture(1_000, size["C"], 1)
            case = "scaling, " + ", ".join(f"{name} {number:,}" for name, number in size.items())
            curves[axis].append((value, compare(case, x, base, size["B"], size["K"], repeats=2)))
    if args.plot is not None:
        plot_scaling(curves, args.plot)
        print(f"drawn: {args.plot}")


def plot_scaling(curves: dict[str, list[tuple[int, dict[str, float]]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = {"N": "pool rows N", "C": "classes C", "B": "budget B", "K": "shards K (in one process)"}
    looks = {"running minimum": ("#9aa3ad", "o"), "raykd": ("#d1495b", "o")}
    figure, panels = plt.subplots(1, 4, figsize=(13, 3.4), sharey=True, constrained_layout=True)
    for panel, (axis, points) in zip(panels, curves.items(), strict=True):
        for name, (color, marker) in looks.items():
            values = [value for value, _ in points]
            seconds = [times[name] for _, times in points]
            panel.plot(values, seconds, color=color, marker=marker, markersize=4, linewidth=1.8, label=name)
        faster = points[-1][1]["running minimum"] / points[-1][1]["raykd"]
        panel.annotate(
            f"{faster:.0f}x",
            (points[-1][0], points[-1][1]["raykd"]),
            textcoords="offset points",
            xytext=(-4, 8),
            ha="right",
            color=looks["raykd"][0],
            fontsize=9,
        )
        panel.set(xscale="log", yscale="log", xlabel=names[axis])
        panel.grid(True, which="major", color="#e6e8eb", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xscale("log", base=2)
    panels[0].set_ylabel("seconds to select")
    panels[0].legend(frameon=False, loc="upper left")
    figure.suptitle(
        "Exact k-center: 100,000 x 100 rows, 1,000 labeled, 1,000 picks, unless the axis says otherwise", fontsize=10
    )
    figure.savefig(path, dpi=160)
    plt.close(figure)


CASES: dict[str, Callable[[argparse.Namespace], None]] = {
    "tiny": bench_tiny,
    "small": bench_small,
    "large": bench_large,
    "real": bench_real,
    "hard": bench_hard,
    "badge": bench_badge,
    "strategies": bench_strategies,
    "memory": bench_memory,
    "imagenet": bench_imagenet,
    "scaling": bench_scaling,
}
STANDARD = ["small", "large", "real"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=STANDARD, metavar="case", help=f"of: {', '.join(CASES)}")
    parser.add_argument("--matrix", type=Path, help="real: a .npz file with `probs`")
    parser.add_argument("--baseline", action="store_true", help="imagenet: time the running minimum too (ten minutes)")
    parser.add_argument("--plot", type=Path, help="scaling: draw it to this PNG")
    args = parser.parse_args()
    if unknown := sorted({*args.cases} - {*CASES}):
        parser.error(f"unknown case {unknown[0]!r}; there are: {', '.join(CASES)}")
    import faiss  # here: raykd tells it how to wait

    threads = faiss.omp_get_max_threads()
    print(f"threads: {threads}; numpy {np.__version__}, faiss {faiss.__version__}; seconds: the best of the repeats\n")
    for name in args.cases:
        CASES[name](args)
    print(json.dumps({"threads": threads, "results": RESULTS}))


if __name__ == "__main__":
    main()
