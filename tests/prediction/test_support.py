"""Support: what was trained on, and how far a condition is from it."""

from __future__ import annotations

SHORT = {"vae_max_epochs": 1, "flow_max_epochs": 2}


def test_distance_is_that_to_the_nearest_trained_vector(trained):
    result = trained.predict_perturbation(perturbation=["control", "P1", "P1+P2", "P1+P2+P3"])
    distance = result.obs.groupby("perturbation", observed=True)["support_distance"].unique()
    trained_pairs = set(trained.adata.obs["perturbation"].astype(str))
    assert list(distance["control"]) == list(distance["P1"]) == [0.0]
    assert list(distance["P1+P2"]) == ([0.0] if "P1+P2" in trained_pairs else [1.0])
    assert list(distance["P1+P2+P3"]) == [1.0]  # one member from the pair that was trained on


def test_distance_of_a_vector_grows_with_its_distance(simulate, build, fit):
    adata = simulate(n_pairs=0)
    vectors = adata.uns["perturbation_embedding"].copy()
    for step in (0.0, 0.5, 2.0):
        vectors.loc[f"far {step}"] = vectors.loc["P1"] + step * (vectors.loc["P1"] - vectors.loc["P2"])
    adata.uns["vectors"] = vectors
    model = fit(build(adata, {"perturbation_embedding_key": "vectors"}), **SHORT)
    obs = model.predict_perturbation(perturbation=["far 0.0", "far 0.5", "far 2.0"]).obs
    distance = obs.groupby("perturbation", observed=True, sort=False)["support_distance"].first()
    assert distance["far 0.0"] == 0.0 and 0 < distance["far 0.5"] < distance["far 2.0"]
    assert set(obs["support"]) == {"new perturbation"}


def test_support_table_names_doses_and_contexts(simulate, build, fit):
    adata = simulate(doses=[1.0, 3.0])
    table = fit(build(adata, {"combination_delimiter": "+", "dosage_key": "dosage"}), **SHORT).support()
    assert list(table) == ["perturbation", "dosage", "cell_type", "batch", "n_cells", "n_train"]
    assert table["n_cells"].sum() == adata.n_obs and table["n_train"].sum() == round(0.9 * adata.n_obs)
    one = table[(table["perturbation"] == "P1") & (table["dosage"] == 3.0)]
    assert one["n_cells"].sum() == ((adata.obs["perturbation"] == "P1") & (adata.obs["dosage"] == 3.0)).sum()


def test_support_counts_cells(trained):
    table = trained.support()
    assert set(table.columns) == {"perturbation", "cell_type", "batch", "n_cells", "n_train"}
    assert table["n_cells"].sum() == 300 and table["n_train"].sum() == len(trained.train_indices)
    obs = trained.adata.obs
    one = table[(table["perturbation"] == "P2") & (table["cell_type"] == "type1") & (table["batch"] == "batch2")]
    rows = (obs["perturbation"] == "P2") & (obs["cell_type"] == "type1") & (obs["batch"] == "batch2")
    assert one["n_cells"].tolist() == [rows.sum()]
    assert one["n_train"].tolist() == [rows.to_numpy()[trained.train_indices].sum()]


def test_support_of_an_untrained_model(simulated, build):
    table = build(simulated, {"batch_key": None, "labels_key": None}).support()
    assert set(table.columns) == {"perturbation", "n_cells", "n_train"}
    assert table["n_train"].sum() == 0 and table["n_cells"].sum() == 300
