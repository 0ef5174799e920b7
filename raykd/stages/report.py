"""``report.html``: the campaign so far, as one page that opens offline; and the table that a job ends with."""

from __future__ import annotations

import time
from typing import Any

import raykd
from raykd.labels.files import TASKS_FILE
from raykd.report import page
from raykd.stages.campaign import Campaign, commit, versions
from raykd.store.outputs import Encoded, Pool, RoundFigures, Teacher, read_cards
from raykd.store.place import Place

SHOWN_PICKS = 60  # of a round
SHOWN_QUARANTINE = 50


def write_report(campaign: Campaign, pool: Pool, encoded: Encoded, teacher: Teacher) -> None:
    """Write the page anew from what is done; it is a view, so an older one is replaced. No image is read."""
    classes, rounds, config = list(pool.classes), campaign.figures(), campaign.config
    answers = {row["sample_id"]: row for row in campaign.ledger(pool.renamed).current().to_pylist()}
    picks = [pick for number in campaign.rounds for pick in cards_of(campaign, number, answers)]
    unanswered = sum(pick["outcome"] is None for pick in picks)
    under_way = f"waiting for {page.counted(unanswered, 'label')}" if unanswered else f"round {len(rounds)} under way"
    bad = encoded.quarantine
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
        "next_step": next_step(campaign, len(rounds), unanswered),
        "classes": classes,
        "samples": {**pool.counts, "quarantined": bad.num_rows},
        "quarantine": bad.slice(0, SHOWN_QUARANTINE).to_pylist(),
        "teacher": {"model": teacher_name(campaign), **teacher.scores},
        "rounds": rounds,
        "setup_seconds": {"pool": pool.seconds, "encode": encoded.seconds, "teacher": teacher.seconds},
        "picks": picks,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }
    (campaign.place / "report.html").write_bytes(page.render(report).encode())


def next_step(campaign: Campaign, number: int, unanswered: int) -> str | None:
    """What people are to do next; None when the job goes on by itself."""
    if not unanswered or campaign.config.labels.oracle != "people":
        return None
    tasks = campaign.round_place(number) / TASKS_FILE
    return (
        f"Fill the label column of {tasks} with class names, or unsure, cannot label, none of the classes; save it in "
        "place and run the same command again."
    )


def print_summary(campaign: Campaign) -> list[RoundFigures]:
    """Print the learning curve and where the report is; the figures of all rounds."""
    rows: list[tuple[str, ...]] = [("round", "labels", "student", "CE head", "KD head", "teacher", "coverage radius")]
    for values in campaign.figures():
        accuracy = values["accuracy"] or {}
        shares = (accuracy.get(name) for name in ("mixture", "ce_head", "kd_head", "teacher"))
        rows.append(
            (str(values["round"]), str(values["num_labeled"]), *("-" if s is None else f"{s:.1%}" for s in shares),
             f"{values['coverage_radius']:.3f}")
        )  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print()
    for row in rows:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    print(f"\nreport: {campaign.place / 'report.html'}", flush=True)
    return campaign.figures()


def teacher_name(campaign: Campaign) -> str:
    config = campaign.config.teacher
    if config.model.startswith("local-dir:"):
        return f"local-dir:{Place.of(config.model.removeprefix('local-dir:')).name}"
    return f"{config.model} / {config.pretrained}" if config.pretrained else config.model


def cards_of(campaign: Campaign, number: int, answers: dict[str, Any]) -> list[page.PickCard]:
    """The first picks of a round; none when the round has not picked yet."""
    return [
        {
            "round": number,
            "rank": card["rank"],
            "sample_id": card["sample_id"],
            "uri": card["uri"],
            "thumbnail": card["thumbnail"],
            "distance": card["distance"],
            "teacher": [(guess["label"], guess["p"]) for guess in card["teacher"]],
            "student": card["student"] and [(guess["label"], guess["p"]) for guess in card["student"]],
            "outcome": answers.get(card["sample_id"], {}).get("outcome"),
            "label": answers.get(card["sample_id"], {}).get("label"),
        }
        for card in read_cards(campaign.round_place(number)).slice(0, SHOWN_PICKS).to_pylist()
    ]
