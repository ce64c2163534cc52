"""Text from data, made safe to look at: what a terminal would obey, or a reader could not see, is written as an escape."""

import re
from typing import Any

# C0 and C1 controls (escape sequences begin there), bidi controls, line and paragraph separators, zero-width marks, lone surrogates
HIDDEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(value: Any, limit: int | None = None) -> str:
    """`value` as one line of text without control or bidi characters; longer than `limit` characters is cut with an ellipsis."""
    text = "" if value is None else str(value)
    if limit is not None and len(text) > limit:
        text = text[: limit - 1] + "…"
    return HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def called(row: dict[str, Any], limit: int) -> str:
    """What its owner calls a sample: the `path` that it had as a file, else its key."""
    path = row.get("path")
    return visible(middle(path, limit)) if isinstance(path, str) and path else visible(row["key"], limit)


def middle(path: str, limit: int) -> str:
    """A path of at most `limit` characters: a longer one is cut in the middle, as its end says most."""
    return path if len(path) <= limit else f"{path[: limit // 3]}…{path[limit // 3 + 1 - limit :]}"


def number(value: Any) -> str:
    """A count with thousands in groups, a measured number with up to four significant digits, anything else as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, bytes):
        return value.hex() if len(value) <= 32 else value[:16].hex() + "…"
    return visible(value, 300)


def share(part: int, whole: int) -> str:
    """`part` of `whole` in per cent with one decimal; never 0.0 % of something nor 100.0 % of not all."""
    if not whole:
        return "–"
    value = 100 * part / whole
    if 0 < value < 0.05:
        return "<0.1 %"
    if 99.95 <= value < 100:
        return ">99.9 %"
    return f"{value:.1f} %"


def rows_of_text(rows: list[list[str]], *, right: frozenset[int] = frozenset(), indent: str = "  ") -> list[str]:
    """Lines of a table whose columns are aligned; columns in `right` are flush right."""
    if not rows:
        return []
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [[cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))] for row in rows]
    return [(indent + "  ".join(row)).rstrip() for row in cells]
