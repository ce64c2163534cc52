"""Vectors and columns made elsewhere land on the right rows, whoever laid them out and in whatever order."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curate.attach import attach
from curate.ingest.ingest import ingest
from manifests.errors import Refusal
from manifests.shards.index import index_shard, uids
from manifests.shards.pool_yaml import open_pool
from manifests.strict_yaml import read_yaml
from manifests.vectors.store import Vectors, valid_rows
from tests.curate.ingest.pictures import picture, put
from tests.curate.ingest.test_shards import img2dataset, tar

N = 11


@pytest.fixture
def pool(tmp_path):
    for i in range(N):
        put(tmp_path / "src" / f"{'ab'[i % 2]}" / f"{i:02d}.png", picture(i))
    ingest(str(tmp_path / "src"), to=tmp_path / "pool", samples_per_shard=4, quiet=True)
    return tmp_path / "pool"


def names(pool):
    """uid, key and path of every row of the pool in its order."""
    seen, found = {}, {"uid": [], "key": [], "path": [], "source_uid": []}
    for shard in open_pool(pool).shards:
        table = index_shard(shard).table
        found["uid"] += [u.decode() for u in uids(table, seen)[0]]
        for name in ("key", "path", "source_uid"):
            found[name] += table[name].to_pylist() if name in table.column_names else []
    return found


def attached_rows(pool, name, column):
    return [v for s in open_pool(pool).shards for v in pq.read_table(pool / "attached" / name / s.source / f"{s.name}.parquet")[column].to_pylist()]


def attached_vectors(pool, name):
    paths = [pool / "attached" / name / s.source / f"{s.name}.arrow" for s in open_pool(pool).shards]
    vectors = Vectors.open(paths)
    return vectors.take(np.arange(len(vectors))), np.concatenate([valid_rows(p) for p in paths])


def unit(array):
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.mark.parametrize("on", ["uid", "key", "path"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_columns_joined_by_any_name_in_any_order(pool, tmp_path, on, kind):
    ids = names(pool)[on]
    order = np.random.default_rng(3).permutation(N)[:8]
    rows = [{on: ids[i], "aesthetic": float(i) / 2, "who": f"p{i}"} for i in order] + [{on: "f" * 32, "aesthetic": 9.0, "who": "nobody"}]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    elif kind == "csv":
        put(tmp_path / "t.csv", (f"{on},aesthetic,who\n" + "\n".join(",".join(map(str, r.values())) for r in rows)).encode())
    else:
        put(tmp_path / "t.jsonl", "\n".join(map(json.dumps, rows)).encode())
    summary = attach(pool, tmp_path / f"t.{kind}", name="scores", quiet=True)
    assert (summary["matched"], summary["unmatched_in_pool"], summary["unmatched_in_table"]) == (8, 3, 1)
    assert attached_rows(pool, "scores", "aesthetic") == [i / 2 if i in order else None for i in range(N)]
    assert attached_rows(pool, "scores", "who") == [f"p{i}" if i in order else None for i in range(N)]
    assert open_pool(pool).attached == ({"name": "scores", "kind": "columns", "columns": {"aesthetic": "double", "who": "string"}},)


def test_pool_yaml_keeps_all_else_and_a_name_stands_once(pool, tmp_path):
    before = read_yaml((pool / "pool.yaml").read_bytes(), "", "bad-pool")
    for values in ([1] * N, [2] * N):
        pq.write_table(pa.table({"key": names(pool)["key"], "v": values}), tmp_path / "t.parquet")
        attach(pool, tmp_path / "t.parquet", name="x", quiet=True)
    after = read_yaml((pool / "pool.yaml").read_bytes(), "", "bad-pool")
    assert len(after.pop("attached")) == 1
    assert after == before
    assert attached_rows(pool, "x", "v") == [2] * N


def test_a_second_run_writes_nothing_and_gives_the_same(pool, tmp_path):
    pq.write_table(pa.table({"key": names(pool)["key"], "v": range(N)}), tmp_path / "t.parquet")
    first = attach(pool, tmp_path / "t.parquet", name="x", quiet=True)
    times = {p: p.stat().st_mtime_ns for p in (pool / "attached").rglob("*.parquet")}
    assert attach(pool, tmp_path / "t.parquet", name="x", quiet=True) == first
    assert {p: p.stat().st_mtime_ns for p in times} == times


def test_npy_is_row_for_row_and_scaled_to_length_one(pool, tmp_path):
    array = np.random.default_rng(0).normal(size=(N, 6)).astype(np.float32) * 50
    array[2], array[5, 3], array[7, 0] = 0, np.nan, np.inf
    np.save(tmp_path / "v.npy", array)
    summary = attach(pool, tmp_path / "v.npy", name="clip", quiet=True)
    found, valid = attached_vectors(pool, "clip")
    good = [i for i in range(N) if i not in (2, 5, 7)]
    assert np.flatnonzero(valid).tolist() == good
    np.testing.assert_allclose(found[good], unit(array[good]), atol=1e-3)
    assert (summary["null_vectors"], summary["scaled_to_length_one"], summary["columns"]) == (3, True, {"clip": "float16[6]"})
    assert open_pool(pool).attached[0]["kind"] == "vectors"


def test_vectors_in_a_list_column(pool, tmp_path):
    array = np.random.default_rng(1).normal(size=(N, 4))
    order = np.random.default_rng(2).permutation(N)
    lists = [None if i == 4 else array[i].tolist() for i in order]
    pq.write_table(pa.table({"path": [names(pool)["path"][i] for i in order], "emb": lists, "note": ["n"] * N}), tmp_path / "t.parquet")
    attach(pool, tmp_path / "t.parquet", name="emb", vectors="emb", quiet=True)
    found, valid = attached_vectors(pool, "emb")
    assert np.flatnonzero(~valid).tolist() == [4]
    np.testing.assert_allclose(found[valid], unit(array[valid]), atol=1e-3)


def test_a_clip_retrieval_folder_is_read_in_the_order_of_its_numbers(pool, tmp_path):
    array = np.random.default_rng(1).normal(size=(N, 4)).astype(np.float16)
    order, cuts = np.random.default_rng(2).permutation(N), [0, 2, 3, N]
    for number, (a, b) in zip((0, 2, 10), itertools.pairwise(cuts), strict=True):
        rows = order[a:b]
        for folder in ("img_emb", "metadata"):
            (tmp_path / "cr" / folder).mkdir(parents=True, exist_ok=True)
        np.save(tmp_path / "cr" / "img_emb" / f"img_emb_{number}.npy", array[rows])
        pq.write_table(
            pa.table({"image_path": [names(pool)["key"][i] for i in rows], "caption": ["c"] * len(rows)}),
            tmp_path / "cr" / "metadata" / f"metadata_{number}.parquet",
        )
    summary = attach(pool, tmp_path / "cr", name="clip", quiet=True)
    found, valid = attached_vectors(pool, "clip")
    assert valid.all()
    assert summary["matched"] == N
    np.testing.assert_allclose(found, unit(array.astype(float)), atol=1e-3)


def test_datacomp_metadata_by_source_uid(tmp_path):
    img2dataset(tmp_path / "dc" / "shards", uid=True)
    ingest(str(tmp_path / "dc"), to=tmp_path / "pool", quiet=True)
    uid = names(tmp_path / "pool")["source_uid"]
    array = np.random.default_rng(1).normal(size=(len(uid) + 2, 4)).astype(np.float16)
    every = [*uid[::-1], "e" * 32, "d" * 32]  # DataComp's metadata also names samples that could not be downloaded
    (tmp_path / "meta").mkdir()
    for part, rows in enumerate((slice(0, 3), slice(3, None))):
        table = pa.table(
            {
                "uid": every[rows],
                "text": ["t"] * len(every[rows]),
                "url": ["u"] * len(every[rows]),
                "clip_l14_similarity_score": np.arange(len(every))[rows] / 10,
            }
        )
        pq.write_table(table, tmp_path / "meta" / f"{part:032x}.parquet")
        np.savez(tmp_path / "meta" / f"{part:032x}.npz", l14_img=array[rows], l14_txt=-array[rows])
    scores = attach(tmp_path / "pool", tmp_path / "meta", name="datacomp", columns=["clip_l14_similarity_score"], quiet=True)
    assert (scores["matched"], scores["unmatched_in_pool"], scores["unmatched_in_table"]) == (len(uid), 0, 2)
    assert attached_rows(tmp_path / "pool", "datacomp", "clip_l14_similarity_score") == [(len(uid) - 1 - i) / 10 for i in range(len(uid))]
    attach(tmp_path / "pool", tmp_path / "meta", name="l14", vectors="l14_img", quiet=True)
    found, _ = attached_vectors(tmp_path / "pool", "l14")
    np.testing.assert_allclose(found, unit(array[: len(uid)][::-1].astype(float)), atol=1e-3)
    one = attach(tmp_path / "pool", tmp_path / "meta" / f"{0:032x}.npz", name="half", vectors="l14_txt", quiet=True)
    assert one["matched"] == 3
    rest = attach(tmp_path / "pool", tmp_path / "meta", name="all_columns", quiet=True)
    assert set(rest["columns_left_out"]) == {"url", "clip_l14_similarity_score"}
    assert [a["name"] for a in open_pool(tmp_path / "pool").attached] == ["datacomp", "l14", "half", "all_columns"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_a_shard_more_costs_its_own_rows_and_not_the_table_once_more(tmp_path, kind):
    """Arrow put a column of many pieces together anew for every shard."""
    for i in range(N):
        put(tmp_path / "src" / f"{i:02d}.png", picture(i))
    table, spent = tmp_path / "t.parquet", {}
    text = [f"some words, and the number {i}" for i in range(20_000)]
    for shards in (1, N):
        pool = tmp_path / f"pool{shards}"
        ingest(str(tmp_path / "src"), to=pool, samples_per_shard=-(-N // shards), quiet=True)
        assert len(open_pool(pool).shards) == shards
        keys = names(pool)["key"]
        places = dict(zip(keys, range(0, 20_000, 1_800), strict=False))
        rows = {"key": [f"other{i}" for i in range(20_000)], "v": pa.array(text).cast(kind)}
        for key, place in places.items():
            rows["key"][place] = key
        pq.write_table(pa.table(rows), table, row_group_size=500)
        before = pa.default_memory_pool().total_bytes_allocated()
        attach(pool, table, name="x", quiet=True)
        spent[shards] = pa.default_memory_pool().total_bytes_allocated() - before
        assert attached_rows(pool, "x", "v") == [text[places[key]] for key in keys]
        part = next((pool / "attached" / "x").rglob("*.parquet"))
        assert pq.read_schema(part).field("v").type == kind
    assert spent[N] - spent[1] < sum(map(len, text))


def test_not_finite_becomes_null_and_truth_passes(pool, tmp_path):
    pq.write_table(pa.table({"key": names(pool)["key"][:3], "v": [np.nan, np.inf, 1.0], "truth_z": [True, None, False]}), tmp_path / "t.parquet")
    attach(pool, tmp_path / "t.parquet", name="x", quiet=True)
    assert attached_rows(pool, "x", "v")[:3] == [None, None, 1.0]
    assert attached_rows(pool, "x", "truth_z")[:3] == [True, None, False]


def test_a_key_under_another_name(pool, tmp_path):
    pq.write_table(pa.table({"file": names(pool)["path"], "v": range(N)}), tmp_path / "t.parquet")
    assert attach(pool, tmp_path / "t.parquet", name="x", key="file=path", quiet=True)["matched"] == N


def test_a_name_that_stands_for_two_samples_is_refused(tmp_path):
    for i in range(2):
        tar(tmp_path / "set" / f"{i}.tar", [("same.png", picture(i)), (f"other{i}.png", picture(i))])
    ingest(str(tmp_path / "set"), to=tmp_path / "pool", quiet=True)
    pq.write_table(pa.table({"key": ["other0", "other1"], "v": [1, 2]}), tmp_path / "fine.parquet")
    assert attach(tmp_path / "pool", tmp_path / "fine.parquet", name="x", quiet=True)["matched"] == 2
    pq.write_table(pa.table({"key": ["same", "other1"], "v": [1, 2]}), tmp_path / "t.parquet")
    with pytest.raises(Refusal, match=r"'same' is the 'key' of 2 samples.*Join by uid.*\[bad-value\]"):
        attach(tmp_path / "pool", tmp_path / "t.parquet", name="x", quiet=True)


def test_equal_samples_in_two_shards_are_told_apart_by_uid(tmp_path):
    for i in range(2):
        tar(tmp_path / "set" / f"{i}.tar", [("same.png", picture(0))])
    ingest(str(tmp_path / "set"), to=tmp_path / "pool", quiet=True)
    pq.write_table(pa.table({"uid": names(tmp_path / "pool")["uid"], "v": [1, 2]}), tmp_path / "t.parquet")
    attach(tmp_path / "pool", tmp_path / "t.parquet", name="x", quiet=True)
    assert attached_rows(tmp_path / "pool", "x", "v") == [1, 2]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"key": ["a_00", "a_00"], "v": [1, 2]}, {}, r"stand twice in 'key', the first 'a_00'.*\[bad-value\]"),
        ({"key": ["no", "nope"], "v": [1, 2]}, {}, r"no 'key' of the table is the 'key' of a sample.*--key.*\[bad-value\]"),
        ({"file": ["a"], "v": [1]}, {}, r"no column that names samples; its columns: file, v.*\[unknown-column\]"),
        ({"key": ["a_00"], "v": [1]}, {"key": "nokey"}, r"no column 'nokey'.*\[unknown-column\]"),
        ({"key": ["a_00"], "v": [1]}, {"key": "key=nothing"}, r"the pool has no column 'nothing'.*\[unknown-column\]"),
        ({"key": ["a_00"], "v": [1]}, {"vectors": "emb"}, r"no column 'emb'.*\[unknown-column\]"),
        ({"key": ["a_00"], "v": [1]}, {"columns": ["w"]}, r"no 'w'.*\[unknown-column\]"),
        ({"key": ["a_00"], "path": ["p"], "label": [1]}, {"columns": ["label"]}, r"^--column: 'label': keepset uses that name itself.*\[bad-value\]"),
        (
            {"key": ["a_00"], "path": ["p"]},
            {"key": "key", "columns": ["path"]},
            r"^--column: 'path': the pool has a column of that name; .*\[bad-value\]",
        ),
        (
            {"key": ["a_00"], "score_of": [1]},
            {"columns": ["scoreof"]},
            r"^--column: the table has no 'scoreof'; its columns: key, score_of\. Did you mean score_of \[unknown-column\]",
        ),
        (
            {"key": ["a_00"], "v": [[1.0]], "aes": [1]},
            {"vectors": "v", "columns": ["aes"]},
            r"^--column: aes was given with vectors \(v\); .*second call.*\[bad-value\]",
        ),
        ({"key": ["a_00"]}, {}, r"no column is left.*\[bad-value\]"),
        ({"key": ["a_00"], "v": [1]}, {"name": "no name"}, r"--name.*\[bad-value\]"),
        ({"key": ["a_00", "b_01"], "e": [[1.0], [1.0, 2.0]]}, {"vectors": "e"}, r"differ in length.*\[bad-value\]"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(pool, tmp_path, columns, options, message):
    before = (pool / "pool.yaml").read_bytes()
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(Refusal, match=message) as error:
        attach(pool, tmp_path / "t.parquet", **{"name": "x", "quiet": True, **options})
    assert "\n" not in str(error.value)
    assert (pool / "pool.yaml").read_bytes() == before
    assert not list(pool.rglob("attached/**/*.parquet"))


@pytest.mark.parametrize(
    "array",
    [np.ones((3, 4), np.float32), np.ones((N, 2, 2), np.float32), np.ones((N, 4), int), np.array([{}] * N, object)],
    ids=["rows", "3-d", "int", "pickle"],
)
def test_an_npy_that_does_not_fit_is_refused(pool, tmp_path, array):
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(Refusal, match=r"\[bad-value\]"):
        attach(pool, tmp_path / "v.npy", name="x", quiet=True)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4", np.int16, np.uint8, bool])
@pytest.mark.parametrize("wide", [False, True])
def test_an_npy_of_one_number_a_sample_is_the_column_of_that_name(pool, tmp_path, kind, wide):
    values = (np.arange(N) % 2).astype(kind) if kind is bool else np.arange(N).astype(kind)
    if values.dtype.kind == "f":
        values[3], values[5] = np.nan, np.inf
    np.save(tmp_path / "s.npy", values[:, None] if wide else values)
    summary = attach(pool, tmp_path / "s.npy", name="aes", quiet=True)
    assert attached_rows(pool, "aes", "aes") == [None if not np.isfinite(v) else v for v in values.tolist()]
    assert (summary["matched"], summary["kind"]) == (N, "columns")
    assert open_pool(pool).attached[0]["kind"] == "columns"


def test_an_npy_of_scores_that_does_not_fit_or_is_asked_for_what_it_has_not_is_refused(pool, tmp_path):
    for array, options, message in (
        (np.zeros(3), {}, r"has 3 rows; row i for sample i: the pool has 11"),
        (np.array(["x"] * N), {}, r"is an array of <U1; numbers.*CSV or Parquet"),
        (np.zeros(N), {"name": "path"}, r"^--name: 'path': the pool has a column of that name.*Give another one"),
        (np.zeros(N), {"columns": ["aes"]}, r"^--column: aes was given, and .* has no names of columns"),
        (np.zeros((N, 2)), {"columns": ["aes"]}, r"^--column: aes was given, and .* has no names of columns"),
        (np.zeros(N), {"key": "key"}, r"^--key: key was given, and .* names no samples"),
        (np.zeros((N, 2)), {"vectors": "v"}, r"^--vectors: v says nothing about a \.npy"),
    ):
        np.save(tmp_path / "s.npy", array)
        with pytest.raises(Refusal, match=rf"{message}.*\[bad-value\]"):
            attach(pool, tmp_path / "s.npy", **{"name": "x", "quiet": True, **options})
    put(tmp_path / "t.csv", b"key,v\na_00,1\n")
    with pytest.raises(Refusal, match=r"^--vectors: v says nothing about a \.csv.*\[bad-value\]"):
        attach(pool, tmp_path / "t.csv", name="x", vectors="v", quiet=True)
    assert not open_pool(pool).attached


def test_a_name_that_was_vectors_may_become_a_column_and_again(pool, tmp_path):
    arrays = [np.ones((N, 3), np.float32), np.arange(N, dtype=np.float32), np.ones((N, 3), np.float32)]
    for array, (there, gone) in zip(arrays, ((".arrow", ".parquet"), (".parquet", ".arrow"), (".arrow", ".parquet")), strict=True):
        np.save(tmp_path / "v.npy", array)
        attach(pool, tmp_path / "v.npy", name="x", quiet=True)
        assert len(list((pool / "attached" / "x").rglob(f"*{there}"))) == len(open_pool(pool).shards)
        assert not list((pool / "attached" / "x").rglob(f"*{gone}"))


def test_who_has_a_column_already_is_named(pool, tmp_path):
    put(tmp_path / "t.csv", ("key,aes,label,path,v\n" + "".join(f"{k},1,2,3,4\n" for k in names(pool)["key"])).encode())
    attach(pool, tmp_path / "t.csv", name="first", columns=["aes"], quiet=True)
    summary = attach(pool, tmp_path / "t.csv", name="second", key="key", quiet=True)
    assert summary["columns_left_out"] == {"aes": "the attachment first has a column of that name", "label": "keepset uses that name itself"}
    with pytest.raises(Refusal, match=r"^--column: 'aes': the attachment first has a column of that name; a new name.*\[bad-value\]"):
        attach(pool, tmp_path / "t.csv", name="second", columns=["aes"], quiet=True)


def test_a_bare_shard_has_no_place_for_it(pool, tmp_path):
    put(tmp_path / "t.csv", b"key,v\na_00,1\n")
    with pytest.raises(Refusal, match=r"no pool.yaml of its own.*\[bad-pool\]"):
        attach(str(pool / "shards" / "00000.tar"), tmp_path / "t.csv", name="x", quiet=True)
    with pytest.raises(Refusal, match=r"\[no-such-file\]"):
        attach(pool, tmp_path / "gone.csv", name="x", quiet=True)


def test_vectors_of_which_none_can_be_scaled_are_refused(pool, tmp_path):
    np.save(tmp_path / "nan.npy", np.full((N, 4), np.nan, np.float32))
    with pytest.raises(Refusal, match=rf"none of the {N} vectors is of finite numbers.*\[bad-value\]"):
        attach(pool, tmp_path / "nan.npy", name="nothing", quiet=True)
    assert not open_pool(pool).attached
