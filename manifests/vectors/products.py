"""Tiles of cosines in low precision, from the CPU or from a device: which pairs may reach a floor. float64 decides about them later (`tiles`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from manifests.vectors.store import Vectors, float32_error

BLOCK = 4096  # columns of a tile on the CPU, and of one that comes back from a device
WIDE = 1 << 17  # columns of a product on a device
HELD = 0.5  # of a device's free memory: what the vectors may take there; where they do not fit they are sent block by block


class Tile(NamedTuple):
    """Cosines (a, c) float32 of the rows rows[at] with `columns`; every one that is left out lies below the floor that was asked for."""

    at: np.ndarray
    columns: np.ndarray
    scores: np.ndarray


class OnCpu:
    """float32 products of whole blocks. `error`: the most that a score is off; `high`: the most rows that are asked for at once."""

    def __init__(self, z: Vectors, high: int) -> None:
        self.z, self.error = z, float32_error(z.dim)
        self._room = np.empty(
            min(len(z), high) * min(len(z), max(high, BLOCK)), np.float32
        )  # fresh memory for each would cost a good part of the product

    def tiles(self, rows: np.ndarray, columns: np.ndarray, floor: float) -> Iterator[Tile]:
        """All of rows with columns, in the order of the columns. A tile is overwritten by the next one."""
        unit = self.z.unit(rows)
        for first in range(0, len(columns), BLOCK):
            some = columns[first : first + BLOCK]
            yield Tile(np.arange(len(rows)), some, self._product(unit, self.z.unit(some)))

    def triangle(self, rows: np.ndarray, floor: float) -> Iterator[Tile]:
        """Each of `rows` with those before it; in place of the others stands -2."""
        unit = self.z.unit(rows)
        scores = self._product(unit, unit)
        scores[np.arange(len(rows))[:, None] <= np.arange(len(rows))] = -2
        yield Tile(np.arange(len(rows)), rows, scores)

    def _product(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        return np.matmul(left, right.T, out=self._room[: len(left) * len(right)].reshape(len(left), len(right)))


class OnDevice:
    """float16 products with float32 sums, as matrix units make them; from the device come the rows and columns alone that hold a score near the floor or above.

    error   (Higham) two roundings of the factors, one of the result, d of the sum, each cut off rather than rounded
    """

    def __init__(self, z: Vectors, device: str) -> None:
        import torch

        self.z, self.device = z, device
        self.error = 2.0**-10 + 2.0**-11 + 2.0**-14 + 2 * float32_error(z.dim)
        free = torch.cuda.mem_get_info()[0] if device.startswith("cuda") else 1 << 62
        self.held = None
        if 2 * len(z) * z.dim <= HELD * free:
            self.held = torch.empty((len(z), z.dim), dtype=torch.float16, device=device)
            for first in range(0, len(z), 1 << 16):
                at = slice(first, min(first + (1 << 16), len(z)))
                self.held[at] = self._sent(at)

    def tiles(self, rows: np.ndarray, columns: np.ndarray, floor: float) -> Iterator[Tile]:
        """As on the CPU, less what lies below `floor`."""
        left = self._at(rows)
        for first in range(0, len(columns), WIDE):
            some = columns[first : first + WIDE]
            with _whole_sums():
                scores = left @ self._at(some).T
            yield from self._near(scores, some, floor)

    def triangle(self, rows: np.ndarray, floor: float) -> Iterator[Tile]:
        """As on the CPU, less what lies below `floor`."""
        left = self._at(rows)
        with _whole_sums():
            scores = left @ left.T
        scores.masked_fill_(scores.new_ones(scores.shape).triu_().bool(), -2)
        yield from self._near(scores, rows, floor)

    def _at(self, rows: np.ndarray) -> Any:
        """(m, d) float16 of ascending rows, on the device."""
        import torch

        if self.held is None:
            return self._sent(rows)
        if len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return self.held[int(rows[0]) : int(rows[-1]) + 1]
        return self.held[torch.from_numpy(rows).to(self.device)]

    def _sent(self, rows: "np.ndarray | slice") -> Any:
        import torch

        return torch.from_numpy(self.z.unit(rows)).to(self.device).half()

    def _near(self, scores: Any, columns: np.ndarray, floor: float) -> Iterator[Tile]:
        low = floor - self.error - 2.0**-11  # a float16 score is compared with this number's nearest float16
        at = (scores.amax(1) >= low).nonzero()[:, 0]
        if not len(at):
            return
        scores = scores[at]
        place = (scores >= low).any(0).nonzero()[:, 0]
        rows, places = at.cpu().numpy(), place.cpu().numpy()
        for first in range(0, len(places), BLOCK):
            yield Tile(rows, columns[places[first : first + BLOCK]], scores[:, place[first : first + BLOCK]].float().cpu().numpy())


def products(z: Vectors, high: int, device: str = "cpu") -> OnCpu | OnDevice:
    """Where the cosines of `z` (n, d) are made, at most `high` rows of them at once."""
    return OnCpu(z, high) if device == "cpu" else OnDevice(z, device)


@contextmanager
def _whole_sums() -> Iterator[None]:
    """Partial sums of float16 products stay in float32 meanwhile."""
    import torch

    matmul: Any = torch.backends.cuda.matmul
    before = matmul.allow_fp16_reduced_precision_reduction
    matmul.allow_fp16_reduced_precision_reduction = False
    try:
        yield
    finally:
        matmul.allow_fp16_reduced_precision_reduction = before
