"""`curate audit`: whoever audits a folder again, however it is written, goes on; what ingest left out is said here too."""

import json

import pytest
from click.testing import CliRunner

import curate
from curate.auditing import left_out, pool_made
from curate.cli import main
from manifests.errors import Refusal
from tests.curate.ingest.pictures import picture, put


@pytest.fixture
def home(tmp_path, monkeypatch):
    for i in range(4):
        put(tmp_path / "small" / f"{i}.png", picture(i, side=40))
    put(tmp_path / "small" / "note.txt", b"x")
    (tmp_path / "small" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "small" / "far.png").symlink_to(put(tmp_path / "elsewhere" / "far.png", picture(9, side=40)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def audited(source, **options):
    return curate.audit(source, workers=1, quiet=True, **options)


def test_the_same_folder_written_otherwise_is_the_same_audit(home, monkeypatch):
    first = audited("small").path
    finished = (first / "run.json").read_bytes()
    assert [audited(again).path for again in ("small/", "./small")] == [first, first]
    assert audited(str(home / "small"), out=first.parent).path == first
    assert (first / "run.json").read_bytes() == finished
    monkeypatch.chdir(home / "small")
    assert audited(".", out=home / first.parent).info["counts"]["rows"] == 5


def test_another_folder_of_that_name_is_refused_with_the_option_that_audit_has(home):
    audited("small")
    put(home / "other" / "small" / "1.png", picture(1))
    with pytest.raises(
        Refusal, match=r"holds a pool made from small; .*the pool of other/small\. Give another --out, or remove that folder \[bad-value\]"
    ):
        audited("other/small")
    put(home / "letters" / "pool" / "letter.txt", b"dear")
    with pytest.raises(Refusal, match=r"is not empty.*Give another --out \[bad-value\]"):
        audited("small", out=home / "letters")


def test_what_ingest_left_out_is_said(home):
    done = CliRunner().invoke(main, ["audit", "small", "--workers", "1"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[:4] == ["links followed: to pictures out of the source 1", "links left out: broken 1", "skipped: txt 1", ""]
    found = json.loads(CliRunner().invoke(main, ["audit", "small", "--workers", "1", "--json"]).stdout)
    assert found["ingest"] == left_out(pool_made("small"))
    assert found["ingest"]["links_left_out"] == {"broken": 1}


def test_a_pool_or_shards_are_audited_as_they_are(home):
    pool = str(pool_made("small"))
    audited("small")
    assert pool_made(pool) is pool_made("x/{0..3}.tar") is pool_made("s3://x/{0..3}.tar") is None
    done = CliRunner().invoke(main, ["audit", pool, "--out", "again", "--workers", "1"])
    assert done.exit_code == 0
    assert done.stdout.startswith("run ")
