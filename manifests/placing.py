"""How one picture could lie over another: proposals, by key points and by areas that look alike; what they are worth is decided in `registration`.

*Key points* of both agree on one turn, scale and offset. They are SIFT's (OpenCV: maintained, no weights, 8 ms a picture); those of the mirrored picture are the
same ones with their descriptors permuted, so that one pass serves all turns, and a pair costs no more than a product of two small matrices.
*Areas* are laid on each other as they are: the whole picture, the middle square that a thumbnail shows, the parts of a collage. A blurred picture, a sky or a
texture of grains has no key points that can be told apart, but as a whole it looks like itself; where one of the two was cropped, `drifted` finds where to.
"""

import math
from typing import NamedTuple

import numpy as np

from manifests.likeness import TURNS
from manifests.surfaces import LIGHT, SQUARE, TURNED, one_light, turned_cells

__all__ = ["Proposal", "areas_of", "by_areas", "by_cells", "by_points", "drifted", "turned_box"]

SIDE = 160  # pixels of the longer side of what is kept of a picture
ALIKE = 0.5  # correlation of two squares from which their areas are laid on each other
AGREE = 0.6  # share of such cells from which whole pictures are laid on each other
MOST = 4  # proposals by areas; no more are ever tried
SEAM = 3.0  # times the usual step from line to line, in most bands: there two pictures of a collage meet
BANDS = 8
LEAST_PART = 0.2  # of a side
OBLONG = 1.05  # a picture with sides more unequal than this has a middle square of its own
STEPS = 8  # of `drifted`
ZOOM = 1.7  # how far `drifted` may scale a side

Placing = tuple[float, float, float, float]  # scale x, scale y, offset x, offset y: turned right pixels onto left pixels
Area = tuple[float, float, float, float]  # left, top, right, bottom in pixels; may reach beyond the picture


class Proposal(NamedTuple):
    """One way to lay a right picture, turned, over a left one.

    weight         how likely
    turn           0 to 7: of the right picture
    placing        of its turned pixels
    left, right    the areas that may be common, the right one as it is turned
    areas          numbers of the two areas that look alike; None where key points propose
    """

    weight: float
    turn: int
    placing: Placing
    left: Area
    right: Area
    areas: tuple[int, int] | None = None


def areas_of(gray: np.ndarray, frame: Area) -> tuple[list[Area], int]:
    """What of a picture may be laid on another's, and how many of these, the last ones, are parts of a collage: all of it, its middle square, its frame, parts.

    gray     (h, w) uint8, without a border of one colour
    frame    the whole picture, border and all, in pixels of `gray`
    """
    high, wide = gray.shape
    found: list[Area] = [(0.0, 0.0, float(wide), float(high))]
    if max(high, wide) > OBLONG * min(high, wide):
        off = (wide - high) / 2
        found.append((off, 0.0, wide - off, float(high)) if off > 0 else (0.0, -off, float(wide), high + off))
    if frame != found[0]:
        found.append(frame)
    parts = _parts(gray, 0, 0, 2)
    parts = parts if len(parts) > 1 else []
    return found + parts, len(parts)


def _parts(gray: np.ndarray, x: int, y: int, depth: int) -> list[Area]:
    """Where `gray`, which begins at x, y, falls apart by straight seams from edge to edge; itself where it does not."""
    high, wide = gray.shape
    seams = [_seam(gray), _seam(gray.T)] if depth else [(0.0, 0), (0.0, 0)]
    across = int(seams[1][0] > seams[0][0])
    strength, at = seams[across]
    if strength < SEAM:
        return [(float(x), float(y), float(x + wide), float(y + high))]
    if across:
        return _parts(gray[:at], x, y, depth - 1) + _parts(gray[at:], x, y + at, depth - 1)
    return _parts(gray[:, :at], x, y, depth - 1) + _parts(gray[:, at:], x + at, y, depth - 1)


def _seam(gray: np.ndarray) -> tuple[float, int]:
    """How strong the strongest vertical seam is, and the column where its right side begins."""
    high, wide = gray.shape
    edge = max(4, math.ceil(LEAST_PART * wide))
    if high < BANDS or wide < 2 * edge + 2:
        return 0.0, 0
    rows = np.arange(BANDS + 1) * high // BANDS
    lines = np.add.reduceat(gray.astype(np.float64), rows[:-1], axis=0) / np.diff(rows)[:, None]
    step = np.abs(lines[:, 2:] - lines[:, :-2])  # of columns two apart: a seam may cut through a pixel
    usual = np.median(step, axis=1, keepdims=True) + 1.0
    strength = np.sort(np.minimum(step / usual, 4 * SEAM), axis=0)[1 : BANDS // 2].mean(0)
    strength = strength[edge : wide - edge]
    best = int(strength.argmax())
    return float(strength[best]), best + edge + 1


def by_areas(left: tuple[list[Area], np.ndarray, int], right: tuple[list[Area], np.ndarray, int], right_shape: tuple[int, int]) -> list[Proposal]:
    """Areas whose squares look alike in some turn: the `MOST` most alike.

    left, right    areas, (m, 32, 32) their squares, how many of the last ones are parts
    right_shape    height and width of the right picture in pixels
    """
    (mine, a, my_parts), (theirs, b, their_parts) = left, right
    like = _unit(a) @ _unit(b)[:, TURNED].reshape(-1, SQUARE * SQUARE).T
    like = like.reshape(len(a), len(b), TURNS)
    high, wide = right_shape
    found = []
    most = np.argsort(-like, axis=None, kind="stable")[:MOST]
    for i, j, turn in zip(*np.unravel_index(most, like.shape), strict=True):
        if like[i, j, turn] <= ALIKE:
            break
        rect = turned_box(theirs[j], wide, high, int(turn))
        (x0, y0, x1, y1), (u0, v0, u1, v1) = mine[i], rect
        sx, sy = (x1 - x0) / (u1 - u0), (y1 - y0) / (v1 - v0)
        whole = turned_box(theirs[0], wide, high, int(turn))
        clips = mine[i] if i >= len(mine) - my_parts else mine[0], rect if j >= len(theirs) - their_parts else whole
        found.append(Proposal(20 * float(like[i, j, turn]), int(turn), (sx, sy, x0 - sx * u0, y0 - sy * v0), *clips, (int(i), int(j))))
    return found


def by_cells(left: Area, mine: np.ndarray, right: Area, theirs: np.ndarray) -> list[Proposal]:
    """Two whole pictures, by their squares of 16ths of a grey level, in the turn in which most cells differ by one gain and light; none where these are too few.

    A box over a smooth picture outweighs all else in a correlation, and here is what does not agree.
    """
    small = [square.reshape(SQUARE // 2, 2, SQUARE // 2, 2).sum((1, 3)).astype(np.int64) for square in (mine, theirs)]
    agrees = one_light(small[0].ravel(), small[1].ravel()[TURNED_SMALL], 4 * 16 * LIGHT).mean(1)
    turn = int(np.argmax(agrees))
    if agrees[turn] < AGREE:
        return []
    rect = turned_box(right, right[2], right[3], turn)
    sx, sy = left[2] / rect[2], left[3] / rect[3]
    return [Proposal(20 * float(agrees[turn]), turn, (sx, sy, 0.0, 0.0), left, rect, (0, 0))]


TURNED_SMALL = turned_cells(SQUARE // 2)


def _unit(squares: np.ndarray) -> np.ndarray:
    """(m, 1024) float64, each of mean 0 and length 1, or all 0 for an area of one grey."""
    flat = squares.reshape(len(squares), -1).astype(np.float64)
    flat -= flat.mean(1, keepdims=True)
    return flat / np.maximum(np.sqrt((flat * flat).sum(1, keepdims=True)), 1e-9)


def turned_box(box: Area, wide: float, high: float, turn: int) -> Area:
    """A box of a picture as a box of it turned."""
    left, top, right, bottom = box
    if turn >= 4:
        left, right = wide - right, wide - left
    for _ in range(turn % 4):
        left, top, right, bottom, wide, high = top, wide - right, bottom, wide - left, high, wide
    return left, top, right, bottom


# a SIFT descriptor is 4 x 4 places of 8 directions about its point's own direction; in a mirror the rows swap and the directions run backwards
MIRRORED = np.array([((3 - i) * 4 + j) * 8 + (8 - k) % 8 for i in range(4) for j in range(4) for k in range(8)])
Points = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # place (n, 2), size, angle, descriptor (n, 128)


def by_points(left: Points, right: Points, left_shape: tuple[int, int], right_shape: tuple[int, int]) -> list[Proposal]:
    """What at least three pairs of key points agree on, weighted by their number."""
    found: list[Proposal] = []
    (at, size, angles, codes), (their_at, their_size, their_angles, their_codes) = left, right
    if min(len(at), len(their_at)) < 3:
        return found
    high, wide = right_shape
    mine = 0.0, 0.0, float(left_shape[1]), float(left_shape[0])
    for mirror in (0, 1):
        a, b = _pairs(codes, their_codes[:, MIRRORED] if mirror else their_codes)
        angle = (180 - their_angles[b] if mirror else their_angles[b]) - angles[a]
        quarter = np.rint(angle / 90)
        for k in range(4):
            here = (quarter % 4 == k) & (np.abs(angle - 90 * quarter) < 15)
            if here.sum() >= 3:
                turn = k + 4 * mirror
                points = _turned_points(their_at[b[here]], wide, high, turn)
                theirs = 0.0, 0.0, *((float(high), float(wide)) if k % 2 else (float(wide), float(high)))
                placings = _placings(at[a[here]], points, size[a[here]] / their_size[b[here]])
                found += [Proposal(float(n), turn, placing, mine, theirs) for n, placing in placings]
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


CENTRES = (np.arange(SQUARE) + 0.5) / SQUARE


def drifted(left: np.ndarray, right: np.ndarray) -> Placing | None:
    """Where the left square lies in the right one: scale x, scale y, offset x, offset y, as fractions of a side; None where it drifts away.

    Gauss and Newton's steps from one square on the other, with gain and shade free, and what fits badly (a box, a sticker) weighing less; sure for what is as
    smooth as a blurred picture, which is what it is for.
    """
    mine, theirs = left / 16, right / 16
    slopes = np.stack([theirs, np.gradient(theirs, axis=1) * SQUARE, np.gradient(theirs, axis=0) * SQUARE])
    place, weight = np.array([1.0, 1.0, 0.0, 0.0]), np.ones((SQUARE, SQUARE))
    for _ in range(STEPS):
        x, y = (place[axis] * CENTRES + place[2 + axis] for axis in (0, 1))
        inside = ((y > 0) & (y < 1))[:, None] & ((x > 0) & (x < 1))
        if inside.sum() < SQUARE * SQUARE / 4:
            return None
        seen, along, down = _sampling(y) @ slopes @ _sampling(x).T
        columns = np.stack([along * CENTRES, down * CENTRES[:, None], along, down, -mine, np.full_like(mine, -1.0)])[:, inside]
        weighted = columns * weight[inside]
        normal, target = weighted @ columns.T, -(weighted @ seen[inside])
        normal[np.arange(4), np.arange(4)] += 1e-3 * np.trace(normal[:4, :4]) / 4
        normal[np.arange(6), np.arange(6)] += 1e-9
        step = np.linalg.solve(normal, target)
        place = place + np.clip(step[:4], -0.1, 0.1)
        if not (place[:2].min() > 1 / ZOOM and place[:2].max() < ZOOM):
            return None
        if np.abs(step[:4]).max() < 1e-3:
            break
        off = np.abs(step @ columns + seen[inside])
        weight[inside] = 1 / (1 + (off / (3 * np.median(off) + 1e-6)) ** 2)
    return tuple(place.tolist())  # type: ignore[return-value]


def _sampling(at: np.ndarray) -> np.ndarray:
    """(32, 32) float64: how a line is read between its pixels, at fractions of its length."""
    at = np.clip(at * SQUARE - 0.5, 0, SQUARE - 1)
    first = np.minimum(at.astype(np.int64), SQUARE - 2)
    weights, rows = np.zeros((SQUARE, SQUARE)), np.arange(SQUARE)
    weights[rows, first], weights[rows, first + 1] = 1 - (at - first), at - first
    return weights
