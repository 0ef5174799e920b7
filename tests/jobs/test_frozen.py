"""A campaign whose student is heads alone, on stored features: the same job and outputs, and no image read again."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from campaigns import lines_of, manifest_of, picks_of, table_of
from PIL import Image

from raykd.algo.heads import Mixture, probabilities
from raykd.models.saved import NETWORK, WEIGHTS
from raykd.models.student import Student, make_backbone, weights_of

CLASSES = ["blue", "green", "red"]
TOLERANCE = 5e-3  # of a probability: features are stored in half precision


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    """A checkpoint of a timm model, as if it had been trained."""
    file = tmp_path_factory.mktemp("network") / "test_resnet.safetensors"
    torch.manual_seed(5)
    module, _ = make_backbone("test_resnet")
    with torch.no_grad():
        module.train()(torch.randn(16, 3, 32, 32))
    file.write_bytes(weights_of(module))
    return file


@pytest.fixture(params=["timm"])
def frozen(request, settings, network) -> dict:
    """The settings of a campaign with a frozen student."""
    student = {
        "backbone": "frozen",
        "heads": "dho",
        "steps": 40,
        "batch_labeled": 4,
        "batch_unlabeled": 8,
        "checkpoints": 2,
        "learning_rate": 0.01,
        "hidden": 8,
    }
    if request.param == "timm":
        student |= {"features": "test_resnet", "pretrained": str(network), "image_size": 32, "predict_batch_size": 16}
    return settings | {"student": student}


def test_a_campaign_leaves_what_any_other_does_and_the_deployed_student_says_of_images_what_it_said_of_features(
    frozen, run_job
):
    ended = run_job(frozen, "progress=lines")
    print(ended.out, ended.err)
    assert ended.code == 0, ended.err
    place = Path(frozen["storage_path"])
    assert len(lines_of(place)) == 2
    for number in range(2):
        folder = place / f"round_{number:03d}"
        student = Student.load(folder / "student")
        table = table_of(folder / "predict")
        uris = dict(
            zip(manifest_of(place)["sample_id"].to_pylist(), manifest_of(place)["uri"].to_pylist(), strict=True)
        )
        images = [Image.open(uris[name]) for name in table["sample_id"].to_pylist()]
        logits = {name: np.array(table[name].to_pylist()) for name in ("ce_logits", "kd_logits")}
        told = probabilities(logits, student.mixture)
        d = np.abs(student.predict(images) - told).max()
        print(d, told.max(1)[:5])
        np.testing.assert_allclose(student.predict(images), told, atol=TOLERANCE)
