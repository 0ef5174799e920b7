"""Run by test_lost_requests.py under ``RAY_testing_rpc_failure``: the picks of each strategy, by number of shards.

python tests/cluster/picks_when_requests_are_lost.py FOLDER SHARDS...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raykd.algo.selection import kcenter
from raykd.config import STRATEGY_NAMES
from raykd.stages.pick_tables import Request, check_request, pick_from_tables
from raykd.stages.session import ray_session

ROWS, CLASSES, WIDTH, LABELED, BUDGET = 300, 6, 8, 12, 12


def write_tables(folder: Path) -> tuple[str, str]:
    draw = np.random.default_rng(0)
    probs_NC = draw.dirichlet(np.full(CLASSES, 0.3), ROWS + LABELED).astype(np.float32)
    features_ND = draw.normal(size=(ROWS + LABELED, WIDTH)).astype(np.float32)
    ids = [f"{i:05d}" for i in draw.permutation(ROWS + LABELED)]
    table = pa.table({"sample_id": ids, "probs": list(probs_NC), "features": list(features_ND)})
    labeled = table.slice(0, LABELED)
    labeled = labeled.append_column("label", pa.array(np.arange(LABELED) % CLASSES))
    pq.write_table(table.slice(LABELED), folder / "pool.parquet", row_group_size=50)
    pq.write_table(labeled, folder / "labeled.parquet")
    return str(folder / "pool.parquet"), str(folder / "labeled.parquet")


def main(folder: Path, shards: list[int]) -> None:
    kcenter.SMALL_PRODUCTS = kcenter.CANDIDATES_PER_PICK = kcenter.FEWEST_CANDIDATES = 0  # as large pools: shards are
    kcenter.SPARE = 3  # asked for a few rows at a time, and often
    pool, labeled = write_tables(folder)
    found: dict[str, dict[int, list[str]]] = {}
    with ray_session(local_cpus=8):
        for strategy in STRATEGY_NAMES:
            request = Request(pool=pool, labeled=labeled, strategy=strategy, budget=BUDGET, seed=3)
            checked = check_request(request)
            found[strategy] = {
                number: [str(name) for name in pick_from_tables(checked, number).ids] for number in shards
            }
    print("PICKS " + json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
