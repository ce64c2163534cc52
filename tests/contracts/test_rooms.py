"""Who may know whom, read from the imports with `ast`: data flows one way, as a test."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from curate.stages import STAGES
from pretrain.tables import OBJECTIVES, TASKS

ROOT = Path(__file__).parents[2]
ROOMS = ("manifests", "curate", "pretrain")
FILES = [p for room in ROOMS for p in sorted((ROOT / room).rglob("*.py"))]
METHODS = {  # of each table: the methods, and what of their own room they may import
    "curate/stages.py": ([f"curate.{name}" for name in STAGES], {"curate.pool"}),
    "OBJECTIVES": ([f"pretrain.objectives.{name}" for name in OBJECTIVES], {"pretrain.objectives.objective", "pretrain.objectives.bank"}),
    "TASKS": ([f"pretrain.transfer.{name}" for name in TASKS], {"pretrain.transfer.features"}),
}
LINES = 420  # of a file, at most: about 400
FURTHER = {"curate.measure.vectors": {"curate.encoders"}}


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


@pytest.mark.parametrize(("name", "contract"), [pytest.param(name, contract, id=name) for names, contract in METHODS.values() for name in names])
def test_a_method_imports_its_contract_and_never_another_method(name, contract):
    own = {n for n in imported(ROOT / f"{name.replace('.', '/')}.py") if n.startswith(f"{name.split('.')[0]}.")}
    modules = {n for n in own if (ROOT / Path(*n.split("."))).with_suffix(".py").exists()}
    strangers, allowed = modules - contract - FURTHER.get(name, set()), ", ".join(sorted(contract))
    assert not strangers, (
        f"{name} imports {', '.join(sorted(strangers))}: of its room a method imports {allowed} alone; what two share goes to manifests/"
    )


def test_no_file_beside_methods_is_outside_the_table():
    """A file in a folder of stages that is not in the table would escape the rule above."""
    folders = {name.split(".")[0] for name in STAGES}
    beside = {name_of(p) for p in FILES if p.parent.parent == ROOT / "curate" and p.parent.name in folders and p.name != "__init__.py"}
    outside = sorted(beside - {f"curate.{name}" for name in STAGES})
    assert not outside, f"{', '.join(outside)}: no row in curate/stages.py"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_is_read_in_one_sitting(path):
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count <= LINES, (
        f"{name_of(path)} has {count} lines: what it holds beside its method, and is whole by itself, is a file of its own in manifests/"
    )


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
