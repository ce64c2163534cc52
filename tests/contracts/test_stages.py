"""One contract for every stage of the table: a new row is tested the moment it exists. Inputs come from the signature, never from a name."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

from curate.stages import DECISION, MEASURE, STAGES
from manifests.signature import first_sentence, load, parameters

ROOT = Path(__file__).parents[2]
GROWS = ("equal", "equal where each keeper is in the older part", "differs")  # a run that grew, against one build over both pools
names = pytest.mark.parametrize("name", STAGES)
decisions = pytest.mark.parametrize("name", [n for n, s in STAGES.items() if s.kind == DECISION])


@names
def test_path_is_name(name):
    folder, file = name.split(".")
    for path in (f"curate/{folder}/{file}.py", f"tests/curate/{folder}/test_{file}.py"):
        assert (ROOT / path).exists(), f"{name} is in the table, and there is no {path}"
    assert hasattr(importlib.import_module(f"curate.{name}"), file), f"curate/{folder}/{file}.py has no function {file}"


@names
def test_the_docstring_is_a_page(name):
    function = load(name, "curate")
    page = inspect.getdoc(function) or ""
    sentence = first_sentence(name, "curate")
    assert sentence.endswith(".") and len(sentence) <= 150, f"{name}: the first line of its docstring is one sentence of at most 150 characters"
    for parameter in parameters(function):
        assert re.search(rf"\b{parameter}\b", page), f"{parameter} has no line in the page of {name}"
    for word in ("Cost", "Source"):
        assert word in page, f"{name}: its page has no {word}"


@names
def test_every_parameter_is_typed_and_keyword_only(name):
    signature = inspect.signature(load(name, "curate"))
    first, *rest = signature.parameters.values()
    assert first.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    for parameter in rest:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, f"{name}: {parameter.name} stands before the *"
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}: {parameter.name} has no type"


@decisions
def test_reasons_are_a_closed_list_of_words(name):
    reasons = getattr(inspect.getmodule(load(name, "curate")), "REASONS", ())
    assert reasons, f"the file of {name} has no REASONS: the words that it may give, such as ('not_drawn',)"
    assert all(re.fullmatch(r"[a-z][a-z_]*", reason) for reason in reasons), f"{name}: REASONS {reasons}: words in small letters"


@decisions
def test_a_decision_says_what_appending_does_to_it(name):
    word = getattr(inspect.getmodule(load(name, "curate")), "GROWS", None)
    assert word in GROWS, f"the file of {name} has GROWS = {word!r}: one of {', '.join(map(repr, GROWS))}, see docs/ADDING.md"


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
