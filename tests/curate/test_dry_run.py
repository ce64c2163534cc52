"""--dry-run says what would happen and writes nothing; what is done shows as done."""

import pytest
import yaml

import curate
from curate.dry_run import dry_run, text
from curate.plan import _decision_cost
from curate.recipe import parse_recipe
from curate.stages import DECISION, STAGES
from tests.contracts.test_stage_law import configured
from tests.small_pool import write_evaluation_pool, write_pool

RECIPE = 'format: 1\nstages:\n  - measure.quality:\n  - measure.vectors: {encoder: "pixels:4"}\n  - select.kcenter: {vectors: vectors, keep: 5}\nshards: false\n'


def test_a_dry_run_writes_nothing_and_forecasts(tmp_path):
    pool = write_pool(tmp_path / "pool")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    plan = dry_run(recipe, pool=str(pool), out=tmp_path / "run", workers=1, device="cpu")
    assert not (tmp_path / "run").exists()
    assert 20 <= plan["rows"] <= 80  # estimated from bytes: 40 in truth
    assert [s["stage"] for s in plan["stages"]] == ["measure.index", "measure.quality", "measure.vectors", "select.kcenter"]
    assert all(s["done"] == 0 for s in plan["stages"])
    assert plan["stages"][1]["seconds"] > 0
    curate.build(recipe, pool=str(pool), out=tmp_path / "run", workers=1, quiet=True, device="cpu")
    plan = dry_run(recipe, pool=str(pool), out=tmp_path / "run", workers=1, device="cpu")
    assert plan["rows"] == 40
    assert [s["done"] for s in plan["stages"]] == [3, 3, 3, 3]
    assert "nothing was written" in text(plan)


def test_parts_of_a_run_to_reuse_show_as_done(tmp_path):
    pool = write_pool(tmp_path / "pool")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    curate.build(recipe, pool=str(pool), out=tmp_path / "old", workers=1, quiet=True, device="cpu")
    given = {"pool": str(pool), "out": tmp_path / "new", "workers": 1, "device": "cpu"}
    assert [s["done"] for s in dry_run(recipe, **given)["stages"]] == [0, 0, 0, 0]
    plan = dry_run(recipe, **given, reuse=[tmp_path / "old"])
    assert plan["rows"] == 40
    assert [s["done"] for s in plan["stages"]] == [3, 3, 3, 3]
    assert plan["seconds"] == 0
    changed = dry_run(recipe, **given, reuse=[tmp_path / "old"], settings=["select.kcenter.keep=7"])
    assert [s["done"] for s in changed["stages"]] == [3, 3, 3, 0]
    assert not (tmp_path / "new").exists()
    curate.build(recipe, pool=str(pool), out=tmp_path / "new", workers=1, quiet=True, device="cpu", reuse=[tmp_path / "old"])
    part = next((tmp_path / "old" / "parts" / "select.kcenter").rglob("*.parquet"))
    assert part.samefile(tmp_path / "new" / part.relative_to(tmp_path / "old"))  # the plan spoke true


def test_evaluation_pools_have_lines_of_their_own(tmp_path):
    pool, tests = write_pool(tmp_path / "pool"), write_evaluation_pool(tmp_path / "tests")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"format: 1\nevaluate: [{tests}]\nstages:\n  - measure.quality:\nshards: false\n")
    given = {"pool": str(pool), "out": tmp_path / "run", "workers": 1, "device": "cpu"}
    names = [f"small-test: {s}" for s in ("measure.index", "measure.exact_hash", "measure.perceptual_hash")]
    plan = dry_run(recipe, **given)
    lines = {s["stage"]: s for s in plan["stages"]}
    assert list(lines)[:3] == names  # quality is not among them: nothing reads it there
    assert {"measure.index", "measure.quality", "leakage.images"} <= set(lines)
    assert all((lines[n]["done"], lines[n]["parts"]) == (0, 1) and lines[n]["seconds"] > 0 and lines[n]["memory"] > 0 for n in names)
    curate.build(recipe, pool=str(pool), out=tmp_path / "run", workers=1, quiet=True, device="cpu")
    plan = dry_run(recipe, **given)
    assert all(s["done"] == s["parts"] for s in plan["stages"])
    assert "small-test: measure.exact_hash" in text(plan)
    assert all(s["done"] == s["parts"] for s in dry_run(recipe, **{**given, "out": tmp_path / "new"}, reuse=[tmp_path / "run"])["stages"])


def test_what_does_not_fit_shows_in_the_plan(tmp_path):
    pool = write_pool(tmp_path / "pool")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    plan = dry_run(recipe, pool=str(pool), out=tmp_path / "run", workers=1, device="cpu", memory="64MiB")
    assert plan["memory"] > plan["memory_limit"]
    assert "more than the limit" in text(plan)
    assert "more than the limit" not in text(dry_run(recipe, pool=str(pool), out=tmp_path / "run", workers=1, device="cpu", memory="64GiB"))


@pytest.mark.parametrize("name", [n for n, s in STAGES.items() if s.kind == DECISION])
def test_every_decision_is_forecast_from_its_defaults(name, tmp_path):
    """More rows never take less. Where it follows from the sizes of groups, nothing is said."""
    recipe = parse_recipe(yaml.safe_dump({"format": 1, "stages": [configured(name, tmp_path)]}), "recipe")
    small, large = (_decision_cost(recipe.stages[0], rows, {"pixels": 64}, 4 << 30) for rows in (1000, 1_000_000))
    if name == "reduce.information":
        assert small == large == (None, None)
        return
    assert 0 < small[0]() <= large[0]()
    assert 0 < small[1] <= large[1]


def test_leakage_is_forecast_by_the_evaluation_pools(tmp_path):
    """Larger tests, vectors and verified copies take more; of vectors whose width is not known nothing is said."""
    given = [{}, {"vectors": "pixels"}, {"vectors": "pixels", "min_copied": 0.4}]
    stages = [{"leakage.images": {"against": [str(tmp_path / "a"), str(tmp_path / "b")], "as": f"l{i}", **more}} for i, more in enumerate(given)]
    recipe = parse_recipe(yaml.safe_dump({"format": 1, "stages": stages}), "recipe")
    sizes = ({str(tmp_path / "a"): 10, str(tmp_path / "b"): count} for count in (10, 1_000_000))
    few, many = ([_decision_cost(stage, 50_000, {"pixels": 64}, 4 << 30, tests) for stage in recipe.stages] for tests in sizes)
    for costs in (few, many):
        took, needed = [cost[0]() for cost in costs], [cost[1] for cost in costs]
        assert took == sorted(took) and needed == sorted(needed)
    assert all(b[0]() > a[0]() and b[1] > a[1] for a, b in zip(few, many, strict=True))
    assert _decision_cost(recipe.stages[1], 1000, {}, 4 << 30) == (None, None)
