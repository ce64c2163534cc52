"""dedup.mutual against the rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.dedup import mutual as module
from curate.dedup.mutual import mutual
from curate.pool import Edges, Pool
from manifests.errors import Refusal
from manifests.vectors import copies
from manifests.vectors.store import Vectors
from tests.strategies import exact_unit_vectors, noisy_unit_vectors, uids, unit_pool


def by_definition(z, uid, fixed, min_cosine, margin, size=None):
    """(keep, witness, score): sets of equal rows, their two nearest other sets, and who is whose."""
    n, v = len(z), Vectors.of(z)
    order = sorted(range(n), key=lambda i: (not fixed[i], -size[i] if size is not None else 0, uid[i]))
    sets: dict[bytes, list[int]] = {}
    for i in order:
        sets.setdefault((np.float16(z[i]) + np.float16(0)).tobytes(), []).append(i)
    groups = list(sets.values())
    name = [min(uid[i] for i in g) for g in groups]
    near = []
    for g in range(len(groups)):
        found = [(-v.cosine(np.array([groups[g][0]]), v, np.array([groups[h][0]]))[0], name[h], h) for h in range(len(groups)) if h != g]
        near.append(sorted(found))
    keep, witness, score = np.ones(n, bool), np.full(n, -1), np.full(n, np.nan)

    def clear(g):
        return near[g] and -near[g][0][0] >= min_cosine and (len(near[g]) < 2 or -near[g][0][0] >= -near[g][1][0] + margin)

    for g, group in enumerate(groups):
        by, how = group[0], 1.0
        partner = near[g][0][2] if near[g] else -1
        if clear(g) and clear(partner) and near[partner][0][2] == g and groups.index(groups[partner]) < g and not fixed[group[0]]:
            by, how = groups[partner][0], -near[g][0][0]
        for i in group:
            if i != by and not fixed[i]:
                keep[i], witness[i], score[i] = False, by, how
    return keep, witness, score


def check(got, want):
    for found, wanted in zip((got.keep, got.witness, got.score), want, strict=True):
        np.testing.assert_array_equal(found, wanted)


@settings(deadline=None)
@given(
    z=exact_unit_vectors(),
    margin=st.sampled_from([0.0, 0.25, 0.5]),
    threshold=st.sampled_from([0.0, 0.5, 1.0]),
    few=st.sampled_from([1, 10**6]),
    data=st.data(),
)
def test_mutual_is_the_rule_to_the_last_tie(z, margin, threshold, few, data):
    uid = np.array(data.draw(st.permutations(range(len(z)))))
    fixed = np.isin(np.arange(len(z)), data.draw(st.lists(st.integers(0, len(z) - 1), max_size=3)))
    size = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(z), max_size=len(z))))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "FEW", few)
        patch.setattr(module, "BLOCK", 3)
        got = mutual(
            unit_pool(z, uid, {"size": size}, fixed=fixed),
            vectors="z",
            min_cosine=threshold,
            margin=margin,
            floor_cosine=-1.0,
            prefer=["size"],
            max_edges=1,
        )
    check(got, by_definition(z, uid, fixed, threshold, margin, size))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 999), margin=st.sampled_from([0.0, 0.01, 0.1]))
def test_row_order_reaches_no_verdict_and_edges_replay(seed, margin):
    rng = np.random.default_rng(seed)
    z = noisy_unit_vectors(seed, 120, 8, 60, 0.1)
    uid, order, fixed = rng.permutation(120), rng.permutation(120), rng.random(120) < 0.05
    run = mutual(unit_pool(z, uid, fixed=fixed), vectors="z", margin=margin, floor_cosine=0.5, num_neighbours=119)
    check(run, by_definition(z, uid, fixed, 0.8, margin))
    other = mutual(unit_pool(z[order], uid[order], fixed=fixed[order]), vectors="z", margin=margin, floor_cosine=0.5, num_neighbours=119)
    np.testing.assert_array_equal(run.keep[order], other.keep)
    assert run.edges.columns["is_complete"].all()
    live = np.sort(rng.permutation(120)[:80])
    place = np.full(120, -1)
    place[live] = np.arange(80)
    inside = (place[run.edges.a] >= 0) & (place[run.edges.b] >= 0)
    columns = {name: values[inside] for name, values in run.edges.columns.items()}
    stored = Edges(place[run.edges.a[inside]], place[run.edges.b[inside]], run.edges.score[inside], columns)
    got = mutual(Pool(uids(uid[live]), None, {"z": Vectors.of(z[live])}, edges=stored), vectors="z", min_cosine=0.9, margin=0.05, floor_cosine=0.5)
    check(got, by_definition(z[live], uid[live], np.zeros(80, bool), 0.9, 0.05))


def test_couples_go_and_crowds_of_look_alikes_stay():
    rng = np.random.default_rng(0)
    things = rng.normal(size=(20, 32))
    looks = things + 0.2 * rng.normal(size=(20, 32))
    crowd = rng.normal(size=32) + 0.1 * rng.normal(size=(30, 32))
    z = np.concatenate([things, looks, crowd])
    got = mutual(unit_pool(z / np.linalg.norm(z, axis=1, keepdims=True), np.arange(70)), vectors="z")
    assert got.keep[:20].all() and not got.keep[20:40].any() and got.keep[40:].all()
    assert got.witness[20:40].tolist() == list(range(20))


def test_all_identical_one_row_and_none():
    got = mutual(unit_pool(np.ones((50, 4)) / 2, np.arange(50)[::-1]), vectors="z")
    assert got.keep.sum() == 1 and got.keep[49] and (got.score[:49] == 1).all() and (got.witness[:49] == 49).all()
    assert mutual(unit_pool(np.eye(4)[:1], [0]), vectors="z").keep.tolist() == [True]
    assert len(mutual(unit_pool(np.zeros((0, 4)), []), vectors="z").keep) == 0


@pytest.mark.parametrize(
    "wrong", [{"min_cosine": 1.5}, {"floor_cosine": 0.79}, {"floor_cosine": -2.0}, {"margin": -0.1}, {"num_neighbours": 1}, {"max_edges": 0}]
)
def test_what_cannot_be_is_refused(wrong):
    with pytest.raises(Refusal, match="bad-value"):
        mutual(unit_pool(np.eye(4), range(4)), vectors="z", **wrong)


def test_too_little_memory_is_refused():
    with pytest.raises(Refusal, match="does-not-fit"):
        mutual(unit_pool(np.eye(4), range(4), memory=1000), vectors="z")
