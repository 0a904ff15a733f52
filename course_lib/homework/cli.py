"""The command line of homework: ``course release``, ``check``, ``grade`` and what follows."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from course_lib.homework.notebook import HomeworkError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="course", description="Homework: release and grade it (teachers), check it (students)."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    release = commands.add_parser(
        "release",
        help="make what students get from source notebooks",
        description="Strip solutions, hidden checks and rubrics from source notebooks, prove that "
        "the source scores full marks and the release none, and write DIR/release (hand out), "
        "DIR/source and DIR/instructor (keep).",
    )
    release.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="a source notebook, or a folder of them"
    )
    release.add_argument("--out", required=True, metavar="DIR", help="where the bundle is written")
    release.add_argument(
        "--secret",
        metavar="FILE",
        help="draw hidden instances from this secret (at least 16 bytes); without it, from "
        "DIR/instructor/secret, which is made when it is missing",
    )
    check = commands.add_parser(
        "check",
        help="check your homework and be told what is wrong",
        description="Put the answers of a notebook into a pristine copy of the homework, run it, "
        "and print one line a question. Exit status: 0 all passed, 1 something is wrong or open, "
        "2 the notebook cannot be checked.",
    )
    check.add_argument("notebook", metavar="NOTEBOOK", help="your notebook, saved")
    check.add_argument(
        "--release",
        metavar="DIR",
        help="the released homework (default: the notebook's own folder)",
    )
    grade = commands.add_parser(
        "grade",
        help="grade what students handed in",
        description="Run each student's answers in a sandbox and the checks outside of it. Writes "
        "one record a submission and DIR/gradebook.csv. A run that was stopped goes on where it "
        "was when it is started again.",
    )
    _grading_options(grade)
    regrade = commands.add_parser(
        "regrade",
        help="grade again, also what has a record; marks by hand stay",
        description="Like course grade, but records that are there are made again. Marks and "
        "comments that were entered by hand stay.",
    )
    _grading_options(regrade)
    regrade.add_argument(
        "--student", action="append", default=[], metavar="NAME", help="this student only"
    )
    mark = commands.add_parser(
        "mark",
        help="enter marks for proofs and projects",
        description="Enter marks and comments from a CSV file (student,question,points,comment). "
        "Without one, show each answer that waits for a mark, with its rubric, and ask.",
    )
    mark.add_argument("--from", dest="csv", metavar="CSV", help="the file with the marks")
    feedback = commands.add_parser(
        "feedback",
        help="write a page for each student",
        description="Write DIR/feedback/STUDENT/ASSIGNMENT/ASSIGNMENT.html, or, with --course, the "
        "same pages into the feedback folder of an nbgrader course.",
    )
    export = commands.add_parser(
        "export",
        help="write the gradebook",
        description="Print the gradebook: a line a question (csv), or a column an assignment for "
        "the import of Canvas or Moodle; or write it into nbgrader's gradebook.",
    )
    export.add_argument("--to", choices=("csv", "canvas", "moodle", "nbgrader"), default="csv")
    export.add_argument("--file", metavar="FILE", help="write it here instead of printing it")
    export.add_argument(
        "--roster", metavar="CSV", help="the gradebook as Canvas or Moodle exported it: fill this"
    )
    export.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="ASSIGNMENT=COLUMN",
        help="the roster's column for an assignment, when it has another name there",
    )
    export.add_argument("--by", default="", metavar="COLUMN", help="find students by this column")
    for command in (feedback, export):
        command.add_argument("--course", metavar="DIR", help="nbgrader's course folder")
    for command in (mark, feedback, export):
        command.add_argument("--out", required=True, metavar="DIR", help="as given to course grade")
    commands.add_parser(
        "doctor",
        help="say how well this machine can shut in students' code",
        description="Try the ways of running students' code in a sandbox. Exit status: 0 it is "
        "shut in, 1 it is held by limits alone.",
    )
    return parser


def _grading_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", required=True, metavar="DIR", help="what course release wrote")
    parser.add_argument(
        "--submissions",
        required=True,
        metavar="DIR",
        help="a folder for each student with the notebook in it, or nbgrader's submitted/",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where records are written")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="submissions at the same time (default 1)"
    )
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="grade on the Dask cluster with this scheduler, for example tcp://10.0.0.1:8786",
    )


def _release(options: argparse.Namespace) -> int:
    from course_lib.homework.release import release

    print(release(options.sources, options.out, options.secret))
    return 0


def _check(options: argparse.Namespace) -> int:
    from course_lib.homework.student_check import check_notebook, report

    verdicts, remarks = check_notebook(options.notebook, options.release)
    print(report(options.notebook, verdicts, remarks))
    return 0 if all(verdict.status in ("passed", "by hand") for verdict in verdicts) else 1


def _grade(options: argparse.Namespace) -> int:
    from course_lib.homework.classroom import grade

    where = (options.bundle, options.submissions, options.out)
    again = options.command == "regrade"
    students = frozenset(options.student) if again else frozenset()
    print(
        grade(
            *where, jobs=options.jobs, scheduler=options.scheduler, again=again, students=students
        )
    )
    return 0


def _mark(options: argparse.Namespace) -> int:
    from course_lib.homework.mark import mark_by_asking, mark_from_csv

    print(mark_from_csv(options.out, options.csv) if options.csv else mark_by_asking(options.out))
    return 0


def _feedback(options: argparse.Namespace) -> int:
    from course_lib.homework.mark import feedback, shown
    from course_lib.homework.nbgrader_course import write_feedback

    if options.course:
        words, remarks = write_feedback(options.out, options.course)
        for remark in remarks:
            print(shown(remark), file=sys.stderr)
    else:
        words = feedback(options.out)
    print(words)
    return 0


def _export(options: argparse.Namespace) -> int:
    from course_lib.homework import gradebook, nbgrader_course, roster
    from course_lib.homework.grade import write_text
    from course_lib.homework.mark import shown

    _check_export_options(options)
    remarks = gradebook.remarks(options.out, "" if options.roster else options.to)
    if options.to == "nbgrader":
        table, more = nbgrader_course.export_marks(options.out, options.course)
        table += "\n"
    elif options.roster:
        sums = gradebook.totals(gradebook.rows(options.out))
        columns = dict(entry.split("=", 1) for entry in options.column)
        table, more = roster.fill(options.roster, options.to, sums, columns, options.by)
    else:
        table, more = gradebook.export(options.out, options.to), []
    for remark in [*remarks, *more] if options.to != "csv" else []:
        print(shown(remark), file=sys.stderr)
    if options.file:
        write_text(table, Path(options.file))
    else:
        print(table, end="")
    return 0


def _check_export_options(options: argparse.Namespace) -> None:
    if (options.to == "nbgrader") != bool(options.course):
        raise HomeworkError("--to nbgrader and --course DIR belong together.")
    if options.roster and options.to not in ("canvas", "moodle"):
        raise HomeworkError("--roster goes with --to canvas or --to moodle.")
    if (options.column or options.by) and not options.roster:
        raise HomeworkError("--column and --by go with --roster.")
    if not all("=" in entry for entry in options.column):
        raise HomeworkError("--column takes ASSIGNMENT=COLUMN.")
    if options.to == "nbgrader" and options.file:
        raise HomeworkError("--to nbgrader writes DIR/gradebook.db and no other file.")


def _doctor(options: argparse.Namespace) -> int:
    from course_lib.homework.sandbox import doctor

    words, shut_in = doctor()
    print(words)
    return 0 if shut_in else 1


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "release": _release,
    "check": _check,
    "grade": _grade,
    "regrade": _grade,
    "mark": _mark,
    "feedback": _feedback,
    "export": _export,
    "doctor": _doctor,
}


def stop_printing() -> None:
    """After a BrokenPipeError: print into the void, if it was the reader, like ``head``, that left.

    Raises
    ------
    BrokenPipeError
        What is printed still has a reader: another pipe broke.
    """
    poll = select.poll()
    poll.register(sys.stdout, 0)
    if not poll.poll(0):
        raise
    nowhere, pipe = os.open(os.devnull, os.O_WRONLY), os.fstat(sys.stdout.fileno())
    for stream in (sys.stdout, sys.stderr):
        if os.path.samestat(os.fstat(stream.fileno()), pipe):
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 1 when a check finds something wrong, 2 for input it cannot use.

    141, as a shell has it, when nobody reads what is printed.
    """
    options = _parser().parse_args(arguments)
    try:
        status = _COMMANDS[options.command](options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        stop_printing()
        return 141
    except HomeworkError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
