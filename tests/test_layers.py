"""The architecture: imports go one way, the public names are these, the import is light."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "course_lib"

# What each module may import from course_lib. A module that does not exist yet may be absent;
# one that is not in this table fails the test.
_BASE = {"arrays", "iterate", "operators", "functionals"}
LAYERS: dict[str, set[str]] = {
    "arrays": set(),
    "iterate": {"arrays"},
    "operators": {"arrays", "iterate"},
    "functionals": {"arrays", "iterate", "operators"},
    "linear": _BASE,
    "proximal": _BASE | {"linear"},
    "filters": _BASE | {"linear", "proximal"},
    "choice": _BASE | {"linear", "proximal", "filters"},
    "autodiff": {"arrays"},
    "implicit": _BASE | {"linear", "proximal", "autodiff"},
    "bilevel": _BASE | {"linear", "proximal", "implicit", "autodiff"},
    "meta": _BASE | {"linear", "proximal", "implicit", "bilevel", "autodiff"},
    "problems": _BASE,
    "checks": _BASE,
}
MATHEMATICS = tuple(name for name in LAYERS if (LIBRARY / f"{name}.py").exists())
ANYTHING = {"plotting", "explorers"}

# The only modules that may import these packages at all, and those that may do so anywhere but at
# the top: inside the function that needs them.
ONLY_IN = {"matplotlib": {"plotting"}, "ipywidgets": {"explorers"}, "torch": {"autodiff"}}
LATE = {"scipy", "skimage", "sklearn", "PIL", "tqdm"}
AT_THE_TOP = {"numpy", "array_api_compat"}

PUBLIC = {
    "implicit": "Solution batch_norm batch_norm_vjp error_bound fixed_point_jvp fixed_point_vjp "
    "ilu jacobi lavrentiev layer lbfgs linearize low_rank neumann neumann_tail "
    "refine root_jvp root_vjp solve support_jvp support_vjp sylvester sylvester_jvp "
    "sylvester_vjp",
    "bilevel": "Hypergradient Inner descend elastic_net evidence experts federated lasso "
    "newton_cg newton_rule ode tikhonov tikhonov_fourier unrolled",
    "autodiff": "all_reduce attach batched gradient gradient_and_hvp hvp partials",
    "arrays": "as_choice as_count as_real as_scalar asarray_like check_alike detach inner "
    "is_sparse namespace norm require shape_of to_float to_numpy zeros",
    "checks": "Check GradientTable adjoint gradients prox slope taylor",
    "choice": "Choice Fit Smoother discrepancy evidence gcv golden_section k_fold l_curve loocv "
    "oracle smoother sure",
    "filters": "Spectrum StandardForm cgls_factors decompose filtered landweber_factors "
    "ritz_values standard_form tikhonov tikhonov_factors tsvd tsvd_factors",
    "functionals": "Functional box elastic_net group_l1 l1 l1_ball least_squares separable "
    "soft_threshold squared_l2 total_variation",
    "iterate": "Result StoppingRule discrepancy_rule gradient_rule residual_rule run",
    "linear": "bicgstab cg cgls gmres landweber minres nu_method",
    "meta": "CheckpointCost MetaGradient Network Task Update adam batched_maml checkpoint_cost "
    "clip ewc gradient_step heavy_ball hypergradient_descent imaml learned_start learned_step "
    "maml of_weights reptile task truncated_training",
    "operators": "LinearOperator as_operator convolution diagonal difference golub_kahan gradient "
    "haar identity integration matrix radon stack subsampling whitening",
    "problems": "FewShot Pictures Problem add_noise blocks blur_1d blur_family compressed_sensing "
    "deblurring deriv2 digits gravity heat phillips picture pictures psf_disk psf_gaussian "
    "psf_motion shaw sinusoids source_problem spikes tomography",
    "proximal": "admm admm_rule elastic_net fista gap_rule gradient_descent ista lasso "
    "lasso_gap_rule least_squares_step pdhg prox_gradient_rule prox_tv tv_deblur",
}

# What the book teaches; behind it stand arrays, test problems and checks.
ALGORITHMS = tuple(name for name in MATHEMATICS if name not in ("arrays", "problems", "checks"))
LINE_BUDGET = 2590


def imports(path: Path, *, top_only: bool = False) -> list[tuple[str, str]]:
    """(package, module) of every import, those inside functions too; relative ones resolved."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = ("course_lib", *path.relative_to(LIBRARY).parent.parts)
    found = []
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found.append((module.split(".")[0], module))
            if module.count(".") == 0 or module == "course_lib":
                found += [(module.split(".")[0], f"{module}.{alias.name}") for alias in node.names]
    return found


def inside(path: Path) -> set[str]:
    """Names of the modules of course_lib that a file imports."""
    return {
        module.split(".")[1]
        for package, module in imports(path)
        if package == "course_lib" and module.count(".")
    }


def files(name: str) -> list[Path]:
    path = LIBRARY / name
    return sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def modules() -> list[str]:
    return sorted(
        path.stem
        for path in LIBRARY.iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    )


def test_every_module_has_a_place():
    assert set(modules()) <= set(LAYERS) | ANYTHING | {"homework"}
    import course_lib

    assert set(course_lib.__all__) == set(modules())


@pytest.mark.parametrize("name", MATHEMATICS)
def test_imports_go_one_way(name):
    extra = inside(LIBRARY / f"{name}.py") - LAYERS[name]
    assert not extra, f"{name} imports {extra}, which stand above it or beside it"


def test_the_table_itself_has_no_cycle():
    order = list(LAYERS)
    for name, below in LAYERS.items():
        assert all(order.index(other) < order.index(name) for other in below)


@pytest.mark.parametrize("path", files("homework"), ids=lambda path: path.name)
def test_homework_imports_no_mathematics(path):
    allowed = {"homework", "__version__"}
    assert inside(path) <= allowed


@pytest.mark.parametrize("name", [*MATHEMATICS, "plotting"])
def test_nothing_but_explorers_imports_what_stands_above(name):
    assert not inside(LIBRARY / f"{name}.py") & {"homework", "explorers"}
    if name != "plotting":
        assert "plotting" not in inside(LIBRARY / f"{name}.py")


@pytest.mark.parametrize("package", ONLY_IN)
def test_heavy_packages_stay_in_their_module(package):
    for path in sorted(LIBRARY.rglob("*.py")):
        if package in {name for name, _ in imports(path)}:
            assert path.stem in ONLY_IN[package], f"{path.name} imports {package}"


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_imports_little_at_the_top(name):
    """SciPy's submodules and the pictures load when they are used."""
    path = LIBRARY / f"{name}.py"
    outside = {package for package, _ in imports(path) if package not in sys.stdlib_module_names}
    assert outside <= AT_THE_TOP | LATE | {"course_lib"} | {
        package for package, users in ONLY_IN.items() if name in users
    }
    top = {package for package, _ in imports(path, top_only=True)}
    assert not top & LATE


@pytest.mark.parametrize("name", MATHEMATICS)
def test_public_names(name):
    """A new public name is a decision: write it into the table above, and into the changelog."""
    module = importlib.import_module(f"course_lib.{name}")
    assert name in PUBLIC, f"freeze the public names of {name}"
    assert module.__all__ == sorted(module.__all__)
    assert set(module.__all__) == set(PUBLIC[name].split())
    assert all(hasattr(module, public) for public in module.__all__)


# Measured in a fresh process: what `import course_lib` and its core bring in, and how long the
# first takes. The median of three, because the clock of a busy machine is no measure.
PROBE = """
import json, sys, time
before = set(sys.modules)
start = time.perf_counter()
import course_lib
alone = time.perf_counter() - start
def loaded():
    return sorted(name for name in set(sys.modules) - before)
bare = loaded()
from course_lib import arrays, iterate, operators, linear, filters, problems, checks
core = time.perf_counter() - start
import numpy as np
filters.tikhonov(np.eye(2), np.ones(2), 1.0)
print(json.dumps([alone, bare, core, loaded()]))
"""


@pytest.fixture(scope="module")
def probes() -> list:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", PROBE],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for _ in range(3)
    ]


HEAVY = ("torch", "matplotlib", "ipywidgets", "skimage", "PIL", "IPython", "tqdm")


def test_import_brings_in_nothing_heavy(probes, report_line):
    bare, used = probes[0][1], probes[0][3]
    assert not [name for name in used if name.split(".")[0] in HEAVY]
    assert not [name for name in used if name.startswith("scipy.")]
    # The bare import brings in the package alone: modules load when they are used.
    assert [name for name in bare if name.startswith("course_lib")] == ["course_lib"]
    # A figure to read, not a bound: no test depends on a clock. The aim is below 0.3 s.
    alone, core = (sorted(probe[i] for probe in probes)[1] for i in (0, 2))
    report_line(
        f"import course_lib: {alone:.3f} s; all of its mathematics, NumPy with it: "
        f"{core:.3f} s (aim: below 0.3 s)"
    )


def test_modules_are_lazy():
    import course_lib

    assert course_lib.filters is importlib.import_module("course_lib.filters")
    assert set(dir(course_lib)) == set(course_lib.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        course_lib.nothing  # noqa: B018


def logical_lines(path: Path) -> int:
    """Statements, without docstrings, imports, and the rules that input must keep."""
    rules = ("require", "check_alike", "_check", "as_scalar")

    def counts(node: ast.AST) -> bool:
        if not isinstance(node, ast.stmt) or isinstance(node, (ast.Import, ast.ImportFrom)):
            return False
        value = node.value if isinstance(node, ast.Expr) else None
        rule = isinstance(value, ast.Call) and getattr(value.func, "id", "") in rules
        return not (isinstance(value, ast.Constant) or rule)

    return sum(counts(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def test_line_budget(report_line):
    """Logical lines of mathematics (the aim is 2,500): delete the option that no chapter uses."""
    lines = {name: logical_lines(LIBRARY / f"{name}.py") for name in MATHEMATICS}
    total = sum(lines[name] for name in ALGORITHMS)
    parts = ", ".join(f"{name} {count}" for name, count in lines.items())
    report_line(f"logical lines of algorithms: {total} of {LINE_BUDGET} ({parts})")
    assert total <= LINE_BUDGET


def test_nothing_prints():
    """The mathematics has no print: `run` shows progress when it is asked to, and no other."""
    for name in MATHEMATICS:
        tree = ast.parse((LIBRARY / f"{name}.py").read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]


def test_sizes_of_functions():
    """Bodies stay short: 9 of 10 have at most 20 logical lines, and no algorithm more than 25."""
    sizes = {}
    for name in MATHEMATICS:
        for node in ast.walk(ast.parse((LIBRARY / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                inner = [n for n in ast.walk(node) if isinstance(n, ast.stmt)][1:]
                count = sum(
                    not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))
                    for n in inner
                )
                sizes[f"{name}.{node.name}"] = count
    ranked = sorted(sizes.values())
    assert ranked[int(0.9 * len(ranked))] <= 20
    assert max(sizes.values()) <= 40
    # The driver of all iterations is the one exception.
    long = {name for name, size in sizes.items() if size > 25 and name.split(".")[0] in ALGORITHMS}
    assert long <= {"iterate.run"}


def test_no_path_of_a_machine():
    """Neither in the library nor in its tests: a checkout works wherever it lies."""
    suspicious = ("/home/", "/Users/", "C:\\")
    for path in sorted(LIBRARY.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in suspicious if word in text], path.name
