"""Appending a pool to a finished run: old files stay, new samples are decided beside what is kept, and what differs from one build is written down."""

import importlib
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

import curate
from curate import asking
from curate.appending import append_plan
from curate.cli import main
from curate.stages import DECISION, STAGES
from manifests.audit.diff import diff
from manifests.audit.explain import explain
from manifests.audit.query import query
from manifests.audit.show import show, text
from manifests.audit.verify import verify
from manifests.errors import Refusal
from manifests.ledger import read_selection
from manifests.report.page import report
from manifests.run import open_run
from manifests.shards.pool_yaml import open_pool, write_pool_yaml
from pretrain.samples import open_samples
from tests.contracts.test_stage_law import configured
from tests.curate.test_building import RECIPE, digests, written
from tests.small_pool import PHOTOS, samples, write_evaluation_pool, write_pool

GROWING = RECIPE.replace("keep: 12, by", "keep: 0.6, by").replace("samples_per_shard: 5", "samples_per_shard: 4")
MEASURES = """format: 1
seed: 3
stages:
  - measure.quality:
  - measure.exact_hash:
  - measure.perceptual_hash:
  - measure.difference_hash:
  - measure.vectors: {encoder: "pixels:8", as: pixels}
"""
CUT = 22  # samples of the first pool; copies of its pictures are among the others


def build(home: Path, pool: Path, out: Path, recipe: Path | None = None, **options):
    return curate.build(recipe or home / "recipe.yaml", pool=str(pool), out=out, workers=1, quiet=True, device="cpu", **options)


def append(run: Path, pool: Path | None, **options):
    return curate.append(run, pool=None if pool is None else str(pool), workers=options.pop("workers", 1), quiet=True, device="cpu", **options)


def one_pool(folder: Path, *pools: Path) -> Path:
    """A pool that holds the sources of `pools` as an append names them: what one build over both would see."""
    folder.mkdir()
    sources = [
        {"name": f"crops-{n}" if n > 1 else "crops", "shards": [str(Path(s.url).resolve()) for s in open_pool(pool).shards]}
        for n, pool in enumerate(pools, 1)
    ]
    write_pool_yaml(folder, name="both", sources=sources, classes=list(PHOTOS))
    return folder


def refused(call, *given, **options) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*given, **options)
    return caught.value


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("append")
    rows = samples()
    write_pool(folder / "old", rows[:CUT], per_shard=8, name="old")
    write_pool(folder / "new", rows[CUT:], per_shard=10, name="new")
    again = [{**rows[3], "key": "000003"}, {**rows[4], "key": "more"}, *({**rows[i], "key": f"late{i}"} for i in (1, 8, 30))]
    write_pool(folder / "late", again, per_shard=3, name="late")
    write_evaluation_pool(folder / "eval")
    (folder / "recipe.yaml").write_text(GROWING.replace("EVAL", str(folder / "eval")))
    build(folder, folder / "old", folder / "first")
    shutil.copytree(folder / "first", folder / "run")
    append(folder / "run", folder / "new")
    one_pool(folder / "both", folder / "old", folder / "new")
    return folder


@pytest.fixture
def copied(home, tmp_path):
    shutil.copytree(home / "run", tmp_path / "run")
    return tmp_path / "run"


def fates(run) -> dict[str, tuple]:
    return {r["uid"]: (r["status"], r["drop_stage"], r["drop_reason"], r["score"], r["witness"]) for r in run.ledger().to_pylist()}


def test_no_file_of_the_first_generation_is_written_again(home):
    shutil.copytree(home / "first", home / "watched")
    before, times = digests(home / "watched"), written(home / "watched")
    append(home / "watched", home / "new")
    after, later = digests(home / "watched"), written(home / "watched")
    allowed = {"selection.npy", "shards/sizes.json"}  # of all generations
    assert {name for name in before if after[name] != before[name]} <= allowed
    assert {name for name in before if later[name] != times[name]} <= allowed
    assert after == digests(home / "run")
    new = set(after) - set(before)
    assert {"ledger/00001.parquet", "edges/dedup.perceptual/00001.parquet", "parts/select.stratified/crops-2/00000.parquet"} <= new
    assert not {
        name
        for name in new
        if name.startswith("shards/") and name.split("/")[1][:5] <= max(n.split("/")[1][:5] for n in before if n.endswith(".tar"))
    }


def test_the_law_holds_and_the_run_verifies(home):
    run = open_run(home / "run")
    counts, parts = run.info["counts"], [g["counts"] for g in run.generations]
    assert counts["rows"] == 40 == counts["kept"] + counts["dropped"] + counts["quarantined"]
    assert [p["rows"] for p in parts] == [CUT, 40 - CUT]
    assert all(p["rows"] == p["kept"] + p["dropped"] + p["quarantined"] for p in parts)
    assert parts[1]["kept"] > 0
    assert verify(home / "run", deep=True)["findings"] == []
    kept = run.ledger().filter(pc.equal(run.ledger()["status"], "kept"))
    assert read_selection(home / "run" / "selection.npy") == sorted(kept["uid"].to_pylist())
    assert sum(json.loads((home / "run/shards/sizes.json").read_text()).values()) == counts["kept"]


def test_a_witness_of_a_new_sample_may_be_an_old_one_that_is_kept(home):
    rows = {r["uid"]: r for r in open_run(home / "run").ledger().to_pylist()}
    pairs = [(r, rows[r["witness"]]) for r in rows.values() if r["drop_stage"] in ("dedup.exact", "dedup.perceptual")]
    assert any(w["shard"].startswith("crops/") and r["shard"].startswith("crops-2/") for r, w in pairs)
    assert not any(r["shard"].startswith("crops/") and w["shard"].startswith("crops-2/") for r, w in pairs)


def test_what_reads_a_run_reads_one_that_grew(home):
    run = open_run(home / "run")
    fate = {r["key"]: r for r in run.ledger().to_pylist()}
    newest = next(r for r in fate.values() if r["status"] == "kept" and r["shard"].startswith("crops-2/"))
    assert explain(home / "run", newest["uid"])["sample"]["key"] == newest["key"]
    assert explain(home / "run", "000034")["sample"]["status"] == "dropped"
    assert query(home / "run", "SELECT count(*) AS n FROM samples WHERE contrast IS NOT NULL")["n"].to_pylist() == [39]
    assert query(home / "run", "SELECT count(*) AS n FROM edges_dedup_perceptual")["n"].to_pylist()[0] >= 2
    found = diff(home / "first", home / "run")
    assert (found["aligned"], found["moved"]) == (False, [])
    assert sum(row["n"] for row in found["only_in_new"]) == 40 - CUT
    assert "generation 2: new" in text(show(home / "run"))
    report(home / "run")
    assert (home / "run" / "report.html").stat().st_size > 10_000
    (home / "run" / "report.html").unlink()
    pictures = run.dataset()
    assert len(pictures) == run.info["counts"]["kept"]
    assert all(pictures[i]["image"].shape == (96, 96, 3) for i in range(len(pictures)))
    from_pools, from_shards = open_samples([str(home / "run")]), open_samples([str(home / "run" / "shards")])
    assert from_pools.uid.tolist() == from_shards.uid.tolist() == sorted(r["uid"] for r in fate.values() if r["status"] == "kept")
    assert from_pools.label.tolist() == from_shards.label.tolist()


def test_the_edges_of_a_generation_are_those_of_its_own_rows(graded, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MEASURES + "  - dedup.all_pairs: {vectors: pixels, min_cosine: 0.999, floor_cosine: 0.5}\nshards: false\n")
    build(graded, graded / "old", tmp_path / "run", recipe, reuse=[graded / "measured-two"])
    run = append(tmp_path / "run", graded / "new")
    rows = run.ledger().to_pylist()
    old = {r["uid"] for r in rows if r["shard"].startswith("crops/")}
    first, second = (pq.read_table(file).to_pylist() for file in run.edges("dedup.all_pairs"))
    kept = {r["uid"] for r in rows if r["status"] == "kept"}
    assert any({e["a"], e["b"]} <= kept for e in first)  # pairs of old rows that are both kept: they are found again and not written again
    assert second
    assert all({e["a"], e["b"]} <= old for e in first)
    assert all(not {e["a"], e["b"]} <= old for e in second)


def test_the_digest_of_a_new_verdict_carries_that_of_the_earlier_one(home, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("format: 1\nstages:\n  - select.random: {keep: 0.5}\nshards: false\n")
    found = []
    for base in ("old", "late"):
        build(home, home / base, tmp_path / base, recipe)
        found.append(append(tmp_path / base, home / "new").stages[-1].digests)
    assert found[0][0] != found[1][0]
    assert found[0][1] != found[1][1]


def test_workers_reach_no_byte(home, tmp_path):
    shutil.copytree(home / "first", tmp_path / "run")
    append(tmp_path / "run", home / "new", workers=2)
    assert digests(tmp_path / "run") == digests(home / "run")


def test_a_recipe_that_names_its_appended_pools_builds_the_same_run(home, tmp_path):
    run = curate.build(home / "run" / "recipe.yaml", out=tmp_path / "again", workers=1, quiet=True, device="cpu")
    assert len(run.generations) == 2
    assert digests(tmp_path / "again") == digests(home / "run")


def test_the_same_append_again_says_done_and_writes_nothing(home, copied):
    before = written(copied)
    append(copied, home / "new")
    after = written(copied)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed <= {".lock", "events.jsonl"}
    done = CliRunner().invoke(main, ["append", str(copied), "--pool", str(home / "new"), "--json", "--workers", "1", "--device", "cpu"])
    assert "nothing to do" in done.output


def test_the_same_build_on_a_grown_run_drops_nothing(home, copied):
    before = written(copied)
    run = build(home, home / "old", copied)
    assert len(run.generations) == 2
    assert {n for n, t in written(copied).items() if t != before.get(n)} <= {".lock", "events.jsonl"}
    (copied / "ledger" / "00001.parquet").unlink()
    (copied / "parts/dedup.exact/crops-2/00000.parquet").unlink()
    build(home, home / "old", copied)
    assert digests(copied) == digests(home / "run")
    error = refused(build, home, home / "old", copied, settings=["select.kcenter.keep=0.5"])
    assert (error.slug, str(home / "new") in str(error)) == ("bad-recipe", True)
    assert refused(build, home, home / "late", copied).slug == "bad-recipe"
    assert digests(copied) == digests(home / "run")


def test_a_third_generation(home, copied):
    before = digests(copied)
    run = append(copied, home / "late")
    after = digests(copied)
    assert [g["counts"]["rows"] for g in run.generations] == [CUT, 40 - CUT, 5]
    assert {n for n in before if after[n] != before[n]} <= {"selection.npy", "shards/sizes.json"}
    assert verify(copied, deep=True)["findings"] == []
    assert run.generation_of("crops-3/00001") == 2
    late = [r for r in run.ledger().to_pylist() if r["shard"].startswith("crops-3")]
    assert {r["status"] for r in late} == {"dropped"}  # copies of what is there
    seen = {r["uid"]: r for r in run.ledger().to_pylist()}
    assert all(not seen[r["witness"]]["shard"].startswith("crops-3") for r in late if r["drop_stage"] == "dedup.exact")


def test_equal_samples_of_two_generations_have_the_uids_of_one_build(home, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("format: 1\nstages:\n  - measure.quality:\nshards: false\n")
    build(home, home / "old", tmp_path / "run", recipe)
    two = append(tmp_path / "run", home / "late")
    one = build(home, one_pool(tmp_path / "both", home / "old", home / "late"), tmp_path / "one", recipe)
    assert two.ledger().to_pylist() == one.ledger().to_pylist()
    assert pq.read_table(two.part("identity", "crops-2/00000"))["ordinal"].to_pylist()[0] == 1


SAME, KEEPER, OTHER = "equal", "equal where each keeper is in the older part", "differs"
SHOWN = {  # as manifests/FORMAT.md lists it: settings under which it is seen
    'keep.where: {keep: "contrast >= 30"}': SAME,
    'keep.list: {ids: ["000001", "000030"], by: key, listed: drop}': SAME,
    "leakage.images: {against: [EVAL]}": SAME,
    "dedup.exact: {prefer: [quality_vote]}": OTHER,
    "dedup.exact: {prefer: [older]}": KEEPER,
    "dedup.perceptual: {prefer: [quality_vote]}": OTHER,
    "dedup.perceptual: {prefer: [older]}": KEEPER,
    "dedup.all_pairs: {vectors: pixels, min_cosine: 0.99, prefer: [older]}": KEEPER,
    "dedup.copies: {prefer: [quality_vote]}": OTHER,
    "dedup.copies: {prefer: [older]}": KEEPER,
    "dedup.copies: {prefer: [older], vectors: [pixels], k: 2}": OTHER,
    "dedup.semantic: {vectors: pixels, min_cosine: 0.6, floor_cosine: 0.6, prefer: [quality_vote]}": OTHER,
    "dedup.semantic: {vectors: pixels, min_cosine: 0.6, floor_cosine: 0.6, keeper: uid, prefer: [older]}": KEEPER,
    "dedup.semantic: {vectors: pixels, min_cosine: 0.6, floor_cosine: 0.6, keeper: uid, prefer: [older], clusters: 4, recall: 1.0}": KEEPER,
    "dedup.semantic: {vectors: pixels, min_cosine: 0.6, floor_cosine: 0.6, keeper: random, prefer: [older]}": KEEPER,
    "dedup.semantic: {vectors: pixels, min_cosine: 0.5, floor_cosine: 0.5, prefer: [older], clusters: 4}": OTHER,
    "dedup.semantic: {vectors: pixels, keep: 0.6, floor_cosine: 0.2, prefer: [older]}": OTHER,
    "dedup.semdedup: {vectors: pixels, min_cosine: 0.5, floor_cosine: 0.5, clusters: 4}": OTHER,
    "dedup.mutual: {vectors: pixels, min_cosine: 0.6, margin: 0.0, floor_cosine: 0.5, prefer: [older]}": OTHER,
    "labels.neighbours: {vectors: pixels, k: 5, min_share: 0.4}": OTHER,
    "reduce.redundancy: {vectors: pixels, keep: 0.5}": OTHER,
    "reduce.series: {group: label_name, order: older, codes: phash}": OTHER,  # walks the later rows first
    "reduce.series: {group: label_name, order: key, codes: phash}": KEEPER,
    "reduce.information: {group: label_name, order: older}": OTHER,
    "reduce.information: {group: label_name, order: key}": KEEPER,
    "reduce.density: {vectors: pixels, keep: 0.5, clusters: 5}": OTHER,
    "reduce.density: {vectors: pixels, keep: 0.5, clusters: 3, within: label_name}": OTHER,
    "reduce.prototypes: {vectors: pixels, keep: 0.5, clusters: 5}": OTHER,
    "reduce.prototypes: {vectors: pixels, keep: 0.5, clusters: 5, end: easy, by: group}": OTHER,
    "reduce.hierarchical: {vectors: pixels, keep: 0.5, clusters: [8, 3], nearest: [3, 2], resampling: 2}": OTHER,
    "reduce.hierarchical: {vectors: pixels, keep: 0.5, clusters: [4], nearest: [3], leaf: closest, protect: contrast > 60}": OTHER,
    "select.random: {keep: 0.5}": OTHER,
    "select.stratified: {keep: 0.5}": OTHER,
    "select.kcenter: {vectors: pixels, keep: 0.5}": OTHER,
    "select.facility_location: {vectors: pixels, keep: 0.5}": OTHER,
}


@pytest.fixture(scope="module")
def graded(home, tmp_path_factory):
    """Two pools with columns that say who is to be kept: `older` is larger in the old one, `quality_vote` in the new one."""
    folder = tmp_path_factory.mktemp("graded")
    for name, chosen, older in (("old", samples()[:CUT], 1.0), ("new", samples()[CUT:39], 0.0)):
        write_pool(folder / name, [{**row, "quality_vote": i / 40} for i, row in enumerate(chosen)], per_shard=12, name=name)
        for sidecar in (folder / name / "shards").glob("*.parquet"):
            table = pq.read_table(sidecar)
            vote = pc.add(table["quality_vote"], 1.0 - older)
            table = table.set_column(table.column_names.index("quality_vote"), "quality_vote", vote)
            pq.write_table(table.append_column("older", pa.array([older] * len(table))), sidecar)
    one_pool(folder / "both", folder / "old", folder / "new")
    (folder / "measures.yaml").write_text(MEASURES + "shards: false\n")
    for name, pool in (("two", "old"), ("one", "both")):
        build(folder, folder / pool, folder / f"measured-{name}", folder / "measures.yaml")
    return folder


@pytest.fixture
def asked(monkeypatch):
    """(pool, verdicts) of every call of a method: `decide` keeps the settled rows in any case, and so would hide a method that drops one."""
    pools, found = [], []

    class Watched(asking.Pool):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            pools.append(self)

    def merge(total, part, where, stage):
        found.append((next(pool for pool in reversed(pools) if not pool.name), part))
        return merged(total, part, where, stage)

    merged = asking._merge
    monkeypatch.setattr(asking, "Pool", Watched)
    monkeypatch.setattr(asking, "_merge", merge)
    return found


def promised(name: str) -> str:
    """What the file of a decision says of appending."""
    return str(getattr(importlib.import_module(f"curate.{name}"), "GROWS", ""))


def at_defaults(name: str) -> str:
    """A decision as a line of a recipe."""
    return yaml.safe_dump(configured(name, Path("EVAL")), default_flow_style=True, width=1000).strip()[1:-1]


UNSHOWN = [name for name, stage in STAGES.items() if stage.kind == DECISION and not any(line.startswith(f"{name}:") for line in SHOWN)]
LINES = SHOWN | {at_defaults(name): promised(name) for name in UNSHOWN}


@pytest.mark.parametrize("name", dict.fromkeys(line.split(":")[0] for line in LINES))
def test_what_a_file_says_of_appending_is_the_best_that_is_seen(name):
    """A decision without a line above is tried at its defaults; what holds under conditions only needs a line with settings that meet them."""
    words = [SHOWN[line] for line in SHOWN if line.split(":")[0] == name] or [SAME if promised(name) == SAME else OTHER]
    best = min(words, key=(SAME, KEEPER, OTHER).index)
    cure = "add a line to SHOWN in tests/curate/test_append.py with settings under which it is so"
    assert promised(name) == best, f"the file of {name} has GROWS = {promised(name)!r}, and what is seen is {best!r}: {cure}"


@pytest.mark.parametrize("line", LINES)
def test_appending_equals_one_build_or_differs_as_documented(home, graded, tmp_path, asked, line):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{MEASURES}  - {line.replace('EVAL', str(home / 'eval'))}\nshards: false\n")
    first = build(graded, graded / "old", tmp_path / "two", recipe, reuse=[graded / "measured-two"])
    kept_before = {r["uid"] for r in first.ledger().to_pylist() if r["status"] == "kept"}
    asked.clear()
    two = append(tmp_path / "two", graded / "new")
    assert asked
    assert all(part.keep[pool.fixed].all() and not (pool.settled & ~pool.fixed).any() for pool, part in asked)
    assert any(pool.settled.any() for pool, _ in asked) != line.startswith("leakage")
    one = build(graded, graded / "both", tmp_path / "one", recipe, reuse=[graded / "measured-one"])
    kept = {r["uid"] for r in two.ledger().to_pylist() if r["status"] == "kept"}
    assert kept_before <= kept
    assert verify(tmp_path / "two")["findings"] == []
    if line in SHOWN or LINES[line] == SAME:
        assert (fates(two) == fates(one)) == (LINES[line] != OTHER), f"{line}: against one build it is said to be {LINES[line]!r}"
    if "keep: 0.5" in line:
        assert len(kept) == one.info["counts"]["kept"]
    append(tmp_path / "two", None, redecide=True)
    again = open_run(tmp_path / "two")
    assert fates(again) == fates(one)
    assert len(again.generations) == 1
    assert verify(tmp_path / "two")["findings"] == []


def test_a_better_keeper_that_comes_later_is_dropped_for_the_old_one(graded, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MEASURES + "  - dedup.exact: {prefer: [quality_vote]}\nshards: false\n")
    build(graded, graded / "old", tmp_path / "two", recipe, reuse=[graded / "measured-two"])
    two = append(tmp_path / "two", graded / "new")
    one = build(graded, graded / "both", tmp_path / "one", recipe, reuse=[graded / "measured-one"])
    late, early = two.find("000034"), two.find("000000")
    assert (late["status"], late["witness"], early["status"]) == ("dropped", early["uid"], "kept")
    assert (one.find("000034")["status"], one.find("000000")["witness"]) == ("kept", late["uid"])


def test_a_count_is_of_the_whole_and_nothing_may_be_left_of_it(graded, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("format: 1\nstages:\n  - select.random: {keep: 10}\n  - select.random: {keep: 6, within: group, as: groups}\nshards: false\n")
    build(graded, graded / "old", tmp_path / "run", recipe)
    run = append(tmp_path / "run", graded / "new")
    assert [g["counts"]["kept"] for g in run.generations] == [6, 0]
    (tmp_path / "wide.yaml").write_text("format: 1\nstages:\n  - select.random: {keep: 30}\nshards: false\n")
    build(graded, graded / "old", tmp_path / "wide", tmp_path / "wide.yaml")
    assert [g["counts"]["kept"] for g in append(tmp_path / "wide", graded / "new").generations] == [22, 8]


COUNTED = {
    "reduce.redundancy": "",
    "reduce.density": ", clusters: 3",
    "reduce.prototypes": ", clusters: 3",
    "reduce.hierarchical": ", clusters: [4, 2], nearest: [3, 2], resampling: 1",
}


@pytest.mark.parametrize("name", COUNTED)
def test_a_count_that_old_rows_use_up_leaves_nothing_to_a_reducing_stage(graded, tmp_path, name):
    recipe = tmp_path / "recipe.yaml"
    line = f"{name}: {{vectors: pixels, keep: 6{COUNTED[name]}"
    recipe.write_text(f"{MEASURES}  - {line}}}\n  - {line}, within: group, as: groups}}\nshards: false\n")
    build(graded, graded / "old", tmp_path / "run", recipe, reuse=[graded / "measured-two"])
    run = append(tmp_path / "run", graded / "new")
    assert [g["counts"]["kept"] for g in run.generations] == [6, 0]
    assert verify(tmp_path / "run")["findings"] == []


def test_redecide_with_a_new_pool_is_one_build(home, tmp_path):
    shutil.copytree(home / "first", tmp_path / "run")
    run = append(tmp_path / "run", home / "new", redecide=True)
    one = build(home, home / "both", tmp_path / "one")
    assert run.ledger().equals(one.ledger())
    assert digests(tmp_path / "run") == digests(tmp_path / "one")
    before = written(tmp_path / "run")
    append(tmp_path / "run", home / "new", redecide=True)
    assert {n for n, t in written(tmp_path / "run").items() if t != before.get(n)} <= {".lock", "events.jsonl"}
    grown = append(tmp_path / "run", home / "late")
    assert [len(g["pools"]) for g in grown.generations] == [2, 1]
    assert verify(tmp_path / "run", deep=True)["findings"] == []


def test_redecide_replaces_ledger_edges_and_shards_of_a_grown_run(home, copied):
    run = append(copied, None, redecide=True)
    assert [f.name for f in run.ledger_files()] == ["00000.parquet"]
    assert [f.name for f in run.edges("dedup.perceptual")] == ["00000.parquet"]
    assert verify(copied, deep=True)["findings"] == []
    assert set(json.loads((copied / "shards/sizes.json").read_text())) == {p.name for p in (copied / "shards").glob("*.tar")}


def test_a_pool_that_the_run_holds_already_is_refused(home, copied, tmp_path):
    before = digests(copied)
    assert "pool 1 of this run" in str(refused(append, copied, home / "old"))
    append(copied, home / "late")
    assert refused(append, copied, home / "new").slug == "bad-value"
    moved = shutil.copytree(home / "new", tmp_path / "moved")
    error = refused(append, copied, moved)
    assert (error.slug, "crops-2/00000" in str(error)) == ("bad-value", True)
    assert verify(copied)["whole"]
    assert set(before) <= set(digests(copied))


def test_a_pool_that_grew_in_its_place_gives_its_new_shards_alone(home, tmp_path):
    pool = shutil.copytree(home / "old", tmp_path / "pool")
    build(home, pool, tmp_path / "run")
    for kind in ("tar", "parquet"):
        shutil.copy(home / "late" / "shards" / f"00000.{kind}", pool / "shards" / f"00003.{kind}")
    error = refused(append, tmp_path / "run", pool)
    assert (error.slug, "--pool" in error.cure) == ("bad-value", True)
    run = append(tmp_path / "run", pool / "shards" / "00003.tar")
    assert [s.id for s in run.pool.shards][-1] == "shards/00003"
    assert run.find(run.ledger()["uid"][-1].as_py())["label_name"] in PHOTOS  # the run's classes hold for a pool without any


@pytest.mark.parametrize("what", ["no shards", "no samples", "another type", "a column less", "other classes", "no pool"])
def test_a_pool_that_does_not_fit_leaves_the_run_as_it_was(home, tmp_path, what):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MEASURES + '  - keep.where: {keep: "quality_vote IS NOT NULL OR true"}\nshards: false\n')
    build(home, home / "old", tmp_path / "run", recipe)
    before, record = digests(tmp_path / "run"), (tmp_path / "run" / "run.json").read_text()
    pool = shutil.copytree(home / "late", tmp_path / "pool")
    sidecars = list((pool / "shards").glob("*.parquet"))
    for sidecar in sidecars:
        table = pq.read_table(sidecar)
        at = table.column_names.index("quality_vote")
        if what == "another type":
            pq.write_table(table.set_column(at, "quality_vote", pc.cast(table["quality_vote"], pa.string())), sidecar)
        elif what == "a column less":
            pq.write_table(table.remove_column(at), sidecar)
    fields = {"name": "late", "sources": [{"name": "crops", "shards": "shards/{00000..00001}.tar"}], "classes": list(PHOTOS)}
    if what == "other classes":
        fields["classes"] = [*reversed(PHOTOS)]
    if what == "no shards":
        fields["sources"] = []
    write_pool_yaml(pool, **fields)
    if what == "no samples":
        for tar in (pool / "shards").glob("*.tar"):
            tar.write_bytes(bytes(10240))
            tar.with_suffix(".parquet").unlink()
        write_pool_yaml(pool, **fields, columns={"quality_vote": "double"})
    error = refused(append, tmp_path / "run", pool if what != "no pool" else tmp_path / "nowhere")
    slugs = {"no shards": "empty-pool", "no samples": "empty-pool", "another type": "bad-pool", "a column less": "unknown-column"}
    assert error.slug == {**slugs, "other classes": "bad-pool", "no pool": "no-such-file"}[what]
    after = digests(tmp_path / "run")
    assert all(after[name] == before[name] for name in before)
    assert (tmp_path / "run" / "run.json").read_text() == record
    assert verify(tmp_path / "run")["whole"]
    assert append(tmp_path / "run", home / "late").info["counts"]["rows"] == CUT + 5


def test_further_columns_and_classes_come_with_a_pool(home, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("format: 1\nstages:\n  - measure.quality:\n  - select.random: {keep: 0.5}\n")
    build(home, home / "old", tmp_path / "run", recipe)
    pool = shutil.copytree(home / "late", tmp_path / "pool")
    for sidecar in (pool / "shards").glob("*.parquet"):
        table = pq.read_table(sidecar)
        pq.write_table(table.append_column("licence", pa.array(["CC0"] * len(table))), sidecar)
    write_pool_yaml(pool, name="late", sources=[{"name": "june", "shards": "shards/{00000..00001}.tar"}], classes=[*PHOTOS, "moon"])
    run = append(tmp_path / "run", pool)
    assert run.info["classes"] == [*PHOTOS, "moon"]
    assert verify(run.path, deep=True)["findings"] == []
    assert query(run.path, "SELECT licence, count(*) AS n FROM ledger GROUP BY ALL ORDER BY n")["n"].to_pylist() == [5, CUT]
    assert query(run.path, "SELECT count(licence) AS n FROM measure_index")["n"].to_pylist() == [5]


def test_a_run_that_is_not_finished_is_refused(home, copied, tmp_path):
    assert refused(append, tmp_path / "nothing", home / "new").slug == "no-such-file"
    (tmp_path / "empty").mkdir()
    assert refused(append, tmp_path / "empty", home / "new").slug == "not-a-run"
    (copied / "run.json").unlink()
    error = refused(append, copied, home / "late")
    assert (error.slug, "curate build" in error.cure) == ("not-a-run", True)
    assert refused(append, home / "run", None).slug == "bad-value"


def test_the_old_pool_may_be_gone_unless_pictures_are_compared(home, tmp_path):
    pool = shutil.copytree(home / "old", tmp_path / "pool")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(MEASURES + "  - select.kcenter: {vectors: pixels, keep: 0.5}\n")
    plain = build(home, pool, tmp_path / "plain", recipe).path
    compared = build(home, pool, tmp_path / "compared").path
    pool.rename(tmp_path / "away")
    run = append(plain, home / "new")
    assert run.info["counts"]["rows"] == 40
    assert verify(plain)["findings"] == []
    assert refused(append, plain, None, redecide=True).slug == "no-such-file"
    assert verify(plain)["findings"] == []
    error = refused(append, compared, home / "new")
    assert (error.slug, "earlier generation" in str(error)) == ("no-such-file", True)
    assert open_run(compared).info["counts"]["rows"] == CUT  # whole as it was
    (tmp_path / "away").rename(pool)
    append(compared, home / "new")
    assert open_run(compared).ledger().to_pylist() == open_run(home / "run").ledger().to_pylist()


def test_a_run_of_before_generations_is_appended_to_while_its_pool_is_there(home, tmp_path):
    pool = shutil.copytree(home / "old", tmp_path / "pool")
    build(home, pool, tmp_path / "run")
    info = json.loads((tmp_path / "run" / "run.json").read_text())
    del info["generations"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(info))
    assert verify(tmp_path / "run")["whole"]
    pool.rename(tmp_path / "away")
    assert refused(append, tmp_path / "run", home / "new").slug == "no-such-file"
    (tmp_path / "away").rename(pool)
    assert len(append(tmp_path / "run", home / "new").generations) == 2
    assert verify(tmp_path / "run", deep=True)["findings"] == []


def test_an_older_shard_that_changed_is_refused(home, tmp_path):
    pool = shutil.copytree(home / "old", tmp_path / "pool")
    build(home, pool, tmp_path / "run")
    touched, changed = pool / "shards" / "00000.tar", pool / "shards" / "00001.tar"
    touched.touch()
    shutil.copy(home / "late" / "shards" / "00001.tar", changed)
    error = refused(append, tmp_path / "run", home / "new")
    assert (error.slug, error.where) == ("shard-differs", str(changed))
    shutil.copy(home / "old" / "shards" / "00001.tar", changed)
    assert append(tmp_path / "run", home / "new").info["counts"]["rows"] == 40


@pytest.mark.parametrize("what", ["counts", "ledger", "shards", "an edge file", "rows of another"])
def test_verify_finds_a_generation_that_is_not_as_told(copied, what):
    path = copied / "run.json"
    info = json.loads(path.read_text())
    first, second = info["generations"]
    if what == "counts":
        second["counts"]["kept"] += 1
    elif what == "ledger":
        second["ledger"] = []
    elif what == "shards":
        second["shards"] = first["shards"]
    elif what == "rows of another":
        first["inputs"].append(second["inputs"].pop(0))
    else:
        edges = copied / "edges" / "dedup.perceptual"
        shutil.copy(edges / "00000.parquet", edges / "00001.parquet")
    path.write_text(json.dumps(info))
    found = verify(copied)
    assert not found["whole"]
    assert any("generation" in f["what"] or "digest of its decision" in f["what"] for f in found["findings"])


@pytest.mark.parametrize("what", ["parts/dedup.exact/crops/00000.parquet", "parts/measure.quality/crops/00001.parquet"])
def test_older_parts_that_do_not_stand_are_refused_with_a_cure(home, tmp_path, what):
    shutil.copytree(home / "first", tmp_path / "run")
    (tmp_path / "run" / what).unlink()
    error = refused(append, tmp_path / "run", home / "new")
    assert (error.slug, "curate build" in error.cure) == ("broken-record", True)
    build(home, home / "old", tmp_path / "run")
    append(tmp_path / "run", home / "new")
    assert digests(tmp_path / "run") == digests(home / "run")


def test_an_append_that_was_stopped_is_finished_before_another(home, tmp_path, monkeypatch):
    from curate import building

    shutil.copytree(home / "first", tmp_path / "run")

    def stop(*given, **named):
        raise KeyboardInterrupt

    finish = building.finish
    monkeypatch.setattr(building, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        append(tmp_path / "run", home / "new")
    monkeypatch.setattr(building, "finish", finish)
    error = refused(append, tmp_path / "run", home / "late")
    assert (error.slug, str(home / "new") in error.cure) == ("not-a-run", True)
    append(tmp_path / "run", home / "new")
    assert digests(tmp_path / "run") == digests(home / "run")


def test_a_dry_run_writes_nothing(home, copied):
    before = written(copied)
    plan = append_plan(copied, pool=str(home / "late"), workers=1, device="cpu")
    assert written(copied) == before
    assert (plan["shards"], {s["stage"]: s["done"] for s in plan["stages"]}["measure.index"]) == (2, 0)
    done = CliRunner().invoke(main, ["append", str(copied), "--redecide", "--dry-run", "--json", "--device", "cpu"])
    assert json.loads(done.output)["rows"] == 40
    assert written(copied) == before


def test_the_verb_prints_the_run(home, tmp_path):
    shutil.copytree(home / "first", tmp_path / "run")
    given = ["append", str(tmp_path / "run"), "--pool", str(home / "new"), "--workers", "1", "--device", "cpu", "--memory", "1GiB", "--json"]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0
    assert json.loads(done.stdout)["law"]["rows"] == 40
    assert digests(tmp_path / "run") == digests(home / "run")
