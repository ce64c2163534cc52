"""curate.measuring: one decode serves all measures of a batch, and their values are those of each measure alone."""

import io
import tarfile
import weakref

import numpy as np
import pyarrow.parquet as pq
import pytest

from curate import measuring
from curate.engine_local import map_tasks
from curate.measure.difference_hash import difference_hash, rises
from curate.measure.exact_hash import pixels_digest
from curate.measure.perceptual_hash import without_border
from curate.measuring import MeasureTask, looks, measure_shard, part_path
from curate.pool import Batch
from curate.recipe import ResolvedStage
from curate.stages import MEASURE, STAGES
from manifests import images
from manifests.images import Window, glance
from manifests.shards.pool_yaml import Shard
from tests.bad_input.fixtures import animation, encoded, picture, sixteen_bits
from tests.pools import jpeg, png

WINDOW = Window(1000, 300)
FRAMED = np.pad(picture(6), ((20, 20), (30, 0), (0, 0)))
FILES = [encoded(1), b"broken", png(FRAMED), jpeg(FRAMED, 90), sixteen_bits(), animation(), b"", *(encoded(i) for i in range(2, 70))]


def stages(*, window: Window | None = None) -> list[ResolvedStage]:
    """Every measure of pixels that needs no encoder; `dhash` looks through the window."""
    names = [name for name, row in STAGES.items() if row.kind == MEASURE and not row.needs_device and name != "measure.index"]
    plain = [ResolvedStage(name, name, {}) for name in names]
    return [*plain, ResolvedStage("windowed", "measure.difference_hash", {"window": window})] if window else plain


def watched(monkeypatch) -> list[bytes]:
    """The files that are decoded from now on. Each picture must have been let go before the next."""
    asked: list[bytes] = []
    made: list[weakref.ref] = []
    honest = images.decode

    def decode(data, **how):
        assert all(one() is None for one in made)
        asked.append(bytes(data))
        found = honest(data, **how)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(images, "decode", decode)
    return asked


def test_measures_name_what_they_ask_under_each_window_once():
    asked = stages(window=WINDOW)
    assert looks(asked) == looks(asked[::-1]) == {None: [rises, pixels_digest, glance, without_border], WINDOW: [rises]}
    assert looks([ResolvedStage("v", "measure.vectors", {"encoder": "pixels:8"})]) == {}


def shard_of(files, folder):
    with tarfile.open(folder / "s.tar", "w") as tar:
        for number, file in enumerate(files):
            member = tarfile.TarInfo(f"{number:04d}.png")
            member.size = len(file)
            tar.addfile(member, io.BytesIO(file))
    return Shard("s", "s", str(folder / "s.tar"))


@pytest.mark.parametrize("count", [1, 70])
def test_each_picture_is_decoded_once_for_all_measures_and_the_values_are_those_of_each_alone(tmp_path, monkeypatch, count):
    files = FILES[:count]
    shard = shard_of(files, tmp_path)

    with monkeypatch.context() as patch:
        asked = watched(patch)
        measure_shard(MeasureTask(shard, tmp_path, tuple(stages()), None))

    assert sorted(asked) == sorted(file for file in files if file)
    for stage in stages():
        part = pq.read_table(part_path(tmp_path, stage.id, shard))
        for row, file in enumerate(files):
            batch = Batch([file])
            alone = stage.function(batch)
            if not file:
                continue  # the index has found it
            assert part["fault"][row].as_py() == batch.faults[0]
            for own, name in stage.columns.items():
                want = alone[own][0]
                got = part[name][row].as_py()
                if batch.faults[0] is not None:
                    assert got is None
                elif isinstance(got, bytes):
                    assert got == np.asarray(want).tobytes()
                else:
                    assert got == (want.as_py() if hasattr(want, "as_py") else want)


def test_what_is_seen_is_the_same_named_before_or_not_and_under_each_window():
    named = Batch(FILES, looks={None: [glance, np.sum], WINDOW: [rises]})
    unnamed = Batch(FILES)
    for window, look in [(None, glance), (WINDOW, rises), (None, np.sum), (None, rises), (WINDOW, glance)]:
        named.faults, unnamed.faults = [None] * len(FILES), [None] * len(FILES)
        for file, one, other in zip(FILES, named.seen(look, window), unnamed.seen(look, window), strict=True):
            assert (one is None) == (other is None) == (file in (b"", b"broken"))
            assert np.array_equal(one, other)
        assert named.faults == unnamed.faults
        assert {fault for fault in named.faults if fault} == {"undecodable", "zero_bytes"}


def test_a_picture_is_let_go_before_the_next_is_decoded(monkeypatch):
    asked = watched(monkeypatch)
    assert len(Batch([encoded(i) for i in range(5)], looks={None: [glance]}).seen(glance)) == len(asked) == 5


def test_a_windowed_measure_does_not_take_what_was_seen_without():
    deep = sixteen_bits()
    batch = Batch([deep], looks=looks(stages(window=WINDOW)))
    bits = [difference_hash(batch, window=window)["dhash"].tobytes() for window in (None, WINDOW, None)]
    alone = [difference_hash(Batch([deep]), window=window)["dhash"].tobytes() for window in (None, WINDOW, None)]
    assert bits == alone
    assert len(set(bits)) == 2


def test_a_task_tells_the_rows_that_are_done_and_its_parts_know_nothing_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "BATCH_ROWS", 20)
    shard = shard_of(FILES, tmp_path)
    plain = tuple(stages())
    heard: list[int] = []
    again: list[int] = []
    for root, watch in (("watched", heard.append), ("alone", None), ("watched", again.append)):
        assert [r.rows for r in map_tasks(measure_shard, [MeasureTask(shard, tmp_path / root, plain, None)], workers=1, watch=watch)] == [len(FILES)]
    assert heard == [1, 21, 41, 61, len(FILES)]  # the empty file is told first: no measure sees it
    assert again == [len(FILES)]
    for stage in ("measure.index", *(s.id for s in plain)):
        first, second = (part_path(tmp_path / root, stage, shard).read_bytes() for root in ("watched", "alone"))
        assert first == second
