import itertools
import shutil
from collections import deque

import numpy as np
import pytest

from manifests.errors import Refusal
from pretrain.data import Pictures, Position, batches, square, visits
from pretrain.samples import open_samples
from tests.pretrain.pictures import digit_pngs, digits, png, uid_of, write_shards


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    pictures, labels = digit_pngs(100)
    weight = [1.0] * 100
    weight[0], weight[1], weight[2] = 0.0, 2.25, 0.5
    return open_samples([str(write_shards(tmp_path_factory.mktemp("data") / "s", pictures, labels, per_tar=30, weight=weight))])


def row_of(samples, i: int) -> int:
    return samples.uid.tolist().index(uid_of(i))


def flat(plan, count):
    return [(int(r), int(t)) for b in itertools.islice(plan, count) for r, t in zip(b.rows, b.turns, strict=True)]


def test_the_order_follows_from_uids_and_never_from_listing(samples, tmp_path):
    pictures, labels = digit_pngs(100)
    other = open_samples([str(write_shards(tmp_path / "s", pictures, labels, per_tar=9, order=list(range(99, -1, -1)), weight=samples_weight()))])
    for epoch in range(3):
        one, two = visits(samples, 5, epoch), visits(other, 5, epoch)
        assert [samples.uid[r] for r in one[0]] == [other.uid[r] for r in two[0]]
        assert np.array_equal(one[1], two[1])
    assert not np.array_equal(visits(samples, 5, 0)[0], visits(samples, 5, 1)[0])
    assert not np.array_equal(visits(samples, 5, 0)[0], visits(samples, 6, 0)[0])


def samples_weight() -> list[float]:
    return [0.0, 2.25, 0.5] + [1.0] * 97


def test_weight_is_the_expected_number_of_visits_a_pass(samples):
    counts = np.stack([np.bincount(visits(samples, 1, epoch)[0], minlength=100) for epoch in range(400)])
    assert (counts[:, row_of(samples, 0)] == 0).all()
    assert set(counts[:, row_of(samples, 1)]) == {2, 3}
    assert counts[:, row_of(samples, 1)].mean() == pytest.approx(2.25, abs=0.1)
    assert counts[:, row_of(samples, 2)].mean() == pytest.approx(0.5, abs=0.1)
    assert (counts[:, row_of(samples, 50)] == 1).all()


def test_every_visit_has_a_turn_of_its_own(samples):
    seen = flat(batches(samples, 3, 32, Position()), 40)
    assert len(set(seen)) == len(seen)


def test_a_position_resumes_inside_a_pass_and_batches_span_passes(samples):
    whole = flat(batches(samples, 3, 64, Position()), 9)
    for after in (1, 4, 7):
        stop = list(itertools.islice(batches(samples, 3, 64, Position()), after))[-1].after
        assert flat(batches(samples, 3, 64, Position()), after) + flat(batches(samples, 3, 64, stop), 9 - after) == whole
    assert flat(batches(samples, 3, 300, Position()), 1)[:576] == whole[:300]  # the stream does not depend on the batch size
    assert len(whole) == 9 * 64


def fetched(samples, **options):
    with Pictures(samples, 12, **options) as pictures:
        found = [p.copy() for _, p in pictures.fetch(itertools.islice(batches(samples, 3, 32, Position()), 12))]
        return np.stack(found), pictures.bad.copy()


def test_loaders_and_cache_never_change_a_picture(samples):
    plain, _ = fetched(samples, workers=0, cache_bytes=0)
    for options in ({"workers": 0}, {"workers": 2}, {"workers": 2, "cache_bytes": 0}, {}):
        found, bad = fetched(samples, **options)
        assert np.array_equal(found, plain), options
        assert not bad.any()
    rows = next(batches(samples, 3, 32, Position())).rows
    assert np.array_equal(plain[0, 5], square(samples.payload(rows[5]), 12))


def test_what_one_training_decoded_the_next_one_knows(tmp_path, monkeypatch):
    pictures, labels = digit_pngs(40)
    pictures[7] = b"no picture"
    samples = open_samples([str(write_shards(tmp_path / "s", pictures, labels, per_tar=15))])
    plain, broken = fetched(samples, workers=0)
    known = {}
    some, rest = samples.take(np.arange(0, 40, 2)), samples.take(np.arange(1, 40, 2))
    for part in (some, rest):
        with Pictures(part, 12, known=known) as reader:
            reader.all()
    assert len(known) == 40 and sum(picture is None for picture in known.values()) == 1

    def never(urls, file, offset, size, out):
        assert not len(file)
        return np.zeros(0, bool)

    monkeypatch.setattr("pretrain.data.decode_rows", never)
    found, bad = fetched(samples, known=known)
    assert np.array_equal(found, plain) and np.array_equal(bad, broken) and bad.sum() == 1
    with Pictures(samples, 8, known=known) as other, pytest.raises(AssertionError):
        other.all()  # another side is another picture


def test_a_shard_that_is_replaced_at_its_place_is_not_taken_for_known(tmp_path):
    pictures, labels = digit_pngs(40)
    known = {}
    for start in (0, 20):
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        some = open_samples([str(write_shards(tmp_path / "s", pictures[start : start + 20], labels[start : start + 20]))])
        with Pictures(some, 8, known=known) as reader, Pictures(some, 8) as anew:
            assert np.array_equal(reader.all(), anew.all())
    assert len(known) == 40


def test_no_more_is_kept_than_was_said(samples, monkeypatch):
    monkeypatch.setattr("pretrain.data.KNOWN", 32 * 12 * 12 * 3)
    known = {}
    assert np.array_equal(fetched(samples, known=known)[0], fetched(samples)[0])
    assert 32 <= len(known) < 64


def test_all_pictures_stand_in_row_order(samples):
    for options in ({}, {"cache_bytes": 0, "workers": 0}):
        with Pictures(samples, 8, **options) as pictures:
            everything = pictures.all()
        assert np.array_equal(everything[row_of(samples, 7)], np.repeat(digits()[0][7][:, :, None], 3, 2))


def test_what_gives_no_picture_is_zero_marked_and_counted(tmp_path):
    pictures, labels = digit_pngs(6)
    pictures[2], pictures[4] = b"no picture", b""
    samples = open_samples([str(write_shards(tmp_path / "s", pictures, labels))])
    for workers in (0, 1):
        with Pictures(samples, 8, workers=workers) as reader:
            (batch, found), *_ = reader.fetch(itertools.islice(batches(samples, 0, 12, Position()), 1))
            bad = {samples.uid[r] for r in np.flatnonzero(reader.bad)}
            assert reader.undecodable == 2
        assert bad == {uid_of(2), uid_of(4)}
        assert not found[reader.bad[batch.rows]].any() and found[~reader.bad[batch.rows]].any(axis=(1, 2, 3)).all()


def test_a_dead_loader_is_told_and_not_waited_for(samples):
    with Pictures(samples, 12, workers=1, cache_bytes=0) as pictures:
        found = pictures.fetch(batches(samples, 3, 32, Position()))
        next(found)
        pictures._loaders[0][0].kill()
        pictures._loaders[0][0].join()
        with pytest.raises(Refusal, match=r"a loader process died.*\[does-not-fit\]"):
            deque(found)


@pytest.mark.parametrize("error", [EOFError, ConnectionResetError, BrokenPipeError])
def test_a_loader_that_dies_at_its_answer_is_told_too(samples, monkeypatch, error):
    with Pictures(samples, 12, workers=1, cache_bytes=0) as pictures:
        found = pictures.fetch(batches(samples, 3, 32, Position()))
        next(found)
        process, pipe = pictures._loaders[0]

        class Dead:
            def __getattr__(self, name):
                return getattr(pipe, name)

            def recv(self):
                raise error

        pictures._loaders[0] = process, Dead()
        with pytest.raises(Refusal, match=r"a loader process died.*\[does-not-fit\]"):
            deque(found)


def test_a_square_is_the_centre_upright(tmp_path):
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert (square(png(wide), 4) == 200).all()
    grey = square(png(digits()[0][0]), 16)
    assert grey.shape == (16, 16, 3) and (grey[..., 0] == grey[..., 1]).all()
