"""Every public name has a docstring and a place on the API page, and the pages name nothing that is not there."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import types
from pathlib import Path

import pytest

import cfmvc_scvi
from cfmvc_scvi import CFMVC

DOCS = Path(__file__).parents[1] / "docs"
PACKAGES = ["data", "metrics", "pathways", "pl", "train", "calibration", "likelihood", "flow", "nn"]

needs_docs = pytest.mark.skipif(not DOCS.is_dir(), reason="docs/ is not part of this distribution")


def public(module: types.ModuleType) -> dict[str, object]:
    """Public names of a package, with their values."""
    return {name: getattr(module, name) for name in module.__all__}


def own_methods() -> dict[str, object]:
    """Public methods and properties that CFMVC defines itself."""
    members = {name: inspect.getattr_static(CFMVC, name) for name in dir(CFMVC) if not name.startswith("_")}
    functions = {}
    for name, member in members.items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        function = inspect.unwrap(function) if callable(function) else None
        if getattr(function, "__module__", "").startswith("cfmvc_scvi"):
            functions[name] = function
    return functions


def test_the_public_names_are_these():
    assert {"train", "predict_perturbation", "get_perturbation_effect", "report", "setup_anndata"} <= set(own_methods())
    assert set(PACKAGES) >= {name for name, value in public(cfmvc_scvi).items() if isinstance(value, types.ModuleType)}


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_have_docstrings(package):
    module = importlib.import_module(f"cfmvc_scvi.{package}")
    assert module.__doc__
    lacking = [name for name, value in public(module).items() if not (inspect.getdoc(value) or "").strip()]
    assert not lacking


def test_methods_have_docstrings():
    lacking = [name for name, function in own_methods().items() if not (function.__doc__ or "").strip()]
    assert not lacking


def test_parameters_are_described():
    """Every parameter of a function with a section of parameters is in it."""
    lacking = []
    functions = {f"CFMVC.{name}": function for name, function in own_methods().items()}
    for package in ("data", "metrics", "pathways", "pl"):
        module = importlib.import_module(f"cfmvc_scvi.{package}")
        functions |= {f"{package}.{name}": value for name, value in public(module).items()}
    for name, function in functions.items():
        doc = inspect.getdoc(function) or ""
        if not inspect.isfunction(function) or "Parameters\n" not in doc or "parameters are those of" in doc:
            continue
        section = doc.split("Parameters\n", 1)[1]
        names = [n for n in inspect.signature(function).parameters if n not in ("self", "cls")]
        lacking += [f"{name}: {n}" for n in names if not re.search(rf"^[*\w, ]*\b{n}\b", section, flags=re.MULTILINE)]
    assert not lacking


@needs_docs
def test_every_package_and_name_is_on_the_api_page():
    page = (DOCS / "api.md").read_text()
    blocks = " ".join(re.findall(r"```\{eval-rst\}(.*?)```", page, flags=re.DOTALL)).split()
    assert not [name for name in cfmvc_scvi.__all__ if name not in blocks]
    assert not [package for package in PACKAGES if package not in blocks]
    template = (DOCS / "_templates/autosummary/package.rst").read_text()
    assert "classes" in template and "functions" in template  # the names of a package are listed from its __all__


@needs_docs
def test_every_method_is_in_the_list_of_tasks():
    page = (DOCS / "api.md").read_text()
    named = set(re.findall(r"cfmvc_scvi\.CFMVC\.(\w+)", page))
    properties = {name for name in own_methods() if isinstance(inspect.getattr_static(CFMVC, name), property)}
    scvi = [base for base in CFMVC.__mro__ if base.__module__.startswith("scvi.")]
    overriding = {name for name in own_methods() if any(name in vars(base) for base in scvi)}
    assert not set(own_methods()) - named - properties - overriding


@needs_docs
def test_pages_are_in_the_table_of_contents():
    listed = (DOCS / "index.md").read_text()
    pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.glob("user_guide/*.md")]
    assert not [page for page in pages if not re.search(rf"^{page}$", listed, flags=re.MULTILINE)]


#: Quoted messages of which a part is filled in, at the place between these.
FILLED_IN = {
    "it looks log-transformed": ("it looks", "log-transformed"),
    "it looks normalised": ("it looks", "normalised"),
    "stage 1 (VAE) diverged": ("stage 1 (VAE)", "diverged in epoch"),
    "stage 2 (flow) diverged": ("stage 2 (flow)", "diverged in epoch"),
    "The training was interrupted in stage": ("The training was interrupted in", "stage"),
    "cell type level(s) the model was not trained with": ("cell type", "level(s) the model was not trained with"),
    "batch level(s) the model was not trained with": ("batch", "level(s) the model was not trained with"),
}


@needs_docs
def test_quoted_messages_are_real():
    literals = []
    for path in Path(cfmvc_scvi.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                literals.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (v.value if isinstance(v, ast.Constant) else "\0" for v in node.values)
                literals.append("".join(parts))
    source = "\n".join(literals)
    lines = (DOCS / "user_guide/troubleshooting.md").read_text(encoding="utf-8").splitlines()
    terms = [line for line, below in zip(lines, lines[1:], strict=False) if below.startswith(": ")]
    phrases = []
    for term in terms:
        quoted = re.findall(r"`` (.*?) ``|(?<!`)`([^`]+)`(?!`)", term)
        for part in [p for pair in quoted for p in re.split(r"\.\.\.|'[^']*'", pair[0] or pair[1])]:
            phrase = part.strip(" ,;'[]")
            phrases += FILLED_IN.get(phrase, [phrase]) if len(phrase) > 3 else []
    assert len(phrases) > 50
    assert not [phrase for phrase in phrases if phrase not in source]
