"""dedup.all_pairs, 200,000 x 512, against the multiply-adds at this machine's float32 matrix rate; and 200,000 identical rows.

python tests/benchmarks/bench_all_pairs.py [rows]      # CPU seconds and private memory; threads as the environment says
"""

import resource
import sys
import time

import numpy as np

from curate.dedup.all_pairs import all_pairs
from curate.pool import Pool, VectorName
from manifests.vectors.forecast import measured, pairs
from manifests.vectors.store import Vectors

DIM = 512


def pool_of(z: np.ndarray, uid: np.ndarray) -> Pool:
    return Pool(np.array([f"{i:032x}" for i in uid], dtype="S32"), None, {"z": Vectors.of(z)})


def photos(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Unit vectors in 200 clouds, a tenth of them copies with a little noise."""
    z = rng.normal(size=(200, DIM)).astype(np.float32)[rng.integers(0, 200, rows)]
    z += 1.5 * rng.standard_normal((rows, DIM), np.float32)
    copies = rows // 10
    z[:copies] = z[copies : 2 * copies] + 0.05 * rng.standard_normal((copies, DIM), np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    return z.astype(np.float16)


def private_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields.get("RssAnon", "0 kB").split()[0]) * 1024


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000
    rng = np.random.default_rng(0)
    z, uid = photos(rng, rows), rng.permutation(rows)
    before, rates = private_bytes(), measured()
    print(f"float32 matrix rate {rates.multiply_adds / 1e9:.0f} G multiply-adds/s\n")
    print(f"{'pool':12}{'dropped':>10}{'seconds':>10}{'CPU s':>10}{'bound s':>10}{'ratio':>8}{'CPU ratio':>11}{'forecast':>10}{'peak MiB':>10}")
    for name, vectors in (("photos", z), ("identical", np.broadcast_to(z[0], z.shape))):
        pool = pool_of(np.ascontiguousarray(vectors), uid)
        wall, cpu = time.perf_counter(), time.process_time()
        found = all_pairs(pool, vectors=VectorName("z"), min_cosine=0.98)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        bound = rows * rows / 2 * DIM / rates.multiply_adds
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        guess = pairs(rows, DIM, 16, pool.memory).seconds(rates)
        print(
            f"{name:12}{(~found.keep).sum():>10,}{wall:>10.1f}{cpu:>10.1f}{bound:>10.1f}{wall / bound:>8.2f}{cpu / bound:>11.2f}{guess:>10.1f}{peak:>10,.0f}",
            flush=True,
        )
    print(f"\nprivate memory before: {before / (1 << 20):,.0f} MiB, the vectors' {2 * rows * DIM / (1 << 20):,.0f} MiB in memory among it")


if __name__ == "__main__":
    main()
