"""A whole small run made from real photographs (scikit-image's), written as `manifests/schema.py` and `manifests/run.py` describe it.

`tiny_run(folder)` makes `folder/pool`, `folder/tests` (an evaluation pool) and `folder/run`, and returns the run's path. The verdicts are worked out here by
the plainest means, so that `manifests` is tested without `curate`: what the stages say is not the point, that the record of it holds together is.
"""

import hashlib
import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from manifests.digest import digest
from manifests.ledger import fold_shard, write_ledger, write_selection
from manifests.publish import publish_bytes, publish_json, publish_table
from manifests.schema import EDGE, FORMAT, IDENTITY, VERDICT
from manifests.shards.pool_yaml import Shard, write_pool_yaml

CLASSES = ("astronaut", "coffee", "cat", "rocket", "tissue", "galaxies")
HOSTILE = (
    "<script>window.__pwn=1</script>", '"><img src=x onerror="window.__pwn=1">', "</script><script>window.__pwn=1</script>", "<!--<script>", "{{7*7}}",
    "'; DROP TABLE ledger;--", "\x1b[31mred\x1b]0;title\x07", "\x1b]8;;http://example.invalid\x07link\x1b]8;;\x07", "carriage\rreturn", "right\u202eto\u2066left",
    "line\u2028and\u2029paragraph", "Z̸̢̛͙a̷̡͝l̵̛͜g̶̢͝o̸͜͝", "👩\u200d👩\u200d👧 family", "العربية עברית", "", "   ", "=HYPERLINK(\"x\")", "../../etc/passwd", "C:\\x", "a.b.c", "long " * 2000,
)  # fmt: skip
SPLIT = (("archive", "00000", 0.3), ("web", "00000", 0.4), ("web", "00001", 0.3))


@dataclass
class Sample:
    """One sample of the pool before it is written: its key, JPEG bytes, label, caption, and what was planted."""

    key: str
    data: bytes
    label: int
    caption: str
    truth: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    members: list[dict[str, Any]] = field(default_factory=list)
    uid: str = ""

    @property
    def content(self) -> bytes:
        return hashlib.sha256(len(self.data).to_bytes(8, "little") + self.data + len(self.text).to_bytes(8, "little") + self.text).digest()

    @property
    def text(self) -> bytes:
        return self.caption.encode("utf-8", "surrogatepass")


def photographs(per_class: int, seed: int) -> list[tuple[int, np.ndarray]]:
    """(label, crop) of real photographs, drawn at random."""
    from skimage import data

    rng = np.random.default_rng(seed)
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.immunohistochemistry(), data.hubble_deep_field()]
    crops = []
    for label, picture in enumerate(sources):
        for _ in range(per_class):
            h, w = int(rng.integers(90, 150)), int(rng.integers(110, 200))
            y, x = int(rng.integers(0, picture.shape[0] - h)), int(rng.integers(0, picture.shape[1] - w))
            crops.append((label, np.ascontiguousarray(picture[y : y + h, x : x + w])))
    return [crops[i] for i in rng.permutation(len(crops))]


def jpeg(picture: np.ndarray | Image.Image, quality: int = 85) -> bytes:
    """The picture as JPEG bytes."""
    out = io.BytesIO()
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def messy_samples(per_class: int, seed: int, hostile: bool) -> tuple[list[Sample], list[Sample]]:
    """(pool, evaluation pool): photographs with copies, re-encoded copies, wrong labels, blurred, dark and broken ones, and leaked test pictures."""
    rng = np.random.default_rng(seed + 1)
    crops = photographs(per_class, seed)
    pool = [Sample(f"{i:06d}", jpeg(p), c, f"a picture of {CLASSES[c]}, number {i}", {"copy_of": None}) for i, (c, p) in enumerate(crops)]
    tests = [Sample(f"t{i:03d}", jpeg(p), c, f"a test picture of {CLASSES[c]}", {}) for i, (c, p) in enumerate(photographs(2, seed + 99))]

    def add(kind: str, data: bytes, like: Sample, **truth: Any) -> None:
        pool.append(Sample(f"{kind}{len(pool):04d}", data, like.label, like.caption, {"copy_of": None, **truth}))

    for like in pool[:6]:
        add("copy", like.data, like, copy_of=like.key)
    for like in pool[4:12]:
        add("again", jpeg(Image.open(io.BytesIO(like.data)), 55), like, copy_of=like.key)
    for like in pool[12:15]:
        add("blur", jpeg(Image.open(io.BytesIO(like.data)).filter(ImageFilter.GaussianBlur(7))), like, is_junk=True)
    for like in pool[15:17]:
        add("dark", jpeg(Image.open(io.BytesIO(like.data)).point(lambda v: v // 16)), like, is_junk=True)
    for like in pool[17:20]:
        add("broken", like.data[: len(like.data) // 3], like, is_broken=True)
    for like in tests[:4]:
        add("leak", like.data, like, is_leak=True)
    for sample in [pool[i] for i in rng.choice(per_class * 6, size=max(2, per_class), replace=False)]:
        sample.label = (sample.label + 1) % len(CLASSES)
        sample.truth["is_wrong"] = True
    if hostile:
        for i, sample in enumerate(pool):
            sample.caption = HOSTILE[i % len(HOSTILE)]
            sample.key = f"{HOSTILE[(i * 7) % len(HOSTILE)][:80]}#{i}"
    return [pool[i] for i in rng.permutation(len(pool))], tests


def write_tar(path: Path, samples: list[Sample]) -> None:
    """A WebDataset tar; offsets and members are noted in the samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i, sample in enumerate(samples):
            sample.members = []
            for suffix, body in (("jpg", sample.data), ("cls", str(sample.label).encode()), ("txt", sample.text)):
                info = tarfile.TarInfo(f"{i:06d}.{suffix}")
                info.size = len(body)
                offset = tar.offset + 512
                tar.addfile(info, io.BytesIO(body))
                sample.members.append({"suffix": suffix, "offset": offset, "size": len(body)})
            sample.offset = sample.members[0]["offset"]


def identify(samples: list[Sample]) -> list[int]:
    """Give every sample its uid; returns the ordinals."""
    seen: dict[tuple[bytes, str], int] = {}
    ordinals = []
    for sample in samples:
        ordinal = seen.setdefault((sample.content, sample.key), 0)
        seen[sample.content, sample.key] += 1
        sample.uid = hashlib.sha256(sample.content + sample.key.encode("utf-8", "surrogateescape") + ordinal.to_bytes(8, "little")).hexdigest()[:32]
        ordinals.append(ordinal)
    return ordinals


def index_table(samples: list[Sample], classes: tuple[str, ...], truth: bool) -> pa.Table:
    """What `measure.index` writes."""
    columns: dict[str, Any] = {
        "key": [s.key for s in samples], "suffix": ["jpg"] * len(samples), "offset": pa.array([s.offset for s in samples], pa.int64()),
        "size": pa.array([len(s.data) for s in samples], pa.int64()), "content": pa.array([s.content for s in samples], pa.binary(32)),
        "label": pa.array([s.label for s in samples], pa.int32()), "label_name": [classes[s.label] for s in samples], "caption": [s.caption for s in samples],
        "source_uid": pa.nulls(len(samples), pa.string()), "fault": pa.nulls(len(samples), pa.string()),
        "members": pa.array([s.members for s in samples], pa.list_(pa.struct([("suffix", pa.string()), ("offset", pa.int64()), ("size", pa.int64())]))),
        "licence": [("CC0", "CC-BY-4.0", "unknown")[s.label % 3] for s in samples],
    }  # fmt: skip
    if truth:
        columns["truth_copy_of"] = pa.array([s.truth.get("copy_of") for s in samples], pa.string())
        for name in ("is_wrong", "is_junk", "is_leak", "is_broken"):
            columns[f"truth_{name}"] = pa.array([bool(s.truth.get(name)) for s in samples])
    return pa.table(columns)


def measured(sample: Sample) -> dict[str, Any] | None:
    """Quality and hash of one sample; None where it cannot be decoded."""
    try:
        image = Image.open(io.BytesIO(sample.data))
        image.load()
    except OSError:
        return None
    gray = np.asarray(image.convert("L"), np.float32)
    step = np.abs(np.diff(gray, axis=1)).mean()
    laplace = -4 * gray[1:-1, 1:-1] + gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    share = np.bincount(gray.astype(np.uint8).ravel(), minlength=256) / gray.size
    small = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), np.int16)
    return {
        "width": image.width, "height": image.height, "channels": 3, "format": "jpeg", "blur": float(laplace.var()), "brightness": float(gray.mean()),
        "contrast": float(gray.std()), "entropy": float(-(share[share > 0] * np.log2(share[share > 0])).sum()), "noise": float(step / max(gray.std(), 1e-6)),
        "is_animated": False, "orientation": 1, "num_pixels": image.width * image.height, "num_bytes": len(sample.data),
        "phash": np.packbits(small[:, 1:] > small[:, :-1]).tobytes(),
    }  # fmt: skip


QUALITY = pa.schema(
    [("width", pa.int32()), ("height", pa.int32()), ("channels", pa.int32()), ("format", pa.string()), ("blur", pa.float32()), ("brightness", pa.float32()),
     ("contrast", pa.float32()), ("entropy", pa.float32()), ("noise", pa.float32()), ("is_animated", pa.bool_()), ("orientation", pa.int8()),
     ("num_pixels", pa.int64()), ("num_bytes", pa.int64())]
)  # fmt: skip


class Decisions:
    """Verdict parts in the making: what is live, and one table a stage."""

    def __init__(self, samples: list[Sample], faulty: list[bool]) -> None:
        self.samples, self.live = samples, [not f for f in faulty]
        self.parts: dict[str, pa.Table] = {}
        self.counts: dict[str, dict[str, Any]] = {}

    def take(
        self, stage: str, rows: dict[int, dict[str, Any]], scores: dict[int, float] | None = None, threshold: float | None = None, **columns: pa.Array
    ) -> None:
        """`rows`: dropped rows with reason, score, threshold, witness; `scores`: of every live row that has one."""
        n = len(self.samples)
        cells: dict[str, list[Any]] = {name: [None] * n for name in VERDICT.names}
        for i in range(n):
            if not self.live[i]:
                continue
            cells["keep"][i], cells["unjudged"][i] = i not in rows, False
            if scores is not None and i in scores:
                cells["score"][i], cells["threshold"][i] = scores[i], threshold
            for name, value in rows.get(i, {}).items():
                cells[name][i] = value
        live, dropped = sum(self.live), [rows[i]["reason"] for i in rows]
        self.live = [was and i not in rows for i, was in enumerate(self.live)]
        self.counts[stage] = {
            "in": live, "kept": sum(self.live), "dropped": {r: dropped.count(r) for r in sorted(set(dropped))}, "unjudged": 0, "quarantined": {},
        }  # fmt: skip
        arrays = {
            f.name: pa.array(cells[f.name], f.type.value_type).dictionary_encode()
            if pa.types.is_dictionary(f.type)
            else pa.array(cells[f.name], f.type)
            for f in VERDICT
        }
        self.parts[stage] = pa.table({**{k: v.cast(VERDICT.field(k).type) for k, v in arrays.items()}, **columns})


def distance(a: bytes, b: bytes) -> int:
    """Bits that differ."""
    return int.bit_count(int.from_bytes(a, "big") ^ int.from_bytes(b, "big"))


def decide(
    samples: list[Sample], tests: list[Sample], found: list[dict[str, Any] | None], radius: int, min_share: float, evaluations: bool
) -> tuple[Decisions, pa.Table]:
    """Leakage, a quality rule, exact and near duplicates, labels: the verdicts of each, and the edges of the near ones."""
    d = Decisions(samples, [f is None for f in found])
    values = [f or {} for f in found]
    if evaluations:
        theirs = {t.content: t.uid for t in tests} | {hashlib.sha256(t.data).digest(): t.uid for t in tests}
        hits = {i: theirs.get(hashlib.sha256(s.data).digest()) for i, s in enumerate(samples) if d.live[i]}
        d.take(
            "leakage.images",
            {i: {"reason": "exact", "score": 0.0, "threshold": 4.0, "witness": u, "witness_pool": "tests"} for i, u in hits.items() if u},
        )
    d.take(
        "keep.where",
        {i: {"reason": "not_true"} for i in range(len(samples)) if d.live[i] and (values[i]["blur"] < 8 or values[i]["brightness"] < 12)},
    )
    order = sorted(range(len(samples)), key=lambda i: samples[i].uid)
    kept: dict[bytes, int] = {}
    exact: dict[int, dict[str, Any]] = {}
    for i in order:
        if d.live[i]:
            first = kept.setdefault(samples[i].data, i)
            if first != i:
                exact[i] = {"reason": "same_bytes", "witness": samples[first].uid}
    d.take("dedup.exact", exact)
    edges, stars, near = [], [], {}
    live = [i for i in order if d.live[i]]
    order = sorted(live, key=lambda i: (-values[i]["num_pixels"], -values[i]["num_bytes"], samples[i].uid))
    for at, i in enumerate(order):
        close = [(distance(values[i]["phash"], values[j]["phash"]), samples[j].uid, j) for j in order[:at]]
        edges += [(samples[j].uid, samples[i].uid, float(s)) for s, _, j in close if s <= 2 * radius + 4]
        best = min((c for c in close if c[0] <= radius and c[2] in stars), default=None)
        if best is None:
            stars.append(i)
        else:
            near[i] = {"reason": "near_duplicate", "score": float(best[0]), "threshold": float(radius), "witness": best[1]}
    d.take("dedup.perceptual", near)
    rng = np.random.default_rng(7)
    votes = {i: round(float(rng.uniform(0, 0.3) if samples[i].truth.get("is_wrong") else rng.uniform(0.15, 1)), 2) for i in range(len(samples))}
    scores = {i: v for i, v in votes.items() if d.live[i]}
    d.take("labels.neighbours", {i: {"reason": "label_disagrees"} for i, v in scores.items() if v < min_share}, scores, min_share)
    return d, pa.table({"a": [e[0] for e in edges], "b": [e[1] for e in edges], "score": pa.array([e[2] for e in edges], pa.float64())}, schema=EDGE)


def tiny_run(
    folder: Path, *, per_class: int = 8, seed: int = 3, hostile: bool = False, truth: bool = True, evaluations: bool = True, evidence: bool = True,
    radius: int = 6, min_share: float = 0.2, name: str = "run", decisions: bool = True,
) -> Path:  # fmt: skip
    """Write pool, evaluation pool and run under `folder`; returns the run's path. The same arguments give the same bytes."""
    classes = tuple(f"{c} {HOSTILE[i]}" for i, c in enumerate(CLASSES)) if hostile else CLASSES
    samples, tests = messy_samples(per_class, seed, hostile)
    pool, run = folder / "pool", folder / name
    shards, spans, start = [], [], 0
    for source, shard, part in SPLIT:
        stop = len(samples) if (source, shard) == SPLIT[-1][:2] else start + int(part * len(samples))
        shards.append(Shard(source, shard, str(pool / source / f"{shard}.tar")))
        spans.append(slice(start, stop))
        write_tar(Path(shards[-1].url), samples[spans[-1]])
        start = stop
    sources = [{"name": s, "shards": [f"{s}/{h}.tar" for t, h, _ in SPLIT if t == s]} for s in ("archive", "web")]
    write_pool_yaml(pool, name="tiny", sources=sources, classes=list(classes), licence="various", source="scikit-image photographs")
    _evaluation(folder / "tests", run, tests, classes, evaluations)
    ordinals = identify(samples)
    found = [measured(s) for s in samples]
    d, edges = decide(samples, tests, found, radius, min_share, evaluations)
    parts = _measures(samples, found, classes, truth) | (d.parts if decisions else {})
    stages = _stages(parts, d, found, len(samples), radius, min_share)
    for shard, span in zip(shards, spans, strict=True):
        publish_table(run / "parts" / "identity" / f"{shard.id}.parquet", _identities(samples[span], ordinals[span]), digest("identity", shard.id))
        for stage, table in parts.items():
            publish_table(run / "parts" / stage / f"{shard.id}.parquet", table.slice(span.start, span.stop - span.start), digest(stage, shard.id))
    if decisions:
        publish_table(run / "edges" / "dedup.perceptual" / "00000.parquet", edges, digest("edges"))
    counts = _record(run, shards, samples, stages)
    where = {"tests": str(folder / "tests")} if evaluations else {}
    publish_bytes(run / "recipe.yaml", b"format: 1\nstages:\n" + b"".join(f"  - {s['name']}:\n".encode() for s in stages))
    if evidence:
        _evidence(run)
    publish_json(run / "run.json", {
        "format": FORMAT, "keepset": "0.1.0", "pool": {"name": "tiny", "path": str(pool), "digest": digest("pool", seed)}, "seed": seed,
        "recipe_digest": digest("recipe", radius, min_share), "stages": stages, "counts": counts, "evaluations": where,
        "outputs": {"selection.npy": (run / "selection.npy").stat().st_size}, "packages": {"numpy": np.__version__, "pyarrow": pa.__version__}, "damage": [],
    })  # fmt: skip
    return run


def _identities(samples: list[Sample], ordinals: list[int]) -> pa.Table:
    return pa.table({"uid": [s.uid for s in samples], "ordinal": pa.array(ordinals, pa.int64())}, schema=IDENTITY)


def _measures(samples: list[Sample], found: list[dict[str, Any] | None], classes: tuple[str, ...], truth: bool) -> dict[str, pa.Table]:
    quality = pa.table({f.name: pa.array([None if v is None else v[f.name] for v in found], f.type) for f in QUALITY})
    quality = quality.append_column("fault", pa.array([None if v else "undecodable" for v in found], pa.string()))
    hashes = pa.table({"phash": pa.array([v and v["phash"] for v in found], pa.binary(8)), "fault": pa.nulls(len(found), pa.string())})
    return {"measure.index": index_table(samples, classes, truth), "measure.quality": quality, "measure.perceptual_hash": hashes}


def _stages(parts: dict[str, pa.Table], d: Decisions, found: list[Any], rows: int, radius: int, min_share: float) -> list[dict[str, Any]]:
    parameters = {
        "keep.where": {"expression": "blur >= 8 AND brightness >= 12"}, "dedup.perceptual": {"hash": "phash", "max_distance": radius},
        "labels.neighbours": {"k": 20, "min_share": min_share}, "leakage.images": {"against": ["tests"]},
    }  # fmt: skip
    broken = sum(f is None for f in found)
    stages = []
    for stage in parts:
        decided = stage in d.counts
        quarantined = {"undecodable": broken} if stage == "measure.quality" and broken else {}
        entered = rows if stage in ("measure.index", "measure.quality") else rows - broken
        counts = (
            d.counts[stage]
            if decided
            else {"in": entered, "kept": entered - sum(quarantined.values()), "dropped": {}, "unjudged": 0, "quarantined": quarantined}
        )
        stages.append({
            "id": stage, "name": stage, "kind": "decision" if decided else "measure", "version": 1, "parameters": parameters.get(stage, {}),
            "digest": digest(stage, parameters.get(stage, {})), "counts": counts,
        })  # fmt: skip
    return stages


def _record(run: Path, shards: list[Shard], samples: list[Sample], stages: list[dict[str, Any]], per_shard: int = 30) -> dict[str, int]:
    """Ledger, selection and shards; returns the counts."""
    tables = [fold_shard(s, [(t["id"], t["kind"]) for t in stages], lambda stage, of: run / "parts" / stage / f"{of.id}.parquet") for s in shards]
    status = [word for t in tables for word in t["status"].to_pylist()]
    kept = [s for s, word in zip(samples, status, strict=True) if word == "kept"]
    place = np.arange(len(kept)) // per_shard, np.arange(len(kept)) % per_shard
    write_ledger(run / "ledger", iter(tables), len(kept), place, digest("ledger"))
    write_selection(run / "selection.npy", [s.uid for s in kept])
    sizes = {}
    for number in range(0, len(kept), per_shard):
        name, group = f"{number // per_shard:05d}", kept[number : number + per_shard]
        places = [(s.offset, s.members) for s in group]
        write_tar(run / "shards" / f"{name}.tar", group)
        for sample, (offset, members) in zip(group, places, strict=True):
            sample.offset, sample.members = offset, members
        publish_table(run / "shards" / f"{name}.parquet", pa.table({"uid": [s.uid for s in group]}), digest("shard", name))
        sizes[f"{name}.tar"] = len(group)
    publish_json(run / "shards" / "sizes.json", sizes)
    return {"rows": len(status), **{word: status.count(word) for word in ("kept", "dropped", "quarantined")}}


def _evaluation(folder: Path, run: Path, tests: list[Sample], classes: tuple[str, ...], wanted: bool) -> None:
    ordinals = identify(tests)
    if not wanted:
        return
    write_tar(folder / "00000.tar", tests)
    write_pool_yaml(folder, name="tests", sources=[{"name": "test", "shards": ["00000.tar"]}], classes=list(classes))
    base = run / "evaluations" / "tests" / "parts"
    publish_table(base / "identity" / "test" / "00000.parquet", _identities(tests, ordinals), digest("identity", "tests"))
    publish_table(base / "measure.index" / "test" / "00000.parquet", index_table(tests, classes, False), digest("index", "tests"))


def _evidence(run: Path) -> None:
    """Verdicts in the form of `pretrain/evidence/verdict.py`, two objectives, three references, a suite and two tasks."""
    rng = np.random.default_rng(1)
    rows = []
    for objective in ("look", "cross_entropy"):
        for reference, gain in (("full", 0.021), ("random", 0.026), ("random_clean", -0.004)):
            for scope, task in (("suite", None), ("task", "pets"), ("task", "flowers")):
                diff = gain + float(rng.normal(0, 0.003))
                half = 0.009 + float(rng.uniform(0, 0.004))
                word = "better" if diff > half else "worse" if diff < -half - 0.004 else "not worse" if diff - half > -0.02 else "cannot tell"
                rows.append({
                    "plan_digest": "5a" * 32, "look": 1, "alpha": 0.025, "objective": objective, "arm": "kept", "reference": reference, "question": "earned",
                    "scope": scope, "task": task, "n": 400, "tasks": 2 if scope == "suite" else 1, "runs_arm": 5, "runs_ref": 5, "mean_arm": 0.82 + diff, "mean_ref": 0.82,
                    "mean_untrained": 0.65, "diff": diff, "lo": diff - half, "hi": diff + half, "level": 0.95, "margin": 0.02, "margin_kind": "absolute",
                    "word": word, "note": "", "sentence": f"`kept`: {word} than {reference} on {task or '2 tasks'} ({100 * diff:+.2f} pt, 95 % interval {100 * (diff - half):+.2f} to {100 * (diff + half):+.2f}).",
                })  # fmt: skip
    folder = run / "evidence" / ("5a" * 8)
    publish_table(folder / "verdicts.parquet", pa.Table.from_pylist(rows), digest("verdicts"))
    publish_bytes(folder / "plan.yaml", b"format: 1\nmargin: 0.02\nlooks: [5]\n")


def rewrite(path: Path, change: Any) -> None:
    """Read a Parquet file, let `change(table)` alter it, publish it again with the digest it had."""
    table = pq.read_table(path)
    kept = (table.schema.metadata or {}).get(b"keepset.digest", b"").decode()
    publish_table(path, change(table), kept)
