"""What is asked for on a command line, what it costs to ask wrongly, and how a job ends when something is wrong."""

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
import yaml
from pydantic import Field

from raykd import cli
from raykd.config import Section
from raykd.errors import UserError, WaitingForLabels

ROOT = Path(__file__).parents[2]
HEAVY = {"ray", "torch", "torchvision", "timm", "open_clip", "faiss", "numpy", "pyarrow", "PIL", "sklearn"}


@pytest.fixture
def campaign(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "storage_path": "runs/x",
                "pool": {"path": "images", "format": "class_folders"},
                "teacher": {"model": "ViT-B-32", "pretrained": "openai"},
                "student": {"backbone": "resnet18", "steps": 10},
            }
        )
    )
    return str(path)


# ---------------------------------------------------------------- nothing heavy before it is known what is wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["jobs/active_round.py", "--help"], 0, "--preset NAME"),
        (["jobs/active_round.py", "nowhere.yaml"], 2, "error: no config file 'nowhere.yaml'"),
        (["jobs/active_round.py", "--preset", "imagenet", "--set", "rouns=3"], 2, "error: rouns: unknown key"),
        (["jobs/active_round.py", "--preset", "demo", "--set", "selection.strategy=pcorset"], 2, "'pcoreset'?"),
        (["jobs/active_round.py", "--preset", "dema"], 2, "error: unknown preset 'dema'; did you mean 'demo'?"),
        (["jobs/pick.py", "--help"], 0, "--duplicate-cosine"),
        (["jobs/pick.py", "--buget", "3"], 2, "unknown argument '--buget'; did you mean '--budget'?"),
        (["jobs/pick.py", "--pool", "p", "--out", "o", "--budget", "1", "--strategy", "x"], 2, "unknown strategy 'x'"),
        (["jobs/score.py", "--help"], 0, "--label-column"),
        (["jobs/predict.py", "--help"], 0, "--top TOP"),
        (["jobs/predict.py", "--model", "m", "--pool", "p", "--out", "o", "--top", "-1"], 2, "--top: "),
        (["jobs/status.py", "--help"], 0, "3  waiting for labels"),
        (["jobs/status.py", "nowhere.yaml"], 2, "error: no config file 'nowhere.yaml'"),
        (["-m", "raykd.config"], 0, "student.learning_rate"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_and_mistakes_import_nothing_heavy(arguments, code, said):
    watched = [sys.executable, "-X", "importtime", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(watched, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    lines = done.stderr.splitlines()
    imported = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    assert done.returncode == code
    assert said in done.stdout + "\n".join(line for line in lines if not line.startswith("import time:"))
    assert {"yaml", "pydantic"} <= imported  # so it is seen what is imported
    assert not imported & HEAVY


# ---------------------------------------------------------------- a campaign


def test_the_command_line_takes_a_file_and_overrides(campaign):
    given, code = cli.campaign_config([campaign, "--set", "rounds=3", "seed=4", "--set", "student.steps=8"])
    assert code == 0
    assert (given.rounds, given.seed, given.student.steps) == (3, 4, 8)


def test_the_command_line_takes_a_preset_and_has_no_effect(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli.campaign_config(["--preset", "demo", "--set", "rounds=2"])[0].rounds == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give CONFIG.yaml (before --set) or --preset NAME"),
        (["--set", "rounds=3", "a.yaml"], "give CONFIG.yaml (before --set) or --preset NAME"),
        (["a.yaml", "--preset", "demo"], "not allowed with"),
        (["a.yaml", "--sets", "x=1"], "unknown argument '--sets'; did you mean '--set'?"),
        (["a.yaml", "--waiting-code", "2"], "--waiting-code 2: expected 0 to 255, but 1, 2, 130, 143"),
        (["a.yaml", "--waiting-code", "256"], "expected 0 to 255"),
        (["a.yaml", "--waiting-code", "x"], "invalid int value: 'x'"),
        (["a.yaml", "rounds=3"], "unknown argument 'rounds=3'; did you mean --set rounds=3?"),
    ],
)
def test_the_command_line_wants_one_config(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.campaign_config(arguments)
    assert stop.value.code == 2
    assert "usage:" in (err := capsys.readouterr().err)
    assert said in err


def test_main_gives_what_the_job_returns(campaign):
    main = cli.campaign_job(lambda config: [config.rounds], "A job.")
    assert main([campaign, "--set", "rounds=7"]) == [7]


# ---------------------------------------------------------------- a single step


class Options(Section):
    """Of a step."""

    pool: str = Field(description="where 100% of the rows are")
    num_rows: int = Field(3, description="how many")
    share: float | None = Field(None, description="of all")
    kind: Literal["a", "b"] = Field("a", description="which")
    quiet: bool = Field(False, description="say nothing")
    range: int | tuple[int, int] = Field(1, description="one or two")


def test_every_field_is_an_option_with_its_default():
    assert cli.options(["--pool", "p"], Options) == Options(pool="p")
    given = cli.options(["--pool", "p", "--num-rows", "-4", "--share=0.5", "--kind", "b", "--quiet"], Options)
    assert given == Options(pool="p", num_rows=-4, share=0.5, kind="b", quiet=True)
    assert cli.options(["--pool", "p", "--no-quiet"], Options).quiet is False
    assert cli.options(["--pool", "[1, 2]", "--range", "[1, 2]"], Options) == Options(pool="[1, 2]", range=(1, 2))
    assert cli.options(["--pool", "[x", "--range", "2"], Options).range == 2


def test_help_shows_every_option_with_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit):
        cli.options(["--help"], Options, "What the job does.")
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "What the job does.",
        "--pool POOL where 100% of the rows are (required)",
        "--num-rows NUM_ROWS how many (default: 3)",
        "--kind {a,b} which (default: a)",
        "--share SHARE of all",
    ):
        assert words in said


def test_what_is_missing_or_unknown_is_told_with_the_usage(capsys):
    for arguments, words in (
        ([], "the following arguments are required: --pool"),
        (["--pool", "p", "--num-row-s", "3"], "unknown argument '--num-row-s'; did you mean '--num-rows'?"),
        (["--pool", "p", "stray"], "unknown argument 'stray'; known: --help, --kind"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.options(arguments, Options)
        assert stop.value.code == 2
        assert words in capsys.readouterr().err


def test_every_value_that_is_none_is_told_a_line_each():
    with pytest.raises(UserError) as error:
        cli.options(["--pool", "", "--num-rows", "x", "--kind", "c", "--share", "inf"], Options)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["--pool", "--num-rows", "--share", "--kind"]
    assert "(given: 'x')" in lines[1]
    assert "'a' or 'b'" in lines[3]


# ---------------------------------------------------------------- how a job ends


def ended(problem):
    with pytest.raises(SystemExit) as end, cli.user_errors():
        raise problem
    return end.value.code


@pytest.mark.parametrize(
    ("problem", "code", "shown"),
    [
        (UserError("budget is 0; expected at least 1"), 2, "error: budget is 0; expected at least 1\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; run the same command again to go on\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/x"),
            2,
            "error: cannot write or read /data/x: no space left; free some, then run the same command again to go on\n",
        ),
        (
            OSError(errno.ENOSPC, "Error writing bytes"),  # as Arrow says it
            2,
            "error: cannot write or read a file ([Errno 28] Error writing bytes): no space left; free some, then run "
            "the same command again to go on\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/data/x"),
            2,
            "error: cannot write or read /data/x: no permission; grant it, then run the same command again to go on\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_message_and_an_exit_code(problem, code, shown, capsys):
    assert ended(problem) == code
    assert capsys.readouterr().err == shown


def test_waiting_for_people_is_no_failure_unless_another_code_is_asked_for(campaign, capsys):
    def wait(config):
        raise WaitingForLabels("fill in tasks.csv")

    main = cli.campaign_job(wait, "A job.")
    for more, code in ([], 0), (["--waiting-code", "75"], 75):
        with pytest.raises(SystemExit) as end:
            main([campaign, *more])
        assert end.value.code == code
        assert capsys.readouterr().out == "fill in tasks.csv\n"


@pytest.mark.parametrize("mistake", [ZeroDivisionError(), ValueError("not enough values"), FileNotFoundError(2, "no")])
def test_our_own_mistakes_keep_their_traceback(mistake):
    with pytest.raises(type(mistake)), cli.user_errors():
        raise mistake


def test_an_error_from_afar_is_told_as_it_was_raised(capsys):
    """As Ray wraps them: an error of its own, with what was raised as its cause."""

    class TaskError(UserError):
        cause = UserError("the pool is empty")

    assert ended(TaskError("a long traceback")) == 2
    assert capsys.readouterr().err == "error: the pool is empty\n"


def test_the_traceback_is_there_for_who_asks(monkeypatch, capsys):
    monkeypatch.setenv("RAYKD_DEBUG", "1")
    ended(UserError("no"))
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_block_in_good_order_and_a_second_does_not_cut_that_off(number, capsys):
    ours = signal.signal(number, signal.SIG_DFL)  # where tests run in the background it may be ignored
    before = signal.getsignal(number)
    cleaned = []

    @contextmanager
    def cleaning():
        try:
            yield
        finally:
            signal.raise_signal(number)
            cleaned.append(capsys.readouterr().err)

    with pytest.raises(SystemExit) as end, cli.user_errors(), cleaning():
        signal.raise_signal(number)
    assert end.value.code == 128 + number
    assert cleaned == ["stopped; run the same command again to go on\n"]  # said before what takes time
    assert capsys.readouterr().err == ""
    assert signal.getsignal(number) is before
    signal.signal(number, ours)


def test_a_signal_that_is_ignored_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with cli.user_errors():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_outside_of_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with cli.user_errors():
            seen.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
