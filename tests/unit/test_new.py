"""A config for one's own images: what is found in a folder, what is written, and that it works as it stands."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fakes import CLASSES, write_images
from PIL import Image

from raykd.config import load_file
from raykd.errors import UserError
from raykd.images.survey import survey
from raykd.new import BACKBONE, Machine, hub_in_reach, next_steps, write_config

ROOT = Path(__file__).parents[2]
LAPTOP = Machine(cores=2, memory_gib=16, gpus=0, hub=True)
SERVER = Machine(cores=32, memory_gib=256, gpus=4, hub=True)
PLANE = Machine(cores=8, memory_gib=16, gpus=0, hub=False)


def png(color, size=(24, 24)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def photos(tmp_path) -> Path:
    """A folder of images without labels, a text file of class names beside it."""
    (tmp_path / "photos").mkdir()
    for number in range(40):
        (tmp_path / "photos" / f"{number:02d}.png").write_bytes(png((number, 0, 0), (200, 150 + number)))
    (tmp_path / "photos" / "notes.txt").write_text("mine")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    return tmp_path / "photos"


def new(images, out, classes=None, teacher=None, machine=LAPTOP, ask=None):
    """The checked config, and what was said."""
    said = []
    written = write_config(str(images), out, classes and str(classes), teacher, machine, ask, said.append)
    return load_file(written), said


# ---------------------------------------------------------------- what is found


def test_a_folder_of_images_is_told_with_counts_endings_and_sizes(photos):
    found = survey(str(photos))
    assert found.pool == {"path": str(photos), "format": "images"}
    assert (found.num_images, found.classes, found.labeled, len(found.sizes)) == (40, None, False, 32)
    assert found.lines[0] == "40 images (40 .png), 200 x 150 to 200 x 181 pixels"
    assert any("1 files in" in line and ".txt" in line for line in found.lines)


def test_a_folder_per_class_is_seen_unless_its_names_say_otherwise(tmp_path):
    write_images(tmp_path / "pool", 4)
    found = survey(str(tmp_path / "pool"))
    assert (found.pool["format"], found.labeled, found.classes) == ("class_folders", True, sorted(CLASSES))
    assert survey(str(tmp_path / "pool"), ["cat", "dog"]).pool["format"] == "images"  # the names are others
    assert survey(str(tmp_path / "pool"), [*CLASSES, "grey"]).classes == [*CLASSES, "grey"]
    (tmp_path / "pool" / "loose.png").write_bytes(png("red"))
    assert survey(str(tmp_path / "pool")).pool["format"] == "images"


@pytest.mark.parametrize("names", [["2024-01-05", "2024-02-11"], ["100CANON", "101CANON"], ["DCIM", "photos"]])
def test_folders_that_are_called_by_date_or_camera_are_no_classes(names, tmp_path):
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png("red"))
    found = survey(str(tmp_path))
    assert (found.pool["format"], found.classes) == ("images", None)
    assert any("not taken for classes" in line for line in found.lines)


def test_train_val_and_test_are_the_pool_and_what_is_measured_on(tmp_path):
    for split in ("train", "valid", "test"):
        write_images(tmp_path / split, 3)
    found = survey(str(tmp_path))
    assert found.pool == {"path": str(tmp_path / "train"), "format": "class_folders"}
    assert found.others == {
        "test": {"path": str(tmp_path / "test"), "format": "class_folders"},
        "val": {"path": str(tmp_path / "valid"), "format": "class_folders"},
    }
    (tmp_path / "train").rename(tmp_path / "Train")
    assert survey(str(tmp_path)).pool["path"] == str(tmp_path / "Train")
    given, _ = new(tmp_path, tmp_path / "c.yaml")
    assert (given.test.path, given.val.path, given.test_share) == (found.others["test"]["path"], f"{tmp_path}/valid", 0)


IMAGES = pa.array([png((number, 0, 0)) for number in range(6)])
HUGGING_FACE = json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}})


@pytest.mark.parametrize(
    ("columns", "classes", "expected", "labeled"),
    [
        ({"image": IMAGES}, ["a", "b"], {"image_column": "image", "id_column": None}, False),
        ({"image": IMAGES, "id": list("abcdef")}, ["a", "b"], {"image_column": "image", "id_column": "id"}, False),
        ({"image": IMAGES, "id": list("abcdea")}, ["a", "b"], {"image_column": "image", "id_column": None}, False),
        (
            {"img": IMAGES, "label": list("ababab")},
            None,
            {"image_column": "img", "id_column": None, "label_column": "label"},
            True,
        ),
        (
            {"image": IMAGES, "label": [0, 1, 0, 1, 0, 1]},
            ["a", "b"],
            {"image_column": "image", "id_column": None, "label_column": "label", "label_values": "sorted"},
            True,
        ),
        (
            {"image": IMAGES, "label": [0, 1, 2, 1, 0, 1]},
            ["a", "b"],
            {"image_column": "image", "id_column": None},
            False,
        ),
        ({"image": IMAGES, "label": list("xyzxyz")}, ["a", "b"], {"image_column": "image", "id_column": None}, False),
    ],
)
def test_columns_of_parquet_are_taken_by_their_types_and_names(columns, classes, expected, labeled, tmp_path):
    pq.write_table(pa.table(columns), tmp_path / "p.parquet")
    found = survey(str(tmp_path), classes)
    assert found.pool == {"path": str(tmp_path), "format": "parquet", **expected}
    assert (found.num_images, found.labeled) == (6, labeled)
    assert found.classes == (classes or ["a", "b"])


def test_what_hugging_face_notes_of_labels_and_images_is_used(tmp_path):
    images = pa.array([{"bytes": image, "path": None} for image in IMAGES.to_pylist()])
    table = pa.table({"image": images, "label": [0, 1] * 3}).replace_schema_metadata({"huggingface": HUGGING_FACE})
    pq.write_table(table, tmp_path / "p.parquet")
    found = survey(str(tmp_path / "p.parquet"))
    assert (found.classes, found.pool["label_column"], found.labeled) == (["cat", "dog"], "label", True)
    assert "label_values" not in found.pool
    assert survey(str(tmp_path / "p.parquet"), ["dog", "cat"]).pool["label_column"] == "label"
    digits = {"huggingface": HUGGING_FACE.replace("cat", "7").replace("dog", "8")}
    pq.write_table(table.replace_schema_metadata(digits), tmp_path / "p.parquet")
    assert survey(str(tmp_path / "p.parquet")).classes == ["7", "8"]


def test_what_readers_of_parquet_pass_over_is_not_looked_at(tmp_path):
    (tmp_path / "_delta_log").mkdir()
    pq.write_table(pa.table({"add": [1]}), tmp_path / "_delta_log" / "1.checkpoint.parquet")
    pq.write_table(pa.table({"image": IMAGES, "label": list("ababab")}), tmp_path / "p.parquet")
    found = survey(str(tmp_path))
    assert (found.num_images, found.classes) == (6, ["a", "b"])
    assert any("passed over" in line for line in found.lines)


# ---------------------------------------------------------------- lists and tars


def test_a_list_beside_its_images_is_taken_with_its_usual_columns(photos, tmp_path):
    lines = [f"photos/{number:02d}.png,{('cat', 'dog')[number % 2]},{number}" for number in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["File_Name,Label,width", *lines]))
    found = survey(str(tmp_path / "list.csv"))
    assert found.pool == {
        "path": f"{tmp_path}/list.csv",
        "format": "list",
        "uri_column": "File_Name",
        "id_column": None,
        "label_column": "Label",
    }
    assert (found.num_images, found.labeled, found.classes) == (40, True, ["cat", "dog"])
    assert survey(str(tmp_path / "list.csv"), ["a", "b"]).pool["label_values"] == "sorted"
    assert any("'list.csv'" in line and "give that file" in line for line in survey(str(tmp_path)).lines)
    config, _ = new(tmp_path / "list.csv", tmp_path / "c.yaml")
    assert (config.pool.path, config.pool.format, config.test_share) == (f"{tmp_path}/list.csv", "list", 0.2)


def test_numbers_in_a_list_are_no_class_names_until_names_are_given(photos, tmp_path):
    lines = [
        json.dumps({"path": f"photos/{number:02d}.png", "label": number % 2, "id": number}) for number in range(40)
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    found = survey(str(tmp_path / "list.jsonl"))
    assert (found.classes, found.labeled) == (None, False)
    assert any("are no class names" in line for line in found.lines)
    assert survey(str(tmp_path / "list.jsonl"), ["cat", "dog"]).pool["label_values"] == "sorted"
    (tmp_path / "list.jsonl").write_text("\n".join(lines + lines[:1]).replace('"id": 0}', '"id": 99}', 1))
    assert survey(str(tmp_path / "list.jsonl")).pool["id_column"] == "id"  # a path is there twice


def test_lists_of_train_and_test_are_the_pool_and_what_is_measured_on(photos, tmp_path):
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("train.csv", "test.csv"):
        (lists / name).write_text("path,label\n../photos/00.png,cat\n../photos/01.png,dog\n")
    (lists / "val.csv").write_text("path\n../photos/00.png\n")
    found = survey(str(lists))
    assert (found.pool["path"], found.others) == (
        f"{lists}/train.csv",
        {"test": {**found.pool, "path": f"{lists}/test.csv"}},
    )
    assert any("val.csv cannot be measured on" in line for line in found.lines)
    (lists / "more.csv").write_text("path\n")
    with pytest.raises(UserError, match=r"holds 4 lists: .*give the one"):
        survey(str(lists))


def tarred(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("beside", "classes", "fields", "found_classes"),
    [
        ({"cls": [b"cat", b"dog"]}, None, {}, ["cat", "dog"]),
        ({"cls": [b"0", b"1"]}, ["cat", "dog", "emu"], {"label_values": "index"}, ["cat", "dog", "emu"]),
        ({"json": [b'{"class": "cat"}', b'{"class": "dog"}']}, None, {"label_column": "class"}, ["cat", "dog"]),
        (
            {"json": [b'{"label": 1}', b'{"label": 0}']},
            ["cat", "dog"],
            {"label_column": "label", "label_values": "index"},
            ["cat", "dog"],
        ),
        ({"json": [b'{"label": 1}', b'{"label": 0}']}, None, {}, None),
        ({"txt": [b"a cat", b"a dog"]}, None, {}, None),
    ],
)
def test_tars_are_taken_with_the_labels_that_their_members_have(beside, classes, fields, found_classes, tmp_path):
    for shard in range(2):
        members = {f"{shard}{i}.png": png((i, 0, 0)) for i in range(2)}
        members |= {f"{shard}{i}.{kind}": contents[i] for kind, contents in beside.items() for i in range(2)}
        tarred(tmp_path / f"{shard}.tar", members)
    found = survey(str(tmp_path), classes)
    assert found.pool == {"path": str(tmp_path), "format": "webdataset", **fields}
    assert (found.num_images, found.classes, found.labeled) == (4, found_classes, bool(found_classes))
    pattern = f"{tmp_path}/{{0..1}}.tar"
    assert survey(pattern, classes).pool == {**found.pool, "path": pattern}


def test_labels_in_tars_that_are_no_given_class_are_told(tmp_path):
    tarred(tmp_path / "a.tar", {"0.png": png("red"), "0.cls": b"emu"})
    with pytest.raises(UserError, match=r"labels \['emu'\] are not in 0 to 1"):
        survey(str(tmp_path), ["cat", "dog"])
    tarred(tmp_path / "a.tar", {"0.png": png("red"), "0.cls": b"1"})
    found = survey(str(tmp_path))
    assert found.classes is None
    assert any("are numbers ('1'): the classes must be given" in line for line in found.lines)
    config, _ = new(tmp_path, tmp_path / "c.yaml", ask=lambda _: "cat, dog")
    assert (config.pool.label_values, list(config.classes)) == ("index", ["cat", "dog"])


def test_a_tar_beside_the_images_that_came_out_of_it_is_left_alone(photos):
    tarred(photos / "all.tar", {path.name: path.read_bytes() for path in photos.glob("*.png")})
    assert survey(str(photos)).pool["format"] == "images"


def test_uris_and_splits_in_parquet_are_found(photos, tmp_path):
    names = [str(path) for path in sorted(photos.glob("*.png"))]
    splits = ["train"] * 30 + ["test"] * 10
    pq.write_table(
        pa.table({"file_name": names, "label": ["cat", "dog"] * 20, "split": splits}), tmp_path / "p.parquet"
    )
    found = survey(str(tmp_path / "p.parquet"))
    assert found.pool == {
        "path": str(tmp_path / "p.parquet"), "format": "parquet", "image_column": None, "uri_column": "file_name",
        "id_column": None, "label_column": "label", "split_column": "split",
    }  # fmt: skip
    assert found.num_images == 30
    given, _ = new(tmp_path / "p.parquet", tmp_path / "c.yaml")
    assert (given.test_share, given.val_share) == (0, 0.1)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no file; looked for are images (.jpg"),
        ({"a.heic": b"x", "b.txt": b"x"}, "holds 1 .heic, 1 .txt; looked for are images"),
        ({"a.png": b"x", "b.png": b""}, "none of 2 images looked at can be read, such as"),
        ({"a.parquet": b"x"}, "cannot be read as Parquet"),
        ({"test/a/b.png": b"x"}, "but no train folder"),
    ],
)
def test_where_nothing_can_be_read_is_told(files, words, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        survey(str(tmp_path))
    assert words in str(error.value)


def test_parquet_without_images_is_told_with_its_columns(tmp_path):
    pq.write_table(pa.table({"x": [1], "title": ["a"]}), tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"no column of encoded images, and none of URIs .*; it has x, title"):
        survey(str(tmp_path))
    with pytest.raises(UserError, match="nothing at"):
        survey(str(tmp_path / "nowhere"))


# ---------------------------------------------------------------- what is written


def test_a_folder_and_a_file_of_names_are_enough(photos, tmp_path):
    given, said = new(photos, tmp_path / "birds.yaml", tmp_path / "names.txt")
    assert given.pool.model_dump(exclude_defaults=True) == {"path": str(photos), "format": "images"}
    assert given.storage_path == str(tmp_path / "runs" / "photos")
    assert given.classes == str(tmp_path / "names.txt")
    assert (given.labels.oracle, given.labels.start, given.selection.budget) == ("people", "none", 6)
    assert (given.student.backbone, given.student.image_size) == (BACKBONE, 128)
    written = yaml.safe_load((tmp_path / "birds.yaml").read_text())
    assert (written["classes"], written["pool"]["path"]) == ("names.txt", "photos")  # so that the folder may be moved
    assert "2 classes: 'cat', 'dog'" in said


def test_labeled_images_answer_for_people_and_some_are_set_aside(tmp_path):
    write_images(tmp_path / "pool", 30)
    given, _ = new(tmp_path / "pool", tmp_path / "c.yaml")
    assert (given.classes, given.labels.oracle, given.labels.start) == (None, "simulated", "one_per_class")
    assert (given.test_share, given.val_share) == (0.2, 0.1)
    assert given.student.image_size == 64


def test_what_is_written_suits_the_machine(photos, tmp_path):
    names = tmp_path / "names.txt"
    given, _ = new(photos, tmp_path / "a.yaml", names, machine=SERVER)
    assert (given.teacher.num_gpus, given.teacher.replicas, given.student.num_gpus) == (1, 4, 1)
    assert given.student.image_size == 224
    given, said = new(photos, tmp_path / "b.yaml", names, machine=PLANE)
    assert (given.teacher.num_cpus, given.student.num_cpus, given.student.pretrained) == (4, 7, False)
    assert "No model hub is in reach" in (tmp_path / "b.yaml").read_text()
    assert any("give --teacher" in line for line in said)
    for machine in (LAPTOP, PLANE):  # a Ray of this machine has at least four CPUs, and keeps one
        given, _ = new(photos, tmp_path / f"{machine.cores}.yaml", names, machine=machine)
        assert max(given.teacher.num_cpus, given.student.num_cpus) + 1 <= max(4, machine.cores)


@pytest.mark.parametrize(
    ("teacher", "fields"),
    [
        ("hf-hub:a/b", {"model": "hf-hub:a/b"}),
        ("ViT-B-16/openai", {"model": "ViT-B-16", "pretrained": "openai"}),
        ("ViT-B-16//models/clip.pt", {"model": "ViT-B-16", "pretrained": "/models/clip.pt"}),
    ],
)
def test_a_teacher_may_be_named(teacher, fields, photos, tmp_path):
    given, _ = new(photos, tmp_path / "c.yaml", tmp_path / "names.txt", teacher)
    assert given.teacher.model_dump(include={"model", "pretrained"}, exclude_none=True) == fields


def test_a_teacher_in_a_folder_must_be_there(photos, tmp_path, teacher_folder, monkeypatch):
    monkeypatch.chdir(teacher_folder.parent)
    names = tmp_path / "names.txt"
    given, _ = new(photos, tmp_path / "c.yaml", names, f"local-dir:{teacher_folder.name}", PLANE)
    assert given.teacher.model == f"local-dir:{teacher_folder}"
    assert "# No model hub" not in (tmp_path / "c.yaml").read_text()
    with pytest.raises(UserError, match=r"the folder '.*nowhere' is not there"):
        new(photos, tmp_path / "d.yaml", names, "local-dir:nowhere")
    assert not (tmp_path / "d.yaml").exists()


def test_nothing_is_overwritten(photos, tmp_path):
    out = tmp_path / "c.yaml"
    out.write_text("mine")
    with pytest.raises(UserError, match=r"c\.yaml exists; give another --out"):
        new(photos, out, tmp_path / "names.txt")
    assert out.read_text() == "mine"
    with pytest.raises(UserError, match=r"cannot write .*c\.yaml/d\.yaml: "):
        new(photos, out / "d.yaml", tmp_path / "names.txt")


@pytest.mark.parametrize(("answer", "classes"), [("cat, dog ,", ["cat", "dog"]), ("{folder}/names.txt", None)])
def test_classes_are_asked_for_where_somebody_can_answer(answer, classes, photos, tmp_path):
    given, _ = new(photos, tmp_path / "c.yaml", ask=lambda question: answer.format(folder=tmp_path))
    assert given.classes == (classes or str(tmp_path / "names.txt"))


def test_without_classes_and_without_anybody_to_ask_it_says_what_to_give(photos, tmp_path):
    with pytest.raises(UserError, match=r"the classes of .*photos are not known: give --classes FILE"):
        new(photos, tmp_path / "c.yaml")
    with pytest.raises(UserError, match="expected at least two"):
        new(photos, tmp_path / "c.yaml", ask=lambda question: " ")

    def gone(question):
        raise EOFError

    with pytest.raises(UserError, match="expected at least two"):
        new(photos, tmp_path / "c.yaml", ask=gone)
    with pytest.raises(UserError, match="classes: no file"):
        new(photos, tmp_path / "c.yaml", tmp_path / "nowhere.txt")


def test_names_that_yaml_would_misread_survive(photos, tmp_path):
    odd = ["yes", "no", "007", "a: b", "# c", "1:30", "ünï", "'", '"', "null", "2026-01-02"]
    given, _ = new(photos, tmp_path / "c.yaml", ask=lambda question: ", ".join(odd))
    assert given.classes == odd


# ---------------------------------------------------------------- the command


@pytest.mark.slow
def test_the_job_writes_a_config_beside_and_says_what_to_run(photos, tmp_path):
    command = [
        sys.executable,
        str(ROOT / "jobs" / "new.py"),
        "photos",
        "--classes",
        "names.txt",
        "--teacher",
        "hf-hub:a/b",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert (done.returncode, done.stderr) == (0, "")
    run, look = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines()[-2:]]
    assert run.endswith("jobs/active_round.py photos.yaml")
    assert look.endswith("jobs/status.py photos.yaml")
    asked = subprocess.run(look, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (asked.returncode, asked.stdout) == (6, f"{tmp_path}/runs/photos: no campaign yet\n")


def test_commands_are_as_they_can_be_pasted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", "/nowhere")
    assert next_steps(tmp_path / "c.yaml", ["jobs/new.py"])[0] == ".venv/bin/python jobs/active_round.py c.yaml"
    monkeypatch.setenv("PATH", str(python.parent))
    assert next_steps(tmp_path / "c.yaml", ["jobs/new.py"])[0] == "python jobs/active_round.py c.yaml"


def test_whether_a_hub_is_in_reach_is_asked_of_the_hub_that_is_set(monkeypatch):
    import socket

    for name in ("HTTPS_PROXY", "https_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_in_reach()
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not hub_in_reach()
        monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not hub_in_reach()


def test_the_commands_to_run_next_can_be_pasted_whatever_a_name_holds(tmp_path, monkeypatch):
    import shlex

    from raykd.new import next_steps

    monkeypatch.chdir(tmp_path)
    for command in next_steps(tmp_path / "my birds" / "x 5.yaml", ["jobs/new.py"]):
        assert shlex.split(command)[-1] == "my birds/x 5.yaml"


def test_a_folder_to_measure_on_may_lack_classes_of_the_pool(tmp_path):
    from PIL import Image

    from raykd.images.survey import survey

    for name in ("train/a/1.png", "train/b/1.png", "val/a/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    found = survey(str(tmp_path))
    assert found.others == {"val": {"path": str(tmp_path / "val"), "format": "class_folders"}}
