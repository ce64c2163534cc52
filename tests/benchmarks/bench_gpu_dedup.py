"""dedup.all_pairs, dedup.semantic and exact nearest neighbours on a CUDA device: against the card's float16 matrix rate, a plain torch loop, and the CPU; the verdicts
are compared.

python -m tests.benchmarks.bench_gpu_dedup [rows ...]      # of the pools that dedup.all_pairs gets, by default a million and ten million; device and CPU in wall seconds
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from curate.dedup.all_pairs import all_pairs
from curate.dedup.semantic import semantic
from curate.pool import Pool, VectorName, Verdicts
from manifests.vectors.neighbours import knn
from manifests.vectors.store import Vectors
from tests.benchmarks.bench_semantic import DIM, features

STEP = 1 << 16  # rows made at a time
FLOOR, COSINE = 0.95, 0.98
CUDA = "cuda"


def photos(rows: int, seed: int = 0) -> np.ndarray:
    """(rows, 512) float16 unit vectors in 200 clouds, a tenth of them copies at a cosine of about .99, made on the device: numpy would take minutes."""
    import torch

    draw = torch.Generator(CUDA).manual_seed(seed)

    def noise(count: int) -> Any:
        return torch.randn(count, DIM, device=CUDA, generator=draw)

    def unit(z: Any) -> np.ndarray:
        found: np.ndarray = (z / z.norm(dim=1, keepdim=True)).half().cpu().numpy()
        return found

    middle, copies = noise(200), rows // 10
    z = np.empty((rows, DIM), np.float16)
    for first in range(copies, rows, STEP):
        count = min(STEP, rows - first)
        z[first : first + count] = unit(middle[torch.randint(200, (count,), device=CUDA, generator=draw)] + 1.5 * noise(count))
    for first in range(0, copies, STEP):
        some = torch.from_numpy(z[copies + first : copies + min(first + STEP, copies)]).to(CUDA).float()
        z[first : first + len(some)] = unit(some + 0.14 * noise(len(some)) / DIM**0.5)
    return z


def matrix_rate() -> float:
    """float16 multiply-adds a second of 8192 x 512 by 512 x 32768 random values, the median of 30."""
    import torch

    a, b, found = torch.randn(8192, DIM, device=CUDA).half(), torch.randn(32_768, DIM, device=CUDA).half(), []
    for _ in range(33):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        a @ b.T
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return 8192 * 32_768 * DIM / float(np.median(found[3:]))


def plain(z: np.ndarray) -> int:
    """What a user would write: blocks of float16 products above the diagonal, compared on the device. How many pairs."""
    import torch

    x, found = torch.from_numpy(z).to(CUDA), 0
    for top in range(0, len(x), 8192):
        for left in range(0, top + 8192, 1 << 16):
            found += len((x[top : top + 8192] @ x[left : min(left + (1 << 16), top + 8192)].T >= COSINE).nonzero())
    return found


def pool_of(z: np.ndarray, device: str) -> Pool:
    digits = np.random.default_rng(1).integers(0, 16, (len(z), 32), dtype=np.uint8)
    return Pool(np.frombuffer(b"0123456789abcdef", np.uint8)[digits].view("S32")[:, 0], None, {"z": Vectors.of(z)}, memory=64 << 30, device=device)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it gives, wall seconds, CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def pairs(pool: Pool) -> Verdicts:
    return all_pairs(pool, vectors=VectorName("z"), min_cosine=COSINE, floor_cosine=FLOOR)


def clusters(pool: Pool) -> Verdicts:
    return semantic(pool, vectors=VectorName("z"), min_cosine=0.90, floor_cosine=0.90, keeper="uid")


def are_equal(one: Verdicts, other: Verdicts) -> bool:
    assert one.edges is not None and other.edges is not None
    names = all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name == "score") for name in ("keep", "witness", "score"))
    edges = all(
        np.array_equal(np.sort(a), np.sort(b))
        for a, b in ((one.edges.a, other.edges.a), (one.edges.b, other.edges.b), (one.edges.score, other.edges.score))
    )
    return names and edges


def compared(name: str, method: Callable[[Pool], Verdicts], z: np.ndarray) -> None:
    on_device, there, cpu_there = timed(lambda: method(pool_of(z, CUDA)))
    print(f"dedup.{name} {len(z):,}: CUDA {there:.1f} s ({cpu_there:.1f} CPU s), ", end="", flush=True)
    on_cpu, here, cpu_here = timed(lambda: method(pool_of(z, "cpu")))
    print(
        f"CPU {here:.1f} s ({cpu_here:.1f} CPU s), {here / there:.1f} x; dropped {(~on_cpu.keep).sum():,}; the same verdicts and edges: {are_equal(on_cpu, on_device)}",
        flush=True,
    )


def main() -> None:
    import torch

    if not torch.cuda.is_available():
        print("needs a CUDA device")
        return
    sizes = [int(given) for given in sys.argv[1:]] or [1_000_000, 10_000_000]
    rate = matrix_rate()
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {os.cpu_count()} CPU cores; float16 {2e-12 * rate:.0f} TFLOP/s on 8192 x {DIM} x 32768",
        flush=True,
    )
    for name, method, z in (("all_pairs", pairs, photos(100_000)), ("semantic", clusters, features(200_000))):
        compared(name, method, z)
    z = Vectors.of(features(1_000_000))
    few, many = (z.subset(np.arange(count)) for count in (4096, min(200_000, len(z))))
    on_device, there, _ = timed(lambda: knn(few, z, 20, device=CUDA))
    on_cpu, here, _ = timed(lambda: knn(few, z, 20))
    same = all(np.array_equal(one, other) for one, other in zip(on_device, on_cpu, strict=True))
    print(
        f"20 nearest of {len(z):,} to 4,096: CUDA {there:.1f} s (sending among it), CPU {here:.1f} s, {here / there:.1f} x; the same: {same}; ",
        end="",
        flush=True,
    )
    print(f"to {len(many):,}: CUDA {timed(lambda: knn(many, z, 20, device=CUDA))[1]:.1f} s", flush=True)
    for rows in sizes:
        photographs, bound = photos(rows), rows * rows / 2 * DIM / rate
        pool = pool_of(photographs, CUDA)
        found, wall, cpu = timed(lambda pool=pool: pairs(pool))
        more = ""
        if rows <= 2_000_000:
            count, theirs, _ = timed(lambda photographs=photographs: plain(photographs))
            more = f"; plain torch {theirs:.1f} s, {theirs / wall:.2f} x ours ({count:,} entries)"
        print(
            f"dedup.all_pairs {rows:,}: {wall:.1f} s end to end ({cpu:.1f} CPU s), bound {bound:.1f} s, ratio {wall / bound:.2f}; dropped {(~found.keep).sum():,} of "
            f"{rows // 10:,} copies, {len(found.edges.a):,} pairs; {torch.cuda.max_memory_allocated() >> 20:,} MiB on the card{more}",
            flush=True,
        )
    found, wall, cpu = timed(lambda: clusters(pool_of(z.stored(slice(0, len(z))), CUDA)))
    print(f"dedup.semantic {len(z):,}: CUDA {wall:.1f} s ({cpu:.1f} CPU s); dropped {(~found.keep).sum():,}", flush=True)


if __name__ == "__main__":
    main()
