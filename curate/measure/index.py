"""Which members of a shard make a sample, where they lie, what identifies them, and what the pool says of them."""

from collections.abc import Sequence

from manifests.shards.index import INDEX_SCHEMA, Indexed, index_shard
from manifests.shards.pool_yaml import Shard

WRITES = {field.name: field.type for field in INDEX_SCHEMA}


def index(shard: Shard, *, classes: Sequence[str] = ()) -> Indexed:
    """Find the samples of a shard, their members, labels, captions and identity, reading the tar in place.

    Always runs first, on every shard; a recipe need not name it. Its rules stand at `manifests.shards.index.index_shard`.

    Source      webdataset's naming of samples; POSIX.1-2001 (PAX) and GNU tar for the headers
    classes     the pool's class names, so that `.cls` members may hold either a number or a name
    Writes      key, suffix, offset, size (of the image, else the text, in the tar), content (SHA-256, see DESIGN), label, label_name, caption, source_uid,
                fault, members; then the pool's own columns
    Faults      zero_bytes (missing or unreadable where `curate ingest` noted that of the file), no_payload, truncated (the shard ends inside a member),
                not_a_file (a link, device, pipe or sparse file), unsafe_name (absolute, or leads out of its folder). Damage to the tar itself is listed with its place
    Cost        two SHA-256 over the payloads and some ten microseconds a member; no pixel is decoded
    """
    return index_shard(shard, classes=classes)
