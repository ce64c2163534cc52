"""Read payloads out of a shard in place: mapped where it is a local file, by ranged requests elsewhere. Nothing is ever extracted."""

import contextlib
import functools
import mmap
import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import fsspec
import pyarrow as pa

from manifests.errors import Refusal

__all__ = ["ShardReader", "found_at", "local_path", "opened", "place_of", "reaching", "signature", "store_of"]

BLOCK = 8 << 20  # bytes that one request to a remote store brings, so that a walk in order makes few of them


def local_path(url: str) -> str | None:
    """The path of a local shard, None for any other URL."""
    if url.startswith("file://"):
        return url[len("file://") :]
    return None if "://" in url else url


def place_of(url: str) -> str:
    """Where a path leads, however it is written: `pools/a`, `pools/a/` and `./pools/a` are one. Any other URL stays as it is."""
    path = local_path(url)
    return url if path is None else os.path.realpath(path)


def store_of(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The store that a path or URL lies in, and its path there. Raises `Refusal`: [missing-package], [bad-value] for `what://`, [download-failed]."""
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        kind = url.partition("://")[0]
        raise Refusal(
            "missing-package",
            url,
            f"{kind}:// needs a further package: {error}",
            cure="Install it with pip (http:// and https://: the extra `http`; s3://: `s3`), or copy the pool to a disk",
        ) from error
    except ValueError as error:
        known = "a path, or a URL such as s3://, gs://, https:// and whatever else fsspec reads"
        raise Refusal("bad-value", url, str(error)[:1].lower() + str(error)[1:], known) from error
    except Exception as error:  # a store may ask its host already
        raise _unreached(url, error) from error


def found_at(url: str) -> tuple[fsspec.AbstractFileSystem, str, dict[str, Any]] | None:
    """The store, the path in it and what it tells of a file (`size`, …); None where it says that there is none, and only then.

    fsspec's own `exists` also says no when nobody answers.
    """
    store, plain = store_of(url)
    try:
        with reaching(url):
            return store, plain, store.info(plain)
    except (FileNotFoundError, NotADirectoryError) as error:
        said = error.__cause__  # fsspec says of a web server "not there" whatever went wrong, and why in the cause
        has_failed = isinstance(said, OSError) and not isinstance(said, FileNotFoundError)
        if said is not None and (has_failed or getattr(said, "status", 404) not in (404, 410)):
            raise _unreached(url, said) from error
        return None


@contextlib.contextmanager
def reaching(url: str) -> Iterator[None]:
    """Turn whatever a store at a URL says when it cannot answer into one line: `Refusal` [download-failed]. A file that is not there stays FileNotFoundError.

    Each store has its own exceptions, and only some are an OSError. Keep in it what asks the store, and nothing else.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, Refusal, pa.ArrowInvalid):
        raise
    except Exception as error:
        if local_path(url) is not None:
            raise
        raise _unreached(url, error) from error


def _unreached(url: str, error: BaseException) -> Refusal:
    said = (str(error).strip().splitlines() or [""])[0].rstrip(".") or type(error).__name__
    cure = "Try again when it answers, check address and rights; or copy the pool to a disk"
    return Refusal("download-failed", url, f"cannot be read: {said}", "a store that answers", cure)


class ShardReader:
    """The bytes of one shard. Use as a context manager; views that were handed out stay valid after it is closed.

    url      a local path, `file://…` or any URL that fsspec knows
    block    bytes to bring at once from a remote store; give about one payload's size for reads in no order
    Errors   `Refusal`: [no-such-file]; of a store at a URL [download-failed], [missing-package]
    """

    def __init__(self, url: str, *, block: int = BLOCK) -> None:
        self.url, self.block, self._handle = url, block, -1
        path = local_path(url)
        try:
            if path is not None:
                self._data: Any = _mapped(path)
                self.size = len(self._data)
            else:
                self._data = None
                self._remote, self._plain = store_of(url)
                with reaching(url):
                    self.size = int(self._remote.size(self._plain))
        except FileNotFoundError as error:
            raise Refusal("no-such-file", url, "this shard is missing", cure="Bring it back, or take it out of pool.yaml") from error
        self.is_remote = self._data is None
        self._view = memoryview(self._data) if self._data is not None else None
        self._start, self._held = 0, b""

    def payload(self, offset: int, size: int) -> memoryview:
        """`size` bytes from `offset` as a view, without a copy for local shards; shorter where the shard ends before that."""
        if self._view is not None:
            return self._view[offset : offset + size]
        at = offset - self._start
        if at < 0 or at + size > len(self._held):
            stop = min(self.size, offset + max(size, self.block))
            with reaching(self.url):
                held = self._remote.cat_file(self._plain, start=offset, end=stop) if stop > offset else b""
            if len(held) != max(0, stop - offset):  # many a server sends the whole file instead, and says nothing
                given = f"gave {len(held):,} bytes for a part of {stop - offset:,}"
                cure = "Serve it by a store or a server that knows HTTP ranges; or copy the pool to a disk"
                raise Refusal("download-failed", self.url, given, "a store that gives parts of a file", cure)
            self._held, self._start, at = held, offset, 0
        return memoryview(self._held)[at : at + size]

    def read_into(self, target: memoryview, offset: int) -> int:
        """Fill `target` with the bytes from `offset` on, without touching the map: cheaper where they only pass through. Returns how many there were."""
        if self._view is None:
            data = self.payload(offset, len(target))
            target[: len(data)] = data
            return len(data)
        if self._handle < 0:
            self._handle = os.open(local_path(self.url) or "", os.O_RDONLY)
        done = 0
        while done < len(target):
            count = os.preadv(self._handle, [target[done:]], offset + done)
            if not count:
                break
            done += count
        return done

    def find(self, what: bytes, start: int) -> int:
        """The first place of `what` at or after `start`; -1 where there is none."""
        if self._data is not None:
            return self._data.find(what, start)
        while start < self.size:
            block = bytes(self.payload(start, min(self.block, self.size - start)))
            at = block.find(what)
            if at >= 0:
                return start + at
            start += max(1, len(block) - len(what) + 1)
        return -1

    def close(self) -> None:
        """Let go of the file; the map itself goes when the last view does."""
        if self._view is not None:
            self._view.release()
            if isinstance(self._data, mmap.mmap):
                try:
                    self._data.close()
                except BufferError:
                    pass  # a payload is still in somebody's hands
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self._held = b""

    def __enter__(self) -> "ShardReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def opened(url: str, *, block: int = BLOCK, version: str = "") -> ShardReader:
    """A reader of a shard that stays open in this process, as the last 64 do; the errors of `ShardReader`.

    A local file that was replaced since is opened anew. What lies at a URL is asked once: whoever knows which content it must have gives a `version`, such as
    its digest.
    """
    return _opened(url, block, version, signature(url))


def signature(url: str) -> tuple[int, ...]:
    """What tells within a process that a local file was replaced; empty for what is not there, and for what lies at any other URL."""
    path = local_path(url)
    there = os.stat(path) if path is not None and os.path.exists(path) else None
    return (there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns) if there else ()


@functools.lru_cache(maxsize=64)
def _opened(url: str, block: int, version: str, signature: tuple[int, ...]) -> ShardReader:
    return ShardReader(url, block=block)


def _mapped(path: str) -> "mmap.mmap | bytes":
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
