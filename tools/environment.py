"""Make .venv, or bring it up to date, for one of the Makefile's targets.

    python3 tools/environment.py book|lab|all|bench [--torch yes|cpu|no]

It runs on the system's Python, before anything is installed, so it uses the standard library alone
and says in words what is missing.  What was installed is remembered in .venv/installed.json; a
second call with the same pyproject.toml and constraints.txt does nothing.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "installed.json")
SETS = {
    "book": ["book", "homework"],
    "lab": ["homework", "lab"],
    "all": ["book", "dev", "homework", "lab", "test"],
    "bench": ["bench"],
}
# Measured on Debian 12 with Python 3.11: download, disk, minutes on a fast line (2 cores).
COSTS = {
    "book": "about 100 MB to fetch, 0.9 GB on disk, 2 to 3 minutes",
    "lab": "about 50 MB to fetch, 0.5 GB on disk, 1 to 2 minutes",
    "all": "about 160 MB to fetch, 1.1 GB on disk, 3 to 4 minutes",
    "bench": "about 290 MB to fetch, 1.3 GB on disk, 3 to 4 minutes; it needs PyTorch",
}
TORCH_COSTS = {
    "yes": "PyTorch comes on top: on Linux the build with CUDA, several GB; TORCH=cpu takes the "
    "build without CUDA (about 0.2 GB), TORCH=no leaves it out",
    "cpu": "PyTorch's build without CUDA comes on top: about 0.2 GB to fetch",
    "no": "without PyTorch: sections that need it say so",
}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH = "torch==2.13.0"


def find_python():
    """Return a Python of version 3.11 or later, or stop with words."""
    names = [sys.executable, "python3", "python3.13", "python3.12", "python3.11"]
    for name in names:
        path = shutil.which(name) if name else None
        if not path:
            continue
        code = "import sys; raise SystemExit(sys.version_info < (3, 11))"
        if subprocess.call([path, "-c", code], stderr=subprocess.DEVNULL) == 0:
            return path
    sys.exit(
        "This project needs Python 3.11 or later; found %s and no newer one on the PATH.\n"
        "Install one, or name it: make PYTHON=/path/to/python3.11 ..." % sys.version.split()[0]
    )


def make_venv(python):
    """Make .venv, or say which Debian package is missing."""
    code = "import ensurepip, venv"
    if subprocess.call([python, "-c", code], stderr=subprocess.DEVNULL) != 0:
        sys.exit(
            "This Python has no venv module. On Debian and Ubuntu it comes with the package "
            "python3-venv:\n    sudo apt-get install python3-venv"
        )
    print("Making .venv with", python)
    subprocess.check_call([python, "-m", "venv", VENV])


def digest(extras, torch):
    """Return a word that changes when what is to be installed changes."""
    total = hashlib.sha256(json.dumps([extras, torch]).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(ROOT, name), "rb") as file:
            total.update(file.read())
    return total.hexdigest()


def read_stamp():
    """Return what the last call recorded."""
    if not os.path.exists(STAMP) or not os.path.exists(PYTHON):
        return {}
    with open(STAMP, encoding="utf-8") as file:
        return json.load(file)


def install(extras, torch):
    """Install the project with its extras under the constraints."""
    pip = [PYTHON, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off"]
    if not sys.stdout.isatty():
        pip.append("--quiet")
    if torch == "cpu":
        subprocess.check_call([*pip, TORCH, "--index-url", CPU_INDEX])
    if torch in ("yes", "cpu"):
        extras = [*extras, "torch"]
    constraints = os.path.join(ROOT, "constraints.txt")
    project = "%s[%s]" % (ROOT, ",".join(extras))
    subprocess.check_call([*pip, "-c", constraints, "-e", project])


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=sorted(SETS))
    parser.add_argument("--torch", choices=sorted(TORCH_COSTS), default="yes")
    options = parser.parse_args()

    stamp = read_stamp()
    had = stamp.get("extras", [])
    extras = sorted(set(had) | set(SETS[options.set]))
    word = digest(extras, options.torch)
    if stamp.get("digest") == word:
        return
    start = time.time()
    missing = sorted(set(extras) - set(had))
    if missing:
        print("Installing into .venv:", COSTS[options.set] + ".")
        print(TORCH_COSTS[options.torch] + ".", flush=True)
    else:
        print("pyproject.toml or constraints.txt changed: bringing .venv up to date.", flush=True)
    if not os.path.exists(PYTHON):
        make_venv(find_python())
    install(extras, options.torch)
    with open(STAMP, "w", encoding="utf-8") as file:
        json.dump({"digest": word, "extras": extras, "torch": options.torch}, file)
    print("Installed in %d s." % (time.time() - start), flush=True)


if __name__ == "__main__":
    main()
