"""Every verb is a public function and a sentence; help is fast and complete; errors are one line with a slug and an exit code."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

BIN = Path(sys.executable).parent
VERBS = [(room, verb) for room in ("curate", "pretrain", "manifests") for verb in importlib.import_module(f"{room}.cli").main.commands]


@pytest.mark.parametrize(("room", "verb"), VERBS, ids=lambda v: v)
def test_help_is_a_sentence_with_an_example(room, verb):
    command = importlib.import_module(f"{room}.cli").main.commands[verb]
    assert command.help.split("\n")[0].strip().endswith(".")
    assert "Example:" in command.help
    assert all(p.help for p in command.params if p.param_type_name == "option")


@pytest.mark.parametrize(("room", "verb"), VERBS, ids=lambda v: v)
def test_help_prints(room, verb):
    result = CliRunner().invoke(importlib.import_module(f"{room}.cli").main, [verb, "--help"])
    assert "Usage:" in result.output


@pytest.mark.parametrize("room", ["curate", "pretrain", "manifests", "keepset"])
def test_help_needs_no_torch(room):
    module = "manifests.front" if room == "keepset" else f"{room}.cli"
    code = f"import sys; from {module} import main\ntry: main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_refusal_is_one_line_with_its_exit_code(tmp_path):
    done = subprocess.run([BIN / "manifests", "show", str(tmp_path / "nothing")], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "[no-such-file]" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "given", [["curate", "frobnicate"], ["curate", "build"], ["curate", "build", "x", "--frob"], ["manifests", "show"], ["keepset", "frobnicate"]]
)
def test_a_wrong_command_line_is_one_line_with_a_slug(given):
    done = subprocess.run([BIN / given[0], *given[1:]], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip().endswith("[bad-command]")


def test_keepset_forwards():
    done = subprocess.run([BIN / "keepset", "curate", "stages", "--json"], capture_output=True, text=True)
    assert done.returncode == 0
    assert {row["name"] for row in json.loads(done.stdout)} >= {"dedup.exact", "select.kcenter"}


def test_doctor_runs():
    done = subprocess.run([BIN / "curate", "doctor", "--json"], capture_output=True, text=True)
    assert json.loads(done.stdout)["packages"]
