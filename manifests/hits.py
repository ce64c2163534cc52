"""Which evaluation samples a pool's rows show: a table of pairs that is bounded, and yet never short of a sample that is hit or of a row that hits one.

A pair is (row, sample, distance); the smaller the distance, the closer. Recorded are of each sample the closest rows, up to a number, and of each row its closest
sample. So whatever limit is set later, a sample that a row comes close enough to has a row in the table, and so has the row its witness.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

AT_ONCE = 1 << 21  # pairs that are held beyond those recorded

Pairs = tuple[
    np.ndarray, np.ndarray, np.ndarray, np.ndarray
]  # left, right int64, distance float64; (right groups,) bool: a pair of it is not recorded


@dataclass(frozen=True)
class Groups:
    """Rows that are the same to a way of comparing, and so are compared once.

    of       (n,) int64: the group of each row; groups are numbered by the place of their first row
    first    (groups,) int64: of each group the row with the smallest uid
    rank     (n,) int64: the place of each row in the order of uids
    """

    of: np.ndarray
    first: np.ndarray
    rank: np.ndarray

    @classmethod
    def by(cls, keys: np.ndarray, rank: np.ndarray) -> "Groups":
        """Rows with equal keys (n,) are one group."""
        order = np.argsort(rank)
        _, at, number = np.unique(keys[order], return_index=True, return_inverse=True)
        first, of = order[at], np.empty(len(keys), np.int64)
        of[order] = number
        by_place = np.argsort(first)
        new = np.empty(len(first), np.int64)
        new[by_place] = np.arange(len(first))
        return cls(new[of], first[by_place], rank)

    def __len__(self) -> int:
        return len(self.first)

    @property
    def first_rank(self) -> np.ndarray:
        """(groups,) int64: the rank of each group's first row in the order of uids."""
        return self.rank[self.first]

    def listed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows by group and then uid, where each group starts, its size)."""
        size = np.bincount(self.of, minlength=len(self))
        return np.lexsort((self.rank, self.of)), np.cumsum(size) - size, size


def closest(left: np.ndarray, right: np.ndarray, distance: np.ndarray, left_rank: np.ndarray, right_rank: np.ndarray, most: int) -> np.ndarray:
    """(k,) bool: of each right the `most` closest pairs, a tie by the rank of the left; and of each left the closest one, a tie by the rank of the right."""
    keep = np.zeros(len(left), bool)
    if not len(left):
        return keep
    order = np.lexsort((left_rank[left], distance, right))
    keep[order[_place(right[order]) < most]] = True
    order = np.lexsort((right_rank[right], distance, left))
    keep[order[_place(left[order]) == 0]] = True
    return keep


def _place(ordered: np.ndarray) -> np.ndarray:
    """(k,) the place of each entry among those that are equal and stand together."""
    at = np.arange(len(ordered))
    return at - np.maximum.accumulate(np.where(np.diff(ordered, prepend=ordered[0] - 1) != 0, at, 0))


def gathered(found: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], left: Groups, right: Groups, most: int, old: Pairs | None = None) -> Pairs:
    """The recorded pairs of groups among the blocks `found` (left group, right group, distance), each once with its least distance. No more than these are ever held.

    old    pairs that were recorded before, as this function gave them
    """
    u, v, distance, is_cut = old if old is not None else (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.zeros(len(right), bool))
    is_cut, waiting, count = is_cut.copy(), [(u, v, distance)], 0
    for block in found:
        waiting.append(block)
        count += len(block[0])
        if count > AT_ONCE:
            waiting, count = [_recorded(waiting, left, right, most, is_cut)], 0
    return *_recorded(waiting, left, right, most, is_cut), is_cut


def _recorded(blocks: list, left: Groups, right: Groups, most: int, is_cut: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    u, v, distance = (np.concatenate(column) for column in zip(*blocks, strict=True))
    order = np.lexsort((distance, v, u))
    u, v, distance = u[order], v[order], distance[order]
    new = np.ones(len(u), bool)
    new[1:] = (u[1:] != u[:-1]) | (v[1:] != v[:-1])
    u, v, distance = u[new], v[new], distance[new]
    keep = closest(u, v, distance, left.first_rank, right.first_rank, most)
    is_cut[v[~keep]] = True
    return u[keep], v[keep], distance[keep]


def spread(pairs: Pairs, left: Groups, right: Groups, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """From pairs of groups to the recorded pairs of their rows: row, sample, which pair of groups, and (samples,) bool: a pair of it is not recorded."""
    u, v, distance, group_cut = pairs
    rows, start, size = left.listed()
    samples, sample_start, sample_size = right.listed()
    pair, row = _closest_rows(u, v, distance, left, (rows, start, size), most)
    again = sample_size[v[pair]]
    at = _repeated(sample_start[v[pair]], again)
    row, sample, pair = np.repeat(row, again), samples[at], np.repeat(pair, again)

    order = np.lexsort((right.first_rank[v], distance, u))
    best = order[_place(u[order]) == 0] if len(order) else order
    own = rows[_repeated(start[u[best]], size[u[best]])]
    pair_of_own = np.repeat(best, size[u[best]])
    row, sample = np.concatenate([row, own]), np.concatenate([sample, right.first[v[pair_of_own]]])
    key, at = np.unique(row * max(len(right.of), 1) + sample, return_index=True)
    pair = np.concatenate([pair, pair_of_own])[at]
    row, sample = np.divmod(key, max(len(right.of), 1))
    total = np.bincount(v, weights=size[u], minlength=len(right))
    is_cut = group_cut[right.of] | (np.bincount(sample, minlength=len(right.of)) < total[right.of])
    return row, sample, pair, is_cut


@dataclass(frozen=True)
class Way:
    """What one way of comparing found: the recorded pairs of its groups, under the name of the column that it fills; `seen` (pairs, …) what else it saw of each."""

    column: str
    pairs: Pairs
    left: Groups
    right: Groups
    seen: np.ndarray | None = None


def together(ways: list[Way], samples: int, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """The recorded pairs of all ways, each once: row, sample, are all pairs of the sample there; and of each way which of these it saw, as which of its own."""
    width = max(samples, 1)
    spreads = [spread(way.pairs, way.left, way.right, most) for way in ways]
    key = np.unique(np.concatenate([row * width + sample for row, sample, _, _ in spreads]))
    row, sample = np.divmod(key, width)
    is_cut = np.logical_or.reduce([is_cut for _, _, _, is_cut in spreads])
    return row, sample, ~is_cut[sample], [(np.searchsorted(key, rows * width + of), pair) for rows, of, pair, _ in spreads]


def _closest_rows(u: np.ndarray, v: np.ndarray, distance: np.ndarray, left: Groups, listed: tuple, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(pair, row): of each right group the `most` closest rows of the left ones, a tie by uid. They stand in its first `most` left groups, in each among the first."""
    rows, start, size = listed
    order = np.lexsort((left.first_rank[u], distance, v))
    order = order[_place(v[order]) < most] if len(order) else order
    found = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    begin = 0
    while begin < len(order):
        total = np.cumsum(np.minimum(size[u[order[begin : begin + AT_ONCE]]], most))
        end = begin + max(1, int(np.searchsorted(total, AT_ONCE)))
        last = v[order[min(end, len(order)) - 1]]
        end = int(np.searchsorted(v[order], last, side="right"))  # a right group's pairs stay together
        some = order[begin:end]
        few = np.minimum(size[u[some]], most)
        pair, row = np.repeat(some, few), rows[_repeated(start[u[some]], few)]
        inner = np.lexsort((left.rank[row], distance[pair], v[pair]))
        inner = inner[_place(v[pair[inner]]) < most]
        found.append((pair[inner], row[inner]))
        begin = end
    return np.concatenate([p for p, _ in found]), np.concatenate([r for _, r in found])


def _repeated(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """start[0], start[0] + 1, … count[0] of them, then those of the next."""
    total = int(count.sum())
    return np.repeat(start - (np.cumsum(count) - count), count) + np.arange(total)
