"""Means, changes and distributions: what is drawn is what the numbers say."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.text import Annotation

from cfmvc_scvi import metrics, pl


def drawn_points(ax: Axes) -> np.ndarray:
    """All points of the scatters, ordered by x."""
    points = np.concatenate([np.asarray(scatter.get_offsets()) for scatter in ax.collections])
    return points[np.lexsort(points.T[::-1])]


def named(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if isinstance(text, Annotation)]


def test_mean_expression_draws_means(arrays):
    ax = pl.mean_expression(arrays.predicted, arrays.real, arrays.control, n_de=5, n_names=3)
    expected = np.column_stack([arrays.real.mean(axis=0), arrays.predicted.mean(axis=0)])
    np.testing.assert_allclose(drawn_points(ax), expected[np.lexsort(expected.T[::-1])])
    de = metrics.top_de_genes(arrays.real, arrays.control, 5)
    assert sorted(named(ax)) == sorted(f"gene {i}" for i in de[:3])
    every = metrics.r2_mean(arrays.predicted, arrays.real)
    top = metrics.r2_mean(arrays.predicted, arrays.real, genes=de)
    assert ax.get_title() == f"R² {every:.3f} all genes, {top:.3f} top 5 DE"
    assert ax.get_xlabel() == "real mean, log1p CP10k" and ax.get_ylabel() == "predicted mean, log1p CP10k"


def test_delta_draws_changes(arrays):
    ax = pl.delta(arrays.predicted, arrays.real, arrays.control, n_de=5, title="P1")
    base = arrays.control.mean(axis=0)
    expected = np.column_stack([arrays.real.mean(axis=0) - base, arrays.predicted.mean(axis=0) - base])
    np.testing.assert_allclose(drawn_points(ax), expected[np.lexsort(expected.T[::-1])])
    pearson = metrics.pearson_delta(arrays.predicted, arrays.real, arrays.control)
    assert ax.get_title().startswith(f"P1\nPearson-Δ {pearson:.3f} all genes")
    assert ax.get_xlim() == ax.get_ylim() and ax.get_aspect() == 1.0


def test_names_do_not_overlap_and_lie_inside(arrays):
    ax = pl.delta(arrays.predicted, arrays.real, arrays.control, n_de=20, n_names=20)
    figure = ax.figure
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert len(boxes) == 20
    # the extent of an annotation includes its line: compare the texts alone
    boxes = [mpl.text.Text.get_window_extent(text) for text in ax.texts]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    assert not any(a.overlaps(b) for a, b in pairs)
    frame = ax.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)


def test_too_many_names(arrays):
    with pytest.raises(ValueError, match="do not fit"):
        pl.delta(
            np.tile(arrays.predicted, 5), np.tile(arrays.real, 5), np.tile(arrays.control, 5), n_de=200, n_names=150
        )


def test_cells_are_read_as_the_model_reads_them(cells):
    """Genes are matched by name, and the prediction keeps the library size of its source cell."""
    ax = pl.mean_expression(cells.predicted, cells.real[:, ::-1].copy(), cells.control)
    library = np.asarray(cells.control.X.sum(axis=1)).ravel()
    predicted = metrics.log1p_cp10k(cells.predicted.X, library).mean(axis=0)
    real = np.asarray(metrics.log1p_cp10k(cells.real.X).mean(axis=0)).ravel()
    expected = np.column_stack([real, predicted])
    np.testing.assert_allclose(drawn_points(ax), expected[np.lexsort(expected.T[::-1])], rtol=1e-6)


def test_log_normalised_predictions_are_taken_as_they_are(trained, cells):
    lognorm = trained.predict_perturbation(cells.control, "P1", return_type="lognorm")
    real, control = (metrics.log1p_cp10k(adata.X) for adata in (cells.real, cells.control))
    one, other = pl.delta(lognorm, cells.real, cells.control), pl.delta(np.asarray(lognorm.X), real, control)
    np.testing.assert_allclose(drawn_points(one), drawn_points(other), atol=1e-4)


def test_library_key(cells):
    control, real, predicted = cells.control.copy(), cells.real.copy(), cells.predicted.copy()
    for adata in (control, real, predicted):
        adata.obs["depth"] = 1e4
    ax = pl.mean_expression(predicted, real, control, library_key="depth")
    expected = np.log1p(np.asarray(real.X.todense())).mean(axis=0)
    np.testing.assert_allclose(np.sort(drawn_points(ax)[:, 0]), np.sort(expected), rtol=1e-6)
    with pytest.raises(KeyError, match="'umis' is not in the obs of `control`"):
        pl.mean_expression(predicted, real, control, library_key="umis")


def test_distributions(arrays):
    ax = pl.gene_distributions(arrays.predicted, arrays.control, arrays.real, n_genes=4)
    de = metrics.top_de_genes(arrays.real, arrays.control, 4)
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"gene {i}" for i in de]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["control", "predicted", "real"]
    dots = [c for c in ax.collections if isinstance(c, mpl.collections.PathCollection)]
    for dot, values in zip(dots, (arrays.control, arrays.predicted, arrays.real), strict=True):
        np.testing.assert_allclose(dot.get_offsets()[:, 1], values[:, de].mean(axis=0))
    assert sum(isinstance(c, mpl.collections.FillBetweenPolyCollection) for c in ax.collections) == 12


def test_distributions_of_silent_genes_and_without_real_cells(arrays):
    arrays.control[:, 7] = 0.0
    ax = pl.gene_distributions(arrays.predicted, arrays.control, genes=["gene 7", "gene 2"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["control", "predicted"]
    lines = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
    assert any(len(line.get_segments()) == 1 and line.get_segments()[0][0, 1] == 0.0 for line in lines)
    with pytest.raises(ValueError, match=r"`genes` \['XIST'\] are not among"):
        pl.gene_distributions(arrays.predicted, arrays.control, genes=["XIST"])


def test_wrong_cells(arrays, trained, cells):
    with pytest.raises(ValueError, match=r"`control` has shape \(60, 39\)"):
        pl.delta(arrays.predicted, arrays.real, arrays.control[:, 1:])
    with pytest.raises(ValueError, match="2 of the 60 genes of the prediction are not in `real`"):
        pl.delta(cells.predicted, cells.real[:, 2:].copy(), cells.control)
    with pytest.raises(ValueError, match="`real` has no cells"):
        pl.delta(cells.predicted, cells.real[:0].copy(), cells.control)
    latent = trained.predict_perturbation(cells.control, "P1", return_type="latent")
    with pytest.raises(ValueError, match="holds latents"):
        pl.gene_distributions(latent, latent)
    arrays.real[0, 0] = np.nan
    with pytest.raises(ValueError, match="`real` has 1 values that are not finite"):
        pl.delta(arrays.predicted, arrays.real, arrays.control)
    with pytest.raises(ValueError, match="`n_names` is -1"):
        pl.delta(arrays.predicted, arrays.control, arrays.control + arrays.shift, n_names=-1)


# ---- show, save, ax: the same for every plot ---------------------------------------------------------------------


def test_axes_given_are_drawn_on(arrays):
    figure, (left, right) = plt.subplots(1, 2)
    assert pl.delta(arrays.predicted, arrays.real, arrays.control, ax=right) is right
    assert right.collections and not left.collections
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(TypeError, match="`ax` is a Figure"):
        pl.delta(arrays.predicted, arrays.real, arrays.control, ax=figure)


def test_saved(arrays, tmp_path):
    for name in ("a.png", "b.pdf", "c.svg"):
        pl.gene_distributions(arrays.predicted, arrays.control, save=tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


def test_shown_when_asked_for(arrays, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    pl.gene_distributions(arrays.predicted, arrays.control)
    pl.gene_distributions(arrays.predicted, arrays.control, show=False)
    assert not shown  # no window under this backend
    pl.gene_distributions(arrays.predicted, arrays.control, show=True)
    assert shown == [1]
    monkeypatch.setattr(mpl, "get_backend", lambda: "QtAgg")
    pl.gene_distributions(arrays.predicted, arrays.control)
    pl.gene_distributions(arrays.predicted, arrays.control, ax=plt.gca())
    assert shown == [1, 1]  # a figure of its own is shown, one that was given is not


def test_a_notebook_shows_a_figure_once(arrays, monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    monkeypatch.setattr(mpl, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    assert pl.delta(arrays.predicted, arrays.real, arrays.control) is None and shown == [1]
    assert pl.delta(arrays.predicted, arrays.real, arrays.control, show=False) is not None and shown == [1]
    plt.close("all")
    figure = pl.delta(arrays.predicted, arrays.real, arrays.control, return_fig=True)
    assert isinstance(figure, mpl.figure.Figure) and plt.get_fignums() == [] and shown == [1]
    _, ax = plt.subplots()
    assert pl.delta(arrays.predicted, arrays.real, arrays.control, ax=ax) is ax and shown == [1]


def test_titles_say_that_the_condition_was_trained_on(trained, cells):
    ax = pl.delta(cells.predicted, cells.real, cells.control)
    assert "trained on" in ax.get_title()
    predicted = cells.predicted.copy()
    predicted.obs["support_batch"] = "controls only"
    assert "trained on" not in pl.delta(predicted, cells.real, cells.control).get_title()
