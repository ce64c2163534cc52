"""What a picture says of itself before anything of it is decoded: format, size, channels, orientation; and whether it may be opened at all.

Only the formats of `MAGIC` are tried, and sizes are judged here, so that a bomb costs nothing.
"""

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

from PIL import Image

__all__ = ["BROKEN", "MAX_PIXELS", "Header", "Undecodable", "check_size", "header", "open_picture", "sniff"]

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


class Undecodable(Exception):
    """A payload that gives no picture; `reason` is the fault: undecodable, zero_bytes, too_large or no_payload."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


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
    kind = sniff(data)
    try:
        found = _jpeg_header(data) if kind == "jpeg" else _png_header(data) if kind == "png" else _other_header(data, kind)
    except BROKEN as error:
        raise Undecodable("undecodable") from error
    check_size(found.width, found.height)
    return found


def sniff(data: bytes | memoryview) -> str:
    if not len(data):
        raise Undecodable("zero_bytes")
    head = bytes(data[:16])
    for offset, magic, kind in MAGIC:
        if head[offset : offset + len(magic)] == magic:
            return kind
    raise Undecodable("undecodable")


def check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Undecodable("too_large")
    if width * height == 0:
        raise Undecodable("undecodable")


def open_picture(data: bytes | memoryview, kind: str) -> Image.Image:
    """Pillow's reader of one known format: no guessing, and none of its own limits in the way of ours."""
    if kind in ("png", "webp", "gif", "bmp"):
        check_size(*_quick_size(data, kind))
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
        picture = open_picture(data, kind)
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
