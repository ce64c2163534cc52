"""Small whole runs, made once a session; whoever damages one takes a copy."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.manifests.tiny_run import rewrite, tiny_run


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


@pytest.fixture(scope="session")
def filed(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the run whose pool was made from a folder of files: the ledger and the tests' index have the column `path`."""
    copy = Path(shutil.copytree(run, tmp_path_factory.mktemp("filed") / "run"))
    odd = {
        "000005": "\\xe9 <b>&\"odd\" 'name'/caf\\xe9.jpg", "000007": "one/twice.jpg", "000009": "two/twice.jpg",
        "000011": "a very long name/" * 20 + "end.jpg",
    }  # fmt: skip
    for file in [*copy.glob("ledger/*.parquet"), *copy.glob("evaluations/*/parts/measure.index/*/*.parquet")]:
        rows = pq.read_table(file).to_pylist()
        paths = [None if row["key"] == "000013" else odd.get(row["key"], f"web/{row['label_name']}/{row['key']}.jpg") for row in rows]
        rewrite(file, lambda table, paths=paths: table.append_column("path", pa.array(paths, pa.string())))
    record = json.loads((copy / "run.json").read_text())
    pools = [{**record["pool"], "source": "/data/photographs"}]
    record["generations"] = [{"pools": pools, "inputs": [], "counts": record["counts"], "ledger": [], "shards": []}]
    (copy / "run.json").write_text(json.dumps(record))
    return copy


@pytest.fixture
def copied(run: Path, tmp_path: Path) -> Callable[[], Path]:
    """A copy of the run that may be damaged; it reads the same pool."""

    def copy() -> Path:
        return Path(shutil.copytree(run, tmp_path / "run"))

    return copy
