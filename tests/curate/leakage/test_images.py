"""leakage.images: exact and near matches against evaluation pools, by brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curate.leakage.images import REASONS, images
from manifests.errors import Refusal
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


def test_a_pool_that_is_the_evaluation_pool_is_dropped_whole_and_says_so():
    files = [png(p) for p in PICTURES]
    with pytest.warns(UserWarning, match="every one of 24 pictures stands in test"):
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


def test_a_border_hides_no_test_picture():
    framed = png(np.pad(PICTURES[0], ((12, 12), (12, 12), (0, 0)), constant_values=40))
    for mine, theirs in ((framed, png(PICTURES[0])), (png(PICTURES[0]), framed)):
        evaluations = {"test": picture_pool([png(PICTURES[5]), theirs])}
        got = images(picture_pool([png(PICTURES[1]), mine], evaluations=evaluations), against=["test"])
        assert got.keep.tolist() == [True, False]
        assert got.reason[1] == "near_leak"
        assert got.score[1] == 0
        assert images(picture_pool([mine, png(PICTURES[1])], evaluations=evaluations), against=["test"], trimmed="phash_views").keep.all()


def unit(*rows):
    z = np.array(rows, float)
    return {"z": z / np.linalg.norm(z, axis=1, keepdims=True)}


def test_vectors_decide_only_when_asked_and_after_the_surer_ways():
    tests = {
        "one": picture_pool([png(PICTURES[10]), png(PICTURES[11])], order=[4, 3], vectors=unit([1, 0, 0], [1, 0, 0])),
        "two": picture_pool([jpeg(PICTURES[0], 70)], vectors=unit([0, 1, 0])),
    }
    pool = picture_pool([png(PICTURES[i]) for i in range(4)], evaluations=tests, vectors=unit([1, 0.1, 0], [1, 0.3, 0], [0, 0, 1], [0.7, 0.75, 0]))

    silent = images(pool, against=["one", "two"], vectors="z")
    assert silent.keep.tolist() == [False, True, True, True]
    assert silent.columns["leakage_cosine"].round(3).tolist() == [0.995, 0.958, 0.0, 0.731]
    got = images(pool, against=["one", "two"], vectors="z", min_cosine=0.9)

    assert got.keep.tolist() == [False, False, True, True]
    assert got.reason[:2].tolist() == ["near_leak", "vector_leak"]  # the surer way, though another pool's vector is close
    assert got.witness_pool[:2].tolist() == ["two", "one"]
    assert [int(u, 16) for u in got.witness_uid[:2]] == [0, 3]  # of two equally near ones the smaller uid
    assert got.score[1] == pytest.approx(1 / np.sqrt(1.09), abs=1e-3)
    assert got.threshold[:2].tolist() == [12.0, 0.9]
    for wrong in ({"min_cosine": 0.9}, {"vectors": "z", "min_cosine": 1.5}, {"min_copied": 2.0}, {"k": 0}, {"min_area": 0.1}):
        with pytest.raises(Refusal, match="bad-value"):
            images(pool, against=["one"], **wrong)


def test_a_verified_copy_is_found_where_the_hash_alone_is_not_enough():
    from skimage import data

    photos = [np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in ("astronaut", "chelsea", "coffee", "rocket")]
    cropped = [p[p.shape[0] // 7 :, : -p.shape[1] // 6] for p in photos[:2]]
    tests = {
        "test": picture_pool([jpeg(p, 90) for p in (photos[0], photos[1], photos[2])], order=[7, 5, 6], vectors=unit([1, 0, 0], [0, 1, 0], [0, 0, 1]))
    }
    pool = picture_pool([*(jpeg(p, 80) for p in cropped), jpeg(photos[3], 80)], evaluations=tests, vectors=unit([1, 0.5, 0], [0.5, 1, 0], [1, 1, 1]))

    assert images(pool, against=["test"], vectors="z").keep.all()
    got = images(pool, against=["test"], vectors="z", min_copied=0.4, k=2)

    assert got.keep.tolist() == [False, False, True]
    assert got.reason[:2].tolist() == ["copied_leak"] * 2
    assert [int(u, 16) for u in got.witness_uid[:2]] == [7, 5]
    assert (got.score[:2] >= 0.4).all()
    assert got.columns["leakage_copied"][:2].tolist() == got.score[:2].tolist()
    assert np.isnan(got.columns["leakage_copied"][2])


def test_hashes_of_two_lengths_are_refused():
    tests = {"test": picture_pool([png(PICTURES[0])], odd=np.zeros((1, 8), np.uint8))}
    pool = picture_pool([png(PICTURES[0])], evaluations=tests, odd=np.zeros((1, 16), np.uint8))
    with pytest.raises(Refusal, match="odd holds 16 bytes here and 8"):
        images(pool, against=["test"], hash="odd")
