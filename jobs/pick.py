"""Choose what to label, for people who already have probabilities.

    python jobs/pick.py --pool P.parquet --labeled L.parquet --strategy pcoreset --budget 1000 --shards 8 --seed 0 \\
        --out picks.parquet

P has ``sample_id`` and ``probs`` (list of C numbers) and, for strategies that look at them, ``features``; L has the
same and ``label`` (a class index), and may be left out. The output has ``sample_id``, ``rank`` (0-based, in the order
picked) and ``distance`` (NaN where it means nothing). Paths may be local, s3:// or gs://. The picks do not depend on
``--shards``, ``--memory-gib`` and ``--num-gpus``.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from raykd import cli
from raykd.config import StrategySection
from raykd.errors import UserError

if TYPE_CHECKING:
    from raykd.algo.selection.kcenter import Picked


class Options(StrategySection):
    """What to pick from what."""

    pool: str = Field(description="Parquet file or folder: the unlabeled rows")
    labeled: str | None = Field(None, description="Parquet file or folder: the labeled rows; left out: none yet")
    budget: int = Field(description="how many rows to pick")
    seed: int = Field(0, description="of random draws")
    space: Literal["probs", "raw"] = Field("probs", description="raw: probs may be any vectors")
    max_duplicates: int | None = Field(None, description="at most so many picks that are near-duplicates; else any")
    duplicate_cosine: float | None = Field(None, description="near-duplicates from this cosine on; else equal ones")
    duplicate_column: str = Field("features", description="features or probs")
    shards: int = Field(8, description="Ray actors that hold the pool")
    num_gpus: float = Field(0, description="GPUs of each shard")
    precision: Literal["fp32", "fp16"] = Field("fp32", description="fp16: half the memory, rounded")
    memory_gib: float | None = Field(None, description="a shard with larger vectors maps them from a file")
    stall_s: float = Field(1800, gt=0, description="seconds that shards wait for room on a cluster")
    out: str = Field(description="Parquet file to write; never overwritten")

    @model_validator(mode="after")
    def _there_is_a_cap_to_say_more_of(self) -> Options:
        if self.max_duplicates is None and (self.duplicate_cosine is not None or self.duplicate_column != "features"):
            raise UserError("--duplicate-cosine and --duplicate-column say what --max-duplicates counts; give that too")
        return self


def run(options: Options) -> Picked:
    """Pick, and write the picks."""
    from raykd.algo.selection.near_duplicates import Cap
    from raykd.stages.pick_tables import Request, check_request, pick_from_tables, picks_table
    from raykd.stages.progress import Progress
    from raykd.stages.session import ray_session
    from raykd.store.place import Place

    out, cap = Place.of(options.out), None
    if out.exists():
        raise UserError(f"{out} exists; give another --out, nothing is overwritten")
    if options.max_duplicates is not None:
        cap = Cap(limit=options.max_duplicates, cosine=options.duplicate_cosine, column=options.duplicate_column)
    same = options.model_dump(
        include={"pool", "labeled", "strategy", "balance", "budget", "seed", "space", "precision", "memory_gib"}
    )
    checked = check_request(Request(cap=cap, options=options.options, **same))
    out.check_writable()
    with ray_session(progress=Progress()):
        started = time.perf_counter()
        picks = pick_from_tables(checked, options.shards, num_gpus=options.num_gpus, stall_s=options.stall_s)
        seconds = time.perf_counter() - started
    out.write_table(picks_table(picks))

    num_rows, labeled = Place.of(options.pool).parquet().count_rows(), checked.labeled
    work = f" (rounds: {picks.rounds}, rows refreshed: {picks.refreshed:,})" if picks.rounds else ""
    print(
        f"{options.strategy}: {len(picks.ids):,} of {num_rows:,} rows, {len(labeled):,} labeled, {seconds:.1f} s{work}"
    )
    known = [distance for distance in picks.distances if math.isfinite(distance)]
    print(f"distance {known[0]:.4g} (first) to {known[-1]:.4g} (last); {out}" if known else f"{out}")
    return picks


main = cli.step_job(run, Options, __doc__)

if __name__ == "__main__":
    main()
