"""The metrics on real data: the rows of the quality table that need no model, and that nothing leaks."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scvi

from cfmvc_scvi import CFMVC, metrics

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # energy distances of thousands of cells


@pytest.fixture(scope="module")
def protocol():
    path = ROOT / "benchmarks/quality/protocol.py"
    if not path.exists():
        pytest.skip("benchmarks/ is not part of this distribution")
    spec = importlib.util.spec_from_file_location("quality_protocol", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def kang_counts(protocol):
    path = protocol.data_path()
    if not path.exists():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{path} is absent; set CFMVC_DATA")
        pytest.skip(f"{path} is absent; set CFMVC_DATA")
    return protocol.load_kang(path)


@pytest.fixture(scope="module")
def kang_fold(protocol, kang_counts):
    return protocol.make_fold(kang_counts, "B cells")


def test_folds_are_the_types_with_forty_cells(protocol, kang_counts):
    assert protocol.kang_folds(kang_counts) == sorted(protocol.CHOOSE_ON + protocol.CONFIRM_ON)
    assert "Megakaryocytes" in protocol.kang_folds(kang_counts, 9)


def test_fold_holds_out_and_only_that(protocol, kang_counts, kang_fold):
    obs = kang_fold.training.obs
    held_out = (kang_counts.obs.cell_type == "B cells") & (kang_counts.obs.condition == "stim")
    assert set(obs.index) == set(kang_counts.obs_names[~held_out])
    assert set(kang_fold.truth.obs_names) == set(kang_counts.obs_names[held_out])
    assert set(kang_fold.control.obs_names) <= set(obs.index)
    assert kang_fold.training.shape == (kang_counts.n_obs - held_out.sum(), 2000)
    whole = kang_counts[obs.index].X.sum(axis=1).A1
    np.testing.assert_array_equal(obs["total_counts"], whole)
    assert (kang_fold.training.X.sum(axis=1).A1 < whole).any()
    assert "B cells" not in kang_fold.contexts


def scramble_held_out(adata):
    """The same data with every count of the held-out cells moved to another gene and tripled."""
    scrambled = adata.copy()
    held_out = ((scrambled.obs.cell_type == "B cells") & (scrambled.obs.condition == "stim")).to_numpy()
    dense = scrambled.X.toarray()
    dense[held_out] = np.random.default_rng(0).permuted(dense[held_out], axis=1) * 3
    scrambled.X = type(scrambled.X)(dense)
    scrambled.obs["total_counts"] = dense.sum(axis=1)
    return scrambled


def test_scrambled_held_out_cells_leave_all_that_a_method_sees_identical(protocol, kang_counts, kang_fold):
    other = protocol.make_fold(scramble_held_out(kang_counts), "B cells")
    assert other.genes.equals(kang_fold.genes)
    assert (other.training.X != kang_fold.training.X).nnz == 0
    pd.testing.assert_frame_equal(other.training.obs, kang_fold.training.obs)
    np.testing.assert_array_equal(other.pcs.components, kang_fold.pcs.components)
    assert (other.truth.X != kang_fold.truth.X).nnz > 0
    rows = ["mean perturbed", "control + mean shift"]
    tables = [protocol.score(fold, {}) for fold in (kang_fold, other)]
    assert not tables[0].loc[rows, "MSE all"].equals(tables[1].loc[rows, "MSE all"])


@pytest.mark.slow
def test_scrambled_held_out_cells_leave_predictions_bit_identical(protocol, kang_counts, kang_fold):
    predictions = []
    for fold in (kang_fold, protocol.make_fold(scramble_held_out(kang_counts), "B cells")):
        adata = fold.training.copy()
        CFMVC.setup_anndata(
            adata, batch_key="donor", perturbation_key="condition", control_group="ctrl", size_factor_key="total_counts"
        )
        scvi.settings.seed = 0
        model = CFMVC(adata, n_latent=8, n_hidden=16, n_hidden_flow=16)
        model.train(vae_max_epochs=2, flow_max_epochs=2, enable_progress_bar=False, accelerator="cpu")
        for return_type in ("mean", "counts"):
            predictions.append(model.predict_perturbation(fold.control, "stim", return_type=return_type).X)
    assert np.array_equal(predictions[0], predictions[2])
    assert (predictions[1] != predictions[3]).nnz == 0
    assert not np.array_equal(predictions[0], kang_fold.control.X.toarray())


def test_few_training_types(protocol, kang_counts):
    types = protocol.few_training_types(kang_counts, "B cells", 3)
    assert len(set(types)) == 3
    assert "B cells" not in types
    fold = protocol.make_fold(kang_counts, "B cells", training_types=types)
    assert sorted(fold.contexts) == types
    in_training = fold.training.obs.groupby("cell_type", observed=True)["condition"].unique()
    assert sorted(in_training.index) == sorted([*types, "B cells"])
    assert list(in_training["B cells"]) == ["ctrl"]
    assert protocol.make_fold(kang_counts, "B cells", None, types).training.n_vars > 4000
    for bad in (["B cells"], ["T"]):
        with pytest.raises(ValueError, match="training_types"):
            protocol.make_fold(kang_counts, "B cells", training_types=bad)


def test_score_takes_counts_and_arrays_and_costs(protocol, kang_fold):
    counts = kang_fold.control.copy()
    table = protocol.score(
        kang_fold,
        {"as counts": counts, "as array": protocol.lognorm(counts)},
        costs={"as array": {"train s": 3.0}},
    )
    assert list(table.columns) == [*protocol.COLUMNS.values(), *protocol.COSTS]
    columns = list(protocol.COLUMNS.values())
    for row in ("as array", "no change"):
        np.testing.assert_allclose(table.loc[row, columns], table.loc["as counts", columns], rtol=1e-9)
    assert table.loc["as array", "train s"] == 3
    assert table["train s"].notna().sum() == 1
    with pytest.raises(ValueError, match="other genes"):
        protocol.score(kang_fold, {"reversed": counts[:, ::-1]})


def test_interferon_genes_lead_the_differential_expression(protocol, kang_counts, kang_fold):
    everything = protocol.make_fold(kang_counts, "B cells", n_genes=None)
    assert {"ISG15", "IFI6", "ISG20"} <= set(everything.genes[everything.de_genes[:20]])
    dropped = set(everything.genes[everything.de_genes]) - set(kang_fold.genes)
    assert len(dropped) > 40  # what the choice of 2,000 variable genes costs: hence the second table


def test_known_rows_of_the_baselines_are_reproduced(protocol, kang_counts):
    """Mean over seven folds of the rows that need no model, as published with the protocol."""
    folds = protocol.kang_folds(kang_counts)
    table = protocol.mean_over_folds({t: protocol.score(protocol.make_fold(kang_counts, t), {}) for t in folds})
    expected = {
        "no change": [0, 0, 0.060, 1.087, 6.50, 6.73, 1.26, 0.500, 0.69],
        "control + mean shift": [0.747, 0.824, 0.029, 0.402, 2.66, 2.70, 0.93, 0.959, 0.69],
    }
    for row, values in expected.items():
        np.testing.assert_allclose(table.loc[row, list(protocol.COLUMNS.values())], values, rtol=0.02)
    ceiling = table.loc["split-half ceiling", list(protocol.COLUMNS.values())].to_numpy(float)
    np.testing.assert_allclose(ceiling, [0.892, 0.975, 0.009, 0.034, 0.02, 0.05, 0.32, 1, 1], atol=0.04)
    assert table.loc["control + mean shift", "Pearson-Δ all"] == pytest.approx(0.747, abs=0.001)
    assert table.loc["control + mean shift", "Pearson-Δ D100"] == pytest.approx(0.824, abs=0.001)


def test_averaging_over_contexts_is_the_stronger_shift_on_kang(protocol, kang_counts):
    """The published figure is the plain average over contexts; weighting by cells gives .73."""
    scores = {"contexts": [], "cells": []}
    for held_out in protocol.kang_folds(kang_counts):
        fold = protocol.make_fold(kang_counts, held_out)
        truth, control = protocol.lognorm(fold.truth), protocol.lognorm(fold.control)
        for weighting, values in scores.items():
            pred = metrics.mean_shift(control, fold.contexts, weighting=weighting, min_cells=protocol.MIN_CELLS)
            values.append(metrics.pearson_delta(pred, truth, control))
    assert np.mean(scores["contexts"]) == pytest.approx(0.747, abs=0.001)
    assert np.mean(scores["cells"]) == pytest.approx(0.732, abs=0.003)
