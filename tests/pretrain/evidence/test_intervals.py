"""`contrast` against closed forms, other people's code and its own laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pretrain.evidence.intervals import (
    ALPHA,
    Arm,
    contrast,
    crossed_bootstrap,
    macro_values,
    merge_tasks,
    moments,
    pseudo_values,
    retained,
    sum_clusters,
    tasks_as_sample,
)


def scores(seed, runs=3, n=50, mean=0.7, spread=0.0):
    rng = np.random.default_rng(seed)
    p = np.clip(mean + spread * rng.normal(size=n), 0, 1)
    return (rng.random((runs, n)) < p).astype(float)


def by_hand(arms, c, weights, alpha=ALPHA):
    """The formula of the page, loop by loop."""
    estimate = variance = denominator = 0.0
    for arm, ca in zip(arms, c, strict=True):
        runs = np.array([sum(w * np.mean(y[s]) for w, y in zip(weights, arm, strict=True)) for s in range(len(arm[0]))])
        estimate += ca * runs.mean()
        floor = sum(w**2 * churn(y) / y.shape[1] for w, y in zip(weights, arm, strict=True))
        part = ca**2 * max(np.var(runs, ddof=1), floor) / len(runs)
        variance += part
        denominator += part**2 / (len(runs) - 1)
    for t, w in enumerate(weights):
        n = arms[0][t].shape[1]
        mixed = sum(ca * arm[t].mean(0) for arm, ca in zip(arms, c, strict=True))
        own = np.var(mixed, ddof=1) - sum(ca**2 * churn(arm[t]) / len(arm[t]) for arm, ca in zip(arms, c, strict=True))
        part = w**2 / n * max(own, 0)
        variance += part
        denominator += part**2 / (n - 1)
    df = variance**2 / denominator
    half = stats.t.isf(alpha, df) * np.sqrt(variance)
    return estimate, variance, df, estimate - half, estimate + half


def churn(y):
    total = 0.0
    for s in range(y.shape[0]):
        for i in range(y.shape[1]):
            total += (y[s, i] - y[s].mean() - y[:, i].mean() + y.mean()) ** 2
    return total / ((y.shape[0] - 1) * (y.shape[1] - 1))


@pytest.mark.parametrize(("coefficients", "runs"), [((1, -1), (3, 3)), ((1, -0.98, -0.02), (3, 4, 10)), ((1, -0.5, -0.5), (9, 3, 3))])
def test_contrast_is_the_formula(coefficients, runs):
    arms = [tuple(scores(10 * a + t, r, n, 0.6 + 0.05 * a, 0.2) for t, n in enumerate((40, 60))) for a, r in enumerate(runs)]
    got = contrast([Arm(v) for v in arms], coefficients)
    want = by_hand(arms, coefficients, [0.5, 0.5])
    assert np.allclose([got.estimate, got.variance, got.df, got.lo, got.hi], want, rtol=1e-12, atol=1e-15)


def test_without_information_in_the_samples_it_is_welch():
    """Samples that say nothing (every sample of a run has the run's mean): scipy's interval and degrees of freedom."""
    rng = np.random.default_rng(1)
    a, b = rng.normal(0.8, 0.01, 4), rng.normal(0.7, 0.03, 6)
    got = contrast([Arm((np.repeat(a[:, None], 30, 1),)), Arm((np.repeat(b[:, None], 30, 1),))], [1, -1])
    welch = stats.ttest_ind(a, b, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert np.allclose([got.lo, got.hi, got.df], [interval.low, interval.high, welch.df], atol=1e-9)
    assert np.isclose(2 * got.p_above(0), welch.pvalue, atol=1e-9)


def test_identical_runs_leave_the_paired_variance_over_samples():
    a, b = scores(1, 1, 200)[0], scores(2, 1, 200)[0]
    got = contrast([Arm((np.tile(a, (3, 1)),)), Arm((np.tile(b, (3, 1)),))], [1, -1])
    assert np.isclose(got.variance, np.var(a - b, ddof=1) / 200, rtol=1e-12)
    assert np.isclose(got.df, 199, rtol=1e-12)


def test_a_task_doubled_at_half_weight_keeps_estimate_and_run_variance():
    one = [Arm((scores(s),)) for s in (1, 2)]
    two = [Arm((a.values[0], a.values[0])) for a in one]
    single, double = contrast(one, [1, -1]), contrast(two, [1, -1])
    assert np.isclose(single.estimate, double.estimate, rtol=1e-12)
    merged = [Arm(merge_tasks(a.values, [0.5, 0.5], [0, 0])[0]) for a in two]
    again = contrast(merged, [1, -1])
    assert np.isclose(again.variance, single.variance, rtol=1e-12) and np.isclose(again.df, single.df, rtol=1e-12)
    visible = [np.var(a.values[0].mean(1), ddof=1) for a in one]
    floors = moments(one).churn[:, 0] / 50
    if all(v > f for v, f in zip(visible, floors, strict=True)):
        assert np.allclose(single.run_parts, double.run_parts, rtol=1e-12)


def test_singleton_clusters_are_the_samples_and_doubled_samples_are_one():
    a, b = scores(1), scores(2)
    plain = contrast([Arm((a,)), Arm((b,))], [1, -1])
    singles = contrast([Arm((sum_clusters(y, range(50)),)) for y in (a, b)], [1, -1])
    doubled = contrast([Arm((sum_clusters(np.concatenate([y, y], 1), [*range(50), *range(50)]),)) for y in (a, b)], [1, -1])
    for other in (singles, doubled):
        assert np.allclose([other.lo, other.hi, other.df], [plain.lo, plain.hi, plain.df], rtol=1e-12)


def test_clusters_widen_the_interval_of_doubled_samples():
    a, b = (scores(s, n=200, spread=0.3) for s in (1, 2))
    twice = contrast([Arm((np.concatenate([y, y], 1),)) for y in (a, b)], [1, -1])
    once = contrast([Arm((y,)) for y in (a, b)], [1, -1])
    assert twice.sample_parts.sum() < once.sample_parts.sum()


def test_pseudo_values_of_a_mean_are_the_group_means():
    x = np.random.default_rng(0).normal(size=200)
    assert np.allclose(np.sort(pseudo_values(lambda rows: float(x[rows].mean()), 200, groups=200)), np.sort(x))
    values = pseudo_values(lambda rows: float(np.median(x[rows])), 200)
    assert len(values) == 40 and np.isclose(values.mean(), np.median(x))


def test_macro_values_mean_the_mean_over_classes():
    labels = np.array([0] * 90 + [1] * 10)
    correct = np.concatenate([np.ones(90), np.zeros(10)])
    assert np.isclose(macro_values(correct, labels).mean(), 0.5)


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_laws(seed):
    rng = np.random.default_rng(seed)
    a, b, c = (scores(seed + k, runs, 30, 0.6, 0.2) for k, runs in enumerate((3, 4, 5)))
    plain = contrast([Arm((a,)), Arm((b,))], [1, -1])
    order, runs = rng.permutation(30), rng.permutation(3)
    shuffled = contrast([Arm((a[runs][:, order],)), Arm((b[:, order],))], [1, -1])
    swapped = contrast([Arm((b,)), Arm((a,))], [1, -1])
    other_way = contrast([Arm((b,)), Arm((a,))], [-1, 1])
    lifted = contrast([Arm((a + 3,)), Arm((b + 3,))], [1, -1])
    scaled = contrast([Arm((100 * a,)), Arm((100 * b,))], [1, -1])
    idle = contrast([Arm((a,)), Arm((b,)), Arm((c,))], [1, -1, 0])
    for same in (shuffled, other_way, lifted, idle):
        assert np.allclose([same.lo, same.hi, same.df], [plain.lo, plain.hi, plain.df], rtol=1e-9, atol=1e-12)
    assert np.allclose([swapped.lo, swapped.hi], [-plain.hi, -plain.lo], atol=1e-12)
    assert np.allclose([scaled.lo, scaled.hi, scaled.df], [100 * plain.lo, 100 * plain.hi, plain.df], rtol=1e-9)


def test_leading_axes_are_replicates():
    a, b = np.stack([scores(s) for s in range(4)]), np.stack([scores(s + 9) for s in range(4)])
    many = contrast([Arm((a,)), Arm((b,))], [1, -1])
    for r in range(4):
        one = contrast([Arm((a[r],)), Arm((b[r],))], [1, -1])
        assert np.allclose([many.lo[r], many.hi[r], many.df[r]], [one.lo, one.hi, one.df], rtol=1e-12)


def test_a_fixed_arm_adds_no_run_variance():
    kept, base = scores(1, 5, 300), scores(2, 1, 300)
    got = contrast([Arm((kept,)), Arm((base,), fixed=True)], [1, -1])
    assert got.run_parts[1] == 0 and got.run_parts[0] > 0 and np.isfinite(got.df)
    m = moments([Arm((kept,)), Arm((base,), fixed=True)])
    assert got.sample_parts[0] == pytest.approx((m.spread[0, 0, 0] - 2 * m.spread[0, 0, 1] + m.spread[0, 1, 1] - m.churn[0, 0] / 5) / 300)
    sure = contrast([Arm((kept,)), Arm((np.zeros((1, 300)),), fixed=True)], [1, -1])
    assert np.isclose(sure.estimate, kept.mean())


def test_no_variance_at_all_is_one_point():
    got = contrast([Arm((np.ones((3, 20)),)), Arm((np.zeros((3, 20)),))], [1, -1])
    assert got.lo == got.hi == 1 and got.p_above(0) == 0 and got.p_below(0) == 1
    same = contrast([Arm((np.ones((3, 20)),)), Arm((np.ones((3, 20)),))], [1, -1])
    assert same.lo == same.hi == 0 and same.p_above(0) == 1


def test_retained_solves_its_contrast():
    full, kept, untrained = (Arm((scores(s, 4, 500, mean, 0.1),)) for s, mean in ((1, 0.85), (2, 0.8), (3, 0.3)))
    m = moments([kept, full, untrained])
    fraction, bound = retained(m, 0, 1, 2)
    means = [float(r.mean()) for r in m.runs]
    assert np.isclose(fraction, (means[0] - means[2]) / (means[1] - means[2]))
    assert bound is not None and bound < fraction
    at_bound = contrast(m, [1, -bound, -(1 - bound)])
    assert abs(at_bound.lo) < 1e-8
    assert contrast(m, [1, -fraction, -(1 - fraction)]).estimate == pytest.approx(0, abs=1e-12)


def test_nothing_is_retained_of_a_gain_that_is_not_proved():
    arms = [Arm((scores(s, 3, 100, 0.5),)) for s in (1, 2, 3)]
    assert retained(moments(arms), 0, 1, 2)[1] is None


def test_tasks_as_a_sample_of_tasks():
    rng = np.random.default_rng(0)
    tasks = [scores(t, 3, 4000, 0.5 + 0.05 * rng.normal()) for t in range(6)]
    others = [scores(t + 50, 3, 4000, 0.5) for t in range(6)]
    arms = [Arm(tuple(tasks)), Arm(tuple(others))]
    wide, narrow = tasks_as_sample(arms, [1, -1]), contrast(arms, [1, -1])
    per_task = np.array([a.mean() - b.mean() for a, b in zip(tasks, others, strict=True)])
    assert np.isclose(wide.sample_parts[0], per_task.var(ddof=1) / 6) and np.isclose(wide.estimate, narrow.estimate)
    assert wide.half_width > narrow.half_width


def test_crossed_bootstrap_agrees_where_samples_dominate():
    from .score_tables import correctness

    rng = np.random.default_rng(3)
    hardness = rng.normal(size=800)
    arms = [Arm((correctness(rng, mean, 10, hardness, tau=0.0, own=0.4),)) for mean in (0.8, 0.78)]
    lo, hi = crossed_bootstrap(arms, [1, -1])
    judged = contrast(arms, [1, -1])
    assert (hi - lo) / 2 == pytest.approx(judged.half_width, rel=0.25)
    assert (lo + hi) / 2 == pytest.approx(float(judged.estimate), abs=0.004)


def test_components_are_those_of_reml_on_a_balanced_table():
    """statsmodels' crossed mixed model (runs, samples) against the ANOVA components that `contrast` uses."""
    import pandas as pd
    import statsmodels.formula.api as smf
    from scipy import optimize
    from statsmodels.regression.mixed_linear_model import MixedLMParams

    rng = np.random.default_rng(5)
    num_runs, n = 6, 12
    y = rng.normal(0, 0.5, (num_runs, 1)) + rng.normal(0, 1.0, (1, n)) + rng.normal(0, 0.7, (num_runs, n))
    frame = pd.DataFrame({"y": y.ravel(), "run": np.repeat(range(num_runs), n), "sample": np.tile(range(n), num_runs), "one": 1})
    model = smf.mixedlm("y ~ 1", frame, groups="one", re_formula="0", vc_formula={"run": "0 + C(run)", "sample": "0 + C(sample)"})
    m = moments([Arm((y,))])
    churn_variance = float(m.churn[0, 0])
    run_variance = float(m.runs[0].var(ddof=1) - churn_variance / n)
    sample_variance = float(m.spread[0, 0, 0] - churn_variance / num_runs)

    model.reml, model.cov_pen, model.fe_pen = True, None, None

    def reml(components):
        """statsmodels' REML log-likelihood; components relative to the error variance, which it profiles out."""
        params = MixedLMParams.from_components(fe_params=np.array([y.mean()]), vcomp=np.exp(components))
        return -model.loglike(params, profile_fe=True)

    ours = np.log([run_variance / churn_variance, sample_variance / churn_variance])
    theirs = optimize.minimize(reml, ours + 0.3, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14, "maxiter": 2000})
    assert theirs.x == pytest.approx(ours, abs=1e-6)
