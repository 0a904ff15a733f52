"""The homework of Chapter 3: typical wrong answers, and right ones by another way."""

import pytest
from chapter_homework import Chapter, HomeworkTests, define

CHAPTER = Chapter("03_sparsity")
changed = CHAPTER.changed
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


@pytest.mark.slow
class TestHomework(HomeworkTests):
    chapter = CHAPTER
    wrong = WRONG
    right = RIGHT
    hidden_only = HIDDEN_ONLY
    by_hand = ("q02-proof", "q04-proof", "q10-report")
    secrets = 10
    slow = ("q06", "q09", "q10")


@pytest.mark.kernels
@pytest.mark.slow
def test_release_and_check(tmp_path, capsys):
    wrong = {
        "q03-answer": changed("q03-answer", ("lam / lipschitz", "lam / (2 * lipschitz)")),
        "q07-answer": changed("q07-answer", (" - lam * signs", "")),
        "q09-answer": changed("q09-answer", ("-lam, lam", "-lam / 2, lam / 2")),
    }
    words = ("the minimizer for λ/2", "least squares on the support", "0.5 times the given")
    CHAPTER.release_and_check(tmp_path, capsys, wrong, words)
