"""The rows of a shard: naming, labels, captions, identity, the pool's own columns, and what happens to a tar that is odd or broken."""

import hashlib
import io
import json
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import Refusal
from manifests.shards.index import INDEX_SCHEMA, index_shard, repeated_names, split_name, uids
from manifests.shards.pool_yaml import Shard
from manifests.shards.read import ShardReader
from manifests.shards.walk import walk
from tests.bad_input.fixtures import tar


def shard(folder, members, name="a", fine=False, **options):
    (folder / f"{name}.tar").write_bytes(members if isinstance(members, bytes) else tar(members, fine=fine, **options))
    return Shard("s", name, str(folder / f"{name}.tar"))


def rows(folder, members, classes=(), **options):
    return index_shard(shard(folder, members, **options), classes=classes).table.to_pylist()


def test_a_row_says_where_everything_lies(tmp_path):
    members = [(b"d/x.jpg", b"image"), (b"d/x.cls", b"1"), (b"d/x.txt", "é".encode()), (b"y.png", b"other")]
    file = tar(members, fine=False)
    first, second = rows(tmp_path, members, classes=["zero", "one"])
    assert (first["key"], first["suffix"], first["label"], first["label_name"], first["caption"], first["fault"]) == (
        "d/x",
        "jpg",
        1,
        "one",
        "é",
        None,
    )
    assert file[first["offset"] :][: first["size"]] == b"image"
    assert [(m["suffix"], file[m["offset"] :][: m["size"]]) for m in first["members"]] == [("jpg", b"image"), ("cls", b"1"), ("txt", "é".encode())]
    assert (second["key"], second["suffix"], second["label"], second["caption"], second["source_uid"]) == ("y", "png", None, None, None)


def test_an_empty_payload_is_named_as_ingest_noted_it_and_no_other_fault_is(tmp_path):
    members = [(b"%d.jpg" % i, b"" if i < 4 else b"image") for i in range(5)] + [(b"5.cls", b"1")]
    told = ["missing", "Permission denied", None, "missing", "missing", "missing"]
    given = shard(tmp_path, members)
    pq.write_table(pa.table({"key": [str(i) for i in range(6) if i != 3], "ingest_fault": [t for i, t in enumerate(told) if i != 3]}), given.sidecar)
    found = index_shard(given).table
    assert found["fault"].to_pylist() == ["missing", "unreadable", "zero_bytes", "zero_bytes", None, "no_payload"]
    assert found.schema.field("fault") == INDEX_SCHEMA.field("fault")
    pq.write_table(pa.table({"key": [str(i) for i in range(6)], "ingest_fault": [1] * 6}), given.sidecar)  # somebody else's column of that name
    assert index_shard(given).table["fault"].to_pylist() == ["zero_bytes"] * 4 + [None, "no_payload"]


def test_content_and_uid_are_the_rule(tmp_path):
    one = index_shard(shard(tmp_path, [(b"k.txt", b"a caption"), (b"k.jpg", b"image")])).table
    content = hashlib.sha256((5).to_bytes(8, "little") + b"image" + (9).to_bytes(8, "little") + b"a caption").digest()
    assert one["content"][0].as_py() == content
    seen = {}
    for ordinal in range(3):
        found, ordinals = uids(one, seen)
        assert found[0].decode() == hashlib.sha256(content + b"k" + ordinal.to_bytes(8, "little")).hexdigest()[:32]
        assert ordinals.tolist() == [ordinal]
    assert uids(one)[1].tolist() == [0]


def test_equal_samples_of_one_shard_differ_in_their_ordinal(tmp_path):
    table = index_shard(shard(tmp_path, [(b"k.jpg", b"same"), (b"l.jpg", b"same"), (b"k.jpg", b"same"), (b"k.jpg", b"else")])).table
    found, ordinals = uids(table)
    assert ordinals.tolist() == [0, 0, 1, 0]
    assert len(set(found.tolist())) == 4
    assert found.dtype == "S32"


def test_the_digest_is_over_the_member_list(tmp_path):
    members = [(b"a.jpg", b"image"), (b"a.txt", b"")]
    wanted = hashlib.sha256(
        b"".join(len(n).to_bytes(8, "little") + n + len(b).to_bytes(8, "little") + hashlib.sha256(b).digest() for n, b in members)
    ).hexdigest()
    assert index_shard(shard(tmp_path, members)).digest == wanted
    assert index_shard(shard(tmp_path, members, name="b", form=tarfile.PAX_FORMAT)).digest == wanted
    for other in ([(b"a.jpg", b"imagE"), (b"a.txt", b"")], members[::-1], members[:1], [(b"b.jpg", b"image"), (b"a.txt", b"")]):
        assert index_shard(shard(tmp_path, other, name="c")).digest != wanted


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_length_and_dialect(tmp_path, form):
    lengths = [1, 80, 96, 100, 120] if form == tarfile.USTAR_FORMAT else [1, 99, 100, 101, 255, 256, 1000, 5000]
    names = [b"d/" * (n // 8) + b"n" * (n - 2 * (n // 8)) for n in lengths]
    if form != tarfile.USTAR_FORMAT:
        names.append("ключ/日本".encode())
    members = [(name + b".jpg", name[-9:]) for name in names]
    assert [r["key"].encode() for r in rows(tmp_path, members, form=form)] == names
    with tarfile.open(tmp_path / "a.tar") as ours:
        expected = [(m.name, m.offset_data, m.size) for m in ours]
    with ShardReader(str(tmp_path / "a.tar")) as reader:
        assert [(m.name.decode(), m.offset, m.size) for m in walk(reader).members] == expected


def test_pax_size_and_global_headers(tmp_path):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by git"}) as out:
        info = tarfile.TarInfo("big.jpg")
        info.size, info.pax_headers = 700, {"size": "700", "mtime": "1.5"}
        out.addfile(info, io.BytesIO(b"x" * 700))
        out.addfile(tarfile.TarInfo("folder/"), None)
        info = tarfile.TarInfo("next.jpg")
        info.size = 3
        out.addfile(info, io.BytesIO(b"abc"))
    found = index_shard(shard(tmp_path, file.getvalue()))
    assert [(r["key"], r["size"]) for r in found.table.to_pylist()] == [("big", 700), ("next", 3)]
    assert found.damage == []


def test_base_256_sizes(tmp_path):
    file = bytearray(tar([(b"a.jpg", b"abc")], fine=False))
    file[124:136] = b"\x80" + bytes(10) + b"\x03"
    file[148:156] = b" " * 8
    file[148:156] = b"%06o\0 " % sum(file[:512])
    assert rows(tmp_path, bytes(file))[0]["size"] == 3


def test_checksums_of_old_tars_summed_signed_bytes(tmp_path):
    file = bytearray(tar([(b"caf\xe9.jpg", b"abc")], fine=False))
    file[148:156] = b" " * 8
    file[148:156] = b"%06o\0 " % sum(b - 256 if b > 127 else b for b in file[:512])
    assert rows(tmp_path, bytes(file))[0]["key"] == "caf\\xe9"


@pytest.mark.parametrize(
    ("name", "key", "suffix", "fault"),
    [
        (b"a.jpg", "a", "jpg", None),
        (b"./d/a.JPG", "d/a", "jpg", None),
        (b"d.v1/a.b.c.png", "d.v1/a", "b.c.png", None),
        (b"README", "README", "", None),
        (b".hidden.jpg", "", "", None),
        (b"../a.jpg", "../a", "jpg", "unsafe_name"),
        (b"d/../../a.jpg", "d/../../a", "jpg", "unsafe_name"),
        (b"/a.jpg", "/a", "jpg", "unsafe_name"),
        (b"a..jpg", "a", ".jpg", None),
        (b"\xff\xfe.jpg", "\\xff\\xfe", "jpg", None),
    ],
)
def test_names(name, key, suffix, fault):
    found = split_name(name)
    assert (found[1], found[2]) == (suffix, fault)
    if suffix:
        assert found[0] == key


def test_grouping_is_webdatasets(tmp_path):
    members = [(f"{k}.{s}".encode(), f"{k}{s}".encode()) for k in ("a", "d/b", "c.x", "e f") for s in ("jpg", "txt", "cls")]
    ours = rows(tmp_path, members)
    theirs = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False))
    assert [r["key"] for r in ours] == [t["__key__"] for t in theirs]
    assert [{m["suffix"] for m in r["members"]} for r in ours] == [{k for k in t if not k.startswith("__")} for t in theirs]


def test_the_payload_is_the_image_else_the_text(tmp_path):
    found = rows(tmp_path, [(b"a.txt", b"t"), (b"a.png", b"i"), (b"b.txt", b"doc"), (b"c.v1.jpg", b"i"), (b"c.json", b"{}"), (b"d.npy", b"n")])
    assert [(r["suffix"], r["fault"]) for r in found] == [("png", None), ("txt", None), ("v1.jpg", None), (None, "no_payload")]
    assert found[3]["offset"] is None


@pytest.mark.parametrize(
    ("text", "label", "name"),
    [(b"1", 1, "one"), (b" 0\n", 0, "zero"), (b"7", 7, None), (b"-1", -1, None), (b"one", 1, "one"), (b"other", None, "other"), (b"", None, None)]
    + [(b"99999999999", None, "99999999999"), (b"1.5", None, "1.5"), (b"\xff", None, "\ufffd"), ("\u0661".encode(), None, "\u0661")],
)
def test_labels(tmp_path, text, label, name):
    found = rows(tmp_path, [(b"a.jpg", b"i"), (b"a.cls", text)], classes=["zero", "one"])[0]
    assert (found["label"], found["label_name"], found["fault"]) == (label, name, None)


def test_json_members_give_columns(tmp_path):
    objects = [
        {
            "caption": "c",
            "uid": "u1",
            "n": 1,
            "f": 1,
            "b": True,
            "mixed": 1,
            "list": [1],
            "nested": {"a": 1},
            "width": 5,
            "nan": float("nan"),
            "truth_copy": "x",
            "big": 2**70,
        },
        {"text": "t", "f": 2.5, "mixed": "one", "none": None, "surrogate": "\ud800"},
    ]
    members = [m for i, o in enumerate(objects) for m in ((b"%d.jpg" % i, b"i"), (b"%d.json" % i, json.dumps(o).encode()))]
    first, second, third = rows(tmp_path, [*members, (b"2.jpg", b"i"), (b"2.json", b"{broken")])
    own = [name for name in first if name not in INDEX_SCHEMA.names]
    assert sorted(own) == ["b", "big", "f", "mixed", "n", "nan", "pool_width", "surrogate", "text", "truth_copy"]
    assert (first["caption"], second["caption"], third["caption"]) == ("c", "t", None)
    assert (first["source_uid"], second["source_uid"]) == ("u1", None)
    assert [first[k] for k in ("n", "f", "b", "mixed", "pool_width", "nan", "truth_copy", "big")] == [1, 1.0, True, "1", 5, None, "x", float(2**70)]
    assert [second[k] for k in ("n", "f", "b", "mixed", "surrogate")] == [None, 2.5, None, "one", "?"]
    assert {third[k] for k in own} == {None}


def test_img2dataset_output_reads_as_it_is(tmp_path):
    keys = [f"{i:09d}" for i in range(4)]
    members = [
        m
        for k in keys[:3]
        for m in (
            (f"{k}.jpg".encode(), k.encode()),
            (f"{k}.txt".encode(), b"from txt"),
            (f"{k}.json".encode(), json.dumps({"key": k, "status": "success"}).encode()),
        )
    ]
    table = pa.table(
        {
            "url": [f"http://{k}" for k in keys],
            "caption": ["from parquet"] * 4,
            "key": keys,
            "status": ["success"] * 3 + ["failed_to_download"],
            "error_message": [None] * 3 + ["404"],
            "width": [256, 256, 256, None],
            "similarity": [0.3, float("nan"), 0.1, 0.2],
            "sha256": ["0"] * 4,
        }
    ).take([3, 2, 0, 1])
    pq.write_table(table, tmp_path / "a.parquet")
    found = rows(tmp_path, members)
    assert [r["key"] for r in found] == keys[:3]
    assert [r["url"] for r in found] == [f"http://{k}" for k in keys[:3]]
    assert [r["similarity"] for r in found] == [0.3, None, 0.1]
    assert {r["caption"] for r in found} == {"from txt"}
    assert [(r["pool_status"], r["pool_width"]) for r in found] == [("success", 256)] * 3


def test_datacomp_output_reads_as_it_is(tmp_path):
    pq.write_table(
        pa.table(
            {
                "uid": ["f" * 32, "e" * 32],
                "key": ["1", "0"],
                "text": ["b", "a"],
                "clip_l14_similarity_score": [0.2, 0.3],
                "face_bboxes": [[[0.1] * 4], []],
            }
        ),
        tmp_path / "a.parquet",
    )
    first, second = rows(tmp_path, [(b"0.jpg", b"x"), (b"1.jpg", b"y")])
    assert (first["source_uid"], first["caption"], first["clip_l14_similarity_score"]) == ("e" * 32, "a", 0.3)
    assert second["face_bboxes"] == [[0.1] * 4]


def test_the_sidecar_fills_labels_and_matches_repeated_keys_in_order(tmp_path):
    pq.write_table(
        pa.table({"key": ["b", "a", "a"], "label": pa.array(["two", "one", "zero"]).dictionary_encode(), "n": [0, 1, 2]}), tmp_path / "a.parquet"
    )
    found = rows(tmp_path, [(b"d/a.jpg", b"1"), (b"x.jpg", b"2"), (b"d/a.jpg", b"3"), (b"b.jpg", b"4"), (b"b.cls", b"1")], classes=["zero", "one"])
    assert [(r["n"], r["label"], r["label_name"]) for r in found] == [(1, 1, "one"), (None, None, None), (2, 0, "zero"), (0, 1, "two")]


def test_a_sidecar_that_is_none_is_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(Refusal, match="no column `key`"):
        rows(tmp_path, [(b"a.jpg", b"1")])
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(Refusal, match=r"\[bad-pool\]"):
        rows(tmp_path, [(b"a.jpg", b"1")])


@pytest.mark.parametrize("members", [[], [(b"a.jpg", b"")], [(b"a.jpg", b"1")]])
def test_the_schema_never_changes(tmp_path, members):
    assert index_shard(shard(tmp_path, members)).table.schema.equals(INDEX_SCHEMA)


def test_a_missing_shard_is_refused(tmp_path):
    with pytest.raises(Refusal, match="no-such-file"):
        index_shard(Shard("s", "x", str(tmp_path / "none.tar")))


def test_a_remote_shard_gives_the_same(tmp_path):
    local = shard(tmp_path, [(b"a.jpg", b"image" * 1000), (b"a.txt", b"t")], fine=True)
    fsspec.filesystem("memory").pipe("/pool/a.tar", (tmp_path / "a.tar").read_bytes())
    near, far = index_shard(local), index_shard(Shard("s", "a", "memory://pool/a.tar"))
    assert near.table.equals(far.table)
    assert near.digest == far.digest
    assert index_shard(Shard("s", "a", "file://" + local.url)).digest == near.digest


@settings(max_examples=100, deadline=None)
@given(cut=st.floats(0, 1))
def test_cut_anywhere_what_is_whole_stays(cut, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cut")
    members = [(b"%d.%s" % (i, s), bytes([i]) * (300 + 400 * i)) for i in range(4) for s in (b"jpg", b"txt")]
    file = tar(members, fine=False)
    whole = rows(folder, file)
    at = int(cut * len(file))
    found = index_shard(shard(folder, file[:at], name="cut"))
    ends = [(r["members"][-1]["offset"] + r["members"][-1]["size"]) for r in whole]
    healthy = [r for r in found.table.to_pylist() if r["fault"] is None]
    complete = [w for w, end in zip(whole, ends, strict=True) if end <= at]
    assert healthy[: len(complete)] == complete
    assert len(healthy) - len(complete) <= 1  # cut between the members of one sample
    assert all(
        member in row["members"] for row, ours in zip(whole, healthy, strict=False) for member in ours["members"]
    )  # a cut member is never healthy
    if at < ends[-1]:
        assert found.damage or not at


@settings(max_examples=150, deadline=None)
@given(edits=st.lists(st.tuples(st.integers(0, 12_000), st.integers(0, 255)), max_size=30))
def test_any_bytes_end_and_stay_inside_the_shard(edits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("noise")
    file = bytearray(tar([(b"%d.jpg" % i, b"ustar" * 100 * i) for i in range(6)] + [(b"l" * 200 + b".txt", b"x")], fine=False))
    for place, value in edits:
        file[place % len(file)] = value
    for row in index_shard(shard(folder, bytes(file))).table.to_pylist():
        assert row["fault"] is not None or row["offset"] + row["size"] <= len(file)


def test_salvage_finds_members_behind_noise(tmp_path):
    members = [(b"%d.jpg" % i, bytes([65 + i]) * 900) for i in range(5)]
    file = bytearray(tar(members, fine=False))
    at = file.index(b"2.jpg")
    file[at : at + 700] = b"\xee" * 700
    found = index_shard(shard(tmp_path, bytes(file)))
    assert [r["key"] for r in found.table.to_pylist()] == ["0", "1", "3", "4"]
    assert found.damage == [f"is damaged from byte {at} to byte {at + 512 * 3}: members there are lost"]


def test_views_outlive_the_reader(tmp_path):
    place = shard(tmp_path, [(b"a.jpg", b"image")])
    with ShardReader(place.url) as reader:
        view = reader.payload(512, 5)
    assert bytes(view) == b"image"
    assert np.frombuffer(view, np.uint8).sum() == sum(b"image")


def test_counting_only_what_comes_more_than_once_gives_the_same_uids(tmp_path):
    table = index_shard(shard(tmp_path, [(b"k.jpg", b"same"), (b"l.jpg", b"same"), (b"k.jpg", b"same"), (b"k.jpg", b"else")])).table
    parts = [table.slice(0, 1), table.slice(1, 2), table.slice(3), table.slice(0, 2)]
    all_seen, few_seen = {}, {}
    wanted = [uids(part, all_seen) for part in parts]
    repeated = repeated_names(parts)
    found = [uids(part, few_seen, repeated) for part in parts]
    for (uid, ordinal), (other, number) in zip(wanted, found, strict=True):
        assert np.array_equal(uid, other)
        assert np.array_equal(ordinal, number)
    assert (len(all_seen), len(few_seen), len(repeated)) == (3, 2, 2)
    assert repeated_names([]) == set()
