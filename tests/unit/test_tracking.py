"""Trackers: every round once, whatever is killed or away in between, and never at the campaign's cost."""

import json
import sys
import threading
from types import SimpleNamespace

import pytest

from raykd import tracking
from raykd.config import FREE, Config, load
from raykd.errors import UserError
from raykd.store.place import Place
from raykd.trackers import MLflow, TensorBoard, TrackedRound, TrackedRun, WandB, read_note
from raykd.tracking import Tracking, check_tracking, make_tracker, tracked_run, without_secrets

RUN = TrackedRun("birds", {"rounds": 3, "selection.strategy": "pcoreset"}, {"raykd": "0.1.0", "commit": "abc"})


def figures(number: int) -> dict:
    return {
        "round": number,
        "num_labeled": 10 + 20 * number,
        "labels_spent": {"training": 10 + 20 * number, "validation": 150},
        "classes": ["a", "b"],
        "labels_C": [5, 5],
        "coverage_radius": 0.7 - 0.1 * number,
        "mixture": {"ce_weight": 0.5, "temperature": 1.0, "reason": "fixed"},
        "loss": float("nan"),
        "accuracy": {"mixture": 0.9 + 0.01 * number, "ce_head": None},
        "interval": [0.8, 0.95],
        "change": None,
        "seconds": {"train": 2.5},
    }


@pytest.fixture
def place(tmp_path) -> Place:
    """A campaign's folder with the trainings of three rounds."""
    place = Place(str(tmp_path / "run"))
    for number in range(3):
        lines = [{"step": step, "loss": 1 / step, "ce": None, "learning_rate": 0.1} for step in (5, 10)]
        steps = "".join(json.dumps(line) + "\n" for line in lines)
        (place / f"round_{number:03d}" / "train" / "steps.jsonl").write_bytes(steps.encode())
    return place


def rounds(place: Place, count: int) -> list[TrackedRound]:
    return [TrackedRound(place, figures(number)) for number in range(count)]


def test_a_rounds_single_finite_numbers_are_logged_by_names_with_slashes(place):
    assert rounds(place, 2)[1].figures == {
        "labels": 30, "labels_spent/training": 30, "labels_spent/validation": 150,
        "coverage_radius": pytest.approx(0.6), "mixture/ce_weight": 0.5, "mixture/temperature": 1,
        "accuracy/mixture": pytest.approx(0.91), "interval/low": 0.8, "interval/high": 0.95, "seconds/train": 2.5,
    }  # fmt: skip


def test_a_rounds_curves_are_those_of_its_training_and_none_without_one(place, tmp_path):
    (only,) = rounds(place, 1)
    assert only.curves == {5: {"loss": 0.2, "learning_rate": 0.1}, 10: {"loss": 0.1, "learning_rate": 0.1}}
    assert TrackedRound(Place(str(tmp_path / "elsewhere")), figures(0)).curves == {}


# ---------------------------------------------------------------- the config


def config(**more) -> Config:
    return load({
        "storage_path": "s3://key:secret@bucket/run", "pool": {"path": "x", "format": "images"},
        "classes": {"a/b%c": ["a text"], "d": []}, "teacher": {"model": "RN50"},
        "student": {"backbone": "resnet18", "steps": 5},
        **more,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("none", []),
        ("mlflow", ["mlflow"]),
        (["wandb", "tensorboard", "wandb"], ["wandb", "tensorboard"]),
        (["none"], []),
    ],
)
def test_the_config_names_one_tracker_or_several(given, words):
    assert config(tracking=given).trackers == words


@pytest.mark.parametrize("given", ["tensorbord", ["mlflow", "tensorbord"]])
def test_an_unknown_tracker_is_refused_with_the_known_ones(given):
    with pytest.raises(UserError, match=r"tracking: unknown tracker 'tensorbord'.*'tensorboard'"):
        config(tracking=given)


def test_trackers_may_change_at_any_time():
    assert Config.model_fields["tracking"].json_schema_extra == FREE
    assert config(tracking="mlflow").identity() == config().identity()


def test_the_configs_values_are_logged_without_passwords_and_a_mapping_is_one_value():
    run = tracked_run("birds", config(seed=3), "0.1.0", None)
    assert run.config["storage_path"] == "s3://bucket/run"
    assert run.config["seed"] == 3
    assert run.config["pool.format"] == "images"
    assert "a/b%c" in run.config["classes"]
    assert all(isinstance(value, (str, int, float, bool)) for value in run.config.values())
    assert run.tags == {"raykd": "0.1.0"}
    assert not any("secret" in str(value) for value in run.config.values())
    long = tracked_run("birds", config(classes=[f"class {n}" for n in range(1000)]), "0.1.0", "abc")
    assert len(long.config["classes"]) == tracking.LONGEST_VALUE
    assert long.tags["commit"] == "abc"


@pytest.mark.parametrize("word", ["tensorboard", "mlflow", "wandb"])
def test_a_missing_package_is_told_with_what_to_install(word, monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"pip install 'raykd\[{word}\]'"):
        check_tracking([word], Place(str(tmp_path)))


def test_mlflow_on_an_object_store_needs_a_server(bucket, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda module: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        check_tracking(["mlflow"], bucket)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://host")
    check_tracking(["mlflow"], bucket)
    assert make_tracker("mlflow", bucket).uri == "https://host"


def fake_wandb(monkeypatch, mode: str, login) -> None:
    fake = SimpleNamespace(setup=lambda: SimpleNamespace(settings=SimpleNamespace(mode=mode)), login=login)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(tracking, "find_spec", lambda module: True)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)


def test_wandb_without_a_key_is_refused_before_it_would_ask_for_one(monkeypatch, tmp_path):
    fake_wandb(monkeypatch, "online", lambda prompt: prompt)
    with pytest.raises(UserError, match="wandb login"):
        check_tracking(["wandb"], Place(str(tmp_path)))
    fake_wandb(monkeypatch, "offline", None)
    check_tracking(["wandb"], Place(str(tmp_path)))


def test_a_server_of_wandb_that_is_away_stops_no_campaign(monkeypatch, tmp_path):
    def away(prompt):
        raise ConnectionError

    fake_wandb(monkeypatch, "online", away)
    check_tracking(["wandb"], Place(str(tmp_path)))


# ---------------------------------------------------------------- all trackers together


class Fake:
    """Has what it took; ``away`` says what it raises."""

    def __init__(self):
        self.had, self.away, self.calls = [], None, 0

    def bring(self, rounds, run):
        self.calls += 1
        if self.away:
            raise self.away
        self.had += [each.number for each in rounds[len(self.had) :]]


def test_a_tracker_that_fails_is_said_once_and_given_the_rounds_with_the_next(place):
    first, second, said = Fake(), Fake(), []
    tracked = Tracking(place, {"mlflow": first, "wandb": second}, RUN, lambda name, text: said.append((name, text)))
    first.away = ConnectionError("https://me:secret@host is away")
    tracked.update([figures(0)])
    tracked.update([figures(0)])  # nothing new: a finished campaign asks for every round of it
    assert first.calls == 1
    assert second.had == [0]
    ((name, text),) = said
    assert name == "mlflow"
    assert "ConnectionError: https://host is away" in text
    first.away = None
    tracked.update([figures(0), figures(1)])
    assert first.had == second.had == [0, 1]
    assert len(said) == 1


@pytest.mark.parametrize("error", [SystemExit(1), UserError("damaged")])
def test_nothing_that_a_tracker_raises_gets_out(error, place):
    tracker, said = Fake(), []
    tracker.away = error
    Tracking(place, {"wandb": tracker}, RUN, lambda *line: said.append(line)).update([figures(0)])
    assert len(said) == 1


def test_a_tracker_that_never_answers_is_not_waited_for_nor_asked_again_meanwhile(place):
    go_on, entered, said = threading.Event(), [], []

    class Stuck:
        def bring(self, rounds, run):
            entered.append(len(rounds))
            go_on.wait(60)

    tracked = Tracking(place, {"mlflow": Stuck()}, RUN, lambda name, text: said.append(text), patience_s=0.05)
    tracked.update([figures(0)])
    tracked.update([figures(0), figures(1)])
    assert entered == [1]
    assert ["no answer within" in said[0], "still at the round before" in said[1]] == [True, True]
    go_on.set()


def test_a_text_names_no_password():
    assert without_secrets("a s3://k:s@b/x and http://me@h, b@c") == "a s3://b/x and http://h, b@c"


# ---------------------------------------------------------------- TensorBoard


def read_events(folder) -> dict:
    """Tag to (step, value) pairs, as TensorBoard reads a folder."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    found = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    return found | {tag: events.Tensors(tag) for tag in events.Tags()["tensors"]}


def test_tensorboard_has_each_round_once_and_goes_on(place, tmp_path):
    tracker = make_tracker("tensorboard", place)
    tracker.bring(rounds(place, 1), RUN)
    tracker.bring(rounds(place, 3), RUN)
    tracker.bring(rounds(place, 3), RUN)
    found = read_events(tmp_path / "run" / "tracking" / "tensorboard" / "rounds")
    assert found["accuracy/mixture"] == [(n, pytest.approx(0.9 + 0.01 * n)) for n in range(3)]
    assert found["by_labels/accuracy/mixture"] == [(10 + 20 * n, pytest.approx(0.9 + 0.01 * n)) for n in range(3)]
    assert found["labels"] == [(0, 10), (1, 30), (2, 50)]
    (text,) = found["config"]
    assert b"| selection.strategy | `pcoreset` |" in text.tensor_proto.string_val[0]
    assert b"| commit | `abc` |" in text.tensor_proto.string_val[0]
    curves = read_events(tmp_path / "run" / "tracking" / "tensorboard" / "round_002")
    assert curves["train/loss"] == [(5, pytest.approx(0.2)), (10, pytest.approx(0.1))]


def test_tensorboard_killed_before_a_rounds_file_logs_it_whole_and_once(place, tmp_path, monkeypatch):
    tracker, write = make_tracker("tensorboard", place), Place.write_bytes

    def killed(self, data):
        if self.name.endswith("round_001"):
            raise KeyboardInterrupt
        write(self, data)

    monkeypatch.setattr(Place, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        tracker.bring(rounds(place, 3), RUN)
    monkeypatch.undo()
    tracker.bring(rounds(place, 3), RUN)
    folder = tmp_path / "run" / "tracking" / "tensorboard"
    assert [step for step, _ in read_events(folder / "rounds")["labels"]] == [0, 1, 2]
    assert len(read_events(folder / "round_001")["train/loss"]) == 2


def test_tensorboards_files_may_lie_on_an_object_store(place, bucket, tmp_path):
    for name in ("rounds", "round_000", "round_001"):
        bucket.fs.create_dir(f"bucket/folder/tb/{name}", recursive=True)  # a real object store needs none
    TensorBoard(bucket / "tb").bring(rounds(place, 2), RUN)
    for info in (bucket / "tb").files(recursive=True):
        copy = tmp_path / "copy" / info.path.rsplit("/tb/", 1)[1]
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(bucket.sibling(info.path).read_bytes())
    assert [step for step, _ in read_events(tmp_path / "copy" / "rounds")["labels"]] == [0, 1]


# ---------------------------------------------------------------- MLflow


class Server:
    """What MlflowClient says of a server: experiments, runs with tags, and their metrics."""

    def __init__(self):
        self.experiments, self.runs, self.killed_at = [], {}, None

    def get_experiment_by_name(self, name):
        return SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments.append(name)
        return name

    def _run(self, run_id):
        return SimpleNamespace(
            info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(params=self.runs[run_id]["params"])
        )

    def search_runs(self, experiments, text):
        return [self._run(run_id) for run_id, run in self.runs.items() if f"'{run['tags']['raykd_campaign']}'" in text]

    def create_run(self, experiment, tags, run_name):
        run_id = f"{run_name}-{len(self.runs)}"
        self.runs[run_id] = {"experiment": experiment, "tags": tags, "params": {}, "metrics": [], "ended": 0}
        return self._run(run_id)

    def log_batch(self, run_id, metrics=(), params=()):
        if self.killed_at is not None and any(m.key == "round" and m.step == self.killed_at for m in metrics):
            self.killed_at = None
            raise KeyboardInterrupt
        assert len(metrics) <= 1000  # a request of more is cut into several, each for itself
        self.runs[run_id]["metrics"] += metrics
        self.runs[run_id]["params"] |= {param.key: param.value for param in params}

    def get_metric_history(self, run_id, key):
        return [metric for metric in self.runs[run_id]["metrics"] if metric.key == key]

    def set_terminated(self, run_id):
        self.runs[run_id]["ended"] += 1


@pytest.fixture
def server(monkeypatch) -> Server:
    """In MLflow's place."""
    server = Server()

    def metric(key, value, timestamp, step):
        return SimpleNamespace(key=key, value=value, timestamp=timestamp, step=step)

    def param(key, value):
        return SimpleNamespace(key=key, value=value)

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # given back afterwards
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda uri: server))
    monkeypatch.setitem(sys.modules, "mlflow.entities", SimpleNamespace(Metric=metric, Param=param))
    return server


def test_mlflow_goes_on_in_its_run_and_has_each_round_once(server, place):
    tracker = MLflow(place / "mlflow.json", "https://host")
    tracker.bring(rounds(place, 1), RUN)
    server.killed_at = 2
    with pytest.raises(KeyboardInterrupt):
        tracker.bring(rounds(place, 3), RUN)
    tracker.bring(rounds(place, 3), RUN)
    tracker.bring(rounds(place, 3), RUN)
    ((run_id, run),) = server.runs.items()
    assert run_id == "birds-0"
    assert run["experiment"] == "raykd"
    assert run["tags"]["commit"] == "abc"
    assert run["params"] == {"rounds": "3", "selection.strategy": "pcoreset"}
    logged = [(m.key, m.step) for m in run["metrics"]]
    assert len(set(logged)) == len(logged)
    assert [(m.value, m.step) for m in run["metrics"] if m.key == "labels"] == [(10, 0), (30, 1), (50, 2)]
    assert [(m.value, m.step) for m in run["metrics"] if m.key == "round_001/loss"] == [(0.2, 5), (0.1, 10)]


def test_mlflow_killed_before_its_note_of_a_round_asks_the_server(server, place):
    tracker, note = MLflow(place / "mlflow.json", "https://host"), place / "mlflow.json"
    read_note(note, "https://host")
    before = note.read_bytes()
    tracker.bring(rounds(place, 2), RUN)
    note.write_bytes(before)
    tracker.bring(rounds(place, 2), RUN)
    (run,) = server.runs.values()
    assert len([m for m in run["metrics"] if m.key == "labels"]) == 2


def test_another_server_gets_a_run_with_all_rounds_and_no_note_has_a_password(server, place):
    MLflow(place / "mlflow.json", "https://me:secret@host").bring(rounds(place, 2), RUN)
    MLflow(place / "mlflow.json", "https://elsewhere").bring(rounds(place, 2), RUN)
    assert [len([m for m in run["metrics"] if m.key == "labels"]) for run in server.runs.values()] == [2, 2]
    assert b"secret" not in (place / "mlflow.json").read_bytes()


@pytest.mark.slow  # its database is made by a migration for every version there was
def test_the_real_mlflow_has_each_round_once(place, monkeypatch, tmp_path):
    pytest.importorskip("mlflow", reason="raykd[mlflow] is not installed")
    pytest.importorskip("alembic", reason="raykd[mlflow] is not installed")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.chdir(tmp_path)
    tracker = make_tracker("mlflow", place)
    tracker.bring(rounds(place, 1), RUN)
    tracker.bring(rounds(place, 3), RUN)
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/run/tracking/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("raykd").experiment_id])
    assert run.info.run_name == "birds"
    assert run.info.status == "FINISHED"
    assert run.data.params["selection.strategy"] == "pcoreset"
    history = client.get_metric_history(run.info.run_id, "accuracy/mixture")
    assert [(m.step, m.value) for m in history] == [(n, pytest.approx(0.9 + 0.01 * n)) for n in range(3)]
    assert [m.step for m in client.get_metric_history(run.info.run_id, "round_002/loss")] == [5, 10]


# ---------------------------------------------------------------- Weights & Biases


class WandbServer:
    """What wandb says of a server: rows and a summary for each id."""

    def __init__(self):
        self.rows, self.axes, self.given = {}, {}, []

    def init(self, **given):
        self.given.append(given)
        rows = self.rows.setdefault(given["id"], [])
        summary = {key: value for row in rows for key, value in row.items()}
        return SimpleNamespace(
            summary=summary,
            log=rows.append,
            finish=lambda: None,
            define_metric=lambda name, step_metric: self.axes.update({name: step_metric}),
        )


@pytest.fixture
def wandb(monkeypatch) -> WandbServer:
    server = WandbServer()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=server.init, Settings=lambda **given: given))
    return server


def test_wandb_resumes_under_one_id_and_has_each_round_once(wandb, place):
    tracker, note = WandB(place / "wandb.json", None), place / "wandb.json"
    tracker.bring(rounds(place, 1), RUN)
    before = note.read_bytes()
    tracker.bring(rounds(place, 3), RUN)
    note.write_bytes(before)  # killed before the note of rounds 1 and 2: the server is asked
    tracker.bring(rounds(place, 3), RUN)
    tracker.bring(rounds(place, 3), RUN)
    assert len(wandb.given) == 3
    assert {given["resume"] for given in wandb.given} == {"allow"}
    ((_, rows),) = wandb.rows.items()
    assert [(row["round"], row["labels"]) for row in rows if "round" in row] == [(0, 10), (1, 30), (2, 50)]
    assert [row["round_001/loss"] for row in rows if "round_001/loss" in row] == [0.2, 0.1]
    assert wandb.axes["accuracy/mixture"] == "round"
    assert wandb.axes["round_001/*"] == "round_001/step"
    assert wandb.given[0]["config"] == {**RUN.config, **RUN.tags}


def test_the_real_wandb_writes_offline_beside_the_campaign(place, monkeypatch, tmp_path):
    pytest.importorskip("wandb", reason="raykd[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    check_tracking(["wandb"], place)
    tracker = make_tracker("wandb", place)
    tracker.bring(rounds(place, 2), RUN)
    tracker.bring(rounds(place, 2), RUN)
    note = (place / "tracking" / "wandb.json").read_json()
    (run,) = (tmp_path / "run" / "tracking" / "wandb").glob("offline-run-*")
    assert run.name.endswith(note["id"])
    assert note["rounds"] == 2
    written = next(run.glob("*.wandb")).read_bytes()
    assert b"accuracy/mixture" in written
