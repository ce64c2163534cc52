"""A recipe says what is wrong with it before any work, with file and line; resolved, it reads back as itself."""

import pytest

from curate.building import build
from curate.ingest.ingest import ingest
from curate.pool import Share
from curate.recipe import parse_recipe, read_recipe, shipped
from manifests.errors import Refusal
from tests.curate.dedup.test_perceptual import PICTURES
from tests.curate.ingest.pictures import put
from tests.pools import jpeg, png

GOOD = """format: 1
pool: pools/x
stages:
  - measure.exact_hash:
  - dedup.exact: {as: copies}
  - select.random: {keep: 0.5, within: label, protect: "label = 3"}
"""


def refused(text: str, *settings: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse_recipe(text, "r.yaml", list(settings))
    return caught.value


def test_resolved_recipe_reads_back_as_itself():
    recipe = parse_recipe(GOOD, "r.yaml")
    assert parse_recipe(recipe.yaml(), "again.yaml").yaml() == recipe.yaml()
    assert [s.id for s in recipe.stages] == ["measure.exact_hash", "copies", "select.random"]
    assert recipe.stages[2].parameters["keep"] == Share(fraction=0.5)
    assert (recipe.stages[2].within, recipe.stages[2].protect) == ("label", "label = 3")


def test_settings_reach_a_stage_by_its_id_and_by_its_name():
    recipe = parse_recipe(GOOD, "r.yaml", ["select.random.keep=10", "select.random.within=null"])
    assert recipe.stages[2].parameters["keep"] == Share(count=10)
    assert recipe.stages[2].within is None


@pytest.mark.parametrize("name", shipped())
def test_shipped_recipes_are_sound(name):
    assert read_recipe(name).stages


@pytest.mark.parametrize("name", ["audit", "photos"])
def test_a_shipped_recipe_keeps_the_lossless_picture_and_not_the_jpeg_made_of_it(tmp_path, name):
    for i, pixels in enumerate(PICTURES[:8]):
        put(tmp_path / "src" / f"{i}.png", png(pixels))
        put(tmp_path / "src" / f"{i}.jpg", jpeg(pixels, 85))
    ingest(str(tmp_path / "src"), to=tmp_path / "pool", quiet=True)
    run = build(name, pool=str(tmp_path / "pool"), out=tmp_path / "run", workers=1, quiet=True)
    kept = run.ledger(["path", "status", "drop_stage"]).to_pylist()
    assert {row["path"] for row in kept if row["status"] == "kept"} == {f"{i}.png" for i in range(8)}
    assert {row["drop_stage"] for row in kept} == {None, "dedup.perceptual"}


@pytest.mark.parametrize(
    ("text", "slug", "line"),
    [
        (GOOD.replace("format: 1", "format: 2"), "bad-recipe", ""),
        (GOOD.replace("pool:", "pol:"), "bad-recipe", "r.yaml:2"),
        (GOOD + "stages: []\n", "bad-recipe", "r.yaml:7"),
        (GOOD.replace("dedup.exact", "dedup.exakt"), "unknown-stage", "r.yaml:5"),
        (GOOD.replace("keep: 0.5", "keep: 1.5"), "bad-value", "r.yaml:6"),
        (GOOD.replace("keep: 0.5", "keap: 0.5"), "unknown-parameter", "r.yaml:6"),
        (GOOD.replace("{as: copies}", "[1]"), "bad-value", "r.yaml:5"),
        (GOOD.replace("measure.exact_hash:", "measure.exact_hash: 3"), "bad-recipe", "r.yaml:4"),
        (GOOD.replace("as: copies", "as: 7"), "bad-value", "r.yaml:5"),
        (GOOD.replace("within: label", "within: 3"), "bad-value", "r.yaml:6"),
        (GOOD + "  - dedup.exact: {as: copies}\n", "bad-recipe", ""),
        (GOOD + "seed: 0123\n", "bad-recipe", "r.yaml:7"),
        (GOOD + "shards: {order: sideways}\n", "bad-value", "shards"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, slug, line):
    error = refused(text)
    assert error.slug == slug
    assert line in str(error)


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        (GOOD.replace("dedup.exact", "dedup.exakt"), (), "there is no stage 'dedup.exakt'. Did you mean dedup.exact"),
        (GOOD.replace("dedup.exact", "exact"), (), "there is no stage 'exact'. Did you mean dedup.exact ["),
        (GOOD.replace("dedup.exact", "zzz"), (), "the stages: measure.index"),
        (GOOD.replace("keep: 0.5", "kep: 0.5"), (), "its parameters: keep, as, within, protect. Did you mean keep"),
        (GOOD.replace("within: label", "witin: label"), (), "Did you mean within"),
        (GOOD.replace("pool:", "pol:"), (), "Did you mean pool"),
        (GOOD, ("dedup.exat.keeper=uid",), "Did you mean dedup.exact"),
        (GOOD, ("select.randm.keep=2",), "Did you mean select.random"),
        (GOOD.replace("{as: copies}", "{keeper: biggest}"), (), "keeper: 'biggest' was given; it takes one of uid, earliest ["),
        (GOOD.replace("{as: copies}", "{keeper: earlest}"), (), "it takes one of uid, earliest. Did you mean earliest"),
    ],
)
def test_what_is_nearly_right_is_said_once_with_what_was_meant(text, settings, said):
    line = str(refused(text, *settings))
    assert said in line
    assert line.count("one of") <= 1


def test_a_setting_for_no_stage_is_refused():
    assert refused(GOOD, "dedup.nothing.x=1").slug == "unknown-stage"
    assert refused(GOOD, "nonsense").slug == "bad-value"


def test_evaluate_inserts_leakage_and_its_measures():
    recipe = parse_recipe(GOOD + "evaluate: [pools/test]\n", "r.yaml")
    assert [s.name for s in recipe.stages[:4]] == ["measure.exact_hash", "measure.perceptual_hash", "leakage.images", "dedup.exact"]
    assert recipe.stages[2].parameters["against"] == ["pools/test"]
    off = parse_recipe(GOOD + "evaluate: [pools/test]\nleakage: off\n", "r.yaml")
    assert "leakage.images" not in [s.name for s in off.stages]
    assert recipe.stages[2].place == "r.yaml:7: leakage.images"


def test_a_bare_value_is_the_first_parameter():
    short = parse_recipe('format: 1\nstages:\n  - keep.where: "width > 3"\n', "r.yaml")
    long = parse_recipe('format: 1\nstages:\n  - keep.where: {keep: "width > 3"}\n', "r.yaml")
    assert short.yaml() == long.yaml()
