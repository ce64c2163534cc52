"""kill -9 at the publish moments of an append: the same command again ends with the bytes of one that was never disturbed, and until then the run is whole."""

import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import curate
from curate.recipe import parse_recipe
from curate.stages import DECISION, STAGES
from manifests.audit.verify import verify
from manifests.run import open_run
from tests.curate.test_append import CUT, GROWING
from tests.curate.test_building import digests
from tests.faults import test_kill
from tests.faults.test_kill import MOMENTS, SCRIPT, decisions, kind_of, owners, published
from tests.small_pool import samples, write_evaluation_pool, write_pool

RECIPES = {**test_kill.RECIPES, "whole": GROWING}


def run(home: Path, out: Path, log: Path, kill_at: str = "") -> int:
    command = [sys.executable, str(SCRIPT), str(log), kill_at, "append", str(home / "new"), str(out)]
    environment = {"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, timeout=240, cwd=Path(__file__).parents[2], env=environment).returncode


@pytest.fixture(scope="module", params=RECIPES)
def home(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    write_pool(folder / "old", samples()[:CUT], per_shard=8, name="old")
    write_pool(folder / "new", samples()[CUT:], per_shard=10, name="new")
    write_evaluation_pool(folder / "eval")
    (folder / "recipe.yaml").write_text(RECIPES[request.param].replace("EVAL", str(folder / "eval")))
    curate.build(folder / "recipe.yaml", pool=str(folder / "old"), out=folder / "first", workers=1, quiet=True, device="cpu")
    shutil.copytree(folder / "first", folder / "whole")
    assert run(folder, folder / "whole", folder / "moments.txt") == 0
    return folder


def kinds(home: Path) -> dict[str, str]:
    """Each kind of file that the undisturbed append published -> whose it is, in the order of the run. Of the second recipe those of its decisions alone."""
    found = {kind: owner for kind, owner in owners(home).items() if kind != "scratch/run.json"} | {"scratch/run.json": "run.json"}
    return found if "shards" in found else {kind: owner for kind, owner in found.items() if owner in decisions(home)}


def killed_at(home: Path, out: Path, chosen: dict[str, str]) -> Counter:
    """How often the append to `out` died for each owner, when it was killed at each of `chosen` in turn, each time a little further on."""
    shutil.copytree(home / "first", out)
    killed: Counter = Counter()
    for target, owner in chosen.items():
        code = run(home, out, home / "again.txt", target)
        assert code in (0, -signal.SIGKILL), target
        killed[owner] += code != 0
        if (out / "run.json").exists() and open_run(out).info["counts"]["rows"] == CUT:
            assert verify(out)["whole"], target
    assert run(home, out, home / "again.txt") == 0
    assert digests(out) == digests(home / "whole")
    assert not list(out.rglob("*.tmp"))
    assert not (out / "scratch" / "run.json").exists()
    return killed


def test_every_decision_is_in_a_recipe_that_is_killed_while_it_grows():
    named = {stage.name for text in RECIPES.values() for stage in parse_recipe(text, "recipe").stages}
    missing = sorted({name for name, stage in STAGES.items() if stage.kind == DECISION} - named)
    assert not missing, f"{', '.join(missing)} left the recipe that is killed while it grows: GROWING in tests/curate/test_append.py"


@pytest.mark.timeout(900)
def test_an_append_killed_at_every_kind_of_moment_ends_with_the_same_bytes(home):
    """One folder, killed again and again: once for every kind of file, so every decision in its scans, its edges and its parts, at a drawn moment."""
    draw, found = random.Random(11), kinds(home)
    if "shards" in found:
        tops = {kind.split("/")[0] for kind in found}
        assert tops >= {"parts", "vectors", "edges", "ledger", "shards", "selection.npy", "run.json", "recipe.yaml"}
    chosen = {f"{draw.choice(MOMENTS)} {kind}": owner for kind, owner in found.items()}
    killed = killed_at(home, home / "broken", chosen)
    assert killed.total() >= 0.8 * len(chosen)
    assert all(killed[stage] for stage in decisions(home))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_append_killed_at_every_moment_ends_with_the_same_bytes(home):
    """Every file of every decision, at each of its four moments."""
    found = {kind: owner for kind, owner in kinds(home).items() if owner in decisions(home)}
    chosen = {line: found[kind_of(line)] for line in published(home) if kind_of(line) in found}
    killed = killed_at(home, home / "torn", chosen)
    assert killed.total() >= 0.95 * len(chosen)
