"""Small whole runs, made once a session; whoever damages one takes a copy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.manifests.tiny_run import tiny_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def other_run(run: Path) -> Path:
    """The same pool, curated with other limits."""
    return tiny_run(run.parent, name="other", radius=3, min_share=0.3)


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, captions and class names that want to be run."""
    return tiny_run(tmp_path_factory.mktemp("hostile"), hostile=True)


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Callable[[], Path]:
    """A copy of the run that may be damaged; it reads the same pool."""

    def copy() -> Path:
        return Path(shutil.copytree(run, tmp_path / "run"))

    return copy
