"""The whole road on real pictures: a curated run, spawned one-thread workers that train and test, a killed comparison that goes on."""

import pyarrow.parquet as pq
import pytest
import yaml

from curate.building import build
from pretrain.evidence.compare import compare
from pretrain.evidence.runs import work
from pretrain.evidence.table import table
from tests.pretrain.pictures import digit_pngs, write_pool

RECIPE = {"format": 1, "seed": 0, "stages": [{"select.random": {"keep": 0.5}}]}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    root = tmp_path_factory.mktemp("compare")
    pictures, labels = digit_pngs(420)
    for name, rows in (("pool", slice(0, 200)), ("train", slice(200, 320)), ("test", slice(320, 420))):
        write_pool(root / name, pictures[rows], labels[rows])
    (root / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    build(root / "recipe.yaml", pool=str(root / "pool"), out=root / "run", workers=1, quiet=True)
    plan = {
        "format": 1,
        "run": str(root / "run"),
        "arms": {"full": {}, "kept": {}, "random": {"draws_per_seed": 1}, "untrained": {"runs": 3}, "raw_pixels": {}},
        "objectives": {"cross_entropy": {}},
        "tasks": [{"name": "digits", "train": str(root / "train"), "test": str(root / "test"), "probe": "knn"}],
        "budget": {"samples_seen": 320},
        "training": {"backbone": "timm:test_resnet", "resolution": 16, "batch": 64},
        "margin": {"retain": 0.9},
        "looks": [3],
        "seeds": 1,
        "jobs": 1,
    }
    (root / "plan.yaml").write_text(yaml.safe_dump(plan))
    return root


def test_spawned_workers_train_test_and_publish(lab):
    folder = compare(lab / "plan.yaml", device="cpu")
    scores = pq.read_table(folder / "scores.parquet")
    assert scores.num_rows == 7 * 100 and set(scores["value"].to_pylist()) == {0.0, 1.0}
    one = folder / "runs/cross_entropy/random/0"
    assert {"model.safetensors", "config.json", "metrics.jsonl", "scores.parquet"} <= {p.name for p in one.iterdir()}
    metadata = pq.read_schema(one / "scores.parquet").metadata
    assert b"keepset.seconds.train" in metadata and b"keepset.chosen" in metadata and metadata[b"keepset.device"] == b"cpu"
    assert b"keepset.device" not in pq.read_schema(folder / "runs/none/untrained/0/scores.parquet").metadata
    assert "of one thread, tests included" in table(folder)
    assert "needs at least 3 runs" in table(folder) and "200" in table(folder) and "100" in table(folder)


def test_a_run_made_here_equals_the_worker_s(lab, tmp_path):
    """Scores depend on plan and seed, not on the process that made them."""
    from dataclasses import replace

    from pretrain.evidence.compare import _open
    from pretrain.evidence.plan import read_plan

    comparison = _open(read_plan(lab / "plan.yaml"), None, None, None)
    run = next(r for r in comparison.runs if r.arm == "kept")
    job = comparison.work(run, "cpu")
    assert job.config is not None
    work(replace(job, folder=tmp_path, config={**job.config, "out": str(tmp_path)}))
    mine, theirs = (pq.read_table(f / "scores.parquet") for f in (tmp_path, comparison.folder / run.folder))
    assert mine.equals(theirs)


@pytest.mark.slow
def test_null_run_on_real_pictures(lab, tmp_path):
    """Full against full with other seeds, 20 splits of a bank of cheap runs: words but "not worse" and "cannot tell" at most once."""
    import numpy as np
    import pyarrow as pa

    from pretrain.evidence.judge import judge
    from pretrain.train import train
    from pretrain.transfer import transfer

    tasks = yaml.safe_load((lab / "plan.yaml").read_text())["tasks"]
    bank = []
    for seed in range(16):
        config = {"data": [str(lab / "pool")], "objective": {"name": "cross_entropy"}, "samples_seen": 640, "batch": 64, "resolution": 16}
        made = train({**config, "seed": seed, "out": str(tmp_path / str(seed)), "device": "cpu", "threads": 1}, quiet=True)
        bank.append(transfer(made, tasks, device="cpu"))
    plan = tmp_path / "plan.yaml"
    plan.write_text("format: 1\narms: [full, kept]\ntasks: [digits]\nmargin: {absolute: 0.05}\nlooks: [5]\n")
    words = []
    for split in range(20):
        order = np.random.default_rng(split).permutation(16)
        rows = []
        for arm, members in (("full", order[:5]), ("kept", order[5:10])):
            for run, member in enumerate(members):
                n = bank[member].num_rows
                rows.append(bank[member].append_column("arm", [[arm] * n]).append_column("run", [[run] * n]).replace_schema_metadata(None))
        folder = tmp_path / f"split{split}"
        folder.mkdir()
        pq.write_table(pa.concat_tables(rows), folder / "scores.parquet")
        words += pq.read_table(judge(folder / "scores.parquet", plan=plan) / "verdicts.parquet")["word"].to_pylist()
    assert len(words) == 20 and sum(word in ("better", "worse") for word in words) <= 1
