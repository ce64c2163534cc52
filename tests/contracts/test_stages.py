"""One contract for every stage of the table: a new row is tested the moment it exists. Inputs come from the signature, never from a name."""

import ast
import inspect
import re
from pathlib import Path

import pytest

from curate.stages import DECISION, MEASURE, STAGES
from manifests.signature import first_sentence, load, parameters

ROOT = Path(__file__).parents[2]
names = pytest.mark.parametrize("name", STAGES)
decisions = pytest.mark.parametrize("name", [n for n, s in STAGES.items() if s.kind == DECISION])


@names
def test_path_is_name(name):
    folder, file = name.split(".")
    assert (ROOT / "curate" / folder / f"{file}.py").exists()
    assert (ROOT / "tests" / "curate" / folder / f"test_{file}.py").exists()
    assert load(name, "curate").__name__ == file


def test_no_method_file_is_missing_from_the_table():
    folders = {name.split(".")[0] for name in STAGES}
    found = {f"{p.parent.name}.{p.stem}" for f in folders for p in (ROOT / "curate" / f).glob("*.py") if p.stem != "__init__"}
    assert found == set(STAGES)


@names
def test_the_docstring_is_a_page(name):
    function = load(name, "curate")
    page = inspect.getdoc(function) or ""
    sentence = first_sentence(name, "curate")
    assert sentence.endswith(".")
    assert len(sentence) <= 150
    for parameter in parameters(function):
        assert re.search(rf"\b{parameter}\b", page), f"{parameter} has no line in the page of {name}"
    for word in ("Cost", "Source"):
        assert word in page, f"{name}: no {word}"


@names
def test_every_parameter_is_typed_and_keyword_only(name):
    signature = inspect.signature(load(name, "curate"))
    first, *rest = signature.parameters.values()
    assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    for parameter in rest:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.annotation is not inspect.Parameter.empty


@decisions
def test_reasons_are_a_closed_list_of_words(name):
    reasons = inspect.getmodule(load(name, "curate")).REASONS
    assert reasons
    assert all(re.fullmatch(r"[a-z][a-z_]*", reason) for reason in reasons)


@names
def test_columns_are_named_after_the_file(name):
    module = inspect.getmodule(load(name, "curate"))
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", column) for column in getattr(module, "WRITES", {}))


@names
def test_a_method_has_no_device_branch_no_try_and_no_print(name):
    folder, file = name.split(".")
    tree = ast.parse((ROOT / "curate" / folder / f"{file}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print")
        if STAGES[name].kind == MEASURE:
            assert not isinstance(node, ast.Try)
