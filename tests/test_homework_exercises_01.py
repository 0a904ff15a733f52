"""The homework of Chapter 1: typical wrong answers, and right ones by another way."""

import pytest
from chapter_homework import Chapter, HomeworkTests, define

CHAPTER = Chapter("01_ill_posedness")
changed = CHAPTER.changed
SVD = "U, s, Vt = np.linalg.svd(A, full_matrices=False)\n"
BOUND = "error_bound(M, delta, h)"
STEP = "best_step(M, delta)"
INVISIBLE = "invisible_part(A, x)"
WORST = "worst_case(A)"
AMPLIFICATION = "amplification(kind, omega, parameter)"
VISIBLE = "visible_frequency(kind, eps, parameter)"
PLATEAU = "noise_from_plateau(A, y, start)"
TERMS = "usable_terms(A, y, noise_std, factor)"
LAMBDA = "book_lambda(a, b, mu, penalty)"
RECOVER = "recover(A, y)"
COEFFICIENTS = SVD + "c = U.T @ y\n"

# question, answer cell, its wrong source, words that the student must be told
WRONG = [
    # 1 the best step
    ("q01", "answer-a", define(BOUND, "return M * h**2 / 6 + delta / h"), "the first derivative"),
    ("q01", "answer-a", define(BOUND, "return M * h**2 / 12 + delta / h**2"), "counts as δ/h²"),
    ("q01", "answer-a", define(BOUND, "return M * h**2 / 12 + 2 * delta / h**2"), "2δ/h²"),
    ("q01", "answer-a", define(BOUND, "return M * h**2 / 12 + 3 * delta / h**2"), "the factor 2"),
    ("q01", "answer-a", define(BOUND, "return M * h**2 / 12"), "do not cancel"),
    ("q01", "answer-a", define(BOUND, "return M * h**2 / 12 + 4 * delta / h"), "divided by h²"),
    ("q01", "answer-a", define(BOUND, "return ..."), "stub is left"),
    ("q01", "answer-b", define(STEP, "return (3 * delta / M) ** (1 / 3)"), "first derivative"),
    ("q01", "answer-b", define(STEP, "return (48 * delta / M) ** 0.5"), "one more root"),
    ("q01", "answer-b", define(STEP, "return (12 * delta / M) ** 0.25"), "counts as δ/h² here"),
    ("q01", "answer-b", define(STEP, "return (48 * delta / M) ** (1 / 3)"), "a cube root"),
    # 2 ghosts
    ("q02", "answer-a", "ghost = np.zeros((3, 3))", "zero everywhere"),
    ("q02", "answer-a", "ghost = [[0, 1, -1], [-1, 0, 1], [1, -1, 0]]", "is a list"),
    (
        "q02",
        "answer-a",
        "ghost = np.array([[1.0, -1, 0], [-1, 1, 0], [0, 0, 0]])",
        "upper left to the lower right is not zero",
    ),
    (
        "q02",
        "answer-a",
        "ghost = np.array([[1.0, -1, 0], [0, 0, 0], [0, 0, 0]])",
        "a column is not zero",
    ),
    ("q02", "answer-a", "ghost = np.array([[1.0, -1], [-1, 1]])", "(3, 3) is expected"),
    ("q02", "answer-b", define(INVISIBLE, "return np.linalg.pinv(A) @ A @ x"), "subtract it"),
    ("q02", "answer-b", define(INVISIBLE, "return x - A.T @ A @ x"), "this is x - AᵀA x"),
    (
        "q02",
        "answer-b",
        define(INVISIBLE, SVD + "unseen = Vt[s < 1e-12]\nreturn unseen.T @ (unseen @ x)"),
        "does not contain all vectors",
    ),
    (
        "q02",
        "answer-b",
        define(INVISIBLE, SVD + "return x - Vt.T @ (Vt @ x)"),
        "all singular values count as positive",
    ),
    (
        "q02",
        "answer-b",
        define(INVISIBLE, "return x - np.linalg.inv(A.T @ A) @ (A.T @ A @ x)"),
        "LinAlgError",
    ),
    # 3 the worst case
    (
        "q03",
        "answer",
        changed("q03-answer", ("svd(A,", "svd(A @ A.T,")),
        "this is κ²",
    ),
    (
        "q03",
        "answer",
        changed("q03-answer", ("s[0] / s[rank - 1]", "s[rank - 1] / s[0]")),
        "this is 1/κ",
    ),
    ("q03", "answer", changed("q03-answer", ("1e-3 * ", "")), "error has the norm 1"),
    (
        "q03",
        "answer",
        define(
            WORST,
            SVD + "r = np.linalg.matrix_rank(A) - 1\n"
            "return {'kappa': s[0] / s[r], 'data': U[:, r], 'error': 1e-3 * U[:, 0]}",
        ),
        "data and error are exchanged",
    ),
    (
        "q03",
        "answer",
        define(
            WORST,
            SVD + "r = np.linalg.matrix_rank(A) - 1\n"
            "return {'kappa': s[0] / s[r], 'data': U[:, 0], 'error': 1e-3 * U[:, 1]}",
        ),
        "of kappa only",
    ),
    (
        "q03",
        "answer",
        define(
            WORST,
            SVD + "r = np.linalg.matrix_rank(A) - 1\n"
            "return {'kappa': s[0] / s[r], 'data': Vt[0], 'error': 1e-3 * Vt[r]}",
        ),
        "(3,) is expected",
    ),
    ("q03", "answer", define(WORST, "return np.linalg.cond(A)"), "must return a dict"),
    # 4 the degree
    ("q04", "answer-a", changed("q04-answer-a", ("0.5 * np.eye", "np.eye")), "the diagonal is 1/n"),
    ("q04", "answer-a", changed("q04-answer-a", ("0.5 * np", "0.0 * np")), "must be 1/(2n)"),
    ("q04", "answer-a", changed("q04-answer-a", ("return kernel / n", "return kernel")), "1/n"),
    ("q04", "answer-a", changed("q04-answer-a", ("lag > 0", "lag < 0")), "the transpose"),
    ("q04", "answer-a", changed("q04-answer-a", ("factorial(p - 1)", "factorial(0)")), "1/(p-1)!"),
    ("q04", "answer-a", changed("q04-answer-a", ("factorial(p - 1)", "factorial(p)")), "by p!"),
    (
        "q04",
        "answer-a",
        define(
            "integrate_matrix(n, p)",
            "A = (np.tril(np.ones((n, n))) - np.eye(n) / 2) / n\n"
            "return np.linalg.matrix_power(A, p)",
        ),
        "you multiplied p matrices",
    ),
    ("q04", "answer-b", changed("q04-answer-b", ("-np.polyfit", "np.polyfit")), "the sign"),
    (
        "q04",
        "answer-b",
        changed("q04-answer-b", ("first - 1 : last", "first : last + 1")),
        "counted from 1",
    ),
    (
        "q04",
        "answer-b",
        changed("q04-answer-b", ("(first, last + 1)", "(first - 1, last)")),
        "one too small",
    ),
    (
        "q04",
        "answer-b",
        changed("q04-answer-b", ("last + 1", "last"), ("1 : last", "1 : last - 1")),
        "not included in your fit",
    ),
    ("q04", "answer-b", changed("q04-answer-b", ("np.log(i)", "i")), "the logarithm of i too"),
    # 5 amplified waves
    ("q05", "answer-a", changed("q05-answer-a", ("0.5 * (", "(")), "the factor ½"),
    ("q05", "answer-a", changed("q05-answer-a", ("exp(0.5", "exp(-0.5")), "forward problem"),
    (
        "q05",
        "answer-a",
        changed("q05-answer-a", ("(omega**2 * parameter)", "(omega**2 * parameter / 2)")),
        "2t, not t",
    ),
    (
        "q05",
        "answer-a",
        changed("q05-answer-a", ("(omega**2 * parameter)", "(0.5 * (omega * parameter) ** 2)")),
        "t for the width",
    ),
    (
        "q05",
        "answer-a",
        changed("q05-answer-a", ("omega**parameter", "omega")),
        "right for one integration",
    ),
    ("q05", "answer-a", changed("q05-answer-a", ("raise ValueError(", "return str(")), "accepts"),
    ("q05", "answer-b", define(VISIBLE, "return 1 / eps"), "your own amplification"),
    (
        "q05",
        "answer-b",
        changed("q05-answer-b", ("np.sqrt(2 * np.log", "np.sqrt(np.log")),
        "must be exactly 1 there",
    ),
    (
        "q05",
        "answer-b",
        changed("q05-answer-b", ("np.sqrt(2 * np.log(1 / eps))", "np.sqrt(2 * np.log(eps))")),
        "NaN",
    ),
    # 6 Picard plot
    (
        "q06",
        "answer-a",
        define(PLATEAU, COEFFICIENTS + "return np.mean(c[start:] ** 2)"),
        "this is the variance",
    ),
    (
        "q06",
        "answer-a",
        define(PLATEAU, COEFFICIENTS + "return np.mean(np.abs(c[start:]))"),
        "the mean of |c_i|",
    ),
    (
        "q06",
        "answer-a",
        define(PLATEAU, COEFFICIENTS + "return np.linalg.norm(c[start:])"),
        "not divided by the number",
    ),
    (
        "q06",
        "answer-a",
        define(PLATEAU, COEFFICIENTS + "return np.sqrt(np.mean((c / s)[start:] ** 2))"),
        "divided by σ_i",
    ),
    (
        "q06",
        "answer-a",
        define(PLATEAU, COEFFICIENTS + "return np.sqrt(np.mean(c[start - 1:] ** 2))"),
        "one coefficient too many",
    ),
    (
        "q06",
        "answer-a",
        define(PLATEAU, COEFFICIENTS + "return np.sqrt(np.mean(c[:start] ** 2))"),
        "take those above",
    ),
    (
        "q06",
        "answer-a",
        define(PLATEAU, "c = np.linalg.svd(A)[0].T @ y\nreturn np.sqrt(np.mean(c[start:] ** 2))"),
        "the full SVD has m vectors",
    ),
    (
        "q06",
        "answer-a",
        define(PLATEAU, SVD + "c = Vt @ y\nreturn np.sqrt(np.mean(c[start:] ** 2))"),
        "The shapes do not fit",
    ),
    (
        "q06",
        "answer-b",
        define(TERMS, COEFFICIENTS + "return int(np.argmax(np.abs(c) <= factor * noise_std))"),
        "stops at the first small coefficient",
    ),
    (
        "q06",
        "answer-b",
        define(TERMS, COEFFICIENTS + "return int(np.sum(np.abs(c) > factor * noise_std))"),
        "only counted",
    ),
    (
        "q06",
        "answer-b",
        define(
            TERMS,
            COEFFICIENTS + "return int(np.nonzero(np.abs(c) > factor * noise_std)[0][-1]) + 1",
        ),
        "the last large coefficient",
    ),
    ("q06", "answer-b", changed("q06-answer-b", ("return r\n", "return r + 1\n")), "one too many"),
    ("q06", "answer-b", changed("q06-answer-b", ("return r\n", "return r + 3\n")), "after the"),
    (
        "q06",
        "answer-b",
        changed("q06-answer-b", ("return is_small.size", "return 0")),
        "then all 14",
    ),
    # 7 no crime
    (
        "q07",
        "answer",
        changed(
            "q07-answer",
            (
                "(blur_matrix(3 * n, width) @ x_fine).reshape(n, 3).mean(axis=1)",
                "blur_matrix(n, width) @ x_true",
            ),
        ),
        "the inverse crime",
    ),
    ("q07", "answer", changed("q07-answer", ("mean(axis=1)", "sum(axis=1)")), "sums of three"),
    (
        "q07",
        "answer",
        changed("q07-answer", ("@ x_fine).reshape(n, 3).mean(axis=1)", "@ x_fine)[1::3]")),
        "the middle one",
    ),
    (
        "q07",
        "answer",
        changed("q07-answer", ("x_fine.reshape(n, 3).mean(axis=1)", "x_fine[::3]")),
        "every third value",
    ),
    (
        "q07",
        "answer",
        changed("q07-answer", ("x_fine.reshape(n, 3)", "x_fine.reshape(3, n).T")),
        "take three neighbours",
    ),
    (
        "q07",
        "answer",
        changed("q07-answer", (" / np.linalg.norm(y)", "")),
        "divide by the norm of y",
    ),
    (
        "q07",
        "answer",
        changed("q07-answer", (" / np.linalg.norm(x_true)", "")),
        "divide by the norm of x_true",
    ),
    # 8 whose lambda
    ("q08", "answer-a", define(LAMBDA, "return mu * b / (2 * a)"), "carries its ½ already"),
    ("q08", "answer-a", define(LAMBDA, "return mu * b / a"), "‖x‖₁ carries no ½"),
    ("q08", "answer-a", define(LAMBDA, "return mu * b"), "the factor a"),
    ("q08", "answer-a", define(LAMBDA, "return mu * a / b"), "turned round"),
    (
        "q08",
        "answer-b",
        "lam_of = {'ridge': 0.005, 'lasso': 2.0, 'decay': 1.0}",
        "['ridge'] is too small",
    ),
    (
        "q08",
        "answer-b",
        "lam_of = {'ridge': 0.01, 'lasso': 4.0, 'decay': 1.0}",
        "['lasso'] is too large",
    ),
    (
        "q08",
        "answer-b",
        "lam_of = {'ridge': 0.01, 'lasso': 2.0, 'decay': 2.0}",
        "['decay'] is too large",
    ),
    (
        "q08",
        "answer-b",
        "lam_of = {'ridge': 0.01, 'lasso': 0.01, 'decay': 0.01}",
        "Sums or means",
    ),
    ("q08", "answer-b", "lam_of = (0.01, 2.0, 1.0)", "must be a dict"),
    # 9 error bars
    (
        "q09",
        "answer",
        changed("q09-answer", ("(noise_std / prior_std) ** 2", "1 / prior_std**2")),
        "σ_e² is forgotten",
    ),
    (
        "q09",
        "answer",
        changed("q09-answer", ("noise_std / prior_std", "prior_std / noise_std")),
        "turned round",
    ),
    (
        "q09",
        "answer",
        changed("q09-answer", ("(noise_std / prior_std) ** 2", "noise_std / prior_std")),
        "variances are needed",
    ),
    (
        "q09",
        "answer",
        changed("q09-answer", ("np.sqrt(np.diag(covariance))", "np.diag(covariance)")),
        "these are variances",
    ),
    (
        "q09",
        "answer",
        changed("q09-answer", ("noise_std**2 * np.linalg.inv", "np.linalg.inv")),
        "σ_e is missing",
    ),
    (
        "q09",
        "answer",
        changed("q09-answer", ("np.linalg.solve(normal, A.T @ y)", "np.linalg.pinv(A) @ y")),
        "the least-squares solution",
    ),
    # 10 project
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ("terms = usable_terms(A, y, noise_std, 3.0)", "terms = s.size")),
        "You keep too many terms",
    ),
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ("terms = usable_terms(A, y, noise_std, 3.0)", "terms = 1")),
        "You keep too few terms",
    ),
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ("s.size // 2", "0")),
        "Some of the coefficients still contain the signal",
    ),
    ("q10", "answer-a", changed("q10-answer-a", (" / s[:terms]", "")), "the division by σ"),
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ('"terms": terms,', '"terms": terms - 1,')),
        "one term more than terms says",
    ),
    ("q10", "answer-a", define(RECOVER, "return y"), "must return a dict"),
]

# Right answers by another way than the source's.
RIGHT = [
    (
        "q01",
        {"q01-answer-b": define(STEP, "return np.sqrt(np.sqrt(np.float64(48) * delta / M))")},
    ),
    ("q02", {"q02-answer-a": "ghost = np.array([[1, -1, 0], [-1, 0, 1], [0, 1, -1]])"}),
    (
        "q02",
        {"q02-answer-b": define(INVISIBLE, "return x - np.linalg.lstsq(A, A @ x, rcond=None)[0]")},
    ),
    (
        "q03",
        {
            "q03-answer": define(
                WORST,
                SVD + "k = np.linalg.matrix_rank(A) - 1\n"
                "return {'kappa': float(s[0] / s[k]), 'data': -U[:, 0], 'error': U[:, k] / 1000}",
            )
        },
    ),
    (
        "q06",
        {
            "q06-answer-b": define(
                TERMS,
                SVD + "small = [abs(u @ y) <= factor * noise_std for u in U.T]\n"
                "for r in range(len(small)):\n"
                "    if len(small) >= r + 3 and all(small[r:r + 3]):\n"
                "        return r\n"
                "return len(small)",
            )
        },
    ),
    (
        "q09",
        {
            "q09-answer": define(
                "posterior(A, y, noise_std, prior_std)",
                "n = A.shape[1]\n"
                "H = A.T @ A / noise_std**2 + np.eye(n) / prior_std**2\n"
                "C = np.linalg.inv(H)\n"
                "return {'lam': noise_std**2 / prior_std**2, 'x': C @ A.T @ y / noise_std**2,\n"
                "        'std': np.diag(C) ** 0.5}",
            )
        },
    ),
    (
        "q10",  # the median of the last coefficients, and the last one clearly above the noise
        {
            "q10-answer-a": define(
                RECOVER,
                COEFFICIENTS + "sd = np.median(np.abs(c[len(c) // 2:])) / 0.6745\n"
                "small = np.abs(c) <= 4 * sd\n"
                "r = next(i for i in range(len(c)) if small[i:i + 3].all())\n"
                "return {'x': Vt[:r].T @ (c[:r] / s[:r]), 'terms': r, 'noise_std': sd}",
            )
        },
    ),
]

HIDDEN_ONLY = [
    ("q01", {"q01-answer-a": define(BOUND, "return 4.01")}),
    (
        "q02",
        {"q02-answer-b": define(INVISIBLE, "return x - x.mean() if len(x) == 3 else x * [0, 1]")},
    ),
    ("q05", {"q05-answer-a": changed("q05-answer-a", ("omega**parameter", "125.0"))}),
    ("q06", {"q06-answer-b": define(TERMS, "return 6 if noise_std > 0.1 else 14")}),
    ("q08", {"q08-answer-a": define(LAMBDA, "return 6.0 if penalty == 'squared' else 3.0")}),
    ("q10", {"q10-answer-a": changed("q10-answer-a", ("usable_terms(A, y, noise_std, 3.0)", "8"))}),
]


@pytest.mark.slow
class TestHomework(HomeworkTests):
    chapter = CHAPTER
    wrong = WRONG
    right = RIGHT
    hidden_only = HIDDEN_ONLY
    by_hand = ("q05-proof", "q10-report")
    slow = ("q10",)


@pytest.mark.kernels
@pytest.mark.slow
def test_release_and_check(tmp_path, capsys):
    wrong = {
        "q01-answer-a": define(BOUND, "return M * h**2 / 12 + 3 * delta / h**2"),
        "q07-answer": changed("q07-answer", ("mean(axis=1)", "sum(axis=1)")),
        "q08-answer-b": "lam_of = {'ridge': 0.01, 'lasso': 0.01, 'decay': 0.01}",
    }
    words = ("the middle value has the factor 2", "sums of three cells", "Sums or means")
    CHAPTER.release_and_check(tmp_path, capsys, wrong, words)
