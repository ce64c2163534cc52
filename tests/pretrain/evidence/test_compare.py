"""The order of runs, the sets they train on, resuming, looks, and the files that stay."""

import json
import os
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from scipy import stats

from manifests.errors import Refusal
from manifests.publish import locked, published_digest
from pretrain.evidence.arms import kept_rows, read_ledger
from pretrain.evidence.compare import _open, compare
from pretrain.evidence.judge import judge
from pretrain.evidence.plan import read_plan
from pretrain.evidence.scores import fold, without
from pretrain.evidence.table import schema, table
from pretrain.evidence.verdict import points

from .score_tables import table_of
from .test_arms import ROWS, write_run

MEANS = {"full": 0.80, "kept": 0.80, "random": 0.74, "random_clean": 0.77, "untrained": 0.4, "raw_pixels": 0.6}
N = 1200
PLAN = {
    "format": 1,
    "arms": {
        "full": {},
        "kept": {},
        "random": {"draws_per_seed": 1},
        "random_clean": {"draws_per_seed": 1},
        "untrained": {"runs": 4},
        "raw_pixels": {},
    },
    "objectives": {"cross_entropy": {"projector": True}, "look": {}},
    "tasks": [
        {"name": "knn", "train": "pools/train", "test": "pools/test", "probe": "knn"},
        {"name": "linear", "train": "pools/train", "test": "pools/test", "probe": "linear"},
    ],
    "budget": {"samples_seen": 6000},
    "training": {"backbone": "timm:test_resnet", "resolution": 28, "batch": 128},
    "margin": {"retain": 0.9},
    "seeds": 3,
    "looks": [3, 5],
    "jobs": 1,
}


class Lab:
    """A trainer that costs nothing: scores with the arm's mean; notes what it was asked, and stops where told."""

    def __init__(self, stop_after=None, means=MEANS):
        self.asked, self.stop_after, self.means = [], stop_after, means
        self.hardness = np.random.default_rng(0).normal(size=N)

    def __call__(self, arm, seed, objective):
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked.append((arm, seed, objective))
        rng = np.random.default_rng([list(MEANS).index(arm), seed, len(objective)])
        columns = {"task": [], "sample_uid": [], "value": []}
        for task in ("knn", "linear"):
            p = stats.norm.cdf(stats.norm.ppf(self.means[arm]) * np.sqrt(3) + np.sqrt(2) * self.hardness)
            columns["task"] += [task] * N
            columns["sample_uid"] += [f"{i:032x}" for i in range(N)]
            columns["value"] += (rng.random(N) < p).astype(float).tolist()
        return pa.table(columns)


@pytest.fixture
def plan(tmp_path):
    def write(name="plan.yaml", **changes):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({**PLAN, "run": str(tmp_path / "run"), **changes}, sort_keys=False))
        return path

    write_run(tmp_path / "run", ROWS, evaluations={"test": str(tmp_path / "pools" / "test")})
    return write


def test_one_seed_of_every_arm_then_the_next(plan):
    lab = Lab()
    folder = compare(plan(), runner=lab)
    assert lab.asked[:5] == [*(("untrained", s, "") for s in range(4)), ("raw_pixels", 0, "")]
    trained = ("full", "kept", "random", "random_clean")
    assert lab.asked[5:] == [(arm, s, o) for s in range(3) for o in ("cross_entropy", "look") for arm in trained]
    scores = pq.read_table(folder / "scores.parquet")
    assert scores.num_rows == len(lab.asked) * 2 * N and scores.column_names[:4] == ["objective", "arm", "draw", "run"]
    text = table(folder)
    assert (
        "The proof cost 24.0 trainings on the full pool. At equal samples seen both cost the same to train; cheaper equal-epoch training was not tested."
        in text
    )
    assert "look (6,000 samples seen, queue 16, k 2, look 1)" in text and "cross_entropy (6,000 samples seen, look 1)" in text
    assert text.count("than random of the same size from the raw pool on") == text.count("than random of the same size from the cleaned pool on") == 2
    assert text.count("look 1)") == 2 and "73 % fewer training samples" in text and "147" in text and "40" in text  # rows of full and of kept
    rows = pq.read_table(folder / "verdicts.parquet").to_pylist()
    word = {(r["objective"], r["arm"], r["reference"]): r["word"] for r in rows if r["scope"] == "suite"}
    assert word["look", "kept", "random"] == "better" and word["look", "full", "raw_pixels"] == "better"
    kept = next(r for r in rows if (r["arm"], r["reference"]) == ("kept", "full"))
    assert (
        kept["rows_arm"] == 40
        and kept["rows_ref"] == 147
        and kept["proof_cost"] == 24
        and kept["pays_back"] is None
        and kept["fixed_on"] in kept["sentence"]
    )
    assert sorted(p.name for p in folder.iterdir() if p.name[0] != ".") == ["events.jsonl", "intervals.svg", "looks.jsonl", "plan.yaml", "runs", "scores.parquet", "verdicts.parquet"]  # fmt: skip
    assert read_plan(folder / "plan.yaml").digest.startswith(folder.name) and folder.parent.name == "evidence"


def test_a_stopped_comparison_goes_on_where_it_stopped(plan, tmp_path):
    whole = compare(plan("whole.yaml"), out=tmp_path / "whole", runner=Lab())
    first = Lab(stop_after=11)
    with pytest.raises(KeyboardInterrupt):
        compare(plan(), runner=first)
    second = Lab()
    folder = compare(plan(), runner=second)
    assert len(first.asked) == 11 and first.asked + second.asked == [*first.asked, *second.asked] and len(second.asked) == 29 - 11
    for name in ("scores.parquet", "verdicts.parquet", "intervals.svg"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    third, before = Lab(), {p: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}
    assert compare(plan(), runner=third) == folder and third.asked == []
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("*.parquet")}


def test_a_spoiled_run_is_made_again_and_nothing_else(plan):
    folder = compare(plan(), runner=Lab())
    before = (folder / "verdicts.parquet").read_bytes()
    (folder / "runs/look/kept/1/scores.parquet").write_bytes(b"half")
    lab = Lab()
    compare(plan(), runner=lab)
    assert lab.asked == [("kept", 1, "look")] and (folder / "verdicts.parquet").read_bytes() == before


def test_means_but_no_interval_before_and_between_looks(plan, monkeypatch):
    seen = []

    def look(folder, *rest):
        seen.append(pq.read_table(folder / "verdicts.parquet").to_pylist() if (folder / "verdicts.parquet").exists() else None)
        return real(folder, *rest)

    import pretrain.evidence.compare as module

    real = module._judge_round.__globals__["evaluate"]
    monkeypatch.setattr(module, "evaluate", look)
    folder = compare(plan(), runner=Lab())
    before = seen[0]
    assert before and all(r["lo"] is None and r["word"] == "cannot tell" and r["mean_arm"] is not None for r in before)
    assert "needs at least 3 runs" in before[0]["note"] and "the first look, at 3 runs, is likely to see a difference of" in before[0]["note"]
    assert before[0]["look"] == 0
    shown = table(pa.Table.from_pylist(before, schema=schema()))
    assert "80" in shown and not re.search(r"[+−]\d", shown)  # means, no differences
    assert len((folder / "looks.jsonl").read_text().splitlines()) == 1


def test_more_seeds_are_the_same_comparison_at_the_next_look(plan):
    folder = compare(plan(), runner=Lab())
    lab = Lab()
    assert compare(plan(), seeds=4, runner=lab) == folder  # four is no declared look: the words stand
    assert {s for _, s, _ in lab.asked} == {3} and len((folder / "looks.jsonl").read_text().splitlines()) == 1
    assert compare(plan(), seeds=5, runner=Lab()) == folder
    looks = [json.loads(line) for line in (folder / "looks.jsonl").read_text().splitlines()]
    assert [(r["runs"], r["alpha"]) for r in looks] == [(3, 0.025), (5, 0.025)]
    before = (folder / "verdicts.parquet").read_bytes()
    compare(plan(), runner=Lab())  # the plan's three seeds again: the look at five is not taken back
    assert (folder / "verdicts.parquet").read_bytes() == before


def test_another_margin_is_another_folder_that_trains_nothing_again(plan):
    folder = compare(plan(), runner=Lab())
    lab = Lab()
    other = compare(plan("other.yaml", margin={"retain": 0.8}), runner=lab)
    assert other != folder and lab.asked == []
    assert os.path.samefile(folder / "runs/look/kept/0/scores.parquet", other / "runs/look/kept/0/scores.parquet")
    assert "exploratory" in pq.read_table(other / "verdicts.parquet")["note"][0].as_py()
    assert "before the first run" in table(folder) and "before the first run" not in table(other) and "as the plan states" in table(other)


@pytest.mark.parametrize("changes", [{"seed": 7}, {"tasks": PLAN["tasks"][:1]}, {"arms": {**PLAN["arms"], "random": {"draws_per_seed": 2}}}])
def test_another_seed_draw_or_task_after_a_look_is_exploratory(plan, changes):
    compare(plan(), runner=Lab())

    class Some(Lab):
        def __call__(self, *asked):
            made = super().__call__(*asked)
            return made.slice(0, N) if "tasks" in changes else made

    other = compare(plan("other.yaml", **changes), runner=Some())
    assert "exploratory" in pq.read_table(other / "verdicts.parquet")["note"][0].as_py()


def test_a_run_that_was_linked_says_no_date_even_before_a_look(plan):
    with pytest.raises(KeyboardInterrupt):
        compare(plan(), runner=Lab(stop_after=20))
    other = compare(plan("other.yaml", margin={"retain": 0.8}), runner=Lab())
    rows = pq.read_table(other / "verdicts.parquet").to_pylist()
    assert not any("exploratory" in r["note"] for r in rows) and all(r["fixed_on"] is None for r in rows)


def test_another_budget_trains_again(plan):
    compare(plan(), runner=Lab())
    lab = Lab()
    compare(plan("other.yaml", budget={"samples_seen": 7000}), runner=lab)
    assert len(lab.asked) == 24  # all but untrained and raw pixels


def test_judge_says_the_same_of_its_scores(plan, tmp_path):
    folder = compare(plan(), runner=Lab())
    again = judge(folder / "scores.parquet", plan=folder / "plan.yaml", out=tmp_path / "again")
    mine, theirs = (pq.read_table(f / "verdicts.parquet") for f in (folder, again))
    for name in ("arm", "reference", "word", "lo", "hi", "df", "retained_lo", "plan_digest"):
        assert mine[name].equals(theirs[name])


def test_what_each_run_is_given(plan, tmp_path):
    comparison = _open(read_plan(plan()), None, None, None)
    by_arm = {r.arm: comparison.work(r, "cpu") for r in comparison.runs if r.objective in (None, "look")}
    assert by_arm["raw_pixels"].checkpoint == "pixels:28" and by_arm["raw_pixels"].config is None
    assert by_arm["untrained"].checkpoint == "untrained:timm:test_resnet@28?seed=3"
    kept, full, random = (by_arm[name].config for name in ("kept", "full", "random"))
    assert "uids" not in kept and kept["data"] == [str(tmp_path / "run")] and kept["seed"] == 2 and kept["smallest_arm"] == 40
    assert kept["objective"] == {"name": "look"} and kept["batch"] == 128 and kept["samples_seen"] == 6000 and kept["threads"] == 1
    assert pq.read_table(full["uids"]).num_rows == 147
    assert random["uids"].endswith("random-2.parquet") and pq.read_table(random["uids"]).num_rows == 40
    drawn = {
        name: set(pq.read_table(comparison.folder / "draws" / f"{name}.parquet")["uid"].to_pylist())
        for name in ("random-0", "random-1", "random_clean-0")
    }
    assert drawn["random-0"] != drawn["random-1"]
    assert not drawn["random_clean-0"] <= set(kept_rows(read_ledger(tmp_path / "run")))
    changed = {k: v for k, v in kept.items() if k not in ("seed", "out", "uids")}
    assert changed == {k: v for k, v in random.items() if k not in ("seed", "out", "uids")}  # one training for every arm


def test_equal_epochs_scale_the_budget_and_save_compute(plan):
    comparison = _open(read_plan(plan(budget={"epochs": 10})), None, None, None)
    seen = {arm.name: comparison.samples_seen(arm) for arm in comparison.plan.of_kind("full", "kept", "random")}
    assert seen == {"full": 1470, "kept": 400, "random": 400}
    folder = compare(plan(budget={"epochs": 10}), runner=Lab())
    kept = next(r for r in pq.read_table(folder / "verdicts.parquet").to_pylist() if (r["arm"], r["reference"]) == ("kept", "full"))
    assert "At equal epochs `kept` has paid for it after" in table(folder) and kept["pays_back"] == pytest.approx(kept["proof_cost"] / (1 - 40 / 147))
    assert kept["compute_saved_samples"] == pytest.approx(1 - 40 / 147) and kept["proof_cost"] == pytest.approx(2 * 3 * (1 + 3 * 400 / 1470))


def test_draws_per_seed_and_arms_of_two_runs(plan, tmp_path):
    write_run(tmp_path / "second", [*ROWS[:-10], *[("dropped", "select.random", 0)] * 10])
    arms = {"full": {}, "a": {"is": "kept"}, "b": {"is": "kept", "run": str(tmp_path / "second")}}
    arms |= {"ra": {"is": "random", "like": "a"}, "rb": {"is": "random", "like": "b"}, "untrained": {}}
    comparison = _open(read_plan(plan(arms=arms)), None, None, None)
    assert len(comparison.sets["a"]) == 40 and len(comparison.sets["b"]) == 30
    assert len([r for r in comparison.runs if r.arm == "ra"]) == 2 * 3 * 2  # 27 % of the pool: two draws a seed
    assert len([r for r in comparison.runs if r.arm == "rb"]) == 2 * 3 * 2
    assert str(comparison.ledgers["rb"].path) == str(tmp_path / "second")
    few = write_run(tmp_path / "few", [*ROWS[:-20], *[("dropped", "select.random", 0)] * 20])
    comparison = _open(read_plan(plan(arms={"kept": {}, "random": {}}, margin=None)), few, None, None)
    assert len([r for r in comparison.runs if r.arm == "random"]) == 2 * 3 * 3  # 14 %: three


def test_leaks_are_counted(plan, tmp_path):
    tasks = [{**t, "test": str(tmp_path / "pools" / "test")} for t in PLAN["tasks"]]
    lab = Lab()
    real = lab.__call__

    def with_leaks(arm, seed, objective):
        made = real(arm, seed, objective)
        uids = [{f"{0:032x}": "e1", f"{1:032x}": "e2"}.get(u, u) for u in made["sample_uid"].to_pylist()]
        return made.set_column(1, "sample_uid", pa.array(uids))

    folder = compare(plan(tasks=tasks), runner=with_leaks)
    row = pq.read_table(folder / "verdicts.parquet").to_pylist()[0]
    assert row["leakage_rate"] == pytest.approx(2 / N) and row["clean_n"] == N - 2

    scores = pq.read_table(folder / "scores.parquet").to_pylist()
    assert (row["arm"], row["reference"], row["task"]) == ("kept", "full", None)
    one, two = ([r["value"] for r in scores if r["objective"] == row["objective"] and r["arm"] == arm and r["sample_uid"] not in ("e1", "e2")] for arm in ("kept", "full"))  # fmt: skip
    assert row["clean_diff"] == pytest.approx(np.mean(one) - np.mean(two)) and row["clean_lo"] < row["clean_diff"] < row["clean_hi"]
    assert row["clean_diff"] != pytest.approx(row["diff"], abs=1e-12) and row["clean_hi"] - row["clean_lo"] > 0.9 * (row["hi"] - row["lo"])
    told = f"{100 * 2 / N:.2g} % of the test samples stand in the pool: without them {points(row['clean_diff'])} pt"
    assert told in row["sentence"] and told in table(folder)


def test_nothing_is_told_of_leaks_where_there_are_none(plan):
    for row in pq.read_table(compare(plan(), runner=Lab()) / "verdicts.parquet").to_pylist():
        assert not row["leakage_rate"] and row["clean_diff"] is None and "stand in the pool" not in row["sentence"]


def test_fewer_seeds_than_the_first_of_two_looks_are_shown_and_not_judged(plan):
    folder = compare(plan(looks=[5, 10]), runner=Lab())
    rows = pq.read_table(folder / "verdicts.parquet").to_pylist()
    assert not (folder / "looks.jsonl").exists() and {r["word"] for r in rows} == {"cannot tell"} and all(r["lo"] is None for r in rows)
    assert "no look at 3 runs; the plan looks at 5, 10" in rows[0]["note"]


@pytest.mark.parametrize("clustered", [False, True])
def test_the_clean_part_is_the_table_without_the_samples_that_leaked(clustered):
    made = table_of({"full": (0.8, 3), "kept": (0.8, 3)}, n=200, tasks=("t", "u"))
    if clustered:
        made = made.set_column(6, "cluster", pa.array([f"c{hash_of % 23}" for hash_of in (int(u[1:]) ** 2 for u in made["sample_uid"].to_pylist())]))
    hit = {"t": {"t000003", "t000120"}}
    found = without(fold(made, "made"), hit)
    gone = {c for u, c in zip(made["sample_uid"].to_pylist(), made["cluster"].to_pylist(), strict=True) if u in hit["t"]} if clustered else set()
    stays = [r for r in made.to_pylist() if r["sample_uid"] not in hit["t"] and not (r["task"] == "t" and r["cluster"] in gone)]
    asked = fold(pa.Table.from_pylist(stays, schema=made.schema), "stays")
    assert [t.uids for t in found.tasks] == [t.uids for t in asked.tasks] and [t.cluster for t in found.tasks] == [t.cluster for t in asked.tasks]
    for arm, of_arm in asked.arms["ce"].items():
        for task, values in of_arm.values.items():
            np.testing.assert_allclose(found.arms["ce"][arm].values[task], values)


def test_there_is_no_clean_part_where_nearly_every_sample_leaked():
    made = table_of({"full": (0.8, 3), "kept": (0.8, 3)}, n=20)
    assert without(fold(made, "made"), {"t": set(made["sample_uid"].to_pylist()) - {"t000000"}}) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"run": None}, "run: is absent"),
        ({"objectives": None}, "objectives: is absent"),
        ({"budget": None}, "budget: is absent"),
        ({"arms": {"full": {}, "kept": {"selector": True}, "untrained": {}}}, "selector: true"),
        ({"arms": {"kept": {}, "random_clean": {"clean_after": "dedup.no"}}, "margin": None}, "is no stage of"),
    ],
)
def test_a_plan_without_what_training_needs_is_refused(plan, changes, words):
    with pytest.raises(Refusal, match=words) as refused:
        compare(plan(**changes), runner=Lab())
    assert refused.value.slug == "bad-plan"


def test_one_writer(plan):
    folder = compare(plan(), runner=Lab())
    with locked(folder), pytest.raises(Refusal, match="one writer at a time"):
        compare(plan(), seeds=5, runner=Lab())


def test_scores_carry_the_digest_of_what_they_were_made_from(plan):
    folder = compare(plan(), runner=Lab())
    comparison = _open(read_plan(plan()), None, None, None)
    for run in comparison.runs:
        assert published_digest(folder / run.folder / "scores.parquet") == comparison.identity(run)
    assert len({comparison.identity(r) for r in comparison.runs}) == len(comparison.runs)


def test_other_labels_at_the_same_path_are_trained_again(plan, tmp_path):
    import shutil

    folder = compare(plan(), runner=Lab())
    shutil.move(tmp_path / "run" / "evidence", tmp_path / "evidence")
    shutil.rmtree(tmp_path / "run")
    write_run(tmp_path / "run", [(*row[:2], 2 - row[2], *row[3:]) for row in ROWS], evaluations={"test": str(tmp_path / "pools" / "test")})
    shutil.move(tmp_path / "evidence", tmp_path / "run" / "evidence")
    lab = Lab()
    other = compare(plan(), runner=lab)
    assert other != folder and len(lab.asked) == 24  # all but untrained and raw pixels


def test_another_test_pool_at_the_same_path_is_tested_again(plan, tmp_path):
    import shutil

    from tests.pretrain.pictures import digit_pngs, write_pool

    pictures, labels = digit_pngs(40)
    tasks = [{**task, "train": str(tmp_path / "train"), "test": str(tmp_path / "test")} for task in PLAN["tasks"]]
    write_pool(tmp_path / "train", pictures[:20], labels[:20])
    write_pool(tmp_path / "test", pictures[20:30], labels[20:30])
    folder = compare(plan(tasks=tasks), runner=Lab())
    shutil.rmtree(tmp_path / "test")
    write_pool(tmp_path / "test", pictures[30:], labels[30:])
    lab = Lab()
    assert compare(plan(tasks=tasks), runner=lab) != folder and len(lab.asked) == 29


def test_the_verdicts_tell_where_two_sides_were_not_made_on_one_device(plan, monkeypatch):
    """A comparison that was begun on one machine and ended on another."""
    from pretrain.evidence.runs import publish_scores

    class Moved(Lab):
        where = "cuda"

    def work_at_once(comparison, run, runner):
        device = {} if run.objective is None else {"device": runner.where}
        publish_scores(
            comparison.folder / run.folder / "scores.parquet", runner(run.arm, run.seed, run.objective or ""), comparison.identity(run), device
        )

    monkeypatch.setattr("pretrain.evidence.compare._at_once", work_at_once)
    on_one = compare(plan(), runner=Moved())
    assert "different devices" not in table(on_one)
    (on_one / "runs/look/kept/2/scores.parquet").unlink()
    lab = Moved()
    lab.where = "cpu"
    folder = compare(plan(), seeds=5, runner=lab)
    told = {(r["objective"], r["arm"], r["reference"]): r["sentence"] for r in pq.read_table(folder / "verdicts.parquet").to_pylist()}
    assert "made on different devices: kept 3 on cpu, 2 on cuda; full 2 on cpu, 3 on cuda" in told["look", "kept", "full"]
    assert "made on different devices: full 2 on cpu, 3 on cuda." in told["look", "full", "untrained"]


def test_a_raised_version_trains_again(plan, monkeypatch):
    from pretrain.tables import OBJECTIVES

    compare(plan(), runner=Lab())
    monkeypatch.setitem(OBJECTIVES, "look", OBJECTIVES["look"]._replace(version=9))
    lab = Lab()
    compare(plan(), runner=lab)
    assert {o for _, _, o in lab.asked} == {"look"} and len(lab.asked) == 12
