"""Usual names of columns and controls."""

import logging

import numpy as np
import pytest

from cfmvc_scvi import CFMVC
from cfmvc_scvi.registration.conventions import looks_like_control, usual_column


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["perturbation", "condition"], "perturbation"),
        (["Condition"], "Condition"),
        (["stim", "x"], "stim"),
        (["condition", "treatment"], None),
        (["x"], None),
    ],
)
def test_one_usual_name_is_taken(columns, expected):
    assert usual_column("perturbation_key", columns) == expected


@pytest.mark.parametrize(
    "name", ["NT", "non-targeting_001", "safe-targeting", "sgNT-2", "Scramble", "neg_ctrl_3", "ctrl"]
)
def test_control_guides(name):
    assert looks_like_control(name)


@pytest.mark.parametrize("name", ["NT5E", "P1", "controlled release", "targeting", "NTRK1"])
def test_genes_are_no_control_guides(name):
    assert not looks_like_control(name)


def test_setup_says_what_was_found_and_left_out(simulated, caplog):
    simulated.obs["donor"] = "d1"
    simulated.obs = simulated.obs.rename(columns={"perturbation": "condition", "cell_type": "celltype"})
    logger = logging.getLogger("scvi.cfmvc")
    logger.addHandler(caplog.handler)
    try:
        with caplog.at_level(logging.INFO, logger="scvi.cfmvc"):
            CFMVC.setup_anndata(simulated, combination_delimiter="+")
    finally:
        logger.removeHandler(caplog.handler)
    [line] = {r.getMessage() for r in caplog.records if r.name == "scvi.cfmvc"}
    assert "perturbation 'condition' (control ['control'])" in line and "cell type 'celltype'" in line
    assert "left out, though called like a batch or sample: ['donor']" in line


def test_further_control_guides_are_named(simulated):
    p, k = simulated.obs["perturbation"].astype(str), np.arange(simulated.n_obs) % 3
    names = ("NT", "non-targeting_001", "safe-targeting")
    simulated.obs["perturbation"] = [names[i] if x == "control" else x for x, i in zip(p, k, strict=True)]
    with pytest.warns(UserWarning, match=r"control_group=\['NT', 'non-targeting_001', 'safe-targeting'\]"):
        CFMVC.setup_anndata(simulated, combination_delimiter="+")
    CFMVC.setup_anndata(simulated, combination_delimiter="+", control_group=names)
    assert sorted(CFMVC(simulated).vocabulary.names) == ["P1", "P2", "P3"]


def test_numbered_control_guides_are_offered(simulated):
    p = simulated.obs["perturbation"].astype(str)
    simulated.obs["perturbation"] = [f"NTC_{i % 2}" if x == "control" else x for i, x in enumerate(p)]
    with pytest.raises(ValueError, match=r"All of these: `control_group=\['NTC_0', 'NTC_1'\]`"):
        CFMVC.setup_anndata(simulated)


def test_combinations_without_a_delimiter_are_told_of(simulated, recwarn):
    CFMVC.setup_anndata(simulated, combination_delimiter="+")
    assert not [w for w in recwarn if "combination_delimiter" in str(w.message)]
    with pytest.warns(UserWarning, match=r"are other perturbations joined by '\+'.*combination_delimiter='\+'"):
        CFMVC.setup_anndata(simulated)
    simulated.obs["perturbation"] = simulated.obs["perturbation"].astype(str).str.replace("P1", "P+1").replace("+", "/")
    simulated.obs["perturbation"] = [x if "+" not in x[2:] else "P2" for x in simulated.obs["perturbation"].astype(str)]
    recwarn.clear()
    CFMVC.setup_anndata(simulated)  # a plus sign in a name whose parts are no perturbations
    assert not [w for w in recwarn if "combination_delimiter" in str(w.message)]


def test_singles_written_with_the_control_are_understood(simulated):
    names = simulated.obs["perturbation"].astype(str)
    simulated.obs["perturbation"] = [x if "+" in x or x == "control" else f"{x}+control" for x in names]
    with pytest.warns(UserWarning, match=r"P1\+P\d.*combination_delimiter='\+'"):
        CFMVC.setup_anndata(simulated)


def test_registered_columns_are_not_said_to_be_left_out(simulated, caplog):
    simulated.obs["donor"] = simulated.obs.pop("cell_type")
    with caplog.at_level("INFO", logger="scvi.cfmvc"):
        CFMVC.setup_anndata(simulated, labels_key="donor", combination_delimiter="+")
    assert "left out" not in caplog.text
