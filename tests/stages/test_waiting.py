"""Nothing is waited for in silence, or for ever, when there is no room for it."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raykd.errors import UserError
from raykd.stages import resources, session
from raykd.stages.resources import Bundles, lack, shortage, with_patience

NODES = [{"CPU": 4.0}, {"CPU": 2.0, "GPU": 1.0}]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (Bundles(6, 1), None),
        (Bundles(7, 1), "it asks for 7 x (1 CPUs, 0 GPUs), and the nodes have room for 6 (6 CPUs, 1 GPUs)"),
        (Bundles(2, 3), "it asks for 2 x (3 CPUs, 0 GPUs), and the nodes have room for 1 (6 CPUs, 1 GPUs)"),
        (Bundles(1, 1, 1), None),
        (Bundles(1, 1, 2), "it asks for 1 x (1 CPUs, 2 GPUs), and the nodes have room for 0 (6 CPUs, 1 GPUs)"),
        (
            Bundles(6, 1, beside=1),
            "it asks for 6 x (1 CPUs, 0 GPUs) and 1 CPUs for tasks, and the nodes have room for 6 (6 CPUs, 1 GPUs)",
        ),
    ],
)
def test_what_does_not_fit_is_told_with_the_numbers(asked, words):
    assert lack(asked, NODES) == words


def test_a_call_that_ends_gives_what_it_returns_or_raises(ray_cluster):
    told = []
    assert with_patience(lambda: 7, "stage", Bundles(1, 1), 60, lambda: 0, told.append) == 7
    with pytest.raises(KeyError, match="mine"):
        with_patience(lambda: {}["mine"], "stage", Bundles(1, 1), 60, lambda: 0, told.append)
    assert told == []


def test_a_call_that_gets_nowhere_is_told_and_given_up_naming_what_was_missing(ray_cluster, monkeypatch):
    monkeypatch.setattr(resources, "WORD_EVERY_S", 0.0)
    never, told = threading.Event(), []
    words = (
        r"round 2 train: nothing was done for 1.5 s: it asks for 9 x \(1 CPUs, 0 GPUs\), and the nodes have room for 4"
    )
    with pytest.raises(UserError, match=words):
        with_patience(lambda: never.wait(60), "round 2 train", Bundles(9, 1), 1.5, lambda: 0, told.append)
    never.set()
    assert told
    assert all("it asks for 9 x" in line and "gives up after 1.5 s" in line for line in told)


def test_a_call_that_goes_on_slowly_is_waited_for(ray_cluster):
    ended, steps = threading.Event(), iter(range(100))

    def done() -> int:
        if (step := next(steps)) == 4:
            ended.set()
        return step

    assert with_patience(lambda: ended.wait(60), "stage", Bundles(1, 1), 1.2, done, print)


def test_a_shard_that_has_no_place_to_be_is_not_waited_for_for_ever(ray_cluster, tmp_path, caplog):
    from raykd.stages.shard_actors import open_shards
    from raykd.stages.shard_rows import PoolSource

    probs = list(np.full((4, 2), 0.5, np.float32))
    pq.write_table(pa.table({"sample_id": list("abcd"), "probs": probs}), tmp_path / "pool.parquet")
    source = PoolSource(uris=(str(tmp_path / "pool.parquet"),))
    assert shortage(Bundles(2, 3)) is not None
    words = r"selection waited for \d of 2 shards for \d+ s: it asks for 2 x \(3 CPUs.*room for 1.*Ask for less"
    with pytest.raises(UserError, match=words), open_shards(source, 2, num_cpus=3, stall_s=1):
        pytest.fail("there is no room")
    assert "waiting for" in caplog.text


# ---------------------------------------------------------------- the head


def test_a_head_that_is_gone_is_told_and_ends_the_job_in_a_line(monkeypatch, capfd, caplog):
    monkeypatch.setattr(session, "LOOK_S", 0.02)
    monkeypatch.setattr(session, "LOST_S", 0.3)
    ended = threading.Event()
    codes = []

    def exits(code):
        codes.append(code)
        ended.set()
        watch.end()

    monkeypatch.setattr(session.os, "_exit", exits)
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    watch = session.HeadWatch(address)
    assert not ended.wait(0.5)  # it answers
    listening.close()
    assert ended.wait(30)
    assert codes[0] == 2
    said = capfd.readouterr().err
    assert said.startswith(f"error: Ray's head at {address} has not answered for ")
    assert "run the same command again to go on" in said
    assert "does not answer" in caplog.text


def test_gloo_listens_on_the_interface_of_the_nodes_address(monkeypatch):
    from raykd.stages.process_group import interface_of

    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("192.0.2.1") is None
