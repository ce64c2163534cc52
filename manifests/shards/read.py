"""Read payloads out of a shard in place: mapped where it is a local file, by ranged requests elsewhere. Nothing is ever extracted."""

import mmap
import os
from types import TracebackType
from typing import Any

import fsspec

from manifests.errors import Refusal

__all__ = ["ShardReader", "local_path"]

BLOCK = 8 << 20  # bytes that one request to a remote store brings, so that a walk in order makes few of them


def local_path(url: str) -> str | None:
    """The path of a local shard, None for any other URL."""
    if url.startswith("file://"):
        return url[len("file://") :]
    return None if "://" in url else url


class ShardReader:
    """The bytes of one shard. Use as a context manager; views that were handed out stay valid after it is closed.

    url      a local path, `file://…` or any URL that fsspec knows
    block    bytes to bring at once from a remote store; give about one payload's size for reads in no order
    Errors   `Refusal` [no-such-file]
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
                self._remote, self._plain = fsspec.core.url_to_fs(url)
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
            self._held = self._remote.cat_file(self._plain, start=offset, end=stop) if stop > offset else b""
            self._start, at = offset, 0
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


def _mapped(path: str) -> "mmap.mmap | bytes":
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
