"""The teacher's features of every image, once: the only stage that shows it images. A frozen student's, too.

It has no opinion: no class and no prompt goes in, so whatever changes about those, nothing is read again. By parts: a
part's name is the fingerprint of what it holds, so a grown pool adds parts, and a second campaign on the same pool
finds them (``cache_path``). Where the teacher is a table, its ids are looked up, and nothing else.
"""

from __future__ import annotations

from raykd.stages.brought_opinion import look_up
from raykd.stages.budget import check_budgets
from raykd.stages.campaign import Campaign
from raykd.stages.image_features import encode_images
from raykd.stages.student_features import with_student_features
from raykd.stages.weights import fetch_backbone, fetch_teacher
from raykd.store.outputs import QUARANTINE_FILE, Encoded, Pool


def encode(campaign: Campaign, pool: Pool) -> Encoded:
    """Features of every image, and which cannot be read.

    Raises:
        UserError: More than ``max_bad_share`` of the images cannot be read, so that too few are left for the budget, or
            the weights cannot be had.
        StorageError: The network, the credentials or a disk fail.
    """
    config = campaign.config
    fetch_backbone(campaign)  # what cannot be had is told now, and not when people have labeled
    encoded = look_up(campaign, pool) if config.teacher.rule == "table" else encoded_by_model(campaign, pool)
    if config.student.is_frozen:
        encoded = with_student_features(campaign, pool, encoded)
    if campaign.num_done < config.rounds:
        check_budgets(campaign, pool, encoded.readable(pool.split("pool")).num_rows)
    return encoded


def encoded_by_model(campaign: Campaign, pool: Pool) -> Encoded:
    config = campaign.config
    model = fetch_teacher(campaign, config.teacher)
    return encode_images(
        campaign, pool.listed, model, config.teacher, at=campaign.cache / "encode", shared=bool(config.cache_path),
        decode=config.decode, max_bad_share=config.max_bad_share, quarantine=campaign.place / QUARANTINE_FILE,
    )  # fmt: skip
