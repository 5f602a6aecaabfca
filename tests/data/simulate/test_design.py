"""The checked arguments of a simulated screen."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from cfmvc_scvi.data import simulate_perturbation
from cfmvc_scvi.data.simulate.design import _RANGES, ScreenDesign

DEFAULTS = {name: p.default for name, p in inspect.signature(simulate_perturbation).parameters.items()}


@pytest.fixture
def design() -> ScreenDesign:
    return ScreenDesign(**{name: value for name, value in DEFAULTS.items() if name != "store_true_mean"})


def test_has_every_argument_that_the_random_numbers_depend_on():
    assert [field.name for field in fields(ScreenDesign)] == [name for name in DEFAULTS if name != "store_true_mean"]


def test_cannot_be_changed(design):
    with pytest.raises(FrozenInstanceError):
        design.n_cells = 3


def test_every_number_has_a_range():
    checked = [name for names, _, _ in _RANGES for name in names]
    assert len(checked) == len(set(checked))
    elsewhere = {"doses", "n_panel_genes", "control", "spatial"}  # checked by methods of their own; a truth value
    assert set(checked) | elsewhere == {field.name for field in fields(ScreenDesign)}


def test_a_changed_copy_is_checked_again(design):
    assert replace(design, n_cells=10).n_cells == 10
    with pytest.raises(ValueError, match="n_cells must be an integer of at least 1, got 0"):
        replace(design, n_cells=0)
    with pytest.raises(ValueError, match="mean_library_size must be None or a finite number above 0, got 0"):
        replace(design, mean_library_size=0)


def test_names_pairs_and_doses(design):
    assert design.perturbations == ["P1", "P2", "P3", "P4", "P5"]
    assert len(design.possible_pairs) == 10 and design.possible_pairs[0] == ("P1", "P2")
    assert design.doses_of_arms == [1.0]
    assert replace(design, doses=(3, 10)).doses_of_arms == [3.0, 10.0]
