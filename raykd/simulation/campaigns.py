"""Cells that are whole campaigns: of students that are trained on images. Each is a process of its own, one at a time.

Their encoded images are in one cache, so the teacher looks at the pool once.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from raykd.errors import UserError
from raykd.simulation.definition import OracleConfig, SetConfig
from raykd.store.outputs import RoundFigures, read_metrics, round_place
from raykd.store.place import Place


def check_campaign_cell(arm: str, sets: Mapping[str, SetConfig], oracle: OracleConfig, tables: str | None) -> None:
    """Whether an arm whose student sees images can be run: a campaign knows the pool as it is, and right answers.

    Raises:
        UserError: It cannot; says what would do.
    """
    frozen = "give it student.backbone: frozen"
    if tables:
        raise UserError(f"arm {arm!r}: its student is trained on images, and tables have none; {frozen}")
    if odd := next((name for name, images in sets.items() if images != SetConfig()), None):
        raise UserError(
            f"arm {arm!r}: its student is trained on images, of the whole pool, and set {odd!r} is a part of it; "
            f"{frozen}, or leave the set out"
        )
    if oracle.kind != "perfect" or oracle.price_per_class:
        what = f"kind: {oracle.kind}" if oracle.kind != "perfect" else "price_per_class"
        raise UserError(f"arm {arm!r}: oracle.{what} is for frozen students alone; {frozen}")


def run_campaign(job: Path, values: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Run, or go on with, a campaign in a process of its own, until it is finished.

    Args:
        job: ``jobs/active_round.py``.
        values: Of its config, all of them.
        say: Called with a line that says that it begins.

    Raises:
        UserError: It has failed; why stands in its own lines, which come out on standard error.
    """
    place = Place.of(values["storage_path"])
    say(f"a campaign in {place}")
    with tempfile.TemporaryDirectory(prefix="raykd-cell-") as folder:
        file = Path(folder) / "campaign.yaml"
        file.write_text(yaml.safe_dump(dict(values)), "utf-8")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, str(job), str(file)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=False)
    if done.returncode:
        raise UserError(
            f"the campaign in {place} ended with code {done.returncode}, for the reason above: mend that, and run the "
            "same command again"
        )


def rows_of_campaign(place: Place, num_rounds: int, price: float) -> list[dict[str, float]]:
    """What a finished campaign says of its rounds, by the names of tables.RESULTS.

    Raises:
        UserError: A round is missing.
    """
    rows, bought = [], 0
    for number in range(num_rounds):
        values = read_metrics(round_place(place, number))
        if values is None or values["accuracy"] is None:
            raise UserError(f"{place} has no figures of round {number}; move that folder away and run again")
        bought += sum(values["outcomes"].values())
        rows.append(figures_row(values, bought, price * bought))
    return rows


def figures_row(values: RoundFigures, bought: int, spent: float) -> dict[str, float]:
    """A round's figures as a row of results."""
    accuracy = values["accuracy"]
    assert accuracy is not None
    two = accuracy["ce_head"] is not None and accuracy["kd_head"] is not None
    mixture = values["mixture"] if two else {}
    found: dict[str, Any] = {
        "accuracy": accuracy["mixture"],
        **{name: accuracy[name] for name in ("ce_head", "kd_head", "teacher")},
        **{name: values[name] for name in ("macro_accuracy", "log_loss", "ece", "coverage_radius")},
        **{name: mixture.get(name) for name in ("ce_weight", "temperature")},
        "seconds": sum(values["seconds"].values()),
    }
    numbers = {name: math.nan if value is None else float(value) for name, value in found.items()}
    return numbers | {"round": values["round"], "labels": bought, "spent": spent}
