"""Torchvision data sets: arrays become PNG without loss, files stay as they are, a failed download is one line."""

import io
import socket
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from curate.ingest.ingest import ingest
from curate.ingest.torchvision import _arrays, png
from manifests.errors import Refusal
from manifests.shards.pool_yaml import open_pool
from tests.curate.ingest.pictures import members, picture, put, sidecar


def run(source, to, **options):
    return ingest(source, to=to, quiet=True, **options)


def idx(folder, part, count, seed):
    """A made-up Fashion-MNIST of `count` pictures in idx files."""
    rng = np.random.default_rng(seed)
    pictures, labels = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8), rng.integers(0, 10, count, dtype=np.uint8)
    head = b"".join(int(n).to_bytes(4, "big") for n in (0x803, count, 28, 28))
    put(folder / "FashionMNIST" / "raw" / f"{part}-images-idx3-ubyte", head + pictures.tobytes())
    put(folder / "FashionMNIST" / "raw" / f"{part}-labels-idx1-ubyte", (0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + labels.tobytes())
    return pictures, labels


def test_arrays_become_png_without_loss(tmp_path):
    idx(tmp_path, "train", 5, 1)
    pictures, labels = idx(tmp_path, "t10k", 7, 2)
    summary = run(f"torchvision:FashionMNIST?root={tmp_path}&split=test", tmp_path / "pool", samples_per_shard=4)
    assert (summary["samples"], summary["shards"], summary["labelled"]) == (7, 2, 7)
    assert summary["encoding"].startswith("png, lossless")
    held = members(tmp_path / "pool")
    for i in range(7):
        assert (np.asarray(Image.open(io.BytesIO(held[f"FashionMNIST-{i:06d}.png"]))) == pictures[i]).all()
        assert held[f"FashionMNIST-{i:06d}.cls"] == str(labels[i]).encode()
    assert open_pool(tmp_path / "pool").classes[0] == "T-shirt/top"
    assert sidecar(tmp_path / "pool")["position"].to_pylist() == list(range(7))
    assert run(f"torchvision:FashionMNIST?root={tmp_path}&split=test", tmp_path / "pool", samples_per_shard=4)["shards_packed"] == 0


def test_a_data_set_of_files_keeps_their_bytes(tmp_path):
    put(tmp_path / "root" / "cat" / "a.jpg", picture(1, "JPEG"))
    put(tmp_path / "root" / "dog" / "b.png", picture(2))
    summary = run(f"torchvision:ImageFolder?root={tmp_path / 'root'}", tmp_path / "pool")
    assert summary["encoding"] == "original files"
    assert members(tmp_path / "pool") == {"cat_a.jpg": picture(1, "JPEG"), "cat_a.cls": b"0", "dog_b.png": picture(2), "dog_b.cls": b"1"}
    assert open_pool(tmp_path / "pool").classes == ("cat", "dog")


def test_channels_first_arrays_are_turned():
    turned = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), dtype=np.uint8)
    assert (_arrays(SimpleNamespace(data=np.moveaxis(turned, 3, 1)), "STL10") == turned).all()
    assert (_arrays(SimpleNamespace(data=turned), "CIFAR10") == turned).all()


@pytest.mark.parametrize("shape", [(28, 28), (5, 9, 3)])
def test_png_is_lossless(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(png(array)))) == array).all()


def test_a_failed_download_is_one_line(tmp_path, monkeypatch):
    def nobody(*_):
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    with pytest.raises(Refusal, match=r"FashionMNIST.*no byte for 10 s.*\[download-failed\]") as error:
        run(f"torchvision:FashionMNIST?root={tmp_path}&download=true", tmp_path / "pool")
    assert "\n" not in str(error.value)
    assert socket.getdefaulttimeout() is None
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:FashionMNIST?root={}", r"download=true.*\[no-such-file\]"),
        ("torchvision:Nothing", r"no such data set.*\[bad-value\]"),
        ("torchvision:VisionDataset.x", r"no such data set.*\[bad-value\]"),
        ("torchvision:CIFAR10?rot=1", r"rot=1: there is no such parameter.*root.*\[bad-value\]"),
        ("torchvision:FakeData?size=3", r"does not tell where its pictures lie.*\[bad-value\]"),
    ],
)
def test_what_cannot_be_had_is_refused(tmp_path, source, message):
    with pytest.raises(Refusal, match=message):
        run(source.format(tmp_path), tmp_path / "pool")
