"""The layout of a packed pool: the same bytes each time, resumed after a crash, re-packed only where the source changed."""

import json
import os
import tarfile
from pathlib import Path

import pytest

from curate.ingest.folder import folder
from curate.ingest.ingest import ingest
from curate.ingest.pack import LAYOUT, Unreadable, pack, told
from manifests import publish
from manifests.errors import Refusal
from manifests.publish import published_digest
from manifests.shards.index import index_shard, uids
from manifests.shards.pool_yaml import open_pool
from tests.curate.ingest.pictures import files, members, picture, put, sidecar


class Killed(BaseException):
    """Stands for a process that is gone."""


@pytest.fixture
def source(tmp_path):
    for i in range(23):
        put(tmp_path / "src" / f"{'ab'[i % 2]}" / f"{i:02d}.png", picture(i))
    return tmp_path / "src"


def run(source, to, per_shard=5):
    return ingest(str(source), to=to, samples_per_shard=per_shard, quiet=True)


def test_the_layout(source, tmp_path):
    summary = run(source, tmp_path / "pool")
    assert (summary["samples"], summary["shards"], summary["shards_packed"]) == (23, 5, 5)
    assert [s.id for s in open_pool(tmp_path / "pool").shards] == [f"shards/{i:05d}" for i in range(5)]
    assert json.loads((tmp_path / "pool" / "shards" / "sizes.json").read_text()) == {
        "00000.tar": 5,
        "00001.tar": 5,
        "00002.tar": 5,
        "00003.tar": 5,
        "00004.tar": 3,
    }
    with tarfile.open(tmp_path / "pool" / "shards" / "00000.tar") as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname, m.gname) for m in tar} == {(0, 0, 0, 0o644, "", "")}
    assert sum(p.stat().st_size for p in (tmp_path / "pool" / "shards").glob("*.tar")) == summary["bytes"]
    assert json.loads((tmp_path / "pool" / "ingest.json").read_text())["finished"] is True


def test_rows_beside_a_tar_stand_in_its_order_and_uids_are_unique(source, tmp_path):
    run(source, tmp_path / "pool")
    seen: dict = {}
    every = [uids(index_shard(shard).table, seen)[0] for shard in open_pool(tmp_path / "pool").shards]
    assert len({u for part in every for u in part}) == 23
    assert sidecar(tmp_path / "pool")["key"].to_pylist() == [name.rsplit(".", 1)[0] for name in members(tmp_path / "pool") if name.endswith(".png")]


def test_the_same_source_gives_the_same_bytes(source, tmp_path):
    run(source, tmp_path / "one")
    for path in source.rglob("*.png"):
        os.utime(path, (1, 1))  # another copy of the source has other times
    run(source, tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_second_run_packs_nothing(source, tmp_path, monkeypatch):
    run(source, tmp_path / "pool")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "pool" / "shards").glob("0*")}
    assert run(source, tmp_path / "pool")["shards_packed"] == 0
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_a_changed_picture_packs_its_shard_again_and_no_other(source, tmp_path):
    run(source, tmp_path / "pool")
    put(source / "a" / "12.png", picture(99))
    assert run(source, tmp_path / "pool")["shards_packed"] == 1
    assert members(tmp_path / "pool")["a_12.png"] == picture(99)
    run(source, tmp_path / "fresh")
    assert files(tmp_path / "pool") == files(tmp_path / "fresh")


def test_a_smaller_source_leaves_no_shard_behind(source, tmp_path):
    run(source, tmp_path / "pool")
    for i in range(1, 23, 2):
        (source / "b" / f"{i:02d}.png").unlink()
    summary = run(source, tmp_path / "pool")
    assert (summary["samples"], summary["shards"]) == (12, 3)
    run(source, tmp_path / "fresh")
    assert files(tmp_path / "pool") == files(tmp_path / "fresh")
    assert len(open_pool(tmp_path / "pool").shards) == 3


@pytest.mark.parametrize("spoil", ["truncate", "remove", "remove sidecar", "other sidecar", "no memory"])
def test_a_spoilt_shard_is_packed_again(source, tmp_path, spoil):
    pool = tmp_path / "pool"
    run(source, pool)
    whole = files(pool)
    tar, beside = pool / "shards" / "00001.tar", pool / "shards" / "00001.parquet"
    if spoil == "truncate":
        os.truncate(tar, 700)
    elif spoil == "remove":
        tar.unlink()
    elif spoil == "remove sidecar":
        beside.unlink()
    elif spoil == "other sidecar":
        beside.write_bytes((pool / "shards" / "00002.parquet").read_bytes())
    else:
        (pool / "cache" / "ingest" / "00001.json").unlink()
    assert run(source, pool)["shards_packed"] == 1
    assert files(pool) == whole


@pytest.mark.parametrize("damaged", [b"", b"{", b"null", b"[]", b'{"seen": 1}', b"\xff\xfe"])
def test_a_damaged_note_of_a_shard_is_as_none(source, tmp_path, damaged):
    run(source, tmp_path / "pool")
    whole = files(tmp_path / "pool")
    (tmp_path / "pool" / "cache" / "ingest" / "00001.json").write_bytes(damaged)
    assert run(source, tmp_path / "pool")["shards_packed"] == 1
    assert files(tmp_path / "pool") == whole
    (tmp_path / "pool" / "ingest.json").write_bytes(damaged)
    with pytest.raises(Refusal, match=r"cannot be read.*\[bad-value\]"):
        run(source, tmp_path / "pool")


@pytest.mark.parametrize("moment", ["before", "half", "written", "renamed"])
@pytest.mark.parametrize("kill_at", [0, 4, 8, 16])
def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(source, tmp_path, monkeypatch, moment, kill_at):
    run(source, tmp_path / "undisturbed")
    count = 0

    def kill(name: str, path: Path) -> None:
        nonlocal count
        if name == moment:
            count += 1
            if count > kill_at:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publish, "moment", kill)
        with pytest.raises(Killed):
            run(source, tmp_path / "pool")
    whole = len(list((tmp_path / "pool" / "cache" / "ingest").glob("*.json"))) if (tmp_path / "pool" / "cache").exists() else 0
    assert run(source, tmp_path / "pool")["shards_packed"] <= 5 - whole
    assert files(tmp_path / "pool") == files(tmp_path / "undisturbed")


def test_a_source_that_is_reverted_after_a_crash_is_packed_as_it_is(source, tmp_path, monkeypatch):
    run(source, tmp_path / "pool")
    whole, path = files(tmp_path / "pool"), source / "a" / "00.png"
    before, times = path.read_bytes(), path.stat()

    def kill(name: str, path: Path) -> None:
        if name == "renamed":
            raise Killed

    put(path, before[:-1] + b"?")  # of the same size
    with monkeypatch.context() as patch:
        patch.setattr(publish, "moment", kill)
        with pytest.raises(Killed):
            run(source, tmp_path / "pool")
    put(path, before)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    run(source, tmp_path / "pool")
    assert files(tmp_path / "pool") == whole


def test_another_source_or_a_foreign_folder_is_refused(source, tmp_path):
    run(source, tmp_path / "pool")
    other = put(tmp_path / "other" / "1.png", picture(1)).parent
    with pytest.raises(Refusal, match=r"holds a pool made from .*src.*\[bad-value\]"):
        run(other, tmp_path / "pool")
    put(tmp_path / "mine" / "letter.txt", b"dear")
    with pytest.raises(Refusal, match=r"is not empty.*\[bad-value\]"):
        run(source, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    with pytest.raises(Refusal, match=r"--samples-per-shard.*\[bad-value\]"):
        run(source, tmp_path / "new", per_shard=0)


@pytest.mark.parametrize("written", ["{}/", "src", "./src/", "link", "{}/../src"])
def test_a_source_is_the_same_however_it_is_written(source, tmp_path, monkeypatch, written):
    (tmp_path / "link").symlink_to("src")
    monkeypatch.chdir(tmp_path)
    run("src", tmp_path / "pool")
    again = ingest(written.format(source), to=tmp_path / "pool", samples_per_shard=5, quiet=True)
    assert (again["samples"], again["shards_packed"]) == (23, 0)
    monkeypatch.chdir(source)
    assert run(".", tmp_path / "pool")["shards_packed"] == 0


def test_another_folder_that_is_written_the_same_is_refused_and_a_pool_that_was_moved_goes_on(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("src", tmp_path / "pool")
    put(tmp_path / "other" / "src" / "1.png", picture(1))
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(Refusal, match=rf"holds a pool made from {tmp_path}/src; .*the pool of src.*\[bad-value\]"):
        run("src", tmp_path / "pool")
    (tmp_path / "away").mkdir()
    for name in ("src", "pool"):
        (tmp_path / name).rename(tmp_path / "away" / name)
    monkeypatch.chdir(tmp_path / "away")
    assert run("src", tmp_path / "away" / "pool")["samples"] == 23


def test_the_first_unreadable_samples_are_named_also_where_nothing_is_packed_again(source, tmp_path):
    for name in ("a/02.png", "b/07.png", "b/09.png", "b/21.png"):
        (source / name).chmod(0)
    unreadable = folder(source)
    if os.access(source / "a/02.png", os.R_OK):  # root reads everything
        read = unreadable.read
        closed = {i for i, stamp in enumerate(unreadable.stamps) if not os.stat(source / stamp[0]).st_mode & 0o777}

        def refuse(i):
            if i in closed:
                raise Unreadable("Permission denied")
            return read(i)

        unreadable.read = refuse
    summaries = [pack(unreadable, tmp_path / "pool", source="x", samples_per_shard=5, quiet=True) for _ in range(2)]
    for summary, packed in zip(summaries, (5, 0), strict=True):
        assert (summary["shards_packed"], summary["unreadable"]) == (packed, 4)
        assert [n["name"] for n in summary["first_unreadable"]] == ["a/02.png", "b/07.png", "b/09.png"]
        assert [n["row"] for n in summary["first_unreadable"]] == [1, 15, 16]
    lines = told(summaries[0])
    assert "first unreadable: row 1, name a/02.png, fault (Permission denied); row 15, name b/07.png, fault (Permission denied)" in next(
        line for line in lines if line.startswith("first")
    )
    faults = [f for s in open_pool(tmp_path / "pool").shards for f in index_shard(s).table["fault"].to_pylist() if f]
    assert faults == ["unreadable"] * 4


def test_the_digest_in_the_footer_tells_what_the_shard_holds(source, tmp_path):
    assert LAYOUT == 1
    run(source, tmp_path / "pool")
    before = published_digest(tmp_path / "pool" / "shards" / "00000.parquet")
    put(source / "a" / "00.png", picture(77))
    run(source, tmp_path / "pool")
    after = published_digest(tmp_path / "pool" / "shards" / "00000.parquet")
    assert before is not None
    assert after is not None
    assert before != after
