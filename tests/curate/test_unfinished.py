"""curate.unfinished: a shard whose measuring was stopped goes on where it was, with the same bytes, and nothing is left of it."""

import numpy as np
import pyarrow as pa
import pytest

from curate import measuring, unfinished
from curate.measuring import MeasureTask, measure_shard, part_path, unfinished_path, vector_path
from curate.recipe import ResolvedStage
from tests.curate.test_measuring import FILES, shard_of, stages

VECTORS = ResolvedStage("z", "measure.vectors", {"encoder": "pixels:8"})


class Stopped(Exception):
    """A kill, as far as the files see it."""


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(measuring, "BATCH_ROWS", 7)
    monkeypatch.setattr(unfinished, "ROWS", 15)  # so a file has three batches


def measured(monkeypatch, shard, root, made, stop=None):
    """The rows that were measured; after `stop` batches it is as if the process were killed."""
    honest, rows = measuring._measure_batch, []

    def batch(task, given, payloads, *more):
        if len(rows) == stop:
            raise Stopped
        rows.append(len(payloads))
        honest(task, given, payloads, *more)

    with monkeypatch.context() as patch:
        patch.setattr(measuring, "_measure_batch", batch)
        try:
            measure_shard(MeasureTask(shard, root, tuple(made), None))
        except Stopped:
            assert stop is not None
    return sum(rows)


def written(root, shard, made):
    files = [part_path(root, stage.id, shard) for stage in made] + [vector_path(root, "z", shard)]
    return [file.read_bytes() for file in files if file.exists()]


@pytest.mark.parametrize("made", [stages(), [VECTORS], [*stages(), VECTORS]], ids=["pixels", "vectors", "both"])
def test_the_same_bytes_wherever_it_was_stopped(tmp_path, monkeypatch, small, made):
    shard = shard_of(FILES, tmp_path)
    rows = measured(monkeypatch, shard, tmp_path / "whole", made)
    wanted = written(tmp_path / "whole", shard, made)
    assert rows == len(FILES) - 1 and len(wanted) == len(made) + (VECTORS in made)
    for stop in range(rows // 7 + 1):
        root = tmp_path / f"stopped-{stop}"
        before = measured(monkeypatch, shard, root, made, stop)
        saved = len(list(unfinished_path(root, shard).glob("*.parquet")))
        assert saved == stop // 3 and before == 7 * stop
        assert measured(monkeypatch, shard, root, made) == rows - 21 * saved  # no more than what was not saved
        assert written(root, shard, made) == wanted
        assert not unfinished_path(root, shard).exists()


def test_stopped_twice_and_in_another_place(tmp_path, monkeypatch, small):
    shard, made = shard_of(FILES, tmp_path), stages()
    measured(monkeypatch, shard, tmp_path / "whole", made)
    assert [measured(monkeypatch, shard, tmp_path / "run", made, stop) for stop in (4, 5, None)] == [28, 35, 32]  # 21 of 74 stood, and 21 more
    assert written(tmp_path / "run", shard, made) == written(tmp_path / "whole", shard, made)


def test_what_was_made_of_other_stages_or_another_shard_is_not_taken(tmp_path, monkeypatch, small):
    shard, made = shard_of(FILES, tmp_path), stages()
    measured(monkeypatch, shard, tmp_path, made, 5)
    assert measured(monkeypatch, shard, tmp_path, made[:2], 5) == 35
    assert measured(monkeypatch, shard, tmp_path, made[:2]) == len(FILES) - 1 - 21
    measured(monkeypatch, shard, tmp_path, made, 5)
    changed = shard_of([*FILES[1:], FILES[1]], tmp_path)
    assert measured(monkeypatch, changed, tmp_path, made) == len(FILES) - 1


@pytest.mark.parametrize(("which", "again"), [(0, 74), (1, 53)])
@pytest.mark.parametrize("is_cut", [True, False])
def test_a_damaged_file_is_measured_again(tmp_path, monkeypatch, small, which, again, is_cut):
    shard, made = shard_of(FILES, tmp_path), stages()
    measured(monkeypatch, shard, tmp_path / "whole", made)
    measured(monkeypatch, shard, tmp_path / "run", made, 7)
    file = sorted(unfinished_path(tmp_path / "run", shard).glob("*.parquet"))[which]
    whole = file.read_bytes()
    file.write_bytes(whole[:100] if is_cut else whole[:90] + b"xxxxxxxxxx" + whole[100:])
    assert measured(monkeypatch, shard, tmp_path / "run", made) == again
    assert written(tmp_path / "run", shard, made) == written(tmp_path / "whole", shard, made)


def test_columns_come_back_as_a_measure_gave_them(tmp_path):
    given = {
        "floats": np.array([1.5, np.nan, np.inf]), "small": np.array([1, 2, 3], np.int8), "truth": np.array([True, False, True]),
        "words": np.array(["a", "bc", ""]), "nulls": pa.array([None, "x", "y"]), "hash": np.arange(24, dtype=np.uint8).reshape(3, 8),
        "vectors": np.array([[0.1, -2], [np.nan, 0], [3, 4]], np.float16),
    }  # fmt: skip
    pieces, faults = {"s": [given]}, {"s": [None, "undecodable", None]}
    state = unfinished.Unfinished(tmp_path / "x", "key")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unfinished, "ROWS", 3)
        state.save(pieces, faults)
    again, found = {"s": []}, {"s": []}
    assert unfinished.Unfinished(tmp_path / "x", "key").restore(again, found) == 3
    assert found == faults
    for name, values in given.items():
        got = again["s"][0][name]
        if getattr(values, "ndim", 1) == 2:
            assert got.dtype == values.dtype and np.array_equal(got, values, equal_nan=name == "vectors")
        else:
            assert got.type == pa.array(values).type
            assert np.array_equal(got, values, equal_nan=True) if name == "floats" else got.equals(pa.array(values))
    assert unfinished.Unfinished(tmp_path / "x", "other").restore({"s": []}, {"s": []}) == 0
