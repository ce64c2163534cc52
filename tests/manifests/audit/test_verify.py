"""`verify` finds every kind of damage we can think of, says where, and calls a whole run whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.audit.verify import text, verify
from manifests.errors import Refusal
from manifests.ledger import write_selection
from manifests.run import open_run
from tests.manifests.tiny_run import rewrite, tiny_run


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_run_is_whole(run: Path, hostile_run: Path, deep: bool) -> None:
    for each in (run, hostile_run):
        result = verify(each, deep=deep)
        assert result["whole"] and result["exit_code"] == 0 and result["findings"] == []
        assert result["checked"]["samples"] == (len(open_run(each).ledger(["status"]).filter(pa.compute.field("status") == "kept")) if deep else 0)
        assert "whole: looked at" in text(result)


def a_part(run: Path, stage: str = "dedup.perceptual") -> Path:
    return open_run(run).part(stage, "web/00000")


def the_ledger(run: Path) -> Path:
    return open_run(run).ledger_files()[0]


def flip(file: Path, at: float = 0.5) -> None:
    data = bytearray(file.read_bytes())
    data[int(at * len(data))] ^= 0x10
    file.write_bytes(data)


def flip_within_pages(file: Path) -> None:
    """A byte of a measured number, in a part that has page checksums."""
    pq.write_table(pq.read_table(file), file, write_page_checksum=True, compression="zstd")
    column = next(c for i in range(99) if (c := pq.ParquetFile(file).metadata.row_group(0).column(i)).path_in_schema == "blur")
    flip(file, (column.data_page_offset + column.total_compressed_size - 9) / file.stat().st_size)


def cut(file: Path, keep: float = 0.6) -> None:
    file.write_bytes(file.read_bytes()[: int(keep * file.stat().st_size)])


def change(column: str, alter: Callable[[list], list]) -> Callable[[pa.Table], pa.Table]:
    def changed(table: pa.Table) -> pa.Table:
        kind = table.schema.field(column).type
        values = pa.array(alter(table[column].to_pylist()), kind.value_type if pa.types.is_dictionary(kind) else kind)
        return table.set_column(
            table.column_names.index(column), column, values.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else values
        )

    return changed


def first_of(values: list, wanted: object, new: object) -> list:
    at = values.index(wanted)
    return [*values[:at], new, *values[at + 1 :]]


def edit_json(file: Path, alter: Callable[[dict], None]) -> None:
    body = json.loads(file.read_text())
    alter(body)
    file.write_text(json.dumps(body))


def swap_witness(run: Path) -> None:
    """A witness that was itself dropped by the stage that names it; ledger and part agree, so only the law of witnesses can tell."""
    table = pq.read_table(a_part(run)).to_pylist()
    uids = pq.read_table(open_run(run).part("identity", "web/00000"))["uid"].to_pylist()
    gone = [u for u, r in zip(uids, table, strict=True) if r["keep"] is False]
    named = next(r["witness"] for r in table if r["witness"])
    rewrite(a_part(run), change("witness", lambda v: first_of(v, named, gone[-1])))
    rewrite(the_ledger(run), change("witness", lambda v: first_of(v, named, gone[-1])))


def shorten_selection(run: Path) -> None:
    kept = [r["uid"] for r in open_run(run).ledger(["uid", "status"]).to_pylist() if r["status"] == "kept"]
    write_selection(run / "selection.npy", kept[1:])


def whole_numbers(run: Path) -> None:
    np.save(run / "selection.npy", np.arange(5))


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {  # what is done; a word of the place; a word of the finding
    "a part is gone": (lambda r: a_part(r).unlink(), "dedup.perceptual", "missing"),
    "identity is gone": (lambda r: a_part(r, "identity").unlink(), "identity", "missing"),
    "a measure is gone": (lambda r: a_part(r, "measure.quality").unlink(), "measure.quality", "missing"),
    "a part is cut": (lambda r: cut(a_part(r)), "dedup.perceptual", "cannot be read"),
    "a part is empty": (lambda r: a_part(r).write_bytes(b""), "dedup.perceptual", "cannot be read"),
    "a part lost rows": (lambda r: rewrite(a_part(r), lambda t: t.slice(1)), "dedup.perceptual", "rows"),
    "a part is another shard's": (lambda r: shutil.copy(open_run(r).part("measure.index", "archive/00000"), a_part(r, "measure.index")), "measure.index", "rows"),
    "a part without digest": (lambda r: pq.write_table(pq.read_table(a_part(r)).replace_schema_metadata({}), a_part(r)), "dedup.perceptual", "digest"),
    "a verdict is turned": (lambda r: rewrite(a_part(r, "dedup.exact"), change("keep", lambda v: first_of(v, False, True))), "ledger", "is not what the parts say"),
    "a byte of a part": (lambda r: flip_within_pages(a_part(r, "measure.quality")), "measure.quality", "cannot be read"),
    "edges are cut": (lambda r: cut(open_run(r).edges("dedup.perceptual")[0]), "edges", "cannot be read"),
    "the ledger is gone": (lambda r: the_ledger(r).unlink(), "ledger", "no ledger"),
    "the ledger is cut": (lambda r: cut(the_ledger(r)), "ledger", "cannot be read"),
    "a ledger file is missing": (lambda r: the_ledger(r).rename(r / "ledger" / "00001.parquet"), "ledger", "one is missing"),
    "the ledger lost a row": (lambda r: rewrite(the_ledger(r), lambda t: t.slice(1)), "", "rows"),
    "the ledger lost a column": (lambda r: rewrite(the_ledger(r), lambda t: t.drop_columns(["witness"])), "ledger", "witness"),
    "a status is changed": (lambda r: rewrite(the_ledger(r), change("status", lambda v: first_of(v, "dropped", "kept"))), "", "kept"),
    "a status is odd": (lambda r: rewrite(the_ledger(r), change("status", lambda v: first_of(v, "kept", "lost"))), "ledger", "lost"),
    "a reason is changed": (lambda r: rewrite(the_ledger(r), change("drop_reason", lambda v: first_of(v, "same_bytes", "near_duplicate"))), "ledger", "drop_reason"),
    "a score is changed": (lambda r: rewrite(the_ledger(r), change("score", lambda v: first_of(v, 0.0, 0.5))), "ledger", "score"),
    "a score is NaN": (lambda r: rewrite(the_ledger(r), change("score", lambda v: first_of(v, 0.0, float("nan")))), "ledger", "NaN"),
    "a caption is changed": (lambda r: rewrite(the_ledger(r), change("caption", lambda v: ["other", *v[1:]])), "ledger", "caption"),
    "a truth is changed": (lambda r: rewrite(the_ledger(r), change("truth_is_wrong", lambda v: [not v[0], *v[1:]])), "ledger", "truth_is_wrong"),
    "a key is changed": (lambda r: rewrite(the_ledger(r), change("key", lambda v: ["other", *v[1:]])), "ledger", "do not follow"),
    "a uid stands twice": (lambda r: rewrite(the_ledger(r), change("uid", lambda v: [v[1], *v[1:]])), "ledger", "stand twice"),
    "a witness was dropped": (swap_witness, "dedup.perceptual", "not kept by the stage"),
    "an evaluation pool is empty": (lambda r: shutil.rmtree(r / "evaluations"), "leakage.images", "not in evaluation pool"),
    "the selection is gone": (lambda r: (r / "selection.npy").unlink(), "selection", "cannot be read"),
    "the selection is short": (shorten_selection, "selection", "not the"),
    "the selection grew": (lambda r: (r / "selection.npy").write_bytes((r / "selection.npy").read_bytes() + b"x"), "selection", "bytes, run.json says"),
    "run.json points outside": (lambda r: edit_json(r / "run.json", lambda b: b["outputs"].update({"../x": 1})), "run.json", "outside the run"),
    "run.json lists what is not there": (lambda r: edit_json(r / "run.json", lambda b: b["outputs"].update(gone=1)), "gone", "missing"),
    "the selection is something else": (whole_numbers, "selection", "cannot be read"),
    "counts of run.json": (lambda r: edit_json(r / "run.json", lambda b: b["counts"].update(kept=1)), "run.json", "kept 1"),
    "counts of a stage": (lambda r: edit_json(r / "run.json", lambda b: b["stages"][-1]["counts"]["dropped"].update(label_disagrees=1)), "run.json", "labels.neighbours"),
    "a shard is gone": (lambda r: (r / "shards" / "00000.tar").unlink(), "00000.tar", "missing"),
    "a shard is cut": (lambda r: cut(r / "shards" / "00000.tar"), "00000.tar", ""),
    "a shard lost its end": (lambda r: cut(r / "shards" / "00000.tar", 0.97), "00000.tar", ""),
    "a shard too many": (lambda r: shutil.copy(r / "shards" / "00000.tar", r / "shards" / "00099.tar"), "00099.tar", "not in the ledger"),
    "a shard's table is gone": (lambda r: (r / "shards" / "00000.parquet").unlink(), "00000.parquet", "cannot be read"),
    "sizes.json is wrong": (lambda r: edit_json(r / "shards" / "sizes.json", lambda b: b.update({"00000.tar": 3})), "sizes.json", "3 samples"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found(copied, name: str) -> None:
    damaged = copied()
    do, place, word = DAMAGE[name]
    do(damaged)
    result = verify(damaged)
    assert not result["whole"] and result["exit_code"] == 4
    hits = [f for f in result["findings"] if place in f["where"] and word in f["what"]]
    assert hits, result["findings"]
    assert all(f["cure"] and f["slug"] in ("broken-record", "law-broken", "shard-differs") for f in result["findings"])
    assert "BROKEN" in text(result) and "cure: " in text(result)


@pytest.mark.parametrize("at", [0.05, 0.3, 0.5, 0.7, 0.9])
def test_deep_finds_any_flipped_byte_of_a_picture(copied, at: float) -> None:
    damaged = copied()
    tar = damaged / "shards" / "00000.tar"
    index = open_run(damaged).ledger(["out_shard", "out_row", "uid"]).to_pylist()
    from manifests.audit.verify_shards import samples_of

    samples = list(samples_of(tar))
    row = int(at * len(samples))
    _, offset, size = samples[row][1][0]
    data = bytearray(tar.read_bytes())
    data[offset + size // 2] ^= 1
    tar.write_bytes(data)
    assert verify(damaged)["whole"], "a byte inside a picture is beyond what a shallow look can see"
    found = verify(damaged, deep=True)["findings"]
    uid = next(r["uid"] for r in index if r["out_shard"] == "00000" and r["out_row"] == row)
    assert len(found) == 1 and uid in found[0]["what"] and found[0]["slug"] == "shard-differs"


def test_deep_says_when_the_pool_is_gone(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, per_class=2)
    shutil.rmtree(tmp_path / "pool" / "web")
    assert verify(run)["whole"]
    result = verify(run, deep=True)
    assert not result["whole"] and any("web/00000" in f["where"] for f in result["findings"])


def test_a_run_without_shards_is_whole(copied) -> None:
    bare = copied()
    shutil.rmtree(bare / "shards")
    for file in open_run(bare).ledger_files():
        rewrite(file, lambda t: change("out_row", lambda v: [None] * len(v))(change("out_shard", lambda v: [None] * len(v))(t)))
    assert verify(bare)["whole"]


def test_what_is_no_run_is_refused(tmp_path: Path, copied) -> None:
    with pytest.raises(Refusal, match="not-a-run"):
        verify(tmp_path)
    damaged = copied()
    (damaged / "run.json").write_text("{ not json")
    with pytest.raises(Refusal, match="broken-record"):
        verify(damaged)


def cut_in_two(run: Path) -> tuple[Path, Path]:
    """The same ledger in two files, the first of which ends with its first shard."""
    file = the_ledger(run)
    table = pq.read_table(file)
    ends = int(pa.compute.sum(pa.compute.equal(table["shard"].cast(pa.string()), table["shard"][0].as_py())).as_py())
    second = file.with_name("00001.parquet")
    pq.write_table(table.slice(ends), second)
    pq.write_table(table.slice(0, ends), file)
    edit_json(run / "run.json", lambda b: b["outputs"].pop(f"ledger/{file.name}", None))
    for generation in open_run(run).generations:
        assert generation["ledger"] == [file.name]
    edit_json(run / "run.json", lambda b: [g.update(ledger=[file.name, second.name]) for g in b.get("generations", [])])
    return file, second


TOLD = (
    "a status is changed",
    "a reason is changed",
    "a score is NaN",
    "a caption is changed",
    "a key is changed",
    "a uid stands twice",
    "a truth is changed",
)


@pytest.mark.parametrize("name", ["", *TOLD])
@pytest.mark.parametrize("which", [0, 1])
def test_damage_in_either_of_two_ledger_files_is_found_in_it(copied, monkeypatch, name: str, which: int) -> None:
    damaged = copied()
    file = cut_in_two(damaged)[which]
    if name:
        monkeypatch.setitem(globals(), "the_ledger", lambda _: file)
        DAMAGE[name][0](damaged)
    result = verify(damaged)
    assert result["whole"] == (not name), result["findings"]
    assert not name or any(DAMAGE[name][2] in f["what"] for f in result["findings"])


def test_of_the_ledger_only_what_is_compared_across_files_is_held(run: Path) -> None:
    from manifests.audit.verify import ACROSS, _ledger

    findings: list = []
    held = _ledger(open_run(run), findings)
    assert held is not None and not findings
    assert held.column_names == list(ACROSS)
    assert not {"caption", "content", "key", "source_uid", "witness"} & set(held.column_names)
