"""Keep a random sample: the yardstick of every other selection."""

import numpy as np
import pyarrow as pa

from curate.pool import Pool, Share, Verdicts
from manifests.vectors.forecast import linear

REASONS = ("not_drawn",)
WRITES: dict[str, pa.DataType] = {}
GROWS = "differs"
forecast = linear


def random(pool: Pool, *, keep: Share) -> Verdicts:
    """Keep rows drawn at random without replacement, every row with the same chance.

    Decides     dropped ("not_drawn") when not drawn. Protected rows are kept first and counted in the budget. No score, no witness.
    Guarantee   exactly `keep` rows (more only where more are protected). The draw depends on seed, stage and uids, not on shard order; with the same seed a
                smaller sample is a subset of a larger one.
    Source      simple random sampling without replacement
    keep        how many to keep: a count (10000) or a fraction of the live rows (0 < 0.3 <= 1)
    Cost        one sort of the rows
    """
    drawn = pool.rng("draw").permutation(len(pool))[pool.uid_rank]  # a place in the urn for each row, by uid
    order = np.lexsort((drawn, ~pool.fixed))
    kept = np.zeros(len(pool), bool)
    kept[order[: max(keep.of(len(pool)), int(pool.fixed.sum()))]] = True
    return Verdicts(keep=kept, reason="not_drawn", weight=np.ones(len(pool), np.float32))
