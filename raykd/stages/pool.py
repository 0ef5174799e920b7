"""The manifest: every image of the campaign, once, by ``sample_id``.

The id is the user's own (Parquet) or the path relative to the source's folder; ids of separate test and val
sources begin with ``test/`` and ``val/``, so that they cannot meet the pool's.
"""

from __future__ import annotations

import difflib
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raykd.algo.keyed import hash_ids, uniform
from raykd.config import Source
from raykd.demo.digits import materialise
from raykd.errors import UserError
from raykd.images.reading import SUFFIXES, ImageReader, load_many
from raykd.stages.campaign import Campaign
from raykd.store.place import Place
from raykd.store.stage_folder import Stage, fingerprint
from raykd.store.tables import MANIFEST, SPLITS, first_duplicates

CHECKED_IMAGES = 32
SPLIT_NAMES = {"pool": "pool", "train": "pool", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def build(campaign: Campaign) -> Stage:
    """The manifest table, and ``classes.json`` beside it. Cost: one listing of each source.

    Raises:
        ValueError: A folder is missing or holds no image, ids or class names repeat, a label is not a class, too few
            images for the budget, or the first images looked at cannot be read.
    """
    config = campaign.config
    keys = ("classes", "pool", "test", "val", "test_share", "val_share", "split_seed")
    inputs = {key: value for key, value in config.identity().items() if key in keys}
    if isinstance(config.classes, str):  # a file of the same name may hold other names by now
        inputs["classes"] = class_names(config.classes, None)
    stage = campaign.stage("pool", inputs)
    if stage.is_done():
        check_sizes(campaign, read_manifest(stage), read_classes(stage))  # rounds may have been raised
        return stage
    with stage.writing() as out:
        table, found = manifest(campaign)
        classes = class_names(config.classes, found)
        check_labels(table, classes)
        check_sizes(campaign, table, classes)
        check_readable(campaign, table)
        (out.place / "manifest.parquet").write_table(table)
        (out.place / "classes.json").write_json(classes)
        out.facts |= {split: int(pc.sum(pc.equal(table["split"], split)).as_py() or 0) for split in SPLITS}
        out.facts["content"] = content(table, classes)
    campaign.say("pool", ", ".join(f"{stage.facts[split]:,} {split}" for split in SPLITS) + f", {len(classes)} classes")
    return stage


def read_manifest(pool: Stage) -> pa.Table:
    return (pool.place / "manifest.parquet").read_table()


def read_classes(pool: Stage) -> list[str]:
    return (pool.place / "classes.json").read_json()


def content(table: pa.Table, classes: list[str]) -> str:
    """Names what the manifest says, in any row order."""
    texts = [table[name].fill_null("") for name in ("sample_id", "uri", "label", "split")]
    rows = hash_ids(pc.binary_join_element_wise(*texts, "\n").to_pylist())
    return fingerprint([classes, len(rows), int(np.bitwise_xor.reduce(rows)), int(rows.sum(dtype=np.uint64))])


# ---------------------------------------------------------------- from sources to rows


def manifest(campaign: Campaign) -> tuple[pa.Table, list[str] | None]:
    """All rows of all sources, splits drawn; and the class names that the pool's folders suggest, if they do."""
    config = campaign.config
    rows, found = list_source(campaign, materialise(config.pool), "pool")
    if not rows.num_rows:
        raise UserError(f"pool: no image in {config.pool.path} (format {config.pool.format})")
    hashes = hash_ids(rows["sample_id"].to_pylist())
    if config.pool.limit:
        in_pool = pc.equal(rows["split"], "pool").to_numpy(zero_copy_only=False)
        draws = np.where(in_pool, uniform(hashes, config.split_seed, "limit"), -1.0)  # test and val all stay
        keep = np.argsort(draws, kind="stable")[: int((~in_pool).sum()) + config.pool.limit]
        rows, hashes = rows.take(np.sort(keep)), hashes[np.sort(keep)]
    rows = draw_splits(rows, uniform(hashes, config.split_seed, "split"), config.test_share, config.val_share)
    for split, source in (("test", config.test), ("val", config.val)):
        if source is not None:
            more, _ = list_source(campaign, source, split)
            if not more.num_rows or more["label"].null_count:
                raise UserError(
                    f"{split}: {source.path} holds {more.num_rows} images, {more['label'].null_count} of "
                    "them without a label; expected labeled images"
                )
            rows = pa.concat_tables([rows, more])
    if repeated := first_duplicates(rows["sample_id"]):
        raise UserError(f"sample ids repeat, such as {', '.join(map(repr, repeated))}; every image needs its own")
    return rows, found


def draw_splits(rows: pa.Table, draws_N: np.ndarray, test_share: float, val_share: float) -> pa.Table:
    """Set aside random shares of the labeled pool rows as test and val."""
    if not test_share and not val_share:
        return rows
    split = np.array(rows["split"].to_pylist(), dtype=object)
    labeled = np.flatnonzero((split == "pool") & rows["label"].is_valid().to_numpy(zero_copy_only=False))
    if not labeled.size:
        raise UserError("test_share and val_share need a pool with labels; give test: and val: sources instead")
    order = labeled[np.argsort(draws_N[labeled], kind="stable")]
    num_test, num_val = round(test_share * len(order)), round(val_share * len(order))
    split[order[:num_test]] = "test"
    split[order[num_test : num_test + num_val]] = "val"
    return rows.set_column(rows.schema.get_field_index("split"), "split", pa.array(split.tolist(), pa.string()))


def list_source(campaign: Campaign, source: Source, split: str) -> tuple[pa.Table, list[str] | None]:
    """The rows of one source, labels as class names; and the class names it suggests."""
    place = Place.of(source.path)
    if not place.exists():
        raise UserError(f"{split}: nothing at {source.path!r} ({place}); give the folder or Parquet file of the images")
    reader = {"images": list_images, "class_folders": list_images, "parquet": list_parquet, "coop_split": list_coop}
    rows = reader[source.format](campaign, source, place, split)
    values = sorted(set(rows["label"].drop_null().to_pylist()))
    if source.label_values is None:
        return rows, values or None
    names = campaign.config.classes
    known = values if source.label_values == "sorted" else source.label_values
    if names is None:
        raise UserError(f"{split}.label_values is given, so classes must be too: the names in the same order")
    names = class_names(names, None)
    if len(known) != len(names):
        raise UserError(
            f"{split}.label_values has {len(known)} values, classes has {len(names)} names; expected as many"
        )
    if missing := set(values) - set(known):
        raise UserError(f"{split}: labels {sorted(missing)[:5]} are not in label_values")
    mapped = pc.take(pa.array(names), pc.index_in(rows["label"], value_set=pa.array(known)))
    return rows.set_column(rows.schema.get_field_index("label"), "label", mapped), None


def list_images(campaign: Campaign, source: Source, place: Place, split: str) -> pa.Table:
    """Image files of a folder at any depth; with class_folders, the first folder is the label."""
    if not place.is_dir():
        raise UserError(f"{split}: {source.path!r} is a file; format {source.format} expects a folder")
    root = place.path.rstrip("/") + "/"
    infos = [(info, info.path.removeprefix(root)) for info in place.files(recursive=True)]
    infos = [(info, name) for info, name in infos if not any(part.startswith(".") for part in name.split("/"))]
    images = [(info, name) for info, name in infos if name.lower().endswith(SUFFIXES)]
    if ignored := [name for _, name in infos if not name.lower().endswith(SUFFIXES)]:
        campaign.say(split, f"{len(ignored)} files in {source.path} are not images, such as {ignored[0]!r}; left out")
    labels: list[str | None] = [None] * len(images)
    if source.format == "class_folders":
        if loose := [name for _, name in images if "/" not in name]:
            raise UserError(
                f"{split}: {len(loose)} images, such as {loose[0]!r}, lie in no class folder of {source.path}"
            )
        labels = [name.split("/")[0] for _, name in images]
    return pa.table(
        {
            "sample_id": [name if split == "pool" else f"{split}/{name}" for _, name in images],
            "uri": [place.sibling(info.path).uri for info, _ in images],
            "size_bytes": [info.size for info, _ in images],
            "label": labels,
            "split": [split] * len(images),
        },
        schema=MANIFEST,
    )


def list_parquet(campaign: Campaign, source: Source, place: Place, split: str) -> pa.Table:
    """Rows of Parquet files; the bytes stay there, the uri says in which row."""
    dataset = place.parquet()
    wanted = [source.id_column, source.label_column, source.split_column, source.uri_column]
    columns = [name for name in wanted if name]
    if missing := {*columns, *([source.image_column] if source.image_column else [])} - set(dataset.schema.names):
        raise UserError(
            f"{split}: {source.path} has no column {', '.join(map(repr, sorted(missing)))}; it has "
            f"{', '.join(dataset.schema.names)} (see id_column, image_column, label_column, ... of the source)"
        )
    parts = []
    for file in dataset.files:
        table = place.sibling(file).parquet().to_table(columns=columns)
        count = table.num_rows
        if source.uri_column:
            base = place.sibling(file.rsplit("/", 1)[0])
            uris = [absolute(uri, base) for uri in table[source.uri_column].to_pylist()]
        else:
            uris = [f"{place.sibling(file).uri}#{source.image_column}/{row:09d}" for row in range(count)]
        ids = table[source.id_column]
        if ids.null_count:
            raise UserError(f"{split}: {ids.null_count} of {count} rows of {file} have no {source.id_column}")
        ids = pc.cast(ids, pa.string())
        parts.append(
            pa.table(
                {
                    "sample_id": ids if split == "pool" else pc.binary_join_element_wise(split, ids, "/"),
                    "uri": pa.array(uris, pa.string()),
                    "size_bytes": pa.nulls(count, pa.int64()),
                    "label": pc.cast(table[source.label_column], pa.string())
                    if source.label_column
                    else pa.nulls(count, pa.string()),
                    "split": split_column(table[source.split_column], source)
                    if source.split_column and split == "pool"
                    else pa.array([split] * count, pa.string()),
                },
                schema=MANIFEST,
            )
        )
    return pa.concat_tables(parts)


def absolute(uri: str, base: Place) -> str:
    return uri if "://" in uri or uri.startswith("/") else (base / uri).uri


def split_column(column: pa.ChunkedArray, source: Source) -> pa.Array:
    values = column.to_pylist()
    if unknown := {value for value in values if value not in SPLIT_NAMES}:
        raise UserError(
            f"column {source.split_column!r} holds {sorted(map(str, unknown))[:5]}; expected {list(SPLIT_NAMES)}"
        )
    return pa.array([SPLIT_NAMES[value] for value in values], pa.string())


def list_coop(campaign: Campaign, source: Source, place: Place, split: str) -> pa.Table:
    """A CoOp-style split file: ``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``."""
    assert source.split_file is not None
    file = Place.of(source.split_file)
    if not file.exists():
        raise UserError(f"{split}.split_file: nothing at {source.split_file!r}")
    lists = file.read_json()
    if not isinstance(lists, dict) or not {"train", "val", "test"} <= set(lists):
        raise UserError(f"{split}.split_file: {source.split_file!r} has not the lists train, val and test")
    rows = [(path, name, SPLIT_NAMES[part]) for part in ("train", "val", "test") for path, _, name in lists[part]]
    return pa.table(
        {
            "sample_id": [path for path, _, _ in rows],
            "uri": [(place / path).uri for path, _, _ in rows],
            "size_bytes": pa.nulls(len(rows), pa.int64()),
            "label": [name for _, name, _ in rows],
            "split": [part for _, _, part in rows],
        },
        schema=MANIFEST,
    )


# ---------------------------------------------------------------- classes and checks


def class_names(given: list[str] | str | None, found: list[str] | None) -> list[str]:
    """The class list: given, from a text file, or what the labels suggest.

    Raises:
        ValueError: There is none, it has fewer than two names, or names repeat.
    """
    if isinstance(given, str):
        place = Place.of(given)
        if not place.exists():
            raise UserError(f"classes: no file {given!r}; give a text file with one class a line, or a list")
        given = [line.strip() for line in place.read_bytes().decode("utf-8-sig").splitlines() if line.strip()]
    names = given if given is not None else found
    if names is None:
        raise UserError("classes: not given, and the pool has no labels to take them from; give a list or a text file")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"classes: {', '.join(map(repr, repeated[:5]))} is there more than once")
    if len(names) < 2:
        raise UserError(f"classes: {names}; expected at least two")
    return list(names)


def check_labels(table: pa.Table, classes: list[str]) -> None:
    unknown = sorted(set(table["label"].drop_null().unique().to_pylist()) - set(classes))
    if unknown:
        near = difflib.get_close_matches(unknown[0], classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; classes begin with {', '.join(map(repr, classes[:5]))}"
        raise UserError(
            f"{len(unknown)} labels in the data are not in classes, such as {unknown[0]!r}{hint} (label_values maps "
            "the data's own values to class names)"
        )


def check_sizes(campaign: Campaign, table: pa.Table, classes: list[str]) -> None:
    """Whether the pool has as many images as the whole campaign will ask for."""
    config = campaign.config
    in_pool = table.filter(pc.equal(table["split"], "pool"))
    budget = config.selection.budget or len(classes)
    asked = (config.rounds - (config.labels.start != "none")) * budget
    start = len(classes) if config.labels.start == "one_per_class" else 0
    if asked + start > in_pool.num_rows:
        raise UserError(
            f"{config.rounds} rounds with a budget of {budget} ask for {asked + start} labels, the pool has "
            f"{in_pool.num_rows} images; lower rounds or selection.budget"
        )
    if config.labels.oracle == "simulated":
        if in_pool["label"].null_count:
            raise UserError(
                f"labels.oracle: simulated needs a label for every pool image; {in_pool['label'].null_count} of "
                f"{in_pool.num_rows} have none; use oracle: people"
            )
        absent = sorted(set(classes) - set(in_pool["label"].unique().to_pylist()))
        if absent and config.labels.start == "one_per_class":
            raise UserError(
                f"labels.start: one_per_class, but {len(absent)} classes have no image, such as {absent[0]!r}"
            )


def check_readable(campaign: Campaign, table: pa.Table) -> None:
    """Look at a few images, drawn at random, before any expensive work. Raises ValueError when most are bad."""
    draws = uniform(hash_ids(table["sample_id"].to_pylist()), campaign.config.seed, "check")
    rows = table.take(np.argsort(draws, kind="stable")[:CHECKED_IMAGES]).to_pylist()
    reasons = load_many(ImageReader(), [row["uri"] for row in rows], lambda image: image.size)
    bad = [(row, reason) for row, reason in zip(rows, reasons, strict=True) if isinstance(reason, str)]
    if len(bad) > max(1, len(rows) / 2):
        row, reason = bad[0]
        raise UserError(
            f"{len(bad)} of the {len(rows)} images looked at first cannot be read, such as {row['uri']!r}: {reason}"
        )
