"""`diff` counts every sample once, whether the runs line up or not."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from manifests.audit.diff import diff, text
from manifests.errors import Refusal
from manifests.run import open_run
from tests.manifests.audit.golden import check
from tests.manifests.tiny_run import rewrite, tiny_run

FATE = ("status", "drop_stage", "drop_reason")


def by_hand(a: Path, b: Path) -> Counter:
    one, two = ({r["uid"]: tuple(r[c] for c in FATE) for r in open_run(p).ledger().to_pylist()} for p in (a, b))
    return Counter((one[u], two[u]) for u in one.keys() & two.keys() if one[u] != two[u])


def told(found: dict) -> dict:
    return {
        (tuple(m[f"{c}_old"] for c in ("status", "stage", "reason")), tuple(m[f"{c}_new"] for c in ("status", "stage", "reason"))): m["n"]
        for m in found["moved"]
    }


def test_moves_are_counted_by_position(run: Path, other_run: Path) -> None:
    found = diff(run, other_run)
    assert found["aligned"] and told(found) == by_hand(run, other_run) and told(found)
    assert found["counts"]["kept_both"] == len(
        {r["uid"] for p in (run,) for r in open_run(p).ledger().to_pylist() if r["status"] == "kept"}
        & {r["uid"] for r in open_run(other_run).ledger().to_pylist() if r["status"] == "kept"}
    )
    for row in found["moved"]:
        assert 1 <= len(row["examples"]) <= 3
    assert {"stage": "labels.neighbours", "parameters": {"min_share": [0.2, 0.3]}} in found["stages"]


def test_page(run: Path, other_run: Path) -> None:
    check("diff.txt", text(diff(run, other_run)))


def test_a_run_and_itself(run: Path) -> None:
    found = diff(run, run)
    assert not found["moved"] and not found["stages"]
    assert "no sample that both have was treated differently" in text(found)


def test_other_pools_are_joined(run: Path, other_run: Path, copied, tmp_path: Path) -> None:
    shuffled = copied()
    for file in open_run(shuffled).ledger_files():
        rewrite(file, lambda t: t.take(list(range(t.num_rows))[::-1]))
    found = diff(shuffled, other_run)
    assert not found["aligned"] and told(found) == by_hand(run, other_run)
    stranger = tiny_run(tmp_path / "stranger", per_class=4, seed=8)
    apart = diff(run, stranger)
    counts = apart["counts"]
    assert sum(r["n"] for r in apart["only_in_old"]) == counts["rows_old"] - counts["rows_both"]
    assert sum(r["n"] for r in apart["only_in_new"]) == counts["rows_new"] - counts["rows_both"]
    assert "different samples" in text(apart)


def test_another_stage_with_the_same_reason_is_a_move(run: Path, copied) -> None:
    moved = copied()
    for file in open_run(moved).ledger_files():
        rewrite(file, lambda t: renamed(t, "dedup.exact", "dedup.other"))
    found = diff(run, moved)
    assert [(m["stage_old"], m["stage_new"]) for m in found["moved"]] == [("dedup.exact", "dedup.other")] and told(found) == by_hand(run, moved)


def renamed(table, old: str, new: str):  # type: ignore[no-untyped-def]
    names = pa.array([new if n == old else n for n in table["drop_stage"].to_pylist()]).dictionary_encode()
    return table.set_column(table.column_names.index("drop_stage"), "drop_stage", names)


def test_a_stage_that_only_one_has(run: Path, tmp_path: Path) -> None:
    bare = tiny_run(tmp_path, decisions=False)
    assert {"stage": "dedup.exact", "only_in": "old"} in diff(run, bare)["stages"]


def test_a_cut_ledger_is_one_line(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "cut")
    file = open_run(tmp_path / "cut").ledger_files()[0]
    os.truncate(file, file.stat().st_size // 2)
    for one, two in ((run, tmp_path / "cut"), (tmp_path / "cut", run)):
        with pytest.raises(Refusal, match=r"cannot be read.*\[broken-record\]"):
            diff(one, two)
