"""The page that shows what `make bench` measured, also where the library falls short of its bar.

    ```{performance} performance.json
    :show: summary
    ```

`show` is `machine` (where, when and with which versions), `summary` (one line for each row, and
which rows miss their bar), or the name of a group of rows (every solver's accuracy and times). The
file is a record of `tests/benchmarks/run.py`; what is wrong with it is an error of the build.
Without the file the page says that nothing has been measured yet.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "benchmarks"))

import measuring  # noqa: E402

WORDS = {
    "beyond": "beyond its bar",
    "met": "meets its bar",
    "missed": "misses its bar",
    "no bar": "no bar was set",
    "not comparable": "not comparable",
}


def _number(value: float | None) -> str:
    """Write a number with two digits, never in scientific form."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 10 else f"{value:#.2g}"


def _accuracy(entry: dict[str, Any]) -> str:
    return f"{entry['accuracy']:.0e}" + ("" if entry["reached"] else ", not good enough")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.0f}" if seconds >= 0.1 else f"{1e3 * seconds:.2g}"


def _verdict(row: dict[str, Any]) -> nodes.Node:
    words = WORDS[row["verdict"]]
    bad = row["verdict"] in ("missed", "not comparable")
    return nodes.strong("", words) if bad else nodes.Text(words)


def _cell(*content: str | nodes.Node) -> nodes.entry:
    parts = [nodes.Text(part) if isinstance(part, str) else part for part in content]
    return nodes.entry("", nodes.paragraph("", "", *parts))


def _table(widths: list[int], head: list[str], rows: list[nodes.row]) -> nodes.table:
    group = nodes.tgroup("", cols=len(widths))
    group.extend(nodes.colspec(colwidth=width) for width in widths)
    group += nodes.thead("", nodes.row("", *map(_cell, head)))
    group += nodes.tbody("", *rows)
    return nodes.table("", group, classes=["performance"])


def machine(record: dict[str, Any]) -> list[nodes.Node]:
    """Say where, when and with which versions the numbers were measured."""
    versions = ", ".join(f"{name} {v}" for name, v in sorted(record["versions"].items()))
    words = (
        f"Measured on {record['date']} on {record['machine']} with {record['cores']} processor "
        f"cores, of which {record['threads']} was used; Python {record['python']}; {versions}."
    )
    return [nodes.paragraph("", words)]


def summary(record: dict[str, Any]) -> list[nodes.Node]:
    """One line for each row, and a sentence on those that fall short."""
    rows = record["rows"]
    barred = [row for row in rows if row["bar"] is not None]
    short = [row for row in barred if row["verdict"] in ("missed", "not comparable")]
    count = f"{len(barred) - len(short)} of {len(barred)} rows that have a bar meet it."
    names = "; ".join(f"{row['group']}, {row['title']}" for row in short)
    sentence = f"{count} Short of it: {names}." if short else count
    lines = [
        nodes.row(
            "",
            _cell(f"{row['group']}: {row['title']}"),
            _cell(row["best"] or "–"),
            _cell(_number(row["ratio"])),
            _cell(_number(row["bar"])),
            _cell(_verdict(row)),
        )
        for row in rows
    ]
    head = ["Task", "Best peer", "Ratio", "Bar", "Verdict"]
    return [nodes.paragraph("", sentence), _table([40, 20, 10, 10, 20], head, lines)]


def group(record: dict[str, Any], name: str) -> list[nodes.Node]:
    """Every solver's accuracy and times, for the rows of one group."""
    lines = []
    for row in (row for row in record["rows"] if row["group"] == name):
        bar = "" if row["bar"] is None else f"; bar {_number(row['bar'])}"
        if row["beyond"] is not None:
            bar += f", beyond it from {_number(row['beyond'])}"
        title = _cell(nodes.strong("", row["title"]), f": ratio {_number(row['ratio'])}{bar}: ")
        title[0] += [_verdict(row), nodes.Text(f". Accuracy is the {row['measure']}.")]
        title["morecols"] = 5
        lines.append(nodes.row("", title))
        for entry in (row["ours"], *row["peers"]):
            times = [_milliseconds(entry[key]) for key in ("min", "median", "max")]
            words = [entry["name"], entry["setting"], _accuracy(entry), *times]
            lines.append(nodes.row("", *map(_cell, words)))
    head = ["Solver", "Told", "Accuracy", "Least, ms", "Median, ms", "Most, ms"]
    return [_table([30, 16, 18, 12, 12, 12], head, lines)]


class Performance(SphinxDirective):
    """What the file named by the argument says, as far as `show` asks for it."""

    required_arguments = 1
    option_spec: ClassVar = {"show": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Read and check the file, and make the paragraph or the table."""
        relative, absolute = self.env.relfn2path(self.arguments[0])
        self.env.note_dependency(relative)
        if not Path(absolute).exists():
            return [nodes.paragraph("", "Not measured yet.")]
        record = json.loads(Path(absolute).read_text(encoding="utf-8"))
        wrong = measuring.complaints(record)
        if wrong:
            raise self.error(f"{relative}: {'; '.join(wrong)}")
        show = self.options.get("show", "summary")
        if show in ("machine", "summary"):
            return {"machine": machine, "summary": summary}[show](record)
        if show not in {row["group"] for row in record["rows"]}:
            raise self.error(f"{relative}: no row has the group {show!r}")
        return group(record, show)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("performance", Performance)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
