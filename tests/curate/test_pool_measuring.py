"""curate.pool_measuring: progress counts samples where their number is known beforehand, shards where it is not."""

import json

import pytest

import curate
from tests.small_pool import write_pool


def progress(run):
    """(what, done, total) of the last progress line of each step of a build."""
    rows = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {row["what"]: (row["done"], row["total"]) for row in rows if row["event"] == "progress"}


def built(pool, out, workers=1):
    recipe = out.parent / "r.yaml"
    recipe.write_text("format: 1\nstages:\n  - measure.exact_hash:\n  - dedup.exact:\nshards: false\n")
    return curate.build(recipe, pool=str(pool), out=out, workers=workers, quiet=True, device="cpu").path


@pytest.mark.parametrize("workers", [1, 2])
def test_samples_are_counted_where_the_shards_sizes_are_known(tmp_path, workers):
    pool = write_pool(tmp_path / "pool")
    sizes = {"00000.tar": 15, "00001.tar": 15, "00002.tar": 10}
    (pool / "shards" / "sizes.json").write_text(json.dumps(sizes))
    assert progress(built(pool, tmp_path / "run", workers))["small: exact_hash"] == (40, 40)


@pytest.mark.parametrize("sizes", [None, "[]", "{", json.dumps({"00000.tar": 15}), json.dumps({f"0000{i}.tar": "x" for i in range(3)})])
def test_shards_are_counted_where_they_are_not(tmp_path, sizes):
    pool = write_pool(tmp_path / "pool")
    if sizes is not None:
        (pool / "shards" / "sizes.json").write_text(sizes)
    run = built(pool, tmp_path / "run")
    assert progress(run)["small: exact_hash"] == (3, 3)


def test_after_the_first_reading_the_index_tells(tmp_path):
    pool = write_pool(tmp_path / "pool")
    run = built(pool, tmp_path / "run")
    (run / "parts" / "measure.exact_hash" / "crops" / "00001.parquet").unlink()
    built(pool, run)
    assert progress(run)["small: exact_hash"] == (40, 40)


def test_sizes_that_are_wrong_change_nothing_but_the_counter(tmp_path):
    pool = write_pool(tmp_path / "pool")
    right = built(pool, tmp_path / "right")
    (pool / "shards" / "sizes.json").write_text(json.dumps({f"0000{i}.tar": 7 for i in range(3)}))
    wrong = built(pool, tmp_path / "wrong")
    assert progress(wrong)["small: exact_hash"] == (21, 21)
    for part in sorted(right.glob("parts/**/*.parquet")):
        assert part.read_bytes() == (wrong / part.relative_to(right)).read_bytes()
