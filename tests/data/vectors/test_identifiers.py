"""Names that mean the same, by dict, table, AnnData and function."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from cfmvc_scvi.data.vectors.identifiers import as_function, table_of_aliases

GENES = pd.DataFrame(
    {
        "gene_ids": ["ENSG00000124762.14", "ENSG00000128340", "ENSG00000133703"],
        "alias": ["P21|CIP1", "EN-7|P21x", "CIP1|CDKN1A"],
        "length": [1, 2, 3],
    },
    index=["CDKN1A", "RAC2", "KRAS"],
)


def test_table_both_ways():
    symbol = as_function(GENES)
    assert [symbol(name) for name in ("ENSG00000124762", "ENSG00000124762.3", "P21", "EN-7", "KRAS")] == [
        "CDKN1A",
        "CDKN1A",
        "CDKN1A",
        "RAC2",
        "KRAS",
    ]
    ensembl = as_function(GENES, "gene_ids")
    assert ensembl("RAC2") == "ENSG00000128340" and ensembl("EN-7") == "ENSG00000128340"


def test_ambiguous_aliases_lead_nowhere_and_names_to_themselves():
    symbol = as_function(GENES)
    assert symbol("CIP1") == "CIP1"  # of CDKN1A and KRAS
    assert symbol("CDKN1A") == "CDKN1A"  # an alias of KRAS too
    assert symbol("unknown") == "unknown" and symbol("1") == "1"


def test_anndata_mapping_and_function():
    adata = AnnData(np.zeros((2, 3), dtype=np.float32), var=GENES)
    assert as_function(adata)("P21") == "CDKN1A"
    assert as_function({"ENSG00000128340": "RAC2"})("ENSG00000128340.7") == "RAC2"
    assert as_function(lambda name: name.split(" (")[0])("RAC2 (5880)") == "RAC2"
    assert as_function(None)("x") == "x"


def test_string_table():
    """Protein information of STRING, as it is downloaded."""
    info = pd.DataFrame(
        {"#string_protein_id": ["9606.ENSP00000244741"], "preferred_name": ["CDKN1A"], "protein_size": [164]}
    )
    assert as_function(info, "preferred_name")("9606.ENSP00000244741") == "CDKN1A"


def test_missing_values_and_refusals():
    gaps = pd.DataFrame({"alias": ["X", None, "Z"], "symbol": ["A", "B", None]})
    assert table_of_aliases(gaps, "symbol") == {"A": "A", "B": "B", "X": "A"}
    with pytest.raises(ValueError, match=r"Unknown `to` 'symbols'.*Close matches: \['symbol'\]"):
        table_of_aliases(gaps, "symbols")
    with pytest.raises(ValueError, match="`to` names a column of a table"):
        as_function({"a": "b"}, "symbol")
    with pytest.raises(TypeError, match="`aliases` is a list"):
        as_function(["a"])
