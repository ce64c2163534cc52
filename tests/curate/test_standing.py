"""What is thrown away of a run: damaged outputs with all that belongs to them, and nothing else."""

import json
from pathlib import Path

import pytest

from curate.standing import discard
from curate.writing import _remove_stale


def written(root: Path, *numbers: str) -> Path:
    """A run with shards of these numbers and their record."""
    (root / "shards").mkdir()
    for number in numbers:
        for end in (".tar", ".parquet", "_stats.json"):
            (root / "shards" / f"{number}{end}").write_bytes(b"as it was")
    (root / "shards" / "sizes.json").write_bytes(b"as it was")
    outputs = {str(file.relative_to(root)): [9, "e3b0"] for file in (root / "shards").iterdir()}
    (root / "run.json").write_text(json.dumps({"outputs": outputs}))
    return root


def there(root: Path) -> set[str]:
    return {file.name for file in (root / "shards").iterdir()}


@pytest.mark.parametrize("damaged", ["10000.tar", "100000.tar", "100000_stats.json", "100001.parquet"])
def test_a_damaged_shard_goes_with_what_is_beside_it_and_no_other_does(tmp_path, damaged):
    run = written(tmp_path, "10000", "100000", "100001")
    before = there(run)
    (run / "shards" / damaged).write_bytes(b"cut")
    discard(run, recheck=False)
    number = damaged.split(".")[0].removesuffix("_stats")
    assert before - there(run) == {f"{number}.tar", f"{number}.parquet", f"{number}_stats.json"}


def test_sizes_go_alone(tmp_path):
    run = written(tmp_path, "00000")
    before = there(run)
    (run / "shards" / "sizes.json").write_bytes(b"cut")
    discard(run, recheck=False)
    assert before - there(run) == {"sizes.json"}


def test_without_a_record_a_recheck_deletes_our_shards_and_no_one_elses(tmp_path):
    run = written(tmp_path, "00000", "100000")
    (run / "run.json").unlink()
    (run / "shards" / "mine.tar").write_bytes(b"")
    discard(run, recheck=True)
    assert there(run) == {"sizes.json", "mine.tar"}


def test_shards_of_an_earlier_recipe_go_whatever_their_number(tmp_path):
    run = written(tmp_path, "00000", "99999", "100000")
    (run / "shards" / "notes.parquet").write_bytes(b"")
    _remove_stale(run / "shards", [run / "shards" / f"00000{end}" for end in (".tar", ".parquet", "_stats.json")])
    assert there(run) == {"00000.tar", "00000.parquet", "00000_stats.json", "sizes.json", "notes.parquet"}
