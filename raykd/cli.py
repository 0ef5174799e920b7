"""One way of asking for all jobs, and of telling what went wrong.

A job is a function and a line: ``main = cli.campaign_job(run, __doc__)``. Nothing heavy (Ray, torch, Arrow) is imported
before what was asked for is known to be good, so jobs import it inside ``run``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from raykd.config import Config, load_file
from raykd.presets import PRESETS, load_preset


def campaign_config(argv: Sequence[str] | None = None, doc: str = "") -> Config:
    """``CONFIG.yaml`` or ``--preset NAME``, then any number of ``--set key.sub=value ...``.

    Raises:
        UserError: As :func:`raykd.config.load_file` says.
        SystemExit: 2, and the usage: no or two configs, an unknown option.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
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
    given = parser.parse_args(argv)
    return load_preset(given.preset, given.set) if given.preset else load_file(given.config, given.set)
