"""On a real S3 server: small files, patience, one line for what is wrong, and a lease that two jobs can't both have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pytest
import s3_server
from nodes import REPOSITORY

from raykd.errors import StorageError, UserError, for_the_reader
from raykd.store import filesystems, lock
from raykd.store.lock import LEASE, Lease, only_job
from raykd.store.options import OPTIONS, in_environment
from raykd.store.place import Place
from raykd.store.stage_folder import StageFolder

BAD_S = 6.0  # of a store that is out of order


@pytest.fixture
def place(store, request) -> Place:
    name = "".join(each if each.isalnum() else "-" for each in request.node.name)
    return Place.of(s3_server.uri(name, f"127.0.0.1:{store}"))


@pytest.fixture
def behind(proxy, request) -> Place:
    """The same through the proxy."""
    name = "".join(each if each.isalnum() else "-" for each in request.node.name)
    return Place.of(s3_server.uri(name, f"127.0.0.1:{proxy.port}"))


def test_what_is_written_is_read_back_listed_and_gone_when_deleted(place):
    (place / "a ü#?.json").write_json({"a": 1})
    (place / "folder" / "t.parquet").write_table(pa.table({"x": range(1000)}))
    (place / "large").write_bytes(b"0123456789" * 10**6)  # more than a part
    assert (place / "a ü#?.json").read_json() == {"a": 1}
    assert (place / "folder").read_table()["x"].to_pylist() == list(range(1000))
    assert (place / "large").read_bytes() == b"0123456789" * 10**6
    names = [info.path.rpartition("/")[2] for info in place.files(recursive=True)]
    assert sorted(names) == ["a ü#?.json", "large", "t.parquet"]
    place.check_writable()
    assert len(place.files(recursive=True)) == 3
    assert not (place / "nothing").exists()


def test_a_stage_is_absent_until_its_marker_is_there(place):
    stage = StageFolder(place / "stage", "stage", 1)
    with stage.writing() as out:
        (out.place / "rows").write_bytes(b"1")
        assert stage.done() is None
    assert stage.done().facts["seconds"] >= 0


@pytest.mark.parametrize("mode", ["503", "hang", "cut"])
def test_a_store_that_is_out_of_order_for_some_seconds_is_waited_for(behind, proxy, mode):
    """Tables, markers, listings and the lease: all requests go the same way."""
    (behind / "before").write_bytes(b"there")
    stage = StageFolder(behind / "stage", "stage", 1)
    proxy.mode = mode
    threading.Timer(BAD_S, setattr, (proxy, "mode", "pass")).start()
    started = time.monotonic()
    assert (behind / "before").read_bytes() == b"there"
    with stage.writing() as out:
        (out.place / "t.parquet").write_table(pa.table({"x": [1, 2]}))
    with only_job(behind) as still_ours:
        still_ours()
    assert time.monotonic() - started >= BAD_S - 1
    assert stage.done() is not None
    assert proxy.refused > 0 or mode != "503"


def test_when_the_store_stays_away_it_is_told_in_one_line(behind, proxy, monkeypatch):
    monkeypatch.setattr(filesystems, "ATTEMPTS", 2)
    monkeypatch.setattr("raykd.store.place.open_uri", lambda uri: filesystems.open_uri(uri, 2))
    proxy.mode = "503"
    with pytest.raises(OSError, match=r"SLOW_DOWN|SERVICE_UNAVAILABLE|503") as error:
        (behind / "x").write_bytes(b"1")
    words = for_the_reader(error.value)
    assert words is not None
    assert "refused for too long" in words
    assert "run the same command again" in words


@pytest.mark.parametrize(
    ("change", "environment", "words"),
    [
        (("//raykd/", "//no-such-bucket/"), {}, "there is no such bucket"),
        (("scheme=http", "scheme=https"), {}, "speaks no TLS"),
        (("127.0.0.1", "nowhere.invalid"), {}, "no host of that name"),
        (("{port}", "9"), {}, "nobody listens there"),
        (("", ""), {"AWS_ACCESS_KEY_ID": "WRONG"}, "may not do that|does not know the access key"),
        (("", ""), {"AWS_SECRET_ACCESS_KEY": "wrong"}, "may not do that|is not that of the access key"),
    ],
    ids=["bucket", "tls", "host", "port", "key", "secret"],
)
def test_a_campaign_says_in_the_first_seconds_what_is_wrong_with_its_store(store, change, environment, words, tmp_path):
    if s3_server.moto_serves() and environment:
        pytest.skip("moto's server looks at no credentials")
    before, after = (each.replace("{port}", str(store)) for each in change)
    uri = s3_server.uri("run", f"127.0.0.1:{store}").replace(before, after, 1)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "jobs/active_round.py", "--preset", "demo", "--set", f"storage_path={uri}"],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(words, line), line
    assert "Traceback" not in done.stderr
    assert time.monotonic() - started < 40  # seconds, on a machine that does other things as well


def test_one_set_of_options_serves_every_place(store, monkeypatch):
    options = {"endpoint": f"http://127.0.0.1:{store}", "region": "us-east-1", "anonymous": False, "profile": None}
    for name, value in in_environment({**options, "checksums": False}).items():
        monkeypatch.setenv(name, value)
    assert json.loads(os.environ[OPTIONS]) == {"endpoint": options["endpoint"], "region": "us-east-1"}
    assert os.environ["AWS_REQUEST_CHECKSUM_CALCULATION"] == "when_required"
    place = Place.of("s3://raykd/options/file")
    place.write_bytes(b"found")
    assert Place.of(s3_server.uri("options/file", f"127.0.0.1:{store}")).read_bytes() == b"found"
    with only_job(Place.of("s3://raykd/options/run")) as still_ours:
        still_ours()


# ---------------------------------------------------------------- the lease


def test_of_jobs_that_start_at_once_exactly_one_holds_the_folder(place, monkeypatch):
    monkeypatch.setattr(lock, "RENEW_S", 0.05)  # so that others see it live while they watch
    held, refused, leave = [], [], threading.Event()

    def job(number: int) -> None:
        try:
            with only_job(place, wait=lambda seconds: time.sleep(min(seconds, 0.5))):
                held.append(number)
                leave.wait(60)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=job, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    while len(held) + len(refused) < 6:
        time.sleep(0.01)
    leave.set()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    assert all("another job is at work in" in words for words in refused)
    assert place.files() == []


def test_a_lease_that_is_stale_is_taken_by_one_and_its_old_holder_writes_no_more(place):
    """The holder that was asleep for longer than a minute wakes up: it must not count on."""
    asleep = Lease(place, {"token": "asleep", "host": "a", "pid": 1, "since": "then"}, lambda _: None)
    asleep.take()
    assert asleep.version is not None  # the server has conditional writes
    with only_job(place, wait=lambda _: None) as still_ours:
        before = (place / LEASE).read_bytes()
        asleep.renew()
        assert (place / LEASE).read_bytes() == before
        assert asleep.object.replace(b"{}", asleep.version) is None
        still_ours()


def test_a_lease_is_renewed_and_one_whose_answer_was_lost_goes_on(place):
    lease = Lease(place, {"token": "mine", "host": "a", "pid": 1, "since": "then"}, lambda _: None)
    lease.take()
    first = lease.version
    lease.renew()
    assert lease.version != first
    lease.version = first  # as if the answer to the write had been lost
    lease.renew()
    lease.renew()
    assert (place / LEASE).read_json()["counter"] == 3


def test_a_store_without_conditional_writes_is_told_and_has_a_lease_all_the_same(place, monkeypatch, caplog):
    caplog.set_level("INFO", "raykd")
    monkeypatch.setattr("raykd.store.conditional.Conditional.create", lambda self, data: self._put(data))
    waits = []
    with only_job(place, wait=waits.append) as still_ours:
        still_ours()
    assert "no conditional writes there" in caplog.text
    assert waits == [lock.SETTLE_S]


def test_a_file_in_place_of_a_bucket_is_none(store):
    with pytest.raises(StorageError, match="there is no such bucket"):
        Place.of(s3_server.uri("x", f"127.0.0.1:{store}").replace("//raykd/", "//none-of-that/")).check_writable()
