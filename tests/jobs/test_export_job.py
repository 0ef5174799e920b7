"""The job that exports: a folder that is whole or absent, and that people use who have no raykd."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as pads
import pytest
import torch
from fakes import CLASSES, ended, tiny_student
from PIL import Image

from raykd.algo.heads import Mixture
from raykd.errors import UserError
from raykd.models.opened import find_model, open_model
from raykd.models.student import Student, normalised
from raykd.store.place import Place

ROOT = Path(__file__).parents[2]
NO_RAYKD = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"raykd", "ray", "pyarrow", "faiss"}:
            raise ImportError("refused: " + name)
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = sys.argv[1:]
"""
MIXTURE = Mixture(0.3, 0.75, 0.6)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Of other sizes than the student's, and a broken one."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for n in range(20):
        coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((50 + 3 * n, 80 - 2 * n), Image.Resampling.BICUBIC).save(folder / f"{n:02d}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def student(photos, tmp_path_factory):
    """Its folder: a student with two heads that tells the photos apart, if at random."""
    folder, student = tmp_path_factory.mktemp("student"), tiny_student(CLASSES)
    student.mixture = MIXTURE
    clean = student.preprocess.clean()
    pixels = np.stack([np.asarray(clean(Image.open(file))) for file in sorted(photos.glob("[0-9]*.png"))])
    with torch.no_grad():
        student.model.train()(normalised(torch.from_numpy(pixels), student.preprocess))
        student.model.eval()
        features = torch.from_numpy(student.outputs(pixels)[0])
        for head in (student.model.ce_head, student.model.kd_head):
            head.weight.mul_(2 / (features @ head.weight.T).std())
            head.bias.copy_(-(features @ head.weight.T).mean(dim=0))
    student.save(folder)
    return folder


@pytest.fixture(scope="module")
def run():
    """Runs the job in this process: exit code, and what it printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        import export

    return lambda *args: ended(export.main, list(args))


@pytest.fixture(scope="module", params=["timm", "onnx", "torch"])
def exported(request, run, student, photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / request.param
    code, said = run(student, "--to", folder, "--format", request.param, "--images", photos)
    assert code == 0, said
    assert "held against the student on 256 images" in said
    assert "(20 whole, the others crops of these)" in said
    return folder


def outside(folder: Path, program: str, *args) -> str:
    """What a program prints in a Python that has no raykd, Ray, pyarrow or FAISS."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", NO_RAYKD + program, *map(str, args)],
        cwd=folder, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_whoever_has_no_raykd_gets_the_same_answers_by_the_card_and_by_its_program(exported, student, photos):
    files = sorted(photos.glob("[0-9]*.png"))
    want_NC = Student.load(student).predict(files)
    assert len(set(want_NC.argmax(axis=1))) > 1
    (example,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text("utf-8"), re.DOTALL)
    shutil.copy(files[3], exported / "photo.jpg")
    both = f"runpy.run_path('predict.py', run_name='__main__')\n{example}"
    *lines, by_card = outside(exported, both, "predict.py", *files).splitlines()
    for line, file, want_C in zip(lines, files, want_NC, strict=True):
        name, label, prob = line.split("\t")
        assert (name, label) == (str(file), CLASSES[want_C.argmax()])
        assert float(prob) == pytest.approx(want_C.max(), abs=1e-4)
    np.testing.assert_allclose(json.loads(by_card), want_NC[3], atol=1e-4)
    (exported / "photo.jpg").unlink()


def test_transparent_images_are_seen_as_raykd_sees_them_and_deep_ones_are_refused(exported, student, photos, tmp_path):
    image = Image.open(photos / "03.png").convert("RGBA")
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    image.save(tmp_path / "clear.png")
    image.convert("P").save(tmp_path / "palette.png", transparency=0)
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(tmp_path / "deep.png")
    files = [tmp_path / "clear.png", tmp_path / "palette.png"]
    program = (
        "try:\n    runpy.run_path('predict.py', run_name='__main__')\nexcept AssertionError as error:\n    print(error)"
    )
    *lines, refused = outside(exported, program, "predict.py", *files, tmp_path / "deep.png").splitlines()
    probs = [float(line.split("\t")[2]) for line in lines]
    np.testing.assert_allclose(probs, Student.load(student).predict(files).max(axis=1), atol=1e-4)
    assert refused.endswith("deep.png: more than 8 bits a channel; bring it to 8 first")


def test_what_is_no_student_is_told_by_what_it_is(exported, run, student, photos, tmp_path):
    code, said = run(exported, "--to", tmp_path / "again", "--format", "torch", "--images", photos)
    assert (code, "is an export already" in said) == (2, True)
    code, said = run(student, "--to", tmp_path / "again", "--format", "torch", "--images", tmp_path / "none")
    assert (code, "there is no such folder" in said) == (2, True)
    assert not (tmp_path / "again").exists()
    with pytest.raises(UserError, match="is an export: "):
        Student.load(exported)
    with pytest.raises(UserError, match="is not there; looked for"):
        Student.load(tmp_path / "none")


SERVE_ONLY = """
import sys
sys.modules.update(dict.fromkeys(["ray", "faiss", "jinja2", "sklearn", "matplotlib", "onnx", "onnxruntime"]))
"""


def test_a_student_is_served_without_ray_and_faiss_and_the_jobs_say_what_they_miss(student, photos, tmp_path):
    files = sorted(photos.glob("[0-9]*.png"))
    program = (
        "from raykd.models.student import Student\n"
        "import json\n"
        "print(json.dumps(Student.load(sys.argv[1]).predict(sys.argv[2:]).tolist()))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    served, job = (
        subprocess.run([sys.executable, *args], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        for args in (
            ["-c", SERVE_ONLY + program, str(student), *map(str, files)],
            ["-c", SERVE_ONLY + "import runpy\nrunpy.run_path(sys.argv.pop(1), run_name='__main__')",
             str(ROOT / "jobs" / "predict.py"), "--model", str(student), "--pool", str(photos), "--out", "out"],
        )
    )  # fmt: skip
    assert served.returncode == 0, served.stderr
    np.testing.assert_array_equal(np.float32(json.loads(served.stdout)), Student.load(student).predict(files))
    assert job.returncode == 2, job.stderr
    assert "pip install 'raykd[campaign]'" in job.stderr.splitlines()[-1]


def test_raykd_opens_an_export_as_it_opens_a_student(exported, student, photos, tmp_path, request):
    found = find_model(Place.of(exported))
    assert (found.classes, found.preprocess) == (CLASSES, Student.load(student).preprocess)
    elsewhere = request.getfixturevalue("bucket") / "copy"  # as a campaign's cache may be
    elsewhere.fs.create_dir(elsewhere.path)
    for name in found.files:
        (elsewhere / name).write_bytes((found.place / name).read_bytes())
    model = open_model(elsewhere)
    files = sorted(photos.glob("[0-9]*.png"))
    np.testing.assert_allclose(model.predict(files), Student.load(student).predict(files), atol=1e-4)
    with pytest.raises(UserError, match="runs on the CPU"):
        open_model(elsewhere, "cuda")
    half = shutil.copytree(exported, tmp_path / "half")
    (half / found.files[1]).unlink()
    with pytest.raises(UserError, match="half an export"):
        find_model(Place.of(half))


def test_the_job_that_predicts_takes_an_export(exported, ray_cluster, student, image_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    import predict

    code, said = ended(predict.main, ["--model", exported, "--pool", image_folder, "--out", tmp_path / "p"])
    assert code == 0, said
    table = pads.dataset(tmp_path / "p").to_table()
    want_NC = Student.load(student).predict(table["uri"].to_pylist())
    np.testing.assert_allclose(np.array(table["probs"].to_pylist()), want_NC, atol=1e-4)


def test_the_card_says_what_there_is(exported, student):
    card = json.loads((exported / "card.json").read_text("utf-8"))
    assert card["format"] == exported.name
    assert card["classes"] == CLASSES
    assert card["mixture"] == {"ce_weight": 0.3, "temperature": 0.75, "calibration": 0.6}
    assert card["sha256"] == Place.of(exported / card["weights"]).sha256()
    assert card["bytes"] == (exported / card["weights"]).stat().st_size
    assert card["gate"]["num_images"] == 256
    assert card["campaign"] is None
    text = (exported / "README.md").read_text("utf-8")
    assert card["sha256"] in text
    assert "not known: exported without its campaign" in text
    if exported.name == "onnx":
        assert f"opset {card['opset']}" in text
    assert not list(exported.parent.glob(".*"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--format", "timm"], "give --images FOLDER"),
        (["--format", "timm", "--images", "few"], "1 of 2 images"),
        (["--format", "timm", "--images", "photos", "--to", "few"], "exists, and nothing is overwritten"),
        (["--format", "timm", "--images", "photos", "--to", "s3://bucket/x"], "expected a local folder"),
        (["--format", "timm", "--images", "photos", "--round", "2"], "not a campaign's"),
        (["--format", "tflite"], "--format"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_left(args, message, run, student, photos, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    shutil.copy(photos / "00.png", few)
    shutil.copy(photos / "broken.png", few)
    where = {"photos": photos, "few": few}
    args = [where.get(each, each) for each in args]
    code, said = run(student, *([] if "--to" in args else ["--to", tmp_path / "out"]), *args)
    assert code == 2
    assert message in said
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
    assert len(list(few.iterdir())) == 2


def test_an_export_that_is_not_the_student_leaves_nothing(run, student, photos, tmp_path, monkeypatch):
    from raykd.models import export

    real = export.plain_timm

    def other(student):
        model = real(student)
        model.get_classifier().weight.data[0] += 0.1
        return model

    monkeypatch.setattr(export, "plain_timm", other)
    code, said = run(student, "--to", tmp_path / "out", "--format", "timm", "--images", photos)
    assert code == 2
    assert "what was written is not the student: at batch 1, on 256 images, a probability differs by" in said
    assert not list(tmp_path.iterdir())
