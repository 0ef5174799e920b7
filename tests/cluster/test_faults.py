"""The fault matrix: ``make faults`` runs it all and writes jobs/results/faults.md, ``make test`` a few cells."""

from __future__ import annotations

import itertools
import os
import random
import time
from pathlib import Path

import pytest
from faults import COLUMNS, GOES_ON_S, PROCESSES, ROWS, VICTIM, World, as_markdown, from_markdown
from nodes import kill

TABLE = Path(__file__).parents[2] / "jobs" / "results" / "faults.md"
WRITES = bool(os.environ.get("RAYKD_WRITE_FAULTS"))
EVERY_TIME = {("node, none joins", "train")}  # with gloo on two nodes, a node lost, and what it ran made up for
NUM_KILLS = 20

pytestmark = pytest.mark.timeout(900)


def cells() -> list:
    return [
        pytest.param(
            row, column, marks=() if (row, column) in EVERY_TIME else pytest.mark.nightly, id=f"{row}-{column}"
        )
        for row, columns in ROWS.items()
        for column in COLUMNS
        if column in columns
    ]


def write_cell(row: str, column: str, text: str) -> None:
    """Put what was found into the table; the other cells stay as they are."""
    head, line, table = TABLE.read_text().partition("| what dies")
    TABLE.write_text(f"{head}{as_markdown(from_markdown(line + table) | {(row, column): text})}\n")


@pytest.mark.parametrize(("row", "column"), cells())
def test_whatever_dies_the_campaign_ends_as_the_undisturbed_one(request, row, column):
    needs = "world_with_store" if row.startswith("S3") else "world"
    world: World = request.getfixturevalue(needs)
    if WRITES:
        write_cell(row, column, "**failed**")
    how, seconds = world.cell(row, column)
    if WRITES:
        write_cell(row, column, f"{how}, {max(seconds - world.alone_s(column), 0):.0f} s")


@pytest.mark.nightly
def test_twenty_kills_at_random_leave_no_trace(world):
    """Of drivers, of any of Ray's worker processes, and of a node, which another one replaces; campaign after campaign
    until there were so many."""
    draw, kills, names = random.Random(0), [], map("random-{}".format, itertools.count())
    name = next(names)
    world.base()
    job = world.start("disk", name)
    while len(kills) < NUM_KILLS:
        until = time.monotonic() + draw.uniform(2, 15)
        while time.monotonic() < until and not job.ended:
            time.sleep(0.1)
        if job.ended:
            if job.process.returncode:
                job.ended_in_a_line()
            else:
                world.same("disk", name)
                name = next(names)
            job = world.start("disk", name)
            continue
        what = draw.choices(["driver", "worker", "node"], [2, 4, 1])[0]
        if what == "driver":
            job.kill()
            job = world.start("disk", name)
        elif what == "worker":
            alive = [pid for begins, _ in PROCESSES.values() for pid in world.nodes.find(begins)]
            if not alive:
                continue
            kill(draw.choice(alive))
        else:
            world.nodes.kill(VICTIM)
            world.nodes.join(VICTIM)
        kills.append((what, world.stage_of("disk", name)))
    while job.process.wait(GOES_ON_S):
        job.ended_in_a_line()
        job = world.start("disk", name)
    world.same("disk", name)
    print(*kills, sep="\n")
