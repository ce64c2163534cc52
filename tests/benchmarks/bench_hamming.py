"""All pairs of 64-bit codes within 8 bits, random codes of which a twentieth are planted near-copies; then the eight-view search of dedup.perceptual.

python tests/benchmarks/bench_hamming.py [rows] [views|faiss]     # CPU seconds of this process, wall, peak of private memory
"""

import sys
import time
from collections.abc import Iterator

import numpy as np

from manifests.likeness import TURNS, candidates
from manifests.memory import Sampler
from manifests.vectors.hamming import Pairs, neighbours

RADIUS = 8


def planted(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, int]:
    """(rows, 8) uint8 random codes; each of the last twentieth is an earlier one with 0 to 8 bits turned. And how many were planted."""
    codes = rng.integers(0, 1 << 64, rows, np.uint64)
    count = rows // 20
    turned = np.zeros(count, np.uint64)
    for step in range(RADIUS):
        turned ^= np.where(rng.integers(0, RADIUS + 1, count) > step, np.uint64(1) << rng.integers(0, 64, count, np.uint64), np.uint64(0))
    codes[rows - count :] = codes[rng.integers(0, rows - count, count)] ^ turned
    return codes.view(np.uint8).reshape(rows, 8), count


def with_views(rng: np.random.Generator, codes: np.ndarray) -> np.ndarray:
    """(n, 64) uint8: each code, and seven of its bits in another order, as turned pictures have; the planted copies turn with their originals."""
    views = np.empty((len(codes), TURNS, 8), np.uint8)
    places = [np.arange(64), *(rng.permutation(64) for _ in range(TURNS - 1))]
    for start in range(0, len(codes), 1 << 16):
        bits = np.unpackbits(codes[start : start + (1 << 16)], axis=1)
        for turn, place in enumerate(places):
            views[start : start + (1 << 16), turn] = np.packbits(bits[:, place], axis=1)
    return views.reshape(len(codes), TURNS * 8)


def searched(codes: np.ndarray, way: str) -> Iterator[Pairs]:
    """Blocks of pairs, by our search, by dedup.perceptual's over eight views, or by faiss's hash tables (each pair twice there, and each row with itself)."""
    if way == "plain":
        yield from neighbours(codes, RADIUS)
    elif way == "views":
        yield candidates(codes, None, RADIUS, turned=True)
    else:
        import faiss

        index = faiss.IndexBinaryMultiHash(64, 3, 21)
        index.nflip = 2
        index.add(codes)
        for start in range(0, len(codes), 1 << 17):
            limits, distance, b = index.range_search(codes[start : start + (1 << 17)], RADIUS + 1)
            a = np.repeat(np.arange(start, start + len(limits) - 1), np.diff(limits.astype(np.int64)))
            yield a[a < b], b[a < b], distance[a < b]


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    way = sys.argv[2] if len(sys.argv) > 2 else "plain"
    rng = np.random.default_rng(0)
    codes, count = planted(rng, rows)
    if way == "views":
        codes = with_views(rng, codes)
    wall, cpu, found, near = time.perf_counter(), time.process_time(), 0, np.zeros(rows, bool)
    with Sampler() as held:
        for a, b, _ in searched(codes, way):
            found += len(a)
            near[a] = near[b] = True
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert held.peak is not None
    recall = near[rows - count :].mean()
    print(f"{way} {rows:,}: {found:,} pairs, planted rows found {recall:.6f}; {cpu:.1f} CPU s, {wall:.1f} s, peak {held.peak / (1 << 20):,.0f} MiB")


if __name__ == "__main__":
    main()
