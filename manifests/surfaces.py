"""Two small pictures as a whole: are they one, but for light, shade and what lies over a part of it? For what shows too little to be compared block by block.

Both are squashed to SQUARE x SQUARE cells. What is left of them after their means, slopes and bends is their detail; a gain and a light are free.
"""

import math

import cv2
import numpy as np

from manifests.likeness import TURNS, turn_pixels

__all__ = ["LEAST_DETAIL", "LIGHT", "SQUARE", "TURNED", "boxes", "likest_turn", "one_light", "turned_cells", "uncovered"]

SQUARE = 32  # cells of a side: an area squashed to a square, to be compared with others in all turns
LIGHT = 1.0  # grey levels within which cells differ by one light
GAINS = 2.0 ** (np.arange(-8, 9) / 8)  # from half to twice
AGREES = 0.975  # correlation of the detail of both ...
SHADE = 0.95  # ... and of their greys
LEAST_DETAIL = 0.6  # grey levels: spread of the detail, below which it says nothing
MOST_COVERED = 0.4  # of the cells
SMALLEST, FILLED = np.ones((3, 3), np.uint8), 0.6  # a box holds this, and fills so much of the upright rectangle about it
OFF = 6  # times the usual difference: what differs more is covered

AXIS = np.linspace(-1, 1, SQUARE)
X, Y = np.tile(AXIS, SQUARE), np.repeat(AXIS, SQUARE)
SURFACE = np.stack([np.ones(SQUARE * SQUARE), X, Y, X * X, X * Y, Y * Y], axis=1)
COSINES = (
    np.cos(np.pi * np.outer(np.arange(SQUARE), np.arange(SQUARE) + 0.5) / SQUARE) * np.sqrt(np.where(np.arange(SQUARE) > 0, 2, 1) / SQUARE)[:, None]
)


def turned_cells(side: int) -> np.ndarray:
    """(8, side * side): which cell of a square lies where in each turn of it."""
    return np.stack([turn_pixels(np.arange(side * side).reshape(1, side, side), turn)[0].ravel() for turn in range(TURNS)])


TURNED = turned_cells(SQUARE)


def one_light(mine: np.ndarray, theirs: np.ndarray, light: float) -> np.ndarray:
    """(k, n) bool: which of (n,) greys are those of each of (k, n) but for one gain and light, at the gain under which most are within `light` of it."""
    off = mine - GAINS[:, None, None] * theirs
    middle = off.shape[2] // 2
    near = np.abs(off - np.partition(off, middle, axis=2)[..., middle, None]) <= light
    return near[near.sum(2).argmax(0), np.arange(len(theirs))]  # type: ignore[no-any-return]


def uncovered(greys: np.ndarray) -> np.ndarray | None:
    """(SQUARE * SQUARE,) bool: the cells in which two pictures, (SQUARE * SQUARE, 2) greys, are one but for light and shade.

    None where these are too few or say too little.
    """
    seen = _uncovered(greys, np.ones(len(greys), bool))
    if seen is None:  # a box bends the surfaces that are fitted to all
        seen = _uncovered(greys, one_light(greys[:, 0], greys[None, :, 1], LIGHT)[0])
    return seen


def _uncovered(greys: np.ndarray, seen: np.ndarray) -> np.ndarray | None:
    """Found from the cells `seen`, whose surfaces and gain say what the others should be."""
    for _ in range(3):
        if seen.mean() < 1 - MOST_COVERED:
            return None
        detail = greys - SURFACE @ np.linalg.lstsq(SURFACE[seen], greys[seen], rcond=None)[0]
        a, b = detail[seen].T
        gain = float(a @ b) / max(float(b @ b), 1e-9)
        off = np.abs(detail[:, 0] - gain * detail[:, 1])
        seen = off <= max(OFF * float(np.median(off[seen])), LIGHT)
    if seen.mean() < 1 - MOST_COVERED:
        return None
    a, b = detail[seen].T
    is_alike = min(a.std(), b.std()) >= LEAST_DETAIL and _correlation(a, b) >= AGREES and _correlation(*greys[seen].T) >= SHADE
    return seen if gain > 0 and is_alike else None


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b) / max(math.sqrt(float(a @ a) * float(b @ b)), 1e-9)


def boxes(covered: np.ndarray) -> np.ndarray:
    """(h, w) bool: cells that lie in or beside a box or a sticker among the (h, w) bool `covered`: not of a line or a crescent, which is detail that one lacks."""
    opened = cv2.dilate(cv2.erode(covered.astype(np.uint8), SMALLEST, borderValue=1), SMALLEST)
    _, part, facts, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    is_box = facts[:, cv2.CC_STAT_AREA] >= FILLED * facts[:, cv2.CC_STAT_WIDTH] * facts[:, cv2.CC_STAT_HEIGHT]
    is_box[0] = False  # what is not covered
    return cv2.dilate(is_box[part].astype(np.uint8), SMALLEST) > 0


def likest_turn(left: np.ndarray, right: np.ndarray, whose: int) -> tuple[int, float, float]:
    """The turn of the right picture's (SQUARE * SQUARE,) greys in which its detail correlates most with the left's; that correlation r; what it proves, in nats.

    A Gaussian field tells -ln(1 - r^2) / 2 about another for each of its independent parts. These are counted in picture `whose` (0 left, 1 right) as the
    participation ratio of its spectrum: a glow or a horizon is two or three, and no correlation of it proves much; grass is hundreds.
    """
    detail = [greys - SURFACE @ np.linalg.lstsq(SURFACE, greys, rcond=None)[0] for greys in (left, right)]
    like = detail[0] @ detail[1][TURNED].T / max(math.sqrt(float(detail[0] @ detail[0]) * float(detail[1] @ detail[1])), 1e-9)
    turn = int(like.argmax())
    power = (COSINES @ detail[whose].reshape(SQUARE, SQUARE) @ COSINES.T).ravel() ** 2
    parts = float(power.sum()) ** 2 / max(float(power @ power), 1e-9)
    r = float(like[turn])
    return turn, r, -math.log(max(1 - r * r, 1e-9)) / 2 * parts
