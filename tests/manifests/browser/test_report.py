"""The report in a real browser: it opens from a file without a network, says nothing on the console, fits a phone, and counts as DuckDB does."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.audit.query import query
from manifests.report.page import report
from tests.manifests.report.test_pairs import CROPPED, PHOTOS, built
from tests.pools import png

pytestmark = pytest.mark.browser

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
AXE = Path(__file__).parents[2] / ".cache" / "axe.min.js"
VARIANTS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def browser() -> Iterator:  # type: ignore[type-arg]
    if CHROMIUM is None:
        pytest.skip("NO CHROMIUM: the report is not tested in a browser; run tests/manifests/browser/setup.sh")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def plain(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(run, out=tmp_path_factory.mktemp("plain") / "report.html")


@pytest.fixture(scope="module")
def hostile(hostile_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(hostile_run, out=tmp_path_factory.mktemp("hostile") / "report.html")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs, one of them again: cropped and mirrored."""
    pool = {"photo0": png(PHOTOS[0]), "photo1": png(PHOTOS[1]), "mirror": png(PHOTOS[0][CROPPED][:, ::-1])}
    return report(built(tmp_path_factory.mktemp("copies"), pool, {"t": png(PHOTOS[2])}, "min_score: 0.4"))


class Watched:
    """A page of the report with everything that it said and asked for."""

    def __init__(self, browser, file: Path, width: int = 1280, scheme: str = "light", bypass: bool = False) -> None:  # type: ignore[no-untyped-def]
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, bypass_csp=bypass)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.on("request", lambda request: None if request.url.startswith("data:") else self.asked.append(request.url))
        self.page.goto(file.as_uri())

    def status(self) -> str:
        return self.page.inner_text("#status")

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def opened(browser, plain: Path) -> Iterator[Watched]:  # type: ignore[no-untyped-def]
    watched = Watched(browser, plain)
    yield watched
    watched.close()


@pytest.mark.parametrize("kind", ["plain", "hostile"])
@pytest.mark.parametrize(("width", "scheme"), VARIANTS)
def test_quiet_alone_and_within_the_screen(browser, request: pytest.FixtureRequest, kind: str, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    file: Path = request.getfixturevalue(kind)
    watched = Watched(browser, file, width, scheme)
    page = watched.page
    page.evaluate("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert watched.said == [] and watched.asked == [file.as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("window.__pwn === undefined && document.querySelectorAll('#cards .card').length > 0")
    assert page.evaluate("[...document.images].every(i => i.src.startsWith('data:image/webp') && i.alt)")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
    watched.close()


@pytest.mark.parametrize(("width", "scheme"), VARIANTS)
def test_axe_finds_nothing(browser, plain: Path, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    if not AXE.exists():
        pytest.skip("NO AXE-CORE: accessibility is not tested; run tests/manifests/browser/setup.sh")
    watched = Watched(browser, plain, width, scheme, bypass=True)
    folds = "section > details, .whatif details, .card:first-child details, .query:first-of-type"
    watched.page.evaluate("what => document.querySelectorAll(what).forEach(e => { e.open = true; })", folds)
    watched.page.evaluate(AXE.read_text())
    found = watched.page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    watched.close()
    assert [(v["id"], v["nodes"][0]["html"][:160]) for v in found] == []


def test_filters_count_as_duckdb_does(opened: Watched, run: Path) -> None:
    from playwright.sync_api import expect

    page = opened.page
    rows = query(
        run, "SELECT status, drop_stage, drop_reason, label_name, split_part(shard::VARCHAR, '/', 1) AS source FROM ledger", limit=None
    ).to_pylist()
    fates = page.eval_on_selector_all("#f-fate option", "all => all.map(o => o.value)")
    classes = page.eval_on_selector_all("#f-class option", "all => all.map(o => o.value)")
    sources = page.eval_on_selector_all("#f-source option", "all => all.map(o => o.value)")
    assert len(fates) == 8 and len(classes) == 7 and len(sources) == 3
    for i, fate in enumerate(fates):
        for name in classes if i < 3 else ["", classes[i % 7]]:
            source = sources[(i + len(name)) % 3]
            for box, value in (("#f-fate", fate), ("#f-class", name), ("#f-source", source)):
                page.select_option(box, value)
            wanted = [r for r in rows if not fate or f"{r['status']}|{r['drop_stage'] or ''}|{r['drop_reason'] or ''}" == fate]
            wanted = [r for r in wanted if name in ("", r["label_name"]) and source in ("", r["source"])]
            shown = [int(n) for n in re.findall(r"\d+", opened.status())]
            assert shown == [len(wanted), len(wanted)], (fate, name, source, opened.status())
            assert page.locator(".card").count() == min(24, len(wanted))
    page.click("button[type=reset]")
    expect(page.locator("#status")).to_contain_text(f"{len(rows)} samples")


def test_search_by_key_and_uid_opens_the_card(opened: Watched, run: Path) -> None:
    page = opened.page
    row = query(run, "SELECT uid, key, score FROM ledger WHERE drop_reason = 'near_duplicate' ORDER BY uid LIMIT 1").to_pylist()[0]
    for words in (row["key"], row["uid"], row["uid"][:9]):
        page.fill("#find", words)
        page.press("#find", "Enter")
        assert "match" in opened.status()
        assert page.evaluate("document.activeElement.classList.contains('card')")
        text = page.evaluate("document.activeElement.innerText")
        assert row["key"] in text and "near_duplicate" in text and "limit 6" in text
    page.fill("#find", "no such thing")
    assert "manifests explain run no such thing" in opened.status() and page.locator(".card").count() == 0


@pytest.mark.parametrize(("width", "scheme"), VARIANTS)
def test_search_finds_a_file_by_its_path(browser, filed: Path, tmp_path: Path, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    watched = Watched(browser, report(filed, out=tmp_path / "report.html"), width, scheme)
    page = watched.page
    rows = query(filed, "SELECT uid, key, path FROM ledger WHERE path IS NOT NULL ORDER BY length(path) DESC, uid", limit=None).to_pylist()
    odd = next(row for row in rows if "<b>" in row["path"])
    for row in (rows[0], odd, rows[-1]):
        for words in (row["path"], row["path"].upper(), f"/home/somebody/photographs/{row['path']}", row["key"]):
            page.fill("#find", words)
            card = page.locator(".card", has_text=row["uid"])
            assert card.count() == 1, (words, watched.status())
        shown = card.locator(".side .key").first.inner_text()
        assert shown == row["path"] if len(row["path"]) <= 120 else len(shown) == 120 and row["path"].endswith(shown.split("…")[1])
        assert card.locator(".side .key").first.evaluate("e => e.scrollWidth <= e.clientWidth")
        card.locator("summary").click()
        assert row["key"] in card.inner_text()
    page.fill("#find", "")
    assert watched.said == [] and page.evaluate("document.documentElement.scrollWidth") <= width
    watched.close()


def test_order_and_pages(opened: Watched) -> None:
    page = opened.page
    page.select_option("#f-fate", "dropped|labels.neighbours|label_disagrees")
    page.select_option("#f-order", "high")
    scores = [float(s.split()[1]) for s in page.eval_on_selector_all(".score", "all => all.map(e => e.textContent)")]
    assert scores == sorted(scores, reverse=True) and len(scores) > 5
    page.select_option("#f-fate", "")
    seen: list[str] = []
    while True:
        seen += page.eval_on_selector_all(".card .uid", "all => all.map(e => e.textContent)")
        if page.is_disabled("#next"):
            break
        page.click("#next")
    assert len(seen) == len(set(seen)) == int(re.findall(r"\d+", opened.status())[0])


def test_keyboard(opened: Watched) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "find"
    page.keyboard.type("j")
    assert page.input_value("#find") == "j", "keys are letters while typing"
    page.fill("#find", "")
    page.keyboard.press("Escape")
    at = "[...document.querySelectorAll('.card')].indexOf(document.activeElement)"
    for key, wanted in (("j", 0), ("j", 1), ("ArrowRight", 2), ("k", 1), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        assert page.evaluate(at) == wanted
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.querySelector('details').open")
    page.keyboard.press("n")
    assert page.inner_text("#page").startswith("page 2")
    page.keyboard.press("?")
    assert page.evaluate("document.querySelector('.keys').open")


def test_sliders_say_what_a_limit_would_take(opened: Watched, run: Path) -> None:
    page = opened.page
    box = page.locator(".whatif", has_text="labels.neighbours drops")
    slider = box.locator("input")
    now = int(slider.input_value())
    assert "as many as in this run" in box.locator(".said").inner_text()
    slider.evaluate("(e, v) => { e.value = v; e.dispatchEvent(new Event('input')); }", str(now + 5))
    said = box.locator(".said").inner_text()
    limit, gone, more = (float(n) for n in re.match(r"Limit ([\d.]+): (\d+) samples .*?, (\d+) more", said).groups())  # type: ignore[union-attr]
    sign = "<=" if "at or below" in said else "<"
    counted = query(run, f"SELECT count(*) FILTER (score {sign} {limit}) AS n, count(*) FILTER (NOT keep) AS was FROM labels_neighbours").to_pylist()[
        0
    ]
    assert gone == counted["n"] and more == counted["n"] - counted["was"]


def test_it_paints(opened: Watched) -> None:
    paint = "performance.getEntriesByName('first-contentful-paint')"
    opened.page.evaluate(f"new Promise(done => {{ const look = () => {paint}.length ? done() : setTimeout(look, 20); look(); }})")
    drawn = opened.page.evaluate(f"[{paint}[0].startTime, performance.getEntriesByType('navigation')[0].domInteractive]")
    assert drawn[0] >= 0 and drawn[1] > 0


def test_the_print_view_shows_no_controls(opened: Watched) -> None:
    opened.page.emulate_media(media="print")
    for box in ("nav", ".filters", ".pager", ".find"):
        assert not opened.page.locator(box).first.is_visible()


@pytest.mark.parametrize(("width", "scheme"), VARIANTS)
def test_copies_are_laid_alike(browser, copies: Path, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]
    watched = Watched(browser, copies, width, scheme)
    page = watched.page
    page.fill("#find", "mirror")
    card = page.locator(".card").first
    assert card.locator(".change").inner_text().startswith("mirrored, cropped to 6")
    sizes = card.locator(".alike img").evaluate_all("all => all.map(i => [i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight])")
    assert len(sizes) == 2 and sizes[0] == sizes[1] and min(sizes[0]) > 64
    assert all("key mirror" in alt or "key photo0" in alt for alt in card.locator(".alike img").evaluate_all("all => all.map(i => i.alt)"))
    assert watched.said == [] and page.evaluate("document.documentElement.scrollWidth") <= width
    page.fill("#find", "photo1")
    assert page.locator(".card .alike, .card .change").count() == 0
    watched.close()
