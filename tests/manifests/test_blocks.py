"""Blocks: means by fractions, agreement by least squares, and slopes that show nothing."""

from fractions import Fraction

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests import blocks

EXACT = {"x0": st.integers(0, 40), "y0": st.integers(0, 40), "wide": st.integers(24, 60), "high": st.integers(24, 60)}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), rows=st.integers(2, 5), columns=st.integers(2, 5), **EXACT)
def test_fields_are_exact_means(seed, rows, columns, x0, y0, wide, high):
    gray = np.random.default_rng(seed).integers(0, 256, (101, 101)).astype(np.uint8)
    box = x0 + 0.25, y0 + 0.5, x0 + wide + 0.125, y0 + high - 0.75
    found = blocks.means(gray, box, rows, columns)
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
    agrees, shows, both, against = blocks.blocks(a, b)
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
        details = [p.std() / 16 / my_spread * 50, q.std() / 16 / their_spread * 50]
        assert shows[block] == (max(details) > blocks.FLAT)
        assert both[block] == (min(details) > blocks.FLAT)
        if abs(alike - blocks.AGAINST) > 1e-6:
            assert against[block] == (both[block] and alike < blocks.AGAINST)
        if abs(alike - blocks.AGREES) > 1e-6:
            assert agrees[block] == (shows[block] and alike > blocks.AGREES)


def test_slopes_show_nothing():
    slope = 20 * np.arange(32)[None, :] + 30 * np.arange(32)[:, None]
    agrees, shows, _, _ = blocks.blocks(slope, slope // 2)
    inner = np.zeros((4, 4), bool)
    inner[1:3, 1:3] = True  # smoothing bends the outermost cells
    assert not shows[inner.ravel()].any()
    assert not agrees[inner.ravel()].any()


def slopes(plane, block):
    """(2, 2): the structure tensor of a block, with loops."""
    smooth = blocks.smoothed(plane).astype(float)
    high, wide = smooth.shape
    across = plane.shape[1] // 8
    found = np.zeros((2, 2))
    for y in range(block // across * 8, block // across * 8 + 8):
        for x in range(block % across * 8, block % across * 8 + 8):
            both = [
                smooth[y, x + 1] - smooth[y, x - 1] if 0 < x < wide - 1 else 0.0,
                smooth[y + 1, x] - smooth[y - 1, x] if 0 < y < high - 1 else 0.0,
            ]
            found += np.outer(both, both)
    return found


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), noise=st.sampled_from([0, 3, 10, 40]))
def test_corners_and_straight_lines_by_their_own_values(seed, noise):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:24, 0:32]
    plane = (2000 + 900 * np.sin(rng.uniform(0.1, 0.9) * (x * np.cos(seed) + y * np.sin(seed))) + 16 * noise * rng.normal(size=x.shape)).astype(
        np.int64
    )
    ratios = [own[0] / own[1] for own in (np.linalg.eigvalsh(slopes(plane, block)) for block in range(12))]
    for found, ratio in zip(blocks.corners(plane), ratios, strict=True):
        if abs(ratio - blocks.CURVE) > 1e-6:
            assert found == (ratio > blocks.CURVE)
    some = rng.random(12) < 0.5
    some[0] = True
    small, large = np.linalg.eigvalsh(sum(slopes(plane, block) for block in np.flatnonzero(some)))
    assert blocks.is_straight(plane, some) == (small < blocks.STRAIGHT * large)


def test_a_block_without_any_slope_is_no_corner():
    assert not blocks.corners(np.full((16, 16), 700)).any()
    edge = np.where(np.arange(16) < 4, 0, 3000) * np.ones((16, 1), np.int64)
    assert not blocks.corners(edge).any()
    edge[:4] = 0
    assert blocks.corners(edge)[0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 999), noise=st.sampled_from([0, 5, 20, 60]), gain=st.sampled_from([-1.0, 0.5, 1.0]))
def test_greys_agree_by_their_correlation(seed, noise, gain):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 4080, (3, 4)).repeat(8, 0).repeat(8, 1)
    b = np.clip(2000 + gain * (a - 2000) + 16 * noise * rng.normal(size=a.shape), 0, 4080).astype(np.int64)
    some = np.arange(12) != seed % 12
    means = [np.array([p[y : y + 8, x : x + 8].mean() for y in range(0, 24, 8) for x in range(0, 32, 8)])[some] for p in (a, b)]
    like = np.corrcoef(*means)[0, 1]
    if abs(like - blocks.GREYS) > 1e-9:
        assert blocks.greys_agree(a, b, some) == (like > blocks.GREYS)
    assert blocks.greys_agree(a, b, some) == blocks.greys_agree(b, a, some)


def test_one_grey_agrees_with_one_grey_and_with_nothing_else():
    one, dark, step = np.full((16, 16), 3000), np.full((16, 16), 40), np.repeat([0, 800], 8) * np.ones((16, 1), np.int64)
    every = np.ones(4, bool)
    assert blocks.greys_agree(one, dark, every)
    assert not blocks.greys_agree(one, step, every)
    assert blocks.greys_agree(step // 2 + 600, step, every)
    assert blocks.greys_agree(step // 13, one, every)  # 2 grey levels of spread are still one grey
