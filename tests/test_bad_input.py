"""Every public function times everything that is not what it expects.

Each call ends in one of two ways: a ``ValueError`` whose message names the argument and says what
was expected or what came, or the right answer, in the library, dtype and device of the arguments.
A new public function must be listed here, or ``test_every_public_name_is_listed`` fails.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pytest
from array_api_compat import is_torch_array
from conftest import PRESENT, make_like
from kit import assert_alike, to_numpy
from test_layers import MATHEMATICS

from course_lib import (
    arrays,
    checks,
    choice,
    filters,
    functionals,
    iterate,
    linear,
    meta,
    operators,
    problems,
    proximal,
)
from course_lib.arrays import asarray_like

A = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 4.0]])  # symmetric positive definite
TALL = np.array([[2.0, 1.0], [1.0, 3.0], [0.0, 1.0]])
Y = np.array([1.0, 2.0, 4.0])
D = np.array([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
S = np.array([3.0, 2.0, 1.0])
BOWL = meta.Task(lambda w: 2 * w, lambda w, v: 2 * v, functionals.squared_l2())


@dataclass(frozen=True)
class Entry:
    """A call with good arguments, and what kind each of them is.

    ``kinds``: "vector", "matrix" (operators are taken too), "array" (any shape), "mask", "values";
    "positive", "at least 0", "at least 1", "number"; "count" (from 0), "size" (from 1), "choice",
    "shape".
    ``words``: what messages call an argument, where that is not its name.
    """

    call: Callable[..., Any]
    good: dict[str, Any]
    kinds: dict[str, str]
    words: dict[str, str] = field(default_factory=dict)


def solved(start: Callable, **kinds: str) -> Entry:
    """A solver: three steps of it."""
    good = {"A": A, "y": Y, "x0": S, "step": 0.05, "nu": 1.0}
    return Entry(
        lambda A, y, x0, **options: [s.x for s in islice(start(A, y, x0, **options), 4)][-1],
        {name: good[name] for name in ("A", "y", "x0", *kinds)},
        {"A": "matrix", "y": "vector", "x0": "vector", **kinds},
        {"A": "matrix", "y": "data"},
    )


def ruled(rule: Callable, **kinds: str) -> Entry:
    good = {"rtol": 0.1, "atol": 0.2, "delta": 0.5, "tau": 1.5}

    def call(A, y, **options):
        made = (
            rule(A, y, **options)
            if "delta" not in options
            else rule(A, y, options["delta"], tau=options["tau"])
        )
        return made.bound

    return Entry(
        call,
        {"A": A, "y": Y, **{k: good[k] for k in kinds}},
        {"A": "matrix", "y": "vector", **kinds},
        {"A": "A", "y": "data"},
    )


def valued(make: Callable, kinds: dict[str, str] | None = None, **good: Any) -> Entry:
    """A functional: its value at x."""
    return Entry(
        lambda x, **options: make(**options)(x),
        {"x": Y, **good},
        {"x": "array", **(kinds or {})},
        {"A": "matrix", "D": "matrix"},
    )


def iterated(start: Callable, kinds: dict[str, str], **good: Any) -> Entry:
    """A proximal iteration: three steps of it, for ½‖Ax - y‖² + ½‖x‖₁ or ½‖x - y‖² + ½‖Dx‖₁."""
    always = {"x0": "vector"}
    return Entry(
        lambda x0, **options: [s.x for s in islice(start(x0=x0, **options), 4)][-1],
        {"x0": S, **good},
        {**always, **kinds},
        {"A": "matrix", "D": "matrix"},
    )


def measured(rule: Callable, kinds: dict[str, str], **good: Any) -> Entry:
    """A rule of a proximal iteration: its value at a state."""
    return Entry(
        lambda **options: (lambda made, state: made.measure(state))(*rule(**options)),
        good,
        kinds,
        {"A": "matrix", "D": "matrix"},
    )


def _descent(A, y, x0, step):
    return proximal.gradient_descent(functionals.least_squares(A, y), x0, step=step)


def _thresholded(start: Callable) -> Callable:
    R = 0.5 * functionals.l1()
    return lambda A, y, x0, step: start(functionals.least_squares(A, y), R, x0, step=step)


def _split(A, y, D, x0, rho, relaxation):
    solve = proximal.least_squares_step(A, y, D)
    R = 0.5 * functionals.l1()
    return proximal.admm(solve, R, D, x0, rho=rho, relaxation=relaxation)


def _dual(D, y, x0, step, dual_step):
    f, g = functionals.least_squares(None, y), 0.5 * functionals.l1()
    return proximal.pdhg(D, f, g, x0, step=step, dual_step=dual_step)


def _mapping_rule(A, y, x0, step, rtol, atol):
    f, R = functionals.least_squares(A, y), 0.5 * functionals.l1()
    rule = proximal.prox_gradient_rule(f, R, x0, step=step, rtol=rtol, atol=atol)
    return rule, next(proximal.ista(f, R, x0, step=step))


def _lasso_rule(A, y, lam, lam2, rtol):
    rule = proximal.lasso_gap_rule(A, y, lam, lam2=lam2, rtol=rtol)
    f = functionals.least_squares(A, y)
    return rule, next(proximal.gradient_descent(f, y, step=1.0))


def _gap_rule(D, y, rtol):
    f, g = functionals.least_squares(None, y), 0.5 * functionals.l1()
    rule = proximal.gap_rule(D, f, g, rtol=rtol)
    x0 = arrays.zeros(operators.as_operator(D).in_shape, y)
    return rule, list(islice(proximal.pdhg(D, f, g, x0, step=0.2, dual_step=0.2), 3))[-1]


def _admm_rule(A, y, D, rtol, atol):
    states = list(islice(_split(A, y, D, y, 0.7, 1.0), 3))
    return proximal.admm_rule(D, rtol=rtol, atol=atol), states[-1]


def problem(make: Callable, kinds: dict[str, str], words: dict | None = None, **good: Any) -> Entry:
    """A test problem; its data are what it returns."""
    always = {"noise": 0.01, "seed": 0}
    return Entry(
        lambda **options: make(**options).y,
        {**good, **always},
        {**kinds, "noise": "at least 0", "seed": "count"},
        words or {},
    )


def solution(result: Any) -> Any:
    return result.x


def chosen(rule: Callable, kinds: dict[str, str], without: tuple = (), **good: Any) -> Entry:
    """A rule that chooses λ: its criterion on a grid, which is a list of plain numbers."""
    kinds = {"A": "matrix", "y": "vector", "D": "matrix", "grid": "values", **kinds}
    good = {"A": A, "y": Y, "D": D, "grid": S[::-1], **good}
    return Entry(
        lambda **options: rule(**options).values.tolist(),
        {name: value for name, value in good.items() if name not in without},
        {name: kind for name, kind in kinds.items() if name not in without},
        {"A": "matrix", "D": "matrix"},
    )


TABLE: dict[str, Entry] = {
    # arrays
    "arrays.as_real": Entry(lambda x: arrays.as_real(x, "x"), {"x": Y}, {"x": "array"}),
    "arrays.as_scalar": Entry(
        lambda value: arrays.as_scalar(value, "value"), {"value": 2.0}, {"value": "number"}
    ),
    "arrays.as_count": Entry(
        lambda value: arrays.as_count(value, "value"), {"value": 2}, {"value": "count"}
    ),
    # iterate
    "iterate.residual_rule": ruled(iterate.residual_rule, rtol="at least 0", atol="at least 0"),
    "iterate.gradient_rule": ruled(iterate.gradient_rule, rtol="at least 0", atol="at least 0"),
    "iterate.discrepancy_rule": ruled(iterate.discrepancy_rule, delta="positive", tau="at least 1"),
    "iterate.run": Entry(
        lambda max_iter, check_every: (
            iterate.run(linear.cgls(A, Y), max_iter=max_iter, check_every=check_every).x
        ),
        {"max_iter": 2, "check_every": 1},
        {"max_iter": "count", "check_every": "size"},
    ),
    # operators
    "operators.matrix": Entry(
        lambda M: operators.matrix(M).to_dense(), {"M": TALL}, {"M": "matrix"}, {"M": "matrix"}
    ),
    "operators.as_operator": Entry(
        lambda A: operators.as_operator(A).to_dense(), {"A": TALL}, {"A": "matrix"}, {"A": "matrix"}
    ),
    "operators.identity": Entry(
        lambda shape: operators.identity(shape).to_dense(), {"shape": (2, 3)}, {"shape": "shape"}
    ),
    "operators.convolution": Entry(
        lambda psf, shape, boundary: (lambda B: B @ asarray_like(Y, B.like))(
            operators.convolution(psf, shape, boundary=boundary)
        ),
        {"psf": S, "shape": 3, "boundary": "zero"},
        {"psf": "vector", "shape": "shape", "boundary": "choice"},
    ),
    "operators.integration": Entry(
        lambda n: operators.integration(n).to_dense(), {"n": 3}, {"n": "size"}
    ),
    "operators.difference": Entry(
        lambda n, order, boundary: operators.difference(
            n, order=order, boundary=boundary
        ).to_dense(),
        {"n": 4, "order": 2, "boundary": "reflect"},
        {"n": "size", "order": "choice", "boundary": "choice"},
    ),
    "operators.gradient": Entry(
        lambda shape, boundary: operators.gradient(shape, boundary=boundary).to_dense(),
        {"shape": (2, 3), "boundary": "free"},
        {"shape": "shape", "boundary": "choice"},
    ),
    "operators.subsampling": Entry(
        lambda mask: operators.subsampling(mask).to_dense(), {"mask": S > 1.5}, {"mask": "mask"}
    ),
    "operators.radon": Entry(
        lambda size, angles: operators.radon(size, angles).to_dense(),
        {"size": 3, "angles": 10.0 * S},
        {"size": "size", "angles": "vector"},
    ),
    "operators.haar": Entry(
        lambda shape, levels: operators.haar(shape, levels=levels).to_dense(),
        {"shape": (4, 2), "levels": 1},
        {"shape": "shape", "levels": "size"},
    ),
    "operators.diagonal": Entry(
        lambda weights: operators.diagonal(weights).to_dense(), {"weights": S}, {"weights": "array"}
    ),
    "operators.whitening": Entry(
        lambda cov: operators.whitening(cov).to_dense(), {"cov": S}, {"cov": "vector"}
    ),
    "operators.whitening by matrix": Entry(
        lambda cov: operators.whitening(cov).to_dense(), {"cov": np.diag(Y)}, {"cov": "matrix"}
    ),
    "operators.golub_kahan": Entry(
        lambda A, b, k: operators.golub_kahan(A, b, k)[2],
        {"A": A, "b": Y, "k": 2},
        {"A": "matrix", "b": "vector", "k": "size"},
        {"A": "matrix"},
    ),
    # linear
    "linear.cg": solved(linear.cg),
    "linear.cgls": solved(linear.cgls),
    "linear.gmres": solved(linear.gmres),
    "linear.minres": solved(linear.minres),
    "linear.bicgstab": solved(linear.bicgstab),
    "linear.landweber": solved(linear.landweber, step="positive"),
    "linear.nu_method": solved(linear.nu_method, nu="positive", step="positive"),
    # functionals
    "functionals.least_squares": valued(
        functionals.least_squares,
        {"A": "matrix", "y": "vector", "weights": "vector", "x": "vector"},
        A=A,
        y=Y,
        weights=S,
    ),
    "functionals.squared_l2": valued(functionals.squared_l2, {"D": "matrix", "x": "vector"}, D=D),
    "functionals.l1": valued(functionals.l1),
    "functionals.elastic_net": valued(
        functionals.elastic_net, {"lam1": "positive", "lam2": "positive"}, lam1=0.5, lam2=2.0
    ),
    "functionals.group_l1": valued(functionals.group_l1, {"axis": "count"}, axis=0),
    "functionals.total_variation": valued(
        functionals.total_variation, {"shape": "shape", "x": "vector"}, shape=3
    ),
    "functionals.box": valued(
        functionals.box, {"lower": "number", "upper": "number"}, lower=-9.0, upper=9.0
    ),
    "functionals.l1_ball": valued(functionals.l1_ball, {"radius": "positive"}, radius=50.0),
    "functionals.separable": valued(
        lambda: functionals.separable(
            (functionals.l1(), (1,)), (0.5 * functionals.squared_l2(), (2,))
        ),
        {"x": "vector"},
    ),
    "functionals.soft_threshold": Entry(
        functionals.soft_threshold,
        {"v": Y, "threshold": 1.5},
        {"v": "array", "threshold": "at least 0"},
    ),
    # proximal
    "proximal.gradient_descent": iterated(
        _descent, {"A": "matrix", "y": "vector", "step": "positive"}, A=A, y=Y, step=0.05
    ),
    "proximal.ista": iterated(
        _thresholded(proximal.ista),
        {"A": "matrix", "y": "vector", "step": "positive"},
        A=A,
        y=Y,
        step=0.05,
    ),
    "proximal.fista": iterated(
        _thresholded(proximal.fista),
        {"A": "matrix", "y": "vector", "step": "positive"},
        A=A,
        y=Y,
        step=0.05,
    ),
    "proximal.admm": iterated(
        _split,
        {
            "A": "matrix",
            "y": "vector",
            "D": "matrix",
            "rho": "positive",
            "relaxation": "positive",
        },
        A=A,
        y=Y,
        D=D,
        rho=0.7,
        relaxation=1.5,
    ),
    "proximal.pdhg": iterated(
        _dual,
        {"D": "matrix", "y": "vector", "step": "positive", "dual_step": "positive"},
        D=D,
        y=Y,
        step=0.3,
        dual_step=0.2,
    ),
    "proximal.least_squares_step": Entry(
        lambda A, y, D: proximal.least_squares_step(A, y, D)(y[:2], 0.7),
        {"A": A, "y": Y, "D": D},
        {"A": "matrix", "y": "vector", "D": "matrix"},
        {"A": "matrix", "D": "matrix"},
    ),
    "proximal.prox_gradient_rule": measured(
        _mapping_rule,
        {
            "A": "matrix",
            "y": "vector",
            "x0": "vector",
            "step": "positive",
            "rtol": "at least 0",
            "atol": "at least 0",
        },
        A=A,
        y=Y,
        x0=S,
        step=0.05,
        rtol=1e-3,
        atol=1e-6,
    ),
    "proximal.lasso_gap_rule": measured(
        _lasso_rule,
        {
            "A": "matrix",
            "y": "vector",
            "lam": "positive",
            "lam2": "at least 0",
            "rtol": "at least 0",
        },
        A=A,
        y=Y,
        lam=0.5,
        lam2=0.5,
        rtol=1e-3,
    ),
    "proximal.gap_rule": measured(
        _gap_rule, {"D": "matrix", "y": "vector", "rtol": "at least 0"}, D=D, y=Y, rtol=1e-3
    ),
    "proximal.admm_rule": measured(
        _admm_rule,
        {
            "A": "matrix",
            "y": "vector",
            "D": "matrix",
            "rtol": "at least 0",
            "atol": "at least 0",
        },
        A=A,
        y=Y,
        D=D,
        rtol=1e-3,
        atol=1e-6,
    ),
    "proximal.lasso": Entry(
        lambda A, y, lam, x0, rtol, max_iter: solution(
            proximal.lasso(A, y, lam, x0, rtol=rtol, max_iter=max_iter)
        ),
        {"A": A, "y": Y, "lam": 0.5, "x0": S, "rtol": 1e-3, "max_iter": 9},
        {
            "A": "matrix",
            "y": "vector",
            "lam": "positive",
            "x0": "vector",
            "rtol": "at least 0",
            "max_iter": "count",
        },
        {"A": "matrix"},
    ),
    "proximal.elastic_net": Entry(
        lambda A, y, lam1, lam2: solution(proximal.elastic_net(A, y, lam1, lam2)),
        {"A": A, "y": Y, "lam1": 0.5, "lam2": 0.5},
        {"A": "matrix", "y": "vector", "lam1": "positive", "lam2": "at least 0"},
        {"A": "matrix"},
    ),
    "proximal.prox_tv": Entry(
        lambda v, lam, rtol, max_iter: solution(
            proximal.prox_tv(v, lam, rtol=rtol, max_iter=max_iter)
        ),
        {"v": Y, "lam": 0.5, "rtol": 1e-3, "max_iter": 20},
        {"v": "array", "lam": "at least 0", "rtol": "at least 0", "max_iter": "count"},
    ),
    "proximal.tv_deblur": Entry(
        lambda A, y, lam, rtol, max_iter: solution(
            proximal.tv_deblur(A, y, lam, rtol=rtol, max_iter=max_iter)
        ),
        {"A": A, "y": Y, "lam": 0.5, "rtol": 1e-3, "max_iter": 20},
        {
            "A": "matrix",
            "y": "vector",
            "lam": "positive",
            "rtol": "at least 0",
            "max_iter": "count",
        },
        {"A": "matrix"},
    ),
    # filters
    "filters.decompose": Entry(
        lambda A: filters.decompose(A).s, {"A": A}, {"A": "matrix"}, {"A": "matrix"}
    ),
    "filters.tikhonov_factors": Entry(
        filters.tikhonov_factors, {"s": S, "lam": 0.5}, {"s": "array", "lam": "positive"}
    ),
    "filters.tsvd_factors": Entry(
        filters.tsvd_factors, {"s": S, "rank": 2}, {"s": "array", "rank": "size"}
    ),
    "filters.landweber_factors": Entry(
        filters.landweber_factors,
        {"s": S, "step": 0.1, "k": 2},
        {"s": "array", "step": "positive", "k": "count"},
    ),
    "filters.cgls_factors": Entry(
        filters.cgls_factors, {"s": S, "ritz": Y}, {"s": "array", "ritz": "values"}
    ),
    "filters.ritz_values": Entry(
        filters.ritz_values,
        {"A": A, "y": Y, "k": 2},
        {"A": "matrix", "y": "vector", "k": "size"},
        {"A": "matrix", "y": "b"},
    ),
    "filters.filtered": Entry(
        lambda A, y, factors: filters.filtered(filters.decompose(A), y, factors),
        {"A": A, "y": Y, "factors": S},
        {"A": "matrix", "y": "vector", "factors": "vector"},
        {"A": "matrix"},
    ),
    "filters.tikhonov": Entry(
        lambda A, y, lam, D, method: solution(filters.tikhonov(A, y, lam, D, method=method)),
        {"A": A, "y": Y, "lam": 0.5, "D": D, "method": "qr"},
        {"A": "matrix", "y": "vector", "lam": "positive", "D": "matrix", "method": "choice"},
        {"A": "matrix", "D": "matrix"},
    ),
    "filters.tikhonov by cgls": Entry(
        lambda A, y, lam, D, rtol, max_iter: solution(
            filters.tikhonov(A, y, lam, D, method="cgls", rtol=rtol, max_iter=max_iter)
        ),
        {"A": A, "y": Y, "lam": 0.5, "D": D, "rtol": 1e-3, "max_iter": 9},
        {
            "A": "matrix",
            "y": "vector",
            "lam": "positive",
            "D": "matrix",
            "rtol": "at least 0",
            "max_iter": "count",
        },
        {"A": "matrix", "D": "matrix"},
    ),
    "filters.tsvd": Entry(
        lambda A, y, rank: solution(filters.tsvd(A, y, rank)),
        {"A": A, "y": Y, "rank": 2},
        {"A": "matrix", "y": "vector", "rank": "size"},
        {"A": "matrix"},
    ),
    "filters.standard_form": Entry(
        lambda A, D, y: filters.standard_form(A, D).to_data(y),
        {"A": A, "D": D, "y": Y},
        {"A": "matrix", "D": "matrix", "y": "vector"},
        {"A": "matrix", "D": "matrix"},
    ),
    # choice
    "choice.smoother": Entry(
        lambda A, D, y: choice.smoother(A, D).fit(y).solve(0.5),
        {"A": A, "D": D, "y": Y},
        {"A": "matrix", "D": "matrix", "y": "vector"},
        {"A": "matrix", "D": "matrix"},
    ),
    "choice.gcv": chosen(choice.gcv, {}),
    "choice.loocv": chosen(choice.loocv, {}),
    "choice.sure": chosen(choice.sure, {"noise_std": "positive"}, noise_std=0.5),
    "choice.evidence": chosen(choice.evidence, {"noise_std": "positive"}, noise_std=0.5),
    "choice.l_curve": chosen(choice.l_curve, {}),
    "choice.discrepancy": chosen(
        choice.discrepancy, {"delta": "positive", "tau": "at least 1"}, delta=0.3, tau=1.5
    ),
    "choice.oracle": chosen(
        choice.oracle, {"x_true": "vector", "error": "choice"}, x_true=S, error="prediction"
    ),
    "choice.gcv by solver": chosen(
        lambda A, y, **options: choice.gcv(A, y, solver=filters.tikhonov, **options),
        {"probes": "size", "seed": "count"},
        ("D",),
        probes=2,
        seed=0,
    ),
    "choice.k_fold": chosen(
        lambda A, y, **options: choice.k_fold(A, y, filters.tikhonov, **options),
        {"folds": "size", "seed": "count"},
        ("D",),
        folds=3,
        seed=0,
    ),
    # problems
    "problems.add_noise": Entry(
        lambda y, noise, seed: problems.add_noise(y, noise, seed=seed)[0],
        {"y": Y, "noise": 0.1, "seed": 0},
        {"y": "array", "noise": "at least 0", "seed": "count"},
    ),
    "problems.add_noise by kind": Entry(
        lambda y, **options: problems.add_noise(y, 0.1, **options)[0],
        {"y": Y, "kind": "coloured", "correlation": 0.5},
        {"y": "array", "kind": "choice", "correlation": "number"},
    ),
    "problems.add_noise by counts": Entry(
        lambda y, noise: problems.add_noise(y, noise, kind="poisson")[0],
        {"y": Y, "noise": 0.1},
        {"y": "array", "noise": "at least 0"},
    ),
    "problems.add_noise by outliers": Entry(
        lambda y, fraction: problems.add_noise(y, 0.1, kind="outliers", fraction=fraction)[0],
        {"y": Y, "fraction": 0.3},
        {"y": "array", "fraction": "at least 0"},
    ),
    "problems.deriv2": problem(problems.deriv2, {"n": "size"}, n=8),
    "problems.shaw": problem(problems.shaw, {"n": "size"}, n=8),
    "problems.phillips": problem(problems.phillips, {"n": "size"}, n=8),
    "problems.gravity": problem(
        problems.gravity, {"n": "size", "depth": "positive"}, n=8, depth=0.25
    ),
    "problems.heat": problem(problems.heat, {"n": "size", "kappa": "positive"}, n=8, kappa=1.0),
    "problems.blur_1d": problem(
        problems.blur_1d, {"n": "size", "width": "positive"}, n=32, width=0.03
    ),
    "problems.blocks": problem(problems.blocks, {"n": "size"}, n=8),
    "problems.spikes": problem(
        problems.spikes,
        {"n": "size", "s": "size", "width": "positive", "separation": "at least 0"},
        n=32,
        s=3,
        width=0.03,
        separation=0.1,
    ),
    "problems.compressed_sensing": problem(
        problems.compressed_sensing,
        {"m": "size", "n": "size", "s": "size", "ensemble": "choice"},
        m=8,
        n=16,
        s=2,
        ensemble="cosine",
    ),
    "problems.source_problem": problem(
        problems.source_problem,
        {"n": "size", "nu": "at least 0", "p": "positive"},
        n=8,
        nu=0.5,
        p=1.0,
    ),
    "problems.deblurring": problem(
        problems.deblurring,
        {
            "name": "choice",
            "psf": "choice",
            "width": "positive",
            "boundary": "choice",
            "outside": "choice",
        },
        {"name": "picture"},
        name="camera",
        psf="gaussian",
        width=1.0,
        boundary="periodic",
        outside="model",
        size=16,
    ),
    "problems.tomography": problem(
        problems.tomography,
        {"name": "choice", "size": "size", "angles": "size", "data": "choice"},
        {"name": "picture"},
        name="shepp_logan",
        size=16,
        angles=3,
        data="model",
    ),
    "problems.psf_gaussian": Entry(problems.psf_gaussian, {"width": 1.0}, {"width": "positive"}),
    "problems.psf_motion": Entry(
        lambda length, angle: problems.psf_motion(length, angle=angle),
        {"length": 3.0, "angle": 10.0},
        {"length": "positive", "angle": "number"},
    ),
    "problems.psf_disk": Entry(problems.psf_disk, {"radius": 2.0}, {"radius": "positive"}),
    "problems.picture": Entry(
        lambda name, margin: problems.picture(name, 16, margin=margin),
        {"name": "camera", "margin": 0},
        {"name": "choice", "margin": "count"},
        {"name": "picture"},
    ),
    "problems.pictures": Entry(
        lambda size, **options: problems.pictures(size, **options).train,
        {"size": 32, "train": 2, "validation": 2, "test": 2, "reduce": 2, "seed": 0},
        {
            **dict.fromkeys(("size", "train", "validation", "test", "reduce"), "size"),
            "seed": "count",
        },
    ),
    "problems.blur_family": Entry(
        lambda count, size, boundary, seed: (
            problems.blur_family(count, size, boundary=boundary, seed=seed)[-1].y
        ),
        {"count": 2, "size": 32, "boundary": "zero", "seed": 0},
        {"count": "size", "size": "size", "boundary": "choice", "seed": "count"},
    ),
    "problems.sinusoids": Entry(
        lambda tasks, shots, **options: problems.sinusoids(tasks, shots, **options).y_query,
        {"tasks": 2, "shots": 3, "queries": 4, "seed": 0},
        {"tasks": "size", "shots": "size", "queries": "size", "seed": "count"},
    ),
    "problems.digits": Entry(
        lambda tasks, shots, **options: problems.digits(tasks, shots, **options).x_query,
        {"tasks": 2, "shots": 3, "queries": 4, "ways": 3, "seed": 0},
        {**dict.fromkeys(("tasks", "shots", "queries", "ways"), "size"), "seed": "count"},
    ),
    # meta
    "meta.maml": Entry(
        lambda theta, **options: meta.maml(BOWL, theta, **options).gradient,
        {"theta": Y, "step": 0.1, "steps": 2, "adapt": np.array([1.0, 0.0, 1.0]), "order": "exact"},
        {
            "theta": "array",
            "step": "positive",
            "steps": "count",
            "adapt": "array",
            "order": "choice",
        },
    ),
    "meta.reptile": Entry(
        lambda theta, **options: meta.reptile(BOWL, theta, **options).gradient,
        {"theta": Y, "step": 0.1, "steps": 2},
        {"theta": "array", "step": "positive", "steps": "size"},
    ),
    "meta.imaml": Entry(
        lambda theta, **options: meta.imaml(BOWL, theta, **options).gradient,
        {"theta": Y, "rho": 0.5, "rtol": 1e-5, "max_iter": 9},
        {"theta": "array", "rho": "positive", "rtol": "positive", "max_iter": "count"},
    ),
    "meta.hypergradient_descent": Entry(
        lambda x0, **options: [
            s.x for s in islice(meta.hypergradient_descent(lambda x, k: 2 * x, x0, **options), 3)
        ][-1],
        {"x0": Y, "step": 0.1, "rate": 0.001},
        {"x0": "array", "step": "positive", "rate": "at least 0"},
    ),
    "meta.truncated_training": Entry(
        lambda theta, **options: [
            s.x
            for s in islice(
                meta.truncated_training(
                    lambda run: (
                        meta.gradient_step(lambda w, k: w, lambda w, v, k: v),
                        asarray_like(np.ones(3), arrays.as_real(theta, "theta")),
                        functionals.squared_l2(),
                    ),
                    theta,
                    **options,
                ),
                3,
            )
        ][-1],
        {"theta": np.array([1.0, 0.0]), "length": 2, "pieces": 2, "rate": 0.1, "bound": 1.0},
        {
            "theta": "array",
            "length": "size",
            "pieces": "size",
            "rate": "positive",
            "bound": "positive",
        },
    ),
    "meta.learned_start": Entry(
        meta.learned_start,
        {"step": 0.1, "hidden": 3, "seed": 0},
        {"step": "positive", "hidden": "size", "seed": "count"},
    ),
    "meta.checkpoint_cost": Entry(
        lambda steps, slots: meta.checkpoint_cost(steps, slots).forwards,
        {"steps": 9, "slots": 3},
        {"steps": "size", "slots": "size"},
    ),
    "meta.clip": Entry(
        meta.clip,
        {"g": Y, "bound": 0.5, "kind": "norm"},
        {"g": "array", "bound": "positive", "kind": "choice"},
    ),
    "meta.ewc": Entry(
        lambda fisher, w_old, weight: meta.ewc(fisher, w_old, weight).prox(2 * w_old, 0.5),
        {"fisher": S, "w_old": Y, "weight": 2.0},
        {"fisher": "array", "w_old": "array", "weight": "positive"},
    ),
    # checks
    "checks.gradients": Entry(
        lambda theta, **options: float(
            checks.gradients(
                lambda z: arrays.inner(z, z), theta, {"right": lambda z: 2.0 * z}, **options
            ).passed
        ),
        {"theta": Y, "residual": 0.0, "rtol": 1e-6, "directions": 2, "seed": 0},
        {
            "theta": "array",
            "residual": "at least 0",
            "rtol": "positive",
            "directions": "size",
            "seed": "count",
        },
    ),
    "checks.adjoint": Entry(
        lambda A, seed, pairs: checks.adjoint(A, seed=seed, pairs=pairs).value,
        {"A": A, "seed": 0, "pairs": 2},
        {"A": "matrix", "seed": "count", "pairs": "size"},
        {"A": "matrix"},
    ),
    "checks.prox": Entry(
        lambda v, step, seed, trials: (
            checks.prox(
                functionals.l1(), functionals.l1().prox, v, step=step, seed=seed, trials=trials
            ).value
        ),
        {"v": Y, "step": 0.5, "seed": 0, "trials": 1},
        {"v": "array", "step": "positive", "seed": "count", "trials": "size"},
    ),
    "checks.slope": Entry(checks.slope, {"x": Y, "y": S}, {"x": "vector", "y": "vector"}),
    "checks.taylor": Entry(
        lambda x, seed, directions: (
            checks.taylor(
                lambda z: (z**2).sum(), lambda z: 2 * z, x, seed=seed, directions=directions
            ).value
        ),
        {"x": Y, "seed": 0, "directions": 2},
        {"x": "array", "seed": "count", "directions": "size"},
    ),
}

EXEMPT = {
    **dict.fromkeys(
        (
            f"autodiff.{name}"
            for name in ("all_reduce attach batched gradient gradient_and_hvp hvp partials").split()
        ),
        "torch alone, and functions; test_implicit.py breaks them",
    ),
    "arrays.shape_of": "takes anything",
    "choice.golden_section": "takes a function; test_choice.py breaks it",
    "implicit.Solution": "a record",
    **dict.fromkeys(
        (
            f"implicit.{name}"
            for name in (
                "batch_norm batch_norm_vjp error_bound fixed_point_jvp fixed_point_vjp "
                "ilu jacobi lavrentiev layer lbfgs linearize low_rank neumann "
                "neumann_tail refine root_jvp root_vjp solve support_jvp support_vjp "
                "sylvester sylvester_jvp sylvester_vjp"
            ).split()
        ),
        "derivatives or matrices that must fit each other; test_implicit.py breaks them",
    ),
    "arrays.to_numpy": "passes anything through",
    "bilevel.Hypergradient": "a record",
    "bilevel.Inner": "a record",
    **dict.fromkeys(
        (
            *("bilevel.descend", "bilevel.elastic_net", "bilevel.evidence", "bilevel.experts"),
            *("bilevel.federated", "bilevel.lasso", "bilevel.newton_cg", "bilevel.newton_rule"),
            *("bilevel.ode", "bilevel.tikhonov", "bilevel.tikhonov_fourier", "bilevel.unrolled"),
        ),
        "takes a loss, functions or arrays that must fit each other; test_bilevel.py breaks them",
    ),
    "meta.CheckpointCost": "a record",
    "meta.MetaGradient": "a record",
    "meta.Network": "a record; test_meta.py breaks its fields and arrays",
    "meta.Task": "a record",
    "meta.Update": "a record",
    "meta.task": "takes functions; test_meta.py breaks them",
    "meta.batched_maml": "takes a loss and data; maml checks the rest",
    "meta.of_weights": "takes a functional",
    **dict.fromkeys(
        ("meta.gradient_step", "meta.heavy_ball", "meta.adam", "meta.learned_step"),
        "takes a function; test_meta.py breaks states and parameters",
    ),
    "arrays.as_choice": "is itself the check; tested with every choice below",
    "arrays.asarray_like": "takes values of any kind; tested in test_arrays.py",
    "arrays.check_alike": "is itself the check; tested in test_arrays.py",
    "arrays.detach": "passes anything through",
    "arrays.require": "is itself the check",
    "arrays.inner": "inner loop: only shape and library are checked, in test_arrays.py",
    "arrays.is_sparse": "answers for any object",
    "arrays.namespace": "is itself the check; tested in test_arrays.py",
    "arrays.norm": "inner loop: only the library is checked, in test_arrays.py",
    "arrays.to_float": "inner loop",
    "arrays.zeros": "takes shapes and arrays that were checked",
    "operators.stack": "takes operators alone; refusals below",
    "iterate.Result": "a record",
    "iterate.StoppingRule": "a record",
    "operators.LinearOperator": "a record; what it is applied to is tested in test_operators.py",
    "choice.Choice": "a record",
    "choice.Fit": "a record; made by a Smoother, which checks the data",
    "choice.Smoother": "a record",
    "filters.Spectrum": "a record",
    "filters.StandardForm": "a record",
    "problems.FewShot": "a record",
    "problems.Pictures": "a record",
    "problems.Problem": "a record",
    "checks.Check": "a record",
    "checks.GradientTable": "a record",
    "functionals.Functional": "a record; refusals of its call and factor in test_functionals.py",
}

# ---------------------------------------------------------------- what is not expected

NOT_ARRAYS = {
    "list": lambda x: x.tolist(),
    "tuple": lambda x: tuple(x.tolist()),
    "None": lambda x: None,
    "text": lambda x: "abc",
    "number": lambda x: 3.0,
    "dict": lambda x: {},
    "function": lambda x: len,
    "generator": lambda x: iter(x),
    "np.matrix": lambda x: np.atleast_2d(x).view(np.matrix),
    "masked": np.ma.array,
    "NumPy scalar": lambda x: np.float64(2),
}
NOT_REAL = {
    "complex": lambda x: x * 1j,
    "objects": lambda x: x.astype(object),
    "texts": lambda x: x.astype(str),
    "half": lambda x: x.astype(np.float16),
    "extended": lambda x: x.astype(np.longdouble),
    "dates": lambda x: x.astype("datetime64[D]"),
}
NOT_FINITE = {
    "NaN": lambda x: np.where(x == x.max(), np.nan, x),
    "infinity": lambda x: np.where(x == x.max(), np.inf, x),
    "minus infinity": lambda x: np.where(x == x.max(), -np.inf, x),
}
NO_SHAPE = {"empty": lambda x: x[..., :0], "0-d": lambda x: np.array(2.0)}
WRONG_VECTOR = {
    "one more": lambda x: np.append(x, 1.0),
    "column": lambda x: x[:, None],
    "row": lambda x: x[None],
    "single": lambda x: x[:1],
}
WRONG_MATRIX = {"vector": lambda x: x[0], "3-d": lambda x: x[None], "empty rows": lambda x: x[:0]}
NOT_NUMBERS = {
    "text": "abc",
    "digits": "2",
    "None": None,
    "list": [2.0],
    "array": np.array([2.0, 3.0]),
    "complex": 2j,
    "True": True,
    "NaN": np.nan,
    "infinity": np.inf,
    "minus": -np.inf,
    "huge": 10**400,
    "bytes": b"2",
    "dict": {},
    "function": len,
}
NOT_COUNTS = {
    "text": "abc",
    "digits": "2",
    "None": None,
    "list": [2],
    "array": np.array([2, 3]),
    "fraction": 2.5,
    "whole float": 2.0,
    "complex": 2j,
    "True": True,
    "NaN": np.nan,
    "negative": -1,
    "function": len,
}
BELOW = {"positive": (0.0, -1.0, -1e-300), "at least 0": (-1.0, -1e-300), "at least 1": (0.5, -2.0)}

ARRAY_KINDS = {"vector", "matrix", "array"}


def bad_values(kind: str, good: Any) -> dict[str, Any]:
    if kind in ARRAY_KINDS:
        wrong = {"vector": WRONG_VECTOR, "matrix": WRONG_MATRIX, "array": {}}[kind]
        no_shape = NO_SHAPE if kind != "array" else {"empty": NO_SHAPE["empty"]}
        makers = {**NOT_ARRAYS, **NOT_REAL, **NOT_FINITE, **no_shape, **wrong}
        return {name: make(good) for name, make in makers.items()}
    if kind == "mask":
        return {
            "list": good.tolist(),
            "None": None,
            "floats": good * 1.0,
            "none kept": good & False,
            "text": "abc",
            "integers": good.astype(int),
            "empty": good[:0],
            "number": True,
        }
    if kind == "values":
        return {
            "None": None,
            "number": 2.0,
            "text": "abc",
            "negative": -good,
            "zero": 0 * good,
            "NaN": good * np.nan,
            "complex": good * 1j,
            "texts": good.astype(str),
        }
    if kind == "count":
        return NOT_COUNTS
    if kind == "size":
        return {**NOT_COUNTS, "zero": 0}
    if kind == "choice":
        return {
            "text": "abc",
            "None": None,
            "number": 7.5,
            "list": ["free"],
            "array": np.ones(2),
            "empty": "",
        }
    if kind == "shape":
        return {
            "text": "abc",
            "None": None,
            "fraction": 2.5,
            "zero": 0,
            "negative": -3,
            "empty": (),
            "in it": (2, -1),
            "float in it": (2.0, 3),
            "nested": ((2, 3),),
            "array": np.ones(2),
        }
    return {**NOT_NUMBERS, **{f"{bad:g}": bad for bad in BELOW.get(kind, ())}}


# Not bad for these: a choice that takes more, a psf that may be an array.
FINE = {
    ("problems.deblurring", "psf", "array"),
    ("problems.deblurring", "psf", "list"),
    # Angles in degrees are taken too.
    ("problems.tomography", "angles", "array"),
    # An operator made of this many entries is another operator, not a mistake.
    ("operators.convolution", "psf", "single"),
    ("checks.slope", "x", "single"),
    # A function of theta is taken too.
    ("checks.gradients", "residual", "function"),
    ("operators.radon", "angles", "one more"),
    ("operators.radon", "angles", "single"),
    ("operators.whitening", "cov", "one more"),
    ("operators.whitening", "cov", "single"),
    # As many levels as the shape allows.
    ("operators.haar", "levels", "None"),
    # None is a start at zero, and the identity for a penalty.
    *((f"linear.{name}", "x0", "None") for name in linear.__all__),
    *(
        (f"choice.{name}", argument, "None")
        for name in choice.__all__
        for argument in ("D", "grid", "noise_std")
        if (name, argument) not in (("k_fold", "grid"), ("sure", "noise_std"))
    ),
    # None is the identity, equal weights, an open side.
    *(
        (name, "A", "None")
        for name in (
            "functionals.least_squares",
            "proximal.gradient_descent",
            "proximal.ista",
            "proximal.fista",
            "proximal.prox_gradient_rule",
        )
    ),
    ("functionals.least_squares", "weights", "None"),
    ("functionals.squared_l2", "D", "None"),
    ("functionals.box", "lower", "None"),
    ("functionals.box", "upper", "None"),
    # All weights adapt; checkpoints at every root.
    ("meta.maml", "adapt", "None"),
    ("meta.checkpoint_cost", "slots", "None"),
    # A start at zero, and the tolerance that fits the precision.
    ("proximal.lasso", "x0", "None"),
    ("proximal.lasso", "rtol", "None"),
    ("filters.tikhonov", "D", "None"),
    ("filters.tikhonov by cgls", "D", "None"),
}

CASES = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name, entry in TABLE.items()
    for argument in entry.kinds
]


def complaint(name: str, argument: str, value: Any) -> str | None:
    """What is wrong with the way a call ends, given one bad argument; None if nothing is."""
    entry = TABLE[name]
    try:
        result = entry.call(**{**entry.good, argument: value})
    except ValueError as error:
        message = str(error)
    except Exception as error:  # any other kind is the defect that is looked for
        return f"{type(error).__name__}: {error}"
    else:
        return f"no error, but {result!r}"
    word = entry.words.get(argument, argument)
    if "expected" not in message and "got" not in message:
        return f"says neither what was expected nor what came: {message}"
    if word not in message and "every argument" not in message:
        return f"does not name {word}: {message}"
    return None if len(message) < 400 else f"too long: {message}"


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_bad_input_is_refused_in_words(name, argument):
    entry = TABLE[name]
    values = bad_values(entry.kinds[argument], entry.good[argument])
    assert len(values) > 5
    complaints = {
        label: complaint(name, argument, value)
        for label, value in values.items()
        if (name, argument, label) not in FINE
    }
    assert {label: text for label, text in complaints.items() if text} == {}


@pytest.mark.parametrize("name", TABLE)
def test_good_input_is_good(name):
    """Otherwise a refusal above might come from something else."""
    value = TABLE[name].call(**TABLE[name].good)
    assert np.isfinite(to_numpy(value) if hasattr(value, "shape") else value).all()


# ---------------------------------------------------------------- other kinds of right input

WITH_ARRAYS = [name for name, entry in TABLE.items() if ARRAY_KINDS & set(entry.kinds.values())]


def converted(entry: Entry, convert: Callable) -> dict[str, Any]:
    return {
        argument: convert(value) if entry.kinds[argument] in ARRAY_KINDS else value
        for argument, value in entry.good.items()
    }


# What answers in NumPy, whatever came: small results for people and plots.
NUMPY_ANSWER = {"operators.golub_kahan", "filters.ritz_values"}
# Refuses single precision, and says so.
DOUBLE_ONLY = {"checks.taylor", "checks.gradients"}
# A sparse matrix inside, which the strict library has not.
NEEDS_SPARSE = {"operators.radon"}


@pytest.mark.parametrize("name", WITH_ARRAYS)
@pytest.mark.parametrize("dtype", ["int8", "int64", "uint8", "bool"])
def test_integers_mean_the_same_numbers(name, dtype):
    if (name, dtype) == ("checks.slope", "bool"):
        pytest.skip("a power law through equal points has no slope")
    entry = TABLE[name]
    whole = converted(entry, lambda x: x.astype(dtype))
    expected = entry.call(**converted(entry, lambda x: x.astype(dtype).astype(float)))
    value = entry.call(**whole)
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    if isinstance(value, np.ndarray):
        assert value.dtype == np.float64


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_kind_of_the_answer(name, like):
    """Single precision stays single, tensors stay tensors, on their device."""
    entry = TABLE[name]
    arguments = converted(entry, lambda x: asarray_like(x, like))
    if name in DOUBLE_ONLY and str(like.dtype).endswith("float32"):
        with pytest.raises(ValueError, match="double precision"):
            entry.call(**arguments)
        return
    if name in NEEDS_SPARSE and "strict" in type(like).__module__:
        with pytest.raises(ValueError, match="NumPy array or a PyTorch tensor, got"):
            entry.call(**arguments)
        return
    if not isinstance(like, np.ndarray) and name == "checks.taylor":
        arguments["x"] = asarray_like(Y, like)
        f = lambda z: arrays.inner(z, z)  # noqa: E731
        value = checks.taylor(f, lambda z: 2.0 * z, arguments["x"]).value
    else:
        value = entry.call(**arguments)
    expected = entry.call(**entry.good)
    single = str(like.dtype).endswith("float32")
    if name not in ("checks.taylor", "checks.adjoint"):  # they measure rounding itself
        np.testing.assert_allclose(
            to_numpy(value),
            expected,
            rtol=2e-4 if single else 1e-10,
            atol=1e-5 if single else 1e-12,
        )
    if hasattr(value, "shape") and name not in NUMPY_ANSWER:
        assert_alike(value, like)


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_tensors_that_require_grad(name, torch):
    """The same answer, and no warning; where a number comes out, it is cut off."""
    entry = TABLE[name]
    if name == "checks.taylor":
        pytest.skip("differences of f are taken in plain numbers")
    arguments = converted(entry, lambda x: torch.tensor(x, requires_grad=True))
    value = entry.call(**arguments)
    expected = entry.call(**entry.good)
    if name != "checks.adjoint":
        np.testing.assert_allclose(to_numpy(value), expected, rtol=1e-10, atol=1e-12)
    if is_torch_array(value):
        # They say so; indicators and factors of TSVD are constant where they have a derivative.
        constant = (
            "linear.gmres",
            "filters.tsvd_factors",
            "functionals.box",
            "functionals.l1_ball",
            "operators.radon",
            "proximal.lasso",
            "proximal.elastic_net",
            "meta.imaml",
            "meta.reptile",
            "meta.truncated_training",
        )
        assert value.requires_grad != (name in constant)


@pytest.mark.parametrize("name", WITH_ARRAYS)
def test_inputs_stay_as_they_are(name):
    entry = TABLE[name]
    arguments = {
        argument: value.copy() if isinstance(value, np.ndarray) else value
        for argument, value in entry.good.items()
    }
    for value in arguments.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False  # writing raises
    entry.call(**arguments)


MIXED = [
    pytest.param(name, argument, id=f"{name}-{argument}")
    for name in WITH_ARRAYS
    for argument, kind in TABLE[name].kinds.items()
    if kind in ARRAY_KINDS
    and len(ARRAY_KINDS & set(TABLE[name].kinds.values())) > 0
    and sum(k in ARRAY_KINDS for k in TABLE[name].kinds.values()) > 1
]
# Dtypes may differ here: the answer is a plain number.
SCALAR_ANSWER = {"checks.slope"}


@pytest.mark.parametrize(("name", "argument"), MIXED)
def test_mixed_dtypes_are_refused(name, argument):
    """Single among double precision: no silent promotion, in neither direction."""
    entry = TABLE[name]
    for one, other in ((np.float32, np.float64), (np.float64, np.float32)):
        arguments = converted(entry, lambda x, other=other: x.astype(other))
        arguments[argument] = arguments[argument].astype(one)
        if name in SCALAR_ANSWER:
            assert isinstance(entry.call(**arguments), float)
            continue
        with pytest.raises(ValueError, match="one dtype: expected .*, got"):
            entry.call(**arguments)


@pytest.mark.parametrize(("name", "argument"), MIXED)
@pytest.mark.parametrize("library", [name for name in PRESENT if name != "numpy"])
def test_mixed_libraries_are_refused(name, argument, library):
    entry, like = TABLE[name], make_like(library, "float64")
    arguments = dict(entry.good)
    arguments[argument] = asarray_like(arguments[argument], like)
    with pytest.raises(ValueError, match=r"one library: got (array_api_strict and )?numpy"):
        entry.call(**arguments)


def test_stack_refuses():
    for bad in (
        (),
        (A,),
        (operators.identity(3), A),
        (operators.identity(3), None),
        (operators.identity(3), operators.identity(4)),
        (operators.matrix(A), operators.matrix(A.astype(np.float32))),
    ):
        with pytest.raises(ValueError, match="operator|one dtype"):
            operators.stack(*bad)


def test_every_public_name_is_listed():
    """A new function must be put into the table, or exempted with a reason."""
    public = {
        f"{module}.{name}"
        for module in MATHEMATICS
        for name in importlib.import_module(f"course_lib.{module}").__all__
    }
    listed = {name.split(" by ")[0] for name in TABLE}
    assert public == listed | set(EXEMPT), public ^ (listed | set(EXEMPT))
    assert not listed & set(EXEMPT)
    for name, entry in TABLE.items():
        # "size" of deblurring is a size or a shape; picture() tests it.
        assert set(entry.good) - set(entry.kinds) <= {"size"}, name
