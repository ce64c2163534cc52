"""Keep one of all samples whose vectors all but coincide: every pair is compared."""

import builtins

import numpy as np
import pyarrow as pa

from curate.pool import Column, Edges, Pool, State, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.star import first_kept
from manifests.vectors.forecast import pairs, require
from manifests.vectors.store import Vectors, float32_error
from manifests.vectors.tiles import closest, equal_rows, within

REASONS = ("near_duplicate",)
WRITES: dict[str, pa.DataType] = {}
BLOCK = 4096  # rows that are compared with all earlier ones in one round


def all_pairs(
    pool: Pool,
    *,
    vectors: VectorName,
    min_cosine: float = 0.99,
    prefer: builtins.list[Column] = [],  # noqa: B006
    edge_margin: float = 0.02,
    max_edges: int = 16,
) -> Verdicts:
    """Keep one of all samples whose vectors have a cosine of at least `min_cosine`.

    Decides     in keeper order a row is dropped ("near_duplicate") when a *kept* row before it has a cosine of at least `min_cosine`: a star, not a chain.
                `witness` is the kept row before it with the highest cosine (of equals the first in keeper order), `score` that cosine, `threshold` is
                `min_cosine`. Keeper order: protected rows, then the larger `prefer` columns, then uid; rows with equal vectors stand together, at the
                place of the first of them. Every protected row is kept.
    Guarantee   exact: all pairs are compared; of two kept rows that are not protected none reaches `min_cosine`
    Source      the rule of SemDeDup (Abbas et al. 2023) without clusters, against kept rows only
    vectors     a vector column, (n, d) float16, unit length
    min_cosine  from -1 to 1. The default is for copies and re-encodings. Semantic encoders do not tell a copy from a look-alike (two frames, two products on
                white): look at the pairs in the report before lowering it, or use `dedup.perceptual`, which looks at the pictures
    prefer      columns of numbers; the row with the larger value is the one to keep ([num_pixels] keeps the highest resolution)
    edge_margin pairs down to `min_cosine - edge_margin` are recorded as edges, so that another threshold can be replayed
    max_edges   of each row that many edges to earlier rows at most, the first in keeper order, and the one to its witness: a pool full of look-alikes stays
                small, and for its crowded rows a replay is approximate
    Cost        n * n / 2 * d multiply-adds in float32, where equal rows count once; 2 n d + 4 n max_edges bytes and 300 MiB at work
    Errors      bad-value, does-not-fit
    """
    if not -1 <= min_cosine <= 1 or edge_margin < 0 or max_edges < 0:
        given = f"min_cosine {min_cosine}, edge_margin {edge_margin}, max_edges {max_edges}"
        raise Refusal("bad-value", "dedup.all_pairs", given, "a cosine from -1 to 1, and no negative margin or count")
    require("dedup.all_pairs", pairs(len(pool), pool.vectors(vectors).dim, max_edges, pool.memory), pool.memory)
    order = np.lexsort((pool.uid_rank, *[-pool.column(name).astype(np.float64) for name in reversed(prefer)], ~pool.fixed))
    z, fixed = _at_hand(pool.vectors(vectors).subset(order), pool.memory), pool.fixed[order]
    first = equal_rows(z)
    heads = np.flatnonzero(first == np.arange(len(z)))  # one of each set of equal rows, the first in keeper order
    heads_z, heads_fixed = z.subset(heads), fixed[heads]

    def compare_block(state: State) -> State:
        return _compare_block(heads_z, heads_fixed, state, min_cosine, min_cosine - edge_margin, room)

    m = len(heads)
    room = np.empty(min(m, BLOCK) ** 2, np.float32)  # for one tile after the other: fresh memory costs a good part of the product
    start = np.ones(m, bool), np.full(m, -1, np.int64), np.full(m, np.nan), np.full((m, max_edges), -1, np.int32), np.zeros(1, np.int64)
    keep, witness, score, edges, _ = pool.scan("blocks", compare_block, start, rounds=-(-m // BLOCK))
    place = np.searchsorted(heads, first)  # each row's head
    return _for_all(order, place, fixed, keep, np.where(witness >= 0, heads[witness], -1), score, min_cosine, _pairs(heads_z, heads, witness, edges))


def _at_hand(z: Vectors, memory: int) -> Vectors:
    """`z` copied in its order where a quarter of the memory holds it: rows that are read again and again then lie side by side."""
    return Vectors.of(z.stored(slice(0, len(z)))) if 2 * len(z) * z.dim <= memory // 4 else z


def _compare_block(z: Vectors, fixed: np.ndarray, state: State, threshold: float, floor: float, room: np.ndarray) -> State:
    """The next BLOCK rows against all rows before them; rows lie in keeper order."""
    keep, witness, score, edges, done = state
    rows = np.arange(done[0], min(done[0] + BLOCK, len(z)))
    unit, best, by = z.unit(rows), np.full(len(rows), -np.inf), np.full(len(rows), -1, np.int64)

    def hear(scores: np.ndarray, some: np.ndarray, columns: np.ndarray) -> None:
        beyond = np.where(best[some] >= threshold, np.nextafter(best[some], 2), threshold)
        found, at = closest(scores[np.ix_(some, keep[columns])], z, rows[some], z, columns[keep[columns]], beyond)
        closer = at >= 0
        best[some[closer]], by[some[closer]] = found[closer], columns[keep[columns]][at[closer]]

    error = float32_error(z.dim)
    for first in range(0, int(done[0]), BLOCK):
        columns = np.arange(first, first + BLOCK)
        scores = np.matmul(unit, z.unit(columns).T, out=room[: len(rows) * BLOCK].reshape(len(rows), BLOCK))
        top = scores.max(1)
        _note_edges(edges, scores, top, z, rows, columns, floor)
        hear(scores, np.flatnonzero(top >= threshold - error), columns)
    scores = np.matmul(unit, unit.T, out=room[: len(rows) ** 2].reshape(len(rows), len(rows)))
    scores[np.arange(len(rows))[:, None] <= np.arange(len(rows))] = -2  # each pair once, and none with itself
    _note_edges(edges, scores, scores.max(1), z, rows, rows, floor)
    near = within(scores, z, rows, z, rows, threshold)
    keep[rows] = first_kept(near, best < threshold, fixed[rows])
    hear(scores, np.flatnonzero(~keep[rows]), rows)
    dropped = ~keep[rows]
    witness[rows[dropped]], score[rows[dropped]] = by[dropped], best[dropped]
    done += len(rows)
    return keep, witness, score, edges, done


def _note_edges(edges: np.ndarray, scores: np.ndarray, top: np.ndarray, z: Vectors, rows: np.ndarray, columns: np.ndarray, floor: float) -> None:
    """Add the pairs of a tile that reach `floor` to `edges` (n, max_edges), as far as there is room; columns come in keeper order."""
    filled = (edges[rows] >= 0).sum(1)
    hit = np.flatnonzero((top >= floor - float32_error(z.dim)) & (filled < edges.shape[1]))
    for start in range(0, len(hit), 512):
        some = hit[start : start + 512]
        r, c = np.nonzero(within(scores[some], z, rows[some], z, columns, floor))
        count = np.bincount(r, minlength=len(some))
        place = filled[some[r]] + np.arange(len(r)) - (np.cumsum(count) - count)[r]
        room = place < edges.shape[1]
        edges[rows[some[r[room]]], place[room]] = columns[c[room]]


def _pairs(z: Vectors, heads: np.ndarray, witness: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(earlier, later, cosine) of all edges between heads, the witnesses among them; `later` counts heads, `earlier` rows."""
    later, place = np.nonzero(edges >= 0)
    earlier = edges[later, place].astype(np.int64)
    unseen = np.flatnonzero((witness >= 0) & ~(edges == witness[:, None]).any(1))
    earlier, later = np.concatenate([earlier, witness[unseen]]), np.concatenate([later, unseen])
    return heads[earlier], later, z.cosine(later, z, earlier)


def _for_all(
    order: np.ndarray, place: np.ndarray, fixed: np.ndarray, keep: np.ndarray, witness: np.ndarray, score: np.ndarray, threshold: float,
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> Verdicts:  # fmt: skip
    """From heads to all rows, and from keeper order to the pool's: what equals a head shares its fate, or is its copy."""
    n = len(order)
    head = np.zeros(n, np.int64)
    head[place[::-1]] = np.arange(n)[::-1]
    is_copy = head[place] != np.arange(n)
    keeps = np.where(is_copy, fixed, keep[place])
    by = np.where(keeps, -1, np.where(is_copy & keep[place], head[place], witness[place]))
    how = np.where(keeps, np.nan, np.where(is_copy & keep[place], 1.0, score[place]))

    earlier, later, cosine = pairs
    by_head = np.argsort(later, kind="stable")
    count = np.bincount(later, minlength=len(keep))
    rows = np.argsort(place, kind="stable")  # every row of a head has its edges
    many = count[place[rows]]
    own = np.repeat(rows, many)
    at = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many) + np.repeat((np.cumsum(count) - count)[place[rows]], many)
    copies = np.flatnonzero(is_copy)
    a = np.concatenate([earlier[by_head][at], head[place[copies]]])
    b, s = np.concatenate([own, copies]), np.concatenate([cosine[by_head][at], np.ones(len(copies))])

    verdict = np.empty(n, bool), np.full(n, -1, np.int64), np.full(n, np.nan)
    verdict[0][order], verdict[2][order] = keeps, how
    verdict[1][order] = np.where(by >= 0, order[by], -1)
    return Verdicts(
        keep=verdict[0], reason="near_duplicate", score=verdict[2], threshold=threshold, witness=verdict[1], edges=Edges(order[a], order[b], s)
    )
