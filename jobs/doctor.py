"""Whether this cluster and this storage can run a campaign, before a dollar is spent.

    python jobs/doctor.py                          # the cluster alone: RAY_ADDRESS, else a Ray of this machine
    python jobs/doctor.py birds.yaml [--set key.sub=value ...]
    python jobs/doctor.py --preset demo
    python jobs/doctor.py birds.yaml --plan        # and how long it will take, from a probe of 200 images
    ray job submit --working-dir . -- python jobs/doctor.py birds.yaml

The first line says whether it is ready, or what to do first; then a line a check: ok, warn or FAIL, what was found, and
what to do. It ends with 0 when nothing is to be mended, else with 2. With --plan of a campaign that has rounds done, it
says how far off the plan was.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

from raykd import cli
from raykd.config import Config


def run(config: Config | None, with_plan: bool) -> int:
    """All checks, and the plan; the exit code."""
    from raykd.diagnosis import FAIL, first_line
    from raykd.stages.doctor import examine

    findings = examine(config)
    print("\n".join([first_line(findings), *map(str, findings)]), flush=True)
    if any(each.state == FAIL for each in findings):
        return 2
    if config and with_plan:
        from raykd.stages.plan import plan_campaign

        print(plan_campaign(config), flush=True)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    parser = cli.config_parser(__doc__)
    parser.add_argument("--plan", action="store_true", help="also say how long a campaign takes, from a probe")
    given = cli.parse_known(parser, argv)
    with cli.user_errors():
        config = cli.given_config(given)
        if given.plan and config is None:
            parser.error("--plan needs CONFIG.yaml or --preset NAME")
        sys.exit(run(config, given.plan))


if __name__ == "__main__":
    main()
