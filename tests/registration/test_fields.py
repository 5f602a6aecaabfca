"""Fields: codes that the names of levels cannot change, and the vocabulary that travels with the registry."""

from __future__ import annotations

import numpy as np
import pandas as pd


def test_names_and_order_of_all_categories_do_not_matter(simulate, build, fit):
    """Other names of perturbations, cell types, batches and donors, in another order: the same bits."""
    rng = np.random.default_rng(0)
    donor = rng.choice(["d1", "d2", "d3"], 300)
    plain, renamed = simulate(), simulate()
    plain.obs["donor"], renamed.obs["donor"] = donor, pd.Series(donor).map({"d1": "z", "d2": "m", "d3": "a"}).to_numpy()
    names = {"P1": "Z", "P2": "M", "P3": "A", "P1+P3": "A+Z", "P1+P2": "Z+M", "P2+P3": "M+A"}
    obs = renamed.obs
    obs["perturbation"] = obs["perturbation"].astype(str).map(lambda n: names.get(n, n))
    obs["cell_type"] = obs["cell_type"].astype(str).map({"type1": "y", "type2": "x"})
    obs["batch"] = pd.Categorical(obs["batch"].astype(str).map({"batch1": "b", "batch2": "a"}), ["b", "a", "unused"])
    setup = {"combination_delimiter": "+", "categorical_covariate_keys": ["donor"]}
    one, other = fit(build(plain, setup)), fit(build(renamed, setup))
    np.testing.assert_array_equal(one.get_latent_representation(), other.get_latent_representation())
    for return_type in ("mean", "counts"):
        expected = one.predict_perturbation(perturbation=["P1", "P1+P2+P3"], return_type=return_type).X
        found = other.predict_perturbation(perturbation=["Z", "A+M+Z"], return_type=return_type).X
        difference = expected - found
        assert abs(difference).max() == 0
