"""Small pictures for the tests of ingest, and what a packed pool holds."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(seed: int, kind: str = "PNG", side: int = 8) -> bytes:
    """A random picture of `side` pixels as bytes of the given kind."""
    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(sink, kind)
    return sink.getvalue()


def put(path: Path, data: bytes) -> Path:
    """Write a file, its folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def members(pool: Path) -> dict[str, bytes]:
    """Member name -> bytes over all tars of a packed pool, as Python's tarfile reads them."""
    found = {}
    for path in sorted((pool / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.name not in found
                found[member.name] = tar.extractfile(member).read()
    return found


def sidecar(pool: Path) -> pa.Table:
    """All rows beside the tars."""
    return pa.concat_tables([pq.read_table(p) for p in sorted((pool / "shards").glob("*.parquet"))])


def files(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of everything under `folder` that promises equal bytes."""
    skip = ("ingest.json", ".lock", "pool.yaml")
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name not in skip and "cache" not in p.parts
    }
