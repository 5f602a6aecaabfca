"""The HTML report: self-contained, with the scores that `metrics.evaluate` gives, and warnings where they belong."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from matplotlib import image
from matplotlib import pyplot as plt

from cfmvc_scvi import metrics
from cfmvc_scvi.model import report as report_module
from cfmvc_scvi.model.report import _rising_losses

VOID = {"meta", "img", "br", "link"}


class Checker(HTMLParser):
    """Reads a page: every element is closed in order, and what it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def real(simulate):
    """Cells of the same simulated screen that the model has not seen: P1 and P2 in type1, and controls."""
    adata = simulate(n_cells=500)
    adata.obs_names = [f"new_{name}" for name in adata.obs_names]
    chosen = (adata.obs["cell_type"] == "type1") & adata.obs["perturbation"].isin(["P1", "P2", "control"])
    return adata[chosen.to_numpy()].copy()


@pytest.fixture(scope="module")
def page(trained, real, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    assert trained.report(path, real, title="Held <out> & tested", n_de=20, max_plots=1) == path
    return path.read_text(encoding="utf-8")


def test_page_is_whole_and_self_contained(page):
    checked = Checker(page)
    assert checked.open == [] and page.startswith("<!DOCTYPE html>")
    assert checked.references and all(ref.startswith("data:image/png;base64,") for ref in checked.references)
    assert not re.search(r"https?://|@import|<script", page)
    for reference in checked.references:
        pixels = image.imread(io.BytesIO(base64.b64decode(reference.partition(",")[2])))
        assert min(pixels.shape[:2]) > 100 and pixels[..., :3].std() > 0.02  # not blank
    assert "<h1>Held &lt;out&gt; &amp; tested</h1>" in page
    assert not plt.get_fignums()


def test_page_has_its_sections(page, trained, real):
    text = Checker(page).text
    for heading in ("Verdict", "Warnings", "Scores", "Data and split", "P1 in type1"):
        assert heading in text
    assert "300 cells x 60 genes" in text and f"Held out: {real.n_obs} cells" in text
    assert "P1 in type1: trained on in this cell type" in text
    # benchmark, curves, support, and four plots of the one condition that max_plots allows
    assert page.count("<img") == 8


def test_scores_are_those_of_evaluate(page, trained, real):
    cells = real[(real.obs["perturbation"] == "P2").to_numpy()].copy()
    registered = trained.adata
    of_type = (registered.obs["cell_type"] == "type1").to_numpy()
    control = registered[of_type & (registered.obs["perturbation"] == "control").to_numpy()].copy()
    lognorm = trained.predict_perturbation(control, "P2", return_type="lognorm").X
    before, after = (np.asarray(metrics.log1p_cp10k(x.X).todense()) for x in (control, cells))
    header, *rows = [row for row in Checker(page).rows if row]
    verdict = dict(zip(header, next(row for row in rows if row[0] == "P2 in type1"), strict=True))
    assert verdict["verdict"].endswith(", trained on") and ":" in verdict["wins : losses against no change"]
    place = next(i for i, row in enumerate(rows) if row[0] == "condition")  # the second table
    header, rows = rows[place], rows[place + 1 :]
    found = dict(zip(header, next(row for row in rows if row[0] == "P2 in type1"), strict=True))
    assert found["real"] == str(cells.n_obs) and found["control"] == str(control.n_obs) and found["support"] == "seen"
    assert float(found["pearson delta"]) == pytest.approx(metrics.pearson_delta(lognorm, after, before), abs=2e-3)
    assert float(found["mse mean"]) == pytest.approx(metrics.mse_mean(lognorm, after), rel=0.01)
    assert re.fullmatch(r"\d+%", found["95 % intervals hold"])


def test_training_cells_are_pointed_out(trained, tmp_path):
    known = trained.adata[(trained.adata.obs["perturbation"] == "P1").to_numpy()].copy()
    text = Checker(trained.report(tmp_path / "r.html", known, max_plots=0).read_text(encoding="utf-8")).text
    assert f"{known.n_obs} of the {known.n_obs} real cells have names of cells the model was trained on" in text


def test_what_cannot_be_evaluated_is_said(trained, real, tmp_path):
    changed = real.copy()
    changed.obs["cell_type"] = changed.obs["cell_type"].astype(str)
    rows = np.flatnonzero((changed.obs["perturbation"] == "P1").to_numpy())
    changed.obs.iloc[rows, changed.obs.columns.get_loc("cell_type")] = "type9"
    text = Checker(trained.report(tmp_path / "r.html", changed, max_plots=0).read_text(encoding="utf-8")).text
    assert "P1 in type9: the model does not know this cell type" in text
    changed.obs["perturbation"] = changed.obs["perturbation"].astype(str).replace({"P1": "P9"})
    changed.obs["cell_type"] = "type1"
    text = Checker(trained.report(tmp_path / "r.html", changed, max_plots=0).read_text(encoding="utf-8")).text
    assert "P9 in type1: the model does not know this perturbation" in text
    few = real[np.flatnonzero((real.obs["perturbation"] == "P1").to_numpy())[:4]].copy()
    with pytest.raises(ValueError, match="P1 in type1: 4 real and .* at least 10 needed"):
        trained.report(tmp_path / "r.html", few)
    with pytest.raises(ValueError, match="it has only controls"):
        trained.report(tmp_path / "r.html", real[(real.obs["perturbation"] == "control").to_numpy()].copy())


def test_new_context_and_doses(simulate, build, fit, tmp_path):
    """A screen with doses and size factors, one cell type left out under P1."""
    adata = simulate(n_cells=900, n_perturbations=2, n_pairs=0, doses=[1.0, 10.0])
    held = ((adata.obs["perturbation"] == "P1") & (adata.obs["cell_type"] == "type1")).to_numpy()
    setup = {"dosage_key": "dosage", "size_factor_key": "library_size"}
    model = fit(build(adata[~held].copy(), setup))
    text = Checker(model.report(tmp_path / "r.html", adata[held].copy(), max_plots=1).read_text(encoding="utf-8")).text
    assert "P1 at 1 in type1" in text and "P1 at 10 in type1" in text
    assert "the baselines rest on 1 training populations" in text and "new context" in text


def test_rising_validation_loss_is_pointed_out():
    rising, falling = (pd.DataFrame({"loss": values}) for values in ([5.0, 3.0, 3.9], [5.0, 3.0, 3.2]))
    [message] = _rising_losses({"elbo_validation": rising, "flow_loss_validation": falling})
    assert message.startswith("Stage 1: the validation loss was lowest in epoch 2 of 3 (3) and ended at 3.9")


def test_a_folder_that_does_not_exist_is_told_of_first(trained, real, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        trained.report(tmp_path / "nowhere" / "r.html", real)
    with pytest.raises(IsADirectoryError, match="is a folder: give the name of a file"):
        trained.report(tmp_path, real)


def test_a_folder_that_cannot_be_written_is_told_of_first(trained, real, tmp_path, monkeypatch):
    monkeypatch.setattr(report_module.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="choose a folder that you may write into"):
        trained.report(tmp_path / "r.html", real)


def test_untrained(simulated, build, tmp_path):
    with pytest.raises(RuntimeError, match="not trained"):
        build(simulated).report(tmp_path / "r.html", simulated)
