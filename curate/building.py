"""Walk the plan: measure every shard, decide stage by stage, fold the ledger, write the shards. Everything resumes by digests."""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.attached import attached_digests, bring
from curate.deciding import Setting, decide
from curate.engine_local import default_workers, map_tasks
from curate.frame import Frame
from curate.generations import Generations, as_grown, generations_of
from curate.machine import device_workers, memory_bytes, resolve_device
from curate.measuring import Measured, MeasureTask, measure_shard, part_path
from curate.memory import fitting_workers, held_under, refuse_early, shares
from curate.plan import (
    attachments_read,
    cached_digests,
    cached_shards,
    check_columns,
    evaluation_names,
    evaluation_paths,
    measures_for,
    measures_of,
    needs_of,
)
from curate.recipe import Recipe, read_recipe
from curate.recording import bounds_of, build_digest, generation_records, inputs_of, ledger_stages, publish_run
from curate.stages import MEASURE
from curate.standing import discard, parts_stand, verdicts_stand
from curate.writing import finish, recorded
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.progress import Progress, record_event
from manifests.publish import locked, publish, publish_bytes, publish_json
from manifests.run import Run, open_run
from manifests.shards.pool_yaml import PoolDescription, open_pool

ASIDE = Path("scratch", "run.json")  # where an append puts the record that it is about to replace


@dataclass(frozen=True)
class Options:
    """How a build runs; none of it reaches a verdict."""

    workers: int
    device: str
    memory: int
    events: Path
    quiet: bool = False
    recheck: bool = False


def build(
    recipe: str | Path,
    *,
    pool: str | None = None,
    out: str | Path,
    settings: Sequence[str] = (),
    reuse: Sequence[str | Path] = (),
    workers: int | None = None,
    device: str = "auto",
    memory: str | int | None = None,
    strict: bool = False,
    recheck: bool = False,
    quiet: bool = False,
) -> Run:
    """Curate a pool by a recipe into the run folder `out`: manifest, ledger, selection, shards.

    Run again it continues where it stopped; finished, it says so at once; a changed parameter redoes that stage and what depends on it.

    recipe      a YAML file, or the name of a recipe that ships with keepset
    pool        a pool's folder or a shard URL; default: the recipe's
    settings    `stage.parameter=value` overrides
    reuse       other runs: parts whose digest stands there are hard-linked
    memory      bytes, or text such as "4GiB"; default half of the machine or cgroup
    strict      quarantined samples are an error [bad-samples], after everything has been written
    recheck     read every shard again instead of trusting size and time, and every byte of the run; what is damaged is written anew
    Errors      `Refusal` for everything that a user can cause
    """
    resolved = read_recipe(recipe, list(settings), pool)
    if not resolved.pool:
        raise Refusal("bad-recipe", str(recipe), "names no pool", "pool: PATH in the recipe, or --pool PATH")
    root = Path(out)
    resolved = as_grown(resolved, root)
    generations = generations_of(resolved)
    for each in generations.pools:
        check_columns(resolved, each)
    options = Options(workers or default_workers(), resolve_device(device), memory_bytes(memory), Path(out) / "events.jsonl", quiet, recheck)
    _refuse_foreign(root)
    for other in reuse:
        if not (Path(other) / "parts").is_dir():
            raise Refusal("not-a-run", str(other), "holds no parts", "a run, for --reuse")
    with locked(root):
        started = time.monotonic()
        run = _finished(root, resolved, generations, recheck)
        if run is None:
            for other in reuse:
                link_run(Path(other), root)
            discard(root, recheck)
            run = run_stages(resolved, generations, root, options)
            record_event(root / "events.jsonl", "built", seconds=round(time.monotonic() - started, 3), **run.info["counts"])
    if resolved.shards and not run.info["counts"]["kept"]:
        raise Refusal(
            "nothing-kept",
            str(root),
            "every sample was dropped or quarantined",
            "at least one kept",
            f"`manifests query {root} …` shows why; set `shards: false` for a ledger without shards",
        )
    if strict and run.info["counts"]["quarantined"]:
        count = run.info["counts"]["quarantined"]
        raise Refusal(
            "bad-samples",
            str(root),
            f"{count} samples are quarantined and --strict was given",
            "none",
            f"List them: manifests query {root} \"SELECT * FROM ledger WHERE status = 'quarantined'\"",
        )
    return run


def _refuse_foreign(root: Path) -> None:
    """Refuse a folder that holds something else, before anything is written there."""
    for path in (root, *root.parents):
        if path.exists() and not path.is_dir():
            raise Refusal("not-a-run", str(path), "is a file", "an empty or a new folder, or a run to go on with")
    if not root.exists():
        return
    known = {
        "recipe.yaml",
        "run.json",
        "events.jsonl",
        "parts",
        "edges",
        "vectors",
        "ledger",
        "selection.npy",
        "shards",
        "evidence",
        "evaluations",
        "replays",
        "cache",
        "scratch",
        "report.html",
        ".lock",
    }
    foreign = sorted(p.name for p in root.iterdir() if p.name not in known and not p.name.endswith(".tmp"))
    if foreign and not (root / "recipe.yaml").exists():
        raise Refusal("not-a-run", str(root), f"holds {', '.join(foreign[:3])} and is no run", "an empty or a new folder, or a run to go on with")


def _finished(root: Path, recipe: Recipe, generations: Generations, recheck: bool) -> Run | None:
    """The run, where it is finished and nothing that it was made from has changed."""
    if recheck or not (root / "run.json").exists():
        return None
    inputs: dict[str, list[Any]] = {}
    for name, (folder, pools) in _pools(recipe, generations, root).items():
        described, known = pools.whole, {id: given for pool in pools.pools for id, given in cached_digests(folder, pool).items()}
        if len(known) != len(described.shards):
            return None
        inputs[name] = [known[s.id] for s in described.shards]
        if not parts_stand(folder, described, inputs[name], measures_for(recipe, name or None)):
            return None
        bring(described, folder, attachments_read(recipe, described))
        inputs[f"attached {name}"] = attached_digests(described, folder)
    try:
        run = open_run(root)
        same = run.info["build_digest"] == build_digest(recipe, inputs | bounds_of(generations.bounds))
        return run if same and verdicts_stand(run, generations.whole, generations.bounds) else None
    except (ValueError, KeyError, TypeError):  # a record that is damaged or edited
        return None


def _pools(recipe: Recipe, generations: Generations, root: Path) -> dict[str, tuple[Path, Generations]]:
    """ "" -> the pool itself in its generations; evaluation path -> its folder in the run and its description."""
    names = evaluation_names(evaluation_paths(recipe))
    return {"": (root, generations), **{path: (root / "evaluations" / name, Generations((open_pool(path),))) for path, name in names.items()}}


def link_run(other: Path, root: Path, link: Callable[[Path, Path], None] = os.link, wanted: Callable[[Path], bool] = lambda path: True) -> None:
    """Hard-link (or copy) the vectors, edges, cache and then the parts of another run that this run has not; digests decide later whether they serve.

    wanted    which of the files, by their path in the run
    """
    kinds = ("vectors", "edges", "cache", "evaluations", "parts")
    found = [source for kind in kinds for source in sorted((other / kind).rglob("*")) if source.is_file() and not source.name.startswith(".")]
    found = [source for source in found if wanted(source.relative_to(other))]
    for source in sorted(found, key=lambda s: "parts" in s.relative_to(other).parts[:-1]):
        target = root / source.relative_to(other)
        if target.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            link(source.resolve(), target)
        except OSError:
            _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as given:
        publish(target, lambda file: shutil.copyfileobj(given, file))


@dataclass(frozen=True)
class Earlier:
    """What a run that grows knows of itself: the input digest of each shard, its outputs, how many generations nothing may decide anew.

    While these are decided its record stands: the run is whole until the new verdicts are there.
    """

    inputs: dict[str, str]
    outputs: dict[str, list[Any]]
    settled: int


def run_stages(recipe: Recipe, generations: Generations, root: Path, options: Options, earlier: Earlier | None = None) -> Run:
    """Measure, decide and write all that does not stand; the run, finished. `root` is locked by the caller."""
    line = refuse_early(recipe, *needs_of(recipe, generations.whole, root, options.memory), options.memory)
    record_event(options.events, "memory", line=line, allowed=options.memory)
    if not options.quiet:
        _say(line)
    with held_under(options.memory, options.events, options.quiet):
        return _run_stages(recipe, generations, root, options, earlier)


def _run_stages(recipe: Recipe, generations: Generations, root: Path, options: Options, earlier: Earlier | None) -> Run:
    for stale in root.rglob(".*.tmp"):  # left by a process that was killed while it wrote
        stale.unlink()
    if earlier is None:
        _begin(recipe, root, keep_record=False)
    frames: dict[str, Frame] = {}
    damage: list[str] = []
    for path, (folder, pools) in _pools(recipe, generations, root).items():
        frames[path], found = measure_pool(recipe, pools, folder, options, last=path or None, trusted={} if path or not earlier else earlier.inputs)
        damage += found
    frame = frames.pop("")
    if earlier:
        _refuse_known(frame, earlier)
    at = 0
    for pool in generations.pools:
        if not frame.counts[at : at + len(pool.shards)].sum():
            raise Refusal("empty-pool", pool.path, "holds no samples", "at least one")
        at += len(pool.shards)
    for path, evaluation in frames.items():
        for stage in measures_for(recipe, path):
            evaluation.add_measure(stage)
    if earlier and not earlier.settled:
        _begin(recipe, root, keep_record=True)
    setting = Setting(recipe.seed, options.memory, options.device, frames, earlier.settled if earlier else 0)
    counts = _stages(recipe, frame, setting, root, options)
    if earlier and earlier.settled:
        _begin(recipe, root, keep_record=True)
    return _finish(recipe, generations, frame, counts, root, options, damage, frames, earlier.outputs if earlier else {})


def _refuse_known(frame: Frame, earlier: Earlier) -> None:
    """Refuse shards that the run holds already, whatever they are called: their samples would all come twice."""
    known = {given: name for name, given in earlier.inputs.items()}
    for shard, given in zip(frame.shards, frame.inputs, strict=True):
        if shard.id not in earlier.inputs and given in known:
            cure = "Give the new shards alone: --pool 'FOLDER/{00003..00005}.tar'"
            raise Refusal("bad-value", shard.url, f"is the shard {known[given]} that the run holds already", "each shard once", cure)


def _begin(recipe: Recipe, root: Path, keep_record: bool) -> None:
    """From here on the run is not finished: its record goes, or is put aside for an append that is run again after a crash."""
    if keep_record and (root / "run.json").exists():
        publish_bytes(root / ASIDE, (root / "run.json").read_bytes())
    elif not keep_record:
        (root / ASIDE).unlink(missing_ok=True)
    (root / "run.json").unlink(missing_ok=True)
    publish_bytes(root / "recipe.yaml", recipe.yaml().encode())


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
    frame = Frame(root, pool, [results[s.id].input_digest for s in pool.shards], _counts(pool, results), bounds=generations.bounds)
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
        what = f"{pool.name}: " + (", ".join(s.id.removeprefix("measure.") for s in stages) if stages else "index")
        with Progress(what, len(tasks), "shards", options.events, options.quiet) as progress:
            for result in map_tasks(measure_shard, tasks, workers=workers):
                first = results.get(result.shard, result)  # the signature of before the first reading: what changed since is read again next time
                results[result.shard] = replace(result, signature=first.signature)
                progress.advance()
    cache = {s.url: {"signature": results[s.id].signature, "digest": results[s.id].input_digest, "classes": list(pool.classes)} for s in pool.shards}
    publish_json(root / "cache" / "shards.json", {**cached_shards(root), **cache})
    return results


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


def _counts(pool: PoolDescription, results: dict[str, Any]) -> Any:
    import numpy as np

    return np.array([results[s.id].rows for s in pool.shards], np.int64)


def _stages(recipe: Recipe, frame: Frame, setting: Setting, root: Path, options: Options) -> dict[str, dict[str, Any]]:
    """Every stage in the recipe's order; returns the counts of each."""
    total = len(frame.live)
    index_faults = _fault_counts(root, frame)
    counts: dict[str, dict[str, Any]] = {"measure.index": {"in": total, "quarantined": index_faults}}
    for stage in recipe.stages:
        if stage.name == "measure.index":
            continue
        started = time.monotonic()
        before = int(frame.live.sum())
        if stage.kind == MEASURE:
            counts[stage.id] = {"in": before, "quarantined": frame.add_measure(stage)}
        else:
            counts[stage.id] = {**decide(stage, frame, setting), "quarantined": {}}
        after = int(frame.live.sum())
        record_event(root / "events.jsonl", "stage", stage=stage.id, seconds=round(time.monotonic() - started, 3), rows=before, left=after)
        if stage.kind != MEASURE and not options.quiet:
            _say(f"{stage.id}: {before:,} in, {before - after:,} dropped, {after:,} left")
    return counts


def _fault_counts(root: Path, frame: Frame) -> dict[str, int]:
    fault = frame.read("measure.index", ["fault"])["fault"].to_pylist()
    found: dict[str, int] = {}
    for slug in sorted(f for f in fault if f is not None):
        found[slug] = found.get(slug, 0) + 1
    return found


def _say(line: str) -> None:
    import sys

    sys.stderr.write(line + "\n")


def _finish(
    recipe: Recipe, generations: Generations, frame: Frame, counts: dict, root: Path, options: Options, damage: list[str], frames: dict[str, Frame],
    known: dict[str, list[Any]],
) -> Run:  # fmt: skip
    workers = fitting_workers(options.workers, options.memory)
    totals, outputs = finish(recipe, frame, ledger_stages(recipe), root, workers=workers, quiet=options.quiet, known=known)
    measured = {"": frame, **frames}
    for each in measured.values():
        outputs |= recorded(root, each.vector_files(), known if each is frame else None)
    names = evaluation_names(evaluation_paths(recipe))
    pool, ledger = generations.whole, sorted((root / "ledger").glob("*.parquet"))
    lineage = {
        "pool": {"name": pool.name, "path": os.path.abspath(pool.path) if "://" not in pool.path else pool.path, "digest": digest(frame.inputs), "licence": pool.licence, "source": pool.source},
        "generations": generation_records(frame, generations.groups, ledger),
        "build_digest": build_digest(recipe, inputs_of(measured)), "counts": totals, "classes": list(pool.classes), "damage": damage, "device": options.device,
        "evaluations": {name: path for path, name in names.items()}, "outputs": outputs,
    }  # fmt: skip
    publish_run(root, recipe, frame, counts, lineage)
    (root / ASIDE).unlink(missing_ok=True)
    return open_run(root)


__all__ = ["build", "part_path", "pq"]
