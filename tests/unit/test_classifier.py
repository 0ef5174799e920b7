"""Whatever form an image comes in, it is the same image; what is none is told by name."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import encode, picture
from PIL import Image

from raykd.errors import StorageError, UserError
from raykd.images.decoding import decode
from raykd.models import classifier
from raykd.models.classifier import Classifier
from raykd.models.preprocess import Preprocess


class Echo(Classifier):
    """Says of an image its mean red, green and blue; notes the sizes of the batches it is given."""

    classes = ["red", "green", "blue"]  # noqa: RUF012
    preprocess = Preprocess(8, (0.5,) * 3, (0.5,) * 3)

    def __init__(self):
        self.batches = []

    def probabilities(self, pixels):
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (8, 8, 3)
        self.batches.append(len(pixels))
        return pixels.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture
def model():
    return Echo()


def means(image: Image.Image) -> np.ndarray:
    return np.asarray(Echo.preprocess.clean()(image.convert("RGB"))).mean(axis=(0, 1)).astype(np.float32)


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Five pictures."""
    for number in range(5):
        picture(number, 20 + number, 30 - number).save(tmp_path / f"{number}.png")
    return [tmp_path / f"{number}.png" for number in range(5)]


# ---------------------------------------------------------------- forms


def test_an_image_gives_the_same_row_in_every_form_it_may_come_in(model, files, tmp_path, bucket, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = files[0].read_bytes()
    (bucket / "a.png").write_bytes(data)
    pq.write_table(pa.table({"image": [b"", data]}), tmp_path / "t.parquet")
    image = Image.open(files[0])
    given = [
        str(files[0]), files[0], "0.png", files[0].as_uri(), (bucket / "a.png").uri, f"{tmp_path}/t.parquet#image/001",
        data, image, image.convert("RGBA"), np.asarray(image), np.asarray(image.convert("RGBA")),
    ]  # fmt: skip
    probs_NC = model.predict(given)
    assert probs_NC.dtype == np.float32
    np.testing.assert_array_equal(probs_NC, np.tile(means(image), (len(given), 1)))
    gray = image.convert("L")
    np.testing.assert_array_equal(model.predict([gray, np.asarray(gray), encode(gray)]), np.tile(means(gray), (3, 1)))


def test_one_image_is_one_row_and_an_array_of_images_a_row_each(model, files):
    image = np.asarray(Image.open(files[0]))
    for one in (str(files[0]), files[0], files[0].read_bytes(), Image.open(files[0]), image, image[..., 0]):
        assert model.predict(one).shape == (1, 3)
    batch = np.stack([image, 255 - image])
    np.testing.assert_array_equal(model.predict(batch), model.predict([image, 255 - image]))
    np.testing.assert_array_equal(model.predict(np.array(list(map(str, files)))), model.predict(files))
    assert model.predict([]).shape == (0, 3)
    assert model.predict(iter(())).shape == (0, 3)


def test_what_is_transparent_turned_or_deep_is_seen_as_in_training(model, tmp_path):
    """Whatever ``decode`` makes of a file; an array's alpha is a file's."""
    alpha = np.dstack([np.asarray(picture()), np.full((20, 30), 0, np.uint8)])
    np.testing.assert_array_equal(model.predict(alpha), [[255, 255, 255]])
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray((np.arange(600, dtype=np.uint16) * 6).reshape(20, 30))
    for number, data in enumerate((encode(picture(), exif=exif), encode(deep), encode(Image.fromarray(alpha)))):
        path = tmp_path / f"{number}.png"
        path.write_bytes(data)
        want = means(decode(data).image)
        for form in (path, data, Image.open(path)):
            np.testing.assert_array_equal(model.predict(form), [want])


def test_a_large_photo_is_only_decoded_at_a_fraction_when_that_is_asked_for(model, tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    picture(0, 90, 100).save(path)
    np.testing.assert_array_equal(model.predict(path), model.predict(Image.open(path)))
    sizes = []
    monkeypatch.setattr(Image.Image, "draft", lambda self, mode, size: sizes.append(size), raising=False)
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", lambda self, mode, size: sizes.append(size))
    model.predict(path)
    assert sizes == []
    model.predict(path, decode="reduced")
    assert sizes == [(12, 11)]


# ---------------------------------------------------------------- batches


def test_batches_are_of_the_size_asked_for_and_rows_in_the_order_given(model, files):
    want = np.stack([means(Image.open(file)) for file in files])
    for size, batches in ((2, [2, 2, 1]), (5, [5]), (64, [5])):
        model.batches.clear()
        np.testing.assert_array_equal(model.predict(files, size), want)
        assert model.batches == batches


def test_a_generator_is_drawn_from_as_images_are_needed(model, files):
    drawn, ahead = [], []

    def images():
        for number in range(40):
            drawn.append(number)
            yield Image.open(files[number % 5])

    model.probabilities = lambda pixels: ahead.append(len(drawn)) or np.zeros((len(pixels), 3), np.float32)
    assert model.predict(images(), 4).shape == (40, 3)
    assert ahead == [min(8 + 4 * batch, 40) for batch in range(10)]  # a batch more than the model has had


def test_each_batch_is_told_with_the_number_of_all_where_that_is_known(model, files):
    told = []
    model.predict(files, 2, progress=lambda *counts: told.append(counts))
    model.predict(iter(files), 4, progress=lambda *counts: told.append(counts))
    assert told == [(2, 5), (4, 5), (5, 5), (4, None), (5, None)]


def test_a_bar_is_drawn_when_asked_for_and_else_only_on_a_terminal(model, files, capsys, monkeypatch):
    model.predict(files)
    model.predict(files, progress=False)
    assert capsys.readouterr().err == ""
    model.predict(files, progress=True)
    assert "5/5" in capsys.readouterr().err
    monkeypatch.setattr(classifier, "BAR_AFTER_S", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    model.predict(files)
    assert "5/5" in capsys.readouterr().err


# ---------------------------------------------------------------- what cannot be read, and what is no image


def test_an_image_that_cannot_be_read_is_named_with_its_place_and_the_reason(model, files):
    files[3].write_bytes(files[3].read_bytes()[:300])
    with pytest.raises(UserError, match=r"cannot read image 3, '.*3\.png': truncated: .*on_error='nan'"):
        model.predict(files)
    cases = (("nowhere.png", "unreachable: not found"), (files[3].read_bytes(), "a file of 300 bytes: truncated"),
             (Image.open(files[3]), r"a PIL image of mode RGB, 27 x 23, '.*3\.png': truncated"),
             (Image.new("F", (5, 4)), "a PIL image of mode F, 5 x 4: floating-point pixels"),
             ("https://a.org/b.png", "https is not read"), (files[3].parent, "is a directory"))  # fmt: skip
    for broken, words in cases:
        with pytest.raises(UserError, match=rf"cannot read image 1, .*{words}"):
            model.predict([files[0], broken])


def test_or_its_row_is_nan_and_a_warning_counts_and_names_them(model, files, caplog):
    want = model.predict(files)
    files[1].write_bytes(b"<html>")
    files[4].unlink()
    model.batches.clear()
    with caplog.at_level(logging.WARNING):
        got = model.predict(files, 3, on_error="nan")
    assert np.isnan(got).all(axis=1).tolist() == [False, True, False, False, True]
    np.testing.assert_array_equal(got[[0, 2, 3]], want[[0, 2, 3]])
    assert model.batches == [2, 1]
    (said,) = caplog.messages
    assert said.startswith("2 of 5 images cannot be read, and their rows are NaN: image 1, ")
    assert "web page" in said
    assert "4.png': unreachable: not found" in said
    model.batches.clear()
    assert np.isnan(model.predict(["nowhere"] * 9, on_error="nan")).all()
    assert model.batches == []  # no image, no forward pass
    assert caplog.messages[-1].count("unreachable") == 5
    assert caplog.messages[-1].endswith("; ...")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 4, 3)), r"an array float64 \[4, 4, 3\]"),
        (np.zeros((3, 5, 6), np.uint8), r"an array uint8 \[3, 5, 6\]"),
        (np.zeros((4, 0, 3), np.uint8), r"an array uint8 \[4, 0, 3\]"),
        (np.zeros((4, 4), np.uint16), r"an array uint16 \[4, 4\]"),
        (np.uint8(3), "of type numpy.uint8"),
        (bytearray(b"x"), "of type bytearray"),
        (3, "of type int"),
        (None, "of type NoneType"),
        ([["a.png"]], "of type list"),
    ],
)
def test_what_is_no_image_is_refused_with_what_it_is_and_what_was_expected(model, files, given, words):
    for images in ([files[0], given], given):
        with pytest.raises(UserError, match=rf"{words}; expected a path or uri, a PIL image"):
            model.predict(images, on_error="nan")


def test_options_of_no_meaning_are_refused(model, files):
    for options, words in (
        ({"on_error": "skip"}, "unknown on_error 'skip'; .*raise"),
        ({"decode": "reducd"}, "unknown decode 'reducd'; did you mean 'reduced'"),
        ({"batch_size": 0}, "batch_size 0; expected 1 or more"),
    ):
        with pytest.raises(UserError, match=words):
            model.predict(files, **options)
    with pytest.raises(UserError, match="of type set; expected"):
        model.predict(set(files))


def test_a_storage_that_fails_is_no_images_fault(model, files, monkeypatch):
    from raykd.images.stored import ImageReader

    monkeypatch.setattr(ImageReader, "read", lambda *_: (_ for _ in ()).throw(StorageError("the disk")))
    with pytest.raises(StorageError, match="the disk"):
        model.predict(files, on_error="nan")


# ---------------------------------------------------------------- threads


def test_rows_of_parquet_are_the_same_from_many_threads(model, tmp_path, monkeypatch):
    images = [picture(number, 9, 9) for number in range(60)]
    table = pa.table({"image": [encode(image) for image in images]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    monkeypatch.setattr(classifier, "num_cores", lambda: 8)
    monkeypatch.setattr(classifier, "CACHE_BYTES", 1)
    order = np.random.default_rng(0).permutation(60)
    probs_NC = model.predict([f"{tmp_path}/t.parquet#image/{number:02d}" for number in order], 16)
    np.testing.assert_array_equal(probs_NC, [means(images[number]) for number in order])


def test_nothing_of_ray_and_no_torch_is_imported_for_it():
    code = "import sys, raykd.models.classifier; print(sorted({'ray', 'torch', 'timm', 'faiss'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert ended.stdout.strip() == "[]"
