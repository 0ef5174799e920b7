"""What a pool's rows cost the driver: seconds and memory of manifest, encode's parts, selection and label import.

    python jobs/bench_rows.py [--rows 1000000 4000000] [--steps list draw ...] [--folder FOLDER]

The tables are made on the spot (ids and uris like real paths, 60 and 84 characters); no image is read and no Ray is
started. Each step runs in a process of its own, which says how far its memory (VmHWM) rises above what it had after
its imports: so what a step is given counts, if the driver holds it. A step leaves on disk what the next one needs. A
table, then one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
NUM_CLASSES = 100
CHUNK = 500_000  # rows that are made at a time
BAD_EVERY = 1_000  # one image of so many cannot be read
LABELS = (100_000, 1_000_000)


# ---------------------------------------------------------------- what steps are given


def id_columns(start: int, count: int) -> tuple[Any, Any]:
    """Ids and uris of some rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = pa.array(np.arange(start, start + count))
    mixed = pa.array(
        (np.arange(start, start + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(16)
    )
    name = pc.utf8_lpad(pc.cast(mixed, pa.string()), 16, padding="0")
    folder = pc.utf8_lpad(pc.cast(pc.divide(numbers, 10_000), pa.string()), 6, padding="0")
    digits = pc.utf8_lpad(pc.cast(numbers, pa.string()), 10, padding="0")
    ids = pc.binary_join_element_wise(
        "camera_17/2026-11", folder, name, pc.binary_join_element_wise(digits, ".jpg", "_"), "/"
    )
    return ids, pc.binary_join_element_wise("/data/warehouse/images", ids, "/")


def write_source(folder: Path, rows: int) -> None:
    """The table that lists the images, and one of a hundredth more."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, count in (("source", rows), ("grown", rows + rows // 100)):
        with pq.ParquetWriter(
            folder / f"{name}.parquet", pa.schema([(n, pa.string()) for n in ("sample_id", "path", "label")])
        ) as out:
            for start in range(0, count, CHUNK):
                ids, uris = id_columns(start, min(CHUNK, count - start))
                classes = np.char.add("class_", (np.arange(len(ids)) * 7919 % NUM_CLASSES).astype(str))
                out.write_table(pa.table({"sample_id": ids, "path": uris, "label": pa.array(classes)}))


def campaign_at(folder: Path, source: str = "source", kind: str = "parquet", **labels: Any) -> Any:
    import io

    from raykd.config import load
    from raykd.stages.campaign import Campaign
    from raykd.stages.progress import Progress
    from raykd.stages.session import Session
    from raykd.store.place import Place

    path = folder / f"{source}.{kind}" if source else folder
    columns = {"uri_column": "path", "label_column": "label", "id_column": "sample_id"} if source else {}
    values: dict[str, Any] = {
        "storage_path": str(folder / "run"),
        "rounds": 2,
        "pool": {"path": str(path), "format": "list" if kind == "csv" else kind, **columns},
        "test_share": 0.02 if source else 0,
        "val_share": 0.01 if source else 0,
        "teacher": {"model": "local-dir:/tmp"},
        "student": {"backbone": "test_vit", "pretrained": False, "steps": 6},
        "selection": {"strategy": "pcoreset", "budget": 1000, "shards": 8},
        "labels": {"oracle": "people", **labels},
    }
    progress = Progress("lines", io.StringIO())
    return Campaign(config=load(values), place=Place.of(values["storage_path"]), progress=progress, session=Session())


def opened_pool(folder: Path) -> Any:
    from raykd.stages.pool import listed_parts
    from raykd.store.outputs import Pool

    return Pool(tuple(listed_parts(campaign_at(folder))), tuple(f"class_{number}" for number in range(NUM_CLASSES)))


def encoded_parts(folder: Path) -> Any:
    from raykd.store.outputs import Encoded
    from raykd.store.place import Place
    from raykd.store.stage_folder import read_done

    at = Place.of(str(folder / "run" / "encode"))
    names = sorted(os.listdir(at.path))
    return Encoded(tuple(done for name in names if (done := read_done(at / name))), "model", at)


def ids_every(pool: Any, count: int) -> Any:
    """So many ids of the pool, from all over it."""
    ids = pool.split("pool")["sample_id"].combine_chunks()
    return ids.take(list(range(0, len(ids), max(1, len(ids) // count)))[:count])


# ---------------------------------------------------------------- the steps


def step_list(folder: Path, rows: int) -> dict[str, Any]:
    """The source to rows of the manifest, ids all different."""
    from raykd.stages.pool import listed_rows

    table, _ = listed_rows(campaign_at(folder), None)
    return {"arrow_GiB": table.nbytes / 2**30}


def step_csv(folder: Path, rows: int) -> dict[str, Any]:
    """As ``list``, from a CSV."""
    from raykd.stages.pool import listed_rows
    from raykd.store.outputs import manifest_content

    table, _ = listed_rows(campaign_at(folder, "source", "csv"), None)
    return {"content": manifest_content(table.slice(0, 1000))}


def write_csv(folder: Path) -> None:
    import pyarrow.csv as pacsv
    import pyarrow.parquet as pq

    with (
        pq.ParquetFile(folder / "source.parquet") as source,
        pacsv.CSVWriter(folder / "source.csv", source.schema_arrow) as out,
    ):
        for batch in source.iter_batches(CHUNK):
            out.write_batch(batch)


def step_folder(folder: Path, rows: int) -> dict[str, Any]:
    """As ``list``, of a folder of files; walking it is left out, its lists of names, sizes and times are not."""
    from types import SimpleNamespace

    from raykd.images import walk
    from raykd.stages.pool import listed_rows

    def walked(*_: Any) -> Any:
        files = walk.Files()
        for start in range(0, rows, CHUNK):
            files.names += id_columns(start, min(CHUNK, rows - start))[0].to_pylist()
        files.sizes = [1_000_000 + number for number in range(rows)]
        files.times = [1_700_000_000_000_000_000 + number for number in range(rows)]
        return SimpleNamespace(files=files)

    walk.LocalWalk = walked  # type: ignore[assignment,misc]
    table, _ = listed_rows(campaign_at(folder, "", "images"), None)
    return {"arrow_GiB": table.nbytes / 2**30}


def step_draw(folder: Path, rows: int) -> dict[str, Any]:
    """The same, and splits drawn, a few looked at, and the part written with the name of its content."""
    from raykd.stages import pool as stage

    stage.load_many = lambda reader, uris, *_: [(1, 1)] * len(uris)  # type: ignore[assignment]
    campaign = campaign_at(folder)
    with stage.part_folder(campaign, 0).writing() as out:
        table, found = stage.drawn_rows(campaign)
        stage.check_label_names(table, found or [])
        stage.check_readable(table, 0)
        stage.write_part(out, table)
        (out.place / stage.CLASSES_FILE).write_json({"found": found, "given": None})
    return {"content": out.complete.facts["content"], "test": out.complete.facts["test"]}


def step_again(folder: Path, rows: int) -> dict[str, Any]:
    """What every later job does: the manifest read, counted, ids to label, those that can be read."""
    pool = opened_pool(folder)
    ids, others = pool.ids_to_label()
    return {"pool": len(ids), "others": len(others), "counts": pool.counts}


def step_grown(folder: Path, rows: int) -> dict[str, Any]:
    """A second listing, of a pool with a hundredth more, compared with the first."""
    from raykd.stages import pool as stage

    stage.load_many = lambda reader, uris, *_: [(1, 1)] * len(uris)  # type: ignore[assignment]
    campaign = campaign_at(folder, "grown")
    before = stage.listed_parts(campaign)
    return {
        "parts": len(stage.grown_part(campaign, before)),
        "content": stage.listed_parts(campaign)[-1].facts["content"],
    }


def found_parts(folder: Path, pool: Any) -> Any:
    from raykd.stages.map_images import find_parts

    campaign = campaign_at(folder)
    return find_parts(
        campaign, pool.listed, at=campaign.place / "encode", name="encode", version=1,
        made_from={"model": "m"}, settings={"batch_size": 64},
    )  # fmt: skip


def step_parts(folder: Path, rows: int) -> dict[str, Any]:
    """Encode's parts cut, named and looked for; and the pool handed to Ray Data as blocks."""
    from raykd.stages.map_images import even_blocks
    from raykd.store.stage_folder import fingerprint

    parts = found_parts(folder, opened_pool(folder))
    blocks = even_blocks(dict(enumerate(part.rows for part in parts)), 64, 8)
    names = fingerprint([part.folder.fingerprint for part in parts])
    return {"parts": len(parts), "blocks": len(blocks), "names": names}


def write_parts(folder: Path) -> None:
    """As if all were encoded, one image in a thousand broken: ids and errors only."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    from raykd.store.outputs import BROKEN_FILE

    for part in found_parts(folder, opened_pool(folder)):
        if part.done:
            continue
        with part.folder.writing() as out:
            count = part.rows.num_rows
            is_bad = np.arange(count) % BAD_EVERY == 0
            errors = pc.if_else(pa.array(is_bad), "broken", pa.scalar(None, pa.string()))
            bad = part.rows.filter(pa.array(is_bad))
            broken = [{"sample_id": row["sample_id"], "uri": row["uri"], "reason": "broken"} for row in bad.to_pylist()]
            (out.place / BROKEN_FILE).write_json(broken)
            table = pa.table({"sample_id": part.rows["sample_id"], "split": part.rows["split"], "error": errors})
            (out.place / "block_0.parquet").write_table(table)
            out.facts |= {"rows": count, "unreadable": len(broken), "changes": {}}


def step_encoded(folder: Path, rows: int) -> dict[str, Any]:
    """Parts found complete: the quarantine, and the rows that can be read."""
    from raykd.stages.budget import check_budgets

    pool = opened_pool(folder)
    parts = found_parts(folder, pool)
    assert all(part.done for part in parts)
    encoded = encoded_parts(folder)
    readable = encoded.readable(pool.split("pool")).num_rows
    check_budgets(campaign_at(folder), pool, readable)
    return {"parts": len(parts), "readable": readable, "quarantined": encoded.quarantine.num_rows}


def step_start(folder: Path, rows: int) -> dict[str, Any]:
    """Selection, round 0 of a simulation: one image of each class, drawn."""
    from raykd.stages.select import some_per_class
    from raykd.store.stage_folder import fingerprint

    campaign = campaign_at(folder, oracle="simulated", start="one_per_class", shots=4)
    table = some_per_class(campaign, opened_pool(folder), encoded_parts(folder))
    return {"picks": table.num_rows, "content": fingerprint(table["sample_id"].to_pylist())}


def step_audits(folder: Path, rows: int) -> dict[str, Any]:
    """Selection, before the shards: what is set aside to measure by, and a round's audits."""
    from raykd.stages.audit import next_audits, set_aside
    from raykd.store.stage_folder import fingerprint

    shutil.rmtree(folder / "run" / "audit", ignore_errors=True)
    campaign, pool, encoded = campaign_at(folder, audit_share=0.2), opened_pool(folder), encoded_parts(folder)
    taken = ids_every(pool, 10_000)
    aside = set_aside(campaign, pool, encoded, taken)
    assert aside
    ids = next_audits(pool, encoded, taken, aside, 200)
    return {"audits": len(ids), "last": aside.last, "content": fingerprint(ids.to_pylist())}


def step_space(folder: Path, rows: int) -> dict[str, Any]:
    """Selection, before the shards: which rows are labeled, which left out, of 100,000 answers; it travels to each."""
    import pickle
    from types import SimpleNamespace

    import pyarrow as pa

    from raykd.stages.probability_space import student_space
    from raykd.store.outputs import Labels, Predictions
    from raykd.store.stage_folder import Done

    campaign, pool, encoded = campaign_at(folder), opened_pool(folder), encoded_parts(folder)
    ids = ids_every(pool, LABELS[0])
    count = len(ids)
    table = pa.table({
        "sample_id": ids, "label": pa.array([f"class_{i % NUM_CLASSES}" for i in range(count)]),
        "outcome": pa.array(["label"] * count), "role": pa.array(["train"] * count),
    })  # fmt: skip
    labels = Labels(Done(campaign.place / "none", "f"))
    labels.__dict__["table"] = table.sort_by("sample_id")
    predictions = Predictions(encoded.parts, ("ce_logits",), pool.classes, "student")
    mixture = SimpleNamespace(uncalibrated=None)
    before: Any = SimpleNamespace(predictions=predictions, labels=labels, deployed=SimpleNamespace(mixture=mixture))
    source, _ = student_space(campaign, pool, before)
    return {"labeled": len(source.labeled), "source_MB": len(pickle.dumps(source)) / 1e6}


def step_uris(folder: Path, rows: int) -> dict[str, Any]:
    """What a round's picks need of the manifest: uris and labels of 1,000 of them."""
    pool = opened_pool(folder)
    ids = ids_every(pool, 1_000)
    return {"uris": len(pool.uris(ids)), "labels": len(pool.labels_of(ids))}


def write_labels(folder: Path) -> None:
    pool = opened_pool(folder)
    for count in LABELS:
        ids = ids_every(pool, count).to_pylist()
        with (folder / f"labels_{count}.csv").open("w") as out:
            out.write("sample_id,label\n")
            out.writelines(f"{name},class_{number % NUM_CLASSES}\n" for number, name in enumerate(ids))


def import_labels(folder: Path, count: int) -> dict[str, Any]:
    from raykd.labels.files import labels_from
    from raykd.labels.ledger import Ledger, current_labels
    from raykd.store.place import Place
    from raykd.store.stage_folder import fingerprint

    pool, ledger = opened_pool(folder), Ledger(Place.of(str(folder / f"ledger_{count}")))
    file = Place.of(str(folder / f"labels_{count}.csv"))
    known, others = pool.ids_to_label()
    rows = labels_from(file, pool.classes, known, others)
    shutil.rmtree(ledger.place.path, ignore_errors=True)
    done = ledger.append(rows)
    again = ledger.append(labels_from(ledger.place, pool.classes, known, others))
    table = current_labels(ledger, pool.classes)
    assert again.new == 0, again
    names = sorted(os.listdir(ledger.place.path))
    return {"new": done.new, "file": names[0], "content": fingerprint(table.to_pydict())}


def step_labels(folder: Path, rows: int) -> dict[str, Any]:
    """100,000 answers of a CSV into the ledger, and taken over from there once more."""
    return import_labels(folder, LABELS[0])


def step_many_labels(folder: Path, rows: int) -> dict[str, Any]:
    """10^6 answers, or as many as there are images."""
    return import_labels(folder, LABELS[1])


def step_shard(folder: Path, rows: int) -> dict[str, Any]:
    """One shard's ids and hashes, without vectors, of an eighth of the rows."""
    import numpy as np

    from raykd.algo.selection.rows import Rows
    from raykd.algo.selection.shard import Shard

    count = rows // 8
    ids = np.array(id_columns(0, count)[0].to_pylist(), object)
    shard = Shard(Rows(ids, np.full((count, 1), 1, np.float16)))
    return {"shard_rows": len(shard)}


STEPS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "list": step_list, "csv": step_csv, "folder": step_folder, "draw": step_draw, "again": step_again,
    "parts": step_parts, "encoded": step_encoded, "start": step_start, "audits": step_audits, "space": step_space,
    "uris": step_uris, "shard": step_shard, "labels": step_labels, "many_labels": step_many_labels, "grown": step_grown,
}  # fmt: skip
PREPARE: dict[str, Callable[[Path], None]] = {"csv": write_csv, "parts": write_parts, "labels": write_labels}
ALONE = {"list", "csv", "folder", "shard"}  # which need no listed pool
NEEDS = {
    "csv": "csv", "encoded": "parts", "start": "parts", "audits": "parts", "space": "parts", "labels": "labels",
    "many_labels": "labels",
}  # fmt: skip


# ---------------------------------------------------------------- processes


def child(what: str, folder: Path, rows: int) -> None:
    """Run one step here, and print what it took as a line of JSON."""
    import raykd.stages.image_features
    import raykd.stages.label
    import raykd.stages.pool
    import raykd.stages.select  # noqa: F401  (imports are no step's)

    if what == "source":
        write_source(folder, rows)
    elif what.startswith("prepare "):
        PREPARE[what.removeprefix("prepare ")](folder)
    else:
        gc.collect()
        base = memory("VmRSS")
        started, worked = time.perf_counter(), time.process_time()
        found = STEPS[what](folder, rows)
        print(
            json.dumps(
                {
                    "seconds": time.perf_counter() - started,
                    "cpu_s": time.process_time() - worked,
                    "peak_GiB": memory("VmHWM") - base,
                    **found,
                }
            )
        )


def memory(name: str) -> float:
    """GiB, of this process alone; ru_maxrss would be the parent's, where that was larger."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(name))) / 2**20


def run(what: str, folder: Path, rows: int) -> str:
    command = [sys.executable, __file__, "--child", what, "--rows", str(rows), "--folder", str(folder)]
    environment = os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{what} at {rows:,} rows: {done.stderr[-3000:]}")
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="of the pool (default: 1000000)")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=STEPS, help="default: all")
    parser.add_argument("--folder", type=Path, help="where tables are made (default: a temporary folder)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.folder, given.rows[0])
        return
    results: list[dict[str, Any]] = []
    print(f"{'rows':>12} {'step':<12}{'seconds':>9}{'CPU s':>9}{'peak GiB':>10}{'bytes a row':>13}")
    for rows in given.rows:
        with tempfile.TemporaryDirectory(prefix="raykd-rows-", dir=given.folder) as name:
            folder = Path(name)
            run("source", folder, rows)
            prepared = set()
            for step in (
                step for step in STEPS if step in given.steps or (step == "draw" and {*given.steps} - ALONE)
            ):  # which lists the pool
                if (need := NEEDS.get(step)) and need not in prepared:
                    run(f"prepare {need}", folder, rows)
                    prepared.add(need)
                found = {"rows": rows, "step": step, **json.loads(run(step, folder, rows))}
                results.append(found)
                numbers = f"{found['seconds']:>9.1f}{found['cpu_s']:>9.1f}{found['peak_GiB']:>10.2f}"
                print(f"{rows:>12,} {step:<12}{numbers}{found['peak_GiB'] * 2**30 / rows:>13,.0f}", flush=True)
    print(json.dumps({"results": results}))


if __name__ == "__main__":
    main()
