"""`run.json`: what a run was made from, by what, and what came of it. Written last: where it stands, the run is finished."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.attached import attached_digests
from curate.frame import Frame
from curate.measuring import encoder_identity, stage_key
from curate.recipe import Recipe
from curate.stages import MEASURE, STAGES
from manifests.digest import digest
from manifests.numbered import by_number
from manifests.publish import publish_json
from manifests.schema import DROPPED, FORMAT, KEPT, QUARANTINED
from manifests.shards.pool_yaml import PoolDescription, pool_record

PACKAGES = ("numpy", "pyarrow", "pillow", "simplejpeg", "torch", "timm", "open_clip_torch", "faiss-cpu", "xxhash", "scipy")


def build_digest(recipe: Recipe, inputs: dict[str, list[Any]]) -> str:
    """What a finished run was made from: the resolved stages with their versions, the seed, every pool's shards."""
    stages = [[s.id, stage_key(s, encoder_identity(s)), s.within, s.protect] for s in recipe.stages]
    return digest(FORMAT, recipe.seed, recipe.shards, STAGES["measure.index"].version, stages, inputs)


def inputs_of(frames: Mapping[str, Frame]) -> dict[str, list[Any]]:
    """The digests of all shards and attachments; "" names the pool itself, a path an evaluation pool. Of a run that grew also where each generation begins."""
    found = {key: value for path, f in frames.items() for key, value in ((path, f.inputs), (f"attached {path}", attached_digests(f.pool, f.root)))}
    return found | bounds_of(frames[""].bounds)


def bounds_of(bounds: tuple[int, ...]) -> dict[str, list[Any]]:
    """What a build digest holds of the generations: nothing where there is one."""
    return {"generations": list(bounds)} if len(bounds) > 1 else {}


def ledger_stages(recipe: Recipe) -> list[tuple[str, str]]:
    """(id, kind) of every stage in the order of the fold, the index first."""
    return [("measure.index", MEASURE), *((s.id, s.kind) for s in recipe.stages if s.name != "measure.index")]


def publish_run(root: Path, recipe: Recipe, frame: Frame, counts: dict[str, dict[str, Any]], lineage: dict[str, Any]) -> None:
    """Publish `run.json`: the stages with their digests and counts, versions, seed, and what `lineage` adds (pool, counts, outputs, …)."""
    records = [_record("measure.index", "measure.index", MEASURE, {}, frame, counts)]
    records += [_record(s.id, s.name, s.kind, s.plain()[s.name], frame, counts) for s in recipe.stages if s.name != "measure.index"]
    body = {
        "format": FORMAT, "keepset": _version("keepset"), "python": platform.python_version(), "packages": {p: _version(p) for p in PACKAGES},
        "seed": recipe.seed, "recipe_digest": digest(recipe.yaml()), "stages": records,
    }  # fmt: skip
    publish_json(root / "run.json", {**body, **lineage})


def _record(stage_id: str, name: str, kind: str, parameters: dict, frame: Frame, counts: dict) -> dict[str, Any]:
    return {
        "id": stage_id,
        "name": name,
        "kind": kind,
        "version": STAGES[name].version,
        "parameters": parameters,
        "digest": frame.digests[stage_id],
        "counts": counts[stage_id],
        **({"digests": [lineage.digests[stage_id] for lineage in frame.lineage]} if len(frame.lineage) > 1 else {}),
    }


def generation_records(frame: Frame, pools: Sequence[Sequence[PoolDescription]], ledger: Sequence[Path]) -> list[dict[str, Any]]:
    """Each generation as `run.json` tells of it: its pools with all their shards, the shards' input digests, its rows, and where they were written.

    pools       of each generation
    ledger      the ledger's files, in order
    """
    found, files = [], list(ledger)
    for number, own in enumerate(pools):
        shards, span = frame.span(number)
        counts = {"rows": 0, KEPT: 0, DROPPED: 0, QUARANTINED: 0}
        mine: list[str] = []
        out: set[str] = set()
        while counts["rows"] < span.stop - span.start:
            table = pq.read_table(files[0], columns=["status", "out_shard"])
            counts["rows"] += table.num_rows
            for item in pc.value_counts(table["status"].cast(pa.string())).to_pylist():
                counts[item["values"]] += item["counts"]
            out |= set(pc.unique(table["out_shard"].cast(pa.string())).drop_null().to_pylist())
            mine.append(files.pop(0).name)
        inputs = [frame.inputs[i] for i in shards]
        found.append(
            {"pools": [pool_record(p) for p in own], "inputs": inputs, "counts": counts, "ledger": mine, "shards": sorted(out, key=by_number)}
        )
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
