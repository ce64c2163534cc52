"""`cache/shards.json`: what was seen of a shard serves as long as the shard is the same; what cannot be read, or is odd, was not seen."""

import json
import os
import shutil
from pathlib import Path

import pytest

import curate
from curate.dry_run import dry_run
from curate.measuring import index_digest, shard_signature
from curate.shard_cache import cached_digests, cached_inputs, cached_shards, remember
from manifests.shards.pool_yaml import open_pool
from tests.curate.test_building import digests
from tests.small_pool import samples, write_pool

RECIPE = "format: 1\nstages:\n  - measure.quality:\n  - select.random: {keep: 0.5}\nshards: false\n"


@pytest.fixture
def pool(tmp_path):
    write_pool(tmp_path / "pool", samples()[:6], per_shard=2)
    return open_pool(str(tmp_path / "pool"))


def seen(pool, *ids):
    return {s.id: (shard_signature(s), f"digest of {s.id}") for s in pool.shards if not ids or s.id in ids}


def test_what_was_noted_is_known_until_the_shard_changes(pool, tmp_path):
    first, *others = (s.id for s in pool.shards)
    remember(tmp_path, pool, seen(pool, first))
    assert cached_digests(tmp_path, pool) == {first: f"digest of {first}"}
    remember(tmp_path, pool, seen(pool, *others))
    assert cached_digests(tmp_path, pool) == {s.id: f"digest of {s.id}" for s in pool.shards}
    assert cached_inputs(tmp_path) == {index_digest(f"digest of {s.id}"): f"digest of {s.id}" for s in pool.shards}
    assert cached_digests(tmp_path, pool, recheck=True) == {}
    os.utime(pool.shards[0].url, ns=(1, 1))
    assert set(cached_digests(tmp_path, pool)) == set(others)


WHOLE = {"signature": [], "digest": "d", "classes": []}
ODD = [
    None,
    "",
    "{",
    '{"a": {"signature": [',
    "[]",
    "3",
    "null",
    '"text"',
    b"\xff\xfe\x00broken",
    *({"URL": entry} for entry in (None, 3, "x", [], {}, {**WHOLE, "digest": 3}, {**WHOLE, "digest": None}, {**WHOLE, "classes": None})),
    *({"URL": {name: value for name, value in WHOLE.items() if name != gone}} for gone in WHOLE),
]


def spoil(root: Path, what) -> None:
    path = root / "cache" / "shards.json"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if what is not None:
        path.write_bytes(what if isinstance(what, bytes) else (what if isinstance(what, str) else json.dumps(what)).encode())


@pytest.mark.parametrize("odd", ODD, ids=lambda odd: repr(odd)[:40])
def test_an_unreadable_or_odd_cache_is_an_empty_one(pool, tmp_path, odd):
    spoil(tmp_path, odd if not isinstance(odd, dict) else {pool.shards[0].url: odd["URL"]})
    assert cached_shards(tmp_path) == cached_digests(tmp_path, pool) == cached_inputs(tmp_path) == {}
    remember(tmp_path, pool, seen(pool))
    assert len(cached_digests(tmp_path, pool)) == len(pool.shards)


def test_a_folder_in_its_place_is_an_empty_one(pool, tmp_path):
    (tmp_path / "cache" / "shards.json").mkdir(parents=True)
    assert cached_digests(tmp_path, pool) == {}


def test_an_odd_entry_leaves_the_others(pool, tmp_path):
    remember(tmp_path, pool, seen(pool))
    path = tmp_path / "cache" / "shards.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), pool.shards[0].url: {"digest": 3}, "gone": None}))
    assert set(cached_digests(tmp_path, pool)) == {s.id for s in pool.shards[1:]}


@pytest.mark.parametrize("odd", ["{", "[]", '{"URL": {}}', '{"URL": 3}'])
def test_a_build_a_dry_run_and_an_append_stand_an_odd_cache(tmp_path, odd):
    write_pool(tmp_path / "pool", samples()[:6], per_shard=2)
    write_pool(tmp_path / "more", samples()[6:10], per_shard=2, name="more")
    (tmp_path / "r.yaml").write_text(RECIPE)
    given = {"pool": str(tmp_path / "pool"), "out": tmp_path / "run", "workers": 1, "device": "cpu"}
    curate.build(tmp_path / "r.yaml", **given, quiet=True)
    whole = digests(tmp_path / "run")
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    spoiled = odd.replace("URL", open_pool(given["pool"]).shards[0].url)
    spoil(tmp_path / "run", spoiled)
    spoil(tmp_path / "other", spoiled)
    assert dry_run(tmp_path / "r.yaml", **given)["rows"] > 0
    curate.build(tmp_path / "r.yaml", **given, quiet=True)
    assert digests(tmp_path / "run") == whole
    assert curate.append(tmp_path / "other", pool=str(tmp_path / "more"), workers=1, quiet=True, device="cpu").info["counts"]["rows"] == 10
