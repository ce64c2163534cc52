"""Weighted k-nearest-neighbour vote in feature space."""

import numpy as np

from pretrain.transfer.features import Features, Scores

SPARE = 16  # places beyond k that float32 may propose before float64 decides
CLOSE = 1e-4


def knn(train: Features, test: Features, *, k: list[int] | None = None, temperature: float = 0.07) -> Scores:
    """Score 1 where the weighted vote of the k nearest training samples gives the test sample's label, else 0.

    score_c(q) = sum over the k nearest j with y_j = c of exp(cosine(q, j) / temperature); the class with the largest sum wins.

    Guarantee    a tie in the vote goes to the lowest class, a tie at rank k to the smallest uid; neighbours proposed in float32 are ranked in float64, so block
                 shape and threads do not matter. Test labels are read once, after k is fixed
    Source       the protocol of InstDisc and DINO (Wu et al. 2018; Caron et al. 2021)
    train, test  features; normalised here
    k            neighbours to choose from, by accuracy on a stratified fifth of train; a tie goes to the first; default 20, 10, 5, 50, 100, 200
    temperature  of the weights
    Cost         one product of all pairs in float32
    """
    grid = [n for n in (k or [20, 10, 5, 50, 100, 200]) if n < len(train)] or [1]
    num_classes = int(max(train.label.max(), test.label.max())) + 1
    fit, choose = train.halves()
    best, validation = grid[0], float("nan")
    if len(choose) and len(fit):
        near, s = neighbours(train.take(fit), train.take(choose), min(max(grid), len(fit)))
        truth, voters = train.label[choose], train.label[fit][near]
        right = [float((vote(s[:, :n], voters[:, :n], num_classes, temperature) == truth).mean()) for n in grid]
        best, validation = grid[int(np.argmax(right))], max(right)
    near, s = neighbours(train, test, best)
    guess = vote(s, train.label[near], num_classes, temperature)
    return Scores((guess == test.label).astype(np.float64), {"k": best, "temperature": temperature, "validation": validation})


def neighbours(train: Features, test: Features, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows, cosines) of the k nearest training rows of each test row, (m, k), nearest first; equal cosines by uid (rows are sorted by it)."""
    one, two = unit(train.z), unit(test.z)
    k = min(k, len(one))
    near, cosine = np.empty((len(two), k), np.int64), np.empty((len(two), k))
    step = max(1, (64 << 20) // (4 * len(one)))
    for start in range(0, len(two), step):
        rows = slice(start, min(start + step, len(two)))
        near[rows], cosine[rows] = _block(one, two[rows], k)
    return near, cosine


def _block(one: np.ndarray, two: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    proposed = min(k + SPARE, len(one))
    value, row = torch.from_numpy(two.astype(np.float32) @ one.astype(np.float32).T).topk(proposed, dim=1)
    near, found = _decided(one, two, row.numpy())
    if proposed < len(one):  # the last one proposed may be as near as the k-th: then every row is asked
        doubtful = np.flatnonzero(value[:, k - 1].numpy() - value[:, -1].numpy() < CLOSE)
        for i in doubtful:
            candidates = np.flatnonzero(one.astype(np.float32) @ two[i].astype(np.float32) >= value[i, k - 1].item() - CLOSE)
            n, f = _decided(one, two[i : i + 1], candidates[None])
            near[i, :k], found[i, :k] = n[0, :k], f[0, :k]
    return near[:, :k], found[:, :k]


def _decided(one: np.ndarray, two: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Proposed rows ranked by their float64 cosine, then by row."""
    row = np.sort(row, axis=1)
    cosine = np.matmul(one[row], two[:, :, None])[:, :, 0]
    order = np.argsort(-cosine, axis=1, kind="stable")
    return np.take_along_axis(row, order, 1), np.take_along_axis(cosine, order, 1)


def vote(s: np.ndarray, label: np.ndarray, num_classes: int, temperature: float) -> np.ndarray:
    """(m,) class with the largest sum of exp(s / temperature), the lowest of equal ones; s and label (m, k)."""
    weight = np.exp((s - s[:, :1]) / temperature)
    cell = np.arange(len(s))[:, None] * num_classes + label
    return np.bincount(cell.ravel(), weight.ravel(), len(s) * num_classes).reshape(len(s), num_classes).argmax(1)


def unit(z: np.ndarray) -> np.ndarray:
    """Rows of norm 1 in float64; a zero row stays zero."""
    z = z.astype(np.float64)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    return z / np.where(norm > 0, norm, 1)
