"""Pools beside each other in one run: names of sources, classes, the record, and which recipe goes on with a run that grew."""

from dataclasses import replace

import pytest

from curate.generations import Generations, as_grown, generations_of, same_place
from curate.recipe import parse_recipe
from manifests.errors import Refusal
from manifests.shards.pool_yaml import PoolDescription, Shard, apart, joined, pool_record, recorded_pool


def pool(name: str, *sources: str, classes: tuple[str, ...] = (), **more) -> PoolDescription:
    shards = tuple(Shard(source, f"{n:05d}", f"/pools/{name}/{source}-{n}.tar") for source in sources for n in range(2))
    return PoolDescription(f"/pools/{name}/pool.yaml", name, shards, classes, **more)


def test_a_source_that_is_there_already_gets_the_next_number():
    found = apart([pool("a", "shards"), pool("b", "shards", "shards-2"), pool("c", "web", "shards")])
    assert [list(dict.fromkeys(s.source for s in p.shards)) for p in found] == [["shards"], ["shards-3", "shards-2"], ["web", "shards-4"]]
    first = found[1].shards[0]
    assert (first.folder, first.own, first.url) == ("/pools/b", "shards", "/pools/b/shards-0.tar")
    assert len(set(joined(found).shards)) == 10
    assert joined(found[:1]) == found[0]


def test_classes_hold_for_a_pool_without_any_and_may_grow_at_the_end():
    found = apart(
        [pool("a", "s", classes=("cat", "dog")), pool("b", "s"), pool("c", "s", classes=("cat", "dog", "owl")), pool("d", "s", classes=("cat",))]
    )
    assert [p.classes for p in found] == [("cat", "dog"), ("cat", "dog"), ("cat", "dog", "owl"), ("cat",)]
    assert joined(found).classes == ("cat", "dog", "owl")
    with pytest.raises(Refusal) as caught:
        apart([pool("a", "s", classes=("cat", "dog")), pool("b", "s", classes=("dog", "cat"))])
    assert caught.value.slug == "bad-pool"


def test_what_is_attached_and_the_columns_are_joined_by_name():
    one = pool("a", "s", columns={"x": "double"}, attached=({"name": "clip", "kind": "vectors", "columns": {"clip": "float16[8]"}},))
    two = pool("b", "s", columns={"x": "int64", "y": "string"}, attached=({"name": "score", "columns": {"score": "double"}},))
    whole = joined(apart([one, two]))
    assert [entry["name"] for entry in whole.attached] == ["clip", "score"]
    assert whole.columns == {"x": "double", "y": "string"}


def test_a_pool_comes_back_from_its_record():
    given = pool("a", "s", "t", classes=("cat",), columns={"x": "double"}, licence="CC0", attached=({"name": "clip"},))
    renamed = apart([pool("z", "s"), given])[1]
    assert recorded_pool(pool_record(renamed)) == given
    assert [s.url for s in recorded_pool(pool_record(given)).shards] == [s.url for s in given.shards]


def test_the_first_pools_are_one_generation_each_further_one_is_its_own():
    found = Generations(tuple(apart([pool(n, "s") for n in "abcd"])), together=2)
    assert found.bounds == (0, 4, 6)
    assert [[p.name for p in group] for group in found.groups] == [["a", "b"], ["c"], ["d"]]


def test_a_pool_without_shards_is_refused():
    recipe = parse_recipe("format: 1\npool: /a\nappend: [/b]\nstages: []\n", "test")
    with pytest.raises(Refusal) as caught:
        generations_of(recipe, [pool("a", "s"), pool("b")])
    assert caught.value.slug == "empty-pool"


@pytest.mark.parametrize("line", ["append: /b", "append: [1]", "append: [/b]\nredecided: 2", "append: [/b]\nredecided: true", "redecided: 1"])
def test_what_a_recipe_may_say_of_its_growth(line):
    with pytest.raises(Refusal) as caught:
        parse_recipe(f"format: 1\npool: /a\n{line}\nstages: []\n", "test")
    assert caught.value.slug == "bad-recipe"


def test_a_recipe_without_growth_is_written_as_ever():
    plain = parse_recipe("format: 1\npool: /a\nstages: [measure.quality]\n", "test")
    assert "append" not in plain.yaml()
    grown = replace(plain, append=("/b", "/c"), redecided=1)
    assert parse_recipe(grown.yaml(), "test") == grown


def test_the_same_recipe_goes_on_and_another_is_refused(tmp_path):
    plain = parse_recipe(f"format: 1\npool: {tmp_path}/a\nstages: [measure.quality]\n", "test")
    grown = replace(plain, append=(f"{tmp_path}/b",))
    assert as_grown(plain, tmp_path) == plain
    (tmp_path / "recipe.yaml").write_text(grown.yaml())
    assert as_grown(plain, tmp_path) == grown
    assert as_grown(replace(plain, pool=f"{tmp_path}/x/../a"), tmp_path).append == grown.append
    assert as_grown(replace(grown, seed=5), tmp_path).seed == 5  # it names the pools itself: nothing is dropped
    for other in (replace(plain, seed=5), replace(plain, pool=f"{tmp_path}/c"), replace(plain, stages=())):
        with pytest.raises(Refusal) as caught:
            as_grown(other, tmp_path)
        assert caught.value.slug == "bad-recipe"
    (tmp_path / "recipe.yaml").write_text("format: 1\nstages: nothing\n")
    assert as_grown(plain, tmp_path) == plain


def test_places_are_compared_by_where_they_lead(tmp_path):
    (tmp_path / "pool").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pool")
    assert same_place(str(tmp_path / "link"), str(tmp_path / "pool" / "pool.yaml"))
    assert not same_place("s3://a/b", "s3://a/c")
