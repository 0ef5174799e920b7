"""The audit slice of a campaign: which images are set aside, and which of them a round asks for.

Why so, and what it shows: ``raykd/algo/audit.py``. Set aside with the first audit, and the same from then on; what has
come into the pool since is set aside in the same share.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.audit import audit_order, chooses, is_aside, last_draw
from raykd.stages.budget import audits_of, num_to_set_aside
from raykd.stages.campaign import Campaign
from raykd.store.outputs import Encoded, Pool, read_picks
from raykd.store.stage_folder import StageFolder
from raykd.store.tables import ASKED, hash_column

VERSION = 1


class Aside(NamedTuple):
    """Which images are set aside, in two numbers that travel."""

    seed: int
    last: int  # draw (:func:`raykd.algo.audit.last_draw`)

    def among(self, ids: pa.ChunkedArray) -> np.ndarray:
        """bool [n]."""
        return is_aside(hash_column(ids), *self)


def audit_folder(campaign: Campaign) -> StageFolder:
    return campaign.folder("audit", version=VERSION, made_from={"seed": campaign.config.seed})


def since_round(campaign: Campaign) -> int:
    """The round of the first audit."""
    done = audit_folder(campaign).done()
    return done.facts["since_round"] if done else 0


def asked_so_far(campaign: Campaign, number: int) -> pa.Table:
    """What all rounds up to this one have asked for: tables.ASKED, an image once, as it was asked for last."""
    picks = filter(None, (read_picks(campaign.round_place(each)) for each in reversed(range(number + 1))))
    table = pa.concat_tables(each.table.select(ASKED.names) for each in picks)
    firsts = pc.index_in(table["sample_id"].unique(), value_set=table["sample_id"].combine_chunks())
    return table.take(firsts)


def aside_now(campaign: Campaign) -> Aside | None:
    """What is set aside; None before the first audit."""
    done = audit_folder(campaign).done()
    return Aside(campaign.config.seed, done.facts["last"]) if done else None


def set_aside(campaign: Campaign, pool: Pool, encoded: Encoded, taken: pa.ChunkedArray) -> Aside | None:
    """What is set aside; now, if this round is the first that audits. None where none has.

    Args:
        taken: Images that have an answer, or are a start's: no part of it.
    """
    if (found := aside_now(campaign)) or not audits_of(campaign, pool):
        return found
    free = without(encoded.readable(pool.split("pool"))["sample_id"], taken)
    with audit_folder(campaign).writing() as out:
        count = num_to_set_aside(campaign, pool, len(free))
        out.facts |= {"last": last_draw(hash_column(free), campaign.config.seed, count)}
        out.facts |= {"set_aside": count, "of": len(free), "since_round": campaign.num_done}
    campaign.say(
        "audit",
        f"{count:,} of {len(free):,} images are set aside, by chance: no strategy is offered them, and labels of some "
        "measure the student in each round (labels.audit_share)",
    )
    return aside_now(campaign)


def next_audits(pool: Pool, encoded: Encoded, taken: pa.ChunkedArray, aside: Aside, count: int) -> pa.ChunkedArray:
    """The next images to audit, in their order; those that were asked for and have no answer come again."""
    ids = encoded.readable(pool.split("pool"))["sample_id"]
    free = without(ids.filter(pa.array(aside.among(ids))), taken)
    return free.take(pa.array(audit_order(hash_column(free), aside.seed)[:count]))


def without(ids: pa.ChunkedArray, others: pa.ChunkedArray) -> pa.ChunkedArray:
    return ids.filter(pc.invert(pc.is_in(ids, value_set=others)))


def may_choose(campaign: Campaign, ids: pa.ChunkedArray) -> np.ndarray:
    """bool [n]: which audited images may choose a mixture; the others measure it."""
    return chooses(hash_column(ids), campaign.config.seed)
