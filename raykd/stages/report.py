"""``report.html``: the campaign so far, as one page that opens offline; and the table that a job ends with."""

from __future__ import annotations

import io
import time
from typing import Any

from PIL import Image

import raykd
from raykd.images.reading import ImageReader, load_many
from raykd.labels.ledger import Ledger
from raykd.report import page
from raykd.stages.campaign import Campaign, commit, versions
from raykd.stages.evaluate import read_figures, teacher_figures
from raykd.stages.pool import read_classes
from raykd.stages.teacher import read_quarantine
from raykd.store.place import Place
from raykd.store.stage_folder import Stage
from raykd.store.tables import SPLITS

SHOWN_PICKS = 60  # of a round
SHOWN_QUARANTINE = 50
THUMBNAIL = 96  # pixels


def write(campaign: Campaign, pool: Stage, teacher: Stage) -> None:
    """Write the page anew from what is done; it is a view, so an older one is replaced."""
    classes, rounds = read_classes(pool), read_figures(campaign)
    bad = read_quarantine(teacher)
    config = campaign.config
    answers = {row["sample_id"]: row for row in Ledger(campaign.place / "ledger").current().to_pylist()}
    picks = [pick for round in campaign.rounds for pick in gallery(campaign, round, classes, answers)]
    unanswered = sum(pick["outcome"] is None for pick in picks)
    under_way = f"waiting for {page.counted(unanswered, 'label')}" if unanswered else f"round {len(rounds)} under way"
    report: page.Report = {
        "title": campaign.place.name,
        "storage_path": campaign.place.uri,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "raykd_version": raykd.__version__,
        "commit": commit(),
        "strategy": config.selection.strategy,
        "seed": config.seed,
        "budget": config.selection.budget or len(classes),
        "rounds_configured": config.rounds,
        "status": "complete" if len(rounds) == config.rounds else under_way,
        "classes": classes,
        "samples": {**{split: pool.facts[split] for split in SPLITS}, "quarantined": bad.num_rows},
        "quarantine": bad.slice(0, SHOWN_QUARANTINE).to_pylist(),
        "teacher": {"model": teacher_name(campaign), **teacher_figures(pool, teacher)},  # type: ignore[typeddict-item]
        "rounds": rounds,  # type: ignore[typeddict-item]
        "setup_seconds": {"pool": pool.facts["seconds"], "teacher": teacher.facts["seconds"]},
        "picks": picks,
        "config": config.model_dump(mode="json"),
        "versions": versions(),
    }
    (campaign.place / "report.html").write_bytes(page.render(report).encode())


def summary(campaign: Campaign) -> None:
    """Print the learning curve and where the report is."""
    rows: list[tuple[str, ...]] = [("round", "labels", "student", "CE head", "KD head", "teacher", "coverage radius")]
    for values in read_figures(campaign):
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


def teacher_name(campaign: Campaign) -> str:
    config = campaign.config.teacher
    if config.model.startswith("local-dir:"):
        return f"local-dir:{Place.of(config.model.removeprefix('local-dir:')).name}"
    return f"{config.model} / {config.pretrained}" if config.pretrained else config.model


def gallery(campaign: Campaign, round: int, classes: list[str], answers: dict[str, Any]) -> list[page.Pick]:
    """The first picks of a round, as cards; none when the round has not picked yet."""
    place = campaign.round_place(round) / "ask" / "cards.parquet"
    if not place.exists():
        return []
    cards = place.read_table().slice(0, SHOWN_PICKS).to_pylist()
    thumbnails = load_many(ImageReader(), [card["uri"] for card in cards], thumbnail)
    return [
        {
            "round": round,
            "rank": card["rank"],
            "sample_id": card["sample_id"],
            "uri": card["uri"],
            "thumbnail": None if isinstance(image, str) else image,
            "distance": card["distance"],
            "teacher": named(card["teacher"], classes),
            "student": card["student"] and named(card["student"], classes),
            "outcome": answers.get(card["sample_id"], {}).get("outcome"),
            "label": answers.get(card["sample_id"], {}).get("label"),
        }
        for card, image in zip(cards, thumbnails, strict=True)
    ]


def named(guesses: list[dict[str, Any]], classes: list[str]) -> list[page.Guess]:
    return [(classes[guess["label"]], guess["p"]) for guess in guesses]


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most THUMBNAIL pixels a side; tiny images stay as they are, as PNG."""
    small = max(image.size) <= THUMBNAIL
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 80}))
    return buffer.getvalue()
