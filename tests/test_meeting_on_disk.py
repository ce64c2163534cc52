"""Where the rooms meet: a run trained without copying, its shards, and a trained model that is the next build's encoder."""

import numpy as np
import pytest

import curate
from manifests.schema import KEPT
from pretrain.samples import open_samples
from pretrain.train import train
from tests.small_pool import write_pool

RECIPE = (
    "format: 1\nstages:\n  - measure.exact_hash:\n  - dedup.exact:\n  - select.stratified: {keep: 20, by: label}\nshards: {samples_per_shard: 8}\n"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    home = tmp_path_factory.mktemp("meet")
    (home / "r.yaml").write_text(RECIPE)
    return curate.build(home / "r.yaml", pool=str(write_pool(home / "pool")), out=home / "run", workers=1, quiet=True)


def held(source) -> dict[str, tuple[bytes, int]]:
    samples = open_samples([str(source)])
    return {uid: (bytes(samples.payload(row)), int(samples.label[row])) for row, uid in enumerate(samples.uid.tolist())}


def test_a_run_and_its_shards_hold_the_same_samples(run):
    """(uid, bytes, label) are equal, whether training reads the pool through the ledger or the copies."""
    through_the_ledger, copies = held(run.path), held(run.path / "shards")
    assert through_the_ledger == copies
    ledger = run.ledger().to_pylist()
    assert set(copies) == {r["uid"] for r in ledger if r["status"] == KEPT}
    assert {uid: label for uid, (_, label) in copies.items()} == {r["uid"]: r["label"] for r in ledger if r["status"] == KEPT}


def test_a_pool_gives_the_uids_that_the_ledger_has(run):
    pool = held(run.pool.folder())
    healthy = {r["uid"]: r["label"] for r in run.ledger().to_pylist() if r["size"]}
    assert {uid: label for uid, (_, label) in pool.items()} == healthy


def test_a_trained_model_is_the_next_encoder(run, tmp_path):
    config = {
        "data": [str(run.path)], "out": str(tmp_path / "model"), "objective": {"name": "cross_entropy"}, "samples_seen": 64, "batch": 16, "resolution": 32, "threads": 1, "workers": 0,
        "device": "cpu",
    }  # fmt: skip
    model = train(config, quiet=True)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f'format: 1\nstages:\n  - measure.vectors: {{encoder: "checkpoint:{model}", as: mine}}\n  - select.kcenter: {{vectors: mine, keep: 10}}\nshards: false\n'
    )
    found = curate.build(recipe, pool=run.pool.folder(), out=tmp_path / "run", workers=1, quiet=True, device="cpu")
    assert found.info["counts"]["kept"] == 10
    shard = found.pool.shards[0]
    from manifests.vectors.store import Vectors

    vectors = Vectors.open([found.vectors("mine", shard.id)])
    assert np.allclose(np.linalg.norm(vectors.take(np.arange(5)), axis=1), 1, atol=1e-2)
