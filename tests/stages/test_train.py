"""A training gives the same student wherever it runs, however many workers share it, whatever kills it on the way."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch

from raykd.algo.heads import HEADS
from raykd.config import StudentConfig, load
from raykd.errors import UserError
from raykd.store.outputs import Encoded, Labels, Pool, Teacher
from raykd.store.place import Place
from raykd.store.stage_folder import Done
from raykd.store.tables import LABELS, MANIFEST, vectors

CLASSES = ("blue", "green", "red")


def forbidden(*_, **__):
    pytest.fail("this was not to be called")


class Inputs(NamedTuple):
    """What earlier stages leave."""

    pool: Pool
    encoded: Encoded
    teacher: Teacher
    labels: Labels


def labels_of(folder: Path, answers: dict[str, tuple[str, str | None]]) -> Labels:
    """Answers as the label stage leaves them: outcome and class name by sample_id."""
    ids = sorted(answers)
    columns = [ids, [answers[name][1] for name in ids], [answers[name][0] for name in ids], ["train"] * len(ids)]
    (Place.of(folder) / "labels.parquet").write_table(pa.table(columns, schema=LABELS))
    return Labels(Done(Place.of(folder), "labels", {"content": "as given"}))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, image_folder) -> Inputs:
    """48 images of three colours, two of each labeled, and a teacher who is mostly right."""
    folder = tmp_path_factory.mktemp("inputs")
    files = sorted(image_folder.glob("*/*.png"))
    ids = [str(file.relative_to(image_folder)) for file in files]
    names = [name.split("/")[0] for name in ids]
    manifest = [ids, list(map(str, files)), [0] * len(ids), [0] * len(ids), names, ["pool"] * len(ids)]
    (Place.of(folder / "pool") / "manifest.parquet").write_table(pa.table(manifest, schema=MANIFEST))
    logits = np.random.default_rng(0).normal(size=(len(ids), 3)).astype(np.float32)
    logits[np.arange(len(ids)), [CLASSES.index(name) for name in names]] += 3
    parts = []
    for n, part in enumerate((slice(None, 20), slice(20, None))):
        table = {
            "sample_id": ids[part],
            "error": pa.nulls(len(ids[part]), pa.string()),
            "logits": vectors(logits[part]),
        }
        (Place.of(folder / f"teacher{n}") / "part.parquet").write_table(pa.table(table))
        parts.append(Done(Place.of(folder / f"teacher{n}"), f"t{n}"))
    answers = {name: ("label", name.split("/")[0]) for name in ids if name[-7:] in ("000.png", "005.png")}
    return Inputs(
        Pool((Done(Place.of(folder / "pool"), "p"),), CLASSES),
        Encoded((Done(Place.of(folder / "pool"), "e", {"rows": 48, "unreadable": 0}),), "m", Place.of(folder)),
        Teacher(tuple(parts), "t", CLASSES, scores=None, check=None),
        labels_of(folder / "labels", answers),
    )


@pytest.fixture
def new_campaign(settings, tmp_path):
    """A campaign in a new folder; ``is_local``: of a Ray that raykd starts itself."""
    from raykd.stages.campaign import Campaign
    from raykd.stages.progress import Progress

    def make(*overrides: str, is_local: bool = True, name: str = "run") -> Any:
        config = load(settings | {"storage_path": str(tmp_path / name)}, overrides)
        session = SimpleNamespace(is_local=is_local, stall_s=600, ensure=lambda: None)
        place, progress = Place.of(config.storage_path), Progress("lines", io.StringIO())
        return Campaign(config=config, place=place, progress=progress, session=session)

    return make


@pytest.fixture
def train(new_campaign, inputs):
    from raykd.stages import train

    def run(*overrides: str, labels: Labels | None = None, **more: Any) -> Any:
        return train.train(new_campaign(*overrides, **more), 1, *inputs[:3], labels or inputs.labels)

    return run


def files_of(place) -> dict[str, bytes]:
    folder = Path(str(place))
    return {name: (folder / name).read_bytes() for name in ("model.safetensors", "student.json")}


def lines_of(trained) -> list[dict]:
    lines = [json.loads(line) for line in (trained.place / "steps.jsonl").read_bytes().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_s", "data_wait_share")} for line in lines]


def scratch_of(trained) -> list[str]:
    folder = Path(str(trained.place)).parents[1] / "ray_train"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# ---------------------------------------------------------------- in this process


@pytest.mark.parametrize("workers", ["1", "[1,3]"])  # these would share the cores of this machine
def test_a_local_training_of_one_worker_starts_no_other_process(train, monkeypatch, inputs, workers):
    from raykd.models.student import Student
    from raykd.stages import train as stage

    monkeypatch.setattr(stage, "trainer_of", forbidden)
    trained = train("student.num_cpus=2", f"student.num_workers={workers}")
    assert trained.done.facts["steps"] == 6
    assert trained.done.facts["num_labeled"] == 6
    assert (trained.classes, trained.columns) == (list(CLASSES), HEADS["dho"])
    lines = lines_of(trained)
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert trained.loss == pytest.approx(np.mean([line["loss"] for line in lines[-2:]]))  # of step 5 and 6
    student = Student.load(trained.place)
    assert (student.classes, student.preprocess.image_size) == (list(CLASSES), 32)
    assert scratch_of(trained) == []


def test_what_is_done_is_not_done_again_and_keeps_its_settings(train, monkeypatch):
    from raykd.stages import train as stage

    first = train()
    monkeypatch.setattr(stage, "make_job", forbidden)
    (first.place / ".." / ".." / "ray_train" / "round-001-of-another-start" / "training.pt").write_bytes(b"")
    again = train("student.steps=9")
    assert again.done == first.done
    assert again.done.facts["steps"] == 6
    assert scratch_of(again) == []


@pytest.mark.parametrize("heads", HEADS)
def test_every_kind_of_student_is_trained_and_can_be_loaded(train, heads):
    from raykd.models.student import Student

    trained = train(f"student.heads={heads}", name=heads)
    assert trained.columns == HEADS[heads] == Student.load(trained.place).columns


def test_a_long_wait_for_images_is_said_and_a_share_of_all_steps_is_kept(new_campaign, inputs, monkeypatch):
    from raykd.stages import train as stage

    lines = [
        {"step": 4, "loss": 9.0, "images_per_s": 10.0, "data_wait_share": 0.8},  # four steps, four times as slow
        {"step": 8, "loss": 1.0, "images_per_s": 40.0, "data_wait_share": 0.2},
    ]

    def slow(job, scratch, out, ticker):
        (out / "steps.jsonl").write_bytes("".join(json.dumps(line) + "\n" for line in lines).encode())

    monkeypatch.setattr("raykd.stages.train_loop.train_here", slow)
    monkeypatch.setattr(stage, "LONG_WAIT_S", 0.0)
    campaign = new_campaign()
    trained = stage.train(campaign, 1, *inputs)
    assert trained.loss == 1.0
    assert trained.data_wait_share == pytest.approx((4 * 0.8 + 1 * 0.2) / 5)
    assert trained.done.facts["images_per_s"] == pytest.approx(8 / 5 * 10)
    assert "68% of the time went by waiting for images; student.loader_processes" in campaign.progress.stream.getvalue()


def test_the_loss_falls(train):
    lines = lines_of(train("student.steps=40", "student.learning_rate=3e-3"))
    assert np.mean([line["loss"] for line in lines[-8:]]) < 0.9 * np.mean([line["loss"] for line in lines[:8]])


def test_classes_without_a_label_are_said_and_fewer_labels_than_a_batch_will_do(new_campaign, inputs, tmp_path):
    from raykd.stages import train

    campaign = new_campaign("student.steps=2", "student.batch_labeled=8")
    labels = labels_of(tmp_path, {"red/000.png": ("label", "red"), "green/000.png": ("label", "green")})
    trained = train.train(campaign, 1, *inputs[:3], labels)
    assert trained.done.facts["num_labeled"] == 2
    line = "1 of 3 classes have no label yet, such as 'blue': only the teacher speaks for them"
    assert line in campaign.progress.stream.getvalue()
    two = np.array([1, 2])
    assert train.without_labels(two, CLASSES, "ce").endswith("such as 'blue': the student cannot learn them")
    assert train.without_labels(two, CLASSES, "kd") is train.without_labels(np.arange(3), CLASSES, "dho") is None


DEADLY = """
import os, pickle, signal, sys
from raykd.stages import train_loop
from raykd.stages.progress import Ticker
from raykd.store.place import Place

job, scratch, out = pickle.load(open(sys.argv[1], "rb"))
write, written = Place.write_bytes, []

def write_and_die(place, data):
    write(place, data)
    if place.name == train_loop.STATE_FILE:
        written.append(place)
        if len(written) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

Place.write_bytes = write_and_die
train_loop.train_here(job, Place(scratch), Place(out), Ticker(None))
"""


def test_a_process_that_is_killed_goes_on_from_its_last_checkpoint_to_the_same_bits(new_campaign, inputs, tmp_path):
    """It kills itself when its second checkpoint is written: at step 4 of 6."""
    from raykd.stages.progress import Ticker
    from raykd.stages.train import make_job
    from raykd.stages.train_loop import train_here

    job = make_job(new_campaign(), 1, *inputs, None)
    alone = train_here(job, Place.of(tmp_path / "a"), Place.of(tmp_path / "alone"), Ticker(None))
    scratch, out = Place.of(tmp_path / "b"), Place.of(tmp_path / "out")
    (tmp_path / "job").write_bytes(pickle.dumps((job, str(scratch), str(out))))
    ended = subprocess.run([sys.executable, "-c", DEADLY, str(tmp_path / "job")], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    done = []
    went_on = train_here(job, scratch, out, SimpleNamespace(add=done.append))
    assert done == [4, 1, 1]
    assert [line["loss"] for line in went_on] == [line["loss"] for line in alone]
    assert files_of(out) == files_of(tmp_path / "alone")
    finished = train_here(job, scratch, out, Ticker(None))  # killed before the stage was complete
    assert finished == went_on
    assert files_of(out) == files_of(tmp_path / "alone")


def test_checkpoints_on_an_object_store_are_gone_on_from(new_campaign, inputs, tmp_path, bucket, monkeypatch):
    from raykd.stages import train_loop
    from raykd.stages.progress import Ticker
    from raykd.stages.train import make_job

    job = make_job(new_campaign(), 1, *inputs, None)
    alone = train_loop.train_here(job, Place.of(tmp_path / "a"), Place.of(tmp_path / "alone"), Ticker(None))
    scratch, out, packed = bucket / "ray_train" / "name", Place.of(tmp_path / "out"), train_loop.packed
    scratch.fs.create_dir(scratch.path)

    def killed(state):
        if state["step"] == 4:
            raise KeyboardInterrupt
        return packed(state)

    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "packed", killed)
        with pytest.raises(KeyboardInterrupt):
            train_loop.train_here(job, scratch, out, Ticker(None))
    done = []
    went_on = train_loop.train_here(job, scratch, out, SimpleNamespace(add=done.append))
    assert done == [2, 1, 1, 1, 1]
    assert [line["loss"] for line in went_on] == [line["loss"] for line in alone]
    assert files_of(out) == files_of(tmp_path / "alone")


def test_a_loss_that_is_not_finite_ends_the_training_and_a_lower_learning_rate_is_taken(train):
    with pytest.raises(UserError, match=r"the training loss is nan at step 2 of 6.*lower student\.learning_rate"):
        train("student.learning_rate=1e30", "student.warmup=0")
    trained = train("student.warmup=0")
    assert np.isfinite(trained.loss)
    assert scratch_of(trained) == []


def test_an_image_that_went_away_is_named(new_campaign, inputs, tmp_path):
    from raykd.stages.progress import Ticker
    from raykd.stages.train import make_job
    from raykd.stages.train_loop import train_here

    job = make_job(new_campaign(), 1, *inputs, None)
    uris = pa.chunked_array([[*job.uris.to_pylist()[:-1], str(tmp_path / "gone.png")]])
    job = type(job)(**(vars(job) | {"uris": uris}))
    with pytest.raises(UserError, match=rf"image '{job.ids[-1].as_py()}' was readable and is no more"):
        train_here(job, Place.of(tmp_path / "a"), Place.of(tmp_path / "b"), Ticker(None))


# ---------------------------------------------------------------- on Ray Train


def test_two_workers_train_the_student_that_one_would_even_when_one_is_killed(
    ray_cluster, train, tmp_path, monkeypatch
):
    """Not the first: it kills itself after four checkpoints, made by the clock, and as many as can go on from there."""
    from raykd.stages import train as stage

    log, uneven = tmp_path / "worker.log", ("student.batch_labeled=3", "student.batch_unlabeled=6")

    def deadly(arguments):
        import ray
        import ray.train

        from raykd.stages import train_loop

        rank, start, report = ray.train.get_context().get_world_rank(), ray.train.get_checkpoint(), ray.train.report

        def report_and_die(metrics, checkpoint=None):
            report(metrics, checkpoint=checkpoint)
            if rank == 0:
                with open(log, "a") as stream:
                    stream.write(f"{'later' if start else 'first'} step {metrics['step']}\n")
            elif start is None and metrics["step"] == 4:
                ray.train.get_all_reported_checkpoints()  # waits until the controller knows of it
                os.kill(os.getpid(), signal.SIGKILL)

        ray.train.report = report_and_die
        return train_loop.train_in_worker(ray.get(arguments["job"]), arguments["ticker"])

    alone = train(*uneven, name="alone")
    with monkeypatch.context() as patch:
        patch.setattr(stage, "in_worker", deadly)
        clock = "student.checkpoints=1", "student.checkpoint_s=1e-6"
        shared = train(*uneven, *clock, "student.num_workers=[1,2]", name="shared", is_local=False)
    first, later = [f"first step {step}" for step in (1, 2, 3, 4)], ["later step 5", "later step 6"]
    assert log.read_text().split("\n")[:-1] == first + later
    assert shared.fingerprint != alone.fingerprint  # this student has no BatchNorm, but another would differ
    assert shared.loss == pytest.approx(alone.loss, rel=1e-4)
    for one, two in zip(lines_of(alone), lines_of(shared), strict=True):
        assert two == pytest.approx(one, rel=1e-3)
    one, two, other = (
        safetensors.torch.load(files_of(trained.place)["model.safetensors"])
        for trained in (alone, shared, train("student.steps=1", name="other"))
    )
    for name in one:
        if name.endswith("qkv.bias"):  # no softmax hangs on a key's bias: its gradient is rounding, which Adam enlarges
            third = len(one[name]) // 3
            one[name][third : 2 * third] = two[name][third : 2 * third] = 0
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
    assert any(float((one[name] - other[name]).abs().max()) > 1e-3 for name in one)  # or any student would do
    assert scratch_of(shared) == []


def test_a_worker_of_ray_train_gives_the_bits_of_this_process_even_when_it_is_killed(
    ray_cluster, train, tmp_path, monkeypatch
):
    """It kills itself when its second checkpoint is safe, at step 4 of 6, and another goes on from there."""
    from raykd.stages import train as stage

    log = tmp_path / "worker.log"

    def deadly(arguments):
        import ray
        import ray.train

        from raykd.stages import train_loop

        def note(text):
            with open(log, "a") as stream:
                stream.write(text + "\n")

        start, report = ray.train.get_checkpoint(), ray.train.report

        def report_and_die(metrics, checkpoint):
            report(metrics, checkpoint=checkpoint)
            note(f"step {metrics['step']}")
            if start is None and metrics["step"] == 4:
                ray.train.get_all_reported_checkpoints()  # waits until the controller knows of it
                os.kill(os.getpid(), signal.SIGKILL)

        note("from a checkpoint" if start else "from the start")
        ray.train.report = report_and_die
        return train_loop.train_in_worker(ray.get(arguments["job"]), arguments["ticker"])

    monkeypatch.setattr(stage, "in_worker", deadly)
    killed = train(name="killed", is_local=False)
    assert log.read_text().split("\n")[:-1] == ["from the start", "step 2", "step 4", "from a checkpoint", "step 6"]
    alone = train(name="alone")
    assert files_of(killed.place) == files_of(alone.place)
    assert lines_of(killed) == lines_of(alone)
    assert (killed.loss, killed.fingerprint) == (alone.loss, alone.fingerprint)
    assert scratch_of(killed) == []


def test_what_a_user_can_mend_ends_all_workers_after_one_attempt(ray_cluster, train, inputs, tmp_path, monkeypatch):
    """One of the two workers is asked for an image that is gone; the other would wait for it."""
    from raykd.stages import train as stage

    log, make_job = tmp_path / "worker.log", stage.make_job

    def without_an_image(*args):
        job = make_job(*args)
        uris = pa.chunked_array([[*job.uris.to_pylist()[:-1], str(tmp_path / "gone.png")]])
        return type(job)(**(vars(job) | {"uris": uris}))

    def noted(arguments):
        import ray

        from raykd.stages import train_loop

        with open(log, "a") as stream:
            stream.write("attempt\n")
        return train_loop.train_in_worker(ray.get(arguments["job"]), arguments["ticker"])

    monkeypatch.setattr(stage, "make_job", without_an_image)
    monkeypatch.setattr(stage, "in_worker", noted)
    with pytest.raises(UserError, match=r"^image 'red/015\.png' was readable and is no more: [^\n]*$"):
        train("student.num_workers=2", "student.steps=20")
    assert log.read_text() == "attempt\n" * 2


def fitted_by(failures: dict[int, Exception], tmp_path: Path) -> None:
    """A training whose workers all end so, each time."""
    from ray.train import WorkerGroupError

    from raykd.stages.train import fitted_on_ray

    def fit() -> None:
        raise WorkerGroupError("as each worker says it", failures)

    fitted_on_ray(lambda: SimpleNamespace(fit=fit), list, 1, Place.of(tmp_path))


def test_a_worker_whose_peer_was_lost_is_told_as_a_loss_and_not_as_a_mistake(tmp_path):
    reset = "[gloo/transport/tcp/pair.cc:545] Read error [10.0.0.3]:23706: Connection reset by peer"
    with pytest.raises(UserError, match=r"workers of the training were lost again and again without a step forward"):
        fitted_by({0: RuntimeError(reset)}, tmp_path)
    from ray.train import WorkerGroupError

    with pytest.raises(WorkerGroupError):
        fitted_by({0: RuntimeError("shapes do not match")}, tmp_path)


def test_what_the_controller_cannot_write_is_told_as_a_line_and_anything_else_is_raised(tmp_path):
    from ray.train import ControllerError

    from raykd.stages.train import fitted_on_ray

    def fails_with(error: Exception) -> None:
        def fit() -> None:
            raise ControllerError(error)

        fitted_on_ray(lambda: SimpleNamespace(fit=fit), list, 1, Place.of(tmp_path))

    with pytest.raises(UserError, match=r"^cannot write or read snapshot.json: no space left; free some, then run"):
        fails_with(OSError(errno.ENOSPC, "No space left on device", "snapshot.json"))
    with pytest.raises(ControllerError, match="a mistake"):
        fails_with(KeyError("a mistake"))


def test_a_disk_that_is_full_is_told_as_a_line_beside_workers_that_were_lost_over_it(tmp_path):
    import ray.exceptions

    full = OSError(errno.ENOSPC, "Error writing bytes to file", "checkpoint")
    with pytest.raises(UserError, match=r"^cannot write or read checkpoint: no space left; [^\n]*$"):
        fitted_by({0: ray.exceptions.WorkerCrashedError(), 1: full}, tmp_path)


def test_a_mistake_in_a_worker_is_shown_in_full(tmp_path):
    from ray.train import WorkerGroupError

    with pytest.raises(WorkerGroupError):
        fitted_by({0: ZeroDivisionError()}, tmp_path)


# ---------------------------------------------------------------- what is trained on

ANSWERS = {
    "s7": ("label", "green"),
    "s1": ("label", "blue"),
    "s2": ("unsure", None),
    "s3": ("cannot_label", None),
    "s4": ("none_of_the_classes", None),
    "s8": ("label", "a class that was given up"),
    "gone": ("label", "blue"),
}
READABLE = pa.chunked_array([[f"s{i}" for i in range(9, 4, -1)], [f"s{i}" for i in range(5)]])


def test_only_labels_train_the_ce_head_and_only_what_shows_no_class_is_kept_from_distillation(tmp_path):
    from raykd.stages.train import samples

    ids, labels = samples(READABLE, labels_of(tmp_path, ANSWERS), CLASSES, {})
    assert ids.to_pylist() == ["s1", "s7", "s0", "s2", "s5", "s6", "s9"]
    assert labels.tolist() == [0, 1]


def test_a_renamed_class_is_what_it_is_called_now(tmp_path):
    from raykd.stages.train import samples

    ids, labels = samples(READABLE, labels_of(tmp_path, ANSWERS), ("blue", "lime"), {"green": "lime"})
    assert ids.to_pylist()[:2] == ["s1", "s7"]
    assert labels.tolist() == [0, 1]


def job_of(**changes):
    from raykd.stages.train_loop import Job

    ids = pa.chunked_array([[f"s{i}" for i in range(10)]])
    values = {"ids": ids, "uris": ids, "labels_L": np.arange(4), "teacher": (), "start": None, "classes": CLASSES}
    config = {"backbone": "test_vit", "steps": 6, "image_size": 32, "pretrained": False, "batch_unlabeled": 2}
    config |= changes.pop("config", {})
    return Job(**(values | {"config": StudentConfig(**config), "exact": True, "key": (0, 1)} | changes))


def test_the_length_of_a_training_counts_what_it_is_trained_on():
    assert job_of().num_steps == 6
    assert job_of(config={"steps": None, "passes_labeled": 5, "batch_labeled": 3}).num_steps == 10
    assert job_of(config={"steps": None, "passes_unlabeled": 5}).num_steps == 15
    everything = job_of(labels_L=np.arange(10), config={"steps": None, "passes_unlabeled": 3})
    assert everything.num_steps == 15  # the labeled images are distilled on


def test_without_a_single_label_there_is_a_clear_error():
    with pytest.raises(UserError, match=r"no image has a label yet.*label some first"):
        job_of(labels_L=np.arange(0))


def test_a_fresh_student_hangs_on_seed_and_round_and_not_on_torchs_state():
    import torch

    first = job_of().student().model.state_dict()
    torch.manual_seed(99)
    again = job_of().student().model.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = job_of(key=(0, 2)).student().model.state_dict()
    assert not torch.equal(first["ce_head.weight"], other["ce_head.weight"])


# ---------------------------------------------------------------- what it starts from


def test_a_backbones_file_is_fetched_once_and_another_content_is_another_start(new_campaign, train, tmp_path):
    from raykd.models.student import make_backbone, weights_of
    from raykd.stages.train import fetch_backbone

    file = tmp_path / "mine.safetensors"
    file.write_bytes(weights_of(make_backbone("test_vit")[0]))
    campaign = new_campaign(f"student.pretrained={file}")
    start = fetch_backbone(campaign)
    assert fetch_backbone(campaign) == start
    assert (start.place / "model.safetensors").read_bytes() == file.read_bytes()
    job = job_of(start=start.place, config={"image_size": 160})
    state = job.student().model.backbone.state_dict()
    loaded = safetensors.torch.load(file.read_bytes())
    assert all((state[name] == loaded[name]).all() for name in state)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    other = fetch_backbone(campaign)
    assert other.place != start.place
    assert (other.place / "model.safetensors").read_bytes() == bytes(data)
    assert fetch_backbone(new_campaign("student.pretrained=false")) is None


def test_a_tower_is_fetched_once_and_its_texts_once_for_each_list_of_classes(new_campaign, tmp_path):
    import shutil

    from fakes import write_teacher

    from raykd.algo.prompts import ClassTexts
    from raykd.stages.weights import fetch_backbone, fetch_texts, fetched_backbone, read_student_texts

    own = write_teacher(tmp_path / "own", 32)
    fields = (f"student.backbone=open_clip:local-dir:{own}", "student.pretrained=true", "student.image_size=null")
    plain, aware = new_campaign(*fields), new_campaign(*fields, "student.language_aware=true")
    assert fetched_backbone(plain) is None
    tower, whole = fetch_backbone(plain), fetch_backbone(aware)
    assert (fetched_backbone(plain), fetched_backbone(aware)) == (tower, whole)
    assert 0 < tower.facts["parameters"] < whole.facts["parameters"]
    lists = [(CLASSES, {}), ((*CLASSES, "lime"), {}), (CLASSES, {"red": ClassTexts(("crimson",))})]
    rows = [read_student_texts(fetch_texts(aware, classes, texts, whole)) for classes, texts in lists]
    assert [len(each) for each in rows] == [3, 4, 3]
    np.testing.assert_allclose(rows[1][:3], rows[0], atol=1e-6)
    assert [np.allclose(rows[2][n], rows[0][n], atol=1e-6) for n in range(3)] == [True, True, False]
    other = new_campaign(*fields, "student.language_aware=true", "teacher.templates=['my {}']")
    fetch_texts(other, CLASSES, {}, whole)
    again = fetch_texts(aware, CLASSES, {}, whole)
    assert len(list((tmp_path / "run" / "student_texts").iterdir())) == 4
    named = {"backbone": aware.config.student.backbone, "pretrained": True, "language_aware": True, "image_size": 32}
    job = job_of(start=whole.place, texts_CD=read_student_texts(again), config=named)
    student = job.student()
    assert student.classes == list(CLASSES)
    np.testing.assert_array_equal(student.model.kd_head.weight.detach().numpy(), rows[0])
    shutil.rmtree(own)  # a worker, and a campaign that is gone on with, need it no more
    assert fetch_backbone(aware) == whole
    assert job.student().preprocess == student.preprocess
