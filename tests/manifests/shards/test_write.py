"""Written shards: the bytes of the members, nothing that moves with time or machine, and readable by everybody."""

import io
import json
import os
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from manifests.errors import Refusal
from manifests.publish import published_digest
from manifests.shards import write
from manifests.shards.index import index_shard, uids
from manifests.shards.pool_yaml import Shard
from manifests.shards.write import ShardTask, layout, write_shard_task, write_sizes, written_keys
from tests.bad_input.fixtures import encoded, tar

MEMBERS = [
    *(
        (f"{k}.{s}".encode(), b)
        for i, k in enumerate(("a", "b-1", "c_2"))
        for s, b in (("jpg", encoded(i)), ("txt", f"caption {k}".encode()), ("cls", b"%d" % i))
    ),
    (b"d e.v1.png", encoded(3, "PNG")),
    (b"d e.json", b'{"licence": "CC0", "truth_copy_of": "a"}'),
    (b"a.jpg", encoded(4)),
]


def ledger_rows(folder, members=MEMBERS, name="00000"):
    """What the ledger and the index say of a pool's shard, and the URL."""
    (folder / f"{name}.tar").write_bytes(tar(members, fine=False))
    table = index_shard(Shard("s", name, str(folder / f"{name}.tar"))).table
    table = table.append_column("uid", pa.array([u.decode() for u in uids(table)[0]], pa.string()))
    table = table.append_column("shard", pa.array([f"s/{name}"] * len(table)).dictionary_encode())
    table = table.append_column("weight", pa.array(np.ones(len(table), np.float32)))
    return table.append_column("row", pa.array(range(len(table)), pa.int32())), {f"s/{name}": str(folder / f"{name}.tar")}


def task(folder, rows, urls, digest="d", name="00000"):
    return ShardTask(folder / f"{name}.tar", rows, urls, digest)


def test_layout():
    order, shard, row = layout(7, per_shard=3)
    assert order.tolist() == list(range(7))
    assert shard.tolist() == [0, 0, 0, 1, 1, 1, 2]
    assert row.tolist() == [0, 1, 2, 0, 1, 2, 0]
    order, shard, row = layout(1000, per_shard=64, seed=5)
    assert sorted(order.tolist()) == list(range(1000))
    assert order.tolist() != list(range(1000))
    assert (shard[order] * 64 + row[order]).tolist() == list(range(1000))
    assert np.array_equal(order, layout(1000, per_shard=10, seed=5)[0])
    assert not np.array_equal(order, layout(1000, per_shard=64, seed=6)[0])
    assert [len(a) for a in layout(0, per_shard=10, seed=1)] == [0, 0, 0]


def test_written_keys():
    uid = [f"{i:032x}" for i in range(8)]
    keys = ["a", "b", "b", "d e", "é", "__x", "", uid[1]]
    assert written_keys(keys, uid) == ["a", uid[1], uid[2], uid[3], uid[4], uid[5], uid[6], uid[7]]
    assert written_keys([uid[0], "x.y", "x\n"], uid[:3]) == uid[:3]


def test_members_are_copied_and_the_rest_is_fixed(tmp_path):
    rows, urls = ledger_rows(tmp_path)
    made = task(tmp_path / "out", rows, urls)
    assert write_shard_task(made) == 5
    uid = rows["uid"].to_pylist()
    names = [uid[0], "b-1", "c_2", uid[3], uid[4]]  # "a" comes twice, "d e" holds a space
    with tarfile.open(made.path) as ours, tarfile.open(urls["s/00000"]) as theirs:
        assert [ours.extractfile(m).read() for m in ours] == [theirs.extractfile(m).read() for m in theirs]
        assert {(m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime, m.type) for m in ours} == {(0o644, 0, 0, "", "", 0, tarfile.REGTYPE)}
        assert list(dict.fromkeys(m.name.split(".")[0] for m in ours)) == names
        assert {m.name.split(".", 1)[1] for m in ours} == {"jpg", "txt", "cls", "v1.png", "json"}
    beside = pq.read_table(made.path.with_suffix(".parquet"))
    assert beside.column_names == ["uid", "key", "source_uid", "label", "label_name", "caption", "weight", "licence", "truth_copy_of"]
    assert beside["key"].to_pylist() == names
    assert beside["caption"].to_pylist()[:2] == ["caption a", "caption b-1"]
    stats = json.loads((tmp_path / "out" / "00000_stats.json").read_text())
    assert (stats["count"], stats["successes"], stats["bytes"]) == (5, 5, made.path.stat().st_size)


def test_what_was_written_is_a_pool_of_the_same_samples(tmp_path):
    rows, urls = ledger_rows(tmp_path)
    made = task(tmp_path / "out", rows, urls)
    write_shard_task(made)
    again = index_shard(Shard("s", "00000", str(made.path))).table
    for column in ("content", "label", "caption", "suffix", "size"):
        assert again[column].to_pylist() == rows[column].to_pylist()
    assert again["source_uid"].to_pylist() == rows["uid"].to_pylist()
    assert again["truth_copy_of"].to_pylist() == [None, None, None, "a", None]


def test_a_second_run_gives_the_same_bytes_and_a_third_does_nothing(tmp_path, monkeypatch):
    rows, urls = ledger_rows(tmp_path)
    first, second = task(tmp_path / "one", rows, urls), task(tmp_path / "two", rows, urls)
    write_shard_task(first)
    write_shard_task(second)
    for name in ("00000.tar", "00000.parquet", "00000_stats.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    monkeypatch.setattr(write, "publish", None)
    assert write_shard_task(first) == 5
    with pytest.raises(TypeError):
        write_shard_task(task(tmp_path / "one", rows, urls, digest="another"))


def test_a_tar_that_lost_its_end_is_written_again(tmp_path):
    rows, urls = ledger_rows(tmp_path)
    made = task(tmp_path / "out", rows, urls)
    write_shard_task(made)
    whole = made.path.read_bytes()
    made.path.write_bytes(whole[:-700])
    write_shard_task(made)
    assert made.path.read_bytes() == whole
    assert published_digest(made.path.with_suffix(".parquet")) == "d"


def test_rows_come_from_many_shards_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(write, "OPEN_SHARDS", 2)
    monkeypatch.setattr(write, "GATHER", 2048)
    parts, urls = [], {}
    for number in range(5):
        rows, url = ledger_rows(tmp_path, [(f"{number}x{i}.jpg".encode(), bytes([number, i]) * 50) for i in range(4)], name=f"p{number}")
        parts.append(rows)
        urls |= url
    rows = pa.concat_tables(parts, promote_options="permissive").unify_dictionaries()
    order = np.random.default_rng(1).permutation(20)
    made = task(tmp_path / "out", rows.take(pa.array(order)), urls)
    write_shard_task(made)
    with tarfile.open(made.path) as ours:
        assert [ours.extractfile(m).read() for m in ours] == [bytes([i // 4, i % 4]) * 50 for i in order]


def test_long_and_unicode_extensions_survive(tmp_path):
    rows, urls = ledger_rows(tmp_path, [(b"a.jpg", b"i"), (b"a." + b"x" * 120 + b".npy", b"long"), ("a.é".encode(), b"unicode")])
    made = task(tmp_path / "out", rows, urls)
    write_shard_task(made)
    with tarfile.open(made.path) as ours:
        assert ours.getnames() == ["a.jpg", "a." + "x" * 120 + ".npy", "a.é"]


def test_every_size_has_a_right_header():
    for size in (0, 1, 511, 512, 8**7, 8**11 - 1, 8**11):
        header = write._header("k.jpg", size)
        assert tarfile.TarInfo.frombuf(header[-512:], "utf-8", "strict").name == "k.jpg"
        assert size >= 8**11 or tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == size


def test_a_pool_that_became_shorter_is_refused(tmp_path):
    rows, urls = ledger_rows(tmp_path)
    whole = (tmp_path / "00000.tar").read_bytes()
    (tmp_path / "00000.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refusal, match=r"\[shard-differs\]"):
        write_shard_task(task(tmp_path / "out", rows, urls))
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("spoil", [lambda b: b[:-512], lambda b: b + b"x", lambda b: b.replace(b"b-1.jpg", b"b-2.jpg"), lambda b: b[:512] + b[1024:]])
def test_a_disk_that_lies_is_found_out(tmp_path, monkeypatch, spoil):
    rows, urls = ledger_rows(tmp_path)
    honest = write.publish

    def lying(path, write_file):
        honest(path, write_file)
        path.write_bytes(spoil(path.read_bytes()))

    monkeypatch.setattr(write, "publish", lying)
    with pytest.raises(Refusal, match=r"\[broken-record\]"):
        write_shard_task(task(tmp_path / "out", rows, urls))
    assert not (tmp_path / "out" / "00000.parquet").exists()


@pytest.mark.parametrize("gather", [4096, 5000, 1 << 16])
def test_the_size_of_writes_does_not_reach_the_file(tmp_path, monkeypatch, gather):
    rows, urls = ledger_rows(tmp_path)
    write_shard_task(task(tmp_path / "one", rows, urls))
    monkeypatch.setattr(write, "GATHER", gather)
    honest = os.preadv
    monkeypatch.setattr(os, "preadv", lambda handle, views, offset: honest(handle, [views[0][:777]], offset))  # and reads that are cut short go on
    write_shard_task(task(tmp_path / "two", rows, urls))
    assert (tmp_path / "one" / "00000.tar").read_bytes() == (tmp_path / "two" / "00000.tar").read_bytes()


def test_a_remote_pool_gives_the_same_shards(tmp_path):
    rows, urls = ledger_rows(tmp_path)
    fsspec.filesystem("memory").pipe("/far/00000.tar", (tmp_path / "00000.tar").read_bytes())
    write_shard_task(task(tmp_path / "near", rows, urls))
    write_shard_task(task(tmp_path / "far", rows, {"s/00000": "memory://far/00000.tar"}))
    assert (tmp_path / "near" / "00000.tar").read_bytes() == (tmp_path / "far" / "00000.tar").read_bytes()


def test_sizes_and_open_clip_read_them(tmp_path):
    from open_clip_train.data import get_dataset_size

    write_sizes(tmp_path / "sizes.json", {"00001.tar": 3, "00000.tar": 5})
    assert get_dataset_size(str(tmp_path / "{00000..00001}.tar")) == (8, 2)


def test_webdataset_reads_them(tmp_path):
    rows, urls = ledger_rows(tmp_path)
    made = task(tmp_path / "out", rows, urls)
    write_shard_task(made)
    found = list(webdataset.WebDataset(str(made.path), shardshuffle=False).decode("pilrgb"))
    assert [s["__key__"] for s in found] == pq.read_table(made.path.with_suffix(".parquet"))["key"].to_pylist()
    assert np.array_equal(np.asarray(found[0]["jpg"]), np.asarray(Image.open(io.BytesIO(encoded(0)))))
    assert [s["cls"] for s in found[:3]] == [0, 1, 2]


def test_open_clips_pipeline_reads_them(tmp_path):
    from argparse import Namespace

    from open_clip_train.data import get_wds_dataset

    rows, urls = ledger_rows(tmp_path, MEMBERS[:9])
    made = task(tmp_path / "out", rows, urls)
    write_sizes(tmp_path / "out" / "sizes.json", {"00000.tar": write_shard_task(made)})
    settings = Namespace(
        train_data=str(made.path), val_data=str(made.path), train_data_upsampling_factors=None, train_num_samples=None, val_num_samples=None, dataset_resampled=False, seed=0,
        batch_size=1, workers=1, world_size=1, rank=0, distributed=False,
    )  # fmt: skip
    loader = get_wds_dataset(settings, lambda image: np.asarray(image).mean(), is_train=False, tokenizer=lambda text: [text]).dataloader
    loader = webdataset.WebLoader(loader.pipeline[0].dataset, batch_size=None, shuffle=False, num_workers=0)
    found = [text for _, texts in loader for text in texts]
    assert sorted(found) == ["caption a", "caption b-1", "caption c_2"]
