"""How a decision's budget is shared out: over the groups of `within`, and over the generations of a run that grew."""

from typing import Any

import numpy as np

from curate.pool import Share
from curate.recipe import ResolvedStage
from manifests.quotas import largest_remainder

Call = tuple[str, np.ndarray, dict[str, Any]]  # group, local rows, parameters


def calls(stage: ResolvedStage, groups: np.ndarray, settled: np.ndarray, gone: np.ndarray) -> list[Call]:
    """Each call of a decision: one for all rows, or one a value of `within` in sorted order.

    groups      (n,) text: the group of each judged row; empty text where the stage has no `within`
    settled     (n,) bool: rows that an earlier generation kept
    gone        (m,) text: the groups of rows that earlier generations dropped here. A fraction is of all rows that came so far, a count is a count of
                the whole: both know of them
    """
    if not stage.within:
        return [("", np.arange(len(groups)), _of_all(stage.parameters, len(groups), len(gone)))]
    names, inverse = (
        np.unique(np.concatenate([groups, gone]).astype(str), return_inverse=True) if len(groups) else (np.array([], str), np.zeros(0, int))
    )
    here, size = inverse[: len(groups)], np.bincount(inverse, minlength=len(names))
    used = np.bincount(here, weights=settled, minlength=len(names)).astype(np.int64)
    counts = {name: shared_out(v.count, size, used) for name, v in stage.parameters.items() if isinstance(v, Share) and v.count is not None}
    found, order = [], np.argsort(here, kind="stable")
    ends = np.searchsorted(here[order], np.arange(len(names) + 1))
    for number, name in enumerate(names):
        local = order[ends[number] : ends[number + 1]]
        if len(local):
            own = {
                **_of_all(stage.parameters, len(local), int(size[number]) - len(local)),
                **{p: Share(count=int(c[number])) for p, c in counts.items()},
            }
            found.append((str(name), local, own))
    return found


def _of_all(parameters: dict[str, Any], rows: int, gone: int) -> dict[str, Any]:
    """`parameters` with each fraction as the count that it is of `rows` and of those that are gone."""
    if not gone:
        return parameters
    return {name: Share(count=v.of(rows + gone)) if isinstance(v, Share) and v.count is None else v for name, v in parameters.items()}


def shared_out(total: int, sizes: np.ndarray, used: np.ndarray) -> np.ndarray:
    """`total` shared out over groups in proportion to their sizes, by largest remainder (ties: the earlier group).

    A group whose share is less than what is `used` of it already gets that, and the others share what is left.
    """
    counts, free = used.astype(np.int64), np.ones(len(sizes), bool)
    while free.any():
        among = np.where(free, sizes, 0)
        everyone = int(among.sum())
        rest = min(max(total - int(counts[~free].sum()), 0), everyone)
        share = largest_remainder(rest * among, max(everyone, 1), rest)
        below = free & (share < used)
        if not below.any():
            return np.where(free, share, counts)
        free &= ~below
    return counts
