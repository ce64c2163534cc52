"""`pretrain`: train, test transfer, compare, judge. Each verb parses, calls the public function of the same name and prints."""

from pathlib import Path
from typing import Any

import click

from manifests.front import Verbs, emit

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, for programs.")
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True, help="Where networks run.")
FILE = click.Path(path_type=Path)


@click.group(name="pretrain", cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keepset")
def main() -> None:
    """Prove by pre-training and transfer that the kept samples were enough.

    Start with a configuration: pretrain train CONFIG.yaml
    """


@main.command()
@click.argument("config", type=FILE)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a value, `optimizer.lr=0.03`; may be given again.")
@JSON
def train(config: Path, overrides: tuple[str, ...], as_json: bool) -> None:
    """Train one backbone from a YAML configuration; stopped, the same command goes on.

    Example: pretrain train look.yaml --set seed=1
    """
    from pretrain.configuration import read_overrides
    from pretrain.train import train as function

    out = function(config, overrides=read_overrides(list(overrides)), quiet=as_json)
    emit({"checkpoint": str(out)}, as_json, lambda v: v["checkpoint"])


@main.command()
@click.argument("checkpoint")
@click.argument("tasks", type=FILE)
@click.option("--out", type=FILE, help="Also write one score a test sample to this Parquet file.")
@DEVICE
@click.option("--seed", default=0, show_default=True, help="Of the untrained network beside it.")
@JSON
def transfer(checkpoint: str, tasks: Path, out: Path | None, device: str, seed: int, as_json: bool) -> None:
    """Test a checkpoint on TASKS (YAML: name, train, test, probe) beside chance, raw pixels and the untrained network.

    Example: pretrain transfer trained/look tasks.yaml
    """
    from manifests.digest import digest
    from manifests.publish import publish_table
    from pretrain.transfer.anchors import anchored, summary, text
    from pretrain.transfer.transfer import read_tasks

    listed = read_tasks(tasks)
    found = anchored(checkpoint, listed, device=device, seed=seed)  # type: ignore[arg-type]
    if out is not None:
        publish_table(out, found["checkpoint"], digest("transfer", checkpoint, listed, seed))
    emit(summary(found), as_json, text)


@main.command()
@click.argument("plan", type=FILE)
@click.option("--run", type=FILE, help="The run whose kept rows are tested; default: the plan's.")
@click.option("--out", type=FILE, help="The evidence folder; default: RUN/evidence/DIGEST.")
@click.option("--seeds", type=click.IntRange(1), help="Seeds of each arm; default: the plan's. More of them later continue the comparison.")
@click.option("--jobs", type=click.IntRange(1), help="One-thread processes side by side; default: the plan's, else the cores.")
@DEVICE
@JSON
def compare(plan: Path, run: Path | None, out: Path | None, seeds: int | None, jobs: int | None, device: str, as_json: bool) -> None:
    """Train and test every arm of PLAN, seed by seed, and judge; stopped, the same command goes on.

    Example: pretrain compare plan.yaml --run runs/demo
    """
    from pretrain.evidence.compare import compare as function

    _show_verdict(function(plan, run=run, out=out, seeds=seeds, jobs=jobs, device=device), as_json)  # type: ignore[arg-type]


@main.command()
@click.argument("scores", type=FILE)
@click.option("--plan", required=True, type=FILE, help="The YAML plan: arms, tasks, margin, looks.")
@click.option("--out", type=FILE, help="The evidence folder; default: evidence/DIGEST beside SCORES.")
@JSON
def judge(scores: Path, plan: Path, out: Path | None, as_json: bool) -> None:
    """Judge a score table (Parquet: arm, run, task, sample_uid, value) by PLAN, whoever trained.

    Example: pretrain judge scores.parquet --plan plan.yaml
    """
    from pretrain.evidence.judge import judge as function

    _show_verdict(function(scores, plan=plan, out=out), as_json)


@main.command()
@click.argument("name", required=False)
@JSON
def objectives(name: str | None, as_json: bool) -> None:
    """List the objectives, or print the page of one.

    Example: pretrain objectives look
    """
    from pretrain.tables import OBJECTIVES

    _list("objectives", list(OBJECTIVES), name, as_json)


@main.command()
@click.argument("name", required=False)
@JSON
def tasks(name: str | None, as_json: bool) -> None:
    """List the probes that a task may name, or print the page of one.

    Example: pretrain tasks knn
    """
    from pretrain.tables import TASKS

    _list("transfer", list(TASKS), name, as_json)


def _list(folder: str, names: list[str], name: str | None, as_json: bool) -> None:
    """The first sentence of each, or the whole page of `name`; no method is imported."""
    from manifests.errors import Refusal
    from manifests.signature import first_sentence
    from pretrain.tables import page

    if name is not None and name not in names:
        raise Refusal("bad-value", f"pretrain {folder}", f"there is no {name!r}", f"there are {', '.join(names)}")
    if name is not None:
        emit({"name": name, "page": page(f"{folder}.{name}")}, as_json, lambda v: v["page"])
        return
    found: dict[str, Any] = {n: first_sentence(f"{folder}.{n}", "pretrain") for n in names}
    width = max(map(len, names))
    emit(found, as_json, lambda v: "\n".join(f"{n:<{width}}  {sentence}" for n, sentence in v.items()))


def _show_verdict(folder: Path, as_json: bool) -> None:
    import pyarrow.parquet as pq

    from pretrain.evidence.table import table

    if as_json:
        emit({"evidence": str(folder), "verdicts": pq.read_table(folder / "verdicts.parquet").to_pylist()}, True, str)
    else:
        click.echo(f"{table(folder)}\n\n{folder}")
