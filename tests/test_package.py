"""The package as it is installed: what the wheel holds, what importing it does, what its public names say."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

import cfmvc_scvi

ROOT = Path(__file__).parents[1]
EDITABLE = os.environ.get("CFMVC_EDITABLE") == "1"


def public_modules() -> list[str]:
    """The package and its subpackages, private ones left out."""
    found = [module.name for module in pkgutil.iter_modules(cfmvc_scvi.__path__) if module.ispkg]
    return ["cfmvc_scvi", *(f"cfmvc_scvi.{name}" for name in found if not name.startswith("_"))]


def project_version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.skipif(EDITABLE, reason="CFMVC_EDITABLE=1: the checkout is tested on purpose")
def test_tests_run_against_the_installed_package():
    path = Path(cfmvc_scvi.__file__)
    message = f"{path} is not an installed package. Run `make test`, or `make env && .venv/bin/pytest`."
    assert "site-packages" in path.parts, message


@pytest.mark.skipif(EDITABLE, reason="CFMVC_EDITABLE=1: the checkout is tested on purpose")
def test_installed_package_is_this_checkout():
    installed = _contents(Path(cfmvc_scvi.__file__).parent)
    assert installed == _contents(ROOT / "cfmvc_scvi"), "The installed package is stale: run `make env`."


def _contents(package: Path) -> dict[str, bytes]:
    paths = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(package).as_posix(): path.read_bytes() for path in paths}


def test_version_is_the_projects():
    assert cfmvc_scvi.__version__ == version("cfmvc_scvi") == project_version()


@pytest.mark.slow
def test_wheel_holds_the_package_alone(tmp_path):
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    command = [*build, "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name == f"cfmvc_scvi-{project_version()}-py3-none-any.whl"
    assert {name.partition("/")[0] for name in names} == {
        "cfmvc_scvi",
        f"cfmvc_scvi-{project_version()}.dist-info",
    }
    packed = {name for name in names if name.startswith("cfmvc_scvi/")}
    assert packed == {f"cfmvc_scvi/{name}" for name in _contents(ROOT / "cfmvc_scvi")}
    assert "cfmvc_scvi/py.typed" in packed
    assert any(name.endswith("/licenses/LICENSE") for name in names)


# What it builds on may do as it likes when it is imported: that happens before the state is taken.
IMPORT_PROBE = """
import importlib, json, logging, os, random, warnings
for name in ("anndata", "lightning.pytorch", "matplotlib.pyplot", "ot", "pandas", "scanpy", "scvi",
             "scvi.external", "scipy.stats", "sklearn", "torchdiffeq"):
    importlib.import_module(name)
import matplotlib, numpy, scvi, torch

def state():
    return {
        "torch seed": torch.random.get_rng_state().tolist(),
        "torch threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch dtype": str(torch.get_default_dtype()),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch precision": torch.get_float32_matmul_precision(),
        "numpy seed": repr(numpy.random.get_state()),
        "numpy errors": numpy.geterr(),
        "python seed": repr(random.getstate()),
        "warning filters": [repr(entry) for entry in warnings.filters],
        "root logger": [logging.getLogger().level, len(logging.getLogger().handlers)],
        "scvi": [scvi.settings.seed, scvi.settings.batch_size, scvi.settings.verbosity],
        "matplotlib": [matplotlib.get_backend(), repr(dict(matplotlib.rcParams))],
        "environment": sorted(os.environ.items()),
        "files": sorted(os.listdir()),
    }

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    before = state()
    import cfmvc_scvi
    after = state()
changed = [key for key in before if before[key] != after[key]]
print(json.dumps({"changed": changed, "warnings": [str(entry.message) for entry in caught]}))
"""


@pytest.mark.slow
def test_import_has_no_side_effects(tmp_path):
    command = [sys.executable, "-P", "-c", IMPORT_PROBE]
    run = subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    [line] = run.stdout.splitlines()
    assert json.loads(line) == {"changed": [], "warnings": []}


@pytest.mark.parametrize("name", public_modules())
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    assert inspect.getdoc(module), f"{name} has no docstring"
    assert getattr(module, "__all__", None), f"{name} has no `__all__`"
    undocumented = []
    for public in module.__all__:
        undocumented += _undocumented(f"{name}.{public}", getattr(module, public))
    assert undocumented == []


def _undocumented(name: str, obj: object) -> list[str]:
    """The name itself and, of a class, the public members defined in this package, that have no docstring."""
    missing = [] if inspect.getdoc(obj) else [name]
    if not inspect.isclass(obj):
        return missing
    if not obj.__dict__.get("__doc__"):
        missing = [name]
    for base in obj.__mro__:
        if not base.__module__.startswith("cfmvc_scvi"):
            continue
        for member, value in vars(base).items():
            is_documentable = callable(value) or isinstance(value, property | classmethod | staticmethod)
            if not member.startswith("_") and is_documentable and not inspect.getdoc(value):
                missing.append(f"{name}.{member}")
    return missing
