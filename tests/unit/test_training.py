"""A training: what it learns from, that it can stop and go on anywhere, and what it says on the way."""

import io
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from raykd.algo.dho import StudentNet
from raykd.algo.heads import HEADS
from raykd.algo.zeroshot import rounded
from raykd.errors import StorageError, UserError
from raykd.models import training, training_data
from raykd.models.preprocess import Preprocess
from raykd.models.training import (
    Targets,
    TrainingSettings,
    Worker,
    map_teacher,
    reproducible,
    seed_draws,
    train_student,
)
from raykd.models.training_data import AskedBatch, Batch, TrainingFeatures, TrainingImages
from raykd.store.place import Place
from raykd.store.tables import vectors

CPU = torch.device("cpu")
NUM, LABELED, WIDTH, NUM_CLASSES = 40, 9, 6, 3


def problem(seed=0):
    """Features of three clouds, and a teacher who is mostly right."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, NUM_CLASSES, NUM)
    features = rng.normal(size=(NUM, WIDTH)).astype(np.float32)
    features[np.arange(NUM), classes] += 3
    teacher = rng.normal(size=(NUM, NUM_CLASSES)).astype(np.float16)
    teacher[np.arange(NUM), classes] += 3
    return TrainingFeatures(features), Targets(classes[:LABELED], teacher), classes


def new_model(heads="dho"):
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
    return StudentNet(backbone, 8, NUM_CLASSES, heads)


def how(**changes):
    settings = TrainingSettings(steps=12, key=(0, 1), batch_labeled=4, batch_unlabeled=8, checkpoints=3)
    return replace(settings, **changes)


def bits(model):
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


def lasting(line):
    """A line without what hangs on the clock."""
    return {name: value for name, value in line.items() if name not in ("images_per_s", "data_wait_share")}


def run(settings=None, heads="dho", data=None, resume=None, worker=None):
    """Trains; returns the model, the lines, and the states that were handed over, by step."""
    features, targets, _ = problem()
    model, states = new_model(heads), {}

    def report(step, metrics, state):
        assert metrics["step"] == step
        if state is not None:
            buffer = io.BytesIO()
            torch.save(state(), buffer)
            states[step] = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)

    with reproducible(1, CPU):
        lines = train_student(
            model, data or features, targets, settings or how(), report, resume=resume, worker=worker or Worker()
        )
    return model, lines, states


# ---------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize("heads", HEADS)
def test_every_kind_of_student_learns(heads):
    features, _, classes = problem()
    model, lines, _ = run(how(steps=120, learning_rate=1e-2), heads)
    assert lines[-1]["loss"] < 0.6 * lines[0]["loss"]
    logits = model.eval()(torch.from_numpy(features.features_ND)).logits
    for column in HEADS[heads]:
        assert (logits[column].argmax(1).numpy() == classes).mean() > 0.8, column


def test_the_same_training_gives_the_same_bits_and_another_seed_others():
    one, lines, _ = run()
    other, again, _ = run()
    assert bits(one) == bits(other)
    assert list(map(lasting, lines)) == list(map(lasting, again))
    assert bits(run(how(key=(0, 2)))[0]) != bits(one)


def test_torchs_state_is_as_it_was_before():
    features, targets, _ = problem()
    model, threads = new_model(), torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with reproducible(threads + 1, CPU):
        assert torch.get_num_threads() == threads + 1
        train_student(model, features, targets, how(), lambda *_: None)
    assert torch.equal(torch.rand(2), expected)
    assert torch.get_num_threads() == threads
    assert not torch.backends.cudnn.deterministic


def test_one_forward_pass_of_both_batches_is_two_of_one_each_where_nothing_normalises_over_a_batch(monkeypatch):
    monkeypatch.setattr(
        "test_training.new_model", lambda heads: (torch.manual_seed(0), StudentNet(nn.Linear(WIDTH, 8), 8, 3, heads))[1]
    )
    losses = [[line["loss"] for line in run(how(forward=way))[1]] for way in ("separate", "stacked")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_when_everything_is_labeled_the_labeled_images_are_distilled_on():
    features, targets, classes = problem()
    asked = []

    class Watched(TrainingFeatures):
        def batches(self, wanted, processes, on_gpu):
            for one, batch in super().batches(wanted, processes, on_gpu):
                asked.append(one.places)
                yield one, batch

    with reproducible(1, CPU):
        every = Targets(classes, targets.teacher_NC)
        train_student(new_model(), Watched(features.features_ND), every, how(steps=5), lambda *_: None)
    unlabeled = np.array(asked)[:, 4:].ravel()
    assert sorted(unlabeled) == list(range(NUM))  # one pass


def test_a_student_of_labels_alone_reads_no_other_image_and_needs_no_teacher():
    features, targets, _ = problem()
    only = Targets(targets.labels_L, np.empty((0, 0), np.float16))
    data = TrainingFeatures(np.where(np.arange(NUM)[:, None] < LABELED, features.features_ND, np.nan))
    with reproducible(1, CPU):
        lines = train_student(new_model("ce"), data, only, how(), lambda *_: None)
    assert np.isfinite(lines[-1]["loss"])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 3, 4, 5, 12]), st.integers(1, 30), st.integers(0, 9))
def test_the_shares_of_all_workers_are_the_batch(world, num_labeled, seed):
    made = how(key=(seed, 0))
    whole = training._Shares(made, num_labeled, 40, True, Worker())
    parts = [training._Shares(made, num_labeled, 40, True, Worker(rank, world)) for rank in range(world)]
    for one, *shared in zip(whole.asked(range(4)), *(part.asked(range(4)) for part in parts), strict=True):
        labeled, unlabeled = one.places[:4], one.places[4:]
        assert (one.num_labeled, len(unlabeled)) == (4, 8)
        assert labeled.max() < num_labeled <= unlabeled.min()
        items = [(place, seed) for each in shared for place, seed in zip(each.places, each.seeds, strict=True)]
        assert sorted(items) == sorted(zip(one.places, one.seeds, strict=True))
        assert sorted(place for each in shared for place in each.places[: each.num_labeled]) == sorted(labeled)
        assert {len(each.places) for each in shared} <= {12 // world, math.ceil(12 / world)}
        weights = [part.micro_batch(each, 0).weights for part, each in zip(parts, shared, strict=True)]
        assert np.mean(weights, axis=0).tolist() == pytest.approx([1, 1])


def no_batchnorm(heads="dho"):
    torch.manual_seed(0)
    return StudentNet(nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU()), 8, NUM_CLASSES, heads)


@pytest.mark.slow
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("forward", ["separate", "stacked"])
def test_micro_batches_add_up_to_the_batch_where_nothing_normalises_over_it(monkeypatch, heads, forward):
    monkeypatch.setattr("test_training.new_model", no_batchnorm)
    model, lines, _ = run(how(forward=forward), heads)
    for parts in (2, 3, 4, 7):  # 3 does not divide 4 + 8, and of 7 parts some have no labeled image
        again, same, _ = run(how(forward=forward, accumulate=parts), heads)
        assert [line["loss"] for line in same] == pytest.approx([line["loss"] for line in lines], rel=1e-4)
        for name, value in again.state_dict().items():
            torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-4, atol=2e-5)


# ---------------------------------------------------------------- stopped and going on


@pytest.mark.parametrize("steps", [7, 12])
@pytest.mark.parametrize("loader_processes", [0, 2])
def test_a_training_goes_on_from_any_checkpoint_to_the_same_bits_and_no_line_is_lost_or_doubled(
    steps, loader_processes
):
    model, lines, states = run(how(steps=steps))
    for step, state in states.items():
        resumed, every, later = run(how(steps=steps, loader_processes=loader_processes), resume=state)
        assert bits(resumed) == bits(model)
        assert list(map(lasting, every)) == list(map(lasting, lines))
        assert list(later) == [other for other in states if other > step]


def test_checkpoints_are_spread_over_the_steps_and_the_last_step_has_one():
    assert list(run(how(steps=7, checkpoints=3))[2]) == [3, 6, 7]
    assert list(run(how(steps=2, checkpoints=4))[2]) == [1, 2]


def test_a_checkpoint_is_due_when_the_last_is_so_many_seconds_ago_and_when_a_machine_is_about_to_go(monkeypatch):
    now, warnings = iter(range(0, 10**6, 10)), iter([[], ["node"], ["node"]])
    monkeypatch.setattr(training.time, "monotonic", lambda: next(now))  # each look takes ten seconds
    monkeypatch.setattr(training, "WARNINGS_S", 1e9)
    by_step = list(run(how(checkpoints=1))[2])
    by_time = list(run(how(checkpoints=1, checkpoint_s=35))[2])
    assert by_step == [12]
    assert by_time == [4, 8, 12]
    monkeypatch.setattr(training, "WARNINGS_S", 1.0)
    asked = []

    def warned():
        asked.append(1)
        return next(warnings, ["node"])

    found = list(run(how(checkpoints=1), worker=Worker(warned=warned))[2])
    assert found == [2, 12]  # once, not with every look after it
    assert len(asked) == 12


def test_half_precision_trains_and_keeps_full_weights():
    model, lines, _ = run(how(steps=60, learning_rate=1e-2, precision="bf16"))
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert {value.dtype for value in model.parameters()} == {torch.float32}
    assert bits(model) != bits(run(how(steps=60, learning_rate=1e-2))[0])


# ---------------------------------------------------------------- what it says


def test_a_line_says_what_the_loss_is_made_of():
    _, lines, _ = run()
    assert [line["step"] for line in lines] == list(range(1, 13))
    for line in lines:
        w, temperature = 0.5, 2.0
        parts = w * line["ce"] + (1 - w) * temperature**2 * (line["kl_labeled"] + line["kl_unlabeled"])
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        assert line["images_per_s"] > 0
        assert 0 <= line["data_wait_share"] <= 1
    rates = [line["learning_rate"] for line in lines]
    assert rates[:3] == [0.0, 1e-3, pytest.approx(1e-3 * 10 / 11)]


@pytest.mark.parametrize(
    ("heads", "missing"), [("ce", {"kl_labeled", "kl_unlabeled"}), ("kd", {"ce"}), ("ce+kd", set()), ("dho", set())]
)
def test_what_no_head_learns_from_is_null(heads, missing):
    line = run(heads=heads)[1][-1]
    assert {name for name in ("loss", "ce", "kl_labeled", "kl_unlabeled") if line[name] is None} == missing


@pytest.mark.slow
def test_a_long_training_writes_about_a_hundred_lines_each_the_mean_of_its_steps():
    every = [line["loss"] for line in run(how(steps=90))[1]]
    _, lines, _ = run(how(steps=250, checkpoints=4))
    assert len(lines) <= 104
    steps = [line["step"] for line in lines]
    assert steps == sorted({*range(3, 250, 3), 63, 126, 189, 250})
    assert len(every) == 90
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LINES", 9)
        tens = [line["loss"] for line in run(how(steps=90, checkpoints=1))[1]]
    assert tens == pytest.approx(np.mean(np.reshape(every, (9, 10)), axis=1).tolist())


def test_a_loss_that_is_not_finite_stops_before_it_spoils_the_weights():
    features, targets, _ = problem()
    model, seen = new_model(), []

    class Broken(TrainingFeatures):
        def to_input(self, batch):
            seen.append(bits(model))
            return batch * (float("nan") if len(seen) == 4 else 1)

    with pytest.raises(
        UserError, match=r"loss is nan at step 4 of 12, .* rate is 0\.000818.*lower student\.learning_rate"
    ):
        train_student(model, Broken(features.features_ND), targets, how(), lambda *_: None)
    after = bits(model)
    parameters = dict(model.named_parameters())
    assert all(after[name] == seen[-1][name] for name in parameters)
    assert any(after[name] != seen[-2][name] for name in parameters)


def test_a_learning_rate_that_is_far_too_high_ends_with_what_to_do():
    with pytest.raises(UserError, match=r"at step \d+ of 12, where the learning rate is 1e\+30; lower student"):
        run(how(learning_rate=1e30, warmup=0.0, schedule="constant"))


def test_a_warm_up_that_is_as_long_as_the_training_is_refused():
    assert [how(warmup=w, warmup_steps=n).rising for w, n in ((0.3, None), (None, 5), (None, 0))] == [3, 5, 0]
    with pytest.raises(UserError, match=r"12 steps of warm-up, and the training has 12 in all; lower student\.warmup"):
        how(warmup=None, warmup_steps=12)
    with pytest.raises(UserError, match=r"12 steps of warm-up"):
        how(warmup=1.0, schedule="semi_supervised")


# ---------------------------------------------------------------- images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from fakes import write_images

    folder = write_images(tmp_path_factory.mktemp("images"), 4)
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.png"))

    def make(places=slice(None), where=folder, **changes):
        ids = pa.chunked_array([names[places]])
        uris = pa.chunked_array([[f"{where}/{name}" for name in names[places]]])
        return TrainingImages(ids, uris, Preprocess(16, (0.5,) * 3, (0.25,) * 3), (0.5, 1.0), True, **changes)

    return make


def test_an_images_crop_hangs_on_its_seed(images):
    data = images()

    def crop(place, seed):
        return data.batch(AskedBatch(np.array([place]), np.array([seed]), 1)).items[0]

    assert len(data) == 12
    assert crop(0, 5).shape == (16, 16, 3)
    assert crop(0, 5).dtype == torch.uint8
    assert crop(0, 5).equal(crop(0, 5))
    assert not crop(0, 5).equal(crop(0, 6))
    assert not crop(0, 5).equal(crop(1, 5))
    batch = data.batch(AskedBatch(np.array([0, 1]), np.array([5, 6]), 1)).items
    assert batch.equal(torch.stack([crop(0, 5), crop(1, 6)]))  # whatever else is in the batch
    expected = (batch.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(data.to_input(batch), expected, rtol=0, atol=1e-5)


def test_crops_are_pillows_up_to_rounding_in_any_size_and_shape(tmp_path):
    from fakes import encode, picture

    names = []
    for height, width in ((16, 16), (20, 33), (64, 48), (301, 97)):
        names.append(str(tmp_path / f"{height}.png"))
        (tmp_path / f"{height}.png").write_bytes(encode(picture(height, height, width)))
    ids = pa.chunked_array([names])
    for interpolation, most in (("bilinear", 2), ("bicubic", 3)):
        preprocess = Preprocess(24, (0.5,) * 3, (0.5,) * 3, interpolation)
        data, crop = TrainingImages(ids, ids, preprocess, (0.3, 1.0), True), preprocess.augmented((0.3, 1.0), True)
        places, seeds = np.repeat(np.arange(4), 5), np.arange(20)
        found = data.batch(AskedBatch(places, seeds, 0)).items.numpy()
        for pixels, place, seed in zip(found, places.tolist(), seeds.tolist(), strict=True):
            expected = np.asarray(crop(Image.open(names[place]), seed))
            assert np.abs(pixels.astype(int) - expected).max() <= most
            assert np.abs(pixels.astype(int) - expected).mean() < 0.3


def test_an_image_is_decoded_once_and_gives_the_same_crops_whether_or_not_there_was_room(images, monkeypatch):
    read, load = [], training_data.load_one
    monkeypatch.setattr(training_data, "load_one", lambda *given: (read.append(given[1]), load(*given))[1])
    asked = AskedBatch(np.arange(12), np.arange(12), 3)
    crops = {}
    for gib in (1.0, 0.0, 3 * 24 * 24 * 5 / 2**30):  # room for all, for none, for five
        training_data._KEPT.clear()
        read.clear()
        data = images(cache_gib=gib)
        first, second = data.batch(asked).items, data.batch(asked).items
        assert first.equal(second)
        crops[gib] = first
        assert len(read) == 12 + {1.0: 0, 0.0: 12}.get(gib, 7)
    assert all(each.equal(crops[1.0]) for each in crops.values())


def test_the_next_training_of_a_process_finds_what_was_decoded(images, monkeypatch):
    training_data._KEPT.clear()
    images().batch(AskedBatch(np.arange(12), np.arange(12), 3))
    monkeypatch.setattr(training_data, "load_one", lambda *_: pytest.fail("decoded again"))
    images(slice(2, 9)).batch(AskedBatch(np.arange(7), np.arange(7), 3))  # some are left out now


def test_a_stored_box_is_what_is_cut_and_the_seed_chooses_it(images):
    boxes = np.array([[[0, 0, 12, 12, 0], [4, 6, 20, 22, 1]]] * 12, np.int32)
    data = images(crops_NK5=boxes, teacher_size=(24, 24))
    with Image.open(data.uris[3].as_py()) as image:
        crops = [image.crop((0, 0, 12, 12)), image.crop((4, 6, 20, 22)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for seed in (0, 1, 6, 7):
        found = data.batch(AskedBatch(np.array([3]), np.array([seed]), 1))
        assert found.for_teacher is None
        expected = np.asarray(crops[seed % 2].resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(found.items[0].numpy() - expected).max() <= 2


def test_an_online_teacher_sees_the_very_crop_at_its_own_size(images):
    asked = AskedBatch(np.arange(12), np.arange(12), 3)
    assert images().batch(asked).for_teacher is None
    small = images(teacher_size=(16, 16)).batch(asked)
    assert small.for_teacher.equal(small.items)
    large = images(teacher_size=(32, 32)).batch(asked)
    assert large.items.equal(small.items)
    assert large.for_teacher.shape == (12, 32, 32, 3)
    shrunk = torch.nn.functional.avg_pool2d(large.for_teacher.permute(0, 3, 1, 2).float(), 2)
    assert (shrunk - small.items.permute(0, 3, 1, 2)).abs().mean() < 12  # the same picture, not another crop


def test_the_logits_of_a_view_belong_to_its_seed():
    teacher_NKC = np.arange(24, dtype=np.float16).reshape(4, 2, 3)
    asked = AskedBatch(np.array([3, 0, 3]), np.array([4, 7, 5]), 1)
    found = Targets(np.zeros(1, np.int64), teacher_NKC).teacher(asked, Batch(torch.empty(0)))
    assert found.tolist() == [teacher_NKC[3, 0].tolist(), teacher_NKC[0, 1].tolist(), teacher_NKC[3, 1].tolist()]


def test_images_on_an_object_store_are_read_by_processes_that_are_no_forks():
    transform = (Preprocess(16, (0.5,) * 3, (0.25,) * 3), (0.5, 1.0), True)
    for uri, method in (("/images/a.png", "fork"), ("s3://bucket/a.png", "spawn")):
        assert TrainingImages(pa.chunked_array([["a"]]), pa.chunked_array([[uri]]), *transform).start_method == method


class OfImages(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, images):
        return self.layer(images.mean(dim=(2, 3)))


def train_on(data, **changes):
    torch.manual_seed(0)
    model = StudentNet(OfImages(), 8, 3)
    teacher = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float16)
    with reproducible(1, CPU):
        return train_student(model, data, Targets(np.array([0, 1, 2]), teacher), how(**changes), lambda *_: None)


def test_loader_processes_do_not_change_what_is_learned(images):
    alone = list(map(lasting, train_on(images())))
    assert list(map(lasting, train_on(images(), loader_processes=2))) == alone


@pytest.mark.parametrize("loader_processes", [0, 2])
def test_an_image_that_went_away_is_named_in_one_line(images, tmp_path, loader_processes):
    source = os.path.dirname(os.path.dirname(images().uris[0].as_py()))
    folder = shutil.copytree(source, tmp_path / "copy")
    (folder / "red" / "001.png").unlink()
    with pytest.raises(UserError, match=r"^image 'red/001\.png' was readable and is no more: [^\n]*$"):
        train_on(images(where=folder), loader_processes=loader_processes)


def test_a_storage_that_fails_is_no_images_fault(images):
    class Away(TrainingFeatures):
        def batches(self, asked, processes, on_gpu):
            raise StorageError("the disk is on fire")

    with pytest.raises(StorageError, match="on fire"):
        train_on(Away(np.zeros((12, 3))))


def test_seeding_gives_torchs_own_draws_and_leaves_nothing_behind():
    """``torch.manual_seed`` keeps a stack trace for later each time, for accelerators that are not in use."""
    torch.manual_seed(5)
    expected = torch.rand(4)
    kept = len(torch.cuda._queued_calls)
    seed_draws(5)
    assert torch.rand(4).equal(expected)
    assert len(torch.cuda._queued_calls) == kept


# ---------------------------------------------------------------- the teacher's logits


def write_logits(folder, ids, logits, errors=None):
    columns = {
        "sample_id": ids,
        "error": errors or pa.nulls(len(ids), pa.string()),
        "logits": vectors(np.asarray(logits, np.float32), None if errors is None else [e is not None for e in errors]),
    }
    (Place.of(folder) / "part.parquet").write_table(pa.table(columns), row_group_rows=7)
    return Place.of(folder).uri


def softmax(logits, temperature=1.0):
    logits = np.asarray(logits, np.float64) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("batch", [1, 5, 8192])
def test_each_image_gets_its_own_logits_whatever_the_tables_order(tmp_path, monkeypatch, batch):
    monkeypatch.setattr(training, "READ_ROWS", batch)
    rng = np.random.default_rng(0)
    ids = np.array([f"s{i}" for i in range(30)])
    logits = rng.normal(0, 20, (30, 4)).astype(np.float32)
    order = rng.permutation(30)
    errors = {i: "broken" if i == 7 else None for i in range(30)}
    uris = [
        write_logits(tmp_path / str(n), ids[part], logits[part], [errors[i] for i in part])
        for n, part in enumerate((order[:11], order[11:]))
    ]
    wanted = rng.permutation([i for i in range(30) if i != 7])[:20]
    asked = pa.chunked_array([ids[wanted[:5]], ids[wanted[5:]]])
    got = map_teacher(uris, asked, 4, tmp_path / "mapped")
    assert got.shape == (20, 4)
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got.max(axis=1), 0)
    expected = logits[wanted] - logits[wanted].max(axis=1, keepdims=True)
    np.testing.assert_array_equal(got, expected.astype(np.float16))
    assert (tmp_path / "mapped").stat().st_size == 20 * 4 * 2


@pytest.mark.slow
@given(st.integers(0, 2**20), st.floats(0.1, 60), st.floats(-500, 500), st.sampled_from([1.0, 2.0]))
def test_half_precision_changes_a_teachers_probabilities_by_little(seed, spread, offset, temperature):
    logits = (np.random.default_rng(seed).normal(0, spread, (20, 5)) + offset).astype(np.float32)
    got = np.float32(rounded(logits))
    exact, distance = softmax(logits, temperature), logits.max(axis=1, keepdims=True) - logits
    bound = exact * (distance / temperature / 2048 * 2 + 1e-5) + 1e-9  # twice: its own, and that of the sum
    assert (
        np.abs(softmax(got, temperature) - exact) <= bound + exact * (exact * distance).sum(1, keepdims=True) / 1024
    ).all()


def test_logits_beyond_half_precision_stay_finite(tmp_path):
    uri = write_logits(tmp_path / "t", ["a"], [[0.0, -1e6, 1e6]])
    got = map_teacher([uri], pa.chunked_array([["a"]]), 3, tmp_path / "mapped")
    assert np.isfinite(got).all()
    assert softmax(np.float32(got)).tolist() == [[0, 0, 1]]


def test_a_teacher_table_that_lacks_an_image_or_has_other_classes_is_refused(tmp_path):
    uri = write_logits(tmp_path / "t", ["a", "b", "c"], np.ones((3, 2)), [None, "broken", None])
    ids = pa.chunked_array([["a", "x", "b"]])
    with pytest.raises(UserError, match=r"2 images have no logits in the teacher table, first 'x'"):
        map_teacher([uri], ids, 2, tmp_path / "mapped")
    with pytest.raises(UserError, match="a teacher table of 2 classes; expected 3"):
        map_teacher([uri], pa.chunked_array([["a"]]), 3, tmp_path / "mapped")
    uri = write_logits(tmp_path / "u", ["a", "b"], [[0, 1], [np.nan, 1]])
    with pytest.raises(UserError, match="logits of 'b' are not finite"):
        map_teacher([uri], pa.chunked_array([["a", "b"]]), 2, tmp_path / "mapped")
