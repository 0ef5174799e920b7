"""Choose what to label, for people who already have probabilities.

    python jobs/pick.py --pool P.parquet --labeled L.parquet --strategy pcoreset --budget 1000 --shards 8 --seed 0 \\
        --out picks.parquet

P has ``sample_id`` and ``probs`` (list of C numbers) and, for coreset and badge, ``features``; L has the same and
``label`` (a class index), and may be left out. The output has ``sample_id``, ``rank`` (0-based, in the order picked)
and ``distance`` (NaN where it means nothing). Paths may be local, s3:// or gs://. The picks do not depend on
``--shards``, ``--memory-gib`` and ``--num-gpus``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from raykd.algo.selection.near_duplicates import Cap
from raykd.algo.selection.strategies import names
from raykd.stages.pick_tables import Request, check_request, pick_from_tables, picks_table
from raykd.stages.session import ray_session, user_errors
from raykd.store.place import Place


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", required=True, help="Parquet file or folder: the unlabeled rows")
    parser.add_argument("--labeled", help="Parquet file or folder: the labeled rows; left out: none yet")
    parser.add_argument("--strategy", default="pcoreset", help=f"one of {', '.join(names())}")
    parser.add_argument("--budget", type=int, required=True, help="how many rows to pick")
    parser.add_argument("--seed", type=int, default=0, help="of random draws (default: 0)")
    parser.add_argument("--space", choices=["probs", "raw"], default="probs", help="raw: probs may be any vectors")
    parser.add_argument(
        "--max-duplicates", type=int, help="at most so many picks that are near-duplicates (default: any)"
    )
    parser.add_argument(
        "--duplicate-cosine", type=float, help="near-duplicates from this cosine on (default: equal ones)"
    )
    parser.add_argument("--duplicate-column", default="features", help="features or probs (default: features)")
    parser.add_argument("--shards", type=int, default=8, help="Ray actors that hold the pool (default: 8)")
    parser.add_argument("--num-gpus", type=float, default=0, help="GPUs of each shard (default: 0)")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32", help="fp16: half the memory, rounded")
    parser.add_argument("--memory-gib", type=float, help="a shard with larger vectors maps them from a file")
    parser.add_argument("--out", required=True, help="Parquet file to write; never overwritten")
    args = parser.parse_args(argv)
    out = Place.of(args.out)

    with user_errors():
        if out.exists():
            raise ValueError(f"{out} exists; give another --out, nothing is overwritten")
        cap = None
        if args.max_duplicates is None and (args.duplicate_cosine is not None or args.duplicate_column != "features"):
            raise ValueError(
                "--duplicate-cosine and --duplicate-column say what --max-duplicates counts; give that too"
            )
        if args.max_duplicates is not None:
            cap = Cap(limit=args.max_duplicates, cosine=args.duplicate_cosine, column=args.duplicate_column)
        request = Request(
            pool=args.pool,
            labeled=args.labeled,
            strategy=args.strategy,
            budget=args.budget,
            seed=args.seed,
            cap=cap,
            space=args.space,
            precision=args.precision,
            memory_gib=args.memory_gib,
        )
        checked = check_request(request)
        with ray_session():
            started = time.perf_counter()
            picks = pick_from_tables(checked, args.shards, num_gpus=args.num_gpus)
            seconds = time.perf_counter() - started
        out.write_table(picks_table(picks))

    num_rows, labeled = Place.of(args.pool).parquet().count_rows(), checked.labeled
    work = f" (rounds: {picks.rounds}, rows refreshed: {picks.refreshed:,})" if picks.rounds else ""
    print(f"{args.strategy}: {len(picks.ids):,} of {num_rows:,} rows, {len(labeled):,} labeled, {seconds:.1f} s{work}")
    print(f"distance {picks.distances[0]:.4g} (first) to {picks.distances[-1]:.4g} (last); {out}")


if __name__ == "__main__":
    main()
