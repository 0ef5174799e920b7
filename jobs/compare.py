"""Simulated arms against each other: a page, a plot and tables of what the seeds show.

    python jobs/compare.py RESULTS [RESULTS ...] [--out FOLDER] [--claims]

RESULTS is the results_path of jobs/simulate.py. comparison.html, comparison.md and comparison.png are written into the
first one, or into --out. Several folders are several sets of one comparison; from three sets on, arms that all of them
have are ranked. --claims prints what the arms say of the papers' claims, as Markdown.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence

from raykd import cli

INSTALL = "pip install 'raykd[plot]'"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", metavar="RESULTS", help="results_path of a simulation")
    parser.add_argument("--out", metavar="FOLDER", help="where the page goes; left out: the first RESULTS")
    parser.add_argument("--claims", action="store_true", help="print the papers' claims as a table")
    given = cli.parse_known(parser, argv)
    with cli.user_errors():
        from raykd.report.claims import claim_table
        from raykd.report.comparison_page import write_comparison
        from raykd.report.comparison_words import leaders, num_seeds
        from raykd.store.place import Place

        folders = [Place.of(each) for each in given.results]
        out = Place.of(given.out) if given.out else folders[0]
        sets = write_comparison(folders, out)
        if given.claims:
            print(claim_table(sets))
            return
        for found in sets:
            print(f"{found.name}, {num_seeds(found)} seeds: {leaders(found)}")
        plot = importlib.util.find_spec("matplotlib") is not None
        print(f"\npage: {out / 'comparison.html'}" + ("" if plot else f"; no plot without matplotlib: {INSTALL}"))


if __name__ == "__main__":
    main()
