"""curate replay over a run of 1,000,000 samples whose pool is gone: another threshold, a stage left out. CPU seconds, peak memory.

python tests/benchmarks/bench_replay.py [rows]
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.deciding import Setting, decide
from curate.frame import Frame, identity_digests
from curate.measuring import index_digest, measure_digest, part_path
from curate.pool import Edges
from curate.recipe import Recipe, parse_recipe
from curate.recording import ledger_stages, publish_run
from curate.replaying import replay
from curate.writing import finish
from manifests.digest import digest
from manifests.publish import publish_bytes, publish_json, publish_table
from manifests.schema import IDENTITY
from manifests.shards.pool_yaml import PoolDescription, Shard

RECIPE = """format: 1
pool: gone
stages:
  - measure.quality:
  - measure.exact_hash:
  - measure.perceptual_hash:
  - dedup.exact:
  - dedup.perceptual: {floor_rms: 18.0, prefer: [num_pixels]}
  - keep.where: "blur >= 20 AND contrast >= 30"
  - select.stratified: {keep: 0.5, by: label}
"""
A_SHARD, MEMBER = 10_000, pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])


def index_of(rng: np.random.Generator, first: int, rows: int) -> pa.Table:
    """The index part of a shard of labelled pictures."""
    size = rng.integers(5_000, 50_000, rows)
    offset = np.cumsum(size + 1024) - size
    text = pa.nulls(rows, pa.string())
    members = pa.StructArray.from_arrays([pa.array(["jpg"] * rows), pa.array(offset), pa.array(size)], fields=list(MEMBER))
    return pa.table({
        "key": [f"{i:09d}" for i in range(first, first + rows)], "suffix": pa.array(["jpg"] * rows), "offset": offset, "size": size,
        "content": pa.Array.from_buffers(pa.binary(32), rows, [None, pa.py_buffer(rng.bytes(32 * rows))]),
        "label": pa.array(rng.integers(0, 100, rows), pa.int32()), "label_name": text, "caption": text, "source_uid": text, "fault": text,
        "members": pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), members),
    })  # fmt: skip


def measured(rng: np.random.Generator, rows: int, copies: np.ndarray) -> dict[str, pa.Table]:
    """The parts of the measures: `copies` (rows,) says whose pixels a row shares."""

    def fixed(width: int) -> pa.Array:
        return pa.Array.from_buffers(pa.binary(width), rows, [None, pa.py_buffer(rng.bytes(width * rows))])

    fault = pa.nulls(rows, pa.string())
    pixels = [int(c).to_bytes(16, "little") for c in copies]
    quality = {name: rng.gamma(4, 20, rows).astype(np.float32) for name in ("blur", "contrast")} | {"num_pixels": rng.integers(1, 1 << 22, rows)}
    return {
        "measure.quality": pa.table({**quality, "fault": fault}),
        "measure.exact_hash": pa.table({"bytes_hash": fixed(16), "pixels_hash": pa.array(pixels, pa.binary(16)), "fault": fault}),
        "measure.perceptual_hash": pa.table({"phash": fixed(8), "phash_views": fixed(64), "phash_trimmed_views": fixed(64), "fault": fault}),
    }


def make_run(root: Path, rows: int) -> None:
    """A finished run of `rows` samples, its decisions made by the code of `curate build`; a tenth are exact copies, as many pairs as rows look alike."""
    rng = np.random.default_rng(0)
    recipe: Recipe = parse_recipe(RECIPE, "recipe")
    pool = PoolDescription("/gone/pool.yaml", "gone", tuple(Shard("s", f"{i:05d}", f"/gone/{i:05d}.tar") for i in range(-(-rows // A_SHARD))))
    inputs = [digest(shard.id) for shard in pool.shards]
    counts = [min(A_SHARD, rows - i * A_SHARD) for i in range(len(inputs))]
    publish_json(
        root / "cache" / "shards.json", {s.url: {"signature": None, "digest": d, "classes": []} for s, d in zip(pool.shards, inputs, strict=True)}
    )
    for number, (shard, given, identity) in enumerate(zip(pool.shards, inputs, identity_digests(inputs), strict=True)):
        publish_table(part_path(root, "measure.index", shard), index_of(rng, number * A_SHARD, counts[number]), index_digest(given))
        uid = np.frombuffer(rng.bytes(16 * counts[number]).hex().encode(), "S32").astype("U")
        table = pa.table({"uid": pa.array(uid.tolist(), pa.string()), "ordinal": np.zeros(counts[number], np.int64)}, schema=IDENTITY)
        publish_table(part_path(root, "identity", shard), table, identity, bloom="uid")
        own = number * A_SHARD + np.arange(counts[number])
        parts = measured(rng, counts[number], np.where(rng.random(counts[number]) < 0.1, rng.integers(0, own.max() + 1, len(own)), own))
        for stage in recipe.stages[:3]:
            publish_table(part_path(root, stage.id, shard), parts[stage.id], measure_digest(stage, given))
    frame, made = Frame(root, pool, inputs, np.array(counts)), {"measure.index": {"in": rows, "quarantined": {}}}
    frame.identify()
    frame.quarantine("measure.index")
    setting = Setting(recipe.seed, 4 << 30, "cpu", {})
    for stage in recipe.stages:
        if stage.kind == "measure":
            made[stage.id] = {"in": rows, "quarantined": frame.add_measure(stage)}
        else:
            made[stage.id] = {**decide(stage, frame, setting, lambda stage, live: seen(rng, frame, live)), "quarantined": {}}
    publish_bytes(root / "recipe.yaml", recipe.yaml().encode())
    totals, outputs = finish(recipe, frame, ledger_stages(recipe), root, workers=1, quiet=True, planned=True)
    described = {"name": "gone", "path": pool.path, "digest": digest(inputs), "licence": None, "source": None}
    lineage = {
        "pool": described,
        "counts": totals,
        "classes": [],
        "damage": [],
        "outputs": outputs,
        "evaluations": {},
        "build_digest": None,
        "shards": "planned",
    }
    publish_run(root, recipe, frame, made, lineage)


def seen(rng: np.random.Generator, frame: Frame, live: np.ndarray):
    """In place of pictures: copies are what their hash says, and as many random pairs as rows look alike."""
    a = rng.integers(0, len(live) - 1, len(live))
    b = np.minimum(a + rng.integers(1, 50, len(live)), len(live) - 1)
    a, b = np.unique(np.stack([a, b])[:, a < b], axis=1)
    pairs = Edges(a, b, np.sort(rng.uniform(0, 18, len(a)))[rng.permutation(len(a))], {"distance": rng.integers(0, 9, len(a)).astype(np.int32)})

    def answer(rows: np.ndarray) -> Iterator[bytes]:
        mask = np.zeros(len(frame.live), bool)
        mask[rows] = True
        pixels = frame.columns(["pixels_hash"], mask)["pixels_hash"].to_pylist()
        return (pixels[place] for place in np.argsort(np.argsort(rows)))

    return pairs, answer


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="bench-replay-") as folder:
        run = Path(folder) / "run"
        begun = time.process_time()
        make_run(run, rows)
        print(f"{rows:,} rows, the run made in {time.process_time() - begun:.1f} CPU s\n", flush=True)
        print(f"{'replay':58}{'kept':>10}{'CPU s':>8}{'seconds':>9}{'peak MiB':>10}", flush=True)
        cases = {
            "nothing changed": {},
            "select.stratified.keep=0.4": {"settings": ["select.stratified.keep=0.4"]},
            "dedup.perceptual.max_rms=8": {"settings": ["dedup.perceptual.max_rms=8.0"]},
            "dedup.perceptual.max_rms=8, without keep.where": {"settings": ["dedup.perceptual.max_rms=8.0"], "without": ["keep.where"]},
            "the same, --out": {"settings": ["dedup.perceptual.max_rms=8.0"], "without": ["keep.where"], "out": Path(folder) / "run2"},
        }
        for name, given in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            kept = replay(run, device="cpu", **given)["counts"]["kept"]
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"{name:58}{kept:>10,}{cpu:>8.1f}{wall:>9.1f}{peak:>10,.0f}", flush=True)


if __name__ == "__main__":
    main()
