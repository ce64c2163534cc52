"""kill -9 at the run's own publish and scan moments: the resumed run equals the undisturbed one byte for byte."""

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml

from curate.recipe import parse_recipe, read_recipe
from curate.stages import DECISION, STAGES
from tests.contracts.test_stage_law import MEASURES, configured
from tests.curate.test_building import RECIPE, digests
from tests.small_pool import write_evaluation_pool, write_pool

MOMENTS = ("before", "half", "written", "renamed")
SCRIPT = Path(__file__).with_name("killed_build.py")
FURTHER = """format: 1
seed: 3
stages:
  - measure.perceptual_hash:
  - measure.difference_hash:
  - measure.vectors: {encoder: "pixels:8", as: pixels}
  - keep.list: {ids: ["000030"], by: key, listed: drop}
  - dedup.copies: {vectors: [pixels], k: 2, min_cosine: 0.9, prefer: []}
  - dedup.all_pairs: {vectors: pixels, min_cosine: 0.98, floor_cosine: 0.9}
  - dedup.semantic: {vectors: pixels, min_cosine: 0.95, clusters: 3}
  - dedup.semdedup: {vectors: pixels, min_cosine: 0.9, floor_cosine: 0.8, clusters: 3}
  - dedup.mutual: {vectors: pixels}
  - reduce.series: {group: label_name, order: quality_vote, max_distance: 22, floor_distance: 24}
  - reduce.information: {group: label_name, min_nmi: 0.3, floor_nmi: 0.2}
  - reduce.redundancy: {vectors: pixels, keep: 0.95}
  - reduce.density: {vectors: pixels, keep: 0.95, clusters: 4}
  - reduce.prototypes: {vectors: pixels, keep: 0.95, clusters: 4}
  - reduce.hierarchical: {vectors: pixels, keep: 0.95, clusters: [6, 2], nearest: [3, 2], resampling: 2}
  - select.random: {keep: 0.95}
  - select.facility_location: {vectors: pixels, keep: 0.9}
shards: false
"""  # the decisions that RECIPE has not
LEAKS = """format: 1
stages:
  - measure.exact_hash:
  - measure.perceptual_hash:
  - measure.vectors: {encoder: "pixels:8", as: pixels}
  - leakage.images: {against: [EVAL], vectors: pixels, min_copied: 0.4, min_cosine: 0.98, loose_distance: 24, max_hits: 2}
shards: false
"""  # by all its ways: RECIPE has the first two


def rest(texts: Iterable[str]) -> dict[str, str]:
    """A recipe of the decisions that stand in none of `texts`, each at its defaults: a new one is killed from the day it is in the table."""
    named = {stage.name for text in texts for stage in parse_recipe(text, "recipe").stages}
    missing = [configured(name, Path("EVAL")) for name, stage in STAGES.items() if stage.kind == DECISION and name not in named]
    body = {"format": 1, "seed": 3, "stages": [*MEASURES, *missing], "shards": False}
    return {"rest": yaml.safe_dump(body)} if missing else {}


RECIPES = {"whole": RECIPE, "further": FURTHER, "leaks": LEAKS}
RECIPES |= rest(RECIPES.values())


def run(home: Path, out: Path, log: Path, kill_at: str = "") -> int:
    command = [sys.executable, str(SCRIPT), str(log), kill_at, str(home / "recipe.yaml"), str(home / "pool"), str(out)]
    return subprocess.run(
        command,
        capture_output=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    ).returncode


@pytest.fixture(scope="module", params=RECIPES)
def home(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    write_pool(folder / "pool")
    write_evaluation_pool(folder / "eval")
    (folder / "recipe.yaml").write_text(RECIPES[request.param].replace("EVAL", str(folder / "eval")))
    assert run(folder, folder / "whole", folder / "moments.txt") == 0
    return folder


def published(home: Path) -> list[str]:
    """Every moment of the undisturbed run ("half parts/…"), each once, in their order."""
    return list(dict.fromkeys((home / "moments.txt").read_text().splitlines()))


def kind_of(line: str) -> str:
    """`half parts/dedup.exact/crops/00000.parquet` -> `parts/dedup.exact`: a kind of file."""
    parts = line.split(" ", 1)[1].split("/")
    return "/".join(parts[: 2 if parts[0] in ("parts", "edges", "vectors", "scratch", "evaluations") else 1])


def owners(home: Path) -> dict[str, str]:
    """Each kind of file that the undisturbed run published -> the stage that it belongs to, else itself; in the order of the run.

    The states of a scan lie under the digest of their decision, and come before its edges and parts.
    """
    found: dict[str, str] = {}
    waiting = []
    for kind in dict.fromkeys(map(kind_of, published(home))):
        top, _, name = kind.partition("/")
        found[kind] = name if top in ("parts", "edges") else kind
        if top == "scratch":
            waiting.append(kind)
        elif top in ("parts", "edges"):
            found.update(dict.fromkeys(waiting, name))
            waiting = []
    return found


def decisions(home: Path) -> set[str]:
    return {stage.id for stage in read_recipe(home / "recipe.yaml").stages if stage.kind == DECISION}


def targets(home: Path) -> dict[str, str]:
    """For every kind of file three different moments -> whose they are; in the order of the run. Of the second recipe those of its decisions alone."""
    draw, found = random.Random(5), owners(home)
    wanted = set(found.values()) if "shards" in found else decisions(home)
    kinds = {kind: owner for kind, owner in found.items() if owner in wanted}
    return {f"{moment} {kind}": owner for kind, owner in kinds.items() for moment in sorted(draw.sample(MOMENTS, 3), key=MOMENTS.index)}


def killed_at(home: Path, out: Path, chosen: dict[str, str]) -> Counter:
    """How often the build into `out` died for each owner, when it was killed at each of `chosen` in turn, each time a little further on."""
    killed: Counter = Counter()
    for target, owner in chosen.items():
        code = run(home, out, home / "again.txt", target)
        assert code in (0, -signal.SIGKILL), target
        killed[owner] += code != 0
    assert run(home, out, home / "again.txt") == 0
    assert digests(out) == digests(home / "whole")
    assert not list(out.rglob("*.tmp"))
    return killed


def test_every_decision_is_in_a_recipe_that_is_killed():
    """Those that stand in no recipe above come into one by themselves."""
    whole = {stage.name for text in RECIPES.values() for stage in parse_recipe(text, "recipe").stages}
    by_itself = {stage.name for stage in parse_recipe(rest([RECIPE])["rest"], "recipe").stages}
    decisions_of_all = {name for name, stage in STAGES.items() if stage.kind == DECISION}
    assert whole >= decisions_of_all
    assert by_itself >= decisions_of_all - {stage.name for stage in parse_recipe(RECIPE, "recipe").stages}
    assert rest(RECIPES.values()) == {}


def test_every_stage_is_among_the_targets(home):
    found, chosen = owners(home), {target.split(" ")[1] for target in targets(home)}
    stages = {s.id for s in read_recipe(home / "recipe.yaml").stages}
    assert chosen >= {f"parts/{stage}" for stage in (stages if "shards" in found else decisions(home))}
    of_shards = "scratch/kept.arrow"
    scans = {kind: stage for kind, stage in found.items() if kind.startswith("scratch/") and kind != of_shards}
    assert len(set(scans.values())) == len(scans)
    assert scans or "rest" in RECIPES
    assert set(scans.values()) <= decisions(home)
    assert chosen >= set(scans)


@pytest.mark.timeout(900)
def test_a_run_killed_at_every_kind_of_moment_ends_with_the_same_bytes(home):
    """One folder, killed again and again: every decision at least three times, in its scans, its edges and its parts."""
    chosen = targets(home)
    killed = killed_at(home, home / "broken", chosen)
    assert killed.total() >= 0.8 * len(chosen)
    assert all(killed[stage] >= 3 for stage in decisions(home))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_killed_at_every_moment_ends_with_the_same_bytes(home):
    """Every file of every decision, at each of its four moments."""
    kinds = {kind: owner for kind, owner in owners(home).items() if owner in decisions(home)}
    chosen = {line: kinds[kind_of(line)] for line in published(home) if kind_of(line) in kinds}
    killed = killed_at(home, home / "torn", chosen)
    assert killed.total() >= 0.95 * len(chosen)
