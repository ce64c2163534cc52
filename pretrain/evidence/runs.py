"""The runs of a comparison in their order, and one of them from configuration to scores."""

import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from manifests.memory import keep_freed
from manifests.processes import end_with_parent
from manifests.publish import publish_table
from pretrain.data import Known
from pretrain.evidence.plan import TRAINED, Plan

Device = Literal["auto", "cpu", "cuda", "mps"]
FIELDS = ("task", "sample_uid", "cluster", "value")
_DECODED: Known = {}  # a worker's: the arms of a comparison are mostly the same pictures


@dataclass(frozen=True)
class Run:
    """One training (or one untrained network) and its test. `round`: the seed of the plan that it belongs to, from 0."""

    objective: str | None
    arm: str
    draw: int | None
    number: int
    seed: int
    round: int

    @property
    def folder(self) -> str:
        return f"runs/{self.objective or 'none'}/{self.arm}/{self.number}"


def runs_of(plan: Plan, seeds: int, draws_per_seed: Mapping[str, int]) -> Iterator[Run]:
    """One seed of every arm under every objective, then the next; what needs no training comes first."""
    for arm in plan.of_kind("untrained", "raw_pixels"):
        for number in range(1 if arm.fixed else arm.runs):
            yield Run(None, arm.name, None, number, plan.seed + number, 0)
    for round_ in range(seeds):
        for objective in plan.objectives:
            for arm in plan.of_kind(*TRAINED):
                count = draws_per_seed[arm.name] if arm.drawn else 1
                for number in range(round_ * count, (round_ + 1) * count):
                    yield Run(objective, arm.name, number if arm.drawn else None, number, plan.seed + number, round_)


@dataclass(frozen=True)
class Work:
    """All that a worker needs: `config` of `pretrain.train.train` (None: nothing is trained, `checkpoint` says what is tested)."""

    folder: Path
    config: dict[str, Any] | None
    checkpoint: str
    tasks: list[dict[str, Any]]
    device: Device
    seed: int
    digest: str


def prepare_worker() -> None:
    """One thread, and no life after the parent's: called once in each spawned process."""
    os.environ.update({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"})
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)
    keep_freed()
    end_with_parent()


def work(job: Work) -> None:
    """Train and test; publishes `scores.parquet` in the run's folder, seconds in its footer. Resumes from the last checkpoint."""
    import torch

    from pretrain.train import train
    from pretrain.transfer import transfer

    torch.set_num_threads(1)
    started = time.monotonic()
    checkpoint = job.checkpoint if job.config is None else str(train(job.config, quiet=True, known=_DECODED))
    trained = time.monotonic()
    table = transfer(checkpoint, job.tasks, device=job.device, seed=job.seed)
    seconds = {"train": trained - started, "transfer": time.monotonic() - trained}
    publish_scores(job.folder / "scores.parquet", table, job.digest, seconds)


def publish_scores(path: Path, table: pa.Table, digest: str, seconds: Mapping[str, float]) -> None:
    """Publish one run's scores: task, sample_uid, cluster, value."""
    if "cluster" not in table.column_names:
        table = table.append_column("cluster", pa.nulls(table.num_rows, pa.string()))
    metadata = (table.schema.metadata or {}) | {f"keepset.seconds.{name}": f"{value:.3f}" for name, value in seconds.items()}
    publish_table(path, table.select(list(FIELDS)).replace_schema_metadata(metadata), digest)
