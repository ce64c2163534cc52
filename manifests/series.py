"""Rows that belong together and stand in an order: the slices of a volume, the frames of a video."""

import re

import numpy as np


def natural_rank(values: np.ndarray) -> np.ndarray:
    """(n,) int64: the place of each value in numeric order; equal values share a place.

    Numbers are ordered as numbers. In text each run of digits counts as a number, so that "slice 10" comes after "slice 2" and "07" stands with "7".
    """
    if values.dtype != object:
        return np.unique(values, return_inverse=True)[1].astype(np.int64)
    key = {value: _natural(str(value)) for value in set(values.tolist())}
    place = {k: i for i, k in enumerate(sorted(set(key.values())))}
    return np.array([place[key[value]] for value in values.tolist()], np.int64)


def _natural(text: str) -> tuple[str | tuple[int, str], ...]:
    """Text and numbers by turns. A number is its length and its digits: no run of digits is too long for that."""
    parts = re.split("([0-9]+)", text)
    return tuple((len(p.lstrip("0")), p.lstrip("0")) if i % 2 else p for i, p in enumerate(parts))


def walks(group: np.ndarray, order: np.ndarray, uid_rank: np.ndarray, fixed: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
    """The rows of each group in the order of a walk: protected rows, then numeric order of `order`, then uid.

    Returns rank (n,) int64, the place of each row in all walks one after the other, and the rows (m,) int64 of each group in its order.
    """
    member = np.unique(_whole(group), return_inverse=True)[1]
    at = np.lexsort((uid_rank, natural_rank(_whole(order)), ~fixed, member))
    rank = np.empty(len(at), np.int64)
    rank[at] = np.arange(len(at))
    return rank, np.split(at, np.flatnonzero(np.diff(member[at])) + 1) if len(at) else []


def _whole(values: np.ndarray) -> np.ndarray:
    """One value a row: the bytes of a fixed binary (n, w) are one."""
    return values if values.ndim == 1 else np.ascontiguousarray(values).view(np.dtype((np.void, values.shape[1])))[:, 0]
