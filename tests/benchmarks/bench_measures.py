"""index + exact_hash + perceptual_hash + quality on JPEGs of about 500 px, against the full-scale decode alone and against the plain way.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_measures.py [pictures]      # CPU seconds, one thread, best of three

Aims: at most 1.5 x the decode alone; at least 3 x as fast as the plain way; the hashes alone at most 0.6 CPU s per 1,000 pictures of 400 px.
"""

import hashlib
import io
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import imagehash
import numpy as np
from PIL import Image
from scipy.ndimage import laplace
from skimage import data
from sklearn.datasets import load_sample_images

from curate.measure.exact_hash import exact_hash
from curate.measure.perceptual_hash import perceptual_hash
from curate.measure.quality import quality
from curate.pool import Batch
from manifests.shards.index import index_shard
from manifests.shards.pool_yaml import Shard
from manifests.shards.read import ShardReader

ROWS = 64  # as `build` cuts batches


def photos(count: int, height: int, width: int) -> list[bytes]:
    """JPEG crops, quality 85, of eight photographs."""
    rng = np.random.default_rng(0)
    sources = [np.ascontiguousarray(getattr(data, name)()[..., :3]) for name in ("chelsea", "coffee", "astronaut", "rocket")] + list(
        load_sample_images().images
    )
    found = []
    for number in range(count):
        photo = Image.fromarray(sources[number % len(sources)])
        scale = 1.1 * max(height / photo.height, width / photo.width, 1)
        large = photo.resize((int(photo.width * scale) + 1, int(photo.height * scale) + 1), Image.Resampling.LANCZOS)
        x, y = int(rng.integers(0, large.width - width + 1)), int(rng.integers(0, large.height - height + 1))
        file = io.BytesIO()
        large.crop((x, y, x + width, y + height)).save(file, "JPEG", quality=85)
        found.append(file.getvalue())
    return found


def as_shard(files: list[bytes], folder: Path) -> Shard:
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for number, file in enumerate(files):
            for suffix, body in (("jpg", file), ("txt", b"a photograph")):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return Shard("s", "photos", str(folder / "photos.tar"))


def batches(shard: Shard, run: Callable[[Batch], object]) -> None:
    with tarfile.open(shard.url) as tar:
        places = [(m.offset_data, m.size) for m in tar if m.name.endswith("jpg")]
    with ShardReader(shard.url) as reader:
        for start in range(0, len(places), ROWS):
            run(Batch([reader.payload(*place) for place in places[start : start + ROWS]]))


def plain(files: list[bytes]) -> None:
    for file in files:
        picture = Image.open(io.BytesIO(file))
        picture.load()
        pixels = np.asarray(picture.convert("RGB"))
        gray = np.asarray(picture.convert("L"))
        _ = hashlib.sha256(file).digest(), hashlib.sha256(pixels).digest(), imagehash.phash(picture), imagehash.phash(picture, hash_size=16)
        _ = laplace(gray.astype(np.float32)).var(), gray.mean(), picture.entropy()


def seconds(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def everything(shard: Shard) -> None:
    index_shard(shard)
    batches(shard, lambda batch: (quality(batch), exact_hash(batch), perceptual_hash(batch)))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    print("milliseconds of CPU a picture, one thread")
    for height, width in ((375, 500), (300, 400)):
        with tempfile.TemporaryDirectory() as folder:
            files = photos(count, height, width)
            shard = as_shard(files, Path(folder))
            ways = {
                "full-scale decode alone": lambda shard=shard: batches(shard, lambda batch: batch.pixels()),
                "index + hashes + quality": lambda shard=shard: everything(shard),
                "exact and perceptual hash": lambda shard=shard: batches(shard, lambda batch: (exact_hash(batch), perceptual_hash(batch))),
                "index alone": lambda shard=shard: index_shard(shard),
                "the plain way": lambda files=files: plain(files),
            }
            spent = {name: seconds(work) / count * 1000 for name, work in ways.items()}
        print(f"\n{width} x {height}, {sum(map(len, files)) / count / 1024:.0f} KiB a picture, {count} pictures")
        for name, value in spent.items():
            print(f"  {name:28s}{value:8.3f}   {value / spent['full-scale decode alone']:6.2f} x decode")
        print(f"  the plain way takes {spent['the plain way'] / spent['index + hashes + quality']:.2f} x as long as ours")


if __name__ == "__main__":
    main()
