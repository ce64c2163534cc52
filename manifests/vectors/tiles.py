"""What a tile of float32 cosines leaves open, float64 decides: which pairs reach a threshold, and which column is closest to each row.

A tile is `scores` (b, c) float32: the cosines of the rows `rows` (b,) of `z` with the rows `columns` (c,) of `other`; `error` is the most that one is off, by
default a float32 product's.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from manifests.vectors.store import Vectors, float32_error, normalised

AT_ONCE = 1 << 21  # entries of a tile that are looked at together: bounds the memory where all of them are close


def reaching(block: np.ndarray, base: np.ndarray, floor: float, device: str = "cpu") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, column, score) of the entries of `block @ base.T` that reach `floor`, by float32."""
    if device != "cpu":
        scores = _on_device(block, base, device)
        row, column = (scores >= floor).nonzero(as_tuple=True)
        return row.cpu().numpy(), column.cpu().numpy(), scores[row, column].cpu().numpy()
    scores = (block @ base.T).reshape(-1)
    at = np.flatnonzero(scores >= np.float32(floor))
    row, column = np.divmod(at, len(base))
    return row, column, scores[at]


def near_the_top(
    block: np.ndarray, base: Any, slack: float, reach: Any, device: str = "cpu"
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """By float32: each row's best column and its score; (row, column, score) of all entries within `slack` of it, or within `reach[best, column]`.

    base, reach    arrays, or for many blocks what `to_device` made of them
    """
    if device != "cpu":
        scores = _on_device(block, base, device)
        top, best = scores.max(1)
        low = top[:, None] - (slack if reach is None else to_device(reach, device)[best])
        row, column = (scores >= low).nonzero(as_tuple=True)
        return best.cpu().numpy(), top.cpu().numpy(), row.cpu().numpy(), column.cpu().numpy(), scores[row, column].cpu().numpy()
    scores = block @ base.T
    best = scores.argmax(1)
    top = scores[np.arange(len(block)), best]
    if reach is None:
        near = scores >= (top - np.float32(slack))[:, None]
    else:
        low = reach[best]
        near = scores >= np.subtract(top[:, None], low, out=low)
    at = np.flatnonzero(near)
    row, column = np.divmod(at, len(base))
    return best, top, row, column, scores.reshape(-1)[at]


def _on_device(block: np.ndarray, base: Any, device: str) -> Any:
    import torch

    assert not torch.backends.cuda.matmul.allow_tf32, "TF32 is coarser than float32_error"
    return to_device(block, device) @ to_device(base, device).T


def to_device(values: Any, device: str) -> Any:
    """A tensor of `values`, an array or a tensor, on `device`; of mapped arrays torch wants a copy that may be written. On the CPU an array stays what it is."""
    if device == "cpu":
        return values
    import torch

    if isinstance(values, np.ndarray):
        values = torch.from_numpy(values if values.flags.writeable else values.copy())
    return values.to(device)


def cosines(z: Vectors, rows: np.ndarray, r: np.ndarray, columns: np.ndarray, c: np.ndarray) -> np.ndarray:
    """(m,) float64: the cosines of the pairs (rows[r], columns[c]) of a tile, exact. Where pairs are many, one product of all costs less than each by itself."""
    if 100 * len(r) < len(rows) * len(columns):
        return z.cosine(rows[r], z, columns[c])
    dot = (z.take64(rows) @ z.take64(columns).T)[r, c]
    return normalised(dot, z.square[rows[r]], z.square[columns[c]])


def within(
    scores: np.ndarray, z: Vectors, rows: np.ndarray, other: Vectors, columns: np.ndarray, threshold: float, error: float | None = None
) -> np.ndarray:
    """(b, c) bool: which pairs have a cosine of at least `threshold`, exactly."""
    error = float32_error(z.dim) if error is None else error
    near = np.zeros(scores.shape, bool)
    for hit in _some_rows(scores.max(1, initial=-2.0) >= threshold - error, scores.shape[1]):
        part = scores[hit]
        near[hit] = part > threshold + error
        r, c = np.nonzero(np.abs(part - threshold) <= error)
        near[hit[r], c] = z.cosine(rows[hit[r]], other, columns[c]) >= threshold
    return near


def closest(
    scores: np.ndarray, z: Vectors, rows: np.ndarray, other: Vectors, columns: np.ndarray, floor: "float | np.ndarray", error: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Each row's highest cosine (b,) float64 and its place in the tile (b,) int64, the first of equals; -inf and -1 where none reaches `floor`, a number or (b,)."""
    error = float32_error(z.dim) if error is None else error
    best, place = np.full(len(rows), -np.inf), np.full(len(rows), -1, np.int64)
    if not scores.size:
        return best, place
    floor = np.broadcast_to(np.asarray(floor, np.float64), best.shape)
    top = scores.max(1)
    for hit in _some_rows(top >= floor - error, scores.shape[1]):
        r, c = np.nonzero(scores[hit] >= np.maximum(top[hit] - 2 * error, floor[hit] - error)[:, None])
        exact = z.cosine(rows[hit[r]], other, columns[c])
        order = np.lexsort((c, -exact, r))
        first = order[np.flatnonzero(np.diff(r[order], prepend=-1))]  # of each row: the highest, the first of equals
        reached = first[exact[first] >= floor[hit[r[first]]]]
        best[hit[r[reached]]], place[hit[r[reached]]] = exact[reached], c[reached]
    return best, place


def _some_rows(wanted: np.ndarray, width: int) -> Iterator[np.ndarray]:
    """The wanted rows, so many at a time that their entries number about AT_ONCE."""
    hit = np.flatnonzero(wanted)
    step = max(1, AT_ONCE // max(width, 1))
    for start in range(0, len(hit), step):
        yield hit[start : start + step]


def equal_rows(z: Vectors, device: str = "cpu") -> np.ndarray:
    """(n,) int64: for each row the first row with the same values (itself where there is none before). A 64-bit sum proposes, the values decide."""
    n = len(z)
    factors = np.random.Generator(np.random.Philox(0)).integers(0, 1 << 63, z.dim, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    sums, step = np.empty(n, np.uint64), 4096 if device == "cpu" else 1 << 16
    for start in range(0, n, step):
        at = slice(start, min(start + step, n))
        sums[at] = _sums(z.stored(at), factors, device)
    _, index, inverse = np.unique(sums, return_index=True, return_inverse=True)
    first = index[inverse].astype(np.int64)
    again = np.flatnonzero(first != np.arange(n))
    for start in range(0, len(again), 4096):
        rows = again[start : start + 4096]
        same = (_bits(z.stored(rows)) == _bits(z.stored(first[rows]))).all(1)
        first[rows[~same]] = rows[~same]
    return first


def _sums(values: np.ndarray, factors: np.ndarray, device: str) -> np.ndarray:
    """(m,) uint64: whole numbers overflow alike, here and on a device, with a sign and without."""
    if device == "cpu":
        return (_bits(values) * factors).sum(1, dtype=np.uint64)
    bits = to_device(values.view(np.int16), device)
    bits = bits.masked_fill(bits == -0x8000, 0).long().bitwise_and(0xFFFF)
    found: np.ndarray = (bits * to_device(factors.view(np.int64), device)).sum(1).cpu().numpy()
    return found.view(np.uint64)


def _bits(values: np.ndarray) -> np.ndarray:
    """float16 as uint16, equal where the values are: -0 is 0."""
    bits = values.view(np.uint16)
    return np.where(bits == 0x8000, np.uint16(0), bits)
