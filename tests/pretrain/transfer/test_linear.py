import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from pretrain.transfer.features import Features
from pretrain.transfer.linear import Candidate, Problem, curvatures, linear, logistic, logistic_on_device, newton, scaling, sweep


def problem(n: int = 400, d: int = 12, classes: int = 5, seed: int = 0, stretch: float = 1.0):
    random = np.random.default_rng(seed)
    centres = random.normal(0, 1, (classes, d))
    y = random.integers(0, classes, n)
    return (centres[y] + random.normal(0, 1.2, (n, d))) * np.logspace(0, stretch, d) + 3, y


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("stretch", [0.0, 2.0])
def test_the_optimum_is_sklearns(strength, stretch):
    x, y = problem(stretch=stretch)
    oracle = LogisticRegression(C=1 / (strength * len(x)), tol=1e-12, max_iter=20_000, solver="newton-cg").fit(x, y)

    weight, bias = logistic(x, y, 5, strength)
    on_device, device_bias = logistic_on_device(x, y, 5, strength, device="cpu")

    scale = np.abs(oracle.coef_).max()
    np.testing.assert_allclose(weight.T, oracle.coef_, atol=1e-4 * max(scale, 1))
    np.testing.assert_allclose(on_device, weight, atol=1e-4 * max(scale, 1))
    np.testing.assert_allclose(device_bias - device_bias.mean(), bias - bias.mean(), atol=1e-3)
    assert np.array_equal((x @ weight + bias).argmax(1), oracle.predict(x))


def test_the_gradient_at_the_solution_vanishes_and_is_the_derivative():
    x, y = problem(n=60, d=4, classes=3)
    made = Problem(x, y, 3)
    scale = made.scale(0.01)
    theta = made.solve(0.01, None, tolerance=1e-9, most=2000)
    assert np.abs(made.value((theta / scale).ravel(), 0.01, scale)[1]).max() < 1e-7
    random = np.random.default_rng(1).normal(size=theta.size)
    value, gradient = made.value(random, 0.01, scale)
    for i in (0, 5, theta.size - 1):
        step = np.zeros_like(random)
        step[i] = 1e-6
        slope = (made.value(random + step, 0.01, scale)[0] - made.value(random - step, 0.01, scale)[0]) / 2e-6
        assert slope == pytest.approx(gradient[i], abs=1e-6)


@pytest.mark.parametrize("strength", [1.0, 1e-3, 1e-6])
def test_newton_ends_where_lbfgs_ends_and_is_taken_where_its_curvature_fits(strength, monkeypatch):
    x, y = problem(n=300, d=20, stretch=2.0)
    made = Problem(x, y, 5)
    scale = made.scale(strength)

    theta = newton(made, strength)

    assert np.abs(made.value((theta / scale).ravel(), strength, scale)[1]).max() < 1e-7
    slow = made.solve(strength, None, tolerance=1e-9, most=20_000)
    reached, least = (made.value((found / scale).ravel(), strength, scale)[0] for found in (theta, slow))
    assert reached == pytest.approx(least, abs=1e-6)
    if strength >= 1e-3:  # with less of it nearly separable classes leave the weights free
        np.testing.assert_allclose(theta - theta.mean(1, keepdims=True), slow - slow.mean(1, keepdims=True), atol=1e-4 * np.abs(slow).max())
    fast = logistic(x, y, 5, strength)
    assert np.array_equal(fast[0], made.weights(theta)[0])
    monkeypatch.setattr("pretrain.transfer.linear.FACTORS", 0)
    assert np.array_equal(logistic(x, y, 5, strength)[0], made.weights(made.solve(strength, None, tolerance=1e-7, most=2000))[0])


def test_the_preconditioner_is_the_curvature_of_each_class(monkeypatch):
    x, y = problem(n=50, d=3, classes=3)
    made = Problem(x, y, 3)
    scale, theta = made.scale(0.1), np.random.default_rng(0).normal(size=(4, 3))
    share = made.softmax(theta)[1]
    monkeypatch.setattr("pretrain.transfer.linear.ROWS", 16)
    for c, (factor, _) in enumerate(curvatures(made, share, 0.1, scale)):
        for i in range(4):
            step = np.zeros((4, 3))
            step[i, c] = 1e-5
            ahead, behind = (made.value((theta / scale + sign * step).ravel(), 0.1, scale)[1].reshape(4, 3)[:, c] for sign in (1, -1))
            np.testing.assert_allclose((np.tril(factor) @ np.tril(factor).T)[:, i], (ahead - behind) / 2e-5, atol=1e-6)


def test_limits_the_penalty_to_the_class_prior_and_separable_data_to_the_widest_margin():
    x, y = problem()
    weight, bias = logistic(x, y, 5, 1e8)
    prior = np.exp(bias) / np.exp(bias).sum()
    np.testing.assert_allclose(prior, np.bincount(y) / len(y), atol=1e-4)
    corners = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 5.0], [2.0, -5.0]])
    weight, bias = logistic(corners, np.array([0, 1, 0, 1]), 2, 1e-9)
    direction = weight[:, 1] - weight[:, 0]
    assert abs(direction[1] / direction[0]) < 0.05


def features(x, y) -> Features:
    return Features(x.astype(np.float32), y, np.array([f"{i:032x}" for i in range(len(y))]))


def test_the_probe_chooses_on_validation_and_scores_every_test_row():
    x, y = problem(n=900, stretch=3.0)
    train, test = features(x[:600], y[:600]), features(x[600:], y[600:])
    scores = linear(train, test)
    best = max(
        LogisticRegression(C=c, max_iter=3000)
        .fit((x[:600] - x[:600].mean(0)) / x[:600].std(0), y[:600])
        .score((x[600:] - x[:600].mean(0)) / x[:600].std(0), y[600:])
        for c in (0.01, 1.0)
    )
    assert scores.value.shape == (300,) and set(scores.value) <= {0.0, 1.0}
    assert scores.value.mean() >= best - 0.03
    assert linear(train, Features(test.z, (test.label + 1) % 5, test.uid)).chosen == scores.chosen
    assert scores.chosen == linear(train, test).chosen


def test_shuffled_labels_give_chance():
    x, y = problem(n=900)
    shuffled = np.random.default_rng(0).permutation(y[:600])
    value = linear(features(x[:600], shuffled), features(x[600:], y[600:])).value
    assert abs(value.mean() - 0.2) < 0.1


def test_the_sweep_finds_a_peak_between_its_grid_points():
    x, y = problem(n=300, d=40, classes=3, seed=3)
    tried = sweep(x[:240].astype(np.float32), y[:240], x[240:].astype(np.float32), y[240:], 3)
    right, strength = max((right, strength) for strength, (right, _, _) in tried.items())
    direct = {s: float(((x[240:] @ (w := logistic(x[:240], y[:240], 3, s))[0] + w[1]).argmax(1) == y[240:]).mean()) for s in (strength, 10.0, 1e-8)}
    assert direct[strength] == pytest.approx(right, abs=0.02)
    assert right >= max(direct.values()) - 0.02


def nearly_free(seed: int, n: int, classes: int, stretch: float) -> tuple[np.ndarray, np.ndarray]:
    """Small features of very different spread, for which weak penalties are best and a solver that stops early tells another accuracy than the optimum's."""
    world, random = np.random.default_rng(7), np.random.default_rng(seed)
    centres, turn = world.normal(size=(classes, 32)) * 0.6, world.normal(size=(32, 32)) / np.sqrt(32)
    y = random.integers(0, classes, n)
    return ((centres[y] + random.normal(size=(n, 32))) * np.logspace(0, -2, 32)) @ turn * stretch, y


@pytest.mark.parametrize(("seed", "classes", "stretch"), [(0, 20, 0.05), (4, 20, 0.05), (3, 6, 0.01)])
def test_the_validation_that_is_told_is_that_of_the_optimum_that_was_chosen(seed, classes, stretch):
    train = features(*nearly_free(seed, 1500, classes, stretch))
    fit, held = train.halves()
    chosen = linear(train, train.take(held)).chosen

    scale, mean = scaling(train.z[fit], chosen["standardise"])
    x, rest = ((train.z[rows] - mean) / scale for rows in (fit, held))

    def at(strength):
        weight, bias = logistic(x, train.label[fit], classes, strength)
        return float(((rest @ weight + bias).argmax(1) == train.label[held]).mean())

    assert chosen["validation"] == at(chosen["strength"])
    assert chosen["validation"] >= max(at(s) for s in (chosen["strength"] * 10**0.75, chosen["strength"] / 10**0.75))


def test_a_start_made_at_another_scaling_changes_the_way_and_not_the_optimum():
    x, y = problem(n=300, d=20, stretch=1.0)
    half = x / 2 - 1
    weight, bias = logistic(half, y, 5, 1e-2)
    start = Candidate(0.0, 1e-2, False, weight, bias, np.full(20, 2.0), np.full(20, 2.0)).rescaled(np.ones(20), np.zeros(20))
    np.testing.assert_allclose(x @ start[0] + start[1], half @ weight + bias)
    cold, warm = logistic(x, y, 5, 1e-3), logistic(x, y, 5, 1e-3, start=start)
    np.testing.assert_allclose(warm[0], cold[0], atol=1e-4 * np.abs(cold[0]).max())
    np.testing.assert_allclose(warm[1] - warm[1].mean(), cold[1] - cold[1].mean(), atol=1e-3)


def test_a_class_that_only_the_test_holds_is_a_miss_and_no_error():
    x, y = problem(n=100, classes=2)
    test = features(x[:10], np.full(10, 7))
    assert not linear(features(x, y), test).value.any()
