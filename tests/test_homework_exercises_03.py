"""The exercises of Chapter 3: typical wrong answers get their words, other right answers pass.

Answers and checks run here in two namespaces with JSON between them, as a grader would run them.
"""

import json
from pathlib import Path

import nbformat
import pytest

from course_lib.homework import cli, contract
from course_lib.homework import notebook as nb
from course_lib.homework.contract import WrongAnswer

# Kernels in processes of their own choose ports: these tests run one after the other.
pytestmark = [pytest.mark.slow, pytest.mark.kernels]

NAME = "03_sparsity"
SOURCE = Path(__file__).parents[1] / "exercises" / NAME / f"{NAME}.ipynb"
NOTEBOOK = nbformat.read(SOURCE, as_version=4)
QUESTIONS = nb.questions(NOTEBOOK)
SOURCES = {nb.grade_id(cell): cell.source for cell in NOTEBOOK.cells}


def run(question: str, answers: dict[str, str], *, kind: str = "visible", seed: int = 0) -> None:
    """Run the checks of one question on changed answers; the checks see `call` alone."""
    student: dict = {}
    for cell in NOTEBOOK.cells:
        if nb.role(cell) == "setup" or (nb.role(cell) == "given" and "def " in cell.source):
            exec(cell.source, student)
        if nb.role(cell) == "answer":
            source = answers.get(nb.grade_id(cell), cell.source)
            exec(compile(source, f"<{nb.grade_id(cell)}>", "exec"), student)

    def over_json(name, arguments):
        sent = json.loads(json.dumps(arguments))
        return json.loads(json.dumps(contract.invoke(student, name, sent)))

    checks: dict = {}
    exec(SOURCES["setup"], checks)
    contract.set_seed(question, seed)
    before = contract.set_transport(over_json)
    try:
        exec(SOURCES[f"{question}-{kind}"], checks)
    finally:
        contract.set_transport(before)
        contract._seeds.clear()


def define(signature: str, body: str) -> str:
    """An answer cell with one function, indented as a student would write it."""
    lines = [f"    {line}" if line else "" for line in body.strip("\n").split("\n")]
    return f"def {signature}:\n" + "\n".join(lines)


def changed(cell: str, *pairs: tuple[str, str]) -> str:
    """The source's own answer with some of its words replaced; each must be there."""
    source = SOURCES[cell]
    for old, new in pairs:
        assert old in source, f"{cell} does not contain {old!r}"
        source = source.replace(old, new)
    return source


KKT = "kkt_residual(A, y, x, lam)"
GAP = "duality_gap(A, y, x, lam)"
SOFT = "soft(v, threshold)"
ISTA = "ista(A, y, lam, max_iter)"
ROBUST = "robust_fit(A, y, rho, max_iter)"
SPARSE = "recoverable_sparsity(A)"
COUNTER = "counterexample(A)"
TV = "tv_denoise(y, lam, max_iter)"
FEW = "find_few(A, y, noise_std)"

CORRELATIONS = "c = A.T @ (y - A @ x)\n"
NULL = "h = np.linalg.svd(A)[2][-1]\n"

# question, answer cell, its wrong source, words that the student must be told
WRONG = [
    # 1 two certificates
    (
        "q01",
        "answer-a",
        define(KKT, CORRELATIONS + "return np.abs(c - lam * np.sign(x)).max()"),
        "any c_j between",
    ),
    (
        "q01",
        "answer-a",
        changed("q01-answer-a", ("np.maximum(abs(c) - lam, 0)", "abs(c) - lam")),
        "it is negative",
    ),
    (
        "q01",
        "answer-a",
        changed("q01-answer-a", ("np.maximum(abs(c) - lam, 0)", "abs(abs(c) - lam)")),
        "not ||c_j| - λ|",
    ),
    ("q01", "answer-a", changed("q01-answer-a", ("(y - A @ x)", "(A @ x - y)")), "the sign of c"),
    ("q01", "answer-a", changed("q01-answer-a", ("c = A.T", "c = 2 * A.T")), "c is doubled"),
    (
        "q01",
        "answer-a",
        define(KKT, CORRELATIONS + "return np.maximum(np.abs(c) - lam, 0).max()"),
        "the sign of x_j counts",
    ),
    ("q01", "answer-a", changed("q01-answer-a", (".max()", ".sum()")), "the sum of the"),
    ("q01", "answer-b", changed("q01-answer-b", ("(lam / largest) * r", "r")), "not allowed"),
    (
        "q01",
        "answer-b",
        changed("q01-answer-b", ("r if largest <= lam else (lam", "(lam")),
        "do not enlarge it",
    ),
    (
        "q01",
        "answer-b",
        changed("q01-answer-b", ("np.max(np.abs(A.T @ r))", "np.linalg.norm(A.T @ r)")),
        "take the largest entry",
    ),
    ("q01", "answer-b", changed("q01-answer-b", ("0.5 * r @ r", "r @ r")), "the ½ of the misfit"),
    ("q01", "answer-b", changed("q01-answer-b", (" - 0.5 * y @ y", "")), "½‖y‖² of D is missing"),
    # 2 the soft threshold
    (
        "q02",
        "answer-a",
        define(SOFT, "return np.where(np.abs(v) > threshold, v, 0.0)"),
        "the hard threshold",
    ),
    ("q02", "answer-a", define(SOFT, "return v - threshold * np.sign(v)"), "jumped over zero"),
    ("q02", "answer-a", define(SOFT, "return np.maximum(v - threshold, 0)"), "negative numbers"),
    ("q02", "answer-a", define(SOFT, "return v / (1 + threshold)"), "penalty ½ λ‖x‖²"),
    ("q02", "answer-a", changed("q02-answer-a", ("-threshold, threshold", "-0.5, 0.5")), "by λ/2"),
    # 3 ISTA
    (
        "q03",
        "answer",
        changed("q03-answer", ("lam / lipschitz", "lam / (2 * lipschitz)")),
        "the minimizer for λ/2",
    ),
    ("q03", "answer", changed("q03-answer", ("lam / lipschitz", "lam")), "the minimizer for λ‖A‖²"),
    (
        "q03",
        "answer",
        changed("q03-answer", ("lam / lipschitz", "2 * lam / lipschitz")),
        "the minimizer for 2λ",
    ),
    ("q03", "answer", changed("q03-answer", ("A.T @ (", "A @ (")), "The shapes do not fit"),
    ("q03", "answer", changed("q03-answer", ("x - A.T", "x + A.T")), "grow without bound"),
    ("q03", "answer", changed("q03-answer", ("A, 2) ** 2", "A, 2)")), "grow without bound"),
    (
        "q03",
        "answer",
        changed("q03-answer", (", lam / lipschitz)", ", 0)")),
        "a least-squares solution",
    ),
    (
        "q03",
        "answer",
        changed("q03-answer", ("range(max_iter)", "range(30)")),
        "Do you use all 5000 steps",
    ),
    (
        "q03",
        "answer",
        changed("q03-answer", ("    if lipschitz == 0:\n        return x\n", "")),
        "contains NaN",
    ),
    (
        "q03",
        "answer",
        define(
            ISTA,
            "x, L = np.zeros(A.shape[1]), max(np.linalg.norm(A, 2) ** 2, 1e-9)\n"
            "for k in range(max_iter):\n"
            "    g = A.T @ (A @ x - y) + lam * np.sign(x)\n"
            "    x = x - g / (L * (k + 1) ** 0.5)\n"
            "return x",
        ),
        "is none",
    ),
    # 4 backtracking
    (
        "q04",
        "answer-a",
        changed("q04-answer-a", ("<= move @ move", "<= 2 * move @ move")),
        "1/η where 1/(2η) belongs",
    ),
    ("q04", "answer-a", changed("q04-answer-a", ("step * lam", "lam")), "it must be ηλ"),
    (
        "q04",
        "answer-a",
        changed("q04-answer-a", ('"step": step}', '"step": step / 2}')),
        "compute it again",
    ),
    (
        "q04",
        "answer-a",
        changed("q04-answer-a", ("x - step *", "x + step *")),
        "the sign of the gradient",
    ),
    (
        "q04",
        "answer-a",
        changed(
            "q04-answer-a",
            (
                "step * np.sum((A @ move) ** 2) <= move @ move",
                "np.sum((A @ new - y) ** 2) <= np.sum((A @ x - y) ** 2)",
            ),
        ),
        "is missing in the test",
    ),
    # 5 FISTA
    ("q05", "answer-a", changed("q05-answer-a", ("(t_old - 1) / t", "0")), "this is ISTA"),
    ("q05", "answer-a", changed("q05-answer-a", ("4 * t**2", "4 * t")), "the square of t"),
    ("q05", "answer-a", changed("q05-answer-a", ("(t_old - 1)", "t_old")), "not t_k/t_{k+1}"),
    (
        "q05",
        "answer-a",
        changed("q05-answer-a", ("return x", "return ahead")),
        "extrapolated point",
    ),
    (
        "q05",
        "answer-a",
        changed("q05-answer-a", ("A @ ahead - y", "A @ x - y")),
        "at the extrapolated point",
    ),
    ("q05", "answer-a", changed("q05-answer-a", ("step * lam", "lam")), "must be ηλ"),
    ("q05", "answer-b", changed("q05-answer-b", (" - 1}", "}")), "subtract 1"),
    ("q05", "answer-b", changed("q05-answer-b", ("distance**2", "distance")), "must be squared"),
    ("q05", "answer-b", changed("q05-answer-b", ("size / (2 * eps)", "size / eps")), "a 2 below"),
    # 6 wrong measurements
    (
        "q06",
        "answer",
        changed("q06-answer", ("y + soft(v - y, 1 / rho)", "soft(v, 1 / rho)")),
        "x is nearly zero",
    ),
    ("q06", "answer", define(ROBUST, "return np.linalg.pinv(A) @ y"), "the least-squares"),
    ("q06", "answer", changed("q06-answer", ("nu = v - z", "nu = 0 * v")), "without ν"),
    ("q06", "answer", changed("q06-answer", ("range(max_iter)", "range(8)")), "above its smallest"),
    # 7 the exact end
    (
        "q07",
        "answer",
        changed("q07-answer", (" - lam * signs", "")),
        "least squares on the support",
    ),
    ("q07", "answer", changed("q07-answer", (" - lam * signs", " - lam")), "the signs ξ are"),
    ("q07", "answer", changed("q07-answer", ("lam * signs", "lam / 2 * signs")), "λ/2 instead of"),
    ("q07", "answer", changed("q07-answer", (" - lam * signs", " + lam * signs")), "sign of the"),
    ("q07", "answer", changed("q07-answer", ("return exact", "return exact[S]")), "is expected"),
    (
        "q07",
        "answer",
        changed("q07-answer", (" or np.any(np.abs(c) > lam * (1 + 1e-9))", "")),
        "outside of the support",
    ),
    # 8 how sparse
    ("q08", "answer-a", define(SPARSE, "return (A.shape[1] - 1) // 2"), "gives"),
    (
        "q08",
        "answer-a",
        define(SPARSE, NULL + "return (np.sum(np.abs(h) > 1e-9) - 1) // 2"),
        "counts the entries",
    ),
    ("q08", "answer-a", changed("q08-answer-a", ("[::-1]", "")), "takes the smallest"),
    (
        "q08",
        "answer-a",
        changed("q08-answer-a", ("h.sum() / 2))", "h.sum() / 2)) + 1")),
        "one too many",
    ),
    ("q08", "answer-b", changed("q08-answer-b", ("-np.abs(h)", "np.abs(h)")), "is the only"),
    (
        "q08",
        "answer-b",
        changed("q08-answer-b", ("x[worst] = -h[worst]", "x[worst] = 1.0")),
        "only solution",
    ),
    ("q08", "answer-b", define(COUNTER, "return np.linalg.svd(A)[2][-1]"), "s + 1 are allowed"),
    # 9 flat pieces
    (
        "q09",
        "answer",
        changed("q09-answer", ("-lam, lam", "-lam / 2, lam / 2")),
        "0.5 times the given λ (for λ/2)",
    ),
    ("q09", "answer", changed("q09-answer", ("p + 0.25", "p - 0.25")), "sign of the gradient"),
    (
        "q09",
        "answer",
        define(
            TV,
            "d = soft(np.diff(y), lam)\nreturn y[0] + np.concatenate([[0.0], np.cumsum(d)])",
        ),
        "forgotten the data",
    ),
    (
        "q09",
        "answer",
        define(
            TV,
            "D = np.diff(np.eye(y.size), axis=0)\n"
            "return np.linalg.inv(np.eye(y.size) + lam * D.T @ D) @ y",
        ),
        "squared differences",
    ),
    ("q09", "answer", define(TV, "return soft(y, lam)"), "soft threshold of y"),
    ("q09", "answer", changed("q09-answer", (", append=0.0", ", append=0.1")), "mean of"),
    ("q09", "answer", changed("q09-answer", ("range(max_iter)", "range(5)")), "not yet"),
    # 10 project
    (
        "q10",
        "answer-a",
        changed(
            "q10-answer-a", ("np.linalg.lstsq(A[:, support], y, rcond=None)[0]", "rough[support]")
        ),
        "shortened",
    ),
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ("lam = ", "lam = 0.1 * "), ("> 0.4", "> 0")),
        "dropping small",
    ),
    ("q10", "answer-a", changed("q10-answer-a", ("lam = ", "lam = 20 * ")), "Is λ too large"),
    ("q10", "answer-a", define(FEW, "return np.linalg.pinv(A) @ y"), "must return a dict"),
]


@pytest.mark.parametrize(
    ("question", "cell", "source", "words"),
    WRONG,
    ids=[f"{q}-{i}" for i, (q, *_) in enumerate(WRONG)],
)
def test_wrong_answers_get_their_words(question, cell, source, words, capsys):
    with pytest.raises(WrongAnswer) as caught:
        run(question, {f"{question}-{cell}": source})
    assert words in str(caught.value)
    assert f"wrong: {caught.value}" in capsys.readouterr().out


def test_every_question_has_wrong_answers():
    for entry in QUESTIONS:
        assert sum(question == entry.id for question, *_ in WRONG) >= 2, entry.id


# Right answers by another way than the source's.
DESCENT = (
    "x, c = np.zeros(A.shape[1]), A.T @ y\n"
    "H = A.T @ A\n"
    "for _ in range(2000):\n"
    "    for j in np.flatnonzero(np.diag(H)):\n"
    "        g = c[j] - H[j] @ x + H[j, j] * x[j]\n"
    "        x[j] = np.sign(g) * max(abs(g) - lam, 0) / H[j, j]\n"
    "return x"
)
RIGHT = [
    (
        "q02",
        {"q02-answer-a": define(SOFT, "return np.sign(v) * np.maximum(abs(v) - threshold, 0)")},
    ),
    ("q03", {"q03-answer": define(ISTA, DESCENT)}),
    (
        "q03",
        {"q03-answer": changed("q03-answer", ("np.linalg.norm(A, 2) ** 2", "np.sum(A**2)"))},
    ),
    (
        "q05",
        {
            "q05-answer-b": define(
                "steps_needed(L, distance, eps)",
                "i = f = 1\n"
                "i = max(1, int(np.ceil(L * distance**2 / eps / 2)))\n"
                "while 2 * L * distance**2 / (f + 1) ** 2 > eps:\n"
                "    f += 1\n"
                "return {'ista': i, 'fista': f}",
            )
        },
    ),
    (
        "q06",  # a linear program
        {
            "q06-answer": define(
                ROBUST,
                "from scipy.optimize import linprog\n"
                "m, n = A.shape\n"
                "rows = np.block([[A, -np.eye(m)], [-A, -np.eye(m)]])\n"
                "cost = np.append(np.zeros(n), np.ones(m))\n"
                "free = [(None, None)] * n + [(0, None)] * m\n"
                "return linprog(cost, rows, np.append(y, -y), bounds=free).x[:n]",
            )
        },
    ),
    (
        "q07",
        {
            "q07-answer": changed(
                "q07-answer",
                (
                    "np.linalg.solve(columns.T @ columns, columns.T @ y - lam * signs)",
                    "np.linalg.pinv(columns) @ (y - lam * np.linalg.pinv(columns).T @ signs)",
                ),
            )
        },
    ),
    ("q08", {"q08-answer-b": changed("q08-answer-b", ("-h[worst]", "3 * h[worst]"))}),
    (
        "q09",  # the active signs, found by the library
        {
            "q09-answer": define(
                TV,
                "from course_lib.proximal import prox_tv\n"
                "return prox_tv(y, lam, rtol=1e-9, max_iter=100000).x",
            )
        },
    ),
    (
        "q10",  # greedy: add the column that helps most, until the rest looks like noise
        {
            "q10-answer-a": define(
                FEW,
                "S, r, x = [], y, np.zeros(A.shape[1])\n"
                "while np.abs(A.T @ r).max() > noise_std * np.sqrt(4 * np.log(x.size)):\n"
                "    S.append(int(np.abs(A.T @ r).argmax()))\n"
                "    z = np.linalg.lstsq(A[:, S], y, rcond=None)[0]\n"
                "    r = y - A[:, S] @ z\n"
                "x[S] = z\n"
                "return {'support': np.array(S), 'x': x}",
            )
        },
    ),
]


@pytest.mark.parametrize(("question", "answers"), RIGHT, ids=lambda value: str(value)[:8])
def test_right_answers_by_another_way_pass(question, answers):
    for kind in ("visible", "hidden"):
        run(question, answers, kind=kind, seed=3)


@pytest.mark.parametrize("question", [entry.id for entry in QUESTIONS])
def test_the_source_passes_hidden_checks_for_many_secrets(question):
    for seed in range(3 if question in ("q06", "q09", "q10") else 10):
        run(question, {}, kind="hidden", seed=seed)


HIDDEN_ONLY = [
    ("q01", {"q01-answer-b": changed("q01-answer-b", ("r if largest <= lam else (", "("))}),
    ("q02", {"q02-answer-a": define(SOFT, "return v - np.clip(v, -1, 1) * min(threshold, 1)")}),
    ("q03", {"q03-answer": changed("q03-answer", ("range(max_iter)", "range(20)"))}),
    ("q07", {"q07-answer": changed("q07-answer", ("np.abs(c) >", "np.abs(c[:1]) >"))}),
    ("q08", {"q08-answer-a": define(SPARSE, "return {9: 2, 6: 2, 3: 0}[A.shape[0]]")}),
    ("q09", {"q09-answer": changed("q09-answer", ("-lam, lam", "-0.6, 0.6"))}),
    (
        "q10",
        {
            "q10-answer-a": changed(
                "q10-answer-a",
                (
                    "noise_std * np.sqrt(2 * np.log(A.shape[1]))",
                    "{100: 0.06, 120: 0.15}[A.shape[1]]",
                ),
            )
        },
    ),
]


@pytest.mark.parametrize(("question", "answers"), HIDDEN_ONLY, ids=lambda value: str(value)[:8])
def test_answers_made_for_the_visible_numbers_fail_the_hidden_checks(question, answers):
    with pytest.raises(WrongAnswer):
        run(question, answers, kind="hidden")


def test_the_homework_is_complete():
    assert len(QUESTIONS) >= 9
    assert {question.difficulty for question in QUESTIONS} == set(nb.DIFFICULTIES)
    page = (SOURCE.parents[2] / "book" / NAME / "exercises.md").read_text(encoding="utf-8")
    total = 0.0
    for question in QUESTIONS:
        kinds = {nb.grade_id(NOTEBOOK.cells[index]).split("-")[1] for index in question.checks}
        assert kinds == {"visible", "hidden"}, question.id
        assert "hidden_rng(" in SOURCES[f"{question.id}-hidden"]
        cells = [NOTEBOOK.cells[index] for index in [*question.checks, *question.manual]]
        total += sum(nb.points(cell) for cell in cells)
        worth = nb.number_text(sum(nb.points(cell) for cell in cells))
        statement = SOURCES[f"{question.id}-statement"]
        assert (
            f"## {question.number}. {question.title} ({question.difficulty}, {worth} points)"
            in statement
        )
        row = f"| {question.number} | {question.title} | {question.difficulty} | {worth} |"
        assert row in SOURCES["intro"], f"the table of the first cell has no row {row}"
        assert row in page, f"exercises.md has no row {row}"
    assert f"{nb.number_text(total)} points" in SOURCES["intro"]
    assert f"{nb.number_text(total)} points" in page


@pytest.mark.parametrize("name", ["q02-proof", "q04-proof", "q10-report"])
def test_answers_marked_by_hand_carry_a_rubric(name):
    cell = next(cell for cell in NOTEBOOK.cells if nb.grade_id(cell) == name)
    assert sum(step["points"] for step in nb.rubric(cell)) == nb.points(cell) == 4


# From end to end ----------------------------------------------------------------------------------


def test_release_and_check(tmp_path, capsys):
    """The release is accepted; `course check` tells wrong answers among right ones apart."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"a secret of the tests, 32 bytes.")
    out = tmp_path / "out"
    arguments = ["release", str(SOURCE.parent), "--out", str(out), "--secret", str(secret)]
    assert cli.main(arguments) == 0
    assert "The source scores full marks, the release 0." in capsys.readouterr().out

    wrong = {
        "q03-answer": changed("q03-answer", ("lam / lipschitz", "lam / (2 * lipschitz)")),
        "q07-answer": changed("q07-answer", (" - lam * signs", "")),
        "q09-answer": changed("q09-answer", ("-lam, lam", "-lam / 2, lam / 2")),
    }
    path = out / "release" / NAME / f"{NAME}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        name = nb.grade_id(cell)
        if nb.role(cell) in ("answer", "manual"):
            cell.source = wrong.get(name, SOURCES[name])
    nbformat.write(notebook, path)
    assert cli.main(["check", str(path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    for words in ("the minimizer for λ/2", "least squares on the support", "0.5 times the given"):
        assert words in said
    assert said.count("passed ") >= 7
