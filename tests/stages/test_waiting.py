"""Nothing is waited for in silence, or for ever, when there is no room for it."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raykd.errors import UserError
from raykd.stages import resources, session
from raykd.stages.resources import Bundles, Patience, cpus_that_fit, lack, room, shortage, with_patience

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


def test_a_shard_that_has_no_place_to_be_is_not_waited_for_for_ever(ray_cluster, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(resources, "WORD_EVERY_S", 0.3)
    from raykd.stages.shard_actors import open_shards
    from raykd.stages.shard_rows import PoolSource

    probs = list(np.full((4, 2), 0.5, np.float32))
    pq.write_table(pa.table({"sample_id": list("abcd"), "probs": probs}), tmp_path / "pool.parquet")
    source = PoolSource(uris=(str(tmp_path / "pool.parquet"),))
    assert shortage(Bundles(2, 3)) is not None
    words = r"selection waited for \d of 2 shards for \d+ s: it asks for 2 x \(3 CPUs.*room for 1.*Ask for less"
    with pytest.raises(UserError, match=words), open_shards(source, 2, num_cpus=3, stall_s=1):
        pytest.fail("there is no room")
    assert "waits for 2 of 2 shards" in caplog.text or "waits for 1 of 2 shards" in caplog.text


def test_what_others_hold_is_told_and_not_waited_for_for_ever(ray_cluster):
    """There would be room, but somebody has it: totals say nothing of that."""
    import ray

    holder = ray.remote(num_cpus=4)(Counter).remote()
    ray.get(holder.__ray_ready__.remote())
    told = []
    call = ray.remote(num_cpus=1)(lambda: 0).remote()
    patience = Patience(Bundles(1, 1), 1.0, told.append, who="select", each_is_short=True)
    with pytest.raises(UserError, match=r"select waited for 1 of 1 tasks for \d+ s: 0 of 4 CPUs are free") as error:
        patience.answers([call], "tasks")
    assert "stall_s" in str(error.value)
    ray.kill(holder)
    long = Patience(Bundles(1, 1), 60, told.append)
    assert long.answers([call, ray.put(7)], "tasks") == [0, 7]
    assert long.answers([], "tasks") == []


def test_a_long_call_is_waited_for_while_there_is_room(ray_cluster, monkeypatch):
    monkeypatch.setattr(resources, "WORD_EVERY_S", 0.3)
    import ray

    told = []
    slow = ray.remote(num_cpus=1)(lambda: time.sleep(2.5)).remote()
    assert Patience(Bundles(1, 1), 1.0, told.append).answers([slow], "tasks") == [None]
    assert told
    assert all(line.startswith("waits for 1 of 1 tasks") and line.endswith("still at work") for line in told)


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus", "cpus"),
    [
        ([{"CPU": 2.0}] * 3, 8, 0, 0.666),  # 6 / 8 would leave room for 6 only
        ([{"CPU": 2.0}] * 3, 6, 0, 1.0),
        ([{"CPU": 4.0}], 8, 0, 0.5),
        ([{"CPU": 4.0}, {"CPU": 1.0}], 6, 0, 0.8),
        ([{"CPU": 64.0}], 8, 0, 1.0),
        ([{"CPU": 4.0, "GPU": 1.0}], 2, 1.0, 1.0),  # nothing fits: that is told, with these numbers
        ([], 8, 0, 1.0),
    ],
)
def test_shards_that_name_no_cpus_ask_for_what_all_of_them_find(nodes, actors, gpus, cpus):
    assert cpus_that_fit(nodes, actors, gpus) == cpus


@given(st.lists(st.integers(0, 9), max_size=4), st.integers(1, 12))
def test_no_larger_share_would_fit(sizes, actors):
    nodes = [{"CPU": float(size)} for size in sizes]
    share = cpus_that_fit(nodes, actors, 0)
    fits = {each / 1000 for each in range(1, 1001) if room(nodes, each / 1000, 0) >= actors}
    assert share == max(fits, default=1.0)


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
