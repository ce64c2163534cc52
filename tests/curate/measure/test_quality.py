"""Every number of `measure.quality` against its definition, in float64, and on pictures whose answer is known."""

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import convolve

from curate.measure import exact_hash, perceptual_hash
from curate.measure.quality import WRITES, quality
from curate.pool import Batch
from manifests import images
from manifests.images import decode, shrink
from tests.bad_input.fixtures import animation, encoded, palette, picture, rotated, saved


def png(pixels):
    return saved(Image.fromarray(pixels), "PNG")


def definition(gray):
    """brightness, contrast, entropy, noise, blur of a grey picture."""
    gray = gray.astype(float)
    share = np.bincount(gray.astype(int).ravel(), minlength=256) / gray.size
    share = share[share > 0]
    step = np.abs(np.diff(gray, axis=1)).mean() if gray.shape[1] > 1 else 0
    laplacian = convolve(gray, [[0, 1, 0], [1, -4, 1], [0, 1, 0]])[1:-1, 1:-1]
    return gray.mean(), gray.std(), -(share * np.log2(share)).sum(), step / gray.std() if gray.std() else 0, laplacian.var() if laplacian.size else 0


FILES = [
    encoded(1),
    encoded(2, "PNG"),
    png(picture(3, 250)[:, :130]),
    encoded(4),
    png(picture(5)[:1]),
    png(picture(5)[:, :1]),
    png(picture(5)[:2, :2]),
    png(picture(6)[:28, :28]),
]


def test_the_numbers_are_their_definition():
    found = quality(Batch(FILES))
    for row, file in enumerate(FILES):
        got = [found[name][row] for name in ("brightness", "contrast", "entropy", "noise", "blur")]
        assert got == pytest.approx(definition(shrink(decode(file), 64)), rel=1e-6, abs=1e-6)


def test_types_and_header_columns():
    exif = rotated()
    found = quality(Batch([encoded(1), palette(), animation(), exif, saved(Image.fromarray(picture(1)[:40]).convert("L"), "JPEG")]))
    assert set(found) == set(WRITES)
    assert found["format"].to_pylist() == ["jpeg", "png", "gif", "jpeg", "jpeg"]
    assert found["height"].tolist() == [96, 96, 96, 96, 40]
    assert found["num_pixels"].tolist() == [9216, 9216, 9216, 9216, 40 * 96]
    assert found["channels"].tolist() == [3, 4, 3, 3, 1]
    assert found["is_animated"].tolist() == [False, False, True, False, False]
    assert found["orientation"].tolist() == [1, 1, 1, 6, 1]
    assert found["num_bytes"][3] == len(exif)
    for name, kind in WRITES.items():
        if name != "format":
            assert found[name].dtype == kind.to_pandas_dtype(), name


def test_flat_pictures_have_no_contrast_entropy_noise_or_edges():
    found = quality(Batch([png(np.full((s, s, 3), v, np.uint8)) for s, v in ((1, 0), (28, 77), (500, 255))]))
    assert found["brightness"].tolist() == [0, 77, 255]
    for name in ("contrast", "entropy", "noise", "blur"):
        assert found[name].tolist() == [0, 0, 0]


def test_noise_tells_noise_from_photos():
    noise = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
    found = quality(Batch([*(png(p) for p in noise), *(encoded(i) for i in range(6))]))
    assert found["noise"][:3] == pytest.approx(2 / np.sqrt(np.pi), abs=0.05)
    assert found["noise"][3:].max() < 0.7


def test_blur_falls_as_the_picture_is_blurred():
    photo = Image.fromarray(picture(4, 200))
    values = quality(Batch([saved(photo.filter(ImageFilter.GaussianBlur(r)), "PNG") for r in (0, 2, 4, 8, 16)]))["blur"]
    assert (np.diff(values) < 0).all()
    assert values[0] > 20 * values[-1]


def test_a_checkerboard_has_one_bit_and_the_largest_laplacian():
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    found = quality(Batch([saved(Image.fromarray(board), "PNG")]))
    assert found["entropy"][0] == 1
    assert found["contrast"][0] == 127.5
    assert found["noise"][0] == 2
    assert found["blur"][0] == pytest.approx(1020**2)


def test_a_broken_row_gets_a_fault_and_nothing_raises():
    batch = Batch([b"broken", encoded(1), None, b""])
    found = quality(batch)
    assert batch.faults == ["undecodable", None, "no_payload", "zero_bytes"]
    assert found["width"].tolist() == [0, 96, 0, 0]
    assert found["format"].to_pylist() == [None, "jpeg", None, None]


def test_a_row_does_not_depend_on_its_batch(monkeypatch):
    together = quality(Batch(FILES * 2))
    monkeypatch.setattr(images, "STACK", 1)
    for row, file in enumerate(FILES):
        alone = quality(Batch([file]))
        assert [alone[name][0] for name in WRITES] == [together[name][row] for name in WRITES]
        assert [together[name][row] for name in WRITES] == [together[name][row + len(FILES)] for name in WRITES]


def test_quality_and_the_perceptual_hash_ask_for_one_and_the_same_picture(monkeypatch):
    asked, honest = [], images.decode
    monkeypatch.setattr(images, "decode", lambda data, **how: asked.append(how) or honest(data, **how))
    batch = Batch([encoded(1)])
    for measure in (quality, exact_hash.exact_hash, perceptual_hash.perceptual_hash):
        measure(batch)
    assert len(asked) == 1
