"""A few cells as the networks read them, made without a model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cfmvc_scvi._types import FlowContext
from cfmvc_scvi.cells.table import CellTable


@pytest.fixture
def few_cells():
    """40 cells x 6 genes of two types and two batches, with a covariate."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (40, 6)).astype(np.float32)
    codes = torch.from_numpy(rng.integers(0, 2, (40, 2)))
    return CellTable(
        counts=sparse.csr_matrix(counts),
        obs=pd.DataFrame({"number": np.arange(40)}, index=[f"cell{i}" for i in range(40)]),
        context=FlowContext(codes[:, 0], codes[:, 1], continuous=torch.arange(40.0).unsqueeze(1)),
        library=counts.sum(axis=1),
        has_size_factor=False,
    )
