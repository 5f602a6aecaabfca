"""Loaders of public data: conventional columns, originals kept, helpful errors."""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfmvc_scvi import data
from cfmvc_scvi.data import datasets
from cfmvc_scvi.data.datasets import CONVENTIONAL, DATASETS

SHAPES = {
    "kang2018": (3498, 4805),
    "papalexi2021": (20729, 290),
    "gasperini2019": (40002, 366),
    "cao2018": (2641, 1185),
    "tian2019_cellbench": (992, 11533),
    "wang2018_starmap": (3704, 158),
    "moffitt2018_merfish": (15848, 135),
}


def small(columns: dict[str, list[str]]) -> ad.AnnData:
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(len(next(iter(columns.values()))))])
    return ad.AnnData(np.ones((len(obs), 3), np.float32), obs=obs)


@pytest.fixture
def kang_file(tmp_path: Path) -> Path:
    adata = small({"cell_type": ["B", "T", "T"], "condition": ["ctrl", "stim", "ctrl"], "donor": ["1", "2", "2"]})
    adata.write_h5ad(tmp_path / "kang2018_pbmc_ifnb_4k.h5ad")
    return tmp_path / "kang2018_pbmc_ifnb_4k.h5ad"


def test_every_data_set_has_a_documented_loader():
    assert set(SHAPES) == set(DATASETS)
    for name in DATASETS:
        loader = getattr(data, name)
        assert name in data.__all__
        assert list(inspect.signature(loader).parameters) == ["path"]
        assert "`batch`" in loader.__doc__


@pytest.mark.parametrize("name", DATASETS)
def test_missing_file_says_what_where_and_how(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CFMVC_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        getattr(data, name)()
    text = str(error.value)
    for part in (f"{name}()", f"{DATASETS[name].file}.h5ad", str(tmp_path), "CFMVC_DATA", "doi:10."):
        assert part in text
    assert DATASETS[name].accession in text


def test_where_the_file_is_looked_for(kang_file, tmp_path, monkeypatch):
    monkeypatch.delenv("CFMVC_DATA", raising=False)
    assert data.kang2018(path=kang_file).n_obs == 3
    assert data.kang2018(path=str(kang_file.parent)).n_obs == 3
    monkeypatch.setenv("CFMVC_DATA", str(kang_file.parent))
    assert data.kang2018().n_obs == 3
    with pytest.raises(FileNotFoundError, match="the argument path"):
        data.kang2018(path=tmp_path / "elsewhere")
    monkeypatch.delenv("CFMVC_DATA")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="CFMVC_DATA is not set"):
        data.kang2018()
    cache = tmp_path / ".cache" / "cfmvc_scvi"
    cache.mkdir(parents=True)
    kang_file.rename(cache / kang_file.name)
    assert data.kang2018().n_obs == 3


def test_all_cells_of_kang_are_downloaded_once(tmp_path, monkeypatch):
    adata = small({"cell_type": ["B", "T"], "label": ["ctrl", "stim"], "replicate": ["p1", "p2"]})
    (tmp_path / "server").mkdir()
    adata.write_h5ad(tmp_path / "server" / "34464122")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("CFMVC_DATA", str(tmp_path / "cache"))
    serve = functools.partial(SimpleHTTPRequestHandler, directory=tmp_path / "server")
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/34464122"
        monkeypatch.setattr(datasets, "KANG_ALL", replace(datasets.KANG_ALL, url=address))
        first = data.kang2018_all()
        server.shutdown()
    again = data.kang2018_all(sha256=hashlib.sha256((tmp_path / "cache" / "kang_2018.h5ad").read_bytes()).hexdigest())
    for found in (first, again):
        assert found.obs["perturbation"].tolist() == ["control", "IFNB"] and found.obs["batch"].tolist() == ["p1", "p2"]
    with pytest.raises(ConnectionError, match=r"Download it in a browser and put it at .*other/kang_2018\.h5ad"):
        data.kang2018_all(tmp_path / "other")


def test_names_are_tidied_and_originals_kept(kang_file):
    adata = data.kang2018(path=kang_file)
    assert adata.obs["perturbation"].tolist() == ["control", "IFNB", "control"]
    assert adata.obs["condition"].tolist() == ["ctrl", "stim", "ctrl"]
    assert adata.obs["batch"].tolist() == ["1", "2", "2"]
    assert adata.obs["donor"].tolist() == ["1", "2", "2"]


def test_renamed_values_keep_their_original(tmp_path):
    adata = small({"cell_type": ["THP-1"] * 2, "batch": ["rep_1"] * 2, "perturbation": ["non-targeting", "STAT1"]})
    adata.write_h5ad(tmp_path / "panel.h5ad")
    loaded = data.papalexi2021(path=tmp_path / "panel.h5ad")
    assert loaded.obs["perturbation"].tolist() == ["control", "STAT1"]
    assert loaded.obs["perturbation_original"].tolist() == ["non-targeting", "STAT1"]
    assert "cell_type_original" not in loaded.obs


def test_another_file_is_refused(tmp_path):
    small({"cell_type": ["B"]}).write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(KeyError, match=r"condition.*donor.*not the file that kang2018.*cell_type"):
        data.kang2018(path=tmp_path / "other.h5ad")


@pytest.mark.parametrize("name", DATASETS)
def test_real_data_have_the_conventional_columns(name, real_data):
    adata = real_data(name)
    assert adata.shape == SHAPES[name]
    for column in CONVENTIONAL:
        assert isinstance(adata.obs[column].dtype, pd.CategoricalDtype)
        assert not adata.obs[column].isna().any()
    assert "control" in adata.obs["perturbation"].cat.categories
    assert DATASETS[name].publication.split("doi:")[1] in adata.uns["publication"]
    if DATASETS[name].accession.startswith("GEO"):
        assert DATASETS[name].accession in adata.uns["publication"]
    values = adata.X.data if hasattr(adata.X, "indptr") else np.asarray(adata.X)
    assert bool((values == np.round(values)).all()) == (name != "moffitt2018_merfish")


def test_kang_values(real_data):
    adata = real_data("kang2018")
    assert set(adata.obs["perturbation"]) == {"control", "IFNB"}
    assert adata.obs["batch"].nunique() == 8
    assert ((adata.obs["perturbation"] == "IFNB") == (adata.obs["condition"] == "stim")).all()


def test_gasperini_controls_are_one_level(real_data):
    adata = real_data("gasperini2019")
    control = adata.obs["perturbation"] == "control"
    assert control.sum() == 34411
    assert set(adata.obs.loc[control, "perturbation_original"]) == {"control", "non-targeting"}
    assert (np.asarray(adata.obsm["guide_presence"])[control].sum(axis=1) == 0).all()


def test_starmap_unassigned_cells(real_data):
    adata = real_data("wang2018_starmap")
    assert "unassigned" in adata.obs["cell_type"].cat.categories
    assert (adata.obs.loc[adata.obs["cell_type"] == "unassigned", "cell_type_original"] == "NA").all()
    assert adata.obsm["spatial"].shape == (3704, 2)
