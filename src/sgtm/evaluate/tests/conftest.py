"""A tiny model with masking, in evaluation as in training mode."""

import pytest

from sgtm.model.masking import SGTM
from sgtm.train.tests.conftest import masked, tiny_model


@pytest.fixture
def model():
    model = tiny_model()
    for p in model.parameters():  # biases too, so that nothing is zero by accident
        p.data.normal_(0, 0.3)
    return model


@pytest.fixture
def sgtm(model) -> SGTM:
    return masked(model)
