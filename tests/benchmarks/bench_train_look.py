"""One `look` step against one `cross_entropy` step + one forward pass + 2 * batch * queue * width operations at the measured matrix rate. Bound: at most 1.15.

test_resnet at 28 px, batch 256, one thread, CPU seconds; all parts in turns, the best of each.
Run: python -m tests.benchmarks.bench_train_look
"""

import time
from collections.abc import Callable

BATCH, WIDTH, TURNS = 256, 128, 15


def main() -> None:
    import torch
    from torch.nn.functional import normalize

    from pretrain.backbones import open_backbone
    from pretrain.objectives.cross_entropy import cross_entropy
    from pretrain.objectives.look import look
    from pretrain.objectives.objective import Objective, Setting
    from pretrain.optim import optimizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    setting = Setting(num_classes=10, smallest_arm=100_000, steps=100, batch=BATCH)
    views = [torch.rand(BATCH, 3, 28, 28).contiguous(memory_format=torch.channels_last) for _ in range(2)]
    labels = torch.randint(0, 10, (BATCH,))
    count = [0]

    def step(objective: Objective) -> Callable[[], None]:
        search = optimizer(objective)

        def go() -> None:
            count[0] += BATCH
            objective(views, labels, torch.arange(count[0], count[0] + BATCH))[0].backward()
            search.step()
            search.zero_grad()

        return go

    rival = cross_entropy(open_backbone("timm:test_resnet", 28), setting)

    def forward() -> None:
        with torch.no_grad():
            rival.backbone(views[0])

    parts = {"cross_entropy": step(rival), "forward": forward}
    for queue in (4096, 16384):
        objective = look(open_backbone("timm:test_resnet", 28), setting, queue=queue, width=WIDTH)
        objective.bank.add(normalize(torch.randn(queue, WIDTH), dim=1), torch.randint(0, 10, (queue,)), -torch.arange(queue) - 1)
        parts[f"look {queue}"] = step(objective)
        one, two = torch.randn(BATCH, WIDTH), torch.randn(WIDTH, queue)
        parts[f"product {queue}"] = lambda one=one, two=two: one @ two
    best = dict.fromkeys(parts, float("inf"))
    for _ in range(TURNS):
        for name, part in parts.items():
            part() if best[name] == float("inf") else None
            start = time.process_time()
            part()
            best[name] = min(best[name], time.process_time() - start)
    for queue in (4096, 16384):
        allowed = best["cross_entropy"] + best["forward"] + best[f"product {queue}"]
        print(
            f"queue {queue}: look {1e3 * best[f'look {queue}']:.1f} ms, cross_entropy {1e3 * best['cross_entropy']:.1f} + forward {1e3 * best['forward']:.1f}"
            f" + product {1e3 * best[f'product {queue}']:.1f} ms: ratio {best[f'look {queue}'] / allowed:.3f} (bound: at most 1.15)"
        )


if __name__ == "__main__":
    main()
