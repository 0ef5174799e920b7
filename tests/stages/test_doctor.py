"""The doctor on a live Ray: what each node looks at, a node that is silent, and the job from end to end."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import ended

from raykd.diagnosis import judge_storage
from raykd.errors import UserError
from raykd.presets import load_preset
from raykd.stages.doctor import Answer, alive_nodes, ask_all, clock_off, examine, report_of, said_by_ray
from raykd.stages.node_looks import (
    Looked,
    clean,
    first_look,
    given_up_after,
    node_types,
    read_images,
    read_probes,
    take_lock,
    try_lock,
    write_probe,
)
from raykd.stages.samples import Listings, packed_sizes, some_of
from raykd.store.place import Place

ROOT = Path(__file__).parents[2]


@pytest.fixture
def doctor(ray_cluster, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    import doctor

    return doctor.main


# ---------------------------------------------------------------- the job


def test_the_demo_is_ready_here_and_nothing_is_left_behind(doctor, tmp_path):
    code, printed = ended(doctor, ["--preset", "demo", "--set", f"storage_path={tmp_path / 'deep' / 'run'}"])
    assert code == 0, printed
    lines = printed.splitlines()
    assert lines[0].startswith("ready: ")
    named = {line.split()[1] for line in lines[1:]}
    assert {"nodes", "versions", "clocks", "storage", "lock", "images", "bundles", "teacher", "student"} <= named
    assert not (tmp_path / "deep").exists()


def test_without_a_config_the_cluster_alone_is_looked_at(doctor):
    code, printed = ended(doctor, [])
    assert code == 0, printed
    assert "storage" not in {line.split()[1] for line in printed.splitlines()}


def test_what_is_to_be_mended_is_told_first_and_the_code_is_2(doctor, settings, tmp_path):
    import yaml

    (tmp_path / "birds.yaml").write_text(yaml.safe_dump(settings))
    code, printed = ended(doctor, [tmp_path / "birds.yaml", "--set", "teacher.num_cpus=64", "pool.path=/nowhere"])
    assert code == 2
    lines = printed.splitlines()
    assert lines[0].startswith("not ready: 2 things to mend, first: ")
    failed = [line for line in lines if line.startswith("FAIL")]
    assert any("teacher asks for 64 CPUs" in line for line in failed)
    assert any("/nowhere" in line for line in failed)


def test_a_storage_that_holds_something_else_is_told(doctor, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    code, printed = ended(doctor, ["--preset", "demo", "--set", f"storage_path={tmp_path}"])
    assert code == 2
    assert "is not empty and holds no campaign; give a new folder" not in printed.splitlines()[0]
    assert printed.splitlines()[0] == "not ready: 1 thing to mend, first: give a new folder (campaign)"
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_ray_address_where_nobody_answers_is_told_within_seconds(tmp_path):
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "jobs/doctor.py", "--preset", "demo", "--set", f"storage_path={tmp_path / 'run'}"],
        cwd=ROOT, env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1", "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True,
    )  # fmt: skip
    assert time.monotonic() - started < 20
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith("not ready: 1 thing to mend, first: start that Ray, mend RAY_ADDRESS")


def test_a_plan_is_written_where_a_campaign_minds_it_not(doctor, settings, tmp_path, monkeypatch):
    import yaml

    from raykd.planning import PLAN_FILE
    from raykd.stages.campaign import read_history

    (tmp_path / "birds.yaml").write_text(yaml.safe_dump(settings))
    code, printed = ended(doctor, [tmp_path / "birds.yaml", "--plan"])
    assert code == 0, printed
    assert [line.split()[0] for line in printed.splitlines() if "MiB" in line][-6:-1] == [
        "encode", "teacher", "select", "train", "predict",
    ]  # fmt: skip
    place = Place.of(settings["storage_path"])
    assert [each.name for each in Path(place.path).iterdir()] == [PLAN_FILE]
    assert read_history(place) == []
    planned = (place / PLAN_FILE).read_json()
    assert planned["probe"]["teacher_width"] == 16
    assert planned["probe"]["images"] == 28  # of 48: 10 are test, 10 val


# ---------------------------------------------------------------- nodes


def test_a_silent_node_is_left_out_and_the_others_are_not_waited_for(ray_cluster):
    (node,) = alive_nodes()
    started = time.monotonic()
    assert ask_all([node], lambda: time.sleep(60), lambda _: (), 1.5) == {}
    assert time.monotonic() - started < 10
    (answer,) = ask_all([node], lambda: os.getpid(), lambda _: (), 30).values()
    assert answer.value not in (None, os.getpid())


def test_an_error_on_a_node_is_its_answer(ray_cluster):
    (answer,) = ask_all(alive_nodes(), lambda: 1 / 0, lambda _: (), 30).values()
    assert "ZeroDivisionError" in answer.error


def test_a_node_without_raykd_says_its_versions_all_the_same(monkeypatch):
    monkeypatch.setitem(sys.modules, "raykd.stages.node_looks", None)
    found = first_look({"numpy": "numpy", "absent": "no-such-package"})({}, "me")
    assert "ModuleNotFoundError" in found["raykd_error"]
    assert found["versions"]["absent"] is None
    assert found["versions"]["numpy"]


def test_a_clock_is_only_called_off_by_what_is_sure():
    answer = Answer(sent=100.0, received=104.0)
    assert clock_off(answer, 102.0) == 0
    assert clock_off(answer, 110.0) == 6
    assert clock_off(answer, 90.0) == -10


def test_another_version_is_told_in_one_line():
    error = UserError("Ray does not join RAY_ADDRESS=h:1: RuntimeError: Version mismatch: The cluster was ...")
    error.__cause__ = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.10.1\n"
        "This process on 10.0.0.1 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    what, todo = said_by_ray(error)
    assert what == "the cluster has Ray 2.59.0 and Python 3.10.1, this machine Ray 2.60.0 and Python 3.11.7"
    assert "install the same" in todo


def test_a_cluster_that_wants_a_token_is_thought_of(monkeypatch):
    error = UserError("Ray does not join")
    error.__cause__ = ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379")
    assert "RAY_AUTH_MODE=token" in said_by_ray(error)[1]


# ---------------------------------------------------------------- storage


def reports(storages, names, asked):
    """What several would say that each look at a storage of their own: a disk that is not shared."""
    wrote = {name: write_probe(asked[name], name) for name in names}
    held = take_lock(asked["driver"].folder)
    read = {name: read_probes(asked[name], names, name) for name in names}
    os.close(held)
    for name in reversed(names):  # the driver last: it saw which folders were not there
        assert clean(asked[name], name, wrote[name]["made"]) is None
    return [report_of({"storage": wrote[name] | read[name]}, name) for name in names]


@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_is_shared_or_is_not(tmp_path, monkeypatch, shared):
    monkeypatch.setattr("raykd.stages.node_looks.READ_BACK_S", 0.3)
    names = ["driver", "head", "worker"]
    asked = {
        name: Looked(str(tmp_path / ("disk" if shared or name != "worker" else "other") / "run"), "token")
        for name in names
    }
    findings = judge_storage("/disk/run", reports(tmp_path, names, asked), True)
    assert [each.state for each in findings] == (["ok", "ok"] if shared else ["FAIL"])
    assert shared or "driver does not see what worker wrote" in findings[0].found
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    said = write_probe(Looked(str(tmp_path / "file" / "run"), "token"), "me")
    assert set(said["errors"]) == {"write"}


def test_what_was_in_a_folder_stays(tmp_path):
    (tmp_path / "campaign.json").write_text("{}")
    asked = Looked(str(tmp_path), "token")
    said = write_probe(asked, "driver")
    assert said["errors"] == {}
    clean(asked, "driver", said["made"])
    assert [each.name for each in tmp_path.iterdir()] == ["campaign.json"]


def test_a_bucket_without_list_rights_says_so(bucket, monkeypatch):
    asked = Looked(bucket.uri, "token")
    bucket.fs.create_dir(asked.folder.path)
    assert write_probe(asked, "driver") == {"errors": {}, "made": []}

    store, asked_path = bucket.fs, (asked.folder / "driver").path

    class NoListing:
        def __getattr__(self, name):
            return getattr(store, name)

        def get_file_info(self, what):
            raise PermissionError("AWS Error ACCESS_DENIED during ListObjectsV2 operation")

    monkeypatch.setattr(Place, "_resolved", property(lambda _: (NoListing(), asked_path)))
    assert list(write_probe(asked, "driver")["errors"]) == ["list"]


def test_a_lock_that_is_held_is_refused(tmp_path):
    place = Place.of(tmp_path)
    held = take_lock(place)
    assert try_lock(place) == "refused"
    os.close(held)
    assert try_lock(place) == "given"


def test_a_store_is_asked_for_conditional_writes_where_there_are_any(bucket, monkeypatch):
    assert try_lock(bucket) == "none"  # that store has none

    class Held:
        def create(self, data):
            return None

    monkeypatch.setattr("raykd.stages.node_looks.conditional", lambda place: Held())
    assert try_lock(bucket) == "refused"
    Held.create = lambda self, data: "version"
    assert try_lock(bucket) == "given"


def test_a_store_that_does_not_answer_is_given_up():
    assert given_up_after(5, lambda number: number + 1, 1) == 2
    with pytest.raises(ZeroDivisionError):
        given_up_after(5, lambda: 1 / 0)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match="within 0 s"):
        given_up_after(0.2, time.sleep, 30)
    assert time.monotonic() - started < 5


def test_a_storage_out_of_reach_is_one_thing_to_mend(doctor, tmp_path, monkeypatch):
    monkeypatch.setattr("raykd.stages.config_looks.STORE_S", 0.2)
    monkeypatch.setattr("raykd.stages.config_looks.read_history", lambda _: time.sleep(5))
    code, printed = ended(doctor, ["--preset", "demo", "--set", f"storage_path={tmp_path / 'run'}"])
    assert code == 2
    assert printed.startswith("not ready: 1 thing to mend, first: check its name and region")


# ---------------------------------------------------------------- images, working dir, the autoscaler


def test_images_that_are_read_and_those_that_are_not(image_folder, tmp_path):
    good, lost = str(next(image_folder.rglob("*.png"))), str(tmp_path / "lost.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = read_images([good, lost, str(tmp_path / "broken.png")])
    assert found[good] is None
    assert "not found" in found[lost]
    assert found[str(tmp_path / "broken.png")]


def test_first_last_and_some_are_drawn():
    uris = [f"{number:04d}" for number in range(1000)]
    drawn = some_of(uris)
    assert len(set(drawn)) == 8
    assert drawn[:2] == ("0000", "0999")
    assert some_of(uris[:3]) == ("0000", "0001", "0002")


def test_a_listing_that_takes_long_is_not_waited_for(settings, monkeypatch):
    from raykd.config import load

    monkeypatch.setattr("raykd.stages.samples.LISTING_S", 0.2)
    monkeypatch.setattr("raykd.stages.samples.list_rows", lambda *_: time.sleep(3))
    some, told = Listings(load(settings), on_one_machine=True).samples()
    assert len(some["pool"]) == 8
    assert [each.state for each in told] == ["warn"]


def test_the_demo_of_a_cluster_is_not_looked_for_in_the_drivers_own_cache():
    """It will lie in the campaign's folder, which all nodes have been asked about."""
    config = load_preset("demo")
    assert Listings(config, on_one_machine=False).samples() == ({}, [])
    assert list(Listings(config, on_one_machine=True).samples()[0]) == ["pool"]


def test_the_working_dir_is_counted_as_ray_packs_it(tmp_path):
    (tmp_path / ".gitignore").write_text("runs/\n")
    (tmp_path / ".rayignore").write_text("*.bin\n")
    for name in ("a.py", "runs/big", "deep/c.bin", "deep/d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 100)
    sizes = packed_sizes(tmp_path)
    assert {name for name, size in sizes.items() if size == 100} == {"a.py", "deep/d.py"}


def test_node_types_are_those_of_the_autoscaler_that_runs_here(tmp_path):
    (tmp_path / "cluster.yaml").write_text(
        "head_node_type: head\navailable_node_types:\n  head: {resources: {CPU: 0}}\n"
        "  gpu: {resources: {CPU: 8, GPU: 1}, max_workers: 6}\n"
    )
    (tmp_path / "monitor.py").write_text("import time; time.sleep(60)")
    stands_for = subprocess.Popen(
        [sys.executable, tmp_path / "monitor.py", f"--autoscaling-config={tmp_path / 'cluster.yaml'}"]
    )
    try:
        until = time.monotonic() + 10
        while (found := node_types()) is None or "gpu" not in found:
            assert time.monotonic() < until
            time.sleep(0.1)
        assert found["gpu"] == {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 6, "is_head": False}
        assert found["head"]["is_head"]
    finally:
        stands_for.kill()
        stands_for.wait()


def test_examine_tells_of_a_ray_that_cannot_be_joined(monkeypatch):
    monkeypatch.setattr("raykd.stages.session.Session.is_up", property(lambda _: False))
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    (finding,) = examine(None)
    assert finding.name == "cluster"
    assert finding.state == "FAIL"
