"""Keep one of all samples whose vectors all but coincide: every pair is compared."""

import builtins

import numpy as np
import pyarrow as pa

from curate.pool import Edges, Pool, Preferred, State, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.star import first_kept, star
from manifests.vectors.copies import Pairs, limit_of, spread, together, warn_of_many
from manifests.vectors.forecast import Forecast, Size, pairs, require
from manifests.vectors.products import OnCpu, OnDevice, Tile, products
from manifests.vectors.store import Vectors
from manifests.vectors.tiles import closest, equal_rows, within

REASONS = ("near_duplicate",)
WRITES: dict[str, pa.DataType] = {}
MOVES = {"min_cosine": "floor_cosine", "prefer": ""}
GROWS = "equal where each keeper is in the older part"
BLOCK = 4096  # rows that are compared with all earlier ones in one round


def forecast(size: Size, *, max_edges: int, **_: object) -> Forecast:
    """All pairs, on the device where there is one."""
    return pairs(size.rows, size.dims[0], max_edges, size.memory, size.device)


def all_pairs(
    pool: Pool,
    *,
    vectors: VectorName,
    min_cosine: float = 0.99,
    prefer: builtins.list[Preferred] = [],  # noqa: B006
    floor_cosine: float = 0.95,
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
    prefer      columns of numbers; the row with the larger value is the one to keep, and null is the least ([num_pixels] keeps the highest resolution)
    floor_cosine   pairs down to this cosine are written as edges, so that the threshold can be moved later
    max_edges   pairs a row on average (and a million in all) that are written one by one: then every replay from the floor up is exact, also of fewer rows and with
                another `prefer` ("is_complete" is true). Where more reach the floor, each row has its first `max_edges` in keeper order and its witness: at
                the settings of the run they give the same verdicts, at others they are approximate. The verdicts of the run are exact in both cases
    Cost        n * n / 2 * d multiply-adds in float32, where equal rows count once; 2 n d bytes, 64 a pair that is written and 300 MiB at work.
                On a device its float16 matrix units propose, and float64 on the CPU decides, as ever: the same verdicts
    Errors      bad-value, does-not-fit
    """
    if not -1 <= floor_cosine <= min_cosine <= 1 or max_edges < 1:
        given = f"min_cosine {min_cosine}, floor_cosine {floor_cosine}, max_edges {max_edges}"
        allowed = "-1 <= floor_cosine <= min_cosine <= 1, max_edges of 1 or more"
        raise Refusal("bad-value", "dedup.all_pairs", given, allowed, "Where min_cosine is lower than the floor, lower floor_cosine too")
    edges = pool.edges(lambda: _find(pool, pool.vectors(vectors), min_cosine, prefer, floor_cosine, max_edges))

    rank = together(pool.keeper_order(prefer), edges.a, edges.b, np.asarray(edges.columns["is_equal"], bool))
    close = edges.score >= min_cosine
    keep, witness, score = star(rank, [(edges.a[close], edges.b[close], edges.score[close])], fixed=pool.fixed)
    warn_of_many("dedup.all_pairs", score, min_cosine)
    return Verdicts(keep=keep, reason="near_duplicate", score=score, threshold=min_cosine, witness=witness, edges=edges)


def _find(pool: Pool, stored: Vectors, threshold: float, prefer: builtins.list[Preferred], floor: float, max_edges: int) -> Edges:
    """All pairs down to the floor; of a crowd each row's first ones and its witness."""
    require("dedup.all_pairs", forecast(Size(len(pool), [stored.dim], pool.memory), max_edges=max_edges), pool.memory)
    rank = pool.keeper_order(prefer)
    order = np.argsort(rank)
    z, fixed, limit = _at_hand(stored.subset(order), pool.memory), pool.fixed[order], limit_of(len(pool), max_edges)
    first = equal_rows(z, pool.device)
    heads = np.flatnonzero(first == np.arange(len(z)))  # one of each set of equal rows, the first in keeper order
    heads_z, heads_fixed, m = z if len(heads) == len(z) else z.subset(heads), fixed[heads], len(heads)

    is_known = pool.known(np.searchsorted(heads, first), order)

    made, everyone = products(heads_z, BLOCK, pool.device), np.arange(m)

    def compare_block(state: State) -> State:
        return _compare_block(heads_z, made, heads_fixed, is_known, everyone, state, threshold, floor, limit, max_edges)

    nobody = np.empty(0, np.int32)
    start = np.ones(m, bool), np.full(m, -1, np.int64), nobody, nobody, np.zeros(2, np.int64)
    _, witness, later, earlier, (_, is_crowd) = pool.scan("blocks", compare_block, start, rounds=-(-m // BLOCK))

    def rows_of(later: np.ndarray, earlier: np.ndarray) -> Pairs:
        return order[heads[earlier]], order[heads[later]], heads_z.cosine(later, heads_z, earlier)

    def of_a_crowd() -> Pairs:
        some = _first_of_each(later, max_edges)
        dropped = np.flatnonzero(witness >= 0)
        unseen = dropped[~np.isin(dropped * m + witness[dropped], later[some].astype(np.int64) * m + earlier[some])]
        return rows_of(np.concatenate([later[some].astype(np.int64), unseen]), np.concatenate([earlier[some].astype(np.int64), witness[unseen]]))

    found = None if is_crowd else rows_of(later.astype(np.int64), earlier.astype(np.int64))
    of = np.empty(len(order), np.int64)
    of[order] = order[first]
    a, b, score, equal, is_complete = spread(found, of_a_crowd, of, rank, limit)
    return Edges(a, b, score, {"is_equal": equal, "is_complete": np.full(len(a), is_complete)})


def _at_hand(z: Vectors, memory: int) -> Vectors:
    """`z` copied in its order where a quarter of the memory holds it: rows that are read again and again then lie side by side."""
    return Vectors.of(z.stored(slice(0, len(z)))) if 2 * len(z) * z.dim <= memory // 4 else z


def _compare_block(
    z: Vectors, made: OnCpu | OnDevice, fixed: np.ndarray, known: np.ndarray, everyone: np.ndarray, state: State, threshold: float, floor: float, limit: int,
    max_edges: int,
) -> State:  # fmt: skip
    """The next BLOCK rows against all rows before them; rows lie in keeper order. Two `known` rows are both kept, and their pair needs no record."""
    keep, witness, later, earlier, (done, is_crowd) = state
    done = int(done)
    rows = everyone[done : done + BLOCK]
    best, by = np.full(len(rows), -np.inf), np.full(len(rows), -1, np.int64)
    found, filled, count = [(later, earlier)], np.zeros(len(rows), np.int64), len(later)

    def hear(tile: Tile, wanted: np.ndarray) -> None:
        some, columns = tile.at[wanted], tile.columns[keep[tile.columns]]
        beyond = np.where(best[some] >= threshold, np.nextafter(best[some], 2), threshold)
        closest_here, at = closest(tile.scores[np.ix_(wanted, keep[tile.columns])], z, rows[some], z, columns, beyond, made.error)
        closer = at >= 0
        best[some[closer]], by[some[closer]] = closest_here[closer], columns[at[closer]]

    def note(tile: Tile, top: np.ndarray) -> None:
        nonlocal is_crowd, count
        hit = np.flatnonzero(top >= floor - made.error)
        for start in range(0, len(hit), 512):
            some = hit[start : start + 512]
            some = some[filled[tile.at[some]] < max_edges] if is_crowd else some
            at = tile.at[some]
            near = within(tile.scores[some], z, rows[at], z, tile.columns, floor, made.error)
            r, c = np.divmod(np.flatnonzero(near), len(tile.columns))
            place = filled[at[r]] + np.arange(len(r)) - np.searchsorted(r, r)
            new = place < max_edges if is_crowd else np.ones(len(r), bool)
            found.append((rows[at[r[new]]].astype(np.int32), tile.columns[c[new]].astype(np.int32)))
            filled[at] += np.bincount(r[new], minlength=len(at))
            count += int(new.sum())
            if not is_crowd and count > limit:
                is_crowd = 1
                every = [np.concatenate(column) for column in zip(*found, strict=True)]
                found[:] = [tuple(column[_first_of_each(every[0], max_edges)] for column in every)]
                np.minimum(filled, max_edges, out=filled)

    is_old = known[rows].all()
    for tile in made.tiles(rows, np.flatnonzero(~known[:done]) if is_old else everyone[:done], floor):
        top = tile.scores.max(1)
        note(tile, top)
        hear(tile, np.flatnonzero(top >= threshold - made.error))
    if not is_old:
        tiles, near = builtins.list(made.triangle(rows, floor)), np.zeros((len(rows), len(rows)), bool)
        for tile in tiles:
            note(tile, tile.scores.max(1))
            near[np.ix_(tile.at, tile.columns - done)] = within(tile.scores, z, rows[tile.at], z, tile.columns, threshold, made.error)
        keep[rows] = first_kept(near, best < threshold, fixed[rows])
        for tile in tiles:
            hear(tile, np.flatnonzero(~keep[rows[tile.at]]))
        dropped = ~keep[rows]
        witness[rows[dropped]] = by[dropped]
    return keep, witness, *(np.concatenate(column) for column in zip(*found, strict=True)), np.array([done + len(rows), is_crowd])


def _first_of_each(later: np.ndarray, max_edges: int) -> np.ndarray:
    """Which pairs are among the first `max_edges` of their later row; the pairs of a row lie in keeper order of the earlier one."""
    order = np.argsort(later, kind="stable")
    place = np.arange(len(order)) - np.searchsorted(later[order], later[order])
    return np.sort(order[place < max_edges])
