"""The figures that are worked out and not only counted, against the plainest means."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import ks_2samp

from manifests.audit.query import connect
from manifests.report import change, gallery, overview, threshold, truth
from manifests.report.panel import Inquiry
from manifests.run import open_run
from tests.manifests.tiny_run import rewrite


@contextmanager
def asking(run: Path) -> Iterator[Inquiry]:
    opened = open_run(run)
    with connect(opened) as connection:
        yield Inquiry(opened, connection)


def samples(run: Path) -> list[dict]:
    with asking(run) as inquiry:
        return inquiry.look_up("SELECT * FROM samples")


@pytest.mark.parametrize("column", ["blur", "width", "num_bytes", "entropy"])
def test_shift_of_numbers_is_the_ks_distance(run: Path, column: str) -> None:
    rows = [r for r in samples(run) if r[column] is not None]
    wanted = ks_2samp([r[column] for r in rows], [r[column] for r in rows if r["status"] == "kept"]).statistic
    with asking(run) as inquiry:
        found = inquiry.ask("d", change.DISTANCE.format(column=f'"{column}"'))[0]
    assert found["distance"] == pytest.approx(wanted, abs=1e-9)
    kept = sorted(r[column] for r in rows if r["status"] == "kept")
    assert found["median_kept"] == pytest.approx(kept[(len(kept) + 1) // 2 - 1], rel=1e-6)


def test_shift_of_words_is_total_variation(run: Path) -> None:
    rows = samples(run)
    kept = [r for r in rows if r["status"] == "kept"]
    names = {r["label_name"] for r in rows}
    share = lambda of, name: sum(r["label_name"] == name for r in of) / len(of)
    wanted = sum(abs(share(rows, n) - share(kept, n)) for n in names) / 2
    with asking(run) as inquiry:
        panel = change.changed(inquiry)
        assert panel is not None
    table = next(b for b in panel.blocks if b["kind"] == "table")
    row = next(r for r in table["rows"] if r[0] == "label_name")
    assert float(row[1]) == pytest.approx(wanted, abs=6e-4)
    shifts = [float(r[1]) for r in table["rows"]]
    assert shifts == sorted(shifts, reverse=True)
    assert not {r[0] for r in table["rows"]} & {"uid", "key", "caption", "phash", "truth_is_wrong", "offset", "row"}


def what_if(run: Path) -> dict[str, dict]:
    with asking(run) as inquiry:
        panel = threshold.what_if(inquiry)
    return {b["stage"]: b for b in panel.blocks if "stage" in b} if panel else {}


def test_a_moved_limit_is_exact_at_every_edge(run: Path) -> None:
    blocks = what_if(run)
    with asking(run) as inquiry:
        labels = [r["score"] for r in inquiry.look_up("SELECT score FROM labels_neighbours WHERE score IS NOT NULL")]
        pairs = [r["score"] for r in inquiry.look_up("SELECT score FROM edges_dedup_perceptual")]
    for block, scores in ((blocks["labels.neighbours"], labels), (blocks["dedup.perceptual"], pairs)):
        below = {"at or below": lambda s, e: s <= e + 1e-9, "below": lambda s, e: s < e - 1e-9}[block["sign"]]
        for step in block["steps"]:
            edge = float(step["limit"].replace(",", ""))
            assert step["gone"] == sum(below(s, edge) for s in scores), (block["stage"], edge)
        first, last = block["steps"][0], block["steps"][-1]
        assert first["gone"] == sum(s == 0 and block["sign"] == "at or below" for s in scores) and last["gone"] == len(scores)
        assert float(first["limit"]) >= 0 and (first["at"], last["at"]) == (0, 100)
    now = blocks["labels.neighbours"]["steps"][blocks["labels.neighbours"]["now"]]
    assert now["gone"] == sum(r["drop_stage"] == "labels.neighbours" for r in open_run(run).ledger().to_pylist()) and float(now["limit"]) == 0.2


def altered(run: Path, alter: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, float]]) -> Path:
    """The label stage with other scores and verdicts: `alter(score, keep)` gives (score, keep, threshold)."""
    for shard in open_run(run).shards():
        file = open_run(run).part("labels.neighbours", shard.id)
        table = pq.read_table(file)
        live = table["keep"].is_valid().to_numpy()
        score, keep, limit = alter(table["score"].to_numpy(), table["keep"].fill_null(False).to_numpy())
        for name, values in (("score", score), ("threshold", np.full(len(score), limit)), ("keep", keep)):
            column = pa.array(values, mask=~live)
            table = table.set_column(table.column_names.index(name), name, column)
        rewrite(file, lambda _, new=table: new)
    return run


def test_a_limit_that_drops_what_is_above(copied) -> None:
    run = altered(copied(), lambda score, keep: (1 - score, 1 - score < 0.8, 0.8))
    block = what_if(run)["labels.neighbours"]
    assert block["sign"].endswith("above")
    with asking(run) as inquiry:
        scores = [r["score"] for r in inquiry.look_up("SELECT score FROM labels_neighbours WHERE score IS NOT NULL")]
    for step in block["steps"]:
        edge = float(step["limit"])
        assert step["gone"] == sum((s >= edge - 1e-9) if "at or" in block["sign"] else (s > edge + 1e-9) for s in scores)


SIDES = [(high, inclusive) for high in (True, False) for inclusive in (True, False)]
LIMITS = [
    (*side, limit) for side in SIDES for limit in (0.4, 0.37, 0.01, 0.0) if limit or side[0] != side[1]
]  # at nought all, or none, would be dropped


@pytest.mark.parametrize(("high", "inclusive", "limit"), LIMITS)
def test_scores_that_are_never_negative_begin_at_nought(copied, high: bool, inclusive: bool, limit: float) -> None:
    """Whichever side is dropped: no bin is below nought, those that are nought are counted, and every edge says what the scores say."""
    gone = {(True, True): np.greater_equal, (True, False): np.greater, (False, True): np.less_equal, (False, False): np.less}[high, inclusive]

    def alter(score: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        score = np.where(np.arange(len(score)) % 4 == 0, 0.0, np.where(np.arange(len(score)) % 4 == 1, limit, score))
        return score, ~gone(score, limit), limit

    run = altered(copied(), alter)
    block = what_if(run)["labels.neighbours"]
    with asking(run) as inquiry:
        scores = np.array([r["score"] for r in inquiry.look_up("SELECT score FROM labels_neighbours WHERE score IS NOT NULL")])
    assert (scores == 0).sum() > 3 and block["ends"][0] == pytest.approx(0 if limit else block["ends"][0])
    edges = [float(step["limit"]) for step in block["steps"]]
    for step, edge in zip(block["steps"], edges, strict=True):
        close = np.isclose(scores, edge, atol=1e-3) & (scores != edge)  # as an edge is spelled with three digits
        assert abs(step["gone"] - gone(scores, edge).sum()) <= close.sum(), (step, edge)
    now = block["steps"][block["now"]]
    assert float(now["limit"]) == limit and now["gone"] == gone(scores, limit).sum()
    assert [step["at"] for step in block["steps"]] == pytest.approx([100 * (e - edges[0]) / (edges[-1] - edges[0]) for e in edges], abs=0.5)
    tips = re.findall(r"<title>(\S+) to (\S+): (?:kept|dropped) ([\d,]+)</title>", block["svg"])
    assert sum(int(n.replace(",", "")) for *_, n in tips) == len(scores)
    assert limit == 0 or all(float(low) >= 0 for low, *_ in tips)


def test_no_slider_where_one_limit_does_not_explain_the_verdicts(copied) -> None:
    run = altered(copied(), lambda score, keep: (score, np.arange(len(score)) % 2 == 0, 0.5))
    assert "labels.neighbours" not in what_if(run)


def marked_before(run: Path) -> Path:
    """Wrong labels also among what an earlier stage took: the label stage never saw them."""
    for file in open_run(run).ledger_files():
        table = pq.read_table(file)
        marks = [
            stage == "dedup.exact" or was for stage, was in zip(table["drop_stage"].to_pylist(), table["truth_is_wrong"].to_pylist(), strict=True)
        ]
        rewrite(file, lambda t, new=marks: t.set_column(t.column_names.index("truth_is_wrong"), "truth_is_wrong", pa.array(new)))
    return run


@pytest.mark.parametrize("earlier", [False, True])
def test_precision_and_recall_against_the_truth(run: Path, copied, earlier: bool) -> None:
    run = marked_before(copied()) if earlier else run
    rows = open_run(run).ledger().to_pylist()
    order = [s.id for s in open_run(run).stages]
    with asking(run) as inquiry:
        panel = truth.against_truth(inquiry)
    assert panel is not None
    table = next(b for b in panel.blocks if b["kind"] == "table")["rows"]
    told = {row[0]: tuple(int(n) for n in row[2:5]) for row in table}
    for stage, column in (("labels.neighbours", "truth_is_wrong"), ("keep.where", "truth_is_junk"), ("leakage.images", "truth_is_leak")):
        reached = [r for r in rows if r["drop_stage"] is None or order.index(r["drop_stage"]) >= order.index(stage)]
        taken = [r for r in rows if r["drop_stage"] == stage]
        assert told[stage] == (len(taken), sum(r[column] for r in taken), sum(r[column] for r in reached))
    assert told["quarantine"] == (3, 3, 3)
    picture = {r["uid"]: r["truth_copy_of"] or r["key"] for r in rows}
    together = [r for r in rows if r["drop_stage"] in ("dedup.exact", "dedup.perceptual")]
    right = sum(picture[r["uid"]] == picture.get(r["witness"]) for r in together)
    reached = [r for r in rows if r["drop_stage"] is None or order.index(r["drop_stage"]) >= order.index("dedup.exact")]
    extra = len(reached) - len({picture[r["uid"]] for r in reached})
    assert told["dedup, together"] == (len(together), right, extra)


def test_the_funnel_ends_with_what_was_kept(run: Path) -> None:
    kept = sum(r["status"] == "kept" for r in open_run(run).ledger(["status"]).to_pylist())
    with asking(run) as inquiry:
        panel = overview.funnel(inquiry)
    assert panel.blocks[0]["rows"][-1][2] == f"{kept:,}"


def test_cards_show_those_nearest_the_limit_and_a_fair_sample(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "CARDS_A_REASON", 8)
    rows = [r for r in open_run(run).ledger().to_pylist() if r["drop_stage"] == "labels.neighbours"]
    nearest = {r["uid"] for r in sorted(rows, key=lambda r: (abs(r["score"] - r["threshold"]), r["uid"]))[:4]}
    fair = {r["uid"] for r in sorted(rows, key=lambda r: r["uid"])[:4]}
    with asking(run) as inquiry:
        found = gallery._sample(inquiry, 6)
    here = [r for r in found if r["drop_stage"] == "labels.neighbours"]
    assert {r["uid"] for r in here} == nearest | fair
    far = [abs(r["score"] - r["threshold"]) for r in here]
    assert far == sorted(far)
