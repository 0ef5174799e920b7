"""Transforms give the pixels of torchvision and open_clip, import neither, and cost what they keep."""

import io
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from raykd.images.transforms import MOST_DISCARDED, CenterCrop, ClipPreprocess, RandomCrop, RandomViews, Thumbnail

FILTERS = ("bilinear", "bicubic")
SIDES = st.integers(1, 90)


def noise(width, height, seed=0):
    """The hardest picture there is: every filter weight shows in it."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def assert_same(got, expected):
    assert got.size == expected.size
    np.testing.assert_array_equal(pixels(got), pixels(expected))


def assert_near(got, expected, levels):
    assert got.size == expected.size
    assert np.abs(pixels(got) - pixels(expected)).max() <= levels


# ---------------------------------------------------------------- centre crops


def torchvision_center(size, interpolation):
    from torchvision import transforms as T

    mode = T.InterpolationMode(interpolation)
    return T.Compose([T.Resize(size, mode), T.CenterCrop(size)])


@settings(deadline=None, max_examples=300)
@given(width=SIDES, height=SIDES, size=st.integers(1, 60), interpolation=st.sampled_from(FILTERS), seed=st.integers(0))
def test_a_centre_crop_has_torchvisions_pixels(width, height, size, interpolation, seed):
    image = noise(width, height, seed % 2**32)
    got = CenterCrop(size, interpolation)(image)
    expected = torchvision_center(size, interpolation)(image)
    if max(width, height) <= MOST_DISCARDED * min(width, height):
        assert_same(got, expected)
    elif interpolation == "bilinear":
        assert_near(got, expected, levels=1)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 500), (224, 224), (16, 256), (1024, 64), (37, 591)])
@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_centre_crop_has_torchvisions_pixels_at_sizes_of_the_world(width, height, interpolation):
    image = noise(width, height)
    assert_same(CenterCrop(224, interpolation)(image), torchvision_center(224, interpolation)(image))


@settings(deadline=None, max_examples=200)
@given(
    short=st.integers(1, 6),
    aspect=st.integers(MOST_DISCARDED + 1, 300),
    size=st.integers(1, 40),
    interpolation=st.sampled_from(FILTERS),
    tall=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_middle_of_a_very_long_image_is_nearly_torchvisions(short, aspect, size, interpolation, tall, seed):
    sides = (short, short * aspect) if tall else (short * aspect, short)
    smooth = noise(6, 6, seed).resize(sides, Image.Resampling.BICUBIC)
    for image, levels in ((smooth, 3), (noise(*sides, seed), 1 if interpolation == "bilinear" else 40)):
        got, expected = CenterCrop(size, interpolation)(image), torchvision_center(size, interpolation)(image)
        assert_near(got, expected, levels)


@pytest.mark.parametrize("sides", [(1, 1500), (1500, 1), (2, 60_000), (60_000, 2)])
def test_a_line_of_pixels_is_never_enlarged_as_a_whole(sides, monkeypatch):
    """1 x 1,500 pixels at 224 would be 224 x 336,000, 300 MB."""
    asked = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *rest, **more: asked.append(size) or resize(self, size, *rest, **more)
    )
    clip = {"size": 224, "resize_mode": "shortest"}
    for transform in (CenterCrop(224), ClipPreprocess(clip), ClipPreprocess({**clip, "size": (224, 112)})):
        assert transform(noise(*sides)).size[1] == 224
    assert max(map(math.prod, asked)) <= MOST_DISCARDED * 224 * 224


# ---------------------------------------------------------------- open_clip


def open_clip_pixels(config):
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from torchvision.transforms import Compose

    return Compose(image_transform_v2(PreprocessCfg(**config), is_train=False).transforms[:-2])


@pytest.mark.slow
@settings(deadline=None, max_examples=400)
@given(
    width=SIDES,
    height=SIDES,
    size=st.one_of(st.integers(1, 50), st.tuples(st.integers(1, 50), st.integers(1, 50))),
    resize_mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from([*FILTERS, "random"]),
    fill_color=st.one_of(st.integers(0, 255), st.tuples(*[st.integers(0, 255)] * 3)),
    seed=st.integers(0, 2**32 - 1),
)
def test_clip_preprocessing_has_open_clips_pixels(width, height, size, resize_mode, interpolation, fill_color, seed):
    config = {"size": size, "resize_mode": resize_mode, "interpolation": interpolation, "fill_color": fill_color}
    transform, image = ClipPreprocess(config), noise(width, height, seed)
    got = transform(image)
    assert got.size == transform.size[::-1]
    assert transform.size == ((size, size) if isinstance(size, int) else size)
    thin = resize_mode == "longest" and min(got.height * width // height, got.width * height // width) < 1
    if thin:  # a side of less than half a pixel: open_clip fails on some of them
        return
    expected = open_clip_pixels(config)(image)
    if resize_mode != "shortest" or discarded(image, transform.size) <= MOST_DISCARDED:
        assert_same(got, expected)
    else:
        assert_near(got, expected, levels=40)


def discarded(image, size):
    """How often the crop fits into the resized image, a little too large."""
    ratio = min(image.height / size[0], image.width / size[1])
    return (image.height / ratio + 1) * (image.width / ratio + 1) / math.prod(size)


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [224, (224, 224), [256, 128]])
@pytest.mark.parametrize("sides", [(500, 375), (375, 500), (224, 224), (100, 30)])
def test_clip_preprocessing_has_open_clips_pixels_at_sizes_of_the_world(resize_mode, size, sides):
    config = {"size": size, "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "mode": "RGB"}
    config |= {"interpolation": "bicubic", "resize_mode": resize_mode, "fill_color": 127}
    image = noise(*sides)
    assert_same(ClipPreprocess(config)(image), open_clip_pixels(config)(image))


def test_what_a_config_leaves_out_is_as_open_clip_has_it():
    image = noise(60, 40)
    assert_same(ClipPreprocess({"size": 20})(image), open_clip_pixels({"size": 20})(image))
    nothing = {"size": 20, "interpolation": None, "resize_mode": None}
    assert_same(ClipPreprocess(nothing)(image), open_clip_pixels(nothing)(image))


def test_a_side_that_would_vanish_keeps_one_pixel():
    got = pixels(ClipPreprocess({"size": 8, "resize_mode": "longest", "fill_color": 9})(Image.new("RGB", (1, 1500))))
    assert [row.tolist() for row in got[..., 0]] == [[9, 9, 9, 0, 9, 9, 9, 9]] * 8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ClipPreprocess({"mean": 0}), "preprocess_cfg has no size; it has mean"),
        (
            lambda: ClipPreprocess({"size": 8, "resize_mode": "squish"}),
            "unknown resize_mode 'squish'; did you mean 'sq",
        ),
        (lambda: ClipPreprocess({"size": 8, "interpolation": "nearest"}), "unknown interpolation 'nearest'"),
        (lambda: CenterCrop(8, "lanczos"), "unknown interpolation 'lanczos'; known: bicubic, bilinear"),
        (lambda: RandomCrop(8, (0.5, 1), True, "bilinaer"), "did you mean 'bilinear'?"),
    ],
)
def test_an_unknown_word_is_refused_before_any_image(make, words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the words are looked at)
        make()
    assert words in str(caught.value)


# ---------------------------------------------------------------- random crops


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    width=SIDES,
    height=SIDES,
    size=st.integers(1, 40),
    interpolation=st.sampled_from(FILTERS),
    flip=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_random_crop_has_torchvisions_pixels_for_its_box(width, height, size, interpolation, flip, seed):
    from torchvision.transforms import InterpolationMode, functional

    image = noise(width, height)
    crop = RandomCrop(size, (0.08, 1.0), flip, interpolation)
    (left, top, right, bottom), flipped = crop.draw(width, height, seed)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    box = top, left, bottom - top, right - left
    expected = functional.resized_crop(image, *box, [size, size], InterpolationMode(interpolation))
    assert_same(crop(image, seed), functional.hflip(expected) if flipped else expected)


@given(st.lists(st.tuples(SIDES, SIDES, st.integers(0, 2**63 - 1)), min_size=1, max_size=20), st.booleans())
def test_crops_of_a_batch_are_each_as_if_drawn_alone(asked, flip):
    crop = RandomCrop(8, (0.08, 1.0), flip)
    together = crop.draws(*np.array(asked, np.int64).T)
    assert [((*box,), bool(flipped)) for *box, flipped in together.tolist()] == [crop.draw(*one) for one in asked]


def drawn(width, height, area, count=4000):
    """Boxes by us and by torchvision: left, top, width, height, [count, 4] each."""
    import torch
    from torchvision.transforms import RandomResizedCrop

    crop = RandomCrop(8, area, flip=True)
    ours = crop.draws(np.full(count, width), np.full(count, height), np.arange(count))[:, :4]
    ours[:, 2:] -= ours[:, :2]
    torch.manual_seed(0)
    image = Image.new("L", (width, height))
    theirs = [RandomResizedCrop.get_params(image, list(area), [3 / 4, 4 / 3]) for _ in range(count)]
    return ours, np.array(theirs)[:, [1, 0, 3, 2]]


@pytest.mark.slow
@pytest.mark.parametrize("area", [(0.08, 1.0), (0.5, 1.0), (0.3, 0.3)])
@pytest.mark.parametrize("sides", [(500, 375), (300, 300), (100, 260), (90, 900)])
def test_random_crops_are_distributed_as_torchvisions(area, sides):
    """Two-sample Kolmogorov-Smirnov of position, size, area and aspect. The seeds are fixed, so it passes or fails."""
    from scipy.stats import ks_2samp

    ours, theirs = drawn(*sides, area)
    for measure in (
        lambda box: box[:, 0], lambda box: box[:, 1], lambda box: box[:, 2], lambda box: box[:, 3],
        lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 2] / box[:, 3], lambda box: box[:, 0] + box[:, 2],
    ):  # fmt: skip
        assert ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-4


def test_the_test_of_distributions_would_notice_another_area():
    from scipy.stats import ks_2samp

    ours, _ = drawn(500, 375, (0.5, 1.0))
    _, theirs = drawn(500, 375, (0.45, 1.0))
    assert ks_2samp(np.prod(ours[:, 2:], axis=1), np.prod(theirs[:, 2:], axis=1)).pvalue < 1e-4


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_where_no_attempt_fits_the_middle_is_taken_as_in_torchvision(width, height):
    from torchvision.transforms import RandomResizedCrop

    impossible = (9.0, 9.0)  # nine times the image
    (left, top, right, bottom), _ = RandomCrop(8, impossible, flip=False).draw(width, height, 0)
    expected = RandomResizedCrop.get_params(Image.new("L", (width, height)), list(impossible), [3 / 4, 4 / 3])
    assert (top, left, bottom - top, right - left) == expected


def test_a_crop_hangs_on_its_seed_alone_and_flipping_leaves_it():
    plain, flipping = RandomCrop(8, (0.3, 1.0), flip=False), RandomCrop(8, (0.3, 1.0), flip=True)
    boxes = [plain.draw(60, 50, seed) for seed in range(400)]
    assert boxes == [plain.draw(60, 50, seed) for seed in range(400)]
    assert len(set(boxes)) > 350
    assert [box for box, _ in boxes] == [flipping.draw(60, 50, seed)[0] for seed in range(400)]
    assert not any(flipped for _, flipped in boxes)
    assert 150 < sum(flipping.draw(60, 50, seed)[1] for seed in range(400)) < 250


@given(
    width=SIDES,
    height=SIDES,
    sides=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    flipped=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_random_crop_may_become_an_oblong(width, height, sides, flipped, seed):
    crop = RandomCrop(sides, (0.3, 1.0), True, "bicubic")
    (left, top, right, bottom), _ = crop.draw(width, height, seed)
    assert min((bottom - top) / sides[0], (right - left) / sides[1]) >= crop.shrinks(width, height) - 1 / min(sides)
    image, box = noise(width, height), (left, top, right, bottom)
    expected = image.crop(box).resize(sides[::-1], Image.Resampling.BICUBIC)
    assert_same(crop.cut(image, box, flipped), ImageOps.mirror(expected) if flipped else expected)


# ---------------------------------------------------------------- views


def test_views_are_the_crops_of_their_boxes_one_after_another():
    views = RandomViews(RandomCrop((8, 12), (0.3, 1.0), True, "bicubic"), count=30, seed=5)
    image = noise(60, 40)
    pixels_KHW3, crops_K5 = views(image, "a")
    assert (pixels_KHW3.shape, pixels_KHW3.dtype) == ((30, 8, 12, 3), np.uint8)
    assert (crops_K5.shape, crops_K5.dtype) == ((30, 5), np.int32)
    assert len({tuple(crop) for crop in crops_K5.tolist()}) == 30
    assert 0 < crops_K5[:, 4].sum() < 30
    for pixels_HW3, (*box, flipped) in zip(pixels_KHW3, crops_K5.tolist(), strict=True):
        expected = image.crop(box).resize((12, 8), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(pixels_HW3, ImageOps.mirror(expected) if flipped else expected)


@given(st.text(max_size=6), st.integers(0, 2**63 - 1), st.integers(1, 6))
def test_views_hang_on_seed_id_and_number_alone(sample_id, seed, count):
    crop, image = RandomCrop(8, (0.3, 1.0), True), noise(50, 70)
    many = RandomViews(crop, 6, seed)
    few = RandomViews(crop, count, seed)(image, sample_id)
    for ours, all_of_them in zip(few, many(image, sample_id), strict=True):
        np.testing.assert_array_equal(ours, all_of_them[:count])
    for other in (many(image, sample_id + "x"), RandomViews(crop, 6, seed + 1)(image, sample_id)):
        assert not np.array_equal(other[1], many(image, sample_id)[1])


# ---------------------------------------------------------------- thumbnails


@pytest.mark.parametrize(("sides", "expected"), [((400, 300), (96, 72)), ((300, 400), (72, 96)), ((97, 1), (96, 1))])
def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape(sides, expected):
    image = Image.linear_gradient("L").resize(sides).convert("RGB")
    before = image.tobytes()
    small = Image.open(io.BytesIO(Thumbnail(96)(image)))
    assert (small.format, small.size) == ("JPEG", expected)
    assert image.size == sides
    assert image.tobytes() == before


def test_an_image_that_is_small_already_stays_as_it_is():
    image = noise(20, 96)
    small = Image.open(io.BytesIO(Thumbnail(96)(image)))
    assert small.format == "PNG"
    assert_same(small.convert("RGB"), image)


def test_a_thumbnail_looks_like_the_image():
    image = noise(8, 8).resize((800, 640), Image.Resampling.BICUBIC)
    small = Image.open(io.BytesIO(Thumbnail(100)(image))).convert("RGB")
    assert np.abs(pixels(small) - pixels(image.resize((100, 80), Image.Resampling.BOX))).mean() < 6


# ---------------------------------------------------------------- how much smaller they make an image


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (CenterCrop(50), 4.0),
        (ClipPreprocess({"size": 50}), 4.0),
        (ClipPreprocess({"size": 50, "resize_mode": "longest"}), 8.0),
        (ClipPreprocess({"size": [100, 50], "resize_mode": "squash"}), 2.0),
        (Thumbnail(100), 4.0),
        (RandomCrop(50, (0.25, 1.0), True), np.sqrt(0.25 * 0.75 * 200 * 400) / 50),
        (RandomCrop((50, 40), (0.25, 1.0), True), np.sqrt(0.25 * 0.75 * 200 * 400) / 50),
        (RandomViews(RandomCrop(50, (0.25, 1.0), True), 3, 0), np.sqrt(0.25 * 0.75 * 200 * 400) / 50),
    ],
)
def test_a_transform_says_how_many_times_smaller_it_makes_an_image(transform, expected):
    assert transform.shrinks(400, 200) == pytest.approx(expected)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32))
def test_no_random_crop_is_shrunk_less_than_is_said(width, height, seed):
    crop = RandomCrop(10, (0.2, 1.0), True)
    (left, top, right, bottom), _ = crop.draw(width, height, seed)
    assert min(right - left, bottom - top) / 10 >= crop.shrinks(width, height) - 0.1


# ---------------------------------------------------------------- where they run

EVERY = [
    (CenterCrop(8, "bicubic"), ()),
    (ClipPreprocess({"size": 8, "resize_mode": "longest"}), ()),
    (RandomCrop(8, (0.5, 1.0), True), (3,)),
    (RandomViews(RandomCrop(8, (0.5, 1.0), True), 2, 0), ("a",)),
    (Thumbnail(8), ()),
]


@pytest.mark.parametrize(("transform", "more"), EVERY)
def test_transforms_pickle_small_and_do_the_same_afterwards(transform, more):
    data = pickle.dumps(transform)
    assert len(data) < 500
    again, image = pickle.loads(data), noise(30, 20)
    assert again == transform
    np.testing.assert_equal(again(image, *more), transform(image, *more))


def test_a_reading_process_loads_neither_torch_nor_ray(tmp_path):
    (tmp_path / "transforms").write_bytes(pickle.dumps(EVERY))
    program = f"""
import pathlib, pkgutil, importlib, pickle, sys
import raykd.images
names = [found.name for found in pkgutil.iter_modules(raykd.images.__path__)]
assert {{"reading", "sources", "transforms"}} <= set(names), names
for name in names:
    importlib.import_module("raykd.images." + name)
from PIL import Image
for transform, more in pickle.loads(pathlib.Path({str(tmp_path / "transforms")!r}).read_bytes()):
    transform(Image.new("RGB", (30, 20)), *more)
heavy = ["torch", "torchvision", "timm", "open_clip", "ray", "scipy", "pydantic"]
print([name for name in heavy if name in sys.modules])
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"
