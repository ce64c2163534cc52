"""Augmented views of a batch, made on the device. What a sample's view is depends on (seed, uid, turn, view) alone."""

import functools

import torch
from torch import Tensor
from torch.nn import functional

from manifests.errors import Refusal

_GREY = (0.299, 0.587, 0.114)
_TO_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def augment(
    images: Tensor,
    uids: Tensor,
    turns: Tensor,
    view: int,
    seed: int,
    *,
    crop: tuple[float, ...] = (0.4, 1.0),
    ratio: float = 4 / 3,
    flip: float = 0.5,
    jitter: float = 0.4,
    jitter_share: float = 1.0,
    hue: float = 0.0,
    grey: float = 0.0,
    blur: float = 0.0,
) -> Tensor:
    """Random resized crop, flip, colour jitter, grey and blur, in this order; one random stream a (seed, uid, turn, view).

    Guarantee   worker count, batch composition and position in the batch do not matter; the same on every device but for float rounding
    images      (b, 3, h, w) uint8; returns (b, 3, h, w) float32 in [0, 1]
    uids, turns (b,) int64: the sample, and which of its visits this is
    crop        smallest and largest share of the area that is kept; [1.0, 1.0] with ratio 1 is no crop
    ratio       width to height of the crop lies between 1 / ratio and ratio, both sides as likely
    flip        share of views mirrored left to right
    jitter      brightness, contrast and saturation are each scaled by a factor from 1 - jitter to 1 + jitter; together one linear map, clamped once
    jitter_share  share of views whose colour is jittered
    hue         rotation of the hue, in turns, from -hue to hue
    grey        share of views turned grey
    blur        share of views blurred by a Gaussian of 0.1 to 2 pixels at 32 px (in proportion at other sizes); 0 below about 64 px
    Source      the shared recipe of MoCo, SimCLR and their heirs; ours is linear in colour, theirs clamps after each step
    Cost        one bilinear sample a pixel, twelve operations a pixel for colour
    """
    random = uniforms(uids, turns, view, seed, 16)
    x = _crop(images.float().mul_(1 / 255), random, crop, ratio, flip)
    if jitter > 0 or hue > 0 or grey > 0:
        x = _colour(x, random, jitter, jitter_share, hue, grey)
    if blur > 0:
        x = _blur(x, random, blur)
    return x


def check_views(views: dict, where: str) -> dict:
    """The parameters of `augment`, checked and defaulted. Raises `Refusal` [unknown-parameter], [bad-value]."""
    from manifests.signature import check

    found = check(augment, views, where)
    low, high = (*found["crop"], 0.0, 0.0)[:2] if len(found["crop"]) == 2 else (0.0, 0.0)
    if not 0 < low <= high <= 1:
        raise Refusal(
            "bad-value", f"{where}: crop", f"{list(found['crop'])} is no range of shares", "it takes two numbers, 0 < smallest <= largest <= 1"
        )
    limits = {
        "ratio": (1.0, 4.0),
        "flip": (0.0, 1.0),
        "jitter": (0.0, 1.0),
        "jitter_share": (0.0, 1.0),
        "hue": (0.0, 0.5),
        "grey": (0.0, 1.0),
        "blur": (0.0, 1.0),
    }
    for name, (least, most) in limits.items():
        if not least <= found[name] <= most:
            raise Refusal("bad-value", f"{where}: {name}", f"{found[name]!r} is out of range", f"it takes a number from {least} to {most}")
    return found


def uniforms(uids: Tensor, turns: Tensor, view: int, seed: int, count: int) -> Tensor:
    """(b, count) float32 in [0, 1): a counter-based stream, splitmix64 over (seed, uid, turn, view, place)."""
    state = mix(mix(mix(uids ^ _signed(seed * 0x9E3779B97F4A7C15)) ^ turns) ^ view)
    places = torch.arange(1, count + 1, device=uids.device) * _signed(0x9E3779B97F4A7C15)
    bits = mix(state[:, None] + places)
    return ((bits >> 40) & 0xFFFFFF).float() * 2.0**-24


def mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014) on int64, which wraps as uint64 does; shifts are made logical by masks."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _signed(0x94D049BB133111EB)
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value


def _crop(x: Tensor, random: Tensor, crop: tuple[float, ...], ratio: float, flip: float) -> Tensor:
    area = crop[0] + (crop[1] - crop[0]) * random[:, 0]
    side = (random[:, 1] * 2 - 1) * (ratio - 1)
    aspect = torch.where(side >= 0, 1 + side, 1 / (1 - side))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = (random[:, 2] * 2 - 1) * (1 - width), (random[:, 3] * 2 - 1) * (1 - height)  # centre, in the grid's [-1, 1]
    mirror = torch.where(random[:, 4] < flip, -1.0, 1.0)
    zero = torch.zeros_like(area)
    theta = torch.stack([torch.stack([width * mirror, zero, left], 1), torch.stack([zero, height, top], 1)], 1)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _colour(x: Tensor, random: Tensor, jitter: float, share: float, hue: float, grey: float) -> Tensor:
    luma = _grey(x.device)
    active = (random[:, 5] < share).float()
    brightness, contrast, saturation = (1 + active * jitter * (random[:, i] * 2 - 1) for i in (6, 7, 8))
    saturation = torch.where(random[:, 9] < grey, 0.0, saturation)
    eye = torch.eye(3, device=x.device)
    colour = saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * luma  # (b, 3, 3): towards grey
    if hue > 0:
        colour = colour @ _rotation(active * hue * (random[:, 10] * 2 - 1))
    colour = colour * (brightness * contrast)[:, None, None]
    middle = (x * luma[:, None, None]).sum(1).mean((1, 2)) * brightness * (1 - contrast)
    red, green, blue = x.unbind(1)
    rows = [
        (colour[:, i, 0, None, None] * red)
        .addcmul_(colour[:, i, 1, None, None], green)
        .addcmul_(colour[:, i, 2, None, None], blue)
        .add_(middle[:, None, None])
        for i in range(3)
    ]
    return torch.stack(rows, 1).clamp_(0, 1)


def _rotation(turn: Tensor) -> Tensor:
    """(b, 3, 3): a rotation by `turn` turns around the grey axis of YIQ."""
    to, back = _yiq(turn.device)
    cos, sin = torch.cos(2 * torch.pi * turn.double()), torch.sin(2 * torch.pi * turn.double())
    one, zero = torch.ones_like(cos), torch.zeros_like(cos)
    spin = torch.stack([torch.stack([one, zero, zero], 1), torch.stack([zero, cos, -sin], 1), torch.stack([zero, sin, cos], 1)], 1)
    return (back @ spin @ to).float()


@functools.lru_cache(maxsize=8)
def _grey(device: torch.device) -> Tensor:
    """Kept there: to send it with each batch would wait for the device."""
    return torch.tensor(_GREY, device=device)


@functools.lru_cache(maxsize=8)
def _yiq(device: torch.device) -> tuple[Tensor, Tensor]:
    """RGB to YIQ and back, in float64."""
    to = torch.tensor(_TO_YIQ, dtype=torch.float64)
    return to.to(device), torch.linalg.inv(to).to(device)


def _blur(x: Tensor, random: Tensor, share: float) -> Tensor:
    batch, _, height, width = x.shape
    sigma = (0.1 + 1.9 * random[:, 11]) * height / 32
    radius = max(1, int(height / 32 * 4))
    offset = torch.arange(-radius, radius + 1, device=x.device)
    kernel = torch.exp(-(offset**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = functional.pad(x.reshape(1, batch * 3, height, width), (radius,) * 4, mode="reflect")
    flat = functional.conv2d(flat, kernel[:, None, :, None], groups=batch * 3)
    flat = functional.conv2d(flat, kernel[:, None, None, :], groups=batch * 3)
    chosen = (random[:, 12] < share)[:, None, None, None]
    return torch.where(chosen, flat.view(batch, 3, height, width), x)
