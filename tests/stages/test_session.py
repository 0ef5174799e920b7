"""What a user sees when something is wrong, and while something runs."""

import contextlib
import inspect
import io
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading

import pytest

from raykd.cli import user_errors
from raykd.errors import UserError
from raykd.stages.progress import Progress, Ticker, status
from raykd.stages.session import (
    SOCKET_BYTES,
    SOCKET_PATH,
    Session,
    check_address,
    check_temporary_folder,
    ray_session,
    raylet_lines,
)


@pytest.fixture
def no_ray(monkeypatch):
    """As if none was up in this process; what would be started is written down instead."""
    import ray

    started = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(started))
    monkeypatch.setattr(ray, "init", lambda **given: started.append(given))
    monkeypatch.setattr(ray, "shutdown", started.clear)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("RAY_enable_metrics_collection", "RAY_enable_open_telemetry"):
        monkeypatch.setenv(name, "0")
    return started


def test_a_ray_is_started_when_it_is_first_needed_and_ends_with_the_session(no_ray):
    with Session(local_cpus=7) as session:
        assert session.is_local
        assert not session.is_up
        assert no_ray == []
        session.ensure()
        assert session.is_up
        session.ensure()
        (given,) = no_ray
        assert (given["address"], given["num_cpus"], given["include_dashboard"]) == ("local", 7, False)
    assert no_ray == []


def test_a_session_that_never_needed_ray_ends_without_it(no_ray, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "shutdown", None)
    with Session():
        pass


def test_a_local_ray_has_at_least_four_logical_cpus(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert Session().num_cpus == 4
    assert Session(local_cpus=1).num_cpus == 1


def test_a_session_keeps_our_handler_of_sigterm(no_ray, monkeypatch):
    """Ray puts its own there, and its C++ another, which prints frames."""
    import ray

    init = ray.init
    rays = lambda number, frame: None  # noqa: E731
    monkeypatch.setattr(ray, "init", lambda **given: (signal.signal(signal.SIGTERM, rays), init(**given)))
    ours = lambda number, frame: None  # noqa: E731
    before = signal.signal(signal.SIGTERM, ours)
    try:
        with Session() as session:
            session.ensure()
            assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_ray_refuses_is_told_with_the_address(no_ray, monkeypatch, listener):
    import ray

    def refuse(**given):
        raise RuntimeError("Version mismatch: the cluster has Ray 2.9")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setenv("RAY_ADDRESS", address := listener(bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])))
    with Session() as session, pytest.raises(UserError, match=f"join RAY_ADDRESS={address}: RuntimeError: Version"):
        session.ensure()


# ---------------------------------------------------------------- before Ray is asked


@pytest.fixture
def listener():
    """An address where somebody listens who answers so, or not at all."""
    sockets = []

    def listen(answer: bytes | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        sockets.append(server)

        def serve():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                sockets.append(connection)
                connection.recv(100)
                if answer is not None:
                    connection.sendall(answer)
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{server.getsockname()[1]}"

    yield listen
    for each in sockets:
        each.close()


def test_an_address_where_nobody_listens_is_told_at_once(monkeypatch, listener):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    for given in (address, f"ray://{address}"):
        monkeypatch.setenv("RAY_ADDRESS", given)
        with pytest.raises(UserError, match=f"RAY_ADDRESS={given}: no Ray answers there .*unset it to work on this"):
            Session().check()


def test_an_address_of_something_else_is_told(listener):
    with pytest.raises(UserError, match="what answers there is no Ray; expected host:port of a Ray's head"):
        check_address(listener(b"HTTP/1.1 400 Bad Request\r\n"))
    with pytest.raises(UserError, match="what answers there is no Ray"):
        check_address(listener(b""))


def test_an_address_that_does_not_answer_is_told(listener, monkeypatch):
    monkeypatch.setattr("raykd.stages.session.CONNECT_S", 0.2)
    with pytest.raises(UserError, match="no answer within"):
        check_address(listener(None))


@pytest.mark.parametrize("address", ["head", "head:", "head:x", "head:0", "head:99999", "http://head:8265", "[::1]"])
def test_an_address_that_is_none_is_told(address):
    with pytest.raises(UserError, match=r"RAY_ADDRESS=.* expected host:port") as error:
        check_address(address)
    assert f"RAY_ADDRESS={address}" in str(error.value)


def test_an_unknown_host_is_told():
    with pytest.raises(UserError, match=r"RAY_ADDRESS=nowhere\.invalid:6379: no Ray answers there"):
        check_address("nowhere.invalid:6379")


def test_a_ray_that_is_there_is_accepted(ray_cluster):
    import ray

    check_address(ray.get_runtime_context().gcs_address)
    check_address("auto")


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_too_long_for_sockets_is_told_before_ray_is_asked(name, monkeypatch):
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    room = SOCKET_BYTES - len(SOCKET_PATH.format(pid=os.getpid())) - 1
    made = []
    monkeypatch.setattr(os, "makedirs", lambda path, exist_ok: made.append(path))
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    monkeypatch.setenv(name, "/" + "x" * (room - 1))
    check_temporary_folder()
    monkeypatch.setenv(name, "/" + "x" * room)
    with pytest.raises(UserError, match=rf"{name}=/x* is too long for Ray's sockets: 108 bytes.*set RAY_TMPDIR to"):
        check_temporary_folder()
    assert len(made) == 1


def test_the_length_of_a_socket_is_rays_own(ray_cluster):
    import ray

    path = ray._private.worker._global_node.plasma_store_socket_name
    assert len(path.partition("/ray/session_")[2]) == len(SOCKET_PATH.format(pid=os.getpid())) - len("ray/session_")


def test_a_folder_that_cannot_be_written_is_told(monkeypatch):
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:  # short
        monkeypatch.setenv("RAY_TMPDIR", file.name)
        with pytest.raises(UserError, match=f"Ray cannot write into {file.name}; set RAY_TMPDIR"):
            check_temporary_folder()


# ---------------------------------------------------------------- with a Ray


def test_an_error_inside_ray_is_shown_without_rays_traceback(ray_cluster, capsys):
    import ray

    @ray.remote(num_cpus=0)
    def task():
        raise UserError("the pool is empty")

    with pytest.raises(SystemExit), user_errors():
        ray.get(task.remote())
    assert capsys.readouterr().err == "error: the pool is empty\n"


def test_a_ray_that_is_up_is_used_and_left_up(ray_cluster):
    import ray

    before = ray.get_runtime_context().get_node_id()
    with ray_session() as session:
        assert session.is_up
        assert ray.get_runtime_context().get_node_id() == before
    assert ray.is_initialized()


@pytest.fixture
def on_cluster(monkeypatch, settings):
    """What is said at the start of a campaign on a cluster of such nodes."""
    import ray

    from raykd.config import load
    from raykd.stages.resources import check_resources

    def said(nodes, *overrides):
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        monkeypatch.setattr(Session, "ensure", lambda session: None)
        gone = {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}
        monkeypatch.setattr(ray, "nodes", lambda: [gone, *({"Alive": True, "Resources": node} for node in nodes)])
        lines = []
        check_resources(load(settings, overrides), Session(), lambda name, text: lines.append(f"{name} {text}"))
        return lines

    return said


def test_a_cluster_that_is_too_small_as_yet_is_told_in_one_line(on_cluster):
    asked = ("teacher.replicas=[4,8]", "teacher.num_gpus=1", "student.num_workers=[2,9]", "student.num_gpus=1",
             "selection.shards=3", "selection.num_cpus=1", "selection.num_gpus=0.5")  # fmt: skip
    nodes = [{"memory": 1.0}, {"CPU": 8.0, "GPU": 1.0}]  # a head that does no work, and a worker
    (line,) = on_cluster(nodes, *asked)
    assert line.split(maxsplit=1)[0] == "cluster"
    assert "has 8 CPUs and 1 GPUs now, too few: " in line
    assert (
        "teacher asks for 4 x (1 CPUs, 1 GPUs), train asks for 2 x (1 CPUs, 1 GPUs), selection asks for 3 x (1" in line
    )
    assert "predict" not in line  # 1 x (1 CPU, 1 GPU) fits
    assert "autoscaler" in line
    assert on_cluster(nodes * 4, *asked) == []


def test_a_cluster_without_a_node_yet_is_told_too(on_cluster):
    (line,) = on_cluster([{"memory": 1.0}])
    assert "has 0 CPUs and 0 GPUs now" in line
    assert [word for word in ("teacher", "train", "predict", "selection") if word in line] == [
        "teacher", "train", "predict", "selection",
    ]  # fmt: skip


def test_an_actor_that_no_single_node_can_hold_is_told_though_the_sum_would_do(on_cluster):
    (line,) = on_cluster([{"CPU": 4.0}] * 3, "student.num_cpus=6")
    assert "train asks for 1 x (6 CPUs, 0 GPUs), predict asks for 1 x (6 CPUs, 0 GPUs);" in line
    assert on_cluster([{"CPU": 7.0}] * 3, "student.num_cpus=6") == []


def test_ray_datas_own_cpu_counts(on_cluster):
    assert len(on_cluster([{"CPU": 1.0}])) == 1
    assert on_cluster([{"CPU": 2.0}]) == []


def test_what_this_machine_cannot_hold_is_told_without_starting_a_ray(no_ray, settings):
    from raykd.config import load
    from raykd.stages.resources import check_resources

    say = pytest.fail  # nothing is said: it is refused, or fits
    check_resources(load(settings), Session(local_cpus=2), say)
    with pytest.raises(UserError, match="train asks for 3 CPUs, the local Ray has 2; raise local_cpus"):
        check_resources(load(settings, ["student.num_cpus=3"]), Session(local_cpus=2), say)
    assert no_ray == []


def test_gpus_that_this_machine_lacks_are_told(ray_cluster, settings):
    from raykd.config import load
    from raykd.stages.resources import check_resources

    with pytest.raises(UserError, match="teacher asks for 1 GPUs, this machine has 0; set its num_gpus"):
        check_resources(load(settings, ["teacher.num_gpus=1"]), Session(), pytest.fail)


def test_parts_of_a_node_are_not_lost_to_rounding():
    from raykd.stages.resources import room

    assert room([{"CPU": 0.3}], 0.1, 0) == 3
    assert room([{"CPU": 4.0, "GPU": 1.0}], 0.5, 0.25) == 4
    assert room([{"CPU": 4.0}], 0.5, 0.25) == 0


def test_status_shows_done_share_rate_and_time_left():
    line = status("teacher", 250, 1000, "images", 5.0)
    assert " ".join(line.split()) == "teacher 250/1,000 images 25% 50/s 15 s left"
    assert status("teacher", 0, 1000, "images", 5.0).endswith("starting")
    assert "12/min  20 s left" in status("cells", 2, 6, "cells", 10.0)


def test_lines_are_few_and_the_last_one_sums_up(ray_cluster):
    stream = io.StringIO()
    progress = Progress("auto", stream)
    with progress.stage("predict", 100, "images") as ticker:
        ticker.add(100)
    assert progress.mode == "lines"  # no terminal
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("predict            100 images in ")


def test_a_stage_that_fails_does_not_say_that_it_is_done(ray_cluster):
    stream = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Progress("lines", stream).stage("predict", 100):
        raise ValueError("broken")
    assert stream.getvalue() == ""


def test_silent_progress_starts_nothing():
    with Progress("none").stage("predict", 100) as ticker:
        assert ticker == Ticker(None)
        ticker.add(3)


def test_one_process_counts_for_all_stages(ray_cluster):
    import ray

    progress = Progress("lines", io.StringIO())
    with progress.stage("a", 3) as first, progress.stage("b", 9) as second:
        first.add(3)
        second.add(2)
        second.add(4)
        assert first.counter is second.counter
        counts = [ray.get(ticker.counter.get.remote(ticker.stage)) for ticker in (first, second)]
    assert counts == [3, 6]


# ---------------------------------------------------------------- one channel for lines


@pytest.mark.parametrize(("mode", "begin"), [("lines", ""), ("bar", "\r\x1b[K")])
def test_what_modules_log_comes_out_as_lines(mode, begin):
    stream = io.StringIO()
    log = logging.getLogger("raykd.stages.shard_actors")
    with Session(progress=Progress(mode, stream)):
        log.warning("waiting for %d shards", 2)
        log.info("more")
        log.debug("for us")
    log.warning("after the session")
    shown = [f"{begin}shard_actors       waiting for 2 shards", f"{begin}shard_actors       more"]
    assert stream.getvalue().split("\n")[:-1] == shown


def test_who_wants_no_progress_is_still_told_errors():
    stream = io.StringIO()
    progress = Progress("none", stream)
    with progress.listening():
        progress.say("pool", "12 images")
        logging.getLogger("raykd.store.lock").info("waiting")
        logging.getLogger("raykd.store.lock").warning("waiting")
        logging.getLogger("raykd.x").error("lost")
    assert stream.getvalue().split() == ["x", "lost"]


def test_rays_own_lines_are_lines_of_ours_and_retries_are_no_news(ray_cluster):
    from ray._private import worker

    assert inspect.signature(worker.print_to_stdstream).bind({"lines": []}, ignore_prefix=False)  # as Ray calls it
    assert "print_to_stdstream(" in inspect.getsource(worker.listen_error_messages)
    stream = io.StringIO()
    with Progress("lines", stream).listening():
        lines = ["Task ask failed. There are infinite retries remaining, so the task", "1 worker was killed\n by OOM"]
        raylet_lines({"lines": lines, "pid": "raylet"}, ignore_prefix=False)
    assert stream.getvalue() == "session            1 worker was killed by OOM\n"


def test_a_process_that_needs_more_memory_than_any_node_has_is_told_instead_of_waited_for(ray_cluster, tmp_path):
    import ray

    from raykd.stages.progress import Progress
    from raykd.stages.resources import check_memory
    from raykd.stages.work import Work
    from raykd.store.place import Place

    work = Work(place=Place.of(tmp_path), progress=Progress("lines", io.StringIO()), session=Session())
    most = int(max(node["Resources"]["memory"] for node in ray.nodes()))
    check_memory(work, "encode", most)
    with pytest.raises(UserError, match=r"encode asks for .* GiB for a process, and no node has more than"):
        check_memory(work, "encode", most + 2**20)


def test_lines_are_said_while_rays_own_words_are_kept_silent():
    program = """
import os
from raykd.stages.progress import Progress
from raykd.stages.session import silent_stderr
progress = Progress("lines")
with silent_stderr():
    os.write(2, b"noise\\n")
    progress.say("pool", "a line")
os.write(2, b"after\\n")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.split() == ["pool", "a", "line", "after"]
