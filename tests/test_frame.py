"""Layout, Makefile, constraints, licences: what a newcomer meets first."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import lock
import pytest
import vendor
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
TARGETS = "book lab slides pdf release test quick test-repeat bench maml gpu clean".split()
FOLDERS = "course_lib notebooks book exercises tests tools .ci book/slides book/appendix".split()
SKIPPED = {".git", ".venv", "_build", "__pycache__", ".ruff_cache", ".pytest_cache", ".hypothesis"}


def project() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return tomllib.load(file)["project"]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_layout(folder):
    assert (ROOT / folder).is_dir()


def test_make_lists_all_targets():
    shown = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    listed = re.findall(r"^  ([a-z-]+) {2,}\S", shown, flags=re.MULTILINE)
    assert listed == ["help", *TARGETS]


@pytest.mark.parametrize("target", TARGETS)
def test_targets_parse(target):
    command = ["make", "--dry-run", "-C", ROOT, target]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_ci_script():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_environment_names_what_is_missing(tmp_path):
    """A Python without venv is told which Debian package to install."""
    fake = tmp_path / "ensurepip.py"
    fake.write_text("raise ImportError\n", encoding="utf-8")
    code = "import sys, environment; environment.make_venv(sys.executable)"
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "tools")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "python3-venv" in done.stderr


def test_environment_and_pyproject_agree():
    import environment

    extras = project()["optional-dependencies"]
    assert {extra for names in environment.SETS.values() for extra in names} == {*extras} - {
        "torch"
    }
    assert extras["torch"] == [environment.TORCH]


def test_constraints_are_portable():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line) for line in lines)
    assert list(constraints()) == sorted(constraints())
    assert not any(lock.LEFT_OUT.match(name) for name in constraints())


def test_constraints_satisfy_pyproject():
    pinned = constraints()
    extras = project()["optional-dependencies"]
    wanted = [*project()["dependencies"], *(r for name in extras for r in extras[name])]
    for requirement in map(Requirement, wanted):
        if requirement.name != "torch":
            assert pinned[lock.normal(requirement.name)] in requirement.specifier, requirement


def test_console_script_and_version():
    assert project()["scripts"] == {"course": "course_lib.homework.cli:main"}
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == project()["version"]
    assert citation["license"] == project()["license"]


def test_licences():
    code, text = (ROOT / "LICENSE").read_text("utf-8"), (ROOT / "LICENSE-TEXT").read_text("utf-8")
    assert code.startswith("BSD 3-Clause License")
    assert "creativecommons.org/licenses/by/4.0/legalcode" in text


def test_vendored_files_are_what_the_record_says():
    assert vendor.main(["--check"]) == 0
    for package in vendor.PACKAGES:
        for name in package.files.values():
            assert (ROOT / package.target / name).exists()


@pytest.mark.slow
def test_no_path_of_a_machine():
    """Nothing names a home folder or a private package index."""
    pattern = re.compile(r"/root/|/home/\w+/|file:///|\+cpu\b")
    allowed = {"tests/test_frame.py", "tools/lock.py", "tools/environment.py"}
    suffixes = {".py", ".md", ".yml", ".toml", ".txt", ".ipynb", ".cff", ".css", ""}
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        name = "/".join(parts)
        if SKIPPED & set(parts) or not path.is_file() or path.suffix not in suffixes:
            continue
        if name in allowed or "/_static/" in name or ".egg-info" in name or "assets" in parts:
            continue
        found = pattern.search(path.read_text(encoding="utf-8"))
        assert found is None, f"{name}: {found and found.group()}"
