"""The examples in docstrings run, and show what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import cfmvc_scvi

#: Objects whose examples are not run, each with the reason. Every other example of the package is.
NOT_RUN = {
    "cfmvc_scvi.model.cfmvc.CFMVC": "trains a model of a user's own cells; tutorials/quickstart.ipynb runs the same",
    "cfmvc_scvi.model.design.DesignMixin.suggest_experiments": "asks a trained model; tests/model/test_design.py does",
    "cfmvc_scvi.model.query.QueryMixin.load_query_data": "asks a trained model; tests/model/test_query.py does",
    "cfmvc_scvi.model.rank.RankingMixin.rank_perturbations": "asks a trained model; tests/model/test_rank.py does",
}


def find_examples() -> dict[str, doctest.DocTest]:
    """Every docstring of the package with examples, by the dotted name of its object."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for module in pkgutil.walk_packages(cfmvc_scvi.__path__, prefix="cfmvc_scvi."):
        loaded = importlib.import_module(module.name)
        found |= {example.name: example for example in finder.find(loaded, module.name) if example.examples}
    return found


EXAMPLES = find_examples()


def test_examples_are_found_and_exceptions_exist():
    with_marks = [p for p in Path(cfmvc_scvi.__file__).parent.rglob("*.py") if ">>> " in p.read_text(encoding="utf-8")]
    modules = {example.globs["__name__"] for example in EXAMPLES.values()}
    assert len(with_marks) == len(modules) > 5
    assert set(NOT_RUN) <= set(EXAMPLES)


@pytest.mark.parametrize("name", sorted(set(EXAMPLES) - set(NOT_RUN)))
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report: list[str] = []
    with np.printoptions(legacy=False):
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(
            EXAMPLES[name], out=report.append, clear_globs=False
        )
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)
