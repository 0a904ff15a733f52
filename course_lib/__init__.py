"""Learning to Regularize: the library under the book.

Import modules, not names::

    from course_lib import filters, operators, problems

Each module is loaded when it is first used, so that ``import course_lib`` stays fast and
brings in neither torch nor matplotlib nor ipywidgets.
"""

import importlib

__version__ = "0.1.0"

__all__ = [
    "arrays",
    "autodiff",
    "bilevel",
    "checks",
    "choice",
    "explorers",
    "filters",
    "functionals",
    "homework",
    "implicit",
    "iterate",
    "linear",
    "meta",
    "operators",
    "plotting",
    "problems",
    "proximal",
]


def __getattr__(name: str):
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
