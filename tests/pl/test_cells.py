"""Embeddings, velocities and tissue."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.quiver import Quiver

from cfmvc_scvi import metrics, pl


def scatters(ax) -> list[np.ndarray]:
    return [np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, mpl.collections.PathCollection)]


def test_components(arrays):
    ax = pl.embedding(arrays.predicted, arrays.control, arrays.real)
    control, predicted, real, *means = scatters(ax)
    assert [len(control), len(predicted), len(real)] == [60, 60, 50] and len(means) == 3
    np.testing.assert_allclose(means[2][0], real.mean(axis=0))
    pcs = metrics.fit_pcs([arrays.control, arrays.real], 30)
    projected = np.asarray(pcs.transform(arrays.real))
    k, j = (int(label.split()[1]) - 1 for label in (ax.get_xlabel(), ax.get_ylabel()))
    np.testing.assert_allclose(np.abs(real), np.abs(projected[:, [k, j]]), rtol=1e-6)
    assert real[:, 0].mean() > predicted[:, 0].mean() > control[:, 0].mean()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["control", "predicted", "real"]


@pytest.mark.slow
def test_umap_is_seeded(arrays):
    first, again = (pl.embedding(arrays.predicted, arrays.control, arrays.real, method="umap") for _ in range(2))
    np.testing.assert_allclose(scatters(first)[0], scatters(again)[0])
    assert first.get_xlabel() == "UMAP 1" and len(scatters(first)[2]) == 50


def test_representation(trained, cells):
    control = cells.control.copy()
    control.obsm["X_cfmvc"] = trained.get_latent_representation(control)
    ax = pl.embedding(cells.predicted, control, use_rep="X_cfmvc", max_cells=10)
    assert [len(xy) for xy in scatters(ax)] == [10, 10, 1, 1]
    with pytest.raises(KeyError, match="not in the obsm of `control`"):
        pl.embedding(cells.predicted, cells.control, use_rep="X_cfmvc")
    with pytest.raises(ValueError, match="Unknown `method` 'tsne'"):
        pl.embedding(cells.predicted, control, method="tsne")


def test_velocity_on_components_is_the_projection():
    """A field that points along the first component everywhere gives arrows along x, of the right length."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(500, 6)) * [5, 3, 1, 1, 1, 1]
    components = np.linalg.svd(latent - latent.mean(axis=0), full_matrices=False)[2]
    ax = pl.velocity(latent, np.tile(2.0 * components[0], (500, 1)))
    [arrows] = [c for c in ax.collections if isinstance(c, Quiver)]
    np.testing.assert_allclose(np.abs(arrows.U), 2.0, rtol=1e-5)
    np.testing.assert_allclose(arrows.V, 0.0, atol=1e-5)
    assert len(scatters(ax)[0]) == 500
    assert "2 latent units" in {child.text.get_text() for child in ax.artists if hasattr(child, "text")}


def test_velocity_on_an_embedding_points_to_neighbours_ahead():
    rng = np.random.default_rng(0)
    latent = rng.uniform(size=(800, 3))
    points = np.column_stack([-latent[:, 0], latent[:, 1]])  # mirrored
    ax = pl.velocity(latent, np.tile([1.0, 0.0, 0.0], (800, 1)), points, groups=["a", "b"] * 400)
    [arrows] = [c for c in ax.collections if isinstance(c, Quiver)]
    assert (arrows.U < 0).mean() > 0.95
    assert np.abs(arrows.V).mean() < 0.2 * np.abs(arrows.U).mean()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


def test_no_velocity_no_arrows(trained):
    latent = trained.get_latent_representation()
    _, effect = trained.get_velocity(perturbation="control")
    ax = pl.velocity(latent, effect)
    assert not [c for c in ax.collections if isinstance(c, Quiver)]


def test_velocity_refuses(trained):
    latent = trained.get_latent_representation()
    velocity = trained.get_velocity(perturbation="P1")
    with pytest.raises(ValueError, match="two arrays: pass one of them"):
        pl.velocity(latent, velocity)
    with pytest.raises(ValueError, match=r"`points` has shape \(300, 6\)"):
        pl.velocity(latent, velocity[1], latent)
    with pytest.raises(ValueError, match="`groups` has 2 names for 300 cells"):
        pl.velocity(latent, velocity[1], groups=["a", "b"])


def test_spatial_gene(trained, cells):
    control = cells.control.copy()
    figure = pl.spatial_gene(control[::-1].copy(), cells.predicted, "gene5", title="P1")
    before, after, change = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in (before, after, change)] == ["control", "predicted", "change"]
    library = np.asarray(control.X.sum(axis=1)).ravel()
    column = control.var_names.get_loc("gene5")
    expected = [metrics.log1p_cp10k(x.X, library)[:, [column]] for x in (control, cells.predicted)]
    expected = [np.asarray(x.todense() if hasattr(x, "todense") else x).ravel() for x in expected]
    for ax, values in ((before, expected[0]), (after, expected[1]), (change, expected[1] - expected[0])):
        [points] = ax.collections
        np.testing.assert_allclose(np.sort(points.get_array()), np.sort(values), rtol=1e-5, atol=1e-6)
    at = {
        tuple(xy): value
        for xy, value in zip(after.collections[0].get_offsets(), after.collections[0].get_array(), strict=True)
    }
    assert at[tuple(control.obsm["spatial"][3])] == pytest.approx(expected[1][3], rel=1e-5)
    assert before.collections[0].get_clim() == after.collections[0].get_clim()
    low, high = change.collections[0].get_clim()
    assert low == -high


def test_spatial_gene_refuses(trained, cells):
    with pytest.raises(KeyError, match="'coords' is not in control.obsm"):
        pl.spatial_gene(cells.control, cells.predicted, "gene5", spatial_key="coords")
    with pytest.raises(ValueError, match=r"`genes` \['XIST'\]"):
        pl.spatial_gene(cells.control, cells.predicted, "XIST")
    with pytest.raises(ValueError, match="not in `control`"):
        pl.spatial_gene(cells.control[5:].copy(), cells.predicted, "gene5")
    with pytest.raises(ValueError, match="several rows for a cell"):
        pl.spatial_gene(cells.control, trained.predict_perturbation(cells.control, ["P1", "P2"]), "gene5")
    with pytest.raises(ValueError, match="no obs\\['source_cell'\\]"):
        pl.spatial_gene(cells.control, cells.control, "gene5")


def test_many_groups_differ_in_colour_or_marker():
    rng = np.random.default_rng(0)
    groups = [f"type{i:02d}" for i in rng.integers(0, 20, 400)]
    ax = pl.velocity(rng.normal(size=(400, 3)), np.zeros((400, 3)), groups=groups)
    points = [c for c in ax.collections if isinstance(c, mpl.collections.PathCollection)]
    styles = {(tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in points}
    assert len(points) == len(styles) == 20
