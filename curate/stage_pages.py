"""`curate stages`: the table with each method's first sentence, or one method's whole page from its signature and docstring."""

import inspect
from typing import Any

from curate.stages import STAGES
from manifests.errors import Refusal
from manifests.signature import describe, first_sentence, load, parameters, plain_value


def stages(name: str | None = None) -> list[dict[str, Any]]:
    """One row a stage (name, kind, version, sentence); of `name` alone also its page, parameters, reasons and columns. Raises `Refusal` [unknown-stage]."""
    if name is None:
        return [
            {"name": n, "kind": s.kind, "version": s.version, "same_bytes": s.same_bytes, "sentence": first_sentence(n, "curate")}
            for n, s in STAGES.items()
        ]
    if name not in STAGES:
        raise Refusal("unknown-stage", "curate stages", f"there is no stage {name!r}", f"the stages: {', '.join(STAGES)}")
    function, row = load(name, "curate"), STAGES[name]
    module = inspect.getmodule(function)
    given = [
        {"name": n, "takes": describe(p.annotation), "default": "required" if p.default is inspect.Parameter.empty else plain_value(p.default)}
        for n, p in parameters(function).items()
    ]
    return [
        {
            "name": name, "kind": row.kind, "version": row.version, "same_bytes": row.same_bytes, "sentence": first_sentence(name, "curate"),
            "page": inspect.getdoc(function) or "", "parameters": given, "reasons": list(getattr(module, "REASONS", ())), "writes": {k: str(v) for k, v in getattr(module, "WRITES", {}).items()},
        }
    ]  # fmt: skip


def text(rows: list[dict[str, Any]]) -> str:
    """For a reader."""
    if len(rows) == 1 and "page" in rows[0]:
        row = rows[0]
        lines = [f"{row['name']}  ({row['kind']}, version {row['version']}, same bytes on {row['same_bytes']})", "", row["page"], "", "Parameters"]
        lines += [f"  {p['name']:<20} {p['takes']}; default: {p['default']}" for p in row["parameters"]] or ["  none"]
        if row["kind"] == "decision":
            lines += ["", "Also takes: within (decide inside each group of a column), protect (SQL: rows kept first), as (a name for a second use)"]
            lines += ["Reasons: " + ", ".join(row["reasons"])]
        lines += ["Writes: " + (", ".join(f"{k} ({v})" for k, v in row["writes"].items()) or "no further columns")]
        return "\n".join(lines)
    return "\n".join(f"{row['name']:<28} {row['sentence']}" for row in rows)
