"""Rows whose vectors all but coincide: the pairs inside cells, which of them a crowd needs, and what equal rows share."""

import builtins
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import NoReturn

import numpy as np

from manifests.errors import Refusal
from manifests.memory import size as bytes_of
from manifests.vectors.clusters import Cells
from manifests.vectors.forecast import PAIR
from manifests.vectors.products import OnDevice
from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import closest, cosines, reaching

HIGH, WIDE = 256, 4096  # rows and columns of a tile
HIGH_THERE = 4096  # rows of one on a device
TOGETHER = 64  # clusters of one round
IMPLAUSIBLE = 0.5  # of all rows: more that leave as near copies is worth a warning
ENOUGH = 100  # rows from which on a share says something
FEW = 1_000_000  # pairs that are recorded however few the rows are
OPEN, KEPT, DROPPED = 0, 1, 2

Tile = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]
State = tuple[np.ndarray, ...]
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, row int64, cosine float64
Scan = Callable[[str, Callable[[State], State], State, int], State]  # `Pool.scan`
Once = Callable[[str, Callable[[], State]], State]  # `Pool.once`


def limit_of(rows: int, max_edges: int) -> int:
    """How many pairs are recorded one by one: `max_edges` a row, and a million at least."""
    return max(FEW, max_edges * rows)


def pairs_inside(
    z: Vectors,
    cells: Cells,
    floor: float,
    limit: int,
    scan: Scan,
    device: str = "cpu",
    known: np.ndarray | None = None,
    memory: int = 1 << 62,
    where: str = "",
) -> Pairs | None:
    """All pairs of rows that share a cell and have a cosine of at least `floor`, each once, in the order of their rows; None where they are more than `limit`.

    known    (n,) bool: a pair of two such rows is not looked for
    memory   bytes that pairs may take; raises `Refusal` [does-not-fit] where they need more, with what they need
    """
    groups, idle, made = builtins.list(cells.each()), np.zeros(len(z), bool) if known is None else known, _made(z, device)

    def compare(state: State) -> State:
        a, b, score, (done, is_crowd) = state
        found = [(a, b, score)]
        count = len(a)
        for home, guests in groups[int(done) : int(done) + TOGETHER]:
            for rows, r, columns, c, _ in _shared(z, home, guests, idle, floor, made):
                is_crowd = is_crowd or count + len(r) > 2 * limit + FEW
                if is_crowd:
                    break
                exact = cosines(z, rows, r, columns, c)
                hit = exact >= floor
                found.append((rows[r[hit]], columns[c[hit]], exact[hit]))
                count += int(hit.sum())
            if is_crowd or count > 2 * limit:
                return a[:0], b[:0], score[:0], np.array([len(groups), 1])
        if PAIR * count > memory:
            _refuse(where, min(2 * limit, count * len(groups) // min(int(done) + TOGETHER, len(groups))), memory)
        a, b, score = (np.concatenate(column) for column in zip(*found, strict=True))
        return a, b, score, np.array([done + TOGETHER, 0])

    nothing = np.empty(0, np.int64)
    a, b, score, (_, is_crowd) = scan("pairs", compare, (nothing, nothing, np.empty(0), np.zeros(2, np.int64)), -(-len(groups) // TOGETHER))
    key, at = np.unique(np.minimum(a, b) * len(z) + np.maximum(a, b), return_index=True)
    return None if is_crowd or len(key) > limit else (key // len(z), key % len(z), score[at])


def _refuse(where: str, count: int, memory: int) -> NoReturn:
    needed = PAIR * count
    raise Refusal(
        "does-not-fit", where, f"some {count:,} pairs reach floor_cosine and need {bytes_of(needed)}", f"{bytes_of(memory)} are left for them",
        f"Give {bytes_of(needed - memory)} more --memory, and the same command goes on from here; or raise floor_cosine",
    )  # fmt: skip


def thinned(z: Vectors, cells: Cells, threshold: float, rank: np.ndarray, fixed: np.ndarray, most: int, once: Once, device: str = "cpu") -> Pairs:
    """For crowds whose pairs are too many: those (kept, dropped, cosine) from which the star rule finds what it would find from all pairs of at least `threshold`.

    Round after round a row with a kept better neighbour is dropped, and one without an open better neighbour kept; `rank` (n,) is the keeper order, `fixed`
    rows stay. Of each dropped row the `most` closest kept neighbours of better rank are given, ties in keeper order.
    Cost       a few times the products of `pairs_inside`, 2 bytes a row, and the pairs that are given
    """
    groups, made = builtins.list(cells.each()), _made(z, device)
    status = np.where(fixed, KEPT, OPEN).astype(np.int8)
    number = 0
    while (status == OPEN).any():
        (status,) = once(f"round-{number}", functools.partial(_round, z, groups, threshold, rank, status, made))
        number += 1
    return once("witnesses", lambda: _stars(z, groups, threshold, rank, status, most, made))  # type: ignore[return-value]


def _round(z: Vectors, groups: list, threshold: float, rank: np.ndarray, status: np.ndarray, made: OnDevice | None) -> State:
    beaten, waits, error = np.zeros(len(z), bool), np.zeros(len(z), bool), made.error if made else float32_error(z.dim)
    for home, guests in groups:
        home, guests = home[status[home] != DROPPED], guests[status[guests] != DROPPED]
        if not ((status[home] == OPEN).any() or (status[guests] == OPEN).any()):
            continue
        for rows, r, columns, c, score in _shared(z, home, guests, status == KEPT, threshold, made):
            sure = score > threshold + error
            unsure = np.flatnonzero(~sure)
            sure[unsure] = cosines(z, rows, r[unsure], columns, c[unsure]) >= threshold
            a, b = rows[r[sure]], columns[c[sure]]
            swap = rank[a] > rank[b]
            better, worse = np.where(swap, b, a), np.where(swap, a, b)
            beaten[worse[status[better] == KEPT]] = True
            waits[worse[status[better] == OPEN]] = True
    after, is_open = status.copy(), status == OPEN
    after[is_open & beaten] = DROPPED
    after[is_open & ~beaten & ~waits] = KEPT
    return (after,)


def _stars(z: Vectors, groups: list, threshold: float, rank: np.ndarray, status: np.ndarray, most: int, made: OnDevice | None) -> Pairs:
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for home, guests in groups:
        everyone, is_gone, guest_gone = np.concatenate([home, guests]), status[home] == DROPPED, status[guests] == DROPPED
        for left, right in ((everyone[status[everyone] == KEPT], home[is_gone]), (guests[guest_gone], home[~is_gone])):
            for rows, r, columns, c, _ in _tiles(z, left, right, threshold, made, triangle=False):
                exact = cosines(z, rows, r, columns, c)
                a, b = rows[r], columns[c]
                swap = rank[a] > rank[b]
                a, b = np.where(swap, b, a), np.where(swap, a, b)
                hit = (exact >= threshold) & (status[a] == KEPT) & (status[b] == DROPPED)
                found.append((a[hit], b[hit], exact[hit]))
    a, b, score = (np.concatenate(column) for column in zip(*found, strict=True))
    _, at = np.unique(a * len(z) + b, return_index=True)
    a, b, score = a[at], b[at], score[at]
    order = np.lexsort((rank[a], -score, b))
    place = np.arange(len(order)) - np.searchsorted(b[order], b[order])
    order = order[place < max(most, 1)]
    return a[order], b[order], score[order]


def rivals(z: Vectors, cells: Cells, floor: float, rank: np.ndarray, known: np.ndarray | None = None) -> Pairs:
    """(earlier, later, cosine): of each row that is not `known` (n,) bool the row at home in the same cell, of better `rank`, with the highest cosine of at least
    `floor`; ties in keeper order."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for home, _ in cells.each():
        home = home[np.argsort(rank[home])]
        best, by = np.full(len(home), -np.inf), np.full(len(home), -1, np.int64)
        for left in range(0, len(home), WIDE):
            base = z.unit(home[left : left + WIDE])
            for top in range(left, len(home), HIGH):
                at = np.arange(top, min(top + HIGH, len(home)))
                at = at if known is None else at[~known[home[at]]]
                if not len(at):
                    continue
                columns = np.arange(left, min(left + len(base), at[-1] + 1))
                scores = z.unit(home[at]) @ base[: len(columns)].T
                scores[columns >= at[:, None]] = -2
                closer, place = closest(scores, z, home[at], z, home[columns], np.maximum(floor, np.nextafter(best[at], 2)))
                hit = np.flatnonzero(place >= 0)
                best[at[hit]], by[at[hit]] = closer[hit], columns[place[hit]]
        has = np.flatnonzero(by >= 0)
        found.append((home[by[has]], home[has], best[has]))
    a, b, score = (np.concatenate(column) for column in zip(*found, strict=True))
    return a, b, score


def _made(z: Vectors, device: str) -> OnDevice | None:
    """Where a device proposes pairs, in float16; on the CPU it is float32, block by block."""
    return None if device == "cpu" else OnDevice(z, device)


def _shared(z: Vectors, home: np.ndarray, guests: np.ndarray, idle: np.ndarray, floor: float, made: OnDevice | None) -> Iterator[Tile]:
    """The tiles of a cell, everyone with the rows at home and each pair once, but for pairs of two `idle` (n,) bool rows."""
    busy, others = home[~idle[home]], home[idle[home]]
    yield from _tiles(z, np.concatenate([busy, others, guests]), busy, floor, made, triangle=True)
    yield from _tiles(z, guests[~idle[guests]], others, floor, made, triangle=False)


def _tiles(z: Vectors, rows: np.ndarray, columns: np.ndarray, floor: float, made: OnDevice | None, *, triangle: bool) -> Iterator[Tile]:
    """Tile after tile: its rows, r, its columns, c, and the proposed cosines of all pairs (rows[r], columns[c]) that may reach `floor`.

    triangle    `columns` are the first of `rows`: each pair comes once, and none of a row with itself
    """
    high = HIGH_THERE if made else HIGH
    for left in range(0, len(columns), WIDE):
        some = columns[left : left + WIDE]
        base = some if made else z.unit(some)
        for top in range(left if triangle else 0, len(rows), high):
            block = rows[top : top + high]
            wide = min(len(some), top + len(block) - left) if triangle else len(some)
            if made:
                r, c, score = made.pairs(block, some[:wide], floor)
            else:
                at_home = triangle and left <= top and top + len(block) <= left + len(some)
                unit = base[top - left : top - left + len(block)] if at_home else z.unit(block)
                r, c, score = reaching(unit, base[:wide], floor - float32_error(z.dim))
            if triangle:
                earlier = c + left < r + top
                r, c, score = r[earlier], c[earlier], score[earlier]
            if len(r):
                yield block, r, some, c, score


def spread(
    pairs: Pairs | None, of_a_crowd: Callable[[], Pairs], first: np.ndarray, rank: np.ndarray, limit: int, memory: int = 1 << 62, where: str = ""
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, bool]:
    """From one row of each set of equal rows to all rows: a, b, cosine, are they equal, and are these all pairs there are.

    pairs        all pairs between first rows, or None where they are too many
    of_a_crowd   gives fewer that will do, where these are too many
    first        (n,) int64: the row that stands for this one, itself where it does
    rank         (n,) int64: keeper order
    memory       bytes that the pairs may take; raises `Refusal` [does-not-fit] where they need more
    """
    size = np.bincount(first, minlength=len(first))
    if pairs is not None:
        a, b, score = pairs
        total = int((size[a] * size[b]).sum() + (size * (size - 1)).sum() // 2)
        if total <= limit:
            if PAIR * total > memory:
                _refuse(where, total, memory)
            ends, others, cosine, equal = _all_members(a, b, score, first, size)
            return ends, others, cosine, equal, True
    if pairs is None or size[np.where(rank[a] > rank[b], a, b)].sum() > limit:
        a, b, score = of_a_crowd()
    swap = rank[a] > rank[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    order, start, count = np.argsort(first, kind="stable"), np.cumsum(size) - size, size[b]
    at = np.repeat(start[b], count) + np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    copies = np.flatnonzero(first != np.arange(len(first)))
    ends, others = np.concatenate([np.repeat(a, count), first[copies]]), np.concatenate([order[at], copies])
    equal = np.arange(len(ends)) >= len(at)
    return ends, others, np.concatenate([np.repeat(score, count), np.ones(len(copies))]), equal, False


def _all_members(
    a: np.ndarray, b: np.ndarray, score: np.ndarray, first: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    order, start = np.argsort(first, kind="stable"), np.cumsum(size) - size
    sets = np.flatnonzero(size > 1)
    a, b = np.concatenate([a, sets]), np.concatenate([b, sets])
    count = size[a] * size[b]
    pair = np.repeat(np.arange(len(a)), count)
    place = np.arange(len(pair)) - np.repeat(np.cumsum(count) - count, count)
    i, j = np.divmod(place, size[b[pair]])
    ends, others = order[start[a[pair]] + i], order[start[b[pair]] + j]
    equal = a[pair] == b[pair]
    once = ~equal | (i < j)
    return ends[once], others[once], np.concatenate([score, np.ones(len(sets))])[pair[once]], equal[once]


def together(rank: np.ndarray, a: np.ndarray, b: np.ndarray, equal: np.ndarray) -> np.ndarray:
    """(n,) int64: `rank` with equal rows side by side, at the place of the first of them; a, b, equal are the pairs and which of them are of equal rows."""
    first = rank.copy()
    np.minimum.at(first, a[equal], rank[b[equal]])
    np.minimum.at(first, b[equal], rank[a[equal]])
    after = np.empty(len(rank), np.int64)
    after[np.lexsort((rank, first))] = np.arange(len(rank))
    return after


def warn_of_many(where: str, cosine: np.ndarray, threshold: float) -> None:
    """Say it where more than half of the rows would go as near copies, rows with equal vectors not counted: the threshold, or the encoder, is more likely wrong
    than the pool.

    cosine    (n,) of each row to what it is dropped for, NaN where kept
    """
    share = [float(np.mean(cosine >= t)) if len(cosine) else 0.0 for t in (threshold, 0.97, 0.99, 1.0)]
    if len(cosine) >= ENOUGH and share[0] - share[3] > IMPLAUSIBLE:
        warnings.warn(
            f"{where}: {threshold:g} drops {share[0]:.0%} of {len(cosine)} rows: {share[1]:.0%} stand at 0.97 or closer to what stays, {share[2]:.0%} at 0.99, "
            f"{share[3]:.0%} have equal vectors. Look at the pairs in the report: is the encoder good for these pictures? Else raise min_cosine",
            stacklevel=3,
        )
