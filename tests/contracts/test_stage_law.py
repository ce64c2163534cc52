"""Every decision of the table on one real pool of 40: the law, witnesses, order of shards, identical samples, one sample, golden digests."""

import hashlib
import inspect
import json
import os
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

import curate
from curate.pool import Column, Expression, PoolPaths, Share, VectorName
from curate.stages import ANY_MACHINE, DECISION, MEASURE, STAGES
from manifests.signature import load, parameters
from tests.small_pool import samples, write_evaluation_pool, write_pool

GOLDEN = Path(__file__).parents[1] / "golden" / "stage_digests.json"
HERE = [name for name, stage in STAGES.items() if stage.kind == MEASURE and not stage.needs_device]  # their bytes are the same on any machine
MEASURES = [*(name for name in HERE if name != "measure.index"), {"measure.vectors": {"encoder": "pixels:8", "as": "pixels"}}]
DECISIONS = [name for name, stage in STAGES.items() if stage.kind == DECISION]
GIVEN = {VectorName: "pixels", Share: 0.5, Expression: "contrast >= 30", Column: "label", list[str] | None: ["000001", "000003"]}


def configured(name: str, evaluation: Path) -> dict:
    """The stage with every required parameter given by its type, and vectors by the ones that are there."""
    given = {}
    for parameter in parameters(load(name, "curate")).values():
        kind = parameter.annotation
        if kind is PoolPaths:
            given[parameter.name] = [str(evaluation)]
        elif kind is VectorName or (parameter.default is inspect.Parameter.empty and kind in GIVEN):
            given[parameter.name] = GIVEN[kind]
        elif parameter.name == "ids":
            given |= {"ids": GIVEN[list[str] | None], "by": "key"}
    return {name: given}


def decide(folder: Path, pool: Path, name: str, evaluation: Path, out: str, **options):
    recipe = folder / f"{out}.yaml"
    recipe.write_text(yaml.safe_dump({"format": 1, "seed": 5, "stages": [*MEASURES, configured(name, evaluation)], "shards": False}))
    return curate.build(recipe, pool=str(pool), out=folder / out, workers=1, quiet=True, device="cpu", **options)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("law")
    write_pool(folder / "pool")
    write_evaluation_pool(folder / "eval")
    rows = samples()[:38]
    write_pool(folder / "one", rows[:1], name="one")
    write_pool(folder / "identical", [{**rows[0], "key": f"k{i}"} for i in range(12)], per_shard=5, name="identical")
    shuffled = rows[20:] + rows[:20]
    write_pool(folder / "ordered", rows, per_shard=13)
    write_pool(folder / "shuffled", shuffled, per_shard=13)
    return folder


def part_digest(run, stage: str) -> str:
    """SHA-256 over the column values of a stage's parts: what its version vouches for. Where numbers follow the device, over who stays and by whom."""
    found = hashlib.sha256()
    for shard in run.pool.shards:
        table = pq.read_table(run.part(stage, shard.id))
        for name in sorted(table.column_names) if STAGES[stage].same_bytes == ANY_MACHINE else ("keep", "reason", "witness"):
            found.update(f"{name} {table[name].to_pylist()!r}".encode())
    return found.hexdigest()


def fates(run) -> dict[str, tuple]:
    return {r["key"]: (r["status"], r["drop_reason"], r["score"], r["witness"]) for r in run.ledger().to_pylist()}


@pytest.mark.parametrize("name", DECISIONS)
def test_the_law_and_the_witnesses(home, name):
    run = decide(home, home / "pool", name, home / "eval", f"law-{name}")
    counts = run.info["counts"]
    assert counts["rows"] == counts["kept"] + counts["dropped"] + counts["quarantined"] == 40
    rows = {r["uid"]: r for r in run.ledger().to_pylist()}
    for row in rows.values():
        if row["witness"] and not row["witness_pool"]:
            assert rows[row["witness"]]["status"] == "kept"


@pytest.mark.parametrize("name", DECISIONS)
def test_the_order_of_samples_and_shards_reaches_no_verdict(home, name):
    one = decide(home, home / "ordered", name, home / "eval", f"ordered-{name}")
    other = decide(home, home / "shuffled", name, home / "eval", f"shuffled-{name}")
    assert fates(one) == fates(other)


@pytest.mark.parametrize("name", [n for n in DECISIONS if not n.startswith(("keep.", "leakage."))])
def test_of_identical_samples_and_of_one_sample_something_is_kept(home, name):
    assert decide(home, home / "identical", name, home / "eval", f"identical-{name}").info["counts"]["kept"] >= 1
    assert decide(home, home / "one", name, home / "eval", f"one-{name}").info["counts"]["kept"] == 1


def test_golden_digests(home):
    """A stage whose values change must have its version raised; `make update-golden` then writes its new digest, and those of new stages."""
    found = {}
    for name in DECISIONS:
        run = decide(home, home / "pool", name, home / "eval", f"law-{name}")
        found[name] = {"version": STAGES[name].version, "digest": part_digest(run, name)}
    for stage in HERE:
        found[stage] = {"version": STAGES[stage].version, "digest": part_digest(run, stage)}
    golden = json.loads(GOLDEN.read_text())
    for name, entry in found.items():
        same = golden.get(name, {}).get("version") != entry["version"] or golden[name]["digest"] == entry["digest"]
        assert same, f"{name} gives other values than version {entry['version']}; raise its version in curate/stages.py, or find the bug"
    if os.environ.get("KEEPSET_GOLDEN") == "write":
        GOLDEN.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    else:
        stale = sorted(name for name in {*golden, *found} if golden.get(name) != found.get(name))
        assert not stale, f"no golden digest of this version of {', '.join(stale)}: run `make update-golden`, and commit {GOLDEN.name}"


def test_weights_are_of_kept_rows_only(home):
    ledger = decide(home, home / "pool", "select.random", home / "eval", "law-select.random").ledger()
    assert pc.all(pc.equal(pc.is_valid(ledger["weight"]), pc.equal(ledger["status"], "kept"))).as_py()
