"""What is kept of a picture, so that it can be laid over others without being decoded again."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

from manifests import images
from manifests.blocks import means
from manifests.likeness import border, thumbnail
from manifests.placing import SIDE, Area, areas_of
from manifests.surfaces import SQUARE

__all__ = ["BYTES", "Seen", "glance", "see"]

POINTS = 200  # key points of a picture, the strongest
PARTS = 4  # of a collage
SMALL = 16  # pixels of a side of the picture in colour
BYTES = SIDE * SIDE + POINTS * (128 + 32) + (3 + PARTS) * (2 * SQUARE * SQUARE + 64) + 3 * SMALL * SMALL  # of one Seen, at most


@dataclass(frozen=True)
class Seen:
    """What is kept of a picture, to lay it over others.

    gray          (h, w) uint8 without a border of one colour, the longer side at most SIDE
    frame         the whole picture, border and all, in pixels of `gray`
    areas         what may be laid on another picture's areas, in pixels of `gray`: all of it, its middle square, its frame, `parts` parts of a collage
    squares       (m, 32, 32) uint16: each area squashed, 16ths of a grey level
    small         (16, 16, 3) uint8: in colour, without the border
    points        (n, 2) float64: x, y of key points in pixels of `gray`
    sizes         (n,) float64 pixels
    angles        (n,) float64 degrees, clockwise
    descriptors   (n, 128) uint8
    """

    gray: np.ndarray
    frame: Area
    areas: list[Area]
    parts: int
    squares: np.ndarray
    small: np.ndarray
    points: np.ndarray
    sizes: np.ndarray
    angles: np.ndarray
    descriptors: np.ndarray


def see(picture: np.ndarray) -> Seen:
    """What is kept of a decoded picture, (h, w, 3) uint8. Cost: some 10 ms and at most `BYTES`."""
    top, bottom, left, right = border(picture)
    inner = picture[top : picture.shape[0] - bottom, left : picture.shape[1] - right]
    large = images.shrink(inner, 2 * SIDE)
    scale = min(1.0, SIDE / max(large.shape))
    high, wide = (max(1, round(edge * scale)) for edge in large.shape)
    gray = large
    if (high, wide) != large.shape:
        gray = ((means(large, (0, 0, large.shape[1], large.shape[0]), high, wide) + 8) >> 4).astype(np.uint8)
    across, down = wide / inner.shape[1], high / inner.shape[0]
    frame = -left * across, -top * down, wide + right * across, high + bottom * down
    areas, parts = areas_of(gray, frame)
    shown = large if frame == areas[0] else images.shrink(picture, 2 * SIDE)
    squares = np.stack([_square(shown if area == frame else large, area, frame, (high, wide)) for area in areas]).astype(np.uint16)
    points, descriptors = _finder().detectAndCompute(_stretched(gray), None)
    order = sorted(range(len(points)), key=lambda i: (-points[i].response, points[i].pt, points[i].angle))[:POINTS]
    table = np.array([(*points[i].pt, points[i].size, points[i].angle) for i in order], np.float64).reshape(-1, 4)
    found = np.zeros((0, 128), np.uint8) if descriptors is None else descriptors[order].astype(np.uint8)
    return Seen(gray, frame, areas, parts, squares, thumbnail(inner, SMALL), table[:, :2] + 0.5, table[:, 2], table[:, 3], found)


def _square(large: np.ndarray, area: Area, frame: Area, shape: tuple[int, int]) -> np.ndarray:
    """An area of a picture, squashed; `large` is the picture without its border, or all of it for its frame."""
    if area == frame:
        return means(large, (0, 0, large.shape[1], large.shape[0]), SQUARE, SQUARE)
    across, down = large.shape[1] / shape[1], large.shape[0] / shape[0]
    return means(large, (area[0] * across, area[1] * down, area[2] * across, area[3] * down), SQUARE, SQUARE)


def glance(payload: Any) -> Seen | None:
    """`see` of an image file, decoded no larger than it needs; None where it cannot be decoded."""
    try:
        return see(images.visible(payload, min_side=SIDE))
    except images.Undecodable:
        return None


@lru_cache(maxsize=1)
def _finder() -> Any:
    cv2.setNumThreads(1)  # the engine's workers share the machine; and one order of work
    return cv2.SIFT.create(nfeatures=POINTS, contrastThreshold=0.01)


def _stretched(gray: np.ndarray) -> np.ndarray:
    """(h, w) uint8 with mean 128 and spread 50, so that a dim picture has key points too."""
    return np.clip((gray - gray.mean()) * (50 / max(gray.std(), 5.0)) + 128, 0, 255).astype(np.uint8)
