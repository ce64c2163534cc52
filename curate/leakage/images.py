"""Drop the pictures that stand, the same, nearly the same or as a copy, in an evaluation pool."""

import warnings
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curate.pool import Column, Pool, PoolPaths, State, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.likeness import TURNS, Looks, candidates, differences, members, thumbnails
from manifests.registration import AREA, Seen, glance, register
from manifests.vectors.neighbours import knn

REASONS = ("exact_leak", "near_leak", "copied_leak", "vector_leak")
WRITES = {"leakage_pool": pa.string(), "leakage_cosine": pa.float64(), "leakage_copied": pa.float64()}
WHERE = "leakage.images"
EXACT, NEAR, COPIED, VECTOR, NONE = range(5)  # how a row is hit, the surest first; the first four are REASONS
QUERIES = 8192  # rows whose neighbours are sought in one round
PAIRS = 1024  # pairs that are verified in one round
HELD = 256  # pictures of the evaluation pool that are kept as `registration` sees them


@dataclass(frozen=True)
class Limits:
    """Up to where two pictures are nearly the same; see `dedup.perceptual`."""

    max_distance: int
    max_rms: float
    min_contrast: float
    turned: bool
    side: int


def images(
    pool: Pool,
    *,
    against: PoolPaths,
    hash: Column = Column("pixels_hash"),  # noqa: B008
    views: Column = Column("phash_views"),  # noqa: B008
    trimmed: Column = Column("phash_trimmed_views"),  # noqa: B008
    max_distance: int = 4,
    max_rms: float = 12.0,
    min_contrast: float = 40.0,
    turned: bool = True,
    side: int = 32,
    vectors: VectorName | None = None,
    min_cosine: float | None = None,
    min_copied: float | None = None,
    min_area: float = 0.35,
    loose_distance: int = 10,
    k: int = 5,
) -> Verdicts:
    """Drop the pictures that an evaluation pool also holds, the same or nearly the same: nothing is trained on what it is tested on.

    Decides     dropped when a picture of an evaluation pool has the same pixels ("exact_leak", score 0); else when the hashes differ in at most `max_distance` bits
                AND the thumbnails by at most `max_rms` grey levels, with or without their borders ("near_leak", score the difference); else with `min_copied` when it
                is a verified copy ("copied_leak", score the share of blocks that agree, as in dedup.copies); else with `min_cosine` when its vector is that close
                ("vector_leak", score the cosine). `witness` is the uid of the closest evaluation picture by the surest of these ways and its pool the witness's pool
                (a tie goes to the pool named first, then to the smaller uid); `threshold` is the limit of that way. Labels are not looked at.
                Protection does not count here: a protected row that leaks is dropped. A pool of which no row is left says so.
    Guarantee   a pool that is the evaluation pool is dropped whole. At 28 pixels: precision 0.99, recall 0.97 on re-encoded test images.
    Source      both tests and their limits were set against planted leaks (Fashion-MNIST); verified copies: `dedup.copies`
    against     evaluation pools
    hash        the column of pixel hashes
    views       the column of hashes of the eight turns, unturned first
    trimmed     the same without the border
    max_distance, max_rms, min_contrast, turned, side    as in dedup.perceptual
    vectors     a vector column, of an encoder that both pools were measured with; it proposes copies, and decides with `min_cosine`
    min_cosine  from -1 to 1; null = vectors alone decide nothing, for encoders do not tell a copy from a look-alike. 0.9 and above with a copy encoder
    min_copied  0 to 1; null = copies are not verified. 0.4 finds crops, text boxes, wide borders and collages, as in dedup.copies
    min_area    a copy shows at least this share of one of the two pictures
    loose_distance   bits of 64 up to which hashes propose a copy
    k           nearest evaluation pictures of each row that vectors propose as copies
    Writes      leakage_pool: string, the evaluation pool that holds the picture; null where none does. leakage_cosine: float64, of the row and the nearest evaluation
                picture, with `vectors`; leakage_copied: float64, share of blocks that agree with the closest picture, where one was verified
    Cost        one search of hash neighbours a pool; a decode and 3 * side^2 bytes for each picture with a candidate, on both sides; with `vectors` n m d
                multiply-adds; with `min_copied` 1 to 5 ms a candidate pair that no surer way decided
    Errors      [bad-value] for a side that is no multiple of 4, hashes of different lengths, limits outside their range; [does-not-fit] where the thumbnails need more
                than the memory
    """
    _check(side, vectors, min_cosine, min_copied, min_area, k)
    limits, n = Limits(max_distance, max_rms, min_contrast, turned, side), len(pool)
    how, score, cosine, copied = np.full(n, NONE), np.full(n, np.inf), np.full(n, -np.inf), np.full(n, -np.inf)
    uid, source = np.full(n, None, object), np.full(n, None, object)
    for number, path in enumerate(against):
        other = pool.evaluation(path)
        found, row, is_exact = pool.once(f"pool-{number}", lambda other=other: _closest(pool, other, hash, (views, trimmed), limits))  # type: ignore[misc]
        ways = [(EXACT, np.where(is_exact, found, np.inf), row), (NEAR, np.where(is_exact, np.inf, found), row)]
        near, to_near = (np.empty((n, 0)), np.empty((n, 0), np.int64)) if vectors is None else _nearest(pool, other, vectors, k, number)
        if near.shape[1]:
            cosine = np.maximum(cosine, near[:, 0])
        if min_copied is not None:
            is_open = ~np.isfinite(found) & (how >= COPIED)
            agree, copy = _copies(pool, other, (views, trimmed), to_near, is_open, (min_copied, min_area, loose_distance), number)
            copied = np.maximum(copied, agree)
            ways.append((COPIED, np.where(agree >= min_copied, -agree, np.inf), copy))
        if min_cosine is not None and near.shape[1]:
            ways.append((VECTOR, np.where(near[:, 0] >= min_cosine, -near[:, 0], np.inf), to_near[:, 0]))
        for way, distance, place in ways:
            closer = np.isfinite(distance) & ((way < how) | ((way == how) & (distance < score)))
            how[closer], score[closer], source[closer] = way, distance[closer], other.name or path
            uid[closer] = other.uid[place[closer]].astype("U32")
    if n and (how < NONE).all():
        warnings.warn(
            f"{WHERE}: every one of {n} pictures stands in {', '.join(sorted(set(source.tolist())))}: nothing is left to train on", stacklevel=2
        )
    threshold = np.array([max_rms, max_rms, *(np.nan if limit is None else limit for limit in (min_copied, min_cosine)), max_rms])[how]
    return Verdicts(
        keep=how == NONE, reason=np.array([*REASONS, REASONS[NEAR]])[how], score=np.where(how < NONE, np.abs(score), np.nan), threshold=threshold,
        witness_uid=uid, witness_pool=source,
        columns={"leakage_pool": pa.array(source, pa.string()), "leakage_cosine": _known(cosine), "leakage_copied": _known(copied)},
    )  # fmt: skip


def _known(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _check(side: int, vectors: str | None, min_cosine: float | None, min_copied: float | None, min_area: float, k: int) -> None:
    if side < 4 or side % 4:
        raise Refusal("bad-value", f"{WHERE}: side", f"{side}", "a multiple of 4")
    if min_cosine is not None and (vectors is None or not -1 <= min_cosine <= 1):
        raise Refusal("bad-value", f"{WHERE}: min_cosine", f"{min_cosine} with vectors {vectors}", "a cosine from -1 to 1, of a vector column")
    if (min_copied is not None and not 0 <= min_copied <= 1) or not AREA <= min_area <= 1 or k < 1:
        given = f"min_copied {min_copied}, min_area {min_area}, k {k}"
        raise Refusal("bad-value", WHERE, given, f"min_copied from 0 to 1, min_area from {AREA} to 1, k of 1 or more")


def _closest(pool: Pool, other: Pool, hash: str, views: tuple[str, str], limits: Limits) -> State:
    """For each row the score of the closest picture of `other` (inf above the limit), its row there, and whether its pixels are the same."""
    score, row = np.full(len(pool), np.inf), np.full(len(pool), -1, np.int64)
    mine, theirs = _keys(pool, other, hash)
    by_uid = np.argsort(other.uid_rank)
    held, first = np.unique(theirs[by_uid], return_index=True)
    place = np.minimum(np.searchsorted(held, mine), max(len(held) - 1, 0))
    exact = held[place] == mine if len(held) else np.zeros(len(pool), bool)
    score[exact], row[exact] = 0.0, by_uid[first][place[exact]]

    _, left, back = np.unique(mine, return_index=True, return_inverse=True)  # equal pixels share their fate
    right = by_uid[first]
    (my_looks, their_looks), (my_codes, my_group), (their_codes, their_group) = _looks(pool, left, other, right, views)
    u, v, _ = candidates(my_codes, their_codes, limits.max_distance, turned=limits.turned)
    open_left = np.flatnonzero(np.isin(my_group, u) & ~exact[my_looks.row])
    open_right = np.flatnonzero(np.isin(their_group, v))
    my_pictures = thumbnails(WHERE, pool.payloads, my_looks, open_left, limits.side, pool.memory)
    their_pictures = thumbnails(WHERE, other.payloads, their_looks, open_right, limits.side, pool.memory)
    near, which = np.full(len(pool), np.inf), np.full(len(pool), -1, np.int64)
    my_rows, their_rows = my_looks.row[open_left], their_looks.row[open_right]
    for a, b, _ in members(my_group[open_left], u, v, their_group[open_right]):
        found = differences(my_pictures, a, their_pictures, b, limit=limits.max_rms, min_contrast=limits.min_contrast, turned=limits.turned)
        _keep_closest(near, which, my_rows[a], their_rows[b], found, other.uid_rank)
    near, which = near[left][back], which[left][back]
    is_near = np.isfinite(near) & ~exact
    score[is_near], row[is_near] = near[is_near], which[is_near]
    return score, row, exact


def _keys(pool: Pool, other: Pool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The raw bytes of a hash column in both pools, to be sorted and compared."""
    columns = [p.column(name) for p in (pool, other)]
    widths = [c.shape[1] if c.ndim == 2 else 0 for c in columns]
    if 0 in widths or (widths[0] != widths[1] and len(pool) and len(other)):
        raise Refusal(
            "bad-value",
            WHERE,
            f"{name} holds {widths[0]} bytes here and {widths[1]} in {other.name or 'the evaluation pool'}",
            "hashes of one length",
        )
    mine, theirs = (np.ascontiguousarray(c).view(np.dtype((np.void, c.shape[1])))[:, 0] for c in columns)
    return mine, theirs


def _looks(
    pool: Pool, rows: np.ndarray, other: Pool, their_rows: np.ndarray, views: tuple[str, str]
) -> tuple[list[Looks], tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Looks of `rows` of both pools, numbered as in their pools; of each the distinct codes, and which of them each look has."""
    for name in views:
        _keys(pool, other, name)
    found = [Looks.of(*(p.column(name)[some] for name in views)) for p, some in ((pool, rows), (other, their_rows))]
    grouped = [looks.grouped() for looks in found]
    for looks, some in zip(found, (rows, their_rows), strict=True):
        looks.row = some[looks.row]
    return found, grouped[0], grouped[1]


def _keep_closest(best: np.ndarray, which: np.ndarray, rows: np.ndarray, others: np.ndarray, found: np.ndarray, uid_rank: np.ndarray) -> None:
    """Take into `best` and `which` (n,) the pairs (row, other, found) that are closer, a tie by the smaller uid of the other."""
    order = np.lexsort((-uid_rank[others], -found, rows))  # the last of each row: least, then smallest uid
    rows, others, found = rows[order], others[order], found[order]
    last = np.append(rows[1:] != rows[:-1], True)[: len(rows)]
    rows, others, found = rows[last], others[last], found[last]
    tie = (found == best[rows]) & np.isfinite(found) & (uid_rank[others] < uid_rank[which[rows]])
    better = (found < best[rows]) | tie
    best[rows[better]], which[rows[better]] = found[better], others[better]


def _nearest(pool: Pool, other: Pool, name: VectorName, k: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) cosine and row of the nearest evaluation pictures, best first, fewer where the pool is small."""
    z, base = pool.vectors(name), other.vectors(name)
    width = min(k, len(base))

    def search(state: State) -> State:
        cosine, row, done = state
        some = np.arange(done[0], min(done[0] + QUERIES, len(z)))
        cosine[some], row[some] = knn(z.subset(some), base, width, base_uid_rank=other.uid_rank, device=pool.device)
        return cosine, row, done + len(some)

    start = np.full((len(z), width), -np.inf), np.full((len(z), width), -1, np.int64), np.zeros(1, np.int64)
    cosine, row, _ = pool.scan(f"nearest-{number}", search, start, rounds=-(-len(z) // QUERIES) if width else 0)
    return cosine, row


def _copies(
    pool: Pool, other: Pool, views: tuple[str, str], nearest: np.ndarray, is_open: np.ndarray, limits: tuple[float, float, int], number: int
) -> tuple[np.ndarray, np.ndarray]:
    """For each row in `is_open` the best verified share of agreeing blocks down to the limit, -inf where none, and the row of `other` that it is a copy of."""
    min_copied, min_area, radius = limits
    rows, theirs = _proposed(pool, other, views, nearest, is_open, radius)

    def verify(state: State) -> State:
        best, which, done = state
        some = slice(int(done[0]), int(done[0]) + PAIRS)
        left, held = np.unique(rows[some]), {}
        for row, payload in zip(left.tolist(), pool.payloads(left), strict=True):
            held[row] = glance(payload)
        own = theirs[some]
        for start in range(0, len(np.unique(own)), HELD):
            chosen = np.unique(own)[start : start + HELD]
            seen = dict(zip(chosen.tolist(), map(glance, other.payloads(chosen)), strict=True))
            here = np.flatnonzero(np.isin(own, chosen))
            agree = np.array([_agreement(held[int(rows[some][i])], seen[int(own[i])], min_area) for i in here])
            hit = agree >= min_copied
            _keep_closest(best, which, rows[some][here[hit]], own[here[hit]], -agree[hit], other.uid_rank)
        return best, which, done + PAIRS

    start = np.full(len(pool), np.inf), np.full(len(pool), -1, np.int64), np.zeros(1, np.int64)
    best, which, _ = pool.scan(f"copies-{number}", verify, start, rounds=-(-len(rows) // PAIRS))
    return -best, which


def _agreement(mine: Seen | None, theirs: Seen | None, min_area: float) -> float:
    """The share of blocks that agree; 0 where nothing speaks for a copy or too little is shown of both."""
    match = None if mine is None or theirs is None else register(mine, theirs)
    if match is None:
        return 0.0
    shown = max((right - left) * (bottom - top) for left, top, right, bottom in (match.left, match.right))
    return match.score if shown >= min_area else 0.0


def _proposed(
    pool: Pool, other: Pool, views: tuple[str, str], nearest: np.ndarray, is_open: np.ndarray, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (row, row of `other`) that hashes within `radius` bits of 64 or the nearest vectors propose, each once, in the order of rows."""
    everyone, open_rows = np.arange(len(other)), np.flatnonzero(is_open)
    (my_looks, their_looks), (my_codes, my_group), (their_codes, their_group) = _looks(pool, open_rows, other, everyone, views)
    u, v, _ = candidates(my_codes, their_codes, radius * my_codes.shape[1] // (8 * TURNS), turned=True)
    found = [my_looks.row[a] * len(other) + their_looks.row[b] for a, b, _ in members(my_group, u, v, their_group)]
    row, column = np.nonzero((nearest >= 0) & is_open[:, None])
    key = np.unique(np.concatenate([*found, row * len(other) + nearest[row, column]]))
    return np.divmod(key.astype(np.int64), max(len(other), 1))
