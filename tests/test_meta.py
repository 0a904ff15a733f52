"""Meta-learning against plain loops, finite differences and PyTorch; and the errata about it.

E-33 to E-35, E-43 (checkpoints), E-46, E-50 to E-54, E-56 (clipping), and exercise 17.8 with E-64.
Where the sources give an instance in full, its digits are compared; else the direction is shown on
20 seeded instances, with median and range in pytest's summary. A test with ``broken`` runs once
more with the claim of the source, or a spoilt ingredient, in the place of the truth, and must then
fail.
"""

import functools
import math
import weakref
from dataclasses import replace
from types import SimpleNamespace

import maml_reference
import numpy as np
import pytest
from claims import rejects
from kit import assert_alike, eps, relative, to_numpy

from course_lib import checks, meta
from course_lib.arrays import asarray_like, inner, to_float
from course_lib.bilevel import unrolled
from course_lib.functionals import Functional, least_squares, squared_l2
from course_lib.iterate import run
from course_lib.operators import LinearOperator
from course_lib.problems import sinusoids

SEEDS = range(20)


def spread(values, digits: int = 2) -> str:
    v = np.array(list(values), dtype=float)
    return f"{np.median(v):.{digits}g} ({v.min():.{digits}g} to {v.max():.{digits}g})"


def quadratic(H, c, *, H_query=None, c_query=None) -> meta.Task:
    """½⟨w - c, H(w - c)⟩ for support and query (the same if nothing else is said)."""
    H_query, c_query = H if H_query is None else H_query, c if c_query is None else c_query
    query = Functional(
        lambda w: 0.5 * inner(w - c_query, H_query @ (w - c_query)),
        lambda w: H_query @ (w - c_query),
    )
    return meta.Task(lambda w: H @ (w - c), lambda w, v: H @ v, query)


def nonlinear(seed: int, n: int = 4) -> meta.Task:
    """Support Σ log cosh(Aw - y), query ½‖Bw - z‖²: Hessians that change along the way."""
    rng = np.random.default_rng(seed)
    A, y = rng.standard_normal((2 * n, n)), 2 * rng.standard_normal(2 * n)
    B, z = rng.standard_normal((2 * n, n)), rng.standard_normal(2 * n)
    return meta.Task(
        lambda w: A.T @ np.tanh(A @ w - y),
        lambda w, v: A.T @ ((1 - np.tanh(A @ w - y) ** 2) * (A @ v)),
        least_squares(B, z),
    )


NETS = {
    "relu": meta.Network((1, 7, 5, 1)),
    "deep": meta.Network((1, 4, 3, 4, 1)),
    "linear": meta.Network((1, 1)),
    "classes": meta.Network((1, 6, 3), "cross_entropy"),
}


@pytest.fixture(params=NETS)
def net(request) -> meta.Network:
    return NETS[request.param]


def few_shot(net: meta.Network, like=None, tasks: int = 3):
    """Sinusoids; for a network of classes, the third of the range in which the value lies."""
    data = sinusoids(tasks, 6, queries=5, seed=4)
    if net.loss == "cross_entropy":

        def one_hot(y):
            return np.eye(3)[np.clip((y[..., 0] + 1.5).astype(int), 0, 2)]

        data = replace(data, y_support=one_hot(data.y_support), y_query=one_hot(data.y_query))
    names = ("x_support", "y_support", "x_query", "y_query")
    return SimpleNamespace(**{name: asarray_like(getattr(data, name), like) for name in names})


def one_task(data, i: int):
    return SimpleNamespace(**{name: values[i] for name, values in vars(data).items()})


def torch_risk(net: meta.Network):
    """The loss of a network, written once more with torch's own layers and losses."""
    import torch

    def risk(w, x, y):
        start, a = 0, x
        for layer, (m, n) in enumerate(net.shapes):
            M = w[start : start + m * n].reshape(m, n)
            a, start = torch.nn.functional.linear(a, M[:-1].T, M[-1]), start + m * n
            if layer < len(net.shapes) - 1:
                a = torch.relu(a)
        if net.loss == "squared":
            return torch.nn.functional.mse_loss(a, y) * y.shape[-1]
        return torch.nn.functional.cross_entropy(a, y)

    return risk


# ---------------------------------------------------------------- the network


def test_network_against_torch(net, torch):
    """Value, gradient and Hessian product of one task."""
    like = torch.zeros(1, dtype=torch.float64)
    data, w = one_task(few_shot(net, like), 0), net.start(3, like)
    v = torch.linspace(-1, 1, net.size, dtype=torch.float64)
    one, risk = net.task(data), torch_risk(net)

    def support(w):
        return risk(w, data.x_support, data.y_support)

    def query(w):
        return risk(w, data.x_query, data.y_query)

    hessian = torch.autograd.functional.hessian(support, w)
    assert float(one.query.value(w)) == pytest.approx(float(query(w)), rel=1e-13)
    assert float(net.risk(w, data.x_query, data.y_query)) == pytest.approx(float(query(w)))
    wanted = torch.autograd.functional.jacobian(query, w)
    assert relative(one.query.gradient(w), wanted) < 1e-13
    assert relative(one.gradient(w), torch.autograd.functional.jacobian(support, w)) < 1e-13
    if net.size > 2:
        assert relative(one.hvp(w, v), hessian @ v) < 1e-12


def test_network_derivatives_by_differences(net):
    data, w = few_shot(net), net.start(1)
    many = net.task(data)
    one = net.task(one_task(data, 1))
    assert checks.taylor(one.query.value, one.query.gradient, w)
    v = np.random.default_rng(0).standard_normal(net.size)
    h = 1e-6
    numerical = (one.gradient(w + h * v) - one.gradient(w - h * v)) / (2 * h)
    assert relative(one.hvp(w, v), numerical) < 1e-8
    # A stack is a loop over its rows.
    W, V = (np.random.default_rng(i).standard_normal((3, net.size)) for i in (1, 2))
    for i in range(3):
        one = net.task(one_task(data, i))
        assert relative(many.gradient(W)[i], one.gradient(W[i])) < 1e-13
        assert relative(many.hvp(W, V)[i], one.hvp(W[i], V[i])) < 1e-12
        assert many.query.value(W)[i] == pytest.approx(float(one.query.value(W[i])), rel=1e-13)
        assert relative(many.query.gradient(W)[i], one.query.gradient(W[i])) < 1e-13


def test_network_over_libraries(net, like):
    data, w = few_shot(net, like), net.start(0, like)
    assert_alike(w, like)
    found = meta.maml(net.task(data), w, step=0.02, steps=3)
    wanted = meta.maml(net.task(few_shot(net)), net.start(0), step=0.02, steps=3)
    assert found.value == pytest.approx(wanted.value, rel=300 * eps(like))
    for name in ("gradient", "weights", "step_gradient"):
        assert_alike(getattr(found, name), like)
        assert relative(getattr(found, name), getattr(wanted, name)) < 300 * eps(like)
    assert found.converged
    assert_alike(net.predict(w, data.x_query), like)


def test_cross_entropy_of_large_numbers():
    """No overflow: a sure and right answer costs nothing, a sure and wrong one its margin."""
    net = meta.Network((1, 2), loss="cross_entropy")
    w, x = np.array([1000.0, 0.0, 0.0, 0.0]), np.ones((1, 1))
    assert float(net.risk(w, x, np.array([[1.0, 0.0]]))) == 0.0
    assert float(net.risk(w, x, np.array([[0.0, 1.0]]))) == 1000.0


def test_start_depends_on_the_seed_and_the_widths():
    net = meta.Network((4, 100, 1))
    w = net.start(1)
    assert w.shape == (net.size,) == (601,)
    assert not (w == net.start(2)).any()
    assert 0.45 < abs(w[:500]).max() <= 0.5 < 0.5 + 1e-9
    assert 0.09 < abs(w[500:]).max() <= 0.1


# ---------------------------------------------------------------- MAML


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("kind", ["plain", "per weight", "some weights", "both"])
@pytest.mark.parametrize("broken", [None, "step sizes outside of the Hessian"])
def test_maml_by_differences(steps, kind, broken):
    """Also with a step for each weight (Meta-SGD) and for some weights only (ANIL)."""
    one, rng = nonlinear(1), np.random.default_rng(2)
    theta, step, adapt = rng.standard_normal(4), 0.05, None
    if kind in ("per weight", "both"):
        step = rng.uniform(0.01, 0.1, 4)
    if kind in ("some weights", "both"):
        adapt = np.array([1.0, 0.0, 1.0, 0.0])
    options = {"steps": steps, "adapt": adapt}

    def value(theta, step=step):
        return meta.maml(one, theta, step=step, **options).value

    def gradient(theta):
        if not broken:
            return meta.maml(one, theta, step=step, **options).gradient
        rate, w, path = step * (1.0 if adapt is None else adapt), theta, []
        for _ in range(steps):
            path.append(w)
            w = w - rate * one.gradient(w)
        psi = one.query.gradient(w)
        for w in reversed(path):
            psi = psi - rate * one.hvp(w, psi)  # wrong unless the rate is one number
        return psi

    found = meta.maml(one, theta, step=step, **options)
    with rejects(broken if steps and kind != "plain" else None):
        assert checks.gradients(
            value, theta, {"maml": gradient}, first_order=one.query.gradient(found.weights)
        )
    if isinstance(step, float):
        by_step = {"by the step": np.asarray(found.step_gradient)}
        assert checks.gradients(lambda a: value(theta, float(a)), np.asarray(step), by_step)
    else:
        assert checks.taylor(
            lambda a: value(theta, a),
            lambda a: meta.maml(one, theta, step=a, **options).step_gradient,
            step,
        )
    if adapt is not None:
        np.testing.assert_array_equal(found.weights[adapt == 0], theta[adapt == 0])


@pytest.mark.parametrize("name", ["relu", "deep", "classes"])
@pytest.mark.parametrize("options", [{}, {"order": "first"}, {"adapt": 1}, {"step": 1}])
@pytest.mark.parametrize("steps", [1, 3])
def test_four_ways_to_the_same_meta_gradient(name, options, steps, torch):
    """By hand in a batch, torch in a batch, torch by vmap: the plain loop, and create_graph."""
    net, like = NETS[name], torch.zeros(1, dtype=torch.float64)
    data, theta = few_shot(net, like), net.start(5, like)
    options = {"step": 0.05, "steps": steps} | options
    if "adapt" in options:
        options["adapt"] = (torch.arange(net.size) % 3 > 0).double()
    if not isinstance(options["step"], float):
        options["step"] = torch.linspace(0.01, 0.1, net.size, dtype=torch.float64)
    risk = torch_risk(net)

    def single(d):
        return meta.task(
            lambda w: risk(w, d.x_support, d.y_support), lambda w: risk(w, d.x_query, d.y_query)
        )

    loop = [meta.maml(single(one_task(data, i)), theta, **options) for i in range(3)]
    ways = {
        "by hand": meta.maml(net.task(data), theta, **options),
        "batch": meta.batched_maml(net.risk, theta, data, **options),
        "vmap": meta.batched_maml(risk, theta, data, vmap=True, **options),
    }
    for way, found in ways.items():
        assert found.value == pytest.approx(np.mean([one.value for one in loop]), rel=1e-12)
        for field in ("gradient", "step_gradient"):
            wanted = torch.stack([getattr(one, field) for one in loop]).mean(0)
            assert relative(getattr(found, field), wanted) < 1e-10, (way, field)
        assert relative(found.weights, torch.stack([one.weights for one in loop])) < 1e-10
    t, value = theta.clone().requires_grad_(), 0
    a = torch.as_tensor(options["step"], dtype=torch.float64).clone().requires_grad_()
    for i in range(3):
        d, w = one_task(data, i), t
        for _ in range(steps):
            (g,) = torch.autograd.grad(
                risk(w, d.x_support, d.y_support), w, create_graph=options.get("order") is None
            )
            w = w - a * options.get("adapt", 1.0) * g
        value = value + risk(w, d.x_query, d.y_query) / 3
    by_theta, by_step = torch.autograd.grad(value, (t, a))
    assert relative(ways["by hand"].gradient, by_theta) < 1e-10
    assert relative(ways["by hand"].step_gradient, by_step) < 1e-10


def test_torch_losses_must_give_the_right_number(torch):
    w = torch.ones(3)
    with pytest.raises(ValueError, match=r"a loss must return one number, .* got \(3,\)"):
        meta.task(lambda w: w, lambda w: w.sum()).gradient(w)
    with pytest.raises(ValueError, match="a loss must return one number, .* got float"):
        meta.task(lambda w: w.sum().item(), lambda w: w.sum()).gradient(w)
    with pytest.raises(ValueError, match="a loss must return 2 numbers"):
        meta.task(lambda w: w.sum(), lambda w: w.sum(), tasks=2).gradient(torch.ones(2, 3))


def test_an_inner_loop_that_diverges_is_told(like64):
    one = quadratic(asarray_like(4 * np.eye(2), like64), asarray_like([1.0, 2.0], like64))
    theta = asarray_like([0.5, 0.0], like64)
    found = meta.maml(one, theta, step=10.0, steps=2000)
    assert not found.converged
    assert "not finite" in found.reason
    assert meta.maml(one, theta, step=0.1, steps=20).converged


BAD = {
    "a list": ({"theta": [1.0]}, "theta must be an array"),
    "NaN": ({"theta": np.array([np.nan, 1.0])}, "theta must be finite"),
    "step 0": ({"step": 0.0}, "step must be positive"),
    "step of a wrong shape": ({"step": np.ones(3)}, "step has the wrong shape"),
    "step in single": ({"step": np.ones(2, np.float32)}, "step and theta must have one dtype"),
    "steps": ({"steps": -1}, "steps is out of range"),
    "order": ({"order": "second"}, "order must be one of exact, first"),
    "adapt": ({"adapt": np.ones((2, 1))}, "adapt has the wrong shape"),
    "task": ({"task": lambda w: w}, "task must be a Task: got function"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_of_maml(case):
    changed, words = BAD[case]
    good = {"task": quadratic(np.eye(2), np.ones(2)), "theta": np.ones(2), "step": 0.1}
    with pytest.raises(ValueError, match=words):
        meta.maml(**(good | changed))


def test_bad_tasks_and_networks():
    theta = np.ones(2)
    wrong = meta.Task(lambda w: w[:1], lambda w, v: v, squared_l2())
    with pytest.raises(ValueError, match=r"shape of the weights: expected \(2,\), got \(1,\)"):
        meta.maml(wrong, theta, step=0.1)
    for widths, words in (((3,), "widths"), ([1, 2], "widths"), ((1, 0, 2), "each of widths")):
        with pytest.raises(ValueError, match=words):
            meta.Network(widths)
    with pytest.raises(ValueError, match="loss must be one of squared, cross_entropy"):
        meta.Network((1, 2), loss="hinge")
    net = meta.Network((2, 3, 1))
    with pytest.raises(ValueError, match=r"x must hold samples as rows: expected .* \(4, 1\)"):
        net.predict(net.start(), np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"expected \(..., 13\), got \(12,\)"):
        net.predict(np.ones(12), np.ones((4, 2)))


# ---------------------------------------------------------------- Reptile, implicit MAML


def test_reptile(like):
    H, c = np.diag([1.0, 3.0]), np.array([1.0, -1.0])
    one = quadratic(asarray_like(H, like), asarray_like(c, like))
    theta, step = asarray_like([2.0, 0.0], like), 0.1
    found = meta.reptile(one, theta, step=step, steps=3)
    w, added = to_numpy(theta), 0
    for _ in range(3):
        g = H @ (w - c)
        w, added = w - step * g, added + g
    assert relative(found.gradient, step * added) < 30 * eps(like)
    assert relative(found.weights, w) < 30 * eps(like)
    assert_alike(found.gradient, like)
    # One step is joint training: no information on how a task adapts.
    once = meta.reptile(one, theta, step=step, steps=1).gradient
    assert relative(once, step * to_numpy(one.gradient(theta))) < 30 * eps(like)


@pytest.mark.slow
@pytest.mark.parametrize("broken", [None, "rho for 1/rho", "no Hessian"])
def test_imaml_by_differences(broken):
    one, rho = nonlinear(3), 0.7
    theta = np.random.default_rng(4).standard_normal(4)

    found = meta.imaml(one, theta, rho=rho, rtol=1e-13)
    g = one.query.gradient(found.weights)
    H = np.stack([one.hvp(found.weights, v) for v in np.eye(4)])
    ways = {
        None: {"imaml": found.gradient, "closed form": np.linalg.solve(np.eye(4) + H / rho, g)},
        "rho for 1/rho": {"imaml": np.linalg.solve(np.eye(4) + rho * H, g)},
        "no Hessian": {"imaml": g},
    }[broken]
    with rejects(broken):
        assert checks.gradients(
            lambda t: meta.imaml(one, t, rho=rho, rtol=1e-13).value, theta, ways, first_order=g
        )
    found = meta.imaml(one, theta, rho=rho, rtol=1e-12)
    assert found.converged, found.reason
    inner_gradient = one.gradient(found.weights) + rho * (found.weights - theta)
    assert np.linalg.norm(inner_gradient) <= 1e-12 * np.linalg.norm(one.gradient(theta))


def test_imaml_over_libraries(like):
    H, c = np.diag([1.0, 3.0]), np.array([1.0, -1.0])
    one = quadratic(asarray_like(H, like), asarray_like(c, like), H_query=asarray_like(2 * H, like))
    theta, rho = asarray_like([2.0, 0.5], like), 0.5
    found = meta.imaml(one, theta, rho=rho, rtol=1e-10 if eps(like) < 1e-10 else 1e-5)
    w = np.linalg.solve(H + rho * np.eye(2), H @ c + rho * to_numpy(theta))
    wanted = np.linalg.solve(np.eye(2) + H / rho, 2 * H @ (w - c))
    assert found.converged, found.reason
    assert_alike(found.gradient, like)
    assert relative(found.weights, w) < 1e3 * eps(like)
    assert relative(found.gradient, wanted) < 1e3 * eps(like)


def test_imaml_of_a_stack_of_networks():
    net = meta.Network((1, 3), "cross_entropy")
    data, theta = few_shot(net), net.start(2)
    found = meta.imaml(net.task(data), theta, rho=3.0, rtol=1e-11)
    assert found.converged, found.reason
    loop = [meta.imaml(net.task(one_task(data, i)), theta, rho=3.0, rtol=1e-11) for i in range(3)]
    assert relative(found.gradient, np.mean([one.gradient for one in loop], axis=0)) < 1e-8
    assert found.value == pytest.approx(np.mean([one.value for one in loop]), rel=1e-9)


def test_imaml_says_where_it_fails():
    saddle = quadratic(np.diag([1.0, -2.0]), np.zeros(2))
    found = meta.imaml(saddle, np.ones(2), rho=1.0)
    assert not found.converged
    assert "not positive definite" in found.reason
    assert meta.imaml(saddle, np.ones(2), rho=3.0).converged
    # The Hessian product is not that of the gradient: every direction leads upwards.
    wrong = meta.Task(lambda w: w, lambda w, v: -3 * v, squared_l2())
    found = meta.imaml(wrong, np.ones(2), rho=1.0)
    assert not found.converged
    assert "breakdown" in found.reason


# ---------------------------------------------------------------- optimizers as maps

SPECTRUM = np.array([0.2, 1.0, 3.0])
RULES = {
    "gradient_step": (meta.gradient_step, [-1.5]),
    "schedule": (meta.gradient_step, [-1.0, -2.0]),
    "heavy_ball": (meta.heavy_ball, [-1.5, 0.6]),
    "adam": (meta.adam, [-1.5, 0.8, 0.9]),
    "learned_step": (meta.learned_step, list(meta.learned_start(0.2, seed=1) + 0.1)),
}


def bent(w, k):
    """A gradient that is no linear function, and depends on k: ∇ Σ h w²/2 + w⁴/4 - w cos k."""
    return asarray_like(SPECTRUM, w) * w + w**3 - math.cos(k)


def bent_hvp(w, v, k):
    return asarray_like(SPECTRUM, w) * v + 3 * w**2 * v


def outer_of(rule: meta.Update, like=None) -> Functional:
    outer = least_squares(None, asarray_like([0.3, -0.2, 0.1], like))
    return outer if rule.parts is None else meta.of_weights(outer)


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [(name, False) for name in RULES]
    + [(name, True) for name in ("gradient_step", "schedule", "heavy_ball")],
)
def test_hypergradients_by_differences(name, by_hand, torch):
    make, numbers = RULES[name]
    rule = make(bent, bent_hvp) if by_hand else make(bent)
    like = np.ones(1) if by_hand else torch.ones(1, dtype=torch.float64)
    theta, w = asarray_like(numbers, like), asarray_like([1.0, -0.5, 0.4], like)
    outer, x0 = outer_of(rule, like), rule.start(w)

    def found(theta):
        return unrolled(rule, x0, theta, 6, outer, linearize=rule.linearize)

    def forward(theta):
        x = x0
        for k in range(6):
            x = rule(x, theta, k)
        return outer.value(x)

    assert checks.gradients(forward, theta, {"unrolled": lambda theta: found(theta).gradient})
    assert_alike(found(theta).gradient, like)


@pytest.mark.parametrize("name", ["gradient_step", "schedule", "heavy_ball"])
def test_derivatives_by_hand_and_adjoints(name, torch):
    """What is written out is what torch finds, at a step that is not the first."""
    from course_lib.implicit import linearize

    make, numbers = RULES[name]
    rule, like = make(bent, bent_hvp), torch.ones(1, dtype=torch.float64)
    rng, theta = np.random.default_rng(5), asarray_like(numbers, like)
    x = asarray_like(rng.standard_normal((3,) if rule.parts is None else (2, 3)), like)
    by_hand = rule.linearize(x, theta, 3)
    by_torch = linearize(lambda x, theta: rule(x, theta, 3), x, theta)
    for ours, theirs in zip(by_hand, by_torch, strict=True):
        assert checks.adjoint(ours, like=like)
        u = asarray_like(rng.standard_normal(theirs.in_shape), like)
        v = asarray_like(rng.standard_normal(theirs.out_shape), like)
        assert relative(ours @ u, theirs @ u) < 1e-13
        assert relative(ours.H @ v, theirs.H @ v) < 1e-13


@pytest.mark.parametrize("name", ["heavy_ball", "adam"])
def test_optimizers_are_torchs(name, torch):
    like = torch.ones(1, dtype=torch.float64)
    make, numbers = RULES[name]
    rule = make(bent) if name == "heavy_ball" else make(bent, eps=1e-12)
    theta = asarray_like(numbers, like)
    w = torch.tensor([1.0, -0.5, 0.4], dtype=torch.float64, requires_grad=True)
    x, rate = rule.start(w.detach()), math.exp(numbers[0])
    theirs = (
        torch.optim.SGD([w], lr=rate, momentum=numbers[1])
        if name == "heavy_ball"
        else torch.optim.Adam([w], lr=rate, betas=tuple(numbers[1:]), eps=1e-12)
    )
    for k in range(7):
        w.grad = bent(w.detach(), k)
        theirs.step()
        x = rule(x, theta, k)
        assert relative(x[0], w) < 1e-10


def test_learning_rates_of_a_schedule():
    """η_k = e^θ₀ / (1 + k e^θ₁): the first step is e^θ₀, and without θ₁ all are."""
    rule, w, theta = meta.gradient_step(lambda w, k: w), np.ones(1), np.array([-1.0, -2.0])
    for k in (0, 1, 7):
        eta = math.exp(-1) / (1 + k * math.exp(-2))
        assert rule(w, theta, k)[0] == pytest.approx(1 - eta, rel=1e-14)
        assert rule(w, theta[:1], k)[0] == pytest.approx(1 - math.exp(-1), rel=1e-14)


def test_optimizers_over_libraries(like):
    for make, numbers in RULES.values():
        rule, theta = make(bent), asarray_like(numbers, like)
        reference, x = make(bent), rule.start(asarray_like([1.0, -0.5, 0.4], like))
        y = reference.start(np.array([1.0, -0.5, 0.4]))
        for k in range(4):
            x, y = rule(x, theta, k), reference(y, np.array(numbers), k)
        assert_alike(x, like)
        assert relative(x, y) < 100 * eps(like)


def test_bad_states_and_parameters():
    rule = meta.heavy_ball(lambda w, k: w)
    with pytest.raises(ValueError, match=r"state has the wrong shape: expected \(2, ...\)"):
        rule(np.ones(2), np.ones(2), 0)
    with pytest.raises(ValueError, match=r"theta has the wrong shape: expected \(2,\), got \(1,\)"):
        rule(np.ones((2, 2)), np.ones(1), 0)
    with pytest.raises(ValueError, match=r"expected \(1,\) or \(2,\), got \(3,\)"):
        meta.gradient_step(lambda w, k: w)(np.ones(2), np.ones(3), 0)
    with pytest.raises(ValueError, match="eps must be positive"):
        meta.adam(lambda w, k: w, eps=0.0)
    with pytest.raises(ValueError, match="hidden is out of range"):
        meta.learned_step(lambda w, k: w, hidden=0)


# ---------------------------------------------------------------- learning rates, online


def test_online_learning_rate(like64):
    """The step size follows the dot products; the slope is the derivative of the last loss."""
    H = asarray_like(np.diag(SPECTRUM), like64)
    f = Functional(lambda x: 0.5 * inner(x, H @ x), lambda x: H @ x)
    x0 = asarray_like([1.0, -1.0, 0.5], like64)
    states = meta.hypergradient_descent(lambda x, k: f.gradient(x), x0, step=0.05, rate=0.01)
    first, second, third = (next(states) for _ in range(3))
    assert_alike(second.step, like64)
    h = 1e-6
    change = f.value(x0 - (0.05 + h) * first.r) - f.value(x0 - (0.05 - h) * first.r)
    assert to_float(second.slope) == pytest.approx(to_float(change) / (2 * h), rel=1e-8)
    assert to_float(second.step) == pytest.approx(0.05 - 0.01 * to_float(second.slope))
    assert relative(third.x, to_numpy(second.x - second.step * second.r)) < 1e-14
    result = run(
        meta.hypergradient_descent(lambda x, k: f.gradient(x), x0, step=1.0, rate=1.0), max_iter=9
    )
    assert result.reason.startswith("breakdown: the step size became -")


# ---------------------------------------------------------------- learned optimizers


def test_learned_step_starts_as_gradient_descent(like):
    w = asarray_like([1.0, -0.5, 0.4], like)
    learned, plain = meta.learned_step(bent), meta.gradient_step(bent)
    theta = meta.learned_start(0.1, like=like)
    assert_alike(theta, like)
    x, z = learned.start(w), w
    for k in range(3):
        x, z = learned(x, theta, k), plain(z, theta[:1], k)
    assert relative(x[0, ...], to_numpy(z)) < 30 * eps(like)


def test_learned_step_entry_by_entry():
    """The formula, written with a loop over entries and hidden units."""
    rng, h = np.random.default_rng(6), 3
    theta, x = rng.standard_normal(2 + 4 * h), rng.standard_normal((2, 5))
    found = meta.learned_step(lambda w, k: w**3, hidden=h)(x, theta, 0)
    g, beta = x[0] ** 3, 1 / (1 + math.exp(-theta[1]))
    a, c, B = theta[2 : 2 + h], theta[2 + h : 2 + 2 * h], theta[2 + 2 * h :].reshape(2, h)
    s = math.sqrt(np.mean(g**2))
    for i in range(5):
        m = beta * x[1, i] + (1 - beta) * g[i]
        hidden = [math.tanh((B[0, j] * g[i] + B[1, j] * m) / s + c[j]) for j in range(h)]
        assert found[1, i] == pytest.approx(m, rel=1e-13)
        assert found[0, i] == pytest.approx(
            x[0, i] - math.exp(theta[0]) * (g[i] + s * (a @ hidden)), rel=1e-12
        )


@pytest.mark.parametrize("broken", [None, "the gradient through the pieces"])
def test_truncated_training_carries_the_state(broken):
    """Piece by piece: the steps are numbered on, the state goes on, its derivative does not."""
    rule = meta.gradient_step(bent, bent_hvp)
    w, outer = np.array([1.0, -0.5, 0.4]), outer_of(rule)
    theta, rate = np.array([-2.0, -1.0]), 0.1

    def sample(number):
        return rule, (number + 1) * w, outer

    states = meta.truncated_training(sample, theta, length=3, pieces=2, rate=rate, bound=1e9)
    found = [next(states) for _ in range(4)]
    x, t = w, theta
    for j, state in enumerate(found[1:]):
        if j == 2:
            x = 2 * w  # a new run

        def value(t, start=x, j=j):
            for k in range(3 * (j % 2), 3 * (j % 2) + 3):
                start = rule(start, t, k)
            return outer.value(start)

        def whole(t):
            start = w
            for k in range(6):
                start = rule(start, t, k)
            return outer.value(start)

        f = whole if broken and j == 1 else value
        numerical = [(f(t + h) - f(t - h)) / 2e-6 for h in 1e-6 * np.eye(2)]
        with rejects(broken if j == 1 else None):
            np.testing.assert_allclose(state.r, numerical, rtol=1e-7, atol=1e-10)
        np.testing.assert_allclose(state.value, value(t), rtol=1e-13)
        for k in range(3 * (j % 2), 3 * (j % 2) + 3):
            x = rule(x, t, k)
        np.testing.assert_allclose(state.carried, x, rtol=1e-13)
        t = t - rate * state.r
        np.testing.assert_allclose(state.x, t, rtol=1e-13)


def test_truncated_training_clips_and_tells_of_overflow():
    rule = meta.gradient_step(lambda w, k: w, lambda w, v, k: v)

    def sample(number):
        return rule, np.array([1e3]), squared_l2()

    def steep(number):  # the outer loss wants the weights to be large
        return rule, np.array([1e3]), Functional(lambda w: 1e4 + w[0], lambda w: 1 + 0 * w)

    states = meta.truncated_training(
        sample, np.array([-2.0]), length=2, pieces=1, rate=0.5, bound=0.1
    )
    first, second = next(states), next(states)
    assert abs(second.x - first.x) == pytest.approx(0.05)
    # An optimizer that overflows at once is an error; one that was driven to it ends the run.
    options = {"length": 2, "pieces": 1, "rate": 1e4, "bound": 1.0}
    with pytest.raises(ValueError, match="finite"):
        run(meta.truncated_training(sample, np.array([500.0]), **options), max_iter=3)
    result = run(meta.truncated_training(steep, np.array([-2.0]), **options), max_iter=9)
    assert result.reason.startswith("breakdown: ")
    assert "finite" in result.reason
    assert result.iterations == 1


def random_quadratic(seed: int, torch, *, scale: float = 1.0):
    """Curvatures from 0.1 to 3 in a random basis; the starting point has unit entries."""
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    like = torch.ones(1, dtype=torch.float64)
    H = asarray_like(scale * (Q * np.geomspace(0.1, 3.0, 8)) @ Q.T, like)
    w = asarray_like(rng.standard_normal(8), like)
    return H, w, Functional(lambda w: 0.5 * inner(w, H @ w), lambda w: H @ w)


@pytest.mark.slow
def test_a_learned_optimizer_is_fitted_to_its_tasks(torch, report_line):
    """Better than its start where it was trained; on problems twice as steep it diverges."""

    def sample(seed, scale=1.0):
        H, w, outer = random_quadratic(seed, torch, scale=scale)
        return meta.learned_step(lambda w, k: H @ w), w, outer

    start = meta.learned_start(0.3, like=torch.ones(1, dtype=torch.float64))
    states = meta.truncated_training(sample, start, length=5, pieces=2, rate=0.04, bound=1.0)
    trained = run(states, max_iter=200).x

    def loss_after(theta, seed, steps=10, scale=1.0):
        rule, w, outer = sample(seed, scale)
        x = rule.start(w)
        for k in range(steps):
            x = rule(x, theta, k)
        return float(outer.value(x[0]))

    gains = [loss_after(trained, s) / loss_after(start, s) for s in range(1000, 1020)]
    steep, safe = (
        [loss_after(t, s, 50, 2.0) / loss_after(t, s, 0, 2.0) for s in range(1000, 1020)]
        for t in (trained, start)
    )
    report_line(
        f"17.8 learned optimizer, loss over that of gradient descent: {spread(gains)}; on problems "
        f"twice as steep, loss after 50 steps over loss at the start: {spread(steep)}, gradient "
        f"descent {spread(safe)}"
    )
    assert max(gains) < 0.8
    assert min(steep) > 1 > max(safe)


# ---------------------------------------------------------------- clipping, consolidation


def test_clip(like):
    g = asarray_like([3.0, -4.0, 0.5], like)
    short = meta.clip(g, 1.0)
    assert_alike(short, like)
    assert float(np.linalg.norm(to_numpy(short))) == pytest.approx(1.0, rel=1e-6)
    assert relative(short, to_numpy(g) / np.linalg.norm(to_numpy(g))) < 10 * eps(like)
    assert (to_numpy(meta.clip(g, 9.0)) == to_numpy(g)).all()
    cut = to_numpy(meta.clip(g, 1.0, kind="entries"))
    np.testing.assert_array_equal(cut, np.array([1.0, -1.0, 0.5], dtype=cut.dtype))
    with pytest.raises(ValueError, match="bound must be positive"):
        meta.clip(g, 0.0)
    with pytest.raises(ValueError, match="kind must be one of norm, entries"):
        meta.clip(g, 1.0, kind="value")


def test_ewc(like):
    F, old = asarray_like([2.0, 0.0, 0.5], like), asarray_like([1.0, 2.0, -1.0], like)
    R, w = meta.ewc(F, old, 3.0), asarray_like([0.5, 7.0, 1.0], like)
    d = to_numpy(w) - to_numpy(old)
    assert float(R(w)) == pytest.approx(1.5 * float(to_numpy(F) @ d**2), rel=1e-6)
    assert_alike(R.gradient(w), like)
    assert checks.prox(R, R.prox, w)
    if eps(like) < 1e-10:
        assert checks.taylor(R, R.gradient, w)
    with pytest.raises(ValueError, match="fisher must not be negative"):
        meta.ewc(-F, old, 1.0)
    with pytest.raises(ValueError, match="w_old has the wrong shape"):
        meta.ewc(F, old[:2], 1.0)
    with pytest.raises(ValueError, match="weight must be positive"):
        meta.ewc(F, old, 0.0)


# ---------------------------------------------------------------- checkpoints


@functools.cache
def least_forwards(n: int, slots: int) -> int:
    """Steps that bring back every state, by trying all places of the next checkpoint."""
    if n <= 1:
        return 0
    if slots == 1:
        return n * (n - 1) // 2
    return min(m + least_forwards(n - m, slots - 1) + least_forwards(m, slots) for m in range(1, n))


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
def test_binomial_checkpoints_are_best(slots):
    for n in (*range(1, 25), 40, 61):
        assert meta.checkpoint_cost(n, slots).forwards == least_forwards(n, slots) + 1


@pytest.mark.parametrize(
    ("n", "slots"), [(1, 1), (1, 9), (5, 5), (12, 3), (20, 3), (30, 4), (300, 17), (64, None)]
)
def test_the_cost_of_checkpoints_is_that_of_the_program(n, slots):
    called = []

    def step(x, theta, k):
        called.append(k)
        return theta * x

    def linearize(x, theta, k):
        return (
            LinearOperator(lambda v: theta * v, lambda v: theta * v, (1,), (1,)),
            LinearOperator(lambda t: t * x, lambda v: v * x, (1,), (1,)),
        )

    theta, x0 = np.array([0.9]), np.array([2.0])
    found = unrolled(step, x0, theta, n, squared_l2(), linearize=linearize, slots=slots)
    assert found.gradient[0] == pytest.approx(4 * n * 0.9 ** (2 * n - 1))
    assert len(called) == meta.checkpoint_cost(n, slots or n).forwards == found.steps[0]
    assert max(called.count(k) for k in range(n)) <= meta.checkpoint_cost(n, slots or n).repeats + 1
    assert meta.checkpoint_cost(n, slots or n).states <= n


def test_what_callables_return_must_have_the_shape_of_the_weights():
    theta = np.ones(5)
    right = squared_l2()
    column = Functional(right.value, lambda w: w[:, None])
    entries = Functional(lambda w: w**2 / 2, lambda w: w)
    for task, words in (
        (meta.Task(lambda w: w, lambda w, v: v[:, None], right), "the Hessian product"),
        (meta.Task(lambda w: w, lambda w, v: None, right), "the Hessian product .* got NoneType"),
        (meta.Task(lambda w: w, lambda w, v: v, column), "the gradient of the query loss"),
        (meta.Task(lambda w: w, lambda w, v: v, entries), r"the query loss .* \(\): got \(5,\)"),
        (meta.Task(lambda w: w, lambda w, v: v, sum), "the query loss must be a Functional"),
        (meta.Task(lambda w: w[:, None], lambda w, v: v, right), "the gradient of the support"),
    ):
        with pytest.raises(ValueError, match=words):
            meta.maml(task, theta, step=0.1)
    with pytest.raises(ValueError, match="the gradient must be an array of the shape"):
        meta.gradient_step(lambda w, k: w[:, None])(theta, np.zeros(1), 0)
    with pytest.raises(ValueError, match="w has the wrong shape"):
        meta.ewc(np.ones(3), np.ones(3), 1.0)(np.ones(1))


def test_targets_must_have_their_shape(torch):
    net, data = meta.Network((1, 6, 1)), sinusoids(3, 4)
    w, x, y = net.start(), data.x_support[0], data.y_support[0]
    assert net.risk(w, x, y) > 0
    for wrong in (y[:, 0], y[:2], y * math.nan, np.stack([y, y])):
        with pytest.raises(ValueError, match="^y "):
            net.risk(w, x, wrong)
    for name, value in (
        ("y_query", data.y_query[:1]),
        ("y_support", data.y_support[:, :1]),
        ("x_query", data.x_query[0]),
        ("x_query", data.x_query[:2]),
    ):
        with pytest.raises(ValueError, match="y_support|[xy]_query"):
            net.task(replace(data, **{name: value}))
    # Where a unit is exactly 0, torch takes the same derivative as ours: 0.
    t = torch.zeros(net.size, dtype=torch.float64, requires_grad=True)
    one = sinusoids(1, 4, like=t.detach())
    (slope,) = torch.autograd.grad(net.risk(t, one.x_support[0], one.y_support[0]), t)
    ours = net.task(one).gradient(torch.zeros(1, net.size, dtype=torch.float64))[0]
    torch.testing.assert_close(slope, ours)
    with pytest.raises(ValueError, match="like"):
        sinusoids(2, 3, like=[1])


def test_the_result_is_no_way_around_the_gradient(torch):
    """The adapted weights are cut off: through them torch would see the first-order part only."""
    theta = torch.tensor([0.5, 0.8], dtype=torch.float64, requires_grad=True)
    one = meta.task(lambda w: (w**4).sum(), lambda w: w.sin().sum())
    for order in ("exact", "first"):
        found = meta.maml(one, theta, step=0.1, steps=2, order=order)
        assert not found.weights.requires_grad
        assert not found.gradient.requires_grad


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_imaml_with_a_large_rho_or_little_to_adapt(dtype):
    H = np.diag([1.0, 2.0]).astype(dtype)
    one = meta.Task(lambda w: H @ w - 1, lambda w, v: H @ v, squared_l2())
    rtol = 1e-10 if dtype == "float64" else 1e-5
    theta = np.array([3.0, -1.0], dtype)
    for rho in (1e3, 1e7, 1e12):
        found = meta.imaml(one, theta, rho=rho, rtol=rtol)
        assert found.converged, found.reason
        exact = np.linalg.solve(H + rho * np.eye(2), rho * theta + 1)
        np.testing.assert_allclose(found.weights, exact, rtol=10 * np.finfo(dtype).eps)
    adapted = np.array([1.0, 0.5], dtype) * (1 + np.finfo(dtype).eps)
    assert meta.imaml(one, adapted.astype(dtype), rho=1.0, rtol=rtol).converged


def test_bad_counts():
    with pytest.raises(ValueError, match="steps is out of range"):
        meta.checkpoint_cost(0)
    with pytest.raises(ValueError, match="slots is out of range"):
        meta.checkpoint_cost(5, 0)


# ---------------------------------------------------------------- the errata


@pytest.mark.parametrize("broken", [None, "the sign"])
def test_e33_learning_rate_hypergradient(broken, report_line):
    """dL(w - ηg)/dη = -⟨g₁, g₀⟩; it is zero for the best step, where g₁ and g₀ are orthogonal."""
    errors, cosines = [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        M = rng.standard_normal((6, 6))
        H, w = M @ M.T / 6, rng.standard_normal(6)
        rule = meta.gradient_step(lambda w, k, H=H: H @ w, lambda w, v, k, H=H: H @ v)
        outer = Functional(lambda w, H=H: 0.5 * w @ H @ w, lambda w, H=H: H @ w)
        g0 = H @ w
        best = (g0 @ g0) / (g0 @ H @ g0)
        for eta in (0.5 * best, best, 2 * best):
            g1 = H @ (w - eta * g0)
            found = unrolled(rule, w, np.log([eta]), 1, outer, linearize=rule.linearize)
            claimed, h = (1 if broken else -1) * (g1 @ g0), 1e-4 * eta
            rise = outer.value(w - (eta + h) * g0) - outer.value(w - (eta - h) * g0)
            if eta != best:
                errors.append(abs(claimed / (rise / (2 * h)) - 1))
                with rejects(broken):
                    assert errors[-1] < 1e-8
                    assert found.gradient[0] / eta == pytest.approx(claimed, rel=1e-9)
            else:
                assert abs(found.gradient[0]) < 1e-10 * (g0 @ g0)
                cosines.append(abs(g1 @ g0) / np.linalg.norm(g1) / np.linalg.norm(g0))
    assert max(cosines) < 1e-9
    report_line(
        f"E-33 {broken or '-⟨g₁, g₀⟩'} against differences: {spread(errors)}; |cosine| of g₁, g₀ "
        f"at the best step {spread(cosines)}"
    )


@pytest.mark.slow
def test_e33_greedy_steps_are_short_sighted(report_line):
    """A noisy quadratic: the step that is best for the next iterate, and the best schedule."""
    h, T = np.geomspace(0.01, 1.0, 20), 200
    ratios = []
    for seed in SEEDS:
        noise = 0.1 * np.sqrt(h) * np.random.default_rng(seed).standard_normal((T, 20))
        rule = meta.gradient_step(lambda w, k, noise=noise: h * w + noise[k])

        def final(theta, rule=rule):
            w = np.ones(20)
            for k in range(T):
                w = rule(w, theta, k)
            return 0.5 * np.sum(h * w**2)

        grid = [(a, b) for a in np.linspace(-1, 0.6, 5) for b in np.linspace(-6, -1, 6)]
        schedule = min(final(np.array(theta)) for theta in grid)
        w = np.ones(20)
        for k in range(T):
            g = h * w
            # The minimizer of E L(w - η(g + e)), e with the variance of the noise.
            eta = g @ g / (g @ (h * g) + 0.01 * (h @ h))
            w = rule(w, np.log([eta]), k)
        ratios.append(0.5 * np.sum(h * w**2) / schedule)
    report_line(f"E-33 noisy quadratic: greedy loss over best schedule's: {spread(ratios)}")
    assert np.median(ratios) > 3
    assert min(ratios) > 1.5


def mode(eta_h: float, beta: float, *, ema: bool = False) -> np.ndarray:
    """Eigenvalues of heavy ball on one curvature h = 1."""
    rule = meta.heavy_ball(lambda w, k: w, lambda w, v, k: v)
    eta = eta_h * (1 - beta) if ema else eta_h
    T_x, _ = rule.linearize(np.zeros((2, 1)), np.array([math.log(eta), beta]), 0)
    return np.linalg.eigvals(T_x.to_dense())


@pytest.mark.slow
@pytest.mark.parametrize("broken", [None, "steep needs less momentum"])
def test_e34_momentum(broken):
    radii = [f"{abs(mode(2.5, beta)).max():.3g}" for beta in (0.0, 0.5, 0.9)]
    assert radii == ["1.5", "0.707", "0.949"]
    grid = np.linspace(0, 0.999, 2000)
    best = [
        grid[np.argmin([abs(mode(eta_h, beta)).max() for beta in grid])]
        for eta_h in (0.01, 0.1, 1.0, 2.5, 3.5)
    ]
    np.testing.assert_allclose(best, [0.810, 0.468, 0.0, 0.338, 0.758], atol=1e-3)
    np.testing.assert_allclose(
        best, [(1 - math.sqrt(c)) ** 2 for c in (0.01, 0.1, 1.0, 2.5, 3.5)], atol=5e-4
    )
    with rejects(broken):
        ordered = best if broken else best[:3]
        assert ordered == sorted(ordered, reverse=True)
    for beta in (0.0, 0.3, 0.9):
        for ema, limit in ((False, 2 * (1 + beta)), (True, 2 * (1 + beta) / (1 - beta))):
            assert abs(mode(0.999 * limit, beta, ema=ema)).max() < 1
            assert abs(mode(1.001 * limit, beta, ema=ema)).max() > 1
        # Oscillation begins where the eigenvalues become complex.
        for c in (0.05, 0.5):
            complex_pair = abs(mode(c, beta).imag).max() > 1e-9
            assert complex_pair == (beta > (1 - math.sqrt(c)) ** 2)
    # A spectrum: step and momentum depend on the condition number, not on the level.
    kappa = 100.0
    beta = ((math.sqrt(kappa) - 1) / (math.sqrt(kappa) + 1)) ** 2
    eta = (1 + math.sqrt(beta)) ** 2 / kappa
    worst = max(abs(mode(eta * h, beta)).max() for h in (1.0, 10.0, kappa))
    assert worst == pytest.approx(math.sqrt(beta), abs=1e-6)


@pytest.mark.slow
def test_e34_unrolled_loss_has_many_minima(report_line):
    """As a function of β, after 15 steps on two curvatures."""
    h = np.array([0.1, 1.0])
    rule, counts = meta.heavy_ball(lambda w, k: h * w), []
    grid = np.linspace(0, 0.999, 300)
    for seed in SEEDS:
        w = np.random.default_rng(seed).standard_normal(2)
        losses = []
        for beta in grid:
            x = rule.start(w)
            for k in range(15):
                x = rule(x, np.array([math.log(1.5), beta]), k)
            losses.append(0.5 * np.sum(h * x[0] ** 2))
        d = np.sign(np.diff(losses))
        counts.append(np.sum((d[:-1] < 0) & (d[1:] > 0)))
    report_line(f"E-34 local minima in the momentum of the loss after 15 steps: {spread(counts)}")
    assert np.median(counts) >= 2


@pytest.mark.parametrize("broken", [None, "the stabilizer outside the root"])
def test_e35_adam_at_a_zero_gradient(broken, torch):
    """The chain rule meets ∞·0 = NaN at a gradient of zero, unless eps² stands in the root."""
    from course_lib.implicit import linearize

    def gradient(w, k):
        return torch.stack([w[0], 0 * w[1]])

    rule = meta.adam(gradient, eps=1e-8)

    def textbook(x, theta, k):
        g = gradient(x[0], k)
        m, s = theta[1] * x[1] + (1 - theta[1]) * g, theta[2] * x[2] + (1 - theta[2]) * g**2
        scale = torch.sqrt(s / (1 - theta[2] ** (k + 1))) + 1e-8
        return torch.stack([x[0] - theta[0].exp() * m / (1 - theta[1] ** (k + 1)) / scale, m, s])

    w = torch.tensor([2.0, 1.0], dtype=torch.float64)
    theta = torch.tensor([-2.0, 0.9, 0.999], dtype=torch.float64)
    step = textbook if broken else rule
    T_x, T_theta = linearize(lambda x, t: step(x, t, 0), rule.start(w), theta)
    v = torch.ones(3, 2, dtype=torch.float64)
    with rejects(broken):
        assert torch.isfinite(T_x.H @ v).all()
        assert torch.isfinite(T_theta.H @ v).all()
    if not broken:
        # The two agree in value, and the first step is the sign of the gradient.
        x = rule(rule.start(w), theta, 0)
        assert relative(x, textbook(rule.start(w), theta, 0)) < 1e-8
        assert relative(x[0], w - math.exp(-2.0) * torch.tensor([1.0, 0.0])) < 1e-8
        # So the derivative by the weight, beyond the identity, is nearly zero.
        one = torch.zeros(3, 2, dtype=torch.float64)
        one[0, 0] = 1.0
        assert float((T_x @ one)[0, 0]) == pytest.approx(1.0, abs=1e-12)


def test_e35_the_factor_is_infinite_and_then_nan(torch):
    s = torch.tensor(0.0, requires_grad=True)
    (factor,) = torch.autograd.grad(torch.sqrt(s), s)
    assert math.isinf(float(factor))
    g = torch.tensor(0.0, requires_grad=True)
    assert math.isnan(float(torch.autograd.grad(torch.sqrt(g**2), g)[0]))


def test_e43_checkpoints():
    n = 10_000
    assert meta.checkpoint_cost(n).states == 200
    assert meta.checkpoint_cost(n).forwards == 2 * n  # one extra forward run
    ten = meta.checkpoint_cost(n, 10)
    assert ten.repeats == 7
    assert ten.forwards / n < 7
    # With as many slots as there are states nothing is run twice.
    assert meta.checkpoint_cost(n, n).forwards == n
    # With 200 slots the binomial schedule does with less than the uniform one.
    assert meta.checkpoint_cost(n, 200).forwards < 2 * n


@pytest.mark.parametrize("broken", [None, "the total derivative vanishes"])
def test_e46_what_vanishes_with_many_steps(broken, report_line):
    """By the start the derivative vanishes; by a parameter of the inner loss it does not."""
    by_start, by_lam, errors = [], [], []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        Q = np.linalg.qr(rng.standard_normal((2, 2)))[0]
        H, c = (Q * rng.uniform(0.3, 1.0, 2)) @ Q.T, rng.standard_normal(2)
        rule = meta.Update(
            lambda x, theta, k, H=H, c=c: x - 0.5 * (H @ (x - c) + theta[0] * x),
            lambda x, theta, k, H=H: (
                np.eye(2) - 0.5 * (H + theta[0] * np.eye(2)),
                -0.5 * x[:, None],
            ),
        )
        lam, outer = np.array([0.1]), least_squares(None, np.zeros(2))
        found = unrolled(rule, np.ones(2), lam, 300, outer, linearize=rule.linearize)
        H_lam = H + lam * np.eye(2)
        x = np.linalg.solve(H_lam, H @ c)
        exact = -x @ np.linalg.solve(H_lam, x)
        by_start.append(np.linalg.norm(found.adjoint))
        by_lam.append(found.gradient[0])
        errors.append(abs(found.gradient[0] / exact - 1))
        with rejects(broken):
            assert found.gradient[0] == pytest.approx(0.0 if broken else exact, rel=1e-10)
        centre = np.linalg.solve(H_lam, H @ c)
        task = quadratic(H_lam, centre, H_query=np.eye(2), c_query=np.zeros(2))
        by_maml = meta.maml(task, np.ones(2), step=0.5, steps=300).gradient
        np.testing.assert_allclose(by_maml, found.adjoint, rtol=1e-6)
    assert max(by_start) < 1e-15
    report_line(
        f"E-46 K = 300, derivative by λ {spread(by_lam)}, relative error {spread(errors)}; by the "
        f"start {spread(by_start)}"
    )


@pytest.mark.slow
@pytest.mark.parametrize("broken", [None, "the argmin of the loss itself"])
def test_e50_one_step_minimizes_a_linearized_loss(broken, report_line):
    """And implicit MAML, which has an argmin, needs its prox: else the meta-gradient is 0."""
    errors = []
    for seed in SEEDS:
        one, rng = nonlinear(seed), np.random.default_rng(100 + seed)
        theta, alpha, rho = rng.standard_normal(4), 0.05, 0.5
        w = meta.maml(one, theta, step=alpha).weights
        slope = one.gradient(w) if broken else one.gradient(theta) + (w - theta) / alpha
        with rejects(broken):
            assert np.linalg.norm(slope) < 1e-12 * np.linalg.norm(one.gradient(theta)) / alpha
        # The Jacobian of the adapted weights, column by column, by differences.
        h = 1e-5

        def adapted(t, one=one, rho=rho):
            return meta.imaml(one, t, rho=rho, rtol=1e-13).weights

        numerical = np.stack(
            [(adapted(theta + e) - adapted(theta - e)) / (2 * h) for e in h * np.eye(4)], axis=1
        )
        w = adapted(theta)
        H = np.stack([one.hvp(w, v) for v in np.eye(4)])
        errors.append(relative(np.linalg.inv(np.eye(4) + H / rho), numerical))
        g = one.query.gradient(w)
        assert relative(
            meta.imaml(one, theta, rho=rho, rtol=1e-13).gradient, numerical.T @ g
        ) == pytest.approx(0, abs=1e-7)
        M = rng.standard_normal((8, 4))
        convex = quadratic(M.T @ M, theta, H_query=np.eye(4), c_query=0 * theta)
        loose = meta.imaml(convex, 0 * theta, rho=1e-7)
        np.testing.assert_allclose(loose.weights, theta, atol=1e-5)
        assert np.linalg.norm(loose.gradient) < 1e-5 * np.linalg.norm(theta)
    if not broken:
        report_line(f"E-50 Jacobian of implicit MAML, relative error: {spread(errors)}")
    assert max(errors) < 1e-7


@pytest.mark.parametrize("broken", [None, "the factors in the other order"])
@pytest.mark.parametrize("steps", [2, 3, 5])
def test_e51_order_of_the_factors(steps, broken, report_line):
    """H₀ is leftmost: the last step is undone first."""
    wrong = []
    for seed in SEEDS:
        one, alpha = nonlinear(seed), 0.05
        theta, path = np.random.default_rng(seed).standard_normal(4), []
        found = meta.maml(one, theta, step=alpha, steps=steps)
        w = theta
        for _ in range(steps):
            path.append(np.eye(4) - alpha * np.stack([one.hvp(w, v) for v in np.eye(4)]))
            w = w - alpha * one.gradient(w)
        ordered = path[::-1] if broken else path
        product = functools.reduce(np.matmul, ordered) @ one.query.gradient(w)
        if not broken:
            reverse = functools.reduce(np.matmul, path[::-1]) @ one.query.gradient(w)
            wrong.append(relative(reverse, product))
        with rejects(broken):
            assert relative(found.gradient, product) < 1e-12
    if wrong:
        report_line(f"E-51 K = {steps}, error of the reversed order: {spread(wrong)}")


def test_e52_first_order_error(report_line):
    """At most α‖H‖‖∇L(w₁)‖, and in proportion to α."""
    table, shares = [], []
    for seed in SEEDS:
        one, theta = nonlinear(seed), np.random.default_rng(seed).standard_normal(4)
        ratios = []
        for alpha in (0.01, 0.005, 0.0025):
            exact = meta.maml(one, theta, step=alpha)
            first = meta.maml(one, theta, step=alpha, order="first")
            error = np.linalg.norm(exact.gradient - first.gradient)
            H = np.stack([one.hvp(theta, v) for v in np.eye(4)])
            bound = alpha * np.linalg.norm(H, 2) * np.linalg.norm(first.gradient)
            shares.append(error / bound)
            ratios.append(error / alpha)
        table.append(ratios)
    table = np.array(table)
    assert max(shares) <= 1 + 1e-12
    assert (table.max(axis=1) / table.min(axis=1)).max() < 1.3
    report_line(
        "E-52 error of the first-order gradient over α, for α = .01, .005, .0025: "
        f"{', '.join(map(spread, table.T))}; over the bound {spread(shares)}"
    )


@pytest.mark.parametrize("broken", [None, "first order for exact"])
def test_e52_wrong_sign_and_another_stationary_point(broken):
    """Quadratics of curvature h: weights h(1 - αh)² and h(1 - αh)."""
    order = "first" if broken else "exact"

    def one(h, c):
        return quadratic(np.array([[h]]), np.array([c]))

    exact = meta.maml(one(8.0, 0.0), np.array([1.0]), step=0.2, order=order).gradient
    with rejects(broken):
        np.testing.assert_allclose(exact, 2.88, atol=1e-12)
    first = meta.maml(one(8.0, 0.0), np.array([1.0]), step=0.2, order="first").gradient
    np.testing.assert_allclose(first, -4.80, atol=1e-12)

    def mean(theta, alpha, order):
        found = [
            meta.maml(one(h, c), theta, step=alpha, order=order)
            for h, c in ((1.0, 0.0), (8.0, 1.0))
        ]
        return sum(f.value for f in found), sum(f.gradient for f in found)

    def stationary(alpha, order):
        slope = mean(np.ones(1), alpha, order)[1] - mean(np.zeros(1), alpha, order)[1]
        return -mean(np.zeros(1), alpha, order)[1] / slope, slope

    for how, wanted, loss in (("exact", "0.2832", "0.1147"), ("first", "0.6400", "0.1866")):
        theta, slope = stationary(0.1, how)
        assert slope > 0
        assert f"{theta[0]:.4f}" == wanted
        assert f"{float(mean(theta, 0.1, how)[0]):.4f}" == loss
    # With α = 0.2 the slope is negative: descent on the first-order gradient ascends.
    assert stationary(0.2, "exact")[1] > 0
    assert stationary(0.2, "first")[1] < 0
    theta = np.array([2.0])
    for _ in range(5):
        theta = theta - 0.05 * mean(theta, 0.2, "first")[1]
    assert mean(theta, 0.2, "exact")[0] > mean(np.array([2.0]), 0.2, "exact")[0]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_e53_only_hessian_products(steps, report_line):
    """K of them for K steps, and the gradient is right to rounding of the differences."""
    errors, h = [], 1e-5
    for seed in SEEDS:
        one, calls = nonlinear(seed), []

        def counted(w, v, one=one, calls=calls):
            calls.append(1)
            return one.hvp(w, v)

        def value(t, one=one):
            return meta.maml(one, t, step=0.05, steps=steps).value

        theta = np.random.default_rng(100 + seed).standard_normal(4)
        found = meta.maml(replace(one, hvp=counted), theta, step=0.05, steps=steps)
        assert len(calls) == steps
        numerical = [(value(theta + e) - value(theta - e)) / (2 * h) for e in h * np.eye(4)]
        errors.append(relative(found.gradient, np.array(numerical)))
    assert max(errors) < 1e-7
    report_line(f"E-53 K = {steps}, {steps} products, against differences: {spread(errors)}")


@pytest.mark.parametrize("broken", [None, "the Fisher information at the new weights"])
def test_e54_fisher_at_the_old_optimum(broken, report_line):
    """Logistic regression in one weight: F at the old optimum gives the rise of the old loss."""
    errors = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        x, w = rng.standard_normal(400), rng.uniform(0.5, 2.0, 1)

        def probability(w, x=x):
            return 1 / (1 + np.exp(-w * x))

        old = probability(w)  # the mean of the labels: w is the optimum of the old task

        def loss(w, old=old, probability=probability):
            p = probability(w)
            return -np.mean(old * np.log(p) + (1 - old) * np.log(1 - p))

        p = probability(w + 2.0 if broken else w)
        fisher = np.array([np.mean(x**2 * p * (1 - p))])  # the mean of the squared scores
        for d in (1e-2, -1e-2):
            rise = loss(w + d) - loss(w)
            errors.append(abs(float(meta.ewc(fisher, w, 1.0)(w + d)) / rise - 1))
            with rejects(broken):
                assert errors[-1] < 2e-2
    report_line(f"E-54 rise of the old loss by {broken or 'F at the optimum'}: {spread(errors)}")


@pytest.mark.parametrize("broken", [None, "clipping entries keeps the direction"])
def test_e56_clipping(broken, report_line):
    """The norm: the direction stays. Entries: it does not. Either way the mean is biased."""
    cosines = []
    for seed in SEEDS:
        g = np.random.default_rng(seed).standard_normal(10)

        def cosine(u, g=g):
            return (u @ g) / np.linalg.norm(u) / np.linalg.norm(g)

        assert cosine(meta.clip(g, 0.5)) == pytest.approx(1, abs=1e-14)
        cosines.append(cosine(meta.clip(g, 1.0, kind="entries")))
    if not broken:
        report_line(f"E-56 cosine of a gradient and itself, entries clipped: {spread(cosines, 3)}")
    with rejects(broken):
        assert max(cosines) < (0.0 if broken else 1 - 5e-4)
    rng = np.random.default_rng(0)
    # Mostly small and sometimes large: a mean of zero. Clipped it is not.
    samples = rng.permutation(np.repeat([-9.0, 1.0], [100, 900]))
    assert samples.mean() == 0
    for kind in ("norm", "entries"):
        assert np.mean([meta.clip(np.array([g]), 2.0, kind=kind) for g in samples]) > 0.5


@pytest.mark.parametrize("broken", [None, "detached gradients"])
@pytest.mark.parametrize("steps", [5, 20])
def test_17_8_learned_step_of_a_quadratic(steps, broken, report_line):
    """E-64: K Hessian products, K + 1 states; without the products the derivative is another."""
    ratios = []
    for seed in SEEDS:
        rng, calls, states, alive = np.random.default_rng(seed), [], [], []
        h, w = rng.uniform(0.1, 1.0, 30), rng.standard_normal(30)

        def hvp(w, v, k, h=h, calls=calls):
            calls.append(k)
            return 0 * v if broken else h * v

        rule = meta.gradient_step(lambda w, k, h=h: h * w, hvp)
        outer = Functional(lambda w, h=h: 0.5 * np.sum(h * w**2), lambda w, h=h: h * w)

        def step(w, theta, k, rule=rule, states=states):
            new = rule(w, theta, k)
            states.append(weakref.ref(new))
            return new

        def linearize(w, theta, k, rule=rule, states=states, alive=alive):
            alive.append(1 + sum(state() is not None for state in states))  # and the start
            return rule.linearize(w, theta, k)

        theta = np.array([-1.0])
        found = unrolled(step, w, theta, steps, outer, linearize=linearize)

        def closed(t, h=h, w=w):
            return 0.5 * np.sum(h * (1 - math.exp(t) * h) ** (2 * steps) * w**2)

        numerical = (closed(-1 + 1e-6) - closed(-1 - 1e-6)) / 2e-6
        with rejects(broken):
            assert found.gradient[0] == pytest.approx(numerical, rel=1e-7)
        ratios.append(found.gradient[0] / numerical)
        assert len(calls) == steps
        assert max(alive) == steps + 1
    if broken:
        assert min(ratios) > 1.2
    report_line(f"17.8 K = {steps}: {broken or 'unrolled'} over differences: {spread(ratios)}")


# ---------------------------------------------------------------- the reference of MAML


@pytest.mark.slow
def test_the_benchmark_of_maml_learns():
    """A short run: adaptation pays off, as it does not before training."""
    like = np.zeros(1, dtype=np.float32)
    trained = maml_reference.train(0, iterations=400, shots=10, like=like)
    after = maml_reference.quality(trained, 0, shots=10)
    before = maml_reference.quality(meta.Network((1, 40, 40, 1)).start(0, like), 0, shots=10)
    assert after[0] < 0.8 * before[0]
    assert after == sorted(after, reverse=True)
    assert maml_reference.distances([[0.5865, 0.237, 0.196]], 10) == pytest.approx([0, 0, 0])
