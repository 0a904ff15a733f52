"""The claims of section 04/07 (evidence and validation), on random instances, broken once each."""

from itertools import combinations

import numpy as np
import pytest
from claims import rejects
from scipy.special import ndtr
from scipy.stats import multivariate_normal

from course_lib import choice, functionals, operators

M, N = 7, 5


def instance(rng):
    """A, D in the basis that makes both diagonal, the noise and the precision of the prior."""
    A, D = rng.standard_normal((M, N)), operators.difference(N, boundary="zero")
    return A, D, 10 ** rng.uniform(-1, 0.3), 10 ** rng.uniform(-1, 1)


@pytest.mark.claim("thm-model-right")
@pytest.mark.parametrize("broken", [None, "the data from another prior", "without the noise level"])
def test_all_means_are_smallest_at_one_parameter(rng, broken):
    """The means in closed form, from the covariance of (x, y) alone."""
    steps = np.exp(np.linspace(-3, 3, 41))
    with rejects(broken):
        for _ in range(5):
            A, D, std, precision = instance(rng)
            L, B = D.to_dense(), rng.standard_normal((4, N))
            used = (5 if broken == "the data from another prior" else 1) * precision
            prior = np.linalg.inv(used * L.T @ L)
            cov = A @ prior @ A.T + std**2 * np.eye(M)
            lam0 = (1 if broken == "without the noise level" else std**2) * precision
            criteria = {"evidence": [], "B": [], "prediction": [], "estimation": []}
            for lam in lam0 * steps:
                G = np.linalg.solve(A.T @ A + lam * L.T @ L, A.T)
                rest = np.eye(M) - A @ G
                mean = np.trace(rest @ cov) / std**2 - np.linalg.slogdet(rest)[1]
                criteria["evidence"].append(0.5 * mean)
                error = G @ cov @ G.T - G @ A @ prior - prior @ A.T @ G.T + prior
                for name, op in (("B", B), ("prediction", A), ("estimation", np.eye(N))):
                    criteria[name].append(np.trace(op @ error @ op.T))
            for values in criteria.values():
                slopes = np.diff(values)
                assert (slopes[:20] < 0).all()
                assert (slopes[20:] > 0).all()


@pytest.mark.claim("thm-model-right")
@pytest.mark.parametrize("broken", [None, "an operator that sees the solution"])
def test_constant_if_the_validation_sees_nothing(rng, broken):
    with rejects(broken):
        A, D, std, precision = instance(rng)
        A[-2:] = 0
        A = A * np.r_[np.ones(N - 2), 0, 0]
        L = D.to_dense()
        prior = np.linalg.inv(precision * L.T @ L)
        seen = prior @ A.T
        B = np.eye(N) - seen @ np.linalg.pinv(seen)  # B (DᵀD)⁻¹Aᵀ = 0
        if broken:
            B = np.eye(N)
        y = rng.standard_normal(M)
        both = choice.smoother(A, D)
        for lam in (1e-2, 1.0, 1e2):
            assert np.linalg.norm(B @ both.fit(y).solve(lam * std**2)) < 1e-9


WEIGHTS = {
    "evidence": lambda phi, s: phi**2,
    "prediction": lambda phi, s: phi**2 * (1 - phi),
    "estimation": lambda phi, s: phi**2 * (1 - phi) / s**2,
}


@pytest.mark.claim("prop-three-averages")
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("broken", [None, "equal weights", "the weights of another criterion"])
@pytest.mark.slow
def test_stationary_points(rng, name, broken):
    """The mean over the noise from the matrices, minimized on a fine grid."""
    lams = np.geomspace(1e-6, 1e4, 1501)
    with rejects(broken):
        found = 0
        for _ in range(10):
            A, std = rng.standard_normal((M, N)) * np.geomspace(1, 0.03, N), 0.1
            x = rng.standard_normal(N) * np.geomspace(3, 0.1, N)
            s, Vt = np.linalg.svd(A)[1:]
            values = []
            for lam in lams:
                G = np.linalg.solve(A.T @ A + lam * np.eye(N), A.T)
                rest = np.eye(M) - A @ G
                if name == "evidence":
                    mean = x @ A.T @ rest @ A @ x + std**2 * np.trace(rest)
                    values.append(0.5 * mean / std**2 - 0.5 * np.linalg.slogdet(rest)[1])
                else:
                    op = A if name == "prediction" else np.eye(N)
                    bias = op @ (G @ A @ x - x)
                    values.append(bias @ bias + std**2 * np.sum((op @ G) ** 2))
            slope = np.diff(values)
            others = [key for key in WEIGHTS if key != name]
            for i in np.flatnonzero(slope[:-1] * slope[1:] < 0):
                found += 1
                lam = lams[i + 1]
                phi = s**2 / (s**2 + lam)
                key = others[0] if broken == "the weights of another criterion" else name
                w = np.ones(N) if broken == "equal weights" else WEIGHTS[key](phi, s)
                average = np.sum(w * (Vt @ x) ** 2) / np.sum(w)
                assert abs(lam * average / std**2 - 1) < 0.03
    assert found > 0


@pytest.mark.claim("prop-three-averages")
@pytest.mark.parametrize("broken", [None, "coefficients that grow"])
def test_order_of_the_averages(rng, broken):
    with rejects(broken):
        for _ in range(20):
            s = np.sort(rng.uniform(0.01, 1, N))[::-1]
            squares = np.sort(rng.uniform(0, 1, N))[:: 1 if broken else -1]
            phi = s**2 / (s**2 + 10 ** rng.uniform(-3, 1))
            weights = [weight(phi, s) for weight in WEIGHTS.values()]
            evidence, prediction, estimation = (np.sum(w * squares) / np.sum(w) for w in weights)
            assert evidence >= prediction >= estimation


@pytest.mark.claim("thm-leave-out")
@pytest.mark.parametrize("broken", [None, "the mean over k", "leave-one-out only", "joint scores"])
def test_sum_of_the_scores(rng, broken):
    size = 5
    with rejects(broken):
        for _ in range(3):
            B = rng.standard_normal((size, 2 * size))
            cov, y = B @ B.T, rng.standard_normal(size)

            def log_density(part, cov=cov, y=y):
                part = list(part)
                if not part:
                    return 0.0
                return multivariate_normal(cov=cov[np.ix_(part, part)]).logpdf(y[part])

            scores = []
            for k in range(1, size + 1):
                marks = []
                for out in combinations(range(size), k):
                    rest = [i for i in range(size) if i not in out]
                    if broken == "joint scores":
                        marks.append(log_density((*rest, *out)) - log_density(rest))
                    else:
                        marks += [log_density((*rest, j)) - log_density(rest) for j in out]
                scores.append(np.mean(marks))
            total = sum(scores)
            if broken == "the mean over k":
                total = total / size
            if broken == "leave-one-out only":
                total = size * scores[0]
            assert abs(total - log_density(range(size))) < 1e-10


@pytest.mark.claim("prop-lambda-posterior")
@pytest.mark.parametrize("broken", [None, "without the spread of the means", "plug-in"])
def test_mixture(rng, broken):
    """Mean and covariance from the joint density, by brute force on grids (one unknown)."""
    thetas, x = np.linspace(-3, 3, 13), np.linspace(-40, 40, 40_001)
    with rejects(broken):
        for _ in range(3):
            a, std = rng.standard_normal((3, 1)), 0.8
            y = 2 * rng.standard_normal(3)
            lams = np.exp(thetas)
            joint = np.zeros_like(x)
            for lam in lams:
                misfit = np.sum((y[:, None] - a * x) ** 2, axis=0) + lam * x**2
                joint += np.sqrt(lam) * np.exp(-0.5 * misfit / std**2)
            joint /= joint.sum()
            mean = np.sum(x * joint)
            values = choice.evidence(a, y, noise_std=std, grid=lams).values
            weights = np.exp(values.min() - values)
            if broken == "plug-in":
                weights = (values == values.min()).astype(float)
            weights /= weights.sum()
            fit = choice.smoother(a).fit(y)
            means = np.array([fit.solve(lam)[0] for lam in lams])
            covs = std**2 / (np.sum(a**2) + lams)
            found = weights @ means
            spread = weights @ (means - found) ** 2
            if broken == "without the spread of the means":
                spread = 0.0
            assert abs(found - mean) < 1e-6
            assert abs(weights @ covs + spread - np.sum(x**2 * joint) + mean**2) < 1e-6


@pytest.mark.claim("prop-lambda-posterior")
@pytest.mark.parametrize("broken", [None, "the density falls to zero"])
def test_flat_hyperprior_has_no_posterior(rng, broken):
    with rejects(broken):
        A, D, std, _ = instance(rng)
        y = rng.standard_normal(M)
        ends = np.exp(-choice.evidence(A, y, D, noise_std=std, grid=[1e6, 1e9, 1e12]).values)
        noise = multivariate_normal(cov=std**2 * np.eye(M)).pdf(y)
        assert noise > 0
        assert abs(ends[-1] / (0.5 * noise if broken else noise) - 1) < 1e-6


def laplace_mean(y, beta, std, sign=1):
    shift = beta * std**2
    plus = np.exp(-beta * y) * ndtr((y - shift) / std)
    minus = np.exp(beta * y) * ndtr((-y - shift) / std)
    return (plus * (y - sign * shift) + minus * (y + sign * shift)) / (plus + minus)


@pytest.mark.claim("prop-laplace-mean")
@pytest.mark.parametrize("broken", [None, "the maximum for the mean", "the sign of the shift"])
def test_mean_and_maximum(rng, broken):
    x = np.linspace(-30, 30, 600_001)
    with rejects(broken):
        for _ in range(5):
            y, beta, std = rng.uniform(-3, 3), 10 ** rng.uniform(-0.5, 0.5), rng.uniform(0.3, 1.5)
            exponent = -0.5 * ((x - y) / std) ** 2 - beta * np.abs(x)
            density = np.exp(exponent - exponent.max())
            top = float(functionals.soft_threshold(np.array([y]), beta * std**2)[0])
            assert abs(x[density.argmax()] - top) < 2e-4
            found = laplace_mean(y, beta, std, -1 if broken == "the sign of the shift" else 1)
            if broken == "the maximum for the mean":
                found = top
            assert abs(found - np.sum(x * density) / np.sum(density)) < 1e-6


@pytest.mark.claim("prop-laplace-mean")
@pytest.mark.parametrize("broken", [None, "the maximum"])
def test_zero_at_zero_only(rng, broken):
    y = np.linspace(-4, 4, 81)
    with rejects(broken):
        for _ in range(5):
            beta, std = 10 ** rng.uniform(-0.5, 0.5), rng.uniform(0.5, 1.5)
            values = laplace_mean(y, beta, std)
            if broken:
                values = functionals.soft_threshold(y, beta * std**2)
            assert np.allclose(values, -values[::-1])
            assert (np.diff(values) > 0).all()
