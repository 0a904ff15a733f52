"""Explorers: one described picture a stop, linked in the browser, small enough for a page."""

import base64
import html
import io
import re
import subprocess
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from course_lib import explorers, operators, plotting, problems
from course_lib.iterate import run
from course_lib.linear import cgls

MAX_FRAME = 25_000
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _headless():
    with mpl.rc_context({"backend": "agg"}):
        yield
    plt.close("all")


def penalties():
    problem = problems.heat(40)
    return explorers.penalties(
        problem.A,
        problem.y,
        grid=problem.grid,
        data_grid=problem.data_grid,
        truth=problem.x_true,
    )


READY = {
    **{
        name: getattr(explorers, name)
        for name in explorers.__all__
        if name not in ("explore", "penalties")
    },
    "penalties": penalties,
}


def frames(box) -> list[tuple[str, bytes]]:
    """Alternative text and PNG of each frame."""
    found = []
    for child in box.children[1].children:
        alt, png = re.fullmatch(
            r'<img alt="([^"<>]*)" style="[^"]*" src="data:image/png;base64,([^"]*)">', child.value
        ).groups()
        found.append((html.unescape(alt), base64.b64decode(png)))
    return found


@pytest.mark.parametrize("name", READY)
def test_ready_explorers(name):
    """A slider and a stack of as many frames, all of one size, each described and small."""
    box = READY[name]()
    slider, stack = box.children
    found = frames(box)
    assert len(slider.options) == len(found) >= 5
    assert slider.index == stack.selected_index
    assert slider.description
    assert len({alt for alt, _ in found}) == len(found)
    assert all(len(alt) > 40 and alt.endswith(".") for alt, _ in found)
    assert max(len(png) for _, png in found) < MAX_FRAME
    pictures = [Image.open(io.BytesIO(png)) for _, png in found]
    assert len({picture.size for picture in pictures}) == 1
    assert all(picture.mode == "P" for picture in pictures)
    assert len({png for _, png in found}) == len(found)
    # Figures do not pile up.
    assert not plt.get_fignums()


def test_three_iterations_run_each_to_the_step_on_the_slider():
    problem = problems.blur_1d()
    described = [alt for alt, _ in frames(explorers.three_iterations())]
    for k, alt in zip((1, 3, 6, 10, 24, 40, 100), described, strict=True):
        x = run(cgls(problem.A, problem.y), max_iter=k).x
        error = np.linalg.norm(x - problem.x_true) / np.linalg.norm(problem.x_true)
        assert f"after {k} step" in alt
        assert f"CGLS {error:.2f}" in alt


def line_explorer(**options):
    t = np.linspace(0, 1, 9)
    defaults = {
        "values": [1, 2],
        "draw": lambda k: plotting.plot_signals(t, {"line": k * t}),
        "name": "k",
        "describe": lambda k: f"\"{k}\" < 3 & 'more'",
    }
    defaults.update(options)
    return explorers.explore(defaults.pop("values"), defaults.pop("draw"), **defaults)


def test_descriptions_survive_their_quotes():
    assert [alt for alt, _ in frames(line_explorer())] == [
        "\"1\" < 3 & 'more'",
        "\"2\" < 3 & 'more'",
    ]


def test_slider_and_stack_are_linked_in_the_browser(monkeypatch):
    """By a link that the page carries, not by a Python callback."""
    import ipywidgets

    links = []
    monkeypatch.setattr(ipywidgets, "jslink", lambda source, target: links.append((source, target)))
    box = line_explorer(label="k = {}".format, initial=1)
    slider, stack = box.children
    assert links == [((slider, "index"), (stack, "selected_index"))]
    assert [label for label, _ in slider.options] == ["k = 1", "k = 2"]
    assert (slider.index, stack.selected_index) == (1, 1)


def test_palette_keeps_the_frequent_colours_and_stays_near_the_rest():
    """Four lines' worth of exact colours, and no pixel far from what was drawn."""
    figure = plotting.plot_signals(np.arange(4.0), {"a": np.arange(4.0)}).figure
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())
    palette, index = explorers._palette(pixels)
    assert len(palette) <= 40
    seen, drawn = palette[index].astype(float), pixels.astype(float)
    for color in (plotting.COLORS[0], plotting.INK):
        rgba = np.round(255 * np.array(mpl.colors.to_rgba(color)))
        assert (palette == rgba).all(axis=1).any()
    blend = np.abs(seen[:, :, :3] * seen[:, :, 3:] - drawn[:, :, :3] * drawn[:, :, 3:]) / 255
    assert blend.max() < 24
    assert np.abs(seen[:, :, 3] - drawn[:, :, 3]).max() < 24


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"values": [1]}, "values must offer a choice"),
        ({"initial": 2}, "initial is out of range"),
        ({"initial": -1}, "initial is out of range"),
    ],
)
def test_bad_input(options, words):
    with pytest.raises(ValueError, match=words):
        line_explorer(**options)


def test_penalties_needs_matching_shapes():
    with pytest.raises(ValueError, match="wrong shape"):
        explorers.penalties(
            operators.identity(4),
            np.ones(5),
            grid=np.arange(4.0),
            data_grid=np.arange(4.0),
            truth=np.ones(4),
        )


def test_import_brings_in_no_widgets():
    code = "import sys, course_lib.explorers as e; sys.exit('ipywidgets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def drawn(monkeypatch):
    """Call an explorer; return its texts, and the arguments of some drawing functions."""

    def call(name: str, *functions: str) -> tuple[list[str], ...]:
        def blank(axes) -> np.ndarray:
            plt.close(np.ravel(axes)[0].figure)
            return np.zeros((2, 2, 4), dtype=np.uint8)

        def recorded(function, kept):
            def wrapper(*args, **options):
                kept.append((args, options))
                return function(*args, **options)

            return wrapper

        monkeypatch.setattr(plotting, "pixels", blank)
        calls = {function: [] for function in functions}
        for function, kept in calls.items():
            monkeypatch.setattr(plotting, function, recorded(getattr(plotting, function), kept))
        return [alt for alt, _ in frames(getattr(explorers, name)())], *calls.values()

    return call


def test_filtered_signals_say_their_error(drawn):
    """The texts of the two sliders carry the numbers that the sections discuss."""
    (texts,) = drawn("truncation")
    assert any("terms r = 24" in text and "relative error 0.14" in text for text in texts)
    (texts,) = drawn("tikhonov_signal")
    assert any("λ = 1e-04" in text and "sum to 32.8" in text for text in texts)


def numbers(pattern: str, texts: list[str]) -> np.ndarray:
    """The groups of a pattern that each text must contain."""
    return np.array([[float(x) for x in re.search(pattern, text).groups()] for text in texts])


@pytest.mark.parametrize(
    ("name", "touched", "other"),
    [
        ("unrolling", "K steps", "exact"),
        ("outer_objective", "validation", "training"),
        ("step_horizon", None, None),
    ],
)
def test_tangents_touch_the_curve_that_they_belong_to(drawn, name, touched, other):
    """Value and slope agree with a spline through the curve: a finite difference."""
    from scipy.interpolate import CubicSpline

    def line(curve, lams, lam) -> np.ndarray:
        spline = CubicSpline(np.log(lams), curve)
        return np.array([spline(np.log(lam)), spline(np.log(lam), 1)])

    _, calls = drawn(name, "plot_outer")
    assert len(calls) >= 5
    for (lams, losses), options in calls:
        ((lam, value, slope),) = options["tangents"]
        curves = losses if touched else {touched: next(iter(losses.values()))}
        allowed = 1e-3 * abs(value)
        assert np.abs(line(curves[touched], lams, lam) - [value, slope]).max() < allowed
    if other:
        (lams, losses), options = calls[0]
        ((lam, value, slope),) = options["tangents"]
        assert np.abs(line(losses[other], lams, lam) - [value, slope]).min() > 1e-3 * abs(value)


def test_neumann_terms_keep_to_their_bound_or_not(drawn):
    texts, calls = drawn("neumann_terms", "plot_gaps")
    k = np.arange(81)
    for text, ((errors,), options) in zip(texts, calls, strict=True):
        q = numbers(r"^Spectral radius ([\d.]+)\.", [text])[0, 0]
        tail = options["bounds"]["$q^K/(1-q)$"]
        np.testing.assert_allclose(tail, q**k / (1 - q))
        parts = [r**k / (1 - r) for r in (q, q / 2)]
        np.testing.assert_allclose(
            errors["symmetric"], np.hypot(*parts) / np.sqrt(2), rtol=1e-6, atol=1e-12
        )
        seen = tail > 1e-12
        assert (errors["symmetric"] < tail)[seen].all()
        assert (errors["not symmetric"] > tail)[seen].all()


def test_unrolling_shows_errors_of_hypergradients_and_a_bound_that_holds(drawn):
    _, calls = drawn("unrolling", "plot_hypergradient_errors")
    (steps, errors), options = calls[0]
    assert (errors["implicit"] <= options["bounds"]["bound"]).all()
    late = steps >= 100
    assert (errors["implicit"] < errors["unrolled"])[late].all()
    assert (errors["unrolled"] < errors["last 10"])[late].all()
    # The implicit error falls with the rate of the iterates, the cut one hardly.
    assert errors["implicit"][-1] < 1e-2 * errors["implicit"][0]
    assert errors["last 10"][-1] > 0.5 * errors["last 10"][0]


def test_lasso_kink_draws_a_derivative_that_jumps(drawn, monkeypatch):
    asked = []
    hypergradient = explorers.bilevel.lasso
    monkeypatch.setattr(
        explorers.bilevel, "lasso", lambda *args: asked.append(args) or hypergradient(*args)
    )
    texts, _ = drawn("lasso_kink", "figure")
    A, y, _, outer = asked[0]
    top, h = np.abs(A.T @ y).max(), 1e-5

    def loss(lam: float) -> float:
        return hypergradient(A, y, np.log(np.array(lam)), outer, rtol=1e-13).value

    found = numbers(
        r"λ = ([\d.]+) λmax.*here: (\d).* between: (-?[\d.]+) here.*margin (.*)\.", texts
    )
    for share, _, slope, _ in found:
        lam = share * top
        difference = (loss(lam + h) - loss(lam - h)) / (2 * h)
        assert slope == pytest.approx(difference, abs=2e-3)
    jump = np.diff(found[:, 2])[found[:-1, 0] == 0.14].item()
    assert jump < -2
    above = found[found[:, 0] == 0.145][0]
    assert above[3] < 0.01
    assert (np.diff(found[:, 1]) <= 0).all()


def test_outer_objective_has_its_flat_tangent_in_the_valley(drawn):
    texts, calls = drawn("outer_objective", "plot_outer")
    (lams, losses), _ = calls[0]
    assert (np.diff(losses["training"]) > 0).all()
    best = {name: lams[values.argmin()] for name, values in losses.items()}
    assert 1 / 3 < best["validation"] / best["test"] < 3
    found = numbers(r"λ = (.*?)\. .*slope (\S+) by", texts)
    assert ((found[:, 0] < 0.99 * best["validation"]) <= (found[:, 1] < 0)).all()
    assert ((found[:, 0] > 1.01 * best["validation"]) <= (found[:, 1] > 0)).all()


def test_inner_tolerance_a_fixed_one_ends_short_of_the_goal(drawn):
    texts, outer, runs = drawn("inner_tolerance", "plot_outer", "plot_valleys")
    found = numbers(r"Tolerance (\S+)\. .* at (\S+) after (\d+); .* at (\S+) after (\d+)\.", texts)
    tol, fixed, steps, tied, tied_steps = found.T
    assert (fixed[tol >= 1e-6] > 1e4 * tied[tol >= 1e-6]).all()
    assert (fixed > tied).all()
    assert tied.max() < 1e-6
    assert fixed[tol >= 1e-2].min() > 1
    assert fixed[tol <= 1e-6].max() < 1e-2
    assert steps[-1] >= tied_steps[-1]
    # The last of the exact iterates lie on the curve; the rough ones do not.
    (lams, losses), options = outer[-1]
    at, heights = options["path"]
    curve = np.interp(np.log(at), np.log(lams), np.log(losses["validation"]))
    np.testing.assert_allclose(curve[-5:], np.log(heights[-5:]), atol=0.02)
    assert len(runs) == len(texts)


def test_learned_weights_overfit_in_the_end(drawn):
    texts, _ = drawn("learned_weights", "show_pictures")
    error, loss = numbers(r"relative error ([\d.]+),.* loss is ([\d.]+)\.", texts).T
    assert (np.diff(loss) < 0).all()
    assert 0 < error.argmin() < len(error) - 1
    assert error.min() < 0.8 * error[0]
    assert error[-1] > 1.1 * error.min()


def test_adaptation_of_a_meta_learned_start_needs_one_step(drawn):
    texts, calls = drawn("adaptation", "plot_adaptation")
    meta_learned, jointly = numbers(r"tasks: ([\d.]+) and ([\d.]+)\.", texts).T
    assert meta_learned[0] == pytest.approx(jointly[0], rel=0.1)
    assert meta_learned[1] < 0.5 * jointly[1]
    assert (np.diff(meta_learned) < 0).all()
    for (grid, _), options in calls:
        x, y = (part.ravel() for part in options["support"])
        np.testing.assert_allclose(np.interp(x, grid, options["truth"]), y, atol=0.02)
    first = calls[0][0][1]
    np.testing.assert_array_equal(first["before"], first["after"])


def test_step_horizon_moves_the_best_step_to_that_of_the_theorem(drawn):
    texts, _ = drawn("step_horizon", "plot_outer")
    best, greedy, slope = numbers(r"near ([\d.]+)\. At ([\d.]+), .* is (\S+)\.", texts).T
    assert best[0] == pytest.approx(greedy[0], rel=0.03)
    assert (np.diff(best) >= 0).all()
    assert best[-1] == pytest.approx(2 / 11, rel=0.03)
    assert slope[0] == 0
    assert (slope[1:] < -0.2).all()


def test_clipped_mean_ends_between_the_median_and_the_mean(drawn):
    texts, _ = drawn("clipped_mean", "plot_signals")
    mean, bound, end, median = numbers(
        r"targets, ([\d.]+); .* at ([\d.]+), zero at ([\d.]+)\. .* is ([\d.]+)\.", texts
    ).T
    assert (np.diff(end) > 0).all()
    assert end[-1] == mean[-1]
    assert abs(end[0] - median[0]) < 0.1 * (mean[0] - median[0])
    targets = np.random.default_rng(0).exponential(1.0, 41) ** 2
    for c, w in zip(bound, end, strict=True):
        around = [np.clip(w + h - targets, -c, c).mean() for h in (-0.03, 0.03)]
        assert around[0] < 0 < around[1]
