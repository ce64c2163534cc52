"""Walk the plan: measure every shard, decide stage by stage, fold the ledger, write the shards. Everything resumes by digests."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curate.attached import attached_digests, bring
from curate.deciding import Setting, decide
from curate.forecasting import needs_of
from curate.frame import Frame
from curate.generations import Generations, as_grown, generations_of, is_recorded, same_place
from curate.machine import Options, memory_bytes, resolve_device
from curate.memory import fitting_workers, held_under, refuse_early
from curate.plan import attachments_read, check_columns, evaluation_names, evaluation_paths, measures_for
from curate.pool_measuring import measure_pool
from curate.recipe import Recipe, read_recipe
from curate.recording import bounds_of, build_digest, generation_records, inputs_of, ledger_stages, publish_run
from curate.reusing import link_run
from curate.shard_cache import cached_digests
from curate.stages import MEASURE
from curate.standing import discard, parts_stand, verdicts_stand
from curate.writing import finish, recorded
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.processes import cores
from manifests.progress import record_event
from manifests.publish import locked, publish_bytes
from manifests.run import Run, is_record, open_run
from manifests.shards.pool_yaml import open_pool

ASIDE = Path("scratch", "run.json")  # where an append puts the record that it is about to replace


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
    options = Options(workers or cores(), resolve_device(device), memory_bytes(memory), Path(out) / "events.jsonl", quiet, recheck)
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
            _tell_of_another_pool(root, generations, quiet)
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


def _tell_of_another_pool(root: Path, generations: Generations, quiet: bool) -> None:
    """Say so where the run in `root` was made from a pool of another name at another place: its result goes."""
    try:
        held = open_run(root).info["pool"]
    except (Refusal, KeyError, TypeError):
        return
    pool = generations.whole
    if not quiet and held["name"] != pool.name and not same_place(held["path"], pool.path):
        _say(f"{root} holds a run of the pool {held['name']} ({held['path']}): what it has goes where it does not serve {pool.path}")


def _finished(root: Path, recipe: Recipe, generations: Generations, recheck: bool) -> Run | None:
    """The run, where it is finished and nothing that it was made from has changed."""
    if recheck or not is_record(root / "run.json"):
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
        same = is_recorded(recipe, root) and run.info["build_digest"] == build_digest(recipe, inputs | bounds_of(generations.bounds))
        return run if same and verdicts_stand(run, generations.whole, generations.bounds) else None
    except (ValueError, KeyError, TypeError):  # a record that is damaged or edited
        return None


def _pools(recipe: Recipe, generations: Generations, root: Path) -> dict[str, tuple[Path, Generations]]:
    """ "" -> the pool itself in its generations; evaluation path -> its folder in the run and its description."""
    names = evaluation_names(evaluation_paths(recipe))
    return {"": (root, generations), **{path: (root / "evaluations" / name, Generations((open_pool(path),))) for path, name in names.items()}}


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
        if stale.relative_to(root).parts[0] != "evidence":  # where a comparison may be at work under a lock of its own
            stale.unlink(missing_ok=True)
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


def _stages(recipe: Recipe, frame: Frame, setting: Setting, root: Path, options: Options) -> dict[str, dict[str, Any]]:
    """Every stage in the recipe's order; returns the counts of each."""
    total = len(frame.live)
    counts: dict[str, dict[str, Any]] = {"measure.index": {"in": total, "quarantined": frame.faults("measure.index")}}
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
    pool, ledger = generations.whole, Run(root).ledger_files()
    lineage = {
        "pool": {"name": pool.name, "path": os.path.abspath(pool.path) if "://" not in pool.path else pool.path, "digest": digest(frame.inputs), "licence": pool.licence, "source": pool.source},
        "generations": generation_records(frame, generations.groups, ledger),
        "build_digest": build_digest(recipe, inputs_of(measured)), "counts": totals, "classes": list(pool.classes), "damage": damage, "device": options.device,
        "evaluations": {name: path for path, name in names.items()}, "outputs": outputs,
    }  # fmt: skip
    publish_run(root, recipe, frame, counts, lineage)
    (root / ASIDE).unlink(missing_ok=True)
    return open_run(root)
