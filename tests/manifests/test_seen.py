"""What is kept of a picture: bounded, the same twice, without its border."""

import numpy as np
from skimage import data

from manifests.seen import BYTES, glance, see
from tests.pools import png

KEPT = ("gray", "squares", "small", "points", "sizes", "angles", "descriptors")


def test_what_is_kept_is_bounded_and_the_same_twice():
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = np.ascontiguousarray(getattr(data, name)()[..., :3])
        one, two = see(photo), see(photo.copy())
        assert all(np.array_equal(getattr(one, f), getattr(two, f)) for f in KEPT)
        assert (one.frame, one.areas, one.parts) == (two.frame, two.areas, two.parts)
        assert sum(getattr(one, f).nbytes for f in KEPT) <= BYTES
        assert all(kept.points.max(0)[axis] <= kept.gray.shape[1 - axis] for kept in (one, two) for axis in (0, 1))


def test_a_border_is_off_and_the_frame_says_where_it_was():
    photo = data.coffee()[:320, :480]
    framed = see(np.pad(photo, ((32, 32), (48, 16), (0, 0)), constant_values=255))
    assert framed.gray.shape == (107, 160)
    assert np.allclose(framed.frame, (-16, -10.7, 165.3, 117.7), atol=0.2)
    assert framed.areas[0] == (0, 0, 160, 107)
    assert framed.frame in framed.areas


def test_files_are_decoded_no_larger_than_needed_or_not_at_all():
    assert glance(png(data.coffee())).gray.shape == (107, 160)
    assert glance(png(data.coffee()[:7, :9])).gray.shape == (7, 9)
    assert glance(b"not a picture") is None
