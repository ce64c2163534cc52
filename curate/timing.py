"""What the samples of a pool's first shard take: how many lie in a byte, and how long each measure works on one."""

import functools
import hashlib
import time
from typing import Any

from curate.measuring import file_signature, vector_name
from curate.pool import Batch
from curate.recipe import Recipe
from curate.stages import MEASURE
from manifests.memory import private_bytes
from manifests.shards.index import group, index_shard
from manifests.shards.pool_yaml import PoolDescription, Shard
from manifests.shards.read import ShardReader
from manifests.shards.walk import walk

SAMPLE_ROWS = 64


def density(shard: Shard) -> float:
    """Samples a byte of a shard, by its headers alone."""
    return _density(shard.url, *(file_signature(shard.url) or ()))


@functools.lru_cache(maxsize=16)
def _density(url: str, *signature: Any) -> float:
    with ShardReader(url) as reader:
        return len(group(walk(reader).members)[0]) / max(reader.size, 1)


@functools.lru_cache(maxsize=1)
def _sample(url: str, *signature: Any) -> list[bytes]:
    """The payloads of the first samples of a shard."""
    table = index_shard(Shard("", "", url)).table.slice(0, SAMPLE_ROWS)
    with ShardReader(url) as reader:
        return [bytes(reader.payload(r["offset"], r["size"])) for r in table.to_pylist() if r["fault"] is None]


def timed(recipe: Recipe, pool: PoolDescription, device: str) -> tuple[dict[str, float], dict[str, int], dict[str, int]]:
    """Seconds a sample of each measure, timed on up to 64 samples of the first shard (the first one warms up); values a row of each vector column that is
    measured; bytes that each measure has taken and kept."""
    first = pool.shards[0].url if pool.shards else ""
    sample = _sample(first, *(file_signature(first) or ())) if first else []
    found: dict[str, float] = {}
    held: dict[str, int] = {}
    dims: dict[str, int] = {}
    if not sample:
        return found, dims, held
    for stage in recipe.stages:
        if stage.kind != MEASURE:
            continue
        before = private_bytes() or 0
        columns = stage.function(Batch(sample[:1], None, device), **stage.parameters)
        if stage.name == "measure.vectors":
            dims[vector_name(stage)] = columns["vectors"].shape[1]
        started = time.perf_counter()
        stage.function(Batch(list(sample), None, device), **stage.parameters)
        found[stage.id] = (time.perf_counter() - started) / len(sample)
        held[stage.id] = max(0, (private_bytes() or 0) - before)
    started = time.perf_counter()
    for data in sample:
        hashlib.sha256(data).digest()
    found["measure.index"] = (time.perf_counter() - started) / len(sample) + 2e-5
    return found, dims, held
