"""Sliders whose stops are replays: what the page says at each is what is stored; that this is a replay's, `tests/contracts/test_sweep.py` holds."""

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curate.sweeping import sweep
from manifests.audit.query import query
from manifests.report.page import LIMIT, report
from manifests.run import open_run
from tests.curate.dedup.test_copies import edited
from tests.curate.test_replaying import FIRST, LATER, build, recipe, rows
from tests.manifests.report.test_numbers import what_if
from tests.manifests.report.test_page import Folds
from tests.manifests.report.test_pairs import PHOTOS, built
from tests.pools import jpeg, png
from tests.small_pool import write_pool

STAGES = [FIRST[0], {"dedup.perceptual": {"max_rms": 6.0}}, {"dedup.perceptual": {"as": "again", "max_rms": 9.0}}, LATER[0], LATER[4], LATER[5]]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two perceptual stages, of which the first cannot be made stricter without pictures, and three stages after them."""
    folder = tmp_path_factory.mktemp("stops")
    write_pool(folder / "pool", rows(), per_shard=25)
    run = build(folder, "run", recipe(folder, "run", STAGES)).path
    sweep(run, device="cpu", quiet=True)
    return run


@pytest.fixture(scope="module")
def text(swept: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return report(swept, out=tmp_path_factory.mktemp("page") / "report.html").read_text()


def island(text: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]


def words(text: str) -> str:
    return re.sub(
        r"\s+",
        " ",
        re.sub(r"<[^>]*>", " ", text[text.index('<section id="what_if"') : text.index("</section>", text.index('<section id="what_if"'))]),
    )


def test_the_page_says_at_each_stop_what_is_stored(swept: Path, text: str) -> None:
    sliders = {slider["stage"]: slider for slider in island(text)["stops"]}
    assert set(sliders) == {"dedup.perceptual", "again"}
    for stage, slider in sliders.items():
        stored = [row for row in pq.read_table(swept / "replays" / f"{stage}.parquet").to_pylist() if row["refused"] is None]
        assert len(slider["stops"]) == len(stored) > 1 and stored[slider["now"]]["is_run"]
        for stop, row in zip(slider["stops"], stored, strict=True):
            assert float(stop["limit"]) == row["value"]
            assert all(stop[name] == row[name] for name in ("kept", "dropped", "quarantined", "changed"))
            assert stop["funnel"] == [[step["in"], step["dropped"], step["left"]] for step in row["funnel"]]


def test_the_cards_that_a_stop_changes_are_those_that_are_stored(swept: Path, text: str) -> None:
    shown = island(text)
    ledger = {r["uid"]: (r["status"], r["drop_stage"], r["drop_reason"]) for r in open_run(swept).ledger().to_pylist()}
    later = 0
    for slider in shown["stops"]:
        rows = [r for r in pq.read_table(swept / "replays" / f"{slider['stage']}.parquet").to_pylist() if r["refused"] is None]
        assert slider["held"] == len(shown["cards"]) == 62
        for stop, row in zip(slider["stops"], rows, strict=True):
            wanted = {
                h["uid"]: [h["status"], h["stage"] or "", h["reason"] or ""]
                for h in row["held"]
                if ledger[h["uid"]] != (h["status"], h["stage"], h["reason"])
            }
            assert {shown["cards"][card]["u"]: slider["fates"][fate] for card, fate in stop["moves"]} == wanted
            assert len(wanted) == row["changed"], "every sample of this pool has a card"
            later += sum(fate[1].startswith("select.") for fate in wanted.values())
    assert later, "no card is dropped by a later stage"


def test_the_stop_of_the_run_is_the_run(swept: Path, text: str) -> None:
    run = open_run(swept)
    for slider in island(text)["stops"]:
        now = slider["stops"][slider["now"]]
        assert now["moves"] == [] and now["changed"] == 0 and now["kept"] == run.info["counts"]["kept"]
        assert [step[1] for step in now["funnel"]] == [sum(s.counts["dropped"].values()) for s in run.stages if s.kind == "decision"]


def test_every_number_has_its_query(swept: Path, text: str) -> None:
    queries = {name: found for name, found in Folds(text).queries.items() if "what_if/limits" in name or "what_if/funnels" in name}
    assert len(queries) == 4
    for sql, count, printed in queries.values():
        found = query(swept, sql, limit=None).to_pylist()
        assert count == len(found) and printed[0] == [json.dumps(value) for value in found[0].values()]


def test_what_is_not_offered_is_said(swept: Path, text: str) -> None:
    refused = [r["value"] for r in pq.read_table(swept / "replays" / "dedup.perceptual.parquet").to_pylist() if r["refused"] is not None]
    said = words(text)
    listed = ", ".join(f"{value:g}" for value in refused)
    assert (
        refused
        and f"Not offered: max_rms {listed}. At {refused[-1]:g}: again: " in said
        and "come to it that did not when its pairs were found" in said
    )
    assert not {float(stop["limit"]) for stop in island(text)["stops"][0]["stops"]} & set(refused)


def test_without_stops_one_line_says_what_to_run(swept: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(swept, tmp_path / "run"))
    assert {block["kind"] for block in what_if(run).values()} == {"stops", "what_if"}
    shutil.rmtree(run / "replays")
    said = words(report(run).read_text())
    assert said.count("curate replay run --sweep") == 1 and "1,000,000 rows" in said and "every later stage included" not in said
    blocks = what_if(run)
    assert blocks["dedup.perceptual"]["notes"][-1].startswith("Counted is this stage alone: no replay")
    assert blocks["select.kcenter"]["notes"][-1].endswith("it cannot.") and island(report(run).read_text())["stops"] == []


def test_stops_of_an_earlier_state_are_left_out(swept: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(swept, tmp_path / "run"))
    info = json.loads((run / "run.json").read_text())
    info["stages"][-1]["digest"] = "other"
    (run / "run.json").write_text(json.dumps(info))
    assert island(report(run).read_text())["stops"] == []


def test_a_stage_that_drops_nothing_has_a_slider_too(swept: Path, tmp_path: Path) -> None:
    folder = swept.parent
    run = build(folder, "loose", recipe(folder, "loose", [FIRST[0], {"dedup.perceptual": {"max_rms": 0.0}}, LATER[5]])).path
    sweep(run, device="cpu", quiet=True)
    block = what_if(run)["dedup.perceptual"]
    assert block["svg"] is None and block["stops"][-1]["changed"] > 0 and block["rule"] == "dedup.perceptual at other values of max_rms"
    assert all(stop["at"] is None for stop in block["stops"]) and report(run).stat().st_size < LIMIT


def test_two_reports_are_the_same_bytes(swept: Path, text: str, tmp_path: Path) -> None:
    assert report(swept, out=tmp_path / "again.html").read_text() == text


def test_a_stage_with_several_limits_has_a_slider_for_each(tmp_path: Path) -> None:
    """A crop and a re-encoded copy of test pictures: one limit may move, the other cannot be stricter without pictures that a later stage never compared."""
    pool = {f"photo{i}": png(photo) for i, photo in enumerate(PHOTOS[:3])} | {"leak": jpeg(PHOTOS[4], 40), "again": jpeg(PHOTOS[4], 80)}
    pool |= {"box": edited(PHOTOS[4], "box"), "crop": edited(PHOTOS[4], "crop")}
    run = built(tmp_path, pool, {"test": png(PHOTOS[4])}, "min_score: 0.4")
    told = sweep(run, device="cpu", quiet=True)
    assert [(s["stage"], s["parameter"]) for s in told["sliders"] if s["stage"] == "leakage.images"] == [
        ("leakage.images", n) for n in ("max_rms", "min_copied")
    ]
    page = report(run).read_text()
    shown = [s for s in island(page)["stops"] if s["stage"] == "leakage.images"]
    refused = {r["parameter"] for r in pq.read_table(run / "replays" / "leakage.images.parquet").to_pylist() if r["refused"] is not None}
    assert "max_rms" in {s["parameter"] for s in shown} and any(stop["changed"] for stop in shown[0]["stops"])
    assert refused and all(f"Not offered: {name} " in words(page) for name in refused)
