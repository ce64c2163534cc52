"""dedup.all_pairs against the rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedup import all_pairs as module
from curate.dedup.all_pairs import all_pairs
from manifests.errors import Refusal
from manifests.star import star
from manifests.vectors.store import Vectors
from tests.strategies import exact_unit_vectors, noisy_unit_vectors, unit_pool


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


def check(z, uid, threshold, fixed, block, **more):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        got = all_pairs(unit_pool(z, uid, fixed=fixed), vectors="z", min_cosine=threshold, **more)
    order = keeper_order(z, uid, fixed)
    keep, witness, score, cosine = by_definition(z, order, threshold, fixed)
    np.testing.assert_array_equal(got.keep, keep)
    np.testing.assert_array_equal(got.witness, witness)
    np.testing.assert_array_equal(got.score, score)
    assert got.threshold == threshold
    return got, order, cosine


@settings(deadline=None)
@given(z=exact_unit_vectors(), threshold=st.sampled_from([1.0, 0.5, 0.25, 0.0, -1.0]), block=st.integers(1, 6), data=st.data())
def test_all_pairs_is_the_rule_to_the_last_tie(z, threshold, block, data):
    uid = np.array(data.draw(st.permutations(range(len(z)))))
    fixed = np.isin(np.arange(len(z)), data.draw(st.lists(st.integers(0, len(z) - 1), max_size=3)))
    check(z, uid, threshold, fixed, block, edge_margin=0.5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), spread=st.sampled_from([1e-4, 1e-3, 0.05]), groups=st.sampled_from([1, 30]), block=st.sampled_from([11, 64, 4096]))
def test_blocks_row_order_and_float32_reach_no_verdict(seed, spread, groups, block):
    """Thresholds that are themselves the cosine of a pair, among pairs that float32 cannot tell apart."""
    z, rng = noisy_unit_vectors(seed, 150, 24, groups, spread), np.random.default_rng(seed)
    v = Vectors.of(z)
    near = v.cosine(np.arange(149), v, np.arange(1, 150))
    threshold = float(near[near < 1].max(initial=0.99)) if seed % 2 else float(np.median(near))
    fixed = rng.random(150) < 0.05
    uid, order = rng.permutation(150), rng.permutation(150)
    one, _, _ = check(z, uid, threshold, fixed, block)
    two = all_pairs(unit_pool(z[order], uid[order], fixed=fixed[order]), vectors="z", min_cosine=threshold)
    np.testing.assert_array_equal(one.keep[order], two.keep)
    edges = sorted(zip(uid[one.edges.a], uid[one.edges.b], one.edges.score, strict=True))
    assert edges == sorted(zip(uid[order][two.edges.a], uid[order][two.edges.b], two.edges.score, strict=True))


@settings(max_examples=30, deadline=None)
@given(z=exact_unit_vectors(min_size=2), block=st.integers(1, 6), data=st.data())
def test_edges_replay_every_threshold_down_to_the_floor(z, block, data):
    uid = np.array(data.draw(st.permutations(range(len(z)))))
    fixed = np.zeros(len(z), bool)
    got, order, cosine = check(z, uid, 0.5, fixed, block, edge_margin=0.25, max_edges=99)
    rank = np.argsort(order)
    for threshold in (0.25, 0.5, 0.75, 1.0):
        some = got.edges.score >= threshold
        keep, witness, _ = star(rank, [(got.edges.a[some], got.edges.b[some], got.edges.score[some])])
        want = by_definition(z, order, threshold, fixed)
        np.testing.assert_array_equal(keep, want[0])
        if threshold == 0.5:
            np.testing.assert_array_equal(got.edges.score, cosine[got.edges.a, got.edges.b])
            np.testing.assert_array_equal(cosine[witness[~keep], ~keep], want[2][~keep])


def test_edges_are_bounded_and_hold_the_witness():
    z = noisy_unit_vectors(1, 120, 16, 1, 1e-3)
    got = all_pairs(unit_pool(z, np.arange(120)), vectors="z", min_cosine=0.99, max_edges=3)
    assert np.bincount(got.edges.b).max() <= 5  # three, the witness and the head of equal rows
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
    assert got.keep.sum() == 1 and got.keep[49] and (got.score[:49] == 1).all() and len(got.edges.a) == 49
    assert all_pairs(unit_pool(np.eye(4)[:1], [0]), vectors="z").keep.tolist() == [True]
    assert len(all_pairs(unit_pool(np.zeros((0, 4)), []), vectors="z").keep) == 0


def test_a_cosine_above_one_is_refused():
    with pytest.raises(Refusal, match="bad-value"):
        all_pairs(unit_pool(np.eye(4), range(4)), vectors="z", min_cosine=1.5)


def test_streamed_vectors_give_the_same_and_too_little_memory_is_refused(monkeypatch):
    z, uid = noisy_unit_vectors(8, 120, 16, 30, 1e-2), np.random.default_rng(0).permutation(120)
    copied = all_pairs(unit_pool(z, uid), vectors="z", min_cosine=0.99)
    monkeypatch.setattr(module, "_at_hand", lambda z, memory: z)
    streamed = all_pairs(unit_pool(z, uid), vectors="z", min_cosine=0.99)
    np.testing.assert_array_equal(copied.witness, streamed.witness)
    with pytest.raises(Refusal, match="does-not-fit"):
        all_pairs(unit_pool(z, uid, memory=1000), vectors="z")
