"""The calibration temperature is where the labels are likeliest, with a prior that few labels cannot outvote."""

import numpy as np
import pytest

from raykd.algo.calibration import DEVIATIONS, fit_calibration
from raykd.algo.heads import Mixture, probabilities, softmax
from raykd.algo.metrics import accuracy, calibration_error, log_loss

MIXTURE = Mixture(0.3, 2.0)


def students_logits(seed, num, scale=1.0, num_classes=5):
    """Two heads, and labels drawn from their mixture, tempered by ``scale``."""
    rng = np.random.default_rng(seed)
    logits = {name: 2 * rng.normal(size=(num, num_classes)) for name in ("ce_logits", "kd_logits")}
    probs_NC = probabilities(logits, Mixture(MIXTURE.ce_weight, MIXTURE.temperature, scale)).astype(float)
    labels_N = np.array([rng.choice(num_classes, p=p / p.sum()) for p in probs_NC])
    return logits, labels_N


def loss_of(logits, mixture, labels_N, calibration):
    """Log-loss and prior, written out."""
    probs_NC = probabilities(logits, mixture).astype(float)
    powers_NC = probs_NC ** (1 / calibration)
    own_N = powers_NC[np.arange(len(labels_N)), labels_N] / powers_NC.sum(axis=1)
    return -np.log(own_N).sum() + 0.5 * (np.log(calibration) / DEVIATIONS[0]) ** 2


@pytest.mark.parametrize("scale", [0.4, 1.0, 2.5])
def test_many_labels_tell_the_temperature_that_they_were_drawn_with(scale):
    logits, labels_N = students_logits(0, 6000, scale)
    assert fit_calibration(logits, MIXTURE, labels_N) == pytest.approx(scale, rel=0.06)


@pytest.mark.parametrize("num", [1, 3, 20, 150])
@pytest.mark.parametrize("columns", [("ce_logits", "kd_logits"), ("ce_logits",)])
def test_no_other_temperature_of_a_fine_grid_is_better(num, columns):
    logits, labels_N = students_logits(num, num, 0.5)
    logits = {name: logits[name] for name in columns}
    found = loss_of(logits, MIXTURE, labels_N, fit_calibration(logits, MIXTURE, labels_N))
    assert found <= min(loss_of(logits, MIXTURE, labels_N, c) for c in np.exp(np.linspace(-3, 3, 601))) + 1e-6


def test_the_log_loss_is_convex_in_one_over_the_temperature():
    logits, labels_N = students_logits(1, 60)
    log_probs_NC = np.log(probabilities(logits, MIXTURE).astype(float))
    losses = [-np.log(softmax(s * log_probs_NC)[np.arange(60), labels_N]).sum() for s in np.linspace(0.05, 8, 200)]
    assert np.diff(losses, 2).min() > -1e-9


def test_a_mixture_that_is_calibrated_already_is_taken_as_if_it_were_not():
    logits, labels_N = students_logits(2, 300)
    twice = Mixture(MIXTURE.ce_weight, MIXTURE.temperature, 3.0)
    assert fit_calibration(logits, twice, labels_N) == fit_calibration(logits, MIXTURE, labels_N)


@pytest.mark.parametrize(("right", "least", "most"), [(True, 0.1, 0.99), (False, 1.01, 8.0)])
@pytest.mark.parametrize("num", [1, 10])
def test_labels_that_are_all_right_or_all_wrong_make_nothing_certain(right, least, most, num):
    logits = {"logits": np.tile([1.0, 0.0, -1.0], (num, 1))}
    labels_N = np.full(num, 0 if right else 2)
    assert least < fit_calibration(logits, Mixture(), labels_N) < most


def test_probabilities_of_zero_are_no_trouble_and_no_labels_leave_all_as_it_is():
    logits = {"logits": np.array([[2000.0, 0.0], [0.0, 3000.0]])}
    assert 1 < fit_calibration(logits, Mixture(), np.array([1, 1])) < np.inf
    assert fit_calibration({"logits": np.empty((0, 4))}, Mixture(), np.empty(0, np.int64)) == 1.0


def test_calibration_mends_confidence_and_changes_no_choice():
    logits, labels_N = students_logits(3, 4000, 0.4)
    calibrated = Mixture(MIXTURE.ce_weight, MIXTURE.temperature, fit_calibration(logits, MIXTURE, labels_N[:4000]))
    before_NC, after_NC = (probabilities(logits, each) for each in (MIXTURE, calibrated))
    assert accuracy(before_NC, labels_N) == accuracy(after_NC, labels_N)
    assert calibration_error(before_NC, labels_N) > 0.15
    assert calibration_error(after_NC, labels_N) < 0.03
    assert log_loss(after_NC, labels_N) < log_loss(before_NC, labels_N) - 0.05


@pytest.mark.slow
def test_twenty_labels_of_a_calibrated_student_do_little_harm():
    costs = []
    for seed in range(20):
        logits, labels_N = students_logits(100 + seed, 2020)
        few = {name: part[:20] for name, part in logits.items()}
        found = Mixture(MIXTURE.ce_weight, MIXTURE.temperature, fit_calibration(few, MIXTURE, labels_N[:20]))
        rest = {name: part[20:] for name, part in logits.items()}
        before, after = (log_loss(probabilities(rest, each), labels_N[20:]) for each in (MIXTURE, found))
        costs.append(after - before)
    assert np.mean(costs) < 0.03
