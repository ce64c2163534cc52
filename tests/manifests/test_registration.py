"""Registration: the arithmetic by brute force, every turn and every kind of edit laid over its origin, and pictures that only look alike refused."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from manifests import registration
from manifests.images import decode
from manifests.likeness import thumbnail, turn_pixels
from manifests.registration import ENOUGH, FIELDS, aligned, glance, register, see
from tests.pools import jpeg, png

PHOTOS = {name: np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in ("astronaut", "chelsea", "coffee", "rocket")}
EXACT = {"x0": st.integers(0, 40), "y0": st.integers(0, 40), "wide": st.integers(24, 60), "high": st.integers(24, 60)}


def box_of(match, side, shape):
    """A box of a match in pixels (left, top, right, bottom)."""
    return np.array(getattr(match, side)) * [shape[1], shape[0], shape[1], shape[0]]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), rows=st.integers(2, 5), columns=st.integers(2, 5), **EXACT)
def test_fields_are_exact_means(seed, rows, columns, x0, y0, wide, high):
    gray = np.random.default_rng(seed).integers(0, 256, (101, 101)).astype(np.uint8)
    box = x0 + 0.25, y0 + 0.5, x0 + wide + 0.125, y0 + high - 0.75
    found = registration._means(gray, box, rows, columns)
    across = [box[0] * 256 + i * (box[2] - box[0]) * 256 // columns for i in range(columns + 1)]
    down = [box[1] * 256 + i * (box[3] - box[1]) * 256 // rows for i in range(rows + 1)]
    row, column = seed % rows, seed % columns
    total = area = Fraction(0)
    for y in range(101):
        for x in range(101):
            share = [max(0, min(e[i + 1], 256 * p + 256) - max(e[i], 256 * p)) for e, i, p in ((down, row, y), (across, column, x))]
            total += Fraction(int(share[0] * share[1])) * int(gray[y, x])
            area += Fraction(int(share[0] * share[1]))
    assert found[row, column] == int(16 * total / area + Fraction(1, 2))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), noise=st.sampled_from([2, 10, 25, 60]))
def test_blocks_by_least_squares(seed, noise):
    rng = np.random.default_rng(seed)
    a = np.kron(rng.integers(0, 4080, (12, 16)), np.ones((2, 2), np.int64)) + np.arange(32) * int(rng.integers(-20, 20))
    b = np.clip(a // 2 + 700 + rng.integers(-16 * noise, 16 * noise + 1, a.shape), 0, 4080)
    agrees, shows = registration._blocks(a, b)
    x, y = np.tile(np.arange(8), 8), np.repeat(np.arange(8), 8)
    plane = np.stack([np.ones(64), x, y, x * x, x * y, y * y], axis=1)

    def left_over(picture):
        smooth = np.pad(picture, 1, mode="edge").astype(float)
        smooth = smooth[:-2] + 2 * smooth[1:-1] + smooth[2:]
        smooth = np.floor((smooth[:, :-2] + 2 * smooth[:, 1:-1] + smooth[:, 2:] + 8) / 16)
        cut = [smooth[y : y + 8, x : x + 8].ravel() for y in range(0, 24, 8) for x in range(0, 32, 8)]
        return [block - plane @ np.linalg.lstsq(plane, block, rcond=None)[0] for block in cut], smooth.std() / 16

    (mine, my_spread), (theirs, their_spread) = left_over(a), left_over(b)
    for block in range(12):
        p, q = mine[block], theirs[block]
        alike = p @ q / np.sqrt((p @ p) * (q @ q))
        detail = max(p.std() / 16 / my_spread, q.std() / 16 / their_spread) * 50
        assert shows[block] == (detail > registration.FLAT)
        if abs(alike - registration.AGREES) > 1e-6:
            assert agrees[block] == (shows[block] and alike > registration.AGREES)


def test_slopes_show_nothing():
    slope = 20 * np.arange(32)[None, :] + 30 * np.arange(32)[:, None]
    agrees, shows = registration._blocks(slope, slope // 2)
    inner = np.zeros((4, 4), bool)
    inner[1:3, 1:3] = True  # smoothing bends the outermost cells
    assert not shows[inner.ravel()].any()
    assert not agrees[inner.ravel()].any()


@pytest.mark.parametrize("turn", range(8))
def test_every_turn_of_a_crop_is_laid_over_its_origin(turn):
    photo = PHOTOS["coffee"]
    part = photo[40:320, 130:560]
    back = {1: 3, 3: 1}.get(turn, turn)
    copy = np.ascontiguousarray(turn_pixels(part[None], back)[0])  # so that `turn` undoes it
    match = register(see(photo), see(copy))
    assert match.turn == turn
    assert match.score > 0.9
    assert np.abs(box_of(match, "left", photo.shape) - [130, 40, 560, 320]).max() < 8
    assert np.abs(np.array(match.right) - [0, 0, 1, 1]).max() < 0.03
    left, right = (thumbnail(p, 32).astype(float) for p in aligned(photo, copy, match.turn, match.left, match.right))
    assert np.sqrt(np.mean((left - right) ** 2)) < 12


def edits(photo):
    """(name, picture, share of the origin that is shown, share of the copy that shows it)."""
    high, wide = photo.shape[:2]
    image = Image.fromarray(photo)
    framed = np.full((high + 120, wide + 120, 3), (200, 30, 60), np.uint8)
    framed[60:-60, 60:-60] = photo
    boxed = photo.copy()
    boxed[: high // 2, : wide // 2] = 255
    sheet = np.concatenate([photo[::2, ::2], turn_pixels(PHOTOS["rocket"][None], 0)[0][: photo[::2].shape[0], : photo[:, ::2].shape[1]]], axis=1)
    frame_share = high * wide / ((high + 120) * (wide + 120))
    return [
        ("jpeg", decode(jpeg(photo, 20)), 1, 1),
        ("half", np.asarray(image.resize((wide // 2, high // 2))), 1, 1),
        ("tenth", np.asarray(image.resize((wide // 10, high // 10))), 1, 1),
        ("grey", np.asarray(image.convert("L").convert("RGB")), 1, 1),
        ("darker", (photo * 0.5 + 20).astype(np.uint8), 1, 1),
        ("crop", photo[high // 8 : -high // 8, wide // 8 : -wide // 8], 0.5625, 1),
        ("frame", framed, 1, frame_share),
        ("box", boxed, 1, 1),
        ("collage", sheet, 1, 0.5),
    ]


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_every_edit_is_found_and_described(name):
    photo = PHOTOS[name]
    for kind, copy, shown, own in edits(photo):
        match = register(see(photo), see(copy))
        assert match is not None, kind
        assert match.score > 0.5, kind
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (match.left, match.right)]
        assert abs(areas[0] - shown) < 0.08, (kind, areas)
        assert abs(areas[1] - own) < 0.08, (kind, areas)
        if kind == "box":
            assert 0.1 < match.covered < 0.4
        elif kind != "tenth":
            assert match.covered < 0.15, kind


def test_the_other_way_round_says_the_same():
    photo = PHOTOS["coffee"]
    copy = np.ascontiguousarray(np.rot90(photo[50:350, 100:500]))
    there, back = register(see(photo), see(copy)), register(see(copy), see(photo))
    assert (there.turn, back.turn) == (3, 1)
    assert np.abs(np.array(there.left) - back.right).max() < 0.03
    assert len(there.row) == len(FIELDS)
    assert there.row[:2] == (there.turn, there.score)


def test_different_pictures_are_refused():
    pieces = [p[y : y + 128, x : x + 128] for p in PHOTOS.values() for y in (0, 128) for x in (0, 128, 256)]
    seen = [see(np.ascontiguousarray(p)) for p in pieces]
    assert [(i, j) for (i, a), (j, b) in combinations(enumerate(seen), 2) if register(a, b) is not None] == []


def test_pictures_that_look_alike_are_refused():
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:160, 0:200] / 200.0
    skies = [np.clip(np.stack([90 + 60 * y, 140 + 50 * y, 220 - 10 * y], 2) + rng.normal(0, 4, (160, 200, 3)), 0, 255) for _ in range(4)]
    glows = [255 * np.exp(-a * (x - 0.5) ** 2 - b * (y - 0.4) ** 2)[..., None] * [1, 0.8, 0.6] for a, b in ((8, 8), (3, 12), (20, 4))]
    noises = [rng.integers(0, 256, (160, 200, 3)) for _ in range(3)]
    seen = [see(p.astype(np.uint8)) for p in [*skies, *glows, *noises]]
    assert all(register(a, b) is None for a, b in combinations(seen, 2))


def test_flat_tiny_and_broken_pictures_match_their_equals_alone():
    flat = see(np.full((100, 80, 3), 128, np.uint8))
    tiny = see(PHOTOS["coffee"][:7, :9])
    assert register(flat, see(np.full((100, 80, 3), 129, np.uint8))) is None
    assert register(tiny, see(PHOTOS["coffee"][20:27, :9])) is None
    assert register(flat, see(np.full((50, 40, 3), 128, np.uint8))).agreeing == 0  # one to the eye, and nothing to compare
    assert register(flat, see(PHOTOS["coffee"])) is None
    assert glance(b"not a picture") is None
    assert glance(png(PHOTOS["coffee"])).gray.shape == (107, 160)


def test_what_is_kept_is_bounded_and_the_same_twice():
    for photo in PHOTOS.values():
        one, two = see(photo), see(photo.copy())
        assert all(np.array_equal(getattr(one, f), getattr(two, f)) for f in ("gray", "square", "points", "sizes", "angles", "descriptors"))
        assert sum(getattr(one, f).nbytes for f in ("gray", "square", "points", "sizes", "angles", "descriptors")) <= registration.BYTES
        match = register(one, two)
        assert (match.turn, match.score, match.covered, match.left, match.right) == (0, 1.0, 0.0, (0, 0, 1, 1), (0, 0, 1, 1))
        assert match.agreeing >= ENOUGH
