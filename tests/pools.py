"""Tiny pools for testing decisions: any columns, vectors and pictures, uids in any order, nothing on disk."""

import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from curate.measure.exact_hash import exact_hash
from curate.measure.perceptual_hash import WRITES, perceptual_hash
from curate.pool import Batch, Pool
from manifests.images import decode
from manifests.vectors.store import Vectors


def pool_of(
    size: int | None = None,
    *,
    order: Sequence[int] | None = None,
    fixed: Sequence[int] = (),
    vectors: dict[str, np.ndarray] | None = None,
    payloads: Sequence[bytes] | None = None,
    seed: int = 0,
    stage: str = "test",
    memory: int = 1 << 30,
    evaluations: dict[str, Pool] | None = None,
    **columns: Any,
) -> Pool:
    """A pool of `size` rows (or as many as there are columns, vectors or payloads).

    order      place of each row in the order of uids; default: row order
    fixed      protected rows
    vectors    name -> (n, d)
    payloads   the image file of each row
    columns    name -> list or array; (n, w) uint8 becomes a fixed binary
    """
    table = pa.table({name: _arrow(values) for name, values in columns.items()})
    sizes = [
        size,
        *(len(v) for v in columns.values()),
        *(len(v) for v in (vectors or {}).values()),
        *([len(payloads)] if payloads is not None else []),
    ]
    count = next(s for s in sizes if s is not None)
    protected = np.zeros(count, bool)
    protected[list(fixed)] = True

    def read(rows: np.ndarray) -> Iterator[bytes]:
        assert payloads is not None
        return iter([payloads[row] for row in rows.tolist()])

    uid = np.array([f"{place:032x}" for place in (range(count) if order is None else order)], dtype="S32")
    return Pool(
        uid, table, {name: Vectors.of(z) for name, z in (vectors or {}).items()}, fixed=protected, seed=seed, stage=stage, memory=memory,
        read_payloads=read if payloads is not None else None, evaluations=evaluations,
    )  # fmt: skip


def _arrow(values: Any) -> Any:
    if isinstance(values, np.ndarray) and values.ndim == 2:
        return pa.array([row.tobytes() for row in values], pa.binary(values.shape[1]))
    return values


def png(pixels: np.ndarray) -> bytes:
    """(h, w[, 3]) uint8 as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """(h, w[, 3]) uint8 as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def turns(pixels: np.ndarray) -> list[np.ndarray]:
    """The eight turns of a picture (h, w, ...), the unturned first."""
    return [np.rot90(p, k) for p in (pixels, pixels[:, ::-1]) for k in range(4)]


def picture_pool(payloads: Sequence[bytes], **more: Any) -> Pool:
    """A pool of pictures with pixels_hash, the columns of views, inner_pixels and num_pixels, as the measures write them."""
    batch = Batch(list(payloads))
    names = [name for name in WRITES if name.endswith("_views")]
    columns: dict[str, Any] = {
        "pixels_hash": np.zeros((0, 16), np.uint8), "inner_pixels": np.zeros(0, np.int64), **{name: np.zeros((0, WRITES[name].byte_width), np.uint8) for name in names},
    }  # fmt: skip
    if payloads:
        found = perceptual_hash(batch)
        columns = {"pixels_hash": exact_hash(batch)["pixels_hash"], **{name: found[name] for name in (*names, "inner_pixels")}}
    sizes = [int(np.prod(decode(p).shape[:2])) for p in payloads]
    return pool_of(payloads=payloads, num_pixels=pa.array(sizes, pa.int64()), **columns, **more)


def assert_lawful(pool: Pool, verdicts: Any, reasons: Sequence[str]) -> None:
    """What holds for every decision: one verdict a row; a known reason; a witness that was kept; protected rows kept."""
    keep = np.asarray(verdicts.keep)
    assert keep.dtype == bool
    assert keep.shape == (len(pool),)
    assert keep[pool.fixed].all()
    why = np.broadcast_to(np.asarray(verdicts.reason), keep.shape)
    assert set(why[~keep].tolist()) <= set(reasons)
    if verdicts.witness is not None:
        witness = verdicts.witness[~keep]
        assert (witness >= 0).all()
        assert keep[witness].all()
        assert (verdicts.witness[keep] == -1).all()
    assert all(len(values) == len(pool) for values in verdicts.columns.values())


def shuffled(pool_arguments: dict[str, Any], permutation: Sequence[int]) -> dict[str, Any]:
    """The arguments of `pool_of` with all rows in another order (uids go with their rows)."""
    at = np.asarray(permutation)
    found = dict(pool_arguments)
    count = len(at)
    found["order"] = np.asarray(found.get("order", range(count)))[at].tolist()
    found["fixed"] = [int(np.flatnonzero(at == row)[0]) for row in found.get("fixed", ())]
    for name, values in pool_arguments.items():
        if name in ("order", "fixed", "seed", "stage", "memory", "evaluations", "size"):
            continue
        found[name] = (
            {k: v[at] for k, v in values.items()} if name == "vectors" else [values[i] for i in at] if isinstance(values, list) else values[at]
        )
    return found
