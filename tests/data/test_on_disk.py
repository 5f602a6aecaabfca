"""AnnData opened with their counts left on disk."""

from __future__ import annotations

import shutil

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi._rows import DiskRows, is_on_disk
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


def originals(annbatch_files):
    return ad.concat([ad.read_h5ad(annbatch_files[name]) for name in ("first", "second")])


def test_a_collection_of_annbatch_is_its_cells(annbatch_files):
    """Every part in the order that annbatch shuffled it into, each cell with its counts, columns and coordinates."""
    adata, cells = open_counts(annbatch_files["collection"]), originals(annbatch_files)
    assert isinstance(adata.X, DiskRows) and isinstance(adata.layers["counts"], DiskRows)
    assert sorted(adata.obs_names) == sorted(cells.obs_names) and list(adata.obs_names) != list(cells.obs_names)
    cells = cells[adata.obs_names]
    for matrix in (adata.X, adata.layers["counts"]):
        np.testing.assert_array_equal(matrix[:].toarray(), cells.X.toarray())
        np.testing.assert_array_equal(matrix[90:110].toarray(), cells.X[90:110].toarray())
    np.testing.assert_array_equal(adata.obsm["spatial"], cells.obsm["spatial"])
    for name in cells.obs:
        assert list(adata.obs[name]) == list(cells.obs[name])
    assert isinstance(adata.obs["perturbation"].dtype, pd.CategoricalDtype)
    assert adata.obs_names.dtype == adata.var_names.dtype == object  # anndata 0.12 cannot write pandas' own text


def test_annbatch_itself_writes_what_is_read(annbatch_files, tmp_path):
    annbatch = pytest.importorskip("annbatch", reason="pip install cfmvc_scvi[disk], Python 3.12 or later")
    files = [annbatch_files["first"], annbatch_files["second"]]
    annbatch.DatasetCollection(tmp_path / "new.zarr").add_adatas(files, dataset_size=100, shuffle_chunk_size=20)
    adata = open_counts(tmp_path / "new.zarr")
    np.testing.assert_array_equal(adata.X[:].toarray(), originals(annbatch_files)[adata.obs_names].X.toarray())


def test_several_files_are_one_anndata(annbatch_files):
    adata = open_counts([annbatch_files["first"], annbatch_files["second"], annbatch_files["collection"]])
    assert adata.shape == (480, 40) and not adata.obs_names.has_duplicates
    cells = originals(annbatch_files)
    np.testing.assert_array_equal(adata.X[100:200].toarray(), cells.X[100:200].toarray())
    view = adata[adata.obs["batch"] == "batch1", [4, 2]]
    both = np.concatenate([adata.X[:].toarray()[:, [4, 2]]])[(adata.obs["batch"] == "batch1").to_numpy()]
    np.testing.assert_array_equal(view.X.toarray(), both)
    assert is_on_disk(adata.copy().X) and not is_on_disk(adata.to_memory().X)


def test_a_collection_that_lacks_a_part_or_a_shard_is_refused(annbatch_files, tmp_path):
    copy = shutil.copytree(annbatch_files["collection"], tmp_path / "copy.zarr")
    shutil.rmtree(copy / "dataset_1")
    with pytest.raises(OSError, match=r"copy.zarr' is not whole: parts \[1\] are missing"):
        open_counts(copy)
    copy = shutil.copytree(annbatch_files["collection"], tmp_path / "other.zarr")
    (copy / "dataset_1" / "X" / "indices" / "c" / "1").unlink()
    with pytest.raises(OSError, match="dataset_1.* is not whole: a part of it is missing"):
        open_counts(copy)
    with pytest.raises(ValueError, match="`path` is empty"):
        open_counts([])


@pytest.mark.parametrize(("value", "message"), [(0.5, "1 fractional values"), (-1.0, "negative"), (np.nan, "missing")])
def test_the_file_of_several_that_holds_no_counts_is_named(annbatch_files, tmp_path, value, message):
    bad = ad.read_h5ad(annbatch_files["second"])
    bad.X = bad.X.toarray()
    bad.X[7, 3] = value
    bad.write_h5ad(tmp_path / "bad.h5ad")
    adata = open_counts([annbatch_files["first"], tmp_path / "bad.h5ad"])
    with pytest.raises(ValueError, match=message) as error:
        CFMVC.setup_anndata(adata, combination_delimiter="+")
    assert f"(row 157, in {str(tmp_path / 'bad.h5ad')!r})" in str(error.value)
