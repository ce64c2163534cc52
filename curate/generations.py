"""The pools of a run that grew: which there are, in which generation each stands, and how a recipe tells of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from curate.recipe import Recipe, parse_recipe
from manifests.errors import Refusal
from manifests.shards.pool_yaml import PoolDescription, apart, joined, open_pool
from manifests.shards.read import place_of


@dataclass(frozen=True)
class Generations:
    """The pools of a run in the order in which they came. The first `together` of them are one generation, each further one is its own."""

    pools: tuple[PoolDescription, ...]
    together: int = 1

    @cached_property
    def whole(self) -> PoolDescription:
        """All of them as one pool."""
        return joined(self.pools)

    @property
    def groups(self) -> list[tuple[PoolDescription, ...]]:
        """The pools of each generation."""
        return [self.pools[: self.together], *((pool,) for pool in self.pools[self.together :])]

    @property
    def bounds(self) -> tuple[int, ...]:
        """The shard with which each generation begins."""
        ends, at = [], 0
        for group in self.groups:
            ends.append(at)
            at += sum(len(pool.shards) for pool in group)
        return tuple(ends)


def generations_of(recipe: Recipe, pools: Sequence[PoolDescription] | None = None) -> Generations:
    """The generations that a recipe tells of. Raises `Refusal` [no-such-file], [bad-pool], [empty-pool].

    pools    the pools, where they are known already; default: those at the recipe's paths
    """
    paths = [str(recipe.pool), *recipe.append]
    found = [open_pool(path) for path in paths] if pools is None else list(pools)
    for path, pool in zip(paths, found, strict=True):
        if not pool.shards:
            raise Refusal("empty-pool", path, "has no shards", "at least one")
    return Generations(tuple(apart(found)), 1 + recipe.redecided)


def as_grown(recipe: Recipe, root: Path) -> Recipe:
    """`recipe` with the pools that were appended to the run in `root`.

    Raises `Refusal` [bad-recipe] where it is not that run's recipe: a build would drop them.
    """
    path = root / "recipe.yaml"
    if recipe.append or not path.is_file():
        return recipe
    try:
        grown = parse_recipe(path.read_text(encoding="utf-8"), str(path))
    except (Refusal, UnicodeDecodeError):
        return recipe  # damaged: the build writes it anew
    if not grown.append:
        return recipe
    if _same(replace(grown, append=(), redecided=0), recipe):
        return replace(grown, pool=recipe.pool)
    given = f"holds {len(grown.append)} appended pools ({', '.join(grown.append)}), and this recipe is not the one that it grew by"
    cure = f"Build into a new folder; or change {path} and build that: it names the appended pools"
    raise Refusal("bad-recipe", str(root), given, "the same recipe and pool go on with it", cure)


def is_recorded(recipe: Recipe, root: Path) -> bool:
    """Does `recipe.yaml` in `root` tell of this recipe, whatever way its pool is written? A damaged one does not."""
    try:
        found = parse_recipe((root / "recipe.yaml").read_text(encoding="utf-8"), "")
    except (Refusal, UnicodeDecodeError, FileNotFoundError):
        return False
    return _same(replace(found, pool=recipe.pool), recipe)


def same_place(one: str | None, other: str | None) -> bool:
    """Do two paths or URLs of pools lead to the same place?"""
    places = [None if p is None else place_of(p.removesuffix("/pool.yaml")) for p in (one, other)]
    return places[0] == places[1]


def _same(one: Recipe, other: Recipe) -> bool:
    return same_place(one.pool, other.pool) and replace(one, pool=None).yaml() == replace(other, pool=None).yaml()
