"""All pairs of 64-bit codes within 8 bits, random codes of which a twentieth are planted near-copies; the eight-view search of dedup.perceptual; dedup.perceptual.

python tests/benchmarks/bench_hamming.py [rows] [views|perceptual|faiss]     # CPU seconds of this process, wall, peak of private memory beyond what stood before, load
"""

import io
import os
import sys
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from PIL import Image

from curate.dedup.perceptual import perceptual
from curate.pool import Pool
from manifests.likeness import TURNS, candidates
from manifests.memory import Sampler, private_bytes
from manifests.vectors.forecast import bit_codes
from manifests.vectors.hamming import Pairs, neighbours, seconds

RADIUS = 8
PICTURES = 1000  # different ones that the rows of a pool show; a planted copy shows that of its original


def planted(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, 8) uint8 random codes; each of the last twentieth is an earlier one with 0 to 8 bits turned. And the rows that these are copies of."""
    codes = rng.integers(0, 1 << 64, rows, np.uint64)
    count = rows // 20
    turned = np.zeros(count, np.uint64)
    for step in range(RADIUS):
        turned ^= np.where(rng.integers(0, RADIUS + 1, count) > step, np.uint64(1) << rng.integers(0, 64, count, np.uint64), np.uint64(0))
    originals = rng.integers(0, rows - count, count)
    codes[rows - count :] = codes[originals] ^ turned
    return codes.view(np.uint8).reshape(rows, 8), originals


def with_views(rng: np.random.Generator, codes: np.ndarray) -> np.ndarray:
    """(n, 64) uint8: each code, and seven of its bits in another order, as turned pictures have; the planted copies turn with their originals."""
    views = np.empty((len(codes), TURNS, 8), np.uint8)
    places = [np.arange(64), *(rng.permutation(64) for _ in range(TURNS - 1))]
    for start in range(0, len(codes), 1 << 16):
        bits = np.unpackbits(codes[start : start + (1 << 16)], axis=1)
        for turn, place in enumerate(places):
            views[start : start + (1 << 16), turn] = np.packbits(bits[:, place], axis=1)
    return views.reshape(len(codes), TURNS * 8)


def pictures(rng: np.random.Generator, count: int = PICTURES, side: int = 256) -> list[bytes]:
    """JPEG files of soft coloured fields."""
    files = []
    for _ in range(count):
        picture, file = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC), io.BytesIO()
        picture.save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def pool_of(rng: np.random.Generator, views: np.ndarray, originals: np.ndarray, files: list[bytes]) -> Pool:
    """Rows with the hashes `views`, none with a border, that show any of `files`; the last ones show the same picture as their `originals`."""
    rows = len(views)
    shown = rng.integers(0, len(files), rows)
    shown[rows - len(originals) :] = shown[originals]
    column = pa.FixedSizeBinaryArray.from_buffers(pa.binary(TURNS * 8), rows, [None, pa.py_buffer(np.ascontiguousarray(views))])
    pixels = rng.integers(1, 4, rows) << 16
    table = pa.table({"phash_views": column, "phash_trimmed_views": column, "inner_pixels": pixels, "num_pixels": pixels})
    uid = np.char.mod("%032x", rng.permutation(rows)).astype("S32")
    return Pool(uid, table, memory=8 << 30, read_payloads=lambda chosen: (files[shown[row]] for row in chosen))


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
            ends = limits.astype(np.int64)
            a = np.repeat(np.arange(start, start + len(ends) - 1), ends[1:] - ends[:-1])
            yield a[a < b], b[a < b], distance[a < b]


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    way = sys.argv[2] if len(sys.argv) > 2 else "plain"
    rng = np.random.default_rng(0)
    codes, originals = planted(rng, rows)
    if way in ("views", "perceptual"):
        codes = with_views(rng, codes)
    base = rows * TURNS if way in ("views", "perceptual") else None
    print(
        f"{way} {rows:,}: load {os.getloadavg()[0]:.1f}, forecast {seconds(rows, base, RADIUS, 64):.0f} s, {bit_codes(rows, base) >> 20:,} MiB",
        flush=True,
    )
    pool = pool_of(rng, codes, originals, pictures(rng)) if way == "perceptual" else None
    wall, cpu, found, near, before = time.perf_counter(), time.process_time(), 0, np.zeros(rows, bool), private_bytes() or 0
    with Sampler() as held:
        if pool is not None:
            verdicts = perceptual(pool)
            assert verdicts.edges is not None
            found = len(verdicts.edges.a)
            near[verdicts.edges.a] = near[verdicts.edges.b] = True
        else:
            for a, b, _ in searched(codes, way):
                found += len(a)
                near[a] = near[b] = True
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert held.peak is not None
    recall = near[rows - len(originals) :].mean()
    print(
        f"{way} {rows:,}: {found:,} pairs, planted rows found {recall:.6f}; {cpu:.1f} CPU s, {wall:.1f} s, "
        f"peak {(held.peak - before) / (1 << 20):,.0f} MiB beyond {before / (1 << 20):,.0f}; load {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    main()
