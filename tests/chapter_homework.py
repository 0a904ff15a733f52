"""The tests that the homework of every chapter must pass; a chapter's file holds its answers.

Answers and checks run in two namespaces with JSON between them, as a grader would run them.
"""

import copy
import json
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

from course_lib.homework import cli, contract, release
from course_lib.homework import notebook as nb
from course_lib.homework.contract import WrongAnswer

ROOT = Path(__file__).parents[1]


def define(signature: str, body: str) -> str:
    """An answer cell with one function, indented as a student would write it."""
    lines = [f"    {line}" if line else "" for line in body.strip("\n").split("\n")]
    return f"def {signature}:\n" + "\n".join(lines)


class Chapter:
    """The source notebook of one chapter's homework."""

    def __init__(self, name: str):
        self.name = name
        self.folder = ROOT / "exercises" / name
        self.notebook = nbformat.read(self.folder / f"{name}.ipynb", as_version=4)
        self.questions = nb.questions(self.notebook)
        self.sources = {nb.grade_id(cell): cell.source for cell in self.notebook.cells}
        self.page = (ROOT / "book" / name / "exercises.md").read_text(encoding="utf-8")

    def changed(self, cell: str, *pairs: tuple[str, str]) -> str:
        """The source's own answer with some of its words replaced; each must be there."""
        source = self.sources[cell]
        for old, new in pairs:
            assert old in source, f"{cell} does not contain {old!r}"
            source = source.replace(old, new)
        return source

    def run(
        self, question: str, answers: dict[str, str], *, kind: str = "visible", seed: int = 0
    ) -> None:
        """Run the checks of one question on changed answers; the checks see `call` alone."""
        student: dict = {}
        for cell in self.notebook.cells:
            if nb.role(cell) == "setup" or (nb.role(cell) == "given" and "def " in cell.source):
                exec(cell.source, student)
            if nb.role(cell) == "answer":
                source = answers.get(nb.grade_id(cell), cell.source)
                exec(compile(source, f"<{nb.grade_id(cell)}>", "exec"), student)

        def over_json(name, arguments):
            sent = json.loads(json.dumps(arguments))
            return json.loads(json.dumps(contract.invoke(student, name, sent)))

        checks: dict = {}
        exec(self.sources["setup"], checks)
        contract.set_seed(question, seed)
        before = contract.set_transport(over_json)
        try:
            exec(self.sources[f"{question}-{kind}"], checks)
        finally:
            contract.set_transport(before)
            contract._seeds.clear()

    def release_and_check(self, folder: Path, capsys, wrong: dict, words: tuple) -> None:
        """The release is accepted; `course check` tells wrong answers among right ones apart."""
        secret = folder / "secret"
        secret.write_bytes(b"a secret of the tests, 32 bytes.")
        out = folder / "out"
        arguments = ["release", str(self.folder), "--out", str(out), "--secret", str(secret)]
        assert cli.main(arguments) == 0
        assert "The source scores full marks, the release 0." in capsys.readouterr().out

        path = out / "release" / self.name / f"{self.name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            name = nb.grade_id(cell)
            if nb.role(cell) in ("answer", "manual"):
                cell.source = wrong.get(name, self.sources[name])
        nbformat.write(notebook, path)
        assert cli.main(["check", str(path)]) == 1
        said = " ".join(capsys.readouterr().out.split())
        for expected in words:
            assert expected in said
        assert said.count("passed ") == len(self.questions) - len(words)


class Grader:
    """`course grade` for single questions of a chapter, with one sandbox for all of them."""

    def __init__(self, chapter: Chapter):
        from course_lib.homework import assignment, sandbox

        source = release.with_seeds(chapter.notebook, b"a secret of the tests, 32 bytes.")
        self.task = assignment.Task(
            chapter.name, source, release.release_notebook(source), nb.questions(source)
        )
        self.worker = sandbox.Worker(sandbox.probe()[0], sandbox.Limits(), self.task.set_up)

    def grade(self, question: str, answers: dict[str, str]) -> dict:
        """The result of one question for a student who has the source's answers but for these."""
        from course_lib.homework.grade import grade_notebook

        student = copy.deepcopy(self.task.source)
        for cell in student.cells:
            cell.source = answers.get(nb.grade_id(cell), cell.source)
        mine = [entry for entry in self.task.questions if entry.id == question]
        return grade_notebook(replace(self.task, questions=mine), student, self.worker)[0]

    def passed(self, result: dict, kind: str) -> bool:
        """Whether the visible or the hidden check of a question passed."""
        name = f"{result['question']}-{kind}"
        return next(entry["passed"] for entry in result["checks"] if entry["grade_id"] == name)


class HomeworkTests:
    """Inherited by the test class of each chapter, which sets what is declared here."""

    chapter: Chapter
    #: question, answer cell, its wrong source, words that the student must be told
    wrong: list[tuple[str, str, str, str]]
    #: question, right answers by another way than the source's, kinds of checks if not both
    right: list[tuple]
    #: question, answers that fit the visible numbers alone
    hidden_only: list[tuple[str, dict]]
    #: cells marked by hand
    by_hand: tuple[str, ...]
    #: secrets that each question's hidden checks are drawn with, and questions that get 4 only
    secrets: int = 25
    slow: tuple[str, ...]

    def pytest_generate_tests(self, metafunc):
        """One test for each wrong answer, right answer and question of the chapter."""
        for name, values in {
            "wrong_answer": self.wrong,
            "right_answer": self.right,
            "fitted_answer": self.hidden_only,
            "question": [(entry.id,) for entry in self.chapter.questions],
            "proof": [(name,) for name in self.by_hand],
        }.items():
            if name in metafunc.fixturenames:
                ids = [f"{value[0]}-{i}" for i, value in enumerate(values)]
                metafunc.parametrize(name, values, ids=ids)

    def test_wrong_answers_get_their_words(self, wrong_answer, capsys):
        question, cell, source, words = wrong_answer
        with pytest.raises(WrongAnswer) as caught:
            self.chapter.run(question, {f"{question}-{cell}": source})
        assert words in str(caught.value)
        assert f"wrong: {caught.value}" in capsys.readouterr().out

    @pytest.fixture(scope="class")
    @classmethod
    def grader(cls):
        """The chapter's grader, which is started by the first question."""
        if sys.platform != "linux":
            pytest.skip("students' code is run on Linux only")
        grader = Grader(cls.chapter)
        with grader.worker:
            yield grader

    def test_the_grader_tells_wrong_answers_the_same_words(self, wrong_answer, grader):
        question, cell, source, words = wrong_answer
        result = grader.grade(question, {f"{question}-{cell}": source})
        assert not grader.passed(result, "visible")
        # An empty cell counts as not answered, and no check has to find that out.
        assert (words if source else "a stub is left") in result["message"]
        assert result["status"] in ("graded", "partial")

    def test_the_grader_gives_right_answers_by_another_way_their_points(self, right_answer, grader):
        question, answers, *kinds = right_answer
        result = grader.grade(question, answers)
        for kind in kinds or ("visible", "hidden"):
            assert grader.passed(result, kind), result["message"]
        assert kinds or result["points"] == result["max"]

    def test_the_grader_sees_answers_made_for_the_visible_numbers(self, fitted_answer, grader):
        result = grader.grade(*fitted_answer)
        assert not grader.passed(result, "hidden")
        assert result["message"]

    def test_every_question_has_wrong_answers(self):
        for entry in self.chapter.questions:
            assert sum(question == entry.id for question, *_ in self.wrong) >= 2, entry.id

    def test_right_answers_by_another_way_pass(self, right_answer):
        question, answers, *kinds = right_answer
        for kind in kinds or ("visible", "hidden"):
            self.chapter.run(question, answers, kind=kind, seed=3)

    def test_the_source_passes_hidden_checks_for_many_secrets(self, question):
        for seed in range(4 if question[0] in self.slow else self.secrets):
            self.chapter.run(question[0], {}, kind="hidden", seed=seed)

    def test_answers_made_for_the_visible_numbers_fail_the_hidden_checks(self, fitted_answer):
        with pytest.raises(WrongAnswer):
            self.chapter.run(*fitted_answer, kind="hidden")

    def test_the_homework_is_complete(self):
        chapter = self.chapter
        cells, sources = chapter.notebook.cells, chapter.sources
        assert len(chapter.questions) >= 9
        assert {entry.difficulty for entry in chapter.questions} == set(nb.DIFFICULTIES)
        total = 0.0
        for entry in chapter.questions:
            kinds = {nb.grade_id(cells[index]).split("-")[1] for index in entry.checks}
            assert kinds == {"visible", "hidden"}, entry.id
            assert "hidden_rng(" in sources[f"{entry.id}-hidden"]
            points = sum(nb.points(cells[index]) for index in [*entry.checks, *entry.manual])
            total += points
            worth = nb.number_text(points)
            title = f"{entry.number}. {entry.title} ({entry.difficulty}, {worth} points)"
            assert f"## {title}" in sources[f"{entry.id}-statement"]
            row = f"| {entry.number} | {entry.title} | {entry.difficulty} | {worth} |"
            assert row in sources["intro"], f"the table of the first cell has no row {row}"
            assert row in chapter.page, f"exercises.md has no row {row}"
        assert f"{nb.number_text(total)} points" in sources["intro"]
        assert f"{nb.number_text(total)} points" in chapter.page

    def test_answers_marked_by_hand_carry_a_rubric(self, proof):
        cell = next(c for c in self.chapter.notebook.cells if nb.grade_id(c) == proof[0])
        assert sum(step["points"] for step in nb.rubric(cell)) == nb.points(cell) == 4
