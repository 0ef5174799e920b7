"""Rows of the manifest (:data:`raykd.store.tables.MANIFEST`), and the words that all kinds of sources share."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raykd.images.stored import PARQUET_SUFFIXES
from raykd.store.tables import MANIFEST

Say = Callable[[str, str], None]  # a topic, which is the split, and a line for people

SPLIT_NAMES = {  # in any case
    "pool": "pool", "train": "pool", "training": "pool", "val": "val", "valid": "val", "validation": "val",
    "dev": "val", "test": "test", "testing": "test",
}  # fmt: skip
LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson")
NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][-+]?\d+)?")


def manifest_rows(
    split: str, ids: Any, uris: Any, sizes: Any = None, times: Any = None, labels: Any = None, splits: Any = None
) -> pa.Table:
    """MANIFEST of columns or lists; ids of what is no pool begin with the split's name."""
    count = len(uris)
    if split != "pool":
        ids = pc.binary_join_element_wise(split, pa.array(ids, pa.string()) if isinstance(ids, list) else ids, "/")
    columns = {
        "sample_id": ids,
        "uri": uris,
        "size_bytes": pa.nulls(count, pa.int64()) if sizes is None else sizes,
        "mtime_ns": pa.nulls(count, pa.int64()) if times is None else times,
        "label": pa.nulls(count, pa.string()) if labels is None else labels,
        "split": pa.repeat(pa.scalar(split), count) if splits is None else splits,
    }
    return pa.table(columns, schema=MANIFEST)


def in_order(values: Iterable[str]) -> list[str]:
    """Sorted: by number when all are numbers (2 before 10, 0.5 before 0.25e1), else by letter."""
    values = list(values)
    if all(map(NUMBER.fullmatch, values)):
        return sorted(values, key=lambda value: (Decimal(value), value))
    return sorted(values)


def few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + (", ..." if len(names) > most else "")


def other_format(names: list[str]) -> str:
    """Which format reads most of such files, as the end of an error; nothing when none does."""
    known = {"parquet": PARQUET_SUFFIXES, "webdataset": (".tar",), "list": LIST_SUFFIXES}
    counts = Counter(word for name in names for word, suffixes in known.items() if name.lower().endswith(suffixes))
    return "".join(f"; format {word} reads {' and '.join(known[word])}" for word, _ in counts.most_common(1))


def endings(names: Iterable[str], most: int = 5) -> str:
    """The endings of file names and how often each is there: ``12 .heic, 3 .txt``."""
    counts = Counter(os.path.splitext(name)[1].lower() or "without ending" for name in names).most_common()
    more = (
        [f"{sum(count for _, count in counts) - sum(count for _, count in counts[:most]):,} others"]
        if len(counts) > most
        else []
    )
    return ", ".join([f"{count:,} {ending}" for ending, count in counts[:most]] + more)
