"""What `dedup.copies` saw of a dropped row and its witness: the sentence, and both pictures cut to what they share, standing alike."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from manifests import images
from manifests.audit.query import view_name
from manifests.errors import Refusal
from manifests.report.panel import Inquiry, in_list, named, quoted
from manifests.run import Run, StageRecord
from manifests.schema import written_column

BOX = ("left", "top", "right", "bottom")

CHANGES = "SELECT uid, {change} AS change, {turn} AS turn, {box} FROM {view} WHERE NOT keep AND uid IN {uids}"
OWN_BOXES = "SELECT a, b, {box} FROM {view} WHERE (a, b) IN ({pairs})"
WITNESSES = 'SELECT uid, shard, "offset", "size" FROM ledger WHERE uid IN {uids}'

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of a picture as it is stored


@dataclass(frozen=True)
class Change:
    """What was done to a dropped picture, seen from its witness.

    row, witness    both as the ledger has them: shard, offset, size
    turn            0 to 7: turns the dropped picture to stand as the witness does
    own, shown      the common area as a box of the dropped picture, and of the witness; None where it was not written
    """

    sentence: str
    row: dict[str, Any]
    witness: dict[str, Any] | None
    turn: int | None
    own: Box | None
    shown: Box | None


def changes(inquiry: Inquiry, stage: StageRecord, rows: list[dict[str, Any]]) -> dict[int, Change]:
    """The change of each of the ledger rows that a stage of `dedup.copies` dropped, by its place in `rows`."""
    dropped = [(at, row) for at, row in enumerate(rows) if row["drop_stage"] == stage.id and row["witness"]]
    view = inquiry.view(stage.id)
    column = {name: named(written_column(stage.id, stage.name, f"copies_{name}")) for name in ("change", "turn", *BOX)}
    if not dropped or view is None or written_column(stage.id, stage.name, "copies_change") not in inquiry.schema(view_name(stage.id)).names:
        return {}
    box = ", ".join(f"{column[edge]} AS {named(edge)}" for edge in BOX)
    sql = CHANGES.format(change=column["change"], turn=column["turn"], box=box, view=view, uids=in_list([row["uid"] for _, row in dropped]))
    seen = {found["uid"]: found for found in inquiry.look_up(sql)}
    witnesses = {w["uid"]: w for w in inquiry.look_up(WITNESSES.format(uids=in_list([row["witness"] for _, row in dropped])))}
    own = _own_boxes(inquiry, stage, {(row["uid"], row["witness"]) for _, row in dropped})
    return {
        at: Change(
            found["change"], row, witnesses.get(row["witness"]), found["turn"], own.get((row["uid"], row["witness"])), _box(found[e] for e in BOX)
        )
        for at, row in dropped
        if (found := seen.get(row["uid"])) is not None and found["change"]
    }


def _own_boxes(inquiry: Inquiry, stage: StageRecord, pairs: set[tuple[str, str]]) -> dict[tuple[str, str], Box | None]:
    """The part of a dropped row that its witness shows too, from the stage's edges; an edge names the smaller uid first."""
    view = inquiry.view(f"edges_{view_name(stage.id)}")
    if view is None:
        return {}
    box = ", ".join(f"{side}_{edge}" for side in "ab" for edge in BOX)
    listed = ", ".join(f"({quoted(min(pair))}, {quoted(max(pair))})" for pair in sorted(pairs))
    edges = {(e["a"], e["b"]): e for e in inquiry.look_up(OWN_BOXES.format(box=box, view=view, pairs=listed))}
    found: dict[tuple[str, str], Box | None] = {}
    for dropped, witness in pairs:
        edge = edges.get((min(dropped, witness), max(dropped, witness)))
        if edge is not None:
            found[dropped, witness] = _box(edge[f"{'a' if dropped < witness else 'b'}_{e}"] for e in BOX)
    return found


def _box(values: Any) -> Box | None:
    left, top, right, bottom = values
    return None if None in (left, top, right, bottom) else (left, top, right, bottom)


def laid_alike(run: Run, change: Change, side: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The part that both show, as the dropped picture and as its witness has it, of one size (longer side at most `side`), standing alike; None where one
    cannot be read."""
    from manifests.registration import aligned  # loads OpenCV, which a run without copies need not

    if change.witness is None or change.turn is None or change.own is None or change.shown is None:
        return None
    try:
        dropped, _ = _decoded(run, change.row, change.own, side)
        witness, orientation = _decoded(run, change.witness, change.shown, side)
    except (images.Undecodable, OSError, KeyError, TypeError, Refusal):
        return None
    shown, own = (images.upright(part, orientation) for part in aligned(witness, dropped, change.turn, change.shown, change.own))
    height, width = shown.shape[:2]
    scale = min(1.0, side / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    return images.resize(own, height, width), images.resize(shown, height, width)


def _decoded(run: Run, row: dict[str, Any], box: Box, side: int) -> tuple[np.ndarray, int]:
    """A picture as it is stored, large enough that `box` of it can be shown at `side` pixels, and its EXIF orientation."""
    payload = run.payload(row["shard"], row["offset"], row["size"])
    largest = max(box[2] - box[0], box[3] - box[1], 0.25)
    return images.visible(payload, min_side=round(side / largest)), images.header(payload).orientation
