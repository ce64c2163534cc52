"""Optimisers and the learning rate: AdamW or SGD, cosine with warm-up in steps, no decay for one-dimensional parameters."""

import math
from typing import Literal

import torch
from torch import nn

from manifests.errors import Refusal


def optimizer(
    module: nn.Module,
    *,
    name: Literal["sgd", "adamw"] = "sgd",
    lr: float = 0.1,
    weight_decay: float = 5e-4,
    momentum: float = 0.9,
    betas: tuple[float, ...] = (0.9, 0.999),
    warmup: float = 0.1,
    clip: float | None = None,
) -> torch.optim.Optimizer:
    """AdamW or SGD with Nesterov momentum over the trainable parameters of `module`.

    name            sgd or adamw
    lr              peak learning rate (see `rate`)
    weight_decay    for parameters of two dimensions and more; biases and normalisations get none
    momentum        of sgd; betas: of adamw
    warmup          share of all steps over which the rate rises (see `rate`); read by the loop
    clip            largest norm of the whole gradient; null = off; read by the loop
    Errors          [bad-value] for a number out of range
    """
    limits = {"lr": (lr, 0.0, 1e3), "weight_decay": (weight_decay, 0.0, 1e3), "momentum": (momentum, 0.0, 0.9999), "warmup": (warmup, 0.0, 1.0)}
    limits["clip"] = (1.0 if clip is None else clip, 1e-12, 1e12)
    for what, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise Refusal("bad-value", f"optimizer: {what}", f"{value!r} is out of range", f"it takes a number from {least:g} to {most:g}")
    if len(betas) != 2 or not all(0 <= b < 1 for b in betas):
        raise Refusal("bad-value", "optimizer: betas", f"{list(betas)} are no betas", "it takes two numbers from 0 to below 1")
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]))
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=momentum > 0, foreach=True)


def rate(step: int, steps: int, *, lr: float, warmup: float) -> float:
    """Learning rate of optimiser step `step` (from 0) of `steps`: linear warm-up over round(warmup * steps) steps, then half a cosine down to 0."""
    rising = round(warmup * steps)
    if step < rising:
        return lr * (step + 1) / rising
    return lr * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
