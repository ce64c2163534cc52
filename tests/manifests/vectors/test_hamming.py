"""Pairs within a Hamming radius against comparing all with all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manifests.vectors import hamming
from manifests.vectors.hamming import distances, neighbours, representatives


def pairs(codes, radius, base=None):
    found = [row for block in neighbours(codes, radius, base=base) for row in zip(*(column.tolist() for column in block), strict=True)]
    assert len(set(found)) == len(found)
    return set(found)


def all_distances(a, b):
    return np.unpackbits(a[:, None] ^ b[None], axis=2).sum(2).astype(int)


def oracle(codes, radius, base=None):
    if base is not None:
        apart = all_distances(codes, base)
        return {(int(i), int(j), int(apart[i, j])) for i, j in np.argwhere(apart <= radius)}
    apart, first = all_distances(codes, codes), {}
    head = [first.setdefault(bytes(code), i) for i, code in enumerate(codes)]
    heads = sorted(set(head))
    return {(h, i, 0) for i, h in enumerate(head) if h != i} | {
        (i, j, int(apart[i, j])) for i in heads for j in heads if i < j and apart[i, j] <= radius
    }


@st.composite
def code_sets(draw):
    """Clumps of codes: equal ones, ones that differ in a few bits, and strangers."""
    width, seed = draw(st.sampled_from([1, 3, 8, 9, 32])), draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (draw(st.integers(0, 40)), width), np.uint8)
    for i in range(0, len(codes), 2):
        codes[i] = codes[rng.integers(0, len(codes))]
        for bit in rng.integers(0, 8 * width, rng.integers(0, 7)):
            codes[i, bit // 8] ^= 1 << bit % 8
    return codes, draw(st.sampled_from([0, 1, 2, 3, 5, 8, 13, 8 * width]))


@pytest.mark.parametrize("way", ["forecast", "chunks"])
@settings(max_examples=120, deadline=None)
@given(case=code_sets(), cut=st.floats(0, 1))
def test_pairs_are_those_of_comparing_all(way, case, cut):
    codes, radius = case
    before = hamming.BRUTE, hamming.MAX_CHUNK
    hamming.BRUTE, hamming.MAX_CHUNK = (1e9, 10) if way == "chunks" else before  # nothing is dearer than counting all
    radius = min(radius, 6) if way == "chunks" else radius
    try:
        assert pairs(codes, radius) == oracle(codes, radius)
        base = codes[int(cut * len(codes)) :]
        assert pairs(codes, radius, base) == oracle(codes, radius, base)
    finally:
        hamming.BRUTE, hamming.MAX_CHUNK = before


def test_the_order_of_pairs_and_the_size_of_blocks(monkeypatch):
    codes = np.random.default_rng(0).integers(0, 4, (500, 2), np.uint8)
    wanted = pairs(codes, 2), pairs(codes, 2, codes[:50])
    monkeypatch.setattr(hamming, "BLOCK", 300)
    for blocks in (neighbours(codes, 2), neighbours(codes, 2, base=codes[:50])):
        assert all(len(a) == len(b) == len(d) <= 512 and a.dtype == b.dtype == np.int64 and d.dtype == np.int32 for a, b, d in blocks)
    assert (pairs(codes, 2), pairs(codes, 2, codes[:50])) == wanted


@pytest.mark.parametrize(("width", "radius"), [(8, 0), (8, 4), (8, 10), (32, 20)])
def test_many_codes_are_not_compared_one_by_one(width, radius, monkeypatch):
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (20_000, width), np.uint8)
    codes[:2000] = codes[2000:4000]
    codes[:2000, 1] ^= 1
    monkeypatch.setattr(hamming, "_by_counting_all", None)
    found = pairs(codes, radius)
    assert all((i, i + 2000, 1) in found for i in range(2000)) if radius else not found
    assert sum(d == 1 for _, _, d in found) == (2000 if radius else 0)


@pytest.mark.parametrize("width", [8, 32])
def test_a_million_equal_codes_are_a_million_pairs(width):
    codes = np.zeros((1_000_000, width), np.uint8)
    codes[5, 0] = 1
    count, heads = 0, set()
    for a, _, distance in neighbours(codes, 10):
        count += len(a)
        heads |= set(np.unique(a).tolist()) | set(np.unique(distance).tolist())
    assert count == 1_000_000 - 2 + 1
    assert heads == {0, 1}


def test_representatives_and_distances():
    codes = np.array([[1], [2], [1], [2], [0]], np.uint8)
    assert representatives(codes).tolist() == [0, 1, 0, 1, 4]
    assert representatives(np.empty((0, 8), np.uint8)).tolist() == []
    assert distances(codes, codes[::-1]).tolist() == [1, 0, 0, 0, 1]
    wide = np.random.default_rng(0).integers(0, 256, (50, 32), np.uint8)
    assert distances(wide, wide[::-1]).tolist() == [int(np.unpackbits(a ^ b).sum()) for a, b in zip(wide, wide[::-1], strict=True)]


def test_a_star_over_representatives_is_the_star_over_all():
    """Keeper order = row order: the star over named rows, further rows dropped, keeps what the star over every pair keeps."""
    rng = np.random.default_rng(5)
    for _ in range(30):
        codes = rng.integers(0, 6, (40, 1), np.uint8)
        every = all_distances(codes, codes)
        slow, fast = np.ones(40, bool), np.ones(40, bool)
        for i in range(40):
            slow[i] = not any(slow[j] and every[i, j] <= 1 for j in range(i))
        named = sorted((b, a) for a, b, _ in pairs(codes, 1))
        for i in range(40):
            heads = {a for b, a in named if b == i}
            fast[i] = not any(fast[a] for a in heads)
        first = representatives(codes)
        assert np.array_equal(slow, fast & (first == np.arange(40)))


@pytest.mark.parametrize("width", [8, 9])
def test_slices_windows_and_blocks_of_the_base_reach_no_pair(width, monkeypatch):
    """Crowded buckets, read in windows of one and two codes, by slices of three rows, from a base in blocks of 50: the pairs of comparing all."""
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 256, (400, width), np.uint8)
    codes[:300, 1:] = codes[0, 1:]  # one bucket of most chunks
    base = np.concatenate([codes[::3], rng.integers(0, 256, (40, width), np.uint8)])
    for name, value in (("SLICE", 3), ("WINDOWS", (1, 2)), ("BASE_BLOCK", 50), ("BLOCK", 16), ("BRUTE", 1e9), ("MAX_CHUNK", 10)):
        monkeypatch.setattr(hamming, name, value)
    assert pairs(codes, 5) == oracle(codes, 5)
    assert pairs(codes, 5, base) == oracle(codes, 5, base)


@pytest.mark.parametrize("radius", [2, 9])
def test_the_smaller_side_is_looked_up_in_the_larger(radius):
    rng = np.random.default_rng(radius)
    codes = rng.integers(0, 256, (300, 8), np.uint8)
    base = codes[::50] ^ rng.integers(0, 2, (6, 8), np.uint8)
    for few, many in ((base, codes), (codes, base)):
        assert pairs(few, radius, many) == oracle(few, radius, many)


def test_threads_give_the_same_pairs_in_the_same_order(monkeypatch):
    codes = np.random.default_rng(2).integers(0, 256, (3000, 8), np.uint8)
    codes[1500:] = codes[:1500] ^ np.uint8(1)
    monkeypatch.setattr(hamming, "SLICE", 64)
    monkeypatch.setattr(hamming, "BRUTE", 1e9)
    found = []
    for threads in ("1", "3"):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        found.append([np.concatenate(column) for column in zip(*neighbours(codes, 9), strict=True)])
    assert len(found[0][0]) == 1500
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


def test_seconds_are_those_of_the_quicker_way():
    compared = 1000 * 1000 / 2 * hamming.BRUTE * 1e-9
    assert hamming.seconds(1000, None, 64, 64, sorting=False) == pytest.approx(compared)
    assert hamming.seconds(1000, None, 64, 64) == pytest.approx(compared + 1000 * hamming.SORT * 1e-9)
    ten_million = hamming.seconds(10_000_000, None, 8, 64)
    assert 30 < ten_million < 900  # 1.4 days where all are counted
    assert ten_million < hamming.seconds(10_000_000, 80_000_000, 8, 64) < 16 * ten_million
    assert hamming.seconds(1_000_000, None, 4, 64) < hamming.seconds(1_000_000, None, 8, 64)
