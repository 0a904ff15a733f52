"""The homework of Chapter 2: typical wrong answers, and right ones by another way."""

import json

import pytest
from chapter_homework import Chapter, HomeworkTests, define

from course_lib.homework import notebook as nb

CHAPTER = Chapter("02_tikhonov")
SVD = "    U, s, Vt = np.linalg.svd(A, full_matrices=False)\n"
OBJECTIVE = "objective(A, x, y, lam)"
NORMAL = "normal_equations(A, y, lam)"
FACTORS = "filter_factors(s, lam)"
TIKHONOV = "tikhonov_svd(A, y, lam)"
GENERAL = "tikhonov_general(A, y, lam, D)"
LANDWEBER = "landweber(A, y, step, delta, tau, max_iter)"
STACK = (
    "M = np.vstack([A, {weight} * D])\n"
    "b = np.concatenate([y, np.zeros(len(D))])\n"
    "x, _, rank, _ = np.linalg.lstsq(M, b, rcond=None)\n"
    "if rank < A.shape[1]:\n    raise ValueError('not unique')\n"
    "return x"
)


def landweber(
    *, test="np.linalg.norm(r) <= tau * delta", adjoint="A.T", factor="step", late=False, guard=True
) -> str:
    """Landweber with one ingredient changed."""
    lines = [
        "if not 0 < step < 2 / np.linalg.norm(A, 2) ** 2:\n    raise ValueError('step')",
        "x, k = np.zeros(A.shape[1]), 0",
        "r = y - A @ x",
        f"while not ({test}) and k < max_iter:",
        f"    x = x + {factor} * ({adjoint} @ r)",
        "    r, k = y - A @ x, k + 1",
    ]
    if late:
        lines.append("x, k = x + step * (A.T @ r), k + 1")
    lines.append(f"return {{'x': x, 'iterations': k, 'converged': bool({test})}}")
    return define(LANDWEBER, "\n".join(lines if guard else lines[1:]))


def cgls(*, adjoint="A.H", beta="gn / gamma", extra=0) -> str:
    """CGLS with one ingredient changed."""
    return define(
        "cgls(A, y, delta, tau, max_iter)",
        f"""
x = np.zeros(A.in_shape)
r = y.copy()
g = {adjoint} @ r
p, gamma = g, np.sum(g * g)
norms = [np.linalg.norm(r)]
while norms[-1] > tau * delta and len(norms) <= max_iter + {extra} and gamma > 0:
    q = A @ p
    alpha = gamma / np.sum(q * q)
    x, r = x + alpha * p, r - alpha * q
    g = {adjoint} @ r
    gn = np.sum(g * g)
    p, gamma = g + {beta} * p, gn
    norms.append(np.linalg.norm(r))
return {{"x": x, "iterations": len(norms) - 1, "residuals": np.array(norms)}}
""",
    )


def example(name: str, s: str, x_true: str, noise: str) -> str:
    return f"{name} = dict(s=np.array({s}), x_true=np.array({x_true}), noise=np.array({noise}))\n"


GOOD_CUT = example("tsvd_wins", "[1, 0.1]", "[1.0, 0]", "[0, 0.1]")
GOOD_DAMPING = example("tikhonov_wins", "[1, 0.5]", "[1.0, 1]", "[0.5, 0.5]")

# question, answer cell, its wrong source, words that the student must be told
WRONG = [
    # 1 objective
    ("q01", "answer", define(OBJECTIVE, "r = A @ x - y\nreturn r @ r + lam * x @ x"), "in both"),
    (
        "q01",
        "answer",
        define(OBJECTIVE, "r = A @ x - y\nreturn r @ r / 2 + lam * x @ x"),
        "penalty: it",
    ),
    (
        "q01",
        "answer",
        define(OBJECTIVE, "r = A.T @ x - y\nreturn (r @ r + lam * x @ x) / 2"),
        "Aᵀ is used",
    ),
    (
        "q01",
        "answer",
        define(OBJECTIVE, "return ((A @ x - y) ** 2 + lam * x**2) / 2"),
        "Is a sum or a norm",
    ),
    ("q01", "answer", define(OBJECTIVE, "return np.nan"), "contains NaN"),
    ("q01", "answer", define(OBJECTIVE, "return ..."), "stub is left"),
    (
        "q01",
        "answer",
        define(OBJECTIVE, "raise NotImplementedError('Question 1 is not')"),
        "stub is left",
    ),
    ("q01", "answer", define(OBJECTIVE, "print(A @ x - y)"), "gives None"),
    ("q01", "answer", define(OBJECTIVE, "x *= 2\nreturn 4.5"), "changes its input `x`"),
    # 2 by hand
    (
        "q02",
        "answer-a",
        "x_lecture = np.array([-80, 130]) / 251",
        "minimizer of ½‖Ax - y‖² + λ‖x‖²",
    ),
    ("q02", "answer-a", "x_lecture = np.array([-0.690595184007, 0.781462971377])", "+ ½λ‖x‖²"),
    ("q02", "answer-a", "x_lecture = np.array([-1.0, 1.0])", "λ is not used"),
    ("q02", "answer-a", "x_lecture = [-360 / 701, 460 / 701]", "is a list, not a NumPy array"),
    ("q02", "answer-a", "x_lecture = np.array([-0.5136, 0.6562])", "rounded: give fractions"),
    ("q02", "answer-a", "x_lecture = np.array([0.3, 7.0])", "is not the minimizer"),
    ("q02", "answer-a", "x_lecture = np.array([[-360], [460]]) / 701", ".ravel()"),
    ("q02", "answer-a", "x_lecture = ...", "stub is left"),
    ("q02", "answer-a", "", "there is no `x_lecture` yet"),
    (
        "q02",
        "answer-b",
        define(NORMAL, "return np.linalg.solve(A.T @ A + 2 * lam * np.eye(A.shape[1]), A.T @ y)"),
        "½‖Ax - y‖² + λ‖x‖²",
    ),
    (
        "q02",
        "answer-b",
        define(NORMAL, "return np.linalg.solve(A @ A.T + lam * np.eye(len(y)), A @ y)"),
        "Is A used where Aᵀ is meant",
    ),
    (
        "q02",
        "answer-b",
        define(NORMAL, "return np.sqrt(-(A.T @ y))"),
        "contains NaN",
    ),
    # 3 filter factors
    ("q03", "answer", define(FACTORS, "return s / (s**2 + lam)"), "φ/σ in front of"),
    ("q03", "answer", define(FACTORS, "return lam / (s**2 + lam)"), "1 - φ"),
    ("q03", "answer", define(FACTORS, "return s**2 / (s**2 + lam**2)"), "λ is squared"),
    ("q03", "answer", define(FACTORS, "return s**2 / (s**2 + lam)"), "contains NaN"),
    (
        "q03",
        "answer",
        define(FACTORS, "return [v**2 / (v**2 + lam) if v else 0.0 for v in s]"),
        "is a list",
    ),
    ("q03", "answer", define(FACTORS, "return np.diag(s)"), "has shape (3, 3)"),
    # 4 Tikhonov by the SVD
    (
        "q04",
        "answer",
        define(TIKHONOV, SVD[4:] + "return Vt.T @ (s / (s**2 + 2 * lam) * (U.T @ y))"),
        "you dropped the ½ of the penalty",
    ),
    (
        "q04",
        "answer",
        define(TIKHONOV, SVD[4:] + "return Vt.T @ (s**2 / (s**2 + lam) * (U.T @ y))"),
        "the division by σ is missing",
    ),
    (
        "q04",
        "answer",
        define(TIKHONOV, SVD[4:] + "return Vt @ (s / (s**2 + lam) * (U.T @ y))"),
        "relative error",
    ),
    (
        "q04",
        "answer",
        define(
            TIKHONOV, "n = A.shape[1]\nreturn np.linalg.solve(A.T @ A + lam * np.eye(n), A.T @ y)"
        ),
        "Is AᵀA formed?",
    ),
    (
        "q04",
        "answer",
        define(TIKHONOV, "n = A.shape[1]\nreturn np.linalg.solve(A @ A + lam * np.eye(n), A @ y)"),
        "Is A used where Aᵀ is meant",
    ),
    ("q04", "answer", define(TIKHONOV, "y /= 2\nreturn y"), "changes its input `y`"),
    # 5 limit and bound
    (
        "q05",
        "answer",
        define(
            "limit_and_bound(A, y, lam)",
            "x = np.linalg.solve(A.T @ A, A.T @ y)\nreturn {'limit': x, 'bound': lam}",
        ),
        "",
    ),
    (
        "q05",
        "answer",
        define(
            "limit_and_bound(A, y, lam)",
            "x = np.linalg.pinv(A) @ y\ns = np.linalg.svd(A)[1]\n"
            "return {'limit': x, 'bound': lam / (s[-1] ** 2 + lam) * np.linalg.norm(x)}",
        ),
        "you took one that is zero",
    ),
    (
        "q05",
        "answer",
        define(
            "limit_and_bound(A, y, lam)",
            "x = np.linalg.pinv(A) @ y\nreturn {'limit': x, 'bound': lam / (25 + lam)}",
        ),
        "the factor ‖A†y‖ is missing",
    ),
    (
        "q05",
        "answer",
        define("limit_and_bound(A, y, lam)", "return np.linalg.pinv(A) @ y, lam"),
        "must return a dict",
    ),
    (
        "q05",
        "answer",
        define(
            "limit_and_bound(A, y, lam)", "return {'limit': tikhonov_svd(A, y, lam), 'bound': 0.1}"
        ),
        "this is x_λ itself",
    ),
    # 6 second differences
    (
        "q06",
        "answer-a",
        define("second_difference(n, boundary)", "return -np.diff(np.eye(n), 2, 0)"),
        "sign",
    ),
    (
        "q06",
        "answer-a",
        define(
            "second_difference(n, boundary)",
            "I = np.eye(n)\nD = np.roll(I, 1, 0) - 2 * I + np.roll(I, -1, 0)\n"
            "return D[1:-1] if boundary == 'free' else D",
        ),
        "periodic boundary",
    ),
    (
        "q06",
        "answer-a",
        define(
            "second_difference(n, boundary)",
            "D = np.eye(n, k=1) - 2 * np.eye(n) + np.eye(n, k=-1)\n"
            "return D[1:-1] if boundary == 'free' else D",
        ),
        "accepts this input",
    ),
    ("q06", "answer-b", "null_space_dimension = {'free': 1, 'zero': 0}", "['free'] is not right"),
    ("q06", "answer-b", "null_space_dimension = (2, 0)", "must be a dict"),
    # 7 general form
    ("q07", "answer", define(GENERAL, STACK.format(weight="lam")), "λ stands where √λ belongs"),
    (
        "q07",
        "answer",
        define(GENERAL, STACK.format(weight="np.sqrt(2 * lam)")),
        "dropped a factor 2",
    ),
    ("q07", "answer", define(GENERAL, STACK.format(weight="0")), ""),
    (
        "q07",
        "answer",
        define(GENERAL, STACK.format(weight="np.sqrt(lam)").replace("raise ValueError", "print")),
        "accepts this input",
    ),
    (
        "q07",
        "answer",
        define(
            GENERAL,
            STACK.format(weight="np.sqrt(lam)")
            .replace("* D]", "* np.eye(A.shape[1])]")
            .replace("np.zeros(len(D))", "np.zeros(A.shape[1])"),
        ),
        "Only ‖Dx‖² is penalised",
    ),
    # 8 adjoint of a blur
    (
        "q08",
        "answer",
        define("blur_adjoint(y, psf)", "return blur(y, psf)"),
        "A is used where Aᵀ is meant",
    ),
    (
        "q08",
        "answer",
        define("blur_adjoint(y, psf)", "return blur(y, psf[::-1])"),
        "its centre did not move",
    ),
    (
        "q08",
        "answer",
        define("blur_adjoint(y, psf)", "return np.convolve(y, psf[::-1])"),
        "has shape (7,); (5,) is expected",
    ),
    # 9 Landweber
    ("q09", "answer", landweber(late=True), "one step too late"),
    ("q09", "answer", landweber(factor="2 * step"), "step is twice too long"),
    ("q09", "answer", landweber(test="r @ r <= tau * delta"), "the norm is not squared"),
    ("q09", "answer", landweber(test="np.linalg.norm(r) <= delta"), "one step too late"),
    ("q09", "answer", landweber(adjoint="A"), "Is A used where Aᵀ is meant"),
    ("q09", "answer", landweber(guard=False), "is not between 0 and 2/‖A‖²"),
    (
        "q09",
        "answer",
        landweber().replace("return {", "return [").replace("}", "]").replace("':", "',"),
        "dict",
    ),
    # 10 truncated SVD
    (
        "q10",
        "answer-a",
        define("tsvd(A, y, rank)", SVD[4:] + "return Vt[:rank].T @ (U[:, :rank].T @ y)"),
        "the division by σ is missing",
    ),
    (
        "q10",
        "answer-a",
        define(
            "tsvd(A, y, rank)",
            SVD[4:] + "U, s, Vt = U[:, ::-1], s[::-1], Vt[::-1]\n"
            "return Vt[:rank].T @ (U[:, :rank].T @ y / s[:rank])",
        ),
        "smallest singular values",
    ),
    (
        "q10",
        "answer-a",
        define("tsvd(A, y, rank)", SVD[4:] + "return Vt[:rank].T @ (U[:, :rank].T @ y / s[:rank])"),
        "",
    ),
    (
        "q10",
        "answer-b",
        GOOD_CUT.replace("0, 0.1", "0.9, 0.1") + GOOD_DAMPING,
        "tsvd_wins: the best error",
    ),
    (
        "q10",
        "answer-b",
        GOOD_CUT + GOOD_DAMPING.replace("[1.0, 1]", "[1.0, 0]"),
        "tikhonov_wins: the best",
    ),
    (
        "q10",
        "answer-b",
        GOOD_CUT.replace("[1, 0.1]", "[0.1, 1]") + GOOD_DAMPING,
        "the largest first",
    ),
    # 11 project
    ("q11", "answer-a", cgls(adjoint="A"), "A is used where Aᵀ is meant"),
    ("q11", "answer-a", cgls(beta="0"), "steepest descent"),
    ("q11", "answer-a", cgls(extra=1), "one step too many"),
    (
        "q11",
        "answer-b",
        define(
            "deblur(y, psf, delta)",
            "A = operators.convolution(psf, y.shape, boundary='zero')\n"
            "return cgls(A, y, 0.0, 1.1, 150)",
        ),
        "Too many iterations amplify the noise",
    ),
    (
        "q11",
        "answer-b",
        define("deblur(y, psf, delta)", "return {'x': y, 'iterations': 0}"),
        "too early",
    ),
]

# Right answers by another way than the source's.
RIGHT = [
    (
        "q01",
        {"q01-answer": define(OBJECTIVE, "return np.float32(4.5) if lam == 0.5 else 0")},
        "visible",
    ),
    (
        "q01",
        {
            "q01-answer": define(
                OBJECTIVE, "return np.array(sum((A @ x - y) ** 2) + lam * sum(x * x)) / 2"
            )
        },
        "hidden",
    ),
    (
        "q02",
        {
            "q02-answer-b": define(
                NORMAL,
                "rows = np.vstack([A, lam**0.5 * np.eye(A.shape[1])])\n"
                "return np.linalg.lstsq(rows, np.append(y, np.zeros(A.shape[1])), rcond=None)[0]",
            )
        },
        "hidden",
    ),
    (
        "q03",
        {
            "q03-answer": define(
                FACTORS, "return np.array([1 / (1 + lam / v**2) if v > 0 else 0.0 for v in s])"
            )
        },
        "hidden",
    ),
    (
        "q04",
        {
            "q04-answer": define(
                TIKHONOV,
                "n = A.shape[1]\nprint('debugging', n)\n"
                "Q, R = np.linalg.qr(np.vstack([A, np.sqrt(lam) * np.eye(n)]))\n"
                "return np.linalg.solve(R, Q.T @ np.append(y, np.zeros(n)))",
            )
        },
        "hidden",
    ),
    ("q09", {"q09-answer": landweber()}, "hidden"),
    ("q10", {"q10-answer-b": GOOD_CUT + GOOD_DAMPING}, "hidden"),
    ("q11", {"q11-answer-a": cgls()}, "hidden"),
]

HIDDEN_ONLY = [
    (
        "q03",
        {"q03-answer": define(FACTORS, "return np.array([0.8, 0.5, 0.0]) if lam else np.sign(s)")},
    ),
    ("q06", {"q06-answer-b": "null_space_dimension = {'free': 2, 'zero': 1}"}),
    (
        "q10",
        {
            "q10-answer-a": define(
                "tsvd(A, y, rank)", "return np.array([1.0, 2, 4]) * (np.arange(3) < rank)"
            )
        },
    ),
]


@pytest.mark.slow
class TestHomework(HomeworkTests):
    chapter = CHAPTER
    wrong = WRONG
    right = RIGHT
    hidden_only = HIDDEN_ONLY
    by_hand = ("q05-proof",)
    slow = ("q11",)


def test_expected_outputs_do_not_give_the_lectures_answer_away():
    released_text = json.dumps(
        [
            [cell.source, cell.get("outputs")]
            for cell in CHAPTER.notebook.cells
            if nb.role(cell) not in ("answer", "manual") and "-hidden" not in nb.grade_id(cell)
        ]
    )
    for digits in ("0.5135", "0.6562", "360", "460", "701"):
        assert digits not in released_text
