import math

import pytest
import torch
from torch import nn

from manifests.errors import Refusal
from pretrain.optim import optimizer, rate


def module() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def test_parameters_of_one_dimension_do_not_decay_and_frozen_ones_stay_out():
    net = module()
    net[2].weight.requires_grad_(False)
    for name in ("sgd", "adamw"):
        groups = optimizer(net, name=name, weight_decay=0.3).param_groups
        assert {tuple(p.shape) for p in groups[0]["params"]} == {(4, 3, 3, 3)} and groups[0]["weight_decay"] == 0.3
        assert all(p.ndim == 1 for p in groups[1]["params"]) and len(groups[1]["params"]) == 4 and groups[1]["weight_decay"] == 0


def test_one_nesterov_step_is_the_formula():
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 2.0)
    search = optimizer(net, lr=0.1, weight_decay=0.5, momentum=0.9)
    for velocity, weight in ((2.0, 2 - 0.1 * (2 + 0.9 * 2)), (None, None)):
        net.weight.grad = torch.ones(1, 1)
        before = net.weight.item()
        search.step()
        gradient = 1 + 0.5 * before
        if weight is not None:
            assert net.weight.item() == pytest.approx(weight)  # first step: the velocity is the gradient
            last = gradient
        else:
            velocity = 0.9 * last + gradient
            assert net.weight.item() == pytest.approx(before - 0.1 * (gradient + 0.9 * velocity))


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine():
    rates = [rate(step, 100, lr=0.4, warmup=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert rates[10] == 0.4 and max(rates) == 0.4
    assert rates[10 + 45] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True) and 0 < rates[-1] < 0.001
    assert rate(0, 1, lr=0.4, warmup=0.1) == 0.4 and rate(3, 10, lr=1, warmup=0) == pytest.approx(0.5 * (1 + math.cos(0.3 * math.pi)))


@pytest.mark.parametrize(
    "given", [{"lr": -1.0}, {"momentum": 1.0}, {"warmup": 1.5}, {"clip": 0.0}, {"betas": (0.9,)}, {"betas": (0.9, 1.0)}, {"weight_decay": -1.0}]
)
def test_values_out_of_range_are_refused(given):
    with pytest.raises(Refusal, match=r"optimizer: .*\[bad-value\]"):
        optimizer(module(), **given)
