"""`measure.index` is the floor's index of a shard."""

from curate.measure.index import WRITES, index
from manifests.shards.index import index_shard
from manifests.shards.pool_yaml import open_pool
from tests.bad_input.fixtures import FIXTURES, make_pool


def test_it_is_the_index_of_the_floor(tmp_path):
    pool = open_pool(make_pool(FIXTURES[0], tmp_path / "pool"))
    found, wanted = index(pool.shards[0], classes=pool.classes), index_shard(pool.shards[0], classes=pool.classes)
    assert found.table.equals(wanted.table)
    assert (found.digest, found.damage) == (wanted.digest, wanted.damage)
    assert {name: found.table.schema.field(name).type for name in WRITES} == WRITES
    assert found.table["label_name"].to_pylist()[:2] == ["zero", "one"]
