"""What this machine does for a training: its threads, its cuDNN, and how arrays reach its device."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

CUDA_BYTES = 4 << 30  # what a training of a small net takes of the card, its context included


@contextmanager
def settled(threads: int | None) -> Iterator[None]:
    """CPU threads, and from cuDNN only what adds in the same order every time; both as before afterwards."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.deterministic, cudnn.benchmark
    torch.set_num_threads(threads or min(before[0], os.cpu_count() or 1))
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]


def sent(array: np.ndarray, device: str) -> Tensor:
    """`array` on `device`. CUDA copies from locked pages: from ordinary memory it would first end all that is under way."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device == "cuda" else tensor.to(device)


def side_by_side(jobs: int, device: str) -> int:
    """`jobs` processes, but on CUDA no more than the card's free memory holds."""
    if device == "cpu" or not torch.cuda.is_available():
        return jobs
    return max(1, min(jobs, torch.cuda.mem_get_info()[0] // CUDA_BYTES))


def numbers(rows: list[dict[str, int | float | Tensor]]) -> list[dict[str, float]]:
    """The rows with plain numbers for their tensors; those on a device come in one copy."""
    there = [value for row in rows for value in row.values() if isinstance(value, Tensor) and value.device.type != "cpu"]
    come = iter(torch.stack([value.float() for value in there]).tolist()) if there else iter(())
    return [{name: _number(value, come) for name, value in row.items()} for row in rows]


def _number(value: int | float | Tensor, come: Iterator[float]) -> float:
    if isinstance(value, Tensor):
        return value.item() if value.device.type == "cpu" else next(come)
    return value
