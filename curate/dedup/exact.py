"""Keep one of all samples with the same hash, once the pixels are seen to be the same."""

import builtins
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from curate.pool import Column, Pool, Preferred, Verdicts
from manifests.errors import Refusal
from manifests.images import Undecodable, decode, header, values
from manifests.vectors.forecast import linear

REASONS = ("exact_duplicate",)
WRITES = {"exact_group": pa.string(), "exact_size": pa.int32()}
MOVES = {"prefer": "", "keeper": "", "confirm": ""}
GROWS = "equal where each keeper is in the older part"
forecast = linear
LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
WHERE = "dedup.exact"
CONFIRMED = "exact_group"  # rows of one group were seen to have the same pixels, so that a replay need not look again


def exact(
    pool: Pool,
    *,
    hash: builtins.list[Column] = [Column("pixels_hash")],  # noqa: B006, B008
    prefer: builtins.list[Preferred] = [],  # noqa: B006
    keeper: Literal["uid", "earliest"] = "uid",
    confirm: bool = True,
) -> Verdicts:
    """Keep one of all samples that are the same: in pixels, bytes, caption, or in several of these together.

    Decides     in keeper order a row is dropped ("exact_duplicate") when an earlier row has the same values in all `hash` columns and, with `confirm`, the
                same pixels; `witness` is the row that was kept for it. Keeper order: protected rows, then the larger `prefer` columns, then `keeper`. Every
                protected row is kept. No score, no threshold: same is same.
    Guarantee   with `confirm`, two different pictures are never merged, whatever the hash says: deep grey is compared in all its bits, colours with their
                transparency and orientation; animations that differ in any byte stay apart. Without it, equal hashes of the first frame's 8-bit pixels merge
    Source      none needed: equality
    hash        the columns that must be equal together: [pixels_hash] finds the same picture in another format, [bytes_hash] the same file, [caption] the same
                text (with `confirm: false`), [pixels_hash, caption] the same picture with the same caption, [pixels_hash, label] leaves a picture that carries
                two labels twice. Numbers, text and bytes of any length; a row without a value in one of them is kept, unjudged
    prefer      columns of numbers; the row with the larger value is the one to keep, and null is the least, as in dedup.perceptual
    keeper      who stays of those that `prefer` leaves equal: the smaller "uid", or the "earliest": the first source by name, in it the first shard by name, in it the
                first sample
    confirm     compare the bytes of each duplicate with its keeper's and, where they differ, the decoded pixels. Turn it off for columns that do not stand for
                pixels (a caption alone)
    Writes      exact_group: string, uid of the first row of the group in keeper order; exact_size: int32, rows in the group. Alone: its own uid and 1
    Cost        one hash table of each column; with `confirm`, each duplicate is read once and decoded only where its bytes differ from the keeper's
    Errors      [bad-value] for no column, or one of lists or vectors
    """
    if not hash:
        raise Refusal("bad-value", f"{WHERE}: hash", "names no column", "one or more, such as [pixels_hash]")
    group = _groups(pool, hash)
    order = np.argsort(pool.keeper_order(prefer, np.arange(len(pool)) if keeper == "earliest" else None))
    first = _first_of_group(group, order)
    if confirm:
        first = _confirmed(pool, first, order)
    duplicate = first != np.arange(len(pool))
    size = np.bincount(first, minlength=len(pool))[first]
    return Verdicts(
        keep=~duplicate | pool.fixed, reason="exact_duplicate", witness=np.where(duplicate & ~pool.fixed, first, -1),
        columns={"exact_group": pa.array(pool.uid[first].astype("U32")), "exact_size": size.astype(np.int32)},
    )  # fmt: skip


def _groups(pool: Pool, names: builtins.list[Column]) -> np.ndarray:
    """(n,) int64: rows with equal values in all columns share a number."""
    group = np.zeros(len(pool), np.int64)
    for name in names:
        values = pool.table.column(name)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        values = values.cast(LARGE.get(values.type, values.type)).combine_chunks()  # captions may be more than 32-bit offsets reach
        if pa.types.is_nested(values.type):
            raise Refusal("bad-value", f"{WHERE}: hash", f"{name} holds {values.type}", "columns of numbers, text or bytes")
        number = pc.dictionary_encode(values)
        number = (number.combine_chunks() if isinstance(number, pa.ChunkedArray) else number).indices.to_numpy().astype(np.int64)
        group = np.unique(group * (number.max(initial=0) + 1) + number, return_inverse=True)[1]
    return group


def _first_of_group(group: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(n,) int64: for each row, the row of its group that comes first in keeper order."""
    first = np.empty(group.max(initial=-1) + 1, np.int64)
    first[group[order[::-1]]] = order[::-1]  # the last write is the first in order
    return first[group]


def _confirmed(pool: Pool, keeper: np.ndarray, order: np.ndarray) -> np.ndarray:
    """`keeper`, but a row whose pixels differ from all keepers of its group is a keeper itself."""
    keeper, place = keeper.copy(), np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    shared = np.flatnonzero((np.bincount(keeper, minlength=len(keeper)) > 1)[keeper] & ~pool.known(keeper)[keeper])
    shared = shared[np.lexsort((place[shared], place[keeper[shared]]))]  # group by group, keeper first
    payloads: Iterator[Any] = iter(pool.payloads(shared)) if len(shared) else iter(())
    pictures: builtins.list[tuple[int, _Picture]] = []
    hashed = -1
    for row, payload in zip(shared.tolist(), payloads, strict=True):
        picture = _Picture(payload)
        if keeper[row] != hashed:
            hashed, pictures = keeper[row], []
        same = next((kept for kept, other in pictures if other.same(picture)), None)
        if same is None:
            pictures.append((row, picture))
        keeper[row] = row if same is None else same
    return keeper


class _Picture:
    """The bytes of a picture, its pixels decoded when first needed."""

    def __init__(self, payload: Any) -> None:
        self.payload = bytes(payload)
        self._pixels: np.ndarray | None = None

    def same(self, other: "_Picture") -> bool:
        """Are the bytes equal, or else all that is seen: pixels, transparency, every bit of deep grey, how they are turned? What cannot be decoded, and
        what moves, equals only its own bytes."""
        if self.payload == other.payload:
            return True
        try:
            mine, theirs = header(self.payload), header(other.payload)
            if max(mine.frames, theirs.frames) > 1 or mine.orientation != theirs.orientation:
                return False
            if max(mine.bits, theirs.bits) > 8 or {mine.channels, theirs.channels} & {2, 4}:  # 8 bits of colour on white would hide what differs
                return np.array_equal(values(self.payload), values(other.payload))
            return np.array_equal(self.pixels(), other.pixels())
        except Undecodable:
            return False

    def pixels(self) -> np.ndarray:
        """Decoded at full scale."""
        if self._pixels is None:
            self._pixels = decode(self.payload)
        return self._pixels
