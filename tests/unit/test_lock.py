"""One job at a time in a folder: held while the job lives, free however it ended. On a disk and on an object store."""

import errno
import fcntl
import json
import logging
import os
import socket
import subprocess
import sys
import threading

import pytest
from fakes import object_store

from raykd.errors import StorageError, UserError
from raykd.store import lock
from raykd.store.lock import LEASE, LOCK, RENEW_S, SETTLE_S, WATCH_S, Lease, only_job
from raykd.store.place import Place
from raykd.store.stage_folder import StageFolder

OTHER = {"token": "theirs", "host": "node-7", "pid": 4711, "since": "2026-01-02T03:04:05Z", "counter": 3}


@pytest.fixture
def store(tmp_path, monkeypatch) -> Place:
    """A folder on an object store, whose objects are files of the test's own folder."""
    return object_store(monkeypatch, "s3://bucket", files=tmp_path)


@pytest.fixture(params=["disk", "object store"])
def storage(request, tmp_path) -> Place:
    return Place.of(tmp_path / "run") if request.param == "disk" else request.getfixturevalue("store")


def never(seconds):
    pytest.fail(f"waited {seconds} s")


class Waits:
    """In place of a clock: notes each wait, and does what the world does during it."""

    def __init__(self, *happenings):
        self.seconds, self.happenings = [], list(happenings)

    def __call__(self, seconds):
        self.seconds.append(seconds)
        if self.happenings and (happening := self.happenings.pop(0)):
            happening()


# ---------------------------------------------------------------- a folder that is none


def test_a_file_in_place_of_the_folder_or_above_it_is_told_with_its_path(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with (
            pytest.raises(StorageError, match=f"storage_path {path} is a file, or below one"),
            only_job(Place.of(path)),
        ):
            pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.EACCES, "cannot be written to (no permission); make it writable, or give another"),
        (errno.EROFS, "cannot be written to (no permission)"),
        (errno.ENOSPC, "is on a disk without space left; free some, then run the same command again"),
        (errno.EDQUOT, "is on a disk without space left"),
        (errno.EIO, "cannot be used: Input/output error"),
    ],
)
@pytest.mark.parametrize("step", ["makedirs", "open", "write"])
def test_a_folder_that_cannot_be_written_is_told_with_its_path(tmp_path, monkeypatch, code, words, step):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.os, step, refuse)
    with pytest.raises(StorageError) as error, only_job(Place.of(tmp_path / "run"), never):
        pass
    monkeypatch.undo()
    assert f"storage_path {tmp_path}/run {words}" in str(error.value)


def test_a_bucket_that_cannot_be_reached_is_told(store, monkeypatch):
    def refuse(*args):
        raise OSError("AWS Error ACCESS_DENIED")

    monkeypatch.setattr(Place, "write_bytes", refuse)
    said = r"s3://bucket cannot be used: object store, .*may not do that; check AWS_ACCESS_KEY_ID"
    with pytest.raises(StorageError, match=said), only_job(store, never):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null"])
def test_a_lease_that_says_nothing_is_watched_like_any_other(store, content):
    (store / LEASE).write_bytes(content)
    waits = Waits()
    with only_job(store, waits):
        pass
    assert sum(waits.seconds) == WATCH_S + SETTLE_S


# ---------------------------------------------------------------- both


def test_a_job_holds_a_folder_and_leaves_nothing_there_so_the_next_one_starts_at_once(storage, capsys):
    for _ in range(2):
        waits = Waits()
        with only_job(storage, waits) as still_ours:
            still_ours()
            (file,) = storage.files()
            assert file.base_name in (LOCK, LEASE)
            holder = json.loads((storage / file.base_name).read_bytes())
            assert (holder["host"], holder["pid"]) == (socket.gethostname(), os.getpid())
        assert storage.files() == []
        assert waits.seconds == ([] if storage.is_local else [SETTLE_S])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_job_that_fails_or_waits_for_labels_frees_the_folder(storage, error):
    with pytest.raises(error), only_job(storage, Waits()):
        raise error
    assert storage.files() == []


def test_a_stage_gets_no_marker_when_another_job_took_over(storage):
    with only_job(storage, Waits()) as still_ours:
        stage = StageFolder(storage / "pool", "pool", 1, still_ours=still_ours)
        (storage / "pool").fs.create_dir(storage.path, recursive=True)
        with pytest.raises(UserError, match="another job took over") as error, stage.writing() as out:  # noqa: PT012
            (out.place / "manifest.parquet").write_bytes(b"rows")
            (storage / (LOCK if storage.is_local else LEASE)).write_json(OTHER)
        assert "pid 4711 on host node-7, since 2026-01-02T03:04:05Z" in str(error.value)
        assert str(storage) in str(error.value)
        assert stage.done() is None
    assert [json.loads((storage / file.base_name).read_bytes()) for file in storage.files()] == [OTHER]  # and kept


def test_a_folder_that_was_deleted_is_not_told_as_another_job(storage):
    with only_job(storage, Waits()) as still_ours:
        storage.fs.delete_dir(storage.path)
        with pytest.raises(StorageError, match=r"is gone, .*deleted, moved or unmounted.* Put it back") as error:
            still_ours()
        assert str(storage) in str(error.value)
        assert "pid" not in str(error.value)


# ---------------------------------------------------------------- on a disk


def test_on_a_disk_a_second_job_is_refused_naming_the_first_and_what_to_do(tmp_path):
    storage = Place.of(tmp_path / "new" / "run")
    with only_job(storage, never) as still_ours:
        since = (storage / LOCK).read_json()["since"]
        with pytest.raises(UserError, match="another job is at work") as error, only_job(storage, never):
            pytest.fail("two jobs in a folder")
        still_ours()
    assert str(error.value) == (
        f"another job is at work in {storage} (pid {os.getpid()} on host {socket.gethostname()}, since {since}): wait "
        "until it has ended or stop it, then run the same command again; or give another storage_path"
    )


@pytest.mark.slow
def test_on_a_disk_kill_9_frees_the_folder_even_when_processes_of_the_job_live_on(tmp_path):
    script = """
import subprocess, sys
from raykd.store.lock import only_job
from raykd.store.place import Place
with only_job(Place.of(sys.argv[1])):
    orphan = subprocess.Popen([sys.executable, "-c", "input()"], close_fds=False)
    print(orphan.pid, flush=True)
    orphan.wait()
"""
    storage = Place.of(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", script, storage.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as job:
        orphan = int(job.stdout.readline())
        with pytest.raises(UserError, match=rf"\(pid {job.pid} on host "), only_job(storage, never):
            pytest.fail("two jobs in a folder")
        job.kill()
        job.wait()
        os.kill(orphan, 0)  # lives
        assert (storage / LOCK).read_json()["pid"] == job.pid
        with only_job(storage, never) as still_ours:
            still_ours()
            assert (storage / LOCK).read_json()["pid"] == os.getpid()


def test_on_a_disk_a_lock_on_a_file_that_was_just_removed_counts_for_nothing(tmp_path, monkeypatch):
    """Between opening .lock and locking it, its holder may end and another job make a new one."""
    storage, flock, between = Place.of(tmp_path), fcntl.flock, [lambda: (storage / LOCK).write_json(OTHER)]

    def late(descriptor, how):
        if between:
            between.pop()()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with only_job(storage, never) as still_ours:
        still_ours()
        with pytest.raises(UserError, match=f"pid {os.getpid()} "), only_job(storage, never):
            pytest.fail("two jobs in a folder")


@pytest.mark.parametrize("code", lock.NO_FLOCK)
def test_a_disk_without_locks_has_a_lease(tmp_path, monkeypatch, code):
    def none(descriptor, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    with only_job(Place.of(tmp_path), Waits()) as still_ours:
        still_ours()
        assert os.listdir(tmp_path) == [LEASE]
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------- on an object store


def test_a_lease_that_does_not_change_for_a_minute_is_taken_over(store, caplog):
    caplog.set_level(logging.INFO, "raykd")
    (store / LEASE).write_json(OTHER)
    waits = Waits()
    with only_job(store, waits) as still_ours:
        still_ours()
        assert (store / LEASE).read_json()["pid"] == os.getpid()
    assert sum(waits.seconds) == WATCH_S + SETTLE_S
    (line,) = caplog.messages
    assert line == (
        f"{store / LEASE} is there (pid 4711 on host node-7, since 2026-01-02T03:04:05Z): watching for up to 60 s "
        "if that job is alive"
    )


def test_a_lease_that_changes_while_it_is_watched_is_refused_naming_its_job(store):
    (store / LEASE).write_json(OTHER)
    renewed = OTHER | {"counter": 4}
    waits = Waits(None, None, None, lambda: (store / LEASE).write_json(renewed))
    with pytest.raises(UserError, match="another job is at work") as error, only_job(store, waits):
        pytest.fail("two jobs in a folder")
    assert "pid 4711 on host node-7, since 2026-01-02T03:04:05Z" in str(error.value)
    assert sum(waits.seconds) <= RENEW_S
    assert (store / LEASE).read_json() == renewed


def test_a_living_job_is_seen_to_renew_while_it_is_watched(store):
    with Lease(store, OTHER, Waits()).held():
        first = Lease(store, OTHER, Waits())  # renewed from here, not from its thread
        with pytest.raises(UserError, match="pid 4711 "), only_job(store, Waits(None, first.renew)):
            pytest.fail("two jobs in a folder")


def test_when_the_watched_job_ends_the_next_one_starts_at_once(store):
    (store / LEASE).write_json(OTHER)
    waits = Waits(None, lambda: store.fs.delete_file((store / LEASE).path))
    with only_job(store, waits) as still_ours:
        still_ours()
    assert sum(waits.seconds) < RENEW_S


def test_of_two_jobs_that_start_at_once_one_is_refused(store):
    with (
        pytest.raises(UserError, match="pid 4711 "),
        only_job(store, Waits(lambda: (store / LEASE).write_json(OTHER))),
    ):
        pytest.fail("two jobs in a folder")
    assert (store / LEASE).read_json() == OTHER


def test_a_lease_is_renewed_by_a_thread_as_long_as_the_job_lives(store, monkeypatch):
    written, enough, write = [], threading.Event(), Place.write_bytes

    def watched(place, data):
        write(place, data)
        written.append(json.loads(data)["counter"])
        if len(written) > 3:
            enough.set()

    monkeypatch.setattr(Place, "write_bytes", watched)
    monkeypatch.setattr(lock, "RENEW_S", 0.001)
    with only_job(store, Waits()):
        assert enough.wait(60)
    assert written == list(range(len(written)))
    assert store.files() == []


def test_a_lease_that_was_taken_over_is_not_renewed(store):
    mine = Lease(store, OTHER | {"token": "mine"}, Waits())
    mine.take()
    (store / LEASE).write_json(OTHER)
    mine.renew()
    assert (store / LEASE).read_json() == OTHER


def test_while_the_store_is_out_of_reach_the_thread_goes_on_and_renews_later(store, monkeypatch):
    renewed, renew = threading.Event(), Lease.renew
    failures = [OSError("unreachable"), OSError("unreachable")]

    def flaky(lease):
        if failures:
            raise failures.pop()
        renew(lease)
        renewed.set()

    monkeypatch.setattr(Lease, "renew", flaky)
    monkeypatch.setattr(lock, "RENEW_S", 0.001)
    with only_job(store, Waits()):
        assert renewed.wait(60)


class OneObject:
    """An object with conditional writes, whose first answer is lost on the way back: the client asks once more."""

    def __init__(self, file: Place, *, loses: bool) -> None:
        self.file, self.loses, self.written = file, loses, 0

    def version(self):
        return str(self.written) if self.file.exists() else None

    def create(self, data):
        if self.file.exists():
            return None
        return self._write(data)

    def replace(self, data, version):
        return self._write(data) if version == self.version() else None

    def _write(self, data):
        self.file.write_bytes(data)
        self.written += 1
        if self.loses:
            self.loses = False
            return None  # what the second attempt is told
        return self.version()


@pytest.mark.parametrize("before", [None, OTHER])
def test_a_lease_that_was_written_though_the_answer_was_lost_is_held(store, monkeypatch, before):
    if before:
        (store / LEASE).write_json(before)
    there = OneObject(store / LEASE, loses=True)
    monkeypatch.setattr(lock, "conditional", lambda file: there)
    with only_job(store, Waits()) as still_ours:
        still_ours()
        assert json.loads((store / LEASE).read_bytes())["pid"] == os.getpid()
    assert store.files() == []


def test_a_lease_that_another_job_wrote_first_is_refused(store, monkeypatch):
    there = OneObject(store / LEASE, loses=False)
    monkeypatch.setattr(there, "create", lambda data: there.file.write_json(OTHER))
    monkeypatch.setattr(lock, "conditional", lambda file: there)
    with pytest.raises(UserError, match=r"another job is at work .*pid 4711 on host node-7"), only_job(store, Waits()):
        pytest.fail("it is the other's")
