"""Is one picture a copy of another, and what was done to it: laid one over the other at low resolution, then compared block by block.

*Proposals* say how the two could lie over each other: frame on frame in each of the eight turns, and where key points of both agree on one turn, scale and
offset. The key points are SIFT's (OpenCV: maintained, no weights, 8 ms a picture); those of the mirrored picture are the same ones with their
descriptors permuted, so that one pass serves all turns, and a pair costs no more than a product of two small matrices.
*Comparison* decides, in whole numbers: the common area of both is brought to one grid, smoothed, and cut into blocks of 8 x 8 cells. A block agrees when what
is left of both after the block's own mean, slope and bend (so: light, colour and shade) correlates. Blocks that are flat in both say nothing.
"""

import math
from dataclasses import astuple, dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from manifests import images
from manifests.likeness import TURNS, thumbnail, turn_pixels

__all__ = ["AREA", "BYTES", "FIELDS", "Match", "Seen", "aligned", "glance", "register", "see"]

SIDE = 160  # pixels of the longer side of what is kept of a picture
POINTS = 200  # key points of a picture, the strongest
SQUARE = 32  # the whole picture squashed to a square, for frame on frame
GRID, BLOCK = 64, 8  # cells of the longer side of the common area; cells of a block's side
UNITS = 256  # of a pixel: boxes end on whole ones, so that means are quotients of whole numbers
MIN_BLOCKS = 3  # of each side of the common area
AGREES = 0.8  # correlation of a block's detail from which it agrees
FLAT = 0.8  # a block is flat below this spread of its detail, where the whole area's is 50 ...
NOISE = 0.4  # ... or below this many grey levels
ENOUGH = 8  # agreeing blocks without which nothing is a copy
INSIDE = 3  # of them inside, where the outermost blocks are left out
AREA = 0.2  # of one of the two pictures that must lie in the common area
SAME, CONTRAST = (
    2.0,
    40.0,
)  # grey levels of two small pictures below which they are one, stretched as in `likeness` where they are flatter than CONTRAST
TRIES = 4  # proposals that are compared
SMALL = 16  # the same in colour, to be equal
BYTES = SIDE * SIDE + POINTS * (128 + 32) + 8 * SQUARE * SQUARE + 3 * SMALL * SMALL  # of one Seen, at most

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of a picture
Placing = tuple[float, float, float, float]  # scale x, scale y, offset x, offset y: turned right pixels onto left pixels


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture, to lay it over others.

    gray          (h, w) uint8, the longer side at most SIDE
    square        (32, 32) int64: the same, squashed
    small         (16, 16, 3) uint8: in colour
    points        (n, 2) float64: x, y of key points in pixels of `gray`
    sizes         (n,) float64 pixels
    angles        (n,) float64 degrees, clockwise
    descriptors   (n, 128) uint8
    """

    gray: np.ndarray
    square: np.ndarray
    small: np.ndarray
    points: np.ndarray
    sizes: np.ndarray
    angles: np.ndarray
    descriptors: np.ndarray


@dataclass(frozen=True)
class Match:
    """How two pictures lie over each other.

    turn             0 to 7: `likeness.turn_pixels(right, turn)` stands as the left does
    score            0 to 1: agreeing blocks of all that show something, but no more than twice their share inside the common area's rim
    covered          0 to 1: blocks of the common area that show something and do not agree
    agreeing         number of blocks that agree
    left, right      the common area as a box of each picture as it is stored
    """

    turn: int
    score: float
    covered: float
    agreeing: int
    left: Box
    right: Box

    @property
    def row(self) -> tuple[float, ...]:
        """As numbers, in the order of `FIELDS`."""
        turn, score, covered, agreeing, left, right = astuple(self)
        return turn, score, covered, agreeing, *left, *right


EDGES = ("left", "top", "right", "bottom")
FIELDS = ("turn", "score", "covered", "agreeing", *(f"a_{e}" for e in EDGES), *(f"b_{e}" for e in EDGES))


def see(picture: np.ndarray) -> Seen:
    """What is kept of a decoded picture, (h, w, 3) uint8. Cost: some 10 ms and at most `BYTES`."""
    gray = images.shrink(picture, 2 * SIDE)
    scale = min(1.0, SIDE / max(gray.shape))
    high, wide = (max(1, round(edge * scale)) for edge in gray.shape)
    square = _means(gray, (0, 0, gray.shape[1], gray.shape[0]), SQUARE, SQUARE)
    if (high, wide) != gray.shape:
        gray = ((_means(gray, (0, 0, gray.shape[1], gray.shape[0]), high, wide) + 8) >> 4).astype(np.uint8)
    points, descriptors = _finder().detectAndCompute(_stretched(gray), None)
    order = sorted(range(len(points)), key=lambda i: (-points[i].response, points[i].pt, points[i].angle))[:POINTS]
    table = np.array([(*points[i].pt, points[i].size, points[i].angle) for i in order], np.float64).reshape(-1, 4)
    found = np.zeros((0, 128), np.uint8) if descriptors is None else descriptors[order].astype(np.uint8)
    return Seen(gray, square, thumbnail(picture, SMALL), table[:, :2] + 0.5, table[:, 2], table[:, 3], found)


def glance(payload: Any) -> Seen | None:
    """`see` of an image file, decoded no larger than it needs; None where it cannot be decoded."""
    try:
        return see(images.decode(payload, min_side=SIDE))
    except images.Undecodable:
        return None


@lru_cache(maxsize=1)
def _finder() -> Any:
    cv2.setNumThreads(1)  # the engine's workers share the machine; and one order of work
    return cv2.SIFT.create(nfeatures=POINTS, contrastThreshold=0.01)


def _stretched(gray: np.ndarray) -> np.ndarray:
    """(h, w) uint8 with mean 128 and spread 50, so that a dim picture has key points too."""
    return np.clip((gray - gray.mean()) * (50 / max(gray.std(), 5.0)) + 128, 0, 255).astype(np.uint8)


def register(left: Seen, right: Seen) -> Match | None:
    """How `right` lies over `left`, at the proposal under which most blocks agree; None where nothing speaks for a copy.

    Guarantee   a match has at least `ENOUGH` agreeing blocks and takes at least `AREA` of one of the two, or the two are one to the eye, frame on frame (then
                `agreeing` is 0). Given the key points the same on every machine
    Not found   copies turned by other angles, sheared or bent; common areas of less than 3 blocks a side; pictures with no detail
    Cost        1 to 3 ms
    """
    best: tuple[float, int, Match] | None = None
    for turn, placing in _proposals(left, right):
        match = _compared(left.gray, right.gray, turn, placing)
        if match is not None:
            rank = match.score * min(1.0, match.agreeing / (2 * ENOUGH)), match.agreeing
            if best is None or rank > best[:2]:
                best = *rank, match
    return _equal(left.small, right.small) if best is None or best[2].agreeing < ENOUGH else best[2]


def _equal(left: np.ndarray, right: np.ndarray) -> Match | None:
    """Two whole pictures that are one to the eye: what is left for a picture that shows too little to be compared by blocks, such as a sky."""
    n = left.size
    sums, squares = left.reshape(-1, 3).sum(0, dtype=np.int64), int((left.astype(np.int64) ** 2).sum())
    contrast = math.sqrt(squares / n - 3 * int((sums * sums).sum()) / n**2) if n * squares > 3 * int((sums * sums).sum()) else 0.0
    most = n * (SAME * min(1.0, contrast / CONTRAST)) ** 2
    if ((sums - right.reshape(-1, 3).sum(0, dtype=np.int64)) ** 2).sum() * 3 > n * most:  # no turn changes the mean colour
        return None
    for turn in range(TURNS):
        if ((left.astype(np.int64) - _turned(right, turn)) ** 2).sum() <= most:
            return Match(turn, 1.0, 0.0, 0, (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 1.0))
    return None


def aligned(left: np.ndarray, right: np.ndarray, turn: int, left_box: Box, right_box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The common area of two decoded pictures, (h, w, 3) uint8 each, the right one turned as the left stands."""
    return _cut(left, left_box), np.ascontiguousarray(turn_pixels(_cut(right, right_box)[None], turn)[0])


def _cut(picture: np.ndarray, box: Box) -> np.ndarray:
    high, wide = picture.shape[:2]
    x0, y0, x1, y1 = (min(max(round(v * edge), 0), edge) for v, edge in zip(box, (wide, high, wide, high), strict=True))
    return picture[min(y0, high - 1) : max(y1, y0 + 1), min(x0, wide - 1) : max(x1, x0 + 1)]


def _proposals(left: Seen, right: Seen) -> list[tuple[int, Placing | None]]:
    """At most TRIES (turn, placing), the likeliest first; None = frame on frame."""
    found = [(like * 20, turn, None) for turn, like in enumerate(_frame_on_frame(left.square, right.square)) if like > 0.5]
    return [(turn, placing) for _, turn, placing in sorted(found + _by_points(left, right), key=lambda p: -p[0])[:TRIES]]


def _frame_on_frame(left: np.ndarray, right: np.ndarray) -> list[float]:
    """Correlation of two squares in each turn of the right one."""
    a, b, n = left, right, left.size
    sums, spread = int(a.sum()) * int(b.sum()), [n * int((x * x).sum()) - int(x.sum()) ** 2 for x in (a, b)]
    if min(spread) <= 0:
        return [0.0] * TURNS
    return [(n * int((a * _turned(b, turn)).sum()) - sums) / math.sqrt(spread[0] * spread[1]) for turn in range(TURNS)]


def _turned(plane: np.ndarray, turn: int) -> np.ndarray:
    return turn_pixels(plane[None], turn)[0]


# a SIFT descriptor is 4 x 4 places of 8 directions about its point's own direction; in a mirror the rows swap and the directions run backwards
MIRRORED = np.array([((3 - i) * 4 + j) * 8 + (8 - k) % 8 for i in range(4) for j in range(4) for k in range(8)])


def _by_points(left: Seen, right: Seen) -> list[tuple[float, int, Placing | None]]:
    """(points that agree, turn, placing) of what at least three pairs of key points agree on."""
    found: list[tuple[float, int, Placing | None]] = []
    if min(len(left.points), len(right.points)) < 3:
        return found
    high, wide = right.gray.shape
    for mirror in (0, 1):
        a, b = _pairs(left.descriptors, right.descriptors[:, MIRRORED] if mirror else right.descriptors)
        angle = (180 - right.angles[b] if mirror else right.angles[b]) - left.angles[a]
        quarter = np.rint(angle / 90)
        for k in range(4):
            here = (quarter % 4 == k) & (np.abs(angle - 90 * quarter) < 15)
            if here.sum() >= 3:
                points = _turned_points(right.points[b[here]], wide, high, k + 4 * mirror)
                scale = left.sizes[a[here]] / right.sizes[b[here]]
                found += [(float(n), k + 4 * mirror, placing) for n, placing in _placings(left.points[a[here]], points, scale)]
    return found


def _pairs(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of the left with their nearest of the right, where the second nearest is clearly farther (Lowe's ratio of 0.8). All in whole numbers."""
    a, b = left.astype(np.float32), right.astype(np.float32)  # products stay below 2^24: exact in float32
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * (a @ b.T)
    nearest = squares.argmin(1)
    rows = np.arange(len(a))
    least = squares[rows, nearest]
    squares[rows, nearest] = np.inf
    clear = np.flatnonzero(least < 0.64 * squares.min(1))
    return clear, nearest[clear]


def _turned_points(points: np.ndarray, wide: int, high: int, turn: int) -> np.ndarray:
    """(n, 2) x, y in the picture as `turn_pixels` turns it."""
    x, y = points[:, 0], points[:, 1]
    if turn >= 4:
        x = wide - x
    for _ in range(turn % 4):
        x, y, wide, high = y, wide - x, high, wide
    return np.stack([x, y], axis=1)


def _placings(left: np.ndarray, right: np.ndarray, scale: np.ndarray) -> list[tuple[int, Placing]]:
    """(agreeing pairs, placing) on which pairs of points agree; each pair proposes one and is used once."""
    found: list[tuple[int, Placing]] = []
    offset = left - scale[:, None] * right
    off = np.abs(scale[:, None, None] * right + offset[:, None] - left).max(2)
    votes = (off < 0.06 * SIDE) & (np.abs(np.log(scale[:, None] / scale)) < 0.4)
    used = np.zeros(len(scale), bool)
    for first in np.argsort(-votes.sum(1), kind="stable")[:8]:
        fit = None if used[first] else _fitted(left, right, votes[first])
        if fit is not None:
            used |= fit[0]
            found.append((int(fit[0].sum()), fit[1]))
    return found


def _fitted(left: np.ndarray, right: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, Placing] | None:
    """The scale and offset of least squares over the pairs that go with it, narrowed twice; None where fewer than three stay."""
    for tolerance in (0.04 * SIDE, 0.02 * SIDE, 0.0):
        if chosen.sum() < 3:
            return None
        x, y = right[chosen], left[chosen]
        dx, dy = x - x.mean(0), y - y.mean(0)
        spread = float((dx * dx).sum())
        scale = float((dx * dy).sum()) / spread if spread >= 1 else 0.0
        if not 0.15 < scale < 7:
            return None
        offset = y.mean(0) - scale * x.mean(0)
        if tolerance:
            chosen = np.abs(scale * right + offset - left).max(1) < tolerance
    return chosen, (scale, scale, float(offset[0]), float(offset[1]))


def _compared(left: np.ndarray, right: np.ndarray, turn: int, placing: Placing | None) -> Match | None:
    """The match of two grey pictures laid over each other, whatever its score; None where they share too little."""
    turned = _turned(right, turn)
    (high, wide), (right_high, right_wide) = left.shape, turned.shape
    sx, sy, tx, ty = placing or (wide / right_wide, high / right_high, 0.0, 0.0)
    x0, x1, y0, y1 = max(0.0, tx), min(float(wide), sx * right_wide + tx), max(0.0, ty), min(float(high), sy * right_high + ty)
    if x1 - x0 < BLOCK or y1 - y0 < BLOCK:
        return None
    theirs = (x0 - tx) / sx, (y0 - ty) / sy, (x1 - tx) / sx, (y1 - ty) / sy
    mine_area = (x1 - x0) * (y1 - y0) / (wide * high)
    their_area = (theirs[2] - theirs[0]) * (theirs[3] - theirs[1]) / (right_wide * right_high)
    across, down = min(x1 - x0, theirs[2] - theirs[0]), min(y1 - y0, theirs[3] - theirs[1])  # pixels of the coarser of the two
    cells = min(GRID / max(across, down), max(1.0, min(2.0, 4 * BLOCK / min(across, down))))
    columns, rows = round(across * cells / BLOCK), round(down * cells / BLOCK)
    if min(columns, rows) < MIN_BLOCKS or max(mine_area, their_area) < AREA:
        return None
    agrees, shows = _blocks(_means(left, (x0, y0, x1, y1), rows * BLOCK, columns * BLOCK), _means(turned, theirs, rows * BLOCK, columns * BLOCK))
    inner = np.zeros((rows, columns), bool)
    inner[1:-1, 1:-1] = True  # the darkened rim of two doors agrees, whatever is on them
    agreeing, showing = int(agrees.sum()), int(shows.sum())
    agreeing_inside, showing_inside = int(agrees[inner.ravel()].sum()), int(shows[inner.ravel()].sum())
    if agreeing_inside < INSIDE:
        return None
    score = min(agreeing / showing, 2 * agreeing_inside / showing_inside)
    mine = x0 / wide, y0 / high, x1 / wide, y1 / high
    box = _turned_back((theirs[0] / right_wide, theirs[1] / right_high, theirs[2] / right_wide, theirs[3] / right_high), turn)
    return Match(turn, score, (showing - agreeing) / len(shows), agreeing, _rounded(mine), _rounded(box))


def _turned_back(box: Box, turn: int) -> Box:
    """A box of the turned picture as a box of the picture as it is stored."""
    left, top, right, bottom = box
    for _ in range(turn % 4):
        left, top, right, bottom = 1 - bottom, left, 1 - top, right
    return (1 - right, top, 1 - left, bottom) if turn >= 4 else (left, top, right, bottom)


def _rounded(box: Box) -> Box:
    left, top, right, bottom = (round(min(max(v, 0.0), 1.0), 4) for v in box)
    return left, top, right, bottom


def _means(gray: np.ndarray, box: tuple[float, float, float, float], rows: int, columns: int) -> np.ndarray:
    """(rows, columns) int64: 16 times the mean grey of each equal field of a box (x0, y0, x1, y1), which may cut through pixels; exact but for one rounding."""
    across, down = _edges(box[0], box[2], columns, gray.shape[1]), _edges(box[1], box[3], rows, gray.shape[0])
    sums = _weights(down, gray.shape[0]) @ gray.astype(np.float64) @ _weights(across, gray.shape[1]).T  # whole numbers below 2^53: exact in any order
    area = np.diff(down)[:, None] * np.diff(across)
    return (sums.astype(np.int64) * 32 + area) // (2 * area)


def _edges(low: float, high: float, fields: int, length: int) -> np.ndarray:
    """(fields + 1,) int64: where equal fields begin, in 256ths of a pixel."""
    first = min(max(round(low * UNITS), 0), length * UNITS - fields)
    last = min(max(round(high * UNITS), first + fields), length * UNITS)
    return first + (last - first) * np.arange(fields + 1) // fields


def _weights(edges: np.ndarray, length: int) -> np.ndarray:
    """(fields, length) float64: how much of each pixel lies in each field, in 256ths."""
    pixels = np.arange(length) * UNITS
    return np.clip(np.minimum(edges[1:, None], pixels + UNITS) - np.maximum(edges[:-1, None], pixels), 0, None).astype(np.float64)


LINE, BEND = 2 * np.arange(BLOCK) - (BLOCK - 1), np.array([7, 1, -3, -5, -5, -3, 1, 7])  # both with squares that sum to 168, and at right angles
EVEN = np.ones(BLOCK, np.int64)
SHADES = np.array([np.outer(*shade).ravel() for shade in ((LINE, LINE), (EVEN, LINE), (LINE, EVEN), (EVEN, BEND), (BEND, EVEN))])
SQUARES = 168 * 168  # of the first shade; those of the others are a 21st of it, and those of a mean a 441st


def _blocks(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks,) bool twice: the detail of both agrees; at least one of both shows some. Sums in int64, one division."""
    planes = [_smoothed(left), _smoothed(right)]
    a, b = (p.reshape(p.shape[0] // BLOCK, BLOCK, p.shape[1] // BLOCK, BLOCK).swapaxes(1, 2).reshape(-1, BLOCK * BLOCK) for p in planes)
    joint, mine, theirs = _detail(a, b), _detail(a, a), _detail(b, b)
    spread = [np.sqrt(own / (SQUARES * BLOCK * BLOCK)) / 16 for own in (mine, theirs)]  # of the detail, in grey levels
    shows = np.zeros(len(a), bool)
    for plane, own in zip(planes, spread, strict=True):
        whole = math.sqrt(plane.size * int((plane * plane).sum()) - int(plane.sum()) ** 2) / plane.size / 16
        shows |= (own > FLAT / 50 * whole) & (own > NOISE)
    alike = joint / np.sqrt(np.maximum(mine, 1).astype(np.float64) * np.maximum(theirs, 1))
    return shows & (alike > AGREES), shows


def _smoothed(plane: np.ndarray) -> np.ndarray:
    """By 1 2 1 both ways, so that neither sharpening, blur nor a coder's noise decides."""
    p = np.pad(plane, 1, mode="edge")
    p = p[:-2] + 2 * p[1:-1] + p[2:]
    return (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:] + 8) >> 4


def _detail(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(blocks,) int64: SQUARES times the sum of products of two blocks, each less its mean, slopes and bends (so a sky or a lamp's glow is no detail)."""
    first, *others = ((a @ shade) * (b @ shade) for shade in SHADES)
    return SQUARES * np.einsum("ij,ij->i", a, b) - 441 * a.sum(1) * b.sum(1) - first - 21 * sum(others)
