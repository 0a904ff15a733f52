"""The check contract: packing, calling the student's work, and the words of the diagnosis."""

import contextlib
import hmac
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from course_lib.homework import contract, diagnose
from course_lib.homework.contract import NotPlain, WrongAnswer, pack, recipe, unpack

HOMEWORK = Path(contract.__file__).parent


@contextlib.contextmanager
def student(source: str):
    """Let `call` reach the names that ``source`` defines, over pure JSON."""
    namespace: dict = {}
    exec(compile(source, "<student>", "exec"), namespace)

    def over_json(name, arguments):
        sent = json.loads(json.dumps(arguments))
        return json.loads(json.dumps(contract.invoke(namespace, name, sent)))

    before = contract.set_transport(over_json)
    try:
        yield
    finally:
        contract.set_transport(before)


def words_of(source: str, name: str, *arguments) -> str:
    """The words with which `call` turns this student's work down."""
    with student(source), pytest.raises(WrongAnswer) as caught:
        contract.call(name, *arguments)
    return str(caught.value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(plain)
def test_plain_values_come_back_with_their_exact_types(value):
    back = unpack(json.loads(json.dumps(pack(value))))
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "i4", "?", "c16", ">f8"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3)])
def test_arrays_come_back_with_dtype_shape_and_bits(dtype, shape):
    array = np.arange(int(np.prod(shape)), dtype=float).reshape(shape).astype(dtype)
    back = unpack(json.loads(json.dumps(pack(array))))
    assert type(back) is np.ndarray
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    assert back.tobytes() == array.tobytes()


def test_nan_and_infinity_cross():
    back = unpack(json.loads(json.dumps(pack([float("nan"), float("inf"), -0.0]))))
    assert str(back) == "[nan, inf, -0.0]"


def test_subclasses_are_stripped():
    class Lenient(float):
        def __eq__(self, other):
            return True

        __hash__ = float.__hash__

    assert type(unpack(pack(Lenient(1.0)))) is float
    assert type(unpack(pack(np.float64(1.0)))) is float
    assert unpack(pack(np.ma.array([1.0], mask=[True]))).came_as == "numpy.MaskedArray"


def test_a_torch_tensor_crosses_as_an_array_that_says_so():
    torch = pytest.importorskip("torch")
    tensor = torch.ones(2, dtype=torch.float64, requires_grad=True)
    back = unpack(json.loads(json.dumps(pack(tensor))))
    np.testing.assert_array_equal(np.asarray(back), [1.0, 1.0])
    assert back.came_as == "torch.Tensor"
    with pytest.raises(WrongAnswer, match=r"x is a torch\.Tensor"):
        diagnose.expect_array("x", back, (2,))


@pytest.mark.parametrize(
    "value",
    [object(), {1: 2}, {1, 2}, lambda: 0, np.array([object()]), np.array(["a"]), b"raw"],
    ids=["object", "int key", "set", "function", "object array", "text array", "bytes"],
)
def test_what_is_not_plain_is_refused(value):
    with pytest.raises(NotPlain):
        pack(value)


def test_a_list_that_contains_itself_is_refused():
    loop: list = []
    loop.append(loop)
    with pytest.raises(NotPlain, match="nested"):
        pack(loop)


def test_damaged_packed_values_are_refused():
    with pytest.raises(ValueError, match="packed value"):
        unpack({"$": "pickle", "data": "gASV"})
    with pytest.raises(ValueError, match="numeric array"):
        unpack({"$": "array", "dtype": "|O", "shape": [1], "data": "AAAAAAAAAAA="})


def test_recipes_become_operators_on_the_students_side_only():
    contract.builders(diagonal=lambda d: lambda x: d * x)
    with student("def twice(A, x):\n    return A(A(x))\n"):
        found = contract.call("twice", recipe("diagonal", d=np.array([2.0, 3.0])), np.ones(2))
    np.testing.assert_array_equal(found, [4.0, 9.0])
    with student("def f(A):\n    return 1.0\n"), pytest.raises(ValueError, match="no builder"):
        contract.call("f", recipe("unheard_of"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "there is no `f` yet"),
        ("def f(x):\n    raise NotImplementedError('Question 3 is open.')", "stub is left. Quest"),
        ("def f(x):\n    return ...", "is still `...`"),
        ("def f(x):\n    y = 2 * x", "gives None"),
        ("def f(x):\n    return 1 / 0", "stops with ZeroDivisionError: division by zero"),
        ("def f(x):\n    x += 1\n    return x", "changes its input `x`"),
        ("def f(x):\n    return helper(x)", "define the name in an answer cell"),
        ("def f(x, y):\n    return x", "Keep the arguments"),
        ("import numpy as np\ndef f(x):\n    return np.ones((2, 5)) @ x", "Is A used where Aᵀ is"),
        ("def f(x):\n    return x + __import__('numpy').ones(7)", "Is A used where Aᵀ is meant"),
        ("def f(x):\n    return {1: x}", "keys must be strings"),
        ("def f(x):\n    return lambda: x", "a value of type function"),
        ("def f(x):\n    print('so far', x.size)", "Your code printed: so far 3"),
        ("def f(x):\n    raise SystemExit(3)", "stops with SystemExit"),
    ],
    ids=str,
)
def test_call_says_in_words_what_went_wrong(source, words):
    assert words in words_of(source, "f", np.ones(3))


def test_the_line_of_an_error_is_shown(tmp_path):
    script = tmp_path / "answer.py"
    script.write_text("import math\ndef f(x):\n    y = x\n    return math.sqrt(y)\n")
    namespace: dict = {}
    exec(compile(script.read_text(), str(script), "exec"), namespace)
    reply = contract.invoke(namespace, "f", [-1.0])
    assert (reply["status"], reply["line"]) == ("raised", "return math.sqrt(y)")


def test_prints_and_warnings_of_the_student_stay_out_of_the_checks_output(capfd):
    source = (
        "import sys, warnings\n"
        "def f(x):\n"
        "    print('noise' * 10**5)\n"
        "    print('more', file=sys.stderr)\n"
        "    return x\n"
    )
    with student(source):
        assert contract.call("f", 2.0) == 2.0
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_a_value_answers_without_arguments():
    with student("x = [1, (2, 3)]"):
        assert contract.call("x") == [1, (2, 3)]


def test_expect_error_wants_exactly_a_value_error(capsys):
    with student("def f(step):\n    raise ValueError('no')"):
        contract.expect_error("f", 3.0, because="3 is too long")
    assert "refuses" in capsys.readouterr().out
    with student("import numpy as np\ndef f(x):\n    raise np.linalg.LinAlgError('singular')"):
        contract.expect_error("f", 3.0, because="LinAlgError is a ValueError")
    with student("def f(step):\n    return 1.0"), pytest.raises(WrongAnswer, match="accepts this"):
        contract.expect_error("f", 3.0, because="3 is too long")
    stub = "def f(step):\n    raise NotImplementedError('Question 9.')"
    with student(stub), pytest.raises(WrongAnswer, match="the stub is left"):
        contract.expect_error("f", 3.0, because="3 is too long")
    other = "def f(step):\n    raise KeyError('no')"
    with student(other), pytest.raises(WrongAnswer, match=r"KeyError.* must raise ValueError"):
        contract.expect_error("f", 3.0, because="3 is too long")


def test_a_check_sees_nothing_of_the_notebook():
    namespace = {"check": contract.check, "secret_of_the_notebook": 1}
    body = "@check\ndef question():\n    print(secret_of_the_notebook)\n"
    with pytest.raises(NameError):
        exec(body, namespace)
    exec("np = None\n@check\ndef question():\n    assert np.pi > 3 and callable(call)\n", namespace)


def test_a_check_prints_each_finding_once_and_the_wrong_one(capsys):
    @contract.check
    def fine():
        expect(True, "a", "-")  # noqa: F821 - the names of the package are there
        expect(True, "a", "-")  # noqa: F821

    assert capsys.readouterr().out == "right: a\n"
    with pytest.raises(WrongAnswer, match="b is wrong"):

        @contract.check
        def wrong():
            expect(True, "a", "-")  # noqa: F821
            expect(False, "b", "b is wrong")  # noqa: F821

    assert capsys.readouterr().out == "right: a\nwrong: b is wrong\n"


def test_hidden_seeds_depend_on_secret_and_name():
    seeds = {contract.derive_seed(s, n) for s in (b"one", b"two") for n in ("q01", "q02")}
    assert len(seeds) == 4
    digest = hmac.new(b"one", b"q01", "sha256").hexdigest()
    assert contract.derive_seed(b"one", "q01") == int(digest[:16], 16)
    default = contract.hidden_rng("test-seed").integers(10**9)
    contract.set_seed("test-seed", 5)
    assert contract.hidden_rng("test-seed").integers(10**9) != default
    expected = np.random.default_rng(5).integers(10**9)
    assert contract.hidden_rng("test-seed").integers(10**9) == expected


TARGET = np.array([1.0, -2.0, 4.0])


@pytest.mark.parametrize(
    ("got", "words"),
    [
        ([1.0, -2.0, 4.0], "is a list, not a NumPy array"),
        ((1.0, -2.0, 4.0), "is a tuple, not a NumPy array"),
        (3.0, "is a single number, where a NumPy array of shape (3,)"),
        ("x", "is a string"),
        ({}, "is a dict"),
        (TARGET[:, None], ".ravel() makes it one-dimensional"),
        (TARGET[:2], "has shape (2,); (3,) is expected"),
        (np.array([1.0, np.nan, 4.0]), "contains NaN (1 of 3 entries)"),
        (np.array([1.0, np.inf, 4.0]), "contains infinity"),
        (TARGET + 0j, "Take the real part"),
        (TARGET > 0, "has dtype bool"),
        (2 * TARGET, "your answer is 2 times the right one"),
        (TARGET / 2, "your answer is 1/2 times the right one"),
        (-TARGET, "your answer is -1 times the right one"),
        (TARGET[::-1].copy(), "in reverse order"),
        (0 * TARGET, "zero everywhere"),
        (TARGET + 1e-4, "nearly right, but the relative error is"),
        (TARGET + 3, "not the right value"),
        (TARGET**2, "this is squared."),
        ((TARGET + 1e-7).astype("f4"), "only single precision"),
    ],
    ids=str,
)
def test_arrays_are_diagnosed(got, words):
    with pytest.raises(WrongAnswer) as caught:
        diagnose.expect_close("x", got, TARGET, traps={"this is squared.": TARGET**2})
    assert words in str(caught.value)


def test_rounded_integers_and_transposes_are_named():
    with pytest.raises(WrongAnswer, match="rounded to whole numbers"):
        diagnose.expect_close("x", np.array([1, 2]), np.array([1.3, 2.4]))
    M = np.array([[1.0, 2.0], [3.0, 4.0]])
    with pytest.raises(WrongAnswer, match="transpose of the right one"):
        diagnose.expect_close("M", M.T, M)
    with pytest.raises(WrongAnswer, match="It is transposed"):
        diagnose.expect_close("M", np.ones((2, 3)), np.ones((3, 2)))


@pytest.mark.parametrize(
    ("got", "words"),
    [
        (np.array([4.5]), "is an array of shape (1,)"),
        (np.ones(3), "Is a sum or a norm missing"),
        ([4.5], "is a list"),
        (float("nan"), "contains NaN"),
        (4.5 + 1j, "is a complex number"),
        (True, "is True or False"),
        (9.0, "2 times the right one"),
    ],
    ids=str,
)
def test_numbers_are_diagnosed(got, words):
    with pytest.raises(WrongAnswer) as caught:
        diagnose.expect_close("J", got, 4.5)
    assert words in str(caught.value)


@pytest.mark.parametrize("got", [4.5, np.float64(4.5), np.array(4.5), 4.5 + 1e-12])
def test_right_numbers_of_every_kind_pass(got):
    diagnose.expect_close("J", unpack(pack(got)), 4.5)


@given(st.integers(0, 10**6), st.floats(1e-6, 1e6))
def test_a_trap_is_named_only_when_the_answer_is_wrong(seed, size):
    rng = np.random.default_rng(seed)
    target, trap = size * rng.normal(size=4), size * rng.normal(size=4)
    diagnose.expect_close("x", target * (1 + 1e-12), target, traps={"trapped": trap})
    with pytest.raises(WrongAnswer, match="trapped"):
        diagnose.expect_close("x", trap * (1 + 1e-12), target, traps={"trapped": trap})


def test_no_message_contains_the_expected_value():
    target = np.array([0.123456789, 7.654321])
    for got in (target + 1, target * 2, target[:1], target + 1e-5, np.zeros(2)):
        with pytest.raises(WrongAnswer) as caught:
            diagnose.expect_close("x", got, target)
        assert "0.1234" not in str(caught.value)
        assert "7.65" not in str(caught.value)


def test_convergence_is_diagnosed():
    diagnose.expect_converged("x", 1e-9, 1e-8, 1.0)
    with pytest.raises(WrongAnswer, match="not converged"):
        diagnose.expect_converged("x", 1e-3, 1e-8, 1.0)
    for measure in (2.0, float("nan")):
        with pytest.raises(WrongAnswer, match="does not come closer"):
            diagnose.expect_converged("x", measure, 1e-8, 1.0)
    with pytest.raises(WrongAnswer, match="measured nan"):
        diagnose.expect_at_most("x", float("nan"), 1.0, "too large")


def test_the_adjoint_test_tells_adjoint_from_forward():
    rng = np.random.default_rng(0)
    A, x, y = rng.normal(size=(4, 4)), rng.normal(size=4), rng.normal(size=4)
    diagnose.expect_adjoint("Aᵀ", x, A @ x, y, A.T @ y)
    with pytest.raises(WrongAnswer, match="adjoint test fails"):
        diagnose.expect_adjoint("Aᵀ", x, A @ x, y, A @ y)


def test_homework_imports_none_of_the_mathematics():
    script = (
        "import sys, course_lib.homework, course_lib.homework.cli, course_lib.homework.release,"
        " course_lib.homework.student_check\n"
        "print([m for m in sys.modules if m.startswith('course_lib.')"
        " and not m.startswith('course_lib.homework')]"
        " + [m for m in ('scipy', 'torch', 'matplotlib', 'nbformat') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_packages_checks_use_no_pickle():
    """Nothing that students can write to is ever unpickled."""
    for path in HOMEWORK.glob("*.py"):
        if path.name != "process.py":  # between processes of the grader's own
            assert "import pickle" not in path.read_text(encoding="utf-8")
