"""One job at a time: by the kernel on a disk, by a lease on an object store."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pyarrow.fs as pafs
import pytest

from raykd import lock
from raykd.lock import LEASE, LOCK, check_still_held, only_job
from raykd.rundir import MARKER, Stage
from raykd.storage import Place


def never(seconds):
    raise AssertionError(f"waits {seconds} s")


# ---------------------------------------------------------------- a disk


def test_a_second_job_is_refused_and_told_who_works_there(tmp_path):
    place = Place.of(tmp_path / "runs" / "new")
    with only_job(place, pause=never):
        with (
            pytest.raises(ValueError, match=rf"another job works in .*new: process {os.getpid()} on .*, since 20"),
            only_job(place),
        ):
            pass
        with only_job(Place.of(tmp_path / "another"), pause=never):
            pass
    with only_job(place, pause=never):
        pass


def test_a_killed_job_leaves_its_place_at_once(tmp_path):
    script = f"""
from raykd.lock import only_job
from raykd.storage import Place
with only_job(Place.of({str(tmp_path)!r})):
    print("held", flush=True)
    input()
"""
    job = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert job.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match=f"process {job.pid} on"), only_job(Place.of(tmp_path)):
        pass
    job.send_signal(signal.SIGKILL)
    job.communicate()
    with only_job(Place.of(tmp_path), pause=never):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


# ---------------------------------------------------------------- an object store


@dataclass(frozen=True, repr=False)
class Store(Place):
    """A folder that says it is an object store."""

    @property
    def fs(self):
        return pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())

    @property
    def path(self):
        return self.uri.lstrip("/")

    def write_bytes(self, data):  # at once, as an object store's put
        Place(f"{self.uri}").write_bytes(data)

    def __truediv__(self, name):
        return Store(f"{self.uri}/{name}")


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def other(place, count=1):
    content = {"host": "node-7", "pid": 99, "since": "2026-01-02 03:04:05 UTC", "token": "other", "count": count}
    (place / LEASE).write_json(content)


def test_a_lease_that_changes_is_respected(store):
    said = []
    other(store)
    with (
        pytest.raises(
            ValueError, match=r"another job works in .*: process 99 on node-7, since 2026-01-02 03:04:05 UTC"
        ),
        only_job(store, said.append, lambda seconds: other(store, 2)),
    ):
        pass
    assert "watching for 65 s" in said[0]
    assert (store / LEASE).read_json()["token"] == "other"


def test_a_dead_jobs_lease_is_taken_over_and_a_clean_end_leaves_none(store):
    said, waited = [], []
    other(store)
    with only_job(store, said.append, waited.append):
        assert (store / LEASE).read_json()["pid"] == os.getpid()
        check_still_held()
    assert waited[0] == lock.WATCH_S > 3 * lock.RENEW_S
    assert not (store / LEASE).exists()
    with only_job(store, never, waited.append):
        pass


def test_of_two_that_take_over_at_once_one_has_it(store):
    other(store)
    pauses = iter([lambda: None, lambda: other(store, 5)])
    with pytest.raises(RuntimeError, match="another job works in"), only_job(store, pause=lambda _: next(pauses)()):
        pass
    assert (store / LEASE).read_json()["token"] == "other"


def test_a_stage_is_not_completed_when_another_job_took_over(store, tmp_path):
    stage = Stage(Store(str(tmp_path / "pool")), {"a": 1})
    with only_job(store, pause=lambda _: None):
        with pytest.raises(RuntimeError, match="process 99 on node-7"), stage.writing():
            other(store)
        assert not (tmp_path / "pool" / MARKER).exists()
        (store / LEASE).fs.delete_file((store / LEASE).path)


def test_a_lease_is_renewed_while_it_is_held(store, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_S", 0.001)
    with only_job(store, pause=lambda _: None):
        first = (store / LEASE).read_json()["count"]
        for _ in range(100_000):
            if (store / LEASE).read_json()["count"] > first:
                break
        else:
            raise AssertionError("not renewed")
