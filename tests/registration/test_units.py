"""Units of what is given to a model."""

import anndata as ad
import numpy as np
import pytest

from cfmvc_scvi import CFMVC


@pytest.fixture(scope="module")
def layered(simulate, build, fit):
    adata = simulate()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    return fit(build(adata, {"layer": "counts", "combination_delimiter": "+"}))


@pytest.mark.parametrize("return_type", ["mean", "counts"])
def test_predictions_stand_beside_the_cells_and_go_back_into_the_model(layered, return_type):
    predicted = layered.predict_perturbation(perturbation="P1", return_type=return_type)
    both = ad.concat({"real": layered.adata, "predicted": predicted}, label="origin", index_unique="-")
    assert "counts" in both.layers and "X_cfmvc" in predicted.obsm
    given = (predicted, both) if return_type == "counts" else (predicted,)
    values = [layered.get_latent_representation(cells) for cells in given]
    assert len(values[-1]) == given[-1].n_obs and np.isfinite(values[-1]).all()
    layered.get_elbo(predicted)
    predicted.X = np.log1p(predicted.X)
    np.testing.assert_array_equal(layered.get_latent_representation(predicted), values[0])


@pytest.mark.parametrize("method", ["get_latent_representation", "get_elbo", "get_normalized_expression"])
def test_predictions_that_are_no_counts_are_refused(trained, layered, method):
    for return_type in ("lognorm", "latent"):
        for model in (trained, layered):
            predicted = model.predict_perturbation(perturbation="P1", return_type=return_type)
            with pytest.raises((ValueError, KeyError), match=f"return_type='{return_type}'"):
                getattr(model, method)(predicted)


def test_predictions_that_were_normalised_since_are_refused(trained):
    predicted = trained.predict_perturbation(perturbation="P1")
    predicted.X = predicted.X / predicted.X.sum(axis=1, keepdims=True) * 1e4
    with pytest.raises(ValueError, match="was normalised"):
        trained.get_latent_representation(predicted)
    predicted.uns["log1p"] = {}
    with pytest.raises(ValueError, match="fractional"):
        trained.get_latent_representation(predicted)


@pytest.mark.parametrize("method", ["predict_perturbation", "get_latent_representation", "get_elbo", "get_velocity"])
def test_a_missing_layer_is_explained(layered, simulate, method):
    new = simulate()
    with pytest.raises(KeyError, match=r"adata.layers\['counts'\].*adata.X.copy\(\)"):
        getattr(layered, method)(new)


def test_colours_are_kept(simulate, build, fit):
    adata = simulate()
    for key, colors in (("cell_type", ["#000000", "#ffffff"]), ("perturbation", ["#000000"] * 5)):
        adata.obs[key] = adata.obs[key].astype("category")
        adata.uns[f"{key}_colors"] = colors
    model = fit(build(adata))
    predicted = model.predict_perturbation(perturbation="P1")
    assert (
        list(predicted.uns["cell_type_colors"]) == ["#000000", "#ffffff"] and "perturbation_colors" not in predicted.uns
    )
    assert CFMVC is type(model)
