"""`manifests`: read the record. Each verb parses, calls the public function of the same name and prints."""

import sys
from pathlib import Path

import click

from manifests.front import Verbs, emit

RUN = click.Path(path_type=Path)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, for programs.")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keepset")
def main() -> None:
    """Read the record of a run: what happened to every sample, and why.

    Example: manifests explain RUN 000123
    """


@main.command()
@click.argument("run", type=RUN)
@JSON
def show(run: Path, as_json: bool) -> None:
    """Summarise RUN: the law of the ledger, the funnel, faults, evidence, where things are.

    Example: manifests show runs/messy
    """
    from manifests.audit.show import show as function
    from manifests.audit.show import text

    emit(function(run), as_json, text)


@main.command()
@click.argument("run", type=RUN)
@click.argument("key")
@JSON
def explain(run: Path, key: str, as_json: bool) -> None:
    """Tell the life of one sample of RUN, stage by stage, with its witness; KEY is a key, a uid or the start of one, or a file of the pool.

    A file is named by its path in the pool, which stands in the ledger's column `path`, or by the end of that where one file alone ends so.

    Example: manifests explain runs/messy 000123

    Example: manifests explain audits/photos/run holiday/IMG_0042.jpg
    """
    from manifests.audit.explain import explain as function
    from manifests.audit.explain import text

    emit(function(run, key), as_json, text)


@main.command()
@click.argument("run", type=RUN)
@click.option("--deep", is_flag=True, help="Also read every byte of every shard (about the time of `cat`).")
@JSON
def verify(run: Path, deep: bool, as_json: bool) -> None:
    """Check that RUN is whole: the law of the ledger, every digest, every shard; what is wrong, where, and the cure.

    Example: manifests verify runs/messy --deep
    """
    from manifests.audit.verify import text
    from manifests.audit.verify import verify as function

    found = function(run, deep=deep)
    emit(found, as_json, text)
    sys.exit(found["exit_code"])


@main.command()
@click.argument("old", type=RUN)
@click.argument("new", type=RUN)
@JSON
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Compare two runs: parameters that differ, samples whose fate differs, and examples of each.

    Example: manifests diff runs/messy runs/messy-2
    """
    from manifests.audit.diff import diff as function
    from manifests.audit.diff import text

    emit(function(old, new), as_json, text)


@main.command()
@click.argument("run", type=RUN)
@click.argument("sql")
@click.option("--limit", default=1000, show_default=True, help="Rows to print at most.")
@JSON
def query(run: Path, sql: str, limit: int, as_json: bool) -> None:
    """Ask RUN in SQL: one SELECT over the views below, in a sandbox.

    \b
    ledger        a row for every sample: uid, key, shard, label_name, caption,
                  status, drop_stage, drop_reason, score, threshold, witness,
                  weight, and the pool's own columns (path, of a folder)
    samples       the ledger, and beside it the columns of every measure, such
                  as width, blur or phash
    STAGE         a view for each stage, with `_` for `.`: dedup_perceptual has
                  uid, keep, reason, score, threshold, witness and the stage's
                  own columns
    edges_STAGE   the pairs that a stage kept: a, b, score
    leaks         test pictures that stand in the pool, and who shows them
    evaluations   pool, uid, key of every test picture
    replays       the run at other limits (curate replay RUN --sweep)
    verdicts      what the evidence says, and
    scores        the scores behind it

    A view is there where the run has what it shows; "DESCRIBE samples" lists the columns of one.

    Example: manifests query runs/messy "SELECT drop_reason, count(*) FROM ledger GROUP BY 1"
    """
    from manifests.audit.query import query as function
    from manifests.audit.query import text

    table = function(run, sql, limit=limit)
    if as_json:
        emit({"columns": table.column_names, "rows": table.to_pylist()}, True, str)
    else:
        click.echo(text(table))


@main.command()
@click.argument("run", type=RUN)
@click.option("--out", type=click.Path(path_type=Path), help="Where to write the page; default RUN/report.html.")
@JSON
def report(run: Path, out: Path | None, as_json: bool) -> None:
    """Write one self-contained HTML page about RUN that opens offline.

    Example: manifests report runs/messy
    """
    from manifests.report.page import report as function

    path = function(run, out=out)
    emit({"report": str(path)}, as_json, lambda value: value["report"])
