"""The difference hash: ImageHash's bits, a fixed window for 16-bit slices, faults."""

import io

import imagehash
import numpy as np
import pytest
from PIL import Image

from curate.measure.difference_hash import difference_hash
from curate.pool import Batch
from manifests.images import Window
from manifests.signature import check
from tests.bad_input.fixtures import encoded, picture, saved

KINDS = {"RGB": "PNG", "L": "PNG", "P": "GIF"}


def theirs(file: bytes) -> np.ndarray:
    return np.packbits(imagehash.dhash(Image.open(io.BytesIO(file))).hash.ravel())


def ours(*files: bytes | None, window: Window | None = None) -> np.ndarray:
    return difference_hash(Batch(list(files)), window=window)["dhash"]


def deep(values: np.ndarray) -> bytes:
    """Whole numbers as a 16-bit grey PNG."""
    return saved(Image.fromarray(values.astype(np.uint16)), "PNG")


@pytest.mark.parametrize("mode", KINDS)
@pytest.mark.parametrize("size", [(96, 96), (200, 31), (7, 5), (1, 1)])
def test_the_bits_of_imagehash(mode, size):
    files = [saved(Image.fromarray(picture(i)).resize(size).convert(mode), KINDS[mode]) for i in range(6)]
    assert np.array_equal(ours(*files), [theirs(f) for f in files])


def test_a_jpeg_has_the_bits_of_imagehash():
    files = [encoded(i) for i in range(8)]
    found = ours(*files)
    assert np.array_equal(found, [theirs(f) for f in files])
    assert len({h.tobytes() for h in found}) == 8


def test_light_and_contrast_change_nothing():
    """The grid itself, so that no resampling rounds between."""
    small = np.random.default_rng(0).integers(0, 100, (8, 9)).astype(np.uint8)
    found = ours(*(saved(Image.fromarray(p), "PNG") for p in (small, small + 50, small * 2)))
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(np.unpackbits(found[0]).reshape(8, 8), small[:, 1:] > small[:, :-1])


def test_sixteen_bits_are_seen_through_the_window():
    """Soft tissue of a CT stored as HU + 1024: without a window its steps are less than one grey level."""
    tissue = 1024 + np.random.default_rng(1).integers(-100, 200, (8, 9))
    tissue[0, 0], tissue[7, 8] = 0, 4000  # air and metal, beyond the window
    found = ours(deep(tissue), window=Window(1074, 400))[0]
    grey = ((np.clip(tissue, 874, 1274) - 874) * 255 + 200) // 400
    assert np.array_equal(np.unpackbits(found).reshape(8, 8), grey[:, 1:] > grey[:, :-1])
    assert np.unpackbits(ours(deep(tissue))[0]).sum() < 25 < np.unpackbits(found).sum()


def test_the_window_is_one_for_all_slices():
    """A slice of noise about air stays black beside one of tissue; each slice's own range would make a picture of it."""
    rng = np.random.default_rng(2)
    empty, tissue = rng.integers(0, 30, (64, 64)), rng.integers(1000, 1200, (64, 64))
    found = ours(deep(empty), deep(tissue), window=Window(1074, 400))
    assert not found[0].any()
    assert found[1].any()


def test_the_window_leaves_eight_bits_and_colour_alone():
    files = [encoded(1), saved(Image.fromarray(picture(2)).convert("L"), "PNG")]
    assert np.array_equal(ours(*files, window=Window(1074, 400)), ours(*files))


def test_faults_are_left_and_the_parameter_comes_from_yaml():
    batch = Batch([b"", None, encoded(1)[:300], encoded(1)])
    found = difference_hash(batch)["dhash"]
    assert batch.faults == ["zero_bytes", "no_payload", "undecodable", None]
    assert not found[:3].any() and found[3].any()
    assert difference_hash(Batch([]))["dhash"].shape == (0, 8)
    assert check(difference_hash, {"window": [40, 400]}, "r") == {"window": Window(40, 400)}


def test_one_batch_serves_with_and_without_a_window():
    tissue = 1024 + np.random.default_rng(1).integers(-100, 200, (40, 40))
    batch, window = Batch([deep(tissue), encoded(1)]), Window(1074, 400)
    for seen in (window, None, window):
        fresh = Batch(list(batch.payloads))
        assert np.array_equal(difference_hash(batch, window=seen)["dhash"], difference_hash(fresh, window=seen)["dhash"])
        for a, b in zip(batch.pixels(20, gray=True, window=seen), fresh.pixels(20, gray=True, window=seen), strict=True):
            assert np.array_equal(a, b)
    assert not np.array_equal(*(difference_hash(batch, window=seen)["dhash"][0] for seen in (window, None)))
