"""Find the claims that the text numbers, the tests that check them, and those only cited."""

from __future__ import annotations

import ast
import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("theorem", "proposition", "lemma", "corollary", "algorithm")
_OPENING = re.compile(r"^\s*(?P<fence>`{3,}|:{3,})\{prf:(?P<kind>\w+)\}(?P<title>.*)$")
_LABEL = re.compile(r"^\s*:label:\s*(?P<label>\S+)\s*$")


@dataclass(frozen=True)
class ClaimTest:
    """One test function that bears the mark `claim(label)`."""

    label: str
    path: str
    name: str
    first_line: int
    last_line: int


def marked_tests(root: Path = ROOT) -> dict[str, list[ClaimTest]]:
    """Return the tests of `tests/` by the label of their `@pytest.mark.claim(label)`."""
    found: dict[str, list[ClaimTest]] = {}
    for path in sorted((root / "tests").rglob("test_*.py")):
        text, name = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        for test in _marked_in(text, name):
            found.setdefault(test.label, []).append(test)
    return found


@functools.cache  # the book asks on each page
def _marked_in(text: str, path: str) -> tuple[ClaimTest, ...]:
    """Return the tests with the mark in one file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func).endswith("mark.claim"):
                (label,) = (argument.value for argument in mark.args)
                first = min(d.lineno for d in node.decorator_list)
                found.append(ClaimTest(label, path, node.name, first, node.end_lineno))
    return tuple(found)


def cited(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Return the claims that no run can test: label -> reason and citation."""
    path = root / "tests" / "claims_cited.yml"
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    for label, entry in (entries or {}).items():
        if not isinstance(entry, dict) or set(entry) != {"reason", "citation"}:
            raise ValueError(
                f"claims_cited.yml, {label}: expected the keys reason and citation, got {entry!r}"
            )
    return entries or {}


def numbered(root: Path = ROOT) -> dict[str, str]:
    """Return the labels of all numbered claims in `notebooks/` and `book/`, with their file.

    ValueError says where a theorem, proposition, lemma, corollary or algorithm has no label.
    """
    found: dict[str, str] = {}
    for path, text in _texts(root):
        lines = text.splitlines()
        for position, line in enumerate(lines):
            opening = _OPENING.match(line)
            if not opening or opening["kind"] not in KINDS:
                continue
            options = []
            for option in lines[position + 1 :]:
                if not option.strip().startswith(":") or option.strip().startswith(":::"):
                    break
                options.append(option)
            labels = [match["label"] for match in map(_LABEL.match, options) if match]
            where = f"{path}: {line.strip()}"
            if len(labels) != 1:
                raise ValueError(f"{where}: expected one :label: line, got {len(labels)}")
            if labels[0] in found:
                raise ValueError(f"{where}: the label {labels[0]} stands in {found[labels[0]]} too")
            found[labels[0]] = path
    return found


def _texts(root: Path) -> list[tuple[str, str]]:
    texts = []
    for path in sorted((root / "notebooks").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        texts.append((path.relative_to(root).as_posix(), "\n\n".join(sources)))
    for path in sorted((root / "book").rglob("*.md")):
        texts.append((path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")))
    return texts
