import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import manifests.publish
from manifests.errors import Refusal
from pretrain.backbones import load_backbone
from pretrain.samples import open_samples
from pretrain.train import Loop, train
from tests.pretrain.pictures import digit_pngs, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return str(write_shards(tmp_path_factory.mktemp("train") / "s", *digit_pngs(200), per_tar=64))


def config(shards: str, out: Path, name: str = "look", **changes) -> dict:
    base = {
        "data": [shards], "out": str(out), "objective": {"name": name}, "samples_seen": 320, "batch": 32, "resolution": 16, "device": "cpu", "threads": 1,
        "optimizer": {"clip": 5.0}, "checkpoint_every": 0,
    }  # fmt: skip
    return base | changes


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


class Stopped(BaseException):
    """As a kill: nothing may catch it."""


def stop_after(monkeypatch, name: str, count: int) -> None:
    """The process ends right after the `count`-th publication of file `name`."""
    seen = []

    def moment(what: str, path: Path) -> None:
        if what == "renamed" and path.name == name:
            seen.append(path)
            if len(seen) == count:
                raise Stopped

    monkeypatch.setattr(manifests.publish, "moment", moment)


@pytest.mark.parametrize("name", ["look", "cross_entropy", "simclr"])
def test_n_steps_stop_n_steps_gives_the_bits_of_2n_steps(name, shards, tmp_path, monkeypatch):
    whole = train(config(shards, tmp_path / "whole", name), quiet=True)

    with monkeypatch.context() as patched:
        stop_after(patched, "state.pt", 2)
        with pytest.raises(Stopped):
            train(config(shards, tmp_path / "parts", name, checkpoint_every=3), quiet=True)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    torch.rand(7)  # the caller's random state must not matter
    parts = train(config(shards, tmp_path / "parts", name, checkpoint_every=3), quiet=True)

    assert rows(whole) == rows(parts) and len(rows(whole)) == 10
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert not (parts / "state.pt").exists()


def test_a_training_tells_every_device_that_it_was_on(shards, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(patched, "state.pt", 1)
        with pytest.raises(Stopped):
            train(config(shards, tmp_path / "a", checkpoint_every=3), quiet=True)
    state = torch.load(tmp_path / "a" / "state.pt", weights_only=True)
    assert state["spent"]["device"] == "cpu"
    torch.save(state | {"spent": state["spent"] | {"device": "cuda"}}, tmp_path / "a" / "state.pt")  # as if begun elsewhere
    out = train(config(shards, tmp_path / "a", checkpoint_every=3), quiet=True)
    assert json.loads((out / "config.json").read_text())["keepset"]["training"]["device"] == "cuda, cpu"


def kill_at_the_first_state(given: dict, folder: Path) -> None:
    """Train in a process of its own until a state is there, and then no further."""
    path = folder / "config.yaml"
    path.write_text(json.dumps(given))
    started = subprocess.Popen(
        [sys.executable, "-c", "from pretrain.cli import main; main()", "train", str(path)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    limit = time.monotonic() + 120
    while not (Path(given["out"]) / "state.pt").exists() and started.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    started.kill()
    assert started.wait() == -signal.SIGKILL


def test_a_killed_process_goes_on_to_the_same_bits(shards, tmp_path):
    """kill -9 as soon as the first state is there, whatever the process is doing by then."""
    given = config(shards, tmp_path / "parts", "cross_entropy", checkpoint_every=2, samples_seen=1600, workers=1)
    kill_at_the_first_state(given, tmp_path)

    parts = train(given, quiet=True)
    whole = train(config(shards, tmp_path / "whole", "cross_entropy", samples_seen=1600), quiet=True)

    assert rows(whole) == rows(parts) and len(rows(whole)) == 50
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["look", "cross_entropy", "simclr"])
def test_a_gpu_trains_in_mixed_precision_to_a_falling_loss(name, shards, tmp_path):
    out = train(config(shards, tmp_path / "a", name, device="cuda", samples_seen=3200), quiet=True)
    losses = [row["loss"] for row in rows(out)]
    assert np.isfinite(losses).all() and np.mean(losses[-10:]) < np.mean(losses[:10])
    assert all(value.dtype in (torch.float32, torch.int64) for value in load_file(out / "model.safetensors").values())


def test_a_metrics_file_ahead_of_its_state_is_cut(shards, tmp_path, monkeypatch):
    whole = train(config(shards, tmp_path / "whole", "cross_entropy"), quiet=True)
    with monkeypatch.context() as patched:
        stop_after(patched, "metrics.jsonl", 3)
        with pytest.raises(Stopped):
            train(config(shards, tmp_path / "parts", "cross_entropy", checkpoint_every=2), quiet=True)
    assert len(rows(tmp_path / "parts")) == 6  # the state is at step 4
    assert rows(train(config(shards, tmp_path / "parts", "cross_entropy", checkpoint_every=2), quiet=True)) == rows(whole)


def test_loaders_cache_and_listing_never_change_a_bit(shards, tmp_path):
    plain = train(config(shards, tmp_path / "a", "cross_entropy"), quiet=True)
    other = str(write_shards(tmp_path / "s", *digit_pngs(200), per_tar=13, order=list(range(200))[::-1]))
    loaded = train(config(other, tmp_path / "b", "cross_entropy", workers=2, cache_mib=0), quiet=True)
    assert (plain / "model.safetensors").read_bytes() == (loaded / "model.safetensors").read_bytes()


def test_seeds_differ_and_the_caller_keeps_its_random_state(shards, tmp_path):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    one = train(config(shards, tmp_path / "a", "cross_entropy", seed=0), quiet=True)
    two = train(config(shards, tmp_path / "b", "cross_entropy", seed=1), quiet=True)
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    assert rows(one)[0]["loss"] != rows(two)[0]["loss"]


def test_a_finished_training_is_not_done_again_and_another_one_is_refused(shards, tmp_path):
    out = train(config(shards, tmp_path / "a", "cross_entropy"), quiet=True)
    stamp = os.stat(out / "model.safetensors").st_mtime_ns
    train(config(shards, tmp_path / "a", "cross_entropy", workers=1, threads=2, checkpoint_every=7), quiet=True)
    assert os.stat(out / "model.safetensors").st_mtime_ns == stamp
    for change in ({"seed": 1}, {"samples_seen": 640}, {"objective": {"name": "cross_entropy", "projector": True}}):
        with pytest.raises(Refusal, match=r"another configuration or other data.*\[bad-value\]"):
            train(config(shards, tmp_path / "a", "cross_entropy") | change, quiet=True)


def test_the_folder_tells_what_was_done_and_opens_as_a_backbone(shards, tmp_path):
    out = train(config(shards, tmp_path / "a", "look"), quiet=True)
    told = json.loads((out / "config.json").read_text())["keepset"]["training"]
    assert told["steps"] == 10 and told["samples"] == 200 and told["undecodable"] == 0 and told["seconds"] > 0
    assert told["configuration"]["objective"] == {
        "name": "look",
        "k": None,
        "tau": 0.1,
        "queue": None,
        "momentum": 0.99,
        "projector": True,
        "width": 128,
    }
    assert told["configuration"]["optimizer"]["warmup"] == 0.1 and told["configuration"]["views"]["crop"] == [0.4, 1.0]
    weights = load_file(out / "model.safetensors")
    backbone = load_backbone(out)
    assert all(torch.equal(value, weights[name]) for name, value in backbone.net.state_dict().items())
    first, last = rows(out)[0], rows(out)[-1]
    assert first["lr"] == pytest.approx(0.1) and last["lr"] < 0.01  # warm-up of one step
    assert {"step", "samples_seen", "lr", "loss", "fallback", "positives", "skipped", "all_positive", "momentum", "gradient_norm"} == set(last)


def test_training_goes_on_from_a_checkpoint(shards, tmp_path):
    first = train(config(shards, tmp_path / "a", "simclr"), quiet=True)
    second = train(config(shards, tmp_path / "b", "cross_entropy", backbone=f"checkpoint:{first}"), quiet=True)
    assert load_backbone(second).spec == "timm:test_resnet"


def test_pictures_that_cannot_be_decoded_are_counted_and_skipped(tmp_path):
    pictures, labels = digit_pngs(40)
    pictures[3] = b"broken"
    shards = str(write_shards(tmp_path / "s", pictures, labels))
    out = train(config(shards, tmp_path / "a", "look", samples_seen=160, batch=40), quiet=True)
    assert json.loads((out / "config.json").read_text())["keepset"]["training"]["undecodable"] == 1
    assert all(np.isfinite(row["loss"]) for row in rows(out))


def refusals(shards: str, tmp_path: Path):
    return [
        ({"epochs": 3}, "unknown-parameter", "has no parameter 'epochs'"),
        ({"samples_seen": "many"}, "bad-value", "a whole number"),
        ({"samples_seen": 8}, "bad-value", "make no step"),
        ({"objective": {"name": "luck"}}, "bad-value", "'luck' is no objective"),
        ({"objective": {"name": "look", "kk": 3}}, "unknown-parameter", "has no parameter 'kk'"),
        ({"optimizer": {"lr": -1.0}}, "bad-value", "out of range"),
        ({"optimizer": {"name": "lars"}}, "bad-value", "one of sgd, adamw"),
        ({"views": {"crop": [0.9, 0.1]}}, "bad-value", "no range of shares"),
        ({"backbone": "timm:nothing"}, "bad-value", "timm has no model 'nothing'"),
        ({"backbone": "timm:test_convnext", "resolution": 28}, "bad-value", "cannot take 28 px"),
        ({"device": "tpu"}, "bad-value", "one of auto, cpu, cuda, mps"),
        ({"workers": -1}, "bad-value", "workers: -1 is too small; it takes a whole number from 0"),  # else nothing would be trained, and written
        ({"threads": -1}, "bad-value", "whole number from 1"),
        ({"resolution": 0}, "bad-value", "whole number from 1"),
        ({"smallest_arm": 0}, "bad-value", "whole number from 1"),
        ({"objective": {"name": ["look"]}}, "bad-value", "is no objective"),
        ({"data": [str(tmp_path / "none")]}, "no-such-file", "none"),
    ]


def test_every_mistake_is_refused_before_any_work(shards, tmp_path):
    for change, slug, text in refusals(shards, tmp_path):
        with pytest.raises(Refusal) as refused:
            train(config(shards, tmp_path / "out") | change, quiet=True)
        assert refused.value.slug == slug and text in str(refused.value), (change, str(refused.value))
        assert not (tmp_path / "out" / "metrics.jsonl").exists()


@pytest.mark.parametrize("told", ["{", "[1]", '{"architecture": "resnet18"}', '{"keepset": {"training": {"digest": "other"}}}'])
def test_a_folder_that_holds_another_model_is_left_alone(told, shards, tmp_path):
    (tmp_path / "config.json").write_text(told)
    with pytest.raises(Refusal, match=r"holds a model.*Give another `out`.*\[bad-value\]"):
        train(config(shards, tmp_path), quiet=True)
    assert (tmp_path / "config.json").read_text() == told


def test_a_state_that_is_none_is_refused(shards, tmp_path):
    torch.save([1], tmp_path / "list.pt")
    torch.save({"step": 1}, tmp_path / "other.pt")
    for data in (b"no state", (tmp_path / "list.pt").read_bytes(), (tmp_path / "other.pt").read_bytes()):
        (tmp_path / "state.pt").write_bytes(data)
        with pytest.raises(Refusal, match=r"is not a saved state.*\[broken-record\]"):
            train(config(shards, tmp_path), quiet=True)


def test_samples_without_a_label_are_refused_where_labels_are_needed(tmp_path):
    pictures, labels = digit_pngs(40)
    shards = str(write_shards(tmp_path / "s", pictures, [None, *labels[1:]]))
    with pytest.raises(Refusal, match=r"1 of 40 samples have no label.*\[missing-label\]"):
        train(config(shards, tmp_path / "a", "look"), quiet=True)
    train(config(shards, tmp_path / "b", "simclr", samples_seen=64), quiet=True)


def test_a_loss_that_is_not_finite_ends_the_training(shards, tmp_path):
    with pytest.raises(Refusal, match=r"the loss is .* at step .*\[diverged\]"):
        train(
            config(shards, tmp_path / "a", "cross_entropy", optimizer={"lr": 1000.0, "warmup": 0.0}, backbone="timm:test_vit", resolution=16),
            quiet=True,
        )


def test_a_file_of_configuration_is_read_strictly_and_laid_over(shards, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text(
        f"data: [{shards}]\nout: {tmp_path / 'a'}\nobjective: {{name: simclr, tau: 0.3}}\nsamples_seen: 64\nbatch: 32\nresolution: 16\ndevice: cpu\n"
    )
    out = train(path, overrides={"objective": {"tau": 0.5}, "seed": 4}, quiet=True)
    told = json.loads((out / "config.json").read_text())["keepset"]["training"]["configuration"]
    assert told["objective"]["tau"] == 0.5 and told["seed"] == 4
    path.write_text("data: [x]\ndata: [y]\n")
    with pytest.raises(Refusal, match="stands twice"):
        train(path)


def hold(folder: str, ready, done) -> None:
    with manifests.publish.locked(Path(folder)):
        ready.set()
        done.wait(30)


def test_two_trainings_on_one_folder_are_refused(shards, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(str(tmp_path / "a"), ready, done))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(Refusal, match=r"\[run-locked\]"):
        train(config(shards, tmp_path / "a"), quiet=True)
    done.set()
    holder.join()
    train(config(shards, tmp_path / "a", samples_seen=64), quiet=True)


def test_defaults_follow_from_the_smallest_arm_of_the_comparison(shards, tmp_path):
    settings = {"objective": {"name": "look"}, "samples_seen": 64, "backbone": "timm:test_resnet", "resolution": 16, "batch": 32}
    settings |= {"optimizer": {}, "views": {}, "seed": 0}
    samples = open_samples([shards])
    for smallest_arm, queue in ((None, 64), (50, 16)):
        objective = Loop(settings | {"smallest_arm": smallest_arm}, samples, tmp_path, "cpu")._objective()
        assert objective.bank.size == queue


def test_other_weights_to_start_from_are_another_training(shards, tmp_path):
    first = train(config(shards, tmp_path / "a", "simclr"), quiet=True)
    given = config(shards, tmp_path / "b", "cross_entropy", backbone=f"checkpoint:{first}")
    train(given, quiet=True)
    shutil.rmtree(first)
    train(config(shards, tmp_path / "a", "simclr", seed=1), quiet=True)
    with pytest.raises(Refusal, match=r"another configuration or other data.*\[bad-value\]"):
        train(given, quiet=True)
