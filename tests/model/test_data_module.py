"""Models set up, trained, saved and loaded by a data module, as scvi-tools spells it; collections of annbatch."""

from __future__ import annotations

import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi._rows import DiskRows
from cfmvc_scvi.cells.count_source import DiskCounts, MemoryCounts

SMALL = {"n_latent": 6, "n_latent_technical": 3, "n_hidden": 16, "n_basis": 4, "n_hidden_flow": 16}
SETUP = {"combination_delimiter": "+", "dosage_key": "dose", "categorical_covariate_keys": ["donor"]}
SETUP |= {"continuous_covariate_keys": ["age"]}


@pytest.fixture(scope="module")
def vectors() -> pd.DataFrame:
    return pd.DataFrame(
        np.random.default_rng(0).normal(size=(4, 3)), index=["P1", "P2", "P3", "P9"], columns=list("abc")
    )


@pytest.fixture
def same_order(monkeypatch):
    """Cells in memory are taken in the order of those on disk."""
    monkeypatch.setattr(MemoryCounts, "order", DiskCounts.order)
    monkeypatch.setattr(MemoryCounts, "n_gathered", DiskCounts.n_gathered)


def in_memory(dm) -> ad.AnnData:
    """The cells of a data module as a user has them in memory."""
    adata = dm.adata.to_memory()
    adata.obs = adata.obs.loc[:, [name for name in adata.obs if not name.startswith("_scvi")]]
    adata.obsm = {"spatial": adata.obsm["spatial"]}
    adata.uns = {}
    return adata


def test_what_a_data_module_offers(annbatch_files, vectors):
    dm = CFMVC.setup_annbatch(annbatch_files["collection"], perturbation_embedding=vectors, **SETUP)
    assert (dm.n_obs, dm.n_vars, dm.n_batch, dm.n_labels) == (240, 40, 2, 2)
    assert sorted(dm.batch_labels) == ["batch1", "batch2"] and sorted(dm.label_keys) == ["type1", "type2"]
    assert list(dm.var_names) == list(dm.adata.var_names) and "240 cells, 40 genes, 2 batches" in repr(dm)
    assert isinstance(dm.adata.X, DiskRows)
    fields = dm.registry["field_registries"]
    assert fields["perturbation"]["state_registry"]["vocabulary"] and "spatial" in fields
    model = CFMVC(registry=dm.registry, **SMALL)
    assert model.adata is None and model.vocabulary.has_embedding and model.setup_keys.dosage_key == "dose"


@pytest.mark.slow
def test_a_model_of_a_data_module_is_that_of_the_cells_in_memory(annbatch_files, vectors, fit, same_order, tmp_path):
    dm = CFMVC.setup_annbatch(annbatch_files["collection"], perturbation_embedding=vectors, **SETUP)
    memory = in_memory(dm)
    memory.uns["perturbation_embedding"] = vectors
    CFMVC.setup_anndata(memory, perturbation_embedding_key="perturbation_embedding", **SETUP)
    model, expected = CFMVC(registry=dm.registry, **SMALL), CFMVC(memory, **SMALL)
    expected.module.load_state_dict(model.module.state_dict())
    fit(model, datamodule=dm)
    fit(expected)
    assert model.adata is dm.adata
    np.testing.assert_allclose(model.get_latent_representation(), expected.get_latent_representation(), atol=1e-6)
    asked = pd.DataFrame({"perturbation": ["P1", "P9"], "dosage": [10.0, 10.0]})
    found, known = (m.predict_perturbation(perturbation=asked).X for m in (model, expected))
    np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-5)
    assert np.isfinite(model.get_elbo())  # scvi-tools' own methods read such data as well

    model.save(str(tmp_path / "model"), datamodule=dm)
    again = CFMVC.setup_annbatch(annbatch_files["collection"], perturbation_embedding=vectors, **SETUP)
    loaded = CFMVC.load(str(tmp_path / "model"), adata=False, datamodule=again)
    np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
    np.testing.assert_array_equal(loaded.predict_perturbation(perturbation=asked).X, found)
    bare = CFMVC.load(str(tmp_path / "model"), adata=False)
    bare.train_flow(1, datamodule=again, accelerator="cpu", enable_progress_bar=False)
    assert bare.adata is again.adata
    np.testing.assert_array_equal(bare.get_latent_representation(), model.get_latent_representation())
    model.save(str(tmp_path / "with_cells"), save_anndata=True)
    np.testing.assert_array_equal(
        CFMVC.load(str(tmp_path / "with_cells")).get_latent_representation(), model.get_latent_representation()
    )


@pytest.mark.slow
def test_other_files_with_the_same_cells_give_the_same(annbatch_files, fit, tmp_path):
    """The files that the collection was written of, read in place: genes in another order, cells too."""
    dm = CFMVC.setup_annbatch(annbatch_files["collection"], **SETUP)
    model = fit(CFMVC(registry=dm.registry, **SMALL), datamodule=dm)
    model.save(str(tmp_path / "model"), datamodule=dm)
    turned = ad.read_h5ad(annbatch_files["first"])[:, ::-1].copy()
    turned.write_h5ad(tmp_path / "turned.h5ad")
    files = CFMVC.setup_annbatch([tmp_path / "turned.h5ad", annbatch_files["second"]], **SETUP)
    assert list(files.var_names) == list(dm.var_names)[::-1]
    loaded = CFMVC.load(str(tmp_path / "model"), adata=False, datamodule=files)
    assert isinstance(loaded.adata.X, DiskRows)  # ordering genes reads nothing
    latent = pd.DataFrame(loaded.get_latent_representation(), loaded.adata.obs_names)
    np.testing.assert_array_equal(latent.loc[dm.adata.obs_names], model.get_latent_representation())


@pytest.mark.parametrize("layer", [None, "counts"])
def test_files_are_brought_together_once(annbatch_files, tmp_path, caplog, layer):
    store, files = tmp_path / "both.zarr", [annbatch_files["first"], annbatch_files["second"]]
    genes = list(ad.read_h5ad(files[0]).var_names[[3, 1, 2]])
    dm = CFMVC.setup_annbatch(files, collection_path=store, layer=layer, var_subset=genes, **SETUP)
    assert store.is_dir() and list(dm.var_names) == genes and dm.n_obs == 240
    assert [path.name for path in tmp_path.iterdir()] == ["both.zarr"]
    with caplog.at_level(logging.INFO, "cfmvc_scvi"):
        again = CFMVC.setup_annbatch(files, collection_path=store, layer=layer, **SETUP)
    assert "is there already" in caplog.text and list(again.var_names) == genes
    assert CFMVC.setup_annbatch(collection_path=store, **SETUP).n_obs == 240


def test_what_is_missing_or_does_not_fit_is_said(annbatch_files, simulated, build, tmp_path):
    with pytest.raises(ValueError, match="Give `paths` of files to read, or a `collection_path`"):
        CFMVC.setup_annbatch()
    with pytest.raises(FileNotFoundError, match="There is no collection at .*give `paths`"):
        CFMVC.setup_annbatch(collection_path=tmp_path / "none.zarr")
    with pytest.raises(FileNotFoundError, match="The folder of `collection_path` does not exist"):
        CFMVC.setup_annbatch(annbatch_files["first"], collection_path=tmp_path / "none" / "all.zarr")
    with pytest.raises(ValueError, match="`var_subset` is for a store that is written"):
        CFMVC.setup_annbatch(annbatch_files["first"], var_subset=["a"])
    with pytest.raises(ValueError, match=r"`registry` says nothing of perturbations: give that of `CFMVC.setup_annb"):
        CFMVC(registry={"field_registries": {"X": {}}})
    dm = CFMVC.setup_annbatch(annbatch_files["collection"], **SETUP)
    with pytest.raises(RuntimeError, match=r"`train\(datamodule=...\)`"):
        CFMVC(registry=dm.registry, **SMALL).train()
    with pytest.raises(ValueError, match="This model has data of its own"):
        build(simulated).train(datamodule=dm)
    with pytest.raises(TypeError, match=r"`datamodule` is a object; make one with `CFMVC.setup_annbatch"):
        CFMVC(registry=dm.registry, **SMALL).train(datamodule=object())


def test_a_model_loads_one_kind_of_data(annbatch_files, simulated, tmp_path):
    dm = CFMVC.setup_annbatch(annbatch_files["collection"], **SETUP)
    CFMVC(registry=dm.registry, **SMALL).save(str(tmp_path / "model"), datamodule=dm)
    with pytest.raises(ValueError, match="`adata` and `datamodule` are both given"):
        CFMVC.load(str(tmp_path / "model"), adata=simulated, datamodule=dm)
    assert CFMVC.load(str(tmp_path / "model"), adata=False, datamodule=dm).adata is dm.adata
