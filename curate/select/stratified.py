"""Keep a random sample in which every class has its share."""

import numpy as np
import pyarrow as pa

from curate.pool import Column, Pool, Share, Verdicts
from manifests.errors import Refusal
from manifests.quotas import largest_remainder
from manifests.vectors.forecast import linear

REASONS = ("not_drawn",)
WRITES: dict[str, pa.DataType] = {}
GROWS = "differs"
forecast = linear


def stratified(pool: Pool, *, keep: Share, by: Column = Column("label"), min_per_class: int = 0) -> Verdicts:  # noqa: B008
    """Keep rows drawn at random inside each class, each class in proportion to its size, and never below a floor.

    Decides     dropped ("not_drawn") when not drawn inside its class. Protected rows are kept first and counted in their class. No score, no witness.
    Guarantee   exactly `keep` rows (more only where more are protected). Without a floor every class gets its exact share rounded down or up: shares are cut
                by largest remainder, a tie goes to the class that sorts first. A class smaller than the floor is kept whole.
    Source      Bowley 1926 (proportional allocation); Hamilton's largest remainders
    keep        how many to keep: a count (10000) or a fraction of the live rows (0 < 0.3 <= 1)
    by          the column whose values are the classes
    min_per_class   every class keeps at least this many; the others share what is left
    Cost        one sort of the rows
    Errors      [bad-value] where the floors of all classes need more rows than `keep` allows
    """
    classes, member = np.unique(pool.column(by), return_inverse=True)
    size = np.bincount(member, minlength=len(classes))
    protected = np.bincount(member, weights=pool.fixed, minlength=len(classes)).astype(np.int64)
    budget = max(keep.of(len(pool)), int(protected.sum()))
    floor = np.minimum(size, min_per_class)
    if np.maximum(floor, protected).sum() > budget:
        raise Refusal(
            "bad-value", "select.stratified", f"min_per_class {min_per_class} needs {int(np.maximum(floor, protected).sum())} rows of {len(classes)} classes",
            f"keep allows {budget}", "Raise keep or lower min_per_class",
        )  # fmt: skip
    quota = shares(size, budget, np.maximum(floor, protected))

    drawn = pool.rng("draw").permutation(len(pool))[pool.uid_rank]
    order = np.lexsort((drawn, ~pool.fixed, member))
    place = np.arange(len(pool)) - np.repeat(np.cumsum(size) - size, size)  # place inside its class
    kept = np.zeros(len(pool), bool)
    kept[order[place < quota[member[order]]]] = True
    return Verdicts(keep=kept, reason="not_drawn", weight=np.ones(len(pool), np.float32))


def shares(size: np.ndarray, budget: int, floor: np.ndarray) -> np.ndarray:
    """(classes,) int64: `budget` cut in proportion to `size` (classes,) int64, none below `floor`, by largest remainder.

    A class whose proportional share lies below its floor gets the floor, and the rest is cut again among the others, until none lies below.
    """
    quota = floor.astype(np.int64)
    free = size > floor
    while free.any():
        rest = budget - int(quota[~free].sum())
        below = free & (rest * size < floor * int(size[free].sum()))  # whole numbers: no rounding decides
        if not below.any():
            quota[free] = largest_remainder(rest * size[free], int(size[free].sum()), rest)
            return quota
        free &= ~below
    return quota
