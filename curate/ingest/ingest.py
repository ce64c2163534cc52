"""Make a pool out of what there is: a folder, a table, a torchvision data set, or shards."""

import os
from pathlib import Path
from typing import Any

from curate.ingest.folder import check_folder, folder
from curate.ingest.pack import pack, source_place
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
    Returns     the summary that also stands in `to/ingest.json`: samples, shards, classes, unreadable and the first of these, the columns of a table that
                were taken, which links were followed, and what was left out by kind
    Guarantee   the same source gives the same bytes, whatever order the disk lists it in. Run again, it packs only shards whose samples changed;
                a killed run goes on after its last whole shard
    Cost        reading every file once and writing it once
    Errors      [no-such-file], [empty-pool], [bad-value], [unknown-column], [download-failed], [run-locked], [disk-full]
    """
    source, to = str(source), Path(to)
    options = {"image": image, "caption": caption, "label": label, "key": key}
    kind = _kind(source)
    if source_place(source) == os.path.realpath(to):
        raise Refusal("bad-value", "--to", f"{to} is the source itself", "a new or empty folder, beside the source or in it", "Give another --to")
    _only(options, {"table": tuple(options), "folder": ("caption",)}.get(kind, ()), source)
    if kind == "shards":
        return {"kind": kind, **shards(source, to=to, licence=licence)}
    if kind == "torchvision":
        samples = torchvision(source.removeprefix("torchvision:"))
    elif kind == "table":
        samples = table(Path(source), image=image, caption=caption, label=label, key=key)
    else:
        samples = folder(Path(source), caption=caption, skip=to)
    return {"kind": kind, **pack(samples, to, source=source, samples_per_shard=samples_per_shard, licence=licence, quiet=quiet)}


def _kind(source: str) -> str:
    """What `source` is: torchvision, shards, table or folder."""
    if source.startswith("torchvision:"):
        return "torchvision"
    if source.endswith(".tar"):
        return "shards"
    if "://" in source:
        allowed = "shards (…/{00000..00099}.tar) may lie anywhere"
        raise Refusal("bad-value", source, "is an address of something else than shards", allowed, "Fetch the rest first")
    path = Path(source)
    if not path.exists():
        raise Refusal("no-such-file", source, "is not there", "a folder, a table, `torchvision:<Dataset>` or shards")
    if path.is_file():
        if path.suffix.lower() not in KINDS:
            raise Refusal("bad-value", source, f"is a file that ends in {path.suffix!r}", f"a folder, a table ({', '.join(KINDS)}) or a .tar")
        return "table"
    check_folder(path)
    if (path / "pool.yaml").exists():
        cure = "Use it as it is: `curate build RECIPE --pool` takes it"
        raise Refusal("bad-value", source, "is a pool already", "a folder of pictures, tables or shards", cure)
    return "shards" if holds_tars(path) else "table" if holds_tables(path) else "folder"


def _only(options: dict[str, str | None], allowed: tuple[str, ...], source: str) -> None:
    """Refuse options that mean nothing for this kind of source: an option that is ignored is a wrong result."""
    for option, value in options.items():
        if value is not None and option not in allowed:
            raise Refusal("bad-value", f"--{option}", f"{value!r} says nothing about {source}", "an option for tables (--caption for folders too)")
