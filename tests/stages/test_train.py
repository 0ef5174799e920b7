"""A training gives the same student however many workers share it and whatever kills them on the way."""

import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch

from raykd.config import Student as StudentConfig
from raykd.store.tables import LABELS, vectors


def weights_of(folder) -> dict:
    return safetensors.torch.load_file(Path(str(folder)) / "model.safetensors")


@pytest.fixture
def fit(seeded, finished):
    """Trains the finished campaign's second student once more, in a new folder; returns campaign and stage."""
    from raykd.stages import train

    def fit(*overrides):
        _, campaign = seeded(*overrides)
        return campaign, train.fit(campaign, 1, finished.pool, finished.teacher, finished.rounds[1].labels)

    return fit


# ---------------------------------------------------------------- on Ray Train


def test_two_workers_train_the_student_that_one_would(fit, finished):
    campaign, stage = fit("student.num_workers=2")
    alone = finished.rounds[1].trained
    assert stage.fingerprint != alone.fingerprint  # this student has no BatchNorm, but another would differ
    assert stage.facts["loss"] == pytest.approx(alone.facts["loss"], rel=1e-4)
    one, two = weights_of(alone.place), weights_of(stage.place)
    assert one.keys() == two.keys()
    moved = weights_of(finished.rounds[0].trained.place)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert any(float((one[name] - moved[name]).abs().max()) > 1e-2 for name in one)  # or any student would do
    assert not list(Path((campaign.place / "ray_train").path).iterdir())


def test_a_killed_worker_goes_on_from_the_last_checkpoint_to_the_same_bits(fit, finished, tmp_path, monkeypatch):
    """The worker kills itself when its second checkpoint is safe: at step 4 of 6."""
    from raykd.stages import train

    log = tmp_path / "worker.log"

    def deadly(arguments):
        import ray
        import ray.train

        from raykd.stages import train_loop

        def note(text):
            with open(log, "a") as stream:
                stream.write(text + "\n")

        start, save = ray.train.get_checkpoint(), train_loop.save

        def save_and_die(student, optimizer, scheduler, step, loss, rank):
            save(student, optimizer, scheduler, step, loss, rank)
            note(f"step {step}")
            if start is None and step == 4:
                ray.train.get_all_reported_checkpoints()  # waits until the controller knows of it
                os.kill(os.getpid(), signal.SIGKILL)

        note("from a checkpoint" if start else "from the start")
        train_loop.save = save_and_die
        train_loop.run(ray.get(arguments["job"]), arguments["ticker"])

    monkeypatch.setattr(train, "train_loop", deadly)
    _, stage = fit()
    assert log.read_text().split("\n")[:-1] == ["from the start", "step 2", "step 4", "from a checkpoint", "step 6"]
    alone = finished.rounds[1].trained
    assert stage.facts["loss"] == alone.facts["loss"]
    assert (Path(stage.place.path) / "model.safetensors").read_bytes() == (
        Path(alone.place.path) / "model.safetensors"
    ).read_bytes()


def test_a_loss_that_is_not_finite_ends_the_training_with_what_to_do(fit):
    with pytest.raises(ValueError, match=r"the training loss is nan at step 2; lower student\.learning_rate"):
        fit("student.learning_rate=1e30", "student.warmup=0", "student.max_failures=0")


def test_a_backbones_file_of_the_same_size_with_other_weights_is_refused(settings, tmp_path):
    from raykd.config import load
    from raykd.models.student import make_backbone
    from raykd.stages.campaign import Campaign
    from raykd.stages.progress import Progress
    from raykd.stages.train import fetch_backbone
    from raykd.store.place import Place

    file = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(make_backbone("test_vit")[0].state_dict(), file)
    config = load(settings, [f"student.pretrained={file}"])
    campaign = Campaign(config, Place.of(settings["storage_path"]), Progress("none"))
    assert fetch_backbone(campaign) == fetch_backbone(campaign)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"student_model was made from other inputs: file: was '\w{64}', now '\w{64}'"):
        fetch_backbone(campaign)


# ---------------------------------------------------------------- what is trained on


def make_job(folder: Path, answers: dict[str, tuple[str, int | None]], count: int = 10, **config):
    """A training over pool images s0, s1, ... with these answers; teacher logits that name their image."""
    from raykd.stages.train_loop import Job
    from raykd.store.place import Place

    ids = [f"s{i}" for i in range(count)]
    teacher = {
        "sample_id": [*ids, "bad"][::-1],
        "logits": vectors(np.arange((count + 1) * 2, dtype=np.float32).reshape(-1, 2)[::-1], [True] + [False] * count),
        "error": ["broken"] + [None] * count,
    }
    (Place.of(folder) / "data" / "part.parquet").write_table(pa.table(teacher))
    labels = pa.table(
        {
            "sample_id": list(answers),
            "label": pa.array([label for _, label in answers.values()], pa.int32()),
            "outcome": [outcome for outcome, _ in answers.values()],
        },
        schema=LABELS,
    )
    return Job(
        rows=pa.table({"sample_id": ids[::-1], "uri": [f"/images/{name}" for name in ids[::-1]]}),
        labels=labels,
        teacher=Place.of(folder) / "data",
        start=None,
        classes=["cat", "dog"],
        config=StudentConfig(**({"backbone": "test_vit", "steps": 6} | config)),
        key=(0, 1),
    )


ANSWERS = {
    "s7": ("label", 1),
    "s1": ("label", 0),
    "s2": ("unsure", None),
    "s3": ("cannot_label", None),
    "s4": ("none_of_the_classes", None),
    "gone": ("label", 1),
}


def test_only_labels_train_the_ce_head_and_only_what_shows_no_class_is_kept_from_distillation(tmp_path):
    job = make_job(tmp_path, ANSWERS)
    assert job.given["sample_id"].to_pylist() == ["s1", "s7"]
    assert job.given["label"].to_pylist() == [0, 1]
    assert job.unlabeled.to_pylist() == ["s0", "s2", "s5", "s6", "s8", "s9"]


def test_each_image_gets_its_own_teacher_logits_whatever_the_tables_order(tmp_path):
    labeled, unlabeled = make_job(tmp_path, ANSWERS).targets()
    assert labeled.tolist() == [[2, 3], [14, 15]]
    assert unlabeled.tolist() == [[2 * i, 2 * i + 1] for i in (0, 2, 5, 6, 8, 9)]


def test_a_teacher_table_of_other_classes_is_refused(tmp_path):
    job = make_job(tmp_path, ANSWERS)
    job.classes = ["cat", "dog", "owl"]
    with pytest.raises(ValueError, match="a teacher table of 2 classes; expected 3"):
        job.targets()


def test_when_everything_is_labeled_the_labeled_images_are_distilled_on(tmp_path):
    job = make_job(tmp_path, {f"s{i}": ("label", i % 2) for i in range(10)}, passes_unlabeled=3, steps=None)
    assert job.unlabeled.to_pylist() == job.given["sample_id"].to_pylist() == [f"s{i}" for i in range(10)]
    assert job.steps() == 3


def test_without_a_single_label_there_is_a_clear_error(tmp_path):
    with pytest.raises(ValueError, match=r"no image has a label yet.*label some first"):
        make_job(tmp_path, {"s2": ("unsure", None), "s3": ("cannot_label", None)})


def test_a_fresh_student_hangs_on_seed_and_round_and_not_on_torchs_state(tmp_path):
    import torch

    job = make_job(tmp_path, ANSWERS, image_size=32, pretrained=False)
    first = job.student().model.state_dict()
    torch.manual_seed(99)
    again = job.student().model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    job.key = (0, 2)
    other = job.student().model.state_dict()
    assert not torch.equal(first["ce_head.weight"], other["ce_head.weight"])


# ---------------------------------------------------------------- in this process (Ray Train's local mode)


@pytest.fixture
def train_here(ray_cluster, finished, tmp_path):
    """Trains in this process, without saving; returns what would have been saved as (step, loss)."""
    import ray.train
    from ray.train.torch import TorchTrainer

    from raykd.stages import train_loop
    from raykd.stages.label import read_labels
    from raykd.stages.pool import read_classes, read_manifest
    from raykd.stages.progress import Ticker
    from raykd.stages.teacher import readable

    def run(labels=None, monkeypatch=None, **config):
        rows = readable(read_manifest(finished.pool), finished.teacher)
        settings = StudentConfig(**(finished.settings["student"] | config))
        given = read_labels(finished.rounds[1].labels) if labels is None else labels
        job = train_loop.Job(
            rows.select(["sample_id", "uri"]), given, finished.teacher.place / "data", None,
            read_classes(finished.pool), settings, (0, 1),
        )  # fmt: skip
        losses = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(train_loop, "save", lambda *args: losses.append((args[3], args[4])))
            TorchTrainer(
                lambda: train_loop.run(job, Ticker(None)),
                scaling_config=ray.train.ScalingConfig(num_workers=0),
                run_config=ray.train.RunConfig(storage_path=str(tmp_path / "local")),
            ).fit()
        return losses

    return run


def test_checkpoints_are_spread_over_the_steps_and_the_last_step_has_one(train_here):
    assert [step for step, _ in train_here(steps=7, checkpoints=3)] == [3, 6, 7]
    assert [step for step, _ in train_here(steps=2, checkpoints=4)] == [1, 2]


def test_the_loss_falls_and_is_the_same_each_time(train_here):
    first = train_here(steps=30, learning_rate=3e-3)
    assert first[-1][1] < first[0][1]
    assert train_here(steps=30, learning_rate=3e-3) == first


def test_loader_processes_and_the_way_of_the_forward_pass_do_not_change_the_losses(train_here):
    """Without BatchNorm, one forward pass of both batches is two of one each."""
    plain = train_here()
    assert train_here(loader_processes=2) == plain
    stacked = train_here(forward="stacked")
    assert [loss for _, loss in stacked] == pytest.approx([loss for _, loss in plain], rel=1e-4)


def test_seeding_gives_torchs_own_draws_and_leaves_nothing_behind():
    """``torch.manual_seed`` keeps a stack trace for later each time, for accelerators that are not in use."""
    import torch

    from raykd.stages.train_loop import seed_draws

    torch.manual_seed(5)
    expected = torch.rand(4)
    kept = len(torch.cuda._queued_calls)
    seed_draws(5)
    assert torch.rand(4).equal(expected)
    assert len(torch.cuda._queued_calls) == kept


def test_an_image_that_went_away_since_the_teachers_pass_is_named(finished, tmp_path):
    from raykd.models.student import Preprocess
    from raykd.stages.train_loop import TrainingImages

    where = shutil.copy(finished.settings["pool"]["path"] + "/red/000.png", tmp_path / "a.png")
    transform = Preprocess(32, (0.5,) * 3, (0.5,) * 3).augmented((0.5, 1.0), True)
    images = TrainingImages(["red/000.png"], [str(where)], transform)
    assert images[0, 5].equal(images[0, 5])
    assert not images[0, 5].equal(images[0, 6])
    os.remove(where)
    with pytest.raises(ValueError, match=r"image 'red/000\.png' was readable and is no more"):
        images[0, 5]
