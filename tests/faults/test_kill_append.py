"""kill -9 at the publish moments of an append: the same command again ends with the bytes of one that was never disturbed, and until then the run is whole."""

import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import curate
from manifests.audit.verify import verify
from manifests.run import open_run
from tests.curate.test_append import CUT, GROWING
from tests.curate.test_building import digests
from tests.faults.test_kill import MOMENTS, SCRIPT
from tests.small_pool import samples, write_evaluation_pool, write_pool


def run(home: Path, out: Path, log: Path, kill_at: str = "") -> int:
    command = [sys.executable, str(SCRIPT), str(log), kill_at, "append", str(home / "new"), str(out)]
    environment = {"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, timeout=240, cwd=Path(__file__).parents[2], env=environment).returncode


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    write_pool(folder / "old", samples()[:CUT], per_shard=8, name="old")
    write_pool(folder / "new", samples()[CUT:], per_shard=10, name="new")
    write_evaluation_pool(folder / "eval")
    (folder / "recipe.yaml").write_text(GROWING.replace("EVAL", str(folder / "eval")))
    curate.build(folder / "recipe.yaml", pool=str(folder / "old"), out=folder / "whole", workers=1, quiet=True, device="cpu")
    shutil.copytree(folder / "whole", folder / "broken")
    assert run(folder, folder / "whole", folder / "moments.txt") == 0
    return folder


def targets(home: Path) -> list[str]:
    """For every kind of file that the undisturbed append published one moment; in the order of the run."""
    kinds: dict[str, None] = {}
    for line in (home / "moments.txt").read_text().splitlines():
        parts = line.split(" ", 1)[1].split("/")
        kinds["/".join(parts[: 2 if parts[0] in ("parts", "edges", "vectors") else 1]) + ("/" if parts[0] == "scratch" else "")] = None
    draw = random.Random(11)
    return [f"{draw.choice(MOMENTS)} {kind}" for kind in kinds]


@pytest.mark.timeout(900)
def test_an_append_killed_at_every_kind_of_moment_ends_with_the_same_bytes(home):
    killed = 0
    chosen = targets(home)
    assert {t.split(" ")[1].split("/")[0] for t in chosen} >= {
        "parts",
        "vectors",
        "edges",
        "ledger",
        "shards",
        "selection.npy",
        "run.json",
        "recipe.yaml",
    }
    for target in chosen:
        code = run(home, home / "broken", home / "again.txt", target)
        assert code in (0, -signal.SIGKILL), target
        killed += code != 0
        if (home / "broken" / "run.json").exists() and open_run(home / "broken").info["counts"]["rows"] == CUT:
            assert verify(home / "broken")["whole"], target
    assert killed >= 0.8 * len(chosen)
    assert run(home, home / "broken", home / "again.txt") == 0
    assert digests(home / "broken") == digests(home / "whole")
    assert not list((home / "broken").rglob("*.tmp"))
    assert not (home / "broken" / "scratch" / "run.json").exists()
