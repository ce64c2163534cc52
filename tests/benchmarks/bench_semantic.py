"""dedup.semantic on real-like features (clusters, and planted pairs at cosine .90 to .99) beside a plain faiss SemDeDup; recall against dedup.all_pairs.

OMP_NUM_THREADS=1 python tests/benchmarks/bench_semantic.py [rows] [--alone]     # CPU seconds; --alone: without the rival and all pairs (for a million rows)
"""

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from curate.dedup import semantic as method
from curate.dedup.all_pairs import all_pairs
from curate.dedup.semantic import semantic
from curate.pool import Pool, VectorName, Verdicts
from manifests.vectors.clusters import Cells, cells
from manifests.vectors.forecast import inside_clusters, measured
from manifests.vectors.store import Vectors

DIM, COSINE = 512, 0.90


def features(rows: int, seed: int = 0) -> np.ndarray:
    """(rows, 512) float16 unit vectors: clusters of Zipf sizes that lie in families, each spread along directions of falling variance (as the features of an encoder are:
    some 60 directions hold most of it), and one row in ten a near copy of another at a cosine between .90 and .99, differing in the same directions."""
    rng = np.random.default_rng(seed)
    groups = max(20, rows // 400)
    spectrum = (np.arange(1, DIM + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0].astype(np.float32)
    families = rng.standard_normal((max(5, groups // 20), DIM), np.float32)
    centres = 0.7 * families[rng.integers(0, len(families), groups)] + 0.7 * rng.standard_normal((groups, DIM), np.float32)
    share = 1 / np.arange(1, groups + 1) ** 0.7
    z = np.empty((rows, DIM), np.float16)
    copies = rows // 10
    step = min(20_000, copies)  # whatever is copied was written before
    for start in range(0, rows, step):
        at = np.arange(start, min(start + step, rows))
        block = (centres[rng.choice(groups, len(at), p=share / share.sum())] + 1.3 * _noise(rng, len(at), spectrum)) @ turn
        again = at[at >= rows - copies]
        if len(again):
            source = z[again - (rows - copies)].astype(np.float32)
            noise = _noise(rng, len(again), spectrum) @ turn
            noise -= (noise * source).sum(1, keepdims=True) / (source * source).sum(1, keepdims=True) * source
            cosine = rng.uniform(0.90, 0.99, (len(again), 1)).astype(np.float32)
            block[again - start] = cosine * _unit(source) + np.sqrt(1 - cosine**2) * _unit(noise)
        z[at] = _unit(block)
    return z[rng.permutation(rows)]


def _noise(rng: np.random.Generator, rows: int, spectrum: np.ndarray) -> np.ndarray:
    return rng.standard_normal((rows, DIM), np.float32) * spectrum * np.float32(np.sqrt(DIM / (spectrum**2).sum()))


def _unit(block: np.ndarray) -> np.ndarray:
    return block / np.linalg.norm(block, axis=1, keepdims=True)


def plain_semdedup(z: np.ndarray, clusters: int) -> np.ndarray:
    """(n,) bool kept: faiss k-means, the order of the paper, one product a cluster, as its authors' code does."""
    import faiss

    x = z.astype(np.float32)
    means = faiss.Kmeans(DIM, clusters, niter=10, spherical=True, seed=1234)
    means.train(x)
    score, home = means.index.search(x, 1)
    keep = np.ones(len(x), bool)
    for c in range(clusters):
        rows = np.flatnonzero(home[:, 0] == c)
        rows = rows[np.argsort(score[rows, 0], kind="stable")]
        similar = np.triu(x[rows] @ x[rows].T, 1)
        keep[rows] = similar.max(0, initial=0) <= COSINE
    return keep


def watched(work: Callable[[], Any]) -> tuple[Any, float, float, int]:
    """The result, CPU seconds, wall seconds, and the most private memory (RssAnon) above what stood before, sampled every 5 ms."""
    give_back()
    before, peak, is_over = private(), [0], threading.Event()

    def sample() -> None:
        while not is_over.wait(0.005):
            peak[0] = max(peak[0], private())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    is_over.set()
    thread.join()
    return result, cpu, wall, max(0, peak[0] - before)


def give_back() -> None:
    """Hand freed memory back to the system: what a benchmark left behind when it made its data would else be used again, and not be seen."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)


def private() -> int:
    """RssAnon in bytes."""
    with open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) << 10


def matrix_rate() -> float:
    """float32 multiply-adds a CPU second, the best of five products: seconds of the clock say little on a shared machine."""
    a, product, found = np.ones((2048, DIM), np.float32), np.empty((2048, 2048), np.float32), []
    for _ in range(6):
        start = time.process_time()
        np.matmul(a, a.T, out=product)
        found.append(time.process_time() - start)
    return 2048**2 * DIM / min(found[1:])


def pair_recall(found: Verdicts, truth: Verdicts, rows: int) -> float:
    """The share of the true pairs of at least COSINE that were found."""
    assert truth.edges is not None and found.edges is not None
    keys = [np.unique(np.minimum(e.a, e.b) * rows + np.maximum(e.a, e.b)) for e in (found.edges, truth.edges)]
    return float(np.isin(keys[1], keys[0]).mean())


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 200_000
    alone, k = "--alone" in sys.argv, round(rows**0.5)
    z = features(rows)
    uid = np.array([f"{i:032x}" for i in np.random.default_rng(1).permutation(rows)], dtype="S32")
    rates, rate = measured(time.process_time), matrix_rate()

    def pool() -> Pool:
        return Pool(uid, None, {"z": Vectors.of(z)}, memory=4 << 30)

    given: dict[str, Any] = {"vectors": VectorName("z"), "min_cosine": COSINE, "floor_cosine": COSINE}
    print(f"{rows:,} x {DIM}, cosine {COSINE}, {k} clusters; matrix rate {rate / 1e9:.0f} G multiply-adds a CPU second", flush=True)
    made: list[Cells] = []

    def spied(*args: Any, **more: Any) -> tuple[Vectors, Cells]:
        centres, inside = cells(*args, **more)
        made.append(inside)
        return centres, inside

    method.cells = spied
    found, cpu, wall, peak = watched(lambda: semantic(pool(), **given, keeper="uid"))
    visits, products = len(made[0].visitor) / rows, made[0].products()
    bound = (6 * 24 * k * k + rows * k + products) * DIM / rate
    guess = inside_clusters(rows, DIM, k)
    print(
        f"dedup.semantic   {cpu:8.1f} CPU s {wall:8.1f} s  {peak >> 20:6,} MiB  dropped {(~found.keep).sum():,}; visits a row {visits:.2f}; bound (fit, assign, pairs in cells) {bound:.1f} s, "
        f"ratio {cpu / bound:.2f}; forecast {guess.seconds(rates):.1f} s, {guess.memory >> 20:,} MiB",
        flush=True,
    )
    if alone:
        return
    kept, rival, wall, peak = watched(lambda: plain_semdedup(z, k))
    print(
        f"faiss SemDeDup   {rival:8.1f} CPU s {wall:8.1f} s  {peak >> 20:6,} MiB  dropped {(~kept).sum():,}; ours / theirs {cpu / rival:.2f}",
        flush=True,
    )
    truth, cpu, wall, peak = watched(lambda: all_pairs(pool(), **given))
    print(f"dedup.all_pairs  {cpu:8.1f} CPU s {wall:8.1f} s  {peak >> 20:6,} MiB  dropped {(~truth.keep).sum():,}", flush=True)
    again = np.mean(~found.keep[~truth.keep])
    print(
        f"recall against all pairs: pairs {pair_recall(found, truth, rows):.4f}, dropped rows {again:.4f}; faiss SemDeDup, dropped rows {np.mean(~kept[~truth.keep]):.4f}"
    )


if __name__ == "__main__":
    main()
