"""Canonical JSON and its SHA-256: the identity of a part is the digest of what it was made from."""

import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces; NaN and infinities are refused (`ValueError`)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(*parts: Any) -> str:
    """64 hex digits over the canonical JSON of `parts`."""
    return hashlib.sha256(canonical(parts)).hexdigest()


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered_digest(path: Path | str) -> str:
    """`file_digest`, read once a process while the file keeps its size and time: for files such as weights, which are asked for again and again."""
    found = os.stat(path)
    return _remembered(os.path.abspath(path), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _remembered(path: str, size: int, time: int) -> str:
    return file_digest(path)
