"""Attached columns and vectors of a pool: where each file lies, and of a pool at a URL the copy that a run keeps under `cache/attached`.

Vectors are mapped and columns are read many times, so a file at a URL is brought once, whole, by the store that its shards are read from.
"""

import shutil
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa

from curate.measuring import file_signature
from manifests.digest import digest, file_digest
from manifests.errors import Refusal
from manifests.progress import Progress
from manifests.publish import publish, published_digest
from manifests.shards.columns import sidecar_schema
from manifests.shards.pool_yaml import PoolDescription, Shard
from manifests.shards.read import local_path, reaching, store_of
from manifests.vectors.store import vectors_digest

BLOCK = 8 << 20
THREADS = 8  # files that are asked for at the same time


def attached_url(pool: PoolDescription, stage: str, shard: Shard) -> str:
    """Where the file of an attachment ("attached/NAME") for a shard lies, as `curate attach` wrote it; it need not exist."""
    base = f"{shard.folder or pool.folder()}/{stage}/{shard.own or shard.source}/{shard.name}"
    kinds = [entry.get("kind") for entry in pool.attached if f"attached/{entry['name']}" == stage]
    return f"{base}.arrow" if "vectors" in kinds else f"{base}.parquet"


def attached_path(pool: PoolDescription, stage: str, shard: Shard, root: Path) -> Path:
    """The file of an attachment on this machine: itself, or the copy that `bring` has put into the run's folder `root`. It need not exist."""
    here = local_path(attached_url(pool, stage, shard))
    if here is not None:
        vectors, columns = Path(here).with_name(f"{shard.name}.arrow"), Path(here).with_name(f"{shard.name}.parquet")
        return vectors if vectors.exists() else columns
    folder = _copies(stage, shard, root)
    return next(iter(sorted(folder.glob("[0-9a-f]*.*"))), folder / "absent.parquet")


def attached_digests(pool: PoolDescription, root: Path, shards: Sequence[Shard] | None = None) -> list[str]:
    """What each attachment of a pool holds for its shards (or these of them), in their order."""
    given = pool.shards if shards is None else shards
    return [
        digest(stage, [_content(attached_path(pool, stage, s, root)) for s in given]) for stage in (f"attached/{e['name']}" for e in pool.attached)
    ]


def attached_schema(pool: PoolDescription, name: str) -> pa.Schema | None:
    """The columns of an attachment with their types, by the first file of it that is there; None where there is none. At a URL only a footer is read."""
    for shard in pool.shards:
        found = sidecar_schema(attached_url(pool, f"attached/{name}", shard))
        if found is not None:
            return found
    return None


def is_anywhere(pool: PoolDescription, name: str) -> bool:
    """Is there a file of an attachment for any shard?"""
    return any(file_signature(attached_url(pool, f"attached/{name}", shard)) for shard in pool.shards)


def bring(pool: PoolDescription, root: Path, names: Collection[str], *, anew: bool = False, events: Path | None = None, quiet: bool = True) -> None:
    """Copy the files of the attachments `names` of a pool at a URL into the run's folder `root`. One that is there, of the same size and time, stays.

    anew     read every file again
    Errors   `Refusal`: [download-failed] for a store that does not answer and a file that the run has no copy of; [missing-package] for one that needs a package
    """
    stages = [f"attached/{entry['name']}" for entry in pool.attached if entry["name"] in names]
    wanted = [(attached_url(pool, stage, shard), _copies(stage, shard, root)) for stage in stages for shard in pool.shards]
    far = [(url, folder) for url, folder in wanted if local_path(url) is None]
    if not far:
        return
    with Progress(f"{pool.name}: attached files", len(far), "files", events, quiet) as progress, ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda item: _bring(item[0], item[1], anew), far):
            progress.advance()


def _copies(stage: str, shard: Shard, root: Path) -> Path:
    """The folder that holds the copy; its name is the digest of address, size and time."""
    return root / "cache" / stage / shard.source / shard.name


def _bring(url: str, folder: Path, anew: bool) -> None:
    try:
        signature = file_signature(url)
    except Refusal:
        if anew or not folder.is_dir():
            raise
        return  # nobody answers: the copy serves
    if signature is None:
        return  # these samples have none, or it went; what was brought serves
    target = folder / f"{digest(url, signature)[:16]}{Path(url).suffix}"
    if target.exists() and not anew:
        return
    with reaching(url):
        store, plain = store_of(url)
        with store.open(plain, "rb") as given:
            publish(target, lambda file: shutil.copyfileobj(given, file, BLOCK))
    for old in folder.iterdir():
        if old != target:
            old.unlink()


def _content(path: Path) -> str | None:
    """The digest that an attached file was published with, else that of its bytes."""
    if not path.exists():
        return None
    return (vectors_digest(path) if path.suffix == ".arrow" else published_digest(path)) or file_digest(path)
