"""All that a stage may see: Batch for a measure, Pool for a decision, and what both give back.

A method file imports this module, the floor (`manifests`) and third parties, and no other method.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from manifests import images
from manifests.errors import Refusal
from manifests.signature import Column, Expression, FilePath, PoolPaths, Preferred, VectorName

if TYPE_CHECKING:
    from manifests.vectors.store import Vectors

__all__ = [
    "Batch",
    "Column",
    "Columns",
    "Edges",
    "Expression",
    "FilePath",
    "Look",
    "Pool",
    "PoolPaths",
    "Preferred",
    "Share",
    "State",
    "VectorName",
    "Verdicts",
]

Columns = dict[str, "np.ndarray | pa.Array"]  # name -> one value a row; (b, d) float16 is a vector column
State = tuple[np.ndarray, ...]
Look = Callable[[np.ndarray], Any]  # what a measure takes of a picture's pixels
LooksByWindow = Mapping[images.Window | None, Sequence[Look]]
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Share:
    """How many to keep: a count (10000) or a fraction of the live rows (0 < 0.3 <= 1)."""

    count: int | None = None
    fraction: float | None = None
    allowed = "a count (10000) or a fraction (0 < 0.3 <= 1)"

    @classmethod
    def parse(cls, value: Any, where: str) -> "Share":
        """A whole number is a count, a number with a point a fraction; anything else is refused [bad-value]."""
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return cls(count=value)
        if isinstance(value, float) and 0 < value <= 1:
            return cls(fraction=value)
        raise Refusal("bad-value", where, f"{value!r} is neither", cls.allowed)

    def of(self, rows: int) -> int:
        """The number of rows to keep out of `rows`: at most `rows`; a fraction is rounded half up, and never to none of some."""
        if self.count is not None:
            return min(self.count, rows)
        assert self.fraction is not None
        return min(rows, max(min(rows, 1), int(np.floor(self.fraction * rows + 0.5))))

    def plain(self) -> int | float:
        """As a recipe writes it."""
        return self.count if self.count is not None else float(self.fraction or 0)


class Batch:
    """Consecutive samples of one shard, for a measure. Pixels are decoded once per scale and shared by all measures that ask for it.

    payloads    the image (or text) member's bytes of each row; None where it has none
    texts       caption or document of each row, or None
    device      where an encoder runs: "cpu", "cuda" or "mps"
    looks       under each window (None: without one), the functions that the measures of this batch will give to `seen`: their files name them in `LOOKS`
    faults      what is wrong with each row, or None. Whoever asks for pixels of a broken image leaves its slug here and gets zeros: a measure needs no `try`
    """

    def __init__(self, payloads: list[Any], texts: list[str | None] | None = None, device: str = "cpu", looks: LooksByWindow | None = None) -> None:
        self.payloads, self.device, self.looks = payloads, device, looks or {}
        self.texts = texts if texts is not None else [None] * len(payloads)
        self.faults: list[str | None] = [None] * len(payloads)
        self._decoded: dict[tuple[int | None, bool, images.Window | None], list[np.ndarray | str]] = {}
        self._seen: dict[images.Window | None, list[dict[Look, Any] | str]] = {}

    def __len__(self) -> int:
        return len(self.payloads)

    def pixels(self, min_side: int | None = None, gray: bool = False, window: images.Window | None = None) -> list[np.ndarray | None]:
        """Decoded rows: (h, w, 3) uint8 RGB, or (h, w) when `gray`; None where a row has a fault.

        min_side    colour: decode a JPEG at the smallest DCT scale whose shorter side is still at least this; None = full scale.
                    Grey: the full-scale picture, shrunk by the largest whole number that leaves this much, so that one decode serves all.
                    Pictures that are smaller, and other formats, come at full scale.
        window      how more than 8 bits of grey become 8: see `manifests.images.decode`
        """
        found = self._decoded.get((min_side, gray, window))
        if found is None:
            if gray:
                self.pixels(window=window)
                found = [item if isinstance(item, str) else images.shrink(item, min_side) for item in self._decoded[None, False, window]]
            else:
                found = [_decoded(payload, min_side, window) for payload in self.payloads]
            self._decoded[min_side, gray, window] = found
        for row, item in enumerate(found):
            if isinstance(item, str):
                self.faults[row] = item
        return [None if isinstance(item, str) else item for item in found]

    def seen(self, look: Callable[[np.ndarray], Seen], window: images.Window | None = None) -> list[Seen | None]:
        """`look(pixels)` of each picture at full scale, (h, w, 3) uint8 RGB; None where a row has a fault.

        All of `looks` are taken of a picture as soon as it is decoded, while it lies in the processor's cache, and then it is let go: reading it again
        from memory costs more than most looks do. So a look keeps no view of the pixels. One that was not named takes them from `pixels`.
        """
        named = self.looks.get(window, ())
        if look not in named:
            return [None if picture is None else look(picture) for picture in self.pixels(window=window)]
        found = self._seen.get(window)
        if found is None:
            found = self._seen[window] = [_looked(payload, window, named) for payload in self.payloads]
        for row, item in enumerate(found):
            if isinstance(item, str):
                self.faults[row] = item
        return [None if isinstance(item, str) else item[look] for item in found]


def _looked(payload: Any, window: images.Window | None, looks: Sequence[Look]) -> "dict[Look, Any] | str":
    """What each look sees in the picture, or the slug of what is wrong."""
    picture = _decoded(payload, None, window)
    return picture if isinstance(picture, str) else {look: look(picture) for look in looks}


def _decoded(payload: Any, min_side: int | None, window: images.Window | None) -> "np.ndarray | str":
    """The pixels, or the slug of what is wrong."""
    try:
        if payload is None:
            raise images.Undecodable("no_payload")
        return images.decode(payload, min_side=min_side, window=window)
    except images.Undecodable as error:
        return error.reason


@dataclass
class Edges:
    """Pairs of rows (local indices) down to a stage's floor: `a`, `b` int64, `score` float64, and what else was seen of each pair (numpy arrays).

    Where a pair ends in an evaluation pool, `columns` has the other end's uid as `b` (S32) and its pool's name as `pool`; the array `b` is then `a` again.
    """

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray
    columns: Columns = field(default_factory=dict)

    def state(self) -> State:
        """As `Pool.once` publishes it."""
        return self.a, self.b, self.score, np.array(list(self.columns), "U64"), *(np.asarray(v) for v in self.columns.values())

    @classmethod
    def of(cls, state: State) -> "Edges":
        """From `state`."""
        a, b, score, names, *values = state
        return cls(a, b, score, dict(zip(names.tolist(), values, strict=True)))


@dataclass
class Verdicts:
    """What a decision says of the live rows it was given, in their order.

    keep            (n,) bool
    reason          of the dropped rows: one word of the method's REASONS, or an (n,) array of them
    score           (n,) float64 or None; NaN = does not apply (written as null)
    threshold       a number, an (n,) float64 array or None
    witness         (n,) int64 local row that decided, -1 = none; a witness is a row that this stage keeps
    witness_uid     instead of `witness` where the witness stands in an evaluation pool: (n,) str or None, with `witness_pool` its name
    columns         further columns to write, one value a row
    weight          (n,) float32 expected visits a pass, or None
    unjudged        (n,) bool: rows kept because nothing could be said of them (an expression that is null, no neighbour to ask), or None
    edges           pairs down to the stage's stated floor, or None
    """

    keep: np.ndarray
    reason: "str | np.ndarray"
    score: np.ndarray | None = None
    threshold: "float | np.ndarray | None" = None
    witness: np.ndarray | None = None
    witness_uid: np.ndarray | None = None
    witness_pool: np.ndarray | None = None
    columns: Columns = field(default_factory=dict)
    weight: np.ndarray | None = None
    unjudged: np.ndarray | None = None
    edges: Edges | None = None


class Keeper(Protocol):
    """Where a long decision publishes what it has done (see `curate/build.py`); None in tests: everything is done at once."""

    def load(self, name: str) -> tuple[int, State] | None:
        """The newest published (round, state) under `name`, or None."""

    def save(self, name: str, round: int, state: State) -> None:
        """Publish `state` as the one after `round` rounds."""

    def due(self) -> bool:
        """Is it time to publish? Reaches no verdict: only how much a crash would cost."""


class Pool:
    """The live rows of a run in shard order, for a decision. No column that the decision reads is null here: such rows are kept, unjudged, by the caller.

    uid             (n,) `S32` hex digits; ties anywhere are broken by the smaller one
    fixed           (n,) bool: protected rows, kept first, counted in the budget, first in keeper order
    settled         (n,) bool: those of them that an earlier generation kept: a pair of two of them is known already and decides nothing, nobody need look for it
    seed            the recipe's seed; use `rng`
    memory          bytes that the decision may use
    name            of an evaluation pool: what the ledger calls it
    """

    def __init__(
        self,
        uid: np.ndarray,
        columns: "pa.Table | dict[str, Any] | None" = None,
        vectors: "dict[str, Vectors] | None" = None,
        *,
        fixed: np.ndarray | None = None,
        seed: int = 0,
        stage: str = "test",
        group: str = "",
        memory: int = 4 << 30,
        keeper: Keeper | None = None,
        read_payloads: Callable[[np.ndarray], Iterator[Any]] | None = None,
        evaluations: "dict[str, Pool] | None" = None,
        device: str = "cpu",
        name: str = "",
        edges: Edges | None = None,
        settled: np.ndarray | None = None,
    ) -> None:
        self.name, self._edges = name, edges
        self.uid = np.asarray(uid, dtype="S32")
        self._table = columns if isinstance(columns, pa.Table) else pa.table(columns or {})
        self._vectors = vectors or {}
        self.fixed = np.zeros(len(self.uid), bool) if fixed is None else np.asarray(fixed, bool)
        self.settled = np.zeros(len(self.uid), bool) if settled is None else settled
        self.seed, self.stage, self.group, self.memory, self.device = seed, stage, group, memory, device
        self._keeper, self._read, self._evaluations = keeper, read_payloads, evaluations or {}
        self._rank: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.uid)

    @property
    def uid_rank(self) -> np.ndarray:
        """(n,) int64: the place of each row in the order of uids."""
        if self._rank is None:
            self._rank = np.empty(len(self), np.int64)
            self._rank[_by_bytes(self.uid)] = np.arange(len(self))
        return self._rank

    def first(self, mask: np.ndarray) -> int:
        """The row with the smallest uid among those in `mask` (n,) bool."""
        rows = np.flatnonzero(mask)
        return int(rows[np.argmin(self.uid_rank[rows])])

    def column(self, name: str) -> np.ndarray:
        """A column as numpy, without nulls: numbers and bools as they are, text as object, fixed binary as (n, width) uint8."""
        values = self._table.column(name)
        kind = values.type
        if pa.types.is_fixed_size_binary(kind):
            joined = values.combine_chunks()
            joined = joined.chunk(0) if isinstance(joined, pa.ChunkedArray) else joined
            buffer = np.frombuffer(joined.buffers()[1] or b"", np.uint8)
            start = joined.offset * kind.byte_width
            return buffer[start : start + len(self) * kind.byte_width].reshape(len(self), kind.byte_width)
        if pa.types.is_dictionary(kind):
            values = values.cast(kind.value_type)
        return values.to_numpy()

    def has(self, name: str) -> bool:
        """Is there a column or vector column of this name?"""
        return name in self._table.column_names or name in self._vectors

    @property
    def table(self) -> pa.Table:
        """All columns that this decision reads, as Arrow (for SQL expressions)."""
        return self._table

    def vectors(self, name: str) -> "Vectors":
        """The vector column `name` of the live rows: streamed in blocks, float16 on disk."""
        return self._vectors[name]

    def rng(self, *purpose: str) -> np.random.Generator:
        """A generator seeded by (seed, stage, group, purpose). Draw by uid order, never by position: `rng.permutation(n)[pool.uid_rank]`."""
        text = "\0".join([str(self.seed), self.stage, self.group, *purpose])
        return np.random.Generator(np.random.Philox(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")))

    def lot(self, *purpose: str) -> np.ndarray:
        """(n,) uint64: drawn for each row from its uid, the seed and the purpose; the same whichever other rows there are."""
        factors = self.rng(*purpose).integers(0, 1 << 63, 4, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        return (np.ascontiguousarray(self.uid).view(np.uint64).reshape(-1, 4) * factors).sum(1, dtype=np.uint64) >> np.uint64(16)

    def keeper_order(self, prefer: Sequence[str] = (), then: np.ndarray | None = None) -> np.ndarray:
        """(n,) int64: each row's place when protected rows come first, then the larger `prefer` columns, the smaller `then` (n,), the smaller uid."""
        keys = [self.uid_rank, *([] if then is None else [then]), *[-self._worth(name) for name in reversed(prefer)], ~self.fixed]
        rank = np.empty(len(self), np.int64)
        rank[np.lexsort(keys)] = np.arange(len(self))
        return rank

    def _worth(self, name: str) -> np.ndarray:
        """(n,) float64: a column of numbers, null and NaN below all others. Raises `Refusal` [bad-value] for other types."""
        values = self._table.column(name)
        if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_boolean(values.type)):
            raise Refusal("bad-value", f"{self.stage}: prefer", f"{name} is of {values.type}", "columns of numbers")
        found: np.ndarray = values.cast(pa.uint8() if pa.types.is_boolean(values.type) else values.type).cast(pa.float64(), safe=False).to_numpy()
        return np.where(np.isnan(found), -np.inf, found)

    def known(self, group: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """(groups,) bool: of which groups every row is settled. Pairs of two such groups are known already: nobody need look for them.

        group    (n,) int64: the group of each row, or of each of `rows` (n,)
        """
        is_new = ~self.settled if rows is None else ~self.settled[rows]
        found: np.ndarray = np.bincount(group, weights=is_new) == 0
        return found

    def payloads(self, rows: np.ndarray) -> Iterator[Any]:
        """The image bytes of `rows`, in their order, read from the shards as they are asked for."""
        assert self._read is not None, "this pool has no shards"
        return self._read(np.asarray(rows, np.int64))

    def evaluation(self, path: str) -> "Pool":
        """The evaluation pool at `path`, with the same columns and vectors measured in the same way."""
        return self._evaluations[path]

    def edges(self, find: Callable[[], Edges]) -> Edges:
        """The pairs of live rows down to the stage's floor: what `find` finds, looked for once; in a replay those that the run holds, without a picture.

        A method that decides by pairs does all its long work in `find` and is a fold over what comes back; it gives the same edges in its `Verdicts`.
        """
        if self._edges is not None:
            return self._edges
        return Edges.of(self.once("edges", lambda: find().state()))

    def once(self, name: str, function: Callable[[], State]) -> State:
        """`function()`, a tuple of arrays, computed once: after a crash the published result is read instead."""
        found = self._keeper.load(name) if self._keeper else None
        if found is not None:
            return found[1]
        state = function()
        if self._keeper:
            self._keeper.save(name, 1, state)
        return state

    def scan(self, name: str, step: Callable[[State], State], start: State, rounds: int) -> State:
        """Fold `step` over `rounds` rounds from `start`. The state is published now and then, so a killed decision goes on from there.

        `step` may change the arrays in place; it must be a function of the state alone (and of what the pool holds).
        """
        found = self._keeper.load(name) if self._keeper else None
        done, state = found if found is not None else (0, tuple(np.array(a) for a in start))
        while done < rounds:
            state = step(state)
            done += 1
            if self._keeper and (done == rounds or self._keeper.due()):
                self._keeper.save(name, done, state)
        return state


def _by_bytes(uid: np.ndarray) -> np.ndarray:
    """(n,) int64: the stable order of (n,) bytes, by their first eight as a number and only then, where these are equal, by all: a third of the time."""
    if not len(uid) or uid.dtype.kind != "S" or uid.dtype.itemsize < 8:
        return np.argsort(uid, kind="stable")
    head = np.ascontiguousarray(uid).view(np.uint8).reshape(len(uid), -1)[:, :8].copy().view(">u8")[:, 0].astype(np.uint64)
    order = np.argsort(head, kind="stable")
    same = np.diff(head[order]) == 0
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    order[tied] = order[tied][np.argsort(uid[order[tied]], kind="stable")]
    return order
