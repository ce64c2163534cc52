"""Does what a finished run promises stand on disk, and what is thrown away where it does not, so that the build writes it anew."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.frame import identity_digests
from curate.measuring import index_digest, measure_stands, part_path
from curate.recipe import ResolvedStage
from curate.verdict_parts import decision_stands
from curate.writing import OURS
from manifests.digest import file_digest
from manifests.publish import published_digest
from manifests.run import Run
from manifests.shards.pool_yaml import PoolDescription

WRITTEN = ("ledger", "selection.npy", "shards", "vectors", "evaluations")  # where the files lie that `run.json` may have us delete


def parts_stand(root: Path, pool: PoolDescription, inputs: list[str], measures: Sequence[ResolvedStage]) -> bool:
    """Index, identity, measures and vector files of every shard are there with the digests that follow from the shards. Reads footers only."""
    for shard, given, identity in zip(pool.shards, inputs, identity_digests(inputs), strict=True):
        if published_digest(part_path(root, "measure.index", shard)) != index_digest(given):
            return False
        if published_digest(part_path(root, "identity", shard)) != identity:
            return False
        if not all(measure_stands(root, stage, shard, given) for stage in measures):
            return False
    return True


def verdicts_stand(run: Run, pool: PoolDescription, bounds: Sequence[int]) -> bool:
    """The parts and edges of every decision are those that `run.json` tells of, and every output has its size."""
    spans = [pool.shards[first:last] for first, last in zip(bounds, [*bounds[1:], len(pool.shards)], strict=True)]
    decisions = [s for s in run.stages if s.kind == "decision"]
    if not all(decision_stands(run.path, s.id, own, s.digest_of(g), g) for s in decisions for g, own in enumerate(spans)):
        return False
    return all(_same(run.path / name, entry, False) for name, entry in run.info["outputs"].items())


def _same(file: Path, entry: Any, bytes_too: bool) -> bool:
    """Has a file the size (and the SHA-256) that was recorded? A record of another form vouches for nothing."""
    if not isinstance(entry, list) or not file.is_file() or file.stat().st_size != entry[0]:
        return False
    return not bytes_too or file_digest(file) == entry[1]


def discard(root: Path, recheck: bool) -> None:
    """Delete every output that is not as `run.json` has it; with `recheck` compare bytes, and delete parts and edges with a damaged page.

    A shard goes with its Parquet and statistics; `recheck` without a record deletes all shards: nothing vouches for them.
    """
    recorded = _recorded(root)
    for name, entry in recorded.items():
        if Path(name).parts[:1] and Path(name).parts[0] in WRITTEN and ".." not in Path(name).parts and not _same(root / name, entry, recheck):
            _remove(root / name)
    if not recheck:
        return
    for file in sorted((root / "shards").glob("*.tar")):
        if OURS.fullmatch(file.name) and str(file.relative_to(root)) not in recorded:
            _remove(file)
    for top in (root, *sorted((root / "evaluations").glob("*"))):
        for file in sorted([*(top / "parts").rglob("*.parquet"), *(top / "edges").rglob("*.parquet")]):
            if not _readable(file):
                file.unlink()


def _remove(file: Path) -> None:
    shard = OURS.fullmatch(file.name) if file.parent.name == "shards" else None
    for path in [file.with_name(f"{shard[1]}{end}") for end in (".tar", ".parquet", "_stats.json")] if shard else [file]:
        path.unlink(missing_ok=True)


def _recorded(root: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((root / "run.json").read_text(encoding="utf-8"))["outputs"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _readable(file: Path) -> bool:
    try:
        pq.read_table(file, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError):
        return False
    return True
