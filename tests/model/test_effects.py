"""Gene effects with intervals, effect programs, trajectories."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from cfmvc_scvi import CFMVC
from cfmvc_scvi.model.effects import effect_table, mean_of_smaller

COLUMNS = ["log_fold_change", "lower", "upper", "sd", "sign_probability", "lfsr", "s_value", "significant"]


@pytest.fixture(scope="module")
def effect(trained):
    return trained.get_perturbation_effect("P1", "type1")


def test_table(trained, effect):
    assert effect.columns.tolist() == COLUMNS
    assert effect.index.tolist() == trained.adata.var_names.tolist()
    assert effect.attrs["labels"] == ["type1"] and effect.attrs["support"] == ["seen"]
    assert (effect["lower"] <= effect["log_fold_change"]).all() and (effect["log_fold_change"] <= effect["upper"]).all()
    assert (effect["sd"] > 0).all()
    np.testing.assert_allclose(effect["sign_probability"] + effect["lfsr"], 1.0)


def test_estimate_is_what_predictions_say(trained):
    """The mean of predicted cells changes by the estimate, up to the cap on predicted levels."""
    control = trained.adata[(trained.adata.obs["perturbation"] == "control").to_numpy()].copy()
    for cell_type in trained.cell_types:
        cells = control[(control.obs["cell_type"] == cell_type).to_numpy()].copy()
        library = np.asarray(cells.X.sum(axis=1))
        before = np.log1p(cells.X.toarray() / library * 1e4).mean(axis=0)
        after = trained.predict_perturbation(cells, "P2", return_type="lognorm").X.mean(axis=0)
        estimate = trained.get_perturbation_effect("P2", cell_type)["log_fold_change"].to_numpy()
        assert np.abs(after - before - estimate).mean() < 0.1 * np.abs(estimate).mean()
        assert np.corrcoef(after - before, estimate)[0, 1] > 0.98


def test_labels_are_averaged_by_their_controls(trained):
    each = {kind: trained.get_perturbation_effect("P1", kind) for kind in trained.cell_types}
    pooled = trained.get_perturbation_effect("P1")
    rows = np.sort(np.r_[trained._split.train, trained._split.validation])
    obs = trained.adata.obs.iloc[rows]
    n = [((obs["cell_type"] == kind) & (obs["perturbation"] == "control")).sum() for kind in trained.cell_types]
    expected = np.average([table["log_fold_change"] for table in each.values()], axis=0, weights=n)
    np.testing.assert_allclose(pooled["log_fold_change"], expected, rtol=1e-5, atol=1e-6)
    largest = np.maximum(*(table["sd"] for table in each.values()))
    assert (pooled["sd"] <= largest + 1e-9).all() and pooled["sd"].mean() < largest.mean()
    np.testing.assert_array_equal(trained.get_perturbation_effect("P1", ["type1", "type2"]), pooled)


def test_intervals_follow_the_level(trained, effect):
    narrow = trained.get_perturbation_effect("P1", "type1", level=0.5)
    free = effect["lower"] > -trained.calibration_.state.profiles[0] + 1e-6
    width = (effect["upper"] - effect["lower"])[free] / (narrow["upper"] - narrow["lower"])[free]
    np.testing.assert_allclose(width, norm.ppf(0.975) / norm.ppf(0.75), rtol=1e-5)


def test_fewer_cells_wider_intervals(simulate, build, fit):
    widths = []
    for n_cells in (240, 1200):
        model = fit(build(simulate(n_cells=n_cells)))
        widths.append(model.get_perturbation_effect("P1", "type1")["sd"].mean())
    assert widths[1] < 0.75 * widths[0]


def test_unseen_context_is_less_certain(simulate, build, fit):
    adata = simulate(n_cells=600, n_pairs=0)
    held = ((adata.obs["perturbation"] == "P1") & (adata.obs["cell_type"] == "type1")).to_numpy()
    model = fit(build(adata[~held].copy()))
    unseen, seen = (model.get_perturbation_effect("P1", kind) for kind in ("type1", "type2"))
    assert unseen.attrs["support"] == ["new context"] and seen.attrs["support"] == ["seen"]
    assert unseen["sd"].mean() > seen["sd"].mean()


def test_control_has_no_effect(trained):
    table = trained.get_perturbation_effect("control")
    assert (table[["log_fold_change", "lower", "upper", "sd"]] == 0).all(axis=None)
    assert not table["significant"].any() and (table["lfsr"] == 0.5).all()


def test_min_change_asks_for_more(trained, effect):
    strict = trained.get_perturbation_effect("P1", "type1", min_change=0.3)
    assert (strict["sign_probability"] <= effect["sign_probability"] + 1e-12).all()
    expected = norm.cdf((np.abs(effect["log_fold_change"]) - 0.3) / effect["sd"])
    np.testing.assert_allclose(strict["sign_probability"], expected)


def test_s_values_by_hand():
    np.testing.assert_allclose(mean_of_smaller(np.array([0.3, 0.01, 0.2, 0.01])), [0.13, 0.01, 0.22 / 3, 0.01])


def test_calls_keep_the_false_sign_rate():
    """Effects and estimates drawn from the model that the table assumes: wrong signs stay at the rate asked for."""
    rng = np.random.default_rng(0)
    truth, sd = rng.normal(scale=1.0, size=20_000), np.full(20_000, 0.8)
    shrink = 1.0 / (1.0 + sd**2)
    mean = shrink * (truth + sd * rng.normal(size=20_000))
    table = effect_table(mean, np.sqrt(shrink) * sd, np.full(20_000, -9.0), level=0.9, min_change=0.0, fdr=0.1)
    wrong = np.sign(mean) != np.sign(truth)
    called = table["significant"].to_numpy()
    assert called.sum() > 3000 and (called == (table["lfsr"] <= 0.1)).all()
    assert np.mean(wrong[called]) == pytest.approx(table["lfsr"][called].mean(), abs=0.005)
    assert table["lfsr"][called].mean() < 0.05  # the local rate bounds that of all calls
    by_s_value = (table["s_value"] <= 0.1).to_numpy()
    assert by_s_value.sum() > called.sum() and np.mean(wrong[by_s_value]) == pytest.approx(0.1, abs=0.01)
    assert np.mean((truth > table["lower"]) & (truth < table["upper"])) == pytest.approx(0.9, abs=0.01)


def test_interval_never_reaches_below_zero_expression():
    table = effect_table(np.array([-0.2]), np.array([1.0]), np.array([-0.5]), level=0.95, min_change=0, fdr=0.05)
    assert table["lower"].item() == -0.5


def test_effects_survive_saving(trained, tmp_path, effect):
    trained.get_perturbation_effect("P1")
    trained.save(tmp_path / "model", overwrite=True)
    loaded = CFMVC.load(tmp_path / "model", adata=False, accelerator="cpu")
    again = loaded.get_perturbation_effect("P1", "type1").astype(float)
    np.testing.assert_allclose(again, effect.astype(float), rtol=1e-4, atol=1e-5)
    loaded.calibration_.observe(None)
    with pytest.raises(RuntimeError, match="loaded without data"):
        loaded.get_perturbation_effect("P1")


def test_retraining_forgets_the_old_errors(simulated, build, fit):
    model = fit(build(simulated))
    model.get_perturbation_effect("P1")
    assert model.calibration_.state.observed is not None
    fit(model)
    assert model.calibration_.state.observed is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*no control cells")
def test_no_population_has_controls(simulate, build, fit):
    adata = simulate()
    of_control = (adata.obs["perturbation"] == "control").to_numpy()
    adata = adata[of_control == (adata.obs["cell_type"] == "type1").to_numpy()].copy()
    model = fit(build(adata))
    with pytest.raises(RuntimeError, match="No perturbation was trained on in a cell type with control cells"):
        model.get_perturbation_effect(model.vocabulary.names[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"perturbation": "P9"}, "Unknown perturbation 'P9'"),
        ({"perturbation": "P1", "labels": "type9"}, "cell type level"),
        ({"perturbation": "P1", "labels": []}, "cell type level"),
        ({"perturbation": "P1", "level": 1.0}, "`level` is 1.0"),
        ({"perturbation": "P1", "fdr": 0.0}, "`fdr` is 0.0"),
        ({"perturbation": "P1", "min_change": -1.0}, "`min_change` is -1.0"),
    ],
)
def test_refuses(trained, arguments, message):
    with pytest.raises(ValueError, match=message):
        trained.get_perturbation_effect(**arguments)


def test_untrained(simulated, build):
    model = build(simulated)
    for call in (lambda: model.get_perturbation_effect("P1"), model.get_effect_basis):
        with pytest.raises(RuntimeError, match="not trained"):
            call()


@pytest.mark.slow
def test_samples_widen_the_intervals(simulate, build, fit, tmp_path):
    """Perturbed and control cells of different donors: what differs between donors is not an effect."""
    adata = simulate(n_cells=1200, n_batches=6, batch_effect=0.6, n_pairs=0, n_perturbations=1, n_cell_types=1)
    perturbed = (adata.obs["perturbation"] != "control").to_numpy()
    first = adata.obs["batch"].isin(sorted(adata.obs["batch"].unique())[:3]).to_numpy()
    adata = adata[first == perturbed].copy()
    adata.obs["donor"] = adata.obs["batch"].astype(str)
    tables = []
    for setup in ({}, {"sample_key": "donor"}):
        model = fit(build(adata.copy(), {"batch_key": None} | setup))
        tables.append(model.get_perturbation_effect("P1"))
    cells, samples = ((table["upper"] - table["lower"]).mean() for table in tables)
    assert samples > 1.2 * cells
    model.save(str(tmp_path / "model"))
    loaded = CFMVC.load(str(tmp_path / "model"), adata=False, accelerator="cpu")
    assert loaded.setup_keys.sample_key == "donor" and loaded.trained_cells_ == model.trained_cells_
    observed = model.calibration_.state.observed.effects
    np.testing.assert_array_equal(loaded.calibration_.state.observed.effects.freedom, observed.freedom)
    again = loaded.get_perturbation_effect("P1")
    for column in ("lower", "upper", "lfsr"):
        np.testing.assert_allclose(again[column], tables[1][column], rtol=1e-4, atol=1e-5)
    others = adata[:50].copy()
    others.obs["donor"] = "a new one"
    assert set(CFMVC.load(str(tmp_path / "model"), adata=others).adata.obs["donor"]) == {"a new one"}
    del others.obs["donor"]
    assert len(loaded.predict_perturbation(others, "P1")) == 50


def test_intervals_of_student_are_wider():
    mean, sd, floor = np.array([1.0, 1.0]), np.array([0.4, 0.4]), np.array([-9.0, -9.0])
    options = {"level": 0.95, "min_change": 0.0, "fdr": 0.05}
    normal = effect_table(mean, sd, floor, **options)
    few = effect_table(mean, sd, floor, np.array([3.0, np.inf]), **options)
    assert few["upper"][0] == pytest.approx(1.0 + student.ppf(0.975, 3) * 0.4) and few["upper"][0] > normal["upper"][0]
    assert few["lfsr"][0] > normal["lfsr"][0]
    np.testing.assert_allclose(few.iloc[1].astype(float), normal.iloc[1].astype(float))
    assert few["lfsr"][1] == pytest.approx(norm.sf(2.5))
