"""What campaigns leave, as the tests of jobs look at it."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def picks_of(place: Path, number: int) -> list[str]:
    table = pq.read_table(place / f"round_{number:03d}" / "select" / "picks.parquet").sort_by("rank")
    return table["sample_id"].to_pylist()


def labels_of(place: Path, number: int = 0) -> dict[str, tuple]:
    rows = pq.read_table(place / f"round_{number:03d}" / "label" / "labels.parquet").to_pylist()
    return {row["sample_id"]: (row["outcome"], row["label"]) for row in rows}


def table_of(folder: Path) -> pa.Table:
    """A table in parts, by sample_id."""
    files = sorted(folder.glob("*/block_*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).sort_by("sample_id")


def manifest_of(place: Path) -> pa.Table:
    return pq.read_table(place / "pool" / "part_000" / "manifest.parquet")


def lines_of(place: Path) -> list[dict]:
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def fill(tasks: Path, answers: dict[str, str]) -> None:
    """Write answers into the label column of tasks.csv, as people do."""
    with open(tasks, newline="", encoding="utf-8-sig") as stream:
        rows = list(csv.DictReader(stream))
    with open(tasks, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows([row | {"label": answers.get(row["sample_id"], row["label"])} for row in rows])


class Reached(BaseException):
    """Stands for the training, where a test has seen enough."""
