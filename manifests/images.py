"""Bytes to pixels at a named scale, with limits against bombs. Nothing here depends on threads, and nothing loads torch.

JPEG goes through libjpeg-turbo (simplejpeg), every other format through Pillow. Sizes are read from the header and judged before anything
is decoded (`manifests.image_headers`). Pixels come as stored: EXIF orientation is reported by `header` and applied by `thumbnail` alone.
"""

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import simplejpeg
import xxhash
from PIL import Image

from manifests.errors import Refusal
from manifests.image_headers import BROKEN, Undecodable, check_size, header, open_picture, sniff

__all__ = [
    "Undecodable", "Window", "beyond", "decode", "encode_webp", "glance", "header", "resize", "shrink", "stacks", "thumbnail", "upright", "values", "visible",
]  # fmt: skip

GLANCE = 64  # the least side of what is seen at a glance
STACK = 1 << 16  # pixels of small pictures that are worked on at a time: what is made of them stays in the cache
WHITE, NEARLY_WHITE = 255, 250  # a picture that is nowhere darker than this shows nothing on white
LUMA: Any = np.array([77, 150, 29])  # 256ths of red, green, blue


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


def decode(
    data: bytes | memoryview, *, min_side: int | None = None, gray: bool = False, window: Window | None = None, backdrop: int = WHITE
) -> np.ndarray:
    """The picture as (h, w, 3) uint8 RGB, or (h, w) when `gray`. Alpha lies on white, 16 bits are scaled to 8, an animation gives its first frame.

    min_side    colour: a JPEG comes at the smallest DCT scale whose sides are both still at least this; smaller pictures and
                other formats come at full scale. Grey: `shrink` of the full-scale picture, whatever the format
    window      how more than 8 bits of grey become 8 (None: 0 to 65535, floats 0 to 1 or 0 to 255); colour and 8 bits stay as they are. One for
                all pictures: each one's own least and greatest value would make a vessel out of the noise of an empty slice
    backdrop    the grey under transparent pixels
    Errors      `Undecodable`: zero_bytes, too_large (by the header), undecodable (no picture, or one that ends early). A JPEG whose data
                is damaged in the middle is decoded as every other reader decodes it
    """
    if gray:
        return shrink(decode(data, window=window, backdrop=backdrop), min_side)
    kind = sniff(data)
    if kind == "jpeg":
        return _decode_jpeg(data, min_side or 0)
    return _decode_with_pillow(data, kind, window, backdrop)


def visible(data: bytes | memoryview, *, min_side: int | None = None) -> np.ndarray:
    """`decode` for looking at a picture: white ink on a transparent ground, of which nothing shows on white, lies on black."""
    pixels = decode(data, min_side=min_side)
    if pixels.min(initial=WHITE) < NEARLY_WHITE or header(data).channels not in (2, 4):
        return pixels
    return decode(data, min_side=min_side, backdrop=0)


def values(data: bytes | memoryview) -> np.ndarray:
    """(h, w) or (h, w, c) as stored: every bit and channel, colours for a palette, of an animation the first frame. Raises `Undecodable`."""
    return _with_pillow(data, sniff(data), lambda p: np.asarray(p.convert("RGBA") if p.mode in ("P", "PA") or "transparency" in p.info else p))


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
    divisor = 256 * f * f  # what lies below a whole quotient lies below it by 1 / divisor at least, and no rounding reaches so far
    out = np.empty((rows, columns), np.uint8)
    step = max(1, (1 << 19) // (3 * f * columns * weights.itemsize))  # what is made of so few rows stays in the cache beside the picture
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        summed = _sum_of_rows(inner[start * f : stop * f], f)
        gray = summed.astype(weights.dtype).reshape(-1, 3 * f) @ weights
        out[start:stop] = ((gray + divisor // 2) / divisor).reshape(stop - start, columns)
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


def stacks(pictures: Sequence[np.ndarray | None]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Grey pictures (h, w) of one size together: their places among `pictures`, and at most about `STACK` pixels of them as (n, h, w)."""
    sizes: dict[tuple[int, ...], list[int]] = {}
    for place, picture in enumerate(pictures):
        if picture is not None:
            sizes.setdefault(picture.shape, []).append(place)
    for (high, wide), places in sizes.items():
        some = max(1, STACK // (high * wide))
        for start in range(0, len(places), some):
            chosen = places[start : start + some]
            yield chosen, np.stack([picture for place in chosen if (picture := pictures[place]) is not None])


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


def _decode_with_pillow(data: bytes | memoryview, kind: str, window: Window | None = None, backdrop: int = WHITE) -> np.ndarray:
    return _with_pillow(data, kind, lambda picture: _rgb(picture, window, backdrop))


def _with_pillow(data: bytes | memoryview, kind: str, take: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """What `take` makes of the loaded picture. Raises `Undecodable`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = open_picture(data, kind)
            check_size(*picture.size)
            picture.load()
            return take(picture)
    except BROKEN as error:
        raise Undecodable("undecodable") from error


def _rgb(picture: Image.Image, window: Window | None, backdrop: int) -> np.ndarray:
    """(h, w, 3) uint8 of a loaded picture in any mode."""
    mode = picture.mode
    if mode.startswith("I;16") or mode in ("I", "F"):
        return _deep(np.asarray(picture), mode, window)
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        rgba = np.asarray(picture.convert("RGBA"))
        laid = np.empty((*rgba.shape[:2], 3), np.uint8)
        step = max(1, (1 << 18) // rgba.shape[1])  # some megabytes at a time
        for start in range(0, len(rgba), step):
            part = rgba[start : start + step].astype(np.uint32)
            alpha = part[:, :, 3:]
            laid[start : start + step] = (part[:, :, :3] * alpha + backdrop * (255 - alpha) + 127) // 255
        return laid
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
