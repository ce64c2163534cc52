"""The 20 nearest neighbours, exact: `manifests.vectors.neighbours.knn` (from float16 on disk, float64 decides) beside faiss's flat index (float32, all in memory).

OMP_NUM_THREADS=1 python tests/benchmarks/bench_neighbours.py      # CPU seconds, the best of two, one thread
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from manifests.vectors.neighbours import knn
from manifests.vectors.store import Vectors

K, QUERIES = 20, 4096
POOLS = ((200_000, 128), (50_000, 512), (8_500, 1280))


def best(work: Callable[[], Any]) -> tuple[Any, float]:
    """What it gives, and the CPU seconds of the quicker of two runs."""
    spent = []
    for _ in range(2):
        started = time.process_time()
        found = work()
        spent.append(time.process_time() - started)
    return found, min(spent)


def main() -> None:
    import faiss

    faiss.omp_set_num_threads(1)
    for rows, dim in POOLS:
        rng = np.random.default_rng(0)
        z = rng.standard_normal((rows // 200, dim), np.float32)[rng.integers(0, rows // 200, rows)] + rng.standard_normal((rows, dim), np.float32)
        v = Vectors.of(z / np.linalg.norm(z, axis=1, keepdims=True))
        queries = v.subset(np.arange(QUERIES))

        def flat(v: Vectors = v, queries: Vectors = queries) -> np.ndarray:
            index = faiss.IndexFlatIP(v.dim)
            index.add(v.unit(slice(0, len(v))))
            found: np.ndarray = index.search(queries.unit(slice(0, QUERIES)), K)[1]
            return found

        (_, ours), mine = best(lambda v=v, queries=queries: knn(queries, v, K))
        theirs, other = best(flat)
        same = np.mean([len(np.intersect1d(a, b)) for a, b in zip(ours, theirs, strict=True)]) / K
        print(
            f"{rows:,} x {dim}: keepset {mine:.2f}, faiss flat {other:.2f} CPU s; ours / theirs {mine / other:.2f}; neighbours in common {same:.5f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
