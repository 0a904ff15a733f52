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


def test_filtered_signals_say_their_error():
    """The texts of the two sliders carry the numbers that the sections discuss."""
    texts = [alt for alt, _ in frames(explorers.truncation())]
    assert any("terms r = 24" in text and "relative error 0.14" in text for text in texts)
    texts = [alt for alt, _ in frames(explorers.tikhonov_signal())]
    assert any("λ = 1e-04" in text and "sum to 32.8" in text for text in texts)
