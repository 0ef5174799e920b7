"""The teacher's features are what a plain open_clip loop gives; by parts, of which a kill costs those in flight."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from fakes import Killed, images_read
from PIL import Image

from raykd.errors import UserError
from raykd.store.stage_folder import Writing


def features_of(encoded) -> pa.Table:
    tables = [part.place.read_table(["sample_id", "error", "features"]) for part in encoded.parts]
    return pa.concat_tables(tables).sort_by("sample_id")


def readable_features(encoded) -> tuple[list[str], np.ndarray]:
    table = features_of(encoded)
    table = table.filter(table["error"].is_null())
    return table["sample_id"].to_pylist(), np.array(table["features"].to_pylist())


def bits_of(encoded) -> dict[str, bytes]:
    """Each image's features, bit by bit (NaN where it cannot be read)."""
    rows = features_of(encoded).to_pylist()
    return {row["sample_id"]: np.array(row["features"], np.float16).tobytes() for row in rows}


@pytest.fixture
def fresh(finished, tmp_path):
    """A campaign of its own on a copy of the finished one's pool; called with overrides."""
    from fakes import new_campaign

    pool = Path(shutil.copytree(finished.settings["pool"]["path"], tmp_path / "pool"))
    made = iter(range(99))

    def fresh(*overrides, name=None):
        source = finished.settings["pool"] | {"path": str(pool)}
        settings = finished.settings | {"storage_path": str(tmp_path / (name or f"run_{next(made)}")), "pool": source}
        return new_campaign(settings, *overrides)

    return fresh


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 8 images and blocks of 4."""
    from raykd.stages import map_images

    monkeypatch.setattr(map_images, "PART_ROWS", 8)
    monkeypatch.setattr(map_images, "BLOCK_ROWS", 4)


@pytest.fixture
def read_images(monkeypatch) -> list[str]:
    """The uris that Ray Data is given to read, as they come."""
    return images_read(monkeypatch)


def run(campaign):
    from raykd.stages.encode import encode
    from raykd.stages.pool import list_pool

    return encode(campaign, list_pool(campaign))


# ---------------------------------------------------------------- the features


def test_features_equal_a_plain_open_clip_loop_on_the_same_checkpoint(finished):
    import open_clip

    ids, found = readable_features(finished.encoded)
    model, _, preprocess = open_clip.create_model_and_transforms(finished.settings["teacher"]["model"])
    model.eval()
    folder = Path(finished.settings["pool"]["path"])
    with torch.no_grad():
        images = [preprocess(Image.open(folder / name))[None] for name in ids]
        expected = torch.cat([model.encode_image(image, normalize=True) for image in images]).numpy()
    assert len(ids) == 48
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert features_of(finished.encoded).schema.field("features").type == pa.list_(pa.float16(), 16)


def test_a_truncated_image_is_in_quarantine_and_the_others_are_all_there(finished):
    (bad,) = finished.encoded.quarantine.to_pylist()
    assert bad["sample_id"] == "red/broken.png"
    assert bad["uri"] == str(Path(finished.settings["pool"]["path"]) / "red" / "broken.png")
    assert bad["reason"] == "truncated: the file ends before the image does"
    manifest = finished.pool.manifest
    rows = {row["sample_id"]: row for row in features_of(finished.encoded).to_pylist()}
    assert sorted(rows) == sorted(manifest["sample_id"].to_pylist())
    assert [name for name, row in rows.items() if row["error"] is not None] == ["red/broken.png"]
    assert np.isnan(rows["red/broken.png"]["features"]).all()
    assert finished.encoded.readable(manifest).num_rows == 48
    assert finished.encoded.rows == 49
    assert "1 of 49 images cannot be read" in finished.ended.err


def test_the_bits_do_not_depend_on_where_and_on_how_many_replicas_it_runs(ray_cluster, fresh, monkeypatch):
    from raykd.stages import map_images

    monkeypatch.setattr(map_images, "PART_ROWS", 17)
    monkeypatch.setattr(map_images, "BLOCK_ROWS", 4)
    here = run(fresh())
    monkeypatch.setattr(map_images, "FLOW_BYTES", 1000)  # Ray cuts its blocks wherever it can
    there = run(fresh("teacher.replicas=[2,2]"))
    assert bits_of(run(fresh())) == bits_of(here)
    assert len(here.parts) == 3
    assert bits_of(here) == bits_of(there)
    assert [part.fingerprint for part in here.parts] == [part.fingerprint for part in there.parts]


def test_the_bits_do_not_depend_on_the_manifests_order(ray_cluster, fresh, monkeypatch):
    from raykd.stages import encode, pool
    from raykd.store.outputs import Pool

    campaign = fresh()
    listed = pool.list_pool(campaign)
    plain = encode.encode(campaign, listed)
    shuffled = [t.take(np.random.default_rng(0).permutation(t.num_rows)) for t in listed.listed]
    monkeypatch.setattr(Pool, "listed", shuffled)
    again = fresh()
    assert bits_of(encode.encode(again, listed)) == bits_of(plain)


# ---------------------------------------------------------------- parts


def test_stopped_at_any_part_only_the_parts_in_flight_are_read_again(
    ray_cluster, fresh, small_parts, read_images, monkeypatch
):
    undisturbed = run(fresh())
    commit, stops = Writing.commit, iter([3, 1, 5])
    left = [next(stops)]

    def deadly(out):
        if out.folder.name == "encode":
            if not left[0]:
                left[0] = next(stops, 99)
                raise Killed
            left[0] -= 1
        return commit(out)

    monkeypatch.setattr(Writing, "commit", deadly)
    campaign, kept = fresh(name="killed"), []
    folder = Path(campaign.place.path) / "encode"
    for _ in range(5):
        before = set(kept)
        read_images.clear()
        try:
            found = run(campaign)
        except Killed:
            kept = sorted(part.name for part in folder.iterdir() if not part.name.startswith("."))
            assert before < set(kept)
            continue
        break
    assert len(read_images) == 8 * (7 - len(before)) - 7  # the last part has one image
    assert bits_of(found) == bits_of(undisturbed)
    assert not list(folder.glob(".*"))


def test_a_pool_that_has_grown_is_one_more_part_and_only_that_is_read(ray_cluster, fresh, read_images):
    first = run(fresh(name="grown"))
    campaign = fresh(name="grown")
    folder = Path(campaign.config.pool.path)
    for number in range(3):
        Image.new("RGB", (24, 24), (10 * number, 20, 30)).save(folder / "green" / f"new_{number}.png")
    (folder / "blue" / "001.png").unlink()
    read_images.clear()
    second = run(campaign)
    assert [Path(uri).name for uri in read_images] == ["new_0.png", "new_1.png", "new_2.png"]
    assert second.parts[: len(first.parts)] == first.parts
    assert set(bits_of(second)) - set(bits_of(first)) == {f"green/new_{number}.png" for number in range(3)}
    said = campaign.progress.stream.getvalue()
    assert f"3 new images in {folder}: one more part" in said
    assert f"1 images are no longer in {folder}, such as 'blue/001.png'" in said
    read_images.clear()
    third = run(fresh(name="grown"))
    assert third.parts == second.parts
    assert read_images == []


def test_two_campaigns_with_one_cache_read_the_pool_once(ray_cluster, fresh, read_images, tmp_path):
    first = run(fresh(f"cache_path={tmp_path / 'cache'}"))
    assert len(read_images) == 49
    other = fresh(f"cache_path={tmp_path / 'cache'}", "split_seed=3", "seed=5", "teacher.templates=['the {}']")
    second = run(other)
    assert len(read_images) == 49
    assert second.parts == first.parts
    assert not (Path(other.place.path) / "encode").exists()


def test_other_images_under_the_same_names_are_read_again(ray_cluster, fresh, read_images, tmp_path):
    cache = f"cache_path={tmp_path / 'cache'}"
    first = run(fresh(cache))
    campaign = fresh(cache)
    picture = Path(campaign.config.pool.path) / "green" / "004.png"
    Image.new("RGB", (24, 24), (9, 9, 9)).save(picture)
    second = run(campaign)
    assert bits_of(second)["green/004.png"] != bits_of(first)["green/004.png"]


def test_another_model_precision_or_image_list_is_another_part_and_a_batch_size_is_not(ray_cluster, fresh, tmp_path):
    cache = f"cache_path={tmp_path / 'cache'}"
    first = run(fresh(cache))
    assert run(fresh(cache, "teacher.batch_size=7")).parts == first.parts
    assert run(fresh(cache, "teacher.precision=bf16")).parts != first.parts


# ---------------------------------------------------------------- what is lost, doubled or away


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (["b"], r"2 of 3 images were not written, first 'a'"),
        (["c", "b", "a", "b"], r"1 of 3 images were written more than once, first 'b'"),
        (["a", "d", "b", "c"], r"1 of 3 images were written, but never asked for, first 'd'"),
        (["a", "b", "d"], r"1 of 3 images were not written, first 'c'"),
        (["a", "b", "c", None], "1 of 3 images were written, but never asked for, first None"),
        ([], "3 of 3 images were not written, first 'a'"),
    ],
)
def test_ids_that_are_missing_doubled_or_foreign_are_named(written, words):
    from raykd.stages.map_images import check_ids

    given = pa.chunked_array([["c"], ["a", "b"]])
    check_ids(given, pa.chunked_array([["b", "c"], ["a"]]))
    with pytest.raises(ValueError, match=words):
        check_ids(given, pa.chunked_array([pa.array(written, pa.string())]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table, is_it: pa.concat_tables([table, table.filter(pa.array(is_it))]), r"1 of 49 .* more than once"),
        (lambda table, is_it: table.filter(pa.array(~is_it)), "1 images of it were not written"),
    ],
)
def test_a_part_that_has_an_image_twice_or_not_at_all_is_not_kept(ray_cluster, fresh, monkeypatch, change, words):
    from raykd.stages import map_images

    class Careless(map_images.Counted):
        def tables(self, block):
            for table in super().tables(block):
                is_it = np.array(table["sample_id"].to_pylist()) == "green/004.png"
                yield change(table, is_it) if is_it.any() else table

    monkeypatch.setattr(map_images, "Counted", Careless)
    campaign = fresh()
    with pytest.raises(UserError, match=words):
        run(campaign)
    assert not list((Path(campaign.place.path) / "encode").iterdir())


def move_away(campaign, encoded_pool, split: str, count: int) -> list[tuple[Path, Path]]:
    moved = [Path(uri) for uri in encoded_pool.split(split)["uri"].to_pylist()[:count]]
    for path in moved:
        path.rename(path.with_suffix(".moved"))
    return [(path.with_suffix(".moved"), path) for path in moved]


def test_images_that_are_away_stop_it_with_the_other_parts_kept_so_that_they_can_be_put_back(
    ray_cluster, fresh, small_parts, read_images
):
    from raykd.stages.encode import encode
    from raykd.stages.pool import list_pool

    campaign = fresh("max_bad_share=0.05")
    pool = list_pool(campaign)
    back = move_away(campaign, pool, "test", 3)
    with pytest.raises(
        UserError, match=r"encode: 3 of \d+ test images cannot be read now, more than max_bad_share=0\.05"
    ):
        encode(campaign, pool)
    kept = len(list((Path(campaign.place.path) / "encode").iterdir()))
    assert 4 <= kept <= 6
    for away, place in back:
        away.rename(place)
    read_images.clear()
    encoded = encode(campaign, pool)
    assert len(read_images) <= 8 * (7 - kept)
    assert encoded.quarantine["sample_id"].to_pylist() == ["red/broken.png"]


def test_a_few_that_are_away_are_in_quarantine_as_not_found(ray_cluster, fresh):
    from raykd.stages.encode import encode
    from raykd.stages.pool import list_pool

    campaign = fresh("max_bad_share=0.5")
    pool = list_pool(campaign)
    move_away(campaign, pool, "test", 2)
    encoded = encode(campaign, pool)
    assert sorted(encoded.quarantine["reason"].to_pylist())[1:] == ["unreachable: not found"] * 2
    assert (campaign.place / "quarantine.parquet").read_table().equals(encoded.quarantine)


def test_too_many_broken_images_stop_it_and_bearing_more_reads_nothing_again(ray_cluster, fresh, read_images):
    with pytest.raises(UserError, match=r"1 of 49 .* cannot be read, more than max_bad_share=0\.01") as caught:
        run(fresh("max_bad_share=0.01", name="strict"))
    assert "'red/broken.png': truncated" in str(caught.value)
    assert "Raise max_bad_share" in str(caught.value)
    read_images.clear()
    run(fresh("max_bad_share=0.03", name="strict"))
    assert read_images == []


def test_the_weights_are_fetched_once_into_the_campaigns_folder_by_their_content(
    ray_cluster, fresh, tmp_path, finished
):
    (model,) = (finished.place / "teacher_model").iterdir()
    assert {file.name for file in model.iterdir()} == {
        "open_clip_config.json", "open_clip_model.safetensors", "_DONE.json",
    }  # fmt: skip
    from raykd.stages.weights import fetch_teacher

    folder = Path(shutil.copytree(finished.settings["teacher"]["model"].removeprefix("local-dir:"), tmp_path / "mine"))
    campaign = fresh(f"teacher.model=local-dir:{folder}")
    first = fetch_teacher(campaign, campaign.config.teacher)
    (folder / "notes.md").write_text("not read by open_clip")
    assert fetch_teacher(campaign, campaign.config.teacher) == first
    weights = folder / "open_clip_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # of the same size
    weights.write_bytes(data)
    assert fetch_teacher(campaign, campaign.config.teacher) != first
