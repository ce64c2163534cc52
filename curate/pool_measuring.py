"""Measure a whole pool: every shard by the workers, one cache of what was seen of each, one type a column over all of them."""

import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curate.attached import bring
from curate.engine_local import map_tasks
from curate.frame import Frame
from curate.generations import Generations
from curate.machine import Options, device_workers
from curate.measuring import Measured, MeasureTask, measure_shard, part_path
from curate.memory import fitting_workers, shares
from curate.plan import attachments_read, measures_for, measures_of
from curate.recipe import Recipe
from curate.shard_cache import cached_digests, remember
from manifests.errors import Refusal
from manifests.progress import Progress
from manifests.publish import read_object
from manifests.shards.pool_yaml import PoolDescription
from manifests.shards.read import local_path

SAVED = 30.0  # seconds of reading between two notes of what was read


def measure_pool(
    recipe: Recipe, generations: Generations, root: Path, options: Options, last: str | None = None, trusted: dict[str, str] | None = None
) -> tuple[Frame, list[str]]:
    """Run every measure over every shard of each generation into `root`.

    last        an evaluation pool's path: only the measures that it needs
    trusted     input digests of shards whose parts are known to stand: nothing of them is read again
    """
    results: dict[str, Measured] = {}
    for each in generations.pools:
        if trusted and all(shard.id in trusted for shard in each.shards):
            results |= {s.id: measure_shard(MeasureTask(s, root, (), trusted[s.id], classes=each.classes)) for s in each.shards}
        else:
            results |= _measure(recipe, each, root, options, last)
    pool = generations.whole
    bring(pool, root, attachments_read(recipe, pool), anew=options.recheck, events=options.events, quiet=options.quiet)
    _agree(root, pool)
    frame = Frame(
        root,
        pool,
        [results[s.id].input_digest for s in pool.shards],
        np.array([results[s.id].rows for s in pool.shards], np.int64),
        bounds=generations.bounds,
    )
    frame.identify()
    frame.quarantine("measure.index")
    names = {shard.id: each.name for each in generations.pools for shard in each.shards}
    return frame, [f"{names[shard]}: {shard}: {text}" for shard, result in results.items() for text in result.damage]


def _measure(recipe: Recipe, pool: PoolDescription, root: Path, options: Options, last: str | None) -> dict[str, Measured]:
    """What the tasks of one pool report, by shard; the measures that need a device run after the others, in one process or, on CUDA, in several."""
    wanted = None if last is None else {s.id for s in measures_for(recipe, last)}
    known = cached_digests(root, pool, options.recheck)
    results: dict[str, Measured] = {}
    for device in (False, True):
        stages = tuple(s for s in measures_of(recipe, device) if wanted is None or s.id in wanted)
        if device and not stages:
            break
        workers = fitting_workers(options.workers, options.memory)
        workers = device_workers(options.device, workers, options.memory) if device else workers
        place, (share, room) = options.device if device else "cpu", shares(workers, options.memory)
        tasks = [
            MeasureTask(s, root, stages, results[s.id].input_digest if device else known.get(s.id), place, pool.classes, share, room)
            for s in pool.shards
        ]
        saved = time.monotonic()
        what = f"{pool.name}: " + (", ".join(s.id.removeprefix("measure.") for s in stages) if stages else "index")
        samples = _samples(root, pool)
        total, unit = (len(tasks), "shards") if samples is None else (samples, "samples")
        with Progress(what, total, unit, options.events, options.quiet) as progress:
            for result in map_tasks(measure_shard, tasks, workers=workers, watch=None if samples is None else progress.reach):
                first = results.get(result.shard, result)  # the signature of before the first reading: what changed since is read again next time
                results[result.shard] = replace(result, signature=first.signature)
                if samples is None:
                    progress.advance()
                if time.monotonic() - saved > SAVED:
                    _remember(root, pool, results)
                    saved = time.monotonic()
            progress.reach(total)
    _remember(root, pool, results)
    shutil.rmtree(root / "cache" / "unfinished", ignore_errors=True)  # also what another recipe has begun
    return results


def _samples(root: Path, pool: PoolDescription) -> int | None:
    """How many samples a pool has, by the `sizes.json` beside its shards or by index parts; None where these do not tell. Only progress may trust it."""
    sizes: dict[Path, dict[str, Any]] = {}
    total = 0
    for shard in pool.shards:
        here, part = local_path(shard.url), part_path(root, "measure.index", shard)
        folder = Path(here).parent if here else root
        if here and folder not in sizes:
            sizes[folder] = read_object(folder / "sizes.json")
        found = sizes.get(folder, {}).get(f"{shard.name}.tar")
        try:
            found = pq.read_metadata(part).num_rows if found is None else int(found)
        except (OSError, ValueError, pa.ArrowInvalid):
            return None
        total += found
    return total


def _remember(root: Path, pool: PoolDescription, results: dict[str, Measured]) -> None:
    """Note what was seen of the shards that were read so far, so that a build after a crash reads none of them to know them."""
    remember(root, pool, {shard: (result.signature, result.input_digest) for shard, result in results.items()})


def _agree(root: Path, pool: PoolDescription) -> None:
    """One type a column over all shards, or types that one can be widened to. Raises `Refusal` [bad-pool]."""
    seen: dict[str, tuple[pa.Field, str, pa.DataType]] = {}
    for shard in pool.shards:
        for field in pq.read_schema(part_path(root, "measure.index", shard)):
            whole, first, kind = seen.get(field.name, (field, shard.id, field.type))
            try:
                (whole,) = pa.unify_schemas([pa.schema([whole]), pa.schema([field])], promote_options="permissive")
            except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
                given = f"column {field.name!r} is {kind} in {first} and {field.type} in {shard.id}"
                raise Refusal("bad-pool", pool.path, given, "one type a column", "Write the column with one type in both sidecars") from error
            seen[field.name] = (whole, shard.id, field.type) if pa.types.is_null(kind) else (whole, first, kind)
