"""Mess up a pool openly: Fashion-MNIST with wrong labels, copies, junk, broken files and leaked test pictures.

    python examples/plant.py FASHION --to POOLS --seed 7

FASHION is the folder that `examples/get_fashion.sh` filled. Four pools are written under POOLS:

    messy        6,000 training pictures, 40 % of their labels replaced by another class; 2,000 copies of them (popularity falls as
                 rank^-0.9; half byte for byte, half through JPEG at quality 60) with the label of their original; 200 blank or noise
                 pictures with random labels; 300 test pictures (a third through JPEG); 12 broken files; all shuffled
    clean        the same pictures in the same order with the true labels, and the same mess otherwise
    probe-train  6,000 other training pictures, nothing planted
    test         the 10,000 test pictures

What was planted stands in columns `truth_*`, which go to the ledger and which no stage can read.
"""

import argparse
import io
import json
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curate.ingest.pack import Samples, pack
from curate.ingest.torchvision import png

CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
ORIGIN = "Fashion-MNIST, examples/plant.py"
TEXT = b"<html><body>404 Not Found: this picture has moved.</body></html>\n"


@dataclass(frozen=True)
class Mess:
    """How much of what is planted."""

    originals: int = 6_000
    wrong: float = 0.4
    copies: int = 2_000
    junk: int = 200
    leaks: int = 300
    broken: int = 12
    probe: int = 6_000


@dataclass
class Row:
    """One sample of the messy pool and the truth about it. `label` is what the pool says of it."""

    data: bytes
    label: int
    true: int | None
    source: str
    original: int | None = None  # of a copy: the place of its original before the shuffle
    junk: bool = False
    leak: bool = False
    broken: bool = False


def read_idx(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, 28, 28) uint8 pictures and (n,) uint8 labels of `part`, "train" or "t10k"."""
    raw = folder / "FashionMNIST" / "raw"
    pictures = np.frombuffer((raw / f"{part}-images-idx3-ubyte").read_bytes(), np.uint8, offset=16).reshape(-1, 28, 28)
    return pictures, np.frombuffer((raw / f"{part}-labels-idx1-ubyte").read_bytes(), np.uint8, offset=8)


def through_jpeg(array: np.ndarray) -> np.ndarray:
    """`array` after JPEG at quality 60."""
    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "JPEG", quality=60)
    return np.asarray(Image.open(sink))


def mess(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], how: Mess, seed: int) -> tuple[list[Row], np.ndarray]:
    """The rows of the messy pool before the shuffle, and the training pictures that are left for probing."""
    rng = np.random.default_rng([seed, 1])
    pictures, labels = train
    drawn = rng.permutation(len(pictures))
    chosen, probe = drawn[: how.originals], np.sort(drawn[how.originals : how.originals + how.probe])
    replaced = rng.permutation(how.originals) < round(how.wrong * how.originals)
    other = (labels[chosen] + rng.integers(1, 10, how.originals)) % 10  # another class, each as likely
    rows = [
        Row(png(pictures[p]), int(other[i] if replaced[i] else labels[p]), int(labels[p]), f"train/{p}")
        for i, p in enumerate(chosen)
    ]  # fmt: skip
    popularity = np.arange(1, how.originals + 1) ** -0.9
    for n, i in enumerate(rng.choice(how.originals, how.copies, p=popularity / popularity.sum())):
        one = rows[i]
        data = one.data if n < how.copies // 2 else png(through_jpeg(pictures[chosen[i]]))
        rows.append(Row(data, one.label, one.true, one.source, original=int(i)))
    rows += [Row(png(_junk(rng, n)), int(rng.integers(10)), None, "junk", junk=True) for n in range(how.junk)]
    for n, p in enumerate(rng.choice(len(test[0]), how.leaks, replace=False)):
        data = png(through_jpeg(test[0][p]) if n < how.leaks // 3 else test[0][p])
        rows.append(Row(data, int(test[1][p]), int(test[1][p]), f"test/{p}", leak=True))
    spare = drawn[how.originals + how.probe :]
    for n in range(how.broken):
        whole = png(pictures[spare[n]])
        data = (b"", whole[: len(whole) * 3 // 5], TEXT)[n % 3]
        rows.append(Row(data, int(rng.integers(10)), None, ("empty", "truncated", "text")[n % 3], broken=True))
    return rows, probe


def _junk(rng: np.random.Generator, number: int) -> np.ndarray:
    """Every fourth one is pure noise; the others are blank: one grey with a faint grain."""
    if number % 4 == 0:
        return rng.integers(0, 256, (28, 28), dtype=np.uint8)
    grey = rng.integers(0, 256) + rng.normal(0, rng.uniform(0.5, 6), (28, 28))
    return np.clip(grey, 0, 255).astype(np.uint8)


def shuffled(rows: list[Row], seed: int, *, labels_are_true: bool) -> Samples:
    """The rows as samples in an order that tells nothing, with what was planted in `truth_*` columns."""
    order = np.random.default_rng([seed, 2]).permutation(len(rows))
    place = np.empty(len(rows), np.int64)
    place[order] = np.arange(len(rows))
    mixed = [rows[i] for i in order]
    labels = [row.true if labels_are_true and row.true is not None else row.label for row in mixed]
    keys = [f"img-{i:05d}" for i in range(len(rows))]
    columns = {
        "truth_label": pa.array([row.true for row in mixed], pa.int32()),
        "truth_is_wrong": pa.array([row.true is not None and row.true != label for row, label in zip(mixed, labels, strict=True)]),
        "truth_copy_of": pa.array([None if row.original is None else keys[place[row.original]] for row in mixed], pa.string()),
        "truth_is_junk": pa.array([row.junk for row in mixed]),
        "truth_is_leak": pa.array([row.leak for row in mixed]),
        "truth_is_broken": pa.array([row.broken for row in mixed]),
        "truth_source": pa.array([row.source for row in mixed], pa.string()),
    }
    return _samples(keys, [row.data for row in mixed], labels, pa.table(columns))


def plain(pictures: np.ndarray, labels: np.ndarray, chosen: np.ndarray, name: str) -> Samples:
    """The chosen pictures as they are."""
    keys = [f"{name}-{i:05d}" for i in range(len(chosen))]
    source = pa.table({"truth_source": pa.array([f"{name}/{p}" for p in chosen], pa.string())})
    return _samples(keys, [png(pictures[p]) for p in chosen], [int(labels[p]) for p in chosen], source)


def _samples(keys: list[str], data: list[bytes], labels: list[int], columns: pa.Table) -> Samples:
    return Samples(
        keys=keys, read=data.__getitem__, stamps=[zlib.crc32(d) for d in data], suffixes=["png"] * len(keys),
        columns=columns, labels=labels, classes=CLASSES,
    )  # fmt: skip


def plant(fashion: Path, to: Path, seed: int, how: Mess = Mess(), samples_per_shard: int = 2_500) -> dict[str, Any]:
    """Write the four pools under `to`; pool name -> summary."""
    train, test = read_idx(fashion, "train"), read_idx(fashion, "t10k")
    rows, probe = mess(train, test, how, seed)
    pools = {
        "messy": shuffled(rows, seed, labels_are_true=False),
        "clean": shuffled(rows, seed, labels_are_true=True),
        "probe-train": plain(*train, probe, "train"),
        "test": plain(*test, np.arange(len(test[0])), "test"),
    }
    for name in pools:
        _make_room(to / name, seed)
    return {
        name: pack(
            samples,
            to / name,
            source=f"{ORIGIN}, seed {seed}, {name}",
            samples_per_shard=samples_per_shard,
            licence="MIT",
            quiet=True,
        )
        for name, samples in pools.items()
    }


def _make_room(pool: Path, seed: int) -> None:
    """Remove a pool that this script planted with another seed; anything else is left for `pack` to refuse."""
    note = pool / "ingest.json"
    earlier = json.loads(note.read_text())["source"] if note.exists() else ""
    if earlier.startswith(ORIGIN) and f"seed {seed}," not in earlier:
        shutil.rmtree(pool)


def main() -> None:
    """Parse the command line, plant, and say what was written."""
    parser = argparse.ArgumentParser(description="Write a pool that is messed up openly, and three clean ones beside it.")
    parser.add_argument("fashion", type=Path, help="the folder that examples/get_fashion.sh filled")
    parser.add_argument("--to", type=Path, required=True, help="folder for the four pools")
    parser.add_argument("--seed", type=int, required=True, help="another seed draws other pictures, labels, copies and leaks")
    given = parser.parse_args()
    for name, summary in plant(given.fashion, given.to, given.seed).items():
        print(f"{given.to / name}: {summary['samples']:,} samples in {summary['shards']} shards")


if __name__ == "__main__":
    main()
