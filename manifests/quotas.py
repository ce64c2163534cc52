"""How a budget is shared out between groups: in proportion, or between a least and a most by water-filling; and whole numbers with the sum kept."""

import numpy as np

GRID = 2.0**20  # shares are rounded to this before they are cut to whole numbers: no last bit of an exponential decides


def place_inside(group: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """(n,) int64: the place of each row inside its group, from 0, by the first key, then the next, then row order. `group` (n,) int64."""
    turn = np.lexsort((*reversed(keys), group))
    size = np.bincount(group)
    place = np.empty(len(group), np.int64)
    place[turn] = np.arange(len(group)) - (np.cumsum(size) - size)[group[turn]]
    return place


def water_fill(target: np.ndarray, low: np.ndarray, high: np.ndarray, total: float) -> np.ndarray:
    """(k,) float64: of all x with low <= x <= high and sum `total` the one closest to `target`: clip(target + shift, low, high), the shift solved for exactly.

    It is the solution of min |x - target|^2, as a quadratic programme would find it. `total` must lie between the sums of `low` and `high`.
    Cost     a sort of 2 k numbers and log2(2 k) sums
    """
    if not len(target):
        return np.empty(0)
    turns = np.unique(np.concatenate([low - target, high - target]))  # between two of these the sum is a straight line
    first, last = 0, len(turns) - 1
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if np.clip(target + turns[middle], low, high).sum() <= total else (first, middle)
    start = np.clip(target + turns[first], low, high)
    moving = (low - target <= turns[first]) & (high - target > turns[first])
    step = (total - start.sum()) / max(int(moving.sum()), 1)
    return np.clip(np.where(moving, target + turns[first] + step, start), low, high)


def rounded(shares: np.ndarray, total: int) -> np.ndarray:
    """(k,) int64 with sum `total`: each share rounded down or up, those with the largest remainder up, of equal ones the first. `shares` add up to `total`."""
    return largest_remainder(np.rint(shares * GRID).astype(np.int64), int(GRID), total)


def largest_remainder(parts: np.ndarray, whole: int, total: int) -> np.ndarray:
    """(k,) int64 with sum `total`: parts / whole rounded down or up, those with the largest remainder up, of equal ones the first.

    parts    (k,) int64, that add up to about `total` * `whole`: shares of a total in proportion to sizes are total * sizes over the sum of the sizes
    Whole numbers: no last bit of a quotient decides.
    """
    found = parts // whole
    found[np.argsort(-(parts % whole), kind="stable")[: total - int(found.sum())]] += 1
    return found


def level_fill(low: np.ndarray, high: np.ndarray, total: int, turn: np.ndarray) -> np.ndarray:
    """(k,) int64 with sum `total`: everyone gets clip(c, low, high) for the largest whole c that suffices; what is then left goes, one each, to those who could
    take more, smallest `turn` (k,) first.

    low, high    (k,) int64, whose sums enclose `total`
    """
    least, beyond = 0, int(high.max(initial=0)) + 1  # the cap lies in [least, beyond)
    while beyond - least > 1:
        middle = (least + beyond) // 2
        least, beyond = (middle, beyond) if int(np.clip(middle, low, high).sum()) <= total else (least, middle)
    filled: np.ndarray = np.clip(least, low, high)
    could = np.flatnonzero((low <= least) & (high > least))
    filled[could[np.argsort(turn[could], kind="stable")[: total - int(filled.sum())]]] += 1
    return filled
