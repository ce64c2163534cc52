"""Two pictures compared: against the plain definition, in any turn, and candidates against all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.likeness import Pictures, candidates, differences, members, turn_pixels
from tests.pools import turns


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
