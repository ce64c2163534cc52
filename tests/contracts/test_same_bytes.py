"""The same bytes whatever does not belong to pool, recipe and seed: 1, 2 or 8 workers, another listing of the shards, other block sizes."""

import pytest
import yaml

import curate
from manifests import likeness
from manifests.vectors import hamming
from tests.curate.test_building import RECIPE, digests
from tests.small_pool import write_evaluation_pool, write_pool


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Eight shards, so that eight workers have one each; and the undisturbed run."""
    folder = tmp_path_factory.mktemp("bytes")
    write_pool(folder / "pool", per_shard=5)
    write_evaluation_pool(folder / "eval")
    (folder / "recipe.yaml").write_text(RECIPE.replace("EVAL", str(folder / "eval")).replace("samples_per_shard: 5", "samples_per_shard: 2"))
    build(folder, "run", 1)
    return folder


def build(home, out, workers):
    return curate.build(home / "recipe.yaml", pool=str(home / "pool"), out=home / out, workers=workers, quiet=True, device="cpu")


@pytest.mark.parametrize("workers", [2, 8])
def test_any_number_of_workers(home, workers):
    build(home, f"run-{workers}", workers)
    assert digests(home / f"run-{workers}") == digests(home / "run")


def test_any_block_size(home, monkeypatch):
    for module, name, value in (
        (hamming, "BLOCK", 7), (hamming, "SLICE", 16), (hamming, "BASE_BLOCK", 50), (hamming, "WINDOWS", (1, 2)), (hamming, "BRUTE", 1e9),
        (hamming, "MAX_CHUNK", 8), (likeness, "PAIRS", 5),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    build(home, "blocks", 1)
    assert digests(home / "blocks") == digests(home / "run")


def test_any_listing_of_the_shards(home):
    path = home / "pool" / "pool.yaml"
    before = path.read_text()
    told = yaml.safe_load(before)
    told["sources"][0]["shards"] = [f"shards/{i:05d}.tar" for i in (3, 7, 0, 2, 6, 1, 5, 4)]
    path.write_text(yaml.safe_dump(told))
    try:
        build(home, "listed", 1)
    finally:
        path.write_text(before)
    assert digests(home / "listed") == digests(home / "run")
