"""Checks of arguments that many functions share."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cfmvc_scvi._arguments import cells_and_perturbation, cells_of, whole_number

CELLS = AnnData(np.ones((2, 3), dtype=np.float32))


@pytest.mark.parametrize("value", [1, 128, np.int64(3), np.uint8(3)])
def test_whole_numbers_of_any_type(value):
    assert whole_number("n", value) == value and type(whole_number("n", value)) is int


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (-1, ValueError), (128.0, TypeError), ("3", TypeError), (True, TypeError)]
)
def test_everything_else_is_refused_by_name(value, error):
    with pytest.raises(error, match=r"`batch_size` is .*whole number of at least 1"):
        whole_number("batch_size", value)


@pytest.mark.parametrize("label", ["P1", ["P1", "P2"], pd.DataFrame({"perturbation": ["P1"]}), 3])
def test_a_perturbation_may_stand_alone_in_the_first_place(label):
    assert cells_and_perturbation(label, None)[0] is None and cells_and_perturbation(label, None)[1] is label
    assert cells_and_perturbation(None, label)[0] is None and cells_and_perturbation(CELLS, label)[0] is CELLS


@pytest.mark.parametrize(
    ("adata", "perturbation", "says"),
    [
        ("P1", CELLS, "`perturbation` is an AnnData: the cells come first"),
        (CELLS, CELLS, "`perturbation` is an AnnData"),
        ("P1", "P2", "`adata` is 'P1', a str and `perturbation` is 'P2', a str: the cells, an AnnData, come first"),
        (Path("a.h5ad"), "P1", r"anndata.read_h5ad\(path\)"),
        (type("MuData", (), {})(), "P1", "mdata"),
    ],
)
def test_what_are_no_cells_is_refused(adata, perturbation, says):
    with pytest.raises(TypeError, match=says):
        cells_and_perturbation(adata, perturbation)


def test_cells_are_an_anndata():
    assert cells_of("real", CELLS) is CELLS
    with pytest.raises(TypeError, match=r"`real` is of type ndarray; give the cells as an AnnData, with raw counts\."):
        cells_of("real", np.ones(3))
    with pytest.raises(TypeError, match="`adata` is 'P1', a str; .* `perturbation=`"):
        cells_of("adata", "P1")
