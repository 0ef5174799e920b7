"""Folders of images: what lies there, each once, and what does not count is said. Starts no Ray."""

import os

import numpy as np
import pytest
from fakes import ids, listed, load_all, pictures, png, write_pngs

from raykd.errors import UserError
from raykd.images.stored import ImageReader


def test_any_ending_of_a_jpeg_is_an_image_and_others_are_counted(tmp_path):
    folder = write_pngs(tmp_path, "a.jfif", "b.JPE", "c.jpg", "d.txt", "e.heic", "._c.jpg")
    listing, said = listed(folder, format="images")
    assert ids(listing) == ["a.jfif", "b.JPE", "c.jpg"]
    assert "2 files" in said


def test_a_folder_with_no_format_that_is_read_says_what_it_holds_and_what_is_read(tmp_path):
    with pytest.raises(UserError) as caught:
        listed(write_pngs(tmp_path, "a.heic", "b.heic"), format="images")
    assert ".heic" in str(caught.value)
    assert ".jpg" in str(caught.value)


def test_links_are_followed_once_and_never_in_a_circle_and_dangling_ones_are_said(tmp_path):
    folder = write_pngs(tmp_path / "pool", "a.png", "deep/b.png")
    (folder / "deep" / "circle").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    listing, said = listed(folder, format="images")
    assert len(ids(listing)) == 2
    assert "gone.png" in said


def test_an_empty_class_folder_is_a_class(tmp_path):
    folder = write_pngs(tmp_path, "cat/a.png", "dog/b.png")
    (folder / "emu").mkdir()
    assert listed(folder, format="class_folders")[0].found_classes == ["cat", "dog", "emu"]


def test_a_tree_of_splits_is_not_taken_for_classes(tmp_path):
    folder = write_pngs(tmp_path, "train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "test/dog/d.png")
    with pytest.raises(UserError, match=r"are splits \(test, train, val\), not classes.*pool\.path: .*/train"):
        listed(folder, format="class_folders")


def test_a_name_that_is_not_utf_8_is_said_and_the_others_are_listed(tmp_path):
    folder = write_pngs(tmp_path, "a.png")
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as stream:
        stream.write(png())
    listing, said = listed(folder, format="images")
    assert ids(listing) == ["a.png"]
    assert "1 names are not UTF-8" in said
    assert "caf" in said


def test_each_real_file_is_listed_once_under_its_own_name_or_the_first_link_to_it(tmp_path):
    folder = write_pngs(tmp_path / "pool", "z/real.png")
    write_pngs(tmp_path, "away/a.png", "away/deep/b.png", "single.png", "pool/.hidden/h.png")
    for link, target in {
        "a/real.png": folder / "z" / "real.png",  # is listed under its own name
        "b/away": tmp_path / "away",
        "c/away again": tmp_path / "away",
        "d/a.png": tmp_path / "away" / "a.png",
        "e/one.png": tmp_path / "single.png",
        "e/two.png": tmp_path / "single.png",
        "f/h.png": folder / ".hidden" / "h.png",
        "g/up": tmp_path,  # would list the pool again, and its neighbours
        "h/inside": folder / "z",
    }.items():
        (folder / link).parent.mkdir(exist_ok=True)
        (folder / link).symlink_to(target)
    (tmp_path / "away" / "circle").symlink_to(tmp_path / "away")
    (folder / "i.png").symlink_to(folder / "i.png")
    listing, said = listed(folder, format="images")
    assert ids(listing) == ["b/away/a.png", "b/away/deep/b.png", "e/one.png", "f/h.png", "z/real.png"]
    assert "7 links lead to what is listed already, such as 'a/real.png'" in said
    assert "1 links lead nowhere, such as 'i.png'" in said
    assert not any(isinstance(got, str) for got in load_all(ImageReader(), listing.rows["uri"].to_pylist(), np.asarray))


def test_a_folder_that_was_linked_before_is_passed_over_inside_another(tmp_path):
    folder = write_pngs(tmp_path / "pool", "z.png")
    write_pngs(tmp_path, "away/a.png", "away/deep/b.png", "away/deep/deeper/c.png")
    (folder / "first").symlink_to(tmp_path / "away" / "deep")
    (folder / "second").symlink_to(tmp_path / "away")
    listing, said = listed(folder, format="images")
    assert ids(listing) == ["first/b.png", "first/deeper/c.png", "second/a.png", "z.png"]
    assert "such as 'second/deep'" in said


def test_a_pool_that_is_all_links_or_itself_a_link_is_a_pool(tmp_path):
    """As Hugging Face's cache and git-annex lay files out."""
    write_pngs(tmp_path, "blobs/1", "blobs/2")
    (tmp_path / "snapshot" / "cat").mkdir(parents=True)
    for number in (1, 2):
        (tmp_path / "snapshot" / "cat" / f"{number}.png").symlink_to(f"../../blobs/{number}")
    (tmp_path / "snapshot" / "dog").symlink_to(tmp_path / "blobs")
    (tmp_path / "current").symlink_to("snapshot")
    listing, said = listed(tmp_path / "current", format="class_folders")
    assert ids(listing) == ["cat/1.png", "cat/2.png"]
    assert listing.rows["uri"][0].as_py() == f"{tmp_path}/current/cat/1.png"
    assert listing.rows["size_bytes"].to_pylist() == [(tmp_path / "blobs" / n).stat().st_size for n in "12"]
    assert listing.found_classes == ["cat", "dog"]
    assert "1 class folders" in said


def test_what_macos_adds_to_an_archive_is_no_class(tmp_path):
    folder = write_pngs(tmp_path, "cat/a.png", "dog/b.png", "__MACOSX/cat/._a.png", ".git/x.png")
    listing, said = listed(folder, format="class_folders")
    assert listing.found_classes == ["cat", "dog"]
    assert said == ""


def test_class_folders_that_are_numbers_come_by_number(tmp_path):
    folder = write_pngs(tmp_path, *(f"{number}/a.png" for number in range(12)))
    names = [f"digit {number}" for number in range(12)]
    listing, _ = listed(folder, names, format="class_folders", label_values="sorted")
    assert listing.mapping == {str(number): names[number] for number in range(12)}
    assert listed(folder, format="class_folders")[0].found_classes == [str(number) for number in range(12)]
    assert dict(zip(ids(listing), listing.rows["label"].to_pylist(), strict=True))["10/a.png"] == "digit 10"


def test_an_empty_class_folder_counts_in_label_values(tmp_path):
    folder = write_pngs(tmp_path, "n01/a.png", "n03/b.png")
    (folder / "n02").mkdir()
    listing, _ = listed(folder, ["x", "y", "z"], format="class_folders", label_values="sorted")
    assert listing.rows["label"].to_pylist() == ["x", "z"]


@pytest.mark.parametrize(
    "names", [["train/a.png", "val/b.png"], ["train/cat/a.png"], ["val/cat/a.png", "test/x/b.png"]]
)
def test_folders_that_are_all_named_like_splits_are_refused(names, tmp_path):
    with pytest.raises(UserError, match=r"test: the folders of .* are splits .*Give test\.path: "):
        listed(write_pngs(tmp_path, *names), split="test", format="class_folders")


def test_a_class_may_be_called_like_a_split_beside_others(tmp_path):
    folder = write_pngs(tmp_path, "train/a.png", "car/b.png")
    assert listed(folder, format="class_folders")[0].found_classes == ["car", "train"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder, scandir = write_pngs(tmp_path, "a.png", "closed/b.png"), os.scandir

    def closed(path):
        if path.endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(UserError, match=r"cannot list .*/closed: Permission denied"):
        listed(folder, format="images")


def test_a_bucket_is_listed_as_a_disk_is(bucket, tmp_path):
    names = ["cat/a.png", "cat/b.png", "dog/c.PNG", ".hidden/d.png", "dog/._c.png", "dog/notes.txt"]
    write_pngs(tmp_path, *names)
    for name in names:
        bucket.fs.create_dir((bucket / name).path.rpartition("/")[0], recursive=True)
        (bucket / name).write_bytes((tmp_path / name).read_bytes())
    (there, said), (here, _) = (listed(where, format="class_folders") for where in (bucket.uri, tmp_path))
    for column in ("sample_id", "size_bytes", "label", "split"):
        assert there.rows[column] == here.rows[column]
    assert there.found_classes == here.found_classes == ["cat", "dog"]
    assert "(1 .txt), such as 'dog/notes.txt'" in said
    assert not any(isinstance(got, str) for got in load_all(ImageReader(), there.rows["uri"].to_pylist(), np.asarray))


def test_a_listing_is_sorted_whatever_order_the_disk_gives(tmp_path, monkeypatch):
    folder = write_pngs(tmp_path, "b/2.png", "a/10.png", "a/9.png", "c.png", "B.png")
    first, scandir = listed(folder, format="images")[0], os.scandir

    class Backwards(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda path: Backwards([*scandir(path)][::-1]))
    second, _ = listed(folder, format="images")
    assert ids(first) == ids(second) == sorted(ids(first))
    assert first.rows == second.rows


def test_strange_names_are_ids_as_they_are_and_are_read(tmp_path):
    names = ["a b.png", "c#d.png", "e?f.png", "g%20h.png", "i\nj.png", "k\\l.png", "🐈/ü.png", "p.parquet#image/1.png"]
    folder = write_pngs(tmp_path / "odd #1? 100% 🐈", *names)
    listing, _ = listed(folder, format="images")
    assert ids(listing) == sorted(names)
    assert not any(isinstance(picture, str) for picture in pictures(listing))


@pytest.mark.slow
def test_a_hundred_thousand_names_are_listed_once_each(tmp_path, monkeypatch):
    """Without making the files: what is asked of the disk is a listing a folder, and nothing a file."""

    class Entry:
        def __init__(self, name):
            self.name = name

        def is_symlink(self):
            return False

        is_dir = is_symlink

        def is_file(self):
            return True

        def stat(self):
            return about

    class Many(list):
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    about = os.stat(write_pngs(tmp_path, "a.png") / "a.png")
    monkeypatch.setattr(os, "scandir", lambda path: Many(Entry(f"{i:06d}.png") for i in range(100_000)))
    monkeypatch.setattr(os.path, "exists", lambda path: pytest.fail("asked for a file by itself"))
    listing, said = listed(tmp_path, format="images")
    assert ids(listing) == [f"{i:06d}.png" for i in range(100_000)]
    assert said == ""


@pytest.mark.parametrize(("name", "word"), [("a.tar", "webdataset"), ("B.PARQUET", "parquet"), ("c.csv", "list")])
def test_files_of_another_format_are_refused_with_its_name(name, word, tmp_path):
    (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=f"; format {word} reads "):
            listed(path, format="images")


@pytest.mark.parametrize(
    "names", [["Train", "Test"], ["training", "testing"], ["train", "dev"], ["extra", "test", "train"]]
)
def test_folders_that_speak_of_two_splits_are_no_classes(names, tmp_path):
    write_pngs(tmp_path, *(f"{name}/{kind}/a.png" for name in names for kind in ("cat", "dog")))
    with pytest.raises(UserError, match=rf"are splits .*not classes.*Give pool\.path: .*/{'[Tt]rain'}"):
        listed(tmp_path, format="class_folders")


def test_what_a_system_puts_into_folders_is_neither_image_nor_class(tmp_path):
    write_pngs(tmp_path, "cat/a.png", "dog/b.png", "@eaDir/thumb.png", "cat/@eaDir/a.png/THUMB.png", "lost+found/x.png")
    listing, _ = listed(tmp_path, format="class_folders")
    assert (ids(listing), listing.found_classes) == (["cat/a.png", "dog/b.png"], ["cat", "dog"])
