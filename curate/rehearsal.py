"""A decision asked about no rows at all, so that what it refuses of its parameters and files is refused before any work."""

import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from curate.pool import Pool
from curate.recipe import Column, PoolPaths, ResolvedStage, VectorName
from manifests.errors import Refusal
from manifests.shards.pool_yaml import open_pool
from manifests.vectors.store import Vectors

DIM = 8  # of the vectors that are not there: nothing depends on it


def rehearse(stage: ResolvedStage, known: Mapping[str, Sequence[pa.DataType]]) -> None:
    """Let a decision see a pool without rows whose columns have their real types. Every decision must stand that: earlier ones may leave nothing.

    known    column -> the types that it may have; a stage that reads one of several types, or one without any value, is not rehearsed
    Raises what the method raises, and `Refusal` for an evaluation pool that is none, with the recipe's line.
    """
    for path in stage.reads(PoolPaths):
        try:
            open_pool(path)
        except Refusal as refusal:
            raise Refusal(refusal.slug, f"{stage.place}: {refusal.where}", refusal.given, refusal.allowed, refusal.cure) from refusal
    columns = stage.reads(Column)
    if any(len(known[name]) != 1 or pa.types.is_null(known[name][0]) for name in columns):
        return
    pool = _empty(stage, known, {path: _empty(stage, known, {}) for path in stage.reads(PoolPaths)})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of results, and there are none
            stage.function(pool, **stage.parameters)
    except Refusal as refusal:
        where = f"{stage.line}: {refusal.where}" if stage.line else refusal.where
        raise Refusal(refusal.slug, where, refusal.given, refusal.allowed, refusal.cure) from refusal


def _empty(stage: ResolvedStage, known: Mapping[str, Sequence[pa.DataType]], evaluations: dict[str, Pool]) -> Pool:
    table = pa.table({name: pa.array([], known[name][0]) for name in stage.reads(Column)})
    vectors = {name: Vectors.of(np.empty((0, DIM), np.float16)) for name in stage.reads(VectorName)}
    return Pool(np.zeros(0, "S32"), table, vectors, stage=stage.id, evaluations=evaluations, name="rehearsal")
