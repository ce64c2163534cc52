"""leakage.images: exact and near matches against evaluation pools, by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.leakage.images import REASONS, images
from tests.curate.dedup.test_perceptual import EDITS, PICTURES, alike, edit
from tests.pools import jpeg, picture_pool, png


def file_of(number, kind):
    return edit(PICTURES[number], kind) if kind else png(PICTURES[number])


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_the_closest_evaluation_picture_decides(data):
    kinds = st.tuples(st.integers(0, 3), st.sampled_from(["", *EDITS]))
    mine = data.draw(st.lists(kinds, min_size=1, max_size=6))
    tests = [data.draw(st.lists(kinds, min_size=0, max_size=4)) for _ in range(2)]
    paths = ["pools/one", "pools/two"]
    others = {
        p: picture_pool([file_of(*k) for k in t], order=data.draw(st.permutations(range(len(t))))) for p, t in zip(paths, tests, strict=True) if t
    }
    paths = list(others)
    fixed = sorted(data.draw(st.sets(st.integers(0, len(mine) - 1), max_size=2)))
    pool = picture_pool([file_of(*k) for k in mine], fixed=fixed, evaluations=others)

    got = images(pool, against=paths)

    limits = {"max_distance": 4, "max_rms": 12.0, "min_contrast": 40.0, "turned": True}
    for i, kind in enumerate(mine):
        found = []
        for number, path in enumerate(paths):
            both = picture_pool([file_of(*kind), *(file_of(*k) for k in tests[0 if path == "pools/one" else 1])])
            for j in range(1, len(both)):
                exact = (both.column("pixels_hash")[0] == both.column("pixels_hash")[j]).all()
                score = 0.0 if exact else alike(both, 0, j, **limits)
                if score is not None:
                    found.append((not exact, round(score, 9), number, others[path].uid[j - 1].decode(), path))
        assert got.keep[i] == (not found)  # protection does not count
        if found:
            near, score, _, uid, path = min(found)
            assert got.reason[i] == ("near_leak" if near else "exact_leak")
            assert got.score[i] == pytest.approx(score, abs=1e-8)
            assert (got.witness_uid[i], got.witness_pool[i], got.columns["leakage_pool"][i].as_py()) == (uid, path, path)
        else:
            assert got.witness_uid[i] is None
            assert np.isnan(got.score[i])
    assert set(np.unique(got.reason)) <= set(REASONS)


def test_a_pool_that_is_the_evaluation_pool_is_dropped_whole():
    files = [png(p) for p in PICTURES]
    got = images(picture_pool(files, evaluations={"test": picture_pool(files, order=range(100, 124))}, fixed=[3]), against=["test"])
    assert not got.keep.any()
    assert (got.reason == "exact_leak").all()
    assert [int(u, 16) for u in got.witness_uid] == list(range(100, 124))
    assert (got.score == 0).all()


def test_photographs_that_are_not_in_the_test_stay():
    pool = picture_pool([png(p) for p in PICTURES[:16]], evaluations={"test": picture_pool([jpeg(p, 60) for p in PICTURES[12:]])})
    assert images(pool, against=["test"]).keep.tolist() == [True] * 12 + [False] * 4


def test_no_pool_and_an_empty_pool_drop_nothing():
    pool = picture_pool([png(PICTURES[0])], evaluations={"none": picture_pool([])})
    assert images(pool, against=[]).keep.all()
    assert images(pool, against=["none"]).keep.all()


def test_many_equal_pictures_on_both_sides_are_compared_once():
    files = [png(PICTURES[0])] * 200
    near = [jpeg(PICTURES[0], 70)] * 200
    got = images(picture_pool(near, evaluations={"test": picture_pool(files)}), against=["test"])
    assert not got.keep.any()
    assert {int(u, 16) for u in got.witness_uid} == {0}  # the smallest uid of equals


@pytest.mark.parametrize("order", [[4, 9], [9, 4]])
def test_a_tie_goes_to_the_smaller_uid(order):
    tests = [png(PICTURES[0]), png(PICTURES[0][:, ::-1])]  # mirrored: other pixels, the same difference
    got = images(picture_pool([jpeg(PICTURES[0], 70)], evaluations={"test": picture_pool(tests, order=order)}), against=["test"])
    assert got.reason.tolist() == ["near_leak"]
    assert int(got.witness_uid[0], 16) == 4
