"""AnnData opened with their counts left on disk."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi._rows import is_on_disk
from cfmvc_scvi.data import open_counts


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
@pytest.mark.parametrize("as_sparse", [True, False])
def test_counts_stay_on_disk_and_the_rest_is_read(simulated, tmp_path, ending, as_sparse):
    simulated.X = simulated.X if as_sparse else simulated.X.toarray()
    simulated.layers["again"] = simulated.X.copy()
    path = tmp_path / f"cells.{ending}"
    getattr(simulated, f"write_{ending}")(path)
    adata = open_counts(path)
    assert is_on_disk(adata.X) and is_on_disk(adata.layers["again"])
    pd.testing.assert_frame_equal(adata.obs, simulated.obs)
    pd.testing.assert_frame_equal(adata.var, simulated.var)
    assert adata.obsm.keys() == simulated.obsm.keys()
    block = adata.X[:7]
    np.testing.assert_array_equal(np.asarray(block.todense() if as_sparse else block), simulated[:7].to_df().to_numpy())


def test_what_is_no_anndata_is_refused(simulated, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is nothing at"):
        open_counts(tmp_path / "none.h5ad")
    simulated.write_h5ad(tmp_path / "cells.h5ad")
    content = (tmp_path / "cells.h5ad").read_bytes()
    (tmp_path / "cut.h5ad").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.h5ad").write_text("no HDF5")
    (tmp_path / "empty.zarr").mkdir()
    for name in ("cut.h5ad", "text.h5ad", "empty.zarr"):
        with pytest.raises(OSError, match=rf"{name}' cannot be opened as an AnnData.*whole"):
            open_counts(tmp_path / name)
