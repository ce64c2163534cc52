"""Writing shards against `cp` of the same bytes, fsync in both; and the walk over a tar.

    python tests/benchmarks/bench_shards.py [megabytes] [folder]      # wall and CPU seconds, best of three, alternating

Aim: at most 1.5 x `cp` for 1 GB of samples with a 36 KiB JPEG each.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from manifests.shards.index import group, index_shard, uids
from manifests.shards.pool_yaml import Shard
from manifests.shards.read import ShardReader
from manifests.shards.walk import walk
from manifests.shards.write import ShardTask, _header, layout, write_shard_task

SIZE, PER_SHARD = 36 * 1024, 10_000


def make_pool(folder: Path, megabytes: int) -> list[Shard]:
    """Shards of incompressible payloads of 36 KiB, with caption and label."""
    count, shards = megabytes * 1_000_000 // SIZE, []
    for start in range(0, count, PER_SHARD):
        path = folder / f"{start // PER_SHARD:05d}.tar"
        with open(path, "wb") as file:
            for number in range(start, min(start + PER_SHARD, count)):
                for suffix, body in (("jpg", os.urandom(SIZE)), ("txt", b"a caption of common length, for a photograph"), ("cls", b"3")):
                    file.write(_header(f"{number:08d}.{suffix}", len(body)) + body + bytes(-len(body) % 512))
            file.write(bytes(1024))
        shards.append(Shard("s", path.stem, str(path)))
    return shards


def rows_of(shards: list[Shard]) -> pa.Table:
    parts = []
    for shard in shards:
        table = index_shard(shard).table
        table = table.append_column("uid", pa.array([u.decode() for u in uids(table)[0]]))
        parts.append(table.append_column("shard", pa.array([shard.id] * len(table))))
    return pa.concat_tables(parts)


def copied(shards: list[Shard], out: Path) -> None:
    out.mkdir()
    subprocess.run(["cp", *(s.url for s in shards), str(out)], check=True)
    for path in sorted(out.iterdir()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def written(rows: pa.Table, shards: list[Shard], out: Path, seed: int | None) -> None:
    order, shard, _ = layout(len(rows), per_shard=PER_SHARD, seed=seed)
    urls = {s.id: s.url for s in shards}
    for number in range(int(shard.max()) + 1):
        chosen = rows.take(pa.array(order[shard[order] == number]))
        write_shard_task(ShardTask(out / f"{number:05d}.tar", chosen, urls, "benchmark"))


def timed(work: Callable[[Path], object], folder: Path) -> np.ndarray:
    """(wall, CPU) seconds, children included; what was written is removed again."""
    out = folder / "out"
    started, before = time.perf_counter(), _cpu()
    work(out)
    spent = np.array([time.perf_counter() - started, _cpu() - before])
    subprocess.run(["rm", "-r", str(out)], check=True)
    return spent


def _cpu() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def main() -> None:
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        folder = Path(name)
        shards = make_pool(folder, megabytes)
        rows = rows_of(shards)
        ways: dict[str, Callable[[Path], object]] = {
            "cp and fsync": lambda out: copied(shards, out),
            "shards, pool order": lambda out: written(rows, shards, out, None),
            "shards, shuffled": lambda out: written(rows, shards, out, 1),
        }
        best = {name: np.full(2, np.inf) for name in ways}
        for _ in range(3):
            for name, work in ways.items():
                best[name] = np.minimum(best[name], timed(work, folder))
        print(f"{len(rows)} samples, {sum(Path(s.url).stat().st_size for s in shards) / 1e9:.2f} GB")
        for name, (wall, cpu) in best.items():
            print(f"  {name:22s}{wall:7.2f} s wall{cpu:7.2f} s CPU   {wall / best['cp and fsync'][0]:5.2f} x cp")
        started = time.process_time()
        with ShardReader(shards[0].url) as reader:
            walked = walk(reader)
        middle = time.process_time()
        samples, _ = group(walked.members)
        print(
            f"  walk alone: {len(samples) / (middle - started):,.0f} samples/s of three members; with grouping {len(samples) / (time.process_time() - started):,.0f}"
        )


if __name__ == "__main__":
    main()
