"""One small local Ray for the whole session, a tiny pool and teacher made on the spot, and which tests need what.

A test is marked ``ray`` by what it uses, not by hand: ``ray_cluster``, or a folder whose tests are whole stages and
jobs. Every other test fails when it starts Ray, so ``-m "not ray"`` (as in ``make quick``) starts none.
"""

import os

os.environ.update(
    RAY_AUTH_MODE="disabled",
    RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.2",
    RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="120",
    RAY_TRAIN_ENABLE_PREEMPTION_WATCHER="0",  # another process a training; no node of a test is told to go
    RAY_enable_metrics_collection="0",
    RAY_enable_open_telemetry="0",
    OMP_NUM_THREADS="1",
)
os.environ.pop("RAY_ADDRESS", None)  # or a test joins somebody's cluster
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or each of Ray's processes compiles its imports again

import copy
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import profiles  # noqa: F401  (loads hypothesis' profile)
import pytest
import yaml
from fakes import new_campaign, object_store, tiny_campaign, write_images, write_teacher

from raykd.store.place import Place

ROOT = Path(__file__).parents[1]
WITH_RAY = (ROOT / "tests" / "stages", ROOT / "tests" / "jobs")


def pytest_collection_modifyitems(items):
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()) or any(
            folder in item.path.parents for folder in WITH_RAY
        ):
            item.add_marker(pytest.mark.ray)


@pytest.fixture(autouse=True)
def _ray_starts_only_where_marked(request):
    if request.node.get_closest_marker("ray"):
        yield
        return
    import raykd.stages  # noqa: F401, I001  (sets what Ray reads when it is imported)
    import ray

    def refuse(*_, **__):
        pytest.fail("this test starts Ray: it belongs into tests/stages or tests/jobs, or uses ray_cluster")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", refuse)
        yield


@pytest.fixture
def bucket(monkeypatch) -> Place:
    """A folder on an object store: every ``mock://`` place of the test is on the same one."""
    store = object_store(monkeypatch)
    store.fs.create_dir("bucket/folder")
    return Place("mock://bucket/folder?region=eu-west-1")


@pytest.fixture(scope="session")
def ray_cluster():
    """A local Ray with 4 logical CPUs; the environment above is in force in its processes."""
    import ray

    import raykd.stages  # noqa: F401  (sets what Ray reads when it is imported)

    ray.init(
        address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
        object_store_memory=200 * 2**20, namespace="tests",
    )  # fmt: skip
    ray.data.DataContext.get_current().execution_no_progress_timeout_s = 120
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """48 images in 3 class folders."""
    return write_images(tmp_path_factory.mktemp("pool"), 16)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory) -> Path:
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def settings(tmp_path, image_folder, teacher_folder) -> dict:
    return tiny_campaign(tmp_path / "run", image_folder, teacher_folder)


# ---------------------------------------------------------------- campaigns


class Ended(NamedTuple):
    """How a job ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def run_job(ray_cluster, tmp_path_factory):
    """Runs the main job in this process, on the session's Ray: settings and overrides in, how it ended out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        import active_round
    file = tmp_path_factory.mktemp("config") / "campaign.yaml"

    def run(settings: dict, *overrides: str) -> Ended:
        file.write_text(yaml.safe_dump(settings))
        out, err, code = io.StringIO(), io.StringIO(), 0
        with redirect_stdout(out), redirect_stderr(err):
            try:
                active_round.main([str(file), *(["--set", *overrides] if overrides else [])])
            except SystemExit as stop:
                code = stop.code
        return Ended(code, out.getvalue(), err.getvalue())

    return run


class Finished(NamedTuple):
    """A campaign of two rounds that nobody disturbed; only for looking at."""

    settings: dict
    place: Path
    ended: Ended
    pool: Any  # of raykd.store.outputs, as the others
    encoded: Any
    teacher: Any
    rounds: list


@pytest.fixture(scope="session")
def finished(run_job, tmp_path_factory, image_folder, teacher_folder) -> Finished:
    """Its pool holds a truncated image, ``red/broken.png``, and a file that is none."""
    from raykd.stages import evaluate, select

    folder = tmp_path_factory.mktemp("finished")
    pool = Path(shutil.copytree(image_folder, folder / "pool"))
    (pool / "red" / "broken.png").write_bytes((pool / "red" / "000.png").read_bytes()[:600])
    (pool / "red" / "notes.txt").write_text("no image")
    settings = tiny_campaign(folder / "run", pool, teacher_folder)
    given, done, picked, measure = [], [], select.select, evaluate.measure

    def watched_select(campaign, number, pool, encoded, teacher, before):
        given.append((pool, encoded, teacher))
        return picked(campaign, number, pool, encoded, teacher, before)

    def watched_measure(campaign, pool, encoded, teacher, round_done, before):
        done.append(round_done)
        return measure(campaign, pool, encoded, teacher, round_done, before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "select", watched_select)
        patch.setattr(evaluate, "measure", watched_measure)
        ended = run_job(settings, "progress=lines")
    assert ended.code == 0, ended.err
    return Finished(settings, folder / "run", ended, *given[0], done)


@pytest.fixture
def seeded(finished, tmp_path):
    """Campaigns in a new folder that has the finished one's pool, features and teacher already.

    Called with overrides, it gives settings and campaign.
    """

    def make(*overrides: str, name: str = "run") -> tuple[dict, Any]:
        settings = copy.deepcopy(finished.settings) | {"storage_path": str(tmp_path / name)}
        campaign = new_campaign(settings, *overrides)
        settings = campaign.config.model_dump(mode="json")
        for stage in ("pool", "teacher_model", "encode", "teacher"):
            shutil.copytree(finished.place / stage, tmp_path / name / stage)
        return settings, campaign

    return make
