"""Rows that are no single cells are known by their depth, and told of once."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi.registration.depth import BULK_COUNTS, warn_of_bulk


def told(library, columns=()) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_bulk(np.asarray(library, dtype=float), columns)
    return [str(warning.message) for warning in caught]


def test_cells_pass_even_if_a_few_are_deep():
    assert told([800.0] * 20 + [5e5]) == [] and told([BULK_COUNTS] * 3, ["donor"]) == []


def test_deep_rows_are_told_what_holds_for_them():
    [message] = told([567_005.0] * 46)
    assert "The 46 rows" in message and "567,005 counts" in message
    assert all(word in message for word in ("pseudobulk", "`sample_key=`", "get_perturbation_effect", "Smart-seq"))


def test_columns_of_added_up_cells_tell_it_too():
    [message] = told([900.0] * 4, ["donor", "psbulk_cells"])
    assert "psbulk_cells" in message and "900" not in message


@pytest.mark.parametrize("key", [None, "total"])
def test_setup_warns_once(simulated, key):
    if key is None:
        simulated.X = simulated.X * 1000
    else:
        simulated.obs[key] = 4e5
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CFMVC.setup_anndata(simulated, combination_delimiter="+", size_factor_key=key)
        CFMVC(simulated)
    assert sum("do not look like single cells" in str(w.message) for w in caught) == 1
