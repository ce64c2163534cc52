"""Shards that exist become a pool by `pool.yaml` alone: laid out by hand as webdataset, img2dataset and DataComp lay them out."""

import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.ingest.ingest import ingest
from manifests.errors import Refusal
from manifests.shards.index import index_shard
from manifests.shards.pool_yaml import open_pool
from tests.curate.ingest.pictures import picture, put


def tar(path, entries):
    """A tar with the given (name, bytes) members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def img2dataset(folder, shards=2, uid=False):
    """Output of img2dataset: failed downloads have a row and no sample; a column that is empty in a shard has no type there."""
    for shard in range(shards):
        keys = [f"{shard:05d}{i:04d}" for i in range(4)]
        rows = [
            {
                "url": f"u{k}", "caption": f"c {k}", "key": k, "status": "success" if i != 2 else "failed_to_download", "error_message": None if i != 2 else "404",
                "width": 8 if i != 2 else None, "original_width": 9, "exif": "{}" if shard else None, "sha256": "0" * 64, "score": 0.5 if shard else 1,
                **({"uid": f"{int(k):032x}"} if uid else {}),
            }
            for i, k in enumerate(keys)
        ]  # fmt: skip
        tar(
            folder / f"{shard:05d}.tar",
            [
                (f"{k}.{e}", d)
                for i, k in enumerate(keys)
                if i != 2
                for e, d in (("jpg", picture(i, "JPEG")), ("json", json.dumps(rows[i]).encode()), ("txt", b"c"))
            ],
        )
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{shard:05d}.parquet")
        put(folder / f"{shard:05d}_stats.json", b"{}")


def listing(folder):
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.rglob("*"))}


def run(source, to, **options):
    return ingest(str(source), to=to, quiet=True, **options)


def test_img2dataset_output_gives_pool_yaml_and_nothing_beside_the_shards(tmp_path):
    img2dataset(tmp_path / "laion")
    before = listing(tmp_path / "laion")
    summary = run(tmp_path / "laion", tmp_path / "pool", licence="CC-BY-4.0")
    assert listing(tmp_path / "laion") == before
    assert sorted(p.name for p in (tmp_path / "pool").rglob("*")) == ["ingest.json", "pool.yaml"]
    assert summary["downloads"] == {"failed_to_download": 2, "success": 6}
    assert (summary["kind"], summary["shards"], summary["sidecar_rows"]) == ("shards", 2, 8)
    pool = open_pool(tmp_path / "pool")
    assert [s.id for s in pool.shards] == ["laion/00000", "laion/00001"]
    assert pool.columns == {
        "url": "string", "pool_status": "string", "error_message": "string", "pool_width": "int64", "original_width": "int64", "exif": "string",
        "sha256": "string", "pool_score": "double",
    }  # fmt: skip
    assert pool.licence == "CC-BY-4.0"


def test_the_columns_of_pool_yaml_are_those_that_index_gives(tmp_path):
    img2dataset(tmp_path / "laion", uid=True)
    run(tmp_path / "laion", tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    for shard in pool.shards:
        table = index_shard(shard, classes=pool.classes).table
        assert table.num_rows == 3
        assert set(pool.columns) <= set(table.column_names)
        assert table["source_uid"].null_count == 0


def test_datacomp_output_has_shards_one_level_down(tmp_path):
    img2dataset(tmp_path / "dc" / "shards", uid=True)
    pq.write_table(pa.table({"uid": ["0" * 32], "clip_l14_similarity_score": [0.3]}), put(tmp_path / "dc" / "metadata" / "x.parquet", b""))
    summary = run(tmp_path / "dc", tmp_path / "pool")
    assert (summary["sources"], summary["shards"]) == (1, 2)
    assert "curate attach" in summary["metadata"]
    assert open_pool(tmp_path / "pool").shards[0].id == "shards/00000"


def test_each_folder_of_tars_is_a_source_in_the_order_of_names(tmp_path):
    for name in ("b set", "a"):
        for number in (2, 10, 1):
            tar(tmp_path / "src" / name / f"{number:02d}.tar", [("k.png", picture(1))])
    run(tmp_path / "src", tmp_path / "pool")
    assert [s.id for s in open_pool(tmp_path / "pool").shards] == ["a/01", "a/02", "a/10", "b_set/01", "b_set/02", "b_set/10"]


def test_a_brace_range_and_a_missing_shard(tmp_path):
    img2dataset(tmp_path / "set", shards=3)
    summary = run(f"{tmp_path}/set/{{00000..00002}}.tar", tmp_path / "pool")
    assert summary["shards"] == 3
    assert len(open_pool(tmp_path / "pool").shards) == 3
    with pytest.raises(Refusal, match=r"00003\.tar: is not there \(1 of 4.*\[no-such-file\]"):
        run(f"{tmp_path}/set/{{00000..00003}}.tar", tmp_path / "pool2")


def test_shards_in_memory_are_reached_through_fsspec(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("a.png")
        info.size = len(picture(1))
        file.addfile(info, io.BytesIO(picture(1)))
    memory.pipe("/set/0.tar", buffer.getvalue())
    run("memory://set/0.tar", tmp_path / "pool")
    pool = open_pool(tmp_path / "pool")
    assert pool.shards[0].url == "memory://set/0.tar"
    assert index_shard(pool.shards[0]).table["key"].to_pylist() == ["a"]


def test_an_address_of_anything_but_shards_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"something else than shards.*\[bad-value\]"):
        run("s3://bucket/photos", tmp_path / "pool")


def test_relative_sources_become_absolute(tmp_path, monkeypatch):
    img2dataset(tmp_path / "set")
    monkeypatch.chdir(tmp_path)
    run("set/00000.tar", tmp_path / "elsewhere" / "pool")
    assert open_pool(tmp_path / "elsewhere" / "pool").shards[0].url == str(tmp_path / "set" / "00000.tar")


def test_again_is_the_same_and_growth_is_seen(tmp_path):
    img2dataset(tmp_path / "set", shards=1)
    run(tmp_path / "set", tmp_path / "pool")
    once = (tmp_path / "pool" / "pool.yaml").read_bytes()
    run(tmp_path / "set", tmp_path / "pool")
    assert (tmp_path / "pool" / "pool.yaml").read_bytes() == once
    img2dataset(tmp_path / "set", shards=2)
    assert run(tmp_path / "set", tmp_path / "pool")["shards"] == 2


def test_tables_beside_the_tars_are_named_as_left_out(tmp_path):
    img2dataset(tmp_path / "set" / "wds", shards=2)
    for name in ("b.csv", "a.jsonl", "scores.parquet", "wds/more.csv"):
        put(tmp_path / "set" / name, b"path\nx.png\n")
    summary = run(tmp_path / "set", tmp_path / "pool")
    assert (summary["kind"], summary["shards"]) == ("shards", 2)
    assert summary["tables_left_out"] == "a.jsonl, b.csv, scores.parquet and 1 more. Name one to ingest it, or `curate attach` it"
    img2dataset(tmp_path / "plain", shards=1)
    assert "tables_left_out" not in run(tmp_path / "plain", tmp_path / "other")


def test_types_that_do_not_fit_become_text_and_are_named(tmp_path):
    for i, values in enumerate(([1], ["x"])):
        tar(tmp_path / "set" / f"{i}.tar", [("k.png", picture(1))])
        pq.write_table(pa.table({"key": ["k"], "v": values}), tmp_path / "set" / f"{i}.parquet")
    summary = run(tmp_path / "set", tmp_path / "pool")
    assert summary["columns_of_mixed_type"] == {"v": ["set/1"]}
    assert open_pool(tmp_path / "pool").columns == {"v": "string"}


@pytest.mark.parametrize("odd", ["a{1..2}.tar", "b::c.tar"])
def test_a_name_that_pool_yaml_would_read_as_a_pattern_is_refused(tmp_path, odd):
    tar(tmp_path / "set" / odd, [("k.png", picture(1))])
    with pytest.raises(Refusal, match=r"\[bad-pool\]"):
        run(tmp_path / "set", tmp_path / "pool")


def test_a_broken_sidecar_is_refused_by_name(tmp_path):
    img2dataset(tmp_path / "set", shards=1)
    put(tmp_path / "set" / "00000.parquet", b"PAR1nonsense")
    with pytest.raises(Refusal, match=r"00000\.parquet: is no whole Parquet.*\[bad-pool\]"):
        run(tmp_path / "set", tmp_path / "pool")


def test_a_folder_with_pictures_and_a_stray_tar_is_a_folder_of_pictures(tmp_path):
    put(tmp_path / "src" / "1.png", picture(1))
    tar(tmp_path / "src" / "backup.tar", [("k.png", picture(1))])
    summary = run(tmp_path / "src", tmp_path / "pool")
    assert (summary["kind"], summary["skipped"]) == ("folder", {"tar": 1})
