"""The command line of homework: ``course release`` and ``course check``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from course_lib.homework.notebook import HomeworkError


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="course", description="Homework: release it (teachers), check it (students)."
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
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return 0, 1 when a check finds something wrong, 2 for input it cannot use."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "release":
            from course_lib.homework.release import release

            print(release(options.sources, options.out, options.secret))
            return 0
        from course_lib.homework.student_check import check_notebook, report

        verdicts, remarks = check_notebook(options.notebook, options.release)
        print(report(options.notebook, verdicts, remarks))
        return 0 if all(verdict.status in ("passed", "by hand") for verdict in verdicts) else 1
    except HomeworkError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
