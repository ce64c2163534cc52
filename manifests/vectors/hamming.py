"""All pairs of bit codes within a Hamming radius, exactly, and without comparing all with all where the codes allow it.

Multi-index search (Norouzi, Punjani, Fleet, CVPR 2012): cut the bits into s chunks; codes within r differ by at most r // s in one
of them at least. Rows are joined on each chunk, with its few flips, and every candidate is then counted in full. How the bits are
cut depends on a forecast and reaches the time alone, never the pairs.
"""

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numpy as np

__all__ = ["Pairs", "distances", "neighbours", "representatives"]

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # a int64, b int64, distance int32, of one length

BLOCK = 1 << 20  # candidates looked at in one go: some 40 MB
MAX_CHUNK = 22  # bits; the table of bucket starts has 2 ** bits entries
LOOKUP, CANDIDATE, BRUTE = 10.0, 15.0, 1.5  # nanoseconds, for choosing a way


def neighbours(codes: np.ndarray, radius: int, *, base: np.ndarray | None = None) -> Iterator[Pairs]:
    """Blocks (a, b, distance) of pairs of rows whose codes differ in at most `radius` bits.

    With `base`     every pair of a row a of `codes` and a row b of `base`. Many equal codes on both sides multiply: group them first (`representatives`).
    Without it      pairs a < b of rows of `codes`, and **equal codes are one**: a pair stands for all rows with the same two codes and names the
                    smallest row of each, and each further row m of a code comes once, as (its smallest row, m, 0). A million equal codes are thus a
                    million pairs. A star rule over the named rows decides for all (sort rows by keeper order first, so that the best is named): a
                    further row is dropped whatever becomes of its named row, and has its witness: that row, or the witness of that row.

    Guarantee   exact: each such pair once; their order is fixed by the input
    codes       (n, w) uint8; base (m, w) uint8
    radius      0 to 8 w bits
    Cost        time grows with the candidates that share a chunk; where a forecast finds that worse than counting all
                n (n - 1) / 2 pairs (large radius, few rows, codes that share most bits) all are counted. Memory 60 bytes a row and `BLOCK`
    """
    codes = np.ascontiguousarray(codes, np.uint8)
    bits = codes.shape[1] * 8
    rows, starts, words = _unique(codes)
    if base is None:
        yield from _repeated(rows, starts)
        first = rows[starts[:-1]]
        for left, right, distance in _search(words, words, radius, bits, within=True):
            yield np.minimum(first[left], first[right]), np.maximum(first[left], first[right]), distance
        return
    assert base.shape[1] == codes.shape[1], "codes of two widths"
    base_rows, base_starts, base_words = _unique(np.ascontiguousarray(base, np.uint8))
    for left, right, distance in _search(words, base_words, radius, bits, within=False):
        yield from _every_member(left, right, distance, rows, starts, base_rows, base_starts)


def _repeated(rows: np.ndarray, starts: np.ndarray) -> Iterator[Pairs]:
    """(smallest row of a code, further row, 0) for every further row."""
    head = np.repeat(rows[starts[:-1]], np.diff(starts))
    further = np.flatnonzero(head != rows)
    for start in range(0, len(further), BLOCK):
        some = further[start : start + BLOCK]
        yield head[some], rows[some], np.zeros(len(some), np.int32)


def _every_member(
    left: np.ndarray, right: np.ndarray, distance: np.ndarray, rows: np.ndarray, starts: np.ndarray, base_rows: np.ndarray, base_starts: np.ndarray
) -> Iterator[Pairs]:
    """Pairs of codes as pairs of the rows that carry them."""
    across = starts[left + 1] - starts[left]
    down = base_starts[right + 1] - base_starts[right]
    lows = np.zeros(len(left), np.int64)
    for pair, inside in _expand(lows, across * down):
        i, j = np.divmod(inside, down[pair])
        yield rows[starts[left[pair]] + i], base_rows[base_starts[right[pair]] + j], distance[pair]


def representatives(codes: np.ndarray) -> np.ndarray:
    """(n,) int64: for each row of `codes` (n, w) uint8 the smallest row with the same code."""
    words = _words(np.ascontiguousarray(codes, np.uint8))
    order = np.lexsort(words.T[::-1])
    starts = _new_runs(words[order])
    found = np.empty(len(codes), np.int64)
    found[order] = order[np.flatnonzero(starts)][np.cumsum(starts) - 1] if len(order) else 0
    return found


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) int32 number of bits in which `a` and `b`, (n, w) uint8, differ row by row."""
    return np.bitwise_count(np.bitwise_xor(a, b)).sum(axis=-1, dtype=np.int32)


def _words(codes: np.ndarray) -> np.ndarray:
    """(n, v) uint64, padded with zeros; bit 0 of the code is the highest of word 0."""
    width = -(-codes.shape[1] // 8) * 8
    padded = np.zeros((len(codes), width), np.uint8)
    padded[:, : codes.shape[1]] = codes
    return padded.view(">u8").astype(np.uint64)


def _new_runs(ordered: np.ndarray) -> np.ndarray:
    """(n,) bool: does another code begin at this place of the sorted words?"""
    starts = np.ones(len(ordered), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return starts


def _unique(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rows in order of code, then row; where each code starts among them, with the end; the words of each code."""
    words = _words(codes)
    order = np.lexsort(words.T[::-1]).astype(np.int64)  # stable, so the smallest row of a code comes first
    ordered = words[order]
    starts = np.flatnonzero(_new_runs(ordered))
    return order, np.append(starts, len(order)), ordered[starts]


def _search(a: np.ndarray, b: np.ndarray, radius: int, bits: int, within: bool) -> Iterator[Pairs]:
    """Pairs of places in `a` and `b`, which hold each code once; within one set (`a` is `b`) each pair once, in either order."""
    if not len(a) or not len(b):
        return iter(())
    plan = _plan(a, b, radius, bits, within)
    return _by_counting_all(a, b, radius, within) if plan is None else _by_chunks(a, b, radius, plan, within)


def _plan(a: np.ndarray, b: np.ndarray, radius: int, bits: int, within: bool) -> list[tuple[int, int, int]] | None:
    """Chunks (first bit, width, flips allowed), or None to count all pairs: whichever is forecast to end first."""
    pairs = len(a) * len(b) / (2 if within else 1)
    best, cheapest = None, float(pairs * BRUTE * a.shape[1])
    sample_a, sample_b = a[:: -(-len(a) // 65536)], b[:: -(-len(b) // 65536)]
    scale = pairs / (len(sample_a) * len(sample_b))
    for s in range(-(-bits // MAX_CHUNK), min(bits, radius + 1, 40) + 1):
        each, rest = divmod(radius, s)
        edges = [bits * i // s for i in range(s + 1)]
        chunks = [(edges[i], edges[i + 1] - edges[i], each if i <= rest else each - 1) for i in range(s) if i <= rest or each > 0]
        cost = 0.0
        for low, width, allowed in chunks:
            flips = sum(comb(width, k) for k in range(min(allowed, width) + 1))
            cost += flips * len(a) * LOOKUP
            if cost >= cheapest:
                break
            size = 1 << width
            count_a, count_b = (np.bincount(_keys(sample, low, width), minlength=size).astype(float) for sample in (sample_a, sample_b))
            shared = float(count_a @ count_b)
            cost += max(0.0, shared - (len(sample_a) if within else 0)) * scale * flips * CANDIDATE
        if cost < cheapest:
            best, cheapest = chunks, cost
    if best is None and radius + 1 < -(-bits // MAX_CHUNK):
        s = -(-bits // MAX_CHUNK)  # more chunks than the radius needs: any radius + 1 of them do
        edges = [bits * i // s for i in range(s + 1)]
        chunks = [(edges[i], edges[i + 1] - edges[i], 0) for i in range(radius + 1)]
        if len(chunks) * len(a) * LOOKUP < cheapest:
            best = chunks
    return best


def _keys(words: np.ndarray, low: int, width: int) -> np.ndarray:
    """(n,) int64: bits low to low + width of each code as a number."""
    word, at = divmod(low, 64)
    value = words[:, word] << np.uint64(at) >> np.uint64(64 - width)
    over = at + width - 64
    if over > 0:
        value |= words[:, word + 1] >> np.uint64(64 - over)
    return value.astype(np.int64)


def _mask(words: int, low: int, width: int) -> np.ndarray:
    """(v,) uint64 with the bits of a chunk set."""
    bits = np.zeros(words * 64, np.uint8)
    bits[low : low + width] = 1
    return np.packbits(bits).view(">u8").astype(np.uint64)


def _by_chunks(a: np.ndarray, b: np.ndarray, radius: int, chunks: list[tuple[int, int, int]], within: bool) -> Iterator[Pairs]:
    masks = [(_mask(a.shape[1], low, width), allowed) for low, width, allowed in chunks]
    for chunk, (low, width, allowed) in enumerate(chunks):
        a_key, b_key = _keys(a, low, width), _keys(b, low, width)
        a_order, b_order = np.argsort(a_key, kind="stable"), np.argsort(b_key, kind="stable")
        a_key, a_sorted, b_sorted = a_key[a_order], a[a_order], b[b_order]
        starts = np.concatenate([[0], np.cumsum(np.bincount(b_key, minlength=1 << width))])
        for flip in _flips(width, allowed):
            partner = a_key ^ flip
            lows, counts = starts[partner], starts[partner + 1] - starts[partner]
            if within:
                if flip:
                    counts[a_key > partner] = 0
                else:
                    after = np.arange(1, len(a) + 1)
                    lows, counts = after, lows + counts - after
            for left, right in _expand(lows, counts):
                differ = a_sorted[left] ^ b_sorted[right]
                distance = np.bitwise_count(differ).sum(axis=1, dtype=np.int32)
                good = np.flatnonzero(distance <= radius)
                for mask, enough in masks[:chunk]:  # found through an earlier chunk already
                    good = good[np.bitwise_count(differ[good] & mask).sum(axis=1) > enough]
                if len(good):
                    yield a_order[left[good]], b_order[right[good]], distance[good]


def _flips(width: int, allowed: int) -> Iterator[int]:
    """Every pattern of at most `allowed` set bits."""
    for count in range(min(allowed, width) + 1):
        for places in combinations(range(width), count):
            yield sum(1 << p for p in places)


def _expand(lows: np.ndarray, counts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(left, right) for each left row i and each right in lows[i] ... lows[i] + counts[i], in blocks of at most `BLOCK`."""
    rows = np.flatnonzero(counts > 0)
    ends = np.cumsum(counts[rows])
    for start in range(0, int(ends[-1]) if len(ends) else 0, BLOCK):
        stop = min(start + BLOCK, int(ends[-1]))
        some = slice(int(np.searchsorted(ends, start, side="right")), int(np.searchsorted(ends, stop, side="left")) + 1)
        begins = ends[some] - counts[rows[some]]
        count = np.minimum(ends[some], stop) - np.maximum(begins, start)
        yield np.repeat(rows[some], count), np.arange(start, stop) - np.repeat(begins, count) + np.repeat(lows[rows[some]], count)


def _by_counting_all(a: np.ndarray, b: np.ndarray, radius: int, within: bool) -> Iterator[Pairs]:
    height = 256
    for top in range(0, len(a), height):
        for left in range(top + 1 if within else 0, len(b), BLOCK // height):
            right = b[left : left + BLOCK // height]
            distance = np.zeros((len(a[top : top + height]), len(right)), np.uint16)
            for word in range(a.shape[1]):
                distance += np.bitwise_count(a[top : top + height, word, None] ^ right[None, :, word])
            i, j = np.nonzero(distance <= radius)
            i, j, d = i + top, j + left, distance[i, j].astype(np.int32)
            keep = j > i if within else slice(None)
            if len(i[keep]):
                yield i[keep], j[keep], d[keep]
