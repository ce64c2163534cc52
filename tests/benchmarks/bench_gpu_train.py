"""Training on CUDA: images/s of the loop's own step against a bare step, `look` against its parts, and a pool of JPEG read by N loaders against a tensor in memory.

ResNet-18 at 32 px (batch 512) and ResNet-50 at 224 px (batch 256), bfloat16, 16 cores. `bare` is the net with a linear head on views that lie on the device,
without augmentation. `look` bound: at most 1.15 of one `cross_entropy` step + one forward pass + 2 * batch * queue * width operations (the product, measured).
Reader bound: at least 0.9 of the step on a tensor in memory. Photographs: crops out of scikit-image at 256 px, JPEG quality 90, decoded anew at each visit.
Run: python -m tests.benchmarks.bench_gpu_train [--tiny]      (--tiny: a small net on the CPU, to see that it runs)
"""

import contextlib
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pretrain.backbones import open_backbone
from pretrain.data import Pictures, Position, batches
from pretrain.machine import numbers, settled
from pretrain.objectives.objective import Setting
from pretrain.optim import optimizer
from pretrain.samples import Samples, open_samples
from pretrain.train import Loop
from tests.pretrain.pictures import write_shards
from tests.small_pool import PHOTOS, jpeg

TINY = "--tiny" in sys.argv
DEVICE = "cpu" if TINY else "cuda"
SECONDS, TURNS, FILES, COPIES = (0.2, 2, 64, 4) if TINY else (1.2, 12, 1024, 16)
SIDE, WIDTH = (32, 128) if TINY else (256, 128)
NETS = [("test_resnet", 28, 32)] if TINY else [("resnet18", 32, 512), ("resnet50", 224, 256)]
QUEUES = (256, 1024) if TINY else (16_384, 65_536)
LOADERS = (1, 2) if TINY else (1, 4, 8, 15)


def photographs(count: int, side: int) -> list[bytes]:
    """Different square crops of photographs as JPEG, quality 90."""
    from skimage import data

    sources = [np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in PHOTOS]
    random, found = np.random.default_rng(0), []
    for photo in itertools.islice(itertools.cycle(sources), count):
        y, x = (int(random.integers(0, edge - side)) for edge in photo.shape[:2])
        found.append(jpeg(photo[y : y + side, x : x + side], 90))
    return found


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def rate(step: Callable[[], object], images: int) -> float:
    """Images/s of `step` over `SECONDS`, after three steps to warm up."""
    for _ in range(3):
        step()
    wait()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        step()
        count += 1
    wait()
    return count * images / (time.perf_counter() - started)


def in_turns(parts: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each part, run in turns."""
    spent: dict[str, list[float]] = {name: [] for name in parts}
    for turn, (name, part) in itertools.product(range(-3, TURNS), parts.items()):
        wait()
        started = time.perf_counter()
        part()
        wait()
        if turn >= 0:
            spent[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in spent.items()}


def card() -> str:
    """What the card gives: bfloat16 and float32 products, and copies."""
    side = 256 if TINY else 8192
    one, two = (torch.randn(side, side, device=DEVICE) for _ in range(2))
    half = one.bfloat16(), two.bfloat16()
    spent = in_turns({"bfloat16": lambda: half[0] @ half[1], "float32": lambda: one @ two, "copy": lambda: one.clone()})
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    products = ", ".join(f"{kind} {2e-12 * side**3 / spent[kind]:,.1f} TFLOP/s" for kind in ("bfloat16", "float32"))
    return f"{name}, torch {torch.__version__}: {products}, copy {8e-9 * side**2 / spent['copy']:,.0f} GB/s, {len(os.sched_getaffinity(0))} cores"


def loop_of(objective: dict[str, Any], net: str, side: int, batch: int, samples: Samples) -> Callable[..., dict]:
    """The loop's own step: (planned batch, pictures, who knows what is broken) -> its row of metrics."""
    given = {"samples_seen": 10_000 * batch, "smallest_arm": None, "optimizer": {"lr": 0.01}, "views": {}, "seed": 0}
    loop = Loop(given | {"objective": objective, "backbone": f"timm:{net}", "resolution": side, "batch": batch}, samples, Path("none"), DEVICE)
    module = loop._objective().to(DEVICE).train()
    search, step = optimizer(module, **loop.optimizing), itertools.count()
    return lambda planned, found, pictures: loop._step(module, search, next(step), planned, found, pictures)


def steps(net: str, side: int, batch: int, samples: Samples) -> float:
    """Prints images/s of each objective from a tensor in memory beside the bare step; returns that of cross-entropy."""
    memory = np.random.default_rng(0).integers(0, 256, (len(samples), side, side, 3), np.uint8)
    known = SimpleNamespace(bad=np.zeros(len(samples), bool))
    plan = list(itertools.islice(batches(samples, 0, batch, Position()), 8))
    model = torch.nn.Sequential(open_backbone(f"timm:{net}", side), torch.nn.LazyLinear(100)).to(DEVICE)
    views, labels = torch.rand(batch, 3, side, side, device=DEVICE), torch.randint(0, 100, (batch,), device=DEVICE)
    model(views)
    search = optimizer(model, lr=0.01)

    def bare() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            loss = torch.nn.functional.cross_entropy(model(views).float(), labels)
        loss.backward()
        search.step()
        search.zero_grad()

    torch.backends.cudnn.deterministic = False
    free, torch.backends.cudnn.deterministic = rate(bare, batch), True
    ceiling = rate(bare, batch)
    print(
        f"\n{net}, {side} px, batch {batch}: bare step {ceiling:,.0f} images/s ({ceiling / free:.3f} of what it is where the order of sums may change)"
    )
    first = 0.0
    for objective in ({"name": "cross_entropy"}, *({"name": "look", "queue": queue} for queue in QUEUES), {"name": "simclr"}):
        step, turn, waiting = loop_of(objective, net, side, batch, samples), itertools.cycle(plan), []

        def go(step=step, turn=turn, waiting=waiting) -> None:
            planned = next(turn)
            waiting.append(step(planned, memory[planned.rows], known))
            if len(waiting) == 50:
                numbers(waiting)
                waiting.clear()

        found = rate(go, batch)
        first = first or found
        print(f"  {' '.join(map(str, objective.values())):<14} {found:>9,.0f} images/s, {found / ceiling:.3f} of the bare step")
    return first


def look_against_its_parts(net: str, side: int, batch: int) -> None:
    from pretrain.objectives.cross_entropy import cross_entropy
    from pretrain.objectives.look import look

    views = [torch.rand(batch, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    labels, uids = torch.randint(0, 100, (batch,), device=DEVICE), torch.arange(batch, device=DEVICE)
    setting = Setting(num_classes=100, smallest_arm=200_000, steps=100, batch=batch)

    def step(objective: Any) -> Callable[[], None]:
        search = optimizer(objective, lr=0.01)

        def go() -> None:
            uids.add_(batch)
            with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
                loss, _ = objective(views, labels, uids)
            loss.backward()
            search.step()
            search.zero_grad()

        return go

    rival = cross_entropy(open_backbone(f"timm:{net}", side), setting).to(DEVICE).train()

    def forward() -> None:
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda"):
            rival.backbone(views[0])

    parts: dict[str, Callable[[], object]] = {"cross_entropy": step(rival), "forward": forward}
    for queue in QUEUES:
        objective = look(open_backbone(f"timm:{net}", side), setting, queue=queue, width=WIDTH).to(DEVICE).train()
        rows = torch.nn.functional.normalize(torch.randn(queue, WIDTH, device=DEVICE), dim=1)
        objective.bank.add(rows, torch.randint(0, 100, (queue,), device=DEVICE), -torch.arange(queue, device=DEVICE) - 1)
        parts[f"look {queue}"] = step(objective)
        one = torch.randn(batch, WIDTH, device=DEVICE)
        parts[f"product {queue}"] = lambda rows=rows, one=one: one @ rows.T
    spent = in_turns(parts)
    for queue in QUEUES:
        allowed = spent["cross_entropy"] + spent["forward"] + spent[f"product {queue}"]
        print(
            f"  queue {queue:,}: look {1e3 * spent[f'look {queue}']:.2f} ms, cross_entropy {1e3 * spent['cross_entropy']:.2f} + forward {1e3 * spent['forward']:.2f}"
            f" + product {1e3 * spent[f'product {queue}']:.2f} ms: ratio {spent[f'look {queue}'] / allowed:.3f} (bound: at most 1.15)"
        )


def reader(net: str, side: int, batch: int, samples: Samples, memory: float) -> None:
    """A pool that is decoded at each visit, without the step and with it."""
    step = loop_of({"name": "cross_entropy"}, net, side, batch, samples)
    plan = batches(samples, 0, batch, Position())
    for loaders in LOADERS:
        with Pictures(samples, side, workers=loaders, cache_bytes=0) as pictures:
            source = pictures.fetch(plan)
            for _ in range(2 * loaders):  # all loaders have started
                next(source)
            alone = rate(lambda source=source: next(source), batch)
            waited = [0.0]

            def both(source=source, waited=waited, pictures=pictures) -> None:
                asked = time.perf_counter()
                planned, found = next(source)
                waited[0] += time.perf_counter() - asked
                step(planned, found, pictures)

            together = rate(both, batch)
        ratio = f"ratio to a tensor in memory {together / memory:.3f} (bound: at least 0.9)"
        print(f"  {loaders:>2} loaders: read alone {alone:>8,.0f} images/s, with the step {together:>8,.0f}: {ratio}")


def main() -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device")
        return
    torch.manual_seed(0)
    started = time.perf_counter()
    print(card())
    with tempfile.TemporaryDirectory() as folder, settled(1), contextlib.suppress(KeyboardInterrupt):
        files = photographs(FILES, SIDE)
        shards = write_shards(Path(folder) / "s", files * COPIES, [i % 100 for i in range(FILES * COPIES)], per_tar=4096)
        samples = open_samples([str(shards)])
        print(f"{len(samples):,} JPEG of {sum(map(len, files)) / len(files) / 1024:.1f} KiB written in {time.perf_counter() - started:.0f} s")
        for net, side, batch in NETS:
            memory = steps(net, side, batch, samples)
            look_against_its_parts(net, side, batch)
        print(f"\nreading, {net}, {side} px, batch {batch}")
        reader(net, side, batch, samples, memory)
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
