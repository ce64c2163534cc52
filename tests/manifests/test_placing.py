"""Placing: turned boxes by turned pixels, seams where pictures meet, areas laid on each other, and a moved picture found again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from manifests import placing
from manifests.images import shrink
from manifests.likeness import turn_pixels
from manifests.placing import areas_of, by_areas, by_cells, drifted, turned_box
from manifests.surfaces import SQUARE

GRAYS = [shrink(np.ascontiguousarray(getattr(data, name)()[..., :3]), 150) for name in ("astronaut", "chelsea", "coffee", "rocket")]


@settings(max_examples=60, deadline=None)
@given(turn=st.integers(0, 7), box=st.tuples(*[st.integers(0, 5)] * 2, *[st.integers(1, 5)] * 2))
def test_a_turned_box_holds_the_same_pixels(turn, box):
    plane = np.arange(9 * 12).reshape(9, 12)
    x0, y0, x1, y1 = box[0], box[1] % 4, box[0] + box[2], box[1] % 4 + box[3]
    left, top, right, bottom = (int(v) for v in turned_box((x0, y0, x1, y1), 12, 9, turn))
    turned = turn_pixels(plane[None], turn)[0]
    assert sorted(turned[top:bottom, left:right].ravel()) == sorted(plane[y0:y1, x0:x1].ravel())


def test_a_photograph_is_one_area_and_its_middle_square():
    for gray in GRAYS[:3]:
        high, wide = gray.shape
        areas, parts = areas_of(gray, (0.0, 0.0, float(wide), float(high)))
        assert parts == 0
        assert areas[0] == (0, 0, wide, high)
        assert len(areas) == 1 + (max(high, wide) > placing.OBLONG * min(high, wide))
        assert all(abs((a[2] - a[0]) - min(high, wide)) < 1e-9 and abs((a[3] - a[1]) - min(high, wide)) < 1e-9 for a in areas[1:])


@pytest.mark.parametrize("at", [60, 75, 90])
def test_seams_part_a_collage(at):
    a, b, c, d = (g[:150, :150] for g in GRAYS)
    sheet = np.concatenate([np.concatenate([a[:at, :80], b[:at, :70]], 1), np.concatenate([c[: 150 - at, :80], d[: 150 - at, :70]], 1)])
    areas, parts = areas_of(sheet, (0.0, 0.0, 150.0, 150.0))
    assert parts == 4
    truth = [(0, 0, 80, at), (80, 0, 150, at), (0, at, 80, 150), (80, at, 150, 150)]
    assert max(min(np.abs(np.subtract(area, t)).max() for area in areas[-4:]) for t in truth) <= 1.5


def test_a_frame_is_an_area_of_its_own():
    gray = GRAYS[0]
    high, wide = gray.shape
    frame = (-10.0, -5.0, wide + 10.0, high + 5.0)
    assert frame in areas_of(gray, frame)[0]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), turn=st.integers(0, 7))
def test_equal_areas_are_proposed_in_their_turn(seed, turn):
    squares = np.random.default_rng(seed).integers(0, 4080, (3, SQUARE, SQUARE))
    squares[2] = turn_pixels(squares[:1], {1: 3, 3: 1}.get(turn, turn))[0]
    areas = [(0.0, 0.0, 40.0, 30.0), (5.0, 0.0, 35.0, 30.0)]
    found = by_areas((areas[:1], squares[:1], 0), ([(0.0, 0.0, 60.0, 80.0)], squares[2:], 0), (80, 60))
    best = max(found, key=lambda p: p.weight)
    assert best.turn == turn
    assert best.weight == pytest.approx(20)
    wide, high = (80, 60) if turn % 2 else (60, 80)
    assert best.placing == pytest.approx((40 / wide, 30 / high, 0, 0))
    assert by_areas((areas[:1], squares[:1], 0), (areas[1:], squares[1:2], 0), (30, 40)) == []


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 99), zoom=st.floats(0.9, 1.1), x=st.floats(-0.06, 0.06), y=st.floats(-0.06, 0.06))
def test_a_moved_square_is_found_again(seed, zoom, x, y):
    rng = np.random.default_rng(seed)
    terms = [(rng.normal(), *rng.uniform(2, 5, 2), rng.uniform(0, 7)) for _ in range(5)]
    scene = lambda u, v: 2000 + 400 * sum(a * np.cos(p * u[None, :] + q * v[:, None] + r) for a, p, q, r in terms)
    left = scene(placing.CENTRES, placing.CENTRES)
    right = 0.7 * scene((placing.CENTRES - x) / zoom, (placing.CENTRES - y) / zoom) + 300
    assert drifted(left, right) == pytest.approx((zoom, zoom, x, y), abs=0.1)


def test_what_has_nothing_to_hold_on_to_stays_or_is_given_up():
    flat = np.full((SQUARE, SQUARE), 2000.0)
    found = drifted(flat, flat)
    assert found is None or found == pytest.approx((1, 1, 0, 0))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), turn=st.integers(0, 7), covered=st.integers(0, 24), light=st.integers(-40, 40))
def test_the_turn_in_which_most_cells_agree_by_brute_force(seed, turn, covered, light):
    rng = np.random.default_rng(seed)
    mine = rng.integers(1000, 3000, (SQUARE, SQUARE)).astype(np.uint16)
    theirs = turn_pixels((mine.astype(int) + 16 * light + rng.integers(-15, 16, mine.shape))[None], {1: 3, 3: 1}.get(turn, turn))[0].copy()
    theirs[:covered] += 2000  # up to three quarters of it
    found = by_cells((0, 0, 120, 90), mine, (0, 0, *((60, 80) if turn % 2 else (80, 60))), theirs.astype(np.uint16))
    shares = []
    fields = lambda square: square.reshape(SQUARE // 2, 2, SQUARE // 2, 2).mean((1, 3))
    for t in range(8):
        offs = [fields(mine.astype(int)) - gain * fields(turn_pixels(theirs[None].astype(int), t)[0]) for gain in 2.0 ** (np.arange(-8, 9) / 8)]
        shares.append(max((np.abs(off - np.sort(off, axis=None)[off.size // 2]) <= 16).mean() for off in offs))
    if max(shares) < 0.6:
        assert found == []
    else:
        assert [(p.turn, p.weight, p.areas) for p in found] == [(int(np.argmax(shares)), 20 * max(shares), (0, 0))]
        if covered < 12:
            assert found[0].turn == turn
            assert found[0].placing == (1.5, 1.5, 0.0, 0.0)
