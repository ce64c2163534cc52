"""Seeds, samples, cost: against the formula, the published tables and simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pretrain.evidence.intervals import ALPHA, Arm, Moments, contrast
from pretrain.evidence.looks import Look
from pretrain.evidence.plan import check_plan
from pretrain.evidence.power import at_runs, expected, pays_back, predicted_power, proof_cost, reach, sample_floor, samples_needed, seeds_needed
from pretrain.evidence.questions import Facts, answer
from pretrain.evidence.scores import ArmScores, Scores, Task
from pretrain.evidence.verdict import holm

from .score_tables import correctness
from .test_calibration import as_moments, pair

THREE = [3.0, 3.0]


def wins_at(tau, n, runs, tasks=1):
    """Distance won with 80 % chance at `runs` runs: (t_alpha + t_power) sqrt(V)."""
    return reach(expected([n] * tasks, tau=tau), THREE, [n] * tasks, runs)


TABLE = [
    (0.001, 500, (3.5, 2.6, 2.0)),
    (0.001, 10_000, (0.8, 0.6, 0.5)),
    (0.003, 2_000, (2.0, 1.4, 1.1)),
    (0.003, 10_000, (1.3, 0.8, 0.6)),
    (0.006, 2_000, (2.6, 1.7, 1.3)),
    (0.006, 10_000, (2.2, 1.4, 0.9)),
]


@pytest.mark.parametrize(("tau", "n", "points"), TABLE)
def test_distances_won_are_the_published_ones(tau, n, points):
    """80 % of simulated intervals end within the distance; the formula names its runs to within one (two of ten)."""
    for runs, distance in zip((3, 5, 10), points, strict=True):
        drawn = pair(np.random.default_rng(runs), runs, 1, n, tau, size=8000)
        won = np.quantile(-contrast(as_moments(*drawn, n), [1, -1]).lo, 0.8)
        assert 100 * won == pytest.approx(distance, rel=0.03, abs=0.08)
        needed = seeds_needed(expected([n], tau=tau), THREE, [n], won)
        assert needed is not None and abs(needed - runs) <= (2 if runs == 10 else 1)


@pytest.mark.parametrize(
    ("n", "tasks", "points"), [(500, 1, 1.5), (500, 5, 0.7), (500, 20, 0.3), (2_000, 1, 0.8), (10_000, 1, 0.3), (10_000, 20, 0.1)]
)
def test_the_floor_that_no_seeds_pass(n, tasks, points):
    assert 100 * sample_floor(expected([n] * tasks)) == pytest.approx(points, abs=0.06)


def test_reach_is_the_formula():
    now = expected([2000], tau=0.003)
    variance, df = at_runs(now, THREE, [2000], 5)
    assert variance == pytest.approx(2 * (0.003**2 + 0.05 / 2000) / 5 + 0.015 / 2000)
    assert wins_at(0.003, 2000, 5) == pytest.approx((stats.t.isf(ALPHA, df) + stats.t.ppf(0.8, df)) * math.sqrt(variance))


def test_seeds_needed_is_the_smallest_that_does():
    now = expected([10_000], tau=0.003)
    found = seeds_needed(now, THREE, [10_000], 0.008)
    assert found is not None and wins_at(0.003, 10_000, found) <= 0.008 < wins_at(0.003, 10_000, found - 1)
    assert seeds_needed(now, THREE, [10_000], 0.5) == 3  # never fewer than three


def test_cautious_asks_for_more_and_three_runs_are_worth_little():
    now = expected([10_000], tau=0.003)
    plain, cautious = (seeds_needed(now, THREE, [10_000], 0.008, cautious=c) for c in (False, True))
    assert plain is not None and cautious is not None and cautious > plain
    alone, _ = at_runs(now, THREE, [10_000], 3)
    upper, _ = at_runs(now, THREE, [10_000], 3, cautious=True)
    samples = float(now.sample_parts.sum())
    assert (upper - samples) / (alone - samples) == pytest.approx(4.5, abs=0.05)


def test_none_where_the_samples_alone_forbid_it():
    now = expected([500], tau=0.003)
    floor = sample_floor(now)
    assert seeds_needed(now, THREE, [500], 0.99 * floor) is None
    assert seeds_needed(now, THREE, [500], 1.5 * floor) is not None
    wanted = samples_needed(now, [500], 0.5 * floor)
    assert wanted == 2000
    assert seeds_needed(now, THREE, [500], 0.0) is None and samples_needed(now, [500], 0.0) is None


@given(st.floats(0.004, 0.05), st.floats(1.01, 3))
@settings(max_examples=40, deadline=None)
def test_a_larger_distance_never_needs_more_seeds(distance, factor):
    now = expected([10_000], tau=0.003)
    near, far = seeds_needed(now, THREE, [10_000], distance), seeds_needed(now, THREE, [10_000], distance * factor)
    assert far is not None and (near is None or far <= near)


def test_arms_grow_in_proportion_and_fixed_arms_do_not():
    rng = np.random.default_rng(0)
    arms = [Arm((rng.random((r, 100)),), fixed=r == 1) for r in (3, 9, 1)]
    now = contrast(arms, [1, -0.5, -0.5])
    variance, _ = at_runs(now, [3, 9, math.inf], [100], 6)
    by_hand = now.run_parts[0] / 2 + now.run_parts[1] / 2 + now.sample_parts.sum()
    assert variance == pytest.approx(float(by_hand))


@pytest.mark.parametrize(("runs", "tau", "n"), [(4, 0.003, 10_000), (6, 0.002, 2_000), (10, 0.006, 10_000)])
def test_predicted_power_is_the_simulated_one(runs, tau, n):
    distance = wins_at(tau, n, runs)
    drawn = pair(np.random.default_rng(runs), runs, 1, n, tau, size=8000)
    won = (contrast(as_moments(*drawn, n), [1, -1]).lo > -distance).mean()
    variance, df = at_runs(expected([n], tau=tau), THREE, [n], runs)
    assert predicted_power(variance, df, distance) == pytest.approx(0.8, abs=0.02)
    assert won == pytest.approx(0.8, abs=0.06)


def test_cost_of_the_proof():
    """The page's rows: one selection at f = 0.2, equal epochs, R = S: 4.2, 7, 14; equal samples seen: 9, 15, 30."""
    for runs, epochs, samples in ((3, 4.2, 9), (5, 7.0, 15), (10, 14.0, 30)):
        assert proof_cost([1.0] * runs + [0.2] * 2 * runs, 1.0) == pytest.approx(epochs)
        assert proof_cost([1.0] * 3 * runs, 1.0) == pytest.approx(samples)
    assert pays_back(4.2, 0.2) == pytest.approx(5.25) and pays_back(4.2, 1.0) is None


def cannot_tell_yet(arms, runs, n):
    """The first row of simulated families of `arms` kept arms, 1.5 points ahead of their random ones, that asks for six to thirty seeds."""
    drawn = {f"r{i}": {"is": "random", "like": f"k{i}"} for i in range(arms)}
    plan = check_plan({"format": 1, "arms": {f"k{i}": {"is": "kept"} for i in range(arms)} | drawn, "tasks": ["t"], "looks": [3, 5]}, "plan")
    for seed in range(50):
        rng = np.random.default_rng(seed)
        hardness = rng.normal(size=n)
        made = {}
        for name in (arm.name for arm in plan.arms):
            values = correctness(rng, 0.80 if name in drawn else 0.815, runs, hardness, tau=0.01)
            made[name] = ArmScores(tuple((i if name in drawn else None, i) for i in range(runs)), {"t": values})
        scores = Scores((Task("t", tuple(f"{i:06d}" for i in range(n)), None),), {"ce": made})
        for row in answer(scores, plan, Look(1, runs, ALPHA, {}, {runs: ALPHA}), Facts()):
            if row.question == "earned" and row.word == "cannot tell" and row.diff > 0 and 6 <= (row.seeds_needed or 0) <= 30:
                return row
    raise AssertionError("no row")


@pytest.mark.parametrize("arms", [1, 5])
def test_the_seeds_that_would_tell_keep_their_promise_after_holm(arms):
    """At the number told the word is won with 80 % chance though the other rows of the family never fall; without Holm in the number it was 58 % at five."""
    n, runs, size = 2000, 3, 4000
    row = cannot_tell_yet(arms, runs, n)
    rng, then, v, b = np.random.default_rng(9), row.seeds_needed, row.se_runs**2 * runs / 2, row.se_samples**2
    spread = np.zeros((size, 1, 2, 2))
    spread[:, 0, 0, 0] = b * n + 2 * row.churn / then
    p = np.empty((size, arms))
    for i in range(arms):
        one = rng.normal(0 if i else row.diff, np.sqrt(v), (size, then)) + rng.normal(0, np.sqrt(b), (size, 1))
        both = one, rng.normal(0, np.sqrt(v), (size, then))
        p[:, i] = contrast(Moments(both, np.full((size, 2, 1), row.churn), spread, np.array([n]), np.ones(1), (False, False)), [1, -1]).p_above(0)
    won = np.mean([holm(each.tolist(), ALPHA)[0] for each in p])  # the second of two declared looks has the other 2.5 %
    assert 0.77 <= won <= 0.9
