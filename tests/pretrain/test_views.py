import numpy as np
import pytest
import torch

from manifests.errors import Refusal
from pretrain import data
from pretrain.views import augment, check_views, mix, uniforms

EVERYTHING = {"hue": 0.1, "grey": 0.3, "blur": 0.5, "jitter_share": 0.8}


def batch(count: int = 12, side: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, side, side, 3), generator=random, dtype=torch.uint8).permute(0, 3, 1, 2)
    return images, torch.arange(count) * 7919 - 5, torch.arange(count) % 3


def test_a_view_depends_on_seed_uid_turn_and_view_and_on_nothing_else():
    images, uids, turns = batch()
    whole = augment(images, uids, turns, 0, 5, **EVERYTHING)
    order = torch.randperm(12)
    shuffled = augment(images[order], uids[order], turns[order], 0, 5, **EVERYTHING)
    alone = torch.cat([augment(images[i : i + 1], uids[i : i + 1], turns[i : i + 1], 0, 5, **EVERYTHING) for i in range(12)])
    torch.testing.assert_close(shuffled, whole[order], atol=1e-6, rtol=0)
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=0)
    assert torch.equal(augment(images, uids, turns, 0, 5, **EVERYTHING), whole)
    for other in (
        augment(images, uids + 1, turns, 0, 5),
        augment(images, uids, turns + 1, 0, 5),
        augment(images, uids, turns, 1, 5),
        augment(images, uids, turns, 0, 6),
    ):
        assert ((other - augment(images, uids, turns, 0, 5)).abs().amax((1, 2, 3)) > 0.05).all()


def test_the_random_numbers_are_uniform_and_unrelated():
    x = uniforms(torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64), 0, 3, 4).double()
    assert x.min() >= 0 and x.max() < 1
    assert (x.mean(0) - 0.5).abs().max() < 0.01 and (x.var(0) - 1 / 12).abs().max() < 0.003
    assert (torch.corrcoef(x.T) - torch.eye(4)).abs().max() < 0.03
    assert (torch.corrcoef(torch.stack([x[:-1, 0], x[1:, 0]])) - torch.eye(2)).abs().max() < 0.03


def test_the_mixing_is_splitmix64():
    # the first outputs of the generator with state 0, as published with it
    state = np.arange(1, 4, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    published = np.array([0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F], np.uint64)
    with np.errstate(over="ignore"):
        assert np.array_equal(data.mix(state), published)
    assert np.array_equal(mix(torch.from_numpy(state.view(np.int64))).numpy().view(np.uint64), published)


def test_without_any_change_the_picture_comes_back():
    images, uids, turns = batch()
    same = augment(images, uids, turns, 0, 0, crop=(1.0, 1.0), ratio=1.0, flip=0.0, jitter=0.0)
    torch.testing.assert_close(same, images.float() / 255, atol=1e-5, rtol=0)
    mirrored = augment(images, uids, turns, 0, 0, crop=(1.0, 1.0), ratio=1.0, flip=1.0, jitter=0.0)
    torch.testing.assert_close(mirrored, images.float().flip(3) / 255, atol=1e-5, rtol=0)


def test_a_crop_keeps_its_share_of_the_area():
    """A picture whose red is its column and whose green is its row shows where the crop lay."""
    ramp = torch.arange(64, dtype=torch.uint8)
    image = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64, dtype=torch.uint8)])
    images, uids = image.expand(400, 3, 64, 64), torch.arange(400)
    x = augment(images, uids, torch.zeros_like(uids), 0, 1, crop=(0.4, 0.8), flip=0.5, jitter=0.0) * 255
    width = (x[:, 0, 32, 40] - x[:, 0, 32, 24]).abs() / 16
    height = (x[:, 1, 40, 32] - x[:, 1, 24, 32]) / 16
    area = width * height
    assert 0.38 < area.min() < 0.45 and 0.75 < area.max() < 0.82
    ratio = width / height
    assert ratio.min() > 0.74 and ratio.max() < 1.35 and ratio.min() < 0.8 and ratio.max() > 1.25
    mirrored = (x[:, 0, 32, 40] < x[:, 0, 32, 24]).float().mean()
    assert 0.4 < mirrored < 0.6


def test_colour_is_one_linear_map_clamped():
    images, uids, turns = batch(200, 8)
    plain = {"crop": (1.0, 1.0), "ratio": 1.0, "flip": 0.0}
    still = images.float() / 255
    x = augment(images, uids, turns, 0, 0, **plain, jitter=0.4)
    random = uniforms(uids, turns, 0, 0, 16)
    brightness, contrast, saturation = ((1 + 0.4 * (random[:, i] * 2 - 1))[:, None, None, None] for i in (6, 7, 8))
    luma = (still * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    expected = (saturation * still + (1 - saturation) * luma) * brightness
    mean = (luma * brightness).mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(x, (contrast * expected + (1 - contrast) * mean).clamp(0, 1), atol=1e-5, rtol=0)
    grey = augment(images, uids, turns, 0, 0, **plain, jitter=0.0, grey=1.0)
    torch.testing.assert_close(grey, luma.expand(-1, 3, -1, -1), atol=1e-5, rtol=0)
    assert (grey[:, 0] - grey[:, 2]).abs().max() < 1e-6
    turned = augment(images, uids, turns, 0, 0, **plain, jitter=0.0, hue=0.5)
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    inside = ((turned > 0.01) & (turned < 0.99)).all(1)
    assert ((turned * weights).sum(1) - luma[:, 0]).abs()[inside].max() < 2e-3  # a rotation of the hue leaves the luma


def test_blur_keeps_the_mean_and_takes_the_detail():
    images, uids, turns = batch(64, 32)
    plain = {"crop": (1.0, 1.0), "ratio": 1.0, "flip": 0.0, "jitter": 0.0}
    sharp, soft = augment(images, uids, turns, 0, 0, **plain), augment(images, uids, turns, 0, 0, **plain, blur=1.0)
    assert (soft.mean((1, 2, 3)) - sharp.mean((1, 2, 3))).abs().max() < 0.02
    assert soft.std() < 0.7 * sharp.std()
    some = augment(images, uids, turns, 0, 0, **plain, blur=0.5)
    untouched = (some == sharp).all(3).all(2).all(1).float().mean()
    assert 0.3 < untouched < 0.7


@pytest.mark.parametrize("given", [{"crop": [0.5]}, {"crop": [0.0, 1.0]}, {"flip": 2.0}, {"ratio": 0.5}, {"jitter": -0.1}, {"hue": 0.7}])
def test_values_out_of_range_are_refused(given):
    with pytest.raises(Refusal, match=r"\[bad-value\]"):
        check_views(given, "views")
    with pytest.raises(Refusal, match=r"\[unknown-parameter\]"):
        check_views({"solarise": 1.0}, "views")
    assert check_views({}, "views")["crop"] == (0.4, 1.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_view_is_the_same_on_a_gpu():
    images, uids, turns = batch()
    there = augment(images.cuda(), uids.cuda(), turns.cuda(), 0, 5, **EVERYTHING).cpu()
    torch.testing.assert_close(there, augment(images, uids, turns, 0, 5, **EVERYTHING), atol=2e-3, rtol=0)
