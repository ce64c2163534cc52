"""A transfer score means something only beside what it must beat: chance, raw pixels, the untrained network."""

import json
import math
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pretrain.transfer.transfer import transfer

PIXELS = 32  # side of the raw-pixel anchor, at most


def anchored(
    checkpoint: Path | str, tasks: list[dict[str, Any]], *, device: Literal["auto", "cpu", "cuda", "mps"] = "auto", seed: int = 0
) -> dict[str, pa.Table]:
    """Tables of `transfer` by name: the checkpoint, and where it is a trained folder, `pixels` and `untrained` (the same net, fresh weights)."""
    found = {"checkpoint": transfer(checkpoint, tasks, device=device, seed=seed)}
    described = Path(str(checkpoint).removeprefix("checkpoint:")) / "config.json"
    if described.is_file():
        told = json.loads(described.read_text(encoding="utf-8"))["keepset"]
        side = min(told["resolution"], PIXELS)
        for name, anchor in (("untrained", f"untrained:{told['backbone']}@{told['resolution']}?seed={seed}"), ("pixels", f"pixels:{side}")):
            found[name] = transfer(anchor, tasks, device=device, seed=seed)
    return found


def summary(tables: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """One row a task: mean score of the checkpoint and the anchors, the checkpoint's 95 % interval over test samples, what was chosen."""
    chosen = {name: json.loads(table.schema.metadata[b"keepset.chosen"]) for name, table in tables.items()}
    rows = []
    for task, picked in chosen["checkpoint"].items():
        mean, count = picked["mean"], picked["num_test"]
        anchors = {name: chosen[name][task]["mean"] for name in tables if name != "checkpoint"}
        rows.append(
            {
                "task": task,
                "mean": mean,
                "interval": wilson(mean, count),
                "chance": picked["chance"],
                **anchors,
                "chosen": picked,
            }
        )
    return rows


def wilson(share: float, count: int) -> list[float]:
    """The 95 % interval of a share of `count` samples: never of no width, also where all are right (Wilson 1927)."""
    z2 = 1.96**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = 1.96 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return [max(middle - half, 0.0), min(middle + half, 1.0)]


def text(rows: list[dict[str, Any]]) -> str:
    """The summary for a terminal, in points."""
    names = [n for n in ("mean", "chance", "pixels", "untrained") if any(n in row for row in rows)]
    width = max([len("task"), *(len(row["task"]) for row in rows)])
    lines = [f"{'task':<{width}}  " + "  ".join(f"{'score':>20}" if n == "mean" else f"{n:>12}" for n in names)]
    for row in rows:
        lo, hi = (f"{100 * end:.1f}" for end in row["interval"])
        cells = [f"{100 * row['mean']:.1f} [{lo}, {hi}]".rjust(20)] + [f"{100 * row[n]:.1f}".rjust(12) for n in names[1:]]
        lines.append(f"{row['task']:<{width}}  " + "  ".join(cells))
    return "\n".join([*lines, "Points; in brackets the 95 % interval over test samples alone: another training seed moves the score too."])
