"""Pictures to feature vectors, by a trained backbone or by an anchor; and what a probe gets and gives."""

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manifests.errors import Refusal
from manifests.run import open_run
from manifests.shards.pool_yaml import open_pool
from manifests.shards.read import signature
from pretrain.data import Batch, Pictures, Position, mix
from pretrain.samples import Samples, open_samples

if TYPE_CHECKING:
    from pretrain.backbones import Backbone

BLOCK = 256
REMEMBERED = 256 << 20  # bytes of decoded pictures that a process keeps for the next checkpoint, a pool


@dataclass(frozen=True)
class Features:
    """z (n, d) float32, label (n,) int64, uid (n,) text; rows sorted by uid."""

    z: np.ndarray
    label: np.ndarray
    uid: np.ndarray

    def __len__(self) -> int:
        return len(self.uid)

    def take(self, rows: np.ndarray) -> "Features":
        """The given rows."""
        return Features(self.z[rows], self.label[rows], self.uid[rows])

    def halves(self, share: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
        """(rows to fit on, rows to choose on): of each class `share`, rounded, by a hash of the uid; the same for every encoder and seed."""
        with np.errstate(over="ignore"):
            key = mix(np.array([int(u[:16], 16) for u in self.uid.tolist()], np.uint64))
        order = np.lexsort((self.uid, key, self.label))
        label = self.label[order]
        _, start, count = np.unique(label, return_index=True, return_counts=True)
        place = np.arange(len(label)) - np.repeat(start, count)
        chosen = place < np.repeat(np.round(share * count), count)
        return np.sort(order[~chosen]), np.sort(order[chosen])


@dataclass(frozen=True)
class Scores:
    """value (m,) float64, one score a test sample in the order of `Features.uid`; `chosen`: what validation picked, and how well it did there."""

    value: np.ndarray
    chosen: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoder:
    """encode: (b, side, side, 3) uint8 -> (b, d) float32 at `side`; `prepare` sees training pictures first, where an anchor needs statistics."""

    side: int
    encode: Callable[[np.ndarray], np.ndarray]
    prepare: Callable[[np.ndarray], None] | None = None
    centred: bool = False


def open_encoder(checkpoint: str, device: str, seed: int) -> Encoder:
    """A trained folder, `untrained:<backbone>@<resolution>?seed=N`, or `pixels:<side>`.

    Errors   [bad-value] for a name that is none of these; those of `open_backbone`
    """
    if checkpoint.startswith("pixels:"):
        side = checkpoint.removeprefix("pixels:")
        if not side.isdigit() or not 0 < int(side) <= 256:
            raise Refusal("bad-value", "checkpoint", f"{checkpoint!r} names no side", "pixels:<side>, from 1 to 256")
        return Encoder(int(side), lambda pictures: pictures.reshape(len(pictures), -1).astype(np.float32) / 255, centred=True)
    from pretrain.backbones import load_backbone, open_backbone

    if checkpoint.startswith("untrained:"):
        found = re.fullmatch(r"untrained:(.+)@(\d+)(?:\?seed=(\d{1,18}))?", checkpoint)
        if not found:
            raise Refusal(
                "bad-value", "checkpoint", f"{checkpoint!r} is no untrained backbone", "untrained:<backbone>@<resolution>, then ?seed=N if wanted"
            )
        import torch

        with torch.random.fork_rng([torch.cuda.current_device()] if device == "cuda" else []):
            torch.manual_seed(int(found[3]) if found[3] else seed)
            backbone = open_backbone(found[1], int(found[2]))
        return _of_backbone(backbone, device, trained=False)
    return _of_backbone(load_backbone(checkpoint.removeprefix("checkpoint:")), device, trained=True)


def _of_backbone(backbone: "Backbone", device: str, trained: bool) -> Encoder:
    import torch

    from pretrain.machine import sent

    backbone = backbone.to(device).eval()

    def encode(pictures: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            images = sent(pictures, device).permute(0, 3, 1, 2).float().mul_(1 / 255)
            return backbone(images).float().cpu().numpy()

    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]

    def set_statistics(pictures: np.ndarray) -> None:
        """An untrained net with the statistics of nobody is weaker than it need be: take those of the training pictures."""
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for start in range(0, len(pictures), BLOCK):
            encode(pictures[start : start + BLOCK])
        backbone.eval()

    return Encoder(backbone.resolution, encode, None if trained or not norms else set_statistics)


def pool_pictures(pool: str, side: int) -> Iterator[tuple[Samples, np.ndarray, np.ndarray]]:
    """Blocks (samples, rows, pictures) of a labelled pool in the order of the uids, without rows that have no label or give no picture."""
    state = _state(pool)
    samples = _samples(pool, state)
    if len(samples) * side * side * 3 <= REMEMBERED:
        rows, pictures = _remembered(pool, side, state)
        for start in range(0, len(rows), BLOCK):
            yield samples, rows[start : start + BLOCK], pictures[start : start + BLOCK]
        return
    yield from _blocks(samples, side)


def _state(pool: str) -> tuple[tuple[int, ...], ...]:
    """What tells that a pool was replaced at its place: the signatures of its shards and of the files that tell of them."""
    folder, files = Path(pool), list[str | Path]()
    if (folder / "ledger").is_dir():
        files = [folder / "run.json", *sorted(folder.glob("ledger/*.parquet")), *(shard.url for shard in open_run(folder).pool.shards)]
    elif "://" not in pool and folder.is_dir() and not (folder / "pool.yaml").is_file():
        files = [file for file in sorted(folder.iterdir()) if file.suffix in (".tar", ".parquet")]
    else:
        described = open_pool(pool)
        files = [described.path, *(file for shard in described.shards for file in (shard.url, shard.sidecar))]
    return tuple(signature(str(file)) for file in files)


@functools.lru_cache(maxsize=8)
def _samples(pool: str, state: tuple[tuple[int, ...], ...]) -> Samples:
    return open_samples([pool])


@functools.lru_cache(maxsize=4)
def _remembered(pool: str, side: int, state: tuple[tuple[int, ...], ...]) -> tuple[np.ndarray, np.ndarray]:
    blocks = list(_blocks(_samples(pool, state), side))
    if not blocks:
        return np.empty(0, np.int64), np.empty((0, side, side, 3), np.uint8)
    return np.concatenate([b[1] for b in blocks]), np.concatenate([b[2] for b in blocks])


def _blocks(samples: Samples, side: int) -> Iterator[tuple[Samples, np.ndarray, np.ndarray]]:
    labelled = np.flatnonzero(samples.label >= 0)
    plan = (Batch(labelled[i : i + BLOCK], labelled[i : i + BLOCK], Position()) for i in range(0, len(labelled), BLOCK))
    with Pictures(samples, side, workers=0, cache_bytes=0) as pictures:
        for batch, found in pictures.fetch(plan):
            good = ~pictures.bad[batch.rows]
            yield samples, batch.rows[good], found[good]


def features(encoder: Encoder, pool: str) -> Features:
    """Every labelled, decodable sample of `pool` through `encoder`. Raises `Refusal` [missing-label] where there is none."""
    blocks = [(samples.label[rows], samples.uid[rows], encoder.encode(pictures)) for samples, rows, pictures in pool_pictures(pool, encoder.side)]
    if not sum(len(b[0]) for b in blocks):
        raise Refusal("missing-label", pool, "holds no labelled picture", "a probe needs labels in its train and test pools")
    return Features(np.concatenate([b[2] for b in blocks]), np.concatenate([b[0] for b in blocks]), np.concatenate([b[1] for b in blocks]))
