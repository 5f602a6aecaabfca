"""The class that users call: what it makes of its arguments, and what it refuses."""

from __future__ import annotations

import pytest

from cfmvc_scvi import CFMVC


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"flow_source": "cell"}, "`flow_source` 'cell': choose one of"),
        ({"coupling": "best"}, "`coupling` 'best': choose one of"),
        ({"gene_likelihood": "zinb"}, r"`gene_likelihood` 'zinb': choose one of \['nb'\]"),
    ],
)
def test_arguments_that_are_refused(simulated, build, arguments, message):
    with pytest.raises(ValueError, match=message):
        build(simulated, **arguments)


def test_networks_have_the_sizes_of_the_data(simulated, build):
    simulated.obs["donor"] = ["a", "b", "c"] * 100
    simulated.obs["age"] = 1.0
    setup = {
        "categorical_covariate_keys": ["donor"],
        "continuous_covariate_keys": ["age"],
        "combination_delimiter": "+",
    }
    module = build(simulated, setup, n_latent=7).module
    assert (module.decoder.output.out_features, module.n_latent, module.n_latent_technical) == (60, 7, 3)
    assert len(module.tech_prior_mean.weight) == 2
    bare = build(simulated.copy(), {"combination_delimiter": "+"}, n_latent=7).module
    assert sum(p.numel() for p in module.parameters()) > sum(p.numel() for p in bare.parameters())


def test_the_representation_says_what_was_chosen(simulated, build):
    printed = repr(build(simulated, coupling="ot", flow_source="noise"))
    assert "n_latent: 6" in printed and "coupling: ot" in printed and "flow_source: noise" in printed
    assert "perturbations: 3" in printed


def test_data_that_are_not_set_up_are_refused(simulated):
    with pytest.raises(ValueError, match="setup_anndata"):
        CFMVC(simulated)


def test_repr_says_what_the_model_is_made_of(simulated, build):
    text = repr(build(simulated))
    for word in ("300 cells", "60 genes", "2 batches", "2 cell types", "control: ['control']", "trained: nothing yet"):
        assert word in text
