"""The table of hits as a run holds it: its bytes after an append, a replay and another order of shards; who reads it; an evaluation pool without labels."""

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

import curate
from curate.appending import append
from curate.attach import attach
from curate.replaying import replay
from manifests.audit.explain import explain
from manifests.audit.explain import text as life
from manifests.audit.query import query
from manifests.audit.show import show
from manifests.audit.show import text as shown
from manifests.audit.verify import verify
from manifests.errors import Refusal
from manifests.run import open_run
from pretrain.evidence.arms import read_ledger
from tests.curate.dedup.test_copies import PHOTOS, edited
from tests.pools import jpeg, png
from tests.small_pool import add, write_evaluation_pool, write_pool

MEASURES = ["measure.exact_hash", "measure.perceptual_hash", {"measure.vectors": {"encoder": "pixels:8", "as": "pixels"}}]
LIMITS = {"min_copied": 0.5, "floor_copied": 0.2, "loose_distance": 64, "vectors": "pixels", "min_cosine": 0.97, "floor_cosine": 0.6, "k": 2}
KINDS = ["", "jpeg", "crop", "box", "mirror", "half"]
POOL = {f"{i}-{kind or 'same'}": edited(PHOTOS[i], kind) if kind else png(PHOTOS[i]) for i in (0, 2, 4) for kind in KINDS}
POOL |= {"free": png(PHOTOS[1]), "free-too": png(PHOTOS[3])}
TESTS = {
    "t0": png(PHOTOS[0]),
    "t0-again": jpeg(PHOTOS[0], 60),
    "t0-frame": edited(PHOTOS[0], "frame"),
    "t2": jpeg(PHOTOS[2], 80),
    "t5": png(PHOTOS[5]),
}


def rows(pictures: dict[str, bytes]) -> list[dict]:
    body = {"label": 0, "caption": "", "group": "g", "quality_vote": 0.5, "truth_copy_of": None}
    return [{"key": key, "image": picture, **body} for key, picture in pictures.items()]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hits")
    given = rows(POOL)
    write_pool(folder / "pool", given, per_shard=5, name="mine")
    write_pool(folder / "turned", given[7:] + given[:7], per_shard=4, name="mine")
    write_pool(folder / "old", given[:8], per_shard=5, name="mine")
    write_pool(folder / "new", given[8:], per_shard=5, name="more")
    write_pool(folder / "tests", rows(TESTS), name="exam")
    write_pool(folder / "others", rows({"t4": edited(PHOTOS[4], "box"), "t0": png(PHOTOS[0])}), name="quiz")
    build(folder, "run", folder / "pool")
    return folder


def recipe(home: Path, name: str, leakage: dict | None = None, *before: dict) -> Path:
    path = home / f"{name}.yaml"
    stage = {"leakage.images": {"against": [str(home / "tests"), str(home / "others")], **LIMITS, **(leakage or {})}}
    path.write_text(yaml.safe_dump({"format": 1, "stages": [*MEASURES, *before, stage], "shards": False}, sort_keys=False))
    return path


def build(home: Path, name: str, pool: Path, leakage: dict | None = None, *before: dict):
    return curate.build(recipe(home, name, leakage, *before), pool=str(pool), out=home / name, workers=1, quiet=True, device="cpu")


def hits(run: Path) -> list[dict]:
    return (
        pa.concat_tables([pq.read_table(file) for file in open_run(run).edges("leakage.images")])
        .sort_by([("a", "ascending"), ("pool", "ascending"), ("b", "ascending")])
        .to_pylist()
    )


def test_the_table_names_every_sample_that_is_hit_by_whom_and_how(home):
    found = query(
        home / "run",
        "SELECT l.key, e.key AS test, leaks.pool, leaks.reason, leaks.score, leaks.threshold, copied, is_complete "
        "FROM leaks JOIN ledger l USING (uid) JOIN evaluations e ON e.pool = leaks.pool AND e.uid = leaks.test",
    ).to_pylist()
    pairs = {(f["key"], f["pool"], f["test"]): f["reason"] for f in found}
    assert pairs["0-same", "exam", "t0"] == "exact_leak" == pairs["0-same", "quiz", "t0"]
    assert pairs["0-same", "exam", "t0-again"] == "near_leak"
    assert pairs["0-crop", "exam", "t0-frame"] == "copied_leak"
    assert {key for key, _, test in pairs if test == "t0-frame"} >= {"0-same", "0-crop", "0-box", "0-mirror"}
    assert not [p for p in pairs if p[2] == "t5"]
    assert all(f["is_complete"] for f in found)
    assert {f["reason"]: f["threshold"] for f in found}["copied_leak"] == 0.5
    witnesses = {(r["uid"], r["witness_pool"], r["witness"]) for r in open_run(home / "run").ledger().to_pylist() if r["status"] == "dropped"}
    assert witnesses <= {(h["a"], h["pool"], h["b"]) for h in hits(home / "run") if h["reason"]}
    assert len(witnesses) < len(pairs)


def test_the_ledgers_witness_is_the_closest_of_the_table(home):
    order = ["exact_leak", "near_leak", "copied_leak", "vector_leak"]
    closest: dict[str, tuple] = {}
    for h in hits(home / "run"):
        if h["reason"]:
            way = order.index(h["reason"])
            place = (way, h["score"] if way < 2 else -h["score"], ["exam", "quiz"].index(h["pool"]), h["b"])
            closest[h["a"]] = min(closest.get(h["a"], place), place)
    dropped = {r["uid"]: r for r in open_run(home / "run").ledger().to_pylist() if r["status"] == "dropped"}
    assert {u: (order[c[0]], abs(c[1]), ["exam", "quiz"][c[2]], c[3]) for u, c in closest.items()} == {
        u: (r["drop_reason"], r["score"], r["witness_pool"], r["witness"]) for u, r in dropped.items()
    }


def test_the_order_of_shards_and_a_second_run_give_the_same_pairs(home):
    other = build(home, "other", home / "turned")
    names = ["a", "b", "pool", "reason", "score", "is_same", "difference", "copied", "cosine", "turn", "is_complete"]
    assert [[h[n] for n in names] for h in hits(other.path)] == [[h[n] for n in names] for h in hits(home / "run")]


def test_an_append_finds_what_one_build_finds(home, tmp_path):
    build(home, "grown", home / "old")
    grown = append(home / "grown", pool=str(home / "new"), workers=1, quiet=True, device="cpu")
    assert [len(pq.read_table(f)) > 0 for f in grown.edges("leakage.images")] == [True, True]
    one, two = hits(home / "run"), hits(home / "grown")
    assert one == two
    assert query(home / "grown", "SELECT count(*) AS n FROM leaks")["n"] == query(home / "run", "SELECT count(*) AS n FROM leaks")["n"]
    assert verify(home / "grown")["findings"] == []


MOVES = [
    {"max_rms": 3.0}, {"max_rms": 16.0, "min_copied": 0.9}, {"max_rms": 0.0, "min_copied": 0.2, "min_cosine": 0.6}, {"min_copied": None}, {"min_cosine": None},
    {"min_copied": None, "min_cosine": None, "max_rms": 5.0}, {"min_copied": 1.0, "min_cosine": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("moved", MOVES, ids=str)
def test_a_replay_at_other_limits_has_the_ledger_and_the_pairs_of_a_build(home, tmp_path, moved):
    fewer = [{"keep.list": {"ids": ["0-same", "2-crop"], "by": "key", "listed": "drop"}}] if len(moved) > 1 else []
    given = recipe(home, "moved", moved, *fewer)
    assert replay(home / "run", recipe=given, out=tmp_path / "out", device="cpu")["how"]["leakage.images"] == "folded"
    built = curate.build(given, pool=str(home / "pool"), out=tmp_path / "built", reuse=[home / "run"], workers=1, quiet=True, device="cpu")
    assert open_run(tmp_path / "out").ledger().to_pylist() == built.ledger().to_pylist()
    one, two = (open_run(tmp_path / name).edges("leakage.images")[0].read_bytes() for name in ("out", "built"))
    assert one == two


@pytest.mark.parametrize(
    "moved", [{"max_rms": 17.0}, {"min_copied": 0.1}, {"min_cosine": 0.5}, {"max_distance": 6}, {"floor_rms": 20.0}, {"min_area": 0.5}]
)
def test_beyond_the_floors_a_replay_says_what_would_work(home, moved):
    with pytest.raises(Refusal) as refusal:
        replay(home / "run", recipe=recipe(home, "beyond", moved), device="cpu")
    assert refusal.value.slug in ("not-replayable", "bad-value")
    assert next(iter(moved)) in str(refusal.value)


def test_copies_that_were_never_looked_for_are_not_replayed(home, tmp_path):
    plain = build(home, "plain", home / "pool", {"min_copied": None})
    with pytest.raises(Refusal, match="never looked for"):
        replay(plain.path, settings=["leakage.images.min_copied=0.5"], device="cpu")


def test_a_cut_table_is_folded_approximately(home):
    with pytest.warns(UserWarning, match="more rows than are written: the closest 1 by each way"):
        cut = build(home, "cut", home / "pool", {"max_hits": 1})
    assert replay(cut.path, settings=["leakage.images.max_rms=11.0"], device="cpu")["how"]["leakage.images"] == "folded, approximately"
    hit = "SELECT DISTINCT pool, test FROM leaks ORDER BY ALL"
    assert query(cut.path, hit).to_pylist() == query(home / "run", hit).to_pylist()
    assert cut.ledger().to_pylist() == open_run(home / "run").ledger().to_pylist()


def test_the_judge_counts_every_sample_that_is_hit(home, tmp_path):
    leaked = read_ledger(home / "run").leaked
    keys = dict(zip(*query(home / "run", "SELECT uid, key FROM evaluations").to_pydict().values(), strict=True))
    assert {keys[u] for u in leaked[str((home / "tests").resolve())]} == {"t0", "t0-again", "t0-frame", "t2"}
    assert {keys[u] for u in leaked[str((home / "others").resolve())]} == {"t0", "t4"}
    witnesses = {r["witness"] for r in open_run(home / "run").ledger().to_pylist() if r["witness_pool"] == "exam"}
    assert {keys[u] for u in witnesses} < {"t0", "t0-again", "t0-frame", "t2"}, "the closest alone is too few"
    gone = shutil.copytree(home / "run", tmp_path / "gone")
    shutil.rmtree(gone / "edges")
    with pytest.raises(Refusal, match="does not hold which test pictures are hit"):
        read_ledger(gone)


def test_show_and_explain_speak_of_all_hits(home):
    found = show(home / "run")
    assert found["leaks"] == [
        {"pool": "exam", "samples": 5, "hit": 4, "rows": 12, "is_known": True},
        {"pool": "quiz", "samples": 2, "hit": 2, "rows": 12, "is_known": True},
    ]
    assert "exam 4 of 5 (80.0 %) shown by 12 samples" in " ".join(shown(found).split())
    about = next(s for s in explain(home / "run", "0-same")["stages"] if s["stage"] == "leakage.images")
    assert about["witness"]["key"] == "t0"
    also = {(h["pool"], h["key"]): h["reason"] for h in about["hits"]["first"]}
    assert also["exam", "t0-again"] == "near_leak" and also["quiz", "t0"] == "exact_leak" and ("exam", "t0") not in also
    page = life(explain(home / "run", "0-same"))
    assert "also shows t0-again" in page


def test_an_evaluation_pool_without_labels_is_as_good(home, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    with tarfile.open(bare / "00000.tar", "w") as tar:
        for key, picture in TESTS.items():
            add(tar, f"{key}.png", picture)
    run = build(home, "unlabelled", home / "pool", {"against": [str(bare / "00000.tar"), str(home / "others")]})
    names = "SELECT key, status, drop_reason, score FROM ledger ORDER BY key"
    assert query(run.path, names).to_pylist() == query(home / "run", names).to_pylist()
    assert {row["hit"] for row in show(run.path)["leaks"]} == {4, 2}


def test_the_pairs_are_within_what_verify_and_a_damaged_table_are_found(home, tmp_path):
    assert verify(home / "run", deep=True)["findings"] == []
    damaged = shutil.copytree(home / "run", tmp_path / "damaged")
    file = damaged / "edges" / "leakage.images" / "00000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.filter(pc.is_valid(table["reason"])).replace_schema_metadata({}), file)
    assert verify(damaged)["findings"]


def test_who_has_no_vector_is_judged_in_the_other_ways(tmp_path):
    """An exact leak whose vector is missing, and one of a test picture that has none: both go, as without vectors. So do copies by their hashes."""
    write_pool(tmp_path / "pool")
    write_evaluation_pool(tmp_path / "eval")
    without = {"pool": (40, "{:06d}", {20, 2}), "eval": (8, "t{}", {7})}
    for name, (count, key, missing) in without.items():
        keys = [key.format(i) for i in range(count) if i not in missing]
        z = np.random.default_rng(0).normal(size=(len(keys), 8)).astype(np.float32)
        pq.write_table(pa.table({"key": keys, "emb": pa.array(list(z), pa.list_(pa.float32()))}), tmp_path / f"{name}.parquet")
        attach(tmp_path / name, tmp_path / f"{name}.parquet", name="z", vectors="emb", quiet=True)
    found = []
    for number, vectors in enumerate([{}, {"vectors": "z"}]):
        leaks = {"leakage.images": {"against": [str(tmp_path / "eval")], "max_rms": 9.0, **vectors}}
        copies = {"dedup.copies": {"vectors": ["z"] if vectors else [], "prefer": []}}
        given = tmp_path / f"{number}.yaml"
        given.write_text(yaml.safe_dump({"format": 1, "stages": [*MEASURES[:2], leaks, copies], "shards": False}))
        run = curate.build(given, pool=str(tmp_path / "pool"), out=tmp_path / str(number), workers=1, quiet=True, device="cpu")
        assert [s["counts"].get("unjudged", 0) for s in run.info["stages"]] == [0] * len(run.info["stages"])
        found.append(
            {
                row["key"]: (row["drop_reason"], row["witness"])
                for row in run.ledger().to_pylist()
                if row["drop_reason"] in ("exact_leak", "near_leak")
            }
        )
    assert found[0] == found[1] and ("exact_leak" in {reason for reason, _ in found[0].values()})
    assert "000020" in found[1]
