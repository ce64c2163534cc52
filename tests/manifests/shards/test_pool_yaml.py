"""`pool.yaml` is checked before anything it names becomes a path."""

import pytest

from manifests.errors import Refusal
from manifests.shards.pool_yaml import expand, open_pool, write_pool_yaml


@pytest.mark.parametrize(
    "body",
    [
        "sources: [{name: '..', shards: a.tar}]",
        "sources: [{name: 'a/b', shards: a.tar}]",
        "sources: [{name: a, shards: 5}]",
        "sources: [{name: a, shards: [5]}]",
        "sources: [{name: a, shards: x/..tar}]",
        "sources: [{name: a}]",
        "sources: [{name: a, shards: a.tar}]\nattached: [{name: '../out'}]",
        "sources: [{name: a, shards: a.tar}]\nattached: [clip]",
        "sources: [{name: a, shards: [x/1.tar, y/1.tar]}]",
        "colour: red",
    ],
)
def test_what_is_no_pool_is_refused(tmp_path, body):
    (tmp_path / "pool.yaml").write_text(f"format: 1\n{body}\n")
    with pytest.raises(Refusal) as caught:
        open_pool(tmp_path)
    assert caught.value.slug == "bad-pool"


def test_brace_ranges():
    assert expand("a/{08..11}.tar") == ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]
    assert expand("{x,y}/0.tar::z.tar") == ["x/0.tar", "y/0.tar", "z.tar"]


def test_text_comes_back_as_text(tmp_path):
    write_pool_yaml(tmp_path, name="1e-3", sources=[{"name": "on", "shards": ["b.tar", "a.tar"]}], classes=["08", "true", "null"])
    pool = open_pool(tmp_path)
    assert (pool.name, pool.classes) == ("1e-3", ("08", "true", "null"))
    assert [s.name for s in pool.shards] == ["a", "b"]
