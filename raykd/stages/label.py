"""Labels for the picks: asked for in tasks.csv, answered by people's files or by the simulated oracle."""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.heads import probabilities
from raykd.errors import WaitingForLabels
from raykd.labels.files import TASKS_FILE, import_folder, labels_from, read_answers, write_tasks
from raykd.labels.ledger import OUTCOMES, Ledger, count_answers, current_labels
from raykd.stages.audit import asked_so_far
from raykd.stages.campaign import Campaign, answers_folder
from raykd.stages.pictures import thumbnails, top_guesses
from raykd.store.outputs import CARDS_FILE, LABELS_FILE, Labels, Picks, Pool, Round, Teacher
from raykd.store.place import Place
from raykd.store.stage_folder import StageFolder, fingerprint
from raykd.store.tables import CARDS, LABELS, LEDGER, ROLES, checked

VERSION = 1


def ask(campaign: Campaign, number: int, pool: Pool, teacher: Teacher, picks: Picks, before: Round | None) -> None:
    """The picks as they are shown: ``cards.parquet``, and ``tasks.csv`` for people (never over an earlier one).

    A card has the picture, small, and the likeliest classes by the teacher and by the student that picked it.
    """
    folder = campaign.folder("ask", number, version=VERSION, made_from={"picks": picks.done.fingerprint})
    if folder.done() is None:
        with folder.writing() as out:
            (out.place / CARDS_FILE).write_table(checked(cards(pool, teacher, picks, before), CARDS))
    if campaign.config.labels.oracle == "people" and len(picks.ids):
        table = (folder.place / CARDS_FILE).read_table()
        columns = {name: table[name] for name in ("sample_id", "uri", "rank")}
        texts = guess_columns(table["teacher"].to_pylist())
        write_tasks(campaign.round_place(number) / TASKS_FILE, pa.table(columns | texts))


def cards(pool: Pool, teacher: Teacher, picks: Picks, before: Round | None) -> pa.Table:
    ids, uris = picks.ids, pool.uris(picks.ids)
    columns: dict[str, Any] = {name: picks.table[name] for name in ("sample_id", "rank", "distance")}  # not the role
    columns["uri"] = uris
    columns["thumbnail"] = thumbnails(uris)
    columns["teacher"] = top_guesses(teacher.probabilities(ids), teacher.classes)
    columns["student"] = pa.nulls(len(ids), CARDS.field("student").type)
    if before is not None:
        probs_NC = probabilities(before.predictions.logits(ids), before.deployed.mixture)
        columns["student"] = top_guesses(probs_NC, before.predictions.classes)
    return pa.table(columns)


def guess_columns(guesses: list[list[dict[str, Any]]]) -> dict[str, list[str]]:
    """Columns ``guess_1``, ``guess_2``, ... of tasks.csv, such as ``"cat (0.87)"``; no more than there are classes."""
    most = max(map(len, guesses), default=0)
    return {f"guess_{i + 1}": [f"{row[i]['label']} ({row[i]['p']:.2f})" for row in guesses] for i in range(most)}


# ---------------------------------------------------------------- answers


def answers_of(campaign: Campaign, number: int, picks: Picks) -> StageFolder:
    return campaign.folder("label", number, version=VERSION, made_from={"picks": picks.done.fingerprint})


def gather(campaign: Campaign, number: int, pool: Pool, picks: Picks) -> None:
    """Bring everything that has been answered into the ledger: given labels, the oracle's, people's files.

    Raises:
        UserError: A label file is wrong; says where. What is right in the other files is kept.
    """
    if answers_of(campaign, number, picks).done():
        if number == campaign.num_done and (given := campaign.new_given):
            campaign.say(f"round {number} label", f"is done: labels in {Place.of(given)} are for the round after it")
        return
    ledger = campaign.ledger(pool.renamed, asked_so_far(campaign, number))
    config = campaign.config.labels
    if given := campaign.new_given:
        take_over(campaign, number, given, pool, ledger)
    if config.oracle == "simulated":
        ledger.append(oracle(picks.ids, pool, number))
    else:
        import_answers(campaign, number, pool, ledger)


def settle(campaign: Campaign, number: int, pool: Pool, picks: Picks) -> Labels:
    """The answers that a round trains on: all current answers of the ledger.

    Raises:
        WaitingForLabels: People have not answered enough of the picks yet; says what to do.
        UserError: A label in the ledger is no class (any more).
    """
    folder = answers_of(campaign, number, picks)
    if done := campaign.done(folder, number):
        return Labels(done)
    started = time.perf_counter()
    ledger = campaign.ledger(pool.renamed)
    table = current_labels(ledger, pool.classes)
    wait_for_people(campaign, number, picks, table)
    with folder.writing() as out:
        (out.place / LABELS_FILE).write_table(checked(table, LABELS))
        given = campaign.config.labels.given
        mine = table.filter(pc.is_in(table["sample_id"], value_set=picks.ids)) if number or not given else table
        counts = {value["values"]: value["counts"] for value in pc.value_counts(mine["outcome"]).to_pylist()}
        named = table.filter(pc.equal(table["outcome"], "label"))["role"]
        num_labeled, num_audited = (int(pc.sum(pc.equal(named, role)).as_py() or 0) for role in ROLES)
        out.facts |= {
            "content": fingerprint(table.to_pydict()),
            "outcomes": {name: counts.get(name, 0) for name in OUTCOMES},
            "num_labeled": num_labeled,
            "num_audited": num_audited,
            "num_answered": table.num_rows,
            "seconds": time.perf_counter() - started,
        }
    labels = Labels(out.complete)
    new = sum(labels.outcomes.values())
    audited = f", and {num_audited} to measure by" if num_audited else ""
    campaign.say(folder.name, f"{new} new answers, {num_labeled} images labeled in all{audited}")
    return labels


def take_over(campaign: Campaign, number: int, given: str, pool: Pool, ledger: Ledger) -> None:
    """Labels that were made before the campaign or beside it: a file, a ledger, or those of another campaign."""
    place, before = Place.of(given), ledger.current()
    rows = labels_from(place, pool.classes, *pool.ids_to_label(), pool.renamed)
    done = ledger.append(rows)
    measured = int(pc.sum(pc.equal(rows["role"], ROLES[1])).as_py() or 0)
    ledger.note_taken(given)
    replaced = num_replaced(before, ledger.current())
    lines = [f"{done.new} labels from {place}" + (f"; {replaced} of them replace other answers" if replaced else "")]
    if measured:
        lines.append(f"{measured} of them measured a student there; here they are learned from, as all the others")
    for line in [*lines, *done.superseded[:3]]:
        campaign.say(f"round {number} label", line)


def num_replaced(before: pa.Table, now: pa.Table) -> int:
    """Images whose current answer is another one now."""
    now = now.take(pc.index_in(before["sample_id"], value_set=now["sample_id"]))
    same = [pc.equal(*(pc.fill_null(table[name], "") for table in (before, now))) for name in ("outcome", "label")]
    return before.num_rows - int(pc.sum(pc.and_(*same)).as_py() or 0)


def oracle(asked: pa.ChunkedArray, pool: Pool, number: int) -> pa.Table:
    """The manifest's own labels of the picks, as answers."""
    count = len(asked)
    columns: dict[str, Any] = {
        "sample_id": asked,
        "outcome": ["label"] * count,
        "label": pool.labels_of(asked),
        "annotator": ["oracle"] * count,
        "source": ["manifest"] * count,
        "round": pa.array([number] * count, pa.int32()),
    }
    rows = [columns.get(field.name, pa.nulls(count, field.type)) for field in LEDGER]
    return pa.table(rows, schema=LEDGER)


def import_answers(campaign: Campaign, number: int, pool: Pool, ledger: Ledger) -> None:
    """Everything in the answers folder, and what was filled into any round's tasks.csv itself."""
    known, others = pool.ids_to_label()
    for earlier in range(number + 1):
        tasks = campaign.round_place(earlier) / TASKS_FILE
        if tasks.exists():
            answers = read_answers(tasks, pool.classes, known, others, pool.renamed, round_number=earlier)
            for line in ledger.append(answers.rows).superseded[:3]:
                campaign.say(f"round {number} label", line)
    folder = answers_folder(campaign)
    summary = import_folder(folder, pool.classes, known, others, ledger, pool.renamed, round_number=number)
    if summary.files or summary.ignored:
        campaign.say(f"round {number} label", str(summary))


def wait_for_people(campaign: Campaign, number: int, picks: Picks, current: pa.Table) -> None:
    found = count_answers(picks.ids, current, campaign.config.labels.min_answered)
    tasks, answers = campaign.round_place(number) / TASKS_FILE, answers_folder(campaign)
    where = {"tasks": str(tasks), "answers": str(answers)}
    if not found.waits:
        return
    if not found.enough:
        raise WaitingForLabels(
            f"no answer names a class yet, so there is nothing to train on: put a CSV, JSONL or Parquet file with "
            f"sample_id and label of some images of the pool into {answers} and run the same command again",
            {"count": 1, "enough": 1, "of": found.asked, "where": where},
        )
    missing = found.asked - found.answered
    enough = "" if found.enough == missing else f" ({found.enough} more would do, by labels.min_answered)"
    raise WaitingForLabels(
        f"{missing} of {found.asked} images of round {number} wait for a label{enough}: fill the label column of "
        f"{tasks} (or put CSV, JSONL or Parquet files with sample_id and label into {answers}) and run the same command"
        " again",
        {"count": missing, "enough": found.enough, "of": found.asked, "where": where},
    )
