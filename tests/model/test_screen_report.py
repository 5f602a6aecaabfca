"""The page of a whole screen: what its table says, that it is one file, and that it sorts and searches by itself."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from cfmvc_scvi import CFMVC


class Table(HTMLParser):
    """Rows of the searchable table, and every address that the page names."""

    def __init__(self):
        super().__init__()
        self.rows, self.links, self.cell = [], [], None

    def handle_starttag(self, tag, attrs):
        self.links += [value for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.cell = ""

    def handle_data(self, data):
        self.cell = None if self.cell is None else self.cell + data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.rows[-1].append(self.cell)
            self.cell = None


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    path = trained.report_screen(tmp_path_factory.mktemp("screen") / "screen.html", show_progress=False)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def table(page):
    parser = Table()
    parser.feed(page)
    head, *rows = parser.rows
    return parser, {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_table(trained, table):
    _, rows = table
    effects = {name: trained.get_perturbation_effect(name) for name in rows}
    assert {"P1", "P2", "P3"} <= set(rows) and "control" not in rows
    for name, row in rows.items():
        change = effects[name]["log_fold_change"]
        assert float(row["effect size"]) == pytest.approx(np.sqrt((change**2).mean()), rel=1e-2)
        assert int(row["sure genes"]) == effects[name]["significant"].sum()
        fitted = trained.adata.obs["perturbation"].iloc[trained._split.train]
        assert int(row["cells"]) == (fitted == name).sum() and row["support"] == "2 seen"
        genes = [text.rstrip("?").split(" ") for text in row["strongest genes"].split(", ")]
        assert len(genes) == 8
        for gene, value in genes:
            assert float(value) == pytest.approx(change[gene], abs=0.006)
    assert [float(row["effect size"]) for row in rows.values()] == sorted(
        (float(row["effect size"]) for row in rows.values()), reverse=True
    )


def test_reliability(trained, table, simulate, build, fit, tmp_path):
    """Many cells and strong effects are reproduced; labels that were shuffled are not."""
    strong = simulate(n_cells=900, effect_size=1.5, n_pairs=0)
    shuffled = strong.copy()
    rng, counts = np.random.default_rng(0), strong.X.toarray()
    for kind in strong.obs["cell_type"].unique():
        of_kind = (strong.obs["cell_type"] == kind).to_numpy()
        control = (strong.obs["perturbation"] == "control").to_numpy()
        perturbed = np.flatnonzero(of_kind & ~control)
        counts[perturbed] = counts[rng.choice(np.flatnonzero(of_kind & control), len(perturbed))]
    shuffled.X = counts
    means = []
    for adata in (strong, shuffled):
        model = fit(build(adata))
        requests = model._requests(None, None, None)
        means.append(np.mean(list(model._split_half(requests, np.array([0, 1]), 0).values())))
    assert means[0] > 0.7 and means[1] < 0.35
    values = [float(row["split-half r"]) for row in table[1].values()]
    assert all(-1 <= value <= 1 for value in values)


def test_one_file(page, table):
    parser, rows = table
    assert all(link.startswith(("data:", "#")) for link in parser.links)
    assert re.findall(r"url\((?!#)", page) == [] and page.count("<svg") >= 4 and page.count("<script>") == 1
    assert f"{len(rows)} of {len(rows)}" in page and len(page) < 2_000_000


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run the script with")
def test_script_is_javascript(page, tmp_path):
    script = re.search(r"<script>(.*?)</script>", page, flags=re.DOTALL).group(1)
    (tmp_path / "script.js").write_text(script)
    assert subprocess.run(["node", "--check", tmp_path / "script.js"], check=False).returncode == 0
    assert r"/\s+/" in script


def test_without_data(trained, tmp_path):
    trained.get_perturbation_effect("P1")
    trained.save(tmp_path / "model", overwrite=True)
    loaded = CFMVC.load(tmp_path / "model", adata=False, accelerator="cpu")
    text = loaded.report_screen(tmp_path / "x.html", ["P1", "P2"], "type1", n_genes=2).read_text()
    assert "Reliability is not known" in text and "–" in text


def test_refuses(trained, tmp_path, simulated, build):
    with pytest.raises(FileNotFoundError, match="no folder"):
        trained.report_screen(tmp_path / "no" / "x.html")
    with pytest.raises(ValueError, match="no condition beside the control"):
        trained.report_screen(tmp_path / "x.html", "control")
    with pytest.raises(RuntimeError, match="report a screen"):
        build(simulated).report_screen(tmp_path / "x.html")


def test_little_reach_of_a_vector_stands_in_the_table(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "_reach", lambda condition: 0.05 if condition.label == "P2" else 1.0)
    text = trained.report_screen(tmp_path / "x.html", ["P1", "P2"], "type1", show_progress=False).read_text()
    assert text.count(", reach 0.05") == 1
