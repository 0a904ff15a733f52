"""Gradebooks for Canvas and Moodle, read as their importers read them.

`canvas` and `moodle` below follow the rules of ``lib/gradebook_importer.rb`` of Canvas and of
``grade/import/csv/classes/load_data.php`` of Moodle. No running Canvas or Moodle was asked.
"""

import csv
import io
import re

import pytest

from course_lib.homework import cli, grade, gradebook, roster
from course_lib.homework.notebook import HomeworkError

# What both platforms know: number, SIS id, login, name as it is sorted.
USERS = {
    "17": ("m001", "ada", "Lovelace, Ada"),
    "18": ("m002", "bob@uni.example", "Müller, Bob"),
    "19": ("m003", "cyd", "=cmd|' /C calc'!A0"),
    "20": ("m004", "dan", "Twin, Sam"),
    "21": ("m005", "eve", "Twin, Sam"),
    "99": ("", "test", "Student, Test"),
}


def canvas_export(*, marks: dict | None = None, last: str = "", most: str = "10") -> str:
    """What Canvas exports: also a line on posting, a custom column, other homework and totals."""
    stream = io.StringIO()
    header = "Student,ID,SIS User ID,SIS Login ID,Section,Notes,Project (7),Homework 2 (8)"
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([*header.split(","), "Current Score"])
    writer.writerow(["", "", "", "", "", "", "", "Manual Posting", ""])
    writer.writerow(["    Points Possible", "", "", "", "", "", "5", most, "(read only)"])
    for number, (sis, login, name) in USERS.items():
        mark = (marks or {}).get(login, "")
        writer.writerow([name, number, sis, login, "S 1", "kind", "4", mark, "80"])
    return stream.getvalue() + last


def canvas(text: str) -> tuple[dict, dict]:
    """Marks by student's number and column, and the points possible, as Canvas would take them."""
    lines = [line for line in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in line)]
    header = lines[0]
    assert len(header) > 3
    assert "Student" in header[0]
    assert "ID" in header[1]
    count, sis, login = 3, None, None
    if re.search(r"SIS\s+Login\s+ID", header[2]):
        login, count = 2, 4
    elif re.search(r"SIS\s+User\s+ID", header[2]) and re.search(r"SIS\s+Login\s+ID", header[3]):
        sis, login, count = 2, 3, 5
    assert "Section" in header[count - 1], "Invalid header row"
    columns = {k: name for k, name in enumerate(header) if k >= count}
    marks, most = {}, {}
    for line in lines[1:]:
        assert len(line) == len(header)
        if "Points Possible" in line[0]:
            most = {name: line[k] for k, name in columns.items()}
            continue
        if all(re.fullmatch(r"(?i)\s*(Muted|Manual Posting.*)?\s*", cell) for cell in line):
            continue
        student = line[1] if line[1] in USERS else None
        for column, place in ((sis, 0), (login, 1), (0, 2)):
            if student is None and column is not None and line[column]:
                fit = [n for n, user in USERS.items() if user[place] == line[column]]
                student = fit[0] if fit else None
        marks[student or line[0]] = {name: line[k].strip() for k, name in columns.items()}
    return marks, most


def moodle_export(marks: dict | None = None) -> str:
    """What Moodle exports as plain text; the header is that of Moodle's own test."""
    stream = io.StringIO()
    header = "First name,Surname,ID number,Institution,Department,Email address,"
    header += "Assignment: hw (Real),Quiz: Test (Real),Course total (Real),"
    header += "Last downloaded from this course"
    writer = csv.writer(stream, delimiter=";", lineterminator="\n")
    writer.writerow(header.split(","))
    for sis, login, name in USERS.values():
        family, _, first = name.partition(", ")
        mail = login if "@" in login else f"{login}@uni.example"
        mark = (marks or {}).get(login, "-")
        writer.writerow([first, family, sis, "", "", mail, mark, "3,00", "9,00", "1795000000"])
    return stream.getvalue()


def moodle(text: str, column: str, to: dict[str, str]) -> dict[str, str]:
    """Marks by user, as Moodle takes them; one unknown user ends the whole import."""
    lines = list(csv.reader(io.StringIO(text)))
    key, item = lines[0].index(column), lines[0].index("Assignment: hw (Real)")
    found = {}
    for line in lines[1:]:
        assert len(line) > 1
        assert line[key].strip() in to, "user not found: nothing is imported"
        value = line[item].strip()
        assert value in ("", "-") or 0 <= float(value.replace(",", ".")) <= 100
        found[to[line[key].strip()]] = value
    return found


def sums(**marks: float) -> dict:
    return {(student, "hw"): (points, 10.0) for student, points in marks.items()}


def filled(tmp_path, text: str, marks: dict, form: str = "canvas", **more) -> tuple[str, list[str]]:
    place = tmp_path / "roster.csv"
    place.write_text(text, encoding="utf-8-sig", newline="")
    columns = {"hw": "Homework 2"} if form == "canvas" else {}
    return roster.fill(place, form, marks, columns, **more)


# Canvas -------------------------------------------------------------------------------------------


def test_canvas_takes_the_marks_for_those_it_means(tmp_path):
    text, remarks = filled(tmp_path, canvas_export(), sums(ada=7.5, m002=8, cyd=0))
    marks, most = canvas(text)
    assert marks == {n: {"Homework 2 (8)": m} for n, m in (("17", "7.5"), ("18", "8"), ("19", "0"))}
    assert most == {"Homework 2 (8)": "10"}
    assert remarks == ["Marks for 3 of the 6 students of the roster."]
    for line in csv.reader(io.StringIO(text)):
        assert not [cell for cell in line if re.match(r"[=+@\t\r]|-\D", cell)]


@pytest.mark.parametrize("name", ["ADA", "m001", "17", "Ada Lovelace", "lovelace, ada"])
def test_a_student_is_found_by_any_name_that_is_hers_alone(tmp_path, name):
    text, _ = filled(tmp_path, canvas_export(), sums(**{name: 7}))
    assert list(canvas(text)[0]) == ["17"]


def test_who_is_not_found_for_certain_is_named_and_left_out(tmp_path):
    some = {"ada": 7, "m001": 6, "bob": 5, "Sam Twin": 4, "nobody": 3}
    text, remarks = filled(tmp_path, canvas_export(), sums(**some))
    assert list(canvas(text)[0]) == ["18"]  # bob, by the part before the @
    assert remarks == [
        "Sam Twin: left out, 2 lines of the roster fit.",
        "nobody: left out, not in the roster.",
        "ada, m001: left out, all are the same line of the roster.",
        "Marks for 1 of the 6 students of the roster.",
    ]


def test_an_id_that_is_another_students_number_is_no_certain_name(tmp_path):
    text = canvas_export().replace("m001", "18")  # Ada's SIS id is Bob's number in Canvas
    text, remarks = filled(tmp_path, text, sums(**{"18": 7}))
    assert canvas(text)[0] == {}
    assert remarks[0] == "18: left out, 2 lines of the roster fit."
    text, _ = filled(tmp_path, canvas_export(), sums(m002=7), by="SIS User ID")
    assert list(canvas(text)[0]) == ["18"]
    _, remarks = filled(tmp_path, canvas_export(), sums(ada=7), by="SIS User ID")
    assert remarks[0] == "ada: left out, not in the roster."


def test_no_mark_is_replaced_without_a_word(tmp_path):
    before = {"ada": "7,50", "bob@uni.example": "3", "cyd": "EX", "dan": "N/A"}
    marks = sums(**{"ada": 7.5, "bob@uni.example": 8, "cyd": 1, "dan": 2})
    text, remarks = filled(tmp_path, canvas_export(marks=before), marks)
    taken = {number: row["Homework 2 (8)"] for number, row in canvas(text)[0].items()}
    assert taken == {"17": "7.5", "18": "8", "19": "EX", "20": "N/A"}
    assert remarks == [
        "bob@uni.example, hw: 3 becomes 8.",
        "cyd, hw: EX stays, 1 is not written.",
        "dan, hw: N/A stays, 2 is not written.",
        "Marks for 4 of the 6 students of the roster.",
    ]


def test_other_points_possible_are_named_and_stay(tmp_path):
    text, remarks = filled(tmp_path, canvas_export(most="100"), sums(ada=7))
    assert canvas(text)[1] == {"Homework 2 (8)": "100"}
    assert remarks[0] == (
        "hw: Canvas says 100 for the points possible, the homework has 10. Change it in Canvas."
    )


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("a,b\n1,2\n", {}, "no gradebook exported from Canvas"),
        ("", {}, "no gradebook exported from Canvas"),
        (canvas_export(), {}, "the roster has no column hw"),
        (canvas_export(), {"hm": "Project"}, "no homework of this name was graded"),
        (canvas_export(), {"hw": "Section"}, "the roster has no column Section"),
        (canvas_export(last="a,b,c,d,e,f,g,h,i,j\n"), {"hw": "Project"}, "more cells than"),
        (canvas_export(last='a,"b\n'), {"hw": "Project"}, "cannot be read as CSV"),
        (
            canvas_export().replace("Project (7)", "Homework 2 (9)"),
            {"hw": "Homework 2"},
            "2 columns",
        ),
    ],
)
def test_a_roster_that_cannot_be_filled_is_refused(tmp_path, text, columns, words):
    place = tmp_path / "roster.csv"
    place.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(HomeworkError, match=words):
        roster.fill(place, "canvas", sums(ada=7), columns)


# Moodle -------------------------------------------------------------------------------------------


def test_moodle_takes_the_marks_by_id_number_and_by_address(tmp_path):
    text, remarks = filled(tmp_path, moodle_export(), sums(ada=7.5, m002=8, nobody=1), "moodle")
    ids = {sis: login for sis, login, _ in USERS.values()}
    assert moodle(text, "ID number", ids) == {"ada": "7.5", "bob@uni.example": "8"}
    mails = {m if "@" in m else f"{m}@uni.example": m for m in ids.values()}
    assert moodle(text, "Email address", mails) == {"ada": "7.5", "bob@uni.example": "8"}
    assert remarks == [
        "nobody: left out, not in the roster.",
        "Marks for 2 of the 6 students of the roster.",
    ]
    # Moodle refuses to undo marks that are newer than this; other marks are not in the file.
    header = next(csv.reader(io.StringIO(text)))
    assert header[-2:] == ["Assignment: hw (Real)", "Last downloaded from this course"]
    assert "1795000000" in text
    assert "Quiz" not in text


def test_moodle_keeps_what_names_a_student_or_leaves_the_line_out(tmp_path):
    marks = sums(cyd=7, ada=6)
    text, remarks = filled(tmp_path, moodle_export(), marks, "moodle")
    assert len(text.strip().split("\n")) == 3
    assert "'=cmd" in text  # a surname: not what the line is found by
    text, remarks = filled(tmp_path, moodle_export().replace("m003", "=m003"), marks, "moodle")
    assert len(text.strip().split("\n")) == 2
    assert remarks[0] == "cyd: left out, a spreadsheet would take the id for a formula."


def test_a_moodle_in_another_language_needs_the_column_named(tmp_path):
    german = "Vorname;Nachname;ID-Nummer;Institution;Abteilung;E-Mail-Adresse"
    text = moodle_export().replace(moodle_export().split(";Assignment")[0], german)
    text = text.replace("Assignment: hw (Real)", "Aufgabe: hw (Punkte)")
    with pytest.raises(HomeworkError, match="Name the one that .* --by COLUMN"):
        filled(tmp_path, text, sums(m001=7), "moodle")
    out, _ = filled(tmp_path, text, sums(m001=7), "moodle", by="ID-Nummer")
    assert out.split("\n")[:2] == [
        "ID-Nummer,Aufgabe: hw (Punkte),Last downloaded from this course",
        "m001,7,1795000000",
    ]


# The command --------------------------------------------------------------------------------------


@pytest.fixture
def graded(tmp_path):
    """Records of two students and of one whose name is a formula."""
    for student in ("ada", "bob", "=cyd"):
        question = {
            "question": "q1",
            "points": 8.0,
            "max": 10.0,
            "status": "partial",
            "message": "",
            "remarks": [],
            "by_hand": [],
            "checks": [],
        }
        record = {
            "format": 1,
            "student": student,
            "assignment": "hw",
            "submitted": 0.0,
            "isolation": "bwrap",
            "graded_at": 0.0,
            "questions": [question],
        }
        grade.write_json(record, grade.record_path(tmp_path / "out", student, "hw", "0" * 64))
    return tmp_path


def course(*arguments) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_the_command_fills_a_roster_and_says_what_it_did(graded, capsys):
    (graded / "roster.csv").write_text(canvas_export(), encoding="utf-8")
    roster_file = ("--to", "canvas", "--roster", graded / "roster.csv")
    column = ("--column", "hw=Homework 2", "--file", graded / "canvas.csv")
    assert course("export", "--out", graded / "out", *roster_file, *column) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.split("\n")[0] == "=cyd: left out, not in the roster."
    marks, _ = canvas((graded / "canvas.csv").read_text(encoding="utf-8"))
    assert {n: row["Homework 2 (8)"] for n, row in marks.items()} == {"17": "8", "18": "8"}


def test_without_a_roster_a_name_that_is_no_name_on_the_platform_is_left_out(graded, capsys):
    for form, first in (("canvas", ["ada", "", "", "ada", "", "8"]), ("moodle", ["ada", "8"])):
        assert course("export", "--out", graded / "out", "--to", form) == 0
        said = capsys.readouterr()
        lines = list(csv.reader(io.StringIO(said.out)))
        assert first in lines
        assert not any("cyd" in line[0] for line in lines)
        assert said.err == "=cyd: left out, a spreadsheet would take the name for a formula.\n"
    marks, most = canvas(gradebook.export(graded / "out", "canvas"))
    assert marks == {"17": {"hw": "8"}, "bob": {"hw": "8"}}  # bob logs in by another name: asked
    assert most == {"hw": "10"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--to", "nbgrader"), "belong together"),
        (("--to", "csv", "--roster", "r.csv"), "--roster goes with"),
        (("--to", "canvas", "--by", "ID"), "go with --roster"),
        (("--to", "canvas", "--roster", "r.csv", "--column", "hw"), "ASSIGNMENT=COLUMN"),
        (("--to", "nbgrader", "--course", ".", "--file", "x"), "no other file"),
        (("--to", "canvas", "--roster", "nowhere.csv"), "cannot be read as CSV"),
    ],
)
def test_options_that_do_not_fit_are_refused(graded, capsys, options, words):
    assert course("export", "--out", graded / "out", *options) == 2
    assert words in capsys.readouterr().err
