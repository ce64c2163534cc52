"""From a score table to its words, and every way in which a table is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.errors import Refusal
from pretrain.evidence.judge import judge
from pretrain.evidence.looks import read_looks
from pretrain.evidence.plan import read_plan
from pretrain.evidence.table import schema, table

from .score_tables import PLAN, table_of, written

ARMS = {"full": (0.80, 3), "kept": (0.80, 3), "random": (0.77, 6, True), "untrained": (0.5, 5, False, True)}


def verdict_of(folder, arm="kept", reference="full", task=None):
    rows = pq.read_table(folder / "verdicts.parquet").to_pylist()
    return next(r for r in rows if (r["arm"], r["reference"], r["task"]) == (arm, reference, task))


@pytest.mark.parametrize(
    ("mean", "runs", "expected"),
    [(0.84, 3, "better"), (0.80, 5, "not worse"), (0.70, 3, "worse"), (0.772, 3, "cannot tell"), (0.80, 2, "cannot tell")],
)
def test_each_word_end_to_end(tmp_path, mean, runs, expected):
    made = table_of({**ARMS, "kept": (mean, runs), "full": (0.80, runs)}, n=6000, seed=1)
    folder = judge(*written(tmp_path, made)[:1], plan=tmp_path / "plan.yaml")
    found = verdict_of(folder)
    assert found["word"] == expected
    assert pq.read_schema(folder / "verdicts.parquet").equals(schema())
    said = found["sentence"]
    if runs == 2:
        assert found["lo"] is None and found["note"].startswith("needs at least 3 runs of kept; the first look") and found["look"] == 0
        assert not (folder / "looks.jsonl").exists()
        return
    verbs = {"better": "better than", "not worse": "not worse than", "worse": "worse than", "cannot tell": "cannot tell against"}
    assert said.startswith(f"`kept`: {verbs[expected]} the full pool on 1 task (") and "95 % interval" in said
    assert not any(word in said for word in ("equal ", "no significant", "as good as", "p ="))
    assert found["margin"] == pytest.approx(0.1 * (verdict_of(folder)["mean_ref"] - found["mean_untrained"]), rel=1e-9)
    if expected == "cannot tell":
        assert "would tell" in said or "no number of seeds" in said or "it needs about" in said
    text = table(folder)
    assert expected in text and "kept" in text


def test_the_table_reads_well(tmp_path):
    folder = judge(written(tmp_path, table_of(ARMS, n=3000, seed=3))[0], plan=tmp_path / "plan.yaml")
    text = table(folder)
    lines = text.splitlines()
    assert lines[0] == "ce (look 1)" and lines[2].split() == ["arm", "rows", "runs", "suite"]
    assert any(line.startswith("kept") and "full" in line and "[" in line for line in lines)
    assert (folder / "intervals.svg").read_text().startswith("<svg")


def test_the_same_scores_are_the_same_look_and_others_the_next(tmp_path):
    scores, plan = written(tmp_path, table_of(ARMS, seed=1))
    folder = judge(scores, plan=plan)
    first = pq.read_table(folder / "verdicts.parquet")
    judge(scores, plan=plan)
    assert len((folder / "looks.jsonl").read_text().splitlines()) == 1
    assert pq.read_table(folder / "verdicts.parquet").equals(first)
    more = {"full": (0.80, 5), "kept": (0.80, 5), "random": (0.77, 10, True), "untrained": (0.5, 5, False, True)}
    judge(written(tmp_path, table_of(more, seed=1))[0], plan=plan)
    looks = [json.loads(line) for line in (folder / "looks.jsonl").read_text().splitlines()]
    assert [(r["look"], r["runs"], r["alpha"]) for r in looks] == [(1, 3, 0.025), (2, 5, 0.0125)]
    assert verdict_of(folder)["level"] == pytest.approx(0.975) and "97.5 % interval" in verdict_of(folder)["sentence"]


@pytest.mark.parametrize("damage", ["{", "[]\n", '{"runs": 3}\n'])
def test_looks_that_cannot_be_read_are_refused_and_not_forgotten(tmp_path, damage):
    scores, plan = written(tmp_path, table_of(ARMS, seed=1))
    folder = judge(scores, plan=plan)
    (folder / "looks.jsonl").write_text((folder / "looks.jsonl").read_text() + damage)
    with pytest.raises(Refusal, match=r"looks\.jsonl: is damaged.*\[broken-record\]"):
        judge(scores, plan=plan)


def test_a_look_that_no_error_is_left_for_is_refused_and_changes_nothing(tmp_path):
    scores, plan = written(tmp_path, table_of(ARMS, seed=1))
    folder = judge(scores, plan=plan)
    before = (folder / "verdicts.parquet").read_bytes()
    four = {"full": (0.80, 4), "kept": (0.80, 4), "random": (0.77, 8, True), "untrained": (0.5, 5, False, True)}
    with pytest.raises(Refusal, match="a look at 4 runs is not declared") as refused:
        judge(written(tmp_path, table_of(four, seed=1))[0], plan=plan)
    assert refused.value.slug == "bad-plan" and (folder / "verdicts.parquet").read_bytes() == before


def test_a_first_look_that_is_not_declared_spends_half_and_leaves_the_declared_one_its_own(tmp_path):
    plan = PLAN.replace("[3, 5, 10]", "[10]")
    four, ten = ({**ARMS, "full": (0.80, n), "kept": (0.80, n)} for n in (4, 10))
    folder = judge(written(tmp_path, table_of(four, n=400), plan)[0], plan=tmp_path / "plan.yaml")
    assert verdict_of(folder)["level"] == pytest.approx(0.975)
    judge(written(tmp_path, table_of(ten, n=400), plan)[0], plan=tmp_path / "plan.yaml")
    assert [(row["runs"], row["alpha"]) for row in read_looks(folder)] == [(4, 0.0125), (10, 0.025)]


def test_a_first_look_is_refused_where_all_error_is_promised_to_declared_ones(tmp_path):
    plan = PLAN.replace("[3, 5, 10]", "[5, 10]")
    with pytest.raises(Refusal, match="a look at 3 runs is not declared") as refused:
        judge(written(tmp_path, table_of(ARMS, n=400), plan)[0], plan=tmp_path / "plan.yaml")
    assert "5, 10" in str(refused.value) and not list(tmp_path.glob("evidence/*/looks.jsonl"))


def test_other_scores_at_the_same_number_of_runs_are_a_look_that_is_not_declared(tmp_path):
    scores, plan = written(tmp_path, table_of(ARMS, seed=1))
    folder = judge(scores, plan=plan)
    with pytest.raises(Refusal, match="a look at 3 runs is not declared"):
        judge(written(tmp_path, table_of(ARMS, seed=2))[0], plan=plan)
    assert len((folder / "looks.jsonl").read_text().splitlines()) == 1


def test_a_word_proved_at_one_look_stays_at_the_next(tmp_path):
    scores, plan = written(tmp_path, table_of({**ARMS, "kept": (0.84, 3)}, n=6000, seed=1))
    folder = judge(scores, plan=plan)
    assert verdict_of(folder)["word"] == "better"
    level = {"full": (0.80, 5), "kept": (0.80, 5), "random": (0.77, 6, True), "untrained": (0.5, 5, False, True)}
    judge(written(tmp_path, table_of(level, n=6000, seed=2))[0], plan=plan)
    found = verdict_of(folder)
    assert found["word"] == found["word_alone"] == "better" and found["lo"] < 0 and "proved at an earlier look" in found["note"]


def test_another_margin_after_a_look_is_exploratory(tmp_path):
    scores, plan = written(tmp_path, table_of(ARMS, seed=1))
    judge(scores, plan=plan)
    plan.write_text(PLAN.replace("retain: 0.9", "retain: 0.8"))
    assert "exploratory" in verdict_of(judge(scores, plan=plan))["note"]


def test_one_random_draw_is_never_better_or_worse(tmp_path):
    made = table_of({**ARMS, "kept": (0.9, 5), "full": (0.8, 5), "random": (0.7, 5, True)}, seed=1)
    one = made.set_column(2, "draw", pa.array([None if d is None else 0 for d in made["draw"].to_pylist()], pa.int64()))
    found = verdict_of(judge(written(tmp_path, one)[0], plan=tmp_path / "plan.yaml"), reference="random")
    assert found["word"] == "cannot tell" and found["lo"] > 0 and "better than this one random subset" in found["note"] and found["draws"] == 1


def test_runs_of_one_draw_are_averaged_to_one(tmp_path):
    made = table_of({**ARMS, "random": (0.77, 6, True)}, seed=1)
    paired = made.set_column(2, "draw", pa.array([None if d is None else d // 2 for d in made["draw"].to_pylist()], pa.int64()))
    found = verdict_of(judge(written(tmp_path, paired)[0], plan=tmp_path / "plan.yaml"), reference="random")
    assert found["runs_ref"] == 3 and found["draws"] == 3


def test_a_suite_that_does_not_respond_says_nothing(tmp_path):
    made = table_of({**ARMS, "untrained": (0.80, 5, False, True)}, n=4000, seed=2)
    found = verdict_of(judge(written(tmp_path, made)[0], plan=tmp_path / "plan.yaml"))
    assert found["word"] == "cannot tell" and "does not respond" in found["note"] and found["retained_lo"] is None


def test_an_absolute_margin_and_its_guard(tmp_path):
    plan = PLAN.replace("{retain: 0.9}", "{absolute: 0.03}")
    scores, path = written(tmp_path, table_of(ARMS, n=6000, seed=1), plan)
    found = verdict_of(judge(scores, plan=path))
    assert found["word"] == "not worse" and found["margin"] == 0.03 and found["margin_kind"] == "absolute 0.03"
    flat = table_of({**ARMS, "untrained": (0.78, 5, False, True)}, n=6000, seed=1)
    scores, path = written(tmp_path / "flat", flat, plan)
    assert "margin is not smaller than the gain" in verdict_of(judge(scores, plan=path))["note"]


def test_the_margin_is_that_of_the_retained_gain(tmp_path):
    """The word with `retain` is that of kept - rho full - (1 - rho) untrained, recomputed from the table."""
    made = table_of({**ARMS, "kept": (0.785, 4), "full": (0.8, 4)}, n=3000, seed=5)
    found = verdict_of(judge(written(tmp_path, made)[0], plan=tmp_path / "plan.yaml"))
    assert (found["word"] in ("not worse", "better")) == (found["retained_lo"] > 0.9 or found["lo"] > 0)


TASKS = PLAN.replace("tasks: [t]", "tasks: [t, u, v, w, x]")


def test_several_tasks_have_a_suite_words_of_their_own_and_a_wider_interval(tmp_path):
    made = table_of({**ARMS, "kept": (0.80, 5), "full": (0.80, 5)}, n=1500, tasks=tuple("tuvwx"), seed=4)
    folder = judge(written(tmp_path, made, TASKS)[0], plan=tmp_path / "plan.yaml")
    suite = verdict_of(folder)
    tasks = [verdict_of(folder, task=t) for t in "tuvwx"]
    assert suite["tasks"] == 5 and suite["n"] == 7500 and suite["wide_lo"] is not None and suite["bootstrap_lo"] is not None
    assert suite["diff"] == pytest.approx(np.mean([t["diff"] for t in tasks]))
    assert suite["hi"] - suite["lo"] < min(t["hi"] - t["lo"] for t in tasks)
    differences = np.array([t["diff"] for t in tasks])
    assert [suite["without_lo"], suite["without_hi"]] == pytest.approx([(5 * suite["diff"] - d) / 4 for d in (differences.max(), differences.min())])
    assert suite["on_every_task"] in (True, False) and tasks[0]["on_every_task"] is None
    assert (suite["bootstrap_hi"] - suite["bootstrap_lo"]) == pytest.approx(suite["hi"] - suite["lo"], rel=0.5)


def test_a_task_that_the_selector_saw_leaves_the_suite(tmp_path):
    plan = PLAN.replace("tasks: [t]", "tasks: [t, {name: u, seen_by_selector: true}]")
    folder = judge(written(tmp_path, table_of(ARMS, tasks=("t", "u"), seed=4), plan)[0], plan=tmp_path / "plan.yaml")
    assert verdict_of(folder)["tasks"] == 1 and verdict_of(folder, task="u")["seen_by_selector"]
    assert verdict_of(folder)["diff"] == pytest.approx(verdict_of(folder, task="t")["diff"])


def test_two_probes_of_the_same_pictures_share_their_samples(tmp_path):
    once = table_of(ARMS, seed=4)
    twice = pa.concat_tables([once, once.set_column(4, "task", pa.array(["u"] * once.num_rows))])
    alone = verdict_of(judge(written(tmp_path / "a", once)[0], plan=tmp_path / "a/plan.yaml"))
    both = verdict_of(judge(written(tmp_path / "b", twice, PLAN.replace("[t]", "[t, u]"))[0], plan=tmp_path / "b/plan.yaml"))
    assert both["se_samples"] == pytest.approx(alone["se_samples"]) and both["lo"] == pytest.approx(alone["lo"]) and both["n"] == alone["n"]


def test_several_kept_arms_go_through_holm(tmp_path):
    arms = {"full": (0.80, 3), "untrained": (0.5, 5, False, True)} | {f"k{i}": (0.80, 3) for i in range(4)}
    listed = "arms:\n  full: {}\n  untrained: {}\n" + "".join(f"  k{i}: {{is: kept}}\n" for i in range(4))
    plan = PLAN[: PLAN.index("arms:")] + listed + PLAN[PLAN.index("objectives") :]
    found = None
    for seed in range(12):  # until one of four level arms is "better" alone, as happens to 10 % of comparisons at worst
        rows = pq.read_table(judge(written(tmp_path / str(seed), table_of(arms, n=300, seed=seed), plan)[0], plan=tmp_path / str(seed) / "plan.yaml") / "verdicts.parquet").to_pylist()  # fmt: skip
        enough = [r for r in rows if r["question"] == "enough"]
        assert len(enough) == 4
        starred = [r for r in enough if r["word_alone"] != r["word"]]
        found = found or (starred[0] if starred else None)
        for r in starred:
            assert r["word_alone"] in ("better", "worse", "not worse") and r["word"] != "better" and "significant alone, not after Holm" in r["note"]
    assert found is not None and "*" in table(pa.Table.from_pylist([found], schema=schema()))


def spoiled(change):
    made = table_of(ARMS, n=40, seed=1)
    rows = made.to_pylist()
    change(rows)
    return pa.Table.from_pylist(rows, schema=made.schema)


def first(rows, **wanted):
    return next(i for i, r in enumerate(rows) if all(r[k] == v for k, v in wanted.items()))


def missing(rows):
    del rows[first(rows, arm="kept", run=1, sample_uid="t000007")]


def doubled(rows):
    rows.extend([r for r in rows if r["arm"] == "kept" and r["run"] == 2])


def not_a_number(rows):
    rows[first(rows, arm="random", run=0, sample_uid="t000003")]["value"] = float("nan")


def other_uids(rows):
    for r in rows:
        if r["arm"] == "full" and r["run"] == 1:
            r["sample_uid"] = "z" + r["sample_uid"]


def few_clusters(rows):
    for r in rows:
        r["cluster"] = "ab"[int(r["sample_uid"][1:]) % 2]


def moving_cluster(rows):
    for r in rows:
        r["cluster"] = str(int(r["sample_uid"][1:]) % 20)
    rows[-1]["cluster"] = "elsewhere"


def half_clustered(rows):
    rows[0]["cluster"] = "a"


def no_draw(rows):
    for r in rows:
        r["draw"] = None


def unknown_arm(rows):
    rows[0]["arm"] = "surprise"


def null_arm(rows):
    rows[5]["arm"] = None


def infinite(rows):
    rows[0]["value"] = float("inf")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (missing, "sample t000007 is missing in objective ce, arm kept, run 1, task t"),
        (doubled, r"row 680: stands twice \(objective ce, arm kept, run 2, task t, sample_uid t000000\)"),
        (not_a_number, r"row 243: value is nan \(objective ce, arm random, draw 0, run 0, task t, sample_uid t000003\)"),
        (other_uids, r"no such sample in 16 of 17 runs \(objective ce, arm full, run 1, task t, sample_uid zt000000\)"),
        (few_clusters, "task t has 2 clusters .*at least 10"),
        (moving_cluster, "row 679: cluster is elsewhere"),
        (half_clustered, "row 1: cluster is null"),
        (no_draw, "arm random: draw is null"),
        (unknown_arm, "row 0: arm 'surprise' is not in the plan"),
        (null_arm, "row 5: arm is null"),
        (infinite, "row 0: value is inf"),
        (lambda rows: rows.clear(), "holds no rows"),
        (lambda rows: [rows.remove(r) for r in list(rows) if r["arm"] == "random"], "holds nothing of arm 'random'"),
        (lambda rows: [r.update(objective="other") for r in rows], "holds nothing of objective 'ce'"),
    ],
)
def test_a_bad_table_is_refused_by_its_row(tmp_path, change, words):
    with pytest.raises(Refusal, match=words) as refused:
        judge(written(tmp_path, spoiled(change))[0], plan=tmp_path / "plan.yaml")
    assert refused.value.slug == "bad-scores"


def test_a_copied_run_is_refused(tmp_path):
    made = table_of(ARMS, n=200, seed=1)
    values, run, arm = (made[c].to_pylist() for c in ("value", "run", "arm"))
    copy = [v for v, r, a in zip(values, run, arm, strict=True) if a == "kept" and r == 0]
    start = next(i for i, (r, a) in enumerate(zip(run, arm, strict=True)) if a == "kept" and r == 2)
    values[start : start + 200] = copy
    with pytest.raises(Refusal, match="arm kept: runs 0 and 2 agree on every sample"):
        judge(written(tmp_path, made.set_column(7, "value", pa.array(values)))[0], plan=tmp_path / "plan.yaml")


def nearly_solved(made, changes):
    """The table's runs right on every sample, but for {(arm, run): samples that are wrong}."""
    rows = made.to_pylist()
    for row in rows:
        row["value"] = (
            float(int(row["sample_uid"][1:]) not in changes.get((row["arm"], row["run"]), ())) if row["arm"] != "untrained" else row["value"]
        )
    return pa.Table.from_pylist(rows, schema=made.schema)


def test_runs_that_agree_because_the_task_is_nearly_solved_are_no_copies(tmp_path):
    hard = {("kept", run): (1, 2) for run in range(3)} | {("full", run): (1, 2 + run) for run in range(3)}
    folder = judge(written(tmp_path, nearly_solved(table_of(ARMS, n=500), hard))[0], plan=tmp_path / "plan.yaml")
    assert "runs 0 and 1 agree on every sample (arm kept)" in verdict_of(folder)["note"]


@pytest.mark.parametrize("arms", [["kept"], ["kept", "full", "random"]])
def test_an_arm_of_copies_alone_is_refused_by_what_the_others_show_or_by_its_errors(tmp_path, arms):
    made = table_of(ARMS, n=300, seed=1)
    rows = made.to_pylist()
    first = {(r["arm"], r["sample_uid"]): r["value"] for r in reversed(rows)}
    for r in rows:
        r["value"] = first[r["arm"], r["sample_uid"]] if r["arm"] in arms else r["value"]
    with pytest.raises(Refusal, match="agree on every sample"):
        judge(written(tmp_path, pa.Table.from_pylist(rows, schema=made.schema))[0], plan=tmp_path / "plan.yaml")


def test_columns_and_files_are_checked(tmp_path):
    scores, plan = written(tmp_path, table_of(ARMS, n=40))
    pq.write_table(pq.read_table(scores).drop_columns(["value"]), scores)
    with pytest.raises(Refusal, match="has no column 'value'"):
        judge(scores, plan=plan)
    scores.write_text("no table")
    with pytest.raises(Refusal, match="is not a Parquet file"):
        judge(scores, plan=plan)
    with pytest.raises(Refusal, match="is not there"):
        judge(tmp_path / "nowhere.parquet", plan=plan)


def test_optional_columns_may_be_absent_and_row_order_is_no_matter(tmp_path):
    made = table_of({k: v for k, v in ARMS.items() if k != "random"}, n=500, seed=2)
    plan = PLAN.replace("  random: {}\n", "").replace("objectives: [ce]\n", "")
    slim = made.drop_columns(["objective", "draw", "cluster"])
    a = verdict_of(judge(written(tmp_path / "a", slim, plan)[0], plan=tmp_path / "a/plan.yaml"))
    shuffled = slim.take(pa.array(np.random.default_rng(0).permutation(slim.num_rows)))
    b = verdict_of(judge(written(tmp_path / "b", shuffled, plan)[0], plan=tmp_path / "b/plan.yaml"))
    assert {k: v for k, v in a.items() if k != "plan_digest"} == {k: v for k, v in b.items() if k != "plan_digest"}


def test_a_written_plan_reads_back_as_the_same_comparison(tmp_path):
    import yaml

    _, path = written(tmp_path, table_of(ARMS, n=40))
    plan = read_plan(path)
    path.write_text(yaml.safe_dump(plan.plain(), sort_keys=False))
    assert read_plan(path).digest == plan.digest


@pytest.mark.parametrize(("mean", "word"), [(0.85, "better"), (0.80, "not worse")])
def test_a_random_subset_that_does_as_well_is_said(tmp_path, mean, word):
    made = table_of({**ARMS, "kept": (0.85, 5), "full": (0.80, 5), "random": (mean, 6, True)}, n=6000, seed=1)
    folder = judge(written(tmp_path, made)[0], plan=tmp_path / "plan.yaml")
    assert verdict_of(folder)["word"] == "better" and verdict_of(folder, arm="random")["word"] == word
    assert f"random of the same size is {word} too" in verdict_of(folder)["note"]


def test_judge_knows_no_date_of_a_first_run(tmp_path):
    plan = PLAN + "record: {fixed: 2026-01-01}\n"
    said = verdict_of(judge(written(tmp_path, table_of(ARMS, seed=1), plan)[0], plan=tmp_path / "plan.yaml"))["sentence"]
    assert "as the plan states" in said and "before the first run" not in said
