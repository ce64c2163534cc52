"""select.facility_location: 10,000 x 64 -> 1,000 against apricot and submodlib where they are installed; 20,000 x 128 -> 2,000 and 50,000 x 256 -> 5,000 beside
one similarity pass and the forecast.

python tests/benchmarks/bench_facility_location.py [rivals|large]

One thread for the matrix library, freed memory kept, as in the engine's workers. keepset is the best of five runs by process CPU time, its rivals run once.
"""

import importlib.util
import sys
import time
from collections.abc import Callable

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from curate.pool import Pool, Share, VectorName
from curate.select.facility_location import facility_location
from manifests.memory import keep_freed
from manifests.vectors.forecast import facility, measured
from manifests.vectors.store import Vectors
from tests.benchmarks.bench_semantic import watched


def clouds(rows: int, dim: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(500, dim))[rng.integers(0, 500, rows)] * 2 + rng.normal(size=(rows, dim)) * rng.random((rows, 1))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float16)


def ours(z: np.ndarray, picks: int) -> list[int]:
    pool = Pool(np.array([f"{i:032x}" for i in range(len(z))], dtype="S32"), None, {"z": Vectors.of(z)})
    rank = facility_location(pool, vectors=VectorName("z"), keep=Share(count=picks)).columns["facility_location_rank"]
    return np.argsort(np.where(rank < 0, len(z), rank), kind="stable")[:picks].tolist()


def similarities(z: np.ndarray) -> np.ndarray:
    wide = z.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    return (1 + wide @ wide.T) / 2


def apricot(z: np.ndarray, picks: int) -> list[int]:
    from apricot import FacilityLocationSelection  # type: ignore[import-not-found]

    return FacilityLocationSelection(picks, metric="precomputed", optimizer="lazy").fit(similarities(z)).ranking.tolist()


def submodlib(z: np.ndarray, picks: int) -> list[int]:
    from submodlib import FacilityLocationFunction  # type: ignore[import-not-found]

    function = FacilityLocationFunction(n=len(z), mode="dense", sijs=similarities(z).astype(np.float32), separate_rep=False)
    return [row for row, _ in function.maximize(budget=picks, optimizer="LazyGreedy", show_progress=False)]


def timed(work: Callable[[np.ndarray, int], list[int]], z: np.ndarray, picks: int, runs: int = 1) -> tuple[list[int], float, float]:
    """(picks, seconds, CPU seconds) of the run that took the least CPU."""
    work(z[:500], 50)  # imports and compilation
    taken = []
    for _ in range(runs):
        wall, cpu = time.perf_counter(), time.process_time()
        found = work(z, picks)
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = min(taken)
    return found, wall, cpu


def rivals() -> None:
    z, picks = clouds(10_000, 64), 1_000
    s = similarities(z)
    print(f"{'10k x 64 -> 1k':16}{'seconds':>10}{'CPU s':>10}{'objective':>18}")
    for name, work, needs in (("keepset", ours, "curate"), ("apricot", apricot, "apricot"), ("submodlib", submodlib, "submodlib")):
        if importlib.util.find_spec(needs) is None:
            print(f"{name:16}{'not installed':>20}")
            continue
        found, wall, cpu = timed(work, z, picks, runs=5 if name == "keepset" else 1)
        print(f"{name:16}{wall:>10.2f}{cpu:>10.2f}{s[:, found].max(1).sum():>18.6f}", flush=True)


def large() -> None:
    print(f"{'':22}{'seconds':>10}{'CPU s':>10}{'one pass s':>12}{'CPU ratio':>11}{'forecast s':>12}{'MiB more':>10}{'forecast MiB':>14}")
    for rows, dim, picks in ((10_000, 64, 1_000), (20_000, 128, 2_000), (50_000, 256, 5_000)):
        z, rates = clouds(rows, dim), measured(time.process_time)
        (_, wall, cpu), _, _, peak = watched(lambda: timed(ours, z, picks))  # noqa: B023
        one_pass, forecast = rows**2 * dim / rates.multiply_adds, facility(rows, picks, dim, 4 << 30)
        print(
            f"{f'{rows:,} x {dim} -> {picks:,}':22}{wall:>10.1f}{cpu:>10.1f}{one_pass:>12.1f}{cpu / one_pass:>11.2f}{forecast.seconds(rates):>12.1f}",
            end="",
        )
        print(f"{peak / 2**20:>10.0f}{forecast.memory / 2**20:>14.0f}", flush=True)


if __name__ == "__main__":
    keep_freed()
    threadpool_limits(1)
    print("threads:", ", ".join(f"{pool['internal_api']} {pool['num_threads']}" for pool in threadpool_info()))
    if "large" not in sys.argv[1:]:
        rivals()
    if "rivals" not in sys.argv[1:]:
        large()
