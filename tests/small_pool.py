"""A pool of 40 real samples in three shards: photo crops with labels and captions, copies, a blank, a broken file; and its evaluation pool."""

import io
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from skimage import data

from manifests.shards.pool_yaml import write_pool_yaml

PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")
SIDE = 96


@cache
def crops(count: int, side: int = SIDE) -> tuple[tuple[np.ndarray, int], ...]:
    """`count` different square crops (side, side, 3) uint8 of four photographs, with the photograph's number as label."""
    photos = [np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in PHOTOS]
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        label = number % len(photos)
        photo = photos[label]
        y, x = (int(rng.integers(0, edge - 2 * side)) for edge in photo.shape[:2])
        found.append((photo[y : y + 2 * side : 2, x : x + 2 * side : 2], label))
    return tuple(found)


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    """`pixels` as JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def add(tar: tarfile.TarFile, name: str, payload: bytes) -> None:
    """One member with fixed metadata."""
    info = tarfile.TarInfo(name)
    info.size = len(payload)
    tar.addfile(info, io.BytesIO(payload))


def samples() -> list[dict]:
    """40 samples: 34 different crops, 2 byte copies, 2 re-encoded copies, a blank picture, a truncated file."""
    pictures = crops(34)
    rows = [{"image": jpeg(p), "label": label, "caption": f"a crop of {PHOTOS[label]}", "truth_copy_of": None} for p, label in pictures]
    rows += [{**rows[i], "truth_copy_of": f"{i:06d}"} for i in (0, 5)]
    rows += [{"image": jpeg(pictures[i][0], 60), "label": pictures[i][1], "caption": "again", "truth_copy_of": f"{i:06d}"} for i in (9, 14)]
    rows.append({"image": jpeg(np.full((SIDE, SIDE, 3), 128, np.uint8)), "label": 0, "caption": "blank", "truth_copy_of": None})
    rows.append({"image": rows[3]["image"][:400], "label": 3, "caption": "cut off", "truth_copy_of": None})
    for number, row in enumerate(rows):
        row |= {"key": f"{number:06d}", "group": f"g{number % 3}", "quality_vote": None if number == 2 else number / 40}
    return rows


def write_pool(folder: Path, rows: list[dict] | None = None, per_shard: int = 15, name: str = "small") -> Path:
    """Write `rows` as a pool with sidecars; returns the folder."""
    rows = samples() if rows is None else rows
    (folder / "shards").mkdir(parents=True)
    starts = range(0, len(rows), per_shard)
    for number, start in enumerate(starts):
        chosen = rows[start : start + per_shard]
        with tarfile.open(folder / "shards" / f"{number:05d}.tar", "w") as tar:
            for row in chosen:
                add(tar, f"{row['key']}.jpg", row["image"])
                add(tar, f"{row['key']}.cls", str(row["label"]).encode())
                add(tar, f"{row['key']}.txt", row["caption"].encode())
        own = [c for c in chosen[0] if c not in ("image", "label", "caption")]
        table = pa.table({c: pa.array([r[c] for r in chosen], pa.float64() if c == "quality_vote" else pa.string()) for c in own})
        pq.write_table(table, folder / "shards" / f"{number:05d}.parquet")
    last = len(starts) - 1
    shards = f"shards/{{00000..{last:05d}}}.tar" if last else "shards/00000.tar"
    columns = {"group": "string", "quality_vote": "double", "truth_copy_of": "string"}
    write_pool_yaml(folder, name=name, sources=[{"name": "crops", "shards": shards}], classes=list(PHOTOS), columns=columns)
    return folder


def write_evaluation_pool(folder: Path) -> Path:
    """Eight test crops, two of which stand in the pool (one re-encoded)."""
    pictures = crops(42)
    rows = [{"image": jpeg(p), "label": label, "caption": "test", "key": f"t{i}"} for i, (p, label) in enumerate(pictures[34:40])]
    rows.append({"image": jpeg(pictures[20][0]), "label": pictures[20][1], "caption": "leak", "key": "t6"})
    rows.append({"image": jpeg(pictures[21][0], 70), "label": pictures[21][1], "caption": "leak", "key": "t7"})
    for row in rows:
        row |= {"group": "t", "quality_vote": 0.0, "truth_copy_of": None}
    return write_pool(folder, rows, per_shard=8, name="small-test")
