"""From scores and plan to the rows of `verdicts.parquet`: which arm is asked against which, and what is said of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from manifests.errors import Refusal
from pretrain.evidence import power
from pretrain.evidence.alike import alike
from pretrain.evidence.intervals import (
    ALPHA,
    Arm,
    Array,
    Contrast,
    Moments,
    contrast,
    crossed_bootstrap,
    merge_tasks,
    moments,
    retained,
    tasks_as_sample,
)
from pretrain.evidence.looks import Key, Look
from pretrain.evidence.plan import TRAINED, Plan, PlannedArm
from pretrain.evidence.scores import ArmScores, Scores, Task, same_samples, without
from pretrain.evidence.verdict import (
    BETTER,
    CANNOT_TELL,
    MIN_RUNS,
    NOT_WORSE,
    Claims,
    Question,
    Verdict,
    decide,
    device_words,
    next_alpha,
    points,
    sentence,
    shifted,
    standing,
    tau,
    word,
)

FAMILIES = {"random": "earned", "random_clean": "clean", "random_shares": "shares"}
SAID = {
    "full": "the full pool",
    "random": "random of the same size from the raw pool",
    "random_clean": "random of the same size from the cleaned pool",
    "random_shares": "random with the same class shares",
    "untrained": "the untrained network",
    "raw_pixels": "raw pixels",
}


@dataclass(frozen=True)
class Facts:
    """What the scores cannot say: rows of each arm, trainings that the proof cost, share of each task's test samples found in the pool."""

    rows: dict[str, int] = field(default_factory=dict)
    proof_cost: float | None = None
    proof_seconds: float | None = None
    leakage: dict[str, float] = field(default_factory=dict)
    leaked: dict[str, frozenset[str]] = field(default_factory=dict)  # the samples that this share is of
    fixed_on: str | None = None
    settings: dict[str, str] = field(default_factory=dict)  # objective -> what it took by default from the comparison's sizes
    devices: dict[tuple[str | None, str], list[str]] = field(default_factory=dict)  # (objective, arm) -> of each run, "" = unknown


@dataclass(frozen=True)
class Scope:
    """One objective's arms on the suite (task is None) or on one task."""

    task: Task | None
    names: tuple[str, ...]
    arms: tuple[Arm, ...]
    draws: tuple[int | None, ...]
    weights: tuple[float, ...]
    moments: Moments
    units: int
    clusters: int | None
    num_tasks: int

    def at(self, name: str) -> int:
        return self.names.index(name)

    def runs(self, name: str) -> float:
        i = self.at(name)
        return np.inf if self.arms[i].fixed else self.moments.runs[i].shape[-1]

    def contrast(self, terms: dict[str, float], alpha: float) -> Contrast:
        c = np.zeros(len(self.names))
        for name, factor in terms.items():
            c[self.at(name)] += factor
        return contrast(self.moments, c, alpha=alpha)

    def mean(self, name: str) -> float:
        return float(self.moments.runs[self.at(name)].mean())


Asked = tuple[Verdict, Question, Scope]


def pairs(plan: Plan) -> list[tuple[PlannedArm, PlannedArm, str]]:
    """(arm, reference, question), in the order of the table: enough and earned first, anchors last."""
    full = plan.of_kind("full")
    asked = []
    for kept in plan.of_kind("kept"):
        asked += [(kept, reference, "enough") for reference in full]
        asked += [(kept, r, FAMILIES[r.is_a]) for r in plan.arms if r.drawn and r.like == kept.name]
    for drawn in (arm for arm in plan.arms if arm.drawn):
        asked += [(drawn, reference, "control") for reference in full]
        if drawn.is_a == "random_clean":
            asked += [(drawn, r, "control") for r in plan.of_kind("random") if r.like == drawn.like]
    for arm in plan.of_kind(*TRAINED):
        asked += [(arm, reference, "anchor") for reference in plan.of_kind("untrained", "raw_pixels")]
    return asked


def answer(scores: Scores, plan: Plan, look: Look, facts: Facts) -> list[Verdict]:
    """Every row of the table, for every objective: the suite first, then its tasks (where there are several).

    Guarantee   per objective, question and look at most alpha false words on the suite (Holm over kept arms), and per arm over its tasks (Holm).
    """
    verdicts: list[Verdict] = []
    clean = without(scores, facts.leaked) if any(facts.leaked.values()) else None
    for objective, of_arms in scores.arms.items():
        _check_arms(of_arms, plan, objective)
        copies = alike(of_arms, plan, objective)
        suite = _scope(of_arms, plan, [t for t in scores.tasks if t.name not in _seen(plan)], None)
        tasks = [_scope(of_arms, plan, [t], t) for t in scores.tasks] if len(scores.tasks) > 1 else []
        found = _suite_rows(objective, suite, tasks, plan, look, facts)
        _note_redundancy(found, plan)
        if clean is not None:
            _on_clean_part(found, clean, objective, plan)
        for v in found:
            moved = device_words({arm: facts.devices.get((objective, arm), []) for arm in (v.arm, v.reference)})
            v.note = "; ".join(filter(None, [v.note, copies.get(v.arm), copies.get(v.reference), moved]))
        verdicts += found
    for v in verdicts:
        v.sentence = sentence(v, len(plan.looks), _said(plan.arm(v.reference)))
    return verdicts


def _said(reference: PlannedArm) -> str:
    words = SAID[reference.is_a]
    return words if reference.name == reference.is_a else f"{words} (`{reference.name}`)"


def _seen(plan: Plan) -> set[str]:
    return {t["name"] for t in plan.tasks if t.get("seen_by_selector")}


def _check_arms(of_arms: dict[str, ArmScores], plan: Plan, objective: str) -> None:
    for arm in plan.arms:
        if arm.name not in of_arms:
            raise Refusal("bad-scores", f"objective {objective or 'null'}", f"holds nothing of arm {arm.name!r}", "every arm of the plan")
        if (arm.drawn or arm.selector) and any(draw is None for draw, _ in of_arms[arm.name].runs):
            raise Refusal(
                "bad-scores", f"arm {arm.name}", "draw is null", "a drawn arm says which draw each run used: runs of one draw are not fresh draws"
            )


def _scope(of_arms: dict[str, ArmScores], plan: Plan, tasks: Sequence[Task], task: Task | None) -> Scope:
    names, arms, draws = [], [], []
    planned = plan.weights or {t.name: 1.0 for t in tasks}
    total = sum(planned[t.name] for t in tasks)
    raw_weights = [planned[t.name] / total for t in tasks]
    groups = same_samples(tasks)
    for arm in plan.arms:
        of_arm = of_arms[arm.name]
        distinct = len({draw for draw, _ in of_arm.runs}) if arm.drawn or arm.selector else None
        if distinct is not None and distinct > 1:
            of_arm = of_arm.by_draw()
        values, weights = merge_tasks([of_arm.values[t.name] for t in tasks], raw_weights, groups)
        names.append(arm.name)
        arms.append(Arm(values, fixed=arm.fixed))
        draws.append(distinct)
    m = moments(arms, weights)
    units = int(m.num_samples.sum())
    clusters = units if any(t.cluster for t in tasks) else None
    samples = sum(len(tasks[groups.index(g)].uids) for g in dict.fromkeys(groups))
    return Scope(task, tuple(names), tuple(arms), tuple(draws), tuple(weights), m, samples, clusters, len(tasks))


def _suite_rows(objective: str, suite: Scope, tasks: list[Scope], plan: Plan, look: Look, facts: Facts) -> list[Verdict]:
    asked = pairs(plan)
    on_suite = [_verdict(objective, suite, arm, ref, q, plan, look, facts) for arm, ref, q in asked]
    for question in dict.fromkeys(q for _, _, q in asked):
        members = [i for i, (_, _, q) in enumerate(asked) if q == question]
        families = [members] if question not in ("control", "anchor") else [[i] for i in members]
        for family in families:
            _settle([on_suite[i] for i in family], plan, look)
    rows: list[Verdict] = []
    for i, (arm, ref, question) in enumerate(asked):
        of_tasks = [_verdict(objective, scope, arm, ref, question, plan, look, facts) for scope in tasks]
        if of_tasks:
            _settle(of_tasks, plan, look)
            if on_suite[i][0].margin and look.alpha:
                primary = [v for v, _, _ in of_tasks if not v.seen_by_selector]
                alone = [q for v, q, _ in of_tasks if not v.seen_by_selector]
                barred = any(q.barred for q in alone)
                on_suite[i][0].on_every_task = bool(primary) and not barred and all(q.p_values()[1] <= look.alpha for q in alone)
        rows += [on_suite[i][0], *(v for v, _, _ in of_tasks)]
    return rows


def _settle(family: list[Asked], plan: Plan, look: Look) -> None:
    """Give each row of a family its word, and where none is proved what would tell."""
    before = [look.before.get(_key(v), Claims()) for v, _, _ in family]
    questions = [q for _, q, _ in family]
    decided = decide(questions, look.alpha, before)
    for (v, q, scope), (alone, after_holm), old in zip(family, decided, before, strict=True):
        v.claims = after_holm
        if q.barred:
            v.note = "; ".join(filter(None, [q.barred, v.note]))
            continue
        hi = float(q.difference.hi)
        v.word, addition = word(after_holm, hi, v.margin)
        v.word_alone = word(alone, hi, v.margin)[0]
        starred = "significant alone, not after Holm" if v.word != v.word_alone else ""
        fresh = decide([q], look.alpha, [Claims()])[0][0]
        kept_word = "proved at an earlier look" if old != Claims() and word(fresh, hi, v.margin)[0] != v.word else ""
        v.note = "; ".join(filter(None, [addition, starred, kept_word, v.note]))
        if v.word == CANNOT_TELL:
            _plan_ahead(v, scope, q, questions, plan, look)


def _key(v: Verdict) -> Key:
    return v.objective, v.arm, v.reference, v.task


def _verdict(objective: str, scope: Scope, arm: PlannedArm, ref: PlannedArm, question: str, plan: Plan, look: Look, facts: Facts) -> Asked:
    """One row but for its word, and the question that its family settles."""
    i, j = scope.at(arm.name), scope.at(ref.name)
    draws = [scope.draws[k] for k in (i, j) if scope.draws[k] is not None]
    untrained = next((a.name for a in plan.of_kind("untrained")), None)
    with_margin = plan.margin is not None and ref.is_a == "full"
    row = Verdict(
        plan_digest=plan.digest, look=look.number, alpha=look.alpha, objective=objective,
        budget=next((f"{value:,} {name.replace('_', ' ')}" for name, value in plan.budget.items()), None),
        arm=arm.name, reference=ref.name, question=question, scope="task" if scope.task else "suite", task=scope.task.name if scope.task else None,
        n=scope.units, clusters=scope.clusters, tasks=scope.num_tasks, runs_arm=scope.arms[i].values[0].shape[-2], runs_ref=scope.arms[j].values[0].shape[-2],
        draws=min(d for d in draws if d is not None) if draws else None, rows_arm=facts.rows.get(arm.name), rows_ref=facts.rows.get(ref.name),
        mean_arm=scope.mean(arm.name), mean_ref=scope.mean(ref.name), mean_untrained=scope.mean(untrained) if untrained else None,
        diff=scope.mean(arm.name) - scope.mean(ref.name), proof_cost=facts.proof_cost, proof_seconds=facts.proof_seconds, fixed_on=facts.fixed_on if with_margin and not look.exploratory else None,
        seen_by_selector=bool(scope.task and scope.task.name in _seen(plan)), leakage_rate=_leakage(scope, facts, plan),
        setting=facts.settings.get(objective),
        note="exploratory: looked at before under another plan" if look.exploratory else "",
    )  # fmt: skip
    if plan.budget.get("epochs") and row.rows_arm and row.rows_ref and ref.is_a == "full":
        row.compute_saved_samples = 1 - row.rows_arm / row.rows_ref
    if plan.budget.get("epochs") and question == "enough" and facts.proof_cost is not None and row.rows_arm and row.rows_ref:
        row.pays_back = power.pays_back(facts.proof_cost, row.rows_arm / row.rows_ref)
    needed = [arm.name, ref.name] + ([untrained] if with_margin and untrained else [])
    few = [name for name in needed if scope.runs(name) < MIN_RUNS]
    nothing = np.zeros(())
    none = Contrast(nothing, np.zeros(len(scope.names)), np.zeros(len(scope.weights)), nothing, nothing, nothing, ALPHA)
    if few:
        unit = "draws" if scope.draws[scope.at(few[0])] is not None else "runs"
        return row, Question(none, None, 0.0, f"needs at least {MIN_RUNS} {unit} of {few[0]}{_forecast(scope, row, plan)}"), scope
    if not look.number:
        return row, Question(none, None, 0.0, f"no look at {look.runs} runs; the plan looks at {', '.join(map(str, plan.looks))}"), scope
    shown = look.alpha or min(look.spent.values(), default=ALPHA)
    difference = scope.contrast({arm.name: 1, ref.name: -1}, shown)
    _describe(row, scope, difference, i, j)
    inside, barred = _inside(row, scope, difference, arm.name, ref.name, untrained, plan, shown) if with_margin else (None, "")
    barred = barred or _one_draw(scope, difference, i, j)
    if not scope.task:
        _cross_checks(row, scope, i, j, shown)
    return row, Question(difference, inside, row.margin, barred), scope


def _forecast(scope: Scope, row: Verdict, plan: Plan) -> str:
    """Before the first look: what it will be able to tell, by usual variances (runs shorter than 20 epochs)."""
    if scope.task or row.mean_ref is None:
        return ""
    n = scope.moments.num_samples.astype(int).tolist()
    error = min(max(1 - row.mean_ref, 0.01), 0.5)
    distance = power.reach(power.expected(n, tau=0.006, error=error), [MIN_RUNS, MIN_RUNS], n, plan.looks[0])
    return f"; the first look, at {plan.looks[0]} runs, is likely to see a difference of {points(distance, signed=False, digits=1)} pt (80 % chance)"


def _describe(row: Verdict, scope: Scope, difference: Contrast, i: int, j: int) -> None:
    m = scope.moments
    floors = (m.weights**2 * m.churn / m.num_samples).sum(-1)
    row.lo, row.hi, row.level, row.df = float(difference.lo), float(difference.hi), 1 - 2 * difference.alpha, float(difference.df)
    row.se_runs, row.se_samples = float(np.sqrt(difference.run_parts.sum())), float(np.sqrt(difference.sample_parts.sum()))
    for name, k in (("tau_arm", i), ("tau_ref", j)):
        setattr(row, name, 0.0 if scope.arms[k].fixed else tau(m.runs[k], float(floors[k])))
    row.dots = tuple(float(value) - scope.mean(row.reference) for value in m.runs[i])
    churn = [float(m.churn[k].mean()) for k in (i, j) if not scope.arms[k].fixed]
    row.churn = float(np.mean(churn)) if churn else None
    if len(m.runs[i]) == len(m.runs[j]) and min(m.runs[i].std(), m.runs[j].std()) > 0:
        row.seed_correlation = float(np.corrcoef(m.runs[i], m.runs[j])[0, 1])
    visible = [m.runs[k].var(ddof=1) for k in (i, j) if not scope.arms[k].fixed]
    smallest = min(len(m.runs[k]) for k in (i, j) if not scope.arms[k].fixed)
    if len(visible) == 2 and smallest < 5 and max(visible) > 9 * max(min(visible), floors[[i, j]].min()) > 0:
        row.note = "; ".join(filter(None, [row.note, "run variances differ more than nine-fold: add runs"]))


def _inside(
    row: Verdict, scope: Scope, difference: Contrast, arm: str, full: str, untrained: str | None, plan: Plan, alpha: float
) -> tuple[Contrast, str]:
    """The contrast that "not worse" needs above 0, and why it may not be asked."""
    assert plan.margin is not None
    size = plan.margin.task if scope.task else plan.margin.suite
    gain = scope.contrast({full: 1, untrained: -1}, alpha) if untrained else None
    if untrained and gain is not None and gain.lo > 0:
        fraction, bound = retained(scope.moments, scope.at(arm), scope.at(full), scope.at(untrained), alpha=alpha)
        row.retained, row.retained_lo = fraction, bound
    row.margin_kind = f"{plan.margin.kind} {size:g}"
    if plan.margin.kind == "absolute":
        row.margin = size
        if gain is not None and gain.lo <= size:
            return shifted(difference, size), "the margin is not smaller than the gain that is proved over the untrained network"
        return shifted(difference, size), ""
    assert untrained is not None and gain is not None
    row.margin = max((1 - size) * float(gain.estimate), 0.0)
    inside = scope.contrast({arm: 1, full: -size, untrained: -(1 - size)}, alpha)
    return inside, "" if gain.lo > 0 else "the suite does not respond to pre-training"


def _one_draw(scope: Scope, difference: Contrast, i: int, j: int) -> str:
    if not any(scope.draws[k] == 1 for k in (i, j)):
        return ""
    side = "better than" if difference.lo > 0 else "worse than" if difference.hi < 0 else "cannot tell even against"
    this = "this one random subset" if scope.draws[j] == 1 else "the reference, for this one random subset"
    return f"{side} {this}; random subsets need {MIN_RUNS} draws"


def _plan_ahead(row: Verdict, scope: Scope, question: Question, family: Sequence[Question], plan: Plan, look: Look) -> None:
    """Seeds or samples that would tell, if the truth is the estimate, at the next look's error and whatever the rest of the family turns out to be."""
    sizes: list[float] = [scope.runs(name) for name in scope.names]
    later = [s for s in plan.looks if s > look.runs]
    alpha = next_alpha(look.spent, later[0] if later else look.runs + 1, plan.looks)
    if alpha <= 0:
        return
    asked = question.inside or question.difference
    claim = 2 if asked.estimate <= 0 else 1 if question.margin > 0 else 0
    alpha /= max(standing(family, alpha)[claim], 1)
    distance = abs(float(asked.estimate))
    n: Array = scope.moments.num_samples
    row.seeds_needed = power.seeds_needed(asked, sizes, n.tolist(), distance, alpha=alpha)
    row.seeds_needed_cautious = power.seeds_needed(asked, sizes, n.tolist(), distance, alpha=alpha, cautious=True)
    if row.seeds_needed is None:
        samples = power.samples_needed(asked, n.tolist(), distance, alpha=alpha)
        row.samples_needed = samples if samples is not None and samples > n.sum() else None
        if row.samples_needed is None:
            row.note = "; ".join(filter(None, [row.note, f"more than {power.LIMIT:,} seeds would be needed if the truth is the estimate"]))


def _cross_checks(row: Verdict, scope: Scope, i: int, j: int, alpha: float) -> None:
    two = [scope.arms[i], scope.arms[j]]
    if len(scope.weights) >= 3:
        parts = np.array([w * (y.mean() - z.mean()) for w, y, z in zip(scope.weights, two[0].values, two[1].values, strict=True)])
        without = (parts.sum() - parts) / (1 - np.array(scope.weights))
        row.without_lo, row.without_hi = float(without.min()), float(without.max())
    if len(scope.weights) >= 5 and len(set(scope.weights)) == 1:
        wide = tasks_as_sample(two, [1, -1], alpha=alpha)
        row.wide_lo, row.wide_hi = float(wide.lo), float(wide.hi)
    of_kept = row.question not in ("control", "anchor")
    if of_kept and min(arm.values[0].shape[-2] for arm in two if not arm.fixed) >= 5 and len(set(scope.weights)) == 1:
        row.bootstrap_lo, row.bootstrap_hi = crossed_bootstrap(two, [1, -1], alpha=alpha)


def _leakage(scope: Scope, facts: Facts, plan: Plan) -> float | None:
    names = [scope.task.name] if scope.task else [t["name"] for t in plan.tasks if t["name"] not in _seen(plan)]
    rates = [facts.leakage[name] for name in names if name in facts.leakage]
    return float(np.mean(rates)) if rates else None


def _on_clean_part(rows: list[Verdict], clean: Scores, objective: str, plan: Plan) -> None:
    """Tell the difference on the test samples that do not stand in the pool beside each row whose tasks have such: an interval, never a word."""
    scopes: dict[str | None, Scope] = {None: _scope(clean.arms[objective], plan, [t for t in clean.tasks if t.name not in _seen(plan)], None)}
    scopes |= {t.name: _scope(clean.arms[objective], plan, [t], t) for t in clean.tasks}
    for v in rows:
        if v.leakage_rate and v.level is not None:
            told = scopes[v.task].contrast({v.arm: 1, v.reference: -1}, (1 - v.level) / 2)
            v.clean_n, v.clean_diff, v.clean_lo, v.clean_hi = scopes[v.task].units, float(told.estimate), float(told.lo), float(told.hi)


def _note_redundancy(rows: list[Verdict], plan: Plan) -> None:
    """Where random of the same size is better or not worse than full too, the selection is not what made it enough."""
    enough = (BETTER, NOT_WORSE)
    for v in rows:
        if v.question != "enough" or v.word not in enough:
            continue
        for control in rows:
            same = (control.reference, control.task) == (v.reference, v.task) and control.word in enough
            if same and plan.arm(control.arm).is_a == "random" and plan.arm(control.arm).like == v.arm:
                extra = f"random of the same size is {control.word} too: the pool is redundant at this size, the selection is not what made it enough"
                v.note = "; ".join(filter(None, [v.note, extra]))
