"""`pool.yaml`: what a pool is. Shards are ordered by (source, name), never by listing."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from manifests.errors import Refusal
from manifests.shards.read import found_at, reaching
from manifests.strict_yaml import read_yaml

FIELDS = {"format", "name", "sources", "classes", "columns", "licence", "source", "attached"}


@dataclass(frozen=True, order=True)
class Shard:
    """One tar of a pool: `source` and `name` (without `.tar`) identify it, `url` is where it lies, `sidecar` its Parquet of columns, if any.

    Where several pools are one (`apart`), `folder` is the folder of the shard's own pool, and `own` the name of its source there.
    """

    source: str
    name: str
    url: str = field(compare=False)
    folder: str = field(default="", compare=False)
    own: str = field(default="", compare=False)

    @property
    def id(self) -> str:
        """`source/name`, as the ledger's column `shard` has it."""
        return f"{self.source}/{self.name}"

    @property
    def sidecar(self) -> str:
        """URL of the Parquet beside the tar (img2dataset's and DataComp's layout, and ours); it need not exist."""
        return re.sub(r"\.tar$", "", self.url) + ".parquet"


@dataclass(frozen=True)
class PoolDescription:
    """A pool as `pool.yaml` describes it. `attached` names further aligned columns or vectors (see `curate attach`)."""

    path: str
    name: str
    shards: tuple[Shard, ...]
    classes: tuple[str, ...] = ()
    columns: dict[str, str] = field(default_factory=dict)
    licence: str | None = None
    source: str | None = None
    attached: tuple[dict[str, Any], ...] = ()

    def folder(self) -> str:
        """The folder of `pool.yaml`, or of the bare shard."""
        return self.path.rsplit("/", 1)[0] if "/" in self.path else "."


def open_pool(path: str | Path) -> PoolDescription:
    """Read a pool: a folder with `pool.yaml`, the file itself, or a bare shard URL (`x/{00..07}.tar`).

    Raises `Refusal`: [no-such-file] where there is none, [bad-pool] where it is not a pool; of a URL [download-failed], [missing-package].
    """
    text = str(path).rstrip("/")
    if text.endswith(".tar"):
        urls = expand(text)
        return PoolDescription(text, Path(urls[0]).parent.name or "pool", _shards("shards", urls, text))
    location = text if text.endswith((".yaml", ".yml")) else f"{text}/pool.yaml"
    found = found_at(location)
    if found is None:
        raise Refusal(
            "no-such-file",
            text,
            "holds no pool.yaml",
            "a pool is a folder with pool.yaml, or a shard URL that ends in .tar",
            "Make one with `curate ingest SRC --to POOL`",
        )
    store, plain, _ = found
    with reaching(location), store.open(plain, "rb") as file:
        data = file.read()
    body = read_yaml(data, location, "bad-pool")
    return _described(body, location)


def _described(body: Any, location: str) -> PoolDescription:
    if not isinstance(body, dict) or body.get("format") != 1:
        raise Refusal("bad-pool", location, "is not a pool of format 1", "it starts with `format: 1`")
    for name in set(body) - FIELDS:
        raise Refusal("bad-pool", location, f"has the unknown field {name!r}", f"its fields: {', '.join(sorted(FIELDS))}")
    base = location.rsplit("/", 1)[0] if "/" in location else "."
    shards: list[Shard] = []
    for source in body.get("sources") or []:
        if not isinstance(source, dict) or set(source) != {"name", "shards"}:
            raise Refusal("bad-pool", location, f"a source is {source!r}", "each source has a name and shards")
        given = [source["shards"]] if isinstance(source["shards"], str) else source["shards"]
        if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
            raise Refusal("bad-pool", location, f"the shards of {source['name']!r} are {given!r}", "a URL, a brace range, or a list of them")
        urls = [u for item in given for u in expand(item)]
        urls = [u if "://" in u or u.startswith("/") else f"{base}/{u}" for u in urls]
        shards.extend(_shards(str(source["name"]), urls, location))
    if len(set(shards)) != len(shards):
        raise Refusal("bad-pool", location, "two shards carry the same source and name", "names are unique inside a source")
    for entry in body.get("attached") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise Refusal("bad-pool", location, f"an attachment is {entry!r}", "a mapping with a name, as `curate attach` writes it")
        plain_name(entry["name"], location, "an attachment")
    return PoolDescription(
        location, str(body.get("name") or Path(base).name), tuple(sorted(shards)), tuple(str(c) for c in body.get("classes") or ()),
        dict(body.get("columns") or {}), body.get("licence"), body.get("source"), tuple(body.get("attached") or ()),
    )  # fmt: skip


def apart(pools: Sequence[PoolDescription]) -> list[PoolDescription]:
    """Pools as they stand beside each other in one run: a source whose name an earlier pool has gets a number (`shards-2`).

    The classes of the run hold for a pool without any; a pool may add further ones at the end. Raises `Refusal` [bad-pool] where its classes are others.
    """
    found: list[PoolDescription] = []
    taken: set[str] = set()
    classes = pools[0].classes
    for pool in pools:
        own = pool.classes or classes
        if own[: len(classes)] != classes[: len(own)]:
            given, allowed = f"its classes are {', '.join(own)[:200]}", f"those of the run: {', '.join(classes)[:200]}; further ones at the end"
            raise Refusal("bad-pool", pool.path, given, allowed, "Write the same list as `classes` in its pool.yaml: a label is a place in it")
        classes = max(classes, own, key=len)
        sources = list(dict.fromkeys(s.source for s in pool.shards))
        names = {}
        for source in sources:
            free = (f"{source}-{n}" if n > 1 else source for n in range(1, len(taken) + len(sources) + 2))
            names[source] = next(name for name in free if name not in taken and (name == source or name not in sources))
            taken.add(names[source])
        shards = tuple(replace(s, source=names[s.source], folder=s.folder or pool.folder(), own=s.own or s.source) for s in pool.shards)
        found.append(replace(pool, shards=shards, classes=own))
    return found


def joined(pools: Sequence[PoolDescription]) -> PoolDescription:
    """Pools that `apart` has named as one: the shards of the first, then those of the next; path and name are the first's."""
    if len(pools) == 1:
        return pools[0]
    attached: dict[str, dict[str, Any]] = {}
    for entry in (e for pool in pools for e in pool.attached):
        known = attached.setdefault(entry["name"], dict(entry))
        known["columns"] = {**(known.get("columns") or {}), **(entry.get("columns") or {})}
    return replace(
        pools[0], shards=tuple(s for pool in pools for s in pool.shards), classes=max((p.classes for p in pools), key=len),
        columns={name: kind for pool in reversed(pools) for name, kind in pool.columns.items()}, attached=tuple(attached.values()),
    )  # fmt: skip


def pool_record(pool: PoolDescription) -> dict[str, Any]:
    """A pool as `run.json` keeps it, with every shard's absolute URL: enough to go on where its `pool.yaml` is no longer there."""
    shards = [[s.own or s.source, s.name, _absolute(s.url)] for s in pool.shards]
    fields = {name: getattr(pool, name) for name in ("name", "classes", "columns", "licence", "source", "attached")}
    return {"path": _absolute(pool.path), **{n: list(v) if isinstance(v, tuple) else v for n, v in fields.items()}, "shards": shards}


def recorded_pool(record: dict[str, Any]) -> PoolDescription:
    """The pool that `pool_record` has written."""
    shards = tuple(Shard(*shard) for shard in record["shards"])
    return PoolDescription(
        record["path"], record["name"], shards, tuple(record["classes"]), record["columns"], record["licence"], record["source"],
        tuple(record["attached"]),
    )  # fmt: skip


def _absolute(url: str) -> str:
    return url if "://" in url else os.path.abspath(url)


def plain_name(name: str, where: str, what: str) -> str:
    """`name`, if it can name a folder of a run and leads nowhere else. Raises `Refusal` [bad-pool]."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise Refusal("bad-pool", where, f"{what} is named {name!r}", "letters, digits, `_`, `-` and `.`, not beginning with a dot")
    return name


def _shards(source: str, urls: list[str], where: str) -> tuple[Shard, ...]:
    plain_name(source, where, "a source")
    for url in urls:
        if url.rsplit("/", 1)[-1].startswith("."):
            raise Refusal("bad-pool", where, f"a shard is {url!r}", "a file whose name does not begin with a dot")
    return tuple(sorted(Shard(source, re.sub(r"\.tar$", "", u.rsplit("/", 1)[-1]), u) for u in urls))


def write_pool_yaml(folder: Path, **fields: Any) -> None:
    """Publish `folder/pool.yaml` (format 1) with `fields` in the order given; null and empty fields are left out."""
    from manifests.publish import publish_bytes

    body = {"format": 1, **{k: _quoted(v) for k, v in fields.items() if v not in (None, [], {}, ())}}
    assert set(body) <= FIELDS, set(body) - FIELDS
    publish_bytes(folder / "pool.yaml", yaml.dump(body, Dumper=_Quoting, sort_keys=False, allow_unicode=True, width=120).encode())


class _Text(str):
    """Text that is written in quotes: a class named `08` or `1e-3` must come back as text."""


class _Quoting(yaml.SafeDumper):
    """SafeDumper that quotes `_Text`."""


_Quoting.add_representer(_Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style='"'))


def _quoted(value: Any) -> Any:
    """`value` with every text inside it (keys apart) quoted."""
    if isinstance(value, dict):
        return {k: _quoted(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(v) for v in value]
    return _Text(value) if isinstance(value, str) else value


def expand(pattern: str) -> list[str]:
    """Brace ranges: `a/{000..012}.tar`, `{x,y}/0.tar`; `::` joins sources."""
    if "::" in pattern:
        return [u for part in pattern.split("::") for u in expand(part)]
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", found[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        middle = [f"{i:0{width}d}" for i in range(int(span[1]), int(span[2]) + 1)]
    else:
        middle = found[1].split(",")
    return [u for m in middle for u in expand(head + m + tail)]
