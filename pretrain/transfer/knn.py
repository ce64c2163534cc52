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
        held, reference, truth = train.take(choose), train.take(fit), train.label[choose]
        near, s = neighbours(reference, held, [min(n, len(fit)) for n in grid])
        right = [float((guesses(reference, held, near[:, :n], s[:, :n], num_classes, temperature) == truth).mean()) for n in grid]
        best, validation = grid[int(np.argmax(right))], max(right)
    guess = guesses(train, test, *neighbours(train, test, [best]), num_classes, temperature)
    return Scores((guess == test.label).astype(np.float64), {"k": best, "temperature": temperature, "validation": validation})


def guesses(train: Features, test: Features, near: np.ndarray, s: np.ndarray, num_classes: int, temperature: float) -> np.ndarray:
    """(m,) class of each test row by the vote of rows `near` with cosines `s`, both (m, k); a close vote is counted again in float64."""
    label = train.label[near]
    share = votes(s, label, num_classes, temperature)
    top = np.sort(share, axis=1)[:, -2:]
    close = np.flatnonzero(top[:, -1] - top[:, 0] < 10 * CLOSE) if num_classes > 1 else np.empty(0, np.int64)
    if len(close):
        exact = _exact(unit(train.z), unit(test.z[close]), near[close])
        share[close] = np.round(votes(exact, label[close], num_classes, temperature), 9)
    return share.argmax(1)


def neighbours(train: Features, test: Features, ks: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, cosines) (m, max k): for each k of `ks` the first k are the k nearest training rows; equal cosines by uid (rows are sorted by it)."""
    one, two = unit(train.z), unit(test.z)
    k = min(max(ks), len(one))
    near, cosine = np.empty((len(two), k), np.int64), np.empty((len(two), k))
    small = one.astype(np.float32)
    step = max(1, (32 << 20) // (4 * len(one)))
    for start in range(0, len(two), step):
        rows = slice(start, min(start + step, len(two)))
        near[rows], cosine[rows] = _block(one, small, two[rows], k, sorted(set(ks)))
    return near, cosine


def _block(one: np.ndarray, small: np.ndarray, two: np.ndarray, k: int, ks: list[int]) -> tuple[np.ndarray, np.ndarray]:
    import torch

    proposed = min(k + SPARE, len(one))
    product = torch.from_numpy(two.astype(np.float32)) @ torch.from_numpy(small).T
    value, row = (x.numpy() for x in product.topk(proposed, dim=1))
    near, found = row[:, :k].copy(), value[:, :k].astype(np.float64)
    cuts = [n for n in ks if n < len(one)]
    doubtful = np.zeros(len(two), bool)
    for n in cuts:
        doubtful |= value[:, n - 1] - value[:, min(n, proposed - 1)] < CLOSE
    beyond = (value[:, k - 1] - value[:, -1] < CLOSE) & (proposed < len(one))  # more rows are as near than were proposed: all of them are asked
    chosen = np.flatnonzero(doubtful & ~beyond)
    near[chosen], found[chosen] = _decided(one, two[chosen], row[chosen], k)
    for i in np.flatnonzero(beyond):
        candidates = np.flatnonzero(product[i].numpy() >= value[i, k - 1] - CLOSE)
        near[i : i + 1], found[i : i + 1] = _decided(one, two[i : i + 1], candidates[None], k)
    return near, found


def _decided(one: np.ndarray, two: np.ndarray, row: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the proposed rows by their float64 cosine (to nine decimals), then by row."""
    row = np.sort(row, axis=1)
    cosine = _exact(one, two, row)
    order = np.argsort(-np.round(cosine, 9), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(row, order, 1), np.take_along_axis(cosine, order, 1)


def _exact(one: np.ndarray, two: np.ndarray, row: np.ndarray) -> np.ndarray:
    """float64 cosines of each test row with the training rows `row` (m, k)."""
    out = np.empty(row.shape)
    step = max(1, (32 << 20) // (8 * one.shape[1] * row.shape[1]))
    for start in range(0, len(two), step):
        part = slice(start, start + step)
        out[part] = np.matmul(one[row[part]], two[part, :, None])[:, :, 0]
    return out


def votes(s: np.ndarray, label: np.ndarray, num_classes: int, temperature: float) -> np.ndarray:
    """(m, classes) share of each class in the sum of exp(s / temperature); s and label (m, k)."""
    weight = np.exp((s - s.max(1, keepdims=True)) / temperature)
    cell = np.arange(len(s))[:, None] * num_classes + label
    total = np.bincount(cell.ravel(), weight.ravel(), len(s) * num_classes).reshape(len(s), num_classes)
    return total / total.sum(1, keepdims=True)


def unit(z: np.ndarray) -> np.ndarray:
    """Rows of norm 1 in float64; a zero row stays zero."""
    z = z.astype(np.float64)
    norm = np.linalg.norm(z, axis=1, keepdims=True)
    return z / np.where(norm > 0, norm, 1)
