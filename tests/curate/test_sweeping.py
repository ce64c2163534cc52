"""curate replay --sweep: which limits are tried, what is refused is not offered, and a table of stops is of the run as it stands or is none."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

import curate
import manifests
from curate.appending import append
from curate.cli import main
from curate.replaying import replay
from curate.sweeping import A_SIDE, limits_to_try, sweep, text
from manifests import publish, replays
from manifests.errors import Refusal
from manifests.publish import locked
from manifests.replays import replays_digest, replays_path, replays_stand, standing_replays
from manifests.run import open_run
from tests.curate.test_building import digests
from tests.curate.test_replaying import FIRST, LATER, MEASURES, build, recipe, rows
from tests.small_pool import write_pool

SHORT = [*FIRST, LATER[0], LATER[5]]
AGAIN = {"dedup.perceptual": {"as": "again", "max_rms": 15.0}}


class Killed(BaseException):
    """As a signal would end it."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    write_pool(folder / "pool", rows(), per_shard=25)
    build(folder, "run", recipe(folder, "run", SHORT))
    sweep(folder / "run", device="cpu", quiet=True)
    return folder


@pytest.fixture
def copied(home, tmp_path):
    return Path(shutil.copytree(home / "run", tmp_path / "run"))


def stops(run: Path, stage: str = "dedup.perceptual") -> list[dict]:
    return pq.read_table(replays_path(open_run(run), stage)).to_pylist()


def test_limits_are_the_quartiles_on_either_side_and_end_at_the_floor():
    scores = np.arange(1, 101) / 5  # 0.2 to 20
    assert limits_to_try(10.0, 20.0, scores) == [0.2, 2.6, 5.0, 7.4, 10.0, 12.6, 15.0, 17.6, 20.0]
    assert limits_to_try(10.0, 20.0, scores[:50]) == [0.2, 2.6, 5.0, 7.4, 10.0], "beyond it nothing is stored: a looser limit would be the same"
    assert limits_to_try(10.0, None, scores)[-1] == 20.0
    cosines = np.array([0.9, 0.93, 0.951, 0.97, 0.99, 1.0])
    assert limits_to_try(0.95, 0.9, cosines) == [0.9, 0.93, 0.95, 0.951, 0.97, 0.99, 1.0]
    assert limits_to_try(6, 8, np.array([0, 0, 3, 5, 6, 7, 8.0])) == [0, 3, 5, 6, 7, 8]
    assert all(isinstance(n, int) for n in limits_to_try(6, 8, np.array([0, 0, 3, 5, 6, 7, 8.0])))


def test_limits_of_odd_scores():
    rng = np.random.default_rng(0)
    for _ in range(200):
        value, floor = sorted(rng.uniform(-1, 1, 2))
        scores = np.r_[rng.uniform(-1, floor, rng.integers(0, 50)), [np.nan, np.inf]]
        found = limits_to_try(float(value), float(floor), scores)
        assert found == sorted(set(found)) and value in found and len(found) <= 2 * A_SIDE + 1
        assert max(found) <= floor, "no stop lies beyond what is stored"
        mirrored = limits_to_try(-float(value), -float(floor), -scores)
        assert np.allclose(mirrored, -np.array(found[::-1]))
    assert limits_to_try(1.0, 2.0, np.zeros(0)) == [1.0]
    assert limits_to_try(1.0, 2.0, np.ones(9)) == [1.0], "all scores at the limit itself: there is no other one to try"
    assert limits_to_try(5, 5, np.array([1, 2, 2])) == [1, 2, 5]


def test_the_run_itself_is_one_stop_and_the_others_stay_within_the_floor(home):
    found = stops(home / "run")
    now = next(stop for stop in found if stop["is_run"])
    counts = open_run(home / "run").info["counts"]
    assert (now["value"], now["changed"]) == (12.0, 0)
    assert {name: now[name] for name in ("kept", "dropped", "quarantined")} == {name: counts[name] for name in ("kept", "dropped", "quarantined")}
    assert max(stop["value"] for stop in found) <= 18.0 and len(found) > 2
    assert manifests.verify(home / "run")["findings"] == []
    view = "SELECT count(*) AS n, sum(is_run::INT) AS runs FROM replays"
    assert manifests.query(home / "run", view).to_pylist() == [{"n": len(found), "runs": 1}]


def test_same_run_same_bytes_and_what_stands_is_left(home, copied):
    file = replays_path(open_run(copied), "dedup.perceptual")
    before, stamp = file.read_bytes(), file.stat().st_mtime_ns
    promised = digests(copied)
    told = sweep(copied, device="cpu", quiet=True)
    assert file.stat().st_mtime_ns == stamp and told["done"] and told["work"] == 62 * len(stops(copied))
    file.unlink()
    assert sweep(copied, device="cpu", quiet=True) == told
    assert file.read_bytes() == before and digests(copied) == promised, "nothing else of the run is touched"


def test_a_run_that_changed_has_no_stops_until_they_are_made_again(home, copied):
    build(copied.parent, "run", home / "run.yaml", settings=["select.stratified.keep=9"], pool=home / "pool")
    opened = open_run(copied)
    assert standing_replays(opened) == [] and not replays_stand(opened, "dedup.perceptual")
    checked = manifests.verify(copied)
    assert checked["whole"] and [f["severity"] for f in checked["findings"]] == ["warning"] and "--sweep" in checked["findings"][0]["cure"]
    with pytest.raises(Refusal, match="bad-sql"):
        manifests.query(copied, "SELECT * FROM replays")
    (copied / "replays" / "gone.parquet").write_bytes(b"of another recipe")
    sweep(copied, device="cpu", quiet=True)
    assert [f.name for f in (copied / "replays").iterdir()] == ["dedup.perceptual.parquet"]
    assert manifests.verify(copied)["findings"] == []
    assert next(stop["kept"] for stop in stops(copied) if stop["is_run"]) == open_run(copied).info["counts"]["kept"] == 9


def test_damage_is_found_and_cured(copied):
    file = replays_path(open_run(copied), "dedup.perceptual")
    body = file.read_bytes()
    file.write_bytes(body[:100] + bytes([body[100] ^ 255]) + body[101:])
    checked = manifests.verify(copied)
    assert not checked["whole"] and [f["slug"] for f in checked["findings"]] == ["broken-record"] and str(file) == checked["findings"][0]["where"]
    sweep(copied, device="cpu", quiet=True)
    assert file.read_bytes() == body and manifests.verify(copied)["findings"] == []


@pytest.mark.parametrize("point", ["before", "half", "written", "renamed"])
def test_killed_while_writing_it_goes_on(home, copied, monkeypatch, point):
    file = replays_path(open_run(copied), "dedup.perceptual")
    body = file.read_bytes()
    file.unlink()

    def stop(name: str, path: Path) -> None:
        if name == point and path.parent.name == "replays":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(publish, "moment", stop)
        with pytest.raises(Killed):
            sweep(copied, device="cpu", quiet=True)
    assert manifests.verify(copied)["findings"] == []
    sweep(copied, device="cpu", quiet=True)
    assert file.read_bytes() == body and [f.name for f in file.parent.iterdir()] == [file.name]


def test_a_limit_that_cannot_be_told_without_pictures_is_not_offered(home):
    """With fewer dropped by the first, samples come to the second that it never compared; with more of them none do."""
    run = build(home, "twice", recipe(home, "twice", [FIRST[0], {"dedup.perceptual": {"max_rms": 6.0}}, AGAIN, *SHORT[2:]])).path
    found = sweep(run, device="cpu", quiet=True)
    first = stops(run)
    assert any(stop["refused"] for stop in first) and all(stop["value"] < 6.0 for stop in first if stop["refused"])
    for stop in first:
        settings = [f"dedup.perceptual.max_rms={stop['value']!r}", f"again.max_rms={15.0!r}"]
        if stop["refused"]:
            with pytest.raises(Refusal, match="not-replayable"):
                replay(run, settings=settings, device="cpu")
            assert "again" in stop["refused"] and "come to it that did not" in stop["refused"] and str(run) not in stop["refused"]
            assert [stop[name] for name in ("kept", "dropped", "quarantined", "changed", "funnel", "held")] == [None] * 6
        else:
            assert stop["kept"] == replay(run, settings=settings, device="cpu")["counts"]["kept"]
    assert found["sliders"][0]["refused"] == sum(stop["refused"] is not None for stop in first) and "not offered" in text(found)
    again = stops(run, "again")
    as_run = next(stop["funnel"][1] for stop in first if stop["is_run"])
    assert not any(stop["refused"] for stop in again) and all(stop["funnel"][1] == as_run for stop in again)


def test_a_sample_that_was_dropped_before_a_measure_finds_it_broken_stays_dropped(home, tmp_path):
    broken = next(row["key"] for row in rows() if len(row["image"]) == 400)
    stages = [{"keep.where": {"keep": f"key <> '{broken}'"}}, *[name for name in MEASURES if isinstance(name, str)], *FIRST, LATER[5]]
    given = recipe(tmp_path, "run", [])
    given.write_text(yaml.safe_dump({"format": 1, "seed": 3, "stages": stages, "shards": False}))
    run = build(tmp_path, "run", given, pool=home / "pool").path
    assert sweep(run, device="cpu", quiet=True)["done"]
    counts = open_run(run).info["counts"]
    assert counts["quarantined"] == 0 and all((stop["quarantined"], stop["dropped"] + stop["kept"]) == (0, 62) for stop in stops(run))
    held = {one["uid"]: one for one in stops(run)[-1]["held"]}
    assert held[open_run(run).find(broken)["uid"]] | {"uid": ""} == {"uid": "", "status": "dropped", "stage": "keep.where", "reason": "where"}


def test_a_bound_on_the_work(copied):
    shutil.rmtree(copied / "replays")
    told = sweep(copied, device="cpu", most=100, quiet=True)
    assert not told["done"] and told["work"] > 100 and told["sliders"][0]["stage"] == "dedup.perceptual"
    assert not (copied / "replays").exists()


def test_a_run_that_grew(home, tmp_path):
    pool = rows()
    write_pool(tmp_path / "pool", pool[:40], per_shard=20)
    write_pool(tmp_path / "more", pool[40:], per_shard=20, name="more")
    build(tmp_path, "run", recipe(tmp_path, "run", SHORT))
    sweep(tmp_path / "run", device="cpu", quiet=True)
    append(tmp_path / "run", pool=str(tmp_path / "more"), workers=1, device="cpu", quiet=True)
    assert standing_replays(open_run(tmp_path / "run")) == []
    sweep(tmp_path / "run", device="cpu", quiet=True)
    checked = manifests.verify(tmp_path / "run")
    assert checked["findings"] == [] and checked["checked"]["rows"] == 62
    for stop in (stop for stop in stops(tmp_path / "run") if stop["refused"] is None):
        shown = replay(tmp_path / "run", settings=[f"dedup.perceptual.max_rms={stop['value']!r}"], device="cpu")
        assert (stop["kept"], stop["changed"]) == (shown["counts"]["kept"], sum(flow["n"] for flow in shown["flows"]["moved"]))


def test_a_run_that_this_keepset_would_decide_otherwise(copied, monkeypatch):
    from curate import stages

    shutil.rmtree(copied / "replays")
    newer = {**stages.STAGES, "select.stratified": stages.Stage("decision", 99)}
    for module in ("curate.recording", "curate.measuring", "curate.stored"):
        if hasattr(__import__(module, fromlist=["x"]), "STAGES"):
            monkeypatch.setattr(f"{module}.STAGES", newer)
    with pytest.raises(Refusal, match=r"select.stratified: would be decided anew.*not-replayable"):
        sweep(copied, device="cpu", quiet=True)
    assert not (copied / "replays").exists()


def test_another_version_of_the_tables(copied, monkeypatch):
    assert replays_stand(open_run(copied), "dedup.perceptual")
    before = replays_digest(open_run(copied), "dedup.perceptual")
    monkeypatch.setattr(replays, "VERSION", replays.VERSION + 1)
    assert not replays_stand(open_run(copied), "dedup.perceptual") and replays_digest(open_run(copied), "dedup.perceptual") != before


def test_nothing_to_move(home, tmp_path):
    run = build(tmp_path, "run", recipe(tmp_path, "run", [FIRST[0], LATER[0]]), pool=home / "pool").path
    told = sweep(run, device="cpu", quiet=True)
    assert told["sliders"] == [] and "no decision" in text(told) and not (run / "replays").exists()


def test_the_verb(copied):
    shutil.rmtree(copied / "replays")
    done = CliRunner().invoke(main, ["replay", str(copied), "--sweep", "--device", "cpu"])
    assert done.exit_code == 0 and "dedup.perceptual: max_rms at" in done.output and replays_stand(open_run(copied), "dedup.perceptual")
    done = CliRunner().invoke(main, ["replay", str(copied), "--sweep", "--set", "dedup.perceptual.max_rms=3"])
    assert done.exit_code == 2 and "--sweep: was given with --set" in done.stderr and "[bad-value]" in done.stderr
    with locked(copied), pytest.raises(Refusal, match="run-locked"):
        sweep(copied, device="cpu", quiet=True)
    with pytest.raises(Refusal, match="no-such-file"):
        sweep(copied / "nowhere")
    assert not (copied / "nowhere").exists()


def test_audit_makes_them_by_itself(home, tmp_path, monkeypatch):
    run = curate.audit(str(home / "pool"), out=tmp_path / "small", workers=1, quiet=True)
    assert standing_replays(run) == [replays_path(run, "dedup.perceptual")]
    assert "data-s>" in (run.path / "report.html").read_text()
    monkeypatch.setattr(replays, "AUTOMATIC", 100)
    run = curate.audit(str(home / "pool"), out=tmp_path / "large", workers=1, quiet=True)
    page = (run.path / "report.html").read_text()
    assert standing_replays(run) == [] and "data-s>" not in page and "curate replay run --sweep" in page
