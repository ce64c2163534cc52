"""A training's configuration: read strictly, laid over, its objective looked up. No torch before an objective is named."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manifests.digest import remembered_digest
from manifests.errors import Refusal
from manifests.signature import check, load
from manifests.strict_yaml import read_yaml
from pretrain.tables import OBJECTIVES

if TYPE_CHECKING:
    from pretrain.objectives.objective import Objective


def read_configuration(config: Path | str | dict[str, Any], overrides: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """(the mapping with `overrides` laid over it, what to call it in a message). Raises `Refusal` [no-such-file], [bad-value]."""
    where = "config" if isinstance(config, dict) else str(config)
    if not isinstance(config, dict):
        if not Path(config).is_file():
            raise Refusal("no-such-file", where, "is not a file", "a YAML file with the configuration of a training")
        config = read_yaml(Path(config).read_bytes(), where, "bad-value")
    if not isinstance(config, dict):
        raise Refusal("bad-value", where, "is no mapping", "keys and values of a training's configuration")
    return laid_over(config, overrides), where


def laid_over(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """`config` with `overrides`; where both hold a mapping, key by key."""
    merged = dict(config)
    for name, value in overrides.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = laid_over(merged[name], value) if both else value
    return merged


def read_overrides(settings: list[str]) -> dict[str, Any]:
    """`["optimizer.lr=0.1", "seed=2"]` as nested mappings; values are read as YAML. Raises `Refusal` [bad-value]."""
    merged: dict[str, Any] = {}
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator or not all(path.split(".")):
            raise Refusal("bad-value", "--set", f"{setting!r} sets nothing", "KEY=VALUE, and KEY.SUB=VALUE inside a mapping")
        nested: Any = read_yaml(value, f"--set {path}", "bad-value")
        for name in reversed(path.split(".")):
            nested = {name: nested}
        merged = laid_over(merged, nested)
    return merged


def objective_of(given: dict[str, Any]) -> tuple[str, Callable[..., "Objective"], dict[str, Any]]:
    """(name, its function, its parameters checked and defaulted) of a configuration's `objective`."""
    name = given.get("name")
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise Refusal(
            "bad-value",
            "objective: name",
            f"{name!r} is no objective",
            f"it takes one of {', '.join(OBJECTIVES)}",
            "`pretrain objectives` describes them",
        )
    make = load(f"objectives.{name}", "pretrain")
    return name, make, check(make, {k: v for k, v in given.items() if k != "name"}, f"objective {name}")


def starting_weights(backbone: Any) -> list[str]:
    """The digest of the weights that `checkpoint:FOLDER` starts from; none for a backbone with fresh weights, or where no file is there."""
    kind, _, folder = str(backbone).partition(":")
    file = Path(folder) / "model.safetensors"
    return [remembered_digest(file)] if kind == "checkpoint" and file.is_file() else []
