"""What several nodes cost: seconds of each stage that are no work, and bytes over the links.

    sudo python jobs/bench_cluster.py [--nodes 1 2 3]

The nodes are network namespaces of this machine that share its cores (tests/cluster/nodes.py; root and iproute2), so
nothing here says how fast a cluster is. Each campaign runs at two sizes, and a stage takes a + b x size: ``fixed s`` is
a, the starts, imports and waits that more images or steps would not lengthen. ``MB`` went over the links of all nodes
in the larger campaign. A pick round is one question to all shards. A step is one exchange of gradients, an image one
row, both by what more of them added; ``moved`` is an image's bytes over those of its pixels, which go from the task
that reads it to the model: over 1, and rows go over links twice. ``held`` is the mean of the logical CPUs that the
stage kept others from, of those that there are; what it holds idle is about held x fixed s.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from raykd.store.place import Place

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "cluster"))

CPUS = 4  # logical, of each node
SMALL, LARGE = 300, 1200  # pool images
STEPS = {SMALL: 10, LARGE: 40}
BUDGET = {SMALL: 20, LARGE: 200}
STAGES = {"encode": "encode", "round 0 select": "select", "round 0 train": "train", "round 0 predict": "predict"}
PIXEL_BYTES = {"encode": 48 * 48 * 3, "predict": 32 * 32 * 3}  # of an image, as the demo's teacher and student see it
EVERY_S = 0.05
HELD = """
import sys, time, ray
ray.init(log_to_driver=False, logging_level="ERROR")
total = ray.cluster_resources().get("CPU", 0.0)
while True:
    print(time.time(), total - ray.available_resources().get("CPU", 0.0), flush=True)
    time.sleep(0.25)
"""  # logical CPUs that somebody holds, over time


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 3], help="besides the head")
    given = parser.parse_args()
    rows = [row for count in given.nodes for row in measured(count)]
    print(f"{'nodes':>5}  {'stage':8} {'fixed s':>8} {'seconds':>8} {'held':>10} {'MB':>8}  each")
    for row in rows:
        each = f"{row['bytes_each']:,.0f} bytes a {row['unit']}"
        if row["moved"] is not None:
            each += f", moved {row['moved']:.2f} times"
        held = f"{row['held_cpus']:.1f} of {row['cpus']}"
        shown = f"{row['fixed_s']:8.1f} {row['seconds']:8.1f} {held:>10} {row['megabytes']:8.2f}"
        print(f"{row['nodes']:5}  {row['stage']:8} {shown}  {each}")
    result = {"small": SMALL, "large": LARGE, "steps": list(STEPS.values()), "rows": rows}
    print(json.dumps(result))
    return result


def measured(count: int) -> list[dict[str, Any]]:
    """A row for each stage, on a head and so many nodes."""
    from nodes import missing, nodes_of

    if why := missing():
        sys.exit(f"no nodes here: {why}")
    with (
        tempfile.TemporaryDirectory(prefix="rb", dir="/tmp", ignore_cleanup_errors=True) as folder,
        nodes_of(Path(folder), count + 1, CPUS) as nodes,
    ):
        nodes.head()
        for node in range(1, count + 1):
            nodes.join(node)
        campaign(nodes, count, SMALL, "warm")  # files are read for the first time
        small, large = (campaign(nodes, count, size, str(size)) for size in (SMALL, LARGE))
    rows = []
    for stage in STAGES.values():
        grown = STEPS[LARGE] / STEPS[SMALL] if stage == "train" else large["images"] / small["images"]
        fixed = (grown * small["seconds"][stage] - large["seconds"][stage]) / (grown - 1)
        more = large["bytes"][stage] - small["bytes"][stage]
        if stage == "select":
            unit, each = "pick round", more / max(1, large["pick_rounds"] - small["pick_rounds"])
        elif stage == "train":
            unit, each = "step", more / (STEPS[LARGE] - STEPS[SMALL])
        else:
            unit, each = "image", more / (large["images"] - small["images"])
        rows.append(
            {
                "nodes": count,
                "stage": stage,
                "fixed_s": round(fixed, 1),
                "seconds": round(large["seconds"][stage], 1),
                "held_cpus": round(large["held"].get(stage, 0.0), 1),
                "cpus": CPUS * count,
                "megabytes": round(large["bytes"][stage] / 1e6, 2),
                "unit": unit,
                "bytes_each": round(each),
                "pick_rounds": large["pick_rounds"] if stage == "select" else None,
                "moved": round(each / PIXEL_BYTES[stage], 2) if stage in PIXEL_BYTES else None,
            }
        )
    return rows


def campaign(nodes: Any, count: int, size: int, name: str) -> dict[str, Any]:
    """Seconds and bytes of each stage, as ``status.json`` and the links' counters tell them."""
    from faults import stage_of

    place, log = nodes.folder / name, nodes.folder / f"{name}.log"
    overrides = ["rounds=1", "labels.start=none", f"pool.limit={size}", f"student.steps={STEPS[size]}"]
    overrides += [f"selection.budget={BUDGET[size]}"]
    overrides += [f"student.num_workers={max(2, count)}", f"teacher.replicas={count}", "progress=lines"]
    overrides += [f"student.predict_replicas={count}", f"selection.shards={2 * count}", f"storage_path={place}"]
    command = [sys.executable, "jobs/active_round.py", "--preset", "demo", "--set", *overrides]
    job = nodes.popen(0, command, log, RAY_ADDRESS=nodes.ray_address)
    holding = nodes.popen(0, [sys.executable, "-c", HELD], nodes.folder / f"{name}.held", RAY_ADDRESS=nodes.ray_address)
    spans: list[tuple[str, float, float]] = []
    seconds, moved = defaultdict[str, float](float), defaultdict[str, int](int)
    stage, since, before = None, time.monotonic(), over_links(nodes)
    while job.poll() is None:
        time.sleep(EVERY_S)
        now = stage_of(Place.of(place))
        if now is not None and now != stage:
            at, bytes_now = time.monotonic(), over_links(nodes)
            if stage is not None and stage in STAGES:
                seconds[STAGES[stage]] += at - since
                spans.append((STAGES[stage], time.time() - (at - since), time.time()))
                moved[STAGES[stage]] += bytes_now - before
            stage, since, before = now, at, bytes_now
    holding.kill()
    if job.returncode:
        sys.exit(f"the campaign failed:\n{log.read_text()[-3000:]}")
    facts = json.loads((place / "round_000" / "select" / "_DONE.json").read_text())["facts"]
    images = json.loads((place / "pool" / "part_000" / "_DONE.json").read_text())["facts"]
    return {
        "seconds": dict(seconds),
        "bytes": dict(moved),
        "held": held_in(spans, (nodes.folder / f"{name}.held").read_text()),
        "pick_rounds": len(facts.get("rounds", [])),
        "images": sum(images[split] for split in ("pool", "val", "test") if split in images),
    }


def held_in(spans: list[tuple[str, float, float]], log: str) -> dict[str, float]:
    """Logical CPUs that were held during each stage, the mean."""
    lines = [line.split() for line in log.splitlines()]
    seen = [(float(line[0]), float(line[1])) for line in lines if len(line) == 2 and line[0][:1].isdigit()]
    found: dict[str, list[float]] = defaultdict(list)
    for stage, start, end in spans:
        found[stage] += [cpus for at, cpus in seen if start <= at <= end]
    return {stage: sum(values) / len(values) for stage, values in found.items() if values}


def over_links(nodes: Any) -> int:
    """Bytes that have gone over all links so far, each counted once, where it was sent."""
    return sum(
        int(Path(f"/sys/class/net/{nodes.link(node)}/statistics/rx_bytes").read_text()) for node in range(nodes.count)
    )


if __name__ == "__main__":
    main()
