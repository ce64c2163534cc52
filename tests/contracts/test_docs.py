"""Documents that code can check: a paragraph for every slug, every verb in the README, no host names in build files."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from manifests.errors import SLUGS

ROOT = Path(__file__).parents[2]


def raised() -> set[str]:
    """Every slug that the code raises by name."""
    found = set()
    for room in ("manifests", "curate", "pretrain"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Refusal" and node.args and isinstance(node.args[0], ast.Constant):
                    found.add(node.args[0].value)
    return found


def test_every_slug_has_a_paragraph_and_every_paragraph_a_slug():
    page = (ROOT / "docs" / "messages.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## ([a-z-]+)$", page, re.M)) == set(SLUGS)


def test_raised_slugs_are_in_the_table():
    assert raised() <= set(SLUGS)


def test_slugs_stand_in_order():
    assert list(SLUGS) == sorted(SLUGS)


@pytest.mark.parametrize("room", ["curate", "pretrain", "manifests"])
def test_every_verb_is_in_the_readme(room):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for verb in importlib.import_module(f"{room}.cli").main.commands:
        assert f"{room} {verb}" in readme


def test_build_files_name_no_host():
    for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run"):
        assert not re.search(r"https?://|index-url|find-links", (ROOT / name).read_text(encoding="utf-8"))


def test_the_readme_quotes_the_demo():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in (ROOT / "examples" / "demo.sh").read_text(encoding="utf-8").splitlines():
        if line.startswith(("curate ", "pretrain ", "manifests ")):
            assert line.split("   #")[0].strip() in readme
