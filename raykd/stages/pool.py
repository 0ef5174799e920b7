"""Every image of the campaign, once, by ``sample_id``: listed at the start, and again at every later one.

The id is the user's own (in a table) or the path relative to the source's folder; ids of separate test and val
sources begin with ``test/`` and ``val/``, so that they cannot meet the pool's.

What has come into the pool since the last listing is a part of its own, and no part ever changes. Test and val are
those of the first listing: figures of all rounds are of the same images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.keyed import uniform
from raykd.algo.prompts import ClassTexts
from raykd.config import Config, Source
from raykd.demo import POOL
from raykd.demo.digits import materialise
from raykd.errors import UserError
from raykd.images.class_lists import class_list
from raykd.images.reading import load_many
from raykd.images.sources import (
    Grown,
    Listing,
    check_fits,
    check_ids_differ,
    check_label_names,
    draw_splits,
    grown,
    list_source,
)
from raykd.images.stored import ImageReader
from raykd.images.transforms import Thumbnail
from raykd.labels.files import labels_from
from raykd.labels.ledger import resolve_renamed
from raykd.stages.budget import check_budgets, check_choosable
from raykd.stages.campaign import Campaign
from raykd.store.outputs import CLASSES_FILE, MANIFEST_FILE, Pool, manifest_content, with_renamed
from raykd.store.place import Place
from raykd.store.stage_folder import Done, StageFolder
from raykd.store.tables import MANIFEST, SPLITS, checked, count_splits, hash_column, too_much_of_a_split

VERSION = 1
CHECKED_IMAGES = 32
SHOWN = 5


def list_pool(campaign: Campaign) -> Pool:
    """The manifest and the class names. Cost: one listing of each source.

    Raises:
        UserError: A folder is missing or holds no image, ids or class names repeat, a label is not a class, too few
            images for the budget, or the first images looked at cannot be read.
    """
    config = campaign.config
    parts = list(listed_parts(campaign))
    if not parts:
        parts = [first_part(campaign)]
    elif campaign.num_done < config.rounds:  # a finished campaign is only looked at
        parts += grown_part(campaign, parts)
    classes, renamed = classes_now(config, (parts[0].place / CLASSES_FILE).read_json()["found"])
    pool = Pool(tuple(parts), tuple(classes), renamed, {name: texts for name, texts in classes.items() if texts})
    check_label_names(pool.manifest, classes)
    check_budgets(campaign, pool, pool.counts["pool"])
    check_choosable(campaign, pool)
    check_oracle(campaign, pool.manifest, pool.classes)
    if campaign.num_done < config.rounds and (given := campaign.new_given):  # or it is refused when all is encoded
        labels_from(Place.of(given), pool.classes, *pool.ids_to_label(), pool.renamed)
    shown = ", ".join(pool.classes[:SHOWN]) + (", ..." if len(classes) > SHOWN else "")
    campaign.say(
        "pool", ", ".join(f"{pool.counts[split]:,} {split}" for split in SPLITS) + f"; {len(classes)} classes: {shown}"
    )
    return pool


def part_folder(campaign: Campaign, number: int) -> StageFolder:
    name = f"part_{number:03d}"
    settings = campaign.config.fixed()
    return campaign.folder(f"pool {name}", version=VERSION, settings=settings, at=campaign.place / "pool" / name)


def listed_parts(campaign: Campaign) -> list[Done]:
    parts: list[Done] = []
    while (done := part_folder(campaign, len(parts)).done()) is not None:
        parts.append(done)
    return parts


def first_part(campaign: Campaign) -> Done:
    config = campaign.config
    with part_folder(campaign, 0).writing() as out:
        table, found = drawn_rows(campaign)
        classes, renamed = classes_now(config, found)
        named = with_renamed(table, renamed)
        check_label_names(named, classes)
        check_oracle(campaign, named, list(classes))
        check_readable(table, config.split_seed)
        write_part(out, table)
        # "given" is what label_values stand for in this campaign, whatever classes there are later
        (out.place / CLASSES_FILE).write_json({"found": found, "given": names_given(config)})
    return out.complete


def grown_part(campaign: Campaign, parts: list[Done]) -> list[Done]:
    """What has come into the pool since it was listed, as one more part; and a line about all else that has changed.

    Raises:
        UserError: Images lie elsewhere now, so that what would be read there are others; more of them are gone than
            ``max_bad_share``; a new label is no class.
    """
    config = campaign.config
    before = pa.concat_tables([(part.place / MANIFEST_FILE).read_table() for part in parts])
    at_first = (parts[0].place / CLASSES_FILE).read_json()
    now, _ = listed_rows(campaign, at_first["given"], again=True)
    change = grown(before, now)
    check_changed(campaign, change)
    check_gone(campaign, before, change.gone)
    if config.pool.limit:  # what was not drawn looks like what is new
        campaign.say("pool", "what has come since is left out, as pool.limit has drawn its images")
        return []
    new = change.new.filter(pc.equal(change.new["split"], "pool"))
    if others := change.new.num_rows - new.num_rows:
        campaign.say("pool", f"{others:,} new images are of test or val; left out: all rounds are measured on the same")
    if not new.num_rows:
        return []
    classes, renamed = classes_now(config, at_first["found"])
    both = pa.concat_tables([before, new])
    check_fits(both)
    check_label_names(with_renamed(new, renamed), classes)
    check_oracle(campaign, with_renamed(both, renamed), list(classes))
    with part_folder(campaign, len(parts)).writing() as out:
        check_readable(new, config.split_seed)
        write_part(out, new)
    campaign.say("pool", f"{new.num_rows:,} new images in {config.pool.path}: one more part")
    return [out.complete]


def check_changed(campaign: Campaign, change: Grown) -> None:
    """Images that are not what or where they were: another place is refused, by UserError, all else is said."""
    for source, rows in by_source(campaign.config, change.moved):
        raise UserError(
            f"pool: {rows.num_rows:,} images lie elsewhere in {source.path} than when they were listed, such as "
            f"{first_id(rows)!r}, now {rows['uri'][0].as_py()!r}: others would be read there. "
            "Put the files back as they were; or begin anew and keep the labels: another storage_path, labels.start: "
            f"given and labels.given: {campaign.place}"
        )
    for source, rows in by_source(campaign.config, change.rewritten):
        what = "lie in files that" if source.format in ("parquet", "webdataset") else "of those listed"
        campaign.say(
            "pool",
            f"{rows.num_rows:,} images in {source.path} {what} were written anew since (another size or time), such as "
            f"{first_id(rows)!r}; what the teacher saw of them stays",
        )
    was, now = change.relabeled
    if now.num_rows:
        labels = f"{was['label'][0].as_py()!r}, now {now['label'][0].as_py()!r}"
        campaign.say(
            "pool",
            f"{now.num_rows:,} images have another label in the data than when they were listed, such as "
            f"{first_id(now)!r}: {labels}; the first one stays (answers are corrected in the ledger)",
        )


def check_gone(campaign: Campaign, before: pa.Table, gone: pa.Table) -> None:
    """Say what is gone; too much of a split is refused now, by UserError, and not after people have labeled."""
    config = campaign.config
    for source, rows in by_source(config, gone):
        campaign.say(
            "pool",
            f"{rows.num_rows:,} images are no longer in {source.path}, such as {first_id(rows)!r}; put them back",
        )
    if found := too_much_of_a_split(gone, before, config.max_bad_share):
        split, lost, count = found
        source, rows = by_source(config, gone.filter(pc.equal(gone["split"], split)))[0]
        raise UserError(
            f"pool: {lost} of {count} {split} images are no longer in {source.path}, more than max_bad_share="
            f"{config.max_bad_share:g}, such as {first_id(rows)!r}: put them back, or raise max_bad_share"
        )


def first_id(rows: pa.Table) -> str:
    name: str = rows["sample_id"][0].as_py()
    return name


def by_source(config: Config, rows: pa.Table) -> list[tuple[Source, pa.Table]]:
    """The rows of each source that has any, the pool's first."""
    found = []
    for split, source in measured_on(config):
        here = pc.and_(pc.equal(rows["split"], split), pc.starts_with(rows["sample_id"], f"{split}/"))
        found.append((source, rows.filter(here)))
        rows = rows.filter(pc.invert(here))
    return [(source, some) for source, some in ((config.pool, rows), *found) if some.num_rows]


def write_part(out: Any, table: pa.Table) -> None:
    (out.place / MANIFEST_FILE).write_table(checked(table, MANIFEST))
    out.facts |= count_splits(table)
    out.facts["content"] = manifest_content(table)


# ---------------------------------------------------------------- from sources to rows


def names_given(config: Config) -> list[str] | None:
    return None if config.classes is None else list(class_list(config.classes, None))


def measured_on(config: Config) -> list[tuple[str, Source]]:
    """Test and val, where they have a source of their own."""
    return [(split, source) for split, source in config.sources.items() if split != "pool"]


def listed_rows(campaign: Campaign, given: list[str] | None, again: bool = False) -> tuple[pa.Table, Listing]:
    """The rows of all sources, as these split them, and the pool's own listing.

    Args:
        given: What ``label_values`` stand for.
        again: They were listed before; what came into test or val since is left out anyhow, so it may lack labels.

    Raises:
        UserError: A source has no images, or test or val none with a label; ids repeat.
    """
    config = campaign.config
    kept = campaign.place / "pool" / "tars"
    listing = list_source(materialise(config.pool, demo_folder(campaign)), "pool", given, campaign.say, kept)
    tables = [listing.rows]
    for split, source in measured_on(config):
        more = list_source(source, split, given, campaign.say, kept).rows
        if not again and (not more.num_rows or more["label"].null_count):
            raise UserError(
                f"{split}: {source.path} has {more.num_rows} images, {more['label'].null_count} of them without a "
                "label; expected labeled images"
            )
        tables.append(more)
    rows = pa.concat_tables(tables)
    check_ids_differ(rows)
    return rows, listing


def demo_folder(campaign: Campaign) -> Place | None:
    """Where the demo's pool lies: where all nodes of a cluster see it; None: in the user's cache."""
    if campaign.config.pool.path != POOL:
        return None
    shared = campaign.place / "demo"
    at_first = part_folder(campaign, 0).done()
    lies_there = shared.exists() if at_first else not campaign.session.is_at_home(campaign.place)
    return shared if lies_there else None


def drawn_rows(campaign: Campaign) -> tuple[pa.Table, list[str] | None]:
    """All rows, splits drawn; and the class names that the pool's folders suggest, if they do."""
    config = campaign.config
    rows, listing = listed_rows(campaign, names_given(config))
    if listing.mapping:
        pairs = ", ".join(f"{value!r} = {name}" for value, name in list(listing.mapping.items())[:SHOWN])
        campaign.say("pool", f"labels: {pairs}{', ...' if len(listing.mapping) > SHOWN else ''}")
    hashes = hash_column(rows["sample_id"])
    if config.pool.limit:
        in_pool = pc.equal(rows["split"], "pool").to_numpy(zero_copy_only=False)
        draws = np.where(in_pool, uniform(hashes, config.split_seed, "limit"), -1.0)  # test and val all stay
        keep = np.argsort(draws, kind="stable")[: int((~in_pool).sum()) + config.pool.limit]
        is_kept = np.zeros(rows.num_rows, bool)
        is_kept[keep] = True
        rows, hashes = rows.filter(pa.array(is_kept)), hashes[is_kept]
    check_fits(rows)
    rows = draw_splits(rows, uniform(hashes, config.split_seed, "split"), config.test_share, config.val_share)
    return rows, listing.found_classes


def classes_now(config: Config, found: list[str] | None) -> tuple[dict[str, ClassTexts], dict[str, str]]:
    """The class list as it is called now, with texts, and what older names became.

    Two that are called the same are one, at the first one's place; texts go with their class.

    Args:
        found: The classes that the pool's folders or labels suggest, where none are given.
    """
    renamed = resolve_renamed(config.labels.renamed)
    classes: dict[str, ClassTexts] = {}
    for name, texts in class_list(config.classes, found).items():
        now = renamed.get(name, name)
        classes[now] = classes[now].joined(texts) if now in classes else texts
    return classes, renamed


# ---------------------------------------------------------------- checks


def check_oracle(campaign: Campaign, rows: pa.Table, classes: Sequence[str]) -> None:
    """Whether a simulated oracle knows what it may be asked. Raises UserError."""
    config, in_pool = campaign.config.labels, rows.filter(pc.equal(rows["split"], "pool"))
    if config.oracle != "simulated":
        return
    if count := in_pool["label"].null_count:
        first = first_id(in_pool.filter(pc.is_null(in_pool["label"])))
        raise UserError(
            f"labels.oracle: simulated needs a label for every pool image; {count} of {in_pool.num_rows} have none, "
            f"such as {first!r}: give them labels, take them away, or use oracle: people"
        )
    absent = sorted(set(classes) - set(in_pool["label"].unique().to_pylist()))
    if absent and config.start == "one_per_class" and not campaign.num_done:
        raise UserError(
            f"labels.start: one_per_class, but {len(absent)} classes have no image, such as {absent[0]!r}; "
            "use start: none"
        )


def check_readable(table: pa.Table, seed: int) -> None:
    """Look at a few images, drawn at random, before any expensive work. Raises UserError when most are bad."""
    draws = uniform(hash_column(table["sample_id"]), seed, "check")
    rows = table.take(np.argsort(draws, kind="stable")[:CHECKED_IMAGES]).to_pylist()
    reasons = load_many(ImageReader(), [row["uri"] for row in rows], lambda image: image.size, Thumbnail(1).shrinks)
    bad = [(row, reason) for row, reason in zip(rows, reasons, strict=True) if isinstance(reason, str)]
    if len(bad) > max(1, len(rows) / 2):
        row, reason = bad[0]
        raise UserError(
            f"{len(bad)} of the {len(rows)} images looked at first cannot be read, such as {row['uri']!r}: {reason}"
        )
