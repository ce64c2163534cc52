"""A table becomes a pool: every row stays a row, also where its picture is missing."""

import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.building import build
from curate.ingest.ingest import ingest
from manifests.audit.query import query
from manifests.audit.show import show, text
from manifests.errors import Refusal
from manifests.shards.index import index_shard
from manifests.shards.pool_yaml import open_pool
from tests.curate.ingest.pictures import files, members, picture, put, sidecar


def run(source, to, **options):
    return ingest(str(source), to=to, quiet=True, **options)


def rows_of(pool):
    described = open_pool(pool)
    return pa.concat_tables([index_shard(shard, classes=described.classes).table for shard in described.shards])


@pytest.fixture
def here(tmp_path):
    for i in range(4):
        put(tmp_path / "img" / f"{i}.png", picture(i))
    return tmp_path


CSV = """path,caption,label,licence,source,group,score,ratio
img/0.png,"a dog, running",dog,CC0,web,g1,1,0.5
img/1.png,"two
lines",cat,,web,g1,2,
img/gone.png,lost,dog,CC0,book,g2,3,1.5
,no path,cat,CC0,book,g2,4,2
img/2.png,,,CC-BY,web,NA,5,0x
"""


def test_a_csv_with_missing_files_keeps_every_row(here):
    put(here / "t.csv", CSV.encode())
    summary = run(here / "t.csv", here / "pool")
    assert (summary["kind"], summary["samples"], summary["unreadable"], summary["labelled"]) == ("table", 5, 2, 4)
    assert summary["columns_renamed"] == {"score": "pool_score"}
    table = sidecar(here / "pool")
    assert table["path"].to_pylist() == ["img/0.png", "img/1.png", "img/gone.png", None, "img/2.png"]
    assert table["ingest_fault"].to_pylist() == [None, None, "missing", "missing", None]
    assert table["pool_score"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["group"].to_pylist() == ["g1", "g1", "g2", "g2", "NA"]
    rows = rows_of(here / "pool")
    assert rows["fault"].to_pylist() == [None, None, "missing", "missing", None]
    assert summary["columns_taken"] == {"image": "path", "caption": "caption", "label": "label", "key": None}
    assert summary["first_unreadable"] == [
        {"row": 2, "name": "img/gone.png", "fault": "missing"},
        {"row": 3, "name": "000000003", "fault": "missing"},
    ]
    assert "delimiter" not in summary
    assert rows["caption"].to_pylist() == ["a dog, running", "two\nlines", "lost", "no path", None]
    assert rows["label_name"].to_pylist() == ["dog", "cat", "dog", "cat", None]
    assert open_pool(here / "pool").classes == ("cat", "dog")
    assert open_pool(here / "pool").columns["licence"] == "string"


def test_a_missing_file_is_called_so_wherever_a_run_tells_of_it(here):
    put(here / "t.csv", b"path\nimg/0.png\nimg/1.png\nimg/gone.png\nimg/empty.png\n")
    put(here / "img" / "empty.png", b"")
    run(here / "t.csv", here / "pool")
    built = build("audit", pool=str(here / "pool"), out=here / "run", workers=1, device="cpu", quiet=True)
    gone = query(built.path, "SELECT key, drop_reason FROM ledger WHERE status = 'quarantined' ORDER BY key")
    assert gone["drop_reason"].to_pylist() == ["zero_bytes", "missing"]
    assert built.info["counts"] == {"rows": 4, "kept": 2, "dropped": 0, "quarantined": 2}
    shown = text(show(built.path))
    assert re.search(r"\bmissing +1\b", shown)
    assert re.search(r"\bzero_bytes +1\b", shown)


@pytest.mark.parametrize(("mark", "called"), [(";", ";"), ("\t", "tab")])
def test_a_csv_parted_by_semicolons_or_tabs_is_read_as_one_with_commas(here, mark, called):
    lines = ["path,caption,label", "img/0.png,a dog,dog", 'img/1.png,"a, cat; too",cat']
    put(here / "comma.csv", "\n".join(lines).encode())
    put(here / "other.csv", "\n".join(line.replace(",", mark).replace(f"a{mark} cat", "a, cat") for line in lines).encode())
    for name in ("comma", "other"):
        summary = run(here / f"{name}.csv", here / name)
    assert summary["delimiter"] == called
    assert files(here / "comma") == files(here / "other")
    assert rows_of(here / "other")["caption"].to_pylist() == ["a dog", "a, cat; too"]


def test_a_name_with_a_semicolon_in_it_does_not_part_a_csv(here):
    put(here / "t.csv", b'path,"a;b;c;d",x\nimg/0.png,1,2\n')
    assert "delimiter" not in run(here / "t.csv", here / "pool")
    assert rows_of(here / "pool")["a;b;c;d"].to_pylist() == [1]


def test_jsonl_and_csv_and_parquet_give_the_same_pool(here):
    rows = [{"path": f"img/{i}.png", "caption": f"nr {i} é", "label": "ab"[i % 2], "weightiness": i / 2} for i in range(4)]
    put(here / "t.jsonl", "\n".join(json.dumps(r) for r in rows).encode() + b"\n\n")
    put(here / "t.csv", ("path,caption,label,weightiness\n" + "\n".join(",".join(map(str, r.values())) for r in rows)).encode())
    pq.write_table(pa.Table.from_pylist(rows), here / "t.parquet")
    for kind in ("jsonl", "csv", "parquet"):
        run(here / f"t.{kind}", here / kind, samples_per_shard=3)
    assert files(here / "jsonl") == files(here / "csv") == files(here / "parquet")
    assert members(here / "csv")["img_3.png"] == picture(3)
    assert members(here / "csv")["img_3.txt"] == "nr 3 é".encode()


def test_bytes_in_parquet_are_read_a_row_group_at_a_time(here):
    table = pa.table(
        {"image": [picture(i) for i in range(9)], "label": pa.array([i % 3 for i in range(9)], pa.int8()), "key": [f"k{i}" for i in range(9)]}
    )
    pq.write_table(table, here / "t.parquet", row_group_size=4)
    summary = run(here / "t.parquet", here / "pool", samples_per_shard=5)
    assert (summary["samples"], summary["classes"]) == (9, 0)
    assert members(here / "pool") == {f"k{i}.{e}": d for i in range(9) for e, d in (("png", picture(i)), ("cls", str(i % 3).encode()))}


def test_a_hub_data_set_keeps_its_class_names_and_file_names(here):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image = pa.array(
        [{"bytes": picture(0, "JPEG"), "path": "a/x.jpg"}, {"bytes": None, "path": "a/y.jpg"}, {"bytes": picture(2), "path": None}], kind
    )
    features = {"info": {"features": {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": image, "label": pa.array([1, 0, None], pa.int64())}).replace_schema_metadata({"huggingface": json.dumps(features)})
    for part in range(2):
        (here / "data").mkdir(exist_ok=True)
        pq.write_table(table.slice(part * 2, 2), here / "data" / f"train-{part:05d}-of-00002.parquet")
    summary = run(here / "data", here / "pool")
    assert (summary["samples"], summary["unreadable"]) == (3, 1)
    assert open_pool(here / "pool").classes == ("cat", "dog")
    assert members(here / "pool") == {
        "a_x.jpg": picture(0, "JPEG"), "a_x.cls": b"1", "a_y.jpg": b"", "a_y.cls": b"0", "000000002.png": picture(2),
    }  # fmt: skip
    assert sidecar(here / "pool")["path"].to_pylist() == ["a/x.jpg", "a/y.jpg", None]


def test_a_changed_parquet_is_packed_again(here):
    for seed in (0, 50):
        pq.write_table(pa.table({"image": [picture(seed + i) for i in range(6)]}), here / "t.parquet")
        run(here / "t.parquet", here / "pool", samples_per_shard=2)
        assert members(here / "pool")["000000005.png"] == picture(seed + 5)
    assert run(here / "t.parquet", here / "pool", samples_per_shard=2)["shards_packed"] == 0


def test_the_columns_can_be_named(here):
    put(here / "t.tsv", b"where\twhat\tkind\tname\timage\nimg/0.png\thello\tx\tn 1\tno\nimg/1.png\tyou\ty\tn2\tno\n")
    run(here / "t.tsv", here / "pool", image="where", caption="what", label="kind", key="name")
    rows = rows_of(here / "pool")
    assert rows["caption"].to_pylist() == ["hello", "you"]
    assert rows["image"].to_pylist() == ["no", "no"]
    assert [k.split("-")[0] for k in rows["key"].to_pylist()] == ["n_1", "n2"]


def test_one_file_in_two_rows_is_two_samples(here):
    put(here / "t.csv", b"path,caption\nimg/0.png,one\nimg/0.png,two\n")
    run(here / "t.csv", here / "pool")
    assert sorted(members(here / "pool").values()) == sorted([picture(0), picture(0), b"one", b"two"])


@pytest.mark.parametrize(
    ("cells", "labels", "classes"),
    [
        (["0", "7", ""], [0, 7, None], ()),
        (["1", "01", "x"], [1, 0, 2], ("01", "1", "x")),
        (["true", "false", ""], [1, 0, None], ("false", "true")),
        (["-1", "0", "3"], [-1, 0, 3], ()),
        (["1.5", "2", ""], [0, 1, None], ("1.5", "2")),
    ],
)
def test_labels(here, cells, labels, classes):
    put(here / "t.csv", ("path,label\n" + "".join(f"img/{i}.png,{c}\n" for i, c in enumerate(cells))).encode())
    run(here / "t.csv", here / "pool")
    assert rows_of(here / "pool")["label"].to_pylist() == labels
    assert open_pool(here / "pool").classes == classes


def test_whole_floats_with_gaps_are_class_numbers(here):
    pq.write_table(pa.table({"path": ["img/0.png", "img/1.png"], "label": [3.0, None]}), here / "t.parquet")
    run(here / "t.parquet", here / "pool")
    assert rows_of(here / "pool")["label"].to_pylist() == [3, None]


def test_columns_that_do_not_fit_are_named(here):
    table = pa.table(
        {
            "path": ["img/0.png"],
            "embedding": [[0.5, 1.0]],
            "tags": [["a", "b"]],
            "uid": ["f" * 32],
            "truth_x": [True],
            "kind": pa.array(["p"]).dictionary_encode(),
        }
    )
    pq.write_table(table, here / "t.parquet")
    summary = run(here / "t.parquet", here / "pool")
    assert summary["columns_left_out"] == {"embedding": "list<element: double>"}
    rows = rows_of(here / "pool").to_pylist()[0]
    assert (rows["tags"], rows["source_uid"], rows["truth_x"], rows["kind"]) == ('["a", "b"]', "f" * 32, True, "p")


def test_json_that_mixes_types_and_half_surrogates_becomes_text(here):
    put(here / "t.jsonl", b'{"path": "img/0.png", "v": 1, "caption": "\\ud83d bad"}\n{"path": "img/1.png", "v": "x", "caption": 5}\n')
    run(here / "t.jsonl", here / "pool")
    rows = rows_of(here / "pool")
    assert rows["v"].to_pylist() == ["1", "x"]
    assert rows["caption"].to_pylist() == ["\ufffd bad", "5"]


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("t.csv", b"a,b\n1,2\n", {}, r"no column of pictures; its columns: a, b.*\[unknown-column\]"),
        ("t.csv", b"path\nx.png\n", {"label": "nope"}, r"--label nope.*its columns: path.*\[unknown-column\]"),
        ("t.csv", b"path\nhttps://example.org/x.png\n", {}, r"has links.*img2dataset.*\[bad-value\]"),
        ("t.csv", b"path,c\nx.png,a\ny.png,\xff\n", {}, r"t\.csv:3: is not UTF-8.*\[bad-value\]"),
        ("t.csv", b"path,c\nx.png,a,b,c\n", {}, r"does not parse.*\[bad-value\]"),
        ("t.csv", b"", {}, r"\[unknown-column\]"),
        ("t.csv", b"path,label\n", {}, r"holds no picture.*\[empty-pool\]"),
        ("t.jsonl", b'{"path": "a.png"}\n{"path": \n', {}, r"t\.jsonl:2: is not JSON.*\[bad-value\]"),
        ("t.jsonl", b"[1]\n", {}, r"t\.jsonl:1: is not an object.*\[bad-value\]"),
        ("t.parquet", b"PAR1 not at all", {}, r"no whole Parquet.*\[bad-value\]"),
        ("t.xlsx", b"x", {}, r"ends in '\.xlsx'.*\[bad-value\]"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(here, name, text, options, message):
    put(here / name, text)
    with pytest.raises(Refusal, match=message) as error:
        run(here / name, here / "pool", **options)
    assert "\n" not in str(error.value)
    assert not (here / "pool" / "pool.yaml").exists()


def test_a_label_that_fits_no_class_number_is_refused(here):
    put(here / "t.csv", b"path,label\nimg/0.png,99999999999\n")
    with pytest.raises(Refusal, match=r"fit 32 bits.*\[bad-value\]"):
        run(here / "t.csv", here / "pool")
