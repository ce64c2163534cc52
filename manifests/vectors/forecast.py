"""Memory and seconds of heavy vector work, before it starts: multiply-adds over the measured matrix rate, values touched over the measured pass rate.

The counts are those of the code in `neighbours`, `clusters` and the methods that use `tiles`; the rates are measured once a process, in a quarter
of a second. What is forecast for a quiet machine is within 1.5 times of what is then measured (`tests/benchmarks/bench_all_pairs.py` prints both).
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from manifests.errors import Refusal
from manifests.progress import span

TILE = 4096  # rows a side of the tiles that the counts assume
FIXED = 48 << 20  # bytes of temporary arrays that no count below names


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second, with as many threads as the matrix library takes."""

    multiply_adds: float  # float32, in a product of matrices
    touched: float  # float32 values read once and compared, one thread
    bytes: float  # copied from memory to memory, read and write counted


@dataclass(frozen=True)
class Forecast:
    """What a piece of work takes. `memory` is private bytes at the peak, mapped files not counted."""

    multiply_adds: float
    touched: float
    memory: int

    def seconds(self, rates: Rates | None = None) -> float:
        """Seconds at `rates`, by default this machine's."""
        rates = rates or measured()
        return self.multiply_adds / rates.multiply_adds + self.touched / rates.touched

    def __str__(self) -> str:
        return f"{span(self.seconds())}, {size(self.memory)}"


@functools.cache
def measured() -> Rates:
    """This machine's rates, the best of five tries each."""
    a, tile = np.ones((2048, 512), np.float32), np.ones((2048, 2048), np.float32)
    big, copy = np.ones(1 << 26, np.uint8), np.zeros(1 << 26, np.uint8)  # more than a cache holds
    product = np.empty((2048, 2048), np.float32)
    return Rates(
        multiply_adds=2048**2 * 512 / _best(lambda: np.matmul(a, a.T, out=product)),
        touched=tile.size / _best(lambda: tile.max(1)),
        bytes=2 * big.size / _best(lambda: np.copyto(copy, big)),
    )


def _best(work: Callable[[], object]) -> float:
    """Seconds of the quickest of five runs, after one that warms up."""
    found = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return max(min(found[1:]), 1e-9)


def neighbours(queries: int, base: int, dim: int, k: int) -> Forecast:
    """`manifests.vectors.neighbours.knn`."""
    width, block = k + 17, min(queries, TILE // 2)
    scores = 4 * block * min(base, TILE)
    touched = 3 * queries * base + 8 * queries * base / (TILE // 2) * dim + 40 * queries * width * dim
    return Forecast(queries * base * dim, touched, FIXED + 16 * queries * k + 8 * (queries + base) + 3 * scores + 40 * block * width)


def pairs(rows: int, dim: int, max_edges: int, memory: int) -> Forecast:
    """`dedup.all_pairs` of rows that all differ."""
    tile, held = max(1, min(rows, TILE)), 2 * rows * dim
    products = rows * (rows + tile) / 2
    copy = held if held <= memory // 4 else 0
    return Forecast(
        products * dim, products * 1.5 + 12 * products / tile * dim, FIXED + copy + rows * (80 + 4 * max_edges) + 6 * tile * tile + 8 * tile * dim
    )


def farthest(rows: int, kept: int, dim: int) -> Forecast:
    """`select.kcenter`."""
    turns = kept / 512 + 8
    return Forecast(
        rows * kept * dim * 1.3, rows * kept * 2 + 12 * turns * rows * dim, FIXED + 60 * rows + 4 * TILE * (1024 + 2 * dim) + 24 * 1024 * 1024
    )


def facility(rows: int, kept: int, dim: int, memory: int) -> Forecast:
    """`select.facility_location`."""
    passes = 1.5 + 0.5 * np.log2(max(2, min(kept, 32)))
    return Forecast(
        passes * rows * rows * dim, 6 * passes * rows * rows, FIXED + 4 * rows * dim + 120 * rows + min(int(0.8 * rows * rows), memory // 4)
    )


def cover(rows: int, kept: int, dim: int, memory: int) -> Forecast:
    """`reduce.redundancy`."""
    tile, held = max(1, min(rows, TILE)), 2 * rows * dim
    products = 8 * rows * kept
    copy = held if held <= memory // 4 else 0
    return Forecast(products * dim, products * 1.5 + 12 * products / tile * dim, FIXED + copy + 90 * rows + 6 * tile * tile + 8 * tile * dim)


def require(where: str, forecast: Forecast, memory: int) -> None:
    """Raise `Refusal` [does-not-fit] where `memory` bytes are not enough, with the number that is."""
    if forecast.memory > memory:
        raise Refusal(
            "does-not-fit", where, f"needs {size(forecast.memory)}", f"--memory allows {size(memory)}",
            f"Give --memory {-(-forecast.memory // (1 << 30))}GiB, or make the groups smaller with `within`",
        )  # fmt: skip


def size(count: float) -> str:
    """Bytes for a reader: 512 MiB, 3.2 GiB."""
    return f"{count / (1 << 20):,.0f} MiB" if count < 1 << 30 else f"{count / (1 << 30):,.1f} GiB"
