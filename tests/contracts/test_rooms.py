"""Who may know whom, read from the imports with `ast`: data flows one way, as a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("manifests", "curate", "pretrain")
FILES = [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]
CONTRACTS = {"curate": {"curate.pool"}, "pretrain": {"pretrain.objectives.objective", "pretrain.objectives.bank"}}
METHOD_FOLDERS = {"measure", "keep", "score", "dedup", "leakage", "reduce", "select", "labels", "objectives"}


def imported(path: Path) -> set[str]:
    """Dotted names of the rooms' modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in found if name.split(".")[0] in ROOMS}


def name_of(path: Path) -> str:
    """`curate/dedup/exact.py` -> `curate.dedup.exact`."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_the_floor_and_itself(path):
    room = path.relative_to(ROOT).parts[0]
    allowed = {"manifests", room}
    if name_of(path) == "manifests.front":
        allowed |= set(ROOMS)  # the front door forwards by name; it imports none at load
    strangers = {name for name in imported(path) if name.split(".")[0] not in allowed}
    assert not strangers


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in METHOD_FOLDERS and p.name != "__init__.py"], ids=name_of)
def test_a_method_imports_its_contract_and_never_another_method(path):
    room = path.relative_to(ROOT).parts[0]
    if name_of(path) in CONTRACTS[room]:
        return
    encoders = {"curate.encoders"} if name_of(path) == "curate.measure.vectors" else set()
    own = {n for n in imported(path) if n.startswith(room)}
    modules = {n for n in own if (ROOT / Path(*n.split("."))).with_suffix(".py").exists()}
    assert modules <= CONTRACTS[room] | encoders


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_imports_a_cli(path):
    if name_of(path) != "manifests.front":
        assert not {n for n in imported(path) if n.split(".")[-1] == "cli"}


@pytest.mark.parametrize(
    "module",
    [
        "manifests",
        "manifests.run",
        "manifests.cli",
        "curate",
        "curate.cli",
        "curate.building",
        "curate.pool",
        "pretrain",
        "pretrain.cli",
        "manifests.front",
    ],
)
def test_import_loads_no_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_names_that_must_not_exist():
    banned = {"utils.py", "helpers.py", "misc.py", "base.py", "common.py"}
    assert not [p for p in FILES if p.name in banned]
    assert not [p for room in ROOMS for p in (ROOT / room).rglob("common")]
