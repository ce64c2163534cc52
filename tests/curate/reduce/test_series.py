"""reduce.series against the walk as Less is More describes it."""

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import curate
from curate.ingest.ingest import ingest
from curate.pool import Edges, Pool
from curate.recipe import parse_recipe
from curate.reduce.series import MOVES, REASONS, WRITES, series
from curate.replaying import replay
from manifests.errors import Refusal
from manifests.run import open_run
from manifests.vectors.hamming import distances
from tests.pools import assert_lawful, pool_of, shuffled
from tests.small_pool import write_pool

CODES = [bytes([0, 0]), bytes([1, 0]), bytes([3, 0]), bytes([7, 0]), bytes([15, 0]), bytes([255, 1])]


def by_definition(codes, group, order, uid, fixed, most):
    """(kept rows, witness, distance): keep the first, delete every remaining one within `most` bits, go on."""
    distance = distances(codes[:, None], codes[None])
    kept, witness, score = [], {}, {}
    for name in sorted(set(group)):
        remaining = [r for r in range(len(group)) if group[r] == name]
        remaining.sort(key=lambda r: (r not in fixed, order[r], uid[r]))
        walk = list(remaining)
        while remaining:
            first, *remaining = remaining
            kept.append(first)
            remaining = [r for r in remaining if distance[first, r] > most or r in fixed]
        for row in [r for r in walk if r not in kept]:
            before = [e for e in walk[: walk.index(row)] if e in kept]
            witness[row] = min(before, key=lambda e: (distance[e, row], walk.index(e)))
            score[row] = distance[witness[row], row]
    return sorted(kept), witness, score


def check(got, codes, group, order, uid, fixed, most):
    kept, witness, score = by_definition(codes, group, order, uid, fixed, most)
    assert np.flatnonzero(got.keep).tolist() == kept
    dropped = np.flatnonzero(~got.keep)
    assert {r: got.witness[r] for r in dropped.tolist()} == witness
    assert {r: got.score[r] for r in dropped.tolist()} == score
    assert (got.score[dropped] <= got.threshold).all()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_walk_is_the_rule_to_the_last_tie(data):
    n = data.draw(st.integers(1, 14))
    codes = np.frombuffer(b"".join(data.draw(st.lists(st.sampled_from(CODES), min_size=n, max_size=n))), np.uint8).reshape(n, 2)
    group = data.draw(st.lists(st.sampled_from("ab"), min_size=n, max_size=n))
    number = data.draw(st.lists(st.sampled_from([1, 2, 10, 11]), min_size=n, max_size=n))
    uid, fixed = data.draw(st.permutations(range(n))), sorted(data.draw(st.sets(st.integers(0, n - 1), max_size=2)))
    most = data.draw(st.integers(0, 4))
    pool = {"order": uid, "fixed": fixed, "size": n, "dhash": codes, "patient": group, "slice": [f"s{i}.png" for i in number]}

    got = series(pool_of(**pool), group="patient", order="slice", max_distance=most, floor_distance=4)

    check(got, codes, group, number, uid, fixed, most)
    assert_lawful(pool_of(**pool), got, REASONS)
    at = data.draw(st.permutations(range(n)))
    moved = series(pool_of(**shuffled(pool, at)), group="patient", order="slice", max_distance=most, floor_distance=4)
    assert moved.keep.tolist() == got.keep[list(at)].tolist()
    assert [at[w] if w >= 0 else -1 for w in moved.witness] == got.witness[list(at)].tolist()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 999), most=st.integers(0, 8))
def test_another_threshold_over_stored_edges_is_the_walk_of_the_rows_that_are_left(seed, most):
    rng = np.random.default_rng(seed)
    codes = np.array([np.frombuffer(CODES[i], np.uint8) for i in rng.integers(0, len(CODES), 30)])
    group, number = rng.integers(0, 3, 30), rng.integers(0, 5, 30)
    first = series(pool_of(dhash=codes, patient=group, slice=number), group="patient", order="slice", max_distance=3, floor_distance=8)
    left = np.flatnonzero(rng.random(30) < 0.7)
    place = np.full(30, -1)
    place[left] = np.arange(len(left))
    a, b = place[first.edges.a], place[first.edges.b]
    both = (a >= 0) & (b >= 0)
    flip = rng.random(both.sum()) < 0.5
    edges = Edges(np.where(flip, b[both], a[both]), np.where(flip, a[both], b[both]), first.edges.score[both])
    full = pool_of(dhash=codes[left], patient=group[left], slice=number[left], order=left)
    replay = Pool(full.uid, full.table, edges=edges)
    assert MOVES == {"max_distance": "floor_distance", "order": ""}
    got = series(replay, group="patient", order="slice", max_distance=most)
    check(got, codes[left], group[left], number[left], left, [], most)


def test_slice_ten_comes_after_slice_two():
    """The walk is 1, 2, 10: slice 2 stays and 10, its twin, leaves. As text it would be 1, 10, 2, and 2 would leave."""
    codes = np.array([[1], [3], [0xF0]], np.uint8)
    got = series(pool_of(dhash=codes, p=["x"] * 3, key=["s10", "s2", "s1"]), group="p", max_distance=1, floor_distance=1)
    assert got.keep.tolist() == [False, True, True]
    assert got.witness.tolist() == [1, -1, -1]


def test_groups_never_meet_and_identical_rows_leave_one_a_group():
    got = series(pool_of(dhash=np.zeros((40, 8), np.uint8), patient=[i % 4 for i in range(40)], key=[f"{i}" for i in range(40)]), group="patient")
    assert np.flatnonzero(got.keep).tolist() == [0, 1, 2, 3]
    assert (got.witness[4:] == np.arange(4, 40) % 4).all()
    assert (got.score[4:] == 0).all()
    assert series(pool_of(dhash=np.zeros((1, 8), np.uint8), patient=["x"], key=["1"]), group="patient").keep.all()
    assert len(series(pool_of(dhash=np.zeros((0, 8), np.uint8), patient=[], key=[]), group="patient").keep) == 0


@pytest.mark.parametrize(("most", "floor"), [(7, 6), (-1, 6)])
def test_a_floor_below_the_threshold_is_refused(most, floor):
    with pytest.raises(Refusal, match=r"reduce.series.*0 <= max_distance <= floor_distance \[bad-value\]"):
        series(pool_of(dhash=np.zeros((2, 8), np.uint8), p=["x"] * 2, key=["1", "2"]), group="p", max_distance=most, floor_distance=floor)


def test_codes_that_are_no_hashes_are_refused():
    with pytest.raises(Refusal, match=r"codes: label holds no hashes.*\[bad-value\]"):
        series(pool_of(label=[3, 4], p=["x"] * 2, key=["1", "2"]), group="p", codes="label")


def test_more_pairs_than_the_memory_holds_are_refused_before_they_are_looked_for():
    crowd = np.zeros((2000, 8), np.uint8)
    many = {"dhash": crowd, "p": ["x"] * 2000, "key": [str(i) for i in range(2000)]}
    with pytest.raises(Refusal, match=r"reduce.series: needs 277 MiB; --memory allows 100 MiB.*\[does-not-fit\]"):
        series(pool_of(memory=100 << 20, **many), group="p")
    many["dhash"] = np.random.default_rng(0).integers(0, 256, (2000, 8), dtype=np.uint8)  # as many rows, but no pair is near
    assert series(pool_of(memory=100 << 20, **many), group="p").keep.all()


def test_a_missing_group_is_refused_and_a_build_goes_group_by_group(tmp_path):
    with pytest.raises(Refusal, match=r"r.yaml:3: reduce.series: 'group' is missing; it takes a column's name \[bad-value\]"):
        parse_recipe("format: 1\nstages:\n  - reduce.series: {order: key}\n", "r.yaml")
    write_pool(tmp_path / "pool")
    recipe = tmp_path / "r.yaml"

    def build(out: str, **given):
        stages = ["measure.difference_hash", {"reduce.series": {"order": "quality_vote", "max_distance": 20, "floor_distance": 20, **given}}]
        recipe.write_text(yaml.safe_dump({"format": 1, "stages": stages, "shards": False}))
        return curate.build(recipe, pool=str(tmp_path / "pool"), out=tmp_path / out, workers=1, quiet=True, device="cpu")

    with pytest.raises(Refusal, match=r"reduce.series: reads column 'patient', which no earlier stage.*\[unknown-column\]"):
        build("refused", group="patient")
    run = build("run", group="group", protect="label = 1")
    rows = {r["uid"]: r for r in run.ledger().to_pylist()}
    dropped = [r for r in rows.values() if r["status"] == "dropped"]
    assert dropped and all(r["label"] != 1 and r["drop_reason"] == "redundant" for r in dropped)
    for row in dropped:
        kept = rows[row["witness"]]
        assert kept["status"] == "kept" and kept["group"] == row["group"] and (kept["label"] == 1 or kept["quality_vote"] <= row["quality_vote"])
        assert row["score"] <= row["threshold"] == 20
    assert WRITES == {}
    again = replay(run.path, settings=["reduce.series.max_distance=9"], out=tmp_path / "replayed")
    assert again["how"] == {"reduce.series": "folded"}
    assert open_run(tmp_path / "replayed").ledger().equals(build("lower", group="group", protect="label = 1", max_distance=9).ledger())
    with pytest.raises(Refusal, match=r"max_distance: 21 lies beyond the pairs.*floor_distance.*\[not-replayable\]"):
        replay(run.path, settings=["reduce.series.max_distance=21"])
    alone = build("alone", group="label", within="group")
    assert all(
        rows[r["witness"]]["label"] == r["label"] and rows[r["witness"]]["group"] == r["group"] for r in alone.ledger().to_pylist() if r["witness"]
    )


def test_the_recipe_for_slices_thins_each_volume_by_itself(tmp_path):
    """Two volumes of 16-bit slices in folders, named slice_1 to slice_12; the second is the first once more."""
    rng = np.random.default_rng(0)
    for patient in ("a", "b"):
        (tmp_path / "scans" / patient).mkdir(parents=True)
    for number in range(12):
        if number % 4 == 0:
            values = rng.integers(900, 1300, (32, 32)).astype(np.uint16)
        for patient in ("a", "b"):
            Image.fromarray(values + np.uint16(number % 4)).save(tmp_path / "scans" / patient / f"slice_{number + 1}.png")
    ingest(str(tmp_path / "scans"), to=tmp_path / "pool", quiet=True)
    settings = ["measure.difference_hash.window=[1100, 400]"]
    run = curate.build("slices", pool=str(tmp_path / "pool"), out=tmp_path / "run", settings=settings, workers=1, quiet=True, device="cpu")
    rows = run.ledger().to_pylist()
    kept = sorted(r["key"] for r in rows if r["status"] == "kept")
    assert kept == [f"{p}_slice_{i}" for p in "ab" for i in (1, 5, 9)]
    name = {r["uid"]: r["key"] for r in rows}
    assert {r["key"]: name[r["witness"]] for r in rows if r["witness"]}["b_slice_12"] == "b_slice_9"
