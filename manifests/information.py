"""What two pictures tell of each other: entropy and mutual information of grey levels, in whole numbers, so that no machine decides otherwise.

c log2 c is tabulated once for all counts, correctly rounded to 2^-32; sums of such numbers are exact in int64 whatever their order.
"""

from collections.abc import Iterable
from decimal import Decimal, localcontext
from functools import lru_cache
from typing import Any

import numpy as np

from manifests import images

BINS = 64
UNIT = 2.0**32  # of the tabulated numbers
AT_ONCE = 32  # joint histograms at work: a megabyte of indices stays in the cache


def grey_levels(payloads: Iterable[Any], count: int, side: int, window: images.Window | None) -> tuple[np.ndarray, np.ndarray]:
    """(count, side * side) uint8: each picture in grey, brought to side x side, in 64 levels; (count,) bool: could it be read?"""
    levels, readable = np.zeros((count, side * side), np.uint8), np.zeros(count, bool)
    for row, payload in enumerate(payloads):
        grey = _grey(payload, side, window)
        if grey is not None:
            levels[row], readable[row] = images.resize(grey, side, side).ravel() // (256 // BINS), True
    return levels, readable


def _grey(payload: Any, side: int, window: images.Window | None) -> np.ndarray | None:
    if payload is None:
        return None
    try:
        return images.decode(payload, gray=True, min_side=side, window=window)
    except images.Undecodable:
        return None


@lru_cache(maxsize=4)
def _table(pixels: int) -> np.ndarray:
    """(pixels + 1,) int64: c log2 c in units of 2^-32. Decimal logarithms are correctly rounded on every machine."""
    with localcontext() as context:
        context.prec = 34
        unit = Decimal(int(UNIT)) / Decimal(2).ln()
        return np.array([0] + [int((c * Decimal(c).ln() * unit).to_integral_value()) for c in range(1, pixels + 1)], np.int64)


def spread(levels: np.ndarray) -> np.ndarray:
    """(n,) int64: sum of c log2 c over each row's histogram, in units of 2^-32."""
    n, pixels = levels.shape
    found = np.empty(n, np.int64)
    for start in range(0, n, AT_ONCE):
        part = levels[start : start + AT_ONCE]
        counts = np.bincount((part + BINS * np.arange(len(part))[:, None]).ravel(), minlength=BINS * len(part))
        found[start : start + AT_ONCE] = _table(pixels)[counts].reshape(len(part), BINS).sum(1)
    return found


def entropy(spread_: np.ndarray, pixels: int) -> np.ndarray:
    """(n,) float64 bits, 0 to 6: the entropy of the histograms that `spread` has summed."""
    return (_table(pixels)[pixels] - spread_) / (UNIT * pixels)


def could_reach(spread_: np.ndarray, row: int, others: np.ndarray, pixels: int, least: float) -> np.ndarray:
    """(m,) bool: is `least` within reach of the pair's entropies alone? Mutual information exceeds neither of them."""
    whole = _table(pixels)[pixels] - spread_
    return 2 * np.minimum(whole[row], whole[others]) >= (least - 1e-9) * (whole[row] + whole[others])


def shared(levels: np.ndarray, spread_: np.ndarray, row: int, others: np.ndarray) -> np.ndarray:
    """(m,) float64: normalised mutual information 2 I(A;B) / (H(A) + H(B)) of one row with others, 0 to 1; 1 for two pictures of one grey each.

    Cost     about 30 microseconds a pair of 64 x 64 pixels
    """
    pixels = levels.shape[1]
    table, found = _table(pixels), np.empty(len(others))
    own = levels[row].astype(np.int64) * BINS
    offset = np.arange(AT_ONCE)[:, None] * BINS**2
    for start in range(0, len(others), AT_ONCE):
        some = others[start : start + AT_ONCE]
        places = levels[some] + (own + offset[: len(some)])
        counts = np.bincount(places.ravel(), minlength=len(some) * BINS**2)
        joint = table[counts].reshape(len(some), -1).sum(1)
        both = 2 * table[pixels] - spread_[row] - spread_[some]
        mutual = table[pixels] - spread_[row] - spread_[some] + joint
        found[start : start + AT_ONCE] = np.where(both == 0, 1.0, 2 * mutual / np.maximum(both, 1))
    return np.clip(found, 0.0, 1.0)
