r"""Learning to learn: initial weights, inner learning rates, and update rules as outer variables.

A task has a support loss, on which a learner adapts, and a query loss, on which it is judged. The
outer variable θ is where adaptation starts (:func:`maml`, :func:`reptile`, :func:`imaml`), or a
parameter of the optimizer (:func:`gradient_step`, :func:`heavy_ball`, :func:`adam`,
:func:`learned_step`, with :func:`course_lib.bilevel.unrolled`).
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import array_namespace

from .arrays import (
    Array,
    as_choice,
    as_count,
    as_real,
    as_scalar,
    asarray_like,
    check_alike,
    detach,
    inner,
    norm,
    require,
    shape_of,
    to_float,
)
from .bilevel import _near, _repeats, unrolled
from .functionals import Functional
from .operators import LinearOperator

__all__ = [
    "CheckpointCost",
    "MetaGradient",
    "Network",
    "Task",
    "Update",
    "adam",
    "batched_maml",
    "checkpoint_cost",
    "clip",
    "ewc",
    "gradient_step",
    "heavy_ball",
    "hypergradient_descent",
    "imaml",
    "learned_start",
    "learned_step",
    "maml",
    "of_weights",
    "reptile",
    "task",
    "truncated_training",
]


# ---------------------------------------------------------------- tasks


@dataclass(frozen=True, eq=False)
class Task:
    r"""A task, or a stack of tasks: what adaptation and its derivative need.

    Attributes
    ----------
    gradient : callable
        :math:`w\mapsto\nabla\mathcal L^{\rm sup}(w)`.
    hvp : callable
        :math:`(w,v)\mapsto\nabla^2\mathcal L^{\rm sup}(w)\,v`.
    query : Functional
        :math:`\mathcal L^{\rm qry}`: value and gradient.
    tasks : int or None
        None for one task. With a number T the callables act on stacks of weights, shape
        (T, ...), each task on its own row, and the value of ``query`` has shape (T,).
    linearize : callable or None
        :math:`w\mapsto(\nabla\mathcal L^{\rm sup}(w),\ v\mapsto\nabla^2\mathcal L^{\rm sup}(w)v)`,
        where the two share work; else ``gradient`` and ``hvp`` are called.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import least_squares
    >>> A, y = np.array([[2.0, 0.0]]), np.array([2.0])
    >>> f = least_squares(A, y)
    >>> one = Task(f.gradient, lambda w, v: A.T @ (A @ v), f)
    >>> maml(one, np.zeros(2), step=0.1).weights
    array([0.4, 0. ])
    """

    gradient: Callable[[Array], Array]
    hvp: Callable[[Array, Array], Array]
    query: Functional
    tasks: int | None = None
    linearize: Callable[[Array], tuple[Array, Callable[[Array], Array]]] | None = None


@dataclass(frozen=True, eq=False)
class MetaGradient:
    r"""The query loss after adaptation, and its derivative by where adaptation started.

    Of a stack of tasks value and gradients are means. Torch does not differentiate them: the
    derivative is ``gradient``.

    Attributes
    ----------
    value : float
        :math:`\mathcal L^{\rm qry}(w_K)`.
    gradient : array, shape of θ
        What the method takes for the derivative of the value by θ.
    weights : array, shape of θ or (T, ...)
        The adapted weights.
    step_gradient : array or None
        Derivative by the inner step, in its shape (a 0-d array for a number).
    converged : bool
        False if something is not finite, or if an inner solver did not reach its tolerance.
    reason : str
        What happened, in words.
    """

    value: float
    gradient: Array
    weights: Array
    step_gradient: Array | None
    converged: bool
    reason: str


def task(
    support: Callable[[Array], Array],
    query: Callable[[Array], Array],
    *,
    tasks: int | None = None,
) -> Task:
    """Return the task of two losses written in PyTorch.

    Parameters
    ----------
    support, query : callable
        Weights to one number. With ``tasks`` = T: a stack of weights, shape (T, ...), to T
        numbers, the i-th of which depends on row i alone; one backward pass then gives the
        gradients of all tasks.
    tasks : int, optional

    Examples
    --------
    >>> import torch
    >>> one = task(lambda w: (w**2).sum(), lambda w: (w**3).sum())
    >>> w = torch.tensor([1.0, 2.0])
    >>> one.gradient(w), one.hvp(w, w), one.query.gradient(w)
    (tensor([2., 4.]), tensor([2., 4.]), tensor([ 3., 12.]))
    """
    from . import autodiff

    shape = () if tasks is None else (as_count(tasks, "tasks", minimum=1),)

    def total(loss: Callable[[Array], Array]) -> Callable[[Array], Array]:
        def added(w: Array) -> Array:
            value, wanted = loss(w), f"{tasks} numbers" if shape else "one number"
            require(
                shape_of(value) == shape,
                f"a loss must return {wanted}, as a tensor: expected shape {shape}, got "
                f"{shape_of(value)}",
            )
            return value.sum()

        return added

    def linearize(w: Array) -> tuple[Array, Callable[[Array], Array]]:
        return autodiff.gradient_and_hvp(total(support), w)

    return Task(
        autodiff.gradient(total(support)),
        lambda w, v: linearize(w)[1](v),
        Functional(query, autodiff.gradient(total(query)), name="query loss"),
        tasks,
        linearize,
    )


# ---------------------------------------------------------------- where adaptation starts


def _start(task: Task, theta: Array) -> tuple[Array, Array]:
    """Return θ, checked, and the weights that adaptation starts from: θ, or a row for each task."""
    require(isinstance(task, Task), f"task must be a Task: got {type(task).__name__}")
    require(
        isinstance(task.query, Functional),
        f"the query loss must be a Functional: got {type(task.query).__name__}",
    )
    theta = detach(as_real(theta, "theta"))
    if task.tasks is None:
        return theta, theta
    xp = array_namespace(theta)
    # A copy: forward mode in torch takes no rows that share their memory.
    return theta, xp.asarray(xp.broadcast_to(theta, (task.tasks, *theta.shape)), copy=True)


def _shaped(x: Array, w: Array, name: str) -> Array:
    """Return x, if it has the shape of the weights: what a callable returned."""
    require(
        shape_of(x) == tuple(w.shape),
        f"{name} must be an array of the shape of the weights: expected {tuple(w.shape)}, got "
        f"{shape_of(x)}",
    )
    return x


def _descend(
    task: Task, w: Array, rate: Any, steps: int, order: str = "first"
) -> tuple[Array, list]:
    """Return the weights after so many gradient steps, and (gradient, Hessian product) of each."""

    def at(w: Array) -> tuple[Array, Callable[[Array], Array]]:
        if order == "exact" and task.linearize is not None:
            return task.linearize(w)
        return task.gradient(w), lambda v: task.hvp(w, v)

    path = []
    for _ in range(steps):
        g, product = at(w)
        path.append((_shaped(g, w, "the gradient of the support loss"), product))
        w = w - rate * g
    return w, path


def _mean(task: Task, x: Array) -> Array:
    return x if task.tasks is None else array_namespace(x).mean(x, axis=0)


def _found(
    task: Task, w: Array, gradient: Array, slope: Array | None, converged: bool, reason: str
) -> MetaGradient:
    loss, wanted = task.query.value(w), () if task.tasks is None else (task.tasks,)
    got = getattr(loss, "shape", ())
    require(got == wanted, f"the query loss must have the shape {wanted}: got {tuple(got)}")
    value, gradient = to_float(_mean(task, loss)), _mean(task, gradient)
    if not (math.isfinite(value) and math.isfinite(to_float(norm(gradient)))):
        converged, reason = False, "not finite: adaptation diverged; is the inner step too large?"
    return MetaGradient(value, gradient, w, slope, converged, reason)


@np.errstate(over="ignore", invalid="ignore")
def maml(
    task: Task,
    theta: Array,
    *,
    step: float | Array,
    steps: int = 1,
    order: str = "exact",
    adapt: Array | None = None,
) -> MetaGradient:
    r"""Model-agnostic meta-learning: the derivative of a query loss through K gradient steps.

    .. math::
        w_0=\theta,\qquad w_{k+1}=w_k-\alpha\nabla\mathcal L^{\rm sup}(w_k),\qquad
        \frac{d}{d\theta}\mathcal L^{\rm qry}(w_K)
        =\prod_{k=0}^{K-1}(I-\alpha H_k)\,\nabla\mathcal L^{\rm qry}(w_K),

    :math:`H_k=\nabla^2\mathcal L^{\rm sup}(w_k)`, with :math:`H_0` leftmost: the loop runs
    backwards, and needs K Hessian products and no derivative above the second. A diagonal of
    step sizes α (Meta-SGD) and a 0/1 mask M (ANIL) give the factors :math:`I-H_k\alpha M`, and
    :math:`-\sum_kM\nabla\mathcal L^{\rm sup}(w_k)\odot\psi_{k+1}` is the derivative by α.

    Parameters
    ----------
    task : Task
    theta : array
        Initial weights.
    step : float or array, shape of θ
        Inner step α; the entries of an array may have any sign, because Meta-SGD learns them.
    steps : int
        K.
    order : {"exact", "first"}
        "first" leaves out the Hessians (FOMAML): an error of
        at most :math:`\alpha\|H\|\,\|\nabla\mathcal L^{\rm qry}(w_1)\|` after one step, and for
        :math:`\alpha\|H\|\gtrsim1` possibly the wrong sign.
    adapt : array, shape of θ, optional
        1 for entries that the inner loop moves, 0 for those that it does not.

    Returns
    -------
    MetaGradient

    Raises
    ------
    ValueError
        If a shape does not fit, ``step`` is not positive (as a number), or ``order`` is unknown.

    References
    ----------
    Finn, Abbeel and Levine (2017), ICML; Raghu, Raghu, Bengio and Vinyals (2020), ICLR (ANIL);
    Li, Zhou, Chen and Li (2017), arXiv:1707.09835 (Meta-SGD).

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import least_squares
    >>> f = least_squares(np.array([[2.0]]), np.array([0.0]))  # 2 w^2: the Hessian is 4
    >>> one = Task(f.gradient, lambda w, v: 4 * v, f)
    >>> theta = np.array([1.0])
    >>> maml(one, theta, step=0.1).gradient  # (1 - 0.4) 4 (1 - 0.4)
    array([1.44])
    >>> maml(one, theta, step=0.1, order="first").gradient
    array([2.4])
    """
    theta, w = _start(task, theta)
    steps, order = as_count(steps, "steps"), as_choice(order, "order", ("exact", "first"))
    single = getattr(step, "shape", ()) == ()
    if single:
        alpha = as_scalar(step, "step", positive=True)
    else:
        alpha = as_real(step, "step", shape=tuple(theta.shape))
        check_alike(alpha, "step", theta, "theta")
    mask = 1.0
    if adapt is not None:
        mask = as_real(adapt, "adapt", shape=tuple(theta.shape))
        check_alike(mask, "adapt", theta, "theta")
    rate = alpha * mask
    w, path = _descend(task, w, rate, steps, order)
    psi = _shaped(task.query.gradient(w), w, "the gradient of the query loss")
    slope = 0.0 * psi
    for g, product in reversed(path):
        slope = slope - mask * g * psi
        if order == "exact":
            psi = psi - _shaped(product(rate * psi), w, "the Hessian product")
    slope = _mean(task, slope)
    slope = array_namespace(slope).sum(slope) if single else slope
    return _found(task, w, psi, slope, True, f"{steps} inner steps were taken")


@np.errstate(over="ignore", invalid="ignore")
def reptile(task: Task, theta: Array, *, step: float, steps: int) -> MetaGradient:
    r"""Reptile: move to the adapted weights, :math:`\theta\leftarrow\theta-\gamma(\theta-w_K)`.

    ``gradient`` is the direction :math:`\theta-w_K=\alpha\sum_k\nabla\mathcal L^{\rm sup}(w_k)`.
    It is no derivative of the query loss, which is only reported; for K = 1 it is α times the
    gradient of the support loss at θ, that is, joint training.

    Raises
    ------
    ValueError
        If a shape does not fit, or ``step`` or ``steps`` is not positive.

    References
    ----------
    Nichol, Achiam and Schulman (2018), arXiv:1803.02999.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import squared_l2
    >>> one = Task(lambda w: w, lambda w, v: v, squared_l2())
    >>> reptile(one, np.array([1.0]), step=0.5, steps=2).gradient
    array([0.75])
    """
    theta, w = _start(task, theta)
    steps, step = as_count(steps, "steps", minimum=1), as_scalar(step, "step", positive=True)
    w, _ = _descend(task, w, step, steps)
    return _found(task, w, theta - w, None, True, f"{steps} inner steps were taken")


@np.errstate(over="ignore", invalid="ignore")
def imaml(
    task: Task, theta: Array, *, rho: float, rtol: float = 1e-10, max_iter: int = 50
) -> MetaGradient:
    r"""Implicit MAML: adaptation is the solution of a problem that is kept near θ.

    .. math::
        w^\star(\theta)=\arg\min_w\ \mathcal L^{\rm sup}(w)+\tfrac\rho2\|w-\theta\|^2,\qquad
        \frac{d}{d\theta}\mathcal L^{\rm qry}(w^\star)
        =\Bigl(I+\tfrac1\rho H\Bigr)^{-1}\nabla\mathcal L^{\rm qry}(w^\star),

    H the Hessian of the support loss at :math:`w^\star`. Newton's method finds the minimizer, and
    one more linear system the gradient: how it was found does not matter, and no path is stored.
    For ρ → 0 the gradient on the range of H vanishes: a minimizer forgets where it started.

    Parameters
    ----------
    task : Task
    theta : array
    rho : float
        ρ > 0, large enough to make the problem convex.
    rtol : float
        Tolerance of the inner problem, relative to the norm of the gradient at θ, and of each
        linear system, relative to the norm of its right-hand side. In single precision 1e-5. The
        norms are those of the whole stack: tasks of very different scales are better solved one by
        one.
    max_iter : int
        Largest number of Newton steps.

    Returns
    -------
    MetaGradient
        ``converged`` only if both tolerances were verified. Of torch it is cut off from autograd.

    References
    ----------
    Rajeswaran, Finn, Kakade and Levine (2019), NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import squared_l2
    >>> one = Task(lambda w: 3 * w, lambda w, v: 3 * v, squared_l2())
    >>> found = imaml(one, np.array([1.0]), rho=1.0)
    >>> found.weights.round(6), found.gradient.round(6)  # θ/4, and θ/16
    (array([0.25]), array([0.0625]))
    """
    theta, w = _start(task, theta)
    rho, rtol = as_scalar(rho, "rho", positive=True), as_scalar(rtol, "rtol", positive=True)

    def hessian(w: Array) -> LinearOperator:
        def product(v: Array) -> Array:
            return task.hvp(w, v)

        return LinearOperator(product, product, tuple(w.shape), tuple(w.shape), "H", w)

    g = task.query.gradient
    found, solved, fine, reason = _near(task.gradient, hessian, g, w, rho, rtol, max_iter)
    return _found(task, found.x, solved.x, None, fine, reason)


def batched_maml(
    loss: Callable[[Array, Array, Array], Array],
    theta: Array,
    data: Any,
    *,
    vmap: bool = False,
    **options: Any,
) -> MetaGradient:
    r"""MAML on many tasks at once, with a loss written in PyTorch; the mean over the tasks.

    One call of the loss does what a loop over the tasks would do in T calls.

    Parameters
    ----------
    loss : callable
        (w, x, y) to the loss. Weights of shape (T, n), inputs (T, m, d) and targets (T, m, c)
        must give T numbers (batched matrix products broadcast); with ``vmap`` it is written for
        one task, (n,), (m, d) and (m, c) to one number.
    theta : tensor, shape (n,)
    data : FewShot
        Support and query sets, for instance :func:`course_lib.problems.sinusoids`.
    vmap : bool
        Let ``torch.func.vmap`` make the loss of many tasks from that of one.
    **options
        ``step``, ``steps``, ``order``, ``adapt`` of :func:`maml`.

    Examples
    --------
    >>> import torch
    >>> from course_lib.problems import sinusoids
    >>> data = sinusoids(3, 5, like=torch.zeros(1))
    >>> def loss(w, x, y):  # a straight line, for one task
    ...     return ((w[0] + w[1] * x - y) ** 2).mean()
    >>> batched_maml(loss, torch.zeros(2), data, vmap=True, step=0.01).gradient.shape
    torch.Size([2])
    """
    if vmap:
        from .autodiff import batched

        loss = batched(loss)
    many = task(
        lambda w: loss(w, data.x_support, data.y_support),
        lambda w: loss(w, data.x_query, data.y_query),
        tasks=data.x_support.shape[0],
    )
    return maml(many, theta, **options)


# ---------------------------------------------------------------- a small network


class _Loss(NamedTuple):
    """A mean over samples, of outputs p and targets y: value, gradient by p, Hessian times v."""

    value: Callable
    gradient: Callable
    hvp: Callable


def _log_softmax(xp: Any, p: Array) -> Array:
    p = p - xp.max(p, axis=-1, keepdims=True)
    return p - xp.log(xp.sum(xp.exp(p), axis=-1, keepdims=True))


def _cross_entropy_hvp(xp: Any, p: Array, v: Array) -> Array:
    s = xp.exp(_log_softmax(xp, p))
    return s * (v - xp.sum(s * v, axis=-1, keepdims=True)) / p.shape[-2]


_LOSSES = {
    "squared": _Loss(
        lambda xp, p, y: xp.sum(xp.sum((p - y) ** 2, axis=-1), axis=-1) / p.shape[-2],
        lambda xp, p, y: (p - y) * (2 / p.shape[-2]),
        lambda xp, p, v: v * (2 / p.shape[-2]),
    ),
    "cross_entropy": _Loss(
        lambda xp, p, y: -xp.sum(xp.sum(y * _log_softmax(xp, p), axis=-1), axis=-1) / p.shape[-2],
        lambda xp, p, y: (xp.exp(_log_softmax(xp, p)) - y) / p.shape[-2],
        _cross_entropy_hvp,
    ),
}


@dataclass(frozen=True)
class Network:
    r"""A fully connected network on flat weights, with its derivatives written out.

    .. math:: a_0=x,\qquad a_l=\max(a_{l-1}W_l+b_l,0),\qquad p=a_{L-1}W_L+b_L .

    Samples are rows. Weights are one array of shape (n,), or (T, n) for T networks at once, whose
    matrix products are then batched; so are the gradient and the Hessian product, with NumPy as
    with PyTorch. Each matrix holds its bias as last row.

    Attributes
    ----------
    widths : tuple of int
        Numbers of inputs, hidden units, outputs.
    loss : {"squared", "cross_entropy"}
        The mean over the samples of :math:`\|p-y\|^2` (without ½, as is usual in this field), or of
        :math:`-\sum_cy_c\log\operatorname{softmax}(p)_c` for rows y that add up to 1.

    Examples
    --------
    >>> import numpy as np
    >>> net = Network((1, 40, 40, 1))
    >>> w = net.start(seed=0)
    >>> w.shape, net.predict(w, np.ones((10, 1))).shape
    ((1761,), (10, 1))
    >>> from course_lib.problems import sinusoids
    >>> found = maml(net.task(sinusoids(25, 10)), w, step=0.01, steps=5)
    >>> found.gradient.shape, found.weights.shape
    ((1761,), (25, 1761))
    """

    widths: tuple[int, ...]
    loss: str = "squared"

    def __post_init__(self) -> None:
        require(
            isinstance(self.widths, tuple) and len(self.widths) >= 2,
            f"widths must be a tuple of two or more numbers: got {self.widths!r}",
        )
        for width in self.widths:
            as_count(width, "each of widths", minimum=1)
        as_choice(self.loss, "loss", tuple(_LOSSES))

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of the matrices, biases included."""
        return [(m + 1, n) for m, n in zip(self.widths, self.widths[1:], strict=False)]

    @property
    def size(self) -> int:
        """The number of weights."""
        return sum(m * n for m, n in self.shapes)

    def start(self, seed: int = 0, like: Array | None = None) -> Array:
        r"""Return random weights: uniform in :math:`\pm1/\sqrt{\text{inputs of the layer}}`."""
        rng = np.random.default_rng(as_count(seed, "seed"))
        bounds = ((m, n, 1 / math.sqrt(m - 1)) for m, n in self.shapes)
        return asarray_like(
            np.concatenate([rng.uniform(-bound, bound, m * n) for m, n, bound in bounds]), like
        )

    def predict(self, w: Array, x: Array) -> Array:
        """Return the outputs, shape (..., m, outputs), for inputs of shape (..., m, inputs)."""
        return self._forward(self._matrices(as_real(w, "w")), self._inputs(x, "x"))[1]

    def risk(self, w: Array, x: Array, y: Array) -> Array:
        """Return the loss: a 0-d array, or one number for each network of a stack."""
        w, x = as_real(w, "w"), self._inputs(x, "x")
        return self._value(w, x, self._targets(y, "y", x, w.shape[:-1]))

    def task(self, data: Any) -> Task:
        """Return the stack of the tasks of a :class:`course_lib.problems.FewShot`."""
        x, x_query = (
            self._inputs(data.x_support, "x_support"),
            self._inputs(data.x_query, "x_query"),
        )
        require(
            x_query.shape[:-2] == x.shape[:-2],
            "x_query must have the tasks of x_support: expected shape "
            f"{(*x.shape[:-2], 'm', self.widths[0])}, got {tuple(data.x_query.shape)}",
        )
        y = self._targets(data.y_support, "y_support", x, x.shape[:-2])
        y_query = self._targets(data.y_query, "y_query", x_query, x.shape[:-2])
        query = Functional(
            lambda w: self._value(w, x_query, y_query),
            lambda w: self._linearize(w, x_query, y_query)[0],
            name="query loss",
        )
        return Task(
            lambda w: self._linearize(w, x, y)[0],
            lambda w, v: self._linearize(w, x, y)[1](v),
            query,
            x.shape[0] if x.ndim == 3 else None,
            lambda w: self._linearize(w, x, y),
        )

    def _inputs(self, x: Array, name: str) -> Array:
        x = as_real(x, name)
        require(
            x.ndim >= 2 and x.shape[-1] == self.widths[0],
            f"{name} must hold samples as rows: expected shape (..., m, {self.widths[0]}), "
            f"got {tuple(x.shape)}",
        )
        return _with_ones(x)

    def _targets(self, y: Array, name: str, x: Array, stack: tuple[int, ...]) -> Array:
        return as_real(y, name, shape=(*(stack or x.shape[:-2]), x.shape[-2], self.widths[-1]))

    def _matrices(self, w: Array) -> list[Array]:
        require(
            w.shape[-1] == self.size,
            f"the weights have the wrong shape: expected (..., {self.size}), got {tuple(w.shape)}",
        )
        xp, matrices, start = array_namespace(w), [], 0
        for m, n in self.shapes:
            part = w[..., start : start + m * n]
            matrices.append(xp.reshape(part, (*w.shape[:-1], m, n)))
            start += m * n
        return matrices

    def _flat(self, matrices: list[Array]) -> Array:
        xp = array_namespace(matrices[0])
        return xp.concat([xp.reshape(M, (*M.shape[:-2], -1)) for M in matrices], axis=-1)

    def _forward(self, W: list[Array], x: Array) -> tuple[list[Array], Array]:
        """Return the inputs of all layers, each with a column of ones, and the output."""
        a = [x]
        for M in W[:-1]:
            z = a[-1] @ M
            # Several times faster than `clip` on small arrays; its derivative at 0 is 0 in torch.
            a.append(_with_ones(z * array_namespace(z).astype(z > 0, z.dtype)))
        return a, a[-1] @ W[-1]

    def _value(self, w: Array, x: Array, y: Array) -> Array:
        p = self._forward(self._matrices(w), x)[1]
        return _LOSSES[self.loss].value(array_namespace(w), p, y)

    def _linearize(self, w: Array, x: Array, y: Array) -> tuple[Array, Callable[[Array], Array]]:
        """Return the gradient, and the product with the Hessian: one forward and backward pass."""
        xp, W = array_namespace(w), self._matrices(w)
        a, p = self._forward(W, x)
        slopes = [xp.astype(b[..., :-1] > 0, b.dtype) for b in a[1:]]
        deltas, G = [_LOSSES[self.loss].gradient(xp, p, y)], []
        for layer in reversed(range(len(W))):
            G.insert(0, a[layer].mT @ deltas[0])
            if layer:
                inward = deltas[0] @ W[layer][..., :-1, :].mT
                deltas.insert(0, inward * slopes[layer - 1])
        return self._flat(G), lambda v: self._product(v, W, a, p, slopes, deltas)

    def _product(
        self,
        v: Array,
        W: list[Array],
        a: list[Array],
        p: Array,
        slopes: list[Array],
        deltas: list[Array],
    ) -> Array:
        """Differentiate both passes in the direction v; da is the change of a."""
        xp, V = array_namespace(v), self._matrices(v)
        da, dp = [], a[0] @ V[0]
        for layer in range(1, len(W)):
            da.append(slopes[layer - 1] * dp)
            dp = da[-1] @ W[layer][..., :-1, :] + a[layer] @ V[layer]
        ddelta, G = _LOSSES[self.loss].hvp(xp, p, dp), []
        for layer in reversed(range(len(W))):
            change = a[layer].mT @ ddelta
            if layer:
                # The column of ones does not change: nothing for the row of the bias here.
                more = da[layer - 1].mT @ deltas[layer]
                change = xp.concat([change[..., :-1, :] + more, change[..., -1:, :]], axis=-2)
                M, N = W[layer][..., :-1, :], V[layer][..., :-1, :]
                ddelta = (ddelta @ M.mT + deltas[layer] @ N.mT) * slopes[layer - 1]
            G.insert(0, change)
        return self._flat(G)


def _with_ones(a: Array) -> Array:
    xp = array_namespace(a)
    return xp.concat([a, xp.ones_like(a[..., :1])], axis=-1)


# ---------------------------------------------------------------- optimizers as maps


@dataclass(frozen=True, eq=False)
class Update:
    r"""One step of an optimizer, :math:`x_{k+1}=T_k(x_k,\theta)`; call it like a function.

    Give it to :func:`course_lib.bilevel.unrolled`: the derivative of an outer loss by θ is then a
    hypergradient of the optimizer's parameters.

    Attributes
    ----------
    step : callable
        :math:`(x,\theta,k)\mapsto T_k(x,\theta)`, k from 0.
    linearize : callable or None
        :math:`(x,\theta,k)\mapsto(T_x,T_\theta)` as operators, where it is known; else None, and
        PyTorch differentiates the step.
    parts : int or None
        None if x are the weights; else x has shape (parts, ...), the weights in row 0.

    Examples
    --------
    >>> import numpy as np
    >>> descend = gradient_step(lambda w, k: 2 * w)
    >>> descend(np.array([1.0]), np.log(np.array([0.25])), 0)
    array([0.5])
    """

    step: Callable[[Array, Array, int], Array]
    linearize: Callable[[Array, Array, int], tuple] | None = None
    parts: int | None = None

    def __call__(self, x: Array, theta: Array, k: int) -> Array:
        return self.step(x, theta, k)

    def start(self, w: Array) -> Array:
        """Return the state at weights w: what is remembered of the past is zero."""
        xp, w = array_namespace(w), as_real(w, "w")
        return w if self.parts is None else xp.stack([w] + (self.parts - 1) * [xp.zeros_like(w)])


def _check(x: Array, parts: int | None, theta: Array, sizes: tuple[int, ...]) -> None:
    require(
        parts is None or (x.ndim >= 2 and x.shape[0] == parts),
        f"the state has the wrong shape: expected ({parts}, ...), got {tuple(x.shape)}",
    )
    wanted = " or ".join(f"({size},)" for size in sizes)
    require(
        theta.ndim == 1 and theta.shape[0] in sizes,
        f"theta has the wrong shape: expected {wanted}, got {tuple(theta.shape)}",
    )


def _rate(theta: Array, k: int) -> tuple[Array, list[Array]]:
    """Return the step size η_k(θ), and the derivatives of log η_k by the entries of θ."""
    xp, eta = array_namespace(theta), array_namespace(theta).exp(theta[0])
    if theta.shape[0] == 1:
        return eta, [xp.ones_like(eta)]
    growth = k * xp.exp(theta[1])
    return eta / (1 + growth), [xp.ones_like(eta), -growth / (1 + growth)]


def gradient_step(
    gradient: Callable[[Array, int], Array],
    hvp: Callable[[Array, Array, int], Array] | None = None,
) -> Update:
    r"""Gradient descent with a learning rate, or a schedule of them, as outer variable.

    .. math::
        w_{k+1}=w_k-\eta_k\nabla L(w_k),\qquad
        \eta_k=e^{\theta_0}\quad\text{or}\quad\eta_k=\frac{e^{\theta_0}}{1+ke^{\theta_1}},

    for θ of shape (1,) or (2,). After one step :math:`dL(w_1)/d\eta=-\langle g_1,g_0\rangle`, and
    :math:`\partial_{\theta_0}\eta_k=\eta_k`,
    :math:`\partial_{\theta_1}\eta_k=-\eta_kke^{\theta_1}/(1+ke^{\theta_1})`.

    Parameters
    ----------
    gradient : callable
        (w, k) to the gradient that step k uses.
    hvp : callable, optional
        (w, v, k) to the Hessian times v. With it the derivatives are written out, and work over
        NumPy.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.bilevel import unrolled
    >>> from course_lib.functionals import squared_l2
    >>> descend = gradient_step(lambda w, k: w, lambda w, v, k: v)
    >>> theta, w0 = np.log(np.array([0.5])), np.array([1.0])
    >>> found = unrolled(
    ...     descend, w0, theta, 1, squared_l2(), linearize=descend.linearize
    ... )
    >>> found.gradient  # eta d/d eta (1 - eta)^2 / 2
    array([-0.25])
    """

    def step(w: Array, theta: Array, k: int) -> Array:
        _check(w, None, theta, (1, 2))
        return w - _rate(theta, k)[0] * _shaped(gradient(w, k), w, "the gradient")

    def linearize(w: Array, theta: Array, k: int) -> tuple[LinearOperator, LinearOperator]:
        (eta, logs), g, xp = _rate(theta, k), gradient(w, k), array_namespace(w)

        def through(v: Array) -> Array:
            return v - eta * hvp(w, v, k)

        return LinearOperator(through, through, tuple(w.shape), tuple(w.shape)), LinearOperator(
            lambda t: -sum(t[i] * d for i, d in enumerate(logs)) * eta * g,
            lambda v: xp.stack([-eta * d * inner(g, v) for d in logs]),
            tuple(theta.shape),
            tuple(w.shape),
        )

    return Update(step, None if hvp is None else linearize)


def heavy_ball(
    gradient: Callable[[Array, int], Array],
    hvp: Callable[[Array, Array, int], Array] | None = None,
) -> Update:
    r"""Gradient descent with momentum; the state x holds weights w and velocity v as its two rows.

    .. math:: v_{k+1}=\beta v_k+\nabla L(w_k),\qquad w_{k+1}=w_k-\eta v_{k+1},
        \qquad\theta=(\log\eta,\beta).

    A mode of curvature h is stable for :math:`0<\eta h<2(1+\beta)`: more momentum allows larger
    steps. It contracts fastest for :math:`\beta=(1-\sqrt{\eta h})^2`, and oscillates for larger β.
    A loss of the last iterate may have several local minima in β.

    Parameters
    ----------
    gradient, hvp : callable
        As in :func:`gradient_step`.

    References
    ----------
    Polyak (1964), USSR Computational Mathematics and Mathematical Physics 4(5), 1-17.

    Examples
    --------
    >>> import numpy as np
    >>> ball = heavy_ball(lambda w, k: w)
    >>> x = ball.start(np.array([1.0]))
    >>> ball(x, np.array([np.log(0.5), 0.9]), 0)
    array([[0.5],
           [1. ]])
    """

    def step(x: Array, theta: Array, k: int) -> Array:
        _check(x, 2, theta, (2,))
        xp = array_namespace(x)
        v = theta[1] * x[1, ...] + gradient(x[0, ...], k)
        return xp.stack([x[0, ...] - xp.exp(theta[0]) * v, v])

    def linearize(x: Array, theta: Array, k: int) -> tuple[LinearOperator, LinearOperator]:
        xp, eta, beta, w = array_namespace(x), array_namespace(x).exp(theta[0]), theta[1], x[0, ...]
        v = step(x, theta, k)[1, ...]

        def forward(dw: Array, dv: Array) -> Array:
            return xp.stack([dw - eta * dv, dv])

        def reverse(u: Array) -> Array:  # what reaches the new velocity, by itself and through w
            return u[1, ...] - eta * u[0, ...]

        return LinearOperator(
            lambda d: forward(d[0, ...], beta * d[1, ...] + hvp(w, d[0, ...], k)),
            lambda u: xp.stack([u[0, ...] + hvp(w, reverse(u), k), beta * reverse(u)]),
            tuple(x.shape),
            tuple(x.shape),
        ), LinearOperator(
            lambda t: forward(-t[0] * eta * v, t[1] * x[1, ...]),
            lambda u: xp.stack([-eta * inner(v, u[0, ...]), inner(x[1, ...], reverse(u))]),
            tuple(theta.shape),
            tuple(x.shape),
        )

    return Update(step, None if hvp is None else linearize, 2)


def adam(gradient: Callable[[Array, int], Array], *, eps: float = 1e-8) -> Update:
    r"""Adam, with its stabilizer inside the root; the rows of x are weights w and moments m, s.

    .. math::
        m_{k+1}=\beta_1m_k+(1-\beta_1)g_k,\qquad s_{k+1}=\beta_2s_k+(1-\beta_2)g_k^2,\qquad
        w_{k+1}=w_k-\alpha\,\frac{m_{k+1}/(1-\beta_1^{k+1})}
        {\sqrt{s_{k+1}/(1-\beta_2^{k+1})+\mathrm{eps}^2}},

    :math:`g_k=\nabla L(w_k)` and :math:`\theta=(\log\alpha,\beta_1,\beta_2)`. With the stabilizer
    outside, :math:`\sqrt s+\mathrm{eps}`, the chain rule meets :math:`\infty\cdot0` where a
    gradient is zero. The first step is :math:`-\alpha\operatorname{sign}g_0` up to eps: where
    :math:`|g_0|\gg\mathrm{eps}` its derivative by the weights is nearly that of the identity, and
    where :math:`|g_0|\ll\mathrm{eps}` it contains α/eps.

    Parameters
    ----------
    gradient : callable
        (w, k) to the gradient that step k uses.
    eps : float
        The same unit as the gradient.

    References
    ----------
    Kingma and Ba (2015), ICLR.

    Examples
    --------
    >>> import numpy as np
    >>> rule = adam(lambda w, k: w)
    >>> x = rule.start(np.array([2.0, 0.0]))
    >>> rule(x, np.array([np.log(0.1), 0.9, 0.999]), 0)[0].round(6)
    array([1.9, 0. ])
    """
    eps = as_scalar(eps, "eps", positive=True)

    def step(x: Array, theta: Array, k: int) -> Array:
        _check(x, 3, theta, (3,))
        xp, w, beta1, beta2 = array_namespace(x), x[0, ...], theta[1], theta[2]
        g = gradient(w, k)
        m = beta1 * x[1, ...] + (1 - beta1) * g
        s = beta2 * x[2, ...] + (1 - beta2) * g**2
        scale = xp.sqrt(s / (1 - beta2 ** (k + 1)) + eps**2)
        return xp.stack([w - xp.exp(theta[0]) * m / (1 - beta1 ** (k + 1)) / scale, m, s])

    return Update(step, None, 3)


def of_weights(outer: Functional) -> Functional:
    """Return a functional of the weights as one of the state of an optimizer: of its row 0.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import squared_l2
    >>> f = of_weights(squared_l2())
    >>> f.gradient(np.array([[1.0, 2.0], [7.0, 7.0]]))
    array([[1., 2.],
           [0., 0.]])
    """

    def gradient(x: Array) -> Array:
        xp, g = array_namespace(x), outer.gradient(x[0, ...])
        return xp.stack([g] + (x.shape[0] - 1) * [xp.zeros_like(g)])

    return Functional(lambda x: outer.value(x[0, ...]), gradient, name=f"{outer.name} of weights")


class OnlineState(NamedTuple):
    """Iterate, step size, gradient, and the derivative of the loss by the step size before."""

    x: Array
    step: Array
    r: Array
    slope: Array


def hypergradient_descent(
    gradient: Callable[[Array, int], Array], x0: Array, *, step: float, rate: float
) -> Iterator[OnlineState]:
    r"""Gradient descent that corrects its step size as it goes, by one dot product.

    .. math::
        \frac{d}{d\eta}L(x_k-\eta g_k)=-\langle g_{k+1},g_k\rangle,\qquad
        \eta\leftarrow\eta+\gamma\langle g_{k+1},g_k\rangle .

    It sees one step ahead only: with noisy gradients η falls too soon, and the last loss is higher
    than with the best schedule (short-horizon bias).

    Parameters
    ----------
    gradient : callable
        (x, k) to the gradient.
    x0 : array
    step : float
        First η.
    rate : float
        γ ≥ 0.

    Yields
    ------
    OnlineState

    Raises
    ------
    ValueError
        If ``step`` is not positive or ``rate`` is negative.

    References
    ----------
    Baydin, Cornish, Martínez Rubio, Schmidt and Wood (2018), ICLR; Wu, Ren, Liao and Grosse
    (2018), ICLR.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.iterate import run
    >>> states = hypergradient_descent(lambda x, k: x, np.array([1.0]), step=0.1, rate=0.1)
    >>> state = run(states, max_iter=1).state
    >>> state.step.round(6), state.slope.round(6)  # 0.1 + 0.1 * 0.9, and -0.9
    (np.float64(0.19), np.float64(-0.9))
    """
    x0, rate = as_real(x0, "x0"), as_scalar(rate, "rate", minimum=0.0)
    step = asarray_like(as_scalar(step, "step", positive=True), x0)

    def iterate():
        x, eta, k = x0, step, 0
        g = gradient(x, k)
        slope = 0 * inner(g, g)
        while True:
            yield OnlineState(x, eta, g, slope)
            if not to_float(eta) > 0:
                return f"breakdown: the step size became {to_float(eta):.3e}, not positive"
            x, k = x - eta * g, k + 1
            g, g_old = gradient(x, k), g
            slope = -inner(g, g_old)
            eta = eta - rate * slope

    return iterate()


# ---------------------------------------------------------------- learned optimizers


def learned_step(gradient: Callable[[Array, int], Array], *, hidden: int = 4) -> Update:
    r"""A learned update: gradient descent, corrected entry by entry by a small network.

    .. math::
        m_{k+1}=\beta m_k+(1-\beta)g_k,\qquad
        w_{k+1}=w_k-e^{\theta_0}\bigl(g_k+s_k\,a^\top\tanh(B\,(g_k,m_{k+1})/s_k+c)\bigr),

    :math:`s_k` the root mean square of :math:`g_k` (with a floor: 1e-77, in single precision
    3e-10), :math:`\beta=1/(1+e^{-\theta_1})`, and
    :math:`\theta=(\theta_0,\theta_1,a,c,B)` of size 2 + 4 ``hidden``. With a = 0
    (:func:`learned_start`) it is gradient descent: training starts from a method that works. It is
    fitted to the tasks that it is trained on and to their number of steps; nothing is promised
    for others. PyTorch differentiates it.

    Parameters
    ----------
    gradient : callable
        (w, k) to the gradient that step k uses.
    hidden : int
        Number of hidden units.

    References
    ----------
    Andrychowicz et al. (2016), NeurIPS.

    Examples
    --------
    >>> import numpy as np
    >>> rule = learned_step(lambda w, k: w)
    >>> rule(rule.start(np.array([1.0, 2.0])), learned_start(0.5), 0)[0]
    array([0.5, 1. ])
    """
    h = as_count(hidden, "hidden", minimum=1)

    def step(x: Array, theta: Array, k: int) -> Array:
        _check(x, 2, theta, (2 + 4 * h,))
        xp, w, g = array_namespace(x), x[0, ...], gradient(x[0, ...], k)
        beta = 1 / (1 + xp.exp(-theta[1]))
        m = beta * x[1, ...] + (1 - beta) * g
        a, c, B = theta[2 : 2 + h], theta[2 + h : 2 + 2 * h], theta[2 + 2 * h :]
        # The root is differentiated where the gradient is zero, too.
        s = xp.sqrt(xp.mean(g**2) + xp.finfo(g.dtype).smallest_normal ** 0.5)
        features = xp.tanh((g[..., None] * B[:h] + m[..., None] * B[h:]) / s + c)
        return xp.stack([w - xp.exp(theta[0]) * (g + s * (features @ a)), m])

    return Update(step, None, 2)


def learned_start(
    step: float, *, hidden: int = 4, seed: int = 0, like: Array | None = None
) -> Array:
    """Return the θ with which :func:`learned_step` is gradient descent with the given step.

    Examples
    --------
    >>> learned_start(0.5).shape
    (18,)
    """
    h, rng = as_count(hidden, "hidden", minimum=1), np.random.default_rng(as_count(seed, "seed"))
    first = math.log(as_scalar(step, "step", positive=True))
    return asarray_like([first, 0.0, *np.zeros(h), *rng.standard_normal(3 * h)], like)


class TrainingState(NamedTuple):
    """Parameters, outer loss and hypergradient of the last piece, and its last state."""

    x: Array
    value: float | None
    r: Array | None
    carried: Array | None


def truncated_training(
    sample: Callable[[int], tuple[Update, Array, Functional]],
    theta: Array,
    *,
    length: int,
    pieces: int,
    rate: float,
    bound: float,
) -> Iterator[TrainingState]:
    r"""Train an optimizer by truncated backpropagation through its steps, the state carried on.

    A run of ``pieces`` times ``length`` steps on one task is cut into pieces. Each is
    differentiated by itself (:func:`course_lib.bilevel.unrolled`), from the state in which the
    one before ended, taken as a constant; then

    .. math:: \theta\leftarrow\theta-\gamma\operatorname{clip}(\nabla J,\mathrm{bound}) .

    Memory is that of one piece. What a piece does to later ones is left out: the gradient is
    biased towards short runs.

    Parameters
    ----------
    sample : callable
        Number of the run to (update, weights, outer loss of the weights): a new task.
    theta : array
    length, pieces : int
    rate, bound : float
        γ, and the largest norm of a hypergradient that is used.

    Yields
    ------
    TrainingState
        ``x`` is θ. Drive it with :func:`course_lib.iterate.run`.

    References
    ----------
    Werbos (1990), Proceedings of the IEEE 78, 1550-1560.

    Examples
    --------
    >>> import numpy as np
    >>> from course_lib.functionals import squared_l2
    >>> from course_lib.iterate import run
    >>> descend = gradient_step(lambda w, k: w, lambda w, v, k: v)
    >>> states = truncated_training(
    ...     lambda run: (descend, np.ones(2), squared_l2()),
    ...     np.log(np.array([0.1])), length=2, pieces=2, rate=0.5, bound=1.0,
    ... )
    >>> np.exp(run(states, max_iter=400).x).round(2)  # from 0.1; 1 solves this task in one step
    array([0.96])
    """
    theta = detach(as_real(theta, "theta"))
    length, pieces = as_count(length, "length", minimum=1), as_count(pieces, "pieces", minimum=1)
    rate, bound = as_scalar(rate, "rate", positive=True), as_scalar(bound, "bound", positive=True)

    def piece(update: Update, x: Array, t: Array, outer: Functional, j: int) -> Any:
        def later(f: Callable | None) -> Callable | None:
            return f and (lambda x, t, k: f(x, t, k + length * (j % pieces)))

        return unrolled(later(update.step), x, t, length, outer, linearize=later(update.linearize))

    def iterate():
        t, j = theta, 0
        yield TrainingState(t, None, None, None)
        while True:
            if j % pieces == 0:
                update, w, outer = sample(j // pieces)
                x = update.start(w)
                outer = outer if update.parts is None else of_weights(outer)
            try:
                found = piece(update, x, t, outer, j)
                used = clip(found.gradient, bound)
            except ValueError as problem:
                if j == 0:  # what was given is wrong, not what became of it
                    raise
                return f"breakdown: {problem}"
            t, x, j = t - rate * used, detach(found.x), j + 1
            yield TrainingState(t, found.value, found.gradient, x)

    return iterate()


# ---------------------------------------------------------------- memory, clipping, consolidation


@dataclass(frozen=True)
class CheckpointCost:
    """What it costs to go back through a chain of steps.

    Attributes
    ----------
    states : int
        States held at once.
    forwards : int
        Calls of the step, the first run included; derivatives are not counted.
    repeats : int
        Largest number of times that one step is called.
    """

    states: int
    forwards: int
    repeats: int


def checkpoint_cost(steps: int, slots: int | None = None) -> CheckpointCost:
    r"""Return the cost of reverse mode through n steps if few of the n states are kept.

    Without ``slots``: every :math:`\lceil\sqrt n\rceil`-th state is kept, and each piece between
    two of them is run once more; about :math:`2\sqrt n` states. With s slots: the best schedule
    (binomial, Revolve). With r the smallest number for which
    :math:`\binom{s+r}{s}\ge n`,

    .. math:: rn-\binom{s+r}{s+1}

    steps bring every state back, each at most r times, and one more reaches :math:`x_n`.

    Parameters
    ----------
    steps : int
        n.
    slots : int, optional
        s, the start among them.

    References
    ----------
    Griewank and Walther (2000), ACM Transactions on Mathematical Software 26, 19-45.

    Examples
    --------
    >>> checkpoint_cost(10_000)
    CheckpointCost(states=200, forwards=20000, repeats=2)
    >>> checkpoint_cost(10_000, slots=10)
    CheckpointCost(states=10, forwards=57625, repeats=7)
    """
    n = as_count(steps, "steps", minimum=1)
    if slots is None:
        piece = math.isqrt(n - 1) + 1
        return CheckpointCost(-(-n // piece) + piece, 2 * n, 2)
    s = as_count(slots, "slots", minimum=1)
    r = _repeats(n, s)
    return CheckpointCost(min(s, n), r * n - math.comb(s + r, s + 1) + 1, max(r, 1))


def clip(g: Array, bound: float, *, kind: str = "norm") -> Array:
    r"""Return a gradient with its norm, or each of its entries, limited.

    .. math::
        \text{norm:}\quad\min\bigl(1,\tfrac{c}{\|g\|}\bigr)g,\qquad
        \text{entries:}\quad\min(\max(g_i,-c),c) .

    The first keeps the direction; the second changes it. Neither is the gradient of the loss any
    more: means of clipped gradients are biased.

    Raises
    ------
    ValueError
        If ``bound`` is not positive or ``kind`` is unknown.

    References
    ----------
    Pascanu, Mikolov and Bengio (2013), ICML.

    Examples
    --------
    >>> import numpy as np
    >>> g = np.array([3.0, 4.0])
    >>> clip(g, 1.0), clip(g, 3.0, kind="entries")
    (array([0.6, 0.8]), array([3., 3.]))
    """
    g, bound = as_real(g, "g"), as_scalar(bound, "bound", positive=True)
    if as_choice(kind, "kind", ("norm", "entries")) == "entries":
        return array_namespace(g).clip(g, -bound, bound)
    length = norm(g)
    return g if to_float(length) <= bound else (bound / length) * g


def ewc(fisher: Array, w_old: Array, weight: float) -> Functional:
    r"""Elastic weight consolidation: :math:`\tfrac\lambda2\sum_iF_i(w_i-w_i^{\rm old})^2`.

    F is the diagonal of the Fisher information at the optimum of the *old* task: the mean of the
    squared gradients of the log-likelihood there. It keeps a network from forgetting, where few-
    shot learning wants it to adapt. A proximal map is there:
    :math:`(v+\eta\lambda F\odot w^{\rm old})/(1+\eta\lambda F)`.

    Parameters
    ----------
    fisher : array
        F, entries ≥ 0.
    w_old : array, same shape
    weight : float
        λ > 0.

    Raises
    ------
    ValueError
        If an entry of F is negative, or the shapes differ.

    References
    ----------
    Kirkpatrick et al. (2017), PNAS 114, 3521-3526.

    Examples
    --------
    >>> import numpy as np
    >>> R = ewc(np.array([1.0, 0.0]), np.array([1.0, 1.0]), 2.0)
    >>> w = np.array([3.0, 5.0])
    >>> float(R(w)), R.gradient(w), R.prox(w, 0.5)
    (4.0, array([4., 0.]), array([2., 5.]))
    """
    fisher, weight = as_real(fisher, "fisher"), as_scalar(weight, "weight", positive=True)
    w_old = as_real(w_old, "w_old", shape=tuple(fisher.shape))
    check_alike(w_old, "w_old", fisher, "fisher")
    require(
        to_float(array_namespace(fisher).min(fisher)) >= 0,
        "fisher must not be negative: expected squares, got some entries < 0",
    )
    F = weight * fisher

    def away(w: Array) -> Array:
        return as_real(w, "w", shape=tuple(fisher.shape), like=fisher, finite=False) - w_old

    return Functional(
        lambda w: 0.5 * inner(F * away(w), away(w)),
        lambda w: F * away(w),
        lambda v, step: (v + step * F * w_old) / (1 + step * F),
        name="elastic weight consolidation",
    )
