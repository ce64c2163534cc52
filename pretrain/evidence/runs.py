"""The runs of a comparison in their order, and one of them from configuration to scores."""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.errors import Refusal
from manifests.memory import keep_freed
from manifests.processes import end_with_parent
from manifests.publish import publish_table
from pretrain.data import Known
from pretrain.evidence.plan import TRAINED, Plan

Device = Literal["auto", "cpu", "cuda", "mps"]
FIELDS = ("task", "sample_uid", "cluster", "value")
MADE = "keepset."  # before the names in the footer of a run's scores
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


def placed(todo: Sequence[Run], done: Mapping[Run, str], asked: Device) -> dict[Run, Device]:
    """Run -> its device. What one seed compares is trained on one: a training on CUDA (bfloat16) is another than the same on a CPU.

    todo    the runs that are to be made
    done    the runs that stand, each with its device; "" where it is not known
    asked   a device, which is then that of all; auto takes this machine's, but goes on with a seed on one that it was begun on
    Errors  [bad-value] where auto can do neither, or the device is not here
    """
    from pretrain.backbones import devices, pick_device

    here, usual = devices(), pick_device(asked)
    found: dict[Run, Device] = {}
    for run in todo:
        begun = {d for r, where in done.items() if (r.objective, r.round) == (run.objective, run.round) for d in where.split(", ") if d}
        device = next((d for d in here if d in begun), None) if begun and asked == "auto" else usual
        if device is None:
            given = f"seed number {run.round + 1} of {run.objective} was begun on {', '.join(sorted(begun))}, which is not here"
            cure = f"Go on where it is, or say so with --device {usual}: the verdicts then tell that devices differ"
            raise Refusal("bad-value", "device", given, "the runs of one seed on one device", cure)
        found[run] = cast(Device, device)
    return found


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
    """Train and test; publishes `scores.parquet` in the run's folder, seconds and the training's device in its footer. Resumes from the last checkpoint."""
    import torch

    from pretrain.train import train
    from pretrain.transfer import transfer

    torch.set_num_threads(1)
    started = time.monotonic()
    checkpoint = job.checkpoint if job.config is None else str(train(job.config, quiet=True, known=_DECODED))
    trained = time.monotonic()
    table = transfer(checkpoint, job.tasks, device=job.device, seed=job.seed)
    spent = {"seconds.train": f"{trained - started:.3f}", "seconds.transfer": f"{time.monotonic() - trained:.3f}"}
    if job.config is not None:
        spent["device"] = json.loads((job.folder / "config.json").read_text(encoding="utf-8"))["keepset"]["training"]["device"]
    publish_scores(job.folder / "scores.parquet", table, job.digest, spent)


def spent_on(path: Path) -> dict[str, str]:
    """What the footer of one run's scores tells: `seconds.train` and `seconds.transfer`, the `device` of its training, and more; nothing of a `runner`'s."""
    metadata = pq.read_schema(path).metadata or {}
    return {key.decode().removeprefix(MADE): value.decode() for key, value in metadata.items() if key.startswith(MADE.encode())}


def publish_scores(path: Path, table: pa.Table, digest: str, spent: Mapping[str, str]) -> None:
    """Publish one run's scores: task, sample_uid, cluster, value; `spent` as `spent_on` gives it back."""
    if "cluster" not in table.column_names:
        table = table.append_column("cluster", pa.nulls(table.num_rows, pa.string()))
    metadata = (table.schema.metadata or {}) | {MADE + name: value for name, value in spent.items()}
    publish_table(path, table.select(list(FIELDS)).replace_schema_metadata(metadata), digest)
