"""Nearest neighbours by cosine: exact, blocked, the same for every block shape, thread and device.

float32 proposes a few more than k candidates with one matrix product a tile; float64 (exact, see `store`) puts them in order. A query
whose k-th and first unproposed neighbour lie too close together for float32 is decided by float64 over all of the base.
"""

from collections.abc import Iterator

import numpy as np

from manifests.vectors.products import held, unit
from manifests.vectors.store import Vectors, float32_error, normalised
from manifests.vectors.tiles import reaching, to_device

QUERIES, BASE = 2048, 4096  # rows of a tile
BASE_THERE = 1 << 17  # of one on a device that holds the base
RANGE = 512  # queries of a tile of which every pair may be wanted
SPARE = 16  # candidates beyond k
TOGETHER = 256  # queries whose candidates a device decides at once


def knn(
    queries: Vectors,
    base: Vectors,
    k: int,
    *,
    exclude_self: bool = False,
    query_uid_rank: np.ndarray | None = None,
    base_uid_rank: np.ndarray | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """The k base rows with the highest cosine to each query, best first; ties go to the smaller uid.

    exclude_self      leave out the query itself: the base row of the same uid rank where both ranks are given, else of the same number
    query_uid_rank    (n,) int64, only for `exclude_self`
    base_uid_rank     (m,) int64: the order of the base's uids (default: its row order)
    device            where float32 proposes: "cpu" (numpy) or a torch device, where float64 decides too if it holds the base (exact sums are the same anywhere)

    Returns score (n, k) float64, row (n, k) int64; where the base has fewer than k rows the rest is -inf and -1.
    Cost     n * m * d multiply-adds; 16 k bytes a query, and 2048 * 4096 float32 at work
    """
    n, m = len(queries), len(base)
    rank = np.arange(m) if base_uid_rank is None else np.asarray(base_uid_rank, np.int64)
    own = _self_rows(n, m, query_uid_rank, base_uid_rank) if exclude_self else np.full(n, -1, np.int64)
    score, row = np.full((n, k), -np.inf), np.full((n, k), -1, np.int64)
    if not (n and m and k):
        return score, row
    width = min(m, k + SPARE + int(exclude_self))
    for start in range(0, n, QUERIES):
        at = np.arange(start, min(start + QUERIES, n))
        block = queries.unit(slice(start, at[-1] + 1))
        if device == "cpu":
            low, proposed = _propose(block, base, width)
            exact = queries.cosine(np.repeat(at, width), base, proposed.reshape(-1)).reshape(proposed.shape)
        else:
            low, proposed, exact = _propose_torch(queries, at, block, base, width, device)
        exact[proposed == own[at, None]] = -np.inf
        order = np.lexsort((rank[proposed], -exact), axis=1)[:, :k]
        here, found = np.take_along_axis(exact, order, 1), np.take_along_axis(proposed, order, 1)
        found = np.where(np.isneginf(here), -1, found)
        score[at, : here.shape[1]], row[at, : here.shape[1]] = here, found
        if width < m:
            unsure = at[here[:, -1] <= low + float32_error(base.dim)]
            if len(unsure):
                score[unsure], row[unsure] = _all_in_float64(queries, unsure, base, k, rank, own[unsure])
    return score, row


def _self_rows(n: int, m: int, query_rank: np.ndarray | None, base_rank: np.ndarray | None) -> np.ndarray:
    """(n,) the base row that is the query itself, -1 where there is none."""
    if query_rank is None or base_rank is None:
        assert n == m, "exclude_self without uid ranks needs the same rows on both sides"
        return np.arange(n)
    order = np.argsort(base_rank, kind="stable")
    at = np.minimum(np.searchsorted(base_rank[order], query_rank), m - 1)
    return np.where(base_rank[order[at]] == query_rank, order[at], -1)


def _tiles(base: Vectors) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(base), BASE):
        yield start, base.unit(slice(start, min(start + BASE, len(base))))


def _propose(block: np.ndarray, base: Vectors, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(b,) the score that no unproposed row exceeds and (b, width) proposed rows, by float32."""
    top = np.full((len(block), width), -np.inf, np.float32)
    row = np.zeros((len(block), width), np.int64)
    room = np.empty(len(block) * min(BASE, len(base)), np.float32)  # for one tile after the other: fresh memory costs a good part of the product
    for start, tile in _tiles(base):
        scores = np.matmul(block, tile.T, out=room[: len(block) * len(tile)].reshape(len(block), len(tile)))
        if start == 0 and scores.shape[1] >= width:
            row = np.argpartition(scores, scores.shape[1] - width, axis=1)[:, -width:]
            top = np.take_along_axis(scores, row, 1)
            continue
        low = top.min(1)
        hit = np.flatnonzero(scores.max(1) > low)
        queries, columns = np.nonzero(scores[hit] > low[hit, None])
        if not len(queries):
            continue
        count = np.bincount(queries, minlength=len(hit))
        place = np.arange(len(queries)) - (np.cumsum(count) - count)[queries] + width
        wide, wide_row = np.full((len(hit), width + count.max()), -np.inf, np.float32), np.zeros((len(hit), width + count.max()), np.int64)
        wide[:, :width], wide_row[:, :width] = top[hit], row[hit]
        wide[queries, place], wide_row[queries, place] = scores[hit[queries], columns], columns + start
        best = np.argpartition(wide, wide.shape[1] - width, axis=1)[:, -width:]
        top[hit], row[hit] = np.take_along_axis(wide, best, 1), np.take_along_axis(wide_row, best, 1)
    return top.min(1), row


def _propose_torch(
    queries: Vectors, at: np.ndarray, block: np.ndarray, base: Vectors, width: int, device: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`_propose` on a torch device for the query rows `at`, which are `block` in float32; and (b, width) float64 the cosines of what is proposed."""
    import torch

    assert not torch.backends.cuda.matmul.allow_tf32, "TF32 is coarser than float32_error"
    query, there = to_device(block, device), held(base, device)
    top = torch.full((len(block), 0), -torch.inf, device=device)
    row = torch.zeros((len(block), 0), dtype=torch.int64, device=device)
    step = BASE if there is None else BASE_THERE
    for start in range(0, len(base), step):
        scores = query @ unit(base, slice(start, min(start + step, len(base))), device).T
        best, place = scores.topk(min(width, scores.shape[1]), dim=1)
        top, row = torch.cat([top, best], 1), torch.cat([row, place + start], 1)
        top, place = top.topk(min(width, top.shape[1]), dim=1)
        row = row.gather(1, place)
    low, proposed = top.min(1).values.cpu().numpy(), row.cpu().numpy()
    if there is None:
        return low, proposed, queries.cosine(np.repeat(at, width), base, proposed.reshape(-1)).reshape(proposed.shape)
    wide = to_device(queries.stored(at), device).double()
    dot = [(one[:, None] * there[some].double()).sum(2) for one, some in zip(wide.split(TOGETHER), row.split(TOGETHER), strict=True)]
    return low, proposed, normalised(torch.cat(dot).cpu().numpy(), queries.square[at, None], base.square[proposed])


def _all_in_float64(queries: Vectors, at: np.ndarray, base: Vectors, k: int, rank: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the query rows `at` by float64 over the whole base."""
    score, row = np.full((len(at), k), -np.inf), np.full((len(at), k), -1, np.int64)
    step = max(1, min(len(at), (1 << 23) // len(base)))  # 64 MiB of scores
    for start in range(0, len(at), step):
        here = at[start : start + step]
        block, exact = queries.take64(here), np.empty((len(here), len(base)))
        for first in range(0, len(base), BASE):
            columns = slice(first, min(first + BASE, len(base)))
            exact[:, columns] = normalised(block @ base.stored(columns).astype(np.float64).T, queries.square[here, None], base.square[None, columns])
        for i, scores in enumerate(exact):
            if own[start + i] >= 0:
                scores[own[start + i]] = -np.inf
            near = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k]) if k < len(scores) else np.arange(len(scores))
            best = near[np.lexsort((rank[near], -scores[near]))][:k]
            score[start + i, : len(best)] = scores[best]
            row[start + i, : len(best)] = np.where(np.isneginf(scores[best]), -1, best)
    return score, row


def pairs_within(queries: Vectors, base: Vectors, floor: float, device: str = "cpu") -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Blocks (query, base row, cosine float64) of all pairs with a cosine of at least `floor`, exactly.

    Where rows are equal on both sides they multiply: give one of each. Cost: n * m * d multiply-adds, and a pair in float64 each
    """
    error = float32_error(base.dim)
    for start in range(0, len(queries), RANGE):
        block = queries.unit(slice(start, min(start + RANGE, len(queries))))
        for first, tile in _tiles(base):
            query, row, _ = reaching(block, tile, floor - error, device)
            cosine = queries.cosine(query + start, base, row + first)
            hit = cosine >= floor
            yield query[hit] + start, row[hit] + first, cosine[hit]
