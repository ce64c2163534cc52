"""What only a CUDA device can show: resuming to the same losses, losses against the definition, and steps that do not wait for the device."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pretrain.data import Pictures, Position, batches
from pretrain.objectives.bank import Bank
from pretrain.objectives.cross_entropy import cross_entropy_loss
from pretrain.objectives.look import look_loss, nearest
from pretrain.objectives.simclr import simclr_loss
from pretrain.optim import optimizer
from pretrain.samples import open_samples
from pretrain.train import Loop, train
from pretrain.transfer.features import features, open_encoder
from tests.pretrain.objectives.test_look import slow
from tests.pretrain.pictures import digit_pngs, write_pool, write_shards
from tests.pretrain.test_train import Stopped, kill_at_the_first_state, rows, stop_after

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(write_shards(tmp_path_factory.mktemp("gpu") / "s", *digit_pngs(400), per_tar=128))


def config(shards: str, out: Path, name: str, **changes) -> dict:
    base = {
        "data": [shards], "out": str(out), "objective": {"name": name}, "samples_seen": 640, "batch": 64, "resolution": 32, "device": DEVICE, "threads": 1,
        "backbone": "timm:resnet18", "optimizer": {"clip": 5.0, "lr": 0.02}, "checkpoint_every": 0,
    }  # fmt: skip
    return base | changes


def same(one: Path, two: Path) -> None:
    assert rows(one) == rows(two)
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("name", "rule"), [("look", "sgd"), ("cross_entropy", "adamw"), ("simclr", "sgd")])
def test_a_training_that_stops_and_goes_on_has_the_same_losses(name, rule, shards, tmp_path, monkeypatch):
    rule = {"name": rule, "clip": 5.0, "lr": 0.02 if rule == "sgd" else 1e-3}
    whole = train(config(shards, tmp_path / "whole", name, optimizer=rule), quiet=True)
    again = train(config(shards, tmp_path / "again", name, optimizer=rule), quiet=True)
    same(whole, again)
    with monkeypatch.context() as patched:
        stop_after(patched, "state.pt", 2)
        with pytest.raises(Stopped):
            train(config(shards, tmp_path / "parts", name, optimizer=rule, checkpoint_every=3), quiet=True)
    torch.rand(7, device=DEVICE)  # the caller's random state must not matter
    parts = train(config(shards, tmp_path / "parts", name, optimizer=rule, checkpoint_every=3), quiet=True)
    same(whole, parts)


def test_a_killed_process_goes_on_to_the_same_losses(shards, tmp_path):
    given = config(shards, tmp_path / "parts", "look", checkpoint_every=20, samples_seen=25_600, workers=1)
    kill_at_the_first_state(given, tmp_path)

    parts = train(given, quiet=True)
    same(train(config(shards, tmp_path / "whole", "look", samples_seen=25_600), quiet=True), parts)


def test_what_is_trained_here_opens_on_a_cpu(shards, tmp_path):
    out = train(config(shards, tmp_path / "a", "look"), quiet=True)
    assert all(value.dtype in (torch.float32, torch.int64) for value in load_file(out / "model.safetensors").values())
    told = json.loads((out / "config.json").read_text())["keepset"]["training"]
    assert told["device"] == DEVICE and "device" not in told["configuration"]
    pool = str(write_pool(tmp_path / "pool", *digit_pngs(60)))
    here, there = (features(open_encoder(str(out), device, 0), pool).z for device in ("cpu", DEVICE))
    assert np.abs(here - there).max() < 0.01 * np.abs(here).max()


def unit_rows(count: int, width: int, random: np.random.Generator) -> np.ndarray:
    z = random.normal(size=(count, width))
    return z / np.linalg.norm(z, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", [torch.float64, torch.float32])
def test_look_and_its_gradient_are_the_definition(kind):
    random = np.random.default_rng(5)
    queries, size, k, tau = 24, 2048, 20, 0.2
    queue = unit_rows(size, 16, random)
    queue[100:140] = queue[99]  # equal similarities: the smallest uid wins
    z = unit_rows(queries, 16, random)
    z[:6] = queue[99]
    label, labels = random.integers(0, 60, queries), random.integers(0, 60, size)
    label[7] = 61  # no positive anywhere
    uid, uids = random.integers(0, 900, queries), random.integers(0, 900, size)
    if kind == torch.float32:  # the definition sees the same numbers
        z, queue = (x.astype(np.float32).astype(np.float64) for x in (z, queue))
    value, gradient, judged = slow(z, label, uid, queue, labels, uids, k, tau)

    there = [torch.from_numpy(x).to(DEVICE) for x in (z, label, uid, queue, labels, uids)]
    there[0], there[3] = there[0].to(kind).requires_grad_(), there[3].to(kind)
    with torch.autocast(DEVICE, torch.bfloat16):
        loss, logs = look_loss(*there, k=k, tau=tau)
    loss.backward()

    close = 1e-10 if kind == torch.float64 else 2e-5
    assert loss.item() == pytest.approx(value, abs=close)
    np.testing.assert_allclose(there[0].grad.double().cpu(), gradient, atol=close)
    assert logs["judged"] == judged and 0 < logs["fallback"] < 1 and logs["skipped"] > 0


def test_the_nearest_are_chosen_by_value_and_then_by_uid():
    random = np.random.default_rng(2)
    s = np.round(random.normal(size=(5, 5000)), 1).astype(np.float32)
    s[2] = -np.inf
    s[2, 7] = 0.5
    uid = random.integers(0, 3000, 5000)
    found = nearest(torch.from_numpy(s).to(DEVICE), torch.from_numpy(uid).to(DEVICE), 30).cpu()
    for row in range(5):
        order = np.lexsort((np.arange(5000), uid, -s[row]))[:30]
        real = [j for j in order if s[row, j] > -np.inf]
        assert sorted(j for j in found[row].tolist() if s[row, j] > -np.inf) == sorted(real)


@pytest.mark.parametrize("name", ["cross_entropy", "simclr"])
def test_the_other_losses_and_their_gradients_are_those_of_the_cpu(name):
    random = np.random.default_rng(8)
    one, two = (torch.from_numpy(unit_rows(64, 32, random)) for _ in range(2))
    labels = torch.from_numpy(random.integers(0, 32, 64))

    def told(device: str, kind: torch.dtype) -> tuple[float, torch.Tensor]:
        z = one.to(device, kind).clone().requires_grad_()
        other = (two.to(device, kind),) if name == "simclr" else (labels.to(device),)
        with torch.autocast(device, torch.bfloat16):
            loss, _ = simclr_loss(z, *other, tau=0.2) if name == "simclr" else cross_entropy_loss(5 * z, *other, smoothing=0.1)
        loss.backward()
        return loss.item(), z.grad.double().cpu()

    value, gradient = told("cpu", torch.float64)
    for kind, close in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        found, slope = told(DEVICE, kind)
        assert found == pytest.approx(value, abs=10 * close)
        torch.testing.assert_close(slope, gradient, atol=close, rtol=0)


def test_a_bank_is_the_same_there():
    here, there = Bank(50, 8), Bank(50, 8).to(DEVICE)
    random = torch.Generator().manual_seed(1)
    for length in (7, 60, 0, 31, 50):
        z, label, uid = torch.randn(length, 8, generator=random), torch.arange(length), torch.arange(length) + 100
        here.add(z, label, uid)
        there.add(z.to(DEVICE), label.to(DEVICE), uid.to(DEVICE))
        assert len(here) == len(there)
        assert all(torch.equal(a, b.cpu()) for a, b in zip(here.rows(), there.rows(), strict=True))
    assert there.z.device.type == DEVICE and int(there.added) == 148


@pytest.mark.parametrize(
    ("objective", "most"), [({"name": "cross_entropy"}, 0), ({"name": "simclr"}, 0), ({"name": "look", "queue": 128, "k": 100}, 3)]
)
def test_a_step_does_not_wait_for_the_device(objective, most, shards, tmp_path):
    """Each wait leaves the device idle until the host has caught up. LOOK waits where it asks for ties and for queries without a positive."""
    samples = open_samples([shards])
    configuration = {"objective": objective, "samples_seen": 640, "backbone": "timm:resnet18", "resolution": 32, "batch": 64, "smallest_arm": None}
    loop = Loop(configuration | {"optimizer": {"clip": 5.0}, "views": {"hue": 0.1, "grey": 0.2}, "seed": 0}, samples, tmp_path, DEVICE)
    module = loop._objective().to(DEVICE).train()
    search = optimizer(module, **loop.optimizing)
    plan = batches(samples, 0, 64, Position())
    with Pictures(samples, 32) as pictures:
        for step, (planned, found) in enumerate(pictures.fetch(next(plan) for _ in range(8))):
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn" if step >= 6 else "default")
                try:
                    loop._step(module, search, step, planned, found, pictures)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
            told = [f"{Path(w.filename).name}:{w.lineno}" for w in waits if "called a synchronizing" in str(w.message)]
            assert len(told) <= most, told
