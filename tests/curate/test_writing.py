"""The end of a build: the selection of a pool that repeats its own uids, shards drawn from several ledger files, kept rows that are mapped and not held."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import curate
from curate import writing
from manifests import ledger
from manifests.audit.verify import verify
from manifests.ledger import read_selection
from manifests.run import Run
from tests.small_pool import samples, write_pool

RECIPE = "format: 1\nseed: 5\nstages:\n  - select.random: {keep: 24}\nshards: {samples_per_shard: 5, order: ORDER}\n"


def build(folder: Path, out: str, order: str = "pool", name: str = "pool") -> Run:
    (folder / "recipe.yaml").write_text(RECIPE.replace("ORDER", order))
    return curate.build(folder / "recipe.yaml", pool=str(folder / name), out=folder / out, workers=1, device="cpu", quiet=True)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    write_pool(folder / "pool", per_shard=8)
    return folder


def whole(run: Run) -> dict[str, bytes]:
    """The bytes of every shard, and of what lies beside it."""
    return {file.name: file.read_bytes() for file in sorted((run.path / "shards").iterdir())}


@pytest.mark.parametrize("order", ["pool", "shuffled"])
def test_shards_do_not_depend_on_how_the_ledger_is_cut_into_files(home, monkeypatch, order):
    one = build(home, f"one-{order}", order)
    monkeypatch.setattr(ledger, "ROWS_A_FILE", 10)
    many = build(home, f"many-{order}", order)
    assert (len(one.ledger_files()), len(many.ledger_files())) == (1, 5)
    ours, theirs = whole(one), whole(many)
    assert {n: b for n, b in ours.items() if not n.endswith(".parquet")} == {n: b for n, b in theirs.items() if not n.endswith(".parquet")}
    for name in (n for n in ours if n.endswith(".parquet")):  # footers carry the digest of the ledger's files too
        assert pq.read_table(one.path / "shards" / name).equals(pq.read_table(many.path / "shards" / name))
    for run in (one, many):
        assert verify(run.path, deep=True)["findings"] == []
        assert not list((run.path / "scratch").glob("kept*"))


def test_kept_rows_are_mapped_and_taken_once_a_shard(home, monkeypatch):
    held, taken = [], []
    kept_rows, rows_of = writing._kept_rows, writing.rows_of

    def mapped(*given):
        before = pa.total_allocated_bytes()
        table = kept_rows(*given)
        held.append((pa.total_allocated_bytes() - before, table.nbytes))
        return table

    def counted(table, rows):
        taken.append((max(column.num_chunks for column in table.columns), len(rows)))
        return rows_of(table, rows)

    monkeypatch.setattr(writing, "_kept_rows", mapped)
    monkeypatch.setattr(writing, "rows_of", counted)
    build(home, "mapped")
    assert held[0][1] > 2000 and held[0][0] < 200
    assert taken == [(1, 5), (1, 5), (1, 5), (1, 5), (1, 4)]  # five pool shards, one ledger file, one chunk


@pytest.mark.parametrize("repeated", [True, False])
def test_a_pool_that_repeats_its_own_uids_is_selected_by_ours_and_is_whole(tmp_path, repeated):
    rows = [{**row, "uid": f"{0 if repeated and number % 2 else number:032x}"} for number, row in enumerate(samples()[:30])]
    write_pool(tmp_path / "pool", rows, per_shard=10)
    run = build(tmp_path, "run")
    kept = run.ledger().filter(pc.equal(run.ledger()["status"].cast(pa.string()), "kept"))
    assert kept["source_uid"].null_count == 0
    assert read_selection(run.path / "selection.npy") == sorted(kept["uid" if repeated else "source_uid"].to_pylist())
    result = verify(run.path)
    assert result["whole"] and result["exit_code"] == 0, result["findings"]
