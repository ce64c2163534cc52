"""Two pictures on one grid, compared block by block, in whole numbers: does what both show agree, whatever light, colour and shade lie over it?"""

import math

import numpy as np

__all__ = ["BLOCK", "blocks", "corners", "greys_agree", "is_straight", "means", "smoothed"]

BLOCK = 8  # cells of a block's side
UNITS = 256  # of a pixel: boxes end on whole ones, so that means are quotients of whole numbers
AGREES = 0.8  # correlation of a block's detail from which it agrees
AGAINST = 0.5  # ... and below which it speaks against a copy, where both show something
FLAT = 0.8  # a block is flat below this spread of its detail, where the whole area's is 50 ...
NOISE = 0.4  # ... or below this many grey levels
STRAIGHT = 0.02  # slopes across the main direction, as a share of those along it: less is nothing but parallel lines, which fit in many places
CURVE = 0.05  # ... the same of one block: less is one edge, or a piece of a curve
GREYS, SHADE = 0.95, 2.0  # correlation of greys from which they agree; spread in grey levels up to which they are one grey


def means(gray: np.ndarray, box: tuple[float, float, float, float], rows: int, columns: int) -> np.ndarray:
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


def blocks(left: np.ndarray, right: np.ndarray, flat: float = FLAT, noise: float = NOISE) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(blocks,) bool four times: the detail of both agrees; at least one of both shows some; both do; both do, and it speaks against a copy.

    Sums in int64, one division.
    """
    planes = [smoothed(left), smoothed(right)]
    a, b = (p.reshape(p.shape[0] // BLOCK, BLOCK, p.shape[1] // BLOCK, BLOCK).swapaxes(1, 2).reshape(-1, BLOCK * BLOCK) for p in planes)
    joint, mine, theirs = _detail(a, b), _detail(a, a), _detail(b, b)
    spread = [np.sqrt(own / (SQUARES * BLOCK * BLOCK)) / 16 for own in (mine, theirs)]  # of the detail, in grey levels
    shows = []
    for plane, own in zip(planes, spread, strict=True):
        whole = math.sqrt(plane.size * int((plane * plane).sum()) - int(plane.sum()) ** 2) / plane.size / 16
        shows.append((own > flat / 50 * whole) & (own > noise))
    alike = joint / np.sqrt(np.maximum(mine, 1).astype(np.float64) * np.maximum(theirs, 1))
    either, both = shows[0] | shows[1], shows[0] & shows[1]
    return either & (alike > AGREES), either, both, both & (alike < AGAINST)


def smoothed(plane: np.ndarray) -> np.ndarray:
    """By 1 2 1 both ways, so that neither sharpening, blur nor a coder's noise decides."""
    p = np.pad(plane, 1, mode="edge")
    p = p[:-2] + 2 * p[1:-1] + p[2:]
    return (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:] + 8) >> 4


def _detail(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(blocks,) int64: SQUARES times the sum of products of two blocks, each less its mean, slopes and bends (so a sky or a lamp's glow is no detail)."""
    first, *others = ((a @ shade) * (b @ shade) for shade in SHADES)
    return SQUARES * np.einsum("ij,ij->i", a, b) - 441 * a.sum(1) * b.sum(1) - first - 21 * sum(others)


def is_straight(plane: np.ndarray, chosen: np.ndarray, times: float = 1.0) -> bool:
    """Do the (blocks,) bool `chosen` blocks together show nothing but lines of one direction? `times` as strict."""
    across, down, both = (int(sums[chosen].sum()) for sums in _slopes(plane))
    half = math.hypot((across - down) / 2, both)
    return (across + down) / 2 - half < times * STRAIGHT * ((across + down) / 2 + half)


def corners(plane: np.ndarray) -> np.ndarray:
    """(blocks,) bool: the block shows more than one edge or a piece of a curve, so that it says where it lies, and not only how far across the edge."""
    across, down, both = _slopes(plane)
    trace = (across + down).astype(np.float64)
    return (across * down - both * both) * (1 + CURVE) ** 2 > CURVE * trace * trace  # the smaller over the larger of the tensor's two own values


def _slopes(plane: np.ndarray) -> list[np.ndarray]:
    """(blocks,) int64 three times: sums over each block of its slopes across squared, down squared, and of their products."""
    p = smoothed(plane)
    x, y = (np.zeros_like(p) for _ in range(2))
    x[:, 1:-1], y[1:-1] = p[:, 2:] - p[:, :-2], p[2:] - p[:-2]
    return [_sums(a * b) for a, b in ((x, x), (y, y), (x, y))]


def _sums(plane: np.ndarray) -> np.ndarray:
    return plane.reshape(plane.shape[0] // BLOCK, BLOCK, plane.shape[1] // BLOCK, BLOCK).sum((1, 3)).ravel()


def greys_agree(left: np.ndarray, right: np.ndarray, chosen: np.ndarray) -> bool:
    """Do the mean greys of the (blocks,) bool `chosen` blocks rise and fall together, or are they one grey in both? In whole numbers, one division."""
    a, b = _sums(left)[chosen], _sums(right)[chosen]
    n = len(a)
    joint, mine, theirs = (n * int((x * y).sum()) - int(x.sum()) * int(y.sum()) for x, y in ((a, b), (a, a), (b, b)))
    if max(mine, theirs) <= (n * SHADE * 16 * BLOCK * BLOCK) ** 2:
        return True
    return joint > 0 and joint >= GREYS * math.sqrt(mine * theirs)
