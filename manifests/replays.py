"""What a run would be at other thresholds: `curate replay RUN --sweep` folds each stop of a slider through all later stages and writes one table a stage here.

The floor only says how such a table looks, and which of them are of the run as it stands; the report draws them.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.digest import digest
from manifests.publish import published_digest
from manifests.run import Run

VERSION = 1  # raised when the choice of stops, or of the samples that are followed, changes
AUTOMATIC = 1_000_000  # rows x stops that `curate audit` folds without being asked: about 12 CPU seconds

STOP = pa.schema([
    ("stage", pa.string()), ("parameter", pa.string()), ("value", pa.float64()), ("is_run", pa.bool_()),  # is_run: the value that the run was made with
    ("refused", pa.string()),  # why there is no fold at this value; then all numbers are null
    ("kept", pa.int64()), ("dropped", pa.int64()), ("quarantined", pa.int64()), ("changed", pa.int64()),  # changed: samples with another fate than in the run
    ("funnel", pa.list_(pa.struct([("stage", pa.string()), ("in", pa.int64()), ("dropped", pa.int64()), ("left", pa.int64())]))),
    ("held", pa.list_(pa.struct([("uid", pa.string()), ("status", pa.string()), ("stage", pa.string()), ("reason", pa.string())]))),  # those with a card
])  # fmt: skip


def replays_path(run: Run, stage: str) -> Path:
    """Where the stops of a stage lie."""
    return run.path / "replays" / f"{stage}.parquet"


def replays_digest(run: Run, stage: str) -> str:
    """What the stops of a stage follow from: every stage of the run with its parameters, its version and what it read, which is in its digest."""
    made_of = [[s.id, s.name, s.version, s.digest, s.digests] for s in run.stages]
    return digest("replays", VERSION, stage, made_of)


def replays_stand(run: Run, stage: str) -> bool:
    """Are the stops of a stage there, and of the run as it stands? Reads the footer alone."""
    return published_digest(replays_path(run, stage)) == replays_digest(run, stage)


def standing_replays(run: Run) -> list[Path]:
    """The tables of stops that are of the run as it stands, in the order of its stages."""
    return [replays_path(run, s.id) for s in run.stages if s.kind == "decision" and replays_stand(run, s.id)]


def all_replays(run: Run) -> list[Path]:
    """Every file where tables of stops lie, those of an earlier state of the run included."""
    return sorted((run.path / "replays").glob("*.parquet"))


def stage_of(path: Path) -> str:
    """The stage whose stops a file holds."""
    return path.name.removesuffix(".parquet")


def read_replays(path: Path) -> pa.Table:
    """A table of stops, its page checksums compared. Raises what Arrow raises where it is damaged."""
    return pq.read_table(path, page_checksum_verification=True)
