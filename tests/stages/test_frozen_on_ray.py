"""A frozen student on a cluster: Ray Train's workers and Ray's tasks give what this process gives."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch

from raykd.models.student import Student
from raykd.store.outputs import Trained, read_parts, rows_of

FROZEN = ("student.backbone=frozen", "student.pretrained=false", "student.hidden=6", "student.learning_rate=0.01")


@pytest.fixture
def train(seeded, finished):
    """A training of the finished campaign's first round; ``is_local``: without a cluster."""
    from raykd.stages import train
    from raykd.stages.encode import encode

    def run(name: str, *overrides: str, is_local: bool):
        _, campaign = seeded(*FROZEN, *overrides, name=name)
        campaign.session = SimpleNamespace(is_local=is_local, stall_s=600, ensure=lambda: None)
        encoded = encode(campaign, finished.pool)
        labels = finished.rounds[0].labels
        return campaign, encoded, train.train(campaign, 0, finished.pool, encoded, finished.teacher, labels)

    return run


def weights_of(trained: Trained) -> dict:
    return safetensors.torch.load((trained.place / "model.safetensors").read_bytes())


def losses_of(trained: Trained) -> list[float]:
    return [json.loads(line)["loss"] for line in (trained.place / "steps.jsonl").read_bytes().splitlines()]


def test_two_workers_of_a_cluster_train_what_this_process_does_and_a_task_a_part_predicts(train, finished, monkeypatch):
    from raykd.stages.predict import predict

    monkeypatch.setattr("raykd.stages.map_images.PART_ROWS", 20)  # so that there are several parts
    _, _, here = train("here", is_local=True)
    campaign, encoded, two = train("two", "student.num_workers=2", is_local=False)
    np.testing.assert_allclose(losses_of(two), losses_of(here), rtol=1e-4)
    assert len(losses_of(two)) == 6
    for name, value in weights_of(here).items():
        np.testing.assert_allclose(weights_of(two)[name], value, rtol=1e-3, atol=1e-4, err_msg=name)

    told = predict(campaign, 0, finished.pool, encoded, two)
    assert len(told.parts) == 3
    features_ND = rows_of(encoded.parts, told.ids, ("features",))["features"]
    given_ND, logits = Student.load(two.place).outputs_of_features(features_ND)
    for name, expected in logits.items():
        np.testing.assert_allclose(told.logits(told.ids)[name], expected, atol=1e-5)
    found_ND = rows_of(told.parts, told.ids, ("features",))["features"]
    np.testing.assert_allclose(found_ND, given_ND, rtol=2e-3, atol=1e-4)  # in half precision
    rows = read_parts(told.parts, ["sample_id", "split", "error"])
    assert rows.num_rows == 49
    splits = dict(zip(rows["sample_id"].to_pylist(), rows["split"].to_pylist(), strict=True))
    manifest = finished.pool.manifest
    assert splits == dict(zip(manifest["sample_id"].to_pylist(), manifest["split"].to_pylist(), strict=True))
