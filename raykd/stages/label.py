"""Labels for the picks: asked for in tasks.csv, answered by people's files or by the simulated oracle."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from raykd.algo.heads import mixture, softmax
from raykd.errors import WaitingForLabels
from raykd.labels.ledger import OUTCOMES, Ledger, read_answers, write_tasks
from raykd.labels.ledger import collect as collect_files
from raykd.stages.campaign import Campaign, Round
from raykd.stages.pool import read_classes, read_manifest
from raykd.stages.select import read_picks
from raykd.store.place import Place
from raykd.store.stage_folder import Stage, fingerprint
from raykd.store.tables import LABELS, LEDGER, matrix, positions

TOP = 3
GUESSES = pa.list_(pa.struct([("label", pa.int32()), ("p", pa.float32())]))


def ask(campaign: Campaign, round: int, pool: Stage, teacher: Stage, picks: Stage, before: Round | None) -> Stage:
    """The picks as they are shown: ``cards.parquet``, and ``tasks.csv`` for people (never over an earlier one).

    A card has sample_id, uri, rank, distance, and the top guesses of the teacher and of the student that picked it.
    """
    stage = campaign.stage("ask", {"picks": picks.fingerprint}, round)
    if not stage.is_done():
        with stage.writing() as out:
            (out.place / "cards.parquet").write_table(cards(pool, teacher, picks, before))
    table = (stage.place / "cards.parquet").read_table()
    if campaign.config.labels.oracle == "people" and table.num_rows:
        columns = {name: table[name] for name in ("sample_id", "uri", "rank")}
        texts = guess_columns(table["teacher"].to_pylist(), read_classes(pool))
        write_tasks(campaign.round_place(round) / "tasks.csv", pa.table(columns | texts))
    return stage


def cards(pool: Stage, teacher: Stage, picks: Stage, before: Round | None) -> pa.Table:
    table = read_picks(picks)
    ids, rows = table["sample_id"], read_manifest(pool)
    columns: dict[str, Any] = {name: table[name] for name in table.schema.names}
    columns["uri"] = rows["uri"].take(positions(ids, rows["sample_id"], "the manifest"))
    columns["teacher"] = top_guesses(softmax(*vectors_of(teacher, ids, "logits")))
    columns["student"] = pa.nulls(len(ids), GUESSES)
    if before is not None:
        ce_logits_NC, kd_logits_NC = vectors_of(before.predictions, ids, "ce_logits", "kd_logits")
        facts = before.student.facts
        probs_NC = mixture(ce_logits_NC, kd_logits_NC, facts["ce_weight"], facts["temperature"])
        columns["student"] = top_guesses(probs_NC)
    return pa.table(columns)


def vectors_of(stage: Stage, ids: pa.ChunkedArray, *columns: str) -> list[np.ndarray]:
    """Vector columns of some rows of a stage's table, [n, width] each, in the order of ``ids``. One pass over it."""
    wanted = pads.field("sample_id").isin(ids.combine_chunks())
    table = (stage.place / "data").parquet().to_table(columns=["sample_id", *columns], filter=wanted)
    table = table.take(positions(ids, table["sample_id"], stage.name))
    return [matrix(table[name]) for name in columns]


def top_guesses(probs_NC: np.ndarray) -> pa.Array:
    """The most probable classes of each row, best first; of equal ones the smaller index first."""
    best_NT = np.argsort(-probs_NC, axis=1, kind="stable")[:, :TOP].tolist()
    rows = [[{"label": c, "p": float(probs_NC[n, c])} for c in best] for n, best in enumerate(best_NT)]
    return pa.array(rows, GUESSES)


def guess_columns(guesses: list[list[dict[str, Any]]], classes: list[str]) -> dict[str, list[str]]:
    """Columns ``guess_1``, ``guess_2``, ... of tasks.csv, such as ``"cat (0.87)"``; no more than there are classes."""
    return {
        f"guess_{i + 1}": [f"{classes[row[i]['label']]} ({row[i]['p']:.2f})" for row in guesses]
        for i in range(min(TOP, len(classes)))
    }


def collect(campaign: Campaign, round: int, pool: Stage, picks: Stage) -> Stage:
    """The answers that a round trains on: ``labels.parquet``, all current answers of the ledger.

    Raises:
        WaitingForLabels: People have not answered enough of the picks yet; says what to do.
        ValueError: A label file is wrong; says where. What is right in the other files is kept.
    """
    asked = read_picks(picks)["sample_id"]
    stage = campaign.stage("label", {"picks": picks.fingerprint}, round)
    if stage.is_done():
        return stage
    started = time.perf_counter()
    rows, classes = read_manifest(pool), read_classes(pool)
    ledger = Ledger(campaign.place / "ledger")
    given = campaign.config.labels.given
    if given and round == 0:
        import_file(campaign, Place.of(given), rows, classes, ledger, round)
    if campaign.config.labels.oracle == "simulated":
        ledger.append(oracle(asked, rows, round))
    else:
        import_answers(campaign, rows, classes, ledger, round)
    current = ledger.current()
    wait_for_people(campaign, round, asked, current)
    with stage.writing() as out:
        table = snapshot(current, classes)
        (out.place / "labels.parquet").write_table(table)
        mine = table.filter(pc.is_in(table["sample_id"], value_set=asked)) if round or not given else table
        counts = {value["values"]: value["counts"] for value in pc.value_counts(mine["outcome"]).to_pylist()}
        out.facts |= {
            "content": fingerprint(table.to_pydict()),
            "outcomes": {name: counts.get(name, 0) for name in OUTCOMES},
            "num_labeled": int(pc.sum(pc.equal(table["outcome"], "label")).as_py() or 0),
            "seconds": time.perf_counter() - started,
        }
    new = sum(stage.facts["outcomes"].values())
    campaign.say(f"round {round} label", f"{new} new answers, {stage.facts['num_labeled']} images labeled in all")
    return stage


def read_labels(labels: Stage) -> pa.Table:
    return (labels.place / "labels.parquet").read_table()


def oracle(asked: pa.ChunkedArray, rows: pa.Table, round: int) -> pa.Table:
    """The manifest's own labels of the picks, as answers."""
    names = rows["label"].take(positions(asked, rows["sample_id"], "the manifest"))
    count = len(asked)
    return pa.table(
        {
            "sample_id": asked,
            "outcome": ["label"] * count,
            "label": names,
            "annotator": ["oracle"] * count,
            "time": pa.nulls(count, pa.string()),
            "source": ["manifest"] * count,
            "round": pa.array([round] * count, pa.int32()),
        },
        schema=LEDGER,
    )


def splits(rows: pa.Table) -> tuple[pa.ChunkedArray, dict[str, str]]:
    """The ids that may be labeled, and the others with their split."""
    in_pool = pc.equal(rows["split"], "pool")
    others = rows.filter(pc.invert(in_pool))
    return rows.filter(in_pool)["sample_id"], dict(
        zip(others["sample_id"].to_pylist(), others["split"].to_pylist(), strict=True)
    )


def import_file(
    campaign: Campaign, file: Place, rows: pa.Table, classes: list[str], ledger: Ledger, round: int
) -> None:
    done = ledger.append(read_answers(file, classes, *splits(rows), source=file.name, round=round).rows)
    for line in done.superseded[:3]:
        campaign.say(f"round {round} label", line)


def import_answers(campaign: Campaign, rows: pa.Table, classes: list[str], ledger: Ledger, round: int) -> None:
    """Everything in the answers folder, and what was filled into any round's tasks.csv itself."""
    for earlier in range(round + 1):
        tasks = campaign.round_place(earlier) / "tasks.csv"
        if tasks.exists():
            import_file(campaign, tasks, rows, classes, ledger, earlier)
    summary = collect_files(answers_folder(campaign), classes, *splits(rows), ledger=ledger, round=round)
    if summary.files or summary.ignored:
        campaign.say(f"round {round} label", str(summary))


def answers_folder(campaign: Campaign) -> Place:
    given = campaign.config.labels.answers
    return Place.of(given) if given else campaign.place / "answers"


def wait_for_people(campaign: Campaign, round: int, asked: pa.ChunkedArray, current: pa.Table) -> None:
    missing = len(asked) - int(pc.sum(pc.is_in(asked, value_set=current["sample_id"])).as_py() or 0)
    tasks, answers = campaign.round_place(round) / "tasks.csv", answers_folder(campaign)
    if missing <= len(asked) - math.ceil(campaign.config.labels.min_answered * len(asked)):
        if "label" in current["outcome"].to_pylist():
            return
        raise WaitingForLabels(
            f"no answer names a class yet, so there is nothing to train on: put a CSV, JSONL or Parquet file with "
            f"sample_id and label of some images of the pool into {answers} and run the same command again"
        )
    raise WaitingForLabels(
        f"{missing} of {len(asked)} images of round {round} wait for a label: fill the label column of {tasks} (or put "
        f"CSV, JSONL or Parquet files with sample_id and label into {answers}) and run the same command again"
    )


def snapshot(current: pa.Table, classes: list[str]) -> pa.Table:
    """The ledger's current answers as a round uses them: class indices; sorted by sample_id."""
    index = pc.index_in(current["label"], value_set=pa.array(classes, pa.string()))
    index = pc.if_else(pc.is_valid(current["label"]), index, pa.scalar(None, pa.int32()))
    return pa.table(
        {"sample_id": current["sample_id"], "label": index, "outcome": current["outcome"]}, schema=LABELS
    ).sort_by("sample_id")
