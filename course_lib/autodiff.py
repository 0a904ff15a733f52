r"""Derivatives of PyTorch functions as callables: what the mathematics takes as arguments.

The only module that imports torch. Gradients are arrays of the shape of their argument.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

from .arrays import Array, require, shape_of

__all__ = ["all_reduce", "attach", "batched", "gradient", "gradient_and_hvp", "hvp", "partials"]


def _check(*points: Array) -> None:
    for x in points:
        require(
            isinstance(x, torch.Tensor) and x.is_floating_point(),
            f"autodiff needs torch tensors of floating-point numbers: got {type(x).__name__}",
        )


def _number(value: Array) -> Array:
    got = shape_of(value)
    require(got == (), f"f must return one number, as a tensor of shape (): got {got}")
    return value


def gradient(f: Callable[..., Array]) -> Callable[..., Array]:
    r"""Return :math:`x\mapsto\nabla_xf(x,\dots)` for an f whose value is one number.

    By reverse mode: a small multiple of the cost of f, whatever the size of x. The result can be
    differentiated again.

    Raises ``ValueError`` if the value of f is not one number.

    Examples
    --------
    >>> import torch
    >>> gradient(lambda x: (x**2).sum())(torch.tensor([1.0, 2.0]))
    tensor([2., 4.])
    """

    def scalar(x: Array, *rest: Any) -> Array:
        _check(x)
        return _number(f(x, *rest))

    return torch.func.grad(scalar)


def gradient_and_hvp(
    f: Callable[[Array], Array], x: Array
) -> tuple[Array, Callable[[Array], Array]]:
    r"""Return :math:`\nabla f(x)` and :math:`v\mapsto\nabla^2f(x)\,v` on one graph that is kept.

    Reverse mode twice: the Hessian is symmetric. It asks for no forward-mode rule, which not every
    operation of torch has (``mse_loss`` has none), and takes less time than :func:`hvp` where the
    gradient is needed as well. Neither result can be differentiated again.

    Examples
    --------
    >>> import torch
    >>> g, product = gradient_and_hvp(lambda x: x[0] * x[1] ** 2, torch.tensor([1.0, 2.0]))
    >>> g, product(torch.tensor([1.0, 0.0]))
    (tensor([4., 4.]), tensor([0., 4.]))
    """
    _check(x)
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = _number(f(x))
        # The zero stands for a Hessian where f is linear or does not depend on x.
        (g,) = torch.autograd.grad(value + (0 * x * x).sum(), x, create_graph=True)
    return g.detach(), lambda v: torch.autograd.grad(g, x, v, retain_graph=True)[0]


def hvp(f: Callable[..., Array]) -> Callable[..., Array]:
    r"""Return :math:`(x,v)\mapsto\nabla^2f(x)\,v`: forward mode over the gradient (Pearlmutter).

    One pass, about the cost of two gradients; pure forward mode needs one for each entry of x.
    Further arguments of f follow v.

    References
    ----------
    Pearlmutter (1994), Neural Computation 6, 147-160.

    Examples
    --------
    >>> import torch
    >>> x, v = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0.0])
    >>> hvp(lambda x: x[0] * x[1] ** 2)(x, v)
    tensor([0., 4.])
    """
    slope = gradient(f)

    def product(x: Array, v: Array, *rest: Any) -> Array:
        _check(x, v)
        require(x.shape == v.shape, f"v must have the shape of x: {x.shape}, got {v.shape}")
        with warnings.catch_warnings():
            # torch compiles rules of its own at the first call, and warns of how it does.
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            return torch.func.jvp(lambda p: slope(p, *rest), (x,), (v,))[1]

    return product


def batched(f: Callable[..., Array]) -> Callable[..., Array]:
    """Return f over stacks: each argument gets a first axis, along which f is applied to entries.

    Examples
    --------
    >>> import torch
    >>> batched(lambda w, x: (w * x).sum())(torch.ones(2, 3), torch.ones(2, 3))
    tensor([3., 3.])
    """
    return torch.func.vmap(f)


def partials(F: Callable[..., Array], *points: Array) -> list[tuple[Callable, Callable]]:
    r"""Return, for each argument of F, :math:`v\mapsto F_iv` and :math:`w\mapsto F_i^\top w`.

    F is evaluated once. The second map is reverse mode on the graph that is kept; the first is
    reverse mode over the second, which is linear in w.

    Examples
    --------
    >>> import torch
    >>> x, theta = torch.tensor([1.0, 2.0]), torch.tensor(3.0)
    >>> (_, by_theta) = partials(lambda x, theta: theta * x**2, x, theta)
    >>> by_theta[0](torch.tensor(1.0)), by_theta[1](torch.tensor([1.0, 1.0]))
    (tensor([1., 4.]), tensor(5.))
    """
    _check(*points)
    with torch.enable_grad():
        points = [point.detach().requires_grad_() for point in points]
        value = F(*points)
        # Where F does not depend on an argument at all, its derivative is zero.
        value = value + sum((0 * point).sum() for point in points)

    def pair(point: Array) -> tuple[Callable, Callable]:
        w = torch.zeros_like(value, requires_grad=True)
        with torch.enable_grad():
            (back,) = torch.autograd.grad(value, point, w, create_graph=True)

        def forward(v: Array) -> Array:
            return torch.autograd.grad(back, w, v, retain_graph=True, materialize_grads=True)[0]

        def reverse(v: Array) -> Array:
            return torch.autograd.grad(value, point, v, retain_graph=True)[0]

        return forward, reverse

    return [pair(point) for point in points]


def all_reduce(x: Array) -> Array:
    r"""Return the sum of x over all processes of ``torch.distributed``; x itself if there is one.

    Cut off from autograd. In all processes x has one shape and one dtype, floating-point. The
    caller has started the processes and the group (``init_process_group("gloo", ...)``).

    Examples
    --------
    >>> import torch
    >>> all_reduce(torch.ones(2))
    tensor([1., 1.])
    """
    _check(x)
    x = x.detach()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    x = x.clone()
    torch.distributed.all_reduce(x)
    return x


class _Once(Function):
    """A derivative that cannot be differentiated, by any of the tensors it depends on."""

    @staticmethod
    def forward(ctx: Any, slope: Array, *dependencies: Array) -> Array:
        return slope.clone()

    @staticmethod
    def backward(ctx: Any, v: Array) -> tuple:
        raise RuntimeError("an attached function has one derivative only: got a second backward")


class _Attached(Function):
    @staticmethod
    def forward(ctx: Any, pullback: Callable, x: Array, *inputs: Array) -> Array:
        ctx.pullback = pullback
        ctx.save_for_backward(*inputs)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, v: Array) -> tuple:
        inputs = ctx.saved_tensors  # refused if they were changed in place
        with torch.no_grad():
            slopes = ctx.pullback(v)
        for slope, x in zip(slopes, inputs, strict=True):
            rule = "the pullback must return an array of the shape of each input: expected"
            require(
                shape_of(slope) == tuple(x.shape), f"{rule} {tuple(x.shape)}, got {shape_of(slope)}"
            )
        if torch.is_grad_enabled():
            slopes = [_Once.apply(slope, v, *inputs) for slope in slopes]
        return (None, None, *slopes)


def attach(x: Array, inputs: tuple[Array, ...], pullback: Callable[[Array], tuple]) -> Array:
    r"""Return x as a function of the inputs, with a derivative that we know.

    Parameters
    ----------
    x : tensor
        The value, however it was found.
    inputs : tuple of tensors
        What it depends on.
    pullback : callable
        :math:`v\mapsto\bigl((dx/d\theta_1)^\top v,(dx/d\theta_2)^\top v,\dots\bigr)`, one for each
        input. It is called when torch goes backwards, and not differentiated itself: a second
        derivative raises ``RuntimeError``.

    Examples
    --------
    >>> import torch
    >>> a = torch.tensor(2.0, requires_grad=True)
    >>> root = attach(a.detach() ** 0.5, (a,), lambda v: (v / (2 * a.detach() ** 0.5),))
    >>> root.backward()
    >>> a.grad
    tensor(0.3536)
    """
    return _Attached.apply(pullback, x.detach(), *inputs)
