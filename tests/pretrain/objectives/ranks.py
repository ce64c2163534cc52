"""Two real gloo processes against one: the average of the ranks' gradients must be the gradient of the whole batch."""

import importlib
import multiprocessing
import os
import socket
from pathlib import Path

import torch
from torch import nn


class TinyBackbone(nn.Module):
    """Without batch norm, whose statistics are a rank's own."""

    width = 12

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, self.width))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


def without_batch_norm(module: nn.Module) -> None:
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d):
                setattr(parent, name, nn.Identity())


def made(name: str, parameters: dict, dtype: torch.dtype = torch.float64) -> nn.Module:
    from pretrain.objectives.objective import Setting

    torch.manual_seed(3)
    make = getattr(importlib.import_module(f"pretrain.objectives.{name}"), name)
    objective = make(TinyBackbone(), Setting(num_classes=4, smallest_arm=200, steps=10, batch=16), **parameters)
    without_batch_norm(objective)
    return objective.to(dtype)


def batch(step: int) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(step)
    views = [torch.rand(16, 3, 4, 4, generator=random, dtype=torch.float64) for _ in range(2)]
    labels, uids = torch.randint(0, 3, (16,), generator=random), torch.randint(0, 12, (16,), generator=random)
    labels[15], uids[15] = 3, 99  # the only one of its class: the ranks judge unequal numbers of queries
    return views, labels, uids


def gradients(objective: nn.Module, rank: int, ranks: int, steps: int = 3) -> tuple[float, list[torch.Tensor]]:
    """(loss, gradients) of the last of `steps` forward passes on this rank's part of each batch."""
    part = slice(rank * 16 // ranks, (rank + 1) * 16 // ranks)
    for step in range(steps):
        views, labels, uids = batch(step)
        objective.zero_grad()
        loss, _ = objective([v[part] for v in views], labels[part], uids[part])
        loss.backward()
    return loss.item(), [p.grad for p in objective.parameters() if p.grad is not None]


def worker(rank: int, port: int, cases: list[tuple[str, dict]], out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name, parameters in cases:
        loss, grads = gradients(made(name, parameters), rank, 2)
        for value in [total := torch.tensor(loss, dtype=torch.float64), *grads]:
            torch.distributed.all_reduce(value)
            value /= 2
        found[name] = {"loss": total, "grads": grads}
    if rank == 0:
        torch.save(found, out)
    torch.distributed.destroy_process_group()


def two_ranks(cases: list[tuple[str, dict]], folder: Path) -> dict:
    """Of each case the average over two ranks: {loss, grads}."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    out = str(folder / "rank0.pt")
    workers = [context.Process(target=worker, args=(rank, port, cases, out)) for rank in (0, 1)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(timeout=120)
        assert process.exitcode == 0
    return torch.load(out, weights_only=True)
