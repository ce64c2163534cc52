"""The slider of replays in a real browser: by keyboard, at two widths, in light and dark, and what the cards then say."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from manifests.report.page import report
from tests.manifests.browser.test_report import AXE, VARIANTS, Watched, browser  # noqa: F401  (a fixture)
from tests.manifests.report.test_stops import island, swept  # noqa: F401  (a fixture)

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def page_file(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    return report(swept, out=tmp_path_factory.mktemp("stops") / "report.html")


@pytest.fixture
def opened(browser, page_file: Path) -> Iterator[Watched]:  # type: ignore[no-untyped-def]  # noqa: F811
    watched = Watched(browser, page_file)
    yield watched
    watched.close()


@pytest.mark.parametrize(("width", "scheme"), VARIANTS)
def test_by_keyboard_every_stop_says_its_replay(browser, page_file: Path, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    watched = Watched(browser, page_file, width, scheme)
    page = watched.page
    shown = island(page_file.read_text())
    for number, slider in enumerate(shown["stops"]):
        box = page.locator("[data-s]").nth(number)
        control, run = box.locator("input"), slider["stops"][slider["now"]]
        assert "as in this run" in box.locator(".said").inner_text() and box.locator(".thumb").count() == 0
        control.focus()
        page.keyboard.press("Home")
        for at, stop in enumerate(slider["stops"]):
            if at:
                page.keyboard.press("ArrowRight")
            said = box.locator(".said").inner_text()
            assert control.get_attribute("aria-valuetext") == f"{slider['parameter']} {stop['limit']}"
            assert said.startswith(f"{slider['parameter']} {stop['limit']}") and f"{stop['kept']} kept" in said
            assert at == slider["now"] or f"{stop['changed']} sample" in said
            rows = box.locator(".beside tbody tr").evaluate_all("all => all.map(r => [...r.querySelectorAll('td')].map(c => c.textContent))")
            signed = [
                f"+{d}" if d > 0 else f"−{-d}" if d else "±0" for d in (a[1] - b[1] for a, b in zip(stop["funnel"], run["funnel"], strict=True))
            ]
            wanted = [[str(b[1]), str(a[1]), d, str(b[2]), str(a[2])] for a, b, d in zip(stop["funnel"], run["funnel"], signed, strict=True)]
            assert rows == wanted, (slider["stage"], stop["limit"])
            assert box.locator(".thumb").count() == min(24, len(stop["moves"]))
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate("document.activeElement.type") == "range", "the slider keeps the focus"
    assert watched.said == [] and watched.asked == [page_file.as_uri()]
    watched.close()


def test_the_cards_say_what_would_become_of_them(opened: Watched, page_file: Path) -> None:
    page, shown = opened.page, island(page_file.read_text())
    slider = shown["stops"][1]
    box = page.locator("[data-s]").nth(1)
    assert page.locator(".would").count() == 0
    box.locator("input").focus()
    page.keyboard.press("Home")
    moves = slider["stops"][0]["moves"]
    text = box.locator(".thumb").all_inner_texts()
    for (card, fate), said in zip(moves, text, strict=False):
        status, stage, reason = slider["fates"][fate]
        assert ("kept" if status == "kept" else f"{status} by {stage}: {reason}") in " ".join(said.split()) and shown["cards"][card]["k"] in said
    box.locator("button").click()
    assert page.evaluate("document.activeElement.id") == "h-gallery"
    name = f"{slider['parameter']} {slider['stops'][0]['limit']} of {slider['stage']}"
    assert opened.status() == f"{len(moves)} cards of samples that {name} would change"
    assert page.locator(".card").count() == page.locator(".would").count() == min(24, len(moves))
    assert all(line.strip().startswith(f"at {name}: would be ") for line in page.locator(".would").all_inner_texts())
    page.click("button[type=reset]")
    page.locator("#status", has_text="62 samples").wait_for()
    box.locator("input").focus()
    page.keyboard.press("End")
    for _ in range(len(slider["stops"]) - 1 - slider["now"]):
        page.keyboard.press("ArrowLeft")
    assert page.locator(".would").count() == 0, "at the run's own limit the cards are as they were"


@pytest.mark.parametrize(("width", "scheme"), VARIANTS)
def test_axe_finds_nothing(browser, page_file: Path, width: int, scheme: str) -> None:  # type: ignore[no-untyped-def]  # noqa: F811
    if not AXE.exists():
        pytest.skip("NO AXE-CORE: accessibility is not tested; run tests/manifests/browser/setup.sh")
    watched = Watched(browser, page_file, width, scheme, bypass=True)
    watched.page.evaluate("document.querySelectorAll('.whatif details').forEach(e => { e.open = true; })")
    watched.page.locator("[data-s] input").nth(1).focus()
    watched.page.keyboard.press("Home")
    watched.page.evaluate(AXE.read_text())
    found = watched.page.evaluate("axe.run(document.querySelector('#what_if'), {resultTypes: ['violations']})")["violations"]
    watched.close()
    assert [(v["id"], v["nodes"][0]["html"][:160]) for v in found] == []
