"""Fields: codes that the names of levels cannot change, and the vocabulary that travels with the registry."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cfmvc_scvi.registration.fields import FirstSeenJointObsField, FirstSeenObsField, PerturbationField, make_fields
from cfmvc_scvi.registration.keys import SetupKeys


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


# ---- codes ----------------------------------------------------------------------------------------------------------


def coded(levels) -> tuple[np.ndarray, list[str]]:
    """Codes of a column, and the levels in their order."""
    adata = AnnData(
        np.ones((len(levels), 1)), obs=pd.DataFrame({"x": levels}, index=list(map(str, range(len(levels)))))
    )
    field = FirstSeenObsField("key", "x")
    state = field.register_field(adata)
    return field.get_field_data(adata).ravel(), list(state["categorical_mapping"])


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "a")])
def test_codes_are_those_of_the_first_appearance(names):
    first, second, third = names
    codes, order = coded([first, second, first, third, second])
    assert codes.tolist() == [0, 1, 0, 2, 1] and order == list(names)


def test_levels_without_a_cell_have_no_code():
    codes, order = coded(pd.Categorical(["q", "p"], ["unused", "p", "q"]))
    assert codes.tolist() == [0, 1] and order == ["q", "p"]


def test_several_columns_are_coded_each_by_itself():
    obs = pd.DataFrame({"x": ["b", "a", "b"], "y": ["z", "z", "y"]}, index=list("012"))
    adata = AnnData(np.ones((3, 1)), obs=obs)
    state = FirstSeenJointObsField("key", ["x", "y"]).register_field(adata)
    assert {key: list(levels) for key, levels in state["mappings"].items()} == {"x": ["b", "a"], "y": ["z", "y"]}
    assert adata.obsm["_scvi_key"].to_numpy().tolist() == [[0, 0], [1, 0], [0, 1]]


def test_the_vocabulary_stays_that_of_the_model():
    obs = pd.DataFrame({"drug": ["a", "b"]}, index=list("01"))
    adata = AnnData(np.ones((2, 1)), obs=obs)
    state = PerturbationField("drug", {"names": ["a"]}).register_field(adata)
    assert state["vocabulary"] == {"names": ["a"]}
    other = PerturbationField("drug", None).transfer_field(state, AnnData(np.ones((2, 1)), obs=obs.copy()))
    assert other["vocabulary"] == {"names": ["a"]}


def test_coordinates_are_a_field_only_where_there_are_any(simulated):
    for spatial, more in (("spatial", 1), (None, 0)):
        keys = SetupKeys(None, None, None, "perturbation", ["control"], None, None, None, spatial, None, None, None)
        assert len(make_fields(keys, None, presence_matrix=False)) == 7 + more
