"""Genes and annotations of several AnnData that are put together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cfmvc_scvi.data.parts import joined_annotations, shared_genes


def cells(genes, n=3, **columns):
    obs = pd.DataFrame({"kind": pd.Categorical(["a"] * n), **columns}, index=[f"c{i}" for i in range(n)])
    return AnnData(np.ones((n, len(genes))), obs, pd.DataFrame(index=genes), obsm={"spatial": np.zeros((n, 2))})


def test_genes_are_those_of_all_in_the_order_of_the_first():
    parts = {"x": cells(["c", "a", "b", "d"]), "y": cells(["d", "b", "c"])}
    assert list(shared_genes(parts)) == ["c", "b", "d"]
    assert list(shared_genes(parts, ["d", "c"])) == ["d", "c"]
    with pytest.raises(ValueError, match="1 of `genes` in y are not in this AnnData"):
        shared_genes(parts, ["a"])
    with pytest.raises(ValueError, match="`genes` has repeated names"):
        shared_genes(parts, ["c", "c"])
    with pytest.raises(ValueError, match="The files share no gene by name"):
        shared_genes({"x": cells(["a"]), "y": cells(["b"])})
    with pytest.warns(UserWarning, match="share 1 genes, fewer than half of the 3 of x"):
        shared_genes({"x": cells(["a", "b", "c"]), "y": cells(["a", "e", "f"])})
    repeated = cells(["a", "b"])
    repeated.var_names = ["a", "a"]
    with pytest.raises(ValueError, match="Names of genes in 'x' are not unique"):
        shared_genes({"x": repeated})


def test_annotations_of_all_cells():
    parts = {"x": cells(["a", "b"]), "y": cells(["b", "a"], 2, more=[1.0, 2.0])}
    whole = joined_annotations(parts, pd.Index(["b"]), "source")
    assert whole.shape == (5, 1) and list(whole.obs_names) == ["c0-x", "c1-x", "c2-x", "c0-y", "c1-y"]
    assert list(whole.obs["source"]) == ["x"] * 3 + ["y"] * 2 and whole.obsm["spatial"].shape == (5, 2)
    assert isinstance(whole.obs["kind"].dtype, pd.CategoricalDtype) and whole.obs["more"].isna().sum() == 3
    with pytest.raises(ValueError, match="`source_key` 'kind' is a column of obs already"):
        joined_annotations(parts, pd.Index(["b"]), "kind")
