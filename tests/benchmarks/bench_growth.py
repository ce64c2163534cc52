"""How cost grows with the pool: CPU seconds and private memory of each kind of work at 10 k, 100 k and 1 M rows, each in a process of its own; a plot.

python tests/benchmarks/bench_growth.py [rows …] [--only WORK]     # docs/growth.png; figures also as JSON lines, which --plot FILE draws again
python tests/benchmarks/bench_growth.py --append [METHOD …]     # a few rows appended to many: CPU s where pairs of old rows are looked for again, and where not
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from curate.deciding import Setting, decide
from curate.dedup.all_pairs import all_pairs
from curate.dedup.copies import copies
from curate.dedup.exact import exact
from curate.dedup.mutual import mutual
from curate.dedup.perceptual import perceptual
from curate.dedup.semantic import semantic
from curate.dedup.semdedup import semdedup
from curate.frame import Frame
from curate.measuring import MeasureTask, measure_shard, part_path
from curate.pool import Column, Pool, Share, VectorName, Verdicts
from curate.recipe import parse_recipe
from curate.recording import ledger_stages
from curate.select.kcenter import kcenter
from curate.select.random import random
from curate.writing import finish
from manifests.likeness import candidates
from manifests.publish import publish_table
from manifests.shards.index import INDEX_SCHEMA
from manifests.shards.pool_yaml import PoolDescription, Shard, open_pool
from manifests.vectors.store import Vectors
from tests.benchmarks.bench_hamming import RADIUS, planted, pool_of, with_views
from tests.benchmarks.bench_semantic import watched
from tests.small_pool import crops, jpeg, samples, write_pool

DIM = 128
SIZES = (10_000, 100_000, 1_000_000)
LARGEST = {"dedup.all_pairs": 100_000, "measures": 512}  # measures grow by the row; all pairs by its square
INK = ("#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad", "#b8860b", "#333333", "#d35400")


def uids(rng: np.random.Generator, rows: int) -> np.ndarray:
    return np.char.mod("%032x", rng.permutation(rows)).astype("S32")


def clouds(rng: np.random.Generator, rows: int) -> Vectors:
    """Unit vectors in a cloud for every 500 rows, a twentieth of them copies with a little noise."""
    centres = rng.standard_normal((max(20, rows // 500), DIM), np.float32)
    z = centres[rng.integers(0, len(centres), rows)] + 1.2 * rng.standard_normal((rows, DIM), np.float32)
    count = rows // 20
    z[:count] = z[count : 2 * count] + 0.1 * rng.standard_normal((count, DIM), np.float32)
    return Vectors.of(z / np.linalg.norm(z, axis=1, keepdims=True))


def vector_pool(rng: np.random.Generator, rows: int) -> Pool:
    return Pool(uids(rng, rows), None, {"z": clouds(rng, rows)})


def measures(rng: np.random.Generator, rows: int) -> Callable[[], object]:
    """Index, hashes and quality of pictures of 384 x 384."""
    folder = Path(tempfile.mkdtemp())
    row = samples()[0]
    pictures = [np.repeat(np.repeat(p, 4, 0), 4, 1) for p, _ in crops(16)]
    pool = open_pool(write_pool(folder / "pool", [{**row, "image": jpeg(pictures[i % 16]), "key": f"{i:06d}"} for i in range(rows)], per_shard=rows))
    recipe = parse_recipe("format: 1\nstages: [measure.quality, measure.exact_hash, measure.perceptual_hash]\n", "bench")
    return lambda: measure_shard(MeasureTask(pool.shards[0], folder, recipe.stages, None))


def record(rng: np.random.Generator, rows: int) -> Callable[[], object]:
    """Uids, one decision as parts, ledger and selection, in shards of 10,000."""
    folder, per_shard = Path(tempfile.mkdtemp()), 10_000
    shards = tuple(Shard("web", f"{i:06d}", str(folder / f"{i:06d}.tar")) for i in range(rows // per_shard))
    recipe = parse_recipe("format: 1\nstages:\n  - select.random: {keep: 0.5}\nshards: false\n", "bench")
    content, sizes = rng.integers(0, 256, (rows, 32), np.uint8), rng.integers(10_000, 90_000, rows)
    for number, shard in enumerate(shards):
        at = slice(number * per_shard, (number + 1) * per_shard)
        columns = {"key": [f"{i:09d}" for i in range(at.start, at.stop)], "suffix": ["jpg"] * per_shard, "offset": np.cumsum(sizes[at]), "size": sizes[at],
                   "content": pa.array([c.tobytes() for c in content[at]], pa.binary(32)), "caption": ["a photograph of something, as captions are"] * per_shard}  # fmt: skip
        table = pa.table({f.name: pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(per_shard, f.type) for f in INDEX_SCHEMA})
        publish_table(part_path(folder, "measure.index", shard), table, "bench")

    def work() -> None:
        frame = Frame(folder, PoolDescription(str(folder / "pool.yaml"), "bench", shards), [s.name for s in shards], np.full(len(shards), per_shard))
        frame.identify()
        decide(recipe.stages[0], frame, Setting(0, 8 << 30, "cpu", {}))
        finish(recipe, frame, ledger_stages(recipe), folder, workers=1, quiet=True)

    return work


def hashes(rng: np.random.Generator, rows: int) -> Callable[[], object]:
    codes = planted(rng, rows)[0].repeat(2, axis=1)  # 16 bytes, a twentieth of them equal
    pool = Pool(uids(rng, rows), {"h": pa.array([c.tobytes() for c in codes], pa.binary(16))})
    return lambda: exact(pool, hash=[Column("h")], confirm=False)


def search(rng: np.random.Generator, rows: int) -> Callable[[], object]:
    views = with_views(rng, planted(rng, rows)[0])
    return lambda: candidates(views, None, RADIUS, turned=True)


def on_vectors(method: Callable[[Pool], object]) -> Callable[[np.random.Generator, int], Callable[[], object]]:
    def prepared(rng: np.random.Generator, rows: int) -> Callable[[], object]:
        pool = vector_pool(rng, rows)
        return lambda: method(pool)

    return prepared


WORK: dict[str, Callable[[np.random.Generator, int], Callable[[], object]]] = {
    "measures": measures,
    "uids, parts, ledger": record,
    "dedup.exact": hashes,
    "hash search, 8 views": search,
    "dedup.all_pairs": on_vectors(lambda pool: all_pairs(pool, vectors=VectorName("z"))),
    "dedup.semantic": on_vectors(lambda pool: semantic(pool, vectors=VectorName("z"))),
    "select.random": lambda rng, rows: (lambda pool: lambda: random(pool, keep=Share(fraction=0.5)))(Pool(uids(rng, rows))),
    "select.kcenter, 1,000": on_vectors(lambda pool: kcenter(pool, vectors=VectorName("z"), keep=Share(count=1000))),
}


def appended(rng: np.random.Generator, old: int, new: int) -> tuple[Pool, np.ndarray]:
    """Vectors, hashes and photographs of `old` rows that are all kept and `new` ones, and which are old. A twentieth of the rows has the hash of another one, near
    enough: a new one is its copy, an old one shows something else."""
    rows = old + new
    codes, originals = planted(rng, rows)
    files = [jpeg(np.repeat(np.repeat(pixels, 2, 0), 2, 1)) for pixels, _ in crops(500)]
    pool = pool_of(rng, with_views(rng, codes), originals, files)
    is_old = np.zeros(rows, bool)
    is_old[rng.permutation(rows)[:old]] = True
    read, start = pool._read, rows - len(originals)
    assert read is not None
    other = rng.integers(0, rows, rows)
    pool._read = lambda chosen: read(np.where(is_old[chosen] & (chosen >= start), other[chosen], chosen))
    pool._vectors, pool.fixed = {"z": clouds(rng, rows)}, is_old
    return pool, is_old


METHODS: dict[str, Callable[[Pool], Verdicts]] = {
    "dedup.perceptual": perceptual,
    "dedup.copies": copies,
    "dedup.copies, vectors": lambda pool: copies(pool, vectors=[VectorName("z")], k=5, min_cosine=0.9),
    "dedup.semantic": lambda pool: semantic(pool, vectors=VectorName("z")),
    "dedup.semdedup": lambda pool: semdedup(pool, vectors=VectorName("z")),
    "dedup.mutual": lambda pool: mutual(pool, vectors=VectorName("z")),
    "dedup.all_pairs": lambda pool: all_pairs(pool, vectors=VectorName("z")),
}


def append(names: list[str]) -> None:
    """CPU seconds of each method where it looks for all pairs, and where it knows which rows are settled; the verdicts must be the same."""
    print(f"{'method':24}{'old':>8}{'new':>8}{'all pairs':>12}{'new ones':>12}{'ratio':>8}{'dropped':>9}")
    for old, new in ((3_000, 300), (30_000, 1_000)):
        pool, is_old = appended(np.random.default_rng(0), old, new)
        for name in names or METHODS:
            found, taken = [], []
            for settled in (np.zeros(len(pool), bool), is_old):
                pool.settled = settled
                cpu = time.process_time()
                found.append(METHODS[name](pool))
                taken.append(time.process_time() - cpu)
            assert (found[0].keep == found[1].keep).all()
            print(f"{name:24}{old:>8,}{new:>8,}{taken[0]:>12.2f}{taken[1]:>12.2f}{taken[1] / taken[0]:>8.2f}{(~found[1].keep).sum():>9,}", flush=True)


def one(name: str, rows: int) -> None:
    """One line of JSON: CPU seconds, and private bytes at the peak beyond what stood before."""
    _, cpu, _, peak = watched(WORK[name](np.random.default_rng(0), rows))  # five samples a second would miss the peak of work that takes one
    print(json.dumps({"work": name, "rows": rows, "seconds": cpu, "bytes": peak}), flush=True)


def plot(found: list[dict], path: Path) -> None:
    """CPU seconds against rows, both by powers of ten."""
    from PIL import Image, ImageDraw

    wide, high, left, top, right, bottom = 900, 560, 70, 30, 230, 60
    picture = Image.new("RGB", (wide, high), "white")
    draw = ImageDraw.Draw(picture)
    low, most = -2.0, 3.0

    def place(rows: float, seconds: float) -> tuple[float, float]:
        x, y = (np.log10(rows) - 4) / 2, (np.clip(np.log10(max(seconds, 1e-3)), low, most) - low) / (most - low)
        return left + x * (wide - left - right), high - bottom - y * (high - top - bottom)

    for power in range(int(low), int(most) + 1):
        (x, y), (end, _) = place(1e4, 10.0**power), place(1e6, 10.0**power)
        draw.line([(x, y), (end, y)], fill="#dddddd")
        draw.text((8, y - 7), f"{10.0**power:g} s", fill="black", font_size=13)
    for rows in SIZES:
        x, y = place(rows, 10.0**low)
        draw.line([(x, y), (x, top)], fill="#dddddd")
        draw.text((x - 30, y + 8), f"{rows:,}", fill="black", font_size=13)
    draw.text((left, high - 26), "rows; CPU seconds of one core, up; both by powers of ten", fill="black", font_size=13)
    labels: list[float] = []
    for number, name in enumerate(n for n in WORK if any(f["work"] == n and f["rows"] >= SIZES[0] for f in found)):
        points = [place(f["rows"], f["seconds"]) for f in sorted(found, key=lambda f: f["rows"]) if f["work"] == name]
        ink = INK[number % len(INK)]
        draw.line(points, fill=ink, width=3)
        for x, y in points:
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=ink)
        at = points[-1][1] - 8
        while any(abs(at - other) < 16 for other in labels):
            at += 4
        labels.append(at)
        draw.text((points[-1][0] + 10, at), name, fill=ink, font_size=14)
    picture.quantize(32).save(path, optimize=True)


def main() -> None:
    arguments = sys.argv[1:]
    if arguments[:1] == ["--append"]:
        append(arguments[1:])
        return
    if arguments[:1] == ["--one"]:
        one(arguments[1], int(arguments[2]))
        return
    if arguments[:1] == ["--plot"]:
        found = [json.loads(line) for line in Path(arguments[1]).read_text().splitlines() if line.startswith("{")]
    else:
        only = arguments[arguments.index("--only") + 1] if "--only" in arguments else None
        sizes = [int(a) for a in arguments if a.isdigit()] or SIZES
        found = []
        for name in [only] if only else WORK:
            for rows in sorted({min(rows, LARGEST.get(name, rows)) for rows in sizes}):
                line = subprocess.run(
                    [sys.executable, __file__, "--one", name, str(rows)], check=True, capture_output=True, text=True
                ).stdout.splitlines()[-1]
                print(line, flush=True)
                found.append(json.loads(line))
    print(f"\n{'work':24}{'rows':>12}{'CPU s':>10}{'µs a row':>10}{'MiB':>8}{'bytes a row':>13}")
    for f in found:
        a_row, held = f["seconds"] / f["rows"] * 1e6, f["bytes"] / f["rows"]
        print(f"{f['work']:24}{f['rows']:>12,}{f['seconds']:>10.2f}{a_row:>10.1f}{f['bytes'] / (1 << 20):>8,.0f}{held:>13,.0f}")
    plot(found, Path(__file__).parents[2] / "docs" / "growth.png")


if __name__ == "__main__":
    main()
