"""The contract of an objective, and what several ranks must agree on.

An objective is two things in one file: `NAME_loss(z, ...) -> (loss, logs)`, pure, and a small module with its state,
made by the function `NAME(backbone, setting, *, ...)`, whose keyword parameters are its configuration.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

Logs = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What an objective may know about the run that it serves.

    num_classes     labels are 0 .. num_classes - 1; counted before any subset is taken, so that all arms of a comparison agree
    smallest_arm    samples in the smallest training set of the comparison; in a single training its own number of samples
    steps, batch    optimiser steps in all, samples a step over all ranks
    """

    num_classes: int
    smallest_arm: int
    steps: int
    batch: int


class Objective(nn.Module):
    """Base of every objective's module: `state_dict` is all that it remembers.

    backbone        trained and kept: (b, 3, h, w) float32 in [0, 1] -> (b, width)
    num_views       how many views of each sample `forward` wants
    needs_labels    whether a sample without a label must be refused
    """

    num_views = 1
    needs_labels = False

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, views: list[Tensor], labels: Tensor, uids: Tensor) -> tuple[Tensor, Logs]:
        """The loss of one batch and scalars to log, detached.

        views           `num_views` tensors (b, 3, h, w) float32 in [0, 1]
        labels          (b,) int64
        uids            (b,) int64, the first 8 bytes of the uid, in the uid's own order
        """
        raise NotImplementedError


def mlp(width: int, out: int | None = None) -> nn.Sequential:
    """Projector: linear, batch norm, ReLU, linear; hidden width = input width; `out` defaults to `width`."""
    return nn.Sequential(nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(inplace=True), nn.Linear(width, out or width))


def unit(x: Tensor) -> Tensor:
    """Rows of norm 1, never in half precision: they are exponentiated."""
    return functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


def full_precision(z: Tensor) -> torch.autocast:
    """A block in which autocast is off on the device of `z`: bfloat16 similarities have two digits, and neighbours are chosen by them."""
    return torch.autocast(z.device.type, enabled=False)


def num_ranks() -> int:
    """How many processes train together; 1 without `torch.distributed`."""
    distributed = torch.distributed
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return torch.distributed.get_rank() if num_ranks() > 1 else 0


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without gradient; every rank must hold the same number of rows."""
    if num_ranks() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(num_ranks())]
    torch.distributed.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


def gather_with_gradient(x: Tensor) -> Tensor:
    """As `gather`, but the gradient of every rank's loss reaches the rows of the rank that owns them."""
    return x if num_ranks() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """Forward: rows of all ranks. Backward: the sum of all ranks' gradients, of which each keeps its own rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.rows = len(x)
        return gather(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        total = gradient.contiguous()
        torch.distributed.all_reduce(total)
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows]


def mean_over_ranks(loss: Tensor, count: Tensor) -> Tensor:
    """A local mean over `count` terms, scaled so that the average over ranks is the mean over all ranks' terms."""
    if num_ranks() == 1:
        return loss
    total = count.detach().clone().to(loss.dtype)
    torch.distributed.all_reduce(total)
    return loss * (count * num_ranks() / total.clamp(min=1))
