"""Bytes to pixels at a named scale, with limits against bombs. Nothing here depends on threads, and nothing loads torch.

JPEG goes through libjpeg-turbo (simplejpeg), every other format through Pillow, and only the formats of `MAGIC` are tried at all.
Sizes are read from the header and judged before anything is decoded. Pixels come as stored: EXIF orientation is
reported by `header` and applied by `thumbnail` alone.
"""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import simplejpeg
import xxhash
from PIL import Image

from manifests.errors import Refusal

__all__ = [
    "MAX_PIXELS", "Header", "Undecodable", "Window", "beyond", "decode", "encode_webp", "glance", "header", "resize", "shrink", "thumbnail", "upright", "values",
]  # fmt: skip

GLANCE = 64  # the least side of what is seen at a glance
MAX_PIXELS = 100_000_000  # larger pictures are refused as `too_large`; one frame of an animation counts

MAGIC = (  # (offset, bytes, format); SVG, EPS, PDF and other programs in disguise are never opened
    (0, b"\xff\xd8\xff", "jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "png"),
    (8, b"WEBP", "webp"),
    (0, b"GIF87a", "gif"),
    (0, b"GIF89a", "gif"),
    (0, b"II*\0", "tiff"),
    (0, b"MM\0*", "tiff"),
    (0, b"BM", "bmp"),
    (4, b"ftypavif", "avif"),
    (4, b"ftypavis", "avif"),
    (0, b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg2000"),
    (0, b"P4", "ppm"),
    (0, b"P5", "ppm"),
    (0, b"P6", "ppm"),
)
BROKEN = (OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error, Image.DecompressionBombError)  # fmt: skip
BITS = {"1": 1, "I": 32, "F": 32, "I;16": 16, "I;16B": 16, "I;16L": 16, "I;16N": 16}
LUMA: Any = np.array([77, 150, 29])  # 256ths of red, green, blue


class Undecodable(Exception):
    """A payload that gives no picture; `reason` is the fault: undecodable, zero_bytes, too_large or no_payload."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Window:
    """The stored values that become black to white in pictures with more than 8 bits of grey: centre - width / 2 to centre + width / 2."""

    centre: int
    width: int
    allowed = "a window [centre, width] in stored values, whole numbers, width from 1 (such as [1064, 400])"

    @classmethod
    def parse(cls, value: Any, where: str) -> "Window":
        """Two whole numbers; anything else is refused [bad-value]."""
        if isinstance(value, list | tuple) and [type(v) for v in value] == [int, int] and value[1] >= 1:
            return cls(*value)
        raise Refusal("bad-value", where, f"{value!r} is no window", cls.allowed)

    def plain(self) -> list[int]:
        """As a recipe writes it."""
        return [self.centre, self.width]

    def levels(self, values: np.ndarray) -> np.ndarray:
        """Stored values as uint8, 0 to 255, rounded half up; exact for whole numbers."""
        wide = np.float64 if values.dtype.kind == "f" else np.int64
        above = np.clip(values.astype(wide) * 2 - (2 * self.centre - self.width), 0, 2 * self.width)
        return ((above * 255 + self.width) // (2 * self.width)).astype(np.uint8)


@dataclass(frozen=True)
class Header:
    """What a picture says of itself before it is decoded.

    format        jpeg, png, webp, gif, tiff, bmp, avif, jpeg2000 or ppm
    channels      1 grey, 2 grey with alpha, 3 colour, 4 colour with alpha or CMYK; a palette counts as the colours it stands for
    mode          Pillow's word for the stored pixels: "L", "P", "RGB", "RGBA", "CMYK", "I;16" ...
    bits          per channel, as stored
    frames        1, or the number of frames of an animation
    orientation   EXIF, 1 (upright) to 8; 1 where none is given
    """

    format: str
    width: int
    height: int
    channels: int
    mode: str
    bits: int
    frames: int = 1
    orientation: int = 1


def header(data: bytes | memoryview) -> Header:
    """Read the header alone; the cost does not grow with the picture. Raises `Undecodable`, also for pictures over `MAX_PIXELS`."""
    kind = _sniff(data)
    try:
        found = _jpeg_header(data) if kind == "jpeg" else _png_header(data) if kind == "png" else _other_header(data, kind)
    except BROKEN as error:
        raise Undecodable("undecodable") from error
    _check_size(found.width, found.height)
    return found


def decode(data: bytes | memoryview, *, min_side: int | None = None, gray: bool = False, window: Window | None = None) -> np.ndarray:
    """The picture as (h, w, 3) uint8 RGB, or (h, w) when `gray`. Alpha lies on white, 16 bits are scaled to 8, an animation gives its first frame.

    min_side    colour: a JPEG comes at the smallest DCT scale whose sides are both still at least this; smaller pictures and
                other formats come at full scale. Grey: `shrink` of the full-scale picture, whatever the format
    window      how more than 8 bits of grey become 8 (None: 0 to 65535, floats 0 to 1 or 0 to 255); colour and 8 bits stay as they are. One for
                all pictures: each one's own least and greatest value would make a vessel out of the noise of an empty slice
    Errors      `Undecodable`: zero_bytes, too_large (by the header), undecodable (no picture, or one that ends early). A JPEG whose data
                is damaged in the middle is decoded as every other reader decodes it
    """
    if gray:
        return shrink(decode(data, window=window), min_side)
    kind = _sniff(data)
    if kind == "jpeg":
        return _decode_jpeg(data, min_side or 0)
    return _decode_with_pillow(data, kind, window)


def values(data: bytes | memoryview) -> np.ndarray:
    """(h, w) or (h, w, c) as stored: every bit and channel, colours for a palette, of an animation the first frame. Raises `Undecodable`."""
    return _with_pillow(data, _sniff(data), lambda p: np.asarray(p.convert("RGBA") if p.mode in ("P", "PA") or "transparency" in p.info else p))


def beyond(data: bytes | memoryview) -> bytes:
    """What `decode` does not show of a picture, as 16 bytes: a digest of its deep grey, its transparency or its inks as stored; zeros where it has nothing of these,
    where all of it is opaque, and where it cannot be decoded."""
    try:
        found = header(data)
        stored = values(data) if found.bits > 8 or found.channels in (2, 4) else None
    except Undecodable:
        return bytes(16)
    if stored is None or (found.bits <= 8 and stored.shape[2:] in ((2,), (4,)) and found.mode != "CMYK" and (stored[:, :, -1] == 255).all()):
        return bytes(16)
    return xxhash.xxh3_128_digest(np.array(stored.shape, np.int64).tobytes() + np.ascontiguousarray(stored, np.float64).tobytes())


def glance(pixels: np.ndarray) -> np.ndarray:
    """The small grey picture that all measures of light and likeness share: `shrink` to a shorter side of 64 to 127 pixels."""
    return shrink(pixels, GLANCE)


def shrink(pixels: np.ndarray, min_side: int | None = None) -> np.ndarray:
    """(h, w, 3) uint8 to (h', w') uint8 grey, each value the mean of a square of f × f pixels; exact whole-number arithmetic.

    f is the largest whole number that leaves both sides at least `min_side` (1 where the picture is smaller, or for None); what does
    not fill a square is cut off evenly at the edges. Grey is (77 R + 150 G + 29 B) / 256, rounded half up.
    """
    height, width = pixels.shape[:2]
    f = max(1, min(height, width) // min_side) if min_side else 1
    rows, columns = height // f, width // f
    top, left = height % f // 2, width % f // 2
    inner = pixels[top : top + rows * f, left : left + columns * f]
    weights = _luma(f)
    divisor = (np.uint32 if f <= 256 else np.uint64)(256 * f * f)
    out = np.empty((rows, columns), np.uint8)
    step = max(1, (1 << 18) // (f * width * 3))  # so few bytes at a time that what is made of them stays in the cache beside the picture
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        summed = _sum_of_rows(inner[start * f : stop * f], f)
        gray = (summed.astype(weights.dtype).reshape(-1, 3 * f) @ weights).astype(divisor.dtype)
        out[start:stop] = ((gray + divisor // 2) // divisor).reshape(stop - start, columns)
    return out


@lru_cache(maxsize=512)
def _luma(f: int) -> np.ndarray:
    """(3 f,): the weights of f pixels. Sums below 2 ** 24 are exact in float32, whatever order the BLAS adds in."""
    return np.tile(LUMA, f).astype(np.float32 if f <= 16 else np.float64)


def _sum_of_rows(block: np.ndarray, f: int) -> np.ndarray:
    """(r * f, c, 3) uint8 -> (r, c * 3), sums of f consecutive rows."""
    flat = block.reshape(len(block), -1)
    if f == 1:
        return flat
    return np.add.reduce(flat.reshape(len(flat) // f, f, -1), axis=1, dtype=np.uint16 if f <= 257 else np.uint32)


def resize(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w[, 3]) uint8 to (height, width[, 3]) uint8: area mean where both sides shrink, else a triangle filter as wide as the step. Fixed-point, so the same everywhere."""
    if array.shape[:2] == (height, width):
        return np.ascontiguousarray(array)
    way = Image.Resampling.BOX if height <= array.shape[0] and width <= array.shape[1] else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(array)).resize((width, height), way))


def thumbnail(data: bytes | memoryview, side: int) -> np.ndarray:
    """(side, side, 3) uint8, squashed to a square and upright by its EXIF orientation. Raises `Undecodable`."""
    return np.ascontiguousarray(upright(resize(decode(data, min_side=side), side, side), header(data).orientation))


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """A view of `array` (h, w[, 3]) turned and mirrored as EXIF `orientation` 1 to 8 asks; other numbers leave it."""
    turned = {2: array[:, ::-1], 3: array[::-1, ::-1], 4: array[::-1]}.get(orientation, array)
    if 5 <= orientation <= 8:
        turned = array.swapaxes(0, 1)
        turned = {5: turned, 6: turned[:, ::-1], 7: turned[::-1, ::-1], 8: turned[::-1]}[orientation]
    return turned


def encode_webp(array: np.ndarray, quality: int = 75) -> bytes:
    """(h, w[, 3]) uint8 as WebP, lossy at `quality` 0 to 100."""
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array)).save(file, "WEBP", quality=quality, method=4)
    return file.getvalue()


def _sniff(data: bytes | memoryview) -> str:
    if not len(data):
        raise Undecodable("zero_bytes")
    head = bytes(data[:16])
    for offset, magic, kind in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    raise Undecodable("undecodable")


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Undecodable("too_large")
    if width * height == 0:
        raise Undecodable("undecodable")


def _decode_jpeg(data: bytes | memoryview, min_side: int) -> np.ndarray:
    found = header(data)
    if found.channels == 4 or found.bits != 8:
        return _decode_with_pillow(data, "jpeg")
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side)
    except ValueError as error:
        if "remature end" in str(error):
            raise Undecodable("undecodable") from error
    try:
        return simplejpeg.decode_jpeg(data, "RGB", min_height=min_side, min_width=min_side, strict=False)
    except ValueError:
        return _decode_with_pillow(data, "jpeg")  # rare chroma sampling, which simplejpeg does not know


def _decode_with_pillow(data: bytes | memoryview, kind: str, window: Window | None = None) -> np.ndarray:
    return _with_pillow(data, kind, lambda picture: _rgb(picture, window))


def _with_pillow(data: bytes | memoryview, kind: str, take: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `take` makes of the loaded picture. Raises `Undecodable`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = _open(data, kind)
            _check_size(*picture.size)
            picture.load()
            return take(picture)
    except BROKEN as error:
        raise Undecodable("undecodable") from error


def _rgb(picture: Image.Image, window: Window | None) -> np.ndarray:
    """(h, w, 3) uint8 of a loaded picture in any mode."""
    mode = picture.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _deep(np.asarray(picture), mode, window)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = np.asarray(picture.convert("RGBA"))
        white = np.empty((*rgba.shape[:2], 3), np.uint8)
        step = max(1, (1 << 18) // rgba.shape[1])  # some megabytes at a time
        for start in range(0, len(rgba), step):
            part = rgba[start : start + step].astype(np.uint32)
            alpha = part[:, :, 3:]
            white[start : start + step] = (part[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
        return white
    return np.asarray(picture.convert("RGB"))


def _deep(values: np.ndarray, mode: str, window: Window | None) -> np.ndarray:
    """More than 8 bits of grey: `window`, else 0 to 65535 onto 0 to 255, rounded; floats are 0 to 1 where they stay below, else 0 to 255."""
    if mode == "F" and not np.isfinite(values).all():
        raise Undecodable("undecodable")
    if window is not None:
        gray: np.ndarray = window.levels(values)
    elif mode == "F":
        gray = np.clip(np.rint(values * (255 if values.max(initial=0) <= 1 else 1)), 0, 255)
    else:
        gray = (np.clip(values, 0, 65535).astype(np.uint32) * 255 + 32767) // 65535
    return np.repeat(gray.astype(np.uint8)[:, :, None], 3, axis=2)


def _open(data: bytes | memoryview, kind: str) -> Image.Image:
    """Pillow's reader of one known format: no guessing, and none of its own limits in the way of ours."""
    if kind in ("png", "webp", "gif", "bmp"):
        _check_size(*_quick_size(data, kind))
    if not Image.OPEN.get(kind.upper()):
        Image.init()
    factory = Image.OPEN[kind.upper()][0]
    return factory(io.BytesIO(data), "")


def _quick_size(data: bytes | memoryview, kind: str) -> tuple[int, int]:
    """(width, height) from fixed places, where opening alone would already reserve the canvas; (1, 1) = ask the reader."""
    head = bytes(data[:34])
    if kind == "png":
        return struct.unpack(">II", head[16:24])
    if kind == "gif":
        return struct.unpack("<HH", head[6:10])
    if kind == "bmp" and head[14:18] != b"\x0c\0\0\0":
        width, height = struct.unpack("<ii", head[18:26])
        return abs(width), abs(height)
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    if head[12:16] == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return (packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1
    return 1, 1


def _other_header(data: bytes | memoryview, kind: str) -> Header:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = _open(data, kind)
        orientation, frames = 1, 1
        try:
            orientation = picture.getexif().get(274, 1)
            frames = int(getattr(picture, "n_frames", 1))
        except BROKEN:
            pass  # broken metadata or a broken later frame says nothing against the first
    mode: str = picture.mode
    channels = {"P": 3, "PA": 4, "1": 1}.get(mode, len(picture.getbands())) + (
        1 if mode in ("P", "RGB", "L") and "transparency" in picture.info else 0
    )
    return Header(kind, picture.width, picture.height, channels, mode, BITS.get(mode, 8), frames, _orientation(orientation))


def _png_header(data: bytes | memoryview) -> Header:
    """A walk over the chunks before the pixels: Pillow would decode the whole picture to learn its orientation."""
    view = memoryview(data)
    width, height, bits, colour = struct.unpack(">IIBB", view[16:26])
    frames, orientation, alpha, at = 1, 1, colour in (4, 6), 8
    while at + 8 <= len(view):
        size, name = struct.unpack(">I4s", view[at : at + 8])
        body = view[at + 8 : at + 8 + size]
        if name == b"IDAT":
            break
        if name == b"tRNS":
            alpha = True
        elif name == b"acTL":
            frames = max(1, int.from_bytes(body[:4], "big"))
        elif name == b"eXIf":
            orientation = _exif_orientation(bytes(body[:65536]))
        at += 12 + size
    modes = {0: "1" if bits == 1 else "I;16" if bits == 16 else "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
    return Header("png", width, height, (3 if colour in (2, 3, 6) else 1) + alpha, modes[colour], bits, frames, orientation)


def _jpeg_header(data: bytes | memoryview) -> Header:
    """A walk over the markers up to the frame header."""
    view, at, orientation = memoryview(data), 2, 1
    while True:
        mark, marker = view[at], view[at + 1]
        if mark != 0xFF:
            raise ValueError("no marker where one must be")
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0x01 or 0xD0 <= marker < 0xD8:
            at += 2
            continue
        size = view[at + 2] << 8 | view[at + 3]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            bits, height, width, channels = struct.unpack(">BHHB", view[at + 4 : at + 10])
            return Header("jpeg", width, height, channels, {1: "L", 4: "CMYK"}.get(channels, "RGB"), bits, 1, orientation)
        if marker == 0xE1 and view[at + 4 : at + 10] == b"Exif\0\0":
            orientation = _exif_orientation(bytes(view[at + 10 : at + 2 + size]))
        at += 2 + max(size, 2)


def _exif_orientation(exif: bytes) -> int:
    """Tag 274 of the first directory of a TIFF block; 1 where it is absent or makes no sense."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return 1
    order = "<" if exif[:1] == b"I" else ">"
    try:
        start = struct.unpack_from(order + "I", exif, 4)[0]
        for i in range(struct.unpack_from(order + "H", exif, start)[0]):
            tag, kind = struct.unpack_from(order + "HH", exif, start + 2 + 12 * i)
            if tag == 274:
                return _orientation(struct.unpack_from(order + ("H" if kind == 3 else "I"), exif, start + 10 + 12 * i)[0])
    except struct.error:
        pass
    return 1


def _orientation(value: Any) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1
