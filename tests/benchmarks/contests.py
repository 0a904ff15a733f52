"""The rows of the benchmark: what is solved, by us and by the peers, and who judges.

The judges are written here, in plain NumPy, and use nothing of the library. Objectives are sums,
½‖Ax − y‖² + λR(x); each peer's own scaling is translated where it is called:

- scikit-learn, celer and skglm minimize (1/2m)‖Ax − y‖² + α‖x‖₁ with m rows: α = λ/m;
- Ridge and RidgeCV minimize ‖Ax − y‖² + α‖x‖²: α = λ, both sides doubled;
- scikit-image's ``weight`` and pyproximal's ``sigma`` are λ.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import scipy.fft
import scipy.signal
import scipy.sparse
import scipy.sparse.linalg
from measuring import Contestant, Task, fewest, looked_at, loosest, measure, row, steps_until

from course_lib import choice, filters, functionals, linear, operators, problems, proximal
from course_lib.iterate import run

OURS = "course_lib"
GAP = "relative duality gap that the answer proves: (objective - dual value) / objective"
ABOVE = "relative height above the best known lower bound of the objective"
DISTANCE = "relative distance to an answer computed another way"
TOLERANCES = [10.0 ** (-k / 4) for k in range(8, 60)]


def callback_steps(
    solve: Callable[[Callable], Any], accuracy: Callable[[Any], float], target: float
) -> int | None:
    """Return after how many steps an iterate reaches the target, to 2 %; ``solve`` shows them."""
    steps = 0

    class Reached(Exception):  # noqa: N818
        pass

    def look(x: Any) -> None:
        nonlocal steps
        steps += 1
        if looked_at(steps) and accuracy(x) <= target:
            raise Reached

    try:
        solve(look)
    except Reached:
        return steps
    return None


# ------------------------------------------------------------------------------------------------
# LASSO


@dataclass(frozen=True, eq=False)
class Lasso:
    """Judge of ½‖Ax − y‖² + λ‖x‖₁."""

    A: np.ndarray
    y: np.ndarray
    lam: float

    def objective(self, x: np.ndarray) -> float:
        """Return the value at x."""
        r = self.A @ x - self.y
        return float(0.5 * r @ r + self.lam * np.abs(x).sum())

    def lower(self, x: np.ndarray) -> float:
        """Return a lower bound of the minimum: the dual value at the residual, made feasible."""
        r = self.y - self.A @ x
        top = self.lam / np.abs(self.A.T @ r).max()
        r = np.clip(r @ self.y / (r @ r), -top, top) * r
        return float(r @ self.y - 0.5 * r @ r)


def deconvolution(n: int = 1000, spikes: int = 20, width: float = 4.0) -> tuple:
    """Return a blur with a Gaussian, dense, n × n, and data of a few spikes with 1 % noise."""
    t = np.arange(n)
    A = np.exp(-0.5 * (np.subtract.outer(t, t) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    return A, _sparse_data(A, spikes, 0.01)


def gaussian(m: int = 500, n: int = 2000, spikes: int = 50) -> tuple:
    """Return a matrix of independent normal numbers, m × n, and data with 5 % noise."""
    A = np.random.default_rng(1).standard_normal((m, n)) / np.sqrt(m)
    return A, _sparse_data(A, spikes, 0.05)


def _sparse_data(A: np.ndarray, spikes: int, noise: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = np.zeros(A.shape[1])
    x[rng.choice(x.size, spikes, replace=False)] = rng.standard_normal(spikes)
    y = A @ x
    e = rng.standard_normal(y.size)
    return y + noise * np.linalg.norm(y) / np.linalg.norm(e) * e


def coordinate_descent(judge: Lasso) -> dict[str, Callable[[float], Callable]]:
    """Return the peers whose tolerance says how far they go: name -> tolerance -> call."""
    import celer
    import skglm
    import sklearn.linear_model
    from skglm.solvers import AndersonCD

    # Their loops run along columns.
    A, y, alpha = np.asfortranarray(judge.A), judge.y, judge.lam / len(judge.y)
    many = {"max_iter": 1000, "max_epochs": 10**6}

    def of_sklearn(tol: float) -> Any:
        return sklearn.linear_model.Lasso(alpha=alpha, fit_intercept=False, tol=tol, max_iter=10**5)

    def of_celer(tol: float) -> Any:
        return celer.Lasso(alpha=alpha, fit_intercept=False, tol=tol, **many)

    def of_skglm(tol: float) -> Any:
        return skglm.GeneralizedLinearEstimator(
            skglm.datafits.Quadratic(),
            skglm.penalties.L1(alpha),
            AndersonCD(tol=tol, fit_intercept=False, **many),
        )

    def fit(make: Callable) -> Callable[[float], Callable]:
        def told(tol: float) -> Callable:
            def solve() -> np.ndarray:
                with warnings.catch_warnings():
                    # "did not converge": the accuracy is judged here.
                    warnings.simplefilter("ignore")
                    return np.ravel(make(tol).fit(A, y).coef_)

            return solve

        return told

    makers = {"celer.Lasso": of_celer, "skglm, AndersonCD": of_skglm, "sklearn Lasso": of_sklearn}
    return {name: fit(make) for name, make in makers.items()}


def pyproximal_fista(judge: Lasso, step: float) -> Callable[..., np.ndarray]:
    """Return pyproximal's FISTA as a function of the number of steps."""
    import pylops
    import pyproximal

    f = pyproximal.L2(Op=pylops.MatrixMult(judge.A), b=judge.y)
    g = pyproximal.L1(sigma=judge.lam)
    x0 = np.zeros(judge.A.shape[1])

    def solve(steps: int, look: Callable | None = None) -> np.ndarray:
        return pyproximal.optimization.primal.ProximalGradient(
            f, g, x0=x0, tau=step, niter=steps, acceleration="fista", callback=look
        )

    return solve


def lasso_rows(name: str, A: np.ndarray, y: np.ndarray, fraction: float) -> Iterator[dict]:
    """Time the LASSO solvers on one problem, and plain FISTA on the same one.

    The judge asks for a duality gap that the answer proves by itself, through its own residual:
    this is what a user can check. Plain FISTA is also judged by the objective alone.
    """
    lam, target = fraction * float(np.abs(A.T @ y).max()), 1e-6
    judge, peers = Lasso(A, y, lam), coordinate_descent(Lasso(A, y, lam))
    bound = judge.lower(peers["celer.Lasso"](1e-13)())

    def gap(x: np.ndarray) -> float:
        value = judge.objective(x)
        return (value - judge.lower(x)) / value

    def height(x: np.ndarray) -> float:
        value = judge.objective(x)
        return (value - bound) / value

    ours = {OURS: lambda rtol: lambda: proximal.lasso(A, y, lam, rtol=rtol).x}
    contestants = []
    for solver, make in (ours | peers).items():
        tol = loosest(make, TOLERANCES, gap, target)
        contestants.append(Contestant(solver, make(tol), f"tol={tol:.0e}"))
    found = measure([*contestants, *fista_contestants(judge, gap, target)], gap, target)
    fista, others = found["fista"] | {"name": OURS}, [found[peer] for peer in peers]
    yield row(TASKS[f"lasso-{name}"], found[OURS], others)
    yield row(TASKS[f"fista-{name}"], fista, [found["pyproximal, FISTA"]])
    yield row(TASKS[f"fista-distance-{name}"], fista, others)
    found = measure(fista_contestants(judge, height, target), height, target)
    fista = found["fista"] | {"name": OURS}
    yield row(TASKS[f"fista-objective-{name}"], fista, [found["pyproximal, FISTA"]])


def fista_contestants(
    judge: Lasso, accuracy: Callable[[np.ndarray], float], target: float, limit: int = 10**4
) -> list[Contestant]:
    """Return FISTA with restart and pyproximal's, both told how many steps they need."""
    A, y, lam = judge.A, judge.y, judge.lam
    step = 1 / np.linalg.norm(A, 2) ** 2
    f, R = functionals.least_squares(A, y), lam * functionals.l1()

    def states() -> Iterator:
        return proximal.fista(f, R, np.zeros(A.shape[1]), step=step, restart=True)

    def solve(steps: int) -> np.ndarray:
        return run(states(), max_iter=steps, check_every=steps).x

    # The first state is the starting point.
    iterates = (state.x for state in islice(states(), 1, limit + 1))
    own = steps_until(iterates, accuracy, target) or limit
    peer = pyproximal_fista(judge, step)
    others = callback_steps(lambda look: peer(limit, look), accuracy, target) or limit
    return [
        Contestant("fista", lambda: solve(own), f"{own} steps"),
        Contestant("pyproximal, FISTA", lambda: peer(others), f"{others} steps"),
    ]


# ------------------------------------------------------------------------------------------------
# Total variation


def differences(x: np.ndarray) -> np.ndarray:
    """Return forward differences down and to the right; 0 across the last edge."""
    D = np.zeros((2, *x.shape))
    D[0, :-1] = x[1:] - x[:-1]
    D[1, :, :-1] = x[:, 1:] - x[:, :-1]
    return D


def divergence(p: np.ndarray) -> np.ndarray:
    """Return minus the adjoint of the differences."""
    d = np.zeros(p.shape[1:])
    d[:-1] += p[0, :-1]
    d[1:] -= p[0, :-1]
    d[:, :-1] += p[1, :, :-1]
    d[:, 1:] -= p[1, :, :-1]
    return d


def total_variation(x: np.ndarray) -> float:
    """Return the sum of the lengths of the gradient."""
    return float(np.sqrt((differences(x) ** 2).sum(axis=0)).sum())


def lower_bound_of_denoising(v: np.ndarray, lam: float, steps: int) -> float:
    """Return a lower bound of min ½‖x − v‖² + λTV(x): the dual value after so many steps."""
    p, p_ext, t = np.zeros((2, *v.shape)), np.zeros((2, *v.shape)), 1.0
    for _ in range(steps):
        q = p_ext + differences(v + lam * divergence(p_ext)) / (8 * lam)
        q /= np.maximum(1, np.sqrt((q**2).sum(axis=0)))
        t, t_old = (1 + np.sqrt(1 + 4 * t * t)) / 2, t
        p_ext, p = q + (t_old - 1) / t * (q - p), q
    x = v + lam * divergence(p)
    return float(0.5 * ((v**2).sum() - (x**2).sum()))


def noisy_picture(name: str = "camera", size: int = 512) -> np.ndarray:
    """Return a picture, grey values 0 to 1, with noise of standard deviation 0.1."""
    x = problems.picture(name, size)
    return x + 0.1 * np.random.default_rng(0).standard_normal(x.shape)


def skimage_denoiser(v: np.ndarray, lam: float) -> Callable[[int], np.ndarray]:
    """Return scikit-image's denoiser as a function of the number of steps."""
    from skimage.restoration import denoise_tv_chambolle

    return lambda steps: denoise_tv_chambolle(v, weight=lam, eps=0.0, max_num_iter=steps)


def pyproximal_denoiser(v: np.ndarray, lam: float) -> Callable[..., np.ndarray]:
    """Return pyproximal's denoiser as a function of the number of steps."""
    import pyproximal

    class Shown(pyproximal.TV):
        """The same, but it shows each iterate where it evaluates its functional."""

        look: Callable | None = None

        def __call__(self, x: np.ndarray) -> float:
            self.look(x)
            return super().__call__(x)

    def solve(steps: int, look: Callable | None = None) -> np.ndarray:
        tv = (Shown if look else pyproximal.TV)(dims=v.shape, sigma=lam, niter=steps, rtol=0.0)
        tv.look = look
        return tv.prox(v.ravel(), 1.0).reshape(v.shape)

    return solve


def denoising_rows(
    v: np.ndarray, lam: float, targets: dict[str, float], reference: int = 400
) -> Iterator[dict]:
    """Time the denoisers on one picture, to several accuracies."""
    lower = lower_bound_of_denoising(v, lam, reference)

    def accuracy(x: np.ndarray) -> float:
        value = 0.5 * float(((x - v) ** 2).sum()) + lam * total_variation(x)
        return (value - lower) / value

    def prox_tv(rtol: float) -> Callable:
        return lambda: proximal.prox_tv(v, lam, rtol=rtol).x

    of_skimage, of_pyproximal = skimage_denoiser(v, lam), pyproximal_denoiser(v, lam)

    def contest(target: float, limit: int = 1000) -> list[Contestant]:
        tol = loosest(prox_tv, TOLERANCES, accuracy, target)
        steps = callback_steps(lambda look: of_pyproximal(limit, look), accuracy, target) or limit
        others = fewest(
            lambda k: lambda: of_skimage(k), accuracy, target, start=2 * steps, limit=limit
        )
        return [
            Contestant(OURS, prox_tv(tol), f"tol={tol:.0e}"),
            Contestant("skimage, Chambolle", lambda: of_skimage(others), f"{others} steps"),
            Contestant("pyproximal, TV", lambda: of_pyproximal(steps), f"{steps} steps"),
        ]

    for name, target in targets.items():
        yield row(TASKS[name], *_split(measure(contest(target), accuracy, target)))


def gradient_peer(shape: tuple[int, int], boundary: str) -> Any:
    """Return the gradient as pylops sees it, on flat arrays; the faster one of two ways."""
    import pylops

    if boundary == "free":
        return pylops.Gradient(shape, kind="forward", edge=False)

    def forward(x: np.ndarray) -> np.ndarray:
        x = x.reshape(shape)
        return np.concatenate([(np.roll(x, -1, axis=a) - x).ravel() for a in (0, 1)])

    def backward(p: np.ndarray) -> np.ndarray:
        p = p.reshape(2, *shape)
        return sum(np.roll(p[a], 1, axis=a) - p[a] for a in (0, 1)).ravel()

    size = shape[0] * shape[1]
    return pylops.FunctionOperator(forward, backward, 2 * size, size)


def primal_dual(f: Any, g: Any, K: Any, step: float, dual_step: float) -> Callable[..., np.ndarray]:
    """Return pyproximal's primal-dual method as a function of the number of steps."""
    from pyproximal.optimization.primaldual import PrimalDual

    def solve(steps: int, look: Callable | None = None) -> np.ndarray:
        x0 = np.zeros(K.shape[1])
        return PrimalDual(f, g, K, x0, tau=step, mu=dual_step, niter=steps, callback=look)

    return solve


def deblurring_peer(
    psf: np.ndarray, y: np.ndarray, lam: float, *, step: float, boundary: str
) -> Callable[..., np.ndarray]:
    """Return pyproximal's primal-dual method with a prox of the fidelity by FFT."""
    import pyproximal

    kernel = np.zeros(y.shape)
    kernel[: psf.shape[0], : psf.shape[1]] = psf
    kernel = np.roll(kernel, [-(n // 2) for n in psf.shape], axis=(0, 1))
    h = scipy.fft.rfft2(kernel)
    energy, data = np.abs(h) ** 2, np.conj(h) * scipy.fft.rfft2(y)

    class Fidelity(pyproximal.ProxOperator):
        """½‖p * x − y‖² for a periodic convolution."""

        def __init__(self) -> None:
            super().__init__(None, False)

        def __call__(self, x: np.ndarray) -> float:
            r = scipy.fft.irfft2(h * scipy.fft.rfft2(x.reshape(y.shape)), s=y.shape) - y
            return 0.5 * float((r**2).sum())

        def prox(self, x: np.ndarray, tau: float) -> np.ndarray:
            spectrum = scipy.fft.rfft2(x.reshape(y.shape)) + tau * data
            return scipy.fft.irfft2(spectrum / (1 + tau * energy), s=y.shape).ravel()

    g = pyproximal.L21(ndim=2, sigma=lam)
    K = gradient_peer(y.shape, boundary)
    # The gradient's norm is below the root of 8.
    return primal_dual(Fidelity(), g, K, step, 1 / (8 * step))


def deblurring_rows(name: str, size: int = 512, target: float = 1e-3) -> Iterator[dict]:
    """Time deblurring with total variation; the judge knows what long runs of both reach."""
    problem, lam = problems.deblurring("camera", size=size, width=2.0, noise=1e-2), 1e-3
    A, y = problem.A, problem.y
    peer = deblurring_peer(problems.psf_gaussian(2.0), y, lam, step=7.0, boundary="free")

    def objective(x: np.ndarray) -> float:
        x = x.reshape(y.shape)
        return 0.5 * float(((A @ x - y) ** 2).sum()) + lam * total_variation(x)

    def tv_deblur(rtol: float) -> Callable:
        return lambda: proximal.tv_deblur(A, y, lam, rtol=rtol).x

    least = objective(tv_deblur(target)())

    def accuracy(x: np.ndarray) -> float:
        return objective(x) / least - 1

    tol = loosest(tv_deblur, TOLERANCES, accuracy, target)
    steps = callback_steps(lambda look: peer(1000, look), accuracy, target) or 1000
    contestants = [
        Contestant(OURS, tv_deblur(tol), f"tol={tol:.0e}"),
        Contestant("pyproximal, PrimalDual", lambda: peer(steps), f"{steps} steps"),
    ]
    found = measure(contestants, accuracy, target)
    yield row(TASKS[name], *_split(found))


def _split(found: dict[str, dict]) -> tuple[dict, list[dict]]:
    return found[OURS], [entry for name, entry in found.items() if name != OURS]


# ------------------------------------------------------------------------------------------------
# Tomography


def tomography_rows(
    name: str, size: int = 96, angles: int = 30, target: float = 1e-3, reference: int = 1500
) -> Iterator[dict]:
    """Time PDHG on ½‖Ax − y‖² + λTV(x), 0 ≤ x ≤ 1, with one sparse matrix for both.

    A and y are divided by ‖A‖, so that the two blocks of K = (A, gradient) are of one size.
    """
    import pylops
    import pyproximal

    problem = problems.tomography(size=size, angles=angles, noise=1e-2)
    scale, lam, shape = 1 / problem.A.norm(), 1e-4, (size, size)
    A, y = scale * problem.A, scale * problem.y
    K = operators.stack(A, operators.gradient(shape))
    f = functionals.box(0.0, 1.0)
    fidelity = functionals.least_squares(None, y)
    g = functionals.separable((fidelity, A.out_shape), (lam * functionals.group_l1(0), (2, *shape)))
    # The norm of K is at most the root of 1 + 8.
    step, dual_step = STEP_TOMOGRAPHY, 1 / (9 * STEP_TOMOGRAPHY)

    def states() -> Any:
        return proximal.pdhg(K, f, g, np.zeros(shape), step=step, dual_step=dual_step)

    def pdhg(steps: int) -> np.ndarray:
        return run(states(), max_iter=steps, check_every=steps).x

    M = sparse_matrix(A)
    peer = primal_dual(
        pyproximal.Box(0.0, 1.0),
        pyproximal.VStack(
            [pyproximal.L2(b=y.ravel()), pyproximal.L21(ndim=2, sigma=lam)],
            nn=[y.size, 2 * size**2],
        ),
        pylops.VStack([pylops.MatrixMult(M), gradient_peer(shape, "free")]),
        step,
        dual_step,
    )

    def objective(x: np.ndarray) -> float:
        x = np.clip(x.reshape(-1), 0, 1)
        r = M @ x - y.ravel()
        return 0.5 * float(r @ r) + lam * total_variation(x.reshape(shape))

    # The dual value at a feasible dual point: a lower bound, whoever found the point.
    p = run(states(), max_iter=reference, check_every=reference).state.dual
    p, q = p[: y.size], p[y.size :].reshape(2, *shape)
    q = lam * q / np.maximum(lam, np.sqrt((q**2).sum(axis=0)))
    back = M.T @ p - divergence(q).ravel()
    lower = -float(np.maximum(-back, 0).sum() + 0.5 * p @ p + p @ y.ravel())

    def accuracy(x: np.ndarray) -> float:
        value = objective(x)
        return (value - lower) / value

    iterates = (state.x for state in islice(states(), 1, 5001))
    own = steps_until(iterates, accuracy, target) or 5000
    steps = callback_steps(lambda look: peer(5000, look), accuracy, target) or 5000
    contestants = [
        Contestant(OURS, lambda: pdhg(own), f"{own} steps"),
        Contestant("pyproximal, PrimalDual", lambda: peer(steps), f"{steps} steps"),
    ]
    yield row(TASKS[name], *_split(measure(contestants, accuracy, TASKS[name].target)))


STEP_TOMOGRAPHY = 10.0


def sparse_matrix(A: Any) -> Any:
    """Return the matrix of an operator, row by row, as a sparse one."""
    unit = np.zeros(A.out_shape)
    rows = []
    for i in np.ndindex(A.out_shape):
        unit[i] = 1.0
        rows.append(scipy.sparse.csr_array((A.H @ unit).reshape(1, -1)))
        unit[i] = 0.0
    return scipy.sparse.vstack(rows).tocsr()


# ------------------------------------------------------------------------------------------------
# Choosing λ


def leave_one_out_rows(name: str, n: int = 1000, count: int = 200) -> Iterator[dict]:
    """Time GCV and leave-one-out over many λ; the peer does leave-one-out alone."""
    from sklearn.linear_model import RidgeCV

    problem = problems.deriv2(n, noise=1e-2)
    A, y = problem.A.to_dense(), problem.y
    grid = np.logspace(-10, -2, count)
    U, s, _ = np.linalg.svd(A)
    keep = 1 / (1 + s[:, None] ** 2 / grid)
    residual = U @ (keep * (U.T @ y)[:, None])
    reference = ((residual / (U**2 @ keep)) ** 2).mean(axis=0)

    def ours() -> np.ndarray:
        both = choice.smoother(A)
        choice.gcv(both, y, grid=grid)
        return choice.loocv(both, y, grid=grid).values

    def ridge(mode: str) -> Callable:
        def solve() -> np.ndarray:
            fit = RidgeCV(grid, fit_intercept=False, gcv_mode=mode, store_cv_results=True)
            return fit.fit(A, y).cv_results_.mean(axis=0)

        return solve

    def accuracy(values: np.ndarray) -> float:
        return float(np.abs(np.ravel(values) / reference - 1).max())

    contestants = [Contestant(OURS, ours, "one SVD")]
    contestants += [
        Contestant(f"RidgeCV, {mode}", ridge(mode), f"gcv_mode={mode}") for mode in ("svd", "eigen")
    ]
    yield row(TASKS[name], *_split(measure(contestants, accuracy, TASKS[name].target)))


def path_rows(
    name: str, m: int = 200, n: int = 400, count: int = 30, folds: int = 5, target: float = 1e-4
) -> Iterator[dict]:
    """Time cross-validation over a path of LASSO problems, in the same parts of the data."""
    from sklearn.linear_model import LassoCV

    A, y = gaussian(m, n, m // 10)
    grid = float(np.abs(A.T @ y).max()) * np.logspace(-2, -0.1, count)
    part = np.random.default_rng(0).permutation(m) % folds
    splits = [(np.flatnonzero(part != k), np.flatnonzero(part == k)) for k in range(folds)]

    def k_fold(rtol: float) -> Callable:
        # It has an argument x0: each λ starts from the solution of the next larger one.
        solver = partial(proximal.lasso, rtol=rtol)
        return lambda: choice.k_fold(A, y, solver, grid, folds=folds, seed=0).values

    def lasso_cv(tol: float) -> Callable:
        # All parts have the same size, so that one α stands for one λ in all of them.
        alphas = grid * folds / (m * (folds - 1))

        def solve() -> np.ndarray:
            fit = LassoCV(alphas=alphas, fit_intercept=False, tol=tol, max_iter=10**5, cv=splits)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return fit.fit(A, y).mse_path_.mean(axis=1)[::-1]

        return solve

    reference = lasso_cv(1e-12)()

    def accuracy(values: np.ndarray) -> float:
        return float(np.abs(values / reference - 1).max())

    contestants = []
    for solver, make in {OURS: k_fold, "sklearn LassoCV": lasso_cv}.items():
        tol = loosest(make, TOLERANCES, accuracy, target)
        contestants.append(Contestant(solver, make(tol), f"tol={tol:.0e}"))
    yield row(TASKS[name], *_split(measure(contestants, accuracy, TASKS[name].target)))


# ------------------------------------------------------------------------------------------------
# Linear problems


def compared(name: str, reference: np.ndarray, ways: dict[str, Callable], setting: str) -> dict:
    """Time ways to one array, judged by their distance to a reference."""
    size = float(np.linalg.norm(reference))

    def accuracy(x: Any) -> float:
        return float(np.linalg.norm(np.asarray(x) - reference)) / size

    contestants = [Contestant(way, solve, setting) for way, solve in ways.items()]
    return row(TASKS[name], *_split(measure(contestants, accuracy, TASKS[name].target)))


def cgls_rows(name: str, m: int = 2000, n: int = 1000, steps: int = 50) -> Iterator[dict]:
    """CGLS and SciPy's LSQR do the same number of steps on the same dense matrix."""
    rng = np.random.default_rng(0)
    A, y = rng.standard_normal((m, n)), rng.standard_normal(m)
    options = {"atol": 0.0, "btol": 0.0, "conlim": 0.0, "iter_lim": steps}
    ways = {
        OURS: lambda: run(linear.cgls(A, y), max_iter=steps, check_every=steps).x,
        "scipy, lsqr": lambda: scipy.sparse.linalg.lsqr(A, y, **options)[0],
    }
    yield compared(name, np.linalg.lstsq(A, y, rcond=None)[0], ways, f"{steps} steps")


def convolution_rows(name: str, side: int = 512, width: float = 3.0) -> Iterator[dict]:
    """A blur that sees black outside the picture, against SciPy's convolution by FFT."""
    psf = problems.psf_gaussian(width)
    x = np.random.default_rng(0).standard_normal((side, side))
    A = operators.convolution(psf, x.shape, boundary="zero")
    ways = {
        OURS: lambda: A @ x,
        "scipy, fftconvolve": lambda: scipy.signal.fftconvolve(x, psf, mode="same"),
    }
    yield compared(name, scipy.signal.convolve2d(x, psf, mode="same"), ways, "")


def _ridge(A: np.ndarray, y: np.ndarray, lams: np.ndarray) -> np.ndarray:
    """Return the solutions of Tikhonov's method from NumPy's singular value decomposition."""
    U, s, Vt = np.linalg.svd(A)
    return np.stack([Vt.T @ (s / (s**2 + lam) * (U.T @ y)) for lam in lams])


def _lstsq(A: np.ndarray, y: np.ndarray, lams: np.ndarray) -> np.ndarray:
    """Return the same from least-squares problems with the rows √λ I below A."""
    data = np.concatenate([y, np.zeros(A.shape[1])])
    stacked = (np.vstack([A, lam**0.5 * np.eye(A.shape[1])]) for lam in lams)
    return np.stack([np.linalg.lstsq(M, data, rcond=None)[0] for M in stacked])


def tikhonov_rows(name: str, n: int = 500) -> Iterator[dict]:
    """Tikhonov's method on a dense matrix, against NumPy's least squares on the augmented one."""
    problem, lams = problems.shaw(n), np.array([1e-4])
    A, y = problem.A.to_dense(), problem.y
    ways = {
        OURS: lambda: filters.tikhonov(A, y, lams[0]).x[None],
        "numpy, lstsq": lambda: _lstsq(A, y, lams),
    }
    yield compared(name, _ridge(A, y, lams), ways, "")


def many_lambdas_rows(name: str, n: int = 200, count: int = 50) -> Iterator[dict]:
    """One decomposition for many λ, against one least-squares problem for each."""
    problem, lams = problems.shaw(n), np.logspace(-8, 0, count)
    A, y = problem.A.to_dense(), problem.y

    def ours() -> np.ndarray:
        spectrum = filters.decompose(A)
        factors = (filters.tikhonov_factors(spectrum.s, lam) for lam in lams)
        return np.stack([filters.filtered(spectrum, y, phi) for phi in factors])

    ways = {OURS: ours, "numpy, lstsq": lambda: _lstsq(A, y, lams)}
    yield compared(name, _ridge(A, y, lams), ways, "")


# ------------------------------------------------------------------------------------------------
# The table


FISTA, FISTA_OBJECTIVE = "Plain FISTA", "Plain FISTA, judged by the objective alone"
FISTA_DISTANCE = "Plain FISTA against the best LASSO solvers"


def _lasso_tasks() -> Iterator[Task]:
    names = {
        "deconvolution-0.1": "deconvolution 1000 × 1000, λ = 0.1 λmax",
        "deconvolution-0.01": "deconvolution 1000 × 1000, λ = 0.01 λmax",
        "gaussian-0.1": "Gaussian 500 × 2000, λ = 0.1 λmax",
        "gaussian-0.02": "Gaussian 500 × 2000, λ = 0.02 λmax",
    }
    for name, title in names.items():
        bars = (1.0, 0.5) if name.startswith("deconvolution") else (2.0, 1.0)
        yield Task(f"lasso-{name}", "LASSO", title, GAP, 1e-6, *bars)
    for name, title in names.items():
        yield Task(f"fista-{name}", FISTA, title, GAP, 1e-6, 0.5, 0.2)
    for name, title in names.items():
        yield Task(f"fista-objective-{name}", FISTA_OBJECTIVE, title, ABOVE, 1e-6)
    for name, title in names.items():
        yield Task(f"fista-distance-{name}", FISTA_DISTANCE, title, GAP, 1e-6)


LINEAR, TV, CHOICE = "Linear problems", "Total variation", "Choosing λ"
LEAST = "relative height above the least objective known"
CURVE = "largest relative difference of the values over the grid"
TASKS = {
    task.id: task
    for task in (
        Task("cgls", LINEAR, "CGLS, 2000 × 1000, 50 steps", DISTANCE, 1e-6),
        Task("convolution", LINEAR, "convolution, 512 × 512", DISTANCE, 1e-12),
        Task("tikhonov", LINEAR, "Tikhonov, 500 × 500", DISTANCE, 1e-8),
        Task("many-lambdas", LINEAR, "Tikhonov, 200 × 200, 50 λ", DISTANCE, 1e-8),
        *_lasso_tasks(),
        Task("tv-1e-3", TV, "denoising 512 × 512, to 1e-3", ABOVE, 1e-3, 0.6, 0.3),
        Task("tv-1e-4", TV, "denoising 512 × 512, to 1e-4", ABOVE, 1e-4, 0.4, 0.2),
        Task("deblurring", TV, "deblurring 512 × 512, to 1e-3", LEAST, 1e-3, 0.5, 0.2),
        Task("tomography", TV, "tomography 96 × 96 by PDHG, to 1e-3", ABOVE, 1e-3),
        Task(
            "leave-one-out",
            CHOICE,
            "GCV and leave-one-out, n = 1000, 200 λ",
            CURVE,
            1e-6,
            0.5,
            0.25,
        ),
        Task("path", CHOICE, "5-fold over a path of 30 LASSO problems, 200 × 400", CURVE, 1e-4),
    )
}


def lasso_contests() -> Iterator[dict]:
    """Run all LASSO rows."""
    for name, (A, y), fractions in (
        ("deconvolution", deconvolution(), (0.1, 0.01)),
        ("gaussian", gaussian(), (0.1, 0.02)),
    ):
        for fraction in fractions:
            yield from lasso_rows(f"{name}-{fraction:g}", A, y, fraction)


def denoising_contests() -> Iterator[dict]:
    """Run the two rows of denoising."""
    yield from denoising_rows(noisy_picture(), 0.1, {"tv-1e-3": 1e-3, "tv-1e-4": 1e-4})


# Name on the command line -> the rows.
CONTESTS: dict[str, Callable[[], Iterator[dict]]] = {
    "cgls": lambda: cgls_rows("cgls"),
    "convolution": lambda: convolution_rows("convolution"),
    "tikhonov": lambda: tikhonov_rows("tikhonov"),
    "many-lambdas": lambda: many_lambdas_rows("many-lambdas"),
    "lasso": lasso_contests,
    "denoising": denoising_contests,
    "deblurring": lambda: deblurring_rows("deblurring"),
    "tomography": lambda: tomography_rows("tomography"),
    "leave-one-out": lambda: leave_one_out_rows("leave-one-out"),
    "path": lambda: path_rows("path"),
}
