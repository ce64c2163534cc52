"""Hashes that differ in few bits when two pictures look alike, for a picture and its seven turned and mirrored views."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from curate.pool import Batch, Columns
from manifests.images import glance, stacks
from manifests.likeness import trimmed

FIELDS = 32  # the picture is brought to 32 x 32 fields
REACH = 3  # fields to each side of one that its contrast is local to
FLOOR = 2 * 256  # 256ths of a grey level: where a spread is below it, contrast fades out, so that a coder's noise in a sky is none
STEPS, FULL = 1024, 4  # of contrast, and it is full at a quarter of the spread: all detail counts the same, strong or weak
WRITES = {
    "phash": pa.binary(8),
    "phash256": pa.binary(32),
    "phash_views": pa.binary(64),
    "phash256_views": pa.binary(256),
    "phash_trimmed_views": pa.binary(64),
    "phash256_trimmed_views": pa.binary(256),
    "inner_pixels": pa.int64(),
}


class Inner(NamedTuple):
    """A picture without its border: how many pixels it has, and its glance; None where there is no border."""

    num_pixels: int
    gray: np.ndarray | None


def perceptual_hash(batch: Batch) -> Columns:
    """Hash what each picture looks like, as it is stored, turned and mirrored, and without a border of one colour.

    A picture is brought to 32 × 32 fields of mean grey, squashed to a square. The 8 × 8 lowest coefficients of its cosine transform each give a bit of the 64: is
    it above the median of them all? The mean grey is left out and its bit, the first, is always 0. The 16 × 16 lowest give the 256 bits, but not of the greys: of
    local contrast, which is how far a field lies from the mean of the 7 × 7 about it, four times over their standard deviation (no less than 2 grey levels), and
    at most 1. So a strong box, or the light that many pictures share such as a sky above, weighs no more than any detail: the nearest strangers differ in some
    90 bits where of greys they did in 70, and a copy may differ in 80. A turned picture has the same coefficients with other signs and places, so one transform
    gives all views. Not a proof of sameness: flat pictures all hash to 0, and text pages look alike.
    A border is what lies around a picture in one colour on each side (3 grey levels of noise at the rim, 8 next to the picture); the rest is hashed once more. A
    border of less than 3 % of the area is none; a picture of one colour, or with less than a quarter of a side left, stays whole.

    Guarantee   the same bits on every machine: means, contrasts and cosines are whole numbers, and of what is between them only a root and a quotient are rounded, as
                IEEE 754 has it. A coefficient that equals the median gives 0. The hash of a turned 64 × 64 picture is that view of the upright one, to the last bit
    Source      Zauner 2010, the DCT hash with median; the eight views: signs and transposition of DCT coefficients (as in PDQ, Facebook 2019); the border and the
                256 bits of local contrast are ours (planted copies, docs/BENCHMARKS.md: recall .88 to .89 where 256 bits of grey had .83 to .84)
    Writes      phash: fixed binary, 8 bytes; phash256: 32 bytes: row by row, most significant bit first; rows are vertical frequencies
                phash_views: 8 × 8 bytes; phash256_views: 8 × 32 bytes. View v is mirrored left-right where v & 1, then upside down where v & 2, then
                transposed where v & 4; view 0 is the picture itself, 3 a half turn, 5 and 6 quarter turns
                phash_trimmed_views, phash256_trimmed_views: the same without the border; equal to the above where there is none
                inner_pixels: int64, pixels without the border; all where there is none
    Cost        one full-scale decode, shared with `quality` and `exact_hash`, and some 100 microseconds a picture; 0.2 to 1 ms for one with a border
    """
    short, long = _hashes(batch.seen(glance))
    inner = batch.seen(without_border)
    is_bare = np.array([found is not None and found.gray is not None for found in inner])
    short_bare, long_bare = short.copy(), long.copy()
    if is_bare.any():
        short_bare[is_bare], long_bare[is_bare] = _hashes([found.gray for found in inner if found is not None and found.gray is not None])
    return {
        "phash": short[:, :8],
        "phash256": long[:, :32],
        "phash_views": short,
        "phash256_views": long,
        "phash_trimmed_views": short_bare,
        "phash256_trimmed_views": long_bare,
        "inner_pixels": np.array([found.num_pixels if found is not None else 0 for found in inner], np.int64),
    }


def without_border(pixels: np.ndarray) -> Inner:
    """What is left of (h, w, 3) uint8 inside its border."""
    inner = trimmed(pixels)
    return Inner(inner.shape[0] * inner.shape[1], None if inner is pixels else glance(inner))


LOOKS = (glance, without_border)


def _hashes(pictures: Sequence[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray]:
    """The bits (b, 64) and (b, 256) uint8 of all views in 64 and in 256 bits, of b grey pictures."""
    fields = np.zeros((len(pictures), FIELDS, FIELDS))
    for rows, stack in stacks(pictures):
        fields[rows] = mean_fields(stack)
    return hash_views(fields, 8).reshape(len(fields), -1), hash_views(local_contrast(fields), 16).reshape(len(fields), -1)


def mean_fields(gray: np.ndarray) -> np.ndarray:
    """(..., h, w) uint8 to (..., 32, 32) float64 whole numbers: the exact mean grey of each field times 256, rounded half up. A field may cut through pixels."""
    high, wide = gray.shape[-2:]
    kind = np.float32 if high * wide * 255 < 1 << 24 else np.float64  # sums stay whole numbers that the type holds exactly
    down: Any = _overlaps(high).astype(kind, copy=False)
    across: Any = _overlaps(wide).astype(kind, copy=False)
    sums = down @ (gray.reshape(-1, wide).astype(kind) @ across.T).reshape(*gray.shape[:-1], FIELDS)
    return ((sums.astype(np.int64) * 512 + high * wide) // (2 * high * wide)).astype(np.float64)


def local_contrast(fields: np.ndarray) -> np.ndarray:
    """(b, 32, 32) whole numbers to (b, 32, 32) float64 whole numbers, -1024 to 1024: how far each field lies from the mean about it, as a share of the spread there.

    Past the edge the outermost fields go on.
    """
    count, sums, squares = (2 * REACH + 1) ** 2, AROUND @ fields @ AROUND.T, AROUND @ (fields * fields) @ AROUND.T
    spread = count * squares - sums * sums + (count * FLOOR) ** 2  # a variance, times count squared; whole numbers below 2^53: exact in any order
    return np.rint(np.clip(STEPS * FULL * (count * fields - sums) / np.sqrt(spread), -STEPS, STEPS))


NEAR = np.clip(np.arange(FIELDS)[:, None] + np.arange(-REACH, REACH + 1), 0, FIELDS - 1)
AROUND = (NEAR[:, :, None] == np.arange(FIELDS)).sum(1).astype(np.float64)  # (32, 32): how often each field of a line counts in the sum about another


def hash_views(fields: np.ndarray, side: int) -> np.ndarray:
    """(b, n, n) whole numbers to (b, 8, side * side / 8) uint8: the bits of all eight views, from one transform."""
    basis = _cosines(fields.shape[1], side)
    low = np.matmul(basis, fields @ basis.T)  # (b, side, side): vertical by horizontal frequency
    odd = np.where(np.arange(side) % 2, -1.0, 1.0)
    flips = np.stack([low, low * odd, low * odd[:, None], low * odd * odd[:, None]], axis=1)
    middle = (side * side - 1) // 2  # an odd number of coefficients votes, so the median is one of them
    median = np.partition(flips.reshape(len(fields), 4, -1)[:, :, 1:], middle, axis=2)[:, :, middle]
    bits = flips > median[:, :, None, None]
    bits[:, :, 0, 0] = False
    return np.packbits(np.concatenate([bits, bits.swapaxes(2, 3)], axis=1).reshape(len(fields), 8, -1), axis=2)


@lru_cache(maxsize=512)
def _overlaps(length: int) -> np.ndarray:
    """(32, length) float32: how much of each pixel lies in each of 32 equal fields, in 32nds of a pixel."""
    starts = np.arange(FIELDS)[:, None] * length
    pixels = np.arange(length)[None, :] * FIELDS
    return np.clip(np.minimum(starts + length, pixels + FIELDS) - np.maximum(starts, pixels), 0, None).astype(np.float32)


@lru_cache(maxsize=4)
def _cosines(size: int, side: int) -> np.ndarray:
    """(side, size) float64 whole numbers: the lowest rows of the orthonormal DCT, times 4096 and rounded; each row but the first sums to 0 exactly."""
    angles = np.arange(side)[:, None] * (2 * np.arange(size) + 1) * (np.pi / (2 * size))
    return np.rint(np.cos(angles) * np.where(np.arange(side)[:, None], 4096, 4096 / np.sqrt(2)))
