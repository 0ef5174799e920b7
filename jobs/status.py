"""Where a campaign stands: finished, waiting for what and where, at work on what.

    python jobs/status.py runs/birds
    python jobs/status.py birds.yaml

It ends with a code for each state:

    0  finished
    2  something to mend: no campaign is there, the config is wrong
    3  waiting for labels
    4  running
    5  stopped, failed, or killed: run the campaign's job again
    6  never started

--json prints status.json as it stands; the code is the same.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import NoReturn

from raykd import cli
from raykd.config import load_file
from raykd.store.options import use


def main(argv: Sequence[str] | None = None) -> NoReturn:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", help="the campaign's storage_path, local or s3://...; or its config")
    parser.add_argument("--json", action="store_true", help="print status.json")
    given = cli.parse_known(parser, argv)
    with cli.user_errors():
        where = given.run
        if where.endswith((".yaml", ".yml")):
            config = load_file(where)
            use(config.store.model_dump())
            where = config.storage_path
        from raykd.store.place import Place  # imports Arrow
        from raykd.store.status import read_status, standing

        storage = Place.of(where)
        status = read_status(storage)
        code, lines = standing(storage, status)
        print(json.dumps(status, indent=2, ensure_ascii=False) if given.json else "\n".join(lines))
    sys.exit(code)


if __name__ == "__main__":
    main()
