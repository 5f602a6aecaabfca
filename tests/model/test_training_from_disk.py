"""Models trained from counts on disk, against the same in memory; all from the same order of the cells."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi._rows import DiskRows
from cfmvc_scvi.cells.count_source import DiskCounts, MemoryCounts
from cfmvc_scvi.data import open_counts
from cfmvc_scvi.registration import counts as registered_counts

pytestmark = pytest.mark.slow


def written(adata, folder, kind, layer=False):
    """The data on disk in one of several forms, opened."""
    adata = ad.AnnData(adata.X, obs=adata.obs, var=adata.var, obsm=dict(adata.obsm))
    if kind.endswith("dense"):
        adata.X = adata.X.toarray()
    if layer:
        adata.layers["counts"], adata.X = adata.X, None
    path = folder / f"{kind}.{'zarr' if kind.startswith('zarr') else 'h5ad'}"
    if kind.startswith("zarr"):
        adata.write_zarr(path)
        return open_counts(path)
    adata.write_h5ad(path)
    return open_counts(path) if kind.startswith("opened") else ad.read_h5ad(path, backed="r")


KINDS = ("backed csr", "backed dense", "zarr csr", "zarr dense", "opened csr", "opened dense")


@pytest.fixture
def same_order(monkeypatch):
    """Cells in memory are taken in the order of those on disk."""
    monkeypatch.setattr(MemoryCounts, "order", DiskCounts.order)
    monkeypatch.setattr(MemoryCounts, "n_gathered", DiskCounts.n_gathered)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_from_disk_is_that_from_memory(simulated, build, fit, tmp_path, same_order, kind):
    expected = fit(build(simulated.copy()))
    model = fit(build(written(simulated, tmp_path, kind)))
    for name, values in expected.history.items():
        np.testing.assert_allclose(*(h.to_numpy(dtype=float) for h in (model.history[name], values)), rtol=1e-6)
    np.testing.assert_allclose(model.get_latent_representation(), expected.get_latent_representation(), atol=1e-6)
    for return_type in ("mean", "lognorm", "latent"):
        found, known = (m.predict_perturbation(return_type=return_type).X for m in (model, expected))
        np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        model.get_perturbation_effect("P1").select_dtypes("number"),
        expected.get_perturbation_effect("P1").select_dtypes("number"),
        rtol=1e-4,
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_one_model_gives_the_same_for_cells_on_disk_and_in_memory(simulated, trained, tmp_path, kind):
    disk = written(simulated, tmp_path, kind)
    np.testing.assert_array_equal(trained.get_latent_representation(disk), trained.get_latent_representation(simulated))
    rows = [200, 3, 3, 77]
    np.testing.assert_array_equal(
        trained.get_latent_representation(disk, rows), trained.get_latent_representation(simulated, rows)
    )
    for return_type in ("mean", "counts"):
        found, known = (
            trained.predict_perturbation(cells, ["P1", "P2"], indices=range(20, 90), return_type=return_type).to_df()
            for cells in (disk, simulated)
        )
        np.testing.assert_array_equal(found, known)


def test_genes_on_disk_may_be_in_another_order(simulated, trained, tmp_path):
    order = np.random.default_rng(0).permutation(simulated.n_vars)
    disk = written(simulated[:, order].copy(), tmp_path, "zarr csr")
    np.testing.assert_array_equal(trained.get_latent_representation(disk), trained.get_latent_representation(simulated))


def test_a_layer_on_disk(simulated, build, fit, tmp_path, same_order):
    setup = {"combination_delimiter": "+"}
    expected = fit(build(simulated.copy(), setup))
    disk = written(simulated, tmp_path, "zarr csr", layer=True)
    model = fit(build(disk, setup | {"layer": "counts"}))
    np.testing.assert_allclose(model.get_latent_representation(), expected.get_latent_representation(), atol=1e-6)


def test_samples_strata_and_covariates(simulated, build, fit, tmp_path, same_order):
    rng = np.random.default_rng(0)
    control = (simulated.obs["perturbation"] == "control").to_numpy()
    simulated.obs["donor"] = [f"d{i}" for i in rng.integers(3, size=simulated.n_obs)]
    simulated.obs["batch"] = np.where(rng.random(simulated.n_obs) < np.where(control, 0.3, 0.9), "b0", "b1")
    setup = {"combination_delimiter": "+", "sample_key": "donor"}
    expected = fit(build(simulated.copy(), setup))
    model = fit(build(written(simulated, tmp_path, "backed csr"), setup))
    for name in ("lognorm", "mean"):
        found, known = (m.predict_perturbation(return_type=name).X for m in (model, expected))
        np.testing.assert_allclose(found, known, rtol=1e-4, atol=1e-5)


def test_a_run_from_disk_is_resumed_to_the_bit(simulated, build, tmp_path, quiet):
    disk = written(simulated, tmp_path, "zarr csr")
    whole = build(disk)
    whole.train_vae(4, **quiet)
    first = build(disk)
    with pytest.raises(KeyboardInterrupt):
        first.train_vae(4, checkpoint_dir=tmp_path / "state", callbacks=[stop_at(2)], **quiet)
    second = build(open_counts(tmp_path / "zarr csr.zarr"))
    second.train_vae(4, checkpoint_dir=tmp_path / "state", resume=True, **quiet)
    for name, value in whole.module.state_dict().items():
        np.testing.assert_array_equal(value, second.module.state_dict()[name])


def stop_at(epoch):
    from lightning.pytorch import Callback

    class Interrupt(Callback):
        def on_train_epoch_start(self, trainer, *_):
            if trainer.current_epoch == epoch:
                raise KeyboardInterrupt

    return Interrupt()


def test_the_file_is_summarised_once_and_read_in_blocks(simulated, build, fit, tmp_path, monkeypatch):
    disk = written(simulated, tmp_path, "backed csr")
    model = build(disk)
    summarised = []
    summarise = registered_counts._summarise
    monkeypatch.setattr(registered_counts, "_summarise", lambda *args: summarised.append(1) or summarise(*args))
    fit(model)
    model.get_latent_representation()
    assert not summarised
    assert isinstance(model._cells(None).counts, DiskRows)


def test_a_file_that_changes_after_setup_is_an_error_and_the_model_is_left_usable(simulated, build, fit, tmp_path):
    simulated.write_h5ad(tmp_path / "cells.h5ad")
    file = h5py.File(tmp_path / "cells.h5ad", "r+")
    adata = ad.AnnData(ad.io.sparse_dataset(file["X"]), obs=simulated.obs, var=simulated.var)
    model = fit(build(adata))
    before = model.get_latent_representation()
    kept = file["X/data"][:50]
    file["X/data"][:50] = kept + 1
    with pytest.raises(OSError, match="is not what it was when it was checked"):
        model.train_flow(1)
    with pytest.raises(OSError, match="is not what it was when it was checked"):
        model.get_latent_representation()
    file["X/data"][:50] = kept
    np.testing.assert_array_equal(model.get_latent_representation(), before)


def test_what_is_not_counts_is_refused_on_disk_as_in_memory(simulated, build, tmp_path):
    simulated.X.data = np.log1p(simulated.X.data)
    for kind in ("backed csr", "zarr dense"):
        with pytest.raises(ValueError, match=r"fractional values \(row 0, in .*\): it looks log-transformed"):
            build(written(simulated, tmp_path, kind))


def test_counts_on_disk_are_not_kept_on_the_device(simulated, build, tmp_path):
    model = build(written(simulated, tmp_path, "backed csr"))
    with pytest.raises(ValueError, match=r"DiskCounts cannot keep its counts on cpu: pass `data_on_device=False`"):
        model.train_vae(1, accelerator="cpu", data_on_device=True)


def test_a_saved_model_takes_data_on_disk(simulated, trained, tmp_path):
    trained.save(tmp_path / "model")
    model = CFMVC.load(tmp_path / "model", adata=written(simulated, tmp_path, "backed dense"))
    np.testing.assert_array_equal(model.get_latent_representation(), trained.get_latent_representation())
