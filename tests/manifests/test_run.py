"""A run is opened in one place: a damaged record is one line there, and a sample is found by every name that it has."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from manifests.cli import main
from manifests.errors import Refusal
from manifests.run import is_record, open_run, read_record

BIN = Path(sys.executable).parent
DAMAGED = {
    "half": "{", "empty": "", "list": "[]", "null": "null", "number": "3", "bare": "{}", "not utf-8": b"\xff\xfe{", "deep": "[" * 100_000,
    "no stages": '{"format": 1, "pool": {"path": "x"}}', "a stage is a number": '{"format": 1, "pool": {}, "stages": [1]}',
    "a stage lacks a field": '{"format": 1, "pool": {}, "stages": [{"id": "x"}]}', "format is a word": '{"format": "one", "pool": {}, "stages": []}',
}  # fmt: skip
READERS = {
    "show": ["show", "RUN"], "query": ["query", "RUN", "SELECT 1"], "report": ["report", "RUN"], "explain": ["explain", "RUN", "000003"],
    "verify": ["verify", "RUN"], "diff": ["diff", "RUN", "RUN"],
}  # fmt: skip


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[str], Path]:
    def write(how: str) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        body = DAMAGED[how]
        (run / "run.json").write_bytes(body if isinstance(body, bytes) else body.encode())
        return run

    return write


@pytest.mark.parametrize("how", DAMAGED)
@pytest.mark.parametrize("verb", READERS)
def test_a_damaged_record_is_one_line(damaged, verb: str, how: str) -> None:
    run = damaged(how)
    result = CliRunner().invoke(main, [str(run) if word == "RUN" else word for word in READERS[verb]])
    assert result.exit_code == 4
    assert result.output.count("\n") == 1 and f"{run}/run.json" in result.output and result.output.endswith("[broken-record]\n")
    assert "Run the same `curate build` again" in result.output
    assert not is_record(run / "run.json")


@pytest.mark.parametrize("how", ["half", "empty", "list", "null", "bare"])
def test_replay_and_append_say_the_same(damaged, how: str) -> None:
    run = damaged(how)
    with pytest.raises(Refusal) as told:
        read_record(run / "run.json")
    for words in (["replay", str(run)], ["append", str(run), "--pool", str(run)]):
        done = subprocess.run([BIN / "curate", *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (4, f"curate: {told.value}\n")


@pytest.mark.parametrize("what", ["ledger/00000.parquet", "parts/dedup.perceptual/archive/00000.parquet"])
@pytest.mark.parametrize("verb", ["show", "query", "report", "explain"])
def test_a_table_that_is_cut_is_one_line(copied, verb: str, what: str) -> None:
    run = copied()
    row = next(
        row for row in open_run(run).ledger(["key", "shard", "drop_stage"]).to_pylist() if row["shard"] == "archive/00000" and not row["drop_stage"]
    )
    (run / what).write_bytes((run / what).read_bytes()[:400])
    words = [str(run) if word == "RUN" else row["key"] if word == "000003" else word for word in READERS[verb]]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 4 and result.output.count("\n") == 1 and result.output.endswith("[broken-record]\n"), result.output
    assert "manifests verify" in result.output


def test_a_newer_format_is_refused_and_never_taken_for_damage(run: Path, copied) -> None:
    newer = copied()
    record = json.loads((newer / "run.json").read_text())
    (newer / "run.json").write_text(json.dumps({**record, "format": 99, "stages": "elsewhere"}))
    for read in (open_run, lambda folder: is_record(folder / "run.json")):
        with pytest.raises(Refusal, match=r"is of format 99.*Install a newer keepset \[broken-record\]"):
            read(newer)
    assert is_record(run / "run.json") and read_record(run / "run.json") == record
    assert not is_record(newer / "nothing.json")


def row_of(run: Path, key: str) -> dict:
    return next(row for row in open_run(run).ledger().to_pylist() if row["key"] == key)


def test_a_sample_is_found_by_the_name_of_its_file(filed: Path) -> None:
    opened = open_run(filed)
    row = row_of(filed, "000003")
    assert row["path"] == f"web/{row['label_name']}/000003.jpg"
    for name in (row["path"], f"./{row['path']}", "000003.jpg", f"{row['label_name']}/000003.jpg", f"/home/somebody/photographs/{row['path']}"):
        assert opened.find(name) == row, name
    assert opened.find(row["path"], ["uid", "path", "no such column"]) == {"uid": row["uid"], "path": row["path"]}
    assert opened.explain("000003.jpg")["sample"]["uid"] == row["uid"]
    raw = "\udce9 <b>&\"odd\" 'name'/caf\udce9.jpg"  # as a shell hands on a name that is no UTF-8
    assert opened.find(raw)["path"] == "\\xe9 <b>&\"odd\" 'name'/caf\\xe9.jpg"


def test_a_name_that_several_files_have_lists_them(filed: Path) -> None:
    rows = [row for row in open_run(filed).ledger().to_pylist() if (row["path"] or "").endswith("/twice.jpg")]
    assert len(rows) == 2
    with pytest.raises(Refusal, match="fits 2 samples") as refused:
        open_run(filed).find("twice.jpg")
    assert refused.value.slug == "no-such-sample" and all(row["path"] in str(refused.value) for row in rows)
    assert open_run(filed).find(rows[1]["path"]) == rows[1]


def test_what_is_no_name_is_refused_with_the_form_of_one(filed: Path, run: Path) -> None:
    for name in ("wice.jpg", "nothing.png", "/elsewhere/web/000003.jpg", "", "."):
        with pytest.raises(Refusal, match=r"no sample has the key, uid or path .*a path as the pool has it, such as '.*\.jpg', or the end of one"):
            open_run(filed).find(name)
    with pytest.raises(Refusal) as refused:
        open_run(run).find("nothing.png")  # its pool names no files
    assert "path" not in refused.value.given + refused.value.allowed and not open_run(run).has_paths and open_run(filed).has_paths
