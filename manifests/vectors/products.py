"""Tiles of cosines in low precision, from the CPU or from a device: which pairs may reach a floor. float64 decides about them later (`tiles`)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import to_device

BLOCK = 4096  # columns of a tile on the CPU, and of one that comes back from a device
WIDE = 1 << 20  # columns of a product on a device, at most
HELD = 0.5  # of a device's free memory: what the vectors may take there; where they do not fit they are sent block by block
SENT = 1 << 16  # rows that are sent together
A_SCORE = 16  # bytes on the device: two products, what is taken out of one, and a margin
FEW = 1 << 22  # scores of a product that are fetched before the next one is begun


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

    device  as torch names it; "cpu:0" is the CPU by way of torch
    error   (Higham) two roundings of the factors, one of the result, d of the sum, each cut off rather than rounded
    """

    def __init__(self, z: Vectors, device: str, high: int = BLOCK) -> None:
        import torch

        self.z, self.device = z, device
        self.error = 2.0**-10 + 2.0**-11 + 2.0**-14 + 2 * float32_error(z.dim)
        free, self.held = _free(device), None
        if 2 * len(z) * z.dim <= HELD * free:
            self.held = torch.empty((len(z), z.dim), dtype=torch.float16, device=device)
            free -= 2 * len(z) * z.dim
            square = np.empty(len(z))
            for first in range(0, len(z), SENT):
                at = slice(first, min(first + SENT, len(z)))
                self.held[at], square[at] = self._sent(at)
            z.square = square
        high = max(1, min(high, len(z)))
        self._wide = min(max(high, len(z)), max(BLOCK, min(WIDE, free // (A_SCORE * high))))
        self._room = high * max(high, self._wide)  # scores of a product
        self._rooms: list[Any] = []  # where they go: new memory for each would cost more than it

    def tiles(self, rows: np.ndarray, columns: np.ndarray, floor: float) -> Iterator[Tile]:
        """As on the CPU, less what lies below `floor`. The device is at the next product while the caller looks at what the last one gave."""
        left, low = self._at(rows), self._low(floor)
        found: Iterator[Tile] = iter(())
        for first in range(0, len(columns), self._wide):
            some = columns[first : first + self._wide]
            scores = self._into_room(left, self._at(some))
            yield from found
            found = self._near(scores, some, low)
        yield from found

    def triangle(self, rows: np.ndarray, floor: float) -> Iterator[Tile]:
        """As on the CPU, less what lies below `floor`."""
        left = self._at(rows)
        scores = self._into_room(left, left)
        scores.masked_fill_(scores.new_ones(scores.shape).triu_().bool(), -2)
        yield from self._near(scores, rows, self._low(floor))

    def pairs(self, rows: np.ndarray, columns: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(r, c, score float32) of all pairs (rows[r], columns[c]) that may reach `floor`, of so many as the device holds at once."""
        scores = self._product(self._picked(rows), self._picked(columns), None)
        r, c = (scores >= self._low(floor)).nonzero(as_tuple=True)
        return r.cpu().numpy(), c.cpu().numpy(), scores[r, c].float().cpu().numpy()

    def _low(self, floor: float) -> float:
        return floor - self.error - 2.0**-11  # a float16 score is compared with this number's nearest float16

    def _into_room(self, left: Any, right: Any) -> Any:
        """Their product, which the one after the next overwrites."""
        import torch

        if not self._rooms:
            self._rooms = [torch.empty(self._room, dtype=torch.float16, device=self.device) for _ in range(2)]
        self._rooms.reverse()
        return self._product(left, right, self._rooms[0][: len(left) * len(right)].view(len(left), len(right)))

    def _product(self, left: Any, right: Any, out: Any) -> Any:
        import torch

        with _whole_sums():
            return torch.mm(left, right.T, out=out)

    def _at(self, rows: np.ndarray) -> Any:
        """(m, d) float16 unit vectors of ascending rows, on the device."""
        if self.held is not None and len(rows) and rows[-1] - rows[0] + 1 == len(rows):
            return self.held[int(rows[0]) : int(rows[-1]) + 1]
        return self._picked(rows)

    def _picked(self, rows: np.ndarray) -> Any:
        """The same for rows in any order."""
        return self._sent(rows)[0] if self.held is None else self.held[to_device(rows, self.device)]

    def _sent(self, rows: "np.ndarray | slice") -> tuple[Any, np.ndarray]:
        """(m, d) float16 unit vectors on the device; (m,) float64 the squared lengths, exact on any machine."""
        wide, square = _wide(self.z, rows, "cpu:0" if self.device == "mps" else self.device)  # mps has no float64
        return (wide / square.clamp_min(1e-30).sqrt()[:, None]).half().to(self.device), square.cpu().numpy()

    def _near(self, scores: Any, columns: np.ndarray, low: float) -> Iterator[Tile]:
        """The rows and columns of a product that hold a score from `low` up; few are fetched now, many as they are asked for."""
        at = (scores.amax(1) >= low).nonzero()[:, 0]
        if not len(at):
            return iter(())
        scores = scores[at]
        place = (scores >= low).any(0).nonzero()[:, 0]
        rows, places = at.cpu().numpy(), place.cpu().numpy()
        tiles = (
            Tile(rows, columns[places[first : first + BLOCK]], scores[:, place[first : first + BLOCK]].float().cpu().numpy())
            for first in range(0, len(places), BLOCK)
        )
        return iter(list(tiles)) if len(rows) * len(places) <= FEW else tiles


def held(z: Vectors, device: str) -> Any:
    """(n, d) float16 on `device`: the rows as they are stored, sent once; None where they do not fit, or where it has no float64 (mps), or for "cpu"."""
    if device == "cpu":
        return None
    import torch

    if z.held is None or z.held[0] != device:
        if device == "mps" or 2 * len(z) * z.dim > HELD * _free(device):
            return None
        there, square = torch.empty((len(z), z.dim), dtype=torch.float16, device=device), np.empty(len(z))
        for first in range(0, len(z), SENT):
            at = slice(first, min(first + SENT, len(z)))
            wide, lengths = _wide(z, at, device)
            there[at], square[at] = wide.half(), lengths.cpu().numpy()
        z.held, z.square = (device, there), square
    return z.held[1]


def _wide(z: Vectors, rows: "np.ndarray | slice", device: str) -> tuple[Any, Any]:
    """(m, d) and (m,) float64 there: the rows as they are stored, and their squared lengths, which are exact."""
    wide = to_device(z.stored(rows), device).double()
    return wide, (wide * wide).sum(1)


def unit(z: Vectors, rows: slice, device: str) -> Any:
    """(m, d) float32 as `Vectors.unit`, on a device that may hold them."""
    there = held(z, device)
    if there is None:
        return to_device(z.unit(rows), device)
    scale = (1 / np.sqrt(np.maximum(z.square[rows], 1e-30))).astype(np.float32)
    return there[rows].float() * to_device(scale, device)[:, None]


def _free(device: str) -> int:
    """Bytes that are free there, memory that torch holds and does not use among them."""
    import torch

    if not device.startswith("cuda"):
        return 1 << 62
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def products(z: Vectors, high: int, device: str = "cpu") -> OnCpu | OnDevice:
    """Where the cosines of `z` (n, d) are made, at most `high` rows of them at once."""
    return OnCpu(z, high) if device == "cpu" else OnDevice(z, device, high)


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
