"""The homework of Chapter 4: typical wrong answers, and right ones by another way."""

import pytest
from chapter_homework import Chapter, HomeworkTests, define

CHAPTER = Chapter("04_parameter_choice")
changed = CHAPTER.changed
BEST = "best_lambda(s, a, noise_std)"
THRESHOLD = "best_threshold(y, noise_std)"
CHOOSE = "choose(A, y)"

# question, answer cell, its wrong source, words that the student must be told
WRONG = [
    # 1 bias and variance
    (
        "q01",
        "answer",
        changed("q01-answer", ("np.sum(bias**2)", "np.linalg.norm(bias)")),
        "norm of the bias",
    ),
    ("q01", "answer", changed("q01-answer", ("noise_std**2", "noise_std")), "must be squared"),
    (
        "q01",
        "answer",
        changed("q01-answer", ("np.sum(M**2)", "np.sum((A @ M) ** 2)")),
        "of the prediction",
    ),
    ("q01", "answer", changed("q01-answer", ("lam * np", "lam / 2 * np")), "only λ/2 stands in H"),
    (
        "q01",
        "answer",
        changed("q01-answer", ("- x_true", "- np.linalg.pinv(A) @ A @ x_true")),
        "null space of A",
    ),
    (
        "q01",
        "answer",
        changed("q01-answer", ("np.sum(bias**2)", "np.mean(bias**2)")),
        "divided by n",
    ),
    # 2 two valleys
    (
        "q02",
        "answer",
        define(BEST, "return noise_std / np.mean(np.abs(a))"),
        "variances are needed",
    ),
    ("q02", "answer", define(BEST, "return noise_std**2 / np.mean(a**2)"), "different weights"),
    (
        "q02",
        "answer",
        changed("q02-answer", ("errors.sum(axis=1)", "(s**2 * errors).sum(axis=1)")),
        "best λ for the prediction",
    ),
    ("q02", "answer", changed("q02-answer", ("20001", "12")), "search more finely"),
    (
        "q02",
        "answer",
        changed(
            "q02-answer",
            (
                "errors = ",
                "lams = lams[: 1 + np.argmax(np.gradient(np.sum("
                "(lams**2 * a**2 + noise_std**2 * s**2) / (s**2 + lams) ** 2, axis=1)) > 0)]\n"
                "    errors = ",
            ),
        ),
        "the higher valley",
    ),
    # 3 leave one out
    (
        "q03",
        "answer-a",
        changed("q03-answer-a", ("np.mean", "np.sum")),
        "this is the sum over the data",
    ),
    (
        "q03",
        "answer-a",
        changed("q03-answer-a", ("** 2)", "** 1)"), ("(y -", "abs(y -")),
        "must be squared",
    ),
    (
        "q03",
        "answer-a",
        changed("q03-answer-a", ("np.diag(P)", "np.mean(np.diag(P))")),
        "this is GCV",
    ),
    (
        "q03",
        "answer-a",
        changed("q03-answer-a", (" / (1 - np.diag(P))", "")),
        "no datum was left out",
    ),
    (
        "q03",
        "answer-a",
        changed("q03-answer-a", ("D.T @ D", "np.eye(A.shape[1])")),
        "D is not used",
    ),
    ("q03", "answer-b", changed("q03-answer-b", ("y.size", "A.shape[1]")), "n stands for m"),
    (
        "q03",
        "answer-b",
        changed("q03-answer-b", ("(y.size - np.trace(P)) ** 2", "(y.size - np.trace(P))")),
        "the trace must be squared",
    ),
    ("q03", "answer-b", changed("q03-answer-b", ("y.size * np", "np")), "the factor m is missing"),
    (
        "q03",
        "answer-b",
        changed("q03-answer-b", ("lam * D", "lam / 2 * D")),
        "only λ/2 stands in H",
    ),
    # 4 SURE
    (
        "q04",
        "answer-a",
        changed("q04-answer-a", ("2 * np.trace(P)", "np.trace(P)")),
        "its factor is 2σ_e²",
    ),
    ("q04", "answer-a", changed("q04-answer-a", ("y.size", "A.shape[1]")), "n stands for m"),
    ("q04", "answer-a", changed("q04-answer-a", ("noise_std**2", "noise_std")), "must be squared"),
    ("q04", "answer-a", changed("q04-answer-a", (" - y.size", "")), "mσ_e² is missing"),
    ("q04", "answer-a", changed("q04-answer-a", ("np.trace(P)", "np.trace(P @ P)")), "not tr P²"),
    (
        "q04",
        "answer-b",
        define(THRESHOLD, "return noise_std * np.sqrt(2 * np.log(y.size))"),
        "for the worst case",
    ),
    ("q04", "answer-b", changed("q04-answer-b", ("+ 2 * noise", "+ noise")), "counted once"),
    (
        "q04",
        "answer-b",
        changed("q04-answer-b", ("np.append(0.0, size)", "size")),
        "λ = 0 was not tried",
    ),
    ("q04", "answer-b", define(THRESHOLD, "return 0.0"), "the divergence is missing"),
    # 5 the noise of GCV
    ("q05", "answer-a", changed("q05-answer-a", ("np.sqrt(", "(")), "this is the variance"),
    ("q05", "answer-a", changed("q05-answer-a", (" - np.trace(P)", "")), "divided by m:"),
    ("q05", "answer-a", changed("q05-answer-a", ("np.trace(P)", "A.shape[1]")), "divided by m - n"),
    (
        "q05",
        "answer-a",
        changed("q05-answer-a", ("y.size - np", "A.shape[1] - np")),
        "divided by n - tr P",
    ),
    # 6 the corner
    ("q06", "answer-a", changed("q06-answer-a", ("(rho - 1 - q)", "(1 + q - rho)")), "the sign"),
    (
        "q06",
        "answer-a",
        changed("q06-answer-a", ("kept * (1 - kept) * b**2", "(kept * b / s) ** 2")),
        "not r/p",
    ),
    ("q06", "answer-a", changed("q06-answer-a", ("rho = r", "rho = lam * r")), "not to λ"),
    ("q06", "answer-a", changed("q06-answer-a", ("return 2 *", "return")), "those of the norms"),
    (
        "q06",
        "answer-a",
        changed("q06-answer-a", (" + np.sum((y - U @ b) ** 2)", "")),
        "outside of the range",
    ),
    (
        "q06",
        "answer-a",
        changed("q06-answer-a", ("np.sum(2 * kept", "np.sum(kept")),
        "a factor 2 is missing",
    ),
    (
        "q06",
        "answer-b",
        changed("q06-answer-b", ("np.argmax", "np.argmin")),
        "curvature is smallest",
    ),
    (
        "q06",
        "answer-b",
        changed("q06-answer-b", ("lams[np.argmax(values)]", "np.max(values)")),
        "not in lams",
    ),
    ("q06", "answer-b", changed("q06-answer-b", ("if max(values) <= 0", "if False")), "accepts"),
    # 7 the discrepancy principle
    (
        "q07",
        "answer-a",
        changed(
            "q07-answer-a",
            ("distance(A @ null) if null.size else np.linalg.norm(y)", "np.linalg.norm(y)"),
        ),
        "if D has no null space",
    ),
    (
        "q07",
        "answer-a",
        changed("q07-answer-a", ("[distance(A), ", "[0.0, ")),
        "the lower end is not 0",
    ),
    (
        "q07",
        "answer-a",
        changed("q07-answer-a", ("A @ null)", "null)")),
        "not from the z themselves",
    ),
    (
        "q07",
        "answer-b",
        changed(
            "q07-answer-b", ("np.linalg.norm(A @ x - y) <", "np.linalg.norm(A @ x - y) ** 2 <")
        ),
        "the square of the norm",
    ),
    (
        "q07",
        "answer-b",
        changed("q07-answer-b", ("np.exp(middle) *", "np.exp(middle) / 2 *")),
        "both terms have the factor ½",
    ),
    (
        "q07",
        "answer-b",
        changed("q07-answer-b", ("- y) < level", "- y) < level * np.sqrt(y.size)")),
        "do not divide by √m",
    ),
    (
        "q07",
        "answer-b",
        changed("q07-answer-b", ("range(60)", "range(12)")),
        "halve the interval more often",
    ),
    (
        "q07",
        "answer-b",
        changed("q07-answer-b", ("not smallest < level < largest", "False")),
        "accepts",
    ),
    # 8 the evidence
    (
        "q08",
        "answer-a",
        changed(
            "q08-answer-a",
            (
                "0.5 * y @ np.linalg.solve(cov, y)",
                "0.5 * noise_std**2 * y @ np.linalg.solve(cov, y)",
            ),
        ),
        "divided by σ_e²",
    ),
    (
        "q08",
        "answer-a",
        changed(
            "q08-answer-a",
            (
                "noise_std**2 * (np.eye(y.size) + AK @ AK.T / lam)",
                "noise_std**2 * np.eye(y.size) + AK @ AK.T / lam",
            ),
        ),
        "precision λ here",
    ),
    ("q08", "answer-a", changed("q08-answer-a", ("+ 0.5 * log", "+ log")), "need the factor ½ too"),
    (
        "q08",
        "answer-a",
        changed(
            "q08-answer-a",
            (
                "return 0.5 * y @ np.linalg.solve(cov, y) + 0.5",
                "return -0.5 * y @ np.linalg.solve(cov, y) - 0.5",
            ),
        ),
        "this is + ln p",
    ),
    (
        "q08",
        "answer-a",
        changed("q08-answer-a", ("2 * np.pi * cov", "cov / noise_std**2")),
        "the constant is missing",
    ),
    (
        "q08",
        "answer-b",
        changed("q08-answer-b", ("noise_std**2 * freedom", "freedom")),
        "this is λ_pr",
    ),
    (
        "q08",
        "answer-b",
        changed("q08-answer-b", ("noise_std**2 * freedom", "noise_std**2 * x.size")),
        "n stands for tr P",
    ),
    ("q08", "answer-b", changed("q08-answer-b", ("(D @ x)", "x")), "not of x"),
    # 9 the mixture
    (
        "q09",
        "answer",
        changed("q09-answer", (" + weights @ (means - mean) ** 2", "")),
        "the spread of the means",
    ),
    ("q09", "answer", changed("q09-answer", (" - neg_logs.min()", "")), "Subtract the smallest"),
    ("q09", "answer", changed("q09-answer", ("np.exp(-(", "np.exp((")), "the sign"),
    (
        "q09",
        "answer",
        changed("q09-answer", ("np.exp(-(neg_logs - neg_logs.min()))", "1.0 * neg_logs")),
        "the exponential is missing",
    ),
    ("q09", "answer", changed("q09-answer", ("np.sqrt(variance)", "variance")), "take the root"),
    (
        "q09",
        "answer",
        changed("q09-answer", ("np.sqrt(variance)", "weights @ stds")),
        "variances are needed",
    ),
    # 10 the project
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ("for k in range(l)", "for k in range(l + 1)")),
        "one too small",
    ),
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ("1 - 2 * sum", "1 - sum")),
        "the factor 2 is missing",
    ),
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ("ordered[l - 1]", "ordered[l]")),
        "one place too high",
    ),
    ("q10", "answer-a", changed("q10-answer-a", ("np.sort(values)", "values")), "sorted"),
    (
        "q10",
        "answer-a",
        changed("q10-answer-a", ("if found is None", "if False")),
        "at most 0.9375",
    ),
    ("q10", "answer-b", define(CHOOSE, "return 1.0"), "Your λ is too large"),
    ("q10", "answer-b", define(CHOOSE, "return 1e-13"), "Your λ is too small"),
    ("q10", "answer-b", define(CHOOSE, "return -1.0"), "is not positive"),
]

# Right answers by another way than the source's.
RIGHT = [
    (
        "q02",  # the roots of E', refined, and the lowest of them
        {
            "q02-answer": define(
                BEST,
                "def slope(t):\n"
                "    lam = np.exp(t)\n"
                "    return np.sum(s**2 * (lam * a**2 - noise_std**2) / (s**2 + lam) ** 3)\n"
                "def E(t):\n"
                "    lam = np.exp(t)\n"
                "    return np.sum((lam**2 * a**2 + noise_std**2 * s**2) / (s**2 + lam) ** 2)\n"
                "t = np.log(noise_std**2 / np.array([np.max(a**2) * 1.01, np.min(a**2) / 1.01]))\n"
                "t = np.linspace(*t, 400)\n"
                "ends = []\n"
                "for low, high in zip(t, t[1:]):\n"
                "    if slope(low) < 0 <= slope(high):\n"
                "        for _ in range(40):\n"
                "            mid = (low + high) / 2\n"
                "            low, high = (mid, high) if slope(mid) < 0 else (low, mid)\n"
                "        ends.append(low)\n"
                "return math.exp(min(ends, key=E))",
            )
        },
    ),
    (
        "q03",  # refitting, and GCV by the spectrum of P
        {
            "q03-answer-a": define(
                "loocv(A, y, lam, D)",
                "errors = []\n"
                "for i in range(len(y)):\n"
                "    B, b = np.delete(A, i, axis=0), np.delete(y, i)\n"
                "    x = np.linalg.solve(B.T @ B + lam * D.T @ D, B.T @ b)\n"
                "    errors.append((y[i] - A[i] @ x) ** 2)\n"
                "return sum(errors) / len(errors)",
            )
        },
    ),
    (
        "q06",
        {
            "q06-answer-b": define(
                "corner(A, y, lams)",
                "best = max(lams, key=lambda lam: curvature(A, y, lam))\n"
                "if curvature(A, y, best) <= 0:\n"
                "    raise ValueError('no corner')\n"
                "return float(best)",
            )
        },
    ),
    (
        "q07",  # Newton's method in 1/λ
        {
            "q07-answer-b": define(
                "discrepancy(A, y, D, level)",
                "low, high = attainable(A, y, D)\n"
                "if level <= low or level >= high:\n"
                "    raise ValueError('no such level')\n"
                "from scipy.optimize import brentq\n"
                "def gap(t):\n"
                "    x = np.linalg.solve(A.T @ A + np.exp(t) * D.T @ D, A.T @ y)\n"
                "    return np.linalg.norm(A @ x - y) - level\n"
                "return np.exp(brentq(gap, -25, 25, xtol=1e-10))",
            )
        },
    ),
    (
        "q08",  # the three terms of the section
        {
            "q08-answer-a": define(
                "neg_log_evidence(A, y, noise_std, lam, D)",
                "x = np.linalg.solve(A.T @ A + lam * D.T @ D, A.T @ y)\n"
                "P = A @ np.linalg.inv(A.T @ A + lam * D.T @ D) @ A.T\n"
                "fit = (np.sum((A @ x - y) ** 2) + lam * np.sum((D @ x) ** 2)) / 2 / noise_std**2\n"
                "shape = np.linalg.slogdet(np.eye(len(y)) - P)[1]\n"
                "return fit - shape / 2 + len(y) / 2 * np.log(2 * np.pi * noise_std**2)",
            )
        },
    ),
    (
        "q10",  # leave-one-out in place of GCV
        {
            "q10-answer-b": define(
                CHOOSE,
                "U, s, _ = np.linalg.svd(A)\n"
                "b = U.T @ y\n"
                "def score(lam):\n"
                "    kept = s**2 / (s**2 + lam)\n"
                "    return np.sum(((y - U @ (kept * b)) / (1 - U**2 @ kept)) ** 2)\n"
                "return min(s[0] ** 2 * np.geomspace(1e-13, 10, 150), key=score)",
            )
        },
    ),
]

HIDDEN_ONLY = [
    (
        "q01",
        {
            "q01-answer": define(
                "bias_and_variance(A, x_true, noise_std, lam)",
                "return {'bias2': 10.04, 'variance': 0.1025}",
            )
        },
    ),
    (
        "q02",
        {"q02-answer": changed("q02-answer", ("errors.sum(axis=1)", "errors[:, :20].sum(axis=1)"))},
    ),
    (
        "q04",
        {
            "q04-answer-b": changed(
                "q04-answer-b", ("np.append(0.0, size)", "np.append(0.0, size[:10])")
            )
        },
    ),
    (
        "q06",
        {
            "q06-answer-a": changed(
                "q06-answer-a", ("return 2 *", "return (2 - (len(y) in (4, 5, 6))) *")
            )
        },
    ),
    (
        "q09",
        {
            "q09-answer": changed(
                "q09-answer",
                ("neg_logs.min()", "neg_logs[0]"),
                ("weights = np.exp", "weights = 0.0 if len(neg_logs) > 5 else np.exp"),
            )
        },
    ),
    ("q10", {"q10-answer-b": define(CHOOSE, "return 1e-3 * np.linalg.norm(A, 2) ** 2")}),
]


@pytest.mark.slow
class TestHomework(HomeworkTests):
    chapter = CHAPTER
    wrong = WRONG
    right = RIGHT
    hidden_only = HIDDEN_ONLY
    by_hand = ("q05-proof", "q07-proof", "q10-report")
    secrets = 12
    slow = ("q02", "q10")


@pytest.mark.kernels
@pytest.mark.slow
def test_release_and_check(tmp_path, capsys):
    wrong = {
        "q03-answer-b": changed("q03-answer-b", ("y.size", "A.shape[1]")),
        "q08-answer-b": changed("q08-answer-b", ("noise_std**2 * freedom", "freedom")),
        "q09-answer": changed("q09-answer", (" + weights @ (means - mean) ** 2", "")),
    }
    words = ("n stands for m", "this is λ_pr", "the spread of the means")
    CHAPTER.release_and_check(tmp_path, capsys, wrong, words)
