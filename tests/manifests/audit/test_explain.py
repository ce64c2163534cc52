"""`explain` tells the life of every sample, and tells what the parts say."""

from pathlib import Path

import pytest

from manifests.audit.explain import explain, text
from manifests.audit.visible import called
from manifests.errors import Refusal
from manifests.run import open_run
from tests.manifests.audit.golden import check


def test_every_life_ends_as_the_ledger_says(run: Path) -> None:
    opened = open_run(run)
    rows = opened.ledger().to_pylist()
    by_uid = {row["uid"]: row for row in rows}
    for row in rows[::3]:
        life = explain(run, row["uid"])
        seen = [s for s in life["stages"] if s["kind"] == "decision" and not s["verdict"].startswith("not seen")]
        dropped = [s for s in seen if s["verdict"] == "dropped"]
        if row["status"] == "dropped":
            assert [s["stage"] for s in dropped] == [row["drop_stage"]] and seen[-1] is dropped[0]
            assert dropped[0]["reason"] == row["drop_reason"] and dropped[0].get("score") == row["score"]
            assert life["cure"]
            if row["witness"] and not row["witness_pool"]:
                witness = dropped[0]["witness"]
                assert witness["key"] == by_uid[row["witness"]]["key"] and witness["status"] == by_uid[row["witness"]]["status"]
        elif row["status"] == "kept":
            assert not dropped and len(seen) == 5 and life["cure"] is None
        else:
            assert not seen and [s["verdict"] for s in life["stages"] if s["verdict"].startswith("quarantined")] == [
                f"quarantined: {row['drop_reason']}"
            ]
        stands_for = [r["uid"] for r in rows if r["witness"] == row["uid"] and not r["witness_pool"]]
        assert life["stands_for"]["count"] == len(stands_for)
        assert text(life)


@pytest.mark.parametrize(
    ("name", "condition"),
    [
        ("near", "near_duplicate"),
        ("exact", "same_bytes"),
        ("leak", "exact"),
        ("rule", "not_true"),
        ("label", "label_disagrees"),
        ("broken", "undecodable"),
        ("kept", None),
    ],
)
def test_page(run: Path, name: str, condition: str | None) -> None:
    rows = [r for r in open_run(run).ledger().to_pylist() if r["drop_reason"] == condition]
    first = min(rows, key=lambda r: r["key"])
    check(f"explain-{name}.txt", text(explain(run, first["uid"])))


def test_a_leak_names_the_test_picture(run: Path) -> None:
    row = next(r for r in open_run(run).ledger().to_pylist() if r["witness_pool"])
    witness = next(s["witness"] for s in explain(run, row["key"])["stages"] if "witness" in s)
    assert witness["pool"] == "tests" and witness["key"].startswith("t")


def test_by_key_by_uid_by_prefix(run: Path) -> None:
    uid = explain(run, "000003")["sample"]["uid"]
    assert explain(run, uid)["sample"]["key"] == explain(run, uid[:10])["sample"]["key"] == "000003"
    for unknown in ("no such key", uid[:6], "f" * 32):
        with pytest.raises(Refusal) as refused:
            explain(run, unknown)
        assert refused.value.slug == "no-such-sample"


def test_files_are_called_by_their_paths(filed: Path) -> None:
    rows = open_run(filed).ledger().to_pylist()
    path = {row["uid"]: row["path"] for row in rows}
    dropped = [row for row in rows if row["status"] == "dropped" and row["path"]]
    seen = {"pool": 0, "tests": 0}
    for row in dropped:
        life = explain(filed, row["path"])
        page = text(life)
        assert page.startswith(f"{row['path']}  {row['uid'][:12]}  DROPPED") and ["key", row["key"]] in [line.split() for line in page.splitlines()]
        witness = next((s["witness"] for s in life["stages"] if "witness" in s), None)
        if witness:
            where = "tests" if "pool" in witness else "pool"
            seen[where] += 1
            assert witness.get("path") == (f"web/{row['label_name']}/{witness['key']}.jpg" if where == "tests" else path[witness["uid"]])
            assert f"witness {called(witness, 120)}  {witness['uid'][:12]}" in page
    assert min(seen.values()) > 3
    kept = next(row for row in rows if any(d["witness"] == row["uid"] and row["path"] for d in dropped))
    life = explain(filed, kept["uid"])
    first = life["stands_for"]["first"]
    assert [one["path"] for one in first] == [path[one["uid"]] for one in first] and called(first[0], 60) in text(life)


def test_a_long_path_keeps_its_end(filed: Path) -> None:
    life = explain(filed, "000011")
    assert len(life["sample"]["path"]) > 300 and text(life).splitlines()[0].split("  ")[0].endswith("a very long name/end.jpg")
    assert len(text(life).splitlines()[0]) < 220


def test_a_score_of_nought_is_a_score(run: Path) -> None:
    row = next(r for r in open_run(run).ledger().to_pylist() if r["score"] == 0)
    assert "score 0 < limit" in text(explain(run, row["uid"]))


def test_a_missing_part_is_said(copied) -> None:
    broken = copied()
    row = next(r for r in open_run(broken).ledger().to_pylist() if r["status"] == "kept")
    open_run(broken).part("dedup.exact", row["shard"]).unlink()
    assert "its part is missing" in text(explain(broken, row["uid"]))


def test_no_control_character_reaches_the_terminal(hostile_run: Path) -> None:
    for row in open_run(hostile_run).ledger(["uid"]).to_pylist()[::4]:
        page = text(explain(hostile_run, row["uid"]))
        assert not [
            c for c in page if (ord(c) < 32 and c != "\n") or 0x7F <= ord(c) < 0xA0 or 0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069
        ]
