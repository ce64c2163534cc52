"""The end of a build: ledger, selection and shards, from the parts alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.engine_local import map_tasks
from curate.frame import Frame
from curate.measuring import part_path
from curate.recipe import Recipe
from manifests.digest import digest, file_digest
from manifests.ledger import fold_shard, law, write_ledger, write_selection
from manifests.progress import Progress
from manifests.schema import DROPPED, KEPT, QUARANTINED
from manifests.shards.write import ShardTask, layout, write_shard_task, write_sizes

OURS = re.compile(r"\d{5}(\.tar|\.parquet|_stats\.json)")


def finish(
    recipe: Recipe, frame: Frame, stages: list[tuple[str, str]], root: Path, *, workers: int, quiet: bool
) -> tuple[dict[str, int], dict[str, list[Any]]]:
    """Write ledger, selection and shards; returns the run's counts, and every output file as `recorded` has it. Where nothing is kept, no shards."""
    made_of = digest("ledger", frame.chain, stages, [frame.digests[s] for s, _ in stages], recipe.shards, recipe.seed)
    kept = int(frame.live.sum())
    totals = {"rows": len(frame.live), "kept": 0, "dropped": 0, "quarantined": 0}
    per_shard = recipe.shards["samples_per_shard"] if recipe.shards else 1
    seed = digest("order", recipe.seed, frame.chain) if recipe.shards and recipe.shards["order"] == "shuffled" else None
    order, out_shard, out_row = layout(kept, per_shard=per_shard, seed=None if seed is None else int(seed[:15], 16))
    none = np.zeros(0, np.int64)

    def tables() -> Iterator[pa.Table]:
        for shard in frame.shards:
            table = fold_shard(shard, stages, lambda stage, s: part_path(root, stage, s))
            for item in pc.value_counts(table["status"].cast(pa.string())).to_pylist():
                totals[{KEPT: "kept", DROPPED: "dropped", QUARANTINED: "quarantined"}[item["values"]]] += item["counts"]
            yield table

    files = write_ledger(root / "ledger", tables(), kept, (out_shard, out_row) if recipe.shards else (none, none), made_of)
    law(totals, str(root))
    assert totals["kept"] == kept
    write_selection(root / "selection.npy", _identities(files))
    outputs = [*files, root / "selection.npy"]
    if recipe.shards and kept:
        outputs += _write_shards(frame, files, order, out_shard, root, made_of, workers, quiet)
    else:
        _remove_stale(root / "shards", [])
    return totals, recorded(root, outputs)


def recorded(root: Path, files: list[Path]) -> dict[str, list[Any]]:
    """Path under `root` -> [size in bytes, SHA-256], as `run.json` records what was written."""
    return {str(p.relative_to(root)): [p.stat().st_size, file_digest(p)] for p in files}


def _identities(files: list[Path]) -> list[str]:
    """The kept ids: `source_uid` where every kept row has one of 32 hex digits, else `uid`."""
    table = pa.concat_tables([pq.read_table(f, columns=["uid", "source_uid", "status"], filters=pc.field("status") == KEPT) for f in files])
    source = table["source_uid"]
    hex_digits = pc.match_substring_regex(source, "^[0-9a-f]{32}$").fill_null(False)
    usable = len(table) and pc.all(hex_digits).as_py() and pc.count_distinct(source).as_py() == len(table)
    return (source if usable else table["uid"]).to_pylist()


def _write_shards(
    frame: Frame, files: list[Path], order: np.ndarray, out_shard: np.ndarray, root: Path, made_of: str, workers: int, quiet: bool
) -> list[Path]:
    kept = _kept_rows(frame, files)
    urls = {s.id: s.url for s in frame.shards}
    folder = root / "shards"
    shard_of = np.asarray(out_shard)[order]
    tasks = []
    for number in range(int(shard_of.max()) + 1 if len(shard_of) else 0):
        rows = kept.take(pa.array(order[shard_of == number]))
        tasks.append(ShardTask(folder / f"{number:05d}.tar", rows, urls, digest(made_of, number)))
    sizes: dict[str, int] = {}
    outputs: list[Path] = []
    with Progress("writing shards", len(order), "samples", root / "events.jsonl", quiet) as progress:
        for task, written in zip(tasks, map_tasks(write_shard_task, tasks, workers=workers), strict=True):
            sizes[task.path.name] = written
            outputs += [task.path, task.path.with_suffix(".parquet"), task.path.with_name(f"{task.path.stem}_stats.json")]
            progress.advance(written)
    write_sizes(folder / "sizes.json", sizes)
    _remove_stale(folder, outputs)
    return [*outputs, folder / "sizes.json"]


def _kept_rows(frame: Frame, files: list[Path]) -> pa.Table:
    """The kept rows of the ledger in pool order, with the members of each sample."""
    ledger = pa.concat_tables([pq.read_table(f, filters=pc.field("status") == KEPT) for f in files], promote_options="permissive")
    members = frame.read("measure.index", ["members"], frame.live)["members"]
    drop = ["status", "drop_stage", "drop_reason", "score", "threshold", "witness", "witness_pool"]
    return ledger.drop_columns([c for c in drop if c in ledger.column_names]).append_column("members", members)


def _remove_stale(folder: Path, outputs: list[Path]) -> None:
    """Delete the shards of an earlier recipe that this run does not write; files of other names are not ours."""
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if OURS.fullmatch(path.name) and path not in outputs:
            path.unlink()
    if not outputs and (folder / "sizes.json").exists():
        (folder / "sizes.json").unlink()
