"""Each objective learns something from real pictures, and the supervised ones only where the labels mean something."""

import numpy as np
import pytest

from pretrain.train import train
from pretrain.transfer import transfer
from tests.pretrain.pictures import digits, png, write_pool


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits")
    pictures, labels = digits()
    encoded = [png(p) for p in pictures]
    write_pool(root / "train", encoded[:1000], labels[:1000].tolist())
    write_pool(root / "test", encoded[1000:], labels[1000:].tolist())
    write_pool(root / "shuffled", encoded[:1000], np.random.default_rng(0).permutation(labels[:1000]).tolist())
    return root


def knn_of(pools, checkpoint: str) -> float:
    task = {"name": "digits", "train": str(pools / "train"), "test": str(pools / "test"), "probe": "knn"}
    return float(np.mean(transfer(checkpoint, [task], device="cpu")["value"]))


@pytest.fixture(scope="module")
def untrained(pools):
    return max(knn_of(pools, f"untrained:timm:test_resnet@28?seed={seed}") for seed in (0, 1))


def trained(pools, tmp_path, name: str, pool: str) -> float:
    out = train(
        {
            "data": [str(pools / pool)],
            "out": str(tmp_path / name),
            "objective": {"name": name},
            "samples_seen": 8_000,
            "device": "cpu",
            "threads": 1,
            "views": {"flip": 0.0},
            "checkpoint_every": 0,
        },
        quiet=True,
    )
    return knn_of(pools, str(out))


@pytest.mark.parametrize("name", ["look", "cross_entropy", "simclr"])
def test_an_objective_beats_the_untrained_net_by_five_points(name, pools, untrained, tmp_path):
    assert trained(pools, tmp_path, name, "train") >= untrained + 0.05


@pytest.mark.parametrize("name", ["look", "cross_entropy"])
def test_shuffled_labels_teach_nothing(name, pools, untrained, tmp_path):
    assert trained(pools, tmp_path, name, "shuffled") < untrained + 0.05
