"""Keep one of all samples whose vectors lie close together: clusters first, so that large pools take minutes."""

import builtins
from typing import Literal

import numpy as np
import pyarrow as pa

from curate.pool import Edges, Pool, Preferred, Share, State, VectorName, Verdicts
from manifests.errors import Refusal
from manifests.star import star
from manifests.vectors.clusters import Cells, cells
from manifests.vectors.copies import Pairs, limit_of, pairs_inside, spread, thinned, together, warn_of_many
from manifests.vectors.forecast import Forecast, Size, inside_clusters, require
from manifests.vectors.store import Vectors
from manifests.vectors.tiles import equal_rows

REASONS = ("semantic_duplicate",)
WRITES: dict[str, pa.DataType] = {}
MOVES = {"min_cosine": "floor_cosine", "keep": "", "keeper": "", "prefer": ""}
GROWS = "equal where each keeper is in the older part"
PAIRS_OF_ALL_ROWS = True  # clusters are fitted on them
ONE_CLUSTER = 4096  # pools up to this size are compared whole
STEPS = 1 << 13  # thresholds that are tried for a share are multiples of 1 / STEPS
TRIES = 65  # thresholds that are tried before a target is refused


def forecast(size: Size, *, clusters: int | None, **_: object) -> Forecast:
    """The clusters and the pairs inside them."""
    return inside_clusters(size.rows, size.dims[0], clusters)


def semantic(
    pool: Pool,
    *,
    vectors: VectorName,
    min_cosine: float = 0.97,
    keep: Share | None = None,
    keeper: Literal["farthest", "nearest", "random", "uid"] = "farthest",
    prefer: builtins.list[Preferred] = [],  # noqa: B006
    recall: float = 0.99,
    clusters: int | None = None,
    floor_cosine: float = 0.93,
    max_edges: int = 16,
) -> Verdicts:
    """Keep one of all samples whose vectors have a cosine of at least `min_cosine`, compared inside clusters and across their borders.

    Decides     in keeper order a row is dropped ("semantic_duplicate") when a *kept* row before it, with which it was compared, has a cosine of at least
                `min_cosine`: a star, not a chain. `witness` is the kept row before it with the highest cosine (ties in keeper order), `score` that cosine,
                `threshold` is min_cosine or what was found for `keep`. Keeper order: protected rows, then the larger `prefer` columns, then `keeper`, then
                uid; rows with equal vectors stand together, at the place of the first of them. Every protected row is kept.
    Guarantee   every dropped row has a kept one within the threshold. Pairs inside a cluster are all found. Of pairs across a border, at recall 1 all (proved: the
                same rows as `dedup.all_pairs` keeps in the same keeper order); below, `recall` of those that differ in directions as rows differ from
                their centres do (an assumption, not a proof). Measured against all pairs: see docs/BENCHMARKS.md
    Source      the clusters of SemDeDup (Abbas et al. 2023; its rule to the letter is `dedup.semdedup`); visits across borders, their bound and the rounds for crowds
                are ours
    vectors     a vector column, (n, d) float16, unit length
    min_cosine  from -1 to 1. Semantic encoders do not tell a copy from a look-alike (two frames, two products on white): look at the pairs in the report before
                lowering it (the default lost one unique photograph of 210 by an ImageNet encoder, 0.95 lost two). More than half of a pool gone beside equal vectors is warned of
    keep        instead of min_cosine: how many to keep at most, a count (10000) or a fraction of the live rows (0 < 0.3 <= 1). A threshold on the grid i / 8192 from
                `floor_cosine` up is found by bisection: it keeps no more than this, the next one keeps more. A lower one may keep more too (a row that leaves may
                free others), so it need not be the only one. Rows with equal vectors always meet
    keeper      which of a set stays: the one "farthest" from the centre of its cluster (the paper's), "nearest" to it, "random" (by the seed), or of the first "uid"
    prefer      columns of numbers; the row with the larger value is the one to keep, and null is the least; `keeper` decides between equals
    recall      0 < recall <= 1, see Guarantee. 1 costs more visits; where clusters do not separate the rows it costs as much as all pairs, twice
    clusters    how many; by default one up to 4,096 rows, then the square root of the rows. Much larger ones are split
    floor_cosine   pairs down to this cosine are written as edges, so that the threshold can be moved later
    max_edges   pairs a row on average (and a million in all) that are written. Where more reach the floor, only those that decide are ("is_complete" is false): at the
                settings of the run they give the same verdicts, at others they are approximate
    Cost        (2 n k + (1 + visits) n n / k) d multiply-adds in float32, a crowd a few times the last; 170 bytes a row, 128 a pair and 30 to 100 MiB at work
    Errors      bad-value, does-not-fit
    """
    where = "dedup.semantic"
    if not -1 <= floor_cosine <= min_cosine <= 1 or not 0 < recall <= 1 or max_edges < 1 or (clusters is not None and clusters < 1):
        given = f"min_cosine {min_cosine}, floor_cosine {floor_cosine}, recall {recall}, clusters {clusters}, max_edges {max_edges}"
        allowed = "-1 <= floor_cosine <= min_cosine <= 1, 0 < recall <= 1, clusters and max_edges of 1 or more"
        raise Refusal("bad-value", where, given, allowed, "Where min_cosine is lower than the floor, lower floor_cosine too")
    n = len(pool)
    edges = pool.edges(lambda: _find(pool, pool.vectors(vectors), clusters, floor_cosine, min_cosine, keep, keeper, prefer, recall, max_edges))

    a, b, score = edges.a, edges.b, edges.score
    rank = together(_keeper_order(pool, keeper, prefer, _centre_cosine(n, edges)), a, b, np.asarray(edges.columns["is_equal"], bool))
    threshold = min_cosine if keep is None else _threshold_for(keep, pool, rank, edges, floor_cosine)
    close = score >= threshold
    keeps, witness, best = star(rank, [(a[close], b[close], score[close])], fixed=pool.fixed)
    if keep is None:
        warn_of_many(where, best, threshold)
    return Verdicts(keep=keeps, reason="semantic_duplicate", score=best, threshold=threshold, witness=witness, edges=edges)


def _keeper_order(pool: Pool, keeper: str, prefer: builtins.list[Preferred], centre_cosine: np.ndarray) -> np.ndarray:
    """(n,) int64: the place of each row. Rows that are in no pair have no cosine, and need none."""
    last = {"farthest": centre_cosine, "nearest": -centre_cosine, "random": pool.lot("keeper"), "uid": None}[keeper]
    return pool.keeper_order(prefer, last)


def _centre_cosine(n: int, edges: Edges) -> np.ndarray:
    cosine = np.zeros(n)
    cosine[edges.a], cosine[edges.b] = edges.columns["a_centre"], edges.columns["b_centre"]
    return cosine


def _find(
    pool: Pool, z: Vectors, clusters: int | None, floor: float, min_cosine: float, keep: Share | None, keeper: str, prefer: builtins.list[Preferred], recall: float, max_edges: int
) -> Edges:  # fmt: skip
    """All pairs down to the floor; of a crowd those that decide at `min_cosine`."""
    n, limit = len(pool), limit_of(len(pool), max_edges)
    k = clusters or (1 if n <= ONE_CLUSTER else round(n**0.5))
    needed = forecast(Size(n, [z.dim], pool.memory), clusters=k)
    require("dedup.semantic", needed, pool.memory)
    order = np.argsort(_keeper_order(pool, keeper, prefer, np.zeros(n)))  # equal rows are as far from the centre as each other
    first = np.empty(n, np.int64)
    first[order] = order[equal_rows(z.subset(order))]
    heads = np.flatnonzero(first == np.arange(n))
    heads_z, by_uid = z.subset(heads), np.full(n, n)
    np.minimum.at(by_uid, first, pool.uid_rank)  # whoever stands for its equals: rows are drawn for the clusters by the first uid of the set

    def cluster() -> State:
        centres, found = cells(
            heads_z, k, uid_rank=np.argsort(np.argsort(by_uid[heads])), rng=pool.rng("clusters"), floor=floor, recall=recall, memory=pool.memory,
            device=pool.device, where="dedup.semantic",
        )  # fmt: skip
        return centres.stored(slice(0, len(centres))), found.home, found.visitor, found.visited

    centres, home, visitor, visited = pool.once("clusters", cluster)
    inside = Cells(home, visitor, visited)
    found = pairs_inside(
        heads_z, inside, floor, limit, pool.scan, pool.device, pool.known(first)[heads], pool.memory - needed.memory, "dedup.semantic"
    )
    is_copied = np.bincount(first, minlength=n)[heads] > 1
    in_play = np.arange(len(heads)) if found is None else np.union1d(np.concatenate(found[:2]), np.flatnonzero(is_copied))
    cosine = np.zeros(n)
    cosine[heads[in_play]] = heads_z.cosine(in_play, Vectors.of(centres), home[in_play])
    cosine = cosine[first]
    rank = _keeper_order(pool, keeper, prefer, cosine)

    def of_a_crowd() -> Pairs:
        if keep is not None:
            raise Refusal(
                "does-not-fit", "dedup.semantic", f"more than {limit} pairs reach floor_cosine {floor}", "a threshold for `keep` is found among all of them",
                "Raise floor_cosine or max_edges, or give min_cosine instead",
            )  # fmt: skip
        a, b, score = thinned(heads_z, inside, min_cosine, rank[heads], pool.fixed[heads], max_edges, pool.once, pool.device)
        return heads[a], heads[b], score

    pairs = None if found is None else (heads[found[0]], heads[found[1]], found[2])
    a, b, score, equal, is_complete = spread(pairs, of_a_crowd, first, rank, limit, pool.memory - needed.memory, "dedup.semantic")
    return Edges(a, b, score, {"is_equal": equal, "is_complete": np.full(len(a), is_complete), "a_centre": cosine[a], "b_centre": cosine[b]})


def _threshold_for(keep: Share, pool: Pool, rank: np.ndarray, edges: Edges, floor: float) -> float:
    """A multiple of 1 / STEPS at which no more than `keep` rows stay, and at the next more, by bisection; all rows: just above 1.

    What stays does not always grow with the threshold, so where too many stay at the floor, some higher ones are tried before it is refused.
    """
    budget = max(keep.of(len(pool)), int(pool.fixed.sum()))

    def kept(step: int) -> int:
        close = edges.score >= step / STEPS
        return int(star(rank, [(edges.a[close], edges.b[close], edges.score[close])], fixed=pool.fixed)[0].sum())

    low, high = int(np.ceil(floor * STEPS)), STEPS + 1
    low = next((step for step in np.linspace(low, STEPS, TRIES).astype(int).tolist() if kept(step) <= budget), -1)
    if low < 0:
        raise Refusal(
            "bad-value", "dedup.semantic", f"keep asks for {budget} of {len(pool)} rows, and {kept(int(np.ceil(floor * STEPS)))} stay even at floor_cosine {floor}",
            "a share that the floor can reach", "Lower floor_cosine",
        )  # fmt: skip
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) <= budget else (low, middle)
    return low / STEPS
