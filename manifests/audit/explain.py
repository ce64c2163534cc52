"""The life of one sample: every stage that saw it, what was measured, who decided, and what would have saved it."""

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.audit.visible import called, number, rows_of_text, visible
from manifests.errors import Refusal
from manifests.leaks import LIMITS, MEASURED, leak_files, what_happened
from manifests.run import PATH, Run, StageRecord, open_run, reading
from manifests.schema import EDGE, KEPT, QUARANTINED, VERDICT, written_column

HIDDEN = {"members", "suffix", "offset", "size", "content", "key", "caption", "label", "label_name", "source_uid", "fault"}  # the ledger has them


def explain(run: Path | str, key: str) -> dict[str, Any]:
    """What happened to one sample, stage by stage, whether it was kept, dropped or quarantined.

    Guarantee   verdicts come from the stages' own parts, not from the ledger's summary of them; a stage whose part is missing says so
    key         a key, a uid, the first 8 or more digits of a uid, or a file of the pool: its `path` in the ledger, or the end of that, such as its name
    Cost        one look-up in the ledger (bloom filter) and one shard's part of every stage
    Errors      `Refusal` [no-such-sample], [not-a-run], [broken-record]
    """
    opened = open_run(run)
    with reading(opened):
        return _life(opened, key)


def _life(opened: Run, key: str) -> dict[str, Any]:
    sample = opened.find(key)
    names = [stage.id for stage in opened.stages]
    last = names.index(sample["drop_stage"]) if sample["drop_stage"] in names else len(names)
    stages = [_stage(opened, stage, sample, out=i > last) for i, stage in enumerate(opened.stages)]
    return {
        "run": str(opened.path),
        "sample": {name: _json(value) for name, value in sample.items() if value is not None or name in ("uid", "key", "status")},
        "stages": stages,
        "stands_for": _stands_for(opened, sample["uid"]),
        "cure": cure(sample),
    }


def cure(sample: dict[str, Any]) -> str | None:
    """What would keep a dropped sample, in a sentence; None for others."""
    if sample["status"] == QUARANTINED:
        return "mend it in the pool and build again; nothing else brings it back"
    if sample["status"] == KEPT:
        return None
    if str(sample["drop_stage"]).startswith("leakage"):
        return "nothing but another test: it matches a test picture, and protection does not apply to leakage"
    score, threshold = sample["score"], sample["threshold"]
    if score is None or threshold is None:
        return f"change the rule of {sample['drop_stage']}, or protect it there (protect: \"uid = '{sample['uid']}'\")"
    side = "above" if score >= threshold else "below"
    return f"move the limit {side} {number(score)}, or protect it in {sample['drop_stage']}"


def _stage(run: Run, stage: StageRecord, sample: dict[str, Any], out: bool) -> dict[str, Any]:
    about: dict[str, Any] = {"stage": stage.id, "kind": stage.kind}
    row = part_row(run, stage.id, sample["shard"], sample["row"])
    if row is None:
        return {**about, "verdict": "unknown: its part is missing"}
    fault = row.get("fault")
    verdict = {name: row.pop(name, None) for name in VERDICT.names} if stage.kind == "decision" else {}
    about["columns"] = {name: _json(value) for name, value in row.items() if value is not None and name not in HIDDEN and name not in sample}
    if stage.kind != "decision":
        quarantined_here = fault is not None or (sample["status"] == QUARANTINED and sample["drop_stage"] == stage.id)
        if out and not about["columns"]:
            return {**about, "verdict": "not seen: it was out already"}
        return {**about, "verdict": f"quarantined: {fault or sample['drop_reason']}" if quarantined_here else "measured"}
    if verdict["keep"] is None:
        return {**about, "verdict": "not seen: it was out already"}
    about["verdict"] = "kept" if verdict["keep"] else "dropped"
    if stage.name == "dedup.copies" and (change := about["columns"].pop(written_column(stage.id, stage.name, "copies_change"), None)):
        about["change"] = change  # a sentence: it stands in the line itself
    about |= {
        name: verdict[name]
        for name in ("unjudged", "reason", "score", "threshold", "weight")
        if verdict[name] is not None and verdict[name] is not False
    }
    about["parameters"] = stage.parameters
    if verdict["witness"] is not None:
        about["witness"] = witness_of(run, verdict["witness"], verdict["witness_pool"])
        if verdict["witness_pool"] is None:
            about["pair"] = _pair(run, stage.id, sample["uid"], verdict["witness"])
        else:
            about |= _hits(run, stage, sample["uid"], (verdict["witness_pool"], verdict["witness"]))
    return about


def _hits(run: Run, stage: StageRecord, uid: str, closest: tuple[str, str]) -> dict[str, Any]:
    """`pair`: what was seen of a sample and the test picture it was dropped for. `hits`: the other test pictures that it shows: how many, and the surest ten."""
    columns = ["b", "pool", "reason", "score", *MEASURED]
    rows: list[dict[str, Any]] = []
    for file in leak_files(run, stage):
        there = [name for name in columns if name in pq.read_schema(file).names]
        rows += pq.read_table(file, columns=there, filters=(pc.field("a") == uid) & pc.field("reason").is_valid()).to_pylist()
    if not rows:
        return {"pair": {}}  # the run is older than these pairs
    surest = {reason: place for place, reason in enumerate(LIMITS)}
    rows.sort(key=lambda r: (surest.get(r["reason"], 9), r["score"] if surest.get(r["reason"], 9) < 2 else -r["score"], r["pool"], r["b"]))
    own = next((row for row in rows if (row["pool"], row["b"]) == closest), {})
    others = [row for row in rows if row is not own]
    first = [
        {"uid": r["b"], **evaluation_names(run, r["pool"], r["b"]), "pool": r["pool"], "reason": r["reason"], "score": r["score"]}
        for r in others[:10]
    ]
    pair = {name: value for name, value in own.items() if value is not None and name in ("difference", "copied", "cosine")}
    said = {"change": what_happened(own)} if own.get("reason") == "copied_leak" else {}
    return {"pair": pair, **said, **({"hits": {"count": len(others), "first": first}} if others else {})}


def _json(value: Any) -> Any:
    """Bytes as hex digits; everything else as it is."""
    return value.hex() if isinstance(value, bytes) else value


def _pair(run: Run, stage: str, uid: str, witness: str) -> dict[str, Any]:
    """What else the stage saw of a sample and its witness, where it kept its edges."""
    for file in run.edges(stage):
        a, b = pc.field("a"), pc.field("b")
        for row in pq.read_table(file, filters=((a == uid) & (b == witness)) | ((a == witness) & (b == uid))).to_pylist():
            return {name: _json(value) for name, value in row.items() if name not in EDGE.names and value is not None}
    return {}


def part_row(run: Run, stage: str, shard: str, row: int) -> dict[str, Any] | None:
    """Row `row` of a stage's part for `shard`; None where the part is missing or too short."""
    file = run.part(stage, shard)
    if not file.is_file():
        return None
    rows: list[dict[str, Any]] = pq.read_table(file).slice(row, 1).to_pylist()
    return rows[0] if rows else None


def witness_of(run: Run, uid: str, pool: str | None) -> dict[str, Any]:
    """Who decided: uid, key, the path of its file where there is one, its pool, and what became of it."""
    if pool is not None:
        return {"uid": uid, **evaluation_names(run, pool, uid), "pool": pool}
    try:
        row = run.find(uid, ["uid", "key", PATH, "status", "drop_stage"])
    except Refusal:
        return {"uid": uid, "key": None, "status": "missing from the ledger"}
    return {"uid": uid, **_names(row), "status": row["status"], **({"drop_stage": row["drop_stage"]} if row["drop_stage"] else {})}


def _names(row: dict[str, Any]) -> dict[str, Any]:
    """The key of a sample, and the path of its file where there is one."""
    return {"key": row["key"], **({PATH: row[PATH]} if row.get(PATH) is not None else {})}


def evaluation_names(run: Run, pool: str, uid: str) -> dict[str, Any]:
    """The key of a sample of an evaluation pool, and the path of its file where there is one; the key is None where its parts do not hold it."""
    measures = run.evaluation(pool)
    for file in sorted((measures.path / "parts" / "identity").glob("*/*.parquet")):
        at = pc.index(pq.read_table(file, columns=["uid"])["uid"], uid).as_py()
        if at >= 0:
            shard = f"{file.parent.name}/{file.stem}"
            found = part_row(measures, "measure.index", shard, at)
            return _names(found) if found else {"key": None}
    return {"key": None}


def _stands_for(run: Run, uid: str) -> dict[str, Any]:
    """The dropped samples that name this one as their witness: how many, and the first ten by uid."""
    count, first = 0, []
    for file in run.ledger_files():
        columns = ["uid", "key", *([PATH] if PATH in pq.read_schema(file).names else []), "drop_stage", "score"]
        found = pq.read_table(file, columns=columns, filters=(pc.field("witness") == uid) & pc.field("witness_pool").is_null())
        count += found.num_rows
        first += found.to_pylist()
        first = sorted(first, key=lambda row: row["uid"])[:10]
    return {"count": count, "first": first}


def text(life: dict[str, Any]) -> str:
    """The same as a page for a terminal."""
    sample = life["sample"]
    lines = [_headline(sample), ""]
    facts = [[name, _fact(name, sample[name])] for name in _facts(sample)]
    lines += rows_of_text(facts) + [""]
    for step in life["stages"]:
        lines += _step(step)
    others = life["stands_for"]
    if others["count"]:
        names = ", ".join(f"{called(row, 60)} ({row['uid'][:8]})" for row in others["first"])
        more = f" and {others['count'] - len(others['first']):,} more" if others["count"] > len(others["first"]) else ""
        lines += ["", f"stands for {others['count']:,} dropped: {names}{more}"]
    if life["cure"]:
        lines += ["", f"to keep it: {visible(life['cure'])}"]
    return "\n".join(lines)


def _facts(sample: dict[str, Any]) -> list[str]:
    done = {"status", "drop_stage", "drop_reason", "score", "threshold", "witness", "witness_pool", *(() if sample.get(PATH) else ("key",))}
    return [name for name, value in sample.items() if name not in done and value is not None]


def _fact(name: str, value: Any) -> str:
    return str(value) if name in ("row", "offset", "out_row", "label") else number(value)


def _headline(sample: dict[str, Any]) -> str:
    name = f"{called(sample, 120)}  {sample['uid'][:12]}"
    if sample["status"] == KEPT:
        return f"{name}  KEPT"
    what = f"{name}  {sample['status'].upper()} at {visible(sample.get('drop_stage'))}: {visible(sample.get('drop_reason'))}"
    return what + (f", {_against(sample)}" if sample.get("score") is not None else "")


def _against(row: dict[str, Any]) -> str:
    """Score beside its limit, with the distance between them."""
    score, threshold = row.get("score"), row.get("threshold")
    if threshold is None:
        return f"score {number(score)}"
    if score is None:
        return f"limit {number(threshold)}"
    sign = ">" if score > threshold else "<" if score < threshold else "="
    return f"score {number(score)} {sign} limit {number(threshold)}" + ("" if sign == "=" else f" (by {number(abs(score - threshold))})")


def _step(step: dict[str, Any]) -> list[str]:
    mark = {"kept": "●", "dropped": "✕", "measured": "·"}.get(step["verdict"], "–")
    line = f"{mark} {visible(step['stage']):<24}{visible(step['verdict'])}"
    if step.get("reason"):
        line += f": {visible(step['reason'])}"
    if step.get("change"):
        line += f" · {visible(step['change'], 200)}"
    if step.get("unjudged"):
        line += " (unjudged: a column that it reads is empty here)"
    if "score" in step or "threshold" in step:
        line += f" · {_against(step)}"
    lines = [line]
    if "witness" in step:
        lines.append(f"    witness {_witness(step['witness'])}")
        lines += _wrapped(step.get("pair", {}))
        lines += _also(step.get("hits"))
    if step["verdict"] == "dropped" and step.get("parameters"):
        lines += _wrapped(step["parameters"])
    lines += _wrapped(step.get("columns", {}))
    return lines


def _also(hits: dict[str, Any] | None) -> list[str]:
    """The other test pictures that a sample shows, a line each."""
    if not hits:
        return []
    lines = [
        f"    also shows {called(h, 120)}  {h['uid'][:12]}, of evaluation pool {visible(h['pool'])}: {visible(h['reason'])}, score {number(h['score'])}"
        for h in hits["first"]
    ]
    more = hits["count"] - len(hits["first"])
    return [*lines, f"    and {more:,} more test pictures"] if more else lines


def _wrapped(values: dict[str, Any], width: int = 110) -> list[str]:
    """Names and values, joined by dots, on indented lines of about `width` characters; a long value is cut."""
    lines: list[str] = []
    for name, value in values.items():
        word = f"{visible(name)} {visible(number(value), 100)}"
        if lines and len(lines[-1]) + len(word) + 3 <= width:
            lines[-1] += f" · {word}"
        else:
            lines.append(f"    {word}")
    return lines


def _witness(witness: dict[str, Any]) -> str:
    name = f"{called(witness, 120) if witness['key'] is not None else '(no key)'}  {visible(witness['uid'])[:12]}"
    if "pool" in witness:
        return f"{name}, of evaluation pool {visible(witness['pool'])}"
    later = f" later, at {visible(witness['drop_stage'])}" if witness.get("drop_stage") else ""
    return f"{name}, {visible(witness['status'])}{later}"
