"""`curate append`: a new pool for a finished run. Only what is new is measured, compared and written; what was decided stays unless asked."""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curate.building import ASIDE, Earlier, run_stages
from curate.forecasting import forecast
from curate.generations import Generations, generations_of, same_place
from curate.machine import Options, memory_bytes, resolve_device
from curate.measuring import shard_signature, sidecar_digest
from curate.memory import fitting_workers
from curate.plan import check_columns, evaluation_paths, measures_of
from curate.recipe import Recipe, read_recipe
from curate.shard_cache import cached_digests, cached_shards
from curate.standing import discard, parts_stand
from curate.stored import described
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.memory import family_bytes
from manifests.processes import cores
from manifests.progress import record_event
from manifests.publish import locked
from manifests.run import Run, open_run, read_record
from manifests.shards.index import index_shard
from manifests.shards.pool_yaml import PoolDescription, open_pool, recorded_pool


@dataclass(frozen=True)
class _Grown:
    """A run and what it is to become. `inputs` are the input digests of the shards that it has; `is_done` where nothing is left to do."""

    record: dict[str, Any]
    recipe: Recipe
    generations: Generations
    pools: tuple[PoolDescription, ...]  # those that it has
    inputs: list[str]
    is_done: bool


def append(
    run: str | Path,
    *,
    pool: str | None = None,
    redecide: bool = False,
    workers: int | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    quiet: bool = False,
) -> Run:
    """Append a pool to a finished run as a new generation: its samples are measured and decided beside those that earlier generations kept.

    Each stage judges the new samples only. What earlier generations kept at that stage stands beside them as `pool.fixed`: kept first, counted in the
    budget, first in keeper order. What they dropped stays dropped. New kept samples go into further shards; no file of an earlier generation is touched.
    Run again after a crash it continues; finished, it says so.

    pool        the new pool's folder, or a shard URL; a source whose name the run has already gets a number (`shards-2`)
    redecide    decide all generations anew together, as one build over all pools would; what was measured stays, ledger and shards are replaced
    memory      bytes, or text such as "4GiB"; default half of the machine or cgroup
    Guarantee   fractions are of all samples that came so far, counts are counts of the whole. `manifests/FORMAT.md` lists for each stage whether appending
                equals one build over both pools
    Cost        measures of the new shards; a decision sees the new samples beside those that are kept; the uids of all older samples are read once
    Errors      `Refusal`: [not-a-run] for a run that is not finished, [bad-value] for a pool that the run holds already, [bad-pool] for columns or classes
                of another kind, [unknown-column], [empty-pool], [shard-differs] where an older shard has changed, [broken-record] where an older part does
                not stand
    """
    root = _root(run)
    options = Options(workers or cores(), resolve_device(device), memory_bytes(memory), root / "events.jsonl", quiet)
    with locked(root):
        started = time.monotonic()
        grown = _grown(root, pool, redecide)
        if grown.is_done:
            return open_run(root)
        earlier = _earlier(root, grown)
        discard(root, recheck=False)
        found = run_stages(grown.recipe, grown.generations, root, options, earlier)
        record_event(root / "events.jsonl", "appended", seconds=round(time.monotonic() - started, 3), **found.info["counts"])
    return found


def append_plan(
    run: str | Path,
    *,
    pool: str | None = None,
    redecide: bool = False,
    workers: int | None = None,
    device: str = "auto",
    memory: str | int | None = None,
) -> dict[str, Any]:
    """What `append` would do and what it will take, as `curate/dry_run.py` tells it of a build. Nothing is written."""
    root = _root(run)
    grown = _grown(root, pool, redecide)
    limit = memory_bytes(memory)
    count = fitting_workers(workers or cores(), limit)
    new = grown.generations.pools[len(grown.pools) :]
    kept = {stage["id"]: stage["counts"].get("kept", 0) for stage in grown.record["stages"]}
    beside = dict.fromkeys(kept, grown.record["counts"]["rows"]) if redecide else kept
    seen = new[0] if new else grown.generations.whole
    rows, lines = forecast(
        grown.recipe, seen, root, count, resolve_device(device), limit, beside=beside if new else {}, anew=redecide and not grown.is_done
    )
    return {
        "pool": seen.path, "shards": len(seen.shards), "rows": rows, "workers": count, "memory_limit": limit, "evaluations": evaluation_paths(grown.recipe),
        "stages": [line.plain() for line in lines], "seconds": sum(line.seconds or 0 for line in lines),
        "memory": (family_bytes() or 0) + max((line.memory or 0 for line in lines), default=0),
    }  # fmt: skip


def _root(run: str | Path) -> Path:
    root = Path(run)
    if not root.is_dir():
        raise Refusal("no-such-file", str(run), "is not a folder", "a run made by `curate build`")
    return root


def _grown(root: Path, pool: str | None, redecide: bool) -> _Grown:
    """What the run is to become. Raises `Refusal` for all that can be seen before any work."""
    if pool is None and not redecide:
        raise Refusal("bad-value", "curate append", "names no pool", "--pool POOL, or --redecide to decide all generations anew")
    record = _record(root)
    pools, inputs = _recorded(root, record)
    recipe, before = _recipes(root, record, pools)
    append = before.append
    is_new = pool is not None and not _holds(root, pool, pools, inputs, redecide)
    if pool is not None and is_new:
        append = (*append, pool if "://" in pool else os.path.abspath(pool))
    wanted = replace(before, append=append, redecided=len(append) if redecide else before.redecided)
    if recipe not in (before, wanted):
        named = f" --pool {recipe.append[-1]}" if recipe.append != before.append else ""
        cure = f"Finish it first: curate append {root}{named}{' --redecide' if recipe.redecided != before.redecided else ''}"
        raise Refusal("not-a-run", str(root), "another append has begun and is not finished", "one at a time", cure)
    new = [open_pool(append[-1])] if is_new else []  # by its absolute path, as a build will open it
    generations = generations_of(wanted, [*pools, *new])
    for each in generations.pools[len(pools) :]:
        check_columns(wanted, each)
    return _Grown(record, wanted, generations, tuple(pools), inputs, wanted == before and (root / "run.json").exists())


def _record(root: Path) -> dict[str, Any]:
    """`run.json`, or the one that an append put aside before it was stopped."""
    for path in (root / "run.json", root / ASIDE):
        if not path.is_file():
            continue
        record = read_record(path)
        if record.get("shards") == "planned":
            break
        return record
    if not (root / "recipe.yaml").is_file():
        raise Refusal("not-a-run", str(root), "is no run", "a finished run", "Make one: curate build RECIPE --pool POOL --out RUN")
    raise Refusal("not-a-run", str(root), "is not finished", "a finished run", f"Finish it: curate build {root}/recipe.yaml --out {root}")


def _recorded(root: Path, record: dict[str, Any]) -> tuple[list[PoolDescription], list[str]]:
    """The pools of the run, which may be gone, and the input digest of each of their shards."""
    if record.get("generations"):
        pools = [recorded_pool(pool) for generation in record["generations"] for pool in generation["pools"]]
        return pools, [given for generation in record["generations"] for given in generation["inputs"]]
    about = record["pool"]
    pool, inputs = described(root, about["path"], tuple(record["classes"]), about["digest"])
    if not all(shard.url for shard in pool.shards):
        given = "is gone or has other shards now, and the record of this run is too old to tell where they lay"
        raise Refusal("no-such-file", about["path"], given, "the pool of the run", "Bring it back")
    return [pool], inputs


def _recipes(root: Path, record: dict[str, Any], pools: list[PoolDescription]) -> tuple[Recipe, Recipe]:
    """The recipe in the run's folder, and the one that its record was finished with: an append that was stopped has written a further pool into it."""
    recipe = read_recipe(root / "recipe.yaml")
    together = len(record["generations"][0]["pools"]) if record.get("generations") else 1
    before = replace(recipe, append=recipe.append[: len(pools) - 1], redecided=together - 1)
    if digest(before.yaml()) != record["recipe_digest"]:
        cure = f"Finish it: curate build {root}/recipe.yaml --out {root}"
        raise Refusal("not-a-run", str(root), "its recipe.yaml is not the one that it was finished with", "a finished run", cure)
    return recipe, before


def _holds(root: Path, path: str, pools: list[PoolDescription], inputs: list[str], redecide: bool) -> bool:
    """Was this pool the one that was appended last, with the same shards? Raises `Refusal` [bad-value] where the run holds it in another way."""
    at = next((i for i, pool in enumerate(pools) if same_place(path, pool.path)), None)
    if at is None:
        return False
    first = sum(len(pool.shards) for pool in pools[:at])
    now = open_pool(path)
    same = [s.id for s in now.shards] == [s.id for s in pools[at].shards]
    if same and at == len(pools) - 1 and (at or redecide):
        known = cached_digests(root, replace(now, classes=pools[at].classes))
        changed = [s.url for s, given in zip(now.shards, inputs[first:], strict=True) if known.get(s.id, given) != given]
        if not changed:
            return True
    given = f"is pool {at + 1} of this run already" + ("" if same else ", and its shards are others now")
    raise Refusal("bad-value", path, given, "each pool once", "Give the new shards alone: --pool 'FOLDER/{00003..00005}.tar'")


def _earlier(root: Path, grown: _Grown) -> Earlier:
    """What stands of the run. Raises `Refusal` [shard-differs] for an older shard that has changed, [broken-record] for a part that does not stand."""
    count = len(grown.pools)
    old = Generations(grown.generations.pools[:count], count)
    seen = {os.path.abspath(url) if "://" not in url else url: entry.get("signature") for url, entry in cached_shards(root).items()}
    inputs = dict(zip((s.id for s in old.whole.shards), grown.inputs, strict=True))
    for pool in old.pools:
        for shard in pool.shards:
            now = shard_signature(shard)
            if now[0] is None and len(grown.generations.bounds) == 1:
                given = "is missing, and to decide anew is to write the samples of all generations anew"
                raise Refusal("no-such-file", shard.url or pool.path, given, "--redecide has all pools at hand", "Bring it back")
            if now[0] is None or now == seen.get(shard.url):
                continue  # gone: it is not needed unless a stage compares pictures
            if digest(index_shard(shard, classes=pool.classes).digest, sidecar_digest(shard), pool.classes) != inputs[shard.id]:
                cure = "Bring the old file back; or run the same `curate build`, which takes it as it is now and decides anew"
                raise Refusal("shard-differs", shard.url, "has changed since the run was made", "older pools stay as they were", cure)
    measures = [*measures_of(grown.recipe, False), *measures_of(grown.recipe, True)]
    if not parts_stand(root, old.whole, grown.inputs, measures):
        given = "a measure of an earlier generation is damaged, or was made by another version or other weights"
        raise Refusal(
            "broken-record", str(root / "parts"), given, "what is built on stands", "Run the same `curate build` first, it makes it anew; then append"
        )
    return Earlier(inputs, dict(grown.record.get("outputs", {})), len(grown.generations.bounds) - 1)
