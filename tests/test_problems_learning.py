"""Problems to learn on: what is drawn has the stated distribution, and sets are kept apart."""

import math
import re
import sys
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from conftest import make_like
from kit import assert_alike, eps, relative, to_numpy

from course_lib import problems
from course_lib.arrays import norm, to_float

# --- sinusoids -------------------------------------------------------------------------------


def test_sinusoids_have_the_stated_shapes_and_formula():
    data = problems.sinusoids(7, 5, queries=11, seed=3)
    assert data.x_support.shape == data.y_support.shape == (7, 5, 1)
    assert data.x_query.shape == data.y_query.shape == (7, 11, 1)
    for x, y in ((data.x_support, data.y_support), (data.x_query, data.y_query)):
        np.testing.assert_allclose(y, data.amplitude * np.sin(x - data.phase), atol=1e-14)
        # The phase is subtracted: the other convention is another function.
        assert np.abs(y - data.amplitude * np.sin(x + data.phase)).max() > 0.1
    # Query points are new ones.
    assert not np.isin(data.x_query, data.x_support).any()
    assert data.classes is None


def test_sinusoids_are_distributed_as_stated():
    data = problems.sinusoids(4000, 3, queries=3)
    x = np.concatenate([data.x_support, data.x_query], axis=1)
    for values, low, high in ((data.amplitude, 0.1, 5), (data.phase, 0, math.pi), (x, -5, 5)):
        assert low <= values.min() <= values.max() <= high
        assert scipy.stats.kstest(values.ravel(), "uniform", (low, high - low)).pvalue > 1e-3
    # Independent of each other, and from task to task.
    table = np.corrcoef(np.column_stack([data.amplitude[:, 0], data.phase[:, 0], x[:, :, 0]]).T)
    assert np.abs(table - np.eye(8)).max() < 5 / math.sqrt(4000)


def test_mean_of_the_sinusoids():
    """-5.1 cos(x) / pi, as the docstring says; plus for the other convention."""
    data = problems.sinusoids(20000, 1, seed=1)
    c = np.cos(data.x_query.ravel())
    slope = (c @ data.y_query.ravel()) / (c @ c)
    assert slope == pytest.approx(-5.1 / math.pi, abs=0.03)


def test_sinusoids_seeds_and_libraries(like):
    data, same = problems.sinusoids(4, 3, like=like), problems.sinusoids(4, 3)
    for field in ("x_support", "y_support", "x_query", "y_query", "amplitude", "phase"):
        assert_alike(getattr(data, field), like)
        assert relative(getattr(data, field), getattr(same, field)) <= 10 * eps(like)
    assert relative(problems.sinusoids(4, 3, seed=1).y_query, same.y_query) > 0.1


# --- digits ----------------------------------------------------------------------------------

sklearn_datasets = pytest.importorskip("sklearn.datasets")
PIXELS, LABELS = sklearn_datasets.load_digits(return_X_y=True)
# Which picture of the collection it is: all of them differ.
NUMBER = {row.tobytes(): i for i, row in enumerate(PIXELS / 16.0)}


def numbers(x) -> np.ndarray:
    return np.array([[NUMBER[row.tobytes()] for row in task] for task in x])


def test_digits_are_labelled_by_what_they_show():
    assert len(NUMBER) == len(PIXELS)
    data = problems.digits(20, 3, ways=4, queries=6, seed=5)
    assert data.x_support.shape == (20, 12, 64)
    assert data.y_support.shape == (20, 12, 4)
    assert data.x_query.shape == (20, 24, 64)
    assert data.y_query.shape == (20, 24, 4)
    for x, y, each in ((data.x_support, data.y_support, 3), (data.x_query, data.y_query, 6)):
        assert 0 == x.min() < x.max() == 1
        assert set(np.unique(y)) == {0.0, 1.0}
        np.testing.assert_array_equal(y.sum(axis=2), 1)
        np.testing.assert_array_equal(y.sum(axis=1), each)
        shown = np.take_along_axis(data.classes, y.argmax(axis=2), axis=1)
        np.testing.assert_array_equal(shown, LABELS[numbers(x)])


def test_digits_of_a_task_differ():
    data = problems.digits(30, 2, queries=5)
    both = np.concatenate([numbers(data.x_support), numbers(data.x_query)], axis=1)
    for task, classes in zip(both, data.classes, strict=True):
        assert len(set(task)) == both.shape[1]
        assert len(set(classes)) == 5
    # The order is drawn for each task: outputs have no meaning of their own.
    assert len({tuple(task) for task in data.classes}) > 20


def test_digits_classes_are_kept_apart():
    train = problems.digits(10, 5, ways=3)
    test = problems.digits(10, 5, ways=3, classes=(5, 6, 7, 8, 9))
    assert set(train.classes.ravel()) <= set(range(5))
    assert set(test.classes.ravel()) <= set(range(5, 10))
    assert not set(numbers(train.x_support).ravel()) & set(numbers(test.x_support).ravel())


def test_digits_can_be_learned():
    """The nearest mean of the support set tells most of the query set."""
    data = problems.digits(50, 5, seed=2)
    means = data.x_support.reshape(50, 5, 5, 64).mean(axis=2)
    gap = ((data.x_query[:, :, None] - means[:, None]) ** 2).sum(axis=3)
    right = gap.argmin(axis=2) == data.y_query.argmax(axis=2)
    assert right.mean() > 0.8


def test_digits_seeds_and_libraries(like):
    data, same = problems.digits(2, 1, like=like), problems.digits(2, 1)
    for field in ("x_support", "y_support", "x_query", "y_query"):
        assert_alike(getattr(data, field), like)
        np.testing.assert_array_equal(to_numpy(getattr(data, field)), getattr(same, field))
    assert (problems.digits(2, 1, seed=1).x_query != same.x_query).any()


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="digits needs scikit-learn.*pip install scikit-learn"):
        problems.digits(1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ways": 6}, "ways is out of range: expected at least 1 and at most 5, got 6"),
        (
            {"queries": 177},
            "shots \\+ queries is too large: expected at most 177 pictures.*got 178",
        ),
        ({"classes": (1, 1, 2)}, "classes must differ: expected a tuple"),
        ({"classes": [1, 2]}, "classes must differ: expected a tuple"),
        ({"classes": (1, 10)}, "classes is out of range"),
        ({"classes": (1, "2")}, "classes must be a whole number"),
        ({"classes": ()}, "ways is out of range"),
    ],
)
def test_digits_refuse(options, words):
    with pytest.raises(ValueError, match=words):
        problems.digits(1, 1, **options)


# --- pictures --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["astronaut", "coffee", "cat", "rocket"])
def test_pictures_in_colour_become_their_luminance(name):
    from skimage import color, data

    # scikit-image rounds the weights otherwise.
    expected = color.rgb2gray(getattr(data, name)())
    np.testing.assert_allclose(problems.picture(name), expected, atol=3e-4)


def squares(sets) -> list[tuple[str, str, int, int]]:
    return [(part, *place) for part in sets.places for place in sets.places[part]]


@pytest.mark.slow
@pytest.mark.parametrize(("size", "reduce"), [(32, 2), (20, 1), (17, 3)])
def test_patches_are_where_they_are_said_to_be(size, reduce):
    sets = problems.pictures(size, reduce=reduce, train=20, seed=4)
    for part in ("train", "validation", "test"):
        patches = getattr(sets, part)
        assert patches.shape == (20 if part == "train" else 16, size, size)
        assert 0 <= patches.min() < patches.max() <= 1
        for patch, (name, row, column) in zip(patches, sets.places[part], strict=True):
            pixels = problems.picture(name)[reduce * row :, reduce * column :]
            for i, j in ((0, 0), (size - 1, 0), (3, size - 1)):
                block = pixels[reduce * i : reduce * (i + 1), reduce * j : reduce * (j + 1)]
                assert block.shape == (reduce, reduce)
                assert patch[i, j] == pytest.approx(block.mean(), abs=1e-14)


@pytest.mark.parametrize("size", [16, 32])
def test_sets_share_no_picture_and_patches_no_pixel(size):
    # As many as there are: then every square of every picture is used.
    with pytest.raises(ValueError, match="have (\\d+) squares") as error:
        problems.pictures(size, train=10**6)
    count = int(re.search(r"have (\d+)", str(error.value))[1])
    sets = problems.pictures(size, train=count)
    assert set(sets.places) == {"train", "validation", "test"}
    for one, other in combinations(sets.places, 2):
        assert not {p[0] for p in sets.places[one]} & {p[0] for p in sets.places[other]}
    for a, b in combinations(squares(sets), 2):
        apart = abs(a[2] - b[2]) >= size or abs(a[3] - b[3]) >= size
        assert a[1] != b[1] or apart, (a, b)
    # Nor is any patch a copy of another.
    every = np.concatenate([sets.train, sets.validation, sets.test])
    assert len(np.unique(every.reshape(len(every), -1), axis=0)) == len(every)


def test_every_picture_stands_in_one_set():
    sets = problems.pictures(64, reduce=1, train=100, validation=60, test=60)
    found = {part: {place[0] for place in sets.places[part]} for part in sets.places}
    assert found == {part: set(names) for part, names in problems.SETS.items()}


def test_pictures_seeds_and_libraries(like):
    sets, same = problems.pictures(8, like=like), problems.pictures(8)
    for part in ("train", "validation", "test"):
        assert_alike(getattr(sets, part), like)
        assert relative(getattr(sets, part), getattr(same, part)) <= eps(like)
    other = problems.pictures(8, seed=1)
    assert set(other.places["test"]) != set(same.places["test"])
    # The size of one set does not change another.
    assert problems.pictures(8, train=5).places["test"] == same.places["test"]


def test_too_many_patches_are_refused():
    with pytest.raises(ValueError, match="test is too large: .* 16 squares of 64 x 64 .*got 17"):
        problems.pictures(64, train=1, validation=1, test=17)


# --- a family of blurs -----------------------------------------------------------------------


def drawn(problem) -> tuple[int, str, float, float]:
    """What the name says: picture, kind, width, angle."""
    words = re.fullmatch(r"picture (\d+), (\w+), width ([\d.]+)(?:, angle (\d+))?", problem.name)
    return int(words[1]), words[2], float(words[3]), float(words[4] or "nan")


def kernel(problem) -> np.ndarray:
    """What one bright pixel in the middle becomes."""
    bright = np.zeros(problem.A.in_shape)
    bright[bright.shape[0] // 2, bright.shape[1] // 2] = 1.0
    return to_numpy(problem.A @ bright)


def spread(p: np.ndarray) -> np.ndarray:
    """The matrix of second moments about the middle, (up, right)."""
    i = np.arange(len(p)) - len(p) // 2
    up, right = -i[:, None] + 0 * i, i + 0 * i[:, None]
    return np.array([[(p * a * b).sum() for a in (up, right)] for b in (up, right)])


def test_blurs_move_light_as_far_as_their_width_says():
    family = problems.blur_family(60, 64, width=(1.0, 3.0), seed=2)
    kinds = {drawn(problem)[1] for problem in family}
    assert kinds == {"gaussian", "disk", "motion"}
    for problem in family:
        _, kind, width, _ = drawn(problem)
        p = kernel(problem)
        assert p.sum() == pytest.approx(1, abs=1e-12)
        # Pixels smear a little: by 1/12 for each direction, and twice that where a point is
        # shared among four. The name has two digits.
        assert np.trace(spread(p)) == pytest.approx(2 * width**2, abs=0.4 + 0.02 * width), kind


def test_motion_goes_along_its_angle():
    family = problems.blur_family(30, 64, kinds=("motion",), width=(2.0, 3.0))
    angles = [drawn(problem)[3] for problem in family]
    assert min(angles) < 30
    assert max(angles) > 150
    for problem, angle in zip(family, angles, strict=True):
        up, right = np.linalg.eigh(spread(kernel(problem)))[1][:, -1]
        gap = (math.degrees(math.atan2(up, right)) - angle) % 180
        assert min(gap, 180 - gap) < 3


def test_noise_of_the_family():
    family = problems.blur_family(200, 32, width=(0.8, 0.9), noise=(0.001, 0.1), seed=6)
    levels = np.array([problem.delta / to_float(norm(problem.y_exact)) for problem in family])
    assert 0.001 <= levels.min() <= levels.max() <= 0.1
    assert scipy.stats.kstest(np.log10(levels), "uniform", (-3, 2)).pvalue > 1e-3
    e = [(problem.y - problem.y_exact) / problem.noise_std for problem in family[:3]]
    assert np.mean(np.square(e)) == pytest.approx(1, abs=0.1)
    assert np.abs(np.corrcoef([x.ravel() for x in e]) - np.eye(3)).max() < 0.2
    widths = [drawn(problem)[2] for problem in family]
    assert 0.8 <= min(widths) <= max(widths) <= 0.9


def test_family_takes_names_and_patches():
    named = problems.blur_family(20, 32, scenes=("moon", "coins"))
    assert {drawn(problem)[0] for problem in named} == {0, 1}
    for problem in named:
        name = ("moon", "coins")[drawn(problem)[0]]
        np.testing.assert_array_equal(problem.x_true, problems.picture(name, 32))
    sets = problems.pictures(32, train=5)
    for problem in problems.blur_family(20, 32, scenes=sets.train):
        np.testing.assert_array_equal(problem.x_true, sets.train[drawn(problem)[0]])
        np.testing.assert_allclose(problem.A @ problem.x_true, problem.y_exact, atol=1e-14)


def test_family_grows_at_its_end_and_has_seeds():
    few, many = problems.blur_family(3, 32), problems.blur_family(5, 32)
    for one, same in zip(few, many, strict=False):
        assert one.name == same.name
        np.testing.assert_array_equal(one.y, same.y)
    assert len({problem.name for problem in many}) == 5
    assert problems.blur_family(1, 32, seed=1)[0].name != few[0].name


def test_family_in_every_library(like):
    for boundary in ("periodic", "zero"):
        (problem,) = problems.blur_family(1, 32, boundary=boundary, like=like)
        (same,) = problems.blur_family(1, 32, boundary=boundary)
        assert problem.A.shift_invariant == (boundary == "periodic")
        for field in ("x_true", "y_exact", "y"):
            assert_alike(getattr(problem, field), like)
            assert relative(getattr(problem, field), getattr(same, field)) <= 200 * eps(like)


def test_family_is_made_like_its_patches():
    patches = problems.pictures(32, train=2, like=make_like("numpy", "float32")).train
    assert problems.blur_family(1, 32, scenes=patches)[0].y.dtype == np.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kinds": "disk"}, "kinds must be names: expected a tuple"),
        ({"kinds": ()}, "kinds must be names: expected a tuple"),
        ({"kinds": ("box",)}, "kinds must be one of gaussian, disk, motion: got 'box'"),
        ({"scenes": ()}, "scenes must be names: expected a tuple"),
        ({"scenes": ("nobody",)}, "scenes must be one of text, .*: got 'nobody'"),
        ({"scenes": np.ones((2, 32, 31))}, "scenes has the wrong shape"),
        ({"scenes": np.ones((32, 32))}, "scenes has the wrong number of dimensions"),
        ({"scenes": "camera"}, "scenes must be an array"),
        ({"width": 2.0}, "width must be a range: expected \\(lowest, highest\\), got 2.0"),
        ({"width": (2.0, 1.0)}, "width must be a range: expected lowest <= highest"),
        ({"width": (0.0, 1.0)}, "width must be positive"),
        ({"noise": (0.0, 1.0)}, "noise must be positive"),
        ({"noise": (0.1,)}, "noise must be a range"),
        ({"boundary": "free"}, "boundary must be one of"),
        ({"width": (4.0, 4.0), "kinds": ("gaussian",)}, "psf must be no larger than the array"),
    ],
)
def test_family_refuses(options, words):
    with pytest.raises(ValueError, match=words):
        problems.blur_family(1, 32, **options)
