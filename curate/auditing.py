"""`curate audit`: one command on anybody's images. Ingest, measures, duplicates, quality findings as suggestions, one report."""

import json
import os
from pathlib import Path
from typing import Any

from curate.building import build
from curate.sweeping import sweep
from manifests.errors import Refusal
from manifests.run import Run

COUNTS = ("source", "place", "finished", "samples", "shards", "shards_packed", "bytes", "labelled", "classes", "sources", "columns", "sidecar_rows")


def _folder(source: str, out: Path | None) -> Path:
    """Where an audit of `source` writes."""
    return out or Path("audits") / (Path(os.path.abspath(source.split("?")[0])).name.removesuffix(".tar") or "pool")


def pool_made(source: str, out: Path | None = None) -> Path | None:
    """The pool that an audit makes of `source`; None where that is a pool or shards already."""
    if source.endswith(".tar") or os.path.exists(os.path.join(source, "pool.yaml")) or "://" in source:
        return None
    return _folder(source, out) / "pool"


def left_out(pool: Path) -> dict[str, Any]:
    """What the ingest that made `pool` noted beside its counts: what it left out, links followed, columns taken, samples that it could not read."""
    noted = json.loads((pool / "ingest.json").read_text(encoding="utf-8"))
    return {name: value for name, value in noted.items() if name not in COUNTS and value}


def audit(source: str, *, out: Path | None = None, workers: int | None = None, quiet: bool = False) -> Run:
    """Audit a folder of images, a table, a pool or shards: no recipe, no weights; writes `out/pool` (where it has to), `out/run` and its report.

    The recipe is the shipped `audit`: exact and perceptual duplicates are dropped in the ledger, quality findings are suggestions only,
    and no shards are written: nothing of yours is changed. Up to a million rows x limits, what other limits would drop is folded too (`curate replay --sweep`).
    """
    from manifests.replays import AUTOMATIC
    from manifests.report.page import report

    folder, made = _folder(source, out), pool_made(source, out)
    if made is not None:
        from curate.ingest.ingest import ingest

        try:
            ingest(source, to=made, samples_per_shard=1_000, quiet=quiet)  # many shards: many workers
        except Refusal as refusal:  # who audits has said nothing of --to
            cure = refusal.cure.replace("Give another --to", "Give another --out")
            raise Refusal(refusal.slug, refusal.where, refusal.given, refusal.allowed, cure) from refusal
    run = build("audit", pool=source if made is None else str(made), out=folder / "run", workers=workers, quiet=quiet)
    sweep(run.path, most=AUTOMATIC, quiet=quiet)
    report(run.path)
    return run
