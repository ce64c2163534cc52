"""The end of a build: ledger, selection and shards, from the parts alone."""

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curate.engine_local import map_tasks
from curate.frame import Frame
from curate.measuring import part_path
from curate.recipe import Recipe
from manifests.digest import digest, file_digest
from manifests.ledger import fold_shard, law, ledger_stands, selected, write_ledger, write_selection
from manifests.progress import Progress
from manifests.publish import publish
from manifests.rows import joined, rows_of
from manifests.schema import DROPPED, KEPT, QUARANTINED
from manifests.shards.write import ShardTask, layout, shard_stands, write_shard_task, write_sizes

OURS = re.compile(r"(\d{5,})(\.tar|\.parquet|_stats\.json)")  # a number, and what we write of the shard of this number


@dataclass(frozen=True)
class _Generation:
    """What is written of one generation: `order`, `out_shard` and `out_row` as `layout` gives them, `first` the number of its first output shard."""

    shards: range
    rows: slice
    made_of: str
    kept: int
    order: np.ndarray
    out_shard: np.ndarray
    out_row: np.ndarray
    first: int

    @property
    def out_shards(self) -> range:
        """The numbers of its output shards."""
        return range(self.first, int(self.out_shard.max(initial=self.first - 1)) + 1)


def _generations(recipe: Recipe, frame: Frame, stages: list[tuple[str, str]]) -> list[_Generation]:
    """Each generation's rows go to files of their own, after all that older ones have written; nothing of an older one depends on them."""
    found: list[_Generation] = []
    per_shard = recipe.shards["samples_per_shard"] if recipe.shards else 1
    for number, lineage in enumerate(frame.lineage):
        shards, rows = frame.span(number)
        earlier = [found[-1].made_of] if found else []
        made_of = digest("ledger", lineage.chain, stages, [lineage.digests[s] for s, _ in stages], recipe.shards, recipe.seed, *earlier)
        seed = digest("order", recipe.seed, lineage.chain) if recipe.shards and recipe.shards["order"] == "shuffled" else None
        kept, first = int(frame.live[rows].sum()), found[-1].out_shards.stop if found else 0
        order, out_shard, out_row = layout(kept, per_shard=per_shard, seed=None if seed is None else int(seed[:15], 16))
        found.append(_Generation(shards, rows, made_of, kept, order, out_shard + first, out_row, first))
    return found


def finish(
    recipe: Recipe, frame: Frame, stages: list[tuple[str, str]], root: Path, *, workers: int, quiet: bool, planned: bool = False,
    known: dict[str, list[Any]] | None = None,
) -> tuple[dict[str, int], dict[str, list[Any]]]:  # fmt: skip
    """Write ledger, selection and shards; returns the run's counts, and every output file as `recorded` has it. Where nothing is kept, no shards.

    planned     the ledger says where each kept sample goes, but no shard is written: a later build does that
    known       what an earlier record says of the files of earlier generations, which are not written again where they stand
    """
    generations = _generations(recipe, frame, stages)
    files: list[Path] = []
    shards: list[Path] = []
    sizes: dict[str, int] = {}
    with_shards = bool(recipe.shards and frame.live.any() and not planned)
    untouched: dict[str, list[Any]] = {}
    for generation in generations:
        is_old = generation is not generations[-1]
        ledger = _ledger(recipe, frame, stages, root, generation, len(files), is_old=is_old)
        tars = _write_shards(frame, ledger, generation, root, sizes, workers, quiet) if with_shards else []
        files, shards = [*files, *ledger], [*shards, *tars]
        if is_old and known:
            untouched |= {name: known[name] for path in (*ledger, *tars) if (name := str(path.relative_to(root))) in known}
    totals = _count(files, int(frame.live.sum()), root)
    write_selection(root / "selection.npy", selected(pq.read_table(file, columns=["uid", "source_uid", "status"]) for file in files))
    if with_shards:
        write_sizes(root / "shards" / "sizes.json", sizes)
    _remove_stale(root / "shards", shards)
    outputs = [*files, root / "selection.npy", *shards, *([root / "shards" / "sizes.json"] if with_shards else [])]
    return totals, recorded(root, outputs, untouched)


def _ledger(
    recipe: Recipe, frame: Frame, stages: list[tuple[str, str]], root: Path, generation: _Generation, first: int, *, is_old: bool
) -> list[Path]:
    """The ledger's files of a generation, number `first` and on; those of an old one are left as they are where they stand."""
    rows = [int(frame.counts[i]) for i in generation.shards]
    found = ledger_stands(root / "ledger", rows, generation.made_of, first) if is_old else None
    if found is not None:
        return found
    none = np.zeros(0, np.int64)
    place = (generation.out_shard, generation.out_row) if recipe.shards else (none, none)
    tables = (fold_shard(frame.shards[i], stages, lambda stage, s: part_path(root, stage, s)) for i in generation.shards)
    return write_ledger(root / "ledger", tables, generation.kept, place, generation.made_of, first)


def _count(files: list[Path], kept: int, root: Path) -> dict[str, int]:
    """Rows, kept, dropped and quarantined of the ledger as it was written. Raises `Refusal` [law-broken] where they do not add up."""
    totals = {"rows": 0, "kept": 0, "dropped": 0, "quarantined": 0}
    for file in files:
        status = pq.read_table(file, columns=["status"])["status"].cast(pa.string())
        totals["rows"] += len(status)
        for item in pc.value_counts(status).to_pylist():
            totals[{KEPT: "kept", DROPPED: "dropped", QUARANTINED: "quarantined"}[item["values"]]] += item["counts"]
    law(totals, str(root))
    assert totals["kept"] == kept
    return totals


def recorded(root: Path, files: list[Path], known: dict[str, list[Any]] | None = None) -> dict[str, list[Any]]:
    """Path under `root` -> [size in bytes, SHA-256], as `run.json` records what was written; what is `known` of a file of that size is not read again."""
    found = {}
    for path in files:
        name, size = str(path.relative_to(root)), path.stat().st_size
        entry = (known or {}).get(name)
        found[name] = entry if entry and entry[0] == size else [size, file_digest(path)]
    return found


def _write_shards(
    frame: Frame, files: list[Path], generation: _Generation, root: Path, sizes: dict[str, int], workers: int, quiet: bool
) -> list[Path]:
    """Write a generation's kept samples; returns the files and adds to `sizes` the samples of each tar. Where all of them stand, nothing is read."""
    folder = root / "shards"
    paths = [folder / f"{number:05d}.tar" for number in generation.out_shards]
    digests = [digest(generation.made_of, number) for number in generation.out_shards]
    if all(shard_stands(path, made_of) for path, made_of in zip(paths, digests, strict=True)):
        counts = [pq.read_metadata(path.with_suffix(".parquet")).num_rows for path in paths]
    else:
        counts = _copy_samples(frame, files, generation, paths, digests, root, workers, quiet)
    sizes |= {path.name: count for path, count in zip(paths, counts, strict=True)}
    return [file for path in paths for file in (path, path.with_suffix(".parquet"), path.with_name(f"{path.stem}_stats.json"))]


def _copy_samples(
    frame: Frame, files: list[Path], generation: _Generation, paths: list[Path], digests: list[str], root: Path, workers: int, quiet: bool
) -> list[int]:
    kept = _kept_rows(frame, files, generation.rows, root / "scratch" / "kept.arrow")
    urls = {s.id: s.url for s in frame.shards}
    numbers = generation.out_shards
    bounds = np.searchsorted(generation.out_shard[generation.order], [*numbers, numbers.stop])  # they follow each other in this order
    tasks = (  # made as they are asked for: each holds the rows of its shard
        ShardTask(path, rows_of(kept, generation.order[start:stop]), urls, made_of)
        for path, made_of, start, stop in zip(paths, digests, bounds[:-1], bounds[1:], strict=True)
    )
    counts = []
    with Progress("writing shards", generation.kept, "samples", root / "events.jsonl", quiet) as progress:
        for written in map_tasks(write_shard_task, tasks, workers=workers):
            counts.append(written)
            progress.advance(written)
    return counts


def _kept_rows(frame: Frame, files: list[Path], rows: slice, scratch: Path) -> pa.Table:
    """The kept rows of a generation's ledger files in pool order, with the members of each sample: one chunk a file, mapped from the disk, not held.

    scratch    where each file's rows are put; it is mapped and loses its name, so the disk has it back when the table is let go
    """
    tables, at = [], rows.start
    for file in files:
        count = pq.read_metadata(file).num_rows
        table = _kept_of_file(frame, file, slice(at, at + count))
        at += count
        publish(scratch, functools.partial(_write_arrow, table))
        tables.append(pa.ipc.open_file(pa.memory_map(str(scratch))).read_all())
        scratch.unlink()
    return pa.concat_tables(tables, promote_options="permissive")


def _kept_of_file(frame: Frame, file: Path, rows: slice) -> pa.Table:
    """The kept rows of one ledger file, whose rows in the pool these are."""
    ledger = pq.read_table(file, filters=pc.field("status") == KEPT)
    first, last = np.searchsorted(frame.starts, rows.start, side="right") - 1, np.searchsorted(frame.starts, rows.stop)
    mine = np.zeros(len(frame.live), bool)
    mine[rows] = frame.live[rows]
    members = frame.read("measure.index", ["members"], mine, range(first, last))["members"]
    drop = ["status", "drop_stage", "drop_reason", "score", "threshold", "witness", "witness_pool"]
    return joined(ledger.drop_columns([c for c in drop if c in ledger.column_names]).append_column("members", members))


def _write_arrow(table: pa.Table, file: IO[bytes]) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def _remove_stale(folder: Path, outputs: list[Path]) -> None:
    """Delete the shards of an earlier recipe that this run does not write; files of other names are not ours."""
    for path in sorted(folder.glob("*")) if folder.is_dir() else []:
        if OURS.fullmatch(path.name) and path not in outputs:
            path.unlink()
    if not outputs and (folder / "sizes.json").exists():
        (folder / "sizes.json").unlink()
