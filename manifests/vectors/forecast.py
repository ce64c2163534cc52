"""Memory and seconds of heavy vector work, before it starts: multiply-adds over the measured matrix rate, values touched over the measured pass rate.

The counts are those of the code in `neighbours`, `clusters` and the methods that use `tiles`; the rates are measured once a process, in a quarter
of a second. What is forecast for a quiet machine is within 1.5 times of what is then measured (`tests/benchmarks/bench_all_pairs.py` prints both).
"""

import functools
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from manifests.errors import Refusal
from manifests.memory import enough, size
from manifests.progress import span
from manifests.vectors.clusters import SOUGHT

TILE = 4096  # rows a side of the tiles that the counts assume
WIDE_THERE = 1 << 15  # columns of a product that says how fast a device is
FIXED = 48 << 20  # bytes of temporary arrays that no count below names
FEW_ARRAYS = 16 << 20  # the same where the count names nearly all of them
PAIR = 128  # bytes of a pair from when it is found until the star rule has folded it
FOUND = 4  # rows for every pair that a forecast counts on
ORDERED = 12_000  # values touched in the time that it takes to put one row into uid order, its cluster and keeper order, among a million


@dataclass(frozen=True)
class Rates:
    """What this machine does in a second, with as many threads as the matrix library takes."""

    multiply_adds: float  # float32, in a product of matrices
    touched: float  # float32 values read once and compared, one thread
    bytes: float  # copied from memory to memory, read and write counted


@dataclass(frozen=True)
class Size:
    """What a decision's `forecast` is asked for, beside the decision's own parameters.

    rows     that come to it
    dims     values a row of each vector column that it reads, in the order of its parameters
    memory   bytes that it may use
    tests    rows of each evaluation pool that it reads
    device   where it may multiply
    """

    rows: int
    dims: Sequence[int]
    memory: int
    tests: Sequence[int] = ()
    device: str = "cpu"


@dataclass(frozen=True)
class Forecast:
    """What a piece of work takes. `memory` is private bytes at the peak, mapped files not counted."""

    multiply_adds: float
    touched: float
    memory: int
    others: float = 0.0  # seconds that these rates do not tell, such as a search of hashes
    device: str = "cpu"  # where it is multiplied

    def seconds(self, rates: Rates | None = None) -> float:
        """Seconds at `rates`, by default this machine's, which are measured when they are needed."""
        if not (self.multiply_adds or self.touched):
            return self.others
        rates = rates or measured_on(self.device)
        return self.multiply_adds / rates.multiply_adds + self.touched / rates.touched + self.others

    def times(self, rounds: int) -> "Forecast":
        """So many times, one after the other."""
        return replace(self, multiply_adds=rounds * self.multiply_adds, touched=rounds * self.touched, others=rounds * self.others)

    def __str__(self) -> str:
        return f"{span(self.seconds())}, {size(self.memory)}"


@functools.cache
def measured(clock: Callable[[], float] = time.perf_counter) -> Rates:
    """This machine's rates, the best of five tries each; by the clock of the process alone where others use the machine too (`time.process_time`)."""
    a, tile = np.ones((2048, 512), np.float32), np.ones((2048, 2048), np.float32)
    big, copy = np.ones(1 << 26, np.uint8), np.zeros(1 << 26, np.uint8)  # more than a cache holds
    product = np.empty((2048, 2048), np.float32)
    return Rates(
        multiply_adds=2048**2 * 512 / _best(lambda: np.matmul(a, a.T, out=product), clock),
        touched=tile.size / _best(lambda: tile.max(1), clock),
        bytes=2 * big.size / _best(lambda: np.copyto(copy, big), clock),
    )


@functools.cache
def measured_on(device: str) -> Rates:
    """The rates of `dedup.all_pairs` on a torch device: products in float16, and their scores read once; those of `measured` for "cpu" and "mps"."""
    if device in ("cpu", "mps"):
        return measured()
    import torch

    a, b = (torch.randn(rows, 512, device=device).half() for rows in (TILE, WIDE_THERE))
    scores, wait = torch.mm(a, b.T), torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    product = _best(lambda: (torch.mm(a, b.T, out=scores), wait()), time.perf_counter)
    return Rates(scores.numel() * 512 / product, scores.numel() / _best(lambda: (scores.amax(1), wait()), time.perf_counter), measured().bytes)


def _best(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the quickest of five runs, after one that warms up."""
    found = []
    for _ in range(6):
        start = clock()
        work()
        found.append(clock() - start)
    return max(min(found[1:]), 1e-9)


def linear(size: Size, **_: object) -> Forecast:
    """200 bytes and 2 microseconds a row: a decision whose cost is linear in the rows and small has `forecast = linear`."""
    return Forecast(0, 0, 200 * size.rows, 2e-6 * size.rows)


def in_turn(works: Iterable[Forecast]) -> Forecast:
    """One piece of work after the other: the time of all, the memory of the largest."""
    found = list(works)
    memory = max((work.memory for work in found), default=0)
    return Forecast(sum(w.multiply_adds for w in found), sum(w.touched for w in found), memory, sum(w.others for w in found))


def neighbours(queries: int, base: int, dim: int, k: int) -> Forecast:
    """`manifests.vectors.neighbours.knn`."""
    width, block = k + 17, min(queries, TILE // 2)
    scores = 4 * block * min(base, TILE)
    touched = 3 * queries * base + 8 * queries * base / (TILE // 2) * dim + 40 * queries * width * dim
    return Forecast(queries * base * dim, touched, FIXED + 16 * queries * k + 8 * (queries + base) + 3 * scores + 40 * block * width)


def pairs(rows: int, dim: int, max_edges: int, memory: int, device: str = "cpu") -> Forecast:
    """`dedup.all_pairs` of rows that all differ."""
    tile, held = max(1, min(rows, TILE)), 2 * rows * dim
    products = rows * (rows + tile) / 2
    copy, listed_pairs = held if held <= memory // 4 else 0, min(max(1_000_000, max_edges * rows), rows * rows // 2)
    needed = FIXED + copy + rows * 80 + 64 * listed_pairs + 6 * tile * tile + 8 * tile * dim
    return Forecast(products * dim, products * 1.5 + 12 * products / tile * dim, needed, device=device)


def inside_clusters(rows: int, dim: int, clusters: int | None, rounds: int = 6, sample: int = 24, visits: float = 1.0) -> Forecast:
    """`dedup.semantic`, `dedup.semdedup`: k-means on `sample` rows a centre, every row to its cluster, pairs inside. Of these one for every `FOUND` rows is counted;
    where there are more, `manifests.vectors.copies.pairs_inside` sees whether they fit.

    clusters  None: as `dedup.semantic` chooses them
    visits    other clusters that a row is compared with, on average: 0.15 to 3 were measured, the more the less the clusters are those that are there
    """
    clusters = max(1, min(clusters or (1 if rows <= TILE else round(rows**0.5)), rows))
    drawn = min(rows, sample * clusters) if clusters > 1 else 0
    compared = rows * (0.6 + visits) * rows / clusters
    products = drawn * rounds * clusters + rows * clusters + compared
    touched = 36 * drawn * rounds * dim + 5 * products + (80 + 60 * visits) * rows * dim + ORDERED * rows
    borders = 24 * clusters * clusters if visits else 0
    leaning = (24 * clusters + 8 * dim) * min(rows, TILE) if visits else 0  # rows whose differences from their centres are looked at
    paired = 2 * rows // FOUND if visits else rows  # rows whose cosines to their centres are made
    at_work = max(_at_work(rows, dim, clusters, 2 * drawn * dim, paired), leaning)
    left = 8 * min(rows, TILE) * dim  # a block in float64: what is freed in pieces is not all used again by the next step
    memory = (2 << 20) + rows * (120 + 32 * visits + PAIR / FOUND) + borders + 16 * clusters * dim + at_work + left
    return Forecast(products * dim, touched, int(memory))


def _at_work(rows: int, dim: int, clusters: int, drawn: int, compared: int) -> int:
    """Bytes of `clusters.kmeans` on `drawn` bytes of rows, or of the cosines of `compared` rows to their centres after it: 8192 at a time, in float64."""
    block = min(rows, TILE)
    return max(drawn + 16 * block * dim + 9 * min(block * clusters, 1 << 23), 20 * min(compared, 2 * TILE) * dim)


def copies(rows: int, dims: Sequence[int], k: int, memory: int, hashes: int, radius: int) -> Forecast:
    """`dedup.copies`, but for the pairs that hashes propose: so many searches of hashes, k nearest in each of the vector columns, and every pair of these
    verified at 3 ms."""
    from manifests.seen import BYTES
    from manifests.vectors.hamming import seconds

    searches = [neighbours(min(rows, 8192), rows, dim, k) for dim in dims]
    proposed = rows * k * len(dims)
    at_work = max((s.memory for s in searches), default=FIXED) + 12 * proposed
    verified = FIXED + 160 * proposed + max(2048 * BYTES, min(rows * BYTES, memory // 4))
    touched, others = sum(s.touched for s in searches) * max(rows / 8192, 1), 3e-3 * proposed + hashes * seconds(rows, 8 * rows, radius, 64)
    return Forecast(sum(rows * rows * dim for dim in dims), touched, max(at_work, verified) + bit_codes(rows, 8 * rows), others)


def leaks(rows: int, tests: int, dims: Sequence[int], k: int, verified: bool) -> Forecast:
    """`leakage.images` against an evaluation pool of `tests` samples, but for thumbnails and pairs, which are counted when they are known: the search of hashes,
    k nearest in each of the vector columns and, where copies are verified, each of these pairs at 3 ms."""
    from manifests.seen import BYTES
    from manifests.vectors.hamming import seconds

    searches = [neighbours(min(rows, 8192), tests, dim, k) for dim in dims]
    proposed = rows * min(k, tests) * len(dims)
    by_hash = bit_codes(rows, 8 * tests) + 140 * (rows + tests)
    by_vector = max((s.memory for s in searches), default=0) + 16 * proposed + 40 * (rows + tests) * len(dims)
    seen = (160 * proposed + FIXED + 1280 * BYTES) if verified else 0
    touched, others = sum(s.touched for s in searches) * max(rows / 8192, 1), seconds(rows, 8 * tests, 8, 64) + 3e-3 * proposed * verified
    return Forecast(2 * sum(rows * tests * dim for dim in dims), touched, max(by_hash, by_vector, seen), others)


def bit_codes(rows: int, base: int | None = None) -> int:
    """Bytes of `manifests.vectors.hamming.neighbours` beside its input: both sets by code and by the bits of a chunk; a base block by block."""
    return FIXED + 85 * rows + 60 * min(base or 0, 1 << 25)


def near_hashes(rows: int, base: int, radius: int) -> Forecast:
    """`manifests.vectors.hamming.neighbours` of 64 bits, and what is linear in the rows. How many of them have a candidate shows only then."""
    from manifests.vectors.hamming import seconds

    return Forecast(0, 0, bit_codes(rows, base) + 200 * rows, seconds(rows, base, radius, 64) + 2e-6 * rows)


def two_looks(rows: int, width: int, turned: bool, seconds: float) -> Forecast:
    """`dedup.perceptual`, but for the thumbnails of rows with a candidate, which are counted when these are known: hashes of `width` bytes a row with their views.

    Memory is that of pictures which all have a border, and so two looks; where none has, about half of it is taken.
    """
    base = 2 * rows * (8 if turned else 1)
    longer = int(0.45 * (width - 64) * min(base, 1 << 25))  # of a code in the search than of one of 64 bits
    return Forecast(0, 0, bit_codes(rows, base) + longer + rows * (4 * width + 100) + min(80 << 20, 8192 * rows), seconds + 2e-6 * rows)


def farthest(rows: int, kept: int, dim: int) -> Forecast:
    """`select.kcenter`."""
    turns = kept / 512 + 8
    return Forecast(
        rows * kept * dim * 1.3, rows * kept * 2 + 12 * turns * rows * dim, FIXED + 60 * rows + 4 * TILE * (1024 + 2 * dim) + 24 * 1024 * 1024
    )


def facility(rows: int, kept: int, dim: int, memory: int) -> Forecast:
    """`select.facility_location`. Where a byte a pair fits into what `memory` has to spare, all pairs are multiplied in half a pass; the t-th pick reads one row in
    t, and looks at those near to the highest 16. Elsewhere half a pass for every doubling of the picks, and 16 rows a pick. After t picks about one similarity in t
    is above its row's best: once these are few, and fit, they are listed in half a pass more, and each is looked at now and then. 16 bytes are counted for each, a
    third more than it takes: how many there are is told from a few rows."""
    fixed = Forecast(0, 0, (2 << 20) + rows * (4 * dim + 300) + 20 * min(rows, 2 * TILE) * dim)
    room = spare(fixed, memory)
    if kept > 1 and rounded(rows, dim) <= room:
        near = 16 * rows * (1 + np.log(max(1, kept / 16)))  # columns that are looked at again in float32
        touched = (5 + 1.2 * np.log(kept)) * rows * rows + 14 * near * dim + (60 * rows + 3e5) * kept
        return Forecast(0.55 * rows * rows * dim, touched, fixed.memory + rounded(rows, dim))
    share = min(0.03, room / (16 * max(rows, 1) ** 2)) if kept > 20 else 0.0
    picks = min(kept, 1 / share) if share else kept
    swept = np.log2(max(2, picks)) / 2 + 16 * picks / max(rows, 1)
    is_listed = picks < kept
    touched = (3.5 * swept + is_listed * (5 + 500 * share)) * rows * rows + 6e5 * kept
    return Forecast((swept + is_listed / 2) * rows * rows * dim, touched, fixed.memory + int(min(16 * share * rows * rows, room)))


def spare(forecast: Forecast, memory: int) -> int:
    """Bytes that a table or lists may take beside `forecast`: a quarter of `memory`, and no more than is left."""
    return max(0, min(memory // 4, memory - forecast.memory))


def rounded(rows: int, dim: int) -> int:
    """Bytes of `manifests.vectors.rounded`: the table, the rows once more, and what is at work on them."""
    return rows * (rows + 4 * dim + 100) + min(rows, 2 * TILE) * (4 * dim + 300)


def cover(rows: int, kept: int, dim: int, memory: int) -> Forecast:
    """`reduce.redundancy`."""
    tile, held = max(1, min(rows, TILE)), 2 * rows * dim
    products = 8 * rows * kept
    copy = held if held <= memory // 4 else 0
    return Forecast(products * dim, products * 1.5 + 12 * products / tile * dim, FIXED + copy + 90 * rows + 6 * tile * tile + 8 * tile * dim)


def clustered(rows: int, dim: int, clusters: int, resampling: int = 0, nearest: int = 0, is_sought: bool = False) -> Forecast:
    """`clusters.kmeans` on 256 rows a centre in 20 rounds, `resampling` times more on the `nearest` ones in some 10, and each time every row to its cluster.

    is_sought   each start is sought by k-means++, in float64
    """
    clusters = max(1, min(clusters, rows))
    drawn, again, among = min(rows, 256 * clusters), min(rows, nearest * clusters), min(rows, SOUGHT * clusters) * is_sought
    sought = (among + resampling * min(again, among)) * clusters * dim
    fitted, assigned = 20 * drawn + 10 * resampling * again, (1 + resampling) * rows
    memory = FEW_ARRAYS + 160 * rows + 28 * clusters * dim + _at_work(rows, dim, clusters, 2 * max(drawn, again) * dim + 8 * among * dim, rows)
    return Forecast((fitted + assigned) * clusters * dim, (fitted + assigned) * (5 * clusters + 36 * dim) + sought, memory)


def listed(count: int) -> Forecast:
    """`manifests.star.star` over so many pairs, all held at once (`reduce.series`, `reduce.information`)."""
    return Forecast(0, 20 * count, FIXED + 120 * count)


def information(groups: Sequence[int], side: int) -> Forecast:
    """`reduce.information` over groups of so many rows, as if every pair had to be compared and none came near."""
    counted = sum(rows * (rows - 1) / 2 for rows in groups)
    return Forecast(0, 10 * counted * side * side, FIXED + 17 * max(groups, default=0) * side * side // 8 + 100 * sum(groups))


def require(where: str, forecast: Forecast, memory: int) -> None:
    """Raise `Refusal` [does-not-fit] where `memory` bytes are not enough, with the number that is."""
    if forecast.memory > memory:
        raise Refusal(
            "does-not-fit", where, f"needs {size(forecast.memory)}", f"--memory allows {size(memory)}",
            f"Give --memory {enough(forecast.memory)}, or make the groups smaller with `within`",
        )  # fmt: skip
