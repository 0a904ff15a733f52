"""Renew constraints.txt: the exact versions of a reproducible installation.

    python tools/lock.py            # resolve all extras anew, write constraints.txt
    python tools/lock.py --check    # do the constraints still satisfy pyproject.toml?

Run it with the Python that the file is for (3.11).  Nothing is installed: pip only resolves.
torch is left out, because its builds for CPU and CUDA bear different version names; pyproject.toml
pins it.  What torch itself brings for CUDA is left out for the same reason: torch pins it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
HEAD = """\
# Exact versions for Python 3.11, made by `python tools/lock.py`; do not edit by hand.
# Use: pip install -c constraints.txt -e '.[book,lab,homework,test,dev,torch]'  (and bench)
# torch is not here: pyproject.toml asks for exactly one version of it, and each platform has its
# own build.  pip resolves this file on Python 3.12 and 3.13 too (`python tools/lock.py --check`).
"""
LEFT_OUT = re.compile(r"^(torch|triton|nvidia-.*|cuda-.*|pip|setuptools|wheel)$")


def normal(name: str) -> str:
    """Return the name as package indices write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def extras() -> list[str]:
    """Return the names of all extras of pyproject.toml."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        return sorted(tomllib.load(file)["project"]["optional-dependencies"])


def resolve(arguments: list[str]) -> dict[str, str]:
    """Let pip resolve the project with all extras; return name -> version without local parts."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
        command += ["--ignore-installed", "--report", str(report), *arguments]
        subprocess.run([*command, f"{ROOT}[{','.join(extras())}]"], check=True)
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
    found = {normal(i["metadata"]["name"]): i["metadata"]["version"] for i in items}
    found.pop("learning-to-regularize")
    return {name: version.split("+")[0] for name, version in sorted(found.items())}


def main(argv: list[str]) -> int:
    """Write the file, or check that it still resolves."""
    if argv == ["--check"]:
        resolve(["-c", str(CONSTRAINTS)])
        return 0
    if argv:
        print(__doc__)
        return 2
    if sys.version_info[:2] != (3, 11):
        print(f"constraints.txt is for Python 3.11; this is {sys.version.split()[0]}")
        return 1
    lines = [f"{n}=={v}" for n, v in resolve([]).items() if not LEFT_OUT.match(n)]
    CONSTRAINTS.write_text(HEAD + "\n".join(lines) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
