"""A run at a glance: does it add up, where did the samples go, what does the evidence say, where do things lie."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from manifests.audit.query import connect, select
from manifests.audit.visible import number, rows_of_text, share, visible
from manifests.leaks import evaluation_sizes, leak_stages
from manifests.run import Run, open_run

if TYPE_CHECKING:
    import duckdb

CONTROLS = ("control", "anchor")  # questions about the comparison itself, not about what was kept

LAW = """SELECT count(*) AS "rows", count(*) FILTER (status = 'kept') AS kept, count(*) FILTER (status = 'dropped') AS dropped,
       count(*) FILTER (status = 'quarantined') AS quarantined
FROM ledger"""

WHERE_THEY_WENT = """SELECT drop_stage, drop_reason, count(*) AS n
FROM ledger WHERE status = 'dropped'
GROUP BY ALL ORDER BY drop_stage, n DESC, drop_reason"""

QUARANTINE = """SELECT drop_reason AS fault, count(*) AS n
FROM ledger WHERE status = 'quarantined'
GROUP BY ALL ORDER BY n DESC, fault"""


HIT = """SELECT pool, count(DISTINCT test) AS hit, count(DISTINCT uid) AS "rows", coalesce(bool_and(is_complete IS NOT NULL), true) AS is_known
FROM leaks GROUP BY ALL ORDER BY pool"""


def show(run: Path | str) -> dict[str, Any]:
    """What happened in a run: its pool, the law of the ledger, the funnel, the faults, the test pictures that are hit, the evidence, and where things are.

    Guarantee   every count is taken from the ledger itself, not from what `run.json` says of it
    Cost        two passes over three columns of the ledger
    Errors      `Refusal` [not-a-run], [broken-record]
    """
    opened = open_run(run)
    with connect(opened) as connection:
        law, funnel = law_of(connection), funnel_of(opened, connection)
        faults = {row["fault"]: row["n"] for row in select(connection, QUARANTINE).to_pylist()}
        leaks = leaks_of(opened, connection)
    return {
        "run": str(opened.path),
        "pool": opened.info.get("pool", {}),
        **({"generations": _generations(opened)} if len(opened.generations) > 1 else {}),
        "seed": opened.info.get("seed"),
        "recipe_digest": opened.info.get("recipe_digest"),
        "law": law,
        "funnel": funnel,
        "quarantined": faults,
        "leaks": leaks,
        "evidence": evidence_of(opened),
        "damage": list(opened.info.get("damage", [])),
        "places": _places(opened),
    }


def _generations(run: Run) -> list[dict[str, Any]]:
    """Of each generation its pools, its counts and the shards that it was written to."""
    return [
        {"pools": [{"name": p["name"], "path": p["path"]} for p in g["pools"]], "counts": g["counts"], "shards": g["shards"]} for g in run.generations
    ]


def law_of(connection: "duckdb.DuckDBPyConnection") -> dict[str, Any]:
    """Rows, kept, dropped, quarantined, and whether they add up."""
    law: dict[str, Any] = select(connection, LAW).to_pylist()[0]
    return {**law, "holds": law["rows"] == law["kept"] + law["dropped"] + law["quarantined"]}


def funnel_of(run: Run, connection: "duckdb.DuckDBPyConnection") -> list[dict[str, Any]]:
    """One row a decision, in the order of the recipe: rows in, dropped by reason, left. Faults are taken off where `run.json` says they were found."""
    dropped: dict[str, dict[str, int]] = {}
    for row in select(connection, WHERE_THEY_WENT).to_pylist():
        dropped.setdefault(row["drop_stage"], {})[row["drop_reason"]] = row["n"]
    left = law_of(connection)["rows"]
    funnel = []
    for stage in run.stages:
        faults = sum((stage.counts.get("quarantined") or {}).values())
        if stage.kind != "decision":
            left -= faults
            continue
        reasons = dropped.pop(stage.id, {})
        entered, left = left, left - sum(reasons.values()) - faults
        funnel.append(
            {"stage": stage.id, "name": stage.name, "in": entered, "dropped": reasons, "unjudged": stage.counts.get("unjudged", 0), "left": left}
        )
    for name, reasons in sorted(
        dropped.items(), key=lambda item: str(item[0])
    ):  # a record that names a stage which the recipe lacks: `verify` says so
        entered, left = left, left - sum(reasons.values())
        funnel.append({"stage": name, "name": name, "in": entered, "dropped": reasons, "unjudged": 0, "left": left})
    return funnel


def leaks_of(run: Run, connection: "duckdb.DuckDBPyConnection") -> list[dict[str, Any]]:
    """Of each evaluation pool that was looked for: its samples, how many of them are hit, and by how many rows.

    `is_known` false: the run is older than the table of all hits, and more may be hit
    """
    if not leak_stages(run):
        return []
    found = {row["pool"]: row for row in select(connection, HIT).to_pylist()}
    none = {"hit": 0, "rows": 0, "is_known": True}
    return [{"pool": pool, "samples": count, **{n: found.get(pool, none)[n] for n in none}} for pool, count in sorted(evaluation_sizes(run).items())]


def evidence_of(run: Run) -> list[dict[str, Any]]:
    """The verdicts on all tasks together, newest look of each comparison: arm, reference, difference, interval, word."""
    wanted = ["objective", "arm", "reference", "question", "scope", "task", "look", "diff", "lo", "hi", "margin", "word"]
    found = []
    for file in sorted(run.path.glob("evidence/*/verdicts.parquet")):
        rows = pq.read_table(file).to_pylist()
        rows = [row for row in rows if row.get("scope", "suite") == "suite"]
        newest: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in rows:
            name = (row.get("objective"), row.get("arm"), row.get("reference"))
            if name not in newest or (row.get("look") or 0) >= (newest[name].get("look") or 0):
                newest[name] = row
        found += [{"folder": file.parent.name, **{c: row.get(c) for c in wanted if c in row}} for row in newest.values()]
    return found


def _places(run: Run) -> dict[str, str]:
    places = {
        "recipe": "recipe.yaml",
        "ledger": "ledger",
        "selection": "selection.npy",
        "shards": "shards",
        "evidence": "evidence",
        "report": "report.html",
    }
    return {name: str(run.path / place) for name, place in places.items() if (run.path / place).exists()}


def text(shown: dict[str, Any]) -> str:
    """The same as a page for a terminal."""
    law, pool = shown["law"], shown["pool"]
    lines = [f"run      {visible(shown['run'])}", f"pool     {visible(pool.get('name'))}  {visible(pool.get('path'))}"]
    for turn, generation in enumerate(shown.get("generations", []), 1):
        names = ", ".join(f"{visible(p['name'])}  {visible(p['path'])}" for p in generation["pools"])
        lines.append(f"  generation {turn}: {names}: {generation['counts']['rows']:,} samples, {generation['counts']['kept']:,} kept")
    if shown["recipe_digest"]:
        lines.append(f"recipe   {visible(shown['recipe_digest'])[:12]}, seed {number(shown['seed'])}")
    lines += ["", _law_line(law), ""]
    lines += funnel_lines(shown["funnel"])
    if shown["quarantined"]:
        lines += ["", "quarantined (could not be judged)"]
        lines += rows_of_text([[visible(fault), number(n)] for fault, n in shown["quarantined"].items()], right=frozenset({1}))
    if shown["leaks"]:
        lines += ["", "test pictures that stand in the pool"]
        lines += rows_of_text([_leak_cells(row) for row in shown["leaks"]])
    if shown["evidence"]:
        asked = [row for row in shown["evidence"] if row.get("question") not in CONTROLS]
        lines += ["", "evidence (all tasks together)"]
        lines += rows_of_text([_evidence_cells(row) for row in asked])
        if len(asked) < len(shown["evidence"]):
            lines.append(f"  and {len(shown['evidence']) - len(asked)} comparisons of controls and anchors: see the report")
    if shown["damage"]:
        lines += ["", "damaged in the pool"] + [f"  {visible(what, 300)}" for what in shown["damage"]]
    lines += ["", "where things are"]
    lines += rows_of_text([[name, visible(place)] for name, place in shown["places"].items()])
    return "\n".join(lines)


def _law_line(law: dict[str, Any]) -> str:
    sign = "=" if law["holds"] else "≠"
    line = f"{law['rows']:,} samples {sign} {law['kept']:,} kept + {law['dropped']:,} dropped + {law['quarantined']:,} quarantined"
    return f"{line}   ({share(law['kept'], law['rows'])} kept)" if law["holds"] else f"{line}   The law is BROKEN: run `manifests verify`"


def funnel_lines(funnel: list[dict[str, Any]]) -> list[str]:
    """The funnel as a table for a terminal."""
    table = [["stage", "in", "dropped", "share", "left", "why"]]
    for step in funnel:
        gone = sum(step["dropped"].values())
        why = ", ".join(f"{visible(reason)} {n:,}" for reason, n in step["dropped"].items())
        if step["unjudged"]:
            why += f"{'; ' if why else ''}{step['unjudged']:,} kept unjudged"
        table.append([visible(step["stage"]), f"{step['in']:,}", f"{gone:,}", share(gone, step["in"]), f"{step['left']:,}", why])
    return rows_of_text(table, right=frozenset({1, 2, 3, 4})) if len(table) > 1 else ["  no decisions: every sample that can be read is kept"]


def _leak_cells(row: dict[str, Any]) -> list[str]:
    count = (
        f"{'' if row['is_known'] else 'at least '}{row['hit']:,} of {row['samples']:,} ({share(row['hit'], row['samples'])})"
        if row["hit"]
        else f"none of {row['samples']:,}"
    )
    return [visible(row["pool"]), count, f"shown by {row['rows']:,} samples" if row["rows"] else ""]


def _evidence_cells(row: dict[str, Any]) -> list[str]:
    name = f"{visible(row.get('objective'))} {visible(row.get('arm'))} against {visible(row.get('reference'))}".strip()
    points = [row.get(c) for c in ("diff", "lo", "hi")]
    if any(p is None for p in points):
        return [name, visible(row.get("word")), ""]
    diff, lo, hi = (100 * p for p in points if p is not None)
    return [name, visible(row.get("word")), f"{diff:+.1f} points [{lo:+.1f}, {hi:+.1f}]"]
