"""One way of asking for all jobs, and of telling what went wrong.

A job is a function and a line: ``main = cli.campaign_job(run, __doc__)``, or ``cli.step_job`` with a model of its
options. Nothing heavy (Ray, torch, Arrow) is imported before what was asked for is known to be good, so jobs import it
inside ``run``.

Exit codes: 0 done, or people are waited for (``--waiting-code`` gives that another; ``status.json`` in the campaign's
folder says which); 2 something to mend; 130 and 143 interrupted and stopped; 1 a mistake of raykd's own, with its
traceback.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError

from raykd.config import Config, Section, load_file
from raykd.errors import AGAIN, UserError, WaitingForLabels, did_you_mean, for_the_reader
from raykd.presets import PRESETS, load_preset
from raykd.store.options import use

Options = TypeVar("Options", bound=Section)
Result = TypeVar("Result")

POSITIONAL: dict[str, Any] = {"positional": True}
"""``run: str = Field(description="...", json_schema_extra=POSITIONAL)`` is an argument without a name in front."""

TAKEN = (1, 2, 130, 143)  # exit codes that mean something else


def campaign_job(run: Callable[[Config], Result], doc: str | None) -> Callable[..., Result]:
    """The ``main`` of a job that runs a campaign.

    Args:
        run: The job, from a checked config to its results.
        doc: What ``--help`` says first.

    Returns:
        ``main(argv)``, with ``sys.argv`` when nothing is given. Returns what ``run`` does; ends the process
        (SystemExit) for all that a user can mend.
    """

    def main(argv: Sequence[str] | None = None) -> Result:
        with user_errors():
            config, waiting_code = campaign_config(argv, doc)
        with user_errors(waiting_code):
            return run(config)

    return main


def step_job(run: Callable[[Options], Result], model: type[Options], doc: str | None) -> Callable[..., Result]:
    """The ``main`` of a job that does a single step: an option for every field of the model.

    Args:
        run: The job, from checked options to its results.
        model: The options; ``num_gpus: int = Field(0, description="...")`` is ``--num-gpus``.
        doc: What ``--help`` says first.

    Returns:
        ``main(argv)``, as :func:`campaign_job`.
    """

    def main(argv: Sequence[str] | None = None) -> Result:
        with user_errors():
            return run(options(argv, model, doc))

    return main


# ---------------------------------------------------------------- from arguments to values


def campaign_config(argv: Sequence[str] | None = None, doc: str | None = None) -> tuple[Config, int]:
    """``CONFIG.yaml`` or ``--preset NAME``, then any number of ``--set key.sub=value ...``; and ``--waiting-code``.

    Returns:
        The config, and the exit code of a job that waits for labels.

    Raises:
        UserError: As :func:`raykd.config.load_file` says.
        SystemExit: 2, and the usage: no config or two, an unknown option.
    """
    parser = config_parser(doc)
    parser.add_argument(
        "--waiting-code",
        type=int,
        default=0,
        metavar="N",
        help="exit code when labels are waited for (default: 0, as a job that fails would be tried again)",
    )
    given = parse_known(parser, argv)
    if given.waiting_code not in range(256) or given.waiting_code in TAKEN:
        taken = ", ".join(map(str, TAKEN))
        parser.error(f"--waiting-code {given.waiting_code}: expected 0 to 255, but {taken}, which mean something else")
    if (config := given_config(given)) is None:
        parser.error("give CONFIG.yaml (before --set) or --preset NAME")
    return config, given.waiting_code


def config_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser of ``CONFIG.yaml`` or ``--preset NAME``, and ``--set``; :func:`given_config` takes what it reads."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("config", nargs="?", metavar="CONFIG.yaml", help="the campaign's configuration")
    what.add_argument("--preset", metavar="NAME", help=f"a configuration that comes with raykd: {', '.join(PRESETS)}")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key.sub=value",
        help="overrides; python -m raykd.config lists all",
    )
    return parser


def given_config(given: argparse.Namespace) -> Config | None:
    """The config that was asked for; None: none was. From then on this process opens object stores as it says.

    Raises:
        UserError: As :func:`raykd.config.load_file` says.
    """
    if given.preset is None and given.config is None:
        return None
    config = load_preset(given.preset, given.set) if given.preset else load_file(given.config, given.set)
    use(config.store.model_dump())
    return config


def options(argv: Sequence[str] | None, model: type[Options], doc: str | None = None) -> Options:
    """The options of a model, from the command line.

    Raises:
        UserError: A value that is none; one line each, with the option's name.
        SystemExit: 2, and the usage: an option is missing or unknown.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    required = []
    for name, spec in model.model_fields.items():
        flag, words = f"--{name.replace('_', '-')}", (spec.description or "").replace("%", "%%")
        if spec.json_schema_extra == POSITIONAL:
            parser.add_argument(name, metavar=name.upper(), help=words)
            continue
        if spec.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=words)
            continue
        if spec.is_required():
            required.append(flag)
            words += " (required)"
        elif spec.default is not None:
            words += f" (default: {spec.default})"
        known = get_args(spec.annotation) if get_origin(spec.annotation) is Literal else ()
        metavar = "{" + ",".join(map(str, known)) + "}" if known else None
        parser.add_argument(flag, default=argparse.SUPPRESS, metavar=metavar, help=words)
    given = vars(parse_known(parser, argv))
    if missing := [flag for flag in required if flag[2:].replace("-", "_") not in given]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    kinds = {name: (spec.annotation, *get_args(spec.annotation)) for name, spec in model.model_fields.items()}
    given = {name: value if str in kinds[name] else as_list(value) for name, value in given.items()}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise UserError("\n".join(map(_explain, error.errors()))) from None


def as_list(value: Any) -> Any:
    """``[1, 8]`` as a config has it; anything else as it is."""
    if isinstance(value, str) and value.startswith("["):
        with suppress(ValueError):
            return json.loads(value)
    return value


def parse_known(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; ends with the usage and the nearest known name when there are more than the parser knows."""
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
        first = unknown[0].partition("=")[0] if unknown[0].startswith("-") else unknown[0]
        hint = did_you_mean(first, flags)
        if "=" in unknown[0] and not unknown[0].startswith("-") and "--set" in flags:
            hint = f"did you mean --set {unknown[0]}?"
        parser.error(f"unknown argument {first!r}; {hint}")
    return given


def _explain(problem: Any) -> str:
    """One line; a problem with all options together has no name of its own, and its message says whose it is."""
    message = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    return f"--{str(problem['loc'][0]).replace('_', '-')}: {message} (given: {problem['input']!r})"


# ---------------------------------------------------------------- when something is wrong


class Stopped(KeyboardInterrupt):
    """The process was asked to end by a signal; ``ray job stop`` sends SIGTERM."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


@contextmanager
def user_errors(waiting_code: int = 0) -> Iterator[None]:
    """End the process for what a user can mend: one message, no traceback, exit code 2.

    When labels are waited for, that is said, and the exit code is ``waiting_code``.

    ``RAYKD_DEBUG=1`` shows the traceback too. Anything else is our mistake and stays as it is.
    """
    try:
        with stopped_by_signals():
            yield
    except WaitingForLabels as wait:
        print(wait, flush=True)
        sys.exit(waiting_code)
    except KeyboardInterrupt as stop:
        if isinstance(stop, Stopped):
            sys.exit(stop.code)
        print(f"\ninterrupted; {AGAIN}", file=sys.stderr, flush=True)
        sys.exit(130)
    except Exception as error:
        if (words := for_the_reader(error)) is None:
            raise
        if os.environ.get("RAYKD_DEBUG"):
            traceback.print_exc()
        print(f"error: {words}", file=sys.stderr, flush=True)
        sys.exit(2)


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP raise :class:`Stopped` in it, so that it is left in good order.

    Only in the main thread, as only there signals arrive. A signal that is ignored (``nohup``) stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # a second one would cut off the cleaning up
        with suppress(RuntimeError, OSError):  # in the middle of another print; a terminal that is gone
            print(f"stopped; {AGAIN}", file=sys.stderr, flush=True)  # at once: ray job stop kills 3 s later
        raise Stopped(number)

    before = {
        each: handler
        for each in (signal.SIGTERM, signal.SIGHUP)
        if (handler := signal.getsignal(each)) is not signal.SIG_IGN
    }
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
