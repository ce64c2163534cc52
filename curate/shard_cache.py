"""`cache/shards.json`: what was seen of each shard, so that one that has not changed is not read again. What cannot be read of it, or is odd, was not seen."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from curate.measuring import index_digest, shard_signature
from manifests.publish import publish_json, read_object
from manifests.shards.pool_yaml import PoolDescription
from manifests.shards.read import place_of


def cached_shards(root: Path) -> dict[str, dict[str, Any]]:
    """Place of a shard -> its signature (size and time), its input digest and the classes of the pool that it was read for; empty where there is no cache."""
    return {place: entry for place, entry in read_object(_path(root)).items() if _is_whole(entry)}


def cached_digests(root: Path, pool: PoolDescription, recheck: bool = False) -> dict[str, str]:
    """Shard id -> input digest, for shards whose size and time are those that the cache saw."""
    if recheck:
        return {}
    seen = {url: entry for url, entry in cached_shards(root).items() if entry["classes"] == list(pool.classes)}
    return {s.id: seen[at]["digest"] for s in pool.shards if (at := place_of(s.url)) in seen and seen[at]["signature"] == shard_signature(s)}


def cached_inputs(root: Path) -> dict[str, str]:
    """Digest of an index part -> input digest of the shard that it was made from."""
    return {index_digest(entry["digest"]): entry["digest"] for entry in cached_shards(root).values()}


def remember(root: Path, pool: PoolDescription, seen: Mapping[str, tuple[Any, str]]) -> None:
    """Note (signature, input digest) of the shards of `pool` that were read so far, by their ids; what is known of other shards stays."""
    new = {place_of(s.url): {"signature": seen[s.id][0], "digest": seen[s.id][1], "classes": list(pool.classes)} for s in pool.shards if s.id in seen}
    publish_json(_path(root), {**cached_shards(root), **new})


def _path(root: Path) -> Path:
    return root / "cache" / "shards.json"


def _is_whole(entry: Any) -> bool:
    return isinstance(entry, dict) and "signature" in entry and isinstance(entry.get("digest"), str) and isinstance(entry.get("classes"), list)
