"""dedup.perceptual: the star rule by brute force over real hashes and thumbnails, and its safety on photographs."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from curate.dedup.perceptual import REASONS, perceptual
from manifests.errors import Refusal
from manifests.images import decode
from manifests.likeness import thumbnail
from tests.pools import assert_lawful, jpeg, picture_pool, png, pool_of, turns
from tests.small_pool import crops

PICTURES = [pixels for pixels, _ in crops(24)]


def edit(pixels, kind):
    """A planted copy."""
    image = Image.fromarray(pixels)
    return {
        "jpeg": lambda: jpeg(pixels, 60),
        "half": lambda: png(np.asarray(image.resize((48, 48), Image.Resampling.LANCZOS))),
        "mirror": lambda: png(pixels[:, ::-1]),
        "turn": lambda: png(np.rot90(pixels)),
        "blur": lambda: png(np.asarray(image.filter(ImageFilter.GaussianBlur(1)))),
        "turned jpeg": lambda: jpeg(np.ascontiguousarray(np.rot90(pixels[:, ::-1], 3)), 60),
    }[kind]()


EDITS = ["jpeg", "half", "mirror", "turn", "blur", "turned jpeg"]


def alike(pool, i, j, *, max_distance, max_rms, min_contrast, turned):
    """The score of a pair by the definition, or None where it is not alike."""
    views = pool.column("phash_views").reshape(len(pool), 8, 8)
    bits = min(int(np.bitwise_count(views[x, 0] ^ v).sum()) for x, y in ((i, j), (j, i)) for v in (views[y] if turned else views[y, :1]))
    a, b = (thumbnail(decode(next(iter(pool.payloads([row]))), min_side=64), 32).astype(float) for row in (i, j))
    rms = min(np.sqrt(np.mean((a - t) ** 2)) for t in (turns(b) if turned else [b]))
    contrast = min(np.sqrt(np.mean((p - p.mean((0, 1))) ** 2)) for p in (a, b))
    score = rms * max(1.0, min_contrast / contrast if contrast else np.inf) if rms else 0.0
    return score if bits <= max_distance and score <= max_rms else None


@settings(max_examples=25, deadline=None)
@given(data=st.data(), size=st.integers(1, 9), turned=st.booleans())
def test_the_star_by_brute_force(data, size, turned):
    files = []
    for _ in range(size):
        picture = PICTURES[data.draw(st.integers(0, 2))]
        kind = data.draw(st.sampled_from(["", *EDITS]))
        files.append(edit(picture, kind) if kind else png(picture))
    order = data.draw(st.permutations(range(size)))
    fixed = sorted(data.draw(st.sets(st.integers(0, size - 1), max_size=2)))
    pool = picture_pool(files, order=order, fixed=fixed)
    limits = {"max_distance": 8, "max_rms": 9.0, "min_contrast": 40.0, "turned": turned}

    got = perceptual(pool, **limits)

    pixels = pool.column("num_pixels")
    ranked = sorted(range(size), key=lambda i: (i not in fixed, -pixels[i], order[i]))
    kept = []
    for i in ranked:
        near = {j: alike(pool, i, j, **limits) for j in kept}
        near = {j: s for j, s in near.items() if s is not None}
        assert got.keep[i] == (not near or i in fixed)
        if got.keep[i]:
            kept.append(i)
            continue
        best = min(near.values())
        assert got.score[i] == pytest.approx(best, abs=1e-9)
        assert near[got.witness[i]] == pytest.approx(best, abs=1e-9)
        assert got.columns["perceptual_group"][i].as_py() == pool.uid[got.witness[i]].decode()
    assert_lawful(pool, got, REASONS)
    assert got.columns["perceptual_size"].sum() >= size


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), limit=st.sampled_from([2.0, 6.0, 12.0, 18.0]))
def test_edges_replay_any_limit_below_the_floor(seed, limit):
    rng = np.random.default_rng(seed)
    files = [edit(PICTURES[rng.integers(3)], EDITS[rng.integers(len(EDITS))]) for _ in range(12)]
    pool = picture_pool(files, order=rng.permutation(12).tolist())
    loose, direct = perceptual(pool, max_rms=0.5), perceptual(pool, max_rms=limit)
    from manifests.star import star

    order = np.lexsort((pool.uid_rank, -pool.column("num_pixels")))
    rank = np.argsort(order)
    close = loose.edges.score <= limit
    keep, _, score = star(rank, [(loose.edges.a[close], loose.edges.b[close], -loose.edges.score[close])])

    assert keep.tolist() == direct.keep.tolist()
    assert np.allclose(-score[~keep], direct.score[~keep])
    assert (loose.edges.score <= 18).all()
    assert set(loose.edges.columns) == {"distance"}


def test_copies_of_photographs_are_found_and_photographs_stay():
    files = [png(p) for p in PICTURES]
    plants = [(i, kind) for i in range(0, 24, 2) for kind in EDITS]
    pool = picture_pool(files + [edit(PICTURES[i], kind) for i, kind in plants])

    got = perceptual(pool)

    assert got.keep[:24].all()  # no photograph lost
    origin = [*range(24), *(i for i, _ in plants)]
    assert all(origin[got.witness[row]] == origin[row] for row in np.flatnonzero(~got.keep))
    assert (~got.keep[24:]).mean() > 0.85
    assert not perceptual(pool, turned=False).keep[24:][[kind == "half" for _, kind in plants]].any()
    assert perceptual(pool, turned=False).keep[24:][[kind in ("turn", "mirror") for _, kind in plants]].mean() > 0.9


def test_flat_pictures_that_differ_are_never_merged():
    rng = np.random.default_rng(0)
    skies = [np.clip(rng.normal((90, 140, 220), 2, (48, 48, 3)) + s, 0, 255).astype(np.uint8) for s in range(6)]
    skies += [np.full((48, 48, 3), grey, np.uint8) for grey in (0, 128, 129, 255)]
    pool = picture_pool([png(s) for s in skies])
    assert perceptual(pool, max_distance=64).keep.all()
    assert not perceptual(pool, max_distance=64, min_contrast=0).keep.all()  # what the stretch is for


@pytest.mark.parametrize("size", [1, 300])
def test_all_identical_is_one_group_in_linear_time(size):
    files = [png(PICTURES[0])] * size
    pool = picture_pool(files[:1]) if size == 1 else pool_of(
        payloads=files, phash_views=np.repeat(picture_pool(files[:1]).column("phash_views"), size, axis=0), num_pixels=pa.array([1] * size)
    )  # fmt: skip
    got = perceptual(pool)
    assert got.keep.tolist() == [True] + [False] * (size - 1)
    assert (got.witness[1:] == 0).all()
    assert len(got.edges.a) == size - 1
    assert (got.columns["perceptual_size"] == size).all()


def test_at_the_pictures_own_size_nothing_is_resized():
    rng = np.random.default_rng(5)
    tile = rng.integers(0, 256, (28, 28)).astype(np.uint8)
    near = np.clip(tile.astype(int) + np.where(rng.random((28, 28)) < 0.5, 6, -6), 0, 255).astype(np.uint8)
    got = perceptual(picture_pool([png(tile), png(near)]), side=28, max_distance=64, turned=False)
    assert got.score[1] == pytest.approx(np.sqrt(np.mean((tile.astype(float) - near) ** 2)))


def test_the_larger_picture_is_kept():
    got = perceptual(picture_pool([edit(PICTURES[0], "half"), png(PICTURES[0])]))
    assert got.keep.tolist() == [False, True]


def test_what_does_not_fit_or_makes_no_sense_is_refused():
    pool = picture_pool([png(PICTURES[0])] * 2, memory=1000)
    with pytest.raises(Refusal, match=r"thumbnails of 2 rows.*\[does-not-fit\]"):
        perceptual(pool)
    for wrong in ({"side": 30}, {"floor_rms": 3.0}):
        with pytest.raises(Refusal, match="bad-value"):
            perceptual(pool, **wrong)


def test_an_empty_pool_and_a_pool_of_strangers():
    assert len(perceptual(picture_pool([])).keep) == 0
    got = perceptual(picture_pool([png(p) for p in PICTURES]))
    assert got.keep.all()
    assert (got.columns["perceptual_size"] == 1).all()


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2]])
def test_the_nearest_kept_row_is_the_witness(order):
    rng = np.random.default_rng(2)
    middle = rng.integers(40, 200, (28, 28)).astype(np.uint8)
    step = np.where(rng.random((28, 28)) < 0.5, 1, -1)
    files = [png((middle + by * step).astype(np.uint8)) for by in (6, -8, 0)]  # 14 apart from each other, 6 and 8 from the middle
    got = perceptual(picture_pool(files, order=order), side=28, max_distance=64)
    assert got.keep.tolist() == [True, True, False]
    assert got.witness.tolist() == [-1, -1, 0]
    assert got.score[2] == 6.0
