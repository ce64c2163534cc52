"""Every column that the record itself writes: type, unit, who writes it. Stages' own columns are described by the stage's `WRITES`."""

import re

import pyarrow as pa

FORMAT = 1  # the number of `manifests/FORMAT.md`; raised when a reader of the old one would misread a new run

word = pa.dictionary(pa.int32(), pa.string())

IDENTITY = pa.schema([  # parts/identity: written by build after `measure.index`, in one pass over the shards in their order
    ("uid", pa.string()),        # 32 hex digits, unique in the pool
    ("ordinal", pa.int64()),     # earlier rows with equal (content, key)
])  # fmt: skip

VERDICT = pa.schema([  # parts/<decision>: one row a sample; all null where the row was not live
    ("keep", pa.bool_()),            # null = the row was not live
    ("unjudged", pa.bool_()),        # kept because a column that the decision reads is null
    ("reason", word),
    ("score", pa.float64()),
    ("threshold", pa.float64()),
    ("witness", pa.string()),        # uid
    ("witness_pool", word),          # evaluation pool of the witness; null = this pool
    ("weight", pa.float32()),
])  # fmt: skip

LEDGER = pa.schema([  # ledger/NNNNN.parquet: one row for EVERY input sample, in shard order; then the user's own columns
    ("uid", pa.string()),
    ("key", pa.string()),            # the user's own key
    ("source_uid", pa.string()),
    ("content", pa.binary(32)),      # SHA-256 of the payload members
    ("shard", word),                 # source/tar
    ("row", pa.int32()),             # in the shard, from 0
    ("offset", pa.int64()),          # bytes, of the image (or text) member in the tar
    ("size", pa.int64()),            # bytes
    ("label", pa.int32()),
    ("label_name", word),
    ("caption", pa.string()),
    ("status", word),                # kept, dropped, quarantined
    ("drop_stage", word),
    ("drop_reason", word),
    ("score", pa.float64()),
    ("threshold", pa.float64()),
    ("witness", pa.string()),
    ("witness_pool", word),
    ("weight", pa.float32()),        # expected visits a pass; kept rows only
    ("out_shard", word),             # shards/<out_shard>.tar
    ("out_row", pa.int32()),
])  # fmt: skip

KEPT, DROPPED, QUARANTINED = "kept", "dropped", "quarantined"
RESERVED = frozenset(LEDGER.names) | {"ordinal", "fault", "suffix", "members"}
EDGE = pa.schema([("a", pa.string()), ("b", pa.string()), ("score", pa.float64())])  # edges/<stage>/*.parquet: uids; then what else was seen


def is_truth(name: str) -> bool:
    """`truth_*` columns go from pool to ledger; no stage, objective or expression may read them."""
    return name.startswith("truth_")


def written_column(stage_id: str, stage_name: str, own: str) -> str:
    """The column as which a stage writes its own column `own`: with `as: NAME` it is NAME_what, so that a stage can be used twice."""
    if stage_id == stage_name:
        return own
    return f"{re.sub(r'[^A-Za-z0-9_]', '_', stage_id)}_{own.removeprefix(stage_name.split('.')[-1] + '_')}"
