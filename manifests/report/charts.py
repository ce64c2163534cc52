"""Charts as SVG text, by hand: positions are per cent of the width, so that a chart fits a phone without shrinking its words.

Colour is never alone: a mark and a word go with it. Colours and marks are classes of `report.css`. Every text is escaped here.
"""

import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import Any

MARKS = {  # drawn around (0, 0), 12 units wide
    "kept": '<circle r="5"/>',
    "dropped": '<path d="M-5-5 5 5M5-5-5 5" class="stroke"/>',
    "target": '<path d="M0-6 6 5H-6Z"/>',
    "evaluation": '<rect x="-5" y="-5" width="10" height="10"/>',
    "quarantined": '<path d="M-6 0H6" class="stroke"/>',
}
WORDS = {"better": "target", "not worse": "kept", "worse": "dropped", "cannot tell": "quarantined"}


def percent(value: float) -> str:
    """A position or width in per cent, three decimals, without a negative zero."""
    return f"{value + 0.0:.3f}".rstrip("0").rstrip(".") + "%"


def mark(kind: str) -> str:
    """The small sign of a fate, for tables and legends."""
    return f'<svg class="mark {kind}" width="14" height="14" aria-hidden="true"><svg x="7" y="7" overflow="visible">{MARKS[kind]}</svg></svg>'


def framed(body: str, height: int, title: str, description: str, kind: str = "") -> str:
    """`body` in an SVG that is as wide as its box, named for screen readers."""
    label = escape(f"{title}. {description}", quote=True)
    return f'<svg class="chart {kind}" width="100%" height="{height}" role="img" aria-label="{label}">{body}</svg>'


def text(x: str, y: float, words: Any, anchor: str = "start", kind: str = "") -> str:
    """A word in a chart."""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" class="{kind}">{escape(str(words))}</text>'


def stacked(parts: Sequence[tuple[str, int, str]], title: str, height: int = 36) -> str:
    """One bar of parts (name, count, class), side by side; parts too narrow for their name carry it as a tooltip only."""
    whole = sum(count for _, count, _ in parts) or 1
    body, at = "", 0.0
    for name, count, kind in parts:
        width = 100 * count / whole
        if not count:
            continue
        tip = escape(f"{name}: {count:,}")
        body += (
            f'<g><title>{tip}</title><rect class="fill {kind}" x="{percent(at)}" y="0" width="{percent(max(width, 0.15))}" height="{height}"/></g>'
        )
        if at:
            body += f'<rect class="gap" x="{percent(at)}" y="0" width="2" height="{height}"/>'
        at += width
    return framed(body, height, title, ", ".join(f"{name} {count:,}" for name, count, _ in parts), "bar")


def bar(parts: Sequence[tuple[str, float, str]], whole: float, title: str) -> str:
    """A thin bar for a table's row: parts (name, amount, class) against `whole`."""
    body, at = '<rect class="track" x="0" y="0" width="100%" height="14"/>', 0.0
    for _, amount, kind in parts:
        width = 100 * amount / whole if whole else 0.0
        if amount:
            body += f'<rect class="fill {kind}" x="{percent(at)}" y="0" width="{percent(max(width, 0.4))}" height="14"/>'
        at += width
    return framed(body, 14, title, ", ".join(f"{name} {amount:,.4g}" for name, amount, _ in parts), "thin")


def histogram(
    edges: Sequence[float], series: Sequence[tuple[str, Sequence[float], str]], title: str, height: int = 150, line: float | None = None
) -> str:
    """Bars between `edges`; series (name, counts, class) are stacked. `line` is drawn upright at that value, with a flag."""
    top = max((sum(counts) for counts in zip(*(s[1] for s in series), strict=True)), default=0) or 1
    lo, hi = edges[0], edges[-1]
    room = height - 38
    body = text("0", 12, f"{top:,.4g}", kind="faint") + f'<line class="axis" x1="0" x2="100%" y1="{height - 20}" y2="{height - 20}"/>'
    for i, (left, right) in enumerate(itertools.pairwise(edges)):
        base, at, width = float(height - 20), 100 * (left - lo) / (hi - lo), 100 * (right - left) / (hi - lo)
        for name, counts, kind in series:
            tall = room * counts[i] / top
            if counts[i]:
                tip = escape(f"{short(left)} to {short(right)}: {name} {counts[i]:,.4g}")
                base -= max(tall, 1)
                place = f'x="{percent(at + width * 0.06)}" y="{base:.1f}" width="{percent(width * 0.88)}" height="{max(tall, 1):.1f}"'
                body += f'<g><title>{tip}</title><rect class="fill {kind}" {place}/></g>'
    body += (
        text("0", height - 5, short(lo), kind="faint")
        + text("50%", height - 5, short((lo + hi) / 2), "middle", "faint")
        + text("100%", height - 5, short(hi), "end", "faint")
    )
    if line is not None and hi > lo:
        x = percent(100 * (line - lo) / (hi - lo))
        body += f'<line class="limit" x1="{x}" x2="{x}" y1="16" y2="{height - 20}"/>'
    return framed(body, height, title, "; ".join(f"{name}: {sum(counts):,.4g}" for name, counts, _ in series))


def outline(edges: Sequence[float], before: Sequence[float], after: Sequence[float], title: str, height: int = 64) -> str:
    """Two distributions (shares) over each other: before as a filled area, after as bars beside it in the same bins."""
    top = max([*before, *after, 1e-12])
    width, body = 100 / len(before), ""
    for i, (was, now) in enumerate(zip(before, after, strict=True)):
        for amount, kind, shift in ((was, "before", 0.04), (now, "kept", 0.5)):
            tall = (height - 16) * amount / top
            if amount:
                body += f'<rect class="fill {kind}" x="{percent((i + shift) * width)}" y="{height - 14 - tall:.1f}" width="{percent(width * 0.44)}" height="{max(tall, 0.8):.1f}"/>'
    body += f'<line class="axis" x1="0" x2="100%" y1="{height - 14}" y2="{height - 14}"/>'
    body += text("0", height - 2, short(edges[0]), kind="faint") + text("100%", height - 2, short(edges[-1]), "end", "faint")
    return framed(body, height, title, f"from {short(edges[0])} to {short(edges[-1])}")


def forest(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Intervals of differences in points: rows {label, diff, lo, hi, margin, word, strong}; the zero line and the margin are drawn through all."""
    reach = max([0.1, *(abs(100 * row[c]) for row in rows for c in ("lo", "hi")), *(100 * (row["margin"] or 0) for row in rows)]) * 1.08
    step = nice(reach / 2.5)
    spot = lambda points: percent(50 + 50 * points / reach)
    told = [
        (row["label"], f"{row['word']}, {100 * row['diff']:+.1f} [{100 * row['lo']:+.1f}, {100 * row['hi']:+.1f}]".replace("-", "−")) for row in rows
    ]
    tall = [64 if len(label) + len(numbers) > 46 else 46 for label, numbers in told]  # a phone's width holds no more on one line
    height = sum(tall) + 26
    margin = max((100 * (row["margin"] or 0) for row in rows), default=0)
    body = ""
    if margin:
        body += f'<rect class="band" x="{spot(-margin)}" y="0" width="{percent(50 * margin / reach)}" height="{height - 22}"><title>margin {margin:.2f} points</title></rect>'
    for i in range(-2, 3):
        kind = "zero" if i == 0 else "grid"
        body += f'<line class="{kind}" x1="{spot(i * step)}" x2="{spot(i * step)}" y1="0" y2="{height - 22}"/>'
        body += text(spot(i * step), height - 6, f"{i * step:+.3g}".replace("-", "−") if i else "0", "middle", "faint")
    for i, row in enumerate(rows):
        y = sum(tall[: i + 1]) - 14
        kind, (label, numbers) = WORDS.get(row["word"], "quarantined"), told[i]
        body += text("0", y - (32 if tall[i] > 46 else 14), label, kind="strong" if row["strong"] else "") + text(
            "100%", y - 14, numbers, "end", f"word {kind}"
        )
        body += f'<line class="interval {kind} {"strong" if row["strong"] else ""}" x1="{spot(100 * row["lo"])}" x2="{spot(100 * row["hi"])}" y1="{y}" y2="{y}"/>'
        body += f'<svg class="mark {kind}" x="{spot(100 * row["diff"])}" y="{y}" overflow="visible">{MARKS[kind]}</svg>'
    return framed(body, height, title, "; ".join(f"{label}: {numbers}" for label, numbers in told), "forest")


def nice(step: float) -> float:
    """The nearest of 1, 2, 5 times a power of ten at or below `step` (0.1 for nothing)."""
    if not step > 0 or not math.isfinite(step):
        return 0.1
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (5, 2, 1) if factor * power <= step * 1.0000001)


def short(value: float) -> str:
    """A number for an axis."""
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
