"""The round's picks: what to label next."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.audit import places_of_audits
from raykd.algo.selection.kcenter import Picked
from raykd.algo.selection.start import some_of_each_class
from raykd.algo.selection.strategies import pick
from raykd.errors import UserError
from raykd.stages.audit import next_audits, set_aside
from raykd.stages.budget import audits_of, budget_of
from raykd.stages.campaign import Campaign
from raykd.stages.pick_tables import picks_table
from raykd.stages.probability_space import acquisition_mixture, close_space, open_space
from raykd.store.outputs import PICKS_FILE, Encoded, Picks, Pool, Round, Teacher
from raykd.store.stage_folder import fingerprint
from raykd.store.tables import ASKED, NO_IDS, PICKS, ROLES, checked, hash_column

VERSION = 1


def select(
    campaign: Campaign, number: int, pool: Pool, encoded: Encoded, teacher: Teacher, before: Round | None
) -> Picks:
    """What to label in a round.

    Round 0 has no student: it starts with some images of each class (drawn), with given labels (no picks), or cold, in
    the teacher's probabilities. Every other round looks through the eyes of the student before it.
    """
    config = campaign.config
    settings = {"seed": config.seed, **config.part("select")}
    made_from: dict[str, object] = {"round": number}
    if before is None:
        settings["teacher"] = teacher.fingerprint
    else:
        mixture = acquisition_mixture(campaign, before)
        made_from |= {"student": before.trained.fingerprint, "labels": before.labels.content}
        settings["mixture"] = [mixture.ce_weight, mixture.temperature]
    folder = campaign.folder("select", number, version=VERSION, made_from=made_from, settings=settings)
    if done := campaign.done(folder, number):
        return Picks(done)
    start = "none" if before else config.labels.start
    with folder.writing() as out:
        num_audits, ids = audits_of(campaign, pool), NO_IDS
        taken = before.labels.table["sample_id"] if before else NO_IDS
        if start == "given":
            table = PICKS.empty_table()
        elif start == "one_per_class":
            table = some_per_class(campaign, pool, encoded)
            taken = table["sample_id"]
        if start != "given" and (aside := set_aside(campaign, pool, encoded, taken)):
            ids = next_audits(pool, encoded, taken, aside, num_audits)
        if start == "none":
            picked = by_strategy(campaign, number, pool, teacher, before, budget_of(campaign, pool) - num_audits)
            table = picks_table(picked)
            out.facts["rounds"] = [each._asdict() for each in picked.history]
        table = with_audits(table, ids, config.seed, number)
        (out.place / PICKS_FILE).write_table(checked(table, ASKED))
        out.facts |= {"picks": table.num_rows, "audits": len(ids)}
        out.facts["content"] = fingerprint(table["sample_id"].to_pylist())
    picks = Picks(out.complete)
    how = config.selection.strategy if start == "none" else f"start: {start}"
    measure = f", {len(ids)} of them to measure the student by" if len(ids) else ""
    campaign.say(folder.name, f"{table.num_rows} picks ({how}){measure}, in {picks.done.facts['seconds']:.1f} s")
    return picks


def with_audits(picks: pa.Table, audits: pa.ChunkedArray, *key: int) -> pa.Table:
    """tables.PICKS, and images that measure in places between them, by chance: tables.ASKED."""
    is_audit = places_of_audits(picks.num_rows, len(audits), *key)
    places = np.empty(len(is_audit), np.int64)  # of each row among the picks and then the audits
    places[~is_audit], places[is_audit] = np.arange(picks.num_rows), picks.num_rows + np.arange(len(audits))
    table = pa.concat_tables([picks, in_this_order(audits)]).take(pa.array(places))
    table = table.set_column(1, "rank", pa.array(range(len(places)), pa.int32()))
    return table.append_column("role", pa.array(ROLES, pa.string()).take(pa.array(is_audit.astype(int))))


def by_strategy(
    campaign: Campaign, number: int, pool: Pool, teacher: Teacher, before: Round | None, budget: int
) -> Picked:
    """Picks of the configured strategy, in the student's space, or in the teacher's when there is no student yet."""
    config = campaign.config.selection
    space = open_space(campaign, pool, teacher, before)
    try:
        left = sum(space.shards.sizes())
        if not left:
            raise UserError("every image of the pool is labeled or left out: lower rounds, or add images to the pool")
        if left < budget:
            campaign.say(
                f"round {number} select", f"{left} images are left to pick from, the budget is {budget}: all are"
            )
        arguments = (config.strategy, space.shards, space.labeled, min(budget, left), campaign.config.seed, number)
        return pick(*arguments, config.cap, config.options, config.balance)
    finally:
        close_space(campaign)


def some_per_class(campaign: Campaign, pool: Pool, encoded: Encoded) -> pa.Table:
    """``labels.shots`` images of each class, drawn by seed: the start that only a simulated oracle can give."""
    shots, rows = campaign.config.labels.shots, encoded.readable(pool.split("pool"))
    classes_N = pc.fill_null(pc.index_in(rows["label"], value_set=pa.array(pool.classes, pa.string())), -1).to_numpy()
    counts_C = np.bincount(classes_N[classes_N >= 0], minlength=len(pool.classes))
    if not counts_C.all():
        missing = pool.classes[int(counts_C.argmin())]
        raise UserError(f"labels.start: one_per_class, but no image of {missing!r} can be read; use start: none")
    if (few := np.flatnonzero(counts_C < shots)).size:
        least = int(few[counts_C[few].argmin()])
        campaign.say(
            "round 0 select",
            f"of {few.size} of {len(pool.classes)} classes fewer than {shots} images can be read, such as "
            f"{pool.classes[least]!r} with {counts_C[least]}: all of theirs are taken",
        )
    ids = rows["sample_id"]
    places = some_of_each_class(hash_column(ids), classes_N, len(pool.classes), shots, campaign.config.seed)
    return in_this_order(ids.take(pa.array(places)))


def in_this_order(ids: pa.ChunkedArray) -> pa.Table:
    """tables.PICKS of images that no strategy has picked: without distances and chances."""
    ranks = np.arange(len(ids), dtype=np.int32)
    return pa.table([ids, ranks, np.full(len(ids), np.nan), pa.nulls(len(ids), pa.float64())], schema=PICKS)
