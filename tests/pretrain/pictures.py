"""Real pictures out of installed packages, packed into tars with `tarfile`."""

import functools
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) uint8 handwritten digits and their labels."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.images * 255 / 16).astype(np.uint8), found.target


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def write_pool(folder: Path, pictures: list[bytes], labels: list[int | None], per_tar: int = 100) -> Path:
    """A pool: source `main`, tars of `per_tar` samples."""
    folder.mkdir(parents=True)
    names = []
    for start in range(0, len(pictures), per_tar):
        names.append(f"{start // per_tar:05d}.tar")
        with tarfile.open(folder / names[-1], "w") as tar:
            for i in range(start, min(start + per_tar, len(pictures))):
                add(tar, f"{i:06d}.png", pictures[i])
                if labels[i] is not None:
                    add(tar, f"{i:06d}.cls", str(labels[i]).encode())
    (folder / "pool.yaml").write_text(yaml.safe_dump({"format": 1, "sources": [{"name": "main", "shards": names}]}))
    return folder


def uid_of(i: int) -> str:
    return hashlib.sha256(b"sample %d" % i).hexdigest()[:32]


def write_shards(
    folder: Path, pictures: list[bytes], labels: list[int | None], per_tar: int = 100, order: list[int] | None = None, **columns: list
) -> Path:
    """Written shards: tars beside Parquet with uid, key and label, as a run has them; sample i has uid `uid_of(i)`."""
    folder.mkdir(parents=True)
    order = list(range(len(pictures))) if order is None else order
    for start in range(0, len(order), per_tar):
        rows = order[start : start + per_tar]
        with tarfile.open(folder / f"{start // per_tar:05d}.tar", "w") as tar:
            for i in rows:
                add(tar, f"k{i:06d}.png", pictures[i])
        table = {"uid": [uid_of(i) for i in rows], "key": [f"k{i:06d}" for i in rows], "label": pa.array([labels[i] for i in rows], pa.int32())}
        table |= {name: [values[i] for i in rows] for name, values in columns.items()}
        pq.write_table(pa.table(table), folder / f"{start // per_tar:05d}.parquet")
    return folder


def digit_pngs(count: int) -> tuple[list[bytes], list[int]]:
    pictures, labels = digits()
    return [png(p) for p in pictures[:count]], labels[:count].tolist()
