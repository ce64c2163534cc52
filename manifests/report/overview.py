"""The panels that every run has: what happened, where the samples went, how classes and sources fared, how it was made."""

from typing import Any

from manifests.audit.show import CONTROLS, LAW, QUARANTINE, WHERE_THEY_WENT, evidence_of
from manifests.audit.visible import number, share, visible
from manifests.report import charts
from manifests.report.panel import Inquiry, Panel

SHOWN = 50  # values of a facet


def happened(inquiry: Inquiry) -> Panel:
    """Rows in, kept, dropped, quarantined, and whether they add up; the verdicts in words."""
    law = inquiry.ask("law", LAW)[0]
    stages = inquiry.ask("by_stage", STAGES)
    rows = law["rows"]
    holds = rows == law["kept"] + law["dropped"] + law["quarantined"]
    gone = {row["drop_stage"]: row["n"] for row in stages}
    parts = [("kept", law["kept"], "kept")]
    parts += [(visible(s.id, 60), gone.pop(s.id, 0), f"dropped shade{i % 3}") for i, s in enumerate(inquiry.decisions)]
    parts += [(visible(name, 60), n, "dropped") for name, n in gone.items()] + [("quarantined", law["quarantined"], "quarantined")]
    tiles = [{"name": "samples in", "value": f"{rows:,}", "kind": "", "note": ""}]
    tiles += [{"name": w, "value": f"{law[w]:,}", "kind": w, "note": share(law[w], rows)} for w in ("kept", "dropped", "quarantined")]
    sign = "=" if holds else "≠"
    sentence = f"{rows:,} in {sign} {law['kept']:,} kept + {law['dropped']:,} dropped + {law['quarantined']:,} quarantined."
    blocks: list[dict[str, Any]] = [
        {"kind": "tiles", "tiles": tiles},
        {
            "kind": "chart",
            "svg": charts.stacked(parts, "Every sample once, by its fate"),
            "caption": "Every sample once, from left to right: " + ", ".join(f"{name} {n:,}" for name, n, _ in parts if n) + ".",
        },
        {
            "kind": "text",
            "class": "law ok" if holds else "law broken",
            "text": f"{'✓ The ledger adds up: ' if holds else '✗ The ledger does NOT add up: '}{sentence}",
        },
    ]
    for row in [row for row in evidence_of(inquiry.run) if row.get("question") not in CONTROLS][:8]:
        if row.get("word") is not None:
            text = f"{row['word']}: {visible(row.get('arm'), 60)} against {visible(row.get('reference'), 60)} ({visible(row.get('objective'), 40)})"
            if row.get("diff") is not None and row.get("lo") is not None:
                text += f", {100 * row['diff']:+.1f} points [{100 * row['lo']:+.1f}, {100 * row['hi']:+.1f}]".replace("-", "−")
            blocks.append({"kind": "word", "word": row["word"], "mark": charts.WORDS.get(row["word"], "quarantined"), "text": text})
    answer = f"Of {rows:,} samples, {law['kept']:,} were kept ({share(law['kept'], rows)})."
    return Panel("happened", "What happened", "What happened?", answer, blocks, inquiry.take())


STAGES = """SELECT drop_stage, count(*) AS n
FROM ledger WHERE status = 'dropped'
GROUP BY ALL ORDER BY drop_stage"""


def funnel(inquiry: Inquiry) -> Panel:
    """One row a stage and reason: dropped, share, left."""
    rows = inquiry.ask("where_they_went", WHERE_THEY_WENT)
    faults = inquiry.ask("quarantine", QUARANTINE)
    total = inquiry.look_up(LAW)[0]["rows"]
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_stage.setdefault(row["drop_stage"], []).append(row)
    left, cells = total, []
    out = {s.id: sum((s.counts.get("quarantined") or {}).values()) for s in inquiry.run.stages}
    worst = ("", 0)
    for stage in inquiry.run.stages:
        found = by_stage.pop(stage.id, [])
        if stage.kind != "decision":
            if out[stage.id]:
                left -= out[stage.id]
                cells.append(_row(stage.id, "could not be measured", out[stage.id], left, total, "quarantined"))
            continue
        if not found:
            cells.append(_row(stage.id, "nothing to drop", 0, left, total, "dropped"))
        for row in found:
            left -= row["n"]
            cells.append(_row(stage.id, row["drop_reason"], row["n"], left, total, "dropped"))
        left -= out[stage.id]
        worst = max(worst, (stage.id, sum(r["n"] for r in found)), key=lambda w: w[1])
    for found in by_stage.values():
        for row in found:
            left -= row["n"]
            cells.append(_row(str(row["drop_stage"]), row["drop_reason"], row["n"], left, total, "dropped"))
    blocks: list[dict[str, Any]] = [{
        "kind": "table", "name": "The funnel: stages in order", "head": ["stage", "dropped", "left", "share of all", "reason", "left and dropped"], "numbers": [1, 2, 3], "rows": cells,
    }]  # fmt: skip
    unjudged = [
        f"{visible(s.id, 60)}: {s.counts['unjudged']:,} kept without judgement, because a column that it reads is empty there"
        for s in inquiry.decisions
        if s.counts.get("unjudged")
    ]
    blocks += [{"kind": "text", "class": "note", "text": text} for text in unjudged]
    if faults:
        table = [[visible(row["fault"], 60), number(row["n"])] for row in faults]
        blocks.append({"kind": "table", "name": "Quarantined: what was wrong", "head": ["fault", "samples"], "numbers": [1], "rows": table})
    answer = (
        f"{visible(worst[0], 60)} took the most: {worst[1]:,} samples, {share(worst[1], total)} of all." if worst[1] else "No stage dropped anything."
    )
    return Panel("funnel", "Funnel", "Where did they go?", answer, blocks, inquiry.take())


def _row(stage: str, reason: str | None, gone: int, left: int, total: int, kind: str) -> list[Any]:
    svg = charts.bar([("left", left, "kept"), ("dropped here", gone, kind)], total, f"left after {visible(stage, 60)}")
    return [
        visible(stage, 60),
        f"{gone:,}",
        f"{left:,}",
        share(gone, total),
        {"text": visible(reason, 60), "mark": kind} if gone else visible(reason),
        {"svg": svg},
    ]


FACET = """SELECT {column} AS {name}, count(*) AS n, count(*) FILTER (status = 'kept') AS kept, count(*) FILTER (status = 'dropped') AS dropped,
       count(*) FILTER (status = 'quarantined') AS quarantined
FROM ledger GROUP BY ALL ORDER BY n DESC, {name} LIMIT {limit}"""


def classes(inquiry: Inquiry) -> Panel | None:
    """Classes, sources and licences: how many of each, and how many were kept."""
    blocks: list[dict[str, Any]] = []
    widest: tuple[float, str] = (0.0, "")
    facets = [("class", "label_name"), ("source", "split_part(shard::VARCHAR, '/', 1)")]
    facets += [(name, name) for name in inquiry.schema("ledger").names if name in ("licence", "license")]
    for name, column in facets:
        rows = inquiry.ask(f"by_{name}", FACET.format(column=column, name=name, limit=SHOWN + 1))
        if len(rows) < 2 and (not rows or rows[0][name] is None or name != "licence"):
            continue
        top = max(row["n"] for row in rows)
        cells = []
        for row in rows[:SHOWN]:
            parts = [(w, row[w], w) for w in ("kept", "dropped", "quarantined")]
            label = visible(row[name], 60) if row[name] is not None else "(none)"
            cells.append(
                [label, number(row["n"]), number(row["kept"]), share(row["kept"], row["n"]), {"svg": charts.bar(parts, top, f"{label}: fate")}]
            )
        shares = [(row["kept"] / row["n"], row[name]) for row in rows if row["n"] >= 10]
        if name == "class" and len(shares) > 1:
            low, high = min(shares, key=lambda s: s[0]), max(shares, key=lambda s: s[0])
            widest = (high[0] - low[0], f"{visible(high[1], 40)} kept {100 * high[0]:.0f} %, {visible(low[1], 40)} {100 * low[0]:.0f} %.")
        title = f"By {name}" + (f" (the {SHOWN} largest)" if len(rows) > SHOWN else "")
        blocks.append(
            {"kind": "table", "name": title, "head": [name, "in", "kept", "share", "kept, dropped, quarantined"], "numbers": [1, 2, 3], "rows": cells}
        )
    if not blocks:
        inquiry.take()
        return None
    blocks.insert(0, {"kind": "legend", "marks": ["kept", "dropped", "quarantined"]})
    return Panel(
        "classes", "Classes", "Were all treated alike?", widest[1] or "Kept and dropped by class, source and licence.", blocks, inquiry.take()
    )


def made(inquiry: Inquiry) -> Panel:
    """The lineage: stages with version, parameters and digest; pool, seed, packages; what was damaged."""
    info = inquiry.run.info
    cells = []
    for stage in inquiry.run.stages:
        parameters = ", ".join(f"{visible(k, 40)}: {visible(v, 160)}" for k, v in stage.parameters.items()) or "–"
        cells.append([visible(stage.id, 60), stage.kind, f"{visible(stage.name, 60)} v{stage.version}", parameters, {"code": stage.digest[:12]}])
    pool = info.get("pool", {})
    facts = [
        ["pool", visible(pool.get("name"), 80)],
        ["pool lies at", visible(pool.get("path"), 200)],
        *(["pool was made from", visible(source, 200)] for source in inquiry.run.sources if source),
        ["pool digest", visible(pool.get("digest"), 64)],
    ]
    facts += [
        ["recipe digest", visible(info.get("recipe_digest"), 64)],
        ["seed", str(info.get("seed"))],
        ["keepset", visible(info.get("keepset"), 40)],
    ]
    facts += [[f"evaluation pool {visible(name, 60)}", visible(path, 200)] for name, path in inquiry.run.evaluations.items()]
    facts += [[visible(name, 60), visible(version, 40)] for name, version in sorted(info.get("packages", {}).items())]
    blocks: list[dict[str, Any]] = [
        {"kind": "table", "name": "Stages in order", "head": ["stage", "kind", "method", "parameters", "digest"], "numbers": [], "rows": cells},
        {"kind": "table", "name": "What it stands on", "head": ["what", "which"], "numbers": [], "rows": facts},
    ]
    if info.get("damage"):
        blocks.append(
            {
                "kind": "table",
                "name": "Damaged in the pool",
                "head": ["what could not be read"],
                "numbers": [],
                "rows": [[visible(d, 300)] for d in info["damage"]],
            }
        )
    answer = f"{len(inquiry.run.stages)} stages, {len(inquiry.decisions)} of them decisions; the same recipe and pool give the same bytes."
    return Panel("made", "Lineage", "How was it made?", answer, blocks, inquiry.take())
