"""`show` counts the ledger, not what `run.json` says."""

from collections import Counter
from pathlib import Path

from manifests.audit.show import show, text
from manifests.run import open_run
from tests.manifests.audit.golden import check
from tests.manifests.tiny_run import rewrite, tiny_run


def test_counts_are_the_ledgers(run: Path) -> None:
    ledger = open_run(run).ledger(["status", "drop_stage", "drop_reason"]).to_pylist()
    shown = show(run)
    status = Counter(row["status"] for row in ledger)
    assert shown["law"] == {"rows": len(ledger), **{w: status[w] for w in ("kept", "dropped", "quarantined")}, "holds": True}
    wanted = Counter((row["drop_stage"], row["drop_reason"]) for row in ledger if row["status"] == "dropped")
    assert wanted == {(step["stage"], reason): n for step in shown["funnel"] for reason, n in step["dropped"].items()}
    assert shown["funnel"][0]["in"] == len(ledger) - status["quarantined"]
    assert shown["funnel"][-1]["left"] == status["kept"]
    for step in shown["funnel"]:
        assert step["in"] - sum(step["dropped"].values()) == step["left"]


def test_page(run: Path) -> None:
    check("show.txt", text(show(run)))


def test_a_broken_law_is_said(copied) -> None:
    broken = copied()
    for file in open_run(broken).ledger_files():
        rewrite(file, lambda t: t.set_column(t.column_names.index("status"), "status", [["odd"] * t.num_rows]))
    assert "BROKEN" in text(show(broken))


def test_a_run_without_decisions_or_evidence(tmp_path: Path) -> None:
    shown = show(tiny_run(tmp_path, per_class=2, decisions=False, evidence=False, evaluations=False))
    assert shown["funnel"] == [] and shown["evidence"] == [] and shown["law"]["dropped"] == 0
    assert "no decisions" in text(shown)
