import numpy as np
import pandas as pd
import pytest
import torch


def test_observed_statistics_are_those_of_the_counts(trained):
    check = trained.posterior_predictive_check()
    x = trained.adata.X.toarray().astype(float)
    np.testing.assert_allclose(check.genes["mean"], x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(check.genes["variance"], x.var(axis=0), rtol=1e-6)
    np.testing.assert_allclose(check.genes["zeros"], (x == 0).mean(axis=0))
    assert list(check.genes.index) == list(trained.adata.var_names)
    sizes = trained.adata.obs["perturbation"].value_counts()
    assert check.populations["n_cells"].to_dict() == sizes.to_dict()
    library = x.sum(axis=1)[(trained.adata.obs["perturbation"] == "P1").to_numpy()].mean()
    assert check.populations.loc["P1", "library"] == pytest.approx(library)


def test_a_smaller_theta_shows_as_a_larger_variance(trained):
    before = trained.posterior_predictive_check(seed=1).genes
    log_theta = trained.module.likelihood.log_theta
    kept = log_theta.detach().clone()
    try:
        with torch.no_grad():
            log_theta.fill_(np.log(0.1))
        after = trained.posterior_predictive_check(seed=1).genes
    finally:
        with torch.no_grad():
            log_theta.copy_(kept)
    assert (after["variance_drawn"] > 1.1 * before["variance_drawn"]).mean() > 0.9
    assert after["zeros_drawn"].mean() > before["zeros_drawn"].mean()


def test_the_seed_decides_the_draws_and_rows_and_groups_can_be_chosen(trained):
    one, again, other = (trained.posterior_predictive_check(seed=seed) for seed in (1, 1, 2))
    assert one.genes.equals(again.genes)
    assert not one.genes["mean_drawn"].equals(other.genes["mean_drawn"])
    rows = np.arange(0, trained.adata.n_obs, 3)
    check = trained.posterior_predictive_check(indices=rows, groupby="batch")
    assert set(check.populations.index) == set(trained.adata.obs["batch"].astype(str))
    assert check.populations["n_cells"].sum() == len(rows)


@pytest.mark.slow
def test_perturbations_of_a_presence_matrix_are_the_populations(simulate, build, quiet):
    adata = simulate(n_cells=120, n_pairs=0)
    labels = adata.obs.pop("perturbation").astype(str)
    adata.obsm["guides"] = pd.DataFrame({name: labels == name for name in ("P1", "P2", "P3")}, adata.obs_names)
    model = build(adata, {"perturbation_key": "guides"})
    model.train_vae(1, **quiet)
    found = model.posterior_predictive_check().populations["n_cells"]
    assert found.to_dict() == labels.value_counts().to_dict()


def test_what_is_missing_is_named(trained):
    with pytest.raises(KeyError, match="no_such"):
        trained.posterior_predictive_check(groupby="no_such")
    with pytest.raises(ValueError, match="empty"):
        trained.posterior_predictive_check(indices=[])


def test_stage_1_is_needed(build, simulated):
    with pytest.raises(RuntimeError, match="train_vae"):
        build(simulated).posterior_predictive_check()
