"""Every stage that folds over stored pairs: on fewer rows and at other settings the fold is what a build finds, and nothing else is promised."""

import inspect
import random
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import yaml

import curate
from curate.pool import Share
from curate.stages import DECISION, STAGES
from manifests.errors import Refusal
from manifests.signature import load, parameters
from tests.contracts.test_stage_law import MEASURES, configured
from tests.curate.test_replaying import refusal_of, same_ledger
from tests.small_pool import crops, jpeg, write_evaluation_pool, write_pool

PAIRWISE = [n for n, s in STAGES.items() if s.kind == DECISION and hasattr(inspect.getmodule(load(n, "curate")), "MOVES")]
SETTINGS = 6


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """40 crops at odd places, so that many overlap, and copies of ten of them; measured once."""
    folder = tmp_path_factory.mktemp("replay")
    pictures = crops(30)
    rows = [{"image": jpeg(p), "label": label} for p, label in pictures]
    rows += [{"image": jpeg(pictures[i][0], 30 + 6 * i), "label": pictures[i][1]} for i in range(10)]
    rows += [{"image": jpeg(pictures[i][0][:, ::-1]), "label": pictures[i][1]} for i in range(5)]
    rows += [{**rows[i]} for i in (0, 3, 31)]
    random.Random(1).shuffle(rows)
    for number, row in enumerate(rows):
        row |= {"key": f"k{number:04d}", "caption": "", "group": f"g{number % 2}", "quality_vote": number / 40, "truth_copy_of": None}
    write_pool(folder / "pool", rows)
    write_evaluation_pool(folder / "eval")
    return folder


def recipe(folder: Path, name: str, stages: list) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"format": 1, "seed": 5, "stages": [*MEASURES, *stages], "shards": False}))
    return path


def build(folder: Path, name: str, stages: list, *reuse: str):
    given = [folder / other for other in reuse]
    return curate.build(recipe(folder, name, stages), pool=str(folder / "pool"), out=folder / name, reuse=given, workers=1, quiet=True, device="cpu")


@pytest.fixture(scope="module")
def measured(home):
    build(home, "measured", [])
    return home


def moved(name: str, before: dict, rng: random.Random) -> dict:
    """Other values of what may move, within the floors; drawn by the parameter's type."""
    function = load(name, "curate")
    known, after = parameters(function), dict(before)
    for parameter, floor in inspect.getmodule(function).MOVES.items():
        kind, value = known[parameter].annotation, before.get(parameter, known[parameter].default)
        bound = before.get(floor, known[floor].default) if floor else None
        if isinstance(bound, int | float) and value is not None:
            top = 1.0 if parameter.startswith("min_") else 0.0
            after[parameter] = type(value)(round(rng.uniform(min(bound, top), max(bound, top)), 3))
        elif get_origin(kind) is Literal:
            after[parameter] = rng.choice(get_args(kind))
        elif kind is bool:
            after[parameter] = rng.random() < 0.5
        elif parameter == "prefer":
            after[parameter] = rng.choice([[], ["num_pixels"], ["num_bytes"], ["blur", "num_bytes"]])
        elif parameter == "order":
            after[parameter] = rng.choice(["key", "num_bytes"])
        elif kind == Share | None:
            after[parameter] = rng.choice([None, 0.6])
    return after


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", PAIRWISE)
def test_the_fold_on_fewer_rows_and_at_other_settings_is_what_a_build_finds(measured, name):
    home, rng = measured, random.Random(name)
    module = inspect.getmodule(load(name, "curate"))
    (stage,) = configured(name, home / "eval").items()
    base = build(home, f"base-{name}", [{stage[0]: stage[1]}], "measured")
    keys = base.ledger(["key"])["key"].to_pylist()
    for number in range(SETTINGS):
        fewer = [{"keep.list": {"ids": sorted(rng.sample(keys, 30)), "by": "key"}}] if number % 2 else []
        protect = {"protect": f"key > '{rng.choice(keys)}'"} if number % 3 == 0 else {}
        within = {"within": "format"} if number % 5 == 4 else {}
        stages = [*fewer, {name: {**moved(name, stage[1], rng), **protect, **within}}]
        out, given = home / f"{name}-{number}", recipe(home, f"{name}-{number}", stages)
        if fewer and getattr(module, "PAIRS_OF_ALL_ROWS", False) and number == 1:
            assert curate.replay(base.path, recipe=given, device="cpu")["how"][name] == "folded, approximately"
        refusal = refusal_of(base.path, recipe=given, out=out)
        if refusal is not None:
            others = fewer or within or (protect and getattr(module, "PAIRS_BY_KEEPER", False))
            if others and getattr(module, "PAIRS_OF_ALL_ROWS", False) and "pairs follow from all rows" in str(refusal):
                continue  # pictures would have to be looked at again
            assert refusal.slug == "bad-value", str(refusal)
            with pytest.raises(Refusal, match="bad-value"):  # settings that a build refuses too
                build(home, f"{name}-{number}-built", stages, "measured")
            continue
        same_ledger(out, build(home, f"{name}-{number}-built", stages, "measured").path)


def test_every_stage_with_pairs_says_what_may_move():
    for name in PAIRWISE:
        function = load(name, "curate")
        known = parameters(function)
        for parameter, floor in inspect.getmodule(function).MOVES.items():
            assert parameter in known
            assert not floor or (floor in known and parameter.startswith(("min_", "max_")))
