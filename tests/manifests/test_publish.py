"""Temporary name, fsync, rename: a file is there whole or not at all, and its footer says what it was made from."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests import publish
from manifests.errors import Refusal

TABLE = pa.table({"uid": [f"{i:032x}" for i in range(50_000)], "n": range(50_000)})


def test_a_table_carries_its_digest_row_groups_and_bloom_filter(tmp_path):
    path = tmp_path / "a" / "b.parquet"
    publish.publish_table(path, TABLE, "d1", bloom="uid")
    assert publish.published_digest(path) == "d1"
    metadata = pq.read_metadata(path)
    assert metadata.row_group(0).num_rows == publish.ROW_GROUP
    assert pq.read_table(path).replace_schema_metadata(None).equals(TABLE)
    plain = tmp_path / "plain.parquet"
    publish.publish_table(plain, TABLE, "d1")
    assert path.stat().st_size > plain.stat().st_size + 10_000  # the filter is in the file


def test_absent_foreign_and_cut_files_have_no_digest(tmp_path):
    assert publish.published_digest(tmp_path / "nothing") is None
    pq.write_table(TABLE, tmp_path / "foreign.parquet")
    assert publish.published_digest(tmp_path / "foreign.parquet") is None
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "foreign.parquet").read_bytes()[:1000])
    assert publish.published_digest(tmp_path / "cut.parquet") is None


@pytest.mark.parametrize("where", ["before", "half", "written"])
def test_an_error_on_the_way_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, where):
    path = tmp_path / "x"
    publish.publish_bytes(path, b"old")

    def moment(name, _):
        if name == where:
            raise RuntimeError(name)

    monkeypatch.setattr(publish, "moment", moment)
    with pytest.raises(RuntimeError):
        publish.publish_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_equal_content_gives_equal_bytes(tmp_path):
    for name in ("one", "two"):
        publish.publish_table(tmp_path / name, TABLE, "d", bloom="uid")
        publish.publish_json(tmp_path / f"{name}.json", {"b": 1, "a": [1, 2]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_the_lock_holds_other_processes_off_and_dies_with_its_own(tmp_path):
    code = f"import sys\nfrom pathlib import Path\nfrom manifests.publish import locked\nwith locked(Path({str(tmp_path)!r})):\n print('in', flush=True); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"in\n"
    with pytest.raises(Refusal) as caught, publish.locked(tmp_path):
        pass
    assert caught.value.exit_code == 6
    assert str(holder.pid) in str(caught.value)
    holder.kill()
    holder.wait()
    with publish.locked(tmp_path):
        pass


@pytest.mark.parametrize("folder", ["/proc/no-such", "FILE/below"])
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, folder):
    (tmp_path / "file").write_bytes(b"")
    target = Path(folder.replace("FILE", str(tmp_path / "file")))
    for write in (lambda: publish.publish_bytes(target / "x", b"1"), lambda: publish.locked(target).__enter__()):
        with pytest.raises(Refusal, match=r"cannot be written: .*\[not-writable\]") as refusal:
            write()
        assert refusal.value.where.startswith(str(target))


def test_a_file_that_may_not_be_written_is_named_as_it_was_asked_for(tmp_path, monkeypatch):
    def refuse(path, *mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(Refusal, match=r"x: cannot be written: Permission denied.*\[not-writable\]") as refusal:
        publish.publish_bytes(tmp_path / "x", b"1")
    assert refusal.value.where == str(tmp_path / "x")
