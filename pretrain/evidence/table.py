"""`verdicts.parquet` and the same table for a terminal."""

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import Refusal
from manifests.progress import span
from manifests.publish import publish_table
from pretrain.evidence.verdict import CANNOT_TELL, Verdict, leaked_words, points

ARROW = {"int": pa.int64(), "float": pa.float64(), "str": pa.string(), "bool": pa.bool_()}
PROVED = ("proved_better", "proved_not_worse", "proved_worse")


def schema() -> pa.Schema:
    """The columns of `verdicts.parquet`, from the fields of `Verdict`."""
    named = [(f.name, ARROW[getattr(f.type, "__name__", str(f.type)).split(" ")[0]]) for f in fields(Verdict) if f.name not in ("claims", "dots")]
    return pa.schema(named + [(name, pa.bool_()) for name in PROVED])


def write_verdicts(path: Path, verdicts: Sequence[Verdict], digest: str) -> None:
    """Publish the rows as Parquet with `digest` in the footer."""
    publish_table(path, pa.Table.from_pylist([v.row() for v in verdicts], schema=schema()), digest)


def table(verdicts: Path | pa.Table) -> str:
    """The verdicts of an evidence folder (or of its table) as text: per objective the means of the arms, every question with interval and word, and
    the sentences that the kept arms have earned; at the end what the proof cost.

    Controls and anchors are shown on the suite only. A star marks a row whose word would be stronger alone, without Holm. Scores are in per cent, differences in points.
    """
    if isinstance(verdicts, Path):
        path = verdicts / "verdicts.parquet" if verdicts.is_dir() else verdicts
        if not path.is_file():
            raise Refusal("no-such-file", str(path), "is not there", "an evidence folder with verdicts.parquet")
        verdicts = pq.read_table(path)
    rows = verdicts.to_pylist()
    parts = []
    for objective in dict.fromkeys(row["objective"] for row in rows):
        mine = [row for row in rows if row["objective"] == objective]
        said = [row["sentence"] for row in mine if row["scope"] == "suite" and row["question"] in ("enough", "earned", "clean")]
        parts.append("\n".join([f"{objective or 'scores'}{_header(mine)}", "", *_means(mine), "", *_questions(mine), "", *said]))
    return "\n\n".join([*parts, *_cost(rows)])


def _cost(rows: list[dict[str, Any]]) -> list[str]:
    """What the proof cost, and after how many trainings it pays back."""
    cost, seconds = rows[0].get("proof_cost"), rows[0].get("proof_seconds")
    if cost is None:
        return []
    took = f", {span(seconds)} of one thread, tests included" if seconds else ""
    back = {row["arm"]: row["pays_back"] for row in rows if row.get("pays_back") is not None}
    if not back and str(rows[0]["budget"]).endswith("samples seen"):
        equal = "At equal samples seen both cost the same to train; cheaper equal-epoch training was not tested."
        return [f"The proof cost {cost:,.1f} trainings on the full pool{took}. {equal}"]
    pays = "".join(f" At equal epochs `{arm}` has paid for it after {math.ceil(after):,} later trainings." for arm, after in back.items())
    return [f"The proof cost {cost:,.1f} trainings on the full pool{took}.{pays}"]


def _header(rows: list[dict[str, Any]]) -> str:
    first = rows[0]
    at = f"look {first['look']}" if first["look"] else "before the first look"
    return f" ({', '.join(filter(None, [first['budget'], first.get('setting'), at]))})"


def _means(rows: list[dict[str, Any]]) -> list[str]:
    """One line an arm: rows in its training set, runs, mean on the suite and on each task."""
    arms: dict[str, dict[str | None, tuple[float, int, int | None]]] = {}
    for row in rows:
        for side in ("arm", "reference"):
            short = "arm" if side == "arm" else "ref"
            arms.setdefault(row[side], {})[row["task"]] = row[f"mean_{short}"], row[f"runs_{short}"], row[f"rows_{short}"]
    tasks: list[str | None] = [None, *dict.fromkeys(row["task"] for row in rows if row["task"])]
    lines = [["arm", "rows", "runs", *(("suite" if t is None else t) for t in tasks)]]
    for name, of_arm in arms.items():
        _, runs, size = next(iter(of_arm.values()))
        lines.append([name, f"{size:,}" if size is not None else "", str(runs), *(f"{100 * of_arm[t][0]:.2f}" if t in of_arm else "" for t in tasks)])
    return _aligned(lines, left=1)


def _questions(rows: list[dict[str, Any]]) -> list[str]:
    level = next((row["level"] for row in rows if row["level"]), None)
    interval = f"difference [{100 * level:.4g} %]" if level else "difference"
    lines = [["arm", "against", "on", interval, "word", ""]]
    for row in rows:
        if row["scope"] == "task" and row["question"] in ("control", "anchor"):
            continue  # they stand in verdicts.parquet
        star = "*" if row["word"] != row["word_alone"] else ""
        shown = f"{points(row['diff'])} [{points(row['lo'])}, {points(row['hi'])}]" if row["lo"] is not None else ""  # no look, no difference
        lines.append([row["arm"], row["reference"], row["task"] or "suite", shown, row["word"] + star, _short_note(row)])
    return _aligned(lines, left=6)


def _short_note(row: dict[str, Any]) -> str:
    parts = [row["note"]] if row["note"] else []
    if row["margin"]:
        parts.append(f"margin {points(row['margin'], signed=False)}")
    if row.get("leakage_rate"):
        parts.append(leaked_words(row["leakage_rate"], row.get("clean_diff"), row.get("clean_lo"), row.get("clean_hi")))
    if row["retained_lo"] is not None:
        parts.append(f"keeps at least {100 * row['retained_lo']:.1f} % of the gain")
    if row["word"] == CANNOT_TELL and row["seeds_needed"] is not None:
        parts.append(f"about {row['seeds_needed']} seeds would tell")
    elif row["word"] == CANNOT_TELL and row["samples_needed"] is not None:
        parts.append(f"no number of seeds will do: {row['samples_needed']:,} test samples would")
    return "; ".join(parts)


def _aligned(lines: list[list[str]], left: int) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return [
        "  ".join(cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
        for line in lines
    ]
