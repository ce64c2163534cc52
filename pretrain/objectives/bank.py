"""A first-in first-out memory of features with their labels and uids."""

import torch
from torch import Tensor, nn


class Bank(nn.Module):
    """Ring of the last `size` features; a checkpoint holds all of it.

    z       (size, width) float32, unit norm as given; `label` and `uid` (size,) int64
    A batch of any length may be added: it wraps without loss, and of a batch longer than the ring the last `size` rows remain.
    """

    z: Tensor
    label: Tensor
    uid: Tensor
    added: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("z", torch.zeros(size, width))
        self.register_buffer("label", torch.full((size,), -1))
        self.register_buffer("uid", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("added", torch.zeros((), dtype=torch.int64))
        self._count: int | None = None  # `added` as a plain number: reading the tensor would wait for the device at each step

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self._count = None

    @property
    def count(self) -> int:
        """Rows ever added."""
        if self._count is None:
            self._count = int(self.added)
        return self._count

    def __len__(self) -> int:
        return min(self.count, self.size)

    @torch.no_grad()
    def add(self, z: Tensor, label: Tensor, uid: Tensor) -> None:
        """Append rows; the oldest fall out."""
        first = max(len(z) - self.size, 0)
        slots = (torch.arange(first, len(z), device=z.device) + self.count) % self.size
        self.z[slots] = z[first:].to(self.z.dtype)
        self.label[slots] = label[first:]
        self.uid[slots] = uid[first:]
        self._count = self.count + len(z)
        self.added.fill_(self._count)

    def rows(self) -> tuple[Tensor, Tensor, Tensor]:
        """(z, label, uid) of the rows that are filled, oldest slot order; views, not copies."""
        n = len(self)
        return self.z[:n], self.label[:n], self.uid[:n]
