"""Any way to name a teacher works, and what cannot is told by name before anything is fetched. Starts no Ray."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import write_siglip

from raykd.config import TeacherConfig, load
from raykd.errors import UserError
from raykd.models.teacher import (
    check_checkpoint,
    check_teacher,
    encode_texts,
    fetch_weights,
    own_files,
    read_clip_preprocess,
    tokenizer_of,
    tokens_of,
)
from raykd.store.place import Place


@pytest.fixture
def siglip(tmp_path) -> tuple[Path, Path]:
    """A model config file and a checkpoint file of a SigLIP-like model: separate text tower, sigmoid bias."""
    return write_siglip(tmp_path)


def check(**given) -> str:
    with pytest.raises(UserError) as caught:
        check_teacher(TeacherConfig(**given))
    return str(caught.value)


def test_an_unknown_model_is_refused_with_the_nearest_name():
    message = check(model="ViT-B-23", pretrained="openai")
    assert message == "unknown teacher.model 'ViT-B-23'; did you mean 'ViT-B-32'?"


def test_an_unknown_tag_is_refused_with_the_known_ones():
    message = check(model="ViT-B-32", pretrained="opneai")
    assert "'opneai' is no file and none of ViT-B-32's tags" in message
    assert "laion2b_s34b_b79k" in message


def test_a_model_without_weights_is_refused_with_the_known_tags():
    message = check(model="ViT-B-32")
    assert "needs weights" in message
    assert "openai" in message


def test_missing_files_and_folders_are_named_with_what_is_looked_for(tmp_path, teacher_folder):
    assert "has no open_clip_config.json; it holds nothing" in check(model=f"local-dir:{tmp_path}")
    assert f"the folder '{tmp_path}/none' is not there; give one" in check(model=f"local-dir:{tmp_path}/none")
    message = check(model="local-dir:teacher")
    assert f"the folder 'teacher' is not there (looked for in {Path.cwd()}, where this job runs)" in message
    message = check(model="mine", model_config_file=str(tmp_path / "mine.json"))
    assert f"teacher.model_config_file: no file '{tmp_path / 'mine.json'}'" in message
    other = Path(shutil.copytree(teacher_folder, tmp_path / "other"))
    (other / "open_clip_model.safetensors").rename(other / "weights.safetensors")
    message = check(model=f"local-dir:{other}")
    assert "has no weights; expected one of open_clip_model.safetensors, open_clip_pytorch_model.safetensors" in message
    assert "it holds open_clip_config.json, weights.safetensors" in message


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("open_clip_model.safetensors", lambda whole: b"", "it is empty; fetch it again"),
        ("open_clip_model.safetensors", lambda whole: POINTER, "it is a Git LFS pointer: .*git lfs pull"),
        ("open_clip_model.safetensors", lambda whole: b"<!DOCTYPE html><html>401", "it is a web page"),
        ("open_clip_model.safetensors", lambda whole: whole[:100], "it is cut off"),
        ("open_clip_model.safetensors", lambda whole: whole[:-1], r"it is cut off: [\d,]+ of [\d,]+ bytes"),
        ("open_clip_model.safetensors", lambda whole: whole[:9] + b"}" + whole[10:], "its header is damaged"),
        ("open_clip_model.safetensors", lambda whole: bytes(5000), "it is nothing but zero bytes"),
        ("open_clip_model.safetensors", lambda whole: b"\x9c" * 5000, "does not begin as safetensors does"),
        ("open_clip_config.json", lambda whole: b"", "is not JSON: it is empty"),
        ("open_clip_config.json", lambda whole: POINTER, "is not JSON: it is a Git LFS pointer"),
        ("open_clip_config.json", lambda whole: whole[:-20], "is not JSON: "),
        ("open_clip_config.json", lambda whole: b"[]", "lacks model_cfg"),
        ("tokenizer.json", lambda whole: POINTER, "it is a Git LFS pointer"),
    ],
)
def test_a_file_of_a_local_folder_that_is_not_whole_is_named_with_what_it_is(
    name, change, words, teacher_folder, tmp_path
):
    folder = Path(shutil.copytree(teacher_folder, tmp_path / "other"))
    whole = (folder / name).read_bytes() if (folder / name).exists() else b""
    (folder / name).write_bytes(change(whole))
    message = check(model=f"local-dir:{folder}")
    assert re.search(rf"^teacher\.model: {re.escape(str(folder / name))}.*{words}", message), message


@pytest.mark.parametrize("new_format", [True, False])
def test_a_checkpoint_of_torch_that_is_cut_off_is_told_before_anything_is_loaded(new_format, tmp_path):
    import torch

    file = tmp_path / "mine.pt"
    torch.save({"a": torch.zeros(1000)}, file, _use_new_zipfile_serialization=new_format)
    check_checkpoint(str(file), "teacher.pretrained")
    if new_format:
        file.write_bytes(file.read_bytes()[:-40])
        assert f"teacher.pretrained: {file} holds no weights that can be read: it is cut off" in check(
            model="ViT-B-32", pretrained=str(file)
        )
    file.write_bytes(POINTER)
    assert f"teacher.pretrained: {file} holds no weights that can be read: it is a Git LFS pointer" in check(
        model="ViT-B-32", pretrained=str(file)
    )


def test_a_checkpoint_that_does_not_fit_or_is_none_is_refused(siglip, tmp_path):
    import safetensors.torch

    config, weights = siglip
    given = TeacherConfig(model="tiny-sigmoid", model_config_file=str(config), pretrained=str(weights))
    check_teacher(given)
    state = safetensors.torch.load_file(weights)
    del state["text.ln_final.weight"]
    safetensors.torch.save_file(state, weights)
    with pytest.raises(UserError, match=r"(?s)cannot load teacher 'tiny-sigmoid' with pretrained .*ln_final"):
        fetch_weights(given, Place.of(tmp_path / "out"))
    empty = tmp_path / "empty"
    empty.mkdir()
    shutil.copy(config, empty / "open_clip_config.json")
    with pytest.raises(UserError, match="cannot load teacher"):
        fetch_weights(TeacherConfig(model=f"local-dir:{empty}"), Place.of(tmp_path / "out"))


def test_a_quickgelu_mismatch_is_refused_before_the_weights_are_fetched(monkeypatch):
    """The commonest mistake: OpenAI's weights were trained with QuickGELU, which the model ViT-B-32 has not."""
    import open_clip

    monkeypatch.setattr(open_clip.factory, "download_pretrained", None)
    assert "use ViT-B-32-quickgelu" in check(model="ViT-B-32", pretrained="openai")
    check_teacher(TeacherConfig(model="ViT-B-32-quickgelu", pretrained="openai"))
    check_teacher(TeacherConfig(model="ViT-B-32", pretrained="laion2b_s34b_b79k"))


def test_a_tokenizer_that_needs_transformers_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers: pip install raykd\[hf\]"):
        tokenizer_of("ViT-B-16-SigLIP")


def test_a_text_tower_with_fewer_tokens_than_its_tokenizer_gives_is_refused(teacher_folder, tmp_path):
    import open_clip
    import safetensors.torch

    folder = Path(shutil.copytree(teacher_folder, tmp_path / "small"))
    about = json.loads((folder / "open_clip_config.json").read_text())
    about["model_cfg"]["text_cfg"]["vocab_size"] = 259
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    state = open_clip.CLIP(**about["model_cfg"]).state_dict()
    safetensors.torch.save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(UserError, match=r"gives tokens up to \d+, its text tower knows 259.*tokenizer"):
        encode_texts(Place.of(folder), tokens_of(f"local-dir:{folder}", [["a cat"], ["a dog"]]), [1, 1], "cpu")


def test_all_of_a_models_files_are_known_by_their_content(teacher_folder, settings):
    config = load(settings).teacher
    assert [Path(path).name for path in own_files(config)] == ["open_clip_config.json", "open_clip_model.safetensors"]


def test_a_fetched_model_is_whole_and_its_preprocessing_is_read_without_torch(teacher_folder, tmp_path):
    place = Place.of(tmp_path / "fetched")
    count = fetch_weights(TeacherConfig(model=f"local-dir:{teacher_folder}"), place)
    assert count > 1000
    assert {info.base_name for info in place.files()} == {"open_clip_config.json", "open_clip_model.safetensors"}
    assert read_clip_preprocess(place)["mean"] == [0.5, 0.4, 0.3]
    texts = [["a red thing", "red", "rot"], ["blue"]]
    tokens = tokens_of(f"local-dir:{teacher_folder}", texts)
    classes_CD, lengths_C, scale, bias = encode_texts(place, tokens, [3, 1], "cpu")
    assert classes_CD.shape == (2, 16)
    assert lengths_C.shape == (2,)
    assert (lengths_C > 0).all()
    np.testing.assert_allclose(np.linalg.norm(classes_CD, axis=1), 1, rtol=1e-5)
    assert (scale > 1, bias) == (True, 0.0)
