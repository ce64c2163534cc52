"""Charts: well-formed, escaped, and where they say."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manifests.report import charts

HOSTILE = "<script>&\"'</svg>"


def widths(svg: str, kind: str = "fill") -> list[float]:
    return [float(r.get("width", "0").rstrip("%")) for r in ET.fromstring(svg).iter("rect") if kind in r.get("class", "")]


def test_every_chart_is_well_formed_whatever_the_names() -> None:
    row = {"label": HOSTILE, "diff": 0.01, "lo": -0.01, "hi": 0.03, "margin": 0.02, "word": HOSTILE, "strong": True}
    made = [
        charts.stacked([(HOSTILE, 3, "kept"), ("b", 0, "dropped")], HOSTILE), charts.bar([(HOSTILE, 1, "kept")], 2, HOSTILE), charts.forest([row], HOSTILE),
        charts.histogram([0, 1, 2], [(HOSTILE, [1, 0], "kept")], HOSTILE, line=1), charts.outline([0, 1], [0.5, 0.5], [1, 0], HOSTILE),
        *(charts.mark(kind) for kind in charts.MARKS),
    ]  # fmt: skip
    for svg in made:
        assert ET.fromstring(svg).tag == "svg" and "<script" not in svg


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=9))
def test_parts_of_a_bar_fill_it(counts: list[int]) -> None:
    drawn = widths(charts.stacked([(str(i), n, "kept") for i, n in enumerate(counts)], "t"))
    assert len(drawn) == sum(n > 0 for n in counts)
    whole = sum(counts) or 1
    for width, n in zip(drawn, [n for n in counts if n], strict=True):
        assert width == pytest.approx(max(100 * n / whole, 0.15), abs=1e-3)


def test_bars_of_a_histogram_are_as_high_as_their_counts() -> None:
    svg = charts.histogram([0.0, 1.0, 2.0, 3.0], [("a", [10, 5, 0], "kept"), ("b", [0, 5, 20], "dropped")], "t", height=138, line=1.0)
    heights = [float(r.get("height", "")) for r in ET.fromstring(svg).iter("rect")]
    assert heights == [50.0, 25.0, 25.0, 100.0]
    line = next(e for e in ET.fromstring(svg).iter("line") if e.get("class") == "limit")
    assert line.get("x1") == "33.333%"


def test_a_forest_puts_zero_in_the_middle_and_better_to_the_right() -> None:
    rows = [{"label": "a", "diff": 0.02, "lo": 0.01, "hi": 0.03, "margin": 0.01, "word": "better", "strong": True}]
    svg = ET.fromstring(charts.forest(rows, "t"))
    interval = next(e for e in svg.iter("line") if "interval" in e.get("class", ""))
    zero = next(e for e in svg.iter("line") if e.get("class") == "zero")
    assert zero.get("x1") == "50%"
    lo, hi = (float(interval.get(x, "").rstrip("%")) for x in ("x1", "x2"))
    assert 50 < lo < hi <= 100 and hi - 50 == pytest.approx(3 * (lo - 50), rel=1e-3)


@given(st.floats(1e-9, 1e9))
def test_nice_steps_are_round_and_no_larger(step: float) -> None:
    found = charts.nice(step)
    assert found <= step * 1.000001 and found > step / 2.6 and f"{found:.0e}"[0] in "125"


@pytest.mark.parametrize("step", [0.0, -1.0, float("nan"), float("inf")])
def test_nice_of_nothing(step: float) -> None:
    assert charts.nice(step) == 0.1
