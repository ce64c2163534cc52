"""Equal files and equal pictures meet, and nothing else does."""

import numpy as np
import xxhash
from PIL import Image

from curate.measure.exact_hash import WRITES, exact_hash
from curate.pool import Batch
from manifests.images import decode
from tests.bad_input.fixtures import encoded, picture, saved


def test_the_hashes_are_xxh3_of_bytes_and_of_shape_and_pixels():
    file = encoded(1)
    found = exact_hash(Batch([memoryview(file)]))
    assert found["bytes_hash"][0].tobytes() == xxhash.xxh3_128_digest(file)
    pixels = decode(file)
    assert found["pixels_hash"][0].tobytes() == xxhash.xxh3_128_digest((96).to_bytes(4, "little") * 2 + pixels.tobytes())
    assert {name: (values.shape, values.dtype) for name, values in found.items()} == {
        name: ((1, kind.byte_width), np.uint8) for name, kind in WRITES.items()
    }


def test_another_format_and_other_metadata_are_the_same_picture_and_another_file():
    exif = Image.Exif()
    exif[274] = 6
    files = [
        encoded(2, "PNG"),
        encoded(2, "PNG", compress_level=1),
        encoded(2, "BMP"),
        encoded(2, "WEBP", lossless=True),
        encoded(2, "PNG", exif=exif),
    ]
    found = exact_hash(Batch(files))
    assert len({h.tobytes() for h in found["pixels_hash"]}) == 1
    assert len({h.tobytes() for h in found["bytes_hash"]}) == len(files)


def test_shape_counts_and_one_level_counts():
    zeros = [np.zeros(shape, np.uint8) for shape in ((2, 8, 3), (8, 2, 3), (4, 4, 3), (1, 16, 3))]
    near = picture(1).copy()
    near[50, 50, 1] ^= 1
    files = [saved(Image.fromarray(p), "PNG") for p in [*zeros, picture(1), near, np.ascontiguousarray(picture(1)[::-1])]]
    found = exact_hash(Batch(files))
    assert len({h.tobytes() for h in found["pixels_hash"]}) == len(files)


def test_a_broken_picture_gets_a_fault_and_its_bytes_still_have_a_hash():
    batch = Batch([b"broken", b"broken", None, encoded(1)])
    found = exact_hash(batch)
    assert batch.faults == ["undecodable", "undecodable", "no_payload", None]
    assert found["bytes_hash"][0].tobytes() == found["bytes_hash"][1].tobytes() == xxhash.xxh3_128_digest(b"broken")
    assert not found["pixels_hash"][:3].any()
