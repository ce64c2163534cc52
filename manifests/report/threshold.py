"""What if a threshold moved? A histogram of a stage's scores with a slider: exact at every edge, because an edge is where counts were taken."""

import math
from dataclasses import dataclass
from typing import Any

from manifests.audit.visible import number, visible
from manifests.replays import AUTOMATIC
from manifests.report import charts, stops
from manifests.report.panel import Inquiry, Panel, named

BINS = 40
SIDES = {(True, True): "at or above", (True, False): "above", (False, True): "at or below", (False, False): "below"}

ALONE = "Counted is this stage alone: no replay of another limit of it is stored."
COST = (
    "It folds up to nine limits a stage, at about 12 CPU seconds a limit for a million rows, and more where a later stage looks for its neighbours anew. "
    f"curate audit does it by itself up to {AUTOMATIC:,} rows × limits."
)
FOLLOWED = "Counted is this stage alone. Its limit followed from its other parameters: those can be moved, it cannot."

ABOUT = """SELECT count(*) AS scored, count(*) FILTER (NOT keep) AS dropped, count(*) FILTER (keep) AS kept, min(score) AS lo, max(score) AS hi,
       min(threshold) AS lowest_limit, max(threshold) AS highest_limit, count(*) FILTER (NOT keep AND score > threshold) AS dropped_above,
       count(*) FILTER (NOT keep AND score < threshold) AS dropped_below, count(*) FILTER (keep AND score > threshold) AS kept_above,
       count(*) FILTER (keep AND score < threshold) AS kept_below, count(*) FILTER (NOT keep AND score = threshold) AS dropped_at,
       count(*) FILTER (keep AND score = threshold) AS kept_at, count(*) FILTER (score = 0) AS noughts
FROM {view} WHERE keep IS NOT NULL AND score IS NOT NULL AND threshold IS NOT NULL AND isfinite(score)"""

COUNTED = """SELECT {round}(round((score - {limit}) / {width}, 9))::INT AS bin, count(*) FILTER (keep) AS kept, count(*) FILTER (NOT keep) AS dropped
FROM {view} WHERE keep IS NOT NULL AND score IS NOT NULL AND threshold IS NOT NULL AND isfinite(score)
GROUP BY ALL ORDER BY bin"""

PAIRS = """SELECT {round}(round((score - {limit}) / {width}, 9))::INT AS bin, count(*) AS pairs
FROM {view} WHERE isfinite(score)
GROUP BY ALL ORDER BY bin"""

EDGES = """SELECT min(score) AS lo, max(score) AS hi, count(*) AS pairs, bool_and(score = floor(score)) AS whole, count(*) FILTER (score = 0) AS noughts
FROM {view} WHERE isfinite(score)"""


def what_if(inquiry: Inquiry) -> Panel | None:
    """One slider a stage that compares a score with a limit: its stops are replays of the whole run where they are stored, else it counts the stage's scores."""
    blocks: list[dict[str, Any]] = []
    for stage in inquiry.decisions:
        counted = _counted(inquiry, stage.id)
        found = stops.stops(inquiry, stage.id, counted)
        blocks += found or ([counted] if counted else [])
        if counted and not found:
            alone = ALONE if counted["limit"] in stage.parameters.values() else FOLLOWED
            counted["notes"] += stops.not_offered(inquiry, stage.id) or [alone]
    if not blocks:
        inquiry.take()
        return None
    name = f"curate replay {visible(inquiry.run.path.name, 60)} --sweep"
    if any(block["kind"] == "stops" for block in blocks):
        answer = "Move a limit: each stop is a replay of the whole run, every later stage included."
        answer += " Where no replays are stored, the stage alone is counted." if any(block["kind"] == "what_if" for block in blocks) else ""
    else:
        answer = "Move a limit and read how many more, or fewer, that stage would drop."
        if any(ALONE in block["notes"] for block in blocks):
            answer += f" To see what later stages make of it, run: {name}"
            blocks.append({"kind": "text", "class": "note", "text": COST})
    return Panel("what_if", "What if", "What if the threshold moved?", answer, blocks, inquiry.take())


def _counted(inquiry: Inquiry, stage: str) -> dict[str, Any] | None:
    """The scores of a stage (its pairs, down to its floor, where it kept its edges) in bins; None where its verdicts are no matter of one limit."""
    view = inquiry.view(stage)
    if view is None:
        return None
    about = inquiry.look_up(ABOUT.format(view=view))[0]
    if not about["dropped"] or about["lowest_limit"] != about["highest_limit"] or not math.isfinite(about["lowest_limit"]):
        return None
    high = about["dropped_below"] == 0 and about["kept_above"] == 0
    if not high and (about["dropped_above"] or about["kept_below"]):
        return None  # its verdicts are no matter of one limit: no slider can say what another one would give
    if (about["dropped_at"] and about["kept_at"]) or about["lo"] == about["hi"]:
        return None
    limit = float(about["lowest_limit"])
    inclusive = about["dropped_at"] > 0 or about["kept_at"] == 0
    edges = f"edges_{view[1:-1]}"
    inquiry.ask(f"about_{stage}", ABOUT.format(view=view))
    if inquiry.has(edges) and "reason" not in inquiry.schema(edges).names:  # pairs that were seen in several ways have scores of several kinds
        return _pairs(inquiry, stage, named(edges), limit, high, inclusive)
    return _rows(inquiry, stage, view, about, limit, high, inclusive)


@dataclass(frozen=True)
class Grid:
    """Bins of one width, `first` to `last` in steps from the limit, so that the limit is an edge. `up`: bins hold their upper edge, not their lower one.

    Scores that are never below nought have nought as the first edge: there a narrower bin begins, which holds it, even where bins hold their upper edges.
    """

    limit: float
    width: float
    first: int
    last: int
    up: bool
    nought: bool  # is the first edge nought, and not where the steps are

    @property
    def edges(self) -> list[float]:
        """The edges in order."""
        edges = [self.limit + i * self.width for i in range(self.first, self.last + 1)]
        return [0.0, *edges[1:]] if self.nought else edges

    def counts(self, rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, list[int]]:
        """What lies between edges, from rows by `bin`: the number of the edge that a bin holds."""
        found = {name: [0] * (self.last - self.first) for name in names}
        for row in rows:
            at = max(row["bin"] - self.first - self.up, 0)  # below the first edge lies nothing but nought itself
            for name in names:
                found[name][at] += row[name]
        return found


def _grid(lo: float, hi: float, limit: float, whole: bool, up: bool) -> Grid:
    """About `BINS` bins that hold scores from `lo` to `hi` and the limit. `whole`: scores are whole numbers, and so are widths."""
    never_negative = lo >= 0 and limit > 0  # where the limit itself is nought, what lies on it keeps a bin of its own
    lo, hi = min(lo, limit), max(hi, limit)
    width = charts.nice((hi - lo) / (BINS / 2)) if hi > lo else 1.0
    width = max(1.0, width) if whole else width
    low, high = (round((value - limit) / width, 9) for value in (lo, hi))
    first, last = (math.ceil(low) - 1, math.ceil(high)) if up else (math.floor(low), math.floor(high) + 1)
    below = limit + first * width < -1e-9 * width and never_negative
    if below and abs(limit + (first + 1) * width) <= 1e-9 * width:
        first += 1  # the next edge is nought
    return Grid(limit, width, first, max(last, first + 1), up, below)


def _rows(inquiry: Inquiry, stage: str, view: str, about: dict[str, Any], limit: float, high: bool, inclusive: bool) -> dict[str, Any]:
    grid = _grid(float(about["lo"]), float(about["hi"]), limit, False, high != inclusive)
    sql = COUNTED.format(view=view, limit=repr(limit), width=repr(grid.width), round="ceil" if grid.up else "floor")
    series = grid.counts(inquiry.ask(f"scores_of_{stage}", sql), ("kept", "dropped"))
    total = [a + b for a, b in zip(series["kept"], series["dropped"], strict=True)]
    shown = [("kept", series["kept"], "kept"), ("dropped", series["dropped"], "dropped")]
    drawn = charts.histogram(grid.edges, shown, f"Scores of {visible(stage, 60)}", line=limit)
    return _block(stage, drawn, grid, _beyond(total, high, grid, about["noughts"]), high, inclusive, "samples", bool(about["kept"]))


def _pairs(inquiry: Inquiry, stage: str, view: str, limit: float, high: bool, inclusive: bool) -> dict[str, Any] | None:
    about = inquiry.ask(f"edges_of_{stage}", EDGES.format(view=view))[0]
    if not about["pairs"]:
        return None
    grid = _grid(float(about["lo"]), float(about["hi"]), limit, bool(about["whole"]), high != inclusive)
    sql = PAIRS.format(view=view, limit=repr(limit), width=repr(grid.width), round="ceil" if grid.up else "floor")
    total = grid.counts(inquiry.ask(f"pairs_of_{stage}", sql), ("pairs",))["pairs"]
    near = [n if (i >= -grid.first) == high else 0 for i, n in enumerate(total)]
    rest = [n - m for n, m in zip(total, near, strict=True)]
    shown = [("beyond the limit", rest, "kept"), ("within the limit", near, "dropped")]
    drawn = charts.histogram(grid.edges, shown, f"Pairs seen by {visible(stage, 60)}", line=limit)
    return _block(stage, drawn, grid, _beyond(total, high, grid, about["noughts"]), high, inclusive, "pairs", True)


def _beyond(total: list[int], high: bool, grid: Grid, noughts: int) -> list[int]:
    """For each edge: how many lie on the side that is dropped. `noughts`: how many scores are nought, and lie on the first edge where that is nought."""
    on_first = noughts if grid.up and grid.edges[0] == 0 else 0  # a bin that holds its upper edge leaves out its lower one, but for nought
    gone = [sum(total[i:]) if high else sum(total[:i]) for i in range(len(total) + 1)]
    return [gone[0] - on_first if high else on_first, *gone[1:]]


def _block(stage: str, svg: str, grid: Grid, gone: list[int], high: bool, inclusive: bool, unit: str, both: bool) -> dict[str, Any]:
    edges, now, sign = grid.edges, -grid.first, SIDES[high, inclusive]
    notes = []
    if unit == "pairs":
        notes.append(
            "Counted are pairs, down to the floor that the stage recorded. One sample can stand in many pairs, so samples move by at most as much."
        )
    if not both:
        notes.append("Only dropped samples have a score here: what a limit beyond it would take cannot be read from them.")
    place = lambda edge: round(100 * (edge - edges[0]) / (edges[-1] - edges[0]), 3)
    shown = [{"limit": charts.short(e) if abs(e) >= 1e-9 else "0", "gone": n, "at": place(e)} for e, n in zip(edges, gone, strict=True)]
    return {
        "kind": "what_if", "stage": visible(stage, 60), "svg": svg, "now": now, "steps": shown, "sign": sign, "unit": unit, "notes": notes,
        "ends": (edges[0], edges[-1]), "limit": edges[now],
        "rule": f"{visible(stage, 60)} drops {'a sample' if unit == 'samples' else 'one of a pair'} whose score is {sign} {number(edges[now])}",
    }  # fmt: skip
