"""The table of bad input through the whole build: status, reason, exit code and slug; and what the table cannot hold: NaN vectors, a full disk."""

import errno
import io
import os

import numpy as np
import pyarrow.parquet as pq
import pytest

import curate
import manifests.publish
from manifests.audit.verify import verify
from manifests.errors import Refusal
from tests.bad_input.fixtures import FIXTURES, make_pool
from tests.small_pool import write_pool

RECIPE = "format: 1\nstages:\n  - measure.quality:\n  - measure.exact_hash:\n  - measure.perceptual_hash:\n  - dedup.exact:\n"


def build(folder, pool, **options):
    recipe = folder / "recipe.yaml"
    recipe.write_text(options.pop("recipe", RECIPE))
    return curate.build(recipe, pool=str(pool), out=folder / "run", workers=1, quiet=True, device="cpu", **options)


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda f: f.name)
def test_each_case_ends_as_the_table_says(fixture, tmp_path):
    pool = make_pool(fixture, tmp_path / "pool")
    if fixture.exit_code:
        with pytest.raises(Refusal) as caught:
            build(tmp_path, pool)
        assert (caught.value.exit_code, caught.value.slug) == (fixture.exit_code, fixture.slug)
        return
    run = build(tmp_path, pool)
    rows = run.ledger().to_pylist()
    assert [r["key"] for r in rows] == [key for key, _ in fixture.rows]
    for row, (_, fault) in zip(rows, fixture.rows, strict=True):
        assert (row["status"] == "quarantined") == (fault is not None)
        assert fault is None or row["drop_reason"] == fault
    found = verify(run.path, deep=True)
    assert found["exit_code"] == 0, found
    if fixture.strict_exit_code == 3:
        with pytest.raises(Refusal) as caught:
            build(tmp_path, pool, strict=True)
        assert (caught.value.exit_code, caught.value.slug) == (3, fixture.slug)


def test_one_of_identical_samples_survives(tmp_path):
    (fixture,) = [f for f in FIXTURES if f.name == "all_identical"]
    run = build(tmp_path, make_pool(fixture, tmp_path / "pool"))
    assert run.info["counts"]["kept"] == 1


def test_vectors_that_are_not_finite_are_quarantined(tmp_path, monkeypatch):
    """An encoder that overflows on one picture: that row is quarantined, no later stage sees it."""
    from curate import encoders

    whole = encoders.open_encoder

    def broken(spec, device="cpu"):
        opened = whole(spec, device)

        def encode(batch):
            found = opened.encode(batch)
            found[3] = np.nan if len(found) > 3 else found[-1]
            return found

        return encoders.Encoder(opened.spec, opened.side, encode, opened.fit, opened.batch)

    monkeypatch.setattr("curate.measure.vectors.open_encoder", broken)
    recipe = 'format: 1\nstages:\n  - measure.vectors: {encoder: "pixels:4"}\n  - select.kcenter: {vectors: vectors, keep: 5}\nshards: false\n'
    run = build(tmp_path, write_pool(tmp_path / "pool"), recipe=recipe)
    reasons = [r["drop_reason"] for r in run.ledger(["status", "drop_reason"]).to_pylist() if r["status"] == "quarantined"]
    assert reasons.count("not_finite") == 3  # one a shard
    assert run.info["counts"]["kept"] == 5


def test_a_full_disk_is_one_line_and_loses_nothing(tmp_path, monkeypatch):
    """The disk fills up while the third part is written; with space again, the same command ends with a whole run."""
    pool = write_pool(tmp_path / "pool")
    written = 0

    def moment(name, path):
        nonlocal written
        written += name == "half"
        if name == "half" and written == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(manifests.publish, "moment", moment)
    with pytest.raises(Refusal) as caught:
        build(tmp_path, pool)
    assert (caught.value.slug, caught.value.exit_code) == ("disk-full", 5)
    assert not list((tmp_path / "run").rglob("*.tmp"))
    run = build(tmp_path, pool)
    assert run.info["counts"]["rows"] == 40
    assert verify(run.path, deep=True)["exit_code"] == 0


def test_a_part_cut_in_the_middle_is_made_again(tmp_path):
    pool = write_pool(tmp_path / "pool")
    run = build(tmp_path, pool)
    part = next((run.path / "parts" / "measure.quality").rglob("*.parquet"))
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    (run.path / "run.json").unlink()
    build(tmp_path, pool)
    assert part.read_bytes() == whole
    assert pq.read_table(io.BytesIO(whole)).num_rows
