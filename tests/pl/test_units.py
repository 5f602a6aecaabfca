"""Units and conditions of the cells that plots are given; labels of any kind."""

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfmvc_scvi import metrics, pl

PLOTS = {
    "delta": lambda p, r, c, **kw: pl.delta(p, r, c, show=False, **kw),
    "mean_expression": lambda p, r, c, **kw: pl.mean_expression(p, r, c, show=False, **kw),
    "gene_distributions": lambda p, r, c, **kw: pl.gene_distributions(p, c, r, show=False, **kw),
    "embedding": lambda p, r, c, **kw: pl.embedding(p, c, r, show=False, **kw),
}


@pytest.fixture
def made():
    """Control, real and predicted cells as AnnData, without a model: counts of 30 genes."""
    rng = np.random.default_rng(0)

    def cells(n, label, factor=1.0):
        counts = rng.poisson(20 * np.r_[np.full(5, factor), np.ones(25)], (n, 30)).astype(np.float32)
        names = [f"{label}{i}" for i in range(n)]
        obs = pd.DataFrame({"drug": label, "dose": 1.0}, index=names)
        return ad.AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(30)]))

    control, real, predicted = cells(40, "control"), cells(40, "P1", 3.0), cells(40, "P1", 2.5)
    predicted.X = predicted.X.toarray() + 0.25
    predicted.obs["source_cell"] = control.obs_names.to_numpy()
    predicted.uns["cfmvc"] = {"return_type": "mean", "perturbation_column": "drug", "dosage_column": "dose"}
    return predicted, real, control


def in_layer(cells):
    """Counts in a layer, log-normalised values in X."""
    cells = cells.copy()
    cells.layers["counts"] = cells.X.copy()
    cells.X = metrics.log1p_cp10k(cells.X)
    return cells


def drawn(ax):
    return [np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets())]


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("which", [1, 2])
def test_normalised_cells_are_refused(made, plot, which):
    given = list(made)
    given[which] = given[which].copy()
    given[which].X = metrics.log1p_cp10k(given[which].X)
    with pytest.raises(ValueError, match=rf"`?{['', 'real', 'control'][which]}.X has fractional values.*`layer=`"):
        PLOTS[plot](*given)


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("said", ["by the prediction", "by the user"])
def test_counts_in_a_layer_give_the_same_picture(made, plot, said):
    predicted, real, control = made
    expected = drawn(PLOTS[plot](predicted, real, control))
    arguments = {"layer": "counts"} if said == "by the user" else {}
    if said == "by the prediction":
        predicted.uns["cfmvc"]["layer"] = "counts"
    found = drawn(PLOTS[plot](predicted, in_layer(real), in_layer(control), **arguments))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_a_layer_that_is_not_there_is_named(made):
    with pytest.raises(KeyError, match=r"`layer` 'raw' is not among the layers of `control`, \[\]"):
        PLOTS["delta"](*made, layer="raw")


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("column", ["drug", "dose"])
def test_several_conditions_are_refused(made, plot, which, column):
    made[which].obs[column] = ["P2", "P1"] * 20 if column == "drug" else [1.0, 2.0] * 20
    with pytest.raises(ValueError, match=rf"`{['predicted', 'real'][which]}` holds cells of 2 conditions"):
        PLOTS[plot](*made)


def test_spellings_of_a_combination_are_one_condition(made):
    predicted, real, control = made
    predicted.uns["cfmvc"]["combination_delimiter"] = "+"
    expected = PLOTS["delta"](predicted, real, control).collections[0].get_offsets().copy()
    real.obs["drug"] = ["A+B", "B + A"] * 20
    found = PLOTS["delta"](predicted, real, control).collections[0].get_offsets()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("plot", PLOTS)
def test_arrays_of_counts_are_refused(made, plot):
    given = [metrics.log1p_cp10k(x.X) for x in made]
    PLOTS[plot](*given)
    given[1] = made[1].X
    with pytest.raises(ValueError, match="`real` is an array .* looks like counts"):
        PLOTS[plot](*given)


NAMES = [r"$\foo$", "$5", "a$b$c", r"\alpha", "_x"]


def test_labels_may_hold_anything(tmp_path):
    index = pd.Index(NAMES, name="perturbation")
    table = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 5)), index, NAMES)
    support = pd.DataFrame({"perturbation": NAMES, "cell_type": NAMES, "n_train": [1, 20, 3, 4, 5]})
    effect = pd.DataFrame({"log_fold_change": table.iloc[0].to_numpy(), "significant": True}, NAMES)
    for name, draw in {
        "support": lambda **kw: pl.support(support, **kw),
        "effects": lambda **kw: pl.effects(table, **kw),
        "one": lambda **kw: pl.effects(effect, **kw),
        "map": lambda **kw: pl.perturbation_map(table, groups=dict(zip(NAMES, NAMES, strict=True)), **kw),
    }.items():
        draw(save=tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 0
    ax = pl.support(support, show=False)
    shown = [text._preprocess_math(text.get_text())[0] for text in ax.get_yticklabels()]
    assert set(shown) == set(NAMES)
    assert mpl.rcParams["text.usetex"] is False


def test_genes_may_hold_dollar_signs(made):
    for cells in made:
        cells.var_names = [r"$\foo$", *cells.var_names[1:]]
    texts = set()
    for plot in PLOTS.values():
        figure = plot(*made).figure
        figure.draw_without_rendering()
        texts |= {text._preprocess_math(text.get_text())[0] for text in figure.findobj(mpl.text.Text)}
    assert r"$\foo$" in texts  # and no formula


@pytest.mark.parametrize("name", [None, "P1"])
def test_effects_of_one_table(name):
    effect = pd.DataFrame({"log_fold_change": np.linspace(-1, 1, 6), "significant": [True, False] * 3}, list("abcdef"))
    effect.attrs = {} if name is None else {"perturbation": name}
    ax = pl.effects(effect, show=False)
    assert [text.get_text() for text in ax.get_yticklabels()] == [name or "effect"]
