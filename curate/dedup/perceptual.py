"""Keep one of all pictures that look the same: candidates by perceptual hash, confirmed on thumbnails."""

import builtins
import warnings
from typing import Literal

import numpy as np
import pyarrow as pa
import xxhash

from curate.pool import Column, Edges, Pool, Preferred, Verdicts
from manifests.errors import Refusal
from manifests.likeness import TURNS, Looks, candidates, differences, members, thumbnails
from manifests.progress import span
from manifests.quotas import place_inside
from manifests.star import star
from manifests.vectors import hamming
from manifests.vectors.copies import limit_of, spread
from manifests.vectors.forecast import Forecast, Size, require, two_looks

REASONS = ("near_duplicate",)
WRITES = {"perceptual_group": pa.string(), "perceptual_size": pa.int32()}
MOVES = {"max_rms": "floor_rms", "prefer": "", "keeper": ""}
GROWS = "equal where each keeper is in the older part"
WHERE = "dedup.perceptual"
LONG, SHORT = 256, 64  # bits: a long hash holds a short one, of the lowest frequencies
SAMPLE = 1000  # looks on which the recall of the short way is measured
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # code, code, bits


def forecast(size: Size, *, views: Column, max_distance: int, turned: bool, exact_seconds: float, loose_distance: int, **_: object) -> Forecast:
    """The search of hashes, as if every picture had a border. What the thumbnails of rows with a candidate need is asked for when these are known."""
    width, base = LONG if "256" in views else SHORT, 8 * size.rows if turned else size.rows
    seconds = hamming.seconds(size.rows, base, max_distance, width)
    if width == LONG and hamming.seconds(size.rows, base, max_distance, width, sorting=False) > exact_seconds:
        seconds = hamming.seconds(size.rows, base, loose_distance, SHORT)
    return two_looks(size.rows, width, turned, seconds)


def perceptual(
    pool: Pool,
    *,
    views: Column = Column("phash_views"),  # noqa: B008
    trimmed: Column = Column("phash_trimmed_views"),  # noqa: B008
    max_distance: int = 8,
    max_rms: float = 12.0,
    min_contrast: float = 40.0,
    turned: bool = True,
    side: int = 32,
    prefer: builtins.list[Preferred] = [Preferred("inner_pixels")],  # noqa: B006, B008
    keeper: Literal["uid", "earliest"] = "uid",
    floor_rms: float = 18.0,
    max_edges: int = 16,
    exact_seconds: float = 3600.0,
    loose_distance: int = 8,
) -> Verdicts:
    """Keep one of all pictures that look the same, also re-encoded, resized, turned, mirrored or with a border.

    Decides     a pair is alike when its hashes differ in at most `max_distance` bits AND its thumbnails by at most `max_rms`; both tests are needed: the hash
                alone takes flat pictures for each other, thumbnails alone take scenes of one palette. A picture with a border of one colour is looked at twice, as
                it is and without the border, and so is its thumbnail; the closest two looks count. Transparent pixels lie on white, or on black where nothing
                would show on white. In keeper order a row is dropped ("near_duplicate")
                when a kept row is alike (a star, not a chain): `witness` is the kept row with the smallest score, `score` their difference in grey levels,
                `threshold` max_rms. Keeper order: protected rows, then the larger `prefer` columns, then `keeper`. Protected rows are never dropped.
    Guarantee   every dropped row stands within the threshold of a kept one. Differences are computed in whole numbers: no machine decides otherwise.
                Measured on planted copies of photographs (docs/BENCHMARKS.md): found are formats, JPEG, scale, turns, mirrors, borders and blur (most of each);
                not found are crops, collages, text boxes and strong changes of light, for which there is `dedup.copies`. Variants made on purpose (game
                textures that differ in one detail) do look the same
    Source      Zauner 2010 (the hash); the second test is ours: at 28 pixels the hash alone reached precision 0.86, both tests 0.999
    views       the column of hashes of the eight turns, unturned first: `phash_views` (64 bits) or `phash256_views`, which at a `max_distance` of 80 and a max_rms and
                floor_rms of 120 also finds most text boxes and a third of crops. Of photographs 80 of its bits decide alone (max_rms and floor_rms 256, min_contrast
                0): recall .88 at precision .99 and more, but flat pictures are then all one
    trimmed     the same without the border: `phash_trimmed_views` or `phash256_trimmed_views`; that of `views` where borders shall count
    max_distance   bits, of 64 or 256
    max_rms     root mean square difference of two thumbnails, 0 to 255 grey levels
    min_contrast   pictures flatter than this (standard deviation in grey levels) have their difference stretched by min_contrast / contrast, so that two skies
                are not one; 0 = off
    turned      also find copies that were turned by quarter turns or mirrored. Turn it off for digits and text: a 6 is a turned 9
    side        thumbnails are side x side RGB; a multiple of 4. At the pictures' own size nothing is resized
    prefer      columns of numbers; the row with the larger value is the one to keep, and null is the least: [inner_pixels] the highest resolution, borders not counted (by
                `measure.perceptual_hash`), [num_bytes] the largest file (by `measure.quality`), any column of the pool, or several, the first first.
                By inner_pixels alone a JPEG and the lossless picture of its size are equal, and the uid decides; [inner_pixels, num_bytes], as in the recipes
                `audit` and `photos`, keeps the lossless one
    keeper      who stays of those that `prefer` leaves equal: the smaller "uid", or the "earliest": the first source by name, in it the first shard by name, in it the
                first sample. `prefer: []` with "earliest" keeps the first of all copies
    floor_rms   pairs up to this difference are written as edges, so that max_rms can be moved later without the pictures
    max_edges   pairs a row on average (and a million in all) that are written. Where more reach the floor (a crowd of equal pictures), each is written with the first
                of its equals alone, and where these are too many too, with its first `max_edges` in keeper order and its witness: the verdicts are the same,
                "is_complete" is false, and a replay is refused or approximate
    exact_seconds   256 bits: where comparing them exactly is forecast to take longer (on one core that is always the same, so that every machine decides alike), only
                pairs are compared whose 64 lowest frequencies differ in at most `loose_distance` bits; the share of pairs that this finds is measured on a
                sample, and said; a replay over fewer rows keeps to the pairs found so, also where a build of these alone would compare them exactly
    loose_distance   bits of 64
    Writes      perceptual_group: string, uid of the row that was kept for it, or its own; perceptual_size: int32, rows in that group
    Cost        hash neighbours without a quadratic pass; one decode and 3 * side^2 bytes for each row that has a candidate; pairs inside a crowd of pictures with
                the same hash are compared one by one unless their thumbnails are equal (20 microseconds a pair: 10,000 frames of one camera take 17 minutes)
    Errors      [bad-value] for hashes of another length, a side that is no multiple of 4 or a floor below max_rms; [does-not-fit]
    """
    if side < 4 or side % 4 or not 0 <= max_rms <= floor_rms or not 0 <= max_distance <= LONG or min_contrast < 0 or max_edges < 1:
        given = (
            f"side {side}, max_distance {max_distance}, max_rms {max_rms}, floor_rms {floor_rms}, min_contrast {min_contrast}, max_edges {max_edges}"
        )
        allowed = "side is a multiple of 4, max_distance 0 to 256, 0 <= max_rms <= floor_rms, min_contrast from 0, max_edges of 1 or more"
        cure = "Pairs up to floor_rms are looked for: raise floor_rms too, as far as max_rms" if max_rms > floor_rms else ""
        raise Refusal("bad-value", WHERE, given, allowed, cure)
    rank = pool.keeper_order(prefer, np.arange(len(pool)) if keeper == "earliest" else None)

    def find() -> Edges:
        needed = forecast(
            Size(len(pool), [], pool.memory), views=views, max_distance=max_distance, turned=turned, exact_seconds=exact_seconds,
            loose_distance=loose_distance,
        )  # fmt: skip
        require(WHERE, needed, pool.memory)
        looks = _looks(pool, views, trimmed)
        distinct, group = looks.grouped()
        looks.codes = distinct[:0]  # from here on `distinct` has them, each once
        near = _near(pool, looks, distinct, group, max_distance, turned, exact_seconds, loose_distance)
        found = _compared(pool, looks, rank, group, near, (floor_rms, min_contrast, turned, side), limit_of(len(pool), max_edges))
        return _thinned(found, rank, pool.fixed, max_rms, max_edges) if len(found.a) > limit_of(len(pool), max_edges) else found

    edges = pool.edges(find)
    close = edges.score <= max_rms
    keep, witness, best = star(rank, [(edges.a[close], edges.b[close], -edges.score[close])], fixed=pool.fixed)
    group = np.where(keep, np.arange(len(pool)), witness)
    size = np.bincount(group, minlength=len(pool))[group]
    return Verdicts(
        keep=keep, reason="near_duplicate", score=np.abs(best), threshold=max_rms, witness=witness,
        columns={"perceptual_group": pa.array(pool.uid[group].astype("U32")), "perceptual_size": size.astype(np.int32)}, edges=edges,
    )  # fmt: skip


def _looks(pool: Pool, views: str, trimmed: str) -> Looks:
    whole, bare = pool.column(views), pool.column(trimmed)
    widths = [column.shape[1] if column.ndim == 2 else 0 for column in (whole, bare)]
    if widths[0] != widths[1] or widths[0] not in (SHORT, LONG):
        given = f"{views} holds {widths[0]} bytes and {trimmed} {widths[1]}"
        raise Refusal("bad-value", WHERE, given, "two columns of hashes of eight turns, of 64 bytes each (64 bits) or of 256 (256 bits)")
    return Looks.of(whole, bare)


def _near(pool: Pool, looks: Looks, codes: np.ndarray, group: np.ndarray, radius: int, turned: bool, exact_seconds: float, loose: int) -> Found:
    """Pairs of distinct codes within `radius` bits; of 256 bits, where there are too many, those of them whose 64 lowest frequencies are within `loose`."""
    bits, turns, known = codes.shape[1], TURNS if turned else 1, pool.known(group, looks.row)  # w bytes times eight turns are 8 w bits
    needed = hamming.seconds(len(codes), len(codes) * turns, radius, bits, sorting=False)
    if bits == SHORT or needed <= exact_seconds:
        return candidates(codes, None, radius, turned=turned, known=known)
    lowest = np.ascontiguousarray(codes.reshape(len(codes), TURNS, 16, 2)[:, :, :8, 0]).reshape(len(codes), SHORT)
    u, v, _ = candidates(lowest, None, loose, turned=turned, known=known)
    distance = _distances(codes, u, v, turns)
    hit = distance <= radius
    u, v, distance = u[hit], v[hit], distance[hit]

    first = np.full(len(codes), len(looks))
    np.minimum.at(first, group, 2 * pool.uid_rank[looks.row] + looks.is_trimmed)
    sample = np.argsort(first)[pool.rng("recall").permutation(len(codes))[:SAMPLE]]  # by the smallest uid that has the code
    a, b, _ = candidates(codes[sample], codes, radius, turned=turned)
    a, b = np.minimum(sample[a], b), np.maximum(sample[a], b)
    exact = np.unique((a * len(codes) + b)[(a != b) & ~(known[a] & known[b])])
    recall = np.isin(exact, u * len(codes) + v).mean() if len(exact) else 1.0
    warnings.warn(
        f"{WHERE}: comparing {len(codes)} hashes of 256 bits exactly is forecast to take {span(needed)} (exact_seconds {exact_seconds:g}); candidates are those whose 64 "
        f"lowest frequencies differ in at most {loose} bits. Measured recall {recall:.4f}: of {len(exact)} pairs of {len(sample)} sampled pictures",
        stacklevel=4,
    )
    return u, v, distance


def _distances(codes: np.ndarray, u: np.ndarray, v: np.ndarray, turns: int) -> np.ndarray:
    """(k,) int32: the least distance of the unturned code of either to a view of the other."""
    by_turn = codes.reshape(len(codes), TURNS, -1)
    found = np.full(len(u), by_turn.shape[2] * 8, np.int32)
    for start in range(0, len(u), 1 << 16):
        some = slice(start, start + (1 << 16))
        for one, other in ((u[some], v[some]), (v[some], u[some])):
            for turn in range(turns):
                found[some] = np.minimum(found[some], hamming.distances(by_turn[one, 0], by_turn[other, turn]))
    return found


def _compared(pool: Pool, looks: Looks, rank: np.ndarray, group: np.ndarray, near: Found, limits: tuple[float, float, bool, int], most: int) -> Edges:
    """The pairs of rows up to the floor, from pairs of near codes. Rows that are the same in all looks, by code and thumbnail, are compared once."""
    floor, min_contrast, turned, side = limits
    u, v, bits = near
    crowd = np.flatnonzero((np.bincount(group) > 1) & ~pool.known(group, looks.row))
    is_in_play = np.zeros(group.max(initial=-1) + 1, bool)
    is_in_play[np.concatenate([u, v, crowd])] = True
    chosen = np.flatnonzero(is_in_play[group])
    pictures = thumbnails(WHERE, pool.payloads, looks, chosen, side, pool.memory)

    look_rank = 2 * rank[looks.row[chosen]] + looks.is_trimmed[chosen]
    first = _first_equal(group[chosen], pictures.pixels, looks.row[chosen], looks.is_trimmed[chosen], look_rank)
    head, known = np.where(first == np.arange(len(chosen)), group[chosen], -1), pool.known(first, looks.row[chosen])
    u, v, bits = np.concatenate([u, crowd]), np.concatenate([v, crowd]), np.concatenate([bits, np.zeros(len(crowd), np.int32)])
    found = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, np.int32))]
    for a, b, pair in members(head, u, v):
        new = ~(known[a] & known[b])
        a, b, pair = a[new], b[new], pair[new]
        score = differences(pictures, a, pictures, b, limit=floor, min_contrast=min_contrast, turned=turned)
        hit = score <= floor
        found.append((a[hit], b[hit], score[hit], bits[pair[hit]]))
    a, b, score, distance = (np.concatenate(column) for column in zip(*found, strict=True))

    def oriented() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        swap = look_rank[a] > look_rank[b]
        return np.where(swap, b, a), np.where(swap, a, b), np.arange(len(a), dtype=np.float64)

    left, right, which, is_equal, is_complete = spread((a, b, np.arange(len(a), dtype=np.float64)), oriented, first, look_rank, most)
    which = np.where(is_equal, len(score), which).astype(np.int64)  # pair number; the last is that of equals
    score, distance = np.append(score, 0.0)[which], np.append(distance, np.int32(0))[which]
    return _of_rows(pool, looks.row[chosen[left]], looks.row[chosen[right]], score, distance, is_complete)


def _of_rows(pool: Pool, a: np.ndarray, b: np.ndarray, score: np.ndarray, distance: np.ndarray, is_complete: bool) -> Edges:
    """From pairs of looks to pairs of rows, each once, with its least score; the smaller uid first."""
    swap = pool.uid_rank[a] > pool.uid_rank[b]
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    order = np.lexsort((distance, score, b, a))
    order = order[a[order] != b[order]]
    a, b = a[order], b[order]
    new = np.ones(len(a), bool)
    new[1:] = (a[1:] != a[:-1]) | (b[1:] != b[:-1])
    order = order[new]
    return Edges(a[new], b[new], score[order], {"distance": distance[order], "is_complete": np.full(len(order), is_complete)})


def _thinned(edges: Edges, rank: np.ndarray, fixed: np.ndarray, max_rms: float, max_edges: int) -> Edges:
    """Of a crowd's pairs each row's first `max_edges` in keeper order, and the one that it is dropped for at `max_rms`: the same verdicts, of fewer pairs."""
    close = edges.score <= max_rms
    _, witness, _ = star(rank, [(edges.a[close], edges.b[close], -edges.score[close])], fixed=fixed)
    swap = rank[edges.a] > rank[edges.b]
    earlier, later = np.where(swap, edges.b, edges.a), np.where(swap, edges.a, edges.b)
    chosen = np.flatnonzero((place_inside(later, rank[earlier]) < max_edges) | (witness[later] == earlier))
    return Edges(
        edges.a[chosen],
        edges.b[chosen],
        edges.score[chosen],
        {"distance": edges.columns["distance"][chosen], "is_complete": np.zeros(len(chosen), bool)},
    )


def _first_equal(group: np.ndarray, pixels: np.ndarray, row: np.ndarray, is_trimmed: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(m,) int64: for each look the one with equal group and pixels that comes first in rank, among rows of which the other look is equal too."""
    digest = np.array([xxhash.xxh3_128_digest(one.data) for one in pixels], dtype=np.dtype((np.void, 16)))
    equal = np.unique(digest, return_inverse=True)[1] if len(digest) else np.empty(0, np.int64)
    look = np.unique(group * (len(digest) + 1) + equal, return_inverse=True)[1]
    both = np.full((2, row.max(initial=-1) + 1), -1)
    both[is_trimmed.astype(int), row] = look
    key = np.unique(np.stack([look, *both[:, row]]), axis=1, return_inverse=True)[1].reshape(-1) if len(look) else look
    best = np.empty(len(key), np.int64)
    backwards = np.argsort(-rank)
    best[key[backwards]] = backwards  # the last write is the first in rank
    return best[key]
