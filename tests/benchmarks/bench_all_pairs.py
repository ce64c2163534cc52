"""dedup.all_pairs, 200,000 x 512, against the multiply-adds at this machine's float32 matrix rate; and 200,000 identical rows.

python tests/benchmarks/bench_all_pairs.py [rows] [device]      # CPU seconds and private memory; threads as the environment says

On a device (cuda) the bound is rows^2 / 2 products at its float16 matrix rate, measured here, and its float32 rate is printed beside it.
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
STEP = 1 << 16  # rows made at a time
NOISE = 0.05 / (1 + 1.5**2) ** 0.5 / DIM**0.5  # a value, of a copy


def pool_of(z: np.ndarray, uid: np.ndarray, device: str) -> Pool:
    return Pool(np.array([f"{i:032x}" for i in uid], dtype="S32"), None, {"z": Vectors.of(z)}, device=device)


def matrix_rate(device: str, kind: str) -> float:
    """Multiply-adds a second of 8192 x 512 x 32768 products on `device`, after one that warms up."""
    import torch

    a, b = (torch.ones((rows, DIM), dtype=getattr(torch, kind), device=device) for rows in (8192, 32_768))
    for rounds in (1, 20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(rounds):
            a @ b.T
        torch.cuda.synchronize()
    return 20 * 8192 * 32_768 * DIM / (time.perf_counter() - started)


def photos(rng: np.random.Generator, rows: int) -> np.ndarray:
    """Unit vectors in 200 clouds, a tenth of them copies with a little noise."""
    middle, copies = rng.normal(size=(200, DIM)).astype(np.float32), rows // 10
    found = np.empty((rows, DIM), np.float16)
    for start in range(0, rows - copies, STEP):
        count = min(STEP, rows - copies - start)
        found[copies + start : copies + start + count] = unit(
            middle[rng.integers(0, 200, count)] + 1.5 * rng.standard_normal((count, DIM), np.float32)
        )
    for start in range(0, copies, STEP):
        one = found[copies + start : copies + min(start + STEP, copies)].astype(np.float32)
        found[start : start + len(one)] = unit(one + NOISE * rng.standard_normal(one.shape, np.float32))
    return found


def unit(z: np.ndarray) -> np.ndarray:
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def private_bytes() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields.get("RssAnon", "0 kB").split()[0]) * 1024


def main() -> None:
    rows, device = int(sys.argv[1]) if len(sys.argv) > 1 else 200_000, sys.argv[2] if len(sys.argv) > 2 else "cpu"
    rng = np.random.default_rng(0)
    z, uid = photos(rng, rows), rng.permutation(rows)
    before, rates = private_bytes(), measured()
    rate = rates.multiply_adds if device == "cpu" else matrix_rate(device, "float16")
    more = "" if device == "cpu" else f", {device}: float16 {rate / 1e9:.0f}, float32 {matrix_rate(device, 'float32') / 1e9:.0f}"
    print(f"float32 matrix rate {rates.multiply_adds / 1e9:.0f} G multiply-adds/s{more}\n")
    print(f"{'pool':12}{'dropped':>10}{'seconds':>10}{'CPU s':>10}{'bound s':>10}{'ratio':>8}{'CPU ratio':>11}{'forecast':>10}{'peak MiB':>10}")
    for name, vectors in (("photos", z), ("identical", np.broadcast_to(z[0], z.shape))):
        pool = pool_of(np.ascontiguousarray(vectors), uid, device)
        wall, cpu = time.perf_counter(), time.process_time()
        found = all_pairs(pool, vectors=VectorName("z"), min_cosine=0.98)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        bound = rows * rows / 2 * DIM / rate
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        guess = pairs(rows, DIM, 16, pool.memory).seconds(rates)
        print(
            f"{name:12}{(~found.keep).sum():>10,}{wall:>10.1f}{cpu:>10.1f}{bound:>10.1f}{wall / bound:>8.2f}{cpu / bound:>11.2f}{guess:>10.1f}{peak:>10,.0f}",
            flush=True,
        )
    print(f"\nprivate memory before: {before / (1 << 20):,.0f} MiB, the vectors' {2 * rows * DIM / (1 << 20):,.0f} MiB in memory among it")


if __name__ == "__main__":
    main()
