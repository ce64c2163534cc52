"""--dry-run says what would happen and writes nothing; what is done shows as done."""

import pytest
import yaml

import curate
from curate.dry_run import dry_run, text
from curate.forecasting import decision_forecast
from curate.recipe import parse_recipe
from manifests.errors import Refusal
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


@pytest.mark.parametrize("stage", ["", "  - leakage.images: {against: [nope/test]}\n"])
def test_an_evaluation_pool_that_is_not_there_is_refused_with_the_recipes_line(tmp_path, stage):
    recipe = tmp_path / "r.yaml"
    measures = "stages:\n  - measure.exact_hash:\n  - measure.perceptual_hash:\n"
    recipe.write_text(f"format: 1\n{measures}{stage}shards: false\n" + ("" if stage else "evaluate: [nope/test]\n"))
    given = {"pool": str(write_pool(tmp_path / "pool")), "out": tmp_path / "run", "workers": 1, "device": "cpu"}
    for build in (dry_run, lambda *args, **more: curate.build(*args, **more, quiet=True)):
        with pytest.raises(Refusal, match=rf"r\.yaml:{5 if stage else 6}: leakage\.images: nope/test: holds no pool\.yaml.*\[no-such-file\]"):
            build(recipe, **given)
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_shows_in_the_plan(tmp_path):
    pool = write_pool(tmp_path / "pool")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(RECIPE)
    plan = dry_run(recipe, pool=str(pool), out=tmp_path / "run", workers=1, device="cpu", memory="64MiB")
    assert plan["memory"] > plan["memory_limit"]
    assert "more than the limit" in text(plan)
    assert "more than the limit" not in text(dry_run(recipe, pool=str(pool), out=tmp_path / "run", workers=1, device="cpu", memory="64GiB"))


def test_leakage_is_forecast_by_the_evaluation_pools(tmp_path):
    """Larger tests, vectors and verified copies take more; of vectors whose width is not known nothing is said."""
    given = [{}, {"vectors": "pixels"}, {"vectors": "pixels", "min_copied": 0.4}]
    stages = [{"leakage.images": {"against": [str(tmp_path / "a"), str(tmp_path / "b")], "as": f"l{i}", **more}} for i, more in enumerate(given)]
    recipe = parse_recipe(yaml.safe_dump({"format": 1, "stages": stages}), "recipe")
    sizes = ({str(tmp_path / "a"): 10, str(tmp_path / "b"): count} for count in (10, 1_000_000))
    few, many = ([decision_forecast(stage, 50_000, {"pixels": 64}, 4 << 30, tests) for stage in recipe.stages] for tests in sizes)
    for costs in (few, many):
        took, needed = [cost.seconds() for cost in costs], [cost.memory for cost in costs]
        assert took == sorted(took) and needed == sorted(needed)
    assert all(b.seconds() > a.seconds() and b.memory > a.memory for a, b in zip(few, many, strict=True))
    assert decision_forecast(recipe.stages[1], 1000, {}, 4 << 30) is None


def test_a_device_serves_the_decision_that_uses_it(monkeypatch):
    """Three thousand times faster there: `dedup.all_pairs` alone is forecast by that rate."""
    from manifests.vectors import forecast

    rates = forecast.Rates(1e9, 1e9, 1e9)
    monkeypatch.setattr(forecast, "measured_on", lambda device: rates if device == "cpu" else forecast.Rates(3e12, 3e12, 1e9))
    stages = [{"dedup.all_pairs": {"vectors": "pixels"}}, {"select.kcenter": {"vectors": "pixels", "keep": 0.1}}]
    recipe = parse_recipe(yaml.safe_dump({"format": 1, "stages": stages}), "recipe")
    here, there = ([decision_forecast(s, 50_000, {"pixels": 64}, 4 << 30, device=on).seconds() for s in recipe.stages] for on in ("cpu", "cuda"))
    assert here[0] == pytest.approx(3000 * there[0]) and here[1] == there[1]
    assert here[0] == pytest.approx(forecast.pairs(50_000, 64, 16, 4 << 30).seconds(rates))
