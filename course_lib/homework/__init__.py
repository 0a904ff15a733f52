"""Homework: the check contract, and the commands of ``course``, from release to returned marks.

Check cells use the names below. They import none of the mathematics of this library, and only
NumPy, so that a check can run where the student's code cannot reach it.

===============  ===============================================================================
`contract`       ``call``, ``check``, recipes, packing of plain values, seeds of hidden checks
`diagnose`       ``expect_*``: compare an answer, and turn a wrong one into words
`notebook`       reading notebooks, the cells' roles, the questions
`execute`        running notebooks with nbval in a process of its own
`release`        ``course release``: from the source to what students get
`student_check`  ``course check``: the student's own run
`assignment`     an assignment as the grader needs it: deadline, limits
`submissions`    finding and reading what students handed in
`sandbox`        where students' code runs; `_launch` and `worker` are its inside
`trusted`        replies from there, checked
`grade`          ``course grade`` for one submission, and its record
`classroom`      ``course grade`` for a class
`several`        several submissions at once; `process` is what grades, `cluster` is Dask
`gradebook`      records, marks by hand and lateness put together; ``course export``
`mark`           ``course mark`` and ``course feedback``
`cli`            the command line
===============  ===============================================================================
"""

from course_lib.homework.contract import (
    WrongAnswer,
    builders,
    call,
    check,
    expect_error,
    hidden_rng,
    recipe,
    say,
    set_seed,
)
from course_lib.homework.diagnose import (
    expect,
    expect_adjoint,
    expect_array,
    expect_at_most,
    expect_close,
    expect_converged,
    expect_number,
)

__all__ = [
    "WrongAnswer",
    "builders",
    "call",
    "check",
    "expect",
    "expect_adjoint",
    "expect_array",
    "expect_at_most",
    "expect_close",
    "expect_converged",
    "expect_error",
    "expect_number",
    "hidden_rng",
    "recipe",
    "say",
    "set_seed",
]
