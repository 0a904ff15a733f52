"""Docstrings: pytest runs their examples; here it is seen to that there are any, and more.

``--doctest-modules`` and ``testpaths`` in pyproject.toml make ``pytest`` run each example.
"""

import doctest
import importlib
import inspect
import tomllib
from pathlib import Path

import pytest
from test_layers import MATHEMATICS

ROOT = Path(__file__).resolve().parent.parent


def public(kind) -> list:
    """(module.name, object) of what the mathematics makes public and is of the given kind."""
    modules = [importlib.import_module(f"course_lib.{name}") for name in MATHEMATICS]
    return [
        pytest.param(getattr(module, name), id=f"{module.__name__.split('.')[-1]}.{name}")
        for module in modules
        for name in module.__all__
        if kind(getattr(module, name))
    ]


@pytest.mark.parametrize("function", public(inspect.isfunction))
def test_every_function_has_an_executed_example(function):
    examples = [
        example
        for test in doctest.DocTestFinder(recurse=False).find(function)
        for example in test.examples
    ]
    assert any(example.want for example in examples)
    assert not any("+SKIP" in example.source for example in examples)


@pytest.mark.parametrize("record", public(inspect.isclass))
def test_every_record_names_its_fields(record):
    doc = inspect.getdoc(record)
    # "apply, adjoint : callable" stands for two fields.
    described = {
        name.strip()
        for line in doc.splitlines()
        if " :" in line
        for name in line.split(" :")[0].split(",")
    }
    fields = [name for name in record.__dataclass_fields__ if name != "others"]
    missing = set(fields) - described
    assert not missing


@pytest.mark.parametrize("function", public(inspect.isfunction))
def test_every_function_states_its_types(function):
    signature = inspect.signature(function)
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert function.__doc__.strip().endswith(".") or "\n" in function.__doc__


def test_pytest_runs_the_examples():
    with (ROOT / "pyproject.toml").open("rb") as file:
        options = tomllib.load(file)["tool"]["pytest"]["ini_options"]
    assert "course_lib" in options["testpaths"]
    assert "--doctest-modules" in options["addopts"]
