"""Synthetic scores with a known truth."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from pretrain.evidence.scores import SCHEMA


def correctness(rng, mean, runs, hardness, tau=0.002, churn=0.10, own=0.0):
    """(runs, n) of 0/1: a probit model whose arm mean is `mean`; `hardness` (n,) shared by the arms, `own` the arm's private share of it."""
    n = len(hardness)
    private = rng.normal(size=n)
    spread = 1.6
    latent = spread * (np.sqrt(1 - own) * hardness + np.sqrt(own) * private)
    centre = stats.norm.ppf(np.clip(mean + rng.normal(0, tau, runs), 0.01, 0.99)) * np.sqrt(1 + spread**2)
    return (centre[:, None] + latent[None] + rng.normal(size=(runs, n)) > 0).astype(float)


def table_of(arms, n=2000, seed=0, tasks=("t",), objective="ce", tau=0.002, own=0.02):
    """A score table; `arms`: name -> (mean, runs, drawn, objective is null). One hardness a task, so that samples pair."""
    rng = np.random.default_rng(seed)
    columns = {name: [] for name in SCHEMA.names}
    for task in tasks:
        hardness = rng.normal(size=n)
        for arm, (mean, runs, *rest) in arms.items():
            drawn, everywhere = (*rest, False, False)[:2]
            scores = correctness(rng, mean, runs, hardness, tau=tau, own=own)
            for run in range(runs):
                columns["objective"] += [None if everywhere else objective] * n
                columns["arm"] += [arm] * n
                columns["draw"] += [run if drawn else None] * n
                columns["run"] += [run] * n
                columns["task"] += [task] * n
                columns["sample_uid"] += [f"{task}{i:06d}" for i in range(n)]
                columns["cluster"] += [None] * n
                columns["value"] += scores[run].tolist()
    return pa.table(columns, schema=SCHEMA)


PLAN = """
format: 1
arms:
  full: {}
  kept: {}
  random: {}
  untrained: {}
objectives: [ce]
tasks: [t]
margin: {retain: 0.9}
looks: [3, 5, 10]
"""


def written(folder: Path, table: pa.Table, plan: str = PLAN) -> tuple[Path, Path]:
    """The table and the plan as files."""
    folder.mkdir(parents=True, exist_ok=True)
    scores, plan_file = folder / "scores.parquet", folder / "plan.yaml"
    pq.write_table(table, scores)
    plan_file.write_text(plan)
    return scores, plan_file
