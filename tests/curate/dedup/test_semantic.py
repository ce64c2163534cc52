"""dedup.semantic against the rule, and at recall 1 against all pairs."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedup.all_pairs import all_pairs
from curate.dedup.semantic import semantic
from curate.pool import Edges, Pool, Share
from manifests.errors import Refusal
from manifests.vectors import clusters, copies
from manifests.vectors.store import Vectors
from tests.benchmarks.bench_semantic import features
from tests.strategies import exact_unit_vectors, noisy_unit_vectors, uids, unit_pool

LOOSE = {"min_cosine": 0.5, "floor_cosine": 0.25}


def same(got, want):
    np.testing.assert_array_equal(got.keep, want.keep)
    np.testing.assert_array_equal(got.witness, want.witness)
    np.testing.assert_array_equal(got.score, want.score)


def pairs_by_uid(uid, edges):
    return sorted((min(a, b), max(a, b), s) for a, b, s in zip(uid[edges.a].tolist(), uid[edges.b].tolist(), edges.score.tolist(), strict=True))


def fixed_rows(rng, n):
    return rng.random(n) < 0.05


@settings(deadline=None)
@given(z=exact_unit_vectors(), k=st.integers(1, 20), device=st.sampled_from(["cpu", "cpu:0"]), data=st.data())
def test_at_recall_one_it_is_all_pairs_to_the_last_tie(z, k, device, data):
    """Also with more clusters than points, and by way of torch."""
    uid = np.array(data.draw(st.permutations(range(len(z)))))
    fixed = np.isin(np.arange(len(z)), data.draw(st.lists(st.integers(0, len(z) - 1), max_size=3)))
    got = semantic(unit_pool(z, uid, fixed=fixed, device=device), vectors="z", keeper="uid", recall=1.0, clusters=k, **LOOSE)
    want = all_pairs(unit_pool(z, uid, fixed=fixed), vectors="z", **LOOSE)
    same(got, want)
    assert got.edges.columns["is_complete"].all() and pairs_by_uid(uid, got.edges) == pairs_by_uid(uid, want.edges)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999), groups=st.sampled_from([1, 40]), spread=st.sampled_from([1e-4, 0.05, 0.3]), k=st.sampled_from([1, 7, 60]),
    tile=st.sampled_from([16, 4096]),
)  # fmt: skip
def test_neither_clusters_row_order_nor_tiles_matter_at_recall_one(seed, groups, spread, k, tile):
    """At a threshold that is itself the cosine of a pair."""
    z, rng = noisy_unit_vectors(seed, 400, 12, groups, spread), np.random.default_rng(seed)
    v = Vectors.of(z)
    near = v.cosine(np.arange(399), v, np.arange(1, 400))
    threshold = float(np.sort(near)[-20 - seed % 40])
    fixed, uid, order = fixed_rows(rng, 400), rng.permutation(400), rng.permutation(400)
    given = {"min_cosine": threshold, "floor_cosine": max(-1.0, threshold - 0.01)}
    want = all_pairs(unit_pool(z, uid, fixed=fixed), vectors="z", **given)
    same(semantic(unit_pool(z, uid, fixed=fixed), vectors="z", keeper="uid", recall=1.0, clusters=k, **given), want)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "HIGH", tile)
        patch.setattr(copies, "WIDE", 2 * tile)
        patch.setattr(copies, "TOGETHER", 3)
        patch.setattr(clusters, "BLOCK", tile + 1)
        one = semantic(unit_pool(z, uid, fixed=fixed), vectors="z", clusters=k, **given)
        other = semantic(unit_pool(z[order], uid[order], fixed=fixed[order]), vectors="z", clusters=k, **given)
    np.testing.assert_array_equal(one.keep[order], other.keep)
    np.testing.assert_array_equal(one.score[order], other.score)
    assert pairs_by_uid(uid, one.edges) == pairs_by_uid(uid[order], other.edges)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    again=st.sampled_from([0, 80]),
    keeper=st.sampled_from(["farthest", "nearest", "random", "uid"]),
    most=st.sampled_from([1, 4]),
)
def test_a_crowd_is_decided_from_few_edges_as_from_all(seed, again, keeper, most):
    rng = np.random.default_rng(seed)
    z = noisy_unit_vectors(seed, 200, 10, 2, 0.04)
    z, uid = np.concatenate([z, z[:again]]), rng.permutation(200 + again)
    pool = unit_pool(z, uid, {"size": rng.integers(0, 3, len(z))}, fixed=fixed_rows(rng, len(z)))
    given = {"vectors": "z", "min_cosine": 0.99, "floor_cosine": 0.97, "clusters": 6, "keeper": keeper, "prefer": ["size"] if seed % 2 else []}
    want = semantic(pool, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "FEW", 10)
        got = semantic(pool, max_edges=most, **given)
        pool.device = "cpu:0"  # proposed by torch, in float16
        same(semantic(pool, max_edges=most, **given), want)
    same(got, want)
    assert want.edges.columns["is_complete"].all() and not got.edges.columns["is_complete"].any()
    assert np.bincount(got.edges.b).max() <= most + 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), data=st.data())
def test_stored_edges_replay_other_settings_and_fewer_rows(seed, data):
    """The clusters are those of the run: the replay is the star over the pairs that were found."""
    rng = np.random.default_rng(seed)
    z, uid = noisy_unit_vectors(seed, 60, 6, 8, 0.1), rng.permutation(60)
    size = rng.integers(0, 3, 60)
    run = semantic(unit_pool(z, uid, {"size": size}), vectors="z", min_cosine=0.95, floor_cosine=0.8, clusters=4)
    live = np.flatnonzero(rng.random(60) < 0.7)
    place = np.full(60, -1)
    place[live] = np.arange(len(live))
    inside = (place[run.edges.a] >= 0) & (place[run.edges.b] >= 0)
    columns = {name: values[inside] for name, values in run.edges.columns.items()}
    stored = Edges(place[run.edges.a[inside]], place[run.edges.b[inside]], run.edges.score[inside], columns)
    threshold = data.draw(st.sampled_from([0.8, 0.9, 0.99, 1.0]))
    pool = Pool(uids(uid[live]), {"size": size[live]}, {"z": Vectors.of(z[live])}, edges=stored)
    got = semantic(pool, vectors="z", min_cosine=threshold, floor_cosine=0.8, keeper="uid", prefer=["size"])
    near = {
        (int(a), int(b)): s
        for a, b, s in zip(*(np.concatenate([x, y]) for x, y in ((stored.a, stored.b), (stored.b, stored.a))), np.tile(stored.score, 2), strict=True)
    }
    order = sorted(range(len(live)), key=lambda i: (-size[live[i]], uid[live[i]]))
    first = [next(p for p, e in enumerate(order) if (np.float16(z[live[e]]) == np.float16(z[live[row]])).all()) for row in order]
    order = [order[p] for p in np.argsort(first, kind="stable")]
    kept: list[int] = []
    for row in order:
        hits = [(near[e, row], -p, e) for p, e in enumerate(kept) if near.get((e, row), -2) >= threshold]
        assert got.keep[row] == (not hits)
        if hits:
            assert got.score[row] == max(hits)[0] and got.witness[row] == max(hits)[2]
        else:
            kept.append(row)


def test_the_keeper_is_the_farthest_the_nearest_the_preferred_or_the_protected():
    z = np.array([[1, 0, 0], [0.995, 0.1, 0], [0.98, 0.2, 0], *[[0.9, 0.43, 0.0]] * 5])
    z /= np.linalg.norm(z, axis=1, keepdims=True)

    def kept(columns=None, fixed=None, **more):
        pool = unit_pool(z[:4], [3, 2, 1, 0], columns, fixed=fixed)
        return np.flatnonzero(semantic(pool, vectors="z", min_cosine=0.97, floor_cosine=0.9, clusters=1, **more).keep).tolist()

    assert kept() == [0, 3] and kept(keeper="nearest")[0] == 2 and 3 in kept(keeper="uid")
    assert kept({"size": np.array([0, 5, 0, 0])}, prefer=["size"])[0] == 1
    assert kept(fixed=np.array([True, True, False, False])) == [0, 1, 3]


def test_random_keepers_follow_the_seed_and_not_the_row_order():
    z = noisy_unit_vectors(0, 300, 16, 10, 0.01)
    pools = [Pool(uids(np.arange(300)), None, {"z": Vectors.of(z)}, seed=seed) for seed in (1, 1, 2)]
    one, again, other = (semantic(pool, vectors="z", keeper="random").keep for pool in pools)
    assert (one == again).all() and (one != other).any()


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0, 40])
def test_the_threshold_of_a_share_is_found(share):
    z = noisy_unit_vectors(4, 300, 8, 60, 0.2)
    pool = unit_pool(z, np.random.default_rng(0).permutation(300))
    got = semantic(pool, vectors="z", keep=Share.parse(share, ""), floor_cosine=0.0, keeper="uid", clusters=5)
    budget = Share.parse(share, "").of(300)
    assert got.keep.sum() <= budget
    if budget < 300:
        at, above = (
            semantic(pool, vectors="z", min_cosine=min(t, 1.0), floor_cosine=0.0, keeper="uid", clusters=5)
            for t in (got.threshold, got.threshold + 2.0**-13)
        )
        same(at, got)
        assert above.keep.sum() > budget


def test_a_share_that_the_floor_cannot_reach_is_refused():
    with pytest.raises(Refusal, match="stay even at floor_cosine"):
        semantic(unit_pool(np.eye(8), np.arange(8)), vectors="z", keep=Share(count=2))


def test_the_stated_recall_is_reached_on_features():
    z = features(8000)
    pool = unit_pool(z, np.random.default_rng(0).permutation(8000))
    found, truth = (pairs_of(method(pool, vectors="z", min_cosine=0.9, floor_cosine=0.9)) for method in (semantic, all_pairs))
    assert found <= truth and len(truth) >= 800 and len(found) >= 0.99 * len(truth)


def pairs_of(verdicts):
    return {(min(a, b), max(a, b)) for a, b in zip(verdicts.edges.a.tolist(), verdicts.edges.b.tolist(), strict=True)}


def test_all_identical_one_row_and_none():
    got = semantic(unit_pool(np.ones((50, 4)) / 2, np.arange(50)[::-1]), vectors="z", clusters=7)
    assert got.keep.sum() == 1 and got.keep[49] and (got.score[:49] == 1).all() and (got.witness[:49] == 49).all()
    assert semantic(unit_pool(np.eye(4)[:1], [0]), vectors="z").keep.tolist() == [True]
    assert len(semantic(unit_pool(np.zeros((0, 4)), []), vectors="z").keep) == 0


@pytest.mark.parametrize(
    "wrong", [{"min_cosine": 1.5}, {"min_cosine": 0.9}, {"floor_cosine": -2.0}, {"recall": 0.0}, {"recall": 1.1}, {"clusters": 0}, {"max_edges": 0}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(Refusal, match="bad-value"):
        semantic(unit_pool(np.eye(4), range(4)), vectors="z", **wrong)


def test_a_target_that_only_a_threshold_above_the_floor_reaches_is_no_refusal():
    """B leaves for A at the floor, and frees its six neighbours; a little higher B stays, and they leave for it."""
    far, near = np.arccos(0.945), np.arccos(0.975)
    ahead, aside = np.array([-np.sin(far), np.cos(far), 0]), np.array([0, 0, 1])
    b = np.array([np.cos(far), np.sin(far), 0])
    turns = np.deg2rad(np.arange(-75, 105, 30))[:, None]
    z = np.concatenate([[[1, 0, 0], b], np.cos(near) * b + np.sin(near) * (np.cos(turns) * ahead + np.sin(turns) * aside)])
    pool, floor = unit_pool(z, np.arange(8)), {"vectors": "z", "floor_cosine": 0.94, "keeper": "uid"}
    assert semantic(pool, min_cosine=0.94, **floor).keep.sum() > 2 == semantic(pool, min_cosine=0.96, **floor).keep.sum()
    assert semantic(pool, keep=Share(count=2), **floor).keep.sum() == 2
    with pytest.raises(Refusal, match="stay even at floor_cosine"):
        semantic(pool, keep=Share(count=1), **floor)


def test_an_implausible_share_is_warned_of_and_plain_copies_are_not():
    rng = np.random.default_rng(0)
    crowd = noisy_unit_vectors(1, 1200, 64, 1, 0.1)
    with pytest.warns(UserWarning, match=r"dedup.semantic: 0.95 drops \d+% of 1200 rows"):
        semantic(unit_pool(crowd, rng.permutation(1200)), vectors="z", min_cosine=0.95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        semantic(unit_pool(np.repeat(noisy_unit_vectors(1, 300, 64, 300, 0.0), 4, axis=0), rng.permutation(1200)), vectors="z")


def test_too_little_memory_is_refused_before_any_work():
    with pytest.raises(Refusal, match="Give --memory"):
        semantic(unit_pool(noisy_unit_vectors(0, 100, 8, 3, 0.1), range(100), memory=1000), vectors="z")


class Killed:
    """Publishes like `Scratch`, and dies at the n-th publication."""

    def __init__(self, kept, after):
        self.kept, self.after = kept, after

    def load(self, name):
        return self.kept.get(name)

    def save(self, name, round, state):
        if not self.after:
            raise KeyboardInterrupt
        self.after -= 1
        self.kept[name] = round, tuple(np.array(a) for a in state)

    def due(self):
        return True


@pytest.mark.parametrize("few", [1_000_000, 10])
def test_a_killed_decision_goes_on_to_the_same_verdicts(few, monkeypatch):
    monkeypatch.setattr(copies, "TOGETHER", 2)
    monkeypatch.setattr(copies, "FEW", few)
    z, uid = noisy_unit_vectors(3, 300, 10, 5, 0.05), np.random.default_rng(1).permutation(300)
    given = {"vectors": "z", "min_cosine": 0.97, "floor_cosine": 0.93, "clusters": 8, "max_edges": 2}
    want, kept, deaths = semantic(unit_pool(z, uid), **given), {}, 0
    while True:
        pool = Pool(uids(uid), None, {"z": Vectors.of(z)}, keeper=Killed(kept, 1))
        try:
            got = semantic(pool, **given)
            break
        except KeyboardInterrupt:
            deaths += 1
    same(got, want)
    assert deaths >= 3 and pairs_by_uid(uid, got.edges) == pairs_by_uid(uid, want.edges)


def test_the_torch_form_gives_the_same():
    z, uid = noisy_unit_vectors(3, 400, 16, 40, 0.1), np.arange(400)
    want = semantic(unit_pool(z, uid), vectors="z", clusters=9)
    got = semantic(Pool(uids(uid), None, {"z": Vectors.of(z)}, device="cpu:0"), vectors="z", clusters=9)
    same(got, want)
    assert pairs_by_uid(uid, got.edges) == pairs_by_uid(uid, want.edges)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same():
    z, uid = noisy_unit_vectors(3, 20_000, 64, 400, 0.1), np.arange(20_000)
    want = semantic(unit_pool(z, uid), vectors="z")
    got = semantic(Pool(uids(uid), None, {"z": Vectors.of(z)}, device="cuda"), vectors="z")
    same(got, want)
    assert pairs_by_uid(uid, got.edges) == pairs_by_uid(uid, want.edges)
