"""`curate`: pool -> decisions -> shards. Each verb parses, calls the public function of the same name and prints."""

from pathlib import Path
from typing import Any

import click

from manifests.errors import Refusal
from manifests.front import Verbs, emit

JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, for programs.")
WORKERS = click.option("--workers", type=click.IntRange(1), help="Processes; default: the cores of this machine.")
DEVICE = click.option("--device", type=click.Choice(["auto", "cpu", "cuda", "mps"]), default="auto", show_default=True, help="Where encoders run.")


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="keepset")
def main() -> None:
    """Decide which samples of a pool to keep, say why for every one, and write the kept ones as shards.

    Start with a folder of images: curate audit FOLDER
    """


@main.command()
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), help="A folder for pool (where one has to be made) and run; default: audits/NAME.")
@WORKERS
@JSON
def audit(source: str, out: Path | None, workers: int | None, as_json: bool) -> None:
    """Look at a folder of images (or a pool): exact and perceptual duplicates, quality findings, one HTML report.

    Example: curate audit ~/photos
    """
    from curate.auditing import audit as function
    from curate.auditing import left_out, pool_made

    run = function(source, out=out, workers=workers)
    from manifests.audit.show import show, text

    made = pool_made(source, out)
    noted = left_out(made) if made is not None else {}
    found = {"run": str(run.path), "report": str(run.path / "report.html"), "counts": run.info["counts"], "ingest": noted}
    emit(found, as_json, lambda v: f"{_lines(noted)}\n\n{text(show(run.path))}\n\n{v['report']}".lstrip())


@main.command()
@click.argument("source")
@click.option("--to", required=True, type=click.Path(path_type=Path), help="The pool's folder.")
@click.option("--samples-per-shard", default=10_000, show_default=True, type=click.IntRange(1), help="Samples a tar.")
@click.option("--image", help="The column of a table that holds the image's path or bytes.")
@click.option("--caption", help="The column of a table that holds the caption.")
@click.option("--label", help="The column of a table that holds the label.")
@click.option("--key", help="The column of a table that holds the sample's key.")
@click.option("--licence", help="The licence to record in pool.yaml.")
@JSON
def ingest(
    source: str,
    to: Path,
    samples_per_shard: int,
    image: str | None,
    caption: str | None,
    label: str | None,
    key: str | None,
    licence: str | None,
    as_json: bool,
) -> None:
    """Make a pool from SOURCE: a folder of images, a CSV, JSONL or Parquet table, torchvision:NAME, or existing shards.

    Example: curate ingest photos/ --to pools/photos
    """
    from curate.ingest.ingest import ingest as function

    found = function(source, to=to, samples_per_shard=samples_per_shard, image=image, caption=caption, label=label, key=key, licence=licence)
    emit(found, as_json, _lines)


@main.command()
@click.argument("pool")
@click.argument("table")
@click.option("--name", required=True, help="What the attached columns or vectors are called.")
@click.option("--key", help="The table's column that names samples (by default uid, source_uid, key or path), or TABLECOLUMN=POOLCOLUMN.")
@click.option("--vectors", help="The table's column that holds vectors.")
@click.option("--column", "columns", multiple=True, help="A column to attach, not together with --vectors; may be given again. Default: all.")
@JSON
def attach(pool: str, table: str, name: str, key: str | None, vectors: str | None, columns: tuple[str, ...], as_json: bool) -> None:
    """Attach your own vectors, scores or columns to POOL, so that nothing is embedded twice.

    Example: curate attach pools/photos clip.parquet --name clip --key key
    """
    from curate.attach import attach as function

    emit(function(pool, table, name=name, key=key, vectors=vectors, columns=list(columns) or None), as_json, _lines)


@main.command()
@click.argument("recipe")
@click.option("--pool", help="A pool's folder or a shard URL; default: the recipe's.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The run's folder.")
@click.option("--set", "settings", multiple=True, metavar="STAGE.PARAMETER=VALUE", help="Override a parameter; may be given again.")
@click.option("--reuse", multiple=True, type=click.Path(path_type=Path), help="Another run whose finished parts may serve.")
@WORKERS
@DEVICE
@click.option("--memory", help="Private memory to stay under, such as 4GiB; default: half of the machine.")
@click.option("--dry-run", is_flag=True, help="Print the stages, what is done, and what the rest will take; do nothing.")
@click.option(
    "--recheck", is_flag=True, help="Read every shard and every output again instead of trusting sizes and times; what differs is made anew."
)
@click.option("--strict", is_flag=True, help="Exit with 3 where any sample is quarantined.")
@JSON
def build(recipe: str, pool: str | None, out: Path, settings: tuple[str, ...], reuse: tuple[Path, ...], workers: int | None, device: str, memory: str | None,
          dry_run: bool, recheck: bool, strict: bool, as_json: bool) -> None:  # fmt: skip
    """Curate a pool by RECIPE into a run. Run it again: it continues where it stopped, and redoes only what changed.

    RECIPE is a YAML file, or one that ships with keepset: audit, photos or slices.

    Example: curate build recipe.yaml --pool pools/photos --out runs/photos
    """
    from curate.building import build as function

    if dry_run:
        from curate.dry_run import dry_run as plan
        from curate.dry_run import text

        emit(plan(recipe, pool=pool, out=out, settings=settings, workers=workers, device=device, memory=memory, reuse=reuse), as_json, text)
        return
    stamp = _stamp(out)
    run = function(
        recipe,
        pool=pool,
        out=out,
        settings=settings,
        reuse=reuse,
        workers=workers,
        device=device,
        memory=memory,
        strict=strict,
        recheck=recheck,
        quiet=as_json,
    )
    if stamp == _stamp(out):
        click.echo(f"{out}: finished already; nothing to do", err=True)
    from manifests.audit.show import show
    from manifests.audit.show import text as shown

    emit(show(run.path), as_json, shown)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--set", "settings", multiple=True, metavar="STAGE.PARAMETER=VALUE", help="Override a parameter; may be given again.")
@click.option("--without", multiple=True, metavar="STAGE", help="Leave a stage out; may be given again.")
@click.option("--order", metavar="STAGE,STAGE", help="These stages, in this order, take the places that they hold now.")
@click.option("--recipe", help="A whole recipe instead of the run's own.")
@click.option("--out", type=click.Path(path_type=Path), help="A new folder for the whole run; `curate build` then only writes its shards.")
@click.option(
    "--sweep", is_flag=True, help="Fold the run at several values of each limit that can move and store them for the sliders of the report."
)
@DEVICE
@click.option("--memory", help="Private memory to stay under, such as 4GiB; default: half of the machine.")
@JSON
def replay(run: Path, settings: tuple[str, ...], without: tuple[str, ...], order: str | None, recipe: str | None, out: Path | None, sweep: bool,
           device: str, memory: str | None, as_json: bool) -> None:  # fmt: skip
    """Decide RUN again with other thresholds, stages or order, without a picture: funnel, flows, forecast.

    Example: curate replay runs/photos --set dedup.perceptual.max_rms=8 --without keep.where
    """
    if sweep:
        from curate.sweeping import sweep as stops
        from curate.sweeping import text as told

        if settings or without or order or recipe or out:
            raise Refusal(
                "bad-value", "--sweep", "was given with --set, --without, --order, --recipe or --out", "alone, or with --device and --memory"
            )
        emit(stops(run, device=device, memory=memory, quiet=as_json), as_json, told)
        return
    from curate.replaying import replay as function
    from curate.replaying import text

    found = function(run, settings=settings, without=without, order=order, recipe=recipe, out=out, device=device, memory=memory)
    emit(found, as_json, text)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--pool", help="The new pool's folder, or a shard URL.")
@click.option("--redecide", is_flag=True, help="Decide all generations anew together; what was measured stays, ledger and shards are replaced.")
@WORKERS
@DEVICE
@click.option("--memory", help="Private memory to stay under, such as 4GiB; default: half of the machine.")
@click.option("--dry-run", is_flag=True, help="Print the stages, what is done, and what the rest will take; do nothing.")
@JSON
def append(run: Path, pool: str | None, redecide: bool, workers: int | None, device: str, memory: str | None, dry_run: bool, as_json: bool) -> None:
    """Append a new pool to the finished RUN: only what is new is measured, decided and written; old shards stay as they are.

    Example: curate append runs/photos --pool pools/photos-june
    """
    from curate.appending import append as function
    from curate.appending import append_plan
    from curate.dry_run import text
    from manifests.audit.show import show
    from manifests.audit.show import text as shown

    if dry_run:
        emit(append_plan(run, pool=pool, redecide=redecide, workers=workers, device=device, memory=memory), as_json, text)
        return
    stamp = _stamp(run)
    found = function(run, pool=pool, redecide=redecide, workers=workers, device=device, memory=memory, quiet=as_json)
    if stamp == _stamp(run):
        click.echo(f"{run}: appended already; nothing to do", err=True)
    emit(show(found.path), as_json, shown)


@main.command()
@click.argument("name", required=False)
@JSON
def stages(name: str | None, as_json: bool) -> None:
    """List every stage, or print the page of NAME: what it decides, its parameters, its cost.

    Example: curate stages dedup.perceptual
    """
    from curate.stage_pages import stages as function
    from curate.stage_pages import text

    emit(function(name), as_json, text)


@main.command()
@JSON
def doctor(as_json: bool) -> None:
    """Say what is installed, which device there is, what is missing and how to get it.

    Example: curate doctor
    """
    from curate.doctor import doctor as function
    from curate.doctor import text

    emit(function(), as_json, text)


def _stamp(run: Path) -> int | None:
    path = run / "run.json"
    return path.stat().st_mtime_ns if path.is_file() else None


def _lines(value: dict[str, Any]) -> str:
    from curate.ingest.pack import told

    return "\n".join(told(value))
