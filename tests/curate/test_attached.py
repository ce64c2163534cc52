"""Attached columns and vectors of a pool at a URL: read as those beside a local pool are, brought once, and in one line where nobody answers."""

import shutil

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from fsspec.implementations.memory import MemoryFileSystem

import curate
from curate.attach import attach
from curate.attached import attached_digests, attached_path, bring
from curate.cli import main
from curate.dry_run import dry_run
from manifests.errors import Refusal
from manifests.run import open_run
from manifests.shards.pool_yaml import open_pool
from tests.curate.test_building import digests
from tests.small_pool import samples, write_pool

RECIPE = """format: 1
seed: 3
stages:
  - measure.exact_hash:
  - keep.where: "mark > 0.1"
  - dedup.exact: {protect: "grade = 'a'"}
  - select.kcenter: {vectors: clip, keep: 0.6}
shards: {samples_per_shard: 4}
"""


def pool_of(folder, rows, per_shard=5, seed=0):
    """A pool with two tables attached that the recipe reads, and one that it does not."""
    write_pool(folder, rows, per_shard=per_shard)
    keys, rng = [row["key"] for row in rows], np.random.default_rng(seed)
    columns = {"grade": rng.choice(list("abc"), len(rows)), "mark": rng.random(len(rows))}
    for name, table, vectors in (
        ("marks", columns, None), ("clip", {"v": rng.normal(size=(len(rows), 8)).tolist()}, "v"), ("idle", {"idle": np.ones(len(rows))}, None),
    ):  # fmt: skip
        pq.write_table(pa.table({"key": keys, **table}), folder.parent / "table.parquet")
        attach(folder, folder.parent / "table.parquet", name=name, vectors=vectors, quiet=True)
    return folder


@pytest.fixture
def far(tmp_path):
    """(local pool, the same pool at a URL); the store is empty afterwards."""
    near = pool_of(tmp_path / "pool", samples()[:12])
    fsspec.filesystem("memory").put(f"{near}/", "/lab/pool/", recursive=True)
    yield near, "memory://lab/pool"
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def build(tmp_path, pool, out, **options):
    (tmp_path / "recipe.yaml").write_text(options.pop("recipe", RECIPE))
    return curate.build(tmp_path / "recipe.yaml", pool=str(pool), out=tmp_path / out, workers=1, quiet=True, device="cpu", **options)


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_a_pool_at_a_url_gives_the_bytes_of_the_same_pool_on_disk(far, tmp_path, scheme):
    near, url = far
    plan = dry_run_of(tmp_path, url)
    assert plan["stages"][-1]["stage"] == "select.kcenter" and not (tmp_path / "x").exists()
    build(tmp_path, near, "near")
    build(tmp_path, url if scheme == "memory" else f"file://{near}", "far")
    assert digests(tmp_path / "far") == digests(tmp_path / "near")
    brought = [
        p.relative_to(tmp_path / "far" / "cache").parts[:2]
        for p in (tmp_path / "far" / "cache").rglob("*.*")
        if p.is_file() and p.name != "shards.json"
    ]
    assert (
        brought == [] if scheme == "file" else sorted(set(brought)) == [("attached", "clip"), ("attached", "marks")]
    )  # what nobody reads stays there
    before = (tmp_path / "far" / "run.json").stat().st_mtime_ns
    assert build(tmp_path, url if scheme == "memory" else f"file://{near}", "far").info["counts"]["rows"] == 12
    assert (tmp_path / "far" / "run.json").stat().st_mtime_ns == before


def dry_run_of(tmp_path, pool):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return dry_run(tmp_path / "recipe.yaml", pool=pool, out=tmp_path / "x", workers=1, device="cpu")


def test_what_changes_there_is_brought_again_and_decided_anew(far, tmp_path):
    near, url = far
    first = build(tmp_path, url, "run")
    pq.write_table(
        pa.table({"key": [r["key"] for r in samples()[:12]], "grade": ["b"] * 12, "mark": [0.05] * 6 + [0.9] * 6}), tmp_path / "table.parquet"
    )
    attach(near, tmp_path / "table.parquet", name="marks", quiet=True)
    fsspec.filesystem("memory").put(f"{near}/", "/lab/pool/", recursive=True)
    again = build(tmp_path, url, "run")
    assert again.info["build_digest"] != first.info["build_digest"]
    build(tmp_path, near, "near")
    assert digests(tmp_path / "run") == digests(tmp_path / "near")
    assert all(len(list(folder.iterdir())) == 1 for folder in (tmp_path / "run" / "cache" / "attached" / "marks" / "crops").iterdir())


def test_replay_append_and_reuse_read_the_copies(far, tmp_path):
    near, url = far
    more = pool_of(tmp_path / "more" / "pool", samples()[12:20], seed=1)
    fsspec.filesystem("memory").put(f"{more}/", "/lab/more/", recursive=True)
    for pool, grown, name in ((near, more, "near"), (url, "memory://lab/more", "far")):
        build(tmp_path, pool, name)
        curate.append(tmp_path / name, pool=str(grown), workers=1, quiet=True, device="cpu")
        assert open_run(tmp_path / name).info["counts"]["rows"] == 20
    assert digests(tmp_path / "far") == digests(tmp_path / "near")
    MemoryFileSystem.store.clear()
    for name in ("near", "far"):
        found = curate.replay(
            tmp_path / name, settings=["select.kcenter.keep=0.3", "keep.where.keep=mark > 0.3"], out=tmp_path / f"{name}-replayed", device="cpu"
        )
        assert found["how"]["select.kcenter"] == "decided"
    ours = {name: {k: v for k, v in digests(tmp_path / f"{name}-replayed").items() if k != "shards"} for name in ("near", "far")}
    assert ours["far"] == ours["near"]


def test_an_evaluation_pool_at_a_url(far, tmp_path):
    _, url = far
    recipe = f"format: 1\nstages:\n  - measure.exact_hash:\n  - measure.perceptual_hash:\n  - leakage.images: {{against: ['{url}']}}\n"
    found = build(tmp_path, write_pool(tmp_path / "other", samples()[:4], per_shard=2), "run", recipe=recipe + "shards: off\n")
    assert found.info["counts"]["dropped"] == 4  # each picture stands in the evaluation pool


class Broken(MemoryFileSystem):
    """A store that answers for pools and shards, and for what is attached only while `answers`."""

    protocol = "broken"
    answers = True
    store = MemoryFileSystem.store
    pseudo_dirs = MemoryFileSystem.pseudo_dirs

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("broken://", "memory://"))

    def info(self, path, **options):
        """As it is, or a word of its own."""
        if "attached" in path and not Broken.answers:
            raise RuntimeError("the far end\nhung up")
        return super().info(path, **options)


@pytest.fixture
def broken(far):
    fsspec.register_implementation("broken", Broken, clobber=True)
    Broken.answers = True
    yield "broken://lab/pool"
    Broken.answers = True


def test_a_store_that_does_not_answer_is_one_line_and_copies_serve(broken, tmp_path):
    build(tmp_path, broken, "run")
    Broken.answers = False
    with pytest.raises(Refusal, match=r"^broken://lab/pool/attached/.*: cannot be read: the far end; .*\[download-failed\]$") as refusal:
        build(tmp_path, broken, "new")
    assert "\n" not in str(refusal.value)
    pool = open_pool(broken)
    before = attached_digests(pool, tmp_path / "run")
    bring(pool, tmp_path / "run", {"clip", "marks"})
    assert attached_digests(pool, tmp_path / "run") == before
    with pytest.raises(Refusal, match=r"\[download-failed\]"):
        bring(pool, tmp_path / "run", {"clip"}, anew=True)
    with pytest.raises(Refusal, match=r"\[download-failed\]"):
        bring(pool, tmp_path / "run", {"idle"})  # of which the run has no copy


def test_a_file_that_is_not_there_leaves_its_samples_unjudged(far, tmp_path):
    near, url = far
    (near / "attached" / "marks" / "crops" / "00001.parquet").unlink()
    fsspec.filesystem("memory").rm("/lab/pool/attached/marks/crops/00001.parquet")
    build(tmp_path, near, "near")
    found = build(tmp_path, url, "far")
    assert digests(tmp_path / "far") == digests(tmp_path / "near")
    assert next(s for s in found.stages if s.id == "keep.where").counts["unjudged"] == 5
    shard = open_pool(url).shards[1]
    assert not attached_path(open_pool(url), "attached/marks", shard, tmp_path / "far").exists()


def test_vectors_of_which_no_file_is_there_are_refused_before_any_work(far, tmp_path):
    near, url = far
    shutil.rmtree(near / "attached" / "clip")
    fsspec.filesystem("memory").rm("/lab/pool/attached/clip", recursive=True)
    for pool in (near, url):
        with pytest.raises(Refusal, match=r"select\.kcenter: reads vectors 'clip', of which there is no file.*attach it again"):
            build(tmp_path, pool, "run")
        assert not (tmp_path / "run").exists()


class Whole(Broken):
    """A web server without ranges: whatever part is asked for, it sends all."""

    protocol = "whole"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("whole://", "memory://"))

    def cat_file(self, path, start=None, end=None, **options):
        """All of it."""
        return super().cat_file(path)


class Unreached(Whole):
    """fsspec's web server: "not there" whatever went wrong."""

    protocol = "unreached"
    cause: Exception = ConnectionRefusedError(111, "Connection refused")

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).replace("unreached://", "memory://"))

    def info(self, path, **options):
        """Says no."""
        raise FileNotFoundError(path) from self.cause


def test_a_store_that_gives_no_parts_of_a_file_is_refused_and_not_misread(far, tmp_path):
    fsspec.register_implementation("whole", Whole, clobber=True)
    with pytest.raises(
        Refusal, match=r"^whole://lab/pool/shards/00000\.tar: gave [\d,]+ bytes for a part of [\d,]+; .*HTTP ranges.*\[download-failed\]"
    ):
        build(tmp_path, "whole://lab/pool", "run")


@pytest.mark.parametrize(("status", "slug"), [(None, "download-failed"), (503, "download-failed"), (404, "no-such-file")])
def test_a_host_that_cannot_be_reached_is_told_from_a_file_that_is_not_there(far, tmp_path, status, slug):
    fsspec.register_implementation("unreached", Unreached, clobber=True)
    if status:
        Unreached.cause = RuntimeError("the server said so")
        Unreached.cause.status = status
    with pytest.raises(Refusal) as refusal:
        build(tmp_path, "unreached://lab/pool", "run")
    assert refusal.value.slug == slug


def test_a_damaged_file_there_is_named(far, tmp_path):
    _, url = far
    fsspec.filesystem("memory").pipe("/lab/pool/attached/marks/crops/00000.parquet", b"PAR1 no more")
    with pytest.raises(Refusal, match=r"^memory://lab/pool/attached/marks/crops/00000\.parquet: is no whole Parquet file.*\[bad-pool\]"):
        build(tmp_path, url, "run")


@pytest.mark.parametrize(("pool", "table"), [("memory://lab/pool", "table.parquet"), ("pool", "memory://lab/table.parquet")])
def test_nothing_is_attached_at_a_url(far, tmp_path, monkeypatch, pool, table):
    monkeypatch.chdir(tmp_path)
    said = CliRunner().invoke(main, ["attach", pool, table, "--name", "x"])
    assert said.exit_code == 2
    assert "lies at a URL; a path on this machine. " in said.stderr and "[bad-value]" in said.stderr


def test_a_pool_by_file_url_is_a_local_one(far, tmp_path):
    near, _ = far
    pq.write_table(pa.table({"key": [samples()[0]["key"]], "one": [1]}), tmp_path / "one.parquet")
    assert attach(f"file://{near}", tmp_path / "one.parquet", name="one", quiet=True)["matched"] == 1
    shutil.rmtree(near / "attached" / "one")


@pytest.mark.parametrize(
    ("url", "slug"), [("s3://no-such/pool", "missing-package"), ("nope://x/pool", "bad-value"), ("ftp://127.0.0.1:1/pool", "download-failed")]
)
def test_a_store_that_cannot_be_opened_is_one_line(tmp_path, url, slug):
    with pytest.raises(Refusal) as refusal:
        build(tmp_path, url, "run")
    assert (refusal.value.slug, refusal.value.exit_code) == (slug, 2)
    assert not (tmp_path / "run").exists()
