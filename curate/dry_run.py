"""`curate build --dry-run`: the stages, what stands already, and what the rest will take. Nothing is written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curate.forecasting import forecast
from curate.generations import as_grown, generations_of
from curate.machine import memory_bytes, resolve_device
from curate.measuring import file_signature
from curate.memory import fitting_workers
from curate.plan import check_columns, evaluation_paths
from curate.recipe import read_recipe
from manifests.errors import Refusal
from manifests.memory import family_bytes
from manifests.processes import cores
from manifests.progress import span
from manifests.shards.pool_yaml import open_pool


def dry_run(
    recipe: str | Path,
    *,
    pool: str | None,
    out: str | Path,
    settings: Sequence[str] = (),
    workers: int | None = None,
    device: str = "auto",
    memory: str | None = None,
    reuse: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """The plan of a build as data: pool, rows (estimated unless indexed), a line a stage, the sums. Raises what `build` would raise before any work."""
    resolved = read_recipe(recipe, list(settings), pool)
    if not resolved.pool:
        raise Refusal("bad-recipe", str(recipe), "names no pool", "pool: PATH in the recipe, or --pool PATH")
    resolved = as_grown(resolved, Path(out))
    generations = generations_of(resolved)
    for each in generations.pools:
        check_columns(resolved, each)
    description = generations.whole
    for path in evaluation_paths(resolved):
        open_pool(path)
    for shard in description.shards:
        if file_signature(shard.url) is None:
            raise Refusal("no-such-file", shard.url, "this shard is missing", cure="Bring it back, or take it out of pool.yaml")
    count = fitting_workers(workers or cores(), memory_bytes(memory))
    rows, lines = forecast(resolved, description, Path(out), count, resolve_device(device), memory_bytes(memory), reuse=[Path(r) for r in reuse])
    return {
        "pool": resolved.pool, "shards": len(description.shards), "rows": rows, "workers": count, "memory_limit": memory_bytes(memory), "evaluations": evaluation_paths(resolved),
        "stages": [line.plain() for line in lines], "seconds": sum(line.seconds or 0 for line in lines),
        "memory": (family_bytes() or 0) + max((line.memory or 0 for line in lines), default=0),
    }  # fmt: skip


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def text(plan: dict[str, Any]) -> str:
    """For a reader."""
    lines = [
        f"{plan['pool']}: {_counted(plan['shards'], 'shard')}, about {_counted(plan['rows'], 'sample')}; {_counted(plan['workers'], 'worker')}, memory limit {plan['memory_limit'] / (1 << 30):.1f} GiB"
    ]
    for stage in plan["stages"]:
        done = "done" if stage["done"] == stage["parts"] else f"{stage['done']} of {stage['parts']} parts stand"
        seconds = "" if stage["seconds"] is None else f"{span(stage['seconds'])}"
        memory = "" if stage["memory"] is None else f"{stage['memory'] / (1 << 20):,.0f} MiB"
        lines.append(f"  {stage['stage']:<28} {stage['kind']:<9} {done:<24} {seconds:>10} {memory:>12}")
    too_much = ", more than the limit" if plan["memory"] > plan["memory_limit"] else ""
    lines.append(f"about {span(plan['seconds'])} in all, {plan['memory'] / (1 << 20):,.0f} MiB at the peak{too_much}; nothing was written")
    return "\n".join(lines)
