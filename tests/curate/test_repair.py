"""A run that was damaged is made whole: by the same build where something is missing, with `recheck` where bytes differ."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import curate
from curate import building, deciding, pool_measuring, reusing
from curate.attached import attached_digests
from curate.generations import Generations
from manifests.audit.verify import verify
from manifests.errors import Refusal
from manifests.run import open_run
from manifests.shards.pool_yaml import open_pool, write_pool_yaml
from manifests.vectors.store import write_vectors
from tests.curate.test_building import RECIPE, build, digests
from tests.small_pool import samples, write_evaluation_pool, write_pool


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repair")
    write_pool(folder / "pool")
    write_evaluation_pool(folder / "eval")
    (folder / "recipe.yaml").write_text(RECIPE.replace("EVAL", str(folder / "eval")))
    build(folder, "run")
    return folder


@pytest.fixture
def copied(home, tmp_path):
    """A copy of the finished run, to be damaged: (home, name of the run)."""
    shutil.copytree(home / "run", home / tmp_path.name)
    yield tmp_path.name
    shutil.rmtree(home / tmp_path.name)


def flip(file: Path, at: float = 0.4) -> None:
    data = bytearray(file.read_bytes())
    data[int(len(data) * at)] ^= 1
    file.write_bytes(data)


def flip_page(file: Path) -> None:
    """One bit in the last page of the first column; the footer stays."""
    column = pq.read_metadata(file).row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(file.read_bytes())
    data[start + column.total_compressed_size - 2] ^= 1
    file.write_bytes(data)


MISSING = {
    "index": "parts/measure.index/crops/00001.parquet",
    "identity": "parts/identity/crops/00001.parquet",
    "measure": "parts/measure.quality/crops/00000.parquet",
    "vectors": "vectors/pixels/crops/00002.arrow",
    "decision": "parts/dedup.exact/crops/00001.parquet",
    "edges": "edges/dedup.perceptual/00000.parquet",
    "evaluation": "evaluations/small-test/parts/measure.perceptual_hash/crops/00000.parquet",
    "tar": "shards/00000.tar",
    "statistics": "shards/00000_stats.json",
    "ledger": "ledger/00000.parquet",
    "selection": "selection.npy",
}


@pytest.mark.parametrize("what", MISSING)
@pytest.mark.parametrize("cut", [False, True], ids=["gone", "cut"])
def test_what_is_gone_or_cut_is_written_again_by_the_same_build(home, copied, what, cut):
    file = home / copied / MISSING[what]
    if cut:
        os.truncate(file, file.stat().st_size // 2)
    else:
        file.unlink()
    build(home, copied)
    assert digests(home / copied) == digests(home / "run")
    assert verify(home / copied, deep=True)["whole"]


@pytest.mark.parametrize("what", ["shards/00000.tar", "shards/00001.parquet", "vectors/pixels/crops/00000.arrow", "selection.npy"])
def test_recheck_writes_again_what_has_other_bytes(home, copied, what):
    flip(home / copied / what)
    found = verify(home / copied, deep=True)
    assert not found["whole"]
    assert all("--recheck" in f["cure"] for f in found["findings"])
    build(home, copied, recheck=True)
    assert digests(home / copied) == digests(home / "run")


@pytest.mark.parametrize("what", ["measure", "identity", "decision", "edges", "evaluation"])
def test_recheck_writes_again_a_part_with_a_damaged_page(home, copied, what):
    flip_page(home / copied / MISSING[what])
    build(home, copied, recheck=True)
    assert digests(home / copied) == digests(home / "run")


def test_a_vector_file_of_another_part_is_refused_and_found(home, copied):
    file = home / copied / MISSING["vectors"]
    write_vectors(file, np.zeros((10, 64), np.float16), np.ones(10, bool), "other")
    assert any("digest of its part" in f["what"] for f in verify(home / copied)["findings"])
    build(home, copied)
    assert digests(home / copied) == digests(home / "run")


def test_a_decision_never_takes_rows_without_a_vector_file_for_unjudged(home, copied, monkeypatch):
    stages = building._stages

    def lose(*given):  # the file goes after it was measured
        (home / copied / MISSING["vectors"]).unlink()
        return stages(*given)

    shutil.rmtree(home / copied / "parts" / "select.kcenter")
    monkeypatch.setattr(building, "_stages", lose)
    with pytest.raises(Refusal) as caught:
        build(home, copied)
    assert caught.value.slug == "broken-record"


@pytest.mark.parametrize("body", ["{", "", "[]", "null", "{}", '{"format": 1, "pool": {}, "stages": [1]}'])
def test_a_damaged_record_is_written_anew_by_the_same_build(home, copied, body):
    (home / copied / "run.json").write_text(body)
    build(home, copied)
    assert digests(home / copied) == digests(home / "run") and verify(home / copied)["whole"]


def test_a_link_that_fails_copies_whole_files_and_parts_last(home, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError("another disk")

    copies = []
    copy = reusing._copy
    monkeypatch.setattr(reusing, "_copy", lambda s, t: (copies.append(t.relative_to(tmp_path)), copy(s, t)))
    reusing.link_run(home / "run", tmp_path, link=refuse)
    is_part = ["parts" in c.parts for c in copies]
    assert is_part == sorted(is_part)
    assert digests(tmp_path)["vectors/pixels/crops/00000.arrow"] == digests(home / "run")["vectors/pixels/crops/00000.arrow"]


def test_attached_files_enter_by_content_not_by_time(tmp_path):
    pool = write_pool(tmp_path / "pool")
    shards = open_pool(str(pool)).shards
    for shard in shards:
        write_vectors(pool / "attached" / "mine" / shard.source / f"{shard.name}.arrow", np.ones((2, 4), np.float16), np.ones(2, bool), "a")
        (pool / "attached" / "plain" / shard.source).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"plain": [1, 2]}), pool / "attached" / "plain" / shard.source / f"{shard.name}.parquet")
    described = replace(open_pool(str(pool)), attached=({"name": "mine", "kind": "vectors"}, {"name": "plain"}))
    before = attached_digests(described, tmp_path)
    for file in (pool / "attached").rglob("*.*"):
        os.utime(file, (1, 1))
    assert attached_digests(described, tmp_path) == before
    write_vectors(pool / "attached" / "mine" / shards[0].source / f"{shards[0].name}.arrow", np.ones((2, 4), np.float16), np.ones(2, bool), "b")
    after = attached_digests(described, tmp_path)
    assert after[0] != before[0]
    assert after[1] == before[1]


def test_nothing_kept_is_recorded_before_it_is_refused(home, tmp_path):
    recipe = tmp_path / "none.yaml"
    recipe.write_text("format: 1\nstages:\n  - keep.where: {keep: \"key = 'no such'\"}\n")
    for _ in range(2):
        with pytest.raises(Refusal) as caught:
            build(home, "none", recipe=recipe)
        assert caught.value.slug == "nothing-kept"
    run = open_run(home / "none")
    assert (run.info["counts"]["kept"], run.ledger().num_rows) == (0, 40)
    assert len(np.load(run.path / "selection.npy")) == 0
    assert verify(run.path)["whole"]


def test_nothing_is_written_where_a_build_is_refused(home, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("x")
    (tmp_path / "file").write_text("x")
    for out, reuse in ((tmp_path / "mine", []), (tmp_path / "file", []), (tmp_path / "file" / "run", []), (tmp_path / "new", [tmp_path / "mine"])):
        with pytest.raises(Refusal) as caught:
            curate.build(home / "recipe.yaml", pool=str(home / "pool"), out=out, reuse=reuse, quiet=True, device="cpu")
        assert caught.value.slug == "not-a-run"
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["precious.txt"]
    assert not (tmp_path / "new").exists()


def test_uid_is_a_column_that_decisions_read(home, tmp_path):
    uid = open_run(home / "run").find("000004")["uid"]
    recipe = tmp_path / "uid.yaml"
    recipe.write_text(
        f"format: 1\nstages:\n  - keep.list: {{ids: ['{uid}'], listed: drop}}\n  - select.random: {{keep: 3, protect: \"uid LIKE '%'\"}}\nshards: false\n"
    )
    run = build(home, "uid", recipe=recipe)
    assert run.find(uid)["drop_stage"] == "keep.list"
    assert run.info["counts"]["kept"] == 39


@pytest.mark.parametrize(("kind", "refused"), [(pa.int64(), False), (pa.null(), False), (pa.string(), True)])
def test_columns_of_sources_agree_or_are_refused_by_name(tmp_path, kind, refused):
    pool = write_pool(tmp_path / "pool", samples()[:6], per_shard=3)
    sidecar = pool / "shards" / "00001.parquet"
    table = pq.read_table(sidecar)
    values = pa.array([None, None, None] if pa.types.is_null(kind) else ([1, 2, 3] if pa.types.is_integer(kind) else ["a", "b", "c"]), kind)
    pq.write_table(table.set_column(table.column_names.index("quality_vote"), "quality_vote", values), sidecar)
    write_pool_yaml(pool, name="two", sources=[{"name": n, "shards": f"shards/0000{i}.tar"} for i, n in enumerate("ab")], classes=[])
    (tmp_path / "recipe.yaml").write_text("format: 1\nstages:\n  - select.random: {keep: 3}\n")
    if not refused:
        assert build(tmp_path, "run", recipe=tmp_path / "recipe.yaml").ledger().num_rows == 6
        return
    with pytest.raises(Refusal) as caught:
        build(tmp_path, "run", recipe=tmp_path / "recipe.yaml")
    assert caught.value.slug == "bad-pool"
    assert all(word in str(caught.value) for word in ("quality_vote", "a/00000", "b/00001", "double", "string"))


def test_edges_of_other_parameters_do_not_stay(home, copied, monkeypatch):
    edges = home / copied / MISSING["edges"]
    verdicts = deciding.verdicts_of

    def without(*given):
        found, unjudged = verdicts(*given)
        return replace(found, edges=None), unjudged

    monkeypatch.setattr(deciding, "verdicts_of", without)
    build(home, copied, "dedup.perceptual.max_distance=3")
    assert not edges.exists()
    assert verify(home / copied)["whole"]


def test_the_first_signature_is_kept(home, tmp_path, monkeypatch):
    measured = []

    def twice(run, tasks, workers, watch):
        for task in tasks:
            found = replace(run(task), signature=[len(measured)])
            measured.append(found)
            yield found

    monkeypatch.setattr(pool_measuring, "map_tasks", twice)
    measures = pool_measuring.measures_of
    monkeypatch.setattr(pool_measuring, "measures_of", lambda recipe, device: measures(recipe, False)[device : device + 1])
    resolved = building.read_recipe(home / "recipe.yaml", [], str(home / "pool"))
    options = building.Options(1, "cpu", 1 << 30, tmp_path / "events.jsonl", True)
    pool_measuring.measure_pool(resolved, Generations((open_pool(str(home / "pool")),)), tmp_path, options)
    cache = json.loads((tmp_path / "cache" / "shards.json").read_text())
    assert len(measured) == 6
    assert sorted(entry["signature"] for entry in cache.values()) == [[0], [1], [2]]
