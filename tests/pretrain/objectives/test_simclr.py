import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from manifests.errors import Refusal
from pretrain.objectives.objective import Setting
from pretrain.objectives.simclr import simclr, simclr_loss
from tests.pretrain.objectives.ranks import TinyBackbone


def slow(one: np.ndarray, two: np.ndarray, tau: float) -> float:
    """Mean over the 2 B views, by the definition."""
    z = np.concatenate([one, two])
    size, terms = len(one), []
    for i in range(2 * size):
        partner = (i + size) % (2 * size)
        terms.append(-math.log(math.exp(z[i] @ z[partner] / tau) / sum(math.exp(z[i] @ z[a] / tau) for a in range(2 * size) if a != i)))
    return sum(terms) / len(terms)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 5), tau=st.sampled_from([0.1, 0.2, 0.5, 2.0]))
def test_value_and_gradient_against_brute_force(seed, size, tau):
    random = torch.Generator().manual_seed(seed)
    one, two = (normalize(torch.randn(size, 4, generator=random, dtype=torch.float64), dim=1) for _ in range(2))
    assert simclr_loss(one, two, tau=tau)[0].item() == pytest.approx(slow(one.numpy(), two.numpy(), tau), abs=1e-10)
    leaves = one.requires_grad_(), two.requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: simclr_loss(a, b, tau=tau)[0], leaves, atol=1e-6)


def test_the_reduction_is_the_mean_over_views():
    eye = torch.eye(4, dtype=torch.float64)  # four pairs, identical within, orthogonal across
    loss, logs = simclr_loss(eye, eye, tau=0.5)
    assert loss.item() == pytest.approx(0.594438, abs=1e-6)
    assert loss.item() == pytest.approx(math.log(1 + 6 * math.exp(-2)), abs=1e-12)
    assert logs["matched"] == 1


def test_equal_views_give_the_logarithm_of_the_candidates():
    same = torch.tensor([[1.0, 0.0]], dtype=torch.float64).expand(4, 2)
    assert simclr_loss(same, same, tau=0.5)[0].item() == pytest.approx(1.945910, abs=1e-6)


@pytest.mark.parametrize("given", [{"tau": 0.0}, {"width": 0}])
def test_values_out_of_range_are_refused(given):
    with pytest.raises(Refusal, match=r"(tau: 0.0|width: 0) is out of range.*\[bad-value\]"):
        simclr(TinyBackbone(), Setting(2, 10, 1, 4), **given)


def test_half_precision_around_it_changes_no_bit():
    one, two = normalize(torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0)), dim=2)
    wanted = simclr_loss(one, two, tau=0.1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert simclr_loss(one, two, tau=0.1)[0].equal(wanted)
