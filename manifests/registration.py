"""Is one picture a copy of another, and what was done to it: laid one over the other at low resolution, then compared.

`placing` proposes how the two could lie over each other; a border of one colour is off before anything is compared, so that a frame is no evidence.
*Block by block*: the common area of both is brought to one grid, smoothed, and cut into blocks of 8 x 8 cells. A block agrees when what
is left of both after the block's own mean, slope and bend (so: light, colour and shade) correlates. Blocks that are flat in both say nothing, but where they are the most,
their greys must go together. Where a part of a picture is laid on another, an edge or a curve alone proves nothing: it can be laid on any other.
*As a whole*: where the blocks have too little to say, as in a sky or a blurred picture, the common area of both less its own mean, slopes and bends must be nearly the same,
but for a part that may be covered; and no more than a third of the blocks that show something in both may speak against it,
a quarter where a part is laid on another. *All together*: a thumbnail is compared with what it may be a thumbnail of by all that it shows (`surfaces`).
"""

import math
from collections.abc import Iterator
from dataclasses import astuple, dataclass, replace

import numpy as np

from manifests.blocks import BLOCK, blocks, corners, greys_agree, is_straight, means, smoothed
from manifests.likeness import TURNS, turn_pixels
from manifests.placing import Area, Proposal, by_areas, by_cells, by_points, drifted, turned_box
from manifests.seen import Seen
from manifests.surfaces import LEAST_DETAIL, SQUARE, boxes, likest_turn, uncovered

__all__ = ["AREA", "FIELDS", "Match", "aligned", "register"]

GRID = 64  # cells of the longer side of the common area
MIN_BLOCKS = 3  # of each side of the common area
ENOUGH = 8  # agreeing blocks without which nothing is a copy
INSIDE = 3  # of them inside, where the outermost blocks are left out
CORNERS = 3  # of them that show more than an edge or a piece of a curve, where the common area is not all of both
ALL = 0.95  # of both pictures: more is the whole picture
AREA = 0.2  # of one of the two pictures that must lie in the common area
THUMBNAIL, ASPECT = 56, 0.1  # pixels of the longer side of a small picture; how far, in the logarithm, its aspect may be off
WORN, EVIDENCE = 0.7, 16.0  # correlation of it and the larger picture; nats
HALF = 0.5  # ... of both, borders counted, where the way back alone finds it: in small cuts one edge of light fits another
SAME, CONTRAST = (
    2.0,
    40.0,
)  # grey levels of two small pictures below which they are one, stretched as in `likeness` where they are flatter than CONTRAST
TRIES = 4  # proposals that are compared
SURE, CERTAIN = 0.6, 0.9  # score from which no area is moved about; from which no further proposal is compared
NEAR, DRIFTS = 0.7, 2  # correlation of two areas from which one is moved until it fits; how many of them
EVEN_SCALE = 0.05  # of the logarithm of scale across to scale down
FEW, MOSTLY = 10, 0.6  # key points that agree by chance where a motif repeats; ... and then most blocks must agree
THIN, HOLDS = 0.05, 0.75  # of the common area: lines that one of the two alone shows; ... and then so many of the blocks that show something agree

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of a picture


@dataclass(frozen=True)
class Match:
    """How two pictures lie over each other.

    turn             0 to 7: `likeness.turn_pixels(right, turn)` stands as the left does
    score            0 to 1: agreeing blocks of all that show something, but no more than twice their share inside the common area's rim; of two that were
                     compared as a whole, what is not covered; of a thumbnail, its correlation
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


def register(left: Seen, right: Seen) -> Match | None:
    """How `right` lies over `left`, at the proposal under which most blocks agree, or as a whole; None where nothing speaks for a copy.

    Guarantee   a match takes at least `AREA` of one of the two; and at least `ENOUGH` blocks agree, which are more than parallel lines, or the two are the same as
                a whole but for what is covered, or one to the eye, frame on frame, or one is a thumbnail of the other (then `agreeing` may be 0). A border of one
                colour is no evidence
    Not found   copies turned by other angles, sheared or bent; common areas of less than 3 blocks a side; flat pictures that were cropped or recoloured; two
                collages that share a picture without detail. Not told apart: a motif that repeats so exactly that most blocks agree, two shapes with one rim
                whose insides show little
    Cost        1 to 5 ms
    """
    near = by_areas((left.areas, left.squares, left.parts), (right.areas, right.squares, right.parts), right.gray.shape)
    near += by_points(_points(left), _points(right), left.gray.shape, right.gray.shape)
    near.sort(key=lambda p: -p.weight)
    best: Ranked | None = None
    for proposal in near[:TRIES]:
        best = _better(best, _ranked(left, right, _compared(left, right, proposal)))
        if best is not None and best[0] >= CERTAIN and best[1] >= ALL:
            break
    if best is None or best[0] < SURE:
        for proposal in _wholes(left, right, near):
            best = _better(best, _ranked(left, right, _as_a_whole(left, right, proposal), is_whole=True))
    if best is None or best[0] == 0:  # a box on one of the two can lead the steps from it to the other astray, and not those back
        back = by_areas((right.areas, right.squares, right.parts), (left.areas, left.squares, left.parts), left.gray.shape)
        for proposal in _wholes(right, left, back):
            match = _as_a_whole(right, left, proposal)
            if match is not None and min(_area(match.left), _area(match.right)) >= HALF:
                best = _better(best, _ranked(left, right, _seen_from_the_other(match), is_whole=True))
    if best is None or best[0] < SURE:
        match = _thumbnail(left, right) or (_equal(left, right) if best is None or best[0] == 0 else None)
        return best[-1] if match is None and best is not None and best[0] > 0 else match
    return best[-1]


def _wholes(left: Seen, right: Seen, near: list[Proposal]) -> Iterator[Proposal]:
    """Where two pictures may lie over each other that blocks say too little of: as they are where most of their cells agree, and where areas that look alike fit best.

    One of the two lies there as more than a part of it: of what shows little, a little of both is no evidence.
    """
    yield from by_cells(left.areas[0], left.squares[0], right.areas[0], right.squares[0])
    alike = [p for p in near if p.areas is not None and p.weight >= 20 * NEAR and not (_is_part(left, p.areas[0]) and _is_part(right, p.areas[1]))]
    yield from (moved for proposal in alike[:DRIFTS] if (moved := _moved(left, right, proposal)) is not None)


def _is_part(seen: Seen, area: int) -> bool:
    return area >= len(seen.areas) - seen.parts


def _seen_from_the_other(match: Match) -> Match:
    """The match of the same two with their parts exchanged."""
    turn = match.turn if match.turn >= 4 else (4 - match.turn) % 4  # a mirrored turn undoes itself
    return replace(match, turn=turn, left=match.right, right=match.left)


def _points(seen: Seen) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    return seen.points, seen.sizes, seen.angles, seen.descriptors


Ranked = tuple[float, float, float, int, Match]  # the better, the larger; all scores from CERTAIN up are one, so that the larger common area decides


def _ranked(left: Seen, right: Seen, match: Match | None, *, is_whole: bool = False) -> Ranked | None:
    if match is None or (not is_whole and match.agreeing < ENOUGH):
        return None
    score = match.score * (1.0 if is_whole else min(1.0, match.agreeing / (2 * ENOUGH)))
    parts = ((_area(box) * _area(seen.frame) / seen.gray.size) for box, seen in ((match.left, left), (match.right, right)))
    return min(score, CERTAIN), max(parts), score, match.agreeing, match


def _area(box: Area) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _better(best: Ranked | None, other: Ranked | None) -> Ranked | None:
    return best if other is None or (best is not None and other[:4] <= best[:4]) else other


def _moved(left: Seen, right: Seen, proposal: Proposal) -> Proposal | None:
    """The proposal of two areas with the right one moved and scaled until it fits best."""
    assert proposal.areas is not None
    i, j = proposal.areas
    drift = drifted(left.squares[i].astype(np.float64), _turned(right.squares[j].astype(np.float64), proposal.turn))
    if drift is None:
        return None
    high, wide = right.gray.shape
    (x0, y0, x1, y1), (u0, v0, u1, v1) = left.areas[i], turned_box(right.areas[j], wide, high, proposal.turn)
    sx, sy = (x1 - x0) / ((u1 - u0) * drift[0]), (y1 - y0) / ((v1 - v0) * drift[1])
    if min(abs(math.log(sx / sy)), abs(math.log(drift[0] / drift[1]))) > EVEN_SCALE:
        return None  # a crop keeps its aspect, or that of the squeezed picture; two glows of different shape would fit otherwise
    placing = sx, sy, x0 - sx * (u0 + drift[2] * (u1 - u0)), y0 - sy * (v0 + drift[3] * (v1 - v0))
    return proposal._replace(placing=placing)


def _thumbnail(left: Seen, right: Seen) -> Match | None:
    """A small picture that is a larger one scaled down and worn by its coder: blocks and light say too little of its few pixels, all of them together enough."""
    small, large = sorted((max(seen.gray.shape), number) for number, seen in enumerate((left, right)))
    if small[0] > THUMBNAIL or 2 * small[0] > large[0]:
        return None
    turn, alike, nats = likest_turn(left.squares[0].ravel() / 16, right.squares[0].ravel() / 16, large[1])
    high, wide = right.gray.shape[:: -1 if turn % 2 else 1]
    aspect = abs(math.log(left.gray.shape[1] / left.gray.shape[0] * high / wide))
    if aspect > ASPECT or alike < WORN or nats < EVIDENCE:
        return None
    return Match(turn, alike, 0.0, 0, *(_fractions(seen.areas[0], seen.frame) for seen in (left, right)))


def _equal(left: Seen, right: Seen) -> Match | None:
    """Two whole pictures that are one to the eye: what is left for a picture that shows too little to be compared, such as a sky."""
    mine, theirs = left.small, right.small
    n = mine.size
    sums, squares = mine.reshape(-1, 3).sum(0, dtype=np.int64), int((mine.astype(np.int64) ** 2).sum())
    contrast = math.sqrt(squares / n - 3 * int((sums * sums).sum()) / n**2) if n * squares > 3 * int((sums * sums).sum()) else 0.0
    most = n * (SAME * min(1.0, contrast / CONTRAST)) ** 2
    if ((sums - theirs.reshape(-1, 3).sum(0, dtype=np.int64)) ** 2).sum() * 3 > n * most:  # no turn changes the mean colour
        return None
    for turn in range(TURNS):
        if ((mine.astype(np.int64) - _turned(theirs, turn)) ** 2).sum() <= most:
            all_of = [_fractions((0.0, 0.0, float(seen.gray.shape[1]), float(seen.gray.shape[0])), seen.frame) for seen in (left, right)]
            return Match(turn, 1.0, 0.0, 0, *all_of)
    return None


def aligned(left: np.ndarray, right: np.ndarray, turn: int, left_box: Box, right_box: Box) -> tuple[np.ndarray, np.ndarray]:
    """The common area of two decoded pictures, (h, w, 3) uint8 each, the right one turned as the left stands."""
    return _cut(left, left_box), np.ascontiguousarray(turn_pixels(_cut(right, right_box)[None], turn)[0])


def _cut(picture: np.ndarray, box: Box) -> np.ndarray:
    high, wide = picture.shape[:2]
    x0, y0, x1, y1 = (min(max(round(v * edge), 0), edge) for v, edge in zip(box, (wide, high, wide, high), strict=True))
    return picture[min(y0, high - 1) : max(y1, y0 + 1), min(x0, wide - 1) : max(x1, x0 + 1)]


def _turned(plane: np.ndarray, turn: int) -> np.ndarray:
    return turn_pixels(plane[None], turn)[0]


@dataclass(frozen=True)
class Common:
    """The common area of two pictures: as boxes of both in pixels, the right one turned.

    size      across, down: pixels of the coarser of the two
    is_cut    it is not all of both, but for a border
    """

    left: Area
    right: Area
    size: tuple[float, float]
    is_cut: bool


def _common(left: Seen, right: Seen, proposal: Proposal) -> Common | None:
    """None where they share too little."""
    sx, sy, tx, ty = proposal.placing
    mine, (u0, v0, u1, v1) = proposal.left, proposal.right
    x0, x1 = max(mine[0], sx * u0 + tx), min(mine[2], sx * u1 + tx)
    y0, y1 = max(mine[1], sy * v0 + ty), min(mine[3], sy * v1 + ty)
    if x1 - x0 < BLOCK or y1 - y0 < BLOCK:
        return None
    theirs = (x0 - tx) / sx, (y0 - ty) / sy, (x1 - tx) / sx, (y1 - ty) / sy
    shares = (x1 - x0) * (y1 - y0) / left.gray.size, (theirs[2] - theirs[0]) * (theirs[3] - theirs[1]) / right.gray.size
    if max(shares) < AREA:
        return None
    size = min(x1 - x0, theirs[2] - theirs[0]), min(y1 - y0, theirs[3] - theirs[1])
    is_all = min(shares) >= ALL and (left.frame == left.areas[0] or right.frame == right.areas[0] or _on_frame(left, right, proposal))
    return Common((x0, y0, x1, y1), theirs, size, not is_all)


def _on_frame(left: Seen, right: Seen, proposal: Proposal) -> bool:
    """Do the two pictures coincide with their borders?"""
    sx, sy, tx, ty = proposal.placing
    high, wide = right.gray.shape
    x0, y0, x1, y1 = turned_box(right.frame, wide, high, proposal.turn)
    off = np.abs(np.array([sx * x0 + tx, sy * y0 + ty, sx * x1 + tx, sy * y1 + ty]) - left.frame)
    return bool((off <= (1 - ALL) / 2 * max(left.gray.shape)).all())


def _grids(left: Seen, right: Seen, turn: int, common: Common, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    return means(left.gray, common.left, rows, columns), means(_turned(right.gray, turn), common.right, rows, columns)


def _block_rows(common: Common) -> tuple[int, int]:
    """How many blocks the common area is high and wide."""
    across, down = common.size
    cells = min(GRID / max(across, down), max(1.0, min(2.0, 4 * BLOCK / min(across, down))))
    return round(down * cells / BLOCK), round(across * cells / BLOCK)


def _compared(left: Seen, right: Seen, proposal: Proposal) -> Match | None:
    """The match by blocks, whatever its score; None where the two share too little, or nothing but parallel lines."""
    common = _common(left, right, proposal)
    if common is None:
        return None
    rows, columns = _block_rows(common)
    if min(columns, rows) < MIN_BLOCKS:
        return None
    planes = _grids(left, right, proposal.turn, common, rows * BLOCK, columns * BLOCK)
    agrees, shows, _, against = blocks(*planes)
    if (~shows).sum() >= agrees.sum() and not greys_agree(*planes, ~shows):
        return None  # a text box that two smooth pictures share
    inner = np.zeros((rows, columns), bool)
    inner[1:-1, 1:-1] = True  # the darkened rim of two doors agrees, whatever is on them
    agreeing, showing = int(agrees.sum()), int(shows.sum())
    agreeing_inside, showing_inside = int(agrees[inner.ravel()].sum()), int(shows[inner.ravel()].sum())
    if agreeing_inside < INSIDE or against.sum() > agreeing:
        return None
    score = min(agreeing / showing, 2 * agreeing_inside / showing_inside)
    if _by_chance(proposal, common, planes, agrees, score):
        return None
    return _match(left, right, proposal.turn, common, score, (showing - agreeing) / len(shows), agreeing)


def _by_chance(proposal: Proposal, common: Common, planes: tuple[np.ndarray, np.ndarray], agrees: np.ndarray, score: float) -> bool:
    """Can two pictures lie so that these blocks agree, and be two? A part of one can be laid on any part of the other, until lines, an edge or a motif fit."""
    corner = int((agrees & corners(planes[0]) & corners(planes[1])).sum())
    if not common.is_cut:  # where areas propose, shade and a frame do
        return proposal.areas is not None and score < MOSTLY and 4 * corner < agrees.sum()
    if corner < CORNERS or is_straight(planes[0], agrees):
        return True
    return proposal.areas is None and proposal.weight <= FEW and (score < MOSTLY or any(is_straight(plane, agrees, 2) for plane in planes))


def _as_a_whole(left: Seen, right: Seen, proposal: Proposal) -> Match | None:
    """The match of two common areas that are the same but for what is covered; None where they are not, or show nothing."""
    common = _common(left, right, proposal)
    if common is None:
        return None
    planes = _grids(left, right, proposal.turn, common, SQUARE, SQUARE)
    seen = uncovered(np.stack([smoothed(plane).ravel() / 16 for plane in planes], axis=1))
    if seen is None or (common.is_cut and is_straight(planes[0], np.ones(SQUARE * SQUARE // BLOCK**2, bool))):
        return None
    seen = seen.reshape(SQUARE, SQUARE)
    _, _, both, against = blocks(*planes, flat=0.0, noise=LEAST_DETAIL / 2)
    bare = seen.reshape(SQUARE // BLOCK, BLOCK, SQUARE // BLOCK, BLOCK).mean((1, 3)).ravel() > 0.9
    if 4 * (against & bare).sum() > (both & bare).sum():
        return None
    rows, columns = (max(edge, 1) for edge in _block_rows(common))
    agrees, _, both, against = blocks(*_grids(left, right, proposal.turn, common, rows * BLOCK, columns * BLOCK))
    under = boxes(~seen)
    if (~under & ~seen).mean() > THIN and both.sum() > ENOUGH and against.any() and agrees.sum() < HOLDS * both.sum():
        return None
    if not common.is_cut:  # of a part that can be laid on any part of the other nothing is excused
        places = (np.arange(edge * BLOCK) * SQUARE // (edge * BLOCK) for edge in (rows, columns))
        bare = ~under[np.ix_(*places)].reshape(rows, BLOCK, columns, BLOCK).any((1, 3)).ravel()
        against, both = against & bare, both & bare
    if (4 if common.is_cut else 3) * against.sum() > both.sum():
        return None
    share = float(seen.mean())
    return _match(left, right, proposal.turn, common, share, 1 - share, int(agrees.sum()))


def _match(left: Seen, right: Seen, turn: int, common: Common, score: float, covered: float, agreeing: int) -> Match:
    high, wide = _turned(right.gray, turn).shape
    theirs = _turned_back(tuple(v / edge for v, edge in zip(common.right, (wide, high, wide, high), strict=True)), turn)  # type: ignore[arg-type]
    high, wide = right.gray.shape
    theirs = theirs[0] * wide, theirs[1] * high, theirs[2] * wide, theirs[3] * high
    return Match(turn, score, covered, agreeing, _fractions(common.left, left.frame), _fractions(theirs, right.frame))


def _fractions(area: Area, frame: Area) -> Box:
    """An area in pixels as a box of the whole picture, as it is stored."""
    wide, high = frame[2] - frame[0], frame[3] - frame[1]
    return _rounded(((area[0] - frame[0]) / wide, (area[1] - frame[1]) / high, (area[2] - frame[0]) / wide, (area[3] - frame[1]) / high))


def _turned_back(box: Box, turn: int) -> Box:
    """A box of the turned picture as a box of the picture as it is stored."""
    left, top, right, bottom = box
    for _ in range(turn % 4):
        left, top, right, bottom = 1 - bottom, left, 1 - top, right
    return (1 - right, top, 1 - left, bottom) if turn >= 4 else (left, top, right, bottom)


def _rounded(box: Box) -> Box:
    left, top, right, bottom = (round(min(max(v, 0.0), 1.0), 4) for v in box)
    return left, top, right, bottom
