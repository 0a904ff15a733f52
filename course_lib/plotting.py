"""Figures of the book: one look, readable on a light page and on a dark one.

This is the only module that imports matplotlib. Backgrounds are transparent and every colour has
middle luminance: a contrast of at least 3 to white and to the dark page. Lines differ in colour
and in stroke. Importing the module changes no setting of matplotlib; each function draws under a
style of its own and returns the axes, so that anything may be added or changed.
"""

import ast
import functools
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from array_api_compat import is_torch_array

from .arrays import Array

__all__ = [
    "COLORS",
    "INK",
    "figure",
    "pixels",
    "plot_adaptation",
    "plot_amplification",
    "plot_coefficients",
    "plot_contact",
    "plot_criteria",
    "plot_draws",
    "plot_error",
    "plot_factors",
    "plot_gain",
    "plot_gaps",
    "plot_hypergradient_errors",
    "plot_l_curve",
    "plot_outer",
    "plot_picard",
    "plot_rates",
    "plot_ratios",
    "plot_semiconvergence",
    "plot_signals",
    "plot_spikes",
    "plot_valleys",
    "plot_widths",
    "show_pictures",
    "show_source",
]

# Gray of text and axes: contrast 4.5 to white, 4.1 to the theme's dark page (#121212).
INK = "#70777f"
# Blue, orange, green, purple: told apart by readers with any of the colour vision deficiencies.
COLORS = ("#2f6fe0", "#cf5a10", "#12a074", "#b93aa6")
_STROKES = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
_THIN = ((0, (9, 3)), (0, (2, 3)))
_MARKERS = ("o", "s", "^", "D")
_WIDTH = 6.6
_STYLE = {
    "figure.dpi": 144,
    "savefig.dpi": 144,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "figure.constrained_layout.use": True,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.labelsize": 10,
    "font.size": 10,
    "legend.frameon": False,
    "legend.labelcolor": "linecolor",
    "lines.linewidth": 1.7,
    "lines.markersize": 4,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.minor.width": 0.5,
    "ytick.minor.width": 0.5,
}


def _styled(draw: Callable) -> Callable:
    """Run a drawing function under the style of the book, and leave matplotlib as it was."""

    @functools.wraps(draw)
    def wrapper(*args, **kwargs):
        from matplotlib import rcParams

        # Not rc_context, which restores every setting: a notebook turns the interactive mode on
        # while its first figure is made, and without that mode it shows no figure.
        before = {key: rcParams[key] for key in _STYLE}
        rcParams.update(_STYLE)
        try:
            return draw(*args, **kwargs)
        finally:
            rcParams.update(before)

    return wrapper


@_styled
def figure(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = _WIDTH,
    height: float | None = None,
    **options,
) -> tuple[Any, Any]:
    """Return a figure and its axes in the style of the book, to draw several panels.

    Parameters
    ----------
    rows, columns : int
    width, height : float
        In inches; by default each panel is a little wider than high.
    **options
        For ``matplotlib.pyplot.subplots``: ``sharey``, for instance.
    """
    import matplotlib.pyplot as plt

    panel = width / columns
    height = rows * min(0.8 * panel, 0.46 * _WIDTH) if height is None else height
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def pixels(axes: Any) -> np.ndarray:
    """Draw the figure that the axes belong to, close it, and return it: rows, columns, RGBA bytes.

    Examples
    --------
    >>> picture = pixels(figure(width=1, height=0.5)[1])
    >>> picture.shape, picture.dtype
    ((72, 144, 4), dtype('uint8'))
    """
    import matplotlib.pyplot as plt

    fig = np.ravel(axes)[0].figure
    fig.canvas.draw()
    picture = np.array(fig.canvas.buffer_rgba())
    plt.close(fig)
    return picture


def _axes(ax: Any) -> Any:
    return figure()[1] if ax is None else ax


def _numpy(x: Array) -> np.ndarray:
    """Return any array, tensor or list of numbers as a NumPy array."""
    return x.detach().cpu().numpy() if is_torch_array(x) else np.asarray(x)


def _strokes() -> Any:
    """Yield colour and stroke of the first line, the second, …"""
    return cycle(
        {"color": color, "linestyle": stroke}
        for color, stroke in zip(COLORS, _STROKES, strict=True)
    )


def _same_length(name: str, values: np.ndarray, against: str, size: int) -> np.ndarray:
    if values.shape != (size,):
        raise ValueError(
            f"{name} must match {against}: expected shape ({size},), got {values.shape}"
        )
    return values


def _line_ends(ax: Any, lines: list) -> np.ndarray:
    """Return where each line leaves the picture, as fractions of the axes; NaN if it is outside."""
    # Reading the limits makes matplotlib settle them; the transform alone would be out of date.
    (left, right), (bottom, top) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
    ends = np.full((len(lines), 2), np.nan)
    for end, line in zip(ends, lines, strict=True):
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        seen = np.flatnonzero((left <= x) & (x <= right) & (bottom <= y) & (y <= top))
        if seen.size:
            point = ax.transData.transform((x[seen[-1]], y[seen[-1]]))
            end[:] = ax.transAxes.inverted().transform(point)
    return ends


def _name_lines(ax: Any, gap: float = 0.08) -> None:
    """Write each line's label at its end, in its colour; use a legend where the ends meet."""
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    ends = _line_ends(ax, lines)
    near = np.abs(ends[:, None] - ends[None, :])
    meet = (near[:, :, 0] < 0.2) & (near[:, :, 1] < gap)
    if np.isnan(ends).any() or meet.sum() > len(lines):
        _legend_row(ax)
        return
    for line, end in zip(lines, ends, strict=True):
        ax.annotate(
            line.get_label(),
            end,
            xytext=(7, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            color=line.get_color(),
            va="center",
            annotation_clip=False,
        )


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis that spans little with 0.2, 0.5, … instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    if decades < 2:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades > 0.7 else range(1, 10)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _legend_row(ax: Any) -> None:
    """Put a legend above the axes, in as many rows as its labels need."""
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    entry = 0.75 + 0.08 * max(len(label) for label in labels)
    room = ax.figure.get_figwidth() * ax.get_position().width / 0.8
    ax.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=max(1, min(len(labels), int(room / entry))),
        borderaxespad=0.2,
        handlelength=2.2,
        columnspacing=1.6,
    )


@_styled
def plot_signals(
    grid: Array,
    signals: Mapping[str, Array],
    *,
    truth: Array | None = None,
    data: Array | None = None,
    data_grid: Array | None = None,
    xlabel: str = "$t$",
    ax: Any = None,
) -> Any:
    """Draw signals over one grid; the truth as a broad gray line, data as gray dots.

    Parameters
    ----------
    grid : array, shape (n,)
    signals : dict
        Label to array of shape (n,).
    truth, data : array, optional
    data_grid : array, optional
        Where the data are sampled, if not on ``grid``.
    """
    ax, t = _axes(ax), _numpy(grid)
    if truth is not None:
        x = _same_length("truth", _numpy(truth), "grid", t.size)
        ax.plot(t, x, color=INK, linewidth=3.5, label="truth")
    if data is not None:
        s = t if data_grid is None else _numpy(data_grid)
        y = _same_length("data", _numpy(data), "its grid", s.size)
        ax.plot(s, y, ".", color=INK, markersize=3.5, label="data")
    for (label, values), look in zip(signals.items(), _strokes(), strict=False):
        ax.plot(t, _same_length(label, _numpy(values), "grid", t.size), label=label, **look)
    ax.set_xlabel(xlabel)
    ax.margins(x=0.01)
    _legend_row(ax)
    return ax


def _short(value: float) -> str:
    text = f"{value:.2f}" if abs(value) < 100 else f"{value:.0e}"
    return text.replace("-", "\N{MINUS SIGN}")


@_styled
def show_pictures(
    pictures: Mapping[str, Array],
    *,
    columns: int | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    width: float = _WIDTH,
    axes: Any = None,
) -> np.ndarray:
    """Show pictures side by side on one gray scale, black to white between ``limits``.

    Values outside the limits are shown black or white. The figure says how far they go.

    Parameters
    ----------
    pictures : dict
        Title to array of two dimensions.
    columns : int, optional
        Pictures in a row; all of them if not given, at most four.
    limits : tuple
        Gray values shown black and white.
    width : float
        Width of the figure in inches.
    axes : sequence of axes, optional

    Returns
    -------
    NumPy array of axes
    """
    images = {title: _numpy(image) for title, image in pictures.items()}
    if not images:
        raise ValueError("pictures must not be empty: expected at least one")
    for title, image in images.items():
        if image.ndim != 2:
            raise ValueError(f"picture {title!r} must have two dimensions: got shape {image.shape}")
    low, high = limits
    if axes is None:
        columns = min(len(images), 4) if columns is None else columns
        rows = math.ceil(len(images) / columns)
        shape = max(image.shape[0] / image.shape[1] for image in images.values())
        height = rows * (width / columns * shape + 0.42)
        axes = figure(rows, columns, width=width, height=height, squeeze=False)[1]
    axes = np.asarray(axes, dtype=object).ravel()
    if len(axes) < len(images):
        raise ValueError(f"too few axes: expected {len(images)}, got {len(axes)}")
    for ax in axes:
        ax.set_axis_off()
    for ax, (title, image) in zip(axes, images.items(), strict=False):
        ax.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        ax.set_title(title, pad=4)
        if image.min() < low or image.max() > high:
            reach = f"values {_short(image.min())} to {_short(image.max())}"
            ax.text(0.5, -0.02, reach, transform=ax.transAxes, ha="center", va="top", fontsize=8)
    return axes


@_styled
def plot_spikes(
    grid: Array,
    signals: Mapping[str, Array],
    *,
    truth: Array | None = None,
    xlabel: str = "$t$",
    ax: Any = None,
) -> Any:
    """Draw the entries that are not zero as stems; the truth as broad gray ones.

    Parameters
    ----------
    grid : array, shape (n,)
    signals : dict
        Label to array of shape (n,).
    truth : array, shape (n,), optional
    """
    ax, t = _axes(ax), _numpy(grid)
    ax.axhline(0, color=INK, linewidth=0.7)
    if truth is not None:
        x = _same_length("truth", _numpy(truth), "grid", t.size)
        on = x != 0
        ax.vlines(t[on], 0, x[on], color=INK, linewidth=4, label="truth", alpha=0.65)
    for (label, values), color, marker in zip(
        signals.items(), COLORS, cycle(_MARKERS), strict=False
    ):
        x = _same_length(label, _numpy(values), "grid", t.size)
        on = x != 0
        ax.vlines(t[on], 0, x[on], color=color, linewidth=1.2)
        ax.plot(t[on], x[on], marker, color=color, label=label, markersize=3.5)
    ax.set_xlabel(xlabel)
    pad = 0.01 * float(t[-1] - t[0])
    ax.set_xlim(t[0] - pad, t[-1] + pad)
    _legend_row(ax)
    return ax


@_styled
def plot_contact(A: Array, y: Array, x: Array, *, power: int, ax: Any = None) -> Any:
    r"""Draw where a level line of the misfit first meets the ball of a norm, in two dimensions.

    Parameters
    ----------
    A : array, shape (2, 2)
        Invertible. The level lines of :math:`\|Ax-y\|` are ellipses around :math:`A^{-1}y`.
    y : array, shape (2,)
    x : array, shape (2,)
        The point of contact: the ball and the ellipse through it are drawn.
    power : {1, 2}
        The ball of :math:`\|\cdot\|_1` or of :math:`\|\cdot\|_2`.
    """
    ax = figure(width=3.6, height=3.4)[1] if ax is None else ax
    A, y, x = _numpy(A), _numpy(y), _numpy(x)
    angle = np.linspace(0, 2 * math.pi, 401)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    center = np.linalg.solve(A, y)
    ball = circle / (np.abs(circle) ** power).sum(axis=0) ** (1 / power)
    ball = ball * (np.abs(x) ** power).sum() ** (1 / power)
    ax.fill(*ball, color=COLORS[0], alpha=0.22, linewidth=0)
    ax.plot(*ball, color=COLORS[0])
    for share in (0.35, 0.7, 1.0):
        level = center[:, None] + share * np.linalg.norm(A @ x - y) * np.linalg.solve(A, circle)
        ax.plot(*level, color=COLORS[1], linewidth=1.0 if share < 1 else 1.7)
    ax.axhline(0, color=INK, linewidth=0.7, zorder=0)
    ax.axvline(0, color=INK, linewidth=0.7, zorder=0)
    ax.plot(*center, "+", color=COLORS[1], markersize=8)
    ax.plot(*x, "o", color=INK, markersize=7)
    ax.set_aspect("equal")
    ax.set_xlabel("$x_1$")
    ax.set_ylabel("$x_2$")
    return ax


@_styled
def plot_picard(
    s: Array, coefficients: Array, *, noise_std: float | None = None, ax: Any = None
) -> Any:
    r"""Draw the Picard plot: :math:`\sigma_i`, :math:`|\langle u_i,y\rangle|`, and their ratio.

    Parameters
    ----------
    s : array, shape (n,)
        Singular values, decreasing.
    coefficients : array, shape (n,)
        :math:`\langle u_i,y\rangle`.
    noise_std : float, optional
        Drawn as a horizontal line: white noise has coefficients of this size.
    """
    ax, s = _axes(ax), _numpy(s)
    c = np.abs(_same_length("coefficients", _numpy(coefficients), "s", s.size))
    i = np.arange(1, s.size + 1)
    ratio = np.divide(c, s, out=np.full(s.shape, np.nan), where=s > 0)
    blue, orange, green, _ = COLORS
    ax.semilogy(i, s, color=blue, label=r"$\sigma_i$")
    ax.semilogy(i, c, "o", color=orange, label=r"$|\langle u_i,y\rangle|$")
    ax.semilogy(i, ratio, "^", color=green, label=r"$|\langle u_i,y\rangle|/\sigma_i$")
    if noise_std is not None and noise_std > 0:
        ax.plot([0, s.size], [noise_std] * 2, color=INK, linewidth=1, linestyle=(0, (3, 2)))
        # The first coefficients are large: there is room at the left end.
        ax.annotate(
            "noise level",
            (0, noise_std),
            (4, -3),
            ("axes fraction", "data"),
            "offset points",
            va="top",
        )
    ax.set_xlabel("index $i$")
    _name_lines(ax)
    return ax


@_styled
def plot_factors(s: Array, factors: Mapping[str, Array], *, ax: Any = None) -> Any:
    r"""Draw filter factors :math:`\varphi` over the singular values, one line a label.

    Parameters
    ----------
    s : array, shape (n,)
        Positive singular values, in any order.
    factors : dict
        Label to array of shape (n,).
    """
    ax, s = _axes(ax), _numpy(s).ravel()
    order = np.argsort(s)
    for (label, phi), look in zip(factors.items(), _strokes(), strict=False):
        phi = _same_length(label, _numpy(phi).ravel(), "s", s.size)
        ax.semilogx(s[order], phi[order], label=label, **look)
    ax.set_xlabel(r"singular value $\sigma$")
    ax.set_ylabel(r"filter factor $\varphi$")
    _name_lines(ax)
    return ax


def _mark_minimum(ax: Any, x: np.ndarray, y: np.ndarray, color: str) -> None:
    best = int(np.nanargmin(y))
    ax.plot(x[best], y[best], "o", color=color, markersize=7, markerfacecolor="none", zorder=3)


@_styled
def plot_draws(
    grid: Array,
    draws: Array,
    *,
    truth: Array | None = None,
    label: str = "mean",
    ax: Any = None,
) -> Any:
    """Draw solutions for many draws of the noise as thin lines, and their mean.

    Parameters
    ----------
    grid : array, shape (n,)
    draws : array, shape (number of draws, n)
    truth : array, optional
    label : str
        Name of the mean.
    """
    ax, x = _axes(ax), _numpy(draws)
    ax.plot(_numpy(grid), x.T, color=COLORS[1], linewidth=0.5, alpha=0.6)
    return plot_signals(grid, {label: x.mean(axis=0)}, truth=truth, ax=ax)


@_styled
def plot_error(
    parameter: Array,
    errors: Mapping[str, Array],
    *,
    xlabel: str = r"$\lambda$",
    ylabel: str = "relative error",
    ax: Any = None,
) -> Any:
    """Draw errors over a parameter, both logarithmic, with a ring at each smallest value.

    Parameters
    ----------
    parameter : array, shape (n,)
    errors : dict
        Label to array of shape (n,).
    """
    ax, p = _axes(ax), _numpy(parameter)
    for (label, values), look in zip(errors.items(), _strokes(), strict=False):
        e = _same_length(label, _numpy(values), "the parameter", p.size)
        ax.loglog(p, e, label=label, **look)
        _mark_minimum(ax, p, e, look["color"])
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _plain_numbers(ax.yaxis)
    _name_lines(ax)
    return ax


@_styled
def plot_criteria(
    parameter: Array,
    criteria: Mapping[str, Array],
    *,
    xlabel: str = r"$\lambda$",
    ylabel: str = "criterion",
    limits: tuple[float, float] | None = None,
    ax: Any = None,
) -> Any:
    """Draw criteria that may be negative over a logarithmic parameter, with rings at the minima.

    Parameters
    ----------
    parameter : array, shape (n,)
    criteria : dict
        Label to array of shape (n,).
    limits : pair of floats, optional
        Ends of the vertical axis.
    """
    ax, p = _axes(ax), _numpy(parameter)
    ax.axhline(0, color=INK, linewidth=0.7)
    for (label, values), look in zip(criteria.items(), _strokes(), strict=False):
        v = _same_length(label, _numpy(values), "the parameter", p.size)
        ax.semilogx(p, v, label=label, **look)
        _mark_minimum(ax, p, v, look["color"])
    ax.set_ylim(limits)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _legend_row(ax)
    return ax


@_styled
def plot_l_curve(
    residual: Array,
    penalty: Array,
    *,
    points: Mapping[str, tuple[float, float]] | None = None,
    xlabel: str = r"$\Vert Ax_\lambda-y\Vert $",
    ylabel: str = r"$\Vert x_\lambda\Vert $",
    ax: Any = None,
) -> Any:
    """Draw the norm of the solution over that of the residual, both logarithmic.

    Parameters
    ----------
    residual, penalty : array, shape (n,)
        The norms, one pair for each λ.
    points : dict, optional
        Label to a pair of norms: marked on the curve.
    """
    ax, r = _axes(ax), _numpy(residual)
    ax.loglog(r, _same_length("penalty", _numpy(penalty), "residual", r.size), color=COLORS[0])
    looks = zip(cycle(COLORS[1:]), "osD^vP", strict=False)
    for (label, point), (color, marker) in zip((points or {}).items(), looks, strict=False):
        x, y = (float(value) for value in point)
        look = {"color": color, "markersize": 8, "markerfacecolor": "none", "markeredgewidth": 1.6}
        ax.plot(x, y, marker, linestyle="none", label=label, **look)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _plain_numbers(ax.xaxis)
    _plain_numbers(ax.yaxis)
    _legend_row(ax)
    return ax


@_styled
def plot_semiconvergence(
    errors: Mapping[str, Sequence[float]], *, ylabel: str = "relative error", ax: Any = None
) -> Any:
    """Draw the error of each iterate from the first step on, with a ring at the best one.

    Parameters
    ----------
    errors : dict
        Label to the errors of the iterates 0, 1, 2, …, as ``run`` records them.
    """
    ax = _axes(ax)
    for (label, values), look in zip(errors.items(), _strokes(), strict=False):
        e = _numpy(values)[1:]
        k = np.arange(1, e.size + 1)
        ax.loglog(k, e, label=label, **look)
        _mark_minimum(ax, k, e, look["color"])
    ax.set_xlabel("iteration $k$")
    ax.set_ylabel(ylabel)
    _plain_numbers(ax.yaxis)
    _name_lines(ax)
    return ax


@_styled
def plot_rates(
    delta: Array,
    errors: Mapping[str, Array],
    *,
    slopes: Mapping[str, float] | None = None,
    xlabel: str = r"noise level $\delta$",
    ylabel: str = "error",
    ax: Any = None,
) -> Any:
    """Draw errors over the noise level, both logarithmic, with the slopes that theory gives.

    Parameters
    ----------
    delta : array, shape (n,)
    errors : dict
        Label to array of shape (n,).
    slopes : dict, optional
        Label to exponent: a thin line with this slope goes through the middle of the errors.
    """
    ax, d = _axes(ax), _numpy(delta)
    for (label, values), look, marker in zip(
        errors.items(), _strokes(), cycle(_MARKERS), strict=False
    ):
        e = _same_length(label, _numpy(values), "delta", d.size)
        ax.loglog(d, e, marker, color=look["color"], label=label)
        if slopes is not None and label in slopes:
            middle = np.exp(np.mean(np.log(e) - slopes[label] * np.log(d)))
            ax.loglog(d, middle * d ** slopes[label], color=look["color"], linewidth=1)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _name_lines(ax)
    return ax


@_styled
def plot_ratios(
    ratios: Mapping[str, Array], *, limit: float = 30.0, title: str | None = None, ax: Any = None
) -> Any:
    """Draw ratios that are 1 at best, a row of dots for each method, over a logarithmic axis.

    A disc marks the median, a bar goes from the 10 % to the 90 % quantile; both are values that
    occur. Ratios beyond the limit, infinite ones too, are triangles at the limit. A dotted line
    marks the ratio 2.

    Parameters
    ----------
    ratios : dict
        Label to array of one dimension: a ratio for each run.
    limit : float
        Right end of the axis.
    title : str, optional
    """
    ax = _axes(ax)
    ax.axvline(2, color=INK, linewidth=0.7, linestyle=":")
    for row, (label, values) in enumerate(ratios.items()):
        r = _numpy(values)
        if r.size == 0:
            raise ValueError(f"the ratios of {label!r} must not be empty")
        # Spread over the row, the same in every figure: multiples of the golden ratio, mod 1.
        height = row + 0.56 * ((np.arange(r.size) * 0.618034) % 1 - 0.5)
        beyond = r > limit
        ax.plot(r[~beyond], height[~beyond], ".", color=INK, alpha=0.5, markersize=2.2)
        at = np.full(beyond.sum(), limit)
        ax.plot(at, height[beyond], ">", color=COLORS[1], markersize=2.6)
        ends = np.minimum(np.quantile(r, [0.1, 0.5, 0.9], method="inverted_cdf"), limit)
        ax.plot(ends[[0, 2]], [row, row], color=COLORS[0], linewidth=2)
        ax.plot(ends[1], row, "o", color=COLORS[0], markersize=5)
    ax.set_xscale("log")
    ax.set_xlim(0.9, 1.15 * limit)
    ax.set_ylim(len(ratios) - 0.4, -0.6)
    ax.set_yticks(range(len(ratios)), list(ratios))
    ticks = [tick for tick in (1, 3, 10, 30, 100, 1000) if tick <= limit]
    ax.set_xticks(ticks, [f"{tick}" for tick in ticks])
    ax.minorticks_off()
    if title is not None:
        ax.set_title(title)
    return ax


@_styled
def plot_gaps(
    gaps: Mapping[str, Array],
    *,
    bounds: Mapping[str, Array] | None = None,
    double: bool = False,
    xlabel: str = "step $k$",
    ylabel: str = "$F(x_k)-F(x^\\star)$",
    ax: Any = None,
) -> Any:
    """Draw how far iterations are from their goal, on a logarithmic scale.

    Parameters
    ----------
    gaps : dict
        Label to array; entry k belongs to step k.
    bounds : dict, optional
        The same for proved bounds, drawn gray.
    double : bool
        Logarithmic steps too, from step 1 on: a rate is then a straight line.
    """
    ax = _axes(ax)
    for (label, values), look in zip(gaps.items(), _strokes(), strict=False):
        gap = _numpy(values)
        ax.plot(np.arange(gap.size), np.where(gap > 0, gap, np.nan), label=label, **look)
    for (label, values), stroke in zip((bounds or {}).items(), cycle(_THIN), strict=False):
        bound = _numpy(values)
        look = {"color": INK, "linestyle": stroke, "linewidth": 1}
        ax.plot(np.arange(bound.size), bound, label=label, **look)
    ax.set_yscale("log")
    if double:
        ax.set_xscale("log")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _legend_row(ax)
    return ax


@_styled
def plot_gain(s: Array, *, lam: float, ax: Any = None) -> Any:
    r"""Draw the amplification of a detail of strength s: :math:`1/s` and :math:`s/(s^2+\lambda)`.

    Dotted lines mark :math:`s=\sqrt\lambda` and the largest value, :math:`1/(2\sqrt\lambda)`.

    Parameters
    ----------
    s : array
        Strengths, positive and increasing.
    lam : float
        :math:`\lambda>0`.
    """
    ax, s = _axes(ax), _numpy(s)
    strokes = _strokes()
    ax.loglog(s, 1 / s, label="naive inverse", **next(strokes))
    ax.loglog(s, s / (s**2 + lam), label="Tikhonov", **next(strokes))
    ax.axvline(math.sqrt(lam), color=INK, linewidth=1, linestyle=":")
    ax.axhline(1 / (2 * math.sqrt(lam)), color=INK, linewidth=1, linestyle=":")
    ax.set_xlabel(r"strength $\sigma$ of a detail")
    ax.set_ylabel("amplification")
    _legend_row(ax)
    return ax


def show_source(function: Callable) -> Any:
    """Return the source of a function without its docstring, as highlighted Markdown.

    The code in the page is the code that runs: it is read from the library when the page is made.
    """
    from IPython.display import Markdown

    source = textwrap.dedent(inspect.getsource(function))
    lines = source.splitlines()
    body = ast.parse(source).body[0].body
    if ast.get_docstring(ast.parse(source).body[0]) is not None:
        lines[body[0].lineno - 1 : body[0].end_lineno] = []
    return Markdown("```python\n" + "\n".join(lines) + "\n```")


@_styled
def plot_valleys(
    curves: Mapping[str, tuple[Array, Array]],
    *,
    points: Mapping[str, tuple[Array, Array]] | None = None,
    xlabel: str = r"equivalent $\lambda$",
    ylabel: str = "relative error",
    ax: Any = None,
) -> Any:
    """Draw errors of several methods, each over its own values of one parameter.

    Both axes are logarithmic; a ring marks each smallest value.

    Parameters
    ----------
    curves : dict
        Label to a pair: values of the parameter, errors.
    points : dict, optional
        The same for methods whose parameter is discrete: gray dots.
    """
    ax = _axes(ax)
    for (label, pair), look in zip(curves.items(), _strokes(), strict=False):
        p = _numpy(pair[0])
        e = _same_length(label, _numpy(pair[1]), "its parameter", p.size)
        ax.loglog(p, e, label=label, **look)
        _mark_minimum(ax, p, e, look["color"])
    for label, pair in (points or {}).items():
        p = _numpy(pair[0])
        e = _same_length(label, _numpy(pair[1]), "its parameter", p.size)
        ax.loglog(p, e, ".", color=INK, label=label)
        _mark_minimum(ax, p, e, INK)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _plain_numbers(ax.yaxis)
    _legend_row(ax)
    return ax


@_styled
def plot_coefficients(
    coefficients: Mapping[str, Array], *, truth: Array | None = None, ax: Any = None
) -> Any:
    r"""Draw the size of coefficients :math:`|c_i|` over the index, on a logarithmic scale.

    Parameters
    ----------
    coefficients : dict
        Label to array of shape (n,). Zeros have no place on the scale and are left out.
    truth : array, shape (n,), optional
        Drawn as a broad gray line. It sets the lower end of the axis.
    """
    ax = _axes(ax)
    floor = None
    if truth is not None:
        c = np.abs(_numpy(truth))
        ax.semilogy(np.arange(1, c.size + 1), c, color=INK, linewidth=3.5, label="truth")
        floor = 0.1 * float(c[c > 0].min())
    for (label, values), look, marker in zip(
        coefficients.items(), _strokes(), cycle(_MARKERS), strict=False
    ):
        c = np.abs(_numpy(values))
        c = np.where(c > 0, c, np.nan)
        i = np.arange(1, c.size + 1)
        ax.semilogy(i, c, marker, color=look["color"], label=label)
    ax.set_ylim(bottom=floor)
    ax.set_xlabel("index $i$")
    ax.set_ylabel("size of the coefficient")
    _legend_row(ax)
    return ax


@_styled
def plot_widths(coefficients: Array, widths: Mapping[str, float], *, ax: Any = None) -> Any:
    """Draw the size of coefficients over the index, and one width for all: what a prior expects.

    Parameters
    ----------
    coefficients : array, shape (n,)
        Those below 1e-4 of the largest are left out; the scale is logarithmic.
    widths : dict
        Label to the height of a horizontal line.
    """
    ax, c = _axes(ax), np.abs(_numpy(coefficients))
    i, seen = np.arange(1, c.size + 1), c > 1e-4 * c.max()
    ax.semilogy(i[seen], c[seen], "o", color=INK, label="truth")
    for (label, width), look in zip(widths.items(), _strokes(), strict=False):
        ax.semilogy(i[[0, -1]], [width, width], label=label, **look)
    ax.set_xlabel("index $i$")
    ax.set_ylabel("size of the coefficient")
    _legend_row(ax)
    return ax


@_styled
def plot_amplification(
    frequency: Array,
    gains: Mapping[str, Array],
    *,
    level: float | None = None,
    mark: float | None = None,
    xlabel: str = "number of periods",
    ax: Any = None,
) -> Any:
    """Draw by how much inverses amplify a wave, over its frequency; both axes logarithmic.

    Parameters
    ----------
    frequency : array, shape (n,)
        Positive.
    gains : dict
        Label to array of shape (n,).
    level : float, optional
        Drawn as a dotted horizontal line: one over the noise, say.
    mark : float, optional
        A frequency, drawn as a vertical line.
    """
    ax, f = _axes(ax), _numpy(frequency)
    for (label, values), look in zip(gains.items(), _strokes(), strict=False):
        ax.loglog(
            f, _same_length(label, _numpy(values), "the frequency", f.size), label=label, **look
        )
    if level is not None:
        ax.axhline(level, color=INK, linewidth=1, linestyle=":")
    if mark is not None:
        ax.axvline(mark, color=INK, linewidth=0.8, zorder=0)
    ax.set_xlabel(xlabel)
    ax.set_ylabel("amplification")
    _legend_row(ax)
    return ax


@_styled
def plot_outer(
    lams: Array,
    losses: Mapping[str, Array],
    *,
    tangents: Sequence[tuple[float, float, float]] = (),
    path: tuple[Array, Array] | None = None,
    reach: float = 2.0,
    xlabel: str = r"$\lambda$",
    ylabel: str = "loss",
    limits: tuple[float, float] | None = None,
    ax: Any = None,
) -> Any:
    r"""Draw losses over a logarithmic λ, with tangents, and the way of an outer loop.

    A derivative by :math:`\theta=\ln\lambda` is the slope of a straight line here. A ring marks
    the smallest value of a loss that is larger at both ends.

    Parameters
    ----------
    lams : array, shape (n,)
    losses : dict
        Label to array of shape (n,); three at most.
    tangents : sequence of (λ, value, slope)
        Slopes by ln λ: hypergradients.
    path : pair of arrays, optional
        λ and loss of the iterates of an outer loop.
    reach : float
        How far a tangent is drawn to each side, in units of ln λ.
    limits : pair of floats, optional
        Ends of the vertical axis.
    """
    ax, p = _axes(ax), _numpy(lams)
    for (label, values), look in zip(losses.items(), _strokes(), strict=False):
        v = _same_length(label, _numpy(values), "lams", p.size)
        ax.semilogx(p, v, label=label, **look)
        if not np.isclose(np.nanmin(v), v[[0, -1]], rtol=1e-9).any():
            _mark_minimum(ax, p, v, look["color"])
    if path is not None:
        x, v = (_numpy(part) for part in path)
        v = _same_length("the losses of the path", v, "its lams", x.size)
        ax.plot(x, v, "D", color=COLORS[3], label="iterates")
    look = {"color": INK, "marker": "o", "markevery": [1], "markersize": 7, "linewidth": 1.4}
    for i, (lam, value, slope) in enumerate(tangents):
        theta = np.array([-reach, 0.0, reach])
        label = "_tangent" if i else "tangent"
        ax.plot(lam * np.exp(theta), value + slope * theta, label=label, zorder=4, **look)
    ax.set_xlim(p[0], p[-1])
    ax.set_ylim(limits)
    _plain_numbers(ax.xaxis)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _legend_row(ax)
    return ax


@_styled
def plot_hypergradient_errors(
    steps: Array,
    errors: Mapping[str, Array],
    *,
    bounds: Mapping[str, Array] | None = None,
    xlabel: str = "inner steps $K$",
    ylabel: str = "error of the hypergradient",
    ax: Any = None,
) -> Any:
    """Draw errors of hypergradients over the work spent on them, both logarithmic.

    Parameters
    ----------
    steps : array, shape (n,)
        Positive.
    errors : dict
        Label to array of shape (n,). Zeros have no place on the scale and are left out.
    bounds : dict, optional
        The same for bounds, drawn gray.
    """
    ax, k = _axes(ax), _numpy(steps)
    for (label, values), look in zip(errors.items(), _strokes(), strict=False):
        e = _same_length(label, _numpy(values), "steps", k.size)
        ax.loglog(k, np.where(e > 0, e, np.nan), label=label, **look)
    for (label, values), stroke in zip((bounds or {}).items(), cycle(_THIN), strict=False):
        bound = _same_length(label, _numpy(values), "steps", k.size)
        ax.loglog(k, bound, color=INK, linestyle=stroke, linewidth=1, label=label)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _legend_row(ax)
    return ax


@_styled
def plot_adaptation(
    grid: Array,
    functions: Mapping[str, Array],
    *,
    support: tuple[Array, Array] | None = None,
    truth: Array | None = None,
    xlabel: str = "$x$",
    ax: Any = None,
) -> Any:
    """Draw functions before and after adaptation, and the points that they were adapted to.

    Parameters
    ----------
    grid : array, shape (n,)
    functions : dict
        Label to array of shape (n,); three at most.
    support : pair of arrays, optional
        Inputs and targets of the support set.
    truth : array, shape (n,), optional
        Drawn as a broad gray line.
    """
    ax = plot_signals(grid, functions, truth=truth, xlabel=xlabel, ax=ax)
    if support is not None:
        x, y = (_numpy(part).ravel() for part in support)
        y = _same_length("the targets", y, "the inputs", x.size)
        ax.plot(x, y, "o", color=COLORS[3], markersize=5.5, label="support", zorder=3)
    _legend_row(ax)
    return ax
