"""Surfaces: what lies over a part of a picture is found by truth, a box is told from a line, and what a correlation proves by closed form."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.likeness import turn_pixels
from manifests.surfaces import COSINES, LIGHT, MOST_COVERED, SQUARE, SURFACE, boxes, likest_turn, one_light, turned_cells, uncovered

Y, X = (np.mgrid[0:SQUARE, 0:SQUARE] + 0.5) / SQUARE


def waves(seed, count=8, spread=12.0):
    """(32, 32) float64: a blurred picture's greys, no finer than an eighth of a side."""
    rng = np.random.default_rng(seed)
    terms = [rng.normal() * np.cos(rng.uniform(2, 25) * X + rng.uniform(2, 25) * Y + rng.uniform(0, 7)) for _ in range(count)]
    return 128 + spread * sum(terms) / math.sqrt(count / 2)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), gain=st.sampled_from([0.5, 1.0, 2.0]), light=st.integers(-30, 30), covered=st.integers(0, 12))
def test_cells_of_one_light_by_brute_force(seed, gain, light, covered):
    rng = np.random.default_rng(seed)
    mine = rng.uniform(0, 200, 101)
    theirs = np.stack([(mine - light) / gain + rng.uniform(-0.2, 0.2, 101), rng.uniform(0, 200, 101)])
    theirs[0, :covered] += 150
    found = one_light(mine, theirs, LIGHT)
    for row, other in enumerate(theirs):
        best = max((abs(off - np.sort(off)[50]) <= LIGHT).sum() for g in 2.0 ** (np.arange(-8, 9) / 8) for off in [mine - g * other])
        assert found[row].sum() == best
    assert found[0, covered:].all() and not found[0, :covered].any()


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9),
    gain=st.sampled_from([0.5, 2**-0.5, 1.0, 2**0.25, 2.0]),
    light=st.floats(-20, 20),
    box=st.tuples(*[st.integers(0, 17)] * 2, *[st.integers(4, 14)] * 2),
)
def test_what_a_box_covers_is_what_differs_at_whatever_gain_and_light(seed, gain, light, box):
    picture, (left, top, wide, high) = waves(seed), box
    under = np.zeros((SQUARE, SQUARE), bool)
    under[top : top + high, left : left + wide] = True
    other = np.where(under, 400.0, gain * picture + light)  # brighter than anything
    found = uncovered(np.stack([picture.ravel(), other.ravel()], axis=1))
    assert found is not None
    assert (found == ~under.ravel()).all()


@pytest.mark.parametrize("seed", range(5))
def test_a_shade_over_one_of_the_two_covers_nothing(seed):
    picture = waves(seed)
    other = 1.13 * picture + 9 + 6 * X - 5 * Y * Y + 3 * X * Y
    assert uncovered(np.stack([picture.ravel(), other.ravel()], axis=1)).all()


def test_nothing_is_said_of_too_little():
    picture = waves(0)
    greys = lambda other: np.stack([picture.ravel(), other.ravel()], axis=1)
    assert uncovered(greys(waves(1))) is None
    assert uncovered(greys(-picture)) is None  # a negative
    half = np.where(X < MOST_COVERED + 0.1, 300.0, picture)
    assert uncovered(greys(half)) is None
    glow = 128 + 40 * X - 30 * X * Y + 25 * Y * Y  # a surface, and nothing else
    assert uncovered(np.stack([glow.ravel(), glow.ravel()], axis=1)) is None


def test_a_box_and_a_sticker_are_boxes_a_line_and_a_crescent_are_detail():
    covered = np.zeros((SQUARE, SQUARE), bool)
    covered[3:12, 5:20] = True
    covered[20:32, 24:32] = True  # to the edge
    sticker = (X - 0.2) ** 2 + (Y - 0.8) ** 2 < 0.02
    found = boxes(covered | sticker)
    assert found[covered | sticker].mean() > 0.99
    assert found.sum() < (covered | sticker).sum() * 1.6  # and what is beside them
    lines = np.zeros_like(covered)
    lines[8:10], lines[:, 20:22] = True, True
    crescent = (np.hypot(X, Y) < 0.95) & (np.hypot(X, Y) > 0.8)
    assert not boxes(lines).any()
    assert not boxes(crescent).any()
    assert not boxes(np.zeros_like(covered)).any()


def test_cosines_are_an_orthonormal_base():
    assert np.allclose(COSINES @ COSINES.T, np.eye(SQUARE))


@pytest.mark.parametrize("turn", range(8))
def test_the_turn_is_found_and_turned_cells_say_where_all_lies(turn):
    picture = waves(3)
    other = turn_pixels(picture[None], {1: 3, 3: 1}.get(turn, turn))[0]
    found, r, _ = likest_turn(picture.ravel(), 0.5 * other.ravel() + 30, 0)
    assert (found, round(r, 9)) == (turn, 1.0)
    assert (picture.ravel()[turned_cells(SQUARE)[turn]] == turn_pixels(picture[None], turn)[0].ravel()).all()


def test_what_a_correlation_proves_by_closed_form():
    waves_of = lambda k: np.outer(COSINES[k], COSINES[k + 1]).ravel()  # one part each, and hardly a surface
    rest = lambda picture: picture - SURFACE @ np.linalg.lstsq(SURFACE, picture, rcond=None)[0]
    one, noise = rest(waves_of(9)), rest(waves_of(14))
    noise -= one * (one @ noise) / (one @ one)
    noise *= np.linalg.norm(one) / np.linalg.norm(noise)
    _, r, nats = likest_turn(one, 0.8 * one + 0.6 * noise, 0)
    assert r == pytest.approx(0.8, abs=1e-6)
    assert nats == pytest.approx(-math.log(1 - 0.64) / 2, rel=0.02)  # of one part
    four = rest(sum(waves_of(k) for k in (8, 12, 16, 20)))
    noise = rest(waves_of(25)) - four * (four @ rest(waves_of(25))) / (four @ four)
    noise *= np.linalg.norm(four) / np.linalg.norm(noise)
    assert likest_turn(four, 0.8 * four + 0.6 * noise, 0)[2] == pytest.approx(-4 * math.log(1 - 0.64) / 2, rel=0.03)
    grains = np.random.default_rng(0).normal(0, 1, SQUARE * SQUARE)
    assert likest_turn(waves(5).ravel() + 0.01 * grains, waves(5).ravel(), 0)[2] < likest_turn(grains, grains + 0.1, 0)[2] / 10
    assert likest_turn(np.full(SQUARE * SQUARE, 7.0), grains, 0)[2] < 1e-9  # nothing shown, nothing proved


def test_what_differs_by_less_than_a_grey_level_is_not_covered():
    picture = waves(2)
    other = picture + np.where((X < 0.3) & (Y < 0.3), 0.8, 0.0)  # where nearly all else is equal
    found = uncovered(np.stack([picture.ravel(), other.ravel()], axis=1))
    assert found is not None and found.all()
