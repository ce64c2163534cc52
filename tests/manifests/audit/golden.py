"""Golden pages: what changes from machine to machine is scrubbed by named patterns, the rest must be the same to the letter."""

import os
import re
from pathlib import Path

GOLDEN = Path(__file__).parents[2] / "golden" / "audit"
SCRUBS = {
    "folder": (r"/\S*?/(run|other|pool|tests)\b", r"FOLDER/\1"),
    "digest": (r"\b[0-9a-f]{32,64}\b", "DIGEST"),
    "short digest": (r"\b[0-9a-f]{12}\b", "DIGEST12"),
    "prefix": (r"\(([0-9a-f]{8})\)", "(DIGEST8)"),
    "path digest": (r"\bphash [0-9a-f]{16}\b", "phash HASH"),
}


def check(name: str, page: str) -> None:
    """Compare with `tests/golden/audit/NAME`; `UPDATE_GOLD=1` writes it, a difference leaves the new page beside it."""
    for pattern, replacement in SCRUBS.values():
        page = re.sub(pattern, replacement, page)
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLD"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page + "\n", encoding="utf-8")
    wanted = file.read_text(encoding="utf-8") if file.exists() else ""
    if wanted != page + "\n":
        beside = file.with_suffix(".actual")
        beside.write_text(page + "\n", encoding="utf-8")
        raise AssertionError(f"{file} differs; look at {beside}, then UPDATE_GOLD=1 if it is right")
