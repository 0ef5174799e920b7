"""The doctor on three nodes, with all that can be wrong with them; test_submitted.py has nodes without fault."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nodes as several
import pyarrow.fs as pafs
import pytest
import s3_server
from nodes import REPOSITORY, Nodes

pytestmark = [pytest.mark.timeout(300), pytest.mark.nightly]

AN_HOUR_AHEAD = "import time\n_time = time.time\ntime.time = lambda: _time() + 3600\n"


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Iterator[Nodes]:
    """A head, a node whose clock is an hour ahead and whose torch is another, and a good one."""
    if why := several.missing():
        pytest.skip(why)
    changed = tmp_path_factory.mktemp("changed")
    (changed / "sitecustomize.py").write_text(AN_HOUR_AHEAD)
    (changed / "torch-9.9.9.dist-info").mkdir()
    (changed / "torch-9.9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    with (
        tempfile.TemporaryDirectory(prefix="rd", dir="/tmp", ignore_cleanup_errors=True) as folder,
        several.nodes_of(Path(folder), 3) as nodes,
    ):
        nodes.environment |= s3_server.environment()
        nodes.head()
        nodes.join(1, PYTHONPATH=f"{changed}:{REPOSITORY}")
        nodes.join(2)
        yield nodes


def examined(nodes: Nodes, *overrides: str, **more: str) -> tuple[int, list[str]]:
    """The doctor's exit code and lines, on the head."""
    log = nodes.folder / "doctor.log"
    log.unlink(missing_ok=True)
    command = [sys.executable, "jobs/doctor.py", "--preset", "demo", "--set", *overrides]
    code = nodes.popen(0, command, log, RAY_ADDRESS=nodes.ray_address, **more).wait(120)
    said = log.read_text()
    assert "Traceback" not in said
    return code, said.splitlines()


def line(lines: list[str], state: str, name: str, *parts: str) -> bool:
    """Whether there is a finding that says all that."""
    found = [each for each in lines if each.split()[:1] == [state] and each[6:].startswith(name)]
    return any(all(part in each for part in parts) for each in found)


def test_other_versions_a_clock_and_a_pool_that_only_the_driver_sees_are_all_found(odd, folder):
    from raykd.demo.digits import pool_bytes

    (odd.folder / "cache0" / "mine.parquet").write_bytes(pool_bytes())
    code, lines = examined(odd, "pool.path=~/.cache/mine.parquet", f"storage_path={folder / 'new'}")
    text = "\n".join(lines)
    assert code == 2, text
    assert lines[0].startswith("not ready: "), text
    assert line(lines, "warn", "versions", "torch is 9.9.9", odd.address(1)), text
    assert line(lines, "FAIL", "clocks", odd.address(1), "ahead of the driver", "chrony"), text
    assert line(lines, "FAIL", "images", odd.address(1), odd.address(2), "put them where all nodes read"), text
    assert line(lines, "ok", "storage", str(folder / "new")), text
    assert not (folder / "new").exists()


def test_a_storage_that_only_the_head_sees_is_found(odd):
    code, lines = examined(odd, "storage_path=~/.cache/run")
    assert code == 2
    assert line(
        lines, "FAIL", "storage", "is not the same for all", odd.address(1), "storage_path that all nodes share"
    )


def test_a_stage_that_fits_on_no_node_is_found(odd, folder):
    code, lines = examined(odd, "teacher.num_cpus=8", f"storage_path={folder / 'new'}")
    assert code == 2
    assert line(lines, "FAIL", "bundles", "teacher asks for 8 CPUs"), lines


def test_an_object_store_is_tried_by_all_and_left_as_it_was(odd, store):
    place = s3_server.uri("examined", f"{odd.here}:{store}")
    code, lines = examined(odd, f"storage_path={place}")
    assert code == 2  # the clock
    assert line(lines, "ok", "storage", "written, listed and read back by 4"), lines
    assert line(lines, "ok", "lock", "If-None-Match") or line(lines, "warn", "lock", "conditional"), lines
    left, everything = s3_server.filesystem(f"127.0.0.1:{store}"), pafs.FileSelector(s3_server.BUCKET, recursive=True)
    assert [info.path for info in left.get_file_info(everything)] == [f"{s3_server.BUCKET}/examined"]


def test_a_bucket_without_the_right_to_list_is_found(odd, store):
    if s3_server.moto_serves():
        pytest.skip("moto's server looks at no rights")
    s3_server.keep_from_listing(store)
    place = s3_server.uri("examined", f"{odd.here}:{store}")
    code, lines = examined(odd, f"storage_path={place}", **s3_server.LIMITED_KEYS)
    assert code == 2
    assert line(lines, "FAIL", "storage", "driver cannot list", "s3:ListBucket"), lines
    assert line(lines, "FAIL", "campaign", "the credentials that were found, if any, may not do that"), lines
