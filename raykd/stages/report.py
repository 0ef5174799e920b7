"""``report.html``: the campaign so far, as one page that opens offline; and the table that a job ends with."""

from __future__ import annotations

import io
import time

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from PIL import Image

import raykd
from raykd import page
from raykd.algo.mixture import mixture, softmax
from raykd.images import ImageReader, load_many
from raykd.ledger import Ledger
from raykd.rundir import Stage
from raykd.stages.campaign import Campaign, commit, versions
from raykd.stages.evaluate import read_figures, teacher_figures
from raykd.stages.pool import read_classes, read_manifest
from raykd.stages.teacher import read_quarantine
from raykd.tables import SPLITS, matrix, positions

SHOWN_PICKS = 60  # of a round
SHOWN_QUARANTINE = 50
THUMBNAIL = 96  # pixels


def write(campaign: Campaign, pool: Stage, teacher: Stage) -> None:
    """Write the page anew from what is done; it is a view, so an older one is replaced."""
    classes, rounds = read_classes(pool), read_figures(campaign)
    bad = read_quarantine(teacher)
    config = campaign.config
    picks = [pick for round in campaign.rounds for pick in gallery(campaign, round, pool, teacher, classes)]
    unanswered = sum(pick["outcome"] is None for pick in picks)
    under_way = f"waiting for {unanswered} labels" if unanswered else f"round {len(rounds)} under way"
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
        return f"{config.model.rstrip('/').rsplit('/', 1)[-1]} (local folder)"
    return f"{config.model} / {config.pretrained}" if config.pretrained else config.model


def gallery(campaign: Campaign, round: int, pool: Stage, teacher: Stage, classes: list[str]) -> list[page.Pick]:
    """The first picks of a round, as cards; none when the round has not picked yet."""
    place = campaign.round_place(round) / "select" / "picks.parquet"
    if not place.exists():
        return []
    picks = place.read_table().sort_by("rank").slice(0, SHOWN_PICKS)
    if not picks.num_rows:
        return []
    ids = picks["sample_id"]
    rows = read_manifest(pool)
    uris = rows["uri"].take(positions(ids, rows["sample_id"], "the manifest")).to_pylist()
    teacher_NC = softmax(rows_of(teacher, ids, "logits")["logits"])
    student_NC = student_probs(campaign, round, ids)
    answers = {row["sample_id"]: row for row in Ledger(campaign.place / "ledger").current().to_pylist()}
    images = load_many(ImageReader(), uris)
    return [
        {
            "round": round,
            "rank": pick["rank"],
            "sample_id": pick["sample_id"],
            "uri": uri,
            "thumbnail": None if isinstance(image, str) else thumbnail(image),
            "distance": None if np.isnan(pick["distance"]) else pick["distance"],
            "teacher": guesses(teacher_NC[n], classes),
            "student": None if student_NC is None else guesses(student_NC[n], classes),
            "outcome": answers.get(pick["sample_id"], {}).get("outcome"),
            "label": answers.get(pick["sample_id"], {}).get("label"),
        }
        for n, (pick, uri, image) in enumerate(zip(picks.to_pylist(), uris, images, strict=True))
    ]


def rows_of(stage: Stage, ids: pa.ChunkedArray, *columns: str) -> dict[str, np.ndarray]:
    """Vector columns of some rows of a stage's table, [n, width] each, in the order of ``ids``."""
    table = (
        (stage.place / "data")
        .parquet()
        .to_table(columns=["sample_id", *columns], filter=pads.field("sample_id").isin(pc.unique(ids)))
    )
    table = table.take(positions(ids, table["sample_id"], stage.name))
    return {name: matrix(table[name]) for name in columns}


def student_probs(campaign: Campaign, round: int, ids: pa.ChunkedArray) -> np.ndarray | None:
    """What the student of the round before said of the picks; None in round 0."""
    if round == 0:
        return None
    before = Stage(campaign.round_place(round - 1) / "predict", {})
    student = Stage(campaign.round_place(round - 1) / "tune", {}).facts
    heads = rows_of(before, ids, "ce_logits", "kd_logits")
    return mixture(heads["ce_logits"], heads["kd_logits"], student["ce_weight"], student["temperature"])


def guesses(probs_C: np.ndarray, classes: list[str], top: int = 3) -> list[tuple[str, float]]:
    return [(classes[c], float(probs_C[c])) for c in np.argsort(-probs_C, kind="stable")[:top]]


def thumbnail(image: Image.Image) -> bytes:
    """A JPEG of at most THUMBNAIL pixels a side; tiny images stay as they are, as PNG."""
    small = max(image.size) <= THUMBNAIL
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 80}))
    return buffer.getvalue()
