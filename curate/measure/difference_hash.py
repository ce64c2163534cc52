"""A hash of which way the grey rises from left to right: near in few bits for neighbouring slices and frames."""

import numpy as np
import pyarrow as pa
from PIL import Image

from curate.pool import Batch, Columns
from manifests.images import Window

WRITES = {"dhash": pa.binary(8)}
HIGH, WIDE = 8, 9  # nine columns have eight neighbours
NONE = np.zeros(HIGH * (WIDE - 1), bool)


def difference_hash(batch: Batch, *, window: Window | None = None) -> Columns:
    """Hash where each picture grows lighter from left to right, on a grid of 8 x 8.

    The picture is made grey and brought to 9 x 8 pixels (Lanczos, squashed); a bit is set where a pixel is lighter than its left neighbour. What is added
    to all grey levels, or multiplies them, changes nothing; blank pictures all hash to 0. That serves slices of a volume and frames of a video
    (`reduce.series`); for photographs `measure.perceptual_hash` tells more apart.

    Guarantee   the bits of ImageHash's `dhash` on the same grey picture (it drops an alpha channel, here alpha lies on white)
    Source      Krawetz 2013; ImageHash (Buchner); used by Less is More (Wolf et al. 2024)
    window      [centre, width]: which stored values become black to white in pictures with more than 8 bits of grey, such as [1064, 400]; null = the whole
                range of 16 bits, in which a CT slice is nearly black. Never each slice's own least and greatest value: Hounsfield units would mean something
                else in each
    Writes      dhash: fixed binary, 8 bytes, row by row, most significant bit first
    Cost        one full-scale decode, shared with other measures that use no window, and one resampling
    """
    bits = [NONE if found is None else found for found in batch.seen(rises, window)]
    return {"dhash": np.packbits(np.array(bits, bool).reshape(-1, len(NONE)), axis=1)}


def rises(pixels: np.ndarray) -> np.ndarray:
    """(64,) bool of (h, w, 3) uint8: where the small grey picture is lighter than to the left."""
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((WIDE, HIGH), Image.Resampling.LANCZOS))
    return (small[:, 1:] > small[:, :-1]).ravel()


LOOKS = (rises,)
