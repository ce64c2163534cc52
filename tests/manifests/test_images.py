"""Decoding: every format and mode to the same pixels, limits before work, and nothing but `Undecodable` for bytes of any kind."""

import io
import math
import struct
import subprocess
import sys
import time
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from manifests import image_headers, images
from manifests.errors import Refusal
from manifests.images import Undecodable, decode, encode_webp, header, resize, shrink, stacks, thumbnail, upright
from tests.bad_input.fixtures import animated_bomb, animation, bomb, encoded, palette, picture, rotated, saved, sixteen_bits

LOSSLESS = {"PNG": {}, "TIFF": {}, "BMP": {}, "PPM": {}, "WEBP": {"lossless": True}, "JPEG2000": {}}
LOSSY = {"JPEG": {"quality": 95}, "AVIF": {"quality": 95}}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_give_the_pixels(kind):
    file = encoded(3, kind, **LOSSLESS[kind])
    assert np.array_equal(decode(file), picture(3))
    assert np.array_equal(decode(memoryview(file)), picture(3))
    found = header(file)
    assert (found.format, found.width, found.height, found.channels, found.bits, found.frames, found.orientation) == (
        kind.lower(),
        96,
        96,
        3,
        8,
        1,
        1,
    )


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_give_nearly_the_pixels(kind):
    assert np.abs(decode(encoded(3, kind, **LOSSY[kind])).astype(int) - picture(3)).mean() < 4


def test_jpeg_is_what_pillow_decodes():
    file = encoded(4)
    assert np.array_equal(decode(file), np.asarray(Image.open(io.BytesIO(file))))


@pytest.mark.parametrize(("min_side", "side"), [(None, 96), (96, 96), (49, 60), (48, 48), (24, 24), (12, 12), (1, 12), (500, 96)])
def test_a_jpeg_comes_at_the_smallest_scale_that_is_large_enough(min_side, side):
    assert decode(encoded(4), min_side=min_side).shape == (side, side, 3)


@pytest.mark.parametrize("progressive", [False, True])
def test_gray_jpeg_and_progressive(progressive):
    file = saved(Image.fromarray(picture(5)).convert("L"), "JPEG", progressive=progressive)
    found = decode(file)
    assert found.shape == (96, 96, 3)
    assert np.array_equal(found[:, :, 0], found[:, :, 2])
    assert (header(file).channels, header(file).mode) == (1, "L")


def test_fill_bytes_and_markers_without_a_body_are_stepped_over():
    file = encoded(4)
    filled = file[:2] + b"\xff\xff\xff" + file[2:4] + file[4:20] + b"\xff\x01\xff\xd3\xff" + file[20:]  # before the first segment, and after it
    assert file[4:6] == b"\x00\x10"  # the first ends at 20
    assert header(filled) == header(file)
    for cut in range(3, 160):
        with pytest.raises(Undecodable):
            header(filled[:cut])


def test_cmyk():
    file = saved(Image.fromarray(picture(5)).convert("CMYK"), "JPEG", quality=95)
    assert np.abs(decode(file).astype(int) - picture(5)).mean() < 6
    assert header(file).mode == "CMYK"


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 128, 129, 257, 32768, 65406, 65407, 65535]], np.uint16)
    file = saved(Image.fromarray(values), "PNG")
    assert decode(file)[0, :, 0].tolist() == [round(v / 257) for v in values[0].tolist()]
    assert (header(file).bits, header(file).channels) == (16, 1)
    assert abs(decode(sixteen_bits()).mean() - 127.5) < 0.5


def test_floats_and_signed_numbers():
    assert decode(saved(Image.fromarray(np.array([[0, 0.5, 1]], np.float32)), "TIFF"))[0, :, 0].tolist() == [0, 128, 255]
    assert decode(saved(Image.fromarray(np.array([[-5, 0, 65535]], np.int32)), "TIFF"))[0, :, 0].tolist() == [0, 0, 255]
    with pytest.raises(Undecodable, match="undecodable"):
        decode(saved(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_alpha_lies_on_white(kind):
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 128], [10, 20, 30, 255]]], np.uint8)
    file = saved(Image.fromarray(rgba), kind, lossless=True) if kind == "WEBP" else saved(Image.fromarray(rgba), kind)
    assert decode(file)[0].tolist() == [[255, 255, 255], [132, 137, 142], [10, 20, 30]]
    assert header(file).channels == 4


def test_palette_with_a_transparent_colour():
    indexed = Image.open(io.BytesIO(palette()))
    clear = np.asarray(indexed) == 0
    found = decode(palette())
    assert clear.any()
    assert (found[clear] == 255).all()
    assert np.array_equal(found[~clear], np.asarray(indexed.convert("RGB"))[~clear])


def test_bilevel_and_gray_with_alpha():
    assert set(decode(saved(Image.fromarray(picture(1)).convert("1"), "PNG")).ravel().tolist()) == {0, 255}
    la = Image.merge("LA", [Image.new("L", (2, 2), 100), Image.new("L", (2, 2), 0)])
    assert (decode(saved(la, "PNG")) == 255).all()
    assert header(saved(la, "PNG")).channels == 2


def test_an_animation_gives_its_first_frame():
    assert header(animation()).frames == 3
    assert np.array_equal(decode(animation()), np.asarray(Image.open(io.BytesIO(animation())).convert("RGB")))
    frames = [Image.fromarray(picture(i)) for i in range(4)]
    assert header(saved(frames[0], "PNG", save_all=True, append_images=frames[1:])).frames == 4
    assert header(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:])).frames == 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_reported_and_only_thumbnails_are_upright(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    upper_left = np.zeros((64, 64, 3), np.uint8)
    upper_left[:16, :40] = 255
    for kind in ("JPEG", "PNG", "WEBP"):
        file = saved(Image.fromarray(upper_left), kind, exif=exif)
        assert header(file).orientation == orientation
        assert np.abs(decode(file).astype(int) - upper_left).mean() < 8
        from PIL import ImageOps

        wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert("RGB"))
        assert np.array_equal(thumbnail(file, 64), wanted)


def test_upright_leaves_unknown_numbers():
    assert np.array_equal(upright(picture(1), 0), picture(1))


@pytest.mark.parametrize("file", [bomb, animated_bomb])
def test_a_bomb_costs_nothing(file):
    data = file()
    tracemalloc.start()
    started = time.process_time()
    for reads in (decode, header, lambda d: thumbnail(d, 32), lambda d: decode(d, gray=True, min_side=8)):
        with pytest.raises(Undecodable, match="too_large"):
            reads(data)
    spent, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert spent < 1  # decoding it takes several


def test_a_jpeg_bomb_is_known_by_its_header():
    file = bytearray(encoded(2))
    at = file.index(b"\xff\xc0")
    file[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(Undecodable, match="too_large"):
        decode(bytes(file), min_side=32)


@pytest.mark.parametrize("form", ["VP8X", "VP8 ", "VP8L"])
def test_a_webp_bomb_is_known_by_its_header(form):
    size = {
        "VP8X": bytes(4) + (19_999).to_bytes(3, "little") * 2,
        "VP8 ": bytes(6) + struct.pack("<HH", 16_383, 16_383),
        "VP8L": b"\x2f" + (16_382 | 16_382 << 14).to_bytes(4, "little"),
    }[form]
    with pytest.raises(Undecodable, match="too_large"):
        decode(b"RIFF\x40\0\0\0WEBP" + form.encode() + b"\x20\0\0\0" + size + bytes(40))


def test_the_limit_itself(monkeypatch):
    monkeypatch.setattr(image_headers, "MAX_PIXELS", 96 * 96)
    assert decode(encoded(1)).shape == (96, 96, 3)
    monkeypatch.setattr(image_headers, "MAX_PIXELS", 96 * 96 - 1)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000"):
        with pytest.raises(Undecodable, match="too_large"):
            decode(encoded(1, kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "PPM", "WEBP"])
def test_a_picture_that_ends_early_is_none(kind):
    file = encoded(6, kind)
    with pytest.raises(Undecodable, match="undecodable"):
        decode(file[: len(file) * 2 // 3])


def test_a_progressive_jpeg_that_ends_early_is_none():
    file = encoded(6, progressive=True)
    for share in (0.3, 0.9):
        with pytest.raises(Undecodable, match="undecodable"):
            decode(file[: int(len(file) * share)])


def test_damage_in_the_middle_and_bytes_behind_are_read_as_others_read_them():
    file = bytearray(encoded(6))
    assert np.array_equal(decode(bytes(file) + b"xx" * 300), decode(bytes(file)))
    file[len(file) // 2] ^= 0x55
    assert np.array_equal(decode(bytes(file)), simplejpeg.decode_jpeg(bytes(file), "RGB", strict=False))


def test_rare_chroma_sampling_falls_back():
    wide = saved(Image.fromarray(picture(2)).convert("RGB"), "JPEG", subsampling="4:1:1")
    assert decode(wide).shape == (96, 96, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "zero_bytes"),
        (b"hello", "undecodable"),
        (b"\xff\xd8\xff", "undecodable"),
        (b"<svg/>", "undecodable"),
        (b"%!PS-Adobe-3.0 EPSF", "undecodable"),
    ],
)
def test_no_picture(data, reason):
    for reads in (decode, header):
        with pytest.raises(Undecodable, match=reason) as caught:
            reads(data)
        assert caught.value.reason == reason


SEEDS = [
    encoded(1),
    encoded(1, "PNG"),
    animation(),
    encoded(1, "WEBP"),
    encoded(1, "TIFF", compression="tiff_lzw"),
    encoded(1, "BMP"),
    palette(),
    rotated(),
    encoded(1, "AVIF"),
]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    keep=st.floats(0, 1),
    early=st.booleans(),
)
def test_any_bytes_give_a_picture_or_undecodable(seed, edits, keep, early):
    file = bytearray(seed)
    for place, value in edits:
        file[int(place * (200 if early else len(file))) % len(file)] = value
    file = bytes(file[: max(1, int(len(file) * (keep if keep > 0.3 else 1)))])
    try:
        found = decode(file)
    except Undecodable:
        return
    assert found.ndim == 3
    assert found.dtype == np.uint8
    assert header(file).width == found.shape[1]  # what can be decoded has a header: `measure.quality` relies on it


@settings(max_examples=60, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70), side=st.one_of(st.none(), st.integers(1, 40)), seed=st.integers(0, 99))
def test_shrink_is_the_mean_of_squares(height, width, side, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    f = max(1, min(height, width) // side) if side else 1
    rows, columns = height // f, width // f
    top, left = height % f // 2, width % f // 2
    wanted = np.empty((rows, columns), np.uint8)
    for i in range(rows):
        for j in range(columns):
            square = pixels[top + i * f : top + (i + 1) * f, left + j * f : left + (j + 1) * f].astype(int)
            total = int((square * [77, 150, 29]).sum())
            wanted[i, j] = (2 * total + 256 * f * f) // (2 * 256 * f * f)
    assert np.array_equal(shrink(pixels, side), wanted)


def test_shrink_of_large_squares_and_long_blocks():
    pixels = np.random.default_rng(1).integers(0, 256, (1200, 1300, 3), np.uint8)
    for f in (2, 16, 17, 300):
        side = 1200 // f
        inner = pixels[1200 % f // 2 :][: side * f, 1300 % f // 2 :][:, : 1300 // f * f].astype(np.int64) @ [77, 150, 29]
        sums = inner.reshape(side, f, 1300 // f, f).sum((1, 3))
        assert np.array_equal(shrink(pixels, side), (2 * sums + 256 * f * f) // (512 * f * f))
    assert (shrink(np.full((600, 600, 3), 255, np.uint8), 1) == 255).all()


@pytest.mark.parametrize("f", [5, 13, 15, 16, 17, 40])
def test_shrink_rounds_half_up_to_the_last_unit(f):
    """Squares whose sum lies at the half between two levels, and one below it: a quotient that is rounded before it is cut would come out one too large."""
    squares, expected = [], []
    for below in (0, 1):
        above = 128 * f * f - below  # of the sum over the lower level: 77 and 150 and 29 for each value that is one higher
        rest = above - 77 * np.arange(f * f + 1)[:, None] - 150 * np.arange(f * f + 1)
        red, green = np.argwhere((rest % 29 == 0) & (rest >= 0) & (rest <= 29 * f * f))[0]
        is_higher = np.arange(f * f)[:, None] < [red, green, rest[red, green] // 29]
        for level in (0, 1, 127, 253, 254):
            squares.append(level + is_higher.reshape(f, f, 3))
            expected.append(level + 1 - below)
    assert shrink(np.concatenate(squares, axis=1).astype(np.uint8), 1).tolist() == [expected]


def test_stacks_hold_every_picture_once_by_size(monkeypatch):
    rng = np.random.default_rng(0)
    pictures = [None if n % 5 == 3 else rng.integers(0, 256, (4 + n % 2, 6), np.uint8) for n in range(23)]
    for pixels, most in ((1 << 16, 12), (50, 2), (1, 1)):
        monkeypatch.setattr(images, "STACK", pixels)
        found = list(stacks(pictures))
        assert max(len(places) for places, _ in found) <= most
        assert sorted(place for places, _ in found for place in places) == [n for n in range(23) if n % 5 != 3]
        assert all(np.array_equal(pictures[place], one) for places, stack in found for place, one in zip(places, stack, strict=True))
    assert list(stacks([None, None])) == []


def test_gray_is_shrink_of_the_whole_picture():
    assert np.array_equal(decode(encoded(3), min_side=30, gray=True), shrink(decode(encoded(3)), 30))
    assert decode(encoded(3), gray=True).shape == (96, 96)


def test_resize():
    gray = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    assert np.array_equal(resize(gray, 8, 8), gray)
    assert np.abs(resize(gray, 4, 2).astype(float) - gray.reshape(4, 2, 2, 4).mean((1, 3))).max() <= 0.5
    assert resize(picture(1), 200, 50).shape == (200, 50, 3)
    assert np.array_equal(resize(np.full((5, 7, 3), 9, np.uint8), 20, 3), np.full((20, 3, 3), 9, np.uint8))


def test_webp_round_trip():
    file = encode_webp(picture(2), 90)
    assert header(file).format == "webp"
    assert np.abs(decode(file).astype(int) - picture(2)).mean() < 6
    assert file == encode_webp(picture(2)[::1], 90)


def test_neither_torch_nor_other_programs_are_loaded():
    code = "import sys, manifests.images, manifests.shards.write; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


@pytest.mark.parametrize(("centre", "width"), [(1064, 400), (-600, 1500), (0, 1), (3, 2), (32768, 65535)])
def test_a_window_is_linear_clipped_and_rounded_half_up(centre, width):
    values = np.unique(np.concatenate([np.arange(-1500, 1500, 7), np.arange(-3, 6), [0, 1063, 1064, 65535]]))
    low = Fraction(2 * centre - width, 2)
    expected = [min(255, max(0, math.floor((v - low) * 255 / width + Fraction(1, 2)))) for v in values.tolist()]
    assert images.Window(centre, width).levels(values).tolist() == expected


@pytest.mark.parametrize(
    ("mode", "kind", "values"),
    [("uint16", "PNG", [0, 1000, 1100, 65535]), ("uint16", "TIFF", [0, 1000, 1100, 65535]), ("int32", "TIFF", [-900, 1000, 1100, 70000])],
)
def test_a_window_is_laid_on_the_stored_values(mode, kind, values):
    stored = np.repeat(np.array(values, mode)[:, None], 3, axis=1)
    window = images.Window(1050, 200)
    for gray in (False, True):
        found = decode(saved(Image.fromarray(stored), kind), gray=gray, window=window)
        assert found.reshape(4, 3, -1)[:, :, 0].tolist() == [[0] * 3, [64] * 3, [191] * 3, [255] * 3]
    with pytest.raises(Undecodable):
        decode(saved(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), window=window)
    assert decode(saved(Image.fromarray(np.full((2, 2), 1050.5, np.float32)), "TIFF"), window=window)[0, 0, 0] == 128


def test_signed_sixteen_bits_keep_their_sign():
    """Hounsfield units in a TIFF, as scanners' software writes them; Pillow writes no such file."""
    values = np.array([[-1000, -600, 40, 1000]], "<i2")
    tags = [(256, 3, 1, 4), (257, 3, 1, 1), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, 1), (278, 3, 1, 1)]
    tags += [(279, 4, 1, 8), (339, 3, 1, 2)]
    file = b"II*\0" + struct.pack("<I", 16) + values.tobytes() + struct.pack("<H", len(tags))
    file += b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    assert decode(file, gray=True, window=images.Window(-600, 800)).tolist() == [[0, 128, 255, 255]]


@pytest.mark.parametrize("given_value", [[40], [40, 0], [40, 400.0], [True, 2], "40, 400", 400, {"centre": 40}])
def test_what_is_no_window_is_refused(given_value):
    with pytest.raises(Refusal, match=r"r: window: .*window \[centre, width\].*\[bad-value\]"):
        images.Window.parse(given_value, "r: window")
    assert images.Window.parse([40, 400], "r").plain() == [40, 400]
