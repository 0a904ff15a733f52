"""The reader of what students hand in: a notebook or a refusal in words, whatever the bytes."""

import json
import os
import sys
import time

import hostile
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

if sys.platform != "linux":
    pytest.skip("grading runs on Linux only", allow_module_level=True)

from course_lib.homework import grade, release, submissions
from course_lib.homework import notebook as nb
from course_lib.homework.assignment import Assignment, Task
from course_lib.homework.notebook import HomeworkError
from course_lib.homework.sandbox import Limits
from course_lib.homework.submissions import File, Submission

pytestmark = pytest.mark.slow
fuzz = settings(max_examples=400, deadline=None, derandomize=True)

SOURCE = hostile.source()
TASK = Task("small", SOURCE, release.release_notebook(SOURCE), nb.questions(SOURCE))
SMALL = Assignment("small", {"small": TASK, "other": TASK}, Limits())
ANSWERED = json.loads(nb.notebook_text(hostile.answered()))
ANSWER_CELLS = 4


def read(raw: bytes) -> str:
    """Read the bytes as the grader does, up to the answers; the sentence when they are refused."""
    try:
        notebook = submissions.read_notebook(raw, "hw.ipynb")
    except HomeworkError as error:
        sentence = str(error)
        assert sentence.startswith("hw.ipynb ")
        assert sentence.endswith((".", "?"))
        return sentence
    assert grade._belongs_to(notebook, "hw", SMALL) in (None, "small", "other")
    found = grade.find_answers(notebook, TASK.pristine)
    assert len(found) == ANSWER_CELLS
    assert all(isinstance(answer.source, str) for answer in found.values())
    json.dumps([answer.source for answer in found.values()]).encode("ascii")
    return ""


@given(st.binary(max_size=300) | st.text(max_size=300).map(lambda t: t.encode("utf-8")))
@fuzz
def test_any_bytes_are_a_notebook_or_refused_with_a_sentence(raw):
    read(raw)


# Numbers that are none in strict JSON, numbers too large for a float, halves of surrogate pairs.
words = st.text(max_size=4) | st.sampled_from(["\ud800", "\0", "'''", "def double(x):\n", "%%x\n"])
keys = st.sampled_from(
    "cells worksheets metadata source input nbgrader id grade_id cell_type course code markdown "
    "assignment notebook nbformat nbformat_minor q1-answer small".split()
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | words | keys | st.just(10**400)
values = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | words, inner, max_size=5),
    max_leaves=20,
)


@given(values, values, values)
@fuzz
def test_any_json_is_a_notebook_or_refused(cells, metadata, rest):
    contents = ({"cells": [cells, rest], "metadata": metadata}, {"worksheets": rest}, rest)
    for content in (*contents, {"worksheets": [{"cells": [cells]}, rest], "metadata": metadata}):
        read(json.dumps(content).encode())


def places(content) -> list[tuple]:
    """Each list or dict below, with each of its keys."""
    found, waiting = [], [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            inside = list(value if isinstance(value, dict) else range(len(value)))
            found += [(value, key) for key in inside]
            waiting += [value[key] for key in inside]
    return found


@given(st.data())
@fuzz
def test_a_damaged_notebook_is_a_notebook_or_refused(data):
    content = json.loads(json.dumps(ANSWERED))
    for _ in range(data.draw(st.integers(1, 5), label="how many damages")):
        if not (known := places(content)):
            break
        holder, key = known[data.draw(st.integers(0, len(known) - 1), label="place")]
        kind = data.draw(st.sampled_from(["remove", "replace", "repeat", "move"]), label="kind")
        if kind == "remove":
            del holder[key]
        elif kind == "replace" or isinstance(holder, dict):
            holder[key] = data.draw(values, label="value")
        elif kind == "repeat":  # a cell or a line twice: ids too
            holder.insert(key, holder[key])
        else:
            holder.append(holder.pop(key))
    read(json.dumps(content).encode())


@given(st.data())
@fuzz
def test_text_cut_out_of_a_notebook_or_put_into_it_is_refused_or_read(data):
    text = json.dumps(ANSWERED)
    first, last = sorted(data.draw(st.integers(0, len(text)), label="cut") for _ in range(2))
    more = data.draw(words | st.sampled_from(['"cells": 1,', "NaN", "-Infinity", "1e999", "[{"]))
    for changed in (text[:first], text[:first] + text[last:], text[:first] + more + text[first:]):
        read(changed.encode("utf-8", "surrogatepass"))


def changed_by(change) -> bytes:
    content = json.loads(json.dumps(ANSWERED))
    change(content)
    return json.dumps(content).encode()


@pytest.mark.parametrize("minor", ["4", 4.5, None, -1, 10**400, [4], True, float("nan")], ids=str)
def test_the_stated_version_does_not_matter(minor):
    for key in ("nbformat", "nbformat_minor"):
        assert read(changed_by(lambda content, key=key: content.update({key: minor}))) == ""


@pytest.mark.parametrize("depth", [30, 300, 900, 100_000])
@pytest.mark.parametrize(
    "place", ["metadata", "course", "grade_id", "id", "source", "cells", "text"]
)
def test_depth_is_bounded_wherever_it_is(place, depth):
    deep = "[" * depth + "]" * depth
    content = json.loads(json.dumps(ANSWERED))
    cell = next(cell for cell in content["cells"] if cell["id"] == "q1-answer")
    course, marks = content["metadata"].setdefault("course", {}), cell["metadata"]["nbgrader"]
    holder, key = {
        "metadata": (content, "metadata"),
        "course": (course, "notebook"),
        "grade_id": (marks, "grade_id"),
        "id": (cell, "id"),
        "source": (cell, "source"),
        "cells": (content, "cells"),
        "text": (cell, "source"),
    }[place]
    holder[key] = f"x = {deep}" if place == "text" else "DEEP"
    words = read(json.dumps(content).replace('"DEEP"', deep).encode())
    assert bool(words) == (place != "text" and depth == 100_000)


def test_the_last_of_two_equal_keys_counts():
    text = json.dumps(ANSWERED)
    assert "has no cells" in read((text[:-1] + ', "cells": 1}').encode())
    assert read(('{"cells": 1, ' + text[1:]).encode()) == ""


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        ("a" * 400 + " = 1\n", 1000),
        ("x = " + "-" * 8000 + "1", 150),
        ("def f" + " " * 100_000 + "\n", 15),
        ("f(" * 3000, 300),
        ("x = '''\n" * 1000, 40),
        ("%" + "\n%" * 10_000, 20),
    ],
    ids=["names", "minus", "blanks", "open", "quotes", "magics"],
)
def test_cells_full_of_code_are_searched_in_time(cell, count):
    """Nothing is found by its name, so every cell is read for each answer."""
    code = [{"cell_type": "code", "source": f"{cell}\n# double {n}"} for n in range(count)]
    begun = time.process_time()
    assert read(json.dumps({"cells": code}).encode()) == ""
    assert time.process_time() - begun < 20


def test_what_is_too_much_is_refused():
    code = [{"cell_type": "code", "source": f"{'x' * 400_000}{n}"} for n in range(6)]
    assert "more than 2 million letters" in read(json.dumps({"cells": code}).encode())
    assert read(json.dumps({"cells": code[:4]}).encode()) == ""


@given(st.lists(st.sampled_from("one two link fifo folder empty other broken".split()), max_size=6))
@settings(fuzz, max_examples=60)
@seed(0)
def test_of_any_files_one_is_chosen_or_each_is_remarked_on(tmp_path_factory, kinds):
    folder = tmp_path_factory.mktemp("files")
    files = []
    for number, kind in enumerate(kinds):
        path = folder / f"{number}.ipynb"
        if kind in ("one", "two"):
            answer = f"def double(x):\n    return {number} * x"
            path = hostile.save(hostile.answered(q1=answer), folder, path.name)
        elif kind == "link":
            path.symlink_to(__file__)
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        else:
            contents = {"empty": "", "other": '{"cells": []}', "broken": '{"cells": ['}
            path.write_text(contents[kind], encoding="ascii")
        files.append(File(str(path), float(-number if number % 2 else number)))
    assignment = Assignment("small", {"small": TASK}, Limits())
    chosen, remarks, times = grade._choose(Submission("ada", "small", files), assignment)
    good = [file for file, kind in zip(files, kinds, strict=True) if kind in ("one", "two")]
    assert list(chosen) == ["small"] * bool(good)
    assert times == sorted(file.time for file in good)[-1:]
    assert len(remarks) == max(1, len(files)) - bool(good)
    assert all(remark.endswith((".", "?")) for remark in remarks)
