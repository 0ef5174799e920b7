"""An exported student says what the student says, and what does not is never left behind."""

import numpy as np
import pytest
import torch

from raykd.algo.dho import StudentNet
from raykd.algo.heads import HEADS, Mixture
from raykd.models.export import Deployable, mixed
from raykd.models.student import Student, make_backbone, preprocess_of, set_image_size

CLASSES = ["cat", "dog", "é"]
MIXTURE = Mixture(0.3, 0.75, 1.7)


def make_student(backbone="test_resnet", size=32, mixture=MIXTURE, heads="dho"):
    torch.manual_seed(0)
    module, width = make_backbone(backbone)
    set_image_size(module, size)
    model = StudentNet(module, width, len(CLASSES), heads)
    with torch.no_grad():  # running statistics that a fresh model does not have; heads that are sure of something
        model.train()(torch.randn(8, 3, size, size))
        for parameter in model.parameters():
            if parameter.shape[0] == len(CLASSES):
                parameter.mul_(6)
    return Student(model.eval(), backbone, CLASSES, preprocess_of(module, size, "bicubic"), mixture)


def pixels(num=7, size=32):
    return np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8)


# ---------------------------------------------------------------- the network in one piece


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("mixture", [MIXTURE, Mixture(0, 2), Mixture(1, 2, 0.3), Mixture(0.5, 0.5, 0.2)])
def test_the_network_in_one_piece_gives_the_students_probabilities(heads, mixture):
    student = make_student(heads=heads, mixture=mixture)
    probs_NC = Deployable(student)(torch.from_numpy(pixels()))
    assert probs_NC.dtype == torch.float32
    assert np.ptp(student.probabilities(pixels()), axis=0).max() > 0.01  # it says something of them
    np.testing.assert_allclose(probs_NC.detach().numpy(), student.probabilities(pixels()), atol=1e-6)


def test_a_calibration_finds_something_to_divide_where_a_probability_rounds_to_zero():
    both = [torch.tensor([[0.0, 300.0, 0.0]]), torch.tensor([[0.0, 300.0, 0.0]])]
    probs_NC = mixed(both, Mixture(0.5, 1.0, 300.0))
    want_C = np.exp([-1, 0, -1])
    np.testing.assert_allclose(probs_NC.numpy()[0], want_C / want_C.sum(), atol=1e-6)
