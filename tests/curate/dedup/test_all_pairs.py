"""dedup.all_pairs against the rule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedup import all_pairs as module
from curate.dedup.all_pairs import all_pairs
from curate.pool import Edges, Pool
from manifests.errors import Refusal
from manifests.vectors import copies as copies_module
from manifests.vectors import products
from manifests.vectors.store import Vectors
from tests.strategies import exact_unit_vectors, noisy_unit_vectors, uids, unit_pool


def keeper_order(z, uid, fixed):
    """Protected rows, then uid; equal rows at the place of the first of them."""
    order = np.lexsort((uid, ~fixed)).tolist()
    first = [next(p for p, e in enumerate(order) if (np.float16(z[e]) == np.float16(z[row])).all()) for row in order]
    return [order[p] for p in np.argsort(first, kind="stable")]


def by_definition(z, order, threshold, fixed):
    """(keep, witness, score), rows walked in keeper order, cosines in float64."""
    v = Vectors.of(z)
    a, b = np.divmod(np.arange(len(z) ** 2), len(z))
    cosine = v.cosine(a, v, b).reshape(len(z), len(z))
    keep, witness, score = np.zeros(len(z), bool), np.full(len(z), -1), np.full(len(z), np.nan)
    for place, row in enumerate(order):
        kept = [(cosine[row, e], -p, e) for p, e in enumerate(order[:place]) if keep[e] and cosine[row, e] >= threshold]
        keep[row] = fixed[row] or not kept
        if not keep[row]:
            score[row], _, witness[row] = max(kept)
    return keep, witness, score, cosine


def check(z, uid, threshold, fixed, block, gap=0.02, device=False, **more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        patch.setattr(products, "BLOCK", block)
        patch.setattr(products, "WIDE", 3 * block)
        if device:
            patch.setattr(module, "products", lambda z, high, device: products.OnDevice(z, "cpu:0"))  # torch's form, on the CPU
        got = all_pairs(unit_pool(z, uid, fixed=fixed), vectors="z", min_cosine=threshold, floor_cosine=max(-1.0, threshold - gap), **more)
    order = keeper_order(z, uid, fixed)
    keep, witness, score, cosine = by_definition(z, order, threshold, fixed)
    np.testing.assert_array_equal(got.keep, keep)
    np.testing.assert_array_equal(got.witness, witness)
    np.testing.assert_array_equal(got.score, score)
    assert got.threshold == threshold
    return got, order, cosine


@settings(deadline=None)
@given(z=exact_unit_vectors(), threshold=st.sampled_from([1.0, 0.5, 0.25, 0.0, -1.0]), block=st.integers(1, 6), device=st.booleans(), data=st.data())
def test_all_pairs_is_the_rule_to_the_last_tie(z, threshold, block, device, data):
    uid = np.array(data.draw(st.permutations(range(len(z)))))
    fixed = np.isin(np.arange(len(z)), data.draw(st.lists(st.integers(0, len(z) - 1), max_size=3)))
    check(z, uid, threshold, fixed, block, gap=0.5, device=device)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999), spread=st.sampled_from([1e-4, 1e-3, 0.05]), groups=st.sampled_from([1, 30]), block=st.sampled_from([11, 64, 4096]),
    device=st.booleans(),
)  # fmt: skip
def test_blocks_row_order_and_low_precision_reach_no_verdict(seed, spread, groups, block, device):
    """Thresholds that are themselves the cosine of a pair, among pairs that float32 cannot tell apart."""
    z, rng = noisy_unit_vectors(seed, 150, 24, groups, spread), np.random.default_rng(seed)
    v = Vectors.of(z)
    near = v.cosine(np.arange(149), v, np.arange(1, 150))
    threshold = float(near[near < 1].max(initial=0.99)) if seed % 2 else float(np.median(near))
    fixed = rng.random(150) < 0.05
    uid, order = rng.permutation(150), rng.permutation(150)
    one, _, _ = check(z, uid, threshold, fixed, block, device=device)
    two = all_pairs(unit_pool(z[order], uid[order], fixed=fixed[order]), vectors="z", min_cosine=threshold, floor_cosine=max(-1.0, threshold - 0.02))
    np.testing.assert_array_equal(one.keep[order], two.keep)
    assert pairs_by_uid(uid, one.edges) == pairs_by_uid(uid[order], two.edges)


def pairs_by_uid(uid, edges):
    return sorted((min(a, b), max(a, b), s) for a, b, s in zip(uid[edges.a].tolist(), uid[edges.b].tolist(), edges.score.tolist(), strict=True))


@settings(max_examples=30, deadline=None)
@given(z=exact_unit_vectors(min_size=2), block=st.integers(1, 6), data=st.data())
def test_complete_edges_replay_every_threshold_and_every_subset(z, block, data):
    uid = np.array(data.draw(st.permutations(range(len(z)))))
    got, _, cosine = check(z, uid, 0.5, np.zeros(len(z), bool), block, gap=0.25)
    assert got.edges.columns["is_complete"].all()
    a, b = np.nonzero(np.triu(cosine >= 0.25, 1))
    assert pairs_by_uid(uid, got.edges) == sorted((min(x, y), max(x, y), s) for x, y, s in zip(uid[a], uid[b], cosine[a, b], strict=True))
    live = np.array(sorted(data.draw(st.sets(st.integers(0, len(z) - 1), min_size=1))))
    place = np.full(len(z), -1)
    place[live] = np.arange(len(live))
    inside = (place[got.edges.a] >= 0) & (place[got.edges.b] >= 0)
    columns = {name: values[inside] for name, values in got.edges.columns.items()}
    stored = Edges(place[got.edges.a[inside]], place[got.edges.b[inside]], got.edges.score[inside], columns)
    for threshold in (0.25, 0.5, 0.75, 1.0):
        replayed = all_pairs(
            Pool(uids(uid[live]), None, {"z": Vectors.of(z[live])}, edges=stored), vectors="z", min_cosine=threshold, floor_cosine=0.25
        )
        keep, witness, score, _ = by_definition(
            z[live], keeper_order(z[live], uid[live], np.zeros(len(live), bool)), threshold, np.zeros(len(live), bool)
        )
        np.testing.assert_array_equal(replayed.keep, keep)
        np.testing.assert_array_equal(replayed.witness, witness)
        np.testing.assert_array_equal(replayed.score, score)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999), copies=st.sampled_from([0, 60]), block=st.sampled_from([11, 4096]), most=st.sampled_from([1, 3]), device=st.booleans()
)
def test_a_crowd_is_decided_exactly_from_few_edges(seed, copies, block, most, device):
    rng, fixed = np.random.default_rng(seed), np.zeros(120 + copies, bool)
    z = noisy_unit_vectors(seed, 120, 16, 1, 0.03)
    z, uid = np.concatenate([z, z[:copies]]), rng.permutation(120 + copies)
    fixed[rng.integers(0, len(z), 4)] = True
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies_module, "FEW", 100)
        got, order, cosine = check(z, uid, 0.99, fixed, block, device=device, max_edges=most)
    assert not got.edges.columns["is_complete"].any()
    assert np.bincount(got.edges.b).max() <= most + 2  # the first ones, the witness, the head of equal rows
    np.testing.assert_array_equal(got.edges.score, cosine[got.edges.a, got.edges.b])
    pairs = set(zip(got.edges.a.tolist(), got.edges.b.tolist(), strict=True))
    assert {(int(got.witness[i]), int(i)) for i in np.flatnonzero(~got.keep)} <= pairs


def test_the_preferred_and_the_protected_are_kept():
    z = np.ones((4, 4)) / 2
    columns = {"num_pixels": np.array([10, 30, 30, 20])}
    got = all_pairs(unit_pool(z, [0, 2, 1, 3], columns), vectors="z", prefer=["num_pixels"])
    assert got.keep.tolist() == [False, False, True, False] and got.witness.tolist() == [2, 2, -1, 2]
    got = all_pairs(unit_pool(z, [0, 2, 1, 3], columns, fixed=np.array([True, False, False, True])), vectors="z", prefer=["num_pixels"])
    assert got.keep.tolist() == [True, False, False, True] and got.witness.tolist() == [-1, 3, 3, -1]


def test_all_identical_one_row_and_none():
    got = all_pairs(unit_pool(np.ones((50, 4)) / 2, np.arange(50)[::-1]), vectors="z")
    assert got.keep.sum() == 1 and got.keep[49] and (got.score[:49] == 1).all() and len(got.edges.a) == 50 * 49 // 2
    assert all_pairs(unit_pool(np.eye(4)[:1], [0]), vectors="z").keep.tolist() == [True]
    assert len(all_pairs(unit_pool(np.zeros((0, 4)), []), vectors="z").keep) == 0


@pytest.mark.parametrize("wrong", [{"min_cosine": 1.5}, {"min_cosine": 0.5}, {"floor_cosine": -1.5}, {"max_edges": 0}])
def test_what_no_cosine_can_be_is_refused(wrong):
    with pytest.raises(Refusal, match="bad-value"):
        all_pairs(unit_pool(np.eye(4), range(4)), vectors="z", **wrong)


def test_streamed_vectors_give_the_same_and_too_little_memory_is_refused(monkeypatch):
    z, uid = noisy_unit_vectors(8, 120, 16, 30, 1e-2), np.random.default_rng(0).permutation(120)
    copied = all_pairs(unit_pool(z, uid), vectors="z", min_cosine=0.99)
    monkeypatch.setattr(module, "_at_hand", lambda z, memory: z)
    streamed = all_pairs(unit_pool(z, uid), vectors="z", min_cosine=0.99)
    np.testing.assert_array_equal(copied.witness, streamed.witness)
    with pytest.raises(Refusal, match="does-not-fit"):
        all_pairs(unit_pool(z, uid, memory=1000), vectors="z")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same():
    z, uid = noisy_unit_vectors(3, 20_000, 64, 400, 0.1), np.arange(20_000)
    want = all_pairs(unit_pool(z, uid), vectors="z")
    got = all_pairs(Pool(uids(uid), None, {"z": Vectors.of(z)}, device="cuda"), vectors="z")
    for name in ("keep", "witness", "score"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert pairs_by_uid(uid, got.edges) == pairs_by_uid(uid, want.edges)
