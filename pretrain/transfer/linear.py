"""Linear probe: L2-penalised multinomial logistic regression on frozen features."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pretrain.transfer.features import Features, Scores

STRENGTHS = [10.0 ** (1 - 0.75 * i) for i in range(13)]  # of the penalty, strongest first: 10 … 1e-8
PATIENCE = 3  # weaker penalties tried after the best one
TOLERANCE = 1e-7  # of the final fit's gradient
SETTLED = (1e-4, 1e-6)  # of a candidate's, one after the other while it is the best
STEPS, PRODUCTS = 100, 200  # Newton's, and those of the conjugate gradients in each
STALE = 8  # products after which the preconditioner is made anew: one is worth about as many
FACTORS = 512 << 20  # bytes that the preconditioner may take; above it the final fit is L-BFGS
ROWS = 4096  # rows of a block of the preconditioner's sums


def linear(train: Features, test: Features, *, device: Literal["cpu", "cuda"] = "cpu") -> Scores:
    """Score 1 where the probe gives the test sample's label, else 0.

    Minimises mean cross-entropy + strength / 2 * |W|^2 over W and an unpenalised bias (scikit-learn's C is 1 / (strength * n)). Features as they are, or
    standardised by training rows; that and the strength are chosen by accuracy on a stratified fifth of train: 13 strengths on a logarithmic grid, the peak
    refined twice by halving. These fits stop near the optimum (float32, gradient below 1e-3 or 30 steps); the best is fitted further, until the best is one
    that has been fitted to the end. Ties go to the stronger penalty, then to features as they are. Then it is fitted on all of train, and test is read once.

    Guarantee   the fit that is chosen is in float64 to a gradient below 1e-6 and `validation` is its accuracy; no other has a higher one, those that were not
                fitted to the end as far as they are. The final fit is in float64 to a gradient below 1e-7; a tie between classes goes to the lowest
    Source      the protocol of CLIP's appendix A.3 and of t-ReX: choice on validation, refit on everything. The optimum is one point whoever finds it:
                L-BFGS near it, and Newton's method at the end
    device      where the final fit runs; the same optimum to 1e-4 on both
    Cost        about 600 passes of 4 * n * d * classes operations in float32; in float64 about 50 and once to five times n * d^2 * classes for each fit that is
                brought further, of which there are 3 to 12
    """
    num_classes = int(max(train.label.max(), test.label.max())) + 1
    best = choose(train, num_classes)
    strength, standardise = (STRENGTHS[4], False) if best is None else (best.strength, best.standardise)
    scale, mean = scaling(train.z, standardise)
    x = ((train.z - mean) / scale).astype(np.float64)
    if device == "cpu":
        weight, bias = logistic(x, train.label, num_classes, strength, start=None if best is None else best.rescaled(scale, mean))
    else:
        weight, bias = logistic_on_device(x, train.label, num_classes, strength)
    guess = (((test.z - mean) / scale).astype(np.float64) @ weight + bias).argmax(1)
    told = {"strength": strength, "standardise": standardise, "validation": -1.0 if best is None else best.right}
    return Scores((guess == test.label).astype(np.float64), told)


@dataclass(frozen=True)
class Candidate:
    """A fit on four fifths of train: its accuracy on the last fifth, what it was made with, its weight (d, classes) and bias (classes,) at that scaling."""

    right: float
    strength: float
    standardise: bool
    weight: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    mean: np.ndarray
    settled: int = 0  # how many of `SETTLED` it has been brought to

    def rescaled(self, scale: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same function of the features, as (weight, bias) at another scaling."""
        plain = self.weight / self.scale[:, None]
        return plain * scale[:, None], self.bias + (mean - self.mean) @ plain


def choose(train: Features, num_classes: int) -> Candidate | None:
    """The best candidate, once it is an optimum and no other, as far as it is fitted, seems better; None where train is too small to be split."""
    fit, held_out = train.halves()
    if not len(fit) or not len(held_out):
        return None
    y, truth = train.label[fit], train.label[held_out]
    found: list[Candidate] = []
    problems: dict[bool, tuple[Problem, np.ndarray]] = {}
    for standardise in (False, True):
        scale, mean = scaling(train.z[fit], standardise)
        x, held = (train.z[fit] - mean) / scale, (train.z[held_out] - mean) / scale
        found += [Candidate(r, s, standardise, w, b, scale, mean) for s, (r, w, b) in sweep(x, y, held, truth, num_classes).items()]
    while True:
        i = min(range(len(found)), key=lambda i: (-found[i].right, -found[i].strength, found[i].standardise))
        best = found[i]
        if best.settled == len(SETTLED):
            return best
        if best.standardise not in problems:
            x, held = ((train.z[rows] - best.mean) / best.scale for rows in (fit, held_out))
            problems[best.standardise] = Problem(x.astype(np.float64), y, num_classes), held.astype(np.float64)
        problem, held = problems[best.standardise]
        weight, bias = problem.weights(optimum(problem, best.strength, problem.rotated(best.weight, best.bias), tolerance=SETTLED[best.settled]))
        right = float(((held @ weight + bias).argmax(1) == truth).mean())
        found[i] = replace(best, right=right, weight=weight, bias=bias, settled=best.settled + 1)


def scaling(z: np.ndarray, standardise: bool) -> tuple[np.ndarray, np.ndarray]:
    """(scale, mean) of training rows; the mean moves into the bias, so it is always taken; without `standardise` one scale for all dimensions."""
    mean, std = z.mean(0, dtype=np.float64), z.std(0, dtype=np.float64)
    scale = np.where(std > 0, std, 1) if standardise else np.ones_like(std)
    return scale.astype(np.float32), mean.astype(np.float32)


def sweep(x: np.ndarray, y: np.ndarray, held: np.ndarray, truth: np.ndarray, num_classes: int) -> dict[float, tuple[float, np.ndarray, np.ndarray]]:
    """Strength -> (accuracy on the held rows, weight, bias), near the optimum: each fit starts from the one before it."""
    problem = Problem(x.astype(np.float32), y, num_classes)
    tried: dict[float, tuple[float, np.ndarray, np.ndarray]] = {}
    starts: dict[float, np.ndarray] = {}

    def accuracy(strength: float) -> float:
        near = min(starts, key=lambda s: abs(np.log(s / strength)), default=None)
        starts[strength] = problem.solve(strength, starts.get(near) if near else None, tolerance=1e-3, most=30)
        weight, bias = problem.weights(starts[strength])
        tried[strength] = float(((held @ weight + bias).argmax(1) == truth).mean()), weight, bias
        return tried[strength][0]

    best = -1.0
    behind = 0
    for strength in STRENGTHS:
        right = accuracy(strength)
        behind = 0 if right > best else behind + 1
        best = max(best, right)
        if behind >= PATIENCE:
            break
    for half in (0.375, 0.1875):
        peak = max(tried, key=lambda s: (tried[s][0], s))
        for strength in (peak * 10**half, peak / 10**half):
            accuracy(strength)
    return tried


class Problem:
    """One set of training rows, rotated into its principal axes, where the penalised problem is nearly round for every strength."""

    def __init__(self, x: np.ndarray, y: np.ndarray, num_classes: int) -> None:
        self.mean = x.mean(0)
        centred = x - self.mean
        spread, self.axes = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(x))
        self.spread = np.maximum(spread, 0)
        self.axes = self.axes.astype(x.dtype)
        self.z, self.rows, self.y, self.num_classes = centred @ self.axes, np.arange(len(x)), y, num_classes

    def scale(self, strength: float) -> np.ndarray:
        """Step sizes (d + 1,): the inverse root of the curvature, that of uniform predictions being (1 - 1/C) / C times the spread."""
        curvature = (1 - 1 / self.num_classes) / self.num_classes
        return np.append(1 / np.sqrt(curvature * self.spread + strength), 1 / np.sqrt(curvature))[:, None].astype(self.z.dtype)

    def softmax(self, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean cross-entropy at unscaled parameters, and probabilities (classes, n): classes first, so that sums over the few of them run along rows."""
        logits = theta[:-1].T @ self.z.T
        logits += theta[-1][:, None]
        logits -= logits.max(0)
        mine = logits[self.y, self.rows]
        np.exp(logits, out=logits)
        total = logits.sum(0)
        logits /= total
        return float(np.mean(np.log(total) - mine, dtype=np.float64)), logits

    def pull(self, u: np.ndarray) -> np.ndarray:
        """Mean over the rows of u (classes, n) times the row and 1: (d + 1, classes)."""
        return np.concatenate([(u @ self.z).T / len(self.z), u.mean(1)[None]])

    def value(self, flat: np.ndarray, strength: float, scale: np.ndarray) -> tuple[float, np.ndarray]:
        """Loss and gradient at the scaled parameters."""
        theta = flat.reshape(-1, self.num_classes).astype(self.z.dtype) * scale
        loss, wrong = self.softmax(theta)
        loss += 0.5 * strength * float(np.sum(theta[:-1].astype(np.float64) ** 2))
        wrong[self.y, self.rows] -= 1
        gradient = self.pull(wrong)
        gradient[:-1] += strength * theta[:-1]
        return loss, (gradient * scale).astype(np.float64).ravel()

    def solve(self, strength: float, start: np.ndarray | None, *, tolerance: float, most: int) -> np.ndarray:
        """Unscaled parameters (d + 1, classes) in the rotated axes, from `start` (likewise)."""
        from scipy.optimize import minimize

        scale = self.scale(strength)
        first = np.zeros((len(scale), self.num_classes)) if start is None else start / scale
        options = {"maxiter": most, "maxfun": 2 * most, "gtol": tolerance, "ftol": 0.0 if self.z.dtype == np.float64 else 1e-9, "maxcor": 20}
        found = minimize(self.value, first.ravel(), args=(strength, scale), jac=True, method="L-BFGS-B", options=options)
        return found.x.reshape(-1, self.num_classes) * scale

    def weights(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(weight (d, classes), bias (classes,)) for the rows as they were given."""
        weight = self.axes @ theta[:-1]
        return weight, theta[-1] - self.mean @ weight

    def rotated(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """The parameters (d + 1, classes) that `weights` gives back."""
        return np.concatenate([self.axes.T @ weight, (bias + self.mean @ weight)[None]])


def logistic(
    x: np.ndarray, y: np.ndarray, num_classes: int, strength: float, start: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(weight, bias) at the optimum, in float64 on the CPU; sooner from a `start` nearby."""
    problem = Problem(x.astype(np.float64), y, num_classes)
    return problem.weights(optimum(problem, strength, None if start is None else problem.rotated(*start)))


def optimum(problem: Problem, strength: float, start: np.ndarray | None = None, *, tolerance: float = TOLERANCE) -> np.ndarray:
    """As `Problem.solve`, to a gradient below `tolerance`: by Newton's method; from a start nearby by L-BFGS first, for d / 4 steps, which cost as much as
    one curvature of it."""
    scale = problem.scale(strength)
    if start is not None:
        start = problem.solve(strength, start, tolerance=tolerance, most=len(scale) // 4 + 1)
        if np.abs(problem.value((start / scale).ravel(), strength, scale)[1]).max() <= tolerance:
            return start
    fits = 8 * problem.num_classes * len(scale) ** 2 <= FACTORS
    return newton(problem, strength, start) if fits else problem.solve(strength, start, tolerance=TOLERANCE, most=2000)


def newton(problem: Problem, strength: float, start: np.ndarray | None = None) -> np.ndarray:
    """As `Problem.solve`, by Newton's method: each step by conjugate gradients, preconditioned by the curvature of each class by itself.

    The curvature is taken anew where the last step needed more than `STALE` products. All classes moved alike change no prediction, and nearly nothing
    resists: the preconditioner is kept off that direction, without which ten times the products are needed.
    """
    scale = problem.scale(strength)
    flat = np.zeros((len(scale), problem.num_classes)) if start is None else start / scale
    loss, gradient = problem.value(flat, strength, scale)
    factors: list[tuple[np.ndarray, bool]] = []
    products = STALE + 1
    for _ in range(STEPS):
        if np.abs(gradient).max() < TOLERANCE:
            break
        share = problem.softmax(flat * scale)[1]
        if products > STALE:
            factors = curvatures(problem, share, strength, scale)
        step, products = newton_step(problem, share, strength, scale, factors, gradient.reshape(flat.shape))
        length, slope = 1.0, float(gradient @ step.ravel())
        before, (loss, gradient) = loss, problem.value(flat + step, strength, scale)
        while loss > before + 1e-4 * length * slope + 1e-13 * abs(before) and length > 1e-9:
            length /= 2
            loss, gradient = problem.value(flat + length * step, strength, scale)
        flat = flat + length * step
    return flat * scale


def newton_step(
    problem: Problem, share: np.ndarray, strength: float, scale: np.ndarray, factors: list[tuple[np.ndarray, bool]], gradient: np.ndarray
) -> tuple[np.ndarray, int]:
    """(step in scaled parameters, products with the curvature that it took): closer the smaller the gradient is, which makes Newton's steps converge."""
    step, rest = np.zeros_like(gradient), -gradient
    aim = precondition(factors, rest)
    size = first = float(np.sum(rest * aim))
    close = min(0.25, first**0.25)
    move, products = aim, 0
    while size > close**2 * first or not products:
        theta = move * scale
        u = theta[:-1].T @ problem.z.T + theta[-1][:, None]
        u *= share
        u -= share * u.sum(0)
        bent = problem.pull(u)
        bent[:-1] += strength * theta[:-1]
        bent *= scale
        far = size / float(np.sum(move * bent))
        step += far * move
        rest = rest - far * bent
        aim = precondition(factors, rest)
        size, last = float(np.sum(rest * aim)), size
        move = aim + size / last * move
        products += 1
        if products == PRODUCTS:
            break
    return step, products


def curvatures(problem: Problem, share: np.ndarray, strength: float, scale: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    """A Cholesky factor a class: the second derivatives by the scaled parameters of that class alone, n d^2 operations each."""
    from scipy.linalg import cho_factor

    squares = np.zeros((problem.num_classes, len(scale), len(scale)))
    for start in range(0, len(problem.z), ROWS):
        part = slice(start, start + ROWS)
        rows = np.concatenate([problem.z[part], np.ones((len(problem.z[part]), 1))], 1) * scale[:, 0]
        for square, mine in zip(squares, share[:, part], strict=True):
            weighted = rows * np.sqrt(mine * (1 - mine))[:, None]
            square += weighted.T @ weighted
    ridge = strength * scale[:, 0] ** 2
    ridge[-1] = 0
    return [cho_factor(square / len(problem.z) + np.diag(ridge + 1e-9), lower=True) for square in squares]


def precondition(factors: list[tuple[np.ndarray, bool]], gradient: np.ndarray) -> np.ndarray:
    """The gradient divided by each class's curvature, less its mean over the classes before and after."""
    from scipy.linalg import cho_solve

    gradient = gradient - gradient.mean(1, keepdims=True)
    found = np.stack([cho_solve(factor, column, check_finite=False) for factor, column in zip(factors, gradient.T, strict=True)], 1)
    return found - found.mean(1, keepdims=True)


def logistic_on_device(x: np.ndarray, y: np.ndarray, num_classes: int, strength: float, device: str = "cuda") -> tuple[np.ndarray, np.ndarray]:
    """As `logistic`, by torch's L-BFGS with strong-Wolfe line search in float64 on `device`."""
    import torch

    problem = Problem(x.astype(np.float64), y, num_classes)
    z, scale = torch.from_numpy(problem.z).to(device), torch.from_numpy(problem.scale(strength)).to(device)
    truth = torch.from_numpy(y).to(device)
    flat = torch.zeros(len(scale), num_classes, dtype=torch.float64, device=device, requires_grad=True)
    search = torch.optim.LBFGS(
        [flat], lr=1, max_iter=2000, max_eval=4000, tolerance_grad=1e-7, tolerance_change=0, history_size=20, line_search_fn="strong_wolfe"
    )

    def value() -> torch.Tensor:
        search.zero_grad()
        theta = flat * scale
        loss = torch.nn.functional.cross_entropy(z @ theta[:-1] + theta[-1], truth) + 0.5 * strength * theta[:-1].square().sum()
        loss.backward()
        return loss

    search.step(value)
    return problem.weights((flat * scale).detach().cpu().numpy())
