"""Looks are counted: every evaluation of a comparison's test scores spends from its 5 % and stands in `looks.jsonl`."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from manifests.digest import digest
from manifests.errors import Refusal
from manifests.publish import publish_bytes
from pretrain.evidence.plan import Plan
from pretrain.evidence.scores import Scores
from pretrain.evidence.verdict import MIN_RUNS, Claims, Verdict, next_alpha

Key = tuple[str, str, str, str | None]  # objective, arm, reference, task (null: the suite)


@dataclass(frozen=True)
class Look:
    """One look: `number` from 1 (0: fewer than three runs, nothing is evaluated), the error it may spend (0: none is left), what was proved before."""

    number: int
    runs: int
    alpha: float
    before: dict[Key, Claims] = field(default_factory=dict)
    spent: dict[int, float] = field(default_factory=dict)
    exploratory: bool = False


def scores_digest(scores: Scores) -> str:
    """Digest of all scores, whatever the order of rows in their table."""
    sha = hashlib.sha256()
    for objective in sorted(scores.arms):
        for arm in sorted(scores.arms[objective]):
            of_arm = scores.arms[objective][arm]
            sha.update(json.dumps([objective, arm, of_arm.runs]).encode())
            for task in scores.tasks:
                sha.update(json.dumps([task.name, task.uids, task.cluster]).encode())
                sha.update(of_arm.values[task.name].tobytes())
    return sha.hexdigest()


def read_looks(folder: Path) -> list[dict]:
    """The rows of `looks.jsonl`, oldest first; none where there is no file. Raises `Refusal` [broken-record]: what was spent must not be forgotten."""
    path = folder / "looks.jsonl"
    if not path.is_file():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if all(isinstance(row["look"], int) for row in rows):
            return rows
    except (ValueError, KeyError, TypeError):
        pass
    cure = "Bring it back from a copy: it says which looks were taken, and what error they spent"
    raise Refusal("broken-record", str(path), "is damaged", "one JSON object a line", cure)


def open_look(folder: Path, plan: Plan, scores: Scores, runs: int) -> Look:
    """The look that judging `scores` is: an old one if the same scores were judged before, else the next, with the error it may spend.

    runs    runs of the smallest trained arm; fewer than three are no look, since nothing is evaluated
    """
    past = read_looks(folder)
    exploratory = _seen_elsewhere(folder, plan)
    if runs < MIN_RUNS:
        return Look(0, runs, 0.0, exploratory=exploratory)
    identity = scores_digest(scores)
    same = [row for row in past if row["scores"] == identity]
    earlier = [row for row in past if not same or row["look"] < same[0]["look"]]
    proved: dict[Key, Claims] = {}
    for row in earlier:
        for objective, arm, reference, task, claims in row["proved"]:
            key = (objective, arm, reference, task)
            proved[key] = proved.get(key, Claims()) | Claims(*claims)
    spent = {row["runs"]: row["alpha"] for row in past if row["alpha"]}
    if same:
        return Look(same[0]["look"], runs, same[0]["alpha"], proved, spent, exploratory)
    alpha = 0.0 if runs in spent else next_alpha(spent, runs, plan.looks)
    return Look(len(past) + 1, runs, alpha, proved, {**spent, **({runs: alpha} if alpha else {})}, exploratory)


def record_look(folder: Path, plan: Plan, look: Look, scores: Scores, verdicts: Sequence[Verdict]) -> None:
    """Write the look down, once."""
    past = read_looks(folder)
    if look.number == 0 or any(row["look"] == look.number for row in past):
        return
    proved = [
        [v.objective, v.arm, v.reference, v.task, [v.claims.better, v.claims.not_worse, v.claims.worse]] for v in verdicts if v.claims != Claims()
    ]
    row = {
        "look": look.number, "runs": look.runs, "alpha": look.alpha, "plan": plan.digest, "design": digest(plan.design()),
        "inquiry": _inquiry(plan), "tests": _tests(plan), "scores": scores_digest(scores), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "proved": proved,
    }  # fmt: skip
    publish_bytes(folder / "looks.jsonl", "".join(json.dumps(r) + "\n" for r in [*past, row]).encode())


def _inquiry(plan: Plan) -> str:
    """What is asked, whatever the seed, the draws, the tasks, the margin and the looks."""
    sets = plan.record.get("sets", {})
    asked = sorted(f"{arm.is_a} {sets.get(arm.name, arm.name)}" for arm in plan.of_kind("full", "kept"))
    return digest("inquiry", asked, plan.objectives, plan.budget, plan.training)


def _tests(plan: Plan) -> list[str]:
    """The test pool of each task: its content, else its path, else the task's name."""
    paths = [str(task.get("test") or task["name"]) for task in plan.tasks]
    return sorted({plan.record.get("sets", {}).get(f"pool at {path}", path) for path in paths})


def _seen_elsewhere(folder: Path, plan: Plan) -> bool:
    """The same sets were asked about before, on one of the same test pools, under another plan: what is found now is exploratory."""
    design, inquiry, tests = digest(plan.design()), _inquiry(plan), set(_tests(plan))
    return any(
        row["design"] == design or (row.get("inquiry") == inquiry and not tests.isdisjoint(row["tests"]))
        for sibling in (folder.parent.glob("*/looks.jsonl") if folder.parent.is_dir() else ())
        if sibling.parent.name != folder.name
        for row in read_looks(sibling.parent)
    )
