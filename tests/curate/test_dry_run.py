"""--dry-run says what would happen and writes nothing; what is done shows as done."""

import curate
from curate.dry_run import dry_run, text
from tests.small_pool import write_pool

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
