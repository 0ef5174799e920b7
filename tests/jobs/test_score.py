"""The job that scores images without a campaign: a plain loop's numbers, once, and hostile inputs through its door."""

import json
import re
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import torch
from fakes import ended, images_read, killed_after
from hostile import Bad, Refused
from PIL import Image

ROOT = Path(__file__).parents[2]
CLASSES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def run(ray_cluster, teacher_folder, tmp_path_factory):
    """Runs the job in this process, on the session's Ray: exit code, and what it printed. One cache for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "jobs"))
        import score
    cache = tmp_path_factory.mktemp("score") / "cache"

    def run(*args, teacher=f"local-dir:{teacher_folder}"):
        given = [*args, "--model", teacher, "--batch-size", 16]
        given += [] if "--cache" in args else ["--cache", cache]
        return ended(score.main, given)

    run.cache = cache
    return run


def table_of(out):
    return pads.dataset(out).to_table().sort_by("sample_id")


def array(column):
    return np.array(column.to_pylist(), np.float32)


def test_the_table_is_what_a_plain_open_clip_loop_gives(run, image_folder, teacher_folder, tmp_path):
    import open_clip

    code, said = run("--pool", image_folder, "--out", tmp_path / "s", "--classes", "red,green,blue")
    assert code == 0, said
    table = table_of(tmp_path / "s")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{teacher_folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{teacher_folder}")([f"a photo of a {name}." for name in CLASSES])
    with torch.no_grad():
        images = torch.stack([preprocess(Image.open(image_folder / name)) for name in table["sample_id"].to_pylist()])
        features = model.eval().encode_image(images, normalize=True)
        logits = model.logit_scale.exp() * features @ model.encode_text(tokens, normalize=True).T
    np.testing.assert_allclose(array(table["features"]), features.numpy(), atol=1e-3)
    np.testing.assert_allclose(array(table["probs"]), logits.softmax(dim=1).numpy(), atol=0.02)
    assert table["label"].to_pylist() == [name.split("/")[0] for name in table["sample_id"].to_pylist()]
    right = np.mean(
        array(table["probs"]).argmax(axis=1) == [CLASSES.index(name) for name in table["label"].to_pylist()]
    )
    assert f"right on {right:.1%} of the {table.num_rows:,} that have a label" in said
    assert json.loads((tmp_path / "s" / "_DONE.json").read_text())["facts"]["classes"] == CLASSES


def test_a_finished_table_is_only_looked_at_and_other_classes_read_no_image(run, image_folder, tmp_path, monkeypatch):
    from raykd.stages import map_images

    given = ["--pool", image_folder, "--classes", "red,green,blue", "--out", tmp_path / "s"]
    assert run(*given)[0] == 0
    before = table_of(tmp_path / "s")
    monkeypatch.setattr(map_images, "run", lambda *_: pytest.fail("an image was read"))
    assert run(*given)[0] == 0
    assert table_of(tmp_path / "s").equals(before)
    (tmp_path / "more.csv").write_text("name,texts\nred,\ngreen,leaf\nblue,sky|sea\ngray,\n")
    code, said = run(*given[:2], "--classes", tmp_path / "more.csv", "--out", tmp_path / "other")
    assert code == 0, said
    assert array(table_of(tmp_path / "other")["probs"]).shape[1] == 4
    code, said = run(*given[:2], "--classes", tmp_path / "more.csv", "--out", tmp_path / "s")
    assert code == 2
    assert "holds another table" in said
    assert "give another --out" in said


def test_a_killed_run_goes_on_with_the_parts_it_has(run, image_folder, tmp_path, monkeypatch):
    from raykd.stages import map_images

    monkeypatch.setattr(map_images, "PART_ROWS", 8)
    given = ["--pool", image_folder, "--out", tmp_path / "s", "--cache", tmp_path / "cache"]
    with killed_after(3, "encode"):
        run(*given)
    assert not (tmp_path / "s").exists()
    assert len(list((tmp_path / "cache" / "encode").iterdir())) == 3
    read = images_read(monkeypatch)
    code, said = run(*given)
    assert code == 0, said
    files = len(list(image_folder.glob("*/*.png")))
    assert len(read) == files - 8 * 3
    assert table_of(tmp_path / "s").num_rows == files


def test_a_campaign_with_that_cache_reads_no_image(run, run_job, image_folder, settings, tmp_path, monkeypatch):
    from campaigns import Reached

    from raykd.stages import encode, map_images

    assert run("--pool", image_folder, "--out", tmp_path / "s", "--cache", tmp_path / "cache")[0] == 0
    monkeypatch.setattr(map_images, "map_parts", lambda parts, *_, **__: [part.done for part in parts])
    missing = []
    monkeypatch.setattr(map_images, "num_missing", lambda parts: missing.append([p for p in parts if not p.done]) or 0)
    monkeypatch.setattr(encode, "check_budgets", lambda *_: (_ for _ in ()).throw(Reached))
    with pytest.raises(Reached):
        run_job(settings, f"cache_path={tmp_path / 'cache'}")
    assert missing == [[]]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--pool", "nowhere"], ["nothing at", "nowhere"]),
        (["--pool", "{images}", "--id-column", "id"], ["--id-column", "give --format, too"]),
        (["--pool", "{images}", "--format", "class_folders", "--classes", "red,green"], ["'blue'"]),
        (["--pool", "{images}", "--classes", "red"], ["'red'"]),
        (["--pool", "{images}", "--format", "images"], ["classes: not given"]),
        (["--pool", "{images}", "--templates", "simpel"], ["'simpel'", "simple"]),
    ],
)
def test_what_is_asked_for_wrongly_is_one_message_and_nothing_is_written(run, args, words, image_folder, tmp_path):
    code, said = run(*[arg.format(images=image_folder) for arg in args], "--out", tmp_path / "s")
    assert code == 2
    assert [word for word in words if word not in said] == [], said
    assert "Traceback" not in said
    assert not (tmp_path / "s").exists()


def test_picks_are_made_from_the_table_as_it_is(run, image_folder, tmp_path, monkeypatch):
    assert run("--pool", image_folder, "--out", tmp_path / "s")[0] == 0
    monkeypatch.syspath_prepend(str(ROOT / "jobs"))
    import pick

    for strategy in ("pcoreset", "badge"):
        out = tmp_path / f"{strategy}.parquet"
        given = ["--pool", tmp_path / "s", "--strategy", strategy, "--budget", 5, "--shards", 1, "--out", out]
        pick.main([str(arg) for arg in given])
        assert set(pq.read_table(out)["sample_id"].to_pylist()) < set(table_of(tmp_path / "s")["sample_id"].to_pylist())


# ---------------------------------------------------------------- hostile inputs


def test_every_hostile_image_is_right_or_quarantined_with_a_reason_that_counts(run, tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    cases = [*hostile.IMAGES, *hostile.FILES]
    for case in cases:
        hostile.write_image(case, folder)
    assert len(hostile.IMAGES) >= 60
    names = {case.name: case.expect for case in cases if case.listed}
    code, said = run("--pool", folder, "--format", "images", "--classes", "red,green,blue", "--out", tmp_path / "s")
    assert code == 0, said
    table = table_of(tmp_path / "s")
    bad = {row["sample_id"]: row["reason"] for row in pq.read_table(run.cache / "quarantine.parquet").to_pylist()}
    scored = set(table["sample_id"].to_pylist())
    assert scored | bad.keys() == names.keys()
    assert not scored & bad.keys()
    assert np.isfinite(array(table["probs"])).all()
    assert np.isfinite(array(table["features"])).all()
    known_to_differ = {"half, and an end.jpg", "half of the rows.png", "closed.png"}  # tests/unit/test_hostile.py
    assert {name for name, expect in names.items() if isinstance(expect, Bad)} - known_to_differ == bad.keys()
    for name, reason in bad.items():
        assert re.search(hostile.REASONS[names[name].kind], reason), (name, reason)
    assert f"{len(bad):,} of {len(names):,} images cannot be read" in said
    counts = sorted(
        {reason: list(bad.values()).count(reason) for reason in bad.values()}.items(), key=lambda x: (-x[1], x[0])
    )
    for reason, count in counts[:4]:
        assert f"{count:,} {reason}" in said
    for words in ("had transparency, shown on white", "were turned upright", "had more than 8 bits", "several frames"):
        assert words in said


def test_every_hostile_table_is_scored_or_refused_in_words(run, tmp_path):
    assert len(hostile.TABLES) >= 30
    wrong = []
    for number, table in enumerate(hostile.TABLES):
        folder = tmp_path / str(number)
        folder.mkdir()
        fields = dict(table.make(folder))
        path = folder / fields.pop("path", "")
        args = [f"--{name.replace('_', '-')}={'null' if value is None else value}" for name, value in fields.items()]
        refused = isinstance(table.expect, Refused)
        labels = {"red", "green"} if refused else {"red", "green", *filter(None, table.expect.labels)}
        labels = hostile.LETTERS if "label_values" in fields else sorted(labels)
        # by texts of one token: the tiny teacher reads no more than 12 of a prompt
        (folder / "classes.json").write_text(json.dumps({name: [chr(97 + i)] for i, name in enumerate(labels)}))
        code, said = run("--pool", path, *args, "--classes", folder / "classes.json", "--out", folder / "out")
        if refused:
            good = code == 2 and all(word in said for word in table.expect.words)
        else:
            bad = sum(isinstance(picture, str) for picture in table.expect.pictures or ())
            rows = len(table.expect.labels) - bad
            good = table_of(folder / "out").num_rows == rows if code == 0 else not rows and "can be read" in said
        if not good or "Traceback" in said:
            wrong.append((table.name, code, said[-300:]))
    assert not wrong


@pytest.mark.parametrize("option", ["--out", "--cache"])
def test_a_place_that_cannot_be_a_folder_of_ours_is_told_before_any_image_is_read(run, image_folder, tmp_path, option):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for place in ("file", "file/below", *(["full"] if option == "--out" else [])):
        given = {"--out": tmp_path / "s", "--cache": tmp_path / "c"} | {option: tmp_path / place}
        code, said = run("--pool", image_folder, *[word for pair in given.items() for word in pair])
        assert code == 2
        assert f"error: {option}: " in said, said
        assert "encode" not in said
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_another_table_in_the_same_place_is_told_by_what_differs(run, image_folder, tmp_path):
    given = ["--pool", image_folder, "--out", tmp_path / "s"]
    assert run(*given)[0] == 0
    _, said = run(*given, "--classes", "red,green,blue,gray")
    assert "holds another table: of other classes; give another --out" in said


def test_without_a_model_it_says_which_option_is_missing(image_folder, tmp_path):
    ended = subprocess.run(
        [sys.executable, ROOT / "jobs" / "score.py", "--pool", image_folder, "--out", tmp_path / "s"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "--model" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "s").exists()
