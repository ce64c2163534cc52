"""Embed every picture with an encoder."""

import numpy as np

from curate.encoders import open_encoder
from curate.pool import Batch, Columns

WRITES: dict = {}  # the vector column takes the stage's name for it (`as`, by default "vectors")


def vectors(batch: Batch, *, encoder: str) -> Columns:
    """Embed every picture with an encoder: a unit vector that says what the picture shows, for comparing pictures.

    A row whose picture gives no finite vector gets the fault `not_finite`, one without a direction (all zeros) `zero_vector`; both are quarantined.

    encoder     open_clip:MODEL/TAG-OR-FILE, timm:MODEL[/FILE], timm:tf_efficientnet_lite0/package, checkpoint:FOLDER or pixels:SIDE; @SIDE at the end for
                another resolution (see curate/encoders.py)
    Writes      the vector column: (b, d) float16, unit norm up to rounding
    Source      the encoder's own; `pixels` is the plain baseline
    Cost        one decode (JPEG at the smallest scale that is enough) and one forward pass a picture. Equal bytes on one class of device, within rounding elsewhere
    Errors      [bad-value], [no-such-file] for the encoder
    """
    opened = open_encoder(encoder, batch.device)
    pictures = batch.pixels(min_side=opened.side)
    rows = [row for row, picture in enumerate(pictures) if picture is not None]
    shown = [picture for picture in pictures if picture is not None]
    if not shown:
        shown, rows = [np.zeros((opened.side, opened.side, 3), np.uint8)], []  # the width is asked of the encoder itself
    found = opened(shown)
    out = np.zeros((len(batch), found.shape[1]), np.float16)
    for row, vector in zip(rows, found, strict=False):
        if not np.isfinite(vector).all():
            batch.faults[row] = batch.faults[row] or "not_finite"
        elif not vector.any():
            batch.faults[row] = batch.faults[row] or "zero_vector"
        else:
            out[row] = vector
    return {"vectors": out}
