"""A slider whose stops are replays: at each limit the funnel of the whole run, later stages included, and what would become of the samples with a card."""

from typing import Any

from manifests.audit.visible import visible
from manifests.report.panel import Inquiry, quoted

STOPS = """SELECT parameter, value, is_run, kept, dropped, quarantined, changed, refused
FROM replays WHERE stage = {stage} AND parameter = {parameter} ORDER BY value"""

FUNNELS = """SELECT value, f.stage AS step, f."in" AS "in", f.dropped AS dropped, f."left" AS "left"
FROM (SELECT value, unnest(funnel) AS f, generate_subscripts(funnel, 1) AS turn FROM replays
      WHERE stage = {stage} AND parameter = {parameter} AND refused IS NULL) ORDER BY value, turn"""

HELD = """SELECT value, is_run, h.uid AS uid, h.status AS status, h.stage AS stage, h.reason AS reason
FROM (SELECT value, is_run, unnest(held) AS h FROM replays
      WHERE stage = {stage} AND parameter = {parameter} AND refused IS NULL) ORDER BY value, uid"""

TOTALS = ("kept", "dropped", "quarantined", "changed")

Fate = tuple[str, str, str]  # status, stage, reason; empty where it does not apply


def stops(inquiry: Inquiry, stage: str, counted: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The sliders of a stage whose limits were folded (`curate replay RUN --sweep`), one a parameter; none where they were not.

    counted    the same stage's histogram, where there is one to draw
    """
    found, fixed = [], []
    for parameter, told in _stored(inquiry, stage).items():
        if sum(row["refused"] is None for row in told) > 1:
            value = next(row["value"] for row in told if row["is_run"])
            found.append(_slider(inquiry, stage, parameter, told, counted if counted and counted["limit"] == value else None))
        else:
            fixed += _refused(told)
    if found:
        found[-1]["notes"] += fixed
    return found


def _slider(inquiry: Inquiry, stage: str, name: str, told: list[dict[str, Any]], counted: dict[str, Any] | None) -> dict[str, Any]:
    offered, which = [row for row in told if row["refused"] is None], {"stage": quoted(stage), "parameter": quoted(name)}
    inquiry.ask(f"limits_of_{stage}.{name}", STOPS.format(**which))
    steps = inquiry.ask(f"funnels_of_{stage}.{name}", FUNNELS.format(**which))
    funnels = [[[s["in"], s["dropped"], s["left"]] for s in steps if s["value"] == row["value"]] for row in offered]
    names = [visible(s["step"], 60) for s in steps if s["value"] == offered[0]["value"]]
    now = next(i for i, row in enumerate(offered) if row["is_run"])
    fates, moves, held = _moves(inquiry, which, [row["value"] for row in offered])
    parameter = visible(name, 60)
    shown = [
        {**{n: row[n] for n in TOTALS}, "limit": limit(row["value"]), "at": _place(row["value"], counted), "funnel": funnel, "moves": moved}
        for row, funnel, moved in zip(offered, funnels, moves, strict=True)
    ]
    rule = counted["rule"] if counted else f"{visible(stage, 60)} at other values of {parameter}"
    drawn = {"svg": counted and counted["svg"], "unit": counted and counted["unit"]}
    return {
        "kind": "stops", "stage": visible(stage, 60), "parameter": parameter, "rule": rule, **drawn,
        "now": now, "stops": shown, "steps": names, "fates": fates, "held": held, "notes": _refused(told),
    }  # fmt: skip


def limit(value: float) -> str:
    """A limit as it is written in a recipe."""
    return f"{value:.10g}"


def _place(value: float, counted: dict[str, Any] | None) -> float | None:
    """Where a limit stands in the histogram, in per cent of its width."""
    if counted is None:
        return None
    low, high = counted["ends"]
    return round(100 * min(max((value - low) / (high - low), 0.0), 1.0), 3)


def _moves(inquiry: Inquiry, which: dict[str, str], values: list[float]) -> tuple[list[Fate], list[list[tuple[str, int]]], list[str]]:
    """The fates that occur; for each limit the samples (uid, number of the fate) that it treats otherwise than the run did; all that were followed."""
    rows = inquiry.look_up(HELD.format(**which))
    fate = {(row["value"], row["uid"]): (row["status"], visible(row["stage"] or "", 60), visible(row["reason"] or "", 60)) for row in rows}
    as_run = {row["uid"]: fate[row["value"], row["uid"]] for row in rows if row["is_run"]}
    words: dict[Fate, int] = {}
    moves = []
    for value in values:
        other = [(uid, fate[value, uid]) for uid, was in as_run.items() if fate[value, uid] != was]
        moves.append([(uid, words.setdefault(word, len(words))) for uid, word in other])
    return list(words), moves, list(as_run)


def _stored(inquiry: Inquiry, stage: str) -> dict[str, list[dict[str, Any]]]:
    """The stops of each parameter of a stage."""
    if not inquiry.has("replays"):
        return {}
    names = [row["parameter"] for row in inquiry.look_up(f"SELECT DISTINCT parameter FROM replays WHERE stage = {quoted(stage)} ORDER BY parameter")]
    return {name: inquiry.look_up(STOPS.format(stage=quoted(stage), parameter=quoted(name))) for name in names}


def not_offered(inquiry: Inquiry, stage: str) -> list[str]:
    """Which limits of a stage no replay can tell, and why."""
    return [note for told in _stored(inquiry, stage).values() for note in _refused(told)]


def _refused(told: list[dict[str, Any]]) -> list[str]:
    """Of the stops that one stage refuses, the words for the one nearest the run's own."""
    by: dict[str, list[dict[str, Any]]] = {}
    for row in told:
        if row["refused"] is not None:
            by.setdefault(row["refused"].split(": ")[0], []).append(row)
    now = next((row["value"] for row in told if row["is_run"]), 0.0)
    notes = []
    for rows in by.values():
        nearest = min(rows, key=lambda row: abs(row["value"] - now))
        at = f" At {limit(nearest['value'])}:" if len(rows) > 1 else ""
        listed = f"{visible(nearest['parameter'], 60)} {', '.join(limit(row['value']) for row in rows)}"
        notes.append(f"Not offered: {listed}.{at} {visible(nearest['refused'], 300)}.")
    return notes
