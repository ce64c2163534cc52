"""Hashes that differ in few bits when two pictures look alike, for a picture and its seven turned and mirrored views."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from curate.pool import Batch, Columns
from manifests.images import shrink
from manifests.likeness import trimmed

MIN_SIDE = 64  # shared with `quality`: one small grey picture serves both
FINE = 64  # the picture is brought to 64 x 64 fields; 2 x 2 of them make the 32 x 32 of the short hash
WRITES = {
    "phash": pa.binary(8),
    "phash256": pa.binary(32),
    "phash_views": pa.binary(64),
    "phash256_views": pa.binary(256),
    "phash_trimmed_views": pa.binary(64),
    "phash256_trimmed_views": pa.binary(256),
    "inner_pixels": pa.int64(),
}


def perceptual_hash(batch: Batch) -> Columns:
    """Hash what each picture looks like, as it is stored, turned and mirrored, and without a border of one colour.

    A picture is brought to 32 × 32 (64 × 64) fields of mean grey, squashed to a square. The 8 × 8 (16 × 16) lowest coefficients of its cosine transform each
    give a bit: is it above the median of them all? The mean grey is left out and its bit, the first, is always 0. A turned picture has the same coefficients with
    other signs and places, so one transform gives all views. Not a proof of sameness: flat pictures all hash to 0, and text pages look alike.
    A border is what lies around a picture in one colour on each side (3 grey levels of noise at the rim, 8 next to the picture); the rest is hashed once more. A
    border of less than 3 % of the area is none; a picture of one colour, or with less than a quarter of a side left, stays whole.

    Guarantee   the same bits on every machine: means and cosines are whole numbers, so that nothing is rounded on the way. A coefficient that equals the
                median gives 0. The hash of a turned 64 × 64 picture is that view of the upright one, to the last bit
    Source      Zauner 2010, the DCT hash with median; the eight views: signs and transposition of DCT coefficients (as in PDQ, Facebook 2019); the border is ours
    Writes      phash: fixed binary, 8 bytes; phash256: 32 bytes: row by row, most significant bit first; rows are vertical frequencies
                phash_views: 8 × 8 bytes; phash256_views: 8 × 32 bytes. View v is mirrored left-right where v & 1, then upside down where v & 2, then
                transposed where v & 4; view 0 is the picture itself, 3 a half turn, 5 and 6 quarter turns
                phash_trimmed_views, phash256_trimmed_views: the same without the border; equal to the above where there is none
                inner_pixels: int64, pixels without the border; all where there is none
    Cost        one full-scale decode, shared with `quality` and `exact_hash`, and some 100 microseconds a picture; 0.2 to 1 ms for one with a border
    """
    fields = np.zeros((2, len(batch), FINE, FINE))  # whole, without the border
    inner_pixels, is_bare = np.zeros(len(batch), np.int64), np.zeros(len(batch), bool)
    for row, (gray, picture) in enumerate(zip(batch.pixels(MIN_SIDE, gray=True), batch.pixels(), strict=True)):
        if gray is None or picture is None:
            continue
        fields[:, row] = mean_fields(gray)
        inner = trimmed(picture)
        inner_pixels[row], is_bare[row] = inner.shape[0] * inner.shape[1], inner is not picture
        if is_bare[row]:
            fields[1, row] = mean_fields(shrink(inner, MIN_SIDE))
    short, long = _hashes(fields[0])
    short_bare, long_bare = short.copy(), long.copy()
    if is_bare.any():
        short_bare[is_bare], long_bare[is_bare] = _hashes(fields[1, is_bare])
    return {
        "phash": short[:, :8],
        "phash256": long[:, :32],
        "phash_views": short,
        "phash256_views": long,
        "phash_trimmed_views": short_bare,
        "phash256_trimmed_views": long_bare,
        "inner_pixels": inner_pixels,
    }


def _hashes(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bits (b, 64) and (b, 256) uint8 of all views in 64 and in 256 bits, of (b, 64, 64) fields."""
    coarse = fields[:, 0::2, 0::2] + fields[:, 0::2, 1::2] + fields[:, 1::2, 0::2] + fields[:, 1::2, 1::2]
    return hash_views(coarse, 8).reshape(len(fields), -1), hash_views(fields, 16).reshape(len(fields), -1)


def mean_fields(gray: np.ndarray) -> np.ndarray:
    """(h, w) uint8 to (64, 64) float64 whole numbers: the exact mean grey of each field times 256, rounded half up. A field may cut through pixels."""
    high, wide = gray.shape
    kind = np.float32 if high * wide * 255 < 1 << 24 else np.float64  # sums stay whole numbers that the type holds exactly
    down: Any = _overlaps(high).astype(kind, copy=False)
    across: Any = _overlaps(wide).astype(kind, copy=False)
    sums = down @ (gray.astype(kind) @ across.T)
    return ((sums.astype(np.int64) * 512 + high * wide) // (2 * high * wide)).astype(np.float64)


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
    """(64, length) float32: how much of each pixel lies in each of 64 equal fields, in 64ths of a pixel."""
    starts = np.arange(FINE)[:, None] * length
    pixels = np.arange(length)[None, :] * FINE
    return np.clip(np.minimum(starts + length, pixels + FINE) - np.maximum(starts, pixels), 0, None).astype(np.float32)


@lru_cache(maxsize=4)
def _cosines(size: int, side: int) -> np.ndarray:
    """(side, size) float64 whole numbers: the lowest rows of the orthonormal DCT, times 4096 and rounded; each row but the first sums to 0 exactly."""
    angles = np.arange(side)[:, None] * (2 * np.arange(size) + 1) * (np.pi / (2 * size))
    return np.rint(np.cos(angles) * np.where(np.arange(side)[:, None], 4096, 4096 / np.sqrt(2)))
