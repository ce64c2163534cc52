"""`pretrain judge SCORES --plan PLAN`: the same verdict for anybody's score table, whoever trained."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.digest import digest
from manifests.errors import Refusal
from manifests.publish import locked, publish_bytes
from pretrain.evidence.looks import Look, open_look, read_looks, record_look, scores_digest
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
    Guarantee   judging the same scores again is the same look; other scores under the same plan are the next one, and spend its error. Each objective is a
                family of its own, and in it each question: the error is shared by the rows of one family, not over objectives or questions
    Errors      `Refusal` [bad-scores] naming the row: a missing, foreign or doubled sample, NaN, fewer than ten clusters, an arm not in the plan, a run that is a copy;
                [bad-plan], [no-such-file]. Fewer than three runs are no error: the word is "cannot tell".
    """
    checked = read_plan(plan)
    table = read_scores(scores)
    _check_arms(table, checked, str(scores))
    folded = fold(table, str(scores), list(checked.objectives) or None)
    folder = out or scores.parent / "evidence" / checked.digest[:16]
    with locked(folder):
        if not evaluate(folder, checked, folded, Facts()):
            runs, looks = _smallest(checked, folded), ", ".join(map(str, checked.looks))
            given = f"a look at {runs} runs is not declared, and all error is spent or promised to those that are"
            cure = "The words of the last look stand" if read_looks(folder) else "Judge again at one of these numbers"
            raise Refusal("bad-plan", str(scores), given, f"looks at {looks} runs", cure)
    return folder


def _check_arms(table: pa.Table, plan: Plan, where: str) -> None:
    planned = [arm.name for arm in plan.arms]
    foreign = np.flatnonzero(pc.invert(pc.is_in(table["arm"], pa.array(planned))).to_numpy())
    if len(foreign):
        given = f"arm {table['arm'][int(foreign[0])].as_py()!r} is not in the plan"
        raise Refusal("bad-scores", f"{where}: row {foreign[0]}", given, f"its arms: {', '.join(planned)}")


def evaluate(folder: Path, plan: Plan, scores: Scores, facts: Facts) -> bool:
    """Take the look that `scores` are, write it down, then verdicts.parquet and intervals.svg; the caller holds the folder's lock.

    False where no error is left for it: nothing is evaluated then, and the words of the last look stand as they are.
    """
    look = open_look(folder, plan, scores, _smallest(plan, scores))
    if look.number and not look.alpha:
        return False
    verdicts = answer(scores, plan, look, facts)
    record_look(folder, plan, look, scores, verdicts)
    _write(folder, plan, scores, look, verdicts)
    return True


def wait(folder: Path, plan: Plan, scores: Scores, facts: Facts) -> None:
    """Write the means and no interval: between two looks nothing is evaluated, so nothing is spent."""
    look = Look(0, _smallest(plan, scores), 0.0)
    _write(folder, plan, scores, look, answer(scores, plan, look, facts))


def _write(folder: Path, plan: Plan, scores: Scores, look: Look, verdicts: list[Verdict]) -> None:
    write_verdicts(folder / "verdicts.parquet", verdicts, digest("verdicts", plan.digest, scores_digest(scores), look.number))
    publish_bytes(folder / "intervals.svg", intervals_svg(verdicts).encode())


def _smallest(plan: Plan, scores: Scores) -> int:
    """Runs of the smallest arm that is trained and not drawn: how far the comparison is."""
    names = [arm.name for arm in plan.of_kind(*TRAINED) if not arm.drawn]
    return min((len(arms[name].runs) for arms in scores.arms.values() for name in names if name in arms), default=0)
