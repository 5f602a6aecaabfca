"""The house rules that can be read off the source: layers, private names of other libraries, length, prints, tests."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import cfmvc_scvi
from cfmvc_scvi._base import STATE

PACKAGE = "cfmvc_scvi"
ROOT = Path(__file__).parents[1]
MAX_LINES = 400

#: Level of every unit of the package. A unit imports only from units of lower levels (level 0 is one unit).
LEVELS = {
    "_arguments": 0,
    "_constants": 0,
    "_messages": 0,
    "_rows": 0,
    "_sparse": 0,
    "_types": 0,
    "_compat": 0,
    "flow": 1,
    "nn": 1,
    "metrics": 1,
    "io": 1,
    "registration": 2,
    "pathways": 2,  # tables in, tables out
    "pl": 2,  # draws tables, arrays and AnnData, so it needs no model; the model's report draws with it
    "likelihood": 2,
    "cells": 3,
    "data": 3,  # for users: an importer checks counts as the registration does
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
#: Private names of other libraries that stand outside _compat.py: file and name, and why.
FOREIGN_PRIVATE = {
    ("model/cfmvc.py", "_get_init_params"): "scvi-tools' own models call it in __init__; that is how a model is saved",
    ("model/cfmvc.py", "_get_setup_method_args"): "scvi-tools' own models call it in setup_anndata",
    ("train/checkpoint.py", "_current_step"): "scvi-tools' early stopping keeps its epochs there and saves no state",
}
#: Text that looks like a private name and is none.
NO_NAME = {
    ("data/datasets.py", "_original"): "ending of a column",
    ("model/trajectory.py", "_t"): "ending of a cell's name",
    ("model/criticism.py", "_drawn"): "ending of a column",
    ("pl/_criticism.py", "_drawn"): "ending of a column",
    ("pl/_training.py", "_train"): "ending of a metric",
    ("model/represent.py", "_scvi"): "start of scvi-tools' columns",
    ("prediction/result.py", "_of_source"): "ending of a column",
    ("prediction/result.py", "_scvi"): "start of scvi-tools' columns",
}
#: Private names of other libraries' classes that a class of the package defines anew, as those libraries ask or allow.
OVERRIDDEN = {
    ("CFMVCModule", "_get_generative_input"): "scvi-tools asks every module for it",
    ("CFMVCModule", "_get_inference_input"): "scvi-tools asks every module for it",
    ("RepresentationMixin", "_validate_anndata"): "data that scvi-tools' methods are handed: genes aligned first",
    ("VAETrainingPlan", "_optimizer_creator_fn"): "where scvi-tools' plan makes its optimiser",
}
#: Attributes that train/ reads or sets by a name in a string: file and text of the call, and why.
BY_NAME = {
    ("train/checkpoint.py", "vars(tracker)"): "counters of Lightning's loops, which differ in their fields",
    ("train/checkpoint.py", "vars(callback)"): "counters of scvi-tools' early stopping",
    ("train/checkpoint.py", "getattr(trainer.logger, 'experiment', None)"): "loggers that are not scvi-tools'",
    ("train/checkpoint.py", "getattr(getattr(trainer.logger, 'experiment', None), 'data', None)"): "the same",
    ("train/run.py", "__dict__"): "a callback of the caller's shares its attributes with ours",
    ("train/state.py", "getattr(self, field.name)"): "fields of the dataclass itself",
    ("train/guards.py", "getattr(callback, 'load_best_on_end', False)"): "callbacks that are not SaveCheckpoint",
}
#: Files without a test file of their name, and where their tests are.
TESTED_ELSEWHERE = {
    "_compat.py": "model/test_memory.py and model/test_persist_files.py: what it does is seen in scvi-tools alone",
    "_constants.py": "names and numbers, without behaviour",
    "likelihood/dispersion.py": "module/test_dispersion.py",
    "module/batch_effects.py": "module/test_dispersion.py and model/test_generative.py",
    "cells/count_source.py": "cells/test_count_loader.py, which runs every source",
    "data/simulate/cells.py": "data/simulate/test_screen.py",
    "data/simulate/draw_truth.py": "data/simulate/test_screen.py",
    "data/simulate/truth.py": "data/simulate/test_screen.py: what the simulation says of itself",
    "io/files.py": "io/test_archive.py, and whatever writes",
    "metrics/_arrays.py": "the metrics that read their input by it",
    "metrics/_task.py": "metrics/test_table.py and metrics/test_evaluate.py",
    "nn/blocks.py": "nn/test_encoder.py and nn/test_flow_field.py",
    "metrics/_ceiling.py": "metrics/test_kang_protocol.py",
    "metrics/_projection.py": "metrics/test_evaluate.py",
    "pl/_effects.py": "pl/test_tables.py",
    "prediction/trained.py": "prediction/test_request.py and prediction/test_support.py",
    "pl/_page.py": "pl/test_tables.py and model/test_report.py",
    "pl/_read_cells.py": "pl/test_cells.py",
    "pl/_style.py": "every plot",
    "pl/_training.py": "pl/test_tables.py",
}
#: Test files of no single file: properties of a room, or of the model as a whole.
OF_THE_WHOLE = {
    "flow/test_gaussian.py": "the flow between two Gaussians, whose solution is known",
    "metrics/test_kang_protocol.py": "the metrics together, on measured cells",
    "metrics/test_peers.py": "the benchmark of other methods",
    "metrics/test_suite.py": "the benchmark over all kinds of tasks",
    "model/test_generative.py": "what stage 1 learns of simulated truths",
    "model/test_memory.py": "what a model holds on to",
    "module/test_dispersion.py": "start values of dispersions and offsets, and where they are used",
    "model/test_numerics.py": "precision, extreme data, seeds",
    "model/test_properties.py": "invariances, by hypothesis",
    "model/test_scvi_methods.py": "the methods that come from scvi-tools",
}


def find_violations(package: Path, house: ModuleType) -> list[str]:
    """Every breach of the rules in the package at this path, as ``file:line: what``."""
    found, own = [], _own_names(package)
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        problems = [
            *_import_problems(tree, relative, house),
            *_private_problems(tree, relative, own),
            *_print_problems(tree),
        ]
        if relative.parts[0] == "train":
            problems += _string_problems(tree, relative)
        found += [f"{relative}:{line}: {problem}" for line, problem in problems]
    return found


def find_long_files(*folders: Path) -> list[str]:
    """Files of more than ``MAX_LINES`` lines."""
    paths = sorted(path for folder in folders for path in folder.rglob("*.py"))
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return [f"{path}: {n} lines" for path, n in lengths.items() if n > MAX_LINES]


def _import_problems(tree: ast.AST, relative: Path, house: ModuleType) -> Iterator[tuple[int, str]]:
    unit = relative.parts[0].removesuffix(".py")
    if unit not in LEVELS and unit != "__init__":
        yield 1, f"{unit} has no level"
        return
    for line, name in house.imported_names(tree, relative):
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


def _own_names(package: Path) -> set[str]:
    """Names that the package itself defines: functions, classes, variables, attributes of self."""
    names: set[str] = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                names.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                names |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
    return names


def _private_problems(tree: ast.AST, relative: Path, own: set[str]) -> Iterator[tuple[int, str]]:
    """Attributes, and texts that could be their names, that are private and that the package does not define."""
    file = relative.as_posix()
    if file == COMPAT:
        return
    for node in ast.walk(tree):
        name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "value", None)
        if not isinstance(name, str) or not re.fullmatch(r"_[A-Za-z]\w*", name) or name in own:
            continue
        if (file, name) not in FOREIGN_PRIVATE | NO_NAME:
            yield node.lineno, f"{name} is private to another library"


def _string_problems(tree: ast.AST, relative: Path) -> Iterator[tuple[int, str]]:
    """Attributes by name, and names of the model's state in strings: train/ reaches the model by ModelState alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in {*STATE, "is_trained_", "history_"}:
            yield node.lineno, f"{node.value!r} is an attribute of the model"
        called = isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "setattr", "hasattr", "vars")
        text = ast.unparse(node) if called else getattr(node, "attr", None)
        if (called or text in ("__dict__", "__setattr__")) and (relative.as_posix(), text) not in BY_NAME:
            yield node.lineno, f"{text} names an attribute in a string"


def _is_private(dotted: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


def _print_problems(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno, "prints"


def test_package_keeps_the_rules(house):
    assert find_violations(ROOT / PACKAGE, house) == []


def test_nothing_imports_upward_or_in_a_circle(house):
    graph = house.import_graph(ROOT / PACKAGE)
    assert len(graph) > 50 and "train/state.py" in graph["train/run.py"]
    assert house.upward_imports(ROOT / PACKAGE, LEVELS) == [] and house.circles(graph) == []
    assert house.declared_levels(ROOT) == LEVELS


def test_exceptions_are_needed():
    """Every entry of the lists above names something that is there."""
    text = {path.relative_to(ROOT / PACKAGE).as_posix(): path.read_text() for path in (ROOT / PACKAGE).rglob("*.py")}
    assert [key for key in FOREIGN_PRIVATE | NO_NAME if key[1] not in text[key[0]]] == []
    calls = {file: {ast.unparse(node) for node in ast.walk(ast.parse(text[file]))} for file, _ in BY_NAME}
    assert [k for k in BY_NAME if k[1] not in calls[k[0]] and k[1] not in text[k[0]]] == []
    assert set(TESTED_ELSEWHERE) <= set(text)
    assert [file for file in OF_THE_WHOLE if not (ROOT / "tests" / file).is_file()] == []


def test_private_methods_of_other_libraries_are_replaced_where_they_ask_for_it():
    found = set()
    for module in pkgutil.walk_packages(cfmvc_scvi.__path__, f"{PACKAGE}."):
        for kind in vars(importlib.import_module(module.name)).values():
            if inspect.isclass(kind) and kind.__module__ == module.name:
                own = {name for name, value in vars(kind).items() if _is_private(name) and callable(value)}
                foreign = [base for base in kind.__mro__ if not base.__module__.startswith(PACKAGE)]
                found |= {(kind.__name__, name) for name in own for base in foreign if name in vars(base)}
    made_by_torch = {key for key in found if key[1] == "_backward_cls"}
    assert found - made_by_torch == set(OVERRIDDEN)


def test_every_file_has_a_test_file_of_its_name():
    """``tests/room/test_file.py``, or several that go on: ``test_file_more.py``."""
    missing = []
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        relative = path.relative_to(ROOT / PACKAGE)
        folder, name = ROOT / "tests" / relative.parent, relative.stem.lstrip("_")
        if path.name != "__init__.py" and not (folder / f"test_{name}.py").is_file():
            missing.append(relative.as_posix())
    assert set(missing) <= set(TESTED_ELSEWHERE)


def test_every_test_file_of_a_room_has_a_file_of_its_name():
    strange = []
    for path in sorted((ROOT / "tests").glob("*/**/test_*.py")):
        relative = path.relative_to(ROOT / "tests")
        sources = {source.stem.lstrip("_") for source in (ROOT / PACKAGE / relative.parent).glob("*.py")} - {""}
        name = relative.stem.removeprefix("test_")
        if not any(name == source or name.startswith(f"{source}_") for source in sources):
            strange.append(relative.as_posix())
    assert set(strange) == set(OF_THE_WHOLE)


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
        ("model/x.py", "def f(model):\n    return model._adata_manager", "_adata_manager is private to another"),
        ("train/x.py", "def f(model):\n    model._fast = 1", "_fast is private to another"),
        ("nn/x.py", "name = '_hidden'", "_hidden is private to another"),
        ("train/x.py", "def f(model):\n    setattr(model, name, 1)", "names an attribute in a string"),
        ("train/x.py", "def f(model):\n    vars(model).update(x=1)", "vars(model) names an attribute"),
        ("train/x.py", "key = 'split_'", "'split_' is an attribute of the model"),
    ],
)
def test_checker_catches(tmp_path, house, file, source, problem):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert any(problem in found for found in find_violations(tmp_path, house)), find_violations(tmp_path, house)


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
        ("module/x.py", "class A:\n    def f(self):\n        self._own = 1\n        return self._own, '_own'"),
        ("model/x.py", "def f(model):\n    return getattr(model, 'split_')"),
    ],
)
def test_checker_lets_pass(tmp_path, house, file, source):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(source)
    assert find_violations(tmp_path, house) == []


def test_checker_catches_long_files(tmp_path):
    (tmp_path / "long.py").write_text("x = 1\n" * (MAX_LINES + 1))
    (tmp_path / "short.py").write_text("x = 1\n" * MAX_LINES)
    assert find_long_files(tmp_path) == [f"{tmp_path / 'long.py'}: {MAX_LINES + 1} lines"]
