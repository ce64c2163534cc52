"""Suspects against the truth, where the pool came with `truth_*` columns: precision and recall of every stage, and a plain cross table."""

from typing import Any

import pyarrow as pa

from manifests.audit.visible import number, visible
from manifests.report import charts
from manifests.report.panel import Inquiry, Panel, in_list, named, quoted
from manifests.schema import is_truth

MEANT_FOR = {  # the truth that a room is meant to find
    "labels": "truth_is_wrong", "keep": "truth_is_junk", "leakage": "truth_is_leak", "dedup": "truth_copy_of", "quarantine": "truth_is_broken",
}  # fmt: skip

FOUND = """SELECT count(*) FILTER ({taken}) AS taken, count(*) FILTER ({taken} AND {truth}) AS right_ones,
       count(*) FILTER ({reached} AND {truth}) AS to_find
FROM ledger"""

COPIES = """WITH l AS (SELECT uid, witness, drop_stage, status, coalesce({copy_of}::VARCHAR, key) AS picture FROM ledger),
     reached AS (SELECT picture, count(*) - 1 AS extra FROM l WHERE {reached} GROUP BY 1)
SELECT (SELECT count(*) FROM l WHERE {taken}) AS taken,
       (SELECT count(*) FROM l JOIN l w ON w.uid = l.witness WHERE {taken_l} AND w.picture = l.picture) AS right_ones,
       (SELECT coalesce(sum(extra), 0)::BIGINT FROM reached) AS to_find"""

CROSS = """SELECT CASE WHEN status = 'kept' THEN '(kept)' WHEN status = 'quarantined' THEN '(quarantined)' ELSE drop_stage::VARCHAR END AS fate, count(*) AS n{columns}
FROM ledger GROUP BY ALL ORDER BY fate"""


def against_truth(inquiry: Inquiry) -> Panel | None:
    """Precision (share of what a stage took that was right to take) and recall (share of what was there to find, and reached it)."""
    truths = truth_columns(inquiry)
    if not truths:
        return None
    cells, headline = [], []
    for stages, room, label in _units(inquiry):
        column = MEANT_FOR.get(room)
        if column is None or column not in truths:
            continue
        row = _scored(inquiry, stages, column, truths[column], label)
        precision = row["right_ones"] / row["taken"] if row["taken"] else None
        recall = row["right_ones"] / row["to_find"] if row["to_find"] else None
        bars = (
            charts.bar([("precision", precision or 0, "target")], 1, f"{label} precision"),
            charts.bar([("recall", recall or 0, "target")], 1, f"{label} recall"),
        )
        cells.append(
            [
                label,
                column,
                *(number(row[c]) for c in ("taken", "right_ones", "to_find")),
                _part(precision),
                {"svg": bars[0]},
                _part(recall),
                {"svg": bars[1]},
            ]
        )
        if precision is not None and recall is not None:
            headline.append(f"{label} {_part(precision)} / {_part(recall)}")
    blocks: list[dict[str, Any]] = []
    if cells:
        head = ["stage", "truth", "taken", "rightly", "to find", "precision", "", "recall", ""]
        title = "Each stage against what it is meant to find"
        blocks.append({"kind": "table", "name": title, "class": "two", "head": head, "numbers": [2, 3, 4, 5, 7], "rows": cells})
        note = "To find: what the truth marks among the samples that reached the stage. For duplicates a drop is right where the dropped sample and its witness show one picture, and every picture leaves all but one of its copies to find."
        blocks.append({"kind": "text", "class": "note", "text": note})
    blocks.append(_by_fate(inquiry, truths))
    answer = (
        f"Precision / recall: {'; '.join(headline)}. No stage could read these columns."
        if headline
        else "The pool says what was planted; no stage could read it."
    )
    return Panel("truth", "Truth", "Were the suspects guilty?", answer, blocks, inquiry.take())


def _by_fate(inquiry: Inquiry, truths: dict[str, str]) -> dict[str, Any]:
    """The table of every truth column by what became of the samples."""
    names = [(f"t{i}", name, test) for i, (name, test) in enumerate(truths.items())]
    columns = "".join(f", count(*) FILTER ({test}) AS {named(name)}" for _, name, test in names)
    cross = inquiry.ask("truth_by_fate", CROSS.format(columns=columns))
    table = [[visible(row["fate"], 60), number(row["n"]), *(number(row[name]) for _, name, _ in names)] for row in cross]
    head = ["fate", "samples", *(visible(name, 40) for _, name, _ in names)]
    title = "Every truth column by what became of the samples"
    return {"kind": "table", "name": title, "head": head, "numbers": list(range(1, len(head))), "rows": table}


def truth_columns(inquiry: Inquiry) -> dict[str, str]:
    """Column → the SQL that says "marked": true for booleans, present for words."""
    found = {}
    for field in inquiry.schema("ledger"):
        if not is_truth(field.name):
            continue
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        if pa.types.is_boolean(kind):
            found[field.name] = f"coalesce({named(field.name)}, false)"
        elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
            test = f"coalesce({named(field.name)} <> '', false)"
            if inquiry.look_up(f"SELECT bool_and({test}) AS always FROM ledger")[0]["always"] is False:  # a word for every sample marks none of them
                found[field.name] = test
    return found


def _units(inquiry: Inquiry) -> list[tuple[list[str], str, str]]:
    """(stages, room, label): every decision alone, then rooms with several decisions together, then quarantine."""
    names = [stage.id for stage in inquiry.decisions]
    rooms = {stage.id: stage.name.split(".")[0] for stage in inquiry.decisions}
    units = [([name], rooms[name], visible(name, 60)) for name in names if rooms[name] in MEANT_FOR]
    for room in MEANT_FOR:
        together = [name for name in names if rooms[name] == room]
        if len(together) > 1:
            units.append((together, room, f"{room}, together"))
    return [*units, (["quarantine"], "quarantine", "quarantine")]


def _scored(inquiry: Inquiry, stages: list[str], column: str, test: str, label: str) -> dict[str, Any]:
    name = f"truth_of_{label}"
    if stages == ["quarantine"]:
        return inquiry.ask(name, FOUND.format(taken="status = 'quarantined'", reached="true", truth=test))[0]
    order = [stage.id for stage in inquiry.run.stages]
    earlier = order[: order.index(stages[0])]
    taken = f"drop_stage IN {in_list(stages)}" if len(stages) > 1 else f"drop_stage = {quoted(stages[0])}"
    reached = f"(drop_stage IS NULL OR drop_stage NOT IN {in_list(earlier)})" if earlier else "true"
    if column == "truth_copy_of":
        on_l = taken.replace("drop_stage", "l.drop_stage")
        return inquiry.ask(name, COPIES.format(copy_of=named(column), taken=taken, taken_l=on_l, reached=reached))[0]
    return inquiry.ask(name, FOUND.format(taken=f"({taken})", reached=reached, truth=test))[0]


def _part(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
