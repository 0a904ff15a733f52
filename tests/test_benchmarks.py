"""The benchmark: who counts, what a verdict says, whether the judges judge right, and its page."""

import copy
import json
import sys
from pathlib import Path

import contests
import learned
import measuring
import numpy as np
import pytest
import run as bench
from measuring import Contestant, Task

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "book" / "appendix" / "performance.json"
PAGE = ROOT / "book" / "appendix" / "performance.md"
TASKS = contests.TASKS | learned.TASKS
TASK = Task("a-task", "A group", "a title", "height", 1e-3, 1.0, 0.5)


def entry(name: str, accuracy: float, *seconds: float) -> dict:
    low, middle, high = (*seconds, *seconds, *seconds)[:3] if len(seconds) == 1 else seconds
    numbers = {"min": low, "median": middle, "max": high}
    return {
        "name": name,
        "setting": "",
        "accuracy": accuracy,
        "seconds": [low, middle, high],
    } | numbers


def record(*rows: dict) -> dict:
    return {
        "schema": 1,
        "date": "2026-01-01",
        "machine": "Linux x86_64",
        "cores": 2,
        "python": "3.11.7",
        "threads": "1",
        "versions": {"numpy": "2.4.6"},
        "seconds": 1.0,
        "rows": list(rows),
    }


# Who counts


@pytest.mark.parametrize(
    ("ratio", "bar", "beyond", "word"),
    [
        (0.4, 1.0, 0.5, "beyond"),
        (0.5, 1.0, 0.5, "beyond"),
        (0.51, 1.0, 0.5, "met"),
        (1.0, 1.0, 0.5, "met"),
        (1.01, 1.0, 0.5, "missed"),
        (0.1, 1.0, None, "met"),
        (9.0, None, None, "no bar"),
        (None, 1.0, 0.5, "not comparable"),
        (None, None, None, "not comparable"),
    ],
)
def test_verdict(ratio, bar, beyond, word):
    assert measuring.verdict(ratio, bar, beyond) == word
    assert word in measuring.VERDICTS
    assert word in bench.WORDS


def test_best_peer_is_the_fastest_that_counts():
    peers = [entry("fast, wrong", 1e-2, 0.1), entry("slow", 0.0, 4.0), entry("good", 1e-3, 2.0)]
    row = measuring.row(TASK, entry("course_lib", 1e-4, 3.0, 5.0, 7.0), peers)
    assert (row["best"], row["ratio"], row["verdict"]) == ("good", 1.5, "missed")
    assert [peer["reached"] for peer in row["peers"]] == [False, True, True]


@pytest.mark.parametrize(
    ("ours", "theirs"), [(1e-2, 1e-4), (1e-4, 1e-2), (np.nan, 1e-4), (1e-4, np.nan)]
)
def test_no_ratio_between_answers_of_different_quality(ours, theirs):
    row = measuring.row(TASK, entry("course_lib", ours, 1.0), [entry("peer", theirs, 9.0)])
    assert row["ratio"] is None
    assert row["verdict"] == "not comparable"


def test_loosest():
    def make(tol):
        return lambda: tol

    tolerances = [1e-1, 1e-2, 1e-3, 1e-4]
    assert measuring.loosest(make, tolerances, lambda x: 3 * x, 1e-2) == 1e-3
    assert measuring.loosest(make, tolerances, lambda x: 1.0, 1e-2) == 1e-4


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("needed", [1, 7, 100, 730])
def test_fewest(power, needed):
    tried = []

    def make(steps):
        tried.append(steps)
        return lambda: steps

    found = measuring.fewest(make, lambda k: (needed / k) ** power, 1.0, start=20, limit=1000)
    assert needed <= found <= 1.06 * needed + 1
    assert len(tried) <= 8


def test_fewest_gives_up_at_the_limit():
    assert measuring.fewest(lambda k: lambda: k, lambda k: 1 / k, 1e-9, start=10, limit=50) == 50


def test_steps_until():
    assert measuring.steps_until([5.0, 3.0, 1.0, 0.0], float, 1.0) == 3
    assert measuring.steps_until([5.0, 3.0], float, 1.0) is None
    assert 1000 <= measuring.steps_until(range(5000), lambda k: -k, -1000) <= 1020


def test_callback_steps():
    def solve(look):
        for x in (5.0, 3.0, 1.0, 0.0):
            look(x)

    assert contests.callback_steps(solve, float, 1.0) == 3
    assert contests.callback_steps(solve, float, -1.0) is None


def test_measure_takes_turns():
    turns = []

    def way(name):
        def solve():
            turns.append(name)
            return len(turns)

        return Contestant(name, solve, f"told {name}")

    found = measuring.measure([way("a"), way("b")], lambda answer: answer / 10, 1.0, budget=1e-6)
    assert turns == ["a", "b"] * measuring.FEWEST
    assert (found["a"]["accuracy"], found["b"]["accuracy"]) == (0.1, 0.2)
    for name in "ab":
        times = found[name]["seconds"]
        assert len(times) == measuring.FEWEST
        assert found[name]["min"] == min(times) <= found[name]["median"] <= found[name]["max"]
        assert found[name]["setting"] == f"told {name}"


def test_who_does_not_count_is_not_repeated():
    ways = [Contestant("good", lambda: 0.0), Contestant("bad", lambda: 1.0)]
    found = measuring.measure(ways, float, 0.5, budget=1e-6)
    assert [len(found[name]["seconds"]) for name in ("good", "bad")] == [measuring.FEWEST, 1]


# The record


@pytest.fixture
def rows():
    peers = [entry("peer", 1e-4, 1.0, 2.0, 3.0)]
    return [
        measuring.row(Task("met", "G", "t", "m", 1e-3, 1.0, 0.5), entry("us", 0.0, 0.9), peers),
        measuring.row(Task("missed", "G", "u", "m", 1e-3, 1.0, 0.5), entry("us", 0.0, 4.0), peers),
        measuring.row(Task("free", "H", "v", "m", 1e-3), entry("us", 0.0, 4.0), peers),
        measuring.row(Task("none", "H", "w", "m", 1e-9, 1.0), entry("us", 0.0, 4.0), peers),
    ]


def test_record_survives_json(rows):
    again = json.loads(json.dumps(record(*rows)))
    assert measuring.complaints(again) == []
    assert [r["verdict"] for r in again["rows"]] == ["met", "missed", "no bar", "not comparable"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda r: r.pop("threads"), "expected the fields"),
        (lambda r: r["rows"][0].pop("bar"), "expected the fields"),
        (lambda r: r["rows"][0]["ours"].pop("median"), "expected the fields"),
        (lambda r: r.update(schema=2), "schema"),
        (lambda r: r.update(cores="2"), "cores"),
        (lambda r: r["rows"][1].update(id="met"), "two rows"),
        (lambda r: r["rows"][1].update(verdict="met"), "verdict"),
        (lambda r: r["rows"][1].update(ratio=0.1), "ratio"),
        (lambda r: r["rows"][3]["peers"][0].update(reached=True), "peers"),
    ],
)
def test_complaints(rows, spoil, words):
    wrong = copy.deepcopy(record(*rows))
    spoil(wrong)
    assert words in " ".join(measuring.complaints(wrong))


def test_what_is_printed(rows):
    text = "\n".join(line for row in rows for line in bench.lines(row))
    assert "G: t: ratio 0.90 (bar 1), meets its bar" in text
    assert "G: u: ratio 4.00 (bar 1), MISSES ITS BAR" in text
    assert "H: w: ratio - (bar 1), NOT COMPARABLE" in text
    assert text.count("not good enough") == 1


def test_command_line(tmp_path, capsys, monkeypatch):
    assert bench.main([]) == 2
    monkeypatch.setattr(bench, "missing", list)
    assert bench.main([str(tmp_path / "out.json"), "no-such-contest"]) == 2
    assert "no-such-contest" in capsys.readouterr().out
    monkeypatch.setattr(bench, "missing", lambda: ["celer"])
    assert bench.main([str(tmp_path / "out.json")]) == 1
    assert "celer" in capsys.readouterr().out
    assert not (tmp_path / "out.json").exists()


# The judges and the contests, at sizes of no interest


def test_lasso_judge():
    from sklearn.linear_model import Lasso

    A, y = contests.gaussian(20, 30, 3)
    judge = contests.Lasso(A, y, 0.1 * float(np.abs(A.T @ y).max()))
    alpha = judge.lam / len(y)
    x = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14, max_iter=10**5).fit(A, y).coef_
    assert judge.lower(x) == pytest.approx(judge.objective(x), rel=1e-10)
    rng = np.random.default_rng(0)
    for _ in range(10):
        z = x + 0.1 * rng.standard_normal(30)
        assert judge.lower(z) < judge.objective(x) < judge.objective(z)


def test_total_variation_judge():
    rng = np.random.default_rng(0)
    x, p = rng.standard_normal((5, 7)), rng.standard_normal((2, 5, 7))
    assert (contests.differences(x) * p).sum() == pytest.approx(-(x * contests.divergence(p)).sum())
    lower = contests.lower_bound_of_denoising(x, 0.3, 3000)

    def objective(z):
        return 0.5 * ((z - x) ** 2).sum() + 0.3 * contests.total_variation(z)

    denoised = contests.skimage_denoiser(x, 0.3)(3000)
    assert lower <= objective(denoised) == pytest.approx(lower, rel=1e-3)


def finished(rows, *ids: str) -> None:
    """All rows are there, and every answer counts: each peer's scaling is translated rightly."""
    rows = list(rows)
    assert [row["id"] for row in rows] == list(ids)
    for row in rows:
        assert all(e["reached"] for e in (row["ours"], *row["peers"])), bench.lines(row)
    assert measuring.complaints(record(*rows)) == []


def test_linear_contests():
    finished(contests.cgls_rows("cgls", 60, 20, 40), "cgls")
    finished(contests.convolution_rows("convolution", 32, 1.0), "convolution")
    finished(contests.tikhonov_rows("tikhonov", 20), "tikhonov")
    finished(contests.many_lambdas_rows("many-lambdas", 20, 5), "many-lambdas")


def test_choice_contests():
    finished(contests.leave_one_out_rows("leave-one-out", 30, 20), "leave-one-out")
    finished(contests.path_rows("path", 40, 60, 5), "path")


def needs(*peers: str) -> pytest.MarkDecorator:
    """Skip where one of these packages is not installed."""
    missing = set(peers) & set(bench.missing())
    return pytest.mark.skipif(bool(missing), reason="needs pip install -e '.[bench]'")


@needs("celer", "pylops", "pyproximal", "scikit-learn", "skglm")
@pytest.mark.filterwarnings("ignore")
def test_lasso_contest():
    A, y = contests.gaussian(40, 80, 5)
    rows = list(contests.lasso_rows("gaussian-0.1", A, y, 0.1))
    kinds = ("lasso", "fista", "fista-objective", "fista-distance")
    assert {row["id"] for row in rows} == {f"{kind}-gaussian-0.1" for kind in kinds}
    finished(rows, *(row["id"] for row in rows))


@needs("pylops", "pyproximal")
@pytest.mark.filterwarnings("ignore")
def test_total_variation_contests():
    v = contests.noisy_picture(size=32)
    finished(contests.denoising_rows(v, 0.1, {"tv-1e-3": 1e-3}), "tv-1e-3")
    finished(contests.deblurring_rows("deblurring", 32), "deblurring")
    finished(contests.tomography_rows("tomography", 16, 8, reference=3000), "tomography")


# The learned half


def slope_of(J, theta, h=1e-5):
    return (J(theta + h) - J(theta - h)) / (2 * h)


def test_judge_of_the_lasso_hypergradient():
    A, y = contests.gaussian(40, 80, 5)
    lam = 0.1 * float(np.abs(A.T @ y).max())
    support, signs = learned.sparse_solution(A, y, lam)
    x = learned.on_support(A, y, lam, support, signs)
    judge = contests.Lasso(A, y, lam)
    assert judge.lower(x) == pytest.approx(judge.objective(x), rel=1e-12)
    assert np.array_equal(np.flatnonzero(x), support)


def test_judge_of_the_tikhonov_hypergradient():
    x, y, _, h = learned.blurred(16, 1.0)
    A = np.stack(
        [
            np.fft.irfft2(h * np.fft.rfft2(e.reshape(16, 16)), s=(16, 16)).ravel()
            for e in np.eye(256)
        ],
        axis=1,
    )
    solution = np.linalg.solve(A.T @ A + 0.01 * np.eye(256), A.T @ y.ravel())
    value, slope = learned.tikhonov_reference(x, y, h, 0.01)
    assert value == pytest.approx(0.5 * ((solution - x.ravel()) ** 2).sum())
    J = lambda theta: learned.tikhonov_reference(x, y, h, np.exp(theta))[0]  # noqa: E731
    assert slope == pytest.approx(slope_of(J, np.log(0.01)), rel=1e-6)


@pytest.mark.parametrize("radius", learned.RADII)
def test_judge_of_the_fixed_point(radius):
    W, b, x = learned.layer(radius, 60)
    assert np.linalg.norm(np.tanh(W @ x + b) - x) <= 1e-12
    eigenvalues = np.linalg.eigvals((1 - x**2)[:, None] * W)
    assert np.abs(eigenvalues).max() == pytest.approx(radius, rel=1e-6)
    found = learned.anderson(lambda x: np.tanh(W @ x + b), np.zeros(60), 1e-12)
    assert np.linalg.norm(found - x) <= 1e-9


def test_judge_of_the_meta_gradient():
    pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    w = learned.meta.Network(learned.WIDTHS).start(0)
    data = learned.problems.sinusoids(2, 3)
    sets = data.x_support, data.y_support, data.x_query, data.y_query
    moments = np.stack([np.zeros(w.size), np.ones(w.size)])

    def loss(w, x, y):
        for layer, (M, bias) in enumerate(learned.unpack(w)):
            x = (np.maximum(x, 0) if layer else x) @ M + bias
        return ((x - y) ** 2).mean()

    def slope(w, x, y):
        """By complex steps: exact to rounding."""
        return np.array([loss_complex(w, e, x, y) for e in np.eye(w.size)])

    def loss_complex(w, e, x, y):
        z, h = w + 1e-30j * e, x.astype(complex)
        for layer, (M, bias) in enumerate(learned.unpack(z)):
            h = (np.where(h.real > 0, h, 0) if layer else h) @ M + bias
        return ((h - y) ** 2).mean().imag / 1e-30

    def after(w):
        adapted = [w - learned.STEP * slope(w, x, y) for x, y in zip(*sets[:2], strict=True)]
        return np.mean([loss(v, x, y) for v, x, y in zip(adapted, *sets[2:], strict=True)])

    gradient, new = learned.meta_reference(w, moments, sets, 1)
    t = rng.standard_normal(w.size)
    wanted = slope_of(lambda s: after(w + s * t), 0.0, 1e-6)
    assert gradient @ t == pytest.approx(wanted, rel=1e-5)
    # One step of Adam from m = 0 and s = 1.
    k = learned.DONE + 1
    m, s = 0.1 * gradient / (1 - 0.9**k), (0.999 + 0.001 * gradient**2) / (1 - 0.999**k)
    assert new == pytest.approx(w - learned.RATE * m / np.sqrt(s), abs=1e-12)


def test_tikhonov_hypergradient_needs_at_most_12_images():
    x, y, psf, _ = learned.blurred(128)
    A = learned.operators.convolution(psf, x.shape, boundary="periodic")
    outer = learned.functionals.least_squares(None, x)

    def gradient():
        return learned.bilevel.tikhonov(A, y, np.log(0.01), outer, rtol=1e-6)

    assert learned.peak(gradient) / (8 * x.size) <= 12


def test_peak_counts_arrays():
    assert 3 <= learned.peak(lambda: [np.ones(10**5) for _ in range(3)]) / 8e5 < 3.1
    twice = learned.scaled(entry("solve", 0.0, 1.0, 2.0, 3.0), 2.0, "two solves", "")
    assert (twice["min"], twice["median"], twice["max"]) == (2.0, 4.0, 6.0)
    assert twice["seconds"] == [2.0, 4.0, 6.0]


@needs("sparho", "scikit-learn")
@pytest.mark.filterwarnings("ignore")
def test_lasso_hypergradient_contest():
    rows = learned.lasso_hypergradient_rows("46", 0.1, 60, 100)
    finished(rows, "hypergradient-lasso-46", "hypergradient-share-46")


@needs("jax", "jaxopt", "torch")
@pytest.mark.filterwarnings("ignore")
def test_tikhonov_hypergradient_contests():
    *rows, memory = learned.tikhonov_hypergradient_rows("1e4", 64)
    finished(rows, "hypergradient-cg-1e4", "hypergradient-solves-1e4")
    assert memory["id"] == "hypergradient-memory-1e4"
    # The way back through all steps keeps an image or more for each of them.
    assert [e["reached"] for e in (memory["ours"], *memory["peers"])] == [True, True, False]
    finished(learned.fourier_rows("1e3", 65, 3), "hypergradient-fft-1e3")


@needs("jax", "jaxopt", "lineax", "optimistix")
@pytest.mark.filterwarnings("ignore")
def test_fixed_point_contest():
    finished(learned.fixed_point_rows("0.79", 0.79, 60), "fixed-point-0.79")


@needs("higher", "jax", "torch", "torchopt")
@pytest.mark.filterwarnings("ignore")
def test_meta_contest():
    finished(learned.meta_rows("1", 2, 2, 3), "maml-1", "maml-jax-1")


# The page


@pytest.fixture
def page(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    import book_performance

    yield book_performance
    sys.modules.pop("book_performance")


def test_summary_says_what_falls_short(page, rows):
    text = " ".join(node.astext() for node in page.summary(record(*rows)))
    assert "1 of 3 rows that have a bar meet it. Short of it: G, u; H, w." in text
    for words in ("G: t", "G: u", "H: v", "H: w", "misses its bar", "no bar was set"):
        assert words in text
    assert "0.90" in text


def test_group_shows_every_solver(page, rows):
    text = page.group(record(*rows), "H")[0].astext()
    assert "v: ratio 4.0: no bar was set" in text
    assert "w: ratio –; bar 1.0: not comparable" in text
    assert text.count("1000") == 2
    assert "1e-04, not good enough" in text
    assert "t: ratio" not in text


def test_machine(page, rows):
    text = page.machine(record(*rows))[0].astext()
    assert "2026-01-01" in text
    assert "numpy 2.4.6" in text


def test_page_shows_every_group():
    shown = [
        line.removeprefix(":show: ")
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith(":show: ")
    ]
    groups = dict.fromkeys(task.group for task in TASKS.values())
    assert shown == ["machine", "summary", *groups]


@pytest.mark.skipif(not STORED.exists(), reason="nothing has been measured yet")
def test_stored_record_is_whole():
    """The page shows a run of the tasks as they are now."""
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    assert measuring.complaints(stored) == []
    assert [row["id"] for row in stored["rows"]] == list(TASKS)
    for row in stored["rows"]:
        task = TASKS[row["id"]]
        assert {name: row[name] for name in task.__dict__} == task.__dict__
        assert len(row["ours"]["seconds"]) >= measuring.FEWEST


@pytest.mark.parametrize("written", ["good", "bad", "missing"])
def test_directive(tmp_path, rows, written):
    from test_book_extensions import build

    files = {"index.md": "# Page\n\n```{performance} p.json\n:show: G\n```\n"}
    stored = record(*rows)
    if written == "bad":
        stored["rows"][1]["verdict"] = "met"
    if written != "missing":
        files["p.json"] = json.dumps(stored)
    status, words, out = build(tmp_path, files, ["book_performance"])
    assert (status != 0) == (written == "bad"), words
    if written == "bad":
        assert "the numbers say 'missed'" in words
    else:
        text = (out / "index.html").read_text(encoding="utf-8")
        assert ("Not measured yet." if written == "missing" else "misses its bar") in text
