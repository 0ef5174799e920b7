"""A config for your own images: looks at a folder, and writes one with values that suit it and this machine.

    python jobs/new.py /data/birds --classes birds.txt
    python jobs/new.py /data/birds --classes birds.txt --teacher local-dir:/models/clip --out birds.yaml

FOLDER holds images, a folder a class, Parquet files or tars (WebDataset); or it is such a file, or a list (CSV, TSV,
JSONL) of where images are. Class names come from the folders or labels, else from --classes; without, they are asked
for on a terminal. Nothing is overwritten.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from raykd import cli


def main(argv: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", metavar="FOLDER", help="of the images, local or s3://...; or a Parquet file, tar or list"
    )
    parser.add_argument("--classes", metavar="FILE", help="class names, one a line")
    parser.add_argument(
        "--teacher", metavar="MODEL", help="local-dir:FOLDER, hf-hub:ORG/REPO or open_clip's NAME/WEIGHTS"
    )
    parser.add_argument("--out", metavar="FILE.yaml", type=Path, help="the config (default: the folder's name, here)")
    given = cli.parse_known(parser, argv)
    with cli.user_errors():
        from raykd.new import next_steps, this_machine, write_config

        ask = input if sys.stdin.isatty() else None
        out = write_config(given.folder, given.out, given.classes, given.teacher, this_machine(), ask, print)
        run, look = next_steps(out, sys.argv)
        print(f"\nwritten: {out}\n\nrun     {run}\nsee     {look}")
        return out


if __name__ == "__main__":
    main()
