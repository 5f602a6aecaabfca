"""Gene sets from files, dictionaries and tables."""

from __future__ import annotations

import pandas as pd
import pytest

from cfmvc_scvi.pathways import read_gmt
from cfmvc_scvi.pathways.gene_sets import as_network


def test_gmt(tmp_path):
    (tmp_path / "x.gmt").write_text("A\thttp://a\tG1\tG2\t\n\nB\t\tG2\tG3\tG3\n")
    assert read_gmt(tmp_path / "x.gmt") == {"A": ["G1", "G2"], "B": ["G2", "G3", "G3"]}
    network = as_network(tmp_path / "x.gmt")
    assert network.to_dict("list") == {"source": ["A", "A", "B", "B"], "target": ["G1", "G2", "G2", "G3"]}
    pd.testing.assert_frame_equal(network, as_network({"A": ["G1", "G2"], "B": ["G2", "G3", "G3"]}))
    assert list(as_network(network.assign(weight=1.0, more="x")).columns) == ["source", "target", "weight"]
    (tmp_path / "no.gmt").write_text("A\tabout\tG1\nB\tabout\n")
    with pytest.raises(ValueError, match="Line 2 of .* has no genes"):
        read_gmt(tmp_path / "no.gmt")
    (tmp_path / "twice.gmt").write_text("A\tabout\tG1\nA\tabout\tG2\n")
    with pytest.raises(ValueError, match="has the set 'A' twice, the second time in line 2"):
        read_gmt(tmp_path / "twice.gmt")


def test_refuses():
    with pytest.raises(ValueError, match="`gene_sets` is empty"):
        as_network({})
    with pytest.raises(ValueError, match=r"has the columns \['set'\]; decoupler's tables have `source`"):
        as_network(pd.DataFrame({"set": ["A"]}))
    with pytest.raises(TypeError, match="`gene_sets` is a list"):
        as_network(["A"])
    with pytest.raises(TypeError, match="The set 'A' is the text 'G1'"):
        as_network({"A": "G1"})
