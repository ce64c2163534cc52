"""`measure.vectors` on CUDA: pictures/s of the whole measure (read, decode, fit, embed, publish) with one process and with many, beside decoding alone and the
net alone on a tensor that lies on the card. timm's ResNet-50 and open_clip's ViT-B-32 with random weights: the arithmetic is that of trained ones.

Photographs: crops out of scikit-image at 256 px, JPEG quality 90; the nets see 224 px. A process's start (torch, the card's context, the net) is told apart.
Run: python -m tests.benchmarks.bench_gpu_encode [--tiny]      (--tiny: a small net on the CPU, to see that it runs)
"""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from curate.encoders import open_encoder
from curate.engine_local import map_tasks
from curate.machine import device_workers, memory_bytes
from curate.measuring import MeasureTask, measure_shard
from curate.pool import Batch
from curate.recipe import parse_recipe
from manifests.processes import cores
from manifests.shards.pool_yaml import open_pool
from tests.benchmarks.bench_gpu_train import DEVICE, SIDE, TINY, photographs, rate
from tests.pretrain.pictures import write_pool

SHARDS, ROWS, FILES = (6, 16, 16) if TINY else (128, 256, 1024)


def weights(folder: Path) -> list[str]:
    """Specs of encoders whose random weights lie in `folder`."""
    import open_clip
    import timm

    names = ["test_resnet"] if TINY else ["resnet50"]
    for name in names:
        torch.save(timm.create_model(name).state_dict(), folder / f"{name}.pth")
    specs = [f"timm:{name}/{folder}/{name}.pth" for name in names]
    if not TINY:
        torch.save(open_clip.create_model("ViT-B-32", pretrained=None).state_dict(), folder / "clip.pt")
        specs.append(f"open_clip:ViT-B-32/{folder}/clip.pt")
    return specs


def net_alone(spec: str, side: int) -> str:
    """Pictures/s of the forward pass at batch 64 (the measure's) and 256."""
    import open_clip
    import timm

    kind, name = spec.split("/")[0].split(":")
    net = timm.create_model(name, num_classes=0) if kind == "timm" else open_clip.create_model(name, pretrained=None).visual
    net = net.eval().to(DEVICE).to(memory_format=torch.channels_last)
    told = []
    for batch in (64, 256):
        x = torch.rand(batch, 3, side, side, device=DEVICE).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(DEVICE, torch.float16, enabled=DEVICE == "cuda"):
            told.append(f"{rate(lambda x=x: net(x), batch):,.0f} (batch {batch})")
    return ", ".join(told)


def measured(pool: Path, root: Path, spec: str, workers: int, shards: int) -> tuple[float, float]:
    """(pictures/s, seconds until every process had embedded a shard) of the measure as a build runs it."""
    opened, recipe = open_pool(pool), parse_recipe(f"format: 1\npool: {pool}\nstages:\n  - measure.vectors: {{encoder: '{spec}'}}\n", "bench")
    stages = tuple(s for s in recipe.stages if s.name == "measure.vectors")
    chosen = opened.shards[:shards]
    index = {r.shard: r.input_digest for r in map_tasks(measure_shard, [MeasureTask(s, root, (), None) for s in chosen], workers=cores())}
    tasks = [MeasureTask(s, root, stages, index[s.id], DEVICE) for s in chosen]
    started, seen = time.perf_counter(), []
    for result in map_tasks(measure_shard, tasks, workers=workers):
        seen.append((time.perf_counter() - started, result.rows))
    first = min(workers, len(seen) - 1)
    return sum(rows for _, rows in seen[first:]) / (seen[-1][0] - seen[first - 1][0]), seen[first - 1][0]


def main() -> None:
    if DEVICE == "cuda" and not torch.cuda.is_available():
        print("needs a CUDA device")
        return
    os.environ["HF_HUB_OFFLINE"] = "1"
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        specs = weights(folder)
        files = photographs(FILES, SIDE)
        pool = write_pool(folder / "pool", files * (SHARDS * ROWS // FILES), [None] * (SHARDS * ROWS), per_tar=ROWS)
        many = 2 if TINY else device_workers(DEVICE, cores(), memory_bytes(None))
        print(f"{SHARDS * ROWS:,} JPEG of {sum(map(len, files)) / FILES / 1024:.1f} KiB, {cores()} cores, {many} processes on {DEVICE}")
        for spec in specs:
            opened = open_encoder(spec, DEVICE)
            decode = rate(lambda opened=opened: [opened.fit(p) for p in Batch(files[:64]).pixels(min_side=opened.side)], min(64, FILES))
            fitted = np.stack([opened.fit(p) for p in Batch(files[:64]).pixels(min_side=opened.side)])
            embed = rate(lambda opened=opened, fitted=fitted: opened.encode(fitted), len(fitted))
            print(f"\n{spec.split('/')[0]}, {opened.side} px; pictures/s")
            print(f"  net alone {net_alone(spec, opened.side)}; a batch of {len(fitted)} from memory and back {embed:,.0f}")
            print(f"  decoding and fitting alone, one process {decode:,.0f}")
            for workers, shards in ((1, max(4, SHARDS // 16)), *(((many, SHARDS),) if many > 1 else ())):
                found, start = measured(pool, folder / f"run-{spec.split(':')[0]}-{workers}", spec, workers, shards)
                print(
                    f"  measure.vectors, {workers:>2} processes {found:,.0f}; {found / (workers * decode):.2f} of {workers} x decoding, {start:.1f} s to start"
                )
    print(f"{time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
