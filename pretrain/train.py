"""The training loop, once. Which objective, backbone and optimiser it drives is the configuration's business."""

import itertools
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from manifests.digest import digest
from manifests.errors import Refusal
from manifests.memory import keep_freed
from manifests.progress import Progress
from manifests.publish import locked
from manifests.signature import check, plain_value
from pretrain.configuration import objective_of, read_configuration, starting_weights
from pretrain.data import Batch, Known, Pictures, batches
from pretrain.samples import Samples, open_samples
from pretrain.tables import OBJECTIVES

if TYPE_CHECKING:
    import torch

    from pretrain.backbones import Backbone
    from pretrain.objectives.objective import Objective

FLUSH = 50  # steps between readings of the logged tensors: each reading waits for the device


def train(config: Path | str | dict[str, Any], *, overrides: dict[str, Any] | None = None, quiet: bool = False, known: Known | None = None) -> Path:
    """Train one backbone; returns the folder with model.safetensors, config.json and metrics.jsonl. Stopped at any moment, the same call goes on.

    config      a YAML file or its content; its keys are the parameters of `training`
    overrides   values laid over it, nested mappings key by key
    quiet       no progress on stderr
    known       a dictionary that hands decoded pictures (256 MiB at most) to the next training of this process
    Errors      [unknown-parameter] and [bad-value] before any work; else those of `training`
    """
    found, where = read_configuration(config, overrides or {})
    return training(quiet, known, **check(training, found, where))


def training(
    quiet: bool = False,
    known: Known | None = None,
    *,
    data: list[str],
    out: str,
    objective: dict,
    samples_seen: int,
    backbone: str = "timm:test_resnet",
    resolution: int = 28,
    batch: int = 128,
    uids: str | None = None,
    smallest_arm: int | None = None,
    optimizer: dict | None = None,
    views: dict | None = None,
    seed: int = 0,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int | None = None,
    workers: int | None = None,
    cache_mib: int = 1024,
    checkpoint_every: int = 500,
) -> Path:
    """Train `backbone` on `data` with `objective` for a budget of samples seen.

    data            pools, runs (their kept rows, read from the pool) or folders of written shards
    uids            restricts them: a Parquet file with column uid (and weight, if wanted), or a text file; a run's rows then whatever their status
    out             the folder to write; one training a folder, one writer at a time
    objective       {name: one of `pretrain objectives`, and its parameters}
    samples_seen    budget; floor(samples_seen / batch) steps. A sample of weight w is visited w times a pass on average
    backbone        timm:<name>, open_clip:<model> or checkpoint:<folder>
    resolution      pixels of the square pictures; smallest_arm: samples in the comparison's smallest arm, for defaults that all arms must share
    optimizer, views   parameters of `optim.optimizer` and `views.augment`
    seed            of weights, order and augmentation, each its own stream
    device          auto takes cuda, then mps, then cpu; bfloat16 on cuda, float32 elsewhere
    threads, workers, cache_mib   CPU threads; loader processes (null: none where all pictures fit into the cache); MiB of decoded pictures in memory
    checkpoint_every   steps between saved states; 0 = none
    Guarantee       n steps, stop, n steps gives the bits of 2 n steps, on a CPU and on one kind of CUDA card; workers and cache never change a value
    Errors          [missing-label], [diverged], [empty-pool], [run-locked], those of the parts
    """
    from pretrain.backbones import pick_device
    from pretrain.machine import settled

    keep_freed()
    where = pick_device(device)
    configuration = {
        "objective": objective, "samples_seen": samples_seen, "backbone": backbone, "resolution": resolution, "batch": batch, "smallest_arm": smallest_arm,
        "optimizer": optimizer or {}, "views": views or {}, "seed": seed,
    }  # fmt: skip
    if batch < 2 or samples_seen < batch:
        raise Refusal(
            "bad-value", "samples_seen, batch", f"{samples_seen} and {batch} make no step", "batch is at least 2 and samples_seen at least batch"
        )
    _check_least({"resolution": (resolution, 1), "smallest_arm": (smallest_arm, 1), "threads": (threads, 1), "workers": (workers, 0)})
    samples = open_samples(data, uids)
    with locked(Path(out)), settled(threads):
        run = Loop(configuration, samples, Path(out), where)
        if not run.finished():
            with Pictures(samples, resolution, workers=workers, cache_bytes=cache_mib << 20, known=known) as pictures:
                run.go(pictures, checkpoint_every, quiet)
    return Path(out)


def _check_least(given: dict[str, tuple[int | None, int]]) -> None:
    """Refuse a whole number below the least that it may be; null stays."""
    for name, (value, least) in given.items():
        if value is not None and value < least:
            raise Refusal("bad-value", name, f"{value} is too small", f"it takes a whole number from {least}")


class Loop:
    """One training under way: what it drives, and how far it is."""

    def __init__(self, configuration: dict[str, Any], samples: Samples, out: Path, device: str) -> None:
        self.configuration, self.samples, self.out, self.device = configuration, samples, out, device
        self.batch, self.steps = configuration["batch"], configuration["samples_seen"] // configuration["batch"]
        self.name, self.make, self.parameters = objective_of(configuration["objective"])
        from pretrain.optim import optimizer
        from pretrain.views import check_views

        self.views = check_views(configuration["views"], "views")
        self.optimizing = check(optimizer, configuration["optimizer"], "optimizer")
        resolved = {**self.configuration, "objective": {"name": self.name, **self.parameters}, "optimizer": self.optimizing, "views": self.views}
        self.resolved = {k: {n: plain_value(v) for n, v in part.items()} if isinstance(part, dict) else part for k, part in resolved.items()}
        self.digest = digest(self.resolved, samples.digest(), OBJECTIVES[self.name].version, *starting_weights(configuration["backbone"]))

    def finished(self) -> bool:
        """Whether the folder holds this very training, done."""
        from pretrain.checkpoint import finished

        return finished(self.out, self.digest)

    def seed(self, purpose: str) -> int:
        """One stream a purpose."""
        return int(digest(self.configuration["seed"], purpose)[:15], 16)

    def go(self, pictures: Pictures, checkpoint_every: int, quiet: bool) -> None:
        """Train from the last saved state to the end, and write the model."""
        import torch

        from pretrain.checkpoint import load_state, save_metrics, save_model, save_state
        from pretrain.optim import optimizer

        devices = [torch.cuda.current_device()] if self.device == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed("init"))
            objective = self._objective().to(self.device).train()
            optimizing = optimizer(objective, **self.optimizing)
            step, position, rows, before = load_state(self.out, objective, optimizing)
            clock = Clock(before, self.device)
            plan = itertools.islice(batches(self.samples, self.seed("order"), self.batch, position), self.steps - step)
            waiting: list[dict[str, Any]] = []
            with Progress(f"{self.name} {self.out.name}", self.steps * self.batch, "images", quiet=quiet) as progress:
                progress.done = step * self.batch
                for planned, found in pictures.fetch(plan):
                    waiting.append(
                        {"step": step, "samples_seen": (step + 1) * self.batch, **self._step(objective, optimizing, step, planned, found, pictures)}
                    )
                    step += 1
                    progress.advance(self.batch)
                    saving = checkpoint_every > 0 and step % checkpoint_every == 0 and step < self.steps
                    if saving or len(waiting) == FLUSH or step == self.steps:
                        rows += _read(waiting, self.out)
                        waiting = []
                    if saving:
                        save_state(self.out, self.digest, objective, optimizing, step, planned.after, rows, clock.spent())
            save_metrics(self.out, rows)
            cost = {**clock.spent(), "undecodable": pictures.undecodable, "samples": len(self.samples), "steps": self.steps}
            save_model(self.out, cast("Backbone", objective.backbone), {"digest": self.digest, "configuration": self.resolved, **cost})

    def _objective(self) -> "Objective":
        from pretrain.backbones import open_backbone
        from pretrain.objectives.objective import Setting

        missing = int((self.samples.label < 0).sum())
        if OBJECTIVES[self.name].needs_labels and missing:
            raise Refusal(
                "missing-label",
                f"objective {self.name}",
                f"{missing} of {len(self.samples)} samples have no label",
                "it needs one for each",
                "Drop them, or take an objective without labels",
            )
        setting = Setting(self.samples.num_classes, self.configuration["smallest_arm"] or len(self.samples), self.steps, self.batch)
        return self.make(open_backbone(self.configuration["backbone"], self.configuration["resolution"]), setting, **self.parameters)

    def _step(
        self, objective: "Objective", optimizing: "torch.optim.Optimizer", step: int, planned: Batch, found: Any, pictures: Pictures
    ) -> dict[str, Any]:
        import torch

        from pretrain.machine import sent
        from pretrain.optim import rate
        from pretrain.views import augment

        rate_now = rate(step, self.steps, lr=self.optimizing["lr"], warmup=self.optimizing["warmup"])
        good = ~pictures.bad[planned.rows]
        rows, turns = planned.rows[good], planned.turns[good]
        if len(rows) < 2:
            return {"lr": rate_now, "loss": 0.0, "skipped_step": 1.0}
        images = sent(found if good.all() else found[good], self.device).permute(0, 3, 1, 2)
        uids, labels, times = sent(np.stack([self.samples.number[rows], self.samples.label[rows], turns]), self.device)
        seen = [augment(images, uids, times, view, self.seed("views"), **self.views) for view in range(objective.num_views)]
        for group in optimizing.param_groups:
            group["lr"] = rate_now
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            loss, logs = objective(seen, labels, uids)
        loss.backward()
        if self.optimizing["clip"] is not None:
            logs = {**logs, "gradient_norm": torch.nn.utils.clip_grad_norm_(objective.parameters(), self.optimizing["clip"])}
        optimizing.step()
        optimizing.zero_grad(set_to_none=True)
        return {"lr": rate_now, "loss": loss.detach(), **logs}


class Clock:
    """Seconds since it was made, on top of those before: wall and CPU of this process; and the device, after those that the training was on before."""

    def __init__(self, before: dict[str, Any], device: str) -> None:
        self.before, self.wall, self.cpu = before, time.monotonic(), time.process_time()
        self.device = ", ".join(dict.fromkeys([*filter(None, before.get("device", "").split(", ")), device]))

    def spent(self) -> dict[str, Any]:
        """{seconds, cpu_seconds, device}"""
        found = {"seconds": time.monotonic() - self.wall, "cpu_seconds": time.process_time() - self.cpu}
        return {name: round(self.before[name] + value, 3) for name, value in found.items()} | {"device": self.device}


def _read(waiting: list[dict[str, Any]], out: Path) -> list[dict[str, Any]]:
    """Logged tensors as numbers; a loss that is not finite ends the training."""
    from pretrain.machine import numbers

    rows = numbers(waiting)
    for row in rows:
        if not math.isfinite(row["loss"]):
            raise Refusal(
                "diverged",
                str(out),
                f"the loss is {row['loss']} at step {row['step']}",
                "",
                "Lower the learning rate (`--set optimizer.lr=…`) or set `optimizer.clip`",
            )
    return rows
