"""The house rules that can be read off the source: layers, private names of scvi-tools, length, prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = "cfmvc_scvi"
ROOT = Path(__file__).parents[1]
MAX_LINES = 400

#: Level of every unit of the package. A unit imports only from units of lower levels (level 0 is one unit).
LEVELS = {
    "_constants": 0,
    "_messages": 0,
    "_sparse": 0,
    "_types": 0,
    "_compat": 0,
    "flow": 1,
    "nn": 1,
    "metrics": 1,
    "io": 1,
    "data": 1,
    "registration": 2,
    "pl": 2,  # draws tables, arrays and AnnData, so it needs no model; the model's report draws with it
    "likelihood": 2,
    "cells": 3,
    "module": 4,
    "calibration": 5,
    "train": 5,
    "_base": 6,  # what all mixins inherit, those of predictions and those of the model
    "prediction": 7,
    "model": 8,
}
#: Lower, and still not to be imported: the model joins these two.
STRANGERS = {("module", "data")}
#: Libraries that a unit does without.
FORBIDDEN = {"flow": ("scvi", "anndata", "torch.nn"), "nn": ("scvi", "anndata"), "metrics": ("scvi",)}
COMPAT = "_compat.py"


def find_violations(package: Path) -> list[str]:
    """Every breach of the rules in the package at this path, as ``file:line: what``."""
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        problems = [*_import_problems(tree, relative), *_print_problems(tree)]
        found += [f"{relative}:{line}: {problem}" for line, problem in problems]
    return found


def find_long_files(*folders: Path) -> list[str]:
    """Files of more than ``MAX_LINES`` lines."""
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{path}: {n} lines" for path, n in lengths.items() if n > MAX_LINES]


def _import_problems(tree: ast.AST, relative: Path) -> Iterator[tuple[int, str]]:
    unit = relative.parts[0].removesuffix(".py")
    if unit not in LEVELS and unit != "__init__":
        yield 1, f"{unit} has no level"
        return
    for line, name in _imported_names(tree, relative):
        top, _, rest = name.partition(".")
        if top == PACKAGE and unit != "__init__":
            yield from ((line, problem) for problem in _direction_problems(unit, rest.partition(".")[0]))
        if top == "scvi" and relative.as_posix() != COMPAT and _is_private(rest):
            yield line, f"{name} is private to scvi-tools: only {COMPAT} may import it"
        for library in FORBIDDEN.get(unit, ()):
            if name == library or name.startswith(f"{library}."):
                yield line, f"{unit} does without {library}"


def _direction_problems(unit: str, target: str) -> Iterator[str]:
    if target not in LEVELS:
        yield f"{unit} imports {PACKAGE}.{target}, which has no level"
        return
    same_unit = unit == target or LEVELS[unit] == LEVELS[target] == 0
    if not same_unit and LEVELS[target] >= LEVELS[unit]:
        yield f"{unit} (level {LEVELS[unit]}) imports {target} (level {LEVELS[target]})"
    if (unit, target) in STRANGERS:
        yield f"{unit} imports {target}: they do not know each other"


def _imported_names(tree: ast.AST, relative: Path) -> Iterator[tuple[int, str]]:
    """Full dotted names of all imports, wherever they stand, and of attributes read from scvi."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _source(node, relative)
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith("scvi.") and name.replace(".", "").isidentifier():
                yield node.lineno, name


def _source(node: ast.ImportFrom, relative: Path) -> str:
    """Absolute name of the module that ``from ... import`` reads from."""
    if not node.level:
        return node.module
    package = [PACKAGE, *relative.parts[:-1]]
    parents = package[: len(package) - node.level + 1]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _is_private(dotted: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


def _print_problems(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "prints"


def test_package_keeps_the_rules():
    assert find_violations(ROOT / PACKAGE) == []


def test_no_long_files():
    assert find_long_files(ROOT / PACKAGE, ROOT / "tests") == []


def test_every_part_has_a_level():
    parts = {path.name.removesuffix(".py") for path in (ROOT / PACKAGE).iterdir() if _is_part(path)}
    assert parts <= set(LEVELS)


def _is_part(path: Path) -> bool:
    is_code = path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    return is_code and path.name != "__init__.py"


@pytest.mark.parametrize(
    ("file", "source", "problem"),
    [
        ("flow/path.py", "from cfmvc_scvi.nn import mlp", "flow (level 1) imports nn (level 1)"),
        ("nn/decoder.py", "import cfmvc_scvi.module.cfmvc_module", "nn (level 1) imports module (level 4)"),
        ("nn/decoder.py", "from ..model import CFMVC", "nn (level 1) imports model (level 8)"),
        ("nn/decoder.py", "from .. import model", "nn (level 1) imports model (level 8)"),
        ("train/plan.py", "from cfmvc_scvi import model", "train (level 5) imports model (level 8)"),
        ("train/plan.py", "def f():\n    from cfmvc_scvi.prediction import request", "imports prediction (level 7)"),
        (
            "data/setup.py",
            "from cfmvc_scvi.module import CFMVCModule",
            "imports module (level 4)",
        ),
        (
            "module/x.py",
            "from cfmvc_scvi.data import kang2018",
            "they do not know each other",
        ),
        ("pl/plots.py", "from cfmvc_scvi import __version__", "which has no level"),
        ("extra/x.py", "import numpy", "extra has no level"),
        ("_types.py", "from cfmvc_scvi.flow import Solver", "_types (level 0) imports flow (level 1)"),
        ("model/x.py", "from scvi.model._utils import parse_device_args", "is private to scvi-tools"),
        ("model/x.py", "import scvi\nscvi.data._utils.f()", "is private to scvi-tools"),
        ("flow/path.py", "from torch import nn", "flow does without torch.nn"),
        ("flow/path.py", "import scvi", "flow does without scvi"),
        ("model/x.py", "def f():\n    print('done')", "prints"),
    ],
)
def test_checker_catches(tmp_path, file, source, problem):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert any(problem in found for found in find_violations(tmp_path)), find_violations(tmp_path)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("__init__.py", "from cfmvc_scvi.model import CFMVC\nfrom cfmvc_scvi import data"),
        ("flow/__init__.py", "from cfmvc_scvi.flow.path import LinearPath"),
        ("_types.py", "from cfmvc_scvi._constants import AUTO"),
        ("_compat.py", "from scvi.module._constants import MODULE_KEYS"),
        (
            "model/x.py",
            "import scvi\nfrom cfmvc_scvi.data import f\nx = scvi.settings.seed, scvi.__version__",
        ),
        ("module/x.py", "from torch import nn\nfrom cfmvc_scvi.nn import Encoder"),
    ],
)
def test_checker_lets_pass(tmp_path, file, source):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert find_violations(tmp_path) == []


def test_checker_catches_long_files(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * (MAX_LINES + 1))
    (tmp_path / "short.py").write_text("x = 1\n" * MAX_LINES)
    assert find_long_files(tmp_path) == [f"{tmp_path / 'long.py'}: {MAX_LINES + 1} lines"]
