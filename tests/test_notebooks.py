"""The one form of all notebooks, and the tool that writes it."""

import re
from pathlib import Path

import nbformat
import pytest

import notebooks as tool

ROOT = Path(__file__).resolve().parents[1]
PATHS = sorted(
    path
    for folder in tool.FOLDERS
    for path in (ROOT / folder).rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts
)
SECTIONS = [path for path in PATHS if path.is_relative_to(ROOT / "notebooks")]
UNSEEDED = re.compile(r"default_rng\(\s*\)|np\.random\.(?!default_rng|Generator|SeedSequence)\w+\(")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_there_are_notebooks():
    assert SECTIONS
    assert len(PATHS) > len(SECTIONS)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_canonical_form(path):
    assert tool.check(path) is None


@pytest.mark.parametrize("path", SECTIONS, ids=name)
def test_section_compares_an_output(path):
    assert any(tool.is_marked(cell) for cell in tool.read(path).cells)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_random_calls_are_seeded(path):
    code = "\n".join(c.source for c in tool.read(path).cells if c.cell_type == "code")
    assert not UNSEEDED.search(code)


def notebook(*cells):
    return nbformat.from_dict({"cells": list(cells), "metadata": {}})


def marked(outputs):
    cell = nbformat.v4.new_code_cell(f"{tool.MARK}\nprint(1)")
    cell.outputs, cell.execution_count = outputs, 7
    return cell


def stream(text, stream_name="stdout"):
    return nbformat.v4.new_output("stream", name=stream_name, text=text)


def test_outputs_are_dropped_but_for_marked_cells():
    plain = nbformat.v4.new_code_cell("1", outputs=[stream("1\n")], execution_count=3)
    kept = marked([stream("a\n"), stream("b\n")])
    first, second = tool.canonical(notebook(plain, kept)).cells
    assert (first.outputs, first.execution_count) == ([], None)
    assert [output.text for output in second.outputs] == ["a\nb\n"]
    assert second.execution_count == 1


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([], "no text output"),
        ([stream("w", "stderr")], "stderr"),
        ([stream("<Figure size 10x10>")], "address or a figure"),
        ([stream("object at 0x7f")], "address or a figure"),
        ([stream("x\n" * 100)], "at most"),
        ([nbformat.v4.new_output("display_data", data={"image/png": ""})], "display_data"),
    ],
)
def test_marked_outputs_are_short_text(outputs, words):
    with pytest.raises(tool.FormError, match=words):
        tool.canonical(notebook(marked(outputs)))


def test_outer_fences_are_longer():
    inner = ":::{dropdown} Hint\nThree.\n:::"
    cell = nbformat.v4.new_markdown_cell(f":::{{exercise}} One\n{inner}\n:::\n\n{inner}")
    (made,) = tool.canonical(notebook(cell)).cells
    assert made.source == f"::::{{exercise}} One\n{inner}\n::::\n\n{inner}"


@pytest.mark.parametrize("text", [":::{note}\nNot closed.", "Not opened.\n:::"])
def test_open_fences_are_refused(text):
    with pytest.raises(tool.FormError, match="fence"):
        tool.canonical(notebook(nbformat.v4.new_markdown_cell(text)))


def test_ids_stay_and_are_unique():
    cells = [nbformat.v4.new_markdown_cell("same") for _ in range(3)]
    cells[0].id = cells[1].id = "kept"
    first = tool.canonical(notebook(*cells))
    ids = [cell.id for cell in first.cells]
    assert ids[0] == "kept"
    assert len(set(ids)) == 3
    assert [cell.id for cell in tool.canonical(first).cells] == ids


def test_check_refuses_any_other_form(tmp_path):
    path = tmp_path / "a.ipynb"
    text = tool.to_text(tool.canonical(notebook(nbformat.v4.new_code_cell("x = 1"))))
    path.write_text(text, encoding="utf-8")
    assert tool.check(path) is None
    for old, new in [
        ('"nbformat_minor": 5', '"nbformat_minor": 4'),
        ("null", "1"),
        ("\n ", "\n  "),
    ]:
        path.write_text(text.replace(old, new), encoding="utf-8")
        assert "canonical" in tool.check(path)


def test_text_and_back_keeps_ids_and_outputs(tmp_path):
    pytest.importorskip("jupytext")
    path, text = tmp_path / "a.ipynb", tmp_path / "a.md"
    cells = [nbformat.v4.new_markdown_cell("# Title"), marked([stream("1\n")])]
    cells[1].metadata = {"tags": ["hide-input"], "mystnb": {"image": {"alt": "A line."}}}
    before = tool.to_text(tool.canonical(notebook(*cells)))
    path.write_text(before, encoding="utf-8")
    assert tool.main(["to-md", str(path), str(text)]) == 0
    assert tool.main(["from-md", str(text), str(path)]) == 0
    assert path.read_text(encoding="utf-8") == before
