"""manifests.vectors.neighbours against all cosines, sorted."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.vectors import neighbours, products
from manifests.vectors.neighbours import knn, pairs_within
from manifests.vectors.store import Vectors, normalised
from tests.strategies import exact_unit_vectors, noisy_unit_vectors


def by_definition(queries, base, k, own, rank):
    cosine = normalised(queries.take64(np.arange(len(queries))) @ base.take64(np.arange(len(base))).T, queries.square[:, None], base.square[None])
    score, row = np.full((len(queries), k), -np.inf), np.full((len(queries), k), -1)
    for i, scores in enumerate(cosine):
        order = [j for j in np.lexsort((rank, -scores)) if j != own[i]][:k]
        score[i, : len(order)], row[i, : len(order)] = scores[order], order
    return score, row


def check(queries, base, k, rank, exclude, **more):
    own = np.arange(len(queries)) if exclude else np.full(len(queries), -1)
    ranks = {"query_uid_rank": rank, "base_uid_rank": rank} if exclude else {"base_uid_rank": rank}
    for got, want in zip(knn(queries, base, k, exclude_self=exclude, **ranks, **more), by_definition(queries, base, k, own, rank), strict=True):
        np.testing.assert_array_equal(got, want)


@settings(deadline=None)
@given(z=exact_unit_vectors(), k=st.integers(1, 6), exclude=st.booleans(), data=st.data())
def test_ties_go_to_the_smaller_uid(z, k, exclude, data):
    check(Vectors.of(z), Vectors.of(z), k, np.array(data.draw(st.permutations(range(len(z))))), exclude)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    dim=st.sampled_from([3, 40]),
    groups=st.sampled_from([1, 5, 200]),
    spread=st.sampled_from([1e-4, 0.02, 1.0]),
    tile=st.sampled_from([7, 64, 4096]),
    device=st.sampled_from(["cpu", "cpu:0"]),
)
def test_neither_tiles_nor_crowds_matter(seed, dim, groups, spread, tile, device):
    """Crowds closer than float32 can tell, sets of more than k equal rows, tiles of any size."""
    v = Vectors.of(noisy_unit_vectors(seed, 300, dim, groups, spread))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BASE", tile)
        patch.setattr(neighbours, "QUERIES", 2 * tile + 1)
        check(v, v, 5, np.random.default_rng(seed).permutation(300), seed % 2 == 0, device=device)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_the_torch_form_gives_the_same(monkeypatch, share):
    """Also where the device has no room for the base."""
    monkeypatch.setattr(products, "HELD", share)
    monkeypatch.setattr(neighbours, "BASE_THERE", 70)
    monkeypatch.setattr(neighbours, "TOGETHER", 9)
    v = Vectors.of(noisy_unit_vectors(3, 400, 16, 40, 0.3))
    monkeypatch.setattr(neighbours, "BASE", 90)
    want = knn(v.subset(np.arange(50)), v, 6)
    got = knn(v.subset(np.arange(50)), v, 6, device="cpu:0")
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_array_equal(got[1], want[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same():
    v = Vectors.of(noisy_unit_vectors(3, 20_000, 64, 400, 0.1))
    for got, want in zip(knn(v, v, 9, exclude_self=True, device="cuda"), knn(v, v, 9, exclude_self=True), strict=True):
        np.testing.assert_array_equal(got, want)


def test_self_is_found_by_uid_where_the_base_is_another_order():
    z = noisy_unit_vectors(5, 30, 8, 30, 0.5)
    order = np.random.default_rng(0).permutation(30)
    rows = np.array([4, 9, 20])
    score, row = knn(Vectors.of(z[rows]), Vectors.of(z[order]), 3, exclude_self=True, query_uid_rank=rows, base_uid_rank=order)
    for i, r in enumerate(rows):
        assert r not in order[row[i]]
    assert (score < 1).all()


def test_nothing_to_find():
    empty, some = Vectors.of(np.zeros((0, 4))), Vectors.of(np.eye(4))
    assert knn(empty, some, 3)[1].shape == (0, 3)
    assert (knn(some, empty, 3)[1] == -1).all()
    score, row = knn(some, some.subset(np.array([2])), 3)
    assert row[:, 0].tolist() == [0] * 4 and (row[:, 1:] == -1).all() and np.isneginf(score[:, 1:]).all()


@settings(max_examples=30, deadline=None)
@given(z=exact_unit_vectors(), base=exact_unit_vectors(), floor=st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]), tile=st.integers(1, 5))
def test_all_pairs_within_a_cosine(z, base, floor, tile):
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "RANGE", tile)
        patch.setattr(neighbours, "BASE", tile + 1)
        for query, row, cosine in pairs_within(Vectors.of(z), Vectors.of(base), floor):
            for pair in zip(query.tolist(), row.tolist(), strict=True):
                assert pair not in found
            found |= dict(zip(zip(query.tolist(), row.tolist(), strict=True), cosine.tolist(), strict=True))
    assert found == {(i, j): float(a @ b) for i, a in enumerate(z) for j, b in enumerate(base) if a @ b >= floor}
