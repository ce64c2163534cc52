"""Pairs on the page, from whole builds: copies with their sentence and both parts laid alike, leaks by evaluation pool, and a pool that is the test."""

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from skimage import data

import curate
from manifests.audit.explain import explain, text
from manifests.audit.query import query
from manifests.report.page import report
from manifests.run import open_run
from tests.curate.dedup.test_copies import edited
from tests.manifests.tiny_run import rewrite, tiny_run
from tests.pools import jpeg, png
from tests.small_pool import write_pool

PHOTOS = [
    np.ascontiguousarray(getattr(data, name)()[y : y + 200, x : x + 240, :3])
    for name in ("astronaut", "chelsea", "coffee")
    for y, x in ((0, 0), (90, 150))
]
CROPPED = (slice(15, 180), slice(20, 215))  # of 200 x 240
WAYS = {  # how a copy is turned and mirrored after it was cropped
    "mirror": lambda p: p[:, ::-1],
    "left": np.rot90,
    "right": lambda p: np.rot90(p, 3),
    "both": lambda p: np.rot90(p[:, ::-1]),
}
RECIPE = """format: 1
stages:
  - measure.quality:
  - measure.exact_hash:
  - measure.perceptual_hash:
  - leakage.images: {{against: [{tests}], min_copied: 0.4, loose_distance: 64}}
  - dedup.copies: {{{copies}, prefer: [num_pixels], max_distance: 64}}
shards: off
"""


def on_its_side(photo: np.ndarray) -> bytes:
    """A file whose pixels are stored a quarter turn to the right, and whose EXIF says so."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(np.rot90(photo, 3)).save(out, "JPEG", exif=exif, quality=95)
    return out.getvalue()


def rows(pictures: dict[str, bytes]) -> list[dict]:
    body = {"label": 0, "caption": "", "group": "g", "quality_vote": 0.5, "truth_copy_of": None}
    return [{"key": key, "image": picture, **body} for key, picture in pictures.items()]


def built(folder: Path, pool: dict[str, bytes], tests: dict[str, bytes], copies: str) -> Path:
    write_pool(folder / "pool", rows(pool), name="mine")
    write_pool(folder / "tests", rows(tests), name="exam")
    (folder / "recipe.yaml").write_text(RECIPE.format(tests=folder / "tests", copies=copies))
    curate.build(folder / "recipe.yaml", pool=str(folder / "pool"), out=folder / "run", quiet=True, device="cpu")
    return folder / "run"


@pytest.fixture(scope="module", params=["as: my-copies", "min_score: 0.4"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, copies of the first turned in every way, a copy in a frame, one of a picture that EXIF turns; two test pictures of three are hit."""
    pool = {f"photo{i}": png(photo) for i, photo in enumerate(PHOTOS[:3])}
    pool |= {way: png(turned(PHOTOS[0][CROPPED])) for way, turned in WAYS.items()}
    pool |= {"frame": edited(PHOTOS[1], "frame"), "side": on_its_side(PHOTOS[3]), "upright": png(PHOTOS[3][CROPPED])}
    pool |= {"leak-a": png(PHOTOS[4]), "leak-b": jpeg(PHOTOS[4], 60), "leak-c": jpeg(PHOTOS[5], 50), "leak-d": jpeg(PHOTOS[5], 15)}
    pool |= {"leak-e": edited(PHOTOS[4], "box"), "leak-f": edited(PHOTOS[4], "crop")}
    tests = {"t-same": png(PHOTOS[4]), "t-near": png(PHOTOS[5]), "t-free": png(np.ascontiguousarray(data.rocket()[:200, :240]))}
    return built(tmp_path_factory.mktemp("pairs"), pool, tests, request.param)


def island(run: Path) -> dict:
    page = report(run, out=run.parent / "report.html").read_text()
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])  # type: ignore[index]


def picture(shown: dict, number: int) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(shown["pictures"][number].split(",")[1]))).convert("RGB")).astype(float)


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_a_copy_is_shown_with_its_sentence_and_laid_alike(run: Path) -> None:
    shown = island(run)
    cards = {card["k"]: card for card in shown["cards"]}
    copies = {key for key, card in cards.items() if card["r"] == "copy"}
    assert copies == {*WAYS, "photo1", "upright"}, "a frame has more pixels, so it is the one to keep"
    for key in copies:
        own, its = (picture(shown, number) for number in cards[key]["al"])
        assert own.shape == its.shape and max(own.shape) <= 128
        assert likeness(own, its) > 0.97, key
        for other in (own[:, ::-1], own[::-1], own[::-1, ::-1]):
            assert likeness(other, its) < 0.8, key
    assert cards["mirror"]["ch"].startswith("mirrored, cropped to 6")
    assert cards["left"]["ch"].startswith("turned 90° to the left, cropped to 6")
    assert "ch" not in cards["photo0"] and "al" not in cards["leak-a"]


def test_a_leak_as_a_verified_copy_is_laid_alike_beside_its_words(run: Path) -> None:
    shown = island(run)
    cards = {card["k"]: card for card in shown["cards"]}
    assert cards["leak-f"]["ch"].startswith("cropped to 6") and "% covered" in cards["leak-e"]["ch"]
    page = (run.parent / "report.html").read_text()
    panel = page[page.index('<section id="leaks"') :]
    panel = panel[: panel.index("</section>")]
    laid = re.findall(r"<h3>copied_leak, score [\d.]+: ([^<]*)</h3>(.*?)</div></div>", panel, re.S)
    numbers = {words: [int(n) for n in re.findall(r'data-t="(\d+)"', figures)] for words, figures in laid}
    assert set(numbers) == {cards["leak-e"]["ch"], cards["leak-f"]["ch"]}
    assert all(len(four) == 4 for four in numbers.values()), "both whole, and both laid alike"
    for own, its in (numbers[cards["leak-f"]["ch"]][2:], cards["leak-f"]["al"]):
        assert picture(shown, own).shape == picture(shown, its).shape
        assert likeness(picture(shown, own), picture(shown, its)) > 0.97
    assert "what both show" in panel and "the same, in exam" in panel


def test_the_parts_stand_as_the_witness_is_seen(run: Path) -> None:
    shown = island(run)
    cards = {card["k"]: card for card in shown["cards"]}
    for key, photo in (("left", PHOTOS[0]), ("upright", PHOTOS[3])):  # the witness of the second is stored on its side
        _, its = (picture(shown, number) for number in cards[key]["al"])
        wanted = np.asarray(Image.fromarray(photo[CROPPED]).resize((its.shape[1], its.shape[0]))).astype(float)
        assert its.shape[1] > its.shape[0] and likeness(its, wanted) > 0.95, key


def test_explain_says_it_in_the_line(run: Path) -> None:
    page = text(explain(run, "mirror"))
    assert re.search(r"dropped: copy · mirrored, cropped to 6\d % · score [\d.]+ > limit 0.4", page)
    assert page.count("mirrored") == 1
    assert "change" not in explain(run, "photo0")["stages"][-1]


def test_without_edges_the_sentence_stays(run: Path) -> None:
    opened = open_run(run)
    stage = next(s.id for s in opened.stages if s.name == "dedup.copies")
    files = {file: file.read_bytes() for file in opened.edges(stage)}
    try:
        for file in files:
            file.unlink()
        cards = {card["k"]: card for card in island(run)["cards"]}
    finally:
        for file, body in files.items():
            file.write_bytes(body)
    assert cards["mirror"]["ch"].startswith("mirrored") and "al" not in cards["mirror"]


def test_spent_budgets_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manifests.report import page

    whole = island(run)
    monkeypatch.setattr(page, "PICTURES", sum(map(len, whole["pictures"])) - 10_000)
    tight = island(run)
    assert 0 < sum("al" in card for card in tight["cards"]) < sum("al" in card for card in whole["cards"])
    assert all("t" in card and card["t"] is not None for card in tight["cards"]), "what everyone has comes first"


def test_leaks_name_pool_test_and_pair(run: Path) -> None:
    page = report(run, out=run.parent / "report.html").read_text()
    panel = page[page.index('<section id="leaks"') :]
    panel = re.sub(r"<[^>]*>", " ", panel[: panel.index("</section>")])
    panel = re.sub(r"\s+", " ", panel)
    assert "6 samples show a test picture and were dropped. Test pictures hit: 2 of the 3 in exam." in panel
    assert "exam 3 2 66.7 % 6" in panel
    for way, samples, tests in (("exact_leak", 1, 1), ("near_leak", 3, 2), ("copied_leak", 2, 1)):
        assert re.search(rf"exam leakage.images {way} {samples} {tests}", panel), way
    scores = {way: [float(n) for n in re.findall(rf"{way}, score ([\d.]+)", panel)] for way in ("exact_leak", "near_leak", "copied_leak")}
    assert scores["exact_leak"] == [0] and len(scores["near_leak"]) == 3 and len(scores["copied_leak"]) == 2
    assert scores["near_leak"] == sorted(set(scores["near_leak"])) and scores["copied_leak"] == sorted(set(scores["copied_leak"]), reverse=True)
    assert re.search(r"t-same exam 4 leak-a exact_leak 0 12", panel), "the surest of four"
    assert re.search(r"t-near exam 2 leak-c near_leak [\d.]+ 12", panel), "the closest of two"
    assert "t-free" not in panel
    assert "made of test pictures" not in panel


def test_a_pool_that_is_the_test_says_so(tmp_path: Path) -> None:
    pictures = {f"photo{i}": png(photo) for i, photo in enumerate(PHOTOS)} | {"broken": png(PHOTOS[0])[:200]}
    with pytest.warns(UserWarning, match="nothing is left to train on"):
        run = built(tmp_path, pictures, pictures, "min_score: 0.4")
    assert query(run, "SELECT count(*) AS n FROM ledger WHERE status = 'kept'").to_pylist() == [{"n": 0}]
    page = report(run).read_text()
    assert "Every sample was dropped as a leak, all 6 that were compared: this pool is made of test pictures" in page
    assert "Test pictures hit: 6 of the 7 in exam." in page


def test_a_source_that_is_the_test_says_so(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)

    def archive_leaks(table: pa.Table) -> pa.Table:
        of_archive = [shard.startswith("archive/") for shard in table["shard"].to_pylist()]
        hit = [a and word != "quarantined" for a, word in zip(of_archive, table["status"].to_pylist(), strict=True)]
        for name, value in (("status", "dropped"), ("drop_stage", "leakage.images"), ("drop_reason", "near"), ("witness_pool", "tests")):
            at = table.column_names.index(name)
            values = pa.array([value if h else v for h, v in zip(hit, table[name].to_pylist(), strict=True)], pa.string())
            table = table.set_column(at, name, values.dictionary_encode() if pa.types.is_dictionary(table.schema.field(name).type) else values)
        return table

    assert "made of test pictures" not in report(run).read_text()
    for file in run.glob("ledger/*.parquet"):
        rewrite(file, archive_leaks)
    seen = query(run, "SELECT count(*) AS n FROM ledger WHERE shard LIKE 'archive/%' AND status <> 'quarantined'").to_pylist()[0]["n"]
    page = report(run).read_text()
    assert f"Every sample of source archive was dropped as a leak, all {seen}: it is made of test pictures." in page
    assert "source web" not in page and "nothing of it is left" not in page
