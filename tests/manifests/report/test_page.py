"""The page as a file: every number with its query, nothing from outside, nothing that runs, small."""

import base64
import hashlib
import html
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.audit.query import connect, select
from manifests.report import gallery, page
from manifests.report.page import LIMIT, island, report
from manifests.run import open_run
from tests.manifests.tiny_run import rewrite, tiny_run

REPORT = Path(page.__file__).parent


class Folds(HTMLParser):
    """The queries of a page and the rows printed under them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.queries: dict[str, tuple[str, int, list[list[str]]]] = {}
        self._name, self._sql, self._rows, self._count = "", "", None, 0
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if "id" in given:
            self.ids.append(given["id"] or "")
        if "data-query" in given:
            self._name, self._sql, self._rows = given["data-query"] or "", "", None
        elif "data-rows" in given:
            self._rows, self._count = [], int(given["data-rows"] or 0)
        elif tag == "tr" and self._rows is not None:
            self._rows.append([])
        elif "data-v" in given and self._rows:
            self._rows[-1].append(given["data-v"] or "")

    def handle_data(self, data: str) -> None:
        if self._name and self._rows is None:
            self._sql += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "table" and self._rows is not None:
            assert self._name not in self.queries, f"{self._name} stands twice"
            self.queries[self._name] = (self._sql.strip(), self._count, [row for row in self._rows if row])
            self._name, self._rows = "", None


@pytest.fixture(scope="module")
def text(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(run, out=tmp_path_factory.mktemp("report") / "report.html").read_text()


def test_every_query_gives_its_numbers_again(run: Path, text: str) -> None:
    queries = Folds(text).queries
    assert len(queries) > 45
    with connect(open_run(run)) as connection:
        for name, (sql, count, rows) in queries.items():
            again = select(connection, sql).to_pylist()
            assert len(again) == count, name
            for wanted, shown in zip(again, rows, strict=False):
                for value, cell in zip(wanted.values(), shown, strict=True):
                    if cell:
                        assert json.loads(html.unescape(cell)) == value, (name, sql)


def test_the_numbers_that_are_read_first_are_the_ledgers(run: Path, text: str) -> None:
    status = [row["status"] for row in open_run(run).ledger(["status"]).to_pylist()]
    for word in ("kept", "dropped", "quarantined"):
        assert re.search(rf"{word}</dt><dd>{status.count(word):,}\b", text), word
    assert f"samples in</dt><dd>{len(status):,}" in text


def test_all_questions_are_there_once(text: str) -> None:
    ids = Folds(text).ids
    assert len(ids) == len(set(ids))
    for question in ("happened", "funnel", "gallery", "what_if", "classes", "changed", "groups", "suggestions", "truth", "leaks", "proof", "made"):
        assert question in ids


def test_the_policy_names_what_is_there_and_nothing_else(text: str) -> None:
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])
    style, script = re.search(r"<style>(.*?)</style>", text, re.S)[1], re.search(r"<script>(.*?)</script>", text, re.S)[1]
    for body, kind in ((style, "style-src"), (script, "script-src")):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "http" not in policy
    assert " style=" not in text and not re.search(r'(src|href)="(?!#|data:)', text)


def test_two_reports_are_the_same_bytes(run: Path, text: str, tmp_path: Path) -> None:
    assert report(run, out=tmp_path / "again.html").read_text() == text


def test_a_page_stays_within_its_budget(run: Path, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(text.encode()) < LIMIT
    monkeypatch.setattr(page, "PICTURES", 20_000)
    small = report(run, out=tmp_path / "small.html").read_text()
    assert len(small) < len(text) and "pictures were left out to keep this page small" in small
    monkeypatch.setattr(page, "PICTURES", 300_000)
    monkeypatch.setattr(page, "LIMIT", 400_000)
    assert len(report(run, out=tmp_path / "tight.html").read_bytes()) <= 400_000


def test_it_lies_in_the_run_by_default(copied) -> None:
    run = copied()
    assert report(run) == run / "report.html"


def test_hostile_text_stays_text(hostile_run: Path, tmp_path: Path) -> None:
    text = report(hostile_run, out=tmp_path / "hostile.html").read_text()
    assert text.count("<script") == 2 and text.count("</script>") == 2, "the data and our own script; every other one is escaped"
    assert "<img src=x" not in text and "<!--<script" not in text
    assert not [c for c in text if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 or 0x2028 <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069]
    json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])


def test_cards_are_called_by_their_files(filed: Path, run: Path, text: str, tmp_path: Path) -> None:
    """Dropped and kept ones, witnesses of the pool and of the tests, groups and suggestions; the key stands in the life; a long path keeps its end."""
    page = report(filed, out=tmp_path / "filed.html").read_text()
    path = {row["uid"]: row["path"] for row in open_run(filed).ledger(["uid", "path"]).to_pylist()}
    cards = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])["cards"]
    for card in cards:
        assert card.get("p") == path[card["u"]] and card["k"]
        if "w" in card and card["w"]["st"] == "evaluation":
            assert card["w"]["p"] == f"web/{card['c']}/{card['w']['k']}.jpg"
        elif "w" in card:
            assert card["w"].get("p") == path[card["w"]["u"]]
    assert {card["w"]["st"] for card in cards if "w" in card} >= {"kept", "evaluation"} and any("p" not in card for card in cards)
    named = [html.unescape(name.replace("<wbr>", "")) for name in re.findall(r'<span class="key">(.*?)</span>', page)]
    assert sum(name.startswith("web/") for name in named) > 20 and max(map(len, named)) <= 60
    assert "\\xe9 <b>" not in page and 'placeholder="file, key or uid' in page
    assert 'placeholder="key or uid' in text and '"p":' not in text


def test_the_top_says_what_it_is_about(filed: Path, run: Path, tmp_path: Path) -> None:
    """A run of an audit is called `run` as all of them are: then it is the folder that was audited. A run with a name keeps it."""

    def top(folder: Path, **pool: object) -> tuple[str, str]:
        record = json.loads((folder / "run.json").read_text())
        for generation in record.get("generations", []):
            generation["pools"] = [{**generation["pools"][0], **pool}]
        record["pool"] |= {name: value for name, value in pool.items() if name != "source"}
        (folder / "run.json").write_text(json.dumps(record))
        found = page.heading(open_run(folder))
        assert re.search(r"<h1>(.*?) <small>", report(folder, out=tmp_path / "page.html").read_text())[1] == html.escape(found[0])
        return found[0], found[1].split(" · ")[0]

    copy = Path(shutil.copytree(filed, tmp_path / "run"))
    assert top(copy, name="pool", source="/home/u/holiday <2026>") == ("holiday <2026>", "from /home/u/holiday <2026>")
    assert top(copy, name="pool", source="holiday")[0] == "holiday" and "pool" not in page.heading(open_run(copy))[1]
    assert top(copy, name="birds", source="/home/u/holiday") == ("holiday", "pool birds from /home/u/holiday")
    for nothing in (".", "..", None):
        assert top(copy, name="pool", source=nothing)[0] == tmp_path.name
    assert top(Path(shutil.move(copy, tmp_path / "messy")), name="birds", source="/home/u/holiday") == ("messy", "pool birds from /home/u/holiday")
    assert top(Path(shutil.copytree(run, tmp_path / "old" / "run"))) == ("old", "pool tiny")


def test_a_run_that_looks_for_no_crops_says_who_does(run: Path, text: str, copied) -> None:
    assert text.count("dedup.copies finds them") == 1 and text.index('id="groups"') < text.index("dedup.copies finds them")
    copy = copied()
    record = json.loads((copy / "run.json").read_text())
    next(stage for stage in record["stages"] if stage["id"] == "dedup.perceptual")["name"] = "dedup.copies"
    (copy / "run.json").write_text(json.dumps(record))
    assert "dedup.copies finds them" not in report(copy).read_text()


def test_an_island_cannot_be_left() -> None:
    text = "</script><!--<script>&\u2028\u2029 ]]>"
    assert not set("<>&\u2028\u2029") & set(island({text: text})) and json.loads(island([text])) == [text]


def test_no_other_way_to_markup() -> None:
    for file in REPORT.iterdir():
        if file.suffix in (".py", ".js", ".html"):
            body = file.read_text()
            for word in ("|safe", "innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
                assert word not in body, (file.name, word)
            assert file.name == "page.py" or "Markup" not in body, file.name


def emptied(run: Path) -> Path:
    for file in [*run.glob("parts/**/*.parquet"), *run.glob("ledger/*.parquet"), *run.glob("edges/**/*.parquet")]:
        rewrite(file, lambda t: t.slice(0, 0))
    return run


def all_kept(run: Path) -> Path:
    def kept(table):  # type: ignore[no-untyped-def]
        return table.filter([word == "kept" for word in table["status"].to_pylist()])

    for file in run.glob("ledger/*.parquet"):
        rewrite(file, kept)
    for file in run.glob("parts/*/*/*.parquet"):
        file.unlink()
    return run


def none_kept(run: Path) -> Path:
    for file in run.glob("ledger/*.parquet"):
        rewrite(file, lambda t: t.set_column(t.column_names.index("status"), "status", [["dropped"] * t.num_rows]))
    return run


def odd_numbers_and_witnesses(run: Path) -> Path:
    """Scores that are no numbers, witnesses that are missing, themselves, or no uid at all, a uid twice."""

    def odd(table: pa.Table) -> pa.Table:
        n = table.num_rows
        uid = table["uid"].to_pylist()
        columns = {
            "score": pa.array([(float("nan"), float("inf"), -0.0, 1e300)[i % 4] for i in range(n)]),
            "threshold": pa.array([(1.0, float("-inf"), float("nan"))[i % 3] for i in range(n)]),
            "witness": pa.array([("f" * 32, uid[i], "'; DROP TABLE ledger;--", None)[i % 4] for i in range(n)], pa.string()),
            "uid": pa.array([uid[0], uid[0], *uid[2:]]),
        }
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, values)
        return table

    for file in run.glob("ledger/*.parquet"):
        rewrite(file, odd)
    return run


@pytest.mark.parametrize("change", [emptied, all_kept, none_kept, odd_numbers_and_witnesses])
def test_odd_runs_have_a_page(copied, change) -> None:
    assert "<h1>" in report(change(copied())).read_text()


def test_bare_runs_have_a_page(tmp_path: Path) -> None:
    """Neither decisions nor evidence nor truth nor evaluation pools."""
    text = report(tiny_run(tmp_path, per_class=2, decisions=False, evidence=False, evaluations=False, truth=False)).read_text()
    assert "Not yet known" in text and 'id="truth"' not in text and 'id="leaks"' not in text and 'id="suggestions"' in text


def test_a_lost_pool_is_said_on_the_tiles(copied) -> None:
    run = copied()
    info = json.loads((run / "run.json").read_text())
    info["pool"]["path"] = str(run / "nowhere")
    (run / "run.json").write_text(json.dumps(info))
    assert "the pool cannot be read" in report(run).read_text()


def test_pictures_are_small_and_upright() -> None:
    import io

    import numpy as np
    from PIL import Image

    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((100, 300, 3), np.uint8)).save(out, "JPEG", exif=exif)
    assert gallery.small_copy(out.getvalue()).shape == (128, 43, 3)
