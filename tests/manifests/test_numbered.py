"""manifests.numbered: names by their numbers, also beyond five digits; and who goes by it: a run's ledger and edges, written shards."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.numbered import by_number, numbered
from manifests.run import Run


def test_names_go_by_their_numbers_and_others_follow():
    names = ["99999.tar", "100000.tar", "00002.tar", "x1.tar", "1x.tar", "00002.b.tar", "٣.tar", ".tar"]
    in_order = ["00002.b.tar", "00002.tar", "99999.tar", "100000.tar", ".tar", "1x.tar", "x1.tar", "٣.tar"]
    for seed in range(5):
        assert sorted(np.random.default_rng(seed).permutation(names).tolist(), key=by_number) == in_order
    assert sorted(f"{n:05d}" for n in range(99_990, 100_010)) != sorted((f"{n:05d}" for n in range(99_990, 100_010)), key=by_number)
    assert sorted((f"{n:05d}" for n in range(99_990, 100_010)), key=by_number) == [f"{n:05d}" for n in range(99_990, 100_010)]


def test_only_files_of_the_ending_and_no_folder_is_none(tmp_path):
    for name in ("100000.tar", "99999.tar", "99999.parquet"):
        (tmp_path / name).touch()
    assert [file.name for file in numbered(tmp_path, ".tar")] == ["99999.tar", "100000.tar"]
    assert numbered(tmp_path / "nothing", ".tar") == []


def test_a_ledger_of_more_than_99999_files_is_read_in_shard_order(tmp_path):
    for folder, read in (("ledger", Run(tmp_path).ledger_files), ("edges/dedup.copies", lambda: Run(tmp_path).edges("dedup.copies"))):
        (tmp_path / folder).mkdir(parents=True)
        for at, name in enumerate(("99998", "99999", "100000", "100001")):
            pq.write_table(pa.table({"uid": [f"{at}"]}), tmp_path / folder / f"{name}.parquet")
        assert [file.stem for file in read()] == ["99998", "99999", "100000", "100001"]
    assert Run(tmp_path).ledger()["uid"].to_pylist() == ["0", "1", "2", "3"]
