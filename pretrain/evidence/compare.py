"""`pretrain compare PLAN`: train every arm, seed by seed, test it, and judge. (Signatures first; body follows.)"""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

Runner = Callable[[str, int, str], pa.Table]  # (arm, seed, objective) -> columns task, sample_uid, value, cluster


def compare(
    plan: Path, *, out: Path | None = None, seeds: int | None = None, jobs: int | None = None, device: str = "auto", runner: Runner | None = None
) -> Path:
    """Train and test every arm of PLAN, one seed of each after the other, and write the verdict; returns the evidence folder.

    The seam to `pretrain.train.train(config)`: data = [RUN] with `uids` = a Parquet file with column uid; the rows are read from
    RUN's ledger by these uids WHATEVER their status (the full and random arms hold dropped rows too). Without `uids`, [RUN] means its kept rows.
    The verb prints `pretrain.evidence.table.table(folder)`.
    """
    raise NotImplementedError
