"""A frozen student: heads that learn from stored features as a plain loop would, and the network under them."""

import json
import os
import shutil
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from fakes import picture, write_family, write_teacher
from PIL import Image, ImageOps
from torch import nn

from raykd.algo.batches import BatchPlan, learning_rate
from raykd.algo.heads import Mixture, probabilities
from raykd.config import StudentConfig, TeacherConfig, load
from raykd.errors import UserError
from raykd.images.transforms import ClipPreprocess
from raykd.models.export import open_written, write_checked
from raykd.models.export_card import code
from raykd.models.frozen import FrozenNetwork, new_frozen_student, save_network, save_teachers_network
from raykd.models.opened import find_model
from raykd.models.preprocess import read_preprocess
from raykd.models.saved import NETWORK, WEIGHTS, deploy
from raykd.models.student import Student, check_weights, make_backbone, try_student, weights_of
from raykd.models.teacher import ImageTower, fetch_weights, read_clip_preprocess
from raykd.models.training import (
    Targets,
    TrainingSettings,
    map_features,
    reproducible,
    train_student,
)
from raykd.models.training_data import TrainingFeatures
from raykd.store.place import Place
from raykd.store.tables import vectors

CLASSES = ["cat", "dog", "é"]
NUM, LABELED, STEPS = 40, 9, 15


def config_of(**changes):
    return StudentConfig(
        **({"backbone": "frozen", "steps": STEPS, "features": "test_resnet", "image_size": 32} | changes)
    )


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A timm network as the campaign keeps it, from a checkpoint."""
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(5)
    module, _ = make_backbone("test_resnet")
    with torch.no_grad():
        module.train()(3 * torch.randn(32, 3, 32, 32))  # running statistics
    (folder / "mine.safetensors").write_bytes(weights_of(module))
    save_network(config_of(pretrained=str(folder / "mine.safetensors")), Place.of(folder / "kept"))
    return Place.of(folder / "kept")


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (NUM, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def features_ND(network, pixels):
    return FrozenNetwork(network, "cpu", 1).features(pixels)


@pytest.fixture(scope="module")
def targets():
    rng = np.random.default_rng(1)
    return Targets(rng.integers(0, 3, LABELED), rng.normal(size=(NUM, 3)).astype(np.float16))


def trained(config, network, features_ND, targets):
    """A student after a training, and its losses."""
    settings = TrainingSettings(
        steps=STEPS,
        key=(0, 1),
        batch_labeled=4,
        batch_unlabeled=8,
        forward="stacked",
        learning_rate=0.02,
        checkpoints=1,
    )
    with reproducible(1, torch.device("cpu")):
        student = new_frozen_student(config, CLASSES, 3, network, features_ND)
        lines = train_student(student.model, TrainingFeatures(features_ND), targets, settings, lambda *_: None)
    return student, [line["loss"] for line in lines]


@pytest.mark.parametrize("hidden", [None, 5])
def test_its_training_is_a_plain_loop_over_the_features(network, features_ND, targets, hidden):
    student, losses = trained(config_of(hidden=hidden), network, features_ND, targets)
    start = new_frozen_student(config_of(hidden=hidden), CLASSES, 3, network, features_ND).model

    x = torch.from_numpy(features_ND.astype(np.float64))
    x = ((x - x.mean(0)) / (x - x.mean(0)).square().mean().sqrt()).float()
    layers = [nn.Linear(x.shape[1], hidden), nn.GELU()] if hidden else []
    heads = [nn.Linear(hidden or x.shape[1], 3) for _ in range(2)]
    if hidden:
        layers[0].load_state_dict(start.backbone.hidden.state_dict())
    for head, other in zip(heads, (start.ce_head, start.kd_head), strict=True):
        head.load_state_dict(other.state_dict())
    parameters = [p for module in (*layers, *heads) for p in module.parameters()]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.01)
    plan = BatchPlan(LABELED, NUM - LABELED, 4, 8, (0, 1))
    labels, teacher = torch.from_numpy(targets.labels_L), torch.from_numpy(targets.teacher_NC.astype(np.float32))
    expected = []
    for step in range(STEPS):
        labeled, unlabeled = plan.labeled(step), plan.unlabeled(step) + LABELED
        z = nn.Sequential(*layers)(x[np.concatenate([labeled, unlabeled])])
        kl_L, kl_U = (
            F.kl_div((heads[1](z[rows]) / 2).log_softmax(-1), (teacher[places] / 2).softmax(-1), reduction="none")
            .sum(1)
            .mean()
            for rows, places in ((slice(4), labeled), (slice(4, None), unlabeled))
        )
        loss = 0.5 * F.cross_entropy(heads[0](z[:4]), labels[labeled]) + 0.5 * 4 * (kl_L + kl_U)
        optimizer.param_groups[0]["lr"] = 0.02 * learning_rate(step, STEPS, int(0.1 * STEPS), "linear")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    for head, other in zip(heads, (student.model.ce_head, student.model.kd_head), strict=True):
        torch.testing.assert_close(other.weight, head.weight, rtol=1e-3, atol=1e-4)


# ---------------------------------------------------------------- the network that goes with it


@pytest.mark.parametrize("hidden", [None, 5])
def test_deployed_it_says_of_images_what_it_says_of_their_features(
    network, pixels, features_ND, targets, hidden, tmp_path
):
    student, _ = trained(config_of(hidden=hidden), network, features_ND, targets)
    student.save(tmp_path / "train")
    heads = Student.load(tmp_path / "train")
    deploy(Place.of(tmp_path / "train"), Place.of(tmp_path / "student"), Mixture(0.3), network / WEIGHTS)
    deployed = Student.load(tmp_path / "student")
    assert deployed.mixture == Mixture(0.3)
    assert deployed.backbone == "test_resnet"
    given_ND, told = heads.outputs_of_features(features_ND)
    seen_ND, seen = deployed.outputs(pixels)
    assert given_ND.shape == seen_ND.shape == (NUM, hidden or features_ND.shape[1])
    if hidden is None:  # features are stored in half precision, and that is all
        bound_ND = 2.0**-11 * np.abs(features_ND) / float(deployed.model.backbone.deviation)
        assert (np.abs(seen_ND - given_ND) <= 1.01 * bound_ND + 1e-5).all()
    for name in told:
        np.testing.assert_allclose(seen[name], told[name], atol=5e-3)
    assert told["ce_logits"].std(axis=0).min() > 0.05  # or any two would be as near


def test_all_rounds_share_one_file_of_the_network_on_a_disk_and_a_copy_of_a_folder_is_whole(
    network, features_ND, tmp_path
):
    new_frozen_student(config_of(), CLASSES, 3, network, features_ND).save(tmp_path / "train")
    for number in range(2):
        deploy(Place.of(tmp_path / "train"), Place.of(tmp_path / f"{number}"), Mixture(), network / WEIGHTS)
        assert os.path.samefile(tmp_path / f"{number}" / NETWORK, (network / WEIGHTS).path)
    shutil.copytree(tmp_path / "0", tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "0")
    image = Image.fromarray(np.full((40, 50, 3), 90, np.uint8))
    one, other = (Student.load(tmp_path / name).predict(image) for name in ("elsewhere", "1"))
    np.testing.assert_array_equal(one, other)


def test_where_files_cannot_be_linked_they_are_copied(network, features_ND, tmp_path, bucket, monkeypatch):
    new_frozen_student(config_of(), CLASSES, 3, network, features_ND).save(tmp_path / "train")
    for name in (WEIGHTS, "student.json"):
        (bucket / "network" / name).fs.create_dir((bucket / "network").path)
        (bucket / "network" / name).write_bytes((network / name).read_bytes())
    (bucket / "student").fs.create_dir((bucket / "student").path)
    deploy(Place.of(tmp_path / "train"), bucket / "student", Mixture(), bucket / "network" / WEIGHTS)

    def refuse(*_):
        raise OSError("no links on this disk")

    monkeypatch.setattr(os, "link", refuse)
    deploy(Place.of(tmp_path / "train"), Place.of(tmp_path / "student"), Mixture(), network / WEIGHTS)
    monkeypatch.undo()
    assert not os.path.samefile(tmp_path / "student" / NETWORK, (network / WEIGHTS).path)
    assert (tmp_path / "student" / NETWORK).read_bytes() == (network / WEIGHTS).read_bytes()


def test_a_whole_student_that_is_saved_again_is_the_same_files(network, features_ND, pixels, tmp_path):
    new_frozen_student(config_of(hidden=3), CLASSES, 3, network, features_ND).save(tmp_path / "train")
    deploy(Place.of(tmp_path / "train"), Place.of(tmp_path / "student"), Mixture(), network / WEIGHTS)
    whole = Student.load(tmp_path / "student")
    whole.save(tmp_path / "again")
    for name in (NETWORK, WEIGHTS):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "student" / name).read_bytes()
    np.testing.assert_array_equal(Student.load(tmp_path / "again").probabilities(pixels), whole.probabilities(pixels))


def test_heads_alone_are_refused_where_images_are_given_with_the_folder_to_give(network, features_ND, pixels, tmp_path):
    new_frozen_student(config_of(), CLASSES, 3, network, features_ND).save(tmp_path / "train")
    with pytest.raises(UserError, match=r"heads alone.*load the round's student/ folder, not train/"):
        Student.load(tmp_path / "train").predict(pixels)
    with pytest.raises(UserError, match=r"holds the heads of a frozen student.*give the round's student/ folder"):
        find_model(Place.of(tmp_path / "train"))
    deploy(Place.of(tmp_path / "train"), Place.of(tmp_path / "student"), Mixture(), network / WEIGHTS)
    found = find_model(Place.of(tmp_path / "student"))
    assert set(found.files) == {"student.json", WEIGHTS, NETWORK}


def test_features_beyond_half_precision_are_refused(network, pixels):
    loaded = FrozenNetwork(network, "cpu", 1)
    loaded.module = nn.Sequential(loaded.module, nn.Hardtanh(1e5, 2e5))
    with pytest.raises(UserError, match=r"features reach 100000.*half precision, up to 65504"):
        loaded.features(pixels[:2])


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [None, 3])
def test_exported_it_is_the_same_and_with_linear_heads_a_plain_timm_model(
    network, features_ND, pixels, targets, hidden, tmp_path
):
    student, _ = trained(config_of(hidden=hidden), network, features_ND, targets)
    student.save(tmp_path / "train")
    deploy(Place.of(tmp_path / "train"), Place.of(tmp_path / "student"), Mixture(0.3, 0.7), network / WEIGHTS)
    deployed = Student.load(tmp_path / "student")
    for kind in ("torch", "timm"):
        (tmp_path / kind).mkdir()
        if kind == "timm" and hidden:
            with pytest.raises(UserError, match=r"--format timm: .*through a hidden layer.*take --format onnx"):
                write_checked(deployed, kind, tmp_path / kind, pixels)
        else:
            write_checked(deployed, kind, tmp_path / kind, pixels)  # which holds it against the student
            written = open_written(kind, tmp_path / kind)
            np.testing.assert_allclose(written(pixels), deployed.probabilities(pixels), atol=1e-5)
    assert np.ptp(deployed.probabilities(pixels), axis=0).min() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip", "coca"])
def test_a_teachers_image_tower_gives_an_image_the_features_that_the_teacher_does(family, tmp_path):
    own = write_family(tmp_path / "own", family)
    teacher, kept = Place.of(tmp_path / "teacher"), Place.of(tmp_path / "kept")
    fetch_weights(TeacherConfig(model=f"local-dir:{own}"), teacher)
    save_teachers_network(teacher, "mine", kept)
    image = picture(height=90, width=200)
    clean = ClipPreprocess(read_clip_preprocess(teacher))(image)
    np.testing.assert_array_equal(read_preprocess(kept).clean()(image), clean)
    features_ND = ImageTower(teacher, "fp32", "cpu", 1).features(np.asarray(clean)[None])
    np.testing.assert_allclose(FrozenNetwork(kept, "cpu", 1).features(np.asarray(clean)[None]), features_ND, atol=1e-3)

    new_frozen_student(config_of(features="teacher"), CLASSES, 0, kept, features_ND).save(tmp_path / "train")
    deploy(Place.of(tmp_path / "train"), Place.of(tmp_path / "student"), Mixture(), kept / WEIGHTS)
    student = Student.load(tmp_path / "student")
    told = probabilities(Student.load(tmp_path / "train").outputs_of_features(features_ND)[1])
    np.testing.assert_allclose(student.predict(image), told, atol=1e-2)  # one image: not centred, so roughly rounded
    assert "text" not in str(safetensors.torch.load((tmp_path / "student" / NETWORK).read_bytes()).keys())
    card = {"preprocess": json.loads(json.dumps(asdict(student.preprocess))), "format": "onnx", "classes": CLASSES}
    program, _ = code(card | {"mixture": asdict(Mixture()), "heads": "dho"}, "'x'", "'y'")
    image.save(tmp_path / "image.png")
    names = {"Image": Image, "ImageOps": ImageOps, "numpy": np}
    exec(program, names)
    np.testing.assert_array_equal(names["pixels_of"](tmp_path / "image.png")[0], clean)
    again = tmp_path / "again"
    student.save(again)
    np.testing.assert_array_equal(Student.load(again).predict(image), student.predict(image))


def test_a_teacher_whose_images_are_no_squares_is_refused(tmp_path):
    own = write_teacher(tmp_path / "own", (24, 32))
    fetch_weights(TeacherConfig(model=f"local-dir:{own}"), Place.of(tmp_path / "teacher"))
    with pytest.raises(UserError, match=r"student.features: teacher: its images are 24 x 32 pixels"):
        save_teachers_network(Place.of(tmp_path / "teacher"), "mine", Place.of(tmp_path / "kept"))


# ---------------------------------------------------------------- features as they are stored


def test_features_are_mapped_by_id_as_they_are_stored_and_missing_ones_named(tmp_path):
    rows = np.arange(12, dtype=np.float16).reshape(4, 3) / 7
    rows[2] = np.nan
    for number, some in enumerate((slice(0, 3), slice(3, 4))):
        ids, errors = ["d", "b", "c", "a"][some], [None, None, "broken", None][some]
        table = pa.table({"sample_id": ids, "error": pa.array(errors, pa.string()), "features": vectors(rows[some])})
        (Place.of(tmp_path / f"{number}") / "block.parquet").write_table(table)
    folders = [str(tmp_path / "0"), str(tmp_path / "1")]
    mapped = map_features(folders, pa.chunked_array([["a", "b", "d"]]), tmp_path / "mapped")
    assert mapped.dtype == np.float16
    np.testing.assert_array_equal(mapped, rows[[3, 1, 0]])
    with pytest.raises(UserError, match="1 images have no stored features, first 'c'"):
        map_features(folders, pa.chunked_array([["a", "c"]]), tmp_path / "mapped")


# ---------------------------------------------------------------- what is asked for


def whole(**changes):
    values = {
        "storage_path": "runs/x",
        "pool": {"path": "images", "format": "images"},
        "teacher": {"model": "ViT-B-32"},
        "student": {"backbone": "frozen", "steps": 10},
    }
    for key, value in changes.items():
        values[key] = values[key] | value
    return load(values)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"student": {"backbone": "resnet18", "hidden": 64}}, "student: hidden is for backbone: frozen"),
        ({"student": {"backbone": "resnet18", "features": "resnet34"}}, "student: features is for backbone: frozen"),
        ({"student": {"features": "resnet18", "pretrained": False}}, "what a trained network sees; pretrained: false"),
        ({"student": {"hidden": 0}}, "student.hidden: "),
        (
            {"student": {"teacher_views": 4}},
            "teacher_views: 4 are of augmented images, and backbone: frozen learns",
        ),
        ({"student": {"language_aware": True}}, "language_aware is for the image tower"),
        (
            {"teacher": {"rule": "table", "table": "t.parquet", "model": None}},
            "student.features: teacher, and teacher.rule: table has no features.*timm model name",
        ),
    ],
)
def test_what_would_not_be_looked_at_or_cannot_be_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        whole(**changes)


def test_what_means_nothing_to_heads_is_not_looked_at():
    assert whole(student={"pretrained": False, "image_size": 7, "crop_area": [0.1, 0.2]}).student.network is None
    student = whole(student={"features": "resnet18"}, teacher={"rule": "table", "table": "t", "model": None}).student
    assert student.network == "resnet18"
    assert whole(student={"backbone": "resnet34"}).student.network == "resnet34"


def test_the_network_is_tried_in_the_first_seconds_and_a_mistake_names_the_field(tmp_path):
    try_student(config_of())
    try_student(config_of(features="teacher"))
    check_weights(config_of(features="teacher"))
    with pytest.raises(UserError, match=r"student.features: timm has no model 'resnt18'; did you mean 'resnet18'"):
        check_weights(config_of(features="resnt18"))
    with pytest.raises(
        UserError, match=r"student.pretrained: timm has no weights for 'cspresnet50d'; give a checkpoint file$"
    ):
        check_weights(config_of(features="cspresnet50d"))
    with pytest.raises(
        UserError, match=r"student.image_size: test_vit does not take images of 33 .*another student.fea"
    ):
        try_student(config_of(features="test_vit", image_size=33))
    with pytest.raises(UserError, match=r"student.pretrained: no file '.*gone.pt'"):
        check_weights(config_of(pretrained=str(tmp_path / "gone.pt")))
