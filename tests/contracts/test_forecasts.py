"""Every decision says beforehand what it will take: more rows never take less, and the memory that it asks for is what `--dry-run` shows."""

import importlib
import inspect
from itertools import pairwise

import pytest
import yaml

from curate.forecasting import decision_forecast
from curate.recipe import parse_recipe
from curate.stages import DECISION, STAGES
from manifests.signature import VectorName, load, parameters
from manifests.vectors.forecast import linear, require
from tests.contracts.test_replay import build, home, measured  # noqa: F401  (fixtures)
from tests.contracts.test_stage_law import configured

DECISIONS = [name for name, stage in STAGES.items() if stage.kind == DECISION]
DIM = 3 * 8 * 8  # of `pixels:8`
BY_GROUPS = ("reduce.series", "reduce.information")  # what they ask for follows from the groups that they find


def module_of(name):
    return importlib.import_module(f"curate.{name}")


def resolved(name, evaluation):
    return parse_recipe(yaml.safe_dump({"format": 1, "stages": [configured(name, evaluation)]}), "recipe").stages[0]


def reads_vectors(name):
    return any(VectorName in kinds for kinds in map(_kinds, parameters(load(name, "curate")).values()))


def _kinds(parameter):
    kind = parameter.annotation
    return {kind, *getattr(kind, "__args__", ())}


@pytest.mark.parametrize("name", DECISIONS)
def test_every_decision_says_what_it_will_take(name):
    forecast = getattr(module_of(name), "forecast", None)
    cure = "def forecast(size: Size, *, …, **_: object) -> Forecast, or `forecast = linear` where the cost is linear in the rows and small"
    assert callable(forecast), f"curate/{name.replace('.', '/')}.py has no forecast: {cure}, from manifests/vectors/forecast.py"
    _, *asked = inspect.signature(forecast).parameters.values()
    strangers = {p.name for p in asked if p.kind is not inspect.Parameter.VAR_KEYWORD} - set(parameters(load(name, "curate")))
    assert not strangers, f"{name}: its forecast asks for {', '.join(sorted(strangers))}, which are no parameters of the decision"
    assert asked[-1].kind is inspect.Parameter.VAR_KEYWORD, f"{name}: its forecast is given all parameters, and ends with **_: object"


@pytest.mark.parametrize("name", [n for n in DECISIONS if reads_vectors(n) or "max_distance" in parameters(load(n, "curate"))])
def test_vectors_and_hashes_are_not_forecast_as_linear(name):
    assert module_of(name).forecast is not linear, f"{name} compares vectors or hashes: its forecast counts what that takes"


@pytest.mark.parametrize("name", DECISIONS)
def test_more_rows_never_take_less(name, tmp_path):
    stage = resolved(name, tmp_path)
    found = [decision_forecast(stage, rows, {"pixels": DIM}, 4 << 30) for rows in (10, 1_000, 30_000, 1_000_000, 30_000_000)]
    if found[0] is None:
        assert not reads_vectors(name) and found == [None] * len(found), f"{name}: a forecast of vectors follows from rows and width"
        return
    for less, more in pairwise(found):
        assert 0 < less.seconds() <= more.seconds(), f"{name}: more rows are forecast to take less time"
        assert 0 < less.memory <= more.memory, f"{name}: more rows are forecast to take less memory"


@pytest.mark.parametrize("name", [n for n in DECISIONS if reads_vectors(n) or (hasattr(module_of(n), "require") and n not in BY_GROUPS)])
def test_a_decision_asks_for_the_memory_that_the_dry_run_shows(measured, monkeypatch, name):  # noqa: F811
    module, asked, required = module_of(name), [], []
    forecast = module.forecast

    def listening(size, **given):
        asked.append((size, forecast(size, **given)))
        return asked[-1][1]

    def heard(where, needed, memory):
        required.append(needed)
        require(where, needed, memory)

    monkeypatch.setattr(module, "forecast", listening)
    monkeypatch.setattr(module, "require", heard, raising=False)
    run = build(measured, f"asked-{name}", [configured(name, measured / "eval")], "measured")
    rows, stage = run.info["counts"]["rows"], resolved(name, measured / "eval")
    assert required, f"{name} never asks whether it fits: require({name!r}, forecast(Size(len(pool), …), …), pool.memory) before its work"
    judged = [(size, found) for size, found in asked if size.rows == rows and any(found is needed for needed in required)]
    assert judged, f"{name} gives `require` another number than its own forecast for the {rows} rows that it was given"
    size, found = judged[0]
    tests = {str(measured / "eval"): size.tests[0]} if size.tests else None
    shown = decision_forecast(stage, rows, {"pixels": DIM}, size.memory, tests)
    assert shown == found, f"{name} asks for {found!r}, and the dry run shows {shown!r}"
