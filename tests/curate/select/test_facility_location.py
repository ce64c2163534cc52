"""select.facility_location against plain greedy."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.pool import Share
from curate.select import facility_location as module
from curate.select.facility_location import facility_location
from manifests.errors import Refusal
from manifests.vectors.forecast import facility, rounded
from manifests.vectors.rounded import Rounded
from manifests.vectors.store import Vectors
from tests.strategies import exact_unit_vectors, noisy_unit_vectors, unit_pool


def similarities(z):
    v = Vectors.of(z)
    a, b = np.divmod(np.arange(len(z) ** 2), len(z))
    return (1 + v.cosine(a, v, b).reshape(len(z), len(z))) / 2


def plain_greedy(s, uid, k, fixed, digits):
    """(picks, gains): every gain anew for every pick, ties (equal to `digits`) to the smaller uid."""
    picks, gains, best = [], [], np.zeros(len(s))
    protected = sorted(np.flatnonzero(fixed), key=lambda i: uid[i])
    while len(picks) < max(k, len(protected)):
        gain = np.maximum(s - best[:, None], 0).sum(0)
        free = [i for i in range(len(s)) if i not in picks]
        row = protected[len(picks)] if len(picks) < len(protected) else min(free, key=lambda i: (-round(gain[i], digits), uid[i]))
        picks.append(int(row))
        gains.append(gain[row])
        best = np.maximum(best, s[:, row])
    return picks, gains


def picks_of(got):
    rank = got.columns["facility_location_rank"]
    return [int(np.flatnonzero(rank == r)[0]) for r in range(got.keep.sum())]


def with_settings(strip, sparse, pool, keep):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP", strip)
        patch.setattr(module, "SPARSE", sparse)
        return facility_location(pool, vectors="z", keep=keep)


@settings(deadline=None)
@given(z=exact_unit_vectors(), strip=st.sampled_from([4, 5, 512]), sparse=st.sampled_from([0.0, 0.3, 1.0]), data=st.data())
def test_facility_location_is_plain_greedy_to_the_last_tie(z, strip, sparse, data):
    uid = data.draw(st.permutations(range(len(z))))
    k = data.draw(st.integers(1, len(z)))
    fixed = np.zeros(len(z), bool)
    fixed[data.draw(st.lists(st.integers(0, len(z) - 1), max_size=2))] = True
    s = similarities(z)
    picks, gains = plain_greedy(s, uid, k, fixed, 12)

    got = with_settings(strip, sparse, unit_pool(z, uid, fixed=fixed), Share(count=k))

    assert picks_of(got) == picks
    np.testing.assert_allclose(got.columns["facility_location_gain"][picks], gains, atol=1e-9)
    for i in np.flatnonzero(~got.keep):
        assert got.witness[i] == next(p for p in picks if s[i, p] == s[i, picks].max())
        assert got.score[i] == pytest.approx(2 * s[i, picks].max() - 1, abs=1e-12)
    if not fixed.any() and len(z) < 9:
        best = max(s[:, list(c)].max(1).sum() for c in combinations(range(len(z)), k))
        assert sum(gains) >= (1 - 1 / np.e) * best


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    spread=st.sampled_from([1e-4, 0.1, 1.0]),
    groups=st.sampled_from([1, 8, 200]),
    sparse=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_real_vectors_any_row_order_and_strip(seed, spread, groups, sparse):
    z, rng = noisy_unit_vectors(seed, 200, 12, groups, spread), np.random.default_rng(seed)
    uid, order = rng.permutation(200), rng.permutation(200)
    picks, gains = plain_greedy(similarities(z), uid, 60, np.zeros(200, bool), 9)
    one = with_settings(512, sparse, unit_pool(z, uid), Share(fraction=0.3))
    two = with_settings(16, 1 - sparse, unit_pool(z[order], uid[order]), Share(fraction=0.3))
    assert picks_of(one) == order[picks_of(two)].tolist()
    assert sum(one.columns["facility_location_gain"][one.keep]) == pytest.approx(sum(gains), abs=1e-6)
    np.testing.assert_array_equal(one.columns["facility_location_gain"][order], two.columns["facility_location_gain"])
    np.testing.assert_array_equal(one.score[order], two.score)
    np.testing.assert_array_equal(one.witness[order], np.where(two.witness >= 0, order[two.witness], -1))
    if spread == 1.0:  # elsewhere gains differ by less than the grid
        assert picks_of(one) == picks


@pytest.mark.parametrize("sparse", [0.0, 0.03, 0.3])
def test_many_rows_in_every_way_of_bounding(sparse):
    z, uid = noisy_unit_vectors(1, 600, 16, 100, 1.0), np.random.default_rng(1).permutation(600)
    picks, gains = plain_greedy(similarities(z), uid, 60, np.zeros(600, bool), 9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WIDE", 250)
        got = with_settings(32, sparse, unit_pool(z, uid), Share(count=60))
    assert picks_of(got) == picks
    np.testing.assert_allclose(got.columns["facility_location_gain"][picks], gains, atol=1e-6)


def test_little_memory_gives_the_same_picks():
    z = noisy_unit_vectors(2, 1000, 16, 100, 1.0)
    needed = facility(1000, 60, 16, 0).memory
    little, much = (facility_location(unit_pool(z, range(1000), memory=m), vectors="z", keep=Share(count=60)) for m in (needed, 1 << 30))
    np.testing.assert_array_equal(little.columns["facility_location_rank"], much.columns["facility_location_rank"])
    with pytest.raises(Refusal, match="does-not-fit|needs"):
        facility_location(unit_pool(z, range(1000), memory=needed - 1), vectors="z", keep=Share(count=60))


def test_a_killed_run_goes_on_from_its_state():
    z = noisy_unit_vectors(4, 150, 10, 150, 0.5)

    class Stopped(Exception):
        pass

    class Disk:
        def __init__(self, left, kept):
            self.left, self.kept = left, kept

        def load(self, name):
            return self.kept.get(name)

        def save(self, name, done, state):
            self.kept[name] = (done, tuple(a.copy() for a in state))

        def due(self):
            self.left -= 1
            if self.left < 0:
                raise Stopped
            return True

    whole = facility_location(unit_pool(z, range(150)), vectors="z", keep=Share(count=40))
    kept = {}
    for left in (5, 20):
        pool = unit_pool(z, range(150))
        pool._keeper = Disk(left, kept)
        with pytest.raises(Stopped):
            facility_location(pool, vectors="z", keep=Share(count=40))
    pool._keeper = Disk(99, kept)
    np.testing.assert_array_equal(
        facility_location(pool, vectors="z", keep=Share(count=40)).columns["facility_location_rank"], whole.columns["facility_location_rank"]
    )


def test_bounds_of_the_lists_follow_every_pick():
    z, n, k = noisy_unit_vectors(7, 300, 12, 40, 0.4), 300, 80
    z[200:220] = z[:20]  # equal rows count for two
    v = Vectors.of(z)
    greedy = module._Greedy(v.subset(np.delete(np.arange(n), np.arange(200, 220))), np.r_[np.full(20, 2.0), np.ones(n - 40)], 1 << 30)
    s = similarities(z)[:, np.delete(np.arange(n), np.arange(200, 220))]
    state = greedy.protected(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARSE", 1.0)
        patch.setattr(module, "STRIP", 32)
        for _ in range(k):
            state = greedy.pick(state)
            assert isinstance(greedy.bounds, module._Lists)
            exact = np.maximum(s - s[:, state[0] >= 0].max(1)[:, None], 0).sum(0)
            slack = greedy.bounds.gain - exact
            assert slack.min() > -1e-9
            assert slack.max() < n * greedy.bounds.error
    assert greedy.bounds.count.sum() < n * n / 4


@pytest.mark.parametrize("off", [0, -0.9, 0.9])  # of the error that is reckoned with
def test_dense_bounds_are_tight_and_never_too_low(off):
    z = noisy_unit_vectors(9, 700, 16, 90, 0.5)
    s, weight, rng = similarities(z), np.random.default_rng(9).integers(1, 4, 700).astype(np.float64), np.random.default_rng(9)
    exact = lambda best: weight @ np.maximum(s - best[:, None], 0)
    dense = module._Dense(Vectors.of(z), weight)
    best, tile, dense.error = s[:, [3]].max(1), dense.tile, 1e-3  # as if products were this coarse, so that nothing else matters

    def as_bad_as_may_be(block, other):
        cosine, room = tile(block, other)
        return np.add(cosine, np.float32(off * dense.error), out=cosine), room

    dense.tile = as_bad_as_may_be
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STRIP", 96)
        patch.setattr(module, "WIDE", 200)
        dense.start(best)
        near = 4 * weight.sum() * dense.error
        assert (dense.gain + dense.slack - exact(best)).min() >= 0
        assert (dense.gain + dense.slack - exact(best)).max() < near
        later = s[:, [3, 70, 400]].max(1)
        few, gain = rng.permutation(700)[:30], dense.gain + dense.slack
        direct = dense._gains(few, later) - exact(later)[few]
        assert direct.min() >= 0
        assert direct.max() < near
        moved = np.flatnonzero(later > best)
        for first in range(0, len(moved), 96):
            fall, slack = dense._fall(moved[first : first + 96], later, dense.unit)
            gain += slack - fall
        assert (gain - exact(later)).min() >= 0
        assert (gain - exact(later)).max() < 2 * near


def test_a_run_that_goes_on_late_needs_no_pass_of_all_pairs(monkeypatch):
    z = noisy_unit_vectors(8, 400, 24, 100, 0.3)
    monkeypatch.setattr(module, "SPARSE", 0.2)
    greedy = module._Greedy(Vectors.of(z), np.ones(400), 1 << 30)
    state = greedy.protected(0)
    for _ in range(60):
        state = greedy.pick(state)
    late = module._Greedy(Vectors.of(z), np.ones(400), 1 << 30)
    monkeypatch.setattr(module._Dense, "start", None)
    again = late.pick(tuple(a.copy() for a in state))
    for one, two in zip(again, greedy.pick(state)):
        np.testing.assert_array_equal(one, two)


def test_all_identical_one_row_and_more_than_there_are():
    same = facility_location(unit_pool(np.ones((9, 4)) / 2, range(9)[::-1]), vectors="z", keep=Share(count=3))
    assert same.columns["facility_location_rank"].tolist() == [-1] * 6 + [2, 1, 0]
    assert same.columns["facility_location_gain"][6:].tolist() == [0, 0, 9] and (same.score[:6] == 1).all() and (same.witness[:6] == 8).all()
    for n in (1, 4):
        got = facility_location(unit_pool(np.eye(4)[:n], range(n)), vectors="z", keep=Share(count=10))
        assert got.keep.all()
    assert len(facility_location(unit_pool(np.zeros((0, 4)), []), vectors="z", keep=Share(count=1)).keep) == 0


def without_a_table(pool, keep, sparse=0.03):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARSE", sparse)
        patch.setattr(module, "rounded", lambda rows, dim: 1 << 60)
        return facility_location(pool, vectors="z", keep=keep)


def same_verdicts(one, two):
    for name in ("keep", "score", "witness"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    for name in module.WRITES:
        np.testing.assert_array_equal(one.columns[name], two.columns[name])


@settings(deadline=None)
@given(z=exact_unit_vectors(), sparse=st.sampled_from([0.0, 0.3]), data=st.data())
def test_plain_greedy_to_the_last_tie_where_no_table_fits(z, sparse, data):
    k, uid = data.draw(st.integers(1, len(z))), data.draw(st.permutations(range(len(z))))
    got = without_a_table(unit_pool(z, uid), Share(count=k), sparse)
    assert picks_of(got) == plain_greedy(similarities(z), uid, k, np.zeros(len(z), bool), 12)[0]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    n=st.integers(2, 400),
    dim=st.integers(2, 40),
    spread=st.sampled_from([1e-3, 0.1, 1.0]),
    lift=st.sampled_from([0, 1, 20]),
    protected=st.integers(0, 3),
)
def test_a_table_gives_the_verdicts_of_no_table(seed, n, dim, spread, lift, protected):
    rng = np.random.default_rng(seed)
    z = noisy_unit_vectors(seed, n, dim, max(2, n // 6), spread) + lift * np.eye(dim)[0]  # lifted: all of them close to each other
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    z[n // 2 : n // 2 + n // 8] = -z[: n // 8]  # opposite ones
    z[rng.integers(0, n, n // 9)] = z[0]  # many equal ones
    z[-1] *= 2.0**-12  # near to zero
    uid, fixed = rng.permutation(n), np.isin(np.arange(n), rng.integers(0, n, protected))
    keep = Share(count=int(rng.integers(1, n + 1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARSE", 0.0)
        held = facility_location(unit_pool(z, uid, fixed=fixed), vectors="z", keep=keep)
    same_verdicts(held, without_a_table(unit_pool(z, uid, fixed=fixed), keep, 0.0))
    same_verdicts(held, without_a_table(unit_pool(z, uid, fixed=fixed), keep, 1.0))


@pytest.mark.parametrize("missing", [0, 1])
def test_the_table_is_there_where_it_fits_and_only_there(missing, monkeypatch):
    z, made = noisy_unit_vectors(3, 900, 8, 100, 1.0), []
    monkeypatch.setattr(module, "Rounded", lambda *given: made.append(1) or Rounded(*given))
    table, fixed = rounded(len(np.unique(z.astype(np.float16), axis=0)), 8), facility(900, 60, 8, 0).memory
    memory = max(4 * table, table + fixed)
    got = facility_location(unit_pool(z, range(900), memory=memory - 4 * missing), vectors="z", keep=Share(count=60))
    assert len(made) == 1 - missing
    same_verdicts(got, without_a_table(unit_pool(z, range(900)), Share(count=60)))


def test_a_run_that_goes_on_after_any_pick_with_a_table():
    z = noisy_unit_vectors(6, 120, 10, 60, 0.5)
    v = Vectors.of(z[np.unique(z.astype(np.float16), axis=0, return_index=True)[1]])
    greedy = module._Greedy(v, np.ones(len(v)), 1 << 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARSE", 0.0)
        state = greedy.protected(0)
        for pick in range(40):
            late = module._Greedy(v, np.ones(len(v)), 1 << 30).pick(tuple(a.copy() for a in state))
            state = greedy.pick(state)
            assert isinstance(greedy.bounds, Rounded) == (pick > 0)
            for one, two in zip(late, state):
                np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("sparse", [0.0, 0.03, 0.3])
def test_many_rows_where_no_table_fits(sparse, monkeypatch):
    z, uid = noisy_unit_vectors(1, 600, 16, 100, 1.0), np.random.default_rng(1).permutation(600)
    monkeypatch.setattr(module, "WIDE", 250)
    monkeypatch.setattr(module, "STRIP", 32)
    got = without_a_table(unit_pool(z, uid), Share(count=60), sparse)
    assert picks_of(got) == plain_greedy(similarities(z), uid, 60, np.zeros(600, bool), 9)[0]
