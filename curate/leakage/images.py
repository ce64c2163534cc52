"""Drop the pictures that stand, the same, nearly the same or as a copy, in an evaluation pool, and record every one of its samples that is hit."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from curate.pool import Column, Edges, Pool, PoolPaths, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.hits import Groups, Pairs, Way, gathered, together
from manifests.images import beyond
from manifests.likeness import TURNS, Looks, candidates, differences, members, thumbnails
from manifests.memory import enough, size
from manifests.registration import AREA, FIELDS
from manifests.vectors.between import close, nearest
from manifests.vectors.forecast import Forecast, Size, in_turn, leaks, require
from manifests.verified import verified

REASONS = ("exact_leak", "near_leak", "copied_leak", "vector_leak")
WRITES = {"leakage_pool": pa.string(), "leakage_cosine": pa.float64(), "leakage_copied": pa.float64()}
MOVES = {"max_rms": "floor_rms", "min_copied": "floor_copied", "min_cosine": "floor_cosine"}
GROWS = "equal"
VECTORS_MAY_BE_MISSING = True  # the other ways still decide
WHERE = "leakage.images"
EXACT, NEAR, COPIED, VECTOR, NONE = range(5)  # how a row hits a sample, the surest first; the first four are REASONS
PAIR_BYTES = 400  # of a recorded pair with all that is seen of it
SEEN = {**{f"a_{e}": f"b_{e}" for e in ("left", "top", "right", "bottom")}, **{f"b_{e}": f"a_{e}" for e in ("left", "top", "right", "bottom")}}


@dataclass(frozen=True)
class Search:
    """Up to where pairs are looked for; see `images`. `floor_copied` and `floor_cosine` are None where such pairs are not looked for."""

    hash: str
    views: tuple[str, str]
    max_distance: int
    floor_rms: float
    min_contrast: float
    turned: bool
    side: int
    vectors: VectorName | None
    floor_copied: float | None
    floor_cosine: float | None
    min_area: float
    loose_distance: int
    k: int
    max_hits: int


def forecast(size: Size, *, k: int, min_copied: float | None, **_: object) -> Forecast:
    """One evaluation pool after the other."""
    return in_turn(leaks(size.rows, tests, size.dims, k, min_copied is not None) for tests in size.tests)


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
    floor_rms: float = 16.0,
    floor_copied: float = 0.3,
    floor_cosine: float = 0.85,
    max_hits: int = 100,
) -> Verdicts:
    """Drop the pictures that an evaluation pool also holds, the same or nearly the same: nothing is trained on what it is tested on.

    Decides     dropped when a picture of an evaluation pool has the same pixels ("exact_leak", score 0); else when the hashes differ in at most `max_distance` bits
                AND the thumbnails by at most `max_rms` grey levels, with or without their borders ("near_leak", score the difference); else with `min_copied` when it
                is a verified copy ("copied_leak", score the share of blocks that agree, as in dedup.copies); else with `min_cosine` when its vector is that close
                ("vector_leak", score the cosine). `witness` is the uid of the closest evaluation picture by the surest of these ways and its pool the witness's pool
                (a tie goes to the pool named first, then to the smaller uid); `threshold` is the limit of that way. Labels are not looked at, nor needed.
                Protection does not count here: a protected row that leaks is dropped. A pool of which no row is left says so.
    Guarantee   a pool that is the evaluation pool is dropped whole. The edges name every evaluation sample that is hit, by whom, how close and how, also where a
                row shows several. At 28 pixels: precision 0.99, recall 0.97 on re-encoded test images. A picture that cannot be decoded at low resolution has its
                pixel hash alone. Numbers of verified copies are the same on the same kind of processor (see dedup.copies)
                The same pixels are the same in every bit and in transparency; what differs in these alone is a near leak at 0
    Source      both tests and their limits were set against planted leaks (Fashion-MNIST); verified copies: `dedup.copies`
    against     evaluation pools
    hash        the column of pixel hashes
    views       the column of hashes of the eight turns, unturned first
    trimmed     the same without the border
    max_distance, max_rms, min_contrast, turned, side    as in dedup.perceptual; `turned` counts for verified copies too
    vectors     a vector column, of an encoder that both pools were measured with; it proposes copies, and decides with `min_cosine`. A row, or a sample of the
                evaluation pool, that has none is judged in the other ways
    min_cosine  from -1 to 1; null = vectors alone decide nothing, for encoders do not tell a copy from a look-alike. 0.9 and above with a copy encoder
    min_copied  0 to 1; null = copies are not verified. 0.4 finds crops, text boxes, wide borders and collages, as in dedup.copies
    min_area    a copy shows at least this share of one of the two pictures
    loose_distance   bits of 64 up to which hashes propose a copy
    k           nearest evaluation pictures of each row that vectors propose as copies
    floor_rms, floor_copied, floor_cosine   pairs up to this difference, down to this share and this cosine are written as edges, so that the limits can be moved later
                without the pictures
    max_hits    rows that are written of each evaluation sample by each way, the closest first, beside the closest sample of each row by each way. Which samples are
                hit, and every verdict, is exact whatever it is; where a sample is hit by more rows a warning says so, and "is_complete" is false
    Writes      leakage_pool: string, the evaluation pool that holds the picture; null where none does. leakage_cosine: float64, of the row and the nearest evaluation
                picture, with `vectors`; leakage_copied: float64, share of blocks that agree with the closest picture, where one was verified. Edges (a: the row, b:
                the evaluation sample, of `pool`): score, reason (null = beyond the limits), is_same, difference in grey levels, with `min_copied` copied, and turn,
                covered, agreeing and the box of either that the other shows; with `min_cosine` cosine
    Cost        one search of hash neighbours a pool; a picture whose pixel hash stands on both sides is read, and decoded where it is deep or transparent; a decode and
                3 * side^2 bytes for each picture with a candidate, on both sides; with `vectors` n m d multiply-adds, with `min_cosine` twice; with `min_copied` 1 to
                5 ms a candidate pair that has not the same pixels. 400 bytes a written pair
    Errors      [bad-value] for a side that is no multiple of 4, hashes of different lengths, limits outside their range or beyond their floor; [does-not-fit] where the
                forecast, the thumbnails or the pairs need more than the memory
    """
    _check(side, vectors, (min_cosine, floor_cosine), (min_copied, floor_copied), (max_rms, floor_rms), min_area, k, max_hits)
    search = Search(
        hash, (views, trimmed), max_distance, floor_rms, min_contrast, turned, side, vectors, None if min_copied is None else floor_copied,
        None if min_cosine is None else floor_cosine, min_area, loose_distance, k, max_hits,
    )  # fmt: skip
    paths = list(dict.fromkeys(against))
    others = [pool.evaluation(path) for path in paths]
    names = [other.name or path for other, path in zip(others, paths, strict=True)]
    found = pool.edges(lambda: _find(pool, others, names, search))
    edges, way, closeness = _judged(found, max_rms, min_copied, min_cosine)
    _warn_of_many(edges, max_hits)
    number = np.argsort(np.argsort(names))[np.searchsorted(np.sort(names), edges.columns["pool"])] if names else np.empty(0, np.int64)
    order = np.lexsort((edges.columns["b"], number, closeness, way, edges.a))
    order = order[way[order] < NONE]
    first = order[np.flatnonzero(np.diff(edges.a[order], prepend=-1))]  # of each row that is hit its closest sample
    n, rows = len(pool), edges.a[first]
    keep, how, score, uid, source = np.ones(n, bool), np.full(n, NEAR), np.full(n, np.nan), np.full(n, None, object), np.full(n, None, object)
    keep[rows], how[rows], score[rows] = False, way[first], edges.score[first]
    uid[rows], source[rows] = edges.columns["b"][first].astype("U32"), edges.columns["pool"][first]
    if n and not keep.any():
        held = ", ".join(sorted(set(source.tolist())))
        warnings.warn(f"{WHERE}: every one of {n} pictures stands in {held}: nothing is left to train on", stacklevel=2)
    limits = np.array([max_rms, max_rms, *(np.nan if limit is None else limit for limit in (min_copied, min_cosine))])
    copied = np.full(n, -np.inf)
    np.maximum.at(copied, edges.a, np.nan_to_num(edges.columns.get("copied", np.full(len(edges.a), np.nan)), nan=-np.inf))
    cosine = _nearest_cosine(pool, others, vectors, k)
    return Verdicts(
        keep=keep, reason=np.array(REASONS)[how], score=score, threshold=limits[how], witness_uid=uid, witness_pool=source, edges=edges,
        columns={"leakage_pool": pa.array(source, pa.string()), "leakage_cosine": cosine, "leakage_copied": np.where(np.isfinite(copied), copied, np.nan)},
    )  # fmt: skip


def _check(
    side: int, vectors: str | None, cosine: tuple[float | None, float], copied: tuple[float | None, float], rms: tuple[float, float], min_area: float, k: int, max_hits: int
) -> None:  # fmt: skip
    if side < 4 or side % 4:
        raise Refusal("bad-value", f"{WHERE}: side", f"{side}", "a multiple of 4")
    if cosine[0] is not None and (vectors is None or not -1 <= cosine[1] <= cosine[0] <= 1):
        given = f"{cosine[0]} with vectors {vectors} and floor_cosine {cosine[1]}"
        raise Refusal("bad-value", f"{WHERE}: min_cosine", given, "a cosine from floor_cosine to 1, of a vector column")
    if (copied[0] is not None and not 0 <= copied[1] <= copied[0] <= 1) or not AREA <= min_area <= 1 or min(k, max_hits) < 1:
        given = f"min_copied {copied[0]}, floor_copied {copied[1]}, min_area {min_area}, k {k}, max_hits {max_hits}"
        raise Refusal("bad-value", WHERE, given, f"0 <= floor_copied <= min_copied <= 1, min_area from {AREA} to 1, k and max_hits of 1 or more")
    if not 0 <= rms[0] <= rms[1]:
        cure = "Where max_rms is higher than the floor, raise floor_rms too"
        raise Refusal("bad-value", WHERE, f"max_rms {rms[0]}, floor_rms {rms[1]}", "0 <= max_rms <= floor_rms", cure)


def _judged(found: Edges, max_rms: float, min_copied: float | None, min_cosine: float | None) -> tuple[Edges, np.ndarray, np.ndarray]:
    """The recorded pairs with the reason of each, (pairs,) which way a row hits the sample, and how close by this way: less is closer.

    The reason is that of the surest way within its limit; a pair beyond all limits has none, and its score is that of the surest way by which it was seen.
    """
    seen = dict(found.columns)
    for limit, names in ((min_copied, ("copied", *FIELDS)), (min_cosine, ("cosine",))):
        if limit is None:
            seen = {name: values for name, values in seen.items() if name not in names}
    nothing = np.full(len(found.a), np.nan)
    difference, copied, cosine = (np.asarray(seen.get(name, nothing), np.float64) for name in ("difference", "copied", "cosine"))
    same = np.asarray(seen["is_same"], bool)
    values = np.stack([np.where(same, 0.0, np.nan), np.where(same, np.nan, difference), -copied, -cosine], 1)
    within = np.array([0.0, max_rms, *(-np.inf if limit is None else -limit for limit in (min_copied, min_cosine))])
    seen_at_all = np.isfinite(values)
    is_hit = seen_at_all & (np.nan_to_num(values) <= within)
    way = np.where(is_hit.any(1), is_hit.argmax(1), NONE)
    at = np.where(way < NONE, way, seen_at_all.argmax(1))
    closeness = values[np.arange(len(values)), at]
    some = np.flatnonzero(seen_at_all.any(1))
    columns = {
        "b": np.asarray(seen.pop("b"), "S32")[some], "pool": np.asarray(seen.pop("pool"), "U")[some], "reason": np.array([*REASONS, ""])[way[some]],
        **{name: np.asarray(values)[some] for name, values in seen.items() if name != "reason"},
    }  # fmt: skip
    return Edges(found.a[some], found.a[some], np.abs(closeness[some]), columns), way[some], closeness[some]


def _warn_of_many(edges: Edges, max_hits: int) -> None:
    """Say it where not every row that hits a sample is written."""
    is_cut = ~np.asarray(edges.columns["is_complete"], bool)
    if is_cut.any():
        pool, sample = edges.columns["pool"][is_cut], edges.columns["b"][is_cut]
        for name in np.unique(pool).tolist():
            count = len(np.unique(sample[pool == name]))
            given = (
                f"{count} of the samples of {name} are each shown by more rows than are written"
                if count > 1
                else f"one sample of {name} is shown by more rows than are written"
            )
            warnings.warn(f"{WHERE}: {given}: the closest {max_hits} by each way (max_hits). Which samples are hit is known of all", stacklevel=3)


def _find(pool: Pool, others: list[Pool], names: list[str], search: Search) -> Edges:
    """Every pair of a row and an evaluation sample up to the floors, bounded by `max_hits`."""
    tables = []
    for number, (other, name) in enumerate(zip(others, names, strict=True)):
        dims = [] if search.vectors is None else [pool.vectors(search.vectors).dim]
        require(WHERE, forecast(Size(len(pool), dims, pool.memory, [len(other)]), k=search.k, min_copied=search.floor_copied), pool.memory)
        tables.append(_pairs(pool, other, name, search, number))
    if not tables:
        text = np.empty(0, "U1")
        return Edges(*(np.empty(0, np.int64),) * 2, np.empty(0), {"b": text.astype("S32"), "pool": text, **_columns(search, 0)})
    joined = {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    row = joined.pop("a")
    return Edges(row, row, np.zeros(len(row)), joined)


def _pairs(pool: Pool, other: Pool, name: str, search: Search, number: int) -> dict[str, np.ndarray]:
    """The table of one evaluation pool: `a` the row, `b` the sample's uid, `pool`, and what was seen of the pair."""
    keys: tuple[np.ndarray, np.ndarray] = pool.once(f"keys-{number}", lambda: _whole_keys(pool, other, search.hash))  # type: ignore[assignment]
    mine, theirs = (Groups.by(own, p.uid_rank) for p, own in zip((pool, other), keys, strict=True))
    same = _same(keys, mine, theirs)
    looks = _looks(pool, mine, other, theirs, search.views)
    near: Pairs = pool.once(f"near-{number}", lambda: _near(pool, mine, other, theirs, looks, same, search))  # type: ignore[assignment]
    ways = [Way("is_same", same, mine, theirs), Way("difference", near, mine, theirs)]
    if search.floor_copied is not None:
        pairs, seen = _copies(pool, mine, other, theirs, looks, same, search, number)
        ways.append(Way("copied", pairs, mine, theirs, seen))
    if search.floor_cosine is not None and search.vectors is not None:
        z, base, ranks = pool.vectors(search.vectors), other.vectors(search.vectors), (pool.uid_rank, other.uid_rank)
        ways.append(Way("cosine", *close(z, base, search.floor_cosine, ranks, search.max_hits, f"close-{number}", pool.scan, pool.device)))
    row, sample, is_complete, of_ways = together(ways, len(other), search.max_hits)
    if PAIR_BYTES * len(row) > pool.memory:
        given = f"{len(row):,} pairs with {name} need {size(PAIR_BYTES * len(row))}"
        cure = f"Give --memory {enough(PAIR_BYTES * len(row))}, a smaller max_hits, or limits and floors that fewer pairs reach"
        raise Refusal("does-not-fit", WHERE, given, f"{size(pool.memory)} are allowed", cure)
    found = {"a": row, "b": other.uid[sample], "pool": np.full(len(row), name), **_columns(search, len(row)), "is_complete": is_complete}
    for way, (at, pair) in zip(ways, of_ways, strict=True):
        if way.column == "is_same":
            found["is_same"][at], found["difference"][at] = True, 0.0
        else:
            found[way.column][at] = np.abs(way.pairs[2][pair]) if way.column != "cosine" else -way.pairs[2][pair]
        if way.seen is not None:
            for place, field in enumerate(FIELDS):
                if field != "score":
                    found[SEEN.get(field, field)][at] = way.seen[pair, place]
    return found


def _columns(search: Search, count: int) -> dict[str, np.ndarray]:
    """The columns of so many pairs, of which nothing was seen yet."""
    found = {"is_same": np.zeros(count, bool), "difference": np.full(count, np.nan)}
    if search.floor_copied is not None:
        found["copied"] = np.full(count, np.nan)
        found |= {field: np.full(count, np.nan, np.float32) for field in FIELDS if field != "score"}
    if search.floor_cosine is not None:
        found["cosine"] = np.full(count, np.nan)
    return found | {"is_complete": np.ones(count, bool)}


def _keys(pool: Pool, other: Pool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The raw bytes of a hash column in both pools, to be sorted and compared."""
    columns = [p.column(name) for p in (pool, other)]
    widths = [c.shape[1] if c.ndim == 2 else 0 for c in columns]
    if 0 in widths or (widths[0] != widths[1] and len(pool) and len(other)):
        given = f"{name} holds {widths[0]} bytes here and {widths[1]} in {other.name or 'the evaluation pool'}"
        raise Refusal("bad-value", WHERE, given, "hashes of one length")
    mine, theirs = (np.ascontiguousarray(c).view(np.dtype((np.void, c.shape[1])))[:, 0] for c in columns)
    return mine, theirs


def _whole_keys(pool: Pool, other: Pool, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 each: equal where a hash column is, and where it is in both pools also what 8 bits of colour on white do not show."""
    both = _keys(pool, other, name)
    number = np.unique(np.concatenate(both), return_inverse=True)[1] if len(pool) and len(other) else np.arange(len(pool) + len(other))
    keys = number[: len(pool)], number[len(pool) :]
    more = np.zeros((len(number), 2), np.int64)
    for p, own, others, first in ((pool, keys[0], keys[1], 0), (other, keys[1], keys[0], len(pool))):
        shared = np.flatnonzero(np.isin(own, others))
        for row, payload in zip(shared.tolist(), p.payloads(shared) if len(shared) else (), strict=True):
            more[first + row] = np.frombuffer(beyond(payload), np.int64)
    number = np.unique(np.column_stack([number, more]), axis=0, return_inverse=True)[1].reshape(-1) if more.any() else number
    return number[: len(pool)], number[len(pool) :]


def _same(keys: tuple[np.ndarray, np.ndarray], mine: Groups, theirs: Groups) -> Pairs:
    """The pairs of groups with the same pixels, at distance 0."""
    own, held = (of[groups.first] for of, groups in zip(keys, (mine, theirs), strict=True))
    none = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.zeros(len(theirs), bool)
    if not len(own) or not len(held):
        return none
    order = np.argsort(held)
    place = order[np.minimum(np.searchsorted(held[order], own), len(held) - 1)]
    u = np.flatnonzero(held[place] == own)
    return u, place[u], np.zeros(len(u)), none[3]


TwoLooks = list[tuple[Looks, np.ndarray, np.ndarray]]  # of both pools: the looks of each group, their distinct codes, and the code of each look


def _looks(pool: Pool, mine: Groups, other: Pool, theirs: Groups, views: tuple[str, str]) -> TwoLooks:
    for name in views:
        _keys(pool, other, name)
    found = [Looks.of(*(p.column(name)[groups.first] for name in views)) for p, groups in ((pool, mine), (other, theirs))]
    return [(looks, *looks.grouped()) for looks in found]


def _near(pool: Pool, mine: Groups, other: Pool, theirs: Groups, looks: TwoLooks, same: Pairs, search: Search) -> Pairs:
    """The pairs of groups whose thumbnails differ in at most the floor, but for those with the same pixels."""
    (my_looks, my_codes, my_code), (their_looks, their_codes, their_code) = looks
    u, v, _ = candidates(my_codes, their_codes, search.max_distance, turned=search.turned)
    twin = np.full(len(mine), -1, np.int64)
    twin[same[0]] = same[1]

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for a, b, _ in members(my_code, u, v, their_code):
            other_pixels = twin[my_looks.row[a]] != their_looks.row[b]
            yield a[other_pixels], b[other_pixels]

    wanted = np.zeros(len(my_looks), bool), np.zeros(len(their_looks), bool)
    for a, b in pairs():
        wanted[0][a] = wanted[1][b] = True
    chosen = [np.flatnonzero(w) for w in wanted]
    place = [np.cumsum(w) - 1 for w in wanted]
    own = thumbnails(WHERE, lambda rows: pool.payloads(mine.first[rows]), my_looks, chosen[0], search.side, pool.memory)
    tests = thumbnails(WHERE, lambda rows: other.payloads(theirs.first[rows]), their_looks, chosen[1], search.side, pool.memory)

    def compared() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        limits = {"limit": search.floor_rms, "min_contrast": search.min_contrast}
        for a, b in pairs():
            found = differences(own, place[0][a], tests, place[1][b], turned=search.turned, **limits)
            hit = np.isfinite(found)
            yield my_looks.row[a[hit]], their_looks.row[b[hit]], found[hit]

    return gathered(compared(), mine, theirs, search.max_hits)


def _nearest(pool: Pool, other: Pool, name: VectorName, k: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """(n, k) cosine and row of the nearest evaluation pictures, best first, fewer where the pool is small."""
    return nearest(pool.vectors(name), other.vectors(name), k, other.uid_rank, f"nearest-{number}", pool.scan, pool.device)


def _nearest_cosine(pool: Pool, others: list[Pool], vectors: VectorName | None, k: int) -> np.ndarray:
    """(n,) of each row and the nearest picture of all evaluation pools; NaN without vectors."""
    best = np.full(len(pool), -np.inf)
    for number, other in enumerate(others if vectors is not None else []):
        near, _ = _nearest(pool, other, vectors, k, number)  # type: ignore[arg-type]
        best = np.maximum(best, near[:, 0]) if near.shape[1] else best
    return np.where(np.isfinite(best), best, np.nan)


def _copies(
    pool: Pool, mine: Groups, other: Pool, theirs: Groups, looks: TwoLooks, same: Pairs, search: Search, number: int
) -> tuple[Pairs, np.ndarray]:
    """The verified pairs of groups down to the floor, and (pairs, FIELDS) what was seen of each: left the evaluation picture, right the pool's."""
    u, v = _proposed(pool, mine, other, theirs, looks, same, search, number)
    return verified(
        u, v, (mine, theirs), (pool.payloads, other.payloads), floor=search.floor_copied or 0.0, min_area=search.min_area, turned=search.turned,
        most=search.max_hits, name=f"copies-{number}", scan=pool.scan, memory=pool.memory,
    )  # fmt: skip


def _proposed(
    pool: Pool, mine: Groups, other: Pool, theirs: Groups, looks: TwoLooks, same: Pairs, search: Search, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of groups that hashes within `loose_distance` bits of 64 or the nearest vectors propose, each once, but for those with the same pixels."""
    (my_looks, my_codes, my_code), (their_looks, their_codes, their_code) = looks
    u, v, _ = candidates(my_codes, their_codes, search.loose_distance * my_codes.shape[1] // (8 * TURNS), turned=search.turned)
    width = max(len(theirs), 1)
    keys, count = [np.empty(0, np.int64)], 0
    for a, b, _ in members(my_code, u, v, their_code):
        keys.append(my_looks.row[a] * width + their_looks.row[b])
        count += len(a)
        _fit(pool, count)
    if search.vectors is not None:
        _, near = _nearest(pool, other, search.vectors, search.k, number)
        row, column = np.nonzero(near >= 0)
        keys.append(mine.of[row] * width + theirs.of[near[row, column]])
        _fit(pool, count + len(row))
    return np.divmod(np.setdiff1d(np.concatenate(keys), same[0] * width + same[1]), width)


def _fit(pool: Pool, count: int) -> None:
    if 160 * count > pool.memory:
        given, cure = f"{count:,} candidate pairs need {size(160 * count)}", f"Give --memory {enough(160 * count)}, a smaller loose_distance or k"
        raise Refusal("does-not-fit", WHERE, given, f"{size(pool.memory)} are allowed", cure)
