"""ONE table of bad input: what it is, what becomes of each of its samples, and how a build over it ends.

`rows` are the samples in tar order with the fault that `measure.index`, `measure.quality` or a hash reports (None = healthy). Every pool but
the pool-level ones holds two healthy pictures before the case, so that a build has something to keep.
"""

import io
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from manifests.shards.pool_yaml import write_pool_yaml

Members = list[tuple[bytes, "bytes | str | int"]]  # (name, bytes); a text is a symbolic link's target, a number another tar type
FINE = (("fine0", None), ("fine1", None))
HOSTILE = '<script>window.__pwn=1</script> "><img src=x onerror=__pwn()> {{7*7}} \'; DROP TABLE ledger;-- \x1b[31mred\x1b]8;;http://x\x07 \u202eevil =HYPERLINK("x")'


@dataclass(frozen=True)
class Fixture:
    """One bad input.

    build             the bytes of the pool's tars
    rows              (key, fault or None) of every sample, in order
    status, reason    what becomes of the case itself: kept, quarantined, or refused (the build as a whole, with `slug`)
    damage            words that stand in the index's damage; empty = none is reported
    exit_code         of `curate build`; `strict_exit_code` of `curate build --strict`
    slug              of the message that goes with an exit code other than 0, under --strict where only that one is
    """

    name: str
    build: Callable[[], list[bytes]]
    rows: tuple[tuple[str, str | None], ...]
    status: str
    reason: str | None = None
    damage: str = ""
    exit_code: int = 0
    slug: str | None = None

    @property
    def strict_exit_code(self) -> int:
        """3 where a sample is quarantined."""
        return self.exit_code or (3 if any(fault for _, fault in self.rows) else 0)


@cache
def picture(number: int, side: int = 96) -> np.ndarray:
    """A crop (side, side, 3) uint8 of a photograph; another number, another crop."""
    photo = data.chelsea() if number % 2 else data.coffee()
    y, x = 13 * number % (photo.shape[0] - side), 37 * number % (photo.shape[1] - side)
    return np.ascontiguousarray(photo[y : y + side, x : x + side])


def encoded(number: int, kind: str = "JPEG", **options: object) -> bytes:
    """`picture(number)` as a file."""
    return saved(Image.fromarray(picture(number)), kind, **options)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    """A Pillow picture as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tar(members: Members, *, fine: bool = True, form: int = tarfile.GNU_FORMAT) -> bytes:
    """A tar of two healthy pictures and `members`."""
    file = io.BytesIO()
    healthy: Members = [m for i in (0, 1) for m in ((b"fine%d.jpg" % i, encoded(i)), (b"fine%d.cls" % i, b"%d" % i))] if fine else []
    with tarfile.open(fileobj=file, mode="w", format=form, encoding="utf-8", errors="surrogateescape") as out:
        for name, body in healthy + members:
            info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
            if isinstance(body, bytes):
                info.size = len(body)
                out.addfile(info, io.BytesIO(body))
            else:
                info.type = tarfile.SYMTYPE if isinstance(body, str) else bytes([body])
                info.linkname = body if isinstance(body, str) else "fine0.jpg"
                out.addfile(info)
    return file.getvalue()


def one(name: bytes, body: "bytes | str | int", label: bytes | None = b"1") -> Callable[[], list[bytes]]:
    """A pool with one odd member, labelled."""
    key = name.rpartition(b"/")[0] + (b"/" if b"/" in name else b"") + name.rpartition(b"/")[2].split(b".")[0]
    return lambda: [tar([(name, body)] + ([(key + b".cls", label)] if label is not None else []))]


@cache
def bomb() -> bytes:
    """A valid PNG of 20,000 × 20,000 in 50 kB."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(9)
    pixels = b"".join(packer.compress(bytes(2501 * 500)) for _ in range(40)) + packer.flush()
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


def animated_bomb() -> bytes:
    """The head of a GIF whose frames are 20,000 × 20,000."""
    frames = [Image.fromarray(picture(i)).quantize(16) for i in range(3)]
    found = bytearray(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    found[6:10] = struct.pack("<HH", 20_000, 20_000)
    return bytes(found)


def animation() -> bytes:
    """Three frames."""
    frames = [Image.fromarray(picture(i)).quantize(64) for i in (4, 5, 6)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50, loop=0)


def sixteen_bits() -> bytes:
    """Grey, 16 bits, over the whole range."""
    return saved(Image.fromarray((np.arange(96 * 96, dtype=np.uint32) * 65535 // (96 * 96 - 1)).astype(np.uint16).reshape(96, 96)), "PNG")


def palette() -> bytes:
    """Eight bits a pixel, one colour transparent."""
    return saved(Image.fromarray(picture(7)).quantize(32), "PNG", transparency=0)


def rotated() -> bytes:
    """EXIF says: turn a quarter."""
    exif = Image.Exif()
    exif[274] = 6
    return encoded(8, exif=exif)


def truncated_tar() -> list[bytes]:
    """Ends in the middle of the last picture."""
    whole = tar([(b"whole.jpg", encoded(9)), (b"cut.txt", b"a caption"), (b"cut.jpg", encoded(10))])
    return [whole[: whole.index(b"cut.jpg") + 512 + 700]]


def damaged_header() -> list[bytes]:
    """512 bytes in the middle are noise: the member there is lost, the next ones are found again."""
    whole = bytearray(tar([(b"lost.jpg", encoded(11)), (b"found.jpg", encoded(12))]))
    at = whole.index(b"lost.jpg")
    whole[at : at + 512] = np.random.default_rng(0).integers(0, 256, 512, np.uint8).tobytes()
    return [bytes(whole)]


def unclosed() -> list[bytes]:
    """Cut exactly behind a member, before the empty blocks."""
    whole = tar([(b"case.jpg", encoded(2))])
    at, size = whole.index(b"case.jpg"), len(encoded(2))
    return [whole[: at + 512 + -(-size // 512) * 512]]


def again(members: Members) -> Callable[[], list[bytes]]:
    """A pool of several odd members."""
    return lambda: [tar(members)]


def bad(name: str, build: Callable[[], list[bytes]], fault: str, key: str = "case", damage: str = "") -> Fixture:
    """A case that is quarantined."""
    return Fixture(name, build, (*FINE, (key, fault)), "quarantined", fault, damage, slug="bad-samples")


def good(name: str, build: Callable[[], list[bytes]], *keys: str, damage: str = "") -> Fixture:
    """A case that is kept."""
    return Fixture(name, build, (*FINE, *((key, None) for key in keys or ("case",))), "kept", None, damage)


def build_identical() -> list[bytes]:
    """One picture under twelve keys, in two shards."""
    same = encoded(3)
    return [tar([(b"s%d.jpg" % i, same) for i in part], fine=False) for part in (range(7), range(7, 12))]


FIXTURES = [
    Fixture(
        "truncated_tar",
        truncated_tar,
        (*FINE, ("whole", None), ("cut", "truncated")),
        "quarantined",
        "truncated",
        "before the end of member 'cut.jpg'",
        slug="bad-samples",
    ),
    good("damaged_header", damaged_header, "found", damage="is damaged from byte"),
    good("no_end_mark", unclosed, damage="without the two empty blocks"),
    Fixture(
        "two_tars_in_one", lambda: [tar([]) + tar([(b"never.jpg", encoded(2))], fine=False)], FINE, "kept", damage="goes on after the end of its tar"
    ),
    bad("zero_bytes", one(b"case.jpg", b""), "zero_bytes"),
    bad("text_as_jpg", one(b"case.jpg", b"I am not a picture, I am a text. " * 20), "undecodable"),
    bad("svg_as_jpg", one(b"case.jpg", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'), "undecodable"),
    bad("truncated_jpeg", one(b"case.jpg", encoded(3)[:900]), "undecodable"),
    bad("bomb", lambda: one(b"case.png", bomb())(), "too_large"),
    bad("animated_bomb", lambda: one(b"case.gif", animated_bomb())(), "too_large"),
    bad("no_payload", again([(b"case.cls", b"1"), (b"case.json", b'{"a": 1}')]), "no_payload"),
    bad("traversal", one(b"../../etc/case.jpg", encoded(2)), "unsafe_name", "../../etc/case", "lead out of its folder"),
    bad("absolute", one(b"/etc/case.jpg", encoded(2)), "unsafe_name", "/etc/case", "lead out of its folder"),
    bad("symbolic_link", one(b"case.jpg", "/etc/passwd"), "not_a_file", damage="a symbolic link"),
    bad("hard_link", one(b"case.jpg", tarfile.LNKTYPE[0]), "not_a_file", damage="a hard link"),
    bad("device", one(b"case.jpg", tarfile.CHRTYPE[0]), "not_a_file", damage="a device"),
    bad("pipe", one(b"case.jpg", tarfile.FIFOTYPE[0]), "not_a_file", damage="a pipe"),
    good("cmyk", lambda: one(b"case.jpg", saved(Image.fromarray(picture(4)).convert("CMYK"), "JPEG"))()),
    good("sixteen_bits", lambda: one(b"case.png", sixteen_bits())()),
    good("palette", lambda: one(b"case.png", palette())()),
    good("animation", lambda: one(b"case.gif", animation())()),
    good("exif_rotated", lambda: one(b"case.jpg", rotated())()),
    good("duplicate_keys", again([(b"case.jpg", encoded(5)), (b"other.jpg", encoded(6)), (b"case.jpg", encoded(7))]), "case", "other", "case"),
    good("member_twice", again([(b"case.jpg", encoded(5)), (b"case.jpg", encoded(5))]), "case", "case"),
    good("dotted_key", one(b"case.v1.2.jpg", encoded(5))),
    good("spaces_in_key", one(b"a case with spaces.jpg", encoded(5)), "a case with spaces"),
    good("unicode_key", one("Привет/日本語 é.jpg".encode(), encoded(5)), "Привет/日本語 é"),
    good("key_not_utf8", one(b"caf\xe9 \xff.jpg", encoded(5)), "caf\\xe9 \\xff"),
    good("long_key", one(b"folder/" * 30 + b"k" * 120 + b".jpg", encoded(5)), "folder/" * 30 + "k" * 120),
    good("caption_not_utf8", again([(b"case.jpg", encoded(5)), (b"case.txt", b"caf\xe9")]), damage="captions that are no UTF-8: 1"),
    good("hostile_caption", again([(b"case.jpg", encoded(5)), (b"case.txt", HOSTILE.encode())])),
    good("missing_label", one(b"case.jpg", encoded(5), None)),
    good("hidden_members", again([(b"._case.jpg", b"x"), (b"README", b"x"), (b"case.jpg", encoded(5))]), damage="members that are hidden: 1"),
    Fixture("empty_shard", lambda: [tar([], fine=False), b"", tar([])], FINE, "kept"),
    Fixture("empty_pool", lambda: [tar([], fine=False)], (), "refused", exit_code=2, slug="empty-pool"),
    Fixture("one_sample", lambda: [tar([(b"case.jpg", encoded(2))], fine=False)], (("case", None),), "kept"),
    Fixture("all_identical", build_identical, tuple((f"s{i}", None) for i in range(12)), "kept"),
]


def make_pool(fixture: Fixture, folder: Path) -> Path:
    """Write the pool of one fixture; returns its folder."""
    (folder / "shards").mkdir(parents=True)
    names = []
    for number, body in enumerate(fixture.build()):
        names.append(f"shards/{number:05d}.tar")
        (folder / names[-1]).write_bytes(body)
    write_pool_yaml(folder, name=fixture.name, sources=[{"name": "bad", "shards": names}], classes=["zero", "one"])
    return folder
