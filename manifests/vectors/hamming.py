"""All pairs of bit codes within a Hamming radius, exactly, and without comparing all with all where the codes allow it.

Multi-index search (Norouzi, Punjani, Fleet, CVPR 2012): cut the bits into s chunks; codes within r differ by at most r // s in one
of them at least. Rows are joined on each chunk, with its few flips, and every candidate is then counted in full. How the bits are
cut depends on a forecast and reaches the time alone, never the pairs.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np

from manifests.processes import cores

__all__ = ["Pairs", "distances", "neighbours", "representatives", "seconds"]

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # a int64, b int64, distance int32, of one length

BLOCK = 1 << 20  # pairs handed out, or counted, in one go
BASE_BLOCK = 1 << 25  # rows of a base that are searched at a time: some 50 bytes each
SLICE = 1 << 14  # rows whose neighbours one task looks up: what it touches stays in the cache
WINDOWS = (8, 16, 32)  # codes that are read together at a time: the first that holds a bucket of mean size
MAX_CHUNK = 22  # bits; the table of bucket starts has 2 ** bits entries
LOOKUP, READ, CANDIDATE, BRUTE = 12.0, 20.0, 4.0, 1.5  # nanoseconds, for choosing a way
SORT = 3000.0  # nanoseconds for each code, all chunks together


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
                n (n - 1) / 2 pairs (large radius, few rows, codes that share most bits) all are counted. As many threads as OMP_NUM_THREADS says, else
                cores. Memory by `manifests.vectors.forecast.bit_codes`; a larger base is searched `BASE_BLOCK` rows at a time
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
    for first in range(0, len(base), BASE_BLOCK):
        base_rows, base_starts, base_words = _unique(np.ascontiguousarray(base[first : first + BASE_BLOCK], np.uint8))
        base_rows += first
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
    if not within and len(a) > len(b):  # looking up is done for each row of `a`, with each of its flips
        return ((left, right, distance) for right, left, distance in _search(b, a, radius, bits, within))
    plan = _plan(a, b, radius, bits, within)
    return _by_counting_all(a, b, radius, within) if plan is None else _by_chunks(a, b, radius, plan, within)


def _plan(a: np.ndarray, b: np.ndarray, radius: int, bits: int, within: bool) -> list[tuple[int, int, int]] | None:
    """Chunks (first bit, width, flips allowed), or None to count all pairs: whichever is forecast to end first."""
    pairs = len(a) * len(b) / (2 if within else 1)
    best, cheapest = None, float(pairs * BRUTE * a.shape[1])
    sample_a, sample_b = a[:: -(-len(a) // 65536)], b[:: -(-len(b) // 65536)]
    scale = pairs / (len(sample_a) * len(sample_b))
    for chunks in _ways(radius, bits):
        cost = 0.0
        for low, width, allowed in chunks:
            flips = _flip_count(width, allowed)
            cost += flips * len(a) * LOOKUP
            if cost >= cheapest:
                break
            size = 1 << width
            count_a, count_b = (np.bincount(_keys(sample, low, width), minlength=size).astype(float) for sample in (sample_a, sample_b))
            shared = max(0.0, float(count_a @ count_b) - (len(sample_a) if within else 0)) * scale
            cost += flips * (shared * CANDIDATE + min(shared, len(a)) * READ)
        if cost < cheapest:
            best, cheapest = chunks, cost
    return best


def seconds(rows: int, base: int | None, radius: int, bits: int, *, sorting: bool = True) -> float:
    """What `neighbours` takes on codes whose bits are drawn at random, on one core; codes that share many bits take longer.

    sorting    with what putting the codes in order takes; without it what comparing them takes (by which `dedup.perceptual` chooses its way)
    """
    pairs = rows * rows / 2 if base is None else rows * base
    found = [pairs * BRUTE * -(-bits // 64)]
    for chunks in _ways(radius, bits):
        reads = [(_flip_count(width, allowed), pairs / 2**width) for _, width, allowed in chunks]
        found.append(sum(flips * (rows * LOOKUP + shared * CANDIDATE + min(shared, rows) * READ) for flips, shared in reads))
    return (min(found) + sorting * SORT * (rows + (base or 0))) * 1e-9


def _ways(radius: int, bits: int) -> Iterator[list[tuple[int, int, int]]]:
    """Every way to cut the bits so that no pair within the radius is missed: chunks (first bit, width, flips allowed)."""
    fewest = -(-bits // MAX_CHUNK)
    for s in range(fewest, min(bits, radius + 1, 40) + 1):
        each, rest = divmod(radius, s)
        edges = [bits * i // s for i in range(s + 1)]
        yield [(edges[i], edges[i + 1] - edges[i], each if i <= rest else each - 1) for i in range(s) if i <= rest or each > 0]
    if radius + 1 < fewest:  # more chunks than the radius needs: any radius + 1 of them do
        edges = [bits * i // fewest for i in range(fewest + 1)]
        yield [(edges[i], edges[i + 1] - edges[i], 0) for i in range(radius + 1)]


def _flip_count(width: int, allowed: int) -> int:
    return sum(comb(width, k) for k in range(min(allowed, width) + 1))


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


@dataclass(frozen=True)
class _Chunk:
    """Both sets sorted by the bits of one chunk. `a_words`, `b_words`: the codes word by word, `b_words` with `window` zeros behind the last."""

    a_key: np.ndarray
    a_order: np.ndarray
    a_words: list[np.ndarray]
    b_order: np.ndarray
    b_words: list[np.ndarray]
    starts: np.ndarray
    flips: list[int]
    radius: int
    window: int
    within: bool

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray, radius: int, chunk: tuple[int, int, int], within: bool) -> "_Chunk":
        low, width, allowed = chunk
        b_key = _keys(b, low, width)
        starts: np.ndarray = np.concatenate([[0], np.cumsum(np.bincount(b_key, minlength=1 << width))]).astype(_narrow(len(b)))
        b_order: np.ndarray = np.argsort(b_key, kind="stable").astype(_narrow(len(b)))
        window = next((size for size in WINDOWS if len(b) >> width < 0.8 * size), WINDOWS[-1])
        b_words = [np.concatenate([b[b_order, word], np.zeros(window, np.uint64)]) for word in range(b.shape[1])]
        a_order, a_key, a_words = b_order, b_key[b_order].astype(np.int32), b_words
        if not within:
            a_key = _keys(a, low, width)
            a_order = np.argsort(a_key, kind="stable").astype(_narrow(len(a)))
            a_key, a_words = a_key[a_order].astype(np.int32), [a[a_order, word] for word in range(a.shape[1])]
        return cls(a_key, a_order, a_words, b_order, b_words, starts, list(_flips(width, allowed)), radius, window, within)

    def near(self, first: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(place in a, place in b, distance) of the pairs of `SLICE` rows of a from `first` on that share this chunk but for its flips."""
        keys = self.a_key[first : first + SLICE]
        found = [part for flip in self.flips for part in self._flipped(first, keys, flip)]
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)
        left, right, distance = (np.concatenate(column) for column in zip(*found, strict=True))
        return left, right, distance

    def _flipped(self, first: int, keys: np.ndarray, flip: int) -> Iterator[Pairs]:
        top = flip.bit_length() - 1
        if self.within and flip and int(keys[0]) >> top == int(keys[-1]) >> top and int(keys[0]) >> top & 1:
            return  # every partner is the smaller key: found from there
        partner = keys ^ np.int32(flip)
        lows, ends = self.starts[partner], self.starts[partner + 1]
        if self.within and not flip:
            lows = np.arange(first + 1, first + 1 + len(keys), dtype=lows.dtype)
        elif self.within:
            ends = np.where(keys < partner, ends, lows)
        counts = ends - lows
        some = np.flatnonzero(counts)
        if not len(some):
            return
        if int(counts.max()) <= self.window:
            yield from self._read(first, some, lows[some], ends[some])
            return
        for left, number in _expand(np.zeros(len(counts), np.int64), -(-counts // self.window), -(-BLOCK // self.window)):
            yield from self._read(first, left, lows[left] + number * self.window, ends[left])

    def _read(self, first: int, left: np.ndarray, lows: np.ndarray, ends: np.ndarray) -> Iterator[Pairs]:
        """The pairs of row first + left[i] of a with the rows from lows[i] on, `window` at most and before ends[i]."""
        counted: np.ndarray | None = None
        for a_word, b_word in zip(self.a_words, self.b_words, strict=True):
            codes = _runs(b_word, self.window)[lows].view(np.uint64).reshape(len(lows), self.window)
            codes ^= a_word[first + left][:, None]
            bits = np.bitwise_count(codes)
            counted = bits if counted is None else np.add(counted, bits, dtype=np.uint16)
        assert counted is not None
        hit = np.flatnonzero(counted.reshape(-1) <= self.radius)
        row, place = np.divmod(hit, self.window)
        place += lows[row]
        inside = place < ends[row]
        if inside.any():
            yield first + left[row[inside]], place[inside], counted.reshape(-1)[hit[inside]].astype(np.int32)


def _narrow(count: int) -> type:
    """The smaller integer that numbers `count` places: half the memory to pass through."""
    return np.int32 if count < 1 << 30 else np.int64


def _runs(words: np.ndarray, length: int) -> np.ndarray:
    """(n,) of `length` words each, from every place of `words` on: one index then copies a whole run."""
    return np.ndarray((len(words) - length,), np.dtype((np.void, 8 * length)), buffer=words.data, strides=(8,))


def _by_chunks(a: np.ndarray, b: np.ndarray, radius: int, chunks: list[tuple[int, int, int]], within: bool) -> Iterator[Pairs]:
    masks = [(_mask(a.shape[1], low, width), allowed) for low, width, allowed in chunks]
    for number, bits in enumerate(chunks):
        chunk = _Chunk.of(a, b, radius, bits, within)
        for left, right, distance in _in_threads(chunk.near, range(0, len(a), SLICE)):
            left, right = chunk.a_order[left], chunk.b_order[right]
            good = np.arange(len(left))
            for mask, enough in masks[:number]:  # found through an earlier chunk already
                differ = (a[left[good]] ^ b[right[good]]) & mask
                good = good[np.bitwise_count(differ).sum(axis=1) > enough]
            if len(good):
                yield left[good].astype(np.int64), right[good].astype(np.int64), distance[good]


def _in_threads(work: Callable[[int], Pairs], tasks: Iterable[int]) -> Iterator[Pairs]:
    """`work` of every task in their order, by as many threads as the matrix libraries would take: numpy lets go of the interpreter while it works."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or cores())
    if threads == 1:
        yield from map(work, tasks)
        return
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(threads) as executor:
        for task in tasks:
            waiting.append(executor.submit(work, task))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _flips(width: int, allowed: int) -> Iterator[int]:
    """Every pattern of at most `allowed` set bits."""
    for count in range(min(allowed, width) + 1):
        for places in combinations(range(width), count):
            yield sum(1 << p for p in places)


def _expand(lows: np.ndarray, counts: np.ndarray, size: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(left, right) for each left row i and each right in lows[i] ... lows[i] + counts[i], in blocks of at most `size` (`BLOCK`)."""
    size = size or BLOCK
    rows = np.flatnonzero(counts > 0)
    ends = np.cumsum(counts[rows], dtype=np.int64)
    for start in range(0, int(ends[-1]) if len(ends) else 0, size):
        stop = min(start + size, int(ends[-1]))
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
