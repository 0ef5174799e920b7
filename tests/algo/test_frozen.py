"""What stands between stored features and the heads: one shift, one factor, perhaps a hidden layer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from raykd.algo import frozen
from raykd.algo.frozen import Frozen, centring


def some(num=50, width=7, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, width)) * rng.uniform(0.1, 3, width) + rng.normal(size=width)).astype(np.float16)


def out_of(module, features_ND):
    with torch.no_grad():
        return module(torch.from_numpy(features_ND.astype(np.float32))).numpy()


def test_the_mean_and_the_deviation_are_numpys_however_many_rows_are_read_at_a_time(monkeypatch):
    features_ND = some()
    exact = features_ND.astype(np.float64)
    for rows in (1, 7, 50, 1000):
        monkeypatch.setattr(frozen, "ROWS", rows)
        mean_D, deviation = centring(features_ND)
        np.testing.assert_allclose(mean_D, exact.mean(axis=0), rtol=1e-12)
        assert deviation == pytest.approx(np.sqrt(np.mean((exact - exact.mean(axis=0)) ** 2)), rel=1e-12)


@pytest.mark.parametrize("value", [0, 1, 0.1, 60000])
def test_features_that_are_all_the_same_are_only_shifted(value):
    features_ND = np.full((9, 3), value, np.float16)
    mean_D, deviation = centring(features_ND)
    assert mean_D.tolist() == features_ND[0].tolist()
    assert deviation == 1
    backbone = Frozen(3)
    backbone.centre(features_ND)
    assert not out_of(backbone, features_ND).any()


def test_heads_are_given_numbers_about_0_of_size_1_with_the_features_own_distances_up_to_a_factor():
    features_ND = some()
    backbone = Frozen(7)
    backbone.centre(features_ND)
    given_ND = out_of(backbone, features_ND)
    np.testing.assert_allclose(given_ND.mean(axis=0), 0, atol=1e-5)
    assert np.mean(given_ND**2) == pytest.approx(1, rel=1e-5)
    ratios = np.linalg.norm(given_ND[1:] - given_ND[0], axis=1) / np.linalg.norm(
        features_ND[1:].astype(np.float64) - features_ND[0], axis=1
    )
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)


def test_features_of_another_size_and_about_another_point_are_the_same_to_the_heads():
    features_ND = some().astype(np.float32)
    one, other = Frozen(7), Frozen(7)
    one.centre(features_ND)
    other.centre(300 * features_ND + 5)
    np.testing.assert_allclose(out_of(one, features_ND), out_of(other, 300 * features_ND + 5), atol=1e-4)


def test_a_hidden_layer_is_an_affine_map_and_gelu_on_what_is_centred():
    features_ND = some()
    backbone = Frozen(7, hidden=4)
    backbone.centre(features_ND)
    assert backbone.width == 4
    assert Frozen(7).width == 7
    mean_D, deviation = centring(features_ND)
    centred = torch.from_numpy((features_ND.astype(np.float64) - mean_D) / deviation).float()
    expected = F.gelu(centred @ backbone.hidden.weight.T + backbone.hidden.bias).detach().numpy()
    np.testing.assert_allclose(out_of(backbone, features_ND), expected, atol=1e-5)


@pytest.mark.parametrize("unit", [True, False])
def test_a_network_under_it_turns_images_into_the_features_that_were_stored(unit):
    torch.manual_seed(0)
    network = nn.Linear(5, 7)
    images = torch.randn(20, 5)
    stored = network(images).detach()
    stored = F.normalize(stored, dim=-1) if unit else stored
    behind, whole = Frozen(7, 4), Frozen(7, 4, network, unit)
    behind.centre(stored.numpy())
    whole.load_state_dict(behind.state_dict() | {f"network.{name}": v for name, v in network.state_dict().items()})
    torch.testing.assert_close(whole(images), behind(stored))
