"""Extreme numbers: high counts, low precision, few cells, learning rates far too high; and the same bits every time."""

from __future__ import annotations

import numpy as np
import pytest
import scvi

from cfmvc_scvi import CFMVC


def scaled(adata, library):
    x = adata.X.toarray()
    adata.X = np.round(x * (library / x.sum(axis=1).max())).astype(np.float32)
    return adata


def last(model, key):
    return float(model.history[key].to_numpy(dtype=float)[-1, 0])


@pytest.mark.parametrize("library", [1e2, 1e6])
def test_bf16_and_float32_agree(simulate, build, fit, library):
    """The networks run in bf16, the likelihood in float32: the loss differs by what bf16 rounds in the networks."""
    models = {p: fit(build(scaled(simulate(), library)), precision=p) for p in ("32-true", "bf16-mixed")}
    elbo = {p: last(m, "elbo_train") for p, m in models.items()}
    flow = {p: last(m, "flow_loss_train") for p, m in models.items()}
    assert elbo["bf16-mixed"] == pytest.approx(elbo["32-true"], rel=0.01)
    assert flow["bf16-mixed"] == pytest.approx(flow["32-true"], rel=0.05)
    for model in models.values():
        for kind in ("mean", "lognorm"):
            assert np.isfinite(model.predict_perturbation(perturbation="P1", return_type=kind).X).all()
        counts = model.predict_perturbation(perturbation="P1", return_type="counts").X
        assert np.isfinite(counts.data).all() and (counts.data == np.floor(counts.data)).all()


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "64-true", 64])
def test_precisions_that_change_the_weights_are_refused(simulated, build, fit, precision):
    with pytest.raises(ValueError, match=rf"`precision` is '?{precision}'?; choose '32-true', 'bf16-mixed'"):
        fit(build(simulated), precision=precision)


@pytest.mark.parametrize("lr", [1.0, 100.0])
@pytest.mark.parametrize(("stage", "argument"), [("1 (VAE)", "vae_plan_kwargs"), ("2 (flow)", "flow_plan_kwargs")])
def test_divergence_that_stays_finite(simulated, build, fit, stage, argument, lr):
    with pytest.raises(FloatingPointError) as error:
        fit(build(simulated), vae_max_epochs=12, flow_max_epochs=12, **{argument: {"lr": lr}})
    message = str(error.value)
    assert message.startswith(f"stage {stage} diverged in epoch ") and "epoch -1" not in message
    assert f"pass a lower one, `{argument}={{'lr': {lr / 10:g}}}`" in message


@pytest.mark.parametrize("batch_size", [1, 5])
def test_small_batches_of_very_different_cells_are_no_divergence(simulate, build, fit, batch_size):
    """Libraries of 10 to 100,000: the loss of one cell says little about that of the next."""
    adata = simulate(n_cells=60)
    x = adata.X.toarray()
    library = np.geomspace(10, 1e5, 60)[np.random.default_rng(0).permutation(60)]
    adata.X = np.ceil(x * (library / x.sum(axis=1))[:, None]).astype(np.float32)
    model = fit(build(adata), batch_size=batch_size, flow_batch_size=batch_size, vae_max_epochs=2, flow_max_epochs=2)
    assert np.isfinite(model.predict_perturbation().X).all()


def test_a_learning_rate_ten_times_too_large(simulate, build, fit):
    """It trains, and to a loss that is no worse than before the first step."""
    plans = {"vae_plan_kwargs": {"lr": 1e-2}, "flow_plan_kwargs": {"lr": 1e-2}}
    model = fit(build(simulate()), vae_max_epochs=10, flow_max_epochs=10, **plans)
    for key in ("elbo_train", "flow_loss_train"):
        losses = model.history[key].to_numpy(dtype=float).ravel()
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("batch_size", [1, 128])
def test_two_cells(simulate, build, fit, batch_size):
    adata = simulate()
    rows = [int(np.flatnonzero(adata.obs["perturbation"] == name)[0]) for name in ("control", "P1")]
    with pytest.warns(UserWarning, match=r"one cell: \['P1'\]"):
        model = build(adata[rows].copy())
    fit(model, batch_size=batch_size, flow_batch_size=batch_size)
    assert np.isfinite(model.get_latent_representation()).all()
    assert np.isfinite(model.predict_perturbation().X).all()


@pytest.mark.parametrize("batch_size", [89, 44])
def test_a_last_batch_of_one_cell(simulate, build, fit, batch_size):
    model = fit(build(simulate()[:99].copy()), train_size=0.9, batch_size=batch_size, flow_batch_size=batch_size)
    assert len(model.split_[0]) % batch_size == (0 if batch_size == 89 else 1)
    assert np.isfinite(model.predict_perturbation().X).all()
    again = build(simulate()[:90].copy())
    fit(again, train_size=1.0, batch_size=89, flow_batch_size=89)
    assert np.isfinite(again.predict_perturbation().X).all()


@pytest.mark.parametrize("value", [-12.0, 12.0, -60.0, 60.0])
def test_extreme_dispersions_and_means(simulated, build, fit, value):
    """theta of e^-12 to e^12 (beyond which it is held), and genes whose share is about e^-80."""
    model = fit(build(simulated))
    decoder = model.module.decoder
    model.module.likelihood.log_theta.data.fill_(value)
    decoder.output.bias.data[:30] = -80.0
    assert np.isfinite(float(model.get_elbo()))
    for kind in ("mean", "lognorm"):
        assert np.isfinite(model.predict_perturbation(perturbation="P1", return_type=kind).X).all()
    drawn = model.predict_perturbation(perturbation="P1", return_type="counts").X
    assert np.isfinite(drawn.data).all() and drawn.data.min() >= 0


@pytest.mark.parametrize("early_stopping", [False, True])
def test_the_same_seed_gives_the_same_bits(simulate, build, fit, early_stopping):
    arguments = {"early_stopping": early_stopping, "early_stopping_patience": 2, "early_stopping_min_delta": 1e9}
    epochs = {"vae_max_epochs": 6, "flow_max_epochs": 6}
    runs = []
    for i in range(2):
        np.random.seed(i)  # the seed of the settings alone counts
        model = fit(build(simulate()), **(arguments if early_stopping else {}), **epochs)
        assert len(model.history["elbo_train"]) == (3 if early_stopping else 6)
        predicted = model.predict_perturbation(perturbation="P1", return_type="counts", batch_size=17 + 40 * i)
        runs.append([model.get_latent_representation(latent="both"), predicted.X.toarray()])
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_without_a_seed_runs_differ_and_their_predictions_do_not(simulate, build, quiet):
    scvi.settings.seed = None
    models = []
    for _ in range(2):
        adata = simulate()
        CFMVC.setup_anndata(adata, combination_delimiter="+")
        models.append(CFMVC(adata, n_latent=4, n_hidden=8, n_hidden_flow=8))
        models[-1].train(vae_max_epochs=1, flow_max_epochs=1, **quiet)
    first, second = (model.get_latent_representation() for model in models)
    assert not np.array_equal(first, second)
    a, b = (models[0].predict_perturbation(perturbation="P1", return_type="counts").X.toarray() for _ in range(2))
    np.testing.assert_array_equal(a, b)
