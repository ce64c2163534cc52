import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from manifests.errors import Refusal
from pretrain.transfer import transfer
from pretrain.transfer.features import Features, features, open_encoder
from pretrain.transfer.transfer import centred
from tests.pretrain.pictures import digit_pngs, digits, write_pool, write_shards


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    root = tmp_path_factory.mktemp("transfer")
    pictures, labels = digit_pngs(500)
    labels[460] = None
    pictures[470] = b"broken"
    write_pool(root / "train", pictures[:400], labels[:400])
    write_pool(root / "test", pictures[400:], labels[400:])
    return root


def tasks(pools, *probes: str) -> list[dict]:
    return [{"name": f"digits-{p}", "train": str(pools / "train"), "test": str(pools / "test"), "probe": p} for p in probes]


def test_one_score_a_task_and_labelled_decodable_test_sample(pools):
    table = transfer("pixels:8", tasks(pools, "knn", "linear"), device="cpu")

    assert table.column_names == ["task", "sample_uid", "value", "cluster"]
    assert table.num_rows == 2 * 98 and table["cluster"].null_count == table.num_rows
    one, two = (table.filter([t == name for t in table["task"].to_pylist()]) for name in ("digits-knn", "digits-linear"))
    assert one["sample_uid"].to_pylist() == two["sample_uid"].to_pylist() == sorted(set(one["sample_uid"].to_pylist()))
    chosen = json.loads(table.schema.metadata[b"keepset.chosen"])
    assert chosen["digits-knn"]["mean"] == pytest.approx(np.mean(one["value"])) and chosen["digits-knn"]["num_test"] == 98
    assert chosen["digits-linear"]["mean"] > 0.8 and chosen["digits-knn"]["mean"] > 0.85


def test_centring_takes_the_training_mean_from_both_and_one_channel_of_grey_pictures(pools):
    encoder = open_encoder("pixels:8", "cpu", 0)
    train, test = (features(encoder, str(pools / name)) for name in ("train", "test"))
    one, two = centred(train, test)
    assert one.z.shape[1] == 64
    np.testing.assert_allclose(one.z.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(two.z, test.z[:, ::3] - train.z[:, ::3].mean(0), atol=1e-5)
    colour = Features(np.random.default_rng(0).random((5, 12), np.float32), train.label[:5], train.uid[:5])
    assert centred(colour, colour)[0].z.shape == (5, 12)


@pytest.mark.parametrize("write", [write_pool, write_shards])
def test_a_pool_that_is_replaced_at_its_place_is_read_anew(write, tmp_path):
    encoder, (pictures, labels) = open_encoder("pixels:8", "cpu", 0), digit_pngs(40)
    write(tmp_path / "pool", pictures[:20], labels[:20])
    before = features(encoder, str(tmp_path / "pool"))
    assert np.array_equal(before.z, features(encoder, str(tmp_path / "pool")).z)
    shutil.rmtree(tmp_path / "pool")
    write(tmp_path / "pool", pictures[20:], labels[20:])
    after = features(encoder, str(tmp_path / "pool"))
    write(tmp_path / "other", pictures[20:], labels[20:])
    fresh = features(encoder, str(tmp_path / "other"))
    assert np.array_equal(after.z, fresh.z) and np.array_equal(after.label, fresh.label) and not np.array_equal(after.z, before.z)


def test_a_run_that_is_replaced_at_its_place_is_read_anew(pools, tmp_path):
    from curate.building import build

    encoder = open_encoder("pixels:8", "cpu", 0)
    (tmp_path / "recipe.yaml").write_text("format: 1\nstages:\n  - select.random: {keep: 0.2}\nshards: false\n")
    found = []
    for settings in ([], ["select.random.keep=0.5"]):
        build(tmp_path / "recipe.yaml", pool=str(pools / "test"), out=tmp_path / "run", settings=settings, workers=1, quiet=True)
        found.append(len(features(encoder, str(tmp_path / "run"))))
    assert 0 < found[0] < found[1]


def test_raw_pixels_are_the_pictures(pools):
    encoder = open_encoder("pixels:8", "cpu", 0)
    z = features(encoder, str(pools / "train"))
    picture = np.repeat(digits()[0][0][:, :, None], 3, 2).reshape(-1) / 255
    assert encoder.centred and any(np.allclose(row, picture, atol=1e-6) for row in z.z)


def test_untrained_nets_follow_their_seed(pools):
    one, same, other = (transfer(f"untrained:timm:test_resnet@16?seed={s}", tasks(pools, "knn"), device="cpu")["value"].to_numpy() for s in (0, 0, 1))
    plain = transfer("untrained:timm:test_resnet@16", tasks(pools, "knn"), device="cpu", seed=1)["value"].to_numpy()
    assert np.array_equal(one, same) and np.array_equal(other, plain) and not np.array_equal(one, other)
    both = transfer("untrained:timm:test_resnet@16", tasks(pools, "linear", "knn"), device="cpu", seed=1)
    assert np.array_equal(plain, both["value"].to_numpy()[98:])  # features are made once for both tasks
    turned = {**tasks(pools, "knn")[0], "name": "turned", "train": str(pools / "test"), "test": str(pools / "train")}
    alone = transfer("untrained:timm:test_resnet@16", [turned], device="cpu", seed=1)["value"]
    assert (
        transfer("untrained:timm:test_resnet@16", [*tasks(pools, "knn"), turned], device="cpu", seed=1)["value"].to_pylist()[98:] == alone.to_pylist()
    )
    assert one.mean() > 0.4  # statistics are set, so it is an anchor and no strawman


@pytest.mark.parametrize(
    ("checkpoint", "slug"),
    [
        ("pixels:x", "bad-value"),
        ("untrained:timm:test_resnet", "bad-value"),
        ("nowhere", "no-such-file"),
        ("untrained:x@8", "bad-value"),
        ("untrained:timm:test_resnet@8?seed=99999999999999999999", "bad-value"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(checkpoint, slug, pools):
    with pytest.raises(Refusal) as refused:
        transfer(checkpoint, tasks(pools, "knn"), device="cpu")
    assert refused.value.slug == slug


def test_a_task_that_is_none_is_refused(pools, tmp_path):
    (task,) = tasks(pools, "knn")
    for change, slug in (
        ({"probe": "svm"}, "bad-value"),
        ({"probe": ["knn"]}, "bad-value"),
        ({"name": ["t"]}, "bad-value"),
        ({"k": 3}, "unknown-parameter"),
        ({"train": str(tmp_path)}, "no-such-file"),
    ):
        with pytest.raises(Refusal) as refused:
            transfer("pixels:8", [task | change], device="cpu")
        assert refused.value.slug == slug
    with pytest.raises(Refusal, match="'test' is missing"):
        transfer("pixels:8", [{k: v for k, v in task.items() if k != "test"}], device="cpu")
    write_pool(tmp_path / "bare", digit_pngs(3)[0], [None] * 3)
    with pytest.raises(Refusal, match=r"holds no labelled picture.*\[missing-label\]"):
        transfer("pixels:8", [task | {"test": str(tmp_path / "bare")}], device="cpu")


def test_importing_the_package_loads_no_torch():
    code = "import sys, pretrain.transfer, pretrain.train, pretrain.data; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
