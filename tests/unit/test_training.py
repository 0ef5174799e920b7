"""A training: what it learns from, that it can stop and go on anywhere, and what it says on the way."""

import io
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from raykd.algo.dho import StudentNet
from raykd.algo.heads import HEADS
from raykd.algo.zeroshot import rounded
from raykd.errors import StorageError, UserError
from raykd.models import training
from raykd.models.preprocess import Preprocess
from raykd.models.training import (
    Targets,
    TrainingFeatures,
    TrainingImages,
    TrainingSettings,
    Worker,
    map_teacher,
    reproducible,
    seed_draws,
    train_student,
)
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
        def __getitem__(self, item):
            asked.append(item[0])
            return super().__getitem__(item)

    with reproducible(1, CPU):
        every = Targets(classes, targets.teacher_NC)
        train_student(new_model(), Watched(features.features_ND), every, how(steps=5), lambda *_: None)
    unlabeled = np.array(asked).reshape(5, 12)[:, 4:].ravel()
    assert sorted(unlabeled) == list(range(NUM))  # one pass


def test_a_student_of_labels_alone_reads_no_other_image_and_needs_no_teacher():
    features, targets, _ = problem()
    only = Targets(targets.labels_L, np.empty((0, 0), np.float16))
    data = TrainingFeatures(np.where(np.arange(NUM)[:, None] < LABELED, features.features_ND, np.nan))
    with reproducible(1, CPU):
        lines = train_student(new_model("ce"), data, only, how(), lambda *_: None)
    assert np.isfinite(lines[-1]["loss"])


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([1, 2, 4]), st.integers(1, 30), st.integers(0, 9))
def test_the_shares_of_all_workers_are_the_batch(world, num_labeled, seed):
    made = how(key=(seed, 0))
    whole = training._Shares(made, num_labeled, 40, True, Worker())
    parts = [training._Shares(made, num_labeled, 40, True, Worker(rank, world)) for rank in range(world)]
    for step in (0, 3):
        items = whole._items(step)
        labeled, unlabeled = whole.asked.popleft()
        assert len(labeled) == 4
        assert labeled.max() < num_labeled <= unlabeled.min()
        assert [place for place, _ in items] == [*labeled, *unlabeled]
        shared = [part._items(step) for part in parts]
        assert sorted(item for items in shared for item in items) == sorted(items)
        assert {len(items) for items in shared} == {12 // world}
        asked = [part.asked.popleft() for part in parts]
        np.testing.assert_array_equal(np.sort(np.concatenate([a for a, _ in asked])), np.sort(labeled))


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


# ---------------------------------------------------------------- images


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from fakes import write_images

    folder = write_images(tmp_path_factory.mktemp("images"), 4)
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("*/*.png"))

    def make(places=slice(None), where=folder):
        ids = pa.chunked_array([names[places]])
        uris = pa.chunked_array([[f"{where}/{name}" for name in names[places]]])
        return TrainingImages(ids, uris, Preprocess(16, (0.5,) * 3, (0.25,) * 3), (0.5, 1.0), True)

    return make


def test_an_images_crop_hangs_on_its_seed(images):
    data = images()
    assert len(data) == 12
    assert data[0, 5].shape == (16, 16, 3)
    assert data[0, 5].dtype == torch.uint8
    assert data[0, 5].equal(data[0, 5])
    assert not data[0, 5].equal(data[0, 6])
    assert not data[0, 5].equal(data[1, 5])
    batch = torch.stack([data[0, 5], data[1, 6]])
    expected = (batch.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    torch.testing.assert_close(data.to_input(batch), expected, rtol=0, atol=1e-5)


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
        def __getitem__(self, item):
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
