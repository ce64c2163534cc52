"""The interval plot as SVG: a row for each question, the interval, the margin as a band, the zero line, the runs as dots, the word as colour."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np

from pretrain.evidence.verdict import BETTER, CANNOT_TELL, NOT_WORSE, WORSE, Verdict, points

COLOUR = {BETTER: "#1a7f4b", NOT_WORSE: "#2f6fb0", WORSE: "#b3402a", CANNOT_TELL: "#77736b"}
LEFT, WIDTH, RIGHT, ROW, HEAD = 330, 460, 150, 24, 40


def intervals_svg(verdicts: Sequence[Verdict]) -> str:
    """One SVG for all rows with an interval (anchors left out where there is anything else), suite rows first; differences in points."""
    rows = [v for v in verdicts if v.lo is not None and v.question != "anchor"] or [v for v in verdicts if v.lo is not None]
    ends = [x for v in rows for x in (v.lo, v.hi, -v.margin, *v.dots) if x is not None] or [0.0]
    low, high = min(*ends, -0.001), max(*ends, 0.001)
    pad = (high - low) * 0.06
    low, high = low - pad, high + pad

    def x(value: float) -> float:
        return round(LEFT + WIDTH * (value - low) / (high - low), 1)

    height = HEAD + ROW * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {LEFT + WIDTH + RIGHT} {height}" font-family="system-ui, sans-serif" font-size="12" role="img">',
        f"<title>{escape(_title(rows))}</title>",
        '<g fill="currentColor">',
        f'<text x="{LEFT}" y="18" font-weight="600">{escape(_title(rows))}</text>',
    ]
    for i, v in enumerate(rows):
        parts += _row(v, HEAD + ROW * i, x)
    bottom = HEAD + ROW * len(rows)
    parts.append(f'<line x1="{x(0)}" x2="{x(0)}" y1="{HEAD - 8}" y2="{bottom}" stroke="currentColor" stroke-width="1"/>')
    for tick in _ticks(low, high):
        parts.append(f'<text x="{x(tick)}" y="{bottom + 18}" text-anchor="middle">{points(tick, digits=1)}</text>')
    parts += [
        f'<text x="{LEFT + WIDTH / 2}" y="{bottom + 34}" text-anchor="middle">points, arm minus reference; shaded: within the margin</text>',
        "</g></svg>",
    ]
    return "\n".join(parts) + "\n"


def _title(rows: Sequence[Verdict]) -> str:
    level = next((v.level for v in rows if v.level), None)
    return f"Differences with {100 * level:.4g} % intervals, dots are runs" if level else "No interval yet: fewer than three runs"


def _row(v: Verdict, top: float, x) -> list[str]:  # type: ignore[no-untyped-def]
    assert v.lo is not None and v.hi is not None and v.diff is not None
    middle, colour = top + ROW / 2, COLOUR[v.word]
    strong = ' font-weight="600"' if v.scope == "suite" else ""
    label = f"{v.arm} − {v.reference}, {v.task or 'suite'}" + (f" ({v.objective})" if v.objective else "")
    parts = [f'<text x="{LEFT - 12}" y="{middle + 4}" text-anchor="end"{strong}>{escape(label)}</text>']
    if v.margin:
        parts.append(
            f'<rect x="{x(-v.margin)}" y="{top + 2}" width="{round(x(0) - x(-v.margin), 1)}" height="{ROW - 4}" fill="{COLOUR[NOT_WORSE]}" opacity="0.15"/>'
        )
    parts += [f'<circle cx="{x(d)}" cy="{middle + 6}" r="1.8" fill="{colour}" opacity="0.6"/>' for d in v.dots]
    width = 5 if v.scope == "suite" else 3
    parts.append(f'<line x1="{x(v.lo)}" x2="{x(v.hi)}" y1="{middle}" y2="{middle}" stroke="{colour}" stroke-width="{width}" stroke-linecap="round"/>')
    parts.append(f'<circle cx="{x(v.diff)}" cy="{middle}" r="4.5" fill="{colour}" stroke="#fff"/>')
    parts.append(f'<text x="{LEFT + WIDTH + 12}" y="{middle + 4}" fill="{colour}"{strong}>{escape(v.word)}</text>')
    return parts


def _ticks(low: float, high: float) -> list[float]:
    step = 10 ** np.floor(np.log10(high - low))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (high - low) / s <= 8)
    return [float(t) for t in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]
