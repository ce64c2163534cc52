"""What a picture is like, in plain numbers: size, light, contrast, sharpness, noise."""

import cv2
import numpy as np
import pyarrow as pa

from curate.pool import Batch, Columns
from manifests.images import glance, header, stacks

LOOKS = (glance,)
WRITES = {
    "width": pa.int32(),
    "height": pa.int32(),
    "channels": pa.int32(),
    "format": pa.string(),
    "blur": pa.float32(),
    "brightness": pa.float32(),
    "contrast": pa.float32(),
    "entropy": pa.float32(),
    "noise": pa.float32(),
    "is_animated": pa.bool_(),
    "orientation": pa.int8(),
    "num_pixels": pa.int64(),
    "num_bytes": pa.int64(),
}


def quality(batch: Batch) -> Columns:
    """Measure size, brightness, contrast, sharpness, entropy and noise of each picture.

    The numbers of light are taken from a grey picture whose shorter side is 64 to 127 pixels (as stored where it is smaller), each pixel the
    mean of a square; so they speak of what is seen at a glance, and compare between resolutions. Blur of a few pixels in a large photo does not show.
    Transparent pixels lie on white, as most readers for training lay them: a picture of white ink on a transparent ground is blank to all these numbers.

    Source      variance of the Laplacian: Pech-Pacheco et al., ICPR 2000; the others are textbook moments
    Writes      width, height: pixels as stored; channels: 1 to 4 as stored; format: jpeg, png …
                blur: variance of the 4-neighbour Laplacian, squared grey levels; **small = blurred**, 0 where a side is below 3
                brightness: mean grey, 0 to 255; contrast: standard deviation of grey, 0 to 127.5
                entropy: of the grey histogram, bits, 0 to 8
                noise: mean absolute step between horizontal neighbours over contrast; about 1.13 for pure noise, 0.1 to 0.5 for photos, 0 where contrast is 0
                is_animated; orientation: EXIF, 1 to 8; num_pixels, num_bytes
    Cost        one full-scale decode, shared with the hashes, and for 500 pixels some 0.15 ms, two thirds of it for the grey picture that `perceptual_hash` shares
    """
    pictures = batch.seen(glance)
    headers = [header(payload) if picture is not None else None for payload, picture in zip(batch.payloads, pictures, strict=True)]
    found: Columns = {
        "width": np.array([h.width if h else 0 for h in headers], np.int32),
        "height": np.array([h.height if h else 0 for h in headers], np.int32),
        "channels": np.array([h.channels if h else 0 for h in headers], np.int32),
        "format": pa.array([h.format if h else None for h in headers], pa.string()),
    }
    counts, steps, blur = _light(pictures)
    levels = np.arange(256.0)
    total = np.maximum(counts.sum(1), 1)
    mean = counts @ levels / total
    contrast = np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0))
    share = counts / total[:, None]
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)
    flat = (counts > 0).sum(1) <= 1
    contrast[flat] = 0  # not the rounding of a difference of two squares
    noise = np.divide(steps, contrast, out=np.zeros(len(batch)), where=~flat)
    floats = {"blur": blur, "brightness": mean, "contrast": contrast, "entropy": entropy, "noise": noise}
    found |= {name: values.astype(np.float32) for name, values in floats.items()}
    found["is_animated"] = np.array([h is not None and h.frames > 1 for h in headers])
    found["orientation"] = np.array([h.orientation if h else 1 for h in headers], np.int8)
    found["num_pixels"] = np.array([h.width * h.height if h else 0 for h in headers], np.int64)
    found["num_bytes"] = np.array([len(p) if p is not None else 0 for p in batch.payloads], np.int64)
    return found


def _light(pictures: list[np.ndarray | None]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of grey pictures: histogram (n, 256) int64, mean absolute horizontal step (n,) and variance of the Laplacian (n,), float64."""
    counts, steps, blur = np.zeros((len(pictures), 256), np.int64), np.zeros(len(pictures)), np.zeros(len(pictures))
    for rows, stack in stacks(pictures):
        high, wide = stack.shape[1:]
        for row, picture in zip(rows, stack, strict=True):
            counts[row] = np.bincount(picture.ravel(), minlength=256)
        if wide > 1:
            steps[rows] = np.array([cv2.norm(picture[:, 1:], picture[:, :-1], cv2.NORM_L1) for picture in stack]) / (high * (wide - 1))
        if wide > 2 and high > 2:
            p = stack.astype(np.int16)
            edge = p[:, 1:-1, :-2] + p[:, 1:-1, 2:]
            edge += p[:, :-2, 1:-1]
            edge += p[:, 2:, 1:-1]
            edge -= p[:, 1:-1, 1:-1] << 2
            flat = edge.reshape(len(rows), -1).astype(np.float64)  # its sums are whole numbers below 2 ** 53: exact
            blur[rows] = np.maximum(np.vecdot(flat, flat) / flat.shape[1] - (flat.sum(1) / flat.shape[1]) ** 2, 0)
    return counts, steps, blur
