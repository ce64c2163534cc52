"""Walk the members of a tar by its headers alone: USTAR, PAX and GNU long names, salvage where it is damaged, nothing extracted."""

import re
import zlib
from dataclasses import dataclass, field
from typing import NamedTuple

from manifests.shards.read import ShardReader

__all__ = ["Member", "Walked", "walk"]

BLOCK = 512
REGULAR = (0x30, 0x00, 0x37)  # "0", NUL and "7": a file
WITHOUT_DATA = {0x31: "hard link", 0x32: "symbolic link", 0x33: "device", 0x34: "device", 0x36: "pipe"}
FOLDER, PAX, PAX_GLOBAL, LONG_NAME, LONG_LINK, SPARSE = 0x35, (0x78, 0x58), 0x67, 0x4C, 0x4B, 0x53
PAX_RECORD = re.compile(rb"(\d{1,20}) ([^=]+)=")
MAX_NAME = 1 << 20  # a longer extended header is no name but an attack or damage


class Member(NamedTuple):
    """A member that is no folder: `name` as stored, where its bytes lie, `kind` ("" a file, else what it is instead), `missing` bytes that the shard lacks."""

    name: bytes
    offset: int
    size: int
    kind: str = ""
    missing: int = 0


@dataclass
class Walked:
    """Members in tar order, and what is wrong with the tar, each with its place."""

    members: list[Member] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)


def walk(reader: ShardReader) -> Walked:
    """Every member of the shard, also past damage: from a header that does not add up on, the next one that does is looked for.

    Cost   one 512-byte read a member; no payload is touched.
    """
    found = Walked()
    members, total, payload = found.members, reader.size, reader.payload
    at, ended = 0, False
    extended: dict[bytes, bytes] = {}
    while at + BLOCK <= total:
        header = bytes(payload(at, BLOCK))
        if header[0] == 0 and not header.strip(b"\0"):
            ended = True
            break
        size = _number(header[124:136])
        if size < 0 or not _adds_up(header):
            at = _skip_damage(reader, at, found)
            extended = {}
            continue
        kind, start = header[156], at + BLOCK
        if b"size" in extended and extended[b"size"].isdigit():
            size = int(extended[b"size"])
        if kind in REGULAR and b"GNU.sparse.major" not in extended:
            name = extended.get(b"path") or _name(header)
            if name[-1:] != b"/":  # the oldest tars mark folders so
                members.append(Member(name, start, min(size, total - start), "", max(0, start + size - total)))
        elif kind in PAX or kind in (LONG_NAME, LONG_LINK, PAX_GLOBAL):
            extended = _extend(extended, kind, bytes(payload(start, size)) if size <= MAX_NAME else b"")
            at = start + (size + BLOCK - 1) // BLOCK * BLOCK
            continue
        elif kind in WITHOUT_DATA:
            members.append(Member(extended.get(b"path") or _name(header), start, 0, WITHOUT_DATA[kind]))
            size = 0
        elif kind != FOLDER:
            what = "sparse file" if kind == SPARSE or b"GNU.sparse.major" in extended else f"member of unknown type {chr(kind)!r}"
            members.append(Member(extended.get(b"path") or _name(header), start, 0, what))
        extended = {}
        at = start + (size + BLOCK - 1) // BLOCK * BLOCK
    _judge_end(reader, at, ended, found)
    return found


def _judge_end(reader: ShardReader, at: int, ended: bool, found: Walked) -> None:
    last = found.members[-1] if found.members else None
    if last is not None and last.missing:
        found.damage.append(
            f"ends at byte {reader.size}, {last.missing} bytes before the end of member {_shown(last.name)} (from byte {last.offset})"
        )
    elif not ended and reader.size:
        found.damage.append(
            f"ends at byte {reader.size} without the two empty blocks that close a tar: members after byte {min(at, reader.size)} may be missing"
        )
    elif ended:
        while at < reader.size:
            block = bytes(reader.payload(at, min(1 << 20, reader.size - at)))
            if block.strip(b"\0"):
                found.damage.append(
                    f"goes on after the end of its tar, from byte {at + len(block) - len(block.lstrip(bytes(1)))}: nothing there is read"
                )
                return
            at += len(block)


def _skip_damage(reader: ShardReader, at: int, found: Walked) -> int:
    """The place of the next header that adds up, or the end of the shard."""
    place = at
    while True:
        place = reader.find(b"ustar", place + 1)
        if place < 0:
            found.damage.append(f"has no readable header from byte {at} on")
            return reader.size
        start = place - 257
        if start > at and start % BLOCK == 0 and _adds_up(bytes(reader.payload(start, BLOCK))):
            found.damage.append(f"is damaged from byte {at} to byte {start}: members there are lost")
            return start


def _adds_up(header: bytes) -> bool:
    """Does the header's checksum hold? adler32 gives the sum of bytes (mod 65,521) in one call."""
    stored = _number(header[148:155])
    if len(header) == BLOCK and (stored + sum(header[148:156]) - 255) % 65521 == zlib.adler32(header) & 0xFFFF:
        return True
    body = header[:148] + header[156:]
    return len(header) == BLOCK and stored == 256 + sum(b - 256 if b > 127 else b for b in body)  # old tars summed signed bytes


def _number(stored: bytes) -> int:
    """A number as tar writes it: octal digits, or base 256 where the first bit is set; -1 where it is neither."""
    try:
        return int(stored[:-1], 8)  # what nearly all tars hold
    except ValueError:
        pass
    if stored[0] & 0x80:
        return int.from_bytes(stored, "big") & ((1 << (8 * len(stored) - 2)) - 1)
    try:
        return int(stored.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _name(header: bytes) -> bytes:
    name = header[:100].split(b"\0", 1)[0]
    if header[345] and header[257:263] == b"ustar\0":  # GNU's own format keeps times at this place
        return header[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _extend(extended: dict[bytes, bytes], kind: int, body: bytes) -> dict[bytes, bytes]:
    """What a PAX or GNU header says of the member after it."""
    if kind == LONG_NAME:
        return {**extended, b"path": body.split(b"\0", 1)[0]}
    if kind not in PAX:
        return extended  # a global header's comment, or the name that a link points to
    found, at = dict(extended), 0
    while record := PAX_RECORD.match(body, at):
        stop = at + int(record[1])
        if stop <= record.end():
            break
        found[record[2]] = body[record.end() : stop - 1]
        at = stop
    return found


def _shown(name: bytes) -> str:
    return repr(name.decode("utf-8", "backslashreplace"))
