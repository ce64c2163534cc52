"""An image folder as samples: sub-folders are classes, links are followed once, nothing is lost without being counted."""

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.ingest.pack import Samples, Unreadable, keys_of, picture_suffix, text_of
from manifests.errors import Refusal
from manifests.shards.index import IMAGES

PICTURES = {suffix.encode() for suffix in IMAGES}
NOT_HIDDEN = (b"__MACOSX",)
Identity = tuple[int, int]  # device and inode: what two names of one file share


@dataclass
class _Found:
    """What a walk has seen so far. `files`: relative path -> (size, mtime) of each picture."""

    root: bytes
    files: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    identities: set[Identity] = field(default_factory=set)
    folders: set[Identity] = field(default_factory=set)
    links: list[bytes] = field(default_factory=list)
    texts: set[bytes] = field(default_factory=set)
    skipped: Counter[str] = field(default_factory=Counter)
    followed: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    closed: list[str] = field(default_factory=list)


def folder(source: Path, *, caption: str | None = None, skip: Path | None = None) -> Samples:
    """The pictures under `source`, in the byte order of their relative paths, whatever order the disk lists them in.

    Class       the first folder below `source`; a picture directly in `source` has no label
    Taken       files with a picture's extension, and files without a known one whose first bytes are a picture's
    Links       those out of the folder are followed too. Left out are links to what is already taken or walked, so that loops end, and broken ones. All are counted
    caption     extension of a text file beside each picture that holds its caption ("txt")
    skip        a folder inside `source` that is not walked (the pool itself)
    Writes      path: the relative path; bytes that are not UTF-8 as `\\xe9`
    Cost        one `stat` a file
    """
    root = os.fsencode(source.resolve())
    found = _Found(root)
    if skip is not None and skip.exists():
        found.folders.add(_identity(os.stat(skip)))
    _walk(found, b"", caption)
    while found.links:
        links, found.links = sorted(found.links), []
        for link in links:
            _follow(found, link, caption)
    paths = sorted(found.files)
    parents = [path.split(b"/", 1)[0] if b"/" in path else None for path in paths]
    names = sorted({p for p in parents if p is not None})
    number = {name: i for i, name in enumerate(names)}
    return Samples(
        keys=keys_of(paths),
        read=lambda i: _read(root + b"/" + paths[i]),
        stamps=[[text_of(path), *found.files[path]] for path in paths],
        suffixes=[_suffix(path) for path in paths],
        columns=pa.table({"path": pa.array([text_of(path) for path in paths], pa.string())}),
        labels=[None if parent is None else number[parent] for parent in parents] if names else None,
        captions=[_caption(found, path, caption) for path in paths] if caption else None,
        classes=tuple(text_of(name) for name in names),
        counts=_counts(found),
    )


def _walk(found: _Found, below: bytes, caption: str | None, *, linked: bool = False) -> None:
    """Take the real files and folders below; links are put aside, so that a real name always comes before a link to it."""
    waiting = [below]
    while waiting:
        here = waiting.pop()
        place = found.root + (b"/" + here if here else b"")
        try:
            identity = _identity(os.stat(place))
            if identity in found.folders:
                continue
            with os.scandir(place) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError:
            found.closed.append(text_of(here))
            continue
        found.folders.add(identity)
        for entry in entries:
            path = here + b"/" + entry.name if here else entry.name
            if entry.name.startswith(b".") or entry.name in NOT_HIDDEN:
                found.skipped["hidden"] += 1
            elif entry.is_symlink():
                found.links.append(path)
            elif entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            else:
                status = entry.stat(follow_symlinks=False)
                if linked and _identity(status) in found.identities:
                    found.left["to a picture already taken"] += 1
                else:
                    _take(found, path, status, caption)


def _take(found: _Found, path: bytes, status: os.stat_result, caption: str | None) -> bool:
    if not stat.S_ISREG(status.st_mode):
        found.skipped["not a file"] += 1
        return False
    ending = _ending(path)
    if caption and ending == caption.encode():
        found.texts.add(path)
        return False
    if ending not in PICTURES and not _looks_like_a_picture(found.root + b"/" + path):
        found.skipped[text_of(ending) if ending else "no extension"] += 1
        return False
    found.files[path] = (status.st_size, status.st_mtime_ns)
    found.identities.add(_identity(status))
    return True


def _follow(found: _Found, link: bytes, caption: str | None) -> None:
    place = found.root + b"/" + link
    try:
        status = os.stat(place)
    except OSError:
        found.left["broken"] += 1
        return
    target = os.path.realpath(place)
    outside = not (target + b"/").startswith(found.root + b"/")
    if stat.S_ISDIR(status.st_mode):
        if _identity(status) in found.folders or (found.root + b"/").startswith(target.rstrip(b"/") + b"/"):
            found.left["to a folder already walked"] += 1
            return
        found.followed["to folders out of the source" if outside else "to folders"] += 1
        _walk(found, link, caption, linked=True)
    elif _identity(status) in found.identities:
        found.left["to a picture already taken"] += 1
    elif _take(found, link, status, caption):
        found.followed["to pictures out of the source" if outside else "to pictures"] += 1


def _counts(found: _Found) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    if found.skipped:
        counts["skipped"] = dict(sorted(found.skipped.items()))
    if found.followed:
        counts["links_followed"] = dict(sorted(found.followed.items()))
    if found.left:
        counts["links_left_out"] = dict(sorted(found.left.items()))
    if found.closed:
        counts["unreadable_folders"] = sorted(found.closed)
    return counts


def _caption(found: _Found, path: bytes, caption: str) -> str | None:
    beside = path.rsplit(b".", 1)[0] + b"." + caption.encode()
    if beside not in found.texts:
        return None
    try:
        return _read(found.root + b"/" + beside).decode("utf-8", "replace").strip()
    except Unreadable:
        found.skipped["unreadable caption"] += 1
        return None


def _ending(path: bytes) -> bytes:
    name = path.rsplit(b"/", 1)[-1]
    return name.rsplit(b".", 1)[-1].lower() if b"." in name[1:] else b""


def _suffix(path: bytes) -> str | None:
    ending = _ending(path)
    return ending.decode() if ending in PICTURES else None


def _looks_like_a_picture(place: bytes) -> bool:
    try:
        with open(place, "rb") as file:
            return picture_suffix(file.read(16)) is not None
    except OSError:
        return False


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino


def _read(place: bytes) -> bytes:
    try:
        with open(place, "rb") as file:
            return file.read()
    except FileNotFoundError as error:
        raise Unreadable("missing") from error
    except OSError as error:
        raise Unreadable(os.strerror(error.errno) if error.errno else "unreadable") from error


def check_folder(source: Path) -> None:
    """Raises `Refusal` [no-such-file] where `source` cannot be listed."""
    if not os.access(source, os.R_OK | os.X_OK):
        raise Refusal("no-such-file", str(source), "cannot be read", "a folder that this user may list")
