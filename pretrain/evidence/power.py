"""What would tell: more seeds, more test samples, or nothing within reach; and what the proof costs."""

import math
from collections.abc import Sequence

import numpy as np

from pretrain.evidence.intervals import ALPHA, Contrast, t_quantile

POWER = 0.8
LIMIT = 1000  # more seeds than this are "no number of seeds"


def at_runs(now: Contrast, runs: Sequence[float], num_samples: Sequence[float], runs_then: int, cautious: bool = False) -> tuple[float, float]:
    """(variance, degrees of freedom) of the contrast `now`, had its smallest arm `runs_then` runs and the others in proportion.

    runs      runs of each arm now; infinity for a fixed arm
    cautious  take the upper 80 % limit of each run variance: v x (S - 1) / chi2_{0.2, S - 1}
    """
    size = np.asarray(runs, np.float64)
    taking_part = (now.run_parts > 0) & np.isfinite(size)
    size, parts = size[taking_part], now.run_parts[taking_part]
    grown = np.round(size * runs_then / size.min()) if len(size) else size
    parts = parts * size / grown
    if cautious:
        from scipy import stats

        parts = parts * (size - 1) / stats.chi2.ppf(1 - POWER, size - 1)
    sample_df = np.asarray(num_samples, np.float64) - 1
    variance = float(parts.sum() + now.sample_parts.sum())
    below = float((parts**2 / (grown - 1)).sum() + (now.sample_parts**2 / sample_df).sum())
    return variance, variance**2 / below if below > 0 else math.inf


def predicted_power(variance: float, df: float, distance: float, alpha: float = ALPHA) -> float:
    """Chance that the interval ends on this side of a bound `distance` away from the truth."""
    from scipy import stats

    if variance <= 0:
        return 1.0 if distance > 0 else 0.0
    return float(stats.t.sf(stats.t.isf(alpha, df) - distance / math.sqrt(variance), df))


def seeds_needed(
    now: Contrast,
    runs: Sequence[float],
    num_samples: Sequence[float],
    distance: float,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    cautious: bool = False,
) -> int | None:
    """Fewest runs (of the smallest arm, at least 3) that win the word with chance `power` if the truth lies `distance` from the bound.

    None where no number of seeds will do: the test samples alone allow (z_alpha + z_power) sqrt(B), which seeds never lower.
    """
    if distance <= 0 or distance <= sample_floor(now, alpha=alpha, power=power):
        return None

    def enough(count: int) -> bool:
        return reach(now, runs, num_samples, count, alpha=alpha, power=power, cautious=cautious) <= distance

    if not enough(LIMIT):
        return None
    low, high = 2, LIMIT  # the need falls with every run: bisection
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def reach(
    now: Contrast,
    runs: Sequence[float],
    num_samples: Sequence[float],
    runs_then: int,
    *,
    alpha: float = ALPHA,
    power: float = POWER,
    cautious: bool = False,
) -> float:
    """The distance from its bound at which the word is won with chance `power` at `runs_then` runs: (t_alpha + t_power) sqrt(V)."""
    variance, df = at_runs(now, runs, num_samples, runs_then, cautious)
    return float(t_quantile(1 - alpha, df) + t_quantile(power, df)) * math.sqrt(variance) if variance > 0 else 0.0


def sample_floor(now: Contrast, *, alpha: float = ALPHA, power: float = POWER) -> float:
    """The distance that no number of seeds passes: (z_alpha + z_power) sqrt(B)."""
    return float((t_quantile(1 - alpha, math.inf) + t_quantile(power, math.inf)) * math.sqrt(now.sample_parts.sum()))


def samples_needed(now: Contrast, num_samples: Sequence[float], distance: float, *, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """Test samples in all (same mix of tasks) from which on seeds can win the word at `distance`; None where distance is 0 or less."""
    if distance <= 0:
        return None
    return math.ceil(sum(num_samples) * (sample_floor(now, alpha=alpha, power=power) / distance) ** 2)


def expected(num_samples: Sequence[int], *, tau: float = 0.003, error: float = 0.2, runs: int = 3) -> Contrast:
    """The contrast of two arms as it is likely to be before any run exists; equal task weights.

    tau    spread of true scores over runs: 0.003, 0.006 for runs shorter than 20 epochs
    error  expected error rate of a run; independent errors E = error / 4 a sample, arm x sample variance 0.015
    """
    n = np.asarray(num_samples, np.float64)
    weight = 1 / len(n)
    run_variance = tau**2 + float((weight**2 * error / 4 / n).sum())
    run_parts = np.full(2, run_variance / runs)
    sample_parts = weight**2 * 0.015 / n
    nothing = np.zeros(())
    return Contrast(nothing, run_parts, sample_parts, nothing, nothing, nothing, ALPHA)


def proof_cost(samples_seen: Sequence[float], full: float) -> float:
    """What all runs of a comparison cost, in trainings on the full pool (`full` = samples that one of them sees)."""
    return float(sum(samples_seen) / full)


def pays_back(cost: float, fraction_kept: float) -> float | None:
    """After how many later trainings at equal epochs a proof of `cost` full trainings has paid; None where nothing was dropped."""
    return cost / (1 - fraction_kept) if fraction_kept < 1 else None
