"""leakage.images: exact, near, copied and close matches against evaluation pools, and every evaluation sample that is hit, by brute force."""

import io
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from curate.leakage import images as module
from curate.leakage.images import REASONS, images
from manifests import images as decoding
from manifests.errors import Refusal
from manifests.registration import register
from manifests.seen import glance
from tests.curate.dedup import test_copies
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
    paths_of_tests = {"pools/one": 0, "pools/two": 1}
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
    assert hits_of(got) == every_hit([file_of(*k) for k in mine], {p: [file_of(*k) for k in tests[paths_of_tests[p]]] for p in paths}, others)


def saved(pixels, kind="PNG", **more):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **more)
    return file.getvalue()


def test_what_differs_beyond_8_bits_or_in_transparency_is_no_exact_leak():
    deep = (np.arange(64 * 64) % 256 * 257).astype(np.uint16).reshape(64, 64)  # in the middle of what becomes one of 8 bits
    finer = deep + (np.arange(64) % 3 == 0).astype(np.uint16) * (deep < 65535)
    colour = PICTURES[0]
    clear, veiled, other = (np.dstack([colour, np.full(colour.shape[:2], alpha, np.uint8)]) for alpha in (255, 255, 254))
    veiled[:8, :8, 3], other[:] = 0, veiled
    veiled[:8, :8, :3], other[:8, :8, :3] = 10, 200  # on white both show nothing there
    files = {"deep": saved(deep), "tiff": saved(deep, "TIFF"), "finer": saved(finer), "plain": png(colour), "clear": saved(clear)}
    files |= {"veiled": saved(veiled), "other": saved(other)}
    same = {("deep", "tiff"), ("plain", "clear")}
    assert len({decoding.decode(files[name]).tobytes() for name in ("deep", "tiff", "finer")}) == 1
    assert len({decoding.decode(files[name]).tobytes() for name in ("veiled", "other")}) == 1
    for mine, theirs in (("deep", "tiff"), ("deep", "finer"), ("plain", "clear"), ("veiled", "other"), ("veiled", "veiled")):
        got = images(picture_pool([files[mine], png(PICTURES[1])], evaluations={"test": picture_pool([files[theirs]])}), against=["test"])
        assert got.keep.tolist() == [False, True]
        is_same = mine == theirs or (mine, theirs) in same
        assert (got.reason[0], got.score[0]) == ("exact_leak" if is_same else "near_leak", 0.0), (mine, theirs)
        assert got.edges.columns["is_same"].tolist() == [is_same]
    assert decoding.beyond(b"broken") == decoding.beyond(files["plain"]) == decoding.beyond(jpeg(colour, 90)) == bytes(16)


def hits_of(got):
    """{(row, pool, uid): (reason, difference)} of the recorded pairs."""
    e, c = got.edges, got.edges.columns
    assert len({*zip(e.a.tolist(), c["pool"].tolist(), c["b"].tolist(), strict=True)}) == len(e.a)
    assert (e.a == e.b).all()
    assert c["is_complete"].all()
    found = zip(e.a.tolist(), c["pool"].tolist(), c["b"].tolist(), c["reason"].tolist(), c["difference"].round(8).tolist(), strict=True)
    return {(a, p, b.decode()): (reason, difference) for a, p, b, reason, difference in found}


def every_hit(mine, tests, others, floor=16.0, max_rms=12.0):
    """What `hits_of` should be, every pair compared by the definition."""
    found = {}
    for path, files in tests.items():
        both = picture_pool([*mine, *files])
        hashes = both.column("pixels_hash")
        for i in range(len(mine)):
            for j in range(len(files)):
                place = len(mine) + j
                is_same = (hashes[i] == hashes[place]).all()
                score = 0.0 if is_same else alike(both, i, place, max_distance=4, max_rms=floor, min_contrast=40.0, turned=True)
                if score is not None:
                    reason = "exact_leak" if is_same else "near_leak" if score <= max_rms else ""
                    found[i, path, others[path].uid[j].decode()] = (reason, pytest.approx(score, abs=1e-7))
    return found


@settings(max_examples=15, deadline=None)
@given(data=st.data(), most=st.integers(1, 2))
def test_a_table_that_is_cut_is_short_of_no_sample_and_no_verdict(data, most):
    kinds = st.tuples(st.integers(0, 1), st.sampled_from(["", "jpeg", "mirror"]))
    mine, tests = (data.draw(st.lists(kinds, min_size=3, max_size=n)) for n in (9, 5))
    orders = [data.draw(st.permutations(range(len(some)))) for some in (mine, tests)]
    other = picture_pool([file_of(*k) for k in tests], order=orders[1])
    pool = picture_pool([file_of(*k) for k in mine], order=orders[0], evaluations={"test": other})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        whole, cut = (images(pool, against=["test"], max_hits=m) for m in (100, most))

    assert whole.edges.columns["is_complete"].all()
    for name in ("keep", "reason", "witness_uid"):
        assert getattr(cut, name).tolist() == getattr(whole, name).tolist()
    assert cut.score.tolist() == pytest.approx(whole.score.tolist(), nan_ok=True)
    every, few = ({*zip(v.edges.a.tolist(), v.edges.columns["b"].tolist(), v.edges.columns["reason"].tolist(), strict=True)} for v in (whole, cut))
    assert few <= every
    assert {(b, r) for _, b, r in few if r} == {(b, r) for _, b, r in every if r}, "every sample that is hit, by each way"
    short = {b for _, b, _ in every - few}
    assert {
        b for b, is_complete in zip(cut.edges.columns["b"].tolist(), cut.edges.columns["is_complete"].tolist(), strict=True) if not is_complete
    } == short
    assert any("more rows than are written" in str(w.message) for w in said) == bool(short)


def test_a_tie_between_two_pools_goes_to_the_one_named_first():
    tests = {name: picture_pool([png(PICTURES[0])], order=[uid]) for name, uid in (("zebra", 9), ("ant", 3))}
    pool = picture_pool([png(PICTURES[0]), jpeg(PICTURES[0], 60)], evaluations=tests)
    for against in (["zebra", "ant"], ["ant", "zebra"]):
        got = images(pool, against=against)
        assert got.witness_pool.tolist() == [against[0]] * 2
        assert got.edges.columns["pool"].tolist() == [p for p in against for _ in range(2)]
        assert got.reason.tolist() == ["exact_leak", "near_leak"]


def test_a_copy_shows_enough_of_one_of_the_two():
    photo = test_copies.PHOTOS[0]
    pool = picture_pool([png(photo[:, :180])], evaluations={"test": picture_pool([png(photo[:, 60:])])})  # each shows two thirds of the other
    for min_area, kept in ((0.6, False), (0.72, True)):
        assert images(pool, against=["test"], min_copied=0.4, loose_distance=64, min_area=min_area).keep.tolist() == [kept]


def test_a_row_counts_for_every_test_picture_that_it_shows():
    tests = picture_pool([png(PICTURES[0]), jpeg(PICTURES[0], 70), png(PICTURES[1]), png(PICTURES[0][:, ::-1])], order=[3, 2, 1, 0])
    got = images(picture_pool([png(PICTURES[0])], evaluations={"test": tests}), against=["test"])
    assert got.reason.tolist() == ["exact_leak"]
    assert {b: reason for (_, _, b), (reason, _) in hits_of(got).items()} == {
        tests.uid[0].decode(): "exact_leak",
        tests.uid[1].decode(): "near_leak",
        tests.uid[3].decode(): "near_leak",
    }


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]])
def test_copies_and_vectors_hit_more_than_the_closest(order):
    photos = test_copies.PHOTOS
    files = [test_copies.edited(photos[0], "crop"), test_copies.edited(photos[0], "box"), png(photos[2]), test_copies.edited(photos[2], "frame")]
    mine = [*files, png(photos[4]), jpeg(photos[0], 60)]
    theirs = [png(photos[0]), test_copies.edited(photos[0], "turn"), png(photos[2])]
    rng = np.random.default_rng(1)
    z, base = (rng.normal(size=(n, 4)) for n in (6, 3))
    tests = picture_pool(theirs, order=[2, 0, 1], vectors=unit(*base))
    pool = picture_pool(mine, order=order, evaluations={"test": tests}, vectors=unit(*z))
    limits = {"min_copied": 0.5, "floor_copied": 0.2, "loose_distance": 64, "min_cosine": 0.3, "floor_cosine": -0.2, "k": 1}

    got = images(pool, against=["test"], vectors="z", **limits)

    both = picture_pool([*mine, *theirs])
    stored = pool.vectors("z"), tests.vectors("z")
    found = {(a, b.decode()): at for at, (a, b) in enumerate(zip(got.edges.a.tolist(), got.edges.columns["b"].tolist(), strict=True))}
    for i in range(len(mine)):
        hits = []
        for j in range(len(theirs)):
            is_same = (both.column("pixels_hash")[i] == both.column("pixels_hash")[6 + j]).all()
            difference = 0.0 if is_same else alike(both, i, 6 + j, max_distance=4, max_rms=16.0, min_contrast=40.0, turned=True)
            match = None if is_same else register(glance(theirs[j]), glance(mine[i]))
            match = (
                match
                if match is not None and match.score >= 0.2 and max(test_copies.area(match.left), test_copies.area(match.right)) >= 0.35
                else None
            )
            cosine = float(stored[0].cosine(np.array([i]), stored[1], np.array([j]))[0])
            ways = [
                ("exact_leak", 0.0, 0.0) if is_same else None,
                ("near_leak", difference, difference) if not is_same and difference is not None and difference <= 12 else None,
                ("copied_leak", -match.score, match.score) if match and match.score >= 0.5 else None,
                ("vector_leak", -cosine, cosine) if cosine >= 0.3 else None,
            ]
            way = next((w for w in ways if w), None)
            at = found.pop((i, tests.uid[j].decode()), None)
            assert (at is not None) == (difference is not None or match is not None or cosine >= -0.2)
            if at is None:
                continue
            seen = {name: values[at] for name, values in got.edges.columns.items()}
            assert seen["reason"] == (way[0] if way else "")
            assert seen["cosine"] == cosine if cosine >= -0.2 else np.isnan(seen["cosine"])
            # the thumbnails come from smaller JPEGs than the definition's
            assert seen["difference"] == pytest.approx(np.nan if difference is None else difference, abs=0.05, nan_ok=True)
            if match:
                assert (seen["copied"], seen["turn"], seen["agreeing"]) == (match.score, match.turn, match.agreeing)
                assert [seen[f"a_{e}"] for e in ("left", "top", "right", "bottom")] == pytest.approx(match.right)
                assert [seen[f"b_{e}"] for e in ("left", "top", "right", "bottom")] == pytest.approx(match.left)
            else:
                assert np.isnan(seen["copied"]) and np.isnan(seen["turn"])
            if way:
                assert got.edges.score[at] == pytest.approx(way[2], abs=0.05)
                hits.append((REASONS.index(way[0]), way[1], tests.uid[j].decode(), way[2]))
        assert got.keep[i] == (not hits)
        if hits:
            assert (got.reason[i], got.witness_uid[i]) == (REASONS[min(hits)[0]], min(hits)[2])
            assert got.score[i] == pytest.approx(min(hits)[3], abs=0.05)
    assert not found


def test_a_picture_that_decodes_at_one_scale_and_not_at_another_has_its_pixels_alone(monkeypatch):
    """Its hashes are known from the measure; at low resolution it cannot be read, here or in the test."""
    broken = jpeg(PICTURES[0], 70)
    whole = decoding.decode

    def decode(data, min_side=None, **more):
        if bytes(data) == broken and min_side is not None:
            raise decoding.Undecodable("undecodable")
        return whole(data, min_side=min_side, **more)

    files = [broken, png(PICTURES[1])]
    for mine, theirs, kept in (
        ([broken, png(PICTURES[1])], [png(PICTURES[0]), jpeg(PICTURES[1], 70)], [True, False]),
        ([png(PICTURES[0])], [broken], [True]),
        (files, files, [False, False]),
    ):
        pool = picture_pool(mine, evaluations={"test": picture_pool(theirs)})
        with monkeypatch.context() as patched:
            patched.setattr(decoding, "decode", decode)
            assert images(pool, against=["test"], min_copied=0.4, loose_distance=64).keep.tolist() == kept


def test_more_than_the_memory_allows_is_refused_with_what_would_do(monkeypatch):
    tests = {"test": picture_pool([png(PICTURES[0])] * 60)}
    pool = picture_pool([png(PICTURES[0])] * 60, evaluations=tests, memory=1 << 20)
    with pytest.raises(Refusal, match=r"needs \d+ MiB; --memory allows .* Give --memory \d+MiB"):
        images(pool, against=["test"])
    pool = picture_pool([png(PICTURES[0])] * 60, evaluations=tests, memory=1 << 27)
    assert not images(pool, against=["test"]).keep.any()
    monkeypatch.setattr(module, "PAIR_BYTES", 1 << 20)
    with pytest.raises(Refusal, match="3,600 pairs with test need .* a smaller max_hits"):
        images(pool, against=["test"])
    assert not images(pool, against=["test"], max_hits=1).keep.any()


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
    seen = [(int(b, 16), is_complete) for b, is_complete in zip(got.edges.columns["b"], got.edges.columns["is_complete"], strict=True)]
    assert Counter(seen) == {
        (0, True): 200,
        **{(test, False): 100 for test in range(1, 200)},
    }  # of each as many as max_hits; the first is the closest of all


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


@pytest.mark.parametrize("turned", [True, False])
def test_unturned_means_that_verified_copies_are_not_turned_either(turned):
    """A crop that was turned as well is no near picture; it leaks as a verified copy only where turned ones count."""
    photo = test_copies.PHOTOS[0]
    mine = [png(np.rot90(photo)[20:190, 15:160]), test_copies.edited(photo, "crop")]
    pool = picture_pool(mine, evaluations={"test": picture_pool([png(photo)])})
    got = images(pool, against=["test"], min_copied=0.4, loose_distance=64, turned=turned)
    assert got.keep.tolist() == [not turned, False]
    assert got.reason[1] == "copied_leak"
