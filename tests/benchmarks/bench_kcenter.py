"""select.kcenter, 50,000 x 256 -> 5,000, against reading all vectors once a pick (what the rule asks for, done plainly).

python tests/benchmarks/bench_kcenter.py [rows picks]
"""

import sys
import time

import numpy as np

from curate.pool import Pool, Share, VectorName
from curate.select.kcenter import kcenter
from manifests.vectors.forecast import farthest, measured
from manifests.vectors.store import Vectors

DIM = 256


def main() -> None:
    rows, picks = (int(a) for a in sys.argv[1:3]) if len(sys.argv) > 2 else (50_000, 5_000)
    rng, rates = np.random.default_rng(0), measured()
    clouds = rng.normal(size=(500, DIM))[rng.integers(0, 500, rows)] * 2 + rng.normal(size=(rows, DIM)) * rng.random((rows, 1))
    bound = picks * rows * DIM * 2 / rates.bytes
    print(f"bandwidth {rates.bytes / 1e9:.1f} GB/s: {picks:,} passes over {rows:,} x {DIM} float16 take {bound:.1f} s\n")
    print(f"{'vectors':12}{'seconds':>10}{'CPU s':>10}{'ratio':>8}{'CPU ratio':>11}{'forecast':>10}{'radius':>10}")
    for name, z in (("gaussian", rng.normal(size=(rows, DIM))), ("clouds", clouds), ("identical", np.ones((rows, DIM)))):
        z = (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float16)
        pool = Pool(np.array([f"{i:032x}" for i in rng.permutation(rows)], dtype="S32"), None, {"z": Vectors.of(z)})
        wall, cpu = time.perf_counter(), time.process_time()
        found = kcenter(pool, vectors=VectorName("z"), keep=Share(count=picks))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        guess = farthest(rows, picks, DIM).seconds(rates)
        print(f"{name:12}{wall:>10.1f}{cpu:>10.1f}{wall / bound:>8.2f}{cpu / bound:>11.2f}{guess:>10.1f}{found.threshold:>10.4f}", flush=True)


if __name__ == "__main__":
    main()
