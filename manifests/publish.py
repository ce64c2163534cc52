"""The one way to put a file in place: temporary name, fsync, rename. Present with the right digest = done.

Every Parquet part carries the digest of what it was made from in its footer (`keepset.digest`); nothing else marks
completion. `moment` is called at each step of a publication, so that crash tests can stop the process there.
"""

import errno
import json
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import Refusal

DIGEST_KEY = b"keepset.digest"
EDGES_KEY = b"keepset.edges"  # in a decision's parts: it published edges, with its own digest
ROW_GROUP = 20_480


def moment(name: str, path: Path) -> None:
    """Called before, within (`half`), after writing (`written`) and after renaming (`renamed`). Does nothing; crash tests replace it."""


def publish(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a temporary file beside `path`, make it durable, then rename it to `path`.

    Raises `Refusal` [disk-full] where the disk is full; the temporary file is removed on any error.
    """
    path = Path(path)
    with writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    moment("before", path)
    try:
        with _opened(temporary, path) as file:
            write(file)
            moment("half", path)
            file.flush()
            os.fsync(file.fileno())
        moment("written", path)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Refusal(
                "disk-full", str(path), "no space left while writing", cure="Free some space and run the same command again; nothing finished is lost"
            ) from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    moment("renamed", path)


@contextmanager
def writable(path: Path) -> Iterator[None]:
    """Turn what the system says to a folder or file that cannot be made into `Refusal` [not-writable]."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise
        raise Refusal(
            "not-writable", str(path), f"cannot be written: {error.strerror}", "a folder of your own", "Name another one, or change its rights"
        ) from error


def _opened(temporary: Path, path: Path) -> IO[bytes]:
    with writable(path):
        return open(temporary, "wb")


def publish_bytes(path: Path, data: bytes) -> None:
    """Publish a small file whole."""
    publish(path, lambda file: file.write(data))


def publish_json(path: Path, value: Any) -> None:
    """Publish `value` as indented JSON with sorted keys."""
    publish_bytes(path, (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that only saves work, such as a cache; empty where it is not there, cannot be read or holds something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def publish_table(path: Path, table: pa.Table, digest: str, bloom: str | None = None) -> None:
    """Publish `table` as Parquet (zstd, row groups of 20,480), with `digest` in its footer and a bloom filter on column `bloom`."""
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), DIGEST_KEY: digest.encode()})
    options: dict[str, Any] = {"compression": "zstd", "row_group_size": ROW_GROUP, "write_page_index": True, "write_page_checksum": True}
    if bloom and table.num_rows:
        options["bloom_filter_options"] = {bloom: {"ndv": ROW_GROUP, "fpp": 0.01}}
    publish(path, lambda file: pq.write_table(table, file, **options))


def read_part(path: Path, columns: Collection[str]) -> pa.Table:
    """Those of `columns` that a part has; none where it is absent. In one thread and without a data set around it: many small files cost a third so."""
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=[name for name in columns if name in file.schema_arrow.names], use_threads=False)
    except FileNotFoundError:
        return pa.table({})


def published_digest(path: Path) -> str | None:
    """The digest in the footer of a Parquet part; None where the file is absent or is no whole part."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (FileNotFoundError, pa.ArrowInvalid, OSError):
        return None
    found = metadata.get(DIGEST_KEY)
    return found.decode() if found else None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold `run` for one writer; the lock dies with its process. Raises `Refusal` [run-locked]."""
    import fcntl

    with writable(run):
        run.mkdir(parents=True, exist_ok=True)
        lock = open(run / ".lock", "a+")  # noqa: SIM115
    with lock as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise Refusal("run-locked", str(run), f"is being written by {holder}", "one writer at a time", "Wait for it, or stop it") from error
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} since {time.strftime('%H:%M:%S')}")
        file.flush()
        yield
