"""Find the same thing in another look: two samples that are each other's nearest neighbour, with a margin to the next."""

import builtins

import numpy as np
import pyarrow as pa

from curate.pool import Edges, Pool, Preferred, State, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.vectors.copies import Pairs, limit_of, spread, together
from manifests.vectors.forecast import Forecast, Size, neighbours, require
from manifests.vectors.neighbours import knn
from manifests.vectors.store import Vectors
from manifests.vectors.tiles import equal_rows

REASONS = ("mutual_neighbour",)
WRITES: dict[str, pa.DataType] = {}
MOVES = {"min_cosine": "floor_cosine", "margin": "", "prefer": ""}
GROWS = "differs"
PAIRS_OF_ALL_ROWS = True  # of each row the nearest: among fewer rows others would be
BLOCK = 65_536  # rows whose neighbours are found in one round


def forecast(size: Size, *, num_neighbours: int, **_: object) -> Forecast:
    """One search of nearest neighbours."""
    return neighbours(size.rows, size.rows, size.dims[0], num_neighbours)


def mutual(
    pool: Pool,
    *,
    vectors: VectorName,
    min_cosine: float = 0.8,
    margin: float = 0.1,
    prefer: builtins.list[Preferred] = [],  # noqa: B006
    floor_cosine: float = 0.6,
    num_neighbours: int = 8,
    max_edges: int = 16,
) -> Verdicts:
    """Keep one of two samples that are each other's nearest neighbour and closer to each other than to anything else.

    Decides     two rows are a couple when each is the nearest neighbour of the other, their cosine is at least `min_cosine`, and it exceeds the cosine of each to its
                second neighbour by at least `margin`. The one that comes later in keeper order is dropped ("mutual_neighbour"): `witness` is the other, `score` their
                cosine, `threshold` min_cosine. Rows with equal vectors count as one; of these too one is kept (cosine 1, or by the partner of the couple).
                Keeper order: protected rows, then the larger `prefer` columns, then uid. Protected rows are kept
    Guarantee   exact: all pairs are compared. A row has one partner at most, so no chain can form and a crowd of look-alikes, in which no row has a clear nearest, loses
                nothing but equal rows. A nearest neighbour that two rows share at the same cosine is no couple, unless margin is 0 (then the smaller uid is nearest)
    Source      mutual nearest neighbours: Gowda and Krishna 1978, as matching of image features ever since; the margin to the second neighbour: Lowe 2004 (there a
                ratio of distances; a difference of cosines here). Seen once by us, with a smaller margin, on the same concept drawn by two artists (no benchmark here repeats it): a third
                found at precision 0.87, where no single cosine threshold passes 0.13 at precision 0.5
    vectors     a vector column, (n, d) float16, unit length; a semantic encoder
    min_cosine  from -1 to 1
    margin      0 or more, in cosine; 0 asks for mutual neighbours alone. The default is for safety: among photographs and their copies, seen by an ImageNet encoder,
                0.1 dropped at precision 0.99 and lost one unique photograph of 210; 0.05 lost seven
    prefer      columns of numbers; the row with the larger value is the one to keep, and null is the least
    floor_cosine   at most min_cosine - margin: neighbours down to this cosine are written as edges, so that both can be moved later
    num_neighbours   neighbours of each row that are written; the two nearest decide, and with them every replay of the same rows is exact
    max_edges   pairs a row on average (and a million in all) that are written where many rows are equal
    Cost        n * n * d multiply-adds in float32; 16 num_neighbours bytes a row, 100 a pair and 200 MiB at work
    Errors      bad-value, does-not-fit
    """
    n = len(pool)
    if not -1 <= floor_cosine <= min_cosine - margin + 1e-12 or not min_cosine <= 1 or margin < 0 or num_neighbours < 2 or max_edges < 1:
        given = f"min_cosine {min_cosine}, margin {margin}, floor_cosine {floor_cosine}, num_neighbours {num_neighbours}, max_edges {max_edges}"
        allowed = "-1 <= floor_cosine <= min_cosine - margin, min_cosine <= 1, margin >= 0, num_neighbours of 2 or more, max_edges of 1 or more"
        raise Refusal("bad-value", "dedup.mutual", given, allowed, "Lower floor_cosine")
    edges = pool.edges(lambda: _find(pool, pool.vectors(vectors), prefer, floor_cosine, num_neighbours, max_edges))

    equal = np.asarray(edges.columns["is_equal"], bool)
    rank = together(pool.keeper_order(prefer), edges.a, edges.b, equal)
    head = np.arange(n)  # of each set of equal rows: the first in keeper order
    for a, b in ((edges.a[equal], edges.b[equal]), (edges.b[equal], edges.a[equal])):
        head_rank = rank[head]
        np.minimum.at(head_rank, a, rank[b])
        head = np.argsort(rank)[head_rank]
    partner, score = _couples(pool, head, edges, ~equal, min_cosine, margin)
    loses = (partner >= 0) & (rank[np.maximum(partner, 0)] < rank) & ~pool.fixed
    fate = head != np.arange(n)  # a copy goes with its first row, or because of it
    by = np.where(loses[head], partner[head], head)
    how = np.where(loses[head], score[head], 1.0)
    keep = ~(loses | fate) | pool.fixed
    return Verdicts(
        keep=keep, reason="mutual_neighbour", score=np.where(keep, np.nan, how), threshold=min_cosine, witness=np.where(keep, -1, by), edges=edges
    )


def _couples(pool: Pool, head: np.ndarray, edges: Edges, some: np.ndarray, min_cosine: float, margin: float) -> tuple[np.ndarray, np.ndarray]:
    """(n,) int64 the partner of each head, -1 = none; (n,) float64 their cosine."""
    n = len(head)
    uid = np.full(n, n)
    np.minimum.at(uid, head, pool.uid_rank)  # of a set the smallest uid counts
    key, at = np.unique(
        np.concatenate([head[edges.a[some]] * n + head[edges.b[some]], head[edges.b[some]] * n + head[edges.a[some]]]), return_index=True
    )
    row, other, score = key // n, key % n, np.tile(edges.score[some], 2)[at]
    order = np.lexsort((uid[other], -score, row))
    row, other, score = row[order], other[order], score[order]
    first = np.flatnonzero(np.diff(row, prepend=-1))
    nearest, best, second = np.full(n, -1, np.int64), np.full(n, -np.inf), np.full(n, -np.inf)
    nearest[row[first]], best[row[first]] = other[first], score[first]
    has = np.append(row[1:], -1)[first] == row[first]
    second[row[first[has]]] = score[first[has] + 1]
    is_clear = (nearest >= 0) & (best >= min_cosine) & (best >= second + margin)
    is_couple = is_clear & (nearest[np.maximum(nearest, 0)] == np.arange(n)) & is_clear[np.maximum(nearest, 0)]
    return np.where(is_couple, nearest, -1), best


def _find(pool: Pool, z: Vectors, prefer: builtins.list[Preferred], floor: float, num_neighbours: int, max_edges: int) -> Edges:
    """The nearest neighbours of every row down to the floor, each pair once."""
    n, rank = len(pool), pool.keeper_order(prefer)
    require("dedup.mutual", forecast(Size(n, [z.dim], pool.memory), num_neighbours=num_neighbours), pool.memory)
    order = np.argsort(rank)
    first = np.empty(n, np.int64)
    first[order] = order[equal_rows(z.subset(order))]
    heads, by_uid = np.flatnonzero(first == np.arange(n)), np.full(n, n)
    np.minimum.at(by_uid, first, pool.uid_rank)
    heads_z, heads_uid = z.subset(heads), np.argsort(np.argsort(by_uid[heads]))

    def looked(name: str, asked: np.ndarray) -> Pairs:
        def look(state: State) -> State:
            score, row, done = state
            at = np.arange(done[0], min(done[0] + BLOCK, len(asked)))
            some = asked[at]
            score[at], row[at] = knn(
                heads_z.subset(some), heads_z, num_neighbours, exclude_self=True, query_uid_rank=heads_uid[some], base_uid_rank=heads_uid,
                device=pool.device,
            )  # fmt: skip
            return score, row, done + BLOCK

        start = np.full((len(asked), num_neighbours), -np.inf), np.full((len(asked), num_neighbours), -1, np.int64), np.zeros(1, np.int64)
        score, row, _ = pool.scan(name, look, start, -(-len(asked) // BLOCK))
        near, place = np.nonzero((row >= 0) & (score >= floor))
        return asked[near], row[near, place], score[near, place]

    known = pool.known(first)[heads]  # never dropped, so only whether they are the partner of another row matters: of its nearest, that is
    u, v, score = looked("neighbours", np.flatnonzero(~known))
    more = looked("neighbours-of-known", np.unique(v[known[v] & (np.diff(u, prepend=-1) > 0)]))
    u, v, score = (np.concatenate(column) for column in zip((u, v, score), more, strict=True))
    key, at = np.unique(np.minimum(u, v) * len(heads) + np.maximum(u, v), return_index=True)
    pairs = heads[key // max(len(heads), 1)], heads[key % max(len(heads), 1)], score[at]
    a, b, cosine, equal, is_complete = spread(pairs, lambda: pairs, first, rank, limit_of(n, max_edges))
    return Edges(a, b, cosine, {"is_equal": equal, "is_complete": np.full(len(a), is_complete)})
