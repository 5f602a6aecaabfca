"""Any AnnData is read in the model's order, and what the model does not know is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfmvc_scvi.cells.reader import CellReader, unknown_level_message


@pytest.fixture
def reader(simulated, build):
    model = build(simulated)
    return CellReader(model.registry["field_registries"], model.get_var_names(), model.setup_keys)


def test_genes_in_another_order_and_further_ones(simulated, reader):
    one, other = reader.read(simulated), reader.read(simulated[:, ::-1].copy())
    np.testing.assert_array_equal(one.counts.toarray(), other.counts.toarray())
    np.testing.assert_array_equal(one.counts.toarray(), simulated.X.toarray())
    with pytest.raises(ValueError, match="1 of the 60 genes"):
        reader.read(simulated[:, 1:].copy())


def test_rows_that_are_read_are_those_that_would_be_taken(simulated, reader):
    rows = np.array([250, 3, 9])
    one, other = reader.read(simulated, rows=rows), reader.read(simulated).take(rows)
    np.testing.assert_array_equal(one.counts.toarray(), other.counts.toarray())
    assert torch.equal(one.context.batch, other.context.batch) and one.obs.equals(other.obs)


def test_unknown_types_are_refused_or_coded(simulated, reader):
    simulated.obs["cell_type"] = simulated.obs["cell_type"].astype(str).replace("type2", "type9")
    with pytest.raises(ValueError, match=r"\['type9'\].*Close matches: "):
        reader.read(simulated)
    labels = reader.read(simulated, allow_unknown=True).context.labels.numpy()
    np.testing.assert_array_equal(labels == -1, simulated.obs["cell_type"] == "type9")
    assert (labels >= 0).any()
    del simulated.obs["cell_type"]
    assert (reader.read(simulated, allow_unknown=True).context.labels == -1).all()


def test_a_missing_batch_takes_the_one_that_is_named(simulated, reader):
    levels = simulated.obs["batch"].unique().tolist()
    del simulated.obs["batch"]
    with pytest.raises(KeyError, match="'batch' is not in adata.obs"):
        reader.read(simulated)
    codes = [reader.read(simulated, batch=level).context.batch for level in levels]
    assert all(len(code.unique()) == 1 for code in codes) and not torch.equal(*codes)


def test_message_of_an_unknown_level_says_what_is_close():
    message = unknown_level_message("batch", "adata.obs['b']", ["plat1"], ["plate1", "other"])
    assert "1 batch level(s)" in message and "Close matches: ['plate1']" in message and "nearest" not in message
