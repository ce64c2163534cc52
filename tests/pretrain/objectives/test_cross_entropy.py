import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import Refusal
from pretrain.objectives.cross_entropy import cross_entropy, cross_entropy_loss
from pretrain.objectives.objective import Setting
from tests.pretrain.objectives.ranks import TinyBackbone

SETTING = Setting(num_classes=3, smallest_arm=100, steps=10, batch=8)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 6), rows=st.integers(1, 7), smoothing=st.sampled_from([0.0, 0.1, 0.5]))
def test_value_and_gradient_are_the_definition(seed, classes, rows, smoothing):
    random = np.random.default_rng(seed)
    logits, labels = random.normal(0, 3, (rows, classes)), random.integers(0, classes, rows)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    target = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
    value = np.mean([-sum(target[i, c] * math.log(p[i, c]) for c in range(classes)) for i in range(rows)])

    z = torch.tensor(logits, requires_grad=True)
    loss, logs = cross_entropy_loss(z, torch.tensor(labels), smoothing=smoothing)
    loss.backward()

    assert loss.item() == pytest.approx(value, abs=1e-12)
    np.testing.assert_allclose(z.grad, (p - target) / rows, atol=1e-12)
    assert logs["accuracy"].item() == pytest.approx((logits.argmax(1) == labels).mean())


def test_the_projector_stands_between_backbone_and_classifier():
    plain, rival = cross_entropy(TinyBackbone(), SETTING), cross_entropy(TinyBackbone(), SETTING, projector=True)
    count = lambda objective: sum(p.numel() for p in objective.head.parameters())
    assert count(plain) == 12 * 3 + 3
    assert count(rival) == count(plain) + 12 * 12 + 2 * 12 + (12 * 12 + 12)
    assert "head.0.0.weight" in rival.state_dict()


def test_a_smoothing_out_of_range_is_refused():
    with pytest.raises(Refusal, match=r"smoothing: 1.0 is out of range.*\[bad-value\]"):
        cross_entropy(TinyBackbone(), SETTING, smoothing=1.0)


def test_no_second_rectifier_stands_before_the_classifier():
    head = cross_entropy(TinyBackbone(), SETTING, projector=True).head
    assert [type(m).__name__ for m in head.modules() if not list(m.children())] == ["Linear", "BatchNorm1d", "ReLU", "Linear", "Linear"]
