"""The table of bad input at the level of index and measures: nothing raises, nothing vanishes, every fault has its word."""

import pytest

from curate.measure.exact_hash import exact_hash
from curate.measure.perceptual_hash import perceptual_hash
from curate.measure.quality import quality
from curate.pool import Batch
from manifests.errors import SLUGS
from manifests.shards.index import index_shard, uids
from manifests.shards.pool_yaml import open_pool
from manifests.shards.read import ShardReader
from tests.bad_input.fixtures import FIXTURES, HOSTILE, make_pool

by_name = {f.name: f for f in FIXTURES}


def measured(pool):
    """(index rows, damage, uids) over all shards, with the faults of the measures."""
    rows, damage, names, seen = [], [], [], {}
    for shard in pool.shards:
        indexed = index_shard(shard, classes=pool.classes)
        names += uids(indexed.table, seen)[0].tolist()
        damage += indexed.damage
        found = indexed.table.to_pylist()
        with ShardReader(shard.url) as reader:
            for row in found:
                if row["fault"] is None:
                    batch = Batch([reader.payload(row["offset"], row["size"])])
                    for measure in (quality, exact_hash, perceptual_hash):
                        row |= {k: v[0] for k, v in measure(batch).items()}
                    row["fault"] = batch.faults[0]
        rows += [{k: v.as_py() if hasattr(v, "as_py") else v for k, v in row.items()} for row in found]
    return rows, damage, names


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda f: f.name)
def test_each_sample_gets_its_fault_and_none_vanishes(fixture, tmp_path):
    rows, damage, names = measured(open_pool(make_pool(fixture, tmp_path / "pool")))
    assert [(row["key"], row["fault"]) for row in rows] == list(fixture.rows)
    assert len(set(names)) == len(names)
    assert any(fixture.damage in line for line in damage) if fixture.damage else damage == []


def test_the_table_is_whole():
    assert len(by_name) == len(FIXTURES)
    for fixture in FIXTURES:
        assert fixture.slug is None or fixture.slug in SLUGS
        assert (fixture.status == "quarantined") == any(fault for _, fault in fixture.rows)
        assert fixture.strict_exit_code in (0, 2, 3)


def rows_of(name, tmp_path):
    return measured(open_pool(make_pool(by_name[name], tmp_path / "pool")))[0]


def test_what_the_healthy_odd_ones_say(tmp_path):
    case = {name: rows_of(name, tmp_path / name)[2] for name in ("cmyk", "sixteen_bits", "palette", "animation", "exif_rotated")}
    assert (case["cmyk"]["channels"], case["cmyk"]["format"]) == (4, "jpeg")
    assert case["sixteen_bits"]["channels"] == 1
    assert abs(case["sixteen_bits"]["brightness"] - 127.5) < 1
    assert case["palette"]["channels"] == 4
    assert case["animation"]["is_animated"]
    assert not case["cmyk"]["is_animated"]
    assert case["exif_rotated"]["orientation"] == 6


def test_captions_keys_and_labels(tmp_path):
    assert rows_of("caption_not_utf8", tmp_path / "a")[2]["caption"] == "caf\ufffd"
    assert rows_of("hostile_caption", tmp_path / "b")[2]["caption"] == HOSTILE
    missing = rows_of("missing_label", tmp_path / "c")
    assert [row["label"] for row in missing] == [0, 1, None]
    assert [row["label_name"] for row in missing] == ["zero", "one", None]


def test_identical_pictures_share_every_hash_but_no_uid(tmp_path):
    rows, _, names = measured(open_pool(make_pool(by_name["all_identical"], tmp_path / "pool")))
    for column in ("content", "bytes_hash", "pixels_hash", "phash256_views"):
        assert len({bytes(row[column]) for row in rows}) == 1
    assert len(set(names)) == 12
