"""The rows of the learned half: hypergradients, fixed points, meta-learning.

As in contests.py, the judges are written here and use nothing of the library. Everything is in
double precision. Where θ is one number, θ = ln λ.
"""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
from contests import OURS, TOLERANCES, _split, gaussian
from measuring import Contestant, Task, loosest, measure, row

from course_lib import bilevel, functionals, implicit, linear, meta, operators, problems, proximal
from course_lib.iterate import residual_rule, run


def relative(answer: Any, reference: np.ndarray) -> float:
    """Return the distance to the reference, relative to it."""
    reference = np.ravel(reference)
    return float(np.linalg.norm(np.ravel(answer) - reference) / np.linalg.norm(reference))


def worst(answer: tuple, reference: tuple) -> float:
    """Return the largest relative distance of the parts of an answer: value and gradient, say."""
    return max(relative(part, wanted) for part, wanted in zip(answer, reference, strict=True))


def jax_numpy() -> Any:
    """Return jax.numpy, in double precision."""
    import jax

    jax.config.update("jax_enable_x64", True)
    return jax.numpy


# ------------------------------------------------------------------------------------------------
# LASSO


def sparse_solution(A: np.ndarray, y: np.ndarray, lam: float) -> tuple[np.ndarray, np.ndarray]:
    """Return support and signs: scikit-learn finds them, the optimality conditions confirm."""
    from sklearn.linear_model import Lasso

    fit = Lasso(alpha=lam / len(y), fit_intercept=False, tol=1e-12, max_iter=10**6).fit(A, y)
    support = np.flatnonzero(fit.coef_)
    signs = np.sign(fit.coef_[support])
    x = on_support(A, y, lam, support, signs)
    c = A.T @ (y - A @ x)
    off = np.delete(np.abs(c), support)
    if not (np.array_equal(np.sign(x[support]), signs) and off.max() < lam):
        raise RuntimeError("the judge has not found the support")
    return support, signs


def on_support(
    A: np.ndarray, y: np.ndarray, lam: float, support: np.ndarray, signs: np.ndarray
) -> np.ndarray:
    """Return the solution of the LASSO with this support and these signs, by a QR factorization."""
    x = np.zeros(A.shape[1])
    Q, R = np.linalg.qr(A[:, support])
    back = scipy.linalg.solve_triangular(R, signs, trans="T")
    x[support] = scipy.linalg.solve_triangular(R, Q.T @ y - lam * back)
    return x


def lasso_hypergradient_rows(
    name: str, fraction: float, m: int = 500, n: int = 2000
) -> Iterator[dict]:
    """Time what is left to do for the gradient once the LASSO is solved.

    Everybody gets the solution x and the gradient v of the validation loss at x, and returns
    dJ/dθ. The judge takes central differences of J between two LASSO solutions. They are so near
    that the support is the same; there J is a quadratic function of λ, so that the differences are
    exact up to rounding.
    """
    from sparho.hypergrad import implicit_forward
    from sparho.problem import L1, Problem, SquaredLoss
    from sparho.state import SolverResult

    M, data = gaussian(m + m // 2, n)
    A, y, B, y_val = M[:m], data[:m], M[m:], data[m:]
    lam = fraction * float(np.abs(A.T @ y).max())
    support, signs = sparse_solution(A, y, lam)
    exact, h = on_support(A, y, lam, support, signs), 0.01
    while True:
        sides = [sparse_solution(A, y, (1 + t) * lam) for t in (-h, h)]
        if all(np.array_equal(each, support) for each, _ in sides):
            break
        h /= 4

    def loss(t: float) -> float:
        x = on_support(A, y, (1 + t) * lam, support, signs)
        return 0.5 * float(((B @ x - y_val) ** 2).sum())

    # d/dθ is λ d/dλ.
    slope = (loss(h) - loss(-h)) / (2 * h)

    found = proximal.lasso(A, y, lam)
    v = B.T @ (B @ found.x - y_val)
    known = functionals.Functional(lambda x: 0.0, lambda x: v, name="its gradient is known")
    operator, theta = operators.matrix(A), np.asarray(np.log(lam))

    def ours() -> float:
        return float(bilevel._on_support(operator, y, found, lam, 0.0, known).gradient[0])

    problem = Problem(SquaredLoss(), L1(), A, y)
    solved = SolverResult(found.x, np.flatnonzero(found.x).astype(np.int32), 0.0, 0)

    def sparho(tol: float) -> Callable[[], float]:
        # Its loss is a mean over the m rows: alpha is lam/m.
        return lambda: lam / m * implicit_forward(problem, lam / m, solved, v, tol=tol)

    def accuracy(answer: Any) -> float:
        return relative(answer, exact if np.ndim(answer) else np.asarray(slope))

    target = TASKS[f"hypergradient-lasso-{name}"].target
    tol = loosest(sparho, TOLERANCES, accuracy, target)
    size = f"{len(support)} entries"
    contestants = [
        Contestant(OURS, ours, size),
        Contestant("sparho, implicit_forward", sparho(tol), f"tol={tol:.0e}"),
        Contestant("course_lib, the LASSO", lambda: proximal.lasso(A, y, lam).x, size),
    ]
    both = measure(contestants, accuracy, target)
    own, peer, solve = (both[contestant.name] for contestant in contestants)
    yield row(TASKS[f"hypergradient-lasso-{name}"], own, [peer])
    yield row(TASKS[f"hypergradient-share-{name}"], own, [solve])

    # All of it, through the public function.
    outer = functionals.least_squares(B, y_val)
    whole = bilevel.lasso(A, y, theta, outer)
    assert accuracy(float(whole.gradient)) <= target


# ------------------------------------------------------------------------------------------------
# Tikhonov's method, by conjugate gradients


def blurred(side: int, width: float = 2.0, noise: float = 0.01) -> tuple:
    """Return a picture, its blurred and noisy form, the blur's kernel and transfer function."""
    x = problems.picture("camera", side)
    psf = problems.psf_gaussian(width)
    kernel = np.zeros(x.shape)
    kernel[: psf.shape[0], : psf.shape[1]] = psf
    h = np.fft.rfft2(np.roll(kernel, [-(k // 2) for k in psf.shape], axis=(0, 1)))
    y = np.fft.irfft2(h * np.fft.rfft2(x), s=x.shape)
    return x, y + noise * np.random.default_rng(0).standard_normal(x.shape), psf, h


def tikhonov_reference(x: np.ndarray, y: np.ndarray, h: np.ndarray, lam: float) -> tuple:
    """Return ½‖x_λ − x‖² and its derivative by ln λ, by FFT."""
    H = np.abs(h) ** 2 + lam
    solution = np.fft.irfft2(np.conj(h) * np.fft.rfft2(y) / H, s=x.shape)
    psi = np.fft.irfft2(np.fft.rfft2(solution - x) / H, s=x.shape)
    return 0.5 * ((solution - x) ** 2).sum(), -lam * (psi * solution).sum()


def jaxopt_tikhonov(
    x: np.ndarray, y: np.ndarray, h: np.ndarray, rtol: float
) -> tuple[Callable, Callable]:
    """Return jaxopt's value and gradient of θ, and the bytes that the compiled code works in."""
    jnp = jax_numpy()
    import jax
    from jaxopt import implicit_diff, linear_solve

    solve = partial(linear_solve.solve_cg, tol=rtol, maxiter=10**4)
    x, y, h = (jnp.asarray(each) for each in (x, y, h))

    def forward(v: Any) -> Any:
        return jnp.fft.irfft2(h * jnp.fft.rfft2(v), s=x.shape)

    def adjoint(v: Any) -> Any:
        return jnp.fft.irfft2(jnp.conj(h) * jnp.fft.rfft2(v), s=x.shape)

    def equation(v: Any, theta: Any, b: Any) -> Any:
        return adjoint(forward(v)) + jnp.exp(theta) * v - b

    @implicit_diff.custom_root(equation, solve=solve)
    def solution(init: Any, theta: Any, b: Any) -> Any:
        return solve(lambda v: adjoint(forward(v)) + jnp.exp(theta) * v, b)

    def loss(theta: Any) -> Any:
        return 0.5 * jnp.sum((solution(None, theta, adjoint(y)) - x) ** 2)

    both = jax.jit(jax.value_and_grad(loss))

    def call(theta: float) -> tuple:
        return tuple(np.asarray(part) for part in both(theta))

    def size() -> int:
        return both.lower(0.0).compile().memory_analysis().temp_size_in_bytes

    return call, size


def unrolled_tikhonov(
    x: np.ndarray, y: np.ndarray, psf: np.ndarray, theta: float, steps: int
) -> tuple[Callable[[], tuple], Callable[[], int]]:
    """Return value and gradient by torch's way back through our CG, and the bytes that it keeps."""
    import torch

    x, y = torch.asarray(x), torch.asarray(y)
    A = operators.convolution(torch.asarray(psf), tuple(x.shape), boundary="periodic")

    def both() -> tuple:
        t = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        lam = torch.exp(t)
        H = operators.LinearOperator(
            lambda v: A.H @ (A @ v) + lam * v, None, A.in_shape, A.in_shape, like=x
        )
        solution = run(linear.cg(H, A.H @ y), max_iter=steps, check_every=steps).x
        loss = 0.5 * ((solution - x) ** 2).sum()
        loss.backward()
        return loss.item(), t.grad.item()

    def size() -> int:
        kept = {}

        def keep(saved: Any) -> Any:
            kept[saved.untyped_storage().data_ptr()] = (saved.untyped_storage().nbytes(), saved)
            return saved

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            both()
        return sum(nbytes for nbytes, _ in kept.values())

    return both, size


def peak(task: Callable[[], Any]) -> int:
    """Return how many bytes a run of NumPy code has at once, beyond what was there before."""
    task()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        task()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def scaled(entry: dict, factor: float, name: str, setting: str) -> dict:
    """Return a contestant's entry with all its times multiplied."""
    times = {key: factor * entry[key] for key in ("min", "median", "max")}
    seconds = [factor * each for each in entry["seconds"]]
    return entry | times | {"seconds": seconds, "name": name, "setting": setting}


def tikhonov_hypergradient_rows(
    name: str, side: int, lam: float = 1e-2, rtol: float = 1e-9
) -> Iterator[dict]:
    """Time value and gradient, everybody with conjugate gradients to one tolerance; and the memory.

    The second row is ours against itself: the gradient costs a second run of conjugate gradients,
    and should cost nothing else. In the third one the number that is judged is the memory, and way
    back through all steps is beside it.
    """
    x, y, psf, h = blurred(side)
    theta, image = float(np.log(lam)), 8 * side**2
    wanted = tikhonov_reference(x, y, h, lam)
    A = operators.convolution(psf, x.shape, boundary="periodic")
    outer = functionals.least_squares(None, x)

    def ours() -> Any:
        return bilevel.tikhonov(A, y, np.asarray(theta), outer, rtol=rtol)

    def inner_solve() -> np.ndarray:
        # With the product that `tikhonov` takes: two transforms, of AᵀA, in the place of four.
        def apply(v: np.ndarray) -> np.ndarray:
            return np.fft.irfft2(np.abs(h) ** 2 * np.fft.rfft2(v), s=x.shape) + lam * v

        H = operators.LinearOperator(apply, apply, x.shape, x.shape, like=y)
        b = A.H @ y
        return run(linear.cg(H, b), stop=residual_rule(H, b, rtol=rtol), max_iter=10**4).x

    k_fwd, k_adj = ours().steps
    jaxopt, jaxopt_size = jaxopt_tikhonov(x, y, h, rtol)
    unrolled, unrolled_size = unrolled_tikhonov(x, y, psf, theta, k_fwd)
    images = {
        OURS: peak(ours) / image,
        "jaxopt, custom_root": jaxopt_size() / image,
        "torch, unrolled": unrolled_size() / image,
    }

    def both() -> tuple:
        found = ours()
        return found.value, found.gradient

    solution = np.fft.irfft2(np.conj(h) * np.fft.rfft2(y) / (np.abs(h) ** 2 + lam), s=x.shape)

    def accuracy(answer: Any) -> float:
        if isinstance(answer, tuple):
            return worst(answer, wanted)
        return relative(answer, solution)

    words = {method: f"{count:.1f} images, AᵀA in 4 FFTs" for method, count in images.items()}
    words[OURS] = words[OURS].replace("in 4", "in 2")
    contestants = [
        Contestant(OURS, both, words[OURS]),
        Contestant("jaxopt, custom_root", lambda: jaxopt(theta), words["jaxopt, custom_root"]),
        Contestant("torch, unrolled", unrolled, words["torch, unrolled"]),
        Contestant("course_lib, the inner solve", inner_solve, f"rtol={rtol:.0e}"),
    ]
    found = measure(contestants, accuracy, TASKS[f"hypergradient-cg-{name}"].target)
    solve = found.pop("course_lib, the inner solve")
    own, others = _split(found)
    yield row(TASKS[f"hypergradient-cg-{name}"], own, others[:1])
    factor = 1 + k_adj / k_fwd
    twice = scaled(solve, factor, f"the inner solve, {factor:.2f} times", f"{k_fwd}+{k_adj} steps")
    yield row(TASKS[f"hypergradient-solves-{name}"], own, [twice])
    counted = [entry | {"accuracy": images[entry["name"]]} for entry in (own, *others)]
    yield row(TASKS[f"hypergradient-memory-{name}"], counted[0], counted[1:])


# ------------------------------------------------------------------------------------------------
# Tikhonov's method, by FFT


def fourier_rows(name: str, n: int, count: int = 20) -> Iterator[dict]:
    """Time value and gradient at many θ, one after the other as an outer loop asks for them."""
    jnp = jax_numpy()
    import jax

    rng = np.random.default_rng(0)
    t = np.arange(-20, 21)
    kernel = np.exp(-0.5 * (t / 5.0) ** 2)
    kernel /= kernel.sum()
    padded = np.zeros(n)
    padded[: kernel.size] = kernel
    a = np.fft.rfft(np.roll(padded, -(kernel.size // 2)))
    x = np.cumsum(rng.standard_normal(n)) / np.sqrt(n)
    x -= x.mean()
    y, y_val = (
        np.fft.irfft(a * np.fft.rfft(x), n) + 0.1 * rng.standard_normal(n) for _ in range(2)
    )
    d = 2 - 2 * np.cos(2 * np.pi * np.fft.rfftfreq(n))
    thetas = np.linspace(-6.0, 6.0, count)

    def reference(theta: float) -> tuple[float, float]:
        """The solution, the residual, the adjoint state: no sum over frequencies."""
        lam = np.exp(theta)
        H = np.abs(a) ** 2 + lam * d**2
        x_hat = np.conj(a) * np.fft.rfft(y) / H
        r = np.fft.irfft(a * x_hat, n) - y_val
        psi_hat = np.conj(a) * np.fft.rfft(r) / H
        Dx, Dpsi = np.fft.irfft(d * x_hat, n), np.fft.irfft(d * psi_hat, n)
        return 0.5 * float(r @ r), -lam * float(Dpsi @ Dx)

    A = operators.convolution(kernel, (n,), boundary="periodic")
    second = operators.convolution(np.array([-1.0, 2.0, -1.0]), (n,), boundary="periodic")
    J = bilevel.tikhonov_fourier(A, y, A, y_val, D=second)

    twice = np.full(d.size, 2.0)
    twice[0] = 1.0
    if n % 2 == 0:
        twice[-1] = 1.0
    cached = [np.abs(a) ** 2, d**2]
    z = a * np.conj(a) * np.fft.rfft(y)
    cached += [twice / n * np.abs(z) ** 2, twice / n * np.real(z * np.conj(np.fft.rfft(y_val)))]
    power, penalty, u, s = (jnp.asarray(each) for each in cached)
    constant = 0.5 * float(y_val @ y_val)
    a_, d_, y_, val_ = (jnp.asarray(each) for each in (a, d, y, y_val))

    def by_parseval(theta: Any) -> Any:
        g = 1 / (power + jnp.exp(theta) * penalty)
        return 0.5 * jnp.sum(u * g * g) - jnp.sum(s * g) + constant

    def by_transforms(theta: Any) -> Any:
        H = jnp.abs(a_) ** 2 + jnp.exp(theta) * d_**2
        return 0.5 * jnp.sum(
            (jnp.fft.irfft(a_ * jnp.conj(a_) * jnp.fft.rfft(y_) / H, n) - val_) ** 2
        )

    def looped(one: Callable) -> Callable[[], np.ndarray]:
        return lambda: np.array([[float(part) for part in one(theta)] for theta in thetas])

    ways = {
        OURS: looped(J),
        "jax, jit": looped(jax.jit(jax.value_and_grad(by_transforms))),
        "jax, jit, spectra kept": looped(jax.jit(jax.value_and_grad(by_parseval))),
    }
    wanted = np.array([reference(theta) for theta in thetas])

    def accuracy(found: np.ndarray) -> float:
        return max(relative(found[:, part], wanted[:, part]) for part in range(2))

    contestants = [Contestant(way, solve, f"{count} λ") for way, solve in ways.items()]
    task = TASKS[f"hypergradient-fft-{name}"]
    yield row(task, *_split(measure(contestants, accuracy, task.target)))


# ------------------------------------------------------------------------------------------------
# A fixed point


def layer(radius: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W, b, and x = tanh(Wx + b), where T_x has this spectral radius.

    x is drawn, and b is made to fit. The connections are random with a positive mean, so that one
    eigenvalue of W stands apart from the others, which fill a disc of half its size.
    """
    rng = np.random.default_rng(seed)
    z = rng.standard_normal(n)
    x = np.tanh(z)
    W = 0.5 * rng.standard_normal((n, n)) / np.sqrt(n) + 1 / n
    T_x = (1 - x**2)[:, None] * W
    largest = scipy.sparse.linalg.eigs(T_x, 1, v0=np.ones(n), return_eigenvectors=False)
    W *= radius / np.abs(largest).max()
    return W, z - W @ x, x


def anderson(
    T: Callable[[np.ndarray], np.ndarray], x: np.ndarray, tol: float, memory: int = 5
) -> np.ndarray:
    """Return a fixed point by Anderson's acceleration of x ← T(x)."""
    steps, values = [], []
    for _ in range(10**4):
        value = T(x)
        step = value - x
        if np.linalg.norm(step) <= tol * np.linalg.norm(value):
            break
        steps, values = [*steps, step][-memory - 1 :], [*values, value][-memory - 1 :]
        x = value
        if len(steps) > 1:
            S, V = np.diff(steps, axis=0), np.diff(values, axis=0)
            # The normal equations have few rows; a tiny shift keeps them regular.
            gram = S @ S.T
            gram.flat[:: len(gram) + 1] *= 1 + 1e-12
            x = value - np.linalg.solve(gram, S @ step) @ V
    return value


def fixed_point_peers(W: np.ndarray, b: np.ndarray, goal: np.ndarray) -> dict[str, Callable]:
    """Return the peers: name -> tolerance -> call; the adjoint system gets the same tolerance."""
    jnp = jax_numpy()
    import jax
    import jaxopt
    import lineax
    import optimistix
    from jaxopt import linear_solve

    W, b, goal = (jnp.asarray(each) for each in (W, b, goal))
    zero = jnp.zeros(b.shape)

    def mapped(x: Any, b: Any) -> Any:
        return jnp.tanh(W @ x + b)

    def of_jaxopt(make: Callable, solve: Callable) -> Callable:
        def solution(b: Any, tol: Any) -> Any:
            adjoint = partial(solve, tol=tol, maxiter=1000)
            solver = make(mapped, tol=tol, maxiter=10**4, implicit_diff_solve=adjoint)
            return solver.run(zero, b).params

        return solution

    def of_optimistix(adjoint: Callable) -> Callable:
        def solution(b: Any, tol: Any) -> Any:
            found = optimistix.fixed_point(
                mapped,
                optimistix.FixedPointIteration(rtol=tol, atol=tol),
                zero,
                b,
                max_steps=10**4,
                adjoint=optimistix.ImplicitAdjoint(adjoint(tol)),
                throw=False,
            )
            return found.value

        return solution

    solutions = {
        "jaxopt, FixedPointIteration": of_jaxopt(
            jaxopt.FixedPointIteration, linear_solve.solve_bicgstab
        ),
        "jaxopt, Anderson": of_jaxopt(jaxopt.AndersonAcceleration, linear_solve.solve_bicgstab),
        "jaxopt, Anderson, normal CG": of_jaxopt(
            jaxopt.AndersonAcceleration, linear_solve.solve_normal_cg
        ),
        "optimistix, FixedPointIteration": of_optimistix(
            lambda tol: lineax.BiCGStab(rtol=tol, atol=tol, max_steps=1000)
        ),
    }

    def told(solution: Callable) -> Callable[[float], Callable[[], tuple]]:
        def loss(b: Any, tol: Any) -> Any:
            return 0.5 * jnp.sum((solution(b, tol) - goal) ** 2)

        both = jax.jit(jax.value_and_grad(loss))
        return lambda tol: lambda: tuple(np.asarray(part) for part in both(b, tol))

    return {name: told(solution) for name, solution in solutions.items()}


def fixed_point_rows(name: str, radius: float, n: int = 1000) -> Iterator[dict]:
    """Time ½‖x − goal‖² at x = tanh(Wx + b), and its gradient by b."""
    W, b, exact = layer(radius, n)
    goal = np.random.default_rng(1).standard_normal(n)

    def ours(tol: float) -> Callable[[], tuple]:
        def both() -> tuple:
            x = anderson(lambda x: np.tanh(W @ x + b), np.zeros(n), tol)
            slope = 1 - x**2
            T_x = operators.LinearOperator(
                lambda v: slope * (W @ v), lambda v: W.T @ (slope * v), (n,), (n,), like=x
            )
            solver = partial(implicit.solve, rtol=tol)
            v = x - goal
            gradient = implicit.fixed_point_vjp(T_x, operators.diagonal(slope), v, solver=solver)
            return 0.5 * float(v @ v), gradient

        return both

    slope, v = 1 - exact**2, exact - goal
    adjoint = np.linalg.solve((np.eye(n) - slope[:, None] * W).T, v)
    wanted = 0.5 * float(v @ v), slope * adjoint

    def accuracy(answer: tuple) -> float:
        return worst(answer, wanted)

    task = TASKS[f"fixed-point-{name}"]
    contestants = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for solver, make in ({OURS: ours} | fixed_point_peers(W, b, goal)).items():
            tol = loosest(make, TOLERANCES, accuracy, task.target)
            contestants.append(Contestant(solver, make(tol), f"tol={tol:.0e}"))
        yield row(task, *_split(measure(contestants, accuracy, task.target)))


# ------------------------------------------------------------------------------------------------
# Meta-learning

STEP, RATE, BETAS, EPS = 0.01, 1e-3, (0.9, 0.999), 1e-12
WIDTHS = (1, 40, 40, 1)


def unpack(w: Any) -> list[tuple[Any, Any]]:
    """Return matrices and biases from flat weights: each matrix with its bias as last row."""
    pairs, start = [], 0
    for m, n in zip(WIDTHS, WIDTHS[1:], strict=False):
        block = w[start : start + (m + 1) * n].reshape(m + 1, n)
        pairs.append((block[:-1], block[-1]))
        start += (m + 1) * n
    return pairs


def pack(pairs: list[tuple]) -> np.ndarray:
    """Return flat weights from matrices and biases."""
    return np.concatenate([np.vstack([M, bias]).ravel() for M, bias in pairs])


def meta_reference(w: np.ndarray, moments: np.ndarray, sets: tuple, steps: int) -> tuple:
    """Return meta-gradient and new weights: one task after the other, by torch's autograd."""
    import torch

    def loss(w: Any, x: Any, y: Any) -> Any:
        for layer, (M, bias) in enumerate(unpack(w)):
            x = (torch.relu(x) if layer else x) @ M + bias
        return ((x - y) ** 2).mean()

    theta = torch.tensor(w, requires_grad=True)
    tasks = [torch.asarray(each) for each in sets]
    total = 0.0
    for x, y, x_query, y_query in zip(*tasks, strict=True):
        adapted = theta
        for _ in range(steps):
            slope = torch.autograd.grad(loss(adapted, x, y), adapted, create_graph=True)[0]
            adapted = adapted - STEP * slope
        total = total + loss(adapted, x_query, y_query)
    (gradient,) = torch.autograd.grad(total / len(tasks[0]), theta)
    g, (m, s) = gradient.numpy(), moments
    m, s = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * s + (1 - BETAS[1]) * g**2
    corrected = [each / (1 - beta ** (DONE + 1)) for each, beta in zip((m, s), BETAS, strict=True)]
    return g, w - RATE * corrected[0] / np.sqrt(corrected[1] + EPS**2)


# Adam is in the middle of its work, so that its step does not hang on the signs alone.
DONE = 100


def torch_network(w: np.ndarray, moments: np.ndarray) -> tuple[Any, Any]:
    """Return a torch network and its Adam, with these weights and moments."""
    import torch
    from torch import nn

    net = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
    net = net.double()
    optimizer = torch.optim.Adam(net.parameters(), lr=RATE, betas=BETAS, eps=EPS)
    rows = [unpack(each) for each in (w, *moments)]
    for layer, linear_layer in enumerate(net[::2]):
        for which, parameter in enumerate((linear_layer.weight, linear_layer.bias)):
            value, m, s = (torch.tensor(np.array(each[layer][which].T)) for each in rows)
            with torch.no_grad():
                parameter.copy_(value)
            optimizer.state[parameter] = {
                "step": torch.tensor(float(DONE)),
                "exp_avg": m,
                "exp_avg_sq": s,
            }
    return net, optimizer


def of_network(net: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return gradient and weights of a torch network, flat."""
    layers = [(each.weight, each.bias) for each in net[::2]]
    gradient = [(M.grad.numpy().T, bias.grad.numpy()) for M, bias in layers]
    weights = [(M.detach().numpy().T, bias.detach().numpy()) for M, bias in layers]
    return pack(gradient), pack(weights)


def torchopt_meta(w: np.ndarray, moments: np.ndarray, sets: tuple, steps: int) -> Callable:
    """Return a meta-iteration of torchopt: a differentiable optimizer, one task after the other."""
    import torch
    import torchopt
    from torch.nn.functional import mse_loss

    net, optimizer = torch_network(w, moments)
    inner = torchopt.MetaSGD(net, lr=STEP)
    tasks = [torch.asarray(each) for each in sets]

    def iteration() -> tuple:
        optimizer.zero_grad()
        start, start_inner = torchopt.extract_state_dict(net), torchopt.extract_state_dict(inner)
        total = 0.0
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            for _ in range(steps):
                inner.step(mse_loss(net(x), y))
            total = total + mse_loss(net(x_query), y_query)
            torchopt.recover_state_dict(net, start)
            torchopt.recover_state_dict(inner, start_inner)
        (total / len(tasks[0])).backward()
        optimizer.step()
        return of_network(net)

    return iteration


def higher_meta(w: np.ndarray, moments: np.ndarray, sets: tuple, steps: int) -> Callable:
    """Return a meta-iteration of higher: a differentiable copy of the network for each task."""
    import higher
    import torch
    from torch.nn.functional import mse_loss

    net, optimizer = torch_network(w, moments)
    inner = torch.optim.SGD(net.parameters(), lr=STEP)
    tasks = [torch.asarray(each) for each in sets]

    def iteration() -> tuple:
        optimizer.zero_grad()
        for x, y, x_query, y_query in zip(*tasks, strict=True):
            with higher.innerloop_ctx(net, inner, copy_initial_weights=False) as (copy, rule):
                for _ in range(steps):
                    rule.step(mse_loss(copy(x), y))
                (mse_loss(copy(x_query), y_query) / len(tasks[0])).backward()
        optimizer.step()
        return of_network(net)

    return iteration


def jax_meta(w: np.ndarray, moments: np.ndarray, sets: tuple, steps: int) -> Callable:
    """Return a meta-iteration of JAX, compiled, all tasks at once."""
    jnp = jax_numpy()
    import jax

    def loss(w: Any, x: Any, y: Any) -> Any:
        for layer, (M, bias) in enumerate(unpack(w)):
            x = (jax.nn.relu(x) if layer else x) @ M + bias
        return jnp.mean((x - y) ** 2)

    def after(w: Any, x: Any, y: Any, x_query: Any, y_query: Any) -> Any:
        adapted = w
        for _ in range(steps):
            adapted = adapted - STEP * jax.grad(loss)(adapted, x, y)
        return loss(adapted, x_query, y_query)

    tasks = [jnp.asarray(each) for each in sets]

    def mean(w: Any) -> Any:
        return jnp.mean(jax.vmap(after, (None, 0, 0, 0, 0))(w, *tasks))

    @jax.jit
    def step(w: Any, m: Any, s: Any, k: Any) -> tuple:
        g = jax.grad(mean)(w)
        m, s = BETAS[0] * m + (1 - BETAS[0]) * g, BETAS[1] * s + (1 - BETAS[1]) * g**2
        root = jnp.sqrt(s / (1 - BETAS[1] ** (k + 1)))
        return g, w - RATE * m / (1 - BETAS[0] ** (k + 1)) / (root + EPS), m, s

    state = {"w": jnp.asarray(w), "m": jnp.asarray(moments[0]), "s": jnp.asarray(moments[1])}
    state["k"] = DONE

    def iteration() -> tuple:
        g, state["w"], state["m"], state["s"] = step(**state)
        state["k"] += 1
        return np.asarray(g), np.asarray(state["w"])

    return iteration


def our_meta(w: np.ndarray, moments: np.ndarray, data: Any, steps: int) -> Callable:
    """Return a meta-iteration of ours, in NumPy."""
    net = meta.Network(WIDTHS)
    tasks, found = net.task(data), []

    def gradient(w: np.ndarray, k: int) -> np.ndarray:
        found[:] = [meta.maml(tasks, w, step=STEP, steps=steps).gradient]
        return found[0]

    rule = meta.adam(gradient, eps=EPS)
    state = {"x": np.stack([w, *moments]), "k": DONE}
    theta = np.array([np.log(RATE), *BETAS])

    def iteration() -> tuple:
        state["x"] = rule(state["x"], theta, state["k"])
        state["k"] += 1
        return found[0], state["x"][0]

    return iteration


def meta_rows(name: str, steps: int, tasks: int = 25, shots: int = 10) -> Iterator[dict]:
    """Time a meta-iteration of MAML on sinusoids; judged are meta-gradient and new weights."""
    rng = np.random.default_rng(0)
    w = meta.Network(WIDTHS).start(0)
    moments = np.stack([0.1 * rng.standard_normal(w.size), rng.uniform(0.01, 0.1, w.size)])
    data = problems.sinusoids(tasks, shots)
    sets = data.x_support, data.y_support, data.x_query, data.y_query
    wanted = meta_reference(w, moments, sets, steps)
    makers = {"torchopt, MetaSGD": torchopt_meta, "higher": higher_meta, "jax, jit, vmap": jax_meta}
    words = "1 inner step" if steps == 1 else f"{steps} inner steps"
    contestants = [Contestant(OURS, our_meta(w, moments, data, steps), words)]
    contestants += [
        Contestant(peer, make(w, moments, sets, steps), words) for peer, make in makers.items()
    ]
    task = TASKS[f"maml-{name}"]
    found = measure(contestants, lambda answer: worst(answer, wanted), task.target)
    own, others = _split(found)
    yield row(task, own, others[:2])
    yield row(TASKS[f"maml-jax-{name}"], own, others[2:])


# ------------------------------------------------------------------------------------------------
# The table

LASSO, TIKHONOV = "Hypergradient of the LASSO", "Hypergradient of Tikhonov's method"
POINTS, META = "Fixed points", "Meta-learning"
SLOPE = "relative distance of dJ/dθ to central differences"
BOTH = "larger relative distance of value and gradient to those computed another way"
IMAGES = "memory at the peak, in images of float64"
NEW = "larger relative distance of meta-gradient and new weights to those computed another way"


def _lasso_tasks() -> Iterator[Task]:
    for name in FRACTIONS:
        title = f"Gaussian 500 × 2000, about {name} entries"
        ids = f"hypergradient-lasso-{name}", f"hypergradient-share-{name}"
        yield Task(ids[0], LASSO, f"{title}, the gradient's part", SLOPE, 1e-8, 1.0, 0.5)
        yield Task(ids[1], LASSO, f"{title}, against the inner solve", SLOPE, 1e-8, 0.25)


def _tikhonov_tasks() -> Iterator[Task]:
    for name, side in SIDES.items():
        title = f"blurred picture {side} × {side}, conjugate gradients"
        yield Task(f"hypergradient-cg-{name}", TIKHONOV, title, BOTH, 1e-6, 1.6, 1.0)
        own = f"{title}, against the solves alone"
        yield Task(f"hypergradient-solves-{name}", TIKHONOV, own, BOTH, 1e-6, 1.1)
        memory = f"{title}, in at most 12 images"
        yield Task(f"hypergradient-memory-{name}", TIKHONOV, memory, IMAGES, 12.0)
    for name, n in SIGNALS.items():
        title = f"blurred signal of {n:,} numbers".replace(",", " ") + ", FFT"
        yield Task(f"hypergradient-fft-{name}", TIKHONOV, title, BOTH, 1e-8, 1.0, 0.2)


def _meta_tasks() -> Iterator[Task]:
    for name, steps in INNER_STEPS.items():
        words = f"{steps} inner step" + "s" * (steps > 1)
        title = f"MAML on sinusoids, 25 tasks, {words}"
        yield Task(f"maml-{name}", META, f"{title}, PyTorch's libraries", NEW, 1e-8, 0.25)
        yield Task(f"maml-jax-{name}", META, f"{title}, JAX compiled", NEW, 1e-8, 8.0, 1.0)


# λ over λmax, by the size of the support; sides; lengths; spectral radii; inner steps.
FRACTIONS = {"46": 0.08, "139": 0.014}
SIDES = {"1e4": 100, "1e5": 320}
SIGNALS = {"1e3": 1000, "1e5": 100_000}
RADII = (0.38, 0.79, 0.98)
INNER_STEPS = {"1": 1, "5": 5}
TASKS = {
    task.id: task
    for task in (
        *_lasso_tasks(),
        *_tikhonov_tasks(),
        *(
            Task(
                f"fixed-point-{radius:g}",
                POINTS,
                f"x = tanh(Wx + b), n = 1000, spectral radius {radius:g}",
                BOTH,
                1e-6,
                1.3,
                0.8,
            )
            for radius in RADII
        ),
        *_meta_tasks(),
    )
}


def _all(rows: Callable[..., Iterator[dict]], sizes: dict[str, Any]) -> Iterator[dict]:
    for name, size in sizes.items():
        yield from rows(name, size)


# Name on the command line -> the rows.
CONTESTS: dict[str, Callable[[], Iterator[dict]]] = {
    "hypergradient-lasso": lambda: _all(lasso_hypergradient_rows, FRACTIONS),
    "hypergradient-cg": lambda: _all(tikhonov_hypergradient_rows, SIDES),
    "hypergradient-fft": lambda: _all(fourier_rows, SIGNALS),
    "fixed-point": lambda: _all(fixed_point_rows, {f"{radius:g}": radius for radius in RADII}),
    "maml": lambda: _all(meta_rows, INNER_STEPS),
}
