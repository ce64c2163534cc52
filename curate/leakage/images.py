"""Drop the pictures that stand, the same or nearly the same, in an evaluation pool."""

import numpy as np
import pyarrow as pa

from curate.pool import Column, Pool, PoolPaths, Verdicts
from manifests.errors import Refusal
from manifests.likeness import Pictures, candidates, differences, members

REASONS = ("exact_leak", "near_leak")
WRITES = {"leakage_pool": pa.string()}


def images(
    pool: Pool,
    *,
    against: PoolPaths,
    hash: Column = Column("pixels_hash"),  # noqa: B008
    views: Column = Column("phash_views"),  # noqa: B008
    max_distance: int = 4,
    max_rms: float = 12.0,
    min_contrast: float = 40.0,
    turned: bool = True,
    side: int = 32,
) -> Verdicts:
    """Drop the pictures that an evaluation pool also holds, the same or nearly the same: nothing is trained on what it is tested on.

    Decides     dropped when a picture of an evaluation pool has the same pixels ("exact_leak", score 0), or when the hashes differ in at most `max_distance` bits
                AND the thumbnails by at most `max_rms` grey levels ("near_leak"). `witness` is the uid of the closest evaluation picture and its pool the
                witness's pool (a tie goes to the pool named first, then to the smaller uid); `score` is the difference in grey levels, `threshold` max_rms.
                Protection does not count here: a protected row that leaks is dropped.
    Guarantee   a pool that is the evaluation pool is dropped whole. At 28 pixels: precision 0.99, recall 0.97 on re-encoded test images.
    Source      both tests and their limits were set against planted leaks (Fashion-MNIST)
    against     evaluation pools
    hash        the column of pixel hashes
    views       the column of hashes of the eight turns, unturned first
    max_distance, max_rms, min_contrast, turned, side    as in dedup.perceptual
    Writes      leakage_pool: string, the evaluation pool that holds the picture; null where none does
    Cost        one search of hash neighbours a pool; a decode and 3 * side^2 bytes for each picture with a candidate, on both sides
    Errors      [bad-value] for a side that is no multiple of 4; [does-not-fit] where the thumbnails need more than the memory
    """
    if side < 4 or side % 4:
        raise Refusal("bad-value", "leakage.images: side", f"{side}", "a multiple of 4")
    score, is_exact = np.full(len(pool), np.inf), np.zeros(len(pool), bool)
    uid, source = np.full(len(pool), None, object), np.full(len(pool), None, object)
    limits = (max_distance, max_rms, min_contrast, turned, side)
    for number, path in enumerate(against):
        other = pool.evaluation(path)
        found, row, exact = pool.once(f"pool-{number}", lambda other=other: _closest(pool, other, hash, views, *limits))  # type: ignore[misc]
        closer = (found < score) | (exact.astype(bool) & ~is_exact)
        score[closer], is_exact[closer], source[closer] = found[closer], exact[closer], other.name or path
        uid[closer] = other.uid[row[closer]].astype("U32")
    hit = score <= max_rms
    return Verdicts(
        keep=~hit, reason=np.where(is_exact, "exact_leak", "near_leak"), score=np.where(hit, score, np.nan), threshold=max_rms,
        witness_uid=uid, witness_pool=source, columns={"leakage_pool": pa.array(source, pa.string())},
    )  # fmt: skip


def _closest(
    pool: Pool, other: Pool, hash: str, views: str, max_distance: int, limit: float, min_contrast: float, turned: bool, side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row the score of the closest picture of `other` (inf above `limit`), its row there, and whether its pixels are the same."""
    score, row = np.full(len(pool), np.inf), np.full(len(pool), -1, np.int64)
    mine, theirs = _keys(pool.column(hash)), _keys(other.column(hash))
    by_uid = np.argsort(other.uid_rank)
    held, first = np.unique(theirs[by_uid], return_index=True)
    place = np.minimum(np.searchsorted(held, mine), max(len(held) - 1, 0))
    exact = held[place] == mine if len(held) else np.zeros(len(pool), bool)
    score[exact], row[exact] = 0.0, by_uid[first][place[exact]]

    _, left, back = np.unique(mine, return_index=True, return_inverse=True)  # equal pixels share their fate
    right = by_uid[first]
    left_codes, left_group = np.unique(_keys(pool.column(views))[left], return_inverse=True)
    right_codes, right_group = np.unique(_keys(other.column(views))[right], return_inverse=True)
    u, v, _ = candidates(_bytes(left_codes), _bytes(right_codes), max_distance, turned=turned)
    open_left, open_right = np.isin(left_group, u) & ~exact[left], np.isin(right_group, v)
    my_pictures = _thumbnails(pool, left[open_left], side)
    their_pictures = _thumbnails(other, right[open_right], side)
    near, which = np.full(len(left), np.inf), np.full(len(left), -1, np.int64)
    my_rows, their_rows = np.flatnonzero(open_left), right[open_right]
    for a, b, _ in members(left_group[open_left], u, v, right_group[open_right]):
        found = differences(my_pictures, a, their_pictures, b, limit=limit, min_contrast=min_contrast, turned=turned)
        order = np.lexsort((-other.uid_rank[their_rows[b]], -found, my_rows[a]))  # the last of each row: least score, then smallest uid
        a, b, found = my_rows[a[order]], their_rows[b[order]], found[order]
        last = np.append(a[1:] != a[:-1], True)[: len(a)]
        a, b, found = a[last], b[last], found[last]
        better = (found < near[a]) | ((found == near[a]) & np.isfinite(found) & (other.uid_rank[b] < other.uid_rank[which[a]]))
        near[a[better]], which[a[better]] = found[better], b[better]
    is_near = np.isfinite(near[back]) & ~exact
    score[is_near], row[is_near] = near[back][is_near], which[back][is_near]
    return score, row, exact


def _keys(column: np.ndarray) -> np.ndarray:
    """(n,) raw bytes of an (n, w) uint8 column, to be sorted and compared."""
    return np.ascontiguousarray(column).view(np.dtype((np.void, column.shape[1])))[:, 0]


def _bytes(keys: np.ndarray) -> np.ndarray:
    return keys.view(np.uint8).reshape(len(keys), keys.dtype.itemsize)


def _thumbnails(pool: Pool, rows: np.ndarray, side: int) -> Pictures:
    needed = len(rows) * (3 * side * side + 256)
    if needed > pool.memory:
        raise Refusal(
            "does-not-fit", "leakage.images", f"thumbnails of {len(rows)} rows need {needed >> 20} MiB", f"{pool.memory >> 20} MiB are allowed",
            "Give more --memory or a smaller side",
        )  # fmt: skip
    return Pictures.of(pool.payloads(rows) if len(rows) else (), len(rows), side)
