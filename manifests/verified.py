"""Verified copies between two sets of pictures: proposed pairs are laid over one another, one by one, in rounds that are not done twice.

Which pairs to look at is the caller's; what a copy is stands in `registration`.
"""

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from manifests.hits import Groups, Pairs, closest
from manifests.registration import FIELDS, Match, register
from manifests.seen import BYTES, Seen, glance
from manifests.vectors.copies import Scan, State

PAIRS = 1024  # pairs that are verified in one round
HELD = 256  # pictures of the right that are kept as `registration` sees them, at least

Read = Callable[[np.ndarray], Iterator[Any]]  # the image files of rows: `Pool.payloads`


def verified(
    u: np.ndarray, v: np.ndarray, groups: tuple[Groups, Groups], read: tuple[Read, Read], *, floor: float, min_area: float, turned: bool, most: int,
    name: str, scan: Scan, memory: int,
) -> tuple[Pairs, np.ndarray]:  # fmt: skip
    """The recorded pairs down to the floor, the distance being the share of agreeing blocks below zero, and (pairs, FIELDS) what was seen of each.

    The right set's picture stands left in what was seen: an evaluation picture, of which the pool's shows something.

    u, v         (k,) int64: proposed pairs of groups, ordered by u
    groups       of the left set and of the right, each of equal pixels
    read         what gives the files of either
    floor        share of blocks that agree
    min_area     a copy shows at least this share of one of the two
    turned       also turned and mirrored ones
    most         rows that are recorded of each of the right: see `hits.closest`
    name, scan   of the rounds (`Pool.scan`)
    memory       bytes; an eighth of it goes to pictures of the right that are kept
    """
    left, right = groups
    own, tests = _seen_by(read[0], left, PAIRS), _seen_by(read[1], right, max(HELD, memory // 8 // BYTES))

    def verify(state: State) -> State:
        found, seen, done = state
        some = np.arange(done[0], min(done[0] + PAIRS, len(u)))
        hits = []
        for pair in some.tolist():
            theirs, mine = tests(int(v[pair])), own(int(u[pair]))
            match = None if theirs is None or mine is None else register(theirs, mine)
            if match is not None and match.score >= floor and _shown(match) >= min_area and (turned or match.turn == 0):
                hits.append((pair, match.row))
        more = np.array([row for _, row in hits], np.float64).reshape(-1, len(FIELDS))
        return np.concatenate([found, np.array([pair for pair, _ in hits], np.int64)]), np.concatenate([seen, more]), done + len(some)

    start = np.empty(0, np.int64), np.empty((0, len(FIELDS))), np.zeros(1, np.int64)
    found, seen, _ = scan(name, verify, start, -(-len(u) // PAIRS))
    u, v, distance, is_cut = u[found], v[found], -seen[:, FIELDS.index("score")], np.zeros(len(right), bool)
    keep = closest(u, v, distance, left.first_rank, right.first_rank, most)
    is_cut[v[~keep]] = True
    return (u[keep], v[keep], distance[keep], is_cut), seen[keep]


def _shown(match: Match) -> float:
    """The larger of the shares of the two pictures that lie in the common area."""
    return max((right - left) * (bottom - top) for left, top, right, bottom in (match.left, match.right))


def _seen_by(read: Read, groups: Groups, room: int) -> Callable[[int], Seen | None]:
    """What gives the picture of a group as `registration` sees it; the last `room` of them are kept."""

    @lru_cache(maxsize=room)
    def see(group: int) -> Seen | None:
        return glance(next(read(groups.first[[group]])))

    return see
