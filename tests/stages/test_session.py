"""What a user sees when something is wrong, and while something runs."""

import io

import pytest

from raykd.stages.progress import Progress, Ticker, status
from raykd.stages.session import WaitingForLabels, ray_session, user_errors


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
