import json

import pytest
import timm
import torch

from manifests.errors import Refusal
from pretrain.backbones import load_backbone, open_backbone, pick_device
from pretrain.checkpoint import save_model


@pytest.mark.parametrize(("name", "side"), [("test_resnet", 28), ("test_vit", 32), ("test_efficientnet", 28)])
def test_timm_loads_what_we_wrote_with_its_own_loader(name, side, tmp_path):
    torch.manual_seed(0)
    ours = open_backbone(f"timm:{name}", side)
    save_model(tmp_path, ours, {"digest": "d"})
    ours.eval()
    x = torch.rand(2, 3, side, side)
    described = json.loads((tmp_path / "config.json").read_text())

    arguments = {"num_classes": 0, **described["model_args"]}
    theirs = timm.create_model(described["architecture"], checkpoint_path=str(tmp_path / "model.safetensors"), **arguments).eval()
    folder = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=0, **described["model_args"]).eval()

    assert described["pretrained_cfg"]["input_size"] == [3, side, side] and described["num_features"] == ours.width
    normal = (x - torch.tensor(ours.mean)[:, None, None]) / torch.tensor(ours.std)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(theirs(normal), ours(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(folder(normal), ours(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(load_backbone(tmp_path).eval()(x), ours(x), atol=0, rtol=0)


def test_a_convnet_opens_at_another_size_and_a_wrong_folder_is_refused(tmp_path):
    save_model(tmp_path, open_backbone("timm:test_resnet", 28), {})
    assert load_backbone(tmp_path, 64).resolution == 64
    assert open_backbone(f"checkpoint:{tmp_path}", 28).spec == "timm:test_resnet"
    described = json.loads((tmp_path / "config.json").read_text())
    described["keepset"]["backbone"] = "timm:test_efficientnet"
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(Refusal, match=r"do not fit.*\[broken-record\]"):
        load_backbone(tmp_path)
    for text in ("[1]", '{"keepset": 3}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(Refusal, match=r"\[broken-record\]"):
            load_backbone(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(described))
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(Refusal, match=r"\[broken-record\]"):
        load_backbone(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(Refusal, match=r"holds no model.safetensors.*\[no-such-file\]"):
        load_backbone(tmp_path)


def test_a_size_that_the_net_cannot_take_is_told_before_training():
    with pytest.raises(Refusal, match=r"backbone timm:test_convnext: cannot take 28 px images.*stride.*\[bad-value\]"):
        open_backbone("timm:test_convnext", 28)
    assert open_backbone("timm:test_convnext", 64).width > 0


@pytest.mark.parametrize("spec", ["resnet18", "timm:", "timm:restnet", "timm:resnet18.no_tag", "open_clip:nothing", "hub:x"])
def test_unknown_names_are_refused(spec):
    with pytest.raises(Refusal, match=r"\[bad-value\]"):
        open_backbone(spec, 28)


def test_open_clip_towers_are_backbones(tmp_path):
    import open_clip

    model = {"embed_dim": 24, "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}}
    model["text_cfg"] = {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    (tmp_path / "keepset-tiny.json").write_text(json.dumps(model))
    open_clip.add_model_config(tmp_path)
    backbone = open_backbone("open_clip:keepset-tiny", 32)
    assert backbone.width == 24 and backbone(torch.rand(2, 3, 32, 32)).shape == (2, 24)
    save_model(tmp_path / "out", backbone, {})
    x = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(load_backbone(tmp_path / "out").eval()(x), backbone.eval()(x))


def test_the_device_is_picked_or_refused():
    assert pick_device("cpu") == "cpu" and pick_device("auto") in ("cpu", "cuda", "mps")
    if not torch.backends.mps.is_available():
        with pytest.raises(Refusal, match=r"there is no mps here.*\[bad-value\]"):
            pick_device("mps")
