"""Four words by the position of an interval, the error that each look and each family may spend, and the sentence that says it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from pretrain.evidence.intervals import ALPHA, Contrast

BETTER, NOT_WORSE, WORSE, CANNOT_TELL = "better", "not worse", "worse", "cannot tell"
WORDS = (BETTER, NOT_WORSE, WORSE, CANNOT_TELL)
MIN_RUNS = 3


@dataclass(frozen=True)
class Claims:
    """What is proved of one arm against one reference: above 0, above minus the margin, below minus the margin."""

    better: bool = False
    not_worse: bool = False
    worse: bool = False

    def __or__(self, other: "Claims") -> "Claims":
        return Claims(self.better or other.better, self.not_worse or other.not_worse, self.worse or other.worse)


def word(claims: Claims, hi: float, margin: float) -> tuple[str, str]:
    """The word and its addition, from what is proved; `hi` is the upper end of arm minus reference, `margin` 0 against random.

    Guarantee  the three claims are a partition of the line: more data turn no proved word into its opposite. Should two looks have proved
               opposite claims (their error probabilities add up), nothing is said.
    """
    not_worse = claims.not_worse and margin > 0
    if claims.worse and (claims.better or not_worse):
        return CANNOT_TELL, "two looks contradict each other"
    if claims.better:
        return BETTER, ""
    if not_worse:
        return NOT_WORSE, "measurably lower, within the margin" if hi < 0 else ""
    if claims.worse:
        return WORSE, ""
    return CANNOT_TELL, "lower than the reference, size open" if hi < 0 else ""


def claims_of(lo: float, hi: float, margin: float) -> Claims:
    """What the interval (lo, hi) proves with an absolute margin."""
    return Claims(lo > 0, margin > 0 and lo > -margin, hi < -margin)


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses fall in Holm's step-down at `alpha`: the i-th smallest p must be at most alpha / (how many are left)."""
    fallen = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        if not p_values[i] <= alpha / (len(p_values) - rank):
            break
        fallen[i] = True
    return fallen


@dataclass(frozen=True)
class Question:
    """One arm against one reference in one scope, with the contrasts that answer it.

    `difference` is arm - reference; `inside` the contrast that must be above 0 for "not worse" (with `retain` that of the retained gain,
    with an absolute margin the difference moved up by it; null against random); `barred` a reason why no word may be said at all.
    """

    difference: Contrast
    inside: Contrast | None
    margin: float
    barred: str = ""

    def p_values(self) -> tuple[float, float, float]:
        """(above 0, above minus the margin, below minus the margin)."""
        inside = self.inside or self.difference
        above = float(inside.p_above(0)) if self.margin > 0 else 1.0
        return float(self.difference.p_above(0)), above, float(inside.p_below(0))


def shifted(difference: Contrast, margin: float) -> Contrast:
    """arm - reference + margin: what an absolute margin asks about."""
    return Contrast(
        difference.estimate + margin,
        difference.run_parts,
        difference.sample_parts,
        difference.df,
        difference.lo + margin,
        difference.hi + margin,
        difference.alpha,
    )


def decide(family: Sequence[Question], alpha: float, before: Sequence[Claims]) -> list[tuple[Claims, Claims]]:
    """(proved alone, proved after Holm over the family), each with what earlier looks had proved; a barred question proves nothing.

    Each of the three claims is its own family; opposite claims share the two sides of one interval, as ever.
    """
    open_questions = [i for i, q in enumerate(family) if not q.barred]
    p = [family[i].p_values() for i in open_questions]
    columns = _fallen(p, alpha)
    decided = [(Claims(), Claims()) for _ in family]
    for position, i in enumerate(open_questions):
        alone = Claims(*(value <= alpha for value in p[position]))
        decided[i] = (alone | before[i], Claims(*(column[position] for column in columns)) | before[i])
    return decided


def _fallen(p: Sequence[tuple[float, float, float]], alpha: float) -> list[list[bool]]:
    return [holm([row[claim] for row in p], alpha) for claim in range(3)]


def standing(family: Sequence[Question], alpha: float) -> tuple[int, ...]:
    """How many open questions of the family do not fall at `alpha`, claim by claim: Holm asks alpha / so many of the next that is to fall."""
    return tuple(column.count(False) for column in _fallen([q.p_values() for q in family if not q.barred], alpha))


def next_alpha(spent: Mapping[int, float], runs: int, declared: Sequence[int]) -> float:
    """Error that a look at `runs` runs may spend after `spent` (runs -> alpha), one-sided; 0 = no look is left, the words stand as they are.

    The first declared look that is taken spends 2.5 %, the other declared ones share another 2.5 %; both are reserved for them. A look that the plan does
    not declare spends of what is not reserved, the k-th of them (from 2) at most 2.5 % / (k (k - 1)), also where it is the first look of all: its number of
    runs may have been chosen by the means that were there to be seen.
    Guarantee   all looks together spend at most 5 %
    """
    left = 2 * ALPHA - sum(spent.values())
    shares = [ALPHA, *(ALPHA / (len(declared) - 1) for _ in declared[1:])]
    taken = sum(point in spent for point in declared)
    if runs in declared:
        return max(0.0, min(shares[min(taken, len(shares) - 1)], left))
    coming = sum(point not in spent and point > min(spent, default=runs) for point in declared)
    k = len(spent) - taken + 2
    free = left - sum(shares[taken : taken + coming])
    return min(ALPHA / (k * (k - 1)), free) if free > 1e-12 else 0.0


@dataclass
class Verdict:
    """One row of `verdicts.parquet`. Scores, differences and margins are fractions (0.01 = one point); null = does not apply."""

    plan_digest: str
    look: int
    alpha: float
    objective: str
    budget: str | None
    arm: str
    reference: str
    question: str  # enough, earned, clean, shares, control, anchor
    scope: str  # suite or task
    task: str | None
    n: int
    clusters: int | None
    tasks: int
    runs_arm: int
    runs_ref: int
    draws: int | None
    rows_arm: int | None = None
    rows_ref: int | None = None
    mean_arm: float | None = None
    mean_ref: float | None = None
    mean_untrained: float | None = None
    diff: float | None = None
    lo: float | None = None
    hi: float | None = None
    level: float | None = None
    df: float | None = None
    se_runs: float | None = None
    se_samples: float | None = None
    tau_arm: float | None = None
    tau_ref: float | None = None
    churn: float | None = None
    margin: float = 0.0
    margin_kind: str | None = None
    retained: float | None = None
    retained_lo: float | None = None
    word: str = CANNOT_TELL  # what may be said: after Holm over its family, with what earlier looks proved
    word_alone: str = CANNOT_TELL  # the same of this row alone; differs from `word` where only Holm stands between
    note: str = ""
    on_every_task: bool | None = None  # suite rows: proved above minus the margin on each task (no correction needed)
    seeds_needed: int | None = None
    seeds_needed_cautious: int | None = None
    samples_needed: int | None = None
    wide_lo: float | None = None  # suite rows of five tasks or more: tasks too count as drawn
    wide_hi: float | None = None
    bootstrap_lo: float | None = None  # cross-check from five runs on
    bootstrap_hi: float | None = None
    without_lo: float | None = None  # suite rows of three tasks or more: smallest and largest difference with one task left out
    without_hi: float | None = None
    seed_correlation: float | None = None
    compute_saved_samples: float | None = None
    proof_cost: float | None = None  # all trainings of the comparison so far, in trainings on the full pool
    proof_seconds: float | None = None  # their seconds, tests included, one thread each
    pays_back: float | None = None  # rows of kept against full: after so many later trainings at equal epochs the proof has paid
    seen_by_selector: bool = False
    leakage_rate: float | None = None  # share of the test samples that stand in the pool: arms that are not kept from them may have trained on them
    clean_n: int | None = None  # where it is above 0: the other test samples, and the difference on them at the same level; never the word
    clean_diff: float | None = None
    clean_lo: float | None = None
    clean_hi: float | None = None
    fixed_on: str | None = None
    setting: str | None = None  # of the objective: "queue 1,024, k 51"
    sentence: str = ""
    claims: Claims = field(default_factory=Claims)
    dots: tuple[float, ...] = ()  # each run of the arm minus the reference's mean; for the plot only

    def row(self) -> dict[str, Any]:
        """As a row of the Parquet file: the claims in three columns."""
        row = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("claims", "dots")}
        return row | {"proved_better": self.claims.better, "proved_not_worse": self.claims.not_worse, "proved_worse": self.claims.worse}


def points(value: float, signed: bool = True, digits: int = 2) -> str:
    """A difference of scores in points, with a sign and without a negative zero."""
    text = f"{100 * value:+.{digits}f}" if signed else f"{100 * value:.{digits}f}"
    return text.replace("-", "−") if float(text) else f"{0:.{digits}f}"


def sentence(v: Verdict, looks: int, reference_words: str) -> str:
    """The verdict as one sentence; every number in it stands in the same row.

    `looks` is how many the plan declares, `reference_words` how a reader calls the reference: "the full pool", "random of the same size from the raw pool".
    Guarantee   no p-value, no "equal", no "no significant difference"; "cannot tell" says what would tell.
    """
    where = f"on {v.tasks} task{'s' if v.tasks != 1 else ''}" if v.scope == "suite" else f"on {v.task}"
    verb = {BETTER: "better than", NOT_WORSE: "not worse than", WORSE: "worse than", CANNOT_TELL: "cannot tell against"}[v.word]
    head = f"`{v.arm}`: {verb} {reference_words} {where}"
    if v.diff is None or v.lo is None or v.hi is None or v.level is None:
        return f"{head} ({v.note})."
    level = f"{100 * v.level:.4g} % interval"
    numbers = f"{points(v.diff)} pt, {level} {points(v.lo)} to {points(v.hi)}{_margin_words(v)}"
    parts = [f"{head} ({numbers})"]
    if v.retained_lo is not None and v.word in (BETTER, NOT_WORSE):
        parts.append(f"keeps at least {100 * v.retained_lo:.1f} % of the gain over untrained")
    if v.question == "enough" and v.rows_arm and v.rows_ref and v.rows_arm < v.rows_ref:
        parts.append(f"{100 * (1 - v.rows_arm / v.rows_ref):.0f} % fewer training samples")
    if v.leakage_rate:
        parts.append(leaked_words(v.leakage_rate, v.clean_diff, v.clean_lo, v.clean_hi))
    if v.note:
        parts.append(v.note)
    if v.word == CANNOT_TELL:
        parts += _what_would_tell(v)
    seeds = f"look {v.look} of {max(looks, v.look)}, {v.runs_arm} runs against {v.runs_ref}, {v.objective}"
    return "; ".join(parts) + f". {seeds[0].upper()}{seeds[1:]}."


def leaked_words(rate: float, diff: float | None, lo: float | None, hi: float | None) -> str:
    """How many test samples stand in the pool, and what the difference is without them."""
    found = f"{100 * rate:.2g} % of the test samples stand in the pool"
    return found if diff is None or lo is None or hi is None else f"{found}: without them {points(diff)} pt, {points(lo)} to {points(hi)}"


def device_words(made: Mapping[str, Sequence[str]]) -> str:
    """Which trainings of the two sides were made on which device, where it was not one; `made`: arm -> the device of each run, "" = unknown."""
    counts = {arm: Counter(filter(None, devices)) for arm, devices in made.items()}
    if len({device for count in counts.values() for device in count}) < 2:
        return ""
    told = [f"{arm} {', '.join(f'{n} on {device}' for device, n in sorted(count.items()))}" for arm, count in counts.items() if count]
    return f"made on different devices: {'; '.join(told)}"


def _margin_words(v: Verdict) -> str:
    if not v.margin:
        return ""
    of_gain = ""
    if v.margin_kind and v.margin_kind.startswith("retain"):
        share = 1 - float(v.margin_kind.split()[1])
        of_gain = f" = {100 * share:.3g} % of the gain over untrained"
    fixed = f", fixed {v.fixed_on} before the first run" if v.fixed_on else " as the plan states"
    return f", margin {points(v.margin, signed=False)} pt{of_gain}{fixed}"


def _what_would_tell(v: Verdict) -> list[str]:
    if v.seeds_needed is not None:
        cautious = f"cautious: {v.seeds_needed_cautious}" if v.seeds_needed_cautious is not None else "cautious: no number of seeds"
        return [f"would tell with about {v.seeds_needed} seeds ({cautious}) if the truth is the estimate"]
    if v.samples_needed is not None:
        return [f"no number of seeds will do if the truth is the estimate: it needs about {v.samples_needed:,} test samples or more tasks"]
    return []


def tau(run_values: np.ndarray, floor: float) -> float:
    """Spread of the runs' true scores: visible variance less what independent errors at the samples force, never below 0."""
    return float(np.sqrt(max(run_values.var(ddof=1) - floor, 0.0)))
