"""Names to backbones: `timm:<name>`, `open_clip:<model>`, `checkpoint:<folder>`; and back to a folder that timm loads."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from manifests.errors import Refusal

ALLOWED = "timm:<name>, open_clip:<model> or checkpoint:<folder>"


class Backbone(nn.Module):
    """An image network without its classifier: (b, 3, h, w) float32 in [0, 1] -> (b, width).

    `net` is the plain timm (or open_clip) module, and its `state_dict` is what a checkpoint holds.
    """

    _scale: Tensor
    _shift: Tensor

    def __init__(self, net: nn.Module, spec: str, resolution: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net, self.spec, self.resolution = net.to(memory_format=torch.channels_last), spec, resolution
        self.mean, self.std = tuple(mean), tuple(std)
        self.register_buffer("_scale", torch.tensor([1 / s for s in std]).view(3, 1, 1), persistent=False)
        self.register_buffer("_shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1), persistent=False)
        self.width = self._try()

    def forward(self, images: Tensor) -> Tensor:
        normal = torch.addcmul(self._shift, images, self._scale)
        return self.net(normal.contiguous(memory_format=torch.channels_last))

    def _try(self) -> int:
        """One picture through the net: the width, or a refusal before any training."""
        was = self.net.training
        try:
            with torch.no_grad():
                found = self.net.eval()(torch.zeros(1, 3, self.resolution, self.resolution))
        except (RuntimeError, ValueError, AssertionError) as error:
            why = str(error).split("\n")[0].rstrip(". ")
            stride = max((f["reduction"] for f in getattr(self.net, "feature_info", []) or []), default=None)
            cure = (
                f"Its stride is {stride}: use a resolution that is a multiple of it, or another backbone"
                if stride
                else "Use another resolution, or another backbone"
            )
            raise Refusal("bad-value", f"backbone {self.spec}", f"cannot take {self.resolution} px images ({why})", "", cure) from error
        finally:
            self.net.train(was)
        if found.ndim != 2:
            raise Refusal("bad-value", f"backbone {self.spec}", f"gives features of shape {tuple(found.shape)} a picture", "one vector a picture")
        return found.shape[1]


def open_backbone(spec: str, resolution: int) -> Backbone:
    """The backbone that `spec` names, with fresh weights (or those of the checkpoint), checked against `resolution`.

    Raises `Refusal` [bad-value] for an unknown name or a size that the net cannot take, [no-such-file] for a checkpoint that is not there.
    """
    kind, _, name = spec.partition(":")
    if kind == "timm" and name:
        return _timm(name, spec, resolution)
    if kind == "open_clip" and name:
        return _open_clip(name, spec, resolution)
    if kind == "checkpoint" and name:
        return load_backbone(name, resolution)
    raise Refusal("bad-value", "backbone", f"{spec!r} is no backbone", f"it takes {ALLOWED}")


def _timm(name: str, spec: str, resolution: int) -> Backbone:
    import timm

    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise Refusal("bad-value", "backbone", f"timm has no model {name!r}", f"near names: {near}" if near else "", "`timm.list_models()` lists all")
    try:
        settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        cure = f"Weights start fresh: `timm:{name.split('.')[0]}` is enough"
        raise Refusal("bad-value", "backbone", f"timm has no {name!r}: {name.split('.')[0]} has no such tag", "", cure) from error
    mean, std = (settings.mean, settings.std) if settings else ((0.5,) * 3, (0.5,) * 3)
    net = timm.create_model(name, num_classes=0, **timm_arguments(name, resolution))
    return Backbone(net, spec, resolution, mean, std)


def timm_arguments(name: str, resolution: int) -> dict[str, Any]:
    """What timm must be told: nets with positions for a fixed size are made for `resolution`."""
    import timm

    settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return {"img_size": resolution} if settings and settings.fixed_input_size else {}


def _open_clip(name: str, spec: str, resolution: int) -> Backbone:
    import open_clip

    if name not in open_clip.list_models():
        raise Refusal("bad-value", "backbone", f"open_clip has no model {name!r}", "", "`open_clip.list_models()` lists all")
    visual = open_clip.create_model(name, pretrained=None, force_image_size=resolution).visual
    return Backbone(visual, spec, resolution, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def describe_backbone(backbone: Backbone) -> dict[str, Any]:
    """`config.json` of a checkpoint folder: timm's own layout (`timm.create_model("local-dir:FOLDER")`), and a section for keepset."""
    kind, _, name = backbone.spec.partition(":")
    size = [3, backbone.resolution, backbone.resolution]
    return {
        "architecture": name.split(".")[0] if kind == "timm" else name,
        "num_classes": 0,
        "num_features": backbone.width,
        "model_args": timm_arguments(name, backbone.resolution) if kind == "timm" else {},
        "pretrained_cfg": {
            "input_size": size,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "num_classes": 0,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
        },
        "keepset": {
            "format": 1,
            "backbone": backbone.spec,
            "resolution": backbone.resolution,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "width": backbone.width,
        },
    }


def load_backbone(folder: Path | str, resolution: int | None = None) -> Backbone:
    """The backbone of a checkpoint folder (`config.json`, `model.safetensors`), strictly; at another `resolution` where its net allows.

    Raises `Refusal` [no-such-file] where a file is missing, [broken-record] where the weights do not fit the description.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise Refusal(
                "no-such-file",
                str(folder),
                f"holds no {name}",
                "a folder that `pretrain train` wrote",
                "Is the training finished? Run it again to go on",
            )
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))["keepset"]
        spec, size = described["backbone"], resolution or described["resolution"]
        backbone = open_backbone(spec, size)
        backbone.net.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Refusal("broken-record", str(folder), f"weights and description do not fit: {why}", "", "Train it again") from error
    return backbone


def pick_device(asked: str) -> str:
    """auto: the first of `devices`. Raises `Refusal` [bad-value] where the device asked for is not there."""
    here = devices()
    if asked != "auto" and asked not in here:
        raise Refusal("bad-value", "device", f"there is no {asked} here", f"here: {', '.join(here)}")
    return here[0] if asked == "auto" else asked


def devices() -> list[str]:
    """The devices of this machine, the fastest first: cuda, mps, cpu."""
    have = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [name for name, is_there in have.items() if is_there]
