"""What a build will take before it begins: for each stage what stands already, and a forecast of time and memory. A decision's own is in its file."""

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from curate.measuring import WORKER_BYTES, index_digest, measure_digest, part_path, shard_signature, vector_name
from curate.plan import evaluation_names, evaluation_paths, measures_for
from curate.recipe import PoolPaths, Recipe, ResolvedStage, VectorName, parse_recipe
from curate.shard_cache import cached_digests
from curate.stages import MEASURE, STAGES
from curate.timing import density, timed
from manifests.errors import Refusal
from manifests.publish import published_digest
from manifests.shards.pool_yaml import PoolDescription, Shard, open_pool
from manifests.vectors.forecast import Forecast, Size


@dataclass(frozen=True)
class Line:
    """One line of `--dry-run`: a stage, how many of its parts stand, seconds and bytes expected."""

    stage: str
    kind: str
    done: int
    parts: int
    seconds: float | None
    memory: int | None

    def plain(self) -> dict[str, Any]:
        """For `--json`."""
        return dict(self.__dict__)


def forecast(
    recipe: Recipe, pool: PoolDescription, root: Path, workers: int, device: str, memory: int, *, beside: dict[str, int] | None = None,
    anew: bool = False, reuse: Sequence[Path] = (),
) -> tuple[int, list[Line]]:  # fmt: skip
    """(rows, one line a stage): what is done, and what the rest will take, from a timed sample of the first shard; evaluation pools first.

    Rows are counted where the index stands, else estimated from what the first shard's samples take.
    beside      rows of earlier generations that each decision sees beside those of the pool
    anew        no decision stands
    reuse       other runs whose parts will serve
    """
    seconds, measured_dims, held = timed(recipe, pool, device)
    dims = _attached_dims(pool) | measured_dims
    lines, tests = [], {}
    for path, name in evaluation_names(evaluation_paths(recipe)).items():
        folders = [folder / "evaluations" / name for folder in (root, *reuse)]
        tests[path], found = _measure_lines(measures_for(recipe, path), open_pool(path), folders, workers, (seconds, held), f"{name}: ")
        lines += found
    folders = [root, *reuse]
    rows, measures = _measure_lines(measures_for(recipe, None), pool, folders, workers, (seconds, held))
    by_name = {line.stage: line for line in measures}
    unchanged = [0 if anew else _unchanged(recipe, folder) for folder in folders]
    lines.append(by_name["measure.index"])
    for number, stage in enumerate(recipe.stages, 1):
        if stage.kind == MEASURE:
            lines += [by_name[stage.id]] if stage.id != "measure.index" else []
            continue
        there = [
            sum(part_path(f, stage.id, s).exists() for s in pool.shards) if number <= same else 0 for f, same in zip(folders, unchanged, strict=True)
        ]
        ahead = decision_forecast(stage, rows + (beside or {}).get(stage.id, 0), dims, memory, tests, device)
        stands = max(there)
        took = 0.0 if stands == len(pool.shards) else None if ahead is None else ahead.seconds()
        lines.append(Line(stage.id, stage.kind, stands, len(pool.shards), took, None if ahead is None else ahead.memory))
    return rows, lines


def _measure_lines(
    stages: list[ResolvedStage],
    pool: PoolDescription,
    folders: list[Path],
    workers: int,
    measured: tuple[dict[str, float], dict[str, int]],
    prefix: str = "",
) -> tuple[int, list[Line]]:
    """(rows, a line for the index and each measure) of a pool whose parts may lie in several folders, the run's own first."""
    seconds, held = measured
    known = {name: given for folder in reversed(folders) for name, given in cached_digests(folder, pool).items()}
    rows = next((found for folder in folders for found, counted in [_rows(pool, folder, known)] if counted), None)
    if rows is None:
        rows = _rows(pool, folders[0], known)[0]
    lines = []
    for stage in [None, *stages]:
        name = stage.id if stage else "measure.index"
        done = sum(any(_stands(folder, name, stage, s, known) for folder in folders) for s in pool.shards)
        alone = stage is not None and STAGES[stage.name].needs_device
        per_row, left = seconds.get(name), 1 - done / max(len(pool.shards), 1)
        took = None if per_row is None else per_row * rows * left / (1 if alone else max(workers, 1))
        needed = held.get(name, 0) + WORKER_BYTES if alone else workers * WORKER_BYTES
        lines.append(Line(prefix + name, MEASURE, done, len(pool.shards), took, needed))
    return rows, lines


def needs_of(recipe: Recipe, pool: PoolDescription, root: Path, memory: int) -> tuple[int, list[tuple[str, int | None]]]:
    """(rows, (stage, bytes) of each decision that does not stand, as if all rows reached it), from headers and footers alone.

    Rows are counted where the index stands; else at least so many. Bytes are None where the width of the vectors shows only when they are measured.
    """
    rows, counted = _rows(pool, root, cached_digests(root, pool))
    rows, dims, unchanged = rows if counted else int(0.8 * rows), _known_dims(recipe, pool, root), _unchanged(recipe, root)
    needs, tests = [], {}
    for path, name in evaluation_names(evaluation_paths(recipe)).items():
        each, folder = open_pool(path), root / "evaluations" / name
        count, is_counted = _rows(each, folder, cached_digests(folder, each))
        tests[path] = count if is_counted else int(0.8 * count)
    for number, stage in enumerate(recipe.stages, 1):
        stands = number <= unchanged and all(part_path(root, stage.id, s).exists() for s in pool.shards)
        if stage.kind != MEASURE and not stands:
            ahead = decision_forecast(stage, rows, dims, memory, tests)
            needs.append((stage.id, None if ahead is None else ahead.memory))
    return rows, needs


def decision_forecast(
    stage: ResolvedStage, rows: int, dims: Mapping[str, int], memory: int, tests: Mapping[str, int] | None = None, device: str = "cpu"
) -> Forecast | None:
    """What the file of a decision says that it will take. None where it cannot tell, or where nobody knows yet how many rows or how wide the vectors are.

    dims     values a row of each vector column that is known
    tests    rows of each evaluation pool, by path; as many as the pool has where nothing is said
    device   where `dedup.all_pairs` compares; what the others gain from one is not counted
    """
    names = stage.reads(VectorName)
    if any(name not in dims for name in names) or (names and not rows):
        return None
    size = Size(rows, [dims[name] for name in names], memory, [(tests or {}).get(path, rows) for path in stage.reads(PoolPaths)], device)
    found: Forecast | None = importlib.import_module(f"curate.{stage.name}").forecast(size, **stage.parameters)
    return found


def _known_dims(recipe: Recipe, pool: PoolDescription, root: Path) -> dict[str, int]:
    """Vector column -> values a row, as attachments, vectors that stand and specs tell it: no encoder is opened."""
    from curate.encoders import parse
    from manifests.vectors.store import Vectors

    dims = _attached_dims(pool)
    for stage in recipe.stages:
        if stage.name != "measure.vectors":
            continue
        name, spec = vector_name(stage), parse(stage.parameters["encoder"])
        files = sorted((root / "vectors" / name).rglob("*.arrow"))[:1]
        if files:
            dims[name] = Vectors.open(files).dim
        elif spec.kind == "pixels":
            dims[name] = 3 * int(spec.model) ** 2
    return dims


def _attached_dims(pool: PoolDescription) -> dict[str, int]:
    dims = {e["name"]: int(re.sub(r"\D", "", str((e.get("columns") or {}).get(e["name"], "")).removeprefix("float16")) or 0) for e in pool.attached}
    return {name: dim for name, dim in dims.items() if dim}


def _unchanged(recipe: Recipe, root: Path) -> int:
    """How many stages from the first one on are those that the run in `root` was made with."""
    path = root / "recipe.yaml"
    if not path.exists():
        return 0
    try:
        before = parse_recipe(path.read_text(encoding="utf-8"), str(path))
    except (Refusal, UnicodeDecodeError):
        return 0  # damaged: the build writes it anew
    same = [a.plain() == b.plain() and before.seed == recipe.seed for a, b in zip(recipe.stages, before.stages, strict=False)]
    return same.index(False) if False in same else len(same)


def _stands(root: Path, name: str, stage: ResolvedStage | None, shard: Shard, known: dict[str, str]) -> bool:
    given = known.get(shard.id)
    if given is None:
        return False
    wanted = index_digest(given) if stage is None else measure_digest(stage, given)
    return published_digest(part_path(root, name, shard)) == wanted


def _rows(pool: PoolDescription, root: Path, known: dict[str, str]) -> tuple[int, bool]:
    counted = 0
    for shard in pool.shards:
        path = part_path(root, "measure.index", shard)
        if shard.id not in known or published_digest(path) is None:  # not there, or damaged
            break
        counted += pq.read_metadata(path).num_rows
    else:
        return counted, True
    sizes = [(shard_signature(s)[0] or [0])[0] or 0 for s in pool.shards]
    first = next((shard for shard, held in zip(pool.shards, sizes, strict=True) if held), None)
    return (int(sum(sizes) * density(first)) if first else 0), False
