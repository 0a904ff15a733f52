"""Write notebooks in the one form that the repository keeps, or check that they have it.

    python tools/notebooks.py --check [PATH ...]
    python tools/notebooks.py --write [--execute] [PATH ...]
    python tools/notebooks.py from-md TEXT NOTEBOOK
    python tools/notebooks.py to-md NOTEBOOK TEXT

PATH is a notebook or a folder; without one, `notebooks` and `exercises` are taken.

The canonical form: nbformat 4.5, a `python3` kernel, every cell with an id of its own, sources one
line a string, an outer directive with more colons than what it holds (JupyterLab needs that, the
book does not), no output anywhere but in cells that contain the line `# NBVAL_CHECK_OUTPUT`. Such a
cell keeps its text (standard output and the plain text of its last expression) and has
`execution_count: 1`: nbval passes a marked cell that has no count, and compares the others.

`from-md` and `to-md` translate to and from text in jupytext's MyST format (a name that ends in .py
means the percent format). A notebook that exists keeps the ids and outputs of unchanged cells.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("notebooks", "exercises")
MARK = "# NBVAL_CHECK_OUTPUT"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
MAX_LINES, MAX_WIDTH = 40, 120


class FormError(ValueError):
    """A notebook that cannot be brought into the canonical form."""


def is_marked(cell: nbformat.NotebookNode) -> bool:
    """Whether the cell's output is part of the notebook and compared by nbval."""
    return cell.cell_type == "code" and MARK in (line.strip() for line in cell.source.splitlines())


def _new_id(cell: nbformat.NotebookNode, taken: set[str]) -> str:
    """An id that depends on the cell's text alone, so that a second writing gives the same one."""
    attempt = 0
    while True:
        text = f"{cell.cell_type}\n{cell.source}\n{attempt}"
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        if name not in taken:
            return name
        attempt += 1


def _text_outputs(cell: nbformat.NotebookNode, where: str) -> list[nbformat.NotebookNode]:
    """The outputs of a marked cell: one stream of text, then the plain text of the last value."""
    printed, value = "", None
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            printed += output.text
        elif output.output_type == "execute_result":
            value = output.data.get("text/plain")
        else:
            kind = output.get("name", output.output_type)
            raise FormError(f"{where}: a marked cell keeps text only, got an output of kind {kind}")
    kept = []
    if printed:
        kept.append(nbformat.v4.new_output("stream", name="stdout", text=printed))
    if value is not None:
        kept.append(
            nbformat.v4.new_output("execute_result", data={"text/plain": value}, execution_count=1)
        )
    if not kept:
        raise FormError(f"{where}: the cell is marked {MARK} and has no text output; run --execute")
    lines = (printed + (value or "")).splitlines()
    if len(lines) > MAX_LINES or max(map(len, lines)) > MAX_WIDTH:
        raise FormError(
            f"{where}: a marked output has at most {MAX_LINES} lines of {MAX_WIDTH} characters, "
            f"got {len(lines)} lines of up to {max(map(len, lines))}"
        )
    if any(noise in line for line in lines for noise in (" at 0x", "<Figure", "<Axes")):
        raise FormError(f"{where}: a marked output names an object's address or a figure")
    return kept


def _nest_fences(text: str, where: str) -> str:
    """Give an outer `:::{directive}` more colons than the directives inside it."""
    lines, in_code = text.splitlines(), False
    stack: list[list[int]] = []  # line of the opening, colons that it needs
    for number, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            in_code = not in_code
        colons = re.match(":{3,}", line)
        if in_code or not colons:
            continue
        if line[colons.end() :].strip():
            stack.append([number, colons.end()])
            continue
        if not stack:
            raise FormError(f"{where}: a fence of colons is closed that was not opened: {line}")
        opening, needed = stack.pop()
        lines[opening] = ":" * needed + lines[opening].lstrip(":")
        lines[number] = ":" * needed
        if stack:
            stack[-1][1] = max(stack[-1][1], needed + 1)
    if stack:
        raise FormError(f"{where}: a fence of colons is not closed: {lines[stack[-1][0]]}")
    return "\n".join(lines)


def canonical(notebook: nbformat.NotebookNode, name: str = "notebook") -> nbformat.NotebookNode:
    """Return the canonical form of a notebook; FormError says which cell has none."""
    cells, taken = [], set()
    for number, cell in enumerate(notebook.cells):
        where = f"{name}, cell {number}"
        source = cell.source.rstrip("\n")
        metadata = {key: cell.metadata[key] for key in sorted(cell.metadata) if key in KEEP}
        if cell.cell_type == "code":
            new = nbformat.v4.new_code_cell(source, metadata=metadata)
            if is_marked(cell):
                new.outputs, new.execution_count = _text_outputs(cell, where), 1
        elif cell.cell_type == "markdown":
            text = _nest_fences(source, where)
            new = nbformat.v4.new_markdown_cell(text, metadata=metadata)
        else:
            raise FormError(f"{where}: cells are code or markdown, got {cell.cell_type}")
        old = cell.get("id")
        new.id = old if old and old not in taken else _new_id(new, taken)
        taken.add(new.id)
        cells.append(new)
    return nbformat.from_dict(
        {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    )


# What belongs to the text; the rest (timings, folding, slideshow state) belongs to an editor.
KEEP = {"tags", "mystnb", "nbgrader", "course", "deletable", "editable"}


def to_text(notebook: nbformat.NotebookNode) -> str:
    """Return the file's text: nbformat's JSON, one source line a string, a newline at the end."""
    return nbformat.writes(notebook).rstrip("\n") + "\n"


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook of any 4.x form; missing and repeated ids are repaired in `canonical`."""
    return nbformat.reader.reads(path.read_text(encoding="utf-8"))


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run all cells in a fresh kernel whose working folder is `folder`."""
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def check(path: Path) -> str | None:
    """Return what is wrong with the file's form, or None."""
    try:
        wanted = to_text(canonical(read(path), str(path)))
    except FormError as error:
        return str(error)
    if wanted != path.read_text(encoding="utf-8"):
        return f"{path}: not in canonical form; run `python tools/notebooks.py --write {path}`"
    return None


def from_text(text: Path, target: Path) -> nbformat.NotebookNode:
    """Make the notebook of a jupytext file; unchanged cells keep their ids and outputs."""
    import jupytext

    notebook = jupytext.read(text, fmt="py:percent" if text.suffix == ".py" else "md:myst")
    known = {}
    if target.exists():
        for cell in read(target).cells:
            known.setdefault((cell.cell_type, cell.source), []).append(cell)
    for cell in notebook.cells:
        cell.pop("id", None)
        same = known.get((cell.cell_type, cell.source))
        if same:
            old = same.pop(0)
            cell.id = old.get("id")
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = old.outputs, old.execution_count
    return notebook


def _paths(arguments: list[str]) -> list[Path]:
    given = [Path(a) for a in arguments] or [ROOT / folder for folder in FOLDERS]
    found = []
    for path in given:
        if path.is_dir():
            found += sorted(p for p in path.rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)
        elif path.suffix == ".ipynb":
            found.append(path)
        else:
            raise SystemExit(f"{path}: expected a notebook or a folder")
    return found


def main(argv: list[str]) -> int:
    """Run the command line; the return value is the exit status."""
    if argv and argv[0] in ("from-md", "to-md"):
        parser = argparse.ArgumentParser(prog=f"notebooks.py {argv[0]}")
        parser.add_argument("source", type=Path)
        parser.add_argument("target", type=Path)
        parser.add_argument("--execute", action="store_true", help="run it and store outputs")
        options = parser.parse_args(argv[1:])
        if argv[0] == "to-md":
            import jupytext

            fmt = "py:percent" if options.target.suffix == ".py" else "md:myst"
            notebook = read(options.source)
            notebook.metadata["jupytext"] = {"notebook_metadata_filter": "kernelspec,-all"}
            options.target.write_text(jupytext.writes(notebook, fmt=fmt), encoding="utf-8")
            return 0
        notebook = from_text(options.source, options.target)
        options.target.parent.mkdir(parents=True, exist_ok=True)
        if options.execute:
            notebook = execute(notebook, options.target.parent)
        try:
            text = to_text(canonical(notebook, str(options.target)))
        except FormError as error:
            print(error, file=sys.stderr)
            return 1
        options.target.write_text(text, encoding="utf-8")
        return 0

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--check", action="store_true", help="say which files differ; change nothing")
    mode.add_argument("--write", action="store_true", help="rewrite the files")
    parser.add_argument("--execute", action="store_true", help="run first, and store the outputs")
    parser.add_argument("paths", nargs="*")
    options = parser.parse_args(argv)
    wrong = 0
    for path in _paths(options.paths):
        if options.check:
            message = check(path)
        else:
            try:
                notebook = read(path)
                if options.execute:
                    notebook = execute(notebook, path.parent)
                path.write_text(to_text(canonical(notebook, str(path))), encoding="utf-8")
                message = None
            except FormError as error:
                message = str(error)
        if message:
            wrong += 1
            print(message, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
