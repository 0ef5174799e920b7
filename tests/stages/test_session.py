"""What a user sees when something is wrong, and while something runs."""

import io

import pytest

from raykd.errors import WaitingForLabels
from raykd.stages.progress import Progress, Ticker, status
from raykd.stages.session import ray_session, user_errors


@pytest.mark.parametrize(
    ("problem", "code", "shown"),
    [
        (ValueError("budget is 0; expected at least 1"), 2, "error: budget is 0; expected at least 1\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; run the same command again to go on\n"),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_an_exit_code(problem, code, shown, capsys):
    with pytest.raises(SystemExit) as end, user_errors():
        raise problem
    assert end.value.code == code
    assert capsys.readouterr().err == shown


def test_waiting_for_people_is_no_failure(capsys):
    with pytest.raises(SystemExit) as end, user_errors():
        raise WaitingForLabels("fill in tasks.csv")
    assert end.value.code == 0
    assert capsys.readouterr().out.splitlines()[-1] == "fill in tasks.csv"


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), user_errors():
        raise ZeroDivisionError


def test_an_error_inside_ray_is_shown_without_rays_traceback(ray_cluster, capsys):
    import ray

    @ray.remote(num_cpus=0)
    def task():
        raise ValueError("the pool is empty")

    with pytest.raises(SystemExit), user_errors():
        ray.get(task.remote())
    assert capsys.readouterr().err == "error: the pool is empty\n"


def test_a_ray_that_is_up_is_used_and_left_up(ray_cluster):
    import ray

    before = ray.get_runtime_context().get_node_id()
    with ray_session():
        assert ray.get_runtime_context().get_node_id() == before
    assert ray.is_initialized()


@pytest.fixture
def on_cluster(monkeypatch, settings):
    """What is said at the start of a campaign on a cluster of such nodes."""
    import ray

    from raykd.config import load
    from raykd.stages.campaign import check_resources

    def said(nodes, *overrides):
        monkeypatch.setenv("RAY_ADDRESS", "auto")
        gone = {"Alive": False, "Resources": {"CPU": 1000.0, "GPU": 1000.0}}
        monkeypatch.setattr(ray, "nodes", lambda: [gone, *({"Alive": True, "Resources": node} for node in nodes)])
        stream = io.StringIO()
        check_resources(load(settings, overrides), Progress("lines", stream))
        return stream.getvalue().splitlines()

    return said


def test_a_cluster_that_is_too_small_as_yet_is_told_in_one_line(on_cluster):
    asked = ("teacher.replicas=[4,8]", "teacher.num_gpus=1", "student.num_workers=2", "student.num_gpus=1",
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


def test_parts_of_a_node_are_not_lost_to_rounding():
    from raykd.stages.campaign import room

    assert room([{"CPU": 0.3}], 0.1, 0) == 3
    assert room([{"CPU": 4.0, "GPU": 1.0}], 0.5, 0.25) == 4
    assert room([{"CPU": 4.0}], 0.5, 0.25) == 0


def test_status_shows_done_share_rate_and_time_left():
    line = status("teacher", 250, 1000, "images", 5.0)
    assert " ".join(line.split()) == "teacher 250/1,000 images 25% 50/s 15 s left"
    assert status("teacher", 0, 1000, "images", 5.0).endswith("starting")


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
