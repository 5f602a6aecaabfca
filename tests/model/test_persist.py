"""Saving and loading."""

from __future__ import annotations

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from cfmvc_scvi import CFMVC
from cfmvc_scvi.io.archive import read_archive

FITTED = ("trained", "trained_noise")


def outputs(model, adata=None) -> list[np.ndarray]:
    return [
        model.get_latent_representation(adata, latent="both"),
        model.predict_perturbation(adata, perturbation=["P1", "P1+P3"]).X,
        model.predict_perturbation(adata, perturbation="P2", return_type="counts").X.toarray(),
        model.get_effect_coefficients().to_numpy(),
    ]


def assert_equal(first, second) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def saved(trained, tmp_path):
    trained.save(str(tmp_path / "model"))
    return str(tmp_path / "model")


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
@pytest.mark.parametrize("prefix", [None, "first_"])
def test_loaded_models_are_the_same(request, tmp_path, name, prefix):
    model = request.getfixturevalue(name)
    path = str(tmp_path / "model")
    model.save(path, prefix=prefix)
    loaded = CFMVC.load(path, adata=model.adata.copy(), prefix=prefix)
    assert_equal(outputs(loaded), outputs(model))
    assert loaded.is_trained and loaded.is_vae_trained_ and loaded.is_flow_trained_
    assert (loaded.flow_source, loaded.coupling) == (model.flow_source, model.coupling)
    assert_equal(loaded.split_, model.split_)
    assert_equal((loaded.train_indices, loaded.validation_indices), (model.train_indices, model.validation_indices))
    assert set(loaded.history) == set(model.history)
    for key in model.history:
        np.testing.assert_array_equal(
            loaded.history[key].to_numpy(dtype=float), model.history[key].to_numpy(dtype=float)
        )
    assert not any(module.training for module in loaded.module.modules())
    assert loaded.predict_perturbation(perturbation="P1").obs["support"].tolist() == (
        model.predict_perturbation(perturbation="P1").obs["support"].tolist()
    )


def test_data_saved_with_the_model(trained, tmp_path):
    trained.save(str(tmp_path / "model"), save_anndata=True)
    loaded = CFMVC.load(str(tmp_path / "model"))
    assert_equal(outputs(loaded), outputs(trained))


def test_saving_twice_needs_overwrite(trained, saved):
    with pytest.raises(ValueError, match="exists"):
        trained.save(saved)
    trained.save(saved, overwrite=True)
    assert CFMVC.load(saved, adata=False).is_trained


def test_loading_without_data(trained, saved):
    loaded = CFMVC.load(saved, adata=False)
    assert loaded.adata is None and loaded.is_trained
    new = trained.adata[trained.adata.obs["perturbation"] == "control"].copy()
    new.uns = {}
    assert_equal(outputs(loaded, new), outputs(trained, new))
    result = loaded.predict_perturbation(new, perturbation="P1")
    assert result.var_names.equals(trained.adata.var_names)
    assert set(result.obs["support"]) == {"seen"}
    assert_equal([loaded.get_perturbation_embedding()], [trained.get_perturbation_embedding()])
    for use in (
        loaded.get_latent_representation,
        loaded.predict_perturbation,
        loaded.train,
        loaded.train_flow,
        loaded.support,
        lambda: loaded.generate_cells("P1", 3),
    ):
        with pytest.raises(RuntimeError, match="load it with `adata=`"):
            use()


def test_genes_in_another_order(trained, saved):
    backwards = trained.adata[:, ::-1].copy()
    loaded = CFMVC.load(saved, adata=backwards)
    assert_equal(outputs(loaded), outputs(trained))
    assert backwards.var_names[0] == trained.adata.var_names[-1]
    control = backwards[backwards.obs["perturbation"] == "control"].copy()
    assert_equal(outputs(CFMVC.load(saved, adata=False), control), outputs(trained, control))


def test_missing_genes(trained, saved):
    with pytest.raises(ValueError, match=r"2 of the model's 60 genes are not in this AnnData: \['gene"):
        CFMVC.load(saved, adata=trained.adata[:, 2:].copy())


def test_unknown_categories(trained, saved):
    other = trained.adata.copy()
    other.obs["batch"] = other.obs["batch"].cat.rename_categories({"batch1": "elsewhere"})
    with pytest.raises(ValueError, match="elsewhere"):
        CFMVC.load(saved, adata=other)


def test_fewer_categories(trained, saved):
    fewer = trained.adata[
        (trained.adata.obs["batch"] == "batch2") & trained.adata.obs["perturbation"].isin(["control", "P3"])
    ].copy()
    loaded = CFMVC.load(saved, adata=fewer)
    assert loaded.batches == trained.batches and loaded.vocabulary.names == trained.vocabulary.names
    np.testing.assert_array_equal(loaded.get_latent_representation(), trained.get_latent_representation(fewer))
    np.testing.assert_array_equal(
        loaded.predict_perturbation(perturbation="P1").X,
        trained.predict_perturbation(fewer[fewer.obs["perturbation"] == "control"].copy(), perturbation="P1").X,
    )


def test_cells_without_any_control(trained, saved):
    perturbed = trained.adata[trained.adata.obs["perturbation"] == "P3"].copy()
    loaded = CFMVC.load(saved, adata=perturbed)
    np.testing.assert_array_equal(loaded.get_latent_representation(), trained.get_latent_representation(perturbed))


def test_training_goes_on_after_loading(trained, saved, quiet):
    loaded = CFMVC.load(saved, adata=trained.adata.copy())
    before = loaded.get_latent_representation()
    n_epochs = len(loaded.history["flow_loss_train"])
    loaded.train_flow(2, **quiet)
    assert len(loaded.history["flow_loss_train"]) == n_epochs + 2
    np.testing.assert_array_equal(loaded.get_latent_representation(), before)
    assert_equal(loaded.split_, trained.split_)
    loaded.train(vae_max_epochs=1, flow_max_epochs=1, **quiet)
    assert not np.array_equal(loaded.get_latent_representation(), before)
    assert_equal(loaded.split_, trained.split_)
    assert np.isfinite(loaded.predict_perturbation(perturbation="P1").X).all()


@pytest.mark.slow
def test_flags_are_kept(simulated, build, tmp_path, quiet):
    model = build(simulated)
    for stage, flags in enumerate([(False, False, False), (True, False, False), (True, True, True)]):
        if stage == 1:
            model.train_vae(1, **quiet)
        if stage == 2:
            model.train_flow(1, **quiet)
        model.save(str(tmp_path / str(stage)))
        loaded = CFMVC.load(str(tmp_path / str(stage)), adata=simulated.copy())
        assert (loaded.is_vae_trained_, loaded.is_flow_trained_, loaded.is_trained) == flags
        if stage == 1:
            np.testing.assert_array_equal(loaded.get_latent_representation(), model.get_latent_representation())
            with pytest.raises(RuntimeError, match="train_flow"):
                loaded.predict_perturbation()


SETUPS = {
    "embedding": {"perturbation_embedding_key": "perturbation_embedding"},
    "covariates": {"categorical_covariate_keys": ["donor"], "continuous_covariate_keys": ["age"]},
    "size factor": {"size_factor_key": "library_size"},
    "nothing but perturbations": {"batch_key": None, "labels_key": None, "spatial_key": None},
    "layer": {"layer": "counts"},
}


@pytest.mark.parametrize("name", SETUPS)
def test_every_field_is_saved(simulated, build, fit, tmp_path, name):
    simulated.obs["donor"] = np.where(np.arange(300) % 3, "a", "b")
    simulated.obs["age"] = np.linspace(-1, 1, 300)
    simulated.layers["counts"] = simulated.X.copy()
    model = fit(build(simulated, {"combination_delimiter": "+"} | SETUPS[name]), vae_max_epochs=1, flow_max_epochs=1)
    model.save(str(tmp_path / "model"))
    assert_equal(outputs(CFMVC.load(str(tmp_path / "model"), adata=simulated.copy())), outputs(model))
    without = CFMVC.load(str(tmp_path / "model"), adata=False)
    assert without.setup_keys == model.setup_keys
    assert_equal(outputs(without, simulated), outputs(model, simulated))


def test_doses_are_saved(simulate, build, fit, tmp_path):
    adata = simulate(doses=(0.3, 2.0))
    model = fit(build(adata, {"dosage_key": "dosage", "combination_delimiter": "+"}))
    model.save(str(tmp_path / "model"))
    loaded = CFMVC.load(str(tmp_path / "model"), adata=adata.copy())
    first, second = (some.predict_perturbation(perturbation="P1", dosage=1.1).X for some in (model, loaded))
    np.testing.assert_array_equal(first, second)


def test_vectors_of_perturbations_are_in_the_model(simulated, build, fit, tmp_path):
    setup = {"combination_delimiter": "+", "perturbation_embedding_key": "perturbation_embedding"}
    model = fit(build(simulated, setup), vae_max_epochs=1, flow_max_epochs=1)
    model.save(str(tmp_path / "model"))
    new = simulated.copy()
    new.uns = {}
    assert_equal(outputs(CFMVC.load(str(tmp_path / "model"), adata=new)), outputs(model))


def test_another_class_is_refused(saved):
    class Other(CFMVC):
        pass

    with pytest.raises(ValueError, match="different class"):
        Other.load(saved, adata=False)


def test_module_weights_are_all_in_the_file(trained, saved):
    content = read_archive(saved, "model")
    assert set(content["module"]) == set(trained.module.state_dict())
    for name, value in trained.module.state_dict().items():
        assert torch.equal(content["module"][name], value)
    assert content["var_names"] == trained.adata.var_names.tolist()


@pytest.mark.parametrize(("key", "level"), [("perturbation", "P9"), ("batch", "b9"), ("cell_type", "T9")])
def test_data_with_further_levels_say_how_to_use_them(trained, tmp_path, key, level):
    trained.save(tmp_path / "m")
    more = trained.adata.copy()
    more.obs[key] = [level, *more.obs[key].astype(str)[1:]]
    with pytest.raises(ValueError, match=rf"obs\['{key}'\].*\['{level}'\].*`adata=False`"):
        CFMVC.load(tmp_path / "m", adata=more)


def test_a_path_is_no_data(trained, tmp_path):
    trained.save(tmp_path / "m")
    with pytest.raises(TypeError, match=r"`adata` is a str.*read_h5ad"):
        CFMVC.load(tmp_path / "m", adata="cells.h5ad")


def test_setup_arguments_of_a_saved_model_are_shown(trained, tmp_path, capsys):
    trained.save(tmp_path / "m")
    CFMVC.view_setup_args(str(tmp_path / "m"))
    assert "batch_key" in capsys.readouterr().out


def test_the_column_of_a_result_is_the_same_without_data(simulate, build, fit, tmp_path):
    adata = simulate(n_pairs=0)
    p = adata.obs.pop("perturbation").astype(str)
    table = pd.DataFrame({k: (p == k).astype(int) for k in ("P1", "P2", "P3")}, index=adata.obs_names)
    control = adata[(p == "control").to_numpy()].copy()
    adata.obsm["guides"] = table
    model = fit(build(adata, {"perturbation_key": "guides"}))
    model.save(tmp_path / "m")
    without = CFMVC.load(tmp_path / "m", adata=False)
    for m in (model, without):
        assert (
            "perturbation" in m.predict_perturbation(control, "P1").obs
            and "guides" not in m.predict_perturbation(control, "P1").obs
        )


def test_trained_models_can_be_pickled(trained, cells):
    copy = pickle.loads(pickle.dumps(trained))
    np.testing.assert_array_equal(copy.predict_perturbation(cells, "P1").X, trained.predict_perturbation(cells, "P1").X)
    np.testing.assert_array_equal(copy.get_latent_representation(), trained.get_latent_representation())


def test_hub_takes_the_folder(trained, tmp_path):
    hub = pytest.importorskip("huggingface_hub", exc_type=ImportError)
    from scvi.hub import HubMetadata, HubModel

    folder = tmp_path / "model"
    trained.save(folder, save_anndata=True)
    metadata = HubMetadata("1.4", "0.12", "CFMVC", model_parent_module="cfmvc_scvi")
    HubModel(str(folder), metadata=metadata, model_card=hub.ModelCard("---\nlicense: mit\n---\nCells.")).save(
        overwrite=True
    )
    shared = HubModel(str(folder)).model
    one, other = (m.predict_perturbation(perturbation="P1", indices=[0, 1, 2]).X for m in (trained, shared))
    np.testing.assert_array_equal(one, other)
