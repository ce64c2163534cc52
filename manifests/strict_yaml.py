"""YAML without surprises: no duplicate keys, `on` and `yes` are text, `1e-3` is a number, `0123` is refused."""

import functools
import re
from typing import Any

import yaml

from manifests.errors import Refusal


class _Strict(yaml.SafeLoader):
    """SafeLoader with YAML 1.2's plain scalars and line numbers of keys."""


_Strict.yaml_implicit_resolvers = {
    first: [
        (tag, rule)
        for tag, rule in rules
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:int", "tag:yaml.org,2002:timestamp")
    ]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Strict.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|false)$"), list("tf"))
_Strict.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Strict.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def _integer(loader: _Strict, node: yaml.ScalarNode) -> int:
    text = node.value.replace("_", "")
    if re.match(r"^[-+]?0[0-9]", text):
        raise yaml.constructor.ConstructorError(None, None, f"{node.value} could be octal; write it in quotes or without the zero", node.start_mark)
    return int(text)


def _mapping(loader: _Strict, node: yaml.MappingNode) -> dict:
    loader.flatten_mapping(node)
    seen: dict[Any, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is not text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Strict.add_constructor("tag:yaml.org,2002:int", _integer)
_Strict.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))
_Strict.add_constructor("tag:yaml.org,2002:map", _mapping)


def read_yaml(data: bytes | str, where: str, slug: str) -> Any:
    """Parse `data`; any fault is a `Refusal` with `slug` that names `where` and the line."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return yaml.load(text, Loader=_Strict)
    except UnicodeDecodeError as error:
        raise Refusal(slug, where, f"is not UTF-8 at byte {error.start}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise Refusal(slug, f"{where}{line}", str(error.problem or error), "strict YAML") from error


@functools.lru_cache(maxsize=2)
def _composed(data: str) -> Any:
    """The nodes of a text; asked for once a stage, so not made anew each time."""
    return yaml.compose(data, Loader=yaml.SafeLoader)


def line_of(data: str, *path: str | int) -> int | None:
    """The line (from 1) on which the node at `path` (keys and list positions) starts; None where there is none."""
    node: Any = _composed(data)
    line = None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = [(k, v) for k, v in node.value if k.value == step]
            if not found:
                return line
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            return line
    return line
