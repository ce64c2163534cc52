"""kill -9 at the run's own publish and scan moments: the resumed run equals the undisturbed one byte for byte."""

import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from curate.recipe import read_recipe
from tests.curate.test_building import RECIPE, digests
from tests.small_pool import write_evaluation_pool, write_pool

MOMENTS = ("before", "half", "written", "renamed")
SCRIPT = Path(__file__).with_name("killed_build.py")


def run(home: Path, out: Path, log: Path, kill_at: str = "") -> int:
    command = [sys.executable, str(SCRIPT), str(log), kill_at, str(home / "recipe.yaml"), str(home / "pool"), str(out)]
    return subprocess.run(
        command,
        capture_output=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    ).returncode


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    write_pool(folder / "pool")
    write_evaluation_pool(folder / "eval")
    (folder / "recipe.yaml").write_text(RECIPE.replace("EVAL", str(folder / "eval")))
    assert run(folder, folder / "whole", folder / "moments.txt") == 0
    return folder


def targets(home: Path) -> list[str]:
    """For every kind of file that the undisturbed run published, three different moments; in the order of the run."""
    kinds: dict[str, None] = {}
    for line in (home / "moments.txt").read_text().splitlines():
        path = line.split(" ", 1)[1]
        parts = path.split("/")
        depth = 2 if parts[0] in ("parts", "edges", "vectors", "scratch", "evaluations") else 1
        kinds[parts[0] + "/" if parts[0] == "scratch" else "/".join(parts[:depth])] = None
    draw = random.Random(5)
    return [f"{moment} {kind}" for kind in kinds for moment in sorted(draw.sample(MOMENTS, 3), key=MOMENTS.index)]


def test_every_stage_is_among_the_targets(home):
    hit = {t.split("parts/")[1] for t in targets(home) if "parts/" in t}
    assert hit >= {s.id for s in read_recipe(home / "recipe.yaml").stages}


@pytest.mark.timeout(600)
def test_a_run_killed_at_every_kind_of_moment_ends_with_the_same_bytes(home):
    """One folder, killed again and again, each time a little further on: every stage at least three times."""
    killed = 0
    for target in targets(home):
        code = run(home, home / "broken", home / "again.txt", target)
        assert code in (0, -signal.SIGKILL), target
        killed += code != 0
        if code == 0:  # what this target would hit stands already: take it away, so that it is hit
            run(home, home / "broken", home / "again.txt")
    assert killed >= 0.8 * len(targets(home))
    assert run(home, home / "broken", home / "again.txt") == 0
    assert digests(home / "broken") == digests(home / "whole")
    assert not list((home / "broken").rglob("*.tmp"))
