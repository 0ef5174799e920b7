"""``report.html``: the campaign so far, as one page that opens offline; and the table that a job ends with."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

import raykd
from raykd.labels.files import TASKS_FILE
from raykd.labels.ledger import count_answers
from raykd.paths import IN_JOB
from raykd.planning import plan_error
from raykd.report import page
from raykd.report.words import counted, gained, interval, labels_apart, number, percent, plain
from raykd.stages.campaign import Campaign, answers_folder, commit, versions
from raykd.stages.pictures import SHOWN_WRONG
from raykd.store.outputs import (
    Encoded,
    Pool,
    RoundFigures,
    Teacher,
    read_cards,
    read_confusion,
    read_doubtful,
    read_labels,
    read_mistakes,
    read_picks,
)
from raykd.store.place import Place

SHOWN_PICKS = 60  # of a round
SHOWN_QUARANTINE = 50


def write_report(campaign: Campaign, pool: Pool, encoded: Encoded, teacher: Teacher) -> None:
    """Write the page anew from what is done; it is a view, so an older one is replaced. No image is read."""
    if not campaign.may_write:
        return
    classes, rounds, config = list(pool.classes), campaign.figures(), campaign.config
    current = campaign.ledger(pool.renamed).current()
    answers = {row["sample_id"]: row for row in current.to_pylist()}
    picks = [pick for number in campaign.rounds for pick in cards_of(campaign, number, answers)]
    step = next_step(campaign, len(rounds), current)
    under_way = f"round {len(rounds)} under way" if step is None else waiting_for(step)
    bad, last = encoded.quarantine, campaign.round_place(max(len(rounds) - 1, 0))
    report: page.ReportData = {
        "title": campaign.place.name,
        "storage_path": campaign.place.uri,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "raykd_version": raykd.__version__,
        "commit": commit(),
        "strategy": config.selection.strategy,
        "seed": config.seed,
        "budget": config.selection.budget or len(classes),
        "rounds_configured": len(campaign.rounds),
        "status": "complete" if len(rounds) == len(campaign.rounds) else under_way,
        "next_step": step,
        "classes": classes,
        "samples": {**pool.counts, "quarantined": bad.num_rows},
        "quarantine": bad.slice(0, SHOWN_QUARANTINE).to_pylist(),
        "teacher": {"model": teacher_name(campaign), "rule": config.teacher.rule, **teacher.scores},
        "class_check": teacher.check,
        "rounds": rounds,
        "setup_seconds": {"pool": pool.seconds, "encode": encoded.seconds, "teacher": teacher.seconds},
        "picks": picks,
        "confusion": [tuple(row.values()) for row in read_confusion(last).to_pylist()],
        "mistakes": mistakes_of(read_mistakes(last).slice(0, SHOWN_WRONG)),
        "doubtful": doubts_of(read_doubtful(last).slice(0, SHOWN_WRONG)),
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }
    (campaign.place / "report.html").write_bytes(page.render(report).encode())


def next_step(campaign: Campaign, number: int, current: pa.Table) -> page.NextStep | None:
    """What people are to do before a round goes on; None when the job goes on by itself.

    Args:
        current: The ledger's answers; whatever people have sent must be in it by now.
    """
    picks = read_picks(campaign.round_place(number))
    if campaign.config.labels.oracle != "people" or picks is None or read_labels(campaign.round_place(number)):
        return None
    found = count_answers(picks.ids, current, campaign.config.labels.min_answered)
    if not found.waits:
        return None
    return {
        "asked": found.asked,
        "answered": found.answered,
        "enough": found.enough,
        "tasks": str(campaign.round_place(number) / TASKS_FILE) if found.asked else None,
        "answers": str(answers_folder(campaign)),
        "command": shlex.join(sys.orig_argv),
        "folder": None if IN_JOB in os.environ else os.getcwd(),
    }


def waiting_for(step: page.NextStep) -> str:
    missing, enough = step["asked"] - step["answered"], step["enough"]
    if not enough:
        return "waiting for an answer that names a class"
    return f"waiting for {counted(missing, 'label')}" + ("" if enough == missing else f", {enough:,} of them would do")


def print_summary(campaign: Campaign) -> list[RoundFigures]:
    """Print the learning curve and where the report is; the figures of all rounds."""
    figures = campaign.figures()
    apart = list(dict.fromkeys(use for r in figures for use in labels_apart(r)))
    heads = {"ce_head": "CE head", "kd_head": "KD head"}
    rows = [
        ("round", "labels", *apart, "student", "95% interval", "change, points", "teacher", "95% interval",
         *heads.values(), "coverage radius")
    ]  # fmt: skip
    for r in figures:
        accuracy = r["accuracy"] or {}
        counts = (r["num_labeled"], *(labels_apart(r).get(use, 0) for use in apart))
        shares = (percent(accuracy.get(name)) for name in heads)
        rows.append(
            (str(r["round"]), *map(str, counts), percent(accuracy.get("mixture")), interval(r), gained(r.get("change")),
             percent(accuracy.get("teacher")), interval(r, "teacher"), *shares, number(r["coverage_radius"]))
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print(plain("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))))
    if lines := plan_error(campaign.place):
        print("\n".join(["", "the plan, and what it took:", *lines]))
    print(f"\nreport: {campaign.place / 'report.html'}", flush=True)
    return figures


def teacher_name(campaign: Campaign) -> str:
    config = campaign.config.teacher
    if config.rule == "table":
        return f"table {Place.of(config.table or '').name}"
    assert config.model is not None
    if config.model.startswith("local-dir:"):
        return f"local-dir:{Place.of(config.model.removeprefix('local-dir:')).name}"
    return f"{config.model} / {config.pretrained}" if config.pretrained else config.model


def cards_of(campaign: Campaign, number: int, answers: dict[str, Any]) -> list[page.PickCard]:
    """The first picks of a round; none when the round has not picked yet."""
    return [
        {
            **image_of(card),
            "round": number,
            "rank": card["rank"],
            "distance": card["distance"],
            "outcome": answers.get(card["sample_id"], {}).get("outcome"),
            "label": answers.get(card["sample_id"], {}).get("label"),
        }
        for card in read_cards(campaign.round_place(number)).slice(0, SHOWN_PICKS).to_pylist()
    ]


def mistakes_of(table: pa.Table) -> list[page.MistakeCard]:
    """Of tables.MISTAKES, as they stand."""
    return [{**image_of(row), "label": row["label"]} for row in table.to_pylist()]


def doubts_of(table: pa.Table) -> list[page.DoubtCard]:
    """Of tables.DOUBTFUL: those that are slips rather than not."""
    return [
        {**image_of(row), "given": row["given"], "slip": row["slip"]} for row in table.to_pylist() if row["slip"] > 0.5
    ]


def image_of(row: Mapping[str, Any]) -> page.ImageCard:
    """What the tables of images that are shown have in common."""
    return {
        "sample_id": row["sample_id"],
        "uri": row["uri"],
        "thumbnail": row["thumbnail"],
        "teacher": guesses_of(row["teacher"]),
        "student": guesses_of(row["student"]),
    }


def guesses_of(column: list[dict[str, Any]] | None) -> list[page.Guess] | None:
    return [(guess["label"], guess["p"]) for guess in column] if column else None
