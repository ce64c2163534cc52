"""`curate replay`: another threshold, order or set of stages as a fold over what a run holds. No picture is read, nothing is measured; the pool may be gone."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from curate.deciding import Setting, decide
from curate.frame import Frame
from curate.generations import Generations, same_place
from curate.machine import memory_bytes, resolve_device
from curate.plan import check_columns, evaluation_paths
from curate.recipe import Recipe, VectorName, read_recipe
from curate.recording import build_digest, generation_records, inputs_of, ledger_stages, publish_run
from curate.reusing import link_run
from curate.stages import MEASURE
from curate.stored import Stored, check_measures, described, evaluation_frames, frame_of, recorded_by, with_attached
from curate.writing import finish
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.publish import locked, publish_bytes
from manifests.run import Run, open_run
from manifests.shards.pool_yaml import apart, recorded_pool

Link = Callable[[Path, Path], None]
BLOCK = 512  # a tar's members have a header of one block and are filled up to whole blocks


def replay(
    run: str | Path,
    *,
    settings: Sequence[str] = (),
    without: Sequence[str] = (),
    order: str | None = None,
    recipe: str | Path | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    memory: str | int | None = None,
) -> dict[str, Any]:
    """Decide a finished run again with other parameters, stages or their order, from its measures, vectors and pairs alone.

    A decision whose digest stands is read. One that compares pairs (`dedup.*`) folds over the pairs that the run holds. Any other one is run: it reads columns and
    vectors that are on the disk.

    settings    `stage.parameter=value` overrides
    without     ids of stages to leave out
    order       ids with commas between: these stages, in this order, take the places that they hold now; other stages stay where they are
    recipe      a whole recipe instead of the run's; its measures must be among the run's
    out         a new folder for the whole run: recipe, parts, pairs, ledger, selection. `curate build RECIPE --out OUT` then only writes the shards
    Returns     the funnel, the flows against the run (as `manifests diff`), the forecast of kept samples, bytes and shards, how each decision was made
    Guarantee   the ledger is that of a full build by the same recipe, the places in the shards included; what cannot be told without the pictures is refused
    Errors      `Refusal`: [not-replayable] names stage, parameter and what would work; those of `build`
    """
    stored = stored_run(Path(run))
    chosen = _chosen(stored, settings, without, order, recipe)
    check_measures(stored, chosen)
    check_columns(chosen, stored.pool, stored.frame.own_types())
    with _folder(stored.run.path, out) as root:
        publish_bytes(root / "recipe.yaml", chosen.yaml().encode())
        folded = fold(stored, chosen, root, device=device, memory=memory, whole=out is not None, link=os.symlink if out is None else os.link)
        totals = _record(stored, chosen, folded, root)
        return {
            "run": str(stored.run.path), "out": None if out is None else str(out), "counts": totals, "how": folded.how, "funnel": funnel(chosen, folded.counts),
            "flows": _flows(stored.run, root, out), "forecast": _forecast(chosen, folded.frame),
        }  # fmt: skip


@dataclass(frozen=True)
class Folded:
    """A recipe decided from what a run holds: the frame after the last stage, what it ran under, the counts of each stage, how each decision was made."""

    frame: Frame
    setting: Setting
    counts: dict[str, dict[str, Any]]
    how: dict[str, str]


def fold(
    stored: Stored, chosen: Recipe, root: Path, *, device: str = "auto", memory: str | int | None = None, whole: bool, link: Link = os.link
) -> Folded:
    """Decide `chosen` in the folder `root`, from what the run holds alone; neither ledger nor selection is written.

    whole    nothing approximate (see `recorded_by`)
    link     how files of the run come to stand in `root`: hard links for a run of its own, symbolic ones for a folder that goes again
    """
    link_run(stored.run.path, root, link, _kept_parts(chosen))
    place = resolve_device(device) if any(stage.kind != MEASURE and stage.reads(VectorName) for stage in chosen.stages) else "cpu"
    setting = Setting(chosen.seed, memory_bytes(memory), place, evaluation_frames(stored, chosen, root, evaluation_paths(chosen)))
    frame = frame_of(root, stored.pool, stored.inputs, stored.bounds)
    return Folded(frame, setting, *_decide(stored, chosen, frame, setting, whole))


def stored_run(path: Path) -> Stored:
    """The finished run at `path`. Raises `Refusal` [not-a-run], [not-replayable] where its recipe was edited."""
    run = open_run(path)
    recipe = read_recipe(path / "recipe.yaml")
    info = run.info
    if info["recipe_digest"] != digest(recipe.yaml()):
        cure = "Run the same `curate build` again"
        raise Refusal(
            "not-replayable", str(path / "recipe.yaml"), "is not the recipe that the run was finished with", "the recipe that it wrote", cure
        )
    if not run.generations:  # a run that is older than this record
        return Stored(run, recipe, *described(path, info["pool"]["path"], tuple(info["classes"]), info["pool"]["digest"]))
    pools = apart([recorded_pool(record) for generation in run.generations for record in generation["pools"]])
    grown = Generations(tuple(pools), len(run.generations[0]["pools"]))
    inputs = [given for generation in run.generations for given in generation["inputs"]]
    return Stored(run, recipe, with_attached(grown.whole, path), inputs, grown.bounds)


def _chosen(stored: Stored, settings: Sequence[str], without: Sequence[str], order: str | None, recipe: str | Path | None) -> Recipe:
    """The recipe to replay, every stage resolved."""
    found = read_recipe(recipe or stored.run.path / "recipe.yaml", list(settings))
    if found.pool and not same_place(found.pool, stored.recipe.pool) and not same_place(found.pool, stored.run.info["pool"]["path"]):
        raise stored.refusal("pool", f"the recipe is of the pool {found.pool}", f"the run's, {stored.run.info['pool']['path']}")
    stages = list(found.stages)
    known = [stage.id for stage in stages]
    for name in without:
        if name not in known:
            raise Refusal("unknown-stage", f"--without {name}", "names no stage of this recipe", f"its stages: {', '.join(known)}")
    stages = [stage for stage in stages if stage.id not in without]
    by_id = {stage.id: stage for stage in stages}
    named = [name.strip() for name in order.split(",")] if order else []
    if len(set(named)) != len(named) or set(named) - set(by_id):
        raise Refusal("unknown-stage", f"--order {order}", "names a stage twice, or one that is not there", f"the stages: {', '.join(by_id)}")
    turn = iter(named)
    stages = [by_id[next(turn)] if stage.id in named else stage for stage in stages]
    leakage = found.leakage and any(stage.name == "leakage.images" for stage in stages)  # left out is left out: reading the recipe again adds none
    leakage = leakage if found.evaluate else found.leakage
    return replace(
        found, stages=tuple(stages), pool=stored.recipe.pool, leakage=leakage, append=stored.recipe.append, redecided=stored.recipe.redecided
    )


def _kept_parts(recipe: Recipe) -> Any:
    """Which files of the run serve: not those of stages that are left out."""
    ids = {"identity", "measure.index", *(stage.id for stage in recipe.stages)}
    return lambda path: path.parts[0] not in ("parts", "edges") or path.parts[1] in ids


@contextlib.contextmanager
def _folder(run: Path, out: str | Path | None) -> Iterator[Path]:
    """Where the replay writes: `out`, held for one writer, or a folder that is gone afterwards."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="keepset-replay-") as folder:
            yield Path(folder)
        return
    root = Path(out)
    if root.exists() and (not root.is_dir() or any(path.name != ".lock" for path in root.iterdir())):
        raise Refusal("not-a-run", str(root), "is not empty", "a new or an empty folder for --out")
    with locked(root):
        yield root


def _decide(stored: Stored, recipe: Recipe, frame: Frame, setting: Setting, whole: bool) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Every stage in order: its counts, and for each decision whether it was `read`, `folded` over pairs, or `decided` from columns and vectors."""
    counts: dict[str, dict[str, Any]] = {"measure.index": stored.records["measure.index"].counts}
    how: dict[str, str] = {}
    asked: dict[str, str] = {}
    for stage in recipe.stages:
        if stage.name == "measure.index":
            continue
        if stage.kind == MEASURE:
            counts[stage.id] = {"in": int(frame.live.sum()), "quarantined": frame.add_measure(stage, recorded=True)}
        else:
            counts[stage.id] = {**decide(stage, frame, setting, recorded_by(stored, asked, whole, recipe.seed)), "quarantined": {}}
            how[stage.id] = asked.get(stage.id, "read")
    return counts, how


def _record(stored: Stored, recipe: Recipe, folded: Folded, root: Path) -> dict[str, int]:
    """Ledger, selection and `run.json`. Where shards are to be written the run is not finished: a build of the same recipe goes on from here."""
    frame, setting = folded.frame, folded.setting
    totals, outputs = finish(recipe, frame, ledger_stages(recipe), root, workers=1, quiet=True, planned=True)
    before = stored.run.info
    measured = {"": frame, **setting.evaluations}
    vectors = [str(path.relative_to(root)) for each in measured.values() for path in each.vector_files()]
    outputs |= {name: before["outputs"][name] for name in vectors if name in before["outputs"]}
    planned = bool(recipe.shards and totals["kept"])
    names = {path: name for name, path in stored.run.evaluations.items()}
    lineage = {
        "pool": before["pool"], "counts": totals, "classes": before["classes"], "damage": before["damage"], "device": setting.device, "outputs": outputs,
        "evaluations": {names[path]: path for path in evaluation_paths(recipe)}, "replayed": os.path.abspath(stored.run.path),
        "generations": _generations(stored, frame, root), "build_digest": None if planned else build_digest(recipe, inputs_of(measured)),
    }  # fmt: skip
    publish_run(root, recipe, frame, folded.counts, lineage | ({"shards": "planned"} if planned else {}))
    return totals


def _generations(stored: Stored, frame: Frame, root: Path) -> list[dict[str, Any]]:
    """As the run tells of them, with the counts of the replay."""
    pools = [[recorded_pool(record) for record in generation["pools"]] for generation in stored.run.generations]
    return generation_records(frame, pools, Run(root).ledger_files()) if pools else []


def funnel(recipe: Recipe, counts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a decision, as `manifests show` has it."""
    found = []
    for stage in recipe.stages:
        if stage.kind != MEASURE:
            c = counts[stage.id]
            found.append(
                {"stage": stage.id, "name": stage.name, "in": c["in"], "dropped": c["dropped"], "unjudged": c["unjudged"], "left": c["kept"]}
            )
    return found


def _flows(run: Run, root: Path, out: str | Path | None) -> dict[str, Any]:
    from manifests.audit.diff import diff

    found = diff(run.path, root)
    return found if out is not None else {**found, "new": "(replayed)"}


def _forecast(recipe: Recipe, frame: Frame) -> dict[str, int]:
    """Kept samples, the bytes of their members, and the shards with their bytes that a build would write."""
    kept = int(frame.live.sum())
    members = frame.read("measure.index", ["members"], frame.live)["members"].combine_chunks() if kept else None
    sizes = np.zeros(0, np.int64) if members is None else pc.struct_field(pc.list_flatten(members), "size").to_numpy()
    shards = -(-kept // recipe.shards["samples_per_shard"]) if recipe.shards else 0
    tars = int((BLOCK + -(-sizes // BLOCK) * BLOCK).sum()) + shards * 2 * BLOCK if shards else 0
    return {"kept": kept, "bytes": int(sizes.sum()), "shards": shards, "shard_bytes": tars}


def text(found: dict[str, Any]) -> str:
    """For a reader: the funnel, how each stage was decided, the flows, the forecast."""
    from manifests.audit.diff import text as flows
    from manifests.audit.show import funnel_lines

    how = ", ".join(f"{stage} {word}" for stage, word in found["how"].items())
    cast = found["forecast"]
    lines = [*funnel_lines(found["funnel"]), "", f"how: {how or 'no decisions'}", "", flows(found["flows"]), ""]
    shards = f"{cast['shards']:,} shard{'' if cast['shards'] == 1 else 's'}"
    lines.append(
        f"a build would keep {cast['kept']:,} samples, {cast['bytes'] / 1e6:,.1f} MB, in {shards} of {cast['shard_bytes'] / 1e6:,.1f} MB in all"
    )
    if found["out"]:
        lines.append(f"written: {found['out']}; `curate build {found['out']}/recipe.yaml --out {found['out']}` writes its shards")
    return "\n".join(lines)
