"""Cells to start from and to arrive at."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest


def rank(model, *args, **kwargs):
    return model.rank_perturbations(*args, n_best=1, n_resamples=2, **kwargs)


@pytest.fixture
def target(trained):
    return np.flatnonzero(trained.adata.obs["perturbation"] == "P1")


@pytest.mark.filterwarnings("ignore:.*target cells were trained on")
def test_default_source_are_controls_of_the_same_types_and_batches(trained, target):
    obs = trained.adata.obs
    here = target[((obs["cell_type"] == "type1") & (obs["batch"] == "batch2")).to_numpy()[target]]
    is_source = (obs["perturbation"] == "control") & (obs["cell_type"] == "type1") & (obs["batch"] == "batch2")
    assert rank(trained, target=here).attrs["n_source"] == is_source.sum()
    named = rank(trained, np.flatnonzero(is_source), trained.adata.obs_names[here])
    pd.testing.assert_frame_equal(named, rank(trained, target=here))


@pytest.mark.filterwarnings("ignore:.*target cells were trained on")
def test_labels_narrow_both_sides(trained, target):
    obs = trained.adata.obs
    of_type = (obs["cell_type"] == "type2").to_numpy()
    table = rank(trained, target=target, labels="type2")
    assert table.attrs["n_target"] == of_type[target].sum()
    assert table.attrs["n_source"] <= (of_type & (obs["perturbation"] == "control").to_numpy()).sum()
    assert rank(trained, target=target, labels="type2", n_cells=5).attrs["n_target"] == 5


def test_trained_target_cells_are_counted(trained, target):
    with pytest.warns(UserWarning, match="target cells were trained on"):
        table = rank(trained, target=trained.adata[target].copy())
    assert table.attrs["n_target_trained"] == np.isin(target, trained._fitted_rows).sum()


@pytest.mark.filterwarnings("ignore:.*target cells were trained on")
def test_another_mix_of_types_is_said(trained, target):
    obs = trained.adata.obs
    source = np.flatnonzero((obs["perturbation"] == "control") & (obs["cell_type"] == "type1"))
    with pytest.warns(UserWarning, match="mix of cell types"):
        rank(trained, source, target)


def test_what_is_no_target_is_refused(trained, target):
    with pytest.raises(ValueError, match="`target` is missing"):
        rank(trained)
    with pytest.raises(ValueError, match="has 1 cells"):
        rank(trained, target=target[:1])
    with pytest.raises(ValueError, match="of shape \\(3,\\)"):
        rank(trained, target=np.zeros(3))
    n_genes = trained.adata.n_vars
    with pytest.raises(ValueError, match="negative or missing"):
        rank(trained, target=np.full(n_genes, -1.0))
    with pytest.raises(ValueError, match="60 genes of the model are not in `target`"):
        rank(trained, target=pd.Series(np.ones(n_genes), index=[f"other{i}" for i in range(n_genes)]))


@pytest.mark.filterwarnings("ignore:.*target cells were trained on")
def test_what_is_no_source_is_refused(trained, target):
    with pytest.raises(ValueError, match="`source` has 1 cells"):
        rank(trained, [0], target)
    of_type = (trained.adata.obs["cell_type"] == "type1").to_numpy()[target]
    with pytest.raises(ValueError, match="`target` has 0 cells of `labels`"):
        rank(trained, target=target[of_type], labels="type2")
