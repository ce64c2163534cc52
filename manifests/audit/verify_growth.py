"""The part of `verify` that looks at the generations of a run: each has the rows, ledger files and shards that `run.json` tells of, in that order."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.audit.verify_shards import REBUILD
from manifests.audit.visible import visible
from manifests.run import Run
from manifests.schema import DROPPED, KEPT, QUARANTINED

Finding = dict[str, str]
WORDS = (KEPT, DROPPED, QUARANTINED)


def check_generations(run: Run, ledger: pa.Table) -> list[Finding]:
    """Findings about generations: the law for each, its shards and no other's, its ledger files, its output shards."""
    found: list[Finding] = []
    at = 0
    for number, generation in enumerate(run.generations):
        told = generation["counts"]
        here = ledger.slice(at, told["rows"])
        at += told["rows"]
        found += [_finding(run, f"generation {number + 1} {what}") for what in _wrong(run, number, generation, here)]
    if run.generations and at != ledger.num_rows:
        found.append(_finding(run, f"tells of {at:,} rows in its generations, the ledger holds {ledger.num_rows:,}"))
    listed = [name for generation in run.generations for name in generation["ledger"]]
    if run.generations and listed != [file.name for file in run.ledger_files()]:
        found.append(_finding(run, f"tells of {len(listed)} ledger files in its generations, {len(run.ledger_files())} are there"))
    return found


def _wrong(run: Run, number: int, generation: dict[str, Any], here: pa.Table) -> list[str]:
    told = generation["counts"]
    counted = {row["values"]: row["counts"] for row in pc.value_counts(here["status"].cast(pa.string())).to_pylist()}
    wrong = [
        f"is said to have {told[word]:,} rows {word}, the ledger has {counted.get(word, 0):,}" for word in WORDS if told[word] != counted.get(word, 0)
    ]
    if told["rows"] != sum(told[word] for word in WORDS):
        wrong.append(f"has {told['rows']:,} rows, which are not its kept, dropped and quarantined ones")
    if len(run.generations) > 1:
        others = [s for s in pc.unique(here["shard"].cast(pa.string())).to_pylist() if run.generation_of(s or "") != number]
        if others:
            wrong.append(f"has rows of a shard of another one: {visible(others[0], 80)}")
    out = sorted(pc.unique(here["out_shard"].cast(pa.string())).drop_null().to_pylist())
    if out != sorted(generation["shards"]):
        wrong.append(f"is said to be written to {len(generation['shards'])} shards, the ledger says {len(out)}")
    return wrong


def _finding(run: Run, what: str) -> Finding:
    return {"slug": "broken-record", "where": str(run.path / "run.json"), "what": what, "cure": REBUILD, "severity": "error"}
