"""What this machine has for a build: its device, its memory, and how much of that a build may use."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from manifests.errors import Refusal

CUDA_BYTES, CUDA_HOST_BYTES = 4 << 30, 2 << 30  # what a process with an encoder takes of the card, and of the machine's private memory


@dataclass(frozen=True)
class Options:
    """How a build runs; none of it reaches a verdict."""

    workers: int
    device: str
    memory: int
    events: Path
    quiet: bool = False
    recheck: bool = False


def resolve_device(device: str) -> str:
    """`auto` -> cuda, mps or cpu. Raises `Refusal` [bad-value] for a device that is not there."""
    if device == "cpu":
        return "cpu"
    import torch

    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if device == "auto":
        return next(name for name, there in have.items() if there)
    if not have.get(device):
        raise Refusal("bad-value", "--device", f"{device} is not available here", "auto, cpu, cuda or mps", "`curate doctor` says what is there")
    return device


def device_workers(device: str, workers: int, memory: int) -> int:
    """How many processes embed side by side: one with all threads, but on CUDA as many of `workers` as the card's free memory and `memory` hold.

    One process decodes less than such a card embeds. How many there are reaches no byte of the run.
    """
    if device != "cuda":
        return 1
    import torch

    free, _ = torch.cuda.mem_get_info()
    return max(1, min(workers, free // CUDA_BYTES, memory // CUDA_HOST_BYTES))


def memory_bytes(given: str | int | None) -> int:
    """`4GiB`, `500MB` or bytes; None = half of the machine or cgroup. Raises `Refusal` [bad-value]."""
    if isinstance(given, int):
        return given
    if given is None:
        return machine_memory() // 2
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:([KMGT])(i?)B?|B)?\s*", given, re.I)
    if not match:
        raise Refusal("bad-value", "--memory", f"{given!r}", "bytes, or a number with KiB, MiB, GiB or TiB")
    power = " KMGT".index((match[2] or " ").upper())
    return int(float(match[1]) * (1024 if match[3] or not match[2] else 1000) ** power)


def machine_memory() -> int:
    """Bytes of this machine, or of its cgroup where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists():
        text = limit.read_text().strip()
        if text.isdigit():
            total = min(total, int(text))
    return total
