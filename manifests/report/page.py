"""One self-contained page about a run: every question with its answer, every number with its SELECT, no request to anywhere."""

import base64
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manifests.audit.query import connect
from manifests.audit.show import law_of
from manifests.audit.visible import middle, number, visible
from manifests.publish import publish_bytes
from manifests.report import change, charts, gallery, groups, leaks, overview, proof, threshold, truth
from manifests.report.panel import Inquiry, Panel
from manifests.run import Run, open_run

HERE = Path(__file__).parent
LIMIT = 13_000_000  # bytes of the page
PICTURES = 9_000_000  # of which pictures
ROWS_SHOWN = 60  # of each answer in the fold with its SQL


def report(run: Path | str, *, out: Path | str | None = None) -> Path:
    """Write the report of a run as one HTML file and return its path.

    Shows       what happened, where the samples went, dropped samples beside their witnesses, what another threshold would do, how classes fared, what
                changed per column, the largest groups, suggestions, suspects against the truth, leaks, did it hurt, how it was made
    Guarantee   opens from a folder without network, loads nothing else, runs no text that came from data; smaller than 13 MB: pictures are left out, and
                the page says so, before it grows beyond
    out         where to; default `report.html` in the run
    Cost        about 15 passes over the ledger's columns, at most about 1,000 random reads of pictures
    Errors      `Refusal` [not-a-run], [broken-record]
    """
    opened = open_run(run)
    path = Path(out) if out is not None else opened.path / "report.html"
    budget = PICTURES
    while True:
        with connect(opened) as connection:
            inquiry = Inquiry(opened, connection)
            pictures = gallery.Pictures(opened, budget)
            page = render(inquiry, pictures, panels(inquiry, pictures))
        if len(page) <= LIMIT or budget < 100_000:
            break
        budget //= 2
    publish_bytes(path, page)
    return path


def panels(inquiry: Inquiry, pictures: gallery.Pictures) -> list[Panel]:
    """Every panel that has something to say, in the order of the page. Those with few pictures are made first, so that the gallery gets what is left."""
    made: dict[str, Panel | None] = {}
    with_pictures: list[Callable[[Inquiry, gallery.Pictures], Panel | None]] = [groups.groups, leaks.leaks, groups.suggestions, gallery.gallery]
    for function in with_pictures:
        made[function.__name__] = function(inquiry, pictures)
    plain: list[Callable[[Inquiry], Panel | None]] = [
        overview.happened, overview.funnel, threshold.what_if, overview.classes, change.changed, truth.against_truth, proof.proof, overview.made,
    ]  # fmt: skip
    for question in plain:
        made[question.__name__] = question(inquiry)
    order = ["happened", "funnel", "gallery", "what_if", "classes", "changed", "groups", "suggestions", "against_truth", "leaks", "proof", "made"]
    return [panel for name in order if (panel := made[name]) is not None]


def render(inquiry: Inquiry, pictures: gallery.Pictures, found: list[Panel]) -> bytes:
    """The page as bytes: template, style and script in one, with a policy that allows these two and nothing else."""
    import jinja2
    from markupsafe import Markup

    style, script = ((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"drawn": Markup, "cell": _raw, "value": _value}  # the one place where text becomes markup: our own charts
    environment.filters |= {"middle": middle, "parts": re.compile(r"(?<=[/_-])").split}  # a name is wrapped where a reader would
    name, about = heading(inquiry.run)
    page = environment.get_template("template.html").render(
        name=name, about=about, run=visible(inquiry.run.path.name, 80), ids=f"{'file, ' if inquiry.run.has_paths else ''}key or uid", law=law_of(inquiry.connection),
        version=visible(inquiry.run.info.get("keepset"), 20), panels=found, mark=lambda kind: Markup(charts.mark(kind)), marks=list(charts.MARKS), rows_shown=ROWS_SHOWN,
        style=Markup(style), script=Markup(script), policy=_policy(style, script), data=Markup(island(_data(found, pictures))),
    )  # fmt: skip
    return page.encode("utf-8", "backslashreplace")


def heading(run: Run) -> tuple[str, str]:
    """(what the page is about, what it was made from): the run by its name, or, where it is called `run` as those of `curate audit` are, what was audited."""
    pool, recipe, others = run.info["pool"], run.info.get("recipe_digest"), len(run.sources) - 1
    source = run.sources[0] if run.sources else ""
    folder = os.path.basename(os.path.normpath(source)) if source else ""
    plain = run.path.resolve().name
    name = plain if plain != "run" else folder if folder.strip(".") else run.path.resolve().parent.name
    about = [] if pool.get("name") in (None, "pool", name) else [f"pool {visible(pool['name'], 80)}"]
    where = source or ("" if about else str(pool.get("path") or ""))
    about += [f"from {visible(middle(where, 80))}"] if where not in ("", name) else []
    about += [f"and {others:,} more pool{'' if others == 1 else 's'}"] if others > 0 else []
    return visible(name, 80), " · ".join([*filter(None, [" ".join(about)]), *([f"recipe {visible(recipe, 12)}"] if recipe else [])])


def _data(found: list[Panel], pictures: gallery.Pictures) -> dict[str, Any]:
    """What the script reads: pictures, the gallery's cards and counts, the sliders' steps, and at each stop of a replay the cards that it changes."""
    blocks = [block for panel in found for block in panel.blocks]
    shown = next(block for block in blocks if block["kind"] == "gallery")
    return {
        "pictures": pictures.urls, "sizes": pictures.sizes, "cards": shown["cards"], "counts": shown["counts"], "total": shown["total"], "run": shown["run"],
        "what_if": [{k: block[k] for k in ("steps", "now", "sign", "unit")} for block in blocks if block["kind"] == "what_if"],
        "stops": [_stops(block, {card["u"]: i for i, card in enumerate(shown["cards"])}) for block in blocks if block["kind"] == "stops"],
    }  # fmt: skip


def _stops(block: dict[str, Any], place: dict[str, int]) -> dict[str, Any]:
    """A slider with samples named by the number of their card."""
    stops = [{**stop, "moves": [(place[uid], fate) for uid, fate in stop["moves"] if uid in place]} for stop in block["stops"]]
    held = sum(uid in place for uid in block["held"])
    return {**{name: block[name] for name in ("stage", "parameter", "now", "fates")}, "stops": stops, "held": held}


def island(data: Any) -> str:
    """JSON that can stand inside a script element: no character of it can end the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _policy(style: str, script: str) -> str:
    """Nothing may be loaded; one style and one script may be used, named by their hashes; pictures come as data."""
    hashed = ["'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'" for text in (style, script)]
    return f"default-src 'none'; img-src data:; style-src {hashed[0]}; script-src {hashed[1]}; base-uri 'none'; form-action 'none'"


def _raw(value: Any) -> str:
    """A value of an answer as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else number(value)


def _value(value: Any) -> str:
    """A value of an answer as JSON, for whoever checks it; too long or not JSON: nothing."""
    if value is None or isinstance(value, bool | int | float | str):
        text = json.dumps(value)
        return text if len(text) <= 300 else ""
    return ""
