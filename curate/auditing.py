"""`curate audit`: one command on anybody's images. Ingest, measures, duplicates, quality findings as suggestions, one report."""

import os
from pathlib import Path

from curate.building import build
from curate.sweeping import sweep
from manifests.run import Run


def audit(source: str, *, out: Path | None = None, workers: int | None = None, quiet: bool = False) -> Run:
    """Audit a folder of images, a table, a pool or shards: no recipe, no weights; writes `out/pool` (where it has to), `out/run` and its report.

    The recipe is the shipped `audit`: exact and perceptual duplicates are dropped in the ledger, quality findings are suggestions only,
    and no shards are written: nothing of yours is changed. Up to a million rows x limits, what other limits would drop is folded too (`curate replay --sweep`).
    """
    from manifests.replays import AUTOMATIC
    from manifests.report.page import report

    folder = out or Path("audits") / (Path(os.path.abspath(source.split("?")[0])).name.removesuffix(".tar") or "pool")
    pool = source
    if not (source.endswith(".tar") or os.path.exists(os.path.join(source, "pool.yaml")) or "://" in source):
        from curate.ingest.ingest import ingest

        pool = str(folder / "pool")
        ingest(source, to=folder / "pool", samples_per_shard=1_000)  # many shards: many workers, and progress
    run = build("audit", pool=pool, out=folder / "run", workers=workers, quiet=quiet)
    sweep(run.path, most=AUTOMATIC, quiet=quiet)
    report(run.path)
    return run
