"""Every hostile image, file and table through the doors that they come in by: right, or a reason, or one clear error.

The images are read in a process of their own, whose memory is bounded; the file itself is its script.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import hostile
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import Bad, Refused, Rows

from raykd.config import Source
from raykd.errors import UserError
from raykd.images.decoding import UNREACHABLE
from raykd.images.reading import load_one
from raykd.images.sources import check_ids_differ, list_source
from raykd.images.stored import ImageReader
from raykd.images.transforms import CenterCrop, ClipPreprocess, RandomCrop, Thumbnail

pytestmark = pytest.mark.slow

SIZE = 64
MOST_BYTES = int(1.5 * 2**30)  # above what the process has before the first image

CHANGES = {  # what the cases call them, and what we do
    "transparency": "transparency", "turned": "turned", "16-bit": "depth", "12-bit": "depth", "CMYK": "colors",
    "first frame": "frames",
}  # fmt: skip
HALF = {"half, and an end.jpg", "half of the rows.png"}
PILLOW = "closed as if it were whole: wrong without a word, and neither Pillow nor a checksum tells"

# ---------------------------------------------------------------- the process that reads


def looked_at(image: Any) -> list[list[float]]:
    """The mean colours of the middles of its quarters; and whatever else is made of an image is made."""
    for size in ({"size": SIZE}, {"size": SIZE, "resize_mode": "longest"}):
        ClipPreprocess(size)(image)
    CenterCrop(SIZE)(image), RandomCrop(SIZE, (0.5, 1.0), True)(image, 0), Thumbnail(SIZE)(image)
    squashed = np.asarray(ClipPreprocess({"size": SIZE, "resize_mode": "squash"})(image))
    half, edge = SIZE // 2, SIZE // 8
    quarters = squashed.reshape(2, half, 2, half, 3)[:, edge:-edge, :, edge:-edge]
    return quarters.mean(axis=(1, 3)).reshape(4, 3).tolist()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_all(uris: list[str]) -> dict[str, Any]:
    """What each uri gives, and how far the memory of this process went up."""
    reader, before, read, changed = ImageReader(), peak_bytes(), [], []
    for uri in uris:
        changes: Counter[str] = Counter()
        read.append(load_one(reader, uri, looked_at, changes=changes))
        changed.append(sorted(changes))
    return {"read": read, "changed": changed, "bytes": peak_bytes() - before}


def read_elsewhere(uris: list[str]) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, __file__], input=json.dumps(uris), capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout) | {"stderr": process.stderr}


# ---------------------------------------------------------------- images


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    for case in [*hostile.IMAGES, *hostile.FILES]:
        hostile.write_image(case, folder)
    return folder


@pytest.fixture(scope="module")
def outcome(folder) -> dict[str, Any]:
    names = [case.name for case in [*hostile.IMAGES, *hostile.FILES]]
    done = read_elsewhere([f"{folder}/{name}" for name in names])
    return {**done, **{what: dict(zip(names, done[what], strict=True)) for what in ("read", "changed")}}


@pytest.mark.slow
@pytest.mark.parametrize("case", [*hostile.IMAGES, *hostile.FILES], ids=str)
def test_a_hostile_image_is_right_or_has_a_reason_of_its_kind(case, outcome, request):
    if case.name in HALF:
        request.applymarker(pytest.mark.xfail(strict=True, reason=PILLOW))
    if case.name == "closed.png" and os.geteuid() == 0:
        pytest.skip("root reads everything")
    check(outcome["read"][case.name], case.expect)


@pytest.mark.parametrize("case", [case for case in hostile.IMAGES if case.name not in HALF], ids=str)
def test_what_is_done_to_a_hostile_image_is_counted(case, outcome):
    expected = () if isinstance(case.expect, Bad) else case.expect.changes
    assert outcome["changed"][case.name] == sorted({CHANGES[change] for change in expected})


def check(got: list[list[float]] | str, expect: Any) -> None:
    if isinstance(expect, Bad):
        assert isinstance(got, str), f"seen as {np.round(got).astype(int).tolist()}; expected: {expect.kind}"
        assert re.search(hostile.REASONS[expect.kind], got)
        assert not re.search(r"^\w*(Error|Exception|Exit)\b|\n|/|\bobject at\b|\d{5}", got), got  # so that it counts
        assert len(got) <= 200
    else:
        assert not isinstance(got, str), got
        np.testing.assert_allclose(got, np.array(expect.colors, float), atol=expect.tolerance)


def test_memory_is_bounded_whatever_a_file_claims(outcome):
    assert outcome["bytes"] < MOST_BYTES


def test_nothing_is_printed_of_an_image(outcome):
    """A library's warning is no line on people's screens; what counts is a reason or a change."""
    lines = outcome["stderr"].splitlines()
    assert [line for line in lines if not line.startswith("tempfile.tif: ")] == []  # libtiff writes past Python


def test_files_that_are_bad_in_the_same_way_have_the_same_reason(outcome):
    of_kind: dict[str, set[str]] = {}
    for case in hostile.IMAGES:
        if isinstance(case.expect, Bad) and case.name not in HALF:
            of_kind.setdefault(case.expect.kind, set()).add(outcome["read"][case.name])
    several = {kind for kind, reasons in of_kind.items() if len(reasons) > 1}
    assert several <= {"damaged", "kind not read", "unknown"}  # these say what is damaged, or what is not read


@pytest.mark.slow
def test_rows_of_parquet_are_read_as_files_are(folder, outcome, tmp_path):
    cases = [case for case in hostile.IMAGES if not case.is_large and case.name != "empty.jpg"]
    images = [(folder / case.name).read_bytes() for case in cases]
    pq.write_table(pa.table({"image": images}), tmp_path / "t.parquet", row_group_size=50)
    got = read_elsewhere([f"{tmp_path}/t.parquet#image/{row:09d}" for row in range(len(cases))])["read"]
    assert dict(zip([case.name for case in cases], got, strict=True)) == {
        case.name: outcome["read"][case.name] for case in cases
    }


def test_a_folder_of_them_is_listed_each_once(folder):
    listing, _ = listed(folder, {"format": "images"})
    expected = [case.name for case in [*hostile.IMAGES, *hostile.FILES] if case.listed]
    assert listing["sample_id"].to_pylist() == sorted(expected)


def test_what_is_neither_a_file_nor_a_folder_is_counted(folder):
    _, said = listed(folder, {"format": "images"})
    assert any(line.startswith("2 are neither files nor folders (pipes, sockets, devices), such as") for line in said)


def test_a_machine_without_memory_is_no_reason_against_an_image(folder):
    def full(image):
        raise MemoryError

    assert load_one(ImageReader(), f"{folder}/rgba.png", full) == f"{UNREACHABLE}not enough memory"


# ---------------------------------------------------------------- tables


def listed(folder: Path, fields: dict[str, Any]) -> tuple[pa.Table, list[str]]:
    """What the pool's stage takes of a source."""
    said: list[str] = []
    source = Source(**{**fields, "path": f"{folder}/{fields.get('path', '')}".rstrip("/")})
    classes = list(hostile.LETTERS) if source.label_values else None
    rows = list_source(source, "pool", classes, lambda _, line: said.append(line)).rows
    check_ids_differ(rows)
    return rows, said


def dot_of(got: list[list[float]] | str) -> int | str:
    """Which dot is seen; or the reason."""
    if isinstance(got, str):
        return got
    return round((got[0][0] - hostile.color_of(0)[0]) / (hostile.color_of(1)[0] - hostile.color_of(0)[0]))


def check_table(folder: Path, fields: dict[str, Any], expect: Rows | Refused) -> None:
    if isinstance(expect, Refused):
        with pytest.raises(UserError) as caught:
            listed(folder, fields)
        assert [word for word in expect.words if word not in str(caught.value)] == [], str(caught.value)
        assert "\n" not in str(caught.value)
        return
    rows, _ = listed(folder, fields)
    assert tuple(rows["label"].to_pylist()) == expect.labels
    if expect.ids is not None:
        assert tuple(rows["sample_id"].to_pylist()) == expect.ids
    got = [load_one(ImageReader(), uri, looked_at) for uri in rows["uri"].to_pylist()]
    pictures = expect.pictures or tuple(range(len(expect.labels)))
    for reading, picture in zip(got, pictures, strict=True):
        if isinstance(picture, str):
            check(reading, Bad(picture))
        else:
            assert dot_of(reading) == picture


@pytest.mark.parametrize("table", hostile.TABLES, ids=str)
def test_a_hostile_table_is_rows_or_refused_by_name(table, tmp_path):
    check_table(tmp_path, table.make(tmp_path), table.expect)


@pytest.mark.parametrize("table", hostile.CSV_TABLES, ids=str)
def test_a_hostile_list_is_rows_or_refused_by_name(table, tmp_path):
    check_table(tmp_path, {"format": "list"} | table.make(tmp_path), table.expect)


if __name__ == "__main__":
    print(json.dumps(read_all(json.load(sys.stdin))))
