"""Is a run whole? The law of the ledger, every digest, every part, every shard; with `deep`, every byte that was written."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.audit.verify_growth import check_generations
from manifests.audit.verify_shards import REBUILD, check_shards, uid_of
from manifests.audit.visible import visible
from manifests.digest import file_digest
from manifests.errors import BROKEN_RECORD, DONE, Refusal
from manifests.ledger import fold_shard, selected
from manifests.publish import DIGEST_KEY, EDGES_KEY, published_digest
from manifests.replays import all_replays, read_replays, replays_stand, stage_of
from manifests.run import Run, StageRecord, open_run
from manifests.schema import DROPPED, KEPT, LEDGER, QUARANTINED, VERDICT
from manifests.shards.pool_yaml import Shard
from manifests.vectors.store import vectors_digest

Finding = dict[str, str]
ACROSS = ("uid", "shard", "row", "offset", "size", "status", "drop_stage", "out_shard", "out_row")  # of the ledger: what is compared across its files
UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, UnicodeDecodeError)  # what a damaged Parquet file makes its reader raise


def verify(run: Path | str, *, deep: bool = False) -> dict[str, Any]:
    """What is wrong with a run, where, and how to cure it.

    Checks      rows = kept + dropped + quarantined, in the ledger, in `run.json` and in the parts; uids are unique and follow from content, key and
                ordinal; the ledger is the fold of the stages' parts, row by row; each witness was kept by the stage that names it, or stands in its
                evaluation pool; `selection.npy` holds the kept; written shards hold as many samples as the ledger says
    deep        also compare every byte of every written sample, and of its members, with the pool
    Guarantee   reads only; members are read in place, nothing is unpacked. `exit_code` is 0 where the run is whole, else 4
    Cost        two passes over the ledger and one over the parts, file by file; deep: the time of reading pool and shards once. Held are 80 bytes a row, and as
                many again while uids are counted and the selection is compared: 4 M rows take 0.6 GB, beside one ledger file of up to 1 M rows
    Errors      `Refusal` [no-such-file], [not-a-run], [broken-record] where there is no run to check
    """
    try:
        opened = open_run(run)
        stages = opened.stages
    except (ValueError, TypeError, KeyError) as error:
        raise Refusal("broken-record", f"{run}/run.json", f"cannot be read: {visible(error, 200)}", cure=REBUILD.capitalize()) from error
    findings: list[Finding] = []
    checked: dict[str, int] = {"rows": 0, "parts": 0, "shards": 0, "samples": 0}
    ledger = _ledger(opened, findings)
    if ledger is not None:
        checked["rows"] = ledger.num_rows
        findings += _law(opened, ledger)
        findings += check_generations(opened, ledger)
        findings += _identity(opened, ledger)
        findings += _by_shard(opened, checked)
        findings += _witnesses(opened, stages, ledger)
        findings += _selection(opened)
        findings += _outputs(opened, deep)
        findings += _replays(opened)
        findings += check_shards(opened, ledger, deep, checked)
    errors = any(finding["severity"] == "error" for finding in findings)
    return {
        "run": str(opened.path),
        "deep": deep,
        "whole": not errors,
        "findings": findings,
        "checked": checked,
        "exit_code": BROKEN_RECORD if errors else DONE,
    }


def finding(slug: str, where: Path | str, what: str, cure: str = REBUILD, severity: str = "error") -> Finding:
    """One finding, in the grammar of messages."""
    return {"slug": slug, "where": str(where), "what": what, "cure": cure, "severity": severity}


def read_whole(file: Path) -> pa.Table:
    """Every column of a Parquet file, page checksums compared where they were written."""
    return pq.read_table(file, page_checksum_verification=True)


def _ledger(run: Run, findings: list[Finding]) -> pa.Table | None:
    """Those columns of the whole ledger that are compared across its files; None where a file is damaged. What each row says by itself is checked here."""
    tables: list[pa.Table] = []
    odd: list[Finding] = []
    before = len(findings)
    for i, file in enumerate(run.ledger_files()):
        if file.name != f"{i:05d}.parquet":
            findings.append(finding("broken-record", file, f"is not the file that follows, {i:05d}.parquet: one is missing"))
        try:
            table = read_whole(file)
        except UNREADABLE as error:
            findings.append(finding("broken-record", file, f"cannot be read: {visible(error, 160)}"))
            continue
        wrong = [f.name for f in LEDGER if f.name not in table.column_names or not _same_kind(table.schema.field(f.name).type, f.type)]
        if wrong:
            findings.append(finding("broken-record", file, f"lacks, or has in another type, the columns {', '.join(wrong)}"))
        if DIGEST_KEY not in (table.schema.metadata or {}):
            findings.append(finding("broken-record", file, "carries no digest of what it was made from"))
        if len(findings) == before:
            odd += _odd_rows(file, table)
            tables.append(table.select(ACROSS))
    if not run.ledger_files():
        findings.append(finding("broken-record", run.path / "ledger", "holds no ledger"))
    if len(findings) > before:
        return None
    findings += odd
    return pa.concat_tables(tables, promote_options="permissive").unify_dictionaries()


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    plain = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in (found, wanted)]
    return bool(plain[0] == plain[1])


def _law(run: Run, ledger: pa.Table) -> list[Finding]:
    found, where = [], run.path / "ledger"
    words = _counts(ledger["status"])
    counts = {"rows": ledger.num_rows, **{word: words.pop(word, 0) for word in (KEPT, DROPPED, QUARANTINED)}}
    if words:
        odd = ", ".join(sorted(visible(word, 40) for word in words))
        text = f"{counts['rows']:,} rows, but {counts[KEPT]:,} kept + {counts[DROPPED]:,} dropped + {counts[QUARANTINED]:,} quarantined (other words: {odd})"
        found.append(finding("law-broken", where, text))
    said = run.info.get("counts", {})
    differ = [f"{name} {said[name]:,} instead of {counts[name]:,}" for name in counts if name in said and said[name] != counts[name]]
    if differ:
        found.append(finding("law-broken", run.path / "run.json", f"says {', '.join(differ)}"))
    taken = _counts(ledger["drop_stage"])
    for stage in run.stages:
        told = sum((stage.counts.get("dropped") or {}).values()) + sum((stage.counts.get("quarantined") or {}).values())
        if stage.counts and told != taken.get(stage.id, 0):
            text = f"{stage.id} is said to have taken {told:,} samples, the ledger says {taken.get(stage.id, 0):,}"
            found.append(finding("law-broken", run.path / "run.json", text))
    return found


def _odd_rows(file: Path, ledger: pa.Table) -> list[Finding]:
    """Rows that contradict themselves."""
    found = []
    reasoned = pc.and_(ledger["drop_reason"].is_valid(), ledger["drop_stage"].is_valid())
    odd_ones = pc.sum(pc.equal(reasoned, pc.equal(_plain(ledger["status"]), KEPT).fill_null(False))).as_py()
    if odd_ones:
        found.append(finding("law-broken", file, f"{odd_ones:,} rows have a reason and were kept, or were dropped without one"))
    numbers = [name for name in ("score", "threshold", "weight") if pc.any(pc.is_nan(ledger[name].drop_null())).as_py()]
    if numbers:
        found.append(finding("broken-record", file, f"holds NaN in {', '.join(numbers)}; an absent number is null"))
    return found


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _counts(column: pa.ChunkedArray) -> dict[str | None, int]:
    """How often each word stands in a column."""
    counted = pc.value_counts(_plain(column))
    return {row["values"]: row["counts"] for row in counted.to_pylist()}


def _spans(ledger: pa.Table) -> list[tuple[Shard, int, int]]:
    """(shard, first row, rows) of every shard that has rows, as they follow each other in the ledger."""
    column = ledger["shard"].combine_chunks()
    column = column if isinstance(column, pa.Array) else (column.chunk(0) if column.num_chunks else pa.array([], pa.string()))
    column = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    code = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    names = column.dictionary.to_pylist()
    starts = np.flatnonzero(np.r_[True, code[1:] != code[:-1]]) if len(code) else code
    ends = np.r_[starts[1:], len(code)]
    return [(_shard(names[code[a]] if code[a] >= 0 else "?/?"), int(a), int(b - a)) for a, b in zip(starts, ends, strict=True)]


def _shard(name: str) -> Shard:
    return Shard(name.rpartition("/")[0], name.rpartition("/")[2], "")


def _identity(run: Run, ledger: pa.Table) -> list[Finding]:
    if pc.count_distinct(ledger["uid"]).as_py() == ledger.num_rows:
        return []
    counted = pc.value_counts(ledger["uid"])
    twice = [v["values"] for v in counted.filter(pc.greater(pc.struct_field(counted, "counts"), 1)).to_pylist()]
    text = f"{len(twice):,} uids stand twice: {', '.join(visible(u, 40) for u in twice[:3])}"
    return [finding("broken-record", run.path / "ledger", text)]


def _by_shard(run: Run, checked: dict[str, int]) -> list[Finding]:
    """Every part can be read, is as long as its shard and carries a digest; folded again, they are the ledger; uids follow from content, key and ordinal."""
    found: list[Finding] = []
    wrong: list[str] = []
    shards: list[Shard] = []
    for file in run.ledger_files():
        ledger = read_whole(file)
        for shard, start, rows in _spans(ledger):
            here, before = ledger.slice(start, rows), len(found)
            shards.append(shard)
            for name in ["identity", *(stage.id for stage in run.stages)]:
                found += _part(run.part(name, shard.id), rows)
                checked["parts"] += 1
            if len(found) == before:
                found += _folded(run, shard, here)
            wrong += _strangers(run, shard, here)
    if wrong:
        text = f"{len(wrong):,} uids do not follow from content, key and ordinal: {', '.join(visible(u, 40) for u in wrong[:3])}"
        found.append(finding("broken-record", run.path / "ledger", text))
    for stage in run.stages:
        found += _beside(run, stage, shards)
        for file in run.edges(stage.id):
            try:
                read_whole(file)
            except UNREADABLE as error:
                found.append(finding("broken-record", file, f"cannot be read: {visible(error, 160)}"))
    return found


def _strangers(run: Run, shard: Shard, ledger: pa.Table) -> list[str]:
    """The uids of a shard that are not those of their content, key and ordinal."""
    try:
        ordinal = pq.read_table(run.part("identity", shard.id))["ordinal"].to_pylist()
    except UNREADABLE:
        return []  # the missing part is a finding of its own
    rows = ledger.select(["uid", "content", "key"]).to_pylist()
    return [
        row["uid"]
        for row, count in zip(rows, ordinal, strict=False)
        if row["content"] is not None and uid_of(row["content"], row["key"], count) != row["uid"]
    ]


def _beside(run: Run, stage: StageRecord, shards: list[Shard]) -> list[Finding]:
    """The vector files of a measure and the edges of a decision carry the digests of its parts."""
    found: list[Finding] = []
    for shard in shards:
        part = run.part(stage.id, shard.id)
        made_of = published_digest(part)
        if made_of is None:
            continue  # a finding of its own
        if stage.name == "measure.vectors":
            file = run.vectors("vectors" if stage.id == stage.name else stage.id, shard.id)
            if vectors_digest(file) != made_of and (file.exists() or _has_payload(run, shard)):
                found.append(finding("broken-record", file, "does not carry the digest of its part" if file.exists() else "is missing"))
        elif EDGES_KEY in (pq.read_schema(part).metadata or {}):
            generation = run.generation_of(shard.id)
            file = run.path / "edges" / stage.id / f"{generation:05d}.parquet"
            if published_digest(file) != stage.digest_of(generation):
                return [finding("broken-record", file, "does not carry the digest of its decision" if file.exists() else "is missing")]
    return found


def _has_payload(run: Run, shard: Shard) -> bool:
    """Has a shard any sample that the index finds no fault with? Without one, there is no vector file."""
    try:
        return bool(pq.read_table(run.part("measure.index", shard.id), columns=["fault"])["fault"].null_count)
    except UNREADABLE:
        return False


def _part(file: Path, rows: int) -> list[Finding]:
    if not file.is_file():
        return [finding("broken-record", file, "is missing")]
    try:
        table = read_whole(file)
    except UNREADABLE as error:
        return [finding("broken-record", file, f"cannot be read: {visible(error, 160)}")]
    if table.num_rows != rows:
        return [finding("broken-record", file, f"has {table.num_rows:,} rows, its shard has {rows:,} in the ledger")]
    if DIGEST_KEY not in (table.schema.metadata or {}):
        return [finding("broken-record", file, "carries no digest of what it was made from")]
    return []


def _folded(run: Run, shard: Shard, ledger: pa.Table) -> list[Finding]:
    """Fold the parts again and compare with the ledger's rows, column by column; where the samples were written to is not in the parts."""
    try:
        fresh = fold_shard(shard, [(stage.id, stage.kind) for stage in run.stages], lambda name, of: run.part(name, of.id))
    except (*UNREADABLE, IndexError, TypeError) as error:
        return [finding("broken-record", run.path / "parts", f"the parts of {shard.id} do not fold: {visible(error, 160)}")]
    found = []
    for name in fresh.column_names:
        if name in ("out_shard", "out_row"):
            continue
        if name not in ledger.column_names:
            found.append(finding("broken-record", run.path / "ledger", f"lacks column {visible(name)!r} of {shard.id}"))
            continue
        theirs, ours = _plain(ledger[name]), _plain(fresh[name])
        if theirs.type == ours.type and theirs.equals(ours):
            continue
        differ = [i for i, (a, b) in enumerate(zip(theirs.to_pylist(), ours.to_pylist(), strict=True)) if a != b and not (a != a and b != b)]
        if differ:
            uid = ledger["uid"][differ[0]].as_py()
            text = f"{name} of {len(differ):,} samples of {shard.id} is not what the parts say, first of {visible(uid, 40)}"
            found.append(finding("broken-record", run.path / "ledger", text))
    return found


def _witnesses(run: Run, stages: list[Any], ledger: pa.Table) -> list[Finding]:
    """A witness of this pool was kept by the stage that names it; one of an evaluation pool stands there."""
    found: list[Finding] = []
    for stage in [s for s in stages if s.kind == "decision"]:
        try:
            part = pa.concat_tables([_witness_columns(run.part(stage.id, shard.id)) for shard, _, _ in _spans(ledger)] or [VERDICT.empty_table()])
        except UNREADABLE:
            continue  # reported with the parts
        if part.num_rows != ledger.num_rows:
            continue
        kept = ledger["uid"].filter(part["keep"].fill_null(False))
        named = pc.and_(pc.equal(part["keep"], False).fill_null(False), part["witness"].is_valid())
        here, pools = part.append_column("uid", ledger["uid"]).filter(named), sorted(set(_counts(part["witness_pool"])) - {None}, key=str)
        wrong = here.filter(pc.and_(here["witness_pool"].is_null(), pc.invert(pc.is_in(here["witness"], value_set=kept))))
        if wrong.num_rows:
            text = f"{stage.id}: {wrong.num_rows:,} witnesses were not kept by the stage that names them, first {visible(wrong['witness'][0], 40)} of {visible(wrong['uid'][0], 40)}"
            found.append(finding("broken-record", run.path / "parts" / stage.id, text))
        for pool in pools:
            there = pa.chunked_array(_evaluation_uids(run, str(pool)), pa.string())
            lost = here.filter(pc.and_(pc.equal(here["witness_pool"], pool).fill_null(False), pc.invert(pc.is_in(here["witness"], value_set=there))))
            if lost.num_rows:
                text = f"{stage.id}: {lost.num_rows:,} witnesses are not in evaluation pool {visible(pool)}, first {visible(lost['witness'][0], 40)}"
                found.append(finding("broken-record", run.path / "parts" / stage.id, text))
    return found


def _witness_columns(file: Path) -> pa.Table:
    table = pq.read_table(file, columns=["keep", "witness", "witness_pool"])
    return pa.table({name: _plain(table[name]) for name in table.column_names})


def _evaluation_uids(run: Run, pool: str) -> list[pa.Array]:
    found = []
    for file in sorted((run.evaluation(pool).path / "parts" / "identity").glob("*/*.parquet")):
        try:
            found += pq.read_table(file, columns=["uid"])["uid"].chunks
        except UNREADABLE:
            continue
    return found


def _selection(run: Run) -> list[Finding]:
    """`selection.npy` holds what `selected` gives of the ledger."""
    file = run.path / "selection.npy"
    try:
        found = np.load(file, allow_pickle=False)
        if found.dtype != np.dtype("u8,u8") or found.ndim != 1:
            raise ValueError(f"it holds {found.dtype}, not pairs of u8")
    except (OSError, ValueError, TypeError, EOFError) as error:
        return [finding("broken-record", file, f"cannot be read: {visible(error, 160)}")]
    try:
        wanted = selected(pq.read_table(each, columns=["uid", "source_uid", "status"]) for each in run.ledger_files())
    except (ValueError, TypeError) as error:
        return [finding("broken-record", run.path / "ledger", f"holds uids that are not 32 hex digits: {visible(error, 160)}")]
    if np.array_equal(found, wanted):
        return []
    text = f"holds {len(found):,} ids that are not the {len(wanted):,} kept of the ledger"
    return [finding("broken-record", file, text)]


def _outputs(run: Run, deep: bool) -> list[Finding]:
    """Every file that `run.json` lists is there and as long as it was; with `deep`, byte for byte."""
    found, root = [], run.path.resolve()
    for name, entry in run.info.get("outputs", {}).items():
        size, sha = entry if isinstance(entry, list) else (entry, None)
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            found.append(finding("broken-record", run.path / "run.json", f"lists {visible(name, 120)}, which lies outside the run"))
        elif not file.is_file():
            found.append(finding("broken-record", run.path / name, "is missing"))
        elif file.stat().st_size != size:
            found.append(finding("broken-record", run.path / name, f"has {file.stat().st_size:,} bytes, run.json says {size:,}"))
        elif deep and sha and file_digest(file) != sha:
            found.append(finding("broken-record", run.path / name, "has other bytes than when it was written"))
    return found


def _replays(run: Run) -> list[Finding]:
    """Stops of the report's sliders can be read; those of an earlier state of the run are no error: the report leaves them out."""
    found, cure = [], f"Run `curate replay {run.path} --sweep`: it writes them anew"
    for file in all_replays(run):
        try:
            read_replays(file)
        except UNREADABLE as error:
            found.append(finding("broken-record", file, f"cannot be read: {visible(error, 160)}", cure))
            continue
        if not replays_stand(run, stage_of(file)):
            found.append(finding("broken-record", file, "was folded from an earlier state of the run, so the report leaves it out", cure, "warning"))
    return found


def text(result: dict[str, Any]) -> str:
    """The same as lines for a terminal, worst first."""
    lines = []
    for found in sorted(result["findings"], key=lambda f: f["severity"] != "error"):
        lines.append(
            f"{visible(found['where'])}: {visible(found['what'], 400)}  [{found['slug']}]{'' if found['severity'] == 'error' else '  (a warning)'}"
        )
        lines.append(f"    cure: {found['cure']}")
    c = result["checked"]
    looked = f"{c['rows']:,} rows, {c['parts']:,} parts, {c['shards']:,} shards" + (
        f", every byte of {c['samples']:,} samples" if result["deep"] else ""
    )
    return "\n".join([*lines, f"{'whole' if result['whole'] else 'BROKEN'}: looked at {looked}"])
