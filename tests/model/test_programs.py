"""Effect programs: what every basis vector of the flow does to the genes."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def test_basis_is_the_slope_of_the_decoded_change(trained):
    """Coefficients times basis are the decoded change of a small dose of a perturbation, to first order."""
    table = trained.get_effect_basis("type1", step=1e-2)
    assert table.shape == (4, 60) and table.index[0] == "basis_0"
    alpha = trained.get_effect_coefficients().loc[("P1", "type1")].to_numpy()
    trained.calibrate(None)  # predictions are then the decoded change itself
    try:
        rows = trained.adata.obs["cell_type"].eq("type1") & trained.adata.obs["perturbation"].eq("control")
        cells = trained.adata[rows.to_numpy()].copy()
        after, before = (trained.predict_perturbation(cells, name, return_type="latent") for name in ("P1", "control"))
    finally:
        trained.calibrate()
    technical = torch.from_numpy(trained.get_latent_representation(cells, latent="technical"))
    with torch.inference_mode():
        levels = [trained.module.decoder(torch.from_numpy(z.X), technical).exp().numpy() for z in (after, before)]
    decoded = (np.log1p(1e4 * levels[0]) - np.log1p(1e4 * levels[1])).mean(axis=0)
    assert np.corrcoef(alpha @ table.to_numpy(), decoded)[0, 1] > 0.9


def test_basis_of_all_types_is_their_mean(trained):
    each = [trained.get_effect_basis(kind, step=0.1).to_numpy() for kind in trained.cell_types]
    np.testing.assert_allclose(trained.get_effect_basis(step=0.1), np.mean(each, axis=0), rtol=1e-5, atol=1e-6)


def test_basis_ranks_genes(trained):
    table = trained.get_effect_basis("type1")
    ranked = trained.get_effect_basis("type1", n_top=5)
    assert ranked.columns.tolist() == ["basis", "rank", "gene", "log_fold_change"] and len(ranked) == 20
    first = ranked[ranked["basis"] == "basis_2"]
    assert first["gene"].tolist() == table.loc["basis_2"].abs().nlargest(5).index.tolist()
    np.testing.assert_allclose(first["log_fold_change"], table.loc["basis_2", first["gene"]])


def test_basis_refuses(trained):
    for arguments, message in (
        ({"labels": "type9"}, "cell type level"),
        ({"step": 0.0}, "`step` is 0.0"),
        ({"n_top": 0}, "`n_top` is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            trained.get_effect_basis(**arguments)
