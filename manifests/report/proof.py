"""Did it hurt? The verdicts of the comparisons: intervals, words, sentences."""

from typing import Any

from manifests.audit.show import CONTROLS
from manifests.audit.visible import number, visible
from manifests.report import charts
from manifests.report.panel import Inquiry, Panel

WANTED = ["folder", "objective", "arm", "reference", "question", "scope", "task", "look", "runs_arm", "runs_ref", "mean_arm", "mean_ref", "mean_untrained", "diff", "lo", "hi",
          "level", "margin", "retained_lo", "word", "seeds_needed", "note", "sentence", "leakage_rate", "clean_diff", "clean_lo", "clean_hi"]  # fmt: skip
NEEDED = {"arm", "reference", "scope", "task", "look", "diff", "lo", "hi", "word"}
MEANINGS = {
    "better": "the whole interval lies above zero",
    "not worse": "the interval lies above minus the margin that was fixed beforehand",
    "worse": "the whole interval lies below zero",
    "cannot tell": "the runs so far do not decide it; this is no proof of sameness",
}


def proof(inquiry: Inquiry) -> Panel:
    """Forest plots of every comparison at its newest look, one an objective and an arm, with the sentences that may be said."""
    question = "Did it hurt?"
    if not inquiry.has("verdicts") or not set(inquiry.schema("verdicts").names) >= NEEDED:
        text = "Nobody has trained on this selection yet. `pretrain compare` trains on it, on everything and on random samples of the same size, and says which is better."
        return Panel("proof", "Proof", question, "Not yet known.", [{"kind": "text", "class": "", "text": text}], inquiry.take())
    there = inquiry.schema("verdicts").names
    columns = ", ".join(f'"{c}"' for c in WANTED if c in there)
    rows = inquiry.ask(
        "verdicts",
        f"""SELECT {columns} FROM verdicts
QUALIFY look = max(look) OVER (PARTITION BY folder)
ORDER BY folder, {"objective, " if "objective" in there else ""}arm, reference, scope, task""",
    )
    blocks: list[dict[str, Any]] = [{"kind": "words", "words": [{"word": w, "mark": charts.WORDS[w], "meaning": m} for w, m in MEANINGS.items()]}]
    drawn: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    rows.sort(key=lambda row: row.get("question") in CONTROLS)
    for row in rows:
        if row["diff"] is not None and row["lo"] is not None and row["hi"] is not None:
            drawn.setdefault((row["folder"], row.get("objective"), row["arm"], row.get("question") in CONTROLS), []).append(row)
    for (_, objective, arm, control), found in drawn.items():
        found.sort(key=lambda r: (_order(r), str(r["reference"]), r["scope"] != "suite", str(r["task"])))
        lines = []
        for r in found:
            strong = r["scope"] == "suite"
            label = f"against {visible(r['reference'], 40)}" if strong else f"· {visible(r['task'], 40)}"
            lines.append(
                {"label": label, "diff": r["diff"], "lo": r["lo"], "hi": r["hi"], "margin": r.get("margin"), "word": r["word"], "strong": strong}
            )
        name = f"{visible(arm, 40)}, trained with {visible(objective, 40)}" if objective else visible(arm, 40)
        caption = f"{name}: difference in points of accuracy, interval; the band is the margin. Right of zero: {visible(arm, 40)} is ahead."
        chart = {"kind": "chart", "svg": charts.forest(lines, f"{name}: differences"), "caption": caption}
        blocks.append({**chart, "folded": f"Controls and anchors of {name}"} if control else chart)
    if leaked := _leaked(rows):
        blocks.append({"kind": "text", "class": "", "text": leaked})
    said = [r for r in rows if r.get("sentence") and r["scope"] == "suite" and r.get("question") not in CONTROLS]
    sentences = [f"{visible(r.get('objective'), 40)} · {visible(r['sentence'], 600).replace('`', '')}".removeprefix(" · ") for r in said]
    if sentences:
        blocks.append({"kind": "list", "name": "In words", "items": sentences})
    head = ["objective", "arm", "reference", "task", "arm's mean", "reference's mean", "difference", "interval", "word", "runs"]
    beside = ["test samples in the pool", "difference without them"] if leaked else []
    table = [[visible(r.get("objective"), 40), visible(r["arm"], 40), visible(r["reference"], 40), visible(r["task"], 40) if r["task"] else "all",
              _per_cent(r.get("mean_arm")), _per_cent(r.get("mean_ref")), _points(r["diff"]), f"{_points(r['lo'])} to {_points(r['hi'])}",
              {"text": visible(r["word"], 20), "mark": charts.WORDS.get(r["word"], "quarantined")}, f"{number(r.get('runs_arm'))} v {number(r.get('runs_ref'))}", *_without(r)[: len(beside)]] for r in rows]  # fmt: skip
    blocks.append({"kind": "table", "name": "Every comparison", "head": head + beside, "numbers": [4, 5, 6], "rows": table, "folded": True})
    return Panel("proof", "Proof", question, _answer(rows), blocks, inquiry.take())


def _leaked(rows: list[dict[str, Any]]) -> str:
    """What share of each task's test samples stands in the pool, and which arms that favours; empty where none does."""
    rates = {r["task"]: r["leakage_rate"] for r in rows if r.get("leakage_rate")}
    if not rates:
        return ""
    each = ", ".join(f"{_per_cent(rate)} of {visible(task, 40)}" for task, rate in rates.items() if task) or _per_cent(rates[None])
    return (
        f"Test samples that stand in the pool: {each}. An arm that drops them is compared with arms that may have trained on them, which favours those arms. "
        "The table gives each difference without these samples too; the words are said of all samples."
    )


def _without(row: dict[str, Any]) -> list[str]:
    if not row.get("leakage_rate"):
        return ["–", "–"]
    told = row.get("clean_diff")
    return [
        _per_cent(row["leakage_rate"]),
        "–" if told is None else f"{_points(told)} ({_points(row.get('clean_lo'))} to {_points(row.get('clean_hi'))})",
    ]


def _order(row: dict[str, Any]) -> int:
    """Enough and earned first, then the controls."""
    order = ["enough", "earned", "clean", "shares", "control", "anchor"]
    return order.index(row["question"]) if row.get("question") in order else len(order)


def _answer(rows: list[dict[str, Any]]) -> str:
    said = [r for r in rows if r["scope"] == "suite" and r.get("question") not in CONTROLS]
    if not said:
        return "No verdict yet."
    parts = []
    for r in said[:4]:
        arm, reference = visible(r["arm"], 30), visible(r["reference"], 30)
        by = f" ({visible(r['objective'], 30)})" if r.get("objective") else ""
        parts.append(f"cannot tell {arm} from {reference}{by}" if r["word"] == "cannot tell" else f"{arm} {r['word']} than {reference}{by}")
    text = "; ".join(parts) + (f"; and {len(said) - 4} more." if len(said) > 4 else ".")
    return text[0].upper() + text[1:]


def _points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.2f}".replace("-", "−")


def _per_cent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"
