"""Renew the JavaScript and fonts that the book carries: its pages ask nothing of the network.

    python tools/vendor.py            # fetch with `npm pack`, check the sums, unpack the subset
    python tools/vendor.py --check    # compare the sizes and versions that VENDORED.md states

The packages, versions and sums stand below; a new version is entered here, and the book's tests
(no failed request, mathematics set, sliders that move a figure) say whether it works.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Package:
    """One npm package: what is taken from it (paths or folders) and where it goes."""

    name: str
    version: str
    licence: str
    sha256: str
    target: str
    files: dict[str, str]


PACKAGES = (
    Package(
        "mathjax",
        "3.2.2",
        "Apache-2.0",
        "1b9c0a1c44df864e915690558e72adb9cc5203360daefd385084ced3b6c64c09",
        "book/_static/mathjax",
        {
            "LICENSE": "LICENSE",
            "es5/tex-chtml.js": "tex-chtml.js",
            "es5/output/chtml/fonts/woff-v2": "output/chtml/fonts/woff-v2",
            "es5/input/tex/extensions": "input/tex/extensions",
            "es5/a11y": "a11y",
            "es5/sre/mathmaps/base.json": "sre/mathmaps/base.json",
            "es5/sre/mathmaps/en.json": "sre/mathmaps/en.json",
        },
    ),
    Package(
        "requirejs",
        "2.3.8",
        "MIT",
        "777158e89275e16bd51aec3ef714fbcb5dc45789e7078659933bc814916d7dec",
        "book/_static/widgets",
        {"require.js": "require.js"},
    ),
    Package(
        "@jupyter-widgets/html-manager",
        "1.0.15",
        "BSD-3-Clause",
        "2b9d65cb7913e1c7d671757a10008b32c9c2448d4429513371e55c07d6107638",
        "book/_static/widgets",
        {
            "dist/embed-amd.js": "embed-amd.js",
            "dist/1551f4f60c37af51121f.woff2": "1551f4f60c37af51121f.woff2",
            "dist/7a3337626410ca2f4071.woff2": "7a3337626410ca2f4071.woff2",
            "dist/d878b0a6a1144760244f.woff2": "d878b0a6a1144760244f.woff2",
        },
    ),
    Package(
        "@fontsource/source-serif-4",
        "5.3.1",
        "OFL-1.1",
        "54b7898afa20cf4b2d807bbf2b5a2f865e28a83db8a5fcc563dafce5ecb5e7c8",
        "book/_static/fonts",
        {
            "LICENSE": "LICENSE",
            **{
                f"files/source-serif-4-{part}-{style}.woff2": f"source-serif-4-{part}-{style}.woff2"
                for part in ("latin", "latin-ext", "greek")
                for style in ("400-normal", "400-italic", "600-normal")
            },
        },
    ),
    Package(
        "axe-core",
        "4.14.0",
        "MPL-2.0",
        "2277b0a3ef47af9b52497faa3e71598e86e0a0e5e6eb295207a5657ede4709af",
        "tests/assets",
        {"axe.min.js": "axe.min.js", "LICENSE": "axe-core.LICENSE"},
    ),
)


def fetch(package: Package, folder: Path) -> Path:
    """Fetch the package's archive with npm and check its sum."""
    spec = f"{package.name}@{package.version}"
    out = subprocess.run(
        ["npm", "pack", "--silent", spec], cwd=folder, check=True, capture_output=True, text=True
    )
    archive = folder / out.stdout.split()[-1]
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != package.sha256:
        raise ValueError(f"{spec}: expected sha256 {package.sha256}, got {found}")
    return archive


def unpack(package: Package, archive: Path) -> None:
    """Copy the wanted files into the repository."""
    with tempfile.TemporaryDirectory() as folder, tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
        for source, target in package.files.items():
            source_path = Path(folder, "package", source)
            target_path = ROOT / package.target / target
            if source_path.is_dir():
                shutil.rmtree(target_path, ignore_errors=True)
                shutil.copytree(source_path, target_path)
            else:
                target_path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source_path, target_path)


def table() -> str:
    """Return VENDORED.md: name, version, licence, place and size of each package."""
    lines = [
        "# Vendored JavaScript and fonts",
        "",
        "The pages of the book load these files from the book itself; no page asks the network for",
        "anything. `python tools/vendor.py` renews them; versions and sums stand in that script.",
        "",
        "| package | version | licence | kept in | size |",
        "|---|---|---|---|---|",
    ]
    for package in PACKAGES:
        paths = [ROOT / package.target / name for name in package.files.values()]
        files = [f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file()]
        size = sum(f.stat().st_size for f in files) / 1e6
        lines.append(
            f"| {package.name} | {package.version} | {package.licence} | `{package.target}` "
            f"| {size:.1f} MB |"
        )
    lines += [
        "",
        "The full texts of the licences of RequireJS (MIT) and of the widgets' html-manager",
        "(BSD-3-Clause) stand in `book/_static/widgets/LICENSES.txt`; the others bring theirs.",
        "",
    ]
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Renew all packages, or check that VENDORED.md says what is there."""
    record = ROOT / "book" / "_static" / "VENDORED.md"
    if argv == ["--check"]:
        if record.read_text(encoding="utf-8") != table():
            print("book/_static/VENDORED.md does not say what is there; run python tools/vendor.py")
            return 1
        return 0
    if argv:
        print(__doc__)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        for package in PACKAGES:
            print(f"{package.name} {package.version}")
            unpack(package, fetch(package, Path(folder)))
    record.write_text(table(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
