"""Keep one of all pictures that are copies of each other, also cropped, framed, turned, written over or set in a collage: every pair is verified."""

import builtins
import warnings
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa

from curate.pool import Column, Edges, Pool, Preferred, State, VectorName, Verdicts
from manifests.changes import change
from manifests.errors import Refusal
from manifests.likeness import candidates, members
from manifests.quotas import place_inside
from manifests.registration import AREA, FIELDS, register
from manifests.seen import BYTES, Seen, glance
from manifests.star import star
from manifests.vectors.forecast import Forecast, Size, require
from manifests.vectors.forecast import copies as searched
from manifests.vectors.neighbours import knn

REASONS = ("copy",)
BOX = ("left", "top", "right", "bottom")
WRITES = {
    "copies_change": pa.string(), "copies_group": pa.string(), "copies_size": pa.int32(), "copies_turn": pa.int8(),
    **{f"copies_{e}": pa.float32() for e in BOX},
}  # fmt: skip
MOVES = {"min_score": "floor_score", "min_area": ""}
GROWS = "equal where each keeper is in the older part"
VECTORS_MAY_BE_MISSING = True  # hashes and other vectors still propose
PAIRS_OF_ALL_ROWS = True  # of fewer rows other candidates are proposed: a replay is approximate then
PAIRS_BY_KEEPER = True  # in a crowd of one hash rows meet the kept ones alone: other protected rows, other pairs
QUERIES = 8192  # rows whose neighbours are sought in one round
PAIRS = 1024  # pairs that are verified in one round
CROWD, KEPT = 8, 16  # of more rows than CROWD with one hash the further ones are paired with kept ones alone, with the first KEPT of a like hash
WIDTHS = (64, 256)  # bytes of the hashes of eight turns
STEPS = 4  # neighbours of a neighbour that are looked at


def forecast(size: Size, *, hashes: builtins.list[Column], max_distance: int, k: int, **_: object) -> Forecast:
    """The searches, and the pairs that vectors propose; how many hashes propose shows only then."""
    return searched(size.rows, size.dims, k, size.memory, len(hashes), max_distance)


def copies(
    pool: Pool,
    *,
    hashes: builtins.list[Column] = [Column("phash_views"), Column("phash_trimmed_views")],  # noqa: B006, B008
    max_distance: int = 10,
    vectors: builtins.list[VectorName] = [],  # noqa: B006
    k: int = 20,
    min_cosine: float = 0.2,
    min_score: float = 0.4,
    min_area: float = 0.35,
    prefer: builtins.list[Preferred] = [Preferred("inner_pixels")],  # noqa: B006, B008
    floor_score: float = 0.3,
) -> Verdicts:
    """Keep one of all pictures that are copies of each other, however cropped, framed, turned or covered.

    Candidates come from hashes at a loose radius and from nearest vectors; each pair is then laid one over the other (mirror, quarter turn, scale, offset) and
    compared block by block. So the threshold is one of proof, not of likeness: two skies, two glows or two crops of different places do not agree.

    Decides     in keeper order a row is dropped ("copy") when a kept row shows the same: at least `min_score` of the blocks of their common area that show
                anything agree, and the area is at least `min_area` of one of the two. A star, not a chain: `witness` is the kept row with the highest score,
                `score` that score, `threshold` min_score. Keeper order: protected rows, then the larger `prefer` columns, then uid. Protected rows are never
                dropped. A picture that cannot be decoded at low resolution is no copy of anything.
    Guarantee   every dropped row is registered upon the kept row it names, and what was done is written. A border of one colour is off before two pictures are compared,
                so a frame is no evidence; nor is a box that two smooth pictures share, nor an edge, a curve or parallel lines where a part is laid on another, nor
                a few blocks of a motif that repeats. Not told apart: a motif that repeats so exactly that most blocks of a part agree. Blocks are compared in whole
                numbers; what shows too little for blocks, such as a blurred picture, is compared as a whole, and a thumbnail by all that it shows. Where the two lie
                over each other is proposed by OpenCV's key points and by areas that look alike, which may differ by a machine's vector instructions: same
                bytes on the same kind of processor. A pair that no hash and no vector proposes is not found. Of more than 8 rows with one hash the further ones
                meet only rows that are kept: the verdicts are those of all pairs as long as no row has more than 16 kept ones of a like hash; beyond these, which a
                warning says, a copy can stay. Figures by kind of copy: docs/BENCHMARKS.md
    Source      ours; key points by Lowe 2004 (SIFT, as OpenCV gives it)
    hashes      columns of hashes of the eight turns, unturned first, whole and without a border of one colour. Alone the 64 bits propose what keeps its frame: formats,
                scale, turns, mirrors, colour, blur, most borders; but of text boxes and crops a third, and no collage. [phash256_views,
                phash256_trimmed_views] with a max_distance of 21 propose nine of ten text boxes too, by a search that grows with the square of the rows
    max_distance   bits of 64 (a longer hash: the same share of its bits) up to which a pair is looked at
    vectors     vector columns. The nearest of a copy encoder propose the rest; what another encoder proposes was not measured. A row
                that has none comes by its hashes
    k           how many nearest of each row are looked at; many, because a collage is the nearest of none of its pictures
    min_cosine  ... down to this cosine; low, for the same reason
    min_score   0 to 1. A text box over a quarter of the picture leaves about 0.6. Two textures made from one, or a stereo pair, reach 0.4 and more
    min_area    0.2 to 1; a crop to this share of the area, or a picture that takes this share of a collage's, is still a copy
    prefer      columns of numbers; the row with the larger value is the one to keep, and null is the least: [inner_pixels] the highest resolution, borders not counted. A
                collage larger than its pictures is kept for them: let a column say what is an original (`prefer: [is_original, inner_pixels]`), or protect it
    floor_score   pairs down to this score are written as edges, so that min_score can be moved later without the pictures. Where more than 8 rows share a hash not all
                of their pairs are looked at ("is_complete" is false), and a replay is approximate; dedup.exact before it thins these
    Writes      of a dropped row: copies_change: string, what was done to it, seen from the row it is a copy of ("mirrored, cropped to 80 %, 24 % covered");
                copies_turn: int8, 0 to 7, how it is turned to stand as that row does (mirrored first where >= 4, then by copies_turn % 4 quarter turns to the
                left); copies_left, _top, _right, _bottom: float32, the box of that row which it shows, as fractions. Of every row copies_group: string, uid of
                the row that was kept for it, or its own; copies_size: int32, rows in that group
    Cost        the searches; one small decode and 11 ms for each row with a candidate; 1 to 6 ms a candidate pair, about 16 pairs at most for each further row of
                one hash. Pictures are kept as far as a quarter of the memory allows and decoded again beyond it
    Errors      bad-value, does-not-fit
    """
    if not (0 <= floor_score <= min_score <= 1 and AREA <= min_area <= 1 and k >= 0 and 0 <= max_distance <= 64 and -1 <= min_cosine <= 1):
        given = f"min_score {min_score}, floor_score {floor_score}, min_area {min_area}, k {k}, max_distance {max_distance}, min_cosine {min_cosine}"
        raise Refusal(
            "bad-value", "dedup.copies", given, f"0 <= floor_score <= min_score <= 1, {AREA} <= min_area <= 1, k >= 0, 0 to 64 bits, a cosine"
        )
    rank = pool.keeper_order(prefer)

    def stars(edges: Edges) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen = edges.columns
        close = (edges.score >= min_score) & (np.maximum(_area(seen, "a"), _area(seen, "b")) >= min_area)
        return star(rank, [(edges.a[close], edges.b[close], edges.score[close])], fixed=pool.fixed)

    edges = pool.edges(lambda: _find(pool, rank, hashes, max_distance, vectors, k, min_cosine, floor_score, lambda found: stars(found)[0]))
    keep, witness, score = stars(edges)
    group = np.where(keep, np.arange(len(pool)), witness)
    columns = {
        "copies_group": pa.array(pool.uid[group].astype("U32")),
        "copies_size": np.bincount(group, minlength=len(pool))[group].astype(np.int32),
        **_changes(edges, keep, witness),
    }
    return Verdicts(keep=keep, reason="copy", score=score, threshold=min_score, witness=witness, columns=columns, edges=edges)


Pairs = tuple[np.ndarray, np.ndarray]
Crowd = tuple[np.ndarray, np.ndarray, np.ndarray]  # (n,) the code of each row; pairs of near codes, of which one stands for more than CROWD rows


def _find(
    pool: Pool,
    rank: np.ndarray,
    hashes: builtins.list[Column],
    max_distance: int,
    vectors: builtins.list[VectorName],
    k: int,
    min_cosine: float,
    floor: float,
    kept: Callable[[Edges], np.ndarray],
) -> Edges:
    """All verified pairs down to `floor`, those of a neighbour's neighbours included: k nearest are not enough where a picture has many copies."""
    asked = Size(len(pool), [pool.vectors(name).dim for name in vectors], pool.memory)
    require("dedup.copies", forecast(asked, hashes=hashes, max_distance=max_distance, k=k), pool.memory)
    a, b = np.empty(0, np.int64), np.empty(0, np.int64)
    crowds: builtins.list[Crowd] = []
    for number, name in enumerate(hashes):
        left, right, *crowd = pool.once(f"hash-{number}", lambda name=name: _by_hash(pool, rank, name, max_distance))  # type: ignore[misc]
        a, b = _joined(pool, (a, b), (left, right))
        crowds += [tuple(crowd)] if len(crowd[1]) else []  # type: ignore[list-item]
    for number, vector in enumerate(vectors):
        a, b = _joined(pool, (a, b), _by_vectors(pool, rank, vector, k, min_cosine, f"nearest-{number}"))
    looked, pictures = (a, b), _Pictures(pool)

    def verified(scan: str, left: np.ndarray, right: np.ndarray) -> Edges:
        return _verified(pool, scan, pictures, left, right, floor)

    (a, b), known = _apart(pool, a, b)
    looked, edges, _ = _crowds_met(pool, rank, "crowd", crowds, looked, verified("verified", a, b), verified, kept)
    reached = np.isin(known, np.concatenate([edges.a, edges.b])).any(0)  # beyond a known row that a new one is paired with lie its own copies
    old = verified("verified-known", *known[:, reached])
    more = _joined(pool, looked, _two_steps(np.concatenate([edges.a, old.a]), np.concatenate([edges.b, old.b]), rank), only_new=True)
    edges, looked = _with(edges, verified("verified-again", *_apart(pool, *more)[0])), _joined(pool, looked, more)
    looked, edges, cut = _crowds_met(pool, rank, "crowd-again", crowds, looked, edges, verified, kept)
    if cut:
        given = f"{cut:,} rows have a hash like that of more than {KEPT} kept pictures"
        warnings.warn(f"dedup.copies: {given}: each was laid over the first {KEPT} of these in keeper order, so that copies can stay", stacklevel=4)
    order = np.lexsort((edges.b, edges.a))
    edges.columns["is_complete"] = np.full(len(order), all(_all_looked_at(crowd, looked) for crowd in crowds))
    return Edges(edges.a[order], edges.b[order], edges.score[order], {name: values[order] for name, values in edges.columns.items()})


def _by_hash(pool: Pool, rank: np.ndarray, name: Column, max_distance: int) -> State:
    """Pairs of rows whose hashes differ in few bits in some turn, and then a `Crowd`: of more than CROWD rows with one hash the pairs of the first CROWD in keeper
    order are given."""
    codes = np.ascontiguousarray(pool.column(name))
    width = codes.shape[1] if codes.ndim == 2 else 0
    if width not in WIDTHS:
        raise Refusal(
            "bad-value", "dedup.copies: hashes", f"{name!r} is {width} bytes wide", "hashes of eight turns: 64 bytes as phash_views, or 256"
        )
    if not len(codes):
        return (np.empty(0, np.int64),) * 5
    distinct, group = np.unique(codes.view(np.dtype((np.void, codes.shape[1])))[:, 0], return_inverse=True)
    u, v, _ = candidates(distinct.view(np.uint8).reshape(len(distinct), -1), None, max_distance * codes.shape[1] // 64, turned=True)
    size = np.bincount(group, minlength=len(distinct))
    several = np.flatnonzero(size > 1)
    u, v = np.concatenate([u, several]), np.concatenate([v, several])
    first = np.where(place_inside(group, rank) < CROWD, group, -1)
    crowded = np.maximum(size[u], size[v]) > CROWD
    return *_together((a, b) for a, b, _ in members(first, u, v)), group, u[crowded], v[crowded]


def _together(blocks: Iterable[Pairs]) -> Pairs:
    """One after the other."""
    found = [(np.empty(0, np.int64), np.empty(0, np.int64)), *blocks]
    return np.concatenate([block[0] for block in found]), np.concatenate([block[1] for block in found])


def _crowds_met(
    pool: Pool,
    rank: np.ndarray,
    name: str,
    crowds: builtins.list[Crowd],
    looked: Pairs,
    edges: Edges,
    verified: Callable[[str, np.ndarray, np.ndarray], Edges],
    kept: Callable[[Edges], np.ndarray],
) -> tuple[Pairs, Edges, int]:
    """All pairs that were looked at and all edges, once every row of a crowd has met the first KEPT of the kept rows before it; and how many rows have more.

    A row is dropped for a kept one alone, so that pairs with dropped rows decide nothing. Who is kept shows only while the pairs are found: with the first kept row,
    most others leave; then the first two, four and so on meet who is left.
    """
    most, number = 1, 0
    while crowds:
        pairs, cut = _with_kept(crowds, kept(edges), rank, most)
        new = _joined(pool, looked, pairs, only_new=True)
        if len(new[0]):
            edges, looked = _with(edges, verified(f"{name}-{number}", *_apart(pool, *new)[0])), _joined(pool, looked, new)
            number += 1
        elif not cut or most == KEPT:
            return looked, edges, cut
        most = min(2 * most, KEPT)
    return looked, edges, 0


def _with_kept(crowds: builtins.list[Crowd], keep: np.ndarray, rank: np.ndarray, most: int) -> tuple[Pairs, int]:
    """Pairs of each row of a crowd, and of what is near one, with the first `most` kept rows of like hash before it; how many rows have more of these."""
    found, cut = [], np.zeros(len(keep), bool)
    for group, u, v in crowds:
        code, near = np.concatenate([u, v[u != v]]), np.concatenate([v, u[u != v]])  # both ways
        rows = np.flatnonzero(keep & np.isin(group, near))
        rows = rows[place_inside(group[rows], rank[rows]) <= most]  # one more, to see that there are more
        kept_of = np.full(len(keep), -1)
        kept_of[rows] = group[rows]
        of, row = _together((code[pair], row) for row, _, pair in members(kept_of, near, np.arange(len(near)), np.arange(len(near))))
        place, last = place_inside(of, rank[row]), np.full(len(keep), len(keep))
        last[of[place == most]] = rank[row[place == most]]  # the first kept row that is too many, of each code
        cut |= rank > last[group]
        found += [(a, b) for a, b, _ in members(group, of[place < most], row[place < most], np.arange(len(keep)))]
    a, b = _together(found)
    later = rank[b] < rank[a]
    return (a[later], b[later]), int(cut.sum())


def _all_looked_at(crowd: Crowd, looked: Pairs) -> bool:
    """Has every row of a crowd met every other of like hash?"""
    group, u, v = crowd
    size, width = np.bincount(group), int(group.max()) + 1
    ends = np.sort(np.stack([group[looked[0]], group[looked[1]]]), axis=0)
    met = int(np.isin(ends[0] * width + ends[1], np.minimum(u, v) * width + np.maximum(u, v)).sum())
    return met == int(np.where(u == v, size[u] * (size[u] - 1) // 2, size[u] * size[v]).sum())


def _by_vectors(pool: Pool, rank: np.ndarray, name: VectorName, k: int, min_cosine: float, scan: str) -> State:
    """Pairs of each row and its k nearest; of equally near ones the first in keeper order, so that a crowd of equals finds its keeper."""
    z = pool.vectors(name)

    def search(state: State) -> State:
        nearest, done = state
        rows = np.arange(done[0], min(done[0] + QUERIES, len(z)))
        cosine, near = knn(z.subset(rows), z, k, exclude_self=True, query_uid_rank=rank[rows], base_uid_rank=rank, device=pool.device)
        is_there = (z.square[rows] > 0)[:, None] & (z.square[near] > 0)  # a missing vector is near nothing
        nearest[rows] = np.where((cosine >= min_cosine) & is_there, near, -1)
        return nearest, done + len(rows)

    nearest, _ = pool.scan(scan, search, (np.full((len(z), k), -1, np.int32), np.zeros(1, np.int64)), rounds=-(-len(z) // QUERIES))
    rows, column = np.nonzero(nearest >= 0)
    return rows, nearest[rows, column].astype(np.int64)


def _joined(pool: Pool, old: State, new: State, *, only_new: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of both, each once and not with itself, the smaller uid first; sorted by row; with `only_new` those not in `old`."""
    keys = []
    for a, b in (old, new):
        swap = pool.uid_rank[a] > pool.uid_rank[b]
        keys.append(np.unique((np.where(swap, b, a) * len(pool) + np.where(swap, a, b))[a != b]))
    key = np.setdiff1d(keys[1], keys[0]) if only_new else np.union1d(*keys)
    if 160 * len(key) > pool.memory:
        raise Refusal(
            "does-not-fit", "dedup.copies", f"{len(key):,} candidate pairs need {160 * len(key) >> 20} MiB", f"{pool.memory >> 20} MiB are allowed",
            "Give more --memory, a smaller max_distance or k, or put dedup.exact and dedup.perceptual before it",
        )  # fmt: skip
    a, b = np.divmod(key, max(len(pool), 1))
    return a, b


def _apart(pool: Pool, a: np.ndarray, b: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Pairs with a new row, and (2, m) those of two rows that an earlier generation kept."""
    known = pool.settled[a] & pool.settled[b]
    return (a[~known], b[~known]), np.stack([a[known], b[known]])


def _two_steps(a: np.ndarray, b: np.ndarray, rank: np.ndarray) -> State:
    """Pairs of each row and the first STEPS, in keeper order, of what its neighbours are paired with."""
    ends, others = np.concatenate([a, b]), np.concatenate([b, a])
    order = np.lexsort((rank[others], ends))
    start = np.searchsorted(ends[order], others)
    stop = np.searchsorted(ends[order], others, side="right")
    return _together((ends[start + step < stop], others[order][(start + step)[start + step < stop]]) for step in range(STEPS))


def _verified(pool: Pool, name: str, pictures: "_Pictures", a: np.ndarray, b: np.ndarray, floor: float) -> Edges:
    """Those of the pairs that are copies down to `floor`, and what was seen of them."""
    pictures.expect(a, b)

    def verify(state: State) -> State:
        found, seen, done = state
        some = np.arange(done[0], min(done[0] + PAIRS, len(a)))
        hits = [
            (pair, match.row)
            for pair, (left, right) in zip(some.tolist(), pictures.pairs(some), strict=True)
            if left is not None and right is not None and (match := register(left, right)) is not None and match.score >= floor
        ]
        more = np.array([row for _, row in hits], np.float64).reshape(-1, len(FIELDS))
        return np.concatenate([found, np.array([pair for pair, _ in hits], np.int64)]), np.concatenate([seen, more]), done + len(some)

    start = np.empty(0, np.int64), np.empty((0, len(FIELDS))), np.zeros(1, np.int64)
    found, seen, _ = pool.scan(name, verify, start, rounds=-(-len(a) // PAIRS))
    score = seen[:, FIELDS.index("score")].copy()
    return Edges(a[found], b[found], score, {f: seen[:, i].copy() for i, f in enumerate(FIELDS) if f != "score"})


def _with(edges: Edges, more: Edges) -> Edges:
    """Both, one after the other."""
    columns = {name: np.concatenate([values, more.columns[name]]) for name, values in edges.columns.items()}
    return Edges(np.concatenate([edges.a, more.a]), np.concatenate([edges.b, more.b]), np.concatenate([edges.score, more.score]), columns)


class _Pictures:
    """The pictures of pairs, decoded when they are first asked for; those that are needed again soonest stay, as far as a quarter of the memory allows."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._room = max(2 * PAIRS, pool.memory // 4 // BYTES)
        self._held: dict[int, Seen | None] = {}
        self.expect(np.empty(0, np.int64), np.empty(0, np.int64))

    def expect(self, a: np.ndarray, b: np.ndarray) -> None:
        """Which pairs will be asked for, in their order."""
        self._a, self._b = a, b
        self._uses = np.sort(np.concatenate([a, b]) * (len(a) + 1) + np.tile(np.arange(len(a)), 2))  # row, then place of the pair

    def pairs(self, some: np.ndarray) -> Iterator[tuple[Seen | None, Seen | None]]:
        """Both pictures of each of the pairs `some`, which lie side by side; None for one that cannot be decoded."""
        rows = np.unique(np.concatenate([self._a[some], self._b[some]]))
        self._forget(int(some[0]), rows)
        missing = np.array([row for row in rows.tolist() if row not in self._held], np.int64)
        if len(missing):
            self._held.update(zip(missing.tolist(), map(glance, self._pool.payloads(missing)), strict=True))
        for pair in some.tolist():
            yield self._held[int(self._a[pair])], self._held[int(self._b[pair])]

    def _forget(self, pair: int, needed: np.ndarray) -> None:
        """Where there is no room let go of what no later pair needs, and of what is needed last."""
        width = len(self._a) + 1
        held = np.fromiter(self._held, np.int64, len(self._held))
        at = np.searchsorted(self._uses, held * width + pair)
        use = self._uses[np.minimum(at, len(self._uses) - 1)]
        soon = np.where((at < len(self._uses)) & (use // width == held), use % width, width)
        order = np.argsort(soon, kind="stable")
        room = max(0, self._room - len(np.setdiff1d(needed, held)))
        for row in held[order[room:]].tolist():
            del self._held[row]


def _area(seen: dict, side: str) -> np.ndarray:
    """(pairs,) float64: the share of picture "a" or "b" that lies in the common area."""
    left, top, right, bottom = (np.asarray(seen[f"{side}_{edge}"], np.float64) for edge in BOX)
    return (right - left) * (bottom - top)


def _changes(edges: Edges, keep: np.ndarray, witness: np.ndarray) -> dict[str, pa.Array]:
    """The columns that say what happened to each dropped row, from the edge of it and its witness."""
    rows = np.flatnonzero(~keep)
    n, seen = len(keep), edges.columns
    key = edges.a * n + edges.b
    order = np.argsort(key, kind="stable")
    ends = np.stack([np.searchsorted(key[order], x * n + y) for x, y in ((rows, witness[rows]), (witness[rows], rows))])
    is_left = np.zeros(len(rows), bool)  # does the dropped row stand left in the edge?
    if len(rows):
        is_left = key[order[np.minimum(ends[0], len(key) - 1)]] == rows * n + witness[rows]
    edge = order[np.where(is_left, ends[0], ends[1])] if len(rows) else np.empty(0, np.int64)
    turn = np.asarray(seen["turn"])[edge].astype(np.int64) if len(rows) else np.empty(0, np.int64)
    turn = np.where(is_left & (turn < 4), (4 - turn) % 4, turn)  # a mirrored turn undoes itself
    areas = [_area(seen, side)[edge] for side in ("a", "b")]
    own, shown = np.where(is_left, areas[0], areas[1]), np.where(is_left, areas[1], areas[0])
    boxes = {e: np.where(is_left, np.asarray(seen[f"b_{e}"])[edge], np.asarray(seen[f"a_{e}"])[edge]) for e in BOX}
    text = np.full(n, None, object)
    text[rows] = [
        change(*facts) for facts in zip(turn.tolist(), shown.tolist(), own.tolist(), np.asarray(seen["covered"])[edge].tolist(), strict=True)
    ]
    found = {"copies_change": pa.array(text, pa.string()), "copies_turn": _only(rows, turn, n, pa.int8())}
    return found | {f"copies_{e}": _only(rows, values, n, pa.float32()) for e, values in boxes.items()}


def _only(rows: np.ndarray, values: np.ndarray, count: int, kind: pa.DataType) -> pa.Array:
    """`values` at `rows` of a column that is null elsewhere."""
    whole, empty = np.zeros(count, np.asarray(values).dtype), np.ones(count, bool)
    whole[rows], empty[rows] = values, False
    return pa.array(whole, kind, mask=empty)
