"""What an arm holds, and draws that nobody can redraw."""

import itertools
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from manifests.errors import Refusal
from manifests.publish import publish_table
from manifests.schema import LEDGER
from pretrain.evidence.arms import clean_rows, draw, draw_shares, drawn_rows, full_rows, kept_rows, read_ledger, set_digest, write_draw
from pretrain.evidence.plan import PlannedArm

STAGES = [
    ("measure.index", "measure"),
    ("leakage.images", "decision"),
    ("dedup.exact", "decision"),
    ("labels.neighbours", "decision"),
    ("select.random", "decision"),
]


def uid(i):
    import hashlib

    return hashlib.sha256(f"sample {i}".encode()).hexdigest()[:32]


def write_run(folder, rows, stages=STAGES, evaluations=None):
    """A run with the files that `read_ledger` reads; `rows`: (status, drop_stage, label, witness, witness_pool)."""
    folder.mkdir(parents=True)
    info = {
        "format": 1,
        "pool": {"path": str(folder / "pool")},
        "evaluations": evaluations or {},
        "stages": [{"id": n, "name": n, "kind": k, "version": 1, "parameters": {}, "digest": "0"} for n, k in stages],
    }
    (folder / "run.json").write_text(json.dumps(info))
    columns = {f.name: [None] * len(rows) for f in LEDGER}
    columns |= {"uid": [uid(i) for i in range(len(rows))], "offset": [512 * i for i in range(len(rows))], "size": [100] * len(rows)}
    for position, name in enumerate(("status", "drop_stage", "label", "witness", "witness_pool")):
        columns[name] = [row[position] if position < len(row) else None for row in rows]
    arrays = [pa.array(columns[f.name], f.type.value_type).dictionary_encode() if pa.types.is_dictionary(f.type) else pa.array(columns[f.name], f.type) for f in LEDGER]  # fmt: skip
    publish_table(folder / "ledger" / "00000.parquet", pa.table(arrays, names=LEDGER.names).cast(LEDGER), "d")
    return folder


ROWS = (
    [("quarantined", "measure.index", 0)] * 3
    + [("dropped", "leakage.images", 0, "e1", "test"), ("dropped", "leakage.images", 1, "e2", "test")]
    + [("dropped", "dedup.exact", i % 3) for i in range(15)]
    + [("dropped", "labels.neighbours", i % 3) for i in range(30)]
    + [("dropped", "select.random", i % 3) for i in range(60)]
    + [("kept", None, i % 2) for i in range(40)]
)


@pytest.fixture
def ledger(tmp_path):
    return read_ledger(write_run(tmp_path / "run", ROWS, evaluations={"test": str(tmp_path / "test")}))


def test_sets(ledger):
    assert len(full_rows(ledger)) == 147 and len(kept_rows(ledger)) == 40
    assert (np.sort(full_rows(ledger)) == full_rows(ledger)).all()
    assert len(clean_rows(ledger)) == 100  # what reaches select.random
    assert len(clean_rows(ledger, "dedup.exact")) == 130
    assert len(clean_rows(ledger, "measure.index")) == 147
    assert set(kept_rows(ledger)) <= set(clean_rows(ledger)) <= set(full_rows(ledger))
    assert {uid(0), uid(1), uid(2)} & set(full_rows(ledger)) == set()  # what cannot be read is in no arm


def test_classes_without_a_sample_count_as_they_do_in_a_training(tmp_path):
    from curate.building import build
    from pretrain.samples import open_samples
    from tests.pretrain.pictures import digit_pngs, write_pool

    pictures, _ = digit_pngs(12)
    described = write_pool(tmp_path / "pool", pictures, [i % 3 for i in range(12)]) / "pool.yaml"
    described.write_text(described.read_text() + "classes: [a, b, c, d, e]\n")
    (tmp_path / "recipe.yaml").write_text("format: 1\nstages:\n  - select.random: {keep: 0.5}\nshards: false\n")
    build(tmp_path / "recipe.yaml", pool=str(tmp_path / "pool"), out=tmp_path / "run", workers=1, quiet=True)
    assert read_ledger(tmp_path / "run").num_classes == open_samples([str(tmp_path / "run")]).num_classes == 5


def test_without_a_selector_clean_is_what_reaches_the_last_decision(tmp_path):
    rows = [r for r in ROWS if r[1] != "select.random"]
    found = read_ledger(write_run(tmp_path / "run", rows, STAGES[:-1]))
    assert len(clean_rows(found)) == 70


def test_leaked_samples_are_counted_by_pool(ledger, tmp_path):
    assert ledger.leaked == {str((tmp_path / "test").resolve()): frozenset({"e1", "e2"})}


def test_an_unknown_stage_and_a_run_that_keeps_nothing_are_refused(ledger, tmp_path):
    with pytest.raises(Refusal, match="is no stage of"):
        clean_rows(ledger, "dedup.nothing")
    with pytest.raises(Refusal, match="keeps no row"):
        read_ledger(write_run(tmp_path / "none", ROWS[:10]))


def test_draws_are_fixed_by_pool_kind_and_number(ledger):
    rows = full_rows(ledger)
    once = draw(rows, 40, ledger.pool, "random", 0)
    assert len(set(once)) == 40 and (once == np.sort(once)).all()
    assert (draw(rows[::-1], 40, ledger.pool, "random", 0) == once).all()
    others = [draw(rows, 40, ledger.pool, "random", 1), draw(rows, 40, ledger.pool, "random_clean", 0), draw(rows, 40, "other pool", "random", 0)]
    assert all(set(o) != set(once) for o in others)
    assert len(draw(rows, 147, ledger.pool, "random", 0)) == 147
    with pytest.raises(Refusal, match="148 rows of 147"):
        draw(rows, 148, ledger.pool, "random", 0)


def test_a_draw_is_the_same_for_ever():
    """A change of the draw changes every published comparison: raise a version instead."""
    rows = np.array([uid(i) for i in range(100)])
    assert set_digest(draw(rows, 10, "pool", "random", 3))[:16] == "1f2f281f64857964"


def test_every_row_is_as_likely_and_draws_are_independent():
    rows = np.array([uid(i) for i in range(200)])
    draws = [set(draw(rows, 50, "pool", "random", k)) for k in range(400)]
    count = Counter(u for d in draws for u in d)
    z = (np.array([count[u] for u in rows]) - 100) / np.sqrt(400 * 0.25 * 0.75)
    assert abs(z).max() < 4.5 and 0.8 < z.std() < 1.2
    overlap = np.array([len(a & b) for a, b in itertools.pairwise(draws)])
    assert abs(overlap.mean() - 12.5) < 4 * np.sqrt(200 * 0.25 * 0.25 * 0.75 * 0.75 / 199 * 200 / 399)


def test_shares_are_those_of_the_kept_set(ledger):
    like = kept_rows(ledger)
    label = dict(zip(ledger.uid.tolist(), ledger.label.tolist(), strict=True))
    shares = draw_shares(ledger, like, 0)
    assert Counter(label[u] for u in shares.tolist()) == Counter(label[u] for u in like.tolist()) == {0: 20, 1: 20}
    assert set(shares) != set(like)


def test_drawn_rows_per_kind(ledger):
    like = kept_rows(ledger)
    clean = set(clean_rows(ledger).tolist())
    assert set(drawn_rows(PlannedArm("r", "random_clean", like="kept"), ledger, like, 0).tolist()) <= clean
    assert not set(drawn_rows(PlannedArm("r", "random", like="kept"), ledger, like, 0).tolist()) <= clean
    after = PlannedArm("r", "random_clean", like="kept", clean_after="labels.neighbours")
    assert set(drawn_rows(after, ledger, like, 0).tolist()) <= set(clean_rows(ledger, "labels.neighbours").tolist())


def test_a_draw_is_written_once(ledger, tmp_path):
    path = write_draw(tmp_path / "draws" / "random-0.parquet", kept_rows(ledger))
    before = path.stat().st_mtime_ns
    write_draw(path, kept_rows(ledger))
    assert path.stat().st_mtime_ns == before
