"""Make a pool out of what there is: a folder, a table, a torchvision data set, or shards."""

from pathlib import Path
from typing import Any

from curate.ingest.folder import check_folder, folder
from curate.ingest.pack import pack
from curate.ingest.shards import holds_tars, shards
from curate.ingest.table import KINDS, holds_tables, table
from curate.ingest.torchvision import torchvision
from manifests.errors import Refusal


def ingest(
    source: str,
    *,
    to: Path,
    samples_per_shard: int = 10_000,
    image: str | None = None,
    caption: str | None = None,
    label: str | None = None,
    key: str | None = None,
    licence: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Make a pool in folder `to` out of `source`. Original bytes are never encoded again; nothing is left out without being counted.

    source      a folder of pictures (sub-folders are classes); a CSV, JSON lines or Parquet table with paths or bytes, or a folder of such tables;
                `torchvision:<Dataset>?root=DIR&split=train`; or shards: a folder, a URL with brace ranges, img2dataset's or DataComp's output.
                Of shards only `pool.yaml` is written
    image       of a table: the column of paths or bytes (default: the first of image, path, file_name, … that is there)
    caption     of a table: the column of captions; of a folder: the extension of the text file beside each picture ("txt")
    label       of a table: the column of labels; text becomes classes
    key         of a table: the column of names (default: made from the path)
    licence     goes into `pool.yaml`
    Returns     the summary that also stands in `to/ingest.json`: samples, shards, classes, unreadable, and what was left out by kind
    Guarantee   the same source gives the same bytes, whatever order the disk lists it in. Run again, it packs only shards whose samples changed;
                a killed run goes on after its last whole shard
    Cost        reading every file once and writing it once
    Errors      [no-such-file], [empty-pool], [bad-value], [unknown-column], [download-failed], [run-locked], [disk-full]
    """
    source, to = str(source), Path(to)
    options = {"--image": image, "--caption": caption, "--label": label, "--key": key}
    if source.startswith("torchvision:"):
        _only(options, (), source)
        samples = torchvision(source.removeprefix("torchvision:"))
        return {"kind": "torchvision", **pack(samples, to, source=source, samples_per_shard=samples_per_shard, licence=licence, quiet=quiet)}
    if "://" in source and not source.endswith(".tar"):
        raise Refusal(
            "bad-value",
            source,
            "is an address of something else than shards",
            "shards (…/{00000..00099}.tar) may lie anywhere",
            "Fetch the rest first",
        )
    if source.endswith(".tar"):
        _only(options, (), source)
        return {"kind": "shards", **shards(source, to=to, licence=licence)}
    path = Path(source)
    if not path.exists():
        raise Refusal("no-such-file", source, "is not there", "a folder, a table, `torchvision:<Dataset>` or shards")
    if path.is_file():
        if path.suffix.lower() not in KINDS:
            raise Refusal("bad-value", source, f"is a file that ends in {path.suffix!r}", f"a folder, a table ({', '.join(KINDS)}) or a .tar")
        return _packed("table", table(path, image=image, caption=caption, label=label, key=key), to, source, samples_per_shard, licence, quiet)
    check_folder(path)
    if (path / "pool.yaml").exists():
        raise Refusal(
            "bad-value",
            source,
            "is a pool already",
            "a folder of pictures, tables or shards",
            "Use it as it is: `curate build RECIPE --pool` takes it",
        )
    if holds_tars(path):
        _only(options, (), source)
        return {"kind": "shards", **shards(source, to=to, licence=licence)}
    if holds_tables(path):
        return _packed("table", table(path, image=image, caption=caption, label=label, key=key), to, source, samples_per_shard, licence, quiet)
    _only(options, ("--caption",), source)
    return _packed("folder", folder(path, caption=caption, skip=to), to, source, samples_per_shard, licence, quiet)


def _packed(kind: str, samples: Any, to: Path, source: str, samples_per_shard: int, licence: str | None, quiet: bool) -> dict[str, Any]:
    return {"kind": kind, **pack(samples, to, source=source, samples_per_shard=samples_per_shard, licence=licence, quiet=quiet)}


def _only(options: dict[str, str | None], allowed: tuple[str, ...], source: str) -> None:
    """Refuse options that mean nothing for this kind of source: an option that is ignored is a wrong result."""
    for option, value in options.items():
        if value is not None and option not in allowed:
            raise Refusal(
                "bad-value",
                option,
                f"{value!r} says nothing about {source}",
                "this option is for tables" + (" and --caption also for folders" if option == "--caption" else ""),
            )
