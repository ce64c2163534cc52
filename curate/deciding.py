"""One decision over the live rows, a generation after the other: what its verdict follows from, whether it stands, what it leaves, what it drops."""

import inspect
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.asking import Recorded, Setting, ignores_protection, read_columns, verdicts_of
from curate.frame import Frame
from curate.measuring import part_path, stage_key
from curate.pool import Verdicts
from curate.recipe import PoolPaths, ResolvedStage, VectorName
from curate.verdict_parts import decision_stands, edges_path, newer, publish_edges, verdict_table
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.publish import EDGES_KEY, publish_table
from manifests.rows import rows_of

__all__ = ["Setting", "decide", "decision_digest"]


def decision_digest(stage: ResolvedStage, frame: Frame, setting: Setting, generation: int = 0) -> str:
    """What a decision's verdict on a generation follows from: its parameters, the seed, what it reads, which rows are live, the evaluation pools.

    For a further generation also its verdict on the one before, which says what was kept: `pool.fixed`.
    """
    lineage = frame.lineage[generation]
    reads = {name: lineage.digests[frame.catalog[name]] for name in read_columns(stage, frame)}
    for name in stage.reads(VectorName):
        if name not in frame.catalog:
            vectors = [n for n, s in frame.catalog.items() if s.startswith("attached/") or s.startswith("measure.vectors") or n == vector_name_of(s)]
            raise Refusal(
                "unknown-column",
                stage.id,
                f"reads vectors {name!r}, which no earlier stage writes",
                f"earlier vectors: {', '.join(vectors) or 'none'}",
            )
        reads[name] = lineage.digests[frame.catalog[name]]
    pools = {path: setting.evaluations[path].chain for path in stage.reads(PoolPaths)}
    earlier = [frame.lineage[generation - 1].digests[stage.id]] if generation else []
    return digest(stage_key(stage), stage.within, stage.protect, setting.seed, reads, pools, lineage.chain, *earlier)


def vector_name_of(stage_id: str) -> str:
    """The vector column of a `measure.vectors` stage with this id."""
    return "vectors" if stage_id == "measure.vectors" else stage_id


def decide(stage: ResolvedStage, frame: Frame, setting: Setting, recorded: Recorded | None = None) -> dict[str, Any]:
    """Run a decision, or read it where its parts stand with the right digest; take its drops out of `frame.live`. One generation after the other.

    recorded    in a replay, what answers instead of the pool
    Returns its counts: rows in, kept, dropped by reason, unjudged.
    """
    before, counts = frame.live.copy(), []
    for generation in range(len(frame.bounds)):
        made_of = decision_digest(stage, frame, setting, generation)
        if not decision_stands(frame.root, stage.id, [frame.shards[i] for i in frame.span(generation)[0]], made_of, generation):
            if generation < setting.settled:
                given = (
                    f"the verdicts of generation {generation + 1} are damaged, or were made by another version of the stage or of an evaluation pool"
                )
                cure = "Run the same `curate build` first, it makes them anew; then append"
                raise Refusal(
                    "broken-record", str(frame.root / "parts" / stage.id), given, "what `curate append` builds on stands as it was made", cure
                )
            _decide(stage, frame, setting, generation, before, made_of, recorded)
        counts.append(_fold(stage, frame, made_of, generation))
    for file in (frame.root / "edges" / stage.id).glob("*.parquet"):
        if int(file.stem) >= len(frame.bounds):
            file.unlink()  # of generations that are decided together now
    reasons = sorted({reason for count in counts for reason in count["dropped"]})
    dropped = {reason: sum(count["dropped"].get(reason, 0) for count in counts) for reason in reasons}
    return {**{name: sum(count[name] for count in counts) for name in ("in", "kept", "unjudged")}, "dropped": dropped}


def _decide(
    stage: ResolvedStage, frame: Frame, setting: Setting, generation: int, before: np.ndarray, made_of: str, recorded: Recorded | None
) -> None:
    """Publish a decision's parts and edges for the shards of one generation. `before` (n,) bool: the rows that were live before the stage."""
    shards, span = frame.span(generation)
    asked, gone = frame.live.copy(), before & ~frame.live  # of earlier generations: what this stage kept, and what it dropped
    asked[span.stop :] = gone[span.start :] = False
    if ignores_protection(stage):
        asked[: span.start] = gone[: span.start] = False
    rows, uid = np.flatnonzero(asked), frame.uid(asked)
    first = int(np.searchsorted(rows, span.start))
    verdicts, unjudged = verdicts_of(stage, frame, setting, (rows, uid, first, np.flatnonzero(gone)), frame.root / "scratch" / made_of[:32], recorded)
    _check(stage, verdicts, unjudged)
    table = verdict_table(verdicts, unjudged, uid, stage)
    if verdicts.edges is None:
        edges_path(frame.root, stage.id, generation).unlink(missing_ok=True)  # of other parameters
    else:
        table = table.replace_schema_metadata({EDGES_KEY: b"1"})
        publish_edges(edges_path(frame.root, stage.id, generation), newer(verdicts.edges, first), uid, made_of)
    for number in shards:
        shard, local = frame.shards[number], np.full(int(frame.counts[number]), -1, np.int64)
        begin, end = np.searchsorted(rows, frame.starts[number : number + 2])
        local[rows[begin:end] - frame.starts[number]] = np.arange(end - begin)
        publish_table(part_path(frame.root, stage.id, shard), rows_of(table.slice(begin, end - begin), local), digest(made_of, shard.id))


def _fold(stage: ResolvedStage, frame: Frame, made_of: str, generation: int) -> dict[str, Any]:
    shards, span = frame.span(generation)
    read = frame.read(stage.id, ["keep", "unjudged", "reason"], shards=shards)
    dropped = pc.equal(read["keep"], False).fill_null(False).to_numpy()
    live = int(frame.live[span].sum())
    reasons = pc.value_counts(read["reason"].cast(pa.string()).filter(pa.array(dropped))).to_pylist()
    frame.live[span] &= ~dropped
    lineage = frame.lineage[generation]
    lineage.digests[stage.id], lineage.chain = made_of, digest(lineage.chain, made_of)
    for name in stage.writes:
        frame.catalog[name] = stage.id
    by_reason = {item["values"]: item["counts"] for item in sorted(reasons, key=lambda item: item["values"])}
    return {"in": live, "kept": int(frame.live[span].sum()), "dropped": by_reason, "unjudged": int(pc.sum(read["unjudged"]).as_py() or 0)}


def _check(stage: ResolvedStage, verdicts: Verdicts, unjudged: np.ndarray) -> None:
    """Our own promises: reasons from the closed list, witnesses that this stage keeps, no score that is not finite on a dropped row."""
    dropped = ~verdicts.keep
    reasons = getattr(inspect.getmodule(stage.function), "REASONS", ())
    found = set(verdicts.reason[dropped].tolist())  # type: ignore[index,union-attr]
    assert not found - set(reasons), f"{stage.id} gives reasons {found - set(reasons)} that its REASONS do not list"
    assert verdicts.witness is not None
    named = verdicts.witness[dropped]
    assert verdicts.keep[named[named >= 0]].all(), f"{stage.id} names a witness that it drops"
    assert not unjudged[dropped].any()
