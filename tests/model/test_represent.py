"""Latent representation of cells."""

from __future__ import annotations

import numpy as np
import pytest
import scvi
from scipy import sparse


def test_shapes(trained):
    n = trained.adata.n_obs
    intrinsic, technical, both = (
        trained.get_latent_representation(latent=name) for name in ("intrinsic", "technical", "both")
    )
    assert intrinsic.shape == (n, 6) and technical.shape == (n, 3) and both.shape == (n, 9)
    assert intrinsic.dtype == technical.dtype == both.dtype == np.float32
    np.testing.assert_array_equal(both, np.concatenate([intrinsic, technical], axis=1))
    np.testing.assert_array_equal(trained.get_latent_representation(), intrinsic)
    assert intrinsic.std(axis=0).max() > 0.1
    with pytest.raises(ValueError, match=r"`latent` 'z'.*intrinsic"):
        trained.get_latent_representation(latent="z")


@pytest.mark.parametrize("latent", ["intrinsic", "technical", "both"])
def test_draws(trained, latent):
    mean = trained.get_latent_representation(latent=latent)
    first, again = (trained.get_latent_representation(latent=latent, give_mean=False) for _ in range(2))
    assert first.shape == mean.shape and np.isfinite(first).all()
    np.testing.assert_array_equal(first, again)
    assert (first != mean).mean() > 0.99
    scvi.settings.seed = 1
    assert not np.array_equal(first, trained.get_latent_representation(latent=latent, give_mean=False))


def test_draws_are_of_the_posterior(trained):
    posterior = trained._encode(trained._cells(None))
    draw = trained.get_latent_representation(give_mean=False)
    standard = (draw - posterior.mean.numpy()) / posterior.scale.numpy()
    assert abs(standard.mean()) < 0.1 and abs(standard.std() - 1) < 0.1


def test_indices_keep_their_order(trained):
    everything = trained.get_latent_representation()
    rows = [5, 1, 200, 3, 5, -1]
    np.testing.assert_allclose(trained.get_latent_representation(indices=rows), everything[rows], rtol=1e-5, atol=1e-5)
    mask = np.arange(trained.adata.n_obs) % 2 == 0
    np.testing.assert_allclose(trained.get_latent_representation(indices=mask), everything[mask], rtol=1e-5, atol=1e-5)
    with pytest.raises(IndexError, match="300 cells"):
        trained.get_latent_representation(indices=[300])


@pytest.mark.parametrize("batch_size", [7, 64, 1000])
def test_batch_size_does_not_matter(trained, batch_size):
    np.testing.assert_allclose(
        trained.get_latent_representation(latent="both", batch_size=batch_size),
        trained.get_latent_representation(latent="both"),
        rtol=1e-5,
        atol=1e-5,
    )


def test_new_data(trained):
    expected = trained.get_latent_representation()
    new = trained.adata.copy()
    new.uns, new.X = {}, sparse.csc_matrix(new.X)
    del new.obs["perturbation"]
    np.testing.assert_array_equal(trained.get_latent_representation(new), expected)
    np.testing.assert_array_equal(trained.get_latent_representation(new[:, ::-1].copy()), expected)
    with pytest.raises(ValueError, match="1 of the 60 genes"):
        trained.get_latent_representation(new[:, 1:].copy())
    new.obs["batch"] = "elsewhere"
    with pytest.raises(ValueError, match=r"batch level.*'elsewhere'"):
        trained.get_latent_representation(new)


@pytest.mark.slow
def test_needs_stage_1_only(simulated, build, quiet):
    model = build(simulated)
    with pytest.raises(RuntimeError, match="train_vae"):
        model.get_latent_representation()
    model.train_vae(1, **quiet)
    assert model.get_latent_representation().shape == (300, 6)


@pytest.mark.slow
def test_size_factor_scales_the_input(simulated, build, quiet):
    model = build(simulated, {"size_factor_key": "library_size"})
    model.train_vae(1, **quiet)
    before = model.get_latent_representation()
    other = simulated.copy()
    other.obs["library_size"] *= 2
    assert not np.allclose(model.get_latent_representation(other), before)
    other.X = other.X * 2
    np.testing.assert_allclose(model.get_latent_representation(other), before, rtol=1e-3, atol=1e-3)


def test_cell_types_separate(trained):
    latent, labels = trained.get_latent_representation(), trained.adata.obs["cell_type"].to_numpy()
    means = np.stack([latent[labels == label].mean(axis=0) for label in ("type1", "type2")])
    nearest = np.linalg.norm(latent[:, None] - means, axis=2).argmin(axis=1)
    assert (nearest == (labels == "type2")).mean() > 0.65
