"""Figures: colours that can be read, a style that stays inside, and what each function draws."""

import inspect
import io
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from course_lib import plotting

# The last one is a shade lighter than the theme's dark page, for readers who set their own.
PAGES = {"light": "#ffffff", "dark": "#121212", "less dark": "#14181e"}


@pytest.fixture(autouse=True)
def _headless():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def linear_rgb(color: str) -> np.ndarray:
    c = np.array(mpl.colors.to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def luminance(color: str) -> float:
    return float(linear_rgb(color) @ [0.2126, 0.7152, 0.0722])


def contrast(a: str, b: str) -> float:
    """Contrast ratio of the Web Content Accessibility Guidelines."""
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("color", [*plotting.COLORS, plotting.INK])
def test_every_colour_is_seen_on_both_pages(color, page):
    assert contrast(color, page) >= 3.0


def test_text_can_be_read_on_both_pages():
    """4.5 on both is impossible: the pages themselves have a contrast below 4.5 squared."""
    assert contrast(plotting.INK, PAGES["light"]) >= 4.5
    assert contrast(plotting.INK, PAGES["dark"]) >= 4.1
    assert contrast(PAGES["light"], PAGES["dark"]) < 4.5**2


# What is left of linear RGB without one kind of cone (Machado, Oliveira and Fernandes, 2009).
DEFICIENCIES = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(color: str, deficiency: str) -> np.ndarray:
    from skimage.color import xyz2lab

    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear_rgb(color), 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    return xyz2lab((np.array(to_xyz) @ seen)[None, None])[0, 0]


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_differ_without_one_kind_of_cone(deficiency):
    """A distance of 15 in CIELAB is several times what the eye just notices (2.3)."""
    points = [lab(color, deficiency) for color in (*plotting.COLORS, plotting.INK)]
    for i, p in enumerate(points):
        for q in points[:i]:
            assert np.linalg.norm(p - q) >= 15


T = np.linspace(0.01, 1, 50)
CURVES = {"one": T, "two": T**2, "three": 1 - 0.5 * T, "four": np.sqrt(T)}
THREE = dict(list(CURVES.items())[:3])
DRAWERS = {
    "plot_signals": lambda **o: plotting.plot_signals(T, CURVES, truth=T, data=T, **o),
    "plot_picard": lambda **o: plotting.plot_picard(T[::-1], T, noise_std=0.1, **o),
    "plot_factors": lambda **o: plotting.plot_factors(T, CURVES, **o),
    "plot_draws": lambda **o: plotting.plot_draws(T, [T, T**2], truth=T, **o),
    "plot_error": lambda **o: plotting.plot_error(T, CURVES, **o),
    "plot_criteria": lambda **o: plotting.plot_criteria(T, CURVES, limits=(-1, 2), **o),
    "plot_l_curve": lambda **o: plotting.plot_l_curve(
        T, 1 / T, points={"one": (0.1, 10.0), "two": (0.5, 2.0)}, **o
    ),
    "plot_semiconvergence": lambda **o: plotting.plot_semiconvergence(CURVES, **o),
    "plot_rates": lambda **o: plotting.plot_rates(T, CURVES, slopes={"two": 2.0}, **o),
    "plot_ratios": lambda **o: plotting.plot_ratios(
        {"one": 1 + T, "two": 1 / T}, limit=3, title="ratios", **o
    ),
    "plot_gain": lambda **o: plotting.plot_gain(T, lam=0.01, **o),
    "plot_valleys": lambda **o: plotting.plot_valleys(
        {"one": (T, CURVES["two"])}, points={"two": (T, T)}, **o
    ),
    "plot_widths": lambda **o: plotting.plot_widths(T, {"one": 0.1, "two": 0.3}, **o),
    "plot_amplification": lambda **o: plotting.plot_amplification(T, CURVES, level=0.1, **o),
    "plot_gaps": lambda **o: plotting.plot_gaps(CURVES, bounds={"bound": T}, double=True, **o),
    "plot_spikes": lambda **o: plotting.plot_spikes(T, CURVES, truth=T, **o),
    "plot_contact": lambda **o: plotting.plot_contact(
        np.eye(2), np.array([2.0, 1.0]), np.array([1.0, 0.0]), power=1, **o
    ),
    "plot_coefficients": lambda **o: plotting.plot_coefficients(CURVES, truth=T, **o),
    "plot_outer": lambda **o: plotting.plot_outer(
        T, THREE, tangents=[(0.1, 0.5, 1.0), (0.5, 0.2, -1.0)], path=(T[::9], T[::9]), **o
    ),
    "plot_hypergradient_errors": lambda **o: plotting.plot_hypergradient_errors(
        T, CURVES, bounds={"bound": T}, **o
    ),
    "plot_adaptation": lambda **o: plotting.plot_adaptation(
        T, THREE, support=(T[::9], T[::9]), truth=T, **o
    ),
}


def test_every_plot_function_is_tried_here():
    assert set(DRAWERS) == {name for name in plotting.__all__ if name.startswith("plot_")}


def rendered(fig) -> np.ndarray:
    """The picture that a notebook shows: RGBA, with the figure's own background."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", facecolor=fig.get_facecolor(), bbox_inches="tight")
    return plt.imread(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize("name", DRAWERS)
@pytest.mark.slow
def test_draws_on_given_axes_and_leaves_the_settings_alone(name):
    before = dict(mpl.rcParams)
    fig, (ax, other) = plotting.figure(1, 2)
    assert DRAWERS[name](ax=ax) is ax
    assert not other.has_data()
    alone = DRAWERS[name]()
    assert alone.figure is not fig
    assert dict(mpl.rcParams) == before
    picture = rendered(alone.figure)
    # Transparent background, ink on it, at twice the density of a plain screen.
    assert picture[0, 0, 3] == 0
    assert (picture[:, :, 3] > 0.5).mean() > 0.01
    assert picture.shape[1] > 400


@pytest.mark.parametrize("name", DRAWERS)
@pytest.mark.slow
def test_nothing_sticks_out_of_the_figure(name):
    ax = DRAWERS[name]()
    fig = ax.figure
    fig.canvas.draw()
    box = fig.get_tightbbox(fig.canvas.get_renderer())
    width, height = fig.get_size_inches()
    assert box.x0 >= -0.02
    assert box.y0 >= -0.02
    assert box.x1 <= width + 0.02
    assert box.y1 <= height + 0.02


@pytest.mark.parametrize("name", DRAWERS)
def test_lines_differ_in_more_than_colour(name):
    lines = [
        line
        for line in DRAWERS[name]().get_lines()
        if not line.get_label().startswith("_") and line.get_label() not in ("truth", "data")
    ]
    looks = {(line.get_color(), str(line.get_linestyle()), line.get_marker()) for line in lines}
    shapes = {look[1:] for look in looks}
    dashes = {str(line._dash_pattern) + str(line.get_marker()) for line in lines}
    assert len(looks) == len(lines)
    assert max(len(shapes), len(dashes)) == len(lines)


@pytest.mark.parametrize("name", DRAWERS)
def test_every_line_is_named(name):
    """Directly at its end, or in the legend."""
    ax = DRAWERS[name]()
    labels = [line.get_label() for line in ax.get_lines() if line.get_label()[0] != "_"]
    legend = ax.get_legend()
    named = {text.get_text() for text in (*ax.texts, *(legend.get_texts() if legend else ()))}
    assert set(labels) <= named


def test_labels_at_the_ends_use_a_legend_where_ends_meet():
    apart = plotting.plot_factors(T, {"low": 0 * T, "high": 1 + 0 * T})
    assert apart.get_legend() is None
    heights = {text.get_text(): text.xy[1] for text in apart.texts}
    assert heights["low"] < 0.1 < 0.9 < heights["high"]
    together = plotting.plot_factors(T, {"one": T, "two": T**1.01})
    assert together.get_legend() is not None


def test_rings_mark_the_minima():
    errors = {"a": (T - 0.3) ** 2 + 0.1, "b": (T - 0.7) ** 2 + 0.2}
    ax = plotting.plot_error(T, errors)
    rings = [line.get_xdata()[0] for line in ax.get_lines() if line.get_markersize() == 7]
    np.testing.assert_allclose(rings, [T[14], T[34]], atol=0.02)
    ax = plotting.plot_semiconvergence({"a": [9.0, 3.0, 1.0, 2.0]})
    (ring,) = (line for line in ax.get_lines() if line.get_markersize() == 7)
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (2, 1.0)


def test_valleys_have_a_parameter_and_a_ring_each():
    short = np.array([1.0, 10.0, 100.0])
    ax = plotting.plot_valleys(
        {"a": (T, (T - 0.3) ** 2 + 0.1), "b": (short, [3.0, 1.0, 2.0])},
        points={"c": (short, [2.0, 3.0, 1.0])},
    )
    rings = [line.get_xdata()[0] for line in ax.get_lines() if line.get_markersize() == 7]
    np.testing.assert_allclose(rings, [T[14], 10.0, 100.0], atol=0.02)
    (dots,) = (line for line in ax.get_lines() if line.get_label() == "c")
    assert dots.get_linestyle() == "None"


def test_ratios_show_quantiles_and_what_is_beyond_the_limit():
    values = np.append(np.linspace(1, 3, 9), [50.0, np.inf])
    ax = plotting.plot_ratios({"rule": values}, limit=10)
    lines = [line for line in ax.get_lines() if line.get_linestyle() != ":"]
    dots, beyond, bar, middle = lines
    np.testing.assert_array_equal(dots.get_xdata(), values[:9])
    np.testing.assert_array_equal(beyond.get_xdata(), [10, 10])
    assert list(bar.get_xdata()) == [values[1], 10]
    assert middle.get_xdata()[0] == values[5]
    with pytest.raises(ValueError, match="must not be empty"):
        plotting.plot_ratios({"rule": []})


def test_rates_draw_the_slope_of_theory():
    ax = plotting.plot_rates(T, {"a": 3 * T**0.5}, slopes={"a": 0.5})
    line = ax.get_lines()[1]
    np.testing.assert_allclose(line.get_ydata(), 3 * line.get_xdata() ** 0.5)


def test_picard_ratio_and_noise_line():
    ax = plotting.plot_picard(np.array([2.0, 0.5, 0.0]), np.array([-1.0, 1.0, 1.0]), noise_std=0.1)
    ratio = ax.get_lines()[2].get_ydata()
    np.testing.assert_allclose(ratio[:2], [0.5, 2.0])
    assert np.isnan(ratio[2])
    assert "noise level" in {text.get_text() for text in ax.texts}


def test_pictures_share_one_scale_and_say_what_is_clipped():
    inside, outside = np.full((4, 6), 0.5), np.linspace(-3, 2, 24).reshape(4, 6)
    axes = plotting.show_pictures({"in": inside, "out": outside, "huge": 1e13 * outside})
    assert {ax.images[0].get_clim() for ax in axes} == {(0.0, 1.0)}
    assert [ax.get_title() for ax in axes] == ["in", "out", "huge"]
    notes = [[text.get_text() for text in ax.texts] for ax in axes]
    assert notes == [[], ["values −3.00 to 2.00"], ["values −3e+13 to 2e+13"]]
    rows = plotting.show_pictures({str(k): inside for k in range(5)})
    assert len(rows) == 8
    assert not any(ax.axison for ax in rows)


def test_takes_tensors(torch):
    t = torch.linspace(0.1, 1, 20, requires_grad=True)
    assert len(plotting.plot_signals(t, {"x": t**2}, truth=t).get_lines()) == 2
    assert plotting.show_pictures({"x": torch.ones(3, 4)})[0].images


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: plotting.plot_signals(T, {"x": T[:-1]}), "x must match grid: expected shape"),
        (lambda: plotting.plot_signals(T, {}, truth=T[1:]), "truth must match grid"),
        (lambda: plotting.plot_picard(T, T[1:]), "coefficients must match s"),
        (lambda: plotting.plot_factors(T, {"phi": T[1:]}), "phi must match s"),
        (lambda: plotting.plot_error(T, {"e": T[1:]}), "e must match the parameter"),
        (lambda: plotting.plot_rates(T, {"e": T[1:]}), "e must match delta"),
        (lambda: plotting.plot_valleys({"e": (T, T[1:])}), "e must match its parameter"),
        (lambda: plotting.plot_outer(T, {"J": T[1:]}), "J must match lams"),
        (lambda: plotting.plot_outer(T, {}, path=(T, T[1:])), "losses of the path must match"),
        (lambda: plotting.plot_hypergradient_errors(T, {"e": T[1:]}), "e must match steps"),
        (
            lambda: plotting.plot_hypergradient_errors(T, {}, bounds={"b": T[1:]}),
            "b must match steps",
        ),
        (lambda: plotting.plot_adaptation(T, {"f": T[1:]}), "f must match grid"),
        (lambda: plotting.plot_adaptation(T, {}, support=(T, T[1:])), "targets must match"),
        (lambda: plotting.show_pictures({}), "must not be empty"),
        (lambda: plotting.show_pictures({"p": T}), "picture 'p' must have two dimensions"),
        (lambda: plotting.show_pictures({"p": np.eye(3)}, axes=[]), "too few axes"),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.slow
def test_every_cell_of_a_notebook_shows_its_figure():
    """The first figure switches a notebook's interactive mode on: our style must not undo it."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    draw = "_ = plotting.plot_signals([0.0, 1.0], {'a': [0.0, 1.0]})"
    sources = ["from course_lib import plotting\n" + draw, draw, draw]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    shown = [[list(output.data) for output in cell.outputs] for cell in notebook.cells]
    assert shown == [[["text/plain", "image/png"]]] * 3


def test_import_brings_in_no_matplotlib():
    code = "import sys, course_lib.plotting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_show_source_is_the_code_that_runs():
    from course_lib import filters

    text = plotting.show_source(filters.tikhonov_factors).data
    assert inspect.getsource(filters.tikhonov_factors).splitlines()[-1] in text
    assert '"""' not in text


def test_coefficients_leave_zeros_out_and_the_truth_sets_the_scale():
    ax = plotting.plot_coefficients({"kept": [-3.0, 0.0, 1e-9]}, truth=np.array([2.0, -0.1, 1.0]))
    truth, kept = ax.get_lines()
    np.testing.assert_array_equal(truth.get_ydata(), [2.0, 0.1, 1.0])
    np.testing.assert_array_equal(kept.get_ydata(), [3.0, np.nan, 1e-9])
    assert ax.get_ylim()[0] == pytest.approx(0.01)


def test_a_tangent_is_a_straight_line_over_the_logarithm():
    """Its slope is that by ln λ; with it the line touches the loss."""
    lams = np.geomspace(1e-3, 1e3, 241)
    loss = np.log(lams) ** 2
    lam = np.exp(1.5)
    ax = plotting.plot_outer(
        lams,
        {"J": loss, "rising": lams, "flat": 1 + 0 * lams},
        tangents=[(lam, 2.25, 3.0)],
        path=([10.0], [5.3]),
    )
    (tangent,) = (line for line in ax.get_lines() if line.get_label() == "tangent")
    x, y = tangent.get_data()
    np.testing.assert_allclose(np.diff(y) / np.diff(np.log(x)), 3.0)
    assert (y <= np.log(x) ** 2 + 1e-12).all()
    assert y[1] == pytest.approx(np.log(x[1]) ** 2)
    assert x[tangent.get_markevery()] == pytest.approx([lam])
    # A ring in the valley, none at the end of a loss that only rises or on a flat one.
    rings = [line for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
    assert [ring.get_xdata()[0] for ring in rings] == pytest.approx([1.0])
    (path,) = (line for line in ax.get_lines() if line.get_label() == "iterates")
    assert path.get_linestyle() == "None"


def test_errors_of_hypergradients_leave_zeros_out():
    ax = plotting.plot_hypergradient_errors(
        [1, 10, 100], {"e": [1.0, 0.1, 0.0]}, bounds={"b": [2.0, 1.0, 0.5]}
    )
    error, bound = ax.get_lines()
    np.testing.assert_array_equal(error.get_ydata(), [1.0, 0.1, np.nan])
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert bound.get_color() == plotting.INK
    assert error.get_color() != plotting.INK


def test_adaptation_shows_the_support_as_points():
    ax = plotting.plot_adaptation(
        T, {"before": T, "after": T**2}, support=(T[::7, None], T[::7, None]), truth=T
    )
    truth, before, after, support = ax.get_lines()
    assert support.get_linestyle() == "None"
    np.testing.assert_array_equal(support.get_xdata(), T[::7])
    assert len({line.get_color() for line in (truth, before, after, support)}) == 4
