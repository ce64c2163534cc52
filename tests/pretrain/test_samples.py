import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.errors import Refusal
from pretrain.samples import _of_shards, open_samples
from tests.pretrain.pictures import digit_pngs, uid_of, write_pool, write_shards


@pytest.fixture(scope="module")
def digits():
    return digit_pngs(60)


def expected_uid(data: bytes, key: str, ordinal: int = 0) -> str:
    content = hashlib.sha256(len(data).to_bytes(8, "little") + data).digest()
    return hashlib.sha256(content + key.encode() + ordinal.to_bytes(8, "little")).hexdigest()[:32]


def test_a_pool_gives_the_bytes_uids_and_labels_of_its_members(tmp_path, digits):
    pictures, labels = digits
    samples = open_samples([str(write_pool(tmp_path / "pool", pictures, labels, per_tar=25))])

    found = {samples.uid[i]: (samples.payload(i), int(samples.label[i])) for i in range(len(samples))}

    assert found == {expected_uid(p, f"{i:06d}"): (p, labels[i]) for i, p in enumerate(pictures)}
    assert samples.uid.tolist() == sorted(samples.uid)
    assert samples.num_classes == 10 and (samples.weight == 1).all()
    assert samples.number.tolist() == sorted(samples.number) == [int(u[:16], 16) - 2**63 for u in samples.uid]


def test_shards_give_the_uids_of_their_parquet_whatever_the_order(tmp_path, digits):
    pictures, labels = digits
    one = open_samples([str(write_shards(tmp_path / "one", pictures, labels, per_tar=25))])
    two = open_samples([str(write_shards(tmp_path / "two", pictures, labels, per_tar=7, order=list(range(60))[::-1]))])

    for samples in (one, two):
        found = {samples.uid[i]: (samples.payload(i), int(samples.label[i])) for i in range(len(samples))}
        assert found == {uid_of(i): (pictures[i], labels[i]) for i in range(60)}
    assert one.digest() == two.digest()


def test_a_list_restricts_and_may_carry_weights(tmp_path, digits):
    pictures, labels = digits
    shards = str(write_shards(tmp_path / "s", pictures, [0] * 59 + [7], weight=[0.5] * 60))
    pq.write_table(pa.table({"uid": [uid_of(5), uid_of(3)], "weight": [2.0, None]}), tmp_path / "some.parquet")
    (tmp_path / "some.txt").write_text(f"{uid_of(3)}\n{uid_of(5)}\n")

    some = open_samples([shards], tmp_path / "some.parquet")
    text = open_samples([shards], tmp_path / "some.txt")

    assert set(some.uid) == set(text.uid) == {uid_of(3), uid_of(5)}
    assert dict(zip(some.uid, some.weight, strict=True)) == {uid_of(5): 2.0, uid_of(3): 1.0}
    assert (text.weight == 1).all()
    assert some.num_classes == 8  # counted before the list restricts: every arm sees the same classes
    assert (open_samples([shards]).weight == 0.5).all()


@pytest.mark.parametrize(
    ("name", "body", "what"),
    [
        ("cut.parquet", b"PAR1 and no more", "cannot be read"),
        ("latin.txt", "ä".encode("latin-1"), "cannot be read"),
        ("text.parquet", {"weight": ["much"]}, "is string"),
        ("endless.parquet", {"weight": [float("inf")]}, "has values that are no weights"),
        ("less.parquet", {"weight": [-1]}, "has values that are no weights"),
    ],
)
def test_a_list_that_is_none_is_one_line(tmp_path, digits, name, body, what):
    pictures, labels = digits
    shards = write_shards(tmp_path / "s", pictures, labels)
    if isinstance(body, bytes):
        (tmp_path / name).write_bytes(body)
    else:
        pq.write_table(pa.table({"uid": [uid_of(5)], **body}), tmp_path / name)
    with pytest.raises(Refusal, match=what) as refused:
        open_samples([str(shards)], tmp_path / name)
    assert refused.value.slug == "bad-value"


def test_labels_may_be_missing(tmp_path, digits):
    pictures, _ = digits
    samples = open_samples([str(write_pool(tmp_path / "p", pictures[:3], [4, None, 2]))])
    assert sorted(samples.label.tolist()) == [-1, 2, 4]


def test_what_cannot_be_is_refused(tmp_path, digits):
    pictures, labels = digits
    shards = write_shards(tmp_path / "s", pictures, labels)
    (tmp_path / "bad.txt").write_text("f" * 32)
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "bad.parquet")
    (tmp_path / "empty").mkdir()
    cases = [
        (lambda: open_samples([]), "bad-value"),
        (lambda: open_samples([str(tmp_path / "none")]), "no-such-file"),
        (lambda: open_samples([str(tmp_path / "empty")]), "no-such-file"),
        (lambda: open_samples([str(shards)], tmp_path / "bad.txt"), "no-such-sample"),
        (lambda: open_samples([str(shards)], tmp_path / "bad.parquet"), "unknown-column"),
        (lambda: open_samples([str(shards)], tmp_path / "none.txt"), "no-such-file"),
        (lambda: open_samples([str(shards), str(shards)]), "bad-value"),
        (lambda: open_samples([str(write_shards(tmp_path / "zero", pictures, labels, weight=[0.0] * 60))]), "empty-pool"),
    ]
    for call, slug in cases:
        with pytest.raises(Refusal) as refused:
            call()
        assert refused.value.slug == slug
    (shards / "00000.parquet").unlink()
    with pytest.raises(Refusal, match="is missing beside its tar"):
        open_samples([str(shards)])


def test_a_tar_that_lacks_a_row_of_its_parquet_is_refused(tmp_path, digits):
    pictures, labels = digits
    shards = write_shards(tmp_path / "s", pictures[:4], labels[:4])
    table = pq.read_table(shards / "00000.parquet").to_pydict()
    table["key"][2] = "stranger"
    pq.write_table(pa.table(table), shards / "00000.parquet")
    with pytest.raises(Refusal, match=r"lacks the key 'stranger'.*\[shard-differs\]"):
        open_samples([str(shards)])


def test_uids_of_two_sources_are_told_apart_by_the_numbers(tmp_path, digits):
    pictures, labels = digits
    samples = open_samples([str(write_pool(tmp_path / "p", pictures, labels))])
    assert len(np.unique(samples.number)) == len(samples)


def test_written_shards_are_read_by_their_numbers(tmp_path, digits):
    pictures, labels = digits
    folder = write_shards(tmp_path / "shards", pictures, labels, per_tar=30)
    for ending in (".tar", ".parquet"):
        (folder / f"00001{ending}").rename(folder / f"100000{ending}")
        (folder / f"00000{ending}").rename(folder / f"99999{ending}")
    assert [Path(url).stem for url in _of_shards(folder)["url"].to_pylist()] == ["99999"] * 30 + ["100000"] * 30
