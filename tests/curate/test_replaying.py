"""curate replay: 100 random settings against full builds, what it refuses, a run whose pool is gone, a whole run that a build goes on with."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import curate
import manifests
from curate.appending import append
from curate.plan import evaluation_paths
from curate.recipe import read_recipe
from curate.replaying import replay, text
from manifests.errors import Refusal
from manifests.publish import published_digest
from manifests.report.page import report
from manifests.run import open_run
from tests.curate.test_building import digests, written
from tests.small_pool import crops, jpeg, write_evaluation_pool, write_pool

MEASURES = ["measure.quality", "measure.exact_hash", "measure.perceptual_hash", {"measure.vectors": {"encoder": "pixels:8", "as": "pixels"}}]
FIRST = [{"dedup.exact": {}}, {"dedup.perceptual": {}}]
LATER = [
    {"keep.where": {"keep": "contrast >= 2", "as": "blank"}}, {"dedup.all_pairs": {"vectors": "pixels", "min_cosine": 0.99, "floor_cosine": 0.9}},
    {"labels.neighbours": {"vectors": "pixels", "k": 5, "min_share": 0.2}}, {"reduce.redundancy": {"vectors": "pixels", "keep": 0.9}},
    {"select.kcenter": {"vectors": "pixels", "keep": 0.8}}, {"select.stratified": {"keep": 20, "by": "label", "protect": "key < '000004'"}},
]  # fmt: skip
SETTINGS = 100


def rows() -> list[dict]:
    """62 samples: 40 crops, re-encoded and mirrored copies, byte copies, a blank and a broken one; odd ones have no `quality_vote`."""
    pictures = crops(40)
    found = [{"image": jpeg(p), "label": label} for p, label in pictures]
    found += [{"image": jpeg(pictures[i][0], 20 + 7 * i), "label": pictures[i][1]} for i in range(10)]
    found += [{"image": jpeg(pictures[i][0][:, ::-1], 70), "label": pictures[i][1]} for i in range(3, 9)]
    found += [dict(found[i]) for i in (1, 12, 45, 52)]
    found += [{**found[0], "image": jpeg(pictures[0][0] // 16 + 120)}, {**found[0], "image": found[0]["image"][:400]}]
    random.Random(2).shuffle(found)
    for number, row in enumerate(found):
        row |= {
            "key": f"{number:06d}",
            "caption": "",
            "group": f"g{number % 3}",
            "truth_copy_of": None,
            "quality_vote": None if number % 2 else number / 60,
        }
    return found


def recipe(folder: Path, name: str, stages: list, **fields) -> Path:
    path = folder / f"{name}.yaml"
    given = {"format": 1, "seed": 3, "stages": [*MEASURES, *stages], "shards": {"samples_per_shard": 7}, **fields}
    path.write_text(yaml.safe_dump(given, sort_keys=False))
    return path


def build(folder: Path, name: str, given: Path, *reuse: str, **options):
    pool = str(options.pop("pool", folder / "pool"))
    others = [folder / other for other in reuse]
    return curate.build(given, pool=pool, out=folder / name, reuse=others, workers=1, quiet=True, device="cpu", **options)


def same_ledger(one: Path, other: Path) -> None:
    """All that both runs say of every sample and stage is equal, the digests included."""
    first, second = open_run(one), open_run(other)
    a, b = first.ledger().to_pylist(), second.ledger().to_pylist()
    assert a == b, next((x, y) for x, y in zip(a, b, strict=True) if x != y)
    assert first.stages == second.stages
    assert first.info["counts"] == second.info["counts"]
    assert (one / "selection.npy").read_bytes() == (other / "selection.npy").read_bytes()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    write_pool(folder / "pool", rows(), per_shard=25)
    write_evaluation_pool(folder / "eval")
    build(folder, "measured", recipe(folder, "measured", [], shards=False))
    build(folder, "run", recipe(folder, "run", [*FIRST, *LATER]), "measured")
    return folder


def random_recipe(rng: random.Random) -> list:
    """Stages with other values, some left out, in another order."""
    stages = [json.loads(json.dumps(stage)) for stage in (*FIRST, *LATER)]
    exact, perceptual, where, pairs, labels, redundancy, kcenter, stratified = stages
    exact["dedup.exact"] = rng.choice([{}, {}, {"prefer": ["num_bytes"]}])
    perceptual["dedup.perceptual"] = {"max_rms": round(rng.uniform(0, 18), 2), "prefer": rng.choice([["num_pixels"], ["num_bytes"], []])}
    where["keep.where"]["keep"] = f"contrast >= {rng.choice([0, 2, 40, 55])}"
    pairs["dedup.all_pairs"]["min_cosine"] = round(rng.uniform(0.9, 1), 4)
    labels["labels.neighbours"]["k"] = rng.choice([3, 5, 9])
    redundancy["reduce.redundancy"]["keep"] = rng.choice([0.5, 0.9])
    kcenter["select.kcenter"]["keep"] = rng.choice([10, 0.8])
    stratified["select.stratified"] |= rng.choice([{"keep": 9}, {"protect": "key > '000050'"}, {"within": "group", "keep": 0.5}])
    later = [stage for stage in stages[2:] if rng.random() < 0.7]
    if rng.random() < 0.6:
        rng.shuffle(later)
    first = [exact, perceptual] if rng.random() < 0.9 else [perceptual]
    if rng.random() < 0.15:
        first, later = [exact], [*later[:1], perceptual, *later[1:]]
    return [*first, *later]


def reaching(run: Path, stage: str) -> set[str]:
    """The uids that came to a stage."""
    opened = open_run(run)
    found: set[str] = set()
    for shard in opened.shards():
        uid = pq.read_table(opened.part("identity", shard.id))["uid"]
        found |= set(uid.filter(pq.read_table(opened.part(stage, shard.id))["keep"].is_valid()).to_pylist())
    return found


def refusal_of(run: Path, **options) -> Refusal | None:
    """Replays, and says why not."""
    try:
        replay(run, device="cpu", **options)
    except Refusal as refusal:
        return refusal
    return None


@pytest.mark.timeout(900)
def test_random_settings_give_the_ledger_of_a_full_build(home):
    rng, equal, refused = random.Random(11), 0, 0
    for _ in range(SETTINGS):
        given = recipe(home, "given", random_recipe(rng))
        for folder in ("replayed", "built"):
            shutil.rmtree(home / folder, ignore_errors=True)
        refusal = refusal_of(home / "run", recipe=given, out=home / "replayed")
        if refusal is not None:
            assert refusal.slug == "not-replayable"
            stage = refusal.where.rsplit(": ", 1)[1]
            build(home, "built", given, "measured")
            assert reaching(home / "built", stage) - reaching(home / "run", stage)  # nobody has ever looked at the pairs of these
            refused += 1
            continue
        build(home, "built", given, "measured")
        same_ledger(home / "replayed", home / "built")
        equal += 1
    assert equal >= 0.6 * SETTINGS, (equal, refused)
    assert refused


def test_a_pool_that_is_gone_and_the_run_stays_as_it_is(home, tmp_path):
    shutil.copytree(home / "pool", tmp_path / "pool")
    run = build(tmp_path, "run", recipe(tmp_path, "run", [*FIRST, *LATER])).path
    shutil.rmtree(tmp_path / "pool")
    before = digests(run)
    settings, order = ["dedup.perceptual.max_rms=5.5", "select.stratified.keep=12"], "select.kcenter,labels.neighbours"
    found = replay(run, settings=settings, without=["blank"], order=order, out=tmp_path / "out", device="cpu")
    assert found["how"]["dedup.perceptual"] == "folded"
    assert digests(run) == before
    assert manifests.verify(tmp_path / "out")["whole"]
    stages = [json.loads(json.dumps(stage)) for stage in (*FIRST, *LATER)]
    stages[1]["dedup.perceptual"]["max_rms"], stages[7]["select.stratified"]["keep"] = 5.5, 12
    stages[4], stages[6] = stages[6], stages[4]
    del stages[2]
    same_ledger(tmp_path / "out", build(home, "moved", recipe(home, "moved", stages), "measured").path)


def test_a_whole_run_is_opened_by_all_and_a_build_only_writes_its_shards(home, tmp_path):
    given = recipe(home, "whole", [*FIRST, *LATER[2:]])
    out = tmp_path / "out"
    shutil.copytree(home / "run", tmp_path / "run")
    shown = replay(tmp_path / "run", recipe=given, out=out, device="cpu")
    assert manifests.verify(out, deep=True)["whole"]
    assert manifests.show(out)["law"]["kept"] == shown["counts"]["kept"]
    assert [{k: step[k] for k in ("stage", "in", "left")} for step in manifests.show(out)["funnel"]] == [
        {k: step[k] for k in ("stage", "in", "left")} for step in shown["funnel"]
    ]
    assert manifests.diff(home / "run", out)["moved"] == shown["flows"]["moved"]
    assert manifests.query(out, "SELECT count(*) AS n FROM samples").to_pylist() == [{"n": 62}]
    some = open_run(out).ledger(["uid", "status"]).to_pylist()
    assert manifests.explain(out, next(r["uid"] for r in some if r["status"] == "dropped"))
    assert report(out).stat().st_size > 10_000
    before = {name: time for name, time in written(out).items() if name.split("/")[0] in ("parts", "edges", "vectors")}
    build(tmp_path, "out", given, pool=home / "pool")
    after = {name: time for name, time in written(out).items() if name.split("/")[0] in ("parts", "edges", "vectors")}
    assert after == before
    built = build(home, "whole", given, "measured").path
    assert digests(out) == digests(built)
    cast = shown["forecast"]
    tars = list((out / "shards").glob("*.tar"))
    assert (cast["shards"], cast["shard_bytes"]) == (len(tars), sum(t.stat().st_size for t in tars))


def test_shown_is_what_is_written(home, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    settings = ["dedup.perceptual.max_rms=3.0"]
    shown = replay(home / "run", settings=settings, device="cpu")
    wrote = replay(home / "run", settings=settings, out=tmp_path / "out", device="cpu")
    for name in ("counts", "how", "funnel", "forecast"):
        assert shown[name] == wrote[name]
    assert shown["flows"]["moved"] == wrote["flows"]["moved"] != []
    assert "dedup.perceptual: near_duplicate" in text(shown)
    assert "in 1 shard of " in text(shown | {"forecast": shown["forecast"] | {"shards": 1}})
    assert "in 2 shards of " in text(shown | {"forecast": shown["forecast"] | {"shards": 2}})
    assert not list((tmp_path / "scratch").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"settings": ["dedup.perceptual.max_rms=19.0"]}, ["dedup.perceptual", "max_rms: 19.0", "max_rms <= 18.0", "floor_rms"]),
        ({"settings": ["dedup.all_pairs.min_cosine=0.5"]}, ["dedup.all_pairs", "min_cosine >= 0.9", "floor_cosine"]),
        ({"settings": ["dedup.perceptual.side=16"]}, ["dedup.perceptual", "side: 32 → 16", "max_rms"]),
        ({"without": ["dedup.exact"]}, ["dedup.perceptual", "never looked at"]),
        ({"settings": ["dedup.exact.hash=[bytes_hash, label]"]}, ["dedup.exact", "hash", "prefer"]),
        ({"settings": ["measure.vectors.encoder=pixels:4"]}, None),
    ],
)
def test_refused_with_what_would_work(home, options, words):
    if words is None:
        options, words = {"settings": ["pixels.encoder=pixels:4"]}, ["pixels", "pixels:4", "the same parameters"]
    with pytest.raises(Refusal) as refusal:
        replay(home / "run", device="cpu", **options)
    assert refusal.value.slug == "not-replayable"
    assert refusal.value.exit_code == 2
    for word in words:
        assert word in str(refusal.value)


def test_a_measure_or_an_evaluation_pool_that_was_never_measured(home, tmp_path):
    more = recipe(tmp_path, "more", [{"measure.vectors": {"encoder": "pixels:4", "as": "other"}}, *FIRST])
    with pytest.raises(Refusal, match="other: was not measured in this run"):
        replay(home / "run", recipe=more, device="cpu")
    leak = recipe(tmp_path, "leak", [{"leakage.images": {"against": [str(home / "eval")]}}, *FIRST])
    with pytest.raises(Refusal, match="was not measured in this run"):
        replay(home / "run", recipe=leak, device="cpu")
    with pytest.raises(Refusal, match="holds no pairs") as refusal:
        replay(home / "run", recipe=recipe(tmp_path, "new", [{"dedup.perceptual": {"as": "new"}}]), device="cpu")
    assert refusal.value.slug == "not-replayable"
    with pytest.raises(Refusal, match="no stage of this recipe"):
        replay(home / "run", without=["nothing"])
    with pytest.raises(Refusal, match="names a stage twice"):
        replay(home / "run", order="dedup.exact,dedup.exact")
    with pytest.raises(Refusal, match="unknown-column"):
        replay(home / "run", without=["measure.quality"])
    with pytest.raises(Refusal, match="is not empty"):
        replay(home / "run", out=home / "pool")


def test_leakage_is_read_where_it_stands_and_folded_over_its_pairs(home, tmp_path):
    leak = {"leakage.images": {"against": [str(home / "eval")]}}
    run = build(tmp_path, "run", recipe(tmp_path, "run", [leak, *FIRST, *LATER[:1]]), pool=home / "pool").path
    given = recipe(tmp_path, "given", [leak, *FIRST])
    assert replay(run, recipe=given, out=tmp_path / "out")["how"]["leakage.images"] == "read"
    same_ledger(tmp_path / "out", build(tmp_path, "built", given, pool=home / "pool").path)
    assert evaluation_paths(read_recipe(tmp_path / "out" / "recipe.yaml")) == [str(home / "eval")]
    assert replay(run, settings=["leakage.images.max_rms=8.0"])["how"]["leakage.images"] == "folded"
    with pytest.raises(Refusal, match=r"leakage.images: max_distance: 4 → 5 needs other pairs .* may move: max_rms, min_copied, min_cosine"):
        replay(run, settings=["leakage.images.max_distance=5"])
    gone = read_recipe(tmp_path / "run.yaml")
    assert gone.stages[4].name == "leakage.images"
    with pytest.raises(Refusal, match=r"dedup.perceptual: .* never looked at|would look at|that did not when"):
        replay(run, without=["leakage.images"])


def test_exact_copies_of_the_run_are_believed_and_no_others(home, tmp_path):
    """Grouped by label nothing is the same but what was confirmed; another `prefer` keeps another one of each group."""
    given = recipe(tmp_path, "run", [{"dedup.exact": {"hash": ["label"]}}])
    run = build(tmp_path, "run", given, pool=home / "pool").path
    settings = ["dedup.exact.prefer=[num_bytes, blur]"]
    found = replay(run, settings=settings, out=tmp_path / "out")
    assert found["how"] == {"dedup.exact": "decided"}
    same_ledger(tmp_path / "out", build(tmp_path, "built", given, pool=home / "pool", settings=settings).path)
    assert replay(run, settings=["dedup.exact.confirm=false"])["counts"]["kept"] == 4
    loose = build(tmp_path, "loose", given, pool=home / "pool", settings=["dedup.exact.confirm=false"]).path
    with pytest.raises(Refusal, match="were not confirmed in this run"):
        replay(loose, settings=["dedup.exact.confirm=true"])


def test_pairs_of_vectors_are_found_anew_where_the_stored_ones_do_not_serve(home, tmp_path):
    settings = ["dedup.perceptual.max_rms=2.0", "dedup.all_pairs.min_cosine=0.8", "dedup.all_pairs.floor_cosine=0.7"]
    given = recipe(tmp_path, "given", [*FIRST, *LATER[1:]])
    assert replay(home / "run", recipe=given, settings=settings, out=tmp_path / "out", device="cpu")["how"]["dedup.all_pairs"] == "found anew"
    same_ledger(tmp_path / "out", build(home, "anew", given, "measured", settings=settings).path)


@pytest.mark.parametrize("moved", [{"seed": 11}, {"stage": {"within": "group"}}])
def test_pairs_that_follow_from_all_rows_are_others_under_another_seed_or_in_other_groups(home, tmp_path, moved):
    settings = {"vectors": "pixels", "min_cosine": 0.8, "floor_cosine": 0.5, "clusters": 6}
    run = build(tmp_path, "run", recipe(tmp_path, "run", [{"dedup.semdedup": settings}]), pool=home / "pool").path
    given = recipe(tmp_path, "given", [{"dedup.semdedup": settings | moved.get("stage", {})}], **{k: v for k, v in moved.items() if k == "seed"})
    assert replay(run, recipe=given, out=tmp_path / "out", device="cpu")["how"]["dedup.semdedup"] == "found anew"
    same_ledger(tmp_path / "out", build(tmp_path, "built", given, pool=home / "pool").path)
    assert replay(run, recipe=given, device="cpu")["how"]["dedup.semdedup"] == "folded, approximately"


def test_groups_and_nulls(home, tmp_path):
    given = recipe(tmp_path, "run", [{"dedup.perceptual": {"prefer": ["quality_vote"]}}])
    run = build(tmp_path, "run", given, pool=home / "pool").path
    other = ["dedup.perceptual.prefer=[num_pixels]"]  # half of the samples have no vote: they are the least preferred, and were compared all the same
    replay(run, settings=other, out=tmp_path / "other")
    same_ledger(tmp_path / "other", build(tmp_path, "by-size", given, pool=home / "pool", settings=other).path)
    within = ["dedup.perceptual.within=group"]
    replay(run, settings=within, out=tmp_path / "within")
    same_ledger(tmp_path / "within", build(tmp_path, "built", given, pool=home / "pool", settings=within).path)
    with pytest.raises(Refusal, match="pairs across the groups were never looked at"):
        replay(tmp_path / "within", settings=["dedup.perceptual.within=null"])


def test_what_is_damaged_is_refused(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    edges = run / "edges" / "dedup.perceptual" / "00000.parquet"
    table = pq.read_table(edges).slice(1)
    pq.write_table(table.replace_schema_metadata({b"keepset.digest": b"other"}), edges)
    with pytest.raises(Refusal, match="holds no pairs of it"):
        replay(run, settings=["dedup.perceptual.max_rms=3.0"], device="cpu")
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("max_rms: 12.0", "max_rms: 11.0"))
    with pytest.raises(Refusal, match="is not the recipe that the run was finished with"):
        replay(run, device="cpu")
    (run / "run.json").unlink()
    with pytest.raises(Refusal, match="not-a-run"):
        replay(run, device="cpu")


def test_pairs_that_were_capped_are_approximate_where_they_are_shown_and_found_anew_for_a_whole_run(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    edges = run / "edges" / "dedup.all_pairs" / "00000.parquet"
    table, made_of = pq.read_table(edges), published_digest(edges)
    table = table.set_column(table.column_names.index("is_complete"), "is_complete", pa.array([False] * table.num_rows))
    pq.write_table(table.replace_schema_metadata({b"keepset.digest": made_of.encode()}), edges)
    settings = ["dedup.all_pairs.min_cosine=0.999"]
    assert replay(run, settings=settings, device="cpu")["how"]["dedup.all_pairs"] == "folded, approximately"
    whole = replay(run, settings=settings, out=tmp_path / "out", device="cpu")
    assert whole["how"]["dedup.all_pairs"] == "found anew"
    same_ledger(tmp_path / "out", build(home, "capped", home / "run.yaml", "measured", settings=settings).path)


def test_another_version_of_a_stage(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    info = json.loads((run / "run.json").read_text())
    for record in info["stages"]:
        record["version"] -= record["name"] == "dedup.perceptual"
    (run / "run.json").write_text(json.dumps(info))
    with pytest.raises(Refusal, match="was made by version"):
        replay(run, settings=["dedup.perceptual.max_rms=3.0"], device="cpu")


def test_a_run_that_grew(home, tmp_path):
    """Generation by generation, as build and append decide; what one dropped met no later sample, so it cannot come back."""
    pool = rows()
    write_pool(tmp_path / "pool", pool[:40], per_shard=20)
    write_pool(tmp_path / "more", pool[40:], per_shard=20, name="more")
    given, more = recipe(tmp_path, "run", [*FIRST, *LATER]), str(tmp_path / "more")
    build(tmp_path, "run", given)
    append(tmp_path / "run", pool=more, workers=1, device="cpu", quiet=True)
    settings = ["dedup.perceptual.max_rms=16.0"]
    assert replay(tmp_path / "run", settings=settings, out=tmp_path / "out", device="cpu")["how"]["dedup.perceptual"] == "folded"
    build(tmp_path, "built", given, settings=settings)
    append(tmp_path / "built", pool=more, workers=1, device="cpu", quiet=True)
    same_ledger(tmp_path / "out", tmp_path / "built")
    assert manifests.verify(tmp_path / "out")["whole"]
    with pytest.raises(Refusal, match="1 samples come to it that did not"):
        replay(tmp_path / "run", settings=["dedup.perceptual.max_rms=5.0"], device="cpu")


def test_an_older_record_without_its_cache(home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    info = json.loads((run / "run.json").read_text())
    del info["generations"]
    (run / "run.json").write_text(json.dumps(info))
    shutil.rmtree(run / "cache")
    assert replay(run, without=["select.stratified"], device="cpu")["how"]["dedup.perceptual"] == "read"


def test_the_verb(home):
    bin = Path(sys.executable).parent / "curate"
    given = [bin, "replay", home / "run", "--set", "dedup.perceptual.max_rms=3", "--without", "blank", "--device", "cpu"]
    done = subprocess.run([*map(str, given), "--json"], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["how"]["dedup.perceptual"] == "folded"
    done = subprocess.run([*map(str, given), "--set", "dedup.perceptual.max_rms=30"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "[not-replayable]" in done.stderr
