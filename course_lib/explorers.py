"""Sliders that move a figure, in a notebook and in the built book without a kernel.

This is the only module that imports ipywidgets. An explorer draws one picture for every stop of
its slider beforehand, each with a text that says what is to be seen; the browser shows the one
that belongs to the slider's position.
"""

import base64
import html
import io
from collections.abc import Callable, Sequence
from functools import cache
from itertools import islice
from typing import Any

import numpy as np

from . import (
    bilevel,
    choice,
    filters,
    functionals,
    implicit,
    linear,
    meta,
    operators,
    plotting,
    problems,
    proximal,
)
from .arrays import Array, as_count, norm, to_float
from .iterate import run

__all__ = [
    "adaptation",
    "admm_penalty",
    "amplification",
    "bias_variance",
    "claimed_noise",
    "clipped_mean",
    "contact",
    "corner_drift",
    "difference_step",
    "directions",
    "discrepancy_level",
    "explore",
    "filter_factors",
    "golden_section",
    "grid_size",
    "inner_tolerance",
    "inverse_crime",
    "ista_iterates",
    "landweber_vs_tikhonov",
    "lasso_kink",
    "lasso_path",
    "learned_weights",
    "measurements",
    "momentum",
    "neumann_terms",
    "noise_correlation",
    "outer_objective",
    "penalties",
    "picard_noise",
    "posterior_band",
    "prior_width",
    "step_horizon",
    "three_averages",
    "three_iterations",
    "tikhonov_picture",
    "tikhonov_signal",
    "tournament_noise",
    "truncation",
    "tv_picture",
    "two_beliefs",
    "unrolling",
]


def explore(
    values: Sequence[Any],
    draw: Callable[[Any], Any],
    *,
    name: str,
    label: Callable[[Any], str] = str,
    describe: Callable[[Any], str],
    initial: int = 0,
) -> Any:
    """Return a slider over ``values`` that shows the figure drawn for each.

    Parameters
    ----------
    values : sequence
        The stops of the slider; nine or so keep the page small.
    draw : callable
        Value to axes, as the functions of :mod:`course_lib.plotting` return them. All figures
        should have one size and one scale, so that only what the lever moves is seen to move.
    name : str
        What the slider sets; it stands to the left of it.
    label : callable
        Value to the text on the right of the slider.
    describe : callable
        Value to the alternative text of its figure: what is to be seen, in a sentence.
    initial : int
        Index of the stop shown first.

    Returns
    -------
    ipywidgets.VBox

    Examples
    --------
    >>> import numpy as np
    >>> t = np.linspace(0, 1, 50)
    >>> box = explore(
    ...     [1, 2, 3],
    ...     lambda k: plotting.plot_signals(t, {"sine": np.sin(k * t)}),
    ...     name="frequency",
    ...     describe=lambda k: f"A sine of frequency {k}.",
    ... )
    >>> [type(part).__name__ for part in box.children]
    ['SelectionSlider', 'Stack']
    """
    import ipywidgets as widgets

    values = list(values)
    if len(values) < 2:
        raise ValueError(f"values must offer a choice: expected at least two, got {len(values)}")
    initial = as_count(initial, "initial", maximum=len(values) - 1)
    frames = [
        widgets.HTML(_image(_png(plotting.pixels(draw(value))), describe(value)))
        for value in values
    ]
    slider = widgets.SelectionSlider(
        options=[(label(value), i) for i, value in enumerate(values)],
        index=initial,
        description=name,
        style={"description_width": "initial", "handle_color": plotting.INK},
        layout={"width": "100%", "max_width": "40em"},
    )
    stack = widgets.Stack(frames, selected_index=initial)
    # The link lives in the browser: it works in a page that no kernel stands behind.
    widgets.jslink((slider, "index"), (stack, "selected_index"))
    return widgets.VBox([slider, stack])


def _png(pixels: np.ndarray) -> bytes:
    """Return a picture (rows, columns, RGBA) as a PNG with a palette."""
    from PIL import Image

    palette, index = _palette(pixels)
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes(), "RGBA")
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _palette(pixels: np.ndarray, size: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return a palette, and for each pixel the index of the nearest of its colours.

    The eight most frequent colours are kept; then, again and again, the one that is farthest
    from all chosen so far.
    """
    packed = np.ascontiguousarray(pixels).view(np.uint32).ravel()
    packed, index, count = np.unique(packed, return_inverse=True, return_counts=True)
    colors = packed.view(np.uint8).reshape(-1, 4)
    # Colours are as far apart as they are seen: red, green and blue count by their alpha.
    seen = colors * np.hstack([colors[:, [3, 3, 3]] / 255, np.ones((len(colors), 1))])
    chosen = list(np.argsort(-count, kind="stable")[:8])
    distances = [np.square(seen - seen[i]).sum(axis=1) for i in chosen]
    while len(chosen) < min(size, len(colors)):
        chosen.append(int(np.min(distances, axis=0).argmax()))
        distances.append(np.square(seen - seen[chosen[-1]]).sum(axis=1))
    nearest = np.argmin(distances, axis=0).astype(np.uint8)
    return colors[chosen], nearest[index].reshape(pixels.shape[:2])


def _image(png: bytes, description: str) -> str:
    source = base64.b64encode(png).decode("ascii")
    return (
        f'<img alt="{html.escape(description)}" style="max-width: 100%; height: auto" '
        f'src="data:image/png;base64,{source}">'
    )


def _relative_error(x: Any, problem: problems.Problem) -> float:
    return to_float(norm(x - problem.x_true) / norm(problem.x_true))


def tv_picture() -> Any:
    """Return a slider for λ: a noisy picture, denoised with total variation."""
    truth = problems.picture("camera", 96)
    y = truth + 0.1 * np.random.default_rng(0).standard_normal(truth.shape)
    lams = [0.01, 0.02, 0.04, 0.07, 0.12, 0.2, 0.4, 1.0, 4.0]

    @cache
    def denoised(lam: float) -> tuple[np.ndarray, float]:
        x = proximal.prox_tv(y, lam).x
        return x, float(np.linalg.norm(x - truth) / np.linalg.norm(truth))

    def draw(lam: float) -> Any:
        x = denoised(lam)[0]
        return plotting.show_pictures({"noisy": y, f"λ = {lam:g}": x}, width=4.6)

    def describe(lam: float) -> str:
        return (
            f"A noisy photograph and its denoised version with λ = {lam:g}; relative error "
            f"{denoised(lam)[1]:.3f}."
        )

    return explore(lams, draw, name="λ", label="{:g}".format, describe=describe, initial=0)


def tikhonov_picture() -> Any:
    """Return a slider for λ beside a blurred page and its Tikhonov reconstruction."""
    problem = problems.deblurring("page", size=(96, 144), noise=0.01)
    lams = [10.0**k for k in range(-8, 1)]
    spectrum = filters.decompose(problem.A)
    found = {
        lam: filters.filtered(spectrum, problem.y, filters.tikhonov_factors(spectrum.s, lam))
        for lam in lams
    }
    errors = {lam: _relative_error(x, problem) for lam, x in found.items()}
    best = min(errors, key=errors.get)

    def describe(lam: float) -> str:
        seen = "amplified noise covers the letters" if lam < best else "the letters stay blurred"
        if errors[lam] < 1.2 * errors[best]:
            seen = "the letters can be read"
        return (
            f"A blurred page, and its Tikhonov reconstruction with λ = {lam:.0e}: {seen}, "
            f"relative error {errors[lam]:.2g}."
        )

    def draw(lam: float) -> Any:
        title = f"Tikhonov, relative error {errors[lam]:.2f}"
        return plotting.show_pictures({"data": problem.y, title: found[lam]})

    return explore(
        lams, draw, name="λ", label="{:.0e}".format, describe=describe, initial=lams.index(best)
    )


def filter_factors() -> Any:
    """Return a slider for the cut-off that Tikhonov, TSVD and Landweber filters share.

    At cut-off c, Tikhonov has λ = c², truncation keeps σ ≥ c, and Landweber takes 1/c² steps
    with η = 1.
    """
    s = np.logspace(-4, 0, 201)

    def draw(cut: float) -> Any:
        factors = {
            "Tikhonov": filters.tikhonov_factors(s, cut**2),
            "truncated SVD": filters.tsvd_factors(s, int((s >= 0.999 * cut).sum())),
            "Landweber": filters.landweber_factors(s, 1.0, round(cut**-2)),
        }
        ax = plotting.plot_factors(s, factors)
        ax.axvline(cut, color=plotting.INK, linewidth=0.8, zorder=0)
        ax.set_xlabel(rf"singular value $\sigma$   ({shared(cut)})")
        return ax

    def shared(cut: float) -> str:
        return f"λ = {cut**2:.0e}, {cut**-2:.0e} steps"

    def describe(cut: float) -> str:
        return (
            f"Filter factors over the singular values, cut-off {cut:.1g}, {shared(cut)}: all "
            "three are near 0 well below the cut-off and near 1 well above it. The truncated SVD "
            "jumps there, Landweber's factors lie above Tikhonov's everywhere."
        )

    cuts = [10 ** (-k / 2) for k in range(1, 7)]
    return explore(cuts, draw, name="cut-off", label="{:.1g}".format, describe=describe, initial=2)


def landweber_vs_tikhonov() -> Any:
    """Return a slider for Landweber's steps k beside Tikhonov's solution with λ = 1/(ηk)."""
    problem, step = problems.blur_1d(noise=0.03), 1.0
    ks = [1, 3, 10, 30, 100, 1000, 10_000]
    spectrum = filters.decompose(problem.A)

    @cache
    def pair(k: int) -> dict[str, Any]:
        # Both by their filters: k steps of Landweber from zero are exactly this filter.
        factors = {
            "Landweber": filters.landweber_factors(spectrum.s, step, k),
            "Tikhonov": filters.tikhonov_factors(spectrum.s, 1 / (step * k)),
        }
        return {m: filters.filtered(spectrum, problem.y, phi) for m, phi in factors.items()}

    def draw(k: int) -> Any:
        ax = plotting.plot_signals(problem.grid, pair(k), truth=problem.x_true)
        ax.set_ylim(-0.6, 1.5)
        return ax

    def describe(k: int) -> str:
        x = pair(k)
        errors = {method: _relative_error(x[method], problem) for method in x}
        apart = to_float(norm(x["Landweber"] - x["Tikhonov"]) / norm(x["Tikhonov"]))
        return (
            f"The signal after {k} steps of Landweber, relative error {errors['Landweber']:.2f}, "
            f"and Tikhonov's with λ = {1 / (step * k):.1g}, relative error "
            f"{errors['Tikhonov']:.2f}. They differ by {100 * apart:.0f} percent in norm."
        )

    return explore(ks, draw, name="steps k", describe=describe, initial=4)


def ista_iterates() -> Any:
    """Return a slider for the step number of ISTA: the iterate beside the truth."""
    problem = problems.compressed_sensing(40, 100, 8)
    lam = 0.1 * to_float(abs(problem.A.H @ problem.y).max())
    f = functionals.least_squares(problem.A, problem.y)
    steps = [0, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    states = proximal.ista(
        f, lam * functionals.l1(), np.zeros(100), step=0.98 / problem.A.norm() ** 2
    )
    iterates = {k: state.x for k, state in zip(range(501), states, strict=False) if k in steps}

    def draw(k: int) -> Any:
        ax = plotting.plot_spikes(
            np.arange(1, 101), {"ISTA": iterates[k]}, truth=problem.x_true, xlabel="index $j$"
        )
        ax.set_ylim(-2.2, 2.2)
        return ax

    def describe(k: int) -> str:
        x = iterates[k]
        return (
            f"After {k} steps {np.count_nonzero(x)} entries are not zero; relative error "
            f"{_relative_error(x, problem):.2f}."
        )

    return explore(steps, draw, name="steps", describe=describe, initial=4)


def lasso_path() -> Any:
    """Return a slider for λ of the LASSO: the solution, and the correlations that certify it."""
    problem = problems.compressed_sensing(40, 100, 8)
    largest = to_float(abs(problem.A.H @ problem.y).max())
    index = np.arange(1, 101)

    @cache
    def solve(share: float) -> Any:
        return proximal.lasso(problem.A, problem.y, share * largest).state

    def draw(share: float) -> Any:
        state = solve(share)
        axes = plotting.figure(2, 1, height=4.0, sharex=True)[1]
        plotting.plot_spikes(index, {"LASSO": state.x}, truth=problem.x_true, xlabel="", ax=axes[0])
        axes[0].set_ylim(-2.2, 2.2)
        plotting.plot_spikes(index, {"$a_j^T r/\\lambda$": state.c / (share * largest)}, ax=axes[1])
        for level in (-1, 1):
            axes[1].axhline(level, color=plotting.COLORS[1], linestyle="--", linewidth=1)
        axes[1].set_ylim(-1.25, 1.25)
        axes[1].set_xlabel("index $j$")
        return axes

    def describe(share: float) -> str:
        state = solve(share)
        return (
            f"With λ = {share:g} λmax the solution has {int(state.support.sum())} entries that are "
            "not zero. Below it the correlations divided by λ: they reach 1 or −1 exactly at "
            "these entries and stay between elsewhere."
        )

    shares = [1.0, 0.9, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02, 0.01, 1e-3]
    return explore(
        shares,
        draw,
        name="λ / λmax",
        label="{:g}".format,
        describe=describe,
        initial=4,
    )


def measurements() -> Any:
    """Return a slider for the number of measurements: recovery of a sparse vector from them."""
    counts = [10, 15, 20, 25, 28, 30, 32, 35, 40, 50, 60]

    @cache
    def solve(m: int) -> tuple[np.ndarray, float]:
        problem = problems.compressed_sensing(m, 100, 8, noise=0.0)
        lam = 1e-5 * to_float(abs(problem.A.H @ problem.y).max())
        x = proximal.lasso(problem.A, problem.y, lam, rtol=1e-7).x
        return x, _relative_error(x, problem)

    truth = problems.compressed_sensing(10, 100, 8).x_true

    def draw(m: int) -> Any:
        ax = plotting.plot_spikes(
            np.arange(1, 101),
            {"smallest $\\ell_1$ norm": solve(m)[0]},
            truth=truth,
            xlabel="index $j$",
        )
        ax.set_ylim(-2.4, 2.4)
        return ax

    def describe(m: int) -> str:
        x, error = solve(m)
        return (
            f"{m} measurements: {np.count_nonzero(np.abs(x) > 1e-3)} entries above 0.001, relative "
            f"error {error:.1e}."
        )

    return explore(counts, draw, name="measurements", describe=describe, initial=2)


def momentum() -> Any:
    """Return a slider for the condition number: the way along a valley, with and without FISTA."""
    steps = np.arange(151)

    @cache
    def along(kappa: int) -> dict[str, np.ndarray]:
        f = functionals.least_squares(np.diag([1 / np.sqrt(kappa), 1.0]), np.zeros(2))
        methods = {"gradient descent": proximal.ista, "FISTA": proximal.fista}
        return {
            name: np.array(
                [s.x[0] for s in islice(method(f, functionals.box(), np.ones(2), step=1.0), 151)]
            )
            for name, method in methods.items()
        }

    def draw(kappa: int) -> Any:
        ax = plotting.plot_signals(steps, along(kappa), xlabel="step $k$")
        ax.axhline(0, color=plotting.INK, linewidth=0.7)
        ax.set_ylim(-0.65, 1.05)
        ax.set_ylabel("coordinate along the valley")
        return ax

    def describe(kappa: int) -> str:
        paths = along(kappa)
        ends = " and ".join(f"{name} {x[-1]:.3f}" for name, x in paths.items())
        turns = int((paths["FISTA"][1:] * paths["FISTA"][:-1] < 0).sum())
        return (
            f"Condition number {kappa}: coordinate after 150 steps: {ends}. FISTA has crossed the "
            f"minimizer {turns} times."
        )

    return explore(
        [1, 3, 10, 30, 100, 300, 1000], draw, name="condition number", describe=describe, initial=4
    )


def penalties(A: Any, y: Array, *, grid: Array, data_grid: Array, truth: Array) -> Any:
    r"""Return a slider for λ, shared by three penalties: on x, on its slope, and on its bend.

    Parameters
    ----------
    A : LinearOperator or array, shape (m, n)
    y : array, shape (m,)
    grid, data_grid : array
        Where x and y are sampled.
    truth : array, shape (n,)
    """
    n = truth.shape[0]
    choices = {
        "identity": None,
        "first difference": operators.difference(n),
        "second difference": operators.difference(n, order=2),
    }
    low, high = min(0.0, float(truth.min())), float(max(truth.max(), y.max()))
    margin = 0.08 * (high - low)

    @cache
    def solutions(lam: float) -> dict[str, Array]:
        return {name: filters.tikhonov(A, y, lam, D).x for name, D in choices.items()}

    def draw(lam: float) -> Any:
        ax = plotting.plot_signals(grid, solutions(lam), truth=truth, data=y, data_grid=data_grid)
        ax.set_ylim(low - margin, high + margin)
        return ax

    def describe(lam: float) -> str:
        spans = ", ".join(
            f"{name} from {x.min():.1f} to {x.max():.1f}" for name, x in solutions(lam).items()
        )
        return f"The data and three reconstructions with λ = {lam:.0e}. Their values: {spans}."

    lams = [1e-4, 1e-2, 1.0, 10.0, 100.0, 1e3, 1e4, 1e6, 1e8]
    return explore(lams, draw, name="λ", label="{:.0e}".format, describe=describe, initial=2)


def three_iterations() -> Any:
    """Return a slider for the steps k of Landweber's iteration, the ν-method and CGLS at once."""
    problem = problems.blur_1d()
    A, y, step = problem.A, problem.y, 1 / problem.A.norm() ** 2
    ks = [1, 3, 6, 10, 24, 40, 100]
    methods = {
        "Landweber": linear.landweber(A, y, step=step),
        "ν-method": linear.nu_method(A, y, step=step),
        "CGLS": linear.cgls(A, y),
    }
    iterates = {}
    for method, states in methods.items():
        kept = iterates[method] = []
        run(states, max_iter=ks[-1], callback=lambda k, state, kept=kept: kept.append(state.x))
    errors = {method: [_relative_error(x, problem) for x in xs] for method, xs in iterates.items()}

    def draw(k: int) -> Any:
        axes = plotting.figure(1, 3, height=2.6, sharey=True)[1]
        colors = plotting.COLORS
        for ax, (method, xs), color in zip(axes, iterates.items(), colors, strict=False):
            plotting.plot_signals(problem.grid, {method: xs[k]}, truth=problem.x_true, ax=ax)
            ax.get_legend().remove()
            ax.lines[-1].set_color(color)
            ax.set_title(f"{method}: error {errors[method][k]:.2f}", color=color)
        axes[0].set_ylim(-0.6, 1.6)
        return axes

    def describe(k: int) -> str:
        found = ", ".join(f"{method} {errors[method][k]:.2f}" for method in errors)
        steps = "1 step" if k == 1 else f"{k} steps"
        return f"The signal after {steps} of three iterations, with the relative errors {found}."

    return explore(ks, draw, name="steps k", describe=describe, initial=3)


def tikhonov_signal() -> Any:
    """Return a slider for λ: coefficients along the singular vectors beside the signal."""
    return _filtered_signal(
        [10.0**k for k in range(1, -7, -1)],
        lambda s, lam: filters.tikhonov_factors(s, lam),
        method="Tikhonov",
        name="λ",
        label="{:.0e}".format,
    )


def truncation() -> Any:
    """Return a slider for the number of terms: coefficients beside the truncated solution."""
    return _filtered_signal(
        [2, 5, 8, 12, 16, 20, 24, 28, 32, 36, 40],
        lambda s, rank: filters.tsvd_factors(s, rank),
        method="truncation",
        name="terms r",
        label=str,
    )


def _filtered_signal(
    values: Sequence[Any],
    factors: Callable[[Any, Any], Any],
    *,
    method: str,
    name: str,
    label: Callable[[Any], str],
) -> Any:
    problem = problems.blur_1d(64)
    spectrum = filters.decompose(problem.A)
    truth, naive = spectrum.V.T @ problem.x_true, spectrum.analyse(problem.y) / spectrum.s

    def found(value: Any) -> tuple[Any, Any, float]:
        phi = factors(spectrum.s, value)
        x = filters.filtered(spectrum, problem.y, phi)
        return phi, x, _relative_error(x, problem)

    def draw(value: Any) -> Any:
        phi, x, error = found(value)
        axes = plotting.figure(1, 2, height=2.8)[1]
        shown = {"naive": naive, "filtered": phi * naive}
        plotting.plot_coefficients(shown, truth=truth, ax=axes[0])
        axes[0].set_ylim(1e-4, 1e6)
        axes[0].set_xlabel(f"index $i$   (sum of the factors: {phi.sum():.1f})")
        plotting.plot_signals(problem.grid, {method: x}, truth=problem.x_true, ax=axes[1])
        axes[1].set_ylim(-0.6, 1.6)
        axes[1].set_xlabel(f"t   (relative error: {error:.2f})")
        return axes

    def describe(value: Any) -> str:
        phi, _, error = found(value)
        return (
            f"{name} = {label(value)}. Left, the coefficients of the solution by {method} among "
            f"those of the truth and of the naive inverse; the filter factors sum to "
            f"{phi.sum():.1f}. Right, the signal, with relative error {error:.2f}."
        )

    return explore(values, draw, name=name, label=label, describe=describe)


def admm_penalty() -> Any:
    """Return a slider for ρ of ADMM: both residuals, for a piecewise constant signal."""
    problem = problems.blocks(256)
    D = operators.difference(256)
    x_step = proximal.least_squares_step(np.eye(256), problem.y, D)
    rhos = [10.0**k for k in (-2, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3)]

    @cache
    def residuals(rho: float) -> dict[str, np.ndarray]:
        states = proximal.admm(x_step, 0.5 * functionals.l1(), D, np.zeros(256), rho=rho)
        norms = np.array([[to_float(norm(s.r)), to_float(norm(s.s))] for s in islice(states, 151)])
        return {"$\\Vert Kx-z\\Vert$": norms[:, 0], "$\\Vert s\\Vert$": norms[:, 1]}

    def draw(rho: float) -> Any:
        ax = plotting.plot_gaps(residuals(rho), ylabel="residuals")
        ax.set_ylim(1e-8, 1e3)
        return ax

    def describe(rho: float) -> str:
        first, second = (values[150] for values in residuals(rho).values())
        return f"ρ = {rho:.2g}: after 150 steps the residuals are {first:.0e} and {second:.0e}."

    return explore(rhos, draw, name="ρ", label="{:.2g}".format, describe=describe, initial=0)


def amplification() -> Any:
    """Return a slider for the frequency of a wave that changes the data by one thousandth.

    Beside the amplification of three operators stands the signal with that wave, for two
    integrations.
    """
    n, width = 512, 0.05
    signal = problems.blur_1d(n)
    t, x, A = signal.grid, signal.x_true, problems.deriv2(n).A
    frequency = np.geomspace(1, 64, 60)
    omega = 2 * np.pi * frequency
    gains = {
        "integration": omega,
        "two integrations": omega**2,
        "Gaussian blur": np.exp(np.minimum(0.5 * (omega * width) ** 2, 30)),
    }

    def height(periods: int) -> float:
        wave = np.sin(2 * np.pi * periods * t)
        return 1e-3 * to_float(norm(A @ x)) / to_float(norm(A @ wave))

    def draw(periods: int) -> Any:
        axes = plotting.figure(1, 2, height=2.9)[1]
        plotting.plot_amplification(frequency, gains, level=1e3, mark=periods, ax=axes[0])
        axes[0].set_ylim(0.7, 1e7)
        wave = height(periods) * np.sin(2 * np.pi * periods * t)
        plotting.plot_signals(t, {"with a wave": x + wave}, truth=x, ax=axes[1])
        axes[1].set_ylim(-2.5, 3.5)
        return axes

    def describe(periods: int) -> str:
        return (
            f"A wave with {periods} period{'s' * (periods > 1)}: for two integrations, a height of "
            f"{height(periods):.3f} changes the data of the signal by one thousandth. The signal "
            "itself has the height 1."
        )

    stops = [1, 2, 4, 8, 16, 24, 32]
    return explore(stops, draw, name="periods", describe=describe, initial=3)


def contact() -> Any:
    """Return a slider for the direction of the exact solution: where the ℓ1 ball is met."""
    M = np.array([[1.0, 0.35], [0.35, 0.7]])

    @cache
    def met(degrees: int) -> tuple[np.ndarray, np.ndarray]:
        angle = np.deg2rad(degrees)
        y = M @ (1.9 * np.array([np.cos(angle), np.sin(angle)]))
        f = functionals.least_squares(M, y)
        states = proximal.ista(f, functionals.l1_ball(1.0), np.zeros(2), step=0.6)
        return y, run(states, max_iter=500, check_every=500).x

    def draw(degrees: int) -> Any:
        y, x = met(degrees)
        ax = plotting.plot_contact(M, y, x, power=1, ax=plotting.figure(width=3.4, height=3.4)[1])
        ax.set_xlim(-1.7, 2.7)
        ax.set_ylim(-1.7, 2.7)
        return ax

    def describe(degrees: int) -> str:
        x = met(degrees)[1]
        zeros = int((np.abs(x) < 1e-6).sum())
        where = "at a corner" if zeros else "on an edge, both numbers are not zero"
        return f"The exact solution lies at {degrees} degrees; the ellipse meets the ball {where}."

    degrees = list(range(0, 181, 15))
    return explore(
        degrees, draw, name="direction", label="{}°".format, describe=describe, initial=2
    )


def difference_step() -> Any:
    """Return a slider for the step of a difference quotient of noisy positions."""
    n, delta = 1000, 1e-3
    t = (np.arange(n) + 0.5) / n
    truth = 1 - np.cos(4 * np.pi * t)
    noise = delta * np.random.default_rng(0).uniform(-1, 1, n)
    y = t - np.sin(4 * np.pi * t) / (4 * np.pi) + noise

    @cache
    def quotient(k: int) -> np.ndarray:
        return (y[2 * k :] - y[: -2 * k]) * n / (2 * k)

    def draw(k: int) -> Any:
        ax = plotting.plot_signals(t[k:-k], {"quotient": quotient(k)}, truth=truth[k:-k])
        ax.lines[0].set_zorder(3 if k < 7 else 1)  # the truth, above a rough curve
        ax.set_xlim(0, 1)
        ax.set_ylim(-1.1, 3.1)
        return ax

    def describe(k: int) -> str:
        error = np.abs(quotient(k) - truth[k:-k]).max()
        return (
            f"The difference quotient with step {k / n:.3f} beside the true speed: the largest "
            f"error is {error:.3f} metres a second."
        )

    stops = [1, 3, 7, 14, 27, 54, 80, 110]
    return explore(
        stops, draw, name="h", label=lambda k: f"{k / n:.3f}", describe=describe, initial=0
    )


def directions() -> Any:
    """Return a slider for the number of directions of a small tomograph with exact data."""

    def smallest(k: int) -> tuple[np.ndarray, Any]:
        problem = problems.tomography(size=24, angles=k, noise=0.0)
        spectrum = filters.decompose(problem.A)
        seen = 1.0 * (spectrum.s > 1e-10 * spectrum.s[0])
        return filters.filtered(spectrum, problem.y, seen), problem

    def draw(k: int) -> Any:
        x, problem = smallest(k)
        return plotting.show_pictures({"truth": problem.x_true, "A†y": x}, limits=(0, 1), width=5)

    def describe(k: int) -> str:
        x, problem = smallest(k)
        return (
            f"The phantom, and the smallest picture with its shadows in {k} directions; the "
            f"relative error is {_relative_error(x, problem):.2f}."
        )

    stops = [1, 2, 4, 8, 12, 16, 24, 32]
    return explore(stops, draw, name="directions", describe=describe, initial=3)


def grid_size() -> Any:
    """Return a slider for the number of points on which three integral operators are sampled."""
    width, i = 0.05, np.arange(1, 129)
    exact = {
        "integration": 1 / ((i - 0.5) * np.pi),
        "two integrations": 1 / (i * np.pi) ** 2,
        "Gaussian blur": np.exp(-0.5 * (2 * np.pi * (i // 2) * width) ** 2),
    }

    def values(n: int) -> dict[str, np.ndarray]:
        blur = operators.convolution(problems.psf_gaussian(width * n, ndim=1), n)
        return {
            "integration": filters.decompose(operators.integration(n)).s,
            "two integrations": filters.decompose(problems.deriv2(n).A).s,
            "Gaussian blur": np.sort(filters.decompose(blur).s)[::-1],
        }

    def draw(n: int) -> Any:
        ax = plotting.plot_coefficients(values(n))
        for s, color in zip(exact.values(), plotting.COLORS, strict=False):
            ax.semilogy(i, s, color=color, linewidth=0.8, zorder=0)
        ax.set_xlim(0, 130)
        ax.set_ylim(1e-8, 3)
        ax.set_ylabel(r"$\sigma_i$")
        return ax

    def describe(n: int) -> str:
        s = values(n)
        return (
            f"Singular values of three integral operators on {n} points. The smallest of two "
            f"integrations is {s['two integrations'][-1]:.1e}, where the exact one is "
            f"{exact['two integrations'][n - 1]:.1e}."
        )

    return explore([8, 12, 16, 32, 64, 128], draw, name="points", describe=describe, initial=2)


def discrepancy_level() -> Any:
    """Return a slider for the noise level that the discrepancy principle is told."""
    problem = problems.heat(64, noise=1e-2)
    fit = choice.smoother(problem.A).fit(problem.y)
    lams = np.geomspace(1e-10, 1e0, 120)
    residuals = fit.norms(lams)[0]

    @cache
    def chosen(factor: float) -> choice.Choice:
        level = factor * problem.delta
        return choice.discrepancy(fit.smoother, problem.y, level, tau=1.0, grid=lams)

    def draw(factor: float) -> Any:
        axes, found = plotting.figure(1, 2, height=2.9)[1], chosen(factor)
        axes[0].loglog(lams, residuals / problem.delta, color=plotting.COLORS[0])
        axes[0].axhline(factor, color=plotting.COLORS[1], linewidth=1)
        axes[0].plot(found.lam, factor, "o", color=plotting.COLORS[1], markersize=7)
        axes[0].set_xlim(lams[0], lams[-1])
        axes[0].set_ylim(0.1, 200)
        axes[0].set_xlabel(r"$\lambda$")
        axes[0].set_ylabel(r"residual norm over $\sigma_e\sqrt{m}$")
        plotting.plot_signals(
            problem.grid, {"discrepancy": found.x}, truth=problem.x_true, ax=axes[1]
        )
        axes[1].set_ylim(-0.6, 1.5)
        axes[1].set_xlabel(f"$t$   (relative error {_relative_error(found.x, problem):.2f})")
        return axes

    def describe(factor: float) -> str:
        found = chosen(factor)
        return (
            f"The residual norm has to be {factor:g} times the expected noise: the curve meets "
            f"this level at λ = {found.lam:.1e}, and the solution has the relative error "
            f"{_relative_error(found.x, problem):.2f}."
        )

    stops = [0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.3, 1.6, 2.0, 3.0, 10.0]
    return explore(stops, draw, name="factor", label="{:g}".format, describe=describe, initial=4)


def tournament_noise() -> Any:
    """Return a slider for the noise level of a small race of four rules on three problems."""
    made = {"phillips": problems.phillips, "heat": problems.heat, "shaw": problems.shaw}
    races = {name: problem(32) for name, problem in made.items()}
    smoothers = {name: choice.smoother(race.A) for name, race in races.items()}
    grids = {name: s.fit(races[name].y).grid()[::5] for name, s in smoothers.items()}
    rules = {
        "gcv": lambda S, p, grid: choice.gcv(S, p.y, grid=grid),
        "sure": lambda S, p, grid: choice.sure(S, p.y, p.noise_std, grid=grid),
        "discrepancy": lambda S, p, grid: choice.discrepancy(S, p.y, p.delta, grid=grid),
        "l_curve": lambda S, p, grid: choice.l_curve(S, p.y, grid=grid),
    }

    def ratios(name: str, noise: float) -> dict[str, np.ndarray]:
        errors = []
        for seed in range(10):
            problem, grid = races[name].with_noise(noise, seed=seed), grids[name]
            best = choice.oracle(smoothers[name], problem.y, problem.x_true, grid=grid)
            found = [best, *(rule(smoothers[name], problem, grid) for rule in rules.values())]
            errors.append([_relative_error(a.x, problem) for a in found])
        oracle, *others = np.array(errors).T
        return {rule: e / oracle for rule, e in zip(rules, others, strict=True)}

    levels = [1e-1, 3e-2, 1e-2, 1e-3, 1e-4]
    results = {noise: {name: ratios(name, noise) for name in races} for noise in levels}

    def draw(noise: float) -> Any:
        axes = plotting.figure(1, 3, height=2.0, sharey=True)[1]
        for ax, (name, result) in zip(axes, results[noise].items(), strict=True):
            plotting.plot_ratios(result, title=name, ax=ax)
        axes[1].set_xlabel("error / error of the oracle")
        return axes

    def middle(r: np.ndarray) -> float:
        return float(np.quantile(r, 0.5, method="inverted_cdf"))

    def describe(noise: float) -> str:
        medians = "; ".join(
            f"{name}: " + ", ".join(f"{rule} {middle(r):.2g}" for rule, r in result.items())
            for name, result in results[noise].items()
        )
        return f"Errors over the error of the oracle with noise {noise:.0e}. Medians of {medians}."

    return explore(levels, draw, name="noise", label="{:.0e}".format, describe=describe, initial=2)


def golden_section() -> Any:
    """Return a slider for the steps of golden section on a criterion with two minima."""
    problem = problems.heat(64, noise=1e-1, seed=33)
    lams, visited = np.geomspace(1e-12, 1e4, 200), []
    seen = choice.gcv(problem.A, problem.y, grid=lams)
    curve = np.log(seen.values)

    def value(theta: float) -> float:
        visited.append(theta)
        return float(np.interp(theta, np.log(lams), curve))

    choice.golden_section(value, np.log(lams[0]), np.log(lams[-1]))

    def draw(count: int) -> Any:
        at = np.exp(visited[:count])
        heights = np.exp(np.interp(visited[:count], np.log(lams), curve))
        ax = plotting.plot_error(lams, {"GCV": seen.values / seen.values.min()}, ylabel="GCV")
        ax.plot(at, heights / seen.values.min(), "s", color=plotting.COLORS[1], markersize=6)
        ax.plot(at[-1], heights[-1] / seen.values.min(), "s", color=plotting.INK, markersize=9)
        ax.set_ylim(0.9, 12)
        return ax

    def describe(count: int) -> str:
        return (
            f"The curve of GCV over λ with two valleys, and the first {count} points that golden "
            f"section looked at; the last one is λ = {np.exp(visited[count - 1]):.1e}."
        )

    stops = list(range(2, 9))
    return explore(stops, draw, name="values computed", describe=describe, initial=0)


def picard_noise() -> Any:
    """Return a slider for the noise of the gravity problem, seen in its Picard plot."""
    exact = problems.gravity(64, noise=0.0)
    spectrum = filters.decompose(exact.A)
    size = np.abs(spectrum.U.T @ exact.y_exact)

    def draw(noise: float) -> Any:
        problem = exact.with_noise(noise, seed=0)
        coefficients = spectrum.U.T @ problem.y
        ax = plotting.plot_picard(spectrum.s, coefficients, noise_std=problem.noise_std)
        ax.set_ylim(1e-14, 1e14)
        return ax

    def describe(noise: float) -> str:
        usable = int((size > exact.with_noise(noise).noise_std).sum())
        return (
            f"Picard plot of the gravity problem with noise {noise:.0e}: the coefficients fall "
            f"over {usable} indices and level off at the noise; the quotients rise from there on."
        )

    levels = [10.0**-k for k in range(1, 8)]
    return explore(levels, draw, name="noise", label="{:.0e}".format, describe=describe, initial=2)


def inverse_crime() -> Any:
    """Return a slider for the noise of a small tomograph, with and without the inverse crime.

    Both pictures are Tikhonov's, with the λ that brings them nearest to the truth.
    """
    made = {
        name: problems.tomography(size=32, angles=40, noise=0.0, data=data)
        for name, data in (("simulated with A", "model"), ("finer phantom", "scene"))
    }
    spectrum = filters.decompose(made["finer phantom"].A)

    @cache
    def best(noise: float) -> dict[str, tuple[float, np.ndarray]]:
        found = {}
        for name, exact in made.items():
            problem = exact.with_noise(noise, seed=0)
            solutions = (
                filters.filtered(spectrum, problem.y, filters.tikhonov_factors(spectrum.s, lam))
                for lam in 10.0 ** np.arange(-8, 4, 0.5)
            )
            found[name] = min(((_relative_error(x, problem), x) for x in solutions), key=first)
        return found

    def first(pair: tuple[float, np.ndarray]) -> float:
        return pair[0]

    def draw(noise: float) -> Any:
        pictures = {name: x for name, (_, x) in best(noise).items()}
        return plotting.show_pictures(pictures, limits=(0, 1), width=5)

    def describe(noise: float) -> str:
        errors = [error for error, _ in best(noise).values()]
        return (
            f"Two reconstructions with noise {noise:.0e}: relative error {errors[0]:.3f} for data "
            f"simulated with the same matrix, {errors[1]:.3f} for data of a finer phantom."
        )

    levels = [1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 1e-1]
    return explore(levels, draw, name="noise", label="{:.0e}".format, describe=describe, initial=1)


def two_beliefs() -> Any:
    """Return a slider for λ: small differences (quadratic) and few changes (ℓ1)."""
    problem = problems.blur_1d(128)
    A, y, D = problem.A, problem.y, operators.difference(128)
    x_step = proximal.least_squares_step(A, y, D)

    @cache
    def solve(lam: float) -> dict[str, np.ndarray]:
        rho = max(0.01, lam)  # The dual variable grows with λ; a small ρ would not let it arrive.
        states = proximal.admm(x_step, lam * functionals.l1(), D, np.zeros(128), rho=rho)
        return {
            "small differences": filters.tikhonov(A, y, lam, D).x,
            "few changes": run(states, max_iter=2000, check_every=2000).x,
        }

    def draw(lam: float) -> Any:
        ax = plotting.plot_signals(problem.grid, solve(lam), truth=problem.x_true)
        ax.set_ylim(-0.4, 1.5)
        return ax

    def describe(lam: float) -> str:
        errors = [_relative_error(x, problem) for x in solve(lam).values()]
        return (
            f"Two reconstructions with λ = {lam:.0e} beside the truth: small differences, relative "
            f"error {errors[0]:.2f}, and few changes, relative error {errors[1]:.2f}."
        )

    lams = [10.0**k for k in range(-5, 5)]
    return explore(lams, draw, name="λ", label="{:.0e}".format, describe=describe, initial=2)


def claimed_noise() -> Any:
    """Return a slider for the noise level that SURE is told: its curve beside the solution."""
    problem = problems.blur_1d(128, noise=5e-2)
    fits, m = choice.smoother(problem.A), problem.y.shape[0]
    fit, grid = fits.fit(problem.y), np.geomspace(1e-6, 1.0, 60)
    solutions = [fit.solve(lam) for lam in grid]
    loss = np.array([norm(problem.A @ x - problem.y_exact) ** 2 for x in solutions])
    scale = m * problem.noise_std**2

    @cache
    def chosen(factor: float) -> choice.Choice:
        return choice.sure(fits, problem.y, factor * problem.noise_std, grid=grid)

    def draw(factor: float) -> Any:
        axes, found = plotting.figure(1, 2, height=2.9)[1], chosen(factor)
        # What does not depend on λ is left out: it would move the curve out of the frame.
        curves = {"SURE, shifted": found.values - found.values.min(), "prediction error²": loss}
        plotting.plot_criteria(
            grid,
            {name: v / scale for name, v in curves.items()},
            ylabel=r"in units of $m\sigma_e^2$",
            limits=(-0.1, 1.5),
            ax=axes[0],
        )
        plotting.plot_signals(
            problem.grid, {"chosen by SURE": found.x}, truth=problem.x_true, ax=axes[1]
        )
        axes[1].set_ylim(-1.0, 2.0)
        axes[1].set_xlabel(f"$t$   (relative error {_relative_error(found.x, problem):.2f})")
        return axes

    def describe(factor: float) -> str:
        found = chosen(factor)
        return (
            f"SURE is told {factor:g} times the standard deviation of the noise: it chooses "
            f"λ = {found.lam:.1e}, and the solution has the relative error "
            f"{_relative_error(found.x, problem):.2f}."
        )

    stops = [0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0]
    return explore(
        stops, draw, name="claimed over true", label="{:g}".format, describe=describe, initial=5
    )


def corner_drift() -> Any:
    """Return a slider for the noise level δ: the L-curve of a smooth problem beside the error."""
    n = 2000
    i = np.arange(1.0, n + 1)
    s, x_true = i**-2, i**-4
    fits = choice.Smoother(operators.diagonal(s), s, np.ones(n), lambda y: y, lambda w, y: w, None)
    e = np.random.default_rng(0).standard_normal(n)
    e /= np.linalg.norm(e)
    grid, size = np.geomspace(1e-14, 10, 100), np.linalg.norm(x_true)

    @cache
    def look(delta: float) -> tuple[choice.Fit, choice.Choice, choice.Choice, np.ndarray]:
        fit = fits.fit(s * x_true + delta * e)
        best, corner = choice.oracle(fits, fit.y, x_true, grid=grid), choice.l_curve(fits, fit.y)
        return fit, best, corner, best.values / size

    def error(found: choice.Choice) -> float:
        return float(np.linalg.norm(found.x - x_true) / size)

    def draw(delta: float) -> Any:
        fit, best, corner, errors = look(delta)
        axes = plotting.figure(1, 2, height=2.9)[1]
        points = {
            name: np.concatenate(fit.norms(found.lam))
            for name, found in (("corner", corner), ("best", best))
        }
        plotting.plot_l_curve(*fit.norms(grid), points=points, ax=axes[0])
        axes[0].set_xlim(1e-7, 3)
        axes[0].set_ylim(0.3, 30)
        plotting.plot_error(grid, {"_error": errors}, ax=axes[1])
        axes[1].plot(corner.lam, error(corner), "o", color=plotting.COLORS[1], markersize=8)
        axes[1].set_ylim(1e-6, 1e2)
        return axes

    def describe(delta: float) -> str:
        _, best, corner, errors = look(delta)
        return (
            f"δ = {delta:.0e}. Left the L-curve, with its corner and the best point; right the "
            f"error over λ. The corner has λ = {corner.lam:.1e} and relative error "
            f"{error(corner):.2g}, the best λ is {best.lam:.1e} with {errors.min():.1e}."
        )

    deltas = [10.0**-k for k in range(1, 7)]
    return explore(deltas, draw, name="δ", label="{:.0e}".format, describe=describe)


def posterior_band() -> Any:
    """Return a slider for the precision of a Gaussian prior: posterior mean, and its error band."""
    problem, D = problems.blur_1d(64, noise=2e-2), operators.difference(64, boundary="zero")
    A, penalty = problem.A.to_dense(), D.to_dense().T @ D.to_dense()

    @cache
    def band(precision: float) -> tuple[np.ndarray, np.ndarray]:
        lam = problem.noise_std**2 * precision
        covariance = problem.noise_std**2 * np.linalg.inv(A.T @ A + lam * penalty)
        return filters.tikhonov(problem.A, problem.y, lam, D).x, 2 * np.sqrt(np.diag(covariance))

    def draw(precision: float) -> Any:
        x, width = band(precision)
        ax = plotting.plot_signals(problem.grid, {"mean": x}, truth=problem.x_true)
        for edge in (x - width, x + width):
            ax.plot(problem.grid, edge, color=plotting.INK, linewidth=0.8)
        ax.set_ylim(-1.0, 2.0)
        return ax

    def describe(precision: float) -> str:
        x, width = band(precision)
        share = np.mean(np.abs(problem.x_true - x) <= width)
        return (
            f"Posterior mean and band for prior precision {precision:g}: the band is "
            f"{width.mean():.2f} wide on each side and contains {100 * share:.0f} percent of the "
            "points of the truth."
        )

    stops = [1.0, 10.0, 60.0, 300.0, 2000.0, 20_000.0, 200_000.0]
    return explore(stops, draw, name="precision", label="{:g}".format, describe=describe, initial=2)


def bias_variance() -> Any:
    """Return a slider for λ: solutions for eight draws of the noise, beside bias² and variance."""
    problem = problems.shaw(32, noise=1e-2)
    fits, spectrum = choice.smoother(problem.A), filters.decompose(problem.A)
    exact, s = fits.fit(problem.y_exact), spectrum.s[: spectrum.rank]
    data = [problem.with_noise(1e-2, seed=seed).y for seed in range(8)]
    scale = to_float(norm(problem.x_true)) ** 2
    lams = np.geomspace(1e-6, 1e2, 33)

    def parts(lam: float) -> tuple[float, float]:
        spread = problem.noise_std**2 * np.sum((s / (s**2 + lam)) ** 2)
        return to_float(norm(exact.solve(lam) - problem.x_true)) ** 2 / scale, spread / scale

    bias, variance = np.transpose([parts(lam) for lam in lams])

    def draw(lam: float) -> Any:
        axes = plotting.figure(1, 2, height=2.9)[1]
        draws = np.array([fits.fit(y).solve(lam) for y in data])
        plotting.plot_draws(problem.grid, draws, truth=problem.x_true, ax=axes[0])
        axes[0].set_ylim(-1.5, 3.5)
        curves = {"bias²": bias, "variance": variance, "sum": bias + variance}
        plotting.plot_error(lams, curves, ylabel="relative squared error", ax=axes[1])
        axes[1].set_ylim(1e-6, 1e1)
        axes[1].minorticks_off()
        axes[1].axvline(lam, color=plotting.INK, linewidth=0.8)
        return axes

    def describe(lam: float) -> str:
        b, v = parts(lam)
        return (
            f"λ = {lam:.0e}. Left, solutions for eight draws of the noise, their mean and the "
            f"truth. Right, the curves of bias² and variance, here {b:.1e} and {v:.1e}."
        )

    stops = [10.0**k for k in range(-5, 2)]
    return explore(stops, draw, name="λ", label="{:.0e}".format, describe=describe)


def prior_width() -> Any:
    """Return a slider for the precision of a prior: data that it expects, and the evidence."""
    problem, D = problems.blur_1d(64, noise=2e-2), operators.difference(64, boundary="zero")
    variance, triangle = problem.noise_std**2, np.linalg.qr(D.to_dense())[1]
    rng = np.random.default_rng(0)
    walks = problem.A.to_dense() @ np.linalg.solve(triangle, rng.standard_normal((64, 3)))
    noise = problem.noise_std * rng.standard_normal((64, 3))
    precisions = np.logspace(-2, 5, 200)
    seen = choice.evidence(
        problem.A, problem.y, D, noise_std=problem.noise_std, grid=variance * precisions
    )

    def value(precision: float) -> float:
        return float(np.interp(np.log(precision), np.log(precisions), seen.values))

    def draw(precision: float) -> Any:
        left, right = plotting.figure(1, 2, height=2.9)[1]
        expected = walks / np.sqrt(precision) + noise
        draws = {f"draw {k + 1}": expected[:, k] for k in range(3)}
        plotting.plot_signals(problem.data_grid, draws, data=problem.y, ax=left)
        left.set_ylim(-2, 2)
        curve = {"negative log evidence": seen.values}
        axis = r"$\log_{10}\lambda_{\rm pr}$"
        plotting.plot_signals(np.log10(precisions), curve, xlabel=axis, ax=right)
        right.plot(np.log10(precision), value(precision), "o", color=plotting.INK, markersize=8)
        right.set_ylim(-200, 600)
        return left

    def describe(precision: float) -> str:
        size = np.std(walks) / np.sqrt(precision)
        return (
            f"Three draws of data for the prior precision {precision:g}, of typical size "
            f"{size:.2g}, beside the data; and the negative log evidence, here "
            f"{value(precision):.0f}, smallest near 34."
        )

    stops = [0.03, 0.3, 3.0, 34.0, 300.0, 1000.0, 3000.0]
    return explore(stops, draw, name="precision", label="{:g}".format, describe=describe, initial=3)


def three_averages() -> Any:
    """Return a slider for the decay of a truth: the prior widths that three criteria choose."""
    index, noise_std = np.arange(1, 65), 0.01
    s, lams = 1.0 / index, np.logspace(-9, 1, 1001)[:, None]
    kept = s**2 / (s**2 + lams)
    lost = lams / (s**2 + lams)

    def expected(x: np.ndarray) -> dict[str, np.ndarray]:
        """Expected criteria over λ, for white noise and a truth with coefficients x."""
        squares, variance = (s * x) ** 2, noise_std**2
        fit = lost @ (squares + variance) / variance
        return {
            "evidence": 0.5 * fit - 0.5 * np.log(lost).sum(axis=1),
            "prediction": lost**2 @ squares + variance * np.sum(kept**2, axis=1),
            "estimation": lost**2 @ x**2 + variance * kept**2 @ s**-2,
        }

    def widths(decay: float) -> tuple[dict[str, float], float]:
        criteria = expected(index**-decay)
        best = {name: int(values.argmin()) for name, values in criteria.items()}
        risk = criteria["estimation"]
        ratio = np.sqrt(risk[best["evidence"]] / risk[best["estimation"]])
        return {name: noise_std / np.sqrt(lams[i, 0]) for name, i in best.items()}, ratio

    def draw(decay: float) -> Any:
        ax = plotting.plot_widths(index**-decay, widths(decay)[0])
        ax.set_ylim(1e-4, 3)
        return ax

    def describe(decay: float) -> str:
        found, ratio = widths(decay)
        sizes = ", ".join(f"{name} {width:.2g}" for name, width in found.items())
        return (
            f"Coefficients that fall like the power {decay:g} of the index, and the widths of the "
            f"prior that three criteria choose: {sizes}. With the evidence the error is "
            f"{ratio:.2f} times the smallest."
        )

    decays = [0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0]
    return explore(decays, draw, name="decay", label="{:g}".format, describe=describe)


def noise_correlation() -> Any:
    """Return a slider for the correlation of the noise: LOOCV beside what it should estimate."""
    problem = problems.phillips(64, noise=1e-2)
    fits, lams = choice.smoother(problem.A), np.geomspace(1e-6, 1e1, 43)

    @cache
    def choices(c: float) -> tuple[choice.Choice, choice.Choice, float]:
        y = problem.with_noise(1e-2, kind="coloured", correlation=c).y
        aim = choice.oracle(fits, y, problem.x_true, grid=lams, error="prediction")
        return choice.loocv(fits, y, grid=lams), aim, float(np.mean((y - problem.y_exact) ** 2))

    def draw(c: float) -> Any:
        found, aim, noise = choices(c)
        axes = plotting.figure(1, 2, height=2.9)[1]
        curves = {"LOOCV": found.values, "aim": aim.values**2 / 64 + noise}
        plotting.plot_error(lams, curves, ylabel="mean squared error", ax=axes[0])
        axes[0].set_ylim(1e-4, 1e-1)
        axes[0].minorticks_off()
        plotting.plot_signals(problem.grid, {"LOOCV": found.x}, truth=problem.x_true, ax=axes[1])
        axes[1].set_ylim(-4, 6)
        return axes

    def describe(c: float) -> str:
        found, aim, _ = choices(c)
        return (
            f"Correlation {c:g}. Left, LOOCV with its smallest value at λ = {found.lam:.1e}, and "
            f"the prediction error with its smallest value at {aim.lam:.1e}. Right, the solution "
            f"for the former, relative error {_relative_error(found.x, problem):.2f}."
        )

    stops = [0.0, 0.2, 0.3, 0.4, 0.6, 0.8]
    return explore(stops, draw, name="correlation", label="{:g}".format, describe=describe)


def neumann_terms() -> Any:
    r"""Return a slider for the spectral radius q of :math:`T_x`: the error of K Neumann terms.

    Question: does :math:`q^K/(1-q)` bound the error of every matrix with spectral radius q, and do
    all of them need the same number of terms? To be seen: the symmetric one stays below that bound;
    the other one, whose norm is larger than q, lies above it and needs more terms, but its curve
    becomes as steep in the end.
    """
    counts, v = range(81), np.sqrt([0.5, 0.5])

    @cache
    def errors(q: float) -> dict[str, np.ndarray]:
        matrices = {"symmetric": np.diag([q, q / 2]), "not symmetric": np.array([[q, 1], [0, q]])}
        found = {}
        for name, M in matrices.items():
            exact = np.linalg.solve(np.eye(2) - M, v)
            sums = np.array([0 * v] + [implicit.neumann(M, v, k) for k in counts[1:]])
            found[name] = np.linalg.norm(sums - exact, axis=1)
        return found

    def draw(q: float) -> Any:
        tail = {"$q^K/(1-q)$": np.array([implicit.neumann_tail(q, k) for k in counts])}
        ax = plotting.plot_gaps(errors(q), bounds=tail, xlabel="terms $K$", ylabel="error")
        ax.set_xlim(0, counts[-1])
        ax.set_ylim(1e-8, 1e4)
        return ax

    def describe(q: float) -> str:
        symmetric, other = (e[20] for e in errors(q).values())
        return (
            f"Spectral radius {q:g}. Errors over the number of terms: that of the symmetric matrix "
            f"lies below the bound of the tail, {implicit.neumann_tail(q, 20):.1e} after 20 terms, "
            f"with {symmetric:.1e}; that of the other one lies above it, with {other:.1e}, and "
            "both become equally steep in the end."
        )

    stops = [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    return explore(stops, draw, name="q", label="{:g}".format, describe=describe, initial=3)


def _ridge_by_descent() -> dict[str, Any]:
    """Return a ridge regression solved by gradient descent: its maps, its loss, what is exact."""
    rng, scale = np.random.default_rng(2), np.linspace(1, 0.2, 20)
    A, B = (rng.standard_normal((24, 20)) * scale for _ in range(2))
    y, y_val = (M @ np.ones(20) + rng.standard_normal(24) for M in (A, B))
    H, b, eye, outer = A.T @ A, A.T @ y, np.eye(20), functionals.least_squares(B, y_val)
    step, (s, V) = 1 / (np.linalg.norm(A, 2) ** 2 + 3), np.linalg.eigh(H)

    def descend(x: np.ndarray, theta: np.ndarray, k: int) -> np.ndarray:
        return x - step * (H @ x - b + np.exp(theta) * x)

    def linearize(x: np.ndarray, theta: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        lam = np.exp(theta)
        return eye - step * (H + lam * eye), -step * lam * x[:, None]

    def unrolled(theta: np.ndarray, k: int, last: int) -> bilevel.Hypergradient:
        options = {"linearize": linearize, "last": min(last, k)}
        return bilevel.unrolled(descend, np.zeros(20), theta, k, outer, **options)

    def implicitly(theta: np.ndarray, x: np.ndarray | None = None) -> tuple[float, float]:
        """Return the implicit hypergradient at x (or the exact one), and a bound of its error."""
        lam = np.exp(theta[0])
        x = np.linalg.solve(H + lam * eye, b) if x is None else x
        psi, residual = np.linalg.solve(H + lam * eye, outer.gradient(x)), H @ x - b + lam * x
        bound = implicit.error_bound(
            np.linalg.norm(residual),
            0.0,
            mu=s[0] + lam,
            adjoint_norm=np.linalg.norm(psi),
            F_theta_norm=lam * np.linalg.norm(x),
            lip_F_theta=lam,
            lip_grad=np.linalg.norm(B, 2) ** 2,
        )
        return float(-lam * psi @ x), bound

    def losses(lams: np.ndarray, k: float = np.inf) -> np.ndarray:
        """Return the loss after k steps for each λ."""
        curvature = s[:, None] + lams
        share = 1 - (1 - step * curvature) ** k
        X = V @ (share / curvature * (V.T @ b)[:, None])
        return 0.5 * np.sum((B @ X - y_val[:, None]) ** 2, axis=0)

    return {"unrolled": unrolled, "implicitly": implicitly, "losses": losses}


def unrolling() -> Any:
    r"""Return a slider for the inner steps K: three hypergradients from an inexact solution.

    Question: gradient descent has taken K steps. Of which function is the unrolled derivative the
    slope, and whose error falls first? To be seen: its tangent touches the loss after K steps, not
    that of the exact solution. Its error falls last; that of the implicit one falls sooner, below
    its bound; the one that goes back through 10 steps only stays wrong.
    """
    ridge, theta, lams = _ridge_by_descent(), np.log([0.2]), np.geomspace(1e-2, 3, 61)
    counts = np.array([1, 3, 10, 30, 50, 100, 200, 300, 500, 700, 1000])

    def hypergradients(k: int) -> list[float]:
        found = [ridge["unrolled"](theta, k, last) for last in (k, 10)]
        slopes = [float(each.gradient[0]) for each in found]
        return [*slopes, *ridge["implicitly"](theta, found[0].x)]

    table = {k: hypergradients(k) for k in counts.tolist()}
    exact, columns = ridge["implicitly"](theta)[0], np.transpose(list(table.values()))
    names, distances = ("unrolled", "last 10", "implicit"), np.abs(columns[:3] - exact)

    def draw(k: int) -> Any:
        axes, lam = plotting.figure(1, 2, height=3.0)[1], np.exp(theta)
        plotting.plot_outer(
            lams,
            {"exact": ridge["losses"](lams), "K steps": ridge["losses"](lams, k)},
            tangents=[(lam[0], ridge["losses"](lam, k)[0], table[k][0])],
            limits=(15, 65),
            ax=axes[0],
        )
        plotting.plot_hypergradient_errors(
            counts,
            dict(zip(names, distances, strict=True)),
            bounds={"bound": columns[3]},
            ylabel="error",
            ax=axes[1],
        )
        axes[1].axvline(k, color=plotting.INK, linewidth=0.8)
        axes[1].set_xlim(1, 1200)
        axes[1].set_ylim(1e-3, 1e5)
        return axes

    def describe(k: int) -> str:
        unrolled, _, implicitly, bound = table[k]
        return (
            f"K = {k}. Left, the loss of the exact solution, the loss after K inner steps, and a "
            f"tangent that touches the latter, with slope {unrolled:.3g}. Right, errors over K: "
            f"unrolled {abs(unrolled - exact):.1e}, implicit {abs(implicitly - exact):.1e} with "
            f"the bound {bound:.1e}."
        )

    stops = [1, 10, 30, 100, 300, 500, 1000]
    return explore(stops, draw, name="inner steps K", describe=describe, initial=2)


def lasso_kink() -> Any:
    """Return a slider for λ of the LASSO: its entries, and the hypergradient that jumps.

    Question: an entry leaves the support. What jumps there, the solution or its derivative? To be
    seen: the entries change along straight lines that bend where the support changes; the
    derivative of the validation loss jumps there. Just below a jump an entry is almost zero, just
    above it the margin of strict complementarity.
    """
    rng, x_true = np.random.default_rng(3), np.array([3.0, -2.0, 1.5, 0, 0, 0, 0, 0])
    A, B = (rng.standard_normal((20, 8)) @ (np.eye(8) + 0.35) for _ in range(2))
    y, y_val = (M @ x_true + rng.standard_normal(20) for M in (A, B))
    outer, top = functionals.least_squares(B, y_val), np.abs(A.T @ y).max()

    @cache
    def at(share: float) -> bilevel.Hypergradient:
        return bilevel.lasso(A, y, np.log(np.array(share * top)), outer)

    def slope(share: float) -> float:
        """The derivative by λ."""
        return float(at(share).gradient) / (share * top)

    shares = np.linspace(0.01, 0.56, 166)
    path, slopes = np.array([at(t).x for t in shares]), np.array([slope(t) for t in shares])
    # No line is drawn across a jump.
    jumps = np.flatnonzero(np.diff((path != 0).sum(axis=1))) + 1
    broken, pieces = np.insert(shares, jumps, np.nan), np.insert(slopes, jumps, np.nan)

    def draw(share: float) -> Any:
        axes = plotting.figure(1, 2, height=2.9)[1]
        axes[0].plot(shares, path, color=plotting.COLORS[0], linewidth=1.2)
        axes[0].plot(np.full(8, share), at(share).x, "o", color=plotting.COLORS[1], markersize=5)
        axes[1].plot(broken, pieces, color=plotting.COLORS[0])
        axes[1].plot(share, slope(share), "o", color=plotting.COLORS[1], markersize=7)
        axes[1].axhline(0, color=plotting.INK, linewidth=0.7, zorder=0)
        for ax, ylabel in zip(axes, ("entries of $x$", r"$dJ/d\lambda$"), strict=True):
            ax.set_xlim(0, 0.57)
            ax.set_xlabel(r"$\lambda/\lambda_{\max}$")
            ax.set_ylabel(ylabel)
        return axes

    def describe(share: float) -> str:
        found = at(share)
        return (
            f"λ = {share:g} λmax. Left, the entries of the solution along λ, piecewise straight; "
            f"not zero here: {np.count_nonzero(found.x)}. Right, the derivative of the validation "
            f"loss by λ, in pieces with jumps between: {slope(share):.3f} here, with the margin "
            f"{found.margin:.4f}."
        )

    stops = [0.03, 0.06, 0.1, 0.14, 0.145, 0.25, 0.4, 0.472, 0.476, 0.54]
    return explore(stops, draw, name="λ / λmax", label="{:g}".format, describe=describe, initial=3)


def outer_objective() -> Any:
    """Return a slider for λ: three losses along λ, and the tangent that the hypergradient gives.

    Question: where is the tangent of the validation loss flat, and is the test loss smallest there?
    To be seen: the training loss only rises with λ; the valley of the validation loss lies near
    that of the test loss, and the signal there is neither rough nor flat.
    """
    problem = problems.blur_1d(128, noise=1e-1)
    M, lams = problem.A.to_dense(), np.geomspace(1e-6, 1e-1, 51)
    # Every third point of the data belongs to one of the three sets.
    sets = {
        name: functionals.least_squares(M[i::3], problem.y[i::3])
        for i, name in enumerate(("training", "validation", "test"))
    }

    @cache
    def at(lam: float) -> bilevel.Hypergradient:
        return bilevel.tikhonov(M[::3], problem.y[::3], np.log(np.array(lam)), sets["validation"])

    losses = {
        name: np.array([to_float(loss(at(lam).x)) for lam in lams.tolist()])
        for name, loss in sets.items()
    }

    def draw(lam: float) -> Any:
        axes, found = plotting.figure(1, 2, height=2.9, width_ratios=(4, 3))[1], at(lam)
        plotting.plot_outer(
            lams,
            losses,
            tangents=[(lam, found.value, float(found.gradient))],
            limits=(0, 0.15),
            ax=axes[0],
        )
        plotting.plot_signals(problem.grid, {"solution": found.x}, truth=problem.x_true, ax=axes[1])
        axes[1].set_ylim(-0.8, 1.6)
        return axes

    def describe(lam: float) -> str:
        found, test = at(lam), to_float(sets["test"](at(lam).x))
        return (
            f"λ = {lam:.1e}. Left, training, validation and test loss along λ, and the tangent of "
            f"the validation loss, {found.value:.4f}, with slope {float(found.gradient):.4f} by "
            f"ln λ; the test loss is {test:.4f}. Right, the signal, relative error "
            f"{_relative_error(found.x, problem):.2f}."
        )

    best = float(lams[losses["validation"].argmin()])
    stops = sorted([1e-5, 1e-4, 1e-3, best, 1e-2, 2e-2, 3e-2])
    return explore(
        stops, draw, name="λ", label="{:.1e}".format, describe=describe, initial=stops.index(best)
    )


def inner_tolerance() -> Any:
    """Return a slider for the tolerance of inner solves: where the outer loop ends, and its cost.

    Question: how exact must the inner problems be, and is it cheaper to solve them roughly? To be
    seen: with a fixed tolerance the iterates stop at a distance of their own from the best λ; with
    one that falls with the gradient they arrive, after no more inner steps than the exact ones.
    """
    problem = problems.blur_1d(128, noise=3e-2)
    outer = functionals.least_squares(problem.A, problem.with_noise(3e-2, seed=1).y)

    def loss(theta: Any, **options: Any) -> bilevel.Hypergradient:
        return bilevel.tikhonov(problem.A, problem.y, np.array(theta), outer, **options)

    def path(rtol: float, least: float) -> np.ndarray:
        """Return inner steps so far, θ, and loss of the outer iterates."""
        spent = []

        def counted(theta: np.ndarray, **options: Any) -> bilevel.Hypergradient:
            found = loss(theta, **options)
            spent.append(sum(found.steps))
            return found

        states = bilevel.descend(counted, np.array(2.0), step=3.0, rtol=rtol, rtol_min=least)
        return np.array([[sum(spent), float(s.x), s.value] for s in islice(states, 20)]).T

    tols, lams = [1e-1, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8], np.geomspace(1e-5, 10, 37)
    fixed, tied = {tol: path(tol, tol) for tol in tols}, path(1e-1, 1e-10)
    curve = np.array([loss(theta, rtol=1e-6).value for theta in np.log(lams)])
    goal = path(1e-12, 1e-12)[1, -1]

    def away(found: np.ndarray) -> np.ndarray:
        return np.abs(found[1] - goal)

    def draw(tol: float) -> Any:
        axes, found = plotting.figure(1, 2, height=2.9)[1], fixed[tol]
        way = (np.exp(found[1]), found[2])
        plotting.plot_outer(lams, {"validation": curve}, path=way, ax=axes[0])
        axes[0].set_yscale("log")
        axes[0].set_ylim(0.01, 10)
        runs = {"fixed": (found[0], away(found)), "falling": (tied[0], away(tied))}
        plotting.plot_valleys(
            runs, xlabel="inner steps", ylabel=r"error of $\ln\lambda$", ax=axes[1]
        )
        axes[1].set_xlim(1, 2000)
        axes[1].set_ylim(1e-9, 30)
        for ax in axes:
            ax.minorticks_off()
        return axes

    def describe(tol: float) -> str:
        found = fixed[tol]
        return (
            f"Tolerance {tol:.0e}. Left, the iterates on the validation loss, from the right to "
            f"the left. Right, their distance from the best ln λ over the inner steps: it ends at "
            f"{away(found)[-1]:.1e} after {found[0, -1]:.0f}; with a falling tolerance at "
            f"{away(tied)[-1]:.1e} after {tied[0, -1]:.0f}."
        )

    return explore(
        tols, draw, name="tolerance", label="{:.0e}".format, describe=describe, initial=1
    )


def learned_weights() -> Any:
    """Return a slider for the outer steps: a picture denoised with a weight for every pixel.

    Question: the validation loss, from a second noisy picture, falls with every outer step. Does
    the denoised picture become better all the time? To be seen: the weights (dark: small) find the
    edges first, and then fit the noise of both pictures; the error falls and rises again.
    """
    truth, rng = problems.picture("camera", 48), np.random.default_rng(0)
    y, y_val = (truth + 0.1 * rng.standard_normal(truth.shape) for _ in range(2))
    D, outer = operators.gradient(truth.shape), functionals.least_squares(None, y_val)
    stops, kept = [0, 3, 6, 10, 20, 40, 60], {}

    def loss(theta: np.ndarray, **options: Any) -> bilevel.Hypergradient:
        return bilevel.tikhonov(operators.identity(truth.shape), y, theta, outer, D=D, **options)

    states = bilevel.descend(loss, np.full(D.out_shape, -0.5))
    for k, state in zip(range(stops[-1] + 1), states, strict=False):
        if k in stops:
            kept[k] = state

    def error(k: int) -> float:
        return float(np.linalg.norm(kept[k].found.x - truth) / np.linalg.norm(truth))

    def draw(k: int) -> Any:
        axes = plotting.figure(1, 3, width=5.4, height=2.1)[1]
        plotting.show_pictures({"noisy": y, "denoised": kept[k].found.x}, axes=axes[:2])
        weights = kept[k].x.mean(axis=0)
        plotting.show_pictures({"ln λ": np.clip(weights, -4, 3)}, limits=(-4, 3), axes=axes[2:])
        return axes

    def describe(k: int) -> str:
        seen = "all alike" if k == 0 else "dark along the edges" if k <= 20 else "mostly noise"
        return (
            f"After {k} outer steps: the noisy picture, the denoised one with relative error "
            f"{error(k):.4f}, and the logarithms of its weights, {seen}. The validation loss is "
            f"{kept[k].value:.2f}."
        )

    return explore(stops, draw, name="outer steps", describe=describe, initial=4)


def adaptation() -> Any:
    """Return a slider for the steps of adaptation: a sine from ten points, from two starts.

    Question: both networks have seen the same tasks. What has the one learned that was trained for
    the loss after one step? To be seen: before the first step neither fits; then the meta-learned
    one takes the shape of the sine at once, also between the points, and the one that was trained
    for all sines together moves little.
    """
    net, rate = meta.Network((1, 20, 20, 1)), 0.02
    test, grid = problems.sinusoids(100, 10, queries=50, seed=1), np.linspace(-5, 5, 101)
    adam_theta = np.array([np.log(0.01), 0.9, 0.999])

    def trained(steps: int) -> np.ndarray:
        """Return weights that are good after so many steps: 0 is joint training."""

        def gradient(w: np.ndarray, k: int) -> np.ndarray:
            tasks = net.task(problems.sinusoids(20, 10, seed=2 + k))
            return meta.maml(tasks, w, step=rate, steps=steps).gradient

        rule = meta.adam(gradient)
        x = rule.start(net.start())
        for k in range(400):
            x = rule(x, adam_theta, k)
        return x[0]

    starts = {"meta-learned": trained(1), "trained jointly": trained(0)}
    shown = int(np.argmax(test.amplitude * abs(test.phase - np.pi / 2)))
    truth = (test.amplitude * np.sin(grid - test.phase))[shown, 0]

    @cache
    def adapted(k: int) -> dict[str, meta.MetaGradient]:
        task = net.task(test)
        return {
            name: meta.maml(task, w, step=rate, steps=k, order="first")
            for name, w in starts.items()
        }

    def curve(w: np.ndarray) -> np.ndarray:
        return net.predict(w, grid[:, None])[:, 0]

    def draw(k: int) -> Any:
        axes = plotting.figure(1, 2, height=2.9, sharey=True)[1]
        for ax, (name, found) in zip(axes, adapted(k).items(), strict=True):
            plotting.plot_adaptation(
                grid,
                {"before": curve(starts[name]), "after": curve(found.weights[shown])},
                support=(test.x_support[shown], test.y_support[shown]),
                truth=truth,
                ax=ax,
            )
            ax.set_xlabel(f"$x$   ({name})")
            ax.set_ylim(-7, 7)
        return axes

    def describe(k: int) -> str:
        first, second = (found.value for found in adapted(k).values())
        return (
            f"Adaptation in {k} step{'s' * (k != 1)}: a sine, ten of its points, and two networks "
            f"before and after. Left meta-learned, right trained jointly; mean squared error over "
            f"100 tasks: {first:.2f} and {second:.2f}."
        )

    return explore([0, 1, 2, 3, 5, 10], draw, name="steps", describe=describe, initial=1)


def step_horizon() -> Any:
    r"""Return a slider for the steps K of gradient descent: the loss after them over the step size.

    Question: is the step size that is best for one step also the best for K steps? To be seen: at
    that step size (the dot) the tangent is flat for K = 1 alone. For more steps it falls, and the
    best one (the ring) moves to the dotted line :math:`2/(\mu+L)`; soon beyond it the loss grows.
    """
    h, w0 = np.array([1.0, 2.0, 10.0]), np.array([4.0, 2.0, 1.0])
    etas = np.geomspace(0.05, 0.25, 49)
    loss = functionals.least_squares(np.diag(np.sqrt(h)), np.zeros(3))
    rule = meta.gradient_step(lambda w, k: h * w, lambda w, v, k: h * v)
    first, g = to_float(loss(w0)), h * w0
    greedy = float(g @ g / (g @ (h * g)))

    @cache
    def after(k: int, eta: float) -> tuple[float, float]:
        """Return ln(L(w_k)/L(w_0))/k, and its derivative by ln η."""
        found = bilevel.unrolled(rule, w0, np.log([eta]), k, loss, linearize=rule.linearize)
        return float(np.log(found.value / first) / k), float(found.gradient[0] / found.value / k)

    @cache
    def curve(k: int) -> np.ndarray:
        return np.array([after(k, eta)[0] for eta in etas.tolist()])

    def draw(k: int) -> Any:
        ax = plotting.plot_outer(
            etas,
            {f"$K={k}$": curve(k)},
            tangents=[(greedy, *after(k, greedy))],
            reach=0.5,
            xlabel=r"step size $\eta$",
            ylabel=r"$\ln(\mathcal{L}(w_K)/\mathcal{L}(w_0))/K$",
            limits=(-0.8, 0.4),
        )
        ax.axvline(2 / (h[0] + h[-1]), color=plotting.INK, linewidth=1, linestyle=":")
        return ax

    def describe(k: int) -> str:
        return (
            f"K = {k}. The mean change of the logarithm of the loss in a step, over the step size, "
            f"smallest near {etas[curve(k).argmin()]:.3f}. At {greedy:.3f}, the best for one step, "
            f"the slope of the tangent is {round(after(k, greedy)[1], 3) + 0.0:.3f}."
        )

    return explore([1, 2, 3, 5, 10, 20, 40], draw, name="steps K", describe=describe)


def clipped_mean() -> Any:
    """Return a slider for the bound of clipping: the mean of clipped gradients over the weight.

    Question: the gradient of each of 41 tasks is clipped before their mean is taken. Where does
    descent end? To be seen: with a large bound where the mean gradient is zero, at the mean of the
    targets; with a small one far from there, near their median.
    """
    targets = np.random.default_rng(0).exponential(1.0, 41) ** 2
    ws = np.linspace(0, 4, 161)

    def mean_gradient(bound: float) -> np.ndarray:
        """For the losses (w - target)²/2, over that at w = 0."""
        clipped = [[meta.clip(np.array([w - a]), bound)[0] for a in targets] for w in ws]
        return np.mean(clipped, axis=1) / -np.mean(clipped[0])

    mean, median, curves = targets.mean(), np.median(targets), {}

    def end(bound: float) -> float:
        return float(np.interp(0.0, curves[bound], ws))

    def draw(bound: float) -> Any:
        ax = plotting.figure()[1]
        for name, at, stroke in (("mean", mean, "-."), ("median", median, ":")):
            ax.axvline(at, color=plotting.INK, linewidth=1, linestyle=stroke, label=name)
        plotting.plot_signals(
            ws, {"gradients": ws / mean - 1, "clipped": curves[bound]}, xlabel="weight $w$", ax=ax
        )
        ax.plot(end(bound), 0, "o", color=plotting.COLORS[1], markersize=8)
        ax.axhline(0, color=plotting.INK, linewidth=0.7)
        ax.set_ylim(-1.05, 1.05)
        ax.set_ylabel("mean over that at 0")
        return ax

    def describe(bound: float) -> str:
        return (
            f"The mean of the gradients, zero at the mean of the targets, {mean:.2f}; and the mean "
            f"of those clipped at {bound:g}, zero at {end(bound):.2f}. The median of the targets "
            f"is {median:.2f}."
        )

    stops = [0.1, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0]
    curves.update({bound: mean_gradient(bound) for bound in stops})
    return explore(stops, draw, name="bound", label="{:g}".format, describe=describe, initial=2)
