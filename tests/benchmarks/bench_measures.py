"""index + exact_hash + perceptual_hash + quality on JPEGs of about 500 px, against the full-scale decode alone and against the plain way.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_measures.py [pictures]      # CPU seconds, one thread, best of seven

Aims: at most 1.5 x the decode alone; at least 3 x as fast as the plain way; the hashes alone at most 0.6 CPU s per 1,000 pictures of 400 px.
The decode alone lets each picture go before the next, which is the cheapest; with the pictures of a batch held, as whoever needs them later must, it costs more.
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

from curate.engine_local import KEPT
from curate.measuring import looks
from curate.pool import Batch, Columns
from curate.recipe import ResolvedStage
from manifests import images
from manifests.memory import keep_freed
from manifests.shards.index import index_shard
from manifests.shards.pool_yaml import Shard
from manifests.shards.read import ShardReader

ROWS = 64  # as `build` cuts batches
TURNS = 7
DECODE, OURS, PLAIN = "full-scale decode alone", "index + hashes + quality", "the plain way"


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


def batches(shard: Shard, places: list[tuple[int, int]], run: Callable[[list], object]) -> None:
    """`run` on the payloads of each batch."""
    with ShardReader(shard.url) as reader:
        for start in range(0, len(places), ROWS):
            run([reader.payload(*place) for place in places[start : start + ROWS]])


def measured(*names: str) -> Callable[[list], list[Columns]]:
    """The measures of these names on the payloads of a batch, as `build` calls them."""
    stages = [ResolvedStage(name, name, {}) for name in names]

    def run(payloads: list) -> list[Columns]:
        batch = Batch(payloads, looks=looks(stages))
        return [stage.function(batch) for stage in stages]

    return run


def decoded(payloads: list) -> None:
    for payload in payloads:
        images.decode(payload)


def plain(files: list[bytes]) -> None:
    for file in files:
        picture = Image.open(io.BytesIO(file))
        picture.load()
        pixels = np.asarray(picture.convert("RGB"))
        gray = np.asarray(picture.convert("L"))
        _ = hashlib.sha256(file).digest(), hashlib.sha256(pixels).digest(), imagehash.phash(picture), imagehash.phash(picture, hash_size=16)
        _ = laplace(gray.astype(np.float32)).var(), gray.mean(), picture.entropy()


def seconds(ways: dict[str, Callable[[], object]], count: int) -> dict[str, float]:
    """Milliseconds of CPU a picture of each way: the best of several, in turns, so that the machine's moods strike all alike."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(TURNS):
        for name, work in ways.items():
            if name == PLAIN and turn >= 2:
                continue
            started = time.process_time()
            work()
            best[name] = min(best[name], (time.process_time() - started) / count * 1000)
    return best


def ways(shard: Shard, files: list[bytes]) -> dict[str, Callable[[], object]]:
    with tarfile.open(shard.url) as tar:
        places = [(m.offset_data, m.size) for m in tar if m.name.endswith("jpg")]
    exact, perceptual, quality = measured("measure.exact_hash"), measured("measure.perceptual_hash"), measured("measure.quality")
    hashes, three = (
        measured("measure.exact_hash", "measure.perceptual_hash"),
        measured("measure.quality", "measure.exact_hash", "measure.perceptual_hash"),
    )
    return {
        DECODE: lambda: batches(shard, places, decoded),
        "the same, batches held": lambda: batches(shard, places, lambda payloads: Batch(payloads).pixels()),
        OURS: lambda: (index_shard(shard), batches(shard, places, three)),
        "exact and perceptual hash": lambda: batches(shard, places, hashes),
        "exact hash alone": lambda: batches(shard, places, exact),
        "perceptual hash alone": lambda: batches(shard, places, perceptual),
        "quality alone": lambda: batches(shard, places, quality),
        "index alone": lambda: index_shard(shard),
        PLAIN: lambda: plain(files),
    }


def main() -> None:
    keep_freed(KEPT)  # as the workers of a build do
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    print("milliseconds of CPU a picture, one thread")
    for height, width in ((375, 500), (300, 400)):
        with tempfile.TemporaryDirectory() as folder:
            files = photos(count, height, width)
            shard = as_shard(files, Path(folder))
            spent = seconds(ways(shard, files), count)
        print(f"\n{width} x {height}, {sum(map(len, files)) / count / 1024:.0f} KiB a picture, {count} pictures")
        for name, value in spent.items():
            print(f"  {name:28s}{value:8.3f}   {value / spent[DECODE]:6.2f} x decode")
        print(f"  the plain way takes {spent[PLAIN] / spent[OURS]:.2f} x as long as ours")


if __name__ == "__main__":
    main()
