"""What is said before any work: every expression of a recipe is bound to the types that its columns have, or may have."""

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import curate
from curate.attach import attach
from curate.dry_run import dry_run
from curate.plan import attachments_read, check_columns, pool_columns
from curate.recipe import parse_recipe
from manifests.errors import Refusal
from manifests.shards.pool_yaml import open_pool, write_pool_yaml
from tests.contracts.test_stage_law import DECISIONS, MEASURES, configured
from tests.small_pool import crops, jpeg, samples, write_pool

RECIPE = """format: 1
stages:
  - measure.quality:
  - keep.where: {keep: "contrast >= 2", as: blank}
  - keep.where: {keep: EXPRESSION, as: mine}
shards: off
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    write_pool(folder / "pool", samples()[:6], per_shard=3)
    return folder


def recipe(folder, expression, stage="keep.where: {keep: EXPRESSION, as: mine}"):
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.replace("keep.where: {keep: EXPRESSION, as: mine}", stage).replace("EXPRESSION", json.dumps(expression)))
    return path


WRONG = [
    ("caption > 3 + 'x'", r"cannot be run: Binder Error.*\(caption: string\)"),
    ("contrast = 'high'", r"cannot be run: Conversion Error: Could not convert string 'high' to FLOAT \(contrast: float\)"),
    ("substr(width, 1) = 'a'", r"cannot be run.*\(width: int32\)"),
    ("blank_holds > 'x'", r"cannot be run.*\(blank_holds: bool\)"),
    ('lower("group") > quality_vote AND label + caption > 1', r"\(group: string, quality_vote: double, label: int32, caption: string\)"),
    ("blur", r"'blur' gives float, not true or false"),
    ("no_such(blur) > 1", r"calls 'no_such', which is no function of one row"),
    ("avg(blur) > 1", r"calls 'avg', which is no function of one row"),
    ("blurr > 1", r"reads the unknown column 'blurr'; near it: blur"),
]


@pytest.mark.parametrize(("expression", "says"), WRONG)
def test_a_wrong_expression_is_refused_with_its_line_before_any_work(home, tmp_path, expression, says):
    path = recipe(tmp_path, expression)
    slug = "unknown-column" if "blurr" in expression else "bad-sql"
    for run in (
        lambda: curate.build(path, pool=str(home / "pool"), out=tmp_path / "run", quiet=True),
        lambda: dry_run(path, pool=str(home / "pool"), out=tmp_path / "run"),
    ):
        with pytest.raises(Refusal, match=says) as refusal:
            run()
        assert refusal.value.where == f"{path}:5: mine: keep"
        assert refusal.value.slug == slug
        assert "\n" not in str(refusal.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stage", "says"),
    [
        ('keep.where: "contrast > 2"', r"reads the unknown column 'contrast'; .*\. Add `- measure.quality:` before it \[unknown-column\]$"),
        ('select.random: {keep: 0.5, protect: "phash IS NULL"}', r"'phash'; .*\. Add `- measure.perceptual_hash:` before it \[unknown-column\]$"),
        ('keep.where: "no_such > 2"', r"reads the unknown column 'no_such'; [^.]* \[unknown-column\]$"),
    ],
)
def test_an_expression_says_which_measure_would_write_its_column(home, tmp_path, stage, says):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"format: 1\nstages:\n  - {stage}\n")
    with pytest.raises(Refusal, match=says):
        curate.build(path, pool=str(home / "pool"), out=tmp_path / "run", quiet=True)


def test_an_expression_that_protects_is_bound_as_well(home, tmp_path):
    path = recipe(tmp_path, "", "select.random: {keep: 0.5, protect: \"caption > 3 + 'x'\"}")
    with pytest.raises(Refusal, match=r"recipe\.yaml:5: select\.random: protect: .*cannot be run.*\[bad-sql\]"):
        curate.build(path, pool=str(home / "pool"), out=tmp_path / "run", quiet=True)


@pytest.mark.parametrize(
    "expression", ["contrast > 1 AND caption LIKE 'a%'", "CAST(key AS INTEGER) > 1", "blank_holds", "null", "label IN (1, 2) OR 1 / 0 > label"]
)
def test_what_can_be_asked_is_not_refused(home, tmp_path, expression):
    assert dry_run(recipe(tmp_path, expression), pool=str(home / "pool"), out=tmp_path / "run")["stages"]


@pytest.mark.parametrize("stage", ['keep.where: "true"', 'select.random: {keep: 0.5, protect: "true"}'])
def test_an_expression_that_reads_nothing_speaks_of_every_row(home, tmp_path, stage):
    found = curate.build(recipe(tmp_path, "", stage), pool=str(home / "pool"), out=tmp_path / "run", quiet=True, workers=1)
    assert found.info["counts"]["kept"] == 6


def test_replay_and_append_refuse_it_before_any_work(home, tmp_path):
    run = curate.build(recipe(tmp_path, "lower(\"group\") = 'g0' OR key > ''"), pool=str(home / "pool"), out=tmp_path / "run", quiet=True, workers=1)
    with pytest.raises(Refusal, match=r"run/recipe\.yaml:\d+: mine: keep: .*width: int32.*\[bad-sql\]"):
        curate.replay(run.path, settings=["mine.keep=width = 'a'"], out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    rows = [{**row, "group": number} for number, row in enumerate(samples()[6:9])]
    write_pool(tmp_path / "more", [{**row, "group": "g"} for row in rows])
    sidecar = tmp_path / "more" / "shards" / "00000.parquet"
    table = pq.read_table(sidecar)
    pq.write_table(table.set_column(table.column_names.index("group"), "group", pa.array([1, 2, 3])), sidecar)
    before = sorted(p for p in run.path.rglob("*"))
    with pytest.raises(Refusal, match=r"run/recipe\.yaml:\d+: mine: keep: .*lower.*group: int64.*\[bad-sql\]"):
        curate.append(run.path, pool=str(tmp_path / "more"), quiet=True, workers=1)
    assert sorted(p for p in run.path.rglob("*")) == before


@pytest.mark.parametrize(
    ("stage", "says", "slug"),
    [
        ("reduce.series: {group: label, max_distance: 9, floor_distance: 3}", r"reduce\.series: .*0 <= max_distance <= floor_distance", "bad-value"),
        ("keep.list: {file: no-such.txt, by: key}", r"keep\.list: file: 'no-such\.txt' does not exist", "no-such-file"),
        ("keep.list:", r"keep\.list: has neither ids nor file", "bad-value"),
        ("reduce.density: {vectors: pixels, keep: 2, clusters: 0}", r"reduce\.density: .*clusters", "bad-value"),
    ],
)
def test_what_a_method_refuses_of_its_parameters_and_files_is_refused_before_any_work(home, tmp_path, stage, says, slug):
    measures = 'measure.difference_hash:\n  - measure.vectors: {encoder: "pixels:8", as: pixels}\n  - '
    path = recipe(tmp_path, "", measures + stage)
    for run in (
        lambda: curate.build(path, pool=str(home / "pool"), out=tmp_path / "run", quiet=True),
        lambda: dry_run(path, pool=str(home / "pool"), out=tmp_path / "run"),
    ):
        with pytest.raises(Refusal, match=says) as refusal:
            run()
        assert refusal.value.slug == slug and refusal.value.where.startswith(f"{path}:7: ")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", DECISIONS)
def test_every_decision_stands_a_pool_without_rows(home, tmp_path, name):
    """Earlier stages may leave nothing; and so the rehearsal refuses no default."""
    body = {"format": 1, "stages": [*MEASURES, configured(name, home / "pool")], "shards": False}
    check_columns(parse_recipe(yaml.safe_dump(body), "r.yaml"), open_pool(home / "pool"))


def test_a_stage_that_reads_a_column_of_unknown_type_is_not_rehearsed(tmp_path):
    """`dedup.perceptual` takes no text as hashes, and what a declared column turns out to be shows only in the rows."""
    pool = open_pool(json_pool(tmp_path / "pool", [{"word": "a"}, {"word": "b"}], columns={"word": "binary"}))
    text = JSON.replace("keep.where: {keep: EXPRESSION}", "measure.quality:\n  - measure.perceptual_hash:\n  - dedup.perceptual: {views: WORD}")
    check_columns(parse_recipe(text.replace("WORD", "word"), "r.yaml"), pool)
    with pytest.raises(Refusal, match=r"r\.yaml:6: dedup\.perceptual: .*\[bad-value\]"):
        check_columns(parse_recipe(text.replace("WORD", "pixels_hash").replace("- measure.quality:", "- measure.exact_hash:\n  - measure.quality:"), "r.yaml"), pool)  # fmt: skip


def json_pool(folder, objects, per_shard=2, columns=None):
    """Shards whose samples have `.json` members, and no Parquet beside them."""
    (folder / "shards").mkdir(parents=True)
    for start in range(0, len(objects), per_shard):
        with tarfile.open(folder / "shards" / f"{start // per_shard:05d}.tar", "w") as tar:
            for number, found in enumerate(objects[start : start + per_shard], start):
                for suffix, data in (("jpg", jpeg(crops(len(objects))[number][0])), ("json", json.dumps(found).encode())):
                    info = tarfile.TarInfo(f"{number:03d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    count = -(-len(objects) // per_shard)
    write_pool_yaml(folder, name="far", sources=[{"name": "s", "shards": [f"shards/{i:05d}.tar" for i in range(count)]}], columns=columns)
    return folder


JSON = """format: 1
stages:
  - keep.where: {keep: EXPRESSION}
shards: off
"""


@pytest.mark.parametrize("declared", [None, {"level": "double", "word": "string"}, {"level": "string", "word": "int64"}])
def test_columns_of_json_members_are_of_the_type_that_all_rows_tell(tmp_path, declared):
    """The first shard has whole numbers, the second a fraction; `pool.yaml` may say anything of them, or nothing."""
    pool = json_pool(tmp_path / "pool", [{"level": 1, "word": "a"}, {"level": 2, "word": "b"}, {"level": 2.5, "word": "c"}], columns=declared)
    for expression, kept in (("level % 1 = 0", 2), ("level >= 2 AND lower(word) > 'b'", 1), ("isfinite(level)", 3)):
        found = curate.build(_written(tmp_path, expression), pool=str(pool), out=tmp_path / expression[:3], quiet=True, workers=1)
        assert found.info["counts"]["kept"] == kept
    with pytest.raises(Refusal, match=r":3: keep\.where: keep: .*key: string.*\[bad-sql\]"):
        check_columns(parse_recipe(JSON.replace("EXPRESSION", json.dumps("level > 1 AND key > 3 + 'x'")), "r.yaml"), open_pool(pool))
    if not declared:
        with pytest.raises(Refusal, match=r"lower\(level\).*\(level: int64 or double\); .*\[bad-sql\]"):
            check_columns(parse_recipe(JSON.replace("EXPRESSION", json.dumps("lower(level) > 'a'")), "r.yaml"), open_pool(pool))


def _written(folder, expression):
    path = folder / "json.yaml"
    path.write_text(JSON.replace("EXPRESSION", json.dumps(expression)))
    return path


def test_a_column_whose_type_shows_only_in_a_later_sidecar_is_no_fault(tmp_path):
    """In the first shard all values are missing, so its Parquet says null; a column may also begin in a later shard."""
    pool = write_pool(tmp_path / "pool", samples()[:6], per_shard=3)
    first, second = sorted((pool / "shards").glob("*.parquet"))
    day = pa.array(np.array(["2024-01-01", "2024-05-01", "2025-01-01"], "datetime64[us]"))
    pq.write_table(pq.read_table(first).append_column("day", pa.nulls(3)), first)
    pq.write_table(pq.read_table(second).append_column("day", day).append_column("late", pa.array(["x", "y", "z"])), second)
    found = curate.build(_written(tmp_path, "year(day) = 2024 AND late > 'x'"), pool=str(pool), out=tmp_path / "run", quiet=True, workers=1)
    assert found.info["counts"]["kept"] == 3 + 1  # of the first shard nothing is known: kept, unjudged
    with pytest.raises(Refusal, match=r"day: timestamp\[us\].*\[bad-sql\]"):
        check_columns(parse_recipe(JSON.replace("EXPRESSION", json.dumps("lower(day) = 'x'")), "r.yaml"), open_pool(pool))


def test_a_column_of_the_sidecar_with_a_name_of_ours_is_known_by_the_name_that_it_gets(tmp_path):
    pool = write_pool(tmp_path / "pool", samples()[:3])
    (sidecar,) = (pool / "shards").glob("*.parquet")
    pq.write_table(pq.read_table(sidecar).append_column("width", pa.array([1, 2, 3])), sidecar)
    columns = pool_columns(open_pool(pool))
    assert columns["pool_width"] == (pa.int64(),) and "width" not in columns
    with pytest.raises(Refusal, match=r"unknown column 'width'; near it: pool_width. Add `- measure.quality:` before it \[unknown-column\]"):
        curate.build(_written(tmp_path, "width > 2"), pool=str(pool), out=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_attached_columns_have_their_types_and_vectors_are_no_columns(tmp_path):
    pool = write_pool(tmp_path / "pool", samples()[:6], per_shard=3)
    keys = [row["key"] for row in samples()[:6]]
    pq.write_table(pa.table({"key": keys, "grade": list("abcabc"), "mark": np.linspace(0, 1, 6)}), tmp_path / "scores.parquet")
    attach(pool, tmp_path / "scores.parquet", name="scores", quiet=True)
    pq.write_table(pa.table({"key": keys, "v": np.eye(6).tolist()}), tmp_path / "clip.parquet")
    attach(pool, tmp_path / "clip.parquet", name="clip", vectors="v", quiet=True)
    opened = open_pool(pool)
    for expression, says in (
        ("grade > 3 + 1.5 AND lower(mark) = 'a'", r"grade: string, mark: double.*\[bad-sql\]"),
        ("clip > 3", r"'clip'.*\[unknown-column\]"),
    ):
        with pytest.raises(Refusal, match=says):
            curate.build(_written(tmp_path, expression), pool=str(pool), out=tmp_path / "run", quiet=True)
    within = parse_recipe(JSON.replace("keep.where: {keep: EXPRESSION}", "select.random: {keep: 1, within: clip}"), "r.yaml")
    with pytest.raises(Refusal, match=r"r\.yaml:3: select\.random: reads column 'clip', .*: it is a vector column"):
        check_columns(within, opened)
    good = parse_recipe(JSON.replace("EXPRESSION", json.dumps("Grade < 'c'")), "r.yaml")
    check_columns(good, opened)
    assert attachments_read(good, opened) == {"scores"}
    assert attachments_read(
        parse_recipe(JSON.replace("keep.where: {keep: EXPRESSION}", "select.kcenter: {keep: 1, vectors: clip}"), "r.yaml"), opened
    ) == {"clip"}
    for file in (pool / "attached" / "scores").rglob("*.parquet"):
        file.unlink()
    with pytest.raises(Refusal, match=r"unknown column 'Grade'"):
        check_columns(good, opened)
    by = parse_recipe(JSON.replace("keep.where: {keep: EXPRESSION}", "select.random: {keep: 1, within: grade}"), "r.yaml")
    with pytest.raises(Refusal, match=r"reads column 'grade'.*attached/scores holds no file of it"):
        check_columns(by, opened)
