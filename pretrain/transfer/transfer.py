"""Run the probes of a list of tasks on one checkpoint."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from manifests.errors import Refusal
from manifests.signature import load
from pretrain.tables import TASKS
from pretrain.transfer.features import Encoder, Features, features, open_encoder, pool_pictures

SCHEMA = pa.schema([("task", pa.string()), ("sample_uid", pa.string()), ("value", pa.float64()), ("cluster", pa.string())])
STATISTICS = 2048  # training pictures that set an untrained net's statistics


def transfer(
    checkpoint: Path | str, tasks: list[dict[str, Any]], *, device: Literal["auto", "cpu", "cuda", "mps"] = "auto", seed: int = 0
) -> pa.Table:
    """One row a task and test sample: task, sample_uid, value, cluster (null); rows by task, then uid.

    Probes choose on a stratified fifth of train, fit on all of it and read test once. The schema's metadata hold, a task, its mean, chance and what was chosen (`keepset.chosen`, JSON).

    checkpoint   a folder of `pretrain train`; or an anchor: untrained:<backbone>@<resolution>?seed=N, pixels:<side> (centred)
    tasks        {name, train: POOL, test: POOL, probe: knn or linear}
    device       of the backbone
    seed         of an untrained backbone that names none
    Errors       [bad-value], [unknown-parameter] for a task that is none; [no-such-file]; [missing-label]
    """
    for task in tasks:
        check_task(task)
    if len({task["name"] for task in tasks}) < len(tasks):
        raise Refusal("bad-value", "tasks", "two have the same name", "each task has a name of its own")
    if not str(checkpoint).startswith("pixels:"):
        from pretrain.backbones import pick_device

        where = pick_device(device)
    else:
        where = "cpu"
    encoder = open_encoder(str(checkpoint), where, seed)
    known: dict[tuple[str, str], Features] = {}
    tables, chosen = [], {}
    for task in tasks:
        train, test = _features(encoder, task, known)
        scores = load(f"transfer.{task['probe']}", "pretrain")(train, test)
        commonest = np.bincount(train.label).argmax()
        chosen[task["name"]] = {
            "probe": task["probe"], "mean": float(scores.value.mean()), "chance": float((test.label == commonest).mean()), "num_train": len(train), "num_test": len(test),
            **scores.chosen,
        }  # fmt: skip
        columns = [
            pa.array([task["name"]] * len(test)),
            pa.array(test.uid.tolist(), pa.string()),
            pa.array(scores.value),
            pa.nulls(len(test), pa.string()),
        ]
        tables.append(pa.table(columns, schema=SCHEMA))
    return pa.concat_tables(tables or [SCHEMA.empty_table()]).replace_schema_metadata({"keepset.chosen": json.dumps(chosen)})


def check_task(task: dict[str, Any]) -> None:
    """Raises `Refusal` where `task` is not {name, train, test, probe}."""
    keys = {"name", "train", "test", "probe"}
    where = f"task {task.get('name', '?')}"
    for name in sorted(set(map(str, task)) - keys):
        raise Refusal("unknown-parameter", where, f"has no parameter {name!r}", f"its parameters: {', '.join(sorted(keys))}")
    for name in sorted(keys - set(task)):
        raise Refusal("bad-value", where, f"{name!r} is missing", f"a task has {', '.join(sorted(keys))}")
    if not isinstance(task["name"], str):
        raise Refusal("bad-value", f"{where}: name", f"{task['name']!r} is no name", "it takes text")
    if not isinstance(task["probe"], str) or task["probe"] not in TASKS:
        raise Refusal("bad-value", f"{where}: probe", f"{task['probe']!r} is no probe", f"it takes one of {', '.join(TASKS)}")


def _features(encoder: Encoder, task: dict[str, Any], known: dict[tuple[str, str], Features]) -> tuple[Features, Features]:
    """Features of the task's two pools; `known` holds those of earlier tasks, by (pool of the statistics or "", pool)."""
    train, test = str(task["train"]), str(task["test"])
    statistics = "" if encoder.prepare is None else train  # those of a task's training pictures: shared only where they are the same
    missing = [pool for pool in dict.fromkeys((train, test)) if (statistics, pool) not in known]
    if missing and encoder.prepare is not None:
        encoder.prepare(_first(train, encoder.side))
    known |= {(statistics, pool): features(encoder, pool) for pool in missing}
    one, two = known[statistics, train], known[statistics, test]
    return centred(one, two) if encoder.centred else (one, two)


def centred(train: Features, test: Features) -> tuple[Features, Features]:
    """Raw pixels less the mean training picture; of grey pictures one channel, which is the same information in a third of the time."""
    if all(np.array_equal(part.z[:, 0::3], part.z[:, c::3]) for part in (train, test) for c in (1, 2)):
        train, test = (Features(part.z[:, 0::3], part.label, part.uid) for part in (train, test))
    mean = train.z.mean(0, dtype=np.float64).astype(np.float32)
    return tuple(Features(part.z - mean, part.label, part.uid) for part in (train, test))  # type: ignore[return-value]


def _first(pool: str, side: int) -> np.ndarray:
    found: list[np.ndarray] = []
    for _, _, pictures in pool_pictures(pool, side):
        found.append(pictures)
        if sum(map(len, found)) >= STATISTICS:
            break
    return np.concatenate(found)[:STATISTICS]


def read_tasks(path: Path) -> list[dict[str, Any]]:
    """The tasks of a YAML file: a list, or a mapping with a list `tasks`. Raises `Refusal` [no-such-file], [bad-value]."""
    from manifests.strict_yaml import read_yaml

    if not path.is_file():
        raise Refusal("no-such-file", str(path), "is not a file", "a YAML list of tasks {name, train, test, probe}")
    body = read_yaml(path.read_bytes(), str(path), "bad-value")
    found = body.get("tasks") if isinstance(body, dict) else body
    if not isinstance(found, list) or not found or not all(isinstance(task, dict) for task in found):
        raise Refusal("bad-value", str(path), "holds no list of tasks", "a YAML list of tasks {name, train, test, probe}")
    return found
