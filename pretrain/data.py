"""Samples -> batches of decoded pictures with uid and label, with an exact position for resuming inside an epoch.

Order, repeats and augmentation follow from (seed, uid, epoch) alone: never from listing order, loader processes or what was read before.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Self

import numpy as np

from manifests.errors import Refusal
from manifests.processes import end_with_parent
from manifests.shards.read import signature
from pretrain.samples import Samples, shard_reader

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
AHEAD = 64 << 20  # bytes of pictures that a loader may be ahead, where two batches are not more
KNOWN = 256 << 20  # bytes of decoded pictures that pass from one training to the next
Place = tuple[str, tuple[int, ...], int, int]  # a shard and its signature, the offset in it, the side of the picture
Known = dict[Place, np.ndarray | None]  # the decoded picture; None: there is none


@dataclass(frozen=True)
class Position:
    """Where in the stream of visits the next batch starts: pass `epoch`, `offset` visits into it."""

    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Batch:
    """Rows of a batch, which visit of each sample it is, and the position after it."""

    rows: np.ndarray
    turns: np.ndarray
    after: Position


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 on uint64, as `views.mix` has it on int64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def visits(samples: Samples, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, turns) of pass `epoch` in their order; a sample of weight w comes floor(w) times, and once more with probability w - floor(w)."""
    with np.errstate(over="ignore"):
        key = mix(samples.number.view(np.uint64) ^ mix(np.array(seed, np.uint64) * GOLDEN + np.uint64(epoch)))
        chance = (mix(key + GOLDEN) >> np.uint64(11)).astype(np.float64) * 2.0**-53
        whole = np.floor(samples.weight)
        count = (whole + (chance < samples.weight - whole)).astype(np.int64)
        rows = np.repeat(np.arange(len(samples)), count)
        repeat = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        order = np.lexsort((repeat, rows, mix(key[rows] ^ repeat.astype(np.uint64))))
    return rows[order], (epoch << 20) + repeat[order]


def batches(samples: Samples, seed: int, size: int, start: Position) -> Iterator[Batch]:
    """Batches of `size` visits without end: the passes follow each other without a gap, so a batch may span two of them."""
    epoch, offset = start.epoch, start.offset
    rows, turns = visits(samples, seed, epoch)
    while True:
        parts, have = [], 0
        while have < size:
            if offset == len(rows):
                epoch, offset = epoch + 1, 0
                rows, turns = visits(samples, seed, epoch)
            stop = min(offset + size - have, len(rows))
            parts.append((rows[offset:stop], turns[offset:stop]))
            have, offset = have + stop - offset, stop
        yield Batch(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]), Position(epoch, offset))


class Pictures:
    """Decoded pictures by row, at one side: kept in memory where all fit into `cache_bytes`, decoded ahead by `workers` processes (0: by this one).

    Use as a context manager: it ends the loader processes. `undecodable` counts rows that gave no picture, once each.
    `known` hands decoded pictures from one training of this process to the next: looked up and filled where no loader decodes.
    """

    def __init__(self, samples: Samples, side: int, *, workers: int | None = None, cache_bytes: int = 1 << 30, known: Known | None = None) -> None:
        self.samples, self.side, self.known = samples, side, known
        self._shards = [(url, signature(url)) for url in samples.urls] if known is not None else []
        self.shape = (side, side, 3)
        fits = len(samples) * side * side * 3 <= cache_bytes
        self.cache = np.empty((len(samples), *self.shape), np.uint8) if fits else None
        self.have = np.zeros(len(samples), bool)
        self.bad = np.zeros(len(samples), bool)
        self.workers = (0 if fits else min(8, max(1, (multiprocessing.cpu_count() or 2) - 1))) if workers is None else workers
        self._loaders: list[tuple[multiprocessing.process.BaseProcess, Connection]] = []
        self._memory: SharedMemory | None = None
        self._slot, self._ahead = 0, 2  # bytes of a batch, batches asked of each loader ahead of time

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process, pipe in self._loaders:
            pipe.close()
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()
        self._loaders = []
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()
            self._memory = None

    @property
    def undecodable(self) -> int:
        """Rows seen so far that gave no picture."""
        return int(self.bad.sum())

    def fetch(self, plan: Iterator[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
        """Each batch of `plan` with its pictures (b, side, side, 3) uint8, in order. Rows that give no picture are zero, and marked in `bad`."""
        if self.workers == 0 or self.have.all():
            for batch in plan:
                yield batch, self._assemble(batch.rows, *self._decode(self._missing(batch.rows)))
            return
        yield from self._fetch_ahead(plan)

    def all(self) -> np.ndarray:
        """Every picture in row order, (n, side, side, 3) uint8."""
        blocks = [np.arange(i, min(i + 512, len(self.samples))) for i in range(0, len(self.samples), 512)]
        found = [pictures for _, pictures in self.fetch(Batch(rows, rows, Position()) for rows in blocks)]
        return self.cache if self.cache is not None else np.concatenate(found)

    def _missing(self, rows: np.ndarray) -> np.ndarray:
        return rows if self.cache is None else np.unique(rows[~self.have[rows]])

    def _decode(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        out = np.zeros((len(rows), *self.shape), np.uint8)
        if self.known is None or not len(rows):
            return rows, out, decode_rows(self.samples.urls, *self._places(rows), out)
        keys = [(*self._shards[f], start, self.side) for f, start in zip(self.samples.file[rows], self.samples.offset[rows].tolist(), strict=True)]
        is_known = np.array([key in self.known for key in keys])
        bad, fresh = np.zeros(len(rows), bool), np.flatnonzero(~is_known)
        for i in np.flatnonzero(is_known).tolist():
            picture = self.known[keys[i]]
            bad[i] = picture is None
            out[i] = 0 if picture is None else picture
        new = np.zeros((len(fresh), *self.shape), np.uint8)
        bad[fresh] = decode_rows(self.samples.urls, *self._places(rows[fresh]), new)
        out[fresh] = new
        if len(self.known) * self.side**2 * 3 < KNOWN:
            self.known |= {keys[i]: None if bad[i] else picture for i, picture in zip(fresh.tolist(), new, strict=True)}
        return rows, out, bad

    def _places(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.samples.file[rows], self.samples.offset[rows], self.samples.size[rows]

    def _assemble(self, rows: np.ndarray, new: np.ndarray, pictures: np.ndarray, bad: np.ndarray) -> np.ndarray:
        self.bad[new] = bad
        if self.cache is None:
            return pictures
        self.cache[new] = pictures
        self.have[new] = True
        return self.cache[rows]

    def _fetch_ahead(self, plan: Iterator[Batch]) -> Iterator[tuple[Batch, np.ndarray]]:
        pending: deque[tuple[Batch, np.ndarray, int]] = deque()
        ordered = np.zeros(len(self.samples), bool)  # asked for already; batches return in order, so it will be there
        ended, sent = False, 0
        while True:
            while not ended and len(pending) < self._ahead * self.workers:
                batch = next(plan, None)
                if batch is None:
                    ended = True
                    break
                missing = self._missing(batch.rows)
                if self.cache is not None:
                    missing = missing[~ordered[missing]]
                    ordered[missing] = True
                if len(missing):
                    self._send(sent, missing, len(batch.rows))
                    sent += 1
                pending.append((batch, missing, sent - 1))
            if not pending:
                return
            batch, missing, ticket = pending.popleft()
            found = self._receive(ticket, missing) if len(missing) else self._decode(missing)
            yield batch, self._assemble(batch.rows, *found)

    def _send(self, ticket: int, rows: np.ndarray, batch: int) -> None:
        if not self._loaders:
            self._slot = batch * self.side * self.side * 3
            self._ahead = max(2, min(8, AHEAD // self._slot))
            self._memory = SharedMemory(create=True, size=self._slot * self._ahead * self.workers)
            context = multiprocessing.get_context("spawn")
            for _ in range(self.workers):
                ours, theirs = context.Pipe()
                process = context.Process(target=_loader, args=(theirs, self._memory.name, self.samples.urls, self.shape), daemon=True)
                process.start()
                theirs.close()
                self._loaders.append((process, ours))
        with _living_loader():
            self._loaders[ticket % self.workers][1].send((self._slot * (ticket % (self._ahead * self.workers)), *self._places(rows)))

    def _receive(self, ticket: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        assert self._memory is not None
        with _living_loader():
            bad = self._loaders[ticket % self.workers][1].recv()
        start = self._slot * (ticket % (self._ahead * self.workers))
        pictures = np.ndarray((len(rows), *self.shape), np.uint8, self._memory.buf, start)
        return rows, pictures.copy() if self.cache is None else pictures, bad


@contextmanager
def _living_loader() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise Refusal(
            "does-not-fit", "loader", "a loader process died; was it stopped for want of memory?", "", "Use fewer workers, or `workers: 0`"
        ) from error


def _loader(pipe: Connection, memory: str, urls: tuple[str, ...], shape: tuple[int, int, int]) -> None:
    """A loader process: decodes what it is asked for into shared memory, until the pipe closes."""
    end_with_parent()
    shared = SharedMemory(name=memory)
    try:
        while True:
            start, file, offset, size = pipe.recv()
            out = np.ndarray((len(file), *shape), np.uint8, shared.buf, start)
            pipe.send(decode_rows(urls, file, offset, size, out))
            del out
    except (EOFError, ConnectionError, KeyboardInterrupt):
        pass
    finally:
        shared.close()


def decode_rows(urls: tuple[str, ...], file: np.ndarray, offset: np.ndarray, size: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Decode into `out` (n, side, side, 3); (n,) bool of the rows that gave no picture, which are zero."""
    from manifests.images import Undecodable

    bad = np.zeros(len(file), bool)
    for i, (f, start, length) in enumerate(zip(file.tolist(), offset.tolist(), size.tolist(), strict=True)):
        try:
            out[i] = square(shard_reader(urls[f]).payload(start, length), out.shape[1])
        except Undecodable:
            bad[i], out[i] = True, 0
    return bad


def square(data: bytes | memoryview, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the centred square of a picture, upright, at `side`. Raises `Undecodable`."""
    from manifests.images import decode, header, resize, upright

    rgb = upright(decode(data, min_side=side), header(data).orientation)
    height, width = rgb.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return resize(rgb[top : top + edge, left : left + edge], side, side)
