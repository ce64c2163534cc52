"""What an arm's training set is: rows of a run's ledger, and for the random controls a fresh draw for every run."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from manifests.audit.query import connect, select
from manifests.digest import digest
from manifests.errors import Refusal
from manifests.leaks import leak_stages, require_leaks
from manifests.publish import publish_table, published_digest
from manifests.run import Run, open_run
from manifests.schema import KEPT, QUARANTINED
from pretrain.evidence.plan import PlannedArm

Uids = NDArray[np.str_]


@dataclass(frozen=True)
class Ledger:
    """The rows of one run that can be trained on (quarantined ones cannot), in uid order.

    stages   ids of the run's stages in order; `decisions` those that drop; dropped_at (n,) int: position in `stages`, -1 for kept rows
    pool     digest of all uids of the pool, quarantined ones too: draws are seeded by it, so that nobody can redraw
    """

    path: Path
    uid: Uids
    label: NDArray[np.int64]
    dropped_at: NDArray[np.int64]
    stages: tuple[str, ...]
    decisions: tuple[str, ...]
    last_select: str | None
    leaked: dict[str, frozenset[str]]  # evaluation pool's path -> its samples that stand in the pool
    pool: str
    weights: str  # digest of the kept rows' weights
    num_classes: int  # of the pool, whatever an arm holds of them

    @property
    def kept(self) -> NDArray[np.bool_]:
        return self.dropped_at < 0


def read_ledger(run: Path) -> Ledger:
    """Read what the arms need of RUN's ledger; `Refusal` [not-a-run], [no-such-file] or [nothing-kept]."""
    opened = open_run(run)
    columns = ["uid", "label", "status", "drop_stage", "offset", "weight"]
    table = pa.concat_tables([pq.read_table(f, columns=columns) for f in opened.ledger_files()])
    stages = {stage.id: i for i, stage in enumerate(opened.stages)}
    every_uid = np.sort(table["uid"].to_numpy(zero_copy_only=False).astype("U32"))
    leaked = _leaked(opened)
    num_classes = max(1 + (pc.max(table["label"]).as_py() or 0), len(opened.info.get("classes", ())))  # as a training counts them
    usable = pc.and_(pc.not_equal(table["status"].cast(pa.string()), QUARANTINED), pc.is_valid(table["offset"]))
    table = table.filter(usable)
    table = table.take(pc.sort_indices(table, [("uid", "ascending")]))
    status = np.array(table["status"].cast(pa.string()).to_pylist(), object)
    dropped_at = np.array([-1 if s == KEPT else stages[at] for s, at in zip(status, table["drop_stage"].to_pylist(), strict=True)], np.int64)
    if not (dropped_at < 0).any():
        raise Refusal("nothing-kept", str(run), "keeps no row", "a comparison needs a kept arm")
    selects = [stage.id for stage in opened.stages if stage.name.startswith("select.")]
    return Ledger(
        run, table["uid"].to_numpy(zero_copy_only=False).astype("U32"), pc.fill_null(table["label"], -1).to_numpy().astype(np.int64), dropped_at, tuple(stages),
        tuple(stage.id for stage in opened.stages if stage.kind == "decision"), selects[-1] if selects else None, leaked, hashlib.sha256(every_uid.tobytes()).hexdigest(),
        hashlib.sha256(pc.fill_null(table["weight"], 1.0).to_numpy()[dropped_at < 0].astype(np.float32).tobytes()).hexdigest(), num_classes,
    )  # fmt: skip


def _leaked(run: Run) -> dict[str, frozenset[str]]:
    """Every sample of each evaluation pool that a row shows, not only the one that a row was dropped for. Raises `Refusal` [broken-record] where they are gone."""
    require_leaks(run)
    hit: dict[str, set[str]] = {name: set() for name in run.evaluations}
    if leak_stages(run):
        with connect(run) as connection:
            for row in select(connection, "SELECT DISTINCT pool, test FROM leaks", seconds=600).to_pylist():
                hit.setdefault(row["pool"], set()).add(row["test"])
    return {str(Path(path).resolve()): frozenset(hit[name]) for name, path in run.evaluations.items()}


def full_rows(ledger: Ledger) -> Uids:
    """Every row that can be trained on."""
    return ledger.uid


def kept_rows(ledger: Ledger) -> Uids:
    """The rows that the run kept."""
    return ledger.uid[ledger.kept]


def clean_rows(ledger: Ledger, clean_after: str | None = None) -> Uids:
    """The rows left by stage `clean_after`; by default those that reach the last `select.*`, or the last decision where nothing selects.

    So random_clean asks whether the selector is worth it, and plain random whether the whole pipeline is.
    """
    if clean_after is not None:
        if clean_after not in ledger.stages:
            raise Refusal("bad-plan", "clean_after", f"{clean_after!r} is no stage of {ledger.path}", f"its decisions: {', '.join(ledger.decisions)}")
        first = ledger.stages.index(clean_after) + 1
    elif not ledger.decisions:
        first = 0
    else:
        first = ledger.stages.index(ledger.last_select or ledger.decisions[-1])
    return ledger.uid[ledger.kept | (ledger.dropped_at >= first)]


def draw(rows: Uids, size: int, pool: str, kind: str, number: int) -> Uids:
    """Draw `number` of `size` rows without replacement, in uid order; the same on every machine and for any order of `rows`.

    Each row gets a 64-bit number mixed from its uid and from (pool digest, kind, draw number); the smallest win, ties by uid.
    """
    if size > len(rows):
        raise Refusal("bad-plan", kind, f"{size} rows of {len(rows)} cannot be drawn", "at most as many as there are", "Name another clean_after")
    rows = np.sort(rows)
    key = _mix(np.array([int(u[:16], 16) for u in rows.tolist()], np.uint64), int(digest("draw", pool, kind, number)[:16], 16))
    chosen = np.argsort(key, kind="stable")[:size]
    return np.sort(rows[chosen])


def _mix(value: NDArray[np.uint64], seed: int) -> NDArray[np.uint64]:
    """Two rounds of SplitMix64's finaliser with the seed added before each."""
    for _ in range(2):
        value = value + np.uint64(seed)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        value = value ^ (value >> np.uint64(31))
    return value


def draw_shares(ledger: Ledger, like: Uids, number: int) -> Uids:
    """Random rows with the class shares of `like`: is the selection more than re-balancing?"""
    wanted = np.isin(ledger.uid, like)
    parts = []
    for label in np.unique(ledger.label[wanted]):
        of_label = ledger.label == label
        parts.append(draw(ledger.uid[of_label], int((of_label & wanted).sum()), ledger.pool, f"random_shares {label}", number))
    return np.sort(np.concatenate(parts))


def drawn_rows(arm: PlannedArm, ledger: Ledger, like: Uids, number: int) -> Uids:
    """The rows of draw `number` of a drawn arm, as many as `like` has."""
    if arm.is_a == "random_shares":
        return draw_shares(ledger, like, number)
    rows = full_rows(ledger) if arm.is_a == "random" else clean_rows(ledger, arm.clean_after)
    return draw(rows, len(like), ledger.pool, arm.is_a, number)


def set_digest(rows: Uids) -> str:
    """Digest of a set of rows in uid order."""
    return hashlib.sha256(np.ascontiguousarray(rows.astype("U32")).tobytes()).hexdigest()


def rows_digest(ledger: Ledger, rows: Uids) -> str:
    """Digest of what is trained on: a set of rows with their labels, and how many classes there are."""
    label = ledger.label[np.searchsorted(ledger.uid, rows)]
    return digest("rows", set_digest(rows), hashlib.sha256(label.tobytes()).hexdigest(), ledger.num_classes)


def write_draw(path: Path, rows: Uids) -> Path:
    """Publish a set of rows as Parquet with one column, uid; nothing happens where it is there already."""
    made_of = set_digest(rows)
    if published_digest(path) != made_of:
        publish_table(path, pa.table({"uid": pa.array(rows.tolist(), pa.string())}), made_of)
    return path
