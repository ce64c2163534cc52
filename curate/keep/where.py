"""Keep the rows for which a SQL expression holds."""

import numpy as np
import pyarrow as pa

from curate.pool import Expression, Pool, Verdicts
from manifests.expression import evaluate
from manifests.vectors.forecast import linear

REASONS = ("where",)
WRITES = {"where_holds": pa.bool_()}
GROWS = "equal"
forecast = linear


def where(pool: Pool, *, keep: Expression) -> Verdicts:
    """Keep the rows for which a true-or-false SQL expression over columns holds.

    Decides     dropped ("where") when the expression is false. Where it is null (it compares with a missing value), the row is kept, unjudged:
                write `col IS NOT NULL AND ...` to drop it. Protected rows are kept. No score, no threshold, no witness.
    Guarantee   a row's verdict depends on that row alone: no subquery, window, aggregate, clock, chance or file is allowed in.
    Source      none needed: a filter, as DuckDB evaluates it
    keep        one DuckDB expression, such as "width >= 64 AND licence <> 'unknown'"; names without regard to case; `truth_*` is refused
    Writes      where_holds: bool, what the expression said; null = unjudged
    Cost        one pass over the columns that the expression names
    Errors      [bad-sql], [unknown-column], [truth-column]
    """
    holds = evaluate(keep, pool.table, "keep.where: keep", len(pool))
    said_no = np.asarray(holds.fill_null(True).to_numpy(zero_copy_only=False) == np.False_)
    return Verdicts(keep=~said_no | pool.fixed, reason="where", columns={"where_holds": holds}, unjudged=np.asarray(holds.is_null()))
