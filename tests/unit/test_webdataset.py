"""Tars of images as WebDataset, tar and Python write them, whole and damaged, here and in a bucket. Starts no Ray."""

import gzip
import io
import json
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fakes import ids, listed, pictures, png
from PIL import Image

from raykd.errors import UserError
from raykd.images import stored, webdataset
from raykd.images.reading import load_one
from raykd.images.sources import grown
from raykd.images.stored import ImageReader
from raykd.images.webdataset import expanded

PAX, GNU, USTAR = tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT


def tarred(path: Path, members: dict, format: int = PAX, end: bool = True) -> Path:
    """A tar of these members, in order: bytes, a TarInfo without content, or None for a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members.items():
            about = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                about.size = len(content)
                tar.addfile(about, io.BytesIO(content))
            else:
                about.type = about.type if content else tarfile.DIRTYPE
                tar.addfile(about)
        if not end:
            stop = tar.offset
    if not end:
        os.truncate(path, stop)
    return path


def samples(count: int, start: int = 0) -> dict:
    return {f"{i:04d}.png": png(i) for i in range(start, start + count)}


def same_as(seeds, got) -> bool:
    wanted = [np.asarray(Image.open(io.BytesIO(png(seed)))) for seed in seeds]
    return len(got) == len(wanted) and all(map(np.array_equal, got, wanted))


def web(path, **fields):
    return listed(path, format="webdataset", **fields)


# ---------------------------------------------------------------- what is listed


def test_members_with_one_key_are_one_sample_and_its_image_is_read_from_inside_the_tar(tmp_path):
    tar = tarred(tmp_path / "a.tar", {
        "one.jpg.txt": b"no suffix of an image", "x/one.cls": b"3", "x/one.png": png(0), "x/one.txt": b"a caption",
        "x/two.PNG": png(1), "y/two.png": png(2), "README": b"", "note.md": b"",
    })  # fmt: skip
    listing, said = web(tar)
    assert ids(listing) == ["a.tar/x/one", "a.tar/x/two", "a.tar/y/two"]
    assert listing.rows["label"].to_pylist() == ["3", None, None]
    assert listing.rows["size_bytes"].to_pylist() == [len(png(i)) for i in range(3)]
    assert set(listing.rows["mtime_ns"].to_pylist()) == {tar.stat().st_mtime_ns}
    assert same_as([0, 1, 2], pictures(listing))
    assert "2 keys in" in said
    assert "have no image, such as 'one'" in said
    assert "1 members have no suffix, so no key, such as 'README' in a.tar" in said
    assert "labels are those in the .cls members" in said


def test_uris_are_in_the_order_of_the_file_and_name_their_member(tmp_path):
    tar = tarred(tmp_path / "a.tar", {f"{9 - i}.png": png(i) for i in range(10)})
    uris = web(tar)[0].rows["uri"].to_pylist()
    assert uris == sorted(uris)
    assert [uri.rpartition("/")[2] for uri in uris] == [f"{9 - i}.png" for i in range(10)]


@pytest.mark.parametrize("format", [PAX, GNU, USTAR])
def test_long_and_strange_names_are_read_in_every_format_of_tar(format, tmp_path):
    names = ["deep/" * 15 + "a.png", "ünï 🐈.png", "a#b?c%d&e.png", "line\nbreak.png", "x" * 90 + ".png"]
    if format != USTAR:
        names += ["long/" * 60 + "b.png", "y" * 240 + ".png"]
    tar = tarred(tmp_path / "a b#c.tar", {f"./{name}": png(i) for i, name in enumerate(names)}, format)
    listing, _ = web(tar)
    assert ids(listing) == [f"a b#c.tar/{name.removesuffix('.png')}" for name in names]
    assert same_as(range(len(names)), pictures(listing))


def test_what_is_no_plain_file_is_left_out_and_counted(tmp_path):
    def special(name, kind, target=""):
        about = tarfile.TarInfo(name)
        about.type, about.linkname = kind, target
        return about

    tar = tarred(tmp_path / "a.tar", {
        "d": None, "a.png": png(0), "._a.png": b"mac", "__MACOSX/a.png": b"mac", ".git/b.png": b"x",
        "l.png": special("l.png", tarfile.SYMTYPE, "a.png"), "h.png": special("h.png", tarfile.LNKTYPE, "a.png"),
        "f.png": special("f.png", tarfile.FIFOTYPE),
    })  # fmt: skip
    listing, said = web(tar)
    assert ids(listing) == ["a.tar/a"]
    assert "3 hidden members, such as '._a.png' in a.tar; left out" in said
    assert "2 links inside tars, such as 'l.png'" in said
    assert "1 members are no plain files (devices, sparse files), such as 'f.png'" in said


def test_a_sparse_member_is_left_out_as_its_bytes_do_not_lie_together(tmp_path):
    about = tarfile.TarInfo("s.png")
    about.pax_headers = {"GNU.sparse.map": "0,10", "GNU.sparse.size": "5000", "GNU.sparse.major": "0"}
    about.size = 10
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(about, io.BytesIO(b"0123456789"))
        about = tarfile.TarInfo("a.png")
        about.size = len(png())
        tar.addfile(about, io.BytesIO(png()))
    listing, said = web(tmp_path / "a.tar")
    assert ids(listing) == ["a.tar/a"]
    assert "such as 's.png'" in said
    assert same_as([0], pictures(listing))


def test_a_member_that_is_there_again_counts_as_when_it_is_unpacked(tmp_path):
    tar = tarred(tmp_path / "a.tar", samples(2))
    with tarfile.open(tar, "a") as more:
        about = tarfile.TarInfo("0000.png")
        about.size = len(png(7))
        more.addfile(about, io.BytesIO(png(7)))
    listing, said = web(tar)
    assert ids(listing) == ["a.tar/0001", "a.tar/0000"]
    assert same_as([1, 7], pictures(listing))
    assert "1 members are in a tar again" in said


def test_a_name_that_is_not_utf_8_is_said(tmp_path):
    tar = tarred(tmp_path / "a.tar", {"caf\udce9.png": png(), "a.png": png()}, GNU)
    listing, said = web(tar)
    assert ids(listing) == ["a.tar/a"]
    assert "1 names are not UTF-8" in said


# ---------------------------------------------------------------- several images, labels, ids


def test_a_key_with_several_images_is_refused_until_one_is_named(tmp_path):
    tar = tarred(tmp_path / "a.tar", {"a.left.png": png(0), "a.right.png": png(1), "b.left.png": png(2)})
    with pytest.raises(UserError, match=r"key 'a' .* has 2 images: 'a\.left\.png', 'a\.right\.png'.*image_column"):
        web(tar)
    listing, said = web(tar, image_column=".Right.PNG")
    assert same_as([1], pictures(listing))
    assert "1 keys in" in said
    with pytest.raises(UserError, match=r"no image in the tars .*image_column is 'seg\.png'"):
        web(tar, image_column="seg.png")


def test_one_name_in_capitals_too_is_two_images(tmp_path):
    with pytest.raises(UserError, match=r"has 2 images: 'a\.png', 'a\.PNG'"):
        web(tarred(tmp_path / "a.tar", {"a.png": png(0), "a.PNG": png(1)}))


def test_labels_are_indices_or_names_in_cls_members(tmp_path):
    members = {}
    for i, label in enumerate([b"1\n", "\ufeffchat é".encode(), b""]):
        members |= {f"{i}.cls": label, f"{i}.png": png(i)}
    assert web(tarred(tmp_path / "a.tar", members))[0].rows["label"].to_pylist() == ["1", "chat é", None]
    tar = tarred(tmp_path / "b.tar", {"0.png": png(), "0.cls": b"2"})
    listing, _ = web(tar, classes=["a", "b", "c", "d"], label_values="index")
    assert listing.rows["label"].to_pylist() == ["c"]
    with pytest.raises(UserError, match=r"labels \['2'\] are not in 0 to 1, the numbers of classes"):
        web(tar, classes=["a", "b"], label_values="index")


def test_labels_and_ids_may_be_in_json_members(tmp_path):
    notes = [{"y": "cat", "key": 7}, {"y": 1.0, "key": "x/y"}, {"y": None, "key": "é"}, {"y": True, "key": "b"}]
    members = {}
    for i, note in enumerate(notes):
        members |= {f"{i}.json": json.dumps(note).encode(), f"{i}.png": png(i)}
    tar = tarred(tmp_path / "a.tar", members)
    listing, _ = web(tar, label_column="y", id_column="key")
    assert ids(listing) == ["7", "x/y", "é", "b"]
    assert listing.rows["label"].to_pylist() == ["cat", "1", None, "true"]
    with pytest.raises(UserError, match=r"label_column: no \.json member .* has the key 'z'; they have 'key', 'y'"):
        web(tar, label_column="z")
    with pytest.raises(UserError, match=r"id_column: 0\.json in .*a\.tar has no 'z'; every image"):
        web(tar, id_column="z")


@pytest.mark.parametrize(
    ("note", "words"), [(b"{", r"1\.json in .*a\.tar is not JSON"), (b'{"y": [1]}', r"'y' in 1\.json .* is \[1\]")]
)
def test_a_json_member_that_cannot_be_used_is_named(note, words, tmp_path):
    tar = tarred(tmp_path / "a.tar", {"1.png": png(), "1.json": note})
    with pytest.raises(UserError, match=words):
        web(tar, label_column="y")
    assert len(ids(web(tar)[0])) == 1


# ---------------------------------------------------------------- which tars


def test_tars_come_from_a_folder_at_any_depth_or_a_pattern_and_equal_keys_do_not_collide(tmp_path):
    for i in range(3):
        tarred(tmp_path / "deep" / f"s-{i:03d}.tar", samples(2, i * 2))
    tarred(tmp_path / "deep" / ".hidden.tar", samples(1))
    (tmp_path / "deep" / "list.txt").write_text("")
    listing, _ = web(tmp_path)
    assert ids(listing)[:3] == ["deep/s-000.tar/0000", "deep/s-000.tar/0001", "deep/s-001.tar/0002"]
    assert same_as(range(6), pictures(listing))
    listing, _ = web(tmp_path / "deep" / "s-{001..002}.tar")
    assert ids(listing) == ["s-001.tar/0002", "s-001.tar/0003", "s-002.tar/0004", "s-002.tar/0005"]
    for part in "ab":
        tarred(tmp_path / part / "x.tar", samples(1))
    assert ids(web(tmp_path / "{a,b}" / "x.tar")[0]) == ["a/x.tar/0000", "b/x.tar/0000"]
    assert ids(web(tmp_path / "a" / "x.tar", split="val")[0]) == ["val/x.tar/0000"]


@pytest.mark.parametrize(
    ("pattern", "paths"),
    [
        ("a", ["a"]),
        ("a-{8..10}", ["a-8", "a-9", "a-10"]),
        ("a-{08..10}", ["a-08", "a-09", "a-10"]),
        ("{x,y}{1..2}", ["x1", "x2", "y1", "y2"]),
        ("{x}", ["{x}"]),
    ],
)
def test_patterns_are_those_of_a_shell(pattern, paths):
    assert list(expanded(pattern)) == paths


def test_tars_that_are_missing_or_not_tars_are_named(tmp_path):
    tarred(tmp_path / "s-0.tar", samples(1))
    with pytest.raises(UserError, match=r"pool: 2 of 3 tars are not there, such as '.*s-1\.tar'"):
        web(tmp_path / "s-{0..2}.tar")
    with pytest.raises(UserError, match=r"1 of 1 tars are not there.*a pattern is written \{000000\.\.000099\}"):
        web(tmp_path / "s-*.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no \.tar in .*it holds no file"):
        web(tmp_path / "empty")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"a\.zip is no tar by its name"):
        web(tmp_path / "a.zip")


@pytest.mark.parametrize("name", ["b.tar.gz", "b.TGZ", "b.tar.zst"])
def test_compressed_tars_are_refused_by_name(name, tmp_path):
    tarred(tmp_path / "a.tar", samples(1))
    (tmp_path / name).write_bytes(b"")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(UserError, match=r"is compressed.*Decompress it to \.tar"):
            web(path)


def test_a_tar_that_is_compressed_under_the_name_of_a_plain_one_or_no_tar_is_refused(tmp_path):
    tar = tarred(tmp_path / "a.tar", samples(1))
    tar.write_bytes(gzip.compress(tar.read_bytes()))
    with pytest.raises(UserError, match=r"a\.tar cannot be read as a tar: .*compressed \(gzip\)"):
        web(tar)
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    for content, words in (
        (b"no tar at all" * 100, "it is text"),
        (b"\x9chort", "ReadError"),
        (b"", "it is empty"),
        (lfs, "it is a Git LFS pointer"),
    ):
        tar.write_bytes(content)
        with pytest.raises(UserError, match=rf"a\.tar cannot be read as a tar: {words}"):
            web(tar)


def test_a_folder_whose_tars_hold_no_image_says_what_they_hold(tmp_path):
    tarred(tmp_path / "a.tar", {"a.heic": b"x", "b.txt": b"y"})
    tarred(tmp_path / "b.tar", {})
    (tmp_path / "c.tar").write_bytes(b"\0" * 1024)
    with pytest.raises(UserError, match=r"no image in the tars of .*1 \.heic, 1 \.txt.*Read are \.jpg"):
        web(tmp_path)


# ---------------------------------------------------------------- damaged tars


def whole_before(data: bytes, names: int) -> int:
    """Where the header of the member after so many begins."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getmembers()[names].offset


@pytest.mark.parametrize(
    ("cut", "count", "words"),
    [
        (lambda data: data[: whole_before(data, 3) + 100], 3, "cut off or damaged in the middle"),
        (lambda data: data[: whole_before(data, 3) + 600], 3, "1 members are cut off: the tar ends before they do"),
        (lambda data: data[: whole_before(data, 3)], 3, "have no end mark, so may be cut off"),
        (lambda data: data[: whole_before(data, 3)] + b"\xff" * 5000, 3, "cut off or damaged in the middle"),
    ],
    ids=["in a header", "in an image", "between images", "overwritten"],
)
@pytest.mark.parametrize("remote", [False, True])
def test_of_a_damaged_tar_what_is_whole_is_listed_and_the_rest_is_said(cut, count, words, remote, bucket, tmp_path):
    tar = tarred(tmp_path / "a.tar", samples(5))
    data = cut(tar.read_bytes())
    tar.write_bytes(data)
    if remote:
        (bucket / "a.tar").write_bytes(data)
    listing, said = web((bucket / "a.tar").uri if remote else tar)
    assert len(ids(listing)) == count
    assert words in said
    assert same_as(range(count), pictures(listing))


def test_tars_put_one_after_the_other_are_said(tmp_path):
    tar = tarred(tmp_path / "a.tar", samples(2))
    tar.write_bytes(tar.read_bytes() + tarred(tmp_path / "b.tar", samples(2, 2)).read_bytes())
    listing, said = web(tar)
    assert len(ids(listing)) == 2
    assert "tars go on after their end mark" in said


# ---------------------------------------------------------------- a bucket


def put(bucket, name: str, members: dict, tmp_path: Path) -> bytes:
    data = tarred(tmp_path / "local" / name, members).read_bytes()
    bucket.fs.create_dir((bucket / name).path.rpartition("/")[0], recursive=True)
    (bucket / name).write_bytes(data)
    return data


def test_tars_in_a_bucket_are_listed_and_read_as_on_a_disk(bucket, tmp_path):
    for i in range(3):
        put(bucket, f"s-{i}.tar", {f"a b/{i}-{j}.png": png(i * 4 + j) for j in range(4)}, tmp_path)
    (there, _), (here, _) = web(bucket.uri), web(tmp_path / "local")
    for column in ("sample_id", "size_bytes", "label"):
        assert there.rows[column] == here.rows[column]
    assert same_as(range(12), pictures(there))
    base, query = bucket.uri.split("?")
    by_pattern, _ = web(f"{base}/s-{{1..2}}.tar?{query}")
    assert ids(by_pattern) == ids(there)[4:]
    assert same_as(range(4, 12), pictures(by_pattern))


@pytest.fixture
def requests(monkeypatch):
    """Every read of a remote tar after it was listed: where, and how many bytes."""
    found, open_file = [], stored.RemoteTars.read

    def read(self, place, offset, size):
        if place.uri not in self._files:
            self._files[place.uri] = Counting(place.fs.open_input_file(place.path), found)
        return open_file(self, place, offset, size)

    class Counting:
        def __init__(self, file, found):
            self.file, self.found = file, found

        def read_at(self, size, offset):
            self.found.append((offset, size))
            return self.file.read_at(size, offset)

    monkeypatch.setattr(stored.RemoteTars, "read", read)
    return found


def test_a_pass_over_a_remote_tar_takes_few_requests_and_a_random_draw_only_its_own_bytes(
    bucket, tmp_path, requests, monkeypatch
):
    monkeypatch.setattr(stored, "AHEAD_BYTES", 20_000)
    put(bucket, "a.tar", samples(300), tmp_path)
    uris = web(bucket.uri)[0].rows["uri"].to_pylist()
    size = os.path.getsize(tmp_path / "local" / "a.tar")
    reader = ImageReader()
    got = [reader.read(uri) for uri in uris]
    assert got == [png(i) for i in range(300)]
    assert len(requests) <= size / 15_000
    requests.clear()
    reader = ImageReader()
    for i in (250, 3, 170, 60):
        assert reader.read(uris[i]) == png(i)
    assert [size for _, size in requests] == [len(png(i)) for i in (250, 3, 170, 60)]


def test_threads_that_read_one_remote_tar_get_their_own_images(bucket, tmp_path, requests, monkeypatch):
    monkeypatch.setattr(stored, "AHEAD_BYTES", 20_000)
    put(bucket, "a.tar", samples(200), tmp_path)
    uris = web(bucket.uri)[0].rows["uri"].to_pylist()
    reader = ImageReader()
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda uri: load_one(reader, uri, np.asarray), uris))
    assert same_as(range(200), got)
    assert len(requests) < 100


def test_pieces_that_are_kept_of_remote_tars_are_few(bucket, tmp_path):
    reader = ImageReader()
    for i in range(stored.NUM_AHEAD + 3):
        put(bucket, f"{i}.tar", samples(3), tmp_path)
    for i in range(stored.NUM_AHEAD + 3):
        for uri in web((bucket / f"{i}.tar").uri)[0].rows["uri"].to_pylist():
            reader.read(uri)
    assert len(reader._tars._pieces) == stored.NUM_AHEAD


# ---------------------------------------------------------------- tars that change


def test_a_tar_that_was_cut_since_is_a_reason_and_one_that_is_gone_too(tmp_path):
    tar = tarred(tmp_path / "a.tar", samples(3))
    listing, _ = web(tar)
    os.truncate(tar, whole_before(tar.read_bytes(), 2))
    assert isinstance(pictures(listing)[1], np.ndarray)
    assert pictures(listing)[2].startswith("the tar ends before this image does")
    tar.unlink()
    assert pictures(listing)[0] == "unreachable: not found"


def test_a_rewritten_tar_is_noticed_and_one_that_is_appended_to_grows(tmp_path):
    tar = tarred(tmp_path / "a.tar", samples(3))
    before, _ = web(tar)
    with tarfile.open(tar, "a") as more:
        about = tarfile.TarInfo("new.png")
        about.size = len(png(9))
        more.addfile(about, io.BytesIO(png(9)))
    os.utime(tar, ns=(1, 1))
    change = grown(before.rows, web(tar)[0].rows)
    assert change.new["sample_id"].to_pylist() == ["a.tar/new"]
    assert (change.rewritten.num_rows, change.moved.num_rows) == (3, 0)
    tarred(tar, {"first.png": png(5), **samples(3)})
    assert grown(before.rows, web(tar)[0].rows).moved.num_rows == 3


def test_a_tar_is_indexed_once_while_it_stays_as_it_is(tmp_path, bucket, monkeypatch):
    put(bucket, "a.tar", {**samples(3), "0000.cls": b"cat", "x": b"left out"}, tmp_path)
    put(bucket, "b.tar", samples(3, 3), tmp_path)
    kept, read, indexed = bucket / "kept", webdataset.read_index, []
    bucket.fs.create_dir(kept.path)
    monkeypatch.setattr(webdataset, "read_index", lambda tar, notes: (indexed.append(tar.name), read(tar, notes))[1])
    base, query = bucket.uri.split("?")
    path = f"{base}/{{a,b}}.tar?{query}"
    first, said = web(path, kept=kept)
    again, said_again = web(path, kept=kept)
    assert sorted(indexed) == ["a.tar", "b.tar"]  # side by side, in any order
    assert first.rows == again.rows
    assert said == said_again
    assert "1 members have no suffix" in said
    put(bucket, "b.tar", samples(40, 3), tmp_path)
    assert web(path, kept=kept)[0].rows.num_rows == 43
    assert indexed[2:] == ["b.tar"]
