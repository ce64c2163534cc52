"""Two pictures compared: against the plain definition, in any turn, and candidates against all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.errors import Refusal
from manifests.likeness import INNER, OUTER, Looks, Pictures, border, candidates, differences, members, thumbnail, thumbnails, trimmed, turn_pixels
from tests.pools import png, turns


def plain(a, b, *, min_contrast, turned):
    """The definition, in float64."""
    rms = min(np.sqrt(np.mean((a.astype(float) - t) ** 2)) for t in (turns(b) if turned else [b]))
    contrast = min(np.sqrt(np.mean((p - p.mean((0, 1))) ** 2)) for p in (a.astype(float), b.astype(float)))
    if rms == 0:
        return 0.0
    return rms * max(1.0, min_contrast / contrast if contrast else (np.inf if min_contrast else 1.0))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.sampled_from([0, 1, 3, 60]), turned=st.booleans(), min_contrast=st.sampled_from([0.0, 40.0]))
def test_the_score_is_its_definition(seed, spread, turned, min_contrast):
    rng = np.random.default_rng(seed)
    base = rng.integers(60, 180, 3)
    one = np.clip(base + rng.integers(-spread, spread + 1, (8, 8, 3)), 0, 255).astype(np.uint8)
    other = np.clip(turns(one)[rng.integers(8)].astype(int) + rng.integers(-spread // 3, spread // 3 + 1, (8, 8, 3)), 0, 255).astype(np.uint8)
    pictures = Pictures.from_pixels(np.stack([one, other]))

    got = differences(pictures, np.array([0]), pictures, np.array([1]), limit=30.0, min_contrast=min_contrast, turned=turned)[0]

    want = plain(one, other, min_contrast=min_contrast, turned=turned)
    assert got == pytest.approx(want, rel=1e-9) if want <= 30 else np.isinf(got)


def test_eight_turns_are_all_there_and_different():
    picture = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(1, 4, 4, 3)
    seen = {turn_pixels(picture, turn).tobytes() for turn in range(8)}
    assert seen == {t.tobytes() for t in turns(picture[0])}
    assert len(seen) == 8


def test_two_flat_pictures_are_far_apart_unless_equal():
    flat = np.full((3, 32, 32, 3), 100, np.uint8)
    flat[1] += 1
    pictures = Pictures.from_pixels(flat)
    got = differences(pictures, np.array([0, 0]), pictures, np.array([1, 2]), limit=50.0, min_contrast=40.0, turned=True)
    assert got.tolist() == [np.inf, 0.0]
    assert differences(pictures, np.array([0]), pictures, np.array([1]), limit=50.0, min_contrast=0.0, turned=True) == [1.0]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), radius=st.integers(0, 6), turned=st.booleans(), against=st.booleans())
def test_candidates_are_all_pairs_within_the_radius(seed, radius, turned, against):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, (9, 16)).astype(np.uint8)  # two bytes a turn, few bits set: many equal and near codes
    codes[3] = codes[0]
    other = rng.integers(0, 4, (7, 16)).astype(np.uint8) if against else None
    base = codes if other is None else other
    want = {}
    for a in range(len(codes)):
        for b in range(len(base)):
            for x, y in [(a, b)] if against else [(a, b), (b, a)]:
                if against or a < b:
                    views = base[y].reshape(8, 2)[: 8 if turned else 1]
                    least = min(int(np.bitwise_count(codes[x, :2] ^ v).sum()) for v in views)
                    if least <= radius:
                        want[a, b] = min(least, want.get((a, b), 99))

    a, b, distance = candidates(codes, other, radius, turned=turned)

    assert dict(zip(zip(a.tolist(), b.tolist(), strict=True), distance.tolist(), strict=True)) == want
    assert len(a) == len(want)


def test_members_are_the_pairs_of_rows_of_the_pairs_of_groups():
    group = np.array([0, 1, 0, -1, 1, 2])
    got = {
        (int(i), int(j), int(p))
        for a, b, pair in members(group, np.array([0, 1, 0]), np.array([1, 1, 2]))
        for i, j, p in zip(a, b, pair, strict=True)
    }
    assert got == {(0, 1, 0), (0, 4, 0), (2, 1, 0), (2, 4, 0), (1, 4, 1), (0, 5, 2), (2, 5, 2)}


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 999), height=st.integers(20, 60), width=st.integers(20, 60), colour=st.tuples(*[st.integers(0, 255)] * 3),
    borders=st.tuples(*[st.sampled_from([0, 0, 3, 7, 20])] * 4), noise=st.sampled_from([0, 1]),
)  # fmt: skip
def test_a_border_of_any_width_and_colour_is_taken_off(seed, height, width, colour, borders, noise):
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    top, bottom, left, right = borders
    framed = np.clip(np.full((height + top + bottom, width + left + right, 3), colour) + rng.integers(-noise, noise + 1, 3), 0, 255).astype(np.uint8)
    framed[top : top + height, left : left + width] = picture

    got = trimmed(framed)

    if height * width > 0.97 * framed.shape[0] * framed.shape[1]:
        assert got is framed  # too thin to be one
    elif min(height / framed.shape[0], width / framed.shape[1]) >= 0.25:
        assert np.array_equal(got, picture)
    assert trimmed(got) is got
    for view in turns(framed):
        assert sorted(trimmed(view).shape) == sorted(got.shape)


def plain_border(picture):
    """Its definition: every side, every line, no way out before."""
    box = [0, 0, 0, 0]
    colours = {}
    for _ in range(2):
        for side in range(4):
            inner = picture[box[0] : picture.shape[0] - box[1], box[2] : picture.shape[1] - box[3]].astype(int)
            lines = inner if side < 2 else inner.swapaxes(0, 1)
            lines = lines[::-1] if side % 2 else lines
            colour = colours.get(side, np.sort(lines[0], axis=0)[lines.shape[1] // 2])
            if side not in colours and np.abs(lines[0] - colour).mean() > OUTER:
                continue
            colours[side] = colour
            is_other = np.abs(lines - colour).mean((1, 2)) > INNER
            if not is_other.any():
                return 0, 0, 0, 0
            box[side] += int(is_other.argmax())
    high, wide = picture.shape[0] - box[0] - box[1], picture.shape[1] - box[2] - box[3]
    is_left = min(high / picture.shape[0], wide / picture.shape[1]) >= 0.25
    return tuple(box) if is_left and high * wide <= 0.97 * picture.shape[0] * picture.shape[1] else (0, 0, 0, 0)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 9999), height=st.integers(1, 70), width=st.integers(1, 70), borders=st.tuples(*[st.sampled_from([0, 0, 1, 8, 9, 30])] * 4),
    noise=st.sampled_from([0, 4, 6, 7, 16]), soft=st.booleans(),
)  # fmt: skip
def test_a_border_is_its_definition(seed, height, width, borders, noise, soft):
    rng = np.random.default_rng(seed)
    picture = rng.integers(90 if soft else 0, 110 if soft else 256, (height, width, 3))
    top, bottom, left, right = borders
    framed = np.pad(picture, ((top, bottom), (left, right), (0, 0)), constant_values=100)
    framed[:top] += rng.integers(-noise, noise + 1, framed[:top].shape)
    framed[:, :left] += rng.integers(-noise, noise + 1, framed[:, :left].shape)
    framed = np.clip(framed, 0, 255).astype(np.uint8)
    for view in turns(framed):
        assert border(view) == plain_border(view)


def test_what_is_all_border_stays_whole():
    flat = np.full((40, 50, 3), 90, np.uint8)
    assert trimmed(flat) is flat
    flat[20, 25] = 255  # a speck: less than a quarter of a side
    assert trimmed(flat) is flat
    assert trimmed(np.zeros((1, 1, 3), np.uint8)).shape == (1, 1, 3)
    sides = np.concatenate([np.zeros((30, 30, 3), np.uint8), np.full((30, 30, 3), 255, np.uint8)])
    assert trimmed(sides) is sides


def test_thumbnails_are_of_the_look_and_read_each_file_once():
    rng = np.random.default_rng(3)
    pictures = [rng.integers(0, 256, (40, 40, 3)).astype(np.uint8) for _ in range(3)]
    framed = [np.pad(p, ((6, 6), (6, 6), (0, 0)), constant_values=250) for p in pictures]
    asked = []

    def read(rows):
        asked.extend(rows.tolist())
        return (png(framed[row]) for row in rows)

    codes = np.arange(3, dtype=np.uint8)[:, None] * np.ones(8, np.uint8)
    looks = Looks.of(codes, codes + np.array([[0], [1], [1]], np.uint8))
    assert looks.row.tolist() == [0, 1, 2, 1, 2]
    assert looks.is_trimmed.tolist() == [False, False, False, True, True]
    distinct, group = looks.grouped()
    assert np.array_equal(distinct[group], looks.codes)
    assert len(distinct) == 4

    got = thumbnails("test", read, looks, np.array([4, 2, 1, 3]), 8, 1 << 20)

    assert asked == [1, 2]
    want = [pictures[2], framed[2], framed[1], pictures[1]]
    assert all(np.array_equal(a, thumbnail(b, 8)) for a, b in zip(got.pixels, want, strict=True))
    assert len(thumbnails("test", read, looks, np.empty(0, np.int64), 8, 1 << 20)) == 0
    with pytest.raises(Refusal, match="does-not-fit"):
        thumbnails("test", read, looks, np.array([0]), 8, 100)


def test_a_picture_that_cannot_be_decoded_is_like_no_other():
    flat = np.zeros((16, 16, 3), np.uint8)
    files = [png(flat), b"no picture", b"no picture"]
    codes = np.zeros((3, 8), np.uint8)
    got = thumbnails("test", lambda rows: (files[row] for row in rows), Looks.of(codes, codes), np.arange(3), 8, 1 << 20)
    assert np.isnan(got.contrast).tolist() == [False, True, True]
    assert len({row.tobytes() for row in got.pixels}) == 3  # and so equal to none
    for min_contrast in (0.0, 40.0):
        a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 2])
        found = differences(got, a, got, b, limit=255.0, min_contrast=min_contrast, turned=True)
        assert found.tolist() == [0.0, np.inf, np.inf, np.inf]
