"""`pretrain judge SCORES --plan PLAN`: the same verdict for anybody's score table, whoever trained."""

from pathlib import Path

from manifests.digest import digest
from manifests.publish import locked, publish_bytes
from pretrain.evidence.looks import open_look, record_look, scores_digest
from pretrain.evidence.plan import TRAINED, Plan, read_plan
from pretrain.evidence.plot import intervals_svg
from pretrain.evidence.questions import Facts, answer
from pretrain.evidence.scores import Scores, fold, read_scores
from pretrain.evidence.table import write_verdicts
from pretrain.evidence.verdict import Verdict


def judge(scores: Path, *, plan: Path, out: Path | None = None) -> Path:
    """Judge the score table SCORES by PLAN and return the folder with verdicts.parquet, intervals.svg and looks.jsonl.

    The verb prints `pretrain.evidence.table.table(folder)`.

    scores  Parquet, one row for each test sample of each run: arm, run, task, sample_uid, value; objective, draw and cluster where they apply
            (`pretrain.evidence.scores.SCHEMA`). value is correctness, recall of a query, or a pseudo-value (`intervals.pseudo_values`)
    plan    the YAML plan: arms, tasks, margin, looks; what only training needs may be absent
    out     where the evidence goes; default `evidence/<plan digest>` beside SCORES
    Guarantee   judging the same scores again is the same look; other scores under the same plan are the next one, and spend its error
    Errors      `Refusal` [bad-scores] naming the row: a missing, foreign or doubled sample, NaN, fewer than ten clusters, an arm not in the plan;
                [bad-plan], [no-such-file]. Fewer than three runs are no error: the word is "cannot tell".
    """
    checked = read_plan(plan)
    table = read_scores(scores)
    folded = fold(table, str(scores), list(checked.objectives) or None)
    folder = out or scores.parent / "evidence" / checked.digest[:16]
    with locked(folder):
        evaluate(folder, checked, folded, Facts())
    return folder


def evaluate(folder: Path, plan: Plan, scores: Scores, facts: Facts) -> list[Verdict]:
    """Take the look that `scores` are, write it down, then verdicts.parquet and intervals.svg; the caller holds the folder's lock."""
    smallest = min(
        len({draw for draw, _ in a.runs} if plan.arm(n).drawn else a.runs) for arms in scores.arms.values() for n, a in _trained(arms, plan)
    )
    look = open_look(folder, plan, scores, smallest)
    verdicts = answer(scores, plan, look, facts)
    record_look(folder, plan, look, scores, verdicts)
    write_verdicts(folder / "verdicts.parquet", verdicts, digest("verdicts", plan.digest, scores_digest(scores), look.number))
    publish_bytes(folder / "intervals.svg", intervals_svg(verdicts, scores).encode())
    return verdicts


def _trained(arms: dict, plan: Plan) -> list:
    return [(name, of_arm) for name, of_arm in arms.items() if any(a.name == name and a.is_a in TRAINED for a in plan.arms)]
