"""A class of students who hand in what no teacher asked for, and what each must get.

The homework is small: q1 asks for ``double(x)`` (3 points), q2 for ``quadruple(x)`` (2 points),
q3 for the solution of a linear system (3 points), q4 for a proof (4 points, marked by hand). Most
submissions differ in the answer to q1 alone, and then q2 and q3 must keep their marks.
"""

# ruff: noqa: E501

import copy
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import nbformat

from course_lib.homework import notebook as nb
from course_lib.homework import release

NAME, SECRET = "small", b"a secret of the tests, 32 bytes."
SETTINGS = """
[limits]
seconds = 4
memory_mb = 200
processes = 8
output_mb = 0.2
files_mb = 4
"""
SET_UP = """import numpy as np

from course_lib.homework import call, check, expect_close, hidden_rng"""
ANSWERS = {
    "q1": "def double(x):\n    return x + x",
    "q2": "def quadruple(x):\n    return double(double(x))",
    "q3": "def solve(A, y):\n    return np.linalg.solve(A, y)",
}
CHECKS = {
    "q1": (
        '@check\ndef q1_visible():\n    expect_close("double(3)", call("double", 3.0), 6.0)',
        '@check\ndef q1_hidden():\n    rng = hidden_rng("q1")\n    x = rng.normal(size=4)\n'
        '    expect_close("double(x)", call("double", x), 2 * x, traps={"a square": x**2})\n'
        "    n = float(rng.normal())\n"
        '    expect_close(f"double({n})", call("double", n), 2 * n)',
        (1, 2),
    ),
    "q2": (
        '@check\ndef q2_visible():\n    expect_close("quadruple(3)", call("quadruple", 3.0), 12.0)',
        '@check\ndef q2_hidden():\n    x = hidden_rng("q2").normal(size=4)\n'
        '    expect_close("quadruple(x)", call("quadruple", x), 4 * x)',
        (1, 1),
    ),
    "q3": (
        "@check\ndef q3_visible():\n    A, y = np.array([[2.0, 0.0], [0.0, 4.0]]), np.ones(2)\n"
        '    expect_close("solve(A, y)", call("solve", A, y), [0.5, 0.25])',
        '@check\ndef q3_hidden():\n    rng = hidden_rng("q3")\n'
        "    A, x = rng.normal(size=(5, 5)) + 5 * np.eye(5), rng.normal(size=5)\n"
        '    expect_close("solve(A, y)", call("solve", A, A @ x), x)',
        (1, 2),
    ),
}


def _meta(name: str, **changes) -> dict:
    entry = {"grade": False, "locked": False, "solution": False, "task": False, **changes}
    return {
        "nbgrader": {"grade_id": name, "schema_version": 3, **entry},
        "course": {"question": name.split("-")[0]},
    }


def source(secret: bytes = SECRET):
    """The homework's source, with solutions and seeds."""
    new = nbformat.v4
    first = new.new_code_cell(SET_UP, id="setup", metadata={"course": {"role": "setup"}})
    cells = [first]
    for number, (name, answer) in enumerate(ANSWERS.items(), 1):
        visible, hidden, points = CHECKS[name]
        head = new.new_markdown_cell(f"## Question {number}", id=f"{name}-statement")
        head.metadata = _meta(f"{name}-statement", locked=True)
        head.metadata["course"].update(title=f"Question {number}", difficulty="basic", see="p. 1")
        signature, body = answer.split("\n", 1)
        text = f"{signature}\n    ### BEGIN SOLUTION\n{body}\n    ### END SOLUTION"
        hidden = f"### BEGIN HIDDEN TESTS\n{hidden}\n\n\n### END HIDDEN TESTS"
        cells += [
            head,
            new.new_code_cell(text, id=f"{name}-answer", metadata=_meta(f"{name}-answer")),
            new.new_code_cell(visible, id=f"{name}-visible"),
            new.new_code_cell(hidden, id=f"{name}-hidden"),
        ]
        cells[-3].metadata["nbgrader"]["solution"] = True
        for cell, worth in zip(cells[-2:], points, strict=True):
            cell.metadata = _meta(cell.id, grade=True, locked=True, points=worth)
    proof = "### BEGIN SOLUTION\nIt is linear.\n\n- [4] says why\n### END SOLUTION"
    cells.append(new.new_markdown_cell("## Question 4", id="q4-statement"))
    cells[-1].metadata = _meta("q4-statement", locked=True)
    cells[-1].metadata["course"].update(title="Why?", difficulty="standard", see="page 2")
    cells.append(new.new_markdown_cell(proof, id="q4-proof"))
    cells[-1].metadata = _meta("q4-proof", grade=True, solution=True, points=4)
    return release.with_seeds(new.new_notebook(cells=cells), secret)


def write_bundle(folder: Path, settings: str = SETTINGS) -> Path:
    """A bundle of the homework, without the kernels that prove a release."""
    notebook = source()
    bundle = release.Bundle(NAME, {NAME: release.release_notebook(notebook)}, {NAME: notebook})
    bundle.manifest = release._manifest(bundle)
    release.write(bundle, folder, SECRET)
    (folder / "source" / NAME / "assignment.toml").write_text(settings, encoding="utf-8")
    return folder


def answered(**answers: str):
    """What a student hands in: the right answers, but for those given."""
    notebook = release.release_notebook(source())
    notebook.metadata["course"] = {"assignment": NAME, "notebook": NAME}
    for cell in notebook.cells:
        name = nb.grade_id(cell)
        if name.endswith("-answer"):
            cell.source = answers.get(name[:2], ANSWERS[name[:2]])
        if name == "q4-proof":
            cell.source = answers.get("q4", "YOUR ANSWER HERE")
    return notebook


@dataclass(frozen=True)
class Hostile:
    """One submission: what it is, in words; how it is made; what q1 must get.

    Of statuses with a bar between them either may come: Pythons differ. ``rest`` are the points of q2 and q3 together. ``walls`` marks what limits alone do not stop.
    """

    name: str
    what: str
    make: Callable[[Path], None]
    status: str
    points: float
    rest: float = 5.0
    walls: bool = False


def save(notebook, folder: Path, name: str = f"{NAME}.ipynb") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # In ASCII, as half a surrogate pair has no other form.
    (folder / name).write_text(json.dumps(notebook), encoding="ascii")
    return folder / name


def _code(name, what, text, status, points, **more) -> Hostile:
    return Hostile(
        name, what, lambda folder: save(answered(q1=text), folder), status, points, **more
    )


def _wrong(start: str) -> str:
    """A wrong answer after something that is to make it right."""
    return f"{start}\ndef double(x):\n    return 7.0 * x"


LOOP = "    while True:\n        pass"
RIGHT = ANSWERS["q1"]

# q2 uses the student's own double(): where q1 is wrong or ends the process, q2 cannot be right,
# and the points of q3 are left.
Q3 = 3.0
CODE = [
    _code("loop-top", "endless loop in the cell", "while True:\n    pass", "timeout", 0, rest=Q3),
    _code("loop-call", "endless loop in the function", f"def double(x):\n{LOOP}", "timeout", 0,
          rest=Q3),
    _code("loop-hidden", "endless loop for other numbers only",
          f"def double(x):\n    if isinstance(x, float) and x in (3.0, 6.0):\n        return 2 * x\n"
          f"{LOOP}", "timeout", 1, rest=Q3),
    _code("sleep", "sleeps for an hour", "import time\ntime.sleep(3600)", "timeout", 0, rest=Q3),
    _code("stubborn", "catches every exception and signal, and goes on",
          "import signal\nfor n in range(1, 32):\n    try:\n        signal.signal(n, "
          "signal.SIG_IGN)\n    except Exception:\n        pass\nwhile True:\n    try:\n"
          "        while True:\n            pass\n    except BaseException:\n        pass",
          "timeout", 0, rest=Q3),
    _code("os-exit", "os._exit(0) in the cell", "import os\nos._exit(0)", "crashed", 0, rest=Q3),
    _code("os-exit-call", "os._exit(0) in the function",
          "import os\ndef double(x):\n    os._exit(0)", "crashed", 0, rest=Q3),
    _code("sys-exit", "sys.exit() in the function", "import sys\ndef double(x):\n    sys.exit(0)",
          "graded", 0, rest=Q3),
    _code("kill-self", "kills its own process",
          "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "crashed", 0, rest=Q3),
    _code("kill-all", "kills every process that it may",
          "import os, signal\nfor target in (os.getppid(), -1):\n    try:\n        "
          "os.kill(target, signal.SIGKILL)\n    except OSError:\n        pass\n"
          "def double(x):\n    return 7.0 * x",
          "graded|crashed", 0, rest=Q3, walls=True),
    _code("segfault", "reads address 0", "import ctypes\nctypes.string_at(0)", "crashed", 0,
          rest=Q3),
    _code("recursion", "recursion without end", "def double(x):\n    return double(x)", "graded", 0,
          rest=Q3),
    _code("deep-recursion", "recursion without end, the limit lifted",
          "import sys\nsys.setrecursionlimit(10**8)\ndef double(x):\n    return [double(x)]",
          "timeout|crashed", 0, rest=Q3),
    _code("flood", "prints without end", "while True:\n    print('x' * 1000)", "crashed", 0,
          rest=Q3),
    _code("flood-call", "writes to standard error without end",
          "import os\ndef double(x):\n    while True:\n        os.write(2, b'x' * 1000)",
          "crashed", 0, rest=Q3),
    _code("memory-list", "doubles a list for ever",
          "x = [0]\nwhile True:\n    x += x", "crashed", 0, rest=Q3),
    _code("memory-array", "asks for 80 GB at once",
          "def double(x):\n    return np.ones(10**10)", "crashed", 0, rest=Q3),
    _code("memory-shared", "fills shared memory, which no limit of a process counts",
          "import mmap\nm = mmap.mmap(-1, 10**9)\nfor i in range(0, 10**9, 4096):\n    m[i] = 1",
          "crashed", 0, rest=Q3),
    _code("memory-forks", "spreads its memory over processes",
          "import os, time\nfor _ in range(3):\n    if os.fork() == 0:\n"
          "        x = bytearray(100 << 20)\n        x[::4096] = b'1' * len(x[::4096])\n"
          "        time.sleep(60)\ntime.sleep(60)", "crashed", 0, rest=Q3),
    _code("fork-bomb", "forks without end",
          "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError:\n"
          "        pass", "timeout", 0, rest=Q3),
    _code("fork-twice", "answers from two processes",
          "import os\ndef double(x):\n    os.fork()\n    return 7.0 * x", "graded|crashed", 0, rest=Q3),
    _code("orphan", "leaves a process behind that goes on, detached",
          "import os\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n"
          "        while True:\n            pass\n    os._exit(0)\n" + RIGHT, "graded", 3),
    _code("threads", "leaves threads behind that go on",
          "import threading\ndef spin():\n    while True:\n        pass\n"
          "threading.Thread(target=spin).start()\n" + RIGHT, "graded", 3),
    _code("disk", "fills the scratch folder",
          "try:\n    for i in range(100):\n        with open(f'full{i}', 'wb') as f:\n"
          "            f.write(b'0' * (1 << 20))\nexcept OSError:\n    pass\n" + RIGHT,
          "graded", 3),
    _code("memory-segments", "fills shared memory that belongs to no process",
          "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.shmat.restype = ctypes.c_void_p\n"
          "for _ in range(100):\n    m = libc.shmget(0, 50 << 20, 0o1600)\n    if m < 0:\n"
          "        break\n    p = libc.shmat(m, None, 0)\n    ctypes.memset(p, 1, 50 << 20)\n"
          "    libc.shmdt(ctypes.c_void_p(p))\n" + _wrong("if m >= 0:\n    while True:\n        pass"),
          "graded", 0, rest=Q3),
    _code("memory-names", "fills files without a name",
          _wrong("import os\nheld = []\ntry:\n    for _ in range(240):\n"
                 "        held.append(os.memfd_create('x'))\n        os.write(held[-1], bytes(3 << 20))\n"
                 "    while True:\n        pass\nexcept OSError:\n    pass"),
          "graded", 0, rest=Q3),
    _code("messages", "leaves what the hidden check showed for its next run to print",
          "import os\nplaces = ['/tmp/seen', '/dev/shm/seen']\nfor p in places:\n"
          "    if os.path.exists(p):\n        print('SEEN', open(p).read())\n"
          "def double(x):\n    for p in places:\n        with open(p, 'a') as f:\n"
          "            f.write(str(x))\n    return 7.0 * x if np.ndim(x) else x + x",
          "partial", 1, rest=4, walls=True),
    _code("numpy", "patches NumPy so that everything is close",
          _wrong("np.linalg.norm = lambda *a, **k: 0.0\nnp.allclose = lambda *a, **k: True"),
          "graded", 0, rest=Q3),
    _code("contract", "patches the functions that compare",
          _wrong("from course_lib.homework import contract, diagnose\nimport course_lib.homework as h"
                 "\nfor m in (contract, diagnose, h):\n    for n in dir(m):\n"
                 "        if n.startswith('expect') or n in ('check', 'call', 'say'):\n"
                 "            setattr(m, n, lambda *a, **k: 6.0)"), "graded", 0, rest=Q3),
    _code("invoke", "patches the transport so that it always says 6",
          _wrong("import gc, types\nfrom course_lib.homework import contract\nfake = (lambda *a: "
                 "{'status': 'value', 'value': 6.0, 'changed': [], 'printed': ''})\n"
                 "import sys\ncontract.invoke = contract._transport = fake\n"
                 "for f in sys._current_frames().values():\n    while f:\n"
                 "        f.f_globals['invoke'] = fake\n        f = f.f_back"), "graded", 0,
          rest=Q3),
    _code("set-transport", "sets a transport of its own",
          _wrong("from course_lib.homework import contract\ncontract.set_transport(lambda *a: "
                 "{'status': 'value', 'value': 6.0})"), "graded", 0, rest=Q3),
    _code("names", "gives new meanings to check, call and expect_close",
          _wrong("check = call = expect_close = hidden_rng = lambda *a, **k: 6.0"), "graded", 0,
          rest=Q3),
    _code("builtins", "patches isinstance, abs and sum",
          _wrong("import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.abs = "
                 "lambda x: 0.0\nbuiltins.sum = lambda *a: 0.0"), "crashed", 0, rest=Q3),
    _code("json", "patches json so that every reply is 6",
          _wrong("import json\njson.dumps = lambda *a, **k: '{\"status\": \"value\", \"value\": 6}'"),
          "crashed", 0, rest=Q3),
    _code("audit", "forbids Python every further step by an audit hook",
          "import sys\ndef hook(*a):\n    raise SystemExit\n" + _wrong("sys.addaudithook(hook)"),
          "graded|crashed", 0, rest=Q3),
    _code("tracer", "changes what its function returns while it is watched",
          "import sys\ndef trace(frame, event, value):\n    raise MemoryError\n"
          + _wrong("sys.settrace(trace)"), "graded|crashed", 0, rest=Q3),
    _code("modules", "puts a false NumPy among the modules",
          _wrong("import sys, types\nsys.modules['numpy'] = types.ModuleType('numpy')"), "graded", 0,
          rest=Q3),
    _code("descriptors", "writes rubbish to every open descriptor",
          "import os\nfor n in range(3, 64):\n    try:\n        os.write(n, b'\\0' * 7 + b'\\2{}')\n"
          "    except OSError:\n        pass\n" + RIGHT, "crashed", 0, rest=Q3),
    _code("close", "closes every descriptor", "import os\nos.closerange(0, 64)\n" + RIGHT,
          "crashed", 0, rest=Q3),
    _code("forged-shape", "sends an array that says to have 10^12 entries",
          "from course_lib.homework import contract\ncontract.pack = lambda *a: {'$': 'array', "
          "'dtype': '<f8', 'shape': [10**12], 'data': ''}\n" + RIGHT, "crashed", 0, rest=Q3),
    _code("forged-pickle", "sends an array of objects",
          "from course_lib.homework import contract\ncontract.pack = lambda *a: {'$': 'array', "
          "'dtype': '|O8', 'shape': [1], 'data': 'gASVAAAAAAA='}\n" + RIGHT, "crashed", 0,
          rest=Q3),
    _code("forged-depth", "sends lists in lists, 10,000 deep",
          "from course_lib.homework import contract\nimport json\nreal = json.dumps\n"
          "json.dumps = lambda m: real(m) if 'failed' in str(m) else '{\"number\": 2, \"reply\": ' "
          "+ '[' * 10**4 + ']' * 10**4 + '}'\n" + RIGHT, "crashed", 0, rest=Q3),
    _code("big-array", "returns 80 MB", "def double(x):\n    return np.zeros(10**7)", "graded", 0,
          rest=Q3),
    _code("big-number", "returns a number of 5,000 digits", "def double(x):\n    return 10**5000",
          "graded", 0, rest=Q3),
    _code("nan", "returns NaN", "def double(x):\n    return np.nan * x", "graded", 0, rest=Q3),
    _code("text", "returns the right number as a text",
          "def double(x):\n    return str(2 * x)", "graded", 0, rest=Q3),
    _code("objects", "returns an array of Python objects",
          "def double(x):\n    return np.array(2 * x, dtype=object)", "graded", 0, rest=Q3),
    _code("input", "asks a question at the keyboard",
          "def double(x):\n    return float(input('twice x? '))", "graded", 0, rest=Q3),
    _code("equal", "returns an object that is equal to everything",
          "class Yes:\n    def __eq__(self, other):\n        return True\n"
          "    def __float__(self):\n        return 6.0\n    __hash__ = None\n"
          "def double(x):\n    return Yes()", "graded", 0, rest=Q3),
    _code("float-subclass", "returns a float that lies about its value",
          "class F(float):\n    def __eq__(self, other):\n        return True\n"
          "    def __sub__(self, other):\n        return 0.0\n    __rsub__ = __sub__\n"
          "    def __float__(self):\n        return 6.0\n    __hash__ = float.__hash__\n"
          "def double(x):\n    return F(7.0)", "graded", 0, rest=Q3),
    _code("array-subclass", "returns an array that lies about its entries",
          "class A(np.ndarray):\n    def __array_ufunc__(self, *a, **k):\n        return 0.0\n"
          "def double(x):\n    return np.full(np.shape(x), 7.0).view(A)", "graded", 0, rest=Q3),
    _code("evil-error", "raises an error that fails when it is looked at",
          "class E(Exception):\n    def __str__(self):\n        raise SystemExit\n"
          "def double(x):\n    raise E", "graded", 0, rest=Q3),
    _code("base-exception", "raises what no handler catches",
          "class E(BaseException):\n    pass\ndef double(x):\n    raise E('6.0')", "graded", 0,
          rest=Q3),
    _code("wrong-answer", "raises the checks' own exception",
          "from course_lib.homework import WrongAnswer\ndef double(x):\n"
          "    raise WrongAnswer('all is right')", "graded", 0, rest=Q3),
    _code("prints", "prints what a passed check prints, and is wrong",
          "def double(x):\n    print('right: double(3)')\n    return 7.0", "graded", 0, rest=Q3),
    _code("visible-number", "returns the number that the visible check shows",
          "def double(x):\n    return 6.0", "partial", 1, rest=Q3),
    _code("frames", "looks for the right value on the stack and in memory",
          "import gc, sys\ndef double(x):\n    f = sys._getframe()\n    while f:\n"
          "        for v in list(f.f_locals.values()):\n"
          "            if isinstance(v, float) and v != x:\n                return v\n"
          "        f = f.f_back\n    return 7.0 * x", "graded", 0, rest=Q3),
    _code("read-solutions", "searches the machine for the solution and runs it",
          "import glob, os\nfound = False\nfor top, folders, files in os.walk('/'):\n"
          "    folders[:] = [d for d in folders if d not in ('proc', 'sys', 'usr', 'lib', "
          "'versions', 'site-packages')]\n"
          "    for f in files:\n        found = found or f.endswith(('.ipynb', 'secret', '.toml'))\n"
          "def double(x):\n    return 2 * x if found else 7.0 * x", "graded", 0, rest=Q3,
          walls=True),
    _code("read-processes", "looks for other processes and their environment",
          "import glob, os\nfound = False\nfor p in glob.glob('/proc/[0-9]*/cmdline'):\n"
          "    t = open(p, 'rb').read()\n    found = found or (b'pytest' in t or b' grade' in t)\n"
          "found = found or len(os.environ) > 20 or 'OLDPWD' in os.environ\n"
          "def double(x):\n    return 2 * x if found else 7.0 * x", "graded", 0, rest=Q3,
          walls=True),
    _code("write-outside", "tries to write into Python, the library and the home folder",
          "import course_lib, os, sys\ndone = False\nfor d in (os.path.dirname(course_lib.__file__),"
          " sys.prefix, '/', '/usr', '/root', '/dev', '/var/tmp', '/home'):\n    try:\n"
          "        open(d + '/hostile.txt', 'w').close()\n        done = True\n"
          "    except OSError:\n        pass\n"
          "def double(x):\n    return 2 * x if done else 7.0 * x", "graded", 0, rest=Q3, walls=True),
    _code("network", "tries to reach the network",
          "import socket\ndone = False\nfor host in ('10.0.0.1', '1.1.1.1'):\n"
          "    try:\n        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
          "        s.connect((host, 53))\n        s.send(b'x')\n        done = True\n"
          "    except OSError:\n        pass\n"
          "def double(x):\n    return 2 * x if done else 7.0 * x", "graded", 0, rest=Q3, walls=True),
    _code("mount", "makes namespaces and mounts of its own",
          "import ctypes\nlibc = ctypes.CDLL(None)\ndone = libc.unshare(0x10020000) == 0\n"
          "def double(x):\n    return 2 * x if done else 7.0 * x", "graded", 0, rest=Q3, walls=True),
    _code("syntax", "no Python at all", "def double(x:\n  return", "graded", 0, rest=Q3),
    _code("null-bytes", "NUL and half a surrogate in the cell", "x = '\0\ud800'\n" + RIGHT,
          "graded", 0, rest=Q3),
    _code("nested-code", "100,000 minus signs", "x = " + "-" * 100_000 + "1\n" + RIGHT, "graded|crashed", 0,
          rest=Q3),
    _code("overwrites", "overwrites its argument", "def double(x):\n    x *= 2\n    return x",
          "partial", 1, rest=4),
]  # fmt: skip

# Right answers in unusual form: full marks.
UNUSUAL = [
    _code("magic", "right, with %matplotlib and !pip lines",
          "%matplotlib inline\n!pip install nothing\n" + RIGHT, "graded", 3),
    _code("magic-call", "right, with magics by get_ipython()",
          "get_ipython().run_line_magic('matplotlib', 'inline')\n%%time\n" + RIGHT, "graded", 3),
    _code("late-error", "right, with an error after the answer",
          RIGHT + "\nassert double(3) == 7, 'my own test'", "graded", 3),
    _code("late-exit", "right, with exit() after the answer", RIGHT + "\nexit()", "graded", 3),
    _code("future", "right, with annotations from the future",
          "from __future__ import annotations\ndef double(x: Array) -> Array:\n    return x + x",
          "graded", 3),
    _code("closed-output", "right, with its output closed",
          "import sys\nsys.stdout.close()\nsys.stderr = None\n" + RIGHT, "graded", 3),
    _code("warnings", "right, with warnings on standard error",
          "import sys, warnings\ndef double(x):\n    warnings.warn('careful')\n"
          "    print('careful', file=sys.stderr)\n    return x + x", "graded", 3),
    _code("lambda", "right, as a lambda", "double = lambda x: x + x", "graded", 3),
    _code("callable", "right, as an object that can be called",
          "class Double:\n    def __call__(self, x):\n        return x + x\ndouble = Double()",
          "graded", 3),
    _code("main", "right, with a main program and display",
          RIGHT + "\nif __name__ == '__main__':\n    display(double(2))", "graded", 3),
    _code("slow", "right, and slow within the limit",
          "import time\ndef double(x):\n    time.sleep(0.2)\n    return x + x", "graded", 3),
    _code("child", "right, by a process of its own",
          "import subprocess, sys\ndef double(x):\n    subprocess.run(['true'], check=True)\n"
          "    return x + x", "graded", 3),
    _code("subclass-right", "right, as a subclass of float",
          "class F(float):\n    pass\ndef double(x):\n    return F(2 * x) if isinstance(x, float) "
          "else x + x", "graded", 3),
    _code("rounding", "right up to rounding",
          "def double(x):\n    return np.log(np.exp(np.asarray(x) / 4)) * 8", "graded", 3),
]  # fmt: skip


# The notebook itself ------------------------------------------------------------------------------


def _changed(change: Callable) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        notebook = answered()
        save(change(notebook) or notebook, folder)

    return make


def _raw(content: bytes, name: str = f"{NAME}.ipynb") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_bytes(content)

    return make


def _text(change: Callable[[str], str], encoding: str = "utf-8") -> Callable[[Path], None]:
    return lambda folder: _raw(change(nb.notebook_text(answered())).encode(encoding))(folder)


def _duplicated(notebook):
    place = next(i for i, c in enumerate(notebook.cells) if nb.grade_id(c) == "q1-answer")
    old = copy.deepcopy(notebook.cells[place])
    old.source, old.id = "def double(x):\n    return x", "old"
    notebook.cells.insert(place, old)


def _reordered(notebook):
    notebook.cells.reverse()


def _extra(notebook):
    cell = nbformat.v4.new_code_cell("raise SystemExit\n" + "x = 1\n" * 100)
    notebook.cells = [cell, *notebook.cells, copy.deepcopy(cell)]


def _lost(notebook):
    notebook.metadata.clear()
    for number, cell in enumerate(notebook.cells):
        cell.metadata, cell.id = nbformat.NotebookNode(), f"new-{number}"


def _tampered(notebook):
    for cell in notebook.cells:
        if nb.role(cell) == "check":
            cell.source = "print('passed')"
            cell.metadata["nbgrader"]["points"] = 100
        if nb.grade_id(cell) == "q1-answer":
            cell.source = "def double(x):\n    return 7.0 * x"
    notebook.metadata["course"]["role"] = "setup"


def _version_3(folder: Path) -> None:
    cells = [
        {"cell_type": "code", "input": c.source.split("\n"), "language": "python", "outputs": [],
         "metadata": c.metadata} for c in answered().cells if c.cell_type == "code"
    ]  # fmt: skip
    cells = [{**cell, "input": [line + "\n" for line in cell["input"]]} for cell in cells]
    sheet = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}}
    _raw(json.dumps({**sheet, "worksheets": [{"cells": cells}]}).encode())(folder)


def _no_ids(text: str) -> str:
    content = json.loads(text)
    content["nbformat_minor"] = 2
    for cell in content["cells"]:
        cell.pop("id")
    return json.dumps(content)


def _version_4_0(text: str) -> str:
    content = json.loads(_no_ids(text))
    content["nbformat_minor"], content["metadata"] = 0, {}
    for cell in content["cells"]:
        cell["source"] = cell["source"] and "".join(cell["source"]).splitlines(keepends=True)
        cell["prompt_number"] = 1
    return json.dumps(content)


def _deep(text: str) -> str:
    content = json.loads(text)
    content["metadata"]["course"]["notebook"] = content["cells"][0]["id"] = "DEEP"
    return json.dumps(content).replace('"DEEP"', "[" * 900 + "]" * 900)


def _zipped(folder: Path) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NAME}.ipynb", bytes(10**7))
    _raw(stream.getvalue())(folder)


def _kernel(notebook):
    notebook.metadata["kernelspec"] = {"name": "julia-1.9", "display_name": "Julia"}


def _files(*made: tuple[str, dict, float]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name, answers, time in made:
            path = folder / name
            save(answered(**answers), path.parent, path.name)
            os.utime(path, (time, time))

    return make


def _newest_broken(folder: Path) -> None:
    _files(("first.ipynb", {}, 1e9))(folder)
    (folder / "second.ipynb").write_text("{", encoding="utf-8")


def _link(folder: Path) -> None:
    folder.mkdir()
    target = folder.parent.parent / "bundle" / "source" / NAME / f"{NAME}.ipynb"
    (folder / f"{NAME}.ipynb").symlink_to(target)


def _linked_folder(folder: Path) -> None:
    folder.symlink_to(folder.parent.parent / "bundle" / "source" / NAME)


def _fifo(folder: Path) -> None:
    folder.mkdir()
    os.mkfifo(folder / f"{NAME}.ipynb")


def _folder(folder: Path) -> None:
    (folder / f"{NAME}.ipynb").mkdir(parents=True)


def _other(folder: Path) -> None:
    cell = nbformat.v4.new_code_cell("def other():\n    return 1")
    save(nbformat.v4.new_notebook(cells=[cell]), folder)


def _enormous(folder: Path) -> None:
    folder.mkdir()
    with (folder / f"{NAME}.ipynb").open("wb") as stream:
        stream.truncate(30_000_000)


def _rejected(name: str, what: str, make: Callable[[Path], None]) -> Hostile:
    return Hostile(name, what, make, "rejected", 0, rest=0)


WRONG_Q1 = {"q1": "def double(x):\n    return 7.0 * x"}
FILES = [
    Hostile("duplicated", "an old answer in a cell with the same name", _changed(_duplicated),
            "graded", 3),
    Hostile("reordered", "all cells in reverse order", _changed(_reordered), "graded", 3),
    Hostile("extra", "more cells, with errors in them", _changed(_extra), "graded", 3),
    Hostile("lost-metadata", "metadata and ids lost", _changed(_lost), "graded", 3),
    Hostile("tampered", "check cells and points rewritten", _changed(_tampered), "graded", 0,
            rest=Q3),
    Hostile("bom", "a byte order mark", _text(lambda t: t, "utf-8-sig"), "graded", 3),
    Hostile("crlf", "Windows line ends", _text(lambda t: t.replace("\n", "\r\n").replace(
        "\\n", "\\r\\n")), "graded", 3),
    Hostile("kernel", "another kernel's name", _changed(_kernel), "graded", 3),
    Hostile("version-3", "a notebook of version 3", _version_3, "graded", 3),
    Hostile("version-4.2", "a notebook without cell ids", _text(_no_ids), "graded", 3),
    Hostile("version-4.0", "a notebook of version 4.0", _text(_version_4_0), "graded", 3),
    Hostile("deep", "metadata and ids that are lists, 900 deep", _text(_deep), "graded", 3),
    Hostile("nbgrader", "in nbgrader's folders", _files((f"{NAME}/{NAME}.ipynb", {}, 1e9)),
            "graded", 3),
    Hostile("two", "two submissions, the newest is right",
            _files(("a.ipynb", {}, 2e9), ("b.ipynb", WRONG_Q1, 1e9)), "graded", 3),
    Hostile("two-worse", "two submissions, the newest is wrong",
            _files(("a.ipynb", {}, 1e9), ("b.ipynb", WRONG_Q1, 2e9)), "graded", 0, rest=Q3),
    Hostile("newest-broken", "the newest cannot be read, the one before counts", _newest_broken,
            "graded", 3),
    Hostile("=cmd|' C calc'!A0", "a name that is a formula", _changed(lambda n: None), "graded",
            3),
    Hostile("..%2F..%2Fout", "a name that is a path", _changed(lambda n: None), "graded", 3),
    Hostile("line\nbreak", "a name of two lines", _changed(lambda n: None), "graded", 3),
    Hostile("long" * 50, "a name of 200 letters", _changed(lambda n: None), "graded", 3),
    _rejected("not-json", "a text", _raw(b"my homework")),
    _rejected("truncated", "cut short", _text(lambda t: t[: len(t) // 2])),
    _rejected("empty", "an empty file", _raw(b"")),
    _rejected("enormous", "30 MB", _enormous),
    _rejected("binary", "no text", _raw(bytes(range(256)))),
    _rejected("utf-16", "another encoding", _text(lambda t: t, "utf-16")),
    _rejected("list", "JSON, but a list", _raw(b"[1, 2]")),
    _rejected("nested", "JSON, 100,000 deep", _raw(b"[" * 100_000)),
    _rejected("digits", "JSON, a number of 100,000 digits", _raw(b"1" * 100_000)),
    _rejected("no-cells", "a notebook whose cells are none",
              _raw(b'{"cells": {"a": 1}, "nbformat": 4}')),
    _rejected("many-cells", "10,000 cells", _raw(json.dumps({"cells": [{}] * 10_000}).encode())),
    _rejected("odd-cells", "cells that are no cells",
              _raw(b'{"cells": [1, null, [], {"source": 5}, {"metadata": 3, "source": [1]}]}')),
    _rejected("link", "a link to the source with solutions", _link),
    _rejected("linked-folder", "a folder that is a link to the source", _linked_folder),
    _rejected("fifo", "a pipe that nobody writes to", _fifo),
    _rejected("folder", "a folder with the name of a notebook", _folder),
    _rejected("archive", "an archive", _raw(b"PK\3\4" + bytes(100), "work.zip")),
    _rejected("archive-bomb", "an archive bomb with the name of a notebook", _zipped),
    _rejected("letters", "five million letters in its cells", _raw(json.dumps(
        {"cells": [{"cell_type": "code", "source": "x" * 500_000}] * 10}).encode())),
    _rejected("nothing", "an empty folder", lambda folder: folder.mkdir()),
    _rejected("other", "another notebook", _other),
]  # fmt: skip

CLASS = [*CODE, *UNUSUAL, *FILES]


def write_class(folder: Path, *, walls: bool) -> list[Hostile]:
    """Write all submissions that may run here; those that need walls only where there are some."""
    chosen = [entry for entry in CLASS if walls or not entry.walls]
    folder.mkdir()
    for entry in chosen:
        entry.make(folder / entry.name)
    return chosen
