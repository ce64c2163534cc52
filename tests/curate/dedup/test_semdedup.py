"""dedup.semdedup against the paper's rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedup.semantic import semantic
from curate.dedup.semdedup import semdedup
from curate.pool import Edges, Pool
from manifests.errors import Refusal
from manifests.vectors import copies
from manifests.vectors.clusters import assign, kmeans
from manifests.vectors.store import Vectors
from tests.strategies import exact_unit_vectors, noisy_unit_vectors, uids, unit_pool

LOOSE = {"floor_cosine": -1.0, "iterations": 3}


def by_definition(pool, threshold, clusters, keeper="farthest"):
    """(keep, rival, score): the matrix of each cluster, its upper triangle, the maximum of each column."""
    z, n = pool.vectors("z"), len(pool)
    home, centre = assign(z, kmeans(z, clusters, uid_rank=pool.uid_rank, rng=pool.rng("clusters"), rounds=3))
    sign = {"farthest": 1, "nearest": -1}[keeper]
    keep, rival, score = np.ones(n, bool), np.full(n, -1), np.full(n, np.nan)
    for c in set(home.tolist()):
        rows = sorted(np.flatnonzero(home == c), key=lambda i: (not pool.fixed[i], sign * centre[i], pool.uid[i]))
        for place, j in enumerate(rows[1:], 1):
            similar = z.cosine(np.full(place, j), z, np.array(rows[:place]))
            if similar.max() > threshold and not pool.fixed[j]:
                keep[j], rival[j], score[j] = False, rows[int(similar.argmax())], similar.max()
    return keep, rival, score


def check(got, pool, want):
    keep, rival, score = want
    np.testing.assert_array_equal(got.keep, keep)
    np.testing.assert_array_equal(got.score, score)
    named = got.columns["semdedup_rival"].to_pylist()
    assert named == [None if k else pool.uid[r].decode() for k, r in zip(keep, rival, strict=True)]
    np.testing.assert_array_equal(got.witness, np.where(~keep & keep[rival], rival, -1))


def test_the_paper_drops_the_chain_and_the_star_does_not():
    """Rows at 0, 0.3, 0.6 rad; forty equal rows far away put the centre beyond them, so that this is their order."""
    angle = np.array([0, 0.3, 0.6, *[1.7] * 40])
    pool = unit_pool(np.stack([np.cos(angle), np.sin(angle)], 1), np.arange(43))
    got = semdedup(pool, vectors="z", min_cosine=0.95, clusters=1)
    assert got.keep[:3].tolist() == [True, False, False]
    assert got.columns["semdedup_rival"].to_pylist()[:3] == [None, pool.uid[0].decode(), pool.uid[1].decode()]
    assert got.witness[:3].tolist() == [-1, 0, -1]  # the rival of the third was itself dropped
    assert semantic(pool, vectors="z", min_cosine=0.95, clusters=1).keep[:3].tolist() == [True, False, True]


@settings(deadline=None)
@given(z=exact_unit_vectors(), k=st.integers(1, 20), threshold=st.sampled_from([-0.25, 0.0, 0.5, 0.75, 1.0]), data=st.data())
def test_semdedup_is_the_rule_to_the_last_tie(z, k, threshold, data):
    uid = np.array(data.draw(st.permutations(range(len(z)))))
    pool = unit_pool(z, uid, fixed=np.isin(np.arange(len(z)), data.draw(st.lists(st.integers(0, len(z) - 1), max_size=3))))
    keeper = data.draw(st.sampled_from(["farthest", "nearest"]))
    got = semdedup(pool, vectors="z", min_cosine=threshold, clusters=k, keeper=keeper, **LOOSE)
    check(got, pool, by_definition(pool, threshold, k, keeper))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), again=st.sampled_from([0, 90]), few=st.sampled_from([10, 1_000_000]), tile=st.sampled_from([16, 256]))
def test_crowds_tiles_and_row_order_reach_no_verdict(seed, again, few, tile):
    rng = np.random.default_rng(seed)
    z = noisy_unit_vectors(seed, 200, 10, 4, 0.04)
    z = np.concatenate([z, z[:again]])
    n = len(z)
    uid, order, fixed = rng.permutation(n), rng.permutation(n), rng.random(n) < 0.05
    pool = unit_pool(z, uid, fixed=fixed)
    given = {"vectors": "z", "min_cosine": 0.985, "floor_cosine": 0.97, "iterations": 3, "clusters": 6, "max_edges": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "FEW", few)
        patch.setattr(copies, "HIGH", tile)
        patch.setattr(copies, "WIDE", 2 * tile)
        got, other = semdedup(pool, **given), semdedup(unit_pool(z[order], uid[order], fixed=fixed[order]), **given)
    check(got, pool, by_definition(pool, 0.985, 6))
    np.testing.assert_array_equal(got.keep[order], other.keep)
    assert bool(got.edges.columns["is_complete"].all()) == (few > n)
    for threshold in (0.97, 0.98, 0.995):  # one edge a row is enough for every threshold from the floor up
        replayed = semdedup(Pool(uids(uid), None, {"z": Vectors.of(z)}, fixed=fixed, edges=got.edges), **given | {"min_cosine": threshold})
        check(replayed, pool, by_definition(pool, threshold, 6))


def test_complete_edges_replay_another_keeper_and_fewer_rows():
    z, uid = noisy_unit_vectors(3, 80, 6, 5, 0.1), np.random.default_rng(0).permutation(80)
    run = semdedup(unit_pool(z, uid), vectors="z", min_cosine=0.95, clusters=1, floor_cosine=0.8, iterations=3)
    live = np.arange(0, 80, 2)
    inside = (run.edges.a % 2 == 0) & (run.edges.b % 2 == 0)
    columns = {name: values[inside] for name, values in run.edges.columns.items()}
    stored = Edges(run.edges.a[inside] // 2, run.edges.b[inside] // 2, run.edges.score[inside], columns)
    got = semdedup(
        Pool(uids(uid[live]), None, {"z": Vectors.of(z[live])}, edges=stored),
        vectors="z",
        min_cosine=0.9,
        clusters=1,
        floor_cosine=0.8,
        keeper="nearest",
    )
    v = Vectors.of(z)
    _, centre = assign(v, kmeans(v, 1, uid_rank=np.argsort(np.argsort(uid)), rng=unit_pool(z, uid).rng("clusters"), rounds=3))
    order = sorted(live, key=lambda i: (-centre[i], uid[i]))
    for place, j in enumerate(order):
        best = max((v.cosine(np.array([j]), v, np.array([i]))[0] for i in order[:place]), default=-2)
        assert got.keep[j // 2] == (best <= 0.9)


def test_all_identical_one_row_and_none():
    got = semdedup(unit_pool(np.ones((50, 4)) / 2, np.arange(50)[::-1]), vectors="z")
    assert got.keep.sum() == 1 and got.keep[49] and (got.score[:49] == 1).all() and (got.witness[:49] == 49).all()
    assert semdedup(unit_pool(np.eye(4)[:1], [0]), vectors="z").keep.tolist() == [True]
    assert len(semdedup(unit_pool(np.zeros((0, 4)), []), vectors="z").keep) == 0


@pytest.mark.parametrize(
    "wrong", [{"min_cosine": 1.5}, {"min_cosine": 0.9}, {"floor_cosine": -2.0}, {"iterations": 0}, {"clusters": 0}, {"max_edges": 0}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(Refusal, match="bad-value"):
        semdedup(unit_pool(np.eye(4), range(4)), vectors="z", **wrong)


def test_too_little_memory_is_refused():
    with pytest.raises(Refusal, match="does-not-fit"):
        semdedup(unit_pool(np.eye(4), range(4), memory=1000), vectors="z")
