"""How alike two pictures are: candidates by hash over turned views, then thumbnails compared in whole numbers, so that no rounding decides.

The score of two pictures is the root mean square difference of their square RGB thumbnails in grey levels, at the best of the eight turns (or unturned),
*stretched*: where the flatter of the two has a contrast below `min_contrast`, the difference is multiplied by min_contrast / contrast. So two
different skies are far apart although both are nearly one colour, and two equal pictures are at 0 whatever they show.

A picture with a border of one colour has two *looks*: as it is, and without the border. Two pictures are as alike as the closest two of their looks.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from manifests import images
from manifests.errors import Refusal
from manifests.memory import enough, size
from manifests.vectors import hamming

COARSE = 4  # thumbnails are first compared as 4 x 4 blocks: a bound from below, so nothing is missed
PAIRS = 1 << 15  # pairs that are looked at together
VALUES = 1 << 22  # values of their thumbnails that are compared at a time
BLOCK = 1 << 16  # hashes that are compared with the next ones at a time
TURNS = 8
OUTER, INNER = 3, 8  # grey levels, mean distance to the border's colour: of the outermost line, and of a further one (a coder rings near the picture)
LEAST_BORDER, LEAST_PICTURE = 0.03, 0.25  # of the area, of a side: less border is none, and less picture than this is no picture with a border


@dataclass
class Pictures:
    """Thumbnails ready to be compared.

    pixels     (n, side, side, 3) uint8
    blocks     (n, 4, 4, 3) int32: sums of the pixels of each block
    contrast   (n,) float64: standard deviation of the pixels about the mean colour, in grey levels
    """

    pixels: np.ndarray
    blocks: np.ndarray
    contrast: np.ndarray

    @classmethod
    def from_pixels(cls, pixels: np.ndarray) -> "Pictures":
        """From (n, side, side, 3) uint8."""
        count, side = len(pixels), pixels.shape[1]
        assert side % COARSE == 0, side
        blocks = np.empty((count, COARSE, COARSE, 3), np.int32)
        contrast = np.empty(count)
        for start in range(0, count, 4096):
            part = pixels[start : start + 4096]
            shape = (len(part), COARSE, side // COARSE, COARSE, side // COARSE, 3)
            blocks[start : start + 4096] = part.reshape(shape).sum((2, 4), dtype=np.int32)
            squares = (part.astype(np.int64) ** 2).sum((1, 2, 3))
            means = (part.sum((1, 2), dtype=np.int64) ** 2).sum(1)  # of each colour; whole numbers up to the division
            contrast[start : start + 4096] = np.sqrt((squares * side * side - means) / (3 * side**4))
        return cls(pixels, blocks, contrast)

    def __len__(self) -> int:
        return len(self.pixels)


def thumbnail(picture: np.ndarray, side: int) -> np.ndarray:
    """(h, w, 3) uint8 to (side, side, 3) uint8: the exact mean of each of side x side equal fields, which may cut through pixels, rounded half up.

    Another size of a picture has nearly the same means, whatever the two sizes; a resampling filter's footprint would move with them.
    """
    high, wide = picture.shape[:2]
    if (high, wide) == (side, side):
        return picture
    down, across = _overlaps(high, side), _overlaps(wide, side)
    sums = across @ (down @ picture.reshape(high, -1).astype(np.float64)).reshape(side, wide, 3)  # whole numbers below 2^53: exact
    return ((sums.astype(np.int64) * 2 + high * wide) // (2 * high * wide)).astype(np.uint8)


def trimmed(picture: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 without a border of one colour, of any width on each side, as a view; `picture` itself where there is none, or nothing within."""
    box = border(picture)
    return _within(picture, box) if any(box) else picture


def border(picture: np.ndarray) -> tuple[int, int, int, int]:
    """Lines of one colour at the top, bottom, left and right of (h, w, 3) uint8; all 0 where they are too few to be a border, or nothing lies within.

    Each side has its own colour: the middle value of its outermost line. Rows are taken off first, then columns, then both once more.
    """
    if not _may_have_border(picture):
        return 0, 0, 0, 0
    box = [0, 0, 0, 0]  # lines taken off: top, bottom, left, right
    colours: dict[int, np.ndarray] = {}
    for _ in range(2):
        before = tuple(box)
        for side in range(4):
            inner = _within(picture, box)
            lines = inner if side < 2 else inner.swapaxes(0, 1)
            lines = lines[::-1] if side % 2 else lines
            if side not in colours:
                middle = lines.shape[1] // 2
                colour = np.partition(lines[0], middle, axis=0)[middle].astype(np.int16)
                if np.abs(lines[0] - colour).sum() > OUTER * lines[0].size:
                    continue
                colours[side] = colour
            width = _lines_of(colours[side], lines)
            if width == len(lines):
                return 0, 0, 0, 0
            box[side] += width
        if tuple(box) == before:
            break
    found = _within(picture, box)
    is_left = min(found.shape[0] / picture.shape[0], found.shape[1] / picture.shape[1]) >= LEAST_PICTURE
    return tuple(box) if is_left and found.size <= (1 - LEAST_BORDER) * picture.size else (0, 0, 0, 0)  # type: ignore[return-value]


def _may_have_border(picture: np.ndarray) -> bool:
    """Can any of the four outermost lines be of one colour? Most photos end here, in few steps: two pixels are together at least as far from any colour as from each other."""
    for line in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        half = len(line) // 2
        if not half or cv2.norm(line[:half], line[half : 2 * half], cv2.NORM_L1) <= OUTER * line.size:
            return True
    return False


def _lines_of(colour: np.ndarray, lines: np.ndarray) -> int:
    """How many of (k, n, 3) uint8 are of that colour before the first that is not; read from the outside in ever larger pieces, as most borders are narrow."""
    start, step = 0, 8
    while start < len(lines):
        other = np.flatnonzero(np.abs(lines[start : start + step] - colour).sum((1, 2)) > INNER * lines[0].size)
        if len(other):
            return start + int(other[0])
        start, step = start + step, 2 * step
    return len(lines)


def _within(picture: np.ndarray, box: Sequence[int]) -> np.ndarray:
    top, bottom, left, right = box
    return picture[top : picture.shape[0] - bottom, left : picture.shape[1] - right]


@dataclass
class Looks:
    """The looks of n pictures: all as they are, in their order, then without their border those that have one.

    row          (m,) int64: whose look
    is_trimmed   (m,) bool
    codes        (m, 8 w) uint8: the hashes of the eight turns, as `candidates` takes them
    """

    row: np.ndarray
    is_trimmed: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, whole: np.ndarray, without: np.ndarray) -> "Looks":
        """From the hashes (n, 8 w) of the pictures as they are and without their borders: equal where there is none."""
        more = np.flatnonzero((whole != without).any(1))
        row = np.concatenate([np.arange(len(whole)), more])
        codes = np.empty((len(row), whole.shape[1]), np.uint8)
        codes[: len(whole)] = whole
        np.take(without, more, axis=0, out=codes[len(whole) :], mode="clip")
        return cls(row, np.arange(len(row)) >= len(whole), codes)

    def __len__(self) -> int:
        return len(self.row)

    def grouped(self) -> tuple[np.ndarray, np.ndarray]:
        """The distinct codes (k, 8 w) in their order, and (m,) int64 the code of each look."""
        keys = np.ascontiguousarray(self.codes).view(np.dtype((np.void, self.codes.shape[1])))[:, 0]
        order = np.argsort(keys)
        new = np.ones(len(keys), bool)
        for start in range(1, len(keys), BLOCK):  # `np.unique` would copy all of them in their order
            some = slice(start, start + BLOCK)
            new[some] = keys[order[some]] != keys[order[start - 1 : min(start + BLOCK, len(keys)) - 1]]
        group = np.empty(len(keys), np.int64)
        group[order] = np.cumsum(new) - 1
        return self.codes[order[new]], group


def thumbnails(where: str, read: Callable[[np.ndarray], Iterator[Any]], looks: Looks, chosen: np.ndarray, side: int, memory: int) -> Pictures:
    """Thumbnails of the looks `chosen` (k,) int64, in their order; `read` gives the image files of rows. Each file is read once, in the order of rows.

    A picture that cannot be decoded at this size, though its hashes are known, is like no other: its contrast is no number.
    Raises `Refusal` [does-not-fit] where they need more than `memory` bytes.
    """
    needed = len(chosen) * (3 * side * side + 256)
    if needed > memory:
        raise Refusal(
            "does-not-fit", where, f"thumbnails of {len(chosen)} rows need {size(needed)}", f"{size(memory)} are allowed",
            f"Give --memory {enough(needed)} or a smaller side; dedup.exact before it also helps",
        )  # fmt: skip
    pixels = np.empty((len(chosen), side, side, 3), np.uint8)
    if not len(chosen):
        return Pictures.from_pixels(pixels)
    unseen = np.zeros(len(chosen), bool)
    places = np.argsort(looks.row[chosen], kind="stable")
    rows, starts = np.unique(looks.row[chosen[places]], return_index=True)
    for payload, own in zip(read(rows), np.split(places, starts[1:]), strict=True):
        for place in own:
            is_trimmed = looks.is_trimmed[chosen[place]]
            try:
                picture = images.visible(payload, min_side=(8 if is_trimmed else 4) * side)  # where to cut shows only in a larger one
            except images.Undecodable:
                pixels[place], unseen[place] = 0, True
                pixels[place].reshape(-1)[:8] = np.array([place + 1], np.int64).view(np.uint8)  # and so equal to no other
                continue
            pixels[place] = thumbnail(trimmed(picture) if is_trimmed else picture, side)
    pictures = Pictures.from_pixels(pixels)
    pictures.contrast[unseen] = np.nan
    return pictures


@lru_cache(maxsize=256)
def _overlaps(length: int, side: int) -> np.ndarray:
    """(side, length) float64: how much of each pixel lies in each of `side` equal fields, in `side`ths of a pixel."""
    starts, pixels = np.arange(side)[:, None] * length, np.arange(length)[None, :] * side
    return np.clip(np.minimum(starts + length, pixels + side) - np.maximum(starts, pixels), 0, None).astype(np.float64)


def candidates(
    codes: np.ndarray, others: np.ndarray | None, radius: int, *, turned: bool, known: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of pictures whose hashes differ in at most `radius` bits in some turn.

    codes     (n, 8 w) uint8: the hash of w bytes of each of eight turns, the unturned first
    others    (m, 8 w) uint8 of other pictures; None = pairs among `codes`, each once with a < b
    radius    bits
    turned    compare with all eight turns; else only unturned with unturned
    known     (n,) bool, without `others`: a pair of two such is not looked for

    Returns a, b int64 and the least distance int32, ordered by (a, b).
    """
    width = codes.shape[1] // TURNS
    base = codes if others is None else others
    turns = TURNS if turned else 1
    searches: list[tuple[slice | np.ndarray, slice | np.ndarray]] = [(slice(None), slice(None))]
    if known is not None and known.any():
        new = np.flatnonzero(~known)
        searches = [(new, slice(None)), (np.flatnonzero(known), new)]
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for left, right in searches:
        first = np.ascontiguousarray(codes[left, :width])
        views = np.ascontiguousarray(base[right, : turns * width]).reshape(-1, width)
        for a, view, bits in hamming.neighbours(first, radius, base=views):
            a, b = (at if isinstance(rows, slice) else rows[at] for rows, at in ((left, a), (right, view // turns)))
            if others is None:
                a, b, bits = np.minimum(a, b)[a != b], np.maximum(a, b)[a != b], bits[a != b]
            found.append(_least(a, b, bits))
    if not found:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int32)
    return _least(*(np.concatenate(column) for column in zip(*found, strict=True)))


def _least(a: np.ndarray, b: np.ndarray, distance: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each pair once, with its least distance."""
    order = np.lexsort((distance, b, a))
    a, b, distance = a[order], b[order], distance[order]
    new = np.ones(len(a), bool)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    return a[new].astype(np.int64), b[new].astype(np.int64), distance[new].astype(np.int32)


def members(group: np.ndarray, a: np.ndarray, b: np.ndarray, other: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Pairs of groups as pairs of their members, in blocks: (row of a, row of b, which pair of groups), each about `PAIRS` long.

    group    (n,) int64: the group of each row, -1 = none
    a, b     pairs of groups; a == b stands for the pairs inside a group, each once
    other    (m,) int64: the groups that `b` speaks of, where they are others
    """
    left_rows, left_start, left_size = _listed(group, a)
    right_rows, right_start, right_size = _listed(group if other is None else other, b)
    total = np.cumsum(left_size[a] * right_size[b])
    for low in range(0, int(total[-1]) if len(total) else 0, PAIRS):
        number = np.arange(low, min(low + PAIRS, int(total[-1])))
        pair = np.searchsorted(total, number, side="right")
        inside = number - np.where(pair > 0, total[pair - 1], 0)
        i, j = np.divmod(inside, right_size[b[pair]])
        if other is None:
            once = (a[pair] != b[pair]) | (i < j)
            pair, i, j = pair[once], i[once], j[once]
        yield left_rows[left_start[a[pair]] + i], right_rows[right_start[b[pair]] + j], pair


def _listed(group: np.ndarray, named: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows by group, where each group starts, its size); a group that is `named` may have no row here."""
    rows = np.flatnonzero(group >= 0)
    rows = rows[np.argsort(group[rows], kind="stable")]
    size = np.bincount(group[rows], minlength=int(max(group.max(initial=-1), named.max(initial=-1))) + 1)
    return rows, np.cumsum(size) - size, size


def differences(left: Pictures, a: np.ndarray, right: Pictures, b: np.ndarray, *, limit: float, min_contrast: float, turned: bool) -> np.ndarray:
    """(k,) float64: the score of pictures `a` of `left` and `b` of `right`; inf where it is above `limit`.

    limit          grey levels
    min_contrast   grey levels; 0 = no stretching
    turned         the best of eight turns; else unturned
    """
    side = left.pixels.shape[1]
    flatter = np.minimum(left.contrast[a], right.contrast[b])
    with np.errstate(divide="ignore", invalid="ignore"):
        stretch = np.maximum(1.0, np.where(flatter > 0, min_contrast / flatter, np.inf if min_contrast > 0 else 1.0))
    most = np.where(np.isinf(stretch), 0, (limit / stretch) ** 2 * (3 * side * side) * (1 + 1e-9))  # of the sum of squares; no stretch forgives 0
    best = np.full(len(a), np.iinfo(np.int64).max)
    per_block = (side // COARSE) ** 2
    sums = _squares(left.blocks.sum((1, 2))[a], right.blocks.sum((1, 2))[b]) / side**2  # no turn changes the mean colour or the contrast
    spread = 3 * side * side * (left.contrast[a] - right.contrast[b]) ** 2
    unsure = np.flatnonzero(sums + spread * (1 - 1e-9) <= most + 1e-3)
    for turn in range(TURNS if turned else 1):
        bound = _squares(left.blocks[a[unsure]], turn_pixels(right.blocks[b[unsure]], turn)) / per_block
        close = unsure[bound <= most[unsure]]
        step = max(1, VALUES // (3 * side * side))
        for near in (close[start : start + step] for start in range(0, len(close), step)):
            best[near] = np.minimum(best[near], _squares(left.pixels[a[near]], turn_pixels(right.pixels[b[near]], turn)))
    score = np.sqrt(best / (3 * side * side)) * np.where(best == 0, 1.0, stretch)
    return np.where(score <= limit, score, np.inf)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(k,) int64: sums of squared differences, exact."""
    width = a[0].size if len(a) else 0
    if a.dtype == np.uint8 and width * 255**2 < 1 << 31:
        small = (a.astype(np.int16) - b).reshape(len(a), width).astype(np.int32)
        return np.einsum("ij,ij->i", small, small).astype(np.int64)
    difference = (a.astype(np.int64) - b).reshape(len(a), width)
    return np.einsum("ij,ij->i", difference, difference)


def turn_pixels(pixels: np.ndarray, turn: int) -> np.ndarray:
    """(n, s, s, 3) seen in turn 0 to 7: mirrored first where turn >= 4, then turned by turn % 4 quarter turns."""
    if turn >= 4:
        pixels = pixels[:, :, ::-1]
    return np.rot90(pixels, turn % 4, axes=(1, 2))
