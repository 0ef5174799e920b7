"""Choose what to label, for people who already have probabilities.

    python jobs/pick.py --pool P.parquet --labeled L.parquet --strategy pcoreset --budget 1000 --shards 8 --seed 0 \\
        --out picks.parquet

P has ``sample_id`` and ``probs`` (list of C numbers) and, for coreset and badge, ``features``; L has the same and
``label`` (a class index), and may be left out. The output has ``sample_id``, ``rank`` (0-based, in the order picked)
and ``distance`` (NaN where it means nothing). Paths may be local, s3:// or gs://. The picks do not depend on
``--shards``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from raykd.algo.strategies import STRATEGIES
from raykd.stages.selection import check_request, pick_from_tables
from raykd.stages.session import ray_session, user_errors
from raykd.storage import Place


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", required=True, help="Parquet file or folder: the unlabeled rows")
    parser.add_argument("--labeled", help="Parquet file or folder: the labeled rows; left out: none yet")
    parser.add_argument("--strategy", default="pcoreset", help=f"one of {', '.join(sorted(STRATEGIES))}")
    parser.add_argument("--budget", type=int, required=True, help="how many rows to pick")
    parser.add_argument("--shards", type=int, default=8, help="Ray actors that hold the pool (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of random draws (default: 0)")
    parser.add_argument("--out", required=True, help="Parquet file to write; never overwritten")
    args = parser.parse_args(argv)
    out = Place.of(args.out)

    with user_errors():
        if out.exists():
            raise ValueError(f"{out} exists; give another --out, nothing is overwritten")
        _, labeled = check_request(args.pool, args.labeled, args.strategy, args.budget)
        with ray_session():
            started = time.perf_counter()
            picks = pick_from_tables(args.pool, args.labeled, args.strategy, args.budget, args.shards, args.seed)
            seconds = time.perf_counter() - started
        out.write_table(picks)

    first, last = (picks["distance"][row].as_py() for row in (0, -1))
    num_rows = Place.of(args.pool).parquet().count_rows()
    print(f"{args.strategy}: {len(picks):,} of {num_rows:,} rows, {len(labeled):,} labeled, {seconds:.1f} s")
    print(f"distance {first:.4g} (first) to {last:.4g} (last); {out}")


if __name__ == "__main__":
    main()
