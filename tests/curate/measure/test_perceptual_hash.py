"""The DCT hashes: the eight views against turning the picture, local contrast by its definition, ties and flat pictures, agreement with imagehash, and the same bits
however they are computed."""

import io

import imagehash
import numpy as np
import pytest
import scipy.fft
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data

from curate.measure import perceptual_hash as module
from curate.measure.perceptual_hash import WRITES, hash_views, local_contrast, mean_fields, perceptual_hash
from curate.pool import Batch
from manifests.images import glance, shrink
from manifests.vectors.hamming import distances
from tests.bad_input.fixtures import encoded, picture, saved

SEVERAL = [encoded(i) for i in range(8)]


def turn(pixels, view):
    """The picture that view `view` stands for."""
    pixels = pixels[:, ::-1] if view & 1 else pixels
    pixels = pixels[::-1] if view & 2 else pixels
    return np.ascontiguousarray(pixels.swapaxes(0, 1) if view & 4 else pixels)


def hashes(*files):
    return perceptual_hash(Batch(list(files)))


@pytest.mark.parametrize("side", [8, 16])
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(["noise", "few levels", "symmetric", "stripes"]))
def test_the_views_are_the_hashes_of_the_turned_picture(side, seed, kind):
    rng = np.random.default_rng(seed)
    fields = rng.integers(0, 65281, (32, 32)).astype(float)
    if kind == "few levels":
        fields = rng.integers(0, 2, (32, 32)) * 65280.0
    elif kind == "symmetric":
        fields = fields + fields[::-1] + fields[:, ::-1] + fields[::-1, ::-1]
    elif kind == "stripes":
        fields = np.tile(fields[:1], (32, 1))
    views = hash_views(fields[None], side)[0]
    for view in range(8):
        assert np.array_equal(views[view], hash_views(turn(fields, view)[None], side)[0, 0]), view
        assert np.array_equal(local_contrast(turn(fields, view)[None])[0], turn(local_contrast(fields[None])[0], view))


@pytest.mark.parametrize("side", [64, 128])
def test_the_views_hold_for_whole_pictures(side):
    """Squares whose side is a multiple of 64 are cut into fields without remainder: equality to the last bit from file to hash."""
    pixels = picture(5, side)
    views = hashes(saved(Image.fromarray(pixels), "PNG"))
    for view in range(8):
        turned = hashes(saved(Image.fromarray(turn(pixels, view)), "PNG"))
        assert np.array_equal(views["phash_views"].reshape(8, 8)[view], turned["phash"][0])
        assert np.array_equal(views["phash256_views"].reshape(8, 32)[view], turned["phash256"][0])


def test_view_0_is_the_picture():
    found = hashes(*SEVERAL)
    assert np.array_equal(found["phash"], found["phash_views"][:, :8])
    assert np.array_equal(found["phash256"], found["phash256_views"][:, :32])
    assert set(found) == set(WRITES)
    for name in set(WRITES) - {"inner_pixels"}:
        assert found[name].shape == (len(SEVERAL), WRITES[name].byte_width)
        assert found[name].dtype == np.uint8


@pytest.mark.parametrize("side", [8, 16])
def test_the_bits_are_the_textbook_dct_above_its_median(side):
    fields = np.random.default_rng(2).integers(0, 65281, (20, 32, 32)).astype(float)
    low = scipy.fft.dctn(fields, axes=(1, 2), norm="ortho")[:, :side, :side].reshape(20, -1)
    bits = low > np.median(low[:, 1:], axis=1, keepdims=True)
    bits[:, 0] = False
    found = np.unpackbits(hash_views(fields, side)[:, 0], axis=1)
    assert (found != bits).mean() < 0.002  # whole-number cosines: a coefficient next to the median may fall on its other side


@pytest.mark.parametrize("side", [8, 16])
def test_nothing_is_rounded(side):
    """Every coefficient is a whole number below 2 ** 53, and equal to arithmetic without limits."""
    basis = module._cosines(32, side)
    assert np.array_equal(basis, np.rint(basis))
    assert (basis[1:].sum(1) == 0).all()
    worst = np.full((32, 32), 65280)
    exact = basis.astype(int).astype(object)
    assert max(abs(v) for v in (abs(exact) @ worst.astype(object) @ abs(exact).T).ravel()) < 2**53
    assert max(abs(v) for v in (exact @ worst.astype(object) @ exact.T).ravel()[1:]) == 0
    assert 49 * 49 * 65280**2 + (49 * module.FLOOR) ** 2 < 2**53  # the largest number in a local spread


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), levels=st.sampled_from([1, 2, 3, 40, 65281]))
def test_local_contrast_by_its_definition(seed, levels):
    """In whole numbers of any length, up to the one root and quotient."""
    fields = np.random.default_rng(seed).integers(0, levels, (32, 32))
    found = local_contrast(fields[None].astype(float))[0]
    for y, x in [(0, 0), (0, 31), (31, 5), (13, 20), (29, 30), *np.random.default_rng(seed).integers(0, 32, (5, 2)).tolist()]:
        near = [int(fields[min(max(y + dy, 0), 31), min(max(x + dx, 0), 31)]) for dy in range(-3, 4) for dx in range(-3, 4)]
        off, spread = 49 * int(fields[y, x]) - sum(near), 49 * sum(v * v for v in near) - sum(near) ** 2
        share = 4 * off / (spread + (49 * 512) ** 2) ** 0.5
        assert found[y, x] == round(1024 * min(max(share, -1), 1))


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_a_white_box_outweighs_the_greys_of_a_dim_photograph_but_not_its_detail(name):
    photo = np.ascontiguousarray(getattr(data, name)()[:256, :256, :3])
    dim = (120 + 0.2 * (photo - photo.mean())).astype(np.uint8)
    boxed = dim.copy()
    boxed[150:220, 40:200] = 255  # a sixth of the picture
    ours = hashes(*(saved(Image.fromarray(p), "PNG") for p in (dim, boxed)))["phash256"]
    greys = hash_views(np.stack([mean_fields(glance(p)) for p in (dim, boxed)]), 16)[:, 0]
    assert distances(ours[:1], ours[1:]) < 80 < distances(greys[:1], greys[1:])


def test_flat_pictures_hash_to_zero_and_collide():
    flat = [
        saved(Image.new("RGB", size, colour), "PNG")
        for size, colour in (((64, 64), (0, 0, 0)), ((200, 333), (255, 255, 255)), ((1, 1), (7, 8, 9)), ((500, 90), (10, 20, 30)))
    ]
    found = hashes(*flat)
    assert found.pop("inner_pixels").tolist() == [64 * 64, 200 * 333, 1, 500 * 90]  # all flat: no border
    for values in found.values():
        assert not values.any()


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 200), width=st.integers(1, 200), seed=st.integers(0, 99))
def test_mean_fields_is_the_mean_grey_of_each_field(height, width, seed):
    gray = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    fine = np.repeat(np.repeat(gray.astype(object), 32, 0), 32, 1) if height * width < 900 else None
    found = mean_fields(gray)
    if fine is not None:
        sums = fine.reshape(32, height, 32, width).sum((1, 3))
        assert np.array_equal(found, (sums * 512 + height * width) // (2 * height * width))
    assert abs(found.mean() - gray.mean() * 256) < 1
    assert np.array_equal(mean_fields(gray[::-1]), found[::-1])
    assert np.array_equal(mean_fields(np.ascontiguousarray(gray.T)), found.T)
    assert np.array_equal(mean_fields(np.stack([gray, gray[::-1]])), np.stack([found, found[::-1]]))


def test_mean_fields_of_long_pictures_is_exact():
    gray = np.random.default_rng(1).integers(0, 256, (64, 6400), np.uint8)
    sums = gray.astype(int).reshape(32, 2, 32, 200).sum((1, 3))
    assert np.array_equal(mean_fields(gray), (sums * 256 * 2 + 400) // 800)


@pytest.mark.parametrize(
    ("change", "short", "long"),
    [
        (lambda p: saved(Image.fromarray(p), "JPEG", quality=60), 4, 16),
        (lambda p: saved(Image.fromarray(p), "WEBP", quality=50), 6, 24),
        (lambda p: saved(Image.fromarray(p).resize((150, 150)), "PNG"), 4, 16),
        (lambda p: saved(Image.fromarray(p).resize((100, 260)), "PNG"), 6, 24),
        (lambda p: saved(Image.fromarray((p * 0.8 + 20).astype(np.uint8)), "PNG"), 4, 16),
    ],
)
def test_copies_are_near_and_strangers_far(change, short, long):
    pixels = [picture(i, 200) for i in (2, 3)]
    first = hashes(*(saved(Image.fromarray(p), "PNG") for p in pixels))
    copies = hashes(*(change(p) for p in pixels))
    assert distances(first["phash"], copies["phash"]).max() <= short
    assert distances(first["phash256"], copies["phash256"]).max() <= long
    assert distances(first["phash"][:1], first["phash"][1:]) > 16


def test_close_to_imagehash():
    """The same idea with another way of shrinking: most bits agree."""
    ours = np.unpackbits(hashes(*SEVERAL)["phash"], axis=1)
    for bits, file in zip(ours, SEVERAL, strict=True):
        theirs = imagehash.phash(Image.fromarray(shrink(np.asarray(Image.open(io.BytesIO(file)))))).hash.ravel()
        assert (bits[1:] != theirs[1:]).sum() <= 4


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (12, 200, 90)])
@pytest.mark.parametrize("widths", [((9, 9), (9, 9)), ((30, 12), (0, 0)), ((0, 0), (1, 40)), ((25, 0), (0, 17))])
def test_a_border_leaves_the_hash_of_what_is_within(colour, widths):
    pixels = picture(4, 160)
    framed = np.full((160 + sum(widths[0]), 160 + sum(widths[1]), 3), colour, np.uint8)
    framed[widths[0][0] : widths[0][0] + 160, widths[1][0] : widths[1][0] + 160] = pixels
    bare, both = (hashes(saved(Image.fromarray(p), "PNG")) for p in (pixels, framed))
    for name in ("phash", "phash256"):
        assert np.array_equal(bare[f"{name}_trimmed_views"], bare[f"{name}_views"])
        assert np.array_equal(both[f"{name}_trimmed_views"], bare[f"{name}_views"])
        assert not np.array_equal(both[f"{name}_views"], bare[f"{name}_views"])
    assert both["inner_pixels"] == bare["inner_pixels"] == 160 * 160


def test_a_border_is_found_after_a_coder():
    pixels = picture(4, 240)
    framed = saved(Image.fromarray(np.pad(pixels, ((17, 17), (17, 17), (0, 0)), constant_values=200)), "JPEG", quality=50)
    found, bare = hashes(framed), hashes(saved(Image.fromarray(pixels), "PNG"))
    assert distances(found["phash256_trimmed_views"][:, :32], bare["phash256"]) <= 40
    assert distances(found["phash256"], bare["phash256"]) > 60


def test_a_row_does_not_depend_on_its_batch():
    alone = [hashes(f) for f in SEVERAL]
    together = hashes(SEVERAL[0], b"broken", *SEVERAL[1:])
    for name in WRITES:
        assert np.array_equal(np.concatenate([a[name] for a in alone]), np.delete(together[name], 1, axis=0))


def test_a_broken_row_gets_a_fault_and_zeros():
    batch = Batch([b"broken", SEVERAL[0], None])
    found = perceptual_hash(batch)
    assert batch.faults == ["undecodable", None, "no_payload"]
    assert not found["phash256_views"][[0, 2]].any()
