"""A torchvision data set as samples: the files it keeps, or, where it keeps arrays, a lossless PNG of each."""

import contextlib
import inspect
import io
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pyarrow as pa

from curate.ingest.pack import Samples, Unreadable, keys_of
from manifests.errors import Refusal

SECONDS = 10.0  # without a byte from the server


def torchvision(name: str) -> Samples:
    """The samples of `torchvision.datasets.<Dataset>`, written `FashionMNIST?root=DIR&split=train&download=true`.

    Bytes       a data set that keeps files (Food101, ImageFolder, …) gives those files as they are. One that keeps arrays (MNIST and its
                relatives, CIFAR, SVHN, STL10) has no original bytes: each picture is written as PNG, without loss
    Parameters  after `?`: those of the class; `split=train` also stands for `train=true`. `root` defaults to `data`
    Writes      position: int64, the place in the data set
    Errors      [bad-value] no such data set or parameter, or one whose pictures cannot be had unchanged; [download-failed]
    """
    import torchvision.datasets as sets

    dataset_name, _, query = name.partition("?")
    kind = getattr(sets, dataset_name, None)
    if not (inspect.isclass(kind) and issubclass(kind, sets.VisionDataset)):
        raise Refusal(
            "bad-value", f"torchvision:{dataset_name}", "there is no such data set", "a class of torchvision.datasets, such as FashionMNIST"
        )
    dataset = _open(kind, _arguments(kind, query, dataset_name), dataset_name)
    labels = _integers(dataset, ("targets", "labels", "_labels"))
    files = _files(dataset)
    position = pa.table({"position": pa.array(range(len(dataset)), pa.int64())})
    classes = tuple(str(c) if isinstance(c, str) else str(c[0]) for c in getattr(dataset, "classes", None) or ())
    if files is not None:
        return Samples(
            keys=keys_of([os.fsencode(os.path.relpath(f, dataset.root)) for f in files]), read=lambda i: _file(files[i]), stamps=[_stamp(f) for f in files],
            suffixes=[Path(f).suffix[1:].lower() or None for f in files], columns=position, labels=labels, classes=classes, counts={"encoding": "original files"},
        )  # fmt: skip
    pictures = _arrays(dataset, dataset_name)
    return Samples(
        keys=[f"{dataset_name}-{i:06d}" for i in range(len(pictures))], read=lambda i: png(pictures[i]), stamps=_crc(pictures), suffixes=["png"] * len(pictures),
        columns=position, labels=labels, classes=classes, counts={"encoding": "png, lossless: the data set holds arrays, no files"},
    )  # fmt: skip


def png(array: np.ndarray) -> bytes:
    """`array`, (h, w) or (h, w, 3) uint8, as PNG."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(array).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def _arguments(kind: Callable, query: str, name: str) -> dict[str, Any]:
    known = [p for p in inspect.signature(kind).parameters if p not in ("transform", "target_transform", "transforms", "loader")]
    given: dict[str, Any] = {"root": "data"} if "root" in known else {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key == "split" and "split" not in known and "train" in known and text in ("train", "test"):
            key, text = "train", "true" if text == "train" else "false"
        if key not in known:
            raise Refusal("bad-value", f"torchvision:{name}", f"{key}={text}: there is no such parameter", f"its parameters: {', '.join(known)}")
        given[key] = {"true": True, "false": False}.get(text.lower(), int(text) if text.isdigit() else text)
    return given


def _open(kind: Callable, arguments: dict[str, Any], name: str) -> Any:
    try:
        with _patience(), contextlib.redirect_stdout(sys.stderr):
            return kind(**arguments)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if arguments.get("download"):
            cure = f"Try again, or put the files under {arguments['root']} yourself and leave download out"
            raise Refusal("download-failed", f"torchvision:{name}", reason, f"no byte for {SECONDS:.0f} s counts as failed", cure) from error
        raise Refusal(
            "no-such-file",
            f"torchvision:{name}",
            f"is not under {arguments['root']} ({reason})",
            "its files there",
            "Add download=true after the `?`",
        ) from error
    except (TypeError, ValueError) as error:
        raise Refusal("bad-value", f"torchvision:{name}", str(error).splitlines()[0], "parameters that the data set takes") from error


@contextlib.contextmanager
def _patience() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _integers(dataset: Any, names: Sequence[str]) -> list[int | None] | None:
    found = next((getattr(dataset, n) for n in names if getattr(dataset, n, None) is not None), None)
    if found is None and getattr(dataset, "samples", None):
        found = [label for _, label in dataset.samples]
    if found is None:
        return None
    array = np.asarray(found)
    return [int(label) for label in array] if array.ndim == 1 and array.dtype.kind in "iu" else None


def _files(dataset: Any) -> list[str] | None:
    samples = getattr(dataset, "samples", None)
    found = [path for path, _ in samples] if samples else getattr(dataset, "_image_files", None) or getattr(dataset, "_images", None)
    return [str(f) for f in found] if isinstance(found, list) and found and isinstance(found[0], str | Path) else None


def _arrays(dataset: Any, name: str) -> np.ndarray:
    data = getattr(dataset, "data", None)
    array = None if data is None else np.asarray(data)
    if array is not None and array.ndim == 4 and array.shape[1] == 3 and array.shape[3] != 3:
        array = np.moveaxis(array, 1, 3)  # SVHN and STL10 keep channels first
    if array is None or array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise Refusal(
            "bad-value", f"torchvision:{name}", "does not tell where its pictures lie, and decoded ones are not written again",
            "a data set of arrays, or one that lists its files", "Give the folder that it keeps its pictures in to `curate ingest`",
        )  # fmt: skip
    return array


def _crc(pictures: np.ndarray) -> list[int]:
    import zlib

    return [zlib.crc32(p.tobytes()) for p in pictures]


def _file(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(os.strerror(error.errno) if error.errno else "unreadable") from error


def _stamp(path: str) -> list[Any]:
    try:
        status = os.stat(path)
    except OSError:
        return [path, None, None]
    return [path, status.st_size, status.st_mtime_ns]
