"""The manifest: every image once, by id, from any kind of source; and a clear error before any work. Starts no Ray."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import load_all, new_campaign
from PIL import Image

from raykd.algo.prompts import ClassTexts
from raykd.images.stored import ImageReader

CLASSES = ["red", "green", "blue"]


@pytest.fixture
def build(tmp_path, settings):
    """Lists the pool of a campaign whose settings the keyword arguments change; returns the campaign and the pool."""
    from raykd.stages.pool import list_pool

    numbers = iter(range(99))

    def build(*overrides, **changes):
        campaign = new_campaign(
            {**settings, **changes, "storage_path": str(tmp_path / f"campaign_{next(numbers)}")}, *overrides
        )
        return campaign, list_pool(campaign)

    return build


@pytest.fixture
def rows(build):
    """The manifest of such a campaign as ``{sample_id: row}``."""

    def rows(*overrides, **changes):
        manifest = build(*overrides, **changes)[1].manifest.to_pylist()
        assert len({row["sample_id"] for row in manifest}) == len(manifest)
        return {row["sample_id"]: row for row in manifest}

    return rows


@pytest.fixture
def refused(build):
    """What such a campaign is refused with; nothing of it counts."""

    def refused(*overrides, **changes):
        with pytest.raises(ValueError) as caught:  # noqa: PT011  (each test looks at the words)
            build(*overrides, **changes)
        return str(caught.value)

    return refused


def unlabeled(**more) -> dict:
    return {"labels": {"oracle": "people"}, "test_share": 0, "val_share": 0, **more}


def encoded(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(folder: Path, count: int = 30, **columns) -> dict:
    """Images in two Parquet files of a folder, and the settings for them."""
    folder.mkdir(exist_ok=True)
    table = pa.table(
        {
            "key": [f"id-{i:02d}" for i in range(count)],
            "png": [encoded(i) for i in range(count)],
            "name": [CLASSES[i % 3] for i in range(count)],
            **columns,
        }
    )
    pq.write_table(table.slice(0, 17), folder / "a.parquet", row_group_size=5)
    pq.write_table(table.slice(17), folder / "b.parquet")
    return {
        "path": str(folder), "format": "parquet", "id_column": "key", "image_column": "png", "label_column": "name",
    }  # fmt: skip


def pixels_of(row: dict) -> np.ndarray:
    (image,) = load_all(ImageReader(), [row["uri"]], lambda image: image)
    assert not isinstance(image, str), image
    return np.asarray(image)


# ---------------------------------------------------------------- formats and ids


def test_class_folders_give_labels_and_relative_paths_as_ids(rows, image_folder):
    manifest = rows()
    assert sorted(manifest) == sorted(str(file.relative_to(image_folder)) for file in image_folder.rglob("*.png"))
    for name, row in manifest.items():
        assert row["label"] == name.split("/")[0]
        assert row["uri"] == str(image_folder / name)
        assert row["size_bytes"] == (image_folder / name).stat().st_size
        assert row["mtime_ns"] == (image_folder / name).stat().st_mtime_ns


def test_class_names_are_the_sorted_folders_unless_given_and_the_given_order_stays(build, tmp_path):
    assert list(build()[1].classes) == ["blue", "green", "red"]
    assert list(build(classes=["red", "green", "blue"])[1].classes) == ["red", "green", "blue"]
    (tmp_path / "classes.txt").write_text("\ufeffgreen\n\n  red \r\nblue\n", "utf-8")
    assert list(build(classes=str(tmp_path / "classes.txt"))[1].classes) == ["green", "red", "blue"]


def test_a_folder_of_images_at_any_depth_has_no_labels(rows, image_folder):
    manifest = rows(**unlabeled(pool={"path": str(image_folder), "format": "images"}, classes=CLASSES))
    assert len(manifest) == 48
    assert "red/000.png" in manifest
    assert {row["label"] for row in manifest.values()} == {None}
    assert {row["split"] for row in manifest.values()} == {"pool"}


def test_hidden_files_and_folders_are_passed_over_and_other_files_are_named(build, image_folder, tmp_path):
    folder = Path(shutil.copytree(image_folder, tmp_path / "mixed"))
    (folder / ".cache").mkdir()
    for hidden in ("red/.000.png", ".cache/001.png"):
        shutil.copy(folder / "red" / "000.png", folder / hidden)
    shutil.copy(folder / "red" / "000.png", folder / "red" / "UPPER.PNG")
    (folder / "red" / "notes.txt").write_text("not an image")
    campaign, stage = build(pool={"path": str(folder), "format": "class_folders"})
    ids = set(stage.manifest["sample_id"].to_pylist())
    assert len(ids) == 49
    assert "red/UPPER.PNG" in ids
    said = campaign.progress.stream.getvalue()
    assert "1 files" in said
    assert "'red/notes.txt'" in said


def test_names_that_look_like_uris_or_patterns_are_just_names(rows, image_folder, tmp_path):
    folder = Path(shutil.copytree(image_folder, tmp_path / "odd names"))
    odd = ["red/a b.png", "red/50%.png", "red/what?.png", "red/#1.png", "green/ünïcode.png", "blue/[x]*.png"]
    for name in odd:
        shutil.copy(folder / "red" / "003.png", folder / name)
    manifest = rows(pool={"path": str(folder), "format": "class_folders"})
    expected = pixels_of(manifest["red/003.png"])
    for name in odd:
        assert np.array_equal(pixels_of(manifest[name]), expected)


def test_parquet_bytes_are_found_again_by_the_users_own_id(rows, tmp_path):
    manifest = rows(pool=write_parquet(tmp_path / "bytes"))
    assert len(manifest) == 30
    for i in (0, 4, 5, 16, 17, 29):
        row = manifest[f"id-{i:02d}"]
        assert row["label"] == CLASSES[i % 3]
        assert np.array_equal(pixels_of(row), np.asarray(Image.open(io.BytesIO(encoded(i)))))


def test_parquet_ids_and_labels_that_are_numbers_become_text(rows, tmp_path):
    source = write_parquet(tmp_path / "numbers", key=list(range(30)), name=[i % 3 for i in range(30)])
    manifest = rows(pool={**source, "label_values": ["0", "1", "2"]}, classes=CLASSES)
    assert manifest["29"]["label"] == "blue"


def test_parquet_uris_may_be_relative_to_their_file_or_absolute(rows, image_folder, tmp_path):
    names = [f"{name}/{i:03d}.png" for name in CLASSES for i in range(10)]
    folder = Path(shutil.copytree(image_folder, tmp_path / "with images"))
    where = [name if i % 2 else str(image_folder / name) for i, name in enumerate(names)]
    source = write_parquet(folder, where=where) | {"image_column": None, "uri_column": "where"}
    manifest = rows(pool=source)
    for i, name in enumerate(names):
        assert np.array_equal(pixels_of(manifest[f"id-{i:02d}"]), np.asarray(Image.open(image_folder / name)))


def test_a_parquet_column_may_name_the_splits(rows, tmp_path):
    words = ["train", "pool", "val", "validation", "valid", "test"]
    source = write_parquet(tmp_path / "split", part=[words[i % 6] for i in range(30)])
    manifest = rows("labels.start=none", pool={**source, "split_column": "part"}, test_share=0, val_share=0)
    expected = ["pool", "pool", "val", "val", "val", "test"]
    assert {key: row["split"] for key, row in manifest.items()} == {f"id-{i:02d}": expected[i % 6] for i in range(30)}


def test_a_coop_split_file_gives_labels_and_splits(rows, image_folder, tmp_path):
    def part(numbers):
        return [[f"{name}/{i:03d}.png", c, name] for c, name in enumerate(CLASSES) for i in numbers]

    file = tmp_path / "split_zhou.json"
    file.write_text(json.dumps({"train": part(range(10)), "val": part(range(10, 12)), "test": part(range(12, 16))}))
    source = {"path": str(image_folder), "format": "coop_split", "split_file": str(file)}
    manifest = rows(pool=source, test_share=0, val_share=0)
    assert manifest["green/011.png"]["split"] == "val"
    assert manifest["green/011.png"]["label"] == "green"
    splits = [row["split"] for row in manifest.values()]
    assert [splits.count(name) for name in ("pool", "val", "test")] == [30, 6, 12]
    assert np.array_equal(pixels_of(manifest["red/005.png"]), np.asarray(Image.open(image_folder / "red/005.png")))


def test_ids_of_separate_test_and_val_sources_cannot_meet_the_pools(rows, image_folder, tmp_path):
    source = {"path": str(image_folder), "format": "class_folders"}
    inside = write_parquet(tmp_path / "val", part=["train"] * 30) | {"split_column": "part"}
    manifest = rows(pool=source, test=source, val=inside, test_share=0, val_share=0)
    assert len(manifest) == 48 + 48 + 30
    for key, split in (("red/000.png", "pool"), ("test/red/000.png", "test"), ("val/id-00", "val")):
        assert manifest[key]["split"] == split
        assert manifest[key]["label"] == "red"
    assert manifest["test/red/000.png"]["uri"] == manifest["red/000.png"]["uri"]


# ---------------------------------------------------------------- splits, limit, label values


def test_split_shares_are_as_asked_disjoint_and_drawn_by_split_seed(rows):
    manifest = rows(test_share=0.25, val_share=0.125)
    splits = [row["split"] for row in manifest.values()]
    assert [splits.count(name) for name in ("pool", "val", "test")] == [30, 6, 12]
    again, other = rows(test_share=0.25, val_share=0.125), rows(test_share=0.25, val_share=0.125, split_seed=1)
    assert again == manifest
    assert {key: row["split"] for key, row in other.items()} != {key: row["split"] for key, row in manifest.items()}


def test_a_draw_hangs_on_the_id_and_not_on_order_or_neighbours(rows, tmp_path):
    """With 9 more images the 6 first of 30 are among the 15 first, whatever is drawn for the new ones."""
    table = pq.read_table(write_parquet(tmp_path / "one")["path"])
    order = np.random.default_rng(0).permutation(30)
    (tmp_path / "two").mkdir()
    pq.write_table(table.take(order), tmp_path / "two" / "all.parquet")
    write_parquet(tmp_path / "three", 39)
    source = write_parquet(tmp_path / "one")

    def parts(name, **shares):
        manifest = rows(pool={**source, "path": str(tmp_path / name)}, **shares)
        return {split: {k for k, row in manifest.items() if row["split"] == split} for split in ("test", "val", "pool")}

    first = parts("one", test_share=0.2, val_share=0.2)
    assert parts("two", test_share=0.2, val_share=0.2) == first
    assert parts("one", test_share=0.4, val_share=0.2)["test"] >= first["test"]
    more = parts("three", test_share=0.5, val_share=0.0)["test"]
    assert more >= first["test"]


def test_the_content_of_a_manifest_has_one_name_in_any_row_order(build, tmp_path):
    from raykd.store.outputs import manifest_content

    table = build(pool=write_parquet(tmp_path / "p"))[1].manifest
    name = manifest_content(table)
    assert manifest_content(table.take(np.random.default_rng(1).permutation(30))) == name
    assert manifest_content(table.slice(1)) != name
    relabeled = table.set_column(table.schema.get_field_index("label"), "label", pa.array(["red"] * 30))
    assert manifest_content(relabeled) != name


def test_a_pool_with_more_text_than_a_column_holds_is_refused_unless_a_limit_makes_it_fit(
    build, refused, tmp_path, monkeypatch
):
    from raykd.images import sources

    source = write_parquet(tmp_path / "many")  # 30 ids of 5 letters, uris that are longer
    size = sum(map(len, build(pool=source)[1].manifest["uri"].to_pylist()))
    monkeypatch.setattr(sources, "MOST_BYTES", size - 1)
    assert "about 29 images of such names. Draw as many with pool.limit" in refused(pool=source)
    assert build(pool=source | {"limit": 29})[1].manifest.num_rows == 29


def test_a_limit_takes_a_random_subset_of_the_pool_and_all_of_test_and_val(rows, tmp_path):
    source = write_parquet(tmp_path / "limit", part=["train"] * 20 + ["val"] * 4 + ["test"] * 6)
    source["split_column"] = "part"

    def chosen(seed, limit):
        manifest = rows(
            "labels.start=none", pool={**source, "limit": limit}, test_share=0, val_share=0, split_seed=seed
        )
        splits = [row["split"] for row in manifest.values()]
        assert [splits.count("val"), splits.count("test")] == [4, 6]
        return {key for key, row in manifest.items() if row["split"] == "pool"}

    first = chosen(0, 9)
    assert len(first) == 9
    assert chosen(0, 9) == first
    assert chosen(1, 9) != first
    assert chosen(0, 12) > first
    assert len(chosen(0, 500)) == 20


def test_label_values_sorted_or_listed_map_the_datas_own_labels_to_classes(rows, build, image_folder):
    source = {"path": str(image_folder), "format": "class_folders"}
    names = ["sky", "leaf", "rose"]
    by_order = rows(pool={**source, "label_values": "sorted"}, classes=names)
    by_list = rows(pool={**source, "label_values": ["blue", "green", "red"]}, classes=names)
    assert by_order == by_list
    assert by_list["blue/000.png"]["label"] == "sky"
    assert by_list["red/000.png"]["label"] == "rose"
    assert list(build(pool={**source, "label_values": "sorted"}, classes=names)[1].classes) == names


def test_it_counts_each_split_and_says_what_the_labels_mean(build, image_folder):
    source = {"path": str(image_folder), "format": "class_folders", "label_values": "sorted"}
    campaign, pool = build(pool=source, classes=["sky", "leaf", "rose"])
    assert pool.counts == {"pool": 28, "val": 10, "test": 10}
    said = campaign.progress.stream.getvalue()
    assert "labels: 'blue' = sky, 'green' = leaf, 'red' = rose" in said
    assert "3 classes: sky, leaf, rose" in said


# ---------------------------------------------------------------- bad input


def test_a_missing_folder_is_named_with_its_full_path(refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    message = refused(pool={"path": "fotos", "format": "images"})
    assert f"pool: nothing at '{tmp_path / 'fotos'}'" in message


def test_a_file_where_a_folder_belongs_is_refused(refused, tmp_path):
    (tmp_path / "one.png").write_bytes(encoded())
    message = refused(pool={"path": str(tmp_path / "one.png"), "format": "images"})
    assert "is a file" in message
    assert "expects a folder" in message


def test_an_empty_pool_is_refused(refused, tmp_path):
    (tmp_path / "empty" / "red").mkdir(parents=True)
    (tmp_path / "empty" / "red" / "notes.txt").write_text("")
    assert "no image in" in refused(pool={"path": str(tmp_path / "empty"), "format": "class_folders"})


def test_a_folder_without_parquet_is_refused(refused, image_folder):
    assert "no Parquet file" in refused(pool={"path": str(image_folder), "format": "parquet"})


def test_images_in_no_class_folder_are_refused(refused, image_folder, tmp_path):
    folder = Path(shutil.copytree(image_folder, tmp_path / "loose"))
    shutil.copy(folder / "red" / "000.png", folder / "loose.png")
    message = refused(pool={"path": str(folder), "format": "class_folders"})
    assert "1 images, such as 'loose.png', lie in no class folder" in message


def test_duplicate_ids_are_refused_by_name(refused, tmp_path):
    keys = [f"id-{i:02d}" for i in range(28)] + ["id-03", "id-07"]
    message = refused(pool=write_parquet(tmp_path / "twice", key=keys))
    assert "sample ids repeat" in message
    assert "'id-03'" in message


def test_rows_without_an_id_are_refused(refused, tmp_path):
    keys = [f"id-{i:02d}" for i in range(29)] + [None]
    message = refused(pool=write_parquet(tmp_path / "none", key=keys))
    assert "1 of" in message
    assert "have no key" in message


def test_a_missing_column_lists_the_ones_there_are(refused, tmp_path):
    message = refused(pool=write_parquet(tmp_path / "p") | {"label_column": "label"})
    assert "no column 'label'" in message
    assert "key, png, name" in message


def test_unknown_words_in_a_split_column_are_refused(refused, tmp_path):
    source = write_parquet(tmp_path / "p", part=["train"] * 29 + ["holdout"])
    message = refused(pool=source | {"split_column": "part"}, test_share=0, val_share=0)
    assert "b.parquet holds 'holdout'; expected pool, train, training, val" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "nothing at"),
        ('{"train": []}', "'val' is not there"),
        ('{"train": {"a.png": "red"}, "val": [], "test": []}', "'train' is {'a.png': 'red'}"),
        ('{"train": [], "val": [], "test": []}', "no row"),
        ("[]", "no object with the lists 'train', 'val', 'test'"),
    ],
)
def test_a_coop_split_file_that_is_none_is_refused(refused, image_folder, tmp_path, text, words):
    if text is not None:
        (tmp_path / "split.json").write_text(text)
    source = {"path": str(image_folder), "format": "coop_split", "split_file": str(tmp_path / "split.json")}
    message = refused(pool=source, test_share=0, val_share=0)
    assert words in message
    assert "split.json" in message


def test_class_names_that_repeat_are_refused(refused):
    assert "classes: 'red' is there more than once" in refused(classes=["red", "green", "blue", "red"])


def test_a_single_class_and_a_missing_class_file_are_refused(refused):
    assert "expected at least two" in refused(classes=["red"])
    assert f"classes: no file '{Path.cwd() / 'nowhere.txt'}'" in refused(classes="nowhere.txt")


def test_no_classes_and_no_labels_to_take_them_from_is_refused(refused, image_folder):
    message = refused(**unlabeled(pool={"path": str(image_folder), "format": "images"}))
    assert "classes: not given" in message


def test_a_label_that_is_no_class_is_refused_with_the_nearest(refused):
    message = refused(classes=["redd", "green", "blue"])
    assert "such as 'red'" in message
    assert "did you mean 'redd'?" in message


def test_a_label_like_no_class_shows_the_classes(refused):
    message = refused(classes=["cat", "dog", "owl"])
    assert "3 labels" in message
    assert "known: cat, dog, owl" in message


def test_label_values_that_do_not_fit_are_refused(refused, image_folder):
    source = {"path": str(image_folder), "format": "class_folders"}
    assert "classes must be too" in refused(pool={**source, "label_values": "sorted"})
    message = refused(pool={**source, "label_values": "sorted"}, classes=["a", "b"])
    assert "classes has 2 names; expected as many" in message
    message = refused(pool={**source, "label_values": ["red", "green", "cyan"]}, classes=["a", "b", "c"])
    assert "labels ['blue'] are not in label_values" in message


def test_shares_of_a_pool_without_labels_are_refused(refused, image_folder):
    source = {"path": str(image_folder), "format": "images"}
    message = refused(pool=source, classes=CLASSES, test_share=0.1, labels={"oracle": "people"})
    assert "need a pool with labels" in message


def test_test_images_without_labels_are_refused(refused, image_folder):
    test = {"path": str(image_folder), "format": "images"}
    message = refused(test=test, test_share=0)
    assert "test:" in message
    assert "48 of them without a label" in message


def test_a_budget_larger_than_the_pool_is_refused_counting_all_rounds(refused, build):
    """One label a class to start, then a budget for each later round: 3 + 2 * 13 = 29 of 28."""
    message = refused("rounds=3", "selection.budget=13")
    assert "ask for 29 labels, and the pool has 28 images" in message
    assert "lower selection.budget (to 12 or less) or rounds" in message
    build("rounds=6", "selection.budget=5")
    message = refused("rounds=3", "selection.budget=10", "labels.start=none")
    assert "ask for 30 labels" in message


def test_a_campaign_that_goes_on_for_more_rounds_than_the_pool_has_is_refused_too(build, settings):
    """rounds may be raised later, when the pool is listed already."""
    from raykd.stages.pool import list_pool

    campaign, _ = build()
    longer = new_campaign({**settings, "storage_path": campaign.place.uri, "rounds": 30})
    with pytest.raises(ValueError, match="ask for 90 labels, and the pool has 28 images"):
        list_pool(longer)


def test_a_simulated_oracle_without_labels_is_refused(refused, tmp_path):
    names = [CLASSES[i % 3] for i in range(28)] + [None, None]
    message = refused(pool=write_parquet(tmp_path / "p", name=names), test_share=0, val_share=0)
    assert "2 of 30 have none" in message
    assert "oracle: people" in message


def test_one_label_a_class_needs_an_image_of_each_class(refused, build):
    message = refused(classes=["red", "green", "blue", "cyan"])
    assert "1 classes have no image, such as 'cyan'" in message
    build("labels.start=none", classes=["red", "green", "blue", "cyan"])


def test_a_pool_of_which_most_cannot_be_read_is_refused_before_any_work(refused, image_folder, tmp_path):
    folder = Path(shutil.copytree(image_folder, tmp_path / "broken"))
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])
    message = refused(pool={"path": str(folder), "format": "class_folders"})
    assert "32 of the 32 images looked at first cannot be read, such as" in message
    assert "broken in its first bytes" in message


def test_a_pool_that_fails_leaves_no_part_and_can_be_mended(build, settings, tmp_path):
    from raykd.stages.pool import list_pool

    campaign = new_campaign({**settings, "storage_path": str(tmp_path / "run")})
    shutil.move(settings["pool"]["path"], tmp_path / "away")
    try:
        with pytest.raises(ValueError, match="nothing at"):
            list_pool(campaign)
        assert not list((tmp_path / "run" / "pool").iterdir())
    finally:
        shutil.move(tmp_path / "away", settings["pool"]["path"])
    assert list_pool(campaign).counts["pool"] == 28


# ---------------------------------------------------------------- a pool that changes


@pytest.fixture
def again(settings, tmp_path, image_folder):
    """Lists the pool of one campaign, whenever it is called; gives what was said besides."""
    from raykd.stages.pool import list_pool

    folder = Path(shutil.copytree(image_folder, tmp_path / "growing"))
    source = {"path": str(folder), "format": "class_folders"}

    def again(*overrides, **changes):
        given = {**settings, "pool": {**source, **changes}, "storage_path": str(tmp_path / "run")}
        campaign = new_campaign(given, *overrides)
        return list_pool(campaign), campaign.progress.stream.getvalue()

    return again, folder


def test_new_images_are_a_part_of_their_own_all_of_it_pool_and_the_old_parts_stay(again):
    listed, folder = again
    first, _ = listed()
    for number in range(20):
        shutil.copy(folder / "red" / "000.png", folder / "red" / f"new_{number:02d}.png")
    second, said = listed()
    assert second.parts[0] == first.parts[0]
    new = second.listed[1].to_pylist()
    assert [row["sample_id"] for row in new] == [f"red/new_{number:02d}.png" for number in range(20)]
    assert {(row["split"], row["label"]) for row in new} == {("pool", "red")}
    assert second.counts == {"pool": 48, "val": 10, "test": 10}
    assert f"20 new images in {folder}: one more part" in said
    assert second.content != first.content
    third, said = listed()
    assert third.parts == second.parts
    assert "new images" not in said


def test_images_that_are_gone_or_others_now_are_said_and_nothing_of_the_manifest_changes(again):
    listed, folder = again
    first, _ = listed()
    (folder / "red" / "000.png").unlink()
    shutil.copy(folder / "blue" / "001.png", folder / "green" / "002.png")
    Image.new("RGB", (99, 99)).save(folder / "green" / "002.png")
    os.utime(folder / "green" / "003.png", ns=(1, 1))
    second, said = listed("max_bad_share=0.2")
    assert second.manifest.equals(first.manifest)
    assert f"1 images are no longer in {folder}, such as 'red/000.png'" in said
    assert (
        f"2 images in {folder} of those listed were written anew since (another size or time), such as 'green/0" in said
    )
    assert "label" not in said


def test_other_labels_and_bytes_in_the_same_parquet_rows_are_said_and_the_first_labels_stay(settings, tmp_path):
    from raykd.stages.pool import list_pool

    source = write_parquet(tmp_path / "p")
    given = {**settings, "pool": source, "storage_path": str(tmp_path / "run")}
    first = list_pool(new_campaign(given))
    file = tmp_path / "p" / "a.parquet"
    table = pq.read_table(file)
    old = table[source["label_column"]].to_pylist()
    new = sorted(set(old) - {old[3]})[0]
    at = table.schema.get_field_index(source["label_column"])
    pq.write_table(table.set_column(at, source["label_column"], [[*old[:3], new, *old[4:]]]), file)
    campaign = new_campaign(given)
    assert list_pool(campaign).manifest.equals(first.manifest)
    said = campaign.progress.stream.getvalue()
    name = table["key"][3].as_py()
    assert f"{len(old)} images in {tmp_path / 'p'} lie in files that were written anew since" in said
    assert (
        f"1 images have another label in the data than when they were listed, such as {name!r}: {old[3]!r}, now {new!r}"
        in said
    )


def test_sources_of_test_and_val_are_looked_at_again_too(settings, tmp_path, image_folder):
    from raykd.stages.pool import list_pool

    folders = {name: Path(shutil.copytree(image_folder, tmp_path / name)) for name in ("pool", "test", "val")}
    sources = {name: {"path": str(folder), "format": "class_folders"} for name, folder in folders.items()}
    given = {**settings, **sources, "storage_path": str(tmp_path / "run"), "test_share": 0.0, "val_share": 0.0}
    first = list_pool(new_campaign(given))
    (folders["test"] / "red" / "000.png").unlink()
    (folders["pool"] / "red" / "000.png").unlink()
    shutil.copy(folders["val"] / "red" / "000.png", folders["val"] / "red" / "new.png")
    campaign = new_campaign(given)
    assert list_pool(campaign).parts == first.parts
    said = campaign.progress.stream.getvalue()
    assert f"1 images are no longer in {folders['test']}, such as 'test/red/000.png'" in said
    assert f"1 images are no longer in {folders['pool']}, such as 'red/000.png'" in said
    assert "1 new images are of test or val; left out" in said
    shutil.rmtree(folders["test"] / "red")
    with pytest.raises(ValueError, match=rf"16 of 48 test images are no longer in {folders['test']}, more than"):
        list_pool(new_campaign(given))


def test_test_rows_without_a_label_that_have_come_since_are_left_out(settings, tmp_path, image_folder):
    from raykd.stages.pool import list_pool

    pool = {"path": str(image_folder), "format": "class_folders"}
    given = {**settings, "pool": pool, "test": write_parquet(tmp_path / "t"), "test_share": 0.0, "val_share": 0.0}
    first = list_pool(new_campaign(given))
    table = pq.read_table(tmp_path / "t" / "a.parquet").slice(0, 1)
    name, none = pa.array(["new"]), pa.array([None], pa.string())
    pq.write_table(table.set_column(0, "key", name).set_column(2, "name", none), tmp_path / "t" / "c.parquet")
    campaign = new_campaign(given)
    assert list_pool(campaign).parts == first.parts
    assert "1 new images are of test or val; left out" in campaign.progress.stream.getvalue()


def test_a_new_image_without_a_label_is_refused_before_it_is_part_of_a_simulated_campaign(settings, tmp_path):
    from raykd.stages.pool import list_pool

    given = {**settings, "pool": write_parquet(tmp_path / "p"), "storage_path": str(tmp_path / "run")}
    first = list_pool(new_campaign(given))
    table = pq.read_table(tmp_path / "p" / "a.parquet").slice(0, 1).set_column(0, "key", pa.array(["new"]))
    pq.write_table(table.set_column(2, "name", pa.array([None], pa.string())), tmp_path / "p" / "c.parquet")
    with pytest.raises(ValueError, match="1 of 19 have none, such as 'new': give them labels"):
        list_pool(new_campaign(given))
    pq.write_table(table, tmp_path / "p" / "c.parquet")  # mended
    assert len(list_pool(new_campaign(given)).parts) == len(first.parts) + 1


def test_ids_of_the_pool_may_begin_as_those_of_a_test_source_do(settings, tmp_path, image_folder):
    """A pool in folders of which one is called test is not new at its second listing."""
    from raykd.stages.pool import list_pool

    shutil.copytree(image_folder / "red", tmp_path / "p" / "test")
    shutil.copytree(image_folder / "blue", tmp_path / "p" / "blue")
    given = {**settings, "pool": {"path": str(tmp_path / "p"), "format": "class_folders"}}
    first = list_pool(new_campaign(given))
    assert list_pool(new_campaign(given)).parts == first.parts


def test_ids_that_repeat_in_a_pool_that_has_grown_are_refused_as_such(settings, tmp_path):
    from raykd.stages.pool import list_pool

    source = write_parquet(tmp_path / "p")
    given = {**settings, "pool": source, "storage_path": str(tmp_path / "run")}
    list_pool(new_campaign(given))
    table = pq.read_table(tmp_path / "p" / "a.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(2, 1)]), tmp_path / "p" / "a.parquet")
    with pytest.raises(ValueError, match=f"sample ids repeat, such as '{table['key'][2].as_py()}'"):
        list_pool(new_campaign(given))


def test_a_limited_pool_does_not_grow(again):
    listed, folder = again
    first, _ = listed(limit=20)
    shutil.copy(folder / "red" / "000.png", folder / "red" / "new.png")
    second, said = listed(limit=20)
    assert second.parts == first.parts
    assert "what has come since is left out, as pool.limit has drawn its images" in said


def test_a_new_image_of_no_known_class_is_refused_by_name(again):
    listed, folder = again
    listed()
    (folder / "cyan").mkdir()
    shutil.copy(folder / "red" / "000.png", folder / "cyan" / "000.png")
    with pytest.raises(ValueError, match="'cyan'"):
        listed()
    shutil.rmtree(folder / "cyan")
    listed()
    assert len(listed()[0].parts) == 1


def test_classes_may_be_renamed_one_after_the_other_and_merged(again):
    listed, _ = again
    listed()
    pool, _ = listed("labels.renamed={red: crimson}")
    assert pool.classes == ("blue", "green", "crimson")
    assert set(pool.manifest["label"].to_pylist()) == {"blue", "green", "crimson"}
    pool, _ = listed("labels.renamed={red: crimson, crimson: warm, green: warm}")
    assert pool.classes == ("blue", "warm")
    assert set(pool.manifest["label"].to_pylist()) == {"blue", "warm"}


def test_a_class_may_be_added_to_a_campaign_whose_labels_are_values_of_the_data(again):
    listed, folder = again
    given = {"label_values": "sorted"}
    listed("classes=[sky, leaf, rose]", **given)
    shutil.copy(folder / "red" / "000.png", folder / "red" / "new.png")
    pool, _ = listed("classes=[sky, leaf, rose, sun]", "labels.start=none", **given)
    assert pool.classes == ("sky", "leaf", "rose", "sun")
    assert pool.listed[1]["label"].to_pylist() == ["rose"]


def test_too_many_images_gone_are_told_before_anything_else(again):
    listed, folder = again
    listed()
    for number in range(6):
        (folder / "red" / f"{number:03d}.png").unlink()
    with pytest.raises(ValueError, match=r"images are no longer in .*, more than max_bad_share=0\.05"):
        listed()


def test_rows_that_moved_in_their_file_are_refused_as_others_would_be_read(settings, tmp_path):
    """The uri of an image in Parquet is its row: with rows put in front it is another image's."""
    from raykd.stages.pool import list_pool

    source = write_parquet(tmp_path / "p")
    given = {**settings, "pool": source, "storage_path": str(tmp_path / "run")}
    list_pool(new_campaign(given))
    table = pq.read_table(tmp_path / "p" / "a.parquet")
    pq.write_table(pa.concat_tables([table.slice(10), table.slice(0, 10)]), tmp_path / "p" / "a.parquet")
    with pytest.raises(ValueError, match=r"17 images lie elsewhere .*labels\.given"):
        list_pool(new_campaign(given))


# ---------------------------------------------------------------- tars and texts


def write_tar(path: Path, seeds) -> None:
    with tarfile.open(path, "w") as tar:
        for seed in seeds:
            for name, data in ((f"{seed}.png", encoded(seed)), (f"{seed}.cls", str(seed % 3).encode())):
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))


def test_a_pool_of_tars_is_split_and_grows_by_tars_and_each_is_indexed_once(build, settings, tmp_path, monkeypatch):
    from raykd.images import webdataset
    from raykd.stages.pool import list_pool

    folder, indexed, read = tmp_path / "tars", [], webdataset.read_index
    folder.mkdir()
    monkeypatch.setattr(webdataset, "read_index", lambda tar, notes: (indexed.append(tar.name), read(tar, notes))[1])
    write_tar(folder / "a.tar", range(30))
    pool = {"path": str(folder), "format": "webdataset", "label_values": "index"}
    campaign, first = build(pool=pool, classes=CLASSES)
    rows = {row["sample_id"]: row for row in first.manifest.to_pylist()}
    assert {name: row["label"] for name, row in rows.items()} == {f"a.tar/{i}": CLASSES[i % 3] for i in range(30)}
    assert {row["split"] for row in rows.values()} == {"pool", "val", "test"}
    assert np.array_equal(pixels_of(rows["a.tar/7"]), np.asarray(Image.open(io.BytesIO(encoded(7)))))
    write_tar(folder / "b.tar", range(30, 36))
    grown = list_pool(campaign)
    assert [part.facts["pool"] for part in grown.parts][1:] == [6]
    assert indexed == ["a.tar", "b.tar"]
    write_tar(folder / "a.tar", range(29, -1, -1))
    with pytest.raises(ValueError, match=r"30 images lie elsewhere in .*tars than when they were listed"):
        list_pool(campaign)


def test_texts_of_classes_go_with_the_class_when_it_is_renamed_or_merged(build, tmp_path):
    given = {"red": ["crimson"], "green": {"descriptions": ["a green thing."]}, "blue": []}
    pool = build(classes=given)[1]
    assert pool.classes == ("red", "green", "blue")
    assert pool.texts == {"red": ClassTexts(("crimson",)), "green": ClassTexts(None, ("a green thing.",))}
    assert build(classes=list(given))[1].texts == {}
    (tmp_path / "classes.json").write_text(json.dumps(given))
    merged = build("labels.renamed={red: warm, green: warm}", classes=str(tmp_path / "classes.json"), labels={
        "oracle": "simulated", "start": "none",
    })[1]  # fmt: skip
    assert merged.classes == ("warm", "blue")
    assert merged.texts == {"warm": ClassTexts(("crimson",), ("a green thing.",))}


def test_class_folders_whose_names_differ_only_by_case_are_refused_at_once(refused, image_folder, tmp_path):
    folder = Path(shutil.copytree(image_folder, tmp_path / "mixed"))
    shutil.copytree(folder / "red", folder / "Red")
    assert "classes: 'Red' and 'red' differ in nothing that the teacher sees" in refused(
        pool={"path": str(folder), "format": "class_folders"}
    )
