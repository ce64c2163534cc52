"""A recipe: strict YAML -> checked stages. Everything that can be wrong with it is said before any work."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml

from curate.pool import Share
from curate.stages import DECISION, MEASURE, STAGES
from manifests.errors import Refusal, near
from manifests.schema import written_column
from manifests.signature import Column, Expression, PoolPaths, Preferred, VectorName, check, load, parameters, plain_value
from manifests.strict_yaml import line_of, read_yaml

FIELDS = ("format", "pool", "append", "redecided", "seed", "evaluate", "leakage", "stages", "shards")
SHARDS = {"samples_per_shard": 10_000, "order": "shuffled"}
COMMON = ("as", "within", "protect")


@dataclass(frozen=True)
class ResolvedStage:
    """A stage with every parameter written out. `id` names its folder in the run: its name, or `as`. `line`: where it stands, such as `recipe.yaml:5`."""

    id: str
    name: str
    parameters: dict[str, Any]
    within: str | None = None
    protect: str | None = None
    line: str = field(default="", compare=False)

    @property
    def kind(self) -> str:
        """`measure` or `decision`."""
        return STAGES[self.name].kind

    @property
    def function(self) -> Callable:
        """The method."""
        return load(self.name, "curate")

    @property
    def columns(self) -> dict[str, str]:
        """The method's own column -> the column written: a stage with `as: NAME` writes NAME_what, so that it can be used twice."""
        own = getattr(inspect.getmodule(self.function), "WRITES", {})
        return {column: written_column(self.id, self.name, column) for column in own}

    @property
    def writes(self) -> dict[str, Any]:
        """Column written -> its Arrow type (vector columns apart)."""
        own = getattr(inspect.getmodule(self.function), "WRITES", {})
        return {written: own[column] for column, written in self.columns.items()}

    def reads(self, *kinds: Any) -> list[str]:
        """The values of its parameters of the given kinds (`Column`, `VectorName`, `Expression`, `PoolPaths`), in their order; a `Preferred` column is a `Column`."""
        kinds = (*kinds, Preferred) if Column in kinds else kinds
        found: list[str] = []
        for name, parameter in parameters(self.function).items():
            if any(k in kinds for k in _kinds(parameter.annotation)) and self.parameters[name] is not None:
                value = self.parameters[name]
                found.extend(value if isinstance(value, list | tuple) else [value])
        return found

    def expressions(self) -> list[tuple[str, str]]:
        """(parameter, SQL) of each expression that stands in it, `protect` last."""
        own = [(name, self.parameters[name]) for name, p in parameters(self.function).items() if Expression in _kinds(p.annotation)]
        return [(name, sql) for name, sql in [*own, ("protect", self.protect)] if sql is not None]

    @property
    def place(self) -> str:
        """For messages: its id, after the line of the recipe where that is known."""
        return f"{self.line}: {self.id}" if self.line else self.id

    def plain(self) -> dict[str, Any]:
        """As `recipe.yaml` writes it."""
        body = {name: plain_value(value) for name, value in self.parameters.items()}
        extra = {"as": self.id if self.id != self.name else None, "within": self.within, "protect": self.protect}
        return {self.name: {**body, **{k: v for k, v in extra.items() if v is not None}}}


def _kinds(annotation: Any) -> set[Any]:
    if get_origin(annotation) is None:
        return {annotation}
    return {kind for inner in get_args(annotation) for kind in _kinds(inner)}


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe.

    append      the pools that `curate append` added, in order: each is a generation, decided beside what the earlier ones kept
    redecided   how many of them, from the first on, are decided anew together with the pool (`--redecide`)
    """

    stages: tuple[ResolvedStage, ...]
    pool: str | None = None
    seed: int = 0
    evaluate: tuple[str, ...] = ()
    leakage: bool = True
    shards: dict[str, Any] | None = field(default_factory=lambda: dict(SHARDS))
    append: tuple[str, ...] = ()
    redecided: int = 0

    def yaml(self) -> str:
        """Every default written out; reading it back gives the same recipe."""
        grown = {"append": list(self.append), "redecided": self.redecided} if self.append else {}
        body = {
            "format": 1,
            "pool": self.pool,
            **grown,
            "seed": self.seed,
            "evaluate": list(self.evaluate),
            "leakage": self.leakage,
            "stages": [stage.plain() for stage in self.stages],
            "shards": self.shards if self.shards is not None else False,
        }
        return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120)


def shipped() -> list[str]:
    """Names of the recipes that come with keepset."""
    return sorted(p.name.removesuffix(".yaml") for p in resources.files("curate.recipes").iterdir() if p.name.endswith(".yaml"))


def read_recipe(source: str | Path, settings: list[str] | None = None, pool: str | None = None) -> Recipe:
    """Read a recipe from a file, or by the name of one that ships with keepset, with `stage.parameter=value` settings applied.

    Raises `Refusal`: [no-such-file], [bad-recipe], [unknown-stage], [unknown-parameter], [bad-value], each with file and line.
    """
    path = Path(source)
    if path.is_file():
        text, where = _text(path), str(source)
    elif str(source) in shipped():
        text, where = (resources.files("curate.recipes") / f"{source}.yaml").read_text(encoding="utf-8"), f"{source}.yaml"
    else:
        raise Refusal("no-such-file", str(source), "is neither a file nor a shipped recipe", f"shipped: {', '.join(shipped())}")
    return parse_recipe(text, where, settings, pool)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Refusal("bad-recipe", str(path), f"is not UTF-8 at byte {error.start}") from error


def parse_recipe(text: str, where: str, settings: list[str] | None = None, pool: str | None = None) -> Recipe:
    """As `read_recipe`, of a recipe's text."""
    body = read_yaml(text, where, "bad-recipe")
    if not isinstance(body, dict) or body.get("format") != 1:
        raise Refusal("bad-recipe", where, "is not a recipe of format 1", "it starts with `format: 1`")
    for name in body:
        if name not in FIELDS:
            raise Refusal(
                "bad-recipe",
                f"{where}:{line_of(text, name)}",
                f"has the unknown field {name!r}",
                f"its fields: {', '.join(FIELDS)}",
                near(name, FIELDS),
            )
    if not isinstance(body.get("stages"), list):
        raise Refusal("bad-recipe", where, "lists no stages", "`stages:` is a list")
    chosen = _settings(settings or [], where)
    stages = [_stage(item, f"{where}:{line_of(text, 'stages', i)}", chosen) for i, item in enumerate(body["stages"])]
    for key in chosen:
        ids = [stage.id for stage in stages]
        cure = near(key[0], dict.fromkeys([*ids, *(stage.name for stage in stages)]))
        raise Refusal("unknown-stage", f"--set {key[0]}.{key[1]}", "names no stage of this recipe", f"its stages: {', '.join(ids)}", cure)
    evaluate = body.get("evaluate") or []
    if not isinstance(evaluate, list) or not all(isinstance(e, str) for e in evaluate):
        raise Refusal("bad-recipe", f"{where}:{line_of(text, 'evaluate')}", f"evaluate is {evaluate!r}", "a list of pools")
    seed = body.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise Refusal("bad-value", f"{where}:{line_of(text, 'seed')}", f"seed is {seed!r}", "a whole number")
    leakage = body.get("leakage", True)
    recipe = Recipe(
        tuple(stages), pool or body.get("pool"), seed, tuple(evaluate), leakage not in (False, "off"), _shards(body.get("shards", {}), where),
        *_grown(body, where),
    )  # fmt: skip
    return _checked(_with_leakage(recipe, f"{where}:{line_of(text, 'evaluate')}" if evaluate else ""), where)


def _grown(body: dict[str, Any], where: str) -> tuple[tuple[str, ...], int]:
    """`append` and `redecided`, as a run's own recipe has them."""
    append, redecided = body.get("append") or [], body.get("redecided", 0)
    if not isinstance(append, list) or not all(isinstance(path, str) for path in append):
        raise Refusal("bad-recipe", where, f"append is {append!r}", "a list of pools, as `curate append` writes it")
    if not isinstance(redecided, int) or isinstance(redecided, bool) or not 0 <= redecided <= len(append):
        raise Refusal(
            "bad-recipe", where, f"redecided is {redecided!r}", f"how many of the {len(append)} appended pools are decided with the first one"
        )
    return tuple(append), redecided


def _settings(settings: list[str], where: str) -> dict[tuple[str, str], Any]:
    found = {}
    for setting in settings:
        match = re.fullmatch(r"([^=\s]+)\.([A-Za-z_]\w*)=(.*)", setting, re.S)
        if not match:
            raise Refusal("bad-value", f"--set {setting}", "is not a setting", "stage.parameter=value, such as dedup.perceptual.max_distance=4")
        found[match[1], match[2]] = read_yaml(match[3], f"--set {setting}", "bad-value")
    return found


def _stage(item: Any, where: str, chosen: dict[tuple[str, str], Any]) -> ResolvedStage:
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, dict) or len(item) != 1:
        raise Refusal("bad-recipe", where, f"{item!r} is no stage", "one stage a list item: `- dedup.exact: {…}`")
    name, given = next(iter(item.items()))
    if name not in STAGES:
        close = near(name, STAGES, {stage: stage.partition(".")[2] for stage in STAGES})
        every = "" if close else f"the stages: {', '.join(STAGES)}"
        raise Refusal("unknown-stage", where, f"there is no stage {name!r}", every, close or "`curate stages` describes them")
    if given is not None and not isinstance(given, dict):
        given = {_first_parameter(name, given, where): given}
    given = dict(given or {})
    common = {key: given.pop(key, None) for key in COMMON}
    stage_id = common["as"] or name
    if not isinstance(stage_id, str) or not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]*", stage_id):
        raise Refusal("bad-value", f"{where}: {name}", f"as: {stage_id!r}", "letters, digits, `_`, `-`, `.`")
    for setting in [k for k in chosen if k[0] in (stage_id, name)]:
        target = common if setting[1] in COMMON else given
        target[setting[1]] = chosen.pop(setting)
    for key in ("within", "protect"):
        if common[key] is not None and (not isinstance(common[key], str) or STAGES[name].kind == MEASURE):
            raise Refusal("bad-value", f"{where}: {name}", f"{key}: {common[key]!r}", "text, for a decision")
    beside = ("as",) if STAGES[name].kind == MEASURE else COMMON
    return ResolvedStage(stage_id, name, check(load(name, "curate"), given, f"{where}: {name}", beside), common["within"], common["protect"], where)


def _first_parameter(name: str, given: Any, where: str) -> str:
    """The parameter that a bare value stands for: the first one (`- keep.where: "blur > 80"`). Raises `Refusal` [bad-recipe] where the stage has none."""
    for parameter in parameters(load(name, "curate")):
        return parameter
    raise Refusal("bad-recipe", where, f"the parameters of {name} are {given!r}", "it has none")


def _shards(given: Any, where: str) -> dict[str, Any] | None:
    if given in (False, None, "off"):
        return None
    if not isinstance(given, dict) or set(given) - set(SHARDS):
        raise Refusal("bad-recipe", f"{where}: shards", f"{given!r}", f"off, or a mapping of {', '.join(SHARDS)}")
    shards = {**SHARDS, **given}
    if not isinstance(shards["samples_per_shard"], int) or shards["samples_per_shard"] < 1:
        raise Refusal("bad-value", f"{where}: shards: samples_per_shard", f"{shards['samples_per_shard']!r}", "a whole number from 1")
    if shards["order"] not in ("shuffled", "pool"):
        raise Refusal("bad-value", f"{where}: shards: order", f"{shards['order']!r}", "shuffled or pool")
    return shards


def _with_leakage(recipe: Recipe, line: str) -> Recipe:
    """`evaluate:`, which stands at `line`, inserts `leakage.images` before the first decision, and the measures it reads, unless listed or switched off."""
    named = {stage.name for stage in recipe.stages}
    if not recipe.evaluate or not recipe.leakage or "leakage.images" in named:
        return recipe
    stages = list(recipe.stages)
    first = next((i for i, stage in enumerate(stages) if stage.kind == DECISION), len(stages))
    given = check(load("leakage.images", "curate"), {"against": list(recipe.evaluate)}, f"{line}: evaluate")
    leak = ResolvedStage("leakage.images", "leakage.images", given, line=line)
    wanted = [name for name in ("measure.exact_hash", "measure.perceptual_hash") if name not in {s.name for s in stages[:first]}]
    added = [ResolvedStage(name, name, check(load(name, "curate"), {}, name)) for name in wanted]
    later = [s for s in stages[first:] if s.name not in wanted]
    return replace(recipe, stages=(*stages[:first], *added, leak, *later))


def _checked(recipe: Recipe, where: str) -> Recipe:
    seen: set[str] = set()
    written: dict[str, str] = {}
    for stage in recipe.stages:
        if stage.id in seen or stage.id in ("identity", "measure.index"):
            raise Refusal(
                "bad-recipe",
                f"{where}: {stage.name}",
                f"a second stage is named {stage.id!r}",
                "each stage has its own name",
                "Name one of them with `as: NAME`",
            )
        seen.add(stage.id)
        for column in stage.writes:
            if column in written:
                raise Refusal("bad-recipe", f"{where}: {stage.id}", f"writes the column {column!r}, as {written[column]} does", "one writer a column")
            written[column] = stage.id
        for param, value in stage.parameters.items():
            if isinstance(value, Share) and value.count is None and value.fraction is None:
                raise Refusal("bad-value", f"{where}: {stage.id}: {param}", "is empty", Share.allowed)
    return recipe


__all__ = ["Column", "Expression", "PoolPaths", "Recipe", "ResolvedStage", "VectorName", "parse_recipe", "read_recipe", "shipped"]
