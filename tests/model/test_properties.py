"""What must not change a prediction: order of cells, genes and members, cutting into chunks, names of categories."""

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

from tests.conftest import control_cells

FEW = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
RETURNS = st.sampled_from(["mean", "counts", "lognorm", "latent"])
FITTED = st.sampled_from(["trained", "trained_noise"])


@pytest.fixture(scope="module")
def models(trained, trained_noise):
    return {name: (m, control_cells(m)) for name, m in (("trained", trained), ("trained_noise", trained_noise))}


def values(prediction) -> np.ndarray:
    x = prediction.X
    return np.asarray(x.toarray() if sparse.issparse(x) else x)


def predict(model, cells, kind, perturbation="P1+P3", **arguments):
    return values(model.predict_perturbation(cells, perturbation, return_type=kind, **arguments))


rows = st.lists(st.integers(0, 59), min_size=1, max_size=40, unique=True)


@FEW
@given(name=FITTED, kind=RETURNS, chosen=rows, seed=st.integers(0, 9))
def test_order_and_number_of_cells(models, name, kind, chosen, seed):
    """Any choice of cells in any order: each cell gets what it gets among all."""
    model, cells = models[name]
    everyone = predict(model, cells, kind, seed=seed)
    np.testing.assert_array_equal(predict(model, cells[chosen].copy(), kind, seed=seed), everyone[chosen])


@FEW
@given(name=FITTED, kind=RETURNS, batch_size=st.integers(1, 200), cut=st.integers(1, 59))
def test_batch_size_and_chunks(models, name, kind, batch_size, cut):
    model, cells = models[name]
    whole = predict(model, cells, kind)
    np.testing.assert_array_equal(predict(model, cells, kind, batch_size=batch_size), whole)
    parts = [predict(model, part.copy(), kind, batch_size=batch_size) for part in (cells[:cut], cells[cut:])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@FEW
@given(name=FITTED, kind=RETURNS, order=st.permutations(range(60)), extra=st.integers(0, 3))
def test_order_of_genes_and_further_genes(models, name, kind, order, extra):
    model, cells = models[name]
    expected = predict(model, cells, kind)
    shuffled = cells[:, order].copy()
    if extra:
        more = sparse.csr_matrix(np.full((cells.n_obs, extra), 7.0, dtype=np.float32))
        names = [*(f"other{i}" for i in range(extra)), *shuffled.var_names]
        shuffled = AnnData(sparse.hstack([more, shuffled.X], format="csr"), obs=shuffled.obs, obsm=dict(shuffled.obsm))
        shuffled.var_names = names
    np.testing.assert_array_equal(predict(model, shuffled, kind), expected)


@FEW
@given(name=FITTED, kind=RETURNS, members=st.permutations(["P1", "P2", "P3"]), controls=st.integers(0, 2))
def test_order_of_members_and_controls_among_them(models, name, kind, members, controls):
    model, cells = models[name]
    label = "+".join([*members[:2], *["control"] * controls])
    first = predict(model, cells, kind, label)
    second = predict(model, cells, kind, "+".join(sorted(members[:2])))
    np.testing.assert_array_equal(first, second)


@FEW
@given(
    name=FITTED,
    solver=st.sampled_from(["euler", "midpoint", "rk4", "adaptive"]),
    steps=st.integers(1, 7),
    label=st.sampled_from(["control", "control+control"]),
)
def test_control_gives_the_cells_back(models, name, solver, steps, label):
    model, cells = models[name]
    arguments = {"solver": solver} | ({} if solver == "adaptive" else {"n_steps": steps})
    own = cells.X.toarray()
    np.testing.assert_array_equal(predict(model, cells, "mean", label, **arguments), own)
    np.testing.assert_array_equal(predict(model, cells, "counts", label, **arguments), own)


@FEW
@given(name=FITTED, kind=RETURNS, categories=st.permutations(["type1", "type2", "never seen"]), text=st.booleans())
def test_how_categories_are_stored(models, name, kind, categories, text):
    """Text, or a categorical with its levels in any order and others beside them."""
    model, cells = models[name]
    new = cells.copy()
    new.obs["cell_type"] = new.obs["cell_type"].astype(str)
    if not text:
        new.obs["cell_type"] = new.obs["cell_type"].astype("category").cat.set_categories(categories)
    np.testing.assert_array_equal(predict(model, new, kind), predict(model, cells, kind))


names = st.text("abcdexyz0189 -_.", min_size=1, max_size=6).filter(lambda text: text.strip() == text != "")


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(levels=st.lists(names, min_size=4, max_size=4, unique=True))
def test_names_of_categories_do_not_matter(simulate, build, fit, levels):
    """A model of renamed categories is the same model, whatever the order of the names."""
    first, second = simulate(), simulate()
    for key, new in (("batch", levels[:2]), ("cell_type", levels[2:])):
        old = list(second.obs[key].astype("category").cat.categories)
        second.obs[key] = second.obs[key].astype(str).map(dict(zip(old, new, strict=True)))
    one, two = (fit(build(adata), vae_max_epochs=1, flow_max_epochs=1) for adata in (first, second))
    np.testing.assert_array_equal(one.get_latent_representation(), two.get_latent_representation())
    np.testing.assert_array_equal(predict(one, None, "mean"), predict(two, None, "mean"))
    assert sorted(two.cell_types) == sorted(levels[2:])
