"""A whole build on 40 real samples: the law, resume, invalidation, the same bytes, protect, within, nulls, leakage, shards."""

import hashlib
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import curate
from curate import pool_measuring
from manifests.errors import Refusal
from manifests.ledger import read_selection
from manifests.publish import locked
from manifests.run import open_run
from tests.small_pool import samples, write_evaluation_pool, write_pool

RECIPE = """format: 1
seed: 3
stages:
  - measure.quality:
  - measure.exact_hash:
  - measure.perceptual_hash:
  - measure.vectors: {encoder: "pixels:8", as: pixels}
  - leakage.images: {against: [EVAL]}
  - keep.where: {keep: "contrast >= 2", as: blank}
  - dedup.exact:
  - dedup.perceptual:
  - labels.neighbours: {vectors: pixels, k: 5, min_share: 0.2}
  - select.kcenter: {vectors: pixels, keep: 0.8}
  - select.stratified: {keep: 12, by: label, protect: "key = '000001'"}
shards: {samples_per_shard: 5}
"""
PROMISED = ("parts", "ledger", "selection.npy", "shards", "edges", "vectors", "evaluations")  # what "the same bytes" covers


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    write_pool(folder / "pool")
    write_evaluation_pool(folder / "eval")
    (folder / "recipe.yaml").write_text(RECIPE.replace("EVAL", str(folder / "eval")))
    build(folder, "run")
    return folder


def build(home: Path, name: str, *settings: str, workers: int = 1, **options):
    recipe = options.pop("recipe", home / "recipe.yaml")
    return curate.build(
        recipe, pool=str(options.pop("pool", home / "pool")), out=home / name, settings=settings, workers=workers, quiet=True, device="cpu", **options
    )


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of every file that the promise of equal bytes covers."""
    files = [p for top in PROMISED for p in ([run / top] if (run / top).is_file() else sorted((run / top).rglob("*"))) if p.is_file()]
    files = [p for p in files if "cache" not in p.relative_to(run).parts]
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def written(run: Path) -> dict[str, int]:
    return {str(p.relative_to(run)): p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}


def test_the_law_holds_and_every_input_has_a_row(home):
    run = open_run(home / "run")
    counts = run.info["counts"]
    assert counts["rows"] == 40 == counts["kept"] + counts["dropped"] + counts["quarantined"]
    ledger = run.ledger()
    assert ledger.num_rows == 40
    assert sorted(ledger["key"].to_pylist()) == [r["key"] for r in samples()]
    assert pc.count_distinct(ledger["uid"]).as_py() == 40
    for stage in run.stages:
        if stage.kind == "decision":
            assert stage.counts["in"] == stage.counts["kept"] + sum(stage.counts["dropped"].values())


def test_each_planted_thing_is_found(home):
    fate = {r["key"]: r for r in open_run(home / "run").ledger().to_pylist()}
    assert fate["000039"]["status"] == "quarantined"
    assert fate["000039"]["drop_reason"] == "undecodable"
    assert fate["000038"]["drop_stage"] == "blank"
    for copy in ("000034", "000035"):
        stands = {fate[copy]["drop_stage"], fate[samples()[int(copy)]["truth_copy_of"]]["drop_stage"]}
        assert "dedup.exact" in stands
    for copy in ("000036", "000037"):
        stands = {fate[copy]["drop_stage"], fate[samples()[int(copy)]["truth_copy_of"]]["drop_stage"]}
        assert "dedup.perceptual" in stands
    assert fate["000020"]["drop_stage"] == fate["000021"]["drop_stage"] == "leakage.images"
    assert fate["000020"]["witness_pool"] == "small-test"
    assert fate["000001"]["status"] == "kept"


def test_witnesses_were_kept_by_the_stage_that_names_them(home):
    run = open_run(home / "run")
    order = [s.id for s in run.stages]
    rows = run.ledger().to_pylist()
    fate = {r["uid"]: r for r in rows}
    for row in rows:
        if row["witness"] and not row["witness_pool"]:
            witness = fate[row["witness"]]
            assert witness["status"] == "kept" or order.index(witness["drop_stage"]) > order.index(row["drop_stage"])


def test_selection_and_shards_hold_the_kept(home):
    run = open_run(home / "run")
    ledger = run.ledger()
    kept = ledger.filter(pc.equal(ledger["status"], "kept")).to_pylist()
    assert read_selection(home / "run" / "selection.npy") == sorted(r["uid"] for r in kept)
    seen = {}
    for tar in sorted((home / "run" / "shards").glob("*.tar")):
        side = pq.read_table(tar.with_suffix(".parquet"))
        with tarfile.open(tar) as opened:
            names = [m.name for m in opened.getmembers()]
            images = [n for n in names if n.endswith(".jpg")]
            assert len(images) == side.num_rows
            for uid, name in zip(side["uid"].to_pylist(), images, strict=True):
                seen[uid] = opened.extractfile(name).read()
    original = {r["key"]: r["image"] for r in samples()}
    assert seen == {r["uid"]: original[r["key"]] for r in kept}


def test_a_finished_run_writes_nothing(home):
    before = written(home / "run")
    build(home, "run")
    after = written(home / "run")
    assert {k: v for k, v in after.items() if k not in (".lock", "events.jsonl")} == {
        k: v for k, v in before.items() if k not in (".lock", "events.jsonl")
    }


def test_another_spelling_of_the_pools_path_is_the_same_pool(home, monkeypatch):
    before = written(home / "run")
    monkeypatch.chdir(home)
    for pool in ("pool", "./pool/", home / "run" / ".." / "pool"):
        build(home, "run", pool=pool)
        assert written(home / "run")["run.json"] == before["run.json"]


def test_a_changed_parameter_redoes_that_stage_and_what_depends_on_it(home):
    build(home, "changed")
    before = written(home / "changed")
    build(home, "changed", "labels.neighbours.min_share=0.9")
    after = written(home / "changed")
    redone = {k.split("/")[1] for k in after if k.startswith("parts/") and after[k] != before.get(k)}
    assert redone == {"labels.neighbours", "select.kcenter", "select.stratified"}
    build(home, "fresh", "labels.neighbours.min_share=0.9")
    assert digests(home / "changed") == digests(home / "fresh")


def test_reuse_links_what_stands_elsewhere(home):
    build(home, "reused", reuse=[home / "run"])
    assert digests(home / "reused") == digests(home / "run")
    part = next((home / "run" / "parts" / "measure.quality").rglob("*.parquet"))
    assert os.path.samefile(part, home / "reused" / part.relative_to(home / "run"))


def test_rows_with_a_null_are_kept_unjudged_and_counted(home):
    recipe = home / "null.yaml"
    recipe.write_text("format: 1\nstages:\n  - select.stratified: {keep: 5, by: quality_vote}\nshards: false\n")
    run = build(home, "null", recipe=recipe)
    (stage,) = [s for s in run.stages if s.kind == "decision"]
    assert stage.counts["unjudged"] == 1
    row = run.find("000002")
    assert (row["status"], row["score"]) == ("kept", None)


def test_within_decides_inside_each_group(home):
    recipe = home / "within.yaml"
    recipe.write_text("format: 1\nstages:\n  - select.random: {keep: 10, within: group}\nshards: false\n")
    ledger = build(home, "within", recipe=recipe).ledger()
    kept = ledger.filter(pc.equal(ledger["status"], "kept"))
    assert kept.num_rows == 10
    assert sorted(c["counts"] for c in pc.value_counts(kept["group"]).to_pylist()) == [3, 3, 4]


@pytest.mark.parametrize(
    ("line", "slug"),
    [
        ('keep.where: {keep: "truth_copy_of IS NULL"}', "truth-column"),
        ('keep.where: {keep: "nothing > 3"}', "bad-sql"),
        ("select.random: {keep: 3, within: truth_copy_of}", "truth-column"),
        ("select.random: {keep: 3, protect: \"truth_copy_of = '1'\"}", "truth-column"),
        ("dedup.exact: {hash: [pixels_hash]}", "unknown-column"),
        ("select.kcenter: {vectors: clip, keep: 3}", "unknown-column"),
    ],
)
def test_what_no_stage_may_read_is_refused_before_any_work(home, tmp_path, line, slug):
    recipe = tmp_path / "bad.yaml"
    recipe.write_text(f"format: 1\nstages:\n  - {line}\n")
    with pytest.raises(Refusal) as caught:
        build(home, "refused", recipe=recipe)
    assert caught.value.slug in (slug, "unknown-column")
    assert not (home / "refused" / "parts").exists()


def test_two_builds_on_one_run_are_refused(home):
    with locked(home / "run"), pytest.raises(Refusal) as caught:
        build(home, "run")
    assert (caught.value.slug, caught.value.exit_code) == ("run-locked", 6)


def test_strict_writes_everything_and_then_refuses(home):
    with pytest.raises(Refusal) as caught:
        build(home, "run", strict=True)
    assert caught.value.exit_code == 3
    assert (home / "run" / "run.json").exists()


def test_shard_order_on_disk_does_not_matter(home, tmp_path):
    pool = write_pool(tmp_path / "pool")
    text = (pool / "pool.yaml").read_text().replace('"shards/{00000..00002}.tar"', "[shards/00002.tar, shards/00000.tar, shards/00001.tar]")
    (pool / "pool.yaml").write_text(text)
    run = curate.build(home / "recipe.yaml", pool=str(pool), out=tmp_path / "run", workers=1, quiet=True, device="cpu")
    assert run.info["counts"] == open_run(home / "run").info["counts"]
    assert digests(tmp_path / "run") == digests(home / "run")


def test_a_folder_that_is_no_run_is_refused(home, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(Refusal) as caught:
        curate.build(home / "recipe.yaml", pool=str(home / "pool"), out=tmp_path, quiet=True)
    assert caught.value.slug == "not-a-run"
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["mine.txt"]


def test_a_run_as_a_python_object(home):
    run = curate.build(home / "recipe.yaml", pool=str(home / "pool"), out=home / "run", quiet=True, device="cpu")
    kept = run.dataset()
    assert len(kept) == run.info["counts"]["kept"]
    assert kept[0]["image"].dtype == np.uint8
    assert run.explain("000034")["sample"]["uid"] == run.find("000034")["uid"]


def test_a_changed_list_file_decides_anew(home, tmp_path):
    names = tmp_path / "drop.txt"
    names.write_text("000001\n")
    recipe = tmp_path / "list.yaml"
    recipe.write_text(f"format: 1\nstages:\n  - keep.list: {{file: {names}, by: key, listed: drop, reason: asked for by its owner}}\nshards: false\n")
    assert build(home, "listed", recipe=recipe).find("000001")["drop_reason"] == "listed"
    names.write_text("000004\n")
    run = build(home, "listed", recipe=recipe)
    assert (run.find("000001")["status"], run.find("000004")["status"]) == ("kept", "dropped")


def test_a_recipe_with_fewer_shards_leaves_none_of_the_old_ones_and_nothing_of_the_users(home):
    build(home, "fewer")
    note = home / "fewer" / "shards" / "my-notes.txt"
    note.write_text("keep me")
    run = build(home, "fewer", "select.stratified.keep=4")
    assert sorted(p.name for p in (run.path / "shards").glob("*.tar")) == ["00000.tar"]
    assert not (run.path / "shards" / "00001_stats.json").exists()
    assert note.read_text() == "keep me"


def test_a_pool_that_was_replaced_at_its_place_is_read_anew_in_the_same_process(tmp_path):
    rows = samples()
    recipe = tmp_path / "r.yaml"
    recipe.write_text("format: 1\nstages:\n  - measure.exact_hash:\n  - measure.perceptual_hash:\n  - dedup.perceptual:\nshards: false\n")
    write_pool(tmp_path / "pool", rows[4:34])
    build(tmp_path, "before", recipe=recipe)
    shutil.rmtree(tmp_path / "pool")
    write_pool(tmp_path / "pool", rows)
    build(tmp_path, "after", recipe=recipe)
    shutil.copytree(tmp_path / "pool", tmp_path / "elsewhere")
    build(tmp_path, "fresh", recipe=recipe, pool=tmp_path / "elsewhere")
    assert digests(tmp_path / "after") == digests(tmp_path / "fresh")


def test_a_damaged_recipe_in_a_run_is_written_anew(home):
    build(home, "torn")
    whole = (home / "torn" / "recipe.yaml").read_bytes()
    for damaged in (b"\xff\xfe", b"format: 1\nstages: [", whole.replace(b"keep: 12", b"keep: 11")):
        (home / "torn" / "recipe.yaml").write_bytes(damaged)
        build(home, "torn")
        assert (home / "torn" / "recipe.yaml").read_bytes() == whole
    (home / "torn" / "recipe.yaml").write_bytes(b"\xff\xfe")
    build(home, "torn", "select.stratified.keep=11")
    assert open_run(home / "torn").info["counts"]["kept"] == 11


def test_what_a_comparison_is_writing_is_left_alone(home):
    build(home, "compared")
    theirs, ours = home / "compared" / "evidence" / "main" / ".scores.parquet.7.tmp", home / "compared" / "parts" / ".left.7.tmp"
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    ours.touch()
    build(home, "compared", "select.stratified.keep=11")
    assert theirs.exists() and not ours.exists()


def test_shards_that_were_read_are_noted_while_others_are_still_read(home, tmp_path, monkeypatch):
    monkeypatch.setattr(pool_measuring, "SAVED", 0.0)
    noted, note = [], pool_measuring._remember
    monkeypatch.setattr(pool_measuring, "_remember", lambda root, pool, results: (noted.append(len(results)), note(root, pool, results)))
    build(home, str(tmp_path / "noted"))
    assert noted[:4] == [1, 2, 3, 3]


def test_a_run_of_another_pool_goes_with_a_word(tmp_path, capsys):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("format: 1\nstages:\n  - measure.exact_hash:\n  - dedup.exact:\nshards: false\n")
    write_pool(tmp_path / "one", samples()[:8], name="one")
    write_pool(tmp_path / "two", samples()[8:16], name="two")
    curate.build(recipe, pool=str(tmp_path / "one"), out=tmp_path / "run", workers=1, device="cpu")
    assert "holds a run of the pool" not in capsys.readouterr().err
    curate.build(recipe, pool=str(tmp_path / "two"), out=tmp_path / "run", workers=1, device="cpu")
    assert "run holds a run of the pool one" in capsys.readouterr().err
