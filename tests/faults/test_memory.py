"""--memory is held while a real build runs, with its workers; what does not fit is refused before the work, with a number that works."""

import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import curate
from curate.machine import memory_bytes
from manifests.errors import Refusal
from manifests.memory import family_bytes, private_bytes, started_by
from manifests.vectors import forecast
from tests.small_pool import samples, write_pool

pytestmark = pytest.mark.skipif(private_bytes() is None, reason="this system does not tell")
MIB = 1 << 20
RECIPE = """format: 1
stages:
  - measure.quality:
  - measure.exact_hash:
  - dedup.exact:
  - select.random: {keep: 30}
"""
VECTORS = """format: 1
stages:
  - measure.vectors: {encoder: "pixels:4", as: pixels}
  - STAGE
shards: false
"""


def large(side: int, number: int, kind: str = "JPEG") -> bytes:
    """A picture of side x side pixels: few bytes, many pixels."""
    field = np.random.default_rng(number).integers(0, 256, (24, 24, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(field).resize((side, side), Image.Resampling.NEAREST).save(buffer, kind)
    return buffer.getvalue()


def pool_of(folder: Path, images: list[bytes]) -> Path:
    row = samples()[0]
    rows = [{**row, "image": image, "key": f"{i:06d}", "truth_copy_of": None} for i, image in enumerate(images)]
    return write_pool(folder, rows, per_shard=len(rows) // 2 or 1)


@pytest.mark.timeout(300)
def test_a_build_and_its_workers_stay_below_the_limit(tmp_path):
    """Two shards of 24 pictures with 20 MB of pixels each: a batch of 64 rows would take 480 MB in each of two workers."""
    pictures = [large(2600, number) for number in range(6)]
    pool = pool_of(tmp_path / "pool", [pictures[i % 6] for i in range(48)])
    (tmp_path / "r.yaml").write_text(RECIPE)
    limit = 640
    arguments = [
        "build",
        str(tmp_path / "r.yaml"),
        "--pool",
        str(pool),
        "--out",
        str(tmp_path / "run"),
        "--memory",
        f"{limit}MiB",
        "--workers",
        "2",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", "from curate.cli import main; main()", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        stdout=subprocess.DEVNULL,
    )
    peak = most_workers = 0
    while process.poll() is None:
        children = list(started_by(process.pid))
        peak = max(peak, sum(private_bytes(p) or 0 for p in (process.pid, *children)))
        most_workers = max(most_workers, len(children))
        time.sleep(0.02)
    said = process.stderr.read()
    assert process.returncode == 0, said
    assert most_workers >= 2
    assert 150 * MIB < peak < limit * MIB
    printed = re.search(r"peak (\d+) MiB of 640 MiB allowed", said)
    assert printed, said
    assert abs(int(printed[1]) - peak / MIB) < 0.4 * peak / MIB
    assert re.search(r"memory: 640 MiB allowed, \d+ MiB held", said)
    assert '"peak"' in (tmp_path / "run" / "events.jsonl").read_text()


def build(folder: Path, memory: str | int, out: str, **options):
    return curate.build(folder / "r.yaml", pool=str(folder / "pool"), out=folder / out, memory=memory, workers=1, quiet=True, device="cpu", **options)


def number_in(refused) -> str:
    assert refused.value.slug == "does-not-fit"
    assert refused.value.exit_code == 5
    return re.search(r"Give --memory (\d+(?:MiB|GiB))", str(refused.value))[1]


def test_less_than_the_libraries_is_refused_at_once_and_the_number_works(tmp_path):
    write_pool(tmp_path / "pool")
    (tmp_path / "r.yaml").write_text(RECIPE)
    with pytest.raises(Refusal) as refused:
        build(tmp_path, "16MiB", "run")
    assert not (tmp_path / "run" / "parts").exists()
    assert build(tmp_path, number_in(refused), "run").info["counts"]["rows"] == 40


@pytest.mark.parametrize("before", [None, 'keep.where: {keep: "label >= 0"}'])
@pytest.mark.parametrize("stage", ["dedup.all_pairs: {vectors: pixels}", "select.kcenter: {vectors: pixels, keep: 5}"])
def test_a_decision_that_does_not_fit_is_refused_and_the_number_works(tmp_path, monkeypatch, stage, before):
    monkeypatch.setattr(forecast, "FIXED", 700 * MIB)
    write_pool(tmp_path / "pool")
    (tmp_path / "r.yaml").write_text(VECTORS.replace("STAGE", f"{before}\n  - {stage}" if before else stage))
    with pytest.raises(Refusal) as refused:
        build(tmp_path, family_bytes() + 500 * MIB, "run")
    measured = (tmp_path / "run" / "parts" / "pixels").exists()
    assert measured == bool(before)  # the first decision is judged before anything is measured, a later one when it begins
    assert stage.split(":")[0] in str(refused.value)
    assert build(tmp_path, number_in(refused), "run").info["counts"]["rows"] == 40
    monkeypatch.setattr(forecast, "FIXED", 48 * MIB)
    assert build(tmp_path, family_bytes() + 500 * MIB, "other").info["counts"] == build(tmp_path, None, "default").info["counts"]


def test_a_picture_that_does_not_fit_is_refused_and_the_number_works(tmp_path):
    pool_of(tmp_path / "pool", [large(300, 0), large(4600, 1, "PNG")])
    (tmp_path / "r.yaml").write_text(RECIPE.replace("keep: 30", "keep: 1"))
    with pytest.raises(Refusal) as refused:
        build(tmp_path, family_bytes() + 300 * MIB, "run")
    assert "row 0" in str(refused.value)
    run = build(tmp_path, number_in(refused), "run")
    assert run.info["counts"] == {"rows": 2, "kept": 1, "dropped": 1, "quarantined": 0}
    assert memory_bytes(number_in(refused)) > 400 * MIB
